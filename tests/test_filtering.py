import io
import json
import math

import jiwer
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper.filtering import DROP_REASONS, HISTOGRAM_EDGES, WERFilter
from distilwhisper.normalizers import get_normalizer

TEN_WORDS = "one cat saw two dogs near an old green gate"
ONE_ERROR = TEN_WORDS.replace("cat", "rat")
TWO_ERRORS = ONE_ERROR.replace("gate", "date")

ROWS = {
    "text": [TEN_WORDS, TEN_WORDS, TEN_WORDS, "", TEN_WORDS, None, "", "HELLO WORLD"],
    "whisper_transcript": [ONE_ERROR, TWO_ERRORS, None, "Thank you.", "", "Words.", " ", "HELLO WORLD"],
    "duration_s": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, None],
}
OUTCOMES = [
    None,
    "wer",
    "missing_label",
    "empty_reference",
    "empty_label",
    "missing_reference",
    None,
    "shouting",
]


def wav(seconds):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(16_000 * seconds), dtype=np.float32), 16_000, format="wav")
    return file.getvalue()


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [(TEN_WORDS, TWO_ERRORS), ("I'm 21!", "i am twenty-two"), ("colour", "color"), ("a b", "")],
)
def test_the_word_error_rate_is_that_of_jiwer_on_normalised_texts(reference, hypothesis):
    normalize = get_normalizer("en")
    assert WERFilter().wer(reference, hypothesis) == jiwer.wer(normalize(reference), normalize(hypothesis))


def test_a_label_at_the_threshold_is_kept_and_one_above_is_dropped():
    assert WERFilter().wer(TEN_WORDS, ONE_ERROR) == 0.10
    assert WERFilter().keep(TEN_WORDS, ONE_ERROR)
    assert not WERFilter().keep(TEN_WORDS, TWO_ERRORS)
    assert not WERFilter(0.0999).keep(TEN_WORDS, ONE_ERROR)


@given(st.integers(1, 60), st.integers(0, 59), st.sampled_from([5, 10, 15, 20, 30, 100]))
def test_the_threshold_is_exact_to_the_last_digit(words, errors, percent):
    errors = min(errors, words - 1)
    label = " ".join(["no"] * errors + ["yes"] * (words - errors))
    assert WERFilter(percent / 100).keep(" ".join(["yes"] * words), label) == (100 * errors <= percent * words)


@pytest.mark.parametrize("language", [None, "en", "english"])
def test_naming_english_does_not_raise_the_error_rate(language):
    """Guards F1."""
    assert WERFilter(language=language).wer("it's $20, mister colour", "It is $20, Mister color.") == 0


def test_marks_of_brahmic_scripts_count():
    """Guards F2: other vowels are other words."""
    assert WERFilter(language="hi").wer("मैं हिंदी बोलता हूँ", "मैं हिंदी बोलती हूँ") == 1 / 4


def test_languages_without_spaces_are_judged_by_letters():
    """Guards F3: one wrong letter in ten is at the threshold, not an error rate of 1."""
    assert WERFilter(language="zh").keep("今天天气很好我们去玩", "今天天气很好我们去吃。")


def test_special_and_timestamp_tokens_of_published_labels_are_ignored():
    label = f"<|startoftranscript|><|en|><|transcribe|><|0.00|> {ONE_ERROR}<|3.20|><|endoftext|>"
    assert WERFilter().wer(TEN_WORDS, label) == 0.10


def test_labels_in_capitals_are_dropped_with_and_without_special_tokens():
    """Guards F4: the special tokens of a stored label are lower case and must not hide the shouting."""
    for label in (
        "HELLO WORLD",
        "<|startoftranscript|><|en|><|transcribe|><|notimestamps|> HELLO WORLD<|endoftext|>",
    ):
        assert WERFilter().decide("hello world", label).reason == "shouting"
        assert WERFilter(drop_shouting=False).keep("hello world", label)


def test_capitals_in_references_acronyms_and_caseless_scripts_are_kept():
    """Guards F4: a caseless label equals its own upper case and must not be dropped for it."""
    assert WERFilter().keep("HELLO WORLD", "Hello world.")
    assert WERFilter().keep("nasa", "NASA.")
    assert WERFilter(language="hi").keep("मैं हिंदी बोलता हूँ", "मैं हिंदी बोलता हूँ")


def test_empty_and_missing_texts_have_their_rules():
    """Guards P4 and P11."""
    decide = WERFilter(1.0).decide
    assert decide("", "Thank you.") == ("empty_reference", math.inf)
    assert decide("[noise]", "uh") == (None, 0.0)
    assert decide(TEN_WORDS, "...") == ("empty_label", 1.0)
    assert decide(None, "Thank you.") == ("missing_reference", None)
    assert decide(TEN_WORDS, None) == ("missing_label", None)


@pytest.mark.parametrize(
    ("threshold", "hint"), [(10, "did you mean 0.1?"), (1.5, "0.015"), (-0.1, "-0.1"), (math.nan, "nan")]
)
def test_a_threshold_that_is_no_fraction_is_refused(threshold, hint):
    with pytest.raises(ValueError, match="threshold must be a fraction from 0 to 1") as refusal:
        WERFilter(threshold)
    assert hint in str(refusal.value)


def test_a_dataset_keeps_its_columns_and_gains_the_error_rate():
    dataset = Dataset.from_dict(ROWS)
    kept = WERFilter().filter(dataset)
    assert kept.column_names == ["text", "whisper_transcript", "duration_s", "whisper_wer"]
    assert kept.to_dict() == {
        name: [values[row] for row in (0, 6)] for name, values in {**ROWS, "whisper_wer": [0.1] + [0.0] * 6}.items()
    }
    assert WERFilter().filter(kept).to_dict() == kept.to_dict()


def test_the_report_tells_samples_and_hours_by_reason():
    wer_filter = WERFilter()
    wer_filter.filter(Dataset.from_dict(ROWS))
    report = wer_filter.report
    seconds = {reason: tally.seconds for reason, tally in report.reasons.items()}
    assert seconds == dict(zip(DROP_REASONS, (4, 32, 8, 16, 2, 0), strict=True))
    assert all(tally.samples == 1 for tally in report.reasons.values())
    assert (report.kept.samples, report.kept.hours) == (2, 65 / 3600)
    assert (report.total.samples, report.total.seconds, report.total.unknown_length) == (8, 127, 1)
    assert report.reasons["shouting"].hours is None
    by_edge = dict(zip((*HISTOGRAM_EDGES, "above"), report.histogram, strict=True))
    assert {edge: count for edge, count in by_edge.items() if count} == {
        0.0: 2,
        0.10: 1,
        0.20: 1,
        1.0: 1,
        "above": 1,
    }


def test_the_report_is_a_table_and_a_json_document():
    wer_filter = WERFilter()
    wer_filter.filter(Dataset.from_dict(ROWS))
    document = json.loads(wer_filter.report.to_json())
    assert document["dropped"]["samples"] == 6
    assert set(document["reasons"]) == set(DROP_REASONS)
    lines = str(wer_filter.report).splitlines()
    assert lines[0] == "| WER <= 10% | samples | hours | share |"
    assert lines[2] == "| kept | 2 | 0.02 | 25.0% |"
    assert "| dropped: shouting | 1 | unknown | 12.5% |" in lines
    assert lines[-1] == "Hours leave out 1 samples of unknown length."


def test_each_call_reports_its_own_dataset():
    wer_filter = WERFilter()
    for _ in range(2):
        wer_filter.filter(Dataset.from_dict(ROWS))
        assert wer_filter.report.total.samples == 8


@pytest.mark.parametrize("rows", [[], [1], [1, 2, 3, 4, 5]])
def test_nothing_to_keep_gives_an_empty_dataset_of_the_same_columns(rows):
    kept = WERFilter().filter(Dataset.from_dict(ROWS).select(rows))
    assert len(kept) == 0
    assert kept.column_names[-1] == "whisper_wer"


def test_without_a_duration_column_hours_come_from_the_headers_and_audio_stays_as_it_was(tmp_path):
    path = tmp_path / "one.wav"
    path.write_bytes(wav(1))
    audio = [
        {"bytes": wav(2), "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": b"no audio", "path": None},
    ]
    dataset = Dataset.from_dict({"audio": audio, "text": ["a"] * 3, "whisper_transcript": ["a"] * 3})
    wer_filter = WERFilter()
    kept = wer_filter.filter(dataset.cast_column("audio", Audio(16_000)))
    assert (wer_filter.report.kept.seconds, wer_filter.report.kept.unknown_length) == (3.0, 1)
    assert kept.features["audio"] == Audio(16_000)
    assert kept.cast_column("audio", Audio(decode=False))["audio"][0]["bytes"] == wav(2)


def test_hours_of_arrays_are_known():
    audio = {"array": [0.0] * 8000, "sampling_rate": 16_000}
    wer_filter = WERFilter()
    wer_filter.filter(Dataset.from_dict({"audio": [audio], "text": ["a"], "whisper_transcript": ["a"]}))
    assert wer_filter.report.kept.seconds == 0.5


def test_hours_are_none_where_nothing_tells_them():
    wer_filter = WERFilter()
    wer_filter.filter(Dataset.from_dict({"text": ["a"], "whisper_transcript": ["a"]}))
    assert wer_filter.report.total.hours is None


def test_dictionaries_of_splits_are_filtered_split_by_split_and_reported_together():
    wer_filter = WERFilter()
    splits = wer_filter.filter(DatasetDict(train=Dataset.from_dict(ROWS), test=Dataset.from_dict(ROWS).select([0, 1])))
    assert isinstance(splits, DatasetDict)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 1}
    assert wer_filter.report.total.samples == 10


@pytest.mark.parametrize("typed", [True, False])
def test_streams_are_filtered_as_stored_datasets_are(typed):
    rows = Dataset.from_dict(ROWS)
    stream = rows.to_iterable_dataset() if typed else IterableDataset.from_generator(lambda: iter(rows))
    wer_filter = WERFilter()
    assert list(wer_filter.filter(stream)) == list(WERFilter().filter(rows))
    assert wer_filter.report.total.samples == 8


def test_a_stream_with_audio_is_not_decoded():
    rows = {"audio": [{"bytes": wav(1), "path": None}], "text": ["a"], "whisper_transcript": ["a"]}
    wer_filter = WERFilter()
    stream = Dataset.from_dict(rows).cast_column("audio", Audio()).to_iterable_dataset()
    (kept,) = wer_filter.filter(stream)
    assert kept["audio"]["bytes"] == wav(1)
    assert wer_filter.report.kept.seconds == 1.0


def test_each_sample_can_have_its_own_language():
    rows = {"text": ["colour", "colour"], "whisper_transcript": ["color"] * 2, "lang": [None, "de"]}
    assert WERFilter().filter(Dataset.from_dict(rows), language_column="lang")["lang"][:] == [None]


def test_a_normaliser_of_the_user_is_used():
    assert WERFilter(normalizer=str.lower).wer("It's A", "it's a") == 0
    assert WERFilter(normalizer=str.lower).wer("it's", "it is") == 2


def test_a_missing_column_or_another_type_is_refused_by_name():
    with pytest.raises(ValueError, match="no column 'sentence', only \\['text', 'whisper_transcript'"):
        WERFilter().filter(Dataset.from_dict(ROWS), "sentence")
    with pytest.raises(TypeError, match="cannot filter a list"):
        WERFilter().filter([ROWS])

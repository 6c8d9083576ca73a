import io
import json
import math
from xml.etree import ElementTree

import jiwer
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper.filter_reports import threshold_sweep, write_filter_report
from distilwhisper.filtering import DROP_REASONS, HISTOGRAM_EDGES, WERFilter
from distilwhisper.label_scores import SCORE_FEATURES
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
    """Guards F5: one call of a metric that locks files, and needs the Hub, for each sample."""
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


def test_scores_hold_at_every_threshold():
    """Guards F6: another threshold needs no comparison."""
    rows = Dataset.from_dict(ROWS)
    scored = WERFilter(0.0).score(rows)
    assert len(scored) == len(rows)
    assert scored.column_names == [*rows.column_names, *SCORE_FEATURES]
    for point in threshold_sweep(scored, [0.0, 0.1, 0.2, 1.0]):
        wer_filter = WERFilter(point.threshold)
        assert point.samples == len(wer_filter.filter(rows))
        assert point.hours == wer_filter.report.kept.hours
        assert point.share == point.samples / len(rows)


def test_a_sweep_takes_bare_scores_and_refuses_an_unscored_data_set():
    points = threshold_sweep([0.0, 0.3, None, math.inf], [0.0, 0.3, 1.0], seconds=[3600, 1800, 60, None])
    assert [(point.samples, point.share, point.hours) for point in points] == [
        (1, 0.25, 1),
        (2, 0.5, 1.5),
        (2, 0.5, 1.5),
    ]
    assert threshold_sweep([0.0], [0.1])[0].hours is None
    assert threshold_sweep([], [0.1])[0].share == 0
    with pytest.raises(ValueError, match="no column 'whisper_wer': score it first"):
        threshold_sweep(Dataset.from_dict(ROWS))


def test_scores_are_used_again_for_the_same_texts_and_rule_and_only_then():
    texts = [TEN_WORDS, TEN_WORDS, "colour", ""]
    rows = Dataset.from_dict({"text": texts, "whisper_transcript": [ONE_ERROR, TWO_ERRORS, "color", "Uh oh."]})
    scored = WERFilter().score(rows)
    forged = scored.remove_columns("whisper_wer").add_column("whisper_wer", [0.0, 0.05, 0.0, math.inf])
    assert WERFilter().filter(forged)["whisper_wer"][:] == [0.0, 0.05, 0.0], "the scores that are there were not read"
    changed = forged.map(
        lambda row, index: {"text": TEN_WORDS + " indeed" if index == 1 else row["text"]}, with_indices=True
    )
    assert WERFilter(1.0).filter(changed)["whisper_wer"][:] == [0.0, 3 / 11, 0.0]
    assert WERFilter(1.0, "de").filter(forged)["whisper_wer"][:] == [0.1, 0.2, 1.0]
    assert WERFilter(1.0, normalizer=str.lower).filter(forged)["whisper_wer"][:] == [0.1, 0.2, 1.0]


def test_streams_use_scores_too_and_are_not_scored_themselves():
    scored = WERFilter().score(Dataset.from_dict(ROWS))
    assert list(WERFilter().filter(scored.to_iterable_dataset())) == list(WERFilter().filter(scored))
    with pytest.raises(TypeError, match="a stream is not scored"):
        WERFilter().score(scored.to_iterable_dataset())


def test_processes_give_the_same():
    rows = Dataset.from_dict({name: values * 3 for name, values in ROWS.items()})
    alone, together = WERFilter(), WERFilter()
    assert together.filter(rows, num_proc=2).to_dict() == alone.filter(rows).to_dict()
    assert together.report == alone.report


PARTS = [{"text": TEN_WORDS}, {"text": "They ran home."}, {"text": "[noise]"}]


def test_one_bad_part_drops_a_packed_sample_only_if_asked():
    """Guards F8."""
    text = " ".join(part["text"] for part in PARTS)
    label = f"{TEN_WORDS} they ran"
    rows = Dataset.from_dict({"text": [text, text], "whisper_transcript": [label, label], "parts": [PARTS, None]})
    assert WERFilter().part_wers([part["text"] for part in PARTS], label) == [0.0, 1 / 3, 0.0]
    assert len(WERFilter().filter(rows)) == 2
    judge = WERFilter(parts="any")
    assert judge.filter(rows)["whisper_part_wers"][:] == [None]
    assert judge.dropped["reason"][:] == ["part_wer"]
    assert judge.report.reasons["part_wer"].samples == 1
    assert [point.samples for point in threshold_sweep(judge.score(rows), [0.0, 0.1, 0.4])] == [0, 1, 2]
    with pytest.raises(ValueError, match="parts='any' needs the column 'parts'"):
        WERFilter(parts="any").filter(rows.remove_columns("parts"))
    with pytest.raises(ValueError, match="parts must be 'joined' or 'any', not 'all'"):
        WERFilter(parts="all")


def test_what_was_dropped_is_listed_with_reason_and_rate():
    wer_filter = WERFilter()
    rows = Dataset.from_dict({**ROWS, "name": list("abcdefgh")})
    wer_filter.filter(DatasetDict(train=rows, test=rows.select([1])), id_column="name")
    listed = wer_filter.dropped.to_list()
    assert [row["reason"] for row in listed] == [*filter(None, OUTCOMES), "wer"]
    assert listed[0] == {"split": "train", "index": 1, "id": "b", "reason": "wer", "wer": 0.2}
    assert listed[-1] == {"split": "test", "index": 0, "id": "b", "reason": "wer", "wer": 0.2}
    assert len(listed) == wer_filter.report.dropped.samples


def test_the_report_counts_by_column_and_shows_the_worst():
    rows = Dataset.from_dict({**ROWS, "lang": ["en", "en", "de", None] * 2, "source": ["a"] * 8})
    for dataset in (rows, rows.to_iterable_dataset()):
        wer_filter = WERFilter()
        list(wer_filter.filter(dataset, by=("lang", "source")))
        languages = wer_filter.report.groups["lang"]
        assert {name: group.total.samples for name, group in languages.items()} == {"en": 4, "de": 2, "None": 2}
        assert (languages["en"].kept.samples, languages["en"].reasons["wer"].samples) == (1, 1)
        assert wer_filter.report.groups["source"]["a"].total == wer_filter.report.total
        assert wer_filter.report.worst == [(0.2, "", TEN_WORDS, TWO_ERRORS)]


def test_the_worst_labels_come_first_and_are_few():
    labels = [" ".join(["no"] * errors + ["yes"] * (100 - errors)) for errors in range(11, 61)]
    wer_filter = WERFilter()
    rows = Dataset.from_dict({"text": ["yes " * 100] * 50, "whisper_transcript": labels, "id": list(range(50))})
    wer_filter.filter(rows)
    assert [example.wer for example in wer_filter.report.worst] == [errors / 100 for errors in range(60, 40, -1)]
    assert wer_filter.report.worst[0].id == "49"


def test_a_report_is_written_as_json_markdown_and_plots(tmp_path):
    wer_filter = WERFilter()
    rows = Dataset.from_dict({**ROWS, "lang": ["en"] * 8})
    wer_filter.filter(rows, by="lang")
    write_filter_report(wer_filter.report, tmp_path / "made", threshold_sweep(wer_filter.score(rows)))
    document = json.loads((tmp_path / "made" / "report.json").read_text())
    assert document["kept"]["samples"] == document["groups"]["lang"]["en"]["kept"]["samples"] == 2
    assert document["sweep"][10]["share"] == 0.25
    markdown = (tmp_path / "made" / "report.md").read_text()
    for expected in ("| kept | 2 |", "| 10 | 2 | 25.0% |", "## By lang", "## Worst labels", TWO_ERRORS):
        assert expected in markdown
    for name in ("wer_histogram.svg", "threshold_sweep.svg"):
        assert f"]({name})" in markdown
        ElementTree.parse(tmp_path / "made" / name)  # well-formed, with its name spaces

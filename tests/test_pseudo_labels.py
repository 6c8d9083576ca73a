import io
import json

import numpy as np
import pytest
import soundfile
from conftest import SHARED_DATA, audio_dataset, encoded, tone
from datasets import Audio, Dataset, DatasetDict, load_from_disk
from test_generation import talkative

from distilwhisper.pseudo_labels import LABEL_FEATURES, PseudoLabeler

GOOD = [encoded(tone(0.5 + index / 4, 150 + 90 * index)) for index in range(5)]


@pytest.fixture
def labeler(processor):
    return PseudoLabeler(talkative(), processor, language="en", batch_size=2)


@pytest.fixture
def timed_labeler(processor):
    return PseudoLabeler(talkative(), processor, language="en", return_timestamps=True, batch_size=2)


def test_labels_are_what_the_teacher_says(labeler):
    labelled = labeler.label(audio_dataset(GOOD, text=["some words"] * 5))
    for row, recording in zip(labelled, GOOD, strict=True):
        transcript = labeler.transcriber(recording)
        assert row["whisper_transcript"] == transcript.text
        assert row["whisper_tokens"] == transcript.tokens
        assert (row["whisper_language"], row["whisper_task"]) == ("en", "transcribe")
        assert (row["whisper_timestamps"], row["whisper_capped"]) == (False, transcript.capped)
        assert row["whisper_avg_logprob"] == pytest.approx(transcript.avg_logprob, rel=1e-4)
        assert row["duration_s"] == transcript.duration_s
    assert labelled.features == {**audio_dataset(GOOD, text=["words"] * 5).features, **LABEL_FEATURES}


def test_labels_hold_clean_text_and_tokens_without_prefix_and_end(timed_labeler):
    """Guards P1 and P5."""
    tokens = timed_labeler.transcriber.tokens
    for row in timed_labeler.label(audio_dataset(GOOD)):
        assert "<|" not in row["whisper_transcript"]
        assert row["whisper_timestamps"]
        assert tokens.is_timestamp(row["whisper_tokens"][0])
        assert all(token < tokens.end_of_text or tokens.is_timestamp(token) for token in row["whisper_tokens"])


def test_rows_keep_their_order_and_their_columns(labeler):
    seconds = [1.5, 0.5, 2.0, 1.0, 0.7]
    data = audio_dataset([encoded(tone(each)) for each in seconds], name=list("abcde"), text=[None] * 5)
    labelled = labeler.label(data)
    assert labelled["name"][:] == list("abcde")
    assert labelled["duration_s"][:] == pytest.approx(seconds)
    assert labelled["audio"][:] == data["audio"][:]


def test_shuffled_rows_get_their_own_labels(labeler):
    data = audio_dataset(GOOD, name=list("abcde"))
    straight = dict(zip("abcde", labeler.label(data)["whisper_tokens"], strict=True))
    shuffled = labeler.label(data.select([3, 0, 4]))
    assert {row["name"]: row["whisper_tokens"] for row in shuffled} == {name: straight[name] for name in "dae"}


def test_every_bad_recording_is_set_aside_with_its_reason(labeler, tmp_path):
    """Guards P10 and P14: too long, corrupt and all the rest; a whole batch of them too."""
    bad = {
        "null": (None, "missing"),
        "text": (b"this is no recording", "unreadable"),
        "cut": (GOOD[0][:30], "unreadable"),
        "silent": (encoded(np.zeros(0)), "empty"),
        "bytes": (b"", "empty"),
        "long": (encoded(tone(5.1)), "too_long"),
    }
    file = io.BytesIO()
    soundfile.write(file, np.full(1_600, np.nan), 16_000, format="WAV", subtype="FLOAT")
    bad["nan"] = (file.getvalue(), "not_finite")
    names = ["good-0", *bad, "good-1"]
    data = audio_dataset([GOOD[0], *(recording for recording, _ in bad.values()), GOOD[1]], id=names)
    labelled = labeler.label(data, tmp_path / "labels")
    assert labelled["id"][:] == ["good-0", "good-1"]
    assert {problem["id"]: problem["reason"] for problem in labeler.set_aside} == {
        name: reason for name, (_, reason) in bad.items()
    }
    assert [problem["index"] for problem in labeler.set_aside] == list(range(1, 1 + len(bad)))
    assert all(problem["message"] for problem in labeler.set_aside)
    assert labeler.report.set_aside == {
        "missing": 1, "unreadable": 2, "empty": 2, "too_long": 1, "not_finite": 1
    }  # fmt: skip


def test_a_set_of_nothing_but_bad_recordings_is_not_fatal(labeler):
    """Guards P14."""
    labelled = labeler.label(audio_dataset([b"noise", None, b""]))
    assert len(labelled) == 0
    assert set(LABEL_FEATURES) <= set(labelled.column_names)
    assert labeler.report.real_time_factor is None


def test_stereo_other_rates_and_exactly_one_window_are_labelled(labeler):
    """Guards P10."""
    stereo = encoded(np.stack([tone(1.0)] * 2, axis=1))
    labelled = labeler.label(audio_dataset([encoded(tone(1.0)), stereo, encoded(tone(1.0, rate=44_100), 44_100)]))
    plain, both, resampled = labelled
    assert both["whisper_tokens"] == plain["whisper_tokens"]
    assert resampled["duration_s"] == 1.0
    assert labeler.label(audio_dataset([encoded(tone(5.0))]))["duration_s"][:] == [5.0]


def test_reference_transcripts_are_not_needed_and_may_be_missing_or_empty(labeler):
    """Guards P4 and P11."""
    assert len(labeler.label(audio_dataset(GOOD))) == 5
    assert labeler.report.with_reference == 0
    assert len(labeler.label(audio_dataset(GOOD, text=["words", None, "", "more words", "..."]))) == 5
    assert labeler.report.with_reference == 3


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_every_row_is_labelled_once_whatever_the_size_of_the_last_batch(labeler, size):
    """Guards P3."""
    data = audio_dataset(GOOD).select(range(size))
    labelled = labeler.label(data)
    assert len(labelled) == labeler.report.labelled == size
    assert set(LABEL_FEATURES) <= set(labelled.column_names)


def test_a_prompt_is_the_text_of_the_row_before_by_the_same_speaker(timed_labeler):
    """Guards T3, T4, T5 and P16."""
    recordings = [GOOD[0], GOOD[1], GOOD[2], GOOD[3], b"noise", GOOD[4], GOOD[0], GOOD[1]]
    speakers = ["ann", "ann", "bob", "bob", "bob", "bob", None, None]
    data = audio_dataset(recordings, speaker=speakers, name=list("abcdefgh"))
    labelled = timed_labeler.label(data, speaker_column="speaker")
    tokens = timed_labeler.transcriber.tokens
    text = {row["name"]: tokens.without_timestamps(row["whisper_tokens"]) for row in labelled}
    prompts = {row["name"]: row["whisper_prompt"] for row in labelled}
    assert prompts == {"a": [], "b": text["a"], "c": [], "d": text["c"], "f": [], "g": [], "h": []}
    assert len(text["a"]) > 1
    assert all(token < tokens.end_of_text for prompt in prompts.values() for token in prompt)


def test_there_is_no_prompt_column_without_speakers(labeler):
    assert "whisper_prompt" not in labeler.label(audio_dataset(GOOD[:2])).column_names


def test_capped_labels_are_marked_and_not_closed(processor):
    """Guards T16."""
    labeler = PseudoLabeler(talkative(ending=0.0), processor, language="en")
    row = labeler.label(audio_dataset(GOOD[:1]))[0]
    assert row["whisper_capped"]
    assert len(row["whisper_tokens"]) == 60
    assert labeler.report.capped == 1


def test_a_saved_set_is_complete_without_the_files_it_came_from(labeler, tmp_path):
    for index, recording in enumerate([GOOD[0], GOOD[1], b"noise"]):
        (tmp_path / f"{index}.wav").write_bytes(recording)
    paths = [{"bytes": None, "path": str(tmp_path / f"{index}.wav")} for index in range(3)]
    data = Dataset.from_dict({"audio": paths}).cast_column("audio", Audio(sampling_rate=16_000))
    labelled = labeler.label(data, tmp_path / "labels", num_workers=2)
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    loaded = load_from_disk(tmp_path / "labels")
    assert loaded["whisper_tokens"][:] == labelled["whisper_tokens"][:]
    assert labeler.transcriber(loaded[1]["audio"]["bytes"]).tokens == loaded[1]["whisper_tokens"]
    problem = json.loads((tmp_path / "labels" / "set_aside.jsonl").read_text())
    assert (problem["index"], problem["id"], problem["reason"]) == (2, 2, "unreadable")
    report = json.loads((tmp_path / "labels" / "report.json").read_text())
    assert (report["labelled"], report["set_aside"]) == (2, {"unreadable": 1})
    assert report == json.loads(labeler.report.to_json())


def test_all_splits_of_a_dict_are_labelled(labeler, tmp_path):
    splits = DatasetDict(train=audio_dataset(GOOD[:2]), test=audio_dataset([None, GOOD[2]]))
    labelled = labeler.label(splits, tmp_path)
    assert {split: len(part) for split, part in labelled.items()} == {"train": 2, "test": 1}
    assert [(problem["split"], problem["index"]) for problem in labeler.set_aside] == [("test", 0)]
    assert labeler.report.labelled == 3
    assert set(load_from_disk(tmp_path)) == {"train", "test"}


def test_columns_of_an_earlier_labelling_are_replaced_and_a_known_duration_is_kept(labeler, caplog):
    data = audio_dataset(GOOD[:2], whisper_transcript=["old", "older"], duration_s=[7.0, 8.0])
    labelled = labeler.label(data)
    assert labelled["whisper_transcript"][0] == labeler.transcriber(GOOD[0]).text
    assert labelled["duration_s"][:] == [7.0, 8.0]
    assert "whisper_transcript" in caplog.text


def test_a_second_labelling_starts_a_new_report(labeler):
    labeler.label(audio_dataset([None, GOOD[0]]))
    labeler.label(audio_dataset([GOOD[0]]))
    assert labeler.set_aside == []
    assert (labeler.report.labelled, labeler.report.set_aside) == (1, {})
    assert str(labeler.report).startswith("labelled 1 recordings, 0.00 h")


def test_what_cannot_be_labelled_is_refused(labeler):
    with pytest.raises(TypeError, match="streaming is not supported yet"):
        labeler.label(audio_dataset(GOOD).to_iterable_dataset())
    for wrong in ({"audio_column": "sound"}, {"speaker_column": "who"}, {"id_column": "name"}):
        with pytest.raises(ValueError, match=f"no column '{next(iter(wrong.values()))}'"):
            labeler.label(audio_dataset(GOOD), **wrong)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")
def test_real_recordings_good_and_broken(labeler):
    files = ["speech/LJ001-0002.mp3", "broken/bad.wav", "broken/awful.wav", "speech/austen-0880.wav", "speech/jfk.flac"]
    paths = [{"bytes": None, "path": str(SHARED_DATA / name)} for name in files]
    labelled = labeler.label(Dataset.from_dict({"audio": paths, "id": files}), id_column="id")
    assert labelled["id"][:] == [files[0], files[3]]
    assert [problem["reason"] for problem in labeler.set_aside] == ["unreadable", "bad_rate", "too_long"]

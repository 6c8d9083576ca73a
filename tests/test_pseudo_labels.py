import io
import json
import re

import numpy as np
import pytest
import soundfile
import torch
from conftest import SHARED_DATA, audio_dataset, encoded, tone
from datasets import Audio, Dataset, DatasetDict, load_from_disk
from test_generation import talkative
from transformers import WhisperForConditionalGeneration

from distilwhisper import Packer, StateCache, load_speech
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


def test_batches_side_by_side_have_the_labels_of_one_after_the_other(processor, tmp_path, two_threads):
    model, found = talkative(dropout=0.5), []
    data = audio_dataset([encoded(tone(0.5 + index / 4, 150 + 40 * index)) for index in range(15)])
    model.train()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        labeler = PseudoLabeler(model, processor, language="en", batch_size=2)
        assert labeler.transcriber.decoder.side_by_side == threads
        labelled = labeler.label(data, tmp_path / f"labels {threads}", cache_dir=tmp_path / f"states {threads}")
        found.append(labelled["whisper_tokens"][:])
        assert model.model.decoder.training
    assert found[0] == found[1]
    assert len(StateCache(tmp_path / "states 1")) == len(StateCache(tmp_path / "states 2")) > len(data)


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


@pytest.mark.parametrize("where", ["memory", "directory"])
def test_a_prompt_crosses_neither_a_speaker_nor_a_recording_after_packing(timed_labeler, tmp_path, where):
    clips = [encoded(tone(0.4 + index / 10, 150 + 90 * index)) for index in range(8)]
    people = ["ann", "ann", "ann", "ann", "ann", "bob", "bob", None]
    recordings = ["x", "x", "x", "y", "y", "y", "y", "y"]
    data = audio_dataset(clips, speaker=people, recording=recordings)
    by = ("speaker", "recording")
    packed = Packer(by, max_seconds=1.2, silence_s=0.1).pack(data, tmp_path / "packed")
    assert packed["recording"][:] == ["x", "x", "y", "y", "y", "y", "y"]  # the first two clips share a pack
    folder = tmp_path / "labels" if where == "directory" else None
    labelled = timed_labeler.label(packed, folder, speaker_column=by, shard_rows=3)
    texts = [timed_labeler.transcriber.tokens.without_timestamps(tokens) for tokens in labelled["whisper_tokens"]]
    assert labelled["whisper_prompt"][:] == [[], texts[0], [], texts[2], [], texts[4], []]
    assert min(map(len, texts)) > 1


@pytest.mark.parametrize("where", ["memory", "directory"])
def test_each_row_may_have_its_own_language(labeler, processor, tmp_path, where):
    languages = ["en", "German", None, "klingon", "<|de|>"]
    folder = tmp_path if where == "directory" else None
    labelled = labeler.label(audio_dataset(GOOD, spoken=languages), folder, language_column="spoken")
    assert labelled["whisper_language"][:] == ["en", "de", "en", "de"]  # without one, the labeller's
    assert [(problem["index"], problem["reason"]) for problem in labeler.set_aside] == [(3, "unknown_language")]
    german = PseudoLabeler(talkative(), processor, language="de", batch_size=2).label(audio_dataset(GOOD))
    english = labeler.label(audio_dataset(GOOD))
    expected = [english[0], german[1], english[2], german[4]]
    assert labelled["whisper_tokens"][:] == [row["whisper_tokens"] for row in expected]
    assert german["whisper_tokens"][:] != english["whisper_tokens"][:]


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


def test_progress_tells_rows_the_time_left_hours_of_audio_and_time_by_their_length(labeler, capsys):
    labeler.label(audio_dataset(GOOD))
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    seconds = sum(len(tone(0.5 + index / 4)) for index in range(5)) / 16_000
    shown = re.search(r"5/5 \[\d+:\d+<00:00, .*, ([\d.]+) h of audio, ([\d.]+) x real time\]", last)
    assert shown, last
    assert shown[1] == f"{seconds / 3600:.2f}"
    assert float(shown[2]) <= labeler.report.real_time_factor + 0.001


def test_a_second_labelling_starts_a_new_report(labeler):
    labeler.label(audio_dataset([None, GOOD[0]]))
    labeler.label(audio_dataset([GOOD[0]]))
    assert labeler.set_aside == []
    assert (labeler.report.labelled, labeler.report.set_aside) == (1, {})
    assert str(labeler.report).startswith("labelled 1 recordings, 0.00 h")


def test_what_cannot_be_labelled_is_refused(labeler):
    with pytest.raises(TypeError, match="a list cannot be labelled"):
        labeler.label(GOOD)
    with pytest.raises(ValueError, match="pass output_dir"):
        labeler.label(audio_dataset(GOOD).to_iterable_dataset())
    for wrong in (
        {"audio_column": "sound"},
        {"speaker_column": "who"},
        {"id_column": "name"},
        {"language_column": "tongue"},
    ):
        with pytest.raises(ValueError, match=f"no column '{next(iter(wrong.values()))}'"):
            labeler.label(audio_dataset(GOOD), **wrong)


@pytest.mark.parametrize("kind", ["rows", "stream", "splits"])
def test_into_a_directory_come_the_labels_that_come_in_memory(timed_labeler, tmp_path, kind):
    recordings = [GOOD[0], GOOD[1], GOOD[2], None, GOOD[3], b"noise", GOOD[4]]
    data = audio_dataset(recordings, speaker=["ann"] * 7, name=list("abcdefg"), text=["words", None] * 3 + [""])
    options = {"speaker_column": "speaker", "id_column": "name"}
    expected = timed_labeler.label(data, **options)
    report, problems = timed_labeler.report, timed_labeler.set_aside
    given = {"rows": data, "stream": data.to_iterable_dataset(), "splits": DatasetDict(train=data)}[kind]
    labelled = timed_labeler.label(given, tmp_path, shard_rows=3, **options)
    part = labelled["train"] if kind == "splits" else labelled
    assert part.features == expected.features
    for name in expected.column_names:  # other batches round otherwise
        same = pytest.approx(expected[name][:], rel=1e-4) if "prob" in name else expected[name][:]
        assert part[name][:] == same, name
    split = {"split": "train"} if kind == "splits" else {}
    assert timed_labeler.set_aside == [{**problem, **split} for problem in problems]
    assert [json.loads(line) for line in (tmp_path / "set_aside.jsonl").open()] == timed_labeler.set_aside
    for name in ("labelled", "seconds", "with_reference", "capped", "set_aside"):
        assert getattr(timed_labeler.report, name) == pytest.approx(getattr(report, name)), name


def test_another_teacher_or_language_is_refused_by_name(labeler, processor, tmp_path):
    labeler.label(audio_dataset(GOOD[:1]), tmp_path)
    for other, name in ((talkative(seed=1), "teacher weights"), (talkative(), "language")):
        language = "de" if name == "language" else "en"
        with pytest.raises(ValueError, match=rf"begun with other settings \({name}: "):
            PseudoLabeler(other, processor, language=language, batch_size=2).label(audio_dataset(GOOD[:1]), tmp_path)


@pytest.mark.parametrize(("language", "timestamps"), [("en", False), (None, True)])
def test_ctranslate2_gives_the_labels_of_pytorch(processor, tmp_path, language, timestamps):
    pytest.importorskip("ctranslate2", reason="pip install 'distilwhisper[ctranslate2]'")
    options = {"language": language, "return_timestamps": timestamps, "batch_size": 2, "max_new_tokens": 12}
    expected = PseudoLabeler(talkative(), processor, **options).label(audio_dataset(GOOD))
    labeler = PseudoLabeler(talkative(), processor, engine="ctranslate2", **options)
    labelled = labeler.label(audio_dataset(GOOD), tmp_path)
    for name in set(LABEL_FEATURES) - {"whisper_avg_logprob", "whisper_no_speech_prob"}:
        assert labelled[name][:] == expected[name][:], name
    for name in ("whisper_avg_logprob", "whisper_no_speech_prob"):
        assert labelled[name][:] == pytest.approx(expected[name][:], rel=1e-3)
    assert {*expected["whisper_capped"]} == {True, False} or len(set(map(len, expected["whisper_tokens"]))) > 1
    with pytest.raises(ValueError, match="engine: ctranslate2 then, torch now"):
        PseudoLabeler(talkative(), processor, **options).label(audio_dataset(GOOD), tmp_path)
    with pytest.raises(ValueError, match="states for the training come from PyTorch"):
        labeler.label(audio_dataset(GOOD), cache_dir=tmp_path / "states")


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 30])
def test_ctranslate2_stops_at_the_length_limit_of_pytorch(processor, tokens):
    pytest.importorskip("ctranslate2", reason="pip install 'distilwhisper[ctranslate2]'")
    ours, theirs = [
        PseudoLabeler(talkative(), processor, language="en", max_new_tokens=tokens, engine=engine).label(
            audio_dataset(GOOD)
        )
        for engine in ("torch", "ctranslate2")
    ]
    assert ours["whisper_tokens"][:] == theirs["whisper_tokens"][:]
    assert ours["whisper_capped"][:] == theirs["whisper_capped"][:]


def test_what_ctranslate2_lacks_is_refused_by_name(processor):
    pytest.importorskip("ctranslate2", reason="pip install 'distilwhisper[ctranslate2]'")
    for options, message in (
        ({"engine": "ctranslate"}, "engine must be torch, ctranslate2 or"),
        ({"engine": "ctranslate2:float13"}, "CTranslate2 has no float13 on this cpu, but .*float32"),
        ({"engine": "ctranslate2", "num_beams": 2, "temperature": (0, 0.5)}, "without num_beams, temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            PseudoLabeler(talkative(), processor, language="en", **options)


class Greedy(WhisperForConditionalGeneration):
    """A Whisper whose encoder really asks for more memory than any machine has, for batches above a size."""

    def fits(self, size):
        def ask(module, arguments, options):
            batch = (arguments[0] if arguments else options["input_features"]).shape[0]
            self.sizes.append(batch)
            if batch > size:
                torch.empty(2**60, dtype=torch.uint8)

        self.sizes = []
        self.model.encoder.register_forward_pre_hook(ask, with_kwargs=True)
        return self


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_the_size_remembered(processor, caplog, two_threads):
    torch.set_num_threads(1)  # one batch after the other
    teacher = talkative()
    expected = PseudoLabeler(teacher, processor, language="en", batch_size=1).label(audio_dataset(GOOD * 3))
    teacher.__class__ = Greedy
    labelled = PseudoLabeler(teacher.fits(4), processor, language="en", batch_size=10).label(audio_dataset(GOOD * 3))
    assert labelled["whisper_tokens"][:] == expected["whisper_tokens"][:]
    assert teacher.sizes == [10, 5, 2, 2, 1, 2, 2, 1, 2, 2, 1]
    assert "10 recordings do not fit into memory: going on with 5" in caplog.text


def test_a_token_budget_makes_the_batches_and_the_same_labels(labeler, processor):
    expected = labeler.label(audio_dataset(GOOD * 2))
    teacher = talkative()
    sizes, config = [], teacher.config
    teacher.model.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    budget = 6 * (config.max_source_positions + config.max_target_positions)
    budgeted = PseudoLabeler(teacher, processor, language="en", batch_size=1, token_budget=budget)
    assert budgeted.label(audio_dataset(GOOD * 2))["whisper_tokens"][:] == expected["whisper_tokens"][:]
    assert sum(sizes) == 10
    assert min(sizes[:-1]) >= 6
    assert sizes[0] > 6  # the shortest


def test_a_recording_that_does_not_fit_alone_is_an_error(processor):
    teacher = talkative()
    teacher.__class__ = Greedy
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        PseudoLabeler(teacher.fits(0), processor, language="en").label(audio_dataset(GOOD))


def test_states_are_cached_once_while_shards_are_labelled(timed_labeler, tmp_path):
    data = audio_dataset(GOOD, speaker=["ann"] * 5)
    timed_labeler.label(data, tmp_path / "labels", speaker_column="speaker", shard_rows=2, cache_dir=tmp_path / "a")
    timed_labeler.label(data, speaker_column="speaker", cache_dir=tmp_path / "b")
    again = PseudoLabeler(timed_labeler.transcriber.model, timed_labeler.transcriber.processor, language="en",
                          return_timestamps=True, batch_size=2)  # fmt: skip
    again.label(data, tmp_path / "labels", speaker_column="speaker", shard_rows=2, cache_dir=tmp_path / "a")
    assert len(StateCache(tmp_path / "a")) == len(StateCache(tmp_path / "b"))


def write_odd_files(folder):
    """Every kind of file that a folder of recordings holds in the end; returns what becomes of each."""
    nan = io.BytesIO()
    soundfile.write(nan, np.full(1_600, np.nan), 16_000, format="WAV", subtype="FLOAT")
    flac = encoded(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32), format="FLAC")
    files = {
        "empty.wav": (b"", "unreadable"),
        "cut.flac": (flac[: len(flac) // 2], "unreadable"),
        "nan.wav": (nan.getvalue(), "not_finite"),
        "page.wav": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "unreadable"),
        "one sample.wav": (encoded(tone(1.0)[:1]), None),
        "8 channels.wav": (encoded(np.stack([tone(1.0)] * 8, axis=1)), None),
        "192 kHz.wav": (encoded(tone(1.0, rate=192_000), 192_000), None),
        "new\nline.wav": (GOOD[0], None),
        "\"quotes\" and 'quotes'.wav": (GOOD[1], None),
        "\N{GRINNING FACE} \N{SNOWMAN}.wav": (GOOD[2], None),
        "  spaces .wav": (GOOD[3], None),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    with (folder / "3 hours.wav").open("wb") as file:  # a header and a hole: no room on the disk
        size = 3 * 3_600 * 16_000 * 2
        file.write(encoded(np.zeros(1))[:40] + size.to_bytes(4, "little"))
        file.truncate(44 + size)
    return {name: reason for name, (_, reason) in files.items()} | {"3 hours.wav": "too_long", "gone.wav": "missing"}


def test_a_folder_of_odd_files_is_labelled_or_set_aside_row_by_row(labeler, tmp_path):
    """Guards P10, P11 and P14."""
    folder = tmp_path / "odd"
    folder.mkdir()
    fates = write_odd_files(folder)
    rows = [{"file_name": name, "id": name, **({"text": "words"} if len(name) % 2 else {})} for name in fates]
    rows.append({"file_name": "8 channels.wav", "id": "8 channels.wav"})  # an id for the second time
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = labeler.label(load_speech(folder), tmp_path / "labels", shard_rows=4)
    assert labelled["id"][:] == [row["id"] for row in rows if fates[row["id"]] is None]
    listed = [json.loads(line) for line in (tmp_path / "labels" / "set_aside.jsonl").open(encoding="utf-8")]
    assert {line["id"]: line["reason"] for line in listed} == {name: fate for name, fate in fates.items() if fate}
    assert all(rows[line["index"]]["id"] == line["id"] for line in listed)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")
def test_real_recordings_good_and_broken(labeler):
    files = ["speech/LJ001-0002.mp3", "broken/bad.wav", "broken/awful.wav", "speech/austen-0880.wav", "speech/jfk.flac"]
    paths = [{"bytes": None, "path": str(SHARED_DATA / name)} for name in files]
    labelled = labeler.label(Dataset.from_dict({"audio": paths, "id": files}), id_column="id")
    assert labelled["id"][:] == [files[0], files[3]]
    assert [problem["reason"] for problem in labeler.set_aside] == ["unreadable", "bad_rate", "too_long"]

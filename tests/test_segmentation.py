"""Long recordings cut into windows: every word kept, every second accounted for."""

import io
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import soxr
from conftest import REPOSITORY, SHARED_DATA, TEACHER, audio_dataset, encoded
from datasets import Audio, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_examples import run_script
from test_voice_activity import piano

from distilwhisper import PseudoLabeler, Segmenter, WERFilter, assign_references, load_audio, load_speech, row_files
from distilwhisper.segmentation import CutRule, plan_windows
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus

FRAME_S = 0.032


@st.composite
def activities(draw):
    lengths = draw(st.lists(st.integers(1, 400), max_size=30))
    speech = np.concatenate([np.full(length, number % 2 == 0) for number, length in enumerate(lengths)] or [[]])
    levels = np.random.default_rng(len(speech)).uniform(-60, 0, len(speech)).astype(np.float32)
    lengths_s = st.floats(0, 3)
    rule = st.builds(CutRule, st.floats(1, 30), lengths_s, lengths_s, st.floats(0, 1), st.floats(0, 1))
    return speech.astype(bool), levels, draw(rule)


@given(activities())
@settings(deadline=None)
def test_windows_hold_all_speech_in_order_and_none_is_too_long(activity):
    speech, levels, rule = activity
    windows = plan_windows(speech, levels, rule)
    inside = np.zeros(len(speech), bool)
    for start, end in windows:
        assert 0 < end - start <= rule.max_seconds / FRAME_S
        inside[start:end] = True
    assert (windows[1:, 0] >= windows[:-1, 1]).all()
    # What is outside are bursts shorter than the shortest that are used.
    missed = np.diff(np.flatnonzero(np.diff(np.pad((speech & ~inside).astype(int), 1))))[::2]
    assert (missed < max(rule.min_speech_s / FRAME_S, 1)).all()


@given(
    st.lists(st.tuples(st.floats(0.01, 4), st.sampled_from([0.0, 1e-3, 0.3])), min_size=1, max_size=12),
    st.sampled_from([8_000, 16_000, 22_050]),
)
@settings(deadline=None, max_examples=30)
def test_no_second_of_a_recording_is_lost(stretches, rate):
    rng = np.random.default_rng(0)
    noise = np.concatenate([volume * rng.standard_normal(round(seconds * rate)) for seconds, volume in stretches])
    recording = encoded(np.clip(noise, -1, 1), rate)
    samples = load_audio(recording)
    segmenter = Segmenter(2.0, detector="energy")
    kept = 0
    for offset_s, window in segmenter.cut(recording):
        start = round(offset_s * 16_000)
        np.testing.assert_array_equal(window, samples[start : start + len(window)])
        kept += len(window)
    assert segmenter.report.kept_s == pytest.approx(kept / 16_000)
    assert segmenter.report.total_s == pytest.approx(len(samples) / 16_000)


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    levels = np.full(400, -20.0, np.float32)
    levels[[100, 250]] = -40  # the first is in the first half of what fits
    windows = plan_windows(np.ones(400, bool), levels, CutRule(10.0))
    assert windows.tolist() == [[0, 250], [250, 400]]


@pytest.fixture(scope="module")
def podcast():
    """Twenty sentences with pauses, music between two of them and faint noise; and what was said."""
    pytest.importorskip("espeakng_loader")
    sizes = {"train": 20, "validation": 0, "test": 0, "ood_accents": 0, "ood_noise": 0}
    corpus = synthesize_corpus(CorpusConfig(**sizes, wrong_share=0))["train"]
    rng = np.random.default_rng(0)
    pieces = []
    for number, row in enumerate(corpus):
        pieces += [load_audio(row["audio"]), np.zeros(round(16_000 * rng.uniform(0.5, 1.5)), np.float32)]
        if number == 9:
            pieces += [piano(8), np.zeros(16_000, np.float32)]
    samples = np.concatenate(pieces)
    return samples + 0.0005 * rng.standard_normal(len(samples)).astype(np.float32), " ".join(corpus["text"])


@pytest.fixture(scope="module")
def segmenter():
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    return Segmenter(5.0)


@pytest.fixture(scope="module")
def labelled(podcast, segmenter, tmp_path_factory):
    """The podcast at 44.1 kHz in two channels, beside silence and a broken file, cut and labelled by the teacher."""
    samples, said = podcast
    wide = soxr.resample(np.stack([samples, samples], axis=1), 16_000, 44_100)
    silence = encoded(np.zeros(160_000))
    recordings = [encoded(wide, 44_100, "FLAC"), silence, encoded(samples)[:40]]
    data = audio_dataset(recordings, id=["talk", "silence", "broken"], text=[said, None, None], host=["Ann", "", ""])
    windows = segmenter.segment(data, tmp_path_factory.mktemp("windows"))
    labels = PseudoLabeler(TEACHER, language="en").label(windows, speaker_column="recording_id")
    return windows, labels, segmenter.report.to_dict(), list(segmenter.set_aside)


def test_windows_of_a_podcast_hold_every_word(labelled, podcast):
    windows, labels, _, _ = labelled
    assert len(windows) == len(labels)
    assert WERFilter().wer(podcast[1], " ".join(labels["whisper_transcript"])) < 0.1


def test_windows_know_their_recording_and_their_place(labelled, podcast):
    windows, _, _, _ = labelled
    assert windows.features["audio"] == Audio(16_000, decode=False)
    assert set(windows.column_names) == {"id", "audio", "recording_id", "offset_s", "duration_s", "host"}
    assert (set(windows["recording_id"]), set(windows["host"])) == ({"talk"}, {"Ann"})
    assert len(set(windows["id"])) == len(windows)
    for row in windows:
        start = round(row["offset_s"] * 16_000)
        samples = load_audio(row["audio"])
        assert len(samples) == round(row["duration_s"] * 16_000) <= 80_000
        np.testing.assert_allclose(samples, podcast[0][start : start + len(samples)], atol=0.02)


def test_what_is_left_out_is_counted(labelled, podcast):
    _, _, report, set_aside = labelled
    assert report["total_s"] == pytest.approx(len(podcast[0]) / 16_000 + 10, abs=0.01)
    assert report["left_out_s"]["silence"] > 10
    assert 5 < report["left_out_s"]["no_speech"] < 12  # the music
    assert (report["recordings"], report["set_aside"]) == (2, {"unreadable": 1})
    assert [(row["index"], row["id"], row["reason"]) for row in set_aside] == [(2, "broken", "unreadable")]


def test_prompts_come_from_the_window_before(labelled):
    _, labels, _, _ = labelled
    assert labels[0]["whisper_prompt"] == []
    assert labels["whisper_prompt"][1:] == labels["whisper_tokens"][:-1]


def test_a_whole_transcript_judges_the_windows(labelled, podcast):
    _, labels, _, _ = labelled
    judged = assign_references(labels, {"talk": podcast[1]})
    assert " ".join(judged["text"]).split() == podcast[1].split()
    wer_filter = WERFilter()
    assert len(wer_filter.filter(judged)) >= 0.7 * len(judged)


def test_a_stream_of_recordings_is_cut_as_it_is_read(labelled, podcast, segmenter):
    data = audio_dataset([encoded(podcast[0])], title=["Talk"])
    stream = segmenter.segment(data.to_iterable_dataset())
    first = next(iter(stream))
    assert (first["id"], first["recording_id"], first["title"]) == (
        f"0-{round(1000 * first['offset_s']):08d}",
        "0",
        "Talk",
    )
    assert len(list(stream)) == len(labelled[0])


def test_a_damaged_recording_is_cut_up_to_the_damage(podcast):
    samples = podcast[0].copy()
    samples[600_000] = np.nan
    segmenter = Segmenter(5.0, detector="energy")
    data = Dataset.from_list([{"audio": {"bytes": _float_wav(samples), "path": None}}])
    windows = list(segmenter.segment(data))
    assert windows[-1]["offset_s"] > 20
    (problem,) = segmenter.set_aside
    assert problem["reason"] == "not_finite"
    assert segmenter.report.total_s == pytest.approx(30)
    assert "after 30.0 s" in problem["message"]


def _float_wav(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_a_stopped_run_goes_on_inside_a_recording(podcast, tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "ROWS_PER_FILE", 4)
    monkeypatch.setattr(row_files, "ROWS_PER_GROUP", 2)
    data = audio_dataset([encoded(podcast[0][:300_000]), encoded(podcast[0])])
    segmenter = Segmenter(5.0, detector="energy")
    whole = list(segmenter.segment(data, tmp_path / "whole"))
    report = segmenter.report.to_dict()
    files = sorted((tmp_path / "whole").iterdir())
    assert len(files) > 5
    for kept in (1, 3, len(files) - 1):
        for file in files[kept:]:
            file.unlink()
        files[kept].with_suffix(".draft").write_bytes(b"half written")
        assert list(segmenter.segment(data, tmp_path / "whole")) == whole
        assert segmenter.report.to_dict() == report


def test_broken_files_and_odd_names_end_no_run(tmp_path, segmenter):
    names = ["with space.wav", "quote'\".wav", "emoji \N{SPEAKER}.wav", "line\nbreak.wav"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(np.zeros((5_000, 8)), 192_000))
    for name, content in {"empty.wav": b"", "page.wav": b"<html>", "one.wav": encoded(np.zeros(1))}.items():
        (tmp_path / name).write_bytes(content)
    if (SHARED_DATA / "broken").exists():
        for file in (SHARED_DATA / "broken").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    data = load_speech(tmp_path)
    windows = segmenter.segment(data, tmp_path / "windows")
    assert len(windows) == 0
    assert segmenter.report.recordings + len(segmenter.set_aside) == len(data)
    assert {row["id"] for row in segmenter.set_aside} >= {"empty.wav", "page.wav"}


def test_the_example_cuts_a_folder(podcast, tmp_path):
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "talk.wav").write_bytes(encoded(podcast[0]))
    flags = "--dataset talks --output_dir windows --max_seconds 5 --detector energy".split()
    printed = run_script("segment_recordings.py", *flags, directory=tmp_path)
    windows = load_speech(tmp_path / "windows")
    report = json.loads((tmp_path / "windows.report.json").read_text())
    assert len(windows) == report["windows"] > 15
    assert printed.startswith(f"cut 1 recordings into {len(windows)} windows")


MEASURE = """
import resource, sys
from distilwhisper import Segmenter, load_speech
segmenter = Segmenter()
segmenter.segment(load_speech(sys.argv[1]), sys.argv[1] + "-windows")
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(peak_mib, segmenter.report.total_s, segmenter.report.windows)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_recording(podcast, segmenter, tmp_path):
    talk, measured = soxr.resample(podcast[0], 16_000, 44_100), {}
    for minutes in (6, 60):
        folder = tmp_path / f"{minutes}"
        folder.mkdir()
        with soundfile.SoundFile(folder / "talk.flac", "w", 44_100, 2) as file:
            while file.frames < minutes * 60 * 44_100:
                file.write(np.stack([talk, talk], axis=1))
        command = [sys.executable, "-c", MEASURE, str(folder)]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=550)
        measured[minutes], total_s, windows = [float(number) for number in result.stdout.split()]
        assert total_s >= minutes * 60
        assert windows > minutes
    assert measured[60] < measured[6] + 40, measured


@pytest.mark.slow
def test_three_hours_of_silence_are_counted_in_a_minute(segmenter, tmp_path):
    with soundfile.SoundFile(tmp_path / "silence.flac", "w", 16_000, 1) as file:
        for _ in range(180):
            file.write(np.zeros(60 * 16_000))
    started = time.perf_counter()
    assert list(segmenter.cut(tmp_path / "silence.flac")) == []
    assert time.perf_counter() - started < 120
    assert segmenter.report.left_out_s["silence"] == pytest.approx(3 * 3600)


def test_every_block_of_the_guide_runs(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("silero_vad")
    page = (REPOSITORY / "docs" / "guides" / "long-recordings.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, cwd=tmp_path, timeout=300)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Segmenter(0.5, detector="energy"), ValueError, "max_seconds is the model's window"),
        (lambda: Segmenter(detector="energy", padding_s=-1), ValueError, "padding_s must be 0 or more"),
        (lambda: Segmenter(detector="ears"), ValueError, "not 'ears'"),
        (lambda: Segmenter(detector="energy").segment([]), TypeError, "a list cannot be cut"),
        (
            lambda: Segmenter(detector="energy").segment(audio_dataset([b"", b""], id=["a", "a"])),
            ValueError,
            "2 recordings are named 'a'",
        ),
        (
            lambda: Segmenter(detector="energy").segment(audio_dataset([b""]), id_column="name"),
            ValueError,
            "no column 'name'",
        ),
    ],
)
def test_wrong_input_is_refused_with_a_reason(make, error, message):
    with pytest.raises(error, match=message):
        make()

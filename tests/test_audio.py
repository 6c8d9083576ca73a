import io
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import SHARED_DATA, audio_dataset, encoded, tone
from datasets import Audio, Dataset, DatasetDict

from distilwhisper.audio import AudioError, audio_blocks, audio_duration, encode_audio, load_audio, undecoded

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")


def reason_of(value, **options) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(value, **options)
    return caught.value.reason


class Decoder:
    """Stands for torchcodec's AudioDecoder, which does not load on every machine."""

    metadata = SimpleNamespace(duration_seconds=0.5)

    def get_all_samples(self):
        return SimpleNamespace(data=torch.stack([torch.zeros(8_000), torch.ones(8_000)]), sample_rate=16_000)


@pytest.fixture
def wav(tmp_path) -> Path:
    path = tmp_path / "tone.wav"
    path.write_bytes(encoded(tone(0.5)))
    return path


def test_every_form_of_the_same_recording_gives_the_same_samples(wav):
    samples, file = tone(0.5), wav.read_bytes()
    forms = [
        wav,
        str(wav),
        f"file://{wav}",
        file,
        bytearray(file),
        {"bytes": file, "path": "gone.wav"},
        {"bytes": None, "path": str(wav)},
        {"array": samples, "sampling_rate": 16_000},
        {"array": samples.tolist(), "sampling_rate": 16_000},
        samples,
        samples.astype(np.float64),
        samples.tolist(),
        (samples, 16_000),
        torch.from_numpy(samples),
        (samples * 32_768).round().astype(np.int16),
    ]
    for form in forms:
        audio = load_audio(form)
        assert audio.dtype == np.float32
        np.testing.assert_allclose(audio, samples, atol=1e-4)
        assert audio_duration(form) == 0.5


def test_channels_are_averaged_whichever_axis_they_are_on():
    stereo = np.stack([np.zeros(4_000), np.ones(4_000)])
    for form in (stereo, stereo.T, torch.from_numpy(stereo), encoded(stereo.T), Decoder()):
        np.testing.assert_allclose(load_audio(form), 0.5, atol=1e-4)


def test_a_decoder_says_its_duration():
    assert audio_duration(Decoder()) == 0.5


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled(rate):
    audio = load_audio(encoded(tone(1.0, rate=rate), rate))
    assert len(audio) == 16_000
    np.testing.assert_allclose(audio[800:-800], tone(1.0)[800:-800], atol=2e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
def test_integer_pcm_is_scaled_to_one(dtype):
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max] * 200, dtype=dtype)
    audio = load_audio(ends)
    assert audio.min() == -1
    assert audio.max() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        ({"bytes": None, "path": None}, "missing"),
        ("no/such/file.wav", "missing"),
        ("file:///no/such/file.wav", "missing"),
        (b"", "empty"),
        (b"this is no recording", "unreadable"),
        (encoded(np.zeros(0)), "empty"),
        (encoded(tone(0.1))[:20], "unreadable"),
        (np.array([0.0, np.nan]), "not_finite"),
        (np.array([0.0, np.inf]), "not_finite"),
        (np.array([1e300]), "not_finite"),
        ([], "empty"),
        ((tone(0.1), 0), "bad_rate"),
        ((tone(0.1), float("nan")), "bad_rate"),
        ({"array": tone(0.1), "sampling_rate": "16k"}, "bad_rate"),
        (np.zeros((2, 2, 2)), "bad_type"),
        (np.array(["speech"]), "bad_type"),
        ([[0.0], [0.0, 1.0]], "bad_type"),
        (np.zeros(9, dtype=np.int64), "bad_type"),
        (7, "bad_type"),
    ],
)
def test_bad_recordings_are_refused_with_their_reason(value, reason):
    """Guards P14."""
    assert reason_of(value) == reason


def test_a_clip_of_exactly_the_longest_duration_is_taken_and_one_sample_more_is_not():
    """Guards T15 and P10."""
    for rate in (16_000, 44_100):
        samples = np.zeros(30 * rate + 1, dtype=np.float32)
        for form in (lambda part, rate=rate: (part, rate), lambda part, rate=rate: encoded(part, rate)):
            assert len(load_audio(form(samples[:-1]), max_duration_s=30)) == 480_000
            assert reason_of(form(samples), max_duration_s=30) == "too_long"


def test_an_audio_error_survives_the_way_out_of_a_worker_process():
    error = pickle.loads(pickle.dumps(AudioError("empty", "the recording holds no samples")))
    assert (error.reason, str(error)) == ("empty", "the recording holds no samples")


def test_a_duration_that_cannot_be_told_is_none():
    assert audio_duration(b"this is no recording") is None
    assert audio_duration(None) is None


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_an_undecoded_dataset_are_read_without_a_decoder(streaming):
    data = audio_dataset([encoded(tone(0.1))]).cast_column("audio", Audio(sampling_rate=16_000))
    data = data.to_iterable_dataset() if streaming else data
    row = next(iter(undecoded(data)))
    assert len(load_audio(row["audio"])) == 1_600


def test_undecoded_leaves_what_is_no_audio_feature_and_reaches_into_dicts():
    paths = Dataset.from_dict({"audio": ["a.wav"]})
    assert undecoded(paths) is paths
    splits = undecoded(DatasetDict(train=audio_dataset([b""]).cast_column("audio", Audio())))
    assert splits["train"][0]["audio"] == {"bytes": b"", "path": None}


def test_a_missing_audio_column_is_named():
    with pytest.raises(ValueError, match=r"no column 'audio'; it has \['sound'\]"):
        undecoded(Dataset.from_dict({"sound": ["a.wav"]}))


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "reason"),
    [("bad.wav", "unreadable"), ("evil.wav", "unreadable"), ("awful.wav", "bad_rate"), ("null.wav", "empty")],
)
def test_real_broken_files_are_refused(name, reason):
    assert reason_of(SHARED_DATA / "broken" / name) == reason


@needs_shared_data
def test_real_recordings_are_read_in_every_format():
    speech = SHARED_DATA / "speech"
    audio = {suffix: load_audio(speech / f"LJ001-0002.{suffix}") for suffix in ("wav", "flac", "mp3")}
    np.testing.assert_array_equal(audio["wav"], audio["flac"])
    assert len(audio["mp3"]) == len(audio["wav"])
    assert np.corrcoef(audio["mp3"], audio["wav"])[0, 1] > 0.99
    assert len(load_audio(speech / "jfk.flac")) == 176_000
    assert audio_duration(speech / "jfk.flac") == 11.0


@pytest.mark.parametrize(("value", "reason"), [(None, "missing"), (b"", "empty"), (b"what?", "unreadable")])
def test_a_stream_of_what_is_no_recording_is_refused_as_it_is_read(value, reason):
    with pytest.raises(AudioError) as refused:
        list(audio_blocks(value))
    assert refused.value.reason == reason


def test_encoded_audio_is_read_back_and_clipped():
    samples = np.array([0.0, 0.5, -0.5, 3.0, -3.0], np.float32)
    np.testing.assert_allclose(load_audio(encode_audio(samples)), np.clip(samples, -1, 1), atol=1e-4)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_blocks_are_the_recording_as_it_is_read_at_once(monkeypatch, format):
    monkeypatch.setattr("distilwhisper.audio.BLOCK_S", 0.3)
    stereo = np.stack([tone(2.03, rate=22_050), tone(2.03, 330, rate=22_050)], axis=1)
    file = encoded(stereo, 22_050, format)
    blocks = list(audio_blocks(file))
    assert len(blocks) > 5
    whole = load_audio(file)
    joined = np.concatenate(blocks)
    assert abs(len(joined) - len(whole)) <= 2
    np.testing.assert_allclose(joined[: len(whole) - 2], whole[: len(joined)][: len(whole) - 2], atol=1e-3)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_samples_of_every_width_are_read(subtype):
    file = io.BytesIO()
    soundfile.write(file, tone(0.5), 16_000, format="WAV", subtype=subtype)
    np.testing.assert_allclose(load_audio(file.getvalue()), tone(0.5), atol=0.02)


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus")])
def test_m4a_and_webm_are_read_with_pyav(tmp_path, suffix, codec):
    av = pytest.importorskip("av")
    file = tmp_path / f"clip.{suffix}"
    with av.open(str(file), "w", format="mp4" if suffix == "m4a" else suffix) as container:
        stream = container.add_stream(codec, rate=48_000, layout="stereo")
        samples = np.stack([tone(1.0, rate=48_000)] * 2)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        for part in (frame, None):
            for packet in stream.encode(part):
                container.mux(packet)
    samples = load_audio(file)
    assert len(samples) == pytest.approx(16_000, abs=1_500)
    assert np.sqrt(np.mean(samples[4_000:12_000] ** 2)) == pytest.approx(0.3 / 2**0.5, rel=0.1)
    assert load_audio(file.read_bytes()).shape == samples.shape
    with pytest.raises(AudioError):
        load_audio(file.read_bytes()[:200])


def test_what_soundfile_lacks_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"pip install 'distilwhisper\[av\]'"):
        load_audio(b"\0\0\0\x20ftypM4A ")

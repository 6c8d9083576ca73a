import numpy as np
import pytest
import torch
from conftest import tone
from hypothesis import given, settings
from hypothesis import strategies as st

from distilwhisper.spectrograms import Spectrogram, log_mel


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=5), st.integers(1, 400))
def test_windows_are_the_features_of_the_whole(processor, lengths, step):
    extractor = processor.feature_extractor
    samples = tone(2.5 + sum(lengths) / 16_000, 300) * np.linspace(0.01, 1, 40_000 + sum(lengths), dtype=np.float32)
    blocks = np.split(samples, np.cumsum(lengths))
    spectrogram = Spectrogram(lambda: iter(blocks), extractor)
    whole = extractor(samples, sampling_rate=16_000, truncation=False, padding="longest", return_tensors="pt")
    whole = whole.input_features[0]
    assert spectrogram.frames == whole.shape[1]
    assert spectrogram.duration_s == len(samples) / 16_000
    for start in range(0, spectrogram.frames, step):
        window = spectrogram.window(start, 400)
        part = whole[:, start : start + 400]
        torch.testing.assert_close(window[:, : part.shape[1]], part, atol=1e-3, rtol=0)
        assert not window[:, part.shape[1] :].any()


def test_what_cannot_be_read_says_so_at_once(processor):
    from distilwhisper.audio import AudioError, audio_blocks

    with pytest.raises(AudioError, match="0 bytes"):
        Spectrogram(lambda: audio_blocks(b""), processor.feature_extractor)


@pytest.mark.parametrize("window", [32_000, 480_000])
@pytest.mark.parametrize("lengths", [[1], [159, 160, 161], [1_000, 31_800], [31_999, 0], [32_000], [40_000, 5]])
def test_a_batch_has_the_features_of_the_padded_window(processor, window, lengths):
    extractor, draws = processor.feature_extractor, np.random.default_rng(0)
    recordings = [draws.normal(size=length).astype(np.float32) * 10.0**-place for place, length in enumerate(lengths)]
    settings = {"max_length": window, "padding": "max_length", "return_tensors": "pt"}
    whole = extractor(recordings, sampling_rate=16_000, **settings).input_features
    features = log_mel(extractor, recordings, window)
    torch.testing.assert_close(features, whole, atol=1e-6, rtol=0)


def test_noise_that_the_extractor_adds_is_added_to_the_padding(processor):
    extractor = type(processor.feature_extractor).from_dict({**processor.feature_extractor.to_dict(), "dither": 0.1})
    padding = log_mel(extractor, [tone(0.1)], 32_000)[0, :, 100:]
    assert padding.std(dim=-1).min() > 0

import numpy as np
import pytest
import torch
from conftest import tone
from hypothesis import given, settings
from hypothesis import strategies as st

from distilwhisper.spectrograms import Spectrogram


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

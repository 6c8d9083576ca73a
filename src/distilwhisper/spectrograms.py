"""Log-mel spectrograms: of a batch padded to the window, and of a recording of any length in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilwhisper.audio import Samples

DYNAMIC_RANGE = 8.0
"""What is quieter than the loudest by this much (in powers of ten) is raised to it."""


def log_mel(extractor: Any, recordings: Sequence[Samples], window: int) -> Tensor:
    """Return the features of recordings padded to a window ``[recordings, mels, frames]``.

    The values are those of the extractor for the whole window. It would transform the padding, too; here the silence
    behind the longest recording is a copy of one silent frame, a twentieth of the time for 2 s in a window of 30.

    Args:
        extractor: A ``WhisperFeatureExtractor``.
        recordings: Mono samples at its rate, each ``[samples]``; what goes beyond the window is cut off.
        window: Length of the window, in samples.
    """
    hop, length = extractor.hop_length, window
    if not extractor.dither and not extractor.padding_value:
        # The last frame reaches as far as half a transform on either side, and the other side mirrors this one.
        length = min(window, -(-(max(map(len, recordings)) + extractor.n_fft) // hop) * hop)
    settings = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt", "padding": "max_length"}
    features: Tensor = extractor(list(recordings), max_length=length, **settings).input_features
    silence = features[..., -1:].expand(-1, -1, window // hop - features.shape[-1])
    return torch.cat([features, silence], dim=-1) if silence.shape[-1] else features


class Spectrogram:
    """Whisper's features of a whole recording, window by window.

    The values are those of ``WhisperFeatureExtractor`` for the whole recording at once: the loudest frame of all sets
    the floor. So the recording is read twice: once for its loudest frame and length, once for the windows, which must
    be asked for in order.

    Args:
        open_blocks: Returns the recording's blocks of samples; called twice.
        extractor: A ``WhisperFeatureExtractor``.

    Attributes:
        frames: Length, in frames of 10 ms.
        duration_s: Length, in seconds.

    Raises:
        AudioError: If the recording cannot be read.
    """

    def __init__(self, open_blocks: Callable[[], Iterable[Samples]], extractor: Any) -> None:
        self.extractor = extractor
        self.frames, self._peak, self._samples = 0, -torch.inf, 0
        for block in self._logarithms(self._counted(open_blocks())):
            self.frames += block.shape[1]
            self._peak = max(self._peak, float(block.max()))
        self.duration_s: float = self._samples / extractor.sampling_rate
        self._blocks = self._logarithms(open_blocks())
        self._kept, self._start = torch.zeros(extractor.feature_size, 0), 0

    def window(self, start: int, length: int) -> Tensor:
        """Return the features of a window ``[mels, length]``, zeros beyond the end of the recording.

        Args:
            start: First frame; no less than in the call before.
            length: Frames.
        """
        self._kept, self._start = self._kept[:, start - self._start :], start
        while self._kept.shape[1] < length and (block := next(self._blocks, None)) is not None:
            self._kept = torch.cat([self._kept, block], dim=1)
        loud = self._kept[:, :length].clamp(min=self._peak - DYNAMIC_RANGE)
        return torch.nn.functional.pad((loud + 4) / 4, (0, length - loud.shape[1]))

    def _counted(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self._samples += len(block)
            yield block

    def _logarithms(self, blocks: Iterable[Samples]) -> Iterator[Tensor]:
        """Yield the logarithms of the mel powers ``[mels, frames]``; each frame is centred on its time."""
        width, hop = self.extractor.n_fft, self.extractor.hop_length
        # One frame is held back: Whisper drops the last.
        waiting, begun = np.zeros(0, dtype=np.float32), False
        for block in blocks:
            waiting = np.concatenate([waiting, block])
            if len(waiting) <= 2 * width:
                continue
            if not begun:
                waiting, begun = np.pad(waiting, (width // 2, 0), mode="reflect"), True
            count = (len(waiting) - width) // hop
            yield self._transform(waiting[: (count - 1) * hop + width])
            waiting = waiting[count * hop :]
        padding = (0 if begun else width // 2, width // 2)
        rest = np.pad(waiting, padding, mode="reflect")
        if (count := (len(rest) - width) // hop) > 0:
            yield self._transform(rest[: (count - 1) * hop + width])

    def _transform(self, samples: Samples) -> Tensor:
        extractor = self.extractor
        spectrum = torch.stft(
            torch.from_numpy(np.ascontiguousarray(samples)),
            extractor.n_fft,
            extractor.hop_length,
            window=torch.hann_window(extractor.n_fft),
            center=False,
            return_complex=True,
        )
        filters = torch.from_numpy(np.asarray(extractor.mel_filters, dtype=np.float32))
        return (filters.T @ spectrum.abs() ** 2).clamp(min=1e-10).log10()

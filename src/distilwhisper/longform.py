"""Sequential long form: window after window, each beginning where the last finished segment ended."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

import torch

from distilwhisper.audio import AudioError, audio_blocks
from distilwhisper.decoding import Window, WindowDecoder
from distilwhisper.segments import Span, completed, split_at_timestamps
from distilwhisper.spectrograms import Spectrogram
from distilwhisper.tokens import TIMESTAMP_STEP_S, WhisperTokens

Key = TypeVar("Key", bound=Hashable)

FRAME_S = 0.01
FRAMES_PER_STEP = 2
"""A step of a timestamp is two frames of the spectrogram."""

HOT = 0.5
"""At this temperature and above, a text is too uncertain to condition the next window on."""


class LongRecording:
    """A recording on its way through sequential transcription.

    Args:
        value: Anything `load_audio` reads.
        extractor: A ``WhisperFeatureExtractor``.
        language: Code; None takes what is detected in the first window.

    Attributes:
        windows: What was heard so far.
        ids: Ids of text and timestamps; timestamps count from the start of their window.
        runs: Text between timestamps: start and end in seconds, ids.
        times: Start and end of each token of the text, if the decoder times tokens.

    Raises:
        AudioError: If the recording cannot be read.
    """

    def __init__(self, value: Any, extractor: Any, language: str | None) -> None:
        self.spectrogram: Spectrogram = Spectrogram(lambda: audio_blocks(value, extractor.sampling_rate), extractor)
        self.language, self.seek = language, 0
        self.windows: list[Window] = []
        self.ids: list[int] = []
        self.runs: list[tuple[float, float, list[int]]] = []
        self.times: list[Span] = []
        self._history: list[int] = []

    @property
    def finished(self) -> bool:
        """Whether all of it was heard."""
        return self.seek >= self.spectrogram.frames

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.spectrogram.duration_s

    def left_s(self, window_frames: int) -> float:
        """Return the length of the audio in the next window, in seconds."""
        return min(self.spectrogram.frames - self.seek, window_frames) * FRAME_S

    def prompt(self, tokens: WhisperTokens, length: int) -> list[int]:
        """Return the last ids of what was heard, behind ``<|startofprev|>``; nothing before the first window."""
        return [tokens.start_of_prev, *self._history[-length:]] if self._history else []

    def take(self, window: Window, tokens: WhisperTokens, window_frames: int) -> None:
        """Append what was heard in the next window, and move on to where its last finished segment ends."""
        left, offset_s = min(self.spectrogram.frames - self.seek, window_frames), self.seek * FRAME_S
        ids, step = completed(window.ids, tokens)
        self.language = self.language or window.language
        self.windows.append(window)
        self.ids += ids
        self.runs += split_at_timestamps(ids, tokens, offset_s=offset_s, end_s=offset_s + left * FRAME_S)
        if window.times is not None:
            end_s = left * FRAME_S if step is None else step * TIMESTAMP_STEP_S  # where the next window begins
            spans = window.times[: len(tokens.without_timestamps(ids))]
            self.times += [(offset_s + min(first, end_s), offset_s + min(last, end_s)) for first, last in spans]
        # A pair of timestamps closes a segment and opens the next, which is heard again.
        self._history += ids if step is None else ids[:-1]
        if window.temperature >= HOT:
            self._history = []
        self.seek += left if step is None else step * FRAMES_PER_STEP


def transcribe_sequentially(
    recordings: Iterable[tuple[Key, Any]],
    decoder: WindowDecoder,
    extractor: Any,
    *,
    window_frames: int,
    language: str | None,
    batch_size: int,
    condition_on_prev: bool,
) -> Iterator[tuple[Key, LongRecording | AudioError]]:
    """Transcribe long recordings, several at a time, each at its own pace (Radford et al. 2022, section 4.5).

    Args:
        recordings: Pairs of a name and anything `load_audio` reads.
        decoder: Decodes the windows.
        extractor: A ``WhisperFeatureExtractor``.
        window_frames: Length of a window, in frames of 10 ms.
        language: Code; None detects it in the first window of each recording.
        batch_size: Recordings at a time.
        condition_on_prev: Prompt each window with the text before it.

    Yields:
        Name and recording as soon as it is finished, or its problem.
    """
    waiting, active = iter(recordings), list[tuple[Key, LongRecording]]()
    prompt_length = decoder.model.config.max_target_positions // 2 - 1
    while True:
        while len(active) < batch_size and (following := next(waiting, None)) is not None:
            key, value = following
            try:
                active.append((key, LongRecording(value, extractor, language)))
            except AudioError as error:
                yield key, error
        if not active:
            return
        batch = [recording for _, recording in active]
        features = torch.stack([one.spectrogram.window(one.seek, window_frames) for one in batch])
        windows = decoder.decode(
            decoder.encode(features),
            timestamps=True,
            languages=[one.language for one in batch],
            durations_s=[one.left_s(window_frames) for one in batch],
            prompts=[one.prompt(decoder.tokens, prompt_length) if condition_on_prev else [] for one in batch],
            seeds=[one.seek for one in batch],
        )
        for one, window in zip(batch, windows, strict=True):
            one.take(window, decoder.tokens, window_frames)
        yield from ((key, one) for key, one in active if one.finished)
        active = [(key, one) for key, one in active if not one.finished]

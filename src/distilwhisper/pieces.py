"""Recordings read and cut into what fits into the model's window."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from distilwhisper.audio import AudioError, Samples, audio_blocks, load_audio
from distilwhisper.threads import prefetched

Key = TypeVar("Key", bound=Hashable)
Heard = TypeVar("Heard")

LONG_FORMS = ("chunked", "sequential", None)


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut.

    Attributes:
        sampling_rate: In Hz.
        window_s: What the model hears at once, in seconds.
        long_form: What is done with longer recordings: ``chunked`` cuts them, ``sequential`` leaves them to be read
            when their turn comes, None refuses them.
        chunk_length_s: Length of a chunk; default the window.
        stride_s: What a chunk has on either side beyond its own part; default a sixth of it.
    """

    sampling_rate: int
    window_s: float
    long_form: str | None = "chunked"
    chunk_length_s: float | None = None
    stride_s: float | None = None

    def __post_init__(self) -> None:
        if self.long_form not in LONG_FORMS:
            raise ValueError(f"long_form must be one of {LONG_FORMS}, not {self.long_form!r}")
        chunk_s, stride_s = self.chunk / self.sampling_rate, self.stride / self.sampling_rate
        if not 0 < chunk_s <= self.window_s or not 0 <= 2 * stride_s < chunk_s:
            raise ValueError(
                f"chunk_length_s must be above 0 and at most the window of {self.window_s:g} s, and stride_s less than "
                f"half of it, not {chunk_s:g} and {stride_s:g}"
            )

    @property
    def chunk(self) -> int:
        """Length of a chunk, in samples."""
        return round((self.window_s if self.chunk_length_s is None else self.chunk_length_s) * self.sampling_rate)

    @property
    def stride(self) -> int:
        """Stride, in samples."""
        return round(self.chunk / 6) if self.stride_s is None else round(self.stride_s * self.sampling_rate)


@dataclass(frozen=True)
class LongPiece:
    """A recording that is longer than the window, still to be read."""

    value: Any


@dataclass
class Chunked(Generic[Heard]):
    """A recording whose chunks are on their way.

    Attributes:
        heard: What was heard in each chunk and where that ends, by where it begins, in seconds.
        chunks: How many were cut so far.
        complete: Whether these are all.
    """

    heard: dict[float, tuple[Heard, float]] = field(default_factory=dict)
    chunks: int = 0
    complete: bool = False

    def take(self, piece: Piece, heard: Heard, duration_s: float) -> bool:
        """Keep what was heard in a chunk; return whether it was the last that was missing."""
        self.heard[piece.start_s] = heard, piece.start_s + duration_s
        return self.complete and len(self.heard) == self.chunks


@dataclass(frozen=True)
class Piece:
    """What is heard at once.

    Attributes:
        samples: ``[samples]``.
        start_s: Where it begins, in seconds.
        recording: What it is a chunk of; None for a whole recording.
    """

    samples: Samples
    start_s: float = 0.0
    recording: Chunked[Any] | None = None


def read_pieces(
    recordings: Iterable[tuple[Key, Any]], cutting: Cutting, num_workers: int = 0, *, ahead: int = 16
) -> Iterator[tuple[Key, Piece | LongPiece | AudioError]]:
    """Read recordings, each by its own length: whole, cut into chunks, left for later, or refused.

    Args:
        recordings: Pairs of a name and anything `load_audio` reads.
        cutting: How they are cut.
        num_workers: Threads that read; 0 for none.
        ahead: Recordings that they read ahead.
    """
    for key, value in _read_all(recordings, cutting, num_workers, ahead):
        if not isinstance(value, LongPiece) or cutting.long_form == "sequential":
            yield key, value
            continue
        try:
            blocks = audio_blocks(value.value, cutting.sampling_rate)
            yield from ((key, piece) for piece in cut_chunks(blocks, cutting))
        except AudioError as error:
            yield key, error


def cut_chunks(blocks: Iterable[Samples], cutting: Cutting) -> Iterator[Piece]:
    """Cut a recording into chunks that share twice the stride with their neighbours (paper, section 3.5)."""
    recording, chunk, step = Chunked[Any](), cutting.chunk, cutting.chunk - 2 * cutting.stride
    waiting, start = np.zeros(0, dtype=np.float32), 0
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while len(waiting) > chunk:  # what is just as long may be the last
            recording.chunks += 1
            yield Piece(waiting[:chunk].copy(), start / cutting.sampling_rate, recording)
            waiting, start = waiting[step:], start + step
    recording.chunks, recording.complete = recording.chunks + 1, True
    yield Piece(waiting, start / cutting.sampling_rate, recording)


def _read_all(
    recordings: Iterable[tuple[Key, Any]], cutting: Cutting, num_workers: int, ahead: int
) -> Iterator[tuple[Key, Piece | LongPiece | AudioError]]:
    def read(recording: tuple[Key, Any]) -> tuple[Key, Piece | LongPiece | AudioError]:
        key, value = recording
        try:
            return key, Piece(load_audio(value, cutting.sampling_rate, max_duration_s=cutting.window_s))
        except AudioError as error:
            return key, LongPiece(value) if error.reason == "too_long" and cutting.long_form is not None else error

    yield from prefetched(read, recordings, num_workers, ahead=ahead)  # no more: memory is to stay constant

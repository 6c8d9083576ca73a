"""Batches of recordings: of like length, halved where memory does not suffice."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Lock
from typing import Any, Generic, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from distilwhisper.audio import audio_duration

logger = logging.getLogger(__name__)

PREFIX_TOKENS = 5
"""Start, language, task, no timestamps, and the end."""

OutputT = TypeVar("OutputT")
KeyT = TypeVar("KeyT")


@dataclass(frozen=True)
class Batch(Generic[KeyT]):
    """Recordings that are ready for a model.

    Attributes:
        keys: Their names.
        durations_s: Their lengths, in seconds.
        features: Their log-mel features, ``[batch, mels, frames]``.
    """

    keys: list[KeyT]
    durations_s: list[float]
    features: Tensor

    def split(self, size: int) -> list[Batch[KeyT]]:
        """Return the batch in pieces of at most so many recordings."""
        parts = [slice(start, start + size) for start in range(0, len(self.keys), size)]
        return [Batch(self.keys[part], self.durations_s[part], self.features[part]) for part in parts]


class Halving:
    """Runs batches, in halves or less where memory does not suffice; what fitted is remembered.

    Threads may share one and run batches beside each other. As soon as one did not fit, each has the memory to itself.
    """

    def __init__(self) -> None:
        self._fitting: int | None = None
        self._beside, self._ended, self._alone = 0, Condition(), Lock()

    def __call__(self, run: Callable[[Batch[KeyT]], list[OutputT]], batch: Batch[KeyT]) -> list[OutputT]:
        """Return what ``run`` returns for all pieces of a batch; nothing is run for a batch of nothing.

        Raises:
            RuntimeError: If memory does not suffice for one recording; or whatever else ``run`` raises.
        """
        if not batch.keys:
            return []
        if self._fitting is None:
            with self._count_beside():
                outputs = self._attempt(run, batch, alone=False)
            if outputs is not None:
                return outputs
        with self._alone:
            with self._ended:
                self._ended.wait_for(lambda: not self._beside)
            return self._in_pieces(run, batch)

    @contextmanager
    def _count_beside(self) -> Iterator[None]:
        with self._ended:
            self._beside += 1
        try:
            yield
        finally:
            with self._ended:
                self._beside -= 1
                self._ended.notify_all()

    def _in_pieces(self, run: Callable[[Batch[KeyT]], list[OutputT]], batch: Batch[KeyT]) -> list[OutputT]:
        pieces = deque([batch])
        outputs: list[OutputT] = []
        while pieces:
            pieces = deque(part for each in pieces for part in each.split(self._fitting or len(each.keys)))
            made = self._attempt(run, pieces[0], alone=True)
            if made is not None:
                outputs += made
                pieces.popleft()
        return outputs

    def _attempt(
        self, run: Callable[[Batch[KeyT]], list[OutputT]], piece: Batch[KeyT], *, alone: bool
    ) -> list[OutputT] | None:
        """Return what ``run`` returns; None if that did not fit, and smaller pieces, or this one alone, may."""
        try:
            return run(piece)
        except (RuntimeError, MemoryError) as error:
            if (alone and len(piece.keys) == 1) or not _is_out_of_memory(error):
                raise
        # Out here the error is gone, and with it the tensors that its frames held.
        clear_device_cache(garbage_collection=True)
        self._fitting = max(1, min(len(piece.keys) // 2, self._fitting or len(piece.keys)))
        logger.warning("%d recordings do not fit into memory: going on with %d", len(piece.keys), self._fitting)
        return None


def _is_out_of_memory(error: Exception) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)
    return known or "out of memory" in str(error)  # CTranslate2 has no error of its own for it


@dataclass(frozen=True)
class TokenBudget:
    """How many recordings share a batch: as many as the decoder's keys and values have room for.

    A row holds those of the encoder's whole window, however short the recording is, and those of its text.

    Attributes:
        positions: Room of a batch, in positions of a layer: ``batch * (window + text)``.
        window: Positions of the encoder's output: 1,500 in the published models.
        text: Most positions of the decoder's: 448 there.
        tokens_per_s: Tokens that a second of speech may take; a batch that does not fit after all is halved.
    """

    positions: int
    window: int
    text: int
    tokens_per_s: float = 10.0

    def __post_init__(self) -> None:
        if self.positions < self.window + self.text:
            row = f"{self.window + self.text:,} ({self.window:,} of the window, {self.text} of its text)"
            raise ValueError(f"token_budget must have room for one recording, {row}, not {self.positions:,}")

    def of_row(self, duration_s: float | None) -> int:
        """Return the positions of a recording; of one whose length is unknown, the most."""
        tokens = self.text if duration_s is None else PREFIX_TOKENS + math.ceil(self.tokens_per_s * duration_s)
        return self.window + min(self.text, tokens)


def plan_batches(
    durations_s: Sequence[float | None], batch_size: int, budget: TokenBudget | None = None
) -> list[list[int]]:
    """Return the places of recordings in batches of like length, so that few wait for the longest of their batch.

    The batches follow from the durations alone: the same recordings make the same batches again.

    Args:
        durations_s: Lengths as the headers state them, None where they do not.
        batch_size: Recordings in a batch.
        budget: What bounds a batch instead.
    """
    order = sorted(range(len(durations_s)), key=lambda place: durations_s[place] or 0.0)
    if budget is None:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches: list[list[int]] = []
    longest = 0
    for place in order:
        row = budget.of_row(durations_s[place])
        if batches and (len(batches[-1]) + 1) * max(longest, row) <= budget.positions:
            batches[-1].append(place)
            longest = max(longest, row)
        else:
            batches.append([place])
            longest = row
    return batches


def stated_duration(value: Any, sampling_rate: int) -> float | None:
    """Return what the header of a recording says of its length, in seconds; None for a URL, which is not fetched."""
    source = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
    return None if isinstance(source, str) and "://" in source else audio_duration(value, sampling_rate)

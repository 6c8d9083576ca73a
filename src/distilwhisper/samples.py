"""Data sets as the trainer reads them: rows that know their epoch, in an order that is a function of seed and epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from distilwhisper.audio import undecoded
from distilwhisper.collator import DataCollatorForDistillation, Sample, UnusableLabelError

logger = logging.getLogger(__name__)

DURATION_COLUMNS = ("duration_s", "duration")
GROUPED_BATCHES = 50
"""Batches whose samples are sorted by length together."""


class _Epoch:
    """The current epoch, in shared memory: persistent data loader workers see it change."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64).share_memory_()

    def get(self) -> int:
        return int(self._value)

    def set(self, epoch: int) -> None:
        self._value.fill_(epoch)


class MapSamples(Dataset[Sample]):
    """Rows of a map-style data set as ``Sample`` objects.

    Args:
        dataset: A ``datasets.Dataset`` or any sequence of rows.
        audio_column: Column of the recordings, left undecoded here: the collator reads it.
        evaluation: Whether the samples are for evaluation.
        rows: Positions of the rows to use; default: all.
    """

    def __init__(
        self, dataset: Any, audio_column: str, *, evaluation: bool = False, rows: Sequence[int] | None = None
    ) -> None:
        self.dataset = undecoded(dataset, audio_column) if hasattr(dataset, "features") else dataset
        self.rows = np.arange(len(dataset)) if rows is None else np.asarray(rows)
        self.evaluation = evaluation
        self.epoch = _Epoch()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch: a ``datasets.Dataset`` reads rows together in half the time or less."""
        indices, epoch = [int(self.rows[position]) for position in positions], self.epoch.get()
        if isinstance(self.dataset, datasets.Dataset):
            columns = self.dataset[indices]
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        else:
            rows = [self.dataset[index] for index in indices]
        return [Sample(row, index, epoch, self.evaluation) for row, index in zip(rows, indices, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the samples carry."""
        self.epoch.set(epoch)


class StreamedSamples(IterableDataset[Sample]):
    """Rows of a streaming data set as ``Sample`` objects; rows without a usable label are skipped and counted.

    Random draws of rows without an ``id`` depend on the number of workers, which number the rows.

    Args:
        dataset: A ``datasets.IterableDataset`` or any iterable of rows.
        collator: Says which labels are usable.
        evaluation: Whether the samples are for evaluation.
    """

    def __init__(self, dataset: Any, collator: DataCollatorForDistillation, *, evaluation: bool = False) -> None:
        self.dataset = undecoded(dataset, collator.audio_column) if hasattr(dataset, "features") else dataset
        self.collator = collator
        self.evaluation = evaluation
        self.epoch = _Epoch()

    def __iter__(self) -> Iterator[Sample]:
        skipped = 0
        for index, row in self._numbered_rows():
            sample = Sample(row, index, self.epoch.get(), self.evaluation)
            if self.evaluation or _problem(sample, self.collator) is None:
                yield sample
            else:
                skipped += 1
        if skipped:
            logger.warning("%d streamed samples had no usable label and were skipped", skipped)

    def _numbered_rows(self) -> Iterator[tuple[int, Any]]:
        worker = torch.utils.data.get_worker_info()
        ours, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index, row in enumerate(self.dataset):
            if hasattr(self.dataset, "n_shards"):  # it deals its shards out to the workers itself
                yield index * workers + ours, row
            elif index % workers == ours:
                yield index, row

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the samples carry, and reshuffle a data set that shuffles."""
        self.epoch.set(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class EpochSampler(Sampler[int]):
    """A shuffle that is a function of (seed, epoch), and that tells the samples their epoch.

    Accelerate calls a sampler's ``set_epoch`` with one process and with many, but the data set's only with one.

    Args:
        samples: What is sampled from.
        seed: Seed of the shuffle.
        lengths: Lengths of the labels, in any unit, to have labels of like length share a batch: less padding.
        batch_size: Samples that are together then: those of a micro-batch on all processes.
    """

    def __init__(
        self, samples: MapSamples, seed: int, *, lengths: Sequence[int] | None = None, batch_size: int = 1
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.batch_size = batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.samples))
        if self.lengths is not None:
            order = _group(order, self.lengths, self.batch_size, generator)
        return iter(order.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch
        self.samples.set_epoch(epoch)


def _group(
    order: npt.NDArray[Any], lengths: npt.NDArray[Any], batch_size: int, generator: np.random.Generator
) -> npt.NDArray[Any]:
    # Sorted within blocks of a shuffle, so that a batch has other company each epoch; then the batches are shuffled.
    block = GROUPED_BATCHES * batch_size
    blocks = [order[start : start + block] for start in range(0, len(order), block)]
    order = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in blocks])
    whole = len(order) // batch_size * batch_size
    batches = generator.permutation(order[:whole].reshape(-1, batch_size))
    return np.concatenate([batches.ravel(), order[whole:]])  # a batch that is not full comes last


def label_lengths(samples: MapSamples, collator: DataCollatorForDistillation) -> list[int]:
    """Return how long the labels are: in tokens where the data set has them, in bytes elsewhere. No audio is read."""
    dataset, columns = samples.dataset, getattr(samples.dataset, "column_names", None)
    wanted = ["whisper_tokens", collator.transcript_column, collator.text_column]
    if columns is not None:
        wanted = [column for column in wanted if column in columns][:1]
        dataset = dataset.select_columns(wanted)

    def length(row: Any) -> int:
        label = next((row[name] for name in wanted if row.get(name) is not None), "")
        return len(label.encode() if isinstance(label, str) else label)

    return [length(dataset[int(index)]) for index in samples.rows]


def usable_rows(dataset: Any, collator: DataCollatorForDistillation) -> list[int]:
    """Return the positions of the rows whose label can be trained on; what is left out is counted in the log by reason.

    Only label columns are read, never audio. A row is left out if it has no label, if its label does not fit into the
    decoder, or if a column says that its recording does not fit into the encoder's window.

    Raises:
        ValueError: If no row can be used.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        wanted = {"id", "whisper_tokens", "whisper_capped", "whisper_language", "whisper_task", *DURATION_COLUMNS}
        wanted |= {collator.transcript_column, collator.text_column}
        dataset = dataset.select_columns([column for column in columns if column in wanted])
    reasons: dict[str, int] = {}
    rows = []
    for index in range(len(dataset)):
        reason = _problem(Sample(dataset[index], index), collator)
        if reason is None:
            rows.append(index)
        else:
            reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        logger.warning(
            "%d of %d samples are left out of the training: %s", len(dataset) - len(rows), len(dataset), reasons
        )
    if not rows:
        raise ValueError(
            f"none of the {len(dataset)} training samples can be used: {reasons or 'the data set is empty'}"
        )
    return rows


def _problem(sample: Sample, collator: DataCollatorForDistillation) -> str | None:
    duration = next((sample.row[name] for name in DURATION_COLUMNS if sample.row.get(name) is not None), 0)
    if duration > collator.window_s:
        return "recording too long"
    try:
        collator.check_label(sample)
    except UnusableLabelError as error:
        return error.reason
    return None

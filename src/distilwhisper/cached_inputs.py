"""Training from a state cache: what the collator reads instead of recordings, and when that is right and worth it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilwhisper.arguments import DistillationTrainingArguments
from distilwhisper.audio import audio_digest
from distilwhisper.cache import CacheKey, StateCache, StateCacheError
from distilwhisper.collator import DataCollatorForDistillation, Sample
from distilwhisper.generation import encode

logger = logging.getLogger(__name__)


class CachedInputs:
    """What a collator puts into training batches instead of features: states from a cache.

    Args:
        cache: The cache.
        audio_column: Column of the recordings.
        teacher: Whether the teacher's states are wanted too.
    """

    def __init__(self, cache: StateCache, audio_column: str, *, teacher: bool = True) -> None:
        self.cache, self.audio_column, self.teacher = cache, audio_column, teacher

    def __call__(
        self, samples: Sequence[Sample], sequences: Sequence[tuple[list[int], int]], length: int
    ) -> dict[str, Tensor]:
        """Return ``encoder_states`` ``[batch, frames, d]`` and ``teacher_hidden`` ``[batch, tokens, d]``.

        Args:
            samples: The samples.
            sequences: Their token ids, and how many of these are the prompt's.
            length: Width of the batch's label rows.

        Raises:
            StateCacheError: If states of a sample are missing.
        """
        rate = self.cache.key.features["sampling_rate"]
        audio = [audio_digest(sample.row[self.audio_column], rate) for sample in samples]
        keyed = list(zip(audio, samples, sequences, strict=True))
        encoder = [self.cache.read_encoder(digest, sample.key) for digest, sample, _ in keyed]
        batch = {"encoder_states": torch.stack(encoder)}
        if self.teacher:
            hidden = torch.zeros(len(samples), length, self.cache.key.width, dtype=self.cache.dtype)
            for row, (digest, sample, (ids, prompt)) in zip(hidden, keyed, strict=True):
                row[prompt : len(ids) - 1] = self.cache.read_teacher(digest, ids[:-1], sample.key)
            batch["teacher_hidden"] = hidden
        return batch


def use_state_cache(
    args: DistillationTrainingArguments,
    student: Any,
    teacher: Any | None,
    collator: Any,
    samples: Iterable[Sample] | None,
) -> bool:
    """Have a collator read from ``args.state_cache``, if that is wanted, and return whether it does.

    Args:
        args: Of the training.
        student: The student, on its device.
        teacher: The teacher; None if no term needs it.
        collator: The ``DataCollatorForDistillation`` of the training.
        samples: The training samples, of which ``state_cache_mode="auto"`` measures some; None if nothing is trained.

    Raises:
        StateCacheError: If the training needs what a cache does not have, or the cache is another's.
    """
    if args.state_cache is None or samples is None:  # no cache, or no training
        return False
    inputs = inputs_from_cache(args.state_cache, student, teacher, collator, mse_weight=args.mse_weight)
    if args.state_cache_mode == "auto":
        some = islice(samples, 2 * args.per_device_train_batch_size)
        if not cache_pays(inputs, student, collator, some):
            return False
    collator.cached_inputs = inputs
    return True


def inputs_from_cache(
    cache_dir: str | Path, student: Any, teacher: Any | None, collator: Any, *, mse_weight: float = 0.0
) -> CachedInputs:
    """Return what makes a collator read from a cache, for a training whose every step it can stand in for.

    Args:
        cache_dir: Directory of the cache.
        student: The student; its encoder frozen and the teacher's.
        teacher: The teacher; None if no term needs it.
        collator: The ``DataCollatorForDistillation`` of the training.
        mse_weight: Weight of the term that a cache cannot serve.

    Raises:
        StateCacheError: If the training needs what a cache does not have, or the cache is another's.
    """
    problems = {
        "the encoder is trained, so its output changes: set freeze_encoder=True": any(
            parameter.requires_grad for parameter in student.model.encoder.parameters()
        ),
        "apply_spec_augment masks the features anew each time: set it to False in the student's config": getattr(
            student.config, "apply_spec_augment", False
        ),
        "the MSE term needs hidden states of several layers, the cache has the last ones: set mse_weight=0": mse_weight,
        "only a DataCollatorForDistillation reads from a cache": not isinstance(collator, DataCollatorForDistillation),
    }
    if found := [problem for problem, there in problems.items() if there]:
        raise StateCacheError(f"this training cannot use the states in {cache_dir}: {'; '.join(found)}")
    cache = StateCache(cache_dir)
    extractor = collator.processor.feature_extractor
    expected = CacheKey.of(
        student.model.encoder, teacher, extractor, dtype=cache.dtype, encoder_dtype=cache.key.encoder_dtype
    )
    cache.key.check(expected, cache_dir)
    logger.info("encoder and teacher states come from %s (%s, %s)", cache_dir, cache.key.dtype, cache.key.encoder_dtype)
    return CachedInputs(cache, collator.audio_column, teacher=teacher is not None)


def cache_pays(
    inputs: CachedInputs, student: Any, collator: DataCollatorForDistillation, samples: Iterable[Sample]
) -> bool:
    """Measure whether states are read faster than the encoder computes them, and log the verdict.

    Args:
        inputs: The cache.
        student: The student, where it is trained.
        collator: The collator of the training.
        samples: Some training samples; a batch or two suffice.
    """
    samples = list(samples)
    sequences = [collator.sequence(sample) for sample in samples]
    inputs.cache.forget_pages()
    started = time.perf_counter()
    states = inputs(samples, sequences, max(len(ids) for ids, _ in sequences) - 1)["encoder_states"]
    read_s = (time.perf_counter() - started) / len(samples)
    encoder = student.model.encoder
    features = torch.zeros(len(samples), encoder.num_mel_bins, 2 * states.shape[1])
    encode(student, features[:1])  # the first call chooses kernels
    started = time.perf_counter()
    encode(student, features).sum().item()  # the host waits for a number, whatever the device
    encoder_s = (time.perf_counter() - started) / len(samples)
    logger.info(
        "a sample takes %.1f ms to read from the cache and %.1f ms to encode: the cache %s",
        1e3 * read_s, 1e3 * encoder_s, "is used" if read_s < encoder_s else "does not pay and is not used",
    )  # fmt: skip
    return read_s < encoder_s

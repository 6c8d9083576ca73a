"""Training from a state cache: what the collator reads instead of recordings, and when that is right and worth it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distilwhisper.arguments import DistillationTrainingArguments
from distilwhisper.audio import AudioError, audio_digest
from distilwhisper.cache import CacheKey, StateCache, StateCacheError
from distilwhisper.collator import DataCollatorForDistillation, Sample
from distilwhisper.generation import encode
from distilwhisper.top_k import unpack_top_k

logger = logging.getLogger(__name__)


class CachedRecording(NamedTuple):
    """A recording that a cache knows: name of the sample, digest, and the encoder's output."""

    sample: str
    audio: bytes
    states: Tensor


class CachedInputs:
    """What a collator puts into training batches instead of features: states from a cache.

    Args:
        cache: The cache.
        audio_column: Column of the recordings.
        teacher: Whether the teacher's states are wanted too.
    """

    def __init__(self, cache: StateCache, audio_column: str, *, teacher: bool = True) -> None:
        self.cache, self.audio_column, self.teacher = cache, audio_column, teacher

    def load(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[CachedRecording]]:
        """Return samples with what the cache has of their recordings; unusable ones are left out and named in the log.

        Raises:
            StateCacheError: If a sample was never cached.
            ValueError: If none can be used.
        """
        usable, recordings = [], []
        for sample in samples:
            try:
                audio = audio_digest(sample.row[self.audio_column], self.cache.key.features["sampling_rate"])
                states = self.cache.read_encoder(audio, sample.key)
            except AudioError as error:
                logger.warning("sample %r: %s; it is left out", sample.key, error)
                continue
            usable.append(sample)
            recordings.append(CachedRecording(sample.key, audio, states))
        if not usable:
            raise ValueError("no recording of the batch can be used; the log says why")
        return usable, recordings

    def states(
        self, loaded: Sequence[CachedRecording], sequences: Sequence[tuple[list[int], int]], length: int
    ) -> dict[str, Tensor]:
        """Return ``encoder_states`` ``[batch, frames, d]`` and ``teacher_hidden`` ``[batch, tokens, d]``.

        Of a cache of top-k distributions, in place of the latter ``teacher_ids`` ``[batch, tokens, k]`` and
        ``teacher_log_probs`` ``[batch, tokens, k + 1]``.

        Args:
            loaded: What `load` returned.
            sequences: Token ids of the samples, and how many of these are the prompt's.
            length: Width of the batch's label rows.

        Raises:
            StateCacheError: If the cache has none of the teacher's states for a sequence.
        """
        batch = {"encoder_states": torch.stack([recording.states for recording in loaded])}
        if self.teacher:
            spans, states = [], []
            for row, (recording, (ids, prompt)) in enumerate(zip(loaded, sequences, strict=True)):
                spans.append((row, slice(prompt, len(ids) - 1)))
                states.append(self.cache.read_teacher(recording.audio, ids[:-1], recording.sample))
            if self.cache.key.top_k:
                top = [unpack_top_k(packed) for packed in states]
                batch["teacher_ids"] = _spread(spans, [ids for ids, _ in top], length)
                batch["teacher_log_probs"] = _spread(spans, [log_probs for _, log_probs in top], length)
            else:
                batch["teacher_hidden"] = _spread(spans, states, length)
        return batch


def _spread(spans: Sequence[tuple[int, slice]], parts: Sequence[Tensor], length: int) -> Tensor:
    """Return ``[batch, length, ...]`` with the parts in their places and zeros elsewhere."""
    spread = parts[0].new_zeros(len(parts), length, parts[0].shape[-1])
    for span, part in zip(spans, parts, strict=True):
        spread[span] = part
    return spread


def use_state_cache(
    args: DistillationTrainingArguments,
    student: Any,
    teacher: Any | None,
    collator: Any,
    samples: Iterable[Sample] | None,
) -> bool:
    """Have a collator read from ``args.state_cache``, if that is wanted, and return whether it does.

    In float32 the loss is that of online training to 1e-5: only the batches differ that states were computed in. States
    kept in bfloat16 or int8 are rounded: that changed the KL of a small trained teacher by 0.1 % and 0.02 %.

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
    inputs = inputs_from_cache(
        args.state_cache,
        student,
        teacher,
        collator,
        mse_weight=args.mse_weight,
        temperature=args.temperature,
        divergence=args.divergence,
    )
    some = islice(samples, 2 * args.per_device_train_batch_size)
    if args.state_cache_mode == "auto" and not cache_pays(inputs, student, some):
        return False
    collator.cached_inputs = inputs
    return True


def inputs_from_cache(
    cache_dir: str | Path,
    student: Any,
    teacher: Any | None,
    collator: Any,
    *,
    mse_weight: float = 0.0,
    temperature: float = 2.0,
    divergence: str = "forward_kl",
) -> CachedInputs:
    """Return what makes a collator read from a cache, for a training whose every step it can stand in for.

    Args:
        cache_dir: Directory of the cache.
        student: The student; its encoder frozen and the teacher's.
        teacher: The teacher; None if no term needs it.
        collator: The ``DataCollatorForDistillation`` of the training.
        mse_weight: Weight of the term that a cache cannot serve.
        temperature: Of the training; one of top-k distributions serves its own alone.
        divergence: Of the training; top-k distributions serve ``forward_kl`` alone.

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
    key = cache.key
    if key.top_k and teacher is not None and divergence != "forward_kl":
        raise StateCacheError(
            f"{cache_dir} has the {key.top_k} likeliest tokens of the teacher, which serve divergence='forward_kl' "
            f"alone, not {divergence!r}: make a cache of its hidden states (top_k=0)"
        )
    expected = CacheKey.of(
        student.model.encoder,
        teacher,
        collator.processor.feature_extractor,
        dtype=cache.dtype,
        encoder_dtype=key.encoder_dtype,
        top_k=key.top_k,
        temperature=key.temperature if teacher is None else temperature,
    )
    key.check(expected, cache_dir)
    logger.info("encoder and teacher states come from %s (%s, %s)", cache_dir, key.dtype, key.encoder_dtype)
    return CachedInputs(cache, collator.audio_column, teacher=teacher is not None)


def cache_pays(inputs: CachedInputs, student: Any, samples: Iterable[Sample]) -> bool:
    """Measure whether the encoder's output is read faster than computed, and log the verdict.

    Args:
        inputs: The cache.
        student: The student, where it is trained.
        samples: Some training samples; a batch or two suffice.
    """
    samples = list(samples)
    inputs.cache.forget_pages()
    started = time.perf_counter()
    states = torch.stack([recording.states for recording in inputs.load(samples)[1]])
    read_s = (time.perf_counter() - started) / len(states)
    features = torch.zeros(len(states), student.config.num_mel_bins, 2 * states.shape[1])
    encode(student, features[:1])  # the first call chooses kernels
    started = time.perf_counter()
    encode(student, features).sum().item()  # the host waits for a number, whatever the device
    encoder_s = (time.perf_counter() - started) / len(states)
    pays = read_s < encoder_s
    verdict = "is used" if pays else "does not pay and is not used"
    logger.info(
        "a sample takes %.1f ms to read and %.1f ms to encode: the cache %s", 1e3 * read_s, 1e3 * encoder_s, verdict
    )
    return pays

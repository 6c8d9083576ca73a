"""Filling a state cache, in a pass of its own or while labelling."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.utils import tqdm
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import AudioError, Samples, audio_digest, load_audio, undecoded
from distilwhisper.cache import CacheKey, StateCache, encoder_key, read_back, teacher_key
from distilwhisper.collator import DataCollatorForDistillation, Sample, UnusableLabelError
from distilwhisper.generation import decode, encode
from distilwhisper.shards import Record
from distilwhisper.tables import Shown
from distilwhisper.threads import reading_threads
from distilwhisper.top_k import find_top_k, pack_top_k
from distilwhisper.transcription import Transcriber

logger = logging.getLogger(__name__)


@dataclass
class CacheReport(Shown):
    """What was added to a cache; ``print(report)`` says it in words.

    Attributes:
        samples: Samples whose states are all there now.
        encoder_states: Recordings whose encoder output was written.
        teacher_states: Label sequences whose teacher states were written.
        nbytes: Bytes written.
        encoder_error: Root mean square of what storing as int8 changed in the encoder's output, relative to that of
            the output; 0 without int8.
        residual_mean: Mean probability beyond the tokens that were kept of the teacher's distributions, at their
            temperature; 0 where its hidden states were kept.
        residual_p95: What 95 % of these probabilities stay below.
        left_out: Samples that cannot be used, by reason.
        elapsed_s: Time taken.
    """

    samples: int = 0
    encoder_states: int = 0
    teacher_states: int = 0
    nbytes: int = 0
    encoder_error: float = 0.0
    residual_mean: float = 0.0
    residual_p95: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    def to_json(self) -> str:
        """Return everything as a JSON document."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        lines = [
            f"{self.samples:,} samples are cached, {self.encoder_states:,} encoder outputs and {self.teacher_states:,} "
            f"sequences of teacher states of them new: {self.nbytes / 1e6:,.1f} MB in {self.elapsed_s:,.0f} s"
        ]
        if self.encoder_error:
            lines.append(f"int8 changed the encoder's output by {self.encoder_error:.2%} (relative root mean square)")
        if self.residual_mean:
            lines.append(
                f"beyond the tokens kept lies {self.residual_mean:.2%} in the mean of the teacher's distributions, "
                f"in 95 % of them less than {self.residual_p95:.2%}"
            )
        return "\n".join([*lines, *(f"left out {count:,}: {reason}" for reason, count in self.left_out.most_common())])


def cache_states(
    model: WhisperForConditionalGeneration | str | Path,
    processor: WhisperProcessor | None,
    dataset: Any,
    cache_dir: str | Path,
    *,
    collator: DataCollatorForDistillation | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    encoder_dtype: str = "model",
    top_k: int = 0,
    temperature: float = 2.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **collator_settings: Any,
) -> CacheReport:
    """Run a teacher over labelled data and keep its encoder's output and its last hidden states for the training.

    What is there already is not computed again: a pass that was killed goes on where it stopped, and new samples,
    labels or settings add to the cache. All that the collator may draw for a sample is cached: with and without
    timestamps, with and without a prompt.

    Args:
        model: The teacher, or the path or Hub id of one.
        processor: Its processor; None to load it from where the teacher came from.
        dataset: Labelled rows, as the trainer gets them: a ``Dataset``, a stream, or any sequence of rows.
        cache_dir: Directory of the cache; made if need be.
        collator: The trainer's, if it is given one; default: made of ``collator_settings``.
        batch_size: Recordings at a time.
        num_workers: Threads that read recordings; 0 for none.
        encoder_dtype: ``model`` keeps the encoder's output as it was computed; ``int8`` takes half of 16 bit, with
            an error that the report states.
        top_k: Keep the likeliest tokens of the teacher's distributions and one bucket for all others, ``4 k + 2`` bytes
            a token, in place of its hidden states. A small disk's choice: the KL term is a lower bound, the report says
            how much mass the buckets hold, and training at another temperature is refused. 0 keeps hidden states.
        temperature: Of these distributions; the training's.
        dtype: Number type to compute in; default the model's.
        device: Where to run.
        **collator_settings: Arguments of ``DataCollatorForDistillation``, as in the training. Probabilities matter
            where they are 0 or 1 only: what is never drawn is not cached.

    Raises:
        StateCacheError: If the directory holds the states of another teacher, dtype or feature extractor.
    """
    transcriber = Transcriber(model, processor, dtype=dtype, device=device)
    if collator is None:
        columns = getattr(dataset, "column_names", None) or ()
        collator = training_collator(transcriber, leading_space="whisper_tokens" in columns, **collator_settings)
    elif collator_settings:
        raise TypeError(f"{sorted(collator_settings)} are settings of a collator, but a collator is given too")
    recorder = StateRecorder(
        transcriber, cache_dir, collator, encoder_dtype=encoder_dtype, batch_size=batch_size, num_workers=num_workers,
        top_k=top_k, temperature=temperature,
    )  # fmt: skip
    recorder.record_all(dataset)
    logger.info("%s", recorder.report)
    return recorder.report


def training_collator(transcriber: Transcriber, **settings: Any) -> DataCollatorForDistillation:
    """Return the collator that the trainer makes for a model by default, with other settings where given."""
    model = transcriber.model
    defaults = {
        "multilingual": getattr(model.generation_config, "is_multilingual", None),
        "max_label_length": min(448, model.config.max_target_positions),
        "window_s": transcriber.window_s,
        "leading_space": True,
    }
    return DataCollatorForDistillation(transcriber.processor, **(defaults | settings))


@dataclass
class _Job:
    """What the cache lacks of a sample."""

    sample: Sample
    states: Tensor | None
    audio: bytes = b""
    recording: Samples | None = None
    lacks_encoder: bool = False
    inputs: list[tuple[list[int], int]] = field(default_factory=list)
    problem: str | None = None


class StateRecorder:
    """Adds samples to a cache.

    Args:
        transcriber: The teacher, as labelling uses it.
        cache_dir: Directory of the cache.
        collator: Builds the label sequences.
        encoder_dtype: ``model`` or ``int8``.
        batch_size: Recordings and sequences at a time; default the transcriber's.
        num_workers: Threads that read recordings.
        top_k: Tokens to keep of the teacher's distributions; 0 for its hidden states.
        temperature: Of these distributions.

    Attributes:
        cache: The cache.
        report: What was written.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        cache_dir: str | Path,
        collator: DataCollatorForDistillation,
        *,
        encoder_dtype: str = "model",
        batch_size: int | None = None,
        num_workers: int = 0,
        top_k: int = 0,
        temperature: float = 2.0,
    ) -> None:
        self.transcriber, self.report = transcriber, CacheReport()
        self.collator = collator
        self.batch_size, self.num_workers = batch_size or transcriber.batch_size, num_workers
        model, extractor = transcriber.model, transcriber.processor.feature_extractor
        key = CacheKey.of(
            model.model.encoder,
            model,
            extractor,
            dtype=model.dtype,
            encoder_dtype=encoder_dtype,
            top_k=top_k,
            temperature=temperature,
        )
        self.cache = StateCache(cache_dir, key)
        self._variants = _every_draw(self.collator)
        self._squares = self._errors = 0.0
        self._head = model.proj_out.weight.detach().float() if top_k else None
        self._residuals: list[Tensor] = []

    def record_all(self, dataset: Any) -> None:
        """Write what the cache lacks of a data set, and count its samples."""
        self.record_files([dataset])

    def record_files(self, datasets: Iterable[Any]) -> None:
        """Do the same for several data sets; the next is asked for when the states of one are on the disk."""
        started = time.perf_counter()
        self.cache.close()  # what this recorder wrote before can be read now
        for dataset in datasets:
            self._record_rows(dataset)
        self.cache.close()
        self.report.elapsed_s += time.perf_counter() - started

    def _record_rows(self, dataset: Any) -> None:
        if hasattr(dataset, "features"):
            dataset = undecoded(dataset, self.collator.audio_column)
        total = len(dataset) if hasattr(dataset, "__len__") else None
        samples = (Sample(row, index) for index, row in enumerate(dataset))
        with tqdm(total=total, desc="states", unit="clip") as progress:
            while batch := list(islice(samples, self.batch_size)):
                problems = self.record(batch)
                self.report.samples += len(batch) - len(problems)
                self.report.left_out.update(problems)
                progress.update(len(batch))

    def record(self, samples: Sequence[Sample], encoder_states: Tensor | None = None) -> list[str]:
        """Write what the cache lacks of a batch.

        Args:
            samples: Labelled samples.
            encoder_states: The encoder's output for them, ``[batch, frames, d_model]``; default: read from the
                cache, or computed.

        Returns:
            Why samples cannot be used, a reason for each of those.
        """
        states = [None] * len(samples) if encoder_states is None else list(encoder_states)
        with reading_threads(max(1, self.num_workers)) as threads:
            loaded = list(threads.map(self._load, samples, states))
        unusable = [job for job in loaded if job.problem and job.lacks_encoder]
        jobs = [job for job in loaded if not job.problem and self._needs_work(job)]
        self._complete(jobs)
        encoder = [self._encoder_record(job) for job in jobs if job.lacks_encoder]
        teacher = self._teacher_records(jobs)
        self.cache.write([*encoder, *teacher, *(self.cache.unusable_record(j.audio, j.sample.key) for j in unusable)])
        self.report.encoder_states += len(encoder)
        self.report.teacher_states += len(teacher)
        self.report.nbytes += sum(record.data.nbytes for record in (*encoder, *teacher))
        return [job.problem for job in loaded if job.problem]

    def _load(self, sample: Sample, states: Tensor | None) -> _Job:
        job, rate = _Job(sample, states), self.transcriber.sampling_rate
        try:
            value = sample.row.get(self.collator.audio_column)
            job.audio = audio_digest(value, rate)
            job.lacks_encoder = encoder_key(job.audio) not in self.cache
            rows = self.cache.encoder_rows(job.audio)
            if rows == 0:
                job.problem = "unusable"
            elif rows is None and states is None:
                job.recording = load_audio(value, rate, max_duration_s=self.transcriber.window_s)
        except AudioError as error:
            job.problem = error.reason
        return job

    def _needs_work(self, job: _Job) -> bool:
        try:
            drawn = [collator.sequence(job.sample) for collator in self._variants]
        except UnusableLabelError as error:
            job.problem = error.reason
            return False
        prompts = {tuple(ids[:-1]): prompt for ids, prompt in drawn}
        job.inputs = [(list(ids), n) for ids, n in prompts.items() if teacher_key(job.audio, ids) not in self.cache]
        return bool(job.inputs) or job.lacks_encoder

    def _complete(self, jobs: list[_Job]) -> None:
        """Give every job the encoder's output."""
        for job in jobs:
            if job.states is None and job.recording is None:
                job.states = self.cache.read_encoder(job.audio, job.sample.key)
        new = [(job, job.recording) for job in jobs if job.recording is not None]
        if new:
            features = self.transcriber.extract_features([recording for _, recording in new])
            for (job, _), states in zip(new, encode(self.transcriber.model, features), strict=True):
                job.states = states

    def _encoder_record(self, job: _Job) -> Record:
        assert job.states is not None
        record = self.cache.encoder_record(job.audio, job.states, job.sample.key)
        if self.cache.key.encoder_dtype == "int8":
            exact = job.states.float().cpu()
            self._squares += float(exact.square().sum())
            self._errors += float((read_back(record, self.cache.key).float() - exact).square().sum())
            self.report.encoder_error = (self._errors / max(self._squares, 1e-30)) ** 0.5
        return record

    def _teacher_records(self, jobs: list[_Job]) -> list[Record]:
        model, end = self.transcriber.model, self.transcriber.tokens.end_of_text
        pairs = sorted(((job, *inputs) for job in jobs for inputs in job.inputs), key=lambda pair: len(pair[1]))
        records = []
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            length = max(len(ids) for _, ids, _ in part)
            padded = torch.tensor([ids + [end] * (length - len(ids)) for _, ids, _ in part])
            states = torch.stack([job.states for job, *_ in part if job.states is not None])
            for (job, ids, prompt), hidden in zip(part, decode(model, padded, states), strict=True):
                labelled = self._kept(hidden[prompt : len(ids)])
                records.append(self.cache.teacher_record(job.audio, ids, labelled, job.sample.key))
        if self._residuals:
            residuals = torch.cat(self._residuals)
            self.report.residual_mean = float(residuals.mean())
            self.report.residual_p95 = float(np.percentile(residuals, 95))
        return records

    def _kept(self, hidden: Tensor) -> Tensor:
        if self._head is None:
            return hidden
        ids, log_probs = find_top_k(hidden, self._head, self.cache.key.top_k, self.cache.key.temperature)
        self._residuals.append(log_probs[:, -1].exp().cpu())
        return pack_top_k(ids, log_probs)


def _every_draw(collator: DataCollatorForDistillation) -> list[DataCollatorForDistillation]:
    """Return copies of a collator that draw the same for all samples, each one another of what it may draw."""

    def ends(probability: float) -> set[float]:
        return {0.0, 1.0} if 0 < probability < 1 else {float(probability)}

    collators = []
    for timestamps, prompts in product(
        ends(collator.timestamp_probability), ends(collator.condition_on_prev_probability)
    ):
        collators.append(copy.copy(collator))
        collators[-1].timestamp_probability, collators[-1].condition_on_prev_probability = timestamps, prompts
    return collators

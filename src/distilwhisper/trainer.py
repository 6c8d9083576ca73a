"""Distillation as a ``Seq2SeqTrainer``: what users expect of the Trainer, with a loss that is right for Whisper."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    Seq2SeqTrainer,
    TrainerCallback,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from distilwhisper.arguments import DistillationTrainingArguments
from distilwhisper.cached_inputs import use_state_cache
from distilwhisper.collator import IGNORE_INDEX, DataCollatorForDistillation
from distilwhisper.generation import generate_tokens
from distilwhisper.metrics import ErrorCounts, count_normalized_errors, count_word_errors
from distilwhisper.modeling import DistillationStep, Objective, place_teacher
from distilwhisper.normalizers import get_normalizer
from distilwhisper.samples import EpochSampler, MapSamples, StreamedSamples, usable_rows
from distilwhisper.student import save_processor

logger = logging.getLogger(__name__)

TERMS = ("kl", "pl", "mse")


class DistillationTrainer(Seq2SeqTrainer):
    """Trains a student Whisper on a teacher's labels and distributions.

    Everything of the Transformers ``Trainer`` works: callbacks, resuming, early stopping, ``report_to``,
    ``push_to_hub``, mixed precision, gradient checkpointing, accumulation, DDP. Different are the loss (paper eq. 12),
    normalised by the label tokens of the whole update; the logs, which show each term; the evaluation, which
    transcribes and reports the word error rate of each set and, under ``eval_wer``, their average; and checkpoints,
    which hold the student alone, complete with its processor.

    Args:
        model: The student, or a path or Hub id.
        teacher_model: The teacher, or a path or Hub id; not needed with ``kl_weight=0`` and ``mse_weight=0``. It is
            moved to the training device, in the training's mixed precision, and set to evaluation mode without
            gradients.
        args: ``DistillationTrainingArguments``.
        data_collator: Default: ``DataCollatorForDistillation`` with the settings of ``args``.
        train_dataset: What ``PseudoLabeler.label`` or ``WERFilter.filter`` returned, or any data set with audio and
            transcripts.
        eval_dataset: A data set with columns audio and text, or a dict of named ones.
        processing_class: The ``WhisperProcessor``; default: loaded from where the student or teacher came from.
        compute_metrics: Replaces the word error rates; gets generated and label ids as with ``Seq2SeqTrainer``.
        **kwargs: Further arguments of ``Seq2SeqTrainer``.

    Raises:
        ValueError: If teacher and student do not fit, the teacher is missing, or no training sample has a usable label.
    """

    # The loss is divided by the label tokens of the whole update; the stock setting would multiply Whisper's by the
    # number of accumulation steps.
    loss_is_scaled_for_ga = True
    control: Any

    def __init__(
        self,
        model: Any = None,
        teacher_model: Any = None,
        args: DistillationTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        processing_class: Any = None,
        compute_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args or DistillationTrainingArguments(output_dir="distilled-student")
        model, teacher_model = _load(model), _load(teacher_model)
        if model is None:
            raise ValueError("model is missing: pass the student that create_student returned, a path or a Hub id")
        if model.dtype in (torch.float16, torch.bfloat16):
            logger.info(
                "the student is trained in float32: updates are too small for the %s it was saved in", model.dtype
            )
            model.float()
        processing_class = processing_class or _find_processor(model, teacher_model)
        _use_one_gpu(args)
        if args.freeze_encoder:
            model.model.encoder.requires_grad_(False)
        objective = Objective(args.temperature, args.kl_weight, args.pl_weight, args.mse_weight, args.loss_chunk_size)
        # Before the teacher changes its dtype: rounding would hide a difference between the encoders.
        self._step = DistillationStep(model, teacher_model, objective)
        self._step.bind(model)
        self._counts_words = compute_metrics is None and args.predict_with_generate
        data_collator = data_collator or _default_collator(processing_class, model, args, train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=_training_samples(train_dataset, data_collator),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=_word_error_metrics if self._counts_words else compute_metrics,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # have the label tokens of the update counted
        cached = use_state_cache(args, self.model, self._step.teacher, data_collator, self.train_dataset)
        if self._step.teacher is not None:
            dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
            place_teacher(self._step.teacher, args.device, dtype, head_only=cached)
        self._normalize = get_normalizer(args.language or getattr(data_collator, "language", None) or "en")
        self._term_sums: Tensor | None = None
        self._terms_logged_at = 0
        self.add_callback(_EpochAnnouncer(self.train_dataset))

    @property
    def teacher_model(self) -> Any:
        """The teacher, or None."""
        return self._step.teacher

    # ---- training ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch, as its share of the whole update's mean over label tokens."""
        loss, *terms, _ = model(distillation_batch=inputs, num_items=num_items_in_batch)
        # DDP and FSDP average gradients over processes; the divisor already counts the tokens of all of them.
        scale = 1
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            scale = self.accelerator.num_processes
        if model.training:
            values = torch.stack(terms).detach() * scale
            self._term_sums = values if self._term_sums is None else self._term_sums + values
        return (loss * scale, {}) if return_outputs else loss * scale

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the terms of the loss beside the loss: means over the updates since the last log."""
        updates = self.state.global_step - self._terms_logged_at
        if "loss" in logs and self._term_sums is not None and updates > 0:
            means = self.accelerator.reduce(self._term_sums, reduction="mean") / updates
            used = {name: getattr(self.args, f"{name}_weight") > 0 for name in TERMS}
            logs |= {f"{name}_loss": value for name, value in zip(TERMS, means.tolist(), strict=True) if used[name]}
            self._term_sums, self._terms_logged_at = None, self.state.global_step
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        """Return 0: the stock estimate walks all modules at every step, and knows nothing of the teacher."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        samples = train_dataset or self.train_dataset
        if not isinstance(samples, MapSamples):
            return super()._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return EpochSampler(samples, seed)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the loader of one evaluation set, given by name or as a data set."""
        name = eval_dataset if isinstance(eval_dataset, str) else None
        dataset = self.eval_dataset[name] if name else (self.eval_dataset if eval_dataset is None else eval_dataset)
        if dataset is None:
            raise ValueError("no evaluation set: pass eval_dataset to the trainer or to evaluate()")
        return super().get_eval_dataloader(self._evaluation_samples(dataset))  # type: ignore[no-any-return]

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the loader of a test set."""
        return super().get_test_dataloader(self._evaluation_samples(test_dataset))  # type: ignore[no-any-return]

    def _evaluation_samples(self, dataset: Any) -> Any:
        if not isinstance(self.data_collator, DataCollatorForDistillation):
            return dataset
        if not hasattr(dataset, "__len__"):
            return StreamedSamples(dataset, self.data_collator, evaluation=True)
        return MapSamples(dataset, self.data_collator.audio_column, evaluation=True)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate on one set, or on several named ones with their average.

        Returns:
            ``eval_loss``, ``eval_wer`` (percent, after normalisation), ``eval_wer_ortho`` (percent, as written) and
            counts; with several sets ``eval_<name>_wer`` for each, and ``eval_wer`` as the mean over the sets, each
            counting the same whatever its size (the paper's macro-average, by which the best checkpoint is chosen).
        """
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, Mapping):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)  # type: ignore[no-any-return]
        with self._without_early_stopping():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        averages = {}
        for metric in ("loss", "wer", "wer_ortho"):
            values = [metrics.get(f"{metric_key_prefix}_{name}_{metric}") for name in sets]
            if values and None not in values:
                averages[f"{metric_key_prefix}_{metric}"] = float(np.mean(values))  # type: ignore[arg-type]
        self.log(dict(averages))
        metrics |= averages
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics  # type: ignore[no-any-return]

    @contextmanager
    def _without_early_stopping(self) -> Iterator[None]:
        # It is called after each set, does not find the average there, and would switch itself off.
        callbacks = self.callback_handler.callbacks
        self.callback_handler.callbacks = [one for one in callbacks if not isinstance(one, EarlyStoppingCallback)]
        try:
            yield
        finally:
            self.callback_handler.callbacks = callbacks

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run an evaluation or prediction; every sample counts once, whatever the number of processes."""
        # Seq2SeqTrainer keeps the copies with which the last batches are filled up.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return loss, predictions and labels of a batch; the encoder runs once for the loss and for the transcripts.

        Predictions are generated ids, or with the built-in metric the error counts of each sample: those add up over
        batches and processes, and take no room.
        """
        inputs = self._prepare_inputs(inputs)
        references, prefix = inputs.pop("reference_ids", None), inputs.pop("prefix_ids", None)
        with torch.no_grad():
            loss, *_, encoder_states = model(distillation_batch=inputs)
        if not self.args.predict_with_generate or prediction_loss_only or prefix is None or references is None:
            return loss, None, None
        limit = gen_kwargs.get("max_new_tokens") or self.args.generation_max_length
        generated = generate_tokens(
            self.accelerator.unwrap_model(model),
            prefix,
            encoder_hidden_states=encoder_states,
            max_new_tokens=limit,
        ).ids
        if self._counts_words:
            counts = self._count_errors(generated, references)
            return loss, counts, counts
        width = max(1, *map(len, generated))
        pad = self.data_collator.tokens.end_of_text
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in generated], device=loss.device)
        return loss, ids, inputs["labels"]

    def _count_errors(self, generated: list[list[int]], references: Tensor) -> Tensor:
        tokenizer = self.data_collator.tokenizer
        rows = []
        for hypothesis_ids, reference_ids in zip(generated, references.tolist(), strict=True):
            hypothesis = tokenizer.decode(hypothesis_ids, skip_special_tokens=True)
            reference = tokenizer.decode([token for token in reference_ids if token != IGNORE_INDEX])
            normalized = count_normalized_errors(reference, hypothesis, self._normalize)
            written = count_word_errors(reference.strip(), hypothesis.strip())
            rows.append([*_as_row(normalized), *_as_row(written)])
        return torch.tensor(rows, device=self.args.device)

    # ---- saving ------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.processing_class, WhisperProcessor):
            save_processor(self.processing_class, output_dir or self.args.output_dir)


class _EpochAnnouncer(TrainerCallback):
    """Tells the samples which epoch begins, also where the loaders' own chain of wrappers does not reach them."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples
        self.next_epoch: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.next_epoch = math.floor(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.next_epoch is not None and hasattr(self.samples, "set_epoch"):
            self.samples.set_epoch(self.next_epoch)
            self.next_epoch += 1


def _load(model: Any) -> Any:
    return WhisperForConditionalGeneration.from_pretrained(model) if isinstance(model, str) else model


def _find_processor(*models: Any) -> Any:
    for model in models:
        if model is not None and model.name_or_path:
            return WhisperProcessor.from_pretrained(model.name_or_path)
    raise ValueError(
        "processing_class is missing and neither model says where it came from; pass "
        "WhisperProcessor.from_pretrained(<the teacher>)"
    )


def _use_one_gpu(args: DistillationTrainingArguments) -> None:
    if args.n_gpu > 1:
        logger.warning(
            "this process sees %d GPUs and uses one (torch.nn.DataParallel would average wrongly); "
            "start it with `accelerate launch` to use all",
            args.n_gpu,
        )
        args._n_gpu = 1


def _default_collator(
    processor: Any, model: Any, args: DistillationTrainingArguments, train_dataset: Any
) -> DataCollatorForDistillation:
    # References are measured against as the student writes: like its labels, or like Whisper if it is not trained here.
    columns = getattr(train_dataset, "column_names", None) or ()
    return DataCollatorForDistillation(
        processor,
        language=args.language,
        task=args.task,
        timestamp_probability=args.timestamp_probability,
        condition_on_prev_probability=args.condition_on_prev_probability,
        max_label_length=min(args.max_label_length, model.config.max_target_positions),
        multilingual=getattr(model.generation_config, "is_multilingual", None),
        audio_column=args.audio_column,
        transcript_column=args.transcript_column,
        text_column=args.text_column,
        prompt_column=args.prompt_column,
        leading_space=train_dataset is None or "whisper_tokens" in columns,
        seed=args.data_seed if args.data_seed is not None else args.seed,
    )


def _training_samples(dataset: Any, collator: Any) -> Any:
    if dataset is None or not isinstance(collator, DataCollatorForDistillation):
        return dataset
    if not hasattr(dataset, "__len__"):
        return StreamedSamples(dataset, collator)
    return MapSamples(dataset, collator.audio_column, rows=usable_rows(dataset, collator))


def _as_row(counts: ErrorCounts) -> list[int]:
    return [counts.hits, counts.substitutions, counts.deletions, counts.insertions]


def _word_error_metrics(prediction: EvalPrediction) -> dict[str, float]:
    sums = np.asarray(prediction.predictions).reshape(-1, 8).sum(0)
    metrics: dict[str, float] = {}
    for suffix, (hits, substitutions, deletions, insertions) in (("", sums[:4]), ("_ortho", sums[4:])):
        counts = ErrorCounts(
            hits=int(hits), substitutions=int(substitutions), deletions=int(deletions), insertions=int(insertions)
        )
        metrics[f"wer{suffix}"] = 100 * counts.wer
        if not suffix:
            metrics |= {"ier": 100 * counts.ier, "ser": 100 * counts.ser, "der": 100 * counts.der}
    return metrics

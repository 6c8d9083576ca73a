"""Distillation as a ``Seq2SeqTrainer``: what users expect of the Trainer, with a loss that is right for Whisper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, TrainerCallback, WhisperProcessor
from transformers.trainer_utils import SaveStrategy

from distilwhisper.arguments import DistillationTrainingArguments
from distilwhisper.attention import without_flash
from distilwhisper.cached_inputs import use_state_cache
from distilwhisper.checkpoints import STATE_FILE, last_checkpoint
from distilwhisper.cpu_memory import keep_freed_memory
from distilwhisper.generation import generate_tokens
from distilwhisper.modeling import DistillationStep, Objective, accept_steps, place_teacher, whole_weights
from distilwhisper.normalizers import get_normalizer
from distilwhisper.preparation import (
    adapt_arguments,
    check_datasets,
    default_collator,
    evaluation_samples,
    find_processor,
    prepare_models,
    training_samples,
)
from distilwhisper.samples import EpochSampler, MapSamples, StreamedSamples, label_lengths
from distilwhisper.scoring import METRICS, WordErrorScorer
from distilwhisper.student import save_processor
from distilwhisper.trainer_displays import trainer_as_html
from distilwhisper.training_tracker import TrainingTracker

TERMS = ("kl", "pl", "mse")
OBJECTIVE = [field.name for field in fields(Objective)]


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
    compute_metrics: Any
    _term_sums: Tensor | None

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
        check_datasets(train_dataset, eval_dataset)
        adapt_arguments(args, train_dataset, eval_dataset)
        model, teacher_model = prepare_models(model, teacher_model, args)
        processing_class = (
            processing_class or getattr(data_collator, "processor", None) or find_processor(model, teacher_model)
        )
        objective = Objective(**{name: getattr(args, name) for name in OBJECTIVE})
        # Before the teacher changes its dtype: rounding would hide a difference between the encoders.
        self._step = DistillationStep(model, teacher_model, objective)
        accept_steps(model)
        data_collator = data_collator or default_collator(processing_class, model, args, train_dataset)
        language = args.language or getattr(data_collator, "language", None) or "en"
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self._scorer = WordErrorScorer(tokenizer, get_normalizer(language))
        self._counts_words = compute_metrics is None and args.predict_with_generate
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=training_samples(train_dataset, data_collator),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._scorer.metrics_from_counts if self._counts_words else compute_metrics,
            **kwargs,
        )
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self.model_accepts_loss_kwargs = True  # have the label tokens of the update counted
        cached = use_state_cache(args, self.model, self._step.teacher, data_collator, self.train_dataset)
        if self._step.teacher is not None:
            dtype = args.compute_dtype if args.compute_dtype != torch.float32 else None
            shared = self._step.shares_encoder
            place_teacher(self._step.teacher, args.device, dtype, head_only=cached, shares_encoder=shared)
        self._forget_terms()
        self.add_callback(_StartOfEpochs(self))
        self._tracker = TrainingTracker(self, self._scorer)
        self.callback_handler.callbacks.insert(0, self._tracker)  # before those of Transformers open their runs

    @property
    def teacher_model(self) -> Any:
        """The teacher, or None."""
        return self._step.teacher

    def _repr_html_(self) -> str:
        return trainer_as_html(self)

    # ---- training ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch, as its share of the whole update's mean over label tokens."""
        loss, *terms, _ = model(distillation_step=self._step, distillation_batch=inputs, num_items=num_items_in_batch)
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
            self._forget_terms()
        super().log(logs, *args, **kwargs)

    def _forget_terms(self) -> None:
        self._term_sums = None
        self._terms_logged_at = self.state.global_step

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        """Return 0: the stock estimate walks all modules at every step, and knows nothing of the teacher."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        samples = train_dataset or self.train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if not isinstance(samples, MapSamples) or self.args.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        lengths = label_lengths(samples, self.data_collator) if grouped else None
        batch_size = self.args.train_batch_size * self.accelerator.num_processes
        return EpochSampler(samples, seed, lengths=lengths, batch_size=batch_size)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the loader of one evaluation set, given by name or as a data set."""
        name = eval_dataset if isinstance(eval_dataset, str) else None
        dataset = self.eval_dataset[name] if name else (self.eval_dataset if eval_dataset is None else eval_dataset)
        if dataset is None:
            raise ValueError("no evaluation set: pass eval_dataset to the trainer or to evaluate()")
        self._eval_dataloaders: dict[str, Any] = {}  # kept with persistent workers, under one key for all sets
        samples = evaluation_samples(dataset, self.data_collator)
        return super().get_eval_dataloader(samples)  # type: ignore[no-any-return]

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the loader of a test set."""
        samples = evaluation_samples(test_dataset, self.data_collator)
        return super().get_test_dataloader(samples)  # type: ignore[no-any-return]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate on one set, or on several named ones with their average.

        Returns:
            ``eval_loss``, ``eval_wer`` (percent, after normalisation) with its parts ``eval_ier``, ``eval_ser`` and
            ``eval_der``, ``eval_cer``, ``eval_wer_ortho`` (percent, as written) and ``eval_repeated_5grams``; with
            several sets ``eval_<name>_wer`` and so on for each, and ``eval_wer`` and so on as the mean over the sets,
            each counting the same whatever its size (the paper's macro-average, by which the best checkpoint is
            chosen).
        """
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, Mapping):
            result: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
            return result
        with self._without_early_stopping():
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        averages = {}
        for metric in ("loss", *METRICS):
            values = [metrics.get(f"{metric_key_prefix}_{name}_{metric}") for name in sets]
            if values and None not in values:
                averages[f"{metric_key_prefix}_{metric}"] = float(np.mean(values))  # type: ignore[arg-type]
        self.log(dict(averages))
        metrics |= averages
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def _without_early_stopping(self) -> Iterator[None]:
        # It is called after each set, does not find the average there, and would switch itself off.
        callbacks = self.callback_handler.callbacks
        self.callback_handler.callbacks = [one for one in callbacks if not isinstance(one, EarlyStoppingCallback)]
        try:
            yield
        finally:
            self.callback_handler.callbacks = callbacks

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Run an evaluation or prediction; every sample counts once, whatever the number of processes."""
        # Seq2SeqTrainer keeps the copies with which the last batches are filled up.
        self.gather_function = self.accelerator.gather_for_metrics
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        self._tracker.log_predictions(dataloader, kwargs.get("metric_key_prefix", "eval"))
        return output

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
        references, prefix, rows = (inputs.pop(name, None) for name in ("reference_ids", "prefix_ids", "rows"))
        with torch.no_grad():
            loss, *_, encoder_states = model(distillation_step=self._step, distillation_batch=inputs)
        if not self.args.predict_with_generate or prediction_loss_only or prefix is None or references is None:
            return loss, None, None
        student = self.accelerator.unwrap_model(model)
        settings = gen_kwargs or getattr(self, "_gen_kwargs", {})
        limit = settings.get("max_new_tokens") or settings.get("max_length") or self.args.generation_max_length
        limit = min(limit or student.config.max_target_positions, student.config.max_target_positions - prefix.shape[1])
        with whole_weights(student), without_flash(student):
            generated = generate_tokens(
                student,
                prefix,
                encoder_hidden_states=encoder_states,
                max_new_tokens=limit,
                num_beams=settings.get("num_beams") or self.args.generation_num_beams or 1,
            ).ids
        if self._counts_words:
            counted = self._scorer.count(generated, references.tolist())
            self._tracker.note(rows, generated, references, counted)
            counts = torch.tensor(counted, device=loss.device)
            return loss, counts, counts
        # One width for all batches: what fills them up to it later is no token.
        pad = self.data_collator.tokens.end_of_text
        ids = torch.tensor([row + [pad] * (limit - len(row)) for row in generated], device=loss.device)
        return loss, ids, references

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return generated token ids, the ids of the references, and metrics, as ``Seq2SeqTrainer`` does."""
        counts, metric = self._counts_words, self.compute_metrics
        if counts:
            self._counts_words, self.compute_metrics = False, self._scorer.metrics_from_ids
        try:
            return super().predict(*args, **kwargs)
        finally:
            self._counts_words, self.compute_metrics = counts, metric

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # The word error rate is the default measure, not a duty: metrics of a user's own need not have it.
        asked = self.args.load_best_model_at_end or self.args.save_strategy == SaveStrategy.BEST
        if self.args.metric_for_best_model == "wer" and "eval_wer" not in metrics and not asked:
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    # ---- saving and resuming -----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with ``resume_from_checkpoint=True`` go on from the newest checkpoint that was saved to its end."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"there is no complete checkpoint in {self.args.output_dir} to resume from")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:  # a state of an earlier run would make a checkpoint look complete before it is
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / STATE_FILE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.processing_class, WhisperProcessor):
            save_processor(self.processing_class, output_dir or self.args.output_dir)


class _StartOfEpochs(TrainerCallback):
    """Tells the samples which epoch begins, also where the loaders' own chain of wrappers does not reach them."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer
        self.next_epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.trainer._forget_terms()
        self.next_epoch = math.floor(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        samples = self.trainer.train_dataset
        if isinstance(samples, (MapSamples, StreamedSamples)):
            samples.set_epoch(self.next_epoch)
        self.next_epoch += 1

"""What the trainer needs before it starts: models, a processor, a collator, samples."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperProcessor
from transformers.trainer_utils import IntervalStrategy

from distilwhisper.arguments import DistillationTrainingArguments
from distilwhisper.attention import set_attention
from distilwhisper.collator import DataCollatorForDistillation
from distilwhisper.models import load_whisper
from distilwhisper.samples import MapSamples, StreamedSamples, usable_rows

logger = logging.getLogger(__name__)


def prepare_models(student: Any, teacher: Any, args: DistillationTrainingArguments) -> tuple[Any, Any]:
    """Return student and teacher as models: the student in float32, its encoder frozen or not as ``args`` say.

    Raises:
        ValueError: If there is no student.
    """
    if student is None:
        raise ValueError(
            "model is missing: pass the student that create_student returned, a path or a Hub id "
            "(model_init is not supported)"
        )
    if teacher is student and not isinstance(student, (str, Path)):
        teacher = copy.deepcopy(student)  # the teacher is frozen and changes its dtype
    student, teacher = _load(student), _load(teacher)
    if student.dtype in (torch.float16, torch.bfloat16):
        logger.info("the student is trained in float32: updates are too small for its %s", student.dtype)
        student.float()
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            set_attention(model, args.attn_implementation, args.device, args.compute_dtype, name=name)
    encoder = student.model.encoder
    if args.freeze_encoder:
        encoder.requires_grad_(False)
    elif not any(parameter.requires_grad for parameter in encoder.parameters()):
        encoder.requires_grad_(True)
        encoder.embed_positions.requires_grad_(False)  # sinusoids
    return student, teacher


def _load(model: Any) -> Any:
    if isinstance(model, (str, Path)):
        return load_whisper(model)
    return model


def find_processor(*models: Any) -> Any:
    """Return the processor from where a model came from.

    Raises:
        ValueError: If no model says where that is.
    """
    for model in models:
        if model is not None and model.name_or_path:
            return WhisperProcessor.from_pretrained(model.name_or_path)
    raise ValueError(
        "processing_class is missing and neither model says where it came from; pass "
        "WhisperProcessor.from_pretrained(<the teacher>)"
    )


def default_collator(
    processor: Any, model: Any, args: DistillationTrainingArguments, train_dataset: Any
) -> DataCollatorForDistillation:
    """Return the collator with the settings of ``args`` and the limits of the model.

    Raises:
        ValueError: If the tokenizer has ids that the model does not know.
    """
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "feature_extractor"):
        raise ValueError(
            f"processing_class must be a WhisperProcessor, which has a tokenizer and a feature extractor, not a "
            f"{type(processor).__name__}; or pass a data_collator"
        )
    config, extractor = model.config, processor.feature_extractor
    if len(processor.tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(processor.tokenizer)} tokens, the model {config.vocab_size}: "
            "they do not belong together"
        )
    # References are measured against as the student writes: like its labels, or like Whisper if it is not trained here.
    columns = getattr(train_dataset, "column_names", None) or ()
    return DataCollatorForDistillation(
        processor,
        language=args.language,
        task=args.task,
        timestamp_probability=args.timestamp_probability,
        condition_on_prev_probability=args.condition_on_prev_probability,
        max_label_length=min(args.max_label_length, config.max_target_positions),
        multilingual=getattr(model.generation_config, "is_multilingual", None),
        audio_column=args.audio_column,
        transcript_column=args.transcript_column,
        text_column=args.text_column,
        prompt_column=args.prompt_column,
        leading_space=train_dataset is None or "whisper_tokens" in columns,
        window_s=2 * config.max_source_positions * extractor.hop_length / extractor.sampling_rate,
        seed=args.data_seed if args.data_seed is not None else args.seed,
    )


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """Refuse data sets of several splits where one is needed, before anything takes time.

    Raises:
        ValueError: If the training set, or one of the evaluation sets, is a dictionary of splits.
    """
    sets = eval_dataset if isinstance(eval_dataset, Mapping) else {}
    for name, dataset in {"train_dataset": train_dataset, **sets}.items():
        if isinstance(dataset, Mapping):
            splits = ", ".join(map(str, dataset))
            raise ValueError(
                f"{name} has several splits ({splits}): choose one (in examples/train.py: --train_split, :split)"
            )


def training_samples(dataset: Any, collator: Any) -> Any:
    """Return the data set as samples that know their epoch; data for a collator of another project as it is."""
    if dataset is None or not isinstance(collator, DataCollatorForDistillation):
        return dataset
    if not hasattr(dataset, "__len__"):
        return StreamedSamples(dataset, collator)
    return MapSamples(dataset, collator.audio_column, rows=usable_rows(dataset, collator))


def evaluation_samples(dataset: Any, collator: Any) -> Any:
    """Return an evaluation set as samples; data for a collator of another project as it is."""
    if not isinstance(collator, DataCollatorForDistillation):
        return dataset
    if not hasattr(dataset, "__len__"):
        return StreamedSamples(dataset, collator, evaluation=True)
    return MapSamples(dataset, collator.audio_column, evaluation=True)


def adapt_arguments(args: DistillationTrainingArguments, train_dataset: Any, eval_dataset: Any) -> None:
    """Set what follows from the data and the machine.

    Raises:
        ValueError: If Accelerate is to deal out slices of batches.
    """
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "accelerator_config dispatch_batches=True joins the batches of all processes and deals out slices, but "
            "each batch has labels of its own length: leave it out"
        )
    if args.n_gpu > 1:
        logger.warning(
            "this process sees %d GPUs and uses one (torch.nn.DataParallel would average wrongly); "
            "start it with `accelerate launch` to use all",
            args.n_gpu,
        )
        args._n_gpu = 1
    if eval_dataset is None and args.eval_strategy != "no" and not args.load_best_model_at_end:
        # The presets evaluate; Transformers would refuse to train without a set.
        logger.warning("nothing is evaluated during the training: there is no eval_dataset")
        args.eval_strategy = IntervalStrategy.NO
    streams = train_dataset is not None and not hasattr(train_dataset, "__len__")
    if streams and args.accelerator_config.dispatch_batches is None:
        # Accelerate would read a stream in one process and deal out its batches, which must then all have one size.
        args.accelerator_config.dispatch_batches = False

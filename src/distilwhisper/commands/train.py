r"""Distil: train a student on labelled data.

    accelerate launch -m distilwhisper train --student student --teacher openai/whisper-large-v3 --train kept \
        --eval cv=validation_cv --eval vox=validation_vox --preset paper --output_dir distilled
    accelerate launch --multi_gpu --num_processes 2 -m distilwhisper train --use_cpu --student outputs/student \
        --teacher examples/teacher --train outputs/kept --max_steps 20 --output_dir outputs/distilled   # two cores

Every argument of DistillationTrainingArguments (and of Transformers' Seq2SeqTrainingArguments) is a flag; a preset sets
defaults that flags override. Run it again with --resume to go on from the last checkpoint. On one device
`distilwhisper train` alone will do.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import WhisperProcessor

from distilwhisper.arguments import PRESETS, DistillationTrainingArguments
from distilwhisper.checkpoints import last_checkpoint
from distilwhisper.loading import load_named, load_speech
from distilwhisper.models import load_whisper
from distilwhisper.trainer import DistillationTrainer


@dataclass
class Arguments:
    """Options of the command, beside those of the training."""

    student: str = field(metadata={"help": "What create-student saved, or any Whisper checkpoint."})
    train: str = field(metadata={"help": "Labelled data: what filter or pseudo-label saved, or a Hub id."})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or path; not needed with --kl_weight 0."})
    train_split: str | None = field(default=None, metadata={"help": "Split of the training data, if it has several."})
    eval: list[str] = field(
        default_factory=list,
        metadata={"help": "Validation sets as name=source or name=source:split; repeat or list.", "action": "extend"},
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir, if any."})
    preset: str | None = field(default=None, metadata={"help": f"One of {', '.join(PRESETS)}."})


OPTIONS = (Arguments, DistillationTrainingArguments)


def defaults(arguments: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that the preset sets, which flags or the file of options name."""
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default=values.get("preset"))
    name = early.parse_known_args(arguments)[0].preset
    if name not in (None, *PRESETS):
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, not {name!r}")
    return PRESETS.get(name, {})


def run(args: Arguments, training: DistillationTrainingArguments) -> None:
    """Train, save, evaluate."""
    if training.needs_teacher and not args.teacher:
        raise ValueError("the loss compares with a teacher: pass --teacher, or --kl_weight 0 and --mse_weight 0")
    trainer = DistillationTrainer(
        model=load_whisper(args.student),
        teacher_model=args.teacher if training.needs_teacher else None,
        args=training,
        train_dataset=load_speech(args.train, args.train_split),
        eval_dataset=load_named(args.eval) or None,
        processing_class=WhisperProcessor.from_pretrained(args.student),
    )
    last = last_checkpoint(training.output_dir) if args.resume else None
    result = trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    if args.eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training.push_to_hub:
        trainer.push_to_hub()
    # A process that leaves while others still talk to it makes them abort.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()

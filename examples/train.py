"""Distil: train a student on labelled data.

    accelerate launch examples/train.py --student student --teacher openai/whisper-large-v3 --train kept \
        --eval cv=validation_cv --eval vox=validation_vox --preset paper --output_dir distilled
    accelerate launch --multi_gpu --num_processes 2 examples/train.py --use_cpu --student outputs/student \
        --teacher examples/teacher --train outputs/kept --max_steps 20 --output_dir outputs/distilled   # two cores

Every argument of DistillationTrainingArguments (and of Transformers' Seq2SeqTrainingArguments) is a flag; a preset sets
defaults that flags override. Run it again with --resume to go on from the last checkpoint. Accelerate configurations
for one GPU, many GPUs, several machines and FSDP2 lie in examples/accelerate/ (accelerate launch --config_file ...).
"""

from argparse import ArgumentParser
from dataclasses import dataclass, field

from transformers import HfArgumentParser, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper import PRESETS, DistillationTrainer, DistillationTrainingArguments, last_checkpoint, load_speech


@dataclass
class Arguments:
    student: str = field(metadata={"help": "What create_student.py saved, or any Whisper checkpoint."})
    train: str = field(metadata={"help": "Labelled data: what filter_labels.py or pseudo_label.py saved, or a Hub id."})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or path; not needed with --kl_weight 0."})
    train_split: str | None = field(default=None, metadata={"help": "Split of the training data, if it has several."})
    eval: list[str] = field(
        default_factory=list,
        metadata={"help": "Validation sets as name=source or name=source:split; repeat or list.", "action": "extend"},
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir, if any."})
    preset: str | None = field(default=None, metadata={"help": f"One of {', '.join(PRESETS)}."})


def evaluation_sets(entries: list[str]) -> dict:
    sets = {}
    for entry in entries:
        name, separator, source = entry.partition("=")
        if not separator:
            raise SystemExit(f"--eval takes name=source or name=source:split, not {entry!r}")
        source, _, split = source.partition(":")
        sets[name] = load_speech(source, split or None)
    return sets


def main() -> None:
    parser = HfArgumentParser((Arguments, DistillationTrainingArguments))
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    if name := early.parse_known_args()[0].preset:
        if name not in PRESETS:
            raise SystemExit(f"--preset must be one of {', '.join(PRESETS)}, not {name!r}")
        parser.set_defaults(**PRESETS[name])
    args, training_args = parser.parse_args_into_dataclasses()
    trainer = DistillationTrainer(
        model=WhisperForConditionalGeneration.from_pretrained(args.student),
        teacher_model=args.teacher if training_args.needs_teacher else None,
        args=training_args,
        train_dataset=load_speech(args.train, args.train_split),
        eval_dataset=evaluation_sets(args.eval) or None,
        processing_class=WhisperProcessor.from_pretrained(args.student),
    )
    last = last_checkpoint(training_args.output_dir) if args.resume else None
    result = trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    if args.eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    # A process that leaves while others still talk to it makes them abort.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()

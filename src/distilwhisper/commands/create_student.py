"""Make a student out of a teacher: copy the encoder, keep maximally spaced decoder layers.

distilwhisper create-student --teacher openai/whisper-large-v3 --output_dir student
distilwhisper create-student --teacher examples/teacher --decoder_layers 2 --output_dir outputs/student   # seconds
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Arguments:
    """Options of the command."""

    teacher: str = field(metadata={"help": "Hub id or local path of a Whisper checkpoint."})
    output_dir: str = field(metadata={"help": "Where the student and its processor are saved."})
    decoder_layers: int | None = field(default=None, metadata={"help": "Decoder layers to keep; default: 2."})
    encoder_layers: int | None = field(default=None, metadata={"help": "Encoder layers to keep; default: all."})
    decoder_layer_indices: list[int] | None = field(
        default=None, metadata={"help": "Explicit 0-based layers instead; negative ones count from the end."}
    )


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Save a student and its processor."""
    from transformers import WhisperProcessor

    from distilwhisper.student import create_student, save_processor

    explicit = args.decoder_layer_indices
    student = create_student(
        args.teacher,
        args.decoder_layers if args.decoder_layers is not None else len(explicit or range(2)),
        args.encoder_layers,
        decoder_layer_indices=explicit,
    )
    student.save_pretrained(args.output_dir)
    save_processor(WhisperProcessor.from_pretrained(args.teacher), args.output_dir)
    return f"{args.output_dir}: {student.num_parameters() / 1e6:.1f} M parameters, from {student.config.distillation}"

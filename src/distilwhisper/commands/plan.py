"""Say what a distillation will cost before anything is run: operations, hours, memory and disk of each stage.

distilwhisper plan --teacher openai/whisper-large-v3 --hours 1000 --steps 10000 --batch_size 256
distilwhisper plan --teacher openai/whisper-large-v3 --hours 1000 --flops_per_s 3e14 --bytes_per_s 2e12 --devices 8
distilwhisper plan --teacher examples/teacher --hours 3 --steps 1200 --batch_size 16 --window_s 5 --tokens 15

The machine at hand is measured, which takes two seconds; the second line is about eight others. Labels are made with or
without caches, and the training runs from them or without: compare the two lines of each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from distilwhisper.costs import WhisperShape


@dataclass
class Arguments:
    """Options of the command."""

    teacher: str = field(metadata={"help": "Hub id or local path of the teacher; its config alone is read."})
    hours: float = field(metadata={"help": "Hours of audio."})
    steps: int = field(default=10_000, metadata={"help": "Updates of the training."})
    batch_size: int = field(default=256, metadata={"help": "Samples of an update."})
    decoder_layers: int = field(default=2, metadata={"help": "Decoder layers of the student."})
    window_s: float = field(default=30.0, metadata={"help": "Mean length of a recording or of what is packed, in s."})
    tokens: int = field(default=80, metadata={"help": "Mean tokens of a label."})
    label_batch_size: int = field(default=16, metadata={"help": "Recordings that the teacher hears at a time."})
    flops_per_s: float | None = field(
        default=None, metadata={"help": "Speed of matrix products of one device; default: measured here, in a second."}
    )
    bytes_per_s: float | None = field(
        default=None,
        metadata={"help": "Speed of its memory, which holds up decoding; default: measured with the other."},
    )
    devices: int = field(default=1, metadata={"help": "Such devices, on one machine or several."})
    dtype: str = field(
        default="bfloat16", metadata={"choices": ["float32", "bfloat16", "float16"], "help": "Precision."}
    )
    json: bool = field(default=False, metadata={"help": "As JSON."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Return the plan."""
    import torch

    from distilwhisper.models import load_config
    from distilwhisper.planning import measure_bandwidth, measure_flops, plan_distillation

    teacher = WhisperShape.from_config(load_config(args.teacher))
    dtype = getattr(torch, args.dtype)
    device = (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or "cpu"
    flops_per_s, bytes_per_s = args.flops_per_s, args.bytes_per_s
    if flops_per_s is None:
        flops_per_s = measure_flops(device, dtype)
        bytes_per_s = bytes_per_s or measure_bandwidth(device)
    plan = plan_distillation(
        teacher,
        replace(teacher, decoder_layers=args.decoder_layers),
        hours=args.hours,
        steps=args.steps,
        batch_size=args.batch_size,
        flops_per_s=args.devices * flops_per_s,
        bytes_per_s=args.devices * bytes_per_s if bytes_per_s else None,
        label_batch_size=args.label_batch_size,
        window_s=args.window_s,
        tokens=args.tokens,
        itemsize=dtype.itemsize,
    )
    return json.dumps(plan.to_dict(), indent=2) if args.json else str(plan)

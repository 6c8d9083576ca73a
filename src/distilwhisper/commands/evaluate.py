r"""Measure a model, and compare it with its teacher: word error rates on several sets, and speed.

distilwhisper evaluate --model distilled --teacher openai/whisper-large-v3 --data cv=test_cv \
        --data vox=voxpopuli:test --language de --output evaluation.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilwhisper.benchmarks import compare_latency
from distilwhisper.evaluation import evaluate
from distilwhisper.loading import load_named
from distilwhisper.stage_trackers import track_evaluation
from distilwhisper.transcription import Transcriber


@dataclass
class Arguments:
    """Options of the command."""

    model: str = field(metadata={"help": "The student: Hub id or path."})
    data: list[str] = field(
        metadata={"help": "Test sets as name=source or name=source:split; repeat or list.", "action": "extend"}
    )
    teacher: str | None = field(default=None, metadata={"help": "Hub id or path, to compare with."})
    language: str = field(default="en", metadata={"help": "Language of the recordings."})
    text_column: str = field(default="text", metadata={"help": "Column of the reference transcripts."})
    batch_size: int = field(default=16, metadata={"help": "Recordings at a time."})
    latency_samples: int = field(default=20, metadata={"help": "Recordings that the speed is measured on."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    report_to: str = field(default="none", metadata={"help": "wandb, tensorboard, all or none."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Evaluate one model, or two side by side; return the tables."""
    sets = load_named(args.data)
    settings: dict[str, Any] = {"language": args.language, "batch_size": args.batch_size}
    student = Transcriber(args.model, **settings)
    result = evaluate(student, sets, language=args.language, text_column=args.text_column)
    tables, output, reference = [f"{args.model}\n{result}"], {"student": result.to_dict()}, None
    if args.teacher:
        teacher = Transcriber(args.teacher, **settings)
        reference = evaluate(teacher, sets, language=args.language, text_column=args.text_column)
        first = next(iter(sets.values()))
        audio = first.select(range(min(args.latency_samples, len(first))))["audio"]
        latency = compare_latency(student, teacher, audio)
        tables += [f"{args.teacher}\n{reference}", str(latency)]
        output |= {"teacher": reference.to_dict(), "latency": latency.to_dict()}
    track_evaluation(args.report_to, args.model, result, sets, text_column=args.text_column, teacher=reference)
    if args.output:
        Path(args.output).write_text(json.dumps(output, indent=2))
    return "\n\n".join(tables)

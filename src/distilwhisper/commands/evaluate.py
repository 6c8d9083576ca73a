r"""Measure a model, and compare it with its teacher: word error rates on several sets, and speed.

distilwhisper evaluate --model distilled --teacher openai/whisper-large-v3 --data cv=test_cv \
        --data vox=voxpopuli:test --language de --output evaluation.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from distilwhisper.evaluation_files import evaluation_document
from distilwhisper.loading import load_named


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
    output: str | None = field(default=None, metadata={"help": "JSON file for the results, for report too."})
    report_to: str = field(default="none", metadata={"help": "wandb, tensorboard, all or none."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Evaluate one model, or two side by side; return the tables."""
    from distilwhisper.benchmarks import compare_latency
    from distilwhisper.evaluation import evaluate
    from distilwhisper.stage_trackers import track_evaluation
    from distilwhisper.transcription import Transcriber

    sets = load_named(args.data)
    paths = {"teacher": args.teacher, "student": args.model} if args.teacher else {"student": args.model}
    models = {
        name: Transcriber(path, language=args.language, batch_size=args.batch_size) for name, path in paths.items()
    }
    results = {
        name: evaluate(model, sets, language=args.language, text_column=args.text_column)
        for name, model in reversed(models.items())
    }
    tables, latency = [f"{paths[name]}\n{result}" for name, result in results.items()], None
    if args.teacher:
        first = next(iter(sets.values()))
        audio = first.select(range(min(args.latency_samples, len(first))))["audio"]
        latency = compare_latency(models["student"], models["teacher"], audio)
        tables.append(str(latency))
    text, teacher = args.text_column, results.get("teacher")
    track_evaluation(args.report_to, args.model, results["student"], sets, text_column=text, teacher=teacher)
    if args.output:
        document = evaluation_document(
            {name: model.model for name, model in models.items()},
            {name: results[name] for name in models},
            {name: rows[args.text_column] for name, rows in sets.items()},
            latency,
        )
        Path(args.output).write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
    return "\n\n".join(tables)

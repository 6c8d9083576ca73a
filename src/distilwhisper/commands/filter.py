"""Drop samples whose label disagrees with the reference transcript, or that break a rule where there is none.

distilwhisper filter --dataset labels --threshold 0.10 --language de --text_column sentence --output_dir kept
distilwhisper filter --dataset labels --no_transcripts --output_dir kept
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilwhisper.filter_reports import threshold_sweep, write_filter_report
from distilwhisper.filtering import LabelFilter, WERFilter
from distilwhisper.label_rules import RECOMMENDED_RULES
from distilwhisper.loading import load_speech
from distilwhisper.stage_trackers import track_filter


@dataclass
class Arguments:
    """Options of the command."""

    dataset: str = field(metadata={"help": "What pseudo-label saved."})
    output_dir: str = field(metadata={"help": "Where the kept samples, report.json and dropped.jsonl are saved."})
    threshold: float = field(default=0.10, metadata={"help": "Highest word error rate that is kept, as a fraction."})
    language: str = field(default="en", metadata={"help": "Decides how text is normalised."})
    text_column: str = field(default="text", metadata={"help": "Column of the reference transcripts."})
    language_column: str | None = field(default=None, metadata={"help": "Column of each sample's language."})
    parts: str = field(default="joined", metadata={"help": "any: one bad part drops a packed sample."})
    rules: bool = field(default=False, metadata={"help": "Judge labels by the recommended rules too."})
    no_transcripts: bool = field(default=False, metadata={"help": "Judge labels by the recommended rules alone."})
    by: list[str] = field(default_factory=list, metadata={"help": "Columns by whose values the report counts too."})
    plots: bool = field(default=False, metadata={"help": "Write report.md with plots too (needs matplotlib)."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that compare texts."})
    report_to: str = field(default="none", metadata={"help": "wandb, tensorboard, all or none."})
    log_audio: int = field(default=0, metadata={"help": "Recordings of dropped labels that go there too."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Filter and save; return the report."""
    data = load_speech(args.dataset)
    options: dict[str, Any] = {"language_column": args.language_column, "num_proc": args.num_proc}
    sweep: list[Any] = []
    label_filter: Any
    if args.no_transcripts:
        label_filter = LabelFilter(RECOMMENDED_RULES, args.language)
    else:
        rules = RECOMMENDED_RULES if args.rules else None
        label_filter = WERFilter(args.threshold, args.language, rules=rules, parts=args.parts)
        options["reference_column"] = args.text_column
        if args.plots:  # one comparison serves every threshold, and the filter below
            data = label_filter.score(data, **options)
            sweep = threshold_sweep(data)
    kept = label_filter.filter(data, by=args.by, **options)
    if not label_filter.report.kept.samples:
        reasons = {reason: tally.samples for reason, tally in label_filter.report.reasons.items() if tally.samples}
        raise ValueError(
            f"the filter keeps nothing: {reasons or 'there are no samples'}. Is the language right, do the "
            "transcripts belong to these recordings?"
        )
    kept.save_to_disk(args.output_dir)
    label_filter.dropped.to_json(Path(args.output_dir) / "dropped.jsonl", force_ascii=False)
    if args.plots:
        write_filter_report(label_filter.report, args.output_dir, sweep)
    else:
        (Path(args.output_dir) / "report.json").write_text(label_filter.report.to_json())
    track_filter(
        args.report_to,
        args.output_dir,
        label_filter,
        data,
        reference_column=options.get("reference_column"),
        log_audio=args.log_audio,
    )
    return f"{label_filter.report}\nsaved in {args.output_dir}"

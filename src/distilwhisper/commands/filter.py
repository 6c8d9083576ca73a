"""Drop samples whose label disagrees with the reference transcript.

distilwhisper filter --dataset labels --threshold 0.10 --language de --text_column sentence --output_dir kept
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from distilwhisper.filtering import WERFilter
from distilwhisper.loading import load_speech


@dataclass
class Arguments:
    """Options of the command."""

    dataset: str = field(metadata={"help": "What pseudo-label saved."})
    output_dir: str = field(metadata={"help": "Where the samples that are kept, and report.json, are saved."})
    threshold: float = field(default=0.10, metadata={"help": "Highest word error rate that is kept, as a fraction."})
    language: str = field(default="en", metadata={"help": "Decides how text is normalised."})
    text_column: str = field(default="text", metadata={"help": "Column of the reference transcripts."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Filter and save; return the report."""
    wer_filter = WERFilter(args.threshold, language=args.language)
    kept = wer_filter.filter(load_speech(args.dataset), reference_column=args.text_column)
    kept.save_to_disk(args.output_dir)
    (Path(args.output_dir) / "report.json").write_text(wer_filter.report.to_json())
    return f"{wer_filter.report}\nsaved in {args.output_dir}"

r"""Make a page with plots, and the same in Markdown, of what evaluate measured.

distilwhisper evaluate --model distilled --teacher openai/whisper-large-v3 --data read=test_read calls=test_calls \
        --output evaluation.json
distilwhisper report --results evaluation.json --output_dir report
distilwhisper report --results evaluation.json --out_of_distribution calls --filter kept --training distilled \
        --output_dir report
distilwhisper report --results outputs/demo/results.json --output_dir report     # a report's own file, drawn anew

Needs the extra plots: pip install 'distilwhisper[plots]'; report.html is one file that needs no network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distilwhisper.evaluation_files import read_report


@dataclass
class Arguments:
    """Options of the command."""

    results: str = field(metadata={"help": "What evaluate --output wrote, or the results.json of a report."})
    output_dir: str = field(metadata={"help": "Where report.html, results.md and results.json are written."})
    title: str | None = field(default=None, metadata={"help": "Heading of the page."})
    out_of_distribution: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names of the sets that are unlike the training data; the others are like it.",
            "action": "extend",
        },
    )
    filter: str | None = field(
        default=None, metadata={"help": "What the filter kept: its output_dir, or the report.json in there."}
    )
    training: str | None = field(
        default=None, metadata={"help": "The output_dir of the training, or its trainer_state.json: adds its curves."}
    )


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Write the report; return its table, and where it is."""
    report = read_report(
        args.results,
        title=args.title,
        out_of_distribution=args.out_of_distribution,
        filter_report=args.filter,
        training=args.training,
    )
    page = report.write(args.output_dir)
    return f"{report}\n\nTable: {page.with_name('results.md')}\nPage with plots: {page}"

"""Write a saved student for another runtime, and check there that it gives the same tokens.

distilwhisper export --model_dir distilled --format ctranslate2 --dtype int8 --output_dir exported
distilwhisper export --model_dir examples/teacher --format transformers --output_dir outputs/exported
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distilwhisper.export.formats import FORMATS
from distilwhisper.loading import load_source


@dataclass
class Arguments:
    """Options of the command."""

    model_dir: str = field(metadata={"help": "Directory or Hub id of the model and its processor."})
    format: str = field(metadata={"help": f"One of {', '.join(FORMATS)}."})
    output_dir: str = field(metadata={"help": "Where to."})
    dtype: str | None = field(
        default=None, metadata={"help": "Number type or quantisation, such as float16 or int8; default: the format's."}
    )
    check: bool = field(default=True, metadata={"help": "Run the export and compare its tokens."})
    data: str | None = field(
        default=None, metadata={"help": "Recordings for the check, as source or source:split; default: built in."}
    )
    samples: int = field(default=8, metadata={"help": "How many of these recordings."})
    language: str | None = field(default=None, metadata={"help": "Their language; default: en."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is in output_dir."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Export, and return where to; the report of the check goes to the log."""
    from distilwhisper.export.exporting import export_model

    audio = None
    if args.data:
        data = load_source(args.data)
        audio = data.select(range(min(args.samples, len(data))))["audio"]
    export_model(
        args.model_dir,
        args.format,
        args.output_dir,
        check=args.check,
        audio=audio,
        language=args.language,
        overwrite=args.overwrite,
        **({"dtype": args.dtype} if args.dtype else {}),
    )
    return f"{args.format} export in {args.output_dir}"

"""Write a saved student for another runtime, and check there that it gives the same tokens.

python examples/export_model.py --model_dir distilled --format ctranslate2 --dtype int8 --output_dir exported
python examples/export_model.py --model_dir examples/teacher --format transformers --output_dir outputs/exported
"""

import logging
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from distilwhisper import export_model, load_speech
from distilwhisper.export import FORMATS


@dataclass
class Arguments:
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


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # for the report of the check
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    audio = None
    if args.data:
        source, _, split = args.data.partition(":")
        data = load_speech(source, split or None)
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
    print(f"{args.format} export in {args.output_dir}")


if __name__ == "__main__":
    main()

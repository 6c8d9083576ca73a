"""Transcribe a data set with the teacher.

python examples/pseudo_label.py --model openai/whisper-large-v3 --dataset mozilla-foundation/common_voice_17_0 \
        --config de --split train --language de --text_column sentence --output_dir labels --batch_size 64 --dtype
        bfloat16
python examples/pseudo_label.py --model examples/teacher --dataset recordings/ --language en --output_dir outputs/labels
accelerate launch examples/pseudo_label.py ...             # a process for each GPU
python examples/pseudo_label.py --streaming true ...       # Hub data sets and tar files, without a copy of them first

Whatever stops it, the same command goes on. Run it as often as you like at the same time, on all machines that share
the output directory: see examples/slurm/pseudo_label.sbatch.
"""

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser

from distilwhisper import PseudoLabeler, load_speech


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Hub id or local path of the teacher."})
    dataset: str = field(metadata={"help": "Hub id, saved data set, parquet, jsonl manifest or folder of recordings."})
    output_dir: str = field(metadata={"help": "Where the labelled data set is saved."})
    config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    split: str | None = field(default=None, metadata={"help": "Split, or several joined with +."})
    language: str | None = field(default=None, metadata={"help": "Language; default: detected for each recording."})
    task: str = field(default="transcribe", metadata={"help": "transcribe or translate."})
    return_timestamps: bool = field(default=True, metadata={"help": "Label with timestamps."})
    num_beams: int = field(default=1, metadata={"help": "1 is greedy."})
    batch_size: int = field(default=16, metadata={"help": "Recordings at a time."})
    dtype: str = field(default="float32", metadata={"choices": ["float32", "bfloat16", "float16"]})
    audio_column: str = field(default="audio", metadata={"help": "Column of the recordings."})
    text_column: str = field(
        default="text", metadata={"help": "Column of the reference transcripts, if there are any."}
    )
    id_column: str | None = field(default=None, metadata={"help": "Column that names the recordings in reports."})
    streaming: bool = field(default=False, metadata={"help": "Read a Hub data set or tar files row by row."})
    num_workers: int = field(default=2, metadata={"help": "Threads that read recordings while the model runs."})
    shard_rows: int = field(default=512, metadata={"help": "Rows that a process takes at a time."})
    speaker_column: str | None = field(
        default=None,
        metadata={"help": "Column of speakers; with it, labels get the speaker's previous text as prompt."},
    )


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    labeler = PseudoLabeler(
        args.model,
        language=args.language,
        task=args.task,
        return_timestamps=args.return_timestamps,
        num_beams=args.num_beams,
        batch_size=args.batch_size,
        dtype=getattr(torch, args.dtype),
    )
    options = {"streaming": True} if args.streaming else {}
    labeler.label(
        load_speech(args.dataset, args.split, config=args.config, audio_column=args.audio_column, **options),
        args.output_dir,
        audio_column=args.audio_column,
        text_column=args.text_column,
        id_column=args.id_column,
        speaker_column=args.speaker_column,
        num_workers=args.num_workers,
        shard_rows=args.shard_rows,
    )
    print(f"{labeler.report}\nsaved in {args.output_dir}")


if __name__ == "__main__":
    main()

r"""Transcribe a data set with the teacher.

distilwhisper pseudo-label --model openai/whisper-large-v3 --dataset mozilla-foundation/common_voice_17_0 --config de \
    --split train --language de --text_column sentence --output_dir labels --batch_size 64 --dtype bfloat16
distilwhisper pseudo-label --model examples/teacher --dataset recordings/ --language en --output_dir outputs/labels
accelerate launch -m distilwhisper pseudo-label ...   # a process for each GPU
distilwhisper pseudo-label --streaming true ...       # Hub data sets and tar files, without a copy of them first

Whatever stops it, the same command goes on. Run it as often as you like at the same time, on all machines that share
the output directory: see examples/slurm/pseudo_label.sbatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distilwhisper.loading import load_speech


@dataclass
class Arguments:
    """Options of the command."""

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
    token_budget: int | None = field(
        default=None,
        metadata={"help": "Positions of keys and values a layer for a batch, instead: recordings * (1500 + text)."},
    )
    engine: str = field(
        default="torch", metadata={"help": "torch, ctranslate2, or ctranslate2:int8 or another of its number types."}
    )
    dtype: str = field(
        default="float32", metadata={"choices": ["float32", "bfloat16", "float16"], "help": "Precision."}
    )
    audio_column: str = field(default="audio", metadata={"help": "Column of the recordings."})
    text_column: str = field(
        default="text", metadata={"help": "Column of the reference transcripts, if there are any."}
    )
    id_column: str | None = field(default=None, metadata={"help": "Column that names the recordings in reports."})
    streaming: bool = field(default=False, metadata={"help": "Read a Hub data set or tar files row by row."})
    num_workers: int = field(default=2, metadata={"help": "Threads that read recordings while the model runs."})
    shard_rows: int = field(default=512, metadata={"help": "Rows that a process takes at a time."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Keep what encoder and teacher compute here, for train --state_cache."}
    )
    encoder_dtype: str = field(default="model", metadata={"help": "Form of the encoder's output there: model or int8."})
    speaker_column: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns of speaker and recording; with them, labels get the text before as prompt."},
    )
    language_column: str | None = field(default=None, metadata={"help": "Column of languages, row by row."})
    report_to: str = field(default="none", metadata={"help": "wandb, tensorboard, all or none."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Label and save; return what became of the recordings."""
    import torch

    from distilwhisper.pseudo_labels import PseudoLabeler
    from distilwhisper.stage_trackers import track_labels

    labeler = PseudoLabeler(
        args.model,
        language=args.language,
        task=args.task,
        return_timestamps=args.return_timestamps,
        num_beams=args.num_beams,
        batch_size=args.batch_size,
        token_budget=args.token_budget,
        engine=args.engine,
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
        language_column=args.language_column,
        num_workers=args.num_workers,
        cache_dir=args.cache_dir,
        encoder_dtype=args.encoder_dtype,
        shard_rows=args.shard_rows,
    )
    track_labels(args.report_to, args.output_dir)
    return f"{labeler.report}\nsaved in {args.output_dir}"

r"""Cut long recordings at pauses into windows that the teacher hears at once.

distilwhisper segment --dataset podcasts/ --output_dir windows
distilwhisper pseudo-label --model openai/whisper-large-v3 --dataset windows --speaker_column recording_id \
    --output_dir labels
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from distilwhisper.loading import load_speech
from distilwhisper.segmentation import Segmenter


@dataclass
class Arguments:
    """Options of the command."""

    dataset: str = field(metadata={"help": "Folder of recordings, manifest, parquet, saved data set or Hub id."})
    output_dir: str = field(metadata={"help": "Where the windows are written; a killed run goes on there."})
    config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    split: str | None = field(default=None, metadata={"help": "Split, or several joined with +."})
    max_seconds: float = field(default=30.0, metadata={"help": "Longest window: what the teacher hears at once."})
    detector: str = field(
        default="silero",
        metadata={"choices": ["silero", "energy"], "help": "What finds speech; silero needs the extra vad."},
    )
    min_pause_s: float = field(default=0.3, metadata={"help": "Shortest pause at which is cut."})
    max_pause_s: float = field(default=2.0, metadata={"help": "Longest pause inside a window."})
    audio_column: str = field(default="audio", metadata={"help": "Column of the recordings."})
    text_column: str = field(default="text", metadata={"help": "Column of their transcripts, if there are any."})
    id_column: str | None = field(default=None, metadata={"help": "Column that names the recordings; default: id."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Cut and save; return the report."""
    segmenter = Segmenter(
        args.max_seconds, detector=args.detector, min_pause_s=args.min_pause_s, max_pause_s=args.max_pause_s
    )
    segmenter.segment(
        load_speech(args.dataset, args.split, config=args.config, audio_column=args.audio_column),
        args.output_dir,
        audio_column=args.audio_column,
        text_column=args.text_column,
        id_column=args.id_column,
    )
    report = Path(f"{args.output_dir.rstrip('/')}.report.json")  # beside: only rows may lie in a folder of rows
    report.write_text(segmenter.report.to_json() + "\n")
    problems = ["set aside: {id}: {message}".format(**problem) for problem in segmenter.set_aside]
    return "\n".join([*problems, f"{segmenter.report}\nsaved in {args.output_dir}, {report}"])

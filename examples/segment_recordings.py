"""Cut long recordings at pauses into windows that the teacher hears at once.

python examples/segment_recordings.py --dataset podcasts/ --output_dir windows
python examples/pseudo_label.py --model openai/whisper-large-v3 --dataset windows --speaker_column recording_id \
        --output_dir labels
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from distilwhisper import Segmenter, load_speech


@dataclass
class Arguments:
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


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
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
    for problem in segmenter.set_aside:
        print("set aside: {id}: {message}".format(**problem))
    print(f"{segmenter.report}\nsaved in {args.output_dir}, {report}")


if __name__ == "__main__":
    main()

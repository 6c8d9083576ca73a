"""Transcribe recordings of any length, and write text, segments or words.

    python examples/transcribe.py --model examples/teacher recording.wav --language en
    python examples/transcribe.py --model openai/whisper-large-v3 talk.m4a --long_form sequential --fallback
    python examples/transcribe.py --model openai/whisper-large-v2 --assistant distil-whisper/distil-large-v2 folder/

Each argument is a file, a directory of files, a manifest or a data set; one line of JSON a recording is written as soon
as the recording is done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from datasets.utils import tqdm

from distilwhisper import AudioError, Transcriber, load_speech
from distilwhisper.loading import AUDIO_SUFFIXES

WHISPERS_FALLBACK = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 2.4,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", help="files, directories, manifests or data sets")
    parser.add_argument("--model", required=True, help="local directory or Hub id")
    parser.add_argument("--assistant", help="a student of the model, for speculative decoding")
    parser.add_argument("--language", help="default: detected")
    parser.add_argument("--task", default="transcribe", choices=["transcribe", "translate"])
    parser.add_argument("--long_form", default="chunked", choices=["chunked", "sequential"])
    parser.add_argument("--chunk_length_s", type=float, help="default: the model's window")
    parser.add_argument("--fallback", action="store_true", help="Whisper's temperatures and thresholds")
    parser.add_argument("--condition_on_prev", action="store_true", help="prompt each window with the text before it")
    parser.add_argument("--timestamps", choices=["none", "segments", "words"], default="segments")
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output", type=Path, help="file of JSON lines; default: standard output")
    args = parser.parse_args(argv)
    names = ("assistant", "language", "task", "long_form", "chunk_length_s", "condition_on_prev", "num_beams")
    transcriber = Transcriber(
        args.model,
        **{name: getattr(args, name) for name in names},
        batch_size=args.batch_size,
        return_timestamps=args.timestamps != "none",
        word_timestamps=args.timestamps == "words",
        **(WHISPERS_FALLBACK if args.fallback else {}),
    )
    output = args.output.open("w", encoding="utf-8") if args.output else sys.stdout
    for name, result in tqdm(transcriber.transcribe_many(recordings_of(args.recordings)), "Transcribing"):
        line = {"recording": name}
        if isinstance(result, AudioError):
            line |= {"error": result.reason, "message": str(result)}
        else:
            line |= {name: value for name, value in asdict(result).items() if name != "tokens"}
        print(json.dumps(line, ensure_ascii=False), file=output, flush=True)
    if args.assistant:
        print(f"{transcriber.speculation.acceptance_rate:.0%} of the drafted tokens were accepted", file=sys.stderr)


def recordings_of(sources: list[str]) -> Iterator[tuple[str, object]]:
    for source in sources:
        if Path(source).is_file() and Path(source).suffix.lower() in AUDIO_SUFFIXES:
            yield source, source
        else:
            for number, row in enumerate(load_speech(source)):
                yield f"{source}:{row.get('id', number)}", row["audio"]


if __name__ == "__main__":
    main()

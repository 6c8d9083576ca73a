"""Transcribe recordings of any length: a line of JSON for each as soon as it is done, with text, segments or words.

distilwhisper transcribe --model examples/teacher --audio recording.wav --language en
distilwhisper transcribe --model openai/whisper-large-v3 --audio talk.m4a --long_form sequential --fallback
distilwhisper transcribe --model openai/whisper-large-v2 --assistant distil-whisper/distil-large-v2 --audio folder/
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets.utils import tqdm

from distilwhisper.audio import AudioError
from distilwhisper.loading import AUDIO_SUFFIXES, load_speech

WHISPERS_FALLBACK: dict[str, Any] = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 2.4,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}


@dataclass
class Arguments:
    """Options of the command."""

    model: str = field(metadata={"help": "Local directory or Hub id."})
    audio: list[str] = field(metadata={"help": "Files, directories, manifests or data sets.", "action": "extend"})
    assistant: str | None = field(default=None, metadata={"help": "A student of it, for speculative decoding."})
    language: str | None = field(default=None, metadata={"help": "Language; default: detected."})
    task: str = field(default="transcribe", metadata={"help": "transcribe or translate."})
    long_form: str = field(
        default="chunked",
        metadata={"choices": ["chunked", "sequential"], "help": "What is done with more than a window."},
    )
    chunk_length_s: float | None = field(default=None, metadata={"help": "Length of a chunk; default: the window."})
    fallback: bool = field(default=False, metadata={"help": "Whisper's temperatures and thresholds."})
    condition_on_prev: bool = field(default=False, metadata={"help": "Prompt each window with the text before it."})
    timestamps: str = field(default="segments", metadata={"choices": ["none", "segments", "words"], "help": "Of what."})
    num_beams: int = field(default=1, metadata={"help": "1 is greedy."})
    batch_size: int = field(default=16, metadata={"help": "Windows at a time."})
    output: str | None = field(default=None, metadata={"help": "File of JSON lines; default: standard output."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> None:
    """Transcribe."""
    from distilwhisper.transcription import Transcriber

    names = ("assistant", "language", "task", "long_form", "chunk_length_s", "condition_on_prev", "num_beams")
    transcriber = Transcriber(
        args.model,
        **{name: getattr(args, name) for name in names},
        batch_size=args.batch_size,
        return_timestamps=args.timestamps != "none",
        word_timestamps=args.timestamps == "words",
        **(WHISPERS_FALLBACK if args.fallback else {}),
    )
    with ExitStack() as stack:
        output = stack.enter_context(Path(args.output).open("w", encoding="utf-8")) if args.output else sys.stdout
        for name, result in tqdm(transcriber.transcribe_many(_recordings(args.audio)), "Transcribing"):
            line: dict[str, Any] = {"recording": name}
            if isinstance(result, AudioError):
                line |= {"error": result.reason, "message": str(result)}
            else:
                line |= {key: value for key, value in asdict(result).items() if key != "tokens"}
            output.write(json.dumps(line, ensure_ascii=False) + "\n")
            output.flush()
    if args.assistant:
        sys.stderr.write(f"{transcriber.speculation.acceptance_rate:.0%} of the drafted tokens were accepted\n")


def _recordings(sources: list[str]) -> Iterator[tuple[str, object]]:
    for source in sources:
        if Path(source).is_file() and Path(source).suffix.lower() in AUDIO_SUFFIXES:
            yield source, source
        else:
            for number, row in enumerate(load_speech(source)):
                yield f"{source}:{row.get('id', number)}", row["audio"]

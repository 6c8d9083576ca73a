"""Export a model in every format and number type: size, processor time on this machine, word error rate.

python examples/compare_exports.py --model_dir outputs/demo/distilled --output_dir outputs/exports
python examples/compare_exports.py --model_dir distilled --data test_read/ --kinds ctranslate2:int8 transformers:float32

Time is the processor's, summed over threads: what else the machine does hardly matters. It is the median difference of
two runs, all recordings in one batch and the first alone, for each further recording: the start of the runtime and
loading are left out.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from transformers import HfArgumentParser

from distilwhisper import ErrorCounts, Transcriber, export_model, get_normalizer, load_audio, load_speech
from distilwhisper.export import FORMATS
from distilwhisper.export.runtimes import run_format
from distilwhisper.metrics import count_normalized_errors
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus
from distilwhisper.tables import markdown_table

KINDS = [
    *(f"transformers:{kind}" for kind in ("float32", "float16")),
    *(f"openai-whisper:{kind}" for kind in ("float32", "float16")),
    *(f"ctranslate2:{kind}" for kind in ("float32", "float16", "int8")),
    *(f"ggml:{kind}" for kind in ("float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")),
    *(f"onnx:{kind}" for kind in ("float32", "q8")),
]


@dataclass
class Arguments:
    model_dir: str = field(metadata={"help": "Directory or Hub id of the model and its processor."})
    output_dir: str = field(default="outputs/exports", metadata={"help": "Directory of the exports and of the table."})
    kinds: list[str] = field(
        default_factory=lambda: KINDS, metadata={"help": f"As format:dtype, of the formats {', '.join(FORMATS)}."}
    )
    data: str | None = field(
        default=None, metadata={"help": "Recordings with transcripts, as source or source:split; default: synthesised."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the reference transcripts."})
    samples: int = field(default=50, metadata={"help": "How many of the recordings."})
    language: str = field(default="en", metadata={"help": "Their language."})
    resume: bool = field(default=False, metadata={"help": "Go on where a run with these very options was stopped."})
    repeats: int = field(default=2, metadata={"help": "How often the time is taken."})


def seconds_of(call) -> float:
    """Return the processor time of a call and of the processes that it starts."""
    before = os.times()
    call()
    return sum(os.times()[:4]) - sum(before[:4])


def measure(kind: str, args: Arguments, transcriber: Transcriber, audio: list, references: list[str]) -> dict:
    format, _, dtype = kind.partition(":")
    export_dir = Path(args.output_dir, kind.replace(":", "-"))
    options = {"dtype": dtype} if dtype else {}
    export_model(args.model_dir, format, export_dir, audio=audio[:4], language=args.language, overwrite=True, **options)
    takes = getattr(FORMATS[format].load(), "TAKES", "features")
    if takes == "states":
        raise ValueError(f"{format} hears nothing by itself, so that it has no word error rate")
    inputs = audio if takes == "audio" else list(transcriber.extract_features(audio).numpy())
    prompt = transcriber.tokens.prefix(args.language)
    limit = min(200, transcriber.model.config.max_target_positions - len(prompt))

    def run(first: int) -> list[list[int]]:
        return run_format(format, export_dir, inputs[:first], prompt, limit)[0]

    texts = transcriber.processor.tokenizer.batch_decode(run(len(inputs)), skip_special_tokens=True)
    normalize = get_normalizer(args.language)
    pairs = zip(references, texts, strict=True)
    errors = sum((count_normalized_errors(*pair, normalize) for pair in pairs), ErrorCounts())
    times = [seconds_of(lambda: run(len(inputs))) - seconds_of(lambda: run(1)) for _ in range(args.repeats)]
    parity = json.loads((export_dir / "parity.json").read_text(encoding="utf-8"))
    return {
        "kind": kind,
        "tokens": parity["tokens"],
        "equal": parity["equal"],
        "megabytes": sum(file.stat().st_size for file in export_dir.rglob("*") if file.is_file()) / 1e6,
        "ms_per_recording": 1000 * median(times) / (len(inputs) - 1),
        "wer": errors.wer,
    }


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    transcriber = Transcriber(args.model_dir, language=args.language, device="cpu")
    if args.data:
        source, _, split = args.data.partition(":")
        data = load_speech(source, split or None)
    else:
        data = synthesize_corpus(CorpusConfig(train=0, validation=0, test=args.samples, ood_accents=0, ood_noise=0))[
            "test"
        ]
    data = data.select(range(min(args.samples, len(data))))
    audio = [load_audio(one, max_duration_s=transcriber.window_s) for one in data["audio"]]
    file = Path(args.output_dir, "comparison.json")
    results = json.loads(file.read_text(encoding="utf-8")) if args.resume and file.exists() else []
    for kind in args.kinds:
        if kind not in {result["kind"] for result in results}:
            results.append(measure(kind, args, transcriber, audio, list(data[args.text_column])))
            file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    rows = [["export", "size (MB)", "processor time of a recording (ms)", "WER (%)", "tokens as in Transformers"]]
    for result in results:
        numbers = (result["megabytes"], result["ms_per_recording"], 100 * result["wer"])
        equal = f"{result['equal']} of {result['tokens']}"
        rows.append([result["kind"], *(f"{number:.1f}" for number in numbers), equal])
    print(markdown_table(rows))


if __name__ == "__main__":
    main()

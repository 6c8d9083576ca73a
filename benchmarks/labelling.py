"""Measure labelling against the published loop, written plainly: same teacher, same recordings, on the CPU.

    python benchmarks/labelling.py                       # a table; writes outputs/labelling.json
    python benchmarks/labelling.py --model PATH --clips 128 --batch_size 8 --ctranslate2

The published loop takes fixed batches in the order given, reads row by row between them, and has every row of a batch
wait for the longest. Both start with recordings in memory and end with text; ours also writes its directory. The
recordings are of mixed lengths: a third are sentences, a third beginnings of some, a third two in one where they fit.
"""

import argparse
import copy
import json
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Audio, Dataset, disable_progress_bars
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper import PseudoLabeler, load_audio
from distilwhisper.audio import audio_duration, encode_audio
from distilwhisper.export.ctranslate2 import write
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus

TEACHER = Path(__file__).parents[1] / "examples" / "teacher"
RATE = 16_000


def mixed(clips: int, window_s: float, seed: int = 0) -> Dataset:
    """Recordings of all lengths in a random order: sentences, beginnings of sentences, and two sentences in one."""
    sizes = CorpusConfig(train=2 * clips, validation=0, test=0, ood_accents=0, ood_noise=0)
    sentences = iter([load_audio(row["audio"]) for row in synthesize_corpus(sizes)["train"]])
    chance, longest, made = random.Random(seed), round(window_s * RATE), list[bytes]()
    for number in range(clips):
        audio = next(sentences)
        if number % 3 == 1:
            audio = audio[: round(chance.uniform(0.3, 0.7) * len(audio))]
        elif number % 3 == 2 and len(both := np.concatenate([audio, next(sentences)])) <= longest:
            audio = both
        made.append(encode_audio(audio, RATE))
    chance.shuffle(made)
    rows = {"audio": [{"bytes": audio, "path": None} for audio in made], "id": list(range(clips))}
    return Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))


def published(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    data: Dataset,
    batch_size: int,
    cache_implementation: str | None = None,
) -> list[str]:
    """Fixed batches in the order given, `generate`, and one decode a row."""
    texts = []
    window = 2 * model.config.max_source_positions * processor.feature_extractor.hop_length
    for start in range(0, len(data), batch_size):
        features = []
        for row in data.select(range(start, min(start + batch_size, len(data)))):
            audio = load_audio(row["audio"])
            inputs = processor.feature_extractor(audio, sampling_rate=16_000, max_length=window, return_tensors="pt")
            features.append(inputs.input_features)
        with torch.no_grad():
            rows = model.generate(
                torch.cat(features),
                language="en",
                task="transcribe",
                return_timestamps=False,
                cache_implementation=cache_implementation,
            )
        texts += [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    return texts


def ours(labeler: PseudoLabeler, data: Dataset, workers: int) -> list[str]:
    """The labeller, into a directory."""
    with tempfile.TemporaryDirectory() as folder:
        return list(labeler.label(data, folder, num_workers=workers)["whisper_transcript"])


def widened(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Return the same weights with a window of 30 s, the only one that faster-whisper knows."""
    config = copy.deepcopy(model.config)
    config.max_source_positions = 1500
    wide = WhisperForConditionalGeneration(config)
    positions = {"model.encoder.embed_positions.weight": wide.model.encoder.embed_positions.weight}
    wide.load_state_dict({**model.state_dict(), **positions})
    wide.generation_config = model.generation_config
    return wide.eval(), WhisperProcessor(WhisperFeatureExtractor(feature_size=80), processor.tokenizer)


class FasterWhisper:
    """The same weights in faster-whisper, one recording after the other: its batches are of one recording's windows."""

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path) -> None:
        from faster_whisper import WhisperModel

        write(model, processor, folder / "model", dtype="float32")
        threads = torch.get_num_threads()
        self.model = WhisperModel(str(folder / "model"), device="cpu", compute_type="float32", cpu_threads=threads)

    def __call__(self, data: Dataset) -> list[str]:
        """Label greedily, without timestamps and without trying again at other temperatures."""
        greedy = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "condition_on_previous_text": False}
        texts = []
        for row in data:
            segments, _ = self.model.transcribe(load_audio(row["audio"]), language="en", task="transcribe", **greedy)
            texts.append("".join(segment.text for segment in segments).strip())
        return texts


def timed(run: Callable[[], list[str]], repeats: int) -> tuple[dict[str, float], list[str]]:
    """Return the median times of a call, by the clock and of the processor, and what it returned."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        texts = run()
        times.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    clock, processor = (statistics.median(column) for column in zip(*times, strict=True))
    return {"seconds": clock, "cpu_s": processor}, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TEACHER))
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true", help="measure ours in bfloat16, too")
    parser.add_argument("--compile", action="store_true", help="measure a static cache and torch.compile, too")
    parser.add_argument("--wide", action="store_true", help="give a narrow teacher a window of 30 s")
    parser.add_argument("--token_budget", type=int, help="measure ours with batches of this budget, too")
    parser.add_argument(
        "--ctranslate2",
        action="store_true",
        help="measure ours with CTranslate2, and faster-whisper where the window is 30 s",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/labelling.json"))
    args = parser.parse_args()
    disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)
    processor = WhisperProcessor.from_pretrained(args.model)
    model = WhisperForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    window_s = 2 * model.config.max_source_positions * processor.feature_extractor.hop_length / RATE
    data = mixed(args.clips, window_s)
    if args.wide:
        model, processor = widened(model, processor)
    lengths, size = [audio_duration(row["audio"], RATE) or 0.0 for row in data], args.batch_size
    seconds = sum(lengths)
    runs = {"published loop": lambda: published(model, processor, data, size)}
    labelers: dict[str, dict[str, Any]] = {"PseudoLabeler": {}}
    if args.bfloat16:
        labelers["bfloat16"] = {"dtype": torch.bfloat16}
    if args.token_budget:
        labelers["token budget"] = {"token_budget": args.token_budget}
    if args.ctranslate2:
        labelers |= {engine: {"engine": engine} for engine in ("ctranslate2", "ctranslate2:int8_float32")}
    if args.compile:
        runs["published loop, static cache"] = lambda: published(model, processor, data, size, "static")
        labelers["torch.compile"] = {}
    for name, options in labelers.items():
        teacher = copy.deepcopy(model)
        if name == "torch.compile":
            teacher.model.decoder.compile(dynamic=True)
        labeler = PseudoLabeler(teacher, processor, language="en", batch_size=size, **options)
        runs[name] = partial(ours, labeler, data, args.workers)
    if args.ctranslate2 and model.config.max_source_positions == 1500:
        with tempfile.TemporaryDirectory() as folder:
            runs["faster-whisper"] = partial(FasterWhisper(model, processor, Path(folder)), data)
    results, baseline = {}, None
    print(f"{args.clips} clips, {seconds:.0f} s, lengths {min(lengths):.1f} to {max(lengths):.1f} s")
    print("| | seconds | x real time | faster | CPU seconds | of the loop's | same text |")
    print("|:--|--:|--:|--:|--:|--:|--:|", flush=True)
    for name, run in runs.items():
        run()  # once to warm up
        times, texts = timed(run, args.repeats)
        baseline = baseline or (times, texts)
        same = sum(one == other for one, other in zip(texts, baseline[1], strict=True))
        faster, cpu = (baseline[0][key] / times[key] for key in ("seconds", "cpu_s"))
        results[name] = {**times, "faster": faster, "less_cpu": cpu, "same": same}
        cells = f"{times['seconds']:.2f} | {times['seconds'] / seconds:.4f} | {faster:.2f}x | {times['cpu_s']:.2f} | "
        cells += f"1/{cpu:.2f} | {same} of {len(texts)}"
        print(f"| {name} | {cells} |", flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"audio_s": seconds, "arguments": vars(args), "machine": platform.processor(), "results": results}
        args.output.write_text(json.dumps(report, indent=2, default=str))


if __name__ == "__main__":
    main()

"""Measure labelling against the published loop, written plainly: same teacher, same recordings, on the CPU.

    python benchmarks/labelling.py                       # a table; writes outputs/labelling.json
    python benchmarks/labelling.py --model PATH --clips 128 --batch_size 8 --ctranslate2

The published loop takes fixed batches in the order given, reads row by row between them, and has every row of a batch
wait for the longest. Both start with recordings in memory and end with text; ours also writes its directory.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Audio, Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper import PseudoLabeler, load_audio
from distilwhisper.audio import audio_duration, encode_audio
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
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, data: Dataset, batch_size: int
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
            rows = model.generate(torch.cat(features), language="en", task="transcribe", return_timestamps=False)
        texts += [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    return texts


def ours(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, data: Dataset, batch_size: int, workers: int
) -> list[str]:
    """The labeller, into a directory."""
    with tempfile.TemporaryDirectory() as folder:
        labeler = PseudoLabeler(model, processor, language="en", batch_size=batch_size)
        return list(labeler.label(data, folder, num_workers=workers)["whisper_transcript"])


class CTranslate2:
    """The same weights in CTranslate2, with our batches: of like length, and features as we make them."""

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path) -> None:
        import ctranslate2

        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        processor.feature_extractor.save_pretrained(folder / "model")
        copied = ["tokenizer.json"]
        ctranslate2.converters.TransformersConverter(str(folder / "model"), copy_files=copied).convert(
            str(folder / "ct2")
        )
        threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        self.engine = ctranslate2.models.Whisper(str(folder / "ct2"), intra_threads=threads)
        self.window = 2 * model.config.max_source_positions * processor.feature_extractor.hop_length
        self.storage, self.processor = ctranslate2.StorageView, processor

    def __call__(self, data: Dataset, batch_size: int) -> list[str]:
        """Label in batches of like length."""
        audio = [load_audio(row["audio"]) for row in data]
        order = sorted(range(len(audio)), key=lambda index: len(audio[index]))
        texts = [""] * len(audio)
        prompt = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            features = self.processor.feature_extractor(
                [audio[index] for index in part], sampling_rate=16_000, max_length=self.window, return_tensors="np"
            ).input_features
            view = self.storage.from_array(features)
            results = self.engine.generate(view, [prompt] * len(part), beam_size=1, max_length=448)
            for index, result in zip(part, results, strict=True):
                texts[index] = self.processor.tokenizer.decode(
                    result.sequences_ids[0], skip_special_tokens=True
                ).strip()
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
    parser.add_argument("--ctranslate2", action="store_true", help="measure CTranslate2, too")
    parser.add_argument("--output", type=Path, default=Path("outputs/labelling.json"))
    args = parser.parse_args()
    processor = WhisperProcessor.from_pretrained(args.model)
    model = WhisperForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    window_s = 2 * model.config.max_source_positions * processor.feature_extractor.hop_length / RATE
    data = mixed(args.clips, window_s)
    lengths, size = [audio_duration(row["audio"], RATE) or 0.0 for row in data], args.batch_size
    seconds = sum(lengths)
    runs: dict[str, Callable[[], list[str]]] = {
        "published loop": lambda: published(model, processor, data, size),
        "PseudoLabeler": lambda: ours(model, processor, data, size, args.workers),
    }
    if args.bfloat16:
        half = WhisperForConditionalGeneration.from_pretrained(args.model, dtype=torch.bfloat16).eval()
        runs["PseudoLabeler, bfloat16"] = lambda: ours(half, processor, data, size, args.workers)
    if args.ctranslate2:
        with tempfile.TemporaryDirectory() as folder:
            engine = CTranslate2(model, processor, Path(folder))
        runs["CTranslate2, float32"] = lambda: engine(data, size)
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

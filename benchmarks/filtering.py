"""Measure the filter against the published per-sample loop, on the same pairs, one process each.

    python benchmarks/filtering.py                              # 10,000 pairs; prints JSON
    python benchmarks/filtering.py --pairs 1000 --num_proc 2    # and ours over two processes, counted apart

The references are English sentences of the Python standard library's docstrings (seeded order, 5 to 40 words, about
13,000 distinct words). Of the labels, 15 % are the reference letter for letter, 35 % differ in case and punctuation
alone, and 50 % have wrong, lost or added words, 3 to 40 % of them: a threshold of 10 % drops 38 % (45 % in
the paper's table 10). The published loop is timed with jiwer called directly; the script itself calls
``evaluate``, which adds an Arrow file and a lock for each sample (``--evaluate`` times it on 200 pairs).
"""

import argparse
import ast
import json
import random
import re
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jiwer
from datasets import Dataset, disable_progress_bars
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from distilwhisper import WERFilter
from distilwhisper.metrics import normalized_words, word_distance
from distilwhisper.normalizers import _english_spelling, get_normalizer

THRESHOLD = 0.10
SENTENCE = re.compile(r"[A-Z][A-Za-z0-9,.';:$%!?-]*(?: [A-Za-z0-9,.';:$%!?-]+){4,39}")


def sentences() -> Iterator[str]:
    """Yield the sentences of the standard library's texts."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests"}.isdisjoint(file.parts) and "lib2to3" not in file.parts:
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 60:
                    for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", node.value):
                        if SENTENCE.fullmatch(sentence := " ".join(part.split())):
                            yield sentence


def corpus(pairs: int, seed: int = 0) -> Dataset:
    """Return references and labels: each reference is one to three sentences, to 12 words or more."""
    rng = random.Random(seed)
    pool = list(dict.fromkeys(sentences()))
    vocabulary = sorted({word for sentence in pool for word in sentence.split()})
    references, labels = [], []
    for _ in range(pairs):
        words = rng.choice(pool).split()
        while len(words) < 12:
            words += rng.choice(pool).split()
        references.append(" ".join(words))
        labels.append(_label(words, rng, vocabulary))
    return Dataset.from_dict({"text": references, "whisper_transcript": labels})


def _label(words: list[str], rng: random.Random, vocabulary: list[str]) -> str:
    kind = rng.random()
    if kind < 0.15:
        return " ".join(words)
    if kind < 0.5:
        return " " + " ".join(words).rstrip(".").replace(",", "").capitalize()
    rate = rng.uniform(0.03, 0.4)
    kept = [
        rng.choice([[], [rng.choice(vocabulary)], [word, word]]) if rng.random() < rate else [word] for word in words
    ]
    return " ".join(word for part in kept for word in part)


def published(data: Dataset, compute: Callable[[str, str], float]) -> list[bool]:
    """Filter as the published script does: one sample after the other, both texts normalised, one metric call each."""
    normalizer = EnglishTextNormalizer(_english_spelling())

    def is_wer_in_range(ground_truth: str, whisper_transcript: str) -> bool:
        if whisper_transcript.upper() == whisper_transcript:
            return False
        norm_ground_truth = normalizer(ground_truth)
        if len(norm_ground_truth) > 0 and whisper_transcript is not None:
            return 100 * compute(norm_ground_truth, normalizer(whisper_transcript)) < 100 * THRESHOLD
        return False

    return [is_wer_in_range(row["text"], row["whisper_transcript"]) for row in data]


def with_evaluate() -> Callable[[str, str], float]:
    """Return a metric call through ``evaluate``, as the script has it, with jiwer inside."""
    import datasets
    import evaluate

    class WordErrorRate(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            text = datasets.Value("string")
            features = datasets.Features({"predictions": text, "references": text})
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions: list[str], references: list[str]) -> float:
            return jiwer.wer(references, predictions)

    metric = WordErrorRate(cache_dir=tempfile.mkdtemp())
    return lambda reference, label: metric.compute(references=[reference], predictions=[label])


def timed(work: Callable[[], object], repeats: int = 3) -> tuple[float, object]:
    """Return the shortest processor time of a call, in seconds, and its last result."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return min(times), result


def parts_of_ours(data: Dataset) -> dict[str, float]:
    """Return microseconds a pair of normalising, with an empty memory and a full one, and of counting errors."""
    pairs = list(zip(data["text"], data["whisper_transcript"], strict=True))
    texts = [text for pair in pairs for text in pair]
    cold, _ = timed(lambda: list(map(get_normalizer("en"), texts)))
    normalizer = get_normalizer("en")
    words = [[normalized_words(text, normalizer) for text in pair] for pair in pairs]
    warm, _ = timed(lambda: list(map(normalizer, texts)))
    count, _ = timed(lambda: [word_distance(*pair) for pair in words])
    return {
        name: 1e6 * seconds / len(data) for name, seconds in (("normalise", cold), ("again", warm), ("count", count))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--num_proc", type=int, default=None)
    parser.add_argument("--evaluate", action="store_true")
    args = parser.parse_args()
    disable_progress_bars()
    data = corpus(args.pairs)
    WERFilter().filter(data.select(range(10)))  # imports
    theirs, kept = timed(lambda: published(data, jiwer.wer), repeats=1)
    ours, filtered = timed(lambda: WERFilter(THRESHOLD).filter(data.add_column("row", list(range(len(data))))))
    rows = set(filtered["row"])
    differ = [row for row, keep in enumerate(kept) if keep != (row in rows)]
    rates = [WERFilter().wer(data[row]["text"], data[row]["whisper_transcript"]) for row in differ]
    result = {
        "pairs": len(data),
        "kept": len(filtered) / len(data),
        "published_us": 1e6 * theirs / len(data),
        "ours_us": 1e6 * ours / len(data),
        "ratio": theirs / ours,
        "ours_parts_us": parts_of_ours(data),
        "decisions_that_differ": len(differ),
        "of_these_at_the_threshold_exactly": sum(rate == THRESHOLD for rate in rates),
    }
    if args.evaluate:
        few = data.select(range(200))
        seconds, _ = timed(lambda: published(few, with_evaluate()), repeats=1)
        result["published_with_evaluate_us"] = 1e6 * seconds / 200
    if args.num_proc:
        start = time.perf_counter()
        WERFilter(THRESHOLD).filter(data, num_proc=args.num_proc)
        result["ours_wall_us_of_processes"] = {args.num_proc: 1e6 * (time.perf_counter() - start) / len(data)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

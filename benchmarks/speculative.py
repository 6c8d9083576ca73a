"""Measure speculative decoding: a teacher alone against the teacher with its student as assistant.

    python examples/demo.py --output_dir outputs/demo
    python benchmarks/speculative.py --assistant outputs/demo/distilled

Every run is checked: the tokens with the assistant are the teacher's own. Both take turns, batch by batch, and the
median of the repeats counts, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch

from distilwhisper import Transcriber, load_audio
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", default="examples/teacher", help="local directory or Hub id")
    parser.add_argument("--assistant", required=True, help="local directory or Hub id of its student")
    parser.add_argument("--samples", type=int, default=20, help="synthetic utterances")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--draft_tokens", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--return_timestamps", action="store_true")
    args = parser.parse_args(argv)
    config = CorpusConfig(train=0, validation=0, test=args.samples, ood_accents=0, ood_noise=0)
    audio = [load_audio(row["audio"]) for row in synthesize_corpus(config)["test"]]
    rows = []
    for size in args.batch_size:
        for drafts in args.draft_tokens:
            rows.append(compare(args, audio, size, drafts))
            print(json.dumps(rows[-1]), flush=True)
    return {"threads": torch.get_num_threads(), "runs": rows}


def compare(args: argparse.Namespace, audio: list, batch_size: int, draft_tokens: int) -> dict:
    settings = {"language": "en", "return_timestamps": args.return_timestamps, "batch_size": batch_size}
    alone = Transcriber(args.teacher, **settings)
    assisted = Transcriber(args.teacher, assistant=args.assistant, draft_tokens=draft_tokens, **settings)
    seconds: list[list[float]] = [[], []]
    for start in range(0, len(audio), batch_size):
        batch = audio[start : start + batch_size]
        features = alone.extract_features(batch)
        runs: list[list[float]] = [[], []]
        for _ in range(args.repeats + 1):
            tokens = []
            for number, transcriber in enumerate((alone, assisted)):
                started = time.perf_counter()
                transcripts = transcriber.transcribe_features(features)
                runs[number].append(time.perf_counter() - started)
                tokens.append([transcript.tokens for transcript in transcripts])
            assert tokens[0] == tokens[1], f"the tokens differ in the batch that begins at {start}"
        for number in range(2):
            seconds[number].append(median(runs[number][1:]))  # the first is the warm-up
    totals = [sum(values) for values in seconds]
    return {
        "batch_size": batch_size,
        "draft_tokens": draft_tokens,
        "teacher_s": round(totals[0], 3),
        "assisted_s": round(totals[1], 3),
        "speed_up": round(totals[0] / totals[1], 2),
        "acceptance_rate": round(assisted.speculation.acceptance_rate, 3),
    }


if __name__ == "__main__":
    main()

"""Measure ours against the plain recipe, side by side, each measurement in a process of its own.

    make bench                                     # everything, a quarter of an hour; writes outputs/bench.json
    python benchmarks/run.py --only loss           # one section: loss growth peers step step_bf16 cached demo loader
    python benchmarks/run.py --only demo --output outputs/demo.json

Times are medians; memory is the peak of the process beyond what it held before the first call. The peers' losses are
measured where they are installed (pip install liger-kernel trl). On a machine that others use, set OMP_NUM_THREADS=1:
then the processor's time of one thread is measured, in place of the clock's.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import clock, in_process, machine, measure, own_mb, peak_mb
from plain import plain_loss, plain_step
from shapes import FULL_LENGTH, batch, cached, models

from distilwhisper.costs import WhisperShape, loss_bytes, plain_loss_bytes, step_cost
from distilwhisper.losses import distillation_loss

VOCABULARY = 51_866
REPOSITORY = Path(__file__).parents[1]
REPEATS: int | None = None


# ---- what is measured, each in its own process -----------------------------------------------------------------------


def loss(which: str, rows: int, width: int = 1_280, repeats: int = 3) -> dict:
    """Time loss and backward on hidden states of a large model, fp32."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    head = torch.randn(VOCABULARY, width).mul_(0.02).requires_grad_()
    teacher_hidden, teacher_head = torch.randn(rows, width), torch.randn(VOCABULARY, width).mul_(0.02)
    labels = torch.randint(VOCABULARY, (rows,))
    compute = {"plain": None, "ours": None, "liger": _liger, "trl": _trl}[which]

    def run() -> float:
        hidden.grad = head.grad = None
        if which == "plain":
            value = plain_loss(hidden @ head.T, teacher_hidden @ teacher_head.T, labels)
        elif which == "ours":
            value = distillation_loss(hidden, head, teacher_hidden, teacher_head, labels).total
        else:
            value = compute(hidden, head, teacher_hidden, teacher_head, labels)
        value.backward()
        return value.item()

    return measure(run, repeats) | {"loss": run()}


def _liger(hidden: Any, head: Any, teacher_hidden: Any, teacher_head: Any, labels: Any) -> Any:
    # Its generalised divergence at beta 0 is the forward KL, without the factor T^2 of the gradient.
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    function = LigerFusedLinearJSDLoss(
        weight_hard_loss=1.0, weight_soft_loss=0.8, beta=0.0, temperature=2.0, compiled=False, chunk_size=256
    )
    result = function(hidden, head, teacher_hidden, teacher_head, labels)
    return result[0] if isinstance(result, tuple) else result


def _trl(hidden: Any, head: Any, teacher_hidden: Any, teacher_head: Any, labels: Any) -> Any:
    # On whole logits, divergence alone: it has no cross-entropy.
    from trl.experimental.gkd import GKDTrainer

    logits, teacher_logits = hidden @ head.T, teacher_hidden @ teacher_head.T
    return GKDTrainer.generalized_jsd_loss(logits[None], teacher_logits[None], labels[None], beta=0.0, temperature=2.0)


def step(
    which: str, *, size: str = "small", batch_size: int = 8, bf16: bool = False, repeats: int = 2, least_s: float = 0.0
) -> dict:
    """Time a whole update: forward, backward, clipping, AdamW; 30 s of audio, labels of 20 to 120 tokens."""
    from distilwhisper.cpu_memory import keep_freed_memory
    from distilwhisper.modeling import DistillationStep, Objective, place_teacher

    if which != "plain":
        keep_freed_memory()  # as the trainer does
    teacher, student = models(size)
    dtype = torch.bfloat16 if bf16 else torch.float32
    ours = DistillationStep(student, teacher, Objective())
    place_teacher(teacher, torch.device("cpu"), dtype)
    lengths = torch.linspace(20, 120, batch_size).int().tolist()
    made = batch(student.config, lengths, FULL_LENGTH if which == "plain" else max(lengths))
    caches = {"cached": which in ("cached", "top_k"), "top_k": which == "top_k"}
    if caches["cached"]:
        made = cached(student.config, made, dtype, top_k=64 if caches["top_k"] else 0)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = plain_step(student, teacher, made) if which == "plain" else ours(student, made).loss
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    result = measure(run, repeats, least_s)
    shapes = WhisperShape.from_config(student.config), WhisperShape.from_config(teacher.config)
    tokens = made["labels"].shape[1]
    rows = batch_size * tokens if which == "plain" else sum(lengths)
    cost = step_cost(*shapes, batch_size=batch_size, tokens=tokens, rows=rows, **caches)
    return result | {"gflop": cost.total / 1e9, "gflop_per_s": cost.total / 1e9 / result["seconds"]}


def demo(which: str, samples: int = 96, updates: int = 32, bf16: bool = False) -> dict:
    """Time updates of the demo's training: its teacher, 16 synthesised utterances each, the trainer and its loader."""
    from transformers import TrainerCallback, WhisperProcessor

    from distilwhisper import DistillationTrainer, DistillationTrainingArguments, cache_states, create_student
    from distilwhisper.synthesis import CorpusConfig, synthesize_corpus

    teacher = REPOSITORY / "examples" / "teacher"
    rest = dict.fromkeys(["validation", "test", "ood_accents", "ood_noise"], 0)
    data = synthesize_corpus(CorpusConfig(train=samples, **rest))["train"]
    processor = WhisperProcessor.from_pretrained(teacher)

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(clock())

    updates_clock, waits = Clock(), []
    with tempfile.TemporaryDirectory() as folder:
        if which != "online":
            top_k = 64 if which == "top_k" else 0
            cache_states(str(teacher), processor, data, f"{folder}/states", language="en", top_k=top_k)
        args = DistillationTrainingArguments(
            output_dir=folder, max_steps=updates, per_device_train_batch_size=16, learning_rate=1e-3, language="en",
            report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=100, bf16=bf16,
            state_cache=None if which == "online" else f"{folder}/states",
        )  # fmt: skip
        trainer = DistillationTrainer(
            model=create_student(str(teacher), dtype=torch.float32), teacher_model=str(teacher), args=args,
            train_dataset=data, processing_class=processor, callbacks=[updates_clock],
        )  # fmt: skip
        collate = trainer.data_collator

        def timed(rows: list) -> dict:
            start = clock()
            made = collate(rows)
            waits.append(clock() - start)
            return made

        trainer.data_collator = timed
        trainer.train()
    seconds = [end - start for start, end in zip(updates_clock.ends[1:-1], updates_clock.ends[2:], strict=True)]
    median = sorted(seconds)[len(seconds) // 2]
    return {"seconds": median, "collate_seconds": sorted(waits)[len(waits) // 2], "peak_mb": peak_mb()}


def loader(rows: int, seconds: float = 10.0) -> dict:
    """Feed batches of 30 s recordings to nobody, in one process: how fast they come, and what memory that takes."""
    import io

    import numpy as np
    import soundfile
    from datasets import Audio, Dataset
    from torch.utils.data import DataLoader
    from transformers import WhisperProcessor

    from distilwhisper.collator import DataCollatorForDistillation
    from distilwhisper.samples import MapSamples

    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.003, 480_000), 16_000, format="FLAC")
    with tempfile.TemporaryDirectory() as folder:

        def generate() -> Any:
            for index in range(rows):
                audio = {"bytes": file.getvalue(), "path": None}
                yield {"id": str(index), "audio": audio, "whisper_transcript": "words " * 40}

        data = Dataset.from_generator(generate, cache_dir=folder).cast_column("audio", Audio(decode=False))
        processor = WhisperProcessor.from_pretrained(REPOSITORY / "examples" / "teacher")
        processor.feature_extractor = type(processor.feature_extractor)()
        collator = DataCollatorForDistillation(processor, language="en", window_s=30)
        loading = DataLoader(MapSamples(data, "audio"), 8, shuffle=True, collate_fn=collator)
        before, times = own_mb(), []
        last = start = time.perf_counter()
        for _ in loading:
            times.append((time.perf_counter() - last) / 8)
            last = time.perf_counter()
            if last - start > seconds:
                break
        return {"seconds": sorted(times)[len(times) // 2], "peak_mb": own_mb() - before, "samples": 8 * len(times)}


MEASURED: dict[str, Callable[..., dict]] = {"loss": loss, "step": step, "demo": demo, "loader": loader}


# ---- the sections of the table ---------------------------------------------------------------------------------------


def compare(name: str, function: str, settings: dict, pair: tuple[str, str], rounds: int = 1) -> dict:
    """Measure two ways of doing the same in turn, and print a row of the table from the median round of each."""
    settings = settings | ({"repeats": REPEATS} if REPEATS and "repeats" in settings else {})
    runs = [[in_process(__file__, function, settings | {"which": which}) for which in pair] for _ in range(rounds)]
    slow, fast = (sorted(way, key=lambda run: run.get("seconds", 0.0))[rounds // 2] for way in zip(*runs, strict=True))
    row: dict = {"name": name, "ways": pair, "slow": slow, "fast": fast}
    failed = [one["failed"] for one in (slow, fast) if "failed" in one]
    if failed:
        print(f"| {name} | not measured: {failed[0]} | | | |", flush=True)
        return row
    row |= {"faster": slow["seconds"] / fast["seconds"], "less_memory": slow["peak_mb"] / max(1.0, fast["peak_mb"])}
    cells = [f"{way}: {one['seconds']:.3g} s, {one['peak_mb']:,.0f} MB" for way, one in zip(pair, (slow, fast))]  # noqa: B905
    print(f"| {name} | {' | '.join(cells)} | {row['faster']:.2f}x | {row['less_memory']:.1f}x |", flush=True)
    return row


def growth() -> list[dict]:
    small, large = (in_process(__file__, "loss", {"which": "ours", "rows": n, "repeats": 1}) for n in (1_024, 8_192))
    # Gradients of the hidden states are results, not working memory: 7,168 rows more of 1,280 fp32 numbers.
    results = 7_168 * 1_280 * 4 / 2**20
    share = (large["peak_mb"] - small["peak_mb"] - results) / small["peak_mb"]
    name = "our peak memory from 1,024 to 8,192 rows"
    print(f"| {name} | {small['peak_mb']:,.0f} MB | {large['peak_mb']:,.0f} MB | {share:+.1%} | |", flush=True)
    return [{"name": name, "small": small, "large": large, "growth": share}]


def feeding() -> list[dict]:
    rows = []
    for count in (100, 1_000):
        one = in_process(__file__, "loader", {"rows": count})
        rows.append({"name": f"loader, one process, {count} recordings of 30 s", **one})
        shown = one.get("failed") or f"{1e3 * one['seconds']:.1f} ms a sample | {one['peak_mb']:,.0f} MB"
        print(f"| {rows[-1]['name']} | {shown} | | |", flush=True)
    return rows


ONLINE, CACHES = ("plain", "ours"), ("ours", "cached")
CACHED = {"repeats": 3, "least_s": 15.0}
SECTIONS: dict[str, Callable[[], list[dict]]] = {
    "loss": lambda: [compare("loss + backward, 1,024 rows, fp32", "loss", {"rows": 1_024, "repeats": 3}, ONLINE)],
    "growth": growth,
    "peers": lambda: [
        compare(f"{peer}'s loss + backward, 1,024 rows", "loss", {"rows": 1_024, "repeats": 1}, (peer, "ours"))
        for peer in ("liger", "trl")
    ],
    "step": lambda: [compare("update, whisper-small, batch 8, teacher online", "step", {"repeats": 1}, ONLINE)],
    "step_bf16": lambda: [compare("the same in mixed precision", "step", {"bf16": True, "repeats": 1}, ONLINE)],
    "cached": lambda: [
        compare("update from caches, whisper-small, batch 8", "step", CACHED, CACHES),
        compare("the same from the 64 likeliest tokens", "step", CACHED, ("ours", "top_k")),
        compare("from caches, in mixed precision", "step", CACHED | {"bf16": True}, CACHES),
    ],
    "demo": lambda: [
        compare("update of the demo, 16 utterances", "demo", {}, ("online", "cached"), rounds=3),
        compare("the same from the 64 likeliest tokens", "demo", {}, ("online", "top_k"), rounds=3),
        compare("from caches, in mixed precision", "demo", {"bf16": True}, ("online", "cached")),
        compare("the same from the 64 likeliest tokens", "demo", {"bf16": True}, ("online", "top_k")),
    ],
    "loader": feeding,
}


def model() -> dict:
    """Return what the cost model expects of the loss measurement, in MB."""
    shape = WhisperShape(1_280, 32, 32, 5_120, 5_120, VOCABULARY, 128)
    ours = loss_bytes(shape, shape, rows=1_024, chunk_size=256)
    return {"ours_mb": ours / 2**20, "plain_mb": plain_loss_bytes(shape, rows=1_024) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, help="One section; the others keep what the output file says.")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench.json"))
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, help="Runs of each step, of which the median is taken.")
    args = parser.parse_args()
    global REPEATS
    REPEATS = args.repeats
    if args.measure:
        print(json.dumps(MEASURED[args.measure](**args.settings)))
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(args.output.read_text()) if args.only and args.output.exists() else {}
    print("| measured | from | to | faster | less memory |\n|:--|--:|--:|--:|--:|")
    for name in [args.only] if args.only else SECTIONS:
        results[name] = {"machine": machine(), "rows": SECTIONS[name]()}
        results["cost_model_of_the_loss"] = model()
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nwritten to {args.output}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Measure steps of large-v3's shapes on one GPU: ours against the plain recipe, kernels, caches, the largest batch.

    python benchmarks/gpu.py --output docs/results/gpu.json        # bf16, batch 32, 128 tokens; under 8 minutes
    python benchmarks/gpu.py --size mini --batch_size 2 --device cpu        # the same code on a CPU, seconds

Weights are random, nothing is downloaded. Each line is written when it is measured; what does not fit into memory says
so. MFU is the cost model's operations (distilwhisper.costs) per second, against the bf16 peak of the data sheet.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine, peak_mb
from plain import plain_step
from shapes import FULL_LENGTH, SIZES, batch, cached, models
from transformers.utils import is_flash_attn_2_available

from distilwhisper.costs import WhisperShape, step_cost
from distilwhisper.modeling import DistillationStep, Objective, place_teacher

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "A10G": 70, "L4": 121}
"""Dense bf16, from the data sheets; a name that is part of the device's decides, the first that fits."""
WAYS = ("plain", "online", "cached")


class Bench:
    """Models and optimiser, made once; measures steps on them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        with self.device:
            self.teacher, self.student = models(args.size)
        self.step = DistillationStep(self.student, self.teacher, Objective())
        self.teacher.model.encoder.cpu()  # the student's is shared
        place_teacher(self.teacher, self.device, torch.bfloat16, shares_encoder=True)
        self.trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        self.shapes = [WhisperShape.from_config(model.config) for model in (self.student, self.teacher)]

    def inputs(self, way: str, batch_size: int) -> dict[str, torch.Tensor]:
        """Return a batch on the device: all labels ``tokens`` long, padded to 448 for the plain recipe."""
        tokens = self.args.tokens
        made = batch(self.student.config, [tokens] * batch_size, FULL_LENGTH if way == "plain" else tokens)
        made = cached(self.student.config, made, torch.bfloat16) if way == "cached" else made
        made["label_rows"] = (made["labels"].flatten() >= 0).nonzero().squeeze(1)
        return {name: tensor.to(self.device) for name, tensor in made.items()}

    def update(self, way: str, inputs: dict[str, torch.Tensor]) -> None:
        """Make one update."""
        with torch.autocast(self.device.type, torch.bfloat16):
            plain = way == "plain"
            loss = plain_step(self.student, self.teacher, inputs) if plain else self.step(self.student, inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure(self, way: str, batch_size: int, attention: str = "sdpa") -> dict[str, Any]:
        """Return time, memory and MFU of an update, or that it does not fit."""
        row: dict[str, Any] = {"way": way, "batch_size": batch_size, "attention": attention}
        for model in (self.student, self.teacher):
            model.set_attn_implementation(attention)
        self.optimizer.zero_grad()
        try:
            seconds, peak = self._time(way, batch_size)
        except torch.OutOfMemoryError:
            return row | {"failed": "out of memory"}
        finally:
            self.optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        tokens = FULL_LENGTH if way == "plain" else self.args.tokens
        cost = step_cost(*self.shapes, batch_size=batch_size, tokens=tokens, cached=way == "cached").total
        row |= {"seconds": seconds, "peak_gb": peak, "tflop": cost / 1e12, "tflop_per_s": cost / 1e12 / seconds}
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        limit = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
        return row | {"mfu": row["tflop_per_s"] / limit if limit else None}

    def _time(self, way: str, batch_size: int) -> tuple[float, float]:
        inputs, times = self.inputs(way, batch_size), []
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(self.args.repeats + 2):  # the first two choose kernels and allocate
            start = time.perf_counter()
            self.update(way, inputs)
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:]), torch.cuda.max_memory_allocated() / 1e9 if on_gpu else peak_mb() / 1e3

    def host_waits(self) -> str:
        """Return "no", or where a step of ours makes the host wait for the GPU."""
        inputs = self.inputs("online", 2)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = self.step(self.student, inputs, torch.tensor(256, device=self.device)).loss
            loss.backward()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
            self.optimizer.zero_grad()
        return "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large-v3")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit_s", type=float, default=420, help="No new measurement is begun after so many seconds.")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu.json"))
    args = parser.parse_args()
    start, bench = time.perf_counter(), Bench(args)
    on_gpu = bench.device.type == "cuda"
    results = {"machine": machine() | {"gpu": torch.cuda.get_device_name() if on_gpu else None}, "rows": []}
    if on_gpu:
        results["host_waits_in_a_step"] = bench.host_waits()
    kernels = ["eager", *(["flash_attention_2"] if on_gpu and is_flash_attn_2_available() else [])]
    plan = [(way, args.batch_size, "sdpa") for way in WAYS] + [("online", args.batch_size, name) for name in kernels]
    plan += [(way, args.batch_size * 2**power, "sdpa") for way in WAYS for power in range(1, 5 if on_gpu else 2)]
    full: set[str] = set()
    print("| way | batch | attention | step | samples/s | peak memory | TFLOP/s | MFU |\n" + "|:--" * 8 + "|")
    for way, batch_size, attention in plan:
        if way in full or time.perf_counter() - start > args.limit_s:
            continue
        row = bench.measure(way, batch_size, attention)
        results["rows"].append(row)
        if "failed" in row:
            full.update([way] if attention == "sdpa" else [])
            print(f"| {way} | {batch_size} | {attention} | {row['failed']} | | | | |", flush=True)
        else:
            mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
            print(
                f"| {way} | {batch_size} | {attention} | {1e3 * row['seconds']:.1f} ms | "
                f"{batch_size / row['seconds']:.1f} | {row['peak_gb']:.1f} GB | {row['tflop_per_s']:.2f} | {mfu} |",
                flush=True,
            )
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

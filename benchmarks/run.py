"""Measure ours against the plain recipe, side by side, each measurement in a process of its own.

    make bench                                     # everything; writes outputs/bench.json
    python benchmarks/run.py --only loss           # one section

Times are medians; memory is the peak of the process beyond what it held before the first call.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain import plain_loss, plain_step

from distilwhisper.losses import distillation_loss

VOCABULARY = 51_866


def measure(run: Callable[[], object], repeats: int) -> dict:
    """Return the median time of a call, and the peak memory beyond what was held before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": statistics.median(times[1:]), "peak_mb": peak / 1024}


def loss(which: str, rows: int, width: int = 1_280) -> dict:
    """Time loss and backward on hidden states of a large model, fp32."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    head = (0.02 * torch.randn(VOCABULARY, width)).requires_grad_()
    teacher_hidden, teacher_head = torch.randn(rows, width), 0.02 * torch.randn(VOCABULARY, width)
    labels = torch.randint(VOCABULARY, (rows,))

    def run() -> None:
        hidden.grad = head.grad = None
        if which == "plain":
            plain_loss(hidden @ head.T, teacher_hidden @ teacher_head.T, labels).backward()
        else:
            distillation_loss(hidden, head, teacher_hidden, teacher_head, labels).total.backward()

    return measure(run, repeats=3)


def step(which: str, batch_size: int = 8) -> dict:
    """Time a whole step of whisper-small's shapes: 12 + 12 -> 2 layers, 30 s of audio, labels of 20 to 120 tokens."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from distilwhisper import create_student
    from distilwhisper.modeling import DistillationStep, Objective

    torch.manual_seed(0)
    layers = {"encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 12, "decoder_attention_heads": 12}
    config = WhisperConfig(vocab_size=51_865, d_model=768, encoder_ffn_dim=3_072, decoder_ffn_dim=3_072, **layers)
    teacher = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    student = create_student(teacher, decoder_layers=2, freeze_encoder=True).train()
    lengths = torch.linspace(20, 120, batch_size).int().tolist()
    width = 448 if which == "plain" else max(lengths)
    labels = torch.full((batch_size, width), -100)
    for row, length in enumerate(lengths):
        labels[row, :length] = torch.randint(50_000, (length,))
    batch = {
        "input_features": torch.randn(batch_size, 80, 3_000),
        "decoder_input_ids": labels.clamp(min=0),
        "labels": labels,
    }
    ours = DistillationStep(student, teacher, Objective())

    def run() -> None:
        student.zero_grad()
        (plain_step(student, teacher, batch) if which == "plain" else ours(student, batch).loss).backward()

    return measure(run, repeats=2)


SECTIONS: dict[str, list[tuple[str, Callable[..., dict], dict]]] = {
    "loss": [
        ("loss + backward, 1,024 rows", loss, {"rows": 1_024}),
        ("loss + backward, 2,048 rows", loss, {"rows": 2_048}),
    ],
    "step": [("step, whisper-small shapes, batch 8", step, {})],
}


def in_process(function: str, settings: dict) -> dict:
    command = [sys.executable, __file__, "--measure", function, "--settings", json.dumps(settings)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps({"loss": loss, "step": step}[args.measure](**args.settings)))
        return
    rows = []
    print("| measured | plain | ours | faster | less memory |\n|:--|--:|--:|--:|--:|")
    for name, function, settings in [row for key in ([args.only] if args.only else SECTIONS) for row in SECTIONS[key]]:
        plain, ours = (in_process(function.__name__, settings | {"which": which}) for which in ("plain", "ours"))
        rows.append({"name": name, "plain": plain, "ours": ours})
        cells = [f"{one['seconds']:.2f} s, {one['peak_mb']:,.0f} MB" for one in (plain, ours)]
        ratios = [plain[key] / ours[key] for key in ("seconds", "peak_mb")]
        print(f"| {name} | {' | '.join(cells)} | {ratios[0]:.1f}x | {ratios[1]:.1f}x |", flush=True)
    sizes = {rows_: in_process("loss", {"which": "ours", "rows": rows_})["peak_mb"] for rows_ in (1_024, 8_192)}
    # Gradients of the hidden states are results, not working memory: 7,168 rows more of 1,280 fp32 numbers.
    growth = (sizes[8_192] - sizes[1_024] - 7_168 * 1_280 * 4 / 2**20) / sizes[1_024]
    print(f"\nOur peak memory from 1,024 to 8,192 rows, beyond the gradients of the rows themselves: {growth:+.1%}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"rows": rows, "growth": growth, "torch": torch.__version__}, indent=2))


if __name__ == "__main__":
    main()

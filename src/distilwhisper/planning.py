"""What a distillation will cost: operations, hours, memory and disk of each stage, before anything is run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from distilwhisper.costs import (
    WhisperShape,
    encoder_cache_bytes,
    loss_bytes,
    model_bytes,
    step_cost,
    teacher_cache_bytes,
)
from distilwhisper.tables import text_table

GIB = 2**30
LABEL_BYTES = 2_000
"""What the columns of a label take on disk, about."""

MEASURED_S = 1.0
SIZE = 2_048


@dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
        name: What is done.
        flops: Operations, of matrix products.
        hours: Time on the machine, from its measured speed.
        memory_gib: Weights, gradients, optimiser states and loss; activations and the audio that waits come on top.
        disk_gib: What it writes.
    """

    name: str
    flops: float
    hours: float
    memory_gib: float
    disk_gib: float


@dataclass(frozen=True)
class Plan:
    """The stages of a distillation; ``print(plan)`` shows a table.

    Attributes:
        stages: In order; the training from caches stands beside the one without, of which one is chosen.
        windows: Windows of audio, each counted whole.
        flops_per_s: Speed that the hours are reckoned with.
    """

    stages: list[Stage]
    windows: int
    flops_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name."""
        return asdict(self)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("stage", "PFLOP", "hours", "memory, GiB", "disk, GiB")]
        for one in self.stages:
            numbers = (one.flops / 1e15, one.hours, one.memory_gib, one.disk_gib)
            rows.append((one.name, *(f"{number:,.3g}" if number < 100 else f"{number:,.0f}" for number in numbers)))
        speed = f"{self.windows:,} windows, at {self.flops_per_s / 1e9:,.0f} GFLOP/s of matrix products"
        return f"{text_table(rows)}\n\n{speed}. Hours assume that nothing else holds the machine up: reckon with twice."


def measure_flops(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Return the operations a second of this machine on a product of two square matrices, in about a second.

    Args:
        device: Where.
        dtype: Number type.
    """
    left, right = (torch.randn(SIZE, SIZE, device=device).to(dtype) for _ in range(2))
    products, started = 0, 0.0
    while not started or time.perf_counter() - started < MEASURED_S:
        float((left @ right)[0, 0])  # reading a number waits for the device
        if started:
            products += 1
        else:  # the first one warms up
            started = time.perf_counter()
    return 2 * SIZE**3 * products / (time.perf_counter() - started)


def plan_distillation(
    teacher: WhisperShape,
    student: WhisperShape,
    *,
    hours: float,
    steps: int,
    batch_size: int,
    flops_per_s: float,
    window_s: float = 30.0,
    tokens: int = 80,
    itemsize: int = 2,
    chunk_size: int = 1_024,
) -> Plan:
    """Reckon a distillation from the cost model (`costs`).

    Args:
        teacher: The teacher.
        student: The student, with the teacher's encoder.
        hours: Audio.
        steps: Updates.
        batch_size: Samples of an update.
        flops_per_s: Speed of the machine, or of all machines together: see `measure_flops`.
        window_s: Mean length of what is heard at once; each is computed as a whole window.
        tokens: Mean tokens of a label.
        itemsize: Bytes of a number of the frozen models and of the caches.
        chunk_size: Rows of logits in memory at a time.

    Raises:
        ValueError: If a number is not positive.
    """
    given = {"hours": hours, "steps": steps, "batch_size": batch_size, "flops_per_s": flops_per_s, "window_s": window_s}
    for name, value in given.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")
    windows = max(1, round(hours * 3600 / window_s))
    per_window = teacher.encoder_flops + teacher.decoder_flops(tokens) + teacher.head_flops(tokens)
    cache = encoder_cache_bytes(student, itemsize=itemsize) + tokens * teacher_cache_bytes(teacher, itemsize=itemsize)
    weights = itemsize * (teacher.encoder_parameters + teacher.decoder_parameters)
    loss = loss_bytes(student, teacher, rows=batch_size * tokens, chunk_size=chunk_size)

    def stage(name: str, flops: float, memory: float, disk: float) -> Stage:
        return Stage(name, flops, flops / flops_per_s / 3600, memory / GIB, disk / GIB)

    stages = [stage("labels", windows * per_window, weights, windows * LABEL_BYTES)]
    stages.append(stage("labels with caches", windows * per_window, weights, windows * (LABEL_BYTES + cache)))
    for name, cached in (("training", False), ("training from caches", True)):
        cost = step_cost(student, teacher, batch_size=batch_size, tokens=tokens, cached=cached).total
        parts = model_bytes(student, teacher, itemsize=itemsize, cached=cached)
        stages.append(stage(name, steps * cost, sum(parts.values()) + loss, 16 * student.decoder_parameters))
    return Plan(stages, windows, flops_per_s)

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
from distilwhisper.tables import html_table, text_table

GIB = 2**30
LABEL_BYTES = 2_000
"""What the columns of a label take on disk, about."""

MEASURED_S = 1.0
SIZE = 2_048
COPIED_BYTES = 2**27
"""More than caches hold."""


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
        flops_per_s: Speed of matrix products that the hours are reckoned with.
        bytes_per_s: Speed of reading memory, which holds up the decoding; None if it was left out.
        parameters: Millions of parameters of teacher and student, and how many of these are trained.
    """

    stages: list[Stage]
    windows: int
    flops_per_s: float
    bytes_per_s: float | None
    parameters: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{text_table(self._rows())}\n\n{self._notes()}"

    def _repr_html_(self) -> str:
        return f"<div>{html_table(self._rows())}<div>{self._notes()}</div></div>"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("stage", "PFLOP", "hours", "memory, GiB", "disk, GiB")]
        for one in self.stages:
            numbers = (one.flops / 1e15, one.hours, one.memory_gib, one.disk_gib)
            rows.append((one.name, *(f"{number:,.3g}" if number < 100 else f"{number:,.0f}" for number in numbers)))
        return rows

    def _notes(self) -> str:
        sizes = ", ".join(f"{name} {millions:,.1f} M" for name, millions in self.parameters.items())
        memory = "" if self.bytes_per_s is None else f" and {self.bytes_per_s / 1e9:,.0f} GB/s of memory"
        speed = f"{self.windows:,} windows, at {self.flops_per_s / 1e9:,.0f} GFLOP/s of matrix products{memory}."
        advice = "Hours assume that nothing else holds the machine up: reckon with twice. Activations come on top."
        return f"Parameters: {sizes}.\n{speed}\n{advice}"


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


def measure_bandwidth(device: torch.device | str = "cpu") -> float:
    """Return the bytes a second that this machine reads and writes, from copies, in half a second."""
    source = torch.zeros(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copies, started = 0, 0.0
    while not started or time.perf_counter() - started < MEASURED_S / 2:
        target.copy_(source)
        float(target[-1])  # reading a number waits for the device
        if started:
            copies += 1
        else:
            started = time.perf_counter()
    return 2 * COPIED_BYTES * copies / (time.perf_counter() - started)


def plan_distillation(
    teacher: WhisperShape,
    student: WhisperShape,
    *,
    hours: float,
    steps: int,
    batch_size: int,
    flops_per_s: float,
    bytes_per_s: float | None = None,
    window_s: float = 30.0,
    tokens: int = 80,
    label_batch_size: int = 16,
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
        bytes_per_s: Its speed of reading memory, see `measure_bandwidth`; None leaves out that decoding reads all
            weights for each token.
        window_s: Mean length of what is heard at once; each is computed as a whole window.
        tokens: Mean tokens of a label.
        label_batch_size: Recordings that the teacher hears at a time.
        itemsize: Bytes of a number of the frozen models and of the caches.
        chunk_size: Rows of logits in memory at a time.

    Raises:
        ValueError: If a number is not positive.
    """
    given: dict[str, float | None] = {"hours": hours, "steps": steps, "window_s": window_s}
    given |= {"batch_size": batch_size, "flops_per_s": flops_per_s}
    given |= {"tokens": tokens, "label_batch_size": label_batch_size, "bytes_per_s": bytes_per_s}
    for name, value in given.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")
    windows = max(1, round(hours * 3600 / window_s))
    per_window = teacher.encoder_flops + teacher.decoder_flops(tokens) + teacher.head_flops(tokens)
    cache = encoder_cache_bytes(student, itemsize=itemsize) + tokens * teacher_cache_bytes(teacher, itemsize=itemsize)
    weights = itemsize * (teacher.encoder_parameters + teacher.decoder_parameters)
    loss = loss_bytes(student, teacher, rows=batch_size * tokens, chunk_size=chunk_size)

    decoded = windows * teacher.decoding_bytes(tokens, batch_size=label_batch_size, itemsize=itemsize)
    heard = weights + label_batch_size * teacher.decoding_cache_bytes(tokens, itemsize=itemsize)

    def stage(name: str, flops: float, memory: float, disk: float, read: float = 0.0) -> Stage:
        seconds = flops / flops_per_s + (read / bytes_per_s if bytes_per_s else 0.0)
        return Stage(name, flops, seconds / 3600, memory / GIB, disk / GIB)

    stages = [
        stage(name, windows * per_window, heard, windows * (LABEL_BYTES + kept), decoded)
        for name, kept in (("labels", 0), ("labels with caches", cache))
    ]
    for name, cached in (("training", False), ("training from caches", True)):
        cost = step_cost(student, teacher, batch_size=batch_size, tokens=tokens, cached=cached).total
        parts = model_bytes(student, teacher, itemsize=itemsize, cached=cached)
        stages.append(stage(name, steps * cost, sum(parts.values()) + loss, 16 * student.decoder_parameters))
    sizes = {
        "teacher": teacher.encoder_parameters + teacher.decoder_parameters,
        "student": student.encoder_parameters + student.decoder_parameters,
        "trained": student.decoder_parameters,
    }
    return Plan(stages, windows, flops_per_s, bytes_per_s, {name: size / 1e6 for name, size in sizes.items()})

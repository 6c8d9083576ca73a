"""The fused loss: logits a chunk of rows at a time, gradients made in the forward pass.

The gradient of the objective with respect to the logits is known in closed form (`losses`), so that
a chunk's logits are turned into it at once, multiplied into the gradients of hidden states and head, and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distilwhisper.divergences import ChunkSettings, TopKTeacher, reduce_chunk, reduce_top_k_chunk

Teacher = tuple[Tensor, Tensor] | TopKTeacher
"""Hidden states and head, or distributions."""

_REDUCED_ROWS = 16
"""Rows of a chunk that a CPU reduces at a time: few enough for its caches to hold their logits."""


def default_chunk_size(head: Tensor) -> int:
    """Return the rows of logits that are alive at a time by default."""
    # A chunk must be large enough for the product to outweigh reading the head, and small enough for a CPU's caches.
    return 1024 if head.is_cuda else min(256, max(128, head.shape[1] // 4))


def accumulation_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of sums: fp64 for fp64, else fp32."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _compute_dtype(like: Tensor) -> torch.dtype:
    # CPUs return 16-bit products in 16 bits, which spaces logits of 20 by 0.125; there the operands are widened, once.
    if not like.is_cuda or like.dtype == torch.float64:
        return accumulation_dtype(like)
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else like.dtype


class _Gradients:
    """Gradients of one call, accumulated over its chunks; empty (None) where nothing needs them."""

    def __init__(self, hidden: Tensor, head: Tensor, dtype: torch.dtype, needed: tuple[bool, bool]) -> None:
        self.hidden = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if needed[0] else None
        self.head = torch.zeros(head.shape, dtype=dtype, device=head.device) if needed[1] else None

    def add(self, start: int, logits_gradient: Tensor, hidden: Tensor, head: Tensor) -> None:
        low = logits_gradient.to(hidden.dtype)
        if self.hidden is not None:
            _product(low, head, out=self.hidden[start : start + len(hidden)])
        if self.head is not None:
            if low.dtype == self.head.dtype:
                self.head.addmm_(low.t(), hidden)
            else:
                self.head += _product(low.t(), hidden)


class FusedDistillation(torch.autograd.Function):
    """The loss and its gradients, made together; called by ``distillation_loss``, which says what goes in."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        teacher: Teacher | None,
        labels: Tensor,
        divisor: Tensor,
        settings: ChunkSettings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the total and its two terms, and make the gradients."""
        accumulate, compute = accumulation_dtype(hidden), _compute_dtype(hidden)
        needed = ctx.needs_input_grad[:2] if settings.needs_gradient else (False, False)
        gradients = _Gradients(hidden, head, accumulate, needed)
        ctx.dtypes = hidden.dtype, head.dtype
        student = hidden.to(compute), head.to(compute)
        if isinstance(teacher, TopKTeacher):
            teacher = teacher._replace(log_probabilities=teacher.log_probabilities.to(accumulate))
        elif teacher is not None:
            teacher = (teacher[0] / settings.temperature).to(compute), teacher[1].to(compute)
        with _products_in_16_bits(hidden):
            kl, pl = _sum_chunks(student, teacher, labels, gradients, settings)
        ctx.gradients, ctx.divisor = gradients, divisor
        kl, pl = kl / divisor, pl / divisor
        ctx.mark_non_differentiable(kl, pl)
        return settings.kl_weight * kl + settings.pl_weight * pl, kl, pl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that the forward pass made."""
        if ctx.gradients is None:
            raise RuntimeError(
                "distillation_loss was differentiated twice; its gradients are released after the first backward, "
                "so retain_graph=True is not supported: call distillation_loss again"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scale = (grad_total / ctx.divisor).to(ctx.divisor.dtype)
        return (
            *(
                None if gradient is None else gradient.mul_(scale).to(dtype)
                for gradient, dtype in zip((gradients.hidden, gradients.head), ctx.dtypes, strict=True)
            ),
            None,
            None,
            None,
            None,
        )


def _sum_chunks(
    student: tuple[Tensor, Tensor],
    teacher: Teacher | None,
    labels: Tensor,
    gradients: _Gradients,
    settings: ChunkSettings,
) -> tuple[Tensor, Tensor]:
    """Return the sums of both terms over all rows; models are pairs of hidden states and head."""
    hidden, head = student
    dtype = accumulation_dtype(hidden)
    sums = head.new_zeros(2, dtype=dtype)
    size = min(settings.chunk_size, len(labels))
    block = size if head.is_cuda else min(size, _REDUCED_ROWS)
    models = [student] if teacher is None or isinstance(teacher, TopKTeacher) else [student, teacher]
    logits = [head.new_empty(size, len(head), dtype=dtype) for _ in models]
    scratch = [head.new_empty(block, len(head), dtype=dtype) for _ in range(settings.scratch_buffers if teacher else 0)]
    for start in range(0, len(labels), settings.chunk_size):
        chunk = [buffer[: len(labels) - start] for buffer in logits]
        for buffer, (states, weight) in zip(chunk, models, strict=True):
            _product(states[start : start + size], weight.t(), out=buffer)
        for first in range(0, len(chunk[0]), block):
            parts = [buffer[first : first + block] for buffer in chunk]
            parts += [buffer[: len(parts[0])] for buffer in scratch]
            rows = slice(start + first, start + first + len(parts[0]))
            if isinstance(teacher, TopKTeacher):
                terms = reduce_top_k_chunk(parts, labels[rows], teacher.rows(rows), settings)
            else:
                terms = reduce_chunk(parts, labels[rows], settings)
            sums += torch.stack(terms)
        if settings.needs_gradient:
            gradients.add(start, chunk[0], hidden[start : start + size], head)
    return sums.unbind()  # type: ignore[return-value]


@contextmanager
def _products_in_16_bits(like: Tensor) -> Iterator[None]:
    """Let a CPU round the operands of float32 products to bfloat16, where the training is in mixed precision.

    The result stays in float32, as on a GPU. CPUs without such instructions compute in float32.
    """
    mixed = like.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if like.is_cuda or not mixed or not hasattr(torch.backends.mkldnn, "matmul"):  # torch < 2.9
        yield
        return
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Matrix product whose result has at least 32 bits."""
    if left.dtype in (torch.float32, torch.float64):
        return torch.mm(left, right, out=out)
    return torch.mm(left, right, out_dtype=torch.float32, out=out)  # type: ignore[no-any-return, call-overload]

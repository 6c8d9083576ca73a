"""The fused loss: logits a chunk of rows at a time, gradients made in the forward pass.

The gradient of the objective with respect to the logits is known in closed form (`losses`), so that
a chunk's logits are turned into it at once, multiplied into the gradients of hidden states and head, and forgotten.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distilwhisper.divergences import ChunkSettings, TopKTeacher, reduce_chunk, reduce_top_k_chunk
from distilwhisper.onednn import has_onednn, onednn_linear

Teacher = tuple[Tensor, Tensor] | TopKTeacher
"""Hidden states and head, or distributions."""

_REDUCED_ROWS = 16
"""Rows of a chunk that a CPU reduces at a time: few enough for its caches to hold their logits."""


def default_chunk_size(head: Tensor) -> int:
    """Return the rows of logits that are alive at a time by default."""
    return 1024 if head.is_cuda else 256  # enough for the products to outweigh reading the head


def accumulation_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of sums: fp64 for fp64, else fp32."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _compute_dtype(like: Tensor) -> torch.dtype:
    # CPUs return 16-bit products in 16 bits, which spaces logits of 20 by 0.125; there the operands are widened, once.
    if not like.is_cuda or like.dtype == torch.float64:
        return accumulation_dtype(like)
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else like.dtype


def _gradient_dtype(like: Tensor) -> torch.dtype:
    # Gradients bear 16-bit products, as everywhere in mixed precision; only some CPUs have instructions for them.
    mixed = like.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if mixed and not like.is_cuda and fast() else _compute_dtype(like)


class _Gradients:
    """Gradients of one call, accumulated over its chunks; empty (None) where nothing needs them.

    Args:
        hidden: ``[N, d]``.
        head: ``[V, d]``.
        needed: Whether that of the one and of the other is wanted.
        scale: What those of the chunks are multiplied by.
    """

    def __init__(self, hidden: Tensor, head: Tensor, needed: tuple[bool, bool], scale: Tensor) -> None:
        dtype, self.dtypes = accumulation_dtype(hidden), (hidden.dtype, head.dtype)
        self.hidden = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if needed[0] else None
        # The first chunk writes it; without rows there is none.
        make = torch.empty if len(hidden) else torch.zeros
        self.head = make(head.shape, dtype=dtype, device=head.device) if needed[1] else None
        # A CPU scales the head's by way of the hidden states that it is made of, which have no room for it in 16 bits.
        one = torch.ones_like(scale)
        self.early, late = (scale, one) if hidden.is_cpu else (one, scale)
        self.late = scale, late

    def add(self, start: int, logits_gradient: Tensor, hidden: Tensor, head: Tensor) -> None:
        low = logits_gradient.to(head.dtype)
        if self.hidden is not None:
            _product(low, head, out=self.hidden[start : start + len(hidden)])
        if self.head is None:
            return
        hidden = (hidden * self.early).to(low.dtype)
        if low.dtype == self.head.dtype:
            self.head.addmm_(low.t(), hidden, beta=min(start, 1))
        elif start:
            self.head += _product(low.t(), hidden)
        else:
            _product(low.t(), hidden, out=self.head)

    def scaled(self, factor: Tensor) -> list[Tensor | None]:
        made = zip((self.hidden, self.head), self.late, self.dtypes, strict=True)
        return [
            None if gradient is None else _times(gradient, factor * late).to(dtype) for gradient, late, dtype in made
        ]


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    return gradient if factor.is_cpu and factor == 1 else gradient.mul_(factor)  # a GPU would be waited for


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
        scale = settings.gradient_unit / divisor
        gradients = _Gradients(hidden, head, ctx.needs_input_grad[:2], scale) if settings.needs_gradient else None
        student = hidden.to(compute), head.to(compute)
        if isinstance(teacher, TopKTeacher):
            teacher = teacher._replace(log_probabilities=teacher.log_probabilities.to(accumulate))
        elif teacher is not None:
            teacher = teacher[0].to(compute), teacher[1].to(compute)
        kl, pl = _sum_chunks(student, teacher, labels, gradients, _gradient_dtype(hidden), settings)
        ctx.gradients = gradients
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
        return (*gradients.scaled(grad_total), None, None, None, None)


def _sum_chunks(
    student: tuple[Tensor, Tensor],
    teacher: Teacher | None,
    labels: Tensor,
    gradients: _Gradients | None,
    gradient_dtype: torch.dtype,
    settings: ChunkSettings,
) -> tuple[Tensor, Tensor]:
    """Return the sums of both terms over all rows; models are pairs of hidden states and head."""
    hidden, head = student
    dtype = accumulation_dtype(hidden)
    sums = head.new_zeros(2, dtype=dtype)
    # As few chunks as there must be, of like sizes: a last one of a few rows would cost another pass over the head.
    count = max(1, math.ceil(len(labels) / settings.chunk_size))
    size = max(1, math.ceil(len(labels) / count))
    block = size if head.is_cuda else min(size, _REDUCED_ROWS)
    models = [student] if teacher is None or isinstance(teacher, TopKTeacher) else [student, teacher]
    scratch = [head.new_empty(block, len(head), dtype=dtype) for _ in range(settings.scratch_buffers if teacher else 0)]
    low_head = head if gradients is None else head.to(gradient_dtype)
    for start in range(0, len(labels), size):
        chunk = [_product(states[start : start + size] / settings.temperature, weight.t()) for states, weight in models]
        for first in range(0, len(chunk[0]), block):
            parts = [buffer[first : first + block] for buffer in chunk]
            parts += [buffer[: len(parts[0])] for buffer in scratch]
            rows = slice(start + first, start + first + len(parts[0]))
            if isinstance(teacher, TopKTeacher):
                terms = reduce_top_k_chunk(parts, labels[rows], teacher.rows(rows), settings)
            else:
                terms = reduce_chunk(parts, labels[rows], settings)
            sums += torch.stack(terms)
        if gradients is not None:
            gradients.add(start, chunk[0], hidden[start : start + size], low_head)
        del chunk, parts  # or they would live beside the next chunk's
    return sums.unbind()  # type: ignore[return-value]


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Matrix product, accumulated in at least 32 bits; a CPU rounds that of 16-bit operands to their dtype."""
    if left.is_cuda and left.dtype not in (torch.float32, torch.float64):
        return torch.mm(left, right, out_dtype=torch.float32, out=out)  # type: ignore[no-any-return, call-overload]
    product = onednn_linear(left, right.t()) if has_onednn(left) else torch.mm(left, right)
    return product if out is None else out.copy_(product)  # type: ignore[no-any-return]

"""The distillation objective: fused, chunked, exact.

With student logits ``z = W h``, teacher logits ``u = W' h'``, labels ``y`` and ``D`` label tokens in the whole update::

    PL    = 1/D  sum_i  lse(z_i) - z_i[y_i]                                       (paper eq. 4)
    KL    = T^2/D sum_i sum_v p_iv (log p_iv - log q_iv),  p = softmax(u/T), q = softmax(z/T)   (eq. 5)
    total = kl_weight * KL + pl_weight * PL                                       (eq. 6)

    d total / d z_i = 1/D [ pl_weight (softmax(z_i) - onehot(y_i)) + kl_weight T (q_i - p_i) ]

The gradient is known in closed form, so it is made in the forward pass, a chunk of rows at a time: logits of student
and teacher exist for one chunk only, whatever the batch. ``T^2`` keeps the scale of the gradient when ``T`` changes
(Hinton et al. 2015, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distilwhisper.divergences import DIVERGENCES, ChunkSettings, reduce_chunk

_REDUCED_ROWS = 16
"""Rows of a chunk that a CPU reduces at a time: few enough for its caches to hold their logits."""


class DistillationLoss(NamedTuple):
    """The loss and its terms, each already divided by the number of label tokens.

    Attributes:
        total: ``kl_weight * kl + pl_weight * pl``; the one to differentiate.
        kl: ``T^2 KL(teacher || student)``, detached.
        pl: Cross-entropy on the pseudo-labels, detached.
    """

    total: Tensor
    kl: Tensor
    pl: Tensor


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | None,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    kl_weight: float = 0.8,
    pl_weight: float = 1.0,
    num_items: Tensor | float | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    divergence: str = "forward_kl",
    mixture: float = 0.5,
) -> DistillationLoss:
    """Return the KL + pseudo-label loss of paper eq. 6, without ever holding all the logits.

    The gradient reaches ``student_hidden`` and ``student_head`` (if they require it), never the teacher. With no
    labelled row at all the loss is 0, with a gradient of 0, so that every process takes part in collective operations.

    Args:
        student_hidden: Last hidden states of the student, ``[N, d_s]`` (or ``[..., d_s]``).
        student_head: Its output projection, ``[V, d_s]``.
        teacher_hidden: Last hidden states of the teacher, ``[N, d_t]``; None if ``kl_weight`` is 0.
        teacher_head: Its output projection, ``[V, d_t]``; None if ``kl_weight`` is 0.
        labels: Token ids, ``[N]``; rows with ``ignore_index`` are left out before anything is computed.
        temperature: Softens both distributions of the KL term; the cross-entropy stays at 1.
        kl_weight: Weight of the KL term (paper: 0.8).
        pl_weight: Weight of the cross-entropy on the labels (paper: 1.0).
        num_items: What the sums are divided by: the label tokens of the whole update, over all accumulation steps and
            processes. Default: the labelled rows given.
        ignore_index: Label of rows that take no part.
        chunk_size: Rows of logits alive at a time. Default: 128 to 256 on CPUs, by the width; 1,024 on GPUs.
        divergence: ``forward_kl`` (the paper's), ``reverse_kl``, ``jsd`` or ``skew_kl``; see ``divergences``.
        mixture: Share of the teacher in the mixture of ``jsd`` and ``skew_kl``, between 0 and 1.

    Returns:
        The total and its two terms, scalars in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: For shapes that do not fit, a temperature or chunk size that is not positive, negative weights, an
            unknown divergence, or a ``kl_weight`` above 0 without a teacher.
    """
    _check_weights(temperature, kl_weight, pl_weight, chunk_size)
    if divergence not in DIVERGENCES or not 0 < mixture < 1:
        raise ValueError(
            f"divergence must be one of {', '.join(DIVERGENCES)}, not {divergence!r}, and mixture lie between 0 and 1, "
            f"not {mixture}"
        )
    use_teacher = kl_weight > 0
    if use_teacher and (teacher_hidden is None or teacher_head is None):
        raise ValueError(f"kl_weight={kl_weight} needs teacher_hidden and teacher_head; pass them, or kl_weight=0")
    if not use_teacher or teacher_hidden is None:
        teacher_hidden = teacher_head = None
    else:
        teacher_hidden = teacher_hidden.flatten(0, -2)
    student_hidden, labels = student_hidden.flatten(0, -2), labels.flatten()
    _check_shapes(student_hidden, student_head, teacher_hidden, teacher_head, labels)

    rows = (labels != ignore_index).nonzero().squeeze(1)
    if len(rows) < len(labels):
        student_hidden, labels = student_hidden[rows], labels[rows]
        teacher_hidden = None if teacher_hidden is None else teacher_hidden[rows]
    settings = ChunkSettings(
        temperature=temperature,
        kl_weight=kl_weight,
        pl_weight=pl_weight,
        divergence=divergence,
        mixture=mixture,
        chunk_size=chunk_size or _default_chunk_size(student_head),
        needs_gradient=torch.is_grad_enabled() and (student_hidden.requires_grad or student_head.requires_grad),
    )
    divisor = _divisor(len(labels) if num_items is None else num_items, student_hidden)
    return DistillationLoss(
        *_FusedDistillation.apply(  # type: ignore[no-untyped-call]
            student_hidden, student_head, teacher_hidden, teacher_head, labels, divisor, settings
        )
    )


def hidden_state_loss(
    student_states: list[Tensor],
    teacher_states: list[Tensor],
    labels: Tensor,
    *,
    num_items: Tensor | float | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Return the mean squared error between mapped hidden states, summed over layers (paper eq. 10).

    Args:
        student_states: Outputs of the student's decoder layers, each ``[batch, tokens, d]``.
        teacher_states: Outputs of the teacher's layers that they are matched with (eq. 11), same shapes.
        labels: Token ids, ``[batch, tokens]``; positions with ``ignore_index`` are left out.
        num_items: Label tokens of the whole update; default: those given.
        ignore_index: Label of positions that take no part.

    Returns:
        Sum over layers and labelled positions of the mean over ``d`` of the squared difference, divided by
        ``num_items``.

    Raises:
        ValueError: If the states of student and teacher differ in number or width.
    """
    if len(student_states) != len(teacher_states):
        raise ValueError(
            f"{len(student_states)} student states cannot be matched with {len(teacher_states)} of the teacher"
        )
    widths = {state.shape[-1] for state in (*student_states, *teacher_states)}
    if len(widths) > 1:
        raise ValueError(f"hidden states must have one width to be compared, not {sorted(widths)}; set mse_weight=0")
    labelled = labels != ignore_index
    sums = [
        ((student.float() - teacher.float()).square().mean(-1) * labelled).sum()
        for student, teacher in zip(student_states, teacher_states, strict=True)
    ]
    return torch.stack(sums).sum() / _divisor(labelled.sum() if num_items is None else num_items, sums[0])


def _check_weights(temperature: float, kl_weight: float, pl_weight: float, chunk_size: int | None) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if kl_weight < 0 or pl_weight < 0:
        raise ValueError(f"kl_weight={kl_weight} and pl_weight={pl_weight} must not be negative")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")


def _check_shapes(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor | None, teacher_head: Tensor | None, labels: Tensor
) -> None:
    pairs = [("student", hidden, head)]
    if teacher_hidden is not None and teacher_head is not None:
        pairs.append(("teacher", teacher_hidden, teacher_head))
    for name, states, weight in pairs:
        if states.shape[0] != labels.shape[0] or states.shape[1] != weight.shape[1]:
            raise ValueError(
                f"{name}_hidden {list(states.shape)} must be [N, d] with N = {labels.shape[0]} labels and d = "
                f"{weight.shape[1]}, the width of {name}_head {list(weight.shape)}"
            )
    if teacher_head is not None and head.shape[0] != teacher_head.shape[0]:
        raise ValueError(
            f"student and teacher must share one vocabulary, not {head.shape[0]} and {teacher_head.shape[0]} tokens"
        )


def _divisor(num_items: Tensor | float, like: Tensor) -> Tensor:
    # A tensor is clamped on its device: reading its value would make the host wait for the GPU. clamp gives 0/1 = 0 for
    # an update without labels.
    dtype = _accumulation_dtype(like)
    return torch.as_tensor(num_items, device=like.device, dtype=dtype).clamp(min=1)


def _default_chunk_size(head: Tensor) -> int:
    # A chunk must be large enough for the product to outweigh reading the head, and small enough for a CPU's caches.
    return 1024 if head.is_cuda else min(256, max(128, head.shape[1] // 4))


def _accumulation_dtype(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _compute_dtype(like: Tensor) -> torch.dtype:
    # CPUs return 16-bit products in 16 bits, which spaces logits of 20 by 0.125; there the operands are widened, once.
    if not like.is_cuda or like.dtype == torch.float64:
        return _accumulation_dtype(like)
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


class _FusedDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        teacher_hidden: Tensor | None,
        teacher_head: Tensor | None,
        labels: Tensor,
        divisor: Tensor,
        settings: ChunkSettings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        accumulate, compute = _accumulation_dtype(hidden), _compute_dtype(hidden)
        needed = ctx.needs_input_grad[:2] if settings.needs_gradient else (False, False)
        gradients = _Gradients(hidden, head, accumulate, needed)
        ctx.dtypes = hidden.dtype, head.dtype
        student = hidden.to(compute), head.to(compute)
        teacher = None
        if teacher_hidden is not None and teacher_head is not None:
            teacher = (teacher_hidden / settings.temperature).to(compute), teacher_head.to(compute)

        with _products_in_16_bits(hidden):
            kl, pl = _sum_chunks(student, teacher, labels, gradients, settings)
        ctx.gradients, ctx.divisor = gradients, divisor
        kl, pl = kl / divisor, pl / divisor
        ctx.mark_non_differentiable(kl, pl)
        return settings.kl_weight * kl + settings.pl_weight * pl, kl, pl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
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
            None,
        )


def _sum_chunks(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor] | None,
    labels: Tensor,
    gradients: _Gradients,
    settings: ChunkSettings,
) -> tuple[Tensor, Tensor]:
    """Return the sums of both terms over all rows; student and teacher are hidden states and head."""
    hidden, head = student
    dtype = _accumulation_dtype(hidden)
    kl, pl = head.new_zeros((), dtype=dtype), head.new_zeros((), dtype=dtype)
    size = min(settings.chunk_size, len(labels))
    block = size if head.is_cuda else min(size, _REDUCED_ROWS)
    models = [pair for pair in (student, teacher) if pair is not None]
    logits = [head.new_empty(size, len(head), dtype=dtype) for _ in models]
    scratch = [head.new_empty(block, len(head), dtype=dtype) for _ in range(settings.buffers - 2 if teacher else 0)]
    for start in range(0, len(labels), settings.chunk_size):
        chunk = [buffer[: len(labels) - start] for buffer in logits]
        for buffer, (states, weight) in zip(chunk, models, strict=True):
            _product(states[start : start + size], weight.t(), out=buffer)
        for first in range(0, len(chunk[0]), block):
            parts = [buffer[first : first + block] for buffer in chunk]
            parts += [buffer[: len(parts[0])] for buffer in scratch]
            block_kl, block_pl = reduce_chunk(parts, labels[start + first :][: len(parts[0])], settings)
            kl += block_kl
            pl += block_pl
        if settings.needs_gradient:
            gradients.add(start, chunk[0], hidden[start : start + size], head)
    return kl, pl


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

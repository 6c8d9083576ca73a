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

from typing import NamedTuple

import torch
from torch import Tensor

from distilwhisper.divergences import DIVERGENCES, ChunkSettings, TopKTeacher
from distilwhisper.fused_loss import FusedDistillation, accumulation_dtype, default_chunk_size


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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor | TopKTeacher | None,
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
    rows: Tensor | None = None,
) -> DistillationLoss:
    """Return the KL + pseudo-label loss of paper eq. 6, without ever holding all the logits.

    The gradient reaches ``student_hidden`` and ``student_head`` (if they require it), never the teacher. With no
    labelled row at all the loss is 0, with a gradient of 0, so that every process takes part in collective operations.

    Args:
        student_hidden: Last hidden states of the student, ``[N, d_s]`` (or ``[..., d_s]``).
        student_head: Its output projection, ``[V, d_s]``.
        teacher_hidden: Last hidden states of the teacher, ``[N, d_t]``, or its distributions as a ``TopKTeacher``; None
            if ``kl_weight`` is 0.
        teacher_head: Its output projection, ``[V, d_t]``; None if ``kl_weight`` is 0 or with a ``TopKTeacher``.
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
        rows: Positions of the labelled rows among the ``N``, if they are known: a GPU need not be waited for to count.

    Returns:
        The total and its two terms, scalars in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: For shapes that do not fit, a temperature or chunk size that is not positive, negative weights, an
            unknown divergence, a ``kl_weight`` above 0 without a teacher, or a ``TopKTeacher`` of another temperature
            or for another divergence than ``forward_kl``.
    """
    _check_weights(temperature, kl_weight, pl_weight, chunk_size)
    if divergence not in DIVERGENCES or not 0 < mixture < 1:
        raise ValueError(
            f"divergence must be one of {', '.join(DIVERGENCES)}, not {divergence!r}, and mixture lie between 0 and 1, "
            f"not {mixture}"
        )
    teacher = _teacher(teacher_hidden, teacher_head) if kl_weight > 0 else None
    if kl_weight > 0 and teacher is None:
        raise ValueError(f"kl_weight={kl_weight} needs teacher_hidden and teacher_head; pass them, or kl_weight=0")
    if isinstance(teacher, TopKTeacher):
        _check_top_k(teacher, temperature, divergence)
    student_hidden, labels = student_hidden.flatten(0, -2), labels.flatten()
    _check_shapes(student_hidden, student_head, teacher, labels)

    rows = (labels != ignore_index).nonzero().squeeze(1) if rows is None else rows
    if len(rows) < len(labels):
        student_hidden, labels = student_hidden[rows], labels[rows]
        if isinstance(teacher, TopKTeacher):
            teacher = teacher.rows(rows)
        elif teacher is not None:
            teacher = teacher[0][rows], teacher[1]
    settings = ChunkSettings(
        temperature=temperature,
        kl_weight=kl_weight,
        pl_weight=pl_weight,
        divergence=divergence,
        mixture=mixture,
        chunk_size=chunk_size or default_chunk_size(student_head),
        needs_gradient=torch.is_grad_enabled() and (student_hidden.requires_grad or student_head.requires_grad),
    )
    divisor = _divisor(len(labels) if num_items is None else num_items, student_hidden)
    return DistillationLoss(
        *FusedDistillation.apply(  # type: ignore[no-untyped-call]
            student_hidden, student_head, teacher, labels, divisor, settings
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


def _check_top_k(teacher: TopKTeacher, temperature: float, divergence: str) -> None:
    if teacher.temperature != temperature:
        raise ValueError(
            f"the teacher's top-k distributions are of temperature {teacher.temperature}, the loss has {temperature}: "
            "the tail beyond k tokens is unknown at any other"
        )
    if divergence != "forward_kl":
        raise ValueError(f"a top-k teacher serves divergence='forward_kl' alone, not {divergence!r}")


def _teacher(hidden: Tensor | TopKTeacher | None, head: Tensor | None) -> tuple[Tensor, Tensor] | TopKTeacher | None:
    if isinstance(hidden, TopKTeacher):
        return TopKTeacher(hidden.ids.flatten(0, -2), hidden.log_probabilities.flatten(0, -2), hidden.temperature)
    return None if hidden is None or head is None else (hidden.detach().flatten(0, -2), head.detach())


def _check_shapes(
    hidden: Tensor, head: Tensor, teacher: tuple[Tensor, Tensor] | TopKTeacher | None, labels: Tensor
) -> None:
    pairs = [("student", hidden, head)]
    if isinstance(teacher, TopKTeacher):
        ids, log_probabilities, _ = teacher
        if len(ids) != len(labels) or log_probabilities.shape != (len(ids), ids.shape[1] + 1):
            raise ValueError(
                f"a top-k teacher has ids [N, k] and log_probabilities [N, k + 1] for N = {len(labels)} labels, not "
                f"{list(ids.shape)} and {list(log_probabilities.shape)}"
            )
    elif teacher is not None:
        pairs.append(("teacher", *teacher))
        if len(head) != len(teacher[1]):
            raise ValueError(
                f"student and teacher must share one vocabulary, not {len(head)} and {len(teacher[1])} tokens"
            )
    for name, states, weight in pairs:
        if states.shape[0] != labels.shape[0] or states.shape[1] != weight.shape[1]:
            raise ValueError(
                f"{name}_hidden {list(states.shape)} must be [N, d] with N = {labels.shape[0]} labels and d = "
                f"{weight.shape[1]}, the width of {name}_head {list(weight.shape)}"
            )


def _divisor(num_items: Tensor | float, like: Tensor) -> Tensor:
    # A tensor is clamped on its device: reading its value would make the host wait for the GPU. clamp gives 0/1 = 0 for
    # an update without labels.
    dtype = accumulation_dtype(like)
    return torch.as_tensor(num_items, device=like.device, dtype=dtype).clamp(min=1)

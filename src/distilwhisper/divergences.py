"""What one chunk of logits contributes to the objective, and its gradient with respect to the student's logits.

With ``p`` the teacher's and ``q`` the student's distribution, both softened by the temperature, ``s`` the student's
logits divided by it, and a mixture weight ``w``::

    forward_kl   KL(p || q)                                 d/ds = q - p
    reverse_kl   KL(q || p)                                 d/ds = q (g - E_q g),   g = log q - log p
    jsd          w KL(p || m) + (1 - w) KL(q || m)          g = (1 - w) (log q - log m),   m = w p + (1 - w) q
    skew_kl      KL(p || m)                                 g = -(1 - w) p / m,            m = w p + (1 - w) q

``jsd`` is the generalised Jensen-Shannon divergence (Agarwal et al. 2024, eq. 1), ``skew_kl`` that of Ko et al. 2024.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skew_kl")


class TopKTeacher(NamedTuple):
    """A teacher's distributions, softened, as their likeliest tokens and one bucket for all others.

    Attributes:
        ids: Token ids, ``[N, k]``.
        log_probabilities: Natural log-probabilities of these, and last of the bucket, ``[N, k + 1]``.
        temperature: What the distributions were softened with; they serve at no other.
    """

    ids: Tensor
    log_probabilities: Tensor
    temperature: float

    def rows(self, rows: Tensor | slice) -> TopKTeacher:
        """Return the distributions of some rows."""
        return TopKTeacher(self.ids[rows], self.log_probabilities[rows], self.temperature)


class ChunkSettings(NamedTuple):
    """How a chunk is reduced.

    Attributes:
        temperature: Softens both distributions of the divergence.
        kl_weight: Weight of the divergence.
        pl_weight: Weight of the cross-entropy.
        divergence: One of ``DIVERGENCES``.
        mixture: Share of the teacher in the mixture of ``jsd`` and ``skew_kl``.
        chunk_size: Rows of a chunk.
        needs_gradient: Whether the gradient is wanted.
    """

    temperature: float
    kl_weight: float
    pl_weight: float
    divergence: str
    mixture: float
    chunk_size: int
    needs_gradient: bool

    @property
    def gradient_unit(self) -> float:
        """What the gradients of a chunk are divided by: the larger weight, which then costs no pass."""
        return max(self.kl_weight * self.temperature, self.pl_weight) or 1.0

    @property
    def kl_share(self) -> float:
        """Weight of the divergence in those gradients."""
        return self.kl_weight * self.temperature / self.gradient_unit

    @property
    def pl_share(self) -> float:
        """Weight of the cross-entropy in those gradients."""
        return self.pl_weight / self.gradient_unit

    @property
    def scratch_buffers(self) -> int:
        """Number of ``[rows, V]`` buffers that a chunk with a teacher needs beside the logits."""
        return 1 if self.divergence == "forward_kl" else 2


def reduce_chunk(buffers: list[Tensor], labels: Tensor, settings: ChunkSettings) -> tuple[Tensor, Tensor]:
    """Reduce one chunk of logits to its two sums and leave the gradient, over ``gradient_unit``, in the first buffer.

    Memory traffic decides the speed here, so every pass works in place and there are as few as may be.

    Args:
        buffers: The student's logits divided by the temperature; with a teacher, also the teacher's, and scratch. Each
            ``[rows, V]``, all overwritten.
        labels: ``[rows]``.
        settings: Weights, temperature, divergence.

    Returns:
        Sum over the rows of the divergence times ``T^2``, and of the cross-entropy.
    """
    student = buffers[0]
    if settings.divergence == "forward_kl" and len(buffers) > 1:
        return _forward_kl(buffers, labels, settings)
    student.sub_(student.amax(-1, keepdim=True))
    if len(buffers) == 1:
        return torch.zeros_like(student[0, 0]), _cross_entropy(student, labels, settings)
    gradient, divergence = _mixture_divergence(buffers, settings)
    cross_entropy = _cross_entropy(student, labels, settings)
    if settings.needs_gradient:
        student.add_(gradient, alpha=settings.kl_share)
    return divergence.sum() * settings.temperature**2, cross_entropy


def _cross_entropy(student: Tensor, labels: Tensor, settings: ChunkSettings) -> Tensor:
    index = labels.unsqueeze(1)
    if settings.temperature != 1:
        student.mul_(settings.temperature)
    target = student.gather(1, index)
    total = student.exp_().sum(-1, keepdim=True)
    if settings.needs_gradient:
        student.mul_(settings.pl_share / total)
        student.scatter_add_(1, index, torch.full_like(target, -settings.pl_share))
    return (total.log() - target).sum()


def _forward_kl(buffers: list[Tensor], labels: Tensor, settings: ChunkSettings) -> tuple[Tensor, Tensor]:
    # softmax reads its row once where amax, exp and sum would read it four times; each lse comes from it.
    (student, teacher, p), temperature = buffers, settings.temperature
    index = labels.unsqueeze(1)
    target = student.gather(1, index) * temperature
    torch.softmax(teacher, -1, out=p)
    teacher_lse = _logsumexp(teacher, p, index)
    divergence = teacher.sub_(student).mul_(p).sum(-1, keepdim=True)
    q = torch.softmax(student, -1, out=teacher)
    soft_lse = _logsumexp(student, q, index)
    difference = torch.sub(q, p, out=p)
    hard, hard_sum, hard_lse = _hard_numerators(student, q, soft_lse, temperature)
    if settings.needs_gradient:
        if settings.kl_share != 1:
            difference.mul_(settings.kl_share)
        torch.addcmul(difference, hard, settings.pl_share / hard_sum, out=student)
        student.scatter_add_(1, index, torch.full_like(target, -settings.pl_share))
    return (divergence - teacher_lse + soft_lse).sum() * temperature**2, (hard_lse - target).sum()


def reduce_top_k_chunk(
    buffers: list[Tensor], labels: Tensor, teacher: TopKTeacher, settings: ChunkSettings
) -> tuple[Tensor, Tensor]:
    """Do what `reduce_chunk` does, for a teacher of ``k`` tokens and one bucket for all others.

    ::

        KL_k+1 = sum_K p_j log(p_j / q_j) + r log(r / s),    r = 1 - sum_K p_j,  s = 1 - sum_K q_j
        d/ds   = q_j - p_j  in K,    q_j (1 - r / s)  elsewhere

    It is at most the whole KL (log-sum inequality), and equal where both spread alike over the bucket.

    Args:
        buffers: The student's logits divided by the temperature, and scratch; each ``[rows, V]``, overwritten.
        labels: ``[rows]``.
        teacher: Its distributions for these rows.
        settings: Weights and temperature.

    Returns:
        Sum over the rows of the divergence times ``T^2``, and of the cross-entropy.
    """
    (student, q), (ids, log_p, temperature) = buffers, teacher
    index = labels.unsqueeze(1)
    target = student.gather(1, index) * temperature
    torch.softmax(student, -1, out=q)
    soft_lse = _logsumexp(student, q, index)
    log_q = student.gather(1, ids) - soft_lse
    q_top = log_q.exp()
    q.scatter_(1, ids, 0)
    rest = q.sum(-1, keepdim=True).clamp_(min=torch.finfo(q.dtype).tiny)  # summed, as 1 - sum_K q would cancel
    p, residual = log_p[:, :-1].exp(), log_p[:, -1:].exp()
    divergence = (torch.xlogy(p, p) - p * log_q).sum(-1, keepdim=True) + torch.xlogy(residual, residual / rest)
    q.scatter_(1, ids, q_top)
    hard, hard_sum, hard_lse = _hard_numerators(student, q, soft_lse, temperature)
    if settings.needs_gradient:
        share = settings.pl_share / hard_sum
        top = hard.gather(1, ids) * share + settings.kl_share * (q_top - p)
        hard.mul_(share).addcmul_(q, settings.kl_share * (1 - residual / rest)).scatter_(1, ids, top)
        hard.scatter_add_(1, index, torch.full_like(target, -settings.pl_share))
    return divergence.sum() * temperature**2, (hard_lse - target).sum()


def _hard_numerators(student: Tensor, q: Tensor, soft_lse: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits divided by the temperature into the numerators of their softmax at 1; return sum and lse too."""
    if temperature in (1, 2):  # exp(z) is exp(z / 2) squared: no second pass of exponentials
        torch.mul(q, q if temperature == 2 else 1, out=student)
        total = student.sum(-1, keepdim=True)
        return student, total, temperature * soft_lse + total.log()
    student.sub_(soft_lse).mul_(temperature)
    peak = student.amax(-1, keepdim=True)
    total = student.sub_(peak).exp_().sum(-1, keepdim=True)
    return student, total, temperature * soft_lse + peak + total.log()


def _logsumexp(logits: Tensor, probabilities: Tensor, index: Tensor) -> Tensor:
    """Return that of each row from its logit and probability at an index, or, if that is next to nothing, the most."""
    known = probabilities.gather(1, index)
    if not known.is_cpu or known.amin() < 1e-30:  # a GPU would be waited for
        return logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
    return logits.gather(1, index) - known.log()


def _mixture_divergence(buffers: list[Tensor], settings: ChunkSettings) -> tuple[Tensor, Tensor]:
    """Return the gradient ``[rows, V]`` and the value ``[rows, 1]``; the student's buffer is left as it was."""
    student, log_p, log_q, other = buffers
    weight = settings.mixture
    log_p.sub_(log_p.logsumexp(-1, keepdim=True))
    log_q.copy_(student)
    log_q.sub_(log_q.logsumexp(-1, keepdim=True))
    if settings.divergence == "reverse_kl":
        slope = torch.sub(log_q, log_p, out=other)
        q = log_q.exp_()
        value = _expectation(q, slope)
    else:
        p, q = log_p.exp(), log_q.exp()
        # log m from the sum itself: m lies between p and q, so it vanishes only where both do, and 0 log 0 = 0
        log_m = torch.lerp(q, p, weight).clamp_(min=torch.finfo(q.dtype).tiny).log_()
        value = _expectation(p, log_p - log_m)
        if settings.divergence == "jsd":
            slope = torch.sub(log_q, log_m, out=other)
            value = weight * value + (1 - weight) * _expectation(q, slope)
            slope.mul_(1 - weight)
        else:
            slope = torch.div(p, log_m.exp_(), out=other).mul_(weight - 1)
    return slope.sub_(_expectation(q, slope)).mul_(q), value


def _expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    return (probabilities * values).sum(-1, keepdim=True)

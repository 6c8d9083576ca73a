"""A teacher's likeliest tokens as bytes: what a small cache keeps of its distributions."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_VOCABULARY = 2**16


def find_top_k(hidden: Tensor, head: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the ``k`` likeliest tokens and the log-probabilities of these and of all others together.

    Args:
        hidden: The teacher's last hidden states, ``[tokens, d]``.
        head: Its output projection, ``[V, d]``.
        top_k: ``k``.
        temperature: Softens the distributions.

    Returns:
        ``[tokens, k]`` and ``[tokens, k + 1]``, in float32.
    """
    log_p = ((hidden.to(head.dtype) @ head.t()).float() / temperature).log_softmax(-1)
    best, ids = log_p.topk(top_k)
    rest = log_p.scatter_(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return ids, torch.cat([best, rest], -1)


def pack_top_k(ids: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return ``[tokens, 4 k + 2]`` bytes: ids of 16 bits, then log-probabilities of 16 bits."""
    numbers = torch.cat(
        [(ids - LARGEST_VOCABULARY // 2).to(torch.int16), log_probabilities.half().view(torch.int16)], -1
    )
    return numbers.cpu().contiguous().view(torch.uint8)


def unpack_top_k(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids ``[tokens, k]`` and log-probabilities ``[tokens, k + 1]``, which add up to 1 again."""
    numbers = packed.view(torch.int16)
    top_k = numbers.shape[1] // 2
    ids = numbers[:, :top_k].long() + LARGEST_VOCABULARY // 2
    return ids, numbers[:, top_k:].contiguous().view(torch.float16).float().log_softmax(-1)

"""oneDNN's linear layer for float32 on CPUs: the operations that PyTorch's compiler uses, which have no public name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def has_onednn(tensor: Tensor) -> bool:
    """Return whether oneDNN is there for the products of a tensor: float32 on a CPU (MPS and some builds have none)."""
    return tensor.dtype == torch.float32 and tensor.is_cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(left: Tensor, weight: Tensor) -> Tensor:
    """Return ``left @ weight.T``; for weights of a vocabulary's size in as little as half the time of ``torch.mm``."""
    return torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")  # type: ignore[no-any-return]


def packed_linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `onednn_linear` by a copy of the weight in the order that oneDNN's kernels read it in."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda left: onednn_linear(left.float(), packed)

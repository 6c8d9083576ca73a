"""oneDNN's linear layer for float32 on CPUs: the operations that PyTorch's compiler uses, which have no public name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SMALL_WEIGHT = 2**17
"""Numbers of a weight below which PyTorch's own linear is as fast, and its gradient needs no call of Python's."""


def has_onednn(tensor: Tensor) -> bool:
    """Return whether oneDNN is there for the products of a tensor: float32 on a CPU (MPS and some builds have none)."""
    return tensor.dtype == torch.float32 and tensor.is_cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(left: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``left @ weight.T + bias``, in as little as half the time of ``torch.mm``; it has no gradient."""
    return torch.ops.mkldnn._linear_pointwise(left, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def packed_linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `onednn_linear` by a copy of the weight in the order that oneDNN's kernels read it in."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda left: onednn_linear(left.float(), packed)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `torch.nn.functional.linear` returns, by `onednn_linear` where that is to be had.

    Args:
        inputs: ``[rows, in]``.
        weight: ``[out, in]``.
        bias: ``[out]``.
    """
    if weight.numel() < _SMALL_WEIGHT or not has_onednn(inputs) or torch.is_autocast_enabled("cpu"):
        return torch.nn.functional.linear(inputs, weight, bias)
    return _Linear.apply(inputs, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return onednn_linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, weight), (of_inputs, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.t()) if of_inputs else None,
            gradient.t() @ inputs if of_weight else None,  # as fast as oneDNN's, which would copy both operands
            gradient.sum(0) if of_bias else None,
        )

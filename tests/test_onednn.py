"""oneDNN's linear layer: values and gradients against double precision, and where PyTorch's own is called."""

import pytest
import torch
import torch.nn.functional as F

from distilwhisper.onednn import has_onednn, linear


def operands(size, *, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(30, size), (size + 8, size), *([(size + 8,)] if bias else [])]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("size", [16, 400])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_in_double_precision(size, bias, dtype):
    made = operands(size, bias=bias, dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in made]
    ours, expected = linear(*made), F.linear(*exact)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(made, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_only_what_requires_a_gradient_gets_one(trained):
    made = operands(400, bias=True)
    for place, tensor in enumerate(made):
        tensor.requires_grad_(place == trained)
    linear(*made).sum().backward()
    assert [tensor.grad is not None for tensor in made] == [place == trained for place in range(3)]


@pytest.mark.skipif(not has_onednn(torch.ones(1)), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize(("size", "expected"), [(400, True), (16, False)])
def test_large_weights_alone_go_to_onednn(size, expected):
    assert ("_Linear" in type(linear(*operands(size, bias=True)).grad_fn).__name__) is expected


def test_mixed_precision_is_that_of_pytorch():
    made = operands(400, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(linear(*made), F.linear(*made), rtol=0, atol=0)


def test_weights_that_lie_otherwise_in_memory_are_taken_as_they_are():
    inputs, weight = operands(400, bias=False)
    turned = weight.detach().t().contiguous().t().requires_grad_()
    torch.testing.assert_close(linear(inputs, turned), linear(inputs, weight))

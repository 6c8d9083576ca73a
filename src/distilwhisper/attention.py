"""Which attention kernel runs: FlashAttention 2 where it can, PyTorch's own elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

logger = logging.getLogger(__name__)

_UNMASKED = "distilwhisper_sdpa"
# Registered for attention and not for masks: Transformers then makes no mask, and tells the kernel of causality alone.
AttentionInterface.register(_UNMASKED, sdpa_attention_forward)


def choose_attention(requested: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the attention implementation to use.

    Args:
        requested: ``auto`` for ``flash_attention_2`` where the package is installed, the GPU is an Ampere or newer and
            the numbers have 16 bits, else ``sdpa``; any other name is taken as it is.
        device: Where the model runs.
        dtype: Number type that it computes in.

    Raises:
        ValueError: If ``flash_attention_2`` is asked for where it cannot run.
    """
    if requested not in ("auto", "flash_attention_2"):
        return requested
    reasons = {
        f"the model is on {device.type}, not on a CUDA GPU": device.type != "cuda",
        "the package flash-attn is missing (pip install 'distilwhisper[flash-attn]')": not is_flash_attn_2_available(),
        f"it computes in {str(dtype).removeprefix('torch.')}, not in 16 bits": dtype.itemsize != 2,
        "the GPU is older than Ampere": device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0),
    }
    problems = [reason for reason, applies in reasons.items() if applies]
    if problems and requested != "auto":
        raise ValueError(f"attn_implementation='flash_attention_2' cannot run: {'; '.join(problems)}; use 'auto'")
    return "sdpa" if problems else "flash_attention_2"


def set_attention(model: Any, requested: str, device: torch.device, dtype: torch.dtype, *, name: str = "model") -> str:
    """Give a model the attention implementation that `choose_attention` returns, and say so in the log.

    Args:
        model: A Whisper.
        requested: As for `choose_attention`, which has the other arguments too.
        device: Where the model will run.
        dtype: Number type that it will compute in.
        name: What the log calls it.
    """
    chosen = choose_attention(requested, device, dtype)
    model.set_attn_implementation(chosen)
    logger.info("attention of the %s: %s", name, chosen)
    return chosen


def without_masks(*models: Any) -> AbstractContextManager[None]:
    """Let decoders run on whole right-padded sequences without attention masks, which ``sdpa`` would build.

    Building them makes the host wait for the GPU at each forward pass, and no labelled position sees the padding. Not
    for generation: with cached keys, the kernel's notion of causality is another.

    Args:
        models: Models, of which those with ``sdpa`` are switched; None is passed over.
    """
    return _switched(models, "sdpa", _UNMASKED)


def without_flash(*models: Any) -> AbstractContextManager[None]:
    """Let models with float32 weights run outside mixed precision, as generation does: FlashAttention takes 16 bits.

    Args:
        models: Models, of which those with ``flash_attention_2`` are switched to ``sdpa``; None is passed over.
    """
    return _switched(models, "flash_attention_2", "sdpa")


@contextmanager
def _switched(models: tuple[Any, ...], usual: str, now: str) -> Iterator[None]:
    configs = {id(model.config): model.config for model in models if model is not None}.values()
    switched = [config for config in configs if config._attn_implementation == usual]
    for config in switched:
        config._attn_implementation = now
    try:
        yield
    finally:
        for config in switched:
            config._attn_implementation = usual

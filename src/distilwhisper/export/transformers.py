"""The complete directory for Transformers 4 and 5, Candle, and the converters of other projects."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.export.formats import check_dtype
from distilwhisper.generation import encode, forced_logits, generate_tokens
from distilwhisper.student import save_processor

DTYPES = ("auto", "float32", "float16", "bfloat16")


def write(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, output_dir: Path, *, dtype: str = "auto"
) -> None:
    """Write ``model.safetensors``, the configs, and the files that Transformers 5 leaves out.

    Args:
        model: The model.
        processor: Its processor.
        output_dir: Where to.
        dtype: ``auto`` keeps the number type of the model; else ``float32``, ``float16`` or ``bfloat16``.
    """
    cast(model, dtype).save_pretrained(output_dir)
    save_processor(processor, output_dir)


def cast(model: WhisperForConditionalGeneration, dtype: str) -> WhisperForConditionalGeneration:
    """Return the model itself for ``auto``, else a copy in the number type.

    Raises:
        ValueError: For another number type.
    """
    check_dtype(dtype, DTYPES)
    return model if dtype == "auto" else copy.deepcopy(model).to(getattr(torch, dtype))


def run(export_dir: Path, features: npt.NDArray[np.float32], prompt: list[int], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy new tokens of the directory loaded anew; half precision is computed in float32."""
    model = load(export_dir)
    return generate_tokens(
        model, [prompt] * len(features), input_features=torch.from_numpy(features), max_new_tokens=max_new_tokens
    ).ids


def logits(
    export_dir: Path, features: npt.NDArray[np.float32], prompt: list[int], tokens: list[list[int]]
) -> list[npt.NDArray[np.float32]]:
    """Return the logits behind the prompt and each token, ``[tokens + 1, vocabulary]`` for each recording."""
    model = load(export_dir)
    states = encode(model, torch.from_numpy(features))
    return [forced_logits(model, prompt, *pair).numpy() for pair in zip(tokens, states, strict=True)]


def load(export_dir: Path) -> WhisperForConditionalGeneration:
    """Load the model in float32."""
    return WhisperForConditionalGeneration.from_pretrained(export_dir, dtype=torch.float32).eval()

"""The decoder alone, as ``WhisperForCausalLM``: the assistant of a teacher whose encoder it shares."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperForCausalLM, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.export.transformers import cast
from distilwhisper.generation import forced_logits, generate_tokens

TAKES = "states"


def write(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,  # noqa: ARG001 -- every format is written by the same call
    output_dir: Path,
    *,
    dtype: str = "auto",
) -> None:
    """Write the decoder and its configs.

    Args:
        model: The student; its encoder must be the teacher's, as the assistant hears the teacher's states.
        processor: Not written: the assistant uses the teacher's.
        output_dir: Where to.
        dtype: ``auto`` keeps the number type of the model; else ``float32``, ``float16`` or ``bfloat16``.
    """
    weights = cast(model, dtype).state_dict()
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        assistant = WhisperForCausalLM(config)
    assistant.load_state_dict({name: weights[name] for name in assistant.state_dict()}, assign=True)
    assistant.tie_weights()
    assistant.generation_config = copy.deepcopy(model.generation_config)
    assistant.save_pretrained(output_dir)


def run(export_dir: Path, states: npt.NDArray[np.float32], prompt: list[int], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy new tokens for encoder states ``[batch, positions, d_model]``; computed in float32."""
    prefix = [prompt] * len(states)
    return generate_tokens(
        _load(export_dir), prefix, encoder_hidden_states=torch.from_numpy(states), max_new_tokens=max_new_tokens
    ).ids


def logits(
    export_dir: Path, states: npt.NDArray[np.float32], prompt: list[int], tokens: list[list[int]]
) -> list[npt.NDArray[np.float32]]:
    """Return the logits behind the prompt and each token, ``[tokens + 1, vocabulary]`` for each recording."""
    model, rows = _load(export_dir), torch.from_numpy(states)
    return [forced_logits(model, prompt, *pair).numpy() for pair in zip(tokens, rows, strict=True)]


def _load(export_dir: Path) -> WhisperForCausalLM:
    return WhisperForCausalLM.from_pretrained(export_dir, dtype=torch.float32).eval()

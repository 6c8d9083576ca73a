"""Random models and batches of published shapes, for measurements that need no trained weights."""

from typing import Any

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from distilwhisper import create_student

SIZES = {
    "large-v3": {"d_model": 1_280, "layers": 32, "heads": 20, "vocab_size": 51_866, "num_mel_bins": 128},
    "small": {"d_model": 768, "layers": 12, "heads": 12, "vocab_size": 51_865, "num_mel_bins": 80},
    "mini": {"d_model": 64, "layers": 3, "heads": 2, "vocab_size": 1_000, "num_mel_bins": 80},
}
FULL_LENGTH = 448


def models(size: str, attention: str = "sdpa") -> tuple[Any, Any]:
    """Return a random teacher and its student of two decoder layers with a frozen encoder."""
    shape = dict(SIZES[size])
    width, layers, heads = (shape.pop(name) for name in ("d_model", "layers", "heads"))
    config = WhisperConfig(
        d_model=width,
        **{f"{part}_layers": layers for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": heads for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 4 * width for part in ("encoder", "decoder")},
        **shape,
        **{f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "decoder_start")},
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    teacher = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    student = create_student(teacher, decoder_layers=2, freeze_encoder=True).train()
    student.set_attn_implementation(attention)
    student.model.decoder.requires_grad_(True)
    return teacher, student


def batch(config: Any, lengths: list[int], width: int) -> dict[str, Tensor]:
    """Return features and labels of the given lengths, padded to ``width`` tokens."""
    labels = torch.full((len(lengths), width), -100)
    for row, length in enumerate(lengths):
        labels[row, :length] = torch.randint(config.vocab_size, (length,))
    return {
        "input_features": torch.randn(len(lengths), config.num_mel_bins, 2 * config.max_source_positions),
        "decoder_input_ids": labels.clamp(min=0),
        "labels": labels,
    }


def cached(config: Any, made: dict[str, Tensor], dtype: torch.dtype, top_k: int = 0) -> dict[str, Tensor]:
    """Return the same batch as a cache would give it, with the teacher's hidden states or its likeliest tokens."""
    size, tokens = made["labels"].shape
    teacher = {"teacher_hidden": torch.randn(size, tokens, config.d_model, dtype=dtype)}
    if top_k:
        ids = torch.stack([torch.randperm(config.vocab_size)[:top_k] for _ in range(size * tokens)])
        log_probs = torch.randn(size, tokens, top_k + 1).log_softmax(-1)
        teacher = {"teacher_ids": ids.view(size, tokens, top_k), "teacher_log_probs": log_probs}
    states = torch.randn(size, config.max_source_positions, config.d_model, dtype=dtype)
    return {name: made[name] for name in ("decoder_input_ids", "labels")} | {"encoder_states": states} | teacher

"""The checkpoint file of the package openai-whisper, which whisper.cpp's ``convert-pt-to-ggml.py`` reads as well."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from distilwhisper.export.formats import ExportError, check_dtype

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

DTYPES = ("float16", "float32")
MODEL_FILE, ALIGNMENT_FILE = "model.pt", "alignment_heads.b85"

_NAMES = (  # in this order: the longer names first
    ("layers.", "blocks."),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("self_attn_layer_norm", "attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("encoder_attn.", "cross_attn."),
    ("self_attn.", "attn."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("embed_tokens", "token_embedding"),
    ("embed_positions.weight", "positional_embedding"),
)


def write(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,  # noqa: ARG001 -- every format is written by the same call
    output_dir: Path,
    *,
    dtype: str = "float16",
) -> None:
    """Write ``model.pt`` and, beside it, what the format has no place for.

    That is ``generation_config.json`` (suppressed tokens) and ``alignment_heads.b85``, the argument of
    ``set_alignment_heads``.

    Args:
        model: The model.
        processor: Not written: the package has its own tokenizer.
        output_dir: Where to.
        dtype: ``float16``, which whisper.cpp's converter needs, or ``float32``.

    Raises:
        ExportError: If the package's model cannot hold the weights.
        ValueError: For another number type.
    """
    check_dtype(dtype, DTYPES)
    if not torch.equal(model.proj_out.weight, model.model.decoder.embed_tokens.weight):
        raise ExportError("openai-whisper has one matrix for token embeddings and output, but this model has two")
    config = model.config
    if {config.encoder_ffn_dim, config.decoder_ffn_dim} != {4 * config.d_model}:
        raise ExportError(
            f"openai-whisper has feed-forward layers of 4 times d_model, {4 * config.d_model}, but this model's are of "
            f"{config.encoder_ffn_dim} and {config.decoder_ffn_dim}"
        )
    weights = {renamed(name): weight.to(getattr(torch, dtype)) for name, weight in model.model.state_dict().items()}
    torch.save({"dims": _dimensions(model.config), "model_state_dict": weights}, output_dir / MODEL_FILE)
    model.generation_config.save_pretrained(output_dir)
    if heads := getattr(model.generation_config, "alignment_heads", None):
        chosen = np.zeros((model.config.decoder_layers, model.config.decoder_attention_heads), bool)
        chosen[tuple(zip(*heads, strict=True))] = True
        (output_dir / ALIGNMENT_FILE).write_bytes(base64.b85encode(gzip.compress(chosen.tobytes())))


def renamed(name: str) -> str:
    """Return openai-whisper's name of a weight of ``WhisperModel``."""
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def _dimensions(config: WhisperConfig) -> dict[str, int]:
    return {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }


def run(export_dir: Path, features: npt.NDArray[np.float32], prompt: list[int], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy new tokens of ``whisper.decode`` on log-mel features ``[batch, mels, frames]``."""
    from whisper.decoding import DecodingOptions, DecodingTask

    model = _load(export_dir)
    config = json.loads((export_dir / "generation_config.json").read_text(encoding="utf-8"))
    options = DecodingOptions(
        **_language_and_task(model, prompt),
        without_timestamps=True,
        suppress_tokens=config.get("suppress_tokens") or [],
        suppress_blank=bool(config.get("begin_suppress_tokens")),
        sample_len=max_new_tokens,
        fp16=False,
    )
    task = DecodingTask(model, options)
    if list(task.initial_tokens) != prompt:
        raise ExportError(f"openai-whisper opens a transcript with {list(task.initial_tokens)}, not {prompt}")
    with torch.inference_mode():
        return [result.tokens for result in task.run(torch.from_numpy(features))]


def logits(
    export_dir: Path, features: npt.NDArray[np.float32], prompt: list[int], tokens: list[list[int]]
) -> list[npt.NDArray[np.float32]]:
    """Return the logits behind the prompt and each token, ``[tokens + 1, vocabulary]`` for each recording."""
    model = _load(export_dir)
    with torch.inference_mode():
        states = model.embed_audio(torch.from_numpy(features))
        rows = zip(tokens, states, strict=True)
        return [
            model.logits(torch.tensor([[*prompt, *ids]]), state[None])[0, len(prompt) - 1 :].numpy()
            for ids, state in rows
        ]


def _load(export_dir: Path) -> Any:
    import whisper

    return whisper.load_model(str(export_dir / MODEL_FILE), device="cpu")


def _language_and_task(model: Any, prompt: list[int]) -> dict[str, str]:
    from whisper.tokenizer import get_tokenizer

    if not model.is_multilingual:
        return {"language": "en", "task": "transcribe"}  # with None the package would detect the language, and fail
    tokenizer = get_tokenizer(multilingual=True, num_languages=model.num_languages)
    language, task = (tokenizer.decode([token]).strip("<|>") for token in prompt[1:3])
    return {"language": language, "task": task}

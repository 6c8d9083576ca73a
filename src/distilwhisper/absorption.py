"""A decoder step without keys and values of the recording: cross-attention reads the encoder's output itself.

A head's score of a position is ``q . (K s)``, which is ``(K^T q) . s``; and what the head returns is a mean of ``V s``,
which is ``V`` times the mean of ``s``. So the two projections can move from all positions of the recording to the
tokens that are written (multi-head latent attention's "absorption": DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).
That leaves out two projections of the whole recording in each layer, and one tensor takes the place of two a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import DynamicLayer
from transformers.models.whisper.modeling_whisper import (
    WhisperAttention,
    WhisperDecoder,
    WhisperDecoderLayer,
    WhisperPositionalEmbedding,
)

from distilwhisper.onednn import linear

_PLAIN = {
    *(WhisperAttention, WhisperDecoder, WhisperDecoderLayer, WhisperPositionalEmbedding),
    *(nn.Embedding, nn.LayerNorm, nn.Linear, nn.ModuleList),
}


def absorbs(model: WhisperForConditionalGeneration, tokens: int) -> bool:
    """Return whether `absorbed_step` can and should take the place of the model's decoder.

    Args:
        model: A Whisper.
        tokens: Longest prefix.
    """
    return pays(model, tokens) and is_plain(model.model.decoder)


def pays(model: WhisperForConditionalGeneration, tokens: int) -> bool:
    """Return whether a plain decoder should absorb: on a CPU in float32, as 16 bits would round the scores.

    Args:
        model: A Whisper.
        tokens: Of a row, at a time. More than a head has dimensions cost more to absorb than it saves.
    """
    config = model.config
    if model.device.type != "cpu" or model.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    kernel: str = config._attn_implementation
    return "sdpa" in kernel and tokens <= config.d_model // config.decoder_attention_heads


def is_plain(decoder: nn.Module) -> bool:
    """Return whether a decoder is Transformers' own: nothing replaced (adapters, shards, ...), hooked or compiled."""
    return all(map(_is_plain, decoder.modules()))


def _is_plain(module: nn.Module) -> bool:
    if "forward" in vars(module) or module._compiled_call_impl or module._forward_hooks or module._forward_pre_hooks:
        return False
    activation = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
    return activation or type(module) in _PLAIN


def absorbed_step(
    decoder: WhisperDecoder,
    inputs: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    encoder_hidden_states: Tensor,
    memories: Sequence[DynamicLayer],
) -> Tensor:
    """Return the decoder's last hidden states ``[rows, tokens, d_model]``.

    Args:
        decoder: A Whisper decoder.
        inputs: Ids of new tokens, ``[rows, tokens]``.
        positions: Their positions, of the same shape.
        mask: Added to the scores of self-attention, ``[rows, 1, tokens, keys]``; None if every token sees all keys.
        encoder_hidden_states: ``[rows, positions, d_model]``.
        memories: Keys and values of self-attention, a layer each; ``update`` adds the new ones and returns them all.
    """
    hidden = decoder.embed_tokens(inputs) + decoder.embed_positions.weight[positions]
    for layer, memory in zip(decoder.layers, memories, strict=True):
        hidden = hidden + _self_attention(layer.self_attn, layer.self_attn_layer_norm(hidden), mask, memory)
        attention = layer.encoder_attn
        queries = attention.q_proj(layer.encoder_attn_layer_norm(hidden))
        hidden = hidden + attention.out_proj(absorbed_attention(attention, queries, encoder_hidden_states))
        hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
    return decoder.layer_norm(hidden)  # type: ignore[no-any-return]


def _self_attention(attention: WhisperAttention, hidden: Tensor, mask: Tensor | None, memory: DynamicLayer) -> Tensor:
    heads = (*hidden.shape[:2], attention.num_heads, attention.head_dim)
    queries, keys, values = (
        projection(hidden).view(heads).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    keys, values = memory.update(keys, values)
    mixed = scaled_dot_product_attention(queries, keys, values, mask, scale=attention.scaling)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def absorbed_attention(attention: WhisperAttention, queries: Tensor, states: Tensor) -> Tensor:
    """Return what the heads of a cross-attention return, side by side: ``[rows, tokens, d_model]``.

    Args:
        attention: A layer's.
        queries: Projected, ``[rows, tokens, d_model]``.
        states: The encoder's output, ``[rows, positions, d_model]``.
    """
    rows, tokens, width = queries.shape
    count, size = attention.num_heads, attention.head_dim
    keys, values = attention.k_proj.weight.view(count, size, width), attention.v_proj.weight.view(count, size, width)
    queries = (queries * attention.scaling).view(rows * tokens, count, size).transpose(0, 1)
    queries = torch.bmm(queries, keys).transpose(0, 1).reshape(rows, tokens * count, width)
    weights = _products(queries, states).softmax(-1)
    mixed = _products(weights, states.transpose(1, 2)).view(rows * tokens, count, width).transpose(0, 1)
    # A head's weights add up to 1, so the bias of its values is added once.
    heads = torch.bmm(mixed, values.transpose(1, 2)).transpose(0, 1).reshape(rows, tokens, width)
    return heads + attention.v_proj.bias  # type: ignore[no-any-return]


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right.T`` row by row, ``[rows, m, n]`` of ``[rows, m, k]`` and ``[rows, n, k]``."""
    if len(left) == 1:  # one product is up to twice as fast as a batch of one
        return linear(left[0], right[0])[None]
    return torch.bmm(left, right.transpose(1, 2))

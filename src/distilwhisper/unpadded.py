"""A decoder's pass over a batch of labels: on CPUs without the padding behind them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoder

from distilwhisper.absorption import absorbed_attention, is_plain, pays
from distilwhisper.labels import IGNORE_INDEX
from distilwhisper.onednn import linear

WORTH_A_CALL = 2**27
"""Products with the encoder's output that a row must spare to be attended to by itself: a millisecond of two cores."""


def last_hidden_states(
    model: Any, encoder_hidden_states: Tensor, embeddings: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Return the decoder's last hidden states ``[rows, tokens, d_model]``.

    Args:
        model: A Whisper.
        encoder_hidden_states: ``[rows, positions, d_model]``.
        embeddings: Those of the input tokens, ``[rows, tokens, d_model]``.
        labels: ``[rows, tokens]``, `IGNORE_INDEX` where there is none. With them a CPU leaves out what lies behind a
            row's last label; the result is zero there. A GPU would wait for the host to learn the lengths.
    """
    decoder = model.model.decoder
    if labels is None or not _runs_unpadded(model):
        output = decoder(inputs_embeds=embeddings, encoder_hidden_states=encoder_hidden_states, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]
    rows, tokens = labels.shape
    positions = torch.arange(tokens)
    lengths = torch.where(labels != IGNORE_INDEX, positions + 1, 1).amax(1)
    kept = positions < lengths[:, None]
    texts = _Texts(
        lengths=lengths.tolist(),
        places=kept.flatten().nonzero().squeeze(1),
        shape=(rows, tokens),
        together=_are_attended_together(model.config, lengths, encoder_hidden_states.shape[1]),
    )
    packed = embeddings.flatten(0, 1).index_select(0, texts.places)
    packed = packed + decoder.embed_positions.weight[positions.expand_as(kept)[kept]]
    return texts.padded(_decode(model, packed, encoder_hidden_states, texts))


def _runs_unpadded(model: Any) -> bool:
    """Return whether a decoder is Transformers' own, nothing in it replaced or random, and on a CPU."""
    decoder: WhisperDecoder = model.model.decoder
    if model.device.type != "cpu" or "sdpa" not in model.config._attn_implementation or torch.compiler.is_compiling():
        return False
    rates = ("dropout", "activation_dropout", "layerdrop")
    random = any(vars(module).get(rate, 0) for module in decoder.modules() for rate in rates)
    if decoder.training and (random or decoder.gradient_checkpointing):
        return False
    return is_plain(decoder)


class _Texts(NamedTuple):
    """Rows of tokens that are one after the other in ``packed`` tensors ``[all tokens, ...]``.

    Attributes:
        lengths: Tokens of each row.
        places: Where the tokens are among those of all rows with their padding.
        shape: Number of rows, and tokens of each with its padding.
        together: Whether attention takes the rows together, padded, or each by itself.
    """

    lengths: list[int]
    places: Tensor
    shape: tuple[int, int]
    together: bool

    def padded(self, packed: Tensor) -> Tensor:
        """Return ``[rows, tokens, ...]``, 0 where there is no token."""
        rows, tokens = self.shape
        padded = packed.new_zeros(rows * tokens, *packed.shape[1:]).index_copy(0, self.places, packed)
        return padded.view(rows, tokens, *packed.shape[1:])

    def split(self, packed: Tensor) -> list[Tensor]:
        """Return ``[rows, tokens, ...]`` of what attention takes together."""
        return [self.padded(packed)] if self.together else [row[None] for row in packed.split(self.lengths)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Undo `split`."""
        if self.together:
            return parts[0].flatten(0, 1).index_select(0, self.places)
        return torch.cat([part[0] for part in parts])


def _are_attended_together(config: Any, lengths: Tensor, positions: int) -> bool:
    """Return whether the padding of all rows to one length costs attention less than calls for each would.

    Args:
        config: A Whisper's.
        lengths: Tokens of each row.
        positions: Of the encoder's output.
    """
    spared = int((lengths.max() - lengths).sum()) * positions * config.d_model * config.decoder_attention_heads
    return bool(spared <= WORTH_A_CALL * len(lengths))


def _decode(model: Any, hidden: Tensor, states: Tensor, texts: _Texts) -> Tensor:
    decoder: WhisperDecoder = model.model.decoder
    heard, longest = ([states], [max(texts.lengths)]) if texts.together else (states.split(1), texts.lengths)
    absorb = [pays(model, tokens) for tokens in longest]
    for layer in decoder.layers:
        hidden = hidden + _self_attention(layer.self_attn, layer.self_attn_layer_norm(hidden), texts)
        attention = layer.encoder_attn
        queries = texts.split(_project(attention.q_proj, layer.encoder_attn_layer_norm(hidden)))
        mixed = [_cross_attention(attention, *part) for part in zip(queries, heard, absorb, strict=True)]
        hidden = hidden + _project(attention.out_proj, texts.join(mixed))
        wide = layer.activation_fn(_project(layer.fc1, layer.final_layer_norm(hidden)))
        hidden = hidden + _project(layer.fc2, wide)
    return decoder.layer_norm(hidden)  # type: ignore[no-any-return]


def _project(module: nn.Linear, inputs: Tensor) -> Tensor:
    return linear(inputs.flatten(0, -2), module.weight, module.bias).view(*inputs.shape[:-1], -1)


def _self_attention(attention: WhisperAttention, hidden: Tensor, texts: _Texts) -> Tensor:
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    parts = texts.split(torch.stack([_project(projection, hidden) for projection in projections], 1))
    mixed = [_attend(attention, *part.unbind(2), causal=True) for part in parts]
    return _project(attention.out_proj, texts.join(mixed))


def _cross_attention(attention: WhisperAttention, queries: Tensor, states: Tensor, absorb: bool) -> Tensor:
    if absorb:
        return absorbed_attention(attention, queries, states)
    keys, values = _project(attention.k_proj, states), _project(attention.v_proj, states)
    return _attend(attention, queries, keys, values, causal=False)


def _attend(attention: WhisperAttention, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    """Return what the heads return, side by side; all are ``[rows, tokens, d_model]``."""
    shape = attention.num_heads, attention.head_dim
    queries, keys, values = (each.unflatten(-1, shape).transpose(1, 2) for each in (queries, keys, values))
    mixed = scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=attention.scaling)
    return mixed.transpose(1, 2).flatten(2)

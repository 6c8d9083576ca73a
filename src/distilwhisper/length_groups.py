"""A decoder's pass over a batch of labels: all rows at once, or rows of like length together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

from distilwhisper.labels import IGNORE_INDEX

GROUPS = 4
WORTH_GROUPING = 2**31
"""Products of a decoder's weights that groups must spare: some ten milliseconds of two cores."""


def last_hidden_states(model: Any, encoder_hidden_states: Tensor, decoder_input_ids: Tensor, *_: Tensor) -> Tensor:
    """Return the decoder's last hidden states ``[rows, tokens, d_model]``.

    Args:
        model: A Whisper.
        encoder_hidden_states: ``[rows, positions, d_model]``.
        decoder_input_ids: ``[rows, tokens]``.
        *_: What `last_hidden_states_by_length` looks at.
    """
    decoder = model.model.decoder
    output = decoder(input_ids=decoder_input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


def last_hidden_states_by_length(
    model: Any, encoder_hidden_states: Tensor, decoder_input_ids: Tensor, labels: Tensor
) -> Tensor:
    """Return what `last_hidden_states` does, but zeros in place of much of what lies behind a row's last label.

    On a CPU, where padding takes its share of the time, rows of like length go through the decoder together, if that
    spares enough. A GPU would wait for the host to learn the lengths, and has more calls to launch; processes that
    share sharded layers must call them equally often.

    Args:
        model: A Whisper.
        encoder_hidden_states: ``[rows, positions, d_model]``.
        decoder_input_ids: ``[rows, tokens]``.
        labels: ``[rows, tokens]``, `IGNORE_INDEX` where there is none.
    """
    plain = all(type(layer) is WhisperDecoderLayer for layer in model.model.decoder.layers)  # FSDP makes it another
    groups = length_groups(model.config, labels) if plain and labels.device.type == "cpu" else []
    if not groups:
        return last_hidden_states(model, encoder_hidden_states, decoder_input_ids)
    width, parts = labels.shape[1], []
    for rows, length in groups:
        hidden = last_hidden_states(model, encoder_hidden_states[rows], decoder_input_ids[rows, :length])
        parts.append(pad(hidden, (0, 0, 0, width - length)))
    return torch.cat(parts)[torch.cat([rows for rows, _ in groups]).argsort()]


def length_groups(config: Any, labels: Tensor) -> list[tuple[Tensor, int]]:
    """Return groups of rows of like length, and the most tokens of each; none where padding costs less than calls.

    Args:
        config: A Whisper's.
        labels: ``[rows, tokens]``, `IGNORE_INDEX` where there is none.
    """
    positions = torch.arange(1, labels.shape[1] + 1)
    lengths = torch.where(labels != IGNORE_INDEX, positions, 0).amax(1)
    order = lengths.argsort(stable=True)
    groups = [(rows, max(1, int(lengths[rows[-1]]))) for rows in order.tensor_split(min(GROUPS, len(order)))]
    spared = labels.numel() - sum(len(rows) * length for rows, length in groups)
    weights = config.decoder_layers * (8 * config.d_model + 2 * config.decoder_ffn_dim) * config.d_model
    return groups if spared * weights > WORTH_GROUPING else []

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


def last_hidden_states(
    model: Any, encoder_hidden_states: Tensor, decoder_input_ids: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Return the decoder's last hidden states ``[rows, tokens, d_model]``.

    Args:
        model: A Whisper.
        encoder_hidden_states: ``[rows, positions, d_model]``.
        decoder_input_ids: ``[rows, tokens]``.
        labels: ``[rows, tokens]``, `IGNORE_INDEX` where there is none. With them, rows of like length go through the
            decoder together on a CPU, if that spares enough padding, and much of what lies behind a row's last label is
            zeros. A GPU would wait for the host to learn the lengths, and has more calls to launch; processes that
            share sharded layers must call them equally often.
    """
    decoder = model.model.decoder
    plain = all(type(layer) is WhisperDecoderLayer for layer in decoder.layers)  # FSDP makes it another
    if labels is not None and plain and labels.device.type == "cpu" and (groups := length_groups(model.config, labels)):
        parts = []
        for rows, length in groups:
            hidden = last_hidden_states(model, encoder_hidden_states[rows], decoder_input_ids[rows, :length])
            parts.append(pad(hidden, (0, 0, 0, labels.shape[1] - length)))
        return torch.cat(parts)[torch.cat([rows for rows, _ in groups]).argsort()]
    output = decoder(input_ids=decoder_input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


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

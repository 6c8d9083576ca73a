"""The decoder one step at a time: rows of unequal lengths, and keys and values in buffers that grow seldom."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from distilwhisper.absorption import absorbed_step, absorbs

# Transformers 5.24 has another name for it, and warns of the old one.
CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(WhisperDecoder.forward).parameters else "past_key_values"
"""What a decoder, and each of its layers, calls the keys and values."""

FIRST_BUFFER = 64
"""Positions of the first buffer; each further one is twice as long. Concatenation would copy all of it every step."""


class IncrementalDecoder:
    """Feeds tokens to a Whisper decoder, row by row as many as there are, and remembers their keys and values.

    Every row has its own length, so a batch may hold prefixes of unequal lengths, and a row may take back tokens
    (`truncate`) that the others keep: what speculative decoding needs. The positions of a row count from its own
    start; shorter rows are filled up on the right, where later tokens overwrite the filling. Where it pays, the step
    is `absorbed_step`.

    Args:
        model: A Whisper in evaluation mode.
        encoder_hidden_states: ``[rows, positions, d_model]``.

    Attributes:
        lengths: Tokens of each row so far.
    """

    def __init__(self, model: WhisperForConditionalGeneration, encoder_hidden_states: Tensor) -> None:
        self.model, self.states = model, encoder_hidden_states
        self.lengths = [0] * len(encoder_hidden_states)
        self._places = _Places()
        self._layers = [_BufferedLayer(self._places) for _ in range(model.config.decoder_layers)]
        self._cache = EncoderDecoderCache(Cache(layers=self._layers), DynamicCache())
        self._absorbs: bool | None = None

    def __call__(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the last hidden states ``[rows, longest, d_model]`` of new tokens; those of the filling are void.

        Raises:
            ValueError: If rows are of unequal lengths and the attention kernel takes no mask.
        """
        device, width = self.model.device, max(map(len, tokens))
        inputs = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], device=device)
        starts = torch.tensor(self.lengths, device=device)
        positions = starts[:, None] + torch.arange(width, device=device)
        places = self._places
        places.start, places.end = max(self.lengths), max(self.lengths) + width
        even = min(self.lengths) == places.start
        places.positions = None if even else positions
        # Only the filling can lie beyond the last position.
        hidden = self._step(inputs, positions.clamp(max=self.model.config.max_target_positions - 1), even=even)
        self.lengths = [length + len(row) for length, row in zip(self.lengths, tokens, strict=True)]
        return hidden

    def _step(self, inputs: Tensor, positions: Tensor, *, even: bool) -> Tensor:
        decoder, width = self.model.model.decoder, inputs.shape[1]
        if self._absorbs is None:
            self._absorbs = absorbs(self.model, width)
        if self._absorbs:
            mask = None if even and width == 1 else self._mask(positions)
            return absorbed_step(decoder, inputs, positions, mask, self.states, self._layers)
        output = decoder(
            input_ids=inputs,
            position_ids=positions,
            attention_mask=None if even else self._mask(positions),
            encoder_hidden_states=self.states,
            use_cache=True,
            **{CACHE_ARGUMENT: self._cache},
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Take back what goes beyond these lengths, one a row."""
        self.lengths = [min(length, limit) for length, limit in zip(self.lengths, lengths, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows alone."""
        indices = torch.tensor(rows, device=self.states.device)
        self.states = self.states[indices]
        self.lengths = [self.lengths[row] for row in rows]
        for cache in (self._cache.self_attention_cache, self._cache.cross_attention_cache):
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[indices], layer.values[indices]

    def _mask(self, positions: Tensor) -> Tensor:
        if "flash" in (kernel := self.model.config._attn_implementation):
            raise ValueError(
                f"rows of unequal lengths need a mask, which attn_implementation={kernel!r} does not take; "
                "load the model with attn_implementation='sdpa'"
            )
        hidden = torch.arange(self._places.end, device=positions.device) > positions[:, None, :, None]
        dtype = self.states.dtype
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min)


class _Places:
    """Where the layers put the keys of a step: the same columns in all rows, unless ``positions`` say otherwise."""

    start = end = 0
    positions: Tensor | None = None


class _BufferedLayer(DynamicLayer):  # type: ignore[misc]
    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (key_states[:, :, :0] for _ in range(2))
        self.keys, self.values = self._put(self.keys, key_states), self._put(self.values, value_states)
        return self.keys[:, :, : self.places.end], self.values[:, :, : self.places.end]

    def _put(self, buffer: Tensor, new: Tensor) -> Tensor:
        start, end, positions = self.places.start, self.places.end, self.places.positions
        if buffer.shape[2] < end:
            # Zeros, not what memory holds: masked keys have no weight, but a NaN among them would.
            larger = new.new_zeros(*new.shape[:2], max(FIRST_BUFFER, end, 2 * buffer.shape[2]), new.shape[3])
            larger[:, :, : buffer.shape[2]] = buffer
            buffer = larger
        if positions is None:
            buffer[:, :, start:end] = new
        else:
            rows = torch.arange(len(new), device=new.device)[:, None]
            buffer[rows, :, positions] = new.transpose(1, 2)
        return buffer

    def get_seq_length(self) -> int:
        return self.places.start

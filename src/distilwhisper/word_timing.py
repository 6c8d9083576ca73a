"""When each token was said: dynamic time warping over the cross-attention of the alignment heads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distilwhisper.generation import evaluating
from distilwhisper.segments import Span
from distilwhisper.token_rules import end_of_text
from distilwhisper.tokens import TIMESTAMP_STEP_S

MEDIAN_WIDTH = 7


def alignment_heads(model: WhisperForConditionalGeneration) -> list[tuple[int, int]]:
    """Return layer and number of the heads that follow the audio, from the generation config.

    Raises:
        ValueError: If it names none, or some that the decoder does not have (those of another model).
    """
    heads = getattr(model.generation_config, "alignment_heads", None)
    if not heads:
        raise ValueError(
            "word timestamps need generation_config.alignment_heads: pairs of decoder layer and head whose "
            "cross-attention follows the audio; this model names none"
        )
    layers, width = model.config.decoder_layers, model.config.decoder_attention_heads
    if foreign := [pair for pair in heads if pair[0] >= layers or pair[1] >= width]:
        raise ValueError(
            f"generation_config.alignment_heads names {foreign}, but the decoder has {layers} layers of {width} heads: "
            "the heads are those of another model"
        )
    return [(layer, head) for layer, head in heads]


@torch.inference_mode()
def time_tokens(
    model: WhisperForConditionalGeneration,
    prefixes: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    encoder_hidden_states: Tensor,
    durations_s: Sequence[float],
) -> list[list[Span]]:
    """Return start and end of each token of each text, in seconds from the start of its window.

    The decoder reads each text once more; the attention of the alignment heads, normalised over the tokens, smoothed
    over time and averaged, is the likelihood of a token at a time, and the best monotonous path through it gives the
    times (Radford et al. 2022; Giorgino 2009).

    Args:
        model: A Whisper whose generation config names its alignment heads.
        prefixes: Ids that open each transcript, ``<|notimestamps|>`` last.
        texts: Ids of the texts, without timestamps.
        encoder_hidden_states: ``[batch, positions, d_model]``.
        durations_s: Length of the audio in each window, in seconds.

    Raises:
        ValueError: If there are no alignment heads.
    """
    sequences = [[*prefix, *text, end_of_text(model)] for prefix, text in zip(prefixes, texts, strict=True)]
    attention = cross_attention(model, sequences, encoder_hidden_states, alignment_heads(model))
    times = []
    for weights, prefix, text, duration_s in zip(attention, prefixes, texts, durations_s, strict=True):
        frames = min(max(1, round(duration_s / TIMESTAMP_STEP_S)), weights.shape[-1])
        # Normalised over the prefix and the end of text too, as openai-whisper and CTranslate2 do: equal times.
        likely = weights[:, : len(prefix) + len(text) + 1, :frames].softmax(-1)
        likely = (likely - likely.mean(1, keepdim=True)) / likely.std(1, keepdim=True, unbiased=False).clamp(min=1e-9)
        # From the state that writes the first token to the one that writes the end of text.
        rows = slice(len(prefix) - 1, len(prefix) + len(text))
        starts = path_starts(-_smooth(likely).mean(0)[rows].double().cpu().numpy()) * TIMESTAMP_STEP_S
        times.append(list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)))
    return times


def cross_attention(
    model: WhisperForConditionalGeneration,
    sequences: Sequence[Sequence[int]],
    encoder_hidden_states: Tensor,
    heads: Sequence[tuple[int, int]],
) -> Tensor:
    """Return attention scores before the softmax, in float32: ``[batch, heads, tokens, positions]``.

    They are made from the projections of the chosen heads alone, whatever kernel the model runs with.

    Args:
        model: A Whisper.
        sequences: Decoder ids; shorter ones are filled up on the right.
        encoder_hidden_states: ``[batch, positions, d_model]``.
        heads: Pairs of decoder layer and head.
    """
    projected: dict[tuple[int, str], Tensor] = {}

    def keep(_: object, __: object, output: Tensor, *, name: tuple[int, str]) -> None:
        projected[name] = output

    width, device = max(map(len, sequences)), model.device
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in sequences], device=device)
    with evaluating(model), ExitStack() as hooks:
        for layer in {layer for layer, _ in heads}:
            attention = model.model.decoder.layers[layer].encoder_attn
            for kind, module in (("q", attention.q_proj), ("k", attention.k_proj)):
                hooks.callback(module.register_forward_hook(partial(keep, name=(layer, kind))).remove)
        model.model.decoder(input_ids=ids, encoder_hidden_states=encoder_hidden_states, use_cache=False)
    size = model.config.d_model // model.config.decoder_attention_heads
    scores = []
    for layer, head in heads:
        query, key = (projected[layer, kind][..., head * size : (head + 1) * size].float() for kind in "qk")
        scores.append(query @ key.transpose(1, 2) * size**-0.5)
    return torch.stack(scores, dim=1)


def _smooth(weights: Tensor) -> Tensor:
    """Return running medians over time."""
    reach = MEDIAN_WIDTH // 2
    if weights.shape[-1] <= reach:
        return weights
    padded = torch.nn.functional.pad(weights, (reach, reach), mode="reflect")
    return padded.unfold(-1, MEDIAN_WIDTH, 1).median(-1).values


def path_starts(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the column where the cheapest monotonous path enters each row of a cost matrix (dynamic time warping).

    The path runs from the first row and column to the last, by steps down, right or both.

    Args:
        costs: ``[rows, columns]``.
    """
    rows, columns = costs.shape
    total = np.empty((rows, columns))
    total[0] = np.cumsum(costs[0])
    for row in range(1, rows):
        # Entered from above or diagonally at some column, then to the right: a running minimum, not a loop.
        entry = np.minimum(total[row - 1], np.concatenate([[np.inf], total[row - 1, :-1]]))
        along = np.cumsum(costs[row])
        total[row] = along + np.minimum.accumulate(entry - np.concatenate([[0.0], along[:-1]]))
    starts = np.zeros(rows, dtype=np.int64)
    row, column = rows - 1, columns - 1
    while row > 0:
        above = total[row - 1, column]
        diagonal, left = (total[row - 1, column - 1], total[row, column - 1]) if column else (np.inf, np.inf)
        if left < min(above, diagonal):
            column -= 1
            continue
        starts[row] = column
        row, column = row - 1, column - (diagonal <= above and column > 0)
    return starts

"""Which attention heads follow the audio: what word timestamps are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import load_audio
from distilwhisper.generation import encode
from distilwhisper.transcription import Transcriber

MAX_HEADS = 6  # as many as OpenAI names for its smallest model


def find_alignment_heads(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: Sequence[Any],
    *,
    language: str | None = None,
    max_heads: int = MAX_HEADS,
) -> list[list[int]]:
    """Return the heads that go through the audio as the text goes on.

    Word timestamps of Transformers, openai-whisper and faster-whisper are read from the cross-attention of a few heads,
    listed as ``generation_config.alignment_heads``. Those of a teacher are no longer there, or no longer good, when the
    student has been trained. To keep what is found::

        model.generation_config.alignment_heads = find_alignment_heads(model, processor, audio)
        model.generation_config.save_pretrained(model_dir)

    Args:
        model: A trained Whisper.
        processor: Its processor.
        audio: A few recordings of speech that it transcribes well, anything `load_audio`
            reads; ten sentences are enough.
        language: Their language; default English.
        max_heads: Take no more heads than that.

    Returns:
        ``[layer, head]``, best first: those with at least half the score (`alignment_scores`) of the best.

    Raises:
        ValueError: If no head follows the audio, or no recording holds words.
    """
    scores = alignment_scores(model, processor, audio, language=language)
    best = float(scores.max())
    if best <= 0:
        raise ValueError("no head of this model follows the audio; is it trained, and are these recordings speech?")
    ranked = scores.flatten().sort(descending=True, stable=True)
    count = min(max_heads, int((ranked.values >= best / 2).sum()))
    return [list(divmod(index, scores.shape[1])) for index in ranked.indices[:count].tolist()]


def alignment_scores(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: Sequence[Any],
    *,
    language: str | None = None,
) -> Tensor:
    r"""Return how well each head follows the audio, ``[layers, heads]``.

    Let :math:`A_{tf}` be the share of its attention that a head pays to frame :math:`f` of the recording when token
    :math:`t` of :math:`T` is predicted. The score is what the best path forwards collects more than the best one
    backwards,

    .. math:: \frac1T \max_{f_1 \le \dots \le f_T} \sum_t A_{t f_t} - \frac1T \max_{f_1 \ge \dots \ge f_T}
        \sum_t A_{t f_t},

    the mean over recordings. A head that looks at one frame after another has nearly 1; one that always looks at the
    same place, everywhere or to and fro has 0, as it collects as much backwards.

    Args:
        model: A Whisper.
        processor: Its processor.
        audio: Recordings; the tokens are the model's own transcripts.
        language: Their language; default English.

    Raises:
        ValueError: If the model hears no words in any recording.
    """
    transcriber = Transcriber(model, processor, language=language or "en")
    prefix = transcriber.tokens.prefix(language or "en")
    recordings = [load_audio(one, transcriber.sampling_rate, max_duration_s=transcriber.window_s) for one in audio]
    scores = []
    with _eager(model), torch.inference_mode():
        for samples in recordings:
            tokens = transcriber(samples).tokens
            if len(tokens) < 2:  # without order
                continue
            states = encode(model, transcriber.extract_features([samples]))
            ids = torch.tensor([[*prefix, *tokens[:-1]]], device=states.device)
            output = model.model.decoder(input_ids=ids, encoder_hidden_states=states, output_attentions=True)
            frames = -(-states.shape[1] * len(samples) // round(transcriber.window_s * transcriber.sampling_rate))
            attention = torch.cat(output.cross_attentions)[:, :, len(prefix) - 1 :, :frames].float()
            attention = attention / attention.sum(-1, keepdim=True).clamp_min(1e-6)
            scores.append((_best_path(attention) - _best_path(attention.flip(2))).cpu())
    if not scores:
        raise ValueError("the model hears no words in these recordings, so that nothing can be aligned")
    return torch.stack(scores).mean(0)


def _best_path(attention: Tensor) -> Tensor:
    """Return the mean attention along the best path that never goes back, ``[layers, heads]``."""
    collected = torch.zeros_like(attention[:, :, 0])
    for row in attention.unbind(2):
        collected = row + collected.cummax(-1).values
    return collected.amax(-1) / attention.shape[2]


@contextmanager
def _eager(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Have the model tell its attention, which the fused kernels keep to themselves."""
    kernel = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kernel)

"""CTranslate2 instead of PyTorch: the same weights and rules, greedy, in less time on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.decoding import Fallback, States, WindowDecoder
from distilwhisper.export.ctranslate2 import write
from distilwhisper.generation import GeneratedTokens, Head, token_limits
from distilwhisper.tokens import WhisperTokens

_ANY_TIMESTAMP = 1_500
"""Of the largest window; CTranslate2 has no word for "no limit"."""


def make_decoder(
    engine: str,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    tokens: WhisperTokens,
    **options: Any,
) -> WindowDecoder:
    """Return what decodes windows with an engine.

    Args:
        engine: ``torch``; or ``ctranslate2``, in the model's number type; or with another of CTranslate2's, such as
            ``ctranslate2:int8_float32``.
        model: A Whisper.
        processor: Its processor.
        tokens: Its special tokens.
        **options: Those of `WindowDecoder`.

    Raises:
        ValueError: For an engine or number type that does not exist, or an option that CTranslate2 does not have.
        ImportError: If CTranslate2 is not installed.
    """
    name, _, compute_type = engine.partition(":")
    if engine == "torch":
        return WindowDecoder(model, processor.tokenizer, tokens, **options)
    if name != "ctranslate2":
        raise ValueError(f"engine must be torch, ctranslate2 or ctranslate2:NUMBER_TYPE, not {engine!r}")
    return CTranslate2Decoder(
        model, processor, tokens, compute_type or str(model.dtype).removeprefix("torch."), **options
    )


class CTranslate2Decoder(WindowDecoder):
    """Decodes batches of windows greedily with CTranslate2; the model is converted and held a second time.

    Args:
        model: A Whisper.
        processor: Its processor.
        tokens: Its special tokens.
        compute_type: One of CTranslate2's number types.
        **options: Those of `WindowDecoder`.

    Raises:
        ValueError: For an option that CTranslate2 does not have, or a number type that it has not on this device.
        ImportError: If CTranslate2 is not installed.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        processor: WhisperProcessor,
        tokens: WhisperTokens,
        compute_type: str,
        **options: Any,
    ) -> None:
        plain = {"num_beams": 1, "assistant": None, "word_times": False}
        named = [name for name, value in plain.items() if options[name] != value]
        if options["fallback"].temperatures != Fallback().temperatures:
            named.append("temperature")
        if named:
            raise ValueError(f"CTranslate2 is used greedily, without {', '.join(named)}: take engine='torch'")
        super().__init__(model, processor.tokenizer, tokens, **options)
        self._engine = _load(model, processor, compute_type)

    def encode(self, input_features: Tensor) -> States:
        """Return CTranslate2's own encoder states of features ``[batch, mels, frames]``; only it reads them."""
        from ctranslate2 import StorageView

        features = np.ascontiguousarray(input_features.numpy(force=True), np.float32)
        return States(self._engine.encode(StorageView.from_array(features)), None)

    def head(self, model: WhisperForConditionalGeneration) -> Head:
        """Return the model's own output layer, which CTranslate2 does not call."""
        return model.proj_out  # type: ignore[no-any-return]

    def _languages(self, languages: Sequence[str | None], states: States, head: Head) -> list[str]:
        if None not in languages:
            return super()._languages(languages, states, head)
        found = [ranked[0][0] for ranked in self._engine.detect_language(states.model)]
        pairs = zip(languages, found, strict=True)
        return [language or self.tokens.language_code(token) for language, token in pairs]

    def _generate(
        self,
        states: States,
        prefixes: list[list[int]],
        *,
        timestamps: bool,
        **_: Any,
    ) -> GeneratedTokens:
        limit, longest = min(token_limits(self.model, prefixes, self.max_new_tokens)), max(map(len, prefixes))
        first = getattr(self.model.generation_config, "max_initial_timestamp_index", None) if timestamps else None
        results = self._engine.generate(
            states.model,
            prefixes,
            beam_size=1,
            length_penalty=0,  # plain sums of log-probabilities
            # Of this it takes half, as openai-whisper does, or what the prefix without its last token leaves.
            max_length=max(2 * limit, limit + longest - 1),
            max_initial_timestamp_index=_ANY_TIMESTAMP if first is None else first,
            return_scores=True,
            return_no_speech_prob=self.tokens.no_speech is not None,
        )
        ids = [result.sequences_ids[0] for result in results]
        return GeneratedTokens(
            ids,
            [result.scores[0] for result in results],
            [len(row) >= limit for row in ids],
            None if self.tokens.no_speech is None else [result.no_speech_prob for result in results],
        )


def _load(model: WhisperForConditionalGeneration, processor: WhisperProcessor, compute_type: str) -> Any:
    import ctranslate2

    device, index = model.device.type, model.device.index or 0
    if device not in ("cpu", "cuda"):
        raise ValueError(f"CTranslate2 runs on CPUs and on NVIDIA's GPUs, not on {device!r}")
    known = ctranslate2.get_supported_compute_types(device, index)
    if compute_type not in known:
        raise ValueError(f"CTranslate2 has no {compute_type} on this {device}, but {', '.join(sorted(known))}")
    with TemporaryDirectory() as folder:
        write(model, processor, Path(folder, "model"), dtype=compute_type)
        return ctranslate2.models.Whisper(
            str(Path(folder, "model")),
            device=device,
            device_index=index,
            compute_type=compute_type,
            intra_threads=torch.get_num_threads(),
        )

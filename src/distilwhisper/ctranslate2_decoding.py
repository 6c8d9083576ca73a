"""CTranslate2 instead of PyTorch: the same weights and rules, greedy; in int8 in less time on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.decoding import Fallback, States, WindowDecoder
from distilwhisper.export.ctranslate2 import write
from distilwhisper.generation import GeneratedTokens, Head, token_limits
from distilwhisper.threads import reading_threads
from distilwhisper.tokens import WhisperTokens

T = TypeVar("T")

_ANY_TIMESTAMP = 1_500
"""Of the largest window; CTranslate2 has no word for "no limit"."""


def make_decoder(
    engine: str,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    tokens: WhisperTokens,
    batch_size: int,
    **options: Any,
) -> WindowDecoder:
    """Return what decodes windows with an engine.

    Args:
        engine: ``torch``; or ``ctranslate2``, in the model's number type; or with another of CTranslate2's, such as
            ``ctranslate2:int8_float32``.
        model: A Whisper.
        processor: Its processor.
        tokens: Its special tokens.
        batch_size: Most windows at a time.
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
    compute_type = compute_type or str(model.dtype).removeprefix("torch.")
    return CTranslate2Decoder(model, processor, tokens, compute_type, batch_size, **options)


class CTranslate2Decoder(WindowDecoder):
    """Decodes batches of windows greedily with CTranslate2; the model is converted and held a second time.

    On a CPU a batch is shared out to its cores, which decode side by side: together on one share they would wait for
    each other at every step.

    Args:
        model: A Whisper.
        processor: Its processor.
        tokens: Its special tokens.
        compute_type: One of CTranslate2's number types.
        batch_size: Most windows at a time.
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
        batch_size: int,
        **options: Any,
    ) -> None:
        plain = {"num_beams": 1, "assistant": None, "word_times": False}
        named = [name for name, value in plain.items() if options[name] != value]
        if options["fallback"].temperatures != Fallback().temperatures:
            named.append("temperature")
        if named:
            raise ValueError(f"CTranslate2 is used greedily, without {', '.join(named)}: take engine='torch'")
        super().__init__(model, processor.tokenizer, tokens, **options)
        self._shares = min(batch_size, torch.get_num_threads()) if model.device.type == "cpu" else 1
        self._threads = reading_threads(self._shares)
        # Not in this thread: CTranslate2 would set the cores that PyTorch computes on here to those of a share.
        self._engine = self._threads.submit(_load, model, processor, compute_type, self._shares).result()

    @property
    def side_by_side(self) -> int:
        """One batch: it has all cores."""
        return 1

    def encode(self, input_features: Tensor) -> States:
        """Return CTranslate2's own encoder states of features ``[batch, mels, frames]``, a list of shares of it."""
        from ctranslate2 import StorageView

        features = np.ascontiguousarray(input_features.numpy(force=True), np.float32)
        shares = map(StorageView.from_array, np.array_split(features, min(self._shares, len(features))))
        encoded: Any = [*self._threads.map(self._engine.encode, shares)]
        return States(encoded, None)

    def _of_all(self, states: States, work: Callable[[Any, slice], list[T]]) -> list[T]:
        """Return what work makes of all shares and their rows."""
        ends = np.cumsum([share.shape[0] for share in states.model])
        rows = [slice(end - share.shape[0], end) for share, end in zip(states.model, ends, strict=True)]
        return [result for results in self._threads.map(work, states.model, rows) for result in results]

    def head(self, model: WhisperForConditionalGeneration) -> Head:
        """Return the model's own output layer, which CTranslate2 does not call."""
        return model.proj_out  # type: ignore[no-any-return]

    def _languages(self, languages: Sequence[str | None], states: States, head: Head) -> list[str]:
        if None not in languages:
            return super()._languages(languages, states, head)
        ranked = self._of_all(states, lambda share, _: self._engine.detect_language(share))
        found = [best[0][0] for best in ranked]
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
        settings = {
            "beam_size": 1,
            "length_penalty": 0,  # plain sums of log-probabilities
            # Of this it takes half, as openai-whisper does, or what the prefix without its last token leaves.
            "max_length": max(2 * limit, limit + longest - 1),
            "max_initial_timestamp_index": _ANY_TIMESTAMP if first is None else first,
            "return_scores": True,
            "return_no_speech_prob": self.tokens.no_speech is not None,
        }
        results = self._of_all(states, lambda share, rows: self._engine.generate(share, prefixes[rows], **settings))
        ids = [result.sequences_ids[0] for result in results]
        return GeneratedTokens(
            ids,
            [result.scores[0] for result in results],
            [len(row) >= limit for row in ids],
            None if self.tokens.no_speech is None else [result.no_speech_prob for result in results],
        )


def _load(model: WhisperForConditionalGeneration, processor: WhisperProcessor, compute_type: str, shares: int) -> Any:
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
            inter_threads=shares,
            intra_threads=max(1, torch.get_num_threads() // shares),
        )

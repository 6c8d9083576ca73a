"""The word errors of `metrics` as a metric of the library ``evaluate``, without a network.

    metric = evaluate.load(distilwhisper.word_errors.__file__)
    metric.compute(predictions=["two boys"], references=["Two boys."])["wer"]  # 0.0

Batches (``add_batch``) and processes (``num_process``, ``process_id``) add up, as everywhere in ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from distilwhisper.metrics import (
    ErrorCounts,
    count_character_errors,
    count_repeated_ngrams,
    count_word_errors,
    normalized_texts,
)
from distilwhisper.normalizers import get_normalizer

_DESCRIPTION = (
    "Word error rate with its parts (insertions, substitutions, deletions), counts, CER and repeated 5-grams."
)
_INPUTS = """
    predictions: Transcripts.
    references: What was said, one for each transcript.
    normalize: Whether both are normalised first, as Whisper's papers do. Default True.
    language: Language of the normaliser. Default English.
"""


class WordErrors(evaluate.Metric):
    """Counts and rates of word errors; ``compute(predictions=..., references=..., normalize=True, language="en")``."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features, format="python"
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], normalize: bool = True, language: str = "en"
    ) -> dict[str, Any]:
        texts = [*predictions], [*references]
        if normalize:
            normalizer = get_normalizer(language)
            texts = normalized_texts(texts[0], normalizer), normalized_texts(texts[1], normalizer)
        words = sum(map(count_word_errors, texts[1], texts[0]), ErrorCounts())
        characters = sum(map(count_character_errors, texts[1], texts[0]), ErrorCounts())
        return {
            **words.to_dict(),
            "cer": characters.to_dict()["wer"],
            "repeated_5grams": count_repeated_ngrams(predictions, 5),
        }

"""Word errors inside the trainer's evaluation: counts for each sample, added up over batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distilwhisper.metrics import ErrorCounts, count_normalized_errors, count_word_errors
from distilwhisper.normalizers import Normalizer

IGNORE_INDEX = -100


class WordErrorScorer:
    """Counts the errors of generated ids against reference ids.

    Args:
        tokenizer: The ``WhisperTokenizer`` of both.
        normalize: Applied to both texts for the normalised rate.
    """

    def __init__(self, tokenizer: Any, normalize: Normalizer) -> None:
        self.tokenizer = tokenizer
        self.normalize = normalize

    def count(self, generated: Iterable[Sequence[int]], references: Iterable[Sequence[int]]) -> list[list[int]]:
        """Return hits, substitutions, deletions and insertions of each sample: normalised, then as written."""
        rows = []
        for hypothesis_ids, reference_ids in zip(generated, references, strict=True):
            hypothesis, reference = self._text(hypothesis_ids), self._text(reference_ids)
            normalized = count_normalized_errors(reference, hypothesis, self.normalize)
            written = count_word_errors(reference, hypothesis)
            rows.append([*_as_row(normalized), *_as_row(written)])
        return rows

    def metrics_from_counts(self, prediction: Any) -> dict[str, float]:
        """Return the rates, in percent, of an ``EvalPrediction`` whose predictions are the counts of each sample."""
        sums = np.asarray(prediction.predictions).reshape(-1, 8).sum(0).tolist()
        normalized, written = _from_row(sums[:4]), _from_row(sums[4:])
        rates = {"wer": normalized.wer, "ier": normalized.ier, "ser": normalized.ser, "der": normalized.der}
        return {name: 100 * rate for name, rate in (rates | {"wer_ortho": written.wer}).items()}

    def metrics_from_ids(self, prediction: Any) -> dict[str, float]:
        """Return the rates, in percent, of an ``EvalPrediction`` whose predictions and labels are token ids."""
        prediction.predictions = self.count(prediction.predictions, prediction.label_ids)
        return self.metrics_from_counts(prediction)

    def _text(self, ids: Sequence[int]) -> str:
        known = [int(token) for token in ids if token != IGNORE_INDEX]
        return str(self.tokenizer.decode(known, skip_special_tokens=True)).strip()


def _as_row(counts: ErrorCounts) -> list[int]:
    return [counts.hits, counts.substitutions, counts.deletions, counts.insertions]


def _from_row(row: Sequence[int]) -> ErrorCounts:
    hits, substitutions, deletions, insertions = row
    return ErrorCounts(hits=hits, substitutions=substitutions, deletions=deletions, insertions=insertions)

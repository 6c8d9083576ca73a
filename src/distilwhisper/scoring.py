"""Word errors inside the trainer's evaluation: counts for each sample, added up over batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distilwhisper.labels import IGNORE_INDEX
from distilwhisper.metrics import (
    ErrorCounts,
    count_character_errors,
    count_repeated_ngrams,
    count_word_errors,
    normalized_texts,
)
from distilwhisper.normalizers import Normalizer

COLUMNS = 13
METRICS = ("wer", "ier", "ser", "der", "cer", "wer_ortho", "repeated_5grams")
"""What an evaluation reports of each set, besides the loss."""


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
        """Return the counts of each sample, which add up: `COLUMNS` numbers.

        These are hits, substitutions, deletions and insertions of words, normalised and as written, and of characters,
        normalised; then the five-grams of words that the transcript repeats.
        """
        rows = []
        for hypothesis_ids, reference_ids in zip(generated, references, strict=True):
            hypothesis, reference = self.text(hypothesis_ids), self.text(reference_ids)
            normalized = normalized_texts((reference, hypothesis), self.normalize)
            kinds = (
                count_word_errors(*normalized),
                count_word_errors(reference, hypothesis),
                count_character_errors(*normalized),
            )
            counts = [count for kind in kinds for count in _as_row(kind)]
            rows.append([*counts, count_repeated_ngrams([hypothesis], 5)])
        return rows

    def metrics_from_counts(self, prediction: Any) -> dict[str, float]:
        """Return the metrics of an ``EvalPrediction`` whose predictions are the counts of each sample.

        Rates are in percent: ``wer``, ``ier``, ``ser``, ``der`` and ``cer`` after normalisation, ``wer_ortho`` as
        written. ``repeated_5grams`` is a number: of the repeats within transcripts, which loops of the decoder raise.
        """
        sums = np.asarray(prediction.predictions).reshape(-1, COLUMNS).sum(0).tolist()
        normalized, written, characters = (_from_row(sums[start : start + 4]) for start in (0, 4, 8))
        rates = {"wer": normalized.wer, "ier": normalized.ier, "ser": normalized.ser, "der": normalized.der}
        rates |= {"cer": characters.wer, "wer_ortho": written.wer}
        return {name: 100 * rate for name, rate in rates.items()} | {"repeated_5grams": sums[-1]}

    def metrics_from_ids(self, prediction: Any) -> dict[str, float]:
        """Return the rates, in percent, of an ``EvalPrediction`` whose predictions and labels are token ids."""
        prediction.predictions = self.count(prediction.predictions, prediction.label_ids)
        return self.metrics_from_counts(prediction)

    def words(self, row: Sequence[int]) -> ErrorCounts:
        """Return the word errors, normalised, in a row of counts."""
        return _from_row(row[:4])

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, padded or not."""
        known = [int(token) for token in ids if token != IGNORE_INDEX]
        return str(self.tokenizer.decode(known, skip_special_tokens=True)).strip()


def _as_row(counts: ErrorCounts) -> list[int]:
    return [counts.hits, counts.substitutions, counts.deletions, counts.insertions]


def _from_row(row: Sequence[int]) -> ErrorCounts:
    hits, substitutions, deletions, insertions = row
    return ErrorCounts(hits=hits, substitutions=substitutions, deletions=deletions, insertions=insertions)

"""How sure a word error rate is, and whether two models really differ: by utterance, since errors come in clusters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distilwhisper.metrics import ErrorCounts

Floats = npt.NDArray[np.float64]

_CHUNK = 2**22
"""Utterances drawn at a time: 32 MB of indices, whatever the number of resamples."""


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value with a given confidence.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        confidence: A fraction, 0.95 for 95 %.
    """

    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class PairedComparison:
    """How two models differ on the very same utterances; all rates are fractions.

    Attributes:
        difference: Word error rate of the second model less that of the first.
        interval: Of the difference, by paired bootstrap.
        p_permutation: Probability of a difference at least as large, if it were chance which of the two models made
            which of an utterance's two error counts.
        p_matched_pairs: The same by the matched-pairs test (Gillick and Cox, ICASSP 1989), with utterances as its
            segments: the mean difference of the error counts is taken as normal. For 50 utterances or more.
    """

    difference: float
    interval: Interval
    p_permutation: float
    p_matched_pairs: float


def word_error_interval(
    *sets: Sequence[ErrorCounts],
    rate: str = "wer",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap interval of an error rate (Bisani and Ney, ICASSP 2004).

    Utterances are drawn with replacement, within each set; of several sets it is the interval of their
    macro-average, in which every set counts the same.

    Args:
        *sets: For each set the counts of its utterances (``SetResult.counts``).
        rate: ``wer``, ``ier``, ``ser`` or ``der``.
        confidence: A fraction.
        resamples: How often utterances are drawn.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: If there is no set, a set has no words, or the confidence is not between 0 and 1.
    """
    if not sets:
        raise ValueError("an interval needs at least one set of utterances")
    drawn = [
        _resampled_rates(*_errors_and_words(counts, rate), resamples, [seed, number])
        for number, counts in enumerate(sets)
    ]
    return _interval(np.mean(drawn, axis=0), confidence)


def compare_word_errors(
    first: Sequence[ErrorCounts],
    second: Sequence[ErrorCounts],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Return whether two models' word error rates differ, given their counts of the same utterances in one order.

    Args:
        first: Counts of one model, such as the teacher; those of several sets may be joined.
        second: Counts of the other.
        confidence: Of the interval, a fraction.
        resamples: Resamples of the bootstrap, and random assignments of the permutation test.
        seed: The same seed gives the same result.

    Raises:
        ValueError: If the utterances are not the same, or hold no words.
    """
    lengths = [[count.reference_words for count in counts] for counts in (first, second)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"the two models were not scored on the same utterances in the same order: {len(first)} utterances of "
            f"{sum(lengths[0])} words and {len(second)} of {sum(lengths[1])}"
        )
    (errors, words), (other_errors, _) = _errors_and_words(first, "wer"), _errors_and_words(second, "wer")
    drawn = [_resampled_rates(some, words, resamples, [seed]) for some in (errors, other_errors)]
    differences = other_errors - errors
    return PairedComparison(
        difference=float(differences.sum() / words.sum()),
        interval=_interval(drawn[1] - drawn[0], confidence),
        p_permutation=_permutation_p(differences, resamples, seed),
        p_matched_pairs=_matched_pairs_p(differences),
    )


def _errors_and_words(counts: Sequence[ErrorCounts], rate: str) -> tuple[Floats, Floats]:
    kinds = {"wer": "errors", "ier": "insertions", "ser": "substitutions", "der": "deletions"}
    if rate not in kinds:
        raise ValueError(f"rate must be one of {', '.join(kinds)}, not {rate!r}")
    errors = np.array([getattr(count, kinds[rate]) for count in counts], float)
    words = np.array([count.reference_words for count in counts], float)
    if not words.sum():
        raise ValueError(f"the {len(counts)} utterances of a set hold no reference words: it has no error rate")
    return errors, words


def _resampled_rates(errors: Floats, words: Floats, resamples: int, seed: list[int]) -> Floats:
    """Return an error rate for each resample, ``[resamples]``; one seed draws the same utterances for all models."""
    rng, rates = np.random.default_rng(seed), []
    for size in _chunks(resamples, len(words)):
        drawn = rng.integers(len(words), size=(size, len(words)))
        rates.append(errors[drawn].sum(1) / np.maximum(words[drawn].sum(1), 1))
    return np.concatenate(rates)


def _permutation_p(differences: Floats, resamples: int, seed: int) -> float:
    rng, extreme = np.random.default_rng(seed), 1  # what was observed is one of the assignments
    differences = differences[differences != 0]  # the others are the same either way
    for size in _chunks(resamples, len(differences)):
        signs = rng.integers(2, size=(size, len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).sum())
    return extreme / (resamples + 1)


def _matched_pairs_p(differences: Floats) -> float:
    spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
    if not spread:
        return 1.0 if not differences.any() else math.nan
    return math.erfc(abs(differences.mean()) / spread * math.sqrt(len(differences) / 2))


def _chunks(resamples: int, utterances: int) -> Iterator[int]:
    size = max(1, _CHUNK // max(1, utterances))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _interval(values: Floats, confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a fraction between 0 and 1, not {confidence}")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)

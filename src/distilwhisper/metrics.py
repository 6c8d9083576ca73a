"""Word and character errors as counts that add up; rates are divided last.

The rate of a whole is not the mean of the rates of its parts, so everything here counts and adds: over
samples, batches, processes. How the errors split into substitutions, insertions and deletions depends on the
aligner where several alignments are shortest; here it is jiwer's, as in the Distil-Whisper paper.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from typing import Any

import jiwer
from rapidfuzz.distance import Levenshtein

from distilwhisper.normalizers import Normalizer


@dataclass(frozen=True)
class ErrorCounts:
    """What an alignment of hypotheses with references counted, in words (or characters).

    Counts add up with ``+`` and ``sum(counts, ErrorCounts())``. Rates are fractions of the reference's words;
    without any, a rate is 0 where there are no errors of its kind and infinite otherwise.

    Attributes:
        hits: Words of the reference that were found.
        substitutions: Words that were replaced.
        insertions: Words of the hypothesis that the reference lacks.
        deletions: Words of the reference that the hypothesis lacks.
        samples: Pairs of reference and hypothesis.
    """

    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    samples: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.samples + other.samples,
        )

    @property
    def reference_words(self) -> int:
        """Number of words of the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Number of errors of all three kinds."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def wer(self) -> float:
        """Word error rate; above 1 where insertions abound."""
        return self._rate(self.errors)

    @property
    def ier(self) -> float:
        """Insertion error rate: the part of the word error rate that hallucinations raise."""
        return self._rate(self.insertions)

    @property
    def ser(self) -> float:
        """Substitution error rate."""
        return self._rate(self.substitutions)

    @property
    def der(self) -> float:
        """Deletion error rate: the part of the word error rate that lost speech raises."""
        return self._rate(self.deletions)

    def to_dict(self) -> dict[str, float | None]:
        """Return counts and rates by name; an infinite rate is None, as JSON has no infinity."""
        rates = {name: getattr(self, name) for name in ("wer", "ier", "ser", "der")}
        finite = {name: rate if math.isfinite(rate) else None for name, rate in rates.items()}
        return {**asdict(self), "reference_words": self.reference_words, **finite}

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ErrorCounts:
        """Return the counts that `to_dict` gave."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def _rate(self, errors: int) -> float:
        if self.reference_words == 0:
            return math.inf if errors else 0.0
        return errors / self.reference_words


def count_word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Align two texts word by word. Words are what stands between white space; nothing is normalised.

    Each word of the hypothesis is an insertion where the reference is empty.
    """
    return _counts(jiwer.process_words(" ".join(reference.split()), " ".join(hypothesis.split())))


def count_normalized_errors(reference: str, hypothesis: str, normalizer: Normalizer) -> ErrorCounts:
    """Align two texts word by word after normalising both; a text without letters and digits counts as empty.

    Whisper's English normaliser turns ``...`` into ``.``, which would otherwise be a word.
    """
    return count_word_errors(*normalized_texts((reference, hypothesis), normalizer))


def normalized_texts(texts: Iterable[str], normalizer: Normalizer) -> list[str]:
    """Return texts normalised, and empty where no letter or digit is left, as word and character errors need them."""
    return [text if any(map(str.isalnum, text)) else "" for text in map(normalizer, texts)]


def normalized_words(text: str, normalizer: Normalizer) -> list[str]:
    """Return the words of a normalised text; none where it has no letter and no digit."""
    return normalized_texts([text], normalizer)[0].split()


def word_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Return the number of errors of two lists of words, as `count_word_errors` has it, without an alignment."""
    return 0 if reference == hypothesis else Levenshtein.distance(reference, hypothesis)


def part_word_errors(parts: Sequence[Sequence[str]], hypothesis: Sequence[str]) -> list[int]:
    """Return the errors within each part of a reference, by the alignment of the whole with the hypothesis.

    Their sum is the `word_distance` of the whole. An inserted word belongs to the part of the word before it, at the
    very start to the first part that has words.

    Args:
        parts: Words of each part, in order; at least one word in all.
        hypothesis: Words of the hypothesis.
    """
    owners = [number for number, words in enumerate(parts) for _ in words]
    errors = [0] * len(parts)
    for edit in Levenshtein.editops(list(chain.from_iterable(parts)), hypothesis):
        errors[owners[max(edit.src_pos - (edit.tag == "insert"), 0)]] += 1
    return errors


def count_character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Align two texts character by character, the single spaces between words included."""
    return _counts(jiwer.process_characters(" ".join(reference.split()), " ".join(hypothesis.split())))


def word_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer | None = None
) -> float:
    """Return the word error rate of a set, as a fraction: all its errors over all its reference words.

    Raises:
        ValueError: If there are not as many hypotheses as references.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses; pass one for each")
    count = partial(count_normalized_errors, normalizer=normalizer) if normalizer else count_word_errors
    return sum(map(count, references, hypotheses), ErrorCounts()).wer


def count_repeated_ngrams(texts: Iterable[str], n: int = 5) -> int:
    """Count the n-grams of words that occurred before in the texts, taken as one running text.

    With n = 5 this is the repetition measure "5-Dup." of the Distil-Whisper paper; decoder loops raise it.

    Raises:
        ValueError: If n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    words = list(chain.from_iterable(text.split() for text in texts))
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(ngrams) - len(set(ngrams))


def compression_ratio(text: str) -> float:
    """Return the ratio of a text's bytes to their number after zlib; above 2.4 it is likely a loop."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorCounts:
    return ErrorCounts(output.hits, output.substitutions, output.insertions, output.deletions, samples=1)

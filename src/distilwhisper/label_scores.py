"""The score of a label: its word error rate, that of its parts, and what speaks against it at any threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import inf
from typing import Any, NamedTuple

from datasets import Features, List, Value

from distilwhisper.audio import audio_duration, undecoded
from distilwhisper.filter_reports import (
    DROP_REASONS,
    DURATION_COLUMNS,
    PART_WERS_COLUMN,
    REASON_COLUMN,
    WER_COLUMN,
    Decision,
)
from distilwhisper.label_rules import Label, LabelRules
from distilwhisper.metrics import normalized_words, part_word_errors, word_distance
from distilwhisper.normalizers import Normalizer, get_normalizer, is_shouting, language_code, strip_special_tokens

KEY_COLUMN = "whisper_wer_key"
"""Column that tells what an error rate is of: a hash of both texts, the language and the rule."""

SCORE_FEATURES = Features(
    {
        WER_COLUMN: Value("float64"),
        PART_WERS_COLUMN: List(Value("float64")),
        REASON_COLUMN: Value("string"),
        KEY_COLUMN: Value("int64"),
    }
)
"""The columns of a score, in the order of the fields of `Score`."""

SECONDS_COLUMN = "seconds"
PARTS_COLUMN = "parts"

_RULE = "words 1"  # another when a normaliser or the counting changes: old scores are void then
_WHATEVER_THE_RATE = frozenset(DROP_REASONS) - {"wer", "shouting"}


class Score(NamedTuple):
    """What is known of a label before a threshold is chosen.

    Attributes:
        wer: Word error rate; None where a text is missing.
        part_wers: Word error rate of each part of a packed sample; None where they are not judged.
        reason: Why it is dropped at any threshold, or None.
        key: Value for `KEY_COLUMN`; None where the score cannot be known again.
    """

    wer: float | None = None
    part_wers: list[float] | None = None
    reason: str | None = None
    key: int | None = None

    def decide(self, threshold: float) -> Decision:
        """Return what a filter of this threshold does."""
        reason = self.reason
        if reason not in _WHATEVER_THE_RATE:
            if self.wer is not None and self.wer > threshold:
                reason = "wer"
            elif self.part_wers and max(self.part_wers) > threshold:
                reason = "part_wer"
        return Decision(reason, self.wer)


class Columns(NamedTuple):
    """The columns that a filter reads; None for those that it does without."""

    label: str
    reference: str | None = None
    language: str | None = None
    audio: str | None = None
    id: str | None = None
    by: tuple[str, ...] = ()
    keyed: bool = False

    def completed(self, available: Sequence[str] | None) -> Columns:
        """Return them with what a data set of these columns offers beside: names, and keys of earlier scores."""
        offered = available or ()
        return self._replace(
            id=self.id or ("id" if "id" in offered else None), keyed=self.keyed or KEY_COLUMN in offered
        )

    def needed(self, available: Sequence[str], rules: LabelRules, parts: bool) -> list[str]:
        """Return the names of all columns to read.

        Raises:
            ValueError: If one is missing.
        """
        named = [name for name in (self.reference, self.label, self.language, self.id, *self.by) if name]
        for name in named:
            if name not in available:
                raise ValueError(f"the dataset has no column {name!r}, only {list(available)}; name the right one")
        judged = {**rules.columns, **({PARTS_COLUMN: "parts='any'"} if parts else {})}
        for name, rule in judged.items():
            if name not in available:
                raise ValueError(f"{rule} needs the column {name!r}; the dataset has only {list(available)}")
        lengths = [name for name in (*DURATION_COLUMNS, self.audio or "") if name in available][:1]
        if rules.need_duration and not lengths:
            raise ValueError(f"a rule on the speech rate needs the column {DURATION_COLUMNS[0]!r} or audio")
        known = [name for name in (WER_COLUMN, KEY_COLUMN) if self.keyed and name in available]
        return [*dict.fromkeys([*named, *judged, *lengths, *known])]

    def undecoded(self, dataset: Any) -> Any:
        """Return a data set that does not decode its audio."""
        return undecoded(dataset, self.audio) if self.audio and self.audio in (dataset.features or ()) else dataset

    def seconds(self, batch: Mapping[str, list[Any]]) -> list[float | None]:
        """Return the length of each recording, None where it is unknown."""
        for name in DURATION_COLUMNS:
            if name in batch:
                return batch[name]
        if self.audio and self.audio in batch:
            return list(map(audio_duration, batch[self.audio]))
        return [None] * len(batch[self.label])


class LabelScorer:
    """Scores labels; arguments as those of `WERFilter`.

    Args:
        language: Language of samples that name none.
        normalizer: Used instead of each language's own.
        drop_shouting: Whether labels in capitals are dropped.
        rules: Rules that need no transcript.
        judge_parts: Whether packed samples are judged by their parts too.
    """

    def __init__(
        self,
        language: str | None,
        *,
        normalizer: Normalizer | None = None,
        drop_shouting: bool = True,
        rules: LabelRules | None = None,
        judge_parts: bool = False,
    ) -> None:
        self.language = language
        self.drop_shouting = drop_shouting
        self.rules = rules or LabelRules()
        self.judge_parts = judge_parts
        self._has_rules = self.rules != LabelRules()
        self._normalizer = normalizer
        self._normalizers: dict[str | None, tuple[Normalizer, str]] = {}
        self._normalizer_of(language)  # an unknown language is refused now

    def words(self, text: str, language: str | None = None) -> list[str]:
        """Return the words of a text as they are compared."""
        return normalized_words(text, self._normalizer_of(language)[0])

    def part_wers(self, parts: Sequence[str], words: Sequence[str], language: str | None = None) -> list[float]:
        """Return the word error rate of each part within the label of the whole, whose words these are."""
        references = [self.words(part, language) for part in parts]
        if not any(references):
            return [0.0] * len(parts)
        errors = part_word_errors(references, words)
        return [count / len(part) if part else 0.0 for count, part in zip(errors, references, strict=True)]

    def score(self, row: Mapping[str, Any], columns: Columns, seconds: float | None = None) -> Score:
        """Return the score of a sample; a rule whose value the row lacks does not judge it."""
        label, language = row[columns.label], row.get(columns.language or "")
        if label is None:
            return Score(reason="missing_label")
        text = strip_special_tokens(label)
        wer = key = parts = None
        if columns.reference is None:
            words = self.words(text, language)
        else:
            reference = row[columns.reference]
            if reference is None:
                return Score(reason="missing_reference")
            words = self.words(text, language)
            key = self._key(reference, label, language) if columns.keyed else None
            known = key is not None and key == row.get(KEY_COLUMN)
            if known:
                wer = row[WER_COLUMN]
            else:
                wer = word_error_rate(words if reference == text else self.words(reference, language), words)
        if self.judge_parts and row.get(PARTS_COLUMN):
            parts = self.part_wers([part["text"] or "" for part in row[PARTS_COLUMN]], words, language)
        reason = self._reason(wer, text, words)
        if reason is None and self._has_rules:
            second = row.get(self.rules.second_column or "")
            other = None if second is None else self.words(strip_special_tokens(second), language)
            reason = self.rules.broken(Label(text, words, seconds, row, other))
        return Score(wer, parts, reason, key)

    def score_batch(self, batch: Mapping[str, list[Any]], columns: Columns) -> dict[str, list[Any]]:
        """Return the columns of `SCORE_FEATURES` for a batch, and the lengths in `SECONDS_COLUMN`."""
        names = columns.needed(list(batch), self.rules, self.judge_parts)
        lengths = columns.seconds(batch)
        rows = (dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True))
        scores = [self.score(row, columns, seconds) for row, seconds in zip(rows, lengths, strict=True)]
        return {**_transposed(scores), SECONDS_COLUMN: lengths}

    def _reason(self, wer: float | None, text: str, words: Sequence[str]) -> str | None:
        if wer == inf:
            return "empty_reference"
        if not words and wer != 0:
            return "empty_label"
        return "shouting" if self.drop_shouting and is_shouting(text) else None

    def _normalizer_of(self, language: str | None) -> tuple[Normalizer, str]:
        """Return the normaliser of a language and the name of its rule; no name for one of the user's own."""
        language = language or self.language
        if language not in self._normalizers:
            code = language_code(language)
            own = self._normalizer
            self._normalizers[language] = (own, "") if own else (get_normalizer(language), f"{_RULE} {code}")
        return self._normalizers[language]

    def _key(self, reference: str, label: str, language: str | None) -> int | None:
        rule = self._normalizer_of(language)[1]
        if not rule:
            return None
        digest = blake2b("\0".join((rule, reference, label)).encode("utf-8", "surrogatepass"), digest_size=8)
        return int.from_bytes(digest.digest(), signed=True)


def word_error_rate(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """Return the errors of two lists of words over the reference's; infinite for words where it has none."""
    errors = word_distance(reference, hypothesis)
    return errors / len(reference) if reference else inf if errors else 0.0


def _transposed(scores: Sequence[Score]) -> dict[str, list[Any]]:
    return {name: [score[field] for score in scores] for field, name in enumerate(SCORE_FEATURES)}

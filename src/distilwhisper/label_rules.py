"""Rules that judge a label without a transcript: by its text, its length in time, and what the teacher thought of it.

They see what the WER filter cannot where there is no transcript: loops, hallucinations over silence, labels cut
off at the length limit. The limits of `RECOMMENDED_RULES` on compression, log-probability and silence are those of
Whisper's own decoder (arXiv 2212.04356, section 4.5), which transcribes again what breaks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distilwhisper.metrics import compression_ratio, count_repeated_ngrams, word_distance

RULE_REASONS = ("capped", "repetition", "compression", "speech_rate", "avg_logprob", "no_speech", "disagreement")
"""Why `LabelRules` drop a label; where several reasons apply, the first counts."""


class Label(NamedTuple):
    """What the rules look at.

    Attributes:
        text: The label without special tokens.
        words: Its words after normalising; letters in languages without spaces.
        seconds: Length of the recording; None if it is unknown.
        columns: The values of the columns of `LabelRules.columns`.
        second: Words of the label of a second model; None if there is none.
    """

    text: str
    words: Sequence[str]
    seconds: float | None
    columns: Mapping[str, Any]
    second: Sequence[str] | None = None


@dataclass(frozen=True)
class LabelRules:
    """Which labels are dropped whatever the transcript says, each rule with a reason of its own. None: no such rule.

    A label without words is not judged, nor is one by a rule whose value it lacks (None in the column).

    Args:
        drop_capped: Drop labels that the length limit cut off (``capped``; column ``whisper_capped``).
        max_repetition: Largest share of a label's n-grams that occurred in it before (``repetition``).
        ngram: Words of an n-gram; letters in languages without spaces.
        max_compression_ratio: Largest ratio of bytes to bytes of zlib; loops raise it (``compression``).
        words_per_s: Lowest and highest number of words a second (``speech_rate``); letters in languages without spaces.
        letters_per_s: The same for letters and digits, which depends less on the language.
        min_avg_logprob: Lowest mean log-probability of the tokens (``avg_logprob``; column ``whisper_avg_logprob``).
        max_no_speech_prob: Highest probability of silence (``no_speech``; column ``whisper_no_speech_prob``).
        second_column: Column of the labels of a second model.
        max_disagreement: Largest word error rate of a label against that of the second model (``disagreement``).

    Raises:
        ValueError: If a limit is impossible.
    """

    drop_capped: bool = False
    max_repetition: float | None = None
    ngram: int = 5
    max_compression_ratio: float | None = None
    words_per_s: tuple[float, float] | None = None
    letters_per_s: tuple[float, float] | None = None
    min_avg_logprob: float | None = None
    max_no_speech_prob: float | None = None
    second_column: str | None = None
    max_disagreement: float = 0.10

    def __post_init__(self) -> None:
        for name in ("max_repetition", "max_no_speech_prob", "max_disagreement"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must be a fraction from 0 to 1, not {share}")
        if self.min_avg_logprob is not None and not self.min_avg_logprob <= 0:
            raise ValueError(f"min_avg_logprob must be the logarithm of a probability, not {self.min_avg_logprob}")
        for name in ("words_per_s", "letters_per_s"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate[0] <= rate[1]:
                raise ValueError(f"{name} must be the lowest and the highest rate, not {rate}")
        if self.ngram < 1:
            raise ValueError(f"ngram must be at least 1, not {self.ngram}")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the rules read, each with the name of the rule."""
        rules = {
            "drop_capped": self.drop_capped and "whisper_capped",
            "min_avg_logprob": self.min_avg_logprob is not None and "whisper_avg_logprob",
            "max_no_speech_prob": self.max_no_speech_prob is not None and "whisper_no_speech_prob",
            "second_column": self.second_column,
        }
        return {column: rule for rule, column in rules.items() if column}

    @property
    def need_duration(self) -> bool:
        """Whether a rule needs the length of the recordings."""
        return bool(self.words_per_s or self.letters_per_s)

    def broken(self, label: Label) -> str | None:
        """Return the reason to drop a label, one of `RULE_REASONS`, or None."""
        return next(self._broken(label), None) if label.words else None

    def _broken(self, label: Label) -> Iterator[str]:
        get = label.columns.get
        if self.drop_capped and get("whisper_capped"):
            yield "capped"
        if self.max_repetition is not None and self._repetition(label.words) > self.max_repetition:
            yield "repetition"
        if self.max_compression_ratio is not None and compression_ratio(label.text) > self.max_compression_ratio:
            yield "compression"
        if self.need_duration and label.seconds is not None and not self._speech_rate_fits(label.words, label.seconds):
            yield "speech_rate"
        if _is_below(get("whisper_avg_logprob"), self.min_avg_logprob):
            yield "avg_logprob"
        if _is_below(self.max_no_speech_prob, get("whisper_no_speech_prob")):
            yield "no_speech"
        if label.second is not None:
            errors = word_distance(label.second, label.words)
            if errors > self.max_disagreement * len(label.second):
                yield "disagreement"

    def _repetition(self, words: Sequence[str]) -> float:
        return count_repeated_ngrams([" ".join(words)], self.ngram) / max(len(words) - self.ngram + 1, 1)

    def _speech_rate_fits(self, words: Sequence[str], seconds: float) -> bool:
        letters = sum(map(str.isalnum, "".join(words)))
        limits = ((self.words_per_s, len(words)), (self.letters_per_s, letters))
        return all(limit is None or limit[0] * seconds <= count <= limit[1] * seconds for limit, count in limits)


def _is_below(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value < limit


RECOMMENDED_RULES: LabelRules = LabelRules(
    drop_capped=True,
    max_repetition=0.3,
    max_compression_ratio=2.4,
    letters_per_s=(0.5, 30.0),
    min_avg_logprob=-1.0,
    max_no_speech_prob=0.6,
)
"""For labels of `PseudoLabeler` without transcripts; start here and look at what the report says."""

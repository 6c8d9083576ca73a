"""What an evaluation found: counts that add up, for each test set, and what follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from distilwhisper.metrics import ErrorCounts, count_repeated_ngrams
from distilwhisper.significance import Interval, word_error_interval

_COUNTS = ("orthographic", "characters", "empty_references")


@dataclass(frozen=True, order=True)
class Failure:
    """A sample that could not be scored.

    Attributes:
        index: Its position in the set.
        reason: ``missing_reference``, or the reason of an `AudioError`.
        message: What happened, in words.
    """

    index: int
    reason: str
    message: str


@dataclass
class SetResult:
    """The result on one test set. Scored, empty-reference and failed samples add up to all.

    Parts of a set, each with its samples' own positions, add up with ``+`` to the result of the whole.

    Attributes:
        counts: Word errors after normalisation of each scored sample, by position in the set.
        orthographic: Word errors of the same samples as written: case and punctuation count.
        characters: Character errors of the same samples after normalisation.
        empty_references: Word errors of the samples whose normalised reference is empty; they have no error rate, and
            every insertion among them is an invented word.
        failures: The samples that could not be scored.
        transcripts: What the model wrote, by position in the set; failed samples are absent.
        tokens: Tokens that the model generated for them.
        audio_s: Seconds of audio transcribed.
        seconds: Seconds that took, reading the audio included.
    """

    counts: dict[int, ErrorCounts] = field(default_factory=dict)
    orthographic: ErrorCounts = field(default_factory=ErrorCounts)
    characters: ErrorCounts = field(default_factory=ErrorCounts)
    empty_references: ErrorCounts = field(default_factory=ErrorCounts)
    failures: list[Failure] = field(default_factory=list)
    transcripts: dict[int, str] = field(default_factory=dict)
    tokens: int = 0
    audio_s: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: SetResult) -> SetResult:
        return SetResult(
            dict(sorted((self.counts | other.counts).items())),
            self.orthographic + other.orthographic,
            self.characters + other.characters,
            self.empty_references + other.empty_references,
            sorted(self.failures + other.failures),
            dict(sorted((self.transcripts | other.transcripts).items())),
            self.tokens + other.tokens,
            self.audio_s + other.audio_s,
            self.seconds + other.seconds,
        )

    @property
    def normalized(self) -> ErrorCounts:
        """Word errors after normalisation, of the scored samples together."""
        return sum(self.counts.values(), ErrorCounts())

    @property
    def samples(self) -> int:
        """All samples of the set."""
        return self.normalized.samples + self.empty_references.samples + len(self.failures)

    @property
    def wer(self) -> float:
        """Word error rate after normalisation, a fraction; NaN if no sample could be scored."""
        return self.normalized.wer if self.normalized.samples else math.nan

    @property
    def wer_orthographic(self) -> float:
        """Word error rate of the texts as written, a fraction; NaN if no sample could be scored."""
        return self.orthographic.wer if self.orthographic.samples else math.nan

    @property
    def cer(self) -> float:
        """Character error rate after normalisation, a fraction; NaN if no sample could be scored."""
        return self.characters.wer if self.characters.samples else math.nan

    @property
    def repeated_5grams(self) -> int:
        """Five-grams of words that occurred before in the set's transcripts, in order (5-Dup. of the paper)."""
        return count_repeated_ngrams(self.transcripts.values(), 5)

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio; NaN without audio."""
        return self.seconds / self.audio_s if self.audio_s else math.nan

    @property
    def rtfx(self) -> float:
        """Inverse real-time factor: seconds of audio in a second of work; NaN without audio."""
        return self.audio_s / self.seconds if self.audio_s else math.nan

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated in a second of work, reading the audio included; NaN without audio."""
        return self.tokens / self.seconds if self.audio_s else math.nan

    def interval(self, rate: str = "wer", **options: Any) -> Interval:
        """Return the bootstrap interval of an error rate; options are those of `word_error_interval`."""
        return word_error_interval([*self.counts.values()], rate=rate, **options)

    def to_dict(self, *, details: bool = False) -> dict[str, Any]:
        """Return counts, rates and failures by name; NaN becomes None.

        Args:
            details: Whether the counts and transcripts of each sample are wanted too, as `from_dict` needs them.
        """
        rates = ("wer", "wer_orthographic", "cer", "rtf", "rtfx", "tokens_per_s")
        samples = {
            "counts": {index: asdict(counts) for index, counts in self.counts.items()},
            "transcripts": self.transcripts,
        }
        return {
            "samples": self.samples,
            **{name: _finite(getattr(self, name)) for name in rates},
            "repeated_5grams": self.repeated_5grams,
            "tokens": self.tokens,
            "audio_s": self.audio_s,
            "seconds": self.seconds,
            "normalized": self.normalized.to_dict(),
            **{name: getattr(self, name).to_dict() for name in _COUNTS},
            "failures": [asdict(failure) for failure in self.failures],
            **(samples if details else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SetResult:
        """Return the result that ``to_dict(details=True)`` gave, be it through JSON."""
        counts = {int(index): ErrorCounts(**part) for index, part in values["counts"].items()}
        orthographic, characters, empty = (ErrorCounts.from_dict(values[name]) for name in _COUNTS)
        failures = [Failure(**failure) for failure in values["failures"]]
        transcripts = {int(index): text for index, text in values["transcripts"].items()}
        work = (values[name] for name in ("tokens", "audio_s", "seconds"))
        return cls(counts, orthographic, characters, empty, failures, transcripts, *work)


@dataclass
class EvaluationResult:
    """The results on all test sets; ``print(result)`` shows a Markdown table.

    Attributes:
        sets: Result by name of the set.
    """

    sets: dict[str, SetResult]

    @property
    def wer(self) -> float:
        """Macro-average of the normalised word error rates, a fraction: every set counts alike."""
        return self.macro_average()

    @property
    def wer_orthographic(self) -> float:
        """Macro-average of the orthographic word error rates, a fraction."""
        return self.macro_average(rate="wer_orthographic")

    def macro_average(self, names: Iterable[str] | None = None, rate: str = "wer") -> float:
        """Return the mean of a rate over named sets, such as those in distribution; every set counts alike.

        Args:
            names: Which sets; default all.
            rate: A rate of `SetResult` (``wer``, ``cer``, ...), or ``ier``, ``ser``, ``der``.
        """
        results = [self.sets[name] for name in (self.sets if names is None else names)]
        return fmean(getattr(result if hasattr(result, rate) else result.normalized, rate) for result in results)

    def interval(self, names: Iterable[str] | None = None, **options: Any) -> Interval:
        """Return the bootstrap interval of `macro_average`; options are those of `word_error_interval`."""
        sets = ([*self.sets[name].counts.values()] for name in (self.sets if names is None else names))
        return word_error_interval(*sets, **options)

    @property
    def rtf(self) -> float:
        """Real-time factor over all sets: seconds of work for a second of audio; NaN without audio."""
        audio_s = sum(result.audio_s for result in self.sets.values())
        return sum(result.seconds for result in self.sets.values()) / audio_s if audio_s else math.nan

    def to_dict(self, *, details: bool = False) -> dict[str, Any]:
        """Return the averages, and each set's `SetResult.to_dict`."""
        averages = {name: _finite(getattr(self, name)) for name in ("wer", "wer_orthographic", "rtf")}
        return {**averages, "sets": {name: result.to_dict(details=details) for name, result in self.sets.items()}}

    def to_json(self, *, details: bool = False) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(details=details), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, document: str) -> EvaluationResult:
        """Return the result that ``to_json(details=True)`` wrote."""
        return cls({name: SetResult.from_dict(part) for name, part in json.loads(document)["sets"].items()})

    def __str__(self) -> str:
        header = ("set", "samples", "WER", "as written", "hits", "sub.", "del.", "ins.", "empty", "failed", "RTF")
        lines = [header, (":--", *["--:"] * (len(header) - 1))]
        for name, result in self.sets.items():
            words, others = result.normalized, (result.empty_references.samples, len(result.failures))
            counts = (words.hits, words.substitutions, words.deletions, words.insertions, *others)
            lines.append((name, str(result.samples), *_rates(result), *map(str, counts), f"{result.rtf:.3f}"))
        if len(self.sets) > 1:
            lines.append(("macro-average", "", *_rates(self), *[""] * 6, f"{self.rtf:.3f}"))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def relative_error_rates(baseline: EvaluationResult, model: EvaluationResult) -> dict[str, float]:
    """Return by how much a model's word error rate exceeds a baseline's, relative to it, set by set (paper, Table 6).

    This is the paper's effective robustness: given two models that are close on a reference set in distribution, the
    values out of distribution say what was won (below 0) or lost (above 0) there.

    Raises:
        ValueError: If the two were not evaluated on the same sets.
    """
    if model.sets.keys() != baseline.sets.keys():
        raise ValueError(f"the models were evaluated on different sets: {[*baseline.sets]} and {[*model.sets]}")
    rates = {name: (result.wer, model.sets[name].wer) for name, result in baseline.sets.items()}
    return {name: (new - old) / old if old else math.nan for name, (old, new) in rates.items()}


def worst_examples(
    references: Mapping[str, Sequence[str]], teacher: EvaluationResult, student: EvaluationResult, count: int = 3
) -> list[dict[str, str]]:
    """Return the transcripts of each set in which the student is wrong in most words, as a report shows them.

    Args:
        references: Name of a set to its reference transcripts.
        teacher: The teacher's result on these sets.
        student: The student's.
        count: Examples of each set.
    """
    examples = []
    for name, texts in references.items():
        errors = {index: counts.errors for index, counts in student.sets[name].counts.items()}
        for index in sorted(errors, key=errors.__getitem__, reverse=True)[:count]:
            heard = (("teacher", teacher), ("student", student))
            transcripts = {who: result.sets[name].transcripts[index] for who, result in heard}
            examples.append({"set": name, "reference": texts[index], **transcripts})
    return examples


def _finite(rate: float) -> float | None:
    return rate if math.isfinite(rate) else None


def _rates(result: SetResult | EvaluationResult) -> tuple[str, str]:
    return f"{result.wer:.2%}", f"{result.wer_orthographic:.2%}"

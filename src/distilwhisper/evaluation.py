"""How good a model is: word error rates on named test sets, with nothing left out unseen."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

from datasets.utils import tqdm

from distilwhisper.audio import AudioError, undecoded
from distilwhisper.metrics import ErrorCounts, count_normalized_errors, count_word_errors
from distilwhisper.normalizers import Normalizer, get_normalizer
from distilwhisper.transcription import Transcriber

logger = logging.getLogger(__name__)


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

    Attributes:
        normalized: Word errors after normalisation, of the scored samples.
        orthographic: Word errors of the same samples as written: case and punctuation count.
        empty_references: Word errors of the samples whose normalised reference is empty; they have no error rate, and
            every insertion among them is an invented word.
        failures: The samples that could not be scored.
        transcripts: What the model wrote, by position in the set; failed samples are absent.
        audio_s: Seconds of audio transcribed.
        seconds: Seconds that took, reading the audio included.
    """

    normalized: ErrorCounts = field(default_factory=ErrorCounts)
    orthographic: ErrorCounts = field(default_factory=ErrorCounts)
    empty_references: ErrorCounts = field(default_factory=ErrorCounts)
    failures: list[Failure] = field(default_factory=list)
    transcripts: dict[int, str] = field(default_factory=dict)
    audio_s: float = 0.0
    seconds: float = 0.0

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
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio; NaN without audio."""
        return self.seconds / self.audio_s if self.audio_s else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return counts, rates and failures by name, without the transcripts; NaN becomes None."""
        return {
            "samples": self.samples,
            "wer": _finite(self.wer),
            "wer_orthographic": _finite(self.wer_orthographic),
            "rtf": _finite(self.rtf),
            "audio_s": self.audio_s,
            "seconds": self.seconds,
            "normalized": self.normalized.to_dict(),
            "orthographic": self.orthographic.to_dict(),
            "empty_references": self.empty_references.to_dict(),
            "failures": [asdict(failure) for failure in self.failures],
        }


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
        return fmean(result.wer for result in self.sets.values())

    @property
    def wer_orthographic(self) -> float:
        """Macro-average of the orthographic word error rates, a fraction."""
        return fmean(result.wer_orthographic for result in self.sets.values())

    @property
    def rtf(self) -> float:
        """Real-time factor over all sets: seconds of work for a second of audio; NaN without audio."""
        audio_s = sum(result.audio_s for result in self.sets.values())
        return sum(result.seconds for result in self.sets.values()) / audio_s if audio_s else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the averages, and each set's `SetResult.to_dict`."""
        averages = {name: _finite(getattr(self, name)) for name in ("wer", "wer_orthographic", "rtf")}
        return {**averages, "sets": {name: result.to_dict() for name, result in self.sets.items()}}

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

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


def evaluate(
    model: Any,
    dataset: Any,
    processor: Any = None,
    *,
    language: str | None = None,
    text_column: str = "text",
    audio_column: str = "audio",
    batch_size: int = 16,
    normalizer: Normalizer | None = None,
    **options: Any,
) -> EvaluationResult:
    """Transcribe test sets and count the word errors.

    Every sample is scored, or counted as having an empty reference (once normalised), or listed as a failure.

    Args:
        model: A model, the path or Hub id of one, or a `Transcriber`, which keeps its own settings.
        dataset: A dataset, streamed or not, or a dictionary of named ones.
        processor: The model's processor; by default loaded from where the model came from.
        language: Language of the recordings; by default that of the `Transcriber`, or English.
        text_column: Column of the reference transcripts.
        audio_column: Column of the recordings.
        batch_size: Recordings at a time.
        normalizer: Used instead of the language's own (`get_normalizer`).
        **options: Further arguments of `Transcriber`, such as ``num_beams``.

    Raises:
        ValueError: If a column is missing, there are no sets, or the language is not that of the `Transcriber`.
    """
    sets: Mapping[str, Any] = dataset if isinstance(dataset, Mapping) else {"test": dataset}
    if not sets:
        raise ValueError("there is no test set in the dictionary; pass at least one")
    transcriber = _transcriber(model, processor, language, batch_size=batch_size, **options)
    normalize = normalizer or get_normalizer(language or transcriber.language)
    for rows in islice(sets.values(), 1):  # the first work of a device is slow, and would be held against the model
        list(transcriber.transcribe_many(islice(_recordings(rows, text_column, audio_column, {}), 1)))
    return EvaluationResult(
        {
            name: _evaluate_set(transcriber, rows, text_column, audio_column, normalize=normalize, name=name)
            for name, rows in sets.items()
        }
    )


def _transcriber(model: Any, processor: Any, language: str | None = None, **options: Any) -> Transcriber:
    if not isinstance(model, Transcriber):
        return Transcriber(model, processor, language=language or "en", **options)
    if None not in (language, model.language) and model.tokens.language_code(language or "") != model.language:
        raise ValueError(f"the Transcriber writes {model.language!r}, not {language!r}; give both one language")
    return model


def _recordings(
    rows: Any, text_column: str, audio_column: str, references: dict[int, str | None]
) -> Iterator[tuple[int, Any]]:
    """Yield position and audio of each row, and put its text into ``references``; without one its audio is None."""
    known = getattr(rows, "column_names", None) or (text_column, audio_column)
    if missing := [name for name in (text_column, audio_column) if name not in known]:
        raise ValueError(f"the test set has no column {missing[0]!r}, only {known}; name the right one")
    rows = undecoded(rows, audio_column) if hasattr(rows, "features") else rows
    for index, row in enumerate(rows):
        references[index] = row[text_column]
        yield index, None if references[index] is None else row[audio_column]


def _evaluate_set(
    transcriber: Transcriber, rows: Any, text_column: str, audio_column: str, *, normalize: Normalizer, name: str
) -> SetResult:
    result, references, started = SetResult(), dict[int, str | None](), time.perf_counter()
    recordings = _recordings(rows, text_column, audio_column, references)
    total = len(rows) if hasattr(rows, "__len__") else None
    for index, transcript in tqdm(transcriber.transcribe_many(recordings), f"Evaluating {name}", total):
        if references[index] is None:
            result.failures.append(Failure(index, "missing_reference", "there is no reference transcript"))
        elif isinstance(transcript, AudioError):
            result.failures.append(Failure(index, transcript.reason, str(transcript)))
        else:
            result.audio_s += transcript.duration_s
            result.transcripts[index] = transcript.text
    result.seconds = time.perf_counter() - started
    result.transcripts = dict(sorted(result.transcripts.items()))
    result.failures.sort()
    for index, text in result.transcripts.items():
        _score(result, references[index] or "", text, normalize)
    if result.failures:
        reasons = dict(Counter(failure.reason for failure in result.failures))
        logger.warning("%d of %d samples of %s are not scored: %s", len(result.failures), result.samples, name, reasons)
    return result


def _score(result: SetResult, reference: str, hypothesis: str, normalize: Normalizer) -> None:
    normalized = count_normalized_errors(reference, hypothesis, normalize)
    if normalized.reference_words:
        result.normalized += normalized
        result.orthographic += count_word_errors(reference, hypothesis)
    else:
        result.empty_references += normalized


def _finite(rate: float) -> float | None:
    return rate if math.isfinite(rate) else None


def _rates(result: SetResult | EvaluationResult) -> tuple[str, str]:
    return f"{result.wer:.2%}", f"{result.wer_orthographic:.2%}"

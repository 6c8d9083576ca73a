"""The WER filter: a pseudo-label that strays too far from the reference transcript is not trained on.

Section 3.3 of the Distil-Whisper paper (arXiv 2311.00430): drop a sample when
``WER(norm(reference), norm(label)) > threshold``. It needs the texts alone; audio is never decoded.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isinf
from typing import Any, NamedTuple, TypeVar

from datasets import Dataset, Features, IterableDataset, Value
from datasets.utils import tqdm

from distilwhisper.audio import audio_duration, undecoded
from distilwhisper.metrics import ErrorCounts, count_normalized_errors
from distilwhisper.normalizers import Normalizer, get_normalizer, is_shouting, strip_special_tokens

WER_COLUMN = "whisper_wer"
"""Column that `WERFilter.filter` adds: the word error rate of the label, a fraction."""

DROP_REASONS = ("missing_label", "missing_reference", "empty_reference", "empty_label", "wer", "shouting")
"""Why a sample is dropped; where several reasons apply, the first counts."""

HISTOGRAM_EDGES = (0.0, 0.05, 0.10, 0.15, 0.20, 0.30, 0.40, 0.50, 0.75, 1.0)
"""Upper edges of the histogram's bins, each in the bin that it closes; one more bin holds what is above 1."""

_BATCH_SIZE = 1000
_DURATION_COLUMNS = ("duration_s", "duration")

DatasetT = TypeVar("DatasetT")


class Decision(NamedTuple):
    """What the filter thinks of one sample.

    Attributes:
        reason: One of `DROP_REASONS`, or None if the sample is kept.
        wer: Word error rate of the label, as `WERFilter.wer` gives it; None where a text is missing.
    """

    reason: str | None
    wer: float | None


@dataclass
class Tally:
    """Number and length of some samples.

    Attributes:
        samples: How many there are.
        seconds: How long those of known length are.
        unknown_length: How many have an unknown length.
    """

    samples: int = 0
    seconds: float = 0.0
    unknown_length: int = 0

    @property
    def hours(self) -> float | None:
        """Hours of audio; None if no sample has a known length."""
        return None if self.samples and self.unknown_length == self.samples else self.seconds / 3600

    def count(self, seconds: float | None) -> None:
        """Add one sample."""
        self.samples += 1
        self.seconds += seconds or 0.0
        self.unknown_length += seconds is None

    def __add__(self, other: Tally) -> Tally:
        unknown_length = self.unknown_length + other.unknown_length
        return Tally(self.samples + other.samples, self.seconds + other.seconds, unknown_length)

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers by name."""
        return {"samples": self.samples, "hours": self.hours, "unknown_length": self.unknown_length}


@dataclass
class FilterReport:
    """What a filter kept and dropped; ``print(report)`` shows a Markdown table.

    Attributes:
        threshold: The threshold of the filter, a fraction.
        language: The language of the filter.
        kept: The samples that were kept.
        reasons: The samples that were dropped, by reason; the keys are `DROP_REASONS`.
        histogram: Samples by word error rate, over the bins of `HISTOGRAM_EDGES`: all that have both texts.
    """

    threshold: float
    language: str | None
    kept: Tally = field(default_factory=Tally)
    reasons: dict[str, Tally] = field(default_factory=lambda: {reason: Tally() for reason in DROP_REASONS})
    histogram: list[int] = field(default_factory=lambda: [0] * (len(HISTOGRAM_EDGES) + 1))

    @property
    def dropped(self) -> Tally:
        """All samples that were dropped."""
        return sum(self.reasons.values(), Tally())

    @property
    def total(self) -> Tally:
        """All samples."""
        return self.kept + self.dropped

    def count(self, decision: Decision, seconds: float | None) -> None:
        """Add one sample of so many seconds, None if its length is unknown."""
        (self.kept if decision.reason is None else self.reasons[decision.reason]).count(seconds)
        if decision.wer is not None:
            self.histogram[bisect_left(HISTOGRAM_EDGES, decision.wer)] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, lists and dictionaries; hours are None where no length is known."""
        return {
            "threshold": self.threshold,
            "language": self.language,
            "total": self.total.to_dict(),
            "kept": self.kept.to_dict(),
            "dropped": self.dropped.to_dict(),
            "reasons": {reason: tally.to_dict() for reason, tally in self.reasons.items()},
            "histogram": {"upper_edges": [*HISTOGRAM_EDGES, None], "samples": self.histogram},
        }

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        rows = {"kept": self.kept}
        rows |= {f"dropped: {reason}": tally for reason, tally in self.reasons.items() if tally.samples}
        rows["total"] = total = self.total
        lines = [f"| WER <= {100 * self.threshold:g}% | samples | hours | share |", "|:--|--:|--:|--:|"]
        for name, tally in rows.items():
            hours = "unknown" if tally.hours is None else f"{tally.hours:,.2f}"
            share = tally.samples / max(total.samples, 1)
            lines.append(f"| {name} | {tally.samples:,} | {hours} | {share:.1%} |")
        if total.unknown_length:
            lines.append(f"\nHours leave out {total.unknown_length:,} samples of unknown length.")
        return "\n".join(lines)


class WERFilter:
    """Keep the samples whose pseudo-label agrees with the reference transcript.

    Both texts are normalised; special and timestamp tokens in a label are ignored. The rules, in order:

    * no label, or no reference: dropped (``missing_label``, ``missing_reference``);
    * both empty once normalised: kept with WER 0, as teacher and transcript agree that nothing is said;
    * an empty reference with a label: dropped (``empty_reference``), as nothing supports the label;
    * an empty label with a reference: dropped (``empty_label``) at any threshold, as speech was missed;
    * WER above the threshold: dropped (``wer``); at the threshold exactly: kept;
    * a label all in capitals: dropped (``shouting``, see `is_shouting`), lest the student learn to write so.
      References in capitals, LibriSpeech's for example, do no harm: the normaliser lowers them.

    Args:
        threshold: Largest word error rate to keep, a fraction from 0 to 1; the paper's is 0.10.
        language: Language of the texts: chooses the normaliser, see `get_normalizer`. None means English.
        normalizer: Used instead of the language's own, for every language.
        drop_shouting: Whether to drop labels in capitals.

    Attributes:
        report: What the last call of `filter` kept and dropped; for a streamed dataset, of the samples read
            so far in this process, repeated passes included.

    Raises:
        ValueError: If the threshold is not a fraction from 0 to 1, or the language is unknown.
    """

    def __init__(
        self,
        threshold: float = 0.10,
        language: str | None = "en",
        *,
        normalizer: Normalizer | None = None,
        drop_shouting: bool = True,
    ) -> None:
        if not 0 <= threshold <= 1:
            hint = f": did you mean {threshold / 100:g}?" if 1 < threshold <= 100 else ""
            raise ValueError(f"threshold must be a fraction from 0 to 1, not {threshold}{hint}")
        self.threshold = threshold
        self.language = language
        self.drop_shouting = drop_shouting
        self.report = FilterReport(threshold, language)
        self._normalizer = normalizer
        self._normalizers = {language: normalizer or get_normalizer(language)}

    def wer(self, reference: str, hypothesis: str, *, language: str | None = None) -> float:
        """Return the word error rate of a label, a fraction; infinite for words where the reference has none.

        Args:
            reference: The transcript that came with the audio.
            hypothesis: The label, with or without special tokens.
            language: Language of this sample; by default that of the filter.
        """
        return self._errors(reference, hypothesis, language).wer

    def keep(self, reference: str | None, hypothesis: str | None, *, language: str | None = None) -> bool:
        """Return whether a sample is kept. Arguments as for `wer`; None stands for a missing text."""
        return self.decide(reference, hypothesis, language=language).reason is None

    def decide(self, reference: str | None, hypothesis: str | None, *, language: str | None = None) -> Decision:
        """Return whether a sample is kept, or why not, and its word error rate. Arguments as for `keep`."""
        if hypothesis is None:
            return Decision("missing_label", None)
        if reference is None:
            return Decision("missing_reference", None)
        errors = self._errors(reference, hypothesis, language)
        wer = errors.wer
        if isinf(wer):
            return Decision("empty_reference", wer)
        if errors.deletions and errors.deletions == errors.errors + errors.hits:
            return Decision("empty_label", wer)
        if wer > self.threshold:
            return Decision("wer", wer)
        if self.drop_shouting and is_shouting(strip_special_tokens(hypothesis)):
            return Decision("shouting", wer)
        return Decision(None, wer)

    def filter(
        self,
        dataset: DatasetT,
        reference_column: str = "text",
        hypothesis_column: str = "whisper_transcript",
        *,
        audio_column: str = "audio",
        language_column: str | None = None,
    ) -> DatasetT:
        """Return the samples that are kept, with their word error rate in the column `WER_COLUMN`.

        The report's hours come from the column ``duration_s`` or ``duration`` (seconds); without one, from
        the headers of the audio files. Audio is not decoded; a streamed dataset returns it as bytes.

        Args:
            dataset: A `Dataset`, `IterableDataset`, or dictionary of either; the same type comes back.
            reference_column: Column of the transcripts that came with the audio.
            hypothesis_column: Column of the labels.
            audio_column: Column of the audio; need not exist.
            language_column: Column of each sample's language; None in it means the filter's own.

        Raises:
            ValueError: If a column is missing.
            TypeError: If the dataset is of another type.
        """
        self.report = FilterReport(self.threshold, self.language)
        columns = _Columns(reference_column, hypothesis_column, audio_column, language_column)
        filtered: DatasetT = self._filter(dataset, columns, self.report)
        return filtered

    def _filter(self, dataset: Any, columns: _Columns, report: FilterReport) -> Any:
        if isinstance(dataset, dict):
            return type(dataset)({name: self._filter(part, columns, report) for name, part in dataset.items()})
        if isinstance(dataset, IterableDataset):
            return self._filter_stream(dataset, columns, report)
        if isinstance(dataset, Dataset):
            return self._filter_stored(dataset, columns, report)
        raise TypeError(f"cannot filter a {type(dataset).__name__}; pass a datasets.Dataset or IterableDataset")

    def _filter_stored(self, dataset: Dataset, columns: _Columns, report: FilterReport) -> Dataset:
        texts = columns.undecoded(dataset).select_columns(columns.needed(dataset.column_names))
        batches = tqdm(texts.iter(_BATCH_SIZE), "Filtering", -(-len(dataset) // _BATCH_SIZE), unit="batch")
        decisions = [decision for batch in batches for decision in self._decide_batch(batch, columns, report)]
        if WER_COLUMN in dataset.column_names:
            dataset = dataset.remove_columns(WER_COLUMN)
        rates = [decision.wer for decision in decisions]
        # A column is added to the whole dataset, since adding one to a selection would copy the audio.
        scored = dataset.add_column(WER_COLUMN, rates, feature=Value("float64"))
        return scored.select([row for row, decision in enumerate(decisions) if decision.reason is None])

    def _filter_stream(self, dataset: IterableDataset, columns: _Columns, report: FilterReport) -> IterableDataset:
        if dataset.column_names:
            columns.needed(dataset.column_names)
        dataset = columns.undecoded(dataset)
        features = dataset.features and Features({**dataset.features, WER_COLUMN: Value("float64")})
        keep = partial(self._keep_rows, columns=columns, report=report)
        return dataset.map(keep, batched=True, batch_size=_BATCH_SIZE, features=features)

    def _keep_rows(
        self, batch: Mapping[str, list[Any]], columns: _Columns, report: FilterReport
    ) -> dict[str, list[Any]]:
        decisions = self._decide_batch(batch, columns, report)
        scored = {**batch, WER_COLUMN: [decision.wer for decision in decisions]}
        kept = [row for row, decision in enumerate(decisions) if decision.reason is None]
        return {name: [values[row] for row in kept] for name, values in scored.items()}

    def _decide_batch(self, batch: Mapping[str, list[Any]], columns: _Columns, report: FilterReport) -> list[Decision]:
        references, labels = batch[columns.reference], batch[columns.hypothesis]
        languages = batch[columns.language] if columns.language else [None] * len(labels)
        decisions = [
            self.decide(reference, label, language=language)
            for reference, label, language in zip(references, labels, languages, strict=True)
        ]
        for decision, seconds in zip(decisions, columns.seconds(batch), strict=True):
            report.count(decision, seconds)
        return decisions

    def _errors(self, reference: str, hypothesis: str, language: str | None) -> ErrorCounts:
        language = language or self.language
        if language not in self._normalizers:
            self._normalizers[language] = self._normalizer or get_normalizer(language)
        return count_normalized_errors(reference, strip_special_tokens(hypothesis), self._normalizers[language])


class _Columns(NamedTuple):
    """The columns that the filter reads."""

    reference: str
    hypothesis: str
    audio: str
    language: str | None

    def needed(self, available: list[str]) -> list[str]:
        texts = [name for name in (self.reference, self.hypothesis, self.language) if name]
        for name in texts:
            if name not in available:
                raise ValueError(f"the dataset has no column {name!r}, only {available}; name the right one")
        lengths = [name for name in (*_DURATION_COLUMNS, self.audio) if name in available]
        return [*dict.fromkeys(texts), *lengths[:1]]

    def undecoded(self, dataset: Any) -> Any:
        return undecoded(dataset, self.audio) if self.audio in (dataset.features or ()) else dataset

    def seconds(self, batch: Mapping[str, list[Any]]) -> list[float | None]:
        for name in _DURATION_COLUMNS:
            if name in batch:
                return batch[name]
        return list(map(audio_duration, batch.get(self.audio, [None] * len(batch[self.reference]))))

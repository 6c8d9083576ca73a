"""What a filter kept and dropped: counts and hours by reason, thresholds compared, the worst labels."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from itertools import accumulate
from math import inf, isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from distilwhisper.plots import plot_label_histogram, plot_threshold_sweep
from distilwhisper.tables import Shown, html_table, markdown_table

WER_COLUMN = "whisper_wer"
"""Column of the word error rate of the label, a fraction."""

PART_WERS_COLUMN = "whisper_part_wers"
"""Column of the word error rates of the parts of a packed sample."""

REASON_COLUMN = "whisper_drop_reason"
"""Column of the reason that drops the sample at any threshold; None where the error rates decide."""

DROP_REASONS = ("missing_label", "missing_reference", "empty_reference", "empty_label", "wer", "shouting")
"""Why a sample is dropped; where several reasons apply, the first counts."""

HISTOGRAM_EDGES = (0.0, 0.05, 0.10, 0.15, 0.20, 0.30, 0.40, 0.50, 0.75, 1.0)
"""Upper edges of the histogram's bins, each in the bin that it closes; one more bin holds what is above 1."""

SWEEP_THRESHOLDS = tuple(percent / 100 for percent in range(101))
"""The thresholds that `threshold_sweep` tries unless told otherwise."""

DURATION_COLUMNS = ("duration_s", "duration")
"""Columns of the length in seconds; the first that exists is read."""

WORST = 20
"""Examples that a report keeps."""

_SHOWN_PERCENT = (0, 5, 10, 15, 20, 30, 40, 60, 80, 100)


class Decision(NamedTuple):
    """What the filter thinks of one sample.

    Attributes:
        reason: One of `DROP_REASONS` or `RULE_REASONS`, or ``part_wer``; None if the sample is kept.
        wer: Word error rate of the label, as `WERFilter.wer` gives it; None where a text is missing.
    """

    reason: str | None
    wer: float | None


class Example(NamedTuple):
    """A label that was dropped for its error rate."""

    wer: float
    id: str
    reference: str
    label: str


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
class FilterReport(Shown):
    """What a filter kept and dropped; ``print(report)`` shows a Markdown table.

    Attributes:
        threshold: The threshold of the filter, a fraction; None for one without transcripts.
        language: The language of the filter.
        kept: The samples that were kept.
        reasons: The samples that were dropped, by reason; the keys are `DROP_REASONS`, and those of further rules.
        histogram: Samples by word error rate, over the bins of `HISTOGRAM_EDGES`: all that have both texts.
        groups: Column to value to the report on the samples with this value.
        worst: The labels of the highest error rates, highest first, at most `WORST`.
    """

    threshold: float | None
    language: str | None
    kept: Tally = field(default_factory=Tally)
    reasons: dict[str, Tally] = field(default_factory=lambda: {reason: Tally() for reason in DROP_REASONS})
    histogram: list[int] = field(default_factory=lambda: [0] * (len(HISTOGRAM_EDGES) + 1))
    groups: dict[str, dict[str, FilterReport]] = field(default_factory=dict)
    worst: list[Example] = field(default_factory=list)

    @property
    def dropped(self) -> Tally:
        """All samples that were dropped."""
        return sum(self.reasons.values(), Tally())

    @property
    def total(self) -> Tally:
        """All samples."""
        return self.kept + self.dropped

    def count(self, decision: Decision, seconds: float | None, groups: Mapping[str, Any] | None = None) -> None:
        """Add one sample of so many seconds, None if its length is unknown, and its value in each grouping column."""
        tally = self.kept if decision.reason is None else self.reasons.setdefault(decision.reason, Tally())
        tally.count(seconds)
        if decision.wer is not None:
            self.histogram[bisect_left(HISTOGRAM_EDGES, decision.wer)] += 1
        for column, value in groups.items() if groups else ():
            group = self.groups.setdefault(column, {}).setdefault(
                str(value), FilterReport(self.threshold, self.language)
            )
            group.count(decision, seconds)

    def add_example(self, example: Example) -> None:
        """Add a label, if it is one of the worst so far."""
        self.worst = nlargest(WORST, [*self.worst, example], key=itemgetter(0))

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
            "groups": {
                column: {value: group.to_dict() for value, group in groups.items()}
                for column, groups in self.groups.items()
            },
            "worst": [example._asdict() for example in self.worst],
        }

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        rows = {"kept": self.kept}
        rows |= {f"dropped: {reason}": tally for reason, tally in self.reasons.items() if tally.samples}
        rows["total"] = total = self.total
        rule = "label rules" if self.threshold is None else f"WER <= {100 * self.threshold:g}%"
        lines = [f"| {rule} | samples | hours | share |", "|:--|--:|--:|--:|"]
        for name, tally in rows.items():
            share = tally.samples / max(total.samples, 1)
            lines.append(f"| {name} | {tally.samples:,} | {_hours(tally.hours)} | {share:.1%} |")
        if total.unknown_length:
            lines.append(f"\nHours leave out {total.unknown_length:,} samples of unknown length.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        most = max(self.histogram)
        names = [*(f"{100 * edge:g}" for edge in HISTOGRAM_EDGES), f"more than {100 * HISTOGRAM_EDGES[-1]:g}"]
        bars = [["WER of the label, up to (%)", "samples", ""]]
        for name, count in zip(names, self.histogram, strict=True):
            bars.append([name, f"{count:,}", "\u2588" * round(20 * count / max(most, 1))])
        return super()._repr_html_() + (html_table(bars) if most else "")


@dataclass(frozen=True)
class SweepPoint:
    """What a threshold keeps.

    Attributes:
        threshold: The threshold, a fraction.
        samples: Samples kept.
        share: Their share of all samples.
        hours: Their hours; None if no length is known.
    """

    threshold: float
    samples: int
    share: float
    hours: float | None


def threshold_sweep(
    scores: Dataset | Mapping[str, Dataset] | Sequence[float | None],
    thresholds: Iterable[float] = SWEEP_THRESHOLDS,
    *,
    seconds: Sequence[float | None] | None = None,
) -> list[SweepPoint]:
    """Return what each threshold keeps, from scores that are there; nothing is compared again.

    Args:
        scores: What `WERFilter.score` returned, which knows what is dropped at any threshold, and of the parts of
            packed samples, or a dictionary of such; or the word error rates alone, None for what is never kept.
        thresholds: The thresholds to try, fractions.
        seconds: Length of each sample, for the hours; by default the data set's ``duration_s`` or ``duration``.

    Raises:
        ValueError: If the data set was not scored.

    Reference:
        The first columns of table 10 of the Distil-Whisper paper.
    """
    if isinstance(scores, (Dataset, dict)):
        parts = [scores] if isinstance(scores, Dataset) else list(scores.values())
        if seconds is None:
            seconds = [length for part in parts for length in _seconds(part)]
        scores = [limit for part in parts for limit in _limits(part)]
    lengths = [None] * len(scores) if seconds is None else seconds
    limits = [inf if score is None else score for score in scores]
    known = any(length is not None for length in lengths) or not lengths
    ordered = sorted(zip(limits, (length or 0.0 for length in lengths), strict=True))
    sums = [0.0, *accumulate(length for _, length in ordered)]
    points = []
    for threshold in thresholds:
        kept = bisect_right(ordered, (threshold, inf))
        hours = sums[kept] / 3600 if known else None
        points.append(SweepPoint(threshold, kept, kept / max(len(limits), 1), hours))
    return points


def write_filter_report(report: FilterReport, output_dir: str | Path, sweep: Sequence[SweepPoint] = ()) -> None:
    """Write ``report.json``, ``report.md`` and the plots that it shows.

    Args:
        report: The report of a filter.
        output_dir: Directory of the files; made if need be.
        sweep: What `threshold_sweep` returned, of the same data.

    Raises:
        ImportError: If matplotlib is missing.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    document = {**report.to_dict(), "sweep": [asdict(point) for point in sweep]}
    parts = ["# What the filter kept", str(report)]
    if report.threshold is not None:
        description = f"{report.total.samples:,} labels by word error rate, the filter at {report.threshold:.0%}"
        chart = plot_label_histogram([*HISTOGRAM_EDGES, None], report.histogram, report.threshold, description)
        chart.save(folder / "wer_histogram.svg")
        parts += [f"![{description}](wer_histogram.svg)"]
    if sweep:
        description = "Share of the samples and hours kept against the threshold"
        curve = [(point.threshold, point.share, point.hours) for point in sweep]
        plot_threshold_sweep(curve, report.threshold, description).save(folder / "threshold_sweep.svg")
        parts += ["## Thresholds", f"![{description}](threshold_sweep.svg)", markdown_table(_sweep_rows(sweep))]
    for column, groups in report.groups.items():
        parts += [f"## By {column}", markdown_table(_group_rows(column, groups))]
    if report.worst:
        rows = [(f"{100 * example.wer:.0f}", *example[1:]) for example in report.worst]
        parts += ["## Worst labels", markdown_table([["WER (%)", "id", "reference", "label"], *rows])]
    (folder / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _seconds(scored: Dataset) -> Sequence[float | None]:
    name = next((name for name in DURATION_COLUMNS if name in scored.column_names), None)
    lengths: Sequence[float | None] = scored[name][:] if name else [None] * len(scored)
    return lengths


def _limits(scored: Dataset) -> list[float]:
    """Return for each row the lowest threshold that keeps it."""
    if WER_COLUMN not in scored.column_names:
        raise ValueError(
            f"the dataset has no column {WER_COLUMN!r}: score it first, with WERFilter(...).score(dataset)"
        )
    unknown = [None] * len(scored)
    reasons, part_wers = (
        scored[name][:] if name in scored.column_names else unknown for name in (REASON_COLUMN, PART_WERS_COLUMN)
    )
    return [
        inf if reason is not None or wer is None or not isfinite(wer) else max(wer, *(parts or ()), 0.0)
        for wer, reason, parts in zip(scored[WER_COLUMN][:], reasons, part_wers, strict=True)
    ]


def _sweep_rows(sweep: Sequence[SweepPoint]) -> list[list[str]]:
    shown = [point for point in sweep if len(sweep) <= 12 or round(100 * point.threshold, 6) in _SHOWN_PERCENT]
    rows = [[f"{100 * p.threshold:g}", f"{p.samples:,}", f"{p.share:.1%}", _hours(p.hours)] for p in shown]
    return [["WER up to (%)", "samples kept", "share", "hours"], *rows]


def _group_rows(column: str, groups: Mapping[str, FilterReport]) -> list[list[str]]:
    rows = [[column, "samples", "hours", "kept", "hours kept", "share kept"]]
    for value, group in sorted(groups.items()):
        kept, total = group.kept, group.total
        share = f"{kept.samples / total.samples:.1%}"
        rows.append([value, f"{total.samples:,}", _hours(total.hours), f"{kept.samples:,}", _hours(kept.hours), share])
    return rows


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:,.2f}"

"""The walk of a filter through a data set, stored or streamed: score, decide, count, keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import nlargest
from html import escape
from itertools import repeat
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets

from distilwhisper.filter_reports import WORST, Decision, Example, FilterReport
from distilwhisper.label_scores import SCORE_FEATURES, SECONDS_COLUMN, Columns, LabelScorer, Score

_BATCH_SIZE = 1000
_DROPPED_SCHEMA = pa.schema(
    {"split": pa.string(), "index": pa.int64(), "id": pa.string(), "reason": pa.string(), "wer": pa.float64()}
)

DatasetT = TypeVar("DatasetT")


class DatasetFilter:
    """What the filters share: the walk through a data set.

    Args:
        scorer: Scores the labels.
        threshold: Largest word error rate to keep; None where there are no transcripts.
        added: Columns of `SCORE_FEATURES` that the samples get.

    Attributes:
        report: As for `WERFilter`.
        dropped: As for `WERFilter`.
    """

    def __init__(self, scorer: LabelScorer, threshold: float | None, added: Sequence[str]) -> None:
        self.threshold = threshold
        self.language = scorer.language
        self.report = FilterReport(threshold, self.language)
        self.dropped: Dataset | None = None
        self.scorer = scorer
        self._added = list(added)

    def _repr_html_(self) -> str:
        rule = "" if self.threshold is None else f", threshold {self.threshold:g}"
        heading = f"<b>{type(self).__name__}</b>: language {escape(str(self.language))}{rule}"
        what = self.report._repr_html_() if self.report.total.samples else "<div>has filtered nothing yet</div>"
        return f"<div><div>{heading}</div>{what}</div>"

    def run(self, dataset: DatasetT, columns: Columns, num_proc: int | None) -> DatasetT:
        """Return the samples that are kept."""
        self.report = FilterReport(self.threshold, self.language)
        self.dropped = None
        filtered: DatasetT = each_split(dataset, partial(self._filter, columns=columns, num_proc=num_proc))
        return filtered

    def _filter(self, dataset: Any, split: str | None, *, columns: Columns, num_proc: int | None) -> Any:
        columns = columns.completed(dataset.column_names)
        if isinstance(dataset, IterableDataset):
            return self._map_stream(dataset, columns, partial(self._keep_rows, report=self.report))
        scores, texts = self.scores(dataset, columns, num_proc)
        decisions = self._decide(scores)
        _count(self.report, decisions, scores[SECONDS_COLUMN][:], texts, columns)
        self._list_dropped(decisions, texts, columns, split)
        scored = with_columns(dataset, scores.select_columns(self._added))
        return scored.select(_kept(decisions), new_fingerprint=uuid4().hex)

    def _keep_rows(
        self, batch: Mapping[str, list[Any]], columns: Columns, report: FilterReport
    ) -> dict[str, list[Any]]:
        scores = self.scorer.score_batch(batch, columns)
        decisions = self._decide(scores)
        _count(report, decisions, scores[SECONDS_COLUMN], batch, columns)
        scored, kept = {**batch, **{name: scores[name] for name in self._added}}, _kept(decisions)
        return {name: [values[row] for row in kept] for name, values in scored.items()}

    def decision(self, score: Score) -> Decision:
        """Return whether a sample of this score is kept, or why not."""
        return score.decide(1.0 if self.threshold is None else self.threshold)

    def _decide(self, scores: Mapping[str, Sequence[Any]] | Dataset) -> list[Decision]:
        rows = zip(*(scores[name][:] for name in SCORE_FEATURES), strict=True)
        return [self.decision(Score(*row)) for row in rows]

    def scores(self, dataset: Dataset, columns: Columns, num_proc: int | None) -> tuple[Dataset, Dataset]:
        """Return the scores of a stored data set, and of the data set the columns that were read."""
        needed = columns.needed(dataset.column_names, self.scorer.rules, self.scorer.judge_parts)
        texts = columns.undecoded(dataset).with_format(None).select_columns(needed)
        features = Features({**SCORE_FEATURES, SECONDS_COLUMN: Value("float64")})
        if not len(texts):  # datasets maps no empty data set
            return Dataset.from_dict({name: [] for name in features}, features), texts
        scores = texts.with_format("arrow").map(
            partial(self._score_table, columns=columns, schema=features.arrow_schema),
            batched=True,
            batch_size=_BATCH_SIZE,
            num_proc=num_proc,
            remove_columns=needed,
            features=features,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=uuid4().hex,  # else datasets hashes the filter and all that its normaliser remembers
            desc="Filtering",
        )
        return scores.with_format(None), texts

    def _score_table(self, table: pa.Table, columns: Columns, schema: pa.Schema) -> pa.Table:
        return pa.Table.from_pydict(self.scorer.score_batch(table.to_pydict(), columns), schema)

    def _map_stream(self, dataset: IterableDataset, columns: Columns, work: Callable[..., Any]) -> IterableDataset:
        if dataset.column_names:
            columns.needed(dataset.column_names, self.scorer.rules, self.scorer.judge_parts)
        dataset = columns.undecoded(dataset)
        added = {name: SCORE_FEATURES[name] for name in self._added}
        features = dataset.features and Features({**dataset.features, **added})
        return dataset.map(partial(work, columns=columns), batched=True, batch_size=_BATCH_SIZE, features=features)

    def _list_dropped(self, decisions: list[Decision], texts: Dataset, columns: Columns, split: str | None) -> None:
        rows = [row for row, decision in enumerate(decisions) if decision.reason is not None]
        ids = texts[columns.id][:] if columns.id else range(len(decisions))
        dropped = {
            "split": [split] * len(rows),
            "index": rows,
            "id": [str(ids[row]) for row in rows],
            "reason": [decisions[row].reason for row in rows],
            "wer": [decisions[row].wer for row in rows],
        }
        listed = Dataset(pa.Table.from_pydict(dropped, _DROPPED_SCHEMA))
        self.dropped = concatenate_datasets([self.dropped, listed]) if self.dropped else listed


def each_split(dataset: Any, work: Callable[[Any, str | None], Any]) -> Any:
    """Return the result for a data set, or for each of a dictionary, of a function of a data set and its split.

    Raises:
        TypeError: If a data set is of another type.
    """
    if isinstance(dataset, dict):
        return type(dataset)({split: work(part, split) for split, part in dataset.items()})
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(f"cannot filter a {type(dataset).__name__}; pass a datasets.Dataset or IterableDataset")
    return work(dataset, None)


def with_columns(dataset: Dataset, columns: Dataset) -> Dataset:
    """Return a data set with further columns, which replace those of the same name."""
    for name, feature in columns.features.items():
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        # A column is added to the whole dataset, since adding one to a selection would copy the audio.
        values = columns.with_format("arrow")[name][:]
        dataset = dataset.add_column(name, values, feature=feature, new_fingerprint=uuid4().hex)
    return dataset


def _kept(decisions: Sequence[Decision]) -> list[int]:
    return [row for row, decision in enumerate(decisions) if decision.reason is None]


def _count(
    report: FilterReport,
    decisions: Sequence[Decision],
    seconds: Sequence[float | None],
    batch: Mapping[str, Sequence[Any]] | Dataset,
    columns: Columns,
) -> None:
    """Add samples to a report, and the worst of them to its examples."""
    values = zip(*(batch[name][:] for name in columns.by), strict=True) if columns.by else repeat(())
    for decision, length, value in zip(decisions, seconds, values, strict=False):
        report.count(decision, length, dict(zip(columns.by, value, strict=True)) if value else None)
    dropped = (row for row, decision in enumerate(decisions) if decision.reason == "wer")
    for row in nlargest(WORST, dropped, key=lambda row: decisions[row].wer or 0.0):
        name = str(batch[columns.id][row]) if columns.id else ""
        texts = (batch[column or ""][row] for column in (columns.reference, columns.label))
        report.add_example(Example(decisions[row].wer or 0.0, name, *texts))

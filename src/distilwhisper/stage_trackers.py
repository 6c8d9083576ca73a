"""What labelling, filtering and evaluation send to trackers, under the name of the run that they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from datasets import Dataset

from distilwhisper.audio import load_audio, undecoded
from distilwhisper.dataset_filters import DatasetFilter
from distilwhisper.labels import LabelReport
from distilwhisper.metrics import ErrorCounts
from distilwhisper.results import EvaluationResult
from distilwhisper.run_ids import StageRun, begin_stage, new_stage, run_id_of
from distilwhisper.trackers import PREDICTION_COLUMNS, TABLE_ROWS, Tracker, open_trackers, prediction_row

DROPPED_COLUMNS = ("id", "reason", "WER (%)", "reference", "label")
SET_ASIDE_COLUMNS = ("id", "reason", "message")


def track_labels(report_to: str | Iterable[str], output_dir: str | Path, sources: Iterable[Any] = ()) -> None:
    """Send what became of a labelling: counts, and a table of the recordings that were set aside.

    Args:
        report_to: See `open_trackers`.
        output_dir: What ``PseudoLabeler.label`` wrote.
        sources: What was labelled; see `begin_stage`.
    """
    folder = Path(output_dir)
    report = LabelReport.from_json((folder / "report.json").read_text(encoding="utf-8"))
    numbers = {"labelled": report.labelled, "hours": report.hours, "cut off": report.capped}
    numbers |= {f"set aside/{reason}": count for reason, count in report.set_aside.items()}
    with (folder / "set_aside.jsonl").open(encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    rows = [[str(problem["id"]), problem["reason"], problem["message"]] for problem in problems[:TABLE_ROWS]]
    for tracker in _each_tracker(report_to, folder, begin_stage(folder, "label", sources)):
        tracker.log({f"labels/{name}": value for name, value in numbers.items()})
        tracker.table("labels/set aside", SET_ASIDE_COLUMNS, rows)


def track_filter(
    report_to: str | Iterable[str],
    output_dir: str | Path,
    label_filter: DatasetFilter,
    dataset: Dataset | Mapping[str, Dataset],
    *,
    sources: Iterable[Any] = (),
    reference_column: str | None = "text",
    hypothesis_column: str = "whisper_transcript",
    audio_column: str = "audio",
    rows: int = TABLE_ROWS,
    log_audio: int = 0,
) -> None:
    """Send what a filter kept, and a table of the labels that it dropped, with the reason and both texts.

    Args:
        report_to: See `open_trackers`.
        output_dir: Where the kept samples are; the run is noted there for the stages to come.
        label_filter: The filter, after its ``filter``.
        dataset: What it filtered.
        sources: Where that came from, if the data set itself does not know.
        reference_column: Column of the transcripts; None where there are none.
        hypothesis_column: Column of the labels.
        audio_column: Column of the recordings.
        rows: Dropped labels in the table, of each reason the same number, highest error rates first.
        log_audio: How many of their recordings are sent too.
    """
    report, dropped = label_filter.report, label_filter.dropped
    numbers: dict[str, float] = {"kept": report.kept.samples, "dropped": report.dropped.samples}
    numbers |= {f"dropped/{reason}": tally.samples for reason, tally in report.reasons.items() if tally.samples}
    hours = {"hours kept": report.kept.hours, "hours dropped": report.dropped.hours}
    numbers |= {name: value for name, value in hours.items() if value is not None}
    columns = [name for name in (reference_column, hypothesis_column) if name]
    table, clips = [], {}
    for number, drop in enumerate(_of_every_reason(dropped, rows)):
        part = dataset if isinstance(dataset, Dataset) else dataset[drop["split"]]
        texts = part.select_columns(columns)[drop["index"]]
        rate = None if drop["wer"] is None else round(100 * drop["wer"], 1)
        reference = texts[reference_column] if reference_column else None
        table.append([drop["id"], drop["reason"], rate, reference, texts[hypothesis_column]])
        if number < log_audio:
            clips[f"{drop['reason']}: {drop['id']}"] = load_audio(
                undecoded(part, audio_column)[drop["index"]][audio_column]
            )
    for tracker in _each_tracker(report_to, output_dir, begin_stage(output_dir, "filter", [*sources, dataset])):
        tracker.log({f"filter/{name}": value for name, value in numbers.items()})
        tracker.table("filter/dropped labels", DROPPED_COLUMNS, table)
        if clips:
            tracker.audio("filter/dropped", clips, 16_000)


def track_evaluation(
    report_to: str | Iterable[str],
    model_dir: str | Path,
    result: EvaluationResult,
    datasets: Mapping[str, Any],
    *,
    text_column: str = "text",
    teacher: EvaluationResult | None = None,
    rows: int = TABLE_ROWS,
) -> None:
    """Send error rates and predictions of each set, beside the teacher's where it was evaluated too.

    Args:
        report_to: See `open_trackers`.
        model_dir: The model. Its directory knows the run, and gets TensorBoard's files; without one: ``runs``.
        result: What ``evaluate`` returned.
        datasets: The sets, by name.
        text_column: Column of the references.
        teacher: The teacher's result on the same sets.
        rows: Utterances of each set in the table, its first.
    """
    tables: dict[str, list[tuple[Any, ...]]] = {}
    numbers: dict[str, float] = {"wer": 100 * result.wer}
    for name, scores in result.sets.items():
        numbers |= {f"{name}/wer": 100 * scores.wer, f"{name}/cer": 100 * scores.cer, f"{name}/rtfx": scores.rtfx}
        labels = teacher.sets[name].transcripts if teacher else {}
        indices = list(scores.transcripts)[:rows]
        texts = _texts(datasets[name], text_column, indices)
        tables[name] = [
            prediction_row(
                index,
                texts[index],
                labels.get(index),
                scores.transcripts[index],
                scores.counts.get(index, ErrorCounts()),
            )
            for index in indices
        ]
    run = new_stage("evaluate", run_id_of(str(model_dir)))
    folder = model_dir if Path(model_dir).is_dir() else "."
    for tracker in _each_tracker(report_to, folder, run):
        tracker.log({f"test/{name}": value for name, value in numbers.items()})
        for name, table in tables.items():
            tracker.table(f"test/predictions/{name}", PREDICTION_COLUMNS, table)


def _each_tracker(report_to: str | Iterable[str], output_dir: str | Path, run: StageRun) -> Iterator[Tracker]:
    """Yield the trackers of a stage, and close them."""
    if os.environ.get("RANK", "0") != "0":  # all processes of a launch have the same to say
        return
    for tracker in open_trackers(report_to, output_dir, run):
        with closing(tracker):
            yield tracker


def _of_every_reason(dropped: Dataset | None, rows: int) -> list[dict[str, Any]]:
    """Return dropped samples: of each reason the worst, the same number of each while there are as many."""
    reasons: dict[str, list[dict[str, Any]]] = {}
    for drop in dropped or ():
        reasons.setdefault(drop["reason"], []).append(drop)
    for drops in reasons.values():
        drops.sort(key=lambda drop: -(drop["wer"] or 0.0))
    chosen = sorted((place, reason) for reason, drops in reasons.items() for place in range(len(drops)))[:rows]
    return [reasons[reason][place] for place, reason in sorted(chosen, key=itemgetter(1, 0))]


def _texts(dataset: Any, column: str, indices: list[int]) -> dict[int, str]:
    if isinstance(dataset, Dataset):
        return dict(zip(indices, dataset.select_columns(column).select(indices)[column], strict=True))
    wanted = set(indices)
    rows = enumerate(islice(dataset, max(indices, default=-1) + 1))
    return {index: row[column] for index, row in rows if index in wanted}

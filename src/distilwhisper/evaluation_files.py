"""The file that ``distilwhisper evaluate`` writes, and the report that is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distilwhisper.reports import DistillationReport, ModelResult
from distilwhisper.results import EvaluationResult, worst_examples


def evaluation_document(
    models: Mapping[str, Any],
    results: Mapping[str, EvaluationResult],
    references: Mapping[str, Sequence[str]],
    latency: Any = None,
) -> dict[str, Any]:
    """Return what is written of an evaluation: each model's rates, speeds, and what a report shows of them.

    Args:
        models: ``teacher``, if there is one, and ``student``.
        results: Their evaluations.
        references: Reference transcripts of each set.
        latency: The `LatencyComparison`, if it was measured.
    """
    document: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
    if latency is not None:
        document["latency"] = latency.to_dict()
    speed = _speed(document.get("latency"))
    # A set whose references hold no words has no rate.
    scored = {name: _with_rates(result) for name, result in results.items()}
    document["models"] = [
        asdict(ModelResult.from_evaluation(name, models[name], result, **speed.get(name, {})))
        for name, result in scored.items()
        if result.sets
    ]
    if len(results) > 1:
        texts = {name: references[name] for name in scored["student"].sets}
        document["examples"] = worst_examples(texts, results["teacher"], results["student"])
    return document


def read_report(
    path: str | Path,
    *,
    title: str | None = None,
    out_of_distribution: Sequence[str] = (),
    filter_report: str | Path | None = None,
    training: str | Path | None = None,
) -> DistillationReport:
    """Return the report of a file that ``evaluate`` or a report wrote.

    Args:
        path: What ``distilwhisper evaluate --output`` wrote, or the ``results.json`` of a report, which says the rest
            itself.
        title: Heading of the page.
        out_of_distribution: Names of the sets that are unlike the training data; the others are like it.
        filter_report: ``report.json`` of the filter, or the directory that it lies in.
        training: Directory of the training, for its curves.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is no such result, or holds no teacher to compare with.
    """
    document = _read(Path(path))
    if "summary" in document:
        return DistillationReport.from_json(json.dumps(document))
    models = document.get("models")
    if models is None:
        raise ValueError(f"{path} holds no results; give what evaluate --output wrote, or the results.json of a report")
    if len(models) < 2:
        raise ValueError(f"{path} holds one model alone; evaluate it beside its teacher, with evaluate --teacher")
    names = list(models[0]["wer"])
    if unknown := [name for name in out_of_distribution if name not in names]:
        raise ValueError(f"{path} has no set {unknown[0]!r}, only {', '.join(names)}")
    return DistillationReport(
        title=title or "Student and teacher",
        models=[ModelResult(**model) for model in models],
        in_distribution=[name for name in names if name not in out_of_distribution],
        out_of_distribution=list(out_of_distribution),
        filter=_read(_inside(filter_report, "report.json")) if filter_report else None,
        training_log=_read(_inside(training, "trainer_state.json"))["log_history"] if training else [],
        examples=document.get("examples", []),
    )


def _inside(path: str | Path, name: str) -> Path:
    return Path(path) / name if Path(path).is_dir() else Path(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is no JSON file") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no results, but a {type(document).__name__}")
    return document


def _with_rates(result: EvaluationResult) -> EvaluationResult:
    return EvaluationResult({name: part for name, part in result.sets.items() if math.isfinite(part.wer)})


def _speed(latency: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    if latency is None:
        return {}
    ratios = {"teacher": 1.0, "student": latency["relative_latency"]}
    return {
        name: {"latency_ms": 1000 * latency[name]["median_s"], "relative_latency": ratio}
        for name, ratio in ratios.items()
    }

"""What a distillation came to: a table for the terminal, one for Markdown, and a page with plots."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from distilwhisper.pages import page, scroll_box, section
from distilwhisper.report_sections import (
    accuracy_section,
    data_rows,
    data_section,
    errors_section,
    example_in_markdown,
    examples_section,
    filter_rows,
    filter_section,
    noise_section,
    percent,
    training_section,
)
from distilwhisper.results import EvaluationResult
from distilwhisper.tables import escape_markdown, html_table, markdown_table, text_table

AVERAGES_NOTE = (
    "WER is the word error rate, lower is better; in and out of distribution are averages in which each set counts "
    "the same. Time is the median of a whole transcription at batch size 1."
)
"""What stands below the table."""

_TERMINAL_WIDTH = 100


@dataclass(frozen=True)
class ModelResult:
    """How large, fast and accurate one model is.

    Attributes:
        name: What the model is called: "teacher", "student before training", "student".
        parameters: Number of its parameters.
        decoder_layers: Number of its decoder layers.
        wer: Name of a test set to word error rate, a fraction, in the order shown.
        latency_ms: Median time of a whole transcription at batch size 1, in milliseconds; None if not measured.
        relative_latency: The teacher's time over this model's; None if not measured.
        error_kinds: ``substitutions``, ``deletions`` and ``insertions`` as fractions of the words, each the mean over
            the sets; empty if not known.
        utterance_wer: Word error rates of the single utterances of all sets, fractions.
        latency_by_batch: Pairs of a batch size and the milliseconds that an utterance takes in such a batch.
        wer_by_snr: Kind of noise to pairs of the ratio of speech to noise in dB and the word error rate, a fraction.

    Raises:
        ValueError: If a word error rate is not a number from 0.
    """

    name: str
    parameters: int
    decoder_layers: int
    wer: dict[str, float]
    latency_ms: float | None = None
    relative_latency: float | None = None
    error_kinds: dict[str, float] = field(default_factory=dict)
    utterance_wer: list[float] = field(default_factory=list)
    latency_by_batch: list[list[float]] = field(default_factory=list)
    wer_by_snr: dict[str, list[list[float]]] = field(default_factory=dict)

    @classmethod
    def from_evaluation(cls, name: str, model: Any, result: EvaluationResult, **measured: Any) -> ModelResult:
        """Return what an evaluation found of a model.

        Args:
            name: What the model is called.
            model: The model, for its size.
            result: Its evaluation.
            **measured: Further attributes, such as ``latency_ms``.
        """
        kinds = {"substitutions": "ser", "deletions": "der", "insertions": "ier"}
        counts = [count for part in result.sets.values() for count in part.counts.values()]
        return cls(
            name,
            model.num_parameters(),
            model.config.decoder_layers,
            {test: scores.wer for test, scores in result.sets.items()},
            error_kinds={kind: result.macro_average(rate=rate) for kind, rate in kinds.items()},
            utterance_wer=[count.wer for count in counts],
            **measured,
        )

    def __post_init__(self) -> None:
        for name, rate in self.wer.items():
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(
                    f"the WER of {self.name!r} on {name!r} must be a fraction from 0, not {rate}; "
                    "leave out a set whose references hold no words"
                )


@dataclass(frozen=True)
class DistillationReport:
    """The results of a distillation; ``print(report)`` shows a table of at most 100 columns.

    Attributes:
        title: Heading of the page.
        models: The teacher first, the finished student last, others in between. All with the same sets.
        in_distribution: Names of the sets like the training data.
        out_of_distribution: Names of the sets unlike it.
        filter: `FilterReport.to_dict` of the filter; None if none ran.
        training_log: ``trainer.state.log_history``: losses, and word error rates in percent, by ``step``.
        examples: Transcripts to show: dictionaries with ``set``, ``reference``, ``teacher`` and ``student``.
        data: The data sets, each a dictionary of what there is to say of it (`report_sections.describe_dataset`).
        settings: What it was made with, by name: data, steps, seconds of each stage, machine, versions, command.

    Raises:
        ValueError: If there are fewer than two models, two of one name, no test sets, not the same ones for all, or
            a name that is none of them.
    """

    title: str
    models: list[ModelResult]
    in_distribution: list[str]
    out_of_distribution: list[str] = field(default_factory=list)
    filter: dict[str, Any] | None = None
    training_log: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"a report needs a teacher and a student, each with its own name; models holds {names}")
        if not self.sets:
            raise ValueError("a report needs a test set; pass the word error rates of each model as wer")
        for model in self.models:
            if list(model.wer) != self.sets:
                raise ValueError(
                    f"all models need the sets {self.sets} in this order; {model.name!r} has {[*model.wer]}"
                )
        for name in [*self.in_distribution, *self.out_of_distribution]:
            if name not in self.sets:
                raise ValueError(f"no model has a WER on the set {name!r}, only on {self.sets}")

    @property
    def sets(self) -> list[str]:
        """Names of the test sets, in the order shown."""
        return list(self.models[0].wer)

    @property
    def teacher(self) -> ModelResult:
        """The first model."""
        return self.models[0]

    @property
    def student(self) -> ModelResult:
        """The last model."""
        return self.models[-1]

    def in_distribution_wer(self, model: ModelResult) -> float | None:
        """Return the mean of the word error rates in distribution, each counting the same; None without sets."""
        return _average(model, self.in_distribution) if self.in_distribution else None

    def out_of_distribution_wer(self, model: ModelResult) -> float | None:
        """Return the mean of the word error rates out of distribution, each counting the same; None without sets."""
        return _average(model, self.out_of_distribution) if self.out_of_distribution else None

    def headline(self) -> str:
        """Return the outcome in two sentences: speed, accuracy, size."""
        where, sets = self._judged_on()
        teacher, student = _average(self.teacher, sets), _average(self.student, sets)
        rates = f"WER {percent(student)} % against the teacher's {percent(teacher)} %"
        outcome = f"{_accuracy(student - teacher)} {where} ({rates})"
        if self.student.relative_latency is not None:
            outcome = f"{_speed(self.student.relative_latency)} its teacher and {outcome}"
        size = f"{_millions(self.student.parameters)} of the teacher's {_millions(self.teacher.parameters)}"
        return f"The student is {outcome}. It has {size} million parameters."

    def table(self) -> list[list[str]]:
        """Return the headings and a row for each model, as text."""
        heading = ["model", "parameters (M)", "decoder layers", "times faster", "ms per utterance"]
        rows = [[*heading, "WER in distribution (%)", "WER out of distribution (%)", *self.sets]]
        for model in self.models:
            rates = [self.in_distribution_wer(model), self.out_of_distribution_wer(model), *model.wer.values()]
            times = ((model.relative_latency, ".2f"), (model.latency_ms, ",.1f"))
            speed = ["-" if value is None else format(value, form) for value, form in times]
            size = [_millions(model.parameters), str(model.decoder_layers)]
            rows.append([model.name, *size, *speed, *map(percent, rates)])
        return rows

    def to_json(self) -> str:
        """Return everything as a JSON document, with headline and averages under ``summary``.

        Numbers that JSON has no word for, such as the loss of a run that diverged, are null.
        """
        averages = {
            model.name: {
                "wer_in_distribution": self.in_distribution_wer(model),
                "wer_out_of_distribution": self.out_of_distribution_wer(model),
            }
            for model in self.models
        }
        document = {"summary": {"headline": self.headline(), "models": averages}, **asdict(self)}
        return json.dumps(_finite(document), indent=2, ensure_ascii=False, default=str)

    @classmethod
    def from_json(cls, document: str) -> DistillationReport:
        """Return the report that `to_json` wrote."""
        values = json.loads(document)
        del values["summary"]
        models = [ModelResult(**model) for model in values.pop("models")]
        return cls(models=models, **values)

    def to_markdown(self) -> str:
        """Return headline, tables, examples and settings in Markdown: what the page holds, without its figures."""
        parts = [f"# {escape_markdown(self.title)}", self.headline(), markdown_table(self.table()), AVERAGES_NOTE]
        if len(kinds := self._error_rows()) > 1:
            parts += ["## Errors by kind", markdown_table(kinds)]
        for noise, rows in self._noise_rows().items():
            parts += [f"## WER in noise: {escape_markdown(noise)}", markdown_table(rows)]
        if self.filter:
            parts += ["## Filter", markdown_table(filter_rows(self.filter))]
        if self.examples:
            parts += ["## Examples", "Against the reference: **wrong** (right), ~~missing~~, **+extra**."]
            parts += map(example_in_markdown, self.examples)
        if self.data:
            parts += ["## Data", markdown_table(data_rows(self.data))]
        if self.settings:
            settings = [f"- **{escape_markdown(name)}**: {escape_markdown(value)}" for name, value in _settings(self)]
            parts += ["## Settings", "\n".join(settings)]
        return "\n\n".join(parts) + "\n"

    def _error_rows(self) -> list[list[str]]:
        rows = [["model", "substitutions (%)", "deletions (%)", "insertions (%)"]]
        for model in self.models:
            if model.error_kinds:
                rows.append([model.name, *(percent(model.error_kinds[name.split(" (")[0]]) for name in rows[0][1:])])
        return rows

    def _noise_rows(self) -> dict[str, list[list[str]]]:
        """Return a table for each kind of noise: a row for each model, a column for each ratio."""
        tables: dict[str, list[list[str]]] = {}
        for model in self.models:
            for noise, points in model.wer_by_snr.items():
                rows = tables.setdefault(noise, [["WER (%) at", *(f"{snr:g} dB" for snr, _ in points)]])
                rows.append([model.name, *(percent(rate) for _, rate in points)])
        return tables

    def write(self, output_dir: str | Path) -> Path:
        """Write ``results.json``, ``results.md`` and ``report.html``, and return the path of the last.

        Raises:
            ImportError: If matplotlib is missing; the first two files are written all the same.
        """
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "results.json").write_text(self.to_json(), encoding="utf-8")
        (directory / "results.md").write_text(self.to_markdown(), encoding="utf-8")
        path = directory / "report.html"
        path.write_text(render_page(self), encoding="utf-8")
        return path

    def __str__(self) -> str:
        return f"{text_table(self.table(), _TERMINAL_WIDTH)}\n\n{textwrap.fill(self.headline(), _TERMINAL_WIDTH)}"

    def _repr_html_(self) -> str:
        return f"<div>{html_table(self.table())}<p>{escape(self.headline())}</p></div>"

    def _judged_on(self) -> tuple[str, list[str]]:
        """Return what the outcome is judged by: out of distribution where there is such a set."""
        if self.out_of_distribution:
            return "out of distribution", self.out_of_distribution
        return ("in distribution", self.in_distribution) if self.in_distribution else ("on average", self.sets)


def render_page(report: DistillationReport) -> str:
    """Return the report as one HTML page that needs no other file, no network and no script.

    Raises:
        ImportError: If matplotlib is missing.
    """
    models, (where, sets) = report.models, report._judged_on()
    parts = [
        f'<p class="lead">{escape(report.headline())}</p>',
        scroll_box(html_table(report.table()), "models", "Results"),
        f'<p class="note">{AVERAGES_NOTE}</p>',
        accuracy_section(
            {model.name: model.wer for model in models},
            where,
            {model.name: _average(model, sets) for model in models},
            {model.name: model.parameters for model in models},
            latency_ms={model.name: model.latency_ms for model in models if model.latency_ms is not None},
            latency_by_batch={model.name: model.latency_by_batch for model in models if model.latency_by_batch},
        ),
        *errors_section(
            {model.name: model.error_kinds for model in models if model.error_kinds},
            {model.name: model.utterance_wer for model in models if model.utterance_wer},
        ),
        *noise_section({model.name: model.wer_by_snr for model in models}),
        *training_section(report.training_log, several_sets=len(report.sets) > 1),
        *filter_section(report.filter),
        *examples_section(report.examples),
        *data_section(data_rows(report.data)),
    ]
    if report.settings:
        table = html_table([["setting", "value"], *_settings(report)])
        parts.append(section("Settings", scroll_box(table, "settings", "Settings")))
    return page(report.title, "\n".join(parts))


def _settings(report: DistillationReport) -> list[list[str]]:
    def show(value: Any) -> str:
        return f"{value:,.6g}" if isinstance(value, float) else str(value)

    return [[name, show(value)] for name, value in report.settings.items()]


def _average(model: ModelResult, sets: Sequence[str]) -> float:
    return fmean(model.wer[name] for name in sets)


def _speed(ratio: float) -> str:
    faster, slower = f"{ratio:.1f}", f"{1 / ratio:.1f}"
    if "1.0" in (faster, slower):
        return "about as fast as"
    return f"{faster} times faster than" if ratio > 1 else f"{slower} times slower than"


def _accuracy(difference: float) -> str:
    points = f"{abs(100 * difference):.1f}"
    if points == "0.0":
        return "just as accurate"
    return f"{points} point{'' if points == '1.0' else 's'} {'worse' if difference > 0 else 'better'}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _finite(value: Any) -> Any:
    """Return the value with None for every number in it that is infinite or none."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

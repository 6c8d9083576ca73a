"""Tables of the experiments: error rates with their intervals, and what is drawn and written of them."""

import csv
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from distilwhisper import EvaluationResult
from distilwhisper.charts import Chart
from distilwhisper.plots import plot_bars, plot_curves
from distilwhisper.tables import markdown_table


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


Row = Mapping[str, str | int | float | Estimate | None]
Rates = Mapping[str, Mapping[str, Estimate]]
"""Model, or anything else, to set or average to word error rate."""


def versions() -> dict[str, str]:
    """Return what the experiments ran on."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }


def write_table(folder: Path, name: str, title: str, rows: Sequence[Row], chart: Chart, note: str = "") -> None:
    """Write a table as Markdown, CSV and JSON, and its figure, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    flat = [flatten(row) for row in rows]
    document = {"title": title, "command": command, **versions(), "rows": flat}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    with (folder / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*flat[0]])
        table.writeheader()
        table.writerows(flat)
    shown = markdown_table([[*rows[0]], *([show(key, row[key]) for key in rows[0]] for row in rows)])
    chart.save(folder / f"{name}.png")
    parts = [
        f"# {title}",
        shown,
        note,
        f"![{chart.description}]({name}.png)",
        f"`{command}` ({', '.join(versions().values())})",
    ]
    (folder / f"{name}.md").write_text("\n\n".join(filter(None, parts)) + "\n")
    print(f"\n{title}\n\n{shown}\n\n{folder / name}.md", flush=True)


def bar_chart(estimates: Rates, description: str) -> Chart:
    """Return bars of word error rates with their intervals: series to group to estimate."""
    values = {name: {group: one.value for group, one in by_group.items()} for name, by_group in estimates.items()}
    ends = {name: {group: one[1:] for group, one in by_group.items()} for name, by_group in estimates.items()}
    return plot_bars(values, f"{description}, with 95 % intervals.", intervals=ends)


def curve_chart(
    rows: Sequence[Row], columns: Sequence[str], xlabel: str, ticks: Sequence[str], description: str
) -> Chart:
    """Return a curve with intervals for each column of estimates, the rows evenly spaced."""
    curves = {
        column.removesuffix(" (%)").removesuffix(" WER"): [(number, *row[column]) for number, row in enumerate(rows)]
        for column in columns
    }
    described = f"{description}, with 95 % intervals"
    return plot_curves(curves, "WER (%)", described, xlabel=xlabel, ticks=dict(enumerate(ticks)), logarithmic=True)


def average_groups(sets: Iterable[str], known: Sequence[str]) -> dict[str, list[str]]:
    """Return each set on its own, then those in and out of distribution and all, as far as there are any."""
    sets = list(sets)
    groups = {name: [name] for name in sets} | {"ID average": list(known)}
    groups |= {"OOD average": [name for name in sets if name not in known], "average": sets}
    return {name: members for name, members in groups.items() if members}


def estimate(result: EvaluationResult, sets: Iterable[str], seed: int, rate: str = "wer") -> Estimate:
    """Return the macro-average of an error rate over sets in percent, with its interval."""
    sets = list(sets)
    interval = result.interval(sets, rate=rate, seed=seed)
    return Estimate(*(100 * value for value in (result.macro_average(sets, rate), interval.low, interval.high)))


def flatten(row: Row) -> dict[str, str | int | float | None]:
    """Return a row with the ends of intervals in columns of their own."""
    flat = {}
    for key, value in row.items():
        if isinstance(value, Estimate):
            flat |= {key: value.value, f"{key} low": value.low, f"{key} high": value.high}
        else:
            flat[key] = value
    return flat


def show(key: str, value: object) -> str:
    """Return a cell as people read it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if "%" in key else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

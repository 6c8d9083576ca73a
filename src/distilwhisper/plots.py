"""The figures of reports and experiments."""

from __future__ import annotations

import math
import re
import textwrap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from distilwhisper.charts import COLORS, DASHES, GROUND, INK, MARKERS, Chart, set_scale

Point = Sequence[float]
"""x and y; or x, y, and the lower and upper end of an interval of y."""


def plot_bars(
    values: Mapping[str, Mapping[str, float]],
    description: str,
    *,
    label: str = "WER (%)",
    form: str = ".1f",
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Chart:
    """Draw bars of word error rates, or of anything else, grouped by set.

    Where one model's longest bar is more than 2.5 times as long as any bar of the others, as with an untrained
    student, it would flatten them all: it is cut, marked as cut, and its value written beside it like every other.

    Args:
        values: Model to set to what is shown, such as a word error rate in percent. Every model has the same sets.
        description: The figure in words, for those who cannot see it.
        label: Name of the axis.
        form: How the numbers beside the bars are written.
        intervals: Model to set to lower and upper end of the interval around the value.
    """
    sets = list(next(iter(values.values())))
    spans = {name: (intervals or {}).get(name, {}) for name in values}
    longest = [max([*by_set.values(), *(high for _, high in spans[name].values())]) for name, by_set in values.items()]
    limit = _bar_limit(longest)
    height = 0.8 / len(values)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (model, by_set) in enumerate(values.items()):
            places = [index + height * (number - (len(values) - 1) / 2) for index in range(len(sets))]
            widths = [min(by_set[name], limit) for name in sets]
            axes.barh(places, widths, height * 0.86, color=COLORS[number % len(COLORS)], label=model)
            for place, name, width in zip(places, sets, widths, strict=True):
                low, high = spans[model].get(name, (width, width))
                if high <= limit:
                    axes.plot([low, high], [place, place], color=INK, linewidth=1)
                    width = max(width, high)
                axes.text(width + limit * 0.015, place, f"{by_set[name]:{form}}", va="center", fontsize=10)
                if by_set[name] > limit:
                    _mark_cut(axes, limit, place, height)
        axes.set(xlim=(0, limit * 1.12), ylim=(len(sets) - 0.5, -0.5), xlabel=label)
        if max(longest) > limit:
            axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick < 0.9 * limit])
        axes.set_yticks(range(len(sets)), [textwrap.fill(name, 15) for name in sets])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handlelength=1)

    return Chart(draw, description, height=90 + len(sets) * (14 + 13 * len(values)))


def read_curves(
    log: Sequence[Mapping[str, Any]], key: str, names: Mapping[str, str]
) -> dict[str, list[tuple[float, float]]]:
    """Return the finite values that a log holds by step.

    Args:
        log: ``trainer.state.log_history``.
        key: Regular expression of the keys to read; its group is a curve's name, empty where it matches nothing.
        names: Name to the one to show, where they differ.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in log:
        for match in filter(None, (re.fullmatch(key, name) for name in entry)):
            value = entry[match.string]
            if value is not None and math.isfinite(value):
                name = match[1] or ""
                curves.setdefault(names.get(name, name), []).append((entry["step"], value))
    return curves


def plot_curves(
    curves: Mapping[str, Sequence[Point]],
    label: str,
    description: str,
    *,
    xlabel: str = "training step",
    logarithmic: bool = False,
    ticks: Mapping[float, str] | None = None,
    models: Sequence[str] = (),
) -> Chart:
    """Draw values against training steps, or against anything else.

    Args:
        curves: Name to points; points with an interval get a bar.
        label: Name of the vertical axis.
        description: The figure in words; where each curve starts and ends is added.
        xlabel: Name of the horizontal axis.
        logarithmic: Use a logarithmic axis where all values are positive and span more than a factor of 8.
        ticks: Places on the horizontal axis to their names; default: round numbers.
        models: All names, in the order in which they take their colours in other figures; default: these curves.
    """
    order = list(models or curves)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, points in curves.items():
            number = order.index(name)
            x, y, *ends = zip(*points, strict=True)
            style = {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number % len(DASHES)], "label": name}
            marker = MARKERS[number % len(MARKERS)] if len(points) <= 20 else None
            axes.plot(x, y, marker=marker, clip_on=False, **style)
            if ends:
                axes.vlines(x, *ends, color=style["color"], alpha=0.5, linewidth=1.2)
        set_scale(axes, [value for points in curves.values() for point in points for value in point[1:]], logarithmic)
        axes.set(xlabel=xlabel, ylabel=label)
        if ticks:
            axes.set_xticks([*ticks], [*ticks.values()])
        axes.grid(axis="y")
        if len(curves) > 1 or "" not in curves:
            figure.legend(loc="outside upper center", ncols=3, columnspacing=1)

    ends = (f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in curves.items())
    return Chart(draw, f"{description}: {', '.join(ends)}.")


def plot_error_kinds(rates: Mapping[str, Mapping[str, float]], description: str) -> Chart:
    """Draw bars of error rates stacked by kind, one for each model.

    Args:
        rates: Model to kind of error to rate in percent. Every model has the same kinds.
        description: The figure in words.
    """
    kinds = list(next(iter(rates.values())))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places, starts = range(len(rates)), [0.0] * len(rates)
        hatches = ("", "////", "....")
        for number, kind in enumerate(kinds):
            widths = [by_kind[kind] for by_kind in rates.values()]
            style = {"color": COLORS[number % len(COLORS)], "hatch": hatches[number % 3], "edgecolor": GROUND}
            axes.barh(places, widths, 0.6, left=starts, label=kind, linewidth=0.5, **style)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        for place, end in zip(places, starts, strict=True):
            axes.text(end + max(starts) * 0.015, place, f"{end:.1f}", va="center", fontsize=10)
        axes.set(xlim=(0, max(starts) * 1.12 or 1), ylim=(len(rates) - 0.5, -0.5), xlabel="errors (% of the words)")
        axes.set_yticks(places, [textwrap.fill(name, 15) for name in rates])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handlelength=1)

    return Chart(draw, description, height=100 + 34 * len(rates))


def plot_histogram(rates: Mapping[str, Sequence[float]], description: str) -> Chart:
    """Draw how many utterances have which word error rate, for each model.

    Args:
        rates: Model to the word error rates of its utterances, in percent.
        description: The figure in words.
    """
    edges = (0.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
    names = ["0", *(f"{edge:g}" for edge in edges[1:]), ">100"]
    width = 0.8 / len(rates)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (name, values) in enumerate(rates.items()):
            counts = [0] * len(names)
            for value in values:
                counts[bisect_left(edges, value)] += 1
            places = [index + width * (number - (len(rates) - 1) / 2) for index in range(len(names))]
            axes.bar(places, counts, width * 0.9, color=COLORS[number % len(COLORS)], label=name)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="WER of an utterance, up to (%)", ylabel="utterances")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handlelength=1)

    return Chart(draw, description)


def plot_label_histogram(
    edges: Sequence[float | None], counts: Sequence[int], threshold: float, description: str
) -> Chart:
    """Draw how many labels have which word error rate, and where the filter cuts.

    Args:
        edges: Upper edges of the bins, fractions; the last is None, for all above.
        counts: Labels in each bin.
        threshold: Labels above it are dropped.
        description: The figure in words.
    """
    upper = [edge for edge in edges if edge is not None]
    names = [f"{100 * edge:.0f}" for edge in upper] + [f">{100 * upper[-1]:.0f}"]
    cut_bin = bisect_left(upper, threshold)
    below = upper[cut_bin - 1] if cut_bin else 0.0
    share = (threshold - below) / (upper[cut_bin] - below) if threshold > below else 1.0
    cut = cut_bin - 0.5 + share

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvspan(cut, len(names) - 0.5, color=INK, alpha=0.07, linewidth=0)
        bars = axes.bar(range(len(names)), counts, 0.86, color=COLORS[0])
        axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts], fontsize=10, padding=2)
        axes.axvline(cut, color=COLORS[2], linestyle="dashed")
        side, gap = ("left", 0.2) if cut < len(names) / 2 else ("right", -0.2)
        where = {"transform": axes.get_xaxis_transform(), "va": "top", "ha": side, "fontsize": 10}
        axes.text(cut + gap, 0.98, f"dropped: above {100 * threshold:g} %", **where)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="WER of the label, up to (%)", ylabel="samples", xlim=(-0.7, len(names) - 0.5))
        axes.margins(y=0.22)

    return Chart(draw, description)


def plot_threshold_sweep(
    points: Sequence[tuple[float, float, float | None]], threshold: float | None, description: str
) -> Chart:
    """Draw what a filter keeps against its threshold.

    Args:
        points: Threshold, share of the samples that it keeps, and hours or None; the fractions of the first two.
        threshold: The one in use, marked; None for none.
        description: The figure in words.
    """
    percents = [100 * point[0] for point in points]
    hours = [point[2] for point in points if point[2] is not None]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(percents, [100 * point[1] for point in points], color=COLORS[0], label="samples")
        axes.set(xlabel="WER of the label, up to (%)", ylabel="samples kept (%)", ylim=(0, 105))
        axes.set_xlim(min(percents), max(percents))
        axes.grid()
        if len(hours) == len(points) and max(hours) > 0:
            scale = axes.twinx()
            scale.plot(percents, hours, color=COLORS[2], linestyle="dashed", label="hours")
            scale.set(ylabel="hours kept", ylim=(0, 1.05 * max(hours)))
            scale.spines["right"].set_visible(True)
        if threshold is not None:
            axes.axvline(100 * threshold, color=INK, linestyle="dotted", linewidth=1.2)
            side, gap = ("left", 1.5) if threshold < 0.6 else ("right", -1.5)
            axes.text(100 * threshold + gap, 2, f"threshold {100 * threshold:g} %", ha=side, fontsize=10)
        figure.legend(loc="outside upper center", ncols=2)

    return Chart(draw, description)


def plot_trade_off(
    points: Mapping[str, tuple[float, float]],
    label: str,
    description: str,
    *,
    xlabel: str = "ms per utterance",
    models: Sequence[str] = (),
) -> Chart:
    """Draw word error rate against what it costs, a point for each model.

    Args:
        points: Model to its cost, such as milliseconds, and its word error rate in percent.
        label: Name of the vertical axis.
        description: The figure in words.
        xlabel: Name of the cost.
        models: All models of the page, so that each keeps its colour; default: those with a point.
    """
    names = list(models or points)
    longest = max(latency for latency, _ in points.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, (latency, rate) in points.items():
            number = names.index(name)
            style = {"marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)]}
            axes.plot(latency, rate, markersize=8, clip_on=False, label=name, linestyle="none", **style)
            right = latency > longest / 2
            offset = {"xytext": (-9 if right else 9, 0), "textcoords": "offset points", "va": "center"}
            if len(points) <= 3:
                axes.annotate(name, (latency, rate), ha="right" if right else "left", **offset)
        if len(points) > 3:  # names beside many points would lie over each other
            figure.legend(loc="outside upper center", ncols=3, columnspacing=1)
        set_scale(axes, [rate for _, rate in points.values()], logarithmic=True)
        axes.set(xlabel=xlabel, ylabel=label, xlim=(0, longest * 1.1))
        axes.grid()

    return Chart(draw, description)


def _mark_cut(axes: Any, limit: float, place: float, height: float) -> None:
    for cut in (0.93, 0.955):
        ends = [limit * (cut - 0.008), limit * (cut + 0.008)], [place + height / 2, place - height / 2]
        axes.plot(*ends, color=GROUND, linewidth=2)


def _bar_limit(longest: list[float]) -> float:
    """Return where bars end, given the longest of each model."""
    *_, second, first = [0.0, *sorted(longest)]
    return second * 1.4 if 0 < 2.5 * second < first else first or 1.0

"""The figures of a report, as SVG that takes its colours from the page around it.

Text and axes are drawn in the page's own colour, so that one figure is readable on light and dark ground. The colours
of the data have a contrast of at least 3 on both; markers, dashes, order and labels tell the series apart without them.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from zlib import crc32

WIDTH = 380
"""Width of a figure in its own units, in which text is 10 or 11 high: legible when a phone shows it 340 pixels wide."""

COLORS = ("#3a7bd5", "#8a9099", "#d9722e", "#2a9d6f", "#a568cc", "#b58a1a")
_MARKERS = "os^Dvp"
_DASHES = ("solid", "dashed", "dashdot", "dotted", (0, (5, 1)), (0, (3, 1, 1, 1)))
_INK, _GROUND = "#010203", "#fdfcfb"  # stand for the page's own colours
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distilwhisper",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    **dict.fromkeys("text.color axes.labelcolor axes.edgecolor xtick.color ytick.color grid.color".split(), _INK),
}


def plot_word_error_rates(rates: Mapping[str, Mapping[str, float]], description: str) -> str:
    """Draw bars of word error rates, grouped by set.

    Where one model's longest bar is more than 2.5 times as long as any bar of the others, as with an untrained
    student, it would flatten them all: it is cut, marked as cut, and its value written beside it like every other.

    Args:
        rates: Model to set to word error rate, a fraction. Every model has the same sets.
        description: The figure in words, for those who cannot see it.
    """
    sets = list(next(iter(rates.values())))
    longest = [100 * max(by_set.values()) for by_set in rates.values()]
    limit = _bar_limit(longest)
    height = 0.8 / len(rates)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (model, by_set) in enumerate(rates.items()):
            places = [index + height * (number - (len(rates) - 1) / 2) for index in range(len(sets))]
            values = [100 * by_set[name] for name in sets]
            widths = [min(value, limit) for value in values]
            axes.barh(places, widths, height * 0.86, color=COLORS[number % len(COLORS)], label=model)
            for place, value, width in zip(places, values, widths, strict=True):
                axes.text(width + limit * 0.015, place, f"{value:.1f}", va="center", fontsize=10)
                if value > limit:
                    for cut in (0.93, 0.955):
                        ends = [limit * (cut - 0.008), limit * (cut + 0.008)], [place + height / 2, place - height / 2]
                        axes.plot(*ends, color=_GROUND, linewidth=2)
        axes.set(xlim=(0, limit * 1.12), ylim=(len(sets) - 0.5, -0.5), xlabel="WER (%)")
        if max(longest) > limit:
            axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick < 0.9 * limit])
        axes.set_yticks(range(len(sets)), [textwrap.fill(name, 15) for name in sets])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handlelength=1)

    return _svg(draw, description, height=90 + len(sets) * (14 + 13 * len(rates)))


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
    curves: Mapping[str, Sequence[tuple[float, float]]], label: str, description: str, *, logarithmic: bool = False
) -> str:
    """Draw values against training steps.

    Args:
        curves: Name to (step, value) pairs.
        label: Name of the vertical axis.
        description: The figure in words; where each curve starts and ends is added.
        logarithmic: Use a logarithmic axis where all values are positive and span more than a factor of 8.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (name, points) in enumerate(curves.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=COLORS[number % len(COLORS)],
                linestyle=_DASHES[number % len(_DASHES)],
                marker=_MARKERS[number % len(_MARKERS)] if len(points) <= 20 else None,
                label=name,
                clip_on=False,
            )
        values = [value for points in curves.values() for _, value in points]
        _set_scale(axes, values, logarithmic)
        axes.set(xlabel="training step", ylabel=label)
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1)

    ends = (f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in curves.items())
    return _svg(draw, f"{description}: {', '.join(ends)}.")


def plot_label_histogram(
    edges: Sequence[float | None], counts: Sequence[int], threshold: float, description: str
) -> str:
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
        axes.axvspan(cut, len(names) - 0.5, color=_INK, alpha=0.07, linewidth=0)
        bars = axes.bar(range(len(names)), counts, 0.86, color=COLORS[0])
        axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts], fontsize=10, padding=2)
        axes.axvline(cut, color=COLORS[2], linestyle="dashed")
        side, gap = ("left", 0.2) if cut < len(names) / 2 else ("right", -0.2)
        where = {"transform": axes.get_xaxis_transform(), "va": "top", "ha": side, "fontsize": 10}
        axes.text(cut + gap, 0.98, f"dropped: above {100 * threshold:g} %", **where)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="WER of the label, up to (%)", ylabel="samples", xlim=(-0.7, len(names) - 0.5))
        axes.margins(y=0.22)

    return _svg(draw, description)


def plot_threshold_sweep(
    points: Sequence[tuple[float, float, float | None]], threshold: float | None, description: str
) -> str:
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
            axes.axvline(100 * threshold, color=_INK, linestyle="dotted", linewidth=1.2)
            side, gap = ("left", 1.5) if threshold < 0.6 else ("right", -1.5)
            axes.text(100 * threshold + gap, 2, f"threshold {100 * threshold:g} %", ha=side, fontsize=10)
        figure.legend(loc="outside upper center", ncols=2)

    return _svg(draw, description)


def save_svg(svg: str, path: Path) -> None:
    """Write a figure as a file of its own: dark on white, as it has no page to take colours from."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = 'style="color:#1b1f24;background:#fff;--card:#fff"'
    path.write_text(svg.replace("<svg ", f"<svg {names} {style} ", 1), encoding="utf-8")


def plot_trade_off(
    points: Mapping[str, tuple[float, float]], label: str, description: str, *, models: Sequence[str] = ()
) -> str:
    """Draw word error rate against latency, a point for each model.

    Args:
        points: Model to milliseconds and word error rate in percent.
        label: Name of the vertical axis.
        description: The figure in words.
        models: All models of the page, so that each keeps its colour; default: those with a point.
    """
    names = list(models or points)
    longest = max(latency for latency, _ in points.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, (latency, rate) in points.items():
            number = names.index(name)
            style = {"marker": _MARKERS[number % len(_MARKERS)], "color": COLORS[number % len(COLORS)]}
            axes.plot(latency, rate, markersize=8, clip_on=False, **style)
            right = latency > longest / 2
            offset = {"xytext": (-9 if right else 9, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(name, (latency, rate), ha="right" if right else "left", **offset)
        _set_scale(axes, [rate for _, rate in points.values()], logarithmic=True)
        axes.set(xlabel="ms per utterance", ylabel=label, xlim=(0, longest * 1.1))
        axes.grid()

    return _svg(draw, description)


def _bar_limit(longest: list[float]) -> float:
    """Return where bars end, given the longest of each model."""
    *_, second, first = [0.0, *sorted(longest)]
    return second * 1.4 if 0 < 2.5 * second < first else first or 1.0


def _set_scale(axes: Any, values: list[float], logarithmic: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if logarithmic and min(values) > 0 and max(values) > 8 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
    else:
        axes.set_ylim(min(0.0, *values), max(values) * 1.1 or 1)


def _svg(draw: Callable[[Any], None], description: str, height: float = 270) -> str:
    """Return the figure as an ``<svg>`` element that needs nothing from outside."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the plots of a report need matplotlib: pip install 'distilwhisper[plots]'") from error
    from matplotlib.figure import Figure

    drawing = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure((WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        metadata = dict.fromkeys("Creator Date Format Type".split())
        figure.savefig(drawing, format="svg", transparent=True, metadata=metadata)
    svg = drawing.getvalue()
    content = svg[svg.index(">", svg.index("<svg")) + 1 :].replace(_INK, "currentColor").replace(_GROUND, "var(--card)")
    # Several figures share the page: what one defines must not be taken for another's.
    content = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{crc32(description.encode()):x}-", content)
    return f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {WIDTH} {height:g}">' + content

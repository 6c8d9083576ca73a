"""A figure as SVG that takes its colours from the page around it, or as a file.

Text and axes are drawn in the page's own colour, so that one figure is readable on light and dark ground. The colours
of the data have a contrast of at least 3 on both; markers, dashes, order and labels tell the series apart without them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from zlib import crc32

WIDTH = 380
"""Width of a figure in its own units, in which text is 10 or 11 high: legible when a phone shows it 340 pixels wide."""

COLORS = ("#3a7bd5", "#8a9099", "#d9722e", "#2a9d6f", "#a568cc", "#b58a1a")
MARKERS = "os^Dvp"
DASHES = ("solid", "dashed", "dashdot", "dotted", (0, (5, 1)), (0, (3, 1, 1, 1)))
INK, GROUND = "#010203", "#fdfcfb"  # stand for the page's own colours
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
    **dict.fromkeys("text.color axes.labelcolor axes.edgecolor xtick.color ytick.color grid.color".split(), INK),
}


@dataclass(frozen=True)
class Chart:
    """A figure that can be drawn as part of a page, or into a file.

    Attributes:
        draw: Fills a matplotlib figure.
        description: The figure in words, for those who cannot see it.
        height: In the units of `WIDTH`.
        width: Likewise.
    """

    draw: Callable[[Any], None]
    description: str
    height: float = 270
    width: float = WIDTH

    def svg(self) -> str:
        """Return the figure as an ``<svg>`` element that needs nothing from outside."""
        drawing = io.StringIO()
        metadata = dict.fromkeys("Creator Date Format Type".split())
        self._render(drawing, format="svg", transparent=True, metadata=metadata)
        svg = drawing.getvalue()
        content = svg[svg.index(">", svg.index("<svg")) + 1 :]
        content = content.replace(INK, "currentColor").replace(GROUND, "var(--card)")
        # Several figures share the page: what one defines must not be taken for another's.
        content = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{crc32(self.description.encode()):x}-", content)
        box = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        return f'<svg role="img" aria-label="{escape(self.description)}" {box}>' + content

    def _repr_html_(self) -> str:
        ground = "var(--jp-layout-color0, var(--vscode-editor-background, white))"
        return f'<div style="max-width: {1.5 * self.width:g}px; --card: {ground}">{self.svg()}</div>'

    def save(self, path: Path) -> None:
        """Write the figure, dark on white, in the format of the suffix: ``.png``, ``.pdf``, ``.svg``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._render(path, dpi=200, facecolor="white")

    def _render(self, file: Any, **options: Any) -> None:
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError("the plots of a report need matplotlib: pip install 'distilwhisper[plots]'") from error
        from matplotlib.figure import Figure

        with matplotlib.rc_context(_STYLE):
            figure = Figure((self.width / 72, self.height / 72), layout="constrained")
            self.draw(figure)
            figure.savefig(file, **options)


def set_scale(axes: Any, values: Sequence[float], logarithmic: bool) -> None:
    """Scale the vertical axis: from 0, or logarithmic if asked for and the values are positive and far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if logarithmic and min(values) > 0 and max(values) > 8 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
    else:
        axes.set_ylim(min(0.0, *values), max(values) * 1.1 or 1)

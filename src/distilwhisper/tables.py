"""Rows of text as a table: for the terminal, in Markdown, in HTML. The first row holds the headings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from html import escape
from itertools import groupby

Rows = Sequence[Sequence[str]]

_GAP = "  "
_NAME_WIDTH = 40
_HEADING_WIDTH = 12


def text_table(rows: Rows, width: int = 100) -> str:
    """Return a table for the terminal, no wider than the width.

    The first column is flush left, the others right. Long headings wrap. Columns that do not fit stand in further
    blocks below, each with the first column again.
    """
    headings = [textwrap.wrap(heading, _HEADING_WIDTH) or [""] for heading in rows[0]]
    height = max(map(len, headings))
    columns: list[list[str]] = []
    for heading, cells in zip(headings, zip(*rows[1:], strict=True), strict=True):
        shown = [cell if len(cell) <= _NAME_WIDTH else f"{cell[: _NAME_WIDTH - 3]}..." for cell in cells]
        size = max(map(len, [*heading, *shown]))
        align = str.rjust if columns else str.ljust
        lines = [*[""] * (height - len(heading)), *heading, "-" * size, *shown]
        columns.append([align(line, size) for line in lines])
    names, *others = columns
    blocks = [names]
    for column in others:
        if len(blocks[-1][0]) + len(_GAP) + len(column[0]) > width:
            blocks.append(names)
        blocks[-1] = [line + _GAP + cell for line, cell in zip(blocks[-1], column, strict=True)]
    return "\n\n".join("\n".join(line.rstrip() for line in block).lstrip("\n") for block in blocks)


def markdown_table(rows: Rows) -> str:
    """Return a table in Markdown: the first column flush left, the others right."""
    heading, *body = [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
    return "\n".join([heading, "|:--" + "|--:" * (len(rows[0]) - 1) + "|", *body])


def html_table(rows: Rows) -> str:
    """Return a ``<table>`` whose first row and column are headings."""
    heading, *body = rows
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in body
    ]
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


class Shown:
    """Shows itself in a notebook as what it prints, Markdown tables as tables."""

    def _repr_html_(self) -> str:
        return text_as_html(str(self))


def text_as_html(text: str) -> str:
    """Return a text with Markdown tables as HTML; whatever else it holds stays as it is, line by line."""
    parts = []
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            parts.append(html_table([_cells(line) for line in lines if set(line) - set("|:- ")]))
        else:
            parts += [f"<div>{escape(line)}</div>" for line in lines if line]
    return "<div>" + "".join(parts) + "</div>"


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line and within one cell."""
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))

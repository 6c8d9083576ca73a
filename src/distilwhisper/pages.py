"""The parts of a web page that stands on its own: one file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from html import escape
from importlib import resources
from itertools import zip_longest

import jiwer

from distilwhisper.tables import escape_markdown

LEGEND = (
    "Marked against the reference, whatever the case and punctuation: <mark>wrong word</mark>, "
    "<del>missing word</del>, <ins>extra word</ins>."
)
"""What `mark_words` means by its marks, in HTML."""


def page(title: str, body: str) -> str:
    """Return a whole page; the title is text, the body HTML."""
    style = resources.files(__package__).joinpath("data/report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """Return a section of HTML parts under a heading, which is text."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def figure(svg: str, title: str, caption: str) -> str:
    """Return a figure with its title and caption, both text."""
    return f'<figure class="card"><figcaption><b>{escape(title)}</b>{escape(caption)}</figcaption>{svg}</figure>'


def grid(*parts: str) -> str:
    """Return HTML parts side by side, or below each other where the screen is narrow."""
    return f'<div class="grid">{"".join(parts)}</div>'


def scroll_box(table: str, kind: str, label: str) -> str:
    """Return a table in a box of its own that scrolls sideways on a narrow screen, by keyboard too."""
    return f'<div class="card scroll {kind}" role="region" aria-label="{escape(label)}" tabindex="0">{table}</div>'


def mark_words(reference: str, hypothesis: str) -> str:
    """Return the hypothesis as HTML, its differences from the reference marked word by word.

    ``<mark>`` holds a wrong word (the right one is its tooltip), ``<del>`` a missing word, ``<ins>`` an extra one.
    Neither case nor punctuation is compared, and what is punctuation alone is left out.
    """
    forms = {
        "equal": "{0}",
        "insert": "<ins>{0}</ins>",
        "delete": "<del>{1}</del>",
        "substitute": '<mark title="instead of: {1}">{0}</mark>',
    }
    words = (forms[kind].format(escape(word), escape(right)) for kind, word, right in _compared(reference, hypothesis))
    return " ".join(words) or '<span class="note">(nothing)</span>'


def mark_words_in_markdown(reference: str, hypothesis: str) -> str:
    """Return the hypothesis in Markdown: **wrong** (right), ~~missing~~ and **+extra** words."""
    forms = {"equal": "{0}", "insert": "**+{0}**", "delete": "~~{1}~~", "substitute": "**{0}** ({1})"}
    return " ".join(
        forms[kind].format(escape_markdown(word), escape_markdown(right))
        for kind, word, right in _compared(reference, hypothesis)
    )


def _compared(reference: str, hypothesis: str) -> Iterator[tuple[str, str, str]]:
    """Yield for each step of the alignment its kind, the word that was heard and the one that was wanted."""
    wanted, heard = (list(filter(_key, text.split())) for text in (reference, hypothesis))
    alignment = jiwer.process_words(" ".join(map(_key, wanted)), " ".join(map(_key, heard))).alignments[0]
    for chunk in alignment:
        right = wanted[chunk.ref_start_idx : chunk.ref_end_idx]
        words = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for word, other in zip_longest(words, right, fillvalue=""):
            yield chunk.type, word, other


def _key(word: str) -> str:
    """Return what of a word is compared: letters with their marks, and digits."""
    return "".join(letter for letter in word if unicodedata.category(letter)[0] in "LMN").casefold()

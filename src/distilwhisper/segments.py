"""Segments and words of a transcript: what was said from when to when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distilwhisper.tokens import TIMESTAMP_STEP_S, WhisperTokens

Span = tuple[float, float]
Decode = Callable[[list[int]], str]

WITHOUT_SPACES = frozenset("zh ja th lo my yue".split())
"""Languages that put no spaces between words; there every character, or what one token holds, is a word."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording between two timestamps.

    Attributes:
        start_s: Where it begins, in seconds from the start of the recording.
        end_s: Where it ends.
        text: What was said.
        tokens: Ids of the text.
    """

    start_s: float
    end_s: float
    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Word:
    """A word with its punctuation.

    Attributes:
        start_s: Where it begins, in seconds from the start of the recording.
        end_s: Where it ends.
        text: The word, without spaces around it.
    """

    start_s: float
    end_s: float
    text: str


def split_at_timestamps(
    ids: Sequence[int], tokens: WhisperTokens, *, offset_s: float, end_s: float
) -> list[tuple[float, float, list[int]]]:
    """Return the runs of text between timestamps: start and end in seconds, and ids.

    Args:
        ids: Text and timestamps of one window.
        tokens: The special tokens.
        offset_s: Where the window begins.
        end_s: Where a run ends that no timestamp closes; and no timestamp is taken to be later.
    """
    runs, start_s, text = [], offset_s, list[int]()
    for token in ids:
        if not tokens.is_timestamp(token):
            text.append(token)
            continue
        time_s = min(offset_s + (token - tokens.timestamp_begin) * TIMESTAMP_STEP_S, end_s)
        if text:
            runs.append((start_s, time_s, text))
            text = []
        start_s = time_s
    return [*runs, (start_s, end_s, text)] if text else runs


def completed(ids: Sequence[int], tokens: WhisperTokens) -> tuple[list[int], int | None]:
    """Return the ids of a window up to its last pair of timestamps, and the time of that pair.

    A pair closes one segment and opens the next. What follows the last one is a segment that the end of the window
    cut, so the next window begins there; unless a single timestamp closes it, for that says that nothing follows.

    Returns:
        The ids, and the timestamp in steps of 20 ms; None if the window was heard to its end.
    """
    stamps = [tokens.is_timestamp(token) for token in ids]
    pairs = [place for place in range(1, len(ids)) if stamps[place - 1] and stamps[place]]
    if not pairs or stamps[-2:] == [False, True]:
        return list(ids), None
    return list(ids[: pairs[-1] + 1]), ids[pairs[-1] - 1] - tokens.timestamp_begin


def group_words(ids: Sequence[int], times: Sequence[Span], decode: Decode, language: str) -> list[Word]:
    """Return the words of a text, timed by their tokens.

    Args:
        ids: Ids of the text.
        times: Start and end of each, in seconds.
        decode: From ids to text.
        language: Code of the language; most begin a word with a space.
    """
    words: list[tuple[str, float, float]] = []
    first = 0
    for place in range(len(ids)):
        text = decode(list(ids[first : place + 1]))
        if "\ufffd" in text and place + 1 < len(ids):  # part of a character
            continue
        start_s, end_s = times[first][0], times[place][1]
        first = place + 1
        joins = not text[:1].isspace() and (language not in WITHOUT_SPACES or not text[:1].isalnum())
        if words and joins:
            words[-1] = (words[-1][0] + text, words[-1][1], end_s)
        else:
            words.append((text, start_s, end_s))
    return [Word(start_s, end_s, text.strip()) for text, start_s, end_s in words if text.strip()]

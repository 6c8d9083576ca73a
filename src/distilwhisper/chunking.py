"""Chunked long form: the texts of overlapping chunks, joined where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distilwhisper.decoding import Window
from distilwhisper.segments import Span, split_at_timestamps
from distilwhisper.tokens import WhisperTokens


@dataclass
class _Token:
    """A token of the text, with the run between two timestamps that it stands in."""

    id: int
    run: list[float]  # start and end in seconds; shared by the tokens of the run
    time: Span | None


def join_chunks(
    windows: Sequence[Window], starts_s: Sequence[float], ends_s: Sequence[float], tokens: WhisperTokens
) -> tuple[list[tuple[float, float, list[int]]], list[int], list[Span]]:
    """Join the transcripts of chunks: where they overlap, in the middle of their longest common sequence.

    Chunks that do not overlap are put behind each other: what they have in common was said twice. (Transformers'
    pipeline joins these too, and loses it.)

    Args:
        windows: What was heard in each chunk.
        starts_s: Where each begins, in seconds.
        ends_s: Where each ends.
        tokens: The special tokens.

    Returns:
        Runs of text between timestamps (start and end in seconds, ids); all ids of the text; their times, if the
        windows have them.
    """
    joined: list[_Token] = []
    left: list[_Token] = []
    left_end_s = 0.0
    for window, start_s, end_s in zip(windows, starts_s, ends_s, strict=True):
        right = _tokens(window, start_s, end_s, tokens)
        if not right:
            continue
        common = None
        if start_s < left_end_s:
            common = longest_common_sequence([token.id for token in left], [token.id for token in right])
        if common is not None:
            left_cut, right_cut = common
            # The token on either side of the cut is the same word, so the two runs are one.
            left, right = left[:left_cut], right[right_cut:]
            if left and right:
                _merge(left, right)
        joined, left, left_end_s = joined + left, right, end_s
    joined += left
    runs: dict[int, tuple[list[float], list[int]]] = {}
    for token in joined:
        runs.setdefault(id(token.run), (token.run, []))[1].append(token.id)
    spans = [token.time for token in joined if token.time is not None]
    return [(run[0], run[1], ids) for run, ids in runs.values()], [token.id for token in joined], spans


def longest_common_sequence(left: Sequence[int], right: Sequence[int]) -> tuple[int, int] | None:
    """Return where to cut two texts that overlap: the middle of their best alignment; None if nothing fits.

    The end of the left text is laid over the start of the right one, at every possible shift. The best has the
    highest share of equal tokens, the longer overlap if shares are alike, and at least two equal tokens. Words that
    only one of them heard do not disturb it.

    Args:
        left: Ids.
        right: Ids.

    Returns:
        How many ids of the left text to keep, and how many of the right one to leave out.
    """
    best, cut = 0.0, None
    first, second = np.asarray(left), np.asarray(right)
    for shift in range(1, len(left) + len(right)):
        left_start, left_end = max(0, len(left) - shift), min(len(left), len(left) + len(right) - shift)
        right_start, right_end = max(0, shift - len(left)), min(len(right), shift)
        matches = int(np.count_nonzero(first[left_start:left_end] == second[right_start:right_end]))
        share = matches / shift + shift / 10_000
        if matches > 1 and share > best:
            best, cut = share, ((left_start + left_end) // 2, (right_start + right_end) // 2)
    return cut


def _tokens(window: Window, start_s: float, end_s: float, tokens: WhisperTokens) -> list[_Token]:
    found: list[_Token] = []
    times = iter(window.times or ())
    for run_start_s, run_end_s, ids in split_at_timestamps(window.ids, tokens, offset_s=start_s, end_s=end_s):
        run = [run_start_s, run_end_s]
        for token in ids:
            span = next(times, None)
            found.append(_Token(token, run, span and (start_s + span[0], start_s + span[1])))
    return found


def _merge(left: list[_Token], right: list[_Token]) -> None:
    earlier, later = left[-1].run, right[0].run
    earlier[1] = max(earlier[1], later[1])
    for token in right:
        if token.run is later:
            token.run = earlier

"""A transcript of a whole recording, dealt out to the windows it was cut into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

import jiwer
import numpy as np
import numpy.typing as npt
from datasets import Dataset, Value

from distilwhisper.normalizers import UNSPACED_LANGUAGES, language_code, strip_special_tokens

_NOTHING_TO_COMPARE = "\N{REPLACEMENT CHARACTER}"


def split_reference(reference: str, hypotheses: Sequence[str], language: str | None = None) -> list[str]:
    """Give each window its share of a recording's transcript: the words that what was heard in it aligns with.

    Words are compared without case and punctuation, in one alignment over the whole recording. Each word of the
    transcript goes to one window, in order: a word that was heard, rightly or wrongly, to the window that heard it; one
    that was missed to the window of the word before it, or to a window behind that one in which nothing was heard. So a
    window whose label stops early, or is empty, does not pass the filter.

    Args:
        reference: The transcript.
        hypotheses: The labels of the windows, in order.
        language: Code, name or token; in languages without spaces, characters are aligned. None means English.

    Raises:
        ValueError: For an unknown language, or a transcript without a window.
    """
    space = "" if language_code(language) in UNSPACED_LANGUAGES else " "
    heard = [_words(hypothesis, space) for hypothesis in hypotheses]
    written = _words(reference, space)
    if not heard:
        if written:
            raise ValueError(f"there is a transcript of {len(written)} words, but no window to give them to")
        return []
    if not written:
        return [""] * len(heard)
    windows = _align(written, heard)
    bounds = np.searchsorted(windows, np.arange(len(heard) + 1))
    return [space.join(written[start:end]) for start, end in pairwise(bounds)]


def assign_references(
    windows: Dataset,
    transcripts: Mapping[str, str | None],
    *,
    language: str | None = None,
    recording_column: str = "recording_id",
    label_column: str = "whisper_transcript",
    text_column: str = "text",
) -> Dataset:
    """Add the column of reference transcripts that the WER filter needs to labelled windows of long recordings.

    The filter judges the windows one by one, as `split_reference` deals the transcripts out. Audio is not read.

    Args:
        windows: What ``PseudoLabeler.label`` made of what ``Segmenter.segment`` returned: the windows of a recording
            follow each other.
        transcripts: Recording to transcript of the whole; windows of recordings without one get null.
        language: Language of the recordings; None means English.
        recording_column: Column that says which recording a window is of.
        label_column: Column of the labels.
        text_column: Column to add; one of that name is replaced.

    Raises:
        ValueError: If a column is missing, or the windows of a recording do not follow each other.
    """
    for name in (recording_column, label_column):
        if name not in windows.column_names:
            raise ValueError(f"the dataset has no column {name!r}; it has {windows.column_names}")
    texts: list[str | None] = []
    met = set()
    rows = zip(windows[recording_column], windows[label_column], strict=True)
    for recording, group in groupby(rows, key=lambda row: row[0]):
        if recording in met:
            raise ValueError(f"the windows of {recording!r} do not follow each other; sort by recording and offset")
        met.add(recording)
        labels = [strip_special_tokens(label or "") for _, label in group]
        transcript = transcripts.get(recording)
        texts += [None] * len(labels) if transcript is None else split_reference(transcript, labels, language)
    if text_column in windows.column_names:
        windows = windows.remove_columns(text_column)
    return windows.add_column(text_column, texts, feature=Value("string"))


def _words(text: str, space: str) -> list[str]:
    return text.split() if space else list("".join(text.split()))


def _align(written: Sequence[str], heard: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
    """Return the window of each written word; the numbers never fall."""
    sizes = [len(words) for words in heard]
    window_of = np.repeat(np.arange(len(heard)), sizes)
    if not len(window_of):
        return np.zeros(len(written), np.int64)
    spoken = [word for words in heard for word in words]
    windows = np.zeros(len(written), np.int64)
    for chunk in jiwer.process_words(_keys(written), _keys(spoken)).alignments[0]:
        words = slice(chunk.ref_start_idx, chunk.ref_end_idx)
        if chunk.type in ("equal", "substitute"):
            windows[words] = window_of[chunk.hyp_start_idx : chunk.hyp_end_idx]
        elif chunk.type == "delete":
            before = int(window_of[chunk.hyp_start_idx - 1]) if chunk.hyp_start_idx else -1
            silent = before + 1 < len(heard) and not sizes[before + 1]
            windows[words] = before + 1 if silent else max(before, 0)
    return windows


def _keys(words: Sequence[str]) -> str:
    """Return the words as they are compared, each exactly one word."""
    bare = ("".join(filter(str.isalnum, word.casefold())) for word in words)
    return " ".join(word or _NOTHING_TO_COMPARE for word in bare)

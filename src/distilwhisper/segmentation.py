"""Long recordings (podcasts, meetings, calls) cut at pauses into windows that a Whisper hears at once."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Audio, Dataset, Features, IterableDataset, Value
from datasets.utils import tqdm

from distilwhisper.audio import AudioError, Samples, audio_blocks, encode_audio, undecoded
from distilwhisper.row_files import Step, stream_rows, write_rows
from distilwhisper.tables import Shown
from distilwhisper.voice_activity import FRAME_SAMPLES, SAMPLING_RATE, SILENCE_DB, Flags, Levels, find_speech, runs

logger = logging.getLogger(__name__)

LEFT_OUT = ("silence", "no_speech", "too_short")
"""Why a part of a recording is in no window: nothing is heard; music or noise is heard; or speech too short to use."""

WINDOW_FEATURES = Features(
    {name: Value("string") for name in ("id", "recording_id")}
    | {name: Value("float64") for name in ("offset_s", "duration_s")}
)
"""The columns of a window, beside its audio and what its recording says of itself."""

Spans = npt.NDArray[np.int64]

BLOCK_S = 10.0
"""Of a damaged recording, what comes after the last whole block of this length is lost."""


@dataclass(frozen=True)
class CutRule:
    """Where recordings are cut.

    Attributes:
        max_seconds: Longest window: 30 for the published models, ``Transcriber.window_s`` for any.
        min_pause_s: Shortest pause at which a cut is made; speech without one is cut where it is quietest.
        max_pause_s: Longest pause inside a window; what is longer is left out.
        min_speech_s: Shorter bursts of speech are left out, unless other speech is near.
        padding_s: Kept on each side of speech, up to the middle of the pause.

    Raises:
        ValueError: If a length makes no sense.
    """

    max_seconds: float = 30.0
    min_pause_s: float = 0.3
    max_pause_s: float = 2.0
    min_speech_s: float = 0.25
    padding_s: float = 0.15

    def __post_init__(self) -> None:
        if not 1 <= self.max_seconds <= 3600:
            raise ValueError(f"max_seconds is the model's window, 30 for most, not {self.max_seconds}")
        for name in ("min_pause_s", "max_pause_s", "min_speech_s", "padding_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")

    def frames(self, name: str) -> int:
        """Return a length in whole frames, rounded down."""
        return int(getattr(self, name) * SAMPLING_RATE / FRAME_SAMPLES)


def plan_windows(speech: Flags, levels: Levels, rule: CutRule | None = None) -> Spans:
    """Return the windows of a recording, as frames: ``[windows, start and end]``, in order, none over another.

    Bursts of speech that no pause parts belong together. They are joined from the left as long as they fit into a
    window; where one alone does not fit, it is cut at the quietest frame of the second half of what fits.

    Args:
        speech: Whether somebody speaks, ``[frames]``.
        levels: Loudness in dB, ``[frames]``.
        rule: Lengths; default those of `CutRule`.
    """
    rule = rule or CutRule()
    longest = rule.frames("max_seconds")
    windows: list[list[int]] = []
    for start, end in _bursts(speech, rule):
        while end - start > longest:
            half = start + longest // 2
            cut = half + 1 + int(np.argmin(levels[half + 1 : start + longest]))
            windows.append([start, cut])
            start = cut
        pause = start - windows[-1][1] if windows else 0
        if windows and end - windows[-1][0] <= longest and pause <= rule.frames("max_pause_s"):
            windows[-1][1] = end
        else:
            windows.append([start, end])
    return np.array(windows, np.int64).reshape(-1, 2)


@dataclass
class SegmentReport(Shown):
    """What became of recordings; ``print(report)`` says it in words.

    Attributes:
        recordings: How many were cut.
        windows: Into how many windows.
        kept_s: Seconds in windows.
        left_out_s: Seconds in none, by reason; the keys are `LEFT_OUT`. With ``kept_s`` they add up to the
            recordings.
        set_aside: Recordings that could not be read, or not to their end, by reason.
    """

    recordings: int = 0
    windows: int = 0
    kept_s: float = 0.0
    left_out_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEFT_OUT, 0.0))
    set_aside: Counter[str] = field(default_factory=Counter)

    @property
    def total_s(self) -> float:
        """Seconds of all that was read."""
        return self.kept_s + sum(self.left_out_s.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers and dictionaries."""
        return {**asdict(self), "set_aside": dict(self.set_aside), "total_s": self.total_s}

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        hours = f"{self.kept_s / 3600:,.2f} of {self.total_s / 3600:,.2f} h"
        lines = [f"cut {self.recordings:,} recordings into {self.windows:,} windows, {hours}"]
        lines += [f"left out {seconds / 3600:,.2f} h: {reason}" for reason, seconds in self.left_out_s.items()]
        lines += [f"set aside {count:,}: {reason}" for reason, count in self.set_aside.most_common()]
        return "\n".join(lines)


class Segmenter:
    """Cuts long recordings into windows.

    A recording is read twice, in constant memory: once to find speech and once to cut. Where one is damaged, what
    comes before the damage is cut, and the recording is listed as set aside.

    Args:
        max_seconds: Longest window, in seconds.
        detector: ``silero`` (the extra ``vad``) or ``energy``, see `find_speech`.
        threshold: Probability from which on Silero's detector says speech.
        **lengths: Other fields of `CutRule`.

    Attributes:
        report: What `segment` did; for a result without ``output_dir``, with what was read of it so far in this
            process, repeated passes included.
        set_aside: Recordings that could not be read, or not to their end: ``index``, ``id``, ``reason``, ``message``.

    Raises:
        ValueError: If the detector is unknown, or a number makes no sense.
    """

    def __init__(
        self, max_seconds: float = 30.0, *, detector: str = "silero", threshold: float = 0.5, **lengths: float
    ) -> None:
        self.rule = CutRule(max_seconds, **lengths)
        self.detector, self.threshold = detector, threshold
        find_speech([], detector, threshold)  # refuses a wrong or missing detector now
        self.report, self.set_aside = SegmentReport(), list[dict[str, Any]]()

    def segment(
        self,
        dataset: Any,
        output_dir: str | Path | None = None,
        *,
        audio_column: str = "audio",
        text_column: str = "text",
        id_column: str | None = None,
    ) -> Any:
        """Cut the recordings of a data set.

        Args:
            dataset: A ``Dataset`` or ``IterableDataset``, one row a recording.
            output_dir: Where the windows are written, as parquet files; a killed run that is started again goes on
                where it stopped. Default: nowhere, and each pass over the result cuts anew.
            audio_column: Column of the recordings.
            text_column: Column of their transcripts, if there are any: the windows do not have it (see
                `assign_references`).
            id_column: Column that names them, each otherwise; default ``id``, where there is one, else their number.

        Returns:
            A ``Dataset`` if ``output_dir`` is given, else an ``IterableDataset``. Its rows have the columns of
            ``WINDOW_FEATURES``; ``audio_column``, FLAC at 16 kHz; and all other columns of the recording.

        Raises:
            TypeError: If the data set is neither of the two.
            ValueError: If a column is missing, names occur twice, or ``output_dir`` holds other rows.
        """
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise TypeError(f"a {type(dataset).__name__} cannot be cut; pass one split, a Dataset or IterableDataset")
        data = undecoded(dataset, audio_column).with_format(None)
        id_column = id_column or ("id" if "id" in (data.column_names or ()) else None)
        _check(data, id_column)
        dropped = {audio_column, text_column, id_column, "duration", *WINDOW_FEATURES}
        cut = partial(self._steps, data, audio_column, id_column, dropped)
        self.report, self.set_aside = SegmentReport(), []
        features = data.features and Features(
            {audio_column: Audio(SAMPLING_RATE, decode=False), **WINDOW_FEATURES}
            | {name: kind for name, kind in data.features.items() if name not in dropped}
        )
        if output_dir is None:
            return stream_rows(cut, features)
        settings = {**asdict(self.rule), "detector": self.detector, "threshold": self.threshold}
        windows, done = write_rows(cut, output_dir, features, settings, self._snapshot)
        self._restore(done)
        logger.info("%s", self.report)
        return windows

    def cut(self, recording: Any) -> Iterator[tuple[float, Samples]]:
        """Cut one recording, and count it in the report.

        Args:
            recording: Anything `load_audio` reads.

        Yields:
            Where a window begins, in seconds, and its samples at 16 kHz.

        Raises:
            AudioError: If the recording cannot be read, or not to its end; the windows before come first.
        """
        read, damage = 0, []

        def blocks() -> Iterator[Samples]:
            nonlocal read
            try:
                for block in audio_blocks(recording, SAMPLING_RATE, block_s=BLOCK_S):
                    read += len(block)
                    yield block
            except AudioError as error:
                damage.append(error)

        speech, levels = find_speech(blocks(), self.detector, self.threshold)
        if damage and not read:
            raise damage[0]
        spans = plan_windows(speech, levels, self.rule)
        samples = np.minimum(spans * FRAME_SAMPLES, read)
        for (start, _), window in zip(
            samples, _slices(audio_blocks(recording, SAMPLING_RATE, block_s=BLOCK_S), samples), strict=True
        ):
            yield start / SAMPLING_RATE, window
        self._count(spans, speech, levels, read)
        for error in damage:
            raise AudioError(error.reason, f"{error}, after {read / SAMPLING_RATE:.1f} s")

    def _steps(
        self, data: Any, audio_column: str, id_column: str | None, dropped: set[str], position: Any, done: Any
    ) -> Iterator[Step]:
        self._restore(done)
        first, cut_already = position or (0, 0)
        total = len(data) if isinstance(data, Dataset) else None
        rows = tqdm(data.skip(first), "Cutting", total, unit="recording", initial=first)
        for index, row in enumerate(rows, first):
            name = str(index if id_column is None else row[id_column])
            kept = {column: value for column, value in row.items() if column not in dropped}
            try:
                for number, (offset_s, samples) in enumerate(self.cut(row[audio_column])):
                    if number >= cut_already:
                        identity = {"id": f"{name}-{round(1000 * offset_s):08d}", "recording_id": name}
                        times = {"offset_s": offset_s, "duration_s": len(samples) / SAMPLING_RATE}
                        audio = {"bytes": encode_audio(samples, SAMPLING_RATE), "path": None}
                        yield {audio_column: audio, **identity, **times, **kept}, [index, number + 1]
            except AudioError as error:
                self.report.set_aside[error.reason] += 1
                self.set_aside.append({"index": index, "id": name, "reason": error.reason, "message": str(error)})
            cut_already = 0
        yield None, None

    def _count(self, spans: Spans, speech: Flags, levels: Levels, samples: int) -> None:
        seconds = np.full(len(speech), FRAME_SAMPLES / SAMPLING_RATE)
        seconds[-1:] -= len(speech) * FRAME_SAMPLES / SAMPLING_RATE - samples / SAMPLING_RATE  # the last may be short
        left_out = np.ones(len(speech), np.bool_)
        for start, end in spans:
            left_out[start:end] = False
        silent = ~speech & (levels < SILENCE_DB)
        reasons = {"silence": silent, "no_speech": ~speech & ~silent, "too_short": speech}
        self.report.recordings += 1
        self.report.windows += len(spans)
        self.report.kept_s += float(seconds[~left_out].sum())
        for reason, frames in reasons.items():
            self.report.left_out_s[reason] += float(seconds[left_out & frames].sum())

    def _snapshot(self) -> dict[str, Any]:
        return {"report": self.report.to_dict(), "set_aside": self.set_aside}

    def _restore(self, snapshot: Mapping[str, Any] | None) -> None:
        if snapshot is not None:
            known = {name: snapshot["report"][name] for name in asdict(self.report)}
            self.report = SegmentReport(**known | {"set_aside": Counter(known["set_aside"])})
            self.set_aside = list(snapshot["set_aside"])


def _check(data: Any, id_column: str | None) -> None:
    if id_column is None or data.column_names is None:
        return
    if id_column not in data.column_names:
        raise ValueError(f"the dataset has no column {id_column!r}; it has {data.column_names}")
    if isinstance(data, Dataset):
        name, count = Counter(data[id_column]).most_common(1)[0] if len(data) else ("", 0)
        if count > 1:
            raise ValueError(f"{count} recordings are named {name!r}; give each a name of its own in {id_column!r}")


def _bursts(speech: Flags, rule: CutRule) -> Spans:
    """Return runs of speech with padding: those with less than a pause between them as one, short ones left out."""
    found = runs(speech)
    if not len(found):
        return found
    apart = found[1:, 0] - found[:-1, 1] >= max(rule.frames("min_pause_s"), 1)
    bursts = np.stack([found[np.append(True, apart), 0], found[np.append(apart, True), 1]], axis=1)
    bursts = bursts[bursts[:, 1] - bursts[:, 0] >= rule.frames("min_speech_s")]
    middles = (bursts[:-1, 1] + bursts[1:, 0]) // 2
    padding = rule.frames("padding_s")
    starts = np.maximum(bursts[:, 0] - padding, np.append(0, middles))
    ends = np.minimum(bursts[:, 1] + padding, np.append(middles, len(speech)))
    return np.stack([starts, ends], axis=1)


def _slices(blocks: Iterator[Samples], spans: Iterable[tuple[int, int]]) -> Iterator[Samples]:
    """Yield the samples of each span (start and end, in order) of a recording that comes in blocks."""
    held, first = np.empty(0, np.float32), 0
    for start, end in spans:
        while first + len(held) < end:
            over = min(start - first, len(held))
            first += over
            held = np.concatenate([held[over:], next(blocks)])
        held, first = held[start - first :], start
        yield held[: end - start]

"""How fast a model is, on its own and against another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch

from distilwhisper.audio import Samples, load_audio
from distilwhisper.generation import output_head
from distilwhisper.transcription import Transcriber


@dataclass(frozen=True)
class LatencyResult:
    """How long whole transcriptions took: features, encoder, decoder and text.

    Attributes:
        seconds: For each batch, the median over its repeats, in seconds.
        audio_s: For each batch, the seconds of audio in it.
        batch_size: Recordings in a batch; the last batch may have fewer.
        repeats: How often each batch was transcribed.
        device: Where it ran.
    """

    seconds: tuple[float, ...]
    audio_s: tuple[float, ...]
    batch_size: int
    repeats: int
    device: str

    @property
    def median_s(self) -> float:
        """Median time of a batch, in seconds."""
        return median(self.seconds)

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio."""
        return sum(self.seconds) / sum(self.audio_s)

    @property
    def rtfx(self) -> float:
        """Inverse of the real-time factor: seconds of audio in a second of work."""
        return 1 / self.rtf

    def to_dict(self) -> dict[str, Any]:
        """Return times and settings by name."""
        return {
            "median_s": self.median_s,
            "rtf": self.rtf,
            "rtfx": self.rtfx,
            "batch_size": self.batch_size,
            "repeats": self.repeats,
            "device": self.device,
            "seconds": list(self.seconds),
            "audio_s": list(self.audio_s),
        }

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class LatencyComparison:
    """How much faster a student is than its teacher; ``print(comparison)`` shows a Markdown table.

    Attributes:
        student: The student's times.
        teacher: The teacher's times on the same batches.
    """

    student: LatencyResult
    teacher: LatencyResult

    @property
    def relative_latency(self) -> float:
        """The teacher's time over the student's, median over the batches: 2 means twice as fast."""
        return median(t / s for t, s in zip(self.teacher.seconds, self.student.seconds, strict=True))

    @property
    def ratio_of_medians(self) -> float:
        """The teacher's median time over the student's: a check on `relative_latency`."""
        return self.teacher.median_s / self.student.median_s

    def to_dict(self) -> dict[str, Any]:
        """Return both ratios, and each model's `LatencyResult.to_dict`."""
        return {
            "relative_latency": self.relative_latency,
            "ratio_of_medians": self.ratio_of_medians,
            "student": self.student.to_dict(),
            "teacher": self.teacher.to_dict(),
        }

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        lines = ["| model | batch size | median time | RTF | relative latency |", "|:--|--:|--:|--:|--:|"]
        rows = (("teacher", self.teacher, 1.0), ("student", self.student, self.relative_latency))
        for name, result, ratio in rows:
            time_ms = f"{1000 * result.median_s:.1f} ms"
            lines.append(f"| {name} | {result.batch_size} | {time_ms} | {result.rtf:.3f} | {ratio:.2f} |")
        return "\n".join(lines)


def measure_latency(
    model: Any,
    audio: Iterable[Any],
    processor: Any = None,
    *,
    batch_size: int = 1,
    warmup: int = 2,
    repeats: int = 3,
    **options: Any,
) -> LatencyResult:
    """Time whole transcriptions: features, encoder, decoder and text. Reading the audio is not timed.

    Args:
        model: A model, the path or Hub id of one, or a `Transcriber`, which keeps its own settings.
        audio: Recordings that `load_audio` reads, each no longer than the model's window.
        processor: The model's processor; by default loaded from where the model came from.
        batch_size: Recordings at a time.
        warmup: Batches transcribed before the clock runs.
        repeats: How often each batch is transcribed; its time is the median.
        **options: Further arguments of `Transcriber`, such as ``language`` (default English).

    Raises:
        AudioError: If a recording cannot be used.
        ValueError: If there is no audio, or ``batch_size`` or ``repeats`` is below 1.
    """
    transcriber = _transcriber(model, processor, options)
    return _time([transcriber], audio, batch_size=batch_size, warmup=warmup, repeats=repeats)[0]


def compare_latency(
    student: Any,
    teacher: Any,
    audio: Iterable[Any],
    processor: Any = None,
    *,
    batch_size: int = 1,
    warmup: int = 2,
    repeats: int = 3,
    **options: Any,
) -> LatencyComparison:
    """Time a student and its teacher in turns, so that a machine that slows down favours neither.

    Arguments and errors are those of `measure_latency`.
    """
    transcribers = [_transcriber(model, processor, options) for model in (student, teacher)]
    return LatencyComparison(*_time(transcribers, audio, batch_size=batch_size, warmup=warmup, repeats=repeats))


def _transcriber(model: Any, processor: Any, options: dict[str, Any]) -> Transcriber:
    return model if isinstance(model, Transcriber) else Transcriber(model, processor, **{"language": "en", **options})


def _time(
    transcribers: Sequence[Transcriber], audio: Iterable[Any], *, batch_size: int, warmup: int, repeats: int
) -> list[LatencyResult]:
    if batch_size < 1 or repeats < 1:
        raise ValueError(f"batch_size and repeats must be at least 1, not {batch_size} and {repeats}")
    rate, window_s = transcribers[0].sampling_rate, min(model.window_s for model in transcribers)
    samples = [load_audio(recording, rate, max_duration_s=window_s) for recording in audio]
    if not samples:
        raise ValueError("there is no audio to measure with; pass at least one recording")
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    runs = [_runner(transcriber) for transcriber in transcribers]
    for run in runs:
        for batch in islice(cycle(batches), warmup):
            run(batch)
    times: list[list[list[float]]] = [[[] for _ in batches] for _ in runs]
    for repeat in range(repeats):
        for number, batch in enumerate(batches):
            turns = range(len(runs)) if (repeat + number) % 2 == 0 else reversed(range(len(runs)))
            for turn in turns:
                times[turn][number].append(runs[turn](batch))
    audio_s = tuple(sum(map(len, batch)) / rate for batch in batches)
    return [
        LatencyResult(tuple(map(median, medians)), audio_s, batch_size, repeats, str(transcriber.model.device))
        for medians, transcriber in zip(times, transcribers, strict=True)
    ]


def _runner(transcriber: Transcriber) -> Callable[[list[Samples]], float]:
    """Return the function that transcribes a batch and returns the seconds it took."""
    head = output_head(transcriber.model)

    def run(batch: list[Samples]) -> float:
        _synchronize(transcriber.model.device)
        started = time.perf_counter()
        transcriber.transcribe_features(transcriber.extract_features(batch), head=head)
        _synchronize(transcriber.model.device)
        return time.perf_counter() - started

    return run


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

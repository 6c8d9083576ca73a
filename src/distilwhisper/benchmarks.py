"""How fast a model is, on its own and against another."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice, product
from statistics import median
from typing import Any

import torch

from distilwhisper.audio import Samples, load_audio
from distilwhisper.generation import output_head
from distilwhisper.tables import Shown
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
        tokens: For each batch, the tokens that were generated.
        peak_memory_bytes: Most memory of the device that was allocated in a run, the models' own included; on a CPU
            the most that the process ever held, whatever for. None where the system does not say.
    """

    seconds: tuple[float, ...]
    audio_s: tuple[float, ...]
    batch_size: int
    repeats: int
    device: str
    tokens: tuple[int, ...] = ()
    peak_memory_bytes: int | None = None

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

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated in a second of work, features and encoder included."""
        return sum(self.tokens) / sum(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return times and settings by name."""
        return {
            "median_s": self.median_s,
            "rtf": self.rtf,
            "rtfx": self.rtfx,
            "tokens_per_s": self.tokens_per_s,
            "peak_memory_bytes": self.peak_memory_bytes,
            "batch_size": self.batch_size,
            "repeats": self.repeats,
            "device": self.device,
            "seconds": list(self.seconds),
            "audio_s": list(self.audio_s),
            "tokens": list(self.tokens),
        }

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class LatencyComparison(Shown):
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
    times = measure_latencies({"": transcriber}, audio, batch_size=batch_size, warmup=warmup, repeats=repeats)
    return times[""]


def measure_latencies(
    models: Mapping[str, Transcriber],
    audio: Iterable[Any],
    *,
    batch_size: int = 1,
    warmup: int = 2,
    repeats: int = 3,
) -> dict[str, LatencyResult]:
    """Time several models in turns, batch by batch, so that a machine that slows down favours none.

    Arguments and errors are those of `measure_latency`, but for the models: ``Transcriber`` objects by name.
    """
    if batch_size < 1 or repeats < 1:
        raise ValueError(f"batch_size and repeats must be at least 1, not {batch_size} and {repeats}")
    transcribers = list(models.values())
    rate, window_s = transcribers[0].sampling_rate, min(model.window_s for model in transcribers)
    samples = [load_audio(recording, rate, max_duration_s=window_s) for recording in audio]
    if not samples:
        raise ValueError("there is no audio to measure with; pass at least one recording")
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    runs = [_Runner(transcriber) for transcriber in transcribers]
    for run, batch in product(runs, islice(cycle(batches), warmup)):
        run(batch)
    for repeat, (number, batch) in product(range(repeats), enumerate(batches)):
        for run in runs if (repeat + number) % 2 == 0 else reversed(runs):
            run.times.setdefault(id(batch), []).append(run(batch))
    audio_s = tuple(sum(map(len, batch)) / rate for batch in batches)
    return {
        name: LatencyResult(
            tuple(median(run.times[id(batch)]) for batch in batches),
            audio_s,
            batch_size,
            repeats,
            str(run.device),
            tuple(run.tokens[id(batch)] for batch in batches),
            run.peak_memory_bytes,
        )
        for name, run in zip(models, runs, strict=True)
    }


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
    models = {"student": student, "teacher": teacher}
    transcribers = {name: _transcriber(model, processor, options) for name, model in models.items()}
    times = measure_latencies(transcribers, audio, batch_size=batch_size, warmup=warmup, repeats=repeats)
    return LatencyComparison(**times)


def _transcriber(model: Any, processor: Any, options: dict[str, Any]) -> Transcriber:
    return model if isinstance(model, Transcriber) else Transcriber(model, processor, **{"language": "en", **options})


class _Runner:
    """Transcribes batches, and keeps what they took in memory and gave in tokens."""

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber, self.device = transcriber, transcriber.model.device
        self.head = output_head(transcriber.model)
        self.times: dict[int, list[float]] = {}  # by batch
        self.tokens: dict[int, int] = {}
        self.peak_memory_bytes: int | None = None

    def __call__(self, batch: list[Samples]) -> float:
        """Return the seconds that a batch took."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        _synchronize(self.device)
        started = time.perf_counter()
        features = self.transcriber.extract_features(batch)
        transcripts = self.transcriber.transcribe_features(features, head=self.head)
        _synchronize(self.device)
        seconds = time.perf_counter() - started
        self.tokens[id(batch)] = sum(len(transcript.tokens) for transcript in transcripts)
        if (peak := _peak_memory_bytes(self.device)) is not None:
            self.peak_memory_bytes = max(peak, self.peak_memory_bytes or 0)
        return seconds


def _peak_memory_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # Unix alone has it

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

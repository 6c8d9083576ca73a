"""Where in a recording somebody speaks, in frames of 32 ms: Silero's detector, or a plain rule of energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distilwhisper.audio import Samples

SAMPLING_RATE = 16_000
FRAME_SAMPLES = 512
"""Length of a frame: 32 ms at 16 kHz, the step of Silero's detector."""

DETECTORS = ("silero", "energy")

SILENCE_DB = -50.0
"""Level below which a frame is silent, in dB of full scale."""

Levels = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

_MOST_SAMPLES = 500 * FRAME_SAMPLES
_CONTEXT_SAMPLES = 64  # of the frame before, which Silero's model hears again
_HYSTERESIS = 0.15
_FLOOR_PERCENTILE, _FLOOR_MARGIN_DB, _FLOOR_MINUTE = 10, 10.0, 1_875
_INAUDIBLE_DB = -80.0
_EPSILON = 1e-10  # digital silence is -100 dB


def find_speech(blocks: Iterable[Samples], detector: str = "silero", threshold: float = 0.5) -> tuple[Flags, Levels]:
    """Listen to a recording once, in constant memory but for five bytes a frame (560 kB an hour).

    Args:
        blocks: The recording at 16 kHz, in pieces of any length, each ``[samples]``.
        detector: ``silero``, a small neural network that tells speech from music and noise; or ``energy``: a
            frame is speech if it is 10 dB louder than the quietest tenth of the three minutes around it, and not
            silent. That rule takes music and noise that come and go for speech.
        threshold: Probability from which on Silero's detector says speech. It says so until the probability falls
            0.15 below.

    Returns:
        Whether somebody speaks, and the level in dB of full scale, both ``[frames]``; the last frame may be short.

    Raises:
        ImportError: If Silero's detector is asked for and not installed.
        ValueError: For an unknown detector, or a threshold outside 0 to 1.
    """
    if detector not in DETECTORS:
        raise ValueError(f"detector must be one of {DETECTORS}, not {detector!r}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is a probability between 0 and 1, not {threshold}")
    hear = _silero() if detector == "silero" else None
    levels, probabilities = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for frames in _frames(blocks):
        levels.append(10 * np.log10(np.mean(frames**2, axis=1) + _EPSILON))
        if hear is not None:
            inaudible = levels[-1].max() < _INAUDIBLE_DB  # hours of digital silence cost next to nothing
            probabilities.append(np.zeros(len(frames), np.float32) if inaudible else hear(frames))
    level = np.concatenate(levels)
    if hear is None:
        return _is_loud(level), level
    return _with_hysteresis(np.concatenate(probabilities), threshold), level


def runs(flags: Flags) -> npt.NDArray[np.int64]:
    """Return start and end of each run of true values, ``[runs, 2]``."""
    edges = np.flatnonzero(np.diff(np.pad(flags.astype(np.int8), 1)))
    return edges.reshape(-1, 2)


def _frames(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """Cut blocks into frames, ``[frames, samples]``; the last is padded with silence."""
    rest = np.empty(0, np.float32)
    for block in blocks:
        held = np.concatenate([rest, block])
        whole = len(held) // FRAME_SAMPLES * FRAME_SAMPLES
        rest = held[whole:]
        for start in range(0, whole, _MOST_SAMPLES):  # a block may be a recording of hours
            yield held[start : min(start + _MOST_SAMPLES, whole)].reshape(-1, FRAME_SAMPLES)
    if len(rest):
        yield np.pad(rest, (0, FRAME_SAMPLES - len(rest)))[None]


def _is_loud(levels: Levels) -> Flags:
    """Return which frames stand out from the quietest of the minute they are in and of its neighbours."""
    loud = np.zeros(len(levels), np.bool_)
    for start in range(0, len(levels), _FLOOR_MINUTE):
        around = levels[max(start - _FLOOR_MINUTE, 0) : start + 2 * _FLOOR_MINUTE]
        floor = float(np.percentile(around, _FLOOR_PERCENTILE)) + _FLOOR_MARGIN_DB
        minute = slice(start, start + _FLOOR_MINUTE)
        loud[minute] = levels[minute] > max(floor, SILENCE_DB)
    return loud


def _with_hysteresis(probabilities: Levels, threshold: float) -> Flags:
    speech = probabilities >= threshold - _HYSTERESIS
    for start, end in runs(speech):
        speech[start:end] = probabilities[start:end].max() >= threshold
    return speech


def _silero() -> Callable[[Samples], Levels]:
    """Return the detector for one recording: it remembers what it heard."""
    session = _silero_session()
    state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
    context = np.zeros(_CONTEXT_SAMPLES, np.float32)

    def hear(frames: Samples) -> Levels:
        nonlocal context
        contexts = np.vstack([context, frames[:-1, -_CONTEXT_SAMPLES:]])
        context = frames[-1, -_CONTEXT_SAMPLES:]
        inputs = {"input": np.hstack([contexts, frames]), **state}
        speech, state["h"], state["c"] = session.run(["speech_probs", "hn", "cn"], inputs)
        return np.asarray(speech, np.float32)

    return hear


@cache
def _silero_session() -> Any:
    # The package is only looked up, never imported: its import sets the number of threads of the whole process.
    package = find_spec("silero_vad")
    model = package and Path(package.origin or "").parent / "data" / "silero_vad_16k_sequence.onnx"
    if not model or not model.exists() or find_spec("onnxruntime") is None:
        raise ImportError(
            "Silero's voice activity detector is not installed: pip install 'distilwhisper[vad]', "
            "or choose detector='energy'"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # more do not make so small a model faster
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

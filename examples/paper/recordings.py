"""Recordings of the experiments: noise over a data set, and utterances joined to long ones."""

from functools import cache

import numpy as np
from datasets import Audio, Dataset

from distilwhisper import load_audio
from distilwhisper.audio import encode_audio
from distilwhisper.synthesis import add_noise, babble_noise

RATE = 16_000
UTTERANCES = 10
"""Of a long recording that is joined: half a minute to a whole one."""


@cache
def pub_noise(seconds: int = 30, voices: int = 10) -> np.ndarray:
    """Return the noise of a crowded room: voices that all talk at once, ten by default."""
    rng = np.random.default_rng(0)
    layers = [np.concatenate([babble_noise(RATE, rng) for _ in range(seconds)]) for _ in range(voices // 5)]
    return np.sum([np.roll(layer, number * RATE // 2) for number, layer in enumerate(layers)], axis=0)


def white_noise(seconds: int = 30) -> np.ndarray:
    """Return noise with the same power at all frequencies."""
    return np.random.default_rng(0).standard_normal(seconds * RATE, np.float32)


def with_noise(rows: Dataset, noise: np.ndarray, snr_db: np.ndarray | float) -> Dataset:
    """Return a data set with noise over each recording, each at its own ratio of speech to noise or all at one."""
    rng, audio = np.random.default_rng(0), []
    for recording, level in zip(rows["audio"], np.broadcast_to(snr_db, len(rows)), strict=True):
        samples = load_audio(recording, RATE)
        start = rng.integers(len(noise))
        if np.isfinite(level):
            samples = add_noise(samples, np.resize(np.roll(noise, -start), len(samples)), float(level))
        audio.append({"bytes": encode_audio(samples), "path": None})
    return with_audio(rows.remove_columns("audio"), audio)


def with_audio(rows: Dataset, audio: list[dict]) -> Dataset:
    """Return a data set with recordings added."""
    return rows.add_column("audio", audio).cast_column("audio", Audio(RATE, decode=False))


def join(rows: Dataset, count: int, text_column: str, seed: int, window_s: float | None = None) -> Dataset:
    """Return long recordings: the utterances of a set in order, with pauses between them.

    Args:
        rows: The utterances.
        count: Number of recordings.
        text_column: Column of the transcripts.
        seed: Of the pauses.
        window_s: An utterance starts at a whole number of these seconds; None is a pause of half a second to two.
    """
    rng, texts, audio = np.random.default_rng(seed), [], []
    utterances = min(UTTERANCES, len(rows) // count)
    for number in range(count):
        chosen = rows.select(range(number * utterances, (number + 1) * utterances))
        parts = []
        for recording in chosen["audio"]:
            samples = load_audio(recording, RATE)
            pause = -len(samples) % round(window_s * RATE) if window_s else round(rng.uniform(0.5, 2) * RATE)
            parts += [samples, np.zeros(pause, np.float32)]
        texts.append(" ".join(chosen[text_column]))
        audio.append({"bytes": encode_audio(np.concatenate(parts)), "path": None})
    return with_audio(Dataset.from_dict({text_column: texts}), audio)

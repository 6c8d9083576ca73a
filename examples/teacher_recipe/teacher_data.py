"""The teacher's training data: log-mels of synthetic speech, and the token sequences to learn from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import WhisperProcessor

from distilwhisper.audio import load_audio
from distilwhisper.synthesis import CorpusConfig, add_noise, babble_noise, synthesize_corpus
from distilwhisper.tokens import WhisperTokens

FRAMES_PER_S = 100
LETTERS = " abcdefghijklmnopqrstuvwxyz"  # what the CTC head learns; its class 0 is the blank
TRAIN_ONLY = {"validation": 0, "test": 0, "ood_accents": 0, "ood_noise": 0}


def prepare(processor: WhisperProcessor, folder: Path, utterances: int, seed: int, noisy_share: float = 0.3) -> None:
    """Synthesise a corpus and write its log-mels (float16, `[utterances, 80, frames]`) and its rows.

    A part of the utterances lies under white noise or babble at 5 to 40 dB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = synthesize_corpus(CorpusConfig(train=utterances, seed=seed, wrong_share=0, **TRAIN_ONLY))["train"]
    extractor, rng = processor.feature_extractor, np.random.default_rng(seed)
    window = extractor.n_samples
    babbles = [babble_noise(window, rng) for _ in range(60)]
    mels = np.lib.format.open_memmap(folder / "mels.npy", "w+", np.float16, (len(corpus), 80, window // 160))
    for index, row in enumerate(tqdm(corpus, desc="Log-mels")):
        samples = load_audio(row["audio"])
        if rng.random() < noisy_share:
            babble = np.roll(babbles[rng.integers(len(babbles))], rng.integers(window))
            noise = rng.standard_normal(window, np.float32) if rng.random() < 0.5 else babble
            samples = add_noise(samples, noise[: len(samples)], rng.uniform(5, 40))
        mels[index] = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
    mels.flush()
    names = ("speaker_id", "duration_s", "speech_start_s", "speech_end_s")
    rows = [{"text": row["true_text"], **{name: row[name] for name in names}} for row in corpus.remove_columns("audio")]
    (folder / "rows.json").write_text(json.dumps(rows))


class TeacherData:
    """What is learnt from; every draw is a function of the generator that is passed.

    Attributes:
        used: Sorted ids of all tokens that occur.
        letters: The CTC labels of each utterance.
    """

    def __init__(self, processor: WhisperProcessor, folder: Path, batch_size: int) -> None:
        self.batch_size, self.tokens = batch_size, WhisperTokens.from_tokenizer(processor.tokenizer)
        self.mels = np.load(folder / "mels.npy", mmap_mode="r")
        self.rows = json.loads((folder / "rows.json").read_text())
        self.durations = np.array([row["duration_s"] for row in self.rows])
        sentences = [row["text"] for row in self.rows]
        self.texts = [processor.tokenizer(" " + text, add_special_tokens=False).input_ids for text in sentences]
        self.letters = [torch.tensor([LETTERS.index(c) + 1 for c in s.lower() if c in LETTERS]) for s in sentences]
        self.by_speaker: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            self.by_speaker.setdefault(row["speaker_id"], []).append(index)
        tokens, seconds = self.tokens, self.mels.shape[-1] // FRAMES_PER_S
        special = [tokens.start_of_prev, *tokens.prefix("en"), tokens.end_of_text]
        times = range(tokens.timestamp_begin, tokens.timestamp_begin + 50 * seconds + 1)
        self.used = sorted({*special, *times, *(token for text in self.texts for token in text)})

    def batches(self, rng: np.random.Generator, short_only: bool) -> list[np.ndarray]:
        """Return an epoch of batches of like length, of all utterances or of the shorter half."""
        longest = np.median(self.durations) if short_only else np.inf
        chosen = rng.permutation(np.flatnonzero(self.durations < longest))
        batches: list[np.ndarray] = []
        for pool in np.array_split(chosen, max(1, len(chosen) // (32 * self.batch_size))):
            pool = pool[np.argsort(self.durations[pool])]
            batches += [pool[at : at + self.batch_size] for at in range(0, len(pool), self.batch_size)]
        return [batches[index] for index in rng.permutation(len(batches))]

    def features(self, batch: np.ndarray, rng: np.random.Generator, whole_window: float) -> torch.Tensor:
        """Return log-mels `[batch, 80, frames]` with SpecAugment, cropped to the longest but for some batches."""
        whole, longest = self.mels.shape[-1], self.durations[batch].max() + rng.uniform(0.05, 0.4)
        cropped = min(whole, 20 * round(longest * FRAMES_PER_S / 20 + 0.5))
        mels = self.mels[batch][:, :, : whole if rng.random() < whole_window else cropped].astype(np.float32)
        for mel in mels:
            for axis, most in ((0, 8), (0, 8), (1, 12), (1, 12)):
                width = rng.integers(most + 1)
                start = rng.integers(mel.shape[axis] - width)
                mel.swapaxes(0, axis)[start : start + width] = 0.0
        return torch.from_numpy(mels)

    def sequence(self, index: int, rng: np.random.Generator) -> tuple[list[int], int]:
        """Return all tokens of an utterance, and how many at the start, a prompt, are not to be learnt.

        Half of the sequences have timestamps; 15 % are prompted with one or two sentences of the same voice.
        """
        tokens, row, text = self.tokens, self.rows[index], self.texts[index]
        prompt: list[int] = []
        if rng.random() < 0.15:
            previous = rng.choice(self.by_speaker[row["speaker_id"]], size=rng.integers(1, 3))
            prompt = [tokens.start_of_prev, *(token for other in previous for token in self.texts[other])]
        timestamps = bool(rng.random() < 0.5)
        if timestamps:
            first, last = (tokens.timestamp_begin + round(row[f"speech_{end}_s"] * 50) for end in ("start", "end"))
            text = [first, *text, last]
        prefix = tokens.prefix("en", "transcribe", timestamps=timestamps)
        return [*prompt, *prefix, *text, tokens.end_of_text], len(prompt)

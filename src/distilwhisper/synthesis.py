"""A speech corpus made on the spot by eSpeak NG: the data of the examples, offline and the same everywhere.

Every utterance is a function of (seed, split, index) alone, so that a longer corpus starts with the shorter one.
eSpeak NG comes with the PyPI package ``espeakng-loader``: ``pip install distilwhisper[demo]``.
"""

from __future__ import annotations

import _ctypes
import ctypes
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
from datasets import Audio, Dataset, DatasetDict
from datasets.utils import tqdm

from distilwhisper.audio import encode_audio
from distilwhisper.grammar import draw_sentence, partition, wrong_transcript

Samples = npt.NDArray[np.float32]

SAMPLING_RATE = 16_000
# No variant with "breath" is among them: eSpeak makes it of random numbers and of memory that was never set.
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-us-nyc", "en-gb-scotland")
VARIANTS = (
    *("f1", "f4", "m1", "m2", "m3", "m4", "m7", "Alex", "Andy", "Annie", "Denis", "Gene", "Hugo", "Lee", "Marco"),
    *("Michael", "adam", "antonio", "belinda", "boris", "david", "ed", "ian", "linda", "max", "michel", "paul"),
    *("rob", "steph2"),
)
UNHEARD_ACCENTS = ("en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
UNHEARD_VARIANTS = ("m5", "m8", "Andrea", "Henrique", "Mike", "aunty", "grandma", "pablo", "robert", "shelby", "steph")
"""Accents and variants of the voices in ``ood_accents``; no other split has either."""

SPLITS = ("train", "validation", "test", "ood_accents", "ood_noise")

_SYNCHRONOUS, _UTF8, _RATE, _PITCH = 2, 1, 1, 3  # of espeak-ng/speak_lib.h
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
# dlclose on Linux and macOS, FreeLibrary on Windows: ctypes has no public name for it.
_UNLOAD: Callable[[int], object] = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # type: ignore[attr-defined]
_LOCK = threading.Lock()
_SILENCE_S = 0.3
_RETRIES = 100
_BABBLE_VOICES = 5


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What a corpus holds.

    Attributes:
        train: Number of utterances of the split ``train``.
        validation: Heard voices, sentences that no ``train`` has.
        test: Heard voices, new sentences.
        ood_accents: New sentences in accents and voice variants that no other split has.
        ood_noise: New sentences, heard voices, white or babble noise over them.
        seed: Another seed gives other utterances of the same language and voices.
        wrong_share: Share of the ``train`` utterances whose ``text`` is not what was said.
        noise_snr_db: Ratio of speech to noise in ``ood_noise``, in dB.
        max_duration_s: What is longer is drawn anew.
    """

    train: int = 2_000
    validation: int = 100
    test: int = 200
    ood_accents: int = 200
    ood_noise: int = 200
    seed: int = 0
    wrong_share: float = 0.1
    noise_snr_db: float = 10.0
    max_duration_s: float = 5.0

    def __post_init__(self) -> None:
        for name in SPLITS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a number of utterances, not {getattr(self, name)}")
        if not 0 <= self.wrong_share <= 1:
            raise ValueError(f"wrong_share is a fraction from 0 to 1, not {self.wrong_share}")
        if self.max_duration_s < 3:
            raise ValueError(f"max_duration_s must be 3 or more to hold a sentence, not {self.max_duration_s}")


def synthesize_corpus(config: CorpusConfig | None = None) -> DatasetDict:
    """Synthesise a corpus.

    Args:
        config: Sizes, seed and shares; by default those of `CorpusConfig`.

    Returns:
        The splits that are not empty. Columns: ``id``; ``audio``, FLAC bytes (16 kHz, mono, 16 bit); ``text``,
        the reference transcript; ``true_text``, what was said; ``is_wrong``, whether they differ;
        ``speaker_id``, the eSpeak voice, and its ``accent``; ``duration_s``, ``speech_start_s`` and
        ``speech_end_s`` in seconds.

    Raises:
        ImportError: If eSpeak NG is missing.
    """
    config = config or CorpusConfig()
    _espeak()
    sizes = {split: size for split, size in asdict(config).items() if split in SPLITS and size}
    corpus = DatasetDict()
    with tqdm(total=sum(sizes.values()), desc="Synthesising", unit="utterance") as bar:
        for split, size in sizes.items():
            rows = []
            for index in range(size):
                rows.append(_utterance(config, split, index))
                bar.update()
            corpus[split] = Dataset.from_list(rows).cast_column("audio", Audio(SAMPLING_RATE, decode=False))
    return corpus


def synthesize(text: str, voice: str = "en-us", *, rate_wpm: int = 175, pitch: int = 50) -> Samples:
    """Say a text.

    Args:
        text: English text.
        voice: An eSpeak NG voice, alone or with a variant: ``en-us``, ``en-gb-scotland+f2``.
        rate_wpm: Speed in words a minute, 80 to 450.
        pitch: 0 to 100.

    Returns:
        Mono speech at 16 kHz in [-1, 1], ``[samples]``, without silence around it.

    Raises:
        ImportError: If eSpeak NG is missing.
        ValueError: For an unknown voice, a rate or pitch out of range, or a text without a word.
    """
    if not 80 <= rate_wpm <= 450 or not 0 <= pitch <= 100:
        raise ValueError(f"rate_wpm must be 80 to 450 and pitch 0 to 100, not {rate_wpm} and {pitch}")
    with _LOCK:
        pcm, rate = _speak(text, voice, {_RATE: rate_wpm, _PITCH: pitch})
    samples = soxr.resample(np.frombuffer(pcm, np.int16).astype(np.float32) / 2**15, rate, SAMPLING_RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max(initial=0))
    if not loud.size:
        raise ValueError(f"eSpeak NG said nothing for {text!r}: it holds no word")
    speech: Samples = np.clip(samples[loud[0] : loud[-1] + 1], -1, 1)
    return speech


def add_noise(samples: Samples, noise: Samples, snr_db: float) -> Samples:
    """Lay noise over samples of the same length, at a ratio of their mean powers in dB; the peak stays below 1."""
    ratio = np.sqrt(np.mean(samples**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    mixed: Samples = samples + np.float32(ratio) * noise
    return mixed * np.float32(min(1.0, 0.99 / np.abs(mixed).max()))


def babble_noise(length: int, rng: np.random.Generator) -> Samples:
    """Return ``length`` samples of several heard voices that talk at once."""
    noise = np.zeros(length, np.float32)
    for _ in range(_BABBLE_VOICES):
        speech = _say(draw_sentence(rng), _draw_voice(rng, "train")[1], rng)
        noise += np.roll(np.resize(speech / np.sqrt(np.mean(speech**2)), length), rng.integers(length))
    return noise


def _utterance(config: CorpusConfig, split: str, index: int) -> dict[str, Any]:
    """Return one row of a corpus."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    is_wrong = bool(rng.random() < config.wrong_share) and split == "train"
    for _ in range(_RETRIES):
        sentence = _draw_sentence(rng, split)
        accent, voice = _draw_voice(rng, split)
        speech = _say(sentence, voice, rng)
        before, after = (round(rng.uniform(0, _SILENCE_S) * SAMPLING_RATE) for _ in range(2))
        samples = np.pad(speech * np.float32(rng.uniform(0.3, 0.95) / np.abs(speech).max()), (before, after))
        if len(samples) <= config.max_duration_s * SAMPLING_RATE:
            break
    else:
        raise RuntimeError(f"{_RETRIES} sentences in a row were longer than {config.max_duration_s} s")
    if split == "ood_noise":
        noise = rng.standard_normal(len(samples), np.float32) if index % 2 else babble_noise(len(samples), rng)
        samples = add_noise(samples, noise, config.noise_snr_db)
    name = f"{split}-{config.seed}-{index:06d}"
    return {
        "id": name,
        "audio": {"bytes": encode_audio(samples, SAMPLING_RATE), "path": f"{name}.flac"},
        "text": wrong_transcript(sentence, rng) if is_wrong else sentence,
        "true_text": sentence,
        "is_wrong": is_wrong,
        "speaker_id": voice,
        "accent": accent,
        "duration_s": len(samples) / SAMPLING_RATE,
        "speech_start_s": before / SAMPLING_RATE,
        "speech_end_s": (before + len(speech)) / SAMPLING_RATE,
    }


def _draw_sentence(rng: np.random.Generator, split: str) -> str:
    wanted = split if split in ("train", "validation") else "test"
    while partition(sentence := draw_sentence(rng)) != wanted:
        pass
    return sentence


def _draw_voice(rng: np.random.Generator, split: str) -> tuple[str, str]:
    """Return an accent and a voice of it."""
    unheard = split == "ood_accents"
    accents, variants = (UNHEARD_ACCENTS, UNHEARD_VARIANTS) if unheard else (ACCENTS, VARIANTS)
    accent = accents[rng.integers(len(accents))]
    return accent, f"{accent}+{variants[rng.integers(len(variants))]}"


def _say(sentence: str, voice: str, rng: np.random.Generator) -> Samples:
    return synthesize(sentence, voice, rate_wpm=int(rng.integers(150, 211)), pitch=int(rng.integers(30, 71)))


def _speak(text: str, voice: str, parameters: dict[int, int]) -> tuple[bytes, int]:
    """Return 16-bit samples and their rate.

    The library is loaded anew for every text (6 ms): what it says depends on all that it said before, through
    static variables that neither ``espeak_Terminate`` nor a random seed resets.
    """
    espeak = _espeak()
    library = ctypes.CDLL(espeak.get_library_path())
    pcm = bytearray()

    def collect(samples: int | None, count: int, _events: int | None) -> int:
        if samples:
            pcm.extend(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _CALLBACK(collect)
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeak.get_data_path()).encode(), 0)
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"eSpeak NG has no voice {voice!r}; try one such as 'en-us' or 'en+f2' (en is British)")
        for parameter, value in parameters.items():
            library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, _UTF8, None, None)
        library.espeak_Terminate()
    finally:
        _UNLOAD(library._handle)
    return bytes(pcm), rate


@cache
def _espeak() -> ModuleType:
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "synthetic speech needs eSpeak NG, which is not installed: pip install 'distilwhisper[demo]'"
        ) from error
    return espeakng_loader  # type: ignore[no-any-return]

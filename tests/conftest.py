"""Small real things: a tiny random Whisper with the real vocabulary, and synthetic recordings."""

from __future__ import annotations

import copy
import io
import os
from pathlib import Path

# Before torch: more threads than cores make these small matrices ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

REPOSITORY = Path(__file__).parents[1]
TEACHER = REPOSITORY / "examples" / "teacher"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

SENTENCES = ("The old captain sold his boat.", "Two boys ran home.", "She reads the letter again.", "Nobody came.")


def tone(seconds: float = 1.0, pitch_hz: float = 220.0, rate: int = 16_000) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * pitch_hz * time)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = 16_000, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


def audio_dataset(recordings: list[bytes | None], **columns: list) -> Dataset:
    """A data set with an undecoded audio column and others beside it."""
    audio = [{"bytes": recording, "path": None} for recording in recordings]
    return Dataset.from_dict({"audio": audio, **columns}).cast_column("audio", Audio(decode=False))


@pytest.fixture(scope="session")
def processor() -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(TEACHER)


@pytest.fixture(scope="session")
def tokenizer(processor):
    return processor.tokenizer


def tiny_whisper(
    decoder_layers: int = 4, encoder_layers: int = 2, seed: int = 0, **changes
) -> WhisperForConditionalGeneration:
    """A random Whisper with the real vocabulary and a 5 s window, weights large enough for clear argmaxes."""
    config = WhisperConfig(
        **{
            "vocab_size": 51_865,
            "d_model": 16,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_source_positions": 250,
            "init_std": 0.2,
            "pad_token_id": 50_257,
            "bos_token_id": 50_257,
            "eos_token_id": 50_257,
            "decoder_start_token_id": 50_258,
            **changes,
        }
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig.from_pretrained(TEACHER)
    return model


def shaken_whisper(seed: int = 0) -> WhisperForConditionalGeneration:
    """A tiny Whisper whose every parameter of the decoder matters, biases too."""
    model, generator = tiny_whisper(seed=seed, max_target_positions=64), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.decoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_teacher() -> WhisperForConditionalGeneration:
    return tiny_whisper()


@pytest.fixture(scope="session")
def wide_teacher() -> WhisperForConditionalGeneration:
    """The trained teacher with a window of 30 s, which it transcribes as well; some runtimes know no other."""
    narrow = WhisperForConditionalGeneration.from_pretrained(TEACHER, dtype=torch.float32)
    config = copy.deepcopy(narrow.config)
    config.max_source_positions = 1500
    wide = WhisperForConditionalGeneration(config)
    positions = {"model.encoder.embed_positions.weight": wide.model.encoder.embed_positions.weight}
    wide.load_state_dict({**narrow.state_dict(), **positions})
    wide.generation_config = narrow.generation_config
    return wide.eval()


@pytest.fixture(scope="session")
def wide_processor(processor) -> WhisperProcessor:
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=80), processor.tokenizer)


@pytest.fixture
def labelled_dataset(tokenizer) -> Dataset:
    """Four labelled recordings: timestamps on the first two, a prompt on the second and the fourth."""
    ids = [tokenizer(" " + sentence, add_special_tokens=False).input_ids for sentence in SENTENCES]
    first, last = tokenizer.convert_tokens_to_ids(["<|0.00|>", "<|1.00|>"])
    labels = [[first, *row, last] if index < 2 else row for index, row in enumerate(ids)]
    prompts = [[], ids[0], [], ids[2]]
    return audio_dataset(
        [encoded(tone(1.0 + index / 4, 200 + 60 * index)) for index in range(4)],
        id=[f"clip-{index}" for index in range(4)],
        text=list(SENTENCES),
        whisper_transcript=list(SENTENCES),
        whisper_tokens=labels,
        whisper_prompt=prompts,
        whisper_language=["en"] * 4,
        whisper_task=["transcribe"] * 4,
        whisper_capped=[False] * 4,
    )


@pytest.fixture(scope="session")
def teacher() -> WhisperForConditionalGeneration:
    """The trained teacher of the examples; tests leave it as it is."""
    return WhisperForConditionalGeneration.from_pretrained(TEACHER, dtype="float32").eval()


def spoken(count: int, seed: int = 1) -> list[np.ndarray]:
    """Utterances that the teacher understands."""
    from distilwhisper.audio import load_audio
    from distilwhisper.synthesis import CorpusConfig, synthesize_corpus

    sizes = {"train": 0, "validation": 0, "test": count, "ood_accents": 0, "ood_noise": 0}
    return [load_audio(row["audio"]) for row in synthesize_corpus(CorpusConfig(**sizes, seed=seed))["test"]]

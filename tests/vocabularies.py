"""Tiny random models with each of the published vocabularies: English-only, 99 and 100 languages."""

import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import REPOSITORY, TEACHER, tiny_whisper
from transformers import WhisperFeatureExtractor, WhisperProcessor

KINDS = {"english": (51_864, 80), "99 languages": (51_865, 80), "100 languages": (51_866, 128)}
"""Size of the vocabulary and number of mel bins."""


@cache
def processor_and_generation_config(size, mels, window_s):
    whisper = pytest.importorskip("whisper", reason="the vocabularies are built from the package openai-whisper")
    sys.path.insert(0, str(REPOSITORY / "examples" / "teacher_recipe"))
    import build_tokenizer as recipe

    assets = Path(whisper.__file__).parent / "assets" / ("gpt2" if size == 51_864 else "multilingual")
    recipe.LANGUAGE_COUNT = size - 51_766 if size > 51_864 else 99
    tokenizer = recipe.build_tokenizer(assets.with_suffix(".tiktoken").read_bytes(), TEACHER / "normalizer.json")
    assert len(tokenizer) == size
    generation = recipe.generation_config(tokenizer)
    # As in the published models; openai-whisper never gives these tokens, whatever the model wants.
    names = "startoftranscript translate transcribe startoflm startofprev nocaptions".split()
    generation.suppress_tokens = tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    if size == 51_864:
        generation.is_multilingual = False
        del generation.lang_to_id, generation.task_to_id
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s), tokenizer), generation


def model_and_processor(kind, *, window_s=1, **changes):
    size, mels = KINDS[kind]
    processor, generation = processor_and_generation_config(size, mels, window_s)
    ids = {name: getattr(generation, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    ids["decoder_start_token_id"] = generation.decoder_start_token_id
    model = tiny_whisper(vocab_size=size, num_mel_bins=mels, max_source_positions=50 * window_s, **ids, **changes)
    model.generation_config = generation
    return model, processor

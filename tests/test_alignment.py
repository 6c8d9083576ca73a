import copy

import numpy as np
import pytest
import torch
from conftest import TEACHER, tiny_whisper, tone
from transformers import WhisperForConditionalGeneration

from distilwhisper.alignment import alignment_scores, find_alignment_heads
from distilwhisper.grammar import draw_sentence
from distilwhisper.synthesis import synthesize


@pytest.fixture(scope="module")
def teacher():
    return WhisperForConditionalGeneration.from_pretrained(TEACHER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(1)
    return [draw_sentence(rng) for _ in range(8)]


def word_start_errors(model, processor, sentences) -> list[float]:
    """How far Transformers' word starts are from eSpeak's, in seconds; a word starts where the words before it end."""
    errors = []
    for sentence in sentences:
        words, samples = sentence.split(), synthesize(sentence)
        starts = [0, *(len(synthesize(" ".join(words[:end]))) / 16_000 for end in range(1, len(words)))]
        inputs = processor(samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        output = model.generate(**inputs, language="en", return_token_timestamps=True, return_dict_in_generate=True)
        tokens = processor.tokenizer.convert_ids_to_tokens(output["sequences"][0])
        times = output["token_timestamps"][0].tolist()
        heard = [time for token, time in zip(tokens, times, strict=True) if token.startswith("Ġ")]
        if len(heard) == len(words):
            errors += [abs(time - start) for time, start in zip(heard, starts, strict=True)]
    return errors


@pytest.mark.slow
def test_found_heads_make_better_word_timestamps_than_the_upper_half_of_all(teacher, processor, sentences):
    found = find_alignment_heads(teacher, processor, [synthesize(sentence) for sentence in sentences[:4]])
    teacher = copy.deepcopy(teacher)  # token times make Transformers switch the model to eager attention, for good
    errors = {}
    for name, heads in {
        "found": found,
        "default": [[layer, head] for layer in range(8, 16) for head in range(4)],
    }.items():
        teacher.generation_config.alignment_heads = heads
        errors[name] = word_start_errors(teacher, processor, sentences[4:])
    assert len(errors["found"]) > 15
    assert np.mean(errors["found"]) < 0.9 * np.mean(errors["default"])


def test_heads_are_in_the_order_of_their_scores_and_the_kernel_stays(teacher, processor, sentences):
    kernel = teacher.config._attn_implementation
    audio = [synthesize(sentence) for sentence in sentences[:2]]
    scores = alignment_scores(teacher, processor, audio)
    heads = find_alignment_heads(teacher, processor, audio, max_heads=3)
    assert scores.shape == (16, 4)
    assert (scores.abs() <= 1).all()
    found = [scores[layer, head].item() for layer, head in heads]
    assert found == pytest.approx(scores.flatten().topk(3).values.tolist()[: len(found)])
    assert found[-1] >= found[0] / 2 > 0
    assert teacher.config._attn_implementation == kernel != "eager"


def test_a_model_that_looks_everywhere_alike_has_no_alignment_heads(processor):
    model = tiny_whisper(decoder_layers=2)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.encoder_attn.q_proj.weight.zero_()
            layer.encoder_attn.q_proj.bias.zero_()
    with pytest.raises(ValueError, match="no head of this model follows the audio"):
        find_alignment_heads(model, processor, [tone(2.0)])


def test_a_model_that_hears_nothing_cannot_be_aligned(processor):
    model = tiny_whisper(decoder_layers=2)
    model.generation_config.suppress_tokens = [token for token in range(51_865) if token != 50_257]
    model.generation_config.begin_suppress_tokens = None
    with pytest.raises(ValueError, match="hears no words"):
        find_alignment_heads(model, processor, [tone(2.0)])

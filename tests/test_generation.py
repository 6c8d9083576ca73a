import pytest
import torch
from conftest import tiny_whisper

from distilwhisper.generation import detect_languages, encode, generate_tokens, output_head
from distilwhisper.tokens import WhisperTokens

EN, FR, TRANSCRIBE, NO_TIMESTAMPS, START, END = 50_259, 50_265, 50_359, 50_363, 50_258, 50_257
PLAIN, TIMED = [START, EN, TRANSCRIBE, NO_TIMESTAMPS], [START, EN, TRANSCRIBE]


def talkative(seed: int = 0, ending: float = 0.9, **changes):
    """A random model whose rows say different things and end at different times."""
    model = tiny_whisper(seed=seed, max_target_positions=64, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (model.model.encoder.embed_positions, model.model.decoder.embed_positions):
            part.weight.copy_(torch.randn(part.weight.shape, generator=generator))
        for layer in model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(8)
        model.proj_out = torch.nn.Linear(model.config.d_model, model.config.vocab_size, bias=False)
        model.proj_out.weight.copy_(torch.randn(model.proj_out.weight.shape, generator=generator))
        model.proj_out.weight[END] *= 1 + ending
    return model


def features(batch: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 80, 500, generator=torch.Generator().manual_seed(seed))


def published(model, inputs, prefix, **options) -> list[list[int]]:
    """What `model.generate` says for one window, end of text and padding removed."""
    output = model.generate(
        inputs, decoder_input_ids=torch.tensor([prefix] * len(inputs)), force_unique_generate_call=True,
        max_new_tokens=model.config.max_target_positions - len(prefix), **options,
    )  # fmt: skip
    rows = [row[len(prefix) :] if row[: len(prefix)] == prefix else row for row in output.tolist()]
    return [row[: row.index(END)] if END in row else row for row in rows]


@pytest.mark.parametrize("prefix", [PLAIN, TIMED], ids=["plain", "timestamps"])
@pytest.mark.parametrize("suppressed", [[], [42_409, 2_036, 50_380]], ids=["all", "suppressed"])
def test_greedy_tokens_are_those_of_generate(prefix, suppressed):
    """Guards P1: whatever `generate` returns, ours are the generated tokens alone."""
    model = talkative()
    model.generation_config.suppress_tokens = suppressed
    model.generation_config.begin_suppress_tokens = [220, END, 28_945]
    ours = generate_tokens(model, [prefix] * 8, input_features=features())
    assert ours.ids == published(model, features(), prefix, language="en", return_timestamps=prefix == TIMED)
    assert len({len(ids) for ids in ours.ids}) >= 3  # rows left the batch one after another


def test_greedy_tokens_of_an_english_only_model_are_those_of_generate():
    model = talkative()
    model.generation_config.is_multilingual = False
    ours = generate_tokens(model, [[START, NO_TIMESTAMPS]] * 8, input_features=features())
    assert ours.ids == published(model, features(), [START, NO_TIMESTAMPS])


def test_a_row_says_the_same_alone_and_in_a_batch():
    model = talkative()
    together = generate_tokens(model, [PLAIN] * 8, input_features=features())
    for row in range(8):
        alone = generate_tokens(model, [PLAIN], input_features=features()[row : row + 1])
        assert alone.ids[0] == together.ids[row]
        assert alone.sum_logprobs[0] == pytest.approx(together.sum_logprobs[row], rel=1e-4)


def test_rows_may_have_prefixes_of_their_own():
    model, french = talkative(), [START, FR, TRANSCRIBE, NO_TIMESTAMPS]
    both = generate_tokens(model, [PLAIN, french], input_features=features(2))
    assert both.ids[1] == generate_tokens(model, [french], input_features=features(2)[1:]).ids[0]


def test_log_probabilities_are_those_of_one_forward_pass():
    model = talkative()
    generated = generate_tokens(model, [PLAIN] * 8, input_features=features(), no_speech_token=50_362)
    for row, ids in enumerate(generated.ids):
        target = ids if generated.capped[row] else [*ids, END]
        with torch.no_grad():
            inputs = torch.tensor([[*PLAIN, *target[:-1]]])
            logits = model(features()[row : row + 1], decoder_input_ids=inputs).logits[0].double()
        no_speech = logits[0].softmax(-1)[50_362]
        logits = logits[len(PLAIN) - 1 :]
        logits[0, [220, END]] = -torch.inf
        logprobs = logits.log_softmax(-1)[range(len(target)), target]
        assert generated.sum_logprobs[row] == pytest.approx(float(logprobs.sum()), rel=1e-4)
        assert generated.avg_logprobs[row] == pytest.approx(float(logprobs.mean()), rel=1e-4)
        assert generated.no_speech_probs[row] == pytest.approx(float(no_speech), rel=1e-3)


def test_a_transcript_that_hits_the_limit_is_capped_and_the_others_are_not():
    """Guards T16."""
    generated = generate_tokens(talkative(), [PLAIN] * 8, input_features=features())
    assert [len(ids) == 60 for ids in generated.ids] == generated.capped
    assert {True, False} == set(generated.capped)


def test_the_limit_is_what_the_decoder_has_positions_for_and_not_the_length_in_a_config():
    """Guards T16."""
    model = talkative(ending=0.0)
    model.generation_config.max_length = 20
    assert {len(ids) for ids in generate_tokens(model, [PLAIN], input_features=features(1)).ids} == {60}
    for asked, given in ((7, 7), (448, 60)):
        generated = generate_tokens(model, [PLAIN], input_features=features(1), max_new_tokens=asked)
        assert len(generated.ids[0]) == given
    with pytest.raises(ValueError, match="leaves no room"):
        generate_tokens(model, [PLAIN * 16], input_features=features(1))


@pytest.mark.parametrize("prefix", [PLAIN, TIMED], ids=["plain", "timestamps"])
def test_beam_search_finds_the_tokens_of_generate(prefix):
    model = talkative()
    ours = generate_tokens(model, [prefix] * 3, input_features=features(3), num_beams=3, no_speech_token=50_362)
    options = {"language": "en", "return_timestamps": prefix == TIMED, "num_beams": 3}
    assert ours.ids == published(model, features(3), prefix, **options)
    assert all(0 < probability < 1 for probability in ours.no_speech_probs)


def test_the_log_probability_of_a_beam_is_that_of_its_tokens():
    model = talkative()
    model.generation_config.begin_suppress_tokens = None
    generated = generate_tokens(model, [PLAIN], input_features=features(1), num_beams=2, max_new_tokens=5)
    target = generated.ids[0] if generated.capped[0] else [*generated.ids[0], END]
    with torch.no_grad():
        logits = model(features(1), decoder_input_ids=torch.tensor([[*PLAIN, *target[:-1]]])).logits[0, 3:]
    logprobs = logits.log_softmax(-1)[range(len(target)), target]
    assert generated.sum_logprobs[0] == pytest.approx(float(logprobs.sum()), rel=1e-4)


def test_the_language_is_detected_from_the_first_step(tokenizer):
    model, tokens = talkative(), WhisperTokens.from_tokenizer(tokenizer)
    found = detect_languages(model, tokens, encode(model, features()))
    expected = model.detect_language(features())
    assert [tokens.languages[code] for code in found] == expected.tolist()
    assert len(set(found)) > 1


def test_the_mode_of_every_module_is_restored():
    model = talkative().train()
    model.model.encoder.eval()
    generate_tokens(model, [PLAIN], input_features=features(1), max_new_tokens=2)
    assert model.training
    assert model.model.decoder.layers[0].training
    assert not model.model.encoder.layers[0].training


def test_a_head_is_never_stale():
    model, hidden = talkative(), torch.randn(2, 16)
    before = output_head(model)(hidden)
    torch.testing.assert_close(before, model.proj_out(hidden))
    with torch.no_grad():
        model.proj_out.weight.mul_(2)
        torch.testing.assert_close(output_head(model)(hidden), 2 * before)

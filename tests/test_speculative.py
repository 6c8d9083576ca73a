import copy

import pytest
import torch
from conftest import spoken, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import EN, NO_TIMESTAMPS, PLAIN, START, TIMED, TRANSCRIBE, features, talkative

from distilwhisper.generation import encode, generate_tokens
from distilwhisper.speculative import SpeculationReport, generate_speculatively
from distilwhisper.student import create_student
from distilwhisper.transcription import Transcriber


def forgetful(model, share: float):
    """A copy that says the same, most of the time."""
    student, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        noise = torch.randn(student.proj_out.weight.shape, generator=generator)
        student.proj_out.weight.add_(share * noise)
    return student


@pytest.mark.parametrize("prefix", [PLAIN, TIMED], ids=["plain", "timestamps"])
@pytest.mark.parametrize("share", [0.0, 0.2, 20.0])
def test_tokens_are_the_teachers_own_whatever_the_assistant_says(prefix, share):
    """Transformers 5.23 gives other tokens with timestamps, drops begin_suppress_tokens and takes no batch."""
    model = talkative()
    model.generation_config.suppress_tokens = [42_409, 2_036, 50_380]
    model.generation_config.begin_suppress_tokens = [220, 50_257, 28_945]
    states, report = encode(model, features()), SpeculationReport()
    alone = generate_tokens(model, [prefix] * 8, encoder_hidden_states=states, no_speech_token=50_362)
    together = generate_speculatively(
        model, forgetful(model, share), [prefix] * 8, encoder_hidden_states=states, assistant_states=states,
        timestamps=prefix == TIMED, draft_tokens=5, no_speech_token=50_362, report=report,
    )  # fmt: skip
    assert together.ids == alone.ids
    assert together.capped == alone.capped
    assert together.sum_logprobs == pytest.approx(alone.sum_logprobs, rel=1e-4)
    assert together.no_speech_probs == pytest.approx(alone.no_speech_probs, rel=1e-4)
    assert report.tokens == sum(map(len, alone.ids)) + alone.capped.count(False)
    assert (report.acceptance_rate == 1.0) == (share == 0.0)


MODEL = talkative()
STUDENTS = [forgetful(MODEL, share) for share in (0.2, 0.6)]


@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 50_000), max_size=9), min_size=1, max_size=4),
    student=st.sampled_from(STUDENTS),
    draft_tokens=st.integers(1, 9),
    limit=st.sampled_from([1, 2, 7, None]),
    timed=st.booleans(),
)
def test_rows_with_prompts_of_any_length_advance_on_their_own(prompts, student, draft_tokens, limit, timed):
    """The last rows come to the last position of the decoder, where nothing may be fed beyond it."""
    states = encode(MODEL, features(len(prompts)))
    opening = [START, EN, TRANSCRIBE] if timed else [START, EN, TRANSCRIBE, NO_TIMESTAMPS]
    prefixes = [[50_361, *prompt, *opening] if prompt else opening for prompt in prompts]
    found = generate_speculatively(
        MODEL, student, prefixes, encoder_hidden_states=states, assistant_states=states, timestamps=timed,
        max_new_tokens=limit, draft_tokens=draft_tokens,
    )  # fmt: skip
    for row, prefix in enumerate(prefixes):
        alone = generate_tokens(
            MODEL, [prefix], encoder_hidden_states=states[row : row + 1], timestamps=timed, max_new_tokens=limit
        )
        assert (found.ids[row], found.capped[row]) == (alone.ids[0], alone.capped[0])


@pytest.mark.parametrize(
    ("count", "batch_size"), [(20, 4), *(pytest.param(200, size, marks=pytest.mark.slow) for size in (1, 4))]
)
def test_utterances_get_the_tokens_of_the_teacher_alone(teacher, processor, count, batch_size):
    utterances, student = spoken(count, seed=3), create_student(teacher, decoder_layers=2)
    for timestamps in (False, True):
        options = {"language": "en", "return_timestamps": timestamps, "batch_size": batch_size, "max_new_tokens": 40}
        alone = Transcriber(teacher, processor, **options)(utterances)
        assisted = Transcriber(teacher, processor, assistant=student, **options)
        assert [transcript.tokens for transcript in assisted(utterances)] == [one.tokens for one in alone]
        assert assisted.speculation.drafted > 0


def test_a_common_encoder_runs_once(processor):
    """Guards E5: a common encoder was assumed, and not checked."""
    calls = [0, 0]
    for assistant, runs in ((None, 0), (talkative(seed=1), 1)):
        model = talkative()
        assistant = assistant or create_student(model, decoder_layers=2)
        for place, one in enumerate((model, assistant)):
            one.model.encoder.register_forward_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
        transcriber = Transcriber(model, processor, language="en", assistant=assistant, max_new_tokens=9)
        calls[:] = [0, 0]
        tokens = transcriber(tone(1.0)).tokens
        assert calls == [1, runs]
        assert tokens == Transcriber(model, processor, language="en", max_new_tokens=9)(tone(1.0)).tokens


def test_long_form_is_assisted_too(processor):
    model, audio = talkative(), [tone(12.0), tone(7.0, 330)]
    for options in ({"long_form": "sequential", "condition_on_prev": True}, {"long_form": "chunked"}):
        settings = {"language": "en", "max_new_tokens": 20, **options}
        assisted = Transcriber(model, processor, assistant=forgetful(model, 0.4), **settings)
        assert [one.tokens for one in assisted(audio)] == [
            one.tokens for one in Transcriber(model, processor, **settings)(audio)
        ]


def test_an_assistant_is_loaded_from_its_directory(tmp_path, processor):
    model = talkative()
    create_student(model, decoder_layers=1).save_pretrained(tmp_path)
    transcriber = Transcriber(model, processor, language="en", assistant=str(tmp_path), max_new_tokens=5)
    assert transcriber.decoder.assistant.config.decoder_layers == 1
    assert transcriber(tone(1.0)).tokens


def test_an_assistant_that_does_not_fit_is_refused(processor):
    """Guards E5: assistants were assumed to fit, and not checked."""
    with pytest.raises(ValueError, match="num_beams must be 1, not 2"):
        Transcriber(talkative(), processor, assistant=talkative(), num_beams=2)
    with pytest.raises(ValueError, match=r"vocabularies of 51866 and 51865 tokens"):
        Transcriber(talkative(), processor, assistant=talkative(vocab_size=51_866))

import copy

import numpy as np
import pytest
import torch
from conftest import spoken, tone
from test_generation import talkative

from distilwhisper.audio import AudioError
from distilwhisper.longform import LongRecording
from distilwhisper.transcription import Transcriber

LIMIT = 60


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return np.concatenate(spoken(26))[: 60 * 16_000]


def published(model, processor, samples, **options) -> list[int]:
    """What Transformers' own long-form `generate` says."""
    features = processor.feature_extractor(
        samples, sampling_rate=16_000, truncation=False, padding="longest", return_tensors="pt"
    ).input_features
    settings = {"language": "en", "task": "transcribe", "return_timestamps": True, "max_new_tokens": LIMIT}
    return model.generate(features, **settings, **options)[0].tolist()


@pytest.fixture(scope="module")
def model(teacher):
    """The teacher with the settings of published models: no special tokens in the text, a token that opens prompts."""
    model = copy.deepcopy(teacher)
    model.generation_config.prev_sot_token_id = 50_361
    model.generation_config.suppress_tokens = list(range(50_258, 50_363))
    return model


def sequential(model, processor, **options) -> Transcriber:
    return Transcriber(model, processor, language="en", long_form="sequential", max_new_tokens=LIMIT, **options)


@pytest.mark.parametrize("seconds", [13, pytest.param(60, marks=pytest.mark.slow)])
def test_sequential_tokens_are_those_of_long_form_generate(model, processor, recording, seconds):
    samples = recording[: seconds * 16_000]
    transcript = sequential(model, processor)(samples)
    assert transcript.tokens == published(model, processor, samples)
    assert transcript.duration_s == seconds
    assert len(transcript.segments) > seconds / 6
    for segment in transcript.segments:
        assert 0 <= segment.start_s < segment.end_s <= seconds
    starts = [segment.start_s for segment in transcript.segments]
    assert starts == sorted(starts)
    assert " ".join(segment.text for segment in transcript.segments) == transcript.text


def test_conditioned_tokens_are_those_of_long_form_generate(model, processor, recording):
    samples = recording[: 13 * 16_000]
    transcript = sequential(model, processor, condition_on_prev=True)(samples)
    assert transcript.tokens == published(model, processor, samples, condition_on_prev_tokens=True)


def test_every_recording_is_handled_by_its_own_length(processor):
    """Guards E6: a long clip in the batch does not switch the others to another algorithm."""
    audio = [tone(2.0), tone(7.0, 330), tone(1.0, 440), tone(11.0, 550)]
    for long_form in ("chunked", "sequential"):
        transcriber = Transcriber(
            talkative(), processor, language="en", long_form=long_form, max_new_tokens=20, batch_size=3
        )
        together = transcriber(audio)
        alone = [transcriber(one) for one in audio]
        assert [(one.tokens, one.segments) for one in together] == [(one.tokens, one.segments) for one in alone]
        assert [transcript.duration_s for transcript in together] == [2.0, 7.0, 1.0, 11.0]
        assert (
            together[0].tokens == Transcriber(talkative(), processor, language="en", max_new_tokens=20)(audio[0]).tokens
        )


def test_draws_are_reproducible_and_independent_of_the_batch(processor):
    settings = {"temperature": (0.0, 0.6, 1.0), "logprob_threshold": 0.0, "batch_size": 2}
    audio = [tone(7.0), tone(9.0, 330), tone(2.0, 440)]
    first = sequential(talkative(), processor, **settings)(audio)
    again = sequential(talkative(), processor, **settings)
    assert [again(one).tokens for one in audio] == [transcript.tokens for transcript in first]
    assert {transcript.temperature for transcript in first} == {1.0}  # every window failed at every temperature
    other = sequential(talkative(), processor, seed=1, **settings)(audio)
    assert all(a.tokens != b.tokens for a, b in zip(first, other, strict=True))


def test_a_window_that_passes_is_not_decoded_again(processor):
    greedy = sequential(talkative(), processor)(tone(7.0))
    settings = {"temperature": (0.0, 1.0), "logprob_threshold": -100.0, "compression_ratio_threshold": 100.0}
    assert sequential(talkative(), processor, **settings)(tone(7.0)) == greedy
    # The ratio alone may fail a window, too.
    assert (
        sequential(talkative(), processor, temperature=(0.0, 1.0), compression_ratio_threshold=0.0)(
            tone(7.0)
        ).temperature
        == 1.0
    )


def test_silence_has_no_text_and_is_passed_over(processor):
    settings = {"no_speech_threshold": 0.0, "logprob_threshold": 0.0, "temperature": (0.0, 1.0)}
    transcript = sequential(talkative(), processor, **settings)(tone(12.0))
    assert (transcript.text, transcript.tokens, transcript.segments) == ("", [], [])
    assert transcript.temperature == 0.0  # silence is no failure
    sure = sequential(talkative(), processor, no_speech_threshold=0.0, logprob_threshold=-100.0)(tone(12.0))
    assert sure.text  # likely silence, but the model is sure of what it heard


def test_a_prompt_is_never_longer_than_half_of_the_decoder(processor):
    model = talkative(ending=0.0)
    transcript = Transcriber(model, processor, language="en", long_form="sequential", condition_on_prev=True)(
        tone(12.0)
    )
    assert transcript.capped
    assert len(transcript.tokens) > model.config.max_target_positions


def test_a_hot_text_is_no_prompt(processor):
    from distilwhisper.decoding import Window

    transcriber = sequential(talkative(), processor)
    long = LongRecording(tone(12.0), processor.feature_extractor, "en")
    window = Window([400, 500], "x", "en", -1.0, 3, None, False, 0.4)
    long.take(window, transcriber.tokens, 500)
    assert long.prompt(transcriber.tokens, 1) == [transcriber.tokens.start_of_prev, 500]
    long.take(Window([600], "x", "en", -1.0, 3, None, False, 0.6), transcriber.tokens, 500)
    assert long.prompt(transcriber.tokens, 9) == []


def test_an_unreadable_long_recording_stops_no_other(processor, tmp_path):
    import soundfile

    file = tmp_path / "long.wav"
    soundfile.write(file, np.where(np.arange(130 * 16_000) == 129 * 16_000, np.nan, 0.0), 16_000, subtype="FLOAT")
    for long_form in ("chunked", "sequential"):
        transcriber = Transcriber(talkative(), processor, language="en", long_form=long_form, max_new_tokens=2)
        results = dict(transcriber.transcribe_many([("bad", file), ("good", tone(6.0))]))
        assert isinstance(results["bad"], AudioError)
        assert results["bad"].reason == "not_finite"
        assert results["good"].duration_s == 6.0


def test_settings_that_make_no_sense_are_refused(processor):
    cases = [
        ({"long_form": "both"}, "long_form must be one of"),
        ({"chunk_length_s": 6}, "at most the window of 5 s"),
        ({"chunk_length_s": 4, "stride_s": 2}, "stride_s less than half"),
        ({"condition_on_prev": True}, "needs long_form='sequential'"),
        ({"temperature": -1.0}, "temperature must be 0 or above"),
        ({"draft_tokens": 0}, "draft_tokens must be 1 or more"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            Transcriber(talkative(), processor, language="en", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("long_form", ["chunked", "sequential"])
def test_an_hour_of_audio_is_transcribed_in_constant_memory(tmp_path, long_form):
    """The peak of an hour is that of six minutes, in a process of its own."""
    import subprocess
    import sys

    import soundfile

    peaks = []
    for minutes in (6, 60):
        file = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(file, "w", samplerate=16_000, channels=1) as sound:
            for minute in range(minutes):
                sound.write(tone(60.0, 200 + minute))
        program = f"""
import resource, sys
sys.path.insert(0, {str(pytest.importorskip("conftest").__file__)!r}.rsplit("/", 1)[0])
from conftest import TEACHER
from test_generation import talkative
from transformers import WhisperProcessor
from distilwhisper.transcription import Transcriber
processor = WhisperProcessor.from_pretrained(TEACHER)
transcriber = Transcriber(talkative(), processor, language="en", long_form={long_form!r}, max_new_tokens=3)
assert transcriber({str(file)!r}).duration_s == {minutes * 60.0}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 60, f"peaks of {peaks} MB"  # an hour of samples alone takes 230 MB


def test_a_model_in_bfloat16_is_fed_its_own_type(processor):
    model = talkative().to(torch.bfloat16)
    transcript = Transcriber(model, processor, language="en", long_form="sequential", max_new_tokens=5)(tone(7.0))
    assert transcript.duration_s == 7.0

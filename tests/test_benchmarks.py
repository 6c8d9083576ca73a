import json
import resource
import time

import pytest
from conftest import encoded, tiny_whisper, tone

from distilwhisper.audio import AudioError
from distilwhisper.benchmarks import (
    LatencyComparison,
    LatencyResult,
    compare_latency,
    measure_latencies,
    measure_latency,
)
from distilwhisper.transcription import Transcriber

AUDIO = [encoded(tone(0.5)), tone(1.0), tone(1.5)]


@pytest.fixture(scope="module")
def transcriber(processor):
    return Transcriber(tiny_whisper(seed=1, max_target_positions=64), processor, language="en", max_new_tokens=3)


def slowed(transcriber, seconds, calls):
    """The same transcriber, with a pause before each encoder run."""

    def pause(*_):
        calls.append(seconds)
        time.sleep(seconds)

    transcriber.model.model.encoder.register_forward_pre_hook(pause)
    return transcriber


def test_each_batch_has_a_time_and_its_seconds_of_audio(transcriber):
    result = measure_latency(transcriber, AUDIO, batch_size=2, repeats=2)
    assert result.audio_s == (1.5, 1.5)
    assert len(result.seconds) == 2
    assert result.rtf == pytest.approx(sum(result.seconds) / 3)
    assert result.rtfx == pytest.approx(1 / result.rtf)
    assert json.loads(result.to_json())["device"] == "cpu"


def test_tokens_are_counted_and_memory_is_that_of_the_process(transcriber):
    result = measure_latency(transcriber, AUDIO, batch_size=2, repeats=1)
    tokens = [sum(len(heard.tokens) for heard in transcriber(batch)) for batch in (AUDIO[:2], AUDIO[2:])]
    assert result.tokens == tuple(tokens)
    assert result.tokens_per_s == pytest.approx(sum(tokens) / sum(result.seconds))
    parameters = 4 * transcriber.model.num_parameters()
    assert parameters < result.peak_memory_bytes <= 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_any_number_of_models_is_timed_in_turns(processor):
    calls = []
    models = {
        str(seconds): slowed(Transcriber(tiny_whisper(), processor, language="en", max_new_tokens=1), seconds, calls)
        for seconds in (0.0, 0.01, 0.02)
    }
    results = measure_latencies(models, AUDIO[:1], warmup=0, repeats=2)
    assert calls == [0.0, 0.01, 0.02, 0.02, 0.01, 0.0]
    assert list(results) == list(models)


def test_a_model_with_its_processor_will_do(transcriber, processor):
    result = measure_latency(transcriber.model, AUDIO[:1], processor, max_new_tokens=3, repeats=1)
    assert result.median_s == result.seconds[0] > 0


def test_student_and_teacher_take_turns_after_their_warm_up(processor):
    calls = []
    student, teacher = (
        slowed(Transcriber(tiny_whisper(), processor, language="en", max_new_tokens=1), seconds, calls)
        for seconds in (0.0, 0.2)
    )
    comparison = compare_latency(student, teacher, AUDIO[:2], warmup=1, repeats=2)
    one, other = [0.0, 0.2], [0.2, 0.0]
    assert calls == [0.0, 0.2, *one, *other, *other, *one]
    assert comparison.relative_latency > 1.5
    assert comparison.teacher.median_s > 0.2


def test_relative_latency_is_the_median_of_the_ratios_batch_by_batch():
    student = LatencyResult((1.0, 2.0, 1.0), (5.0, 5.0, 5.0), batch_size=1, repeats=1, device="cpu")
    teacher = LatencyResult((3.0, 4.0, 9.0), (5.0, 5.0, 5.0), batch_size=1, repeats=1, device="cpu")
    comparison = LatencyComparison(student, teacher)
    assert (comparison.relative_latency, comparison.ratio_of_medians) == (3.0, 4.0)
    assert json.loads(comparison.to_json())["relative_latency"] == 3.0
    assert str(comparison).splitlines()[2:] == [
        "| teacher | 1 | 4000.0 ms | 1.067 | 1.00 |",
        "| student | 1 | 1000.0 ms | 0.267 | 3.00 |",
    ]


def test_nothing_to_measure_with_is_refused(transcriber):
    with pytest.raises(ValueError, match="no audio"):
        measure_latency(transcriber, [])
    with pytest.raises(ValueError, match="repeats must be at least 1, not 1 and 0"):
        measure_latency(transcriber, AUDIO, repeats=0)
    with pytest.raises(AudioError, match="longer than 5 s"):
        measure_latency(transcriber, [tone(5.1)])

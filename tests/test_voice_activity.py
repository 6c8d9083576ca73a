"""Where speech is: the detectors on synthesised speech, noise, music and silence."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import tone
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper.audio import audio_blocks
from distilwhisper.synthesis import synthesize
from distilwhisper.voice_activity import DETECTORS, FRAME_SAMPLES, find_speech, runs

SENTENCE = "The old captain sold his boat to the two boys from the village."


@pytest.fixture(scope="module")
def sentence():
    pytest.importorskip("espeakng_loader")
    return synthesize(SENTENCE)


@pytest.fixture(params=DETECTORS)
def detector(request):
    if request.param == "silero":
        pytest.importorskip("silero_vad")
        pytest.importorskip("onnxruntime")
    return request.param


def piano(seconds: float) -> np.ndarray:
    """Chords of struck strings, four a second."""
    strokes = []
    for start in range(round(4 * seconds)):
        time = np.arange(4_000) / 16_000
        notes = 220 * 2 ** (np.array([(0, 4, 7), (5, 9, 12), (7, 11, 14)][start % 3]) / 12)
        overtones = [np.sin(2 * np.pi * note * k * time) / k**2 for note in notes for k in range(1, 6)]
        strokes.append(0.1 * np.sum(overtones, axis=0) * np.exp(-6 * time))
    return np.concatenate(strokes).astype(np.float32)


def test_speech_is_found_between_quiet_noise(sentence, detector):
    noise = 0.001 * np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    speech, levels = find_speech([noise, sentence, noise], detector)
    first, last = np.flatnonzero(speech)[[0, -1]] * FRAME_SAMPLES
    assert abs(first - 80_000) < 4_000
    assert abs(last - 80_000 - len(sentence)) < 4_000
    assert len(speech) == len(levels) == -(-(160_000 + len(sentence)) // FRAME_SAMPLES)


def test_silence_and_steady_noise_are_no_speech(detector):
    noise = 0.1 * np.random.default_rng(0).standard_normal(160_000).astype(np.float32)
    assert not find_speech([np.zeros(160_000, np.float32)], detector)[0].any()
    assert not find_speech([noise], detector)[0].any()
    assert not find_speech([], detector)[0].any()


def test_silero_tells_music_from_speech(sentence):
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    music = piano(10)
    speech, _ = find_speech([music, sentence])
    assert speech[: len(music) // FRAME_SAMPLES - 10].mean() < 0.1
    assert speech[len(music) // FRAME_SAMPLES + 10 :].mean() > 0.7


def test_blocks_of_any_length_give_the_same(sentence, detector):
    whole, levels = find_speech([sentence], detector)
    pieces = np.split(sentence, [1, 300, 5_000, 5_001, 20_000])
    again, levels_again = find_speech(pieces, detector)
    assert (again == whole).all()
    np.testing.assert_allclose(levels_again, levels, rtol=1e-4)


@given(st.lists(st.booleans(), max_size=30))
def test_runs_are_the_stretches_of_true_values(flags):
    rebuilt = np.zeros(len(flags), bool)
    found = runs(np.array(flags, bool))
    for start, end in found:
        rebuilt[start:end] = True
    assert rebuilt.tolist() == flags
    assert (found[1:, 0] > found[:-1, 1]).all()


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="not 'ears'"):
        find_speech([], "ears")
    with pytest.raises(ValueError, match="between 0 and 1, not 50"):
        find_speech([], "energy", 50)


def test_a_missing_detector_says_what_to_install():
    program = (
        "import sys; sys.modules['silero_vad'] = None\nfrom distilwhisper.segmentation import Segmenter\nSegmenter()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "pip install 'distilwhisper[vad]'" in result.stderr


def test_the_detector_leaves_torch_and_its_threads_alone():
    pytest.importorskip("silero_vad")
    program = "import sys; from distilwhisper.voice_activity import find_speech; find_speech([])\n"
    program += "assert not {'torch', 'silero_vad'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_levels_of_a_tone_are_its_power():
    _, levels = find_speech(audio_blocks(tone(1.0)), "energy")
    assert levels[5] == pytest.approx(20 * np.log10(0.3 / np.sqrt(2)), abs=0.1)

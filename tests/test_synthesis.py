import io
import sys

import jiwer
import numpy as np
import pytest
import soundfile

from distilwhisper import synthesis
from distilwhisper.grammar import SLOTS, draw_sentence, partition, wrong_transcript
from distilwhisper.synthesis import CorpusConfig, add_noise, synthesize, synthesize_corpus

SMALL = CorpusConfig(train=40, validation=6, test=6, ood_accents=6, ood_noise=4, wrong_share=0.3)


@pytest.fixture(scope="module")
def corpus():
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is in the extra 'demo'")
    return synthesize_corpus(SMALL)


def test_a_sentence_has_four_to_twelve_words_and_is_written_as_whisper_writes():
    rng = np.random.default_rng(0)
    sentences = [draw_sentence(rng) for _ in range(500)]
    assert {len(sentence.split()) for sentence in sentences} <= set(range(4, 13))
    assert all(sentence[0].isupper() and sentence[-1] in ".?" for sentence in sentences)
    assert len(set(sentences)) > 490


def test_no_word_of_the_grammar_is_in_a_slot_twice():
    assert all(len(set(choices)) == len(choices) for choices in SLOTS.values())


def test_a_tenth_of_the_sentences_is_held_out_whatever_the_seed():
    rng = np.random.default_rng(1)
    parts = [partition(draw_sentence(rng)) for _ in range(4000)]
    assert 0.03 < parts.count("test") / 4000 < 0.07
    assert 0.03 < parts.count("validation") / 4000 < 0.07


def test_a_wrong_transcript_is_far_from_the_sentence():
    rng = np.random.default_rng(2)
    for _ in range(300):
        sentence = draw_sentence(rng)
        assert jiwer.wer(sentence.lower(), wrong_transcript(sentence, rng).lower()) > 0.15


def test_a_corpus_is_the_same_every_time_and_a_longer_one_starts_with_it(corpus):
    longer = synthesize_corpus(
        CorpusConfig(train=45, validation=0, test=0, ood_accents=0, ood_noise=0, wrong_share=0.3)
    )
    assert list(longer) == ["train"]
    assert longer["train"][:40] == corpus["train"][:40]
    assert longer["train"][40]["true_text"] not in corpus["train"]["true_text"]


def test_another_seed_says_other_sentences(corpus):
    other = synthesize_corpus(CorpusConfig(train=10, validation=0, test=0, ood_accents=0, ood_noise=0, seed=1))
    assert not set(other["train"]["true_text"]) & set(corpus["train"]["true_text"])


def test_what_is_said_does_not_depend_on_what_was_said_before():
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is in the extra 'demo'")
    first = synthesize("The old captain sold his boat.", "en-us+m3")
    synthesize("Something else.", "en+f2", rate_wpm=200, pitch=70)
    np.testing.assert_array_equal(first, synthesize("The old captain sold his boat.", "en-us+m3"))


def test_speed_and_pitch_and_voice_change_the_speech():
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is in the extra 'demo'")
    slow, fast = (synthesize("She reads the letter again.", rate_wpm=rate) for rate in (120, 240))
    assert len(slow) > 1.5 * len(fast)
    low, high = (fundamental_hz(synthesize("She reads the letter again.", pitch=pitch)) for pitch in (20, 80))
    assert low < 0.8 * high
    assert fundamental_hz(synthesize("She reads the letter again.", "en-us+Andrea")) > high


def fundamental_hz(samples: np.ndarray) -> float:
    """The mean period over the recording, from its autocorrelation between 60 and 400 Hz."""
    spectrum = np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2
    lags = np.fft.irfft(spectrum)[40:267]
    return 16_000 / (40 + float(np.argmax(lags)))


@pytest.mark.parametrize(
    ("text", "voice", "options", "message"),
    [
        ("Hello.", "xx-nowhere", {}, "no voice 'xx-nowhere'"),
        ("Hello.", "en-us", {"rate_wpm": 20}, "rate_wpm must be 80 to 450"),
        ("", "en-us", {}, "holds no word"),
    ],
)
def test_what_cannot_be_said_is_refused(text, voice, options, message):
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is in the extra 'demo'")
    with pytest.raises(ValueError, match=message):
        synthesize(text, voice, **options)


def test_without_espeak_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    synthesis._espeak.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'distilwhisper\[demo\]'"):
        synthesize_corpus(CorpusConfig(train=1))


def test_test_sentences_are_never_in_train(corpus):
    assert {partition(text) for text in corpus["train"]["true_text"]} == {"train"}
    assert {partition(text) for text in corpus["validation"]["true_text"]} == {"validation"}
    for split in ("test", "ood_accents", "ood_noise"):
        assert {partition(text) for text in corpus[split]["true_text"]} == {"test"}


def test_accents_and_variants_of_the_unheard_voices_are_nowhere_else(corpus):
    assert not set(synthesis.ACCENTS) & set(synthesis.UNHEARD_ACCENTS)
    assert not set(synthesis.VARIANTS) & set(synthesis.UNHEARD_VARIANTS)
    for split, rows in corpus.items():
        accents = synthesis.UNHEARD_ACCENTS if split == "ood_accents" else synthesis.ACCENTS
        variants = synthesis.UNHEARD_VARIANTS if split == "ood_accents" else synthesis.VARIANTS
        assert all(row["accent"] in accents and row["speaker_id"].split("+")[1] in variants for row in rows)


def test_the_known_share_of_train_references_is_wrong_and_no_other(corpus):
    for row in corpus["train"]:
        assert row["is_wrong"] == (row["text"] != row["true_text"])
    assert 0.1 < np.mean(corpus["train"]["is_wrong"]) < 0.5
    assert not any(any(corpus[split]["is_wrong"]) for split in corpus if split != "train")


def test_the_audio_is_flac_of_the_stated_length_with_silence_around_the_speech(corpus):
    for row in (row for split in corpus.values() for row in split.select(range(4))):
        info = soundfile.info(io.BytesIO(row["audio"]["bytes"]))
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
        assert info.duration == row["duration_s"] <= SMALL.max_duration_s
        assert 0 <= row["speech_start_s"] <= 0.3
        assert 0.8 < row["speech_end_s"] - row["speech_start_s"] < 5
        assert row["audio"]["path"] == f"{row['id']}.flac"
    row = corpus["test"][0]
    samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    start, end = (round(row[f"speech_{place}_s"] * 16_000) for place in ("start", "end"))
    assert not samples[:start].any()
    assert not samples[end:].any()
    assert 0.25 < np.abs(samples[start:end]).max() < 1


def test_noise_has_the_stated_power():
    rng = np.random.default_rng(0)
    speech, noise = (rng.standard_normal(16_000).astype(np.float32) * scale for scale in (0.1, 3.0))
    mixed = add_noise(speech, noise, 10.0)
    assert np.mean(speech**2) / np.mean((mixed - speech) ** 2) == pytest.approx(10, rel=1e-3)
    assert np.abs(add_noise(speech, noise, -40.0)).max() == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": -1}, "train is a number of utterances, not -1"),
        ({"wrong_share": 10}, "a fraction from 0 to 1, not 10"),
        ({"max_duration_s": 1.0}, "3 or more"),
    ],
)
def test_a_corpus_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**changes)

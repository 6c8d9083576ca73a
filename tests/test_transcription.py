import re

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, audio_dataset, encoded, tiny_whisper, tone
from datasets import Audio
from test_generation import END, features, talkative

from distilwhisper.audio import AudioError
from distilwhisper.transcription import Transcriber


@pytest.fixture
def transcriber(processor):
    return Transcriber(talkative(), processor, language="en", batch_size=3)


def test_each_recording_is_transcribed_in_its_own_language(processor):
    transcripts = Transcriber(talkative(), processor).transcribe_features(features())
    codes = [transcript.language for transcript in transcripts]
    for row, code in enumerate(codes):
        alone = Transcriber(model := talkative(), processor, language=code)
        assert alone.transcribe_features(features()[row : row + 1])[0].tokens == transcripts[row].tokens
        assert model is alone.model


def test_one_recording_gives_one_transcript_in_clean_text(transcriber, tokenizer):
    transcript = transcriber(tone(1.0))
    assert transcript.text == tokenizer.decode(transcript.tokens, skip_special_tokens=True).strip()
    assert "<|" not in transcript.text
    assert all(token < END for token in transcript.tokens)
    assert (transcript.language, transcript.task, transcript.timestamps) == ("en", "transcribe", False)
    assert transcript.duration_s == 1.0


def test_lists_and_datasets_give_transcripts_in_their_order(transcriber):
    recordings = [encoded(tone(seconds, 100 + 300 * seconds)) for seconds in (1.5, 0.5, 2.0, 1.0)]
    alone = [transcriber(recording) for recording in recordings]
    listed = transcriber(recordings)
    assert [transcript.duration_s for transcript in listed] == [1.5, 0.5, 2.0, 1.0]
    assert [transcript.tokens for transcript in listed] == [transcript.tokens for transcript in alone]
    dataset = audio_dataset(recordings).cast_column("audio", Audio(sampling_rate=16_000))
    assert transcriber(dataset) == listed
    assert transcriber([]) == []


def test_samples_in_a_list_are_one_recording(transcriber):
    assert transcriber(tone(0.2).tolist()).tokens == transcriber(tone(0.2)).tokens


def test_the_window_is_the_models(processor):
    """Guards T15 and P10: exactly one window is taken, more is refused rather than cut, if there is no long form."""
    transcriber = Transcriber(talkative(), processor, language="en", long_form=None)
    assert transcriber.window_s == 5.0
    assert transcriber(tone(5.0)).duration_s == 5.0
    with pytest.raises(AudioError, match=r"recording 1: .* longer than 5 s") as caught:
        transcriber([tone(1.0), np.zeros(80_001)])
    assert caught.value.reason == "too_long"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_recording_stops_no_stream(transcriber, num_workers):
    good = [("a", tone(0.5)), ("b", None), ("c", b"noise"), ("d", tone(0.3)), ("e", tone(0.4)), ("f", tone(0.6))]
    results = dict(transcriber.transcribe_many(iter(good), num_workers=num_workers))
    assert {key for key, result in results.items() if isinstance(result, AudioError)} == {"b", "c"}
    assert {key: results[key].duration_s for key in "adef"} == {"a": 0.5, "d": 0.3, "e": 0.4, "f": 0.6}


def test_timestamps_are_among_the_tokens_and_not_in_the_text(processor):
    transcriber = Transcriber(talkative(), processor, language="english", return_timestamps=True)
    transcript = transcriber(tone(1.0))
    assert transcriber.tokens.is_timestamp(transcript.tokens[0])
    assert "<|" not in transcript.text


def test_settings_a_model_does_not_have_are_refused(processor):
    with pytest.raises(ValueError, match="language 'Klingon' is unknown"):
        Transcriber(talkative(), processor, language="Klingon")
    with pytest.raises(ValueError, match="task must be one of"):
        Transcriber(talkative(), processor, task="summarize")
    with pytest.raises(ValueError, match="pass its processor"):
        Transcriber(talkative())
    model = talkative()
    model.generation_config.is_multilingual = False
    with pytest.raises(ValueError, match="English-only"):
        Transcriber(model, processor, language="de")
    assert Transcriber(model, processor).transcribe_features(features(1))[0].language == "en"


def test_model_and_processor_are_loaded_from_one_place(tmp_path, processor):
    tiny_whisper().half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    transcriber = Transcriber(tmp_path, language="en", device="cpu")
    assert transcriber.model.dtype == torch.float32  # no halves on a CPU, unless asked for
    assert not transcriber.model.training
    model = Transcriber(str(tmp_path), dtype=torch.bfloat16, device="cpu").model
    assert model.dtype == torch.bfloat16
    assert Transcriber(model, language="en").processor.tokenizer.vocab_size == processor.tokenizer.vocab_size


@pytest.mark.parametrize("fused", [True, False])
def test_transcripts_follow_weights_that_change(transcriber, processor, fused):
    """The copy of the output projection that speeds up a CPU must not outlive an update."""
    audio = tone(1.0)
    before = transcriber(audio).tokens
    head = transcriber.model.proj_out.weight
    head.grad = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    torch.optim.AdamW([head], lr=1.0, fused=fused).step()
    after = transcriber(audio).tokens
    assert after != before
    assert after == Transcriber(transcriber.model, processor, language="en")(audio).tokens


def test_directories_are_transcribed_file_by_file(transcriber, tmp_path):
    for number, name in enumerate(["b.wav", "a.flac"]):
        (tmp_path / name).write_bytes(encoded(tone(0.5 + number), format=name[2:].upper()))
    assert [transcript.duration_s for transcript in transcriber(str(tmp_path))] == [1.5, 0.5]


def test_segments_without_timestamps_are_the_recording(transcriber):
    transcript = transcriber(tone(1.0))
    assert [(one.start_s, one.end_s, one.text) for one in transcript.segments] == [(0.0, 1.0, transcript.text)]
    assert transcript.segments[0].tokens == transcript.tokens


def test_every_example_of_the_guide_runs(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    page = (REPOSITORY / "docs" / "guides" / "transcription.md").read_text(encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "guide", "exec"), names)
    assert capsys.readouterr().out.count("\n") > 15

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import audio_dataset, encoded, tiny_whisper, tone
from datasets import DatasetDict

from distilwhisper.evaluation import evaluate
from distilwhisper.metrics import ErrorCounts, count_repeated_ngrams
from distilwhisper.results import EvaluationResult, SetResult, relative_error_rates, worst_examples
from distilwhisper.transcription import Transcriber

RECORDINGS = [encoded(tone(0.5 + index / 4, 200 + 90 * index)) for index in range(4)]


@pytest.fixture(scope="module")
def transcriber(processor):
    model = tiny_whisper(seed=1, max_target_positions=64)
    return Transcriber(model, processor, language="en", max_new_tokens=6, long_form=None)


@pytest.fixture(scope="module")
def heard(transcriber):
    """What the random model says about each recording."""
    texts = [transcript.text for transcript in transcriber(list(RECORDINGS))]
    assert all(text.isascii() and len(text.split()) > 2 for text in texts)
    return texts


def test_errors_are_counted_by_kind_and_as_written(transcriber, heard):
    references = [heard[0].upper() + "!", "zzz " + heard[1].split(" ", 1)[1], heard[2] + " zzz", heard[3]]
    result = evaluate(transcriber, audio_dataset(RECORDINGS, text=references)).sets["test"]
    words = sum(len(reference.split()) for reference in references)
    assert result.normalized == ErrorCounts(words - 2, substitutions=1, deletions=1, samples=4)
    assert result.wer == 2 / words
    assert result.orthographic.substitutions == 1 + len(heard[0].split())
    assert result.transcripts == dict(enumerate(heard))


def test_several_sets_are_averaged_set_by_set(transcriber, heard):
    good = audio_dataset(RECORDINGS, text=heard)
    bad = audio_dataset(RECORDINGS[:1], text=["zzz " + heard[0]])
    result = evaluate(transcriber, DatasetDict(good=good, bad=bad))
    error_rate = 1 / (1 + len(heard[0].split()))
    assert [result.sets[name].wer for name in ("good", "bad")] == [0, error_rate]
    assert result.wer == result.wer_orthographic == error_rate / 2


@pytest.mark.parametrize("long_form", [None, "chunked", "sequential"])
def test_every_sample_is_scored_or_accounted_for(processor, transcriber, heard, long_form):
    """Guards P4, P11, T15, E1 and E2: nothing is left out unseen; no length filter, no tracker."""
    window = encoded(tone(transcriber.window_s))
    window_and_a_bit = transcriber.window_s + 0.1
    too_long = encoded(tone(window_and_a_bit))
    audio = [RECORDINGS[0], b"no audio", RECORDINGS[1], None, too_long, RECORDINGS[2], window]
    dataset = audio_dataset(audio, text=[heard[0], "a", "...", "b", "c", None, "a long one"])
    options = {"language": "en", "max_new_tokens": 6, "long_form": long_form}
    result = evaluate(Transcriber(transcriber.model, processor, **options), dataset).sets["test"]
    scored = 2 if long_form is None else 3
    assert (result.samples, result.normalized.samples, result.empty_references.samples) == (7, scored, 1)
    assert result.empty_references.insertions == len(heard[1].split())
    reasons = {failure.index: failure.reason for failure in result.failures}
    refused = {4: "too_long"} if long_form is None else {}
    assert reasons == {1: "unreadable", 3: "missing", 5: "missing_reference"} | refused
    assert result.orthographic.samples == scored
    assert math.isclose(result.audio_s, 0.5 + 0.75 + transcriber.window_s + (0 if refused else window_and_a_bit))


def test_texts_are_normalised_once(transcriber, heard):
    """Guards E2."""
    seen = []
    evaluate(transcriber, audio_dataset(RECORDINGS[:1], text=["R"]), normalizer=lambda text: seen.append(text) or text)
    assert sorted(seen) == sorted(["R", heard[0]])


def test_a_set_without_a_scored_sample_has_no_error_rate(transcriber):
    result = evaluate(transcriber, audio_dataset([None], text=["a"]))
    assert math.isnan(result.wer)
    assert math.isnan(result.rtf)
    assert json.loads(result.to_json())["wer"] is None
    assert "| test | 1 | nan% | nan% | 0 | 0 | 0 | 0 | 0 | 1 | nan |" in str(result)


def test_a_stream_gives_what_a_stored_set_gives(transcriber, heard):
    """Guards E4."""
    dataset = audio_dataset(RECORDINGS, sentence=[*heard[:3], "other"])
    stored, streamed = (
        evaluate(transcriber, rows, text_column="sentence").sets["test"]
        for rows in (dataset, dataset.to_iterable_dataset())
    )
    assert streamed.normalized == stored.normalized
    assert streamed.transcripts == stored.transcripts


def test_a_model_or_a_directory_will_do(tmp_path, processor, transcriber, heard):
    transcriber.model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    dataset = audio_dataset(RECORDINGS, text=heard)
    for model, its_processor in ((tmp_path, None), (transcriber.model, processor)):
        result = evaluate(model, dataset, its_processor, language="en", max_new_tokens=6)
        assert result.wer == 0


def test_the_result_is_a_table_and_a_json_document(transcriber, heard):
    result = evaluate(transcriber, {name: audio_dataset(RECORDINGS, text=heard) for name in ("clean", "noisy")})
    document = json.loads(result.to_json())
    assert document["sets"]["clean"]["normalized"]["hits"] == result.sets["clean"].normalized.hits
    assert document["rtf"] == result.rtf > 0
    lines = str(result).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| clean", "| noisy", "| macro-average"]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| clean | 4 | 0.00% | 0.00% |")


def test_the_language_must_be_the_transcribers(transcriber):
    dataset = audio_dataset(RECORDINGS[:1], text=["a"])
    assert evaluate(transcriber, dataset, language="English").sets["test"].samples == 1
    with pytest.raises(ValueError, match="the Transcriber writes 'en', not 'de'"):
        evaluate(transcriber, dataset, language="de")


def test_missing_columns_and_missing_sets_are_refused(transcriber):
    dataset = audio_dataset(RECORDINGS[:1], text=["a"])
    with pytest.raises(ValueError, match="no column 'sentence', only \\['audio', 'text'\\]"):
        evaluate(transcriber, dataset, text_column="sentence")
    with pytest.raises(ValueError, match="no column 'speech'"):
        evaluate(transcriber, dataset, audio_column="speech")
    with pytest.raises(ValueError, match="no test set"):
        evaluate(transcriber, {})


def test_rates_of_characters_time_and_tokens_are_the_counts_divided(transcriber, heard):
    """Guards E3 and E7: padding counted as tokens, and the word error rate was the only measure."""
    result = evaluate(transcriber, audio_dataset(RECORDINGS[:2], text=[heard[0], "zzz " + heard[1]])).sets["test"]
    assert result.cer == pytest.approx(4 / (len(heard[0]) + len(heard[1]) + 4))
    assert result.rtf * result.rtfx == pytest.approx(1)
    tokens = sum(len(transcript.tokens) for transcript in transcriber(RECORDINGS[:2]))
    assert result.tokens_per_s == pytest.approx(tokens / result.seconds)
    assert result.repeated_5grams == count_repeated_ngrams(heard[:2])


def test_a_result_reads_back_from_json(transcriber, heard):
    dataset = audio_dataset([*RECORDINGS[:2], None], text=[heard[0], "...", "a"])
    result = evaluate(transcriber, dataset)
    read = EvaluationResult.from_json(result.to_json(details=True))
    assert read == result
    assert read.sets["test"].interval() == result.sets["test"].interval()


def test_averages_and_intervals_are_over_the_sets_that_are_named(transcriber, heard):
    sets = {"good": heard, "bad": ["zzz " + text for text in heard], "worse": ["zzz"] * 4}
    result = evaluate(transcriber, {name: audio_dataset(RECORDINGS, text=texts) for name, texts in sets.items()})
    assert result.macro_average(["good"]) == 0
    expected = (result.sets["good"].wer + result.sets["bad"].wer) / 2
    assert result.macro_average(["good", "bad"]) == pytest.approx(expected)
    assert result.macro_average(["bad"], "der") == result.sets["bad"].normalized.der > 0
    interval = result.interval(["bad"])
    assert 0 < interval.low <= result.sets["bad"].wer <= interval.high


def test_relative_error_rates_are_those_of_table_6_of_the_paper():
    """GigaSpeech 10.7 to 10.5, CHIME-4 11.8 to 14.0: -2 % and 18 %."""

    def result(giga, chime):
        counts = {"giga": giga, "chime": chime}
        return EvaluationResult(
            {name: SetResult({0: ErrorCounts(1_000 - n, substitutions=n, samples=1)}) for name, n in counts.items()}
        )

    rates = relative_error_rates(result(107, 118), result(105, 140))
    assert rates == {"giga": pytest.approx(-2 / 107), "chime": pytest.approx(22 / 118)}
    with pytest.raises(ValueError, match="different sets"):
        relative_error_rates(result(1, 1), EvaluationResult({}))


def test_the_worst_examples_are_those_with_most_errors_of_the_student(transcriber, heard):
    texts = [heard[0], "zzz " + heard[1], "zzz zzz zzz " + heard[2], heard[3]]
    result = evaluate(transcriber, {"clean": audio_dataset(RECORDINGS, text=texts)})
    examples = worst_examples({"clean": texts}, result, result, count=2)
    assert [example["reference"] for example in examples] == [texts[2], texts[1]]
    assert examples[0] == {"set": "clean", "reference": texts[2], "teacher": heard[2], "student": heard[2]}


PROGRAM = """
import sys
from datasets import load_from_disk
from distilwhisper import evaluate
rows = load_from_disk(sys.argv[2])
sets = {"stored": rows, "streamed": rows.to_iterable_dataset()}
result = evaluate(sys.argv[1], sets, max_new_tokens=6, batch_size=2, device="cpu")
open(sys.argv[3], "w").write(result.to_json(details=True))
"""


def test_two_processes_share_a_set_and_both_know_the_whole(transcriber, processor, heard, tmp_path):
    """Guards C9: every process decoded and scored everything."""
    transcriber.model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    texts = [heard[0], None, "zzz " + heard[2], heard[3], "..."]
    dataset = audio_dataset([*RECORDINGS, RECORDINGS[1]], text=texts)
    dataset.save_to_disk(tmp_path / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    runs = []
    for rank in ("0", "1"):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", PROGRAM, tmp_path / "model", tmp_path / "data", tmp_path / f"{rank}.json"]
        runs.append(subprocess.Popen(command, env={**os.environ, **places, "ACCELERATE_USE_CPU": "true"}))
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    whole = evaluate(transcriber, dataset).sets["test"]
    for rank in ("0", "1"):
        result = EvaluationResult.from_json((tmp_path / f"{rank}.json").read_text())
        for part in result.sets.values():
            assert part == replace(whole, seconds=part.seconds)

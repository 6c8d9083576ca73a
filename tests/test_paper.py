"""The experiments of the paper: what they share, and all of them as a user runs them."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TEACHER, audio_dataset, encoded, spoken, tiny_whisper, tone

from distilwhisper import Transcriber, load_audio
from distilwhisper.generation import encode

PAPER = REPOSITORY / "examples" / "paper"
HELPERS = ("common", "rates", "recordings")
SCRIPTS = sorted(path.name for path in PAPER.glob("*.py") if path.stem not in HELPERS)


@pytest.fixture
def modules(monkeypatch):
    """The scripts' own directory, from which they import each other."""
    monkeypatch.syspath_prepend(PAPER)
    pytest.importorskip("matplotlib")


def test_noise_has_the_asked_for_power_below_that_of_each_recording(modules):
    import recordings

    clean = [tone(1.0), 0.1 * tone(0.5)]
    rows = audio_dataset([encoded(samples) for samples in clean], text=["a", "b"])
    noisy = recordings.with_noise(rows, recordings.white_noise(2), 10.0)
    for samples, row in zip(clean, noisy, strict=True):
        noise = load_audio(row["audio"], 16_000) - samples
        assert 10 * np.log10(np.mean(samples**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.1)
    assert list(noisy["text"]) == ["a", "b"]


def test_recordings_without_a_level_stay_as_they_are(modules):
    import recordings

    rows = audio_dataset([encoded(tone(0.5))], text=["a"])
    same = recordings.with_noise(rows, recordings.white_noise(1), np.array([np.inf]))
    assert load_audio(same[0]["audio"], 16_000) == pytest.approx(tone(0.5), abs=1e-4)


@pytest.mark.parametrize(("window_s", "starts"), [(2.0, [0, 2, 6]), (None, None)])
def test_long_recordings_have_each_utterance_once_at_the_start_of_a_window_or_after_a_short_pause(
    modules, window_s, starts
):
    import recordings

    rows = audio_dataset([encoded(tone(seconds)) for seconds in (1.0, 2.5, 0.5)], text=["a", "b", "c"])
    (long,) = recordings.join(rows, 1, "text", 0, window_s)
    sound = np.abs(load_audio(long["audio"], 16_000)) > 0
    assert long["text"] == "a b c"
    if starts:
        assert len(sound) == 8 * 16_000
        for start, seconds in zip(starts, (1.0, 2.5, 0.5), strict=True):
            assert sound[round(start * 16_000) : round((start + seconds) * 16_000)].mean() > 0.9
    assert 3.9 * 16_000 < sound.sum() <= 4 * 16_000
    assert 5.5 * 16_000 <= len(sound) <= 10 * 16_000


def test_early_exit_at_threshold_1_gives_the_tokens_of_the_whole_decoder_and_below_uses_fewer_layers(
    modules, processor
):
    from early_exit import EarlyExit

    transcriber = Transcriber(tiny_whisper(seed=3), processor, language="en", max_new_tokens=8)
    prefix = transcriber.tokens.prefix("en", "transcribe", timestamps=False)
    decode = EarlyExit(transcriber.model, prefix, 8)
    features = transcriber.extract_features([tone(1.0)])
    ids, layers = decode(features, 1.0)
    assert ids[: len(transcriber(tone(1.0)).tokens)] == transcriber(tone(1.0)).tokens
    assert set(layers) == {4}
    assert sum(decode(features, 0.0)[1][1:]) == len(decode(features, 0.0)[1][1:])  # one layer each


@torch.inference_mode()
def whole(model, states, ids, layers):
    """What the decoder says next after each of ids, nothing cached: a position keeps the state that it left with."""
    decoder, count = model.model.decoder, len(ids)
    hidden = decoder.embed_tokens(torch.tensor([ids])) + decoder.embed_positions.weight[:count]
    mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
    for number, layer in enumerate(decoder.layers):
        inside = torch.tensor(layers)[None, :, None] > number
        hidden = torch.where(inside, layer(hidden, attention_mask=mask, encoder_hidden_states=states), hidden)
    return model.proj_out(decoder.layer_norm(hidden))[0].argmax(-1).tolist()


def test_early_exit_looks_back_at_the_state_with_which_a_token_left(modules, processor, teacher):
    from early_exit import EarlyExit

    transcriber = Transcriber(teacher, processor, language="en")
    prefix = transcriber.tokens.prefix("en", "transcribe", timestamps=False)
    features = transcriber.extract_features(spoken(1))
    ids, layers = EarlyExit(teacher, prefix, 30)(features, 0.5)
    # The last step gives the last token and reads none; the whole prefix goes through all layers.
    depths = [teacher.config.decoder_layers] * len(prefix) + layers[1:]
    written = whole(teacher, encode(teacher, features), [*prefix, *ids[:-1]], depths)
    assert written[len(prefix) - 1 :] == ids
    assert len(set(layers)) > 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_experiment_says_what_it_makes_and_is_run_by_the_one_for_all(name):
    source = (PAPER / name).read_text()
    assert f"python examples/paper/{name}" in source.split('"""')[1]
    if name != "everything.py":
        assert f"    {name.removesuffix('.py')},\n" in (PAPER / "everything.py").read_text()


@pytest.mark.slow
def test_all_experiments_run_through_and_write_their_tables(tmp_path):
    pytest.importorskip("espeakng_loader")
    flags = "--train_samples 60 --test_samples 6 --updates 3 --final_updates 4 --batch_size 4 --long_samples 2"
    command = [sys.executable, PAPER / "everything.py", *flags.split(), "--speed_samples", "2"]
    subprocess.run([*command, "--teacher", TEACHER, "--output_dir", tmp_path], check=True, timeout=1_800)
    tables = {path.stem for path in (tmp_path / "results").glob("table_*.json")}
    numbers = "05 06 07 08 09_22 10 11 12 16 17_18 19 20 21 23 24".split()
    assert tables == {f"table_{number}" for number in numbers}
    for name in [*tables, "figure_2"]:
        document = json.loads((tmp_path / "results" / f"{name}.json").read_text())
        with (tmp_path / "results" / f"{name}.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(document["rows"]) > 0
        markdown = (tmp_path / "results" / f"{name}.md").read_text()
        assert "![" in markdown
        assert "everything.py" in markdown
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 5_000
    assert "<svg" in (tmp_path / "results" / "report.html").read_text()

"""The command line: help, files of options, exit codes, and what it says when something is wrong."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from conftest import audio_dataset, encoded, tiny_whisper, tone
from datasets import DatasetDict
from transformers import BertConfig, BertModel

from distilwhisper import save_processor
from distilwhisper.cli import COMMANDS, main

FRUGAL = "--max_steps 1 --per_device_train_batch_size 2 --report_to none --use_cpu --disable_tqdm true".split()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, processor):
    """A directory with a small teacher, a student, labels, and things that are none of these."""
    folder = tmp_path_factory.mktemp("workshop")
    teacher = tiny_whisper(max_target_positions=32)
    teacher.save_pretrained(folder / "teacher")
    save_processor(processor, folder / "teacher")
    labels = audio_dataset(
        [encoded(tone(1.0)), encoded(tone(1.5, 300.0))],
        text=["one two", "three"],
        whisper_transcript=["one two", "three"],
        whisper_language=["en", "en"],
    )
    labels.save_to_disk(folder / "labels")
    labels.remove_columns("audio").save_to_disk(folder / "texts")
    DatasetDict({"train": labels, "test": labels}).save_to_disk(folder / "both")
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(folder / "bert")
    assert main(["create-student", "--teacher", str(folder / "teacher"), "--output_dir", str(folder / "student")]) == 0
    return folder


@pytest.fixture
def here(workshop, monkeypatch):
    monkeypatch.chdir(workshop)
    return workshop


def test_front_page_lists_every_command_and_imports_no_torch():
    program = (
        "import sys; from distilwhisper.cli import main\n"
        "try: main([])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert [name for name in COMMANDS if f"  {name} " not in printed.stdout] == []


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "distilwhisper", "--version"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", printed.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_option_with_a_sentence_and_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    module = import_module(f"distilwhisper.commands.{name.replace('-', '_')}")
    assert f"distilwhisper {name} " in module.__doc__
    ours = [option for kind in module.OPTIONS for option in fields(kind) if option.init]
    assert [option.name for option in ours if f"--{option.name}" not in text] == []
    assert [option.name for option in fields(module.OPTIONS[0]) if not option.metadata.get("help")] == []


def test_help_of_train_fits_and_the_rare_options_are_explained_when_asked(capsys):
    pages = {}
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            main(["train", flag])
        assert stop.value.code == 0
        pages[flag] = capsys.readouterr().out
    assert len(pages["--help"].splitlines()) < 160 < len(pages["--help_all"].splitlines())
    assert "--adam_beta1 X" not in pages["--help"]
    assert "--adam_beta1 X" in pages["--help_all"]
    assert pages["--help"].index("--kl_weight X") < pages["--help"].index("--max_steps N")
    assert "--student TEXT --train TEXT [OPTIONS]" in pages["--help"]
    assert "--freeze_encoder, --no_freeze_encoder" in pages["--help"]


def test_a_misspelt_option_is_told_with_the_nearest(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("treshold: 0.2")
    for arguments in (["--treshold", "1"], ["--config_file", str(tmp_path / "options.yaml")]):
        with pytest.raises(SystemExit) as stop:
            main(["filter", "--dataset", "x", "--output_dir", "y", *arguments])
        assert stop.value.code == 2
        assert re.search("did you mean (--)?threshold[?]", capsys.readouterr().err)


def test_unknown_command_and_option_are_told_with_exit_code_2(capsys):
    for arguments in (["distil"], ["filter", "--dataset", "x", "--output_dir", "y", "--treshold", "0.1"]):
        with pytest.raises((SystemExit, ValueError)) as stop:
            main(arguments)
        assert isinstance(stop.value, SystemExit)
        assert stop.value.code == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("create-student --teacher teacher --output_dir x --decoder_layers 9", "from 1 to 4, not 9"),
        ("create-student --teacher bert --output_dir x", "bert is a model of type 'bert', not a Whisper"),
        ("pseudo-label --model bert --dataset labels --output_dir x", "bert is a model of type 'bert', not a Whisper"),
        ("pseudo-label --model teacher --dataset ./nope --output_dir x", "./nope does not exist"),
        ("pseudo-label --model teacher --dataset texts --output_dir x", "no column 'audio'"),
        ("pseudo-label --model teacher --dataset labels --output_dir x --language klingon", "klingon"),
        ("pseudo-label --model teacher --dataset labels --output_dir x --id_column name", "column 'name'"),
        ("filter --dataset teacher --output_dir x", "teacher holds no saved data set"),
        ("filter --dataset labels --output_dir x --threshold 10", "did you mean 0.1"),
        ("filter --dataset labels --output_dir x --text_column t", "no column 't'"),
        (
            "filter --dataset labels --output_dir x --text_column whisper_language",
            "keeps nothing: {'wer': 2}",
        ),
        (
            "train --student bert --teacher teacher --train labels --output_dir x",
            "bert is a model of type 'bert', not a Whisper",
        ),
        ("train --student student --teacher teacher --train labels --output_dir x --eval kept", "name=source"),
        ("train --student student --train labels --output_dir x --preset best", "one of paper, reference, not 'best'"),
        ("train --student student --train labels --output_dir x --temperature 0", "temperature must be positive"),
        ("train --student student --teacher teacher --train labels --output_dir x --train_split dev", "has no splits"),
        ("train --student student --teacher teacher --train texts --output_dir x", "no column 'audio'"),
        ("train --student student --teacher teacher --train both --output_dir x", "split"),
        ("evaluate --model student --data set=labels --text_column t", "no column 't'"),
        ("evaluate --model student --data labels", "name=source"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(here, capsys, command, message):
    arguments = command.split()
    assert main([*arguments, *(FRUGAL if arguments[0] == "train" else [])]) == 1
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"distilwhisper {arguments[0]}: ")
    assert message in last
    assert "Traceback" not in said
    assert not Path("x", "config.json").exists()


def test_debug_shows_where(here):
    with pytest.raises(FileNotFoundError):
        main("filter --dataset ./nope --output_dir x --debug".split())


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_options_may_stand_in_a_file_and_flags_win(here, tmp_path, capsys, suffix):
    file = tmp_path / f"options.{suffix}"
    options = {"dataset": "labels", "output-dir": str(tmp_path / "kept"), "threshold": 7}
    file.write_text(json.dumps(options))  # JSON is YAML
    assert main(["filter", "--config_file", str(file)]) == 1
    assert "threshold must be a fraction" in capsys.readouterr().err
    assert main(["filter", "--config_file", str(file), "--threshold", "0.2"]) == 0
    assert json.loads((tmp_path / "kept" / "report.json").read_text())["threshold"] == 0.2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("options.yaml", "treshold: 0.2", "unknown option 'treshold'"),
        ("options.yaml", "- 1", "must hold names and values"),
        ("options.json", "{", "broken"),
        ("options.txt", "", "must stand in a .yaml, .yml or .json file"),
        ("missing.yaml", None, "does not exist"),
    ],
)
def test_broken_file_of_options_is_told(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["filter", "--config_file", str(tmp_path / name)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_full_disk_is_told_in_a_sentence(here, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    assert main("evaluate --model student --data a=labels --language en --output /dev/full".split()) == 1
    assert "the disk is full: free some space and run the same command again" in capsys.readouterr().err


def test_environment_names_devices_kernels_and_what_to_install(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] in text
    assert "flash_attention_2" in found["attention"]
    for name, version in found["packages"].items():
        assert name in text
        assert version or "pip install 'distilwhisper[" in text

"""The example scripts as a user runs them, on a tiny random teacher and a handful of recordings."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from conftest import REPOSITORY, TEACHER, encoded, tiny_whisper, tone
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration, pipeline

from distilwhisper import Transcriber, load_speech, save_processor
from distilwhisper.cli import main

EXAMPLES = REPOSITORY / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
TRAINING = (
    "--student student --teacher teacher --language en --max_steps 2 --per_device_train_batch_size 2 --logging_steps 1 "
    "--report_to none --use_cpu --disable_tqdm true"
).split()


def run(*command, directory, timeout=300):
    """Run Python on what a user types; return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr[-4_000:]
    return result.stdout


def run_script(name, *arguments, directory, timeout=300):
    return run(EXAMPLES / name, *arguments, directory=directory, timeout=timeout)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, processor):
    """A directory with a teacher and a folder of recordings; the teacher agrees with all transcripts but one."""
    folder = tmp_path_factory.mktemp("workshop")
    teacher = tiny_whisper(max_target_positions=32)
    teacher.save_pretrained(folder / "teacher")
    save_processor(processor, folder / "teacher")
    clips = [tone(1 + index / 4, 200 + 60 * index) for index in range(6)]
    texts = [label.text for label in Transcriber(teacher, processor, language="en", return_timestamps=True)(clips)]
    texts[5] = "something else altogether"
    (folder / "my recordings").mkdir()
    with (folder / "my recordings" / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "speaker"])
        for index, (clip, text) in enumerate(zip(clips, texts, strict=True)):
            (folder / "my recordings" / f"clip {index}.wav").write_bytes(encoded(clip))
            table.writerow([f"clip {index}.wav", text, "ab"[index // 3]])
    return folder


@pytest.fixture(scope="module")
def chain(workshop):
    """What each stage printed, one process after the other."""
    label = "--model teacher --language en --output_dir labels --speaker_column speaker --dataset".split()
    train = [*TRAINING, "--train", "kept", "--eval", "heard=my recordings", "kept=kept", "--output_dir", "distilled"]
    compare = ["--data", "heard=my recordings", "kept=kept", "--latency_samples", "2", "--output", "results.json"]
    stages = {
        "create_student.py": "--teacher teacher --output_dir student".split(),
        "pseudo_label.py": [*label, "my recordings"],
        "filter_labels.py": "--dataset labels --output_dir kept".split(),
        "train.py": train,
        "evaluate_student.py": ["--model", "distilled", "--teacher", "teacher", *compare],
    }
    return {name: run_script(name, *arguments, directory=workshop) for name, arguments in stages.items()}


def test_student_is_made_of_the_teachers_first_and_last_layer(chain, workshop):
    student = WhisperForConditionalGeneration.from_pretrained(workshop / "student")
    assert student.config.decoder_layers == 2
    teachers = load_file(workshop / "teacher" / "model.safetensors")
    for kept, layer in enumerate((0, 3)):
        name = "model.decoder.layers.{}.fc1.weight"
        torch.testing.assert_close(student.state_dict()[name.format(kept)], teachers[name.format(layer)])
    assert "student: 0.9 M parameters" in chain["create_student.py"]


def test_labels_are_saved_with_the_transcripts_and_prompts_of_the_same_speaker(chain, workshop):
    labels = load_from_disk(str(workshop / "labels"))
    assert list(labels["whisper_transcript"])[:5] == list(labels["text"])[:5]
    assert [bool(prompt) for prompt in labels["whisper_prompt"]] == [False, True, True] * 2
    assert chain["pseudo_label.py"].startswith("labelled 6 recordings")


def test_the_filter_drops_the_label_that_disagrees(chain, workshop):
    assert list(load_speech(workshop / "kept")["text"]) == list(load_speech(workshop / "labels")["text"])[:5]
    report = json.loads((workshop / "kept" / "report.json").read_text())
    assert (report["kept"]["samples"], report["reasons"]["wer"]["samples"]) == (5, 1)
    assert "| dropped: wer | 1 |" in chain["filter_labels.py"]
    (dropped,) = map(json.loads, (workshop / "kept" / "dropped.jsonl").read_text().splitlines())
    assert (dropped["index"], dropped["reason"]) == (5, "wer")


def test_training_changes_the_decoder_alone_and_reports_every_validation_set(chain, workshop):
    before = load_file(workshop / "student" / "model.safetensors")
    after = load_file(workshop / "distilled" / "model.safetensors")
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    metrics = json.loads((workshop / "distilled" / "eval_results.json").read_text())
    mean = (metrics["eval_heard_wer"] + metrics["eval_kept_wer"]) / 2
    assert metrics["eval_wer"] == pytest.approx(mean)
    assert f"{metrics['eval_heard_wer']:.4f}" in chain["train.py"]
    assert "***** train metrics *****" in chain["train.py"]


def test_what_was_trained_is_a_plain_whisper_checkpoint(chain, workshop):
    transcribe = pipeline("automatic-speech-recognition", model=str(workshop / "distilled"), device="cpu")
    assert isinstance(transcribe(tone(1.0))["text"], str)


def test_evaluation_prints_and_writes_both_models_and_their_speed(chain, workshop):
    lines = chain["evaluate_student.py"].splitlines()
    assert sum(line.startswith(("| heard | 6 |", "| kept | 5 |")) for line in lines) == 4
    assert sum(bool(re.match(r"\| (teacher|student) \| 1 \|", line)) for line in lines) == 2
    results = json.loads((workshop / "results.json").read_text())
    assert set(results["student"]["sets"]) == set(results["teacher"]["sets"]) == {"heard", "kept"}
    assert results["latency"]["relative_latency"] > 0


def test_results_training_and_filter_become_a_report(chain, workshop):
    """As in the quickstart: what the stages leave is what the report takes."""
    pytest.importorskip("matplotlib")
    flags = [
        "--results",
        workshop / "results.json",
        "--training",
        workshop / "distilled",
        "--filter",
        workshop / "kept",
    ]
    assert main(["report", *map(str, flags), "--output_dir", str(workshop / "report")]) == 0
    assert "Training loss" in (workshop / "report" / "report.html").read_text()


def call(name, *arguments, monkeypatch):
    """Run a script in this process, which saves the seconds of importing torch again."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with suppress_success():
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@contextmanager
def suppress_success():
    try:
        yield
    except SystemExit as stop:
        if stop.code != 0 or "--help" in sys.argv:
            raise


def test_a_student_is_exported_and_checked_on_the_recordings_given(here, tmp_path, monkeypatch, capsys):
    flags = ["--model_dir", "student", "--format", "transformers", "--output_dir", str(tmp_path / "out")]
    call("export_model.py", *flags, "--data", "my recordings", "--samples", "2", monkeypatch=monkeypatch)
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (report["passed"], report["audio"], report["recordings"]) == (True, "given", 2)
    assert f"transformers export in {tmp_path / 'out'}" in capsys.readouterr().out


def test_exports_are_compared_by_size_time_and_errors(here, tmp_path, monkeypatch, capsys):
    kinds = ["transformers:float32", "transformers:float16"]
    flags = ["--output_dir", str(tmp_path), "--data", "my recordings", "--repeats", "1"]
    call("compare_exports.py", "--model_dir", "teacher", "--kinds", *kinds, *flags, monkeypatch=monkeypatch)
    whole, half = json.loads((tmp_path / "comparison.json").read_text())
    assert [whole["kind"], half["kind"]] == kinds
    assert half["megabytes"] < whole["megabytes"]
    assert whole["wer"] == pytest.approx(half["wer"])
    assert whole["wer"] > 0  # one of the six transcripts is not the teacher's
    assert f"| transformers:float32 | {whole['megabytes']:.1f} |" in capsys.readouterr().out


@pytest.fixture
def here(workshop, chain, monkeypatch):
    monkeypatch.chdir(workshop)
    return workshop


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_every_script_is_there(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(name, "--help", monkeypatch=monkeypatch)
    assert stop.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_a_flag_given_twice_adds_to_the_first(here, monkeypatch, capsys):
    """argparse keeps the last of two: the first test set would be left out without a word."""
    flags = ["--data", "heard=my recordings", "--data", "kept=kept"]
    call("evaluate_student.py", "--model", "student", *flags, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "| heard | 6 |" in printed
    assert "| kept | 5 |" in printed


def test_validation_sets_given_one_by_one_are_all_evaluated(here, tmp_path, monkeypatch):
    flags = ["--train", "kept", "--eval", "heard=my recordings", "--eval", "kept=kept", "--output_dir", str(tmp_path)]
    call("train.py", *TRAINING, "--max_steps", "1", *flags, monkeypatch=monkeypatch)
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert {"eval_heard_wer", "eval_kept_wer", "eval_wer"} <= set(metrics)


@pytest.mark.parametrize("preset", [["--preset", "reference"], ["--preset=reference"]])
def test_preset_sets_what_no_flag_sets(here, tmp_path, monkeypatch, preset):
    flags = ["--train", "kept", "--output_dir", str(tmp_path), *preset, "--temperature", "3.0"]
    call("train.py", *TRAINING, *flags, monkeypatch=monkeypatch)
    settings = torch.load(tmp_path / "training_args.bin", weights_only=False)  # written by this very test
    assert (settings.kl_weight, settings.pl_weight, settings.temperature) == (1.0, 0.8, 3.0)


def test_resuming_goes_on_from_the_last_checkpoint(here, tmp_path, monkeypatch):
    for steps in ("2", "3"):
        flags = ["--train", "kept", "--output_dir", str(tmp_path), "--max_steps", steps, "--resume"]
        call("train.py", *TRAINING, *flags, monkeypatch=monkeypatch)
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3]


@pytest.mark.slow
def test_two_processes_train_one_student(chain, workshop):
    """Started by accelerate: with --cpu it would start only one process, hence --multi_gpu and --use_cpu."""
    launch = (
        "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no --main_process_port 0"
    ).split()
    flags = [*TRAINING, "--train", "kept", "--eval", "kept=kept", "--output_dir", "together"]
    printed = run(*launch, EXAMPLES / "train.py", *flags, directory=workshop, timeout=600)
    assert printed.count("***** train metrics *****") == 1
    state = json.loads((workshop / "together" / "checkpoint-2" / "trainer_state.json").read_text())
    # 5 samples in batches of 2 are 3 updates an epoch for one process, 2 for two processes.
    assert (state["global_step"], state["epoch"]) == (2, 1.0)
    before = load_file(workshop / "student" / "model.safetensors")
    after = load_file(workshop / "together" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_processes_that_accelerate_starts_share_the_labelling(chain, workshop, tmp_path):
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no".split()
    flags = [
        "--model",
        "teacher",
        "--language",
        "en",
        "--dataset",
        "my recordings",
        "--output_dir",
        tmp_path / "labels",
    ]
    shards = ["--speaker_column", "speaker", "--shard_rows", "2"]
    environment = "--dynamo_backend no --main_process_port 0".split()
    run(*launch, *environment, EXAMPLES / "pseudo_label.py", *flags, *shards, directory=workshop, timeout=600)
    together, alone = load_from_disk(str(tmp_path / "labels")), load_from_disk(str(workshop / "labels"))
    assert together["whisper_tokens"][:] == alone["whisper_tokens"][:]
    assert together["whisper_prompt"][:] == alone["whisper_prompt"][:]


@pytest.mark.slow
def test_ray_labels_like_the_labeller(chain, workshop, tmp_path):
    pytest.importorskip("ray", reason="needs pip install 'distilwhisper[ray]'")
    flags = ["--model", workshop / "teacher", "--dataset", workshop / "my recordings", "--language", "en"]
    run_script("ray_label.py", *flags, "--output_dir", tmp_path / "labels", "--batch_size", "2", directory=workshop)
    labelled = load_speech(tmp_path / "labels").sort("row")
    texts = [
        each.text for each in Transcriber(workshop / "teacher", language="en")(load_speech(workshop / "my recordings"))
    ]
    assert labelled["whisper_transcript"][:] == texts
    assert labelled["set_aside"][:] == [None] * 6


@pytest.mark.slow
def test_demo_runs_through_and_repeats_no_finished_stage(workshop, tmp_path):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("matplotlib")
    # A random teacher agrees with no transcript: without the trained one there is nothing to filter.
    trained = (TEACHER / "model.safetensors").exists()
    flags = "--train_samples 24 --test_samples 4 --steps 4 --batch_size 4".split()
    flags += ["--output_dir", tmp_path / "demo", "--filter", "on" if trained else "off"]
    flags += ["--teacher", TEACHER if trained else workshop / "teacher"]

    def stages_of(*changes):
        printed = run_script("demo.py", *flags, *changes, directory=tmp_path, timeout=1_800)
        page = Path(re.search(r"Page with plots: (.*)", printed)[1])
        assert "<svg" in page.read_text()
        return re.findall(r"^== (\w+)", printed, re.MULTILINE)

    assert stages_of() == ["corpus", "student", "labels", "kept", "distilled", "evaluation"]
    assert stages_of() == ["evaluation"]
    assert stages_of("--steps", "2") == ["distilled", "evaluation"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("accelerate/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configuration(path):
    config = load_config_from_file(str(path))
    kinds = {"one_gpu": "NO", "many_gpus": "MULTI_GPU", "several_machines": "MULTI_GPU", "fsdp2": "FSDP"}
    kinds["deepspeed_zero2"] = "DEEPSPEED"
    assert config.distributed_type == kinds[path.stem]
    assert config.num_processes % config.num_machines == 0
    if path.stem == "fsdp2":
        layers = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        names = {type(module).__name__ for module in tiny_whisper().modules()}
        assert set(layers) <= names


def test_recordings_of_all_kinds_are_transcribed_one_line_each(workshop, tmp_path):
    (tmp_path / "long.wav").write_bytes(encoded(tone(7.0)))
    (tmp_path / "broken.wav").write_bytes(b"noise")
    sources = [tmp_path / "long.wav", tmp_path / "broken.wav", "my recordings"]
    options = "--model teacher --assistant teacher --language en --batch_size 2 --output heard.jsonl".split()
    run_script("transcribe.py", "--audio", *sources, *options, directory=workshop)
    lines = [json.loads(line) for line in (workshop / "heard.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {Path(line["recording"]).name: line for line in lines}
    assert len(found) == 8
    assert found["broken.wav"]["error"] == "unreadable"
    assert found["long.wav"]["duration_s"] == 7.0
    assert found["long.wav"]["segments"][0]["start_s"] >= 0

"""Uploads with real requests to a stand-in of the Hub."""

import json
import subprocess
import sys

import pytest
from hub_server import hub_server

from distilwhisper.hub import hub_files
from distilwhisper.student import create_student, save_processor

PUSH = """import json, sys
from distilwhisper.hub import push_to_hub
print(push_to_hub(*json.loads(sys.argv[1]), **json.loads(sys.argv[2])))"""


@pytest.fixture
def hub(tmp_path):
    with hub_server(tmp_path / "home") as server:
        yield server


@pytest.fixture
def student_dir(tmp_path, processor, tiny_teacher):
    directory = tmp_path / "student"
    create_student(tiny_teacher, 2).save_pretrained(directory)
    save_processor(processor, directory)
    for name in ("training_args.bin", "trainer_state.json", "checkpoint-5/model.safetensors"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("not for the Hub")
    return directory


def written(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return str(directory)


def push(hub, *arguments, **options):
    command = [sys.executable, "-c", PUSH, json.dumps(list(map(str, arguments))), json.dumps(options)]
    return subprocess.run(command, env=hub.environment, capture_output=True, text=True, timeout=120)


def test_model_exports_and_card_go_up_in_one_commit_and_nothing_else_does(hub, student_dir, tmp_path):
    ggml = written(tmp_path / "ggml", {"ggml-model-f16.bin": "ggml", "parity.json": "{}"})
    onnx = {"onnx/encoder_model.onnx": "onnx", "config.json": "{}", "tokenizer.json": "{}"}
    exports = {"ggml": ggml, "onnx": written(tmp_path / "export", onnx)}
    result = push(hub, student_dir, "me/student", "---\nlicense: mit\n---\n# Card\n", exports=exports, private=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{hub.endpoint}/me/student/commit/{hub.sha}"
    ((repo, revision, files),) = hub.commits
    assert (repo, revision, hub.private) == ("me/student", "main", {"me/student": True})
    expected = {"README.md", "ggml/ggml-model-f16.bin", "ggml/parity.json", "onnx/encoder_model.onnx"}
    expected |= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(files) >= expected
    assert not {name for name in files if "trainer" in name or "training" in name or "checkpoint" in name}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert hub.repos["me/student"][name] == (student_dir / name).read_bytes()
    assert {token for _, _, token in hub.requests} == {"Bearer hf_test"}


def test_refused_commit_is_an_error_and_leaves_nothing(hub, student_dir):
    hub.refuses = True
    result = push(hub, student_dir, "me/student", "# Card\n")
    assert result.returncode != 0
    assert "403" in result.stderr
    assert hub.repos == {"me/student": {}}


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_incomplete_model_is_refused_before_any_request(missing, student_dir):
    (student_dir / missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no (model|processor): \S+ is missing"):
        hub_files(student_dir, {})


def test_missing_export_is_refused(student_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no export of the format ggml"):
        hub_files(student_dir, {"ggml": tmp_path / "none"})


def test_how_weights_are_split_reaches_the_config_that_transformers_js_reads(student_dir, tmp_path):
    settings = {"use_external_data_format": {"encoder_model.onnx": 1}}
    files = {"onnx/encoder_model.onnx": "", "config.json": json.dumps({"transformers.js_config": settings})}
    config = json.loads(hub_files(student_dir, {"onnx": written(tmp_path / "out", files)})["config.json"])
    assert config.pop("transformers.js_config") == settings
    assert config == json.loads((student_dir / "config.json").read_text())

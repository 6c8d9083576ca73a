"""The card's metadata and text; and each of its snippets, run as it stands against a stand-in of the Hub."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, TEACHER, tiny_whisper
from hub_server import hub_server
from huggingface_hub import ModelCard
from test_hub import push

from distilwhisper.audio import load_audio
from distilwhisper.evaluation import EvaluationResult, SetResult
from distilwhisper.filtering import Decision, WERFilter
from distilwhisper.metrics import count_word_errors
from distilwhisper.model_card import SNIPPETS, Recipe, render_model_card
from distilwhisper.reports import DistillationReport, ModelResult
from distilwhisper.student import create_student, save_processor
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus
from distilwhisper.transcription import Transcriber

WIDE = ["openai-whisper", "ctranslate2"]
"""Formats whose packages pad everything to 30 s."""


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("student")
    student = create_student(tiny_whisper(), 2)
    student.config.distillation["teacher"] = "openai/whisper-tiny"
    student.save_pretrained(directory)
    return directory


def metadata(card):
    return ModelCard(card).data.to_dict()


def test_card_has_metadata_that_the_hub_reads(student_dir):
    scores = {
        "clean": SetResult({0: count_word_errors("a b c d", "a b c x")}),
        "empty": SetResult(),  # has no error rate, and so no entry
    }
    recipe = Recipe(datasets=["me/speech", "my own recordings"])
    data = metadata(render_model_card(student_dir, "me/tiny-student", results=EvaluationResult(scores), recipe=recipe))
    assert (data["license"], data["language"]) == ("mit", "en")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "automatic-speech-recognition")
    assert (data["base_model"], data["datasets"]) == ("openai/whisper-tiny", ["me/speech"])
    ((index),) = data["model-index"]
    assert index["name"] == "tiny-student"
    ((result),) = index["results"]
    assert result["dataset"] == {"name": "clean", "type": "clean"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("wer", 25.0)]


def test_report_gives_one_entry_a_set_with_the_students_rate(student_dir):
    models = [
        ModelResult("teacher", 9_000_000, 4, {"a": 0.1, "b": 0.2}),
        ModelResult("student", 4_000_000, 2, {"a": 0.123, "b": 0.25}),
    ]
    report = DistillationReport("t", models, ["a"], ["b"])
    card = render_model_card(student_dir, "me/student", results=report)
    ((index),) = metadata(card)["model-index"]
    assert [result["metrics"][0]["value"] for result in index["results"]] == [12.3, 25.0]
    assert report.headline() in card


def test_recipe_lists_what_is_known_and_nothing_else(student_dir):
    wer_filter = WERFilter(0.1)
    wer_filter.report.count(Decision(None, 0.0), 1800)
    wer_filter.report.count(Decision("wer", 0.5), 1800)
    settings = {"kl_weight": 0.8, "pl_weight": 1.0, "temperature": 2.0, "output_dir": "/home/me", "hub_token": "secret"}
    recipe = Recipe(
        teacher_revision="abc", filter=wer_filter.report.to_dict(), steps=1000, datasets=["own"], settings=settings
    )
    card = render_model_card(student_dir, "me/student", recipe=recipe)
    for line in (
        "- teacher: openai/whisper-tiny",
        "- teacher revision: abc",
        "- decoder layers kept (from 0): 0, 3 of 4",
        "- training data: own",
        "- filter: WER of the label at most 10 %, which kept 1 of 2 samples",
        "- hours of audio: 0.50",
        "- updates: 1000",
        "- kl_weight: 0.8",
    ):
        assert line in card.splitlines()
    assert "secret" not in card
    assert "/home/me" not in card
    assert "None" not in render_model_card(student_dir, "me/student")


def test_english_only_model_is_not_asked_for_a_language(student_dir, tmp_path):
    shutil.copytree(student_dir, tmp_path, dirs_exist_ok=True)
    assert 'generate_kwargs={"language": "en"}' in render_model_card(tmp_path, "me/student")
    text = (tmp_path / "generation_config.json").read_text()
    (tmp_path / "generation_config.json").write_text(
        text.replace('"is_multilingual": true', '"is_multilingual": false')
    )
    assert "generate_kwargs" not in render_model_card(tmp_path, "me/student")


def test_unknown_format_is_refused(student_dir):
    with pytest.raises(ValueError, match="no format 'gguf'; the formats are transformers"):
        render_model_card(student_dir, "me/student", exports={"gguf": "somewhere"})


@pytest.fixture(scope="module")
def hub(wide_teacher, wide_processor, processor, tmp_path_factory):
    """A Hub with a trained model and its exports and, for packages that take no other window, the same one of 30 s."""
    from distilwhisper.export import export_model

    folder = tmp_path_factory.mktemp("hub")
    trained = create_student(TEACHER, 16)
    trained.config.distillation["teacher"] = "me/trained"
    models = {"wide": (wide_teacher, wide_processor, WIDE)}
    models["trained"] = trained, processor, ["decoder-only", "ggml", "onnx"]
    with hub_server(folder / "home") as server:
        server.snippets = {}
        for name, (model, its_processor, formats) in models.items():
            directory = folder / name
            model.save_pretrained(directory)
            save_processor(its_processor, directory)
            exports = {format: str(folder / f"{name}-{format}") for format in formats}
            for format, export_dir in exports.items():
                export_model(directory, format, export_dir, check=False)
            card = render_model_card(directory, f"me/{name}", exports=exports)
            result = push(server, directory, f"me/{name}", card, exports=exports)
            assert result.returncode == 0, result.stderr
            snippets = re.findall(r"```(?:python|javascript)\n(.*?)```", card, re.DOTALL)
            server.snippets.update(zip(["transformers", *formats], snippets, strict=True))
        yield server


@pytest.fixture(scope="module")
def recordings(wide_teacher, wide_processor, tmp_path_factory):
    """A recording for models of 5 s and, for those of 30 s, one that fills the window, each with its text."""
    corpus = synthesize_corpus(CorpusConfig(train=0, validation=1, test=0, ood_accents=0, ood_noise=0))
    samples = load_audio(corpus["validation"]["audio"][0])
    folder = tmp_path_factory.mktemp("audio")
    found = {}
    for name, model in (("trained", (str(TEACHER),)), ("wide", (wide_teacher, wide_processor))):
        heard = samples if name == "trained" else np.pad(samples, (0, 480_000 - len(samples)))
        soundfile.write(folder / f"{name}.wav", heard, 16_000, subtype="FLOAT")
        found[name] = folder / f"{name}.wav", Transcriber(*model, language="en")(heard).text
    return found


NEEDS = {"openai-whisper": "whisper", "ctranslate2": "faster_whisper", "ggml": "pywhispercpp", "onnx": "onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("format", [*SNIPPETS])
def test_snippet_of_the_card_runs_as_it_stands(format, hub, recordings, tmp_path):
    pytest.importorskip(NEEDS.get(format, "transformers"))
    path, text = recordings["wide" if format in WIDE else "trained"]
    code = hub.snippets[format]
    shutil.copy(path, tmp_path / "audio.wav")
    if format == "onnx":
        packages = REPOSITORY / "node_modules"
        if not shutil.which("node") or not (packages / "@huggingface" / "transformers").exists():
            pytest.skip("needs Node and its package @huggingface/transformers in node_modules")
        (tmp_path / "node_modules").symlink_to(packages.resolve())
        soundfile.read(path, dtype="float32")[0].tofile(tmp_path / "audio.f32")
        head = 'import { env } from "@huggingface/transformers";\nimport { readFileSync } from "node:fs";\n'
        head += f'env.remoteHost = "{hub.endpoint}/";\nenv.cacheDir = "{tmp_path}/cache";\n'
        head += 'const samples = new Float32Array(new Uint8Array(readFileSync("audio.f32")).buffer);\n'
        (tmp_path / "snippet.mjs").write_text(head + code)
        command = ["node", "snippet.mjs"]
    else:
        (tmp_path / "snippet.py").write_text(code)
        command = [sys.executable, "snippet.py"]
    result = subprocess.run(command, cwd=tmp_path, env=hub.environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].strip() == text

"""ONNX files in onnxruntime, in this process, and in Transformers.js, in Node."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TEACHER, tiny_whisper
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from vocabularies import KINDS, model_and_processor

from distilwhisper.audio import load_audio
from distilwhisper.export import onnx as onnx_format
from distilwhisper.generation import decode, encode, generate_tokens
from distilwhisper.student import create_student
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus
from distilwhisper.tokens import WhisperTokens
from distilwhisper.transcription import Transcriber

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

MAX_NEW_TOKENS = 20
PROMPT = [50_258, 50_259, 50_359, 50_363]  # English, transcribe, no timestamps


def forced_logits(model, features, prompt, tokens):
    hidden = decode(model, torch.tensor([[*prompt, *tokens]]), encode(model, features[None]))
    with torch.no_grad():
        return model.proj_out(hidden.clone())[0, len(prompt) - 1 :].numpy()


@pytest.fixture(scope="module")
def recordings():
    corpus = synthesize_corpus(CorpusConfig(train=0, validation=3, test=0, ood_accents=0, ood_noise=0))
    return [load_audio(audio) for audio in corpus["validation"]["audio"]]


@pytest.fixture(scope="module")
def teacher():
    return WhisperForConditionalGeneration.from_pretrained(TEACHER, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_random_models_of_every_vocabulary_have_the_tokens_and_logits_of_transformers(kind, tmp_path):
    model, processor = model_and_processor(kind, decoder_layers=3)
    tokens, mels = WhisperTokens.from_tokenizer(processor.tokenizer), model.config.num_mel_bins
    onnx_format.write(model, processor, tmp_path)
    features, prompt = torch.randn(2, mels, 100), tokens.prefix("en")
    own = generate_tokens(model, [prompt] * 2, input_features=features, max_new_tokens=MAX_NEW_TOKENS)
    assert onnx_format.run(tmp_path, features.numpy(), prompt, MAX_NEW_TOKENS) == own.ids
    for row, logits in enumerate(onnx_format.logits(tmp_path, features.numpy(), prompt, own.ids)):
        np.testing.assert_allclose(logits, forced_logits(model, features[row], prompt, own.ids[row]), atol=1e-3)


def test_matrix_shared_by_embeddings_and_output_is_stored_once_unless_they_differ(tmp_path, processor):
    model = tiny_whisper(decoder_layers=1, encoder_layers=1)
    onnx_format.write(model, processor, tmp_path)
    path = tmp_path / "onnx" / "decoder_model_merged.onnx"
    embeddings = 4 * model.proj_out.weight.numel()
    assert embeddings < path.stat().st_size < 2 * embeddings
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight + 1)
    onnx_format.write(model, processor, tmp_path)
    assert path.stat().st_size > 2 * embeddings


def test_graphs_are_valid_have_no_branch_and_name_the_batch_as_transformers_js_expects(tmp_path, processor):
    onnx_format.write(tiny_whisper(decoder_layers=1), processor, tmp_path)
    for path in (tmp_path / "onnx").iterdir():
        onnx.checker.check_model(path, full_check=True)
        graph = onnx.load(path).graph
        assert "If" not in {node.op_type for node in graph.node}
        assert {value.type.tensor_type.shape.dim[0].dim_param for value in graph.input} == {"batch_size"}
    # Transformers.js stops with a TypeError where one of them is missing.
    needed = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    assert {path.name for path in tmp_path.iterdir()} >= needed | {"tokenizer_config.json", "onnx"}


def test_large_graph_keeps_its_weights_in_a_second_file_that_the_config_names(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(onnx_format, "MAX_FILE_BYTES", 1_000_000)
    model = tiny_whisper(decoder_layers=1, max_source_positions=50)
    onnx_format.write(model, processor, tmp_path)
    assert (tmp_path / "onnx" / "decoder_model_merged.onnx").stat().st_size < 100_000
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": {"decoder_model_merged.onnx": 1}}
    features, prompt = torch.randn(1, 80, 100), PROMPT
    own = generate_tokens(model, [prompt], input_features=features, max_new_tokens=5)
    assert onnx_format.run(tmp_path, features.numpy(), prompt, 5) == own.ids


def test_suppressed_tokens_of_the_generation_config_do_not_occur(tmp_path, processor):
    model, features, prompt = tiny_whisper(decoder_layers=1, max_source_positions=50), torch.randn(1, 80, 100), PROMPT
    (plain,) = generate_tokens(model, [prompt], input_features=features, max_new_tokens=5).ids
    model.generation_config.begin_suppress_tokens, model.generation_config.suppress_tokens = plain[:1], plain[1:2]
    onnx_format.write(model, processor, tmp_path)
    own = generate_tokens(model, [prompt], input_features=features, max_new_tokens=5)
    assert own.ids[0] != plain
    assert onnx_format.run(tmp_path, features.numpy(), prompt, 5) == own.ids


@pytest.mark.parametrize(
    ("dtype", "changes", "message"),
    [("float16", {}, "float32, q8, not 'float16'"), ("float32", {"scale_embedding": True}, "trained otherwise")],
)
def test_what_the_graphs_cannot_express_is_refused(dtype, changes, message, tmp_path, processor):
    with pytest.raises((ValueError, RuntimeError), match=message):
        onnx_format.write(tiny_whisper(1, 1, **changes), processor, tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "q8"])
def test_teacher_transcribes_as_in_transformers(dtype, teacher, recordings, tmp_path):
    transcriber = Transcriber(teacher, WhisperProcessor.from_pretrained(TEACHER), language="en")
    features, prompt = transcriber.extract_features(recordings), transcriber.tokens.prefix("en")
    own = generate_tokens(teacher, [prompt] * len(features), input_features=features, max_new_tokens=30)
    onnx_format.write(teacher, transcriber.processor, tmp_path, dtype=dtype)
    assert onnx_format.run(tmp_path, features.numpy(), prompt, 30) == own.ids


@pytest.fixture
def transformers_js(tmp_path):
    """A function that runs an export in Transformers.js."""
    packages = REPOSITORY / "node_modules"
    if not shutil.which("node") or not (packages / "@huggingface" / "transformers").exists():
        pytest.skip("needs Node, and in the repository: ONNXRUNTIME_NODE_INSTALL=skip npm i @huggingface/transformers")
    shutil.copy(REPOSITORY / "tests" / "transformers_js.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(packages.resolve())

    def run(name, dtype, features, prompt, audio, options):
        def saved(kind, arrays):
            for row, array in enumerate(arrays):
                np.asarray(array, np.float32).tofile(tmp_path / f"{kind}-{row}")
            return [str(tmp_path / f"{kind}-{row}") for row in range(len(arrays))]

        request = {"directory": str(tmp_path), "name": name, "dtype": dtype, "prompt": prompt, "options": options}
        request |= {"features": saved("features", features), "shape": [1, *features.shape[1:]]}
        request |= {"audio": saved("audio", audio), "max_new_tokens": 30}
        (tmp_path / "request.json").write_text(json.dumps(request))
        command = ["node", "transformers_js.mjs", "request.json"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout.splitlines()[-1])
        end = json.loads((tmp_path / name / "generation_config.json").read_text())["eos_token_id"]
        return {**found, "tokens": [ids[: ids.index(end)] if end in ids else ids for ids in found["tokens"]]}

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_js_in_node_gives_the_tokens_of_every_vocabulary(kind, tmp_path, transformers_js):
    model, processor = model_and_processor(kind, decoder_layers=3)
    onnx_format.write(model, processor, tmp_path / "tiny")
    features, prompt = (
        torch.randn(2, model.config.num_mel_bins, 100),
        WhisperTokens.from_tokenizer(processor.tokenizer).prefix("en"),
    )
    own = generate_tokens(model, [prompt] * 2, input_features=features, max_new_tokens=30)
    found = transformers_js("tiny", "fp32", features.numpy(), prompt, [], {})
    assert found["tokens"] == own.ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "source"),
    [("float32", "teacher"), ("q8", "teacher"), ("float32", "untrained"), ("float32", "student"), ("q8", "student")],
)
def test_transformers_js_in_node_gives_the_tokens_and_texts_of_transformers(
    dtype, source, teacher, recordings, tmp_path, transformers_js
):
    model = create_student(teacher, 2) if source == "untrained" else teacher
    if source == "student":
        directory = os.environ.get("DISTILWHISPER_STUDENT")
        if not directory:
            pytest.skip("needs a trained student: DISTILWHISPER_STUDENT=outputs/demo/distilled")
        model = WhisperForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    transcriber = Transcriber(model, WhisperProcessor.from_pretrained(TEACHER), language="en", max_new_tokens=30)
    features, prompt = transcriber.extract_features(recordings), transcriber.tokens.prefix("en")
    own = generate_tokens(model, [prompt] * len(features), input_features=features, max_new_tokens=30)
    onnx_format.write(model, transcriber.processor, tmp_path / "student", dtype=dtype)
    named = {"float32": "fp32", "q8": "q8"}[dtype]
    options = {"language": "en", "max_new_tokens": 30}
    found = transformers_js("student", named, features.numpy(), prompt, recordings, options)
    assert found["tokens"] == own.ids
    assert [text.strip() for text in found["texts"]] == [transcript.text for transcript in transcriber(recordings)]

"""ggml files in whisper.cpp: through its C interface, and as a user of pywhispercpp transcribes."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import TEACHER
from conftest import tiny_whisper as any_whisper
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from vocabularies import KINDS, model_and_processor

from distilwhisper.audio import load_audio
from distilwhisper.export import ggml
from distilwhisper.export.formats import ExportError
from distilwhisper.generation import decode, encode, generate_tokens
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus
from distilwhisper.tokens import WhisperTokens
from distilwhisper.transcription import Transcriber

WIDTHS = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # 4 times d_model, as whisper.cpp has it


def tiny_whisper(*layers, **changes):
    return any_whisper(*layers, **{**WIDTHS, **changes})


def in_whisper_cpp(function, *arguments, tmp_path):
    """Call `ggml.run` or `ggml.logits` in a process of its own: whisper.cpp aborts on what it does not like."""
    pytest.importorskip("_pywhispercpp", reason="needs the extra ggml")
    features, prompt, last = arguments
    np.save(tmp_path / "features.npy", features)
    program = f"""import json, sys
import numpy as np
from pathlib import Path
from distilwhisper.export import ggml
folder = Path(sys.argv[1])
found = ggml.{function}(folder, np.load(folder / "features.npy"), *json.loads(sys.argv[2]))
np.savez(folder / "found.npz", *[np.asarray(row) for row in found])"""
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps([prompt, last])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "found.npz") as found:
        rows = [found[name] for name in found.files]
    return rows if function == "logits" else [row.astype(int).tolist() for row in rows]


def forced_logits(model, features, prompt, tokens):
    hidden = decode(model, torch.tensor([[*prompt, *tokens]]), encode(model, features[None]))
    with torch.no_grad():
        return model.proj_out(hidden.clone())[0, len(prompt) - 1 :].numpy()


@pytest.fixture(scope="module")
def teacher():
    return WhisperForConditionalGeneration.from_pretrained(TEACHER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def recordings():
    corpus = synthesize_corpus(CorpusConfig(train=0, validation=3, test=0, ood_accents=0, ood_noise=0))
    return [load_audio(audio) for audio in corpus["validation"]["audio"]]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_every_vocabulary_are_those_of_transformers(kind, tmp_path):
    """Layer counts that no published model has, 80 and 128 mel bins."""
    model, processor = model_and_processor(kind, window_s=5, encoder_layers=1, decoder_layers=3, **WIDTHS)
    ggml.write(model, processor, tmp_path)
    mels = model.config.num_mel_bins
    features = torch.randn(2, mels, 500)
    prompt = WhisperTokens.from_tokenizer(processor.tokenizer).prefix("en")
    ids = [[17, 40_000, 3], [5, 6, 7]]
    for row, logits in enumerate(in_whisper_cpp("logits", features.numpy(), prompt, ids, tmp_path=tmp_path)):
        own = forced_logits(model, features[row], prompt, ids[row])
        assert np.abs(logits - own).max() < 0.1 * own.std()


@pytest.mark.parametrize("dtype", ["float16", "q8_0", "q5_0"])
def test_teacher_transcribes_as_in_transformers(dtype, teacher, recordings, tmp_path):
    if dtype != "float16":
        pytest.importorskip("gguf", reason="needs the extra ggml")
    transcriber = Transcriber(teacher, WhisperProcessor.from_pretrained(TEACHER), language="en")
    features, prompt = transcriber.extract_features(recordings), transcriber.tokens.prefix("en")
    own = generate_tokens(teacher, [prompt] * len(features), input_features=features, max_new_tokens=30)
    ggml.write(teacher, transcriber.processor, tmp_path, dtype=dtype)
    assert in_whisper_cpp("run", features.numpy(), prompt, 30, tmp_path=tmp_path) == own.ids


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*ggml.DTYPES])
def test_every_number_type_stays_near_the_models_logits(dtype, teacher, recordings, tmp_path):
    if dtype != "float16":
        pytest.importorskip("gguf", reason="needs the extra ggml")
    transcriber = Transcriber(teacher, WhisperProcessor.from_pretrained(TEACHER), language="en")
    features, prompt = transcriber.extract_features(recordings), transcriber.tokens.prefix("en")
    own = generate_tokens(teacher, [prompt] * len(features), input_features=features, max_new_tokens=30)
    ggml.write(teacher, transcriber.processor, tmp_path, dtype=dtype)
    bound = {"float16": 0.05, "q8_0": 0.1, "q5_1": 0.4, "q5_0": 0.4}.get(dtype, 0.8)
    for row, logits in enumerate(in_whisper_cpp("logits", features.numpy(), prompt, own.ids, tmp_path=tmp_path)):
        expected = forced_logits(teacher, features[row], prompt, own.ids[row])
        assert np.abs(logits - expected).max() < bound * expected.std()


@pytest.mark.slow
def test_pywhispercpp_transcribes_a_file_to_the_words_of_transformers(teacher, recordings, tmp_path):
    """whisper.cpp's own features, search and text, in recordings that fit into the window of the model."""
    pytest.importorskip("pywhispercpp", reason="needs the extra ggml")
    transcriber = Transcriber(teacher, WhisperProcessor.from_pretrained(TEACHER), language="en")
    ggml.write(teacher, transcriber.processor, tmp_path)
    for row, samples in enumerate(recordings):
        soundfile.write(tmp_path / f"{row}.wav", samples, 16_000)
    program = f"""import sys
from pywhispercpp.model import Model
model = Model(sys.argv[1], language="en", no_timestamps=True, n_threads=1, temperature_inc=0.0, print_progress=False)
for row in range({len(recordings)}):
    print("".join(segment.text for segment in model.transcribe(f"{{sys.argv[2]}}/{{row}}.wav")))"""
    command = [sys.executable, "-c", program, str(tmp_path / ggml.file_name()), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    texts = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert texts == [transcript.text for transcript in transcriber(recordings)]


def test_file_opens_with_the_sizes_and_the_number_type_of_the_matrices(tmp_path, processor):
    pytest.importorskip("gguf", reason="needs the extra ggml")
    model = tiny_whisper(3, 1, d_model=32, encoder_ffn_dim=128, decoder_ffn_dim=128)
    for dtype, kind in {"float16": 1, "q8_0": 2007}.items():
        ggml.write(model, processor, tmp_path, dtype=dtype)
        with (tmp_path / ggml.file_name(dtype)).open("rb") as file:
            header = struct.unpack("<12i", file.read(48))
        assert header == (0x67676D6C, 51_865, 250, 32, 2, 1, 448, 32, 2, 3, 80, kind)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float32", "must be one of float16, q8_0"),  # whisper.cpp aborts on it
        ("q6_k", "must be one of float16, q8_0"),
        ("q8_0", "in blocks of 32, but d_model is 16; export the model as float16"),
    ],
)
def test_number_type_that_whisper_cpp_cannot_take_is_refused(dtype, message, tmp_path, processor):
    if dtype == "q8_0":
        pytest.importorskip("gguf", reason="needs the extra ggml")
    with pytest.raises((ValueError, ExportError), match=message):
        ggml.write(tiny_whisper(1, 1), processor, tmp_path, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_model_that_whisper_cpp_would_read_wrongly_is_refused(tmp_path, processor):
    with pytest.raises(ExportError, match="this model's 51870 tokens are not those of a published Whisper"):
        ggml.write(tiny_whisper(1, 1, vocab_size=51_870), processor, tmp_path)
    with pytest.raises(ExportError, match="does not scale embeddings"):
        ggml.write(tiny_whisper(1, 1, scale_embedding=True), processor, tmp_path)
    with pytest.raises(ExportError, match="4 times d_model, 64, but this model's are of 64 and 32"):
        ggml.write(tiny_whisper(1, 1, decoder_ffn_dim=32), processor, tmp_path)
    model = tiny_whisper(1, 1)
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight + 1)
    with pytest.raises(ExportError, match="this model has two"):
        ggml.write(model, processor, tmp_path)


def test_window_other_than_30_s_is_warned_of(tmp_path, processor, caplog):
    ggml.write(tiny_whisper(1, 1, max_source_positions=1500), processor, tmp_path)
    assert not caplog.records
    ggml.write(tiny_whisper(1, 1), processor, tmp_path)
    assert "this model's window is 5 s: give it no longer recordings" in caplog.text


def test_half_precision_that_overflows_is_refused(tmp_path, processor):
    model = tiny_whisper(1, 1)
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"encoder\.blocks\.0\.mlp\.0\.weight holds values up to 1e\+06"):
        ggml.write(model, processor, tmp_path)

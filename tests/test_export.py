"""Exports as their users get them: loaded in the real runtime, where it is installed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TEACHER, tiny_whisper, tone
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers import WhisperFeatureExtractor as FeatureExtractor

from distilwhisper import Transcriber, create_student, save_processor
from distilwhisper.export import FORMATS, ExportError, export_model
from distilwhisper.export.parity import builtin_audio, check_parity
from distilwhisper.export.runtimes import run_format
from distilwhisper.metrics import word_distance

sys.path.insert(0, str(REPOSITORY / "examples" / "teacher_recipe"))

TONES = [tone(1.0), tone(2.0, 440)]


def saved(model, processor, directory) -> Path:
    model.save_pretrained(directory)
    save_processor(processor, directory)
    return directory


def report_of(export_dir) -> dict:
    return json.loads((export_dir / "parity.json").read_text())


@pytest.fixture(scope="module")
def tiny_dir(processor, tmp_path_factory):
    model = tiny_whisper(decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64)
    return saved(model, processor, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def student_dir(processor, tmp_path_factory):
    """What create_student and save_processor leave, nothing else."""
    return saved(create_student(TEACHER, 2), processor, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module", params=["51864-80", "51866-128"])
def other_kind_dir(request, tmp_path_factory):
    """Tiny models with the English-only vocabulary, and with that of 100 languages and 128 mel bins."""
    whisper = pytest.importorskip("whisper", reason="the vocabularies are built from the package openai-whisper")
    import build_tokenizer as recipe

    size, mels = map(int, request.param.split("-"))
    assets = Path(whisper.__file__).parent / "assets" / ("gpt2" if size == 51_864 else "multilingual")
    recipe.LANGUAGE_COUNT = size - 51_766 if size > 51_864 else 99
    tokenizer = recipe.build_tokenizer(assets.with_suffix(".tiktoken").read_bytes(), TEACHER / "normalizer.json")
    assert len(tokenizer) == size
    generation = recipe.generation_config(tokenizer)
    # As in the published models; openai-whisper never gives these tokens, whatever the model wants.
    names = "startoftranscript translate transcribe startoflm startofprev nocaptions".split()
    generation.suppress_tokens = tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    if size == 51_864:
        generation.is_multilingual = False
        del generation.lang_to_id, generation.task_to_id
    # openai-whisper and whisper.cpp know no other width than 4 times d_model.
    model = tiny_whisper(3, vocab_size=size, num_mel_bins=mels, encoder_ffn_dim=64, decoder_ffn_dim=64)
    model.generation_config = generation
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        setattr(model.config, name, getattr(generation, name))
    extractor = FeatureExtractor(feature_size=mels, chunk_length=5)
    return saved(model, WhisperProcessor(extractor, tokenizer), tmp_path_factory.mktemp("other"))


def needs(format):
    chosen = FORMATS[format]
    for package in {chosen.writer, chosen.runtime} - {None}:
        pytest.importorskip(package, reason=f"pip install 'distilwhisper[{chosen.extra}]'")


# Every format and every kind of model


@pytest.mark.parametrize("format", [*FORMATS])
def test_a_student_gives_the_same_tokens_in_every_runtime(format, student_dir, tmp_path):
    needs(format)
    assert export_model(student_dir, format, tmp_path / "new" / "out") == tmp_path / "new" / "out"
    report = report_of(tmp_path / "new" / "out")
    assert report["passed"]
    assert report["equal"] == report["tokens"] - report["undecided"] > 20
    # whisper.cpp keeps what attention reads in 16 bits and approximates gelu with a table.
    assert report["logit_difference"] < (0.1 if format == "ggml" else 0.05) * report["logit_deviation"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        *[("transformers", dtype) for dtype in ("float32", "float16", "bfloat16")],
        *[("openai-whisper", dtype) for dtype in ("float32", "float16")],
        *[("ctranslate2", dtype) for dtype in ("float32", "float16", "int8")],
    ],
)
def test_a_trained_model_gives_the_same_tokens_in_every_number_type(format, dtype, tmp_path):
    needs(format)
    export_model(TEACHER, format, tmp_path / "out", dtype=dtype)
    report = report_of(tmp_path / "out")
    assert (report["equal"], report["undecided"], report["audio"]) == (report["tokens"], 0, "eSpeak NG")


@pytest.mark.slow
@pytest.mark.parametrize("format", [*FORMATS])
def test_other_vocabularies_and_mel_bins_give_the_same_tokens(format, other_kind_dir, tmp_path):
    needs(format)
    options = {} if format in ("transformers", "decoder-only", "ggml") else {"dtype": "float32"}
    export_model(other_kind_dir, format, tmp_path / "out", audio=TONES, **options)
    report = report_of(tmp_path / "out")
    assert report["equal"] == report["tokens"] - report["undecided"] > 20
    if format != "ggml":  # which has no float32
        assert report["undecided"] == 0
        assert report["logit_difference"] < 1e-3


@pytest.mark.slow
def test_long_transcripts_are_not_cut_short(processor, tmp_path):
    """CTranslate2 takes half of its max_length for the prompt."""
    needs("ctranslate2")
    model = tiny_whisper(decoder_layers=2, seed=3)
    model.generation_config.suppress_tokens = [model.config.eos_token_id]
    export_model(saved(model, processor, tmp_path / "model"), "ctranslate2", tmp_path / "out", audio=TONES[:1])
    assert report_of(tmp_path / "out")["tokens"] == 64


# The check


def test_the_check_finds_another_models_tokens(processor, tmp_path):
    model, other = tiny_whisper(decoder_layers=2), tiny_whisper(decoder_layers=2, seed=1)
    saved(other, processor, tmp_path)
    report = check_parity(model, processor, tmp_path, "transformers", dtype="float32", audio=TONES)
    assert not report.passed
    assert "it differs in 2 of 2 recordings (given), first in recording 0, token 0" in str(report)
    first = report.differences[0]
    assert first["expected"] != first["given"]
    assert first["margin"] > report.tolerance * report.logit_deviation * 0.5


def test_a_difference_counts_only_where_the_model_is_surer_than_the_number_type_is_exact(processor, tmp_path):
    model = tiny_whisper(decoder_layers=2)
    shaken = tiny_whisper(decoder_layers=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in shaken.model.decoder.parameters():
            weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
    saved(shaken, processor, tmp_path)
    audio = [tone(1, pitch) for pitch in (100, 200, 300, 400, 500, 600)]
    exact, coarse = (
        check_parity(model, processor, tmp_path, "transformers", dtype=dtype, audio=audio)
        for dtype in ("float32", "q4")
    )
    assert not exact.passed
    assert coarse.passed
    assert coarse.undecided > 0
    assert f"{coarse.undecided} are undecided" in str(coarse)
    assert json.loads(coarse.to_json())["undecided"] == coarse.undecided


def test_builtin_audio_is_speech_or_without_espeak_tones(monkeypatch):
    assert builtin_audio()[0] == "eSpeak NG"
    from distilwhisper import synthesis

    synthesis._espeak.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # what an import finds if the package is missing
    name, recordings = builtin_audio()
    synthesis._espeak.cache_clear()
    assert name == "tones"
    assert [len(samples) for samples in recordings] == [48_000] * 4
    assert {samples.dtype for samples in recordings} == {np.dtype(np.float32)}


def test_a_runtime_that_does_not_take_the_export_is_an_error(tmp_path):
    needs("ctranslate2")
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(ExportError, match="ctranslate2 did not take the export: "):
        run_format("ctranslate2", tmp_path, [np.zeros((80, 500), np.float32)], [50_258], 5, [[]])


# Refusals, and nothing half done


def test_what_cannot_be_exported_is_refused(tiny_dir, tmp_path):
    with pytest.raises(ValueError, match="no format 'onyx'; there are transformers, "):
        export_model(tiny_dir, "onyx", tmp_path / "out")
    with pytest.raises(TypeError, match="no option 'quantization'; it has dtype"):
        export_model(tiny_dir, "transformers", tmp_path / "out", quantization="int8")
    for format in ("transformers", "decoder-only", "openai-whisper"):
        with pytest.raises(ValueError, match=r"dtype must be one of .*, not 'float8'"):
            export_model(tiny_dir, format, tmp_path / "out", dtype="float8", check=False)
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_left_of_a_failed_export(processor, tmp_path):
    untied = saved(tiny_whisper(tie_word_embeddings=False), processor, tmp_path / "model")
    with pytest.raises(ExportError, match="has one matrix for token embeddings and output"):
        export_model(untied, "openai-whisper", tmp_path / "out", check=False)
    narrow = saved(tiny_whisper(), processor, tmp_path / "narrow")
    with pytest.raises(ExportError, match="feed-forward layers of 4 times d_model, 64, but this model's are of 32"):
        export_model(narrow, "openai-whisper", tmp_path / "out", check=False)
    with pytest.raises(ExportError, match="no recording"):
        export_model(untied, "transformers", tmp_path / "out", audio=[])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "narrow"]


def test_another_export_is_replaced_only_on_request_and_the_model_never(tiny_dir, tmp_path):
    export_model(tiny_dir, "decoder-only", tmp_path / "out", check=False)
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(FileExistsError, match="not empty"):
        export_model(tiny_dir, "transformers", tmp_path / "out", check=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    export_model(tiny_dir, "transformers", tmp_path / "out", check=False, overwrite=True)
    assert (tmp_path / "out" / "vocab.json").exists()
    assert not (tmp_path / "out" / "parity.json").exists()
    for place in (tiny_dir, tiny_dir.parent):
        with pytest.raises(FileExistsError, match="holds the model itself"):
            export_model(tiny_dir, "transformers", place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_export_leaves_nothing_that_looks_done(tiny_dir, tmp_path):
    program = f"from distilwhisper import export_model\nexport_model({str(tiny_dir)!r}, 'transformers', 'out')"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not [*tmp_path.glob(".export-*/out/*")]:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_one_sentence_that_says_what_to_install(tiny_dir, tmp_path, monkeypatch):
    for package in ("ctranslate2", "whisper"):
        monkeypatch.setitem(sys.modules, package, None)  # what an import finds if the package is missing
    with pytest.raises(ImportError, match=r"written with .*: pip install 'distilwhisper\[ctranslate2\]'$"):
        export_model(tiny_dir, "ctranslate2", tmp_path / "out", check=False)
    with pytest.raises(
        ImportError, match=r"checked with .*: pip install 'distilwhisper\[openai-whisper\]', or .*check"
    ):
        export_model(tiny_dir, "openai-whisper", tmp_path / "out")
    assert [*tmp_path.iterdir()] == []
    export_model(tiny_dir, "openai-whisper", tmp_path / "out", check=False)
    assert (tmp_path / "out" / "model.pt").exists()


# What others read: the traps of saved directories


def test_timestamps_are_decoded_where_they_are(student_dir):
    """They are counted from the last special token, which must be <|notimestamps|> after every reload."""
    tokenizer = WhisperProcessor.from_pretrained(student_dir).tokenizer
    begin = tokenizer.convert_tokens_to_ids("<|0.00|>")
    ids = [begin, *tokenizer(" No", add_special_tokens=False).input_ids, begin + 100]
    assert tokenizer.decode(ids, output_offsets=True)["offsets"] == [{"text": " No", "timestamp": (0.0, 2.0)}]


def test_files_hold_the_vocabulary_for_converters_and_for_transformers_4(student_dir, tokenizer):
    vocabulary, added, settings = (
        json.loads((student_dir / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("vocab", "added_tokens", "tokenizer_config")
    )
    assert {**vocabulary, **added} == tokenizer.get_vocab()
    assert not vocabulary.keys() & added.keys()
    assert (student_dir / "merges.txt").exists()
    assert "extra_special_tokens" not in settings  # a list of them stops Transformers 4
    assert settings["additional_special_tokens"][-1] == "<|notimestamps|>"


def test_alignment_heads_that_the_model_lacks_are_not_exported(processor, tmp_path):
    """They end in an IndexError in Transformers and in a segmentation fault in CTranslate2."""
    model = tiny_whisper(decoder_layers=2)
    for heads, left in (([[1, 1], [3, 0], [0, 2]], [[1, 1]]), ([[3, 0]], None)):
        model.generation_config.alignment_heads = heads
        source = saved(model, processor, tmp_path / "model")
        export_model(source, "transformers", tmp_path / "out", check=False, overwrite=True)
        generation = GenerationConfig.from_pretrained(tmp_path / "out")
        assert getattr(generation, "alignment_heads", None) == left


def test_the_directory_is_what_candles_loader_reads(processor, tmp_path):
    """A static check: its example reads these keys, these names, and no null where it wants a list."""
    model = tiny_whisper(decoder_layers=2)
    model.generation_config.suppress_tokens = [1, 2]
    source = saved(create_student(model, 1), processor, tmp_path / "model")
    for directory in (source, export_model(source, "transformers", tmp_path / "out", check=False)):
        config = json.loads((directory / "config.json").read_text())
        sizes = "num_mel_bins max_source_positions d_model encoder_attention_heads encoder_layers vocab_size "
        sizes += "max_target_positions decoder_attention_heads decoder_layers"
        assert all(type(config[name]) is int for name in sizes.split())
        assert config["suppress_tokens"] == [1, 2]
        assert (directory / "tokenizer.json").exists()
        with safe_open(directory / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert {"model.decoder.embed_tokens.weight", "model.encoder.embed_positions.weight"} <= names
        assert "model.decoder.layers.0.encoder_attn.k_proj.weight" in names


@pytest.mark.slow
def test_transformers_4_loads_the_directory(student_dir, tmp_path):
    """In an environment made for this; PyPI is needed."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "old"], check=True)
    python = tmp_path / "old" / "bin" / "python"
    wanted = ["transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0"]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted],
        env=environment,
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"Transformers 4 cannot be installed: {installed.stderr.splitlines()[-1]}")
    site = next((tmp_path / "old" / "lib").glob("*/site-packages"))
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    program = f"""
from transformers import AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer
for kind in (AutoTokenizer, WhisperTokenizer):
    tokenizer = kind.from_pretrained({str(student_dir)!r})
    assert len(tokenizer) == 51865
    assert tokenizer.decode([50364, 440, 50464], output_offsets=True)["offsets"][0]["timestamp"] == (0.0, 2.0)
    assert tokenizer.normalize("Mr. Colour") == "mister color"
assert WhisperProcessor.from_pretrained({str(student_dir)!r}).feature_extractor.chunk_length == 5
assert WhisperForConditionalGeneration.from_pretrained({str(student_dir)!r}).config.decoder_layers == 2
"""
    result = subprocess.run([python, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# Runtimes as their users call them


@pytest.mark.slow
def test_the_published_converter_of_ctranslate2_takes_what_create_student_saves(student_dir, tmp_path):
    needs("ctranslate2")
    command = [sys.executable, "-c", "from ctranslate2.converters.transformers import main; main()"]
    command += ["--model", student_dir, "--output_dir", tmp_path / "out"]
    subprocess.run([*command, "--copy_files", "tokenizer.json", "preprocessor_config.json"], check=True)
    model, processor = (
        kind.from_pretrained(student_dir) for kind in (WhisperForConditionalGeneration, WhisperProcessor)
    )
    assert check_parity(model, processor, tmp_path / "out", "ctranslate2", dtype="float16").passed


@pytest.mark.slow
def test_openai_whisper_transcribes_with_word_timestamps(wide_teacher, wide_processor, tmp_path):
    whisper = pytest.importorskip("whisper", reason="pip install 'distilwhisper[openai-whisper]'")
    source = saved(wide_teacher, wide_processor, tmp_path / "model")
    export_model(source, "openai-whisper", tmp_path / "out")
    model = whisper.load_model(str(tmp_path / "out" / "model.pt"))
    model.set_alignment_heads((tmp_path / "out" / "alignment_heads.b85").read_bytes())
    assert sorted(model.alignment_heads.coalesce().indices().T.tolist()) == sorted(
        wide_teacher.generation_config.alignment_heads
    )
    samples = builtin_audio()[1][0]
    result = model.transcribe(samples, language="en", word_timestamps=True, fp16=False)
    text = Transcriber(wide_teacher, wide_processor, language="en", return_timestamps=True)(samples).text
    # The runtime makes its own features, which decide one word of this recording otherwise.
    assert word_distance(result["text"].split(), text.split()) <= 1
    starts = [word["start"] for segment in result["segments"] for word in segment["words"]]
    assert starts == sorted(starts)


@pytest.mark.slow
def test_faster_whisper_gives_the_text_and_word_timestamps(wide_teacher, wide_processor, tmp_path):
    faster_whisper = pytest.importorskip("faster_whisper", reason="pip install 'distilwhisper[ctranslate2]'")
    source = saved(wide_teacher, wide_processor, tmp_path / "model")
    export_model(source, "ctranslate2", tmp_path / "out", dtype="float32")
    model = faster_whisper.WhisperModel(str(tmp_path / "out"), device="cpu", compute_type="float32")
    samples = builtin_audio()[1][0]
    segments, _ = model.transcribe(samples, language="en", beam_size=1, word_timestamps=True)
    words = [word for segment in segments for word in segment.words]
    text = Transcriber(wide_teacher, wide_processor, language="en", return_timestamps=True)(samples).text
    assert word_distance("".join(word.word for word in words).split(), text.split()) <= 1  # likewise
    starts = [word.start for word in words]
    assert starts == sorted(starts)
    assert 0 <= starts[0] < starts[-1] < len(samples) / 16_000


def test_teacher_and_assistant_generate_what_the_teacher_generates_alone(student_dir, processor, tmp_path):
    teacher = WhisperForConditionalGeneration.from_pretrained(TEACHER, dtype=torch.float32)
    export_model(student_dir, "decoder-only", tmp_path / "assistant", dtype="float32", check=False)
    assistant = AutoModelForCausalLM.from_pretrained(tmp_path / "assistant")
    assert type(assistant).__name__ == "WhisperForCausalLM"
    for samples in builtin_audio()[1][:2]:
        features = processor(samples, sampling_rate=16_000, return_tensors="pt").input_features
        alone = teacher.generate(features, language="en", task="transcribe")
        together = teacher.generate(features, language="en", task="transcribe", assistant_model=assistant)
        assert together.tolist() == alone.tolist()

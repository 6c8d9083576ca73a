"""Exports as their users get them: loaded in the real runtime, where it is installed."""

import json
import os
import re
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
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor
from vocabularies import KINDS, model_and_processor

from distilwhisper import Transcriber, create_student, find_alignment_heads, save_processor
from distilwhisper.export import FORMATS, ExportError, export_model, ggml
from distilwhisper.export.parity import builtin_audio, check_parity
from distilwhisper.export.runtimes import run_format
from distilwhisper.generation import encode
from distilwhisper.word_timing import time_tokens

TONES = [tone(1.0), tone(2.0, 440)]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


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


@pytest.fixture(scope="module", params=KINDS)
def other_kind(request):
    """Tiny models with the English-only vocabulary, 99 languages, and 100 languages with 128 mel bins."""
    # openai-whisper and whisper.cpp know no other width than 4 times d_model.
    return model_and_processor(request.param, window_s=5, decoder_layers=3, encoder_ffn_dim=64, decoder_ffn_dim=64)


@pytest.fixture(scope="module")
def other_kind_dir(other_kind, tmp_path_factory):
    return saved(*other_kind, tmp_path_factory.mktemp("other"))


@pytest.fixture(params=["teacher", "student"])
def trained_dir(request):
    """The teacher of the examples, and a trained student where the environment names one, such as the demo's."""
    directory = TEACHER if request.param == "teacher" else os.environ.get("DISTILWHISPER_STUDENT")
    if not directory:
        pytest.skip("needs a trained student: DISTILWHISPER_STUDENT=outputs/demo/distilled")
    return directory


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
        *[("ggml", dtype) for dtype in ("float16", "q8_0", "q5_0")],
        *[("onnx", dtype) for dtype in ("float32", "q8")],
    ],
)
def test_a_trained_model_gives_the_same_tokens_in_every_number_type(format, dtype, trained_dir, tmp_path):
    needs(format)
    export_model(trained_dir, format, tmp_path / "out", dtype=dtype)
    report = report_of(tmp_path / "out")
    assert (report["equal"], report["undecided"], report["audio"]) == (report["tokens"], 0, "eSpeak NG")


@pytest.mark.slow
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "ggml"])
def test_other_vocabularies_and_mel_bins_give_the_same_tokens(format, other_kind_dir, tmp_path):
    needs(format)
    options = {} if format in ("transformers", "decoder-only") else {"dtype": "float32"}
    export_model(other_kind_dir, format, tmp_path / "out", audio=TONES, **options)
    report = report_of(tmp_path / "out")
    assert report["equal"] == report["tokens"] - report["undecided"] > 20
    assert report["undecided"] == 0
    assert report["logit_difference"] < 1e-3


@pytest.mark.slow
def test_other_vocabularies_and_mel_bins_give_the_same_tokens_in_whisper_cpp(other_kind, other_kind_dir, tmp_path):
    needs("ggml")
    export_model(other_kind_dir, "ggml", tmp_path / "out", check=False)
    # Random models notice that its attention also counts the padding of the positions to a multiple of 256.
    report = check_parity(*other_kind, tmp_path / "out", "ggml", dtype="bfloat16", audio=TONES)
    assert report.passed
    assert report.equal > 20
    assert report.logit_difference < 0.3 * report.logit_deviation


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


@pytest.mark.slow
def test_the_vocabularies_of_the_tiny_models_are_openai_whispers(other_kind):
    model, processor = other_kind
    from whisper.tokenizer import get_tokenizer

    size = model.config.vocab_size
    theirs = get_tokenizer(size > 51_864, num_languages=100 if size == 51_866 else 99, language="en", task="transcribe")
    rng = np.random.default_rng(0)
    texts = [
        "It's 3.5 %, naïve!",
        " \n\tfoo  bar",
        "你好，世界",
        "🙂👩‍👩‍👧",
        *("".join(map(chr, rng.integers(32, 55_000, 20))) for _ in range(200)),
    ]
    assert [processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts] == [
        *map(theirs.encode, texts)
    ]
    named = {name: number for name, number in theirs.special_tokens.items() if name != "<|nospeech|>"}
    assert processor.tokenizer.convert_tokens_to_ids([*named]) == [*named.values()]


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
    """A static check of what its example reads; Candle itself is not run."""
    model = tiny_whisper(decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64)
    model.generation_config.suppress_tokens = [1, 2]
    source = saved(create_student(model, 1), processor, tmp_path / "model")
    for directory in (source, export_model(source, "transformers", tmp_path / "out", check=False)):
        config = json.loads((directory / "config.json").read_text())
        sizes = "num_mel_bins max_source_positions d_model encoder_attention_heads encoder_layers vocab_size "
        sizes += "max_target_positions decoder_attention_heads decoder_layers"
        assert all(type(config[name]) is int for name in sizes.split())
        assert config["suppress_tokens"] == [1, 2]  # its list takes no null, which Transformers 5 writes for none
        with safe_open(directory / "model.safetensors", "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 -- no dict
            positions = file.get_tensor("model.encoder.embed_positions.weight")
        read = candles_weights(config)
        assert {name: shapes.get(name) for name in read} == read
        assert shapes.keys() - read.keys() <= {"model.encoder.embed_positions.weight", "proj_out.weight"}
        # Which it computes: a sine and a cosine half, of wavelengths that grow geometrically up to 10,000.
        half = config["d_model"] // 2
        angles = torch.arange(len(positions))[:, None] * 10_000 ** (-torch.arange(half) / (half - 1))
        torch.testing.assert_close(positions, torch.cat([angles.sin(), angles.cos()], dim=1), atol=1e-4, rtol=0)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))  # the very library that Candle reads it with
        names = "startoftranscript transcribe translate notimestamps endoftext nocaptions en".split()
        ids = [tokenizer.token_to_id(f"<|{name}|>") for name in names]
        assert ids == processor.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])


def candles_weights(config) -> dict[str, tuple[int, ...]]:
    width, wide = config["d_model"], 4 * config["d_model"]
    shapes = {
        "model.encoder.conv1.weight": (width, config["num_mel_bins"], 3),
        "model.encoder.conv1.bias": (width,),
        "model.encoder.conv2.weight": (width, width, 3),
        "model.encoder.conv2.bias": (width,),
        "model.decoder.embed_tokens.weight": (config["vocab_size"], width),
        "model.decoder.embed_positions.weight": (config["max_target_positions"], width),
    }
    for part, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        norms = [f"model.{part}.layer_norm"]
        for layer in (f"model.{part}.layers.{number}" for number in range(config[f"{part}_layers"])):
            norms += [f"{layer}.final_layer_norm", *(f"{layer}.{name}_layer_norm" for name in attentions)]
            shapes |= {f"{layer}.fc1.weight": (wide, width), f"{layer}.fc1.bias": (wide,)}
            shapes |= {f"{layer}.fc2.weight": (width, wide), f"{layer}.fc2.bias": (width,)}
            for attention in (f"{layer}.{name}" for name in attentions):
                shapes |= {f"{attention}.{name}.weight": (width, width) for name in PROJECTIONS}
                shapes |= {f"{attention}.{name}.bias": (width,) for name in PROJECTIONS if name != "k_proj"}
        shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    return shapes


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


@pytest.fixture
def whisper_cpp():
    """A function that runs one of whisper.cpp's scripts, and returns the directory of the file that it wrote."""
    scripts = os.environ.get("WHISPER_CPP_MODELS")
    if not scripts:
        pytest.skip("needs the folder `models` of whisper.cpp: WHISPER_CPP_MODELS=whisper.cpp/models")
    needs("ggml")
    whisper = pytest.importorskip("whisper", reason="pip install 'distilwhisper[openai-whisper]'")

    def run(script, source, output_dir, *flags):
        output_dir.mkdir()
        repository = Path(whisper.__file__).parents[1]  # where it looks for whisper/assets
        command = [sys.executable, Path(scripts, script), source, repository, output_dir, *flags]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (file,) = output_dir.iterdir()
        return file.rename(output_dir / ggml.file_name()).parent

    return run


@pytest.mark.slow
def test_the_published_converter_of_whisper_cpp_takes_what_is_saved(other_kind, other_kind_dir, whisper_cpp, tmp_path):
    model, processor = other_kind
    converted = whisper_cpp("convert-h5-to-ggml.py", other_kind_dir, tmp_path / "out")
    model.generation_config.save_pretrained(converted)  # which the check reads
    # It rounds biases and positions as well, which are exact in the files that we write.
    report = check_parity(model, processor, converted, "ggml", dtype="bfloat16", audio=TONES)
    assert report.passed
    assert report.equal > 20
    assert report.logit_difference < 0.3 * report.logit_deviation


@pytest.mark.slow
def test_both_published_converters_of_whisper_cpp_keep_the_words_of_a_trained_model(trained_dir, whisper_cpp, tmp_path):
    model = WhisperForConditionalGeneration.from_pretrained(trained_dir, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(trained_dir)
    saved(model, processor, tmp_path / "model")
    # From float32 weights its other converter writes, without complaint, what whisper.cpp does not load.
    assert FORMATS["openai-whisper"].options({}) == {"dtype": "float16"}
    export_model(tmp_path / "model", "openai-whisper", tmp_path / "openai", check=False)
    sources = {"convert-h5-to-ggml.py": tmp_path / "model", "convert-pt-to-ggml.py": tmp_path / "openai" / "model.pt"}
    for script, source in sources.items():
        converted = whisper_cpp(script, source, tmp_path / script)
        model.generation_config.save_pretrained(converted)
        report = check_parity(model, processor, converted, "ggml", dtype="float16")
        assert (report.equal, report.undecided, report.audio) == (report.tokens, 0, "eSpeak NG")


@pytest.mark.slow
def test_a_runtime_that_aborts_is_an_error_and_no_end(tiny_dir, whisper_cpp, tmp_path):
    """whisper.cpp does so on float32 convolutions, which its own converter writes on request."""
    converted = whisper_cpp("convert-h5-to-ggml.py", tiny_dir, tmp_path / "out", "use-f32")
    (converted / "generation_config.json").write_bytes((tiny_dir / "generation_config.json").read_bytes())
    with pytest.raises(ExportError, match="ggml did not take the export: killed by SIGABRT"):
        run_format("ggml", converted, [np.zeros((80, 500), np.float32)], [50_258], 5)


@pytest.fixture(scope="module")
def wide_dir(wide_teacher, wide_processor, tmp_path_factory):
    return saved(wide_teacher, wide_processor, tmp_path_factory.mktemp("wide"))


def filled(samples):
    """Audio padded to 30 s: both packages fill shorter features with zeros, which a model hears as something else."""
    return np.pad(samples, (0, 480_000 - len(samples)))


@pytest.mark.slow
def test_openai_whisper_transcribes_to_the_tokens_of_transformers(wide_teacher, wide_processor, wide_dir, tmp_path):
    whisper = pytest.importorskip("whisper", reason="pip install 'distilwhisper[openai-whisper]'")
    export_model(wide_dir, "openai-whisper", tmp_path / "out", dtype="float32", check=False)
    model = whisper.load_model(str(tmp_path / "out" / "model.pt"))
    own = Transcriber(wide_teacher, wide_processor, language="en", return_timestamps=True)
    for samples in map(filled, builtin_audio()[1]):
        result = model.transcribe(samples, language="en", word_timestamps=True, fp16=False)
        assert [token for segment in result["segments"] for token in segment["tokens"]] == own(samples).tokens
        words = "".join(word["word"] for segment in result["segments"] for word in segment["words"])
        assert words.strip() == own(samples).text


@pytest.mark.slow
def test_faster_whisper_transcribes_to_the_tokens_of_transformers(wide_teacher, wide_processor, wide_dir, tmp_path):
    faster_whisper = pytest.importorskip("faster_whisper", reason="pip install 'distilwhisper[ctranslate2]'")
    export_model(wide_dir, "ctranslate2", tmp_path / "out", dtype="float32", check=False)
    model = faster_whisper.WhisperModel(str(tmp_path / "out"), device="cpu", compute_type="float32")
    own = Transcriber(wide_teacher, wide_processor, language="en", return_timestamps=True)
    for samples in map(filled, builtin_audio()[1]):
        segments = [*model.transcribe(samples, language="en", beam_size=1, word_timestamps=True)[0]]
        assert [token for segment in segments for token in segment.tokens] == own(samples).tokens
        assert "".join(word.word for segment in segments for word in segment.words).strip() == own(samples).text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_faster_whisper_gives_the_tokens_of_every_vocabulary(kind, tmp_path):
    """Its own features of 80 and 128 mel bins, its own tokenizer and prompt."""
    faster_whisper = pytest.importorskip("faster_whisper", reason="pip install 'distilwhisper[ctranslate2]'")
    model, processor = model_and_processor(kind, window_s=30)
    source = saved(model, processor, tmp_path / "model")
    export_model(source, "ctranslate2", tmp_path / "out", dtype="float32", check=False)
    runtime = faster_whisper.WhisperModel(str(tmp_path / "out"), device="cpu", compute_type="float32")
    off = dict.fromkeys(["compression_ratio_threshold", "log_prob_threshold", "no_speech_threshold"])
    off |= {"beam_size": 1, "without_timestamps": True, "max_new_tokens": 20, "temperature": 0}
    off["suppress_tokens"] = [*model.generation_config.suppress_tokens]
    own = Transcriber(model, processor, language="en", max_new_tokens=20)
    for samples in map(filled, TONES):
        (segment,) = runtime.transcribe(samples, language="en", **off)[0]
        assert len(segment.tokens) >= 10  # CTranslate2 takes half of the limit for the prompt
        assert segment.tokens == own(samples).tokens[: len(segment.tokens)]


@pytest.mark.slow
def test_words_are_timed_as_in_openai_whisper_and_ctranslate2(wide_teacher, wide_processor, wide_dir, tmp_path):
    """On heads found by ourselves, stored in the generation config, and read from there by the other two."""
    whisper = pytest.importorskip("whisper", reason="pip install 'distilwhisper[openai-whisper]'")
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install 'distilwhisper[ctranslate2]'")
    from whisper.timing import find_alignment
    from whisper.tokenizer import get_tokenizer

    recordings = builtin_audio()[1]
    heads = find_alignment_heads(wide_teacher, wide_processor, recordings)
    generation = GenerationConfig.from_pretrained(wide_dir)
    generation.alignment_heads = heads
    source = saved(wide_teacher, wide_processor, tmp_path / "model")
    generation.save_pretrained(source)
    for format in ("openai-whisper", "ctranslate2"):
        export_model(source, format, tmp_path / format, dtype="float32", check=False)
    openai = whisper.load_model(str(tmp_path / "openai-whisper" / "model.pt"))
    openai.set_alignment_heads((tmp_path / "openai-whisper" / "alignment_heads.b85").read_bytes())
    assert sorted(openai.alignment_heads.coalesce().indices().T.tolist()) == sorted(heads)
    fast = ctranslate2.models.Whisper(str(tmp_path / "ctranslate2"), compute_type="float32")
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    transcriber = Transcriber(model, wide_processor, language="en")
    prefix, tokenizer = transcriber.tokens.prefix("en"), get_tokenizer(True, language="en", task="transcribe")
    for samples in recordings:
        features, ids = transcriber.extract_features([samples]), transcriber(samples).tokens
        frames = 2 * round(len(samples) / 320)
        (spans,) = time_tokens(model, [prefix], [ids], encode(model, features), [len(samples) / 16_000])
        starts = [start for start, _ in spans]
        inputs = ctranslate2.StorageView.from_array(features.numpy())
        first = dict(reversed(fast.align(inputs, prefix[:-1], [ids], frames)[0].alignments))
        assert starts == pytest.approx([first[token] / 50 for token in range(len(ids))], abs=0.021)
        words = find_alignment(openai, tokenizer, ids, features[0], frames)
        places = np.cumsum([0, *(len(word.tokens) for word in words)])[: len(words)]
        assert [starts[place] for place in places] == pytest.approx([word.start for word in words], abs=0.021)


def test_teacher_and_assistant_generate_what_the_teacher_generates_alone(student_dir, processor, tmp_path):
    teacher = WhisperForConditionalGeneration.from_pretrained(TEACHER, dtype=torch.float32)
    export_model(student_dir, "decoder-only", tmp_path / "assistant", dtype="float32", check=False)
    for directory in (tmp_path / "assistant", student_dir):  # a whole student, too, is loaded as its decoder
        assistant = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        assert type(assistant).__name__ == "WhisperForCausalLM"
        for samples in builtin_audio()[1][:2]:
            features = processor(samples, sampling_rate=16_000, return_tensors="pt").input_features
            alone = teacher.generate(features, language="en", task="transcribe")
            together = teacher.generate(features, language="en", task="transcribe", assistant_model=assistant)
            assert together.tolist() == alone.tolist()


def test_the_readmes_snippet_of_speculative_decoding_gives_the_teachers_text(student_dir, processor, teacher, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "assistant_model" in block)
    code = code.replace('"student"', repr(str(student_dir))).replace('"openai/whisper-large-v3"', repr(str(TEACHER)))
    samples = builtin_audio()[1][0]
    exec(code, {"samples": samples})
    assert capsys.readouterr().out.strip() == Transcriber(teacher, processor, language="en")(samples).text

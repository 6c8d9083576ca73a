"""What users may rely on: names, signatures, and an import that costs nothing."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import distilwhisper

PACKAGE = Path(distilwhisper.__file__).parent
WITHOUT_NETWORK = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"the network was used: {event} {arguments}")
sys.addaudithook(refuse)
"""


def run_fresh(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh process that may reach the Hub in principle, but dies where it tries."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_HUB_OFFLINE")}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK + program], capture_output=True, text=True, timeout=300, env=environment
    )


def test_all_is_sorted_and_every_name_can_be_imported():
    names = distilwhisper.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert len(set(names)) == len(names)
    assert {name for name in names if getattr(distilwhisper, name, None) is None} == set()
    assert set(names) <= set(dir(distilwhisper))


def test_names_for_type_checkers_are_the_names_at_run_time():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    lazy = {name: f"distilwhisper.{module}" for name, module in distilwhisper._MODULES.items()}
    assert typed == lazy
    assert set(lazy) == set(distilwhisper.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'distilwhisper' has no attribute 'Distiller'"):
        distilwhisper.Distiller  # noqa: B018


@pytest.mark.parametrize("name", [*distilwhisper.__all__])
def test_every_public_name_is_documented(name):
    value = getattr(distilwhisper, name)
    if not callable(value):  # a constant: the string below its definition
        module = importlib.import_module(f"distilwhisper.{distilwhisper._MODULES[name]}")
        body = ast.parse(inspect.getsource(module)).body
        targets = [node.target.id if isinstance(node, ast.AnnAssign) else None for node in body]
        below = body[targets.index(name) + 1]
        assert isinstance(below, ast.Expr)
        assert isinstance(below.value.value, str)
        return
    assert inspect.getdoc(value)
    assert value.__doc__, "an inherited docstring describes another class"
    for method, member in vars(value).items() if inspect.isclass(value) else ():
        if inspect.isfunction(member) and not method.startswith("_"):
            assert inspect.getdoc(member), f"{name}.{method}"


POSITIONAL, KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
NEEDED = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("path", "positional", "keywords"),
    [
        (
            "create_student",
            {"teacher": NEEDED, "decoder_layers": 2, "encoder_layers": None},
            {"decoder_layer_indices": None, "encoder_layer_indices": None},
        ),
        (
            "PseudoLabeler",
            {"model": NEEDED, "processor": None},
            {"language": None, "task": "transcribe", "return_timestamps": False, "num_beams": 1, "batch_size": 16},
        ),
        (
            "PseudoLabeler.label",
            {"self": NEEDED, "dataset": NEEDED, "output_dir": None},
            {"audio_column": "audio", "text_column": "text", "id_column": None},
        ),
        ("WERFilter", {"threshold": 0.10, "language": "en"}, {}),
        ("WERFilter.wer", {"self": NEEDED, "reference": NEEDED, "hypothesis": NEEDED}, {}),
        ("WERFilter.keep", {"self": NEEDED, "reference": NEEDED, "hypothesis": NEEDED}, {}),
        (
            "WERFilter.filter",
            {
                "self": NEEDED,
                "dataset": NEEDED,
                "reference_column": "text",
                "hypothesis_column": "whisper_transcript",
            },
            {},
        ),
        (
            "distillation_loss",
            dict.fromkeys(["student_hidden", "student_head", "teacher_hidden", "teacher_head", "labels"], NEEDED),
            {
                "temperature": 2.0,
                "kl_weight": 0.8,
                "pl_weight": 1.0,
                "num_items": None,
                "ignore_index": -100,
                "chunk_size": None,
            },
        ),
        ("DataCollatorForDistillation", {"processor": NEEDED}, {}),
        (
            "Transcriber",
            {"model": NEEDED, "processor": None},
            {"language": None, "task": "transcribe", "return_timestamps": False, "batch_size": 16},
        ),
        ("Transcriber.__call__", {"self": NEEDED, "audio": NEEDED}, {"audio_column": "audio"}),
        ("evaluate", {"model": NEEDED, "dataset": NEEDED, "processor": None}, {"language": None, "batch_size": 16}),
        ("load_speech", {"source": NEEDED, "split": None}, {"config": None, "audio_column": "audio"}),
        ("load_audio", {"value": NEEDED, "sampling_rate": 16_000}, {"max_duration_s": None}),
        ("get_normalizer", {"language": None}, {}),
        ("save_processor", {"processor": NEEDED, "output_dir": NEEDED}, {}),
        (
            "export_model",
            {"model_dir": NEEDED, "format": NEEDED, "output_dir": NEEDED},
            {"check": True, "audio": None, "language": None, "overwrite": False},
        ),
    ],
)
def test_signature_holds_what_callers_were_promised(path, positional, keywords):
    """All positional parameters are listed; further keyword-only ones may come."""
    value = distilwhisper
    for part in path.split("."):
        value = getattr(value, part)
    parameters = inspect.signature(value).parameters
    found = {name: kind.default for name, kind in parameters.items() if kind.kind is POSITIONAL}
    assert found == positional
    assert list(found) == list(positional)
    assert {name: parameters[name].default for name in keywords} == keywords
    assert {parameters[name].kind for name in keywords} <= {KEYWORD}


def test_the_trainer_takes_what_the_one_of_transformers_takes_and_a_teacher():
    parameters = inspect.signature(distilwhisper.DistillationTrainer).parameters
    names = ["model", "teacher_model", "args", "train_dataset", "eval_dataset", "data_collator", "processing_class"]
    assert {name: parameters[name].default for name in names} == dict.fromkeys(names)


def test_training_defaults_are_those_of_the_paper():
    fields = distilwhisper.DistillationTrainingArguments.__dataclass_fields__
    defaults = {
        "temperature": 2.0,
        "kl_weight": 0.8,
        "pl_weight": 1.0,
        "mse_weight": 0.0,
        "freeze_encoder": True,
        "timestamp_probability": 0.5,
        "learning_rate": 1e-4,
    }
    assert {name: fields[name].default for name in defaults} == defaults


def test_loss_has_its_total_and_its_terms():
    assert distilwhisper.DistillationLoss._fields[:3] == ("total", "kl", "pl")


@pytest.mark.parametrize(
    "name", ["CacheReport", "FilterReport", "LabelReport", "EvaluationResult", "LatencyResult", "ErrorCounts"]
)
def test_every_result_of_a_stage_can_be_written_as_json(name):
    assert callable(getattr(distilwhisper, name).to_json)


def test_import_loads_nothing_heavy_and_reaches_for_no_network():
    heavy = ["torch", "transformers", "datasets", "numpy", "accelerate", "evaluate", "jiwer", "soundfile", "wandb"]
    result = run_fresh(f"import distilwhisper\nprint([name for name in {heavy} if name in sys.modules])")
    assert result.stderr == ""
    assert result.stdout.strip() == "[]"


def test_using_everything_prints_nothing_reaches_for_no_network_and_needs_no_extra():
    """Trackers, plots, voices and kernels are imported only where they are used."""
    extras = ["wandb", "tensorboard", "matplotlib", "espeakng_loader", "av", "torchcodec", "flash_attn"]
    extras += ["whisper", "ctranslate2", "faster_whisper", "onnx", "onnxruntime", "gguf", "ray"]
    files = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    # The graphs are made of onnx, and asked for where it is there.
    modules = sorted({".".join(file.parts) for file in files} - {"export.graphs"})
    # What evaluate imports of Transformers brings av in some versions.
    program = "import evaluate\nothers = set(sys.modules)\n"
    program += "".join(f"import distilwhisper.{module}\n" for module in modules)
    program += "for name in distilwhisper.__all__:\n    getattr(distilwhisper, name)\n"
    result = run_fresh(f"{program}assert not {{*{extras}}} & sys.modules.keys() - others")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_logging_is_left_to_the_program():
    """A library that sets handlers or levels prints by itself, or hides what the program wants to see."""
    program = (
        "import distilwhisper, logging\n"
        "for name in distilwhisper.__all__:\n    getattr(distilwhisper, name)\n"
        "names = [name for name in logging.root.manager.loggerDict if name.split('.')[0] == 'distilwhisper']\n"
        "loggers = [logging.getLogger(name) for name in names]\n"
        "print({(len(one.handlers), one.level, one.propagate) for one in loggers})"
    )
    assert run_fresh(program).stdout.strip() == "{(0, 0, True)}"

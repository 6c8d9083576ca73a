"""The rules of the house, read from the source: floors, sizes, types, and what never appears."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import distilwhisper

PACKAGE = Path(distilwhisper.__file__).parent
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
MODULES = [name for name in FILES if name != "__init__"]
COMMANDS = [name for name in MODULES if name.split(".")[0] == "commands"]

FLOORS = [
    ["audio", "cpu_memory", "onednn", "tables", "threads"],
    [
        *"absorption arguments attention charts checkpoints costs divergences environment export.formats".split(),
        *"export.graphs export.greedy grammar help_pages hub labels models normalizers row_files shards".split(),
        *"spectrograms stages token_rules tokens top_k worklist".split(),
    ],
    [
        *"batches beam_search cache collator export.openai_whisper export.runtimes fused_loss".split(),
        *"label_joining loading metrics pages pieces planning plots references row_sources".split(),
        *"run_ids segments stepping student synthesis tied_embedding trainer_displays unpadded voice_activity".split(),
    ],
    [
        *"export.ggml export.onnx filter_reports generation label_rules label_store losses packing".split(),
        *"report_sections samples scoring segmentation significance trackers word_errors".split(),
    ],
    [
        *"cached_inputs export.transformers label_scores modeling preparation results speculative".split(),
        *"training_tracker word_timing".split(),
    ],
    "dataset_filters decoding export.ctranslate2 export.decoder_only reports trainer".split(),
    "chunking ctranslate2_decoding filtering longform model_card stage_trackers transcripts".split(),
    ["transcription"],
    "alignment batch_transcription benchmarks caching evaluation export.parity".split(),
    "evaluation_files export.exporting pseudo_labels".split(),
    ["demonstration", "export"],
    COMMANDS,
    ["cli"],
    ["__main__"],
]
"""A module imports only from floors below its own."""

WITHOUT_TORCH = [
    *"audio charts checkpoints cli costs dataset_filters environment evaluation_files export".split(),
    *"export.ctranslate2 export.formats export.ggml export.greedy export.onnx export.runtimes".split(),
    *"filter_reports filtering grammar hub label_rules label_scores label_store labels loading".split(),
    *"help_pages metrics model_card normalizers pages pieces plots references report_sections reports results".split(),
    *"row_files row_sources run_ids scoring segmentation shards significance stage_trackers stages".split(),
    *"synthesis tables threads trackers".split(),
    *"voice_activity worklist".split(),
]
"""What prepares data or reports on results, and starts in a moment."""


def imports_of(tree):
    """Every imported module, wherever in the file the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def functions_of(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def names_of(tree):
    """Every name that the code reads, attribute, keyword and import; comments and texts are free."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield f"{node.value.id if isinstance(node.value, ast.Name) else ''}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
    yield from (name.split(".")[0] for name in imports_of(tree))


def test_every_module_lives_on_one_floor():
    assert sorted(module for floor in FLOORS for module in floor) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_floors_below_its_own(module):
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    ours = {name.partition(".")[2] for name in imports_of(TREES[module]) if name.split(".")[0] == "distilwhisper"}
    assert "" not in ours, "import from the module, not from the package: the package imports everything"
    if module == "export":  # it names what the modules above it offer
        return
    assert {name for name in ours if floor_of[name] >= floor_of[module]} == set()


def test_modules_that_need_no_torch_import_none():
    program = "".join(f"import distilwhisper.{module}\n" for module in WITHOUT_TORCH)
    program += "import sys\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("module", MODULES)
def test_module_is_short(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short_and_take_few_positional_arguments(module):
    for function in functions_of(TREES[module]):
        statements = function.body[1:] if ast.get_docstring(function) else function.body
        lines = statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0
        assert lines <= 40, f"{function.name} has {lines} lines"
        names = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
        # The forward of an autograd.Function (its first argument is ctx) can take nothing by keyword.
        assert len(names) <= 6 or names[0] == "ctx", f"{function.name} takes {len(names)} by position"


@pytest.mark.parametrize("module", MODULES)
def test_every_function_is_annotated(module):
    for function in functions_of(TREES[module]):
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        bare = [arg.arg for arg in every if arg and arg.annotation is None and arg.arg not in ("self", "cls")]
        assert bare == [], f"{function.name} does not say what {bare} are"
        assert function.returns is not None, f"{function.name} does not say what it returns"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_prints_unpickles_or_runs_foreign_code(module):
    forbidden = {"print", "pickle", "dill", "joblib", "torch.load", "trust_remote_code", "eval", "exec", "breakpoint"}
    assert forbidden & set(names_of(TREES[module])) == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_exception_is_swallowed(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            assert not broad or module == "cli", f"line {node.lineno} catches everything"
            assert not all(isinstance(statement, ast.Pass) for statement in node.body), f"line {node.lineno} passes"


@pytest.mark.parametrize("module", [*FILES])
def test_every_module_says_what_it_is_for(module):
    assert ast.get_docstring(TREES[module])

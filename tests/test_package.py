"""The wheel, built and installed as a user gets it."""

import email
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
from conftest import REPOSITORY, encoded, tiny_whisper, tone

from distilwhisper import save_processor

pytestmark = pytest.mark.slow


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)


def build(project, folder, *kinds):
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    result = run(sys.executable, "-m", "build", *kinds, *isolation, "--outdir", folder, project)
    if result.returncode and "No matching distribution found for hatchling" in result.stdout + result.stderr:
        pytest.skip("hatchling is not installed and cannot be fetched")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made from the sdist beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    build(REPOSITORY, folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A fresh environment with the wheel and, so that nothing is downloaded, this one's dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    installed = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    # Added to the path behind the wheel; the editable install in there is not followed.
    (folder.joinpath(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    """Guards U11: the package that was installed was empty."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"distilwhisper"}
    tracked = {path for path in (REPOSITORY / "src").rglob("*") if path.is_file() and ".mypy_cache" not in path.parts}
    sources = {path.relative_to(REPOSITORY / "src").as_posix() for path in tracked if path.suffix != ".pyc"}
    assert {name for name in names if name.startswith("distilwhisper/")} == sources
    assert {"distilwhisper/py.typed", "distilwhisper/data/english_spelling.json"} <= sources


def test_sdist_holds_sources_tests_documentation_and_examples(wheel):
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    wanted = "Makefile mkdocs.yml README.md LICENSE CHANGELOG.md CONTRIBUTING.md pyproject.toml docs/method.svg"
    wanted += " tests/conftest.py tests/oldest.txt examples/demo.py examples/teacher/config.json benchmarks/run.py"
    assert set(wanted.split()) <= names
    assert [name for name in names if name.startswith((".venv", "outputs", "build/", "dist/"))] == []


def test_wheel_says_what_it_needs_and_under_which_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert (fields["Name"], fields["License-Expression"], fields["Requires-Python"]) == (
        "distilwhisper",
        "MIT",
        ">=3.11",
    )
    needed = {entry.split(">")[0] for entry in fields.get_all("Requires-Dist") if "extra ==" not in entry}
    ours = "torch transformers accelerate datasets evaluate jiwer safetensors soundfile soxr numpy"
    assert needed == {*ours.split(), "rapidfuzz", "psutil"}
    assert len(licences) == 1


def test_installed_package_works_away_from_the_repository(python, tmp_path):
    program = (
        "import distilwhisper\n"
        "print(distilwhisper.__file__)\n"
        "print(distilwhisper.__version__)\n"
        "print(distilwhisper.get_normalizer('en')(\"It's colour\"))\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = run(python, "-c", program, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    place, version, text = result.stdout.splitlines()
    assert place.startswith(str(python.parents[1]))
    assert version == "0.1.0"
    assert text == "it is color"


DEPENDENT = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "parrot"
version = "1.0"
dependencies = ["distilwhisper>=0.1,<1"]

[project.scripts]
parrot = "parrot:main"
""",
    "src/parrot/__init__.py": """
'''A program of somebody else: a filter of its own, and the whole method in one function.'''

import sys

from distilwhisper import (
    DistillationTrainer,
    DistillationTrainingArguments,
    PseudoLabeler,
    WERFilter,
    create_student,
    load_speech,
)


class PatientFilter(WERFilter):
    def keep(self, reference: str | None, hypothesis: str | None, *, language: str | None = None) -> bool:
        return hypothesis == "Polly" or super().keep(reference, hypothesis, language=language)


def distil(teacher: str, recordings: str, output_dir: str) -> float:
    labels = PseudoLabeler(teacher, language="en", max_new_tokens=8).label(load_speech(recordings))
    arguments = DistillationTrainingArguments(
        output_dir=output_dir, max_steps=1, per_device_train_batch_size=2, language="en", report_to="none", use_cpu=True
    )
    trainer = DistillationTrainer(create_student(teacher), teacher, arguments, train_dataset=labels)
    loss: float = trainer.train().training_loss
    trainer.save_model()
    return loss


def main() -> None:
    print(distil(*sys.argv[1:]))
""",
    "src/parrot/py.typed": "",
    "tests/test_parrot.py": """
from parrot import PatientFilter


def test_patience() -> None:
    assert PatientFilter(0.1).keep("good morning", "Polly")
    assert not PatientFilter(0.1).keep("good morning", "good evening")
""",
}
"""The files of a package that depends on this one."""


@pytest.fixture(scope="module")
def dependent(python, wheel, tmp_path_factory):
    """Where it was made; it is installed beside the wheel, with its dependencies resolved."""
    folder = tmp_path_factory.mktemp("parrot")
    for name, text in DEPENDENT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    build(folder, folder / "dist", "--wheel")
    found = ["--find-links", folder / "dist", "--find-links", wheel.parent]
    installed = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", *found, "parrot")
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return folder


def test_package_that_depends_on_this_one_is_installed_tested_and_run(dependent, python, processor, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    tested = run(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", dependent / "tests", cwd=tmp_path, env=environment
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    tiny_whisper().save_pretrained(tmp_path / "teacher")
    save_processor(processor, tmp_path / "teacher")
    (tmp_path / "recordings").mkdir()
    for number in range(2):
        (tmp_path / "recordings" / f"{number}.wav").write_bytes(encoded(tone(1 + number / 2)))
    command = [python.with_name("parrot"), "teacher", "recordings", "student"]
    result = run(*command, cwd=tmp_path, env={**environment, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.splitlines()[-1]) > 0
    assert (tmp_path / "student" / "model.safetensors").exists()


def test_types_reach_a_package_that_depends_on_this_one(dependent, python, tmp_path):
    """Without py.typed in the wheel, strict mypy would refuse the import."""
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-distilwhisper.*]\nfollow_imports = silent\n"
        "[mypy-transformers.*,torch.*,datasets.*]\nignore_missing_imports = true\nfollow_imports = skip\n"
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from distilwhisper import WERFilter\n\nfilter: WERFilter = WERFilter(threshold='0.1')\n")
    options = ["--config-file", tmp_path / "mypy.ini", "--python-executable", python, "--cache-dir", tmp_path / "cache"]
    good = run(sys.executable, "-m", "mypy", *options, dependent / "src" / "parrot", cwd=tmp_path)
    bad = run(sys.executable, "-m", "mypy", *options, wrong, cwd=tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    assert 'has incompatible type "str"; expected "float"' in bad.stdout

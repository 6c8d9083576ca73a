"""The wheel, built and installed as a user gets it."""

import email
import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    result = run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", folder, REPOSITORY)
    if result.returncode and "No matching distribution found for hatchling" in result.stdout + result.stderr:
        pytest.skip("hatchling is not installed and cannot be fetched")
    assert result.returncode == 0, result.stdout + result.stderr
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

"""The notebooks: committed without outputs, and run from a clean kernel at small settings."""

import os

import pytest
from conftest import REPOSITORY, TEACHER

nbformat = pytest.importorskip("nbformat", reason="notebooks are run with the extra 'dev'")
nbclient = pytest.importorskip("nbclient", reason="notebooks are run with the extra 'dev'")
pytest.importorskip("ipykernel", reason="notebooks are run with the extra 'dev'")

FOLDER = REPOSITORY / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(name, **parameters):
    """Run a notebook with other parameters in a kernel of its own; return what its cells printed and showed."""
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("matplotlib")
    if not (TEACHER / "model.safetensors").exists():
        pytest.skip("the trained teacher is not here")
    book = nbformat.read(FOLDER / name, as_version=4)
    settings = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    (place,) = (number for number, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(settings))
    client = nbclient.NotebookClient(
        book, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1"})
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = [output["text"] for output in outputs if output["output_type"] == "stream"]
    return "\n".join(printed), [output["data"] for output in outputs if "data" in output]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_valid_and_committed_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.outputs or cell.execution_count for cell in code] == [None] * len(code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    shown = execute(
        "distil_in_ten_minutes.ipynb",
        OUTPUT_DIR=str(folder),
        TRAIN_SAMPLES=24,
        TEST_SAMPLES=4,
        STEPS=4,
        BATCH_SIZE=4,
        MAX_NEW_TOKENS=20,
    )
    return folder / "student", *shown


def test_distil_in_ten_minutes_trains_and_measures_a_student(distilled):
    student, printed, shown = distilled
    assert (student / "model.safetensors").exists()
    assert "24 recordings to train on" in printed
    pages = "".join(data.get("text/html", "") for data in shown)
    assert "4 of 4" in pages  # the trainer
    assert pages.count("unheard accents") >= 3  # the tables of the untrained student, the teacher and the student
    assert "<svg" in pages


def test_compare_teacher_and_student_shows_where_they_differ(distilled):
    printed, shown = execute(
        "compare_teacher_and_student.ipynb", STUDENT=str(distilled[0]), TEST_SAMPLES=2, SHOWN=1, MAX_NEW_TOKENS=20
    )
    assert printed.count("student minus teacher") == 3
    pages = "".join(data.get("text/html", "") for data in shown)
    assert "<audio" in pages
    assert "<b>reference</b>" in pages
    assert sum("image/png" in data for data in shown) >= 2  # the scatter, and a spectrogram


def test_look_at_your_labels_shows_scores_thresholds_and_recordings():
    _, shown = execute("look_at_your_labels.ipynb", SAMPLES=24, SHOWN=1)
    pages = "".join(data.get("text/html", "") for data in shown)
    assert pages.count("<audio") == 2
    assert "The worst" in pages
    assert "WERFilter" in pages
    assert "LabelFilter" in pages

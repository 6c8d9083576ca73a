"""From an evaluation to its file, and from the file to a report."""

import json

import pytest
from conftest import tiny_whisper

from distilwhisper.benchmarks import LatencyComparison, LatencyResult
from distilwhisper.cli import main
from distilwhisper.evaluation_files import evaluation_document, read_report
from distilwhisper.metrics import ErrorCounts
from distilwhisper.results import EvaluationResult, SetResult, worst_examples

REFERENCES = {"read": ["one two three four", "five six"], "calls": ["seven eight"], "silence": [""]}


def result_of(*errors):
    """An evaluation with so many substitutions in each utterance of ``REFERENCES``; the last set holds no words."""
    sets, errors = {}, iter(errors)
    for name, texts in REFERENCES.items():
        words = [len(text.split()) for text in texts]
        wrong = [next(errors) if size else 0 for size in words]
        counts = {
            index: ErrorCounts(hits=size - bad, substitutions=bad, samples=1)
            for index, (size, bad) in enumerate(zip(words, wrong, strict=True))
            if size
        }
        sets[name] = SetResult(counts, transcripts={index: f"{name} {index}" for index in range(len(texts))})
    return EvaluationResult(sets)


@pytest.fixture
def document():
    teacher, student = tiny_whisper(4), tiny_whisper(2)
    times = [LatencyResult((seconds,), (2.0,), 1, 1, "cpu", (5,)) for seconds in (0.1, 0.3)]
    return evaluation_document(
        {"teacher": teacher, "student": student},
        {"teacher": result_of(0, 0, 1), "student": result_of(1, 2, 0)},
        REFERENCES,
        LatencyComparison(*times),
    )


def test_worst_examples_are_those_with_most_errors_of_the_student():
    references = {name: REFERENCES[name] for name in ("read", "calls")}
    examples = worst_examples(references, result_of(0, 0, 1), result_of(1, 2, 0), count=1)
    assert [example["reference"] for example in examples] == ["five six", "seven eight"]
    assert examples[0]["student"] == "read 1"


def test_document_holds_rates_speed_and_sizes_and_leaves_out_sets_without_words(document):
    teacher, student = document["models"]
    assert student["wer"] == {"read": 0.5, "calls": 0.0}
    assert (teacher["relative_latency"], student["relative_latency"]) == (1.0, pytest.approx(3.0))
    assert (teacher["decoder_layers"], student["decoder_layers"]) == (4, 2)
    assert document["student"]["sets"]["silence"]["wer"] is None
    json.dumps(document, allow_nan=False)


def test_report_tells_sets_apart_and_takes_filter_and_training(document, tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(document))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 2.0, "step": 1}]}))
    report = read_report(tmp_path / "evaluation.json", title="Ours", out_of_distribution=["calls"], training=tmp_path)
    assert (report.title, report.in_distribution, report.out_of_distribution) == ("Ours", ["read"], ["calls"])
    assert report.training_log == [{"loss": 2.0, "step": 1}]
    assert report.out_of_distribution_wer(report.student) == 0.0
    assert "3.0 times faster" in report.headline()


def test_command_writes_a_page_and_draws_a_reports_own_file_anew(document, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "evaluation.json").write_text(json.dumps(document))
    assert main(["report", "--results", str(tmp_path / "evaluation.json"), "--output_dir", str(tmp_path / "a")]) == 0
    assert f"Page with plots: {tmp_path / 'a' / 'report.html'}" in capsys.readouterr().out
    assert main(["report", "--results", str(tmp_path / "a" / "results.json"), "--output_dir", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a" / "report.html").read_text() == (tmp_path / "b" / "report.html").read_text()
    assert "five six" in (tmp_path / "a" / "results.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ("[]", "holds no results, but a list"),
        ("{}", "holds no results; give what evaluate --output wrote"),
        ('{"models": [{}]}', "holds one model alone; evaluate it beside its teacher"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path / "file.json")

"""What results show of themselves in a notebook: small, escaped, with the numbers that they print."""

from collections import Counter
from xml.etree import ElementTree

import pytest
from conftest import audio_dataset, encoded, tiny_whisper, tone
from datasets import Dataset

from distilwhisper import DistillationTrainer, DistillationTrainingArguments, LabelFilter, LabelRules, WERFilter
from distilwhisper.benchmarks import LatencyComparison, LatencyResult
from distilwhisper.charts import Chart
from distilwhisper.costs import WhisperShape
from distilwhisper.environment import inspect_environment
from distilwhisper.labels import LabelReport
from distilwhisper.metrics import ErrorCounts
from distilwhisper.planning import plan_distillation
from distilwhisper.reports import DistillationReport, ModelResult
from distilwhisper.results import EvaluationResult, SetResult
from distilwhisper.tables import text_as_html

EVIL = "<script>alert('x')</script> & co"


def shown(thing, limit=8_000):
    """Return the words of a display, having checked that it is well-formed, small, and lets nothing through."""
    page = thing._repr_html_()
    assert len(page) < limit
    assert "<script" not in page
    return " ".join("".join(ElementTree.fromstring(f"<body>{page}</body>").itertext()).split())


def cells(thing):
    return [cell.text or "" for cell in ElementTree.fromstring(f"<body>{thing._repr_html_()}</body>").iter("td")]


@pytest.fixture
def labelled():
    texts = ["two boys ran home", "nobody came", EVIL]
    labels = ["two boys ran home", "somebody else left", EVIL]
    return Dataset.from_dict({"text": texts, "whisper_transcript": labels, "duration_s": [3600.0] * 3})


@pytest.mark.parametrize("label_filter", [WERFilter(), LabelFilter(LabelRules(max_repetition=0.3))], ids=type)
def test_a_filter_shows_its_rule_and_then_what_it_kept(labelled, label_filter):
    assert "has filtered nothing yet" in shown(label_filter)
    label_filter.filter(labelled)
    assert type(label_filter).__name__ in shown(label_filter)
    assert "has filtered nothing yet" not in shown(label_filter)


def test_a_filter_report_shows_counts_hours_and_a_histogram(labelled):
    label_filter = WERFilter(0.1)
    label_filter.filter(labelled)
    assert cells(label_filter.report)[:3] == ["2", "2.00", "66.7%"]
    bars = [cell for cell in cells(label_filter.report) if "\u2588" in cell]
    assert list(map(len, bars)) == [20, 10]  # two labels without an error, one beyond


def test_an_evaluation_shows_its_table_with_names_escaped():
    counts = {0: ErrorCounts(hits=3, substitutions=1, samples=1)}
    result = EvaluationResult({EVIL: SetResult(counts, audio_s=2.0, seconds=1.0), "b": SetResult(counts)})
    text = shown(result)
    assert EVIL in text
    assert "macro-average" in text
    assert cells(result)[:2] == ["1", "25.00%"]


def test_reports_of_stages_show_what_they_print():
    report = LabelReport(labelled=3)
    report.set_aside = Counter({EVIL: 2})
    assert EVIL in shown(report)
    assert "labelled 3 recordings" in shown(report)
    times = LatencyResult((0.1,), (2.0,), 1, 1, "cpu")
    assert "100.0 ms" in cells(LatencyComparison(times, times))
    assert "sdpa" in shown(inspect_environment())


def test_a_report_of_a_distillation_shows_table_and_headline():
    models = [ModelResult(name, size, 2, {"read": 0.1}) for name, size in ((EVIL, 2_000_000), ("student", 1_000_000))]
    report = DistillationReport("title", models, ["read"])
    assert "10.0" in cells(report)
    assert report.headline() in shown(report)


def test_a_plan_shows_its_stages():
    shape = WhisperShape(384, 4, 4, 1_536, 1_536, 51_865, 80)
    plan = plan_distillation(shape, shape, hours=10, steps=10, batch_size=4, flops_per_s=1e12)
    assert "training from caches" in shown(plan)


def test_a_chart_shows_itself_at_a_readable_size():
    pytest.importorskip("matplotlib")
    page = Chart(lambda figure: figure.subplots().plot([0, 1]), EVIL)._repr_html_()
    assert page.startswith('<div style="max-width: 570px')
    assert "<svg" in page
    assert "<script" not in page


def test_cells_of_markdown_tables_keep_escaped_bars():
    assert "<td>a|b</td>" in text_as_html("| name | value |\n|:--|--:|\n| x | a\\|b |")


def test_a_trainer_shows_models_objective_and_progress(processor, tmp_path):
    data = audio_dataset([encoded(tone(1.0))] * 2, whisper_transcript=["one"] * 2, whisper_language=["en"] * 2)
    args = DistillationTrainingArguments(
        str(tmp_path / "<out>"), max_steps=1, logging_steps=1, report_to="none", use_cpu=True
    )
    teacher = tiny_whisper(max_target_positions=32)
    trainer = DistillationTrainer(
        tiny_whisper(2, max_target_positions=32), teacher, args, train_dataset=data, processing_class=processor
    )
    before = shown(trainer)
    assert "0.8 KL + 1 pseudo-labels, temperature 2" in before
    assert "0 of 1" in before
    assert "<out>" in before
    trainer.train()
    assert "1 of 1" in shown(trainer)
    assert f"{trainer.state.log_history[0]['loss']:.4g}" in cells(trainer)

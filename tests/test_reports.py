import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from distilwhisper.filtering import Decision, FilterReport
from distilwhisper.pages import mark_words, mark_words_in_markdown
from distilwhisper.reports import DistillationReport, ModelResult
from distilwhisper.tables import text_table

TEACHER = ModelResult("teacher", 9_712_384, 8, {"known": 0.02, "far": 0.05, "noise": 0.09}, 96.4, 1.0)
UNTRAINED = ModelResult("student before training", 5_921_384, 2, {"known": 0.95, "far": 1.2, "noise": 0.99}, 41.2, 2.34)
STUDENT = ModelResult("student", 5_921_384, 2, {"known": 0.025, "far": 0.06, "noise": 0.088}, 33.1, 2.91)
BARE = DistillationReport("A title", [TEACHER, STUDENT], ["known"], ["far", "noise"])
VOID_TAGS = {"meta", "path", "use"}


class Page(HTMLParser):
    """A page's tags, ids and text; fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def full_report():
    filter_report = FilterReport(0.1, "en")
    for decision in [Decision(None, 0.0)] * 6 + [Decision("wer", 0.8)] * 3 + [Decision("shouting", 0.05)]:
        filter_report.count(decision, 360.0)
    log = [
        {"step": 10, "loss": 3.0, "kl_loss": 2.0, "pl_loss": 1.4, "learning_rate": 1e-4},
        {"step": 10, "eval_far_wer": 60.0, "eval_far_wer_ortho": 66.0, "eval_far_loss": 1.0},
        {"step": 10, "eval_wer": 50.0},
        {"step": 20, "loss": float("nan"), "kl_loss": 1.0, "pl_loss": 0.7},
        {"step": 20, "eval_wer": 5.0, "eval_far_wer": 7.0},
        {"step": 20, "train_loss": 2.0, "train_runtime": 30.0},
    ]
    example = {"set": "far", "reference": "Four boxes.", "teacher": "four boxes", "student": "For <script>boxes"}
    settings = {"teacher": "a|b", "learning rate": 0.0005, "training (s)": 212.04321}
    models = [TEACHER, UNTRAINED, STUDENT]
    return replace(
        BARE,
        models=models,
        filter=filter_report.to_dict(),
        training_log=log,
        examples=[example],
        settings=settings,
    )


def written_page(report, directory):
    return report.write(directory).read_text(encoding="utf-8")


@pytest.fixture
def measured(full_report):
    """A report with everything that there is to measure."""
    measures = {
        "error_kinds": {"substitutions": 0.03, "deletions": 0.01, "insertions": 0.005},
        "utterance_wer": [0.0, 0.0, 0.12, 1.5],
        "latency_by_batch": [[1, 96.4], [4, 40.0], [16, 21.5]],
        "wer_by_snr": {"white": [[40, 0.02], [0, 0.3]], "pub": [[40, 0.03], [0, 0.5]]},
    }
    models = [replace(model, **measures) for model in (TEACHER, STUDENT)]
    data = [
        {"data set": "far", "samples": 1_200, "hours": 0.9},
        {"data set": "noise|y", "samples": 3, "licence": "MIT"},
    ]
    return replace(full_report, models=models, data=data)


def test_everything_measured_has_its_section(measured, tmp_path):
    html = written_page(measured, tmp_path)
    headings = re.findall("<h2>(.+?)</h2>", html)
    assert headings == "Accuracy and speed,Errors,Noise,Training,Filter,Examples,Data,Settings".split(",")
    figures = re.findall("<b>(.+?)</b>", html)
    assert "Latency by batch size" in figures
    assert [name for name in figures if "noise" in name] == [f"Word error rate in noise: {n}" for n in ("white", "pub")]
    labels = [value for name, value in Page(html).attributes if name == "aria-label"]
    assert any(label.endswith("student 3.0 % substitutions, 1.0 % deletions, 0.5 % insertions.") for label in labels)
    assert "Utterances by word error rate; without any error: teacher 2, student 2." in labels
    assert "<td>1,200</td><td>0.9</td><td>-</td>" in html


def test_markdown_holds_what_the_page_shows(measured):
    markdown = measured.to_markdown()
    assert "| teacher | 3.0 | 1.0 | 0.5 |" in markdown
    assert "## WER in noise: pub\n\n| WER (%) at | 40 dB | 0 dB |" in markdown
    assert "  - student: **For** (Four) **&lt;script&gt;boxes** (boxes.)" in markdown
    assert "| far | 1,200 | 0.9 | - |" in markdown
    assert DistillationReport.from_json(measured.to_json()).to_markdown() == markdown


def test_differences_are_marked_in_markdown():
    assert mark_words_in_markdown("a b c", "a x c d") == "a **x** (b) c **+d**"
    assert mark_words_in_markdown("a b", "b") == "~~a~~ b"


def test_averages_weigh_all_sets_the_same():
    assert BARE.in_distribution_wer(TEACHER) == pytest.approx(0.02)
    assert BARE.out_of_distribution_wer(STUDENT) == pytest.approx((0.06 + 0.088) / 2)
    assert replace(BARE, out_of_distribution=[]).out_of_distribution_wer(STUDENT) is None


def test_the_table_shows_the_given_numbers_in_every_form(full_report, tmp_path):
    row = ["student", "5.9", "2", "2.91", "33.1", "2.5", "7.4", "2.5", "6.0", "8.8"]
    assert full_report.table()[-1] == row
    assert f"| {' | '.join(row)} |" in full_report.to_markdown()
    assert "".join(f"<td>{cell}</td>" for cell in row[1:]) in written_page(full_report, tmp_path)


def test_what_was_not_measured_is_a_dash():
    untimed = replace(BARE, models=[replace(model, latency_ms=None, relative_latency=None) for model in BARE.models])
    assert untimed.table()[-1][3:5] == ["-", "-"]
    assert replace(BARE, in_distribution=[]).table()[-1][5] == "-"


@pytest.mark.parametrize("sets", [1, 4, 12])
def test_the_terminal_table_keeps_within_100_columns_and_loses_no_column(sets):
    rates = {f"a set with number {index}": index / 100 for index in range(sets)}
    report = DistillationReport("t", [replace(TEACHER, wer=rates), replace(STUDENT, wer=rates)], list(rates))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    shown = " ".join(" ".join(line.split()[1:]) for line in lines if line.startswith("student  "))
    assert shown.split() == report.table()[-1][1:]


def test_headings_of_the_terminal_table_wrap_above_their_columns():
    assert text_table([["model", "decoder layers"], ["teacher", "32"]]).splitlines() == [
        "         decoder",
        "model     layers",
        "-------  -------",
        "teacher       32",
    ]


@pytest.mark.parametrize(
    ("rates", "latency", "expected"),
    [
        ((0.06, 0.088), 2.91, "The student is 2.9 times faster than its teacher and 0.4 points worse out of "),
        ((0.04, 0.08), 0.5, "The student is 2.0 times slower than its teacher and 1.0 point better out of "),
        ((0.05, 0.0901), 1.02, "The student is about as fast as its teacher and just as accurate out of "),
        (
            (0.06, 0.088),
            None,
            "The student is 0.4 points worse out of distribution (WER 7.4 % against the teacher's 7.0 %).",
        ),
    ],
)
def test_the_headline_says_better_worse_or_equal(rates, latency, expected):
    wer = {"known": 0.5, **dict(zip(["far", "noise"], rates, strict=True))}
    student = replace(STUDENT, wer=wer, relative_latency=latency)
    assert replace(BARE, models=[TEACHER, student]).headline().startswith(expected)


def test_the_headline_falls_back_on_the_sets_there_are():
    assert "0.5 points worse in distribution" in replace(BARE, out_of_distribution=[]).headline()
    assert "on average" in replace(BARE, in_distribution=[], out_of_distribution=[]).headline()


def test_results_json_holds_the_whole_report_and_reads_back(full_report, tmp_path):
    full_report.write(tmp_path)
    document = (tmp_path / "results.json").read_text(encoding="utf-8")
    summary = json.loads(document, parse_constant=pytest.fail)["summary"]
    assert summary["headline"] == full_report.headline()
    assert summary["models"]["student"]["wer_out_of_distribution"] == pytest.approx(0.074)
    read = DistillationReport.from_json(document)
    full_report.training_log[3]["loss"] = None  # a number that JSON has no word for
    assert read == full_report
    assert read.to_json() == document


def test_markdown_escapes_what_would_break_a_table(full_report):
    shouting = replace(full_report, title="<b>|x", models=[replace(TEACHER, name="a|b\n<i>"), STUDENT])
    markdown = shouting.to_markdown()
    assert r"# &lt;b&gt;\|x" in markdown
    assert r"| a\|b &lt;i&gt; | 9.7 |" in markdown
    assert r"- **teacher**: a\|b" in markdown
    assert "- **training (s)**: 212.043" in markdown


def test_the_filter_table_counts_kept_and_dropped_by_reason(full_report):
    rows = full_report.to_markdown().split("## Filter")[1].splitlines()
    assert "| kept | 6 | 60.0 | 0.60 |" in rows
    assert "| dropped: WER above 10 % | 3 | 30.0 | 0.30 |" in rows
    assert "| dropped: shouting | 1 | 10.0 | 0.10 |" in rows
    assert "| all | 10 | 100.0 | 1.00 |" in rows
    assert not any("empty" in row for row in rows)


def test_the_page_is_well_formed_and_loads_nothing(full_report, tmp_path):
    html = written_page(full_report, tmp_path)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "xlink:href", "src"))
    assert page.tags.count("svg") == 6
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in page.attributes if name == "xlink:href"} | set(
        re.findall(r"url\(#(.+?)\)", html)
    )
    assert used <= set(ids)


def test_texts_are_escaped_wherever_they_stand(full_report, tmp_path):
    bad = "<script>alert('$x$')</script>"
    rates = {bad if name == "far" else name: rate for name, rate in TEACHER.wer.items()}
    report = replace(
        full_report,
        title=bad,
        models=[replace(model, name=bad + model.name, wer=rates) for model in full_report.models],
        out_of_distribution=[bad],
        training_log=[{"step": 1, f"eval_{bad}_wer": 3.0}],
        examples=[{"set": bad, "reference": bad, "teacher": "", "student": f"{bad} {bad}"}],
        settings={bad: bad},
    )
    page = Page(written_page(report, tmp_path))
    assert "script" not in page.tags
    assert page.text.count("<script>") >= 12


def test_the_page_has_only_the_sections_that_have_something_to_show(full_report, tmp_path):
    headings = re.findall("<h2>(.+?)</h2>", written_page(full_report, tmp_path))
    assert headings == ["Accuracy and speed", "Training", "Filter", "Examples", "Settings"]
    untimed = [replace(model, latency_ms=None, relative_latency=None) for model in BARE.models]
    bare = written_page(replace(BARE, models=untimed), tmp_path)
    assert re.findall("<h2>(.+?)</h2>", bare) == ["Accuracy and speed"]
    assert Page(bare).tags.count("svg") == 2


def test_the_bars_of_an_untrained_student_are_cut_and_still_labelled(full_report, tmp_path):
    html = written_page(full_report, tmp_path)
    assert html.count("stroke: var(--card)") == 2 * 3
    assert ">120.0</text>" in html
    assert "stroke: var(--card)" not in written_page(BARE, tmp_path)


def test_figures_name_the_curves_of_the_log_and_their_ends(full_report, tmp_path):
    labels = [value for name, value in Page(written_page(full_report, tmp_path)).attributes if name == "aria-label"]
    assert "Training loss by step: total from 3 to 3, KL from 2 to 1, pseudo-labels from 1.4 to 0.7." in labels
    assert "Validation WER by step, in percent: far from 60 to 7, average from 50 to 5." in labels


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.12, 1.0])
def test_a_filter_of_any_threshold_is_drawn(threshold, tmp_path):
    empty = FilterReport(threshold, "en").to_dict()
    assert f"dropped: above {100 * threshold:g} %" in written_page(replace(BARE, filter=empty), tmp_path)


def test_differences_from_the_reference_are_marked_word_by_word():
    marked = mark_words("The cat, sat - on it", "the bat sat on on")
    assert marked == 'the <mark title="instead of: cat,">bat</mark> sat on <mark title="instead of: it">on</mark>'
    assert mark_words("a b", "b") == "<del>a</del> b"
    assert mark_words("a", "a b") == "a <ins>b</ins>"
    assert mark_words("", "a") == "<ins>a</ins>"
    assert mark_words("a", "...") == "<del>a</del>"
    assert "nothing" in mark_words("", "")
    assert mark_words("की", "कि") != "कि", "vowel signs count"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [TEACHER]}, "needs a teacher and a student"),
        ({"models": [TEACHER, TEACHER]}, "its own name"),
        ({"models": [TEACHER, replace(STUDENT, wer={"known": 0.1})]}, "'student' has \\['known'\\]"),
        ({"models": [replace(TEACHER, wer={}), replace(STUDENT, wer={})]}, "needs a test set"),
        ({"out_of_distribution": ["moon"]}, "'moon'"),
    ],
)
def test_results_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BARE, **changes)


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), -0.1])
def test_a_word_error_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="'moon'"):
        replace(TEACHER, wer={"moon": rate})


def test_without_matplotlib_the_numbers_are_written_and_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'distilwhisper[plots]'")):
        BARE.write(tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"results.json", "results.md"}


def test_reports_import_neither_torch_nor_matplotlib():
    code = "import sys, distilwhisper.reports; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

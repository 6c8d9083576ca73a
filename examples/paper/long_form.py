r"""Tables 17, 18 and 7: long recordings, sequential and chunked; tables 8 and 19: their errors by kind.

python examples/paper/long_form.py
python examples/paper/long_form.py --teacher openai/whisper-small.en --train mozilla.parquet:train \
        --long_id ted=tedlium:test --long_ood meanwhile=meanwhile:test --learning_rate 1e-4     # with network access
"""

from statistics import median

from common import Lab, main
from rates import Rates, Row, average_groups

from distilwhisper import EvaluationResult
from distilwhisper.plots import plot_bars, plot_error_kinds

KINDS = {"IER": "ier", "SER": "ser", "DER": "der", "WER": "wer"}


def run(lab: Lab) -> None:
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}
    results = {
        f"{name}, {algorithm}": lab.result(model, long=True, **lab.algorithm(algorithm))
        for algorithm in ("sequential", "chunked")
        for name, model in models.items()
    }
    title = "Tables 17 and 18: word error rates of long recordings"
    rates = lab.write_rates("table_17_18", title, results, lab.long_in_distribution)
    groups = average_groups(lab.long_sets, lab.long_in_distribution)
    summary = "OOD average" if "OOD average" in groups else "average"
    algorithms(lab, results, rates, summary)
    errors_by_kind(lab, results, groups, summary)


def algorithms(lab: Lab, results: dict[str, EvaluationResult], rates: Rates, summary: str) -> None:
    speed = {name: faster(results["teacher, sequential"], result) for name, result in results.items()}
    rows: list[Row] = [
        {
            "model": name.split(", ")[0],
            "algorithm": name.split(", ")[1],
            "relative latency": speed[name],
            f"{summary} WER (%)": rates[name][summary],
        }
        for name in results
    ]
    described = "Relative latency by model and algorithm."
    bars = {name: {"": ratio} for name, ratio in speed.items()}
    chart = plot_bars(bars, described, label="times faster than the teacher, sequential")
    note = (
        "Relative latency is the time of the teacher with the sequential algorithm over that of the row, reading the "
        "audio included, median over the sets; chunks are transcribed 16 at a time."
    )
    lab.write("table_07", "Table 7: algorithms for long recordings", rows, chart, note)


def faster(slow: EvaluationResult, fast: EvaluationResult) -> float:
    """Return how many times less time a result took, median over the sets: one may have been disturbed."""
    return median(slow.sets[name].seconds / part.seconds for name, part in fast.sets.items())


def errors_by_kind(lab: Lab, results: dict[str, EvaluationResult], groups: dict[str, list[str]], summary: str) -> None:
    rows: list[Row] = []
    for name, sets in groups.items():
        repeats = {model: result.macro_average(sets, "repeated_5grams") for model, result in results.items()}
        rows.append({"set": name, "measure": "5-Dup.", **repeats})
        for kind, rate in KINDS.items():
            rates = {model: 100 * result.macro_average(sets, rate) for model, result in results.items()}
            rows.append({"set": name, "measure": f"{kind} (%)", **rates})
    names = {"insertions": "ier", "substitutions": "ser", "deletions": "der"}
    kinds = {
        model: {name: 100 * result.macro_average(groups[summary], rate) for name, rate in names.items()}
        for model, result in results.items()
    }
    chart = plot_error_kinds(kinds, "Word error rate out of distribution by kind of error and model.")
    lab.write("table_19", "Table 19: errors of long recordings by kind", rows, chart)
    rows = [
        {"model": model} | {str(row["measure"]): row[model] for row in rows if row["set"] == summary}
        for model in results
    ]
    lab.write("table_08", f"Table 8: errors of long recordings by kind, {summary}", rows, chart)


if __name__ == "__main__":
    main(run, __doc__)

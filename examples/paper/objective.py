"""Table 21: the terms of the objective.

python examples/paper/objective.py
"""

from common import Lab, main
from rates import Row, bar_chart


def run(lab: Lab) -> None:
    students = {
        "PL": lab.student("pl", kl_weight=0.0),
        "PL + KL": lab.student(),
        "PL + KL + MSE": lab.student("pl-kl-mse", mse_weight=1.0),
    }
    rows: list[Row] = [{"objective": name, **lab.averages(lab.result(student))} for name, student in students.items()]
    bars = {str(row["objective"]): {key[: -len(" WER (%)")]: row[key] for key in [*row][1:]} for row in rows}
    chart = bar_chart(bars, "Word error rates by objective")
    note = f"{lab.trained} Weights: 1.0 (PL), 0.8 (KL), 1.0 (MSE)."
    lab.write("table_21", "Table 21: terms of the objective", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)

"""Table 11: the amount of training data.

python examples/paper/data_size.py
"""

from common import Lab, main
from rates import Row, curve_chart

SHARES = (0.02, 0.08, 0.32, 1.0)


def run(lab: Lab) -> None:
    kept, report = lab.kept()
    rows: list[Row] = []
    for share in SHARES:
        samples = max(1, round(share * len(kept)))
        student = lab.student() if share == 1 else lab.student(f"share-{share:g}", samples=samples)
        size = {"samples": samples, "minutes": 60 * share * report["kept"]["hours"], "proportion (%)": 100 * share}
        rows.append({**size, **lab.averages(lab.result(student))})
    ticks = [f"{row['samples']:,}" for row in rows]
    chart = curve_chart(rows, [*rows[0]][3:], "training samples", ticks, "Word error rate by amount of data")
    lab.write("table_11", "Table 11: amount of training data", rows, chart, lab.trained)


if __name__ == "__main__":
    main(run, __doc__)

"""Table 10: the threshold of the WER filter.

python examples/paper/wer_threshold.py
"""

from common import Lab, main
from rates import Row, curve_chart

THRESHOLDS = (1.0, 0.4, 0.1, 0.05)


def run(lab: Lab) -> None:
    rows: list[Row] = []
    for threshold in THRESHOLDS:
        _, report = lab.kept(threshold)
        base = threshold == lab.args.threshold
        student = lab.student(*(() if base else (f"threshold-{threshold:g}",)), threshold=threshold)
        dropped = 1 - report["kept"]["samples"] / report["total"]["samples"]
        averages = lab.averages(lab.result(student))
        rows.append({"λ (%)": 100 * threshold, "data filtered (%)": 100 * dropped, **averages})
    ticks = [f"{100 * threshold:g}" for threshold in THRESHOLDS]
    chart = curve_chart(rows, [*rows[0]][2:], "threshold λ (%)", ticks, "Word error rate by threshold")
    lab.write("table_10", "Table 10: threshold of the WER filter", rows, chart, lab.trained)


if __name__ == "__main__":
    main(run, __doc__)

"""Table 10: the threshold of the WER filter.

python examples/paper/wer_threshold.py
"""

from common import Lab, Row, main

from distilwhisper.plots import plot_curves

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
    curves = {key: [(number, *row[key]) for number, row in enumerate(rows)] for key in [*rows[0]][2:]}
    chart = plot_curves(
        {key.removesuffix(" WER (%)"): points for key, points in curves.items()},
        "WER (%)",
        "Word error rate by threshold, with 95 % intervals",
        xlabel="threshold λ (%)",
        ticks={number: f"{100 * threshold:g}" for number, threshold in enumerate(THRESHOLDS)},
    )
    note = f"Each student was trained for {lab.args.updates} updates of {lab.args.batch_size} samples."
    lab.write("table_10", "Table 10: threshold of the WER filter", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)

"""Table 5: size, speed and word error rates out of distribution, for short and for long recordings.

python examples/paper/headline.py
"""

import attention
from common import Lab, main, millions
from long_form import faster
from rates import Row, estimate

from distilwhisper.plots import plot_trade_off


def run(lab: Lab) -> None:
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}
    times = {name: attention.measured(lab)[1][f"{name}, sdpa"] for name in models}
    short = {name: lab.result(model) for name, model in models.items()}
    long = {name: lab.result(model, long=True, **lab.algorithm("chunked")) for name, model in models.items()}
    short_sets = lab.out_of_distribution or lab.in_distribution
    long_sets = [name for name in lab.long_sets if name not in lab.long_in_distribution] or [*lab.long_sets]
    rows: list[Row] = [
        {
            "model": name,
            "parameters (M)": millions(models[name]),
            "short: relative latency": times["teacher"]["rtf"] / times[name]["rtf"],
            "short: WER (%)": estimate(short[name], short_sets, lab.args.seed),
            "long: relative latency": faster(long["teacher"], long[name]),
            "long: WER (%)": estimate(long[name], long_sets, lab.args.seed),
        }
        for name in models
    ]
    points = {
        name: (1000 * times[name]["median_s"], row["short: WER (%)"].value)
        for name, row in zip(models, rows, strict=True)
    }
    described = "Word error rate out of distribution against the time of a short transcription."
    chart = plot_trade_off(points, "WER out of distribution (%)", described)
    note = "Short recordings one at a time, long ones by the chunked algorithm, 16 chunks at a time."
    lab.write("table_05", "Table 5: size, speed and accuracy", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)

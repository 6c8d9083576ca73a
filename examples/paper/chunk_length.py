"""Table 23: the chunk length of the chunked algorithm.

    python examples/paper/chunk_length.py

The lengths are the same shares of the model's window as the paper's 30, 25, 20, 15 and 10 s are of 30 s.
"""

from common import WINDOW_SHARES, Lab, main
from rates import Row, curve_chart, estimate


def run(lab: Lab) -> None:
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}
    sets = lab.long_in_distribution
    rows: list[Row] = []
    for paper_s, share in WINDOW_SHARES.items():
        chunk_s = round(share * lab.window_s, 2)
        results = {
            name: lab.result(model, long=True, only=sets, **lab.algorithm("chunked", chunk_length_s=chunk_s))
            for name, model in models.items()
        }
        rates = {f"{name} (%)": estimate(result, sets, lab.args.seed) for name, result in results.items()}
        rows.append({"chunk length (s)": chunk_s, "in the paper (s)": paper_s, **rates})
    columns = [f"{name} (%)" for name in models]
    ticks = [f"{row['chunk length (s)']:g}" for row in rows]
    chart = curve_chart(rows, columns, "chunk length (s)", ticks, "Word error rate by chunk length")
    lab.write("table_23", f"Table 23: chunk length, on {', '.join(sets)}", rows, chart)


if __name__ == "__main__":
    main(run, __doc__)

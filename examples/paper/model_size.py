"""Table 12: decoder and encoder layers of the student.

python examples/paper/model_size.py
"""

from common import Lab, main, millions
from rates import Row

from distilwhisper.benchmarks import measure_latencies
from distilwhisper.plots import plot_trade_off


def run(lab: Lab) -> None:
    teacher = lab.transcriber(lab.args.teacher)
    whole, layers = teacher.model.config.encoder_layers, teacher.model.config.decoder_layers
    models = {(whole, layers): lab.args.teacher}
    for count in (layers // 2, layers // 4, 1):
        models[whole, count] = lab.student(f"decoder-{count}", decoder_layers=count)
    models[whole, lab.args.decoder_layers] = lab.student()
    half = whole // 2
    models[half, lab.args.decoder_layers] = lab.student(f"encoder-{half}", encoder_layers=half)
    models = dict(sorted(models.items(), reverse=True))
    names = {f"{encoder} + {decoder}": model for (encoder, decoder), model in models.items()}
    transcribers = {name: lab.transcriber(model) for name, model in names.items()}
    times = measure_latencies(transcribers, lab.speed_audio())
    slowest = times[f"{whole} + {layers}"].median_s
    rows: list[Row] = [
        {
            "encoder + decoder layers": name,
            "parameters (M)": millions(transcribers[name]),
            "relative latency": slowest / times[name].median_s,
            **lab.averages(lab.result(model)),
        }
        for name, model in names.items()
    ]
    points = {str(row["encoder + decoder layers"]): (row["relative latency"], row["OOD WER (%)"].value) for row in rows}
    described = "Word error rate against speed by layers kept."
    chart = plot_trade_off(points, "WER out of distribution (%)", described, xlabel="times faster than the teacher")
    note = (
        "The first row is the teacher. Relative latency is the teacher's median time of a transcription over the "
        f"model's, at batch size 1. {lab.trained}"
    )
    lab.write("table_12", "Table 12: layers of encoder and decoder", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)

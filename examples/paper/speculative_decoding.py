"""Tables 9 and 22: speculative decoding, with the student as the teacher's assistant, by batch size.

python examples/paper/speculative_decoding.py
"""

from common import Lab, main, millions
from rates import Row

from distilwhisper.benchmarks import measure_latencies
from distilwhisper.plots import plot_bars

BATCH_SIZES = (1, 4, 16)


def run(lab: Lab) -> None:
    student = lab.final_student()
    transcribers = {
        "teacher": lab.transcriber(lab.args.teacher),
        "teacher with student": lab.transcriber(lab.args.teacher, assistant=lab.transcriber(student).model),
        "student": lab.transcriber(student),
    }
    audio = lab.speed_audio()
    alone, together = (transcribers[name](audio) for name in ("teacher", "teacher with student"))
    same = sum(one.tokens == other.tokens for one, other in zip(alone, together, strict=True))
    times = {size: measure_latencies(transcribers, audio, batch_size=size) for size in BATCH_SIZES}
    encoder = transcribers["student"].model.model.encoder.num_parameters() / 1e6  # the teacher's own, and shared
    added = {"teacher with student": millions(transcribers["student"]) - encoder}
    rows: list[Row] = []
    for name in transcribers:
        parameters = millions(transcribers[name]) + added.get(name, 0.0)
        ratios = {f"batch {size}": times[size]["teacher"].rtf / times[size][name].rtf for size in BATCH_SIZES}
        rows.append({"model": name, "parameters (M)": parameters, **ratios})
    bars = {str(row["model"]): {f"batch {size}": row[f"batch {size}"] for size in BATCH_SIZES} for row in rows}
    chart = plot_bars(bars, "Speed relative to the teacher alone, by batch size.", label="times faster", form=".2f")
    note = (
        f"Relative latency: the time of the teacher alone over that of the row, at the same batch size. The tokens of "
        f"{same} of {len(audio)} recordings are the very tokens of the teacher alone; it accepted "
        f"{transcribers['teacher with student'].speculation.acceptance_rate:.0%} of the student's tokens."
    )
    lab.write("table_09_22", "Tables 9 and 22: speculative decoding by batch size", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)

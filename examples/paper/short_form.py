r"""Tables 16 and 6: short recordings in and out of distribution, and effective robustness.

python examples/paper/short_form.py
python examples/paper/short_form.py --teacher openai/whisper-small.en --train mozilla.parquet:train \
        --id cv=commonvoice:test --ood voxpopuli=vox:test --learning_rate 1e-4     # with network access
"""

from common import Lab, main
from rates import Row

from distilwhisper import compare_word_errors, relative_error_rates
from distilwhisper.plots import plot_trade_off


def run(lab: Lab) -> None:
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}
    results = {name: lab.result(model) for name, model in models.items()}
    lab.write_rates("table_16", "Table 16: word error rates of short recordings", results, lab.in_distribution)

    teacher, student = results["teacher"], results["student"]
    relative = relative_error_rates(teacher, student)
    rows: list[Row] = []
    for name, change in relative.items():
        paired = compare_word_errors([*teacher.sets[name].counts.values()], [*student.sets[name].counts.values()])
        rates = {"teacher (%)": 100 * teacher.sets[name].wer, "student (%)": 100 * student.sets[name].wer}
        rows.append({"set": name, **rates, "RER (%)": 100 * change, "p (permutation)": paired.p_permutation})
    averages = {f"{name} (%)": 100 * result.wer for name, result in (("teacher", teacher), ("student", student))}
    mean = sum(relative.values()) / len(relative)
    rows.append({"set": "average", **averages, "RER (%)": 100 * mean, "p (permutation)": None})
    points = {
        name: tuple(100 * results[name].macro_average(sets) for sets in (lab.in_distribution, lab.out_of_distribution))
        for name in ("teacher", "student")
    }
    chart = plot_trade_off(
        points,
        "WER out of distribution (%)",
        "Word error rate out of distribution against in distribution.",
        xlabel="WER in distribution (%)",
    )
    note = "RER is the student's word error rate less the teacher's, relative to the teacher's: below 0 is better."
    lab.write("table_06", "Table 6: effective robustness", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)

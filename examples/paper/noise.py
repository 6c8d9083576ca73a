"""Figure 2: white noise and the noise of a pub, from 40 to -10 dB.

    python examples/paper/noise.py

The pub is made of ten synthesised voices that talk at once, whatever the data.
"""

from pathlib import Path

from common import Lab, main
from rates import Row, estimate
from recordings import pub_noise, white_noise, with_noise

from distilwhisper import EvaluationResult, evaluate
from distilwhisper.plots import plot_curves

LEVELS_DB = (40, 30, 20, 10, 5, 0, -5, -10)
NOISES = {"white": white_noise, "pub": pub_noise}


def results(lab: Lab) -> dict[str, EvaluationResult]:
    """Return the results of teacher and student on sets named after noise and level: ``pub -5``."""
    clean = next(iter(lab.short_sets.values())).select(range(min(50, lab.args.test_samples)))
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        sets = {
            f"{noise} {level}": with_noise(clean, NOISES[noise](), level) for noise in NOISES for level in LEVELS_DB
        }
        for name, model in models.items():
            result = evaluate(lab.transcriber(model), sets, text_column=lab.args.text_column)
            (folder / f"{name}.json").write_text(result.to_json(details=True))

    settings = {"levels": LEVELS_DB, "samples": len(clean), "data": lab.args.id}
    folder = lab.stages.run("noise", make, after=["student-final"], **settings)
    return {name: EvaluationResult.from_json((folder / f"{name}.json").read_text()) for name in models}


def run(lab: Lab) -> None:
    found = results(lab)
    rows: list[Row] = []
    curves: dict[str, list] = {}
    for noise in NOISES:
        for level in LEVELS_DB:
            row = {"noise": noise, "SNR (dB)": level}
            for name, result in found.items():
                rate = row[f"{name} (%)"] = estimate(result, [f"{noise} {level}"], lab.args.seed)
                curves.setdefault(f"{name}, {noise}", []).append((-level, *rate))
            rows.append(row)
    chart = plot_curves(
        curves,
        "WER (%)",
        "Word error rate from 40 to -10 dB, with 95 % intervals",
        xlabel="speech over noise (dB)",
        ticks={-level: str(level) for level in LEVELS_DB if level % 10 == 0},
        logarithmic=True,
    )
    lab.write("figure_2", "Figure 2: word error rate in noise", rows, chart)


if __name__ == "__main__":
    main(run, __doc__)

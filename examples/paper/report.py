"""The page of the final student: one HTML file with everything that the experiments measured of it, and in Markdown.

python examples/paper/report.py
"""

import shlex
import sys

import attention
import noise
from common import Lab, main
from rates import versions

from distilwhisper.report_sections import describe_dataset
from distilwhisper.reports import DistillationReport, ModelResult
from distilwhisper.results import worst_examples


def run(lab: Lab) -> None:
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}
    results = {name: lab.result(model) for name, model in models.items()}
    times = {
        name: {size: by_name[f"{name}, sdpa"] for size, by_name in attention.measured(lab).items()} for name in models
    }
    in_noise = noise.results(lab)
    described = [
        ModelResult.from_evaluation(
            name,
            lab.transcriber(models[name]).model,
            results[name],
            latency_ms=1000 * times[name][1]["median_s"],
            relative_latency=times["teacher"][1]["median_s"] / times[name][1]["median_s"],
            latency_by_batch=[
                [size, 1000 * sum(one["seconds"]) / len(times[name][1]["seconds"])] for size, one in times[name].items()
            ],
            wer_by_snr={
                kind: [[level, in_noise[name].sets[f"{kind} {level}"].wer] for level in noise.LEVELS_DB]
                for kind in noise.NOISES
            },
        )
        for name in models
    ]
    report = DistillationReport(
        title=f"Distilling {lab.args.teacher}",
        models=described,
        in_distribution=lab.in_distribution,
        out_of_distribution=lab.out_of_distribution,
        filter=lab.kept()[1],
        examples=worst_examples(
            {name: rows[lab.args.text_column] for name, rows in lab.short_sets.items()}, *results.values()
        ),
        data=[describe_dataset(name, rows, text_column=lab.args.text_column) for name, rows in lab.short_sets.items()],
        settings={
            "command": shlex.join(["python", *sys.argv]),
            **{name: str(value) for name, value in vars(lab.args).items()},
            **versions(),
        },
    )
    page = report.write(lab.results_dir)
    print(f"\n{report}\n\n{page}", flush=True)


if __name__ == "__main__":
    main(run, __doc__)

"""The page of the final student: one HTML file with everything that the experiments measured of it, and in Markdown.

python examples/paper/report.py
"""

import shlex
import sys

import noise
from common import Lab, Row, main, versions

from distilwhisper.benchmarks import measure_latencies
from distilwhisper.report_sections import describe_dataset
from distilwhisper.reports import DistillationReport, ModelResult

BATCH_SIZES = (1, 4, 16)


def run(lab: Lab) -> None:
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}
    transcribers = {name: lab.transcriber(model) for name, model in models.items()}
    results = {name: lab.result(model) for name, model in models.items()}
    audio = lab.speed_audio()
    times = {size: measure_latencies(transcribers, audio, batch_size=size) for size in BATCH_SIZES}
    in_noise = noise.results(lab)
    described = [
        ModelResult.from_evaluation(
            name,
            transcribers[name].model,
            results[name],
            latency_ms=1000 * times[1][name].median_s,
            relative_latency=times[1]["teacher"].median_s / times[1][name].median_s,
            latency_by_batch=[[size, 1000 * sum(times[size][name].seconds) / len(audio)] for size in BATCH_SIZES],
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
        examples=worst(lab, results),
        data=[describe_dataset(name, rows, text_column=lab.args.text_column) for name, rows in lab.short_sets.items()],
        settings={
            "command": shlex.join(["python", *sys.argv]),
            **{name: str(value) for name, value in vars(lab.args).items()},
            **versions(),
        },
    )
    page = report.write(lab.results_dir)
    print(f"\n{report}\n\n{page}", flush=True)


def worst(lab: Lab, results: dict, count: int = 3) -> list[Row]:
    """Return the transcripts of each set in which the student is wrong in most words."""
    examples = []
    for name, rows in lab.short_sets.items():
        errors = {index: counts.errors for index, counts in results["student"].sets[name].counts.items()}
        for index in sorted(errors, key=errors.__getitem__, reverse=True)[:count]:
            texts = {who: result.sets[name].transcripts[index] for who, result in results.items()}
            examples.append({"set": name, "reference": rows[index][lab.args.text_column], **texts})
    return examples


if __name__ == "__main__":
    main(run, __doc__)

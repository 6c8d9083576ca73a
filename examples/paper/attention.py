"""Tables 24 and 25: real-time factor by batch size and attention kernel, on whatever device there is.

    python examples/paper/attention.py

Flash Attention 2 is measured where the package ``flash-attn`` and a GPU that it supports are there.
"""

import json
from itertools import product
from pathlib import Path

import torch
from common import Lab, main
from rates import Row
from transformers.utils import is_flash_attn_2_available

from distilwhisper.benchmarks import measure_latencies
from distilwhisper.plots import plot_bars

BATCH_SIZES = (1, 4, 16)
FLASH = ["flash_attention_2"] if torch.cuda.is_available() and is_flash_attn_2_available() else []


def measured(lab: Lab) -> dict[int, dict[str, dict]]:
    """Return batch size to model and kernel (``teacher, sdpa``) to what a `LatencyResult` says, measured once."""
    models = {"teacher": lab.args.teacher, "student": lab.final_student()}
    kernels = ["eager", "sdpa", *FLASH]

    def make(folder: Path) -> None:
        transcribers = {}
        for kernel, (name, model) in product(kernels, models.items()):
            transcribers[f"{name}, {kernel}"] = lab.transcriber(model)
            transcribers[f"{name}, {kernel}"].model.set_attn_implementation(kernel)
        audio = lab.speed_audio()
        times = {size: measure_latencies(transcribers, audio, batch_size=size, warmup=1) for size in BATCH_SIZES}
        shown = {size: {name: one.to_dict() for name, one in by_name.items()} for size, by_name in times.items()}
        folder.mkdir(parents=True)
        (folder / "times.json").write_text(json.dumps(shown))

    settings = {"samples": lab.args.speed_samples, "kernels": kernels, "data": lab.args.id}
    folder = lab.stages.run("speed", make, after=["student-final"], **settings)
    return {int(size): by_name for size, by_name in json.loads((folder / "times.json").read_text()).items()}


def run(lab: Lab) -> None:
    times = measured(lab)
    rows: list[Row] = []
    for name in times[1]:
        model, kernel = name.split(", ")
        factors = {f"RTF x 1000, batch {size}": 1000 * times[size][name]["rtf"] for size in BATCH_SIZES}
        speed = {f"tokens/s, batch {size}": times[size][name]["tokens_per_s"] for size in (1, 16)}
        rows.append({"model": model, "attention": kernel, **factors, **speed})
    bars = {name: {f"batch {size}": 1000 * times[size][name]["rtf"] for size in BATCH_SIZES} for name in times[1]}
    described = "Thousandths of the real-time factor by batch size, model and attention kernel."
    chart = plot_bars(bars, described, label="real-time factor x 1000 (lower is faster)")
    device = times[1]["teacher, sdpa"]["device"]
    note = (
        "The real-time factor is the time of whole transcriptions over the length of the audio, medians of 3 runs in "
        f"turns, after a warm-up, on {device}."
        + ("" if FLASH else " Flash Attention 2 was not measured: it needs a GPU and the package flash-attn.")
    )
    lab.write("table_24", "Tables 24 and 25: real-time factor by batch size and attention", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)

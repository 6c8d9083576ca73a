"""The measuring programs run to their end and write what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_gpu_program_runs_on_a_cpu_too(tmp_path):
    flags = "--size mini --batch_size 2 --tokens 20 --repeats 1 --device cpu".split()
    printed = run(BENCHMARKS / "gpu.py", *flags, "--output", tmp_path / "gpu.json")
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {(row["way"], row["attention"]) for row in rows} >= {
        ("plain", "sdpa"), ("online", "sdpa"), ("cached", "sdpa"), ("online", "eager"),
    }  # fmt: skip
    assert all(row["seconds"] > 0 and row["tflop"] > 0 for row in rows)
    assert "| online | 2 | eager |" in printed


@pytest.mark.slow
@pytest.mark.parametrize("section", ["demo", "loader"])
def test_sections_of_the_bench_write_their_figures(tmp_path, section):
    run(BENCHMARKS / "run.py", "--only", section, "--output", tmp_path / "bench.json")
    results = json.loads((tmp_path / "bench.json").read_text())
    assert not any("failed" in json.dumps(row) for row in results[section]["rows"])


@pytest.mark.parametrize("which", ["plain", "ours", "cached"])
def test_a_step_of_the_bench_is_measured(which):
    settings = {"which": which, "size": "mini", "batch_size": 2, "repeats": 1}
    result = json.loads(run(BENCHMARKS / "run.py", "--measure", "step", "--settings", json.dumps(settings)))
    assert result["seconds"] > 0
    assert result["gflop"] > 0

"""Timing, memory, and a process of its own for each measurement."""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def peak_mb() -> float:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def own_mb(field: str = "RssAnon") -> float:
    """Return the memory that this process holds for itself now, without pages of files that the system can drop."""
    line = next(line for line in _lines("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) / 1024


def clock() -> float:
    """Return seconds; with one thread those of the processor, so that other programs on the machine do not count."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measure(run: Callable[[], object], repeats: int, least_s: float = 0.0) -> dict:
    """Return the median time of a call after a first one, and the peak memory beyond what was held before.

    Args:
        run: What is measured.
        repeats: Calls after the first one, at least.
        least_s: More calls are made until they have taken so many seconds: short ones meet slow moments of the machine.
    """
    before, times = own_mb(), []
    files = own_mb("RssFile")
    while len(times) <= repeats or sum(times[1:]) < least_s:
        start = clock()
        run()
        times.append(clock() - start)
    return {"seconds": statistics.median(times[1:]), "peak_mb": peak_mb() - files - before}


def in_process(program: str | Path, function: str, settings: dict) -> dict:
    """Run ``function(**settings)`` of a program in a new process and return its result, or why there is none."""
    command = [sys.executable, str(program), "--measure", function, "--settings", json.dumps(settings)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict:
    """Return what the figures were measured on."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "bf16_products": any("avx512_bf16" in line for line in _lines("/proc/cpuinfo") if line.startswith("flags")),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from distilwhisper.cpu_memory import keep_freed_memory
kept = {keep} and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # the first blocks do not all lie where the next will
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(int(kept), faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries cannot be told")
def test_freed_memory_comes_back_without_page_faults():
    def run(keep: bool, **settings: str) -> list[int]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        return [*map(int, subprocess.check_output(command, env=clean | settings, text=True).split())]

    kept, faults = run(keep=True)
    if not kept:
        pytest.skip("not glibc")
    assert faults < run(keep=False)[1] / 10
    assert run(keep=True, MALLOC_ARENA_MAX="2")[0] == 0

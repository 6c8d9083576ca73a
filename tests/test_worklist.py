import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from distilwhisper.worklist import ClaimLostError, Worklist, starting_point

WORKER = """
import sys, time
from distilwhisper.worklist import Worklist
work = Worklist(sys.argv[1])
for claim in work.claims(int(sys.argv[2])):
    with claim:
        done = {record["step"] for record in work.records(claim.number) if "step" in record}
        for step in set(range(4)) - done:
            time.sleep(0.005)
            claim.append([{"step": step}])
        claim.finish()
"""


def start(directory, total, *before, program=WORKER):
    return subprocess.Popen([*before, sys.executable, "-c", program, str(directory), str(total)])


def steps_in(directory):
    return sum(path.read_bytes().count(b"step") for path in directory.glob("*.jsonl"))


def test_every_piece_is_claimed_once_and_left_done(tmp_path):
    work = Worklist(tmp_path)
    numbers = []
    for claim in work.claims(5, start=3):
        with claim:
            assert work.claim(claim.number) is None, "it is in hand"
            claim.append([{"piece": claim.number}])
            claim.finish()
        numbers.append(claim.number)
    assert numbers == [3, 4, 0, 1, 2]
    assert [list(work.records(number))[1:] for number in range(5)] == [[{"piece": number}] for number in range(5)]
    assert list(work.claims(5)) == []
    assert list(work.claims(0)) == []


def test_a_piece_that_was_given_up_is_free_at_once_and_keeps_what_was_done(tmp_path):
    work = Worklist(tmp_path)
    claim = work.claim(0)
    claim.append([{"step": 1}])
    with pytest.raises(KeyError), claim:
        raise KeyError
    second = work.claim(0)
    second.append([{"step": 2}])
    assert [record["step"] for record in work.records(0) if "step" in record] == [1, 2]
    second.finish()


def test_one_of_many_processes_gets_a_piece(tmp_path):
    program = (
        "import sys\nfrom distilwhisper.worklist import Worklist\nprint(Worklist(sys.argv[1]).claim(0) is not None)"
    )
    program += "\nsys.stdout.flush()\nsys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = Counter(worker.stdout.readline().strip() for worker in workers)
    for worker in workers:
        worker.communicate("")
    assert answers == {"True": 1, "False": 3}


def test_killed_processes_lose_and_double_nothing(tmp_path):
    chance, total = random.Random(0), 40
    for _ in range(6):
        workers = [start(tmp_path, total) for _ in range(2)]
        seen = steps_in(tmp_path)
        while steps_in(tmp_path) < seen + 15:
            time.sleep(0.005)
        time.sleep(0.02 * chance.random())
        for worker in workers:
            worker.kill()
            worker.wait()
    assert start(tmp_path, total).wait(timeout=60) == 0
    work = Worklist(tmp_path)
    for number in range(total):
        steps = Counter(record["step"] for record in work.records(number) if "step" in record)
        assert steps == {0: 1, 1: 1, 2: 1, 3: 1}
    assert any(len(work.attempts(number)) > 1 for number in range(total)), "nobody was killed at work"


def test_a_process_elsewhere_is_dead_after_its_lease(tmp_path):
    """A line of another host stands for it: nothing but the time of the file tells whether it lives."""
    work = Worklist(tmp_path, lease_s=30)
    attempt = tmp_path / "000000.0.jsonl"
    attempt.write_text('{"host": "elsewhere", "pid": 1, "started": 0, "claim": "x"}\n')
    assert work.claim(0) is None
    an_hour_ago = time.time() - 3_600
    os.utime(attempt, (an_hour_ago, an_hour_ago))
    assert work.claim(0).number == 0


def test_a_claim_is_kept_alive_beyond_its_lease(tmp_path):
    work = Worklist(tmp_path, lease_s=0.6)
    with work.claim(0):
        before = work.attempts(0)[0].stat().st_mtime
        time.sleep(0.8)
        assert work.attempts(0)[0].stat().st_mtime > before


def test_who_was_taken_for_dead_stops_and_what_it_wrote_is_read(tmp_path):
    work = Worklist(tmp_path)
    sleeper = work.claim(0)
    sleeper.append([{"step": 0}])
    (tmp_path / "000000.1.jsonl").write_text('{"host": "elsewhere"}\n')  # another's claim
    with pytest.raises(ClaimLostError, match="was taken over"):
        sleeper.append([{"step": 1}])
    sleeper.release()
    assert [record["step"] for record in work.records(0) if "step" in record] == [0]


def test_a_line_that_a_crash_cut_or_emptied_is_no_record(tmp_path):
    work = Worklist(tmp_path)
    with work.claim(0) as claim:
        claim.append([{"step": 0}, {"step": 1}])
    path = work.attempts(0)[0]
    path.write_bytes(path.read_bytes() + b"\0\0\0\0\n[1]\n" + b'{"step": 2')
    assert [record["step"] for record in work.records(0) if "step" in record] == [0, 1]


def test_a_disk_that_is_full_leaves_the_piece_free(tmp_path):
    """A real limit on the size of files, as a quota sets it."""
    program = """
import resource, signal, sys
from distilwhisper.worklist import Worklist
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
work = Worklist(sys.argv[1])
claim = work.claim(0)
try:
    with claim:
        for step in range(1_000):
            claim.append([{"step": step}])
except OSError as error:
    print(error.errno)
"""
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "27"
    work = Worklist(tmp_path)
    steps = [record["step"] for record in work.records(0) if "step" in record]
    assert steps == list(range(len(steps)))
    assert len(steps) > 10
    assert work.claim(0) is not None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"RANK": "1", "WORLD_SIZE": "4"}, 25),
        ({"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"}, 50),
    ],
)
def test_processes_that_start_together_begin_at_different_pieces(monkeypatch, variables, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert starting_point(100) == expected

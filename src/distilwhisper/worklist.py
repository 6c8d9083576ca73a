"""Numbered pieces of work in a directory, shared out among processes and machines that have nothing else in common.

Every attempt at piece 7 is a file, ``000007.0.jsonl``, ``000007.1.jsonl`` and so on: to create it is to claim the
piece, which exactly one process can (``O_EXCL``, which network file systems keep too), and what was done of it is
appended to it. Who works touches the file now and then. An attempt that was not touched for a lease, or whose process
is gone, is dead, and the next attempt may be created. Nothing is renamed or deleted, so that a process that only slept
does no harm when it wakes: what it appends to its own file is read as well, and counted once.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

logger = logging.getLogger(__name__)

LEASE_S = 180.0
"""Network file systems may show a file as it was a minute ago, so a lease should be longer than that."""
POLL_S = 1.0

_held: set[str] = set()  # the claims of this process


class ClaimLostError(Exception):
    """Another process took this one for dead and took its piece over."""


class Claim:
    """One piece of work that this process does; leave it as a context, or by `finish`.

    Attributes:
        number: Which piece.
    """

    def __init__(self, path: Path, number: int, generation: int, lease_s: float) -> None:
        self.number = number
        self._path, self._identity = path, uuid.uuid4().hex
        self._next, self._done = _attempt(path.parent, number, generation + 1), _done(path.parent, number)
        self._file = _create(path, {"claim": self._identity, **_this_process()})
        _held.add(self._identity)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, args=(lease_s / 6,), daemon=True)
        self._thread.start()

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records; when this returns, they outlive a crash of the program and of the machine.

        Raises:
            ClaimLostError: If another process has the piece now.
        """
        if self._next.exists():
            raise ClaimLostError(f"piece {self.number} was taken over: this process did not touch {self._path}")
        _write(self._file, records)

    def finish(self) -> None:
        """Mark the piece as done, by whomever."""
        self._done.touch()
        self.release()

    def release(self) -> None:
        """Give the piece up, if it is not done: anybody may have it at once."""
        if self._identity not in _held:
            return
        self._stopped.set()
        self._thread.join(timeout=1)
        self._file.close()
        _held.discard(self._identity)
        os.utime(self._path, (0, 0))

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep_alive(self, interval_s: float) -> None:
        while not self._stopped.wait(interval_s):
            try:
                os.utime(self._path)
            except OSError as error:  # the file server is away; it may come back before the lease ends
                logger.warning("%s cannot be touched: %s", self._path, error)


class Worklist:
    """The pieces of one kind of work.

    Args:
        directory: Where the attempts are; made if need be.
        lease_s: Seconds after which a process on another machine that gives no sign of life counts as dead.
    """

    def __init__(self, directory: str | Path, lease_s: float = LEASE_S) -> None:
        self.directory, self.lease_s = Path(directory), lease_s
        self.directory.mkdir(parents=True, exist_ok=True)

    def claims(self, total: int, start: int = 0) -> Iterator[Claim]:
        """Yield pieces to work on until all are done, by this process or by others.

        Use each as a context (``with claim:``), so that it is given up at once if the work fails.

        Args:
            total: Number of pieces.
            start: Piece to begin with; processes that begin at different ones seldom get in each other's way.
        """
        pending = [(start + offset) % total for offset in range(total)]
        while pending := [number for number in pending if not self.is_done(number)]:
            worked = False
            for number in pending:
                if (claim := self.claim(number)) is not None:
                    worked = True
                    yield claim
            if not worked:
                time.sleep(POLL_S)

    def claim(self, number: int) -> Claim | None:
        """Return a piece to work on; None if it is done, or a living process has it."""
        if not self.is_free(number):
            return None
        generation = len(self.attempts(number))
        try:
            return Claim(_attempt(self.directory, number, generation), number, generation, self.lease_s)
        except FileExistsError:  # another process was faster
            return None

    def is_free(self, number: int) -> bool:
        """Return whether a piece is neither done nor in a living process's hands."""
        if self.is_done(number):
            return False
        attempts = self.attempts(number)
        return not attempts or self._is_dead(attempts[-1])

    def is_done(self, number: int) -> bool:
        """Return whether a piece is done."""
        return _done(self.directory, number).exists()

    def num_done(self) -> int:
        """Return how many pieces are done."""
        return sum(1 for _ in self.directory.glob("*.done"))

    def attempts(self, number: int) -> list[Path]:
        """Return the files of all attempts at a piece, in order."""
        paths: list[Path] = []
        while (path := _attempt(self.directory, number, len(paths))).exists():
            paths.append(path)
        return paths

    def records(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield what all attempts at a piece have appended; what a crash left half-written is left out."""
        for path in self.attempts(number):
            yield from _whole_lines(path)

    def _is_dead(self, attempt: Path) -> bool:
        owner: dict[str, Any] = next(_whole_lines(attempt), {})
        if owner.get("host") == _this_process()["host"]:
            if owner["pid"] == os.getpid():
                return owner["claim"] not in _held
            if not _runs(owner["pid"], owner["started"]):
                return True
        clock = self.directory / "clock"  # both times are the file server's: clocks of machines differ
        clock.touch()
        return clock.stat().st_mtime - attempt.stat().st_mtime > self.lease_s


def starting_point(total: int) -> int:
    """Return the piece that this process should begin with, by its place among those started together.

    The place is ``RANK`` of ``WORLD_SIZE`` (``accelerate launch``), or the task of a SLURM job array.
    """
    place, places = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if "SLURM_ARRAY_TASK_COUNT" in os.environ and places == 1:
        place = int(os.environ["SLURM_ARRAY_TASK_ID"]) - int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
        places = int(os.environ["SLURM_ARRAY_TASK_COUNT"])
    return total * (place % places) // places


def _create(path: Path, header: dict[str, Any]) -> FileIO:
    """Create a file with its first line in it, or raise FileExistsError."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    file = draft.open("xb", buffering=0)
    try:
        _write(file, [header])
        with suppress(OSError):  # the answer of a network may be lost: what counts is the number of names
            os.link(draft, path)
        if os.fstat(file.fileno()).st_nlink == 2:
            return file
    finally:
        draft.unlink()
    file.close()
    file = path.open("xb", buffering=0)  # a file system without links: a crash before the first line costs a lease
    _write(file, [header])
    return file


def _write(file: FileIO, records: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record, default=str) + "\n" for record in records).encode()
    while lines:
        lines = lines[file.write(lines) :]  # on a disk that is nearly full it writes a part
    os.fsync(file.fileno())


def _attempt(directory: Path, number: int, generation: int) -> Path:
    return directory / f"{number:06d}.{generation}.jsonl"


def _done(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.done"


def _this_process() -> dict[str, Any]:
    """Return what tells this process from all others; processes see each other only under the same ``host``."""
    parts = [socket.gethostname()]
    boot, pids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and pids.exists():  # containers of one machine may share its name, but not its process ids
        parts += [boot.read_text().strip(), str(pids.readlink())]
    return {"host": " ".join(parts), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _runs(pid: int, started: float) -> bool:
    try:
        process: Any = psutil.Process(pid)
        return bool(abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # the machine crashed before the bytes were on the disk
                record = None
            if isinstance(record, dict):
                yield record

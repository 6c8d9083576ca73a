"""Append-only shards of records under 16-byte keys: safe against crashes, read by any number of processes.

A shard is two files: ``00000.data``, records one after the other, and ``00000.index``, a row of fixed size for each.
Rows are written when their records are on the disk, so what a killed writer leaves half-written has no row. Such a tail
is cut off when the shards are opened: it is never read, and as each writer begins a shard of its own, never written
over. Several may write at once.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from io import BufferedWriter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Records begin at multiples of so many bytes, so that arrays can be read in place."""

_ROW = np.dtype(
    [("key", "S16"), ("owner", "S8"), ("shard", "<u4"), ("rows", "<u4"), ("offset", "<u8"), ("size", "<u8")]
)


class Record(NamedTuple):
    """What is stored under a key.

    Attributes:
        key: 16 bytes.
        owner: 8 bytes that several keys may have in common.
        rows: Number of rows in the data, whatever a row is.
        data: The bytes.
    """

    key: bytes
    owner: bytes
    rows: int
    data: npt.NDArray[np.uint8]


class ShardWriter:
    """Appends records.

    Args:
        directory: Where the shards are; made if need be.
        shard_bytes: Size from which on a shard is closed and the next one begun.
    """

    def __init__(self, directory: str | Path, shard_bytes: int = 2 << 30) -> None:
        self.directory = Path(directory)
        self.shard_bytes = shard_bytes
        self._number = 0
        self._files: tuple[BufferedWriter, BufferedWriter] | None = None

    def append(self, records: Iterable[Record]) -> None:
        """Write records; when this returns, they outlive a crash of the program and of the machine."""
        data, index = self._files = self._files or self._begin()
        rows = []
        for record in records:
            data.write(b"\0" * (-data.tell() % ALIGNMENT))
            rows.append((record.key, record.owner, self._number, record.rows, data.tell(), record.data.nbytes))
            data.write(record.data.tobytes())
        _commit(data)
        index.write(np.array(rows, _ROW).tobytes())
        _commit(index)
        if data.tell() >= self.shard_bytes:
            self.close()

    def close(self) -> None:
        """Close the files; a later ``append`` begins a shard."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _begin(self) -> tuple[BufferedWriter, BufferedWriter]:
        self.directory.mkdir(parents=True, exist_ok=True)
        while True:
            path = self.directory / f"{self._number:05d}.data"
            try:
                return path.open("xb"), path.with_suffix(".index").open("xb")
            except FileExistsError:  # another writer's, of now or before
                self._number += 1


class ShardReader:
    """Finds and reads records; processes of a data loader may share it.

    Args:
        directory: Where the shards are.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        rows = [_whole_rows(path) for path in sorted(self.directory.glob("*.index"))]
        joined = np.concatenate([np.empty(0, _ROW), *rows])
        self._rows = joined[np.argsort(joined["key"], kind="stable")]
        self._keys = np.ascontiguousarray(self._rows["key"])  # searched at every read, where a column would be copied
        self._maps: dict[int, npt.NDArray[np.uint8]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}  # a process opens its own

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def has_owner(self, owner: bytes) -> bool:
        """Return whether a record has this owner; slow, for messages."""
        return bool((self._rows["owner"] == owner).any())

    def read(self, key: bytes) -> tuple[int, npt.NDArray[np.uint8]] | None:
        """Return number of rows and bytes of a record, None if there is none.

        The bytes lie in the file, mapped into memory; writing to them changes a private copy.
        """
        row = self._find(key)
        if row is None:
            return None
        number, start = int(row["shard"]), int(row["offset"])
        if number not in self._maps:
            self._maps[number] = np.memmap(self.directory / f"{number:05d}.data", np.uint8, mode="c")
        return int(row["rows"]), self._maps[number][start : start + int(row["size"])]

    def forget_pages(self) -> None:
        """Have the system drop what it keeps of the files in memory, so that the disk itself can be measured."""
        self._maps = {}
        for path in self.directory.glob("*.data") if hasattr(os, "posix_fadvise") else ():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _find(self, key: bytes) -> Any:
        position = int(np.searchsorted(self._keys, np.bytes_(key)))
        found = position < len(self._keys) and self._keys[position] == key.rstrip(b"\0")  # as NumPy strips its own
        return self._rows[position] if found else None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is there whole or not at all."""
    draft = draft_of(path)
    with draft.open("wb") as file:
        file.write(text.encode("utf-8"))
        _commit(file)
    draft.replace(path)


def draft_of(path: Path) -> Path:
    """Return a path beside another that no process on any machine uses, to write to before renaming."""
    return path.with_name(f"{path.name}.draft-{uuid.uuid4().hex}")


def _commit(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())


def _whole_rows(path: Path) -> npt.NDArray[Any]:
    written = path.read_bytes()
    rows = np.frombuffer(written[: len(written) // _ROW.itemsize * _ROW.itemsize], _ROW)
    whole: npt.NDArray[Any] = rows[rows["offset"] + rows["size"] <= path.with_suffix(".data").stat().st_size]
    return whole

"""A data set cut into shards of consecutive rows, whether its rows can be looked up or only streamed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, IterableDataset, Value
from datasets.arrow_writer import ArrowWriter

from distilwhisper.shards import draft_of, write_atomically
from distilwhisper.worklist import POLL_S, Claim, Worklist, starting_point

SAMPLED_ROWS = 64
FILE = {"bytes": Value("binary"), "path": Value("string")}
"""A recording, where ``Audio`` would be encoded by torchcodec, as ``datasets`` does in streams made of rows."""


class MapSource:
    """Shards of a data set whose rows can be looked up.

    Args:
        data: The data set, audio undecoded.
        shard_rows: Rows in a shard.

    Attributes:
        features: Its columns.
        num_rows: Its rows.
        num_shards: Its shards.
    """

    def __init__(self, data: Dataset, shard_rows: int) -> None:
        self._data, self._shard_rows = data, shard_rows
        self.features, self.num_rows = data.features, len(data)
        self.num_shards = -(-len(data) // shard_rows)

    def claims(self, worklist: Worklist) -> Iterator[tuple[Claim, Dataset]]:
        """Yield shards to work on, with their rows, until all are done."""
        for claim in worklist.claims(self.num_shards, starting_point(self.num_shards)):
            yield claim, self.rows(claim.number)

    def rows(self, number: int) -> Dataset:
        """Return the rows of a shard."""
        start = number * self._shard_rows
        return self._data.select(range(start, min(start + self._shard_rows, len(self._data))))

    def forget(self, number: int) -> None:
        """Do nothing: no copies are kept."""

    def fingerprint(self, audio_column: str) -> str:
        """Return a digest of the number of rows, the columns and a sample of the rows."""
        step = max(1, len(self._data) // SAMPLED_ROWS)
        rows = self._data.select(range(0, len(self._data), step))
        return _digest([len(self._data), self.features.to_dict()], rows, audio_column)


class StreamSource:
    """Shards of a stream: rows go by their position, and those of a claimed shard are kept in a file until it is done.

    Args:
        data: The stream, audio undecoded. It must yield the same rows at every pass.
        shard_rows: Rows in a shard.
        directory: Where the rows are kept.

    Attributes:
        features: Its columns.
        num_rows: Its rows; None before a pass came to the end.
        num_shards: Its shards; None likewise.
    """

    def __init__(self, data: IterableDataset, shard_rows: int, directory: Path) -> None:
        self._data, self._shard_rows, self._directory = data, shard_rows, directory
        self._count = directory.with_suffix(".json")
        features = data.features or _inferred_features(data)
        self.features = Features(
            {name: Audio(decode=False) if kind == FILE else kind for name, kind in features.items()}
        )

    @property
    def num_rows(self) -> int | None:
        """Return the number of rows."""
        return int(json.loads(self._count.read_text())["rows"]) if self._count.exists() else None

    @property
    def num_shards(self) -> int | None:
        """Return the number of shards."""
        rows = self.num_rows
        return None if rows is None else -(-rows // self._shard_rows)

    def claims(self, worklist: Worklist) -> Iterator[tuple[Claim, Dataset]]:
        """Yield shards to work on, with their rows, until all are done; others are passed over without decoding."""
        while True:
            total = self.num_shards
            pending = [number for number in range(total or 0) if not worklist.is_done(number)]
            if total is not None and not pending:
                return
            if total is None or any(map(worklist.is_free, pending)):
                yield from self._pass(worklist)
            else:
                time.sleep(POLL_S)

    def rows(self, number: int) -> Dataset:
        """Return the rows of a shard that is claimed or done."""
        return Dataset.from_file(str(self._file(number)))

    def forget(self, number: int) -> None:
        """Drop the rows of a shard."""
        self._file(number).unlink(missing_ok=True)

    def fingerprint(self, audio_column: str) -> str:
        """Return a digest of the columns and the first row."""
        return _digest([self.features.to_dict()], islice(self._data, 1), audio_column)

    def _pass(self, worklist: Worklist) -> Iterator[tuple[Claim, Dataset]]:
        stream, number, count = iter(self._data), 0, 0
        while first := list(islice(stream, 1)):
            rows = chain(first, islice(stream, self._shard_rows - 1))
            claim = worklist.claim(number)
            if claim is not None and not self._file(number).exists():
                try:
                    count += write_rows(self._file(number), self.features, rows, take_in=False)
                except OSError:
                    claim.release()
                    raise
            else:  # what an earlier attempt has labelled are the rows in its file
                count += sum(1 for _ in rows)
            if claim is not None:
                yield claim, self.rows(number)
            number += 1
        write_atomically(self._count, json.dumps({"rows": count}))

    def _file(self, number: int) -> Path:
        return self._directory / f"{number:06d}.arrow"


def write_rows(path: Path, features: Features, rows: Iterable[dict[str, Any]], *, take_in: bool = True) -> int:
    """Write an Arrow file, whole or not at all, in constant memory; return the number of rows.

    Args:
        path: The file.
        features: Its columns.
        rows: Its rows.
        take_in: Copy recordings that are files into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    with ArrowWriter(features=features, path=str(draft), writer_batch_size=16, embed_local_files=take_in) as writer:
        for row in rows:
            writer.write(row)
        count, _ = writer.finalize()
    draft.replace(path)
    return int(count)


def _inferred_features(data: IterableDataset) -> Features:
    return Dataset.from_list(list(islice(data, 16))).features


def _digest(known: list[Any], rows: Iterable[dict[str, Any]], audio_column: str) -> str:
    digest = hashlib.blake2b(json.dumps(known, sort_keys=True, default=str).encode(), digest_size=16)
    for row in rows:
        digest.update(json.dumps({**row, audio_column: _name(row.get(audio_column))}, default=_name).encode())
    return digest.hexdigest()


def _name(value: Any) -> str:
    """Return what tells a recording from others without reading its file: that may lie elsewhere on another machine."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        return hashlib.blake2b(value["bytes"], digest_size=16).hexdigest()
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return Path(value["path"]).name
    return hashlib.blake2b(str(value).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

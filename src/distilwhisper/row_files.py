"""Rows written to parquet files as they are made, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, IterableDataset, Value

ROWS_PER_FILE = 500
"""Rows of a file: 4 hours of windows of 30 s. A killed run makes at most so many again."""

ROWS_PER_GROUP = 25
"""Rows held in memory."""

_ENCODED = {"bytes": Value("binary"), "path": Value("string")}
_METADATA = b"distilwhisper"

Step = tuple[dict[str, Any] | None, Any]
"""A row, and where in the source to go on after it (as JSON); a row of None ends them all."""


def write_rows(
    make_steps: Callable[[Any, Any], Iterator[Step]],
    directory: str | Path,
    features: Features,
    settings: Any,
    report: Callable[[], Any],
) -> tuple[Dataset, Any]:
    """Write rows to ``00000.parquet`` and so on, each there whole or not at all.

    Args:
        make_steps: Called with the place to go on from and the report up to there, makes the rest of the rows. Both are
            None for a new run.
        directory: Where the files go. What a killed run left there is not made again.
        features: Columns of the rows.
        settings: What the rows depend on, as JSON; files of other settings are refused.
        report: Returns the report on the rows made so far, as JSON.

    Returns:
        The rows, and the report on all of them.

    Raises:
        ValueError: If the directory holds rows of other settings.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for draft in directory.glob("*.draft"):
        draft.unlink()
    files = sorted(directory.glob("*.parquet"))
    done = _read_metadata(files[-1]) if files else {"position": None, "report": None, "complete": False}
    if files and done.get("settings") != settings:
        raise ValueError(f"{directory} holds rows made with {done.get('settings')}, not {settings}; choose another")
    if not done["complete"]:
        steps = make_steps(done["position"], done["report"])
    while not done["complete"]:
        files.append(directory / f"{len(files):05d}.parquet")
        position, complete = _write_file(files[-1], steps, features, settings, report)
        done = {"position": position, "report": report(), "complete": complete}
    filled = [str(file) for file in files if pq.read_metadata(file).num_rows]
    if not filled:
        return Dataset.from_dict({name: [] for name in features}, features), done["report"]
    return Dataset.from_parquet(filled, features=features), done["report"]


def stream_rows(make_steps: Callable[[Any, Any], Iterator[Step]], features: Features | None) -> IterableDataset:
    """Return the rows as a stream that makes them anew at each pass; arguments as for `write_rows`.

    Audio is a plain pair of bytes and path there: streams encode what they declare as audio, which needs torchcodec.
    """
    if features is not None:
        plain = {name: _ENCODED if isinstance(kind, Audio) else kind for name, kind in features.items()}
        features = Features(plain)
    return IterableDataset.from_generator(_rows, features, gen_kwargs={"make_steps": make_steps})


def _rows(make_steps: Callable[[Any, Any], Iterator[Step]]) -> Iterator[dict[str, Any]]:
    return (row for row, _ in make_steps(None, None) if row is not None)


def _write_file(
    path: Path, steps: Iterator[Step], features: Features, settings: Any, report: Callable[[], Any]
) -> tuple[Any, bool]:
    """Write one file; return where to go on and whether the rows have come to their end."""
    draft = path.with_suffix(".draft")
    written, position, complete = 0, None, False
    with pq.ParquetWriter(draft, features.arrow_schema) as writer:
        while written < ROWS_PER_FILE and not complete:
            rows: list[dict[str, Any]] = []
            while len(rows) < ROWS_PER_GROUP and not complete:
                row, position = next(steps)
                complete = row is None
                rows += [] if row is None else [row]
            writer.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema))
            written += len(rows)
        done = {"settings": settings, "position": position, "report": report(), "complete": complete}
        writer.add_key_value_metadata({_METADATA: json.dumps(done)})
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
    return position, complete


def _read_metadata(path: Path) -> dict[str, Any]:
    done: dict[str, Any] = json.loads((pq.read_metadata(path).metadata or {}).get(_METADATA, "{}"))
    return done

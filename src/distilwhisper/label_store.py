"""A data set's labels in a directory while they are made, by any number of processes that may die at any time.

Three kinds of work follow each other, each done piece by piece through a `Worklist`:
``labels``, a line of JSON for every row of a shard; ``files``, rows and labels together as Arrow files; and ``result``,
one piece, the reports and the state that makes the directory a data set.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Audio, Dataset, Features, IterableDataset

from distilwhisper.audio import AudioError
from distilwhisper.labels import Label, LabelReport, join_labels, label_features, previous_texts
from distilwhisper.row_sources import MapSource, StreamSource, write_rows
from distilwhisper.shards import draft_of, write_atomically
from distilwhisper.worklist import Claim, ClaimLostError, Worklist

MAX_FILES = 512
"""A data set keeps all its files open, and processes may have 1,024 as a rule."""

LabelRows = Callable[[Dataset, set[int]], Iterator[list[tuple[int, Label | AudioError]]]]
"""Takes rows and those of them that are done; yields the rest as pairs of row and result, a list for each batch."""


class LabelStoreError(ValueError):
    """A directory that holds something else than what is to be labelled now."""


class Columns(NamedTuple):
    """The names of a data set's columns; ``speaker`` has all that say whose text comes before a row's."""

    audio: str
    text: str
    id: str | None
    speaker: tuple[str, ...] = ()
    language: str | None = None

    def check(self, data: Dataset | IterableDataset) -> None:
        """Refuse a data set that is known to lack one of the columns that were named."""
        for name in (self.id, self.language, *self.speaker):
            if name is not None and data.column_names is not None and name not in data.column_names:
                raise ValueError(f"the dataset has no column {name!r}; it has {data.column_names}")

    def identify(self, data: Dataset, row: int) -> Any:
        """Return the name of a row, or its number if there are no names."""
        name = self.id or "id"
        return data[name][row] if name in data.column_names else row

    def speakers(self, data: Dataset) -> list[list[Any] | None]:
        """Return who speaks in each row, and where: None if a column does not say."""
        rows = zip(*(data[name][:] for name in self.speaker), strict=True)
        return [None if None in row else list(row) for row in rows]


class LabelStore:
    """The labels of one data set.

    Args:
        directory: Where they are, and where the labelled data set will be.
        data: A ``Dataset`` or ``IterableDataset``, audio undecoded, without the columns of an earlier labelling.
        columns: The names of its columns.
        settings: Whatever decides the labels, by name; a directory with others is refused.
        text_tokens: Takes the timestamps out of tokens, for prompts.
        shard_rows: Rows that a process claims at a time.
        lease_s: Seconds after which a process on another machine that gives no sign of life counts as dead.

    Attributes:
        source: The rows.

    Raises:
        LabelStoreError: If the directory holds another data set, or labels that were made with other settings.
    """

    def __init__(
        self,
        directory: Path,
        data: Dataset | IterableDataset,
        columns: Columns,
        settings: dict[str, Any],
        *,
        text_tokens: Callable[[list[int]], list[int]],
        shard_rows: int,
        lease_s: float,
    ) -> None:
        self.directory, self.columns, self._text_tokens = directory, columns, text_tokens
        self._work, self._shard_rows = directory / "work", shard_rows
        if isinstance(data, Dataset):
            self.source: MapSource | StreamSource = MapSource(data, shard_rows)
        else:
            self.source = StreamSource(data, shard_rows, self._work / "rows")
        self._check({**settings, "data": self.source.fingerprint(columns.audio), "rows in a shard": shard_rows})
        self._labels, self._files, self._result, self._states = (
            Worklist(self._work / name, lease_s) for name in ("labels", "files", "result", "states")
        )

    def label(self, label_rows: LabelRows, progress: Callable[[int, float], None]) -> None:
        """Label what nobody has labelled yet; return when all is labelled.

        Args:
            label_rows: Labels some rows.
            progress: Called with the number of rows that are done, by whomever, and the seconds of audio that were
                just labelled here.
        """
        for claim, rows in self.source.claims(self._labels):
            offset = claim.number * self._shard_rows
            with claim, suppress(ClaimLostError):  # then another process has the shard
                done = {record["index"] - offset for record in self._labels.records(claim.number) if "index" in record}
                so_far = self._labels.num_done() * self._shard_rows + len(done)
                progress(so_far, 0.0)
                for results, elapsed_s in _timed(label_rows(rows, done)):
                    fresh = [self._record(rows, row, offset, result) for row, result in results if row not in done]
                    claim.append([*fresh, {"elapsed_s": elapsed_s}])
                    so_far += len(fresh)
                    progress(so_far, sum(record.get("duration_s", 0.0) for record in fresh))
                claim.finish()

    def write(self) -> None:
        """Write rows and labels as Arrow files, and the result; return when all is there."""
        shards = self.source.num_shards or 0
        files = min(MAX_FILES, max(1, shards))
        for claim in self._files.claims(files):
            shards_of = range(claim.number * shards // files, (claim.number + 1) * shards // files)
            with claim:
                self._write_file(claim, files, shards_of)
                claim.finish()
            for number in shards_of:
                self.source.forget(number)
        for claim in self._result.claims(1):
            with claim:
                self._write_result(files, shards)
                claim.finish()
                for draft in self.directory.glob("data-*.draft-*"):  # what killed processes have left
                    draft.unlink(missing_ok=True)

    def each_file(self) -> Iterator[Dataset]:
        """Yield the finished files that nobody has worked on yet; who asks for the next is done with the last."""
        files = json.loads((self.directory / "state.json").read_text())["_data_files"]
        for claim in self._states.claims(len(files)):
            with claim:
                yield Dataset.from_file(str(self.directory / files[claim.number]["filename"]))
                claim.finish()

    def _check(self, settings: dict[str, Any]) -> None:
        file, settings = self._work / "settings.json", json.loads(json.dumps(settings, default=str))
        if not file.exists():
            if any((self.directory / name).exists() for name in ("state.json", "dataset_dict.json")):
                raise LabelStoreError(f"{self.directory} holds another data set already; give a directory of its own")
            self._work.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(settings, indent=2))
        before = json.loads(file.read_text())
        names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if names:
            changes = "; ".join(f"{name}: {before.get(name)} then, {settings.get(name)} now" for name in names)
            raise LabelStoreError(
                f"the labels in {self.directory} were begun with other settings ({changes}): "
                "go on with those, or give a directory of its own"
            )

    def _record(self, rows: Dataset, row: int, offset: int, result: Label | AudioError) -> dict[str, Any]:
        """Return the line of JSON for a row: its label, or why it has none."""
        columns, names = self.columns, rows.column_names
        name = self.columns.identify(rows, row) if columns.id or "id" in names else offset + row
        record: dict[str, Any] = {"index": offset + row, "id": name}
        if columns.speaker:
            record["speaker"] = columns.speakers(rows.select([row]))[0]
        if isinstance(result, AudioError):
            return record | {"reason": result.reason, "message": str(result)}
        return record | {"reference": columns.text in names and bool(rows[columns.text][row])} | result

    def _shard(self, number: int) -> list[dict[str, Any]]:
        """Return the records of a shard's rows, in order."""
        found = {record["index"]: record for record in reversed([*self._labels.records(number)]) if "index" in record}
        return [found[index] for index in sorted(found)]

    def _write_file(self, claim: Claim, files: int, shards: range) -> None:
        features = self.source.features
        every = Features({**features, **label_features(features, prompts=bool(self.columns.speaker))})
        rows = (row for number in shards for row in self._joined(number, claim))
        write_rows(self.directory / _file_name(claim.number, files), every, rows)

    def _joined(self, number: int, claim: Claim) -> Iterator[dict[str, Any]]:
        records, rows = self._shard(number), self.source.rows(number)
        labels = [record if "whisper_tokens" in record else None for record in records]
        prompts = None
        if self.columns.speaker:
            before = self._shard(number - 1)[-1:] if number else []
            said = [record if "whisper_tokens" in record else None for record in before]
            speakers = [record["speaker"] for record in (*before, *records)]
            prompts = previous_texts([*said, *labels], speakers, self._text_tokens)[len(before) :]
        for place, record in enumerate(records):
            if labels[place] is not None and (path := self._vanished(rows[place])):
                message = f"the file {path!r} vanished after it was labelled"
                claim.append([{"index": record["index"], "reason": "missing", "message": message}])
                labels[place] = None
        yield from join_labels(rows, labels, prompts)

    def _vanished(self, row: dict[str, Any]) -> str | None:
        """Return the path of a recording that is to be taken in and is no longer there."""
        audio = row[self.columns.audio]
        if not isinstance(self.source.features[self.columns.audio], Audio) or audio.get("bytes") is not None:
            return None
        path = str(audio["path"])
        return None if "://" in path or os.path.isfile(path) else path  # noqa: PTH113 - Path.is_file may raise

    def _write_result(self, files: int, shards: int) -> None:
        report, problems = LabelReport(), draft_of(self.directory / "set_aside.jsonl")
        vanished = {r["index"]: r for number in range(files) for r in self._files.records(number) if "index" in r}
        with problems.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for number in range(shards):
                report.elapsed_s += sum(record.get("elapsed_s", 0.0) for record in self._labels.records(number))
                for record in self._shard(number):
                    record |= vanished.get(record["index"], {})
                    if "reason" in record:
                        report.set_aside[record["reason"]] += 1
                        line = {name: record[name] for name in ("index", "id", "reason", "message")}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    else:
                        report.add(record, record["reference"])
        problems.replace(self.directory / "set_aside.jsonl")
        write_atomically(self.directory / "report.json", report.to_json() + "\n")
        self._write_state([_file_name(number, files) for number in range(files)])

    def _write_state(self, names: list[str]) -> None:
        Dataset.from_file(str(self.directory / names[0])).info.write_to_directory(str(self.directory))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": uuid.uuid4().hex[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        write_atomically(self.directory / "state.json", json.dumps(state, indent=2))  # last: now it is a data set


def _timed(results: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    started = time.perf_counter()
    for result in results:
        now = time.perf_counter()
        yield result, now - started
        started = time.perf_counter()


def _file_name(number: int, files: int) -> str:
    return f"data-{number:05d}-of-{files:05d}.arrow"

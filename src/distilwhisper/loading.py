"""Speech data from wherever it lies: saved data sets, parquet, manifests, folders of recordings, tar files, the Hub."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets import (
    Audio,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from pyarrow.parquet import ParquetFile

from distilwhisper.audio import undecoded

AUDIO_SUFFIXES = frozenset(".wav .flac .mp3 .ogg .opus .m4a .aac .aiff .aif .webm".split())
_TABLE_SUFFIXES = frozenset(".parquet .jsonl .json .csv".split())
_AUDIO_KEYS = ("audio", "audio_filepath", "file_name", "path", "file")


def load_speech(
    source: str | Path,
    split: str | None = None,
    *,
    config: str | None = None,
    audio_column: str = "audio",
    **kwargs: Any,
) -> Any:
    """Return a data set of recordings, audio left undecoded.

    Args:
        source: A directory written by ``save_to_disk``; a ``.parquet`` file or a directory of them; a ``.jsonl`` or
            ``.csv`` manifest (the recording under ``audio_column``, ``audio``, ``audio_filepath``, ``file_name``,
            ``path`` or ``file``: a URL, or a path relative to the manifest); a directory of recordings, with
            transcripts in its ``metadata.jsonl`` or ``metadata.csv`` if there are any, or a directory of such
            directories, one a split; a ``.tar`` file or a directory of them, as WebDataset makes them (files of one
            name are a row: the name becomes ``id``, a ``.txt`` ``text``, a ``.json`` the columns in it); or a Hub id.
        split: Which split of a data set that has several, such as ``train`` or ``train+validation``; None for all, as a
            ``DatasetDict`` where there are several.
        config: Configuration of a Hub data set, such as a language.
        audio_column: Column of the recordings.
        **kwargs: Further arguments of ``datasets.load_dataset`` for Hub ids and tar files, such as ``revision`` or
            ``streaming=True``, which parquet takes, too (else tar and parquet are copied into the cache first).

    Raises:
        FileNotFoundError: If a path does not exist and cannot be a Hub id, or holds nothing that can be read.
        ValueError: If the split does not exist, there are no rows, or a manifest is broken or names no recording.
    """
    path = Path(source).expanduser().absolute()  # what is saved is read again from elsewhere
    if path.exists() and (files := _tar_files(path)):
        data = _choose(_load_tar(files, audio_column, kwargs), split, source)
    elif path.exists():
        data = _choose(_load_local(path, config, audio_column, kwargs.get("streaming", False)), split, source)
    elif _is_no_hub_id(str(source)):
        raise FileNotFoundError(f"{source} does not exist; give an existing path or a Hub id such as 'user/name'")
    else:
        data = load_dataset(str(source), config, split=split, **kwargs)
    return undecoded(data, audio_column)


def load_named(entries: Sequence[str]) -> dict[str, Any]:
    """Return data sets by name.

    Args:
        entries: ``name=source`` or ``name=source:split`` each; what stands for a source is said at `load_speech`.

    Raises:
        ValueError: If an entry has no name, or two have the same.
    """
    sets: dict[str, Any] = {}
    for entry in entries:
        name, separator, source = entry.partition("=")
        if not separator or not name or name in sets:
            raise ValueError(f"sets are given as name=source or name=source:split, each name once, not {entry!r}")
        sets[name] = load_source(source)
    return sets


def load_source(entry: str) -> Any:
    """Return the data set that ``source`` or ``source:split`` names; see `load_speech`."""
    source, _, split = entry.partition(":")
    return load_speech(source, split or None)


def _is_no_hub_id(source: str) -> bool:
    known_suffix = Path(source).suffix.lower() in _TABLE_SUFFIXES | AUDIO_SUFFIXES
    return known_suffix or source.startswith((".", "~", "/")) or source.endswith("/") or source.count("/") > 1


def _stream_parquet(files: list[str]) -> IterableDataset:
    # Not the stream of `datasets`: behind it PyArrow reads up to 1 GiB ahead of a slow reader.
    found = Features.from_arrow_schema(ParquetFile(files[0]).schema_arrow)
    file = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({name: file if isinstance(kind, Audio) else kind for name, kind in found.items()})
    return IterableDataset.from_generator(_parquet_rows, features=features, gen_kwargs={"files": files})


def _parquet_rows(files: list[str]) -> Iterator[dict[str, Any]]:
    for file in files:
        with ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:
            for batch in table.iter_batches(batch_size=16):
                yield from batch.to_pylist()


def _load_local(path: Path, config: str | None, audio_column: str, streaming: bool) -> Any:
    if path.suffix == ".parquet" and path.is_file():
        return _stream_parquet([str(path)]) if streaming else Dataset.from_parquet(str(path))
    if path.is_file():
        return _load_manifest(path, audio_column)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _load_saved(path)
    if manifest := _metadata(path):
        return _load_manifest(manifest, audio_column)
    if manifests := {folder.name: file for folder in sorted(path.iterdir()) if (file := _metadata(folder))}:
        return DatasetDict({name: _load_manifest(file, audio_column) for name, file in manifests.items()})
    if any(path.rglob("*.parquet")):
        if not streaming:
            return load_dataset(str(path), config)  # it tells the splits by the names of the files
        splits = load_dataset_builder(str(path), config).config.data_files
        return IterableDatasetDict({name: _stream_parquet(list(files)) for name, files in splits.items()})
    return _load_recordings(path, audio_column)


def _tar_files(path: Path) -> list[str]:
    if path.is_file():
        return [str(path)] if path.suffix == ".tar" else []
    return [str(file) for file in sorted(path.glob("*.tar"))]


def _load_tar(files: list[str], audio_column: str, options: dict[str, Any]) -> Dataset | IterableDataset:
    # Not the builder of `datasets`: it encodes recordings with torchcodec, which is not everywhere.
    first = next(_tar_rows(files, audio_column), None)
    if first is None:
        raise ValueError(f"{files[0]} holds no recordings ({' '.join(sorted(AUDIO_SUFFIXES))})")
    known = Dataset.from_list([first]).features
    features = Features({name: Value("string") if kind == Value("null") else kind for name, kind in known.items()})
    streaming = options.pop("streaming", False)
    kind = IterableDataset if streaming else Dataset
    rows = kind.from_generator(
        _tar_rows, features=features, gen_kwargs={"files": files, "audio": audio_column}, **options
    )
    return rows if streaming else rows.cast_column(audio_column, Audio(decode=False))


def _tar_rows(files: list[str], audio: str) -> Iterator[dict[str, Any]]:
    """Yield a row for the members of a name: recording, text, and what is in its JSON."""
    for file in files:
        with tarfile.open(file, "r|*") as tar:
            members = (member for member in tar if member.isfile())
            for name, group in groupby(members, lambda member: _split_name(member.name)[0]):
                row: dict[str, Any] = {"id": name}
                for member in group:
                    suffix, content = _split_name(member.name)[1], tar.extractfile(member)
                    data = content.read() if content else b""
                    if suffix in AUDIO_SUFFIXES:
                        row[audio] = {"bytes": data, "path": f"{Path(name).name}{suffix}"}
                    elif suffix == ".txt":
                        row["text"] = data.decode("utf-8").strip()
                    elif suffix == ".json":
                        row = {**json.loads(data), **row}
                if audio in row:
                    yield row


def _split_name(name: str) -> tuple[str, str]:
    """Return a member's name up to the first dot after its folder, and the rest: WebDataset's rule."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _load_saved(path: Path) -> Dataset | DatasetDict:
    try:
        data = load_from_disk(str(path))
    except IndexError:  # saved without rows and, as it may happen, without a file
        data = []
    if not len(data):
        raise ValueError(f"{path} holds no rows; if it was filtered, the filter kept nothing")
    return data


def _metadata(folder: Path) -> Path | None:
    return next((file for name in ("jsonl", "csv") if (file := folder / f"metadata.{name}").exists()), None)


def _load_recordings(path: Path, audio_column: str) -> Dataset:
    recordings = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    if not recordings:
        raise FileNotFoundError(
            f"{path} holds no saved data set, parquet files, metadata.jsonl, metadata.csv or recordings "
            f"({' '.join(sorted(AUDIO_SUFFIXES))})"
        )
    rows = [{"id": file.relative_to(path).as_posix()} for file in recordings]
    return _with_audio(rows, [str(file) for file in recordings], audio_column)


def _load_manifest(path: Path, audio_column: str) -> Dataset:
    readers = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows}
    if path.suffix not in readers:
        raise FileNotFoundError(f"{path} is not a data set; give a directory, or a .parquet, .jsonl or .csv file")
    rows, recordings = [], []
    for line, row in readers[path.suffix](path):
        key = next((key for key in (audio_column, *_AUDIO_KEYS) if row.get(key)), None)
        if key is None or not isinstance(row[key], str):
            keys = ", ".join(dict.fromkeys([audio_column, *_AUDIO_KEYS]))
            raise ValueError(f"{path}, line {line}: no path of a recording under any of {keys}")
        recordings.append(row[key] if "://" in row[key] else str(path.parent / row[key]))
        rows.append({name: value for name, value in row.items() if name not in (key, audio_column)})
    if not rows:
        raise ValueError(f"{path} is empty")
    return _with_audio(rows, recordings, audio_column)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object, but {type(row).__name__}")
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row:
                raise ValueError(f"{path}, line {reader.line_num}: more values than columns; quote texts with commas")
            yield reader.line_num, row


def _with_audio(rows: list[dict[str, Any]], recordings: list[str], audio_column: str) -> Dataset:
    audio = [{"bytes": None, "path": path} for path in recordings]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return Dataset.from_dict({audio_column: audio, **columns}).cast_column(audio_column, Audio(decode=False))


def _choose(data: Any, split: str | None, source: str | Path) -> Any:
    if not isinstance(data, (DatasetDict, IterableDatasetDict)):
        if split not in (None, data.split):
            raise ValueError(f"{source} has no splits; leave {split!r} out")
        return data
    if split is None:
        return next(iter(data.values())) if len(data) == 1 else data
    names = [name.strip() for name in split.split("+")]
    if missing := [name for name in names if name not in data]:
        raise ValueError(f"{source} has no split {missing[0]!r}; it has {', '.join(data)}")
    return data[names[0]] if len(names) == 1 else concatenate_datasets([data[name] for name in names])

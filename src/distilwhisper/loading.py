"""Speech data from wherever it lies: saved data sets, parquet, manifests, folders of recordings, the Hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk

from distilwhisper.audio import undecoded

AUDIO_SUFFIXES = frozenset(".wav .flac .mp3 .ogg .opus .m4a .aac .aiff .aif .webm".split())
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
        source: A directory written by ``save_to_disk``; a ``.parquet`` file or a directory of them; a ``.jsonl``
            manifest (one object a line, the recording under ``audio``, ``audio_filepath``, ``file_name``, ``path`` or
            ``file``, relative to the manifest); a directory of recordings, with transcripts in its ``metadata.csv`` or
            ``metadata.jsonl`` if there are any; or a Hub id.
        split: Which split of a data set that has several, such as ``train`` or ``train+validation``; None for all, as a
            ``DatasetDict`` where there are several.
        config: Configuration of a Hub data set, such as a language.
        audio_column: Column of the recordings.
        **kwargs: Further arguments of ``datasets.load_dataset`` for Hub ids, such as ``streaming=True`` or
        ``revision``.

    Raises:
        FileNotFoundError: If a path does not exist and cannot be a Hub id, or a directory holds nothing that can be
            read.
        ValueError: If the split does not exist, or a manifest names no recording.
    """
    path = Path(source)
    if not path.exists():
        if path.suffix or path.is_absolute() or str(source).startswith(".") or str(source).count("/") > 1:
            raise FileNotFoundError(f"{source} does not exist; give an existing path or a Hub id such as 'user/name'")
        data = load_dataset(str(source), config, split=split, **kwargs)
    else:
        data = _choose(_load_local(path), split, source)
    if isinstance(data, dict):
        return type(data)({name: undecoded(part, audio_column) for name, part in data.items()})
    return undecoded(data, audio_column)


def _load_local(path: Path) -> Dataset | DatasetDict:
    if path.is_file():
        return _load_file(path)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return load_from_disk(str(path))
    if files := sorted(path.glob("*.parquet")):
        return Dataset.from_parquet([str(file) for file in files])
    return _load_folder(path)


def _load_file(path: Path) -> Dataset:
    if path.suffix == ".parquet":
        return Dataset.from_parquet(str(path))
    if path.suffix in (".jsonl", ".json"):
        return _from_manifest(_json_lines(path), path)
    raise FileNotFoundError(f"{path} is not a data set; give a directory, a .parquet file or a .jsonl manifest")


def _load_folder(path: Path) -> Dataset:
    if (metadata := path / "metadata.jsonl").exists():
        return _from_manifest(_json_lines(metadata), metadata)
    if (metadata := path / "metadata.csv").exists():
        with metadata.open(newline="", encoding="utf-8") as file:
            return _from_manifest(csv.DictReader(file), metadata)
    recordings = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    if not recordings:
        raise FileNotFoundError(
            f"{path} holds no saved data set, parquet files, metadata.jsonl, metadata.csv or recordings "
            f"({' '.join(sorted(AUDIO_SUFFIXES))})"
        )
    return _with_audio([{"id": str(file.relative_to(path))} for file in recordings], recordings)


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error


def _from_manifest(rows: Iterable[dict[str, Any]], manifest: Path) -> Dataset:
    kept, recordings = [], []
    for number, row in enumerate(rows, start=1):
        key = next((key for key in _AUDIO_KEYS if row.get(key)), None)
        if key is None:
            raise ValueError(f"{manifest}, entry {number}: no recording under any of {', '.join(_AUDIO_KEYS)}")
        recordings.append(manifest.parent / row[key])
        kept.append({name: value for name, value in row.items() if name != key})
    if not kept:
        raise ValueError(f"{manifest} is empty")
    return _with_audio(kept, recordings)


def _with_audio(rows: list[dict[str, Any]], recordings: list[Path]) -> Dataset:
    audio = [{"bytes": None, "path": str(path)} for path in recordings]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return Dataset.from_dict({"audio": audio, **columns}).cast_column("audio", Audio(decode=False))


def _choose(data: Dataset | DatasetDict, split: str | None, source: str | Path) -> Dataset | DatasetDict:
    if not isinstance(data, DatasetDict):
        return data
    if split is None:
        return next(iter(data.values())) if len(data) == 1 else data
    names = [name.strip() for name in split.split("+")]
    if missing := [name for name in names if name not in data]:
        raise ValueError(f"{source} has no split {missing[0]!r}; it has {', '.join(data)}")
    return data[names[0]] if len(names) == 1 else concatenate_datasets([data[name] for name in names])

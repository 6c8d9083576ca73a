"""One name for all that comes of one labelling: each stage leaves it in its directory, where the next one finds it."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distilwhisper.shards import draft_of, write_atomically

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"


class StageRun(NamedTuple):
    """A stage under the name of its run.

    Attributes:
        run_id: The name that all stages share; a tracker's group.
        stage: ``label``, ``filter``, ``train`` or ``evaluate``.
        id: The name of this stage's own curves, which a stage that was stopped goes on with.
    """

    run_id: str
    stage: str
    id: str


def begin_stage(output_dir: str | Path, stage: str, sources: Iterable[Any] = (), *, goes_on: bool = True) -> StageRun:
    """Return the names of a stage: those that it had in this directory, else new ones in the run of its sources.

    Args:
        output_dir: Directory of the stage's results, made if need be; the names are kept there, in `RUN_FILE`.
        stage: What is begun.
        sources: What the stage reads: directories or data sets. The first that belongs to a run decides.
        goes_on: Whether this is the stage that was begun here before; if not, it gets curves of its own.
    """
    folder = Path(output_dir)
    kept = _read(folder)
    if kept is None:
        run_id = next(filter(None, map(run_id_of, sources)), None) or _new_id()
        kept = _write_first(folder, {"run_id": run_id, "stages": {}})
    run_id, stages = kept["run_id"], kept["stages"]
    if stage not in stages or not goes_on:
        stages[stage] = new_stage(stage, run_id).id
        write_atomically(folder / RUN_FILE, json.dumps(kept, indent=2) + "\n")
    return StageRun(run_id, stage, stages[stage])


def new_stage(stage: str, run_id: str | None = None) -> StageRun:
    """Return names for a stage with curves of its own: several trainings can stand on the same labels."""
    run_id = run_id or _new_id()
    return StageRun(run_id, stage, f"{run_id}-{stage}-{_new_id()[:4]}")


def run_id_of(source: Any) -> str | None:
    """Return the run that a directory belongs to, or the saved data set whose rows these are; None for neither."""
    folders = [Path(source)] if isinstance(source, (str, Path)) else _folders(source)
    return next((kept["run_id"] for kept in map(_read, folders) if kept), None)


def keep_run_id(output_dir: str | Path, source: Any = None) -> str:
    """Note in a directory which run its contents belong to, and return it: that of the source, or a new one.

    What ``save_to_disk`` of Datasets wrote does not know it.
    """
    folder, found = Path(output_dir), None if source is None else run_id_of(source)
    kept = _read(folder) or _write_first(folder, {"run_id": found or _new_id(), "stages": {}})
    return str(kept["run_id"])


def _new_id() -> str:
    return uuid.uuid4().hex[:8]


def _folders(dataset: Any) -> list[Path]:
    """Return where the files of a data set lie; a split lies in a folder of its own."""
    parts = dataset.values() if isinstance(dataset, dict) else [dataset]
    files = [Path(file["filename"]) for part in parts for file in getattr(part, "cache_files", None) or ()]
    return list(dict.fromkeys(folder for file in files for folder in (file.parent, file.parent.parent)))


def _read(folder: Path) -> dict[str, Any] | None:
    file = folder / RUN_FILE
    kept: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return kept


def _write_first(folder: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """Write the names, unless another process was first; return those that count."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RUN_FILE
    draft = draft_of(file)
    draft.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    try:
        os.link(draft, file)  # fails where there is one already, at once for all processes
    except FileExistsError:
        logger.debug("another process has named the run in %s", folder)
    except OSError:  # a file system without links
        if not file.exists():
            draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return _read(folder) or kept

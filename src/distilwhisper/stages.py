"""Long work in stages: each runs once, is found again by its settings, and can be killed at any moment."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Stages:
    """Runs each stage once: its result lies in a directory, marked with the settings that made it.

    Args:
        directory: Where the results lie, one directory a stage.
        announce: Called with the name of each stage that is made now; default: the log.

    Attributes:
        seconds: How long each stage took when it was made.
    """

    def __init__(self, directory: Path, announce: Callable[[str], object] = logger.info) -> None:
        self.directory = directory
        self.announce = announce
        self.seconds: dict[str, float] = {}
        self._settings: dict[str, Any] = {}

    def run(
        self,
        name: str,
        make: Callable[[Path], object],
        *,
        after: Iterable[str] = (),
        resumes: bool = False,
        **settings: object,
    ) -> Path:
        """Return the directory of a stage, made now unless the same settings have made it before.

        Args:
            name: Name of the stage, and of its directory.
            make: Called with the directory to fill.
            after: Stages whose results this one reads: if one of them is made with other settings, so is this one.
            resumes: Whether ``make`` goes on with a directory that was left unfinished; else it is emptied first.
            **settings: What the result depends on, as JSON can hold it.

        Raises:
            KeyError: If a stage of ``after`` has not run.
        """
        given = {**settings, "after": {earlier: self._settings[earlier] for earlier in after}}
        wanted = self._settings[name] = json.loads(json.dumps(given, default=str))
        folder, marker, begun = (self.directory / f"{name}{suffix}" for suffix in ("", ".json", ".begun"))
        done = json.loads(marker.read_text()) if marker.exists() else None
        if done is None or done["settings"] != wanted:
            marker.unlink(missing_ok=True)
            same = resumes and begun.exists() and begun.read_text() == json.dumps(wanted)
            if not same:
                shutil.rmtree(folder, ignore_errors=True)
            begun.parent.mkdir(parents=True, exist_ok=True)
            begun.write_text(json.dumps(wanted))
            self.announce(name)
            start = time.perf_counter()
            make(folder)
            done = {"settings": wanted, "seconds": time.perf_counter() - start}
            begun.write_text(json.dumps(done))
            begun.rename(marker)  # at once: a marker that is half written would be worse than none
        self.seconds[name] = done["seconds"]
        return folder

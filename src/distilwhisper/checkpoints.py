"""Which checkpoint a training that was killed can go on from."""

from __future__ import annotations

import json
import re
from pathlib import Path

STATE_FILE = "trainer_state.json"
"""Written last: a checkpoint that lacks it, or half of it, was cut short."""


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest complete checkpoint of a training, or None if there is none to go on from.

    A process can be killed while it saves. Transformers' own ``get_last_checkpoint`` takes the directory with the
    highest number, complete or not.

    Args:
        output_dir: The ``output_dir`` of the training; it need not exist.
    """
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    steps = sorted(((int(match[1]), path) for match, path in numbered if match), reverse=True)
    return next((str(path) for step, path in steps if _is_complete(path, step)), None)


def _is_complete(checkpoint: Path, step: int) -> bool:
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(state.get("global_step") == step)

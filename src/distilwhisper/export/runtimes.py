"""A process of its own for a runtime, which may crash, fight with torch over threads, or keep its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from distilwhisper.export.formats import FORMATS, ExportError

Arrays = Sequence[npt.NDArray[np.float32]]

_ARRAYS, _REQUEST, _REPLY, _LOGITS = "inputs.npz", "request.json", "reply.json", "logits.npz"


def run_format(
    format: str,
    export_dir: Path,
    inputs: Arrays,
    prompt: list[int],
    max_new_tokens: int,
    tokens: list[list[int]] | None = None,
) -> tuple[list[list[int]], list[npt.NDArray[np.float32]] | None]:
    """Run an export in its runtime.

    Args:
        format: One of the formats.
        export_dir: The export.
        inputs: For each recording what the format takes: features ``[mels, frames]``, encoder states
            ``[positions, d_model]`` or samples ``[samples]``.
        prompt: Ids that open each transcript.
        max_new_tokens: Length limit.
        tokens: The model's own tokens, where the logits behind them are wanted.

    Returns:
        The tokens of each recording, and the logits behind the prompt and each of ``tokens``: None if the runtime does
        not tell them.

    Raises:
        ExportError: If the runtime crashes or raises an error.
    """
    if not FORMATS[format].isolated:
        return _run(FORMATS[format].load(), export_dir, inputs, prompt, max_new_tokens, tokens)
    with TemporaryDirectory() as folder:
        request = [format, str(export_dir.resolve()), prompt, max_new_tokens, tokens]
        Path(folder, _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        np.savez(Path(folder, _ARRAYS), *inputs)
        # As this process finds its modules, so shall that one.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-m", __name__, folder]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if result.returncode:
            raise ExportError(f"{format} did not take the export: {_reason(result)}")
        reply = json.loads(Path(folder, _REPLY).read_text(encoding="utf-8"))
        logits = Path(folder, _LOGITS)
        return reply, list(_load(logits)) if logits.exists() else None


def _run(
    module: ModuleType,
    export_dir: Path,
    inputs: Arrays,
    prompt: list[int],
    max_new_tokens: int,
    tokens: list[list[int]] | None,
) -> tuple[list[list[int]], Any]:
    batch = list(inputs) if getattr(module, "TAKES", "features") == "audio" else np.stack(inputs)
    reply = module.run(export_dir, batch, prompt, max_new_tokens)
    wanted = tokens is not None and hasattr(module, "logits")
    return reply, module.logits(export_dir, batch, prompt, tokens) if wanted else None


def _load(path: Path) -> list[npt.NDArray[np.float32]]:
    with np.load(path) as arrays:
        return [arrays[f"arr_{number}"] for number in range(len(arrays.files))]


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "no message"
    return f"killed by {signal.Signals(-result.returncode).name} ({last})" if result.returncode < 0 else last


def main(folder: Path) -> None:
    """Do what the request in the folder says, and leave the reply there."""
    format, export_dir, prompt, max_new_tokens, tokens = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    module, inputs = FORMATS[format].load(), _load(folder / _ARRAYS)
    reply, logits = _run(module, Path(export_dir), inputs, prompt, max_new_tokens, tokens)
    if logits is not None:
        np.savez(folder / _LOGITS, *logits)
    (folder / _REPLY).write_text(json.dumps(reply), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

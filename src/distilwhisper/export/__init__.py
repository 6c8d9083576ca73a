"""Students for other runtimes: one module a format, one check for all of them.

A format is a module with two functions, and a line in `FORMATS`::

    def write(model, processor, output_dir: Path, *, dtype: str = ...) -> None
    def run(export_dir: Path, features, prompt: list[int], max_new_tokens: int) -> list[list[int]]

``run`` returns the greedy new tokens of the real runtime. What it takes in place of log-mel features
``[batch, mels, frames]`` its constant ``TAKES`` says: ``audio`` is a list of samples, ``states`` are the encoder's
hidden states. A runtime that tells its logits has a third function, ``logits(export_dir, features, prompt, tokens)``:
for each recording ``[steps, vocabulary]``, from behind the prompt on, -inf where the runtime suppressed a token.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distilwhisper.export.exporting import export_model
    from distilwhisper.export.formats import FORMATS, ExportError
    from distilwhisper.export.parity import ParityReport

__all__ = ["FORMATS", "ExportError", "ParityReport", "export_model"]

_MODULES = {"FORMATS": "formats", "ExportError": "formats", "ParityReport": "parity", "export_model": "exporting"}


def __getattr__(name: str) -> Any:
    # As in the package above: the process that runs an export starts without torch where the runtime needs none.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

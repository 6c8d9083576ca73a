"""Which formats there are, and what each needs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import Any


class ExportError(RuntimeError):
    """An export that could not be written, or that does not do what the model does."""


def check_dtype(dtype: str, allowed: Collection[str]) -> None:
    """Refuse a number type that a format does not have.

    Args:
        dtype: The number type or quantisation.
        allowed: Those of the format.

    Raises:
        ValueError: If it is not among them.
    """
    if dtype not in allowed:
        raise ValueError(f"dtype must be one of {', '.join(allowed)}, not {dtype!r}")


@dataclass(frozen=True)
class Format:
    """A format of `export_model`.

    Attributes:
        module: The module of ``distilwhisper.export`` that writes and runs it.
        writer: The package that writing takes, by the name it is imported under; None for none.
        runtime: The package that the check runs the export in; None for Transformers.
        extra: The extra of ``distilwhisper`` that installs both.
        isolated: Whether the check runs in a process of its own, as a runtime that is not Transformers may crash.
    """

    module: str
    writer: str | None = None
    runtime: str | None = None
    extra: str | None = None
    isolated: bool = True

    def load(self) -> ModuleType:
        """Import the module."""
        return import_module(f"distilwhisper.export.{self.module}")

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return all options of the format: those given, and the defaults of the others.

        Raises:
            TypeError: For an option that the format does not have.
        """
        parameters = signature(self.load().write).parameters.values()
        defaults = {option.name: option.default for option in parameters if option.kind is option.KEYWORD_ONLY}
        if unknown := sorted(given.keys() - defaults.keys()):
            raise TypeError(f"the format has no option {unknown[0]!r}; it has {', '.join(defaults) or 'none'}")
        return {**defaults, **given}

    def require(self, *, check: bool) -> None:
        """Raise the ImportError that says what to install, if something is missing."""
        hint = f"pip install 'distilwhisper[{self.extra}]'"
        if self.writer and not find_spec(self.writer):
            raise ImportError(f"this format is written with the package {self.writer}, which is missing: {hint}")
        if check and self.runtime and not find_spec(self.runtime):
            raise ImportError(
                f"this format is checked with the package {self.runtime}, which is missing: {hint}, "
                "or export without the check (check=False, --no_check)"
            )


FORMATS = {
    "transformers": Format("transformers", isolated=False),
    "decoder-only": Format("decoder_only", isolated=False),
    "openai-whisper": Format("openai_whisper", runtime="whisper", extra="openai-whisper"),
    "ctranslate2": Format("ctranslate2", writer="ctranslate2", runtime="ctranslate2", extra="ctranslate2"),
    "ggml": Format("ggml", runtime="pywhispercpp", extra="ggml"),
    "onnx": Format("onnx", writer="onnx", runtime="onnxruntime", extra="onnx"),
}
"""The formats by name."""

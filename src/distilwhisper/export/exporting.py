"""A saved model, written for another runtime and checked in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import WhisperProcessor

from distilwhisper.export.formats import FORMATS, ExportError
from distilwhisper.export.parity import check_parity
from distilwhisper.models import load_whisper
from distilwhisper.student import mend_configs

PARITY_FILE = "parity.json"

_LOGGER = logging.getLogger(__name__)


def export_model(
    model_dir: str | Path,
    format: str,
    output_dir: str | Path,
    *,
    check: bool = True,
    audio: Sequence[Any] | None = None,
    language: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Write a saved model for another runtime, and check that it gives the same tokens there.

    The export appears under ``output_dir`` when it is complete and checked, never before. The report of the check
    lies in it as ``parity.json``, which no runtime reads.

    Args:
        model_dir: Directory or Hub id of a Whisper with its processor.
        format: One of `FORMATS`.
        output_dir: Where to; made with its parents.
        check: Run the export in its runtime and compare the tokens with those of Transformers.
        audio: Recordings for the check, anything `load_audio` reads, of which the first
            window is heard; by default a few sentences said by eSpeak NG or, if that is missing, tones.
        language: Language of the recordings; default English.
        overwrite: Replace what is in ``output_dir``.
        **options: Options of the format, such as ``dtype``.

    Returns:
        ``output_dir``.

    Raises:
        ExportError: If the export differs from the model or its runtime does not take it; nothing is left of it.
        FileExistsError: If ``output_dir`` holds something and ``overwrite`` is not set.
        ImportError: If a package is missing that writes or checks the format.
        TypeError: If the format does not have one of the options.
        ValueError: If there is no such format, or an option has a wrong value.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; there are {', '.join(FORMATS)}")
    chosen, output_dir = FORMATS[format], Path(output_dir)
    chosen.require(check=check)
    options = chosen.options(options)
    _refuse_overwriting(output_dir, Path(model_dir), overwrite)
    model = load_whisper(model_dir).eval()
    processor = WhisperProcessor.from_pretrained(model_dir)
    mend_configs(model)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there last; on any error it goes, with the directory around it.
    with TemporaryDirectory(prefix=".export-", dir=output_dir.parent) as folder:
        draft = Path(folder, output_dir.name)
        draft.mkdir()
        chosen.load().write(model, processor, draft, **options)
        if check:
            dtype = options.get("dtype", "float32")
            report = check_parity(model, processor, draft, format, dtype=dtype, audio=audio, language=language)
            _LOGGER.log(logging.INFO if report.passed else logging.ERROR, "%s", report)
            if not report.passed:
                raise ExportError(f"the export was not kept: {report}")
            (draft / PARITY_FILE).write_text(report.to_json() + "\n", encoding="utf-8")
        if output_dir.exists():
            output_dir.replace(Path(folder, "replaced"))
        draft.replace(output_dir)
    return output_dir


def _refuse_overwriting(output_dir: Path, model_dir: Path, overwrite: bool) -> None:
    target, source = output_dir.resolve(), model_dir.resolve()
    if target == source or target in source.parents:
        raise FileExistsError(f"{output_dir} holds the model itself; export it to another directory")
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file; an export is a directory")
    if not overwrite and output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} is not empty; choose another directory, or overwrite=True (--overwrite)")

"""The directory of CTranslate2 and faster-whisper, made by CTranslate2's own converter."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distilwhisper.export.formats import check_dtype

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

DTYPES = ("float32", "float16", "bfloat16", "int16", "int8", "int8_float32", "int8_float16", "int8_bfloat16")

_SUPPRESSED = np.finfo(np.float32).min


def write(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, output_dir: Path, *, dtype: str = "float16"
) -> None:
    """Write ``model.bin`` and what faster-whisper reads beside it.

    Args:
        model: The model.
        processor: Its processor.
        output_dir: Where to.
        dtype: A number type or quantisation of CTranslate2.

    Raises:
        ValueError: For another number type.
    """
    from ctranslate2.converters import TransformersConverter

    from distilwhisper.export.transformers import write as write_transformers

    check_dtype(dtype, DTYPES)
    # Without preprocessor_config.json faster-whisper takes every model for one of 80 mel bins and a window of 30 s.
    copied = ["tokenizer.json", "preprocessor_config.json"]
    with TemporaryDirectory(dir=output_dir.parent) as folder:
        write_transformers(model, processor, Path(folder))
        TransformersConverter(folder, copy_files=copied).convert(str(output_dir), quantization=dtype, force=True)


def run(export_dir: Path, features: npt.NDArray[np.float32], prompt: list[int], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy new tokens for log-mel features ``[batch, mels, frames]``."""
    results = _generate(export_dir, features, prompt, max_new_tokens)
    return [result.sequences_ids[0] for result in results]


def logits(
    export_dir: Path, features: npt.NDArray[np.float32], prompt: list[int], tokens: list[list[int]]
) -> list[npt.NDArray[np.float32]]:
    """Return the logits of the steps at which CTranslate2 itself chose the same tokens before."""
    results = _generate(export_dir, features, prompt, max(map(len, tokens)) + 1, return_logits_vocab=True)
    rows = []
    for result, ids in zip(results, tokens, strict=True):
        equal = [a == b for a, b in zip(result.sequences_ids[0], ids, strict=False)]
        steps = result.logits[0][: (equal.index(False) if False in equal else len(equal)) + 1]
        known = np.stack([np.asarray(step).reshape(-1) for step in steps])
        rows.append(np.where(known == _SUPPRESSED, -np.inf, known))
    return rows


def _generate(
    export_dir: Path, features: npt.NDArray[np.float32], prompt: list[int], max_new_tokens: int, **options: Any
) -> Any:
    import ctranslate2

    model = ctranslate2.models.Whisper(str(export_dir), device="cpu")
    return model.generate(
        ctranslate2.StorageView.from_array(np.ascontiguousarray(features)),
        [prompt] * len(features),
        beam_size=1,
        max_length=2 * max_new_tokens,  # it counts in the same way as openai-whisper: half of it is for the prompt
        **options,
    )

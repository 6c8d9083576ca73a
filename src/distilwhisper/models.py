"""Loading Whisper checkpoints, and nothing that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, WhisperForConditionalGeneration


def load_whisper(
    source: str | Path, dtype: torch.dtype | str | None = None, **options: Any
) -> WhisperForConditionalGeneration:
    """Load a model.

    Transformers makes a Whisper of any checkpoint, with random weights where it finds none and a warning.

    Args:
        source: A local path or a Hub id.
        dtype: Number type; default that of the checkpoint.
        **options: ``revision``, ``subfolder``, ``token``, ``attn_implementation`` and so on.

    Raises:
        ValueError: If it is another kind of model.
        OSError: If there is no such checkpoint.
    """
    names = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
    hub_options = {name: options[name] for name in names if name in options}
    config, _ = PreTrainedConfig.get_config_dict(source, **hub_options)
    if not config:
        raise FileNotFoundError(f"{source} holds no model: there is no config.json")
    if config.get("model_type") != "whisper":
        raise ValueError(f"{source} is a model of type {config.get('model_type')!r}, not a Whisper")
    return WhisperForConditionalGeneration.from_pretrained(source, dtype=dtype or "auto", **options)

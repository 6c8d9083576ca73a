"""Loading Whisper checkpoints, and nothing that is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

HUB_OPTIONS = frozenset({"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"})
"""The options of loading that a configuration and a processor take, too."""


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
    load_config(source, **{name: value for name, value in options.items() if name in HUB_OPTIONS})
    return WhisperForConditionalGeneration.from_pretrained(source, dtype=dtype or "auto", **options)


def load_config(source: str | Path, **options: Any) -> WhisperConfig:
    """Return the config of a checkpoint, of which nothing else is read.

    Args:
        source: A local path or a Hub id.
        **options: ``revision``, ``subfolder``, ``token`` and so on.

    Raises:
        FileNotFoundError: If a path does not exist and cannot be a Hub id, or holds no config.
        ValueError: If it is another kind of model.
        OSError: If there is no such checkpoint.
    """
    if _is_no_hub_id(str(source)) and not Path(source).expanduser().exists():
        raise FileNotFoundError(f"{source} does not exist; give an existing path or a Hub id like openai/whisper-tiny")
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, **options)
    except OSError as error:
        if "couldn't connect" not in str(error) or Path(source).exists():
            raise
        raise OSError(
            f"there is no directory {source} here, and the Hub, where it may be the id of a model, was not reached: "
            "check the path, or the connection"
        ) from error
    if not config:
        raise FileNotFoundError(f"{source} holds no model: there is no config.json")
    if config.get("model_type") != "whisper":
        raise ValueError(f"{source} is a model of type {config.get('model_type')!r}, not a Whisper")
    return WhisperConfig.from_dict(config)


def default_device() -> torch.device:
    """Return the accelerator of this process, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    # Processes that were started together on one machine take a device each.
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


def load_processor(model: WhisperForConditionalGeneration, options: dict[str, Any]) -> WhisperProcessor:
    """Return the processor from where a model came from, loaded with the model's options.

    Raises:
        ValueError: If the model does not say where that is.
    """
    if not model.name_or_path:
        raise ValueError("the model does not say where it came from: pass its processor")
    hub_options = {name: value for name, value in options.items() if name in HUB_OPTIONS}
    return WhisperProcessor.from_pretrained(model.name_or_path, **hub_options)


def _is_no_hub_id(source: str) -> bool:
    return source.startswith((".", "~", "/")) or source.endswith("/") or source.count("/") > 1

"""A student: the teacher with fewer layers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.models import load_whisper


class _DefaultCount(int):
    """A default number that can be told from the same number given by the caller."""


def create_student(
    teacher: WhisperForConditionalGeneration | str | Path,
    decoder_layers: int = _DefaultCount(2),
    encoder_layers: int | None = None,
    *,
    decoder_layer_indices: Sequence[int] | None = None,
    encoder_layer_indices: Sequence[int] | None = None,
    freeze_encoder: bool = False,
    dtype: torch.dtype | None = None,
    **load_options: Any,
) -> WhisperForConditionalGeneration:
    """Copy a teacher with some of its layers (paper, section 3.1, "shrink").

    The kept layers are maximally spaced (`spaced_layer_indices`) or given one by one. Everything else
    is copied whole; nothing is shared with the teacher, which stays as it is. ``config.distillation`` says
    which layers were kept. Alignment heads follow their layers, or go with them.

    Args:
        teacher: A model, or the path or Hub id of one.
        decoder_layers: Number of decoder layers; taken from ``decoder_layer_indices`` where given alone.
        encoder_layers: Number of encoder layers; default all.
        decoder_layer_indices: Teacher layers to keep, 0-based and increasing; negatives count from the end.
        encoder_layer_indices: The same for the encoder.
        freeze_encoder: Switch the gradients of the encoder off.
        dtype: Number type of the student; default the teacher's (of a checkpoint, the one it was saved in).
        **load_options: ``revision``, ``subfolder``, ``token``, ``cache_dir`` and whatever else
            ``from_pretrained`` takes, where ``teacher`` is a path or Hub id.

    Returns:
        The student on the teacher's device, in evaluation mode like every loaded model.

    Raises:
        TypeError: If the teacher is no Whisper model with a language-modelling head.
        ValueError: If a count or an index is not one of the teacher's, is repeated, or contradicts another.
    """
    model = _load_teacher(teacher, dtype, load_options)
    config = copy.deepcopy(model.config)
    kept = {
        "encoder": _kept_layers("encoder", config.encoder_layers, encoder_layers, encoder_layer_indices),
        "decoder": _kept_layers("decoder", config.decoder_layers, decoder_layers, decoder_layer_indices),
    }
    config.distillation = {
        "teacher": str(teacher) if isinstance(teacher, (str, Path)) else model.name_or_path or None,
        "teacher_encoder_layers": config.encoder_layers,
        "teacher_decoder_layers": config.decoder_layers,
        "encoder_layer_indices": kept["encoder"],
        "decoder_layer_indices": kept["decoder"],
    }
    config.encoder_layers, config.decoder_layers = len(kept["encoder"]), len(kept["decoder"])
    student = _copy_weights(model, config, kept)
    student.generation_config = _generation_config(model.generation_config, kept["decoder"])
    mend_configs(student)
    if freeze_encoder:
        student.model.encoder.requires_grad_(False)
    return (student if dtype is None else student.to(dtype)).eval()


def spaced_layer_indices(total: int, keep: int) -> list[int]:
    """Return the layers to keep: evenly spaced, rounded down, and always the last one.

    Args:
        total: Number of layers of the teacher.
        keep: Number of layers of the student.

    Returns:
        0-based indices: of 6 layers, two are 0 and 5, three are 0, 2 and 5, one is 5.

    Raises:
        ValueError: If ``keep`` is no whole number from 1 to ``total``.
    """
    if not _is_whole(keep) or not 1 <= keep <= total:
        raise ValueError(f"the number of layers to keep must be a whole number from 1 to {total}, not {keep!r}")
    return [*(step * (total - 1) // (keep - 1) for step in range(keep - 1)), total - 1]


def save_processor(processor: WhisperProcessor, output_dir: str | Path) -> Path:
    """Save a processor with the files that Transformers 5 leaves out and others need.

    These are ``preprocessor_config.json`` (faster-whisper, Transformers.js, Transformers 4), ``normalizer.json``
    (``tokenizer.normalize``), and ``vocab.json``, ``merges.txt`` and ``added_tokens.json`` (the converters of
    whisper.cpp, Transformers 4). Transformers 4 cannot read a list of ``extra_special_tokens``: they are saved under
    their older name, which both read.

    Args:
        processor: The processor.
        output_dir: Where to; made if need be.

    Returns:
        ``output_dir``.
    """
    output_dir = Path(output_dir)
    processor.save_pretrained(output_dir)
    processor.feature_extractor.save_pretrained(output_dir)
    tokenizer = processor.tokenizer
    tokenizer.save_vocabulary(str(output_dir))
    vocabulary = json.loads((output_dir / "vocab.json").read_text(encoding="utf-8"))
    added = {token: index for token, index in tokenizer.get_added_vocab().items() if token not in vocabulary}
    settings = json.loads((output_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", [])
    _write_json(output_dir / "added_tokens.json", added)
    _write_json(output_dir / "tokenizer_config.json", settings)
    return output_dir


def mend_configs(model: WhisperForConditionalGeneration) -> None:
    """Make a model's configs such that other runtimes load it and do not crash.

    Alignment heads that the model does not have are dropped (CTranslate2 ends in a segmentation fault, Transformers in
    an IndexError), as is ``forced_decoder_ids``, which Transformers 5 refuses. The suppressed tokens of the generation
    config also go into the config, where Candle reads them and takes no null.

    Args:
        model: The model; its two configs are changed.
    """
    config, generation = model.config, model.generation_config
    generation.forced_decoder_ids = None
    config.suppress_tokens = list(generation.suppress_tokens or [])
    config.begin_suppress_tokens = list(generation.begin_suppress_tokens or [])
    heads = getattr(generation, "alignment_heads", None) or []
    layers, width = config.decoder_layers, config.decoder_attention_heads
    own = [[layer, head] for layer, head in heads if layer < layers and head < width]
    if own:
        generation.alignment_heads = own
    elif hasattr(generation, "alignment_heads"):
        del generation.alignment_heads


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _load_teacher(
    teacher: WhisperForConditionalGeneration | str | Path, dtype: torch.dtype | None, options: dict[str, Any]
) -> WhisperForConditionalGeneration:
    if isinstance(teacher, (str, Path)):
        return load_whisper(teacher, dtype, **options)
    if not isinstance(teacher, WhisperForConditionalGeneration):
        raise TypeError(
            f"the teacher must be a WhisperForConditionalGeneration, a path or a Hub id, not {type(teacher).__name__}"
        )
    if options:
        raise TypeError(f"{sorted(options)} tell how to load a teacher, but the teacher is loaded already")
    return teacher


def _kept_layers(part: str, total: int, count: int | None, indices: Sequence[int] | None) -> list[int]:
    if indices is None:
        return spaced_layer_indices(total, total if count is None else count)
    name, given = f"{part}_layer_indices", list(indices) if isinstance(indices, Iterable) else []
    allowed = f"the teacher's {part} has layers 0 to {total - 1}, or -{total} to -1 from the end"
    if not given or not all(_is_whole(index) and -total <= index < total for index in given):
        raise ValueError(f"{name} is {indices!r}, but {allowed}; list at least one")
    kept = [int(index) % total for index in given]
    # Each layer was trained to refine what the layers below it wrote: any other order is a slip.
    if any(low >= high for low, high in pairwise(kept)):
        raise ValueError(f"{name} is {indices!r}, but layers must increase and not be repeated; {allowed}")
    if count is not None and count != len(kept) and not isinstance(count, _DefaultCount):
        raise ValueError(f"{part}_layers={count} contradicts {name}={indices!r}; pass one of the two")
    return kept


def _is_whole(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _copy_weights(
    teacher: WhisperForConditionalGeneration, config: WhisperConfig, kept: dict[str, list[int]]
) -> WhisperForConditionalGeneration:
    with torch.device("meta"):  # no time and memory for weights that are replaced at once
        student = WhisperForConditionalGeneration(config)
    weights = teacher.state_dict()
    copies = {name: weights[_teacher_name(name, kept)].clone() for name in student.state_dict()}
    student.load_state_dict(copies, assign=True)
    student.tie_weights()
    return student


def _teacher_name(name: str, kept: dict[str, list[int]]) -> str:
    """Name the teacher's weight that becomes ``model.decoder.layers.1.fc1.bias`` and the like."""
    _, part, *rest = name.split(".")
    if rest[:1] != ["layers"]:
        return name
    return ".".join(["model", part, "layers", str(kept[part][int(rest[1])]), *rest[2:]])


def _generation_config(teachers: GenerationConfig, kept: list[int]) -> GenerationConfig:
    config = copy.deepcopy(teachers)
    if heads := getattr(config, "alignment_heads", None):
        config.alignment_heads = [[kept.index(layer), head] for layer, head in heads if layer in kept]
    return config

"""ONNX files in the layout of Transformers.js, which onnxruntime reads as well: encoder and decoder with its past."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distilwhisper.export.formats import ExportError, check_dtype
from distilwhisper.export.greedy import GreedyRules, forced_logits, greedy

if TYPE_CHECKING:
    import onnx
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

Array = npt.NDArray[Any]

SUFFIXES = {"float32": "", "q8": "_quantized"}
"""Number types to the endings of file names that Transformers.js expects."""

MAX_FILE_BYTES = 1_900_000_000
"""Larger graphs keep their weights in a second file: an ONNX file ends at 2 GB."""

_INSTALL = "pip install 'distilwhisper[onnx]'"


def write(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, output_dir: Path, *, dtype: str = "float32"
) -> None:
    """Write ``onnx/encoder_model*.onnx`` and ``onnx/decoder_model_merged*.onnx``, and configs and processor beside.

    Args:
        model: The model.
        processor: Its processor.
        output_dir: Where to.
        dtype: ``float32``, or ``q8``: matrices and embeddings in 8 bits, activations quantised as they come,
            convolutions in float32.

    Raises:
        ExportError: If the model's activation or embedding is not Whisper's.
        ImportError: If onnx is missing, or onnxruntime, which quantises.
        ValueError: For another number type.
    """
    from distilwhisper.student import save_processor

    check_dtype(dtype, SUFFIXES)
    if model.config.activation_function != "gelu" or model.config.scale_embedding:
        raise ExportError("the ONNX graphs compute gelu and do not scale embeddings; this model was trained otherwise")
    try:
        from distilwhisper.export.graphs import decoder_graph, encoder_graph
    except ImportError as error:
        raise ImportError(f"this format is written with the package onnx, which is missing: {_INSTALL}") from error
    (output_dir / "onnx").mkdir(parents=True, exist_ok=True)
    external = {}
    decoder = partial(decoder_graph, shared_head=dtype != "q8")
    for stem, build in (("encoder_model", encoder_graph), ("decoder_model_merged", decoder)):
        path = output_dir / "onnx" / f"{stem}{SUFFIXES[dtype]}.onnx"
        (_quantize if dtype == "q8" else _save)(build(model), path)
        if path.with_suffix(".onnx_data").exists():
            external[path.name] = 1  # the number of files of weights
    config = copy.deepcopy(model.config)
    if external:
        setattr(config, "transformers.js_config", {"use_external_data_format": external})
    config.save_pretrained(output_dir)
    model.generation_config.save_pretrained(output_dir)
    save_processor(processor, output_dir)


def _save(graph: onnx.ModelProto, path: Path) -> None:
    import onnx

    if graph.ByteSize() > MAX_FILE_BYTES:
        onnx.save_model(graph, path, save_as_external_data=True, location=path.with_suffix(".onnx_data").name)
    else:
        onnx.save_model(graph, path)


def _quantize(graph: onnx.ModelProto, path: Path) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImportError(f"q8 is made with the package onnxruntime, which is missing: {_INSTALL}") from error
    with TemporaryDirectory(dir=path.parent) as folder:
        exact = Path(folder, path.name)
        # Its advice is to simplify the graph before; there is nothing to simplify.
        graph.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
        _save(graph, exact)
        # Unsigned: products of unsigned and signed bytes overflow on processors without VNNI. Convolutions stay exact:
        # their integer form is missing from the browser's runtime.
        quantize_dynamic(exact, path, op_types_to_quantize=["MatMul", "Gather"], weight_type=QuantType.QUInt8)


def run(export_dir: Path, features: Array, prompt: list[int], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy new tokens of onnxruntime on log-mel features ``[batch, mels, frames]``."""
    runtime, rules, found = _Runtime(export_dir), GreedyRules.load(export_dir), []
    for recording in features:
        runtime.encode(recording)
        found.append(greedy(runtime.decode, prompt, max_new_tokens, rules))
    return found


def logits(export_dir: Path, features: Array, prompt: list[int], tokens: list[list[int]]) -> list[Array]:
    """Return the logits behind the prompt and each token, ``[tokens + 1, vocabulary]`` for each recording."""
    runtime, found = _Runtime(export_dir), []
    for recording, ids in zip(features, tokens, strict=True):
        runtime.encode(recording)
        found.append(forced_logits(runtime.decode, prompt, ids))
    return found


class _Runtime:
    """onnxruntime with both graphs, and the past of one recording."""

    def __init__(self, export_dir: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"ONNX files are run with onnxruntime, which is missing: {_INSTALL}") from error
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to others
        folder = export_dir / "onnx"
        suffix = SUFFIXES["float32"] if (folder / "encoder_model.onnx").exists() else SUFFIXES["q8"]
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(folder / f"{stem}{suffix}.onnx", options, ["CPUExecutionProvider"])
            for stem in ("encoder_model", "decoder_model_merged")
        )
        caches = self.decoder.get_inputs()[2:]
        self.nothing = {cache.name: np.zeros((1, cache.shape[1], 0, cache.shape[3]), np.float32) for cache in caches}
        self.names = [output.name.replace("present", "past_key_values") for output in self.decoder.get_outputs()]

    def encode(self, features: Array) -> None:
        """Compute the encoder's output of features ``[mels, frames]``, and forget the past."""
        (self.states,) = self.encoder.run(None, {"input_features": features[None].astype(np.float32)})
        self.past = self.nothing

    def decode(self, tokens: list[int], _past: int) -> Array:
        """Return the logits ``[vocabulary]`` behind tokens that follow those of the calls before."""
        inputs = {"input_ids": np.array([tokens], np.int64), "encoder_hidden_states": self.states, **self.past}
        self.past = dict(zip(self.names, self.decoder.run(None, inputs), strict=True))
        last: Array = self.past.pop("logits")[0, -1].copy()
        return last

"""The file of whisper.cpp, written from the model: half precision, or quantised with the package ``gguf``.

Numbers are little-endian; dimensions stand in ggml's order, the fastest first. The parts follow one another as
whisper.cpp reads them: sizes, mel filters, byte-level tokens, tensors.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from datasets.utils import tqdm

from distilwhisper.export.formats import ExportError, check_dtype
from distilwhisper.export.greedy import GreedyRules, forced_logits, greedy

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    from distilwhisper.tokens import WhisperTokens

Array = npt.NDArray[Any]

_LOGGER = logging.getLogger(__name__)

DTYPES = {"float16": 1, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2}
"""Number types to ``ggml_ftype``. There is no float32: whisper.cpp aborts on convolutions of it."""

_MAGIC = 0x67676D6C
_QUANTIZATION_VERSION = 2000  # GGML_QNT_VERSION * GGML_QNT_VERSION_FACTOR
_FLOAT32, _FLOAT16 = 0, 1  # ggml_type
_SPECIAL_TOKENS = {51_864: (50_256, 50_357, 50_363), 51_865: (50_257, 50_358, 50_364), 51_866: (50_257, 50_359, 50_365)}
"""Vocabulary size to the ids that whisper.cpp takes for granted: end of text, ``<|translate|>`` and ``<|0.00|>``."""


def write(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, output_dir: Path, *, dtype: str = "float16"
) -> None:
    """Write ``ggml-model-<type>.bin``, and ``generation_config.json`` beside it for the check.

    Args:
        model: The model.
        processor: Its processor.
        output_dir: Where to.
        dtype: ``float16``, or how matrices are quantised: ``q8_0``, ``q5_1``, ``q5_0``, ``q4_1`` or ``q4_0``.

    Raises:
        ExportError: If whisper.cpp could not read the model, or would read it wrongly.
        ImportError: If the package ``gguf`` is missing, which quantises.
        ValueError: For another number type.
    """
    from distilwhisper.tokens import WhisperTokens

    check_dtype(dtype, DTYPES)
    tokens = WhisperTokens.from_tokenizer(processor.tokenizer)
    _refuse(model, tokens, dtype)
    if (window_s := model.config.max_source_positions / 50) != 30:
        _LOGGER.warning(
            "whisper.cpp moves on by 30 s, but this model's window is %g s: give it no longer recordings", window_s
        )
    with (output_dir / file_name(dtype)).open("wb") as file:
        _write_sizes(file, model.config, dtype)
        filters = np.ascontiguousarray(processor.feature_extractor.mel_filters.T, np.float32)  # [mels, frequencies]
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        words = _byte_tokens(processor.tokenizer, tokens.end_of_text)
        file.write(struct.pack("<i", len(words)))
        file.writelines(struct.pack("<I", len(word)) + word for word in words)
        for name, weight in tqdm(model.model.state_dict().items(), desc="Writing ggml", unit="tensor"):
            _write_tensor(file, name, weight.float().cpu().numpy(), dtype)
    model.generation_config.save_pretrained(output_dir)


def file_name(dtype: str = "float16") -> str:
    """Return the name of the file, with the names of number types that whisper.cpp uses."""
    return f"ggml-model-{'f16' if dtype == 'float16' else dtype}.bin"


def _refuse(model: WhisperForConditionalGeneration, tokens: WhisperTokens, dtype: str) -> None:
    config = model.config
    expected = _SPECIAL_TOKENS.get(config.vocab_size)
    if expected != (tokens.end_of_text, tokens.tasks["translate"], tokens.timestamp_begin):
        raise ExportError(
            f"whisper.cpp takes the ids of special tokens from the size of the vocabulary, which must be one of "
            f"{[*_SPECIAL_TOKENS]}; this model's {config.vocab_size} tokens are not those of a published Whisper"
        )
    if config.activation_function != "gelu" or config.scale_embedding:
        raise ExportError("whisper.cpp computes gelu and does not scale embeddings; this model was trained otherwise")
    widths = {config.encoder_ffn_dim, config.decoder_ffn_dim}
    if widths != {4 * config.d_model}:
        raise ExportError(
            f"whisper.cpp has feed-forward layers of 4 times d_model, {4 * config.d_model}, but this model's are of "
            f"{config.encoder_ffn_dim} and {config.decoder_ffn_dim}"
        )
    embedding = model.model.decoder.embed_tokens.weight
    if not bool((model.proj_out.weight == embedding).all()):
        raise ExportError("whisper.cpp has one matrix for token embeddings and output, but this model has two")
    if dtype != "float16":
        _gguf()
        if config.d_model % 32:
            raise ExportError(
                f"{dtype} quantises rows in blocks of 32, but d_model is {config.d_model}; export the model as float16"
            )


def _write_sizes(file: BinaryIO, config: WhisperConfig, dtype: str) -> None:
    kind = DTYPES[dtype] + (_QUANTIZATION_VERSION if dtype != "float16" else 0)
    encoder = config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers
    decoder = config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers
    file.write(struct.pack("<12i", _MAGIC, config.vocab_size, *encoder, *decoder, config.num_mel_bins, kind))


def _byte_tokens(tokenizer: Any, count: int) -> list[bytes]:
    """Return the bytes of the tokens below ``count``; whisper.cpp names the special ones behind them itself."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return [bytes(byte_of[letter] for letter in token) for token in tokenizer.convert_ids_to_tokens(range(count))]


def _write_tensor(file: BinaryIO, name: str, weight: Array, dtype: str) -> None:
    from distilwhisper.export.openai_whisper import renamed

    # What is added, not multiplied, stays exact; whisper.cpp looks for these very types.
    kind, name = _FLOAT32, renamed(name)
    shape = weight.shape[::-1]
    if name.endswith(("conv1.bias", "conv2.bias")):
        shape = (1, *shape)  # a column, added to every position
    elif name.endswith(("conv1.weight", "conv2.weight")):
        kind, weight = _FLOAT16, _half(name, weight)
    elif weight.ndim == 2 and not name.endswith("positional_embedding"):
        kind, weight = (_FLOAT16, _half(name, weight)) if dtype == "float16" else _quantized(weight, dtype)
    encoded = name.encode()
    file.write(struct.pack(f"<3i{len(shape)}i", len(shape), len(encoded), kind, *shape) + encoded)
    file.write(np.ascontiguousarray(weight).data)


def _half(name: str, weight: Array) -> Array:
    largest = np.abs(weight).max()
    if not largest <= np.finfo(np.float16).max:
        raise ExportError(f"{name} holds values up to {largest:g}, which half precision has no numbers for")
    return weight.astype(np.float16)


def _quantized(weight: Array, dtype: str) -> tuple[int, Array]:
    gguf = _gguf()
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    return int(kind), gguf.quants.quantize(weight, kind)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "ggml files are quantised with the package gguf, which is missing: pip install 'distilwhisper[ggml]'"
        ) from error
    return gguf


def run(export_dir: Path, features: Array, prompt: list[int], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy new tokens of whisper.cpp on log-mel features ``[batch, mels, frames]``.

    Encoder and decoder are whisper.cpp's own; the best token is chosen here, without its heuristics.
    """
    rules = GreedyRules.load(export_dir)
    with _context(export_dir) as runtime:
        found = []
        for recording in features:
            runtime.encode(recording)
            found.append(greedy(runtime.decode, prompt, max_new_tokens, rules))
        return found


def logits(export_dir: Path, features: Array, prompt: list[int], tokens: list[list[int]]) -> list[Array]:
    """Return the logits behind the prompt and each token, ``[tokens + 1, vocabulary]`` for each recording."""
    with _context(export_dir) as runtime:
        found = []
        for recording, ids in zip(features, tokens, strict=True):
            runtime.encode(recording)
            found.append(forced_logits(runtime.decode, prompt, ids))
        return found


class _Runtime:
    """whisper.cpp through its C interface: pywhispercpp's own functions do not return logits."""

    def __init__(self, library: ctypes.CDLL, context: int, threads: int) -> None:
        self.library, self.context, self.threads = library, ctypes.c_void_p(context), threads

    def encode(self, features: Array) -> None:
        """Compute the encoder's output of features ``[mels, frames]``."""
        data = np.ascontiguousarray(features, np.float32)
        pointer = data.ctypes.data_as(ctypes.c_void_p)
        mels, frames = data.shape
        if self.library.whisper_set_mel(self.context, pointer, frames, mels):
            raise ExportError(f"whisper.cpp does not take features of {mels} mel bins with this file")
        if self.library.whisper_encode(self.context, 0, self.threads):
            raise ExportError("whisper.cpp could not run the encoder")

    def decode(self, tokens: list[int], past: int) -> Array:
        """Return the logits ``[vocabulary]`` behind tokens that follow ``past`` others."""
        ids = (ctypes.c_int * len(tokens))(*tokens)
        if self.library.whisper_decode(self.context, ids, len(tokens), past, self.threads):
            raise ExportError("whisper.cpp could not run the decoder")
        count = self.library.whisper_n_vocab(self.context)
        rows = np.ctypeslib.as_array(self.library.whisper_get_logits(self.context), (len(tokens), count))
        last: Array = rows[-1].copy()
        return last


@contextmanager
def _context(export_dir: Path) -> Iterator[_Runtime]:
    try:
        import _pywhispercpp
    except ImportError as error:
        raise ImportError(
            "ggml files are run with the package pywhispercpp, which is missing: pip install 'distilwhisper[ggml]'"
        ) from error
    library = ctypes.CDLL(_pywhispercpp.__file__)  # its symbols, and those of the whisper.cpp that it brings
    library.whisper_init_from_file.restype = ctypes.c_void_p
    library.whisper_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    (path,) = export_dir.glob("ggml-model-*.bin")
    context = library.whisper_init_from_file(str(path).encode())
    if not context:
        raise ExportError(f"whisper.cpp does not load {path.name}")
    runtime = _Runtime(library, context, threads=1)  # its own wait for each other in a loop
    try:
        yield runtime
    finally:
        library.whisper_free(runtime.context)

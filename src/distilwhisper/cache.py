"""What a frozen encoder and a teacher say about the training data, on disk, so that no epoch computes it again.

Of every recording the encoder's output is kept, and of every label sequence the teacher's last hidden states at the
labelled positions. The teacher's output head makes its logits from them at any temperature, so nothing is lost, and a
token costs 2.5 kB instead of 100 kB (large-v3, 16 bit).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distilwhisper.audio import AudioError
from distilwhisper.shards import Record, ShardReader, ShardWriter, write_atomically
from distilwhisper.top_k import LARGEST_VOCABULARY

logger = logging.getLogger(__name__)

GROUP = 64
"""Channels that share one scale in the int8 form."""

_ENCODER_DTYPES = ("model", "int8")
_FEATURE_SETTINGS = ("feature_size", "sampling_rate", "hop_length", "n_fft", "padding_value", "dither")
_ADVICE = "run cache_states(...) over the training data with the same directory, it adds what is missing"
_NAMES = {
    "encoder_weights": "encoder weights",
    "decoder_weights": "teacher weights (decoder)",
    "features": "settings of the feature extractor",
    "encoder_dtype": "number type of the encoder states",
    "dtype": "number type of the teacher",
    "width": "width",
    "top_k": "tokens kept of the teacher's distributions (0: hidden states)",
    "temperature": "temperature of the teacher's distributions",
}


class StateCacheError(ValueError):
    """A cache that does not fit, or lacks what was asked for."""


@dataclass(frozen=True)
class CacheKey:
    """What all states of a cache have in common; a cache made with other values is refused.

    Attributes:
        encoder_weights: SHA-256 of all weights of the encoder, in ``dtype``, and of what else decides its output.
        decoder_weights: The same of decoder and output head; empty for any.
        width: ``d_model``.
        dtype: Number type that the teacher computed in, as ``bfloat16``.
        encoder_dtype: ``model``, for states in ``dtype``, or ``int8``.
        features: Settings of the feature extractor.
        libraries: Versions of libraries and the attention kernel; others may round otherwise, and are warned of.
        top_k: Tokens kept of each of the teacher's distributions; 0 where its hidden states are kept.
        temperature: What these distributions were softened with; 0 without.
    """

    encoder_weights: str
    decoder_weights: str
    width: int
    dtype: str
    encoder_dtype: str
    features: dict[str, Any]
    libraries: dict[str, str]
    top_k: int = 0
    temperature: float = 0.0

    @classmethod
    def of(
        cls,
        encoder: nn.Module,
        teacher: Any | None,
        feature_extractor: Any,
        *,
        dtype: torch.dtype,
        encoder_dtype: str = "model",
        top_k: int = 0,
        temperature: float = 0.0,
    ) -> CacheKey:
        """Return the key of models and features.

        All weights are read: about 3 s for large-v3 in 16 bit.

        Args:
            encoder: The encoder, in any dtype that rounds to the weights used.
            teacher: The teacher, for its decoder; None for any.
            feature_extractor: The processor's.
            dtype: Number type that states are computed in.
            encoder_dtype: Form that the encoder's output is stored in: ``model`` or ``int8``.
            top_k: Likeliest tokens to keep of the teacher's distributions; 0 for its hidden states.
            temperature: Of these distributions.

        Raises:
            ValueError: For another ``encoder_dtype``, random features, or a ``top_k`` that the vocabulary rules out.
        """
        if encoder_dtype not in _ENCODER_DTYPES:
            raise ValueError(f"encoder_dtype must be one of {', '.join(_ENCODER_DTYPES)}, not {encoder_dtype!r}")
        features = {name: getattr(feature_extractor, name, None) for name in _FEATURE_SETTINGS}
        if features["dither"]:
            raise ValueError(f"the feature extractor adds noise (dither={features['dither']}): set dither to 0")
        config: Any = encoder.config
        if top_k and not 0 < top_k < config.vocab_size <= LARGEST_VOCABULARY:
            raise ValueError(
                f"top_k must be less than the {config.vocab_size} tokens of a vocabulary of at most "
                f"{LARGEST_VOCABULARY}, not {top_k}"
            )
        return cls(
            encoder_weights=_fingerprint([encoder], config, "encoder", dtype),
            decoder_weights="" if teacher is None else _decoder_fingerprint(teacher, dtype),
            width=int(config.d_model),
            dtype=str(dtype).removeprefix("torch."),
            encoder_dtype=encoder_dtype,
            features=features,
            libraries={
                **{name: version(name) for name in ("torch", "transformers", "soxr")},
                "attention": str(config._attn_implementation),
            },
            top_k=top_k,
            temperature=float(temperature) if top_k else 0.0,
        )

    def check(self, expected: CacheKey, where: object) -> None:
        """Compare with the key that is expected.

        Raises:
            StateCacheError: If they differ in more than libraries; the message says in what.
        """
        if not expected.decoder_weights:
            expected = replace(expected, decoder_weights=self.decoder_weights)
        different = [field.name for field in fields(self) if getattr(self, field.name) != getattr(expected, field.name)]
        if "libraries" in different:
            logger.warning(
                "the states in %s were computed with %s, here runs %s: rounding may differ",
                where, self.libraries, expected.libraries,
            )  # fmt: skip
            different.remove("libraries")
        if different:
            lines = [f"{_NAMES[name]}: {getattr(self, name)}, here {getattr(expected, name)}" for name in different]
            raise StateCacheError(
                f"the states in {where} do not belong to this run. They differ in\n  " + "\n  ".join(lines) + "\n"
                "Use what the cache was made with, or make another in a directory of its own"
            )


class StateCache:
    """A directory of encoder and teacher states.

    Recordings go by what they contain (`audio_digest`), label sequences by the recording and
    the very ``decoder_input_ids``: another recording under the same name is not found.

    Args:
        directory: Where it is.
        key: What is asked of it; with a key the cache is made if there is none yet.

    Attributes:
        key: The cache's key.

    Raises:
        StateCacheError: If there is no cache, or one with another key.
    """

    def __init__(self, directory: str | Path, key: CacheKey | None = None) -> None:
        self.directory = Path(directory)
        manifest = self.directory / "manifest.json"
        if manifest.exists():
            self.key = CacheKey(**json.loads(manifest.read_text(encoding="utf-8")))
            if key is not None:
                self.key.check(key, self.directory)
        elif key is None:
            raise StateCacheError(f"there is no cache in {self.directory}: make one with cache_states(...)")
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(manifest, json.dumps(asdict(key), indent=2))
            self.key = key
        self.dtype: torch.dtype = getattr(torch, self.key.dtype)
        self._reader, self._writer = ShardReader(self.directory), ShardWriter(self.directory)
        self._written: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._reader)

    def __contains__(self, key: bytes) -> bool:
        return key in self._written or key in self._reader

    def write(self, records: Iterable[Record]) -> None:
        """Add what `encoder_record` and `teacher_record` made; on the disk when this returns."""
        records = list(records)
        if records:
            self._writer.append(records)
            self._written |= {record.key for record in records}

    def close(self) -> None:
        """End writing, and make what was written readable here."""
        self._writer.close()
        self._reader, self._written = ShardReader(self.directory), set()

    def encoder_rows(self, audio: bytes) -> int | None:
        """Return the frames of a recording's encoder output, 0 if the recording cannot be used, None if unknown."""
        found = self._reader.read(encoder_key(audio))
        return None if found is None else found[0]

    def read_encoder(self, audio: bytes, sample: str) -> Tensor:
        """Return the encoder's output for a recording, ``[frames, d_model]``.

        Args:
            audio: Digest of the recording.
            sample: Its name, for messages.

        Raises:
            StateCacheError: If it is not there.
            AudioError: If the recording could not be used when the cache was filled.
        """
        found = self._reader.read(encoder_key(audio))
        if found is None:
            known = self._reader.has_owner(_owner(sample))
            why = "was cached with another recording" if known else "is not there"
            raise StateCacheError(f"sample {sample!r} {why} in {self.directory}: {_ADVICE}")
        if not found[0]:
            raise AudioError("unusable", "the recording could not be used when the cache was filled")
        return _states(*found, self.key, int8=self.key.encoder_dtype == "int8")

    def read_teacher(self, audio: bytes, ids: Sequence[int], sample: str) -> Tensor:
        """Return the teacher's last hidden states at the labelled positions, ``[tokens, d_model]``.

        A cache of top-k distributions returns their bytes, for `unpack_top_k`.

        Args:
            audio: Digest of the recording.
            ids: The ``decoder_input_ids``, unpadded.
            sample: Its name, for messages.

        Raises:
            StateCacheError: If they are not there.
        """
        found = self._reader.read(teacher_key(audio, ids))
        if found is None:
            raise StateCacheError(
                f"sample {sample!r} has no teacher states for these {len(ids)} decoder inputs in {self.directory}: its "
                f"recording, label or prompt changed, or the collator's settings; {_ADVICE}"
            )
        return torch.from_numpy(found[1]).view(found[0], -1) if self.key.top_k else _states(*found, self.key)

    def encoder_record(self, audio: bytes, states: Tensor, sample: str) -> Record:
        """Return the encoder's output ``[frames, d_model]`` in the form in which it is stored."""
        states = states.to("cpu", self.dtype)
        data = quantize(states) if self.key.encoder_dtype == "int8" else _bytes(states)
        return Record(encoder_key(audio), _owner(sample), len(states), data)

    def unusable_record(self, audio: bytes, sample: str) -> Record:
        """Return what says that a recording cannot be used."""
        return Record(encoder_key(audio), _owner(sample), 0, np.empty(0, np.uint8))

    def teacher_record(self, audio: bytes, ids: Sequence[int], states: Tensor, sample: str) -> Record:
        """Return the teacher's last hidden states ``[tokens, d_model]`` in the form in which they are stored.

        For a cache of top-k distributions ``states`` are the bytes of `pack_top_k`.
        """
        data = _bytes(states if self.key.top_k else states.to("cpu", self.dtype))
        return Record(teacher_key(audio, ids), _owner(sample), len(states), data)

    def forget_pages(self) -> None:
        """Have the system drop what it keeps of the files in memory, so that the disk itself can be measured."""
        self._reader.forget_pages()


def read_back(encoder_record: Record, key: CacheKey) -> Tensor:
    """Return the encoder's output as it will be read, ``[frames, d_model]``, before it is written."""
    return _states(encoder_record.rows, encoder_record.data, key, int8=key.encoder_dtype == "int8")


def encoder_key(audio: bytes) -> bytes:
    """Return the key of a recording's encoder output."""
    return blake2b(audio, digest_size=16, person=b"encoder").digest()


def teacher_key(audio: bytes, ids: Sequence[int]) -> bytes:
    """Return the key of the teacher's states for a recording and ``decoder_input_ids``, unpadded."""
    return blake2b(audio + np.asarray(ids, "<u4").tobytes(), digest_size=16, person=b"teacher").digest()


def quantize(states: Tensor) -> npt.NDArray[np.uint8]:
    """Return ``[rows, d]`` as int8 with a float16 scale for every 64 channels of a row: half of 16 bit, and 3 %.

    The largest value of a group becomes 127, so an error is at most 1/254 of it (and the scale's own rounding).
    """
    groups = states.float().unflatten(-1, (-1, math.gcd(states.shape[-1], GROUP)))
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    steps = torch.where(scales > 0, groups / scales.float(), 0).round().clamp(-127, 127).to(torch.int8)
    return np.concatenate([_bytes(steps), _bytes(scales)])


def dequantize(data: Tensor, rows: int, width: int) -> Tensor:
    """Return what `quantize` made ``data`` of, as float32 ``[rows, width]``."""
    steps, scales = data[: rows * width].view(torch.int8), data[rows * width :].view(torch.float16)
    return (steps.view(rows, -1, math.gcd(width, GROUP)) * scales.view(rows, -1, 1).float()).flatten(1)


def _states(rows: int, data: npt.NDArray[np.uint8], key: CacheKey, *, int8: bool = False) -> Tensor:
    dtype, states = getattr(torch, key.dtype), torch.from_numpy(data)
    if int8:
        return dequantize(states, rows, key.width).to(dtype)
    return states.view(dtype).view(rows, key.width)


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    raw: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return raw


def _owner(sample: str) -> bytes:
    return blake2b(sample.encode(), digest_size=8).digest()


def _decoder_fingerprint(teacher: Any, dtype: torch.dtype) -> str:
    tied = teacher.proj_out.weight is teacher.model.decoder.embed_tokens.weight
    modules = [teacher.model.decoder, *([] if tied else [teacher.proj_out])]
    return _fingerprint(modules, teacher.config, "decoder", dtype)


def _fingerprint(modules: list[nn.Module], config: Any, part: str, dtype: torch.dtype) -> str:
    settings = [getattr(config, name) for name in (f"{part}_attention_heads", "activation_function", "scale_embedding")]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for module in modules:
        for name, weight in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(_bytes(weight.to(dtype)).data)
    return digest.hexdigest()

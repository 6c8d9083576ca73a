"""Whatever stands in an audio column, read as mono float32 samples, or refused with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from datasets import Audio

Samples = npt.NDArray[np.float32]
DatasetT = TypeVar("DatasetT")

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
# Files that were written to a pipe state no length, and libsndfile then reports nearly 2 ** 63 frames.
UNKNOWN_FRAMES = 2**40
BLOCK_S = 60


class AudioError(ValueError):
    """A recording that cannot be used.

    Attributes:
        reason: ``missing``, ``unreadable``, ``empty``, ``not_finite``, ``too_long``, ``bad_rate`` or
            ``bad_type``.
    """

    def __init__(self, reason: str, message: str) -> None:
        # Both go to `args`: a DataLoader worker pickles its exceptions.
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


def load_audio(value: Any, sampling_rate: int = 16_000, *, max_duration_s: float | None = None) -> Samples:
    """Read a recording, average its channels and resample it.

    Args:
        value: A path, URL or the bytes of a file; ``{"bytes", "path"}`` or ``{"array", "sampling_rate"}`` of
            ``datasets``; a torchcodec ``AudioDecoder``; ``(samples, rate)``; or samples as an array, list or
            tensor, taken to be at ``sampling_rate``. In samples with two axes the shorter one holds the
            channels; integers of 8, 16 and 32 bits are PCM.
        sampling_rate: Rate of the result, in Hz.
        max_duration_s: Refuse what is longer, in seconds; a recording of exactly this length is taken.

    Returns:
        Samples in [-1, 1] as float32, ``[samples]``.

    Raises:
        AudioError: If there is no usable recording; its ``reason`` says why in one word.
    """
    samples, rate = _read(value, sampling_rate, max_duration_s)
    mono = _mono(samples)
    if mono.size and max_duration_s is not None and len(mono) > round(max_duration_s * rate):
        raise AudioError("too_long", f"the recording is longer than {max_duration_s:g} s; cut it into pieces first")
    _finite(mono)
    if mono.size and rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
    if not mono.size:
        raise AudioError("empty", "the recording holds no samples")
    return np.ascontiguousarray(mono, dtype=np.float32)


def audio_blocks(value: Any, sampling_rate: int = 16_000, *, block_s: float | None = None) -> Iterator[Samples]:
    """Read a recording of any length block by block: mono, resampled, as `load_audio` gives it.

    Memory is constant for files and their bytes. Other recordings are samples that lie in memory anyway.

    Args:
        value: As for `load_audio`.
        sampling_rate: Rate of the result, in Hz.
        block_s: Length of a block, in seconds; default about a minute.

    Yields:
        Samples in [-1, 1] as float32; no block is empty.

    Raises:
        AudioError: If there is no usable recording; where one is damaged, after the blocks before the damage.
    """
    source = _source(value)
    if not isinstance(source, (bytes, Path)):
        yield load_audio(source, sampling_rate)
        return
    stream, samples = None, 0
    for block, rate in _file_blocks(source, block_s or BLOCK_S):
        mono = _finite(block.mean(axis=1, dtype=np.float32))
        if rate != sampling_rate and len(mono):
            stream = stream or soxr.ResampleStream(rate, sampling_rate, 1)
            mono = stream.resample_chunk(mono)
        samples += len(mono)
        if len(mono):
            yield mono
    if stream is not None and len(rest := stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)):
        samples += len(rest)
        yield rest
    if not samples:
        raise AudioError("empty", "the recording holds no samples")


def encode_audio(samples: Samples, sampling_rate: int = 16_000) -> bytes:
    """Return mono samples as the bytes of a FLAC file of 16 bits; what is beyond [-1, 1] is clipped."""
    file = BytesIO()
    soundfile.write(file, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def audio_duration(value: Any, sampling_rate: int = 16_000) -> float | None:
    """Return the duration of a recording in seconds, without decoding it; None if its header does not say.

    Args:
        value: As for `load_audio`.
        sampling_rate: Rate of samples that come without one, in Hz.
    """
    if hasattr(value, "get_all_samples"):
        return value.metadata.duration_seconds  # type: ignore[no-any-return]
    try:
        source = _source(value)
        if isinstance(source, (bytes, Path)):
            info = soundfile.info(_openable(source))
            return info.frames / info.samplerate if 0 <= info.frames < UNKNOWN_FRAMES else None
        samples, rate = _read(source, sampling_rate, None)
    except (AudioError, soundfile.SoundFileError, TypeError, ZeroDivisionError):  # odd headers, and ``.raw`` files
        return None
    return max(samples.shape, default=0) / rate if samples.size else 0.0


def audio_digest(value: Any, sampling_rate: int = 16_000) -> bytes:
    """Return 16 bytes that stand for a recording: a digest of its file as it is, or else of its samples.

    Args:
        value: As for `load_audio`.
        sampling_rate: Rate of samples that come without one, in Hz.

    Raises:
        AudioError: If there is no usable recording.
    """
    source = _source(value)
    if isinstance(source, Path):
        source = source.read_bytes()
    data = source if isinstance(source, bytes) else load_audio(source, sampling_rate).tobytes()
    return blake2b(data, digest_size=16).digest()


def undecoded(dataset: DatasetT, audio_column: str = "audio") -> DatasetT:
    """Return the dataset with its audio column left as files: reading a row then needs no torchcodec.

    Args:
        dataset: A ``Dataset``, ``IterableDataset`` or a dict of them.
        audio_column: The column; anything but an ``Audio`` feature is left as it is.

    Raises:
        ValueError: If the dataset is known to have no such column.
    """
    if isinstance(dataset, dict):
        return type(dataset)({name: undecoded(part, audio_column) for name, part in dataset.items()})
    features = dataset.features  # type: ignore[attr-defined]
    if features is None:  # a stream of unknown columns yields what its source yields
        return dataset
    if audio_column not in features:
        raise ValueError(f"the dataset has no column {audio_column!r}; it has {sorted(features)}")
    feature = features[audio_column]
    if not isinstance(feature, Audio) or not feature.decode:
        return dataset
    return dataset.cast_column(audio_column, replace(feature, decode=False))  # type: ignore[attr-defined,no-any-return]


def _read(value: Any, sampling_rate: int, max_duration_s: float | None) -> tuple[npt.NDArray[Any], float]:
    """Return samples with one or two axes, of any number type, and their rate."""
    source = _source(value)
    if isinstance(source, (bytes, Path)):
        return _read_file(source, max_duration_s)
    if hasattr(source, "get_all_samples"):
        return _read_decoder(source)
    rate: Any = sampling_rate
    if isinstance(source, dict):
        source, rate = source["array"], source.get("sampling_rate", sampling_rate)
    elif isinstance(source, tuple) and len(source) == 2 and np.ndim(source[1]) == 0 and np.ndim(source[0]) > 0:
        source, rate = source
    return _as_array(source), _checked_rate(rate)


def _source(value: Any) -> Any:
    """Reduce files to bytes or a ``Path`` that exists; pass samples and decoders on."""
    if isinstance(value, dict) and value.get("array") is None:
        value = value["path"] if value.get("bytes") is None and "path" in value else value.get("bytes")
    if value is None:
        raise AudioError("missing", "there is no recording: neither bytes nor a path nor samples are given")
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str) and "://" in value:
        return _download(value)
    if isinstance(value, (str, Path)):
        if not os.path.isfile(value):  # noqa: PTH113 - Path.is_file raises where access is denied
            raise AudioError("missing", f"there is no file {str(value)!r}")
        return Path(value)
    return value


def _download(url: str) -> bytes:
    import fsspec  # type: ignore[import-untyped]

    try:
        with fsspec.open(url, "rb") as file:
            return bytes(file.read())
    except (OSError, ValueError, ImportError) as error:
        raise AudioError("missing", f"{url!r} cannot be fetched: {error}") from error


def _openable(source: bytes | Path) -> BytesIO | str:
    return BytesIO(source) if isinstance(source, bytes) else str(source)


def _read_file(source: bytes | Path, max_duration_s: float | None) -> tuple[npt.NDArray[Any], float]:
    blocks: list[npt.NDArray[np.float32]] = []
    rate = 0.0
    # A header may promise any length, and what is too long is not worth reading on.
    for block, rate in _file_blocks(source, BLOCK_S):
        blocks.append(block)
        if max_duration_s is not None and sum(map(len, blocks)) > max_duration_s * rate:
            break
    return np.concatenate(blocks), rate


def _file_blocks(source: bytes | Path, block_s: float) -> Iterator[tuple[npt.NDArray[np.float32], float]]:
    """Yield blocks ``[samples, channels]`` of a file, one at least, each with the rate."""
    if source == b"":
        raise AudioError("empty", "the recording is a file of 0 bytes")
    try:
        file = soundfile.SoundFile(_openable(source))
    except (soundfile.SoundFileError, TypeError) as error:  # the TypeError wants a rate for a ``.raw`` file
        yield from _av_blocks(source, error, block_s)
        return
    with file:
        rate, size = _checked_rate(file.samplerate), int(block_s * file.samplerate)
        try:
            yield (block := file.read(size, dtype="float32", always_2d=True)), rate
            while len(block):
                yield (block := file.read(size, dtype="float32", always_2d=True)), rate
        except soundfile.SoundFileError as error:
            raise AudioError("unreadable", f"the recording cannot be decoded: {error}") from error


def _av_blocks(
    source: bytes | Path, error: Exception, block_s: float
) -> Iterator[tuple[npt.NDArray[np.float32], float]]:
    """Read the formats that soundfile lacks (m4a, webm)."""
    try:
        import av  # type: ignore[import-not-found,unused-ignore]
    except ImportError as missing:
        hint = "; formats such as m4a need PyAV: pip install 'distilwhisper[av]'"
        why = getattr(error, "error_string", error)  # without the address of an object in memory
        raise AudioError("unreadable", f"the recording cannot be read: {why}{hint}") from missing
    try:
        with av.open(_openable(source)) as container:
            if not container.streams.audio:
                raise AudioError("unreadable", "the file holds no audio")
            rate = _checked_rate(container.streams.audio[0].rate)
            planar, blocks = av.AudioResampler(format="fltp"), []
            for frame in chain(container.decode(audio=0), [None]):  # None: what is left in it
                blocks += [part.to_ndarray().T for part in planar.resample(frame)]
                if frame is None or sum(map(len, blocks)) > block_s * rate:
                    yield np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32), rate
                    blocks = []
    except av.FFmpegError as failure:
        raise AudioError("unreadable", f"the recording cannot be read: {failure}") from failure


def _read_decoder(decoder: Any) -> tuple[npt.NDArray[Any], float]:
    try:
        samples = decoder.get_all_samples()
    except (OSError, RuntimeError, ValueError) as error:
        raise AudioError("unreadable", f"the recording cannot be decoded: {error}") from error
    return _as_array(samples.data).T, _checked_rate(samples.sample_rate)


def _as_array(samples: Any) -> npt.NDArray[Any]:
    if hasattr(samples, "detach"):  # a tensor; numpy has no bfloat16
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    try:
        array = np.asarray(samples)
    except ValueError as error:  # lists of unequal lengths
        raise AudioError("bad_type", f"the samples form no array: {error}") from error
    if array.ndim not in (1, 2):
        raise AudioError("bad_type", f"samples have one axis, or two with the channels, not the shape {array.shape}")
    return array


def _checked_rate(rate: Any) -> float:
    if not isinstance(rate, (int, float, np.number)) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        allowed = f"{LOWEST_RATE} to {HIGHEST_RATE} Hz"
        raise AudioError("bad_rate", f"a sampling rate of {rate!r} Hz makes no sense for speech; allowed are {allowed}")
    return float(rate)


def _mono(samples: npt.NDArray[Any]) -> Samples:
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if samples.size == 0:
        return np.zeros(0, dtype=np.float32)
    if kind == "i" and size <= 4:
        samples = samples / np.float32(2 ** (8 * size - 1))
    elif kind == "u" and size == 1:
        samples = (samples - np.float32(128)) / np.float32(128)
    elif kind != "f":
        raise AudioError("bad_type", f"samples of type {samples.dtype} are no PCM; give floats in [-1, 1] or int16")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
        return samples.astype(np.float32)


def _finite(samples: Samples) -> Samples:
    if not np.isfinite(samples).all():
        raise AudioError("not_finite", "the recording holds samples that are NaN or infinite")
    return samples

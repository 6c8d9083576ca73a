"""Short clips joined to samples of up to 30 s, the length that a Whisper is trained and used at."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Audio, Dataset, Features, IterableDataset, List, Value
from datasets.utils import tqdm

from distilwhisper.audio import AudioError, Samples, encode_audio, load_audio, undecoded
from distilwhisper.label_joining import LabelJoiner, join_texts
from distilwhisper.normalizers import language_code
from distilwhisper.row_files import Step, stream_rows, write_rows
from distilwhisper.tables import Shown
from distilwhisper.tokens import LONGEST_FRAME

logger = logging.getLogger(__name__)

PART = {"id": Value("string"), "offset_s": Value("float64"), "duration_s": Value("float64"), "text": Value("string")}
"""A part of a packed sample: which clip, where in the sample, how long, and its reference transcript (or null)."""

_SAMPLING_RATE = 16_000
_LABEL_KEY = ("whisper_language", "whisper_task", "whisper_timestamps")


@dataclass(frozen=True)
class Clip:
    """A clip to be packed.

    Attributes:
        samples: Length.
        key: What the clips of a pack share, speaker and recording say; a clip whose key is None stays alone.
        tokens: Length of its label.
        last: Whether nothing may follow it in a pack, as its label was cut off.
        content: Whatever belongs to it.
    """

    samples: int
    key: tuple[Any, ...] | None
    tokens: int = 0
    last: bool = False
    content: Any = None


class Placed(NamedTuple):
    """A clip and where in its pack it begins, in samples."""

    offset: int
    clip: Clip


def group_clips(
    clips: Iterable[Clip], max_samples: int = 480_000, *, silence: int = 0, max_tokens: int | None = None
) -> Iterator[list[Placed]]:
    """Join neighbouring clips of the same key to packs, in order, each clip once.

    Args:
        clips: The clips.
        max_samples: Longest pack.
        silence: Samples between two clips of a pack.
        max_tokens: Longest label of a pack, where it is joined.

    Yields:
        The packs, as soon as each is full.

    Raises:
        ValueError: For a clip that is longer than a pack.
    """
    pack: list[Placed] = []
    end = tokens = 0
    for clip in clips:
        if clip.samples > max_samples:
            raise ValueError(f"a clip of {clip.samples} samples fits into no pack of {max_samples}; cut it first")
        tokens += clip.tokens
        fits = end + silence + clip.samples <= max_samples and (max_tokens is None or tokens <= max_tokens)
        related = pack and clip.key is not None and clip.key == pack[-1].clip.key and not pack[-1].clip.last
        if fits and related:
            pack.append(Placed(end + silence, clip))
        else:
            if pack:
                yield pack
            pack, tokens = [Placed(0, clip)], clip.tokens
        end = pack[-1].offset + clip.samples
    if pack:
        yield pack


@dataclass
class PackReport(Shown):
    """What became of clips; ``print(report)`` says it in words.

    Attributes:
        clips: How many were packed.
        packs: Into how many samples.
        seconds: Length of the clips.
        silence_s: Silence put between them.
        set_aside: Clips that could not be packed, by reason.
    """

    clips: int = 0
    packs: int = 0
    seconds: float = 0.0
    silence_s: float = 0.0
    set_aside: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers and dictionaries."""
        return {**asdict(self), "set_aside": dict(self.set_aside)}

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        mean = (self.seconds + self.silence_s) / max(self.packs, 1)
        lines = [f"packed {self.clips:,} clips, {self.seconds / 3600:,.2f} h, into {self.packs:,} of {mean:.1f} s"]
        return "\n".join(lines + [f"set aside {count:,}: {reason}" for reason, count in self.set_aside.most_common()])


class Packer:
    """Packs the clips of a data set, before or after they are labelled.

    Neighbouring clips are joined, so clips of a speaker should follow each other: sort the data set first
    (``dataset.sort("speaker_id")``) if they do not. Labels are joined where there are any, their timestamps
    shifted; clips in different languages, tasks or with and without timestamps are not joined, and nothing follows
    a label that was cut off.

    Args:
        by: Columns whose values the clips of a pack share, such as ``("speaker_id", "recording_id")``; a clip
            that lacks one stays alone. With ``()`` whatever follows each other is packed.
        max_seconds: Longest pack: 30 for the published models.
        silence_s: Silence between clips.
        language: Language of the transcripts, where rows have no ``whisper_language``: says whether they are joined
            with spaces.
        tokenizer: The teacher's ``WhisperTokenizer``, needed for clips with labels.
        max_label_length: Longest label that the decoder takes, in tokens, its frame included.

    Attributes:
        report: What `pack` did; for a result without ``output_dir``, with what was read of it so far in this
            process, repeated passes included.
        set_aside: Clips that could not be packed: ``index``, ``id``, ``reason``, ``message``.

    Raises:
        ValueError: If a number or the language makes no sense.
    """

    def __init__(
        self,
        by: Sequence[str],
        max_seconds: float = 30.0,
        *,
        silence_s: float = 0.0,
        language: str | None = None,
        tokenizer: Any = None,
        max_label_length: int = 448,
    ) -> None:
        if isinstance(by, str):
            raise ValueError(f"by is a list of columns: did you mean [{by!r}]?")
        if not max_seconds > 0 or silence_s < 0:
            raise ValueError(f"max_seconds must be above 0 and silence_s 0 or more, not {max_seconds} and {silence_s}")
        self.by, self.max_seconds, self.silence_s = list(by), max_seconds, silence_s
        self.language = language and language_code(language)
        self.max_label_length = max_label_length
        self.labels = None if tokenizer is None else LabelJoiner(tokenizer)
        self.report, self.set_aside = PackReport(), list[dict[str, Any]]()

    def pack(
        self,
        dataset: Any,
        output_dir: str | Path | None = None,
        *,
        audio_column: str = "audio",
        text_column: str = "text",
        id_column: str = "id",
    ) -> Any:
        """Pack the clips of a data set, in constant memory.

        Args:
            dataset: A ``Dataset`` or ``IterableDataset``, with or without the columns of ``LABEL_FEATURES``.
            output_dir: Where the packs are written, as parquet files; a killed run that is started again goes on where
                it stopped. Default: nowhere, and each pass over the result packs anew.
            audio_column: Column of the recordings.
            text_column: Column of the reference transcripts, which need not exist.
            id_column: Column that names the clips; without it their number does.

        Returns:
            A ``Dataset`` if ``output_dir`` is given, else an ``IterableDataset``: ``id`` (first and last clip);
            ``audio_column``, FLAC at 16 kHz; ``duration_s``; ``parts``, a list of `PART`; the transcripts joined, or
            null if one lacks; of labels the joined text and tokens, the mean log-probability by token, and the highest
            no-speech probability and compression ratio; ``whisper_prompt``, the pack before if it shares ``by`` (none
            if ``by`` is empty). Other columns keep the value that all parts share, else null.

        Raises:
            TypeError: If the data set is neither of the two.
            ValueError: If a column or the tokenizer is missing, or ``output_dir`` holds other rows.
        """
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise TypeError(
                f"a {type(dataset).__name__} cannot be packed; pass a Dataset or IterableDataset (one split)"
            )
        data = undecoded(dataset, audio_column).with_format(None)
        self._check(data.column_names)
        make_steps = partial(self._steps, data, _Names(audio_column, text_column, id_column))
        self.report, self.set_aside = PackReport(), []
        features = data.features and self._features(data.features, audio_column)
        if output_dir is None:
            return stream_rows(make_steps, features)
        names = ("by", "max_seconds", "silence_s", "language", "max_label_length")
        settings = {name: getattr(self, name) for name in names}
        packed, done = write_rows(make_steps, output_dir, features, settings, self._snapshot)
        self._restore(done)
        logger.info("%s", self.report)
        return packed

    def _check(self, columns: Sequence[str] | None) -> None:
        if columns is None:
            return
        for name in self.by:
            if name not in columns:
                raise ValueError(f"the dataset has no column {name!r}; it has {columns}")
        if {"whisper_transcript", "whisper_tokens"} & {*columns}:
            if "whisper_tokens" not in columns:
                raise ValueError("labels are joined as tokens, but the dataset has no column 'whisper_tokens'")
            if self.labels is None:
                raise ValueError("the clips have labels: pass the teacher's tokenizer, to join them")

    def _features(self, features: Features, audio_column: str) -> Features:
        new = {"id": Value("string"), audio_column: Audio(_SAMPLING_RATE, decode=False), "duration_s": Value("float32")}
        new["parts"] = List(PART)
        if "whisper_tokens" in features and self.by:
            new["whisper_prompt"] = List(Value("int32"))
        return Features({**{name: kind for name, kind in features.items() if name != "duration"}, **new})

    def _steps(self, data: Any, names: _Names, position: Any, done: Any) -> Iterator[Step]:
        consumed, last_key, prompt = position or (0, None, [])
        if done is not None:
            done["set_aside"] = [problem for problem in done["set_aside"] if problem["index"] < consumed]
            self._restore(done)
        total = len(data) if isinstance(data, Dataset) else None
        rows = tqdm(data.skip(consumed), "Packing", total, unit="clip", initial=consumed)
        silence, longest = (round(seconds * _SAMPLING_RATE) for seconds in (self.silence_s, self.max_seconds))
        clips = self._clips(enumerate(rows, consumed), names)
        most = self.max_label_length - LONGEST_FRAME
        for pack in group_clips(clips, longest, silence=silence, max_tokens=most):
            row = self._join(pack, names)
            if "whisper_tokens" in row and self.by and self.labels:
                key = pack[0].clip.content.speaker
                row["whisper_prompt"] = prompt if key is not None and key == last_key else []
                last_key, prompt = key, self.labels.tokens.without_timestamps(row["whisper_tokens"])
            self.report.clips += len(pack)
            self.report.packs += 1
            self.report.seconds += sum(clip.samples for _, clip in pack) / _SAMPLING_RATE
            self.report.silence_s += silence * (len(pack) - 1) / _SAMPLING_RATE
            yield row, [pack[-1].clip.content.number + 1, last_key, prompt]
        yield None, None

    def _clips(self, rows: Iterable[tuple[int, dict[str, Any]]], names: _Names) -> Iterator[Clip]:
        longest = round(self.max_seconds * _SAMPLING_RATE)
        for index, row in rows:
            self._check([*row])  # a stream may not have said what columns it has
            name = str(row.get(names.id, index))
            try:
                samples = load_audio(row.pop(names.audio), _SAMPLING_RATE, max_duration_s=self.max_seconds)
                samples = samples[:longest]  # resampling rounds the length of one that just fits
                ids = row.get("whisper_tokens", [])
                if ids is None:
                    raise AudioError("missing_label", "the clip has no label, but the data set has labels")
            except AudioError as error:
                self.report.set_aside[error.reason] += 1
                self.set_aside.append({"index": index, "id": name, "reason": error.reason, "message": str(error)})
                continue
            speaker = [row[column] for column in self.by]
            content = _Content(index, name, row, samples, None if None in speaker else speaker)
            key = None if None in speaker else (*speaker, *(row.get(column) for column in _LABEL_KEY))
            # A space before the label and a timestamp behind it may join it to the next.
            yield Clip(len(samples), key, len(ids) + 2, bool(row.get("whisper_capped")), content)

    def _join(self, pack: Sequence[Placed], names: _Names) -> dict[str, Any]:
        rows = [clip.content.row for _, clip in pack]
        joined = {name: value if all(row[name] == value for row in rows) else None for name, value in rows[0].items()}
        joined.pop("duration", None)
        language = rows[0].get("whisper_language") or self.language
        if names.text in joined:
            texts = [row[names.text] for row in rows]
            joined[names.text] = None if None in texts else join_texts(texts, language)
        if "whisper_tokens" in joined and self.labels:
            joined |= self.labels.join(rows, [offset / _SAMPLING_RATE for offset, _ in pack], language)
        audio = np.zeros(pack[-1].offset + pack[-1].clip.samples, np.float32)
        for offset, clip in pack:
            audio[offset : offset + clip.samples] = clip.content.samples
        names_of = dict.fromkeys(clip.content.name for _, clip in (pack[0], pack[-1]))
        return joined | {
            "id": "..".join(names_of),
            names.audio: {"bytes": encode_audio(audio, _SAMPLING_RATE), "path": None},
            "duration_s": len(audio) / _SAMPLING_RATE,
            "parts": [_part(placed, names.text) for placed in pack],
        }

    def _snapshot(self) -> dict[str, Any]:
        return {"report": self.report.to_dict(), "set_aside": self.set_aside}

    def _restore(self, snapshot: Mapping[str, Any]) -> None:
        self.set_aside = list(snapshot["set_aside"])
        self.report = PackReport(**snapshot["report"])
        self.report.set_aside = Counter(problem["reason"] for problem in self.set_aside)


class _Names(NamedTuple):
    """The columns of a data set."""

    audio: str
    text: str
    id: str


class _Content(NamedTuple):
    """A clip as it was read: number and name, its columns but the audio, its samples, and whose it is."""

    number: int
    name: str
    row: dict[str, Any]
    samples: Samples
    speaker: list[Any] | None


def _part(placed: Placed, text_column: str) -> dict[str, Any]:
    content = placed.clip.content
    return {
        "id": content.name,
        "offset_s": placed.offset / _SAMPLING_RATE,
        "duration_s": placed.clip.samples / _SAMPLING_RATE,
        "text": content.row.get(text_column),
    }

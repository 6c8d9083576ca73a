"""Short clips joined to samples of up to 30 s, the length that a Whisper is trained and used at."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from datasets import Audio, Dataset, Features, IterableDataset, List, Value
from datasets.utils import tqdm

from distilwhisper.audio import AudioError, Samples, encode_audio, load_audio, undecoded
from distilwhisper.normalizers import UNSPACED_LANGUAGES, language_code
from distilwhisper.row_files import Step, stream_rows, write_rows

if TYPE_CHECKING:
    from distilwhisper.tokens import WhisperTokens

logger = logging.getLogger(__name__)

ContentT = TypeVar("ContentT")

PART = {"id": Value("string"), "offset_s": Value("float64"), "duration_s": Value("float64"), "text": Value("string")}
"""A part of a packed sample: which clip, where in the sample, how long, and its reference transcript (or null)."""

_SAMPLING_RATE = 16_000
_LABEL_KEY = ("whisper_language", "whisper_task", "whisper_timestamps")


@dataclass(frozen=True)
class Clip(Generic[ContentT]):
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
    content: ContentT | None = None


class Placed(NamedTuple):
    """A clip and where in its pack it begins, in samples."""

    offset: int
    clip: Clip[Any]


def group_clips(
    clips: Iterable[Clip[Any]], max_samples: int = 480_000, *, silence: int = 0, max_tokens: int | None = None
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


def join_texts(texts: Iterable[str], language: str | None = None) -> str:
    """Join texts as the language does: with a space, or without in Chinese, Japanese, Thai and their like.

    Args:
        texts: The texts; empty ones leave no trace.
        language: Code, name or token; None means one that writes spaces.

    Raises:
        ValueError: For an unknown language.
    """
    space = "" if language and language_code(language) in UNSPACED_LANGUAGES else " "
    return space.join(stripped for text in texts if (stripped := text.strip()))


@dataclass
class PackReport:
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
        report: What :meth:`pack` did; for a result without ``output_dir``, with what was read of it so far in this
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

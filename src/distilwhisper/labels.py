"""What labelling gives: columns beside the rows, prompts, and a report."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from datasets import Dataset, Features, List, Value, concatenate_datasets

from distilwhisper.tables import Shown

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
"""Stands in a row of label ids where nothing is to be learned or scored."""

DatasetT = TypeVar("DatasetT")
Label = dict[str, Any]
"""The columns of one label."""

LABEL_FEATURES = Features(
    {
        "whisper_transcript": Value("string"),
        "whisper_tokens": List(Value("int32")),
        "whisper_language": Value("string"),
        "whisper_task": Value("string"),
        "whisper_timestamps": Value("bool"),
        "whisper_avg_logprob": Value("float32"),
        "whisper_no_speech_prob": Value("float32"),
        "whisper_compression_ratio": Value("float32"),
        "whisper_capped": Value("bool"),
        "duration_s": Value("float32"),
    }
)
"""The columns that a label takes, beside ``whisper_prompt``."""

_PROMPT_FEATURES = Features({"whisper_prompt": List(Value("int32"))})
_FIELDS = {name: name.removeprefix("whisper_") for name in LABEL_FEATURES} | {"whisper_transcript": "text"}


@dataclass
class LabelReport(Shown):
    """What became of a data set; ``print(report)`` says it in words.

    Attributes:
        labelled: Rows with a label.
        seconds: Length of their recordings.
        with_reference: Labelled rows that have a reference transcript, which the WER filter needs.
        capped: Labels that the length limit cut off.
        set_aside: Rows without a label, by reason.
        elapsed_s: Time taken; into a directory, the sum over all processes and starts.
    """

    labelled: int = 0
    seconds: float = 0.0
    with_reference: int = 0
    capped: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    def __post_init__(self) -> None:
        self.set_aside = Counter(self.set_aside)

    @property
    def hours(self) -> float:
        """Hours of labelled audio."""
        return self.seconds / 3600

    @property
    def real_time_factor(self) -> float | None:
        """Time taken by length of the audio; below 1 is faster than real time. None without audio."""
        return self.elapsed_s / self.seconds if self.seconds else None

    def add(self, label: Label, reference: Any) -> None:
        """Count a labelled row."""
        self.labelled += 1
        self.seconds += label["duration_s"]
        self.capped += label["whisper_capped"]
        self.with_reference += bool(reference)

    def add_report(self, other: LabelReport) -> None:
        """Count all of another report."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers and dictionaries."""
        factor = self.real_time_factor
        return {**asdict(self), "set_aside": dict(self.set_aside), "hours": self.hours, "real_time_factor": factor}

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, document: str) -> LabelReport:
        """Return the report that `to_json` wrote."""
        values = json.loads(document)
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})

    def __str__(self) -> str:
        factor = "" if self.real_time_factor is None else f", real-time factor {self.real_time_factor:.3f}"
        lines = [f"labelled {self.labelled:,} recordings, {self.hours:,.2f} h, in {self.elapsed_s:,.0f} s{factor}"]
        if self.capped:
            lines.append(f"{self.capped:,} labels were cut off at the length limit")
        lines += [f"set aside {count:,}: {reason}" for reason, count in self.set_aside.most_common()]
        return "\n".join(lines)


def label_of(transcript: Any) -> Label:
    """Return the columns of a `Transcript`."""
    return {name: getattr(transcript, field) for name, field in _FIELDS.items()}


def label_features(features: Features, *, prompts: bool) -> Features:
    """Return the columns that are added to others: ``duration_s`` only if they lack it, prompts if asked for."""
    added = {name: kind for name, kind in LABEL_FEATURES.items() if name != "duration_s" or name not in features}
    return Features({**added, **(_PROMPT_FEATURES if prompts else {})})


def without_labels(data: DatasetT, *, prompts: bool) -> DatasetT:
    """Return a data set without the columns of an earlier labelling, which are to be replaced.

    Args:
        data: A ``Dataset`` or an ``IterableDataset``.
        prompts: Whether there will be prompts, too.
    """
    columns = data.column_names or []  # type: ignore[attr-defined]
    added = label_features(Features(dict.fromkeys(columns, Value("null"))), prompts=prompts)
    if replaced := [name for name in added if name in columns]:
        logger.warning("the columns %s of the dataset are replaced", replaced)
        return data.remove_columns(replaced)  # type: ignore[attr-defined,no-any-return]
    return data


def join_labels(data: Dataset, labels: Sequence[Label | None], prompts: list[list[int]] | None) -> Dataset:
    """Return the rows that have a label, with the columns of it.

    Args:
        data: Rows, without the columns of an earlier labelling.
        labels: A label or None for each row.
        prompts: Ids for ``whisper_prompt``, for each row.
    """
    features = label_features(data.features, prompts=prompts is not None)
    columns: dict[str, Any] = {
        name: [label and label[name] for label in labels] for name in features if name in _FIELDS
    }
    if prompts is not None:
        columns["whisper_prompt"] = prompts
    if not len(data):  # datasets joins no columns to nothing
        every = Features({**data.features, **features})
        return Dataset.from_dict({name: [] for name in every}, every)
    labelled = concatenate_datasets([data, Dataset.from_dict(columns, features)], axis=1)
    kept = [index for index, label in enumerate(labels) if label is not None]
    return labelled if len(kept) == len(labelled) else labelled.select(kept)


def previous_texts(
    labels: Iterable[Label | None], speakers: Iterable[Any], text_tokens: Callable[[list[int]], list[int]]
) -> list[list[int]]:
    """Return the text that the same speaker said in the row before, as tokens; nothing if another did.

    Args:
        labels: A label or None for each row.
        speakers: Who spoke, and in which recording; None if unknown. For each row.
        text_tokens: Takes the timestamps out of tokens.
    """
    prompts, spoken, last_speaker = [], list[int](), None
    for label, speaker in zip(labels, speakers, strict=True):
        prompts.append(spoken if speaker is not None and speaker == last_speaker else [])
        spoken = [] if label is None else text_tokens(label["whisper_tokens"])
        last_speaker = speaker
    return prompts

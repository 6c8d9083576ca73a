"""Pseudo-labels: a teacher's transcripts of a data set, as columns beside the recordings."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from datasets.utils import tqdm
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import AudioError, undecoded
from distilwhisper.caching import StateRecorder, training_collator
from distilwhisper.collator import Sample
from distilwhisper.transcription import OnBatch, Transcriber
from distilwhisper.transcripts import Transcript

logger = logging.getLogger(__name__)

DatasetT = TypeVar("DatasetT", Dataset, DatasetDict)

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
class LabelReport:
    """What became of a data set; ``print(report)`` says it in words.

    Attributes:
        labelled: Rows with a label.
        seconds: Length of their recordings.
        with_reference: Labelled rows that have a reference transcript, which the WER filter needs.
        capped: Labels that the length limit cut off.
        set_aside: Rows without a label, by reason.
        elapsed_s: Time taken.
    """

    labelled: int = 0
    seconds: float = 0.0
    with_reference: int = 0
    capped: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    @property
    def hours(self) -> float:
        """Hours of labelled audio."""
        return self.seconds / 3600

    @property
    def real_time_factor(self) -> float | None:
        """Time taken by length of the audio; below 1 is faster than real time. None without audio."""
        return self.elapsed_s / self.seconds if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers and dictionaries."""
        factor = self.real_time_factor
        return {**asdict(self), "set_aside": dict(self.set_aside), "hours": self.hours, "real_time_factor": factor}

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        factor = "" if self.real_time_factor is None else f", real-time factor {self.real_time_factor:.3f}"
        lines = [f"labelled {self.labelled:,} recordings, {self.hours:,.2f} h, in {self.elapsed_s:,.0f} s{factor}"]
        if self.capped:
            lines.append(f"{self.capped:,} labels were cut off at the length limit")
        lines += [f"set aside {count:,}: {reason}" for reason, count in self.set_aside.most_common()]
        return "\n".join(lines)


class PseudoLabeler:
    """Transcribes a data set with a teacher (paper, section 3.3: sequence-level distillation).

    Labels are the teacher's own tokens, whatever their length: one that hits the decoder's limit is marked
    (``whisper_capped``), not closed. A recording that cannot be used is set aside with its reason.

    Args:
        model: The teacher, or the path or Hub id of one.
        processor: Its processor; by default loaded from where the teacher came from.
        language: Code, name or token; by default detected, recording by recording.
        task: ``transcribe`` or ``translate``.
        return_timestamps: Label with timestamps.
        num_beams: 1 is greedy.
        batch_size: Recordings at a time.
        **options: ``max_new_tokens``, ``dtype``, ``device`` and what else
            :class:`~distilwhisper.transcription.Transcriber` takes. Recordings longer than the window are set aside,
            unless ``long_form`` says otherwise.

    Attributes:
        set_aside: After :meth:`label`, the rows without a label: ``index``, ``id``, ``reason``, ``message``, and
            ``split`` for a ``DatasetDict``.
        report: After :meth:`label`, the counts.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration | str | Path,
        processor: WhisperProcessor | None = None,
        *,
        language: str | None = None,
        task: str = "transcribe",
        return_timestamps: bool = False,
        num_beams: int = 1,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        self.transcriber = Transcriber(
            model,
            processor,
            language=language,
            task=task,
            return_timestamps=return_timestamps,
            num_beams=num_beams,
            batch_size=batch_size,
            **{"long_form": None, **options},
        )
        self.set_aside: list[dict[str, Any]] = []
        self.report = LabelReport()

    def label(
        self,
        dataset: DatasetT,
        output_dir: str | Path | None = None,
        *,
        audio_column: str = "audio",
        text_column: str = "text",
        id_column: str | None = None,
        speaker_column: str | None = None,
        num_workers: int = 0,
        cache_dir: str | Path | None = None,
        encoder_dtype: str = "model",
    ) -> DatasetT:
        """Label a data set.

        Args:
            dataset: A ``Dataset``, or a ``DatasetDict`` of them.
            output_dir: Where to save the result (``load_from_disk`` reads it), ``set_aside.jsonl`` and
                ``report.json``; default nowhere.
            audio_column: Column of the recordings.
            text_column: Column of the reference transcripts, which need not exist.
            id_column: Column that names rows that are set aside; default ``id``, where there is one.
            speaker_column: Column of speakers. With it, rows get ``whisper_prompt``: the text tokens of the
                row before, where that has the same speaker and a label. Rows of a speaker should be in order.
            num_workers: Threads that read recordings while the model runs.
            cache_dir: Directory for the encoder's output and the teacher's hidden states on the labels, which the
                training then need not compute (``state_cache``); default nowhere.
            encoder_dtype: Form of the encoder's output there: ``model``, as computed, or ``int8``.

        Returns:
            The rows that got a label, in order, with all their columns and those of ``LABEL_FEATURES``;
            ``duration_s`` only if they did not have it.

        Raises:
            TypeError: If the data set is neither of the two.
            ValueError: If a column is missing.
        """
        if not isinstance(dataset, (Dataset, DatasetDict)):
            raise TypeError(
                f"a {type(dataset).__name__} cannot be labelled; pass a Dataset or DatasetDict "
                "(streaming is not supported yet: load without streaming=True)"
            )
        names = _Names(audio_column, text_column, id_column, speaker_column)
        self.set_aside, self.report = [], LabelReport()
        started = time.perf_counter()
        recorder = None
        if cache_dir is not None:
            collator = training_collator(self.transcriber, audio_column=audio_column)
            recorder = StateRecorder(
                self.transcriber, cache_dir, collator, encoder_dtype=encoder_dtype, num_workers=num_workers
            )
        if isinstance(dataset, DatasetDict):
            parts = {split: self._label(part, names, num_workers, recorder, split) for split, part in dataset.items()}
            labelled = DatasetDict(parts)
        else:
            labelled = self._label(dataset, names, num_workers, recorder)
        self.report.elapsed_s = time.perf_counter() - started
        logger.info("%s", self.report)
        if output_dir is not None:
            labelled.save_to_disk(output_dir)
            problems = "".join(
                json.dumps(problem, ensure_ascii=False, default=str) + "\n" for problem in self.set_aside
            )
            Path(output_dir, "set_aside.jsonl").write_text(problems, encoding="utf-8")
            Path(output_dir, "report.json").write_text(self.report.to_json() + "\n", encoding="utf-8")
        return labelled

    def label_rows(
        self, rows: Iterable[tuple[int, Any]], *, num_workers: int = 0, on_batch: OnBatch | None = None
    ) -> Iterator[tuple[int, Transcript | AudioError]]:
        """Label a stream of numbered recordings.

        Args:
            rows: Pairs of a number and anything :func:`~distilwhisper.audio.load_audio` reads.
            num_workers: Threads that read recordings while the model runs.
            on_batch: Called with numbers, labels and encoder outputs of each batch.

        Yields:
            Number and label, or number and problem; each number once, not in order.
        """
        return self.transcriber.transcribe_many(rows, num_workers=num_workers, on_batch=on_batch)

    def _label(
        self,
        dataset: Dataset,
        names: _Names,
        num_workers: int,
        recorder: StateRecorder | None,
        split: str | None = None,
    ) -> Dataset:
        data = undecoded(dataset, names.audio).with_format(None)
        names.check(data)
        recordings = enumerate(row[names.audio] for row in data.select_columns(names.audio))
        labels: list[Transcript | None] = [None] * len(data)
        problems: dict[int, AudioError] = {}

        def record(indices: Sequence[int], transcripts: list[Transcript], states: Tensor) -> None:
            labelled = zip(indices, transcripts, strict=True)
            if recorder is not None:
                recorder.record([Sample({**data[i], **_columns(label)}, i) for i, label in labelled], states)

        with tqdm(total=len(data), desc=split or "pseudo-labels", unit="clip") as progress:
            for index, result in self.label_rows(recordings, num_workers=num_workers, on_batch=record):
                if isinstance(result, AudioError):
                    problems[index] = result
                else:
                    labels[index] = result
                progress.update()
        for index, problem in sorted(problems.items()):
            where = {"index": index, "id": names.identify(data, index)} | ({"split": split} if split else {})
            self.set_aside.append({**where, "reason": problem.reason, "message": str(problem)})
        self._count(data, labels, names.text)
        self.report.set_aside.update(problem.reason for problem in problems.values())
        prompts = self._prompts(labels, data[names.speaker]) if names.speaker else None
        result = _with_labels(data, labels, prompts)
        if recorder is not None:
            recorder.record_all(result)  # sequences with prompts, which take the label of the row before
            logger.info("%s", recorder.report)
        return result

    def _prompts(self, labels: Sequence[Transcript | None], speakers: Iterable[Any]) -> list[list[int]]:
        """Return the text that the same speaker said in the row before, as tokens; nothing if another did."""
        prompts, spoken, last_speaker = [], list[int](), None
        for label, speaker in zip(labels, speakers, strict=True):
            prompts.append(spoken if speaker is not None and speaker == last_speaker else [])
            spoken = [] if label is None else self.transcriber.tokens.without_timestamps(label.tokens)
            last_speaker = speaker
        return prompts

    def _count(self, data: Dataset, labels: Sequence[Transcript | None], text_column: str) -> None:
        texts = data[text_column] if text_column in data.column_names else [None] * len(data)
        for label, text in zip(labels, texts, strict=True):
            if label is not None:
                self.report.labelled += 1
                self.report.seconds += label.duration_s
                self.report.capped += label.capped
                self.report.with_reference += bool(text)


class _Names(NamedTuple):
    """The columns of a data set."""

    audio: str
    text: str
    id: str | None
    speaker: str | None

    def check(self, data: Dataset) -> None:
        for name in (self.id, self.speaker):
            if name is not None and name not in data.column_names:
                raise ValueError(f"the dataset has no column {name!r}; it has {data.column_names}")

    def identify(self, data: Dataset, index: int) -> Any:
        name = self.id or "id"
        return data[name][index] if name in data.column_names else index


def _columns(label: Transcript) -> dict[str, Any]:
    return {name: getattr(label, _FIELDS[name]) for name in LABEL_FEATURES}


def _with_labels(data: Dataset, labels: Sequence[Transcript | None], prompts: list[list[int]] | None) -> Dataset:
    """Return the rows that have a label, with the columns of it."""
    features = {
        name: kind for name, kind in LABEL_FEATURES.items() if name != "duration_s" or name not in data.features
    }
    columns: dict[str, list[Any]] = {
        name: [label and getattr(label, _FIELDS[name]) for label in labels] for name in features
    }
    if prompts is not None:
        features, columns = {**features, **_PROMPT_FEATURES}, {**columns, "whisper_prompt": prompts}
    if replaced := [name for name in columns if name in data.column_names]:
        logger.warning("the columns %s of the dataset are replaced", replaced)
        data = data.remove_columns(replaced)
    if not len(data):  # datasets joins no columns to nothing
        return Dataset.from_dict(
            {name: [] for name in (*data.features, *features)}, Features({**data.features, **features})
        )
    labelled = concatenate_datasets([data, Dataset.from_dict(columns, Features(features))], axis=1)
    kept = [index for index, label in enumerate(labels) if label is not None]
    return labelled if len(kept) == len(labelled) else labelled.select(kept)

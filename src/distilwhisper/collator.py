"""From rows of a data set to the tensors of a training or evaluation step."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distilwhisper.audio import AudioError, Samples, load_audio
from distilwhisper.labels import IGNORE_INDEX
from distilwhisper.normalizers import UNSPACED_LANGUAGES
from distilwhisper.spectrograms import log_mel
from distilwhisper.tokens import LONGEST_FRAME, WhisperTokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A row on its way to the collator.

    Attributes:
        row: The columns.
        index: Its position in the data set, its name in random draws and messages if it has no ``id``.
        epoch: The pass over the data, for draws that change from epoch to epoch.
        evaluation: Whether the target is the reference text and nothing is random.
    """

    row: Mapping[str, Any]
    index: int = 0
    epoch: int = 0
    evaluation: bool = False

    @property
    def key(self) -> str:
        """The name of the sample: its ``id``, else its index."""
        identity = self.row.get("id")
        return str(self.index if identity is None else identity)


class UnusableLabelError(ValueError):
    """A label that cannot be trained on; ``reason`` says why in a few words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, for the pickles of data loader workers
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class Label(NamedTuple):
    """What a row says should be written: token ids of text and timestamps, and the prefix they belong to."""

    ids: list[int]
    language: str | None
    task: str | None
    complete: bool


class DataCollatorForDistillation:
    """Reads audio, makes log-mel features, and builds decoder inputs and labels.

    A sequence is ``[<|startofprev|> previous text] <|startoftranscript|> language task [<|notimestamps|>] text
    <|endoftext|>``. Labels cover what follows ``<|startoftranscript|>``; prompt, start and padding are ignored. A label
    that was cut off at the teacher's length limit gets no ``<|endoftext|>``, so that the student does not learn to stop
    early.

    Timestamps and prompts are drawn from ``(seed, epoch, sample)``: anew each epoch, the same after a resume, whatever
    the number of workers and processes.

    Args:
        processor: A ``WhisperProcessor``.
        language: Language of rows that do not say theirs (column ``whisper_language``, or a label with special tokens).
            Default: the tokenizer's language, else English, said in the log.
        task: ``transcribe`` or ``translate``, likewise.
        timestamp_probability: Share of the samples with timestamps that keep them.
        condition_on_prev_probability: Share of the samples with previous text that are prompted with it.
        max_label_length: Longest sequence, in tokens (448 for the published models).
        multilingual: Whether prefixes name language and task; default: by the vocabulary.
        audio_column: Column of the recordings.
        transcript_column: Column of the pseudo-labels, clean or with special and timestamp tokens.
        text_column: Column of the reference transcripts; the target of evaluation samples, and of rows without a label.
        prompt_column: Column of previous text, as token ids or text; ``condition_on_prev`` of the published data sets
            is read too.
        leading_space: Begin plain text with a space, as Whisper itself writes it, in languages that use spaces. Off by
            default, as in Transformers' own fine-tuning; labels with token ids keep theirs in any case.
        pad_to_multiple_of: Round the length of the label rows up.
        window_s: Length of audio that the model takes, in seconds; default: the feature extractor's.
        seed: Seed of the random draws.

    Attributes:
        cached_inputs: A ``CachedInputs``, to read what the models would make of training samples, not the recordings.
    """

    def __init__(
        self,
        processor: Any,
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamp_probability: float = 0.5,
        condition_on_prev_probability: float = 0.2,
        max_label_length: int = 448,
        multilingual: bool | None = None,
        audio_column: str = "audio",
        transcript_column: str = "whisper_transcript",
        text_column: str = "text",
        prompt_column: str = "whisper_prompt",
        leading_space: bool = False,
        pad_to_multiple_of: int = 1,
        window_s: float | None = None,
        seed: int = 0,
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokens = WhisperTokens.from_tokenizer(self.tokenizer, multilingual=multilingual)
        self.language = language or getattr(self.tokenizer, "language", None)
        self.task = task
        self.timestamp_probability = timestamp_probability
        self.condition_on_prev_probability = condition_on_prev_probability
        self.max_label_length = max_label_length
        self.audio_column, self.transcript_column = audio_column, transcript_column
        self.text_column, self.prompt_column = text_column, prompt_column
        self.leading_space = leading_space
        self.pad_to_multiple_of = pad_to_multiple_of
        self.window_s = processor.feature_extractor.chunk_length if window_s is None else window_s
        self.seed = seed
        self.cached_inputs: Any = None

    def __call__(self, samples: Sequence[Sample | Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the batch.

        Args:
            samples: Rows, or ``Sample`` objects, which carry epoch and index along.

        Returns:
            ``input_features`` ``[batch, mels, frames]`` (or what ``cached_inputs`` gives), ``decoder_input_ids``
            ``[batch, tokens]``, ``labels`` ``[batch, tokens]`` (padded with -100) and ``label_rows``, the positions of
            labels among the flattened tokens; for evaluation also
            ``prefix_ids`` ``[batch, prefix]``, from which to generate, ``reference_ids`` ``[batch, text]``, the
            untruncated reference (padded with -100), and ``rows`` ``[batch]``, the samples' positions in their set.

        A training sample whose recording cannot be used is left out of the batch and named in the log: one broken file
        does not end a training of days. An evaluation drops nothing.

        Raises:
            ValueError: If a label cannot be used, or a recording in evaluation, or no recording in training; the
                message names the sample.
        """
        wrapped = [
            sample if isinstance(sample, Sample) else Sample(sample, index) for index, sample in enumerate(samples)
        ]
        cached = self.cached_inputs if wrapped and not wrapped[0].evaluation else None
        wrapped, recordings = (cached.load if cached else self._load)(wrapped)
        sequences = [self.sequence(sample) for sample in wrapped]
        length = max(len(ids) for ids, _ in sequences) - 1
        length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        inputs = cached.states(recordings, sequences, length) if cached else self._features(recordings)
        batch = {
            **inputs,
            "decoder_input_ids": _pad([ids[:-1] for ids, _ in sequences], self.tokens.end_of_text, length),
            "labels": _pad([_labels(ids, prompt) for ids, prompt in sequences], IGNORE_INDEX, length),
        }
        batch["label_rows"] = (batch["labels"].flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        if wrapped[0].evaluation:
            references = [self._encode(sample.row[self.text_column] or "") for sample in wrapped]
            batch["reference_ids"] = _pad(references, IGNORE_INDEX)
            batch["prefix_ids"] = torch.tensor(
                [self._prefix(self.label(sample), timestamps=False) for sample in wrapped]
            )
            batch["rows"] = torch.tensor([sample.index for sample in wrapped])
        return batch

    def check_label(self, sample: Sample) -> None:
        """Raise ``UnusableLabelError`` if the sample has no label, or one that is too long for the decoder.

        A token has a byte at least, so most labels need not be tokenised to know that they fit.
        """
        ids, text = sample.row.get("whisper_tokens"), sample.row.get(self.transcript_column)
        if text is not None and max(len(text.encode()), len(ids or ())) + LONGEST_FRAME <= self.max_label_length:
            return
        self.sequence(sample)

    def sequence(self, sample: Sample) -> tuple[list[int], int]:
        """Return the token ids of a sample, prompt and prefix included, and how many of them are the prompt's.

        Raises:
            UnusableLabelError: If the label alone is longer than ``max_label_length``.
        """
        label = self.label(sample)
        keep_timestamps, use_prompt = (False, False) if sample.evaluation else self._draw(sample)
        ids = label.ids
        timestamps = keep_timestamps and any(map(self.tokens.is_timestamp, ids))
        if not timestamps:
            ids = self.tokens.without_timestamps(ids)
        target = (
            self._prefix(label, timestamps=timestamps) + ids + ([self.tokens.end_of_text] if label.complete else [])
        )
        if sample.evaluation:
            target = target[: self.max_label_length]
        if len(target) > self.max_label_length:
            raise UnusableLabelError(
                "label too long",
                f"sample {sample.key!r}: its label has {len(target)} tokens, the model takes {self.max_label_length}; "
                "leave the sample out or cut the recording into shorter ones",
            )
        prompt = self._prompt(sample, len(target), timestamps=timestamps) if use_prompt else []
        return prompt + target, len(prompt)

    def label(self, sample: Sample) -> Label:
        """Return what the row says should be written: its tokens, its transcript, or its text.

        Raises:
            UnusableLabelError: If it says nothing.
        """
        row = sample.row
        said = (row.get("whisper_language"), row.get("whisper_task"))
        if sample.evaluation:
            if self.text_column not in row:
                raise ValueError(f"an evaluation set needs the column {self.text_column!r}; this one has {sorted(row)}")
            return Label(self._encode_text(row[self.text_column] or "", said[0]), *said, complete=True)
        text = row.get(self.transcript_column)
        if self._has_tokens_of(text, row):
            return Label(list(row["whisper_tokens"]), *said, complete=not row.get("whisper_capped"))
        if text is None:
            text = row.get(self.text_column)
        if text is None:
            raise UnusableLabelError(
                "no label",
                f"sample {sample.key!r} has neither {self.transcript_column!r} nor {self.text_column!r}: label "
                f"the data with PseudoLabeler first, or name the right columns (it has {sorted(row)})",
            )
        if "<|" not in text:
            return Label(self._encode_text(text, said[0]), *said, complete=not row.get("whisper_capped"))
        return self._parse(self._encode(text), *said)

    def _has_tokens_of(self, text: str | None, row: Mapping[str, Any]) -> bool:
        # The ids stand for the teacher's transcript: not for one that was edited since, or comes from another column.
        ids = row.get("whisper_tokens")
        if ids is None or text is None:
            return ids is not None
        written = self.tokenizer.decode(self.tokens.without_timestamps(ids), clean_up_tokenization_spaces=False)
        return bool(written.strip() == text.strip())

    def _parse(self, ids: list[int], language: str | None, task: str | None) -> Label:
        # A published label: special tokens, and perhaps timestamps, written out in its text.
        languages = {token: code for code, token in self.tokens.languages.items()}
        tasks = {token: task for task, token in self.tokens.tasks.items()}
        language = language or next((languages[token] for token in ids if token in languages), None)
        task = task or next((tasks[token] for token in ids if token in tasks), None)
        return Label(self.tokens.text_and_timestamps(ids), language, task, complete=True)

    def _prefix(self, label: Label, *, timestamps: bool) -> list[int]:
        language = label.language or self.language
        if language is None and self.tokens.multilingual:
            logger.warning("no language was given: labels that do not say theirs are taken to be English")
            language = self.language = "en"
        return self.tokens.prefix(language, label.task or self.task, timestamps=timestamps)

    def _prompt(self, sample: Sample, target_length: int, *, timestamps: bool) -> list[int]:
        previous = sample.row.get(self.prompt_column)
        if previous is None:
            previous = sample.row.get("condition_on_prev")
        if previous is None or len(previous) == 0:
            return []
        ids = self._encode(previous) if isinstance(previous, str) else list(previous)
        ids = self.tokens.text_and_timestamps(ids)
        if not timestamps:
            ids = self.tokens.without_timestamps(ids)
        # Half of the window at most, and never at the expense of the label: the oldest words go first.
        room = min(self.max_label_length // 2, self.max_label_length - target_length) - 1
        return [self.tokens.start_of_prev, *ids[-room:]] if ids and room > 0 else []

    def _draw(self, sample: Sample) -> tuple[bool, bool]:
        name = zlib.crc32(sample.key.encode())
        timestamps, prompt = np.random.default_rng((self.seed, sample.epoch, name)).random(2)
        return timestamps < self.timestamp_probability, prompt < self.condition_on_prev_probability

    def _load(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Samples]]:
        loaded, recordings = [], []
        message = "the batch is empty"
        for sample in samples:
            try:
                audio = sample.row[self.audio_column]
                recordings.append(load_audio(audio, self._sampling_rate, max_duration_s=self.window_s))
                loaded.append(sample)
            except (AudioError, KeyError) as error:
                message = f"sample {sample.key!r}: no audio from column {self.audio_column!r}: {error}"
                if sample.evaluation or isinstance(error, KeyError):
                    raise ValueError(message) from error
                logger.warning("%s; it is left out", message)
        if not loaded:
            raise ValueError(f"no recording of the batch can be used; the last: {message}")
        return loaded, recordings

    @property
    def _sampling_rate(self) -> int:
        return int(self.processor.feature_extractor.sampling_rate)

    def _features(self, recordings: Sequence[Samples]) -> dict[str, Tensor]:
        window = round(self.window_s * self._sampling_rate)
        return {"input_features": log_mel(self.processor.feature_extractor, recordings, window)}

    def _encode_text(self, text: str, language: str | None) -> list[int]:
        spaced = (language or self.language) not in UNSPACED_LANGUAGES
        return self._encode(" " + text.strip() if self.leading_space and spaced and text.strip() else text)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _labels(ids: list[int], prompt_length: int) -> list[int]:
    # ids[prompt_length] is <|startoftranscript|>: given, never predicted.
    return [IGNORE_INDEX] * prompt_length + ids[prompt_length + 1 :]


def _pad(rows: Sequence[list[int]], value: int, length: int | None = None) -> Tensor:
    length = max(map(len, rows)) if length is None else length
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])

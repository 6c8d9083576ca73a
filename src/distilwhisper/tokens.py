"""Whisper's special tokens, looked up by name.

Positions in ``all_special_ids`` shift as soon as a user adds a token, so nothing here counts from an end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

ENGLISH_ONLY_END_OF_TEXT = 50_256
"""Id of ``<|endoftext|>`` in the ``.en`` vocabulary, whose prefix has neither language nor task."""

TIMESTAMP_STEP_S = 0.02

LONGEST_FRAME = 5
"""Tokens around a label: start, language, task, no-timestamps, end."""


@dataclass(frozen=True)
class WhisperTokens:
    """The ids of the special tokens of one Whisper tokenizer, and the sequences built from them.

    Attributes:
        start_of_transcript: ``<|startoftranscript|>``.
        end_of_text: ``<|endoftext|>``.
        start_of_prev: ``<|startofprev|>``, opens a prompt of previous text.
        no_timestamps: ``<|notimestamps|>``.
        no_speech: ``<|nospeech|>`` (``<|nocaptions|>`` in older checkpoints); None if the tokenizer has neither.
        timestamp_begin: ``<|0.00|>``, the first timestamp.
        timestamp_end: The last timestamp, ``<|30.00|>`` in the published vocabularies.
        tasks: ``transcribe`` and ``translate`` to their ids.
        languages: Language code to id.
        multilingual: Whether the prefix names a language and a task.
    """

    start_of_transcript: int
    end_of_text: int
    start_of_prev: int
    no_timestamps: int
    no_speech: int | None
    timestamp_begin: int
    timestamp_end: int
    tasks: dict[str, int] = field(hash=False)
    languages: dict[str, int] = field(hash=False)
    multilingual: bool

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, multilingual: bool | None = None) -> WhisperTokens:
        """Look the tokens up in a ``WhisperTokenizer``.

        Args:
            tokenizer: A ``WhisperTokenizer`` (slow or fast).
            multilingual: Whether the model names a language and a task in its prefix; by default, whether
                the vocabulary has languages and is not that of the English-only models.

        Raises:
            ValueError: If the tokenizer lacks one of Whisper's special tokens.
        """
        vocabulary: dict[str, int] = tokenizer.get_vocab()

        def look_up(token: str) -> int:
            if token not in vocabulary:
                raise ValueError(
                    f"the tokenizer has no token {token!r}: it is not a Whisper tokenizer, "
                    "or its special tokens were not saved with it"
                )
            return vocabulary[token]

        timestamp_begin, end_of_text = look_up("<|0.00|>"), look_up("<|endoftext|>")
        codes = [code for code in TO_LANGUAGE_CODE.values() if f"<|{code}|>" in vocabulary]
        return cls(
            start_of_transcript=look_up("<|startoftranscript|>"),
            end_of_text=end_of_text,
            start_of_prev=look_up("<|startofprev|>"),
            no_timestamps=look_up("<|notimestamps|>"),
            no_speech=vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>")),
            timestamp_begin=timestamp_begin,
            timestamp_end=_last_timestamp(vocabulary, timestamp_begin),
            tasks={task: look_up(f"<|{task}|>") for task in ("transcribe", "translate")},
            languages={code: vocabulary[f"<|{code}|>"] for code in codes},
            multilingual=(
                bool(codes) and end_of_text != ENGLISH_ONLY_END_OF_TEXT if multilingual is None else multilingual
            ),
        )

    def language_code(self, language: str) -> str:
        """Return the code of a language given by code (``"de"``), name (``"German"``) or token (``"<|de|>"``).

        Raises:
            ValueError: If the model does not know the language.
        """
        name = language.lower().removeprefix("<|").removesuffix("|>")
        code: str = TO_LANGUAGE_CODE.get(name, name)
        if code not in self.languages:
            raise ValueError(f"language {language!r} is unknown to this tokenizer; it has {sorted(self.languages)}")
        return code

    def prefix(self, language: str | None = None, task: str | None = None, *, timestamps: bool = False) -> list[int]:
        """Return the ids that open a transcript: start, language and task (multilingual only), no-timestamps.

        Args:
            language: Code, name or token; required by multilingual models, ignored by English-only ones.
            task: ``transcribe`` (the default) or ``translate``.
            timestamps: Leave ``<|notimestamps|>`` out, so that timestamps follow.

        Raises:
            ValueError: For an unknown language or task, or a multilingual model without a language.
        """
        ids = [self.start_of_transcript]
        if self.multilingual:
            if language is None:
                raise ValueError("a multilingual Whisper needs a language; pass one, for example language='en'")
            task = task or "transcribe"
            if task not in self.tasks:
                raise ValueError(f"task must be one of {sorted(self.tasks)}, not {task!r}")
            ids += [self.languages[self.language_code(language)], self.tasks[task]]
        return ids if timestamps else [*ids, self.no_timestamps]

    def is_timestamp(self, token_id: int) -> bool:
        """Return whether the id is a timestamp; tokens that a user added behind them are not."""
        return self.timestamp_begin <= token_id <= self.timestamp_end

    def without_timestamps(self, token_ids: Iterable[int]) -> list[int]:
        """Return the ids without timestamps."""
        return [token for token in token_ids if not self.is_timestamp(token)]

    def text_and_timestamps(self, token_ids: Sequence[int]) -> list[int]:
        """Return the ids of text and timestamps alone: no prompt, prefix or end, whatever sequence is given.

        This takes every form that ``generate`` has returned over the years and every published label: with or
        without the decoder prompt, the prefix, the end and the padding.
        """
        ids = list(token_ids)
        if self.start_of_transcript in ids:
            ids = ids[len(ids) - ids[::-1].index(self.start_of_transcript) :]
        if self.end_of_text in ids:
            ids = ids[: ids.index(self.end_of_text)]
        return [
            token for token in ids if token < self.end_of_text or token > self.timestamp_end or self.is_timestamp(token)
        ]


def _last_timestamp(vocabulary: dict[str, int], begin: int) -> int:
    last, step = begin, 1
    while vocabulary.get(f"<|{step * TIMESTAMP_STEP_S:.2f}|>") == begin + step:
        last, step = begin + step, step + 1
    return last

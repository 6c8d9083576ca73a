"""Texts and labels of neighbouring clips as those of the clips in one piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distilwhisper.normalizers import UNSPACED_LANGUAGES, language_code
from distilwhisper.tokens import TIMESTAMP_STEP_S, WhisperTokens


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


class LabelJoiner:
    """Joins the columns that ``PseudoLabeler`` writes.

    Args:
        tokenizer: The teacher's ``WhisperTokenizer``.

    Attributes:
        tokens: Its special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens = WhisperTokens.from_tokenizer(tokenizer)

    def join(
        self, rows: Sequence[Mapping[str, Any]], offsets_s: Sequence[float], language: str | None
    ) -> dict[str, Any]:
        """Return the label of clips that were joined.

        Args:
            rows: The label columns of each clip; of one language and task, all with timestamps or none.
            offsets_s: Where each clip begins, in seconds.
            language: Code; tells whether words are parted by spaces.
        """
        labels = [row["whisper_tokens"] for row in rows]
        ids = self.join_tokens(labels, offsets_s, language)
        text = self._decode(self.tokens.without_timestamps(ids)).strip()
        joined: dict[str, Any] = {"whisper_tokens": ids, "whisper_transcript": text}
        if "whisper_capped" in rows[-1]:
            joined["whisper_capped"] = rows[-1]["whisper_capped"]
        if all(row.get("whisper_avg_logprob") is not None for row in rows):
            # A mean over the tokens and the end of text, where there was one.
            counts = [len(label) + (not row.get("whisper_capped")) for label, row in zip(labels, rows, strict=True)]
            sums = [row["whisper_avg_logprob"] * count for row, count in zip(rows, counts, strict=True)]
            joined["whisper_avg_logprob"] = sum(sums) / max(sum(counts), 1)
        for name in ("whisper_no_speech_prob", "whisper_compression_ratio"):  # the worst part decides
            if known := [row[name] for row in rows if row.get(name) is not None]:
                joined[name] = max(known)
        return joined

    def join_tokens(
        self, labels: Sequence[Sequence[int]], offsets_s: Sequence[float], language: str | None = None
    ) -> list[int]:
        """Return the ids of text and timestamps of labels in a row, timestamps shifted; arguments as for `join`."""
        joined: list[int] = []
        for label, offset_s in zip(labels, offsets_s, strict=True):
            steps = round(offset_s / TIMESTAMP_STEP_S)
            ids = self._spaced(label, language) if joined else label
            shifted = [
                min(token + steps, self.tokens.timestamp_end) if self.tokens.is_timestamp(token) else token
                for token in ids
            ]
            if joined and shifted and self.tokens.is_timestamp(shifted[0]) > self.tokens.is_timestamp(joined[-1]):
                joined.append(shifted[0])  # a text without its end ends where the next begins
            joined += shifted
        return joined

    def _spaced(self, label: Sequence[int], language: str | None) -> list[int]:
        """Return a label whose text begins with a space where the language parts words so, else without."""
        ids = list(label)
        is_text = [not self.tokens.is_timestamp(token) for token in ids]
        if True not in is_text:
            return ids
        start = is_text.index(True)
        end = is_text.index(False, start) if False in is_text[start:] else len(ids)
        text = self._decode(ids[start:end])
        wanted = ("" if language in UNSPACED_LANGUAGES else " ") + text.lstrip()
        if text == wanted or not text.strip():
            return ids
        return [*ids[:start], *self.tokenizer(wanted, add_special_tokens=False).input_ids, *ids[end:]]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

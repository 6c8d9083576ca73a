"""Text normalisation before words are compared: Whisper's own normalisers, chosen by language.

The rules are those of the Whisper paper (arXiv 2212.04356, appendix C), as Transformers implements them:
English has the English normaliser; every other language has the Basic one, with three corrections.

* **Marks are kept.** Basic turns every combining mark into a space, which leaves Hindi, Tamil or Thai without
  vowels and cuts Yoruba words in pieces. Here a mark that follows a letter stays. Only the optional points of
  Arabic and Hebrew go, and the Arabic stretching stroke; their words stay whole.
* **Letters are words** in the languages written without spaces (`UNSPACED_LANGUAGES`), as the Whisper paper
  reports them: the word error rate of such a text is its character error rate. A letter is what a reader calls
  one (a grapheme cluster); spaces do not count.
* **Turkish and Azerbaijani have two letters i**: ``I`` is the capital of ``ı`` and ``İ`` that of ``i``.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import resources
from typing import Protocol

UNSPACED_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})
"""Codes of Whisper's languages that are written without spaces between words."""

_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
_OPTIONAL = re.compile("[\u0591-\u05c7\u0640\u064b-\u0652\u0670]")
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
_TWO_LETTERS_I = frozenset({"tr", "az"})

_MEMO_SIZE = 100_000
_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]")
_PARENTHESES = re.compile(r"\([^)]+?\)")
_LOOSE_APOSTROPHE = re.compile(r"'(?<=[\shm]')")  # behind a space, or behind what may be hmm, mm, mhm, uh or um
_PERFECT = re.compile(r"'[ds] (?:been|gone|done|got)\b")
_UNIT = re.compile(r"(?:'[ds] (?=(?:been|gone|done|got)\b)|\S)+")
_WORD = re.compile(r"\w+")
_NUMERIC = re.compile(r"\d|half|^[-+$¢€£]|^(?:st|nd|rd|th|s)\b")
_NUMBERS = re.compile(r"\0\S+(?: \0\S+)*")
_COMMA = re.compile(r"(\d),(\d)")
_PERIOD = re.compile(r"\.([^0-9]|$)")
_ASCII_SYMBOLS = dict.fromkeys(map(ord, set(string.punctuation) - set(".%$")), " ")
_CURRENCY = re.compile(r"[.%$¢€£]")


class Normalizer(Protocol):
    """Any function from text to the form in which its words are compared."""

    def __call__(self, text: str, /) -> str:
        """Return the normalised text."""
        ...


def get_normalizer(language: str | None = None, *, spelling: Mapping[str, str] | None = None) -> Normalizer:
    """Return the normaliser of a language.

    Args:
        language: Code, with or without a region (``"en"``, ``"en-GB"``), name (``"English"``) or token
            (``"<|en|>"``), in any case. None means English: the English-only checkpoints name no language.
        spelling: British to American spellings, for example ``tokenizer.english_spelling_normalizer``; by
            default Whisper's own table. Only the English normaliser uses it.

    Raises:
        ValueError: If the language is neither one of Whisper's names nor a code of two or three letters.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    code = language_code(language)
    if code == "en":
        return EnglishNormalizer(_english_spelling() if spelling is None else spelling)
    basic = BasicTextNormalizer(split_letters=code in UNSPACED_LANGUAGES)
    basic.clean = _remove_symbols
    normalizer: Normalizer = partial(_lower_both_letters_i, basic) if code in _TWO_LETTERS_I else basic
    return normalizer


class EnglishNormalizer:
    """Whisper's English normaliser, character for character, at a fraction of its time.

    Transformers' runs 50 regular expressions and a number parser over each text. All of their work is local: to what
    stands between white space, or to a run of neighbouring number words (digits, currencies, "and", ordinals).
    So a word is cleaned once and its result kept, a run of number words is parsed once and kept, and the rest is
    joining. What is not local is done on the whole text first (brackets, an apostrophe that stands apart) or
    keeps its words together ("he's been"); the rare texts with "half" go to Transformers' own, for "and a half".

    Args:
        spelling: British to American spellings.
    """

    def __init__(self, spelling: Mapping[str, str]) -> None:
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer, remove_symbols_and_diacritics

        self._whisper = EnglishTextNormalizer(spelling)
        self._spelling = spelling
        self._remove_symbols = partial(remove_symbols_and_diacritics, keep=".%$¢€£")
        self._fillers = re.compile(self._whisper.ignore_patterns)
        self._replacers = [  # each looks for a fixed text
            (pattern.replace(r"\b", ""), re.compile(pattern), text) for pattern, text in self._whisper.replacers.items()
        ]
        words = (literal for literal, _, _ in self._replacers if "'" not in literal)
        self._replaced = {*_WORD.findall(self._whisper.ignore_patterns), *words}
        self._words = _Memo(self._clean)
        self._numbers = _Memo(self._parse_numbers)

    def __call__(self, text: str) -> str:
        """Return the normalised text."""
        lowered = text.lower()
        if "<" in lowered or "[" in lowered:
            lowered = _BRACKETS.sub("", lowered)
        if "(" in lowered:
            lowered = _PARENTHESES.sub("", lowered)
        if "\0" in lowered or "\1" in lowered:  # these mark words below
            return str(self._whisper(text))
        normalized = " ".join(filter(None, map(self._words.__getitem__, self._split(lowered))))
        if "\0" in normalized:
            if "half" in normalized:
                return str(self._whisper(text))
            runs = _NUMBERS.sub(self._parse_run, normalized.replace("\1", "\0"))
            normalized = " ".join(runs.split())
        else:
            normalized = normalized.replace("\1", "")
        if not normalized.replace(" ", "").isalnum() and _CURRENCY.search(normalized):
            normalized = re.sub(r"[.$¢€£]([^0-9])", r" \1", normalized)
            normalized = re.sub(r"([^0-9])%", r"\1 ", normalized)
            normalized = re.sub(r"\s+", " ", normalized)
        return normalized

    def _split(self, text: str) -> list[str]:
        """Cut a text where no rule for words looks across."""
        if "'" in text:
            if _LOOSE_APOSTROPHE.search(text):
                text = re.sub(r"\s+'", "'", self._fillers.sub("", text))
            if _PERFECT.search(text):
                return _UNIT.findall(text)
        return text.split()

    def _clean(self, word: str) -> str:
        """Return a word as the rules before the number parser leave it.

        Words that it reads are marked: ``and`` by a one, as it stays what it is without others; others by a zero.
        """
        if "'" in word or not self._replaced.isdisjoint(_WORD.findall(word)):
            word = self._fillers.sub("", word)
            for literal, pattern, replacement in self._replacers:
                if literal in word:
                    word = pattern.sub(replacement, word)
        if not (word.isascii() and word.isalnum()):
            word = _COMMA.sub(r"\1\2", word) if "," in word else word
            word = _PERIOD.sub(r" \1", word) if "." in word else word
            word = word.translate(_ASCII_SYMBOLS) if word.isascii() else self._remove_symbols(word)
        return " ".join(map(self._mark, word.split()))

    def _mark(self, word: str) -> str:
        if word == "and" and word not in self._spelling:
            return f"\1{word}"
        if word in self._whisper.standardize_numbers.words or _NUMERIC.search(word):
            return f"\0{word}"
        return self._spelling.get(word, word)

    def _parse_run(self, run: re.Match[str]) -> str:
        return self._numbers[run[0]]

    def _parse_numbers(self, run: str) -> str:
        words = self._whisper.standardize_numbers(run.replace("\0", "")).split()
        return " ".join(self._spelling.get(word, word) for word in words)


class _Memo(dict[str, str]):
    """Results of a function by argument; emptied when full, so that a corpus of any size takes constant memory."""

    def __init__(self, compute: Callable[[str], str]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, key: str) -> str:
        if len(self) >= _MEMO_SIZE:
            self.clear()
        value = self[key] = self._compute(key)
        return value


def strip_special_tokens(text: str) -> str:
    """Return the words of a stored label: no prompt, no ``<|...|>`` tokens, nothing behind the end of text.

    The published datasets keep all of these in the column ``whisper_transcript``.
    """
    if "<|" not in text:
        return text.strip()
    transcript = text.rpartition("<|startoftranscript|>")[2].partition("<|endoftext|>")[0]
    return _SPECIAL_TOKEN.sub("", transcript).strip()


def is_shouting(text: str) -> bool:
    """Return whether a text has lost its casing: capitals only, in two or more words of two or more letters.

    A lone acronym (``NASA``), initials (``A. B.``) and text in a script without cases are not shouting.
    """
    return text.isupper() and sum(word.isupper() for word in re.findall(r"[^\W\d_]{2,}", text)) >= 2


def language_code(language: str | None) -> str:
    """Return the code of a language given as `get_normalizer` takes it; ``en`` for None.

    Raises:
        ValueError: If the language is neither one of Whisper's names nor a code of two or three letters.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    if language is None:
        return "en"
    name = language.strip().lower().removeprefix("<|").removesuffix("|>")
    code: str = TO_LANGUAGE_CODE.get(name, re.split("[-_]", name)[0])
    if not _LANGUAGE_CODE.fullmatch(code):
        raise ValueError(
            f"unknown language {language!r}; pass a code such as 'en' or one of {sorted(TO_LANGUAGE_CODE)}"
        )
    return code


@cache
def _english_spelling() -> dict[str, str]:
    table = resources.files(__package__).joinpath("data/english_spelling.json").read_text(encoding="utf-8")
    spelling: dict[str, str] = json.loads(table)
    return spelling


def _lower_both_letters_i(normalizer: Normalizer, text: str) -> str:
    return normalizer(text.replace("İ", "i").replace("I\u0307", "i").replace("I", "ı"))


def _remove_symbols(text: str) -> str:
    """Replace symbols, punctuation and stray marks by a space; keep each mark that belongs to a letter."""
    kept: list[str] = []
    in_letter = False
    for character in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(character)
        in_letter = category[0] == "L" or (in_letter and category in ("Mn", "Mc"))
        if not in_letter and category[0] in "MSP":
            kept.append(" ")
        elif not _OPTIONAL.match(character):
            kept.append(character)
    return "".join(kept)

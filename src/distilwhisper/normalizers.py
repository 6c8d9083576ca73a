"""Text normalisation before words are compared: Whisper's own normalisers, chosen by language.

The rules are those of the Whisper paper (arXiv 2212.04356, appendix C), as Transformers implements them:
English has the English normaliser; every other language has the Basic one, with two corrections.

* **Marks are kept.** Basic turns every combining mark into a space, which leaves Hindi, Tamil or Thai without
  vowels and cuts Yoruba words in pieces. Here a mark that follows a letter stays. Only the optional points of
  Arabic and Hebrew go, and their words stay whole.
* **Letters are words** in the languages written without spaces (`UNSPACED_LANGUAGES`), as the Whisper paper
  reports them: the word error rate of such a text is its character error rate.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Protocol

UNSPACED_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my"})
"""Codes of Whisper's languages that are written without spaces between words."""

_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
_OPTIONAL_POINTS = re.compile("[\u0591-\u05c7\u064b-\u0652\u0670]")
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


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
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    code = language_code(language)
    normalizer: Normalizer
    if code == "en":
        normalizer = EnglishTextNormalizer(_english_spelling() if spelling is None else spelling)
    else:
        normalizer = basic = BasicTextNormalizer(split_letters=code in UNSPACED_LANGUAGES)
        basic.clean = _remove_symbols
    return normalizer


def strip_special_tokens(text: str) -> str:
    """Return the words of a stored label: no prompt, no ``<|...|>`` tokens, nothing behind the end of text.

    The published datasets keep all of these in the column ``whisper_transcript``.
    """
    transcript = text.rpartition("<|startoftranscript|>")[2].partition("<|endoftext|>")[0]
    return _SPECIAL_TOKEN.sub("", transcript).strip()


def is_shouting(text: str) -> bool:
    """Return whether a text has lost its casing: capitals only, in two or more words of two or more letters.

    A lone acronym (``NASA``), initials (``A. B.``) and text in a script without cases are not shouting.
    """
    words = re.findall(r"[^\W\d_]{2,}", text)
    return text.isupper() and sum(word.isupper() for word in words) >= 2


def language_code(language: str | None) -> str:
    """Return the code of a language given as :func:`get_normalizer` takes it; ``en`` for None.

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


def _remove_symbols(text: str) -> str:
    """Replace symbols, punctuation and stray marks by a space; keep each mark that belongs to a letter."""
    kept: list[str] = []
    in_letter = False
    for character in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(character)
        in_letter = category[0] == "L" or (in_letter and category in ("Mn", "Mc"))
        if not in_letter and category[0] in "MSP":
            kept.append(" ")
        elif category != "Mn" or not _OPTIONAL_POINTS.match(character):
            kept.append(character)
    return "".join(kept)

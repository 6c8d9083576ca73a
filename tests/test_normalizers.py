import subprocess
import sys
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from distilwhisper.normalizers import get_normalizer, is_shouting, strip_special_tokens

ENGLISH = "It's $20, Mister colour!"


@pytest.mark.parametrize("language", [None, "en", "EN", "english", "English", "<|en|>", "en-GB", "en_us"])
def test_english_has_the_english_normaliser_whether_or_not_and_however_it_is_named(language):
    """Guards F1."""
    assert get_normalizer(language)(ENGLISH) == "it is $20 mister color"


def test_other_languages_have_the_basic_normaliser():
    assert get_normalizer("German")("Es kostet 20 €, [lacht] Herr Müller!") == "es kostet 20 herr müller "


def test_a_given_spelling_table_replaces_the_packaged_one():
    assert get_normalizer("en", spelling={"color": "tint"})("colour color") == "colour tint"


@pytest.mark.parametrize("language", ["englsh", "", "klingon"])
def test_a_language_that_is_no_code_and_no_known_name_is_refused(language):
    with pytest.raises(ValueError, match=f"unknown language '{language}'"):
        get_normalizer(language)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("hi", "मैं हिंदी बोलता हूँ"),
        ("ta", "நான் தமிழ் பேசுகிறேன்"),
        ("bn", "আমি বাংলায় গান গাই"),
        ("yo", "ọ̀rọ̀ àṣẹ̀ṣẹ̀"),
    ],
)
def test_combining_marks_stay_with_their_letters(language, text):
    """Guards F2."""
    assert get_normalizer(language)(f"«{text}»!").split() == text.split()


def test_optional_points_go_without_cutting_the_word():
    assert get_normalizer("ar")("كَتَبَ الوَلَدُ") == "كتب الولد"
    assert get_normalizer("he")("שָׁלוֹם") == "שלום"


def test_a_mark_that_follows_no_letter_is_a_symbol():
    assert get_normalizer("de")("ja \u2764\ufe0f \u0301 nein").split() == ["ja", "nein"]


@pytest.mark.parametrize(("language", "text"), [("zh", "你好。"), ("ja", "こんに"), ("th", "ภาษา"), ("lo", "ພາສາ")])
def test_languages_without_spaces_are_compared_letter_by_letter(language, text):
    """Guards F3: the letters of a text are kept, marks included, and stand apart."""
    normalized = get_normalizer(language)(text)
    assert len(normalized.split()) > 1
    assert normalized.replace(" ", "") == text.rstrip("。")


@given(st.text(max_size=30))
def test_text_without_combining_marks_is_normalised_as_by_whisper(text):
    composed = unicodedata.normalize("NFKC", text.lower())
    assume(not any(unicodedata.category(character)[0] == "M" for character in composed))
    assert get_normalizer("de")(text) == BasicTextNormalizer()(text)


def test_special_tokens_prompts_and_what_follows_the_end_are_stripped():
    label = (
        "<|startofprev|> Earlier words.<|startoftranscript|><|en|><|transcribe|>"
        "<|0.00|> Hello<|1.20|><|1.20|> there.<|2.00|><|endoftext|> padding"
    )
    assert strip_special_tokens(label) == "Hello there."
    assert strip_special_tokens(" a < b | c > d ") == "a < b | c > d"


@pytest.mark.parametrize("text", ["THE CAT SAT.", "HELLO WORLD 20", "ПРИВЕТ МИР", "I SAW MR. O'NEIL"])
def test_text_in_capitals_is_shouting(text):
    assert is_shouting(text)


@pytest.mark.parametrize("text", ["", "20 30", "NASA.", "I", "A. B. C.", "The CAT SAT", "你好 世界", "मैं हिंदी"])
def test_acronyms_initials_numbers_and_caseless_scripts_are_not_shouting(text):
    """Guards F4: caseless text equals its own upper case and must not count as shouting."""
    assert not is_shouting(text)


def test_normalising_does_not_import_torch():
    code = "import sys, distilwhisper.normalizers as n; n.get_normalizer(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""A recording's transcript dealt out to its windows."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper import WERFilter, assign_references
from distilwhisper.references import split_reference

WORDS = st.lists(st.sampled_from("one two three Four, five. - naïve".split()), max_size=12).map(" ".join)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=6))
def test_every_word_goes_to_one_window_in_order(reference, hypotheses):
    shares = split_reference(reference, hypotheses)
    assert len(shares) == len(hypotheses)
    assert " ".join(shares).split() == reference.split()


@given(
    st.text(st.sampled_from("今日は、良い天気"), max_size=20), st.lists(st.text(st.sampled_from("今日良")), min_size=1)
)
def test_every_character_goes_to_one_window_where_words_have_no_spaces(reference, hypotheses):
    assert "".join(split_reference(reference, hypotheses, "ja")) == reference


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_labels_without_errors_get_their_own_words(hypotheses):
    joined = " ".join(hypotheses)
    if len(set(joined.split())) == len(joined.split()):  # a repeated word may stand on either side of a cut
        assert [share.split() for share in split_reference(joined, hypotheses)] == [text.split() for text in hypotheses]


@pytest.mark.parametrize(
    ("hypotheses", "shares"),
    [
        (["the cat sat", "ON THE MAT"], ["The cat sat", "on the mat."]),
        (["the bat sat", "on a mat"], ["The cat sat", "on the mat."]),
        (["the cat", "on the mat"], ["The cat sat", "on the mat."]),  # it stopped early
        (["the cat sat", "", "the mat"], ["The cat sat", "on", "the mat."]),  # nothing was heard
        (["the cat sat and sat", "on the mat"], ["The cat sat", "on the mat."]),
        (["", ""], ["The cat sat on the mat.", ""]),
    ],
)
def test_words_go_to_the_window_that_should_have_heard_them(hypotheses, shares):
    assert split_reference("The cat sat on the mat.", hypotheses) == shares


def test_the_filter_drops_the_one_window_that_is_wrong():
    labels = ["the old captain sold his boat", "two boys ran", "she reads it again", "and so on"]
    windows = Dataset.from_dict({"recording_id": ["a", "a", "a", "b"], "whisper_transcript": labels})
    transcript = "The old captain sold his boat. Two boys ran home, and far. She reads it again."
    judged = assign_references(windows, {"a": transcript})
    assert list(judged["text"]) == [
        "The old captain sold his boat.", "Two boys ran home, and far.", "She reads it again.", None
    ]  # fmt: skip
    wer_filter = WERFilter()
    assert list(wer_filter.filter(judged)["whisper_transcript"]) == [labels[0], labels[2]]
    assert wer_filter.report.reasons["missing_reference"].samples == 1


def test_wrong_input_is_refused():
    windows = Dataset.from_dict({"recording_id": ["a", "b", "a"], "whisper_transcript": ["x", "y", "z"]})
    with pytest.raises(ValueError, match="windows of 'a' do not follow each other"):
        assign_references(windows, {"a": "x"})
    with pytest.raises(ValueError, match="no column 'name'"):
        assign_references(windows, {}, recording_column="name")
    with pytest.raises(ValueError, match="2 words, but no window"):
        split_reference("two words", [])

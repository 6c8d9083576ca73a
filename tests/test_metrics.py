import json
import math
import random

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper.metrics import (
    ErrorCounts,
    count_character_errors,
    count_normalized_errors,
    count_repeated_ngrams,
    count_word_errors,
    part_word_errors,
    word_distance,
    word_error_rate,
)
from distilwhisper.normalizers import get_normalizer

sentences = st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=8).map(" ".join)
pairs = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6)


def test_hits_substitutions_insertions_and_deletions_of_a_pair_worked_out_by_hand():
    counts = count_word_errors("the cat sat on the mat", "oh the cat sit on mat")
    assert counts == ErrorCounts(hits=4, substitutions=1, insertions=1, deletions=1, samples=1)
    assert (counts.reference_words, counts.errors) == (6, 3)
    assert (counts.wer, counts.ser, counts.ier, counts.der) == (3 / 6, 1 / 6, 1 / 6, 1 / 6)


def test_any_white_space_separates_words():
    assert count_word_errors("a\tb\n c", " a  b c ").wer == 0


def test_empty_references_count_insertions():
    """Guards P4: empty references are counted, neither dropped nor fatal."""
    counts = count_word_errors(" ", "thank you")
    assert counts == ErrorCounts(insertions=2, samples=1)
    assert counts.wer == counts.ier == math.inf
    assert counts.der == 0
    assert count_word_errors("", "") == ErrorCounts(samples=1)
    assert count_word_errors("", "").wer == 0
    assert count_word_errors("a b", "") == ErrorCounts(deletions=2, samples=1)


def test_characters_include_the_spaces_between_words():
    assert count_character_errors("ab c", "ab  c") == ErrorCounts(hits=4, samples=1)
    assert count_character_errors("ab c", "abc") == ErrorCounts(hits=3, deletions=1, samples=1)


@given(pairs)
def test_counts_of_pairs_add_up_to_the_counts_of_the_whole(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    total = sum((count_word_errors(*pair) for pair in pairs), ErrorCounts())
    oracle = jiwer.process_words(references, hypotheses)
    assert total == ErrorCounts(oracle.hits, oracle.substitutions, oracle.insertions, oracle.deletions, len(pairs))
    if total.reference_words:
        assert word_error_rate(references, hypotheses) == oracle.wer
        assert math.isclose(total.wer, total.ser + total.ier + total.der)


def test_the_counts_of_a_thousand_random_pairs_are_those_of_jiwer():
    rng = random.Random(0)
    words = "a b c dd ee the cat's sat über 7".split()
    pairs = [[" ".join(rng.choices(words, k=rng.randrange(1, 15))) for _ in range(2)] for _ in range(1_000)]
    total = sum((count_word_errors(*pair) for pair in pairs), ErrorCounts())
    oracle = jiwer.process_words(*map(list, zip(*pairs, strict=True)))
    words = oracle.hits + oracle.substitutions + oracle.deletions
    assert (total.wer, total.ser) == (oracle.wer, oracle.substitutions / words)
    assert (total.ier, total.der) == (oracle.insertions / words, oracle.deletions / words)
    characters = sum((count_character_errors(*pair) for pair in pairs), ErrorCounts())
    assert characters.wer == jiwer.process_characters(*map(list, zip(*pairs, strict=True))).cer


def test_the_rate_of_a_set_is_not_the_mean_of_its_rates():
    assert word_error_rate(["a", "a b c d"], ["b", "a b c d"]) == 1 / 5


def test_a_normaliser_is_applied_to_both_sides():
    assert word_error_rate(["It's Colour"], ["it is color!"], get_normalizer("en")) == 0


def test_a_text_without_letters_and_digits_is_empty_once_normalised():
    assert count_normalized_errors("...", "Yes ♪", get_normalizer("en")) == ErrorCounts(insertions=1, samples=1)
    assert count_normalized_errors("%", " — ", get_normalizer("en")) == ErrorCounts(samples=1)


def test_as_many_hypotheses_as_references_are_needed():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        word_error_rate(["a", "b"], ["a"])


def test_json_has_counts_and_rates_and_no_infinity():
    assert json.loads((ErrorCounts(3, 1, 0, 0, 1)).to_json()) == {
        "hits": 3, "substitutions": 1, "insertions": 0, "deletions": 0, "samples": 1,
        "reference_words": 4, "wer": 0.25, "ier": 0.0, "ser": 0.25, "der": 0.0,
    }  # fmt: skip
    assert json.loads(count_word_errors("", "a").to_json())["wer"] is None


def test_repeated_ngrams_are_counted_over_the_running_text():
    assert count_repeated_ngrams(["a b c d e f"]) == 0
    assert count_repeated_ngrams(["a b a b a", "b a b"], n=5) == 2
    assert count_repeated_ngrams(["one two"], n=5) == 0
    with pytest.raises(ValueError, match="at least 1, not 0"):
        count_repeated_ngrams(["a"], n=0)


@given(st.lists(sentences, min_size=1, max_size=4), sentences)
def test_the_errors_of_the_parts_add_up_to_those_of_the_whole(parts, hypothesis):
    words = [part.split() for part in parts]
    if any(words):
        errors = part_word_errors(words, hypothesis.split())
        assert sum(errors) == count_word_errors(" ".join(parts), hypothesis).errors
        assert all(not count for count, part in zip(errors, words, strict=True) if not part)


def test_errors_belong_to_the_part_in_which_they_were_made():
    parts = ["the cat sat".split(), "on a mat".split(), "it slept".split()]
    assert part_word_errors(parts, "the cat sat on a mat it slept".split()) == [0, 0, 0]
    assert part_word_errors(parts, "oh the cat sat on mat it wept well".split()) == [1, 1, 2]


@given(sentences, sentences)
def test_the_distance_is_the_number_of_errors(reference, hypothesis):
    assert word_distance(reference.split(), hypothesis.split()) == count_word_errors(reference, hypothesis).errors

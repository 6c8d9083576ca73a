import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilwhisper.metrics import ErrorCounts
from distilwhisper.significance import Interval, compare_word_errors, word_error_interval


def utterances(errors, words=10):
    return [ErrorCounts(hits=words - count, substitutions=count, samples=1) for count in errors]


def test_the_interval_has_the_width_that_theory_gives():
    """The mean of 400 utterances with error rates of standard deviation 0.1 has a standard error of 0.005."""
    rng = np.random.default_rng(0)
    errors = rng.integers(0, 2, 400) * 2  # 0 or 2 of 10 words
    interval = word_error_interval(utterances(errors))
    mean = errors.sum() / 4_000
    assert interval.low == pytest.approx(mean - 1.96 * 0.005, abs=0.001)
    assert interval.high == pytest.approx(mean + 1.96 * 0.005, abs=0.001)


def test_an_interval_is_the_same_for_a_seed_and_for_any_size_of_chunks(monkeypatch):
    counts = utterances([0, 1, 5, 2, 0, 0, 3])
    whole = word_error_interval(counts, seed=3)
    assert word_error_interval(counts, seed=3) == whole
    assert word_error_interval(counts, seed=4) != whole
    monkeypatch.setattr("distilwhisper.significance._CHUNK", 7 * 100)
    assert word_error_interval(counts, seed=3) == whole


def test_utterances_without_errors_have_no_width():
    assert word_error_interval(utterances([0] * 9)) == Interval(0.0, 0.0)


def test_the_interval_of_an_average_counts_every_set_the_same():
    small, large = utterances([5] * 3), utterances([1] * 300)
    assert word_error_interval(small, large) == Interval(0.3, 0.3)


def test_kinds_of_errors_have_intervals_of_their_own():
    counts = [ErrorCounts(8, substitutions=1, insertions=3, deletions=1, samples=1)] * 5
    assert [word_error_interval(counts, rate=rate).low for rate in ("ier", "ser", "der")] == [0.3, 0.1, 0.1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: word_error_interval(), "at least one set"),
        (lambda: word_error_interval([ErrorCounts(insertions=1, samples=1)]), "no reference words"),
        (lambda: word_error_interval(utterances([1]), rate="cer"), "wer, ier, ser, der, not 'cer'"),
        (lambda: word_error_interval(utterances([1]), confidence=95), "not 95"),
        (lambda: compare_word_errors(utterances([1]), utterances([1], words=9)), "same utterances"),
    ],
)
def test_what_has_no_interval_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_clear_difference_is_told_from_chance():
    rng = np.random.default_rng(1)
    first = rng.integers(0, 3, 200)
    worse, equal = first + rng.integers(0, 2, 200), rng.permutation(first)
    clear = compare_word_errors(utterances(first), utterances(worse))
    assert clear.difference == pytest.approx((worse - first).sum() / 2_000)
    assert clear.interval.low > 0
    assert max(clear.p_permutation, clear.p_matched_pairs) < 0.001
    chance = compare_word_errors(utterances(first), utterances(equal))
    assert chance.difference == 0
    assert min(chance.p_permutation, chance.p_matched_pairs) > 0.9
    assert chance.interval.low < 0 < chance.interval.high


def test_pairing_sees_what_two_intervals_do_not():
    """Both models make the same many errors, the second one more in each tenth utterance."""
    first = np.random.default_rng(2).integers(0, 9, 200)
    second = first + (np.arange(200) % 10 == 0)
    assert word_error_interval(utterances(first)).high > word_error_interval(utterances(second)).low
    assert compare_word_errors(utterances(first), utterances(second)).p_permutation < 0.001


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_swapping_the_models_swaps_the_sign(pairs):
    first, second = (utterances(errors) for errors in zip(*pairs, strict=True))
    there = compare_word_errors(first, second, resamples=200)
    back = compare_word_errors(second, first, resamples=200)
    assert back.difference == -there.difference
    assert back.p_permutation == there.p_permutation
    assert back.interval.low == pytest.approx(-there.interval.high)


def test_a_few_utterances_have_the_exact_p_of_all_sign_changes():
    """Three differences of one sign: 2 of the 8 assignments are as extreme, so p is 0.25."""
    result = compare_word_errors(utterances([0, 0, 0]), utterances([1, 2, 3]), resamples=20_000)
    assert result.p_permutation == pytest.approx(0.25, abs=0.01)

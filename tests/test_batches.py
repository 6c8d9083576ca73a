from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper.batches import TokenBudget, plan_batches

DURATIONS = st.lists(st.none() | st.floats(0, 30), max_size=60)


@given(DURATIONS, st.integers(1_948, 30_000))
def test_a_token_budget_is_kept_and_filled_and_no_row_is_lost(durations, positions):
    budget = TokenBudget(positions, window=1_500, text=448)
    batches = plan_batches(durations, 16, budget)
    assert sorted(place for batch in batches for place in batch) == list(range(len(durations)))
    lengths = [durations[place] or 0.0 for batch in batches for place in batch]
    assert lengths == sorted(lengths)
    rows = [[budget.of_row(durations[place]) for place in batch] for batch in batches]
    assert all(len(batch) * max(batch) <= positions for batch in rows)
    for batch, following in pairwise(rows):
        assert (len(batch) + 1) * max(*batch, following[0]) > positions


def test_short_recordings_share_larger_batches_than_long_ones():
    sizes = [len(batch) for batch in plan_batches([1.0] * 40 + [30.0] * 40, 16, TokenBudget(16 * 1_950, 1_500, 448))]
    assert (sizes[0], sizes[-2]) == (20, 17)


def test_a_recording_of_unknown_length_counts_as_the_longest():
    budget = TokenBudget(2_000, 1_500, 448)
    assert budget.of_row(None) == budget.of_row(1e9) == 1_948
    assert budget.of_row(2.0) == 1_500 + 5 + 20


def test_a_budget_for_less_than_one_recording_is_refused():
    with pytest.raises(ValueError, match=r"room for one recording, 1,948 .* not 1,000"):
        TokenBudget(1_000, 1_500, 448)


def test_fixed_batches_are_of_like_length():
    assert plan_batches([3.0, 1.0, None, 2.0], 2) == [[2, 1], [3, 0]]

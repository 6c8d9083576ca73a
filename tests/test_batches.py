import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper.batches import Batch, Halving, TokenBudget, plan_batches

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


def test_batches_that_fit_only_one_at_a_time_are_not_halved_further_than_they_must_be():
    """Else a recording that fits would end the run, as its neighbour had the memory."""
    taken, most, lock = 0, [], threading.Lock()
    together = threading.Barrier(2)

    def run(batch):
        nonlocal taken
        with lock:
            taken += len(batch.keys)
            most.append(taken)
            full = taken > 4
        try:
            if len(batch.keys) == 4:
                together.wait(timeout=30)  # the first two run beside each other
            time.sleep(0.01)
            if full:
                torch.empty(2**60, dtype=torch.uint8)
            return [key * 10 for key in batch.keys]
        finally:
            with lock:
                taken -= len(batch.keys)

    halving, batches = Halving(), [Batch([*range(first, first + 4)], [1.0] * 4, torch.zeros(4)) for first in (0, 4)]
    with ThreadPoolExecutor(2) as pool:
        outputs = [*pool.map(lambda batch: halving(run, batch), batches)]
    assert outputs == [[key * 10 for key in batch.keys] for batch in batches]
    assert most == [4, 8, 2, 2]


def test_a_single_recording_that_fits_alone_is_tried_again_alone():
    tries = []

    def run(batch):
        tries.append(batch.keys)
        if len(tries) == 1:
            torch.empty(2**60, dtype=torch.uint8)
        return batch.keys

    assert Halving()(run, Batch([7], [1.0], torch.zeros(1))) == [7]
    assert tries == [[7], [7]]


def test_a_batch_of_nothing_is_not_run():
    assert Halving()(lambda batch: pytest.fail("run"), Batch([], [], torch.empty(0))) == []

"""Threads that read ahead: order, memory, and the cores that they leave to the model."""

import threading

import pytest
import torch

from distilwhisper.threads import prefetched


def test_reading_threads_compute_on_one_core_and_all_others_on_as_many_as_before(two_threads):
    def cores(_: object) -> int:
        (torch.ones(300, 300) @ torch.ones(300, 300)).relu_()
        return torch.get_num_threads()

    elsewhere: list[int] = []
    for found in prefetched(cores, range(8), num_workers=3):
        new = threading.Thread(target=lambda: elsewhere.append(cores(None)))
        new.start()
        new.join()
        assert found == 1
    assert elsewhere == [2] * 8
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("num_workers", "ahead", "most"), [(0, None, 1), (2, None, 3), (2, 5, 6)])
def test_what_is_read_ahead_comes_in_order_and_is_bounded(num_workers, ahead, most):
    taken, inputs = [], iter(range(20))

    def numbers():
        for number in inputs:
            taken.append(number)
            yield number

    for place, output in enumerate(prefetched(lambda number: 10 * number, numbers(), num_workers, ahead=ahead)):
        assert output == 10 * place
        assert len(taken) - place <= most
    assert len(taken) == 20

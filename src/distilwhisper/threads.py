"""Threads that read ahead of a model without getting into its way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")

_SETTING = threading.Lock()


def prefetched(
    prepare: Callable[[InputT], OutputT], inputs: Iterable[InputT], num_workers: int, *, ahead: int | None = None
) -> Iterator[OutputT]:
    """Yield ``prepare(input)`` in order, made by threads a little ahead of their use.

    Args:
        prepare: What the threads do.
        inputs: Read one by one, as they are needed.
        num_workers: Number of threads; 0 for none.
        ahead: How many outputs, and one more, are held in memory; default as many as threads.
    """
    if num_workers == 0:
        yield from map(prepare, inputs)
        return
    with reading_threads(num_workers) as pool:
        waiting: deque[Future[OutputT]] = deque()
        for each in inputs:
            waiting.append(pool.submit(prepare, each))
            if len(waiting) > (num_workers if ahead is None else ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def reading_threads(num_workers: int) -> ThreadPoolExecutor:
    """Return threads for work beside a model, whose tensor operations have one core each.

    A thread that computes on several cores has a team of helpers of its own, and where there are more of those than
    cores OpenMP puts all teams to sleep between any two operations: a model's small operations then take several times
    as long.
    """
    return ThreadPoolExecutor(num_workers, initializer=_compute_on_one_core)


def _compute_on_one_core() -> None:
    import torch

    with _SETTING:
        everywhere = torch.get_num_threads()  # asked first: a thread's first question undoes what it has set
        torch.set_num_threads(1)
        # New threads would begin with that too, unless one of them says otherwise.
        restoring = threading.Thread(target=torch.set_num_threads, args=(everywhere,))
        restoring.start()
        restoring.join()

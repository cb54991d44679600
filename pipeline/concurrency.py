"""Threads and time: map with bounded memory, prefetch one item, act at most once per interval."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

Result = TypeVar("Result")


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """Apply a function to items on several threads and yield the results in order.

    `Executor.map` submits all items at once and so holds all of them in memory. Here at most
    2 * `threads` items are submitted and not yet yielded, so the items may be an endless stream.

    Args:
        function: called on a thread, once per item.
        items: arguments of the calls; consumed step by step.
        threads: calls that run at the same time.

    Raises:
        Exception: what `function` raised, at the place of its result. Calls that have not started
            are canceled.

    >>> list(map_ordered(abs, [-1, 2, -3], threads=2))
    [1, 2, 3]
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield the same items; a thread computes the next item while the caller uses this one.

    Closing the generator waits until the thread is idle. It does not close `items`.

    >>> list(prefetch(iter("ab")))
    ['a', 'b']
    """
    with ThreadPoolExecutor(1) as pool:
        end = object()
        upcoming = pool.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end


class Throttle:
    """Limit an action to once per interval: call the throttle, and act if it returns True.

    Args:
        seconds: length of an interval.
        is_due_at_once: True if the first call returns True; False if the first interval starts
            when the throttle is created.

    >>> is_due = Throttle(3600)
    >>> is_due(), is_due()
    (True, False)
    """

    def __init__(self, seconds: float, *, is_due_at_once: bool = True) -> None:
        self._seconds = seconds
        self._start = float("-inf")
        if not is_due_at_once:
            self.restart()

    def __call__(self) -> bool:
        """Return whether the interval is over, and start the next one if it is."""
        if not self.is_due():
            return False
        self.restart()
        return True

    def is_due(self) -> bool:
        """Return whether the interval is over, without starting the next one."""
        return time.monotonic() - self._start >= self._seconds

    def restart(self) -> None:
        """Start a new interval now."""
        self._start = time.monotonic()

"""Very many items on threads, in order, few of them in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    pass


Item = TypeVar("Item")

Result = TypeVar("Result")


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """Like `map`, with `threads` calls at once.

    `Executor.map` takes all items at once, and so holds a million of them. Here at most twice as
    many as there are threads are begun and not yet handed on; what fails is raised in its place.

    >>> list(map_ordered(abs, [-1, 2, -3], threads=2))
    [1, 2, 3]
    """
    begun: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) >= 2 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; the next one is made while this one is used.

    When it is closed, none is being made any more; the items themselves are not closed.

    >>> list(ahead(iter("ab")))
    ['a', 'b']
    """
    with ThreadPoolExecutor(1) as pool:
        end = object()
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end


def every(seconds: float) -> Callable[[], bool]:
    """Whether it is time again: yes at first, then once per interval."""
    last = -seconds

    def is_due() -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds:
            return False
        last = now
        return True

    return is_due

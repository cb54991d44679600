"""One function over very many items, on threads: results in order, few items in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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

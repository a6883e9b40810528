"""Work on many items in a few threads, for what waits for a disk, the network or a codec."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    stop: threading.Event | None = None,
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Call a function with each item, in threads, and give items and results as they come.

    To be closed (``contextlib.closing``): then no thread outlives the run, also where it breaks.

    Parameters
    ----------
    function
        Called with one item.
    items
        Taken only as they are needed: few are waiting at a time.
    workers
        Number of threads, at least 1.
    stop
        Set when the run is broken off, so that the function can end early.

    Yields
    ------
    (item, future)
        The future is done: ``future.result()`` gives the result, or raises what went wrong.
    """
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running: dict[Future[Result], Item] = {}

        def done(limit: int) -> Iterator[tuple[Item, Future[Result]]]:
            while len(running) > limit:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future

        try:
            for item in items:
                yield from done(2 * workers)
                running[pool.submit(function, item)] = item
            yield from done(0)
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise

"""Work in threads: every item once, few ahead of time, and nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from masksim.data.threads import in_threads


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_comes_back_once_with_its_result(workers: int) -> None:
    with closing(in_threads(lambda n: n * n, range(50), workers)) as done:
        found = {item: future.result() for item, future in done}
    assert found == {n: n * n for n in range(50)}


def test_an_error_is_of_its_item_alone() -> None:
    with closing(in_threads(lambda n: 1 // n, [1, 0, 1], 2)) as done:
        errors = {item: future.exception() for item, future in done}
    assert isinstance(errors[0], ZeroDivisionError)
    assert errors[1] is None


def test_items_are_taken_only_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    with closing(in_threads(lambda n: n, items(), 2)) as done:
        next(done)
        assert len(taken) <= 6


def test_breaking_off_stops_what_runs_and_starts_no_more() -> None:
    stop, started = threading.Event(), list[int]()
    before = set(threading.enumerate())

    def wait(n: int) -> None:
        started.append(n)
        if n:
            assert stop.wait(60)

    with closing(in_threads(wait, range(1000), 2, stop)) as done:
        next(done)
    assert stop.is_set()
    assert len(started) <= 6
    assert set(threading.enumerate()) <= before

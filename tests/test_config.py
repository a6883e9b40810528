"""`masksim.config`: dataclasses from plain values, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from masksim.config import cores, from_plain, read_toml, staged, watched
from masksim.errors import UsageError


@dataclass(frozen=True)
class Inner:
    weight: float = 1.0
    height: float = 1.0


@dataclass(frozen=True)
class Own:
    name: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Own:
        return cls(name=f"own {values['name']}")


@dataclass(frozen=True)
class Config:
    name: str
    count: int = 1
    ratio: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, int] = (1, 2)
    many: tuple[float, ...] = ()
    limit: int | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = Inner(height=3.0)
    own: Own = Own("default")
    anything: Any = None


def test_plain_values_become_what_the_class_says() -> None:
    values = {
        "name": "x",
        "pair": [3, 4],
        "many": [1, 2.5],
        "shares": {"*": 1},
        "inner": {"weight": 2},
        "own": {"name": "y"},
        "limit": None,
        "anything": [1],
    }
    assert from_plain(Config, values, "a test") == Config(
        "x",
        pair=(3, 4),
        many=(1, 2.5),
        shares={"*": 1},
        inner=Inner(2, 3.0),  # what is missing is the field's
        own=Own("own y"),
        anything=[1],
    )


def test_a_number_stays_as_it_was_written() -> None:
    assert type(from_plain(Config, {"name": "x", "ratio": 1}, "a test").ratio) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "nam": 1}, r"unknown keys in the configuration of a test: \['nam'\]"),
        ({}, r"keys are missing in the configuration of a test: \['name'\]"),
        ({"name": 1}, "a test: name must be a text, got 1"),
        ({"name": "x", "count": 1.0}, "count must be a whole number, got 1.0"),
        ({"name": "x", "count": True}, "count must be a whole number"),
        ({"name": "x", "ratio": "1"}, "ratio must be a number, got '1'"),
        ({"name": "x", "ratio": False}, "ratio must be a number"),
        ({"name": "x", "on": 1}, "on must be true or false, got 1"),
        ({"name": "x", "kind": "c"}, r"kind must be one of \['a', 'b'\], got 'c'"),
        ({"name": "x", "pair": [1]}, r"pair must be a list of 2, got \[1\]"),
        ({"name": "x", "pair": 3}, "pair must be a list, got 3"),
        ({"name": "x", "many": ["1"]}, "many must be a number"),
        ({"name": "x", "limit": "1"}, "limit must be a whole number or nothing"),
        ({"name": "x", "shares": 1}, "shares must be a table"),
        ({"name": "x", "shares": {"*": "1"}}, r"shares\.\* must be a number"),
        ({"name": "x", "inner": 1}, "inner must be a table"),
        ({"name": "x", "inner": {"wait": 1}}, "unknown keys in the configuration of a test: inner"),
        ([], "a test must be a table"),
    ],
)
def test_what_does_not_fit_is_refused(values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_plain(Config, values, "a test")


def test_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = [1, 2]\n[b]\nc = 'd'\n", encoding="utf-8")
    assert read_toml(tmp_path / "a.toml") == {"a": [1, 2], "b": {"c": "d"}}
    (tmp_path / "b.toml").write_text("a = ", encoding="utf-8")
    for name in ("b.toml", "missing.toml"):
        with pytest.raises(UsageError, match=rf"cannot read the configuration .*{name}"):
            read_toml(tmp_path / name)


def test_there_is_a_core() -> None:
    assert cores() >= 1


def test_a_progress_of_one_stage() -> None:
    told: list[tuple[str, int, int]] = []
    one = staged(lambda *step: told.append(step), "views")
    assert one is not None
    one(2, 5)
    assert told == [("views", 2, 5)]
    assert staged(None, "views") is None


def test_what_others_do_is_watched() -> None:
    done = iter([0, 3])
    seen: list[tuple[int, int]] = []
    with watched(lambda: next(done), 3, lambda *step: seen.append(step)):
        pass
    assert seen == [(0, 3), (3, 3)]
    with watched(lambda: 1 // 0, 3, None):  # nobody wants to know
        pass


def test_what_a_watcher_raises_comes_after_the_work() -> None:
    worked = []

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watched(lambda: 0, 3, stop):
        worked.append(1)
    assert worked == [1]
    with pytest.raises(ValueError, match="worse"), watched(lambda: 0, 3, stop):
        raise ValueError("worse")

"""Configurations from plain values and TOML files; the progress of a stage, the number of cores."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, TypeAlias, TypeVar, Union

from masksim.errors import UsageError

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""

T = TypeVar("T")

_KINDS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) in (int, float)),
    str: ("a text", lambda value: isinstance(value, str)),
    type(None): ("nothing", lambda value: value is None),
}


def from_plain(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """Make a dataclass of plain values, as JSON and TOML hold them.

    Lists become tuples and tables dataclasses where the class says so; a class that has its own
    ``from_dict`` is made by that. What a table of a dataclass lacks is as in the field's default.
    Numbers stay as they were written.

    Parameters
    ----------
    cls
        A dataclass whose annotations can be resolved where it is defined.
    values
        By field; what is missing takes the field's default.
    what
        What is configured, for messages: ``"the heads"``.

    Raises
    ------
    UsageError
        On an unknown or missing key, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{what} must be a table, got {values!r:.200}")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    if unknown := sorted(str(key) for key in values if key not in fields):
        raise UsageError(f"unknown keys in the configuration of {what}: {unknown}")
    kinds = typing.get_type_hints(cls)
    plain = {
        key: _fitted(kinds[key], _over_default(fields[key], value), f"{what}: {key}")
        for key, value in values.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in plain
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"keys are missing in the configuration of {what}: {missing}")
    return cls(**plain)


def _over_default(field: dataclasses.Field[Any], value: Any) -> Any:
    """Complete a table by the field's default, if that is a dataclass."""
    start = field.default
    if field.default_factory is not dataclasses.MISSING:
        start = field.default_factory()
    if not isinstance(value, Mapping) or not dataclasses.is_dataclass(start):
        return value
    return {one.name: getattr(start, one.name) for one in dataclasses.fields(start)} | {**value}


def _fitted(kind: Any, value: Any, where: str) -> Any:
    """Fit one value to an annotation; see `from_plain`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if kind in _KINDS:
        wanted, fits = _KINDS[kind]
        if not fits(value):
            raise UsageError(f"{where} must be {wanted}, got {value!r:.200}")
        return value
    if origin is Literal:
        if value not in inner:
            raise UsageError(f"{where} must be one of {list(inner)}, got {value!r:.200}")
        return value
    if origin in (Union, types.UnionType):
        for one in inner:
            with suppress(UsageError):
                return _fitted(one, value, where)
        wanted = " or ".join(_named(one) for one in inner)
        raise UsageError(f"{where} must be {wanted}, got {value!r:.200}")
    if origin is tuple:
        return _fitted_tuple(inner, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} must be a table, got {value!r:.200}")
        return {key: _fitted(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    if dataclasses.is_dataclass(kind):
        if isinstance(value, typing.cast(type, kind)):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} must be a table, got {value!r:.200}")
        own = getattr(kind, "from_dict", None)
        return from_plain(typing.cast(Any, kind), value, where) if own is None else own(value)
    raise TypeError(f"{where}: values of {kind} cannot be read")  # a fault of the class


def _named(kind: Any) -> str:
    """Say what is wanted."""
    if kind in _KINDS:
        return _KINDS[kind][0]
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(one) for one in typing.get_args(kind))
    return "a list" if typing.get_origin(kind) is tuple else "a table"


def _fitted_tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where} must be a list, got {value!r:.200}")
    if len(inner) == 2 and inner[1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise UsageError(f"{where} must be a list of {len(inner)}, got {value!r:.200}")
    return tuple(_fitted(kind, one, where) for kind, one in zip(inner, value, strict=True))


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read plain values from a TOML file.

    Raises
    ------
    UsageError
        It cannot be read, or is no TOML.
    """
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
    try:
        values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the configuration {os.fspath(path)}: {error}") from error
    return values


def staged(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    """Give a progress of one stage: called with how much of it is done, and how much there is."""
    return None if progress is None else partial(progress, stage)


@contextmanager
def watched(
    done: Callable[[], int], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[None]:
    """Tell once a second how much is done of what goes on meanwhile, here or in other processes.

    Parameters
    ----------
    done
        Counts it.
    total
        How much there is.
    progress
        Called from a thread; what it raises is raised when the work is over.
    """
    if progress is None:
        yield
        return
    over, raised = Event(), list[BaseException]()

    def tell() -> None:
        try:
            progress(done(), total)
            while not over.wait(1.0):
                progress(done(), total)
            progress(done(), total)
        except BaseException as error:
            raised.append(error)

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if raised:
        raise raised[0]


def cores() -> int:
    """Count the cores that this process may use."""
    with suppress(AttributeError, OSError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Which images a batch is of: folders, globs, lists, object stores -> one plain list of paths.

The order is that of the arguments, and within a folder by name, so that it is the same every time.
Only the paths are kept, as strings: about 200 bytes a file, 200 MB for a million.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

from masksim.data.scan import EXTENSIONS, walk
from masksim.errors import DataError, ImageError, UsageError, extra_missing

SUFFIXES = frozenset(EXTENSIONS) - {".dng"} | {".mpo", ".hif"}
"""Files of a folder that are taken, by the end of their name in lower case: formats that
`masksim.image` reads."""

LISTS = (".txt", ".csv", ".parquet")
"""Files that are lists of images."""

LONGEST = 4096
"""Bytes of the longest path that systems take."""

_LONGEST_LINE = 65536  # characters; a list with a longer line is no list
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # more than one letter: not a Windows drive
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Inputs:
    """The images of a batch.

    Attributes
    ----------
    paths
        Each once, in order; folders that could not be read among them.
    unreadable
        Such a folder to what is wrong with it: its row in the results.
    files
        Lists that were read, which no result may overwrite.
    """

    paths: list[str]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def is_url(path: str) -> bool:
    """Tell whether a path is one of an object store, for fsspec: ``s3://bucket/image.jpg``."""
    return _URL.match(path) is not None


def path_key(path: str) -> str:
    """Return what is equal for two spellings of a path: ``a//b``, ``./a/b`` and ``a/b``.

    ``..`` and links stay: what they lead to can change.
    """
    return path if is_url(path) else str(PurePath(path))


def list_inputs(
    arguments: Sequence[str],
    *,
    recursive: bool = True,
    column: str = "path",
    root: str | os.PathLike[str] | None = None,
) -> Inputs:
    """List the images that arguments of a command line mean.

    Parameters
    ----------
    arguments
        Each is a folder (files whose name ends as in `SUFFIXES` are taken; hidden ones are not;
        linked folders are followed, each real folder once), a glob pattern (every file that
        matches is taken, every folder is listed), a list (`LISTS`; every file is taken), an image,
        a URL for fsspec, or ``-``: a list on stdin.
    recursive
        Whether folders below a folder are entered.
    column
        Of CSV and Parquet lists, where the paths are.
    root
        Folder that relative paths of lists start from; the current one by default.

    Returns
    -------
    Inputs

    Raises
    ------
    UsageError
        An argument means nothing, or a library for it is missing.
    DataError
        A list cannot be read, or is something else (``manifest_invalid``).
    """
    if not arguments:
        raise UsageError("no images given: a folder, a pattern, a list, or - for a list on stdin")
    if list(arguments).count("-") > 1:
        raise UsageError("stdin holds one list: give - once")
    unreadable: dict[str, str] = {}
    seen: set[str] = set()
    paths: list[str] = []
    for argument in arguments:
        for path in _expand(argument, recursive, column, root, unreadable):
            if len(path) > _LONGEST_LINE:
                raise DataError(
                    f"{argument} is not a list of paths: an entry has {len(path)} characters",
                    code="manifest_invalid",
                )
            # A command would take it for an option, a spreadsheet for a formula; not so with ./
            harmless = f"./{path}" if path.startswith(_FORMULA) else path
            if (key := path_key(harmless)) not in seen:
                seen.add(key)
                paths.append(harmless)
    lists = tuple(a for a in arguments if a != "-" and not is_url(a) and _is_list(a))
    return Inputs(paths, unreadable, lists)


def shard(paths: Iterable[str], number: int, count: int) -> list[str]:
    """Return one of `count` parts of `paths`, in their order.

    A path's part comes from a hash of the path as it is written (`path_key`): files that are added
    move no other to another part. Parts are of nearly equal size.

    Parameters
    ----------
    paths
        All of them.
    number
        1..count.
    count
        At least 1.

    Raises
    ------
    UsageError
        There is no such part.
    """
    if not 1 <= number <= count:
        raise UsageError(f"shard {number}/{count}: expected i/n with 1 <= i <= n")
    return [path for path in paths if _hash(path) % count == number - 1]


def _hash(path: str) -> int:
    key = path_key(path).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big")


# --- one argument --------------------------------------------------------------------------------


def _expand(
    argument: str,
    recursive: bool,
    column: str,
    root: str | os.PathLike[str] | None,
    unreadable: dict[str, str],
) -> Iterator[str]:
    if argument == "-":
        if sys.stdin is None:
            raise UsageError("there is no stdin to read a list from")
        yield from _rooted(_lines(sys.stdin.buffer, "stdin"), root)
    elif is_url(argument):
        yield from _remote(argument, recursive)
    elif os.path.isdir(argument):
        yield from _walk(argument, recursive, unreadable)
    elif os.path.lexists(argument):
        if _is_list(argument):
            yield from _rooted(_read_list(argument, column), root)
        else:
            yield argument
    elif glob.has_magic(argument):
        matches = sorted(glob.iglob(argument, recursive=True))
        if not matches:
            raise UsageError(f"no file matches {argument}")
        for match in matches:
            if not os.path.isdir(match):
                yield match
            elif not argument.endswith(("**", "**/")):  # that has matched all below already
                yield from _walk(match, recursive, unreadable)
    else:
        raise UsageError(f"{argument}: no such file or folder, and not a pattern")


def _is_list(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in LISTS


def _rooted(paths: Iterator[str], root: str | os.PathLike[str] | None) -> Iterator[str]:
    if root is None:
        return paths
    base = os.fspath(root)
    return (path if is_url(path) else os.path.join(base, path) for path in paths)


def _wanted(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _walk(folder: str, recursive: bool, unreadable: dict[str, str]) -> Iterator[str]:
    """Yield the images of a folder by name, and folders that cannot be read."""
    problems: list[OSError] = []
    for parent, names in walk(folder, recursive=recursive, onerror=problems.append):
        yield from _problems(problems, unreadable)
        yield from (os.path.join(parent, name) for name in names if _wanted(name))
    yield from _problems(problems, unreadable)


def _problems(problems: list[OSError], unreadable: dict[str, str]) -> Iterator[str]:
    for problem in problems:
        path = str(problem.filename)
        unreadable[path] = f"{path}: the folder cannot be read: {problem.strerror}"
        yield path
    problems.clear()


# --- lists ---------------------------------------------------------------------------------------


def _read_list(path: str, column: str) -> Iterator[str]:
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_column(path, column)
        elif suffix == ".csv":
            with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                try:
                    yield from _csv_column(csv.DictReader(file), path, column)
                except csv.Error as error:
                    raise DataError(
                        f"{path}: not a CSV file: {error}", code="manifest_invalid"
                    ) from error
        else:
            with open(path, "rb") as stream:
                yield from _lines(stream, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", code="not_found") from error


def _lines(stream: Any, name: str) -> Iterator[str]:
    """Yield paths: one a line, or separated by null characters, as `find -print0` writes them."""
    text = stream.read()
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name} is UTF-16: save it as UTF-8", code="manifest_invalid")
    if b"\0\0" in text:  # not as find writes lists, but as in most binary files
        raise DataError(f"{name} is not a list of paths but binary", code="manifest_invalid")
    if text.startswith(b"\xef\xbb\xbf"):
        text = text[3:]
    null = b"\0" in text
    for line in text.split(b"\0" if null else b"\n"):
        if not null and line.endswith(b"\r"):
            line = line[:-1]
        if line:
            yield line.decode("utf-8", "surrogateescape")


def _csv_column(reader: Any, path: str, column: str) -> Iterator[str]:
    if column not in (reader.fieldnames or ()):
        raise DataError(
            f"{path}: no column {column!r} among {reader.fieldnames}", code="manifest_invalid"
        )
    for line in reader:
        if value := line[column]:
            yield str(value)


def _parquet_column(path: str, column: str) -> Iterator[str]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise extra_missing("Parquet", "pyarrow", "parquet") from error
    try:
        file = parquet.ParquetFile(path)
    except ValueError as error:  # all of pyarrow's
        raise DataError(f"{path}: not a Parquet file: {error}", code="manifest_invalid") from error
    with file:
        names = file.schema_arrow.names
        if column not in names:
            raise DataError(
                f"{path}: no column {column!r} among {', '.join(names)}", code="manifest_invalid"
            )
        for batch in file.iter_batches(columns=[column]):
            yield from (str(value) for value in batch.column(0).to_pylist() if value)


# --- object stores -------------------------------------------------------------------------------


def _fsspec() -> Any:
    try:
        return import_module("fsspec")
    except ImportError as error:
        raise extra_missing("a URL", "fsspec", "remote") from error


def _remote(url: str, recursive: bool) -> Iterator[str]:
    core = import_module(f"{_fsspec().__name__}.core")
    try:
        system, path = core.url_to_fs(url)
        if glob.has_magic(path):
            found = sorted(system.glob(path))
        elif system.isdir(path):
            below = sorted(system.find(path, maxdepth=None if recursive else 1))
            found = [name for name in below if _wanted(PurePath(name).name)]
        else:
            found = [path]
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"{url}: cannot be listed: {error}") from error
    yield from (str(system.unstrip_protocol(name)) for name in found)


def open_remote(url: str) -> Any:
    """Open the file of a URL for reading, with fsspec.

    Raises
    ------
    ImageError
        ``not_found`` or ``unreadable``.
    """
    try:
        return _fsspec().open(url, "rb").open()
    except FileNotFoundError as error:
        raise ImageError(f"{url}: no such file", code="not_found") from error
    except (ImportError, OSError, ValueError) as error:
        raise ImageError(f"{url}: cannot be read: {error}", code="unreadable") from error


def same_file(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    """Tell whether two paths lead to one file that is there."""
    try:
        return Path(first).samefile(second)
    except OSError:
        return False

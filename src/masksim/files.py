"""Files that are written whole or not at all, and digests of files."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from masksim.errors import UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_THE_DISK = (*_FULL, errno.EIO)


def cannot_write(path: str | os.PathLike[str], error: OSError) -> UsageError:
    """Say that a file cannot be written, and that nothing written before is lost."""
    hint = ""
    if error.errno in _FULL:
        hint = "; what was written before is whole: free some space and run the same command again"
    return UsageError(f"cannot write {os.fspath(path)}: {error.strerror or error}{hint}")


@contextmanager
def written_whole(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path`, which takes its place when the block has ended without an error.

    Until then, and for good after an error, what was at `path` stays. A link stays a link; a pipe
    or a device is written into. Text is UTF-8.

    Raises
    ------
    UsageError
        It cannot be written: no permission, no space. Other errors of the block are not touched,
        such as that of another file which it reads.
    """
    with _cannot_write(path):
        # A pipe or a device: nothing can be put in its place.
        into = os.path.exists(path) and not os.path.isfile(path)
        target = Path(path if into else os.path.realpath(path))
        # Not by `tempfile`, whose files only their owner may read.
        part = target if into else target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        file = open(part, mode, encoding=None if "b" in mode else "utf-8")  # noqa: SIM115
    try:
        try:
            yield file
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise cannot_write(path, error) from error
            raise
        with _cannot_write(path):
            file.flush()
            if not into:
                os.fsync(file.fileno())
                file.close()  # an open file cannot be moved on Windows
                os.replace(part, target)
    finally:
        with suppress(OSError):  # what could not be written is told already
            file.close()
        if not into:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def _cannot_write(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all, see `written_whole`.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    with written_whole(path) as file:
        file.write(data)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, with its parents.

    Raises
    ------
    UsageError
        It cannot be made, or not be written into.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"cannot write into {os.fspath(path)}: permission denied")


def file_digest(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

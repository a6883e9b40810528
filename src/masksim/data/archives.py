"""Zip and tar archives, unpacked so that nothing lands outside of its folder or fills the disk."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from masksim.config import Progress
from masksim.errors import DataError

_CHUNK = 1 << 18  # bytes read at once


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold: members, bytes of one and of all, and growth over its own size.

    Photographs hardly shrink in an archive, so `max_ratio` (which counts above `ratio_from` bytes)
    is far from any honest one.
    """

    max_members: int = 2_000_000
    max_member_bytes: int = 4 << 30
    max_bytes: int = 1 << 40
    max_ratio: float = 50.0
    ratio_from: int = 64 << 20


class _Budget:
    """Counts the bytes that come out of an archive."""

    def __init__(self, limits: ArchiveLimits, archive: Path) -> None:
        self.limits, self.size, self.total = limits, max(1, archive.stat().st_size), 0

    def add(self, n: int, member: str = "", member_total: int = 0) -> None:
        limits, self.total = self.limits, self.total + n
        text = ""
        if member_total > limits.max_member_bytes:
            text = f"{member}: over {limits.max_member_bytes} bytes"
        elif self.total > limits.max_bytes:
            text = f"the archive unpacks to over {limits.max_bytes} bytes"
        elif self.total > limits.ratio_from and self.total > limits.max_ratio * self.size:
            text = f"the archive grows more than {limits.max_ratio:g} times"
        if text:
            raise DataError(text, code="archive_bomb")


@dataclass(frozen=True)
class _Member:
    """One entry of an archive; `crc` is None in a tar, which has none."""

    name: str
    is_file: bool
    size: int
    crc: int | None
    open: Callable[[], IO[bytes]]


def safe_member(name: str) -> PurePosixPath:
    """Return a relative path that stays below its folder, from an archive, a table or a server.

    Raises
    ------
    DataError
        ``archive_unsafe``: absolute, with a drive, or climbing out with ``..``.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    first = path.parts[0] if path.parts else ""
    if "\0" in name or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", first):
        raise DataError(f"unsafe path {name!r}: it leads out of its folder", code="archive_unsafe")
    return path


def _destination(path: PurePosixPath, mapping: Mapping[str, str]) -> PurePosixPath | None:
    """Where a member goes; None for members outside of the mapped folders and for litter."""
    if "__MACOSX" in path.parts or path.name in (".DS_Store", "Thumbs.db"):
        return None
    for start, goal in mapping.items():
        prefix = PurePosixPath(start)
        if start == "" or prefix == path or prefix in path.parents:
            return PurePosixPath(goal) / path.relative_to(prefix if start else PurePosixPath("."))
    return None


def _zip_members(z: zipfile.ZipFile) -> Iterator[_Member]:
    for info in z.infolist():
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{info.filename}: a link in the archive", code="archive_unsafe")
        if info.flag_bits & 1:
            raise DataError(f"{info.filename}: encrypted", code="archive_unsupported")
        yield _Member(
            info.filename, not info.is_dir(), info.file_size, info.CRC,
            lambda info=info: z.open(info),  # type: ignore[misc]
        )  # fmt: skip


def _tar_members(t: tarfile.TarFile) -> Iterator[_Member]:
    for info in t:
        if not (info.isfile() or info.isdir()):
            kind = "link" if info.issym() or info.islnk() else "device"
            raise DataError(f"{info.name}: a {kind} in the archive", code="archive_unsafe")
        yield _Member(
            info.name, info.isfile(), info.size, None,
            lambda info=info: t.extractfile(info),  # type: ignore[misc, arg-type]
        )  # fmt: skip


@contextmanager
def _planned(
    archive: Path, mapping: Mapping[str, str], limits: ArchiveLimits
) -> Iterator[tuple[Iterable[tuple[_Member, PurePosixPath]], int]]:
    """Open an archive; give its files with their places, and how many there are if that is known.

    The directory of a zip is judged whole before a byte is written. A tar has none: it is judged
    member by member.
    """

    def judged(members: Iterator[_Member]) -> Iterator[tuple[_Member, PurePosixPath]]:
        for count, member in enumerate(members):
            if count >= limits.max_members:
                raise DataError(f"over {count} members in the archive", code="archive_bomb")
            goal = _destination(safe_member(member.name), mapping)
            if member.is_file and goal is not None:
                yield member, goal

    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            plan = list(judged(_zip_members(z)))
            _Budget(limits, archive).add(sum(member.size for member, _ in plan))
            yield plan, len(plan)
    else:
        with tarfile.open(archive) as t:
            yield judged(_tar_members(t)), 0


def _there(target: Path, member: _Member) -> bool:
    """Whether a file of an earlier run is the member, as far as its size and CRC tell."""
    if not target.is_file() or target.stat().st_size != member.size:
        return False
    if member.crc is None:
        return True
    crc = 0
    with open(target, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc == member.crc


def _unpack(member: _Member, target: Path, budget: _Budget) -> None:
    """Write one member beside its place and rename it.

    Not by `masksim.files`, which waits for the disk each time: what a crash may spoil here is
    found by its CRC, or unpacked again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    done = 0
    try:
        with member.open() as source, open(part, "wb") as file:
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                budget.add(len(chunk), member.name, done)
                file.write(chunk)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def extract_archive(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    mapping: Mapping[str, str] | None = None,
    *,
    limits: ArchiveLimits | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Unpack a zip or tar so that nothing lands outside of `folder` and no file is left partial.

    Parameters
    ----------
    archive
        A zip, or a tar, also compressed with gzip, bzip2 or xz.
    folder
        Where the files go; members already there with equal length (and CRC, in a zip) are kept.
    mapping
        Folder in the archive to folder below `folder`, ``""`` being the top of either; members
        outside are left out. Default: everything.
    limits
        Against bombs.
    progress
        Called with (name, members done, members in all); of a tar with 0, for nobody knows.

    Returns
    -------
    list of str
        The files, relative to `folder`.

    Raises
    ------
    DataError
        ``archive_unsafe`` (a path out of the folder, a link, a device), ``archive_bomb``,
        ``archive_invalid`` (no archive, or damaged), ``archive_unsupported`` (encrypted),
        ``archive_layout`` (nothing in it where `mapping` expects it), ``disk``.
    """
    archive, folder = Path(archive), Path(folder)
    mapping = {"": ""} if mapping is None else mapping
    limits = limits or ArchiveLimits()
    written: list[str] = []
    try:
        budget = _Budget(limits, archive)
        with _planned(archive, mapping, limits) as (plan, total):
            for member, goal in plan:
                if not _there(folder / goal, member):
                    _unpack(member, folder / goal, budget)
                written.append(goal.as_posix())
                if progress is not None:
                    progress(f"{archive.name} (unpack)", len(written), total)
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError
    ) as error:  # fmt: skip
        raise DataError(f"{archive.name}: {error}", code="archive_invalid") from error
    except OSError as error:
        raise DataError(f"{archive.name}: {error}", code="disk") from error
    except (NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive.name}: {error}", code="archive_unsupported") from error
    if not written:
        raise DataError(
            f"{archive.name}: none of the folders {', '.join(sorted(mapping))} is in it",
            code="archive_layout",
        )
    return written

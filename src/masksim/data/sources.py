"""The public image sets: where they are, how they are laid out, how to get them.

`load_sources` reads the table ``sources.toml`` beside this file (or one of your own), `fetch` gets
one file over HTTP, `extract_archive` unpacks a zip or tar, and `download_source` does all that one
set needs. A file under its final name is always whole: bytes go to ``NAME.part`` first, are checked
against length and checksum, and only then renamed. A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import base64
import binascii
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import re
import shutil
import stat
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote, unquote, urlsplit

from masksim.errors import DataError, UsageError, extra_missing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import httpx

TABLE = Path(__file__).with_name("sources.toml")
CHUNK = 1 << 18  # bytes read from a file at once
MARK = ".extracted.json"  # beside an archive: what was unpacked from it

Progress = Callable[[str, int, "int | None"], None]  # (file, bytes there, bytes in all or None)
Check = Callable[[bytes], str]  # first 64 KiB of a file -> "" or what is wrong with it


# ---------------------------------------------------------------- the table of sources


@dataclass(frozen=True)
class RemoteFile:
    """One file to download: `name` below the cache, and the addresses to try in turn.

    `checksum` is ``"md5:…"``, ``"sha1:…"`` or ``"sha256:…"``, ``""`` where none is published;
    `checksum_url` is a small text that begins with, or holds, the digest. `extract` maps a folder
    in the archive to a folder under ``data/``; empty for files that are no archive.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: str = ""
    checksum_url: str = ""
    checked: str = ""
    extract: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class UrlTable:
    """A CSV with columns of URLs: ``columns`` maps a column to a folder under ``data/``."""

    columns: Mapping[str, str]
    file: RemoteFile | None = None
    scheme: str = "http://"
    rewrite: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bucket:
    """A public object store listed as JSON pages (``items`` of name, size, md5Hash)."""

    url: str
    download: str
    match: str
    folder: str


@dataclass(frozen=True)
class Folder:
    """One folder of images: generator (``"real"`` for photographs), split, and its groups."""

    path: str
    generator: str
    split: str
    variant: str = ""
    val_percent: int = 0
    group: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One public set of images, as ``sources.toml`` describes it (sizes in bytes, 0: unknown)."""

    name: str
    title: str
    home: str
    licence: str
    roles: tuple[str, ...]
    access: str
    size: int = 0
    licence_url: str = ""
    notes: str = ""
    manual: str = ""
    files: tuple[RemoteFile, ...] = ()
    table: UrlTable | None = None
    bucket: Bucket | None = None
    folders: tuple[Folder, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what `masksim data list --json` shows."""
        return {
            "name": self.name,
            "title": self.title,
            "home": self.home,
            "licence": self.licence,
            "licence_url": self.licence_url,
            "roles": list(self.roles),
            "access": self.access,
            "size": self.size,
            "files": [f.name for f in self.files],
            "urls": [url for f in self.files for url in f.urls]
            + list(self.table.file.urls if self.table and self.table.file else ())
            + ([self.bucket.url] if self.bucket else []),
            "folders": [
                {"path": f.path, "generator": f.generator, "split": f.split} for f in self.folders
            ],
            "notes": self.notes,
            "manual": self.manual,
        }


T = TypeVar("T")


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a TOML table; unknown and missing keys are errors."""
    known = set(getattr(cls, "__dataclass_fields__", {}))
    unknown = sorted(set(values) - known)
    if unknown:
        raise DataError(f"{where}: unknown keys {unknown}", code="sources_invalid")
    fixed = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**fixed)
    except TypeError as error:
        raise DataError(f"{where}: {error}", code="sources_invalid") from error


def _source(name: str, values: Mapping[str, Any]) -> Source:
    left = dict(values)
    where = f"[{name}]"
    files = tuple(_build(RemoteFile, v, f"{where} files") for v in left.pop("files", []))
    folders = tuple(_build(Folder, v, f"{where} folders") for v in left.pop("folders", []))
    table = None
    if "table" in left:
        raw = dict(left.pop("table"))
        of_file = {
            k: raw.pop(k) for k in ("name", "urls", "size", "checksum", "checked") if k in raw
        }
        if of_file:
            raw["file"] = _build(RemoteFile, of_file, f"{where} table")
        table = _build(UrlTable, raw, f"{where} table")
    bucket = None
    if "bucket" in left:
        bucket = _build(Bucket, left.pop("bucket"), f"{where} bucket")
    source = _build(Source, {**left, "name": name}, where)
    for folder in folders:
        if folder.split not in ("train", "val", "test"):
            raise DataError(
                f"{where} {folder.path}: split must be train, val or test, got {folder.split!r}",
                code="sources_invalid",
            )
    for file in files:
        if file.checksum:
            _split_checksum(file.checksum)
    return replace(source, files=files, folders=folders, table=table, bucket=bucket)


def load_sources(path: str | os.PathLike[str] | None = None) -> dict[str, Source]:
    """Read the table of sources.

    Parameters
    ----------
    path
        A TOML table of your own; its sets are added to the built-in ones and replace those of the
        same name. None: the built-in table alone.

    Returns
    -------
    dict of str to Source
        In the order of the table.

    Raises
    ------
    DataError
        ``sources_invalid``: not TOML, an unknown key, a missing one.
    """
    sources: dict[str, Source] = {}
    for table in [TABLE] if path is None else [TABLE, Path(path)]:
        try:
            with open(table, "rb") as f:
                values = tomllib.load(f)
        except OSError as error:
            raise DataError(
                f"cannot read {table.name}: {error.strerror}", code="not_found"
            ) from error
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"{table.name}: {error}", code="sources_invalid") from error
        for name, entry in values.items():
            if not isinstance(entry, dict):
                raise DataError(f"{table.name}: {name} is no table", code="sources_invalid")
            sources[name] = _source(name, entry)
    return sources


def pick_sources(sources: Mapping[str, Source], names: Iterable[str]) -> list[Source]:
    """Return the named sets, ``"all"`` for every one.

    Raises
    ------
    DataError
        ``source_unknown``, with the names there are.
    """
    picked: dict[str, Source] = {}
    for name in names:
        if name == "all":
            picked.update(sources)
        elif name in sources:
            picked[name] = sources[name]
        else:
            raise DataError(
                f"no set named {name!r}; there are: {', '.join(sources)}", code="source_unknown"
            )
    return list(picked.values())


# ---------------------------------------------------------------- one file over HTTP


@dataclass(frozen=True)
class Retry:
    """How often and how long to try: waits grow as ``base * 2^n`` seconds, with jitter.

    `attempts` counts tries in a row that brought no new byte; a connection that drops again and
    again but moves forward is followed to the end. A ``Retry-After`` above `patience` seconds is
    not waited for.
    """

    attempts: int = 6
    base: float = 0.5
    longest: float = 60.0
    patience: float = 300.0


@dataclass(frozen=True)
class Fetched:
    """What became of one file. `status` is ``"downloaded"``, ``"present"`` or ``"failed"``."""

    name: str
    status: str
    path: str
    n_bytes: int = 0
    resumed_from: int = 0
    url: str = ""
    code: str = ""
    message: str = ""


class _PassingError(Exception):
    """A failure that may pass: try again, not before `after` seconds where the server said so."""

    def __init__(self, code: str, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.after = code, after


class _FinalError(Exception):
    """A failure of this address that trying again will not change."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise extra_missing("downloading", "httpx", "data") from error
    return httpx


def http_client(*, timeout: float = 60.0, connections: int = 16) -> httpx.Client:
    """Return a client with the settings of this module (redirects followed, `timeout` seconds).

    Raises
    ------
    UsageError
        The extra ``[data]`` is not installed.
    """
    module = _httpx()
    client = module.Client(
        follow_redirects=True,
        timeout=timeout,
        limits=module.Limits(max_connections=connections, max_keepalive_connections=connections),
        # Compressed transfer would make byte ranges and lengths speak of something else.
        headers={"Accept-Encoding": "identity", "User-Agent": "masksim-data"},
    )
    return cast("httpx.Client", client)


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header: a number or an HTTP date; 0 where it says nothing."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _write_atomic(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def file_digest(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _split_checksum(checksum: str) -> tuple[str, str]:
    algorithm, _, value = checksum.partition(":")
    if algorithm not in ("md5", "sha1", "sha256") or not re.fullmatch("[0-9a-fA-F]+", value):
        raise DataError(
            f"checksum must be md5:…, sha1:… or sha256:…, got {checksum!r}", code="sources_invalid"
        )
    return algorithm, value.lower()


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


def _content_range(value: str | None) -> tuple[int | None, int | None]:
    """First byte and whole length of a Content-Range header, None where not said."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", (value or "").strip())
    if not match:
        return None, None
    first, total = match.groups()
    return (int(first) if first else None), (int(total) if total != "*" else None)


class _Transfer:
    """The state of one download: the partial file, and what is known of the whole."""

    def __init__(self, target: Path, expected: int | None, checksum: str) -> None:
        self.target = target
        self.part = target.with_name(target.name + ".part")
        self.notes = target.with_name(target.name + ".part.json")
        self.expected, self.checksum = expected, checksum
        self.resumed_from = 0
        try:
            self.state = dict(json.loads(self.notes.read_bytes()))
        except (OSError, ValueError):
            self.state = {}

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def restart(self) -> None:
        """Forget the partial file: the bytes first, so that notes never speak of older bytes."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.state = {}

    def remember(self, url: str, headers: Mapping[str, str], total: int | None) -> None:
        self.state = {
            "url": url,
            "etag": headers.get("etag", ""),
            "last_modified": headers.get("last-modified", ""),
            "total": total,
        }
        _write_atomic(self.notes, json.dumps(self.state).encode())

    def validator(self, url: str) -> str | None:
        """Return what proves that the server's file is still the one begun; None: start anew.

        Where a checksum is published the bytes are checked at the end in any case, so an empty
        string (no condition) will do.
        """
        if self.state.get("url") == url:
            etag = str(self.state.get("etag", ""))
            if etag and not etag.startswith("W/"):
                return etag
            if self.state.get("last_modified"):
                return str(self.state["last_modified"])
        return "" if self.checksum else None

    def finish(self, check: Check | None) -> int:
        """Check the partial file and give it its name; a wrong one is removed."""
        size = self.have
        problem: tuple[str, str] | None = None
        if self.expected is not None and size != self.expected:
            problem = "size_mismatch", f"{size} bytes, {self.expected} are published"
        elif self.checksum:
            algorithm, value = _split_checksum(self.checksum)
            actual = file_digest(self.part, algorithm)
            if actual != value:
                problem = "checksum_mismatch", f"{algorithm} is {actual}, published is {value}"
        if problem is None and check is not None:
            with open(self.part, "rb") as f:
                reason = check(f.read(1 << 16))
            if reason:
                problem = "wrong_content", reason
        if problem is not None:
            self.restart()
            raise _FinalError(*problem)
        os.replace(self.part, self.target)
        self.notes.unlink(missing_ok=True)
        return size


def _one_try(
    client: httpx.Client,
    url: str,
    job: _Transfer,
    name: str,
    progress: Progress | None,
    stop: threading.Event,
    max_bytes: int | None,
) -> None:
    """Ask once for what is missing and append it; raise `_PassingError` or `_FinalError`."""
    httpx = _httpx()
    have, headers = job.have, {}
    if have and job.validator(url) is None:
        job.restart()
        have = 0
    total = job.state.get("total")
    if have and total is not None and have >= total:
        if have == total:
            return
        job.restart()
        have = 0
    if have:
        headers["Range"] = f"bytes={have}-"
        if condition := job.validator(url):
            headers["If-Range"] = condition
    try:
        with client.stream("GET", url, headers=headers) as answer:
            status = answer.status_code
            length = answer.headers.get("content-length", "")
            plain = answer.headers.get("content-encoding", "identity") == "identity"
            if status == 206:
                first, total = _content_range(answer.headers.get("content-range"))
                known = job.state.get("total")
                if first != have or (known is not None and total is not None and known != total):
                    job.restart()
                    raise _PassingError("changed", "the server's file changed during the download")
                total = known if total is None else total
            elif status == 200:  # the whole file: ranges are ignored here, or the file changed
                if have:
                    job.restart()
                    have = 0
                total = int(length) if length.isdigit() and plain else None
            elif status == 416:
                _, total = _content_range(answer.headers.get("content-range"))
                if total == have and have:
                    return
                job.restart()
                raise _PassingError("changed", "the server has fewer bytes than were begun")
            elif status in (408, 425, 429) or status >= 500:
                raise _PassingError(
                    f"http_{status}",
                    f"the server answered {status}",
                    _retry_after(answer.headers.get("retry-after")),
                )
            else:
                raise _FinalError(f"http_{status}", f"the server answered {status}")
            if max_bytes is not None and total is not None and total > max_bytes:
                raise _FinalError("too_many_bytes", f"{total} bytes, at most {max_bytes} are taken")
            if job.expected is not None and total is not None and total != job.expected:
                job.restart()
                raise _FinalError("size_mismatch", f"{total} bytes, {job.expected} are published")
            if total is not None and shutil.disk_usage(job.part.parent).free < total - have:
                raise _FinalError("disk_full", f"{total - have} bytes do not fit on the disk")
            if have == 0:
                job.restart()
                job.remember(url, answer.headers, total)
            else:
                job.resumed_from = have
            # No chunk size: pieces of a fixed one would be lost half full when a connection drops.
            pieces = answer.iter_raw() if plain else answer.iter_bytes()
            done = have
            with open(job.part, "ab") as f:
                for piece in pieces:
                    f.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(name, done, total)
                    if max_bytes is not None and done > max_bytes:
                        raise _FinalError("too_many_bytes", f"more than {max_bytes} bytes")
                    if stop.is_set():
                        raise _FinalError("stopped", "stopped")
                f.flush()
                os.fsync(f.fileno())
            if total is not None and done != total:
                raise _PassingError("cut_short", f"{done} of {total} bytes came")
    except httpx.UnsupportedProtocol as error:
        raise _FinalError("bad_url", f"{url}: {error}") from error
    except httpx.InvalidURL as error:
        raise _FinalError("bad_url", f"{url}: {error}") from error
    except httpx.TooManyRedirects as error:
        raise _FinalError("redirects", f"{url}: {error}") from error
    except httpx.HTTPError as error:
        raise _PassingError("connection", f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise _FinalError("disk", f"{job.part.name}: {error.strerror or error}") from error


def fetch(
    file: RemoteFile,
    folder: str | os.PathLike[str],
    *,
    client: httpx.Client,
    retry: Retry | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
    max_bytes: int | None = None,
    stop: threading.Event | None = None,
    sleep: Callable[[float], object] | None = None,
) -> Fetched:
    """Download one file, going on with a partial one, and check it before it gets its name.

    Parameters
    ----------
    file
        Name, addresses, and the size and checksum where published.
    folder
        Where ``file.name`` is written; folders are made.
    client
        From `http_client`; may be shared by threads.
    retry
        Tries and waits; the default is `Retry`.
    progress
        Called with (name, bytes there, bytes in all or None).
    check
        Looks at the first 64 KiB before the file gets its name; returns "" or what is wrong.
    max_bytes
        Refuse more than this.
    stop
        Ends the transfer when set; the partial file stays.
    sleep
        Waits so many seconds between tries; the default wakes up when `stop` is set.

    Returns
    -------
    Fetched
        A failure is a result with a code (``http_404``, ``checksum_mismatch``, ``size_mismatch``,
        ``connection``, ``wrong_content``, …), never an exception: one file of many may be gone.
    """
    retry = retry or Retry()
    stop = stop or threading.Event()
    sleep = sleep or stop.wait
    try:
        target = Path(folder) / safe_member(file.name)
    except DataError as error:
        return Fetched(file.name, "failed", "", code=error.code, message=str(error))
    if target.exists() and (file.size is None or target.stat().st_size == file.size):
        return Fetched(file.name, "present", str(target), target.stat().st_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    jitter = random.Random()
    job = _Transfer(target, file.size, file.checksum)
    problem: tuple[str, str] = ("no_url", "no address is known for this file")
    for url in file.urls:
        barren, spoilt = 0, False
        while not stop.is_set():
            before = job.have
            try:
                _one_try(client, url, job, file.name, progress, stop, max_bytes)
                size = job.finish(check)
                return Fetched(
                    file.name, "downloaded", str(target), size, job.resumed_from, url=url
                )
            except _FinalError as error:
                problem = error.code, f"{url}: {error}"
                # Spoilt bytes may come from a bad resume: once more from the start, then give up.
                if error.code == "too_many_bytes":
                    job.restart()
                if error.code == "checksum_mismatch" and not spoilt:
                    spoilt = True
                    continue
                break
            except _PassingError as error:
                problem = error.code, f"{url}: {error}"
                barren = 0 if job.have > before else barren + 1
                if barren >= retry.attempts or error.after > retry.patience:
                    break
                wait_s = min(retry.longest, retry.base * 2.0**barren) * jitter.uniform(0.5, 1.0)
                sleep(max(wait_s, error.after))
        if stop.is_set():
            problem = "stopped", "stopped"
            break
    left = job.have
    if not left:
        job.restart()
    return Fetched(file.name, "failed", str(target), left, code=problem[0], message=problem[1])


def fetch_all(
    files: Iterable[tuple[RemoteFile, Path]],
    *,
    client: httpx.Client,
    workers: int = 4,
    retry: Retry | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
    max_bytes: int | None = None,
) -> list[Fetched]:
    """Download many files at a time (`workers` of them); results in the order given.

    An interrupt ends the running transfers at once and leaves their partial files to go on with.
    """
    stop = threading.Event()
    results: dict[int, Fetched] = {}
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        running: dict[Future[Fetched], int] = {}

        def collect(limit: int) -> None:
            while len(running) > limit:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future)] = future.result()

        try:
            for index, (file, folder) in enumerate(files):
                collect(4 * workers)
                future = pool.submit(
                    fetch,
                    file,
                    folder,
                    client=client,
                    retry=retry,
                    progress=progress,
                    check=check,
                    max_bytes=max_bytes,
                    stop=stop,
                )
                running[future] = index
            collect(0)
        except BaseException:
            stop.set()
            raise
    return [results[index] for index in sorted(results)]


# ---------------------------------------------------------------- archives


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold: members, bytes of one and of all, and growth over its own size.

    Photographs hardly shrink in an archive, so `max_ratio` (judged above `ratio_from` bytes) is
    far from any honest one.
    """

    max_members: int = 2_000_000
    max_member_bytes: int = 4 << 30
    max_bytes: int = 1 << 40
    max_ratio: float = 50.0
    ratio_from: int = 64 << 20


class _Budget:
    def __init__(self, limits: ArchiveLimits, archive: Path) -> None:
        self.limits, self.size, self.total = limits, max(1, archive.stat().st_size), 0

    def add(self, n: int, member: str, member_total: int) -> None:
        self.total += n
        if member_total > self.limits.max_member_bytes:
            raise DataError(
                f"{member}: over {self.limits.max_member_bytes} bytes", code="archive_bomb"
            )
        if self.total > self.limits.max_bytes:
            raise DataError(
                f"the archive unpacks to over {self.limits.max_bytes} bytes", code="archive_bomb"
            )
        if self.total > self.limits.ratio_from and self.total > self.limits.max_ratio * self.size:
            raise DataError(
                f"the archive grows more than {self.limits.max_ratio:g} times", code="archive_bomb"
            )


def _destination(path: PurePosixPath, mapping: Mapping[str, str]) -> PurePosixPath | None:
    """Where a member goes; None for members outside of the mapped folders and for litter."""
    if "__MACOSX" in path.parts or path.name in (".DS_Store", "Thumbs.db"):
        return None
    for start, goal in mapping.items():
        prefix = PurePosixPath(start)
        if start == "" or prefix == path or prefix in path.parents:
            return PurePosixPath(goal) / path.relative_to(prefix if start else PurePosixPath("."))
    return None


def _unpack_member(read: IO[bytes], target: Path, name: str, budget: _Budget) -> None:
    """Write one member beside its place and rename it; a member already there is kept."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    done = 0
    try:
        with open(temporary, "wb") as f:
            while chunk := read.read(CHUNK):
                done += len(chunk)
                budget.add(len(chunk), name, done)
                f.write(chunk)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _crc_of(path: Path) -> int:
    value = 0
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


def _unpack_zip(
    archive: Path,
    folder: Path,
    mapping: Mapping[str, str],
    limits: ArchiveLimits,
    progress: Progress | None,
) -> list[str]:
    budget = _Budget(limits, archive)
    written: list[str] = []
    with zipfile.ZipFile(archive) as z:
        members = z.infolist()
        if len(members) > limits.max_members:
            raise DataError(f"{len(members)} members in the archive", code="archive_bomb")
        plan = []
        # The directory is judged whole before a byte is written.
        for member in members:
            path = safe_member(member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{member.filename}: a link in the archive", code="archive_unsafe")
            if member.flag_bits & 1:
                raise DataError(f"{member.filename}: encrypted", code="archive_unsupported")
            goal = _destination(path, mapping)
            if not member.is_dir() and goal is not None:
                plan.append((member, goal))
        declared = sum(member.file_size for member, _ in plan)
        _Budget(limits, archive).add(declared, archive.name, 0)
        for member, goal in plan:
            target = folder / goal
            there = target.is_file() and target.stat().st_size == member.file_size
            if not (there and _crc_of(target) == member.CRC):
                with z.open(member) as read:
                    _unpack_member(read, target, member.filename, budget)
            written.append(goal.as_posix())
            if progress is not None:
                progress(f"{archive.name} (unpack)", len(written), len(plan))
    return written


def _unpack_tar(
    archive: Path,
    folder: Path,
    mapping: Mapping[str, str],
    limits: ArchiveLimits,
    progress: Progress | None,
) -> list[str]:
    budget = _Budget(limits, archive)
    written: list[str] = []
    with tarfile.open(archive) as t:
        for count, member in enumerate(t):
            if count >= limits.max_members:
                raise DataError(f"over {count} members in the archive", code="archive_bomb")
            path = safe_member(member.name)
            if member.issym() or member.islnk():
                raise DataError(f"{member.name}: a link in the archive", code="archive_unsafe")
            if not member.isfile() and not member.isdir():
                raise DataError(f"{member.name}: a device in the archive", code="archive_unsafe")
            goal = _destination(path, mapping)
            if not member.isfile() or goal is None:
                continue
            target = folder / goal
            if not (target.is_file() and target.stat().st_size == member.size):
                read = t.extractfile(member)
                if read is not None:
                    with read:
                        _unpack_member(read, target, member.name, budget)
            written.append(goal.as_posix())
            if progress is not None:
                progress(f"{archive.name} (unpack)", len(written), None)
    return written


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
        Called with (name, members done, members in all or None).

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
    try:
        if zipfile.is_zipfile(archive):
            files = _unpack_zip(archive, folder, mapping, limits, progress)
        else:
            files = _unpack_tar(archive, folder, mapping, limits, progress)
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError
    ) as error:  # fmt: skip
        raise DataError(f"{archive.name}: {error}", code="archive_invalid") from error
    except OSError as error:
        raise DataError(f"{archive.name}: {error}", code="disk") from error
    except (NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive.name}: {error}", code="archive_unsupported") from error
    if not files:
        raise DataError(
            f"{archive.name}: none of the folders {', '.join(sorted(mapping))} is in it",
            code="archive_layout",
        )
    return files


# ---------------------------------------------------------------- one set


@dataclass(frozen=True)
class SourceReport:
    """What `download_source` got of a set: its files, images unpacked, and what is missing."""

    name: str
    files: tuple[Fetched, ...] = ()
    unpacked: int = 0
    problems: tuple[tuple[str, str, str], ...] = ()  # (file, code, message)

    @property
    def ok(self) -> bool:
        """Whether everything is there."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return the part of `masksim data download --json` that speaks of this set."""
        kinds = [f.status for f in self.files]
        return {
            "set": self.name,
            "ok": self.ok,
            "downloaded": kinds.count("downloaded"),
            "present": kinds.count("present"),
            "failed": len(self.problems),
            "bytes": sum(f.n_bytes for f in self.files if f.status == "downloaded"),
            "unpacked": self.unpacked,
            "problems": [
                {"file": file, "code": code, "message": message}
                for file, code, message in self.problems
            ],
        }


def apply_overrides(source: Source, overrides: Sequence[str]) -> Source:
    """Point a set at other addresses: each override is ``URL`` or ``FILE=URL``.

    A plain URL is for sets with one file, table or bucket; ``FILE=URL`` names one file of several
    (``val2017.zip=https://…``). The address given is the only one tried.

    Raises
    ------
    UsageError
        The set has no such file, or a plain URL where it has several.
    """
    for override in overrides:
        head, separator, tail = override.partition("=")
        named = bool(separator) and "://" not in head
        url = tail if named else override
        if "://" not in url:
            raise UsageError(f"--url must be URL or FILE=URL, got {override!r}")
        names = [f.name for f in source.files]
        if source.table is not None and source.table.file is not None:
            names.append(source.table.file.name)
        if source.bucket is not None:
            names.append("bucket")
        if not named and len(names) == 1:
            head, named = names[0], True
        if not named or head not in names:
            raise UsageError(
                f"{source.name} has {len(names)} files ({', '.join(names) or 'none'}): "
                f"write --url FILE=URL, got {override!r}"
            )
        source = replace(
            source,
            files=tuple(replace(f, urls=(url,)) if f.name == head else f for f in source.files),
        )
        table = source.table
        if table is not None and table.file is not None and table.file.name == head:
            source = replace(source, table=replace(table, file=replace(table.file, urls=(url,))))
        if source.bucket is not None and head == "bucket":
            source = replace(source, bucket=replace(source.bucket, url=url))
    return source


def table_files(table: UrlTable, text: str) -> list[tuple[RemoteFile, str]]:
    """Return the files of a CSV of URLs with their folders under ``data/``.

    Raises
    ------
    DataError
        ``table_invalid``: none of the columns is there.
    """
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
    columns = [c for c in table.columns if c in (reader.fieldnames or [])]
    if not columns:
        raise DataError(
            f"the table has none of the columns {', '.join(table.columns)}", code="table_invalid"
        )
    files: list[tuple[RemoteFile, str]] = []
    taken: set[tuple[str, str]] = set()
    for number, row in enumerate(reader):
        for column in columns:
            url = (row.get(column) or "").strip()
            if not url:
                continue
            if "://" not in url:
                url = table.scheme + url
            urls = [url]
            for old, new in table.rewrite.items():
                if url.startswith(old):
                    urls.insert(0, new + url[len(old) :])
            folder = table.columns[column]
            name = PurePosixPath(unquote(urlsplit(url).path)).name or f"{number:04d}"
            if (folder, name.lower()) in taken:
                name = f"{number:04d}-{name}"
            taken.add((folder, name.lower()))
            files.append((RemoteFile(name, tuple(urls)), folder))
    return files


def bucket_files(bucket: Bucket, client: httpx.Client, retry: Retry) -> list[RemoteFile]:
    """List a public object store, page by page, with size and MD5 of each object.

    Raises
    ------
    DataError
        ``download_failed``: the listing cannot be had or read.
    """
    files: list[RemoteFile] = []
    token = ""
    while True:
        mark = "&" if "?" in bucket.url else "?"
        url = bucket.url + (f"{mark}pageToken={quote(token)}" if token else "")
        page = json.loads(_fetch_text(url, client, retry))
        for item in page.get("items", []):
            match = re.search(bucket.match, item["name"])
            if not match:
                continue
            name = (match.group(1) if match.groups() else match.group(0)).replace("/", "_")
            suffix = PurePosixPath(item["name"]).suffix
            checksum = ""
            if item.get("md5Hash"):
                try:
                    checksum = "md5:" + base64.b64decode(item["md5Hash"]).hex()
                except binascii.Error:
                    checksum = ""
            files.append(
                RemoteFile(
                    name if name.endswith(suffix) else name + suffix,
                    (bucket.download.replace("{name}", quote(item["name"])),),
                    int(item["size"]) if "size" in item else None,
                    checksum,
                )
            )
        token = page.get("nextPageToken", "")
        if not token:
            return files


def _fetch_text(url: str, client: httpx.Client, retry: Retry) -> str:
    """Get a small text (a listing, a checksum), with the same tries as a file."""
    httpx = _httpx()
    jitter = random.Random()
    problem = ""
    for n in range(max(1, retry.attempts)):
        after = 0.0
        try:
            answer = client.get(url)
            if answer.status_code == 200:
                return str(answer.text)
            problem = f"the server answered {answer.status_code}"
            after = _retry_after(answer.headers.get("retry-after"))
            if answer.status_code not in (408, 425, 429) and answer.status_code < 500:
                break
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = f"{type(error).__name__}: {error}"
        if after > retry.patience:
            break
        if n + 1 < retry.attempts:
            time.sleep(max(after, min(retry.longest, retry.base * 2.0**n) * jitter.uniform(0.5, 1)))
    raise DataError(f"{url}: {problem}", code="download_failed")


def _published(file: RemoteFile, client: httpx.Client, retry: Retry) -> RemoteFile:
    """Look up the checksum that is published beside a file, if one is."""
    if file.checksum or not file.checksum_url:
        return file
    text = _fetch_text(file.checksum_url, client, retry)
    for algorithm, length in (("sha256", 64), ("sha1", 40), ("md5", 32)):
        match = re.search(rf"\b[0-9a-fA-F]{{{length}}}\b", text)
        if match:
            return replace(file, checksum=f"{algorithm}:{match.group(0).lower()}")
    raise DataError(f"{file.checksum_url} holds no checksum", code="download_failed")


def _unpacked_before(archive: Path, data: Path, file: RemoteFile) -> int | None:
    """Count of files an earlier run unpacked from this archive and that are all still there."""
    try:
        mark = json.loads((archive.with_name(archive.name + MARK)).read_bytes())
    except (OSError, ValueError):
        return None
    if mark.get("extract") != dict(file.extract) or mark.get("checksum") != file.checksum:
        return None
    files = mark.get("files", [])
    if not files or not all((data / name).is_file() for name in files):
        return None
    return len(files)


def download_source(
    source: Source,
    *,
    data: str | os.PathLike[str] = "data",
    cache: str | os.PathLike[str] = "cache",
    table: str | os.PathLike[str] | None = None,
    workers: int = 4,
    retry: Retry | None = None,
    client: httpx.Client | None = None,
    progress: Progress | None = None,
    check_image: Check | None = None,
    limits: ArchiveLimits | None = None,
    keep_archives: bool = True,
) -> SourceReport:
    """Get one set: its archives into `cache` and unpacked into `data`, or its images one by one.

    Parameters
    ----------
    source
        From `load_sources`, after `apply_overrides`.
    data, cache
        Where images and archives go.
    table
        A local CSV of URLs, for sets whose list comes by a form.
    workers
        Files at a time.
    retry, client, limits
        Defaults of this module where None.
    progress
        Called with (file, bytes there, bytes in all or None).
    check_image
        Looks at the head of each single image; returns "" or what is wrong with it.
    keep_archives
        False removes an archive once it is unpacked; it is not downloaded again for that.

    Returns
    -------
    SourceReport
        With every file that could not be had, and why.

    Raises
    ------
    UsageError
        `table` is missing for a set that needs one, or httpx is not installed.
    """
    retry = retry or Retry()
    data, cache = Path(data), Path(cache)
    if client is None:
        with http_client(connections=workers + 4) as own:
            return download_source(
                source,
                data=data,
                cache=cache,
                table=table,
                workers=workers,
                retry=retry,
                client=own,
                progress=progress,
                check_image=check_image,
                limits=limits,
                keep_archives=keep_archives,
            )
    results: list[Fetched] = []
    problems: list[tuple[str, str, str]] = []
    unpacked = 0

    archives: list[RemoteFile] = []
    for file in source.files:
        try:
            file = _published(file, client, retry)
        except DataError as error:
            problems.append((file.name, error.code, str(error)))
            continue
        before = _unpacked_before(cache / file.name, data, file) if file.extract else None
        if before is not None:
            unpacked += before
            results.append(Fetched(file.name, "present", str(cache / file.name)))
        else:
            archives.append(file)
    got = fetch_all(
        [(file, cache) for file in archives],
        client=client,
        workers=workers,
        retry=retry,
        progress=progress,
    )
    for file, result in zip(archives, got, strict=True):
        results.append(result)
        if result.status == "failed" or not file.extract:
            continue
        archive = Path(result.path)
        try:
            files = extract_archive(archive, data, file.extract, limits=limits, progress=progress)
        except DataError as error:
            problems.append((file.name, error.code, str(error)))
            if error.code == "archive_invalid":  # the next run shall download it anew
                os.replace(archive, archive.with_name(archive.name + ".damaged"))
            continue
        unpacked += len(files)
        mark = {"extract": dict(file.extract), "checksum": file.checksum, "files": files}
        _write_atomic(archive.with_name(archive.name + MARK), json.dumps(mark).encode())
        if not keep_archives:
            archive.unlink()

    single: list[tuple[RemoteFile, Path]] = []
    try:
        if source.table is not None:
            single += _table_jobs(source, source.table, table, data, cache, client, retry)
        if source.bucket is not None:
            single += [
                (file, data / safe_member(source.bucket.folder))
                for file in bucket_files(source.bucket, client, retry)
            ]
    except DataError as error:
        problems.append(("list of images", error.code, str(error)))
    results += fetch_all(
        single,
        client=client,
        workers=workers,
        retry=retry,
        progress=progress,
        check=check_image,
        max_bytes=1 << 30,
    )
    problems += [(f.name, f.code, f.message) for f in results if f.status == "failed"]
    return SourceReport(source.name, tuple(results), unpacked, tuple(problems))


def _table_jobs(
    source: Source,
    table: UrlTable,
    local: str | os.PathLike[str] | None,
    data: Path,
    cache: Path,
    client: httpx.Client,
    retry: Retry,
) -> list[tuple[RemoteFile, Path]]:
    if local is not None:
        path = Path(local)
    elif table.file is not None:
        result = fetch(table.file, cache, client=client, retry=retry)
        if result.status == "failed":
            raise DataError(result.message, code=result.code)
        path = Path(result.path)
    else:
        raise UsageError(f"{source.name} cannot be downloaded directly. {source.manual}")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", code="not_found") from error
    return [(file, data / safe_member(folder)) for file, folder in table_files(table, text)]

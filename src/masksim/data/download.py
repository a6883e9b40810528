"""Public sets over HTTP: get their files, go on after an interruption, check and unpack them.

`fetch` gets one file, `fetch_all` many at a time, `download_source` all that one set needs. A file
under its final name is always whole: bytes go to ``NAME.part`` first, are checked against length
and checksum, and only then renamed. A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from masksim.config import Progress
from masksim.data.archives import extract_archive, safe_member
from masksim.data.sources import Bucket, RemoteFile, Source, UrlTable, table_files
from masksim.data.threads import in_threads
from masksim.errors import DataError, UsageError, extra_missing
from masksim.files import file_digest, write_whole

if TYPE_CHECKING:
    import httpx

MARK = ".extracted.json"
"""End of the name of the file beside an archive that lists what was unpacked from it."""

_SINGLE_IMAGE = 1 << 30  # bytes; what is longer is no image
_LISTING = 1 << 28

Check = Callable[[bytes], str]
"""Takes the first 64 KiB of a file, gives "" or what is wrong with it."""


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


class _FailedError(Exception):
    """A try that failed. `after`: seconds until the next one makes sense, None if it never does."""

    def __init__(self, code: str, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.after = code, after


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
        # In a compressed transfer, ranges and lengths would count other bytes than the file's.
        headers={"Accept-Encoding": "identity", "User-Agent": "masksim-data"},
    )
    return cast("httpx.Client", client)


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header: a number or an HTTP date; 0 where it says nothing."""
    with suppress(ValueError):
        return max(0.0, float(value or 0))
    with suppress(TypeError, ValueError):
        when = parsedate_to_datetime(str(value))
        when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
        return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
    return 0.0


def _content_range(value: str | None) -> tuple[int | None, int | None]:
    """First byte and whole length of a Content-Range header, None where not said."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", (value or "").strip())
    first, total = match.groups() if match else (None, None)
    return (int(first) if first else None), (int(total) if total and total != "*" else None)


# ------------------------------------------------------------------------------------- one file


@dataclass(eq=False)
class _Transfer:
    """One file on its way: what was asked for, and the partial file with what is known of it."""

    file: RemoteFile
    target: Path
    client: httpx.Client
    progress: Progress | None
    stop: threading.Event
    max_bytes: int | None

    def __post_init__(self) -> None:
        self.part = self.target.with_name(self.target.name + ".part")
        self.notes = self.target.with_name(self.target.name + ".part.json")
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

    def get(self, url: str) -> None:
        """Ask once for what is missing, and append it to the partial file."""
        httpx = _httpx()
        condition = self._condition(url)
        if condition is None or self.have > (self.state.get("total") or self.have):
            self.restart()
        have = self.have
        if have and have == self.state.get("total"):
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and condition:
            headers["If-Range"] = condition
        try:
            with self.client.stream("GET", url, headers=headers) as answer:
                begun = self._begin(answer, have)
                if begun is not None:
                    self._append(answer, url, *begun)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise _FailedError("bad_url", str(error)) from error
        except httpx.TooManyRedirects as error:
            raise _FailedError("redirects", str(error)) from error
        except httpx.HTTPError as error:
            raise _FailedError("connection", f"{type(error).__name__}: {error}", 0.0) from error
        except (OSError, UsageError) as error:
            raise _FailedError("disk", f"{self.part.name}: {error}") from error

    def _condition(self, url: str) -> str | None:
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
        return "" if self.file.checksum else None

    def _begin(self, answer: httpx.Response, have: int) -> tuple[int, int | None] | None:
        """Judge an answer by its head.

        Returns
        -------
        (int, int or None) or None
            Where its bytes begin, and how long the whole file is, None if that is not said; no
            pair where all bytes are here already.
        """
        status, known = answer.status_code, self.state.get("total")
        first, total = _content_range(answer.headers.get("content-range"))
        if status == 416 and have and total == have:
            return None
        other = status == 206 and (first != have or (known and total not in (known, None)))
        if status == 416 or other:
            self.restart()
            raise _FailedError("changed", "the server's file is not the one that was begun", 0.0)
        if status == 206:
            total = total or known
        elif status == 200:  # the whole file: the server knows no ranges, or the file has changed
            if have:
                self.restart()
                have = 0
            length = answer.headers.get("content-length", "")
            total = int(length) if length.isdigit() and _is_plain(answer) else None
        else:
            passing = status in (408, 425, 429) or status >= 500
            after = _retry_after(answer.headers.get("retry-after")) if passing else None
            raise _FailedError(f"http_{status}", f"the server answered {status}", after)
        if total is not None:
            self._check_total(total, have)
        return have, total

    def _check_total(self, total: int, have: int) -> None:
        size = self.file.size
        if self.max_bytes is not None and total > self.max_bytes:
            raise _FailedError("too_many_bytes", f"{total} bytes, at most {self.max_bytes}")
        if size is not None and total != size:
            self.restart()
            raise _FailedError("size_mismatch", f"{total} bytes, {size} are published")
        if shutil.disk_usage(self.part.parent).free < total - have:
            raise _FailedError("disk_full", f"{total - have} bytes do not fit on the disk")

    def _append(self, answer: httpx.Response, url: str, have: int, total: int | None) -> None:
        if have:
            self.resumed_from = have
        else:
            self.restart()
            self.state = {
                "url": url,
                "etag": answer.headers.get("etag", ""),
                "last_modified": answer.headers.get("last-modified", ""),
                "total": total,
            }
            write_whole(self.notes, json.dumps(self.state).encode())
        # No chunk size: pieces of a fixed one would be lost half full when a connection drops.
        pieces = answer.iter_raw() if _is_plain(answer) else answer.iter_bytes()
        with open(self.part, "ab") as f:
            for piece in pieces:
                f.write(piece)
                have += len(piece)
                if self.progress is not None:
                    self.progress(self.file.name, have, total or 0)
                if self.max_bytes is not None and have > self.max_bytes:
                    raise _FailedError("too_many_bytes", f"more than {self.max_bytes} bytes")
                if self.stop.is_set():
                    raise _FailedError("stopped", "stopped")
            f.flush()
            os.fsync(f.fileno())
        if total is not None and have != total:
            raise _FailedError("cut_short", f"{have} of {total} bytes came", 0.0)

    def finish(self, check: Check | None) -> int:
        """Check the partial file and give it its name; a wrong one is removed."""
        size, published = self.have, self.file.size
        algorithm, _, digest = self.file.checksum.lower().partition(":")
        problem: tuple[str, str] | None = None
        if published is not None and size != published:
            problem = "size_mismatch", f"{size} bytes, {published} are published"
        elif digest and (actual := file_digest(self.part, algorithm)) != digest:
            problem = "checksum_mismatch", f"{algorithm} is {actual}, published is {digest}"
        elif check is not None:
            with open(self.part, "rb") as f:
                reason = check(f.read(1 << 16))
            problem = ("wrong_content", reason) if reason else None
        if problem is not None:
            self.restart()
            raise _FailedError(*problem)
        os.replace(self.part, self.target)
        self.notes.unlink(missing_ok=True)
        return size


def _is_plain(answer: httpx.Response) -> bool:
    return bool(answer.headers.get("content-encoding", "identity") == "identity")


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
        Called with (name, bytes there, bytes in all, or 0 where nobody knows).
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
    retry, stop = retry or Retry(), stop or threading.Event()
    try:
        target = Path(folder) / safe_member(file.name)
    except DataError as error:
        return Fetched(file.name, "failed", "", code=error.code, message=str(error))
    if target.exists() and file.size in (None, target.stat().st_size):
        return Fetched(file.name, "present", str(target), target.stat().st_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    job = _Transfer(file, target, client, progress, stop, max_bytes)
    code, message = "no_url", "no address is known for this file"
    for url in file.urls:
        problem = _try_url(job, url, retry, check, sleep or stop.wait)
        if problem is None:
            size = target.stat().st_size
            return Fetched(file.name, "downloaded", str(target), size, job.resumed_from, url)
        code, message = problem.code, f"{url}: {problem}"
        if stop.is_set():
            code, message = "stopped", "stopped"
            break
    left = job.have
    if not left:
        job.restart()
    return Fetched(file.name, "failed", str(target), left, code=code, message=message)


def _try_url(
    job: _Transfer,
    url: str,
    retry: Retry,
    check: Check | None,
    sleep: Callable[[float], object],
) -> _FailedError | None:
    """Try one address until it works (None), cannot work, or has brought nothing too often."""
    barren, spoilt = 0, False
    while not job.stop.is_set():
        before = job.have
        try:
            job.get(url)
            job.finish(check)
        except _FailedError as error:
            if error.code == "too_many_bytes":
                job.restart()
            if error.code == "checksum_mismatch" and not spoilt:
                spoilt = True  # perhaps by a bad resume: once more, from the start
                continue
            if error.after is None:
                return error
            barren = 0 if job.have > before else barren + 1
            if barren >= retry.attempts or error.after > retry.patience:
                return error
            wait = min(retry.longest, retry.base * 2.0**barren) * random.uniform(0.5, 1.0)
            sleep(max(wait, error.after))
        else:
            return None
    return _FailedError("stopped", "stopped")


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
    settings: dict[str, Any] = {
        "client": client, "retry": retry, "progress": progress, "check": check,
        "max_bytes": max_bytes, "stop": stop,
    }  # fmt: skip

    def one(job: tuple[int, tuple[RemoteFile, Path]]) -> Fetched:
        return fetch(*job[1], **settings)

    with closing(in_threads(one, enumerate(files), max(1, workers), stop)) as done:
        results = {number: future.result() for (number, _), future in done}
    return [results[number] for number in sorted(results)]


def _fetch_text(url: str, client: httpx.Client, retry: Retry) -> str:
    """Get a small text (a listing, a checksum), with the same tries as a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = RemoteFile("text", (url,))
        got = fetch(file, folder, client=client, retry=retry, max_bytes=_LISTING)
        if got.status == "failed":
            raise DataError(got.message, code="download_failed")
        return Path(got.path).read_text(encoding="utf-8", errors="replace")


# -------------------------------------------------------------------------------------- one set


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
                dict(zip(("file", "code", "message"), problem, strict=True))
                for problem in self.problems
            ],
        }


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
        try:
            page = json.loads(_fetch_text(url, client, retry))
        except ValueError as error:
            raise DataError(f"{url}: no listing: {error}", code="download_failed") from error
        for item in page.get("items", []):
            match = re.search(bucket.match, item["name"])
            if not match:
                continue
            name = (match.group(1) if match.groups() else match.group(0)).replace("/", "_")
            suffix = PurePosixPath(item["name"]).suffix
            checksum = ""
            with suppress(ValueError):  # no base64
                checksum = base64.b64decode(item.get("md5Hash", "")).hex()
            files.append(
                RemoteFile(
                    name if name.endswith(suffix) else name + suffix,
                    (bucket.download.replace("{name}", quote(item["name"])),),
                    int(item["size"]) if "size" in item else None,
                    f"md5:{checksum}" if checksum else "",
                )
            )
        token = page.get("nextPageToken", "")
        if not token:
            return files


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
    retry, client
        Those of this module where None.
    progress
        Called with (file, bytes there, bytes in all, or 0 where nobody knows).
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
    if source.table is not None and source.table.file is None and table is None:
        raise UsageError(f"{source.name} cannot be downloaded directly. {source.manual}")
    own = None if client is not None else http_client(connections=workers + 4)
    try:
        job = _SetDownload(
            Path(data), Path(cache), client or cast("httpx.Client", own), retry or Retry(),
            workers, progress,
        )  # fmt: skip
        job.get_archives(source.files, keep_archives)
        job.get_images(source, None if table is None else Path(table), check_image)
    finally:
        if own is not None:
            own.close()
    failed = [(f.name, f.code, f.message) for f in job.results if f.status == "failed"]
    return SourceReport(source.name, tuple(job.results), job.unpacked, (*job.problems, *failed))


@dataclass(eq=False)
class _SetDownload:
    """What one set's download needs, and what has come of it so far."""

    data: Path
    cache: Path
    client: httpx.Client
    retry: Retry
    workers: int
    progress: Progress | None
    results: list[Fetched] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    unpacked: int = 0

    def _fetch_all(
        self, files: Iterable[tuple[RemoteFile, Path]], **settings: Any
    ) -> list[Fetched]:
        got = fetch_all(
            files, client=self.client, workers=self.workers, retry=self.retry,
            progress=self.progress, **settings,
        )  # fmt: skip
        self.results += got
        return got

    def get_archives(self, files: Iterable[RemoteFile], keep: bool) -> None:
        wanted: list[RemoteFile] = []
        for file in files:
            try:
                file = self._with_checksum(file)
            except DataError as error:
                self.problems.append((file.name, error.code, str(error)))
                continue
            before = self._unpacked_before(file) if file.extract else 0
            self.unpacked += before
            if before:
                self.results.append(Fetched(file.name, "present", str(self.cache / file.name)))
            else:
                wanted.append(file)
        got = self._fetch_all((file, self.cache) for file in wanted)
        for file, result in zip(wanted, got, strict=True):
            if result.status != "failed" and file.extract:
                self._unpack(file, Path(result.path), keep)

    def _with_checksum(self, file: RemoteFile) -> RemoteFile:
        """Look up the checksum that is published beside a file, if one is."""
        if file.checksum or not file.checksum_url:
            return file
        text = _fetch_text(file.checksum_url, self.client, self.retry)
        for algorithm, length in (("sha256", 64), ("sha1", 40), ("md5", 32)):
            if match := re.search(rf"\b[0-9a-fA-F]{{{length}}}\b", text):
                return replace(file, checksum=f"{algorithm}:{match.group(0).lower()}")
        raise DataError(f"{file.checksum_url} holds no checksum", code="download_failed")

    def _unpacked_before(self, file: RemoteFile) -> int:
        """Count the files that an earlier run unpacked; 0 unless all of them are still there."""
        try:
            mark = json.loads((self.cache / (file.name + MARK)).read_bytes())
        except (OSError, ValueError):
            return 0
        if mark.get("extract") != dict(file.extract) or mark.get("checksum") != file.checksum:
            return 0
        files = mark.get("files", [])
        return len(files) if all((self.data / name).is_file() for name in files) else 0

    def _unpack(self, file: RemoteFile, archive: Path, keep: bool) -> None:
        try:
            files = extract_archive(archive, self.data, file.extract, progress=self.progress)
        except DataError as error:
            self.problems.append((file.name, error.code, str(error)))
            if error.code == "archive_invalid":  # the next run shall download it anew
                os.replace(archive, archive.with_name(archive.name + ".damaged"))
            return
        self.unpacked += len(files)
        mark = {"extract": dict(file.extract), "checksum": file.checksum, "files": files}
        write_whole(archive.with_name(archive.name + MARK), json.dumps(mark).encode())
        if not keep:
            archive.unlink()

    def get_images(self, source: Source, table: Path | None, check: Check | None) -> None:
        """Get the images that a table or a bucket lists one by one."""
        jobs: list[tuple[RemoteFile, Path]] = []
        try:
            if source.table is not None:
                listed = table_files(source.table, self._table_text(source.table, table))
                jobs += [(file, self.data / safe_member(folder)) for file, folder in listed]
            if (bucket := source.bucket) is not None:
                folder = self.data / safe_member(bucket.folder)
                jobs += [(f, folder) for f in bucket_files(bucket, self.client, self.retry)]
        except DataError as error:
            self.problems.append(("list of images", error.code, str(error)))
        self._fetch_all(jobs, check=check, max_bytes=_SINGLE_IMAGE)

    def _table_text(self, table: UrlTable, path: Path | None) -> str:
        if path is None and table.file is not None:
            result = fetch(table.file, self.cache, client=self.client, retry=self.retry)
            if result.status == "failed":
                raise DataError(result.message, code=result.code)
            path = Path(result.path)
        try:
            return cast(Path, path).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}", code="not_found") from error

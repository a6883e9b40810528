"""The file of results: begun, gone on with, locked, appended to, finished."""

from __future__ import annotations

import csv
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from masksim import __version__
from masksim.batch.rows import EncodedRow, Encoder, json_line, pyarrow, schema
from masksim.data.inputs import path_key
from masksim.errors import DataError, MasksimError, UsageError
from masksim.files import written_whole

if TYPE_CHECKING:
    from masksim.batch.rows import Row

FLUSH = 1.0
"""Seconds after which rows are on the disk."""

_CHUNK = 4096  # rows that are turned into Parquet at a time


class Output:
    """The file of results, or of Parquet the part file beside it; a context manager.

    Attributes
    ----------
    known
        `Encoder.key` of each row that was there before.
    levels, errors
        Rows by level of the verdict, and by code of the error.

    Raises
    ------
    UsageError, DataError
        As `masksim.batch.run_batch`.
    """

    def __init__(
        self, out: Path, encode: Encoder, sha256: str, *, resume: bool, overwrite: bool
    ) -> None:
        self.out = out
        self.encode = encode
        self.sha256 = sha256
        self.file_name = out.with_name(out.name + ".part") if encode.form == "parquet" else out
        self.known: set[str] = set()
        self.levels: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.file = self._open(resume, overwrite)
        try:
            _lock(self.file, self.file_name)
            with _writing(self.file_name):
                if resume:
                    self._read_back()
                else:
                    self.file.truncate(0)
                if not self.file.tell():
                    self.file.write(encode.header)
                self.flush()
        except BaseException:
            self._close()
            raise

    def _open(self, resume: bool, overwrite: bool) -> Any:
        there = [path for path in (self.file_name, self.out) if path.exists()]
        if there and not (resume or overwrite):
            raise UsageError(
                f"{there[0]} is there; --resume goes on with it, --overwrite replaces it"
            )
        if odd := [path for path in there if not path.is_file()]:
            raise UsageError(f"{odd[0]} is not a file: results cannot be written there")
        if self.encode.form == "parquet":
            pyarrow()  # if it is missing, say so now and not at the end
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            if resume and self.encode.form == "parquet" and there == [self.out]:
                self._unpack()
            return open(self.file_name, "r+b" if self.file_name.exists() else "x+b")
        except OSError as error:
            raise UsageError(f"{self.out} cannot be written: {error.strerror or error}") from error

    def write(self, row: EncodedRow) -> None:
        """Append a row."""
        with _writing(self.file_name):
            self.file.write(row.line)
            self.file.flush()  # to the system, which keeps it if this process is killed
        self._count(row.level, row.error)
        self.waiting = True

    def keep(self) -> None:
        """Have on the disk what was written, if it is time."""
        if self.waiting and time.monotonic() - self.flushed >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Have on the disk what was written."""
        with _writing(self.file_name):
            self.file.flush()
            os.fsync(self.file.fileno())
        self.flushed = time.monotonic()
        self.waiting = False

    def finish(self) -> None:
        """Complete the results."""
        self.flush()
        if self.encode.form == "parquet":
            with _writing(self.out):
                self._pack()
                self.file.close()
                self.file_name.unlink()

    def _count(self, level: str | None, error: str | None) -> None:
        if level is not None:
            self.levels[level] += 1
        if error is not None:
            self.errors[error] += 1

    def _read_back(self) -> None:
        """Learn which rows are there, and cut off one that was not written to its end."""
        end = 0
        header = self.encode.header
        for number, (record, at) in enumerate(_records(self.file, quoted=bool(header)), start=1):
            if number == 1 and header:
                if record != header:
                    raise DataError(f"{self.file_name} has other columns than this batch")
            else:
                self._learn(record, number)
            end = at
        # Never cut off what no batch has begun. After its header any text may begin a line of CSV.
        begin = b'{"path": ' if not header else b"" if end else header
        self.file.seek(end)
        rest = self.file.read().rstrip(b"\0")  # a loss of power may leave zeros at the end
        if not begin.startswith(rest[: len(begin)]):
            raise DataError(f"{self.file_name} is not a file of results")
        self.file.seek(end)
        self.file.truncate()

    def _learn(self, record: bytes, number: int) -> None:
        try:
            row = self.encode.read(record)
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise DataError(
                f"{self.file_name}: row {number} is not a row of results: {error!r}"
            ) from error
        if (row.sha256, row.masksim) != (self.sha256, __version__):
            raise UsageError(
                f"{self.file_name} has results of detector {row.sha256[:12]} by masksim "
                f"{row.masksim}; this is detector {self.sha256[:12]} and masksim {__version__}: "
                "use the same ones, another --out, or --overwrite"
            )
        key = path_key(row.path)
        if key in self.known:
            raise DataError(f"{self.file_name}: row {number}: {row.path} is there twice")
        self.known.add(key)
        self._count(row.level, row.error)

    def _pack(self) -> None:
        """Make the Parquet file of the part file."""
        pa, pq = pyarrow()
        made = schema(self.encode.columns)
        self.file.seek(0)
        try:
            with written_whole(self.out) as file, pq.ParquetWriter(file, made) as writer:
                chunk: list[Row] = []
                for line in self.file:
                    chunk.append(json.loads(line))
                    if len(chunk) == _CHUNK:
                        writer.write_table(pa.Table.from_pylist(chunk, schema=made))
                        chunk = []
                writer.write_table(pa.Table.from_pylist(chunk, schema=made))
        except UsageError as error:  # rows are there already: `_writing` tells what goes on
            raise (error.__cause__ or error) from None

    def _unpack(self) -> None:
        """Make a part file of a finished Parquet file, to go on from."""
        pa, pq = pyarrow()
        with open(self.out, "r+b") as guard:  # a lock needs a file open for writing
            _lock(guard, self.out)
            if self.file_name.exists():  # another batch's, which its lock will tell
                return
            with written_whole(self.file_name) as part:
                try:
                    with pq.ParquetFile(self.out) as done:
                        for batch in done.iter_batches(_CHUNK):
                            part.writelines(json_line(row) for row in batch.to_pylist())
                except (pa.ArrowException, OSError) as error:
                    if getattr(error, "errno", None) is not None:  # the system's, not pyarrow's
                        raise
                    raise DataError(f"{self.out} is not a Parquet file: {error}") from error

    def _close(self) -> None:
        with suppress(OSError):  # another error is on its way, and tells more
            self.file.close()

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.file.closed:
            if error is None:
                self.flush()
            else:
                with suppress(MasksimError):
                    self.flush()
            self._close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell of a disk that is full, or gone."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; the rows so far are kept: "
            "--resume goes on",
            code="not_written",
        ) from error


def _records(file: Any, *, quoted: bool) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record and where it ends; a last one without its end is left out.

    In CSV a line's end inside quotes is part of a value: the number of quotes so far is odd there.
    """
    file.seek(0)
    end, odd = 0, False
    lines: list[bytes] = []
    for line in file:
        lines.append(line)
        odd ^= quoted and line.count(b'"') % 2 == 1
        if line.endswith(b"\n") and not odd:
            record = b"".join(lines)
            end += len(record)
            lines = []
            yield record, end


def _lock(file: Any, path: Path) -> None:
    """Keep others from writing the same results; the system forgets it when the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another batch is writing {path}") from error
    except OSError:  # a file system without locks
        return
    # Between opening and locking it, the batch that had the lock may have replaced or removed it.
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise UsageError(f"another batch was writing {path} just now")

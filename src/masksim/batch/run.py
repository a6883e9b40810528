"""Many images, a row each: in parallel, in bounded memory, to be gone on with after a kill.

`run_batch` writes the rows in the order of the images, whatever the number of processes, so an
interrupted file is the beginning of the whole one. The images are shared out to processes one by
one. Threads are no slower (docs/batch.md), but a decoder that crashes, or memory that runs out,
would end them all; a process that dies takes no other image with it.

`score_dataset` is the same analysis as a step of a Ray Data job.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from importlib import import_module
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from masksim import __version__
from masksim.data.inputs import LONGEST, Inputs, is_url, open_remote, path_key, same_file
from masksim.detector import load_detector
from masksim.errors import (
    DataError,
    ImageError,
    MasksimError,
    ModelError,
    UsageError,
    extra_missing,
)
from masksim.provenance.origin import COLUMNS
from masksim.results import Detection, GeneratorScore

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from masksim.detector import Detector

    Load = Callable[[], Detector]
    Row = dict[str, Any]
    _Rows = Generator["_Done | None", None, None]

FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
"""How results are written, by the end of the file's name."""

STRENGTH = ("inconclusive", "fragile", "weak evidence", "evidence", "strong evidence")
"""Levels of a verdict that something can be made to depend on, the weakest first."""

WINDOW = 64
"""Images a process that may be between the list and the file at a time."""

AHEAD = 2
"""Images that are with a process at a time: the one at work, and the next."""

FLUSH = 1.0
"""Seconds after which rows are on the disk."""

TIMEOUT = 300.0
"""Seconds that one image may take."""

STARTS = 3
"""So many processes may die in a row before they are ready; then something else is wrong."""

_MESSAGE = 2000  # characters of an error's message, about
_CHUNK = 4096  # rows that are turned into Parquet at a time
_RAY_BLOCK = 64  # images at most whose rows come from Ray together
_RAY_BATCH = 16  # images that an actor is asked for at once


# --- rows ----------------------------------------------------------------------------------------


def analyse(detector: Detector, path: str) -> Row:
    """Analyse one image to one row, whatever happens.

    Parameters
    ----------
    detector
        Loaded.
    path
        A file, or a URL for fsspec.

    Returns
    -------
    dict
        ``path``, ``masksim`` (the version), and `Detection.to_dict`; of an image that could not be
        analysed ``image`` has only its name, and ``error`` has ``code`` and ``message`` in place
        of the verdict.
    """
    start = time.perf_counter()
    try:
        if is_url(path):
            with open_remote(path) as file:
                found = detector.detect(file, name=path)
        else:
            found = detector.detect(path, name=path)
    except MasksimError as error:
        problem = error
    except Exception as error:  # the image's fault or ours: never the other images'
        problem = MasksimError(f"{path}: {type(error).__name__}: {error}")
    else:
        return {"path": path, "masksim": __version__, **found.to_dict()}
    seconds = time.perf_counter() - start
    return error_row(path, problem, detector.name, detector.sha256, seconds)


def error_row(path: str, error: MasksimError, name: str, sha256: str, seconds: float = 0.0) -> Row:
    """Make the row of an image that could not be analysed; see `analyse`."""
    return {
        "path": path,
        "masksim": __version__,
        "image": {"name": path},
        "error": {"code": error.code, "message": _shortened(error.message)},
        "detector": {"name": name, "sha256": sha256},
        "seconds": round(seconds, 4),
    }


def _shortened(text: str) -> str:
    """Leave out the middle of a text that is too long: it begins with a path, ends with a why."""
    half = _MESSAGE // 2
    return text if len(text) <= _MESSAGE else f"{text[:half]} [...] {text[-half:]}"


def flat_columns(generators: Sequence[str]) -> dict[str, str]:
    """Return the columns of flat rows and their types.

    They follow from the fields of `Detection` and of what it is made of: a field that is added
    there is a column here.

    Parameters
    ----------
    generators
        Of the detector, in its order.

    Returns
    -------
    dict
        Name to ``"str"``, ``"int"``, ``"float"``, ``"bool"`` or ``"json"`` (a text of JSON).
    """
    columns = {"path": "str", "error_code": "str", "error_message": "str"}
    hints = get_type_hints(Detection)
    score = {n: _kind(h) for n, h in get_type_hints(GeneratorScore).items() if n != "generator"}
    for name in ("verdict", "scores", *hints):
        hint = hints[name]
        if name == "scores":
            for generator in generators:
                columns |= {f"{part}_{generator}": kind for part, kind in score.items()}
        elif name == "origin":
            columns |= {f"origin_{part}": kind for part, kind in COLUMNS.items()}
        elif is_dataclass(hint):
            parts = get_type_hints(hint)
            columns |= {f"{name}_{f.name}": _kind(parts[f.name]) for f in fields(hint)}
        elif name == "detector":
            columns["detector_name"] = "str"
        else:
            columns[name] = _kind(hint)
    del columns["image_name"]  # the path
    columns["masksim"] = "str"
    return columns


def _kind(hint: Any) -> str:
    """Name the type of a column by that of a field, which may be None."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    if parts and all(isinstance(part, str) for part in parts):  # Literal
        return "str"
    if len(parts) == 1 and type(None) in get_args(hint):
        return _kind(parts[0])
    return {str: "str", int: "int", float: "float", bool: "bool"}.get(hint, "json")


def flatten(row: Mapping[str, Any]) -> Row:
    """Make a row flat: ``verdict_level``, ``similarity_<generator>``; lists become JSON texts."""
    flat: Row = {}
    for name, value in row.items():
        if name == "scores":
            for score in value:
                generator = score["generator"]
                flat |= {
                    f"{part}_{generator}": _cell(found)
                    for part, found in score.items()
                    if part != "generator"
                }
        elif name == "origin":
            # The rest of it, in JSON Lines, is long.
            flat |= {f"origin_{part}": _harmless((value or {}).get(part)) for part in COLUMNS}
        elif isinstance(value, Mapping):
            flat |= {f"{name}_{part}": _cell(found) for part, found in value.items()}
        else:
            flat[name] = _cell(value)
    del flat["image_name"]
    return flat


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _harmless(value: Any) -> Any:
    """Mark a text of the file's that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _text(value: Any) -> Any:
    r"""Make text of a file's name that is none: its odd bytes as ``\xff``. For Parquet."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _parquet_path(path: str) -> str:
    r"""Make text of a path as `_text`, differently for each: a ``\`` in a name becomes ``\\``."""
    return str(_text(path if os.sep == "\\" else path.replace("\\", "\\\\")))


def _parquet_row(flat: Row, columns: Iterable[str]) -> Row:
    cells = {name: _text(flat.get(name)) for name in columns}
    return {**cells, "path": _parquet_path(flat["path"])}


@dataclass(frozen=True)
class _Encoder:
    """Turns rows into the bytes of one format; it travels to the processes."""

    form: str
    columns: Mapping[str, str]

    @property
    def header(self) -> bytes:
        return self._csv(list(self.columns)) if self.form == "csv" else b""

    def __call__(self, row: Row) -> bytes:
        if self.form == "jsonl":
            return _json_line(row)
        flat = flatten(row)
        if self.form == "csv":
            return self._csv([flat.get(name) for name in self.columns])
        # Of Parquet this is the part file: a Parquet file that ends too early is lost as a whole.
        return _json_line(_parquet_row(flat, self.columns))

    def _csv(self, values: list[Any]) -> bytes:
        out = io.StringIO()
        # What is in the line's end is quoted within a field: both characters are to be.
        csv.writer(out, lineterminator="\r\n").writerow(
            [str(v).lower() if isinstance(v, bool) else v for v in values]
        )
        line = out.getvalue().removesuffix("\r\n") + "\n"
        return line.encode("utf-8", "surrogateescape")  # the name's own bytes

    def key(self, path: str) -> str:
        """Return what tells whether a path has its row already."""
        return path_key(_parquet_path(path) if self.form == "parquet" else path)

    def read(self, record: bytes) -> _Known:
        """Read what has to be known of a row that is there.

        Raises
        ------
        ValueError, KeyError, TypeError, csv.Error
            It is not a row.
        """
        if self.form == "csv":
            text = record.decode("utf-8", "surrogateescape")
            row = dict(zip(self.columns, next(csv.reader([text], strict=True)), strict=True))
        else:
            row = json.loads(record)
            if self.form == "jsonl":
                detector, problem = row["detector"]["sha256"], row.get("error", {}).get("code")
                level = row.get("verdict", {}).get("level")
                return _Known(row["path"], detector, row["masksim"], level, problem)
        return _Known(
            row["path"], row["detector_sha256"], row["masksim"],
            row["verdict_level"] or None, row["error_code"] or None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Known:
    """What is kept of a row for the summary and for going on."""

    path: str
    sha256: str
    masksim: str
    level: str | None
    error: str | None


def _json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True)
class _Done:
    """One image's row, ready to be written."""

    line: bytes
    level: str | None
    error: str | None


def _done(row: Row, encode: _Encoder) -> _Done:
    verdict, problem = row.get("verdict"), row.get("error")
    return _Done(
        encode(row), verdict["level"] if verdict else None, problem["code"] if problem else None
    )


# --- the file ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a batch came to.

    Attributes
    ----------
    out
        The file of results.
    images
        Rows in it.
    resumed
        How many of them were there before.
    levels, errors
        Rows by level of the verdict, and by code of the error.
    seconds
        Of this run.
    workers
        Processes.
    detector, detector_sha256
        Name and digest.
    """

    out: str
    images: int
    resumed: int
    levels: Mapping[str, int]
    errors: Mapping[str, int]
    seconds: float
    workers: int
    detector: str
    detector_sha256: str

    @property
    def rate(self) -> float:
        """Images a second in this run."""
        return (self.images - self.resumed) / self.seconds if self.seconds > 0 else 0.0

    def reaches(self, level: str) -> bool:
        """Tell whether a row is at this level or a stronger one.

        Parameters
        ----------
        level
            One of `STRENGTH`, or ``"error"``: whether an image could not be analysed.

        Raises
        ------
        UsageError
            It is neither.
        """
        if level == "error":
            return bool(self.errors)
        if level not in STRENGTH:
            raise UsageError(f"{level!r} is not one of {', '.join(STRENGTH)}, error")
        return any(name in self.levels for name in STRENGTH[STRENGTH.index(level) :])

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "out": self.out,
            "images": self.images,
            "resumed": self.resumed,
            "levels": dict(self.levels),
            "errors": dict(self.errors),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.rate, 3),
            "workers": self.workers,
            "detector": {"name": self.detector, "sha256": self.detector_sha256},
            "masksim": __version__,
        }


class _Output:
    """The file of results, or of Parquet the part file beside it; see docs/batch.md."""

    def __init__(
        self, out: Path, encode: _Encoder, sha256: str, *, resume: bool, overwrite: bool
    ) -> None:
        self.out = out
        self.encode = encode
        self.sha256 = sha256
        self.file_name = out.with_name(out.name + ".part") if encode.form == "parquet" else out
        self.known: set[str] = set()
        self.levels: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        there = [path for path in (self.file_name, out) if path.exists()]
        if there and not (resume or overwrite):
            raise UsageError(
                f"{there[0]} is there; --resume goes on with it, --overwrite replaces it"
            )
        if odd := [path for path in there if not path.is_file()]:
            raise UsageError(f"{odd[0]} is not a file: results cannot be written there")
        if encode.form == "parquet":
            _pyarrow()  # to hear of it now, not at the end
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if resume and encode.form == "parquet" and there == [out]:
                self._unpack()
            mode = "r+b" if self.file_name.exists() else "x+b"
            self.file = open(self.file_name, mode)  # noqa: SIM115 - open as long as this is
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror or error}") from error
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

    def count(self, level: str | None, error: str | None) -> None:
        """Take a row into the summary."""
        if level is not None:
            self.levels[level] += 1
        if error is not None:
            self.errors[error] += 1

    def write(self, done: _Done) -> None:
        """Append a row."""
        with _writing(self.file_name):
            self.file.write(done.line)
            self.file.flush()  # to the system, which a kill does not end
        self.count(done.level, done.error)
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

    def _read_back(self) -> None:
        """Learn which rows are there, and cut off one that was not written to its end."""
        end = 0
        records = _records(self.file, quoted=self.encode.form == "csv")
        for number, (record, at) in enumerate(records, start=1):
            if number == 1 and self.encode.header:
                if record != self.encode.header:
                    raise DataError(f"{self.file_name} has other columns than this batch")
            else:
                self._learn(record, number)
            end = at
        # Never cut off what no batch has begun. Any text may begin a line of CSV after the header.
        begin = b'{"path": ' if not self.encode.header else b"" if end else self.encode.header
        self.file.seek(end)
        rest = self.file.read().rstrip(b"\0")  # after a loss of power zeros may stand at the end
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
        self.count(row.level, row.error)

    def _pack(self) -> None:
        """Make the Parquet file of the part file."""
        pa, pq = _pyarrow()
        schema = _schema(self.encode.columns)
        temporary = self.out.with_name(self.out.name + ".tmp")
        self.file.seek(0)
        with _or_removed(temporary):
            with pq.ParquetWriter(temporary, schema) as writer:
                chunk: list[Row] = []
                for line in self.file:
                    chunk.append(json.loads(line))
                    if len(chunk) == _CHUNK:
                        writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
                        chunk = []
                writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
            with open(temporary, "r+b") as done:
                os.fsync(done.fileno())
            os.replace(temporary, self.out)

    def _unpack(self) -> None:
        """Make a part file of a finished Parquet file, to go on from."""
        pa, pq = _pyarrow()
        temporary = self.file_name.with_name(self.file_name.name + ".tmp")
        with open(self.out, "r+b") as guard:  # a lock needs one that could write
            _lock(guard, self.out)
            if self.file_name.exists():  # by now: of another batch, as its lock will tell
                return
            with _or_removed(temporary):
                try:
                    with pq.ParquetFile(self.out) as done, open(temporary, "wb") as part:
                        for batch in done.iter_batches(_CHUNK):
                            part.writelines(_json_line(row) for row in batch.to_pylist())
                except pa.ArrowException as error:
                    raise DataError(f"{self.out} is not a Parquet file: {error}") from error
                os.replace(temporary, self.file_name)

    def _close(self) -> None:
        """Close the file while an error is on its way, which is the one to be told."""
        with suppress(OSError):  # what could not be written still cannot be
            self.file.close()

    def __enter__(self) -> _Output:
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
    """Tell of a disk that is full, or gone, in our words."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; the rows so far are kept: "
            "--resume goes on",
            code="not_written",
        ) from error


@contextmanager
def _or_removed(path: Path) -> Iterator[None]:
    """Remove a file that does not get finished."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _records(file: Any, *, quoted: bool) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record and where it ends; a last one without its end is left out.

    In CSV a line's end inside quotes is part of a value: there the quotes so far are odd.
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
    # Between being opened and locked it may have been replaced or removed by who had the lock.
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise UsageError(f"another batch was writing {path} just now")


def _pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise extra_missing("Parquet", "pyarrow", "parquet") from error


def _schema(columns: Mapping[str, str]) -> Any:
    pa, _ = _pyarrow()
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema([(name, types.get(kind, pa.string())) for name, kind in columns.items()])


# --- a batch -------------------------------------------------------------------------------------


def run_batch(
    inputs: Inputs | Iterable[str],
    out: str | os.PathLike[str],
    *,
    load: Load | None = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "local",
    ray_address: str | None = None,
    timeout: float = TIMEOUT,
    progress: Callable[[int, int, int], None] | None = None,
) -> Summary:
    """Analyse images and write a row for each, in their order.

    The processes are started afresh: a script that calls this needs
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    inputs
        From `masksim.data.inputs.list_inputs`, or paths, each once. They are taken as they are
        needed: never more than `WINDOW` a process ahead of the last row written.
    out
        A file named as in `FORMATS`.
    load
        Makes the detector, in each process; it must be picklable. By default the detector in the
        package, on one thread.
    workers
        Processes; by default one a core.
    resume
        Go on with the results that are there: images that have a row are left out, a row that was
        not written to its end is cut off.
    overwrite
        Replace the results that are there.
    engine
        ``"local"``: processes of this machine. ``"ray"``: actors of Ray Data, here or in a cluster.
    ray_address
        Of a cluster; by default a Ray of its own is started on this machine.
    timeout
        Seconds, more than 0, that one image may take; then its process is ended and the image is a
        row with the error ``timed_out``. Of the local engine only.
    progress
        Called with the number of rows, of images (0 where it is not known) and of rows that were
        there before, after each row, and about once a second in between.

    Returns
    -------
    Summary

    Raises
    ------
    UsageError
        Results are there and neither `resume` nor `overwrite` is given, or they come from another
        detector or version; a library is missing; `out` cannot be written.
    DataError
        What is there to go on with is damaged; the results cannot be written, as the disk is full
        (``not_written``).
    MasksimError
        Processes cannot be started (code ``error``).
    ModelError
        From `load`.
    """
    started = time.monotonic()
    out = Path(out)
    form = FORMATS.get(out.suffix.lower())
    if form is None:
        raise UsageError(f"{out}: results are written to {', '.join(FORMATS)}")
    if resume and overwrite:
        raise UsageError("results are either gone on with or replaced, not both")
    if engine not in ("local", "ray") or (ray_address and engine != "ray"):
        raise UsageError("the engine is local or ray, and only ray has an address")
    workers = cores() if workers is None else workers
    if workers < 1:
        raise UsageError(f"at least one process is needed, not {workers}")
    if not timeout > 0:
        raise UsageError(f"an image needs more than {timeout} seconds")
    if isinstance(inputs, Inputs):
        if taken := [name for name in inputs.files if same_file(name, out)]:
            raise UsageError(f"{taken[0]} is a list of images: the results need another file")
        paths: Iterable[str] = inputs.paths
        unreadable = inputs.unreadable
        total = len(inputs.paths)
    else:
        paths, unreadable = inputs, {}
        total = len(inputs) if isinstance(inputs, Sequence) else 0
    load = load or partial(load_detector, threads=1)
    detector = load()
    name, sha256, generators = detector.name, detector.sha256, detector.generators
    del detector  # the processes have their own
    encode = _Encoder(form, flat_columns(generators))
    with _Output(out, encode, sha256, resume=resume, overwrite=overwrite) as output:
        before, rows = len(output.known), 0
        setup = _Setup(load, encode, name, sha256, unreadable, timeout)
        here = 0  # rows of these images; the file may have others, too
        if total and output.known:
            here = sum(encode.key(path) in output.known for path in paths)
        left = (path for path in paths if encode.key(path) not in output.known)
        run = _local if engine == "local" else _ray
        with closing(run(left, setup, workers, ray_address)) as ends:
            for done in ends:
                if done is not None:
                    output.write(done)
                    rows += 1
                output.keep()
                if progress is not None:
                    progress(here + rows, total, here)
        output.finish()
    return Summary(
        str(out), before + rows, before, dict(output.levels), dict(output.errors),
        time.monotonic() - started, workers, name, sha256,
    )  # fmt: skip


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setup:
    """What is the same for all images of a batch."""

    load: Load
    encode: _Encoder
    name: str
    sha256: str
    unreadable: Mapping[str, str] = field(default_factory=dict)
    timeout: float = TIMEOUT

    def detector(self) -> Detector:
        """Load the detector and make sure that it is the one of the batch."""
        found = self.load()
        if found.sha256 != self.sha256:
            raise ModelError("the detector's files were changed while the batch ran")
        return found

    def failed(self, path: str, error: MasksimError) -> _Done:
        return _done(error_row(path, error, self.name, self.sha256), self.encode)

    def without_analysis(self, path: str) -> _Done | None:
        """Return the row of a folder that could not be read, and of what can be no path."""
        if (problem := self.unreadable.get(path)) is not None:
            return self.failed(path, ImageError(problem))
        # Also so that no path ever fills a pipe: the one who leads must not wait for who waits.
        size = len(path.encode("utf-8", "replace"))
        if size > LONGEST:
            why = f"{path[:100]}[...]: {size} bytes, and no path has more than {LONGEST}"
            return self.failed(path, ImageError(why, code="not_found"))
        return None


@dataclass(slots=True)
class _Task:
    number: int
    path: str
    crashes: int = 0


def _work(end: connection.Connection, setup: _Setup) -> None:
    """Run a process: load, then make a row for each path that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who leads
    with suppress(EOFError, OSError):  # the other end has gone: so has the batch
        try:
            detector = setup.detector()
        except MasksimError as error:
            end.send(error)
            return
        end.send(None)
        while True:
            end.send(_done(analyse(detector, end.recv()), setup.encode))


class _Worker:
    """A process, and the images that are with it, in the order of their answers."""

    def __init__(self, setup: _Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.end, other = context.Pipe()
        self.tasks: deque[_Task] = deque()
        self.ready = False
        self.busy = 0.0  # seconds with the first of its images
        self.process: SpawnProcess = context.Process(target=_work, args=(other, setup), daemon=True)
        with _as_worker():
            self.process.start()
        other.close()

    def stop(self) -> None:
        self.end.close()
        self.process.terminate()
        self.process.join()
        self.process.close()


@contextmanager
def _as_worker() -> Iterator[None]:
    """Have new processes inherit this: no Ctrl-C, and one thread for linear algebra."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    added = [name for name in names if name not in os.environ]
    blocked = hasattr(signal, "pthread_sigmask")  # not on Windows
    if blocked:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pool:
    """Shares images out to processes and gives their rows in order.

    Of a process that dies, the image it was at is suspected: it is analysed once more while no
    other is, in case that memory ran out, and given up if that process dies, too.
    """

    def __init__(self, paths: Iterator[str], setup: _Setup, workers: int) -> None:
        self.setup = setup
        self.tasks = (_Task(number, path) for number, path in enumerate(paths))
        self.window = WINDOW * workers
        self.workers: list[_Worker] = []
        self.wanted = workers
        self.again: deque[_Task] = deque()  # lost by no fault of theirs
        self.suspects: deque[_Task] = deque()
        self.held: dict[int, _Done] = {}  # rows whose turn has not come
        self.next = 0
        self.taken = 0
        self.exhausted = False
        self.failed_starts = 0
        self.looked = time.monotonic()

    def __iter__(self) -> Iterator[_Done | None]:
        """Give the rows, and None while there is none."""
        while True:
            self._share_out()
            if (done := self.held.pop(self.next, None)) is not None:
                self.next += 1
                yield done
            elif self.exhausted and self.next == self.taken:
                return
            else:
                ends: dict[Any, _Worker] = {worker.end: worker for worker in self.workers}
                for end in connection.wait(list(ends), timeout=FLUSH):
                    self._receive(ends[end])
                self._look()
                yield None

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = worker.end.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        self.failed_starts = 0
        worker.busy = 0.0
        if isinstance(answer, MasksimError):
            raise answer
        if answer is None:
            worker.ready = True
        else:
            self.held[worker.tasks.popleft().number] = answer

    def _bury(self, worker: _Worker) -> None:
        """Deal with a process that has died."""
        worker.process.join()
        code = worker.process.exitcode
        if not worker.ready:
            self.failed_starts += 1
            if self.failed_starts == STARTS:
                raise MasksimError(f"processes end before they are ready (exit code {code})")
        if worker.tasks and worker.ready:
            suspect = worker.tasks.popleft()
            suspect.crashes += 1
            if suspect.crashes == 1:
                self.suspects.append(suspect)
            else:
                why = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
                problem = ImageError(
                    f"{suspect.path}: the process that analysed it died ({why}), twice",
                    code="crashed",
                )
                self.held[suspect.number] = self.setup.failed(suspect.path, problem)
        self._dismiss(worker)

    def _dismiss(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        self.again.extendleft(reversed(worker.tasks))
        worker.stop()

    def _look(self) -> None:
        """End processes that have been with one image for too long."""
        now = time.monotonic()
        # What is more is no time of theirs: this process was stopped, and they were, too.
        passed = min(now - self.looked, 2 * FLUSH)
        self.looked = now
        for worker in [worker for worker in self.workers if worker.ready and worker.tasks]:
            worker.busy += passed
            if worker.busy > self.setup.timeout and not connection.wait([worker.end], 0):
                late = worker.tasks.popleft()
                problem = ImageError(
                    f"{late.path}: not done after {self.setup.timeout:g} seconds", code="timed_out"
                )
                self.held[late.number] = self.setup.failed(late.path, problem)
                worker.process.kill()
                self._dismiss(worker)

    def _share_out(self) -> None:
        """Give the processes what they can take."""
        busy = sum(len(worker.tasks) for worker in self.workers)
        if any(task.crashes for worker in self.workers for task in worker.tasks):
            return  # a suspect is to be alone
        if self.suspects:
            if not busy:
                self._send(self.suspects.popleft())
            return
        for _ in range(AHEAD * self.wanted - busy):
            if self.again:
                self._send(self.again.popleft())
            elif not self.exhausted and self.taken < self.next + self.window:
                self._take()

    def _take(self) -> None:
        """Begin with the next image."""
        task = next(self.tasks, None)
        if task is None:
            self.exhausted = True
            return
        self.taken += 1
        row = self.setup.without_analysis(task.path)
        if row is None:
            self._send(task)
        else:
            self.held[task.number] = row

    def _send(self, task: _Task) -> None:
        """Give an image to the process with the least to do; start one if all have something."""
        worker = min(self.workers, key=lambda w: (len(w.tasks), not w.ready), default=None)
        if worker is None or (worker.tasks and len(self.workers) < self.wanted):
            worker = _Worker(self.setup)
            self.workers.append(worker)
        if not worker.tasks:
            worker.busy = 0.0
        worker.tasks.append(task)
        with suppress(OSError):  # it has died: `_receive` finds that out, too
            worker.end.send(task.path)

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()


def _local(paths: Iterator[str], setup: _Setup, workers: int, _: str | None) -> _Rows:
    pool = _Pool(paths, setup, workers)
    try:
        yield from pool
    finally:
        pool.close()


# --- Ray -----------------------------------------------------------------------------------------


def score_dataset(
    dataset: Any, *, column: str = "path", load: Load | None = None, workers: int = 1
) -> Any:
    """Analyse a Ray Data dataset of paths: nothing passes through this process.

    Parameters
    ----------
    dataset
        ``ray.data.Dataset``, with paths that each machine of the cluster can read: of a shared
        folder, or URLs for fsspec.
    column
        Where they are.
    load
        As `run_batch`; the detector's folder must be readable on each machine.
    workers
        Actors; each takes one core.

    Returns
    -------
    ray.data.Dataset
        Flat rows (`flat_columns`), to be written with ``write_parquet`` or gone on with.

    Raises
    ------
    UsageError
        Ray is not installed.
    """
    _import_ray()
    load = load or partial(load_detector, threads=1)
    # From one actor on, so that the tasks that read the paths get a core, too.
    pool = {"min_size": 1, "max_size": workers}
    return _map(dataset, _FlatActor, {"load": load, "column": column}, pool)


def _import_ray() -> tuple[Any, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        return import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise extra_missing("the engine ray", "ray", "ray") from error


def _map(dataset: Any, actor: type, arguments: Mapping[str, Any], pool: Mapping[str, int]) -> Any:
    return dataset.map_batches(
        actor,
        fn_constructor_kwargs=dict(arguments),
        batch_format="pyarrow",
        batch_size=_RAY_BATCH,
        num_cpus=1,
        compute=_import_ray()[1].ActorPoolStrategy(**pool),
    )


class _FlatActor:
    """Holds a detector; paths in, flat rows out."""

    def __init__(self, load: Load, column: str) -> None:
        self.detector = load()
        self.column = column
        self.columns = flat_columns(self.detector.generators)

    def __call__(self, table: Any) -> Any:
        rows = [flatten(analyse(self.detector, path)) for path in table[self.column].to_pylist()]
        cells = [_parquet_row(row, self.columns) for row in rows]
        return _pyarrow()[0].Table.from_pylist(cells, schema=_schema(self.columns))


class _LineActor:
    """Holds a detector; numbered paths in, what is to be written out."""

    def __init__(self, setup: _Setup) -> None:
        self.setup = setup
        self.detector = setup.detector()

    def __call__(self, table: Any) -> Any:
        paths = (raw.decode("utf-8", "surrogateescape") for raw in table["path"].to_pylist())
        done = [_done(analyse(self.detector, path), self.setup.encode) for path in paths]
        pa, _ = _pyarrow()
        return pa.table(
            {
                "number": table["number"],
                "line": pa.array([one.line for one in done], pa.binary()),
                "level": pa.array([one.level for one in done], pa.string()),
                "error": pa.array([one.error for one in done], pa.string()),
            }
        )


def _ray(paths: Iterator[str], setup: _Setup, workers: int, address: str | None) -> _Rows:
    ray, data = _import_ray()
    started = not ray.is_initialized()
    if started:
        own = {} if address else {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="warning", **own)
    context = data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield from _ray_rows(data, paths, setup, workers)
    except ray.exceptions.RayError as error:
        raise MasksimError(f"Ray: {error}") from error
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if started:
            ray.shutdown()


def _ray_rows(data: Any, paths: Iterator[str], setup: _Setup, workers: int) -> _Rows:
    pa, _ = _pyarrow()
    held: dict[int, _Done] = {}  # of folders: they have no analysis to wait for
    tasks: list[tuple[int, bytes]] = []
    count = 0
    for number, path in enumerate(paths):
        count += 1
        if (row := setup.without_analysis(path)) is not None:
            held[number] = row
        else:
            tasks.append((number, path.encode("utf-8", "surrogateescape")))
    following = 0
    size = max(1, min(_RAY_BLOCK, len(tasks) // (4 * workers)))
    blocks = [
        pa.table({"number": [n for n, _ in part], "path": [raw for _, raw in part]})
        for part in (tasks[k : k + size] for k in range(0, len(tasks), size))
    ]
    del tasks
    if blocks:
        pool = {"size": min(workers, len(blocks))}
        dataset = _map(data.from_arrow(blocks), _LineActor, {"setup": setup}, pool)
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                held[row["number"]] = _Done(row["line"], row["level"], row["error"])
            while (done := held.pop(following, None)) is not None:
                following += 1
                yield done
    while following < count:
        yield held.pop(following)
        following += 1

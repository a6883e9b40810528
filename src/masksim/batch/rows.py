"""A detection as a row: JSON, and flat columns for CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from masksim import __version__
from masksim.data.inputs import LONGEST, is_url, open_remote, path_key
from masksim.errors import ImageError, MasksimError, ModelError, extra_missing
from masksim.provenance.origin import COLUMNS
from masksim.results import Detection, GeneratorScore

if TYPE_CHECKING:
    from masksim.detector import Detector

    Load = Callable[[], Detector]
    Row = dict[str, Any]

_MESSAGE = 2000  # characters of an error's message, about


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
        ``path``, ``masksim`` (the version), and `Detection.to_dict`. If the image could not be
        analysed, ``image`` has only its name, and ``error`` has ``code`` and ``message`` in place
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
    except Exception as error:  # one bad image must not stop the others
        problem = MasksimError(f"{path}: {type(error).__name__}: {error}")
    else:
        return {"path": path, "masksim": __version__, **found.to_dict()}
    seconds = time.perf_counter() - start
    return _error_row(path, problem, detector.name, detector.sha256, seconds)


def _error_row(path: str, error: MasksimError, name: str, sha256: str, seconds: float = 0.0) -> Row:
    half = _MESSAGE // 2
    text = error.message  # begins with the path and ends with the reason
    return {
        "path": path,
        "masksim": __version__,
        "image": {"name": path},
        "error": {
            "code": error.code,
            "message": text if len(text) <= _MESSAGE else f"{text[:half]} [...] {text[-half:]}",
        },
        "detector": {"name": name, "sha256": sha256},
        "seconds": round(seconds, 4),
    }


# --- flat rows -----------------------------------------------------------------------------------


def flat_columns(generators: Sequence[str]) -> dict[str, str]:
    """Return the columns of flat rows and their types.

    They follow from the fields of `Detection` and of its parts: a new field there is a new column
    here.

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
    del columns["image_name"]  # the same as `path`
    columns["masksim"] = "str"
    return columns


def _kind(hint: Any) -> str:
    """Name the type of a column by the type of its field, which may be None."""
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
        elif name == "origin":  # in full only in JSON Lines: it is long
            flat |= {f"origin_{part}": _no_formula((value or {}).get(part)) for part in COLUMNS}
        elif isinstance(value, Mapping):
            flat |= {f"{name}_{part}": _cell(found) for part, found in value.items()}
        else:
            flat[name] = _cell(value)
    del flat["image_name"]
    return flat


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _no_formula(value: Any) -> Any:
    """Put a quote before text from the file that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


# --- Parquet -------------------------------------------------------------------------------------


def pyarrow() -> tuple[Any, Any]:
    """Import ``pyarrow`` and ``pyarrow.parquet``.

    Raises
    ------
    UsageError
        Code ``extra_missing``.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise extra_missing("Parquet", "pyarrow", "parquet") from error


def schema(columns: Mapping[str, str]) -> Any:
    """Make the ``pyarrow.Schema`` of `flat_columns`."""
    pa, _ = pyarrow()
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema([(name, types.get(kind, pa.string())) for name, kind in columns.items()])


def parquet_row(flat: Row, columns: Iterable[str]) -> Row:
    """Give a flat row all its columns, and only valid text."""
    row = {name: _text(flat.get(name)) for name in columns}
    return {**row, "path": _parquet_path(flat["path"])}


def _text(value: Any) -> Any:
    r"""Write bytes of a file's name that are not UTF-8 as ``\xff``: Parquet takes only text."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _parquet_path(path: str) -> str:
    r"""Write a path as `_text` does, and ``\`` in a name as ``\\``, so that no two look alike."""
    return str(_text(path if os.sep == "\\" else path.replace("\\", "\\\\")))


# --- rows as bytes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownRow:
    """What is kept of a row that is in the file already."""

    path: str
    sha256: str
    masksim: str
    level: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One image's row, ready to be written."""

    line: bytes
    level: str | None
    error: str | None


def json_line(row: Mapping[str, Any]) -> bytes:
    """Write a row as a line of JSON in ASCII."""
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


@dataclass(frozen=True)
class Encoder:
    """Turns rows into the bytes of one format; it travels to the processes.

    Attributes
    ----------
    form
        ``"jsonl"``, ``"csv"`` or ``"parquet"``. Of Parquet these are the lines of the part file: a
        Parquet file that ends too early is lost as a whole.
    columns
        From `flat_columns`.
    """

    form: str
    columns: Mapping[str, str]

    @property
    def header(self) -> bytes:
        """The first line of the file; empty but for CSV."""
        return self._csv(list(self.columns)) if self.form == "csv" else b""

    def __call__(self, row: Row) -> EncodedRow:
        """Encode a row."""
        if self.form == "jsonl":
            line = json_line(row)
        elif self.form == "csv":
            flat = flatten(row)
            line = self._csv([flat.get(name) for name in self.columns])
        else:
            line = json_line(parquet_row(flatten(row), self.columns))
        verdict, problem = row.get("verdict", {}), row.get("error", {})
        return EncodedRow(line, verdict.get("level"), problem.get("code"))

    def _csv(self, values: list[Any]) -> bytes:
        out = io.StringIO()
        # A field that holds a character of the line end is quoted: both `\r` and `\n` must be.
        csv.writer(out, lineterminator="\r\n").writerow(
            [str(v).lower() if isinstance(v, bool) else v for v in values]
        )
        line = out.getvalue().removesuffix("\r\n") + "\n"
        return line.encode("utf-8", "surrogateescape")  # a name keeps its own bytes

    def key(self, path: str) -> str:
        """Return what is compared to tell whether a path has its row already."""
        return path_key(_parquet_path(path) if self.form == "parquet" else path)

    def read(self, record: bytes) -> KnownRow:
        """Read what has to be known of a row that is in the file.

        Raises
        ------
        ValueError, KeyError, TypeError, AttributeError, csv.Error
            It is not a row.
        """
        if self.form == "csv":
            text = record.decode("utf-8", "surrogateescape")
            row = dict(zip(self.columns, next(csv.reader([text], strict=True)), strict=True))
        else:
            row = json.loads(record)
            if self.form == "jsonl":
                verdict, problem = row.get("verdict", {}), row.get("error", {})
                return KnownRow(
                    row["path"], row["detector"]["sha256"], row["masksim"],
                    verdict.get("level"), problem.get("code"),
                )  # fmt: skip
        return KnownRow(
            row["path"], row["detector_sha256"], row["masksim"],
            row["verdict_level"] or None, row["error_code"] or None,
        )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is the same for all images of a batch; it travels to the processes.

    Attributes
    ----------
    load
        Makes the detector.
    encode
        Writes the rows.
    name, sha256
        Of the detector.
    unreadable
        Folders that could not be read, and why.
    timeout
        Seconds that one image may take.
    """

    load: Load
    encode: Encoder
    name: str
    sha256: str
    unreadable: Mapping[str, str]
    timeout: float

    def detector(self) -> Detector:
        """Load the detector.

        Raises
        ------
        ModelError
            It is not the detector that the batch began with.
        """
        found = self.load()
        if found.sha256 != self.sha256:
            raise ModelError("the detector's files were changed while the batch ran")
        return found

    def analysed(self, detector: Detector, path: str) -> EncodedRow:
        """Make the row of an image."""
        return self.encode(analyse(detector, path))

    def failed(self, path: str, why: str, code: str) -> EncodedRow:
        """Make the row of an image that could not be analysed."""
        return self.encode(_error_row(path, ImageError(why, code=code), self.name, self.sha256))

    def without_analysis(self, path: str) -> EncodedRow | None:
        """Make the row of a folder that could not be read, or of a path that no file can have.

        None for all others.
        """
        if (problem := self.unreadable.get(path)) is not None:
            return self.failed(path, problem, ImageError.code)
        size = len(path.encode("utf-8", "replace"))
        if size > LONGEST:
            why = f"{path[:100]}[...]: {size} bytes, and no path has more than {LONGEST}"
            return self.failed(path, why, "not_found")
        return None

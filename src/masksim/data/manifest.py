"""A manifest: which images there are, who made them, where they come from, in which split.

One row an image (`Row`), one CSV or Parquet file a set (`read_manifest`, `write_manifest`), also
as other tools write them. `masksim.data.scan` makes manifests of folders.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from masksim.errors import DataError, extra_missing
from masksim.files import make_folder, write_whole, written_whole

REAL = "real"  # the generator's name of photographs
SPLITS = ("train", "val", "test")
CORE = (
    "path",
    "generator",
    "source",
    "split",
    "sha256",
    "width",
    "height",
    "format",
    "processing",
)
_SPLIT_WORDS = {"training": "train", "validation": "val", "valid": "val", "dev": "val"}


@dataclass(frozen=True, slots=True)
class Row:
    """One image.

    Attributes
    ----------
    path
        Relative to the manifest's folder, with ``/``; absolute for images left where they are.
    generator
        What made it; ``"real"`` for photographs.
    source
        The set, folder, repository or camera it comes from: the unit of splits.
    split
        ``"train"``, ``"val"`` or ``"test"``.
    sha256
        Of the file at `path`; ``""`` where not yet computed.
    width, height
        Of the file at `path`, in pixels; 0 where not yet known.
    format
        Of the source file, before our processing: ``"JPEG"``, ``"PNG"``, …
    processing
        What was done to the source file, ``"none"`` if nothing; ``""`` where not known.
    extra
        Further columns, kept as they are. ``group`` names what must stay in one split.
    """

    path: str
    generator: str
    source: str
    split: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    processing: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        """Whether this is a photograph."""
        return self.generator == REAL

    @property
    def key(self) -> str:
        """What seeds the draws of this image: a hash of its content, else its path."""
        return self.extra.get("blob") or self.sha256 or self.path


@dataclass(frozen=True)
class Manifest:
    """Rows, and the folder their paths are relative to."""

    rows: tuple[Row, ...]
    root: Path

    def file(self, row: Row) -> Path:
        """Return where a row's image lies."""
        return self.root / row.path

    def select(self, split: str | None = None, generator: str | None = None) -> Manifest:
        """Return the rows of one split, of one generator, or both."""
        rows = tuple(
            row
            for row in self.rows
            if (split is None or row.split == split)
            and (generator is None or row.generator == generator)
        )
        return Manifest(rows, self.root)

    @property
    def generators(self) -> list[str]:
        """The names of the generators, sorted, without ``"real"``."""
        return sorted({row.generator for row in self.rows} - {REAL})

    def counts(self) -> dict[str, dict[str, int]]:
        """Images a split and generator."""
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            table[row.split][row.generator] += 1
        return {split: dict(sorted(count.items())) for split, count in sorted(table.items())}


def group_of(row: Row) -> str:
    """Return what the row must not be parted from: its ``group``, else its source."""
    return row.extra.get("group") or row.source


# ---------------------------------------------------------------- reading and writing


def _encode(text: str) -> bytes:
    # File names that are no UTF-8 arrive as surrogates and must survive the way back.
    return text.encode("utf-8", "surrogateescape")


def manifest_hash(rows: Iterable[Row]) -> str:
    """Return the SHA-256 of the content: independent of order, format and folder.

    Two manifests have the same hash exactly when they list the same images, by content and name,
    with the same labels, splits, processing and extra columns (empty ones do not count).
    """
    lines = []
    for row in rows:
        values: list[Any] = [getattr(row, name) for name in CORE]
        values.append({k: v for k, v in sorted(row.extra.items()) if v != ""})
        lines.append(_encode(json.dumps(values, ensure_ascii=False, separators=(",", ":"))))
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line + b"\n")
    return digest.hexdigest()


def _table(rows: Iterable[Row]) -> tuple[list[str], list[dict[str, Any]]]:
    ordered = sorted(rows, key=lambda row: _encode(row.path))
    extras = sorted({name for row in ordered for name in row.extra})
    clash = set(extras) & set(CORE)
    if clash:
        raise DataError(
            f"extra columns {', '.join(sorted(clash))} are core ones", code="manifest_invalid"
        )
    table = [
        {**{name: getattr(row, name) for name in CORE},
         **{name: row.extra.get(name, "") for name in extras}}
        for row in ordered
    ]  # fmt: skip
    return [*CORE, *extras], table


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> str:
    """Write rows sorted by path, all at once: never a partial file under the final name.

    Parameters
    ----------
    path
        ``.csv``, or ``.parquet`` where pyarrow is installed.
    rows
        In any order.

    Returns
    -------
    str
        The `manifest_hash`.

    Raises
    ------
    UsageError
        For ``.parquet`` without pyarrow; the file cannot be written.
    """
    path, rows = Path(path), list(rows)
    columns, table = _table(rows)
    make_folder(path.parent)
    if path.suffix.lower() == ".parquet":
        pa, pq = _pyarrow()
        schema = pa.schema(
            (name, pa.int64() if name in ("width", "height") else pa.string()) for name in columns
        )
        with written_whole(path) as file:
            pq.write_table(pa.Table.from_pylist(table, schema=schema), file)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        write_whole(path, _encode(out.getvalue()))
    return manifest_hash(rows)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise extra_missing("a Parquet manifest", "pyarrow", "parquet") from error


def read_manifest(path: str | os.PathLike[str], *, split: str = "test") -> Manifest:
    """Read a manifest, whoever wrote it.

    Three kinds of table are told apart by their columns: ours (`Row`), the one of ``collect.py``
    (``file, split, generator, variant, repo, path, blob, width, height, format, evidence``; the
    source is the repository), and the field's ``filename,typ`` (``typ`` names the generator;
    those that begin with ``real`` are photographs).

    Parameters
    ----------
    path
        A ``.csv`` or ``.parquet`` file.
    split
        Of the rows of a ``filename,typ`` table, which does not say.

    Returns
    -------
    Manifest
        Rooted at the file's folder.

    Raises
    ------
    DataError
        ``not_found``, or ``manifest_invalid`` with the line and what is wrong there.
    """
    path = Path(path)
    columns, lines = _read_table(path)
    has = set(columns)
    make: Callable[[dict[str, str]], Row]
    if {"file", "generator", "repo", "split"} <= has:
        make = partial(_row, path="file", source="repo", processing="none")
    elif {"path", "generator", "source", "split"} <= has:
        make = _row
    elif {"filename", "typ"} <= has:
        make = partial(_row_typ, split=split)
    else:
        raise DataError(
            f"{path.name}: columns path, generator, source, split are needed "
            f"(or filename, typ), got {columns}",
            code="manifest_invalid",
        )
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=2):
        try:
            row = make(line)
            if row.path in rows:
                raise ValueError(f"{row.path} is listed twice")
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path.name} row {number}: {error}", code="manifest_invalid"
            ) from error
        rows[row.path] = row
    return Manifest(tuple(rows.values()), path.parent)


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and lines of a CSV or Parquet file, as texts."""
    if not path.is_file():
        raise DataError(f"no manifest at {path}", code="not_found")
    if path.suffix.lower() == ".parquet":
        table = _pyarrow()[1].read_table(path)
        return list(table.column_names), [
            {k: "" if v is None else str(v) for k, v in line.items()} for line in table.to_pylist()
        ]
    text = path.read_bytes().decode("utf-8", "surrogateescape").lstrip("\ufeff")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = list(reader.fieldnames or [])
    lines = []
    for number, line in enumerate(reader, start=2):
        if None in line or None in line.values():
            raise DataError(
                f"{path.name} row {number}: {len(columns)} columns expected",
                code="manifest_invalid",
            )
        lines.append({str(k): str(v) for k, v in line.items()})
    return columns, lines


def split_of(word: str) -> str:
    """Return the split that a word means; raise ValueError for none."""
    split = _SPLIT_WORDS.get(word.strip().lower(), word.strip().lower())
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {word!r}")
    return split


def _number(word: str | None, name: str) -> int:
    if not word:
        return 0
    if not word.isdigit():
        raise ValueError(f"{name} must be a number of pixels, got {word!r}")
    return int(word)


def _row(
    line: dict[str, str], *, path: str = "path", source: str = "source", processing: str = ""
) -> Row:
    """Make a row of a line; path and source stand in the columns named, as may `processing`."""
    for name in (path, "generator", source):
        if not line[name]:
            raise ValueError(f"{name} is empty")
    sha256 = line.get("sha256", "").lower()
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    extra = {k: v for k, v in line.items() if k not in (*CORE, path, source) and v != ""}
    if path != "path" and line.get("path"):
        extra["source_path"] = line["path"]
    return Row(
        path=line[path],
        generator=line["generator"],
        source=line[source],
        split=split_of(line["split"]),
        sha256=sha256,
        width=_number(line.get("width"), "width"),
        height=_number(line.get("height"), "height"),
        format=line.get("format", "").upper(),
        processing=line.get("processing", processing),
        extra=extra,
    )


def _row_typ(line: dict[str, str], split: str) -> Row:
    name, typ = line["filename"].replace("\\", "/"), line["typ"]
    if not name or not typ:
        raise ValueError("filename and typ must not be empty")
    extra = {k: v for k, v in line.items() if k not in ("filename", "typ", *CORE) and v != ""}
    real = typ.lower().startswith("real")
    return Row(
        path=name,
        generator=REAL if real else typ,
        source=typ,
        split=split_of(line.get("split") or split),
        extra={"group": PurePosixPath(name).stem, **extra},
    )


def with_extra(row: Row, **columns: str) -> Row:
    """Return the row with further columns; empty values are left out."""
    extra = {**row.extra, **columns}
    return replace(row, extra={k: v for k, v in extra.items() if v != ""})

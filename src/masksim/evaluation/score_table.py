"""The saved scores: one row a view, one column a head of the detector or another detector.

Images are scored once (`masksim.evaluation.scoring`); every figure comes from this table. It is
kept as CSV in the field's convention, ``filename,typ`` and one column a detector, so that scores of
other tools can be measured too, and those that the original's evaluation left.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masksim.data.manifest import REAL
from masksim.errors import DataError, UsageError
from masksim.traits import TRAITS, with_all_traits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

FACTS = ("filename", "typ", "source", "history", "format", "processing")
"""Columns of the CSV that are no scores; the last four may be missing."""

_FIELDS = ("filenames", "typ", "sources", "histories", "formats", "processing")
_TRAITS = tuple(f"trait {name}" for name in TRAITS)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of the views of a split.

    Attributes
    ----------
    filenames, typ, sources, histories, formats, processing
        str (n,): path in the manifest, generator or ``"real"``, source, history of the view,
        format of the file as found, what was done. All but the first two may be ``""``.
    generators
        Columns of `similarities`: heads of a detector, or other detectors.
    similarities
        float64 (n, G); NaN where a column has no score.
    failures
        Path to error code.
    traits
        float64 (n, T): what each view shows, see `masksim.traits`; None where it is not known.
    """

    filenames: NDArray[np.str_]
    typ: NDArray[np.str_]
    sources: NDArray[np.str_]
    histories: NDArray[np.str_]
    formats: NDArray[np.str_]
    processing: NDArray[np.str_]
    generators: tuple[str, ...]
    similarities: Floats
    failures: Mapping[str, str] = field(default_factory=dict)
    traits: Floats | None = None

    @property
    def tested(self) -> list[str]:
        """Generators that there are images of, sorted."""
        return sorted(set(self.typ.tolist()) - {REAL})

    def count(self, mask: Bools) -> int:
        """Count the images, not views, among the rows where `mask` (n,) is true."""
        return len(np.unique(self.filenames[mask]))

    def images(self) -> dict[str, int]:
        """Count the images of each class, in the order of their names."""
        return {typ: self.count(self.typ == typ) for typ in np.unique(self.typ).tolist()}

    def select(self, mask: Bools) -> ScoreTable:
        """Return the rows where `mask` (n,) is true."""
        traits = None if self.traits is None else self.traits[mask]
        chosen = {name: getattr(self, name)[mask] for name in (*_FIELDS, "similarities")}
        return replace(self, traits=traits, **chosen)

    def only(self, columns: Sequence[str]) -> ScoreTable:
        """Return the table with these columns, in this order.

        Raises
        ------
        DataError
            One is not there.
        """
        if missing := [c for c in columns if c not in self.generators]:
            raise DataError(
                f"the scores have no column {', '.join(missing)}; there are "
                f"{', '.join(self.generators)}"
            )
        places = [self.generators.index(c) for c in columns]
        return replace(self, generators=tuple(columns), similarities=self.similarities[:, places])

    def joined(self, other: ScoreTable) -> ScoreTable:
        """Return the table with the columns of another one of the same views.

        Views are matched by file name and history; those that the other one lacks are NaN.
        """
        if twice := sorted(set(self.generators) & set(other.generators)):
            raise UsageError(f"two columns of the scores have the name {', '.join(twice)}")
        keys = zip(other.filenames.tolist(), other.histories.tolist(), strict=True)
        found = dict(zip(keys, other.similarities, strict=True))
        nothing = np.full(len(other.generators), np.nan)
        keys = zip(self.filenames.tolist(), self.histories.tolist(), strict=True)
        added = np.array([found.get(key, nothing) for key in keys])
        return replace(
            self,
            generators=(*self.generators, *other.generators),
            similarities=np.hstack([self.similarities, added]),
        )

    def check(self) -> None:
        """Refuse a table that cannot be measured.

        Raises
        ------
        DataError
            There are no real images, or no others, or a row lacks a score.
        """
        if REAL not in self.typ or not self.tested:
            raise DataError(
                f"the images are of {', '.join(sorted(set(self.typ.tolist())))}; needed are "
                f"{REAL!r} and at least one generator",
                code="manifest_invalid",
            )
        if np.isnan(self.similarities).any():
            raise DataError("some rows of the scores lack a score", code="manifest_invalid")

    def to_csv(self) -> str:
        """Write `FACTS`, a column a generator, and what the views show as ``trait side``, ..."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        numbers = self.similarities
        if self.traits is not None:
            numbers = np.hstack([numbers, self.traits])
        shown = () if self.traits is None else _TRAITS
        writer.writerow([*FACTS, *self.generators, *shown])
        facts = zip(*(getattr(self, name) for name in _FIELDS), strict=True)
        for row, values in zip(facts, numbers, strict=True):
            writer.writerow([*row, *("" if np.isnan(x) else f"{x:.7g}" for x in values)])
        return out.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> ScoreTable:
        """Read what `to_csv` writes, or any table with ``filename,typ`` and columns of scores.

        Parameters
        ----------
        text
            CSV with a heading. ``source``, ``history``, ``format`` and ``processing`` may be
            missing; every other column holds the scores of a detector, an empty cell none.

        Raises
        ------
        DataError
            A column is missing or there twice, a score is no finite number, or there are no rows.
        """
        rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
        head = [name.strip() for name in rows[0]] if rows else []
        columns = tuple(name for name in head if name not in (*FACTS, *_TRAITS))
        if not {*FACTS[:2]} <= set(head) or not columns or len(set(head)) != len(head):
            raise DataError(
                "a table of scores has the columns filename, typ and one or more detectors, each "
                f"once; found {', '.join(head) or 'nothing'}",
                code="manifest_invalid",
            )
        lines = [row for row in rows[1:] if any(row)]
        if not lines:
            raise DataError("the table of scores has no rows", code="manifest_invalid")
        if wrong := next((k for k, row in enumerate(lines, 2) if len(row) != len(head)), None):
            raise DataError(
                f"row {wrong} of the scores has {len(lines[wrong - 2])} cells, expected "
                f"{len(head)}",
                code="manifest_invalid",
            )
        cells = dict(zip(head, zip(*lines, strict=True), strict=True))

        def numbers(names: Sequence[str]) -> Floats:
            return np.array([[_number(x, name) for x in cells[name]] for name in names]).T

        # Tables of before have the first eight traits: then the last compression is not known.
        shown = tuple(name for name in _TRAITS if name in cells)
        traits = np.asarray(with_all_traits(numbers(shown)), np.float64) if shown else None
        if shown != _TRAITS[: len(shown)] or (traits is not None and traits.shape[1] < len(TRAITS)):
            traits = None
        empty = ("",) * len(lines)
        a, b, c, d, e, f = (np.array(cells.get(name, empty), dtype=np.str_) for name in FACTS)
        return cls(a, b, c, d, e, f, columns, numbers(columns), traits=traits)


def _number(text: str, column: str) -> float:
    if not text.strip():
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("inf")
    if not np.isfinite(value):
        raise DataError(
            f"{text!r} in the column {column!r} of the scores is not a finite number",
            code="manifest_invalid",
        )
    return value


# --- files ---------------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str]) -> str:
    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_scores(path: str | os.PathLike[str]) -> ScoreTable:
    """Read a saved table, see `ScoreTable.from_csv`; it may be packed by gzip.

    Raises
    ------
    DataError
        It cannot be read, or is no table of scores.
    """
    return ScoreTable.from_csv(_read(path))


def read_real_scores(path: str | os.PathLike[str], generators: Sequence[str]) -> Floats:
    """Read the scores of calibration photos: of rows with ``typ`` real, or all without that column.

    Parameters
    ----------
    path
        CSV, packed or not: a ``scores.csv`` of other photos, or the original's published scores.
    generators
        Columns wanted.

    Returns
    -------
    ndarray
        float64 (n, G).

    Raises
    ------
    DataError
        A column is missing, a score is no finite number, or there is no real photo.
    """
    reader = csv.DictReader(io.StringIO(_read(path)))
    rows = [row for row in reader if row.get("typ", REAL) == REAL]
    found = reader.fieldnames or []
    if missing := [name for name in generators if name not in found]:
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(found)}")
    try:
        scores = np.array([[float(row[name]) for name in generators] for row in rows])
    except (TypeError, ValueError) as error:
        raise DataError(f"a score in {path} is not a number: {error}") from error
    if not scores.size or not np.isfinite(scores).all():
        raise DataError(f"{path} has no finite scores of real photos")
    return scores


# --- what the original's evaluation saved --------------------------------------------------------


def read_original_scores(folder: str | os.PathLike[str]) -> ScoreTable:
    """Read a score folder of the original's ``evaluate.py``.

    Parameters
    ----------
    folder
        ``output/score/<checkpoints>/<data>/<training set>``, or one above, if only one of that
        kind lies in it. Its files are ``<test>_to_<trained>.json``, a list of (file name,
        probability); where there is only the ``.txt``, images are named by their number.

    Returns
    -------
    ScoreTable
        Of probabilities, histories not known.

    Raises
    ------
    DataError
        There is no such folder or more than one, a file is missing or cannot be read.
    """
    top = Path(folder)
    leaves = sorted(
        {p.parent for ext in ("json", "txt") for p in top.rglob(f"real_to_*.{ext}") if p.is_file()}
    )
    if len(leaves) != 1:
        found = ", ".join(str(leaf.relative_to(top)) for leaf in leaves)
        raise DataError(
            f"{top} must hold one folder of scores with real_to_*.json or .txt; found "
            + (found or "none")
        )
    leaf = leaves[0]
    stems = {path.stem for path in leaf.glob("*_to_*.*") if path.suffix in (".json", ".txt")}
    trained = sorted(s.removeprefix("real_to_") for s in stems if s.startswith("real_to_"))
    ends = tuple(f"_to_{name}" for name in trained)
    tests = sorted({s.removesuffix(end) for s in stems for end in ends if s.endswith(end)})
    if len(tests) < 2:
        raise DataError(f"{leaf} has scores of real images alone")
    names: list[str] = []
    typ: list[str] = []
    blocks: list[Floats] = []
    for test in tests:
        columns = [_original_file(leaf, test, name) for name in trained]
        images = [image for image, _ in columns[0]]
        for name, column in zip(trained, columns, strict=True):
            if [image for image, _ in column] != images:
                raise DataError(
                    f"{test}_to_{name} and {test}_to_{trained[0]} are not of the same images"
                )
        names += images
        typ += [test] * len(images)
        blocks.append(np.array([[p for _, p in column] for column in columns]).T)
    similarities = np.concatenate(blocks)
    if not np.isfinite(similarities).all():
        raise DataError("a score is not a finite number")
    sources = [name.rsplit("/", 2)[-2] if "/" in name else "" for name in names]
    empty = np.array([""] * len(names))
    return ScoreTable(
        np.array(names), np.array(typ), np.array(sources), empty, empty, empty,
        tuple(trained), similarities,
    )  # fmt: skip


def _original_file(leaf: Path, test: str, name: str) -> list[tuple[str, float]]:
    """Read names and probabilities of the images of one class by the head of another."""
    stem = f"{test}_to_{name}"
    path = next((p for p in (leaf / f"{stem}.json", leaf / f"{stem}.txt") if p.is_file()), None)
    if path is None:
        raise DataError(f"there are no scores {stem}")
    text = _read(path)
    try:
        if path.suffix == ".json":
            return [(str(image), float(p)) for image, p in json.loads(text)]
        return [(f"{test}/{i:05d}", float(p)) for i, p in enumerate(text.split())]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a list of scores: {error}") from error

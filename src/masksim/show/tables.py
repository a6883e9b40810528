"""One small table, written as text, CSV, LaTeX or Markdown.

Cells hold plain values; how they look is the column's business, and what must be escaped that of
the format. Text and Markdown are for reading and round; CSV is for programs and does not.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len

from masksim.errors import UsageError


class Interval(NamedTuple):
    """A measured value with the ends of its interval; both NaN where there is none."""

    value: float
    low: float
    high: float


Cell: TypeAlias = "str | int | float | Interval | None"

FORMATS = ("text", "markdown", "latex", "csv")
SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    key
        Its name in CSV, for programs.
    title
        Its name for people.
    digits
        After the point, for numbers that are not whole.
    percent
        Whether to write a share as a percentage; CSV keeps the share.
    """

    key: str
    title: str
    digits: int = 2
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes
    ----------
    name
        For file names: letters, digits, hyphens.
    title
        One line, for people.
    columns
        The first names the rows.
    rows
        As many cells each as there are columns. None is a cell without a value.
    note
        Sentences below the table.

    Raises
    ------
    UsageError
        A row has the wrong length.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        """Check the rows."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UsageError(
                    f"a row of {len(row)} cells in the table {self.name!r} of "
                    f"{len(self.columns)} columns"
                )

    def without_empty_columns(self) -> Table:
        """Leave out the columns in which no row has a value."""
        kept = [
            k
            for k in range(len(self.columns))
            if k == 0 or any(r[k] is not None for r in self.rows)
        ]
        return Table(
            self.name,
            self.title,
            tuple(self.columns[k] for k in kept),
            tuple(tuple(row[k] for k in kept) for row in self.rows),
            self.note,
        )

    def render(self, format: str, *, width: int | None = None) -> str:
        """Write the table.

        Parameters
        ----------
        format
            One of `FORMATS`.
        width
            Of text, see `to_text`.

        Raises
        ------
        UsageError
            The format is unknown.
        """
        if format == "text":
            return self.to_text(width)
        writers: dict[str, Callable[[], str]] = {
            "markdown": self.to_markdown,
            "latex": self.to_latex,
            "csv": self.to_csv,
        }
        if format not in writers:
            raise UsageError(f"unknown format {format!r}, expected one of {', '.join(FORMATS)}")
        return writers[format]()

    def to_text(self, width: int | None = None) -> str:
        """Write for a terminal; a table that is too wide is folded, the first column repeated.

        Parameters
        ----------
        width
            In characters; None: never folded.

        Returns
        -------
        str
            Without a line break at the end.
        """
        cells = [[_plain(c.title) for c in self.columns]]
        cells += [
            [_plain(_shown(v, c)) for v, c in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]
        right = [self._numeric(k) for k in range(len(self.columns))]
        widths = [max(cell_len(row[k]) for row in cells) for k in range(len(self.columns))]
        blocks: list[list[int]] = [[0]]
        for k in range(1, len(self.columns)):
            used = sum(widths[j] + 2 for j in blocks[-1])
            if width is not None and len(blocks[-1]) > 1 and used + widths[k] > width:
                blocks.append([0])
            blocks[-1].append(k)

        def line(row: Sequence[str], block: Sequence[int]) -> str:
            parts = [
                " " * (widths[k] - cell_len(row[k])) + row[k]
                if right[k]
                else row[k] + " " * (widths[k] - cell_len(row[k]))
                for k in block
            ]
            return "  ".join(parts).rstrip()

        lines = [_plain(self.title)]
        for block in blocks:
            lines.append("")
            lines.append(line(cells[0], block))
            lines.append("  ".join("-" * widths[k] for k in block))
            lines += [line(row, block) for row in cells[1:]]
        if self.note:
            lines += ["", *_wrapped(_plain(self.note), width)]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Write as GitHub's Markdown, title and note included."""
        lines = ["| " + " | ".join(_markdown(c.title) for c in self.columns) + " |"]
        marks = ["---:" if self._numeric(k) else "---" for k in range(len(self.columns))]
        lines.append("| " + " | ".join(marks) + " |")
        for row in self.rows:
            cells = (
                _markdown(_shown(v, c)) if isinstance(v, str) else _shown(v, c)
                for v, c in zip(row, self.columns, strict=True)
            )
            lines.append("| " + " | ".join(cells) + " |")
        parts = [f"**{_markdown(self.title)}**", "\n".join(lines)]
        if self.note:
            parts.append(_markdown(self.note))
        return "\n\n".join(parts)

    def to_latex(self) -> str:
        r"""Write as a LaTeX ``table`` with a ``tabular``; it needs no package."""
        marks = "".join("r" if self._numeric(k) else "l" for k in range(len(self.columns)))
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(' '.join(filter(None, (self.title + '.', self.note))))}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{marks}}}",
            r"\hline",
            " & ".join(_latex(c.title) for c in self.columns) + r" \\",
            r"\hline",
        ]
        for row in self.rows:
            cells = [_latex(_shown(v, c)) for v, c in zip(row, self.columns, strict=True)]
            # A line that starts with a bracket would be taken for an option of the line break.
            lines.append("{}" * cells[0].startswith("[") + " & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"])

    def to_csv(self) -> str:
        """Write for programs: keys as headings, full precision, ends of intervals in columns.

        Returns
        -------
        str
            Ends with a line break. A column with intervals is followed by ``<key>_low`` and
            ``<key>_high``.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        spans = [
            any(isinstance(row[k], Interval) for row in self.rows) for k in range(len(self.columns))
        ]
        head: list[str] = []
        for column, spread in zip(self.columns, spans, strict=True):
            head += [column.key]
            if spread:
                head += [f"{column.key}_low", f"{column.key}_high"]
        writer.writerow(head)
        for row in self.rows:
            line: list[str] = []
            for value, spread in zip(row, spans, strict=True):
                ends: tuple[Cell, ...] = (value,)
                if spread:
                    ends = tuple(value) if isinstance(value, Interval) else (value, None, None)
                line += ["" if _missing(v) else str(v) for v in ends]
            writer.writerow(line)
        return out.getvalue()

    def _numeric(self, k: int) -> bool:
        return k > 0 and not any(isinstance(row[k], str) for row in self.rows)


def _missing(value: Cell) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Cell, column: Column) -> str:
    """Write a cell for people; empty where there is no value."""
    if value is None or _missing(value):
        return ""
    if isinstance(value, Interval):
        shown = _number(value.value, column)
        if not shown or math.isnan(value.low) or math.isnan(value.high):
            return shown
        low, high = (_number(end, column).removesuffix(" %") for end in value[1:])
        return f"{shown} [{low}, {high}]"
    return _number(value, column) if isinstance(value, float) else str(value)


def _number(value: float, column: Column) -> str:
    if math.isnan(value):
        return ""
    if column.percent:
        return f"{100 * value:.{column.digits}f} %"
    return f"{value:.{column.digits}f}"


def _plain(text: str) -> str:
    """Make one line, without what would steer a terminal."""
    text = " ".join(text.split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _wrapped(text: str, width: int | None) -> list[str]:
    return textwrap.wrap(text, width or 100) or [""]


_MARKDOWN = {c: "\\" + c for c in "\\`*_[]|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "→": r"$\rightarrow$", "−": "$-$",
}  # fmt: skip


def _markdown(text: str) -> str:
    return "".join(_MARKDOWN.get(c, c) for c in _plain(text))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in _plain(text))

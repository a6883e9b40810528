"""One small table, written as text, CSV, LaTeX or Markdown.

Cells hold plain values; how they look is the column's business, and what must be escaped that of
the format. Text and Markdown are for reading and round; CSV is for programs and does not.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rich.cells import cell_len

from masksim.errors import UsageError
from masksim.metrics import Estimate
from masksim.provenance.untrusted_text import printable

Cell: TypeAlias = "str | int | float | Estimate | None"

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

    @classmethod
    def of(
        cls,
        name: str,
        title: str,
        columns: Sequence[Column],
        rows: Iterable[Mapping[str, Cell]],
        note: str = "",
    ) -> Table:
        """Make a table of rows by the columns' keys, without columns that have no value.

        The first column always stays.
        """
        cells = [tuple(row.get(column.key) for column in columns) for row in rows]
        kept = [k for k in range(len(columns)) if k == 0 or any(r[k] is not None for r in cells)]
        return cls(
            name,
            title,
            tuple(columns[k] for k in kept),
            tuple(tuple(row[k] for k in kept) for row in cells),
            note,
        )

    def noted(self, *notes: str) -> Table:
        """Return the table with these sentences below it; empty ones are left out."""
        return replace(self, note=" ".join(filter(None, notes)))

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
        if format not in FORMATS:
            raise UsageError(f"unknown format {format!r}, expected one of {', '.join(FORMATS)}")
        if format == "text":
            return self.to_text(width)
        writers = {"markdown": self.to_markdown, "latex": self.to_latex, "csv": self.to_csv}
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
        cells = [[_plain(text) for text in row] for row in self._texts()]
        right = [self._numeric(k) for k in range(len(self.columns))]
        widths = [max(cell_len(row[k]) for row in cells) for k in range(len(self.columns))]
        blocks: list[list[int]] = [[0]]
        for k in range(1, len(self.columns)):
            used = sum(widths[j] + 2 for j in blocks[-1])
            if width is not None and len(blocks[-1]) > 1 and used + widths[k] > width:
                blocks.append([0])
            blocks[-1].append(k)

        def padded(row: Sequence[str], k: int) -> str:
            space = " " * (widths[k] - cell_len(row[k]))
            return space + row[k] if right[k] else row[k] + space

        lines = [_plain(self.title)]
        for block in blocks:
            body = ["  ".join(padded(row, k) for k in block).rstrip() for row in cells]
            lines += ["", body[0], "  ".join("-" * widths[k] for k in block), *body[1:]]
        if self.note:
            lines += ["", *(textwrap.wrap(_plain(self.note), width or 100) or [""])]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Write as GitHub's Markdown, title and note included."""
        marks = ["---:" if self._numeric(k) else "---" for k in range(len(self.columns))]
        # Numbers need no escapes, and their intervals' brackets are to be read by people, too.
        head, *rows = self._texts(_markdown)
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)]
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
        for cells in self._texts()[1:]:
            row = " & ".join(_latex(text) for text in cells)
            # A line that starts with a bracket would be taken for an option of the line break.
            lines.append("{}" * row.startswith("[") + row + r" \\")
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
        wide = [
            any(isinstance(r[k], Estimate) for r in self.rows) for k in range(len(self.columns))
        ]
        head: list[str] = []
        for column, spread in zip(self.columns, wide, strict=True):
            ends = (f"{column.key}_low", f"{column.key}_high") if spread else ()
            head += [column.key, *ends]
        writer.writerow(head)
        for row in self.rows:
            line: list[str | int | float | None] = []
            for value, spread in zip(row, wide, strict=True):
                if isinstance(value, Estimate):
                    line += [value.value, value.low, value.high]
                else:
                    line += [value, None, None] if spread else [value]
            writer.writerow("" if _missing(x) else str(x) for x in line)
        return out.getvalue()

    def _numeric(self, k: int) -> bool:
        return k > 0 and not any(isinstance(row[k], str) for row in self.rows)

    def _texts(self, escape: Callable[[str], str] = str) -> list[list[str]]:
        """Titles, then rows, as people read them; words, not numbers, are escaped."""
        rows = [
            [
                escape(v) if isinstance(v, str) else _shown(v, c)
                for v, c in zip(row, self.columns, strict=True)
            ]
            for row in self.rows
        ]
        return [[escape(c.title) for c in self.columns], *rows]


def _missing(value: Cell) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Cell, column: Column) -> str:
    """Write a cell for people; empty where there is no value."""
    if value is None:
        return ""
    if isinstance(value, Estimate):
        shown = _number(value.value, column)
        if not shown or math.isnan(value.low) or math.isnan(value.high):
            return shown
        low, high = (_number(end, column).removesuffix(" %") for end in (value.low, value.high))
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
    return printable(" ".join(text.split()))


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

"""`masksim.show.tables`: one table in four formats, each read back by its own rules."""

from __future__ import annotations

import csv
import io
import re

import pytest

from masksim.errors import UsageError
from masksim.metrics import Estimate
from masksim.show.tables import FORMATS, Column, Table

NAN = float("nan")


def table() -> Table:
    return Table(
        "test-table",
        "A title: 5 % of a|b",
        (
            Column("name", "name"),
            Column("n", "n"),
            Column("auroc", "AUROC"),
            Column("rate", "rate ≤ 5 %", 1, percent=True),
            Column("words", "what & why"),
        ),
        (
            ("a|b_c*", 12, Estimate(0.98765, 0.9, 1.0), 0.0512, "50 % of $x_1$"),
            ('say "hi", <b>', 3, Estimate(0.5, NAN, NAN), None, "x\ty\n{z} \\ ~^#"),
            ("mean", None, 0.75, Estimate(0.25, 0.2, 0.3), ""),
        ),
        "A note about x_1.",
    )


def test_csv_is_read_back_in_full() -> None:
    rows = list(csv.DictReader(io.StringIO(table().to_csv())))
    assert list(rows[0]) == [
        "name", "n", "auroc", "auroc_low", "auroc_high", "rate", "rate_low", "rate_high", "words",
    ]  # fmt: skip
    assert [row["name"] for row in rows] == ["a|b_c*", 'say "hi", <b>', "mean"]
    assert float(rows[0]["auroc"]) == 0.98765
    assert float(rows[0]["auroc_high"]) == 1
    assert rows[1]["auroc_low"] == rows[1]["rate"] == rows[2]["n"] == ""
    assert float(rows[2]["rate_high"]) == 0.3
    assert rows[1]["words"] == "x\ty\n{z} \\ ~^#"


def test_markdown_keeps_its_columns() -> None:
    lines = table().to_markdown().splitlines()
    assert lines[0] == "**A title: 5 % of a\\|b**"
    body = [line for line in lines if line.startswith("|")]
    # A pipe counts as a border only where no backslash stands before it.
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body]
    assert {len(row) for row in cells} == {5}
    assert cells[1] == ["---", "---:", "---:", "---:", "---"]
    assert cells[2] == [r"a\|b\_c\*", "12", "0.99 [0.90, 1.00]", "5.1 %", r"50 % of $x\_1$"]
    assert cells[3][0] == 'say "hi", &lt;b&gt;'
    assert cells[3][2] == "0.50"
    assert cells[4][3] == "25.0 % [20.0, 30.0]"
    assert lines[-1] == r"A note about x\_1."


def test_latex_escapes_what_it_would_obey() -> None:
    text = table().to_latex()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 4, row
        plain = re.sub(r"\\[A-Za-z]+(\{\})?|\\[&%$#_{}\\]|\$[^$]*\$", "", row)
        assert not re.search(r"[%$#_{}^~\\]", plain), row
    assert r"50 \% of \$x\_1\$" in text
    assert r"x y \{z\} \textbackslash{} \textasciitilde{}\textasciicircum{}\#" in text
    assert r"rate $\leq$ 5 \%" in text
    assert r"\begin{tabular}{lrrrl}" in text


def test_latex_never_starts_a_row_with_a_bracket() -> None:
    one = Table("t", "t", (Column("a", "a"),), (("[x]",), ("y",)))
    assert "\n{}[x] " in one.to_latex()


def test_text_is_aligned_and_folded() -> None:
    wide = table().to_text()
    lines = wide.splitlines()
    head = next(line for line in lines if line.startswith("name"))
    assert lines.index(head) == 2
    assert "x y {z}" in wide  # one line a row
    narrow = table().to_text(48)
    assert max(map(len, narrow.splitlines())) <= 48
    blocks = [line for line in narrow.splitlines() if line.startswith("name")]
    assert len(blocks) > 1
    assert narrow.count('say "hi"') == len(blocks)
    # Numbers end where their heading ends.
    start = head.index("AUROC")
    row = next(line for line in lines if line.startswith("mean"))
    assert row[: start + 5].endswith("0.75")


def test_wide_letters_take_two_places() -> None:
    one = Table("t", "t", (Column("a", "a"), Column("b", "b")), (("画像", 1), ("ab", 22)))
    lines = one.to_text().splitlines()
    assert lines[-2] == "画像   1"
    assert lines[-1] == "ab    22"


def test_text_does_not_steer_a_terminal() -> None:
    one = Table("t", "t", (Column("a", "a"),), (("\x1b[2J",),))
    for format in ("text", "markdown", "latex"):
        assert "\x1b" not in one.render(format)


def test_columns_without_a_value_can_go() -> None:
    columns = (Column("a", "a"), Column("b", "b"), Column("c", "c"))
    one = Table.of("t", "t", columns, [{"c": 1, "more": 5}, {"a": None}])
    assert [c.key for c in one.columns] == ["a", "c"]
    assert one.rows == ((None, 1), (None, None))


def test_rows_must_fit_and_formats_be_known() -> None:
    with pytest.raises(UsageError, match="2 cells"):
        Table("t", "t", (Column("a", "a"),), (("x", 1),))
    with pytest.raises(UsageError, match="html"):
        table().render("html")
    assert all(table().render(format) for format in FORMATS)

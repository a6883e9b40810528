"""List the grid of degradations in docs/tables/degradations.md.

usage: python benchmarks/degradations.py
"""

from __future__ import annotations

from pages import ROOT

from masksim.evaluation.degrade import GRID

HEAD = """# Degradations

The grid of `masksim evaluate --degrade`, from `masksim.evaluation.degrade.GRID` by
`python benchmarks/degradations.py`. A family is the first word of a name. Why these:
[evaluate.md](../evaluate.md#degradations).

| name | what is done |
|---|---|
"""


def page() -> str:
    """Write the page."""
    return HEAD + "".join(f"| `{one.name}` | {one.does} |\n" for one in GRID.values())


if __name__ == "__main__":
    (ROOT / "docs" / "tables" / "degradations.md").write_text(page(), encoding="utf-8")

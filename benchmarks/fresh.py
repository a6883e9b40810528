"""The detector in the package on images of repositories that were collected after it was trained.

usage: python benchmarks/fresh.py --images FOLDER --work FOLDER [--workers N]
       python benchmarks/fresh.py --pages

FOLDER is where benchmarks/images.py put the images. Left out are those that the list says the
detector has seen (`seen_by`), and all others of their owners. Each file is judged as it was found.
Answers are kept in --work: call it again and it goes on. --model FOLDER judges by another detector,
and prints the page instead of writing it. Writes benchmarks/results/fresh.json,
docs/tables/fresh.md and the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from images import answered, path_of, read_list, unseen
from numpy.typing import NDArray
from pages import ROOT, fill
from unseen import CLAIMED, SIDES, percent, percent_fine, share, table_of

import masksim
from masksim.data.manifest import REAL
from masksim.evaluation.measures import EVIDENT
from masksim.verdict import SURVIVING

RESULTS = ROOT / "benchmarks" / "results" / "fresh.json"
FEWEST = 20  # images of a row of its own
FEWEST_REPOSITORIES = 5  # in the short table


def judge(
    images: Path, work: Path, workers: int, model: Path | None = None
) -> list[dict[str, Any]]:
    """Judge every listed image that is new to the detector; one row an image, missing ones too."""
    path = work / f"{masksim.__version__}-{detector(model).sha256[:16]}-{SURVIVING:g}.jsonl"
    listed = unseen(read_list())
    files = {line["blob"]: images / path_of(line) for line in listed}
    there = {blob: file for blob, file in files.items() if file.exists()}
    answers = answered(path, there, partial(answer_of, model=model), workers)
    return [{**line, **answers.get(line["blob"], {"failed": "missing"})} for line in listed]


@cache
def detector(model: Path | None) -> masksim.Detector:
    """Load a detector, by default that in the package, once a process."""
    return masksim.load_detector(model, threads=1)


def answer_of(file: Path, model: Path | None) -> dict[str, float | str]:
    """Judge a file."""
    try:
        verdict = detector(model).detect(file).verdict
    except masksim.MasksimError as error:
        return {"failed": error.code}
    assert verdict.rate_as_found is not None
    return {"rate": verdict.rate_as_found, "level": verdict.level}


def shares_of(rows: Sequence[Mapping[str, Any]], model: Path | None = None) -> dict[str, Any]:
    """Shares at the claimed rates and of verdicts, by generator, and by kind of photo."""
    judged = [row for row in rows if "failed" not in row]
    generators = np.array([row["generator"] for row in judged])
    kinds = np.array([row["kind"] for row in judged])
    formats = np.array([{"MPO": "JPEG"}.get(row["format"], row["format"]) for row in judged])
    sides = np.array([min(int(row["width"]), int(row["height"])) for row in judged])
    real = generators == REAL
    groups: dict[str, NDArray[np.bool_]] = {"all": real}
    for low, high, name in SIDES:
        groups[f"side {name}"] = real & (sides >= low) & (sides < high)
    groups |= {f"format {name}": real & (formats == name) for name in np.unique(formats[real])}
    groups |= {f"kind {name}": real & (kinds == name) for name in np.unique(kinds[real])}

    def row_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
        own = [row for row, taken in zip(judged, mask.tolist(), strict=True) if taken]
        sources = np.array([row["repository"] for row in own])
        rates = np.array([row["rate"] for row in own])
        levels = np.array([row["level"] for row in own])
        return {
            "images": len(own),
            "repositories": len(np.unique(sources)),
            **{f"{c:g}": share(rates <= c, sources) for c in CLAIMED},
            "evidence": share(np.isin(levels, list(EVIDENT)), sources),
            "fragile": share(levels == "fragile", sources),
            "inconclusive": share(levels == "inconclusive", sources),
        }

    return {
        "detector": detector(model).name,
        "missing": sum(row.get("failed") == "missing" for row in rows),
        "failed": sum(row.get("failed", "missing") != "missing" for row in rows),
        "generators": {
            name: row_of(generators == name) for name in np.unique(generators[~real]).tolist()
        },
        "photos": {
            name: row_of(mask)
            for name, mask in groups.items()
            if mask.sum() >= FEWEST or (name == "all" and mask.any())
        },
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Write docs/tables/fresh.md."""

    def lines(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
        return [
            [name, str(row["images"]), str(row["repositories"]),
             *(percent_fine(row[f"{c:g}"]) for c in CLAIMED),
             percent(row["evidence"]), percent(row["fragile"]), percent(row["inconclusive"])]
            for name, row in rows.items()
        ]  # fmt: skip

    head = ["images", "repositories", "at 1 %", "at 5 %", "at 10 %",
            "evidence", "fragile", "inconclusive"]  # fmt: skip
    return f"""# {found["detector"]} on repositories collected after it was trained

Files as found. Made by `python benchmarks/fresh.py --images FOLDER --work FOLDER` from the images
of `benchmarks/images.csv` that are of no owner of whom the detector has seen an image.

In per cent, with 95 % intervals over repositories: images whose joint rate is at most the claimed
one. "Evidence" are verdicts "evidence" and "strong evidence", "fragile" those whose evidence does
not outlive a small re-encoding. Missing: {found["missing"]} images; not judged:
{found["failed"]}.

## What is found

{table_of(["made by", *head], lines(found["generators"]))}

## False alarms

{table_of(["photos", *head], lines(found["photos"]))}
"""


def summary(found: Mapping[str, Any]) -> str:
    """Write the table of docs/results.md."""
    rows = {
        name: row
        for name, row in found["generators"].items()
        if row["images"] >= FEWEST and row["repositories"] >= FEWEST_REPOSITORIES
    } | {"*real photos*": found["photos"]["all"]}
    return table_of(
        ["made by", "images (repositories)", "at 5 %", "at 1 %", "evidence"],
        [
            [name, f"{row['images']} ({row['repositories']})", percent(row["0.05"]),
             percent(row["0.01"]), percent(row["evidence"])]
            for name, row in rows.items()
        ],
    )  # fmt: skip


def main() -> None:
    """Judge, measure, write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pages", action="store_true")
    given = parser.parse_args()
    if not given.pages:
        if not (given.images and given.work):
            parser.error("--images and --work, or --pages")
        rows = judge(given.images, given.work, given.workers, given.model)
        found = shares_of(rows, given.model)
        if given.model:
            print(markdown(found))
            return
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    (ROOT / "docs" / "tables" / "fresh.md").write_text(markdown(found), encoding="utf-8")
    fill(ROOT / "docs" / "results.md", "fresh", summary(found))


if __name__ == "__main__":
    main()

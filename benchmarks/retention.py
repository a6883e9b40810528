"""What stays found, and which photos raise an alarm, once images are resized and passed on.

usage: python benchmarks/retention.py --images FOLDER --work FOLDER [--real N] [--workers N]
       python benchmarks/retention.py --pages

FOLDER is where benchmarks/images.py put the images; those that the detector has not seen are taken,
as in benchmarks/fresh.py: all generated ones, and N real photos, repositories in turn. Each has its
joint rate as found, and after some degradations of `masksim evaluate --degrade`, as the file that
it would be then. Rates are kept in --work: call it again and it goes on. Writes
benchmarks/results/retention.json and docs/tables/retention.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from images import answered, drawn, unseen_rows
from pages import ROOT
from unseen import CLAIMED, percent, percent_fine, share, table_of

import masksim
from masksim.augment import rng_for
from masksim.data.manifest import REAL, Row
from masksim.evaluation.degrade import GRID
from masksim.image import load_image

RESULTS = ROOT / "benchmarks" / "results" / "retention.json"
ASKED = ("none", "resize-0.75", "resize-0.5", "social-1600-q80", "social-1080-q72")
WORDS = {
    "none": "as found",
    "resize-0.75": "both sides times 0.75",
    "resize-0.5": "half size",
    "social-1600-q80": "a messenger: at most 1,600 pixels, JPEG 80",
    "social-1080-q72": "a network: at most 1,080 pixels, JPEG 72",
}


@cache
def detector() -> masksim.Detector:
    """Load the detector in the package, once a process."""
    return masksim.load_detector(threads=1, stability=False)


def rates_of(row: Row, images: Path) -> dict[str, dict[str, float | None]]:
    """Rank a file after each degradation; None where that leaves no image to analyse."""
    found: dict[str, float | None] = dict.fromkeys(ASKED)
    try:
        loaded = load_image(images / row.path)
    except masksim.MasksimError:
        return {"rates": found}
    for name in ASKED:
        step = GRID[name]
        format, quality = step.saved_as or (loaded.facts.format, loaded.facts.jpeg_quality)
        try:
            pixels = step.apply(loaded.pixels, rng_for(0, row.key, name))
            rates = detector().rates(*detector().measure_pixels(pixels, quality, format))
        except masksim.MasksimError:
            continue
        assert rates is not None
        found[name] = rates.joint
    return {"rates": found}


def judge(rows: Sequence[Row], images: Path, work: Path, workers: int) -> list[dict[str, Any]]:
    """Rank all files; the rates are kept."""
    path = work / f"retention-{masksim.__version__}-{detector().sha256[:16]}.jsonl"
    files = {row.key: row for row in rows}
    answers = answered(path, files, partial(rates_of, images=images), workers)
    return [
        {"generator": row.generator, "source": row.source, "rates": answers[row.key]["rates"]}
        for row in rows
    ]


def measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares found, of these the shares that stay found, and alarms of photos."""
    real = np.array([row["generator"] == REAL for row in rows])
    sources = np.array([row["source"] for row in rows])
    rates = {name: np.array([row["rates"][name] for row in rows], float) for name in ASKED}
    out: dict[str, Any] = {}
    for name in ASKED:
        there = ~np.isnan(rates[name]) & ~np.isnan(rates["none"])
        line: dict[str, Any] = {"judged": int(there.sum())}
        for claimed in CLAIMED:
            hit = rates[name] <= claimed
            before = rates["none"] <= claimed
            line[f"{claimed:g}"] = {
                "found": share(hit[there & ~real], sources[there & ~real]),
                "kept": share(hit[there & ~real & before], sources[there & ~real & before]),
                "photos": share(hit[there & real], sources[there & real]),
            }
        out[name] = line
    return {
        "detector": detector().name,
        "generated": int((~real).sum()),
        "photos": int(real.sum()),
        "repositories": len(np.unique(sources)),
        "after": out,
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Write docs/tables/retention.md."""
    head = ["", "found at 5 %", "stays found at 5 %", "photos at 5 %",
            "found at 1 %", "stays found at 1 %", "photos at 1 %"]  # fmt: skip
    lines = []
    for name in ASKED:
        line = found["after"][name]
        cells = [WORDS[name]]
        for claimed in ("0.05", "0.01"):
            one = line[claimed]
            kept = "" if name == "none" else percent(one["kept"])
            cells += [percent(one["found"]), kept, percent_fine(one["photos"])]
        lines.append(cells)
    return f"""# What stays found of images that are resized and passed on

{found["detector"]}, on {found["generated"]} generated images and {found["photos"]} real photos of
{found["repositories"]} repositories that it had not seen. Made by `python benchmarks/retention.py
--images FOLDER --work FOLDER`, from the images that benchmarks/fresh.py takes. Every image counts
the same, whoever made it.

In per cent, with 95 % intervals over repositories: generated images whose joint rate is at most the
claimed one; of those that have it as found, how many have it still; and photos that have it.

{table_of(head, lines)}
"""


def main() -> None:
    """Judge, measure, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--real", type=int, default=300, help="real photos")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pages", action="store_true")
    given = parser.parse_args()
    if not given.pages:
        if not (given.images and given.work):
            parser.error("--images and --work, or --pages")
        there, missing = unseen_rows(given.images)
        rows = drawn(there, {"*": len(there), REAL: given.real})
        found = measured(judge(rows, given.images, given.work, given.workers))
        text = json.dumps({**found, "missing": missing}, indent=1)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    (ROOT / "docs" / "tables" / "retention.md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()

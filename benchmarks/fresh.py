"""The detector in the package on images of repositories that were collected after it was trained.

usage: python benchmarks/fresh.py --images FOLDER --work FOLDER
       python benchmarks/fresh.py --pages

FOLDER is where benchmarks/images.py put the images. Left out are repositories that the list says
the detector's training may have seen, and any with an image that its calibration holds: such an
image is known by what it shows (`masksim.traits`), to four digits. Each file is judged as it was
found, by `masksim.Detector.detect`. Answers are kept in --work: call it again and it goes on.
Writes benchmarks/results/fresh.json, docs/tables/fresh.md and the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from images import path_of, read_list
from numpy.typing import NDArray
from pages import ROOT, fill
from unseen import percent, percent_fine, share, table_of

import masksim
from masksim.checkpoint import DetectorFile
from masksim.data.manifest import REAL
from masksim.image import load_image
from masksim.load import bundled_path
from masksim.traits import TRAITS

RESULTS = ROOT / "benchmarks" / "results" / "fresh.json"
CLAIMED = (0.01, 0.05, 0.10)
FEWEST = 20  # images of a row of its own
COMPARED = [TRAITS.index(t) for t in ("side", "energy", "sharpness", "chroma", "brightness")]
FOUND = ("strong evidence", "evidence")


def judge(images: Path, work: Path) -> list[dict[str, Any]]:
    """Judge every listed image of repositories that may be new; one row an image."""
    detector = masksim.load_detector()
    arrays = DetectorFile.load(bundled_path()).calibration
    known = np.concatenate([arrays["real_traits"], arrays["own_traits"]])[:, COMPARED]
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{detector.sha256[:16]}.jsonl"
    rows = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )
    done = {row["blob"] for row in rows}
    with path.open("a", encoding="utf-8") as out:
        for line in read_list():
            file = images / path_of(line)
            if line["seen_by"] or line["blob"] in done or not file.exists():
                continue
            row: dict[str, Any] = {
                key: line[key] for key in ("blob", "repository", "generator", "format", "kind")
            }
            try:
                loaded = load_image(file)
                facts = loaded.facts
                traits = detector.measure_pixels(loaded.pixels, facts.jpeg_quality, facts.format)[1]
                seen = traits[COMPARED]
                row["known"] = bool(
                    (np.abs(known - seen) <= 1e-4 * (1 + np.abs(seen))).all(axis=1).any()
                )
                verdict = detector.detect(file).verdict
                row |= {
                    "side": min(facts.width, facts.height),
                    "rate": verdict.false_positive_rate,
                    "level": verdict.level,
                }
            except masksim.MasksimError as error:
                row["failed"] = error.code
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
    return rows


def measure(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares at the claimed rates and of verdicts, by generator, and by kind of photo."""
    old = {row["repository"] for row in rows if row.get("known")}
    judged = [row for row in rows if row["repository"] not in old and "failed" not in row]
    generators = np.array([row["generator"] for row in judged])
    kinds = np.array([row["kind"] for row in judged])
    formats = np.array([row["format"] for row in judged])
    sides = np.array([row["side"] for row in judged])
    real = generators == REAL
    groups: dict[str, NDArray[np.bool_]] = {"all": real}
    for low, high, name in (
        (256, 512, "256 to 511"), (512, 1024, "512 to 1,023"), (1024, 10**9, "1,024 and more"),
    ):  # fmt: skip
        groups[f"side {name}"] = real & (sides >= low) & (sides < high)
    groups |= {f"format {name}": real & (formats == name) for name in np.unique(formats[real])}
    groups |= {f"kind {name}": real & (kinds == name) for name in np.unique(kinds[real])}

    def row_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
        own = [row for row, taken in zip(judged, mask.tolist(), strict=True) if taken]
        sources = np.array([row["repository"] for row in own])
        # An image that cannot be judged has no rate: it is not found, and no alarm.
        rates = np.array([np.inf if row["rate"] is None else row["rate"] for row in own])
        levels = np.array([row["level"] for row in own])
        return {
            "images": len(own),
            "repositories": len(np.unique(sources)),
            **{f"{c:g}": share(rates <= c, sources) for c in CLAIMED},
            "evidence": share(np.isin(levels, FOUND), sources),
            "inconclusive": share(levels == "inconclusive", sources),
        }

    return {
        "detector": masksim.load_detector().name,
        "repositories left out": len(old),
        "failed": sum("failed" in row for row in rows),
        "generators": {
            name: row_of(generators == name) for name in np.unique(generators[~real]).tolist()
        },
        "photos": {name: row_of(mask) for name, mask in groups.items() if mask.sum() >= FEWEST},
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Write docs/tables/fresh.md."""

    def lines(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
        return [
            [name, str(row["images"]), str(row["repositories"]),
             *(percent_fine(row[f"{c:g}"]) for c in CLAIMED),
             percent(row["evidence"]), percent(row["inconclusive"])]
            for name, row in rows.items()
        ]  # fmt: skip

    head = ["images", "repositories", "at 1 %", "at 5 %", "at 10 %", "evidence", "inconclusive"]
    return f"""# {found["detector"]} on repositories collected after it was trained

Files as found, judged as `masksim detect` judges them. Made by
`python benchmarks/fresh.py --images FOLDER --work FOLDER` from the images that
`benchmarks/images.csv` lists of repositories that the detector's training had not seen. Of these,
{found["repositories left out"]} repositories were left out because the calibration held an image of
them. In per cent, with 95 % intervals over repositories; "evidence" is the share of verdicts
"evidence" or "strong evidence".

## What is found

{table_of(["made by", *head], lines(found["generators"]))}

## False alarms

{table_of(["photos", *head], lines(found["photos"]))}
"""


def summary(found: Mapping[str, Any]) -> str:
    """Write the table of docs/results.md."""
    rows = {
        name: row for name, row in found["generators"].items() if row["images"] >= FEWEST
    } | {"*real photos*": found["photos"]["all"]}  # fmt: skip
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
    parser.add_argument("--pages", action="store_true")
    given = parser.parse_args()
    if not given.pages:
        found = measure(judge(given.images, given.work))
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    (ROOT / "docs" / "tables" / "fresh.md").write_text(markdown(found), encoding="utf-8")
    fill(ROOT / "docs" / "results.md", "fresh", summary(found))


if __name__ == "__main__":
    main()

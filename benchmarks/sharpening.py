"""What sharpening for the web does to the rate of false alarms of the detector in the package.

usage: python benchmarks/sharpening.py --images FOLDER

FOLDER is where benchmarks/images.py put the images. Photos of repositories of which the list does
not know that the detector was trained on them are reduced to a shorter side of 800 pixels,
sharpened or not, and saved as JPEG of quality 85.
Writes benchmarks/results/sharpening.json and docs/tables/sharpening.md.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from images import path_of, read_list
from pages import ROOT
from PIL import Image, ImageFilter
from unseen import CLAIMED, percent_fine, share, table_of

import masksim
from masksim.augment import reencode, resize
from masksim.data.manifest import REAL
from masksim.image import load_image

SIDE, QUALITY, RADIUS = 800, 85, 0.7  # pixels, of the JPEG, pixels
STRENGTHS = (0, 60, 120)  # per cent of the unsharp mask
MOST = 4  # photos of a repository


def main() -> None:
    """Process, judge, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    given = parser.parse_args()
    detector = masksim.load_detector()
    rates: dict[int, list[float]] = {strength: [] for strength in STRENGTHS}
    taken: Counter[str] = Counter()
    sources = []
    for line in read_list():
        large = min(int(line["width"]), int(line["height"])) > SIDE
        file = given.images / path_of(line)
        if line["generator"] != REAL or line["seen_by"] or not large or not file.exists():
            continue
        if taken[line["repository"]] == MOST:
            continue
        taken[line["repository"]] += 1
        sources.append(line["repository"])
        pixels = load_image(file).pixels
        reduced = resize(pixels, SIDE / min(pixels.shape[:2]), "lanczos")
        for strength in STRENGTHS:
            shown = Image.fromarray(reduced)
            if strength:
                shown = shown.filter(ImageFilter.UnsharpMask(RADIUS, strength, 0))
            saved = reencode(np.asarray(shown), "JPEG", QUALITY, "4:2:0")
            similarities, traits = detector.measure_pixels(saved, QUALITY, "JPEG")
            found = detector.rates(similarities, traits)
            assert found is not None
            rates[strength].append(found.joint)
    groups = np.array(sources)
    result = {
        "detector": detector.name,
        "photos": len(groups),
        "repositories": len(taken),
        "alarms": {
            str(strength): {f"{c:g}": share(np.array(own) <= c, groups) for c in CLAIMED}
            for strength, own in rates.items()
        },
    }
    path = ROOT / "benchmarks" / "results" / "sharpening.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = table_of(
        ["unsharp mask", "at 1 %", "at 5 %", "at 10 %"],
        [
            [f"{strength} %" if strength else "none", *(percent_fine(v) for v in row.values())]
            for strength, row in ((s, result["alarms"][str(s)]) for s in STRENGTHS)  # type: ignore[index]
        ],
    )
    page = ROOT / "docs" / "tables" / "sharpening.md"
    page.write_text(
        f"""# False alarms after sharpening

Made by `python benchmarks/sharpening.py --images FOLDER`: {len(groups)} photos of {len(taken)}
repositories of which the list does not know that {detector.name} was trained on them. They were
reduced to {SIDE} pixels, sharpened, and saved as JPEG of quality {QUALITY}. Share of false alarms,
in per cent, with 95 % intervals over repositories.

{table}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

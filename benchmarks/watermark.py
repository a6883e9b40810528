"""How often open watermarks are read where there are none, and after JPEG where there is one.

usage: python benchmarks/watermark.py real=PHOTOS [sd1=FOLDER ...] [--encode 100]

Of each folder, whose name stands before "=": for every mark the bits that agree, and the images
with a match; the first folder is of real photos: `Mark.most_on_photos` holds its largest number.
--encode N writes each mark into N of those photos by the package invisible-watermark itself (it
and opencv must be installed), and reads it as it is and after JPEG of quality 80 to 100, beside
what that package reads. Writes benchmarks/results/watermark.json and fills docs/watermarks.md.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from model_card import ROOT, fill
from numpy.typing import NDArray
from PIL import Image

from masksim.errors import ImageError
from masksim.image import load_image
from masksim.watermark import MARKS, Mark, agreements, decode_bits, find_watermarks

LONGEST = 1024  # pixels: as large as these generators' images are


def images(folder: Path) -> Iterator[NDArray[np.uint8]]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            top = load_image(path, part=lambda h, w: (0, 0, min(h, 8), min(w, 8))).top()
        except ImageError as error:
            print(f"left out: {error}")
            continue
        assert top is not None
        yield top


def read(folder: Path) -> dict[str, Any]:
    """Of each mark the bits that agree, and in how many images it is found."""
    agreed: dict[str, list[int]] = {mark.name: [] for mark in MARKS}
    found: Counter[str] = Counter()
    n = 0
    for top in images(folder):
        counts = agreements(top)
        if not counts:  # too small
            continue
        n += 1
        for name, count in counts.items():
            agreed[name].append(count)
        found.update(match.mark for match in find_watermarks(top))
    marks = {}
    for mark in MARKS:
        bits, values = len(mark.bits), np.array(agreed[mark.name])
        most = int(values.max())
        tail = sum(math.comb(bits, k) for k in range(most, bits + 1)) / 2**bits
        marks[mark.name] = {
            "bits": bits, "mean": round(float(values.mean()), 1), "most": most,
            # So many images would be expected to reach that, were bits the throws of coins.
            "expected": float(f"{n * len(mark.readings) * tail:.2g}"), "found": found[mark.name],
        }  # fmt: skip
    return {"images": n, "marks": marks}


def encoded(mark: Mark, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from imwatermark.maxDct import EmbedMaxDct

    kind = np.uint8 if mark.readings[0] == "bytes" else np.float32
    given = np.ascontiguousarray(pixels[..., ::-1].astype(kind))
    out: Any = EmbedMaxDct(list(map(int, mark.bits)), wmLen=len(mark.bits)).encode(given)
    return np.rint(out[..., ::-1]).clip(0, 255).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def robustness(folder: Path, count: int) -> list[dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    files = [files[k] for k in np.random.default_rng(0).permutation(len(files))]
    plain: list[NDArray[np.uint8]] = []
    for path in files:
        if len(plain) == count:
            break
        try:
            image = Image.fromarray(load_image(path).pixels)
        except ImageError:
            continue
        if min(image.size) >= 256:
            image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
            if min(image.size) >= 256:
                plain.append(np.asarray(image))
    rows = []
    for mark in MARKS:
        counted = {
            quality: {"found": 0, "package": 0, "wrong": 0}
            for quality in (None, 100, 95, 90, 85, 80)
        }
        for pixels in plain:
            marked = encoded(mark, pixels)
            for quality, count in counted.items():
                now = marked if quality is None else jpeg(marked, quality)
                names = [match.mark for match in find_watermarks(now)]
                count["found"] += mark.name in names
                count["wrong"] += bool(set(names) - {mark.name})
                count["package"] += bool((decode_bits(now, len(mark.bits)) == mark.bits).all())
        rows += [
            {"mark": mark.name, "quality": quality, "images": len(plain), **count}
            for quality, count in counted.items()
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", help="name=folder")
    parser.add_argument("--encode", type=int, default=0, metavar="N")
    options = parser.parse_args()
    folders = dict(folder.split("=", 1) for folder in options.folders)
    result: dict[str, Any] = {"folders": {n: read(Path(f)) for n, f in folders.items()}}
    if options.encode:
        result["encoded"] = robustness(Path(next(iter(folders.values()))), options.encode)
    path = ROOT / "benchmarks" / "results" / "watermark.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fill(ROOT / "docs" / "watermarks.md", "watermark", markdown(result))


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "| images of | images | mark | bits | agree on average | at most | found |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for name, folder in result["folders"].items():
        for mark, of in folder["marks"].items():
            lines.append(
                f"| {name} | {folder['images']} | {mark} | {of['bits']} | {of['mean']} | "
                f"{of['most']} | {of['found']} |"
            )
    if encoded := result.get("encoded"):
        lines += [
            "",
            "| written into photos | after | photos | found | the package reads all bits | "
            "another mark found |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for row in encoded:
            after = "nothing" if row["quality"] is None else f"JPEG {row['quality']}"
            lines.append(
                f"| {row['mark']} | {after} | {row['images']} | {row['found']} | "
                f"{row['package']} | {row['wrong']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""How often open watermarks are read where there are none, and after JPEG where there is one.

usage: python benchmarks/watermark.py real=PHOTOS [sd1=FOLDER ...] [--encode 100]

Of each folder, whose name stands before "=": for every mark the bits that agree, and the images
with a match; the first folder is of real photos: `Mark.most_on_photos` holds its largest number.
--encode N writes each mark into N of those photos by the package invisible-watermark itself (it
and opencv must be installed), and reads it as it is and after JPEG of quality 80 to 100, beside
what that package reads. Writes benchmarks/results/watermark.json and docs/tables/watermarks.md.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pages import ROOT, fill
from PIL import Image

from masksim.errors import ImageError
from masksim.image import load_image
from masksim.provenance.watermark import MARKS, Mark, agreements, decode_bits, find_watermarks

LONGEST = 768  # pixels, between the sizes of these generators' images


def count(path: Path) -> tuple[dict[str, int], list[str]]:
    """Bits that agree with each mark, and the marks that are found; of no image nothing."""
    try:
        top = load_image(path, part=lambda h, w: (0, 0, min(h, 8), min(w, 8))).top()
    except ImageError:
        return {}, []
    assert top is not None
    return agreements(top), [match.mark for match in find_watermarks(top)]


def read(folder: Path, pool: Executor) -> dict[str, Any]:
    """Of each mark the bits that agree, and in how many images it is found."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    agreed: dict[str, list[int]] = {mark.name: [] for mark in MARKS}
    found: Counter[str] = Counter()
    n = 0
    for counts, names in pool.map(count, files, chunksize=8):
        n += bool(counts)  # else too small
        for name, agree in counts.items():
            agreed[name].append(agree)
        found.update(names)
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


def photos(folder: Path, wanted: int) -> list[NDArray[np.uint8]]:
    """So many photos of a folder, made no larger than `LONGEST`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found: list[NDArray[np.uint8]] = []
    for k in np.random.default_rng(0).permutation(len(files)):
        if len(found) == wanted:
            break
        try:
            image = Image.fromarray(load_image(files[k]).pixels)
        except ImageError:
            continue
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        if min(image.size) >= 256:
            found.append(np.asarray(image))
    return found


def robustness(pixels: NDArray[np.uint8]) -> list[tuple[str, int | None, bool, bool, bool]]:
    """Write each mark into a photo: mark, quality, found, read whole by the package, another."""
    rows = []
    for mark in MARKS:
        marked = encoded(mark, pixels)
        for quality in (None, 100, 95, 90, 85, 80):
            now = marked if quality is None else jpeg(marked, quality)
            names = [match.mark for match in find_watermarks(now)]
            whole = bool((decode_bits(now, len(mark.bits)) == mark.bits).all())
            rows.append(
                (mark.name, quality, mark.name in names, whole, names not in ([], [mark.name]))
            )
    return rows


def summed(rows: list[tuple[str, int | None, bool, bool, bool]]) -> list[dict[str, Any]]:
    out: dict[tuple[str, int | None], dict[str, Any]] = {}
    for name, quality, found, whole, other in rows:
        row = out.setdefault(
            (name, quality),
            {"mark": name, "quality": quality, "images": 0, "found": 0, "package": 0, "wrong": 0},
        )
        row["images"] += 1
        row["found"] += found
        row["package"] += whole
        row["wrong"] += other
    order = [mark.name for mark in MARKS]
    return sorted(out.values(), key=lambda row: order.index(row["mark"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", help="name=folder")
    parser.add_argument("--encode", type=int, default=0, metavar="N")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folders = {name: Path(path) for name, path in (f.split("=", 1) for f in options.folders)}
    result: dict[str, Any] = {}
    with ProcessPoolExecutor(options.workers) as pool:
        result["folders"] = {name: read(folder, pool) for name, folder in folders.items()}
        if options.encode:
            chosen = photos(next(iter(folders.values())), options.encode)
            done = pool.map(robustness, chosen)
            result["encoded"] = summed([row for rows in done for row in rows])
    path = ROOT / "benchmarks" / "results" / "watermark.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fill(ROOT / "docs" / "tables" / "watermarks.md", "watermark", markdown(result))


def markdown(result: dict[str, Any]) -> str:
    names = [mark.name for mark in MARKS]
    lines = [
        "Images with a match, and in brackets the most bits that agreed on any image:",
        "",
        "| images of | images | " + " | ".join(f"{m.name} ({len(m.bits)})" for m in MARKS) + " |",
        "|---" + "|---:" * (len(MARKS) + 1) + "|",
    ]
    for name, folder in result["folders"].items():
        cells = [f"{folder['marks'][m]['found']} ({folder['marks'][m]['most']})" for m in names]
        lines.append(f"| {name} | {folder['images']} | " + " | ".join(cells) + " |")
    if encoded := result.get("encoded"):
        of = {(row["mark"], row["quality"]): row for row in encoded}
        qualities = list(dict.fromkeys(row["quality"] for row in encoded))
        heads = ["as written" if q is None else f"JPEG {q}" for q in qualities]
        lines += [
            "",
            f"Of {encoded[0]['images']} photos that a mark was written into those where it is "
            "found, and in brackets those where the package reads all bits right; another mark was "
            f"found in {sum(row['wrong'] for row in encoded)}:",
            "",
            "| mark | " + " | ".join(heads) + " |",
            "|---" + "|---:" * len(heads) + "|",
        ]
        for name in names:
            cells = [f"{of[name, q]['found']} ({of[name, q]['package']})" for q in qualities]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""What the original's label leak does: only real photos are resized in training, or both classes.

usage: python benchmarks/label_leak.py --manifest MANIFEST [--cache DIR] [--window 256] [--steps N]

Two detectors of the original recipe, equal but for `resize_reals`: residual `cross_diff`, all
generators in one detector, same seed, same steps. Both are measured on the `val` images as they
are and resized by 0.5, 0.75 and 1.5, before the same JPEG. All images are first cut to the central
region of two windows, so that a factor of 0.5 leaves one, and kept undecoded in the cache. Writes
benchmarks/results/label_leak.json and the table of docs/tables/label-leak.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from pages import ROOT, fill
from PIL import Image

from masksim.augment import reencode, resize, rng_for
from masksim.data.manifest import REAL, Manifest, Row, read_manifest
from masksim.detector import Detector
from masksim.errors import MasksimError
from masksim.image import load_image
from masksim.load import load_detector
from masksim.metrics import auroc, bootstrap
from masksim.original.config import OriginalConfig
from masksim.original.split import ANY
from masksim.original.train import train_original

SCALES = (1.0, 0.5, 0.75, 1.5)
PAIRS = [(scale, scale) for scale in SCALES] + [(scale, 1.0) for scale in SCALES[1:]]
ARMS = {"photos only": True, "both classes": False}


def some(rows: list[Row], count: int) -> list[Row]:
    """Up to `count` rows, one source after the other, always the same ones."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.extra.get("blob") or row.path):
        groups[row.source].append(row)
    chosen: list[Row] = []
    for turn in range(max(map(len, groups.values()), default=0)):
        chosen += [groups[name][turn] for name in sorted(groups) if turn < len(groups[name])]
    return chosen[:count]


def cut(manifest: Manifest, folder: Path, region: int, limits: dict[str, int]) -> Manifest:
    """Cut the central region of chosen images into lossless files, and list them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    seen: set[str] = set()
    for split in ("train", "val"):
        for generator in dict.fromkeys((REAL, *manifest.generators)):
            usable = [
                row
                for row in manifest.select(split, generator).rows
                if min(row.width, row.height) >= region
            ]
            key = "real" if generator == REAL else "synthetic"
            for row in some(usable, limits[f"{split} {key}"]):
                # Stems repeat between folders: a hash of the content, or else of the whole path.
                key = row.extra.get("blob") or hashlib.sha256(row.path.encode()).hexdigest()
                name = f"{key}.bmp"
                if name in seen:
                    raise SystemExit(f"{row.path} is in the manifest twice")
                seen.add(name)
                if not (folder / name).exists():
                    try:
                        pixels = load_image(manifest.file(row)).pixels
                    except MasksimError:
                        continue
                    y, x = ((side - region) // 2 // 8 * 8 for side in pixels.shape[:2])
                    part = folder / f"{name}.part"
                    Image.fromarray(pixels[y : y + region, x : x + region]).save(part, "BMP")
                    part.replace(folder / name)
                rows.append(replace(row, path=name, width=region, height=region))
    return Manifest(tuple(rows), folder)


def scores(detector: Detector, images: Manifest, scale: float) -> np.ndarray:
    """Similarities of all images resized by a factor and compressed."""
    out = []
    for row in images.rows:
        pixels = load_image(images.file(row)).pixels
        rng = rng_for(0, row.path, "label leak")
        quality = int(rng.integers(65, 101))
        if scale != 1:
            pixels = resize(pixels, scale, "bicubic")
        # Whole images are compressed: the window keeps the grid of that JPEG, for all alike.
        out.append(detector.similarities(reencode(pixels, "JPEG", quality))[0])
    return np.array(out)


def main() -> None:
    """Train twice, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/label_leak"))
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--photos", type=int, default=800, help="for training")
    parser.add_argument("--images", type=int, default=100, help="of a generator, for training")
    parser.add_argument("--samples", type=int, default=500, help="of the bootstrap")
    args = parser.parse_args()
    torch.set_num_threads(1)
    limits = {
        "train real": args.photos, "train synthetic": args.images,
        "val real": args.photos, "val synthetic": args.images,
    }  # fmt: skip
    images = cut(
        read_manifest(args.manifest), args.cache / f"{2 * args.window}", 2 * args.window, limits
    )
    train, val = images.select("train"), images.select("val")
    label = np.array([row.generator for row in val.rows])
    sources = np.array([row.source for row in val.rows])
    synthetic = label != REAL
    base = OriginalConfig(
        window=args.window, batch=args.batch, epochs=10, epoch_steps=max(1, args.steps // 10),
        preprocess="cross_diff", lr=args.lr, decay=0.8, multi_class=True, smallest_class=10,
    )  # fmt: skip
    arms: dict[str, dict] = {}
    measured: dict[str, dict[float, np.ndarray]] = {}
    for arm, leak in ARMS.items():
        config = replace(base, resize_reals=leak)
        name = f"{args.window}-{args.steps}-{args.batch}-{args.lr:g}-{'leak' if leak else 'fair'}"
        made = train_original(
            train, args.cache / name, config, run=args.cache / f"{name}.run", overwrite=True,
            progress=lambda stage, done, count: print(f"\r{stage} {done}/{count}", end=""),
        )  # fmt: skip
        detector = load_detector(args.cache / name, threads=1)
        found = {scale: scores(detector, val, scale) for scale in SCALES}
        measured[arm] = found
        rows = []
        for fake, real in PAIRS:
            mixed = np.where(synthetic, found[fake], found[real])
            estimate = bootstrap(auroc, mixed, synthetic, groups=sources, samples=args.samples)
            rows.append(
                {
                    "synthetic": fake, "photos": real, "auroc": round(estimate.value, 4),
                    "low": round(estimate.low, 4), "high": round(estimate.high, 4),
                    "by_generator": {
                        g: round(auroc(mixed[(label == g) | ~synthetic],
                                       synthetic[(label == g) | ~synthetic]), 4)
                        for g in sorted(set(label) - {REAL})
                    },
                }
            )  # fmt: skip
        photos = bootstrap(
            auroc,
            np.concatenate([found[0.75][~synthetic], found[1.0][~synthetic]]),
            np.repeat([False, True], (~synthetic).sum()),
            groups=np.concatenate([sources[~synthetic]] * 2),
            samples=args.samples,
        )
        arms[arm] = {
            "config": asdict(config), "best": dict(made.best[ANY]), "rows": rows,
            "photos_resized_against_photos": asdict(photos),
        }  # fmt: skip
        print(f"\n{arm}: {[(r['synthetic'], r['photos'], r['auroc']) for r in rows]}")
    first, second = measured.values()
    differences = []
    for fake, real in PAIRS:
        a, b = (np.where(synthetic, arm[fake], arm[real]) for arm in (second, first))
        # Paired: both arms are measured on the same draw of sources.
        estimate = bootstrap(
            lambda i, y, w, a=a, b=b: auroc(a[i.astype(int)], y, w) - auroc(b[i.astype(int)], y, w),
            np.arange(len(a)), synthetic, groups=sources, samples=args.samples,
        )  # fmt: skip
        differences.append({"synthetic": fake, "photos": real, **asdict(estimate)})
    result = {
        "arms": arms,
        "both_minus_photos_only": differences,
        "images": {s: dict(Counter(r.generator for r in images.select(s).rows))
                   for s in ("train", "val")},
        "sources": {s: len({r.source for r in images.select(s).rows}) for s in ("train", "val")},
        "torch": torch.__version__,
    }  # fmt: skip
    path = ROOT / "benchmarks" / "results" / "label_leak.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"| synthetic images | photos | resized in training: {' | '.join(ARMS)} | difference |",
        "|---|---|" + "---|" * (len(ARMS) + 1),
    ]

    def size(scale: float) -> str:
        return "as they are" if scale == 1 else f"{scale:g}x"

    for i, (fake, real) in enumerate(PAIRS):
        cells = [
            f"{r['auroc']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
            for r in (arms[arm]["rows"][i] for arm in ARMS)
        ]
        d = differences[i]
        cells.append(f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]")
        lines.append(f"| {size(fake)} | {size(real)} | {' | '.join(cells)} |")
    cells = [
        f"{p['value']:.2f} [{p['low']:.2f}, {p['high']:.2f}]"
        for p in (arms[arm]["photos_resized_against_photos"] for arm in ARMS)
    ]
    lines.append(f"| (photos as they are) | (the same photos 0.75x) | {' | '.join(cells)} | |")
    fill(ROOT / "docs" / "tables" / "label-leak.md", "label-leak", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

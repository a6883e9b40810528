"""Evaluate the bundled detector on the val split; write docs/tables/evaluation.md.

usage: python benchmarks/evaluation.py --manifest MANIFEST [--cache DIR] [--workers N]

Protocols, confusion, break-downs and histories on the whole split; the grid of degradations on at
most --per-class images of each generator and --reals photos, sources taking turns. Goes on where it
was after an interruption. Writes benchmarks/results/evaluation.json too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pages import ROOT

from masksim.data.manifest import REAL, read_manifest
from masksim.evaluation import scoring
from masksim.evaluation.breakdowns import BREAKDOWNS
from masksim.evaluation.degrade import select
from masksim.evaluation.evaluate import measure_degradations, measure_table, plain
from masksim.evaluation.measures import Evaluation
from masksim.evaluation.scale import Scale
from masksim.load import bundled_path, load_detector
from masksim.show.tables import Table

HEAD = """\
# Results of the bundled detector

`{name}` (`{digest}`) on the `{split}` split, written by

```sh
python benchmarks/evaluation.py --manifest MANIFEST
```

{images}.
What each table and column means is in [evaluate.md](../evaluate.md); what the images are, and what
they do not show, in [MODEL_CARD.md](../../MODEL_CARD.md). In short: protocols are measured on views
with the same shares of compression histories in both classes, after one more JPEG of quality 65 to
100;
thresholds come from the detector's own calibration photos, of the `train` split; intervals are 95 %
bootstrap intervals. All numbers in full precision are in
[benchmarks/results/evaluation.json](../../benchmarks/results/evaluation.json).
"""

PARTS = (
    ("Protocols", ("specific", "unseen", "generic", "leave-one-out")),
    ("Which generator", ("confusion",)),
    ("Parts of the images", tuple(f"by-{by.replace(' ', '-')}" for by in BREAKDOWNS)),
    ("Histories", ("history-pairs", "real-histories")),
    ("Degradations", ("degradations",)),
)
DEGRADATIONS = """\
Whole files as found, not in views: formats and histories of the classes differ, and `none` is the
row to compare with. At most {per_class} images of each generator and {reals} photos. What each
degradation does is listed in `masksim.evaluation.degrade.GRID`.
"""


def page(document: dict[str, Any], tables: dict[str, Table], degradations: str) -> list[str]:
    """Write the page in its parts."""
    counts = dict(document["images"])
    real = counts.pop(REAL)
    detector = document["detector"]
    texts = [
        HEAD.format(
            name=detector["name"], digest=detector["sha256"][:12], split=document["split"],
            images=f"{real:,} real photos and {sum(counts.values()):,} images of "
            f"{len(counts)} generators",
        )
    ]  # fmt: skip
    for title, names in PARTS:
        shown = [tables[name] for name in names if name in tables]
        if shown:
            texts.append(f"## {title}\n")
        if "degradations" in names:
            texts.append(degradations)
        texts += [one.to_markdown() + "\n" for one in shown]
    return texts


def main() -> None:
    """Score, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--degrade", default="all")
    parser.add_argument("--per-class", type=int, default=12)
    parser.add_argument("--reals", type=int, default=60)
    args = parser.parse_args()

    def progress(stage: str, done: int, count: int) -> None:
        print(f"\r{stage}: {done} of {count}   ", end="", file=sys.stderr, flush=True)

    manifest = read_manifest(args.manifest)
    images = manifest.select(args.split)
    detector = load_detector()
    scale = Scale.of_detector(detector)
    table = scoring.score_manifest(
        bundled_path(), images, cache=args.cache, workers=args.workers, progress=progress
    )
    given = Evaluation.of(table, scale, scoring.views_of(detector).shares, args.samples)
    results = measure_table(given, seen=scoring.seen_in_training(manifest), progress=progress)
    degraded = scoring.score_degraded(
        bundled_path(), scoring.bounded(images, args.per_class, reals=args.reals),
        select(args.degrade.split(",")), cache=args.cache, workers=args.workers,
        progress=progress,
    )  # fmt: skip
    results += measure_degradations(degraded, scale, samples=args.samples, progress=progress)
    print(file=sys.stderr)

    document = {
        "detector": {"name": detector.name, "sha256": detector.sha256},
        "split": args.split,
        "images": table.images(),
        "failures": dict(table.failures),
        "samples": args.samples,
        **plain(results.data),
    }
    path = ROOT / "benchmarks" / "results" / "evaluation.json"
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    tables = {one.name: one for one in results.tables}
    texts = page(document, tables, DEGRADATIONS.format(per_class=args.per_class, reals=args.reals))
    (ROOT / "docs" / "tables" / "evaluation.md").write_text("\n".join(texts), encoding="utf-8")
    for name in ("specific", "generic", "leave-one-out"):
        print(tables[name].to_text(100), end="\n\n")


if __name__ == "__main__":
    main()

"""Measure the bundled detector and write the figures into MODEL_CARD.md and README.md.

usage: python benchmarks/model_card.py --manifest MANIFEST [--cache DIR] [--workers N]

The tables go between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; everything else stays.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from masksim.data.manifest import read_manifest
from masksim.detector import bundled_path, load_detector
from masksim.evaluation import scoring as evaluate

ROOT = Path(__file__).resolve().parent.parent


def fill(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a name, if the page has them."""
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    path.write_text(pattern.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page), encoding="utf-8")


def main() -> None:
    """Score, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    manifest = read_manifest(args.manifest)
    detector = load_detector()
    table = evaluate.score_manifest(
        bundled_path(), manifest.select("val"), cache=args.cache, workers=args.workers
    )
    measured = evaluate.measure(
        table,
        detector,
        shares=evaluate.views_of(detector).shares,
        seen=evaluate.seen_in_training(manifest),
        samples=args.samples,
    )
    measured["detector_sha256"] = detector.sha256
    found = evaluate.measure_as_found(
        evaluate.score_manifest(
            bundled_path(),
            manifest.select("val"),
            cache=args.cache,
            purpose="as found",
            workers=args.workers,
        ),
        detector,
    )
    measured["as_found"] = found
    results = ROOT / "benchmarks" / "results" / "model_card.json"
    results.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    tables = {
        **evaluate.pages(measured),
        "as found": evaluate.as_found_markdown(found),
        "summary": evaluate.summary_markdown(measured, found),
    }
    for name, text in tables.items():
        for page in ("MODEL_CARD.md", "README.md"):
            fill(ROOT / page, name, text)
    print(evaluate.to_markdown(measured))


if __name__ == "__main__":
    main()

"""Does the claimed false-positive rate hold on photos that the bundled detector has not seen?

usage: python benchmarks/audit.py --manifest MANIFEST [--split val] [--cache DIR] [--workers N]

The same as ``masksim audit default --manifest MANIFEST --split val``. Writes
benchmarks/results/audit.json and the table of docs/tables/audit.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from pages import ROOT, fill

from masksim.data.manifest import manifest_hash, read_manifest
from masksim.evaluation import audit


def notes(found: audit.Audit) -> str:
    """Say in a list what the audit's table shows."""
    lines = []
    for k, claimed in enumerate(audit.CLAIMS):
        claim, grouped = found.whole.claims[k], found.whole.grouped[k]
        inside, held, count = found.held(claimed)
        mean = np.mean([group.claims[k].rate for group in found.by_source])
        lines.append(
            f"- **Claimed {100 * claimed:g} %**: {claim.alarms} alarms of {claim.photos} photos, "
            f"{100 * claim.rate:.1f} %. As if photos were independent "
            f"[{100 * claim.interval.low:.1f}, {100 * claim.interval.high:.1f}] (the claim is "
            f"{claim.held}), by source "
            f"[{100 * grouped.low:.1f}, {100 * grouped.high:.1f}]; mean of "
            f"{len(found.by_source)} sources {100 * mean:.1f} %. Of {count} sources with at least "
            f"{audit.SMALLEST} photos the claim is not exceeded in {held}, and inside the interval "
            f"in {inside}."
        )
    total = found.whole.photos
    shares = ", ".join(
        f"{name} {100 * n / total:.1f} %"
        for name, n in sorted(found.whole.verdicts.items(), key=lambda item: -item[1])
    )
    why = ", ".join(
        f"{name} {n}" for name, n in sorted(found.reasons.items(), key=lambda item: -item[1])
    )
    lines.append(f"- **Verdicts of these photos**: {shares}. Reasons of inconclusive ones: {why}.")
    return "\n".join(lines)


def main() -> None:
    """Audit, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    images = read_manifest(args.manifest).select(args.split)
    found = audit.audit(None, images, cache=args.cache, workers=args.workers)
    document = {"manifest_sha256": manifest_hash(images.rows), "audit": found.to_dict()}
    path = ROOT / "benchmarks" / "results" / "audit.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = audit.table(found).to_markdown()
    fill(ROOT / "docs" / "tables" / "audit.md", "audit", text)
    print(text)
    print(notes(found))


if __name__ == "__main__":
    main()

"""Does the claimed false-positive rate hold? The audit's tables, and what the strata change.

usage: python benchmarks/audit.py --manifest MANIFEST [--split val] [--cache DIR] [--workers N]

The same as ``masksim audit default --manifest MANIFEST --split val``, written into README.md and
docs/calibration.md; and the calibration photos by leaving out one source after another, pooled and
in strata (from the detector file alone; no image is needed). Writes benchmarks/results/audit.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from model_card import ROOT, fill
from numpy.typing import NDArray

from masksim.calibration import Calibration
from masksim.data.manifest import manifest_hash, read_manifest
from masksim.detector import Detector, load_detector
from masksim.evaluation import audit
from masksim.intervals import clopper_pearson
from masksim.populations import BUILT_IN
from masksim.strata import Strata
from masksim.traits import TRAITS

PLANS: dict[str, tuple[str, ...]] = {
    "none: all photos together": (),
    "energy": ("energy",),
    "distance": ("distance",),
    "sharpness": ("sharpness",),
    "side": ("side",),
    "quality": ("quality",),
}


def found_share(found: Calibration, detector: Detector) -> dict[str, float]:
    """Share of the generators' own images with at most a claimed rate; each generator the same."""
    arrays = detector.file.calibration or {}
    joint = found.all_rates(arrays["own_similarities"], arrays["own_traits"])[1]
    of = arrays["own_generators"]
    return {
        f"{claimed:g}": float(np.mean([(joint[of == g] <= claimed).mean() for g in np.unique(of)]))
        for claimed in (0.01, 0.05)
    }


def row(rates: NDArray[np.float64], found: Calibration) -> dict[str, Any]:
    """Realised rates at 1 % and 5 %: of all photos, by source, and by band of energy."""
    energy = found.traits[:, TRAITS.index("energy")]
    band = np.searchsorted(np.quantile(energy, [1 / 3, 2 / 3]), energy, side="right")
    out: dict[str, Any] = {}
    for claimed in (0.01, 0.05):
        hits = rates <= claimed
        sources = [
            (hits[found.sources == s].mean(), (found.sources == s).sum())
            for s in np.unique(found.sources)
        ]
        large = [
            clopper_pearson(round(float(share * n)), int(n)) for share, n in sources if n >= 50
        ]
        interval = clopper_pearson(int(hits.sum()), len(hits))
        out[f"{claimed:g}"] = {
            "rate": float(hits.mean()),
            "interval": [interval.low, interval.high],
            "mean_of_sources": float(np.mean([share for share, _ in sources])),
            "highest_source": float(max(share for share, _ in sources)),
            "large_sources": len(large),
            "not_exceeded": sum(i.low <= claimed for i in large),
            "inside": sum(i.low <= claimed <= i.high for i in large),
            "by_energy": [float(hits[band == k].mean()) for k in range(3)],
        }
    return out


def strata_markdown(rows: dict[str, Any]) -> str:
    """Write the comparison of divisions."""
    lines = [
        "| strata | claimed | alarms [95 %] | mean of sources | highest source | not exceeded, of "
        "sources with 50 photos | smooth / middle / textured third | own images found |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, claims in rows.items():
        for claimed, r in claims.items():
            low, high = r["interval"]
            thirds = " / ".join(f"{100 * share:.1f}" for share in r["by_energy"])
            lines.append(
                f"| {name} | {100 * float(claimed):g} % | {100 * r['rate']:.1f} % "
                f"[{100 * low:.1f}, {100 * high:.1f}] | {100 * r['mean_of_sources']:.1f} % | "
                f"{100 * r['highest_source']:.0f} % | "
                f"{r['not_exceeded']} of {r['large_sources']} | {thirds} % | "
                f"{100 * r['found']:.0f} % |"
            )
    return "\n".join(lines)


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


def ratios(detector: Detector) -> dict[str, Any]:
    """Likelihood ratio of some joint rates, and the bounds."""
    found = detector.likelihood_ratios
    if found is None:
        raise SystemExit("the detector gives no likelihood ratios")
    return {
        "low": found.low,
        "high": found.high,
        "at": {f"{rate:g}": asdict(found.at(rate)) for rate in (0.01, 0.05, 0.1, 0.2, 0.5, 0.9)},
    }


def ratios_markdown(found: dict[str, Any]) -> str:
    """Write the ratios by joint rate."""
    lines = ["| joint rate | likelihood ratio |", "|---|---|"]
    for rate, row in found["at"].items():
        bound = " (the bound)" if row["bounded"] else ""
        lines.append(f"| {100 * float(rate):g} % | {row['value']:.2g}{bound} |")
    return "\n".join(lines)


def main() -> None:
    """Audit, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    images = read_manifest(args.manifest).select(args.split)
    found = audit.audit(None, images, cache=args.cache, workers=args.workers)
    detector = load_detector(threads=1, likelihood_ratio=True)
    calibration = detector.calibrations[BUILT_IN]
    bands = dict(calibration.strata.bands)
    rows = {}
    shipped = "as shipped: the whole list"
    for name, traits in {**PLANS, shipped: tuple(bands)}.items():
        chosen = Strata(tuple((trait, bands[trait]) for trait in traits), 300, 20)
        parted = Calibration(
            calibration.real_scores, calibration.traits, calibration.sources, chosen
        )
        rows[name] = row(parted.left_out(), parted)
        for claimed, share in found_share(parted, detector).items():
            rows[name][claimed]["found"] = share
    document: dict[str, Any] = {
        "manifest_sha256": manifest_hash(images.rows),
        "audit": found.to_dict(),
        "strata": rows,
        "likelihood_ratios": ratios(detector),
    }
    path = ROOT / "benchmarks" / "results" / "audit.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = audit.table(found).to_markdown()
    for page in ("README.md", "docs/calibration.md"):
        fill(ROOT / page, "audit", text)
    fill(ROOT / "docs" / "calibration.md", "audit notes", notes(found))
    fill(ROOT / "docs" / "calibration.md", "strata", strata_markdown(rows))
    given = ratios_markdown(document["likelihood_ratios"])
    fill(ROOT / "docs" / "calibration.md", "ratios", given)
    print(text)
    print(notes(found))
    print(strata_markdown(rows))
    print(given)


if __name__ == "__main__":
    main()

"""What strata and relative scores of the bundled detector change, and its likelihood ratios.

usage: python benchmarks/strata.py

From the detector file alone, no image is needed: each source of its calibration photos is ranked
among all others, with and without strata, with and without what photos usually have taken into
account. Writes benchmarks/results/strata.json, docs/tables/strata.md and the table of likelihood
ratios in docs/calibration.md. A few minutes on one core.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pages import ROOT, fill

from masksim.calibration import Calibration
from masksim.checkpoint import AS_FOUND, OWN_RANKED_ARRAY
from masksim.detector import Detector
from masksim.intervals import grouped_interval
from masksim.load import load_detector
from masksim.populations import BUILT_IN
from masksim.strata import Strata
from masksim.traits import BANDS, TRAITS, bands_of

CLAIMED = (0.01, 0.05)
SHOWN = (0.002, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9)  # joint rates in the table of ratios


def plans(photos: Calibration) -> dict[str, Calibration]:
    """The detector's calibration, and others that do less."""
    learned = photos.learned
    assert learned is not None
    whole = Strata((), photos.strata.photos, photos.strata.sources)
    plain = replace(learned, usual=None)
    names = ", ".join(name for name, _ in photos.strata.bands)
    ways = {
        "all photos together": (whole, plain),
        f"strata by {names}": (photos.strata, plain),
        "relative scores": (whole, learned),
        f"as shipped: relative scores, strata by {names}": (photos.strata, learned),
    }
    return {
        words: Calibration(photos.real_scores, photos.traits, photos.sources, strata, number)
        for words, (strata, number) in ways.items()
    }


def found_share(parted: Calibration, detector: Detector) -> dict[float, float]:
    """Share of own images as found with at most a claimed rate; each generator the same."""
    arrays = detector.file.calibration or {}
    found = arrays[OWN_RANKED_ARRAY] == AS_FOUND
    joint = parted.all_rates(arrays["own_similarities"][found], arrays["own_traits"][found])[1]
    of = arrays["own_generators"][found]
    return {
        claimed: float(np.mean([(joint[of == g] <= claimed).mean() for g in np.unique(of)]))
        for claimed in CLAIMED
    }


def measured(parted: Calibration, detector: Detector) -> dict[str, Any]:
    """Realised rates of photos, each among those of other sources, and what is found."""
    rates = parted.left_out()
    side = np.searchsorted((512, 1024), parted.traits[:, TRAITS.index("side")], side="right")
    energy = parted.traits[:, TRAITS.index("energy")]
    third = np.searchsorted(np.quantile(energy, [1 / 3, 2 / 3]), energy, side="right")
    band = bands_of(parted.traits, len(BANDS))
    found = found_share(parted, detector)

    def share(hits: NDArray[np.bool_], groups: NDArray[Any], count: int) -> list[float]:
        return [float(hits[groups == k].mean()) for k in range(count)]

    out: dict[str, Any] = {}
    for claimed in CLAIMED:
        hits = rates <= claimed
        interval = grouped_interval(hits, parted.sources)
        out[f"{claimed:g}"] = {
            "rate": float(hits.mean()),
            "interval": [interval.low, interval.high],
            "by_energy": share(hits, third, 3),
            "by_side": share(hits, side, 3),
            "by_band": share(hits, band, len(BANDS)),
            "found": found[claimed],
        }
    return out


def percent(*shares: float) -> str:
    """Write shares in per cent."""
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def strata_markdown(rows: dict[str, Any]) -> str:
    """Write the comparison of divisions."""
    lines = [
        "| ranked by | claimed | alarms [95 %] | smooth / middle / textured third | "
        "under 512 / under 1,024 / more pixels | "
        f"{' / '.join(BANDS)} | own images found |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, claims in rows.items():
        for claimed, row in claims.items():
            low, high = row["interval"]
            lines.append(
                f"| {name} | {100 * float(claimed):g} % | {percent(row['rate'])} % "
                f"[{100 * low:.1f}, {100 * high:.1f}] | {percent(*row['by_energy'])} | "
                f"{percent(*row['by_side'])} | "
                f"{percent(*row['by_band'])} | {100 * row['found']:.0f} % |"
            )
    return "\n".join(lines)


def ratios(detector: Detector) -> dict[str, Any]:
    """Likelihood ratio of some joint rates, and the bounds."""
    found = detector.likelihood_ratios
    if found is None:
        raise SystemExit("the detector gives no likelihood ratios")
    return {
        "low": found.low,
        "high": found.high,
        "at": {f"{rate:g}": asdict(found.at(rate)) for rate in SHOWN},
    }


def ratios_markdown(found: dict[str, Any]) -> str:
    """Write the ratios by joint rate."""
    lines = ["| joint rate | likelihood ratio |", "|---|---|"]
    for rate, row in found["at"].items():
        bound = " (the bound)" if row["bounded"] else ""
        lines.append(f"| {100 * float(rate):g} % | {row['value']:.2g}{bound} |")
    return "\n".join(lines)


def main() -> None:
    """Rank, compare, write."""
    detector = load_detector(likelihood_ratio=True)
    photos = detector.calibrations[BUILT_IN]
    rows = {name: measured(parted, detector) for name, parted in plans(photos).items()}
    given = ratios(detector)
    document = {"detector_sha256": detector.sha256, "strata": rows, "likelihood_ratios": given}
    path = ROOT / "benchmarks" / "results" / "strata.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    fill(ROOT / "docs" / "tables" / "strata.md", "strata", strata_markdown(rows))
    fill(ROOT / "docs" / "calibration.md", "ratios", ratios_markdown(given))
    print(strata_markdown(rows))
    print(ratios_markdown(given))


if __name__ == "__main__":
    main()

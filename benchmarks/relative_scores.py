"""Scores relative to what photos usually have: what lines fitted to the ranked photos change.

usage: python benchmarks/relative_scores.py CONFIG
       python benchmarks/relative_scores.py --pages

From the left-out scores of the detector in the package, which CONFIG made; no image is needed. The
joint number of each fold is learned without it, and its views are ranked among the photos of the
others, in bands of compression: with the number as it is, relative to lines fitted to the photos
that are ranked, as the detector has them, and to lines that do not know the photo's fold. Then the
same among few photos, drawn by repository and all together, as after enrolling, and with and
without copies of low JPEG quality. Writes benchmarks/results/relative_scores.json and
docs/tables/relative-scores.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from left_out import config_of, read_left_out
from numpy.typing import NDArray
from pages import ROOT
from unseen import CLAIMED, asked_about, percent_fine, share, table_of

from masksim.calibration import false_positive_rate
from masksim.checkpoint import DetectorFile
from masksim.data.manifest import REAL
from masksim.load import bundled_path
from masksim.training.bands import BandsConfig, BandsFit
from masksim.training.feature_table import FeatureTable
from masksim.training.recipe import ranked_among
from masksim.training.usual_scores import fit_usual_scores
from masksim.traits import BANDS, bands_of

RESULTS = ROOT / "benchmarks" / "results" / "relative_scores.json"
FEW = (150, 425, 1500)  # 425: what the package's detector keeps for enrolling
DRAWS = 20

Bools = NDArray[np.bool_]
Relative = Callable[[NDArray[Any], Bools, int], NDArray[np.float64]]
"""Of the numbers of all views, the photos that are ranked among and the fold that is held out."""


class Views:
    """The views of a training, with the joint number of each fold."""

    def __init__(self, table: FeatureTable, fit: BandsFit, config: BandsConfig) -> None:
        self.table, self.fit, self.config = table, fit, config
        self.traits = fit.traits.astype(np.float64)
        self.band = bands_of(self.traits, len(BANDS))
        self.real, self.first = table.generators == REAL, table.first
        self.asked = asked_about(table, config)
        scores = fit.similarities.astype(np.float64)
        self.numbers = [replace(j, usual=None)(scores, self.traits) for j in fit.fold_joints]

    def lines(self, numbers: NDArray[Any], photos: Bools) -> NDArray[np.float64]:
        """Put numbers in relation to lines fitted to some photos, however few."""
        column = numbers[:, None]
        usual = fit_usual_scores(column[photos], self.traits[photos], fewest=0)
        return usual.relative(column, self.traits)[:, 0]

    def plain(self, numbers: NDArray[Any], photos: Bools, held: int) -> NDArray[np.float64]:
        """Leave numbers as they are."""
        return numbers

    def shipped(self, numbers: NDArray[Any], photos: Bools, held: int) -> NDArray[np.float64]:
        """Lines of the photos that are ranked."""
        return self.lines(numbers, photos)

    def crossed(self, numbers: NDArray[Any], photos: Bools, held: int) -> NDArray[np.float64]:
        """The same, but each ranked photo in relation to lines that do not know its fold."""
        found = self.lines(numbers, photos)
        for k in set(range(self.config.folds)) - {held}:
            mine = photos & (self.fit.folds == k)
            found[mine] = self.lines(numbers, photos & ~mine)[mine]
        return found

    def rates(self, ranked: Bools, relative: Relative) -> NDArray[np.float64]:
        """Joint rate of every view among photos of the other folds and of its band: (n,)."""
        out = np.zeros(len(self.real))
        for k, numbers in enumerate(self.numbers):
            held, photos = self.fit.folds == k, ranked & (self.fit.folds != k)
            values = relative(numbers, photos, k)[:, None]
            for b in range(len(BANDS)):
                mine, among = held & (self.band == b), photos & (self.band == b)
                out[mine] = false_positive_rate(values[mine], values[among])[:, 0]
        return out

    def row(self, ranked: Bools, relative: Relative) -> dict[str, Any]:
        """Alarms of photos, and what is found."""
        rates = self.rates(ranked, relative)
        sources = self.table.sources
        low = self.band == BANDS.index("low")
        made = [self.first & (self.table.generators == name) for name in self.fit.generators]
        return {
            "photos": {
                f"{c:g}": share((rates <= c)[self.asked & self.first],
                                sources[self.asked & self.first]) for c in CLAIMED
            },
            "low copies": {
                f"{c:g}": share((rates <= c)[self.asked & low & ~self.first],
                                sources[self.asked & low & ~self.first]) for c in CLAIMED
            },
            "found": {f"{c:g}": float(np.mean([(rates[m] <= c).mean() for m in made]))
                      for c in CLAIMED},
        }  # fmt: skip

    def few(self, count: int, relative: Relative, seed: int) -> list[float]:
        """Alarms among so many photos of some repositories, all together, of photos of others."""
        rng = np.random.default_rng(seed)
        photos = self.asked & self.first
        k = seed % self.config.folds
        names = rng.permutation(np.unique(self.table.sources[photos & (self.fit.folds != k)]))
        drawn = np.zeros(len(photos), np.bool_)
        for name in names:  # a few of each, as evenly as they allow
            mine = np.flatnonzero(photos & (self.table.sources == name))
            drawn[rng.permutation(mine)[: -(-count // len(names)) + 1]] = True
            if drawn.sum() >= count:
                break
        rest = np.flatnonzero(photos & (self.fit.folds != k) & ~drawn)
        drawn[rng.permutation(rest)[: max(0, count - int(drawn.sum()))]] = True
        others = photos & (self.fit.folds == k)
        values = relative(self.numbers[k], drawn, k)[:, None]
        rates = false_positive_rate(values[others], values[drawn])[:, 0]
        return [float((rates <= c).mean()) for c in CLAIMED]


def measured(views: Views) -> dict[str, Any]:
    """Measure everything."""
    ranked = ranked_among(views.table, views.config)
    as_found = ranked & views.first
    rows = {
        "as it is": views.row(ranked, views.plain),
        "lines of the photos that are ranked: as shipped": views.row(ranked, views.shipped),
        "lines without the photo's fold": views.row(ranked, views.crossed),
        "as shipped, without copies of low quality": views.row(as_found, views.shipped),
    }
    few = {
        str(count): {
            name: np.mean([views.few(count, way, s) for s in range(DRAWS)], axis=0).tolist()
            for name, way in (("as it is", views.plain), ("lines", views.shipped))
        }
        for count in FEW
    }
    return {
        "photos": int((views.asked & views.first).sum()),
        "repositories": len(np.unique(views.table.sources[views.asked])),
        "rows": rows,
        "few": few,
        "draws": DRAWS,
    }


def markdown(found: dict[str, Any]) -> str:
    """Write docs/tables/relative-scores.md."""
    levels = [f"at {100 * c:g} %" for c in CLAIMED]
    rows = [
        [name, *(percent_fine(row["photos"][f"{c:g}"]) for c in CLAIMED),
         percent_fine(row["low copies"]["0.05"]),
         *(f"{100 * row['found'][f'{c:g}']:.1f}" for c in CLAIMED[:2])]
        for name, row in found["rows"].items()
    ]  # fmt: skip
    head: Sequence[str] = [
        "joint number", *(f"photos {level}" for level in levels),
        "copies of low JPEG quality at 5 %", *(f"generated {level}" for level in levels[:2]),
    ]  # fmt: skip
    few = [
        [count, name, *(f"{100 * value:.1f}" for value in values)]
        for count, ways in found["few"].items()
        for name, values in ways.items()
    ]
    return f"""# Scores relative to what photos usually have

Made by `python benchmarks/relative_scores.py configs/bundled.toml` from the left-out scores in the
detector in the package. In short: [experiments.md](../experiments.md).

Shares, in per cent, whose joint rate is at most the claimed one, with 95 % intervals over
repositories: of {found["photos"]:,} photos as found of {found["repositories"]} repositories, of the
kinds that images are ranked among; of their copies of low JPEG quality; and of generated images as
found, mean of the generators with heads. Ranked among photos of other folds, in bands.

{table_of(head, rows)}

Among few photos, all together, as after enrolling: means of {found["draws"]} draws, on photos of
other repositories.

{table_of(["photos", "joint number", *levels], few)}
"""


def main() -> None:
    """Measure, or write the page again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--pages", action="store_true", help="Only write the page again.")
    given = parser.parse_args()
    if not given.pages:
        if given.config is None:
            parser.error("CONFIG is needed")
        config = config_of(given.config)
        table, fit = read_left_out(DetectorFile.load(bundled_path()), config)
        found = measured(Views(table, fit, config))
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "tables" / "relative-scores.md"
    page.write_text(markdown(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()

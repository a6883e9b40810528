"""What ridge, whitening and single channels do for the heads of one band of compression.

usage: python benchmarks/ablation.py CONFIG --manifest MANIFEST --cache CACHE [--band 2] [--views N]

On a sample of the views of one band, of the generators that have heads and real photos: whole
repositories left out, as in benchmarks/unseen.py. Writes the table of docs/tables/ablation.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from kinds import with_all_channels
from left_out import config_of
from pages import ROOT, fill

from masksim import metrics
from masksim.data.manifest import REAL, read_manifest
from masksim.training.bands import (
    BandsConfig,
    Space,
    find_basis,
    fit_band,
    fit_joint,
    views_of,
)
from masksim.training.feature_table import FeatureTable
from masksim.training.recipe import generators_with_heads
from masksim.traits import BANDS, TRAITS, bands_of


def row(
    label: str, table: FeatureTable, names: Sequence[str], band: int, config: BandsConfig
) -> str:
    """Fit with left-out repositories, and measure: one row of the table."""
    space = Space(table, names, config)
    classes, folds = space.classes, space.folds
    bases = [find_basis(space, folds != k) for k in range(config.folds + 1)]
    scores = np.zeros((len(classes), len(names)), np.float32)
    fit_band(space, band, bases, scores)
    joint = np.zeros(len(classes))
    nothing = np.zeros(len(classes), np.int64)
    unknown = np.full((len(classes), len(TRAITS)), np.nan)  # all in one band
    for k in range(config.folds):
        rest, held = folds != k, folds == k
        learned = fit_joint(
            scores[rest], table.generators[rest], nothing[rest], 1, config.joint_strength
        )
        joint[held] = learned(scores[held].astype(np.float64), unknown[held])
    real = classes == 0
    cells = []
    for statistic in (None, joint):
        own, five, one = [], [], []
        for g in range(len(names)):
            values = scores[:, g] if statistic is None else statistic
            mine = classes == g + 1
            own.append(metrics.auroc(values[mine | real], mine[mine | real]))
            limits = np.quantile(values[real], (0.95, 0.99))
            five.append((values[mine] > limits[0]).mean())
            one.append((values[mine] > limits[1]).mean())
        cells += [f"{np.mean(own):.3f}", f"{100 * np.mean(five):.0f}, {100 * np.mean(one):.0f}"]
    return f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--band", type=int, default=2)
    parser.add_argument("--views", type=int, default=3600)
    given = parser.parse_args()
    config = replace(with_all_channels(config_of(given.config)), borrowed=0.0)
    table = views_of(read_manifest(given.manifest), config, given.cache)
    names = generators_with_heads(table, config)
    own = bands_of(table.traits, len(BANDS)) == given.band
    usable = np.flatnonzero(own & np.isin(table.generators, (REAL, *names)))
    drawn = np.random.default_rng(1).permutation(usable)[: given.views]
    table = table.take(np.sort(drawn))
    lines = ["| spectrum | own-head AUROC | at 5, 1 % | joint AUROC | at 5, 1 % |"]
    lines.append("|---|---|---|---|---|")
    for components in (0, 64):
        for ridge in (0.5, 2.0, 5.0, 20.0):
            made = replace(config, components=components, heads=replace(config.heads, ridge=ridge))
            label = f"{'whitened' if components else 'as it is'}, ridge {ridge:g}"
            lines.append(row(label, table, names, given.band, made))
            print(lines[-1], flush=True)
    plain = replace(table, features=table.features[:, :20])
    lines.append(row("as configured, without coherence", plain, names, given.band, config))
    fill(ROOT / "docs" / "tables" / "ablation.md", "ablation", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

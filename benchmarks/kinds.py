"""What heads lose without some of the residuals of the bank, or without the coherence of colours.

usage: python benchmarks/kinds.py CONFIG --manifest MANIFEST --cache CACHE

Features are made of all kinds and coherence, whatever CONFIG has of them: those of fewer are some
of their channels. Of each choice the heads are fitted and scored as in benchmarks/unseen.py, with
and without the learned residual. Writes the table of docs/tables/kinds.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from left_out import config_of
from pages import ROOT, fill
from unseen import left_out_rates

from masksim.bank import BANK
from masksim.data.manifest import REAL, read_manifest
from masksim.training.bands import BandsConfig, BandsFit, fit_bands, learn, views_of
from masksim.training.feature_table import FeatureTable

CHOICES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("all", BANK, True),
    ("without coherence", BANK, False),
    ("and without clipped", ("cross difference", "normalised", "median"), False),
    ("and without median", ("cross difference", "normalised"), False),
)


def channels(kinds: Sequence[str], coherence: bool, parts: int) -> list[int]:
    """Number the channels of some kinds among those of all kinds and coherence."""
    each, n = [list(BANK).index(kind) for kind in kinds], len(BANK)
    luma = [n * part + k for part in range(parts) for k in each]
    chroma = [n * parts + 2 * k + c for k in each for c in (0, 1)]
    rest = n * (parts + 2)
    return [*luma, *chroma, *(range(rest, rest + 3) if coherence else ())]


def with_all_channels(config: BandsConfig) -> BandsConfig:
    """Take all kinds of the bank and coherence in."""
    return replace(config, features=replace(config.features, kinds=BANK, coherence=True))


def row(label: str, table: FeatureTable, fit: BandsFit, config: BandsConfig) -> str:
    """Measure: one row of the table."""
    joint = left_out_rates(table, fit, config)[1]
    generators, first = table.generators, table.first
    cells = [f"{np.mean(list(fit.auroc.values())):.3f}"]
    for some in (first, np.ones_like(first)):
        found = [
            [(joint[(generators == name) & some] <= rate).mean() for rate in (0.05, 0.01)]
            for name in fit.generators
        ]
        photos = (joint[(generators == REAL) & some] <= 0.05).mean()
        five, one = np.mean(found, axis=0)
        cells.append(f"{100 * five:.1f}, {100 * one:.1f}; {100 * photos:.1f}")
    return f"| {label} | {table.features.shape[1]} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    config = with_all_channels(config_of(given.config))
    manifest = read_manifest(given.manifest)
    table = views_of(manifest, config, given.cache)
    learned = learn(manifest, table, config, given.cache)
    lines = [
        "| heads | channels | own-head AUROC | as found: at 5, 1 %; photos at 5 % | "
        "all views: the same |",
        "|---|---|---|---|---|",
    ]
    for label, kinds, coherence in CHOICES:
        chosen = channels(kinds, coherence, config.features.parts)
        some = replace(table, features=np.ascontiguousarray(table.features[:, chosen]))
        for heads, second in (("", learned), (", bank alone", None)):
            lines.append(row(label + heads, some, fit_bands(some, config, second), config))
            print(lines[-1], flush=True)
    fill(ROOT / "docs" / "tables" / "kinds.md", "kinds", "\n".join(lines))


if __name__ == "__main__":
    main()

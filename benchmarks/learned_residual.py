"""Do channels of a residual that is learned end to end add to the fixed bank?

usage: python benchmarks/learned_residual.py --manifest MANIFEST --work FOLDER [--steps N]

Views of every image as people meet them (`masksim.data.processing`), without the rarer ways and
formats.
Of each view: the features of the bank, and nine crops of 128 pixels that do not keep the 8x8 grid.
A third of the repositories is held out. The residual is trained on the others, once on all of them
and once on half; then heads are solved in closed form as in `masksim.training.bands`, on the bank,
on the learned channels and on both, and score the third. Goes on where it was when called again.
Writes benchmarks/results/learned_residual.json and docs/tables/learned-residual.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pages import ROOT

from masksim import metrics
from masksim.augment import rng_for
from masksim.bank import bank_residual
from masksim.data.manifest import REAL, Manifest, Row, read_manifest
from masksim.data.processing import ProcessingConfig, as_met
from masksim.data.views import at_most
from masksim.data.weights import repository_folds
from masksim.errors import MasksimError
from masksim.features import FeatureConfig, shared_features
from masksim.image import load_image
from masksim.training.bands import BandsConfig, Space, find_basis, fit_band
from masksim.training.feature_table import FeatureTable
from masksim.training.heads import level_free, statistics
from masksim.training.learned_config import LearnedConfig
from masksim.training.learned_residual import (
    Learned,
    learned_features,
    learned_scores,
    train_learned,
)
from masksim.training.learned_residual import Views as LearningViews
from masksim.training.processes import RunOptions
from masksim.traits import TRAITS, bands_of, compression_band

SIDE, ACROSS = 128, 3
BANDS = (0, 1, 2)  # lossless or nearly so, JPEG of high and of middle quality
SMALLEST = {"images": 25, "sources": 4}  # of a generator that gets a head
WAYS = ProcessingConfig(
    region=768, ways={"direct": 0.65, "reduced": 0.25, "social": 0.10},
    ends={"lossless": 0.30, "high": 0.35, "middle": 0.35},
)  # fmt: skip
FEATURES = FeatureConfig(parts=3, coherence=True, windows=2, region=768)
HEADS = BandsConfig(folds=2, features=FEATURES)
SAMPLES = 300


@dataclass(frozen=True, eq=False)
class Views:
    """Views of all images: crops uint8 (n, 9, 128, 128, 3), features of the bank, facts."""

    crops: NDArray[np.uint8]
    table: FeatureTable


def views_of(row: Row, file: Path, count: int) -> dict[str, NDArray[np.generic]]:
    """Views of one image: crops, features, facts (history, band)."""
    loaded = load_image(file)
    crops, features, facts = [], [], []
    for number in range(count):
        rng = rng_for(0, "learned residual", row.key, number)
        view = as_met(loaded.pixels, loaded.facts.format, loaded.facts.jpeg_quality, rng, WAYS)
        room = np.array(view.pixels.shape[:2]) - SIDE
        cells = np.stack(np.mgrid[:ACROSS, :ACROSS], axis=-1).reshape(-1, 2)
        corners = ((cells + rng.random((ACROSS**2, 2))) / ACROSS * (room + 1)).astype(int)
        crops.append([view.pixels[y : y + SIDE, x : x + SIDE] for y, x in corners])
        found, _ = shared_features(view.pixels, FEATURES, bank_residual)
        features.append(found.astype(np.float16))
        facts.append((view.history, compression_band(view.format, view.quality)))
    return {"crops": np.array(crops), "features": np.stack(features), "facts": np.array(facts)}


def collect(manifest: Manifest, work: Path, count: int, most: int) -> Views:
    """Make `count` views an image, or read those that are there."""
    rows = [
        r for r in at_most(manifest.rows, {"*": most})
        if not (r.width and r.height) or min(r.width, r.height) >= WAYS.smallest
    ]  # fmt: skip
    folder = work / "views"
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: rng_for("order", r.key).random()):
        path = folder / f"{row.key}.npz"
        if not path.exists():
            try:
                made = views_of(row, manifest.file(row), count)
            except MasksimError:
                continue
            np.savez(path.with_suffix(".part.npz"), **made)
            os.replace(path.with_suffix(".part.npz"), path)
        kept.append(row)
    n = len(kept) * count
    crops = np.lib.format.open_memmap(
        work / "crops.npy", "w+", np.uint8, (n, ACROSS**2, SIDE, SIDE, 3)
    )
    features, facts = [], []
    for i, row in enumerate(kept):
        with np.load(folder / f"{row.key}.npz") as stored:
            crops[i * count : (i + 1) * count] = stored["crops"]
            features.append(stored["features"])
            facts.append(stored["facts"])
    fact = np.concatenate(facts)
    traits = np.full((n, len(TRAITS)), np.nan, np.float32)
    traits[:, TRAITS.index("band")] = fact[:, 1].astype(float)
    table = FeatureTable(
        np.concatenate(features), traits, np.repeat([r.generator for r in kept], count),
        np.repeat([r.source for r in kept], count), fact[:, 0], np.full(n, ""),
        np.repeat(np.arange(len(kept)), count), tuple(kept), {},
    )  # fmt: skip
    return Views(crops, table)


def generators_of(table: FeatureTable, held: NDArray[np.bool_]) -> tuple[str, ...]:
    """Generators with enough images and repositories, some of them on either side."""
    names = []
    for name in np.unique(table.generators).tolist():
        own = table.generators == name
        enough = (
            len(np.unique(table.images[own])) >= SMALLEST["images"]
            and len(np.unique(table.sources[own])) >= SMALLEST["sources"]
        )
        if name != REAL and enough and (own & held).any() and (own & ~held).any():
            names.append(name)
    return tuple(names)


def train(views: Views, used: NDArray[np.bool_], run: Path, config: LearnedConfig) -> Learned:
    """Train on the crops of some views, without generators of which one repository is there."""
    for name in np.unique(views.table.generators[used]).tolist():
        own = used & (views.table.generators == name)
        if len(np.unique(views.table.sources[own])) < 2:
            used = used & ~own
    at = np.flatnonzero(used)

    class Chosen:  # crops of the views in use, left in the file
        def __getitem__(self, view: int) -> NDArray[np.uint8]:
            return views.crops[at[view]]

    table = views.table
    pairs = np.char.add(np.char.add(table.generators[at], " "), table.sources[at])
    _, of, sizes_of = np.unique(pairs, return_inverse=True, return_counts=True)
    chosen = LearningViews(Chosen(), table.generators[at], table.sources[at], sizes_of[of] ** -0.5)
    options = RunOptions(device="cpu", precision="bfloat16", save_every=50)
    return train_learned(chosen, config, run, options=options)


def channels(learned: Learned, views: Views, path: Path) -> NDArray[np.float16]:
    """Features of all views in the learned channels, kept in a file."""
    if path.exists():
        return np.asarray(np.load(path))
    config = learned.module.config
    shape = (config.outputs, config.segment, config.segment // 2)
    # One array made at first: thousands of small ones between buffers fill the memory.
    found = np.empty((len(views.crops), *shape), np.float16)
    for i, crops in enumerate(views.crops):
        found[i] = learned_features(learned, crops)[: config.outputs]
    np.save(path, found)
    return found


def head_scores(
    table: FeatureTable, names: tuple[str, ...], heads: NDArray[np.bool_], held: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Similarities (n, G) of the held views with heads made of the views `heads`."""
    chosen = np.flatnonzero((heads | held) & np.isin(table.generators, (REAL, *names)))
    part = table.take(chosen)
    space = Space(part, names, HEADS)
    space.folds = np.where(held[chosen], 0, 1)
    rest = space.folds == 1
    # Standardised by the photos that heads are made of, not by those that are scored.
    for b in BANDS:
        at = np.flatnonzero((space.classes == 0) & (space.band == b) & rest)
        space.mean[b], space.deviation[b] = statistics(
            level_free(part.features[at]), space.weights[at]
        )
    basis = find_basis(space, rest)
    scores = np.zeros((len(chosen), len(names)), np.float32)
    for b in BANDS:
        fit_band(space, b, [basis] * 3, scores)
    out = np.zeros((len(table.generators), len(names)), np.float32)
    out[chosen] = scores
    return out


def sum_of(
    one: NDArray[np.float32], other: NDArray[np.float32], band: NDArray[np.int64],
    scored: NDArray[np.bool_],
) -> NDArray[np.float32]:  # fmt: skip
    """Sum of two sets of scores (n, G), each head in deviations of all scored views of its band."""
    out = np.zeros_like(one)
    for b in BANDS:
        at = np.flatnonzero(scored & (band == b))
        for scores in (one, other):
            out[at] += (scores[at] - scores[at].mean(axis=0)) / (scores[at].std(axis=0) + 1e-9)
    return out


def own_aurocs(
    scores: NDArray[np.float32], table: FeatureTable, names: tuple[str, ...],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """AUROC (S, G) of each head for its own generator, mean over the bands.

    `weights` are (S, n): each row is a draw of repositories.
    """
    band = bands_of(table.traits, 5)
    out = np.zeros((len(weights), len(names)))
    for g, name in enumerate(names):
        parts = []
        for b in BANDS:
            at = np.flatnonzero((band == b) & np.isin(table.generators, (REAL, name)))
            at = at[np.argsort(scores[at, g])]
            mine = weights[:, at] * (table.generators[at] == name)
            below = np.cumsum(weights[:, at] - mine, axis=1)
            with np.errstate(invalid="ignore"):  # a draw without images of this band: NaN
                parts.append((mine * below).sum(axis=1) / mine.sum(axis=1) / below[:, -1])
        values = np.array(parts)
        there = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            out[:, g] = np.where(there, values, 0).sum(axis=0) / there.sum(axis=0)
    return out


def largest(
    scores: NDArray[np.float32], table: FeatureTable, photos: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Largest similarity (n,), each head in deviations of some photos of the same band."""
    band = bands_of(table.traits, 5)
    out = np.zeros(len(scores))
    for b in BANDS:
        own, same = scores[band == b], photos & (band == b)
        at = scores[same if same.sum() > 1 else photos]
        out[band == b] = ((own - at.mean(axis=0)) / (at.std(axis=0) + 1e-9)).max(axis=1)
    return out


def found_at(
    scores: NDArray[np.float32], table: FeatureTable, weights: NDArray[np.float64]
) -> dict[str, float]:
    """Joint AUROC, and shares found and of false alarms at 5 % and 1 %.

    Limits and deviations are those of the photos of half of the repositories; measured is on the
    other half, and the other way round. Every generator counts the same.
    """
    real = table.generators == REAL
    half = repository_folds(table.sources, table.generators, 2)
    sums: dict[str, list[float]] = {}
    for side in (0, 1):
        values = largest(scores, table, real & (half == side))
        limit = np.quantile(values[real & (half == side)], (0.95, 0.99))
        others, total = real & (half != side), weights * 1.0
        for name in np.unique(table.generators[~real]):
            own = table.generators == name
            total[own] /= max(total[own].sum(), 1e-12)
        at = (others | ~real) & (total > 0)
        sums.setdefault("auroc", []).append(metrics.auroc(values[at], ~real[at], total[at]))
        for level, cut in zip((5, 1), limit, strict=True):
            for what, rows in (("found", ~real), ("false alarms", others)):
                share = np.average(values[rows] > cut, weights=total[rows])
                sums.setdefault(f"{what} at {level} %", []).append(float(share))
    return {key: float(np.mean(values)) for key, values in sums.items()}


def measure(
    all_scores: Mapping[str, NDArray[np.float32]], table: FeatureTable, names: tuple[str, ...]
) -> dict[str, dict[str, object]]:
    """Every set of scores, with intervals over repositories, and its gain over the bank."""
    rng = np.random.default_rng(0)
    draws = np.zeros((SAMPLES, len(table.sources)))
    for name in (REAL, *names):  # whole repositories, within each class
        own = np.flatnonzero(table.generators == name)
        sources, of = np.unique(table.sources[own], return_inverse=True)
        for draw in draws:
            drawn = rng.integers(len(sources), size=len(sources))
            draw[own] = np.bincount(drawn, minlength=len(sources))[of]
    ones = np.ones(len(table.sources))
    own_of = {key: own_aurocs(s, table, names, ones[None])[0] for key, s in all_scores.items()}
    drawn_of = {
        key: own_aurocs(s, table, names, draws).mean(axis=1) for key, s in all_scores.items()
    }
    out: dict[str, dict[str, object]] = {}
    for key, scores in all_scores.items():
        base = "bank, half" if key.endswith(", half") else "bank"
        gain = drawn_of[key] - drawn_of[base]
        out[key] = {
            "own": {name: round(float(v), 4) for name, v in zip(names, own_of[key], strict=True)},
            "own_mean": float(own_of[key].mean()),
            "own_interval": np.nanquantile(drawn_of[key], (0.025, 0.975)).tolist(),
            "gain": float(own_of[key].mean() - own_of[base].mean()),
            "gain_interval": np.nanquantile(gain, (0.025, 0.975)).tolist(),
            **found_at(scores, table, ones),
        }
    return out


def sizes(table: FeatureTable, rows: NDArray[np.bool_]) -> dict[str, int]:
    """Numbers of images and repositories of some views."""
    return {
        "images": len(np.unique(table.images[rows])),
        "repositories": len(np.unique(table.sources[rows])),
    }


def main() -> None:
    """Make views, train, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--views", type=int, default=3, help="of each image")
    parser.add_argument("--most", type=int, default=40, help="images of a repository and class")
    parser.add_argument("--steps", type=int, default=5000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    views = collect(read_manifest(given.manifest), given.work, given.views, given.most)
    table = views.table
    fold = repository_folds(table.sources, table.generators, 3)
    held = fold == 0
    names = generators_of(table, held)
    known = np.isin(table.generators, (REAL, *names))
    rest = ~held & known
    half = np.zeros(len(held), bool)
    half[rest] = repository_folds(table.sources[rest], table.generators[rest], 2) == 0
    scored = held & known
    config = LearnedConfig(steps=given.steps)
    both: dict[str, FeatureTable] = {}
    nets: dict[str, Learned] = {}
    for name, used in (("all", rest), ("half", half)):
        nets[name] = train(views, used, given.work / f"run-{name}", config)
        found = channels(nets[name], views, given.work / f"channels-{name}.npy")
        both[name] = replace(table, features=np.concatenate([table.features, found], axis=1))
        both[f"{name} alone"] = replace(table, features=found)
    alone = np.zeros((len(held), len(names)), np.float32)
    for i in np.flatnonzero(scored).tolist():
        alone[i] = learned_scores(nets["all"], views.crops[i])[:-1]
    scores = {
        "bank": head_scores(table, names, rest, scored),
        "learned, its own heads": alone,
        "learned": head_scores(both["all alone"], names, rest, scored),
        "bank and learned": head_scores(both["all"], names, rest, scored),
        "bank, half": head_scores(table, names, rest & ~half, scored),
        "bank and learned, half": head_scores(both["half"], names, rest & ~half, scored),
        "bank and learned of half": head_scores(both["half"], names, rest, scored),
    }
    scores["bank and learned, with its own heads"] = sum_of(
        scores["bank and learned"], alone, bands_of(table.traits, 5), scored
    )
    at = np.flatnonzero(scored)
    part = table.take(at)
    result = {
        "data": {
            side: {name: sizes(table, rows & (table.generators == name)) for name in (REAL, *names)}
            for side, rows in (("learned from", rest), ("held out", scored))
        },
        "views": int(known.sum()),
        "crops drawn": given.steps * 2 * config.batch * len(names),
        "training": {name: dict(net.last) for name, net in nets.items()},
        "scores": measure({k: s[at] for k, s in scores.items()}, part, names),
    }
    path = ROOT / "benchmarks" / "results" / "learned_residual.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "tables" / "learned-residual.md"
    page.write_text(markdown(result["scores"]), encoding="utf-8")


def markdown(measured: Mapping[str, Mapping[str, object]]) -> str:
    """Page with the table of what was measured."""
    lines = [
        "# Heads on the bank and on learned channels\n",
        "Made by `python benchmarks/learned_residual.py --manifest MANIFEST --work FOLDER`, on a",
        "third of the repositories that was held out; 95 % intervals over repositories.\n",
        "| heads on | own-head AUROC | gain over the bank | joint AUROC | found at 5 %, 1 % |"
        " false alarms |",
        "|---|---|---|---|---|---|",
    ]
    for key, m in measured.items():
        low, high = m["own_interval"]  # type: ignore[misc]
        down, up = m["gain_interval"]  # type: ignore[misc]
        gain = "" if key in ("bank", "bank, half") else f"{m['gain']:+.3f} [{down:+.3f}, {up:+.3f}]"
        found, false = (
            ", ".join(f"{100 * m[f'{what} at {level} %']:.0f}" for level in (5, 1))  # type: ignore[operator]
            for what in ("found", "false alarms")
        )
        lines.append(
            f"| {key} | {m['own_mean']:.3f} [{low:.3f}, {high:.3f}] | {gain} | {m['auroc']:.3f} "
            f"| {found} | {false} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

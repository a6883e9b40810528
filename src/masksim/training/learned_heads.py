"""Heads on a learned residual, and scores by such heads that never saw an image's repository.

For each fold a residual is trained on the views of the others, and one on all: that is kept. What
training leaves as linear heads becomes masks and references on deviations from photos of the same
band of compression, so that a similarity is a cosine here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.augment import rng_for
from masksim.checkpoint import Branch
from masksim.config import Progress, staged, watched
from masksim.data.chunks import run_chunks
from masksim.data.manifest import REAL
from masksim.data.weights import weights_by_band
from masksim.errors import DataError
from masksim.features import LumaConfig, luma_spectra
from masksim.files import written_whole
from masksim.model import standardise
from masksim.residual import OnnxResidual, Runner, residual_onnx
from masksim.training.heads import (
    HeadConfig,
    HeadsByBand,
    cosines,
    level_free,
    masks_and_references,
    statistics,
    stored,
)
from masksim.training.learned_config import LearnedConfig
from masksim.traits import BANDS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.training.feature_table import FeatureTable
    from masksim.training.learned_residual import Windows
    from masksim.training.stored_windows import StoredWindows

    Matrix = NDArray[np.float32]

_PHOTOS = 250
"""Photos of a band whose mean and deviation standardise its features."""


@dataclass(frozen=True, eq=False)
class LearningViews:
    """Views of a run as a learned residual takes them.

    Attributes
    ----------
    windows
        See `masksim.training.stored_windows.StoredWindows`.
    classes
        int64 (n,): 0 for photos, from 1 on for the generators in `names`, -1 for others.
    names
        Of the generators.
    sources, histories
        str (n,).
    band
        int64 (n,): band of compression.
    folds
        int64 (n,).
    """

    windows: Windows
    classes: NDArray[np.int64]
    names: tuple[str, ...]
    sources: NDArray[np.str_]
    histories: NDArray[np.str_]
    band: NDArray[np.int64]
    folds: NDArray[np.int64]

    def chances(self, used: NDArray[np.bool_], lossless: float) -> NDArray[np.float64]:
        """How often each view is drawn within its class, (n,).

        All classes are alike in what their files show of the last compression: as photos are.
        """
        classes = np.where(used, self.classes, -1)
        chances = weights_by_band(classes, self.sources, self.histories, self.band, lossless)
        photos = np.bincount(self.band[classes == 0], minlength=len(BANDS))
        chances *= (photos / max(1, photos.sum()))[self.band]
        return chances


@dataclass(frozen=True, eq=False)
class LearnedHeads:
    """Heads of all generators on a learned residual.

    Attributes
    ----------
    branch
        Of a detector file; its similarities count in full.
    scores
        float32 (n, G): left-out similarities of the views; NaN where a view's run has no head.
    """

    branch: Branch
    scores: Matrix


def train_one(
    views: LearningViews, left_out: int | None, config: LearnedConfig, lossless: float, run: Path
) -> None:
    """Train the residual that one fold is left out of, or none, in the folder of its run."""
    from masksim.training.learned_residual import Views, in_one_thread, train_learned
    from masksim.training.processes import RunOptions

    at = _learned_from(views, left_out)
    chances = views.chances(at, lossless)
    chosen = np.flatnonzero(at & (chances > 0))
    names = np.array([REAL, *views.names])
    with in_one_thread():  # crops are too small to be shared out
        learned = train_learned(
            Views(
                _Chosen(views.windows, chosen), names[views.classes[chosen]], views.sources[chosen],
                chances[chosen],
            ),
            config, run, options=RunOptions(device="cpu", precision="bfloat16", save_every=100),
        )  # fmt: skip
    _write(learned, run)


def _epochs_done(run: Path, config: LearnedConfig) -> int:
    """Count the epochs that a run has behind it, by its log."""
    if (run / _MADE).exists():
        return config.epochs
    try:
        lines = (run / _LOG).read_text(encoding="utf-8").splitlines()
    except OSError:  # not begun, or not to be read now: a bar is worth no run
        return 0
    return sum("valid_loss" in line for line in lines)


def _learned_from(views: LearningViews, left_out: int | None) -> NDArray[np.bool_]:
    """Tell which views a residual is trained on: of generators with two owners there.

    Repositories of one owner are validated on together (`repository_folds`).
    """
    used = views.classes >= 0
    if left_out is not None:
        used &= views.folds != left_out
    for c in range(1, len(views.names) + 1):
        own = used & (views.classes == c)
        if len({source.partition("/")[0] for source in views.sources[own].tolist()}) < 2:
            used &= ~own
    return used


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Some of the views."""

    windows: Windows
    at: NDArray[np.int64]

    def __getitem__(self, view: int) -> NDArray[np.uint8]:
        return self.windows[int(self.at[view])]


def _write(learned: Any, run: Path) -> None:
    """Keep what heads are made of, so that a run need not be trained to be used."""
    from masksim.training.learned_residual import directions_of, weights_of

    arrays: dict[str, Any] = {
        f"weight {name}": values for name, values in weights_of(learned).items()
    }
    arrays |= {"directions": directions_of(learned), "names": np.array(learned.generators)}
    with written_whole(run / _MADE) as file:
        np.savez(file, **arrays)


_MADE = "learned.npz"
_LOG = "log.jsonl"  # of `masksim.training.loop`, which needs torch


def _read(run: Path) -> tuple[dict[str, Matrix], Matrix, tuple[str, ...]]:
    """Give weights, directions (G, C, R, S) and generators of a run that is over."""
    with np.load(run / _MADE, allow_pickle=False) as data:
        weights = {
            key.removeprefix("weight "): data[key] for key in data.files if key.startswith("weight")
        }
        return weights, data["directions"], tuple(data["names"].tolist())


def _photos_of_bands(
    views: LearningViews, used: NDArray[np.bool_], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Choose photos whose features are standardised by, for each band; of others if it has none."""
    photos = used & (views.classes == 0)
    chosen = []
    for b in range(len(BANDS)):
        own = np.flatnonzero(photos & (views.band == b))
        at = own if len(own) >= 2 else np.flatnonzero(photos)
        chosen.append(np.sort(rng.permutation(at)[:_PHOTOS]))
    return chosen


def _spectra(
    views: LearningViews, at: NDArray[np.int64], config: LumaConfig, residual: Runner, run: Path
) -> Matrix:
    """Features of some views, float32 (k, C, R, R // 2), kept in the folder of the run."""
    path = run / "spectra.npz"
    made_by = hashlib.sha256((run / _MADE).read_bytes() + repr(config).encode()).hexdigest()
    if path.exists():
        with np.load(path, allow_pickle=False) as data:
            if np.array_equal(data["at"], at) and str(data["made_by"]) == made_by:
                return np.asarray(data["features"])
    found = np.stack([luma_spectra(views.windows[i], config, residual) for i in at.tolist()])
    with written_whole(path) as file:
        np.savez(file, at=at, features=found, made_by=made_by)
    return found


def _heads(
    views: LearningViews,
    run: Path,
    left_out: int | None,
    config: LearnedConfig,
    heads: HeadConfig,
    seed: int,
) -> tuple[Branch, Matrix]:
    """Make the heads of one run, and score what was left out of it: (n, G), NaN elsewhere.

    NaN also for a generator that the run has no head for.
    """
    weights, directions, names = _read(run)
    graph = residual_onnx(config.residual, weights)
    residual, luma = OnnxResidual(graph, threads=1), config.luma
    count, bands = len(views.names), len(BANDS)
    shape = directions.shape[1:]
    rng = rng_for(seed, "photos of a band", -1 if left_out is None else left_out)
    photos = _photos_of_bands(views, _learned_from(views, left_out), rng)
    held = np.zeros(0, np.int64) if left_out is None else np.flatnonzero(views.folds == left_out)
    at = np.unique(np.concatenate([*photos, held]))
    features = level_free(_spectra(views, at, luma, residual, run))
    mean = np.zeros((bands, *shape), np.float32)
    deviation = np.ones_like(mean)
    masks, references = (np.full((bands, count, *shape), 1e-3, np.float32) for _ in range(2))
    places = [views.names.index(name) for name in names]
    for b, chosen in enumerate(photos):
        mean[b], deviation[b] = statistics(
            features[np.searchsorted(at, chosen)], np.ones(len(chosen))
        )
        flat = (directions * deviation[b]).reshape(len(directions), -1)
        masks[b, places], references[b, places] = masks_and_references(
            flat, shape, heads.mask_exponent
        )
    tensors = stored(
        {"mean": mean, "deviation": deviation, "masks": masks, "references": references}
    )
    scores = np.full((len(views.classes), count), np.nan, np.float32)
    for b in range(bands):
        own = held[views.band[held] == b]
        middle, width = (tensors[key][b].astype(np.float32) for key in ("mean", "deviation"))
        z = standardise(features[np.searchsorted(at, own)], middle, width, heads.limit)
        for g in places:
            scores[own, g] = cosines(
                z.reshape(len(own), middle.size), tensors["masks"][b, g],
                tensors["references"][b, g],
            )  # fmt: skip
    placed, spectrum = luma.in_two()
    zeros = np.zeros((bands, count), np.float32)
    branch = Branch(
        config.residual, weights, graph, {"colour": "luma", **placed}, spectrum, "bands",
        views.names, {**tensors, "a": zeros, "b": zeros}, {"limit": heads.limit},
    )  # fmt: skip
    return branch, scores


def learned_heads(
    views: LearningViews,
    config: LearnedConfig,
    run: Path,
    *,
    heads: HeadConfig,
    lossless: float,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> LearnedHeads:
    """Train all residuals, make the heads, and score every view by heads that never saw it.

    Parameters
    ----------
    views
        All views of a run.
    config
        Of the training; each run goes on where it was.
    run
        Folder of the runs: ``fold-0``, ..., ``all``.
    heads, lossless, seed
        See `masksim.training.bands.BandsConfig`.
    workers
        So many runs at a time, each in one thread.
    progress
        See `masksim.config.Progress`; in training an epoch of each run is a step, and what is
        raised comes after all runs.

    Raises
    ------
    DataError
        See `masksim.training.learned_residual.train_learned`.
    """
    count = int(views.folds.max()) + 1
    parts: Sequence[tuple[int | None, Path]] = [
        *((k, run / f"fold-{k}") for k in range(count)), (None, run / "all")
    ]  # fmt: skip
    todo = [(views, k, config, lossless, folder) for k, folder in parts]
    with watched(
        lambda: sum(_epochs_done(folder, config) for _, folder in parts),
        len(parts) * config.epochs, staged(progress, "learned residual"),
    ):  # fmt: skip
        run_chunks(train_one, todo, len(todo), workers=workers, progress=None)
    made = run_chunks(
        _heads, [(views, folder, k, config, heads, seed) for k, folder in parts], len(parts),
        workers=workers, progress=staged(progress, "heads on it"),
    )  # fmt: skip
    scores = np.full((len(views.classes), len(views.names)), np.nan, np.float32)
    for _, found in made:
        scores = np.where(np.isnan(scores), found, scores)
    return LearnedHeads(made[-1][0], scores)


def combined(
    one: Matrix, other: Matrix, band: NDArray[np.int64], photos: NDArray[np.bool_]
) -> tuple[Matrix, Matrix]:
    """Sum of two similarities, each in deviations of photos of a band, their shares 1 in sum.

    Parameters
    ----------
    one, other
        (n, G); NaN in `other` counts as its mean over the photos. One without any number, or that
        does not vary, has no share.
    band
        int64 (n,).
    photos
        Mask (n,).

    Returns
    -------
    scores
        float32 (n, G).
    shares
        float32 (B, G): of `one`.
    """
    out = np.zeros_like(one)
    shares = np.ones((len(BANDS), one.shape[1]), np.float32)
    for b in range(len(BANDS)):
        own = band == b
        at = own & photos if (own & photos).sum() >= 2 else photos
        mean, deviation = np.zeros(one.shape[1]), np.zeros(one.shape[1])
        for g in range(one.shape[1]):
            there = other[at, g][~np.isnan(other[at, g])]
            if len(there):
                mean[g], deviation[g] = there.mean(), there.std()
        ratio = np.zeros_like(deviation)
        np.divide(one[at].std(axis=0), deviation, out=ratio, where=deviation > 0)
        shares[b] = 1 / (1 + ratio)
        rest = np.where(np.isnan(other[own]), mean, other[own])
        out[own] = shares[b] * one[own] + (1 - shares[b]) * rest
    return out.astype(np.float32), shares


def with_learned(
    scores: Matrix, bank: Branch, learned: Branch, table: FeatureTable, windows: StoredWindows
) -> Matrix:
    """Add the similarities on a learned residual to those on the bank, each with its share.

    Parameters
    ----------
    scores
        (n, G), in the order of the bank's generators.
    bank, learned
        Of one detector file.
    table, windows
        The views, in the same order.

    Returns
    -------
    ndarray
        float32 (n, G).

    Raises
    ------
    DataError
        The windows are of other views.
    """
    if len(windows) != len(table.images) or not np.array_equal(windows.images, table.images):
        raise DataError("the windows are not of the views that the features are of")
    limit = float(learned.head_config["limit"])
    luma = LumaConfig.from_dict(learned.settings)
    residual = OnnxResidual(learned.onnx, threads=1)
    features = np.stack(
        [luma_spectra(windows[i], luma, residual) for i in range(len(table.images))]
    )
    heads = HeadsByBand.of(learned.head, learned.tensors, limit)
    band = bands_of(table.traits, len(BANDS))
    more = heads.similarities(features, table.traits)
    more *= np.stack([heads.sets[min(b, len(heads.sets) - 1)].share for b in band.tolist()])
    shares = np.asarray(bank.tensors.get("share", np.ones((1, len(bank.generators)))))
    out = scores * shares[np.minimum(band, len(shares) - 1)]
    for g, name in enumerate(learned.generators):
        out[:, bank.generators.index(name)] += more[:, g]
    return np.asarray(out, np.float32)

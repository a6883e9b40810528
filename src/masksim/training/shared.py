"""The recipe ``shared``: all generators on the residual bank, one set of heads.

Views of the training images are fitted (`masksim.training.heads`); the calibration has one view of
each image, processed as photos come, scored by heads that never saw its source. Two exceptions: a
generator with fewer sources than folds is parted by image, and the mean and deviation of the
features are those of all photos, in every fold.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import metrics
from masksim.checkpoint import DetectorFile, check_target
from masksim.config import Progress, staged
from masksim.data.manifest import REAL, Manifest
from masksim.data.views import Purpose, ViewConfig, measure_first_qualities
from masksim.data.weights import history_weights, source_folds, training_weights
from masksim.errors import UsageError
from masksim.model import standardise
from masksim.training.feature_table import FeatureTable, compute_features
from masksim.training.heads import (
    HeadsByBand,
    coefficients_of,
    fit_probability,
    level_free,
    masks_and_references,
    statistics,
    stored,
)
from masksim.training.recipe import (
    Fit,
    RecipeConfig,
    classes_of,
    detector_file,
    generators_with_heads,
    image_keys,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class SharedConfig(RecipeConfig):
    """A run of this recipe, see `masksim.training.recipe.RecipeConfig`.

    First qualities that are left empty are measured on the real photos.
    """

    strata: tuple[tuple[str, int | tuple[float, ...]], ...] = (
        ("energy", 3),
        ("distance", 2),
        ("sharpness", 2),
        ("side", (768.0,)),
        ("quality", (75.0,)),
        ("chroma", (2.0,)),
    )
    views: ViewConfig = field(default_factory=lambda: ViewConfig(first_qualities=()))


def _fitter(
    table: FeatureTable,
    classes: NDArray[np.int64],
    weights: NDArray[np.float64],
    config: SharedConfig,
) -> Callable[[NDArray[np.bool_]], dict[str, NDArray[Any]]]:
    """Give a function that fits the tensors of heads to some of the views."""
    real, count = classes == 0, int(classes.max())
    mean, deviation = statistics(level_free(table.features[real]), weights[real])
    z = standardise(table.features.astype(np.float32), mean, deviation, config.heads.limit)
    flat = z.reshape(len(z), -1)
    gram = flat @ flat.T

    def fitted(used: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        coefficients = coefficients_of(
            gram, np.where(used, classes, -1), weights, table.histories, flat.shape[1], config.heads
        )
        directions = (flat.T @ coefficients).T
        channels, rows, columns = (int(n) for n in mean.shape)
        masks, references = masks_and_references(
            directions, (channels, rows, columns), config.heads.mask_exponent
        )
        return {
            "mean": mean,
            "deviation": deviation,
            "masks": masks,
            "references": references,
            "a": np.zeros(count, np.float32),
            "b": np.zeros(count, np.float32),
        }

    return fitted


def fit_heads(
    table: FeatureTable,
    calibration: FeatureTable,
    config: SharedConfig,
    *,
    progress: Progress | None = None,
) -> Fit:
    """Fit all heads, and score the calibration views with heads that never saw their source.

    With two exceptions, see the module.

    Parameters
    ----------
    table
        Training views.
    calibration
        One view each of the same images, processed as photos come.
    config
        The run.
    progress
        See `masksim.config.Progress`.

    Returns
    -------
    Fit

    Raises
    ------
    DataError
        See `masksim.training.recipe.generators_with_heads`.
    """
    names = generators_with_heads(table, config)
    classes = classes_of(table, names)
    shares, limit = config.views.shares, config.heads.limit
    weights = training_weights(table.generators, table.sources, table.histories, shares)
    folds = source_folds(table.generators, table.sources, image_keys(table), config.folds)
    # A photo belongs to the fold of its source, even if none of its training views could be made.
    fold_of = dict(zip(_fold_keys(table), folds.tolist(), strict=True))
    calibration_folds = np.array([fold_of.get(key, 0) for key in _fold_keys(calibration)])
    fitted = _fitter(table, classes, weights, config)
    scored = np.zeros((len(calibration.images), len(names)), dtype=np.float32)
    unseen = np.zeros((len(table.images), len(names)), dtype=np.float32)
    for k in range(config.folds):
        if progress:
            progress("fold", k, config.folds)
        heads = HeadsByBand.of("shared", stored(fitted(folds != k)), limit)
        for views, out, held in (
            (table, unseen, folds == k),
            (calibration, scored, calibration_folds == k),
        ):
            if held.any():
                out[held] = heads.similarities(views.features[held], views.traits[held])
    if progress:
        progress("fold", config.folds, config.folds)
    tensors = fitted(classes >= 0)
    auroc = {}
    for g, name in enumerate(names):
        pair = history_weights(table.histories, [classes == g + 1, classes == 0], shares)
        used = pair > 0
        auroc[name] = metrics.auroc(unseen[used, g], classes[used] == g + 1, pair[used])
        tensors["a"][g], tensors["b"][g] = fit_probability(
            unseen[used, g], classes[used] == g + 1, pair[used]
        )
    kept = stored(tensors)
    traits = HeadsByBand.of("shared", kept, limit).traits(calibration)
    return Fit(names, kept, scored, traits, auroc)


def _fold_keys(table: FeatureTable) -> list[tuple[str, str]]:
    """Name what decides an image's fold: a photo's source, a synthetic image's path."""
    return [
        (REAL, source) if generator == REAL else (generator, table.rows[image].path)
        for generator, source, image in zip(
            table.generators.tolist(), table.sources.tolist(), table.images.tolist(), strict=True
        )
    ]


def train_shared(
    manifest: Manifest,
    out: str | os.PathLike[str],
    config: SharedConfig,
    *,
    cache: str | os.PathLike[str],
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[DetectorFile, Fit]:
    """Train a detector on the ``train`` split of a manifest and write it.

    Parameters
    ----------
    manifest
        Real photos and synthetic images.
    out
        Folder of the detector, made.
    config
        The run.
    cache
        Folder for features: a run that is killed goes on where it was.
    workers
        Processes that compute features.
    overwrite
        Replace a detector that is there.
    progress
        See `masksim.config.Progress`.

    Returns
    -------
    DetectorFile, Fit

    Raises
    ------
    DataError, UsageError
        See `fit_heads` and `masksim.checkpoint.DetectorFile.save`.
    """
    check_target(Path(out), overwrite)  # before minutes of work, not after
    if config.views.window != config.features.window:
        raise UsageError(
            f"views have a window of {config.views.window}, features of {config.features.window}"
        )
    chosen = manifest.select("train")
    if not config.views.first_qualities:
        qualities, subsampled = measure_first_qualities(chosen)
        views = replace(
            config.views, first_qualities=qualities, first_subsampled=round(subsampled, 3)
        )
        config = replace(config, views=views)

    def compute(purpose: Purpose, stage: str) -> FeatureTable:
        return compute_features(
            chosen, purpose, cache, views_config=config.views, feature_config=config.features,
            seed=config.seed, workers=workers, progress=staged(progress, stage),
        )  # fmt: skip

    table = compute("train", "features of training views")
    calibration = compute("calibrate", "features of calibration views")
    fit = fit_heads(table, calibration, config, progress=progress)
    file = detector_file(
        "shared", config, fit, table, calibration,
        names=(REAL, *fit.generators),
        how=f"cross-validated over sources in {config.folds} folds, one view a photo",
    )  # fmt: skip
    return file.save(out, overwrite=overwrite), fit

"""Making a detector: the shared recipe, all generators on one fixed residual bank.

With some hundred images a generator, a free mask and reference for every frequency memorise (and a
network does so faster): what generalises is a strongly regularised linear direction. So each
generator's direction is that of Fisher's discriminant against the real photos, ridge-regularised,
on spectra averaged in cells; the reference is the direction and the mask its envelope, both as the
method has them. Everything is computed from the Gram matrix of the cached features, in minutes on
two cores, without torch.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import __version__, metrics
from masksim.checkpoint import Branch, DetectorFile, HeadKind
from masksim.data.manifest import REAL, Manifest, manifest_hash
from masksim.errors import DataError, ModelError, UsageError, counted
from masksim.features import FeatureConfig
from masksim.model import SharedHeads
from masksim.residual import ResidualConfig, residual_onnx
from masksim.strata import Strata
from masksim.training.dataset import (
    FeatureTable,
    ViewConfig,
    compute_features,
    history_weights,
    measure_first_qualities,
    source_folds,
    training_weights,
)
from masksim.training.stored_features import ReferencePhotos, pack, spread_over_sources
from masksim.traits import TRAITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]
    Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HeadConfig:
    """How directions become heads.

    Attributes
    ----------
    ridge
        Regularisation, in units of the mean variance of a feature.
    pooled
        Share of the synthetic classes in the covariance, in [0, 1); the rest is the reals'.
    mask_exponent
        The mask is the direction's magnitude, averaged over neighbouring cells, to this power: 0
        is a mask of ones.
    limit
        Standardised features are clipped to +- this many deviations.
    """

    ridge: float = 5.0
    pooled: float = 0.3
    mask_exponent: float = 0.5
    limit: float = 6.0

    def __post_init__(self) -> None:
        for name in ("ridge", "pooled", "mask_exponent", "limit"):
            if isinstance(getattr(self, name), bool) or not isinstance(
                getattr(self, name), (int, float)
            ):
                raise UsageError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not (
            self.ridge > 0 and 0 <= self.pooled < 1 and self.mask_exponent >= 0 and self.limit > 0
        ):
            raise UsageError(f"a value of the heads is out of range: {self}")


@dataclass(frozen=True)
class TrainConfig:
    """A training run: all that the detector depends on besides the images.

    Attributes
    ----------
    name
        Of the detector.
    seed
        Of all draws.
    smallest_class
        Generators with fewer training images are left out.
    folds
        Of the cross-validation over sources that gives the calibration scores.
    photos, images, photo_step
        Features of how many real photos, and of how many images of each generator, are kept with
        the detector to enroll generators with, and the step they are rounded to, in deviations;
        see `masksim.training.stored_features`.
    strata
        How the calibration photos are parted, from the coarsest to the finest: (trait, number of
        bands of as many photos each, or the cuts themselves), see `masksim.strata.Strata`.
    stratum_photos, stratum_sources
        Fewest photos, and sources of them, of a stratum.
    views, features, heads
        See their classes. First qualities that are left empty are measured on the real photos.
    """

    name: str = "detector"
    seed: int = 0
    smallest_class: int = 30
    folds: int = 5
    photos: int = 1000
    images: int = 50
    photo_step: float = 1.0
    strata: tuple[tuple[str, int | tuple[float, ...]], ...] = (
        ("energy", 3),
        ("distance", 2),
        ("sharpness", 2),
        ("side", (768.0,)),
        ("quality", (75.0,)),
        ("chroma", (2.0,)),
    )
    stratum_photos: int = 300
    stratum_sources: int = 20
    views: ViewConfig = field(default_factory=lambda: ViewConfig(first_qualities=()))
    features: FeatureConfig = field(default_factory=FeatureConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if min(self.photos, self.images) < 0 or not 0.1 <= self.photo_step <= 2:
            raise UsageError(
                "photos and images must not be negative and photo_step in 0.1 .. 2, got "
                f"{self.photos}, {self.images} and {self.photo_step}"
            )
        try:
            _ = self.division
        except ModelError as error:
            raise UsageError(error.message) from error

    @property
    def division(self) -> Strata:
        """How the calibration photos are parted."""
        return Strata(self.strata, self.stratum_photos, self.stratum_sources)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make a configuration of plain values, as a TOML file holds them; unknown keys fail.

        Raises
        ------
        UsageError
            On an unknown key.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(f"unknown keys in the training configuration: {unknown}")
        plain = dict(values)
        for part in ("views", "features", "heads"):
            if not isinstance(plain.get(part, {}), Mapping):
                raise UsageError(f"{part} must be a table, got {plain[part]!r}")
        plain["views"] = ViewConfig.from_dict({"first_qualities": (), **plain.get("views", {})})
        plain["features"] = FeatureConfig.from_dict(plain.get("features", {}))
        heads = plain.get("heads", {})
        unknown = sorted(set(heads) - set(HeadConfig.__dataclass_fields__))
        if unknown:
            raise UsageError(f"unknown keys in the configuration of heads: {unknown}")
        plain["heads"] = HeadConfig(**heads)
        try:
            plain["strata"] = tuple(
                (trait, bands if isinstance(bands, int) else tuple(float(cut) for cut in bands))
                for trait, bands in plain.get("strata", cls.strata)
            )
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"strata must be pairs of a trait and bands: {plain['strata']!r}"
            ) from error
        return cls(**plain)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read plain values from a TOML file.

    Raises
    ------
    UsageError
        It cannot be read, or is no TOML.
    """
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
    try:
        values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from error
    return values


def read_config(path: str | os.PathLike[str]) -> TrainConfig:
    """Read a training configuration of the shared recipe from a TOML file.

    Raises
    ------
    UsageError
        It cannot be read, is no TOML, is of another recipe, or has unknown keys.
    """
    values = read_toml(path)
    recipe = values.pop("recipe", "shared")
    if recipe != "shared":
        raise UsageError(f"{path} is of the recipe {recipe!r}, not of 'shared'")
    return TrainConfig.from_dict(values)


# --- the fit -----------------------------------------------------------------------------------


def level_free(features: NDArray[Any]) -> Matrix:
    """Subtract the mean over the cells of each channel: (n, C, R, S) -> float32 (n, C, R, S)."""
    out = np.array(features, dtype=np.float32)
    out -= out.mean(axis=(2, 3), keepdims=True)
    return out


def real_statistics(
    features: Matrix, real: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[Matrix, Matrix]:
    """Weighted mean and deviation of the real photos' level-free features, (C, R, S) each."""
    share = (weights[real] / weights[real].sum()).astype(np.float32)
    mean = np.tensordot(share, features[real], 1)
    deviation = np.sqrt(np.tensordot(share, (features[real] - mean) ** 2, 1)) + np.float32(1e-3)
    return mean, deviation


def fisher_coefficients(
    gram: Matrix,
    classes: NDArray[np.int64],
    weights: NDArray[np.float64],
    dimensions: int,
    *,
    ridge: float,
    pooled: float,
    real_weights: NDArray[np.float64] | None = None,
) -> Matrix:
    """Ridge-regularised Fisher directions of each class against class 0, as sums of the rows.

    With X the (n, D) features, direction g is ``X.T @ result[:, g - 1]``: it solves
    ``(S + ridge t I) w = m_g - m_0``, where S is the within-class covariance and t its mean
    diagonal element. Solved in the n rows, not in the D dimensions.

    Parameters
    ----------
    gram
        ``X @ X.T``, float32 (n, n).
    classes
        (n,): 0 for reals, g for generator g, -1 for rows to leave out.
    weights
        (n,), not negative.
    dimensions
        D.
    ridge, pooled
        See `HeadConfig`.
    real_weights
        (n, G): weights of class 0 in the mean that each generator is set against, see
        `matched_real_weights`; by default `weights`.

    Returns
    -------
    ndarray
        float32 (n, G).

    Raises
    ------
    DataError
        A class has no row left.
    """
    from scipy.linalg import solve

    count = int(classes.max())
    chosen = np.flatnonzero(classes >= 0)
    labels, own = classes[chosen], weights[chosen]
    inner = gram[np.ix_(chosen, chosen)]
    n = len(chosen)
    means = np.zeros((n, count + 1), dtype=np.float32)
    scale = np.zeros(n, dtype=np.float32)
    for c in range(count + 1):
        mask = labels == c
        if not own[mask].sum() > 0:
            raise DataError(f"class {c} has no training images in a fold")
        means[mask, c] = own[mask] / own[mask].sum()
        scale[mask] = np.sqrt(means[mask, c] * ((1 - pooled) if c == 0 else pooled / count))
    used = np.flatnonzero(scale > 0)
    contrast = means[:, 1:] - means[:, :1]
    if real_weights is not None:
        against = np.where((labels == 0)[:, None], real_weights[chosen], 0.0)
        if not (against.sum(axis=0) > 0).all():
            raise DataError("a generator has no real photos to be set against in a fold")
        contrast = means[:, 1:] - (against / against.sum(axis=0)).astype(np.float32)
    # Rows minus their class mean, in terms of the Gram matrix: (I - E) K (I - E)^T.
    own_class = labels[used]
    half = inner[used] - (means.T @ inner)[own_class]
    centred = half[:, used] - (half @ means)[:, own_class]
    root = scale[used]
    centred *= root[:, None]
    centred *= root[None, :]
    strength = ridge * float(np.trace(centred)) / dimensions
    right = root[:, None] * (half @ contrast)
    centred[np.diag_indices_from(centred)] += strength
    # Positive definite: Cholesky takes half of what LU does.
    solved = root[:, None] * solve(
        centred, right, assume_a="pos", overwrite_a=True, check_finite=False
    )
    inside = -contrast
    inside[used] += solved
    sums = np.stack([solved[own_class == c].sum(axis=0) for c in range(count + 1)])
    inside -= means @ sums
    out = np.zeros((len(classes), count), dtype=np.float32)
    out[chosen] = -inside / strength
    return out


def matched_real_weights(
    classes: NDArray[np.int64], weights: NDArray[np.float64], histories: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Weights of the reals that give them each generator's own shares of histories.

    A generator of 512-pixel images has no ``reduced`` views: set against all reals, its direction
    would in part be that of "never reduced".

    Parameters
    ----------
    classes
        (n,), see `fisher_coefficients`.
    weights
        (n,).
    histories
        (n,).

    Returns
    -------
    ndarray
        (n, G), 0 outside of class 0.
    """
    count = int(classes.max())
    out = np.zeros((len(classes), count))
    for history in np.unique(histories):
        same = histories == history
        real = same & (classes == 0)
        total = weights[real].sum()
        if not total > 0:
            continue
        for g in range(count):
            own = weights[same & (classes == g + 1)].sum() / weights[classes == g + 1].sum()
            out[real, g] = weights[real] / total * own
    return out


def masks_and_references(
    directions: Matrix, shape: tuple[int, int, int], exponent: float
) -> tuple[Matrix, Matrix]:
    """Split directions into masks in [0, 1] and references, unit vectors.

    Parameters
    ----------
    directions
        (G, D).
    shape
        (C, R, S) with C R S = D.
    exponent
        See `HeadConfig.mask_exponent`.

    Returns
    -------
    masks, references
        float32 (G, C, R, S); mask times reference is along the direction.
    """
    planes = directions.reshape(len(directions), *shape)
    envelope = np.abs(planes)
    for axis in (2, 3):
        padded = np.concatenate(
            [envelope.take([0], axis), envelope, envelope.take([-1], axis)], axis
        )
        n = envelope.shape[axis]
        envelope = np.mean([padded.take(range(i, i + n), axis) for i in range(3)], axis=0)
    masks = (envelope / envelope.max(axis=(1, 2, 3), keepdims=True)) ** exponent
    masks = np.maximum(masks, 1e-3)
    references = planes / masks
    references /= np.sqrt((references**2).sum(axis=(1, 2, 3), keepdims=True))
    return masks.astype(np.float32), references.astype(np.float32)


def fit_probability(
    similarity: NDArray[Any], synthetic: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Fit a, b of ``sigmoid(exp(a) s + b)`` by weighted logistic regression, classes balanced."""
    from sklearn.linear_model import LogisticRegression

    scale = float(np.std(similarity)) or 1.0
    balance = np.where(synthetic, 0.5 / weights[synthetic].sum(), 0.5 / weights[~synthetic].sum())
    fit = LogisticRegression(C=1e3)
    fit.fit(
        (np.asarray(similarity, np.float64) / scale)[:, None],
        synthetic,
        sample_weight=weights * balance * len(weights),
    )
    slope = max(float(fit.coef_[0, 0]) / scale, 1e-6)
    return float(np.log(slope)), float(fit.intercept_[0])


@dataclass(frozen=True, eq=False)
class Fit:
    """Heads and the scores they gave on photos of sources they had not seen.

    Attributes
    ----------
    generators
        Names, in the order of the heads.
    tensors
        Of `masksim.model.SharedHeads`.
    real_similarities
        float32 (n, G): cross-validated scores of the calibration photos.
    own_similarities, own_generators
        float32 (k, G) and int32 (k,): cross-validated scores of the synthetic images, and the
        generator of each.
    real_traits, own_traits
        float32 (n, T) and (k, T): what those photos and images show.
    real_sources
        int32 (n,): number of each photo's source.
    cross_validated_auroc
        By generator, training views, sources of reals unseen.
    """

    generators: tuple[str, ...]
    tensors: Mapping[str, NDArray[Any]]
    real_similarities: NDArray[np.float32]
    own_similarities: NDArray[np.float32]
    own_generators: NDArray[np.int32]
    real_traits: NDArray[np.float32]
    own_traits: NDArray[np.float32]
    real_sources: NDArray[np.int32]
    cross_validated_auroc: Mapping[str, float]


def _heads(
    mean: Matrix, deviation: Matrix, directions: Matrix, config: HeadConfig
) -> dict[str, NDArray[Any]]:
    masks, references = masks_and_references(
        directions, (mean.shape[0], mean.shape[1], mean.shape[2]), config.mask_exponent
    )
    count = len(directions)
    return {
        "mean": mean,
        "deviation": deviation,
        "masks": masks,
        "references": references,
        "a": np.zeros(count, np.float32),
        "b": np.zeros(count, np.float32),
    }


def stored(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Heads as they are stored: half precision where that is enough."""
    return {
        name: values.astype(np.float32 if name in ("a", "b") else np.float16)
        for name, values in tensors.items()
    }


def in_parts(
    function: Callable[[NDArray[Any]], NDArray[Any]], features: NDArray[Any], part: int = 256
) -> NDArray[np.float32]:
    """Apply to some rows at a time: masked features of all heads at once would fill the memory.

    Parameters
    ----------
    function
        Of `masksim.model.SharedHeads`: float32 (n, C, R, S) -> (n, ...), each row for itself.
    features
        (n, C, R, S).
    part
        Rows at a time.

    Returns
    -------
    ndarray
        float32 (n, ...).
    """
    return np.concatenate(
        [
            function(features[i : i + part].astype(np.float32))
            for i in range(0, max(1, len(features)), part)
        ]
    ).astype(np.float32)


def _score(
    tensors: Mapping[str, NDArray[Any]], limit: float, features: NDArray[Any]
) -> NDArray[np.float32]:
    return in_parts(SharedHeads.from_tensors(tensors, limit).similarities, features)


def fit_heads(
    table: FeatureTable,
    calibration: FeatureTable,
    config: TrainConfig,
    *,
    progress: Progress | None = None,
) -> Fit:
    """Fit all heads, and score the calibration photos with heads that never saw their source.

    Parameters
    ----------
    table
        Training views.
    calibration
        One view each of the same images, processed as photos come.
    config
        The run.
    progress
        Called with (stage, done, all).

    Returns
    -------
    Fit

    Raises
    ------
    DataError
        There are no reals, or no generator has enough images.
    UsageError
        Fewer than two folds.
    """
    if config.folds < 2:
        raise UsageError(f"cross-validation needs at least two folds, got {config.folds}")
    shares = config.views.shares
    counts = {
        name: len(np.unique(table.images[table.generators == name]))
        for name in np.unique(table.generators).tolist()
    }
    if REAL not in counts:
        raise DataError("training needs real photos", code="manifest_invalid")
    names = tuple(n for n in sorted(counts) if n != REAL and counts[n] >= config.smallest_class)
    if not names:
        raise DataError(
            f"no generator has {config.smallest_class} training images; found {counted(counts)}",
            code="manifest_invalid",
        )
    classes = np.full(len(table.generators), -1, dtype=np.int64)
    for number, name in enumerate((REAL, *names)):
        classes[table.generators == name] = number
    weights = training_weights(table, shares)
    folds = source_folds(table, config.folds)
    # A photo belongs to the fold of its source, even if none of its training views could be made.
    fold_of = dict(zip(_image_keys(table), folds.tolist(), strict=True))

    sources = len(np.unique(table.sources[classes == 0]))
    if sources < 2:
        raise DataError(
            "all real photos come from one source; cross-validation parts sources, so that at "
            "least two are needed: give them in folders of their own",
            code="manifest_invalid",
        )

    features = level_free(table.features)
    mean, deviation = real_statistics(features, classes == 0, weights)
    limit = config.heads.limit
    flat = ((features - mean) / deviation).clip(-limit, limit).reshape(len(features), -1)
    del features
    gram = flat @ flat.T

    def directions(used: NDArray[np.bool_]) -> Matrix:
        chosen = np.where(used, classes, -1)
        coefficients = fisher_coefficients(
            gram,
            chosen,
            weights,
            flat.shape[1],
            real_weights=matched_real_weights(chosen, weights, table.histories),
            ridge=config.heads.ridge,
            pooled=config.heads.pooled,
        )
        found: Matrix = (flat.T @ coefficients).T
        return found

    scored = np.zeros((len(calibration.images), len(names)), dtype=np.float32)
    unseen = np.zeros((len(table.images), len(names)), dtype=np.float32)
    calibration_folds = np.array(
        [fold_of.get(key, 0) for key in _image_keys(calibration)], dtype=np.int64
    )
    for k in range(config.folds):
        if progress:
            progress("fold", k, config.folds)
        heads = stored(_heads(mean, deviation, directions(folds != k), config.heads))
        own = folds == k
        unseen[own] = _score(heads, limit, table.features[own])
        held = calibration_folds == k
        scored[held] = _score(heads, limit, calibration.features[held])
    if progress:
        progress("fold", config.folds, config.folds)
    tensors = _heads(mean, deviation, directions(classes >= 0), config.heads)
    measured = {}
    for g, name in enumerate(names):
        pair = history_weights(table.histories, [classes == g + 1, classes == 0], shares)
        used = pair > 0
        measured[name] = metrics.auroc(unseen[used, g], classes[used] == g + 1, pair[used])
        tensors["a"][g], tensors["b"][g] = fit_probability(
            unseen[used, g], classes[used] == g + 1, pair[used]
        )
    # NumPy's order of names is the order of the columns.
    own = np.isin(calibration.generators, names)
    column = np.searchsorted(names, calibration.generators[own])
    kept = stored(tensors)
    traits = with_distance(calibration, SharedHeads.from_tensors(kept, limit))
    real = calibration.generators == REAL
    return Fit(
        names,
        kept,
        scored[real],
        scored[own],
        column.astype(np.int32),
        traits[real],
        traits[own],
        np.unique(calibration.sources[real], return_inverse=True)[1].astype(np.int32),
        measured,
    )


def with_distance(table: FeatureTable, heads: SharedHeads) -> NDArray[np.float32]:
    """Complete the traits of a table by what needs heads: float32 (n, T)."""
    traits = table.traits.copy()
    column = TRAITS.index("distance")
    for i, features in enumerate(table.features):
        traits[i, column] = heads.distance(features.astype(np.float32))
    return traits


def _image_keys(table: FeatureTable) -> list[tuple[str, str]]:
    """Name what decides an image's fold: a photo's source, a synthetic image's path."""
    return [
        (REAL, source) if generator == REAL else (generator, table.rows[image].path)
        for generator, source, image in zip(
            table.generators.tolist(), table.sources.tolist(), table.images.tolist(), strict=True
        )
    ]


def reference_images(
    calibration: FeatureTable, fit: Fit, config: TrainConfig
) -> tuple[ReferencePhotos, ReferencePhotos | None] | None:
    """Choose images, evenly over the sources, and standardise their features for enrolling.

    Parameters
    ----------
    calibration
        See `fit_heads`.
    fit
        Of the same table.
    config
        `TrainConfig.photos`, `TrainConfig.images` and `TrainConfig.photo_step`.

    Returns
    -------
    photos, images or None
        For `masksim.training.stored_features.pack`; None if no photos are wanted.
    """
    if config.photos < 1:
        return None
    heads = SharedHeads.from_tensors(fit.tensors, config.heads.limit)
    keys = np.array([calibration.rows[i].key for i in calibration.images])
    sources = np.unique(calibration.sources, return_inverse=True)[1]

    def keep(of: NDArray[np.int64], chosen: NDArray[np.int64]) -> ReferencePhotos:
        """Keep some of the views `of`, which are the rows that the detector's scores have."""
        at = of[chosen]
        return ReferencePhotos(
            heads.standardise(calibration.features[at].astype(np.float32)),
            config.photo_step,
            chosen,
            sources[at],
            calibration.histories[at],
        )

    real = np.flatnonzero(calibration.generators == REAL)
    photos = keep(
        real,
        np.array(spread_over_sources(sources[real].tolist(), keys[real].tolist(), config.photos)),
    )
    own = np.flatnonzero(np.isin(calibration.generators, fit.generators))
    chosen: list[int] = []
    for name in fit.generators:
        at = np.flatnonzero(calibration.generators[own] == name)
        spread = spread_over_sources(
            sources[own[at]].tolist(), keys[own[at]].tolist(), config.images
        )
        chosen += at[spread].tolist()
    return photos, keep(own, np.array(sorted(chosen))) if config.images else None


def software() -> dict[str, str]:
    """Versions that a run depends on."""
    return {
        "masksim": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def bank_branch(
    head: HeadKind,
    generators: tuple[str, ...],
    tensors: Mapping[str, NDArray[Any]],
    features: FeatureConfig,
    limit: float,
) -> Branch:
    """Put heads on the residual bank together as a branch of a detector file."""
    residual = ResidualConfig("bank")
    spectrum = features.to_dict()
    placed = ("window", "windows", "smallest", "region", "spacing")
    return Branch(
        residual=residual,
        residual_weights={},
        onnx=residual_onnx(residual, {}),
        preprocess={"colour": "luma-chroma", **{key: spectrum.pop(key) for key in placed}},
        spectrum=spectrum,
        head=head,
        generators=generators,
        tensors=tensors,
        head_config={"limit": limit},
    )


# --- the run -----------------------------------------------------------------------------------


def train_shared(
    manifest: Manifest,
    out: str | os.PathLike[str],
    config: TrainConfig,
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
        Called with (stage, done, all).

    Returns
    -------
    DetectorFile, Fit

    Raises
    ------
    DataError, UsageError
        See `fit_heads` and `DetectorFile.save`.
    """
    if Path(out).exists() and not overwrite:
        raise UsageError(f"{out} is there; --overwrite replaces it")
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

    def report(stage: str) -> Callable[[int, int], None] | None:
        return (lambda done, count: progress(stage, done, count)) if progress else None

    table = compute_features(
        chosen, "train", cache, views_config=config.views, feature_config=config.features,
        seed=config.seed, workers=workers, progress=report("features of training views"),
    )  # fmt: skip
    calibration = compute_features(
        chosen, "calibrate", cache, views_config=config.views,
        feature_config=config.features, seed=config.seed, workers=workers,
        progress=report("features of calibration views"),
    )  # fmt: skip
    fit = fit_heads(table, calibration, config, progress=progress)
    branch = bank_branch("shared", fit.generators, fit.tensors, config.features, config.heads.limit)
    kept = reference_images(calibration, fit, config)
    file = DetectorFile(
        config={
            "name": config.name,
            "recipe": "shared",
            "strata": config.division.to_dict(),
        },
        branches=(branch,),
        calibration={
            "real_similarities": fit.real_similarities,
            "real_traits": fit.real_traits,
            "real_sources": fit.real_sources,
            "own_similarities": fit.own_similarities,
            "own_generators": fit.own_generators,
            "own_traits": fit.own_traits,
        },
        photos=None if kept is None else lambda: pack(*kept),
        provenance={
            "training": asdict(config),
            "manifest_sha256": manifest_hash(chosen.rows),
            "images": {
                name: len(np.unique(table.images[table.generators == name]))
                for name in (REAL, *fit.generators)
            },
            "sources": {
                name: len(np.unique(table.sources[table.generators == name]))
                for name in (REAL, *fit.generators)
            },
            "views": int(np.isin(table.generators, (REAL, *fit.generators)).sum()),
            "calibration": {
                "photos": len(fit.real_similarities),
                "sources": len(np.unique(calibration.sources[calibration.generators == REAL])),
                "for_enrolling": 0 if kept is None else len(kept[0].features),
                "how": f"cross-validated over sources in {config.folds} folds, one view a photo",
            },
            "cross_validated_auroc": {k: round(v, 4) for k, v in fit.cross_validated_auroc.items()},
            "skipped": dict(Counter(table.failures.values())),
            **software(),
        },
    )
    return file.save(out, overwrite=overwrite), fit

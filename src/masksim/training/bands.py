"""Making a detector of images as people meet them: heads for each band of compression.

What a file shows of its own last compression is known before any head is asked. So each band
(`masksim.traits.BANDS`) has its own statistics of real photos and its own directions, learned from
and calibrated on images that look so compressed. The spectrum is whitened first: what real photos
and generated images alike vary by counts less. On top one number for "some generator" is learned
from the scores that left-out repositories got.

Whole repositories are left out wherever something is measured or calibrated, photos and generated
images alike.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import metrics
from masksim.calibration import Joint
from masksim.checkpoint import DetectorFile
from masksim.data.manifest import REAL, Manifest, manifest_hash
from masksim.errors import DataError, ModelError, UsageError
from masksim.features import FeatureConfig
from masksim.model import heads_by_band, standardise
from masksim.strata import Strata
from masksim.training.dataset import FeatureTable, ViewConfig, at_most, compute_features
from masksim.training.shared import (
    HeadConfig,
    bank_branch,
    fisher_coefficients,
    fit_probability,
    masks_and_references,
    matched_real_weights,
    software,
    stored,
)
from masksim.training.stored_features import ReferencePhotos, pack, spread_over_sources
from masksim.traits import BANDS, TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]
    Progress = Callable[[str, int, int], None]

_BASIS_ROWS = 2000
_BORROWED_ROWS = 2000
_RARE = 20  # views of a generator in a band
_FEWEST_IN_BAND = 5  # views of a class: with fewer a band borrows from all others


@dataclass(frozen=True)
class BandsConfig:
    """A training run: all that the detector depends on besides the images.

    Attributes
    ----------
    name
        Of the detector.
    seed
        Of all draws.
    per_source
        At most so many images of a repository, by generator; ``"*"`` for the others.
    smallest_class, smallest_sources
        A generator with fewer images, or images of fewer repositories, has no head; its images
        count for the joint number alone.
    joint_only
        Generators that have no head either way.
    folds
        Of the cross-validation over repositories.
    components
        Length of the basis of `masksim.model.whiten`.
    borrowed
        Weight of the views of other bands beside those of a band's own, in [0, 1].
    lossless
        Largest share of a class that views without any trace of compression may have: they come
        from few repositories of photos.
    joint_strength
        Inverse regularisation of the joint number.
    photos, images, photo_step
        What is kept for enrolling, see `masksim.training.stored_features`.
    strata, stratum_photos, stratum_sources
        How calibration photos are parted, see `masksim.strata.Strata`.
    views, features, heads
        See their classes.
    """

    name: str = "detector"
    seed: int = 0
    per_source: Mapping[str, int] = field(default_factory=lambda: {"*": 30})
    smallest_class: int = 25
    smallest_sources: int = 4
    joint_only: tuple[str, ...] = ()
    folds: int = 5
    components: int = 64
    borrowed: float = 0.2
    lossless: float = 0.1
    joint_strength: float = 0.1
    photos: int = 600
    images: int = 50
    photo_step: float = 1.0
    strata: tuple[tuple[str, int | tuple[float, ...]], ...] = (
        ("band", (0.5, 1.5, 2.5, 3.5)),
        ("side", (512.0, 1024.0)),
        ("energy", 3),
    )
    stratum_photos: int = 300
    stratum_sources: int = 20
    views: ViewConfig = field(default_factory=lambda: ViewConfig(views={"*": 5}))
    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(parts=3, coherence=True))
    heads: HeadConfig = field(default_factory=lambda: HeadConfig(ridge=5.0))

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UsageError(f"cross-validation needs at least two folds, got {self.folds}")
        if min(self.photos, self.images, self.components) < 0 or not 0.1 <= self.photo_step <= 2:
            raise UsageError(f"a count is negative, or photo_step not in 0.1 .. 2: {self}")
        if not (0 <= self.borrowed <= 1 and 0 < self.lossless <= 1 and self.joint_strength > 0):
            raise UsageError(f"a share is out of range: {self}")
        try:
            _ = self.division
        except ModelError as error:
            raise UsageError(error.message) from error

    @property
    def division(self) -> Strata:
        """How the calibration photos are parted."""
        return Strata(self.strata, self.stratum_photos, self.stratum_sources)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BandsConfig:
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
        for part in ("views", "features", "heads", "per_source"):
            if not isinstance(plain.get(part, {}), Mapping):
                raise UsageError(f"{part} must be a table, got {plain[part]!r}")
        plain["views"] = ViewConfig.from_dict({"views": {"*": 5}, **plain.get("views", {})})
        plain["features"] = FeatureConfig.from_dict(
            {"parts": 3, "coherence": True, **plain.get("features", {})}
        )
        heads = {"ridge": 5.0, **plain.get("heads", {})}
        if unknown := sorted(set(heads) - set(HeadConfig.__dataclass_fields__)):
            raise UsageError(f"unknown keys in the configuration of heads: {unknown}")
        plain["heads"] = HeadConfig(**heads)
        plain["joint_only"] = tuple(plain.get("joint_only", ()))
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


# --- who is left out together ------------------------------------------------------------------


def repository_folds(
    sources: NDArray[np.str_], generators: NDArray[np.str_], count: int
) -> NDArray[np.int64]:
    """Part views into folds so that all of a repository, of whatever class, is in one.

    So are all repositories of one owner (``owner/name``), who may use the same pictures again.

    Parameters
    ----------
    sources, generators
        (n,).
    count
        Number of folds; each class is spread over them as evenly as whole repositories allow.

    Returns
    -------
    ndarray
        (n,), 0 .. count - 1.
    """
    sources = np.array([source.partition("/")[0] for source in sources.tolist()])
    total = Counter(generators.tolist())
    of: dict[str, Counter[str]] = {}
    for source, generator in zip(sources.tolist(), generators.tolist(), strict=True):
        of.setdefault(source, Counter())[generator] += 1
    load: list[Counter[str]] = [Counter() for _ in range(count)]
    fold: dict[str, int] = {}
    order = sorted(of, key=lambda s: (-max(n / total[g] for g, n in of[s].items()), s))
    for source in order:
        cost = [
            (sum(load[k][g] / total[g] * n / total[g] for g, n in of[source].items()),
             sum(load[k].values()))
            for k in range(count)
        ]  # fmt: skip
        fold[source] = min(range(count), key=lambda k: cost[k])
        load[fold[source]].update(of[source])
    return np.array([fold[source] for source in sources.tolist()], dtype=np.int64)


def view_weights(
    classes: NDArray[np.int64],
    sources: NDArray[np.str_],
    histories: NDArray[np.str_],
    lossless: float,
) -> NDArray[np.float64]:
    """Weights of training views: repositories by the root of their size, lossless ones bounded.

    Returns
    -------
    ndarray
        (n,), 1 in sum within each class; 0 for views of class -1.
    """
    pairs = list(zip(classes.tolist(), sources.tolist(), strict=True))
    size = Counter(pairs)
    weights = np.array([size[pair] ** -0.5 for pair in pairs])
    weights[classes < 0] = 0.0
    for c in np.unique(classes[classes >= 0]):
        own = classes == c
        without = own & (histories == "lossless")
        rest = weights[own & ~without].sum()
        most = lossless / (1 - lossless) * rest if lossless < 1 and rest > 0 else np.inf
        if weights[without].sum() > most:
            weights[without] *= most / weights[without].sum()
        weights[own] /= weights[own].sum()
    return weights


# --- the fit -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BandsFit:
    """Heads, and the scores that heads gave to images of repositories they had not seen.

    Attributes
    ----------
    generators
        Names, in the order of the heads.
    tensors
        Of `masksim.model.heads_by_band`.
    joint
        The number for "some generator", learned from `similarities`.
    similarities
        float32 (n, G): of each view of the table, its repository left out.
    fold_joints
        The joint number as learned without each fold.
    folds
        int64 (n,).
    traits
        float32 (n, T), complete.
    """

    generators: tuple[str, ...]
    tensors: Mapping[str, NDArray[Any]]
    joint: Joint
    similarities: NDArray[np.float32]
    fold_joints: tuple[Joint, ...]
    folds: NDArray[np.int64]
    traits: NDArray[np.float32]


def generators_with_heads(table: FeatureTable, config: BandsConfig) -> tuple[str, ...]:
    """Names of the generators that have enough images of enough repositories.

    Raises
    ------
    DataError
        There is none, or there are no photos of two repositories.
    """
    found = []
    counts = {}
    for name in np.unique(table.generators).tolist():
        own = table.generators == name
        counts[name] = (len(np.unique(table.images[own])), len(np.unique(table.sources[own])))
        images, sources = counts[name]
        enough = images >= config.smallest_class and sources >= config.smallest_sources
        if name != REAL and enough and name not in config.joint_only:
            found.append(name)
    if counts.get(REAL, (0, 0))[1] < 2:
        raise DataError(
            "training needs real photos of at least two sources: give them in folders of their own",
            code="manifest_invalid",
        )
    if not found:
        raise DataError(
            f"no generator has {config.smallest_class} images of {config.smallest_sources} "
            f"sources; found (images, sources): {counts}",
            code="manifest_invalid",
        )
    return tuple(found)


class _Space:
    """Features of all views as the heads compare them, and what leads there."""

    def __init__(
        self, table: FeatureTable, classes: NDArray[np.int64], config: BandsConfig
    ) -> None:
        self.features, self.config = table.features, config
        self.band = bands_of(table.traits, len(BANDS))
        channels, rows, columns = (int(n) for n in table.features.shape[1:])
        self.shape = (channels, rows, columns)
        self.weights = np.zeros(len(classes))
        self.mean = np.zeros((len(BANDS), *self.shape), np.float32)
        self.deviation = np.ones_like(self.mean)
        real = classes == 0
        for b in range(len(BANDS)):
            self.weights[self.band == b] = view_weights(
                classes[self.band == b],
                table.sources[self.band == b],
                table.histories[self.band == b],
                config.lossless,
            )
        for b in range(len(BANDS)):
            own = real & (self.band == b)
            at = np.flatnonzero(own if own.sum() >= 2 else real)
            self.mean[b], self.deviation[b] = _statistics(table.features[at], self.weights[at])

    def standardised(self, at: NDArray[np.int64]) -> Matrix:
        """Give some views in deviations of the photos of their band, flat: (k, D)."""
        out = np.empty((len(at), *self.shape), np.float32)
        for b in np.unique(self.band[at]).tolist():
            chosen = self.band[at] == b
            out[chosen] = standardise(
                self.features[at[chosen]].astype(np.float32),
                self.mean[b], self.deviation[b], self.config.heads.limit,
            )  # fmt: skip
        return out.reshape(len(at), -1)


@dataclass(frozen=True, eq=False)
class _Basis:
    """What views vary by within their class, and by how much that is shrunk.

    Attributes
    ----------
    vectors
        float32 (K, D), orthonormal.
    shrink
        float32 (K,), see `masksim.model.whiten`.
    """

    vectors: Matrix
    shrink: Matrix

    def parts(self, z: Matrix) -> Matrix:
        """Components (n, K) of views (n, D)."""
        found: Matrix = z @ self.vectors.T
        return found

    def whitened(self, z: Matrix) -> Matrix:
        """Give views (n, D) after `masksim.model.whiten`."""
        return np.asarray(z - (self.parts(z) * self.shrink) @ self.vectors, np.float32)

    def whitened_gram(self, gram: Matrix, parts: Matrix) -> Matrix:
        """Inner products (n, n) of whitened views, of those before and their components."""
        lost = (parts * (self.shrink * (2 - self.shrink))) @ parts.T
        return np.asarray(gram - lost, np.float32)


def _find_basis(space: _Space, classes: NDArray[np.int64], used: NDArray[np.bool_]) -> _Basis:
    """Find the basis in some of the views.

    It knows the classes: an image must not take part in the basis that it is scored with.
    """
    from scipy.linalg import eigh

    config = space.config
    size = int(np.prod(space.shape))
    count = config.components
    if not count:
        return _Basis(np.zeros((0, size), np.float32), np.zeros(0, np.float32))
    rng = np.random.default_rng(config.seed)
    at = np.flatnonzero(used & (classes >= 0) & (space.weights > 0))
    at = np.sort(rng.permutation(at)[:_BASIS_ROWS])
    z = space.standardised(at)
    own, pooled = classes[at], config.heads.pooled
    kinds = np.unique(own)
    for c in kinds.tolist():
        rows = own == c
        w = space.weights[at[rows]] / space.weights[at[rows]].sum()
        z[rows] -= (w.astype(np.float32) @ z[rows])[None]
        share = 1 - pooled if c == 0 else pooled / max(1, len(kinds) - 1)
        z[rows] *= np.sqrt(w * share).astype(np.float32)[:, None]
    inner = z @ z.T
    last = len(at) - 1
    values, vectors = eigh(inner, subset_by_index=[max(0, last + 1 - count), last])
    kept = values > 1e-6 * values[-1]
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    floor = config.heads.ridge * max(float(np.trace(inner)) / size, 1e-12)
    basis = (z.T @ (vectors / np.sqrt(values)).astype(np.float32)).T
    return _Basis(
        np.ascontiguousarray(basis), (1 - np.sqrt(floor / (values + floor))).astype(np.float32)
    )


def _statistics(features: NDArray[Any], weights: NDArray[np.float64]) -> tuple[Matrix, Matrix]:
    """Weighted mean and deviation of level-free features, (C, R, S) each."""
    level_free = features.astype(np.float32)
    level_free -= level_free.mean(axis=(2, 3), keepdims=True)
    share = (weights / weights.sum()).astype(np.float32)
    mean = np.tensordot(share, level_free, 1)
    level_free -= mean
    deviation = np.sqrt(np.tensordot(share, level_free**2, 1)) + np.float32(1e-3)
    return mean, deviation


def fit_bands(
    table: FeatureTable, config: BandsConfig, *, progress: Progress | None = None
) -> BandsFit:
    """Fit all heads, and score every view with heads that never saw its repository.

    Parameters
    ----------
    table
        Views of the purpose ``"met"``.
    config
        The run.
    progress
        Called with (stage, done, all).

    Returns
    -------
    BandsFit

    Raises
    ------
    DataError
        See `generators_with_heads`.
    """
    names = generators_with_heads(table, config)
    classes = np.full(len(table.generators), -1, dtype=np.int64)
    for number, name in enumerate((REAL, *names)):
        classes[table.generators == name] = number
    folds = repository_folds(table.sources, table.generators, config.folds)
    space = _Space(table, classes, config)
    count, shape = len(names), space.shape
    masks = np.full((len(BANDS), count, *shape), 1e-3, np.float32)
    references = np.full((len(BANDS), count, *shape), 1e-3, np.float32)
    scores = np.zeros((len(classes), count), np.float32)
    bases = []
    for k in range(config.folds + 1):  # the last one is of all
        if progress:
            progress("basis", k, config.folds + 1)
        bases.append(_find_basis(space, classes, folds != k))
    for b in range(len(BANDS)):
        if progress:
            progress("band", b, len(BANDS))
        fitted = _fit_band(space, table, classes, folds, b, bases, scores)
        masks[b], references[b] = masks_and_references(fitted, shape, config.heads.mask_exponent)
    if progress:
        progress("band", len(BANDS), len(BANDS))
    tensors: dict[str, NDArray[Any]] = {
        "mean": space.mean,
        "deviation": space.deviation,
        "masks": masks,
        "references": references,
        "a": np.zeros((len(BANDS), count), np.float32),
        "b": np.zeros((len(BANDS), count), np.float32),
    }
    if len(bases[-1].vectors):
        tensors |= {
            "basis": bases[-1].vectors.reshape(-1, *shape),
            "shrink": bases[-1].shrink,
        }
    for g in range(count):
        for b in range(len(BANDS)):
            pair = ((classes == 0) | (classes == g + 1)) & (space.band == b)
            if len(np.unique(classes[pair])) < 2:
                pair = (classes == 0) | (classes == g + 1)
            tensors["a"][b, g], tensors["b"][b, g] = fit_probability(
                scores[pair, g], classes[pair] == g + 1, np.maximum(space.weights[pair], 1e-9)
            )
    every = np.ones(len(folds), bool)

    def joint(used: NDArray[np.bool_]) -> Joint:
        return fit_joint(
            scores[used], table.generators[used], space.band[used], len(BANDS),
            config.joint_strength,
        )  # fmt: skip

    kept = stored(tensors)
    heads = heads_by_band(kept, config.heads.limit)
    traits = table.traits.copy()
    for i, features in enumerate(table.features):
        traits[i, TRAITS.index("distance")] = heads[space.band[i]].distance(
            features.astype(np.float32)
        )
    return BandsFit(
        names, kept, joint(every), scores,
        tuple(joint(folds != k) for k in range(config.folds)), folds, traits,
    )  # fmt: skip


def _fit_band(
    space: _Space,
    table: FeatureTable,
    classes: NDArray[np.int64],
    folds: NDArray[np.int64],
    band: int,
    bases: Sequence[_Basis],
    scores: NDArray[np.float32],
) -> Matrix:
    """Directions (G, D) of one band; fills in the left-out scores of its views."""
    config = space.config
    count = int(classes.max())
    own = space.band == band
    weights = np.where(own, space.weights, 0.0)
    for c in range(count + 1):
        few = (own & (classes == c)).sum() < _FEWEST_IN_BAND
        share = 1.0 if few else config.borrowed
        other = (classes == c) & ~own
        if share > 0 and space.weights[other].sum() > 0:
            weights[other] = share * space.weights[other] / space.weights[other].sum()
    rng = np.random.default_rng(config.seed)
    others = rng.permutation(np.flatnonzero((weights > 0) & ~own))
    # What a band lacks altogether is borrowed whole, of the rest a sample.
    lacking = np.isin(
        classes[others], [c for c in range(count + 1) if not (own & (classes == c)).any()]
    )
    kept = np.concatenate([others[lacking], others[~lacking][:_BORROWED_ROWS]])
    at = np.sort(np.concatenate([np.flatnonzero(own), kept]))
    z = space.standardised(at)
    gram = z @ z.T

    def directions(used: NDArray[np.bool_], basis: _Basis) -> Matrix:
        chosen = np.where(used & (weights[at] > 0), classes[at], -1)
        # A class that has no image in the other folds has no head there.
        present = [c for c in range(1, count + 1) if (chosen == c).any()]
        numbers = {c: k for k, c in enumerate([0, *present])}
        numbered = np.array([numbers.get(int(c), -1) for c in chosen])
        parts = basis.parts(z)
        coefficients = fisher_coefficients(
            basis.whitened_gram(gram, parts), numbered, weights[at], z.shape[1],
            real_weights=matched_real_weights(numbered, weights[at], table.histories[at]),
            ridge=config.heads.ridge, pooled=config.heads.pooled,
        )  # fmt: skip
        found = np.zeros((count, z.shape[1]), np.float32)
        summed = z.T @ coefficients
        summed -= basis.vectors.T @ (basis.shrink[:, None] * (parts.T @ coefficients))
        found[[c - 1 for c in present]] = summed.T
        return found

    for k in range(config.folds):
        held = np.flatnonzero((folds[at] == k) & own[at])
        if len(held):
            scores[at[held]] = cosines(
                bases[k].whitened(z[held]),
                directions(folds[at] != k, bases[k]),
                space.shape,
                config.heads,
            )
    return directions(np.ones(len(at), bool), bases[-1])


def cosines(
    z: Matrix, directions: Matrix, shape: tuple[int, int, int], config: HeadConfig
) -> NDArray[np.float32]:
    """Similarities (n, G) of compared views (n, D) with heads made of directions (G, D)."""
    out = np.zeros((len(z), len(directions)), np.float32)
    for g, direction in enumerate(directions):
        if not direction.any():
            continue
        made = masks_and_references(direction[None], shape, config.mask_exponent)
        mask, reference = (part.astype(np.float16).astype(np.float32).ravel() for part in made)
        reference /= np.linalg.norm(reference)
        power = (z * z) @ (mask * mask)
        out[:, g] = z @ (mask * reference) / np.sqrt(np.maximum(power, 1e-16))
    return out


def fit_joint(
    similarities: NDArray[Any],
    generators: NDArray[np.str_],
    band: NDArray[np.int64],
    bands: int,
    strength: float,
) -> Joint:
    """Learn one number for "some generator" from left-out similarities.

    Logistic regression in each band, real photos against all generated images, every generator
    with the same weight; similarities are scaled by the photos' deviation, so that the
    regularisation treats them alike.

    Parameters
    ----------
    similarities
        (n, G), complete.
    generators
        (n,): ``"real"`` or whose image it is; any names.
    band
        (n,).
    bands
        Number of bands.
    strength
        Inverse regularisation.

    Returns
    -------
    Joint
    """
    from sklearn.linear_model import LogisticRegression

    count = similarities.shape[1]
    weights, offsets = np.zeros((bands, count)), np.zeros(bands)
    for b in range(bands):
        own = band == b
        if len(np.unique(generators[own] == REAL)) < 2:
            own = np.ones(len(band), bool)
        values = np.asarray(similarities[own], np.float64)
        of = generators[own].astype(object)
        rare = [name for name, n in Counter(of.tolist()).items() if n < _RARE and name != REAL]
        of[np.isin(of, rare)] = "rare"  # together as much as one generator
        scale = values[of == REAL].std(axis=0) + 1e-9
        sizes = Counter(of.tolist())
        synthetic = len(sizes) - 1
        each = np.array([(1.0 if g == REAL else 1.0 / synthetic) / sizes[g] for g in of.tolist()])
        fit = LogisticRegression(C=strength, max_iter=1000)
        fit.fit(values / scale, of != REAL, sample_weight=each * len(values) / 2)
        weights[b], offsets[b] = fit.coef_[0] / scale, float(fit.intercept_[0])
    return Joint(weights, offsets)


# --- the run -----------------------------------------------------------------------------------


def views_of(
    manifest: Manifest,
    config: BandsConfig,
    cache: str | os.PathLike[str],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureTable:
    """Compute, or read from the cache, the features of the views that a run is made of."""
    rows = at_most(manifest.rows, config.per_source)
    return compute_features(
        Manifest(rows, manifest.root), "met", cache, views_config=config.views,
        feature_config=config.features, seed=config.seed, workers=workers, progress=progress,
    )  # fmt: skip


def _reference_images(
    table: FeatureTable, fit: BandsFit, config: BandsConfig, rows: NDArray[np.int64]
) -> tuple[ReferencePhotos, ReferencePhotos | None] | None:
    """Choose views, evenly over the repositories, whose features are kept for enrolling.

    `rows` gives for each view its row in the calibration of its class, -1 for none.
    """
    if config.photos < 1:
        return None
    heads = heads_by_band(fit.tensors, config.heads.limit)
    band = bands_of(table.traits, len(heads))
    sources = np.unique(table.sources, return_inverse=True)[1]
    keys = np.array(
        [f"{table.rows[image].key} {number}" for number, image in enumerate(table.images.tolist())]
    )

    def keep(at: NDArray[np.int64]) -> ReferencePhotos:
        compared = [
            heads[band[i]].compared(table.features[i].astype(np.float32)) for i in at.tolist()
        ]
        return ReferencePhotos(
            np.stack(compared), config.photo_step, rows[at], sources[at], table.histories[at]
        )

    def spread(mask: NDArray[np.bool_], most: int) -> list[int]:
        at = np.flatnonzero(mask)
        return at[spread_over_sources(sources[at].tolist(), keys[at].tolist(), most)].tolist()

    photos = keep(np.array(spread(table.generators == REAL, config.photos)))
    if not config.images:
        return photos, None
    chosen = [i for g in fit.generators for i in spread(table.generators == g, config.images)]
    return photos, keep(np.array(sorted(chosen)))


def train_bands(
    manifest: Manifest,
    out: str | os.PathLike[str],
    config: BandsConfig,
    *,
    cache: str | os.PathLike[str],
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[DetectorFile, BandsFit]:
    """Train a detector on all images of a manifest, whatever their split, and write it.

    Parameters
    ----------
    manifest
        Real photos and generated images.
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
    DetectorFile, BandsFit

    Raises
    ------
    DataError, UsageError
        See `fit_bands` and `masksim.checkpoint.DetectorFile.save`.
    """
    if Path(out).exists() and not overwrite:
        raise UsageError(f"{out} is there already; --overwrite replaces a detector")
    table = views_of(
        manifest, config, cache, workers=workers,
        progress=(lambda done, n: progress("features of views", done, n)) if progress else None,
    )  # fmt: skip
    fit = fit_bands(table, config, progress=progress)
    file = detector_file(table, fit, config)
    return file.save(out, overwrite=overwrite), fit


def detector_file(table: FeatureTable, fit: BandsFit, config: BandsConfig) -> DetectorFile:
    """Put what was fitted together as a detector, to be saved."""
    real = table.generators == REAL
    own = np.isin(table.generators, fit.generators)
    rows = np.full(len(real), -1)
    rows[real], rows[own] = np.arange(real.sum()), np.arange(own.sum())
    branch = bank_branch("bands", fit.generators, fit.tensors, config.features, config.heads.limit)
    kept = _reference_images(table, fit, config, rows)
    number = {name: k for k, name in enumerate(fit.generators)}
    counted = {
        name: (table.generators == name) for name in (REAL, *np.unique(table.generators).tolist())
    }
    return DetectorFile(
        config={"name": config.name, "recipe": "bands", "strata": config.division.to_dict()},
        branches=(branch,),
        calibration={
            "real_similarities": fit.similarities[real],
            "real_traits": fit.traits[real],
            "real_sources": np.unique(table.sources[real], return_inverse=True)[1].astype(np.int32),
            "own_similarities": fit.similarities[own],
            "own_generators": np.array(
                [number[name] for name in table.generators[own].tolist()], np.int32
            ),
            "own_traits": fit.traits[own],
            "joint_weights": fit.joint.weights.astype(np.float32),
            "joint_offsets": fit.joint.offsets.astype(np.float32),
        },
        photos=None if kept is None else lambda: pack(*kept),
        provenance={
            "training": asdict(config),
            "manifest_sha256": manifest_hash(table.rows),
            "images": {name: len(np.unique(table.images[mask])) for name, mask in counted.items()},
            "sources": {
                name: len(np.unique(table.sources[mask])) for name, mask in counted.items()
            },
            "views": len(table.images),
            "calibration": {
                "photos": len(np.unique(table.images[real])),
                "views": int(real.sum()),
                "sources": len(np.unique(table.sources[real])),
                "for_enrolling": 0 if kept is None else len(kept[0].features),
                "how": f"whole repositories left out, {config.folds} folds",
            },
            "cross_validated_auroc": {
                name: round(value, 4) for name, value in aurocs(table, fit).items()
            },
            "skipped": dict(Counter(table.failures.values())),
            **software(),
        },
    )


def aurocs(table: FeatureTable, fit: BandsFit) -> dict[str, float]:
    """AUROC of each head for its own generator, repositories left out, mean over the bands."""
    band = bands_of(table.traits, len(BANDS))
    found = {}
    for g, name in enumerate(fit.generators):
        parts = []
        for b in range(len(BANDS)):
            pair = (band == b) & np.isin(table.generators, (REAL, name))
            synthetic = table.generators[pair] == name
            if synthetic.any() and not synthetic.all():
                parts.append(metrics.auroc(fit.similarities[pair, g], synthetic))
        found[name] = float(np.mean(parts)) if parts else float("nan")
    return found

"""The recipe ``bands``: images as people meet them, with heads for each band of compression.

A file itself shows how it was last compressed (`masksim.traits.BANDS`). So each band has its own
statistics of real photos and its own directions, learned from images of that band and calibrated on
them. The spectrum is whitened first: directions in which photos and generated images vary alike
count less. Last, one number for "some generator" is learned from the scores of all heads, and what
photos usually score, given their size, noise and compression (`masksim.usual`).

Wherever something is measured or calibrated, whole repositories are left out, of photos and of
generated images. Two exceptions: the mean and deviation of the features are those of all photos,
and the one number that is kept is learned from the left-out scores of all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import metrics
from masksim.calibration import Joint
from masksim.checkpoint import Branch, DetectorFile, check_target
from masksim.config import Progress, staged
from masksim.data.chunks import chunk_folder
from masksim.data.manifest import REAL, Manifest, manifest_hash
from masksim.data.views import ViewConfig, at_most
from masksim.data.weights import repository_folds, weights_by_band
from masksim.errors import DataError, UsageError
from masksim.features import FeatureConfig
from masksim.model import standardise
from masksim.populations import JOINT_ARRAYS
from masksim.training.feature_table import FeatureTable, compute_features
from masksim.training.heads import (
    HeadsByBand,
    coefficients_of,
    cosines,
    fit_probability,
    level_free,
    masks_and_references,
    statistics,
    stored,
)
from masksim.training.learned_config import LearnedConfig
from masksim.training.learned_heads import (
    LearnedHeads,
    LearningViews,
    combined,
    learned_heads,
)
from masksim.training.recipe import (
    Fit,
    RecipeConfig,
    classes_of,
    detector_file,
    generators_with_heads,
    ranked_among,
)
from masksim.training.stored_windows import compute_windows
from masksim.training.usual_scores import fit_usual_scores
from masksim.traits import BANDS, bands_of
from masksim.usual import UsualScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_BASIS_ROWS = 2000
_BORROWED_ROWS = 2000
_RARE = 20  # views of a generator in a band
_TOGETHER = "the rare ones"
_ABSENT = -1000.0  # log-odds of a kind of images of which a band has none
_FEWEST_IN_BAND = 5  # views of a class: with fewer a band borrows from all others


@dataclass(frozen=True)
class BandsConfig(RecipeConfig):
    """A run of this recipe, see also `masksim.training.recipe.RecipeConfig`.

    The images of generators without a head count for the joint number alone.

    Attributes
    ----------
    per_source
        At most so many images of a repository, by generator; ``"*"`` for the others.
    components
        Length of the basis of `masksim.model.whiten`.
    borrowed
        Weight of the views of other bands beside those of a band's own, in [0, 1].
    lossless
        Largest share of a class that views without any trace of compression may have: they come
        from few repositories of photos.
    joint_strength
        Inverse regularisation of the joint number.
    relative
        Scores are ranked relative to what photos of such size, noise and compression usually have.
    learned
        Of heads on a learned residual, whose similarities are added; None: on the bank alone.
    """

    smallest_class: int = 25
    photos: int = 600
    strata: tuple[tuple[str, int | tuple[float, ...]], ...] = (("band", (0.5, 1.5, 2.5, 3.5)),)
    views: ViewConfig = field(default_factory=lambda: ViewConfig(views={"*": 5}))
    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(parts=3, coherence=True))
    per_source: Mapping[str, int] = field(default_factory=lambda: {"*": 30})
    smallest_sources: int = 4
    components: int = 64
    borrowed: float = 0.2
    lossless: float = 0.1
    joint_strength: float = 0.01
    relative: bool = True
    learned: LearnedConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components < 0:
            raise UsageError(f"components must not be negative, got {self.components}")
        if self.learned is not None and self.learned.windows.smallest != self.features.smallest:
            raise UsageError(
                "features and learned.windows must have the same smallest side, got "
                f"{self.features.smallest} and {self.learned.windows.smallest}"
            )
        if not (0 <= self.borrowed <= 1 and 0 < self.lossless <= 1 and self.joint_strength > 0):
            raise UsageError(f"a share is out of range: {self}")


@dataclass(frozen=True, eq=False)
class BandsFit(Fit):
    """Heads of each band; the calibration views are those that they were fitted to.

    Attributes
    ----------
    joint
        The number for "some generator", learned from the similarities.
    fold_joints
        The joint number as learned without each fold.
    folds
        int64 (n,).
    learned
        The branch of the heads on a learned residual, if there is one.
    usual
        What photos usually score, of each generator, if scores are ranked relative to it.
    """

    joint: Joint
    fold_joints: tuple[Joint, ...]
    folds: NDArray[np.int64]
    learned: Branch | None = None
    usual: UsualScores | None = None


class Space:
    """The views of a run: classes, folds, weights, and features in deviations of photos.

    Parameters
    ----------
    table
        The views.
    names
        Generators that have heads; views of others do not count.
    config
        The run.
    """

    def __init__(self, table: FeatureTable, names: Sequence[str], config: BandsConfig) -> None:
        self.table, self.config, self.count = table, config, len(names)
        self.classes = classes_of(table, names)
        self.folds = repository_folds(table.sources, table.generators, config.folds)
        self.band = bands_of(table.traits, len(BANDS))
        channels, rows, columns = (int(n) for n in table.features.shape[1:])
        self.shape = (channels, rows, columns)
        self.weights = weights_by_band(
            self.classes, table.sources, table.histories, self.band, config.lossless
        )
        self.mean = np.zeros((len(BANDS), *self.shape), np.float32)
        self.deviation = np.ones_like(self.mean)
        real = self.classes == 0
        for b in range(len(BANDS)):
            own = real & (self.band == b)
            at = np.flatnonzero(own if own.sum() >= 2 else real)
            self.mean[b], self.deviation[b] = statistics(
                level_free(table.features[at]), self.weights[at]
            )

    def standardised(self, at: NDArray[np.int64]) -> Matrix:
        """Give some views in deviations of the photos of their band, flat: (k, D)."""
        out = np.empty((len(at), *self.shape), np.float32)
        for b in np.unique(self.band[at]).tolist():
            chosen = self.band[at] == b
            out[chosen] = standardise(
                self.table.features[at[chosen]].astype(np.float32),
                self.mean[b], self.deviation[b], self.config.heads.limit,
            )  # fmt: skip
        return out.reshape(len(at), -1)


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions in which views vary within their class, and by how much each is shrunk.

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


def find_basis(space: Space, used: NDArray[np.bool_]) -> Basis:
    """Find the basis in some of the views.

    The classes decide it, so an image must have no part in the basis that it is scored with.
    """
    from scipy.linalg import eigh

    config, classes = space.config, space.classes
    size = int(np.prod(space.shape))
    count = config.components
    if not count:
        return Basis(np.zeros((0, size), np.float32), np.zeros(0, np.float32))
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
    return Basis(
        np.ascontiguousarray(basis), (1 - np.sqrt(floor / (values + floor))).astype(np.float32)
    )


def _weights_in(space: Space, band: int) -> NDArray[np.float64]:
    """Weights of the views in the fit of one band: its own, and those it borrows of others."""
    own = space.band == band
    weights = np.where(own, space.weights, 0.0)
    for c in range(space.count + 1):
        few = (own & (space.classes == c)).sum() < _FEWEST_IN_BAND
        share = 1.0 if few else space.config.borrowed
        other = (space.classes == c) & ~own
        if share > 0 and space.weights[other].sum() > 0:
            weights[other] = share * space.weights[other] / space.weights[other].sum()
    return weights


def _rows_of(space: Space, band: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choose the views that a band is fitted to: of a class that it lacks all that others have."""
    own = space.band == band
    rng = np.random.default_rng(space.config.seed)
    others = rng.permutation(np.flatnonzero((weights > 0) & ~own))
    there = np.unique(space.classes[own])
    lacking = ~np.isin(space.classes[others], there)
    kept = np.concatenate([others[lacking], others[~lacking][:_BORROWED_ROWS]])
    return np.sort(np.concatenate([np.flatnonzero(own), kept]))


def fit_band(
    space: Space, band: int, bases: Sequence[Basis], scores: NDArray[np.float32]
) -> tuple[Matrix, Matrix]:
    """Fit the heads of one band.

    Parameters
    ----------
    space
        All views.
    band
        Which.
    bases
        As many as folds, each of the other folds, and one of all views.
    scores
        float32 (n, G): here the left-out scores of the band's views are filled in.

    Returns
    -------
    masks, references
        float32 (G, C, R, S).
    """
    config, count, shape = space.config, space.count, space.shape
    weights = _weights_in(space, band)
    at = _rows_of(space, band, weights)
    own, folds = space.band[at] == band, space.folds[at]
    z = space.standardised(at)
    gram = z @ z.T

    def heads(used: NDArray[np.bool_], basis: Basis) -> tuple[Matrix, Matrix, list[int]]:
        chosen = np.where(used & (weights[at] > 0), space.classes[at], -1)
        # A class that has no image in the other folds has no head there.
        present = [c for c in range(1, count + 1) if (chosen == c).any()]
        numbers = {c: k for k, c in enumerate([0, *present])}
        numbered = np.array([numbers.get(int(c), -1) for c in chosen])
        parts = basis.parts(z)
        coefficients = coefficients_of(
            basis.whitened_gram(gram, parts), numbered, weights[at], space.table.histories[at],
            z.shape[1], config.heads,
        )  # fmt: skip
        summed = z.T @ coefficients
        summed -= basis.vectors.T @ (basis.shrink[:, None] * (parts.T @ coefficients))
        made = masks_and_references(summed.T, shape, config.heads.mask_exponent)
        return *made, [c - 1 for c in present]

    for k in range(config.folds):
        held = np.flatnonzero((folds == k) & own)
        if len(held):
            whitened = bases[k].whitened(z[held])
            for mask, reference, g in zip(*heads(folds != k, bases[k]), strict=True):
                scores[at[held], g] = cosines(
                    whitened, mask.astype(np.float16), reference.astype(np.float16)
                )
    masks, references = (np.full((count, *shape), 1e-3, np.float32) for _ in range(2))
    *made, present = heads(np.ones(len(at), bool), bases[-1])
    masks[present], references[present] = made
    return masks, references


def learn(
    manifest: Manifest,
    table: FeatureTable,
    config: BandsConfig,
    cache: str | os.PathLike[str],
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> LearnedHeads | None:
    """Train the heads on a learned residual, if the run has any: of the same views.

    Parameters
    ----------
    manifest, config, cache, workers
        As of `views_of`. The cache also holds the state of the training, which goes on there.
    table
        From `views_of`.
    progress
        See `masksim.config.Progress`.

    Raises
    ------
    DataError
        See `generators_with_heads` and `masksim.training.learned_heads.learned_heads`.
    """
    if config.learned is None:
        return None
    rows = at_most(manifest.rows, config.per_source)
    windows = compute_windows(
        Manifest(rows, manifest.root), cache, views_config=config.views,
        window_config=config.learned.windows, seed=config.seed, workers=workers,
        progress=staged(progress, "windows of views"),
    )  # fmt: skip
    if not np.array_equal(windows.images, table.images):
        raise DataError("the images are no longer those that the features are of")
    names = generators_with_heads(table, config)
    views = LearningViews(
        windows, classes_of(table, names), names, table.sources, table.histories,
        bands_of(table.traits, len(BANDS)),
        repository_folds(table.sources, table.generators, config.folds),
    )  # fmt: skip
    of_views = hashlib.sha256(windows.images.tobytes()).hexdigest()
    run = chunk_folder(
        cache, [config.learned.of_training, asdict(config.views), config.seed, config.folds,
                config.lossless, names, manifest_hash(rows), of_views], "learned-",
    )  # fmt: skip
    return learned_heads(
        views, config.learned, run, heads=config.heads, lossless=config.lossless,
        seed=config.seed, workers=workers, progress=progress,
    )  # fmt: skip


def _fit_bank(
    space: Space, progress: Progress | None
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """Fit the heads on the bank, and score every view with heads that never saw its repository.

    The tensors lack ``a``, ``b`` and ``share``; the similarities are (n, G).
    """
    config = space.config
    scores = np.zeros((len(space.classes), space.count), np.float32)
    bases, made = [], []
    for k in range(config.folds + 1):  # the last one is of all
        if progress:
            progress("basis", k, config.folds + 1)
        bases.append(find_basis(space, space.folds != k))
    for b in range(len(BANDS)):
        if progress:
            progress("band", b, len(BANDS))
        made.append(fit_band(space, b, bases, scores))
    if progress:
        progress("band", len(BANDS), len(BANDS))
    tensors = {
        "mean": space.mean,
        "deviation": space.deviation,
        "masks": np.stack([masks for masks, _ in made]),
        "references": np.stack([references for _, references in made]),
    }
    if len(bases[-1].vectors):
        tensors["basis"] = bases[-1].vectors.reshape(-1, *space.shape)
        tensors["shrink"] = bases[-1].shrink
    return tensors, scores


def fit_bands(
    table: FeatureTable,
    config: BandsConfig,
    learned: LearnedHeads | None = None,
    *,
    progress: Progress | None = None,
) -> BandsFit:
    """Fit all heads and the joint number.

    Parameters
    ----------
    table
        Views of the purpose ``"met"``.
    config
        The run.
    learned
        From `learn`.
    progress
        See `masksim.config.Progress`.

    Returns
    -------
    BandsFit

    Raises
    ------
    DataError
        See `generators_with_heads`.
    """
    names = generators_with_heads(table, config)
    space = Space(table, names, config)
    tensors, scores = _fit_bank(space, progress)
    second = None
    if learned is not None:
        photos = space.classes == 0
        scores, tensors["share"] = combined(scores, learned.scores, space.band, photos)
    tensors["a"], tensors["b"] = _probabilities(space, scores)
    if learned is not None:
        parts = {"a": tensors["a"], "b": tensors["b"], "share": 1 - tensors["share"]}
        second = replace(learned.branch, tensors={**learned.branch.tensors, **parts})

    kept = stored(tensors)
    traits = HeadsByBand.of("bands", kept, config.heads.limit).traits(table)
    ranked = ranked_among(table, config)

    def joint(used: NDArray[np.bool_]) -> Joint:
        return joint_number(scores, table.generators, traits, used, ranked, config)

    return BandsFit(
        names, kept, scores, traits, _aurocs(table, names, scores),
        joint(np.ones(len(scores), bool)),
        tuple(joint(space.folds != k) for k in range(config.folds)), space.folds, second,
        fit_usual_scores(scores[ranked], traits[ranked]) if config.relative else None,
    )  # fmt: skip


def joint_number(
    similarities: NDArray[Any],
    generators: NDArray[np.str_],
    traits: NDArray[Any],
    used: NDArray[np.bool_],
    ranked: NDArray[np.bool_],
    config: BandsConfig,
) -> Joint:
    """Learn the joint number of some views, and what photos usually have of it.

    Parameters
    ----------
    similarities, generators, traits
        (n, G), (n,) and (n, T), see `fit_joint`.
    used
        bool (n,): the views it is learned from.
    ranked
        bool (n,): the photos that images are ranked among; those of them that are used tell what is
        usual.
    config
        The run.

    Returns
    -------
    Joint
    """
    found = fit_joint(
        similarities[used], generators[used], bands_of(traits[used], len(BANDS)), len(BANDS),
        config.joint_strength,
    )  # fmt: skip
    if not config.relative:
        return found
    photos = used & ranked
    numbers = found(similarities[photos].astype(np.float64), traits[photos])
    return replace(found, usual=fit_usual_scores(numbers[:, None], traits[photos]))


def _probabilities(space: Space, scores: NDArray[np.float32]) -> tuple[Matrix, Matrix]:
    """Fit a and b of each band and generator, (B, G) each; a band of one class takes all views."""
    slopes, offsets = (np.zeros((len(BANDS), space.count), np.float32) for _ in range(2))
    for g in range(space.count):
        for b in range(len(BANDS)):
            both = (space.classes == 0) | (space.classes == g + 1)
            pair = both & (space.band == b)
            if len(np.unique(space.classes[pair])) < 2:
                pair = both
            slopes[b, g], offsets[b, g] = fit_probability(
                scores[pair, g], space.classes[pair] == g + 1, np.maximum(space.weights[pair], 1e-9)
            )
    return slopes, offsets


def _aurocs(
    table: FeatureTable, names: Sequence[str], scores: NDArray[np.float32]
) -> dict[str, float]:
    """AUROC of each head for its own generator, repositories left out, mean over the bands."""
    band = bands_of(table.traits, len(BANDS))
    found = {}
    for g, name in enumerate(names):
        parts = []
        for b in range(len(BANDS)):
            pair = (band == b) & np.isin(table.generators, (REAL, name))
            synthetic = table.generators[pair] == name
            if synthetic.any() and not synthetic.all():
                parts.append(metrics.auroc(scores[pair, g], synthetic))
        found[name] = float(np.mean(parts)) if parts else float("nan")
    return found


def fit_joint(
    similarities: NDArray[Any],
    generators: NDArray[np.str_],
    band: NDArray[np.int64],
    bands: int,
    strength: float,
) -> Joint:
    """Learn one number for "some generator" from left-out similarities.

    Multinomial logistic regression in each band, a class for photos and one for each generator,
    with or without a head; those with few views in a band are one together. All generators have
    the same weight, together as much as the photos; similarities are scaled by the photos'
    deviation, so that the regularisation treats them alike.

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

    kinds = [*np.unique(generators[generators != REAL]).tolist(), _TOGETHER]
    weights = np.zeros((bands, len(kinds), similarities.shape[1]))
    offsets = np.full((bands, len(kinds)), _ABSENT)
    for b in range(bands):
        own = band == b
        if len(np.unique(generators[own] == REAL)) < 2:
            own = np.ones(len(band), bool)
        values = np.asarray(similarities[own], np.float64)
        of = generators[own].astype(object)
        rare = [name for name, n in Counter(of.tolist()).items() if n < _RARE and name != REAL]
        of[np.isin(of, rare)] = _TOGETHER  # together as much as one generator
        scale = values[of == REAL].std(axis=0) + 1e-9
        sizes = Counter(of.tolist())
        synthetic = len(sizes) - 1
        each = np.array([(1.0 if g == REAL else 1.0 / synthetic) / sizes[g] for g in of.tolist()])
        fit = LogisticRegression(C=strength, max_iter=1000)
        there = [REAL, *(kind for kind in kinds if kind in sizes)]
        fit.fit(values / scale, [there.index(g) for g in of], sample_weight=each * len(values) / 2)
        slopes, constants = fit.coef_ / scale, fit.intercept_
        if synthetic > 1:  # of two classes these are of the second against the first
            slopes, constants = slopes[1:] - slopes[0], constants[1:] - constants[0]
        at = [kinds.index(kind) for kind in there[1:]]
        weights[b, at], offsets[b, at] = slopes, constants
    present = (offsets > _ABSENT).any(axis=0)
    return Joint(weights[:, present], offsets[:, present])


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


def file_of(table: FeatureTable, fit: BandsFit, config: BandsConfig) -> DetectorFile:
    """Put what was fitted to a table together as a detector, to be saved."""
    return detector_file(
        "bands", config, fit, table, table,
        names=(REAL, *np.unique(table.generators[table.generators != REAL]).tolist()),
        how=f"whole repositories left out, {config.folds} folds",
        arrays=calibration_arrays(fit.joint, fit.usual),
        more=() if fit.learned is None else (fit.learned,),
    )  # fmt: skip


def calibration_arrays(joint: Joint, usual: UsualScores | None) -> dict[str, NDArray[Any]]:
    """Give the arrays of a detector file that hold a joint number, and usual scores."""
    arrays: dict[str, NDArray[Any]] = dict(
        zip(
            JOINT_ARRAYS,
            (joint.weights.astype(np.float32), joint.offsets.astype(np.float32)),
            strict=True,
        )
    )
    if usual is not None and joint.usual is not None:
        arrays |= usual.and_also(joint.usual).to_arrays()
    return arrays


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
    manifest, out, config, cache, workers, overwrite, progress
        As of `masksim.training.shared.train_shared`.

    Returns
    -------
    DetectorFile, BandsFit

    Raises
    ------
    DataError, UsageError
        See `fit_bands` and `masksim.checkpoint.DetectorFile.save`.
    """
    check_target(Path(out), overwrite)  # before minutes of work, not after
    table = views_of(
        manifest, config, cache, workers=workers, progress=staged(progress, "features of views")
    )
    learned = learn(manifest, table, config, cache, workers=workers, progress=progress)
    fit = fit_bands(table, config, learned, progress=progress)
    return file_of(table, fit, config).save(out, overwrite=overwrite), fit

"""The algebra of heads: directions that tell a generator from real photos, as masks and references.

With some hundred images a generator, a free mask and reference for every frequency memorise (and a
network does so faster): what generalises is a strongly regularised linear direction. So each
generator's direction is that of Fisher's discriminant against the real photos, ridge-regularised,
on spectra averaged in cells; the reference is the direction and the mask its envelope, both as the
method has them. Everything is computed from the Gram matrix of the features, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.checkpoint import HeadKind
from masksim.data.weights import matched_real_weights
from masksim.errors import DataError, UsageError
from masksim.model import SharedHeads, read_heads
from masksim.training.feature_table import FeatureTable
from masksim.traits import TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]


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
        if not (
            self.ridge > 0 and 0 <= self.pooled < 1 and self.mask_exponent >= 0 and self.limit > 0
        ):
            raise UsageError(f"a value of the heads is out of range: {self}")


def level_free(features: NDArray[Any]) -> Matrix:
    """Subtract the mean over the cells of each channel: (n, C, R, S) -> float32 (n, C, R, S)."""
    out = np.array(features, dtype=np.float32)
    out -= out.mean(axis=(2, 3), keepdims=True)
    return out


def statistics(features: Matrix, weights: NDArray[np.float64]) -> tuple[Matrix, Matrix]:
    """Weighted mean and deviation of level-free features (n, C, R, S): (C, R, S) each."""
    share = (weights / weights.sum()).astype(np.float32)
    mean = np.tensordot(share, features, 1)
    deviation = np.sqrt(np.tensordot(share, (features - mean) ** 2, 1)) + np.float32(1e-3)
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
        `masksim.data.weights.matched_real_weights`; by default `weights`.

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


def coefficients_of(
    gram: Matrix,
    classes: NDArray[np.int64],
    weights: NDArray[np.float64],
    histories: NDArray[np.str_],
    dimensions: int,
    config: HeadConfig,
) -> Matrix:
    """Give `fisher_coefficients` against photos with each generator's own histories (n,)."""
    return fisher_coefficients(
        gram, classes, weights, dimensions,
        real_weights=matched_real_weights(classes, weights, histories),
        ridge=config.ridge, pooled=config.pooled,
    )  # fmt: skip


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


def cosines(
    z: Matrix, mask: NDArray[Any], reference: NDArray[Any], noise: NDArray[np.float64] | None = None
) -> NDArray[Any]:
    """Score compared features for one head, as `masksim.model.SharedHeads` does.

    Parameters
    ----------
    z
        (n, D), see `masksim.model.SharedHeads.compared`.
    mask, reference
        D values, of any shape.
    noise
        (n,): variance of an independent error of each feature, which is taken out of the norm.

    Returns
    -------
    ndarray
        (n,): the similarity.
    """
    mask, reference = (part.astype(np.float32).reshape(-1) for part in (mask, reference))
    reference = reference / np.linalg.norm(reference)
    power = (z * z) @ (mask * mask)
    if noise is not None:
        power = power - noise * float(mask @ mask)
    found: NDArray[Any] = z @ (mask * reference) / np.sqrt(np.maximum(power, 1e-16))
    return found


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


def stored(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Heads as they are stored: half precision where that is enough."""
    return {
        name: values.astype(np.float32 if name in ("a", "b", "share") else np.float16)
        for name, values in tensors.items()
    }


def in_parts(
    function: Callable[[NDArray[Any]], NDArray[Any]], features: NDArray[Any], part: int = 256
) -> NDArray[np.float32]:
    """Apply a function of `masksim.model.SharedHeads` to (n, C, R, S), some rows at a time.

    Masked features of all heads at once would fill the memory.
    """
    return np.concatenate(
        [
            function(features[i : i + part].astype(np.float32))
            for i in range(0, max(1, len(features)), part)
        ]
    ).astype(np.float32)


@dataclass(frozen=True)
class HeadsByBand:
    """Heads that are there: one set, or one for each band of compression.

    Attributes
    ----------
    sets
        As many as bands.
    """

    sets: tuple[SharedHeads, ...]

    @classmethod
    def of(cls, kind: HeadKind, tensors: Mapping[str, NDArray[Any]], limit: float) -> HeadsByBand:
        """Read the tensors of a branch, see `masksim.checkpoint.Branch`."""
        return cls(read_heads(kind, tensors, limit))

    def _each(self, name: str, features: NDArray[Any], traits: NDArray[np.float32]) -> Matrix:
        """Apply a method to each view, of the heads of its band."""
        band = bands_of(traits, len(self.sets))
        parts = [(band == b, getattr(self.sets[b], name)) for b in np.unique(band).tolist()]
        found = [(at, in_parts(function, features[at])) for at, function in parts]
        out = np.empty((len(features), *found[0][1].shape[1:]), np.float32)
        for at, values in found:
            out[at] = values
        return out

    def compared(self, features: NDArray[Any], traits: NDArray[np.float32]) -> Matrix:
        """Give views as masks are laid over them, (n, C, R, S)."""
        return self._each("compared", features, traits)

    def similarities(self, features: NDArray[Any], traits: NDArray[np.float32]) -> Matrix:
        """Score views, (n, G)."""
        return self._each("similarities", features, traits)

    def traits(self, table: FeatureTable) -> NDArray[np.float32]:
        """Complete the traits of a table by what needs heads, (n, T)."""
        traits = table.traits.copy()
        band, column = bands_of(traits, len(self.sets)), TRAITS.index("distance")
        for i, features in enumerate(table.features):
            traits[i, column] = self.sets[band[i]].distance(features.astype(np.float32))
        return traits

"""Measures of a detector from saved scores: a thin use of scikit-learn, plus what it lacks.

All functions take `scores` (larger is more synthetic), `synthetic` (True for synthetic images) and
optional non-negative `weights`, each of shape ``(n,)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Statistic = Callable[[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value with its bootstrap interval.

    Attributes
    ----------
    value
        On all the data.
    low, high
        Percentile interval.
    """

    value: float
    low: float
    high: float


def _arrays(
    scores: Any, synthetic: Any, weights: Any | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(synthetic, dtype=bool)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64)
    if s.ndim != 1 or s.shape != y.shape or s.shape != w.shape:
        raise UsageError(f"scores, labels and weights differ: {s.shape}, {y.shape}, {w.shape}")
    if not np.isfinite(s).all() or not (np.isfinite(w).all() and (w >= 0).all()):
        raise UsageError("scores and weights must be finite, and weights not negative")
    if not w[y].sum() > 0 or not w[~y].sum() > 0:
        raise UsageError("both real and synthetic images are needed")
    return s, y, w


def auroc(scores: Any, synthetic: Any, weights: Any | None = None) -> float:
    """Area under the ROC curve, ties counted half; in [0, 1], by scikit-learn."""
    from sklearn.metrics import roc_auc_score

    s, y, w = _arrays(scores, synthetic, weights)
    return float(roc_auc_score(y, s, sample_weight=w))


def tpr_at_fpr(
    scores: Any, synthetic: Any, weights: Any | None = None, *, fpr: float = 0.01
) -> float:
    """Share of synthetic images above the lowest threshold that at most `fpr` of reals reach.

    The threshold lies just above a real score, never between ties, so that the false-positive
    rate on these reals is at most `fpr`.
    """
    s, y, w = _arrays(scores, synthetic, weights)
    if not 0 <= fpr <= 1:
        raise UsageError(f"fpr must be in [0, 1], got {fpr}")
    order = np.argsort(-s[~y], kind="stable")
    real, share = s[~y][order], np.cumsum(w[~y][order]) / w[~y].sum()
    # The first real score that the share of reals at or above it makes too many, ties included.
    last_of_tie = np.append(real[1:] != real[:-1], True)
    too_many = np.flatnonzero(last_of_tie & (share > fpr + 1e-12))
    if not len(too_many):
        return 1.0
    threshold = real[too_many[0]]
    return float(w[y][s[y] > threshold].sum() / w[y].sum())


def bootstrap(
    statistic: Statistic,
    scores: Any,
    synthetic: Any,
    weights: Any | None = None,
    *,
    groups: Any | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap interval of a statistic, groups resampled within each class.

    Parameters
    ----------
    statistic
        Called with (scores, synthetic, weights).
    scores, synthetic, weights
        See the module.
    groups
        Rows with the same label here are drawn together (the views of one image, or the images of
        one source); None: each row by itself.
    samples
        Number of bootstrap samples.
    level
        Coverage of the interval, in (0, 1).
    seed
        Of the resampling.

    Returns
    -------
    Estimate

    Raises
    ------
    UsageError
        Mismatched lengths, only one class, no samples, or an impossible level.
    """
    s, y, w = _arrays(scores, synthetic, weights)
    label = np.arange(len(s)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if label.shape != s.shape:
        raise UsageError("groups must have one entry a score")
    if samples < 1 or not 0 < level < 1:
        raise UsageError(
            f"samples must be at least 1 and level in (0, 1), got {samples} and {level}"
        )
    rng = np.random.default_rng(seed)
    classes = [np.unique(label[y]), np.unique(label[~y])]
    values = np.empty(samples)
    for b in range(samples):
        times = [
            np.bincount(rng.choice(c, len(c)), minlength=label.max() + 1)[label] for c in classes
        ]
        drawn = w * np.where(y, times[0], times[1])
        keep = drawn > 0
        values[b] = (
            statistic(s[keep], y[keep], drawn[keep])
            if drawn[y].sum() > 0 and drawn[~y].sum() > 0
            else np.nan
        )
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Estimate(float(statistic(s, y, w)), float(low), float(high))

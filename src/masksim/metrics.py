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
    from collections.abc import Callable, Iterator

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


def _rates_above(
    scores: Any, synthetic: Any, weights: Any | None, threshold: float
) -> tuple[float, float, float, float]:
    """Weights of true positives, false positives, true negatives, false negatives."""
    s, y, w = _arrays(scores, synthetic, weights)
    above = s > threshold
    tp, fp = float(w[y & above].sum()), float(w[~y & above].sum())
    return tp, fp, float(w[~y].sum()) - fp, float(w[y].sum()) - tp


# The measures at a threshold are ratios of four sums. scikit-learn's functions give the same (the
# tests compare them), but take a hundred times as long, which a bootstrap multiplies.


def accuracy(
    scores: Any, synthetic: Any, weights: Any | None = None, *, threshold: float = 0.5
) -> float:
    """Share of images on the right side of a threshold; scores above it count as synthetic."""
    tp, fp, tn, fn = _rates_above(scores, synthetic, weights, threshold)
    return (tp + tn) / (tp + fp + tn + fn)


def balanced_accuracy(
    scores: Any, synthetic: Any, weights: Any | None = None, *, threshold: float = 0.5
) -> float:
    """Mean of the two classes' shares on the right side of a threshold."""
    tp, fp, tn, fn = _rates_above(scores, synthetic, weights, threshold)
    return (tp / (tp + fn) + tn / (tn + fp)) / 2


def mcc(
    scores: Any, synthetic: Any, weights: Any | None = None, *, threshold: float = 0.5
) -> float:
    """Matthews' correlation coefficient at a threshold, in [-1, 1]; 0 if all are on one side."""
    return float(
        _mcc(*(np.float64(x) for x in _rates_above(scores, synthetic, weights, threshold)))
    )


def _mcc(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / np.sqrt(np.where(product > 0, product, np.inf))


def ranking(scores: Any, synthetic: Any, weights: Any | None = None) -> dict[str, float]:
    """``auroc``, ``eer`` and ``best_mcc`` of one ROC curve, by scikit-learn.

    They depend on the order of the scores alone. ``eer`` is the rate at which false positives and
    false negatives are equal, on the ROC's chords. ``best_mcc`` is the largest Matthews correlation
    over all thresholds, chosen on the test images themselves, as the original reports it: no user
    could reach it but by luck.
    """
    from sklearn.metrics import auc, roc_curve

    s, y, w = _arrays(scores, synthetic, weights)
    fpr, tpr, _ = roc_curve(y, s, sample_weight=w, drop_intermediate=False)
    # Rounding of the running sums can leave them a hair above 1.
    fpr, tpr = np.minimum(fpr, 1.0), np.minimum(tpr, 1.0)
    # On the curve's chord where the two rates of error cross.
    gap = fpr - (1.0 - tpr)
    k = int(np.argmax(gap >= 0))
    share = 0.0 if k == 0 else gap[k - 1] / (gap[k - 1] - gap[k])
    eer = fpr[k] if k == 0 else fpr[k - 1] + share * (fpr[k] - fpr[k - 1])
    n_real, n_synthetic = float(w[~y].sum()), float(w[y].sum())
    tp, fp = tpr * n_synthetic, fpr * n_real
    best = _mcc(tp, fp, n_real - fp, n_synthetic - tp).max()
    return {"auroc": float(auc(fpr, tpr)), "eer": float(eer), "best_mcc": float(best)}


def balanced_weights(synthetic: Any, weights: Any) -> NDArray[np.float64]:
    """Weights with which each class weighs the same: its own divided by their sum."""
    y, w = np.asarray(synthetic, dtype=bool), np.asarray(weights, dtype=np.float64)
    return w / np.where(y, w[y].sum(), w[~y].sum())


def ece(probabilities: Any, synthetic: Any, weights: Any | None = None, *, bins: int = 15) -> float:
    """Take the mean miss of probabilities against shares: the expected calibration error.

    Parameters
    ----------
    probabilities
        That the image is synthetic, in [0, 1].
    synthetic, weights
        See the module.
    bins
        Number of bins of equal width, each closed to the left, the last to both sides.

    Returns
    -------
    float
        Sum over the bins of their weight times ``|share of synthetic - mean probability|``, in
        [0, 1].
    """
    p, y, w = _arrays(probabilities, synthetic, weights)
    if bins < 1 or p.min() < 0 or p.max() > 1:
        raise UsageError("probabilities must be in [0, 1], and bins at least one")
    number = np.minimum((p * bins).astype(int), bins - 1)
    misses = np.bincount(number, weights=w * (y - p), minlength=bins)
    return float(np.abs(misses).sum() / w.sum())


def cllr(log_odds: Any, synthetic: Any, weights: Any | None = None) -> float:
    """Cost of log-likelihood ratios, in bits; the classes weigh the same.

    Parameters
    ----------
    log_odds
        Natural logarithm of p(score | synthetic) / p(score | real): the log-odds of a probability
        that was fitted on classes of equal weight.
    synthetic, weights
        See the module.

    Returns
    -------
    float
        0 for certain and right; 1 for always saying nothing; above 1 for misleading.
    """
    x, y, w = _arrays(log_odds, synthetic, weights)
    cost = np.logaddexp(0.0, np.where(y, -x, x)) / np.log(2.0)
    return float((w[y] @ cost[y] / w[y].sum() + w[~y] @ cost[~y] / w[~y].sum()) / 2)


def min_cllr(scores: Any, synthetic: Any, weights: Any | None = None) -> float:
    """`cllr` after the best monotone calibration, by pool adjacent violators (scikit-learn).

    The calibration is fitted on the test images themselves: what is left is for want of
    discrimination, and `cllr` minus this for want of calibration. In [0, 1].
    """
    from sklearn.isotonic import isotonic_regression

    s, y, w = _arrays(scores, synthetic, weights)
    w = balanced_weights(y, w)
    # Ties are one point: no calibration can part them.
    _, place = np.unique(s, return_inverse=True)
    of_synthetic = np.bincount(place, weights=w * y)
    both = np.bincount(place, weights=w)
    used = both > 0
    p = np.clip(
        isotonic_regression(of_synthetic[used] / both[used], sample_weight=both[used]), 0.0, 1.0
    )
    ours, theirs = of_synthetic[used], (both - of_synthetic)[used]
    # A block without one class costs that class nothing, however sure it is.
    cost = -(ours[ours > 0] @ np.log2(p[ours > 0]))
    certain = theirs > 1e-15
    cost -= theirs[certain] @ np.log2(np.maximum(1.0 - p[certain], 1e-300))
    return max(0.0, float(cost / 2))


def draw_together(
    synthetic: Any, images: Any, sources: Any, *, few: int = 3
) -> tuple[NDArray[np.str_], tuple[str, str]]:
    """Label what a bootstrap should draw together: whole sources, where there are enough of them.

    Parameters
    ----------
    synthetic
        (n,) see the module.
    images, sources
        (n,) what each row is a view of, and where that comes from; ``""``: not known.
    few
        A class of fewer sources than this, or of unknown ones, is drawn by its images.

    Returns
    -------
    groups
        str (n,), for `bootstrap`.
    kinds
        ``"over sources"`` or ``"over images"``, of the synthetic and of the real ones.
    """
    y, source = np.asarray(synthetic, dtype=bool), np.asarray(sources).astype(np.str_)
    groups = np.char.add("image ", np.asarray(images).astype(np.str_))
    kinds = []
    for mask in (y, ~y):
        names = np.unique(source[mask])
        enough = len(names) >= few and "" not in names
        if enough:
            groups = np.where(mask, np.char.add("source ", source), groups)
        kinds.append("over sources" if enough else "over images")
    return groups, (kinds[0], kinds[1])


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
    if samples < 1 or not 0 < level < 1:
        raise UsageError(
            f"samples must be at least 1 and level in (0, 1), got {samples} and {level}"
        )
    rng = np.random.default_rng(seed)
    values = np.empty(samples)
    drawn_weights = resampled_weights(y, w, groups=groups, samples=samples, streams=(rng, rng))
    for b, drawn in enumerate(drawn_weights):
        keep = drawn > 0
        values[b] = (
            statistic(s[keep], y[keep], drawn[keep])
            if drawn[y].sum() > 0 and drawn[~y].sum() > 0
            else np.nan
        )
    return estimate(float(statistic(s, y, w)), values, level)


def estimate(value: float, replicates: Any, level: float = 0.95) -> Estimate:
    """Put the percentile interval of bootstrap replicates, NaN left out, around a value.

    Raises
    ------
    UsageError
        The level is not in (0, 1), or there are no replicates.
    """
    values = np.asarray(replicates, dtype=np.float64)
    if not len(values) or not 0 < level < 1:
        raise UsageError(
            f"samples must be at least 1 and level in (0, 1), got {len(values)} and {level}"
        )
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def resampled_weights(
    synthetic: Any,
    weights: Any | None = None,
    *,
    groups: Any | None = None,
    samples: int = 1000,
    streams: tuple[np.random.Generator, np.random.Generator] | None = None,
) -> Iterator[NDArray[np.float64]]:
    """Bootstrap: draw groups with replacement within each class, as weights of the rows.

    Parameters
    ----------
    synthetic, weights
        See the module.
    groups
        As in `bootstrap`.
    samples
        Number of draws.
    streams
        Random numbers for the synthetic and for the real images. With a stream of its own the
        reals' draws are the same whatever the synthetic images are: measures of several
        generators against the same reals can then be averaged draw by draw.

    Yields
    ------
    ndarray
        (n,) float64: the weights times how often the row's group was drawn.
    """
    y = np.asarray(synthetic, dtype=bool)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    label = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if label.shape != y.shape:
        raise UsageError("groups must have one entry a score")
    ours, theirs = streams or (np.random.default_rng([0, 0]), np.random.default_rng([0, 1]))
    classes = [np.unique(label[y]), np.unique(label[~y])]
    for _ in range(samples):
        times = [
            np.bincount(rng.choice(c, len(c)), minlength=label.max() + 1)[label]
            for rng, c in zip((ours, theirs), classes, strict=True)
        ]
        yield w * np.where(y, times[0], times[1])

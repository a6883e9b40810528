"""How strong the evidence is, and which generator it points to, from scores of known images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.calibration import false_positive_rate
from masksim.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNCLEAR = 0.20
"""An image whose clarity is at most this is not said to be of any known generator."""

_FEWEST = 10  # own images, with which something can be said of what is typical
_POOLED_LIKE = 50  # with so many own images half of the covariance is their own
_MATCHED = 0.05  # only own images found at this rate define what is clear
_DIAGONAL = 0.1  # share of the covariance's diagonal alone


@dataclass(frozen=True, slots=True)
class LikelihoodRatio:
    """How much better "made by a known generator" explains a rate than "a photo".

    Attributes
    ----------
    value
        Within `low` and `high`.
    low, high
        What the calibration data supports: beyond them the ratio would be extrapolated.
    bounded
        The value was cut to a bound.
    words
        The same in a sentence, where it is part of a verdict (`masksim.verdict.decide`).
    """

    value: float
    low: float
    high: float
    bounded: bool
    words: str = ""


class LikelihoodRatios:
    """Likelihood ratios of joint rates, from those of known synthetic images and of photos.

    The ratio is monotone in the rate (isotonic regression, pool adjacent violators), and cut where
    decisions by it would do no better than without it if one more image on either side were as
    misleading as can be (ELUB: Vergeer et al., Science and Justice 56, 2016).

    Parameters
    ----------
    synthetic
        (k,): joint rates of synthetic images.
    weights
        (k,): not negative; such that each generator counts the same.
    real
        (n,): joint rates of photos.
    effective
        What the photos are worth: their number over the `design_effect`; by default their number.
    population
        Name of the photos: a rate among others has no ratio.

    Raises
    ------
    ModelError
        One of both is empty, or a rate is not in (0, 1].
    """

    def __init__(
        self,
        synthetic: NDArray[Any],
        weights: NDArray[Any],
        real: NDArray[Any],
        effective: float | None = None,
        *,
        population: str = "",
    ) -> None:
        self.population = population
        own, photos = np.asarray(synthetic, np.float64), np.asarray(real, np.float64)
        share = np.asarray(weights, np.float64)
        both = np.concatenate([own, photos])
        if not len(own) or not len(photos) or share.shape != own.shape or not share.sum() > 0:
            raise ModelError("a likelihood ratio needs images of both kinds", code="model_invalid")
        if not ((both > 0) & (both <= 1)).all():
            raise ModelError("a joint rate is not in (0, 1]", code="model_invalid")
        rates = np.unique(both)
        made = np.zeros(len(rates))
        taken = np.zeros(len(rates))
        np.add.at(made, np.searchsorted(rates, own), share / share.sum())
        np.add.at(taken, np.searchsorted(rates, photos), 1 / len(photos))
        self.rates = rates
        self.ratios = _descending_ratio(made, taken)
        n = float(len(photos)) if effective is None else effective
        # Kish: what unequal weights leave of the number.
        k = float(share.sum() ** 2 / (share**2).sum())
        self.low, self.high = _elub(self.ratios, made, taken, k, n)

    def at(self, rate: float) -> LikelihoodRatio:
        """Give the ratio of a joint rate in (0, 1]."""
        # Between two rates of the data that of the larger one, which is the smaller ratio.
        place = int(np.searchsorted(self.rates, rate, side="left"))
        ratio = float(self.ratios[min(place, len(self.rates) - 1)])
        value = min(max(ratio, self.low), self.high)
        return LikelihoodRatio(value, self.low, self.high, value != ratio)


def _descending_ratio(made: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratio of two histograms over ascending rates, made descending by pooling (PAV)."""
    blocks: list[list[float]] = []  # made, taken, bins
    for a, b in zip(made.tolist(), taken.tolist(), strict=True):
        blocks.append([a, b, 1])
        # As shares, so that no division by 0 is needed.
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] < blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [x + y for x, y in zip(blocks[-1], last, strict=True)]
    out: list[float] = []
    for a, b, bins in blocks:
        out += [math.inf if b == 0 else a / b] * int(bins)
    return np.array(out)


def _elub(
    ratios: NDArray[np.float64],
    made: NDArray[np.float64],
    taken: NDArray[np.float64],
    k: float,
    n: float,
) -> tuple[float, float]:
    """Bounds within which decisions by the ratio beat none, with one misleading image added."""
    grid = np.exp(np.linspace(-16, 16, 6401))
    # With thresholds in the place of prior odds: wrong among the synthetic and among the photos.
    missed = np.array([made[ratios < t].sum() for t in grid])
    alarms = np.array([taken[ratios >= t].sum() for t in grid])
    missed = (missed * k + 1) / (k + 1)
    alarms = (alarms * n + 1) / (n + 1)
    useful = missed + grid * alarms < np.minimum(1.0, grid)
    if not useful.any():
        return 1.0, 1.0
    kept = grid[useful]
    return min(1.0, float(kept[0])), max(1.0, float(kept[-1]))


@dataclass(frozen=True, eq=False)
class Attribution:
    """How clear it is which generator an image is of.

    Told by the scores of the generators' own images for all heads.
    Each generator's images are a normal distribution of score vectors. Its covariance is in part
    the generator's own, the more so the more images there are, in part that of all generators.

    Attributes
    ----------
    means
        (G, G): row g is the mean of generator g's images for each head; NaN where it has too few.
    precisions
        (G, G, G): inverse covariances.
    own_clearest
        Sorted (m,): the largest `posterior` of each own image that is found at all, the image's own
        share in its generator's mean taken out.
    own_weights
        (m,): 1 in sum, each generator the same.
    """

    means: NDArray[np.float64]
    precisions: NDArray[np.float64]
    own_clearest: NDArray[np.float64]
    own_weights: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        own_similarities: NDArray[Any],
        own_generators: NDArray[np.integer[Any]],
        real_scores: NDArray[Any],
    ) -> Attribution:
        """Fit to score vectors of synthetic images by heads that had not seen them.

        Parameters
        ----------
        own_similarities
            ``(k, G)``; rows with a NaN are left out.
        own_generators
            ``(k,)``: whose image each is.
        real_scores
            ``(n, G)``, see `false_positive_rate`.

        Raises
        ------
        ModelError
            The shapes differ, a generator is unknown, or a score is infinite.
        """
        scores = np.asarray(own_similarities, dtype=np.float64)
        of = np.asarray(own_generators)
        if scores.ndim != 2 or of.shape != scores.shape[:1] or of.dtype.kind not in "iu":
            raise ModelError(
                f"scores of own images of shape {scores.shape}, generators of {of.shape}",
                code="model_invalid",
            )
        count = scores.shape[1]
        if np.isinf(scores).any() or (len(of) and not 0 <= of.min() <= of.max() < count):
            raise ModelError("invalid scores of the generators' own images", code="model_invalid")
        complete = ~np.isnan(scores).any(axis=1)
        scores, of = scores[complete], of[complete]
        sizes = np.bincount(of, minlength=count)
        known = [int(g) for g in np.flatnonzero(sizes >= _FEWEST)]
        means = np.full((count, count), np.nan)
        precisions = np.full((count, count, count), np.nan)
        spread = {g: np.cov(scores[of == g].T, bias=True).reshape(count, count) for g in known}
        pooled = np.mean(list(spread.values()), axis=0) if spread else np.zeros((count, count))
        for g in known:
            means[g] = scores[of == g].mean(axis=0)
            share = sizes[g] / (sizes[g] + _POOLED_LIKE)
            covariance = share * spread[g] + (1 - share) * pooled
            diagonal = np.diag(np.diag(covariance)) + 1e-12 * np.eye(count)
            precisions[g] = np.linalg.inv((1 - _DIAGONAL) * covariance + _DIAGONAL * diagonal)
        model = cls(means, precisions, np.zeros(0), np.zeros(0))
        found = np.zeros(len(scores), bool)
        if len(scores):
            found = false_positive_rate(scores, real_scores).min(axis=1) <= _MATCHED
        clearest, weights = [np.zeros(0)], [np.zeros(0)]
        for g in known:
            own = scores[(of == g) & found]
            # The mean without the image itself is farther from it, by n / (n - 1).
            stretch = (g, float(sizes[g] / (sizes[g] - 1)))
            clearest.append(_normalised(model._log_likelihoods(own, stretch)).max(axis=1))
            weights.append(np.full(len(own), 1.0 / max(1, len(own))))
        values, shares = np.concatenate(clearest), np.concatenate(weights)
        order = np.argsort(values, kind="stable")
        return cls(means, precisions, values[order], shares[order] / max(shares.sum(), 1e-12))

    def _log_likelihoods(
        self, scores: NDArray[np.float64], stretch: tuple[int, float] | None = None
    ) -> NDArray[np.float64]:
        out = np.full((len(scores), len(self.means)), -np.inf)
        for g, (mean, precision) in enumerate(zip(self.means, self.precisions, strict=True)):
            if np.isnan(mean).any():
                continue
            offset = scores - mean
            if stretch is not None and stretch[0] == g:
                offset = offset * stretch[1]
            distance = np.einsum("ni,ij,nj->n", offset, precision, offset)
            out[:, g] = 0.5 * (np.linalg.slogdet(precision)[1] - distance)
        return out

    def posterior(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Probability of each generator if it is one of them, all equally likely before.

        Parameters
        ----------
        scores
            ``(..., G)``.

        Returns
        -------
        ndarray
            ``(..., G)`` float64, 1 in sum; 0 for a generator with too few own images; NaN where
            all are.
        """
        flat = np.asarray(scores, dtype=np.float64).reshape(-1, len(self.means))
        return _normalised(self._log_likelihoods(flat)).reshape(np.shape(scores))

    def clarity(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Share of the known generators' own images that are told no more clearly than this.

        How clearly an image is told is its largest `posterior`. Small where the image lies between
        the generators, or beside all of them: there a generator lies that is not known.

        Parameters
        ----------
        scores
            ``(..., G)``.

        Returns
        -------
        ndarray
            ``(...)`` float64 in (0, 1], each generator counting the same and the image itself as
            one more; 1 where there are no own images, and nothing can be said.
        """
        clearest = np.asarray(self.posterior(scores).max(axis=-1))
        below = np.concatenate([[0.0], np.cumsum(self.own_weights)])
        m = len(self.own_clearest)
        if not m:
            return np.ones(clearest.shape)
        count = np.searchsorted(self.own_clearest, clearest, side="right")
        found: NDArray[np.float64] = (1.0 + m * below[count]) / (m + 1.0)
        return np.minimum(found, 1.0)

    def name(self, scores: NDArray[Any], rates: NDArray[np.float64]) -> NDArray[np.int64]:
        """Name the generator of each image, where it is clear.

        Parameters
        ----------
        scores
            ``(..., G)``.
        rates
            ``(..., G)``: each generator's own false-positive rate.

        Returns
        -------
        ndarray
            int64 ``(...)``: the column of the lowest rate, of equal ones that of the highest score;
            -1 where the `clarity` is at most `UNCLEAR`.
        """
        best = np.lexsort((-np.asarray(scores), rates), axis=-1)[..., 0]
        return np.where(self.clarity(scores) > UNCLEAR, best, -1)


def _normalised(log_likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    highest = log_likelihoods.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_likelihoods - highest)
        found: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return found

"""Which generator an image points to, by the scores of the generators' own images."""

from __future__ import annotations

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
            distance = ((offset @ precision) * offset).sum(axis=1)
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

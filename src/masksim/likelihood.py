"""How strong the evidence is: likelihood ratios of joint rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray


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

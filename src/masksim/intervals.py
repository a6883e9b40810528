"""How sure a share is: exact intervals, also of photos that come in sources.

Own code, because SciPy is not among what detecting needs; the tests compare it with SciPy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a rate lies, with a confidence of 95 %.

    Attributes
    ----------
    low, high
        In [0, 1].
    """

    low: float
    high: float


def clopper_pearson(count: float, size: float, *, confidence: float = 0.95) -> Interval:
    """Exact binomial interval of a share (Clopper and Pearson 1934).

    Parameters
    ----------
    count, size
        So many of so many; need not be whole numbers, see `grouped_interval`.
    confidence
        In (0, 1).

    Returns
    -------
    Interval

    Raises
    ------
    UsageError
        Not ``0 <= count <= size``, or nothing was counted.
    """
    if not 0 <= count <= size or not size > 0:
        raise UsageError(f"no share: {count} of {size}")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else _beta_quantile(tail, count, size - count + 1)
    high = 1.0 if count == size else _beta_quantile(1 - tail, count + 1, size - count)
    return Interval(low, high)


def design_effect(hits: NDArray[Any], sources: NDArray[Any]) -> float:
    """By how much photos of few sources tell less than as many independent ones.

    Variance of the share between sources over that of a simple random sample (Kish 1965).

    Parameters
    ----------
    hits
        bool (n,).
    sources
        (n,): photos with equal values are of one source.

    Returns
    -------
    float
        At least 1; 1 where all or none are hits, or all are of one source.
    """
    n = len(hits)
    share = float(np.mean(hits))
    totals, sizes = _by_source(hits, sources)
    count = len(sizes)
    if count < 2 or not 0 < share < 1:
        return 1.0
    between = count / (count - 1) * float(((totals - share * sizes) ** 2).sum()) / n**2
    return max(1.0, between / (share * (1 - share) / n))


def grouped_interval(hits: NDArray[Any], sources: NDArray[Any], effect: float = 1.0) -> Interval:
    """Interval of a share among photos that come in sources (Korn and Graubard 1998).

    Clopper and Pearson's with the number of photos divided by the `design_effect`, and widened for
    the few sources that this was estimated from.

    Parameters
    ----------
    hits, sources
        See `design_effect`.
    effect
        The design effect is at least this: for shares so small that their own cannot be told.

    Returns
    -------
    Interval
    """
    n, count = len(hits), int(np.sum(hits))
    sources_count = len(np.unique(sources))
    if sources_count < 2:
        return clopper_pearson(count, n)
    wider = (_t_quantile(0.975, sources_count - 1) / _t_quantile(0.975, n - 1)) ** 2
    effective = n / max(effect, design_effect(hits, sources)) / wider if n > 1 else float(n)
    effective = max(1.0, min(float(n), effective))
    # All are all: not a little more or less, for rounding.
    return clopper_pearson(effective if count == n else count * effective / n, effective)


def _by_source(
    values: NDArray[Any], sources: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    of = np.unique(sources, return_inverse=True)[1]
    totals = np.bincount(of, weights=np.asarray(values, dtype=np.float64))
    return totals.astype(np.float64), np.bincount(of).astype(np.float64)


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function, by Lentz's continued fraction (Press et al., 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    found = d
    for m in range(1, 1000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + step / c
            c = c if abs(c) > tiny else tiny
            found *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * found / a


@lru_cache(maxsize=65536)
def _beta_quantile(share: float, a: float, b: float) -> float:
    """Quantile of the beta distribution by Newton's steps, kept between bounds that close in."""
    low, high = 0.0, 1.0
    x = min(a / (a + b), 1 - 2.0**-53)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    for _ in range(200):
        over = _beta_cdf(x, a, b) - share
        if over == 0:
            return x
        low, high = (low, x) if over >= 0 else (x, high)
        log_slope = log_front + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)
        after = x - over / math.exp(log_slope) if abs(log_slope) < 300 else low
        if not low < after < high:  # too far, or the slope is lost: halve, as a last resort
            after = (low + high) / 2
        if abs(after - x) <= 1e-15 * x or not low < after < high:
            return after
        x = after
    return x


@lru_cache(maxsize=4096)
def _t_quantile(share: float, freedom: float) -> float:
    """Quantile above one half of Student's t."""
    x = _beta_quantile(2 * (1 - share), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)

"""Learns what photos usually score, given what they show (`masksim.usual`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.errors import ModelError
from masksim.traits import TRAITS
from masksim.usual import TERMS, UsualScores, terms_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEDIAN, HIGH = 0.5, 0.95
FEWEST = 1500
"""With fewer photos all have one median and one 95th percentile, whatever they show.

Lines of eight coefficients lie close to the few largest scores of the photos that they are fitted
to, which then look too ordinary: with few photos claims would be exceeded (docs/experiments.md).
"""

_OUTERMOST = 0.01


def fit_usual_scores(
    scores: NDArray[Any],
    traits: NDArray[Any],
    energy: NDArray[np.float64] | None = None,
    *,
    fewest: int = FEWEST,
) -> UsualScores:
    """Fit the median and the 95th percentile of photos' scores, two regressions a column.

    Parameters
    ----------
    scores
        ``(n, K)``, n at least 1; NaN where a photo has none.
    traits
        ``(n, T)``.
    energy
        Its limits, see `UsualScores`; by default those of these photos, the outermost hundredth on
        either side left out.
    fewest
        With fewer photos that have a score, see `FEWEST`.

    Returns
    -------
    UsualScores
    """
    if energy is None:
        energies = np.asarray(traits, np.float64)[:, TRAITS.index("energy")]
        known = energies[~np.isnan(energies)]
        outer = (_OUTERMOST, 1 - _OUTERMOST)
        energy = np.quantile(known, outer) if len(known) else np.zeros(2)
    limits = np.asarray(energy, np.float64)
    shown = terms_of(traits, limits)
    columns = [_lines(np.asarray(column, np.float64), shown, limits, fewest) for column in scores.T]
    median, high = (np.stack(lines) for lines in zip(*columns, strict=True))
    return UsualScores(median, high, limits)


def _lines(
    column: NDArray[np.float64],
    shown: NDArray[np.float64],
    limits: NDArray[np.float64],
    fewest: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit one column (n,): coefficients of the median and of the 95th percentile, (P,) each."""
    from sklearn.linear_model import QuantileRegressor

    there = ~np.isnan(column)
    values = column[there]
    if there.sum() >= fewest:
        # In deviations, so that the solver's tolerance fits scores of any scale.
        middle, deviation = values.mean(), values.std() + 1e-12
        found = []
        for quantile in (MEDIAN, HIGH):
            fit = QuantileRegressor(quantile=quantile, alpha=0, fit_intercept=False, solver="highs")
            fit.fit(shown[there], (values - middle) / deviation)
            line = fit.coef_ * deviation
            line[0] += middle
            found.append(line)
        if _spread(found[0], found[1], limits):
            return found[0], found[1]
    median, high = np.zeros(TERMS), np.zeros(TERMS)
    if len(values):
        median[0], high[0] = np.quantile(values, (MEDIAN, HIGH))
    if not _spread(median, high, limits):
        high[0] = median[0] + 1
    return median, high


def _spread(
    median: NDArray[np.float64], high: NDArray[np.float64], limits: NDArray[np.float64]
) -> bool:
    """Tell whether two lines lie apart, as they are stored."""
    low, up = (line.astype(np.float32).astype(np.float64)[None] for line in (median, high))
    try:
        UsualScores(low, up, limits)
    except ModelError:
        return False
    return True

"""From similarity to false-positive rate: ranks among the scores of real photos.

Split conformal p-values: for a real photo exchangeable with the calibration photos, the rate that
is claimed is at least the rate at which real photos score as high, whatever the distribution of the
scores. Several generators are several tests; `joint_false_positive_rate` ranks the best of them
among the best of every calibration photo, so that asking many generators is paid for.

Not every photo need have a score for every generator (NaN): one that was enrolled later is
calibrated on fewer photos. A generator's own rate ranks among the photos scored for it, the joint
rate among those scored for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def false_positive_rate(scores: NDArray[Any], real_scores: NDArray[Any]) -> NDArray[np.float64]:
    """Share of real photos that score at least as high, counting the image itself as one.

    Parameters
    ----------
    scores
        ``(..., G)``, one column a generator, any real number; larger is more alike.
    real_scores
        ``(n, G)`` scores of calibration photos; NaN where a photo has none for a generator.

    Returns
    -------
    ndarray
        ``(..., G)`` float64: ``(1 + #{real >= score}) / (n_g + 1)``, in ``[1 / (n_g + 1), 1]``,
        with ``n_g`` photos scored for generator g.

    Raises
    ------
    ModelError
        The number of columns differs, no calibration photo is scored for all generators, or a
        score is infinite (of the image: not finite).
    """
    real = np.asarray(real_scores, dtype=np.float64)
    tested = np.asarray(scores, dtype=np.float64)
    _check(tested, real)
    out = np.empty(tested.shape, dtype=np.float64)
    for g in range(real.shape[1]):
        column = np.sort(real[~np.isnan(real[:, g]), g])
        count = len(column) - np.searchsorted(column, tested[..., g], side="left")
        out[..., g] = (1.0 + count) / (len(column) + 1.0)
    return out


def scored_for_all(real_scores: NDArray[Any]) -> NDArray[Any]:
    """Rows of the calibration photos that have a score for every generator: (n, G) -> (m, G)."""
    kept: NDArray[Any] = real_scores[~np.isnan(real_scores).any(axis=1)]
    return kept


def typicality(
    scores: NDArray[Any], own_scores: NDArray[Any], own_generators: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Share of each generator's own images that score as low as this one, or lower.

    The counterpart of `false_positive_rate`: small where an image is *unlike* the generator's own
    images. An image that resembles some generator more than photos do, but is typical of none, is
    explained by no generator that the detector knows.

    Parameters
    ----------
    scores
        ``(..., G)``.
    own_scores
        ``(k,)`` scores of synthetic images for their own generator, unseen by that head.
    own_generators
        ``(k,)`` which column each is of.

    Returns
    -------
    ndarray
        ``(..., G)`` float64: ``(1 + #{own <= score}) / (k_g + 1)``; 1 for a generator without own
        scores, of which nothing can be said.
    """
    tested = np.asarray(scores, dtype=np.float64)
    out = np.ones(tested.shape, dtype=np.float64)
    for g in range(tested.shape[-1]):
        own = np.sort(np.asarray(own_scores, dtype=np.float64)[own_generators == g])
        count = np.searchsorted(own, tested[..., g], side="right")
        out[..., g] = (1.0 + count) / (len(own) + 1.0)
    return out


def joint_false_positive_rate(
    scores: NDArray[Any], real_scores: NDArray[Any]
) -> NDArray[np.float64]:
    """False-positive rate of the most telling generator, corrected for having asked them all.

    The image and the ``n`` calibration photos form one set of ``n + 1``. Each member's statistic is
    its best rank over the generators within that set, ties broken by its second best; the rate is
    the share of members whose statistic is at least as extreme as the image's. This is a full
    conformal p-value: for exchangeable photos it is at most q with probability at most q, whatever
    the dependence between the generators' scores.

    Parameters
    ----------
    scores
        ``(..., G)``.
    real_scores
        ``(n, G)``; photos without a score for every generator are left out.

    Returns
    -------
    ndarray
        ``(...)`` float64 in ``[1 / (n + 1), 1]``, with ``n`` photos scored for all generators.

    Raises
    ------
    ModelError
        As `false_positive_rate`.
    """
    real = np.asarray(real_scores, dtype=np.float64)
    tested = np.asarray(scores, dtype=np.float64)
    _check(tested, real)
    real = scored_for_all(real)
    n = len(real)
    among = np.empty(real.shape, dtype=np.int64)  # calibration photos >= this one, itself included
    columns = np.sort(real, axis=0)
    for g in range(real.shape[1]):
        among[:, g] = n - np.searchsorted(columns[:, g], real[:, g], side="left")
    flat = tested.reshape(-1, real.shape[1])
    out = np.empty(len(flat), dtype=np.float64)
    for k, row in enumerate(flat):
        own = np.array(
            [
                1 + n - np.searchsorted(columns[:, g], row[g], side="left")
                for g in range(real.shape[1])
            ]
        )
        others = _extremity(among + (row >= real), n)
        out[k] = (1.0 + np.count_nonzero(others <= _extremity(own[None], n))) / (n + 1.0)
    return out.reshape(tested.shape[:-1])


def _extremity(ranks: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Best rank, then second best, as one number: (m, G) -> (m,), smaller is more extreme."""
    if ranks.shape[1] == 1:
        return ranks[:, 0]
    two = np.partition(ranks, 1, axis=1)[:, :2]
    extremity: NDArray[np.int64] = two[:, 0] * (n + 2) + two[:, 1]
    return extremity


def _check(scores: NDArray[Any], real_scores: NDArray[Any]) -> None:
    if real_scores.ndim != 2 or not len(real_scores):
        raise ModelError(
            f"calibration scores must be (n >= 1, generators), got shape {real_scores.shape}",
            code="model_invalid",
        )
    if not scores.ndim or scores.shape[-1] != real_scores.shape[1]:
        raise ModelError(
            f"{scores.shape[-1:]} scores for a calibration of {real_scores.shape[1]} generators",
            code="model_invalid",
        )
    if not np.isfinite(scores).all() or np.isinf(real_scores).any():
        raise ModelError("a score is not a finite number", code="model_invalid")
    if np.isnan(real_scores).any(axis=1).all():
        raise ModelError(
            "no calibration photo has a score for every generator", code="model_invalid"
        )

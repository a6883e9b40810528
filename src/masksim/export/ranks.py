"""How a graph ranks a batch of images among the photos of a calibration.

`masksim.calibration` sorts the photos of one image's stratum and looks its place up. A graph
compares and counts, in tables of all strata, since each image of a batch may lie in another one.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import verdict
from masksim.usual import terms as usual_terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.calibration import Calibration
    from masksim.export.graph import Traits
    from masksim.export.trace import Array
    from masksim.strata import Node
    from masksim.usual import UsualScores

_LOWEST = float(np.finfo(np.float32).min)
_TIE = 1e-12  # relative
_CLOSE = 1e-9  # of scores relative to what is usual


@dataclass(frozen=True, eq=False)
class _Ranks:
    """Photos of every stratum, S, in tables padded to one number of rows, n.

    Attributes
    ----------
    real
        float32 or float64 (S, n, G): scores; the lowest number where there is none.
    complete
        float32 (S, n, 1): 1 for photos scored for all generators.
    among
        float32 (S, n, G): rank of each complete photo among the complete ones, itself included;
        beyond any rank for other rows.
    counts, complete_counts
        float32 (S, G) and (S,): scored photos.
    """

    real: NDArray[np.floating[Any]]
    complete: NDArray[np.float32]
    among: NDArray[np.float32]
    counts: NDArray[np.float32]
    complete_counts: NDArray[np.float32]


def _ranks(
    strata: Sequence[NDArray[np.float64]], dtype: type[np.floating[Any]] = np.float32
) -> _Ranks:
    """Make tables of the scores (n_s, G) of the photos of each stratum."""
    rows, columns = max(len(real) for real in strata), strata[0].shape[1]
    shape = (len(strata), rows, columns)
    real_scores = np.full(shape, _LOWEST, dtype=dtype)
    among = np.full(shape, 4.0 * rows + 4, dtype=np.float32)
    complete = np.zeros((*shape[:2], 1), dtype=np.float32)
    for s, real in enumerate(strata):
        real_scores[s, : len(real)] = np.where(np.isnan(real), _LOWEST, real)
        at = np.flatnonzero(~np.isnan(real).any(axis=1))
        complete[s, at] = 1
        for column, scores in enumerate(real[at].T):
            below = np.searchsorted(np.sort(scores), scores, side="left")
            among[s, at, column] = len(at) - below
    return _Ranks(
        real_scores,
        complete,
        among,
        np.array([(~np.isnan(real)).sum(axis=0) for real in strata], dtype=np.float32),
        complete.sum(axis=(1, 2)),
    )


def _at_least(cut: float) -> np.float32:
    """Give the smallest number in single precision that is not below a cut."""
    nearest = np.float32(cut)
    return nearest if float(nearest) >= cut else np.nextafter(nearest, np.float32(np.inf))


def stratum(calibration: Calibration, traits: Traits, like: Array) -> Array:
    """Walk down the tree.

    Parameters
    ----------
    calibration
        Its tree is walked.
    traits
        Those that the tree asks for become inputs of the graph.
    like
        (images,).

    Returns
    -------
    Array
        int64 (images,): which leaf, from 0.
    """
    xp = traits.xp
    number = {leaf: k for k, leaf in enumerate(calibration.tree.leaves())}

    def walk(node: Node) -> Array:
        if not node.parts:
            return xp.asarray(np.int64(number[node]))
        trait = traits.get(node.trait)
        if trait is None:  # as where it is not known: the last
            return walk(node.parts[-1])
        found, *others = map(walk, node.parts)
        for cut, part in zip(node.cuts, others, strict=True):
            # "If not below", so that NaN comes to the last.
            found = xp.where(trait < _at_least(cut), found, part)
        return found

    # Where nothing is cut it is one number for all.
    return xp.zeros_like(like, dtype=np.int64) + walk(calibration.tree)


def described(calibration: Calibration) -> list[dict[str, Any]]:
    """Say of each leaf which photos it is made of, and up to which joint rate each word is reached.

    Returns
    -------
    list of dict
        ``photos_are``, ``photos``, ``sources`` and ``levels`` (level: rate), plain values for JSON.
    """
    return [
        {
            "photos_are": words,
            "photos": photos,
            "sources": sources,
            "levels": _levels(calibration, leaf, photos),
        }
        for (words, photos, sources), leaf in zip(
            calibration.table(), calibration.tree.leaves(), strict=True
        )
    ]


def _levels(calibration: Calibration, leaf: Node, photos: int) -> dict[str, float]:
    """Largest joint rate at which each level is reached among the photos of a stratum.

    The interval of a rate depends on which photos it counts: here the best among themselves.
    """
    found: dict[str, float] = {}
    for limit, level in verdict.LEVELS:

        def missed(count: int, limit: float = limit) -> bool:
            rate, interval = calibration.rate_of(leaf, count)
            return rate > limit or interval.high > verdict.MARGIN * limit

        counts = range(round(limit * photos) + 1)
        reached = bisect.bisect_left(counts, True, key=missed)
        if reached:
            found[level] = calibration.rate_of(leaf, reached - 1)[0]
    return found


def rates(
    calibration: Calibration, similarity: Array, leaf: Array, traits: Traits
) -> tuple[Array, Array]:
    """Rank images in one population.

    Parameters
    ----------
    calibration
        Its photos.
    similarity
        (images, G).
    leaf
        From `stratum`.
    traits
        The band becomes an input of the graph where the joint rate depends on it.

    Returns
    -------
    own, joint
        float32 (images, G) and (images,), see `masksim.calibration.Rates`.
    """
    xp = traits.xp

    def of_stratum(table: NDArray[Any]) -> Array:
        found: Array = xp.take(xp.asarray(table), leaf, axis=0)
        return found

    def share(hits: Array, counts: NDArray[np.float32]) -> Array:
        """Of the photos that are hits, (images, n, ...), the image itself counted as one more."""
        return (xp.sum(xp.astype(hits, np.float32), axis=1) + 1) / (of_stratum(counts) + 1)

    scores = calibration.relative(calibration.real_scores, calibration.traits)
    relative, tie = calibration.usual is not None, 0.0
    tables = _ranks(
        [scores[node.members] for node in calibration.tree.leaves()],
        np.float64 if relative else np.float32,
    )
    real, score = of_stratum(tables.real), similarity[:, None, :]
    if calibration.usual is not None:
        score = _relative(calibration.usual, similarity, traits)[:, None, :]
        tie = _CLOSE  # computed here and there in another order: equal ones must stay equal
    at_least = real >= score - tie  # (images, n, G)
    own = share(at_least, tables.counts)
    if calibration.learned is not None:
        weights, offsets = calibration.learned.weights, calibration.learned.offsets
        terms, offset = xp.astype(similarity, np.float64)[:, None, :], xp.asarray(offsets[:1])
        if len(offsets) > 1:
            band = traits.band(len(offsets))
            terms = terms * xp.take(xp.asarray(weights), band, axis=0)
            offset = xp.take(xp.asarray(offsets), band, axis=0)
        else:
            terms = terms * weights
        log_odds = xp.sum(terms, axis=2) + offset  # (images, kinds)
        highest = xp.max(log_odds, axis=1, keepdims=True)
        mine = xp.log(xp.sum(xp.exp(log_odds - highest), axis=1)) + highest[:, 0]
        if calibration.learned.usual is not None:
            mine = _relative(calibration.learned.usual, mine[:, None], traits)[:, 0]
        reached = of_stratum(_statistics(calibration)) >= mine[:, None]
        return own, share(reached, tables.complete_counts)
    if np.isnan(scores).any():
        at_least = at_least & (of_stratum(tables.complete) > 0)
    rank = xp.sum(xp.astype(at_least, np.float32), axis=1)[:, None, :] + 1  # (images, 1, G)
    others = of_stratum(tables.among) + xp.astype(real <= score + tie, np.float32)
    return own, share(_as_extreme(others, rank, scores.shape[1]), tables.complete_counts)


def _relative(usual: UsualScores, scores: Array, traits: Traits) -> Array:
    """Put scores (images, K) in relation to those of photos like the images: float64."""
    xp = traits.xp
    band, side, energy = (
        xp.astype(traits.get(name), np.float64) for name in ("band", "side", "energy")
    )
    shown = usual_terms(band, side, energy, usual.energy)
    found: Array = usual.relative_to(shown, xp.astype(scores, np.float64))
    return found


def _statistics(calibration: Calibration) -> NDArray[np.float64]:
    """Learned numbers of the photos of every stratum scored for all generators: (S, n)."""
    leaves = calibration.tree.leaves()
    table = np.full((len(leaves), max(len(leaf.members) for leaf in leaves)), _LOWEST)
    for row, leaf in zip(table, leaves, strict=True):
        scores = calibration.real_scores[leaf.members]
        found = calibration.statistics(scores, calibration.traits[leaf.members])[:, 0]
        complete = ~np.isnan(found)
        # An image's own number is summed up in another order: equal ones must stay equal.
        tie = _TIE if calibration.learned is None or calibration.learned.usual is None else _CLOSE
        row[: complete.sum()] = found[complete] + tie * (1 + np.abs(found[complete]))
    return table


def _as_extreme(others: Array, mine: Array, count: int) -> Array:
    """Tell by best, then second best rank who is at least as extreme: bool (images, n)."""
    if count == 1:
        return (others <= mine)[..., 0]
    other, own = (ranks.xp.smallest(ranks, 2) for ranks in (others, mine))
    tied = (other[..., 0] == own[..., 0]) & (other[..., 1] <= own[..., 1])
    return (other[..., 0] < own[..., 0]) | tied

"""From similarity to false-positive rate: ranks among the scores of real photos.

Split conformal p-values: for a real photo exchangeable with the calibration photos, the rate that
is claimed is at least the rate at which real photos score as high, whatever the distribution of the
scores. Several generators are several tests; `joint_false_positive_rate` ranks the best of them
among the best of every calibration photo, so that asking many generators is paid for. A detector
that has learned one number for "some generator" (`Joint`) ranks that instead: one test, a sharper
one.

Photos are not all alike: noisy ones resemble generators more often than smooth ones. `Calibration`
ranks an image among the photos of its own kind (`Strata`), told by traits that the image itself
shows (`masksim.traits`), and says how sure the rate is with photos grouped by source. With
`masksim.usual.UsualScores` it ranks how far scores are from what such photos usually have.

Not every photo need have a score for every generator (NaN): one that was enrolled later is
calibrated on fewer photos. A generator's own rate ranks among the photos scored for it, the joint
rate among those scored for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.errors import ModelError
from masksim.intervals import Interval, design_effect, grouped_interval
from masksim.strata import Node, Strata, grow
from masksim.traits import TRAITS, bands_of
from masksim.usual import UsualScores

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
    ranked = _Ranked(scored_for_all(real))
    flat = tested.reshape(-1, real.shape[1])
    out = np.array([ranked.rate(row) for row in flat])
    return out.reshape(tested.shape[:-1])


def most_telling(own: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.int64]:
    """Order generators by their own rates (G,), of equal ones the higher score (G,) first."""
    found: NDArray[np.int64] = np.lexsort((-np.asarray(scores), own))
    return found


def number_of_false_alarms(rates: Any) -> NDArray[np.float64]:
    """Expect so many generators to match a real photo as well: the a-contrario reading.

    The number of tests times the smallest rate (Desolneux, Moisan, Morel 2000). An alarm wherever
    it is at most q gives at most q false alarms a photo, whatever the dependence of the tests; the
    joint rate, which knows the dependence, is never far above it and mostly below.

    Parameters
    ----------
    rates
        ``(..., G)``, see `false_positive_rate`.

    Returns
    -------
    ndarray
        ``(...)`` float64 in ``(0, G]``.
    """
    tests = np.asarray(rates, dtype=np.float64)
    found: NDArray[np.float64] = tests.shape[-1] * tests.min(axis=-1)
    return found


class _Ranked:
    """Calibration photos (n, G), all complete, ranked once for any number of images."""

    def __init__(self, real: NDArray[np.float64]) -> None:
        self.real = real
        n = len(real)
        self.columns = np.sort(real, axis=0)
        # Photos >= this one, itself included.
        self.among = np.stack(
            [
                n - np.searchsorted(column, scores, side="left")
                for column, scores in zip(self.columns.T, real.T, strict=True)
            ],
            axis=1,
        )

    def as_extreme(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which photos are at least as extreme as an image (G,) in the set of all: (n,)."""
        n = len(self.real)
        own = np.array(
            [
                1 + n - np.searchsorted(column, score, side="left")
                for column, score in zip(self.columns.T, scores, strict=True)
            ]
        )
        others = _extremity(self.among + (scores >= self.real), n)
        found: NDArray[np.bool_] = others <= _extremity(own[None], n)
        return found

    def rate(self, scores: NDArray[np.float64]) -> float:
        """Joint rate of an image (G,)."""
        return _rate(self.as_extreme(scores))

    def most_extreme(self, count: int) -> NDArray[np.bool_]:
        """Tell which photos are the `count` most extreme ones among themselves: (n,)."""
        chosen = np.zeros(len(self.real), dtype=np.bool_)
        chosen[np.argsort(_extremity(self.among, len(self.real)), kind="stable")[:count]] = True
        return chosen


def _rate(hits: NDArray[np.bool_]) -> float:
    """Share of the photos that are hits, the image itself counted as one more."""
    return float((1.0 + np.count_nonzero(hits)) / (len(hits) + 1.0))


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


@dataclass(frozen=True, eq=False)
class Joint:
    """One number for "made by some generator": the log-odds of a multinomial logistic regression.

    Its classes are photos and K kinds of generated images, of one generator or of several; which is
    which does not matter, and may differ from band to band. A kind's log-odds against photos are
    linear in the similarities; those of all kinds together are ``log(sum(exp(log_odds)))``.

    Attributes
    ----------
    weights
        float64 (B, K, G): of each generator's similarity, for each band of compression and kind.
    offsets
        float64 (B, K).
    usual
        What photos usually have, of one kind of score: the number is relative to it.
    """

    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]
    usual: UsualScores | None = None

    def __post_init__(self) -> None:
        if self.weights.ndim != 3 or self.offsets.shape != self.weights.shape[:2]:
            raise ModelError(
                f"joint weights of shape {self.weights.shape} with {self.offsets.shape} offsets",
                code="model_invalid",
            )
        if not self.offsets.size:
            raise ModelError("joint weights of no kind of images", code="model_invalid")
        if not (np.isfinite(self.weights).all() and np.isfinite(self.offsets).all()):
            raise ModelError("joint weights are not finite", code="model_invalid")
        if self.usual is not None and len(self.usual.median) != 1:
            raise ModelError("a joint number has one usual score", code="model_invalid")

    def __call__(
        self, scores: NDArray[np.float64], traits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Give the number of images with similarities (n, G) and traits (n, T): (n,)."""
        band = bands_of(traits, len(self.offsets))
        # A row at a time: a matrix product would add up one image's terms in another order.
        log_odds = [
            (scores * self.weights[band, kind]).sum(-1) + self.offsets[band, kind]
            for kind in range(self.offsets.shape[1])
        ]
        with np.errstate(invalid="ignore"):  # NaN stays
            found: NDArray[np.float64] = np.logaddexp.reduce(log_odds, axis=0)
        if self.usual is not None:
            found = self.usual.relative(found[:, None], traits)[:, 0]
        return found

    def only(self, generators: NDArray[np.bool_]) -> Joint:
        """Leave the other generators' terms out, a mask (G,); their kinds of images stay."""
        # What is usual for a sum is not so for a part of it.
        usual = self.usual if generators.all() else None
        return Joint(self.weights[..., generators], self.offsets, usual)


# --- rates among the photos of a kind ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rates:
    """False-positive rates of one image.

    Attributes
    ----------
    own
        (G,) of each generator alone.
    joint
        Over all generators.
    interval
        Of the joint rate, photos grouped by source.
    photos, sources
        Behind the joint rate, and behind its interval.
    own_photos
        int (G,): behind each generator's own.
    stratum
        Which photos those are, with the numbers between the strata.
    kind
        The same as a person would say it.
    population
        Name of the set that they are of, where there are several.
    """

    own: NDArray[np.float64]
    joint: float
    interval: Interval
    photos: int
    sources: int
    own_photos: NDArray[np.int64]
    stratum: str
    kind: str = "photos"
    population: str = ""


_DESIGN_LEVEL = 0.05  # the share of photos from which a small rate's design effect is told
_ODD = 20  # one source in so many may have shown more than what counts as usual


class Calibration:
    """Scores of real photos, parted into strata, ready to rank images among.

    Parameters
    ----------
    real_scores
        ``(n, G)``; NaN where a photo has none for a generator.
    traits
        ``(n, T)``, see `masksim.traits`; by default unknown, and then there are no strata.
    sources
        ``(n,)``: photos with equal values are of one source; by default each is its own.
    strata
        How photos are parted.
    learned
        The statistic whose rank is the joint rate; by default the best of the generators' ranks.
    copies
        bool (n,), or one for all: copies of photos, processed in some way. A photo may be there
        several times; words speak of copies where most of a stratum are.
    seen
        Traits (m, T) and sources (m,) of all views of the photos that were scored, where images are
        ranked among some of them: `limits` are theirs.
    usual
        What photos usually score, of each generator: scores are ranked relative to it.

    Attributes
    ----------
    tree
        All photos, parted: its leaves are the strata.

    Raises
    ------
    ModelError
        See `false_positive_rate`; or the shapes differ.
    """

    def __init__(
        self,
        real_scores: NDArray[Any],
        traits: NDArray[Any] | None = None,
        sources: NDArray[Any] | None = None,
        strata: Strata | None = None,
        learned: Joint | None = None,
        *,
        copies: NDArray[np.bool_] | bool = False,
        seen: tuple[NDArray[np.float64], NDArray[Any]] | None = None,
        usual: UsualScores | None = None,
    ) -> None:
        real = np.asarray(real_scores, dtype=np.float64)
        if real.ndim != 2 or not len(real):
            _check(np.zeros(1), real)
        _check(np.zeros(real.shape[1]), real)
        n = len(real)
        self.real_scores = real
        self.traits = (
            np.full((n, len(TRAITS)), np.nan) if traits is None else np.asarray(traits, np.float64)
        )
        self.sources = np.arange(n) if sources is None else np.asarray(sources)
        if self.traits.shape != (n, len(TRAITS)) or self.sources.shape != (n,):
            raise ModelError(
                f"{n} calibration photos with traits of shape {self.traits.shape} and sources of "
                f"{self.sources.shape}",
                code="model_invalid",
            )
        if learned is not None and learned.weights.shape[2] != real.shape[1]:
            raise ModelError(
                f"joint weights of {learned.weights.shape[2]} generators for {real.shape[1]}",
                code="model_invalid",
            )
        if usual is not None and len(usual.median) != real.shape[1]:
            raise ModelError(
                f"usual scores of {len(usual.median)} generators for {real.shape[1]}",
                code="model_invalid",
            )
        if traits is None and learned is not None:
            learned = replace(learned, usual=None)
        self.learned = learned
        self.copies = np.broadcast_to(np.asarray(copies, np.bool_), n)
        self.seen = (self.traits, self.sources) if seen is None else seen
        self.strata = Strata() if strata is None or traits is None else strata
        self.usual = None if traits is None else usual
        complete = np.asarray(~np.isnan(real).any(axis=1), dtype=np.bool_)
        self.tree = grow(self.strata, self.traits, self.sources, complete, np.arange(n))
        self._ready: dict[Node, _Stratum] = {}

    def only(self, generators: NDArray[np.bool_]) -> Calibration:
        """Return the calibration of some of the generators, a mask (G,)."""
        if generators.all():
            return self
        return Calibration(
            self.real_scores[:, generators],
            self.traits,
            self.sources,
            self.strata,
            None if self.learned is None else self.learned.only(generators),
            copies=self.copies,
            seen=self.seen,
            usual=None if self.usual is None else self.usual.only(generators),
        )

    def _stratum(self, traits: NDArray[Any] | None) -> _Stratum:
        """Find the stratum of an image (T,); None: all photos."""
        return self._photos_of(
            self.tree if traits is None else self.tree.find(np.asarray(traits, np.float64))
        )

    def _photos_of(self, node: Node) -> _Stratum:
        if node not in self._ready:  # not by words: cuts that lie close read alike
            at = node.members
            self._ready[node] = _Stratum(
                self.relative(self.real_scores[at], self.traits[at]),
                self.statistics(self.real_scores[at], self.traits[at]),
                self.sources[at],
                node.words,
                self._kind(node),
            )
        return self._ready[node]

    def _kind(self, node: Node) -> str:
        """Name the photos of a stratum as a person would."""
        kind = node.kind
        if self.copies[node.members].mean() > 0.5:
            kind = kind.replace("photos", "copies of photos", 1)
        usual = self.usual if self.learned is None else self.learned.usual
        allowed = usual is not None and not usual.flat
        return f"{kind} (size and noise allowed for)" if allowed else kind

    def relative(
        self, scores: NDArray[np.float64], traits: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Give what each generator's own rate ranks: the scores (n, G), relative or as they are."""
        if self.usual is None:
            return scores
        if scores.shape[1] != self.real_scores.shape[1]:
            raise ModelError(
                f"{scores.shape[1]} scores for a calibration of {self.real_scores.shape[1]} "
                "generators",
                code="model_invalid",
            )
        return self.usual.relative(scores, _or_unknown(traits, len(scores)))

    def statistics(
        self, scores: NDArray[np.float64], traits: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Give what the joint rate ranks: as `relative`, or one learned number each (n, 1)."""
        if self.learned is None:
            return self.relative(scores, traits)
        return self.learned(scores, _or_unknown(traits, len(scores)))[:, None]

    def rates(self, scores: NDArray[Any], traits: NDArray[Any] | None = None) -> Rates:
        """Rank one image among the photos of its kind.

        Parameters
        ----------
        scores
            ``(G,)``, finite.
        traits
            ``(T,)``; None ranks it among all photos.

        Returns
        -------
        Rates

        Raises
        ------
        ModelError
            See `false_positive_rate`.
        """
        tested = np.asarray(scores, dtype=np.float64)
        shown = None if traits is None else np.asarray(traits, np.float64)[None]
        return self._stratum(traits).rates(
            self.relative(tested[None], shown)[0], self.statistics(tested[None], shown)[0]
        )

    def all_rates(
        self, scores: NDArray[Any], traits: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rank many images: each generator's own rates (k, G), and the joint ones (k,).

        Parameters
        ----------
        scores
            ``(k, G)``.
        traits
            ``(k, T)`` or None.
        """
        tested = np.asarray(scores, dtype=np.float64)
        own, joint = np.empty(tested.shape), np.empty(len(tested))
        shown = None if traits is None else np.asarray(traits, dtype=np.float64)
        relative, statistics = self.relative(tested, shown), self.statistics(tested, shown)
        found = [self._stratum(None if shown is None else shown[k]) for k in range(len(tested))]
        for stratum in set(found):
            at = [k for k, other in enumerate(found) if other is stratum]
            own[at] = false_positive_rate(relative[at], stratum.real)
            joint[at] = [stratum.ranked.rate(row) for row in statistics[at]]
        return own, joint

    def left_out(self) -> NDArray[np.float64]:
        """Joint rate of each photo among those of all other sources.

        Returns
        -------
        ndarray
            float64 (n,); NaN for photos that have no score for some generator. What an image of a
            new source would get; with photos ranked among themselves the smallest rates are too
            rare.
        """
        out = np.full(len(self.real_scores), np.nan)
        # What is ranked does not depend on which photos are there: it is computed once.
        ranked = self.statistics(self.real_scores, self.traits)
        complete = ~np.isnan(ranked).any(axis=1)
        for source in np.unique(self.sources):
            own, rest = (self.sources == source) & complete, self.sources != source
            if own.any() and (rest & complete).any():
                others = Calibration(
                    ranked[rest], self.traits[rest], self.sources[rest], self.strata
                )
                out[own] = others.all_rates(ranked[own], self.traits[own])[1]
        return out

    def table(self) -> list[tuple[str, int, int]]:
        """List the strata, as `tree` does: (words, photos with all scores, their sources)."""
        strata = [self._photos_of(leaf) for leaf in self.tree.leaves()]
        return [
            (part.words, len(part.ranked_sources), len(np.unique(part.ranked_sources)))
            for part in strata
        ]

    def rate_of(self, leaf: Node, count: int) -> tuple[float, Interval]:
        """Give rate and interval of an image of a stratum that its `count` best photos match."""
        photos = self._photos_of(leaf)
        hits = photos.ranked.most_extreme(count)
        return _rate(hits), grouped_interval(hits, photos.ranked_sources, photos.effect)

    def limits(self, trait: str) -> tuple[float, float]:
        """Range of a trait among the photos seen, the most extreme source in twenty left out.

        Returns
        -------
        low, high
            Infinite where fewer than three sources have the trait.
        """
        traits, sources = self.seen
        values = traits[:, TRAITS.index(trait)]
        known = ~np.isnan(values)
        names, of = np.unique(sources[known], return_inverse=True)
        if len(names) < 3:
            return -math.inf, math.inf
        k = math.ceil(len(names) / _ODD)
        lowest, highest = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        np.minimum.at(lowest, of, values[known])
        np.maximum.at(highest, of, values[known])
        return float(np.sort(lowest)[k - 1]), float(np.sort(highest)[-k])


def _or_unknown(traits: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    return np.full((count, len(TRAITS)), np.nan) if traits is None else traits


class _Stratum:
    """The photos of one kind."""

    def __init__(
        self,
        real: NDArray[np.float64],
        statistics: NDArray[np.float64],
        sources: NDArray[Any],
        words: str,
        kind: str,
    ) -> None:
        self.real, self.words, self.kind = real, words, kind
        complete = ~np.isnan(real).any(axis=1)
        self.ranked = _Ranked(statistics[complete])
        self.ranked_sources = sources[complete]
        count = max(1, round(_DESIGN_LEVEL * len(self.ranked.real)))
        self.effect = design_effect(self.ranked.most_extreme(count), self.ranked_sources)

    def rates(self, scores: NDArray[np.float64], statistic: NDArray[np.float64]) -> Rates:
        own = false_positive_rate(scores, self.real)
        hits = self.ranked.as_extreme(statistic)
        return Rates(
            own,
            _rate(hits),
            grouped_interval(hits, self.ranked_sources, self.effect),
            len(hits),
            len(np.unique(self.ranked_sources)),
            (~np.isnan(self.real)).sum(axis=0),
            self.words,
            self.kind,
        )

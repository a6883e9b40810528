"""From similarity to false-positive rate: ranks among the scores of real photos.

Split conformal p-values: for a real photo exchangeable with the calibration photos, the rate that
is claimed is at least the rate at which real photos score as high, whatever the distribution of the
scores. Several generators are several tests; `joint_false_positive_rate` ranks the best of them
among the best of every calibration photo, so that asking many generators is paid for. A detector
that has learned one number for "some generator" (`Joint`) ranks that instead: one test, a sharper
one.

Photos are not all alike: noisy ones resemble generators more often than smooth ones. `Calibration`
ranks an image among the photos of its own kind (`Strata`), told by traits that the image itself
shows (`masksim.traits`), and says how sure the rate is with photos grouped by source.

Not every photo need have a score for every generator (NaN): one that was enrolled later is
calibrated on fewer photos. A generator's own rate ranks among the photos scored for it, the joint
rate among those scored for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from masksim.errors import ModelError, UsageError
from masksim.traits import TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNCLEAR = 0.20
"""An image whose clarity is at most this is not said to be of any known generator."""

_FEWEST = 10  # own images, with which something can be said of what is typical
_POOLED_LIKE = 50  # with so many own images half of the covariance is their own
_MATCHED = 0.05  # own images that are found at this rate tell how clearly such images are told
_DIAGONAL = 0.1  # share of the covariance's diagonal alone


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
    """One number for "made by some generator": the log-odds of a logistic regression.

    Attributes
    ----------
    weights
        float64 (B, G): of each generator's similarity, for each band of compression.
    offsets
        float64 (B,).
    """

    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.offsets.shape != self.weights.shape[:1]:
            raise ModelError(
                f"joint weights of shape {self.weights.shape} with {self.offsets.shape} offsets",
                code="model_invalid",
            )
        if not (np.isfinite(self.weights).all() and np.isfinite(self.offsets).all()):
            raise ModelError("joint weights are not finite", code="model_invalid")

    def __call__(
        self, scores: NDArray[np.float64], traits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Give the log-odds of images with similarities (n, G) and traits (n, T): (n,)."""
        band = bands_of(traits, len(self.offsets))
        found: NDArray[np.float64] = (scores * self.weights[band]).sum(-1) + self.offsets[band]
        return found

    def only(self, generators: NDArray[np.bool_]) -> Joint:
        """Leave the other generators' terms out, a mask (G,)."""
        return Joint(self.weights[:, generators], self.offsets)


# --- how sure a rate is ------------------------------------------------------------------------


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
    # Where all are hits the product may come out a little above the number.
    return clopper_pearson(min(count * effective / n, effective), effective)


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


def _beta_quantile(share: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a, b) < share else (low, middle)
    return (low + high) / 2


@lru_cache(maxsize=4096)
def _t_quantile(share: float, freedom: float) -> float:
    """Quantile above one half of Student's t."""
    x = _beta_quantile(2 * (1 - share), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


# --- photos of a kind --------------------------------------------------------------------------


@dataclass(frozen=True)
class Strata:
    """How photos are parted by what they show, from the coarsest to the finest.

    The photos are parted by one trait after another, each part for itself, wherever all of its
    parts are left with enough photos of enough sources; a trait that would leave one of them too
    thin is passed over there. So every photo and every image lies in one stratum: the coarse one
    that a thin one would fall back to is never made of other kinds of photos alone.

    Attributes
    ----------
    bands
        (trait, bands): into how many bands of as many photos each a part is cut, or the cuts
        themselves. A photo lies in band k if k of the cuts are at most its value; a trait that is
        not known (NaN) lies in the last.
    photos, sources
        Fewest photos, and sources of them, of a stratum.
    """

    bands: tuple[tuple[str, int | tuple[float, ...]], ...] = ()
    photos: int = 300
    sources: int = 20

    def __post_init__(self) -> None:
        for trait, cuts in self.bands:
            if trait not in TRAITS:
                raise ModelError(
                    f"strata of an unknown trait {trait!r}; known: {', '.join(TRAITS)}",
                    code="model_invalid",
                )
            if isinstance(cuts, int):
                if not 2 <= cuts <= 100:
                    raise ModelError(f"{trait} in {cuts} bands", code="model_invalid")
            elif not cuts or list(cuts) != sorted(set(cuts)) or not np.isfinite(cuts).all():
                raise ModelError(
                    f"the cuts of {trait} must ascend, got {cuts}", code="model_invalid"
                )
        if self.photos < 1 or self.sources < 1:
            raise ModelError("a stratum needs at least one photo", code="model_invalid")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Strata:
        """Make it of plain values, as a detector file or a configuration holds them.

        Raises
        ------
        ModelError
            They are not what `to_dict` gives.
        """
        try:
            bands = tuple(
                (
                    str(trait),
                    cuts if isinstance(cuts, int) else tuple(float(cut) for cut in cuts),
                )
                for trait, cuts in values["bands"]
            )
            photos, sources = values["photos"], values["sources"]
            if set(values) != {"bands", "photos", "sources"} or {type(photos), type(sources)} != {
                int
            }:
                raise ValueError("its keys are bands, photos and sources")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"invalid strata: {error}", code="model_invalid") from error
        return cls(bands, photos, sources)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "bands": [
                [trait, cuts if isinstance(cuts, int) else list(cuts)] for trait, cuts in self.bands
            ],
            "photos": self.photos,
            "sources": self.sources,
        }


@dataclass(frozen=True, eq=False)
class Node:
    """A part of the photos: a stratum, or cut into further parts by a trait.

    Attributes
    ----------
    words
        Which photos those are, with the numbers between the parts.
    kind
        The same as a person would say it: ``"large photos with little noise"``.
    members
        int (m,): their rows.
    trait, cuts, parts
        Of a part that is cut: by which trait, where, and the parts in the order of the trait. Part
        k is of values that k of the cuts are at most; the last one is also of those not known.
        Empty for a stratum.
    """

    words: str
    kind: str
    members: NDArray[np.int64]
    trait: str = ""
    cuts: tuple[float, ...] = ()
    parts: tuple[Node, ...] = ()

    def find(self, traits: NDArray[np.float64]) -> Node:
        """Return the stratum of an image (T,)."""
        node = self
        while node.parts:
            node = node.parts[_places(traits, node.trait, node.cuts)]
        return node

    def leaves(self) -> list[Node]:
        """List the strata."""
        return [leaf for part in self.parts for leaf in part.leaves()] or [self]


def _places(traits: NDArray[np.float64], trait: str, cuts: tuple[float, ...]) -> Any:
    # NaN is sorted to the end.
    return np.searchsorted(cuts, traits[..., TRAITS.index(trait)], side="right")


_Step: TypeAlias = "tuple[str, tuple[float, ...], int, bool]"
"""A trait, its cuts, which part between them, and whether the parts have as many photos each."""


def _grow(
    strata: Strata,
    traits: NDArray[np.float64],
    sources: NDArray[Any],
    complete: NDArray[np.bool_],
    members: NDArray[np.int64],
    path: tuple[_Step, ...] = (),
    first: int = 0,
) -> Node:
    """Part some of the photos by the traits from the `first` on; `path`: how they were parted."""
    words = ", ".join(_band(*step) for step in path) or "all"
    kind = _kind(path)
    for k in range(first, len(strata.bands)):
        trait, cuts = strata.bands[k]
        if ranked := isinstance(cuts, int):
            values = traits[members, TRAITS.index(trait)]
            values = values[~np.isnan(values)]
            if not len(values):
                continue
            shares = np.arange(1, cuts) / cuts
            cuts = tuple(np.unique(np.quantile(values, shares)).tolist())
        place = _places(traits[members], trait, cuts)
        parts = [members[place == band] for band in range(len(cuts) + 1)]
        usable = [part[complete[part]] for part in parts]
        if all(
            len(part) >= strata.photos and len(np.unique(sources[part])) >= strata.sources
            for part in usable
        ):
            further = tuple(
                _grow(strata, traits, sources, complete, part, (*path, step), k + 1)
                for part, step in zip(
                    parts, ((trait, cuts, band, ranked) for band in range(len(parts))), strict=True
                )
            )
            return Node(words, kind, members, trait, cuts, further)
    return Node(words, kind, members)


_COMPRESSED = (
    "without visible compression",
    "saved as JPEG of high quality",
    "saved as JPEG of middle quality",
    "saved as JPEG of low quality",
    "saved as WebP, AVIF or HEIC",
)
_USUAL_BANDS = (0.5, 1.5, 2.5, 3.5)
_NOISE = {2: ("with less noise", "with more noise"),
          3: ("with little noise", "with middling noise", "with much noise")}  # fmt: skip

# What photos with the lowest values of a trait are called, those between, and those with the
# highest; a photo of which the trait is not known is among the last.
_ADJECTIVES = {
    "side": ("small", "middle-sized", "large"),
    "chroma": ("pale", "moderately colourful", "colourful"),
    "brightness": ("dark", "moderately bright", "bright"),
}
_PHRASES = {
    "energy": ("with little noise", "with middling noise", "with much noise"),
    "sharpness": ("with little fine detail", "with some fine detail", "with much fine detail"),
    "flat": ("with few flat parts", "with some flat parts", "with many flat parts"),
    "quality": ("of low JPEG quality", "of middle JPEG quality", "of high or no JPEG quality"),
    "distance": ("of usual texture", "of less usual texture", "of unusual texture"),
    "band": ("hardly compressed", "compressed", "compressed most, or in a modern format"),
}


def _band(trait: str, cuts: tuple[float, ...], k: int, ranked: bool) -> str:
    """Say which photos lie in band k, with numbers where the cuts have any to tell."""
    if trait == "band" and cuts == _USUAL_BANDS:
        return _COMPRESSED[k]
    if trait == "energy" and ranked and len(cuts) + 1 in _NOISE:
        return _NOISE[len(cuts) + 1][k]
    name, unit = ("shorter side", " pixels") if trait == "side" else (trait, "")
    ends = [f"{cut:.4g}" if trait == "side" else f"{cut:.3g}" for cut in cuts]
    if k == 0:
        return f"{name} below {ends[0]}{unit}"
    if k == len(cuts):
        return f"{name} {ends[-1]}{unit} or more"
    return f"{name} {ends[k - 1]} to {ends[k]}{unit}"


def _kind(path: tuple[_Step, ...]) -> str:
    """Name photos as a person would, without numbers."""
    before, after = [], []
    for trait, cuts, k, _ in path:
        place = 0 if k == 0 else 2 if k == len(cuts) else 1
        if trait in _ADJECTIVES:
            before.append(_ADJECTIVES[trait][place])
        elif trait == "band" and cuts == _USUAL_BANDS:
            after.append(_COMPRESSED[k])
        else:
            after.append(_PHRASES[trait][place])
    return " ".join(filter(None, (", ".join(before), "photos", " and ".join(after))))


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
        if learned is not None and learned.weights.shape[1] != real.shape[1]:
            raise ModelError(
                f"joint weights of {learned.weights.shape[1]} generators for {real.shape[1]}",
                code="model_invalid",
            )
        self.learned = learned
        self.strata = Strata() if strata is None or traits is None else strata
        complete = np.asarray(~np.isnan(real).any(axis=1), dtype=np.bool_)
        self.tree = _grow(self.strata, self.traits, self.sources, complete, np.arange(n))
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
                self.real_scores[at],
                self.statistics(self.real_scores[at], self.traits[at]),
                self.sources[at],
                node.words,
                node.kind,
            )
        return self._ready[node]

    def statistics(
        self, scores: NDArray[np.float64], traits: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Give what the joint rate ranks: the scores (n, G), or one learned number each (n, 1)."""
        if self.learned is None:
            return scores
        if traits is None:
            traits = np.full((len(scores), len(TRAITS)), np.nan)
        return self.learned(scores, traits)[:, None]

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
        return self._stratum(traits).rates(tested, self._statistic(tested, traits))

    def joint(self, scores: NDArray[Any], traits: NDArray[Any] | None = None) -> float:
        """Give the joint rate of `rates` alone: without an interval it is much quicker."""
        tested = np.asarray(scores, dtype=np.float64)
        return self._stratum(traits).ranked.rate(self._statistic(tested, traits))

    def _statistic(
        self, scores: NDArray[np.float64], traits: NDArray[Any] | None
    ) -> NDArray[np.float64]:
        shown = None if traits is None else np.asarray(traits, np.float64)[None]
        return self.statistics(scores[None], shown)[0]

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
        statistics = self.statistics(tested, shown)
        found = [self._stratum(None if shown is None else shown[k]) for k in range(len(tested))]
        for stratum in set(found):
            at = [k for k, other in enumerate(found) if other is stratum]
            own[at] = false_positive_rate(tested[at], stratum.real)
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
        complete = ~np.isnan(self.real_scores).any(axis=1)
        for source in np.unique(self.sources):
            own, rest = (self.sources == source) & complete, self.sources != source
            if own.any() and (rest & complete).any():
                others = Calibration(
                    self.real_scores[rest],
                    self.traits[rest],
                    self.sources[rest],
                    self.strata,
                    self.learned,
                )
                out[own] = others.all_rates(self.real_scores[own], self.traits[own])[1]
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
        """Range of a trait among the photos, the most extreme source in twenty left out.

        Returns
        -------
        low, high
            Infinite where fewer than three sources have the trait.
        """
        values = self.traits[:, TRAITS.index(trait)]
        known = ~np.isnan(values)
        names = np.unique(self.sources[known])
        if len(names) < 3:
            return -math.inf, math.inf
        k = math.ceil(len(names) / _ODD)
        parts = [values[known & (self.sources == name)] for name in names]
        return (
            float(np.sort([part.min() for part in parts])[k - 1]),
            float(np.sort([part.max() for part in parts])[-k]),
        )


class Populations:
    """Several calibrations, each of its own photos: the largest joint rate counts.

    What is rare among some photos only is not evidence. Verdicts and measurements both rank here.

    Parameters
    ----------
    calibrations
        At least one, by the name of its population.

    Raises
    ------
    UsageError
        None was given.
    """

    def __init__(self, calibrations: Mapping[str, Calibration]) -> None:
        if not calibrations:
            raise UsageError("no photos to rank among: the detector is not calibrated")
        self.calibrations = dict(calibrations)

    def only(self, generators: NDArray[np.bool_]) -> Populations:
        """Return the calibrations of some of the generators, a mask (G,)."""
        return Populations({name: c.only(generators) for name, c in self.calibrations.items()})

    def rates(self, scores: NDArray[Any], traits: NDArray[Any] | None = None) -> Rates:
        """Rank one image, see `Calibration.rates`; of several populations the rates name theirs."""
        several = len(self.calibrations) > 1
        found = [
            replace(c.rates(scores, traits), population=name if several else "")
            for name, c in self.calibrations.items()
        ]
        return max(found, key=lambda rates: rates.joint)

    def joint(self, scores: NDArray[Any], traits: NDArray[Any] | None = None) -> float:
        """Give the joint rate of `rates` alone, which is quicker."""
        return max(c.joint(scores, traits) for c in self.calibrations.values())

    def all_rates(
        self, scores: NDArray[Any], traits: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rank many images, see `Calibration.all_rates`."""
        found = [c.all_rates(scores, traits) for c in self.calibrations.values()]
        own, joint = (np.stack(arrays) for arrays in zip(*found, strict=True))
        largest = joint.argmax(axis=0)
        at = np.arange(joint.shape[1])
        return own[largest, at], joint[largest, at]


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
        self.real, self.sources, self.words, self.kind = real, sources, words, kind
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


# --- strength of evidence ----------------------------------------------------------------------


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
    ) -> None:
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


# --- which generator ---------------------------------------------------------------------------


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

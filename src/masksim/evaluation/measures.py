"""Every measure of a table of scores, with 95 % intervals: `Evaluation` holds what is measured."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import metrics
from masksim.data.manifest import REAL
from masksim.data.views import HISTORIES, ViewConfig
from masksim.data.weights import history_weights
from masksim.errors import DataError
from masksim.evaluation.scale import CombinedScores, Scale, combine_all
from masksim.evaluation.score_table import ScoreTable
from masksim.metrics import Estimate
from masksim.verdict import EVIDENCE, LEVELS, level_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

    Weigh = Callable[[NDArray[np.str_], Sequence[Bools]], Floats]
    """Weights (n,) of views by their histories, for disjoint classes: 1 in sum for each."""

CLAIMED = tuple(limit for limit, _ in LEVELS if limit <= EVIDENCE)
"""False-positive rates whose claims are measured: those of evidence and strong evidence."""

EVIDENT = frozenset(level for limit, level in LEVELS if limit <= EVIDENCE)
"""Levels of evidence or stronger."""


def percent(rate: float) -> str:
    """Write a claimed rate as it stands in names: ``"5"`` for 0.05."""
    return f"{100 * rate:g}"


# --- how views are weighed -----------------------------------------------------------------------


def equal_views(histories: NDArray[np.str_], classes: Sequence[Bools]) -> Floats:
    """Weigh all views of a class the same."""
    weights = np.zeros(len(histories))
    for mask in classes:
        weights[mask] = 1.0 / max(1, int(mask.sum()))
    return weights


def weighing(table: ScoreTable, shares: Mapping[str, float]) -> Weigh:
    """Return how the views of a table are weighed: by histories, or alike where not known."""
    if not set(table.histories.tolist()) <= set(HISTORIES):
        return equal_views
    return lambda histories, classes: history_weights(histories, classes, shares)


# --- measures with intervals ---------------------------------------------------------------------


def estimates(
    measure: Callable[[Floats], Mapping[str, float]],
    synthetic: Bools,
    weights: Floats,
    groups: NDArray[np.str_],
    samples: int,
    *,
    streams: tuple[np.random.Generator, np.random.Generator] | None = None,
    units: Mapping[str, int] | None = None,
) -> tuple[dict[str, Estimate], dict[str, Floats]]:
    """Measure something of weighed rows, with 95 % bootstrap intervals.

    Parameters
    ----------
    measure
        ``weights (n,) -> {name: value}``; rows of weight 0 must not count.
    synthetic, weights, groups, samples, streams
        See `masksim.metrics.resampled_weights`.
    units
        By name, for shares: how many groups they are of. If none of n has a trait, no bootstrap
        draws one: then the interval is that of Clopper and Pearson, as if they were independent.

    Returns
    -------
    estimates
        By name.
    draws
        (samples,) of each; NaN where a class was not drawn at all.
    """
    values = measure(weights)
    draws: dict[str, Floats] = {name: np.full(samples, np.nan) for name in values}
    classes = [mask for mask in (synthetic, ~synthetic) if mask.any()]
    drawn = metrics.resampled_weights(
        synthetic, weights, groups=groups, samples=samples, streams=streams
    )
    for b, sample in enumerate(drawn):
        if all(sample[mask].sum() > 0 for mask in classes):
            for name, value in measure(sample).items():
                draws[name][b] = value
    return {
        name: _estimate(value, draws[name], (units or {}).get(name))
        for name, value in values.items()
    }, draws


def _estimate(value: float, draws: Floats, units: int | None = None) -> Estimate:
    found = metrics.estimate(value, draws)
    if units and value in (0.0, 1.0) and found.low == found.high == value:
        far = 1.0 - 0.025 ** (1.0 / units)
        return Estimate(value, 0.0, far) if value == 0.0 else Estimate(value, 1.0 - far, 1.0)
    return found


def _statistics(
    found: CombinedScores, synthetic: Bools, weights: Floats, *, ranks_only: bool
) -> dict[str, float]:
    """All measures of one (re)weighting of the rows."""
    keep = weights > 0
    y, w, s = synthetic[keep], weights[keep], found.score[keep]
    out = metrics.ranking(s, y, w)
    for limit in CLAIMED if found.rate is not None else ():
        flagged = found.claims(limit)[keep]  # type: ignore[index]
        out[f"tpr_{percent(limit)}"] = float(w[y & flagged].sum() / w[y].sum())
        out[f"fpr_{percent(limit)}"] = float(w[~y & flagged].sum() / w[~y].sum())
    if ranks_only:
        return out
    out["min_cllr"] = metrics.min_cllr(s, y, w)
    if found.log_odds is not None:
        odds = found.log_odds[keep]
        probabilities = np.exp(-np.logaddexp(0.0, -odds))
        out["accuracy"] = metrics.accuracy(odds, y, w, threshold=0.0)
        out["balanced_accuracy"] = metrics.balanced_accuracy(odds, y, w, threshold=0.0)
        out["mcc"] = metrics.mcc(odds, y, w, threshold=0.0)
        out["ece"] = metrics.ece(probabilities, y, metrics.balanced_weights(y, w))
        out["cllr"] = metrics.cllr(odds, y, w)
    return out


@dataclass(frozen=True, eq=False)
class Measured:
    """Measures of a generator's images against real ones.

    Attributes
    ----------
    row
        Numbers of images and sources, what intervals are over, and an `Estimate` of each measure.
    draws
        (samples,) of each measure.
    """

    row: dict[str, Any]
    draws: dict[str, Floats]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores that are measured, what they mean, and how their views are weighed.

    Attributes
    ----------
    table
        Its columns are the scale's generators.
    scale
        What the scores mean.
    weigh
        Weights of views by their histories, see `weighing`.
    samples
        Bootstrap samples.
    """

    table: ScoreTable
    scale: Scale
    weigh: Weigh = equal_views
    samples: int = 500

    @classmethod
    def of(
        cls,
        table: ScoreTable,
        scale: Scale,
        shares: Mapping[str, float] | None = None,
        samples: int = 500,
    ) -> Evaluation:
        """Take the columns of the scale's generators, views weighed by `weighing`.

        `shares` are those of the histories, by default of `ViewConfig`.
        """
        weigh = weighing(table, ViewConfig().shares if shares is None else shares)
        return cls(table.only(scale.generators), scale, weigh, samples)

    @cached_property
    def real(self) -> Bools:
        """Which views (n,) are of real photos."""
        return self.table.typ == REAL

    @cached_property
    def joint(self) -> CombinedScores:
        """What all heads together make of the views."""
        return combine_all(self.table, self.scale)

    @cached_property
    def called_evidence(self) -> Bools | None:
        """Which views (n,) a verdict would call evidence or stronger, by their rate alone.

        None without a calibration. What makes a verdict inconclusive, and whether evidence survives
        small re-encodings, is for `masksim.evaluation.audit` to count, which has the images.
        """
        found, ranked = self.joint.claims(EVIDENCE), self.scale.calibration
        if found is None or ranked is None:
            return None
        for k in np.flatnonzero(found):  # the interval has a say, too
            traits = None if self.table.traits is None else self.table.traits[k]
            rates = ranked.rates(self.table.similarities[k], traits)
            found[k] = level_of(rates.joint, rates.interval) in EVIDENT
        return found

    def auroc(self, found: CombinedScores, synthetic: Bools, real: Bools) -> Estimate | None:
        """AUROC of some views (n,) against some real ones; None if they cannot be compared."""
        chosen = synthetic | real
        if not synthetic.any() or not real.any():
            return None
        part, y, score = self.table.select(chosen), synthetic[chosen], found.score[chosen]
        try:
            weights = self.weigh(part.histories, [y, ~y])
        except DataError:  # no history in common
            return None

        def measure(w: Floats) -> dict[str, float]:
            keep = w > 0
            return {"auroc": metrics.ranking(score[keep], y[keep], w[keep])["auroc"]}

        groups, _ = metrics.draw_together(y, part.filenames, part.sources)
        return estimates(measure, y, weights, groups, self.samples)[0]["auroc"]

    def share(self, flags: Bools | None, mask: Bools) -> Estimate | None:
        """Share of some views (n,) that have a flag; None without flags or views."""
        if flags is None or not mask.any():
            return None
        part, flagged = self.table.select(mask), flags[mask]
        every = np.ones(len(flagged), bool)
        try:
            weights = self.weigh(part.histories, [every])
        except DataError:  # no view has a history that counts
            return None
        groups, _ = metrics.draw_together(every, part.filenames, part.sources)
        found, _ = estimates(
            lambda w: {"share": float(w[flagged].sum() / w.sum())},
            every, weights, groups, self.samples,
            units={"share": len(np.unique(groups[weights > 0]))},
        )  # fmt: skip
        return found["share"]

    def measured(
        self, found: CombinedScores, chosen: Bools, *, ranks_only: bool = False
    ) -> Measured:
        """Measure the chosen views (n,), real and synthetic ones.

        `found` is what heads make of them, (m,); `ranks_only` leaves out what needs probabilities.
        """
        part = self.table.select(chosen)
        y = part.typ != REAL
        weights = self.weigh(part.histories, [y, ~y])
        used = weights > 0
        sizes = [part.count(used & mask) for mask in (y, ~y)]
        # The classes count as the images they have: accuracy and MCC depend on how many there are.
        weights = weights * np.where(y, *sizes)
        groups, kinds = metrics.draw_together(y, part.filenames, part.sources)
        units = [len(np.unique(groups[used & mask])) for mask in (y, ~y)]
        # Draws of the reals are the same for all generators, those of the generators' are not.
        name_of = zlib.crc32("".join(np.unique(part.typ[y])).encode())
        values, draws = estimates(
            lambda w: _statistics(found, y, w, ranks_only=ranks_only),
            y, weights, groups, self.samples,
            streams=(np.random.default_rng([0, 0, name_of]), np.random.default_rng([0, 1])),
            units={
                f"{kind}_{percent(limit)}": n
                for kind, n in zip(("tpr", "fpr"), units, strict=True)
                for limit in CLAIMED
            },
        )  # fmt: skip
        row: dict[str, Any] = {
            "synthetic_images": sizes[0],
            "synthetic_sources": len(np.unique(part.sources[used & y])),
            "real_images": sizes[1],
            "interval": kinds[0],
            "interval_of_reals": kinds[1],
            **values,
        }
        return Measured(row, draws)


def mean(parts: Sequence[Measured]) -> dict[str, Estimate]:
    """Mean over generators, draw by draw: all were measured against the same draws of reals."""
    names = [name for name in parts[0].draws if all(name in part.draws for part in parts)]
    return {
        name: _estimate(
            float(np.mean([part.row[name].value for part in parts])),
            np.mean([part.draws[name] for part in parts], axis=0),
        )
        for name in names
    }

"""Protocols: which heads are asked about whose images, and every measure of their answers.

A detector has one head a generator. Three protocols ask three questions of the same scores:

``specific``       does a generator's own head tell its images from real photos?
``generic``        do all heads together, with no word which generator it may be?
``leave-one-out``  do the heads of the *other* generators, as for a generator never seen?

(the last is called *generalized* by the original). `Scale` says what the scores mean: whether they
can be turned into probabilities, and which rates of real photos they stand for. Rates and levels
are those of verdicts: the largest over the detector's populations, among photos of the same kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from masksim import metrics
from masksim.calibration import Calibration
from masksim.config import Progress
from masksim.data.manifest import REAL
from masksim.errors import DataError, UsageError
from masksim.evaluation.score_table import ScoreTable
from masksim.evidence import Attribution
from masksim.metrics import Estimate
from masksim.populations import Populations
from masksim.training.dataset import HISTORIES, ViewConfig, history_weights
from masksim.traits import TRAITS, bands_of
from masksim.verdict import EVIDENCE, LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.detector import Detector

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

    Weigh = Callable[[NDArray[np.str_], Sequence[Bools]], Floats]
    """Weights (n,) of views by their histories, for disjoint classes: 1 in sum for each."""

Protocol: TypeAlias = Literal["specific", "generic", "leave-one-out"]
PROTOCOLS: tuple[Protocol, ...] = ("specific", "generic", "leave-one-out")

CLAIMED = tuple(limit for limit, _ in LEVELS if limit <= EVIDENCE)
"""False-positive rates whose claims are measured: those of evidence and strong evidence."""

_LEAST = 1e-7  # of a probability: what single precision can tell from 0 and 1


def percent(rate: float) -> str:
    """Write a claimed rate as it stands in names: ``"5"`` for 0.05."""
    return f"{100 * rate:g}"


# --- what scores mean ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scale:
    """What the scores of a detector's heads mean.

    Attributes
    ----------
    generators
        One a head.
    slope, offset
        (G,), or (B, G) for each band of compression: the log-odds of the probability are
        ``slope * score + offset``; None where scores are of an unknown scale, or probabilities
        themselves.
    probabilities
        Whether the scores are probabilities in [0, 1].
    calibration
        Scores of calibration photos; None: not calibrated.
    attribution
        Tells how clear it is which generator an image is of, as in verdicts; None: not known.
    """

    generators: tuple[str, ...]
    slope: Floats | None = None
    offset: Floats | None = None
    probabilities: bool = False
    calibration: Calibration | Populations | None = None
    attribution: Attribution | None = None

    @classmethod
    def of_table(
        cls, table: ScoreTable, calibration: Calibration | Populations | None = None
    ) -> Scale:
        """Scale of a table without its detector: numbers all in [0, 1] are probabilities."""
        s = table.similarities
        within = bool(((s >= 0) & (s <= 1)).all())
        return cls(table.generators, probabilities=within, calibration=calibration)

    @classmethod
    def of_detector(cls, detector: Detector) -> Scale:
        """Scale of a detector's similarities: probabilities, and rates where it is calibrated."""
        pairs = []
        for branch in detector.file.branches:
            names = ("clf_a", "clf_b") if branch.head == "original" else ("a", "b")
            pair = [np.asarray(branch.tensors[name], dtype=np.float64) for name in names]
            pairs.append(pair if branch.head == "bands" else [x.reshape(1, -1) for x in pair])
        bands = max(len(a) for a, _ in pairs)
        a, b = (
            np.concatenate([np.broadcast_to(x, (bands, x.shape[1])) for x in column], axis=1)
            for column in zip(*pairs, strict=True)
        )
        return cls(
            detector.generators, np.exp(a), b,
            calibration=Populations(detector.calibrations) if detector.calibrations else None,
            attribution=detector.attribution,
        )  # fmt: skip

    @property
    def banded(self) -> bool:
        """Whether there is a head for each band: scores of two bands cannot be compared."""
        return self.slope is not None and self.slope.ndim == 2 and len(self.slope) > 1

    def log_odds(self, scores: Floats, traits: Floats | None = None) -> Floats | None:
        """Log-odds (n, G) of the heads' probabilities, or None where there are none.

        The traits (n, T) tell the band of each image; without them it is the first.
        """
        if self.probabilities:
            p = np.clip(scores, _LEAST, 1 - _LEAST)
            return np.log(p) - np.log1p(-p)
        if self.slope is None or self.offset is None:
            return None
        if self.slope.ndim == 1:
            return scores * self.slope + self.offset
        if traits is None:
            traits = np.full((len(scores), len(TRAITS)), np.nan)
        band = bands_of(traits, len(self.slope))
        return scores * self.slope[band] + self.offset[band]

    def needs_traits(self) -> bool:
        """Whether rates or probabilities depend on what an image shows."""
        found = self.calibration
        several = found.calibrations.values() if isinstance(found, Populations) else [found]
        return self.banded or any(c is not None and c.tree.parts for c in several)


# --- what heads answer ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a protocol makes of each row's scores.

    Attributes
    ----------
    score
        (n,) larger is more synthetic.
    rate
        (n,) false-positive rate that is claimed, by the calibration; None without one.
    log_odds
        (n,) of the highest probability among the heads asked; None where there are none.
    """

    score: Floats
    rate: Floats | None
    log_odds: Floats | None

    def claims(self, limit: float) -> Bools | None:
        """Tell which rows claim at most this rate; None without rates."""
        return None if self.rate is None else self.rate <= limit

    def select(self, mask: Bools) -> Evidence:
        """Return the rows where `mask` (n,) is true."""
        return Evidence(
            self.score[mask],
            None if self.rate is None else self.rate[mask],
            None if self.log_odds is None else self.log_odds[mask],
        )


def evidence(
    table: ScoreTable, scale: Scale, protocol: Protocol, generator: str = ""
) -> Evidence | None:
    """Ask the heads that a protocol has for a generator.

    Parameters
    ----------
    table
        Its columns are the scale's generators.
    scale
        What the scores mean.
    protocol
        ``"specific"``: the generator's own head. ``"generic"``: all. ``"leave-one-out"``: all
        others. With a calibration several heads give their joint rate, and the score is minus its
        logarithm; without, the highest log-odds or score. A head that has a score of its own for
        each band of compression is ranked by its rate, or by its log-odds.
    generator
        Whose images are tested; not needed for ``"generic"``.

    Returns
    -------
    Evidence or None
        None where the question makes no sense: the detector has no head for the generator, or
        that head alone.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}, expected {', '.join(PROTOCOLS)}")
    own = np.array([name == generator for name in scale.generators])
    if protocol == "generic":
        return joint_evidence(table, scale)
    asked = own if protocol == "specific" else ~own & own.any()
    return _ask(table, scale, asked) if asked.any() else None


def joint_evidence(table: ScoreTable, scale: Scale) -> Evidence:
    """Ask all heads together: `evidence` by the generic protocol."""
    return _ask(table, scale, np.ones(len(scale.generators), bool))


def _ask(table: ScoreTable, scale: Scale, asked: Bools) -> Evidence:
    if tuple(table.generators) != tuple(scale.generators):
        raise UsageError(f"scores of {table.generators} with the scale of {scale.generators}")
    scores = table.similarities[:, asked]
    odds = scale.log_odds(table.similarities, table.traits)
    highest = None if odds is None else odds[:, asked].max(axis=1)
    alone = scores.shape[1] == 1
    if scale.calibration is None:
        if highest is None or (alone and not scale.banded):
            return Evidence(scores.max(axis=1), None, highest)
        return Evidence(highest, None, highest)
    own, joint = scale.calibration.only(asked).all_rates(scores, table.traits)
    if not alone:
        return Evidence(-np.log(joint), joint, highest)
    score, rate = scores[:, 0], own[:, 0]
    if scale.banded:  # of equal rates the higher score
        score = 1e-6 * score / (1 + np.abs(score)) - np.log(rate)
    return Evidence(score, rate, highest)


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
    found: Evidence, synthetic: Bools, weights: Floats, *, ranks_only: bool
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
    def joint(self) -> Evidence:
        """What all heads together make of the views."""
        return joint_evidence(self.table, self.scale)

    @cached_property
    def called_evidence(self) -> Bools | None:
        """Which views (n,) a verdict would call evidence or stronger, by their rate alone.

        None without a calibration. What makes a verdict inconclusive, and whether evidence survives
        small re-encodings, is for `masksim.evaluation.audit` to count, which has the images.
        """
        return self.joint.claims(EVIDENCE)

    def auroc(self, found: Evidence, synthetic: Bools, real: Bools) -> Estimate | None:
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

    def measured(self, found: Evidence, chosen: Bools, *, ranks_only: bool = False) -> Measured:
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


# --- protocols -----------------------------------------------------------------------------------


def unseen(table: ScoreTable, seen: frozenset[tuple[str, str]]) -> ScoreTable:
    """Leave out images of sources that training had images of the same generator from.

    `seen` are pairs (generator, source), see `masksim.evaluation.scoring.seen_in_training`.
    """
    pairs = zip(table.typ.tolist(), table.sources.tolist(), strict=True)
    return table.select(np.array([t == REAL or (t, s) not in seen for t, s in pairs], dtype=bool))


def run_protocol(
    given: Evaluation, protocol: Protocol, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure every generator's images against the real ones by one protocol.

    Parameters
    ----------
    given
        The scores, and what they mean.
    protocol
        See `evidence`.
    progress
        Called with (protocol, generators done, all).

    Returns
    -------
    dict
        ``rows``: by generator numbers of images and `Estimate` of each measure; ``mean``: their
        mean, absent without rows; ``left_out``: generators without a row, and why. The measures
        are explained in docs/evaluate.md. Those that need a probability or a calibration are
        absent where there is none.

    Raises
    ------
    DataError
        See `ScoreTable.check`.
    """
    given.table.check()
    out: dict[str, Any] = {"rows": {}, "left_out": {}}
    parts = []
    names = given.table.tested
    for k, generator in enumerate(names):
        if progress:
            progress(protocol, k, len(names))
        chosen = (given.table.typ == generator) | given.real
        found: Evidence | None = None
        if protocol == "generic":
            found = given.joint.select(chosen)
        else:
            found = evidence(given.table.select(chosen), given.scale, protocol, generator)
        if found is None:
            known = generator in given.scale.generators
            out["left_out"][generator] = "no other head" if known else "no head of its own"
            continue
        try:
            parts.append(given.measured(found, chosen))
        except DataError as error:  # no history in common with the reals
            out["left_out"][generator] = error.message
            continue
        out["rows"][generator] = parts[-1].row
    if progress:
        progress(protocol, len(names), len(names))
    if parts:
        out["mean"] = mean(parts)
    return out

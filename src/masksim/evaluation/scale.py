"""What the scores of a detector's heads mean, and what heads together make of an image.

`Scale` says whether scores can be turned into probabilities, and which rates of real photos they
stand for. Rates are those of verdicts: the largest over the detector's populations, among photos
of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from masksim.attribution import Attribution
from masksim.calibration import Calibration
from masksim.errors import UsageError
from masksim.evaluation.score_table import ScoreTable
from masksim.populations import Populations
from masksim.traits import TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.detector import Detector

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

_LEAST = 1e-7  # of a probability: what single precision can tell from 0 and 1


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
        a, b = detector.file.logistic
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


@dataclass(frozen=True, eq=False)
class CombinedScores:
    """What some heads make of each view.

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

    def select(self, mask: Bools) -> CombinedScores:
        """Return the rows where `mask` (n,) is true."""
        return CombinedScores(
            self.score[mask],
            None if self.rate is None else self.rate[mask],
            None if self.log_odds is None else self.log_odds[mask],
        )


def combine(table: ScoreTable, scale: Scale, asked: Bools) -> CombinedScores:
    """Ask some of the heads about every view.

    Parameters
    ----------
    table
        Its columns are the scale's generators.
    scale
        What the scores mean.
    asked
        bool (G,): which heads, at least one. With a calibration several heads give their joint
        rate, and the score is minus its logarithm; without, the highest log-odds or score. A head
        that has a score of its own for each band of compression is ranked by its rate, or by its
        log-odds.

    Raises
    ------
    UsageError
        The table is of other generators.
    """
    if tuple(table.generators) != tuple(scale.generators):
        raise UsageError(f"scores of {table.generators} with the scale of {scale.generators}")
    scores = table.similarities[:, asked]
    odds = scale.log_odds(table.similarities, table.traits)
    highest = None if odds is None else odds[:, asked].max(axis=1)
    alone = scores.shape[1] == 1
    if scale.calibration is None:
        if highest is None or (alone and not scale.banded):
            return CombinedScores(scores.max(axis=1), None, highest)
        return CombinedScores(highest, None, highest)
    own, joint = scale.calibration.only(asked).all_rates(scores, table.traits)
    if not alone:
        return CombinedScores(-np.log(joint), joint, highest)
    score, rate = scores[:, 0], own[:, 0]
    if scale.banded:  # of equal rates the higher score
        score = 1e-6 * score / (1 + np.abs(score)) - np.log(rate)
    return CombinedScores(score, rate, highest)


def combine_all(table: ScoreTable, scale: Scale) -> CombinedScores:
    """Ask all heads together, see `combine`."""
    return combine(table, scale, np.ones(len(scale.generators), bool))

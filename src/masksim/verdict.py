"""From false-positive rates to words: evidence of a generator's spectral pattern, or none.

The words speak of evidence and of real photos that score as high, never of the probability that
an image is synthetic: that would need to know how many of the images in question are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from masksim.calibration import UNCLEAR
from masksim.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Level: TypeAlias = Literal[
    "inconclusive", "strong evidence", "evidence", "weak evidence", "no evidence", "uncalibrated"
]

LEVELS: tuple[tuple[float, Level], ...] = (
    (0.01, "strong evidence"),
    (0.05, "evidence"),
    (0.10, "weak evidence"),
)
"""Largest joint false-positive rate of each level, the strongest first."""

NEAR = 3.0
"""A generator whose rate is up to so many times that of the best one may be meant as well."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence amounts to.

    Attributes
    ----------
    level
        One of `LEVELS`; ``"no evidence"``; ``"inconclusive"`` where there would be evidence but
        the image is unlike the photos that the rates were measured on; ``"uncalibrated"`` where
        the detector has no scores of real photos to compare with.
    generator
        The generator whose pattern is matched best, that is with the lowest rate of its own; None
        where there is no evidence, and where it is not clear which one it is
        (`unknown_generator`). `cautions` names others that match nearly as well (`NEAR`).
    false_positive_rate
        Joint over all generators: the share of real photos, the image itself counted as one,
        that resemble some generator at least as much. In (0, 1]; None if uncalibrated.
    sample_size
        How many real photos that was measured on.
    text
        The verdict in one sentence.
    cautions
        What makes the verdict less certain than its rate says.
    unknown_generator
        There is evidence, but the image is not clearly of one of the known generators: it may be
        of one that the detector does not know, or have been changed a lot.
    clarity
        Share of the known generators' own images that are told apart no more clearly than this
        one, in (0, 1]; None where the detector has no scores of them.
    """

    level: Level
    generator: str | None
    false_positive_rate: float | None
    sample_size: int
    text: str
    cautions: tuple[str, ...] = ()
    unknown_generator: bool = False
    clarity: float | None = None


def decide(
    generators: Sequence[str],
    false_positive_rates: Sequence[float] | None,
    joint: float | None,
    sample_size: int,
    *,
    similarities: Sequence[float],
    cautions: Sequence[str] = (),
    unlike_photos: str | None = None,
    clarity: float | None = None,
) -> Verdict:
    """Turn the rates of one image into a verdict.

    Parameters
    ----------
    generators
        Names, one a generator.
    false_positive_rates
        One a generator, in (0, 1], or None if the detector is not calibrated.
    joint
        The rate over all generators together, or None.
    sample_size
        Number of real photos behind the rates.
    similarities
        One a generator: breaks ties between equal rates, and serves where there are no rates.
    cautions
        Sentences that are passed on.
    unlike_photos
        Why the image is unlike the photos that the rates were measured on, as the middle of a
        sentence; None if it is like them. What would be evidence is then inconclusive.
    clarity
        See `masksim.calibration.Attribution`; None where the detector has no scores of the
        generators' own images.

    Returns
    -------
    Verdict

    Raises
    ------
    UsageError
        The lengths differ.
    """
    if not generators or len(similarities) != len(generators):
        raise UsageError("a verdict needs one similarity for each of at least one generator")
    if false_positive_rates is None or joint is None:
        best = max(range(len(generators)), key=lambda g: similarities[g])
        return Verdict(
            "uncalibrated",
            generators[best],
            None,
            0,
            f"Most like {generators[best]} (similarity {similarities[best]:.3f}), but this "
            "detector has no scores of real photos, so nothing can be said about how rare that is.",
            tuple(cautions),
        )
    if len(false_positive_rates) != len(generators):
        raise UsageError("a verdict needs one rate for each generator")
    rate = format_rate(joint, sample_size)
    level = next((level for limit, level in LEVELS if joint <= limit), None)
    if level is None:
        return Verdict(
            "no evidence",
            None,
            joint,
            sample_size,
            f"No evidence of a known generator's spectral pattern; {rate} of {sample_size} real "
            "photos score at least this high. That does not show that the image is a photo.",
            tuple(cautions),
        )
    if unlike_photos is not None:
        return Verdict(
            "inconclusive",
            None,
            joint,
            sample_size,
            f"Inconclusive: {unlike_photos}. The rates were measured on photos, and such images "
            f"can match a pattern by accident ({rate} of {sample_size} photos score as high).",
            tuple(cautions),
        )
    ranked = sorted(
        range(len(generators)), key=lambda g: (false_positive_rates[g], -similarities[g])
    )
    best = ranked[0]
    limit = min(NEAR * false_positive_rates[best], LEVELS[-1][0])
    near = [generators[g] for g in ranked[1:] if false_positive_rates[g] <= limit]
    if clarity is not None and clarity <= UNCLEAR:
        names = ", ".join((generators[best], *near))
        return Verdict(
            level,
            None,
            joint,
            sample_size,
            f"{level.capitalize()} of a generator's spectral pattern, but not clearly of one "
            f"that this detector knows; {rate} of {sample_size} real photos score at least "
            "this high for some generator.",
            (*cautions, f"It comes nearest to {names}; it may also be another generator's."),
            unknown_generator=True,
            clarity=clarity,
        )
    match = "matches" if len(near) == 1 else "match"
    doubt = (
        [f"Which generator is uncertain: {', '.join(near)} {match} nearly as well."] if near else []
    )
    return Verdict(
        level,
        generators[best],
        joint,
        sample_size,
        f"{level.capitalize()} of {generators[best]}'s spectral pattern; {rate} of {sample_size} "
        "real photos score at least this high for some generator.",
        (*cautions, *doubt),
        clarity=clarity,
    )


def format_rate(rate: float, sample_size: int) -> str:
    """Write a rate as a percentage with the digits that its sample supports, never 0."""
    if rate <= 1.0 / (sample_size + 1.0):
        return f"at most {100.0 / (sample_size + 1.0):.2g} %"
    return f"{100.0 * rate:.2g} %" if rate < 0.995 else "nearly all (100 %)"

"""From false-positive rates to words: evidence of a generator's spectral pattern, or none.

The words speak of evidence and of real photos that score as high, never of the probability that
an image is synthetic: that would need to know how many of the images in question are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from masksim.calibration import number_of_false_alarms
from masksim.errors import UsageError

# Not for type checkers alone: tables of results ask `Verdict` for the types of its fields.
from masksim.evidence import UNCLEAR, LikelihoodRatio
from masksim.intervals import Interval

Level: TypeAlias = Literal[
    "inconclusive",
    "strong evidence",
    "evidence",
    "weak evidence",
    "fragile",
    "no evidence",
    "uncalibrated",
]

LEVELS: tuple[tuple[float, Level], ...] = (
    (0.01, "strong evidence"),
    (0.05, "evidence"),
    (0.10, "weak evidence"),
)
"""Largest joint false-positive rate of each level, the strongest first."""

NEAR = 3.0
"""A generator whose rate is up to so many times that of the best one may be meant as well."""


EVIDENCE, NONE = LEVELS[1][0], LEVELS[-1][0]
"""Joint rates: up to the first there is evidence, above the second there is none."""

_MANY = 10**9  # a rate as it is, whatever number of photos is behind it

BETWEEN = 0.07
"""After a small re-encoding evidence must be left at most at this rate.

In the middle between `EVIDENCE` and `NONE`: an image one more small step away has a verdict, too.
"""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why nothing can be concluded, or less than the rate says.

    Attributes
    ----------
    code
        ``"too_small"``, ``"too_dark"``, ``"flat"``, ``"heavily_compressed"``, ``"resized"``,
        ``"screenshot_like"`` or ``"out_of_range"``.
    text
        In words, as the middle of a sentence.
    hides
        A generator's pattern may be gone as well: not finding it says nothing, either.
    """

    code: str
    text: str
    hides: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence amounts to.

    Attributes
    ----------
    level
        One of `LEVELS`; ``"no evidence"``; ``"fragile"`` where a pattern is there that a small
        re-encoding takes away; ``"inconclusive"`` where `reasons` speak against any answer;
        ``"uncalibrated"`` where the detector has no scores of real photos to compare with.
    generator
        The generator whose pattern is matched best, that is with the lowest rate of its own; None
        where there is no evidence, and where it is not clear which one it is
        (`unknown_generator`). `cautions` names others that match nearly as well (`NEAR`).
    false_positive_rate
        Joint over all generators: the share of real photos, the image itself counted as one,
        that resemble some generator at least as much. In (0, 1]; None if uncalibrated. Where the
        evidence does not survive a small re-encoding, the largest rate after one of them.
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
    interval
        Where the rate lies with a confidence of 95 %, photos grouped by source.
    stratum
        Which photos the rate was measured on, by what they show; ``"all"`` for all.
    sources
        How many sources they are of.
    reasons
        Why the verdict is inconclusive; else what speaks against a finding there was none of.
    number_of_false_alarms
        The a-contrario reading: how many of the generators a photo is expected to match as well.
    stability
        The joint rate after each small re-encoding that was tried.
    as_found
        The joint rate of the image itself, where `false_positive_rate` is that after a re-encoding.
    likelihood_ratio
        If it was asked for.
    population
        Whose photos the rate was measured on, where the detector has several sets of them.
    """

    level: Level
    generator: str | None
    false_positive_rate: float | None
    sample_size: int
    text: str
    cautions: tuple[str, ...] = ()
    unknown_generator: bool = False
    clarity: float | None = None
    interval: Interval | None = None
    stratum: str = "all"
    sources: int = 0
    reasons: tuple[Reason, ...] = ()
    number_of_false_alarms: float | None = None
    stability: Mapping[str, float] | None = None
    likelihood_ratio: LikelihoodRatio | None = None
    population: str = ""
    as_found: float | None = None


def lost_after(joint: float, after: Mapping[str, float]) -> str | None:
    """Name the small re-encoding after which hardly any evidence is left, the worst one.

    Parameters
    ----------
    joint
        Joint rate of the image.
    after
        Joint rate after each re-encoding, by its name.

    Returns
    -------
    str or None
        None where there was no evidence, or it stands after all of them.
    """
    worst = max(after, key=lambda name: after[name], default=None)
    if worst is None or joint > EVIDENCE or after[worst] <= BETWEEN:
        return None
    return worst


def decide(
    generators: Sequence[str],
    false_positive_rates: Sequence[float] | None,
    joint: float | None,
    sample_size: int,
    *,
    similarities: Sequence[float],
    cautions: Sequence[str] = (),
    reasons: Sequence[Reason] = (),
    clarity: float | None = None,
    interval: Interval | None = None,
    stratum: str = "all",
    sources: int = 0,
    population: str = "",
    as_found: float | None = None,
    lost: str = "",
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
    reasons
        What makes evidence inconclusive, and where they hide a pattern its absence, too.
    clarity
        See `masksim.evidence.Attribution`; None where the detector has no scores of the
        generators' own images.
    interval, stratum, sources, population, as_found
        See `Verdict`; where there is an `as_found`, the others are those after the re-encoding,
        and `false_positive_rates` and `clarity` those of the image itself.
    lost
        Name of that re-encoding.

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
    weakest: Level = "no evidence" if as_found is None else "fragile"
    level: Level = next((level for limit, level in LEVELS if joint <= limit), weakest)
    against = tuple(r for r in reasons if r.hides or level != "no evidence")
    if against:
        level = "inconclusive"
    common: dict[str, Any] = {
        "level": level,
        "false_positive_rate": joint,
        "sample_size": sample_size,
        "interval": interval,
        "stratum": stratum,
        "sources": sources,
        "reasons": against,
        "number_of_false_alarms": float(number_of_false_alarms(false_positive_rates)),
        "population": population,
        "as_found": as_found,
    }
    details = [part for part in (population, stratum if stratum != "all" else "") if part]
    if interval is not None:
        details.append(format_interval(interval))
    kind = " of its kind" if as_found is None else " so re-encoded"
    kind = kind if stratum != "all" else ""
    within = f" ({'; '.join(details)})" if details else ""
    rate = f"{format_rate(joint, sample_size)} of {sample_size} real photos{kind}{within}"
    if level == "inconclusive":
        why = "; ".join(reason.text for reason in against)
        text = f"Inconclusive: {why}. By itself {rate} score as high."
        return Verdict(generator=None, text=text, cautions=tuple(cautions), **common)
    if as_found is not None:
        cautions = (
            *cautions,
            f"As found, {format_rate(as_found, _MANY)} of real photos score as high; the "
            f"rate given is the one after {lost}, since evidence should survive that.",
        )
    if level == "fragile":
        text = (
            "Fragile: a generator's spectral pattern is there, but does not survive "
            f"{lost}, after which {rate} score at least this high."
        )
        return Verdict(generator=None, text=text, cautions=tuple(cautions), **common)
    if level == "no evidence":
        text = (
            f"No evidence of a known generator's spectral pattern; {rate} score at least this "
            "high. That does not show that the image is a photo."
        )
        return Verdict(generator=None, text=text, cautions=tuple(cautions), **common)
    ranked = sorted(
        range(len(generators)), key=lambda g: (false_positive_rates[g], -similarities[g])
    )
    best = ranked[0]
    limit = min(NEAR * false_positive_rates[best], LEVELS[-1][0])
    near = [generators[g] for g in ranked[1:] if false_positive_rates[g] <= limit]
    measured = f"{rate} score at least this high for some generator."
    if clarity is not None and clarity <= UNCLEAR:
        names = ", ".join((generators[best], *near))
        return Verdict(
            generator=None,
            text=f"{level.capitalize()} of a generator's spectral pattern, but not clearly of one "
            f"that this detector knows; {measured}",
            cautions=(
                *cautions,
                f"It comes nearest to {names}; it may also be another generator's.",
            ),
            unknown_generator=True,
            clarity=clarity,
            **common,
        )
    match = "matches" if len(near) == 1 else "match"
    doubt = (
        [f"Which generator is uncertain: {', '.join(near)} {match} nearly as well."] if near else []
    )
    return Verdict(
        generator=generators[best],
        text=f"{level.capitalize()} of {generators[best]}'s spectral pattern; {measured}",
        cautions=(*cautions, *doubt),
        clarity=clarity,
        **common,
    )


def format_interval(interval: Interval) -> str:
    """Write an interval in percent."""
    low, high = (
        "0" if x < 1e-4 else f"{100 * x:.2g}" if x < 0.995 else "100"
        for x in (interval.low, interval.high)
    )
    return f"95 % interval {low} to {high} %"


def format_rate(rate: float, sample_size: int) -> str:
    """Write a rate as a percentage with the digits that its sample supports, never 0."""
    if rate <= 1.0 / (sample_size + 1.0):
        return f"at most {100.0 / (sample_size + 1.0):.2g} %"
    return f"{100.0 * rate:.2g} %" if rate < 0.995 else "nearly all (100 %)"

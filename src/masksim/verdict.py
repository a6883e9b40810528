"""From false-positive rates to words: evidence of a generator's pattern, or none.

All sentences about a verdict are written here, for the command line, JSON, batches, reports,
notebooks and the service's page. They speak of evidence and of real photos that match as well,
never of the probability that an image is synthetic: that would need to know how many of the images
in question are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

# Not for type checkers alone: tables of results ask `Verdict` for the types of its fields.
from masksim.attribution import UNCLEAR
from masksim.calibration import Rates, most_telling, number_of_false_alarms
from masksim.errors import UsageError
from masksim.intervals import Interval
from masksim.likelihood import LikelihoodRatio, LikelihoodRatios

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

MARGIN = 2.0
"""The upper end of the rate's interval may reach so many times that."""

NEAR = 3.0
"""A generator whose rate is up to so many times that of the best one may be meant as well."""

_NAMED = 3  # generators that a caution names; of one more the name is as short as the count


EVIDENCE, NONE = LEVELS[1][0], LEVELS[-1][0]
"""Joint rates: up to the first there is evidence, above the second there is none."""

SURVIVING = 0.15
"""Evidence survives a small re-encoding if the joint rate after it is at most this.

Evidence rests on the image as found; that some of its pattern must survive only makes it rarer. A
stricter limit flips fewer verdicts and finds fewer images: see docs/experiments.md.
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
        One of `LEVELS`, see `level_of`; ``"no evidence"``; ``"fragile"`` where a pattern is there
        that a small re-encoding takes away; ``"inconclusive"`` where this image cannot be judged,
        for the `reasons`; ``"uncalibrated"`` where the detector has no scores of real photos to
        compare with.
    generator
        The generator whose pattern is matched best, that is with the lowest rate of its own; None
        where there is no evidence, and where it is not clear which one it is
        (`unknown_generator`). `cautions` names others that match nearly as well (`NEAR`).
    false_positive_rate
        Joint over all generators: the share of real photos, the image itself counted as one,
        that resemble some generator at least as much. In (0, 1]; None if uncalibrated. Where the
        pattern does not survive a small re-encoding, the largest rate after one of them.
    sample_size
        How many real photos, or copies of them (`kind`), that was measured on.
    text
        The verdict in words: `headline` and `explanation`.
    headline
        The level, and whose pattern it is, without a full stop.
    explanation
        How rare that is among real photos, in a sentence or two.
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
        Which photos the rate was measured on, by what they show, with numbers; ``"all"`` for all.
    kind
        The same as a person would say it: ``"photos saved as JPEG of high quality"``.
    sources
        How many sources they are of.
    reasons
        Why the verdict is inconclusive; else empty.
    number_of_false_alarms
        The a-contrario reading: how many of the generators a photo is expected to match as well.
    stability
        The joint rate after each small re-encoding that was tried; None if none was.
    as_found
        The joint rate of the image itself, where `false_positive_rate` is that after a re-encoding.
    likelihood_ratio
        Of the rate, if it was asked for; None where the level is inconclusive or fragile, or the
        rate was measured on photos of one's own.
    population
        Whose photos the rate was measured on, where the detector has several sets of them.
    """

    level: Level
    generator: str | None
    false_positive_rate: float | None
    sample_size: int
    text: str = ""
    headline: str = ""
    explanation: str = ""
    cautions: tuple[str, ...] = ()
    unknown_generator: bool = False
    clarity: float | None = None
    interval: Interval | None = None
    stratum: str = "all"
    kind: str = "photos"
    sources: int = 0
    reasons: tuple[Reason, ...] = ()
    number_of_false_alarms: float | None = None
    stability: Mapping[str, float] | None = None
    likelihood_ratio: LikelihoodRatio | None = None
    population: str = ""
    as_found: float | None = None

    @property
    def rate_as_found(self) -> float | None:
        """The joint rate of the image itself, whatever `false_positive_rate` is of."""
        return self.false_positive_rate if self.as_found is None else self.as_found


def level_of(rate: float, interval: Interval | None = None) -> Level:
    """Find the word for a rate.

    Parameters
    ----------
    rate
        Joint false-positive rate, in (0, 1].
    interval
        Where it lies with a confidence of 95 %; None if that is not known.

    Returns
    -------
    Level
        The strongest of `LEVELS` whose limit the rate does not exceed, nor the upper end of the
        interval `MARGIN` times the limit; else ``"no evidence"``.
    """
    for limit, level in LEVELS:
        if rate <= limit and (interval is None or interval.high <= MARGIN * limit):
            return level
    return "no evidence"


def lost_after(joint: float, after: Mapping[str, float]) -> str | None:
    """Name the small re-encoding after which the pattern is all but gone, the worst one.

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
    worst = _worst(after)
    if worst is None or joint > EVIDENCE or after[worst] <= SURVIVING:
        return None
    return worst


def _worst(after: Mapping[str, float]) -> str | None:
    return max(after, key=lambda name: after[name], default=None)


def decide(
    generators: Sequence[str],
    similarities: Sequence[float],
    rates: Rates | None,
    *,
    after: Mapping[str, Rates] | None = None,
    reasons: Sequence[Reason] = (),
    cautions: Sequence[str] = (),
    clarity: float | None = None,
    ratios: LikelihoodRatios | None = None,
) -> Verdict:
    """Turn the rates of one image into a verdict.

    Parameters
    ----------
    generators
        Names, one a generator.
    similarities
        One a generator: breaks ties between equal rates, and serves where there are no rates.
    rates
        Of the image; None if the detector is not calibrated.
    after
        Rates after each small re-encoding that was tried, by its name. Where evidence is lost
        (`lost_after`), the verdict's rate, interval and photos are those after it.
    reasons
        What makes evidence inconclusive, and where they hide a pattern its absence, too.
    cautions
        Sentences that are passed on.
    clarity
        See `masksim.attribution.Attribution`; None where the detector has no scores of the
        generators' own images.
    ratios
        To give the verdict a likelihood ratio.

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
    if rates is None:
        best = max(range(len(generators)), key=lambda g: similarities[g])
        return _worded(Verdict("uncalibrated", generators[best], None, 0, cautions=tuple(cautions)))
    if len(rates.own) != len(generators):
        raise UsageError("a verdict needs one rate for each generator")
    stability = {name: found.joint for name, found in (after or {}).items()}
    # An image whose interval is too wide for any evidence has none to lose.
    level = level_of(rates.joint, rates.interval)
    lost = None if level == "no evidence" else lost_after(rates.joint, stability)
    shown = rates if lost is None or after is None else after[lost]
    if lost is not None:
        level = "fragile"
    against = tuple(r for r in reasons if r.hides or level != "no evidence")
    if against:
        level = "inconclusive"
    found = Verdict(
        level,
        None,
        shown.joint,
        shown.photos,
        cautions=tuple(cautions),
        interval=shown.interval,
        stratum=shown.stratum,
        kind=shown.kind,
        sources=shown.sources,
        reasons=against,
        number_of_false_alarms=float(number_of_false_alarms(shown.own)),
        stability=stability or None,
        population=shown.population,
        as_found=None if lost is None else rates.joint,
    )
    judged = level not in ("inconclusive", "fragile")
    if ratios is not None and judged and shown.population in ("", ratios.population):
        ratio = ratios.at(shown.joint)
        found = replace(found, likelihood_ratio=replace(ratio, words=ratio_words(ratio.value)))
    if level in ("inconclusive", "fragile", "no evidence"):
        return _worded(found)
    worst = _worst(stability)
    if worst is not None and stability[worst] > NONE:
        note = (
            f"Little of the pattern is left after {worst}: {_percent(stability[worst])} of photos "
            "match as well then. Re-encoded copies of this image may show no evidence."
        )
        found = replace(found, cautions=(*found.cautions, note))
    return _worded(_attributed(found, generators, rates.own.tolist(), similarities, clarity))


def telling(level: str, rates: Sequence[float | None]) -> int:
    """Of how many generators it is worth seeing what counted.

    Parameters
    ----------
    level
        Of the verdict.
    rates
        Each generator's own, the most telling first.

    Returns
    -------
    int
        With evidence the best one and those near it, at most three; 0 where the image cannot be
        judged, else 1.
    """
    if level == "inconclusive" or not rates:
        return 0
    best = rates[0]
    if best is None or level in ("no evidence", "uncalibrated"):
        return 1
    near = [rate for rate in rates if rate is not None and rate <= min(NEAR * best, NONE)]
    return min(max(len(near), 1), 3)


def _listed(names: Sequence[str]) -> str:
    """Write names one after the other, of many the first few and how many more."""
    if len(names) <= _NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} others"


def _attributed(
    verdict: Verdict,
    generators: Sequence[str],
    own: Sequence[float],
    similarities: Sequence[float],
    clarity: float | None,
) -> Verdict:
    """Say which generator it is, or that this is not clear."""
    ranked = most_telling(np.asarray(own), np.asarray(similarities)).tolist()
    best = ranked[0]
    limit = min(NEAR * own[best], NONE)
    near = [generators[g] for g in ranked[1:] if own[g] <= limit]
    unknown = clarity is not None and clarity <= UNCLEAR
    caution = ""
    if unknown:
        names = _listed((generators[best], *near))
        caution = f"It comes nearest to {names}; it may also be another generator's."
    elif near:
        match = "matches" if len(near) == 1 else "match"
        caution = f"Which generator is uncertain: {_listed(near)} {match} nearly as well."
    return replace(
        verdict,
        generator=None if unknown else generators[best],
        unknown_generator=unknown,
        clarity=clarity,
        cautions=(*verdict.cautions, caution) if caution else verdict.cautions,
    )


# --- words --------------------------------------------------------------------------------------


def _worded(verdict: Verdict) -> Verdict:
    said = words(asdict(verdict))
    return replace(
        verdict, headline=said["headline"], explanation=said["explanation"], text=said["text"]
    )


def words(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Write what a verdict says.

    Parameters
    ----------
    verdict
        Its fields as plain values, as in JSON; those that are written here are not read.

    Returns
    -------
    dict
        ``headline``, ``explanation`` and ``text``, see `Verdict`.
    """
    headline, explanation = _headline(verdict), _explanation(verdict)
    text = f"{headline}. {explanation}"
    return {"headline": headline, "explanation": explanation, "text": text}


def _headline(verdict: Mapping[str, Any]) -> str:
    level = str(verdict["level"])
    if level == "uncalibrated":
        return "Not calibrated: how rare this is among real photos is not known"
    if level == "inconclusive":
        return "Inconclusive: this image cannot be judged"
    if level == "fragile":
        return "Fragile: a generator's pattern is there, but does not survive a small re-encoding"
    if level == "no evidence":
        return "No evidence of a known generator's pattern"
    if verdict["unknown_generator"]:
        return (
            f"{level.capitalize()} of a generator's pattern, but not clearly of one that this "
            "detector knows"
        )
    return f"{level.capitalize()} of {verdict['generator']}'s pattern"


def _explanation(verdict: Mapping[str, Any]) -> str:
    level = verdict["level"]
    if level == "uncalibrated":
        return (
            f"The image is most like those of {verdict['generator']}, but this detector has no "
            "scores of real photos to compare with."
        )
    share = _share(verdict)
    if level == "inconclusive":
        why = "; ".join(reason["text"] for reason in verdict["reasons"])
        return f"{_capital(why)}. {_capital(share)}, but that says nothing here."
    found = [_capital(share)]
    if verdict["as_found"] is not None:
        as_found = _percent(verdict["as_found"])
        found = [f"After {_worst(verdict['stability'])}, {share}; as found, {as_found}"]
    interval = _interval(verdict)
    alone = level_of(verdict["false_positive_rate"])
    if interval is not None and alone != level_of(verdict["false_positive_rate"], interval):
        limit = MARGIN * next(limit for limit, level in LEVELS if level == alone)
        found.append(f"This is not {alone}, because the interval reaches above {_percent(limit)}")
    if level == "no evidence":
        found.append("That does not show that the image is a photo")
    return ". ".join((*found, ""))[:-1]


def _interval(verdict: Mapping[str, Any]) -> Interval | None:
    found = verdict["interval"]
    return None if found is None else Interval(found["low"], found["high"])


def _share(verdict: Mapping[str, Any]) -> str:
    """Say how many photos match as well, without a full stop."""
    rate, n = verdict["false_positive_rate"], verdict["sample_size"]
    kind = verdict["kind"].replace("photos", "real photos", 1)
    # That none did is what was seen; how many may is for the interval to say.
    none = rate <= 1.0 / (n + 1.0)
    who = f"{'none' if none else format_rate(rate, n)} of {n} {kind}"
    details = [f"calibration {verdict['population']}"] if verdict["population"] else []
    if (interval := _interval(verdict)) is not None:
        details.append(format_interval(interval))
    within = f" ({'; '.join(details)})" if details else ""
    verb = "matches" if none else "match"
    return f"{who} {verb} some generator's pattern at least as well{within}"


def ratio_words(value: float) -> str:
    """Put a likelihood ratio in a sentence, without a verdict of its own: that has one scale."""
    times = max(value, 1 / value)
    if times < 1.05:
        return "such a rate is as common among known generators' images as among photos"
    more, less = "known generators' images", "photos"
    if value < 1:
        more, less = less, more
    written = f"{times:.2g}" if times < 100 else f"{times:,.0f}"
    return f"such a rate is {written} times as common among {more} as among {less}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def format_interval(interval: Interval) -> str:
    """Write an interval in per cent; its upper end is never 0."""
    low = "0" if interval.low < 1e-4 else _percent(interval.low).removesuffix(" %")
    return f"95 % interval {low} to {_percent(max(interval.high, 1e-4))}"


def format_rate(rate: float, sample_size: int | None = None) -> str:
    """Write a rate as a percentage with the digits that its sample supports, never 0.

    Where the sample is not known, the rate as it is.
    """
    if sample_size is not None and rate <= 1.0 / (sample_size + 1.0):
        return f"at most {_percent(1.0 / (sample_size + 1.0))}"
    return _percent(rate) if rate < 0.995 else "nearly all (100 %)"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"

"""`masksim.verdict`: the levels at their edges, and words that promise no more than they know."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from masksim.calibration import Rates
from masksim.errors import UsageError
from masksim.intervals import Interval
from masksim.likelihood import LikelihoodRatios
from masksim.verdict import (
    LEVELS,
    MARGIN,
    NONE,
    Reason,
    Verdict,
    decide,
    format_rate,
    level_of,
    lost_after,
    ratio_words,
    telling,
    words,
)

NAMES = ("alpha", "beta", "gamma")


def rates_of(joint: float, n: int = 999, own: Any = None, **changes: Any) -> Rates:
    own = np.array([0.5, joint, 0.9] if own is None else own)
    values: dict[str, Any] = {
        "own": own,
        "joint": joint,
        "interval": Interval(joint / 2, joint),
        "photos": n,
        "sources": 31,
        "own_photos": np.full(len(own), n),
        "stratum": "all",
    }
    return Rates(**{**values, **changes})


def verdict(joint: float | None, n: int = 999, own: Any = None, **changes: Any) -> Verdict:
    of_rates = {k: changes.pop(k) for k in list(changes) if k in Rates.__dataclass_fields__}
    rates = None if joint is None else rates_of(joint, n, own, **of_rates)
    return decide(NAMES, changes.pop("similarities", [0.1, 0.3, 0.2]), rates, **changes)


def test_levels_are_ordered() -> None:
    assert all(a < b for (a, _), (b, _) in pairwise(LEVELS))
    assert len({level for _, level in LEVELS}) == len(LEVELS)


@pytest.mark.parametrize(
    ("joint", "level"),
    [
        (1e-6, "strong evidence"),
        (0.01, "strong evidence"),
        (np.nextafter(0.01, 1), "evidence"),
        (0.05, "evidence"),
        (np.nextafter(0.05, 1), "weak evidence"),
        (0.1, "weak evidence"),
        (np.nextafter(0.1, 1), "no evidence"),
        (1.0, "no evidence"),
    ],
)
def test_edges(joint: float, level: str) -> None:
    found = verdict(joint)
    assert found.level == level
    assert found.false_positive_rate == joint
    assert found.sample_size == 999
    assert found.text == f"{found.headline}. {found.explanation}"
    if level == "no evidence":
        assert found.generator is None
        assert found.headline == "No evidence of a known generator's pattern"
        assert "does not show that the image is a photo" in found.explanation
    else:
        assert found.generator == "beta"
        assert found.headline == f"{level.capitalize()} of beta's pattern"
    assert "of 999 real photos match" in found.explanation


@pytest.mark.parametrize(
    ("rate", "high", "level"),
    [
        (0.001, 0.02, "strong evidence"),
        (0.001, np.nextafter(0.02, 1), "evidence"),
        (0.01, 0.039, "evidence"),
        (0.001, np.nextafter(0.1, 1), "weak evidence"),
        (0.05, 0.1, "evidence"),
        (0.05, 0.11, "weak evidence"),
        (0.05, np.nextafter(0.2, 1), "no evidence"),
        (0.1, 0.2, "weak evidence"),
    ],
)
def test_the_upper_end_of_the_interval_limits_the_word(
    rate: float, high: float, level: str
) -> None:
    assert MARGIN == 2
    found = verdict(rate, interval=Interval(0.0, high))
    assert (level_of(rate, Interval(0.0, high)), found.level) == (level, level)
    # Where the interval takes a word away, it says so.
    alone = level_of(rate)
    assert (f"This is not {alone}, because the interval" in found.explanation) is (alone != level)
    assert level_of(rate) == level_of(rate, Interval(0.0, rate))


def test_a_sentence_says_no_more_than_its_interval() -> None:
    none = verdict(1 / 1000, interval=Interval(0.0, 0.009))
    assert none.explanation == (
        "None of 999 real photos matches some generator's pattern at least as well (95 % interval "
        "0 to 0.9 %)."
    )
    assert "at most" not in none.text
    few = verdict(0.05, 19, interval=Interval(0.0, 0.176))
    assert few.level == "weak evidence"
    assert few.explanation.endswith(
        "(95 % interval 0 to 18 %). This is not evidence, because the interval reaches above 10 %."
    )


def test_fragile_and_inconclusive_are_two_answers() -> None:
    lost = verdict(0.002, after={"WebP of quality 80": rates_of(0.4)})
    dark = verdict(0.002, reasons=[Reason("too_dark", "the image is nearly black", hides=True)])
    assert lost.headline == (
        "Fragile: a generator's pattern is there, but does not survive a small re-encoding"
    )
    assert dark.headline == "Inconclusive: this image cannot be judged"
    assert dark.explanation == (
        "The image is nearly black. 0.2 % of 999 real photos match some generator's pattern at "
        "least as well (95 % interval 0.1 to 0.2 %), but that says nothing here."
    )


def test_the_words_follow_from_the_numbers_alone() -> None:
    after = {"WebP of quality 80": rates_of(0.4), "a reduction by 2 %": rates_of(0.01)}
    dark = [Reason("too_dark", "the image is nearly black", hides=True)]
    for found in (
        verdict(None),
        verdict(0.002),
        verdict(0.6),
        verdict(0.002, clarity=0.1),
        verdict(0.002, after=after),
        verdict(0.002, reasons=dark, after=after),
    ):
        plain = json.loads(json.dumps(asdict(found)))
        written = {key: plain[key] for key in ("headline", "explanation", "text")}
        assert words({**plain, **dict.fromkeys(written)}) == written
        assert all(written.values())


def test_a_likelihood_ratio_has_no_scale_of_its_own() -> None:
    assert ratio_words(17.2) == (
        "such a rate is 17 times as common among known generators' images as among photos"
    )
    assert ratio_words(0.2) == (
        "such a rate is 5 times as common among photos as among known generators' images"
    )
    assert "as common among known generators' images as among photos" in ratio_words(1.0)
    for value in (1e-3, 0.5, 0.97, 2.0, 50.0, 1e5):
        text = ratio_words(value)
        assert not re.search("support|strong|weak|moderate", text)
        assert "e+" not in text
    rng = np.random.default_rng(0)
    ratios = LikelihoodRatios(
        rng.uniform(0.001, 0.1, 200), np.ones(200), np.linspace(0.001, 1, 1000)
    )
    found = verdict(0.02, ratios=ratios).likelihood_ratio
    assert found is not None
    assert (found.value, found.words) == (ratios.at(0.02).value, ratio_words(found.value))
    # Neither of the answers that are no level has one.
    assert verdict(0.02, ratios=ratios, after={"x": rates_of(0.5)}).likelihood_ratio is None
    dark = [Reason("too_dark", "it is dark", hides=True)]
    assert verdict(0.02, ratios=ratios, reasons=dark).likelihood_ratio is None
    assert verdict(0.02).likelihood_ratio is None
    # Ratios are of one set of photos: a rate among others has none.
    ratios.population = "built-in"
    assert verdict(0.02, population="mine", ratios=ratios).likelihood_ratio is None
    assert verdict(0.02, population="built-in", ratios=ratios).likelihood_ratio is not None


@pytest.mark.parametrize(
    ("level", "rates", "count"),
    [
        ("inconclusive", [0.001, 0.001], 0),
        ("no evidence", [0.02, 0.02], 1),
        ("uncalibrated", [None, None], 1),
        ("evidence", [0.01, 0.03, 0.031], 2),
        ("fragile", [0.01, 0.01, 0.01, 0.01], 3),
        ("weak evidence", [0.09, 0.1, 0.11], 2),
        ("weak evidence", [0.2, 0.3], 1),
        ("evidence", [], 0),
    ],
)
def test_for_so_many_generators_it_is_worth_seeing_what_counted(
    level: str, rates: list[float | None], count: int
) -> None:
    assert telling(level, rates) == count


def test_a_rate_of_one_in_many_is_not_written_as_none() -> None:
    assert "0 to 0.01 %" in verdict(1e-6, interval=Interval(0.0, 1e-7)).text


@pytest.mark.parametrize("n", [99, 999, 1999])
def test_the_edges_can_be_reached_by_counts(n: int) -> None:
    # Rates are (1 + k) / (n + 1): at exactly 1 %, 5 %, 10 % rounding must not decide.
    for limit, level in LEVELS:
        k = round(limit * (n + 1)) - 1
        assert verdict((1.0 + k) / (n + 1.0), n).level == level


def every_text() -> list[str]:
    texts = []
    for n in (1, 9, 99, 999, 4321, 100_000):
        for k in sorted({0, 1, 2, n // 200, n // 20, n // 10, n // 2, n - 1, n}):
            texts.append(verdict((1 + k) / (n + 1), n).text)
    texts.append(verdict(None).text)
    return texts


def test_words_speak_of_evidence_alone() -> None:
    for text in every_text():
        lower = text.lower()
        for word in ("fake", "probability", "likely", "chance", "certain", "confiden", "genuine"):
            assert word not in lower, text
        assert not re.search(r"(?<![\d.])0(\.0*)? ?%", text), text
        assert "-0" not in text
        assert "e-" not in text, text
        assert text.endswith(".")


def test_rates_are_written_with_the_digits_of_their_sample() -> None:
    assert format_rate(1 / 1000, 999) == "at most 0.1 %"
    assert format_rate(2 / 1000, 999) == "0.2 %"
    assert format_rate(4 / 1000, 999) == "0.4 %"
    assert format_rate(0.0437, 10_000) == "4.4 %"
    assert format_rate(0.5, 1) == "at most 50 %"
    assert format_rate(0.123, 99) == "12 %"
    assert format_rate(0.99, 999) == "99 %"
    assert format_rate(1.0, 999) == "nearly all (100 %)"
    assert format_rate(0.0, 999) == "at most 0.1 %"  # never 0, whatever is asked
    for n in (1, 10, 347, 20_000):
        for rate in (np.arange(1, n + 2) / (n + 1))[:: max(1, n // 300)]:
            text = format_rate(float(rate), n)
            value = float(re.search(r"([\d.]+) %", text).group(1))  # type: ignore[union-attr]
            assert value > 0
            assert value / 100 == pytest.approx(rate, rel=0.06)


def test_the_best_generator_has_the_lowest_rate_then_the_highest_similarity() -> None:
    own = [0.02, 0.004, 0.9]
    assert verdict(0.008, own=own).generator == "beta"
    # The similarity of another generator may be higher: scales differ.
    assert verdict(0.008, own=own, similarities=[9, 0, 9]).generator == "beta"
    tie = verdict(0.008, own=[0.004, 0.004, 0.9])
    assert tie.generator == "beta"  # 0.3 against 0.1
    tie = verdict(0.008, own=[0.004, 0.9, 0.004], similarities=[0.2, 0, 0.2])
    assert tie.generator == "alpha"  # the first of equals


def test_without_calibration_nothing_is_claimed() -> None:
    found = verdict(None)
    assert found.level == "uncalibrated"
    assert found.generator == "beta"
    assert found.false_positive_rate is None
    assert found.sample_size == 0
    assert found.text == (
        "Not calibrated: how rare this is among real photos is not known. The image is most like "
        "those of beta, but this detector has no scores of real photos to compare with."
    )


@pytest.mark.parametrize("joint", [0.001, 0.7, None])
def test_cautions_are_passed_on(joint: float | None) -> None:
    assert verdict(joint).cautions == ()
    assert verdict(joint, cautions=["One.", "Two."]).cautions == ("One.", "Two.")


def test_one_generator() -> None:
    found = decide(["only"], [0.5], rates_of(0.01, 99, [0.01]))
    assert (found.level, found.generator) == ("strong evidence", "only")
    assert "None of 99 real photos matches" in found.text


def test_lengths_must_agree() -> None:
    with pytest.raises(UsageError, match="at least one generator"):
        decide([], [], rates_of(0.5))
    with pytest.raises(UsageError, match="one similarity for each"):
        verdict(0.5, similarities=[0.1])
    with pytest.raises(UsageError, match="one rate for each"):
        verdict(0.5, own=[0.5, 0.5])


def test_generators_that_match_nearly_as_well_are_named() -> None:
    near = verdict(0.01, own=[0.004, 0.012, 0.013])
    assert near.generator == "alpha"
    assert near.cautions == ("Which generator is uncertain: beta matches nearly as well.",)
    assert verdict(0.01, own=[0.004, 0.2, 0.3]).cautions == ()
    # Of many the first three: a longer list tells nobody more.
    seven = decide(
        "abcdefg", [0.1] * 7, rates_of(0.01, own=[0.001, *[0.002] * 3, 0.003, 0.003, 0.9])
    )
    (caution,) = seven.cautions
    assert caution == "Which generator is uncertain: b, c, d and 2 others match nearly as well."
    # Rates near each other, but not rare in themselves, are no rivals.
    assert verdict(0.10, own=[0.08, 0.11, 0.12]).cautions == ()


# --- reasons -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("joint", "after", "lost"),
    [
        (0.05, 0.15, False),
        (0.05, np.nextafter(0.15, 1), True),
        (0.001, 0.3, True),
        (0.001, 0.001, False),
        # Without evidence there is none to lose; what comes up after a re-encoding is none, either.
        (0.06, 0.9, False),
        (np.nextafter(0.1, 1), 0.001, False),
    ],
)
def test_evidence_must_survive_small_reencodings(joint: float, after: float, lost: bool) -> None:
    found = lost_after(joint, {"a": joint, "b": after, "c": joint})
    assert found == ("b" if lost else None)
    assert lost_after(joint, {}) is None


def test_what_is_no_evidence_as_found_is_not_fragile() -> None:
    """Of a few photos an interval reaches too far for any word."""
    wide = Interval(0.001, 0.25)
    found = verdict(0.04, 30, interval=wide, after={"JPEG of quality 75": rates_of(0.5)})
    assert (found.level, found.false_positive_rate, found.as_found) == ("no evidence", 0.04, None)


def test_of_several_losses_the_worst_counts() -> None:
    assert lost_after(0.01, {"a": 0.2, "b": 0.6, "c": 0.3}) == "b"


@pytest.mark.parametrize("survived", [0.08, 0.15])
def test_evidence_that_lasts_has_the_rate_as_found(survived: float) -> None:
    after = {"JPEG of quality 75": rates_of(0.01), "WebP of quality 80": rates_of(survived)}
    found = verdict(0.002, after=after)
    assert (found.level, found.false_positive_rate) == ("strong evidence", 0.002)
    assert (found.as_found, found.generator) == (None, "beta")
    assert found.rate_as_found == found.false_positive_rate
    assert found.stability == {"JPEG of quality 75": 0.01, "WebP of quality 80": survived}
    warned = "Little of the pattern is left after WebP of quality 80: 15 % of photos match as well"
    assert [warned in caution for caution in found.cautions] == [True] * (survived > NONE)


@pytest.mark.parametrize("survived", [0.16, 0.6])
def test_fragile_evidence_has_the_rate_that_survives(survived: float) -> None:
    after = {
        "JPEG of quality 75": rates_of(0.01),
        "WebP of quality 80": rates_of(survived, 500, stratum="noisy", kind="photos with noise"),
    }
    found = verdict(0.002, after=after)
    assert (found.level, found.false_positive_rate) == ("fragile", survived)
    assert (found.as_found, found.rate_as_found, found.generator) == (0.002, 0.002, None)
    assert (found.sample_size, found.stratum, found.kind) == (500, "noisy", "photos with noise")
    assert found.stability == {"JPEG of quality 75": 0.01, "WebP of quality 80": survived}
    assert found.explanation.startswith(
        f"After WebP of quality 80, {100 * survived:g} % of 500 real photos with noise match "
    )
    assert "; as found, 0.2 %." in found.explanation
    assert found.cautions == ()
    hidden = Reason("too_dark", "it is dark", hides=True)
    assert verdict(0.002, after=after, reasons=[hidden]).level == "inconclusive"


def test_reasons_take_the_place_of_evidence_and_some_of_its_absence() -> None:
    shown, hidden = Reason("flat", "it is flat"), Reason("too_dark", "it is dark", hides=True)
    for joint in (0.001, 0.04, 0.1):
        found = verdict(joint, reasons=[shown])
        assert (found.level, found.generator, found.reasons) == ("inconclusive", None, (shown,))
        assert found.explanation.startswith("It is flat. ")
    assert verdict(0.5, reasons=[shown]).level == "no evidence"
    assert verdict(0.5, reasons=[shown]).reasons == ()
    both = verdict(0.5, reasons=[shown, hidden])
    assert (both.level, both.reasons) == ("inconclusive", (hidden,))
    assert verdict(0.001, reasons=[shown, hidden]).explanation.startswith("It is flat; it is dark.")
    assert verdict(None, reasons=[hidden]).level == "uncalibrated"


def test_a_verdict_says_what_it_was_measured_on() -> None:
    found = verdict(
        0.02, interval=Interval(0.008, 0.996), stratum="energy below 1", population="desk",
        kind="large photos with little noise",
    )  # fmt: skip
    assert found.explanation.startswith(
        "2 % of 999 large real photos with little noise match some generator's pattern at least as "
        "well (calibration desk; 95 % interval 0.8 to 100 %)."
    )
    # Numbers of the kind are for the details.
    assert "energy" not in found.text
    assert (found.sources, found.population, found.stratum) == (31, "desk", "energy below 1")
    tiny = verdict(0.02, interval=Interval(1.6e-7, 0.05))
    assert "(95 % interval 0 to 5 %)" in tiny.text
    assert found.number_of_false_alarms == pytest.approx(3 * 0.02)

"""`masksim.verdict`: the levels at their edges, and words that promise no more than they know."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from masksim.errors import UsageError
from masksim.intervals import Interval
from masksim.verdict import LEVELS, Reason, Verdict, decide, format_rate, lost_after

NAMES = ("alpha", "beta", "gamma")


def verdict(joint: float | None, n: int = 999, **changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "false_positive_rates": None if joint is None else [0.5, joint, 0.9],
        "similarities": [0.1, 0.3, 0.2],
    }
    return decide(NAMES, joint=joint, sample_size=n, **{**values, **changes})


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
    if level == "no evidence":
        assert found.generator is None
        assert found.text.startswith("No evidence of a known generator's spectral pattern; ")
        assert "does not show that the image is a photo" in found.text
    else:
        assert found.generator == "beta"
        assert found.text.startswith(f"{level.capitalize()} of beta's spectral pattern; ")
    assert "of 999 real photos score at least this high" in found.text


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
    rates = [0.02, 0.004, 0.9]
    assert verdict(0.008, false_positive_rates=rates).generator == "beta"
    # The similarity of another generator may be higher: scales differ.
    assert verdict(0.008, false_positive_rates=rates, similarities=[9, 0, 9]).generator == "beta"
    tie = verdict(0.008, false_positive_rates=[0.004, 0.004, 0.9])
    assert tie.generator == "beta"  # 0.3 against 0.1
    tie = verdict(0.008, false_positive_rates=[0.004, 0.9, 0.004], similarities=[0.2, 0, 0.2])
    assert tie.generator == "alpha"  # the first of equals


def test_without_calibration_nothing_is_claimed() -> None:
    for found in (
        verdict(None),
        verdict(0.01, false_positive_rates=None),
        verdict(None, false_positive_rates=[0.1, 0.2, 0.3]),
    ):
        assert found.level == "uncalibrated"
        assert found.generator == "beta"
        assert found.false_positive_rate is None
        assert found.sample_size == 0
        assert "Most like beta (similarity 0.300)" in found.text
        assert "nothing can be said about how rare" in found.text
        assert "%" not in found.text


@pytest.mark.parametrize("joint", [0.001, 0.7, None])
def test_cautions_are_passed_on(joint: float | None) -> None:
    assert verdict(joint).cautions == ()
    assert verdict(joint, cautions=["One.", "Two."]).cautions == ("One.", "Two.")


def test_one_generator() -> None:
    found = decide(["only"], [0.01], 0.01, 99, similarities=[0.5])
    assert (found.level, found.generator) == ("strong evidence", "only")
    assert "at most 1 % of 99 real photos" in found.text


def test_lengths_must_agree() -> None:
    with pytest.raises(UsageError, match="at least one generator"):
        decide([], [], 0.5, 9, similarities=[])
    with pytest.raises(UsageError, match="one similarity for each"):
        verdict(0.5, similarities=[0.1])
    with pytest.raises(UsageError, match="one rate for each"):
        verdict(0.5, false_positive_rates=[0.5, 0.5])


def test_generators_that_match_nearly_as_well_are_named() -> None:
    names = ("a", "b", "c")
    near = decide(names, [0.004, 0.012, 0.013], 0.01, 999, similarities=[0.3, 0.2, 0.1])
    assert near.generator == "a"
    assert near.cautions == ("Which generator is uncertain: b matches nearly as well.",)
    alone = decide(names, [0.004, 0.2, 0.3], 0.01, 999, similarities=[0.3, 0.2, 0.1])
    assert alone.cautions == ()
    # Rates near each other, but not rare in themselves, are no rivals.
    common = decide(names, [0.08, 0.11, 0.12], 0.10, 999, similarities=[0.3, 0.2, 0.1])
    assert common.cautions == ()


# --- reasons -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("joint", "after", "lost"),
    [
        (0.05, 0.07, False),
        (0.05, np.nextafter(0.07, 1), True),
        (0.001, 0.2, True),
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


def test_of_several_losses_the_worst_counts() -> None:
    assert lost_after(0.01, {"a": 0.2, "b": 0.6, "c": 0.3}) == "b"


@pytest.mark.parametrize(
    ("survived", "level"), [(0.08, "weak evidence"), (0.1, "weak evidence"), (0.3, "fragile")]
)
def test_fragile_evidence_has_the_rate_that_survives(survived: float, level: str) -> None:
    found = verdict(survived, as_found=0.002, lost="WebP of quality 80")
    assert (found.level, found.false_positive_rate, found.as_found) == (level, survived, 0.002)
    assert "0.2 % of real photos" in found.cautions[0]
    assert "after WebP of quality 80" in found.cautions[0]
    assert ("does not survive WebP of quality 80" in found.text) is (level == "fragile")
    assert found.generator is (None if level == "fragile" else found.generator)
    hidden = Reason("too_dark", "it is dark", hides=True)
    assert verdict(survived, as_found=0.002, reasons=[hidden]).level == "inconclusive"


def test_reasons_take_the_place_of_evidence_and_some_of_its_absence() -> None:
    shown, hidden = Reason("flat", "it is flat"), Reason("too_dark", "it is dark", hides=True)
    for joint in (0.001, 0.04, 0.1):
        found = verdict(joint, reasons=[shown])
        assert (found.level, found.generator, found.reasons) == ("inconclusive", None, (shown,))
        assert found.text.startswith("Inconclusive: it is flat. By itself ")
    assert verdict(0.5, reasons=[shown]).level == "no evidence"
    assert verdict(0.5, reasons=[shown]).reasons == ()
    both = verdict(0.5, reasons=[shown, hidden])
    assert (both.level, both.reasons) == ("inconclusive", (hidden,))
    assert verdict(0.001, reasons=[shown, hidden]).text.startswith(
        "Inconclusive: it is flat; it is dark."
    )
    assert verdict(None, reasons=[hidden]).level == "uncalibrated"


def test_a_verdict_says_what_it_was_measured_on() -> None:
    found = verdict(
        0.02, interval=Interval(0.008, 0.996), stratum="energy below 1", sources=31,
        population="desk",
    )  # fmt: skip
    kind = "of its kind (desk; energy below 1; 95 % interval 0.8 to 100 %)"
    assert f"2 % of 999 real photos {kind} score" in found.text
    assert (found.sources, found.population) == (31, "desk")
    tiny = verdict(0.02, interval=Interval(1.6e-7, 0.05))
    assert "(95 % interval 0 to 5 %)" in tiny.text
    assert found.number_of_false_alarms == pytest.approx(3 * 0.02)

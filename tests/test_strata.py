"""`masksim.strata` and the rates within them: what they promise, by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from masksim.calibration import Calibration, joint_false_positive_rate, number_of_false_alarms
from masksim.errors import ModelError
from masksim.strata import Strata
from masksim.traits import TRAITS

ENERGY, SIDE = TRAITS.index("energy"), TRAITS.index("side")
BANDS = (("energy", (0.0, 1.0)), ("side", (700.0,)))


def traits(n: int, **values: Any) -> NDArray[np.float64]:
    out = np.full((n, len(TRAITS)), np.nan)
    for name, value in values.items():
        out[:, TRAITS.index(name)] = value
    return out


@pytest.mark.slow
@pytest.mark.parametrize("generators", [1, 7, 50])
@pytest.mark.parametrize("kind", ["independent", "one family", "heavy tails"])
def test_rates_of_exchangeable_photos_are_uniform_and_the_joint_error_holds(
    generators: int, kind: str
) -> None:
    """A new calibration each time, so that what is tested is the promise, not one draw of it."""
    rng = np.random.default_rng([generators, len(kind)])
    n, rounds = 299, 600
    own, joint = [], []
    for _ in range(rounds):
        scores = rng.standard_normal((n + 1, generators))
        if kind == "one family":
            scores = rng.standard_normal((n + 1, 1)) + 0.3 * scores
        elif kind == "heavy tails":
            scores = rng.standard_cauchy((n + 1, 1)) * rng.choice([-1, 1], generators) + scores
        rates, together = Calibration(scores[:n]).all_rates(scores[n:])
        own.append(rates[0, 0])
        joint.append(together[0])
    assert stats.kstest(own, "uniform").pvalue > 0.005
    assert stats.kstest(joint, "uniform").pvalue > 0.005
    for limit in (0.01, 0.05, 0.1):
        alarms = int((np.array(joint) <= limit).sum())
        assert stats.binomtest(alarms, rounds, limit, alternative="greater").pvalue > 0.005
        # Held, but not by never giving an alarm.
        assert stats.binomtest(alarms, rounds, limit, alternative="less").pvalue > 0.005


def test_the_a_contrario_reading_bounds_the_joint_error() -> None:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((2000, 7))
    new = rng.standard_normal((4000, 7))
    found = Calibration(real)
    rates, joint = found.all_rates(new)
    alarms = number_of_false_alarms(rates)
    np.testing.assert_allclose(alarms, 7 * rates.min(axis=1))
    for limit in (0.02, 0.1):
        assert (alarms <= limit).mean() <= limit * 1.4
    # Both order images alike where one generator stands out.
    assert stats.spearmanr(alarms, joint).statistic > 0.99


@pytest.mark.slow
def test_a_stratum_holds_where_pooled_rates_do_not() -> None:
    rng = np.random.default_rng(1)

    def draw(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        energy = rng.uniform(-1, 2, n)
        return rng.normal(energy[:, None], 1.0, (n, 3)), traits(n, energy=energy)

    scores, shown = draw(6000)
    new, new_shown = draw(6000)
    parted = Calibration(scores, shown, None, Strata((("energy", (0.0, 1.0)),), 300, 20))
    pooled = Calibration(scores)
    noisy = new_shown[:, ENERGY] >= 1
    quiet = new_shown[:, ENERGY] < 0
    together, apart = (c.all_rates(new, new_shown)[1] <= 0.05 for c in (pooled, parted))
    assert together[noisy].mean() > 0.09  # what pooling does
    assert together[quiet].mean() < 0.02
    for some in (noisy, quiet):
        assert apart[some].mean() == pytest.approx(0.05, abs=0.012)


def test_a_part_is_cut_where_all_its_parts_have_enough() -> None:
    energy = np.repeat([-1.0, -1.0, 0.5, 2.0], 20)
    side = np.tile([500.0, 800.0], 40)
    side[:40] = np.repeat([500.0, 800.0], 20)
    scores = np.arange(80.0)[:, None]
    sources = np.tile(np.arange(10), 8)
    found = Calibration(scores, traits(80, energy=energy, side=side), sources, Strata(BANDS, 20, 5))
    small = found.rates(np.array([100.0]), traits(1, energy=-2, side=500)[0])
    assert small.stratum == "energy below 0, shorter side below 700 pixels"
    assert small.kind == "small photos with little noise"
    assert (small.photos, small.sources, small.joint) == (20, 10, 1 / 21)
    # Of the middle band each half would have 10 photos: too few, so that it stays whole.
    middle = found.rates(np.array([100.0]), traits(1, energy=0.5, side=500)[0])
    assert (middle.stratum, middle.photos) == ("energy 0 to 1", 20)
    high = found.rates(np.array([-1.0]), traits(1, energy=1.0, side=500)[0])
    assert (high.stratum, high.joint) == ("energy 1 or more", 1.0)
    assert found.rates(np.array([79.0])).stratum == "all"
    assert [found.rates(np.array([79.0])).kind, middle.kind, high.kind] == [
        "photos", "photos with middling noise", "photos with much noise",
    ]  # fmt: skip
    assert sorted(found.table()) == [
        ("energy 0 to 1", 20, 10),
        ("energy 1 or more", 20, 10),
        ("energy below 0, shorter side 700 pixels or more", 20, 10),
        ("energy below 0, shorter side below 700 pixels", 20, 10),
    ]


def test_a_trait_that_leaves_a_thin_part_is_passed_over() -> None:
    shown = traits(100, energy=np.arange(100.0), side=np.tile([500.0, 800.0], 50))
    strata = Strata((("energy", (10.0,)), ("side", (700.0,))), 30, 1)
    found = Calibration(np.zeros((100, 1)), shown, None, strata)
    assert [words for words, _, _ in found.table()] == [
        "shorter side below 700 pixels",
        "shorter side 700 pixels or more",
    ]
    # Photos of few sources do not make a stratum, either.
    sources = np.where(shown[:, SIDE] < 700, np.arange(100), 0)
    few = Calibration(np.zeros((100, 1)), shown, sources, Strata((("side", (700.0,)),), 30, 5))
    assert few.table() == [("all", 100, 50)]


def test_strata_that_read_alike_are_told_apart() -> None:
    energy = np.repeat([1.0, 1.0001, 1.0002, 1.0003], 10)
    strata = Strata((("energy", (1.0001, 1.0002, 1.0003)),), 10, 1)
    found = Calibration(
        np.repeat(np.arange(4.0), 10)[:, None], traits(40, energy=energy), None, strata
    )
    words = [words for words, _, _ in found.table()]
    assert words[1] == words[2]
    shown = traits(2, energy=np.array([1.0001, 1.0002]))
    scores = np.full((2, 1), 1.5)
    assert found.rates(scores[0], shown[0]).joint == 1 / 11
    assert found.rates(scores[1], shown[1]).joint == 1.0
    np.testing.assert_allclose(found.all_rates(scores, shown)[1], [1 / 11, 1.0])


def test_bands_by_number_hold_as_many_photos_each_within_their_part() -> None:
    rng = np.random.default_rng(0)
    energy = rng.normal(size=900)
    shown = traits(900, energy=energy, sharpness=energy + rng.normal(size=900))
    strata = Strata((("energy", 3), ("sharpness", 2)), 100, 1)
    found = Calibration(rng.normal(size=(900, 2)), shown, None, strata)
    assert [photos for _, photos, _ in found.table()] == [150] * 6


def test_a_thin_band_of_another_kind_does_not_break_the_rate() -> None:
    """What a fall-back to a parent made of other kinds would do: 3 and 8 % at 1 and 5 %."""
    rng = np.random.default_rng(7)

    def draw(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        thin = rng.random(n) < 0.14
        return rng.normal(1.5 * thin[:, None], 1.0, (n, 3)), traits(n, energy=thin.astype(float))

    alarms = {0.01: 0, 0.05: 0, 0.1: 0}
    rounds, tested = 40, 500
    for _ in range(rounds):
        scores, shown = draw(1000)
        new, new_shown = draw(tested)
        found = Calibration(scores, shown, None, Strata((("energy", (0.5,)),), 300, 20))
        joint = found.all_rates(new, new_shown)[1]
        for limit in alarms:
            alarms[limit] += int((joint <= limit).sum())
    for limit, count in alarms.items():
        assert count / (rounds * tested) == pytest.approx(limit, rel=0.2)


def test_photos_ranked_among_other_sources() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(300, 3))
    sources = np.repeat(np.arange(30), 10)
    found = Calibration(scores, None, sources).left_out()
    for k in (0, 57, 299):
        rest = scores[sources != sources[k]]
        assert found[k] == joint_false_positive_rate(scores[k], rest)
    assert stats.kstest(found, "uniform").pvalue > 0.05
    scores[3, 1] = np.nan
    assert np.isnan(Calibration(scores, None, sources).left_out()).nonzero()[0].tolist() == [3]
    assert np.isnan(Calibration(scores, None, np.zeros(300)).left_out()).all()


def test_rates_within_a_stratum_are_those_of_its_photos_alone() -> None:
    rng = np.random.default_rng(3)
    scores, shown = rng.normal(size=(400, 4)), traits(400, energy=rng.normal(size=400), side=900)
    found = Calibration(scores, shown, None, Strata(BANDS, 50, 2))
    new, new_shown = rng.normal(size=(30, 4)), traits(30, energy=rng.normal(size=30), side=900)
    own, joint = found.all_rates(new, new_shown)
    places = np.searchsorted([0.0, 1.0], shown[:, ENERGY], side="right")
    for k in range(30):
        place = np.searchsorted([0.0, 1.0], new_shown[k, ENERGY], side="right")
        one = found.rates(new[k], new_shown[k])
        assert joint[k] == joint_false_positive_rate(new[k], scores[places == place])
        assert one.joint == joint[k]
        np.testing.assert_array_equal(one.own, own[k])
        assert one.interval.low <= one.joint <= one.interval.high + 1 / one.photos


def test_what_is_not_known_lies_in_the_last_band() -> None:
    shown = traits(80, quality=np.repeat([60.0, 75.0, 95.0, np.nan], 20))
    found = Calibration(np.zeros((80, 1)), shown, None, Strata((("quality", (75.0, 90.0)),), 20, 1))
    assert [photos for _, photos, _ in found.table()] == [20, 20, 40]
    asked = found.rates(np.zeros(1), traits(1)[0])
    assert asked.stratum == "quality 90 or more"
    # A trait that no photo has cannot part them.
    none = Calibration(np.zeros((80, 1)), traits(80), None, Strata((("quality", 2),), 20, 1))
    assert none.table() == [("all", 80, 80)]


def test_strata_come_back_from_plain_values() -> None:
    strata = Strata(BANDS, 30, 3)
    assert Strata.from_dict(strata.to_dict()) == strata
    wrong: dict[str, Any]
    for wrong in (
        {"bands": []},
        {"bands": [["energy"]], "photos": 3, "sources": 2},
        {"bands": [["energy", ["x"]]], "photos": 3, "sources": 2},
        {"bands": [["energy", [10**400]]], "photos": 3, "sources": 2},
        {"bands": [["energy", 1]], "photos": 3, "sources": 2},
        {"bands": [["energy", 10**9]], "photos": 3, "sources": 2},
        {"bands": [["energy", [float("nan")]]], "photos": 3, "sources": 2},
        {"bands": [["mood", [1]]], "photos": 3, "sources": 2},
        {"bands": [["energy", [2, 1]]], "photos": 3, "sources": 2},
        {"bands": [["energy", [1]]], "photos": 3.5, "sources": 2},
        {"bands": [["energy", [1]]], "photos": 0, "sources": 2},
        {"bands": [["energy", [1]]], "photos": 3, "sources": 2, "more": 1},
    ):
        with pytest.raises(ModelError):
            Strata.from_dict(wrong)


def test_shapes_must_agree() -> None:
    with pytest.raises(ModelError, match="traits of shape"):
        Calibration(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(ModelError, match="sources of"):
        Calibration(np.zeros((5, 2)), None, np.zeros(4))
    with pytest.raises(ModelError):
        Calibration(np.zeros((0, 2)))


def test_limits_leave_one_source_in_twenty_out() -> None:
    # Source k shows k to k + 0.9.
    shown = traits(300, energy=np.arange(30).repeat(10) + np.tile(np.arange(10) / 10, 30))
    sources = np.repeat(np.arange(30), 10)
    found = Calibration(np.zeros((300, 1)), shown, sources)
    assert found.limits("energy") == (1.0, 28.9)  # two of thirty
    assert found.limits("side") == (-np.inf, np.inf)
    five = Calibration(np.zeros((50, 1)), shown[:50], sources[:50])
    assert five.limits("energy") == (0.0, 4.9)
    two = Calibration(np.zeros((20, 1)), shown[:20], sources[:20])
    assert two.limits("energy") == (-np.inf, np.inf)

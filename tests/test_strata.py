"""`masksim.calibration`: strata, intervals, likelihood ratios; what rates promise, by simulation.

scipy is the independent truth for distributions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from masksim.calibration import Calibration, joint_false_positive_rate, number_of_false_alarms
from masksim.errors import ModelError, UsageError
from masksim.intervals import _t_quantile, clopper_pearson, design_effect, grouped_interval
from masksim.likelihood import LikelihoodRatios
from masksim.populations import Populations
from masksim.strata import Strata
from masksim.traits import TRAITS

ENERGY, SIDE = TRAITS.index("energy"), TRAITS.index("side")
BANDS = (("energy", (0.0, 1.0)), ("side", (700.0,)))


def traits(n: int, **values: Any) -> NDArray[np.float64]:
    out = np.full((n, len(TRAITS)), np.nan)
    for name, value in values.items():
        out[:, TRAITS.index(name)] = value
    return out


# --- promises ------------------------------------------------------------------------------------


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


# --- strata --------------------------------------------------------------------------------------


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


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size"), [(0, 10), (3, 10), (10, 10), (17, 1744), (0, 300), (2.7, 55.3), (1, 1)]
)
def test_clopper_pearson_is_scipys(count: float, size: float) -> None:
    found = clopper_pearson(count, size)
    low = 0.0 if count == 0 else stats.beta.ppf(0.025, count, size - count + 1)
    high = 1.0 if count == size else stats.beta.ppf(0.975, count + 1, size - count)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    wide = clopper_pearson(count, size, confidence=0.99)
    assert wide.low <= found.low
    assert wide.high >= found.high


def test_no_share() -> None:
    for count, size in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(UsageError):
            clopper_pearson(count, size)


@pytest.mark.parametrize(("share", "freedom"), [(0.975, 1), (0.975, 37), (0.95, 5), (0.975, 900)])
def test_students_t_is_scipys(share: float, freedom: float) -> None:
    found = _t_quantile(share, freedom)
    assert found == pytest.approx(stats.t.ppf(share, freedom), rel=1e-6)


def test_photos_of_one_kind_tell_less() -> None:
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(40), 25)
    alike = (np.repeat(rng.random(40) < 0.1, 25)).astype(bool)  # all of a source or none
    # By definition the variance is that of 40 units.
    assert design_effect(alike, sources) == pytest.approx(25, rel=0.05)
    independent = rng.random(1000) < 0.1
    assert design_effect(independent, sources) < 1.8
    assert design_effect(np.zeros(1000, bool), sources) == 1
    assert design_effect(alike, np.zeros(1000)) == 1


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    effect=st.floats(1.0, 50.0),
    others=st.integers(0, 3),
)
def test_an_interval_where_every_photo_is_a_hit(
    sizes: list[int], effect: float, others: int
) -> None:
    """The least suspicious image of all, whose count of hits is the number of photos."""
    sources = np.repeat(np.arange(len(sizes)), sizes)
    hits = np.ones(len(sources), bool)
    found = grouped_interval(hits, sources, effect)
    assert found.high == 1.0
    assert 0 < found.low < 1
    hits[:others] = False
    found = grouped_interval(hits, sources, effect)
    assert 0 <= found.low <= hits.mean() <= found.high <= 1


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(n=st.integers(2, 400), groups=st.integers(1, 60), seed=st.integers(0, 999))
def test_the_least_suspicious_image_has_a_rate(n: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, 3))
    found = Calibration(scores, sources=rng.integers(0, groups, n)).rates(np.full(3, -1e9))
    assert found.joint == 1.0
    assert found.interval.high == 1.0


def test_the_largest_rate_over_all_populations_counts() -> None:
    rng = np.random.default_rng(3)
    here, there = rng.standard_normal((80, 2)), rng.standard_normal((50, 2)) + 0.7
    parts = {"built-in": Calibration(here), "own": Calibration(there)}
    both = Populations(parts)
    asked = rng.standard_normal((40, 2)) * 2
    own, joint = both.all_rates(asked)
    single = np.stack([part.all_rates(asked)[1] for part in parts.values()])
    np.testing.assert_array_equal(joint, single.max(axis=0))
    assert set(single.argmax(axis=0)) == {0, 1}  # neither population decides alone
    for k, scores in enumerate(asked):
        rates = both.rates(scores)
        assert rates.joint == joint[k]
        np.testing.assert_array_equal(rates.own, own[k])
        assert rates.population == list(parts)[int(single[:, k].argmax())]
    part = both.only(np.array([True, False])).all_rates(asked[:, :1])[1]
    alone = [Calibration(photos[:, :1]).all_rates(asked[:, :1])[1] for photos in (here, there)]
    np.testing.assert_array_equal(part, np.maximum(*alone))
    with pytest.raises(UsageError, match="not calibrated"):
        Populations({})


def test_grouped_intervals_cover_rates_that_differ_by_source() -> None:
    rng = np.random.default_rng(5)
    covered, plain = 0, 0
    rounds = 300
    for _ in range(rounds):
        rates = rng.beta(0.5, 9.5, 40)  # 5 % in the mean, and far from alike
        hits = (rng.random((40, 25)) < rates[:, None]).reshape(-1)
        sources = np.repeat(np.arange(40), 25)
        found = grouped_interval(hits, sources)
        covered += found.low <= 0.05 <= found.high
        simple = clopper_pearson(int(hits.sum()), len(hits))
        plain += simple.low <= 0.05 <= simple.high
        assert found.low <= simple.low
        assert found.high >= simple.high
    assert covered / rounds > 0.90
    assert plain / rounds < 0.75


def test_one_source_or_photo_leaves_the_plain_interval() -> None:
    hits = np.array([True, False, False, False])
    assert grouped_interval(hits, np.zeros(4)) == clopper_pearson(1, 4)
    assert grouped_interval(hits[:1], np.zeros(1)) == clopper_pearson(1, 1)
    wide = grouped_interval(np.zeros(50, bool), np.repeat(np.arange(5), 10), 10.0)
    assert wide.high > clopper_pearson(0, 50).high


# --- likelihood ratios ---------------------------------------------------------------------------


def gaussian_ratios(k: int, n: int, effective: float | None = None) -> LikelihoodRatios:
    rng = np.random.default_rng(0)
    synthetic = stats.norm.sf(rng.normal(2, 1, k))
    real = stats.norm.sf(rng.normal(0, 1, n))
    return LikelihoodRatios(synthetic, np.ones(k), real, effective)


def test_ratios_are_those_of_the_densities() -> None:
    found = gaussian_ratios(20_000, 20_000)
    for rate in (0.01, 0.05, 0.2, 0.5):
        z = stats.norm.isf(rate)
        assert found.at(rate).value == pytest.approx(np.exp(2 * z - 2), rel=0.25)
    values = [found.at(rate).value for rate in np.linspace(1e-4, 1, 400)]
    assert all(a >= b for a, b in pairwise(values))


def test_ratios_end_where_the_data_does() -> None:
    few, many = gaussian_ratios(100, 200), gaussian_ratios(5000, 10_000)
    assert 1 < few.high < many.high
    assert few.low > many.low
    # One photo more that is as misleading as can be: the bound is about the number of photos.
    assert few.high <= 201
    assert gaussian_ratios(5000, 10_000, 500).high < many.high / 4
    found = few.at(1e-9)
    assert (found.value, found.bounded) == (few.high, True)
    assert few.at(1.0).value < 1


def test_scores_that_tell_nothing_give_no_ratio() -> None:
    rng = np.random.default_rng(2)
    found = LikelihoodRatios(1 - rng.random(300), np.ones(300), 1 - rng.random(300))
    assert found.low > 0.3
    assert found.high < 3.5


def test_each_generator_counts_the_same() -> None:
    # 90 images of one that is never found, 10 of one that always is, weighted to be equal.
    synthetic = np.concatenate([np.full(90, 0.9), np.full(10, 0.001)])
    weights = np.concatenate([np.full(90, 1 / 90), np.full(10, 1 / 10)])
    real = (np.arange(1000) + 1) / 1001
    assert LikelihoodRatios(synthetic, weights, real).at(0.001).value > 50


def test_ratios_need_both_kinds() -> None:
    for synthetic, weights, real in (
        ([], [], [0.5]),
        ([0.5], [1.0], []),
        ([0.5], [0.0], [0.5]),
        ([0.0], [1.0], [0.5]),
        ([0.5], [1.0, 1.0], [0.5]),
        ([0.5], [1.0], [1.5]),
    ):
        with pytest.raises(ModelError):
            LikelihoodRatios(np.array(synthetic), np.array(weights), np.array(real))

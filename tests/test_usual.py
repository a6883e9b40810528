"""Usual scores of photos, and rates relative to them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from masksim.calibration import Calibration, Joint
from masksim.errors import ModelError
from masksim.strata import Strata
from masksim.training.usual_scores import FEWEST, fit_usual_scores
from masksim.traits import BANDS, TRAITS
from masksim.usual import TERMS, USUAL_ARRAYS, UsualScores, terms_of

Scores = NDArray[np.float64]


def traits_of(band: ArrayLike, side: ArrayLike, energy: ArrayLike) -> Scores:
    values = np.broadcast_arrays(band, side, energy)
    found = np.full((values[0].size, len(TRAITS)), np.nan)
    for name, column in zip(("band", "side", "energy"), values, strict=True):
        found[:, TRAITS.index(name)] = column
    return found


def lines(*coefficients: float) -> Scores:
    return np.array([coefficients], dtype=np.float64)


#: Median 2 + energy, and 3 more from 1,024 pixels on; the 95th percentile 4 above it.
USUAL = UsualScores(
    lines(2, 0, 0, 0, 0, 0, 3, 1), lines(6, 0, 0, 0, 0, 0, 3, 1), np.array([0.0, 5.0])
)


def photos(count: int, seed: int = 0) -> tuple[Scores, Scores]:
    """Scores of photos whose level and spread depend on what they show, and their traits."""
    rng = np.random.default_rng(seed)
    band, side = rng.integers(len(BANDS), size=count), rng.choice([300, 700, 1536], count)
    energy = rng.uniform(0, 5, count)
    level = 3.0 * (side >= 512) - 2.0 * (band == 3) + energy
    spread = 1 + 0.5 * (side >= 1024) + 0.2 * energy
    return (level + spread * rng.normal(size=count))[:, None], traits_of(band, side, energy)


def test_terms_by_hand() -> None:
    shown = traits_of([0, 3, 4, np.nan], [511, 512, 1024, np.nan], [1.5, -9, 99, np.nan])
    np.testing.assert_array_equal(
        terms_of(shown, np.array([0.0, 5.0])),
        [
            [1, 0, 0, 0, 0, 0, 0, 1.5],
            [1, 0, 0, 1, 0, 1, 0, 0],  # noise beyond the limits counts as these
            [1, 0, 0, 0, 1, 1, 1, 5],
            [1, 0, 0, 0, 0, 0, 0, 2.5],  # what is not known: small, without compression, middling
        ],
    )
    assert terms_of(shown, np.array([0.0, 5.0])).shape[1] == TERMS


def test_relative_scores_by_hand() -> None:
    shown = traits_of(0, [600, 1024], [1.0, 2.0])
    np.testing.assert_allclose(USUAL.relative(np.array([[3.0], [11.0]]), shown)[:, 0], [0.0, 1.0])
    assert np.isnan(USUAL.relative(np.array([[np.nan]]), shown[:1])).all()


def test_lines_that_cross_are_kept_apart() -> None:
    # From 10 to 0 over the range of energies: never less than a tenth of the middling spread.
    crossing = UsualScores(
        np.zeros((1, TERMS)), lines(10, 0, 0, 0, 0, 0, 0, -2), np.array([0, 5.0])
    )
    np.testing.assert_allclose(crossing.least, [0.5])
    shown = traits_of(0, 600, [0.0, 5.0])
    np.testing.assert_allclose(crossing.relative(np.ones((2, 1)), shown)[:, 0], [0.1, 2.0])


def test_kinds_of_scores_are_chosen_and_joined() -> None:
    two = USUAL.and_also(UsualScores(USUAL.high, USUAL.high + lines(1, *[0] * 7), USUAL.energy))
    assert two.median.shape == (2, TERMS)
    np.testing.assert_array_equal(two.only(slice(1)).median, USUAL.median)
    np.testing.assert_array_equal(two.only(np.array([False, True])).median, USUAL.high)
    with pytest.raises(ModelError, match="different photos"):
        USUAL.and_also(UsualScores(USUAL.median, USUAL.high, np.array([0.0, 4.0])))
    again = UsualScores.read(two.to_arrays(), 2)
    assert again is not None
    np.testing.assert_array_equal(again.high, two.high)
    assert UsualScores.read({}, 2) is None
    with pytest.raises(ModelError, match="of 3 scores"):
        UsualScores.read(two.to_arrays(), 3)
    with pytest.raises(ModelError, match="of 2 scores"):
        UsualScores.read({**two.to_arrays(), USUAL_ARRAYS[0]: np.array(1.0)}, 2)
    some = {name: values for name, values in two.to_arrays().items() if name != USUAL_ARRAYS[1]}
    with pytest.raises(ModelError, match="usual_high"):
        UsualScores.read(some, 2)


@pytest.mark.parametrize(
    ("median", "high", "energy"),
    [
        (np.zeros((1, 3)), np.ones((1, 3)), [0, 1]),
        (np.zeros((1, TERMS)), np.ones((2, TERMS)), [0, 1]),
        (np.zeros((1, TERMS)), np.zeros((1, TERMS)), [0, 1]),
        (np.zeros((1, TERMS)), np.full((1, TERMS), np.nan), [0, 1]),
        (np.zeros((1, TERMS)), np.ones((1, TERMS)), [1, 0]),
        (np.zeros((1, TERMS)), np.ones((1, TERMS)), [0, 1, 2]),
    ],
)
def test_invalid_usual_scores_are_refused(median: Scores, high: Scores, energy: list[int]) -> None:
    with pytest.raises(ModelError, match="usual scores"):
        UsualScores(median, high, np.array(energy, np.float64))


def test_the_fit_finds_what_is_usual() -> None:
    scores, shown = photos(4000)
    usual = fit_usual_scores(scores, shown)
    fresh, seen = photos(20_000, seed=1)
    relative = usual.relative(fresh, seen)[:, 0]
    side, band = (seen[:, TRAITS.index(name)] for name in ("side", "band"))
    noisy = seen[:, TRAITS.index("energy")] > 2.5
    for part in (*(side == s for s in (300, 700, 1536)), *(band == b for b in range(5)), noisy):
        assert (relative[part] <= 0).mean() == pytest.approx(0.5, abs=0.05)
        assert (relative[part] > 1).mean() == pytest.approx(0.05, abs=0.025)
    # Scores of any scale, and rows without one.
    tiny = np.where(np.arange(4000)[:, None] < 2000, 1e-3 * scores + 40, np.nan)
    found = fit_usual_scores(tiny, shown).relative(1e-3 * fresh + 40, seen)[:, 0]
    assert (found > 1).mean() == pytest.approx(0.05, abs=0.015)


def test_few_photos_have_one_median() -> None:
    scores, shown = photos(FEWEST - 1)
    usual = fit_usual_scores(scores, shown)
    np.testing.assert_array_equal(usual.median[0, 1:], 0)
    assert usual.median[0, 0] == pytest.approx(np.median(scores))
    assert usual.high[0, 0] == pytest.approx(np.quantile(scores, 0.95))
    assert usual.flat
    for column in (
        np.zeros(200),
        40 + 1e-9 * np.arange(200),
    ):  # no spread, none in single precision
        same = fit_usual_scores(column[:, None], photos(200)[1])
        assert UsualScores.read(same.to_arrays(), 1) is not None
        np.testing.assert_allclose(same.relative(column[:1, None], shown[:1]), 0, atol=1e-4)


def test_rates_among_few_photos_hold() -> None:
    """Lines of their own would lie close to the largest scores of the few (6 % instead of 5)."""
    below = []
    for seed in range(10):
        scores, shown = photos(400, seed)
        calibration = Calibration(scores, shown, usual=fit_usual_scores(scores, shown))
        below.append(calibration.all_rates(*photos(4000, seed + 100))[1] <= 0.05)
        assert calibration.rates(scores[0], shown[0]).kind == "photos"
    assert np.mean(below) < 0.054


def test_rates_hold_for_every_size_where_scores_are_relative() -> None:
    """Photos of one size score higher; unseen ones of each size get the rates that are claimed."""
    scores, shown = photos(4000)
    fresh, seen = photos(4000, seed=2)
    plain = Calibration(scores, shown).all_rates(fresh, seen)[1]
    sources = np.arange(4000) // 100
    relative = Calibration(scores, shown, sources, usual=fit_usual_scores(scores, shown))
    own, joint = relative.all_rates(fresh, seen)
    np.testing.assert_array_equal(own[:, 0], joint)
    small = seen[:, TRAITS.index("side")] == 300
    assert (plain[small] <= 0.05).mean() < 0.02
    assert (plain[~small] <= 0.05).mean() > 0.055
    for part in (small, ~small):
        assert (joint[part] <= 0.05).mean() == pytest.approx(0.05, abs=0.015)
    one = relative.rates(fresh[0], seen[0])
    assert (one.own[0], one.joint) == pytest.approx((own[0, 0], joint[0]))
    assert one.kind == "photos (size and noise allowed for)"
    assert Calibration(scores, shown).rates(fresh[0], seen[0]).kind == "photos"
    left = relative.left_out()
    assert (left <= 0.05).mean() == pytest.approx(0.05, abs=0.005)


def test_a_relative_joint_number() -> None:
    scores, shown = photos(FEWEST)
    two = np.column_stack([scores, -scores])
    plain = Joint(np.array([[[1.0, 0.0]]]), np.zeros((1, 1)))
    usual = fit_usual_scores(scores, shown)
    joint = Joint(plain.weights, plain.offsets, usual)
    np.testing.assert_allclose(joint(two, shown), usual.relative(scores, shown)[:, 0])
    assert joint.only(np.array([True, True])).usual is usual
    # What is usual for a sum is not so for a part of it.
    assert joint.only(np.array([True, False])).usual is None
    unknown = Calibration(two, learned=joint)  # nothing is known of the photos
    assert unknown.learned is not None
    assert unknown.learned.usual is None
    found = Calibration(two, shown, strata=Strata(), learned=joint)
    number = joint(two, shown)
    expected = (1 + (number >= number[7]).sum()) / (FEWEST + 1)
    assert found.rates(two[7], shown[7]).joint == pytest.approx(expected)
    with pytest.raises(ModelError, match="one usual score"):
        Joint(plain.weights, plain.offsets, usual.and_also(usual))


def test_usual_scores_are_of_the_generators_that_are_there() -> None:
    scores, shown = photos(200)
    with pytest.raises(ModelError, match="usual scores of 1 generators for 2"):
        Calibration(np.column_stack([scores, scores]), shown, usual=USUAL)
    calibration = Calibration(scores, shown, usual=USUAL)
    with pytest.raises(ModelError, match="2 scores for a calibration of 1"):
        calibration.rates(np.zeros(2), shown[0])
    # Photos of which nothing is known are ranked as they are.
    assert Calibration(scores, usual=USUAL).usual is None

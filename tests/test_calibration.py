"""`masksim.calibration` against counting by hand and against what its rates promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.attribution import UNCLEAR, Attribution
from masksim.calibration import Calibration, Joint, false_positive_rate, joint_false_positive_rate
from masksim.errors import ModelError
from masksim.strata import Strata
from masksim.traits import TRAITS

Scores = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Scores]


def count_rates(scores: Scores, real: Scores) -> Scores:
    """The definition, one comparison after another."""
    out = np.empty(scores.shape)
    for at in np.ndindex(*scores.shape):
        out[at] = (1 + sum(bool(r >= scores[at]) for r in real[:, at[-1]])) / (len(real) + 1)
    return out


def count_joint(scores: Scores, real: Scores) -> float:
    """The definition: the best ranks of each member of the set of real photos and the image."""
    members = np.vstack([scores[None], real])
    best = []
    for i in range(len(members)):
        ranks = sorted(
            sum(bool(other >= members[i, g]) for other in members[:, g])
            for g in range(members.shape[1])
        )
        best.append(ranks[:2])
    return sum(b <= best[0] for b in best) / len(members)


def independent(rng: np.random.Generator, n: int, generators: int) -> Scores:
    return rng.standard_normal((n, generators))


def dependent(rng: np.random.Generator, n: int, generators: int) -> Scores:
    """Generators that hardly differ, as those of one family."""
    return rng.standard_normal((n, 1)) + 0.05 * rng.standard_normal((n, generators))


def opposed(rng: np.random.Generator, n: int, generators: int) -> Scores:
    """What is high for one generator is low for the next; heavy tails on another scale each."""
    sign = np.where(np.arange(generators) % 2, -1.0, 1.0) * 10.0 ** (np.arange(generators) % 5)
    return rng.standard_cauchy((n, 1)) * sign + 0.1 * rng.standard_normal((n, generators))


def tied(rng: np.random.Generator, n: int, generators: int) -> Scores:
    return rng.integers(0, 40, (n, generators)).astype(float)


DRAWS = [independent, dependent, opposed, tied]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("n", "generators"), [(1, 1), (1, 3), (7, 2), (30, 5)])
def test_rates_are_counts(draw: Draw, n: int, generators: int) -> None:
    rng = np.random.default_rng(n)
    real = draw(rng, n, generators)
    scores = np.concatenate([draw(rng, 6, generators), real[:2]])  # the last are ties
    np.testing.assert_array_equal(false_positive_rate(scores, real), count_rates(scores, real))
    joint = joint_false_positive_rate(scores, real)
    assert joint.shape == (len(scores),)
    np.testing.assert_array_equal(joint, [count_joint(row, real) for row in scores])


def test_shapes() -> None:
    rng = np.random.default_rng(0)
    real = independent(rng, 20, 3)
    scores = rng.standard_normal((2, 5, 3))
    found, joint = false_positive_rate(scores, real), joint_false_positive_rate(scores, real)
    assert found.shape == (2, 5, 3)
    assert joint.shape == (2, 5)
    assert found.dtype == joint.dtype == np.float64
    for at in np.ndindex(2, 5):
        np.testing.assert_array_equal(false_positive_rate(scores[at], real), found[at])
        assert joint_false_positive_rate(scores[at], real) == joint[at]
    assert false_positive_rate(np.zeros((0, 3)), real).shape == (0, 3)
    assert joint_false_positive_rate(np.zeros((0, 3)), real).shape == (0,)


def test_extremes_are_never_0() -> None:
    real = independent(np.random.default_rng(1), 99, 4)
    high, low = np.full(4, 1e9), np.full(4, -1e9)
    np.testing.assert_array_equal(false_positive_rate(high, real), 1 / 100)
    np.testing.assert_array_equal(false_positive_rate(low, real), 1)
    # Even a score above all photos' is no rarer than the best photo of each of four generators.
    joint = joint_false_positive_rate(np.array([1e9, -1e9, -1e9, -1e9]), real)
    assert joint == count_joint(np.array([1e9, -1e9, -1e9, -1e9]), real) >= 1 / 100
    assert joint_false_positive_rate(low, real) == 1


def test_an_equal_score_counts_as_at_least_as_high() -> None:
    real = np.array([[0.1], [0.2], [0.2], [0.3]])
    found = false_positive_rate(np.array([[0.2], [0.3], [0.30001], [0.1]]), real)
    np.testing.assert_allclose(found[:, 0], [4 / 5, 2 / 5, 1 / 5, 1])


def test_all_equal_says_nothing() -> None:
    real = np.ones((50, 3))
    assert joint_false_positive_rate(np.ones(3), real) == 1
    np.testing.assert_array_equal(false_positive_rate(np.ones(3), real), 1)


def test_one_generator_is_its_own_joint_rate() -> None:
    rng = np.random.default_rng(3)
    real, scores = tied(rng, 60, 1), tied(rng, 30, 1)
    np.testing.assert_array_equal(
        joint_false_positive_rate(scores, real), false_positive_rate(scores, real)[:, 0]
    )


def test_a_generator_asked_twice_costs_nothing() -> None:
    rng = np.random.default_rng(4)
    real, scores = independent(rng, 200, 1), independent(rng, 50, 1)
    np.testing.assert_array_equal(
        joint_false_positive_rate(np.repeat(scores, 9, 1), np.repeat(real, 9, 1)),
        false_positive_rate(scores, real)[:, 0],
    )


@pytest.mark.parametrize("draw", [independent, dependent, opposed])
def test_only_ranks_count(draw: Draw) -> None:
    rng = np.random.default_rng(5)
    real, scores = draw(rng, 80, 6), draw(rng, 20, 6)
    order = rng.permutation(80)
    # Another scale for each generator, bent: nothing changes; nor by the order of the photos.
    bent = np.arctan(real) * np.arange(1, 7) + 3
    np.testing.assert_array_equal(
        joint_false_positive_rate(np.arctan(scores) * np.arange(1, 7) + 3, bent[order]),
        joint_false_positive_rate(scores, real),
    )


def test_a_higher_score_is_never_less_telling() -> None:
    rng = np.random.default_rng(6)
    real = dependent(rng, 100, 3)
    scores = dependent(rng, 1, 3)[0]
    rising = np.array([scores + np.array([step, 0, 0]) for step in np.linspace(-3, 3, 40)])
    assert (np.diff(false_positive_rate(rising, real)[:, 0]) <= 0).all()
    top = rising[rising[:, 0] >= scores[0]]
    assert joint_false_positive_rate(top[-1], real) <= joint_false_positive_rate(top[0], real)


def p_values(draw: Draw, generators: int, n: int, trials: int) -> Scores:
    """Joint rates of photos exchangeable with their n calibration photos, fresh ones each time."""
    rng = np.random.default_rng([generators, n, trials])
    out = np.empty(trials)
    for t in range(trials):
        together = draw(rng, n + 1, generators)
        out[t] = joint_false_positive_rate(together[0], together[1:])
    return out


TRIALS = 3000


@pytest.mark.slow
@pytest.mark.parametrize("generators", [1, 7, 50])
@pytest.mark.parametrize("draw", [independent, dependent, opposed])
def test_the_joint_error_is_the_nominal_one(draw: Draw, generators: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = p_values(draw, generators, 199, TRIALS)
    for nominal in (0.01, 0.05, 0.10):
        count = int((found <= nominal + 1e-12).sum())
        # Too many would be a broken promise; not one in a million by chance.
        assert count <= stats.binom.ppf(1 - 1e-6, TRIALS, nominal), (nominal, count)
    # Photos that are best and second best for different generators tie: a rate may be larger than
    # the uniform law's, never smaller.
    assert stats.kstest(found, "uniform", alternative="greater").pvalue > 1e-6


@pytest.mark.slow
def test_the_joint_error_is_not_far_below_the_nominal_one() -> None:
    # Strongly dependent generators: Bonferroni's correction would reach a fiftieth.
    found = p_values(dependent, 50, 399, 2000)
    assert (found <= 0.05).mean() > 0.03


@pytest.mark.parametrize("n", [20, 199])
def test_p_values_of_one_generator_are_uniform(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = p_values(independent, 1, n, TRIALS)
    ranks = np.rint(found * (n + 1)).astype(int)
    np.testing.assert_allclose(found, ranks / (n + 1))
    # Without ties each of the n + 1 ranks is equally likely.
    observed = np.bincount(ranks, minlength=n + 2)[1:]
    assert stats.chisquare(observed).pvalue > 1e-6
    spread = found - np.random.default_rng(0).uniform(0, 1 / (n + 1), TRIALS)
    assert stats.kstest(spread, "uniform").pvalue > 1e-6


def test_ties_make_rates_larger_never_smaller() -> None:
    stats = pytest.importorskip("scipy.stats")
    found = p_values(tied, 7, 199, TRIALS)
    assert stats.kstest(found, "uniform", alternative="greater").pvalue > 1e-6


@pytest.mark.parametrize("rate", [false_positive_rate, joint_false_positive_rate])
@pytest.mark.parametrize(
    ("scores", "real", "message"),
    [
        (np.zeros(3), np.zeros((0, 3)), r"\(n >= 1, generators\), got shape \(0, 3\)"),
        (np.zeros(3), np.zeros(3), r"got shape \(3,\)"),
        (np.zeros(2), np.zeros((5, 3)), "calibration of 3 generators"),
        (np.float64(1), np.zeros((5, 1)), "calibration of 1 generators"),
        (np.array([0, np.nan]), np.zeros((5, 2)), "not a finite number"),
        (np.zeros(2), np.full((5, 2), np.inf), "not a finite number"),
    ],
)
def test_what_cannot_be_is_refused(
    rate: Callable[..., Scores], scores: Scores, real: Scores, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        rate(scores, real)
    assert caught.value.code == "model_invalid"


# --- which generator -----------------------------------------------------------------------------


def clouds(rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[Scores, NDArray[np.int64]]:
    """Score vectors of several generators: each high for its own head, wider along some axis."""
    count = len(sizes)
    parts = [
        rng.standard_normal((n, count)) * (0.5 + np.arange(count) % 2) + 2.5 * np.eye(count)[g]
        for g, n in enumerate(sizes)
    ]
    return np.concatenate(parts), np.repeat(np.arange(count), sizes)


def low(count: int) -> Scores:
    """Photos that score below all generators' images: every one of these is found."""
    return np.full((99, count), -50.0)


def test_posteriors_are_those_of_normal_distributions() -> None:
    stats = pytest.importorskip("scipy.stats")
    own, of = clouds(np.random.default_rng(0), (60, 200, 90))
    model = Attribution.fit(own, of, low(3))
    covariances = [np.cov(own[of == g].T, bias=True) for g in range(3)]
    density = []
    for g, n in enumerate((60, 200, 90)):
        mixed = n / (n + 50) * covariances[g] + 50 / (n + 50) * np.mean(covariances, axis=0)
        mixed = 0.9 * mixed + 0.1 * np.diag(np.diag(mixed))
        density.append(stats.multivariate_normal(own[of == g].mean(axis=0), mixed))
    tested = np.random.default_rng(1).standard_normal((40, 3)) * 2
    weights = np.array([d.pdf(tested) for d in density]).T
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.posterior(tested), expected, rtol=1e-6, atol=1e-12)


def test_clarity_is_a_p_value_of_being_a_known_generators() -> None:
    rng = np.random.default_rng(2)
    # Unlike numbers of images: each generator counts the same all the same.
    own, of = clouds(rng, (100, 400, 200))
    model = Attribution.fit(own, of, low(3))
    fresh, truth = clouds(rng, (4000, 4000, 4000))
    clarity = model.clarity(fresh)
    for q in (0.05, 0.1, 0.2, 0.5):
        assert (clarity <= q).mean() == pytest.approx(q, abs=0.05), q
    # Rates fall as scores rise: the lowest is that of the highest score.
    rates = 1 / (1 + np.exp(fresh))
    named, best = model.name(fresh, rates), fresh.argmax(axis=1)
    assert (named < 0).mean() == pytest.approx(UNCLEAR, abs=0.05)
    np.testing.assert_array_equal(named[named >= 0], best[named >= 0])
    # Those that are named are named wrongly less often than if all had to be.
    assert (named != truth)[named >= 0].mean() < 0.7 * (best != truth).mean()


def test_what_lies_between_generators_is_not_named() -> None:
    own, of = clouds(np.random.default_rng(3), (200, 200))
    model = Attribution.fit(own, of, low(2))
    rates = np.full(2, 0.01)  # of equal rates that of the highest score is named
    for g in range(2):
        assert model.name(model.means[g], rates) == g
        assert model.clarity(model.means[g]) > 0.3
    middle = model.means.mean(axis=0)
    assert model.name(middle, rates) == -1
    assert model.clarity(middle) < 0.1


def test_images_that_are_not_found_do_not_count_for_clarity() -> None:
    own, of = clouds(np.random.default_rng(6), (100, 100))
    real = np.random.default_rng(7).standard_normal((500, 2))
    model = Attribution.fit(own, of, real)
    found = (false_positive_rate(own, real) <= 0.05).any(axis=1)
    assert len(model.own_clearest) == found.sum() < 200
    assert model.own_weights.sum() == pytest.approx(1)


def test_generators_with_few_own_images_cannot_be_named() -> None:
    own, of = clouds(np.random.default_rng(4), (100, 9, 100))
    own[-3:] = np.nan  # not scored by every head
    model = Attribution.fit(own, of, low(3))
    assert len(model.own_clearest) == 197
    posterior = model.posterior(own[:5])
    assert (posterior[:, 1] == 0).all()
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    nothing = Attribution.fit(own[:4], of[:4], low(3))
    assert np.isnan(nothing.posterior(own[0])).all()
    assert nothing.clarity(own[0]) == 1
    assert nothing.name(own[0], np.array([0.3, 0.1, 0.2])) == 1  # the lowest rate


@pytest.mark.parametrize(
    ("own", "of"),
    [
        (np.zeros(4), np.zeros(4, int)),
        (np.zeros((4, 2)), np.zeros(3, int)),
        (np.zeros((4, 2)), np.full(4, 2)),
        (np.zeros((4, 2)), np.full(4, -1)),
        (np.zeros((4, 2)), np.zeros(4)),
        (np.full((4, 2), np.inf), np.zeros(4, int)),
    ],
)
def test_invalid_own_scores_are_refused(own: Scores, of: NDArray[np.int64]) -> None:
    with pytest.raises(ModelError):
        Attribution.fit(own, of, low(2))


def test_photos_with_gaps_count_where_they_are_scored() -> None:
    rng = np.random.default_rng(5)
    real = rng.standard_normal((50, 3))
    real[20:, 2] = np.nan
    scores = rng.standard_normal((30, 3))
    rates = false_positive_rate(scores, real)
    np.testing.assert_allclose(rates[:, :2], count_rates(scores[:, :2], real[:, :2]))
    np.testing.assert_allclose(rates[:, 2:], count_rates(scores[:, 2:], real[:20, 2:]))
    joint = joint_false_positive_rate(scores, real)
    np.testing.assert_allclose(joint, [count_joint(row, real[:20]) for row in scores])
    with pytest.raises(ModelError, match="every generator"):
        joint_false_positive_rate(scores, np.where(np.arange(3) == 1, np.nan, real))


# --- one learned number --------------------------------------------------------------------------


def banded_traits(band: NDArray[np.int64]) -> Scores:
    found = np.full((len(band), len(TRAITS)), np.nan)
    found[:, TRAITS.index("band")] = band
    return found


LEARNED = Joint(np.array([[[1.0, 2.0, 0.0]], [[0.5, -1.0, 3.0]]]), np.array([[0.0], [-2.0]]))


def test_the_learned_number_by_hand() -> None:
    scores = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.5, 0.0, 1.0]])
    traits = banded_traits(np.array([0, 1, 1]))
    np.testing.assert_allclose(LEARNED(scores, traits), [5.0, 5.5, 1.25])
    traits[0, TRAITS.index("band")] = np.nan  # not known: the band of no trace
    np.testing.assert_allclose(LEARNED(scores, traits), [5.0, 5.5, 1.25])
    some = LEARNED.only(np.array([True, False, True]))
    np.testing.assert_allclose(some(scores[:, [0, 2]], traits), [1.0, 7.5, 1.25])


def test_several_kinds_of_generated_images_count_by_their_odds() -> None:
    two = Joint(np.array([[[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]]), np.array([[0.0, -1.0]]))
    found = two(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 800.0]]), banded_traits(np.array([0, 1])))
    np.testing.assert_allclose(found, [np.log(np.exp(5) + np.exp(2)), 799.0])
    # A kind that a band has no image of counts for nothing.
    none = Joint(two.weights * [[[1.0], [0.0]]], np.array([[0.0, -1000.0]]))
    np.testing.assert_array_equal(
        none(np.array([[1.0, 2.0, 3.0]]), banded_traits(np.zeros(1, int))), [5.0]
    )


def test_the_joint_rate_is_the_rank_of_the_learned_number() -> None:
    rng = np.random.default_rng(0)
    real, band = rng.normal(size=(50, 3)), rng.integers(2, size=50)
    calibration = Calibration(real, banded_traits(band), learned=LEARNED)
    new, shown = rng.normal(size=(20, 3)), banded_traits(rng.integers(2, size=20))
    own, joint = calibration.all_rates(new, shown)
    among = LEARNED(real, banded_traits(band))
    expected = [(1 + (among >= x).sum()) / 51 for x in LEARNED(new, shown)]
    np.testing.assert_allclose(joint, expected)
    np.testing.assert_allclose(own, count_rates(new, real))  # a generator's own rate is as before
    for k in range(20):
        assert calibration.rates(new[k], shown[k]).joint == pytest.approx(expected[k])
    plain = calibration.all_rates(new)[1]  # no traits: all as if of band 0
    assert ((plain > 0) & (plain <= 1)).all()
    some = calibration.only(np.array([True, True, False]))
    assert some.learned is not None
    assert some.learned.weights.shape == (2, 1, 2)


def test_left_out_rates_and_gaps_with_a_learned_number() -> None:
    rng = np.random.default_rng(1)
    real, band = rng.normal(size=(60, 3)), rng.integers(2, size=60)
    real[50:, 2] = np.nan
    sources = np.repeat(np.arange(12), 5)
    shown = banded_traits(band)
    calibration = Calibration(real, shown, sources, learned=LEARNED)
    found = calibration.left_out()
    assert np.isnan(found[50:]).all()
    among = LEARNED(real, shown)
    for k in range(50):
        rest = among[:50][sources[:50] != sources[k]]
        assert found[k] == pytest.approx((1 + (rest >= among[k]).sum()) / (len(rest) + 1))
    assert calibration.rates(real[0], shown[0]).photos == 50


def test_rates_of_a_learned_number_are_uniform_for_exchangeable_photos() -> None:
    """Whatever was learned: the bands differ, and the weights were fitted to other data."""
    rng = np.random.default_rng(2)
    rates = []
    for _ in range(400):
        band = rng.integers(2, size=61)
        scores = rng.normal(band[:, None], 1 + band[:, None], (61, 3))
        shown = banded_traits(band)
        strata = Strata((("band", (0.5,)),), 15, 1)
        calibration = Calibration(scores[1:], shown[1:], None, strata, LEARNED)
        rates.append(calibration.all_rates(scores[:1], shown[:1])[1][0])
    found = np.array(rates)
    for level in (0.1, 0.25, 0.5, 0.75):
        # Valid, and not wasteful: 400 draws have a standard error of at most 0.025.
        assert level - 0.1 < (found <= level).mean() < level + 0.065, level


@pytest.mark.parametrize(
    ("weights", "offsets"),
    [
        (np.zeros((2, 1, 3)), np.zeros((3, 1))),
        (np.zeros((2, 2, 3)), np.zeros((2, 1))),
        (np.zeros((2, 3)), np.zeros(2)),
        (np.zeros((2, 0, 3)), np.zeros((2, 0))),
        (np.full((1, 1, 3), np.nan), np.zeros((1, 1))),
        (np.zeros((1, 1, 3)), np.full((1, 1), np.inf)),
    ],
)
def test_invalid_learned_numbers_are_refused(weights: Scores, offsets: Scores) -> None:
    with pytest.raises(ModelError, match="joint weights"):
        Joint(weights, offsets)


def test_a_learned_number_is_of_the_generators_that_are_there() -> None:
    with pytest.raises(ModelError, match="joint weights of 3 generators for 2"):
        Calibration(np.zeros((5, 2)), learned=LEARNED)

"""`masksim.metrics` against scikit-learn, pairs counted one by one, and cases done by hand."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim import metrics
from masksim.errors import UsageError
from masksim.metrics import Estimate, auroc, bootstrap, tpr_at_fpr

sklearn_metrics = pytest.importorskip("sklearn.metrics")

Floats = NDArray[np.float64]


def case(seed: int, *, ties: bool, weighted: bool, n: int = 60) -> tuple[Floats, Any, Any]:
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.4
    y[:2] = [True, False]
    s = rng.normal(y * 1.0)
    if ties:
        s = np.round(s)
    return s, y, rng.uniform(0, 3, n).round(1) if weighted else None


def count_pairs(s: Floats, y: Any, w: Any) -> float:
    w = np.ones(len(s)) if w is None else w
    won = total = 0.0
    for i, j in product(np.flatnonzero(y), np.flatnonzero(~y)):
        won += w[i] * w[j] * (1.0 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0.0)
        total += w[i] * w[j]
    return won / total


def try_thresholds(s: Floats, y: Any, w: Any, fpr: float) -> float:
    """Most synthetic images above any threshold that few enough reals are above."""
    w = np.ones(len(s)) if w is None else w
    best = 0.0
    for threshold in (-np.inf, *s):
        above = s > threshold
        if w[above & ~y].sum() <= fpr * w[~y].sum() + 1e-12:
            best = max(best, w[above & y].sum() / w[y].sum())
    return float(best)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs(seed: int, ties: bool, weighted: bool) -> None:
    s, y, w = case(seed, ties=ties, weighted=weighted)
    assert auroc(s, y, w) == pytest.approx(count_pairs(s, y, w), abs=1e-12)
    expected = sklearn_metrics.roc_auc_score(y, s, sample_weight=w)
    assert auroc(s, y, w) == pytest.approx(expected, abs=1e-12)


def test_auroc_by_hand() -> None:
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1
    assert auroc([4, 3, 2, 1], [False, False, True, True]) == 0
    assert auroc([5, 5, 5, 5], [0, 1, 0, 1]) == 0.5
    assert auroc([1, 2, 2, 3], [0, 1, 0, 1]) == pytest.approx(3.5 / 4)
    assert auroc([1, 3, 2], [0, 0, 1], [3, 1, 1]) == pytest.approx(0.75)
    assert auroc([1, 3, 2], [0, 0, 1], [3, 0, 1]) == 1  # a weight of 0 is an image that is not


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.25, 0.5, 1.0])
def test_tpr_is_that_of_the_best_threshold(fpr: float, ties: bool, weighted: bool) -> None:
    for seed in range(10):
        s, y, w = case(seed, ties=ties, weighted=weighted)
        expected = try_thresholds(s, y, w, fpr)
        assert tpr_at_fpr(s, y, w, fpr=fpr) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_tpr_lies_on_the_curve_of_scikit_learn(ties: bool) -> None:
    s, y, _ = case(8, ties=ties, weighted=False, n=400)
    false, true, _ = sklearn_metrics.roc_curve(y, s, drop_intermediate=False)
    for fpr in (0.01, 0.05, 0.1, 0.3):
        assert tpr_at_fpr(s, y, fpr=fpr) == pytest.approx(true[false <= fpr].max())


def test_tpr_by_hand() -> None:
    real, synthetic = np.arange(100.0), np.array([50.5, 97.5, 98.0, 98.5, 99.5])
    s, y = np.concatenate([real, synthetic]), np.repeat([False, True], [100, 5])
    assert tpr_at_fpr(s, y, fpr=0.0) == 0.2  # above 99
    assert tpr_at_fpr(s, y, fpr=0.01) == 0.4  # above 98: only 99 is a false alarm
    assert tpr_at_fpr(s, y, fpr=0.019) == 0.4
    assert tpr_at_fpr(s, y, fpr=0.02) == 0.8  # above 97
    assert tpr_at_fpr(s, y, fpr=1.0) == 1
    # Ten reals on one score cannot be parted: 1 % is none of them.
    tied = np.concatenate([np.full(10, 5.0), np.arange(90) / 100, [5.0, 5.1]])
    labels = np.repeat([False, True], [100, 2])
    assert tpr_at_fpr(tied, labels, fpr=0.01) == 0.5
    assert tpr_at_fpr(tied, labels, fpr=0.1) == 1
    # Weights: the one real above counts for nine tenths.
    assert tpr_at_fpr([1, 3, 2, 4], [0, 0, 1, 1], [1, 9, 1, 3], fpr=0.5) == 0.75


def mean_of_synthetic(s: Floats, y: Any, w: Floats) -> float:
    return float(np.average(s[y], weights=w[y]))


def test_bootstrap_is_seeded_and_ordered() -> None:
    s, y, w = case(1, ties=False, weighted=True)
    first = bootstrap(auroc, s, y, w, samples=200, seed=4)
    assert first == bootstrap(auroc, s, y, w, samples=200, seed=4)
    assert first != bootstrap(auroc, s, y, w, samples=200, seed=5)
    assert isinstance(first, Estimate)
    assert first.low <= first.value <= first.high
    assert first.value == auroc(s, y, w)
    narrow = bootstrap(auroc, s, y, w, samples=200, level=0.5, seed=4)
    assert first.low < narrow.low < narrow.high < first.high


def test_bootstrap_of_a_constant_has_no_width() -> None:
    found = bootstrap(auroc, [1, 2, 3, 4], [0, 0, 1, 1], samples=50)
    assert found == Estimate(1, 1, 1)


def test_bootstrap_has_the_standard_error_of_a_mean() -> None:
    rng = np.random.default_rng(2)
    s = rng.standard_normal(400)
    y = np.repeat([True, False], 200)
    found = bootstrap(mean_of_synthetic, s, y, samples=2000)
    error = s[y].std() / np.sqrt(200)
    assert found.value == pytest.approx(s[y].mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    y = np.repeat([True, False], [50, 5])
    covered, trials = 0, 300
    for trial in range(trials):
        s = rng.standard_normal(55)  # the mean is 0
        found = bootstrap(mean_of_synthetic, s, y, samples=150, level=0.9, seed=trial)
        covered += found.low <= 0 <= found.high
    # The percentile interval of 50 is a little narrow: 0.88 where 0.90 is nominal.
    assert stats.binom.ppf(1e-5, trials, 0.88) <= covered <= stats.binom.ppf(1 - 1e-5, trials, 0.91)


def test_rows_of_a_group_are_drawn_together() -> None:
    rng = np.random.default_rng(4)
    group_values = rng.standard_normal(20)
    s: NDArray[Any] = np.repeat(group_values, 25)  # 500 rows, but 20 images
    y: NDArray[Any] = np.ones(500, bool)
    s, y = np.append(s, 0.0), np.append(y, False)
    names = np.append(np.repeat([f"image {k}" for k in range(20)], 25), "photo")
    grouped = bootstrap(mean_of_synthetic, s, y, groups=names, samples=1500)
    alone = bootstrap(mean_of_synthetic, s, y, samples=1500)
    error = group_values.std() / np.sqrt(20)
    assert grouped.high - grouped.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error / 5, rel=0.15)


def test_classes_keep_their_size() -> None:
    seen = set()

    def sizes(s: Floats, y: Any, w: Floats) -> float:
        seen.add((float(w[y].sum()), float(w[~y].sum())))
        return 0.0

    bootstrap(sizes, np.arange(12), np.arange(12) < 5, samples=30)
    assert seen == {(5, 7)}
    # A group with images of both classes is drawn in each by itself.
    seen.clear()
    bootstrap(sizes, np.arange(18), np.arange(18) < 6, groups=np.arange(18) % 3, samples=30)
    assert seen == {(6, 12)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2, 3], [0, 1]), "differ"),
        (([1, 2], [0, 1], [1, 1, 1]), "differ"),
        (([[1, 2]], [[0, 1]]), "differ"),
        (([1, np.nan], [0, 1]), "finite"),
        (([1, np.inf], [0, 1]), "finite"),
        (([1, 2], [0, 1], [1, -1]), "not negative"),
        (([1, 2], [0, 1], [1, np.nan]), "not negative"),
        (([1, 2], [1, 1]), "both real and synthetic"),
        (([1, 2], [0, 0]), "both real and synthetic"),
        (([1, 2], [0, 1], [1, 0]), "both real and synthetic"),
        (([], []), "both real and synthetic"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: Any, message: str) -> None:
    for measure in (auroc, tpr_at_fpr):
        with pytest.raises(UsageError, match=message):
            measure(*arguments)
    with pytest.raises(UsageError, match=message):
        bootstrap(auroc, *arguments, samples=3)


@pytest.mark.parametrize("fpr", [-0.1, 1.1, np.nan])
def test_rates_are_shares(fpr: float) -> None:
    with pytest.raises(UsageError, match=r"fpr must be in \[0, 1\]"):
        tpr_at_fpr([1, 2], [0, 1], fpr=fpr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["a"]}, "one entry a score"),
        ({"samples": 0}, "samples"),
        ({"level": 0.0}, "level"),
        ({"level": 1.0}, "level"),
        ({"level": 95}, "level"),
    ],
)
def test_senseless_bootstraps_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bootstrap(auroc, [1, 2], [0, 1], **options)


# --- at a threshold, and of calibration ----------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threshold", [-9.0, -0.3, 0.4, 1.0, 9.0])
def test_measures_at_a_threshold_are_those_of_scikit_learn(
    threshold: float, weighted: bool
) -> None:
    for seed in range(5):
        s, y, w = case(seed, ties=True, weighted=weighted)
        above = s > threshold
        for ours, theirs in (
            (metrics.accuracy, sklearn_metrics.accuracy_score),
            (metrics.balanced_accuracy, sklearn_metrics.balanced_accuracy_score),
            (metrics.mcc, sklearn_metrics.matthews_corrcoef),
        ):
            expected = theirs(y, above, sample_weight=w)
            assert ours(s, y, w, threshold=threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_best_mcc_is_the_best_of_all_thresholds(weighted: bool) -> None:
    for seed in range(8):
        s, y, w = case(seed, ties=bool(seed % 2), weighted=weighted)
        best = max(metrics.mcc(s, y, w, threshold=t) for t in (-np.inf, *s))
        assert metrics.ranking(s, y, w)["best_mcc"] == pytest.approx(best)


def test_eer_is_where_the_curve_of_scikit_learn_crosses() -> None:
    optimize, interpolate = (
        pytest.importorskip("scipy.optimize"),
        pytest.importorskip("scipy.interpolate"),
    )
    for seed in range(8):
        s, y, w = case(seed, ties=bool(seed % 2), weighted=bool(seed % 3), n=300)
        false, true, _ = sklearn_metrics.roc_curve(y, s, sample_weight=w, drop_intermediate=False)
        curve = interpolate.interp1d(false, true)
        # Where the curve is a vertical step brentq lands beside it by its tolerance.
        expected = optimize.brentq(lambda x, c=curve: 1 - x - c(x), 0, 1)
        assert metrics.ranking(s, y, w)["eer"] == pytest.approx(expected, abs=1e-6)


def test_eer_by_hand() -> None:
    assert metrics.ranking([1, 2, 3, 4], [0, 0, 1, 1])["eer"] == 0
    assert metrics.ranking([4, 3, 2, 1], [0, 0, 1, 1])["eer"] == 1
    assert metrics.ranking([5, 5, 5, 5], [0, 1, 0, 1])["eer"] == 0.5
    # One of four reals above one of four synthetic images.
    assert metrics.ranking([1, 2, 3, 5, 4, 6, 7, 8], [0, 0, 0, 0, 1, 1, 1, 1])["eer"] == 0.25


def test_eer_of_two_gaussians() -> None:
    stats = pytest.importorskip("scipy.stats")
    q = (np.arange(20000) + 0.5) / 20000
    s = np.concatenate([stats.norm.ppf(q), stats.norm.ppf(q) + 2.0])
    y = np.repeat([False, True], 20000)
    assert metrics.ranking(s, y)["eer"] == pytest.approx(stats.norm.cdf(-1.0), abs=1e-4)


def test_ece_has_the_value_of_torchmetrics_documentation() -> None:
    p, y = [0.25, 0.25, 0.55, 0.75, 0.75], [0, 0, 1, 1, 1]
    assert metrics.ece(p, y, bins=2) == pytest.approx(0.29)
    assert metrics.ece(p, y, [2, 2, 2, 2, 2], bins=2) == pytest.approx(0.29)
    # An image with weight 2 is that image twice.
    assert metrics.ece([*p, 0.55], [*y, 1], bins=2) == pytest.approx(
        metrics.ece(p, y, [1, 1, 2, 1, 1], bins=2)
    )


def test_ece_bins_by_hand() -> None:
    rng = np.random.default_rng(0)
    p, w = rng.random(500), rng.uniform(0.1, 2, 500)
    y = rng.random(500) < p**2
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in pairwise(edges):
        of_bin = (p >= low) & (p < high)
        if of_bin.any():
            miss = np.average(y[of_bin], weights=w[of_bin]) - np.average(
                p[of_bin], weights=w[of_bin]
            )
            expected += w[of_bin].sum() / w.sum() * abs(miss)
    assert metrics.ece(p, y, w) == pytest.approx(expected)
    assert metrics.ece([0.0, 1.0], [0, 1]) == 0
    assert metrics.ece([1.0, 0.0], [0, 1]) == 1
    with pytest.raises(UsageError, match="probabilities"):
        metrics.ece([0.0, 1.1], [0, 1])


def test_cllr_by_its_definition() -> None:
    rng = np.random.default_rng(1)
    y = rng.random(200) < 0.3
    ratio = np.exp(rng.normal(y * 2.0 - 1.0, 1.5))
    w = rng.uniform(0.1, 2, 200)
    plain = (np.log2(1 + 1 / ratio[y]).mean() + np.log2(1 + ratio[~y]).mean()) / 2
    assert metrics.cllr(np.log(ratio), y) == pytest.approx(plain)
    weighted = (
        np.average(np.log2(1 + 1 / ratio[y]), weights=w[y])
        + np.average(np.log2(1 + ratio[~y]), weights=w[~y])
    ) / 2
    assert metrics.cllr(np.log(ratio), y, w) == pytest.approx(weighted)
    assert metrics.cllr([0, 0, 0], [0, 1, 1]) == pytest.approx(1.0)
    assert metrics.cllr([-900.0, 900.0], [0, 1]) == 0
    assert metrics.cllr([900.0, -900.0], [0, 1]) == pytest.approx(900 / np.log(2))


def test_cllr_of_two_gaussians_is_the_integral() -> None:
    integrate, stats = pytest.importorskip("scipy.integrate"), pytest.importorskip("scipy.stats")
    # Score x, N(-1/2, 1) for reals and N(1/2, 1) for synthetic images: log-odds are x itself.
    expected = sum(
        0.5
        * integrate.quad(
            lambda x, sign=sign: stats.norm.pdf(x, sign / 2) * np.log2(1 + np.exp(-sign * x)), -9, 9
        )[0]
        for sign in (-1, 1)
    )
    q = stats.norm.ppf((np.arange(5000) + 0.5) / 5000)
    s, y = np.concatenate([q - 0.5, q + 0.5]), np.repeat([False, True], 5000)
    assert metrics.cllr(s, y) == pytest.approx(expected, abs=1e-4)
    # These ratios are right, so that no monotone calibration does better in the long run.
    assert metrics.min_cllr(s, y) == pytest.approx(expected, abs=5e-3)
    assert metrics.min_cllr(s, y) <= metrics.cllr(s, y)


def pooled(s: Floats, y: Any, w: Floats) -> float:
    """min Cllr by pooling adjacent violators one by one."""
    w = np.where(y, w / w[y].sum(), w / w[~y].sum())
    blocks = []
    for value in np.unique(s):
        at = s == value
        blocks.append([w[at & y].sum(), w[at].sum()])
        while len(blocks) > 1 and (blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]):
            ours, both = blocks.pop()
            blocks[-1][0] += ours
            blocks[-1][1] += both
    cost = 0.0
    for ours, both in blocks:
        p = ours / both
        if ours > 1e-15:
            cost -= ours * np.log2(p)
        if both - ours > 1e-15:
            cost -= (both - ours) * np.log2(1 - p)
    return cost / 2


@pytest.mark.parametrize("ties", [False, True])
def test_min_cllr_is_that_of_pooled_violators(ties: bool) -> None:
    for seed in range(8):
        s, y, w = case(seed, ties=ties, weighted=True)
        w = w + 0.1
        assert metrics.min_cllr(s, y, w) == pytest.approx(pooled(s, y, w), abs=1e-9)
        # The order alone counts.
        assert metrics.min_cllr(np.exp(s / 2), y, w) == pytest.approx(metrics.min_cllr(s, y, w))
    assert metrics.min_cllr([1, 2, 3, 4], [0, 0, 1, 1]) == 0
    assert metrics.min_cllr([4, 3, 2, 1], [0, 0, 1, 1]) == pytest.approx(1.0)


def test_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    ours, theirs = rng.normal(1.0, size=40), rng.normal(size=60)
    s, y = np.concatenate([ours, theirs]), np.repeat([True, False], [40, 60])

    def both(a: Floats, b: Floats) -> float:
        return float((np.sign(a[:, None] - b).mean() + 1) / 2)

    expected = stats.bootstrap(
        (ours, theirs), both, vectorized=False, paired=False, method="percentile",
        n_resamples=800, random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = bootstrap(auroc, s, y, samples=800)
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)
    draws = [
        metrics.ranking(s[w > 0], y[w > 0], w[w > 0])["auroc"]
        for w in metrics.resampled_weights(y, samples=800)
    ]
    again = metrics.estimate(auroc(s, y), draws)
    assert again.low == pytest.approx(expected.low, abs=0.01)
    assert again.high == pytest.approx(expected.high, abs=0.01)


def test_reals_are_drawn_alike_whatever_the_generator() -> None:
    reals = [f"source {k % 7}" for k in range(30)]

    def draws(synthetic: int) -> Floats:
        y = np.repeat([True, False], [synthetic, 30])
        groups = np.array([*(f"image {k}" for k in range(synthetic)), *reals])
        return np.array(
            [w[synthetic:] for w in metrics.resampled_weights(y, groups=groups, samples=20)]
        )

    np.testing.assert_array_equal(draws(3), draws(11))


def test_an_estimate_leaves_out_what_could_not_be_measured() -> None:
    assert metrics.estimate(2.0, [1.0, np.nan, 3.0], level=0.999).high == pytest.approx(3, abs=0.01)
    none = metrics.estimate(2.0, [np.nan, np.nan])
    assert none.value == 2
    assert np.isnan([none.low, none.high]).all()


def test_what_is_drawn_together() -> None:
    y = np.array([True, True, True, False, False])
    images = np.array([7, 7, 8, 9, 10])
    sources = np.array(["a", "a", "b", "c", "c"])
    groups, kinds = metrics.draw_together(y, images, sources)
    assert kinds == ("over images", "over images")
    assert groups.tolist() == ["image 7", "image 7", "image 8", "image 9", "image 10"]
    groups, kinds = metrics.draw_together(y, images, sources, few=2)
    assert kinds == ("over sources", "over images")
    assert groups.tolist() == ["source a", "source a", "source b", "image 9", "image 10"]
    unknown = np.array(["a", "a", "", "c", "c"])
    groups, kinds = metrics.draw_together(y, images, unknown, few=1)
    assert kinds == ("over images", "over sources")
    assert groups.tolist() == ["image 7", "image 7", "image 8", "source c", "source c"]

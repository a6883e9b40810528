"""`masksim.metrics` against scikit-learn, pairs counted one by one, and cases done by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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
    s = np.repeat(group_values, 25)  # 500 rows, but 20 images
    y = np.ones(500, bool)
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

"""`masksim.intervals`: against SciPy, and the shares that they cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masksim.calibration import Calibration
from masksim.errors import UsageError
from masksim.intervals import _t_quantile, clopper_pearson, design_effect, grouped_interval


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (0, 10),
        (3, 10),
        (10, 10),
        (17, 1744),
        (0, 300),
        (2.7, 55.3),
        (1, 1),
        (0.02, 40.5),
        (0.6, 2500.0),
    ],
)
def test_clopper_pearson_is_scipys(count: float, size: float) -> None:
    found = clopper_pearson(count, size)
    low = 0.0 if count == 0 else stats.beta.ppf(0.025, count, size - count + 1)
    high = 1.0 if count == size else stats.beta.ppf(0.975, count + 1, size - count)
    assert found.low == pytest.approx(low, rel=1e-9, abs=1e-15)
    assert found.high == pytest.approx(high, rel=1e-9)
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

"""`masksim.likelihood`: likelihood ratios against densities that are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from masksim.errors import ModelError
from masksim.likelihood import LikelihoodRatios


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

"""`masksim.populations`: the largest rate over all populations counts."""

from __future__ import annotations

import numpy as np
import pytest

from masksim.calibration import Calibration
from masksim.errors import UsageError
from masksim.populations import Populations


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

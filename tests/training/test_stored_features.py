"""`masksim.training.stored_features`: what is kept of the calibration photos, and that a bad file
is refused."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest

from masksim.errors import ModelError
from masksim.training.heads import cosines
from masksim.training.stored_features import ReferencePhotos, pack, spread_over_sources, unpack


def photos(m: int = 40, step: float = 1.0) -> ReferencePhotos:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(m, 2, 16, 8)).astype(np.float32).clip(-6, 6)
    kinds = np.array(["jpeg", "reduced", "lossless"])
    return ReferencePhotos(z, step, np.arange(m), np.arange(m) % 5, kinds[np.arange(m) % 3])


def test_a_round_trip_costs_half_a_step() -> None:
    before = photos(step=0.5)
    after = ReferencePhotos.from_arrays(before.to_arrays())
    assert np.abs(after.features - before.features).max() <= 0.25
    # Rounding is uniform over a step: its variance is what `noise` says.
    assert np.var(after.features - before.features) == pytest.approx(after.noise, rel=0.05)
    for name in ("rows", "sources", "histories"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    again = ReferencePhotos.from_arrays(after.to_arrays())
    np.testing.assert_array_equal(again.features, after.features)


def test_photos_and_images_travel_together() -> None:
    a, b = photos(m=40), photos(m=12)
    for images in (None, b):
        found, others = unpack(pack(a, images))
        np.testing.assert_array_equal(found.rows, a.rows)
        assert (others is None) == (images is None)
        if others is not None:
            assert others.features.shape == b.features.shape
    with pytest.raises(ModelError, match="unknown reference images"):
        unpack({**pack(a, None), "films.codes": np.zeros(1)})


def test_it_is_small() -> None:
    arrays = photos(m=200).to_arrays()
    # The entropy of a normal variable rounded to whole deviations is 2.1 bits.
    assert arrays["codes"].nbytes < 0.30 * 200 * 2 * 16 * 8


@pytest.mark.parametrize("step", [0.5, 1.0])
def test_noise_is_taken_out_of_the_norm(step: float) -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1200, 4096)).astype(np.float32)
    mask = rng.uniform(0.1, 1, (1, 1, 64, 64)).astype(np.float16)
    reference = rng.normal(size=(1, 1, 64, 64)).astype(np.float16)
    true = cosines(z, mask, reference)
    coarse = (np.rint(z / step) * step).astype(np.float32)
    found = cosines(coarse, mask, reference, np.full(1200, step**2 / 12))
    naive = cosines(coarse, mask, reference, np.zeros(1200))
    slope = np.polyfit(true, found, 1)[0]
    assert slope == pytest.approx(1, abs=0.025)
    assert np.polyfit(true, naive, 1)[0] < slope
    # It blurs the scores by little: the variance grows by that of the rounding.
    assert np.std(found) == pytest.approx(np.std(true) * np.sqrt(1 + step**2 / 12), rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": None}, "arrays"),
        ({"extra": np.zeros(1)}, "arrays"),
        ({"codes": np.frombuffer(b"no deflate", np.uint8)}, "invalid"),
        ({"codes": np.frombuffer(zlib.compress(bytes(10**6)), np.uint8)}, "values for the shape"),
        ({"shape": np.array([40, 2, 16])}, "shape"),
        ({"shape": np.array([2**20, 2**20, 16, 8])}, "shape"),
        ({"shape": np.array([-1, 2, 16, 8])}, "shape"),
        ({"step": np.array(np.nan, np.float32)}, "step"),
        ({"rows": np.arange(3)}, "differ in number"),
        ({"histories": np.full(40, 9, np.uint8)}, "invalid"),
    ],
)
def test_bad_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {**photos().to_arrays(), **change}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    with pytest.raises(ModelError, match=message) as caught:
        ReferencePhotos.from_arrays(arrays)
    assert caught.value.code == "model_invalid"


def test_photos_are_spread_over_sources() -> None:
    sources = ["large"] * 1000 + ["middle"] * 30 + ["small"] * 2
    keys = [f"{i:x}" for i in range(len(sources))]
    chosen = spread_over_sources(sources, keys, 62)
    counts = Counter(sources[i] for i in chosen)
    assert counts == {"large": 30, "middle": 30, "small": 2}
    assert chosen == sorted(chosen)
    # Which ones does not depend on the order they come in.
    turned = spread_over_sources(sources[::-1], keys[::-1], 62)
    assert {keys[::-1][i] for i in turned} == {keys[i] for i in chosen}
    assert len(spread_over_sources(sources, keys, 10**6)) == len(sources)
    few = spread_over_sources(sources, keys, 2)  # fewer than sources
    assert len(few) == len({sources[i] for i in few}) == 2
    assert spread_over_sources(sources, keys, 0) == []
    assert spread_over_sources([], [], 5) == []

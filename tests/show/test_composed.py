"""`masksim.show.composed`: all channels in one map, and its spots in words."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from masksim.results import PlaneMap
from masksim.show.composed import compose, in_words, marks


def test_the_map_of_all_channels_has_their_sum() -> None:
    axis = np.fft.fftshift(np.fft.fftfreq(64))
    rng = np.random.default_rng(2)
    luma, chroma = rng.normal(size=(2, 64, 64)).astype(np.float32)
    planes = [
        PlaneMap("luma", luma, luma, luma, axis, axis),
        PlaneMap("chroma", chroma, chroma, chroma, axis / 2, axis / 2),
    ]
    whole = compose(planes)
    assert whole.values.sum() == pytest.approx(float(luma.sum() + chroma.sum()), abs=1e-3)
    # Each frequency lies where it is in the image, colour's as well.
    one = np.zeros((64, 64), np.float32)
    one[32 + 8, 32 + 16] = 1.0  # 1/8 down and 1/4 across, of this axis
    for scale in (1.0, 0.5):
        found = compose([PlaneMap("x", one, one, one, axis * scale, axis * scale)])
        y, x = np.unravel_index(int(found.values.argmax()), found.values.shape)
        assert (found.axis[y], found.axis[x]) == (scale / 8, scale / 4)
        assert found.values[y, x] == pytest.approx(1)


def planted(fy: float, fx: float, n: int = 128) -> PlaneMap:
    axis = np.fft.fftshift(np.fft.fftfreq(n))
    values = np.random.default_rng(1).normal(scale=0.01, size=(n, n)).astype(np.float32)
    for sign in (1, -1):
        y, x = (int(np.abs(axis - sign * f).argmin()) for f in (fy, fx))
        values[y, x] = 5.0
    return PlaneMap("luma, median", values, values, values, axis, axis)


@pytest.mark.parametrize("fy", [-0.25, 0.0, 0.25])
@pytest.mark.parametrize("fx", [0.125, 0.375])
def test_a_planted_frequency_is_marked(fy: float, fx: float) -> None:
    other = planted(0.1, 0.1)
    quiet = dataclasses.replace(other, values=np.zeros_like(other.values))
    found = marks(compose([quiet, planted(fy, fx)]))
    assert found[0].fx == pytest.approx(fx, abs=0.03)
    assert found[0].fy == pytest.approx(fy, abs=0.03)
    positive = float(np.maximum(planted(fy, fx).values, 0).sum())
    assert found[0].share == pytest.approx(10 / positive, abs=0.05)


def test_nothing_to_mark() -> None:
    plane = planted(0.1, 0.1)
    lowered = dataclasses.replace(plane, values=-np.ones_like(plane.values))
    assert marks(compose([lowered])) == []


@pytest.mark.parametrize(
    ("fx", "fy"), [(0.125, 0.0), (0.0, 0.125), (0.125, 0.125), (0.125, -0.125)]
)
def test_stripes_in_words_are_those_of_the_wave(fx: float, fy: float) -> None:
    y, x = np.mgrid[:64, :64]
    wave = np.cos(2 * np.pi * (fx * x + fy * y))
    same = {
        "upright": np.abs(wave[1:] - wave[:-1]).max(),
        "level": np.abs(wave[:, 1:] - wave[:, :-1]).max(),
        "rising": np.abs(wave[1:, :-1] - wave[:-1, 1:]).max(),  # one up, one right
        "falling": np.abs(wave[1:, 1:] - wave[:-1, :-1]).max(),  # one down, one right
    }
    word = min(same, key=lambda key: float(same[key]))
    found = in_words(fx, fy)
    assert found.startswith((word, f"stripes {word}"))
    assert found.endswith(f"repeating every {round(1 / math.hypot(fx, fy), 1):g} pixels")
    # Of a coarse one no direction can be told.
    assert in_words(fx / 8, fy / 8) == "coarse patterns, of 32 pixels and more"

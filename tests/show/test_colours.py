"""`masksim.show.colours`: signs are told apart by everybody, and scales end where values do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.show.colours import (
    colour_limit,
    colour_scale,
    colour_steps,
    diverging_colours,
    palette,
)

# Viénot, Brettel and Mollon 1999: linear sRGB as a dichromat sees it.
PROTANOPE = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
DEUTERANOPE = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1]])


def linear(colours: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(colours, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def test_zero_is_neutral_and_the_signs_are_blue_and_red() -> None:
    low, zero, high = diverging_colours(np.array([-2.0, 0.0, 2.0]), 1.0).astype(int)
    assert len(set(zero)) == 1
    assert zero[0] > 240
    assert low[2] > low[0]
    assert high[0] > high[2]
    np.testing.assert_array_equal(diverging_colours(np.array([9.0]), 1.0)[0], high)  # no wrapping


def test_lightness_falls_to_both_sides() -> None:
    colours = linear(diverging_colours(np.linspace(-1, 1, 201), 1.0))
    luminance = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance[:101]) > 0).all()
    assert (np.diff(luminance[100:]) < 0).all()


@pytest.mark.parametrize("seen", [np.eye(3), PROTANOPE, DEUTERANOPE])
def test_the_signs_are_told_apart_without_red_or_green_cones(seen: NDArray[Any]) -> None:
    sizes = np.linspace(0.25, 1.0, 20)
    positive = linear(diverging_colours(sizes, 1.0)) @ seen.T
    negative = linear(diverging_colours(-sizes, 1.0)) @ seen.T
    # Blue against yellow is what a dichromat keeps.
    tint = [(c[:, 2] - c[:, 0]) / c.sum(axis=1) for c in (negative, positive)]
    assert (tint[0] - tint[1] > 0.15).all()


def test_the_scale_is_symmetric_and_masked_cells_do_not_count() -> None:
    values = np.zeros((100, 100))
    values[0] = np.linspace(-2.0, 1.01, 100)
    assert colour_limit(values) == np.percentile(np.abs(values[0]), 99.5)
    assert colour_limit(np.zeros((3, 3))) == 1.0
    assert colour_scale(values)[0] == 0.0
    far: NDArray[Any] = np.linspace(-8.0, -5.0, 401).reshape(1, -1)
    assert colour_scale(far) == pytest.approx((-6.5, 1.5), rel=0.01)


@pytest.mark.parametrize("shades", [1, 105, 127])
def test_a_palette_holds_the_colours_of_its_steps(shades: int) -> None:
    values = np.linspace(-3.0, 3.0, 6 * shades + 1)
    steps = colour_steps(values, 1.5, shades)
    assert (steps[0], steps[3 * shades], steps[-1]) == (0, shades, 2 * shades)
    colours = np.frombuffer(palette(shades), np.uint8).reshape(-1, 3)
    rounded = (steps.astype(int) - shades) / shades
    np.testing.assert_array_equal(colours[steps], diverging_colours(rounded, 1.0))
    assert np.abs(rounded - np.clip(values / 1.5, -1, 1)).max() <= 0.5 / shades + 1e-12

"""The colours of maps: blue below, white, red above; and where a scale of them ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "PERCENTILE",
    "colour_limit",
    "colour_scale",
    "colour_steps",
    "diverging_colours",
    "palette",
]

PERCENTILE = 99.5
"""Of the sizes of values: there a scale of colours ends."""

# Blue, white, red with lightness falling alike to both sides: told apart with any colour vision.
_ANCHORS = np.array(
    [
        [10, 48, 107],
        [38, 110, 180],
        [148, 196, 223],
        [248, 248, 248],
        [245, 170, 130],
        [208, 72, 62],
        [108, 4, 32],
    ],
    dtype=np.float64,
)


def diverging_colours(values: NDArray[Any], limit: float) -> NDArray[np.uint8]:
    """Colour numbers from blue (negative) over white (zero) to red (positive).

    Parameters
    ----------
    values
        (...) any finite numbers.
    limit
        Positive: the absolute value from which on the colour does not change any more.

    Returns
    -------
    ndarray
        (..., 3) uint8, sRGB.
    """
    place = (np.clip(np.asarray(values, dtype=np.float64) / limit, -1.0, 1.0) + 1.0) / 2.0
    at = np.linspace(0.0, 1.0, len(_ANCHORS))
    channels = [np.interp(place, at, _ANCHORS[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def colour_steps(values: NDArray[Any], limit: float, shades: int) -> NDArray[np.uint8]:
    """Round numbers to colours of `palette`.

    Parameters
    ----------
    values
        (...) any finite numbers.
    limit
        Positive: the absolute value from which on the colour does not change any more.
    shades
        To either side of white, at most 127.

    Returns
    -------
    ndarray
        (...) uint8, from 0, the bluest, over `shades`, white, to 2 * `shades`, the reddest.
    """
    steps = np.rint(np.clip(values / limit, -1, 1) * shades).astype(np.int16) + shades
    return steps.astype(np.uint8)


def palette(shades: int) -> bytes:
    """Give the colours that `colour_steps` points at, three bytes each, sRGB."""
    return diverging_colours(np.arange(-shades, shades + 1), shades).tobytes()


def colour_limit(values: NDArray[np.float64]) -> float:
    """Tell where a symmetric scale of colours ends.

    Parameters
    ----------
    values
        (...) of a map; those of exactly zero are masked out, and do not count.

    Returns
    -------
    float
        The `PERCENTILE` of the values' sizes; positive.
    """
    sizes = np.abs(values[values != 0.0])
    return float(np.percentile(sizes, PERCENTILE)) if sizes.size else 1.0


def colour_scale(values: NDArray[np.float64]) -> tuple[float, float]:
    """Tell which value is white, and how far from it the colours end.

    Parameters
    ----------
    values
        (...) of a map.

    Returns
    -------
    tuple of float
        Centre, which is zero where values lie on both sides of it, else their median; and the
        distance from it, positive.
    """
    middle = float(np.median(values))
    spread = colour_limit(values - middle)
    return (middle, spread) if abs(middle) > 0.5 * spread else (0.0, colour_limit(values))

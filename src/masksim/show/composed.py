"""A similarity map with all its channels in one, and what stands out in it, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.results import PlaneMap

__all__ = ["ComposedMap", "Mark", "axis_end", "compose", "in_words", "marks"]

SIDE = 128
"""Frequencies along a side of a composed map."""

_MARKS = 3
_COARSE = 1 / 32  # cycles per pixel under which a direction cannot be told
_HALF = 3  # half the side of a spot, in frequencies


@dataclass(frozen=True, eq=False)
class ComposedMap:
    """What each frequency of the image adds to a similarity, over all channels.

    Attributes
    ----------
    values
        float64 (`SIDE`, `SIDE`), frequency 0 in the middle; their sum is the similarity.
    axis
        float64 (`SIDE`,): frequencies of rows and columns, cycles per pixel.
    """

    values: NDArray[np.float64]
    axis: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """A spot of a composed map, together with its mirror image.

    Attributes
    ----------
    fx, fy
        Across and down, cycles per pixel.
    share
        Of all that raised the similarity.
    words
        How it looks in the image.
    """

    fx: float
    fy: float
    share: float
    words: str


def compose(planes: Sequence[PlaneMap]) -> ComposedMap:
    """Add up all channels of a similarity map, at the frequencies of the image itself.

    Parameters
    ----------
    planes
        Of colour they may have half the resolution: their axes end at 1/4.

    Returns
    -------
    ComposedMap
    """
    total = np.zeros((SIDE, SIDE))
    for plane in planes:
        values = np.asarray(plane.values, dtype=np.float64)
        total += _onto(plane.fy) @ values @ _onto(plane.fx).T
    return ComposedMap(total, np.arange(SIDE) / SIDE - 0.5)


def _onto(axis: NDArray[Any]) -> NDArray[np.float64]:
    """Share out frequencies (N,) to the two next to them of a composed map: (`SIDE`, N)."""
    place = (np.asarray(axis, dtype=np.float64) + 0.5) * SIDE
    below = np.floor(place).astype(np.int64)
    found = np.zeros((SIDE, len(place)))
    at = np.arange(len(place))
    found[below % SIDE, at] += 1 - (place - below)
    found[(below + 1) % SIDE, at] += place - below
    return found


def marks(composed: ComposedMap) -> list[Mark]:
    """Find the spots that raised the similarity most, at most three.

    A spot is a square of frequencies and its mirror image: single frequencies are mostly noise.
    """
    raised = float(np.sum(np.maximum(composed.values, 0)))
    if raised <= 0:
        return []
    axis = composed.axis
    spots = _spots(composed)
    found: list[Mark] = []
    for _ in range(_MARKS):
        y, x = np.unravel_index(int(spots.argmax()), spots.shape)
        if spots[y, x] <= 0:
            break
        fy, fx = _middle_of(composed, float(axis[y]), float(axis[x]))
        there = _square(axis, fy, fx) | _square(axis, -fy, -fx)
        share = float(np.sum(composed.values[there])) / raised
        found.append(Mark(fx, fy, share, in_words(fx, fy)))
        spots[_square(axis, float(axis[y]), float(axis[x]), 2)] = -np.inf
    return found


def _square(axis: NDArray[np.float64], fy: float, fx: float, times: int = 1) -> NDArray[np.bool_]:
    """Tell which frequencies lie in the spot around one, or in a larger one."""
    near = (times * _HALF + 0.01) / SIDE
    found: NDArray[np.bool_] = (np.abs(axis[:, None] - fy) <= near) & (np.abs(axis - fx) <= near)
    return found


def _middle_of(composed: ComposedMap, fy: float, fx: float) -> tuple[float, float]:
    """Move a spot to the middle of what raises the similarity in it."""
    axis = composed.axis
    weights = np.where(_square(axis, fy, fx), np.maximum(composed.values, 0), 0)
    total = float(weights.sum())
    moved = []
    for along in (weights.sum(axis=1), weights.sum(axis=0)):
        middle = float(along @ axis) / total
        moved.append(float(axis[int(np.abs(axis - middle).argmin())]))
    return moved[0], moved[1]


def _spots(composed: ComposedMap) -> NDArray[np.float64]:
    """Sum over a square around each frequency; -inf in the half that mirrors the other."""
    axis, side = composed.axis, 2 * _HALF + 1
    padded = np.pad(composed.values, (_HALF + 1, _HALF))
    sums = padded.cumsum(axis=0).cumsum(axis=1)
    found = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    # The mirror image counts as well, but for what both have in common.
    common = np.maximum(0, 1 - 2 * np.abs(axis) * SIDE / side)
    found *= 2 - common[:, None] * common
    mirrored = (axis < 0) | ((axis == 0) & (axis[:, None] < 0))
    found[mirrored] = -np.inf
    return np.asarray(found)


def in_words(fx: float, fy: float) -> str:
    """Say how a frequency looks in the image.

    Parameters
    ----------
    fx, fy
        Across and down, cycles per pixel.

    Returns
    -------
    str
        ``"upright stripes repeating every 8 pixels"``.
    """
    radius = math.hypot(fx, fy)
    if radius < _COARSE:
        return f"coarse patterns, of {1 / _COARSE:.0f} pixels and more"
    period = f"{1 / radius:.1f}" if radius > 0.1 else f"{1 / radius:.0f}"
    repeating = f"repeating every {period.removesuffix('.0')} pixels"
    angle = math.degrees(math.atan2(abs(fy), abs(fx)))
    if angle < 8:
        return f"upright stripes {repeating}"
    if angle > 82:
        return f"level stripes {repeating}"
    # Rows count downwards: along (fx, fy) is down to the right, so that stripes rise to the right.
    return f"stripes {'rising' if fx * fy > 0 else 'falling'} to the right, {repeating}"


def axis_end(axis: NDArray[Any]) -> float:
    """Where an axis of frequencies ends: 0.5, or 0.25 where colour has half the resolution."""
    n = len(axis)
    return (float(axis[-1]) - float(axis[0])) / max(n - 1, 1) * n / 2 if n > 1 else 0.5

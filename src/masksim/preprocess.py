"""From decoded pixels to the windows and the colour space in which a residual is computed.

The same functions serve training, evaluation and detection, so that all three see the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from masksim.arrays import Array, array_namespace, contiguous
from masksim.errors import ImageError, UsageError

ColourSpace: TypeAlias = Literal["RGB", "YCbCr-BT601-studio-8bit", "YCbCr-BT601-full"]
COLOUR_SPACES: tuple[ColourSpace, ...] = get_args(ColourSpace)

GRID = 8
"""Side of a JPEG block: aligned windows start at multiples of it, keeping the block phase."""

# ITU-R BT.601, 8-bit RGB to studio-range YCbCr, in thousandths of a level per full-scale component.
_STUDIO_NUMERATORS = np.array(
    [[65481, 128553, 24966], [-37797, -74203, 112000], [112000, -93786, -18214]], dtype=np.int32
)
_STUDIO_DENOMINATOR = 255_000
_STUDIO_OFFSETS = (16, 128, 128)

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in luma: ITU-R BT.601, as used by JPEG."""
_LUMA_THOUSANDTHS = (299, 587, 114)

# How many positions are compared when windows are spread: all, in images under some megapixels.
_CANDIDATES = 4096


def _check_fits(height: int, width: int, size: int) -> None:
    if size < 1:
        raise UsageError(f"the window size must be at least 1 pixel, got {size}")
    if height < size or width < size:
        raise ImageError(
            f"the image is {width}x{height} pixels, smaller than the window of {size}x{size}",
            code="too_small",
        )


def centre_window(height: int, width: int, size: int, *, aligned: bool = True) -> tuple[int, int]:
    """Top left corner of the central window.

    Parameters
    ----------
    height, width : int
        Size of the image, pixels.
    size : int
        Side of the square window, pixels.
    aligned : bool
        Move up and left to a multiple of 8 pixels, so that the 8x8 JPEG grid keeps its phase.

    Returns
    -------
    (y, x) : tuple of int
        The window is ``pixels[y : y + size, x : x + size]``.

    Raises
    ------
    ImageError
        Code ``too_small`` if a side of the image is smaller than `size`.
    """
    _check_fits(height, width, size)
    step = GRID if aligned else 1
    y = max(0, height // 2 - size // 2) // step * step
    x = max(0, width // 2 - size // 2) // step * step
    return y, x


def spread_windows(
    height: int, width: int, size: int, count: int, *, min_shift: int = GRID
) -> list[tuple[int, int]]:
    """Top left corners of up to `count` aligned windows, the centre first, spread evenly.

    Each further window is the candidate farthest from all those before it (the corners come
    after the centre), so the first k of n windows are the k windows. Nothing is random.

    Parameters
    ----------
    height, width : int
        Size of the image, pixels.
    size : int
        Side of the square windows, pixels.
    count : int
        How many windows are wanted, at least 1.
    min_shift : int
        Two windows differ by at least this many pixels along one axis at least. With `size` they
        do not overlap; with the default they are merely distinct.

    Returns
    -------
    list of (y, x)
        Multiples of 8, distinct; fewer than `count` where the image has no room for more, and
        at most a few thousand.

    Raises
    ------
    ImageError
        Code ``too_small`` if a side of the image is smaller than `size`.
    UsageError
        If `count` or `min_shift` is under 1.
    """
    if count < 1 or min_shift < 1:
        raise UsageError(f"count and min_shift must be at least 1, got {count} and {min_shift}")
    return list(_spread(height, width, size, count, min_shift))


@lru_cache(maxsize=256)  # images of a collection often have one size
def _spread(
    height: int, width: int, size: int, count: int, min_shift: int
) -> tuple[tuple[int, int], ...]:
    chosen = [centre_window(height, width, size)]
    rows, columns = (height - size) // GRID + 1, (width - size) // GRID + 1
    if rows * columns > _CANDIDATES:  # thin the longer axis, then the other if need be
        side = int(_CANDIDATES**0.5)
        rows, columns = (
            min(rows, max(side, _CANDIDATES // columns)),
            min(columns, max(side, _CANDIDATES // rows)),
        )
    candidates = np.stack(
        np.meshgrid(
            _positions(height - size, rows), _positions(width - size, columns), indexing="ij"
        ),
        axis=-1,
    ).reshape(-1, 2)
    # Squared distance and largest shift of every candidate to the nearest window chosen so far.
    distance = np.full(len(candidates), np.iinfo(np.int64).max)
    shift = distance.copy()
    while True:
        offset = candidates - np.array(chosen[-1])
        distance = np.minimum(distance, (offset**2).sum(axis=1))
        shift = np.minimum(shift, np.abs(offset).max(axis=1))
        free = np.where(shift >= min_shift, distance, -1)
        best = int(free.argmax())  # the first of equals: top to bottom, left to right
        if len(chosen) == count or free[best] < 0:
            return tuple(chosen)
        chosen.append((int(candidates[best, 0]), int(candidates[best, 1])))


def _positions(last: int, count: int) -> list[int]:
    """`count` multiples of 8 from 0 to `last`, evenly spaced."""
    blocks = last // GRID
    return [i * blocks // max(1, count - 1) * GRID for i in range(count)]


def to_colour(pixels: NDArray[np.uint8], space: ColourSpace) -> NDArray[np.float32]:
    """8-bit sRGB pixels as channels-first planes in a colour space.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (..., H, W, 3)
        sRGB.
    space : {"RGB", "YCbCr-BT601-studio-8bit", "YCbCr-BT601-full"}
        - ``RGB``: the values / 255.
        - ``YCbCr-BT601-studio-8bit``: ITU-R BT.601 studio range (Y 16..235, Cb and Cr 16..240),
          *floored* to 8 bits, / 255. This is what the original computes. Here the floor is exact
          (integer arithmetic); in floating point 46 of the 3 * 2**24 values fall one level lower.
        - ``YCbCr-BT601-full``: the luma and chroma of JPEG, Y in [0, 1], Cb and Cr in [0, 1]
          with grey at 0.5, not rounded.

    Returns
    -------
    ndarray of float32, shape (..., 3, H, W)
        In [0, 1], C-contiguous.

    Raises
    ------
    UsageError
        If `pixels` is not uint8 with three channels last, or the space is unknown.
    """
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise UsageError(
            "pixels must be uint8 of shape (..., H, W, 3), got "
            f"{pixels.dtype} of shape {tuple(pixels.shape)}"
        )
    return planes_of(contiguous(np.moveaxis(pixels, -1, -3)), space)


def planes_of(levels: Array, space: ColourSpace) -> Array:
    """`to_colour` of levels that are channels first already.

    Parameters
    ----------
    levels : array, shape (..., 3, H, W)
        Integers from 0 to 255, of any type that holds them.
    space
        See `to_colour`.

    Returns
    -------
    array of float32, shape (..., 3, H, W)

    Raises
    ------
    UsageError
        The space is unknown.
    """
    xp = array_namespace(levels)
    if space == "RGB":
        return xp.astype(levels, xp.float32) / np.float32(255)
    if space == "YCbCr-BT601-studio-8bit":
        red, green, blue = (xp.astype(levels[..., c, :, :], xp.int32) for c in range(3))
        planes = [
            (red * weights[0] + green * weights[1] + blue * weights[2]) // _STUDIO_DENOMINATOR
            + offset
            for weights, offset in zip(_STUDIO_NUMERATORS, _STUDIO_OFFSETS, strict=True)
        ]
        return xp.astype(xp.stack(planes, axis=-3), xp.float32) / np.float32(255)
    if space == "YCbCr-BT601-full":
        r, g, b = (xp.astype(levels[..., c, :, :], xp.float64) / 255 for c in range(3))
        luma = r * LUMA[0] + g * LUMA[1] + b * LUMA[2]
        planes = [
            luma,
            0.5 + (b - luma) / (2 * (1 - LUMA[2])),
            0.5 + (r - luma) / (2 * (1 - LUMA[0])),
        ]
        out = xp.stack([xp.astype(plane, xp.float32) for plane in planes], axis=-3)
        return xp.clip(out, 0, 1)  # rounding alone can leave the range
    raise UsageError(f"unknown colour space {space!r}; known: {', '.join(COLOUR_SPACES)}")


def luma_chroma(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Planes of the shared recipe: luma as it is, chroma at half the resolution.

    Most files keep chroma at half the resolution (4:2:0), and whether they do tells of the file,
    not of its maker: what lies above is left out for all alike.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (B, H, W, 3)
        sRGB; H and W even.

    Returns
    -------
    list of ndarray of float32
        Luma, (B, 1, H, W), and Cb, Cr, (B, 2, H / 2, W / 2): ITU-R BT.601 full range / 255, the
        chroma averaged over 2x2 pixels and doubled, to bring its residual near that of luma.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise UsageError(
            f"pixels must be uint8 of shape (B, H, W, 3), got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}"
        )
    # One plane after another: all that follows runs along rows.
    levels = np.empty((3, *pixels.shape[:3]), dtype=np.float32)
    levels[:] = np.moveaxis(pixels, -1, 0)
    return luma_chroma_of(levels)


def luma_chroma_of(levels: Array) -> list[Array]:
    """`luma_chroma` of levels that are channels first already: float32 (3, B, H, W)."""
    xp = array_namespace(levels)
    # In thousandths of a level all sums are integers under 2**24, which single precision holds
    # exactly: one division rounds, and nothing else does.
    luma = _weighted(levels, _LUMA_THOUSANDTHS)
    luma /= np.float32(255_000)
    summed = sums_of_four(levels)
    brightness = _weighted(summed, _LUMA_THOUSANDTHS)
    chroma = []
    for channel, weight in ((2, LUMA[2]), (0, LUMA[0])):
        plane = summed[channel, ...] * np.float32(1000)
        plane -= brightness
        # Of four pixels, in [0, 1], and doubled; 2 * (1 - weight) brings the difference to +-0.5.
        plane *= np.float32(2 / (4 * 255_000 * 2 * (1 - weight)))
        plane += np.float32(1)
        chroma.append(xp.clip(plane, 0, 2))
    return [luma[:, None, ...], xp.stack(chroma, axis=1)]


def sums_of_four(planes: Array) -> Array:
    """Sum 2x2 pixels: (..., H, W), H and W even, to (..., H / 2, W / 2)."""
    rows = planes[..., 0::2, :] + planes[..., 1::2, :]
    return rows[..., 0::2] + rows[..., 1::2]


def cross_difference(planes: Array) -> Array:
    """Each pixel and its diagonal neighbour less the other two: (..., H, W) to (..., H-1, W-1)."""
    return planes[..., :-1, :-1] + planes[..., 1:, 1:] - planes[..., 1:, :-1] - planes[..., :-1, 1:]


def half_cross_difference(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Cross difference of R, G and B at half the resolution, where chroma is in every file.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (B, H, W, 3)
        sRGB; H and W even.

    Returns
    -------
    ndarray of float32, shape (B, 3, H / 2, W / 2)
        In levels times four, last row and column 0.
    """
    levels = np.moveaxis(pixels, -1, 1).astype(np.float32)
    half = sums_of_four(levels)
    out = np.zeros_like(half)
    out[..., :-1, :-1] = cross_difference(half)
    return out


def _weighted(channels: Array, weights: Sequence[int]) -> Array:
    """Sum of the channels times their weights: (3, ...) -> (...)."""
    total = channels[0, ...] * np.float32(weights[0])
    for k in range(1, len(weights)):
        total += channels[k, ...] * np.float32(weights[k])
    return total


def central_part(height: int, width: int, region: int) -> tuple[int, int, int, int]:
    """Part of an image in which the shared recipe looks: the rest need not be kept.

    Parameters
    ----------
    height, width : int
        Size of the image, pixels.
    region : int
        Largest side of the part, pixels.

    Returns
    -------
    (y, x, height, width) : tuple of int
        y and x are multiples of 8.
    """
    top, left = ((side - min(side, region)) // 2 // GRID * GRID for side in (height, width))
    return top, left, min(height, region), min(width, region)


def shared_windows(
    height: int,
    width: int,
    size: int,
    count: int,
    *,
    smallest: int,
    region: int,
    spacing: int,
) -> tuple[list[tuple[int, int]], int, int]:
    """Windows of the shared recipe, for images smaller than a window too.

    Parameters
    ----------
    height, width : int
        Size of the image, pixels.
    size : int
        Side of a window, a multiple of 8. A side of the image that is shorter sets the window's
        side to its own length, rounded down to a multiple of 8.
    count : int
        At most this many windows, see `spread_windows`.
    smallest : int
        Least side of an image that is analysed, pixels.
    region : int
        The windows lie in the central region of at most this side, pixels.
    spacing : int
        Two windows are at least so far apart along one axis at least, pixels.

    Returns
    -------
    corners : list of (y, x)
        Multiples of 8, the central window first.
    window_height, window_width : int

    Raises
    ------
    ImageError
        Code ``too_small`` if a side is under `smallest`.
    """
    if min(height, width) < smallest:
        raise ImageError(
            f"the image is {width}x{height} pixels; both sides must have at least {smallest}",
            code="too_small",
        )
    top, left, height, width = central_part(height, width, region)
    if min(height, width) >= size:
        corners = spread_windows(height, width, size, count, min_shift=spacing)
        return [(top + y, left + x) for y, x in corners], size, size
    window_height = min(size, height // GRID * GRID)
    window_width = min(size, width // GRID * GRID)
    # Along the longer side there may be room for more than one window; along the shorter, one.
    last = max(height - window_height, width - window_width)
    starts: list[int] = []
    for start in (last // 2 // GRID * GRID, 0, last // GRID * GRID):
        if len(starts) < count and all(abs(start - other) >= spacing for other in starts):
            starts.append(start)
    tall = height > width
    return (
        [(top + start * tall, left + start * (not tall)) for start in starts],
        window_height,
        window_width,
    )

"""What an image itself shows that bears on its false-positive rate: size, noise, sharpness, ...

Textured, noisy and small photos resemble generators more often than smooth, large ones. So rates
are measured among photos of the same kind (`masksim.strata.Strata`), and an image unlike all
photos that the rates were measured on is told by the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from masksim.arrays import Array, array_namespace, contiguous
from masksim.errors import UsageError
from masksim.preprocess import LUMA, cross_difference, sums_of_four

if TYPE_CHECKING:
    from numpy.typing import NDArray

Trait: TypeAlias = Literal[
    "side", "energy", "sharpness", "chroma", "brightness", "flat", "quality", "distance", "band"
]
TRAITS: tuple[Trait, ...] = (
    "side",
    "energy",
    "sharpness",
    "chroma",
    "brightness",
    "flat",
    "quality",
    "distance",
    "band",
)
"""Names of the columns of a table of traits, in order; see `measure`."""

BANDS = ("lossless", "high", "middle", "low", "other")
"""What a file shows of its own last compression, by the number that `compression_band` gives:
none that can be seen, JPEG of high, middle and low quality, and other formats (WebP, AVIF, HEIC).
"""

_HIGH, _MIDDLE, _LOW = 96, 86, 66  # JPEG qualities under which the next band begins

_OTHER_LOSSY = ("WEBP", "AVIF", "HEIF")

_FIRST_TRAITS = 8  # of the first tables that were written

_BLOCK = 32  # pixels
_LEAST = 0.05  # levels squared, added to energies: what rounding to 8 bits decides is hidden
_LUMA = np.array(LUMA, dtype=np.float32)


def is_lossy(format: str) -> bool:
    """Tell whether files of a format (Pillow's name) are usually compressed with loss."""
    return format in ("JPEG", "MPO", *_OTHER_LOSSY)


def compression_band(format: str, quality: int | None) -> int:
    """Tell what a file shows of its own last compression: a number of `BANDS`.

    Parameters
    ----------
    format
        Pillow's name, or ``"array"`` for pixels without a file.
    quality
        Estimated quality of a JPEG, 1 to 100; None if it is no JPEG.
    """
    if quality is not None:
        return 0 if quality >= _HIGH else 1 if quality >= _MIDDLE else 2 if quality >= _LOW else 3
    return 4 if format in _OTHER_LOSSY else 0


def bands_of(traits: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Read the band of compression from traits (..., T), as an index below `count`.

    Where it is not known, 0: that of files without a trace of it.
    """
    return index_of_band(traits[..., TRAITS.index("band")], count)


def index_of_band(band: Array, count: int) -> Array:
    """Make the band of compression, any real numbers or NaN, an index below `count`."""
    xp = array_namespace(band)
    known = xp.where(band > 0, band, xp.zeros_like(band))
    return xp.astype(xp.asarray(xp.clip(known, 0, count - 1)), xp.int64)


def with_all_traits(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Complete a table (n, t) written when there were fewer traits: the others are not known."""
    if values.ndim != 2 or not _FIRST_TRAITS <= values.shape[1] < len(TRAITS):
        return values
    missing = len(TRAITS) - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=np.nan)


def measure(
    pixels: NDArray[np.uint8],
    windows: Sequence[tuple[int, int, int, int]],
    *,
    quality: int | None = None,
    distance: float | None = None,
    band: int | None = None,
) -> NDArray[np.float64]:
    """Measure the traits of an image in its analysed windows.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), sRGB.
    windows
        (x, y, width, height), pixels, at least one.
    quality
        Estimated JPEG quality of the file, 1 to 100; None if it is no JPEG.
    distance
        Logarithm of the mean squared standardised feature, see `masksim.model.standardise`; None
        where the heads have none.
    band
        See `compression_band`; None where nothing is known of the file.

    Returns
    -------
    ndarray
        float64 (9,), in the order of `TRAITS`:

        ``side``        the shorter side of `pixels`; of a large file only a central part is read,
                        so it is at most the side of that region;
        ``energy``      of the residual: mean over blocks of 32x32 pixels of the logarithm of the
                        mean squared cross difference of luma, ln of levels squared;
        ``sharpness``   how much larger that is than at half the resolution, ln of a ratio: white
                        noise ln 4, enlarged images below 0;
        ``chroma``      mean absolute difference of R and B from G, levels; 0 for greyscale;
        ``brightness``  mean luma, 0 to 255;
        ``flat``        share of pixels that equal their right and lower neighbours in all channels,
                        0 to 1: photos have noise nearly everywhere, drawings and text have not;
        ``quality``     as given, NaN for None;
        ``distance``    as given, NaN for None;
        ``band``        as given, NaN for None.

    Raises
    ------
    UsageError
        There is no window.
    """
    if not windows:
        raise UsageError("traits are measured in at least one window")
    found = [measure_window(pixels[y : y + h, x : x + w]) for x, y, w, h in windows]
    energy, half, chroma, brightness, flat = np.array(found, np.float64).mean(axis=0).tolist()
    return np.array(
        [
            min(pixels.shape[:2]),
            energy,
            energy - half,
            chroma,
            brightness,
            flat,
            np.nan if quality is None else quality,
            np.nan if distance is None else distance,
            np.nan if band is None else band,
        ],
        dtype=np.float64,
    )


def measure_window(part: Array) -> tuple[Array, ...]:
    """Measure what a window shows of the traits of `measure`.

    Parameters
    ----------
    part : array, shape (..., H, W, 3)
        sRGB, levels of any type that holds them.

    Returns
    -------
    energy, half, chroma, brightness, flat : arrays, shape (...)
        ``half`` is the energy at half the resolution; the others as in `measure`.
    """
    xp = array_namespace(part)
    height, width = part.shape[-3:-1]
    luma = xp.astype(part, xp.float32) @ _LUMA
    half = sums_of_four(luma[..., : height // 2 * 2, : width // 2 * 2]) * np.float32(0.25)
    # Whole planes and unsigned bytes: a mean over short or strided axes takes ten times as long.
    red, green, blue = (contiguous(part[..., c]) for c in range(3))
    apart = [
        xp.sum(xp.maximum(other, green) - xp.minimum(other, green), axis=(-2, -1), dtype=xp.float64)
        for other in (red, blue)
    ]
    chroma = (apart[0] + apart[1]) / (2 * height * width)
    return _energy(luma), _energy(half), chroma, xp.mean(luma, axis=(-2, -1)), _flat(part)


def _flat(part: Array) -> Array:
    """Share of the pixels of a window that equal their neighbours: (..., H, W, 3) -> (...)."""
    xp = array_namespace(part)
    *batch, height, width, _ = part.shape
    # Whole rows of bytes at once, three to a pixel: the last axis of three is slow to reduce.
    rows = xp.reshape(contiguous(part), (*batch, height, 3 * width))
    here = rows[..., :-1, :-3]
    same = (here == rows[..., :-1, 3:]) & (here == rows[..., 1:, :-3])
    flat = same[..., 0::3] & same[..., 1::3] & same[..., 2::3]
    return xp.count_nonzero(flat, axis=(-2, -1)) / ((height - 1) * (width - 1))


def _energy(plane: Array) -> Array:
    """Mean logarithm of the mean squared cross difference of blocks: (..., H, W) -> (...)."""
    xp = array_namespace(plane)
    squared = cross_difference(plane) ** 2
    *batch, height, width = squared.shape
    rows, columns = (xp.maximum(side // _BLOCK, 1) for side in (height, width))
    height, width = height // rows, width // columns
    blocks = xp.reshape(
        squared[..., : rows * height, : columns * width], (*batch, rows, height, columns, width)
    )
    means = xp.mean(blocks, axis=(-3, -1))
    return xp.mean(xp.log(means + _LEAST), axis=(-2, -1))

"""What an image itself shows that bears on its false-positive rate: size, noise, sharpness, ...

Textured, noisy and small photos resemble generators more often than smooth, large ones. So rates
are measured among photos of the same kind (`masksim.strata.Strata`), and an image unlike all
photos that the rates were measured on is told by the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from masksim.errors import UsageError

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
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


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
    band = traits[..., TRAITS.index("band")]
    return np.clip(np.nan_to_num(band, nan=0.0), 0, count - 1).astype(np.int64)


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

        ``side``        the shorter side of the image, pixels;
        ``energy``      of the residual: mean over blocks of 32x32 pixels of the logarithm of the
                        mean squared cross difference of luma, ln of levels squared;
        ``sharpness``   how much larger that is than at half the resolution, ln of a ratio: white
                        noise ln 4, enlarged images below 0;
        ``chroma``      mean absolute difference of R and B from G, levels; 0 for greyscale;
        ``brightness``  mean luma, 0 to 255;
        ``flat``        `flat_share`, 0 to 1;
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
    found = np.array([_window(pixels[y : y + h, x : x + w]) for x, y, w, h in windows])
    energy, half, chroma, brightness = found.mean(axis=0).tolist()
    return np.array(
        [
            min(pixels.shape[:2]),
            energy,
            energy - half,
            chroma,
            brightness,
            flat_share(pixels, windows),
            np.nan if quality is None else quality,
            np.nan if distance is None else distance,
            np.nan if band is None else band,
        ],
        dtype=np.float64,
    )


def flat_share(pixels: NDArray[np.uint8], windows: Sequence[tuple[int, int, int, int]]) -> float:
    """Share of pixels that equal their right and lower neighbours in all channels.

    Photos have noise nearly everywhere; drawings, screenshots and text have large areas without.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
        sRGB.
    windows : sequence of (x, y, width, height)
        Where to look, pixels.

    Returns
    -------
    float
        In [0, 1], the mean over the windows.
    """
    shares = []
    for x, y, width, height in windows:
        part = pixels[y : y + height, x : x + width]
        # Whole rows of bytes at once, three to a pixel: the last axis of three is slow to reduce.
        rows = np.ascontiguousarray(part).reshape(height, 3 * width)
        same = (rows[:-1, :-3] == rows[:-1, 3:]) & (rows[:-1, :-3] == rows[1:, :-3])
        flat = same[:, 0::3] & same[:, 1::3] & same[:, 2::3]
        shares.append(float(flat.mean()))
    return float(np.mean(shares))


def _window(part: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Energy, energy at half the resolution, chroma and brightness of a window."""
    luma = part.astype(np.float32) @ _LUMA
    height, width = (side // 2 * 2 for side in luma.shape)
    # Whole planes and unsigned bytes: a mean over short or strided axes takes ten times as long.
    rows = luma[:height:2, :width] + luma[1:height:2, :width]
    half = (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)
    red, green, blue = (np.ascontiguousarray(part[..., c]) for c in range(3))
    apart = sum(
        int((np.maximum(other, green) - np.minimum(other, green)).sum(dtype=np.uint64))
        for other in (red, blue)
    )
    return _energy(luma), _energy(half), apart / (2 * green.size), float(luma.mean())


def _energy(plane: NDArray[np.float32]) -> float:
    squared = (plane[:-1, :-1] + plane[1:, 1:] - plane[1:, :-1] - plane[:-1, 1:]) ** 2
    rows, columns = (max(side // _BLOCK, 1) for side in squared.shape)
    height, width = squared.shape[0] // rows, squared.shape[1] // columns
    blocks = squared[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return float(np.log(blocks.mean(axis=(1, 3)) + _LEAST).mean())

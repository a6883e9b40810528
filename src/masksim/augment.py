"""Seeded image processing: compression and resizing, the same for real and synthetic images.

Every function takes and returns 8-bit sRGB pixels ``(H, W, 3)`` and is a pure function of its
arguments; random choices come from a generator made by `rng_for` from a content hash, so the same
file is processed the same way whatever the order or the number of workers.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from masksim.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def rng_for(*keys: object) -> np.random.Generator:
    """Return a random generator that depends on the keys alone.

    Parameters
    ----------
    *keys
        Anything with a stable ``str``: a content hash, a purpose, a view number.

    Returns
    -------
    numpy.random.Generator
        PCG64 seeded by the SHA-256 of the keys: equal on every machine and in every process.
    """
    text = "\x1f".join(str(key) for key in keys)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def encode(pixels: Pixels, format: str, quality: int, subsampling: str = "4:2:0") -> bytes:
    """Compress pixels into a JPEG, WebP, AVIF or HEIC file.

    Parameters
    ----------
    pixels
        8-bit sRGB, ``(H, W, 3)``.
    format
        ``"JPEG"``, ``"WEBP"`` (lossy), ``"AVIF"`` or ``"HEIF"``.
    quality
        1 to 100, on the encoder's scale (libjpeg, libwebp, libavif, libheif).
    subsampling
        JPEG chroma subsampling: ``"4:4:4"``, ``"4:2:2"`` or ``"4:2:0"``; the others are always
        4:2:0.

    Returns
    -------
    bytes
        The file, without metadata.

    Raises
    ------
    UsageError
        Unknown format, quality or subsampling.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"compression quality must be 1 to 100, got {quality}")
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    if format == "JPEG":
        if subsampling not in SUBSAMPLINGS:
            raise UsageError(
                f"subsampling must be one of {', '.join(SUBSAMPLINGS)}, got {subsampling}"
            )
        image.save(out, "JPEG", quality=quality, subsampling=SUBSAMPLINGS[subsampling])
    elif format == "WEBP":
        image.save(out, "WEBP", quality=quality, method=2)
    elif format == "AVIF":
        image.save(out, "AVIF", quality=quality, speed=9, max_threads=1)
    elif format == "HEIF":
        from pillow_heif import from_pillow

        from_pillow(image).save(out, quality=quality, enc_params={"preset": "veryfast"})
    else:
        raise UsageError(f"compression format must be JPEG, WEBP, AVIF or HEIF, got {format}")
    return out.getvalue()


def decode(data: bytes) -> Pixels:
    """Decode a file written by `encode` to 8-bit sRGB pixels ``(H, W, 3)``."""
    if data[4:8] == b"ftyp" and data[8:12] != b"avif":
        from pillow_heif import open_heif

        return np.asarray(open_heif(io.BytesIO(data), convert_hdr_to_8bit=True).to_pillow())
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def reencode(pixels: Pixels, format: str, quality: int, subsampling: str = "4:2:0") -> Pixels:
    """Compress and decompress: `encode` then `decode`."""
    return decode(encode(pixels, format, quality, subsampling))


def resize(pixels: Pixels, size: tuple[int, int] | float, filter: str = "bicubic") -> Pixels:
    """Resample pixels, antialiased when they are reduced (except ``"nearest"``).

    Parameters
    ----------
    pixels
        8-bit sRGB, ``(H, W, 3)``.
    size
        The new ``(height, width)`` in pixels, or one factor for both sides (> 0).
    filter
        One of `FILTERS`.

    Returns
    -------
    ndarray
        uint8 ``(height, width, 3)``.

    Raises
    ------
    UsageError
        Unknown filter, or a size under one pixel.
    """
    if filter not in FILTERS:
        raise UsageError(f"filter must be one of {list(FILTERS)}, got {filter}")
    if isinstance(size, tuple):
        height, width = size
    else:
        height, width = (round(side * size) for side in pixels.shape[:2])
    if height < 1 or width < 1:
        raise UsageError(f"an image cannot be resized to {height} x {width}")
    return np.asarray(Image.fromarray(pixels).resize((width, height), FILTERS[filter]))


def bilinear(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resample by bilinear interpolation without antialiasing, as the original's training does.

    Parameters
    ----------
    pixels
        8-bit sRGB, ``(H, W, 3)``.
    size
        The new ``(height, width)`` in pixels. The centre of a new pixel is looked up where it lies
        in the old grid; fractions of a level are cut off.

    Returns
    -------
    ndarray
        uint8 ``(height, width, 3)``.

    Raises
    ------
    UsageError
        A size under one pixel.
    """
    (height, width), (high, wide) = size, pixels.shape[:2]
    if height < 1 or width < 1:
        raise UsageError(f"an image cannot be resized to {height} x {width}")
    mapping = (wide / width, 0.0, 0.0, 0.0, high / height, 0.0)
    image = Image.fromarray(pixels).transform(
        (width, height), Image.Transform.AFFINE, mapping, Image.Resampling.BILINEAR
    )
    return np.asarray(image)

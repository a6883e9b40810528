"""What a JPEG's headers say of its compression: quality and chroma subsampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from masksim.errors import ImageError

_SUBSAMPLING = {
    (1, 1): "4:4:4",
    (2, 1): "4:2:2",
    (2, 2): "4:2:0",
    (1, 2): "4:4:0",
    (4, 1): "4:1:1",
    (4, 2): "4:1:0",
}

# Annex K.1 of ITU-T T.81: the luminance table that quality 50 uses, in natural order.
# fmt: off
_IJG_LUMINANCE = np.array([
    16, 11, 10, 16,  24,  40,  51,  61,
    12, 12, 14, 19,  26,  58,  60,  55,
    14, 13, 16, 24,  40,  57,  69,  56,
    14, 17, 22, 29,  51,  87,  80,  62,
    18, 22, 37, 56,  68, 109, 103,  77,
    24, 35, 55, 64,  81, 104, 113,  92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103,  99,
])
# fmt: on


def _ijg_tables() -> NDArray[np.float64]:
    """Luminance tables of qualities 1..100, (100, 64), by the encoder's integer arithmetic."""
    quality = np.arange(1, 101)[:, np.newaxis]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    table: NDArray[np.float64] = np.clip((_IJG_LUMINANCE * scale + 50) // 100, 1, 255).astype(
        np.float64
    )
    return table


_IJG_TABLES = _ijg_tables()


def estimate_jpeg_quality(table: Sequence[int]) -> int:
    """Find the quality whose standard luminance table is nearest to a given one.

    The standard tables are those of the Independent JPEG Group's encoder (annex K of ITU-T T.81,
    scaled), which Pillow and most software use: for their files the answer is exact. For others
    (cameras, Photoshop) it is the least-squares match.

    Parameters
    ----------
    table
        64 quantisation steps in natural order (row by row, not zigzag).

    Returns
    -------
    int
        1..100.

    Raises
    ------
    ImageError
        If the table does not have 64 entries (code ``unreadable``).
    """
    steps = np.asarray(table, dtype=np.float64)
    if steps.shape != (64,):
        raise ImageError(f"a JPEG quantisation table has 64 entries, not {steps.size}")
    return 1 + int(np.argmin(((_IJG_TABLES - steps) ** 2).sum(axis=1)))


def jpeg_facts(image: JpegImagePlugin.JpegImageFile) -> tuple[int | None, str | None]:
    """Tell quality (1 to 100) and chroma subsampling (``"4:2:0"``); None where they are not told.

    Parameters
    ----------
    image
        Opened by Pillow; need not be decoded.
    """
    if not image.layer:
        return None, None
    quality = None
    table = image.quantization.get(image.layer[0][3])
    if table is not None and len(table) == 64:
        quality = estimate_jpeg_quality(table)
    if len(image.layer) < 3:
        return quality, None
    (_, h, v, _), *chroma = image.layer[:3]
    if any(c[1] < 1 or c[2] < 1 or h % c[1] or v % c[2] for c in chroma):
        return quality, "irregular"
    ratios = {(h // c[1], v // c[2]) for c in chroma}
    return quality, _SUBSAMPLING.get(ratios.pop(), "irregular") if len(ratios) == 1 else "irregular"

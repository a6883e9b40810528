"""Small re-encodings that a verdict should survive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from masksim import augment
from masksim.calibration import Rates
from masksim.errors import ImageError
from masksim.verdict import EVIDENCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

TRIED_UP_TO = EVIDENCE
"""Verdicts are checked by small re-encodings up to this joint rate: above it none is changed by
them (`masksim.verdict.lost_after`)."""

_SIDE = 1600  # pixels, a multiple of 16


@dataclass(frozen=True)
class Reencoding:
    """A small change that any image may meet on its way.

    Attributes
    ----------
    name
        In words, as in ``"after a reduction by 2 %"``.
    change
        uint8 (H, W, 3) -> uint8 (H', W', 3).
    format, quality
        Of the file that the result would be: Pillow's name of the format, and the JPEG quality.
    """

    name: str
    change: Callable[[Pixels], Pixels]
    format: str = "PNG"
    quality: int | None = None


REENCODINGS: tuple[Reencoding, ...] = (
    Reencoding("JPEG of quality 75", lambda p: augment.reencode(p, "JPEG", 75), "JPEG", 75),
    Reencoding("WebP of quality 80", lambda p: augment.reencode(p, "WEBP", 80), "WEBP"),
    Reencoding("a reduction by 2 %", lambda p: augment.resize(p, 0.98, "bicubic")),
    Reencoding("an enlargement by 2 %", lambda p: augment.resize(p, 1.02, "bicubic")),
)


def middle(pixels: Pixels, least: int = 0) -> Pixels:
    """Cut out the middle that is re-encoded, keeping the grid of JPEG's blocks and of chroma.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3).
    least
        Side of the part that a detector analyses, pixels; no less is left where there is more.
    """
    side = max(_SIDE, -(-least // 16) * 16)
    top, left = ((n - min(n, side)) // 2 // 16 * 16 for n in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def after_reencodings(
    pixels: Pixels,
    least: int,
    rates_of: Callable[[Pixels, str, int | None], Rates | None],
) -> dict[str, Rates]:
    """Give the rates of an image after each small re-encoding of its middle, by its name.

    Parameters
    ----------
    pixels, least
        See `middle`.
    rates_of
        Ranks pixels of a file of some format and JPEG quality; None without calibration.
    """
    part = middle(pixels, least)
    after = {}
    for small in REENCODINGS:
        try:
            rates = rates_of(small.change(part), small.format, small.quality)
        except ImageError:  # a side of just the smallest size there may be
            continue
        if rates is not None:
            after[small.name] = rates
    return after

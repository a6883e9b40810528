"""The pictures of a report: the image made smaller, and maps with one pixel a value."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from masksim.image import LoadedImage, to_display
from masksim.show.colours import colour_steps, palette

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHADES = 127  # colours of a map to either side of white
_BYTES_AT_ONCE = 1 << 24


def displayed(loaded: LoadedImage, side: int) -> Image.Image:
    """Reduce an image, and turn it as a viewer shows it.

    Parameters
    ----------
    loaded
        With all its pixels.
    side
        Longer side of the result, pixels; a smaller image keeps its size.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    # By strips, in which blocks of pixels are averaged: a large image is not copied whole.
    height, width = loaded.facts.height, loaded.facts.width
    scale = min(1.0, side / max(width, height))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    across, down = (max(1, int(n / m / 3)) for n, m in zip((width, height), size, strict=True))
    rows = down * max(1, _BYTES_AT_ONCE // (3 * width * down))
    strips = [
        np.asarray(
            Image.fromarray(loaded.region(y, 0, min(rows, height - y), width)).reduce(
                (across, down)
            )
        )
        for y in range(0, height, rows)
    ]
    small = Image.fromarray(np.concatenate(strips))
    if scale < 1:
        box = (0.0, 0.0, width / across, height / down)
        small = small.resize(size, Image.Resampling.LANCZOS, box=box)
    return to_display(replace(loaded, pixels=np.asarray(small), whole=None))


def jpeg(image: Image.Image, most: int) -> bytes:
    """Write an image as JPEG, as well as it fits into so many bytes.

    Parameters
    ----------
    image
        RGB.
    most
        Bytes; they are exceeded where even quality 35 needs more.
    """
    for quality in (85, 75, 65, 55, 45, 35):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()


def shrunk(values: NDArray[Any], most: int = 128) -> NDArray[np.float64]:
    """Halve a map, by averaging, until it is small enough; one of odd size stays as it is.

    Parameters
    ----------
    values
        (H, W).
    most
        Values along a side.
    """
    found = np.asarray(values, dtype=np.float64)
    while max(found.shape) > most and not any(n % 2 for n in found.shape):
        height, width = (n // 2 for n in found.shape)
        found = found.reshape(height, 2, width, 2).mean(axis=(1, 3))
    return found


def panel_png(values: NDArray[np.float64], limit: float) -> bytes:
    """Draw a map as PNG, one pixel a value; a palette keeps the file small.

    Parameters
    ----------
    values
        (H, W); zero is white.
    limit
        Positive: the absolute value at which colours end.
    """
    image = Image.fromarray(colour_steps(values, limit, _SHADES))
    image.putpalette(palette(_SHADES))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

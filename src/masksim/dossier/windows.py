"""Window by window: how alike the parts of an image are to the most telling generator's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from masksim.dossier.pictures import displayed, jpeg
from masksim.errors import ImageError
from masksim.show.colours import diverging_colours

if TYPE_CHECKING:
    from masksim.detector import Detector
    from masksim.image import LoadedImage
    from masksim.results import Detection

__all__ = ["by_window", "turn_window", "windows_jpeg"]

_SIDE = 640  # of the picture, pixels
_BYTES = 60_000  # that its file has at most, if it can
_GRID = 36  # windows over the whole image, at most

_Rectangle: TypeAlias = "tuple[int, int, int, int]"  # x, y, width, height


def by_window(
    detector: Detector, detection: Detection, loaded: LoadedImage, pictures: dict[str, bytes]
) -> dict[str, Any] | None:
    """Score single windows by the most telling generator, and draw them over the image.

    Parameters
    ----------
    detector
        That the detection is of.
    detection
        Of this image.
    loaded
        The image, with all its pixels.
    pictures
        The picture is added to these as ``"windows"``.

    Returns
    -------
    dict or None
        Plain values: the windows of the verdict, a grid of others, and the similarity of each;
        None where the image has room for one window only.
    """
    height, width = loaded.facts.height, loaded.facts.width
    side_x, side_y = max((w, h) for _, _, w, h in detection.windows)
    columns, rows = _positions(width, side_x), _positions(height, side_y)
    if len(columns) * len(rows) == 1 and len(detection.windows) == 1:
        return None
    while len(columns) * len(rows) > _GRID:  # the longer way loses windows first
        if len(columns) >= len(rows):
            columns = _positions(width, side_x, len(columns) - 1)
        else:
            rows = _positions(height, side_y, len(rows) - 1)
    generator = detection.scores[0].generator
    g = detector.generators.index(generator)

    def scored(windows: Sequence[_Rectangle]) -> list[dict[str, Any]]:
        return [
            {
                **dict(zip(("x", "y", "width", "height"), window, strict=True)),
                "similarity": _similarity(detector, loaded, window, g),
            }
            for window in windows
        ]

    analysed = scored(detection.windows)
    taken = set(detection.windows)
    everywhere = [(x, y, side_x, side_y) for y in rows for x in columns]
    grid = scored([window for window in everywhere if window not in taken])
    analysed = [w for w in analysed if w["similarity"] is not None]
    grid = [w for w in grid if w["similarity"] is not None]
    limit = max((abs(w["similarity"]) for w in analysed + grid), default=0.0) or 1.0
    picture = _picture(loaded, analysed, grid, limit)
    pictures["windows"] = jpeg(picture, _BYTES)
    return {
        "generator": generator,
        "limit": limit,
        "analysed": analysed,
        "grid": grid,
        "width": picture.width,
        "height": picture.height,
    }


def _positions(length: int, side: int, count: int | None = None) -> list[int]:
    """Place windows along a side of an image: on JPEG's grid, from one end to the other, evenly."""
    last = (length - side) // 8
    if count is None:
        count = math.ceil(length / side - 0.25)  # a narrow rest needs no window of its own
    if count < 2 or last == 0:
        return [last // 2 * 8]
    return sorted({round(k * last / (count - 1)) * 8 for k in range(count)})


def _similarity(
    detector: Detector, loaded: LoadedImage, window: _Rectangle, g: int
) -> float | None:
    x, y, width, height = window
    part, facts = loaded.region(y, x, height, width), loaded.facts
    try:
        return float(detector.similarities(part, facts.jpeg_quality, facts.format)[g])
    except ImageError:  # no pattern in a perfectly flat part
        return None


def windows_jpeg(loaded: LoadedImage, values: Mapping[str, Any]) -> bytes:
    """Draw the windows over the image.

    Parameters
    ----------
    loaded
        The image, with all its pixels.
    values
        From `by_window`.

    Returns
    -------
    bytes
        A JPEG file.
    """
    picture = _picture(loaded, values["analysed"], values["grid"], values["limit"])
    return jpeg(picture, _BYTES)


def _picture(
    loaded: LoadedImage,
    analysed: Sequence[Mapping[str, Any]],
    grid: Sequence[Mapping[str, Any]],
    limit: float,
) -> Image.Image:
    height, width = loaded.facts.height, loaded.facts.width
    grey = displayed(loaded, _SIDE).convert("L")
    # Pale, so that the colours are those of the legend.
    canvas = grey.point([round(110 + 0.55 * v) for v in range(256)]).convert("RGB")
    turned = loaded.facts.orientation
    scale = max(canvas.size) / max(width, height)

    def place(window: Mapping[str, Any]) -> tuple[int, int, int, int]:
        box = (window["x"], window["y"], window["width"], window["height"])
        x, y, w, h = turn_window(box, width, height, turned)
        left, top, right, bottom = (round(scale * v) for v in (x, y, x + w, y + h))
        return left, top, min(right, canvas.width) - 1, min(bottom, canvas.height) - 1

    # Where windows overlap, their mean.
    total = np.zeros((canvas.height, canvas.width))
    count = np.zeros_like(total)
    for window in (*grid, *analysed):
        left, top, right, bottom = place(window)
        total[top : bottom + 1, left : right + 1] += window["similarity"]
        count[top : bottom + 1, left : right + 1] += 1
    covered = count > 0
    mean = np.divide(total, count, out=np.zeros_like(total), where=covered)
    colours = Image.fromarray(diverging_colours(mean, limit))
    canvas.paste(
        Image.blend(canvas, colours, 0.5), mask=Image.fromarray(covered.astype(np.uint8) * 255)
    )
    draw = ImageDraw.Draw(canvas)
    for window in grid:
        draw.rectangle(place(window), outline=(110, 114, 122), width=1)
    for window in analysed:
        draw.rectangle(place(window), outline=(0, 0, 0), width=3)
    font = ImageFont.load_default(max(13, round(max(canvas.size) / 36)))
    for window in analysed:
        left, top, _, _ = place(window)
        label = f"{window['similarity']:+.3f}"
        draw.text(
            (left + 8, top + 6), label, (0, 0, 0), font, stroke_width=2, stroke_fill=(255,) * 3
        )
    return canvas


def turn_window(
    window: _Rectangle, width: int, height: int, orientation: int
) -> tuple[int, int, int, int]:
    """Place a window of the stored pixels in the image as a viewer turns it.

    Parameters
    ----------
    window
        (x, y, width, height), pixels as stored.
    width, height
        Of the image as stored.
    orientation
        EXIF, 1 to 8.

    Returns
    -------
    tuple
        (x, y, width, height) in the image as `masksim.to_display` gives it.
    """
    x, y, w, h = window
    if orientation in (2, 3, 7, 8):
        # Transposing (5 to 8) swaps the sides; 7 and 8 count from the stored right.
        x = width - x - w
    if orientation in (3, 4, 6, 7):
        y = height - y - h
    return (y, x, h, w) if orientation >= 5 else (x, y, w, h)

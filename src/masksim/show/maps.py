"""Pictures of maps as PNG: what each frequency adds to a similarity, and what a head looks for.

Axes, ticks and colour bars are drawn here with Pillow: the command line writes these pictures, and
the core of the package comes without matplotlib.
"""

from __future__ import annotations

import io
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from masksim.errors import UsageError
from masksim.files import write_whole
from masksim.provenance.untrusted_text import printable
from masksim.show.colours import (
    PERCENTILE,
    colour_limit,
    colour_scale,
    colour_steps,
    palette,
)
from masksim.show.composed import axis_end
from masksim.show.text import channel_words
from masksim.verdict import format_rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.results import Detection, PatternPlane, PlaneMap, SimilarityMap

__all__ = ["maps_png", "patterns_png"]

# A picture holds numbers of colours: first those of maps, then greys from ink to paper, in order,
# so that the soft edges of letters are greys, too. Pillow writes it fast, and it takes up little.
_SHADES = 105  # of maps, to either side of white
_INK, _SOFT, _LINE, _PAPER = 211, 225, 239, 255
_PALETTE = palette(_SHADES) + bytes(
    round(ink + (255 - ink) * k / (_PAPER - _INK))
    for k in range(_PAPER - _INK + 1)
    for ink in (26, 28, 33)
)

_MARGIN = 28
_LEFT = 46  # tick labels of the vertical axis
_ABOVE, _BELOW = 26, 58  # its title; tick labels and unit of the horizontal axis
_BAR_GAP, _BAR, _BAR_LABELS = 10, 14, 72
_SHARES = (1.0, 0.5, 0.0, -0.5, -1.0)  # of a scale's limit: where its bar has numbers
_GUTTER = 22  # between the panels of a row
_ONE_COLUMN = 4  # planes; more stand in two columns
_COLUMN_GAP = 40
_DPI = 96


def maps_png(
    maps: SimilarityMap | Iterable[SimilarityMap] | Mapping[str, SimilarityMap],
    path: str | os.PathLike[str] | None = None,
    *,
    detection: Detection | None = None,
) -> bytes:
    """Draw similarity maps: where in the spectrum the image is like the generator's images.

    For each generator, and each plane of it, three panels side by side: what each frequency adds
    to the similarity, the generator's reference, and the image's own spectrum. The contributions
    of one generator share one colour scale, symmetric about zero, that ends at the 99.5th
    percentile of the absolute values that are not zero. Every other panel has its own, about its
    median where zero is far from its values (a spectrum that is not normalised).

    Parameters
    ----------
    maps
        Of one generator, or of several, from `masksim.detector.Detector.similarity_maps`.
    path
        Where to write the picture as well; replaced if it is there.
    detection
        Of the same image: adds its name and the false-positive rates to the titles.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    UsageError
        There is nothing to draw, an array has the wrong shape or a value that is not finite, or
        the file cannot be written.
    """
    chosen: list[SimilarityMap]
    if isinstance(maps, Mapping):
        chosen = list(maps.values())
    elif isinstance(maps, Iterable):
        chosen = list(maps)
    else:
        chosen = [maps]
    if not chosen:
        raise UsageError("there are no similarity maps to draw")
    sections = [_section(item, detection) for item in chosen]
    return _png(sections, _MAPS_NOTE, path)


def patterns_png(
    generator: str,
    patterns: Sequence[PatternPlane],
    path: str | os.PathLike[str] | None = None,
) -> bytes:
    """Draw what a generator's head looks for: no image is needed.

    For each plane three panels side by side: the mask, the reference, and their product, which
    says how much each frequency can add to the similarity. Masks are coloured from 0 to 1; the
    products of all planes share one scale.

    Parameters
    ----------
    generator
        For the title.
    patterns
        From `masksim.detector.Detector.patterns`.
    path
        Where to write the picture as well; replaced if it is there.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    UsageError
        There is nothing to draw, an array has the wrong shape or a value that is not finite, or
        the file cannot be written.
    """
    if not patterns:
        raise UsageError(f"{generator} has no patterns to draw")
    for plane in patterns:
        _check_plane(plane, generator, ("mask", "reference"))
    side = _side(max(patterns[0].mask.shape))
    products = [_cells(p.mask * p.reference, side) for p in patterns]
    shared = colour_limit(np.stack(products))
    total = sum(_power(plane) for plane in patterns)
    rows = []
    for plane, product in zip(patterns, products, strict=True):
        ticks = (_ticks(plane.fx, side), _ticks(plane.fy, side))
        mask, reference = (_cells(v, side) for v in (plane.mask, plane.reference))
        panels = [
            _Panel("mask", mask, *ticks, 0.5, 0.5),
            _Panel("reference", reference, *ticks, *colour_scale(reference)),
            _Panel("mask times reference", product, *ticks, 0.0, shared),
        ]
        share = _power(plane) / (total or 1.0)
        label = f"{100 * share:.1f} % of the weight"
        rows.append(_row(channel_words(plane.name), label, panels, side))
    section = _titled(generator, "what its head looks for", rows, 72)
    return _png([section], _PATTERNS_NOTE, path)


def _power(plane: PatternPlane) -> float:
    """Sum of the squares of mask times reference: how much of the weight the plane has."""
    return float(np.sum(np.square(plane.mask * plane.reference, dtype=np.float64)))


def _paper(width: int, height: int) -> Image.Image:
    return Image.new("L", (width, height), _PAPER)


def _png(sections: Sequence[Image.Image], note: str, path: str | os.PathLike[str] | None) -> bytes:
    """Stack sections over a note; write the file if there is a path."""
    canvas = _stack([*sections, _footnote(note, max(image.width for image in sections))])
    canvas.putpalette(_PALETTE)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", compress_level=2, dpi=(_DPI, _DPI))
    data = buffer.getvalue()
    if path is not None:
        write_whole(path, data)
    return data


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """Letters that Pillow's own font has: accents are taken off, other scripts become ``?``."""
    plain = unicodedata.normalize("NFKD", printable(text))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode("ascii")


def _fit(text: str, size: int, width: float) -> str:
    """Cut a text in the middle until it fits."""
    text = _drawable(text)
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(text[: keep // 2] + "..." + text[-(keep // 2) :]) > width:
        keep -= 1
    return text[: keep // 2] + "..." + text[-(keep // 2) :]


_Tick: TypeAlias = tuple[float, str]
"""Pixels from the left or upper edge of a panel, and the frequency that stands there."""


@dataclass(frozen=True)
class _Panel:
    """One picture with its axes."""

    title: str
    values: NDArray[np.float64]  # from `_cells`
    xticks: tuple[_Tick, ...]
    yticks: tuple[_Tick, ...]
    centre: float  # the value that is white
    limit: float  # the distance from it at which colours end


def _section(item: SimilarityMap, detection: Detection | None) -> Image.Image:
    """All planes of one generator, under its title."""
    if not item.planes:
        raise UsageError(f"the similarity map of {item.generator} has no planes")
    for plane in item.planes:
        _check_plane(plane, item.generator)
    side = _side(max(item.planes[0].values.shape))
    # One scale for all: a plane that adds little must look so.
    contributions = [_cells(plane.values, side) for plane in item.planes]
    shared = colour_limit(np.stack(contributions))
    rows: list[Image.Image] = []
    for plane, values in zip(item.planes, contributions, strict=True):
        ticks = (_ticks(plane.fx, side), _ticks(plane.fy, side))
        reference, spectrum = (_cells(v, side) for v in (plane.reference, plane.spectrum))
        panels = [
            _Panel("contribution to the similarity", values, *ticks, 0.0, shared),
            _Panel("the generator's reference", reference, *ticks, *colour_scale(reference)),
            _Panel("this image's spectrum", spectrum, *ticks, *colour_scale(spectrum)),
        ]
        total = float(np.sum(plane.values, dtype=np.float64))
        label = f"sum of this map {total:+.4f}"
        rows.append(_row(channel_words(plane.name), label, panels, side))
    title_height = 84 if detection is not None else 72
    return _titled(item.generator, _subtitle(item, detection), rows, title_height)


def _titled(title: str, subtitle: str, rows: list[Image.Image], title_height: int) -> Image.Image:
    """Put rows, which are of one size, under a title; in two columns where they are many."""
    columns = 1 if len(rows) <= _ONE_COLUMN else 2
    width, height = rows[0].size
    lines = math.ceil(len(rows) / columns)
    canvas = _paper(
        2 * _MARGIN + columns * width + (columns - 1) * _COLUMN_GAP, title_height + lines * height
    )
    for k, row in enumerate(rows):
        down, across = divmod(k, columns)
        place = (_MARGIN + across * (width + _COLUMN_GAP), title_height + down * height)
        canvas.paste(row, place)
    draw = ImageDraw.Draw(canvas)
    room = canvas.width - 2 * _MARGIN
    draw.text((_MARGIN, 22), _fit(title, 26, room), _INK, _font(26), anchor="lt")
    draw.text((_MARGIN, 56), _fit(subtitle, 15, room), _SOFT, _font(15), "lt")
    return canvas


def _subtitle(item: SimilarityMap, detection: Detection | None) -> str:
    parts = [f"similarity {item.similarity:.4f}"]
    if detection is not None:
        own = next((s for s in detection.scores if s.generator == item.generator), None)
        if own is not None and (rate := own.false_positive_rate) is not None:
            text = format_rate(rate, own.sample_size)
            parts.append(f"false-positive rate {text} ({own.sample_size} real photos)")
        # Not the folders that it is in: pictures are passed on.
        parts.append(os.path.basename(detection.image.name) or detection.image.name)
    return "    ".join(parts)


def _cell_width(side: int) -> int:
    return _LEFT + side + _BAR_GAP + _BAR + _BAR_LABELS


def _row(name: str, label: str, panels: Sequence[_Panel], side: int) -> Image.Image:
    """Panels of one plane, side by side, under the plane's name."""
    cell, top = _cell_width(side), 62
    width = len(panels) * cell + (len(panels) - 1) * _GUTTER
    canvas = _paper(width, top + side + _BELOW)
    draw = ImageDraw.Draw(canvas)
    draw.line((0, 4, width, 4), _LINE)
    room = width - _font(15).getlength(label) - 30
    draw.text((0, 14), _fit(name, 15, room), _INK, _font(15), "lt")
    draw.text((width, 14), label, _SOFT, _font(15), "rt")
    for k, panel in enumerate(panels):
        _draw_panel(canvas, draw, panel, k * (cell + _GUTTER) + _LEFT, top, side)
    return canvas


def _draw_panel(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: _Panel, x: int, y: int, side: int
) -> None:
    frame = _frame(panel.title, panel.xticks, panel.yticks, side)
    canvas.paste(frame, (x - _LEFT, y - _ABOVE))
    # Coloured first, enlarged then.
    colours = Image.fromarray(colour_steps(panel.values - panel.centre, panel.limit, _SHADES))
    canvas.paste(colours.resize((side, side), Image.Resampling.NEAREST), (x, y))
    left = x + side + _BAR_GAP + _BAR + 8
    for share in _SHARES:
        number = _number(panel.centre + share * panel.limit)
        draw.text((left, y + _down(share, side)), number, _SOFT, _font(13), "lm")


@lru_cache(maxsize=64)
def _frame(
    title: str, xticks: tuple[_Tick, ...], yticks: tuple[_Tick, ...], side: int
) -> Image.Image:
    """Draw what many panels share: title, axes, the colour bar without its numbers."""
    x, y = _LEFT, _ABOVE
    canvas = _paper(_cell_width(side), _ABOVE + side + _BELOW)
    draw = ImageDraw.Draw(canvas)
    font = _font(13)
    draw.text((x, y - 10), title, _INK, font, "ls")
    draw.rectangle((x - 1, y - 1, x + side, y + side), outline=_LINE)
    for across, label in xticks:
        draw.line((x + across, y + side + 1, x + across, y + side + 5), _SOFT)
        draw.text((x + across, y + side + 9), label, _SOFT, font, "mt")
    for down, label in yticks:
        draw.line((x - 6, y + down, x - 2, y + down), _SOFT)
        draw.text((x - 9, y + down), label, _SOFT, font, "rm")
    draw.text((x + side / 2, y + side + 28), "cycles/pixel", _SOFT, font, "mt")

    left = x + side + _BAR_GAP
    scale = np.linspace(1.0, -1.0, side)[:, np.newaxis].repeat(_BAR, axis=1)
    canvas.paste(Image.fromarray(colour_steps(scale, 1.0, _SHADES)), (left, y))
    draw.rectangle((left - 1, y - 1, left + _BAR, y + side), outline=_LINE)
    for share in _SHARES:
        at = y + _down(share, side)
        draw.line((left + _BAR, at, left + _BAR + 4, at), _SOFT)
    return canvas


def _down(share: float, side: int) -> float:
    """Place of a number at the colour bar: 1 at the top, -1 at the bottom."""
    return (1.0 - share) / 2.0 * (side - 1)


def _number(value: float) -> str:
    """Signed, two or three digits, short: +0.12, -3.1e-6, 0."""
    if value == 0.0:
        return "0"
    if 0.01 <= abs(value) < 1000.0:
        return f"{value:+#.3g}".rstrip(".")
    mantissa, exponent = f"{value:+.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


_MAPS_NOTE = (
    "The centre of each panel is frequency 0. Contribution: red frequencies raise the "
    "similarity, blue ones lower it; all contributions of a generator add up to its "
    f"similarity. Colours end at the {PERCENTILE:g}th percentile."
)
_PATTERNS_NOTE = (
    "The centre of each panel is frequency 0. Mask: from blue, 0, to red, 1. Reference: red where "
    "power speaks for the generator, blue where it speaks against it. Colours of references end at "
    f"the {PERCENTILE:g}th percentile."
)


def _footnote(text: str, width: int) -> Image.Image:
    font = _font(13)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    canvas = _paper(width, 14 + 19 * len(lines) + _MARGIN)
    draw = ImageDraw.Draw(canvas)
    draw.line((_MARGIN, 2, width - _MARGIN, 2), _LINE)
    for k, line in enumerate(lines):
        draw.text((_MARGIN, 14 + 19 * k), line, _SOFT, font, "lt")
    return canvas


def _stack(images: Sequence[Image.Image]) -> Image.Image:
    """Put images under each other."""
    canvas = _paper(max(image.width for image in images), sum(image.height for image in images))
    y = 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height
    return canvas


def _check_plane(
    plane: PlaneMap | PatternPlane,
    generator: str,
    names: Sequence[str] = ("values", "reference", "spectrum"),
) -> None:
    shape = (len(plane.fy), len(plane.fx))
    for name in names:
        array = np.asarray(getattr(plane, name))
        if array.shape != shape or min(shape) < 1:
            raise UsageError(
                f"{name} of {generator}'s map has the shape {array.shape}, its axes {shape}"
            )
        if not np.isfinite(array).all():
            raise UsageError(f"{name} of {generator}'s map has values that are not finite")


def _side(n: int) -> int:
    """Side of a panel on the screen, pixels: a whole multiple or part of n cells near 240."""
    if n <= 288:
        return n * max(1, round(240 / n))
    part = math.ceil(n / 256)
    return n // part if n % part == 0 and n // part >= 192 else 240


def _cells(values: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Give the values as they are where there is room for each, else averaged for the screen."""
    if max(values.shape) <= side:
        return np.asarray(values, dtype=np.float64)
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float64)


def _ticks(axis: NDArray[Any], side: int) -> tuple[_Tick, ...]:
    """Five ticks from one end of the axis to the other, at the centres of their frequencies."""
    n = len(axis)
    step = (float(axis[-1]) - float(axis[0])) / (n - 1) if n > 1 else 1.0
    end = axis_end(axis)
    found = []
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        cell = (share * end - float(axis[0])) / step + 0.5
        # The last lies half a cell outside an even number of cells: there it is the edge.
        place = min(max(cell * side / n - 0.5, 0.0), side - 1.0)
        found.append((place, f"{share * end:.4g}"))
    return tuple(found)

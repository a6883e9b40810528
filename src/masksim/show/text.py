"""A detection as JSON, as text for people, as a card, and as the picture of its similarity maps.

Nothing here computes evidence: the numbers are those of the detection. The shapes of what is
reported are the protocols below, so that this room needs neither the detector nor its libraries.
The pictures are drawn with Pillow alone.
"""

from __future__ import annotations

import html
import math
import os
import struct
import textwrap
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from masksim.errors import UsageError, extra_missing
from masksim.provenance import origin as origins
from masksim.verdict import LEVELS, format_rate

if TYPE_CHECKING:
    from masksim.image import ImageFacts
    from masksim.provenance.watermark import WatermarkMatch
    from masksim.verdict import Verdict

__all__ = [
    "DetectionLike",
    "MapLike",
    "PatternLike",
    "PlaneLike",
    "ScoreLike",
    "channel_words",
    "colour_limit",
    "colour_scale",
    "diverging_colours",
    "maps_png",
    "patterns_png",
    "printable",
    "rates_figure",
    "to_html",
    "to_json",
    "to_text",
]

MEANING = (
    "Each rate is for that generator alone; the verdict's is for all of them together. Neither is "
    "the probability that the image is fake, and finding no evidence does not prove that it is a "
    "photo."
)
"""What a result does and does not mean, in a line."""

UNCALIBRATED = (
    "This detector comes without scores of real photos: how rare such a similarity is among them "
    "is not known. Neither the similarity nor its head's probability is the probability that the "
    "image is fake."
)
"""The same for a detector that has no rates."""


def meaning(detection: DetectionLike) -> str:
    """Say what a result does and does not mean: `MEANING`, or `UNCALIBRATED` without rates."""
    rated = any(score.false_positive_rate is not None for score in detection.scores)
    return MEANING if rated else UNCALIBRATED


class ScoreLike(Protocol):
    """How alike the image is to the images of one generator."""

    @property
    def generator(self) -> str:
        """Name of the generator."""

    @property
    def similarity(self) -> float:
        """Sum of the similarity map; larger is more alike."""

    @property
    def false_positive_rate(self) -> float | None:
        """Share of real photos that score at least as high, in (0, 1]; None if uncalibrated."""

    @property
    def sample_size(self) -> int:
        """On how many real photos that was measured; 0 if uncalibrated."""


class DetectionLike(Protocol):
    """What the detector says of one image."""

    @property
    def image(self) -> ImageFacts:
        """Facts of the image."""

    @property
    def verdict(self) -> Verdict:
        """What the evidence amounts to."""

    @property
    def scores(self) -> Sequence[ScoreLike]:
        """One a generator, the most telling first."""

    @property
    def windows(self) -> Sequence[tuple[int, int, int, int]]:
        """Parts of the image that were analysed: x, y, width, height in pixels."""

    @property
    def detector(self) -> str:
        """Name of the detector."""

    @property
    def detector_sha256(self) -> str:
        """Digest of the detector file."""

    @property
    def seconds(self) -> float:
        """Time of the analysis."""

    @property
    def origin(self) -> origins.Origin | None:
        """What the file says of its own origin; None where it was not asked."""

    @property
    def beside(self) -> str | None:
        """Verdict and file next to each other, where they disagree."""

    @property
    def watermarks(self) -> Sequence[WatermarkMatch]:
        """Known open watermarks found in the pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""


class PlaneLike(Protocol):
    """One plane (channel, residual) of a similarity map; arrays are fftshifted."""

    @property
    def name(self) -> str:
        """What the plane shows."""

    @property
    def values(self) -> NDArray[Any]:
        """(H, W) contribution of every frequency to the similarity."""

    @property
    def fy(self) -> NDArray[Any]:
        """(H,) vertical frequency of each row, cycles/pixel, ascending."""

    @property
    def fx(self) -> NDArray[Any]:
        """(W,) horizontal frequency of each column, cycles/pixel, ascending."""

    @property
    def reference(self) -> NDArray[Any]:
        """(H, W) the generator's pattern."""

    @property
    def spectrum(self) -> NDArray[Any]:
        """(H, W) the image's own spectrum."""


class MapLike(Protocol):
    """Similarity map of one generator: the values of all its planes add up to the similarity."""

    @property
    def generator(self) -> str:
        """Name of the generator."""

    @property
    def similarity(self) -> float:
        """Sum of all values."""

    @property
    def planes(self) -> Sequence[PlaneLike]:
        """At least one."""


class PatternLike(Protocol):
    """Mask and reference of one plane; arrays are fftshifted."""

    @property
    def name(self) -> str:
        """What the plane shows."""

    @property
    def mask(self) -> NDArray[Any]:
        """(H, W) in [0, 1]."""

    @property
    def reference(self) -> NDArray[Any]:
        """(H, W) the generator's pattern."""

    @property
    def fy(self) -> NDArray[Any]:
        """(H,) as in `PlaneLike`."""

    @property
    def fx(self) -> NDArray[Any]:
        """(W,) as in `PlaneLike`."""


# ------------------------------------------------------------------------------ JSON and text


def to_json(detection: DetectionLike) -> dict[str, Any]:
    """Plain values of a detection, as `docs/detect.md` explains them field by field.

    Parameters
    ----------
    detection
        From `masksim.detector.Detector.detect`.

    Returns
    -------
    dict
        For `json.dumps`; no NaN.
    """
    return detection.to_dict()


def to_text(detection: DetectionLike, width: int = 80, *, ascii_only: bool = False) -> str:
    """Write a detection for people: the verdict first, then what it rests on.

    Parameters
    ----------
    detection
        From `masksim.detector.Detector.detect`.
    width
        Columns to fill; at least 48 are used.
    ascii_only
        Draw the bars with ``#``, for terminals that know no block characters.

    Returns
    -------
    str
        Lines without a line break at the end. No control characters, whatever the file's name.
    """
    width = max(width, 48)
    verdict = detection.verdict
    lines = [printable(detection.image.name)]

    def paragraph(text: str, first: str = "  ", rest: str = "  ") -> None:
        lines.extend(
            textwrap.wrap(printable(text), width, initial_indent=first, subsequent_indent=rest)
        )

    paragraph(verdict.text)
    for caution in verdict.cautions:
        paragraph(caution, "  Caution: ", "    ")
    if (ratio := verdict.likelihood_ratio) is not None:
        bound = ", the largest or smallest that the data supports" if ratio.bounded else ""
        paragraph(
            f"Likelihood ratio {ratio.value:.2g}{bound} ({ratio.low:.2g} to {ratio.high:.2g}): "
            f"{ratio.words}.",
            "  ",
            "    ",
        )
    if verdict.stability:
        rates = [
            f"after {name}: {format_rate(rate, verdict.sample_size)}"
            for name, rate in verdict.stability.items()
        ]
        paragraph(f"{', '.join(rates)}.", "  Real photos as high ", "    ")
    if detection.origin is not None:
        lines.extend(("", f"  {origins.TITLE}:"))
        for line in origins.words(detection.origin):
            paragraph(line, "    ", "      ")
        if detection.beside:
            lines.append("")
            paragraph(detection.beside)
    for mark in detection.watermarks:
        paragraph(mark.text, "  Watermark: ", "    ")
    lines.append("")
    lines.extend(_table(detection, width, ascii_only))
    lines.append("")
    paragraph(meaning(detection))
    paragraph(_file_facts(detection.image), "  File: ", "    ")
    # Never broken, for it is to be copied.
    of = "" if detection.image.sha256_of == "file" else f"of the {detection.image.sha256_of} "
    lines.append(f"    sha256 {of}{detection.image.sha256}")
    paragraph(
        f"{_windows(detection.windows)}, {detection.seconds:.2f} s, detector {detection.detector} "
        f"({detection.detector_sha256[:12]})",
        "  Analysed: ",
        "    ",
    )
    return "\n".join(lines)


def printable(text: str) -> str:
    r"""Replace each character that would steer a terminal by its escape, such as ``\x1b``."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _table(detection: DetectionLike, width: int, ascii_only: bool) -> list[str]:
    """Line up generators, similarities, rates, and bars: the longer, the rarer among photos."""
    scores = detection.scores
    names = [printable(score.generator) for score in scores]
    rates = [
        "-"
        if score.false_positive_rate is None
        else format_rate(score.false_positive_rate, score.sample_size)
        for score in scores
    ]
    heads = ("generator", "similarity", "real photos as high")
    longest = max(len(heads[0]), min(max(map(len, names)), width // 3))
    # Where it is narrow the heading gives way before the bars do, and they before the names.
    if width < longest + 18 + len(heads[2]) + 8:
        heads = (*heads[:2], "as high")
    rate_width = max(len(heads[2]), *map(len, rates))
    longest = min(longest, width - 16 - rate_width)
    bar_width = min(width - longest - 18 - rate_width, 24)
    if bar_width < 6 or any(score.false_positive_rate is None for score in scores):
        bar_width = 0
    title = "" if not bar_width else "rarer: longer"[:bar_width]
    rows = [f"  {heads[0]:<{longest}}  {heads[1]:>10}  {heads[2]:>{rate_width}}  {title}"]
    for score, name, rate in zip(scores, names, rates, strict=True):
        bar = ""
        if bar_width and score.false_positive_rate is not None:
            rarity = _rarity(score.false_positive_rate, score.sample_size)
            bar = _bar(rarity, bar_width, ascii_only)
        short = name if len(name) <= longest else name[: longest - 3] + "..."
        row = f"  {short:<{longest}}  {score.similarity:>10.4f}  {rate:>{rate_width}}  {bar}"
        rows.append(row)
    return [row.rstrip() for row in rows]


def _rarity(rate: float, sample_size: int) -> float:
    """0 where every real photo scores as high, 1 where none of the sample does; logarithmic."""
    return min(max(math.log(1.0 / rate) / math.log(max(sample_size, 1) + 1.0), 0.0), 1.0)


def _bar(share: float, width: int, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _file_facts(facts: ImageFacts) -> str:
    parts = [facts.format, f"{facts.width} x {facts.height} pixels", _bytes(facts.n_bytes)]
    if facts.jpeg_quality is not None:
        parts.append(f"JPEG quality about {facts.jpeg_quality}")
    if facts.jpeg_subsampling is not None:
        parts.append(f"chroma {facts.jpeg_subsampling}")
    if facts.mode not in ("RGB", "uint8 RGB"):
        parts.append(f"stored as {facts.mode}")
    parts.extend(facts.treatments)
    return ", ".join(parts)


def _bytes(n: int) -> str:
    if n < 1000:
        return f"{n} bytes"
    return f"{n / 1e3:.1f} kB" if n < 1e6 else f"{n / 1e6:.1f} MB"


def _windows(windows: Sequence[tuple[int, int, int, int]]) -> str:
    sizes = sorted({(width, height) for _, _, width, height in windows}, reverse=True)
    what = "window" if len(windows) == 1 else "windows"
    return f"{len(windows)} {what} of " + ", ".join(f"{w} x {h}" for w, h in sizes) + " pixels"


# ------------------------------------------------------------------------------------ notebooks

_CARD = "border:1px solid rgba(128,128,128,.5);border-radius:4px;padding:.8em 1em;max-width:44em"
_CELL = "text-align:left;padding:.15em 1em .15em 0;border:0;background:none"


def to_html(detection: DetectionLike) -> str:
    """Write a detection as a compact card for notebooks.

    Parameters
    ----------
    detection
        From `masksim.detector.Detector.detect`.

    Returns
    -------
    str
        A fragment of HTML in the colours of its surroundings; every text in it is escaped, and
        nothing is loaded or run.
    """

    def escape(text: str) -> str:
        return html.escape(printable(text), quote=True)

    verdict = detection.verdict
    parts = [
        f'<div style="{_CARD}"><div style="opacity:.75;overflow-wrap:anywhere">'
        f"{escape(detection.image.name)}</div>"
        '<div style="font-size:1.2em;font-weight:600;margin:.2em 0">'
        f"{escape(verdict.headline)}</div><div>{escape(verdict.explanation)}</div>"
    ]
    if verdict.cautions:
        items = "".join(f"<li>{escape(caution)}</li>" for caution in verdict.cautions)
        parts.append(f'<ul style="margin:.4em 0">{items}</ul>')
    if detection.origin is not None:
        parts.append(_origin_card(detection.origin, detection.beside, escape))
    parts.extend(f"<div>Watermark: {escape(mark.text)}</div>" for mark in detection.watermarks)
    heads = ("generator", "similarity", "real photos as high", "rarer: longer")
    parts.append('<table style="border-collapse:collapse;margin:.6em 0"><thead><tr>')
    parts.extend(f'<th scope="col" style="{_CELL}">{head}</th>' for head in heads)
    parts.append("</tr></thead><tbody>")
    for score in detection.scores:
        rate, share = "-", 0.0
        if score.false_positive_rate is not None:
            rate = format_rate(score.false_positive_rate, score.sample_size)
            share = _rarity(score.false_positive_rate, score.sample_size)
        parts.append(
            f'<tr><th scope="row" style="{_CELL}">{escape(score.generator)}</th>'
            f'<td style="{_CELL}">{score.similarity:.4f}</td><td style="{_CELL}">{rate}</td>'
            f'<td style="{_CELL}"><div style="width:9em;background:rgba(128,128,128,.3)">'
            f'<div style="width:{100 * share:.0f}%;height:.7em;background:#3b7dc4"></div></div>'
            "</td></tr>"
        )
    parts.append(
        f'</tbody></table><div style="font-size:.85em;opacity:.75">{escape(meaning(detection))}'
    )
    parts.append(
        f" Detector {escape(detection.detector)} ({escape(detection.detector_sha256[:12])})."
    )
    return "".join((*parts, "</div></div>"))


def _origin_card(origin: origins.Origin, beside: str | None, escape: Callable[[str], str]) -> str:
    """Write what the file says, set apart from the verdict."""
    first, *rest = origins.words(origin)
    caution = f'<div style="font-size:.85em;opacity:.75">{escape(rest.pop())}</div>' if rest else ""
    items = "".join(f"<li>{escape(line)}</li>" for line in rest)
    both = f"<div><strong>{escape(beside)}</strong></div>" if beside else ""
    return (
        '<div style="border-left:3px solid rgba(128,128,128,.5);padding-left:.8em;margin:.6em 0">'
        f'<div style="font-weight:600">{escape(origins.TITLE)}</div><div>{escape(first)}</div>'
        + both
        + (f'<ul style="margin:.2em 0;font-size:.9em">{items}</ul>' if items else "")
        + f"{caution}</div>"
    )


def rates_figure(detection: DetectionLike) -> Any:
    """Draw the false-positive rate of each generator, and where the verdict's levels begin.

    Parameters
    ----------
    detection
        From `masksim.detector.Detector.detect`; of an uncalibrated detector the similarities are
        drawn instead.

    Returns
    -------
    matplotlib.figure.Figure
        Not of pyplot: nothing has to be closed.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise extra_missing("this picture", "matplotlib", "plot") from error
    scores = detection.scores[::-1]  # the most telling on top
    names = [_plain(score.generator) for score in scores]
    figure = Figure(figsize=(7.0, 1.4 + 0.32 * len(scores)), layout="constrained")
    axes = figure.subplots()
    rates = [s.false_positive_rate for s in scores if s.false_positive_rate is not None]
    if len(rates) < len(scores):
        axes.barh(names, [score.similarity for score in scores], color="#3b7dc4")
        axes.set_xlabel("similarity (this detector is not calibrated)")
    else:
        axes.plot(rates, range(len(rates)), "o", color="#1f5fa8", zorder=3)
        axes.hlines(range(len(rates)), rates, 1.0, color="#9dbbe0", linewidth=6)
        axes.set_yticks(range(len(names)), names)
        axes.set_xscale("log")
        axes.set_xlim(min(*rates, LEVELS[0][0]) / 2, 1.0)
        for limit, _ in LEVELS:
            axes.axvline(limit, color="#888888", linewidth=0.8, linestyle=":")
        joint = detection.verdict.false_positive_rate
        if joint is not None:
            axes.axvline(joint, color="#a33b20", linewidth=1.5)
            axes.set_title(
                f"{detection.verdict.level}: {format_rate(joint, detection.verdict.sample_size)} "
                "of real photos, all generators together (line)",
                fontsize="medium", loc="left",
            )  # fmt: skip
        axes.set_xlabel("share of real photos that score as high; dotted: 1, 5 and 10 %")
    return figure


def _plain(text: str) -> str:
    """Write a name so that matplotlib does not take it for a formula."""
    return printable(text).replace("$", r"\$")


# ------------------------------------------------------------------------------------ pictures

# Blue, white, red with lightness falling alike to both sides: told apart with any colour vision.
_ANCHORS = np.array(
    [
        [10, 48, 107],
        [38, 110, 180],
        [148, 196, 223],
        [248, 248, 248],
        [245, 170, 130],
        [208, 72, 62],
        [108, 4, 32],
    ],
    dtype=np.float64,
)

_INK, _SOFT, _LINE, _PAPER = (26, 28, 33), (96, 100, 110), (170, 174, 182), (255, 255, 255)
_MARGIN = 28
_LEFT = 46  # tick labels of the vertical axis
_ABOVE, _BELOW = 26, 58  # its title; tick labels and unit of the horizontal axis
_BAR_GAP, _BAR, _BAR_LABELS = 10, 14, 72
_SHARES = (1.0, 0.5, 0.0, -0.5, -1.0)  # of a scale's limit: where its bar has numbers
_GUTTER = 22  # between the panels of a row
_ONE_COLUMN = 4  # planes; more stand in two columns
_COLUMN_GAP = 40
_PERCENTILE = 99.5
_DPI = 96
_EFFORT = 2  # of zlib
_ROWS = 256  # that are compressed at once


def diverging_colours(values: NDArray[Any], limit: float) -> NDArray[np.uint8]:
    """Colour numbers from blue (negative) over white (zero) to red (positive).

    Parameters
    ----------
    values
        (...) any finite numbers.
    limit
        Positive: the absolute value from which on the colour does not change any more.

    Returns
    -------
    ndarray
        (..., 3) uint8, sRGB.
    """
    place = (np.clip(np.asarray(values, dtype=np.float64) / limit, -1.0, 1.0) + 1.0) / 2.0
    at = np.linspace(0.0, 1.0, len(_ANCHORS))
    channels = [np.interp(place, at, _ANCHORS[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def maps_png(
    maps: MapLike | Iterable[MapLike] | Mapping[str, MapLike],
    path: str | os.PathLike[str] | None = None,
    *,
    detection: DetectionLike | None = None,
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
    chosen: list[MapLike]
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
    patterns: Sequence[PatternLike],
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


_CHANNELS: Mapping[str, str] = {
    "luma": "brightness",
    "luma quiet": "brightness of quiet parts",
    "luma middle": "brightness of middling parts",
    "luma busy": "brightness of busy parts",
    "coherence": "colours that go together",
    "chroma Cb": "blue-yellow colour",
    "chroma Cr": "red-green colour",
}


def channel_words(name: str) -> str:
    """Say a plane's name as people see it, alike in pictures, reports and the service.

    Parameters
    ----------
    name
        Of a plane of a similarity map: ``"luma, median"``.

    Returns
    -------
    str
        ``"brightness, median"``; a name that is not known stays as it is.
    """
    channel, comma, kind = name.partition(",")
    return _CHANNELS.get(channel, channel) + comma + kind


def _power(plane: PatternLike) -> float:
    """Sum of the squares of mask times reference: how much of the weight the plane has."""
    return float(np.sum(np.square(plane.mask * plane.reference, dtype=np.float64)))


def _png(sections: Sequence[Image.Image], note: str, path: str | os.PathLike[str] | None) -> bytes:
    """Stack sections over a note; write the file if there is a path."""
    canvas = _stack([*sections, _footnote(note, max(image.width for image in sections))])
    data = _encoded(canvas)
    if path is not None:
        try:
            Path(path).write_bytes(data)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return data


def _encoded(canvas: Image.Image) -> bytes:
    """Write an RGB image as PNG, its rows unfiltered.

    Pillow tries five filters on each row, which takes longer than all the drawing, and none of them
    helps where colours stand in squares.
    """
    width, height = canvas.size
    packer = zlib.compressobj(_EFFORT)
    packed = []
    for top in range(0, height, _ROWS):
        strip = np.asarray(canvas.crop((0, top, width, min(top + _ROWS, height))))
        rows = np.zeros((len(strip), 1 + 3 * width), dtype=np.uint8)  # the first byte: no filter
        rows[:, 1:] = strip.reshape(len(strip), -1)
        packed.append(packer.compress(rows.data))
    packed.append(packer.flush())
    a_metre = round(_DPI / 0.0254)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, RGB
        (b"pHYs", struct.pack(">IIB", a_metre, a_metre, 1)),
        (b"IDAT", b"".join(packed)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


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


def _section(item: MapLike, detection: DetectionLike | None) -> Image.Image:
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
    """Put rows, in two columns where they are many, under a title."""
    if len(rows) > _ONE_COLUMN:
        rows = [_beside(rows[k : k + 2]) for k in range(0, len(rows), 2)]
    width = 2 * _MARGIN + max(row.width for row in rows)
    canvas = Image.new("RGB", (width, title_height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    room = width - 2 * _MARGIN
    draw.text((_MARGIN, 22), _fit(title, 26, room), _INK, _font(26), anchor="lt")
    draw.text((_MARGIN, 56), _fit(subtitle, 15, room), _SOFT, _font(15), "lt")
    return _stack([canvas, *rows], indent=(0, *([_MARGIN] * len(rows))))


def _subtitle(item: MapLike, detection: DetectionLike | None) -> str:
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
    canvas = Image.new("RGB", (width, top + side + _BELOW), _PAPER)
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
    colours = Image.fromarray(diverging_colours(panel.values - panel.centre, panel.limit))
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
    canvas = Image.new("RGB", (_cell_width(side), _ABOVE + side + _BELOW), _PAPER)
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
    canvas.paste(Image.fromarray(diverging_colours(scale, 1.0)), (left, y))
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
    f"similarity. Colours end at the {_PERCENTILE:g}th percentile."
)
_PATTERNS_NOTE = (
    "The centre of each panel is frequency 0. Mask: from blue, 0, to red, 1. Reference: red where "
    "power speaks for the generator, blue where it speaks against it. Colours of references end at "
    f"the {_PERCENTILE:g}th percentile."
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
    canvas = Image.new("RGB", (width, 14 + 19 * len(lines) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.line((_MARGIN, 2, width - _MARGIN, 2), _LINE)
    for k, line in enumerate(lines):
        draw.text((_MARGIN, 14 + 19 * k), line, _SOFT, font, "lt")
    return canvas


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    """Put one or two images beside each other; one keeps the width of two."""
    first = images[0]
    canvas = Image.new("RGB", (2 * first.width + _COLUMN_GAP, first.height), _PAPER)
    for k, image in enumerate(images):
        canvas.paste(image, (k * (first.width + _COLUMN_GAP), 0))
    return canvas


def _stack(images: Sequence[Image.Image], indent: Sequence[int] | None = None) -> Image.Image:
    """Put images under each other."""
    places = indent or [0] * len(images)
    width = max(image.width + place for image, place in zip(images, places, strict=True))
    canvas = Image.new("RGB", (width, sum(image.height for image in images)), _PAPER)
    y = 0
    for image, place in zip(images, places, strict=True):
        canvas.paste(image, (place, y))
        y += image.height
    return canvas


def _check_plane(
    plane: PlaneLike | PatternLike,
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
    return _to_screen(values, side)


def _to_screen(values: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Repeat cells, or average them, until the panel is filled: (H, W) -> (side, side)."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    larger = max(values.shape) <= side
    how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    return np.asarray(image.resize((side, side), how), dtype=np.float64)


def colour_limit(values: NDArray[np.float64]) -> float:
    """End of a symmetric colour scale; cells at exactly zero are masked out and do not count."""
    sizes = np.abs(values[values != 0.0])
    return float(np.percentile(sizes, _PERCENTILE)) if sizes.size else 1.0


def colour_scale(values: NDArray[np.float64]) -> tuple[float, float]:
    """Centre and limit: zero where values lie on both sides of it, else their median."""
    middle = float(np.median(values))
    spread = colour_limit(values - middle)
    return (middle, spread) if abs(middle) > 0.5 * spread else (0.0, colour_limit(values))


def _ticks(axis: NDArray[Any], side: int) -> tuple[_Tick, ...]:
    """Five ticks from one end of the axis to the other, at the centres of their frequencies."""
    n = len(axis)
    step = (float(axis[-1]) - float(axis[0])) / (n - 1) if n > 1 else 1.0
    end = n * step / 2.0  # 0.5, or 0.25 where chroma has half the resolution
    found = []
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        cell = (share * end - float(axis[0])) / step + 0.5
        # The last lies half a cell outside an even number of cells: there it is the edge.
        place = min(max(cell * side / n - 0.5, 0.0), side - 1.0)
        found.append((place, f"{share * end:.4g}"))
    return tuple(found)

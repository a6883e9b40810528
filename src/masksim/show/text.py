"""A detection as text for people, and the words that pictures and reports share with it.

Nothing here computes evidence: the numbers are those of the detection.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from masksim.provenance import origin as origins
from masksim.provenance.untrusted_text import printable
from masksim.verdict import format_rate

if TYPE_CHECKING:
    from masksim.image import ImageFacts
    from masksim.results import Detection

__all__ = [
    "MEANING",
    "UNCALIBRATED",
    "channel_words",
    "meaning",
    "rarity",
    "to_text",
    "window_words",
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


def meaning(detection: Detection) -> str:
    """Say what a result does and does not mean: `MEANING`, or `UNCALIBRATED` without rates."""
    rated = any(score.false_positive_rate is not None for score in detection.scores)
    return MEANING if rated else UNCALIBRATED


def to_text(detection: Detection, width: int = 80, *, ascii_only: bool = False) -> str:
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
        # Each among the photos of its own kind, whose number is not that of the verdict's.
        rates = [f"{format_rate(rate)} after {name}" for name, rate in verdict.stability.items()]
        said = "Share of real photos that match as well once the image is re-encoded: "
        paragraph(f"{said}{', '.join(rates)}.", "  ", "    ")
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
        f"{window_words(detection.windows)}, {detection.seconds:.2f} s, "
        f"detector {detection.detector} ({detection.detector_sha256[:12]})",
        "  Analysed: ",
        "    ",
    )
    return "\n".join(lines)


def _table(detection: Detection, width: int, ascii_only: bool) -> list[str]:
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
            share = rarity(score.false_positive_rate, score.sample_size)
            bar = _bar(share, bar_width, ascii_only)
        short = name if len(name) <= longest else name[: longest - 3] + "..."
        row = f"  {short:<{longest}}  {score.similarity:>10.4f}  {rate:>{rate_width}}  {bar}"
        rows.append(row)
    return [row.rstrip() for row in rows]


def rarity(rate: float, sample_size: int) -> float:
    """How far to draw a bar: 0 where every real photo scores as high, 1 where none does.

    Parameters
    ----------
    rate
        Share of real photos that score at least as high, in (0, 1].
    sample_size
        On how many real photos that was measured; the scale is logarithmic and ends there.
    """
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


def window_words(windows: Sequence[Sequence[int]]) -> str:
    """Say how many windows were analysed, and how large they are.

    Parameters
    ----------
    windows
        x, y, width, height of each, pixels.
    """
    sizes = sorted({(width, height) for _, _, width, height in windows}, reverse=True)
    what = "window" if len(windows) == 1 else "windows"
    return f"{len(windows)} {what} of " + ", ".join(f"{w} x {h}" for w, h in sizes) + " pixels"


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

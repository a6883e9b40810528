"""What a detector cannot judge, and what makes a verdict less certain.

Each rule looks at what an image shows (`masksim.traits`) and gives a `Reason`: it makes evidence
inconclusive and, where a pattern may be gone as well, its absence, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from masksim.calibration import Calibration, Rates, most_telling
from masksim.checkpoint import DetectorFile
from masksim.image import ImageFacts
from masksim.populations import OwnImages
from masksim.traits import TRAITS, is_lossy
from masksim.verdict import Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLAT = 0.5
"""Above this share of flat pixels an image is taken for a graphic (the trait `flat`)."""

FLAT_SCREENSHOT = 0.05
"""A lossless image of a screen's size with more flat pixels than this is like a screenshot."""

DARK = 8.0
"""Mean luma, 0 to 255, under which there is too little light to leave a residual."""

COMPRESSED = 50
"""A JPEG quality under this leaves too little of a pattern to conclude from."""

FEW_SOURCES = 3
"""A head learned from fewer sources than this carries a caution."""

FEW_FILES, FEW_OF_ALL = 30, 0.02
"""A lossy format of which fewer calibration photos are, and a smaller share, carries a caution."""

SLACK = 0.1
"""By this share of its width the range that calibration photos have shown is widened."""

_RANGED = {"energy": "its noise", "sharpness": "its fine detail", "distance": "its spectrum"}

_SAME = {"MPO": "JPEG"}  # an MPO holds several JPEGs

# Sizes of screens, shorter side first, in pixels.
_SCREENS = frozenset(
    {(720, 1280), (768, 1366), (800, 1280), (864, 1536), (900, 1440), (900, 1600), (1050, 1680)}
    | {(1080, 1920), (1200, 1920), (1080, 2340), (1080, 2400), (1440, 2560), (1600, 2560)}
    | {(1440, 3200), (1440, 3440), (2160, 3840), (750, 1334), (828, 1792), (1125, 2436)}
    | {(1170, 2532), (1179, 2556), (1206, 2622), (1242, 2208), (1242, 2688), (1284, 2778)}
    | {(1290, 2796), (1320, 2868), (1640, 2360), (1668, 2388), (2048, 2732), (1664, 2560)}
    | {(1964, 3024), (2234, 3456), (1800, 2880), (1864, 2880)}
)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the images that a detector's rates rest on have shown.

    Attributes
    ----------
    photos
        (lowest, highest) value of each trait among the calibration photos.
    own
        (2, G, T): see `OwnImages.usual`; None where the detector has none.
    """

    photos: Mapping[str, tuple[float, float]]
    own: NDArray[np.float64] | None

    @classmethod
    def by(cls, calibrations: Sequence[Calibration], own: OwnImages | None) -> Seen:
        """Tell it of all populations of photos, and of the generators' own images."""
        photos = {
            trait: _widest([c.limits(trait) for c in calibrations]) for trait in ("side", *_RANGED)
        }
        # A new source may well show a little more than those that are there.
        for trait in _RANGED:
            low, high = photos[trait]
            if np.isfinite([low, high]).all():
                photos[trait] = low - SLACK * (high - low), high + SLACK * (high - low)
        return cls(photos, None if own is None else own.usual())


def _widest(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Join ranges; photos of too few sources to tell one do not count."""
    return (
        min((low for low, _ in ranges if np.isfinite(low)), default=-np.inf),
        max((high for _, high in ranges if np.isfinite(high)), default=np.inf),
    )


def reasons(
    facts: ImageFacts,
    traits: NDArray[np.float64],
    rates: Rates | None,
    similarities: NDArray[np.float64],
    seen: Seen,
) -> list[Reason]:
    """Tell why nothing can be concluded from an image, whatever its rate.

    Parameters
    ----------
    facts, traits
        Of the image; traits (T,).
    rates, similarities
        Its own, similarities (G,); no rates if the detector is not calibrated.
    seen
        What the calibration rests on.

    Returns
    -------
    list of Reason
        The plainest first; empty for nearly all images.
    """
    shown = dict(zip(TRAITS, traits.tolist(), strict=True))
    return [
        *_too_small(shown, seen),
        *_without_detail(facts, shown),
        *_resized(shown, seen),
        *_out_of_range(shown, rates, similarities, seen),
    ]


def _too_small(shown: Mapping[str, float], seen: Seen) -> Iterator[Reason]:
    smallest = seen.photos["side"][0]
    if shown["side"] < smallest:
        yield Reason(
            "too_small",
            f"the image is smaller ({shown['side']:.0f} pixels) than nearly all photos that the "
            f"rates were measured on ({smallest:.0f} and more)",
            hides=True,
        )


def _without_detail(facts: ImageFacts, shown: Mapping[str, float]) -> Iterator[Reason]:
    if shown["brightness"] < DARK:
        yield Reason("too_dark", "the image is nearly black", hides=True)
    if shown["flat"] > FLAT:
        yield Reason(
            "flat",
            "this is no photo: large parts of the image are perfectly flat, as in drawings, "
            "charts, screenshots and text, and such images can match a pattern by accident",
            hides=True,
        )
    elif (
        tuple(sorted((facts.width, facts.height))) in _SCREENS
        and shown["flat"] > FLAT_SCREENSHOT
        and not is_lossy(facts.format)
    ):
        yield Reason("screenshot_like", "the image has the size and flat parts of a screenshot")
    if facts.jpeg_quality is not None and facts.jpeg_quality < COMPRESSED:
        yield Reason(
            "heavily_compressed",
            f"the JPEG quality is about {facts.jpeg_quality}, which leaves little of a pattern",
            hides=True,
        )


def _resized(shown: Mapping[str, float], seen: Seen) -> Iterator[Reason]:
    if shown["sharpness"] < seen.photos["sharpness"][0]:
        yield Reason(
            "resized",
            "the image has less fine detail than nearly all photos that the rates were measured "
            "on, as after strong enlarging or smoothing",
            hides=True,
        )


def _out_of_range(
    shown: Mapping[str, float],
    rates: Rates | None,
    similarities: NDArray[np.float64],
    seen: Seen,
) -> Iterator[Reason]:
    """Beyond what photos show, and beyond what images of the generator in question do."""
    best = None
    if rates is not None and seen.own is not None:
        best = int(most_telling(rates.own, similarities)[0])
    beyond = []
    for trait, called in _RANGED.items():
        low, high = seen.photos[trait]
        if seen.own is not None and best is not None:
            usual = seen.own[:, best, TRAITS.index(trait)]
            low, high = min(low, float(usual[0])), max(high, float(usual[1]))
        if shown[trait] > high or (trait == "energy" and shown[trait] < low):
            beyond.append(called)
    if beyond:
        yield Reason(
            "out_of_range",
            f"the image is, in {' and '.join(beyond)}, unlike the photos that the rates were "
            "measured on" + (", and unlike the generator's own images" if best is not None else ""),
        )


def cautions(
    facts: ImageFacts,
    traits: NDArray[np.float64],
    seen: Seen,
    *,
    window: int,
    by_band: bool,
    formats: Mapping[str, int] | None = None,
) -> list[str]:
    """Tell what makes a verdict less certain than its rate says, in sentences.

    Parameters
    ----------
    facts, traits, seen
        See `reasons`.
    window
        Side of the largest window that is analysed, pixels.
    by_band
        The detector has heads for each band of compression.
    formats
        Photos of each format as they were found, see `formats_of`; None where it is not known.
    """
    found = []
    if formats is not None and is_lossy(facts.format):
        name = _SAME.get(facts.format, facts.format)
        count, photos = formats.get(name, 0), sum(formats.values())
        if count < FEW_FILES and count < FEW_OF_ALL * photos:
            found.append(
                f"Hardly any of the photos that the rate was measured on are {name} files: how "
                "often photos of that format match is not known well."
            )
    if min(facts.height, facts.width) < window <= seen.photos["side"][0]:
        found.append(
            f"A side of the image is under {window} pixels: there is less to measure than in the "
            "photos the rates were measured on."
        )
    if facts.format == "array" and by_band:
        found.append(
            "Pixels without a file do not tell how it was compressed: the rate is that of images "
            "without visible compression. Give the file where there is one."
        )
    if facts.jpeg_quality is not None and COMPRESSED <= facts.jpeg_quality < 60:
        found.append(
            f"JPEG quality {facts.jpeg_quality} is at the edge of what the detector was trained "
            "on: most of a generator's pattern may be gone."
        )
    return found


def formats_of(file: DetectorFile) -> Mapping[str, int] | None:
    """Count the photos of each format that images are ranked among; None if a file does not say."""
    calibration = file.provenance.get("calibration")
    formats = calibration.get("formats") if isinstance(calibration, Mapping) else None
    # After enrolling an image is ranked among others.
    if not isinstance(formats, Mapping) or file.provenance.get("enrolled"):
        return None
    found: Counter[str] = Counter()
    for name, count in formats.items():
        if type(count) is int:
            found[_SAME.get(str(name), str(name))] += count
    return found


def from_few_sources(file: DetectorFile) -> frozenset[str]:
    """Name the generators whose heads were learned from fewer than `FEW_SOURCES` sources."""
    sources = file.provenance.get("sources")
    if not isinstance(sources, Mapping):
        return frozenset()
    return frozenset(g for g in file.generators if sources.get(g, FEW_SOURCES) < FEW_SOURCES)


def from_few_sources_caution(generator: str) -> str:
    """Say what few sources mean for a verdict that names such a generator."""
    return (
        f"{generator}'s pattern was learned from too few collections of images: it may be theirs "
        "as much as the generator's."
    )

"""Images as people meet them: drawn, seeded processing, the same for photos and generated images.

On its way an image is compressed, made smaller, sent by messengers, shown and caught as a
screenshot. What it went through is drawn here, with one last compression, and recorded: what a
detector learns and is measured on. `masksim.data.views` makes the views of an image of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from masksim.augment import reencode, resize
from masksim.errors import UsageError
from masksim.traits import compression_band, is_lossy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_SLOW = 768  # pixels: encoders of films take a second for a megapixel

WAYS = ("direct", "reduced", "messenger", "social", "screenshot", "enlarged")
"""What an image goes through before its last compression; all but the first resample it."""

ENDS = ("lossless", "high", "middle", "low", "webp", "avif", "heic")
"""The last compression: none; JPEG of quality 86 to 95, 66 to 85, 50 to 65; other formats."""


@dataclass(frozen=True)
class ProcessingConfig:
    """How processing is drawn.

    Attributes
    ----------
    region
        Side of the largest part that is processed, pixels.
    smallest
        No side is made smaller than this, pixels.
    ways, ends
        Relative shares of `WAYS` and `ENDS`.
    off_grid
        Share of images that are cropped off the 8x8 grid of an earlier compression.
    first_qualities, first_subsampled
        Of a first JPEG for images that come lossless: qualities, each as likely, and the share of
        4:2:0 chroma.
    once_compressed
        Share of the images that come lossless which get that first JPEG, where nothing is
        resampled.
    sharpened
        Share of the resampled images that are sharpened afterwards, as on export for the web.
    """

    region: int = 1536
    smallest: int = 256
    ways: Mapping[str, float] = field(
        default_factory=lambda: {
            "direct": 0.60, "reduced": 0.18, "messenger": 0.08, "social": 0.06,
            "screenshot": 0.04, "enlarged": 0.04,
        }
    )  # fmt: skip
    ends: Mapping[str, float] = field(
        default_factory=lambda: {
            "lossless": 0.22, "high": 0.25, "middle": 0.25, "low": 0.10, "webp": 0.09,
            "avif": 0.05, "heic": 0.04,
        }
    )  # fmt: skip
    off_grid: float = 0.3
    first_qualities: tuple[int, ...] = (75, 80, 85, 90, 92, 93, 94, 95, 96, 97, 98, 99, 100)
    first_subsampled: float = 0.7
    once_compressed: float = 0.9
    sharpened: float = 0.0

    def __post_init__(self) -> None:
        for shares, known in ((self.ways, WAYS), (self.ends, ENDS)):
            if set(shares) - set(known) or not sum(shares.values()) > 0 or min(shares.values()) < 0:
                raise UsageError(f"shares must be of {', '.join(known)}, got {dict(shares)}")
        if not 0 <= self.sharpened <= 1:
            raise UsageError(f"sharpened is a share, got {self.sharpened}")
        if not 64 <= self.smallest <= self.region:
            raise UsageError(f"the smallest side must be 64 to {self.region}, got {self.smallest}")


@dataclass(frozen=True)
class View:
    """Processed pixels, how they came about, and what the file would be that holds them.

    Attributes
    ----------
    pixels
        uint8 (H, W, 3).
    history
        What earlier compression can have left: both classes are compared with equal shares of each.
        ``"jpeg"``: compressed at its present size; ``"lossless"``: never; ``"reduced"``: resampled,
        which wipes earlier compression out. As people meet images also ``"shared"``, after a
        messenger or a social network, and ``"enlarged"``.
    processing
        What was done, in order: ``"jpeg 92 4:2:0"``, ``"resize 0.5 lanczos"``.
    quality
        Of the file, if it is a JPEG.
    format
        Of the file, Pillow's name; lossless after resampling.
    way
        One of `WAYS`; empty where `as_met` did not draw it.
    """

    pixels: Pixels
    history: str
    processing: tuple[str, ...]
    quality: int | None = None
    format: str = "PNG"
    way: str = ""

    @property
    def band(self) -> int:
        """What the file shows of its last compression, see `masksim.traits`."""
        return compression_band(self.format, self.quality)


class Work:
    """Pixels under way, with the steps that led to them and what a file of them would be.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3).
    rng
        From `masksim.augment.rng_for`.
    format, quality
        Of the file as found; the quality of a JPEG, else None.
    """

    def __init__(
        self, pixels: Pixels, rng: np.random.Generator, format: str, quality: int | None = None
    ) -> None:
        self.pixels, self.rng, self.format, self.quality = pixels, rng, format, quality
        self.steps: list[str] = []

    @property
    def side(self) -> int:
        """The shorter side, pixels."""
        return min(self.pixels.shape[:2])

    def crop(self, side: int, *, aligned: bool = True) -> None:
        """Cut a part of at most `side` out at a drawn place, on the 8x8 grid if `aligned`."""
        height, width = self.pixels.shape[:2]
        high, wide = min(height, side), min(width, side)
        y = int(self.rng.integers(0, height - high + 1))
        x = int(self.rng.integers(0, width - wide + 1))
        if aligned:
            y, x = y // 8 * 8, x // 8 * 8
        self.pixels = np.ascontiguousarray(self.pixels[y : y + high, x : x + wide])

    def filter(self) -> str:
        """Draw how to resample."""
        return str(self.rng.choice(("bilinear", "bicubic", "lanczos", "box")))

    def resize(self, factor: float, filter: str) -> None:
        """Resample."""
        self.pixels = resize(self.pixels, factor, filter)
        self.steps.append(f"resize {factor:.4f} {filter}")
        self.format, self.quality = "PNG", None

    def sharpen(self) -> None:
        """Sharpen by an unsharp mask of drawn strength, as programs offer it for small pictures."""
        radius, percent = round(float(self.rng.uniform(0.4, 1.2)), 2), self.between(30, 150)
        mask = ImageFilter.UnsharpMask(radius, percent, self.between(0, 3))
        self.pixels = np.asarray(Image.fromarray(self.pixels).filter(mask))
        self.steps.append(f"sharpen {radius} {percent}")

    def jpeg(self, quality: int, subsampling: str) -> None:
        """Compress by JPEG."""
        self.pixels = reencode(self.pixels, "JPEG", quality, subsampling)
        self.steps.append(f"jpeg {quality} {subsampling}")
        self.format, self.quality = "JPEG", quality

    def other(self, format: str, quality: int) -> None:
        """Compress by another format."""
        self.pixels = reencode(self.pixels, format, quality)
        self.steps.append(f"{format.lower()} {quality}")
        self.format, self.quality = format, None

    def between(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def subsampling(self, share: float) -> str:
        """Draw 4:2:0 with this share, else 4:4:4."""
        return "4:2:0" if self.rng.random() < share else "4:4:4"

    def view(self, history: str, way: str = "") -> View:
        """Give what has become of the pixels."""
        return View(self.pixels, history, tuple(self.steps), self.quality, self.format, way)


def centre(pixels: Pixels, side: int) -> Pixels:
    """Cut out the centre, of at most this side, on the 8x8 grid."""
    y, x = ((n - min(n, side)) // 2 // 8 * 8 for n in pixels.shape[:2])
    return np.ascontiguousarray(pixels[y : y + side, x : x + side])


def history_as_found(format: str) -> str:
    """Tell what the format of a file says of its pixels: ``"jpeg"`` or ``"lossless"``."""
    return "jpeg" if is_lossy(format) else "lossless"


def history_of(way: str, compressed: bool) -> str:
    """Tell the `View.history` of one of `WAYS`.

    Parameters
    ----------
    way
        Which.
    compressed
        Whether the image was compressed at its present size before the last compression.
    """
    if way == "direct":
        return "jpeg" if compressed else "lossless"
    if way in ("messenger", "social"):
        return "shared"
    return "enlarged" if way == "enlarged" else "reduced"


def _resize(work: Work, factor: float, config: ProcessingConfig) -> None:
    """Resample, but to no side under the smallest, and cut out what the region needs before."""
    factor = max(factor, config.smallest / work.side)
    filter = work.filter()
    work.crop(int(np.ceil(config.region / min(factor, 1.0))))
    work.resize(factor, filter)
    if config.sharpened and work.rng.random() < config.sharpened:
        work.sharpen()


def _fit(work: Work, longer: int, config: ProcessingConfig) -> None:
    """Reduce to a longer side; never enlarge."""
    if max(work.pixels.shape[:2]) > longer:
        _resize(work, longer / max(work.pixels.shape[:2]), config)


def _draw(rng: np.random.Generator, shares: Mapping[str, float], names: tuple[str, ...]) -> str:
    weights = np.array([shares.get(name, 0.0) for name in names])
    return str(rng.choice(names, p=weights / weights.sum()))


def as_met(
    pixels: Pixels,
    format: str,
    quality: int | None,
    rng: np.random.Generator,
    config: ProcessingConfig,
) -> View:
    """Draw what an image goes through.

    Parameters
    ----------
    pixels
        The image, uint8 (H, W, 3), both sides at least `ProcessingConfig.smallest`.
    format, quality
        Of its file; the quality of a JPEG, else None.
    rng
        From `masksim.augment.rng_for`.
    config
        Shares.

    Returns
    -------
    View
    """
    work = Work(pixels, rng, format, quality)
    way = _draw(rng, config.ways, WAYS)
    end = _draw(rng, config.ends, ENDS)
    compressed = False
    if way == "direct":
        compressed = is_lossy(format)
        if not compressed and rng.random() < config.once_compressed:
            work.crop(2 * config.region)
            first = int(rng.choice(config.first_qualities))
            work.jpeg(first, work.subsampling(config.first_subsampled))
            compressed = True
    elif way == "messenger":
        _fit(work, int(rng.choice((1280, 1600, 2048))), config)
        end = str(rng.choice(("middle", "middle", "low")))
    elif way == "social":
        _fit(work, int(rng.choice((1080, 1200, 2048))), config)
        work.jpeg(work.between(70, 90), "4:2:0")
    elif way == "screenshot":
        _resize(work, float(rng.uniform(0.35, 1.0)), config)
        work.crop(config.region, aligned=False)
        end = str(rng.choice(("lossless", "lossless", "high")))
    elif way == "reduced":
        _resize(work, float(np.exp(rng.uniform(np.log(0.25), np.log(0.95)))), config)
    else:
        _resize(work, float(rng.uniform(1.05, 2.0)), config)
    side = min(config.region, _SLOW) if end in ("avif", "heic") else config.region
    # Smaller than a part that is looked at anyway: crops are met, too.
    if rng.random() < 0.25 and work.side > 2 * config.smallest:
        side = min(side, work.between(config.smallest, min(side, work.side)))
    work.crop(max(side, config.smallest), aligned=bool(rng.random() >= config.off_grid))
    _finish(work, end, config)
    return work.view(history_of(way, compressed), way)


def _finish(work: Work, end: str, config: ProcessingConfig) -> None:
    """Compress for the last time."""
    if end == "lossless":
        # Of either class: what was compressed once may be saved without loss, as screenshots and
        # editors do. The file as it was is a view of its own (`as_found`).
        work.format, work.quality = "PNG", None
    elif end in ("high", "middle", "low"):
        low, high = {"high": (86, 95), "middle": (66, 85), "low": (50, 65)}[end]
        last = work.between(low, high)
        work.jpeg(last, work.subsampling(config.first_subsampled))
    else:
        format, low, high = {
            "webp": ("WEBP", 60, 95), "avif": ("AVIF", 40, 80), "heic": ("HEIF", 40, 80)
        }[end]  # fmt: skip
        work.other(format, work.between(low, high))


def as_found(pixels: Pixels, format: str, quality: int | None, region: int) -> View:
    """Take the central part of an image, of at most this side, as it is."""
    return View(centre(pixels, region), history_as_found(format), (), quality, format)

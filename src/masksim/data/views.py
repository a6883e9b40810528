"""Images as people meet them: drawn, seeded processing, the same for photos and generated images.

On its way an image is compressed, made smaller, sent by messengers, shown and caught as a
screenshot. What it went through is drawn here, with one last compression, and recorded: what a
detector learns and is measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.augment import reencode, resize
from masksim.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_FILTERS = ("bilinear", "bicubic", "lanczos", "box")
_SLOW = 768  # pixels: encoders of films take a second for a megapixel
_LOSSLESS = "PNG"

WAYS = ("direct", "reduced", "messenger", "social", "screenshot", "enlarged")
"""What an image goes through before its last compression; all but the first resample it."""

ENDS = ("lossless", "high", "middle", "low", "webp", "avif", "heic")
"""The last compression: none; JPEG of quality 86 to 95, 66 to 85, 50 to 65; other formats."""


@dataclass(frozen=True)
class WayConfig:
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

    def __post_init__(self) -> None:
        for shares, known in ((self.ways, WAYS), (self.ends, ENDS)):
            if set(shares) - set(known) or not sum(shares.values()) > 0 or min(shares.values()) < 0:
                raise UsageError(f"shares must be of {', '.join(known)}, got {dict(shares)}")
        if not 64 <= self.smallest <= self.region:
            raise UsageError(f"the smallest side must be 64 to {self.region}, got {self.smallest}")


@dataclass(frozen=True)
class Met:
    """An image as it is met.

    Attributes
    ----------
    pixels
        uint8 (H, W, 3).
    way
        One of `WAYS`.
    compressed
        Whether it was compressed at its present size before the last compression.
    format, quality
        Of the file that it would be; the quality of a JPEG, else None.
    steps
        What was done, in order: ``"jpeg 92 4:2:0"``, ``"resize 0.5 lanczos"``.
    """

    pixels: Pixels
    way: str
    compressed: bool
    format: str
    quality: int | None
    steps: tuple[str, ...]

    @property
    def history(self) -> str:
        """What earlier compression can have left: both classes are compared with equal shares.

        ``"jpeg"`` and ``"lossless"`` at the present size, ``"reduced"`` where resampling has wiped
        it out, ``"shared"`` after a messenger or a social network, ``"enlarged"``.
        """
        if self.way == "direct":
            return "jpeg" if self.compressed else "lossless"
        if self.way in ("messenger", "social"):
            return "shared"
        return "enlarged" if self.way == "enlarged" else "reduced"


class _Work:
    """Pixels under way, with the steps that led to them."""

    def __init__(self, pixels: Pixels, rng: np.random.Generator, config: WayConfig) -> None:
        self.pixels, self.rng, self.config = pixels, rng, config
        self.steps: list[str] = []

    @property
    def side(self) -> int:
        return min(self.pixels.shape[:2])

    def crop(self, side: int, *, aligned: bool) -> None:
        """Cut a part of at most `side` out at a drawn place."""
        height, width = self.pixels.shape[:2]
        high, wide = min(height, side), min(width, side)
        y = int(self.rng.integers(0, height - high + 1))
        x = int(self.rng.integers(0, width - wide + 1))
        if aligned:
            y, x = y // 8 * 8, x // 8 * 8
        self.pixels = self.pixels[y : y + high, x : x + wide]

    def resize(self, factor: float) -> None:
        factor = max(factor, self.config.smallest / self.side)
        method = str(self.rng.choice(_FILTERS))
        self.crop(int(np.ceil(self.config.region / min(factor, 1.0))), aligned=True)
        self.pixels = resize(np.ascontiguousarray(self.pixels), factor, method)
        self.steps.append(f"resize {factor:.4f} {method}")

    def fit(self, longer: int) -> None:
        """Reduce to a longer side; never enlarge."""
        if max(self.pixels.shape[:2]) > longer:
            self.resize(longer / max(self.pixels.shape[:2]))

    def jpeg(self, quality: int, subsampling: str) -> None:
        self.pixels = reencode(np.ascontiguousarray(self.pixels), "JPEG", quality, subsampling)
        self.steps.append(f"jpeg {quality} {subsampling}")

    def other(self, format: str, quality: int) -> None:
        self.pixels = reencode(np.ascontiguousarray(self.pixels), format, quality)
        self.steps.append(f"{format.lower()} {quality}")

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def subsampling(self) -> str:
        return "4:2:0" if self.rng.random() < self.config.first_subsampled else "4:4:4"


def _draw(rng: np.random.Generator, shares: Mapping[str, float], names: tuple[str, ...]) -> str:
    weights = np.array([shares.get(name, 0.0) for name in names])
    return str(rng.choice(names, p=weights / weights.sum()))


def met(
    pixels: Pixels,
    format: str,
    quality: int | None,
    rng: np.random.Generator,
    config: WayConfig,
) -> Met:
    """Draw what an image goes through.

    Parameters
    ----------
    pixels
        The image, uint8 (H, W, 3), both sides at least `WayConfig.smallest`.
    format, quality
        Of its file; the quality of a JPEG, else None.
    rng
        From `masksim.augment.rng_for`.
    config
        Shares.

    Returns
    -------
    Met
    """
    work = _Work(pixels, rng, config)
    lossy = is_lossy(format)
    way = _draw(rng, config.ways, WAYS)
    end = _draw(rng, config.ends, ENDS)
    compressed = False
    if way == "direct":
        compressed = lossy
        if not lossy and rng.random() < config.once_compressed:
            work.crop(2 * config.region, aligned=True)
            work.jpeg(int(rng.choice(config.first_qualities)), work.subsampling())
            compressed = True
    elif way == "messenger":
        work.fit(int(rng.choice((1280, 1600, 2048))))
        end = str(rng.choice(("middle", "middle", "low")))
    elif way == "social":
        work.fit(int(rng.choice((1080, 1200, 2048))))
        work.jpeg(work.between(70, 90), "4:2:0")
        compressed = True
    elif way == "screenshot":
        work.resize(float(rng.uniform(0.35, 1.0)))
        work.crop(config.region, aligned=False)
        end = str(rng.choice(("lossless", "lossless", "high")))
    elif way == "reduced":
        work.resize(float(np.exp(rng.uniform(np.log(0.25), np.log(0.95)))))
    else:
        work.resize(float(rng.uniform(1.05, 2.0)))
    side = min(config.region, _SLOW) if end in ("avif", "heic") else config.region
    # Smaller than a part that is looked at anyway: crops are met, too.
    if rng.random() < 0.25 and work.side > 2 * config.smallest:
        side = min(side, work.between(config.smallest, min(side, work.side)))
    work.crop(max(side, config.smallest), aligned=bool(rng.random() >= config.off_grid))
    final = _finish(work, end)
    return Met(np.ascontiguousarray(work.pixels), way, compressed, *final, tuple(work.steps))


def _finish(work: _Work, end: str) -> tuple[str, int | None]:
    """Compress for the last time: format and quality of the file."""
    if end == "lossless":
        # Of either class: what was compressed once may be saved without loss, as screenshots and
        # editors do. The file as it was is a view of its own (`as_found`).
        return _LOSSLESS, None
    if end in ("high", "middle", "low"):
        low, high = {"high": (86, 95), "middle": (66, 85), "low": (50, 65)}[end]
        last = work.between(low, high)
        work.jpeg(last, work.subsampling())
        return "JPEG", last
    format, low, high = {
        "webp": ("WEBP", 60, 95), "avif": ("AVIF", 40, 80), "heic": ("HEIF", 40, 80)
    }[end]  # fmt: skip
    work.other(format, work.between(low, high))
    return format, None


def is_lossy(format: str) -> bool:
    """Tell whether files of a format (Pillow's name) are usually compressed with loss."""
    return format in ("JPEG", "MPO", "WEBP", "AVIF", "HEIF")


def as_found(pixels: Pixels, format: str, quality: int | None, config: WayConfig) -> Met:
    """Take the central part of an image as it is."""
    height, width = pixels.shape[:2]
    y, x = ((n - min(n, config.region)) // 2 // 8 * 8 for n in (height, width))
    part = np.ascontiguousarray(pixels[y : y + config.region, x : x + config.region])
    return Met(part, "direct", is_lossy(format), format, quality, ())


def from_plain(values: Mapping[str, Any]) -> WayConfig:
    """Make a configuration of plain values; unknown keys fail.

    Raises
    ------
    UsageError
        On an unknown key, or shares that cannot be.
    """
    unknown = sorted(set(values) - set(WayConfig.__dataclass_fields__))
    if unknown:
        raise UsageError(f"unknown keys in the configuration of ways: {unknown}")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return WayConfig(**plain)

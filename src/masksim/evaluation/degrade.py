"""What happens to images on their way: a grid of degradations to measure detectors under.

Each is a pure function of 8-bit sRGB pixels ``(H, W, 3)`` and a random generator, the same for real
and synthetic images; what is drawn (a filter, a place, noise) comes from that generator alone, so
with `masksim.augment.rng_for` of a content hash and the degradation's name no order matters.

The result is what a lossless file would hold afterwards. It may be too small for a detector
(``resize-0.25``), and it may be the argument itself (``none``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from masksim import augment
from masksim.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

__all__ = ["GRID", "MILD", "Degradation", "select"]

RESIZE_FILTERS = ("bilinear", "bicubic", "lanczos")
MONITOR = ((1080, 1920),)
PHONES = ((2340, 1080), (2532, 1170), (3120, 1440))


@dataclass(frozen=True)
class Degradation:
    """One way of degrading images.

    Attributes
    ----------
    name
        Of this one: ``"jpeg-70"``; for tables and the command line.
    family
        Of its kind: ``"jpeg"``.
    apply
        ``(pixels, rng) -> pixels``: uint8 ``(H, W, 3)`` sRGB to uint8 ``(H', W', 3)``. Pure: the
        argument is not changed; the same pixels and state of `rng` give the same result.
    does
        In words, for people.
    saved_as
        Format (Pillow's name) and JPEG quality of the file that the result comes from: what it
        shows of its last compression. None: that of the file as it was.
    """

    name: str
    family: str
    apply: Callable[[Pixels, np.random.Generator], Pixels]
    does: str
    saved_as: tuple[str, int | None] | None = ("PNG", None)


# --- single steps ------------------------------------------------------------------------------


def _none(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels


def _compress(pixels: Pixels, rng: np.random.Generator, *, format: str, quality: int) -> Pixels:
    return augment.reencode(pixels, format, quality)


def _scaled(pixels: Pixels, factor: float) -> tuple[int, int]:
    """Height and width of the image times a factor, at least one pixel each."""
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return height, width


def _resize(pixels: Pixels, rng: np.random.Generator, *, factor: float) -> Pixels:
    # Which software will have resized an image is not known: the filter is drawn.
    filter = RESIZE_FILTERS[rng.integers(len(RESIZE_FILTERS))]
    return augment.resize(pixels, _scaled(pixels, factor), filter)


def _crop_off_grid(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    top, left = np.minimum(rng.integers(1, 8, size=2), np.array(pixels.shape[:2]) - 1)
    return pixels[top:, left:]


def _crop_centre(pixels: Pixels, rng: np.random.Generator, *, share: float) -> Pixels:
    height, width = _scaled(pixels, share)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _crop_drawn(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = (max(1, round(side * rng.uniform(0.5, 0.9))) for side in pixels.shape[:2])
    top = int(rng.integers(pixels.shape[0] - height + 1))
    left = int(rng.integers(pixels.shape[1] - width + 1))
    return pixels[top : top + height, left : left + width]


def _filter(
    pixels: Pixels, rng: np.random.Generator, *, kernel: ImageFilter.MultibandFilter
) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(kernel))


def _noise(pixels: Pixels, rng: np.random.Generator, *, sigma: float) -> Pixels:
    noisy = rng.standard_normal(pixels.shape, dtype=np.float32)
    noisy *= np.float32(sigma)
    noisy += pixels
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _screenshot(
    pixels: Pixels, rng: np.random.Generator, *, screens: Sequence[tuple[int, int]]
) -> Pixels:
    """Scale to fit a screen, either way, as a full-screen viewer does, and cut the image out.

    Cutting by hand takes a few rows and columns of the image with it, never a row of the frame.
    """
    height, width = screens[int(rng.integers(len(screens)))]
    size = _scaled(pixels, min(height / pixels.shape[0], width / pixels.shape[1]))
    shown = augment.resize(pixels, size, "bilinear")
    top, left, bottom, right = rng.integers(0, 9, size=4)
    if min(size) <= 16:  # a sliver is left whole
        return shown
    return shown[top : size[0] - bottom, left : size[1] - right]


def _share(
    pixels: Pixels, rng: np.random.Generator, *, longer: int, quality: int, filter: str
) -> Pixels:
    """Reduce to the longer side that a service allows, then JPEG 4:2:0; never enlarge."""
    height, width = pixels.shape[:2]
    if max(height, width) > longer:
        pixels = augment.resize(pixels, _scaled(pixels, longer / max(height, width)), filter)
    return augment.reencode(pixels, "JPEG", quality)


def _chain(
    pixels: Pixels,
    rng: np.random.Generator,
    *,
    steps: Sequence[Callable[[Pixels, np.random.Generator], Pixels]],
) -> Pixels:
    for step in steps:
        pixels = step(pixels, rng)
    return pixels


def _saved_as(step: Callable[[Pixels, np.random.Generator], Pixels]) -> tuple[str, int | None]:
    """Read from a step how it compresses last; lossless where it does not."""
    if not isinstance(step, partial):
        return "PNG", None
    if step.func is _chain:
        return _saved_as(step.keywords["steps"][-1])
    if step.func not in (_compress, _share):
        return "PNG", None
    format = str(step.keywords.get("format", "JPEG"))
    return format, int(step.keywords["quality"]) if format == "JPEG" else None


# --- the grid ----------------------------------------------------------------------------------


def _one(name: str, does: str, function: Callable[..., Pixels], **options: Any) -> Degradation:
    # partial, not lambda: worker processes are sent these functions.
    step = partial(function, **options)
    return Degradation(name, name.partition("-")[0], step, does, _saved_as(step))


def _grid() -> Iterator[Degradation]:
    yield Degradation("none", "none", _none, "nothing: the image as it is", saved_as=None)
    for q in (50, 60, 70, 80, 90, 95, 100):
        does = f"JPEG of quality {q}, chroma 4:2:0"
        yield _one(f"jpeg-{q}", does, _compress, format="JPEG", quality=q)
    for q in (50, 65, 80, 95):
        does = f"lossy WebP of quality {q}"
        yield _one(f"webp-{q}", does, _compress, format="WEBP", quality=q)
    for factor in (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0):
        does = f"both sides times {factor:g}, filter drawn: {', '.join(RESIZE_FILTERS)}"
        yield _one(f"resize-{factor:g}", does, _resize, factor=factor)
    does = "1 to 7 rows and columns cut off at top and left, drawn: off the 8 x 8 grid of JPEG"
    yield _one("crop-off-grid", does, _crop_off_grid)
    yield _one("crop-centre-50", "the central 50 % of either side", _crop_centre, share=0.5)
    yield _one("crop-drawn", "50 to 90 % of either side at a place, all drawn", _crop_drawn)
    for sigma in (0.5, 1.0, 2.0):
        kernel = ImageFilter.GaussianBlur(sigma)
        yield _one(
            f"blur-{sigma:g}", f"Gaussian blur, sigma {sigma:g} pixels", _filter, kernel=kernel
        )
    for percent in (50, 150):
        mask = ImageFilter.UnsharpMask(radius=1, percent=percent, threshold=0)
        does = f"unsharp mask, radius 1 pixel, {percent} %"
        yield _one(f"sharpen-{percent}", does, _filter, kernel=mask)
    for level in (1, 2, 5):
        does = f"independent Gaussian noise, sigma {level} of 255 levels"
        yield _one(f"noise-{level}", does, _noise, sigma=level)
    phone = partial(_screenshot, screens=PHONES)
    yield from _screenshots(phone)
    yield from _social(phone)


def _screenshots(phone: partial[Pixels]) -> Iterator[Degradation]:
    jpeg90 = partial(_compress, format="JPEG", quality=90)
    for name, where, shot in (
        ("monitor", "1920 x 1080 pixels", partial(_screenshot, screens=MONITOR)),
        ("phone", "1080 x 2340, 1170 x 2532 or 1440 x 3120 pixels, drawn", phone),
    ):
        does = f"scaled to fit {where}, bilinear; 0 to 8 pixels cut off at each side, drawn"
        yield _one(f"screenshot-{name}", f"{does}; saved as PNG", shot)
        jpeg = f"{does}; saved as JPEG of quality 90"
        yield _one(f"screenshot-{name}-jpeg-90", jpeg, _chain, steps=(shot, jpeg90))


def _social(phone: partial[Pixels]) -> Iterator[Degradation]:
    def post(longer: int, quality: int, filter: str) -> partial[Pixels]:
        return partial(_share, longer=longer, quality=quality, filter=filter)

    for longer, quality, filter in (
        (2048, 85, "lanczos"),
        (2048, 71, "lanczos"),
        (1600, 80, "bilinear"),
        (1280, 87, "bilinear"),
        (1080, 72, "lanczos"),
    ):
        yield _one(
            f"social-{longer}-q{quality}",
            f"longer side at most {longer} pixels, {filter}; JPEG of quality {quality}, 4:2:0",
            _share, longer=longer, quality=quality, filter=filter,
        )  # fmt: skip
    sent, posted = post(1600, 75, "bilinear"), post(1080, 72, "lanczos")
    yield _one(
        "social-1600-q75-twice",
        "a messenger, passed on once: longer side at most 1600 pixels, bilinear, JPEG of quality "
        "75, 4:2:0; the same again",
        _chain, steps=(sent, sent),
    )  # fmt: skip
    yield _one(
        "social-2048-q85-then-1080-q72",
        "posted, saved and posted elsewhere: as social-2048-q85, then as social-1080-q72",
        _chain, steps=(post(2048, 85, "lanczos"), posted),
    )  # fmt: skip
    yield _one(
        "social-1600-q75-screenshot-1080-q72",
        "sent by a messenger, taken as a screenshot on a phone, posted: at most 1600 "
        "pixels, bilinear, JPEG of quality 75, 4:2:0; as screenshot-phone; as social-1080-q72",
        _chain, steps=(sent, phone, posted),
    )  # fmt: skip


GRID: dict[str, Degradation] = {one.name: one for one in _grid()}
"""All degradations by name, in the order of tables; ``none`` comes first."""


def _corner(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels[8:, 8:]


def _bicubic(pixels: Pixels, rng: np.random.Generator, *, factor: float) -> Pixels:
    return augment.resize(pixels, _scaled(pixels, factor), "bicubic")


def _mild() -> Iterator[Degradation]:
    for format, qualities in (("JPEG", (75, 80, 85, 90, 95)), ("WEBP", (80, 85, 90, 95))):
        for q in qualities:
            does = f"{format} of quality {q}"
            yield _one(f"{format.lower()}-{q}", does, _compress, format=format, quality=q)
    for factor in (0.98, 1.02):
        yield _one(f"resize-{factor}", f"resized by {factor}, bicubic", _bicubic, factor=factor)
    yield _one("crop-8", "8 rows and columns cut off at the top and left", _corner)


MILD: tuple[Degradation, ...] = tuple(_mild())
"""Small re-encodings, under which a verdict should hold."""


def select(names: Sequence[str]) -> list[Degradation]:
    """Choose degradations by name.

    Parameters
    ----------
    names
        Names (``"jpeg-70"``), families (``"jpeg"``), or ``"all"``.

    Returns
    -------
    list of Degradation
        In the order of `names`, within a family in that of `GRID`; each once.

    Raises
    ------
    UsageError
        Unknown name; the message lists the known ones.
    """
    found: dict[str, Degradation] = {}
    for name in names:
        chosen = [one for one in GRID.values() if name in ("all", one.family, one.name)]
        if not chosen:
            families = dict.fromkeys(one.family for one in GRID.values())
            raise UsageError(
                f"there is no degradation {name!r}; families: all, {', '.join(families)}; "
                f"single ones: {', '.join(GRID)}"
            )
        found.update((one.name, one) for one in chosen)
    return list(found.values())

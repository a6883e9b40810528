"""Views: images as detectors are trained and measured on them, and how they are drawn.

A *view* is an image after a drawn, seeded processing. Photos in the wild have mostly been JPEG
before and many synthetic images never: a detector trained on files as found learns to count
compressions. So every view has one of three *histories*, and both classes get the same shares:

``jpeg``      compressed at its present size at least once; synthetic images that come lossless get
              a first JPEG, with quality and subsampling drawn from those of the real photos;
``reduced``   made two to four times smaller, which wipes earlier compression out;
``lossless``  as it came from a lossless file.

Then the same final compression for all. `views` makes every history that an image allows;
weights (`masksim.data.weights`) give both classes the same shares of each. The purpose
``"met"`` draws images as people meet them instead, see `masksim.data.processing`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from masksim.augment import rng_for
from masksim.data.manifest import Manifest, Row
from masksim.data.processing import ProcessingConfig, View, Work, as_found, as_met, centre
from masksim.errors import DataError, UsageError
from masksim.image import estimate_jpeg_quality, load_image
from masksim.traits import is_lossy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

History: TypeAlias = Literal["jpeg", "reduced", "lossless"]
HISTORIES: tuple[History, ...] = ("jpeg", "reduced", "lossless")

Purpose: TypeAlias = Literal["train", "evaluate", "calibrate", "enroll", "as found", "met"]


@dataclass(frozen=True)
class ViewConfig:
    """How views are drawn: the same for real and synthetic images.

    Attributes
    ----------
    window
        Side of the analysed windows, pixels.
    region
        Side of the central region that is processed for evaluation, pixels (all of a smaller
        image): bounds the cost of a 12-megapixel photo.
    shares
        Of each history, in training and evaluation.
    reduction
        Range of the factor by which ``reduced`` views are made smaller, as far as a window is left.
    final_quality
        Range of the last compression, both ends included.
    first_qualities
        Qualities of the first JPEG of lossless synthetic images; each entry is equally likely.
    first_subsampled
        Share of those with 4:2:0 chroma; the others have 4:4:4.
    aligned
        Share of training views whose crops keep the 8x8 grid of the first compression.
    extra_jpeg, extra_webp, resized, final_webp, uncompressed
        Shares of training views with one more JPEG or WebP compression, a resize by
        `resize_range`, a last compression by WebP, and none at all.
    resize_range
        Range of the factor.
    views
        Training views an image, by generator; ``"*"`` for the others.
    ways
        How images are processed as people meet them, see `masksim.data.processing`.
    """

    window: int = 512
    region: int = 1536
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"jpeg": 0.75, "reduced": 0.20, "lossless": 0.05}
    )
    reduction: tuple[float, float] = (2.0, 4.0)
    final_quality: tuple[int, int] = (65, 100)
    first_qualities: tuple[int, ...] = (75, 80, 85, 90, 92, 93, 94, 95, 96, 97, 98, 99, 100)
    first_subsampled: float = 0.7
    aligned: float = 0.85
    extra_jpeg: float = 0.15
    extra_webp: float = 0.15
    resized: float = 0.2
    resize_range: tuple[float, float] = (0.7, 1.5)
    final_webp: float = 0.12
    uncompressed: float = 0.04
    views: Mapping[str, int] = field(default_factory=lambda: {"*": 4})
    ways: ProcessingConfig = field(default_factory=ProcessingConfig)

    def __post_init__(self) -> None:
        """Refuse what no view can be drawn by.

        Raises
        ------
        UsageError
            The shares are not of the three histories, or JPEG's is 0 (all images allow it).
        """
        shares = dict(self.shares)
        if set(shares) != set(HISTORIES) or min(shares.values()) < 0 or not shares["jpeg"] > 0:
            raise UsageError(
                f"shares must give {', '.join(HISTORIES)} each a number that is not negative, "
                f"jpeg a positive one; got {shares}"
            )


def histories(row: Row, config: ViewConfig) -> list[History]:
    """Return the histories that a view of this image can have."""
    found: list[History] = ["jpeg"]
    if min(row.width, row.height) >= config.reduction[0] * config.window:
        found.append("reduced")
    if not is_lossy(row.format):
        found.append("lossless")
    return found


def measure_first_qualities(manifest: Manifest) -> tuple[tuple[int, ...], float]:
    """Qualities and the share of 4:2:0 chroma of the real JPEG photos of a manifest.

    Returns
    -------
    qualities
        101 evenly spaced quantiles, 1..100.
    subsampled
        Share of 4:2:0, in [0, 1].

    Raises
    ------
    DataError
        There is no real JPEG.
    """
    from PIL import Image, UnidentifiedImageError

    qualities, subsampled = [], []
    for row in manifest.rows:
        if not row.is_real or row.format not in ("JPEG", "MPO"):
            continue
        try:
            with Image.open(manifest.file(row)) as image:
                tables = getattr(image, "quantization", None)
                layers = getattr(image, "layer", None)
        except (OSError, UnidentifiedImageError):
            continue
        if tables:
            qualities.append(estimate_jpeg_quality(tables[min(tables)]))
            subsampled.append(layers is not None and tuple(layers[0][1:3]) == (2, 2))
    if not qualities:
        raise DataError(
            f"among the {sum(row.is_real for row in manifest.rows)} real photos there is no JPEG, "
            "and training draws the qualities of first compressions from those: add some, or give "
            "first_qualities in the configuration",
            code="manifest_invalid",
        )
    grid = np.quantile(qualities, np.linspace(0, 1, 101), method="nearest")
    return tuple(int(q) for q in grid), float(np.mean(subsampled))


def _first_jpeg(work: Work, config: ViewConfig) -> None:
    """Compress an image that came lossless as photos are when they are taken."""
    quality = int(work.rng.choice(config.first_qualities))
    work.jpeg(quality, work.subsampling(config.first_subsampled))


def _last_jpeg(work: Work, config: ViewConfig) -> None:
    subsampling = work.subsampling(config.first_subsampled)
    work.jpeg(work.between(*config.final_quality), subsampling)


def _reduce(work: Work, config: ViewConfig, region: int, *, central: bool) -> None:
    low, high = config.reduction
    most = max(low, min(high, work.side / config.window))
    factor = float(work.rng.uniform(low, most))
    if central:
        work.pixels = centre(work.pixels, int(region * factor))
    else:
        work.crop(int(region * factor))
    work.resize(1 / factor, work.filter())


def training_view(
    pixels: Pixels, row: Row, history: History, rng: np.random.Generator, config: ViewConfig
) -> View:
    """Draw one window of an image, processed for training.

    Parameters
    ----------
    pixels
        The image, uint8 (H, W, 3).
    row
        Its row of the manifest.
    history
        One that `histories` allows.
    rng
        From `masksim.augment.rng_for`.
    config
        The shares.

    Returns
    -------
    View
        uint8 (window, window, 3), or the whole of a smaller image.
    """
    work = Work(pixels, rng, row.format)
    aligned = bool(rng.random() < config.aligned)
    if history == "reduced":
        _reduce(work, config, config.window * 3 // 2, central=False)
    else:
        if history == "jpeg" and not is_lossy(row.format):
            _first_jpeg(work, config)
        work.crop(2 * config.window, aligned=aligned)
        chance = float(rng.random())
        if chance < config.extra_webp:
            work.other("WEBP", work.between(*config.final_quality))
        elif chance < config.extra_webp + config.extra_jpeg:
            _last_jpeg(work, config)
        if rng.random() < config.resized:
            factor = float(rng.uniform(*config.resize_range))
            if work.side * factor >= config.window:
                work.resize(factor, work.filter())
    work.crop(config.window, aligned=aligned)
    if rng.random() >= config.uncompressed:
        if rng.random() < config.final_webp:
            work.other("WEBP", work.between(*config.final_quality))
        else:
            _last_jpeg(work, config)
    return work.view(history)


def evaluation_view(
    pixels: Pixels, row: Row, history: History, rng: np.random.Generator, config: ViewConfig
) -> View:
    """Process the central region of an image for evaluation: its history, then one JPEG."""
    work = Work(pixels, rng, row.format)
    if history == "reduced":
        _reduce(work, config, config.region, central=True)
    else:
        if history == "jpeg" and not is_lossy(row.format):
            _first_jpeg(work, config)
        work.pixels = centre(work.pixels, config.region)
    _last_jpeg(work, config)
    return work.view(history)


def calibration_view(
    pixels: Pixels,
    row: Row,
    rng: np.random.Generator,
    config: ViewConfig,
    *,
    once: bool = False,
) -> View:
    """Process an image as photos come: a third as it is, the others as for evaluation.

    With `once` an image that comes lossless gets one JPEG in most of the draws in which a photo,
    which mostly was a JPEG, stays as it is: so that both were compressed once as often.
    """
    if rng.random() < 1 / 3:
        if once and not is_lossy(row.format):
            one, none = config.shares["jpeg"], config.shares["lossless"]
            if rng.random() < one / (one + none):
                work = Work(centre(pixels, config.region), rng, row.format)
                _first_jpeg(work, config)
                return work.view("jpeg")
        return as_found(pixels, row.format, None, config.region)
    allowed = histories(row, config)
    shares = np.array([config.shares[h] for h in allowed])
    return evaluation_view(
        pixels, row, allowed[int(rng.choice(len(allowed), p=shares / shares.sum()))], rng, config
    )


def views(
    pixels: Pixels, row: Row, purpose: Purpose, config: ViewConfig, seed: int
) -> Iterator[View]:
    """Make the views of one image for a purpose, seeded by its content.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3).
    row
        Its row; `Row.sha256` or, failing that, its path seeds the draw.
    purpose
        ``"train"``: as many as `ViewConfig.views` says; ``"evaluate"``: one each history;
        ``"calibrate"``: one; ``"enroll"``: as many as `ViewConfig.views` says, all processed as for
        calibration; ``"as found"``: one, without any processing. ``"met"``, which depends on the
        file, is only for `views_of_file`.
    config
        The shares.
    seed
        Of the whole run.

    Yields
    ------
    View
        One without any processing has no quality: that is the file's.
    """
    key = row.key
    allowed = histories(row, config)
    if purpose == "evaluate":
        for history in allowed:
            rng = rng_for(seed, key, "evaluate", history)
            yield evaluation_view(pixels, row, history, rng, config)
    elif purpose == "as found":
        yield as_found(pixels, row.format, None, config.region)
    elif purpose == "calibrate":
        yield calibration_view(pixels, row, rng_for(seed, key, "calibrate"), config)
    else:
        for number in range(_count(row, config)):
            rng = rng_for(seed, key, purpose, number)
            if purpose == "enroll":
                yield calibration_view(pixels, row, rng, config, once=True)
                continue
            # Rare histories are drawn more often than their share; the weights put that right.
            drawn = allowed[0]
            if len(allowed) > 1 and rng.random() < 0.4:
                drawn = allowed[1 + int(rng.integers(len(allowed) - 1))]
            yield training_view(pixels, row, drawn, rng, config)


def _count(row: Row, config: ViewConfig) -> int:
    return config.views.get(row.generator, config.views.get("*", 1))


def views_of_file(
    file: str | os.PathLike[str], row: Row, purpose: Purpose, config: ViewConfig, seed: int
) -> Iterator[tuple[Row, View]]:
    """Decode an image and make its views.

    Yields
    ------
    Row, View
        The row with the size, and where it lacks it the format, of the file; the view with its
        quality. Of the purpose ``"met"`` the first is the file as found.

    Raises
    ------
    ImageError
        See `masksim.image.load_image`.
    """
    loaded = load_image(file)
    facts, pixels = loaded.facts, loaded.pixels
    if purpose == "met":
        sized = replace(row, width=facts.width, height=facts.height, format=facts.format)
        for number in range(_count(row, config)):
            if number:
                rng = rng_for(seed, row.key, "met", number)
                yield sized, as_met(pixels, facts.format, facts.jpeg_quality, rng, config.ways)
            else:
                region = config.ways.region
                yield sized, as_found(pixels, facts.format, facts.jpeg_quality, region)
        return
    height, width = pixels.shape[:2]
    sized = replace(row, width=width, height=height, format=row.format or facts.format)
    for view in views(pixels, sized, purpose, config, seed):
        if not view.processing:
            view = replace(view, quality=facts.jpeg_quality, format=facts.format)
        yield sized, view


def at_most(rows: Sequence[Row], counts: Mapping[str, int]) -> tuple[Row, ...]:
    """Choose rows so that no source gives more images of a generator than a number.

    Parameters
    ----------
    rows
        In any order.
    counts
        Images a source, by generator; ``"*"`` for the others. Which ones depends on their content.

    Returns
    -------
    tuple of Row
        In the order of `rows`.
    """
    order = sorted(
        range(len(rows)), key=lambda i: (rng_for("spread", rows[i].key).random(), rows[i].path)
    )
    taken: Counter[tuple[str, str]] = Counter()
    chosen = []
    for i in order:
        row = rows[i]
        most = counts.get(row.generator, counts.get("*", len(rows)))
        if taken[row.generator, row.source] < most:
            taken[row.generator, row.source] += 1
            chosen.append(i)
    return tuple(rows[i] for i in sorted(chosen))

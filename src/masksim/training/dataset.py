"""From a manifest to what a detector is trained and measured on: views and their spectra.

A *view* is an image after a drawn, seeded processing. Photos in the wild have mostly been JPEG
before and many synthetic images never: a detector trained on files as found learns to count
compressions. So every view has one of three *histories*, and both classes get the same shares:

``jpeg``      compressed at its present size at least once; synthetic images that come lossless get
              a first JPEG, with quality and subsampling drawn from those of the real photos;
``reduced``   made two to four times smaller, which wipes earlier compression out;
``lossless``  as it came from a lossless file.

Then the same final compression for all. `views` makes every history that an image
allows, and `history_weights` gives both classes the same shares of each.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from masksim.augment import reencode, resize, rng_for
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.data.views import WayConfig, as_found, met
from masksim.data.views import from_plain as ways_from_plain
from masksim.errors import DataError, MasksimError, UsageError
from masksim.features import FeatureConfig, shared_features
from masksim.image import LoadedImage, estimate_jpeg_quality, load_image
from masksim.residual import ResidualConfig, residual_onnx, residual_runner
from masksim.traits import TRAITS, compression_band, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

History: TypeAlias = Literal["jpeg", "reduced", "lossless"]
HISTORIES: tuple[History, ...] = ("jpeg", "reduced", "lossless")

Purpose: TypeAlias = Literal["train", "evaluate", "calibrate", "enroll", "as found", "met"]

_LOSSY = {"JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "HEIF": "other", "AVIF": "other"}
_FILTERS = ("bilinear", "bicubic", "lanczos", "box")
_CHUNK = 16


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
        How images are processed as people meet them, see `masksim.data.views`.
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
    ways: WayConfig = field(default_factory=WayConfig)

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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViewConfig:
        """Make a configuration of plain values; unknown keys fail.

        Raises
        ------
        UsageError
            On an unknown key, or impossible shares.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(f"unknown keys in the configuration of views: {unknown}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if isinstance(plain.get("ways"), Mapping):
            plain["ways"] = ways_from_plain(plain["ways"])
        return cls(**plain)


@dataclass(frozen=True)
class View:
    """Processed pixels and how they came about.

    Attributes
    ----------
    pixels
        uint8 (H, W, 3).
    history
        One of `HISTORIES`; for images as people meet them see `masksim.data.views.Met.history`.
    processing
        What was done, in order: ``"jpeg 92 4:2:0"``, ``"resize 0.5 lanczos"``.
    quality
        See `last_quality`.
    format
        Pillow's name of the format of the file that it would be, see `last_format`.
    """

    pixels: Pixels
    history: str
    processing: tuple[str, ...]
    quality: int | None = None
    format: str = "PNG"

    @property
    def band(self) -> int:
        """What the file that it would be shows of its last compression, see `masksim.traits`."""
        return compression_band(self.format, self.quality)


def history_of(format: str) -> str:
    """Tell a file's compression by its format as found.

    Returns
    -------
    str
        ``"jpeg"``, ``"webp"``, ``"other"`` (HEIC, AVIF: lossy too) or ``"lossless"``.
    """
    return _LOSSY.get(format, "lossless")


def histories(row: Row, config: ViewConfig) -> list[History]:
    """Return the histories that a view of this image can have."""
    found: list[History] = ["jpeg"]
    if min(row.width, row.height) >= config.reduction[0] * config.window:
        found.append("reduced")
    if history_of(row.format) == "lossless":
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
        if not row.is_real or history_of(row.format) != "jpeg":
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


def _crop(
    pixels: Pixels, side: int, rng: np.random.Generator | None, *, aligned: bool = True
) -> Pixels:
    """Crop a region of at most `side`, central or at a drawn place."""
    height, width = pixels.shape[:2]
    high, wide = min(height, side), min(width, side)
    if rng is None:
        y, x = (height - high) // 2, (width - wide) // 2
    else:
        y, x = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
    if aligned:
        y, x = y // 8 * 8, x // 8 * 8
    return pixels[y : y + high, x : x + wide]


def _jpeg(pixels: Pixels, quality: int, subsampling: str, log: list[str]) -> Pixels:
    log.append(f"jpeg {quality} {subsampling}")
    return reencode(pixels, "JPEG", quality, subsampling)


def _webp(pixels: Pixels, quality: int, log: list[str]) -> Pixels:
    log.append(f"webp {quality}")
    return reencode(pixels, "WEBP", quality)


def _between(rng: np.random.Generator, ends: tuple[int, int]) -> int:
    return int(rng.integers(ends[0], ends[1] + 1))


def _subsampling(rng: np.random.Generator, share: float) -> str:
    return "4:2:0" if rng.random() < share else "4:4:4"


def _reduce(
    pixels: Pixels, rng: np.random.Generator, config: ViewConfig, region: int, log: list[str],
    *, central: bool,
) -> Pixels:  # fmt: skip
    low, high = config.reduction
    factor = float(rng.uniform(low, max(low, min(high, min(pixels.shape[:2]) / config.window))))
    crop = _crop(pixels, int(region * factor), None if central else rng)
    method = str(rng.choice(_FILTERS))
    log.append(f"resize {1 / factor:.4f} {method}")
    return resize(crop, 1 / factor, method)


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
    log: list[str] = []
    aligned = bool(rng.random() < config.aligned)
    if history == "reduced":
        pixels = _reduce(pixels, rng, config, config.window * 3 // 2, log, central=False)
    else:
        if history == "jpeg" and history_of(row.format) == "lossless":
            quality = int(rng.choice(config.first_qualities))
            pixels = _jpeg(pixels, quality, _subsampling(rng, config.first_subsampled), log)
        pixels = _crop(pixels, 2 * config.window, rng, aligned=aligned)
        chance = float(rng.random())
        if chance < config.extra_webp:
            pixels = _webp(pixels, _between(rng, config.final_quality), log)
        elif chance < config.extra_webp + config.extra_jpeg:
            subsampling = _subsampling(rng, config.first_subsampled)
            pixels = _jpeg(pixels, _between(rng, config.final_quality), subsampling, log)
        if rng.random() < config.resized:
            factor = float(rng.uniform(*config.resize_range))
            if min(pixels.shape[:2]) * factor >= config.window:
                method = str(rng.choice(_FILTERS))
                log.append(f"resize {factor:.4f} {method}")
                pixels = resize(pixels, factor, method)
    pixels = _crop(pixels, config.window, rng, aligned=aligned)
    if rng.random() >= config.uncompressed:
        if rng.random() < config.final_webp:
            pixels = _webp(pixels, _between(rng, config.final_quality), log)
        else:
            subsampling = _subsampling(rng, config.first_subsampled)
            pixels = _jpeg(pixels, _between(rng, config.final_quality), subsampling, log)
    return View(pixels, history, tuple(log))


def evaluation_view(
    pixels: Pixels, row: Row, history: History, rng: np.random.Generator, config: ViewConfig
) -> View:
    """Process the central region of an image for evaluation: its history, then one JPEG."""
    log: list[str] = []
    if history == "reduced":
        pixels = _reduce(pixels, rng, config, config.region, log, central=True)
    else:
        if history == "jpeg" and history_of(row.format) == "lossless":
            quality = int(rng.choice(config.first_qualities))
            pixels = _jpeg(pixels, quality, _subsampling(rng, config.first_subsampled), log)
        pixels = _crop(pixels, config.region, None)
    subsampling = _subsampling(rng, config.first_subsampled)
    pixels = _jpeg(pixels, _between(rng, config.final_quality), subsampling, log)
    return View(pixels, history, tuple(log))


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
        if once and history_of(row.format) == "lossless":
            one, none = config.shares["jpeg"], config.shares["lossless"]
            if rng.random() < one / (one + none):
                log: list[str] = []
                quality = int(rng.choice(config.first_qualities))
                crop = _crop(pixels, config.region, None)
                crop = _jpeg(crop, quality, _subsampling(rng, config.first_subsampled), log)
                return View(crop, "jpeg", tuple(log))
        history: History = "lossless" if history_of(row.format) == "lossless" else "jpeg"
        return View(_crop(pixels, config.region, None), history, ())
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
        calibration; ``"as found"``: one, without any processing. ``"met"``, see
        `masksim.data.views`, is only for `views_of_file`.
    config
        The shares.
    seed
        Of the whole run.

    Yields
    ------
    View
    """
    key = row.key
    allowed = histories(row, config)
    if purpose == "evaluate":
        for history in allowed:
            rng = rng_for(seed, key, "evaluate", history)
            yield evaluation_view(pixels, row, history, rng, config)
    elif purpose == "as found":
        history = "lossless" if history_of(row.format) == "lossless" else "jpeg"
        yield View(_crop(pixels, config.region, None), history, ())
    elif purpose == "calibrate":
        yield calibration_view(pixels, row, rng_for(seed, key, "calibrate"), config)
    else:
        count = config.views.get(row.generator, config.views.get("*", 1))
        for number in range(count):
            rng = rng_for(seed, key, purpose, number)
            if purpose == "enroll":
                yield calibration_view(pixels, row, rng, config, once=True)
                continue
            # Rare histories are drawn more often than their share; the weights put that right.
            drawn = allowed[0]
            if len(allowed) > 1 and rng.random() < 0.4:
                drawn = allowed[1 + int(rng.integers(len(allowed) - 1))]
            yield training_view(pixels, row, drawn, rng, config)


def views_of_file(
    file: str | os.PathLike[str], row: Row, purpose: Purpose, config: ViewConfig, seed: int
) -> Iterator[tuple[Row, View]]:
    """Decode an image and make its views.

    Yields
    ------
    Row, View
        The row with the size, and where it lacks it the format, of the file; the view with its
        quality.

    Raises
    ------
    ImageError
        See `masksim.image.load_image`.
    """
    loaded = load_image(file)
    if purpose == "met":
        yield from _met_views(loaded, row, config, seed)
        return
    height, width = loaded.pixels.shape[:2]
    sized = replace(row, width=width, height=height, format=row.format or loaded.facts.format)
    for view in views(loaded.pixels, sized, purpose, config, seed):
        quality = last_quality(view.processing, loaded.facts.jpeg_quality)
        format = last_format(view.processing, loaded.facts.format)
        yield sized, replace(view, quality=quality, format=format)


def _met_views(
    loaded: LoadedImage, row: Row, config: ViewConfig, seed: int
) -> Iterator[tuple[Row, View]]:
    """Make as many views of an image as `ViewConfig.views` says, the first of the file as found."""
    facts = loaded.facts
    sized = replace(row, width=facts.width, height=facts.height, format=facts.format)
    count = config.views.get(row.generator, config.views.get("*", 1))
    for number in range(count):
        if number:
            rng = rng_for(seed, row.key, "met", number)
            found = met(loaded.pixels, facts.format, facts.jpeg_quality, rng, config.ways)
        else:
            found = as_found(loaded.pixels, facts.format, facts.jpeg_quality, config.ways)
        yield sized, View(found.pixels, found.history, found.steps, found.quality, found.format)


def last_quality(processing: Sequence[str], found: int | None) -> int | None:
    """Quality of the JPEG file that a view would be, None where it would be another one.

    Parameters
    ----------
    processing
        See `View`.
    found
        Quality of the file as found.
    """
    if not processing:
        return found
    kind, *rest = processing[-1].split()
    return int(rest[0]) if kind == "jpeg" else None


def last_format(processing: Sequence[str], found: str) -> str:
    """Format, by Pillow's name, of the file that a view would be: lossless after resampling.

    Parameters
    ----------
    processing
        See `View`.
    found
        Format of the file as found.
    """
    if not processing:
        return found
    kind = processing[-1].split()[0].upper()
    return kind if kind in ("JPEG", "WEBP", "AVIF", "HEIF") else "PNG"


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


def chunked(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Cut rows into the chunks that are computed, and cached, together."""
    return [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]


def _chunked_by_source(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Cut rows into chunks of one source each: sources that are added leave the others alone."""
    parts = groupby(rows, key=lambda row: (row.generator, row.source))
    return [chunk for _, part in parts for chunk in chunked(tuple(part))]


def run_chunks(
    work: Callable[..., object],
    jobs: Sequence[tuple[Any, ...]],
    total: int,
    *,
    workers: int,
    initializer: Callable[..., None],
    initargs: tuple[Any, ...],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Run the chunks that are not done yet, in this process or in several.

    Parameters
    ----------
    work
        A function of a module, called with each job's values; it writes its own result.
    jobs
        One a chunk to do.
    total
        Number of chunks, those done before included.
    workers
        Processes.
    initializer, initargs
        Called once in each process that works.
    progress
        Called with (chunks done, total), first before any work.
    """
    done = total - len(jobs)
    if progress:
        progress(done, total)
    if not jobs:
        return

    def finished() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    if workers > 1:
        # Not forked: ONNX Runtime may already have threads here, which a fork can leave deadlocked.
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=initializer,
            initargs=initargs,
        ) as pool:
            for _ in pool.map(_call, [work] * len(jobs), jobs):
                finished()
    else:
        initializer(*initargs)
        for job in jobs:
            work(*job)
            finished()


def _call(work: Callable[..., object], job: tuple[Any, ...]) -> None:
    work(*job)


# --- the cache ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureTable:
    """Features of the views of a manifest.

    Attributes
    ----------
    features
        float16 (n, C, R, R // 2).
    traits
        float32 (n, T), see `masksim.traits.measure`; the distance is NaN, since it needs heads.
    generators, sources, histories, processing
        str (n,).
    images
        int (n,): number of the image in `rows`.
    rows
        The manifest's rows.
    failures
        Path to error code of images that could not be used.
    """

    features: NDArray[np.float16]
    traits: NDArray[np.float32]
    generators: NDArray[np.str_]
    sources: NDArray[np.str_]
    histories: NDArray[np.str_]
    processing: NDArray[np.str_]
    images: NDArray[np.int64]
    rows: tuple[Row, ...]
    failures: Mapping[str, str]


_worker: dict[str, Any] = {}


def _start_worker(graph: bytes) -> None:
    _worker["residual"] = residual_runner(graph, threads=1)


def _work(
    target: str,
    files: Sequence[str],
    rows: Sequence[Row],
    purpose: Purpose,
    config: ViewConfig,
    features: FeatureConfig,
    seed: int,
) -> str:
    """Compute one chunk and write it whole or not at all."""
    out: list[NDArray[np.float16]] = []
    shown: list[NDArray[np.float64]] = []
    facts: list[list[Any]] = []
    failures: dict[str, str] = {}
    residual = _worker["residual"]
    for number, (file, row) in enumerate(zip(files, rows, strict=True)):
        try:
            for _, view in views_of_file(file, row, purpose, config, seed):
                found, windows = shared_features(view.pixels, features, residual)
                out.append(found.astype(np.float16))
                shown.append(measure(view.pixels, windows, quality=view.quality, band=view.band))
                facts.append([number, view.history, ", ".join(view.processing)])
        except MasksimError as error:
            failures[row.path] = error.code
    array = np.stack(out) if out else np.zeros((0, 0, 0, 0), np.float16)
    folder = Path(target).parent
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
        np.savez(
            part,
            features=array,
            traits=np.array(shown, np.float32).reshape(len(shown), len(TRAITS)),
            facts=json.dumps([facts, failures]),
        )
    os.replace(part.name, target)
    return target


def compute_features(
    manifest: Manifest,
    purpose: Purpose,
    cache: str | os.PathLike[str],
    *,
    views_config: ViewConfig,
    feature_config: FeatureConfig,
    seed: int = 0,
    workers: int = 1,
    graph: bytes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureTable:
    """Compute, or read from the cache, the features of all views of a manifest.

    The cache is a folder of small files, each written whole: a run that is killed goes on where it
    was. It is named by everything the features depend on.

    Parameters
    ----------
    manifest
        Which images.
    purpose
        See `views`.
    cache
        Folder, made if need be.
    views_config, feature_config, seed
        What the features depend on.
    workers
        Processes.
    graph
        The residual bank as a detector holds it; by default it is written anew, which needs the
        package ``onnx``.
    progress
        Called with (chunks done, chunks in all).

    Returns
    -------
    FeatureTable
        The same whatever the number of workers.

    Raises
    ------
    DataError
        No image could be used.
    UsageError
        There are no first qualities: see `measure_first_qualities`.
    """
    if not views_config.first_qualities:
        raise UsageError("the configuration of views has no first qualities to draw from")
    rows = tuple(sorted(manifest.rows, key=lambda row: row.path))
    key = json.dumps(
        [purpose, asdict(views_config), asdict(feature_config), TRAITS, seed], sort_keys=True
    )
    folder = Path(cache) / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.json").write_text(key, encoding="utf-8")
    chunks = _chunked_by_source(rows)
    targets = [folder / f"{manifest_hash(chunk)[:24]}.npz" for chunk in chunks]
    # Images that failed are tried again: the file may be there, or whole, by now.
    todo = [i for i, target in enumerate(targets) if not target.exists() or _failures(target)]
    jobs = [
        (
            str(targets[i]),
            [str(manifest.file(row)) for row in chunks[i]],
            chunks[i],
            purpose,
            views_config,
            feature_config,
            seed,
        )
        for i in todo
    ]
    graph = graph or residual_onnx(ResidualConfig("bank"), {})
    run_chunks(
        _work, jobs, len(chunks),
        workers=workers, initializer=_start_worker, initargs=(graph,), progress=progress,
    )  # fmt: skip
    return _read_table(rows, chunks, targets)


def _failures(target: Path) -> dict[str, str]:
    with np.load(target, allow_pickle=False) as data:
        failures: dict[str, str] = json.loads(str(data["facts"]))[1]
    return failures


def _read_table(
    rows: tuple[Row, ...], chunks: Sequence[Sequence[Row]], targets: Sequence[Path]
) -> FeatureTable:
    parts: list[NDArray[np.float16]] = []
    shown: list[NDArray[np.float32]] = []
    images: list[int] = []
    kinds: list[str] = []
    processing: list[str] = []
    failures: dict[str, str] = {}
    before = 0
    for chunk, target in zip(chunks, targets, strict=True):
        with np.load(target, allow_pickle=False) as data:
            facts, failed = json.loads(str(data["facts"]))
            if len(facts):
                parts.append(data["features"])
                shown.append(data["traits"])
        failures.update(failed)
        for number, history, done in facts:
            images.append(before + number)
            kinds.append(history)
            processing.append(done)
        before += len(chunk)
    if not parts:
        raise DataError("none of the images could be used", code="manifest_invalid")
    return FeatureTable(
        np.concatenate(parts),
        np.concatenate(shown),
        np.array([rows[i].generator for i in images]),
        np.array([rows[i].source for i in images]),
        np.array(kinds),
        np.array(processing),
        np.array(images, dtype=np.int64),
        rows,
        failures,
    )


# --- weights -----------------------------------------------------------------------------------


def history_weights(
    histories: NDArray[np.str_], classes: Sequence[NDArray[np.bool_]], shares: Mapping[str, float]
) -> NDArray[np.float64]:
    """Weights that give several classes the same shares of histories.

    Parameters
    ----------
    histories
        (n,).
    classes
        Masks (n,), disjoint.
    shares
        Wanted share of each history. A history that one of the classes lacks is left out for all.

    Returns
    -------
    ndarray
        (n,), summing to 1 within each class; 0 outside of them.
    """
    common = [
        h for h in shares if shares[h] > 0 and all((c & (histories == h)).any() for c in classes)
    ]
    if not common:
        raise DataError("the classes have no history in common", code="manifest_invalid")
    total = sum(shares[h] for h in common)
    weights = np.zeros(len(histories))
    for mask in classes:
        for history in common:
            chosen = mask & (histories == history)
            weights[chosen] = shares[history] / total / chosen.sum()
    return weights


def training_weights(table: FeatureTable, shares: Mapping[str, float]) -> NDArray[np.float64]:
    """Weights of training views: histories by `shares`, sources by the root of their size.

    Returns
    -------
    ndarray
        (n,), summing to 1 within each generator and within the reals.
    """
    size = Counter(zip(table.generators.tolist(), table.sources.tolist(), strict=True))
    weights = np.array(
        [
            size[pair] ** -0.5
            for pair in zip(table.generators.tolist(), table.sources.tolist(), strict=True)
        ]
    )
    for generator in np.unique(table.generators):
        own = table.generators == generator
        present = [h for h in shares if shares[h] > 0 and (own & (table.histories == h)).any()]
        total = sum(shares[h] for h in present)
        weights[own & ~np.isin(table.histories, present)] = 0
        for history in present:
            chosen = own & (table.histories == history)
            weights[chosen] *= shares[history] / total / weights[chosen].sum()
    return weights


def source_folds(table: FeatureTable, count: int) -> NDArray[np.int64]:
    """Folds for cross-validation, by source; a generator with few sources by image.

    Reals are always parted by source: what is measured is false alarms on sources never seen.

    Returns
    -------
    ndarray
        (n,), 0..count - 1.
    """
    folds = np.zeros(len(table.images), dtype=np.int64)
    for generator in np.unique(table.generators):
        own = table.generators == generator
        sizes = Counter(table.sources[own].tolist())
        if generator == REAL or len(sizes) >= count:
            load = [0] * count
            for source, n in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
                least = int(np.argmin(load))
                load[least] += n
                folds[own & (table.sources == source)] = least
        else:
            for i in np.flatnonzero(own):
                row = table.rows[table.images[i]]
                key = row.key
                folds[i] = int(rng_for("fold", key).integers(count))
    return folds

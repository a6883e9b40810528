"""The report that is filed: what was found in an image, on one page that can be checked later.

`make_report` detects, explains and writes the page; `verify_report` does all of it again and
compares. The page itself is drawn in `masksim.dossier.page`, from plain values that stand in it.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from masksim import __version__
from masksim.detector import describe
from masksim.dossier import page as dossier_html
from masksim.errors import ImageError, UsageError
from masksim.image import Limits, LoadedImage, load_image, to_display
from masksim.provenance import origin as origins
from masksim.provenance.metadata import read_metadata, statements_of
from masksim.provenance.plain import printable
from masksim.show.colours import colour_limit, colour_scale, diverging_colours
from masksim.show.composed import axis_end, compose, marks
from masksim.verdict import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.detector import Detector
    from masksim.results import Detection, PlaneMap, SimilarityMap

__all__ = ["Check", "Report", "Verification", "make_report", "verify_report"]

FORMAT, FORMAT_VERSION = "masksim-report", 2

SIMILARITY_TOLERANCE = 1e-5
"""Similarities that differ by no more are equal: processors round differently."""

PROBABILITY_TOLERANCE = 5e-3
"""For the heads' logistic outputs and the posteriors, which are steep functions of similarities."""

PROBE_TOLERANCE = 0.02
"""For rates after small re-encodings, which other versions of the encoders change a little."""

PICTURE_TOLERANCE = 3.0
"""Mean absolute difference of two pictures, in levels, up to which they show the same."""

BLOCK, BLOCK_TOLERANCE = 16, 8.0
"""The same for each square of so many pixels and each colour: nothing small may be painted in."""

LARGEST = 64 * 1024 * 1024
"""Bytes of a report that are read."""

Maps: TypeAlias = "int | Literal['all']"

_LONGER_SIDE = 800  # of the picture of the image, pixels
_WINDOWS_SIDE = 640  # of the picture of the windows
_IMAGE_BYTES, _WINDOWS_BYTES = 150_000, 60_000  # that their files have at most, if they can
_GRID = 36  # windows over the whole image, at most
_PLANES = 3  # channels drawn, a generator


@dataclass(frozen=True, eq=False)
class Report:
    """A report, ready to be written.

    Attributes
    ----------
    html
        The file.
    seal
        SHA-256 of the file with zeros in its place.
    detection
        What it reports.
    data
        What is embedded in it: plain values.
    """

    html: bytes
    seal: str
    detection: Detection
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked.

    Attributes
    ----------
    name
        ``"seal"``, ``"content"``, ``"image"``, ``"detector"``, ``"scores"``, ``"verdict"``,
        ``"metadata"``, ``"windows"``, ``"maps"`` or ``"pictures"``.
    passed
        None where it could not be checked; `message` says why.
    message
        In words.
    """

    name: str
    passed: bool | None
    message: str


_NAMES = (
    *("seal", "content", "image", "detector", "scores", "verdict", "metadata", "windows", "maps"),
    "pictures",
)


@dataclass(frozen=True, slots=True)
class Verification:
    """What checking a report came to.

    Attributes
    ----------
    checks
        In the order of `Check.name`.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and all was checked but what `Check.message` says of C2PA."""
        return self._but() == set()

    @property
    def summary(self) -> str:
        """What it came to, in one sentence."""
        missing = self._but()
        if not missing:
            return "the report verifies"
        if missing == {"content"} and not any(c.passed is False for c in self.checks):
            return "the numbers hold, the page was not checked"
        return f"the report does not verify: {', '.join(sorted(missing, key=_NAMES.index))}"

    def _but(self) -> set[str]:
        """Names of what failed, or was needed and not checked."""
        held = {check.name for check in self.checks if check.passed}
        failed = {check.name for check in self.checks if check.passed is False}
        return failed or {*_NAMES} - {"metadata"} - held

    def to_dict(self) -> dict[str, Any]:
        """Give the result as plain values for JSON."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def make_report(
    detector: Detector,
    image: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    maps: Maps = 3,
    channels: bool = False,
    model: str | None = None,
    created: datetime | None = None,
) -> Report:
    """Detect an image and write what was found as one HTML file.

    Parameters
    ----------
    detector
        From `masksim.load_detector`.
    image
        A path, or the bytes of a file.
    name
        What to call the image; by default its file name. Folders are never shown.
    maps
        For how many generators, the most telling first, similarity maps are drawn.
    channels
        Draw the single channels of these, too: the three that add most, beside the learned pattern
        and the image's own spectrum. About 130 kB a generator.
    model
        How the detector's folder is called in the commands that the report shows; None for the
        detector of the package.
    created
        When; by default the time in the environment's ``SOURCE_DATE_EPOCH``, else now.

    Returns
    -------
    Report
        The same bytes for the same image, detector, versions and time.

    Raises
    ------
    ImageError
        The image cannot be read or analysed.
    UsageError
        `maps` is neither ``"all"`` nor 0 or more, or ``SOURCE_DATE_EPOCH`` is no time.
    """
    if maps != "all" and (type(maps) is not int or maps < 0):
        raise UsageError(f"maps must be 0 or more, or 'all', not {maps!r}")
    when = created or _now()
    data = image if isinstance(image, bytes) else _read(image)
    if name is None:
        name = "<bytes>" if isinstance(image, bytes) else os.fspath(image)
    shown = printable(PurePath(name).name or name)
    detection, values, pictures = _gather(detector, data, shown, maps, channels)
    at = when.astimezone(timezone.utc).replace(microsecond=0).isoformat()
    values |= {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": at.replace("+00:00", "Z"),
        "versions": _versions(),
        "options": {
            "maps": maps,
            "channels": channels,
            "model": None if model is None else printable(model),
        },
    }
    values |= _commands(values)
    # Through JSON and back: what is drawn is what will be read from the file.
    values = json.loads(json.dumps(values, allow_nan=False))
    page = dossier_html.render(values, pictures)
    return Report(page, dossier_html.seal_of(page), detection, values)


def _commands(values: Mapping[str, Any]) -> dict[str, str]:
    """Write the commands that make and check a report, from what else stands in it.

    Raises
    ------
    ValueError
        The time is not written as `make_report` writes it, or the model is no text.
    """
    created, model = values["created"], values["options"]["model"]
    when = datetime.fromisoformat(created.removesuffix("Z")).replace(tzinfo=timezone.utc)
    if created != when.isoformat().replace("+00:00", "Z"):
        raise ValueError("the time has another form")
    if not (model is None or isinstance(model, str)):
        raise ValueError("options.model is no text")
    with_model = "" if model is None else f" --model {_argument(model)}"
    drawn = f"--maps {values['options']['maps']}"
    if values["options"]["channels"]:
        drawn += " --channels"
    file = _argument(values["detection"]["image"]["name"])
    return {
        "command": f"SOURCE_DATE_EPOCH={int(when.timestamp())} masksim report {file} "
        f"-o report.html {drawn}{with_model}",
        "check": f"masksim report verify report.html {file}{with_model}",
    }


def _argument(name: str) -> str:
    """Quote a file name for a command; one that would be an option or a command gets its folder."""
    own = name.startswith("-") or name in ("make", "verify")
    return shlex.quote(f"./{name}" if own else name)


def _read(path: str | os.PathLike[str]) -> bytes:
    """Read an image's bytes once, for the pixels and for what else the file says."""
    limit = Limits().max_bytes
    try:
        if os.path.isfile(path) and os.path.getsize(path) <= limit:
            with open(path, "rb") as file:
                return file.read(limit + 1)
    except (OSError, ValueError):
        pass
    load_image(path)  # says what is wrong
    raise ImageError(f"{os.fspath(path)}: cannot be read")


def _now() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now(timezone.utc).replace(microsecond=0)
    try:
        return datetime.fromtimestamp(int(epoch), timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH must be seconds since 1970, not {epoch!r}") from error


def _versions() -> dict[str, str]:
    import onnxruntime
    import PIL

    return {
        "masksim": __version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "ONNX Runtime": onnxruntime.__version__,
        "Pillow": PIL.__version__,
    }


# ----------------------------------------------------------------------------- what is reported


def _gather(
    detector: Detector, data: bytes, name: str, maps: Maps, channels: bool
) -> tuple[Detection, dict[str, Any], dict[str, bytes]]:
    """Compute all that a report shows of an image: plain values, and pictures by name."""
    loaded = load_image(data, name=name, part=detector.part, whole=True)
    detection, explained = detector.explain(loaded)
    metadata = read_metadata(data)
    detection = replace(detection, origin=origins.origin_of(metadata))
    pictures: dict[str, bytes] = {}
    found = detection.to_dict()
    del found["seconds"]  # it is of the machine, not of the image
    shown = _displayed(loaded, _LONGER_SIDE)
    pictures["image"] = _jpeg(shown, _IMAGE_BYTES)
    ranked = [score.generator for score in detection.scores]
    count = len(ranked) if maps == "all" else maps
    values = {
        "detection": found,
        "detector": _described(detector),
        "image": {
            "width": shown.width,
            "height": shown.height,
            "reduced": max(loaded.facts.width, loaded.facts.height) > _LONGER_SIDE,
        },
        "maps": [
            _explained(explained[generator], k, pictures, drawn=k < count, channels=channels)
            for k, generator in enumerate(ranked)
        ],
        "windows": _by_window(detector, detection, loaded, pictures),
        "metadata": asdict(metadata),
    }
    return detection, values, pictures


_DESCRIBED: WeakKeyDictionary[Detector, dict[str, Any]] = WeakKeyDictionary()


def _described(detector: Detector) -> dict[str, Any]:
    """Describe a detector; kept, because counting the photos of each kind takes half a second."""
    if detector not in _DESCRIBED:
        _DESCRIBED[detector] = _describe(detector)
    return _DESCRIBED[detector]


def _describe(detector: Detector) -> dict[str, Any]:
    facts = describe(detector)
    found = facts["calibration"]
    return {
        "name": facts["name"],
        "sha256": facts["sha256"],
        "parts": dict(sorted(detector.file.parts.items())),
        "generators": facts["generators"],
        "sample_size": found["sample_size"],
        "calibration": [
            {"population": name, **row}
            for name, rows in found["populations"].items()
            for row in rows
        ],
    }


def _displayed(loaded: LoadedImage, side: int) -> Image.Image:
    """Reduce an image to a longer side of at most `side`, turned as a viewer shows it.

    By strips: blocks of pixels are averaged first, so that no second copy of a large image is made.
    """
    height, width = loaded.facts.height, loaded.facts.width
    scale = min(1.0, side / max(width, height))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    across, down = (max(1, int(n / m / 3)) for n, m in zip((width, height), size, strict=True))
    rows = down * max(1, _BYTES_AT_ONCE // (3 * width * down))
    strips = [
        np.asarray(
            Image.fromarray(loaded.region(y, 0, min(rows, height - y), width)).reduce(
                (across, down)
            )
        )
        for y in range(0, height, rows)
    ]
    small = Image.fromarray(np.concatenate(strips))
    if scale < 1:
        box = (0.0, 0.0, width / across, height / down)
        small = small.resize(size, Image.Resampling.LANCZOS, box=box)
    return to_display(replace(loaded, pixels=np.asarray(small), whole=None))


_BYTES_AT_ONCE = 1 << 24


def _jpeg(image: Image.Image, most: int) -> bytes:
    """Write an image with the best quality by which it takes up `most` bytes, or else the least."""
    for quality in (85, 75, 65, 55, 45, 35):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------- maps


def _explained(
    item: SimilarityMap, k: int, pictures: dict[str, bytes], *, drawn: bool, channels: bool
) -> dict[str, Any]:
    """Describe one generator's map: all channels in one, marked frequencies, and each channel."""
    composed = compose(item.planes)
    sums = [float(np.sum(plane.values, dtype=np.float64)) for plane in item.planes]
    picture = None
    if drawn:
        limit = colour_limit(composed.values)
        picture = {"picture": f"map-{k}", "limit": limit}
        pictures[f"map-{k}"] = _panel_png(composed.values, limit)
    panels = _panels(item, k, sums, pictures) if drawn and channels else {}
    return {
        "generator": item.generator,
        "map": picture,
        "marks": [asdict(mark) for mark in marks(composed)],
        "bands": _bands(item.planes),
        "planes": [
            {
                "name": plane.name,
                "sum": sums[p],
                "end": {"fx": axis_end(plane.fx), "fy": axis_end(plane.fy)},
                "panels": panels.get(p, []),
            }
            for p, plane in enumerate(item.planes)
        ],
    }


def _panels(
    item: SimilarityMap, k: int, sums: Sequence[float], pictures: dict[str, bytes]
) -> dict[int, list[dict[str, Any]]]:
    """Draw the channels that add most, each in three pictures; by the channel's number."""
    chosen = np.argsort(sums)[::-1][:_PLANES].tolist()
    limit = colour_limit(np.stack([_shrunk(item.planes[p].values) for p in chosen]))
    found: dict[int, list[dict[str, Any]]] = {}
    for p in chosen:
        plane, found[p] = item.planes[p], []
        for kind, values, scale in (
            ("contribution", plane.values, (0.0, limit)),
            ("reference", plane.reference, None),
            ("spectrum", plane.spectrum, None),
        ):
            small = _shrunk(values)
            centre, end = scale or colour_scale(small)
            key = f"map-{k}-{p}-{kind}"
            pictures[key] = _panel_png(small - centre, end)
            found[p].append({"kind": kind, "picture": key, "centre": centre, "limit": end})
    return found


_BANDS = (
    (0.25, math.inf, "2 to 4 pixels, the finest"),
    (0.125, 0.25, "4 to 8 pixels"),
    (0.0625, 0.125, "8 to 16 pixels"),
    (0.0, 0.0625, "16 pixels or more, the coarsest"),
)
"""Cycles per pixel, from and below, and what that is in the image."""


def _bands(planes: Sequence[PlaneMap]) -> list[dict[str, Any]]:
    """Add up contributions by fineness, over all channels."""
    radii = [np.sqrt(plane.fy[:, None] ** 2 + plane.fx[None] ** 2) for plane in planes]
    return [
        {
            "words": words,
            "sum": sum(
                float(np.sum(plane.values[(radius >= low) & (radius < high)], dtype=np.float64))
                for plane, radius in zip(planes, radii, strict=True)
            ),
        }
        for low, high, words in _BANDS
    ]


def _shrunk(values: NDArray[Any], most: int = 128) -> NDArray[np.float64]:
    """Average large maps to at most 128 a side; others are as they are."""
    found = np.asarray(values, dtype=np.float64)
    while max(found.shape) > most and not any(n % 2 for n in found.shape):
        height, width = (n // 2 for n in found.shape)
        found = found.reshape(height, 2, width, 2).mean(axis=(1, 3))
    return found


_SHADES = 127  # colours of a panel to either side of white


def _panel_png(values: NDArray[np.float64], limit: float) -> bytes:
    """Draw a picture of one pixel a value, its colours in a palette: small, and exact."""
    steps = np.rint(np.clip(values / limit, -1, 1) * _SHADES).astype(np.int16) + _SHADES
    image = Image.fromarray(steps.astype(np.uint8))
    colours = diverging_colours(np.arange(-_SHADES, _SHADES + 1), _SHADES)
    image.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------- windows

_Rectangle: TypeAlias = "tuple[int, int, int, int]"  # x, y, width, height


def _by_window(
    detector: Detector, detection: Detection, loaded: LoadedImage, pictures: dict[str, bytes]
) -> dict[str, Any] | None:
    """Score single windows by the most telling generator, and draw them over the image.

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
    picture = _windows_picture(loaded, analysed, grid, limit)
    pictures["windows"] = _jpeg(picture, _WINDOWS_BYTES)
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


def _windows_picture(
    loaded: LoadedImage,
    analysed: Sequence[Mapping[str, Any]],
    grid: Sequence[Mapping[str, Any]],
    limit: float,
) -> Image.Image:
    height, width = loaded.facts.height, loaded.facts.width
    grey = _displayed(loaded, _WINDOWS_SIDE).convert("L")
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


# -------------------------------------------------------------------------------- verification


def verify_report(
    report: bytes, detector: Detector, image: str | os.PathLike[str] | bytes
) -> Verification:
    """Check a report against its image: its seal, its text, and all numbers computed anew.

    Parameters
    ----------
    report
        The HTML file; nothing in it is trusted.
    detector
        That the report names; another one makes the check ``"detector"`` fail.
    image
        A path, or the bytes of a file.

    Returns
    -------
    Verification
        Similarities are compared within `SIMILARITY_TOLERANCE`, rates within one photo of their
        sample, pictures within `PICTURE_TOLERANCE` and `BLOCK_TOLERANCE`; the rest must be equal,
        but the time, the versions, the names of image and model, and trust in a C2PA signer.

    Raises
    ------
    ImageError
        The image cannot be read or analysed.
    """
    data = image if isinstance(image, bytes) else _read(image)
    checks = [_check_seal(report)]
    try:
        stated, pictures = dossier_html.embedded(report)
        _require(stated.get("format") == FORMAT, "the block of data is of another format")
        _require(
            stated.get("format_version") == FORMAT_VERSION,
            f"the report has the format version {stated.get('format_version')!r}, known is "
            f"{FORMAT_VERSION}",
        )
        facts = stated["detection"]["image"]
        name, sha256 = str(facts["name"]), str(facts["sha256"])
        made_by = str(stated["versions"]["masksim"])
        digest = str(stated["detector"]["sha256"])
        named = str(stated["detection"]["detector"]["sha256"])
        maps, channels = stated["options"]["maps"], stated["options"]["channels"]
        _require(printable(name) == name, "the image's name has letters that are not printable")
        _require(maps == "all" or (type(maps) is int and maps >= 0), "options.maps is no number")
        _require(type(channels) is bool, "options.channels is neither true nor false")
    except (dossier_html.UnreadableError, KeyError, TypeError, AttributeError) as error:
        why = f"the data in the report cannot be read: {error}"
        return Verification((*checks, Check("content", False, why)))
    checks.append(_check_content(report, stated, pictures, made_by))
    own = load_image(data, name=name, part=detector.part)
    same_image = own.facts.sha256 == sha256
    checks.append(
        Check("image", True, f"the image is the one reported on (sha256 {sha256[:12]})")
        if same_image
        else Check(
            "image", False,
            f"the image is another one: its sha256 is {own.facts.sha256}, the report's {sha256}",
        )
    )  # fmt: skip
    same_detector = digest == named == detector.sha256
    checks.append(
        Check("detector", True, f"the detector is the same (sha256 {digest[:12]})")
        if same_detector
        else Check(
            "detector", False,
            f"the report was made with the detector {digest}, loaded is {detector.sha256}; give "
            "its folder with --model",
        )
    )  # fmt: skip
    if not (same_image and same_detector):
        other = "image" if not same_image else "detector"
        checks += [
            Check(part, None, f"not compared: the {other} is another one")
            for part in ("scores", "verdict", "metadata", "windows", "maps", "pictures")
        ]
        return Verification(tuple(checks))
    _, found, drawn = _gather(detector, data, name, maps, channels)
    found = json.loads(json.dumps(found))
    for part, compare in _COMPARED.items():
        try:
            problem = compare(stated, found)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            problem = f"the report's data have another form ({type(error).__name__}: {error})"
        checks.append(
            Check(part, False, problem) if problem else Check(part, True, "as computed anew")
        )
        if part == "metadata" and not problem:
            checks[-1] = _on_trust(stated["metadata"]["c2pa"], found["metadata"]["c2pa"])
        if part == "windows" and not problem and stated["windows"] not in (None, found["windows"]):
            # The picture holds numbers, of which the last digit may fall otherwise.
            values = stated["windows"]
            own = load_image(data, name=name, part=detector.part, whole=True)
            again = _windows_picture(own, values["analysed"], values["grid"], values["limit"])
            drawn = {**drawn, "windows": _jpeg(again, _WINDOWS_BYTES)}
    checks.append(_check_pictures(pictures, drawn))
    return Verification(tuple(checks))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise dossier_html.UnreadableError(message)


def _check_seal(report: bytes) -> Check:
    if len(report) > LARGEST:
        return Check("seal", False, f"the file has over {LARGEST} bytes: it is no report")
    try:
        actual = dossier_html.seal_of(report)
    except dossier_html.UnreadableError as error:
        return Check("seal", False, str(error))
    stated = dossier_html.SEAL.findall(report)[0].decode()
    if actual == stated:
        return Check("seal", True, f"the seal is unbroken ({stated[:12]})")
    return Check("seal", False, "the seal is broken: the file was changed after it was made")


def _check_content(
    report: bytes, stated: Mapping[str, Any], pictures: Mapping[str, bytes], made_by: str
) -> Check:
    """Draw the page again from the data in it: whoever changed the one must change the other."""
    if made_by != __version__:
        return Check(
            "content", None,
            f"the page was not checked: the report says that it was made by masksim {made_by}, "
            f"this is {__version__}; check it with that version",
        )  # fmt: skip
    try:
        again = dossier_html.render(stated, pictures)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as error:
        return Check(
            "content", False, f"the data in the report have another form ({type(error).__name__})"
        )
    try:
        commands = _commands(stated)
        odd = [k for k in stated["versions"] if k not in _versions()] or [
            k for k, v in stated["versions"].items() if not _VERSION.fullmatch(v)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return Check("content", False, f"time, options or versions have another form: {error}")
    if any(stated.get(key) != command for key, command in commands.items()):
        return Check("content", False, "the commands are not those that make and check this report")
    if odd:
        return Check("content", False, f"{odd[0]!r} is no version of ours")
    # The seal is a check of its own.
    if dossier_html.SEAL.sub(b"", again) == dossier_html.SEAL.sub(b"", report):
        return Check("content", True, "text and pictures are those of the embedded data")
    return Check("content", False, "what the page shows is not what its embedded data say")


_VERSION = re.compile(r"[\w.+!-]{1,40}", re.ASCII)


def _differences(
    stated: Any, found: Any, near: Callable[[str, float, float], bool], path: str = ""
) -> Iterator[str]:
    """Name what is not equal; `near` decides on numbers, by the path to them."""
    if isinstance(found, Mapping) and isinstance(stated, Mapping):
        for key in sorted({*stated, *found}):
            if key not in stated or key not in found:
                yield f"{path}{key} is {'missing' if key in found else 'not known'}"
            else:
                yield from _differences(stated[key], found[key], near, f"{path}{key}.")
    elif isinstance(found, list) and isinstance(stated, list):
        if len(found) != len(stated):
            yield f"{path.rstrip('.')} has {len(stated)} entries, computed {len(found)}"
        else:
            for k, (one, other) in enumerate(zip(stated, found, strict=True)):
                yield from _differences(one, other, near, f"{path}{k}.")
    elif type(found) in (int, float) and type(stated) in (int, float):
        if stated != found and not near(path.rstrip("."), stated, found):
            yield f"{path.rstrip('.')} is {stated:.7g} in the report, computed {found:.7g}"
    elif stated != found:
        short = [t if len(t := repr(v)) <= 60 else f"{t[:57]}..." for v in (stated, found)]
        yield f"{path.rstrip('.')} is {short[0]} in the report, computed {short[1]}"


def _told(differences: Iterator[str]) -> str:
    found = list(differences)
    more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
    return "; ".join(found[:4]) + more


def _compare_scores(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    def by_generator(values: Mapping[str, Any]) -> dict[str, Any]:
        # Two with nearly one rate may come in another order on another processor.
        return {score["generator"]: score for score in values["detection"]["scores"]}

    sizes = {name: score["sample_size"] for name, score in by_generator(found).items()}

    def near(path: str, one: float, other: float) -> bool:
        generator, _, field = path.rpartition(".")
        tolerance = {
            "similarity": SIMILARITY_TOLERANCE,
            "probability": PROBABILITY_TOLERANCE,
            "posterior": PROBABILITY_TOLERANCE,
            "false_positive_rate": 1.01 / (sizes.get(generator, 0) + 1),
        }.get(field, 0.0)
        return abs(one - other) <= tolerance

    return _told(_differences(by_generator(stated), by_generator(found), near))


def _compare_verdict(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """All of the verdict, the facts of the file, and the windows that were analysed."""
    one, other = dict(stated["detection"]), dict(found["detection"])
    for values in (one, other):
        values.pop("scores")
        values.pop("origin")  # with the metadata
    n = other["verdict"]["sample_size"]
    rates = {"false_positive_rate", "low", "high", "number_of_false_alarms"}
    generators = max(1, len(found["detection"]["scores"]))

    def near(path: str, a: float, b: float) -> bool:
        field = path.rpartition(".")[2]
        if path.startswith("verdict.stability."):
            return abs(a - b) <= PROBE_TOLERANCE
        if path.startswith("verdict.likelihood_ratio."):
            return abs(a - b) <= 0.05 * abs(b)
        if field == "clarity":
            return abs(a - b) <= PROBABILITY_TOLERANCE
        # A rate may move by one photo; the false alarms are so many rates.
        scale = generators if field == "number_of_false_alarms" else 1
        return field in rates and abs(a - b) <= scale * 2.01 / (n + 1)

    # Where a number's last digit falls otherwise the sentences do, too: they must fit the report's.
    measured = ("false_positive_rate", "interval", "as_found", "stability")
    mixed = {**other["verdict"], **{key: one["verdict"][key] for key in measured}}
    other["verdict"] |= words(mixed)
    return _told(_differences(one, other, near))


def _compare_metadata(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    one, other = dict(stated["metadata"]), dict(found["metadata"])
    for values in (one, other):
        del values["c2pa"]
    # Of a manifest they say what the report says of it, which is compared below.
    other["statements"] = statements_of(stated["metadata"])
    c2pa = stated["metadata"]["c2pa"], found["metadata"]["c2pa"]
    return (
        _told(_differences(one, other, lambda *_: False))
        or _compare_origin(stated)
        or _compare_c2pa(*c2pa)
    )


def _compare_origin(stated: Mapping[str, Any]) -> str:
    """Compare the block beside the verdict with what the report's own metadata amount to."""
    verdict = stated["detection"]["verdict"]
    said = origins.origin_of_values(stated["metadata"])
    beside = origins.beside(verdict["level"], verdict["headline"], verdict["generator"], said)
    plain = json.loads(json.dumps({**said.to_dict(), "beside": beside}))
    return _told(_differences(stated["detection"]["origin"], plain, lambda *_: False, "origin."))


_UNBROKEN = ("trusted", "valid", "untrusted")
_NOT_READ: Final = "not verified"
_BY_CHECKING = ("signed", "problems", "others")
_ON_TRUST = ("signingCredential.", "timeStamp.")


def _compare_c2pa(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Compare two readings of a manifest: they may differ in trust, and in whether it was read.

    Whether a signer is trusted depends on the day, and reading it on c2pa-python being there.
    """
    states = [values["state"] for values in (stated, found)]
    if all(state in (*_UNBROKEN, _NOT_READ) for state in states):
        if _NOT_READ in states:
            # Both have read what is claimed, as far as they could; one of them has checked it.
            for values in (stated, found):
                if values["state"] == _NOT_READ and any(values[key] for key in _BY_CHECKING):
                    return "c2pa: what was not checked has no results of a check"
            stated, found = (
                {k: v for k, v in values.items() if k not in ("state", *_BY_CHECKING)}
                for values in (stated, found)
            )
            if not (any(stated.values()) and any(found.values())):
                return ""
            return _told(_differences(stated, found, lambda *_: False, "c2pa."))
        stated, found = (
            {
                **values,
                "state": "unbroken",
                "problems": [p for p in values["problems"] if not p.startswith(_ON_TRUST)],
            }
            for values in (stated, found)
        )
    return _told(_differences(stated, found, lambda *_: False, "c2pa."))


def _on_trust(stated: Mapping[str, Any], found: Mapping[str, Any]) -> Check:
    """Say where two readings of a manifest differ that may differ."""
    if stated == found:
        return Check("metadata", True, "as computed anew")
    states = f"the report calls the C2PA manifest {stated['state']}, here it is {found['state']}"
    if found["state"] == _NOT_READ:
        return Check(
            "metadata", None, "all but the check of the C2PA manifest is as computed anew: "
            f"{states}, for the package c2pa-python is not installed",
        )  # fmt: skip
    return Check("metadata", True, f"as computed anew, but for trust: {states}")


def _compare_windows(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    def near(path: str, a: float, b: float) -> bool:
        return path.endswith(("similarity", "limit")) and abs(a - b) <= SIMILARITY_TOLERANCE

    keys = ("windows", "image", "detector")
    return _told(_differences({k: stated[k] for k in keys}, {k: found[k] for k in keys}, near))


def _compare_maps(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Compare sums of channels, and which frequencies are marked."""

    def near(path: str, a: float, b: float) -> bool:
        field = path.rpartition(".")[2]
        if field == "sum":
            return abs(a - b) <= SIMILARITY_TOLERANCE
        if field == "share":
            return abs(a - b) <= 1e-3
        return field in ("centre", "limit") and abs(a - b) <= 1e-2 * abs(b) + 1e-6

    return _told(_differences(stated["maps"], found["maps"], near))


_COMPARED = {
    "scores": _compare_scores,
    "verdict": _compare_verdict,
    "metadata": _compare_metadata,
    "windows": _compare_windows,
    "maps": _compare_maps,
}


def _check_pictures(stated: Mapping[str, bytes], found: Mapping[str, bytes]) -> Check:
    if set(stated) != set(found):
        names = ", ".join(sorted(set(stated) ^ set(found))[:4])
        return Check("pictures", False, f"the report has other pictures ({names})")
    limits = Limits(max_bytes=LARGEST, max_pixels=4_000_000)
    for name, picture in found.items():
        if stated[name] == picture:
            continue
        try:
            one, other = (load_image(p, limits=limits).pixels for p in (stated[name], picture))
        except ImageError as error:
            return Check("pictures", False, f"the picture {name} cannot be read: {error.message}")
        if one.shape != other.shape:
            return Check("pictures", False, f"the picture {name} has another size")
        distance = np.abs(one.astype(np.int16) - other)
        if distance.mean() > PICTURE_TOLERANCE or _worst(distance) > BLOCK_TOLERANCE:
            return Check("pictures", False, f"the picture {name} shows something else")
    return Check("pictures", True, f"the {len(found)} pictures are as drawn anew")


def _worst(distance: NDArray[np.int16]) -> float:
    """Largest mean over a square of `BLOCK` pixels, of any colour; squares overlap by half."""
    sums = np.pad(distance.cumsum(axis=0).cumsum(axis=1), [(1, 0), (1, 0), (0, 0)])
    starts, sides = [], []
    for length in distance.shape[:2]:
        side = min(BLOCK, length)
        starts.append(np.array(sorted({*range(0, length - side, BLOCK // 2), length - side})))
        sides.append(side)
    y, x = starts[0][:, None], starts[1][None]
    h, w = sides
    found = sums[y + h, x + w] - sums[y, x + w] - sums[y + h, x] + sums[y, x]
    return float(found.max()) / (h * w)

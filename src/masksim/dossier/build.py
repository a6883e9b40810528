"""The report that is filed: what was found in an image, on one page that can be checked later.

`make_report` detects, explains and writes the page. The page itself is drawn by
`masksim.dossier.page` from plain values that stand in it, and checked by `masksim.dossier.check`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from masksim import __version__
from masksim.dossier import page as pages
from masksim.dossier.pictures import displayed, jpeg, panel_png, shrunk
from masksim.dossier.windows import by_window
from masksim.errors import ImageError, UsageError
from masksim.image import Limits, load_image
from masksim.load import describe
from masksim.provenance import origin as origins
from masksim.provenance.metadata import read_metadata
from masksim.provenance.untrusted_text import printable
from masksim.show.colours import colour_limit, colour_scale
from masksim.show.composed import axis_end, compose, marks

if TYPE_CHECKING:
    from masksim.detector import Detector
    from masksim.results import Detection, PlaneMap, SimilarityMap

__all__ = [
    "Maps",
    "Report",
    "commands",
    "gather",
    "make_report",
    "read_bytes",
    "versions",
]

FORMAT, FORMAT_VERSION = "masksim-report", 2

Maps: TypeAlias = "int | Literal['all']"

_LONGER_SIDE = 800  # of the picture of the image, pixels
_IMAGE_BYTES = 150_000  # that its file has at most, if it can
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
    data = image if isinstance(image, bytes) else read_bytes(image)
    if name is None:
        name = "<bytes>" if isinstance(image, bytes) else os.fspath(image)
    shown = printable(PurePath(name).name or name)
    detection, values, pictures = gather(detector, data, shown, maps, channels)
    at = when.astimezone(timezone.utc).replace(microsecond=0).isoformat()
    values |= {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": at.replace("+00:00", "Z"),
        "versions": versions(),
        "options": {
            "maps": maps,
            "channels": channels,
            "model": None if model is None else printable(model),
        },
    }
    values |= commands(values)
    # Through JSON and back: what is drawn is what will be read from the file.
    values = json.loads(json.dumps(values, allow_nan=False))
    page = pages.render(values, pictures)
    return Report(page, pages.seal_of(page), detection, values)


def commands(values: Mapping[str, Any]) -> dict[str, str]:
    """Write the commands that make and check a report, from what else stands in it.

    Parameters
    ----------
    values
        ``created``, ``options`` and ``detection`` of a report.

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


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read an image's bytes once, for the pixels and for what else the file says.

    Raises
    ------
    ImageError
        The file is not there, cannot be read, or is too large.
    """
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


def versions() -> dict[str, str]:
    """Tell the versions of what a report is made with, by name."""
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


def gather(
    detector: Detector, data: bytes, name: str, maps: Maps, channels: bool
) -> tuple[Detection, dict[str, Any], dict[str, bytes]]:
    """Compute all that a report shows of an image.

    Parameters
    ----------
    detector, maps, channels
        As for `make_report`.
    data
        Bytes of the image's file.
    name
        What to call the image.

    Returns
    -------
    tuple
        The detection; plain values, to be embedded; pictures, PNG or JPEG, by name.

    Raises
    ------
    ImageError
        The image cannot be read or analysed.
    """
    loaded = load_image(data, name=name, part=detector.analysed_part, whole=True)
    detection, explained = detector.explain(loaded)
    metadata = read_metadata(data)
    detection = replace(detection, origin=origins.origin_of(metadata))
    pictures: dict[str, bytes] = {}
    found = detection.to_dict()
    del found["seconds"]  # it is of the machine, not of the image
    shown = displayed(loaded, _LONGER_SIDE)
    pictures["image"] = jpeg(shown, _IMAGE_BYTES)
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
        "windows": by_window(detector, detection, loaded, pictures),
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
        pictures[f"map-{k}"] = panel_png(composed.values, limit)
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
    limit = colour_limit(np.stack([shrunk(item.planes[p].values) for p in chosen]))
    found: dict[int, list[dict[str, Any]]] = {}
    for p in chosen:
        plane, found[p] = item.planes[p], []
        for kind, values, scale in (
            ("contribution", plane.values, (0.0, limit)),
            ("reference", plane.reference, None),
            ("spectrum", plane.spectrum, None),
        ):
            small = shrunk(values)
            centre, end = scale or colour_scale(small)
            key = f"map-{k}-{p}-{kind}"
            pictures[key] = panel_png(small - centre, end)
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

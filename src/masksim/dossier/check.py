"""Whether a report holds: its seal, its page, and all numbers and pictures computed anew.

`verify_report` does all of it again and compares; nothing in the report is trusted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from masksim import __version__
from masksim.dossier import page as pages
from masksim.dossier.build import (
    FORMAT,
    FORMAT_VERSION,
    Maps,
    commands,
    gather,
    read_bytes,
    versions,
)
from masksim.dossier.windows import windows_jpeg
from masksim.errors import ImageError
from masksim.image import Limits, load_image
from masksim.provenance import origin as origins
from masksim.provenance.metadata import statements_of
from masksim.provenance.untrusted_text import printable
from masksim.verdict import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.detector import Detector

__all__ = ["LARGEST", "Check", "Verification", "verify_report"]

SIMILARITY_TOLERANCE = 1e-5
"""Similarities that differ by no more are equal: processors round differently."""

PROBABILITY_TOLERANCE = 5e-3
"""For the heads' logistic outputs and the posteriors, which are steep functions of similarities."""

PROBE_TOLERANCE = 0.02
"""For rates after small re-encodings, which other versions of the encoders change a little."""

PICTURE_TOLERANCE = 3.0
"""Mean absolute difference of two pictures, in levels, up to which they show the same."""

BLOCK, BLOCK_TOLERANCE = 16, 8.0
"""The same for any square of so many pixels a side, in any colour: nothing small is painted in."""

LARGEST = 64 * 1024 * 1024
"""Files with more bytes are no reports, and not read."""


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
        """Whether all was checked and held; only a C2PA manifest may be left unchecked."""
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
    data = image if isinstance(image, bytes) else read_bytes(image)
    seal = _check_seal(report)
    try:
        said = _read_report(report)
    except (pages.UnreadableError, KeyError, TypeError, AttributeError) as error:
        why = f"the data in the report cannot be read: {error}"
        return Verification((seal, Check("content", False, why)))
    own = load_image(data, name=said.name, part=detector.analysed_part)
    same = (_check_image(said, own.facts.sha256), _check_detector(said, detector.sha256))
    checks = [seal, _check_content(report, said), *same]
    other = next((check.name for check in same if not check.passed), None)
    if other is not None:
        why = f"not compared: the {other} is another one"
        checks += [Check(part, None, why) for part in (*_COMPARED, "pictures")]
        return Verification(tuple(checks))
    _, found, drawn = gather(detector, data, said.name, said.maps, said.channels)
    found = json.loads(json.dumps(found))
    parts = {part: _check_part(part, said.values, found) for part in _COMPARED}
    windows = said.values.get("windows")
    if parts["windows"].passed and windows not in (None, found["windows"]):
        # The numbers in the picture may differ in their last digit: draw those of the report.
        own = load_image(data, name=said.name, part=detector.analysed_part, whole=True)
        drawn = {**drawn, "windows": windows_jpeg(own, windows)}
    pictures = _check_pictures(said.pictures, drawn)
    return Verification((*checks, *parts.values(), pictures))


@dataclass(frozen=True, eq=False, slots=True)
class _Said:
    """What a report says, and what of it is needed to do it again."""

    values: dict[str, Any]
    pictures: dict[str, bytes]
    name: str  # of the image
    sha256: str  # of the image
    detectors: tuple[str, str]  # digests, at both places where the detector is named
    version: str  # of masksim
    maps: Maps
    channels: bool


def _read_report(report: bytes) -> _Said:
    """Read what a report says, as far as it is needed to do it again.

    Raises
    ------
    UnreadableError, KeyError, TypeError, AttributeError
        The data have another form.
    """
    values, pictures = pages.embedded(report)
    version = values.get("format_version")
    _require(values.get("format") == FORMAT, "the block of data is of another format")
    _require(
        version == FORMAT_VERSION,
        f"the report has the format version {version!r}, known is {FORMAT_VERSION}",
    )
    detection, options = values["detection"], values["options"]
    maps, channels = options["maps"], options["channels"]
    name = str(detection["image"]["name"])
    _require(printable(name) == name, "the image's name has letters that are not printable")
    _require(maps == "all" or (type(maps) is int and maps >= 0), "options.maps is no number")
    _require(type(channels) is bool, "options.channels is neither true nor false")
    return _Said(
        values,
        pictures,
        name,
        str(detection["image"]["sha256"]),
        (str(values["detector"]["sha256"]), str(detection["detector"]["sha256"])),
        str(values["versions"]["masksim"]),
        maps,
        channels,
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise pages.UnreadableError(message)


def _check_seal(report: bytes) -> Check:
    if len(report) > LARGEST:
        return Check("seal", False, f"the file has over {LARGEST} bytes: it is no report")
    try:
        actual = pages.seal_of(report)
    except pages.UnreadableError as error:
        return Check("seal", False, str(error))
    stated = pages.SEAL.findall(report)[0].decode()
    if actual == stated:
        return Check("seal", True, f"the seal is unbroken ({stated[:12]})")
    return Check("seal", False, "the seal is broken: the file was changed after it was made")


def _check_image(said: _Said, own: str) -> Check:
    if said.sha256 == own:
        return Check("image", True, f"the image is the one reported on (sha256 {own[:12]})")
    return Check(
        "image",
        False,
        f"the image is another one: its sha256 is {own}, the report's {said.sha256}",
    )


def _check_detector(said: _Said, own: str) -> Check:
    if set(said.detectors) == {own}:
        return Check("detector", True, f"the detector is the same (sha256 {own[:12]})")
    return Check(
        "detector",
        False,
        f"the report was made with the detector {said.detectors[0]}, loaded is {own}; give its "
        "folder with --model",
    )


def _check_part(part: str, stated: Mapping[str, Any], found: Mapping[str, Any]) -> Check:
    """Compare a part of the report with the same, computed anew."""
    try:
        problem = _COMPARED[part](stated, found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        problem = f"the report's data have another form ({type(error).__name__}: {error})"
    if problem:
        return Check(part, False, problem)
    if part == "metadata":
        return _on_trust(stated["metadata"]["c2pa"], found["metadata"]["c2pa"])
    return Check(part, True, "as computed anew")


def _check_content(report: bytes, said: _Said) -> Check:
    """Draw the page again from the data in it: whoever changed the one must change the other."""
    stated = said.values
    if said.version != __version__:
        return Check(
            "content", None,
            f"the page was not checked: the report says that it was made by masksim "
            f"{said.version}, this is {__version__}; check it with that version",
        )  # fmt: skip
    try:
        again = pages.render(stated, said.pictures)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as error:
        return Check(
            "content", False, f"the data in the report have another form ({type(error).__name__})"
        )
    try:
        expected = commands(stated)
        odd = [k for k in stated["versions"] if k not in versions()] or [
            k for k, v in stated["versions"].items() if not _VERSION.fullmatch(v)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return Check("content", False, f"time, options or versions have another form: {error}")
    if any(stated.get(key) != command for key, command in expected.items()):
        return Check("content", False, "the commands are not those that make and check this report")
    if odd:
        return Check("content", False, f"{odd[0]!r} is no version of ours")
    # The seal is a check of its own.
    if pages.SEAL.sub(b"", again) == pages.SEAL.sub(b"", report):
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
        # On another processor generators with nearly equal rates may come in another order.
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

    # The last digit of a rounded number may differ, and with it the sentences: make them of the
    # report's own numbers.
    measured = ("false_positive_rate", "interval", "as_found", "stability")
    mixed = {**other["verdict"], **{key: one["verdict"][key] for key in measured}}
    other["verdict"] |= words(mixed)
    return _told(_differences(one, other, near))


def _compare_metadata(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    one, other = dict(stated["metadata"]), dict(found["metadata"])
    for values in (one, other):
        del values["c2pa"]
    # What they say of a manifest is what the report read in it; that is compared below.
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
    """Say in what two readings of a manifest differ, where that is allowed."""
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

"""The shapes of what the service answers, for its OpenAPI description.

What a detection is made of is taken from its own classes, and so is what each field means. The
service writes its answers itself, from `Detection.to_dict`; a test holds them to these shapes.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from masksim.image import ImageFacts
from masksim.intervals import Interval
from masksim.likelihood import LikelihoodRatio
from masksim.provenance.metadata import Statement
from masksim.provenance.origin import Origin
from masksim.provenance.watermark import WatermarkMatch
from masksim.results import GeneratorScore
from masksim.show.composed import Mark
from masksim.verdict import Reason, Verdict


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(_Shape):
    """What went wrong: `code` for programs, `message` for people."""

    code: str = Field(description="A short, stable word.", examples=["not_an_image"])
    message: str = Field(examples=["notes.txt: the bytes are of no image format known here"])


class ErrorAnswer(_Shape):
    """The body of every answer that is not a success."""

    error: ErrorBody


@dataclass(frozen=True)
class OriginAnswer(Origin):
    """What the file says of its own origin: no part of the verdict, easily forged and lost.

    Attributes
    ----------
    beside
        Verdict and file side by side, where they disagree.
    """

    beside: str | None = None


@dataclass(frozen=True)
class Watermark(WatermarkMatch):
    """A known open watermark in the pixels: evidence of its own, easily written or removed.

    Attributes
    ----------
    text
        All of this in a sentence.
    """

    text: str = field()  # in place of the property of that name


class DetectorName(_Shape):
    """Which detector has answered."""

    name: str
    sha256: str


class Grid(_Shape):
    """Numbers over the frequencies, packed: int8 times `scale` plus `zero`.

    `data` is base64 of zlib of the int8 values, row by row.
    """

    height: int
    width: int
    scale: float
    zero: float
    data: str


class MapPlane(_Shape):
    """What each frequency of one residual channel adds to the similarity."""

    name: str
    fy: list[float] = Field(description="First and last row, cycles/pixel.")
    fx: list[float] = Field(description="First and last column, cycles/pixel.")
    sum: float = Field(description="Of all contributions of this plane.")
    values: Grid
    spectrum: int = Field(description="Index in `spectra`.")


class GeneratorMap(_Shape):
    """The sums of all planes add up to the similarity."""

    generator: str
    similarity: float
    composed: Grid = Field(
        description="All planes in one, over frequencies from -1/2 to 1/2 cycles per pixel."
    )
    marks: list[Mark] = Field(description="The spots that added most.")
    planes: list[MapPlane]


class Maps(_Shape):
    """Where in the spectrum the evidence lies, the most telling generator first."""

    generators: list[GeneratorMap]
    spectra: list[Grid] = Field(description="The image's own spectrum, of each channel once.")
    telling: int = Field(description="Of how many generators it is worth seeing what counted.")


class DetectionAnswer(_Shape):
    """The answer about one image."""

    image: ImageFacts
    verdict: Verdict
    scores: list[GeneratorScore] = Field(description="One a generator, the most telling first.")
    windows: list[list[int]] = Field(description="Analysed parts: x, y, width, height.")
    detector: DetectorName
    seconds: float
    origin: OriginAnswer | None = Field(description="Null with `metadata=false`.")
    watermarks: list[Watermark] = Field(description="Mostly none; no part of the verdict.")
    maps: Maps | None = Field(default=None, description="Only with `maps=true`.")


class NamedImage(_Shape):
    """The file a row is about."""

    name: str


class FailedRow(_Shape):
    """A file of a batch that could not be analysed."""

    image: NamedImage
    error: ErrorBody


class BatchAnswer(_Shape):
    """A row for each file, in the order of the upload."""

    results: list[DetectionAnswer | FailedRow]


class Stratum(_Shape):
    """Photos of one kind, which rates are measured among."""

    stratum: str
    photos: int
    sources: int


class Population(_Shape):
    """Real photos that the detector was calibrated on."""

    name: str
    strata: list[Stratum]


class ServiceLimits(_Shape):
    """What one request may cost."""

    max_bytes: int
    max_pixels: int
    max_files: int
    max_batch_bytes: int
    max_seconds: float
    queue: int


class ModelAnswer(_Shape):
    """The detector behind the service."""

    name: str
    sha256: str
    format_version: int
    masksim: str = Field(description="Version of the package.")
    generators: list[str]
    sample_size: int = Field(description="Scores of real photos that rates are measured on.")
    photos: int = Field(description="Different photos among these.")
    calibration: list[Population]
    limits: ServiceLimits


class Status(_Shape):
    """Whether the service runs, or can answer."""

    status: str


def describe_fields(components: dict[str, Any]) -> None:
    """Put what docstrings say of a detection's parts into their descriptions; no field may miss.

    Parameters
    ----------
    components
        The schemas of an OpenAPI description, by name; those of dataclasses are changed.
    """
    parts = (ImageFacts, Verdict, Interval, Reason, LikelihoodRatio, GeneratorScore, Statement)
    for part in (*parts, OriginAnswer, Watermark, Mark):
        shape = components[part.__name__]
        shape["description"] = (inspect.getdoc(part) or "").partition("\n")[0]
        fields = shape["properties"]
        shape["required"] = list(fields)
        for base in reversed(part.__mro__):
            for names, text in _ATTRIBUTE.findall(inspect.getdoc(base) or ""):
                plain = re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("``", "`")
                for name in set(names.split(", ")) & fields.keys():
                    fields[name].pop("default", None)
                    fields[name]["description"] = plain


_ATTRIBUTE = re.compile(r"^(\w+(?:, \w+)*)\n((?:(?: {4}.*)?\n?)+)", re.MULTILINE)
"""Names and text of an entry under ``Attributes``."""

_EXAMPLE: dict[str, Any] = {
    "image": {
        "name": "photo.jpg", "format": "JPEG", "width": 1024, "height": 1024, "mode": "RGB",
        "frames": 1, "n_bytes": 193135,
        "sha256": "7a0a19041e00777fef7ba50258306cec15e94726063700e1450055a58f027072",
        "sha256_of": "file", "jpeg_quality": 79, "jpeg_subsampling": "4:2:0", "orientation": 1,
        "icc_profile": False, "treatments": [],
    },
    "verdict": {
        "level": "evidence", "generator": "dalle3", "false_positive_rate": 0.018,
        "sample_size": 1744,
        "text": "Evidence of dalle3's pattern. 1.8 % of 1744 real photos match some generator's "
        "pattern at least as well (95 % interval 0.9 to 3.4 %).",
        "headline": "Evidence of dalle3's pattern",
        "explanation": "1.8 % of 1744 real photos match some generator's pattern at least as well "
        "(95 % interval 0.9 to 3.4 %).",
        "cautions": ["Which generator is uncertain: flux1 matches nearly as well."],
        "unknown_generator": False, "clarity": 0.31, "interval": {"low": 0.009, "high": 0.034},
        "stratum": "all", "kind": "photos", "sources": 40, "reasons": [],
        "number_of_false_alarms": 0.018,
        "stability": {"JPEG of quality 75": 0.021}, "likelihood_ratio": None,
        "population": "", "as_found": None,
    },
    "scores": [
        {
            "generator": "dalle3", "similarity": 0.0867, "probability": 0.93,
            "false_positive_rate": 0.004, "sample_size": 1744, "posterior": 0.71,
        },
    ],
    "windows": [[0, 0, 512, 512]],
    "detector": {
        "name": "masksim-8",
        "sha256": "b3eb67dfdbca3a4b6a1ef0e5d4b0a1c6c7d6f1f6b6c0d3b7f1f6a3b9d8e7c6a5",
    },
    "seconds": 0.22,
    "origin": {
        "says": "generator",
        "summary": "The file carries an unchecked claim that DALL·E made it.",
        "generator": "DALL·E", "device": None, "software": None, "c2pa": "not verified",
        "checked": "unchecked",
        "statements": [
            {
                "text": "A C2PA manifest by OpenAI-API is there. It was not verified, for the "
                "package c2pa-python is not installed. It claims, unchecked: made by a generator "
                "(trained algorithmic media); by DALL·E.",
                "points_to": "generator",
            },
        ],
        "problems": [], "beside": None,
    },
    "watermarks": [],
}  # fmt: skip
_FAILED = {
    "image": {"name": "notes.txt"},
    "error": {
        "code": "not_an_image",
        "message": "notes.txt: the bytes are of no image format known here",
    },
}

EXAMPLES: dict[str, Any] = {
    "/v1/detect": _EXAMPLE,
    "/v1/detect/batch": {"results": [_EXAMPLE, _FAILED]},
}
"""Answers as the OpenAPI description shows them, by path."""

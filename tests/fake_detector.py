"""A detector without a network, for the tests of the report and of the command line.

Its results are the real one's classes; its numbers come from the image's mean alone. `install`
puts it in the place of `masksim.load.load_detector`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import masksim.load
from masksim.calibration import Calibration, Rates
from masksim.errors import ImageError, ModelError
from masksim.image import ImageFacts, LoadedImage, load_image
from masksim.intervals import Interval
from masksim.provenance.origin import read_origin
from masksim.results import Detection, GeneratorScore, PlaneMap, SimilarityMap
from masksim.verdict import decide

GENERATORS = ("dalle3", "gpt-image", "sd1")
SAMPLE_SIZE = 999


@dataclass(frozen=True)
class Residual:
    kind: str = "none"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True)
class Branch:
    residual: Residual = field(default_factory=Residual)
    preprocess: dict[str, Any] = field(default_factory=lambda: {"window": 256, "windows": 5})
    spectrum: dict[str, Any] = field(default_factory=lambda: {"kind": "log"})
    head: str = "shared"
    head_config: dict[str, Any] = field(default_factory=dict)
    generators: tuple[str, ...] = GENERATORS


@dataclass(frozen=True)
class File:
    format_version: int = 1
    config: dict[str, Any] = field(default_factory=dict)
    branches: tuple[Branch, ...] = (Branch(),)
    provenance: dict[str, Any] = field(default_factory=lambda: {"trained_on": ["a", "b"]})


def facts(name: str = "photo.jpg", **changes: Any) -> ImageFacts:
    found = load_image(np.zeros((300, 400, 3), np.uint8), name=name).facts
    return dataclasses.replace(found, **changes)


def detection(
    rates: dict[str, float] | None = None,
    *,
    calibrated: bool = True,
    image: ImageFacts | None = None,
    sample_size: int = SAMPLE_SIZE,
    cautions: tuple[str, ...] = (),
) -> Detection:
    rates = rates or {"dalle3": 0.004, "gpt-image": 0.3, "sd1": 0.9}
    similarities = [1.0 - rate for rate in rates.values()]
    joint = min(1.0, 1.5 * min(rates.values()))
    measured = Rates(
        np.array(list(rates.values())), joint, Interval(joint / 2, joint), sample_size, sample_size,
        np.full(len(rates), sample_size), "all",
    )  # fmt: skip
    verdict = decide(list(rates), similarities, measured if calibrated else None, cautions=cautions)
    scores = tuple(
        GeneratorScore(
            name,
            similarity,
            0.5,
            rate if calibrated else None,
            sample_size if calibrated else 0,
        )
        for (name, rate), similarity in zip(rates.items(), similarities, strict=True)
    )
    return Detection(
        image or facts(), verdict, scores, ((8, 16, 256, 256),), "fake", Detector.sha256, 0.125
    )


def plane(name: str, values: NDArray[Any]) -> PlaneMap:
    fy, fx = (np.fft.fftshift(np.fft.fftfreq(n)) for n in values.shape)
    rng = np.random.default_rng(0)
    reference, spectrum = rng.normal(size=(2, *values.shape)).astype(np.float32)
    return PlaneMap(name, values.astype(np.float32), reference, spectrum, fy, fx)


def similarity_map(generator: str, *values: NDArray[Any]) -> SimilarityMap:
    planes = tuple(plane(f"plane {k}", v) for k, v in enumerate(values))
    return SimilarityMap(generator, float(sum(v.sum() for v in values)), planes)


class Detector:
    generators = GENERATORS
    name = "fake"
    sha256 = "0123456789abcdef" * 4
    sample_size = photos = SAMPLE_SIZE
    metadata = True
    file = File()
    calibrations = {  # noqa: RUF012
        "built-in": Calibration(np.linspace(0, 1, SAMPLE_SIZE)[:, None].repeat(3, axis=1))
    }

    def analysed_part(self, height: int, width: int) -> tuple[int, int, int, int]:
        return 0, 0, height, width

    def detect(self, image: Any, *, name: str | None = None) -> Detection:
        loaded = (
            image
            if isinstance(image, LoadedImage)
            else load_image(image, name=name, keep=self.metadata)
        )
        if min(loaded.pixels.shape[:2]) < 256:
            raise ImageError(f"{loaded.facts.name}: under 256 pixels", code="too_small")
        rate = 0.001 + 0.998 * float(loaded.pixels.mean()) / 255
        found = detection({"dalle3": rate, "gpt-image": 0.95, "sd1": 1.0}, image=loaded.facts)
        said = None if loaded.encoded is None else read_origin(loaded.encoded)
        return dataclasses.replace(found, origin=said)

    def similarity_maps(self, image: Any) -> dict[str, SimilarityMap]:
        values = np.random.default_rng(1).normal(size=(32, 32)) / 1024
        return {name: similarity_map(name, values) for name in GENERATORS}

    def explain(self, image: Any) -> tuple[Detection, dict[str, SimilarityMap]]:
        return self.detect(image), self.similarity_maps(image)


calls: list[dict[str, Any]] = []
"""How `load_detector` was called."""


def load_detector(
    path: Any = None, *, threads: Any = None, providers: Any = None, **options: Any
) -> Detector:
    calls.append({"path": path, "threads": threads, "providers": providers, **options})
    if path is not None and Path(path) != masksim.load.bundled_path():
        raise ModelError(f"there is no detector in {path}", code="model_not_found")
    found = Detector()
    found.metadata = options.get("metadata", True)
    return found


def install() -> None:
    """Take the place of the real detector in this process."""
    masksim.load.load_detector = load_detector  # type: ignore[assignment]

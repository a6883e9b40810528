"""Similarities, rates and verdicts of a fixed set of images, as they were before code was moved.

The expected numbers were written by ``python tests/test_unchanged.py``. They are written anew only
where a detector or the policy of verdicts is changed on purpose, never because code was moved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import encode, make_natural  # type: ignore[import-not-found]
from masksim import Detector, load_detector

DATA = Path(__file__).with_name("data")
EXPECTED = DATA / "unchanged.json"
TOLERANCE = 1e-6
POSTERIOR_TOLERANCE = 1e-5  # its log-odds move ten times as much as the similarities and more
DETECTORS = {
    "bundled": None,
    "format of 0.1": DATA / "detector-0.1",  # of that version, without its photos for enrolling
}


def waves(amplitude: float) -> NDArray[np.uint8]:
    """Give a soft picture a grid of period 8, as enlarging layers leave it."""
    soft = Image.fromarray(make_natural(96, 96, 5)).resize((768, 768), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:768, :768]
    wave = np.cos(2 * np.pi * x / 8) + np.cos(2 * np.pi * y / 8)
    noise = np.kron(np.random.default_rng(5).normal(size=(96, 96, 3)), np.ones((8, 8, 1)))
    changed = np.asarray(soft, np.float64) + amplitude * (wave[..., np.newaxis] + noise)
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def small_detail() -> NDArray[np.uint8]:
    """Enlarge by repeating pixels."""
    return make_natural(192, 192, 6).repeat(4, axis=0).repeat(4, axis=1)


IMAGES: dict[str, Callable[[], Any]] = {
    "photo of 640 x 768": lambda: make_natural(640, 768, 1),
    "photo of 1,100 x 1,300": lambda: make_natural(1100, 1300, 2),
    "photo of 2,000 x 1,800": lambda: make_natural(2000, 1800, 7),
    "photo of 520 x 530, PNG": lambda: encode(Image.fromarray(make_natural(520, 530, 3)), "PNG"),
    "grey": lambda: make_natural(600, 600, 4)[..., :1].repeat(3, axis=2),
    "flat": lambda: np.full((544, 544, 3), 200, np.uint8),
    "weak waves": lambda: waves(1.0),
    "strong waves": lambda: waves(4.0),
    "pixels repeated": small_detail,
    # Files as they lie here: another version of an encoder would write others.
    "JPEG of quality 90": lambda: DATA / "unchanged-90.jpg",
    "JPEG of quality 60": lambda: DATA / "unchanged-60.jpg",
    "WebP of quality 80": lambda: DATA / "unchanged-80.webp",
}


def numbers(detector: Detector, image: Any) -> dict[str, Any]:
    """All that must not change of an answer."""
    found, maps = detector.explain(image)
    verdict = found.verdict
    return {
        "level": verdict.level,
        "generator": verdict.generator,
        "false_positive_rate": verdict.false_positive_rate,
        "as_found": verdict.as_found,
        "interval": verdict.interval and [verdict.interval.low, verdict.interval.high],
        "stratum": verdict.stratum,
        "sample_size": verdict.sample_size,
        "stability": verdict.stability,
        "reasons": [reason.code for reason in verdict.reasons],
        "windows": [list(window) for window in found.windows],
        "scores": {
            score.generator: [
                score.similarity,
                score.probability,
                score.false_positive_rate,
                score.posterior,
            ]
            for score in sorted(found.scores, key=lambda score: score.generator)
        },
        "maps": {
            name: [float(np.abs(plane.values).sum()) for plane in shown.planes]
            for name, shown in sorted(maps.items())
        },
    }


def close(found: Any, expected: Any, where: str = "") -> list[str]:
    """Every place where two answers differ by more than the tolerance."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if list(found) != list(expected):
            return [f"{where}: {list(found)} for {list(expected)}"]
        return [d for key in expected for d in close(found[key], expected[key], f"{where}/{key}")]
    if isinstance(expected, list) and isinstance(found, (list, tuple)):
        if len(found) != len(expected):
            return [f"{where}: {len(found)} values for {len(expected)}"]
        return [
            d
            for i, (one, other) in enumerate(zip(found, expected, strict=True))
            for d in close(one, other, f"{where}/{i}")
        ]
    if isinstance(expected, float) and isinstance(found, (int, float)):
        posterior = where.startswith("/scores/") and where.endswith("/3")
        tolerance = POSTERIOR_TOLERANCE if posterior else TOLERANCE
        same = abs(found - expected) <= tolerance * max(1.0, abs(expected))
    else:
        same = found == expected
    return [] if same else [f"{where}: {found} for {expected}"]


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def detector(request: pytest.FixtureRequest) -> tuple[str, Detector]:
    return request.param, load_detector(DETECTORS[request.param])


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_an_answer_is_what_it_was(detector: tuple[str, Detector], image: str) -> None:
    name, loaded = detector
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))[name][image]
    assert close(numbers(loaded, IMAGES[image]()), expected) == []


def test_a_difference_is_found() -> None:
    expected = {"scores": {"a": [0.5, None]}, "level": "evidence"}
    assert close({"scores": {"a": [0.5 + 1e-7, None]}, "level": "evidence"}, expected) == []
    assert close({"scores": {"a": [0.5 + 1e-5, None]}, "level": "evidence"}, expected) != []
    posterior = {"scores": {"a": [0.5, 0.5, 0.5, 0.5]}}
    assert close({"scores": {"a": [0.5, 0.5, 0.5, 0.5 + 5e-6]}}, posterior) == []
    assert close({"scores": {"a": [0.5, 0.5, 0.5 + 5e-6, 0.5]}}, posterior) != []
    assert close({"scores": {"a": [0.5, 0.5, 0.5, 0.5 + 5e-5]}}, posterior) != []
    assert close({"scores": {"a": [0.5, 0.1]}, "level": "evidence"}, expected) != []
    assert close({"scores": {"a": [0.5, None]}, "level": "weak evidence"}, expected) != []


if __name__ == "__main__":
    written = {
        name: {image: numbers(load_detector(path), make()) for image, make in IMAGES.items()}
        for name, path in DETECTORS.items()
    }
    EXPECTED.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")

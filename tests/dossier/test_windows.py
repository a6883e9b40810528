"""`masksim.dossier.windows`: parts of the image, each scored and drawn where it is."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import encode, make_natural
from masksim.detector import Detector
from masksim.dossier import windows
from masksim.dossier.windows import by_window, turn_window
from masksim.image import ImageFacts, LoadedImage, load_image, to_display
from masksim.load import load_detector


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_turned_like_the_image(orientation: int) -> None:
    pixels = np.zeros((30, 50, 3), np.uint8)
    x, y, w, h = 4, 6, 10, 8
    pixels[y : y + h, x : x + w] = 255
    facts = ImageFacts(
        "x", "PNG", 50, 30, "RGB", 1, 1, "", "file", None, None, orientation, False, ()
    )
    shown = np.asarray(to_display(LoadedImage(pixels, facts)))[..., 0]
    left, top, width, height = turn_window((x, y, w, h), 50, 30, orientation)
    assert shown[top : top + height, left : left + width].min() == 255
    assert int((shown > 0).sum()) == width * height


@pytest.mark.parametrize("length", [512, 600, 1024, 1100, 3000, 8000])
def test_windows_cover_the_image(length: int) -> None:
    found = windows._positions(length, 512)
    assert all(p % 8 == 0 for p in found)
    assert found[0] < 64
    assert length - (found[-1] + 512) < 64
    assert all(b - a <= 512 + 0.25 * 512 for a, b in pairwise(found))


def test_windows_of_a_large_image(detector: Detector) -> None:
    data = encode(Image.fromarray(make_natural(600, 1100, seed=4)), "JPEG", quality=92)
    loaded = load_image(data)
    detection = detector.detect(loaded)
    found = by_window(detector, detection, loaded, {})
    assert found is not None
    assert found["generator"] == detection.scores[0].generator
    analysed = [(w["x"], w["y"], w["width"], w["height"]) for w in found["analysed"]]
    assert analysed == list(detection.windows)
    assert not set(analysed) & {(w["x"], w["y"], w["width"], w["height"]) for w in found["grid"]}
    window = found["analysed"][0]
    x, y, n = window["x"], window["y"], window["width"]
    facts = loaded.facts  # a part of a file shows its compression, not a lossless array's
    part = loaded.pixels[y : y + n, x : x + n]
    alone = detector.similarities(part, facts.jpeg_quality, facts.format)
    expected = alone[detector.generators.index(found["generator"])]
    assert window["similarity"] == pytest.approx(expected, abs=1e-6)


def test_a_huge_image_has_few_windows(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def scored(_: Any, pixels: NDArray[np.uint8], window: Any, g: int) -> float:
        asked.append(window)
        return 0.01 * g

    monkeypatch.setattr(windows, "_similarity", scored)
    pixels = np.tile(make_natural(512, 512, seed=8), (6, 12, 1))
    loaded = load_image(pixels)
    pictures: dict[str, bytes] = {}
    found = by_window(detector, detector.detect(loaded), loaded, pictures)
    assert found is not None
    assert len(asked) <= windows._GRID + 4
    with Image.open(io.BytesIO(pictures["windows"])) as image:
        assert max(image.size) <= 900


def test_a_window_is_scored_as_part_of_its_file(banded: Any) -> None:
    """With heads for each band of compression: of the file's band, not of a lossless array's."""
    detector = load_detector(banded.folder, threads=1)
    loaded = load_image(encode(Image.fromarray(make_natural(400, 400, seed=3)), "JPEG", quality=60))
    window = (8, 16, 192, 192)
    part = np.ascontiguousarray(loaded.pixels[16:208, 8:200])
    found = windows._similarity(detector, loaded, window, 1)
    assert found == pytest.approx(detector.measure_pixels(part, 60, "JPEG")[0][1], abs=1e-9)
    assert found != pytest.approx(detector.measure_pixels(part)[0][1], abs=1e-9)

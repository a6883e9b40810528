"""`masksim.data.processing`: what images go through, drawn, and what the last file would be."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import HAS_AVIF
from masksim import augment
from masksim.augment import encode, rng_for
from masksim.config import from_plain
from masksim.data import processing
from masksim.data.manifest import REAL, Row
from masksim.data.processing import (
    ENDS,
    WAYS,
    ProcessingConfig,
    View,
    Work,
    as_found,
    as_met,
    history_of,
)
from masksim.data.views import ViewConfig, views_of_file
from masksim.errors import UsageError
from masksim.image import estimate_jpeg_quality
from masksim.traits import BANDS, is_lossy

Natural = Callable[..., NDArray[np.uint8]]

SMALL = ProcessingConfig(region=160, smallest=64)


def only(
    way: str | None = None, end: str | None = None, config: ProcessingConfig = SMALL
) -> ProcessingConfig:
    """Draw one way and one end alone."""
    found = config
    if way is not None:
        found = replace(found, ways={way: 1.0})
    return found if end is None else replace(found, ends={end: 1.0})


def draw(
    pixels: Any, config: ProcessingConfig, n: int, format: str = "PNG", quality: Any = None
) -> Any:
    return [as_met(pixels, format, quality, rng_for("test", k), config) for k in range(n)]


@pytest.fixture(scope="module")
def pixels(natural_image: Natural) -> NDArray[np.uint8]:
    return natural_image(200, 240, seed=7)


def usable(config: ProcessingConfig) -> ProcessingConfig:
    """Leave AVIF out where Pillow cannot write it."""
    ends = {name: share for name, share in config.ends.items() if HAS_AVIF or name != "avif"}
    return replace(config, ends=ends)


def test_a_draw_depends_on_the_generator_alone(pixels: NDArray[np.uint8]) -> None:
    config = usable(SMALL)
    one, two = (draw(pixels, config, 12) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert (a.processing, a.way, a.format, a.quality) == (
            b.processing,
            b.way,
            b.format,
            b.quality,
        )
    assert len({(m.way, m.processing, m.pixels.shape, m.pixels.tobytes()) for m in one}) > 10


def test_photos_and_generated_images_are_processed_alike(
    pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Nothing but the name of the generator differs, and nothing in the views does."""
    config = ViewConfig(views={"*": 6}, ways=usable(SMALL))
    for name, options in (("a.jpg", {"quality": 92}), ("a.png", {})):
        path = tmp_path / name
        Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
        row = Row(name, REAL, "photos", "train", sha256="0" * 64)
        real, made = (
            [view for _, view in views_of_file(path, one, "met", config, 3)]
            for one in (row, replace(row, generator="sd", source="other", path="elsewhere.png"))
        )
        assert len(real) == 6
        for a, b in zip(real, made, strict=True):
            np.testing.assert_array_equal(a.pixels, b.pixels)
            assert replace(a, pixels=b.pixels) == b


def test_the_first_view_of_a_file_is_the_file(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=77)
    config = ViewConfig(views={"*": 3, "sd": 1}, ways=usable(SMALL))
    found = list(views_of_file(path, Row("a.jpg", REAL, "p", "train"), "met", config, 0))
    assert len(found) == 3
    row, first = found[0]
    assert (row.width, row.height, row.format) == (240, 200, "JPEG")
    whole = np.asarray(Image.open(path))
    np.testing.assert_array_equal(first.pixels, whole[16:176, 40:200])  # on the grid, central
    assert (first.history, first.processing, first.quality) == ("jpeg", (), 77)
    assert first.format == "JPEG"
    assert BANDS[first.band] == "middle"
    one = list(views_of_file(path, Row("a.jpg", "sd", "p", "train"), "met", config, 0))
    assert len(one) == 1


@pytest.mark.parametrize("size", [(64, 64), (64, 900), (200, 240), (1300, 70), (650, 700)])
@pytest.mark.parametrize("way", WAYS)
def test_no_side_is_ever_under_the_smallest_or_over_the_region(
    natural_image: Natural, size: tuple[int, int], way: str
) -> None:
    image = natural_image(*size, seed=1)
    config = only(way, None, replace(SMALL, ends={"high": 1.0, "lossless": 1.0}))
    shapes = [one.pixels.shape for one in draw(image, config, 40)]
    assert all(min(shape[:2]) >= 64 for shape in shapes), shapes
    assert all(max(shape[:2]) <= 160 for shape in shapes), shapes
    assert all(shape[2] == 3 for shape in shapes)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_every_way_and_every_end_occurs_as_often_as_its_share(
    natural_image: Natural, format: str
) -> None:
    image = natural_image(72, 88, seed=2)
    config = usable(replace(SMALL, region=80))
    n = 800
    found = draw(image, config, n, format, 90 if format == "JPEG" else None)
    ways = Counter(one.way for one in found)
    total = sum(config.ways.values())
    for way in WAYS:
        share = config.ways[way] / total
        assert abs(ways[way] / n - share) < 4 * np.sqrt(share * (1 - share) / n), way
    ends = Counter(end_of(one) for one in found if one.way == "direct" and one.processing)
    assert set(ends) == {name for name in ENDS if name != "lossless" or format == "PNG"} - (
        set() if HAS_AVIF else {"avif"}
    )
    untouched = [one for one in found if one.way == "direct" and not one.processing]
    # Cut and saved without loss, whatever it came from: so are images of either class.
    assert untouched
    assert {(one.format, one.quality) for one in untouched} == {("PNG", None)}
    assert {one.history for one in untouched} == {"lossless" if format == "PNG" else "jpeg"}


def end_of(one: View) -> str:
    if one.format == "JPEG":
        assert one.quality is not None
        return "high" if one.quality >= 86 else "middle" if one.quality >= 66 else "low"
    return {"PNG": "lossless", "WEBP": "webp", "AVIF": "avif", "HEIF": "heic"}[one.format]


def test_the_last_compression_is_the_one_that_is_recorded(
    pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int, Any]] = []
    real = augment.reencode

    def spy(image: Any, format: str, quality: int, *rest: Any) -> Any:
        found = real(image, format, quality, *rest)
        if format == "JPEG":
            data = encode(image, format, quality, *rest)
            tables = Image.open(io.BytesIO(data)).quantization  # type: ignore[attr-defined]
            assert estimate_jpeg_quality(tables[0]) == quality
        calls.append((format, quality, found))
        return found

    monkeypatch.setattr(processing, "reencode", spy)
    for way in WAYS:
        for k in range(25):
            calls.clear()
            one = as_met(
                pixels, "PNG", None, rng_for("last", way, k), only(way, None, usable(SMALL))
            )
            named = [step for step in one.processing if not step.startswith("resize")]
            assert [f"{f.lower()} {q}" for f, q, _ in calls] == [
                " ".join(step.split()[:2]) for step in named
            ]
            if one.format == "PNG":
                assert one.quality is None
                continue
            format, quality, last = calls[-1]
            assert one.format == format
            assert one.quality == (quality if format == "JPEG" else None)
            # Nothing comes after it: the pixels are what the file decodes to.
            np.testing.assert_array_equal(one.pixels, last)
            assert one.processing[-1].startswith(format.lower())


@pytest.mark.parametrize(
    ("end", "format", "low", "high", "band"),
    [
        ("high", "JPEG", 86, 95, "high"),
        ("middle", "JPEG", 66, 85, "middle"),
        ("low", "JPEG", 50, 65, "low"),
        ("webp", "WEBP", None, None, "other"),
        pytest.param("avif", "AVIF", None, None, "other",
                     marks=pytest.mark.skipif(not HAS_AVIF, reason="no AVIF")),
        ("heic", "HEIF", None, None, "other"),
        ("lossless", "PNG", None, None, "lossless"),
    ],
)  # fmt: skip
def test_each_end_lies_in_its_band(
    pixels: NDArray[np.uint8], end: str, format: str, low: Any, high: Any, band: str
) -> None:
    config = only("reduced", end)
    found = draw(pixels, config, 30 if format in ("JPEG", "PNG") else 6)
    for one in found:
        assert one.format == format
        assert BANDS[one.band] == band
        assert one.history == "reduced"
        # It is the image still, only coarser.
        assert 5 < one.pixels.std() < 120
        assert abs(float(one.pixels.mean()) - float(pixels.mean())) < 40
    qualities = {one.quality for one in found}
    if low is None:
        assert qualities == {None}
    else:
        assert low <= min(qualities) <= max(qualities) <= high
        assert len(qualities) > 5


def test_only_images_that_come_lossless_get_a_first_jpeg(pixels: NDArray[np.uint8]) -> None:
    config = only("direct", "lossless")
    first = [one for one in draw(pixels, config, 300) if one.processing]
    assert abs(len(first) / 300 - 0.9) < 0.07
    assert all(len(one.processing) == 1 and one.history == "jpeg" for one in first)
    assert all((one.format, one.quality) == ("PNG", None) for one in first)
    assert {int(one.processing[0].split()[1]) for one in first} == set(config.first_qualities)
    share = np.mean([one.processing[0].endswith("4:2:0") for one in first])
    assert abs(share - 0.7) < 0.1
    for one in draw(pixels, config, 30, "JPEG", 83):
        assert (one.processing, one.history, one.format, one.quality) == ((), "jpeg", "PNG", None)
    for one in draw(pixels, config, 10, "WEBP"):
        assert (one.processing, one.history, one.format, one.quality) == ((), "jpeg", "PNG", None)
    never = replace(config, once_compressed=0.0)
    assert all(one.history == "lossless" for one in draw(pixels, never, 20))


def test_crops_keep_the_grid_as_often_as_asked(pixels: NDArray[np.uint8]) -> None:
    y, x = np.mgrid[:200, :240]
    marked = np.stack([y, x, np.zeros_like(y)], axis=-1).astype(np.uint8)
    config = only("direct", "lossless", replace(SMALL, once_compressed=0.0, off_grid=0.25))
    corners = np.array([one.pixels[0, 0, :2] for one in draw(marked, config, 400)])
    aligned = (corners % 8 == 0).all(axis=1)
    assert abs(aligned.mean() - (0.75 + 0.25 / 64)) < 0.08
    assert len(np.unique(corners, axis=0)) > 40


@pytest.mark.parametrize(
    ("way", "compressed", "history"),
    [
        ("direct", True, "jpeg"),
        ("direct", False, "lossless"),
        ("reduced", False, "reduced"),
        ("screenshot", False, "reduced"),
        ("messenger", False, "shared"),
        ("social", True, "shared"),
        ("enlarged", False, "enlarged"),
    ],
)
def test_the_history_of_a_way(way: str, compressed: bool, history: str) -> None:
    assert history_of(way, compressed) == history


def test_what_each_way_does(natural_image: Natural) -> None:
    image = natural_image(300, 1500, seed=3)
    config = replace(SMALL, region=2048)
    for one in draw(image, only("messenger", "lossless", config), 10):
        assert one.processing[-1].startswith("jpeg")  # a messenger always compresses
        assert end_of(one) in ("middle", "low")
        assert max(one.pixels.shape) <= 1600
    for one in draw(image, only("social", "lossless", config), 5):
        kinds = [step.split()[0] for step in one.processing]
        assert kinds in (["resize", "jpeg"], ["jpeg"])
        assert one.history == "shared"
    for one in draw(image, only("screenshot", "webp", config), 10):
        assert one.format in ("PNG", "JPEG")
        assert one.processing[0].startswith("resize")
    for one in draw(image, only("enlarged", "lossless", config), 5):
        assert 1.0 < float(one.processing[0].split()[1]) <= 2.0
    for one in draw(image, only("reduced", "lossless", config), 10):
        assert 0.25 <= float(one.processing[0].split()[1]) <= 0.95


@pytest.mark.parametrize(
    ("format", "lossy"),
    [("JPEG", True), ("MPO", True), ("WEBP", True), ("AVIF", True), ("HEIF", True),
     ("PNG", False), ("TIFF", False), ("BMP", False), ("array", False)],
)  # fmt: skip
def test_an_image_as_found(format: str, lossy: bool) -> None:
    image = np.arange(100 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 300, 3)
    assert is_lossy(format) is lossy
    quality = 90 if format in ("JPEG", "MPO") else None
    found = as_found(image, format, quality, SMALL.region)
    np.testing.assert_array_equal(found.pixels, image[:, 64:224])
    assert found.history == ("jpeg" if lossy else "lossless")
    assert (found.format, found.quality, found.processing) == (format, quality, ())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"odd": 1}, "unknown keys.*odd"),
        ({"ways": {"fax": 1.0}}, "shares must be of direct"),
        ({"ends": {"high": 0.0}}, "shares must be of lossless"),
        ({"ends": {"high": 2.0, "low": -1.0}}, "shares must be of lossless"),
        ({"smallest": 32}, "smallest side"),
        ({"smallest": 512, "region": 256}, "smallest side"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_plain(ProcessingConfig, values, "ways")


def test_a_configuration_of_plain_values() -> None:
    assert from_plain(ProcessingConfig, {}, "ways") == ProcessingConfig()
    assert from_plain(ProcessingConfig, {"first_qualities": [70, 80]}, "ways").first_qualities == (
        70,
        80,
    )
    assert from_plain(ProcessingConfig, {"ways": {"direct": 1}}, "ways").ways == {"direct": 1}


def test_a_share_of_what_is_resampled_is_sharpened(natural_image: Natural) -> None:
    image = natural_image(300, 320, seed=4)
    plain = only("reduced", "lossless", usable(SMALL))
    config = replace(plain, sharpened=0.4)
    n = 300
    found = draw(image, config, n)
    sharpened = [one for one in found if any(s.startswith("sharpen ") for s in one.processing)]
    assert abs(len(sharpened) / n - 0.4) < 4 * np.sqrt(0.4 * 0.6 / n)
    for one in sharpened:
        assert [step.split()[0] for step in one.processing] == ["resize", "sharpen"]
        assert one.history == "reduced"
    assert not any("sharpen" in s for one in draw(image, plain, 20) for s in one.processing)
    always = draw(image, only("direct", "lossless", usable(replace(SMALL, sharpened=1.0))), 20)
    assert not any("sharpen" in s for one in always for s in one.processing)


def test_sharpening_raises_the_fine_detail(natural_image: Natural) -> None:
    work = Work(natural_image(200, 200, seed=5), rng_for("sharpen"), "PNG")
    before = np.diff(work.pixels.astype(float), axis=1).std()
    work.sharpen()
    assert work.pixels.shape == (200, 200, 3)
    assert np.diff(work.pixels.astype(float), axis=1).std() > 1.05 * before


def test_a_share_of_sharpened_images_is_a_share() -> None:
    with pytest.raises(UsageError, match=r"sharpened is a share, got 1\.5"):
        ProcessingConfig(sharpened=1.5)

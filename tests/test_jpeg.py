"""`masksim.jpeg`: the quality and the subsampling of a JPEG."""

from __future__ import annotations

import io

import pytest
from PIL import Image, JpegImagePlugin

from conftest import encode, make_natural
from masksim.errors import ImageError
from masksim.image import estimate_jpeg_quality, load_image
from reading import Files, stored


def test_quality_of_every_jpeg_that_pillow_writes() -> None:
    image = Image.new("RGB", (8, 8), "teal")
    found = [stored(image, "JPEG", quality=q).facts.jpeg_quality for q in range(1, 101)]
    assert found == list(range(1, 101))


def test_quality_of_every_grey_jpeg_that_pillow_writes() -> None:
    image = Image.new("L", (8, 8), 77)
    found = [stored(image, "JPEG", quality=q).facts.jpeg_quality for q in range(1, 101)]
    assert found == list(range(1, 101))


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90, 96])
def test_quality_of_a_table_that_is_a_little_different(quality: int) -> None:
    with Image.open(io.BytesIO(encode(Image.new("L", (8, 8)), "JPEG", quality=quality))) as image:
        table = list(image.quantization[0])  # type: ignore[attr-defined]
    table[20] += 1
    assert abs(estimate_jpeg_quality(table) - quality) <= 1


def test_a_table_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ImageError, match="64 entries, not 3"):
        estimate_jpeg_quality([1, 2, 3])


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_subsampling(subsampling: str) -> None:
    image = Image.fromarray(make_natural(32, 48))
    loaded = stored(image, "JPEG", subsampling=subsampling)
    assert loaded.facts.jpeg_subsampling == subsampling


@pytest.mark.parametrize(
    ("samplings", "expected"),
    [
        ((0x22, 0x22, 0x22), "4:4:4"),
        ((0x12, 0x11, 0x11), "4:4:0"),
        ((0x41, 0x11, 0x11), "4:1:1"),
        ((0x42, 0x11, 0x11), "4:1:0"),
        ((0x21, 0x21, 0x11), "irregular"),
        ((0x11, 0x21, 0x11), "irregular"),
        ((0x32, 0x21, 0x21), "irregular"),
    ],
)
def test_rare_subsamplings(samplings: tuple[int, int, int], expected: str) -> None:
    from masksim.jpeg import jpeg_facts

    content = bytearray(encode(Image.new("RGB", (32, 32)), "JPEG"))
    at = content.index(b"\xff\xc0") + 10  # of each component: number, sampling, table
    content[at + 1 : at + 9 : 3] = bytes(samplings)
    with Image.open(io.BytesIO(bytes(content))) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        assert jpeg_facts(image) == (75, expected)


def test_only_jpeg_has_jpeg_facts(odd_files: Files) -> None:
    for path, _ in odd_files.values():
        facts = load_image(path).facts
        is_jpeg = facts.format in ("JPEG", "MPO") or path.name == "jpeg_tiff.tif"
        assert (facts.jpeg_quality is not None) == is_jpeg
        colour = is_jpeg and facts.mode != "L"
        assert (facts.jpeg_subsampling is not None) == colour


def test_quality_of_a_camera_like_mpo(odd_files: Files) -> None:
    facts = load_image(odd_files["mpo"][0]).facts
    assert (facts.jpeg_quality, facts.jpeg_subsampling) == (75, "4:2:0")

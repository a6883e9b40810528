"""`masksim.pixels`: every mode and depth to RGB, against the formulas of the standards."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import GREY, encode, make_natural, make_png, make_tiff, png_chunk
from masksim.image import load_image
from reading import code_of, stored


def test_grey_is_repeated() -> None:
    grey = make_natural(20, 30)[..., 0]
    loaded = stored(Image.fromarray(grey))
    np.testing.assert_array_equal(loaded.pixels, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_fewer_bits_is_expanded(bits: int) -> None:
    values = make_natural(20, 32)[..., 0] >> (8 - bits)
    packed = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(20, -1))
    rows = packed.reshape(20, -1)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 20, bits, 0, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + png_chunk(b"IEND", b"")
    )
    loaded = load_image(content)
    np.testing.assert_array_equal(loaded.pixels[..., 0], values * (255 // (2**bits - 1)))
    assert loaded.facts.treatments == (f"{bits} bits expanded to 8", GREY)


def test_one_bit() -> None:
    bits = make_natural(20, 30)[..., 0] > 120
    loaded = stored(Image.fromarray(bits))
    np.testing.assert_array_equal(loaded.pixels[..., 1], np.where(bits, 255, 0))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_and_the_hidden_colour_kept(mode: str) -> None:
    values = np.concatenate([make_natural(20, 30), np.zeros((20, 30, 1), np.uint8)], axis=2)
    if mode == "LA":
        values = values[..., [0, 3]]
    loaded = load_image(make_png(values))
    assert loaded.facts.mode == mode
    np.testing.assert_array_equal(loaded.pixels[..., 0], values[..., 0])


def test_premultiplied_alpha_is_divided_out() -> None:
    image = Image.new("RGBA", (3, 2), (200, 100, 50, 128)).convert("RGBa")
    loaded = load_image(image)
    assert np.abs(loaded.pixels[0, 0].astype(int) - [200, 100, 50]).max() <= 1
    assert loaded.facts.treatments == ("alpha divided out", "alpha dropped")


def palette_image(mode: str) -> tuple[Image.Image, NDArray[np.uint8]]:
    """An image of indices whose palette is known, and its true colours."""
    rng = np.random.default_rng(4)
    colours = rng.integers(0, 256, size=(256, 3), dtype=np.uint8)
    index = rng.integers(0, 256, size=(20, 30), dtype=np.uint8)
    image = Image.fromarray(index).convert("L")
    image.putpalette(colours.tobytes())
    if mode == "PA":
        image = image.convert("PA")
    return image, colours[index]


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))])
@pytest.mark.parametrize("format_", ["PNG", "GIF", "memory"])
def test_palette(format_: str, transparency: int | bytes | None) -> None:
    image, expected = palette_image("P")
    if transparency is not None and not (format_ == "GIF" and isinstance(transparency, bytes)):
        image.info["transparency"] = transparency
    loaded = load_image(image) if format_ == "memory" else stored(image, format_)
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert loaded.facts.treatments[0] == "palette expanded"


def test_palette_with_alpha() -> None:
    image, expected = palette_image("PA")
    np.testing.assert_array_equal(load_image(image).pixels, expected)
    assert load_image(image).facts.treatments == ("palette expanded", "alpha dropped")


def test_palette_of_four_channels() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("L")
    image.putpalette(bytes([10, 20, 30, 0, 40, 50, 60, 255]), "RGBA")
    loaded = load_image(image)
    np.testing.assert_array_equal(loaded.pixels, [[[10, 20, 30], [40, 50, 60]]])
    assert loaded.facts.treatments == ("palette expanded", "transparency dropped")


def ink(cyan: int, magenta: int, yellow: int, black: int) -> Image.Image:
    return Image.new("CMYK", (32, 32), (cyan, magenta, yellow, black))


@pytest.mark.parametrize(
    "inks", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 200, 90, 30), (20, 60, 200, 100), (0, 0, 0, 255)]
)
def test_cmyk_follows_the_formula_in_tiff_and_jpeg(inks: tuple[int, int, int, int]) -> None:
    expected = [(255 - c) * (255 - inks[3]) / 255 for c in inks[:3]]
    exact = stored(ink(*inks), "TIFF").pixels[16, 16]
    assert np.abs(exact - expected).max() <= 1
    jpeg = encode(ink(*inks), "JPEG", quality=100)
    assert b"Adobe" in jpeg  # the marker by which readers know the inks to be inverted
    assert np.abs(load_image(jpeg).pixels[16, 16] - np.array(expected)).max() <= 4


def test_ycbcr_is_full_range() -> None:
    values = make_natural(20, 30).astype(float)
    y, cb, cr = values[..., 0], values[..., 1] - 128, values[..., 2] - 128
    expected = np.stack(
        [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1
    )
    planes = [Image.fromarray(values[..., c].astype(np.uint8)) for c in range(3)]
    loaded = load_image(Image.merge("YCbCr", planes))
    assert np.abs(loaded.pixels - np.clip(expected, 0, 255)).max() <= 1.5


def test_hsv() -> None:
    import colorsys

    loaded = load_image(Image.new("HSV", (2, 2), (170, 128, 200)))
    expected = np.array(colorsys.hsv_to_rgb(170 / 255, 128 / 255, 200 / 255)) * 255
    assert np.abs(loaded.pixels[0, 0] - expected).max() <= 2


@pytest.mark.parametrize(("lightness", "value"), [(255, 255), (0, 0), (137, 128)])
def test_lab(lightness: int, value: int) -> None:
    # L* = 53.6 is the grey 128 of sRGB; neutral a* and b* are stored as 0 in Pillow's LAB
    loaded = load_image(Image.new("LAB", (2, 2), (lightness, 128, 128)))
    assert np.abs(loaded.pixels[0, 0].astype(int) - value).max() <= 2
    assert loaded.facts.treatments == ("LAB converted",)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_grey_of_16_bits_gives_its_high_byte(order: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = values >> 8
    png = load_image(make_png(values[..., np.newaxis]))
    np.testing.assert_array_equal(png.pixels[..., 0], expected)
    tiff = stored(Image.fromarray(values.astype(order)), "TIFF")
    np.testing.assert_array_equal(tiff.pixels[..., 2], expected)
    assert tiff.facts.mode.startswith("I;16")
    assert tiff.facts.treatments == ("16 bits reduced to the high byte", GREY)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_gives_its_high_byte(channels: int) -> None:
    values = np.arange(64 * 64 * channels, dtype=np.uint16).reshape(64, 64, channels) * 5
    loaded = load_image(make_png(values))
    shown = values[..., [0, 0, 0]] if channels == 2 else values[..., :3]
    np.testing.assert_array_equal(loaded.pixels, shown >> 8)
    assert loaded.facts.treatments[0] == "more than 8 bits reduced to the high 8"


def test_tiff_of_12_bits() -> None:
    values = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    pairs = values.reshape(-1, 2).astype(int)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    tags = {256: (4, [16]), 257: (4, [16]), 258: (3, [12])}
    tags |= {259: (3, [1]), 262: (3, [1]), 277: (3, [1])}
    loaded = load_image(make_tiff(tags, packed.astype(np.uint8).tobytes()))
    np.testing.assert_array_equal(loaded.pixels[..., 0], values >> 4)
    assert loaded.facts.treatments == ("12 bits reduced to the high 8", GREY)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 7, 255]], [0, 7, 255]),
        ([[0, 256, 65535]], [0, 1, 255]),
    ],
)
def test_integers_of_32_bits(values: list[list[int]], expected: list[int]) -> None:
    image = Image.fromarray(np.array(values, np.int32))
    for loaded in (load_image(image), stored(image, "TIFF")):
        assert loaded.facts.mode == "I"
        np.testing.assert_array_equal(loaded.pixels[0, :, 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [0, 128, 255]),
        ([[0.0, 7.4, 254.6]], [0, 7, 255]),
    ],
)
def test_floats_of_32_bits(values: list[list[float]], expected: list[int]) -> None:
    image = Image.fromarray(np.array(values, np.float32))
    for loaded in (load_image(image), stored(image, "TIFF")):
        np.testing.assert_array_equal(loaded.pixels[0, :, 0], expected)


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_integers_out_of_range_are_refused(values: list[int]) -> None:
    assert code_of(Image.fromarray(np.array([values], np.int32))) == "unsupported"


@pytest.mark.parametrize("values", [[-0.1, 0.5], [0.0, 256.0], [np.nan, 0.5], [np.inf, 0.0]])
def test_floats_out_of_range_are_refused(values: list[float]) -> None:
    assert code_of(Image.fromarray(np.array([values], np.float32))) == "unsupported"


def test_a_profile_changes_no_pixel() -> None:
    from PIL import ImageCms

    image = Image.fromarray(make_natural(20, 30))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for format_ in ("PNG", "TIFF"):
        loaded = stored(image, format_, icc_profile=profile)
        np.testing.assert_array_equal(loaded.pixels, np.asarray(image))
        assert loaded.facts.icc_profile
        assert loaded.facts.treatments == ("ICC profile ignored",)
    assert not stored(image).facts.icc_profile


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays_of_each_shape(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    loaded = load_image(values)
    grey = len(shape) == 2 or shape[2] == 1
    expected = np.repeat(values.reshape(5, 7, 1), 3, axis=2) if grey else values[..., :3]
    np.testing.assert_array_equal(loaded.pixels, expected)
    alpha = ("alpha dropped",) if shape[-1] == 4 else ()
    assert loaded.facts.treatments == ((GREY,) if grey else alpha)
    assert (loaded.facts.format, loaded.facts.sha256_of) == ("array", "pixels")
    assert loaded.facts.sha256 == hashlib.sha256(loaded.pixels.tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_arrays_of_16_bits(dtype: str) -> None:
    values: NDArray[np.uint16] = np.arange(0, 65536, 7, dtype=np.uint16)[:9000].reshape(50, 60, 3)
    loaded = load_image(values.astype(dtype))
    np.testing.assert_array_equal(loaded.pixels, values // 256)
    assert loaded.facts.mode == "uint16 RGB"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_floats(dtype: type) -> None:
    values: NDArray[Any] = np.array([[0.0, 0.25, 0.75, 1.0]], dtype=dtype)
    np.testing.assert_array_equal(load_image(values).pixels[0, :, 0], [0, 64, 191, 255])


def test_all_bytes_survive_the_way_through_floats() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    loaded = load_image((values / 255).astype(np.float32))
    np.testing.assert_array_equal(loaded.pixels[..., 0], values)


def test_arrays_of_truth_values() -> None:
    values = np.array([[True, False]])
    np.testing.assert_array_equal(load_image(values).pixels[0, :, 0], [255, 0])


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), np.int8),
        np.zeros((4, 4), np.uint32),
        np.zeros((4, 4), np.complex64),
        np.zeros((4, 4), object),
        np.full((4, 4), "a"),
        np.zeros((4, 4), "M8[s]"),
        np.zeros((4,), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.array(3, np.uint8),
        np.full((4, 4), 1.01),
        np.full((4, 4), -0.01),
        np.full((4, 4), np.nan),
        np.full((4, 4), np.inf),
    ],
    ids=lambda values: f"{values.dtype}-{values.shape}",
)
def test_other_arrays_are_refused(values: NDArray[Any]) -> None:
    assert code_of(values) == "unsupported"


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0, 3)])
def test_arrays_without_pixels_are_refused(shape: tuple[int, ...]) -> None:
    assert code_of(np.zeros(shape, np.uint8)) == "too_small"


def test_the_array_of_the_caller_is_neither_kept_nor_needed_in_order() -> None:
    values = make_natural(20, 30)
    loaded = load_image(values)
    before = loaded.pixels.copy()
    values[:] = 0
    np.testing.assert_array_equal(loaded.pixels, before)
    strided = load_image(before[::-1, ::2])
    assert strided.pixels.flags.c_contiguous
    np.testing.assert_array_equal(strided.pixels, before[::-1, ::2])

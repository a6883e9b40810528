"""TIFF: against tifffile, an independent writer, and files made by hand."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from conftest import GREY, encode, make_natural, make_tiff
from masksim import tiff
from masksim.errors import ImageError
from masksim.image import LoadedImage, load_image

RGB = make_natural(80, 112, seed=3)
HEIGHT, WIDTH = RGB.shape[:2]
ALPHA = (np.indices((HEIGHT, WIDTH)).sum(axis=0) % 200 + 50).astype(np.uint8)[..., None]
HIGH = "more than 8 bits reduced to the high 8"


def write(values: NDArray[Any], *, big: bool = False, order: str = "<", **options: Any) -> bytes:
    """Write with tifffile; without compression it needs no codec."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:  # type: ignore[arg-type]
        writer.write(values, metadata=None, **options)
    return file.getvalue()


def refused(content: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(content)
    return caught.value


def apart(values: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(values, -1, 0)


# ----------------------------------------------------------------------------------- planes


@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 16}, {"tile": (32, 48)}])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", [8, 16])
def test_planes_apart_equal_the_same_picture_interleaved(
    depth: int, order: str, layout: dict[str, Any]
) -> None:
    # values whose low byte differs from the high one: taking it would show
    values = RGB if depth == 8 else (RGB.astype(np.uint16) << 8) + np.uint16(77)
    options = {"photometric": "rgb", "order": order, **layout}
    loaded = load_image(write(apart(values), planarconfig="separate", **options))
    interleaved = load_image(write(values, planarconfig="contig", **options))
    np.testing.assert_array_equal(loaded.pixels, RGB)
    np.testing.assert_array_equal(interleaved.pixels, RGB)
    assert loaded.facts.treatments == interleaved.facts.treatments == ((HIGH,) * (depth == 16))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("apart_", [False, True])
def test_planes_of_other_colours(depth: int, apart_: bool) -> None:
    def stored(values: NDArray[np.uint8], **options: Any) -> LoadedImage:
        deep = values if depth == 8 else values.astype(np.uint16) * 257
        deep, plan = (apart(deep), "separate") if apart_ else (deep, "contig")
        return load_image(write(deep, planarconfig=plan, **options))

    inks = np.concatenate([255 - RGB, np.zeros_like(ALPHA)], axis=2)
    np.testing.assert_array_equal(stored(inks, photometric="separated").pixels, RGB)
    plain = np.concatenate([RGB, ALPHA], axis=2)
    loaded = stored(plain, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(loaded.pixels, RGB)
    assert loaded.facts.treatments[-1] == "alpha dropped"


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("apart_", [False, True])
def test_premultiplied_alpha_is_divided_out_and_reported(depth: int, apart_: bool) -> None:
    times = np.concatenate([np.rint(RGB * (ALPHA / 255.0)).astype(np.uint8), ALPHA], axis=2)
    deep = times if depth == 8 else times.astype(np.uint16) * 257
    deep, plan = (apart(deep), "separate") if apart_ else (deep, "contig")
    content = write(deep, photometric="rgb", planarconfig=plan, extrasamples=["assocalpha"])
    loaded = load_image(content)
    assert np.abs(loaded.pixels - RGB.astype(int)).max() <= 6  # alpha is at least 50 of 255
    assert loaded.facts.treatments[-2:] == ("alpha divided out", "alpha dropped")


def test_lab_apart_equals_lab_interleaved() -> None:
    values = np.stack([RGB[..., 0], np.full((HEIGHT, WIDTH), 5), np.full((HEIGHT, WIDTH), 250)], 2)
    values = values.astype(np.uint8)
    one = load_image(write(values, photometric="cielab"))
    other = load_image(write(apart(values), photometric="cielab", planarconfig="separate"))
    np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_pillow_image_of_deep_planes_is_refused() -> None:
    deep = apart(RGB.astype(np.uint16) * 257)
    content = write(deep, photometric="rgb", planarconfig="separate")
    with Image.open(io.BytesIO(content)) as image, pytest.raises(ImageError) as caught:
        load_image(image)
    assert caught.value.code == "unsupported"
    assert "separate planes" in caught.value.message


def test_tiles_in_the_place_of_strips() -> None:
    # so wrote an early library; read as strips they overlap
    tile = 64
    padded = np.pad(RGB[..., 0], ((0, 2 * tile - HEIGHT), (0, 2 * tile - WIDTH)))
    tiles = [padded[y : y + tile, x : x + tile] for y in (0, tile) for x in (0, tile)]
    data = b"".join(part.tobytes() for part in tiles)
    tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1])}
    tags |= {277: (3, [1]), 278: (4, [tile]), 322: (4, [tile]), 323: (4, [tile])}
    content = make_tiff(tags, data, strips=[tile * tile] * 4)
    np.testing.assert_array_equal(load_image(content).pixels[..., 1], RGB[..., 0])


def test_strips_that_are_too_short_are_refused() -> None:
    # 16 bits are claimed, 8 are there: what follows the strip is no picture
    tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [16]), 259: (3, [1]), 262: (3, [1])}
    content = make_tiff({**tags, 277: (3, [1])}, RGB[..., 0].tobytes()) + bytes(WIDTH * HEIGHT)
    error = refused(content)
    assert error.code == "unreadable"
    assert "fewer bytes than its pixels need" in error.message


# ----------------------------------------------------------------------------------- values


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_colour_map_of_8_bits(bits: int) -> None:
    index = RGB[..., 0] >> (8 - bits)
    colours = np.random.default_rng(1).integers(0, 256, size=(3, 1 << bits), dtype=np.uint16)
    colours[0, 0] = 255
    expected = np.moveaxis(colours[:, index], 0, -1)
    for scale, told in ((1, ("colour map of 8 bits",)), (257, ())):
        tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [bits]), 259: (3, [1])}
        tags |= {262: (3, [3]), 277: (3, [1]), 320: (3, (colours * scale).ravel().tolist())}
        packed = np.unpackbits(index[..., None], axis=-1)[..., 8 - bits :].reshape(HEIGHT, -1)
        loaded = load_image(make_tiff(tags, np.packbits(packed, axis=1).tobytes()))
        np.testing.assert_array_equal(loaded.pixels, expected)
        assert loaded.facts.treatments == (*told, "palette expanded")


@pytest.mark.parametrize("values", ["float32", "uint16", "uint8"])
def test_grey_whose_0_is_white_is_inverted(values: str) -> None:
    grey = RGB[..., 0]
    stored = {
        "float32": grey.astype(np.float32) / np.float32(255),
        "uint16": grey.astype(np.uint16) * np.uint16(257),
        "uint8": grey,
    }[values]
    loaded = load_image(write(stored, photometric="miniswhite"))
    np.testing.assert_array_equal(loaded.pixels[..., 0], 255 - grey)
    assert "grey inverted, 0 is white" in loaded.facts.treatments


@pytest.mark.parametrize("stored", [np.int16, np.int32, np.float32])
def test_compressed_big_endian_values_are_read_in_their_order(stored: type) -> None:
    # Pillow cannot write this: a strip that zlib has packed, by hand.
    import zlib

    grey = RGB[..., 0]
    values = grey / np.float32(255) if stored is np.float32 else grey
    strip = zlib.compress(np.asarray(values).astype(np.dtype(stored).newbyteorder(">")).tobytes())
    bits = 8 * np.dtype(stored).itemsize
    kind = 3 if stored is np.float32 else 2
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 8, 262: 1, 273: 8, 277: 1, 278: HEIGHT}
    tags |= {279: len(strip), 339: kind}
    strip += b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, v) for tag, v in sorted(tags.items()))
    content = b"MM\0*" + struct.pack(">I", 8 + len(strip)) + strip
    content += struct.pack(">H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(load_image(content).pixels[..., 0], grey)


def test_one_float_above_1_does_not_make_it_black() -> None:
    values = RGB[..., 0] / np.float32(255)
    values[0, 0], values[0, 1] = 1.02, -0.01
    loaded = load_image(write(values, photometric="minisblack"))
    expected = RGB[..., 0].copy()
    expected[0, :2] = 255, 0
    np.testing.assert_array_equal(loaded.pixels[..., 0], expected)
    assert loaded.facts.treatments == (
        "floats times 255, rounded",
        "2 floats outside 0..1 clipped",
        GREY,
    )


def test_one_float_above_255_neither() -> None:
    values = RGB[..., 0].astype(np.float32)
    values[0, 0] = 256.5
    loaded = load_image(write(values, photometric="minisblack"))
    assert loaded.pixels[0, 0, 0] == 255
    np.testing.assert_array_equal(loaded.pixels[1:, :, 0], RGB[1:, :, 0])


@pytest.mark.parametrize("largest", [1.5, 2.0, 9.0])
def test_floats_of_neither_range_are_refused(largest: float) -> None:
    values = (RGB[..., 0] / np.float32(RGB[..., 0].max())) * np.float32(largest)
    assert refused(write(values.astype(np.float32), photometric="minisblack")).code == "unsupported"


def test_one_integer_above_255_does_not_make_it_black() -> None:
    values = RGB[..., 0].astype(np.int32)
    values[0, 0] = 300
    loaded = load_image(write(values, photometric="minisblack"))
    np.testing.assert_array_equal(loaded.pixels[1:, :, 0], RGB[1:, :, 0])
    assert loaded.facts.treatments == ("1 values over 255 clipped", GREY)


def test_words_of_16_bits_that_hold_fewer() -> None:
    grey = RGB[..., 0].astype(np.uint16)
    eight = load_image(write(grey, photometric="minisblack"))
    np.testing.assert_array_equal(eight.pixels[..., 0], grey)
    assert eight.facts.treatments == ("16 bits holding 0..255 taken as 8", GREY)
    tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [16]), 259: (3, [1]), 262: (3, [1])}
    twelve = make_tiff({**tags, 277: (3, [1]), 281: (3, [4095])}, (grey << 4).tobytes())
    np.testing.assert_array_equal(load_image(twelve).pixels[..., 0], grey)
    assert load_image(twelve).facts.treatments == ("12 bits reduced to the high 8", GREY)


def test_signed_values_of_16_bits_have_15() -> None:
    values = (RGB[..., 0].astype(np.int16) << 7) + np.int16(3)
    loaded = load_image(write(values, photometric="minisblack"))
    np.testing.assert_array_equal(loaded.pixels[..., 0], RGB[..., 0])


def test_unsigned_32_bits_are_told_as_they_are() -> None:
    values = np.linspace(0, 2**32 - 1, WIDTH * HEIGHT).astype(np.uint32).reshape(HEIGHT, WIDTH)
    error = refused(write(values, photometric="minisblack"))
    assert error.code == "unsupported"
    assert "found 0 to 4294967295" in error.message
    small = RGB[..., 0].astype(np.uint32) * np.uint32(257)
    loaded = load_image(write(small, photometric="minisblack"))
    np.testing.assert_array_equal(loaded.pixels[..., 0], RGB[..., 0])


# ------------------------------------------------------------------------------------ pages


def two_pages(first: dict[str, Any], second: dict[str, Any], small: int = 32) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB[:small, :small], photometric="rgb", metadata=None, **first)
        writer.write(RGB, photometric="rgb", metadata=None, **second)
    return file.getvalue()


def test_a_reduced_first_page_is_passed_over() -> None:
    loaded = load_image(two_pages({"subfiletype": 1}, {}))
    np.testing.assert_array_equal(loaded.pixels, RGB)
    assert loaded.facts.frames == 2
    assert loaded.facts.treatments == ("page 2 of 2: those before it are reduced copies",)


@pytest.mark.parametrize("first", [{}, {"subfiletype": 2}])
def test_a_first_page_that_is_not_reduced_is_taken(first: dict[str, Any]) -> None:
    loaded = load_image(two_pages(first, {"subfiletype": 1}, small=48))
    np.testing.assert_array_equal(loaded.pixels, RGB[:48, :48])
    assert loaded.facts.treatments == ("first of 2 frames",)


def test_a_page_that_pillow_does_not_know_is_no_obstacle() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        thumbnail = RGB[:8, :8].astype(np.float64)
        writer.write(thumbnail, photometric="rgb", metadata=None, subfiletype=1)
        writer.write(RGB, photometric="rgb", metadata=None)
    np.testing.assert_array_equal(load_image(file.getvalue()).pixels, RGB)


def test_reduced_pages_alone_are_refused() -> None:
    error = refused(two_pages({"subfiletype": 1}, {"subfiletype": 1}))
    assert error.code == "unsupported"
    assert "reduced copies only" in error.message


@pytest.mark.parametrize("big", [False, True])
def test_the_picture_in_a_sub_directory(big: bool) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big) as writer:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        writer.write(RGB[::2, ::2], subifds=1, subfiletype=1, **options)
        writer.write(RGB, **options)
    loaded = load_image(file.getvalue())
    np.testing.assert_array_equal(loaded.pixels, RGB)
    assert loaded.facts.treatments == ("picture of a sub-directory: the pages are reduced copies",)


def test_a_sensor_s_values_are_called_camera_raw() -> None:
    tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [8]), 259: (3, [1])}
    content = make_tiff({**tags, 262: (3, [32803]), 277: (3, [1])}, RGB[..., 0].tobytes())
    error = refused(content)
    assert (error.code, "camera raw" in error.message) == ("unsupported", True)


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((RGB / 255).astype(np.float32), "RGB of 3 x 32 bits, floats"),
        ((RGB / 255).astype(np.float16), "RGB of 3 x 16 bits, floats"),
        ((RGB / 255).astype(np.float64), "RGB of 3 x 64 bits, floats"),
        (RGB.view(np.int8), "RGB of 3 x 8 bits, signed integers"),
        (RGB[..., 0].view(np.int8), "grey of 8 bits, signed integers"),
    ],
)
def test_what_is_not_supported_is_not_called_damaged(values: NDArray[Any], words: str) -> None:
    photometric = "rgb" if values.ndim == 3 else "minisblack"
    error = refused(write(values, photometric=photometric))
    assert error.code == "unsupported"
    assert words in error.message


def test_grey_and_alpha_of_16_bits_and_big_endian_bigtiff_are_not_supported() -> None:
    pair = np.stack([RGB[..., 0], RGB[..., 1]], axis=2).astype(np.uint16) * 257
    error = refused(write(pair, photometric="minisblack", extrasamples=["unassalpha"]))
    assert error.code == "unsupported"
    assert refused(write(RGB, photometric="rgb", big=True, order=">")).code == "unsupported"


def test_a_compression_that_is_not_known_is_named() -> None:
    tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [8]), 262: (3, [1]), 277: (3, [1])}
    error = refused(make_tiff({**tags, 259: (3, [34887])}, b"Lerc2 "))
    assert error.code == "unsupported"
    assert "LERC" in error.message


def test_subsampled_chroma_without_compression_is_whole_but_not_supported() -> None:
    tags = {256: (4, [640]), 257: (4, [480]), 258: (3, [8, 8, 8]), 259: (3, [1]), 262: (3, [6])}
    tags |= {277: (3, [3]), 530: (3, [2, 1])}
    data = make_natural(480, 640)[..., :2].tobytes()
    assert len(data) == 614_400
    for content in (make_tiff(tags, data), make_tiff(tags, data) + bytes(640 * 480)):
        error = refused(content)
        assert error.code == "unsupported"
        assert "chroma subsampled" in error.message


def test_only_a_file_that_is_too_short_is_truncated() -> None:
    content = encode(Image.fromarray(RGB), "TIFF", compression="tiff_lzw")
    page = tiff.find_picture(content)
    assert page is not None
    assert not tiff.ends_early(page.page)
    raw = write(RGB, photometric="rgb", rowsperstrip=16)
    assert refused(raw[: len(raw) - 500]).code == "truncated"


# ------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize("quality", [20, 75, 92])
@pytest.mark.parametrize("inner", ["shared tables", "whole"])
def test_quality_of_the_jpeg_inside(quality: int, inner: str) -> None:
    image = Image.fromarray(RGB)
    if inner == "shared tables":
        content = encode(image, "TIFF", compression="jpeg", quality=quality)
    else:  # as other writers do: each strip a JPEG of its own
        strip = encode(image, "JPEG", quality=quality, subsampling="4:2:0")
        tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [8, 8, 8]), 259: (3, [7])}
        tags |= {262: (3, [6]), 277: (3, [3]), 530: (3, [2, 2])}
        content = make_tiff(tags, strip)
        expected = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB"))
        np.testing.assert_array_equal(load_image(content).pixels, expected)
    facts = load_image(content).facts
    assert facts.jpeg_quality == quality
    assert facts.jpeg_subsampling == ("4:2:0" if inner == "whole" else "4:4:4")


def test_a_tiff_without_jpeg_has_no_quality() -> None:
    facts = load_image(write(RGB, photometric="rgb")).facts
    assert facts.jpeg_quality is None

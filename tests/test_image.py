"""Images in: against Pillow's own opener, hand-made files and the formulas of the standards."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin

from conftest import (
    GREY,
    HAS_AVIF,
    encode,
    encode_heif,
    make_natural,
    make_png,
    make_tiff,
    png_chunk,
)
from masksim.errors import ImageError, UsageError
from masksim.image import (
    Limits,
    LoadedImage,
    estimate_jpeg_quality,
    load_image,
    to_display,
)

Files = dict[str, tuple[Path, Any]]


def code_of(source: Any, **options: Any) -> str:
    """Return the code with which a source is refused."""
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    assert caught.value.code in ImageError.codes
    assert caught.value.message
    return caught.value.code


def stored(image: Image.Image, format_: str = "PNG", **options: Any) -> LoadedImage:
    return load_image(encode(image, format_, **options))


# ------------------------------------------------------------------------------ whole files


def test_hostile_files_are_refused_with_their_codes(hostile_files: Files) -> None:
    found = {name: code_of(path) for name, (path, _) in hostile_files.items()}
    assert found == {name: code for name, (_, code) in hostile_files.items()}


def test_hostile_bytes_are_refused_as_their_files_are(hostile_files: Files) -> None:
    for path, code in hostile_files.values():
        if path.is_file():
            assert code_of(path.read_bytes()) == code
            assert code_of(io.BytesIO(path.read_bytes())) == code


def test_messages_name_the_file(hostile_files: Files) -> None:
    for path, _ in hostile_files.values():
        with pytest.raises(ImageError) as caught:
            load_image(path)
        assert caught.value.message.startswith(f"{path}: ")


def test_odd_files_are_treated_as_documented(odd_files: Files) -> None:
    found = {name: load_image(path).facts.treatments for name, (path, _) in odd_files.items()}
    assert found == {name: treatments for name, (_, treatments) in odd_files.items()}


def test_every_loaded_image_is_what_the_type_says(odd_files: Files) -> None:
    for path, _ in odd_files.values():
        loaded = load_image(path)
        facts, pixels = loaded.facts, loaded.pixels
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.shape == (facts.height, facts.width, 3)
        content = path.read_bytes()
        assert facts.sha256 == hashlib.sha256(content).hexdigest()
        assert facts.sha256_of == "file"
        assert facts.n_bytes == len(content)
        assert facts.name == str(path)
        assert 1 <= facts.orientation <= 8


@pytest.mark.parametrize(
    ("name", "format_", "mode"),
    [
        ("jpeg", "JPEG", "RGB"),
        ("capital_suffix", "JPEG", "RGB"),
        ("wrong_suffix", "JPEG", "RGB"),
        ("grey_jpeg", "JPEG", "L"),
        ("cmyk_jpeg", "JPEG", "CMYK"),
        ("mpo", "MPO", "RGB"),
        ("one_bit_png", "PNG", "1"),
        ("grey_alpha_png", "PNG", "LA"),
        ("palette_png", "PNG", "P"),
        ("rgb_16_png", "PNG", "RGB"),
        ("gif", "GIF", "P"),
        ("webp", "WEBP", "RGB"),
        ("alpha_webp", "WEBP", "RGBA"),
        ("bmp", "BMP", "RGB"),
        ("tiff", "TIFF", "RGB"),
        ("float_tiff", "TIFF", "F"),
        ("avif", "AVIF", "RGB"),
        ("heic", "HEIF", "RGB"),
    ],
)
def test_format_and_stored_mode(odd_files: Files, name: str, format_: str, mode: str) -> None:
    if name not in odd_files:
        pytest.skip(f"no encoder for {name} here")
    facts = load_image(odd_files[name][0]).facts
    assert (facts.format, facts.mode) == (format_, mode)


@pytest.mark.parametrize(
    "name",
    [
        *("png", "colour_key_png", "rgba_png", "alpha_webp", "animated_png", "bmp", "tiff"),
        *("lossless_webp", "animated_webp", "lzw_tiff", "deflate_tiff", "pages_tiff"),
        *("rgb_16_png", "rgb_16_tiff", "turned_png", "turned_tiff", "turned_lzw_tiff"),
    ],
)
def test_lossless_files_give_back_every_value(odd_files: Files, name: str) -> None:
    pixels = make_natural(272, 304, seed=2)
    np.testing.assert_array_equal(load_image(odd_files[name][0]).pixels, pixels)


@pytest.mark.parametrize("name", ["jpeg", "progressive_jpeg", "webp", "jpeg_tiff", "avif", "mpo"])
def test_lossy_files_equal_pillow(odd_files: Files, name: str) -> None:
    if name not in odd_files:
        pytest.skip(f"no encoder for {name} here")
    with Image.open(odd_files[name][0]) as image:
        expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(load_image(odd_files[name][0]).pixels, expected)


@pytest.mark.parametrize("name", ["avif", "heic", "turned_heic"])
def test_lossy_files_are_near_the_original(odd_files: Files, name: str) -> None:
    if name not in odd_files:
        pytest.skip(f"no encoder for {name} here")
    difference = load_image(odd_files[name][0]).pixels - make_natural(272, 304, seed=2).astype(int)
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("name", ["animated_gif", "animated_png", "mpo", "pages_tiff"])
def test_frames_are_counted(odd_files: Files, name: str) -> None:
    assert load_image(odd_files[name][0]).facts.frames == 2


def test_an_animation_that_breaks_off_later_still_has_its_first_frame(odd_files: Files) -> None:
    content = odd_files["animated_gif"][0].read_bytes()
    whole, cut = load_image(content), load_image(content[: len(content) * 3 // 4])
    np.testing.assert_array_equal(cut.pixels, whole.pixels)


def test_progressive_and_baseline_agree() -> None:
    image = Image.fromarray(make_natural(64, 80))
    np.testing.assert_array_equal(
        stored(image, "JPEG", progressive=True).pixels, stored(image, "JPEG").pixels
    )


# ---------------------------------------------------------------------------------- sources


def test_all_sources_of_one_file_agree(odd_files: Files, tmp_path: Path) -> None:
    path = odd_files["jpeg"][0]
    content = path.read_bytes()
    expected = load_image(path)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        file.seek(17)  # read from the start all the same
        sources: list[Any] = [str(path), content, bytearray(content), memoryview(content)]
        sources += [io.BytesIO(content), file, raw]
        for source in sources:
            loaded = load_image(source, name=str(path))
            np.testing.assert_array_equal(loaded.pixels, expected.pixels)
            assert loaded.facts == expected.facts
        assert not file.closed
        assert not raw.closed


def test_a_stream_that_cannot_seek_is_read(odd_files: Files) -> None:
    content = odd_files["jpeg"][0].read_bytes()
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb") as file:
            file.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(out, "rb") as pipe:
        loaded = load_image(pipe)
    writer.join()
    assert loaded.facts.sha256 == hashlib.sha256(content).hexdigest()


def test_names() -> None:
    content = encode(Image.new("RGB", (4, 4)), "PNG")
    assert load_image(content).facts.name == "<bytes>"
    assert load_image(io.BytesIO(content)).facts.name == "<file>"
    assert load_image(np.zeros((2, 2), np.uint8)).facts.name == "<array>"
    assert load_image(Image.new("RGB", (4, 4))).facts.name == "<image>"
    assert load_image(content, name="upload.png").facts.name == "upload.png"


def test_a_pillow_image_is_read_and_left_as_it_was(odd_files: Files) -> None:
    for name, (path, treatments) in odd_files.items():
        if name.endswith("heic"):
            continue  # Pillow does not know it by itself
        with Image.open(path) as image:
            mode, size, frame = image.mode, image.size, image.tell()
            info = dict(image.info)
            loaded = load_image(image)
            if "tiff" not in name:  # Pillow turns those while it decodes them
                assert image.size == size
            assert (image.mode, image.tell()) == (mode, frame)
            assert info.items() <= image.info.items()
        from_file = load_image(path)
        np.testing.assert_array_equal(loaded.pixels, from_file.pixels)
        assert loaded.facts.sha256_of == "pixels"
        assert loaded.facts.sha256 == hashlib.sha256(loaded.pixels.tobytes()).hexdigest()
        assert loaded.facts.format == from_file.facts.format
        if "tiff" not in name:  # the headers of the JPEG inside are in the file alone
            assert loaded.facts.jpeg_quality == from_file.facts.jpeg_quality
        assert loaded.facts.orientation == from_file.facts.orientation
        assert len(loaded.facts.treatments) >= len(treatments) - ("16" in name)


def test_the_current_frame_of_a_pillow_image_is_taken(odd_files: Files) -> None:
    with Image.open(odd_files["animated_png"][0]) as image:
        image.seek(1)
        loaded = load_image(image)
        assert image.tell() == 1
    np.testing.assert_array_equal(loaded.pixels, make_natural(272, 304, seed=3))
    assert loaded.facts.treatments == ("one of 2 frames",)


def test_a_pillow_image_from_nowhere() -> None:
    pixels = make_natural(20, 30)
    loaded = load_image(Image.fromarray(pixels))
    np.testing.assert_array_equal(loaded.pixels, pixels)
    assert loaded.facts.format == "array"
    assert loaded.facts.n_bytes == pixels.nbytes


def test_a_broken_pillow_image_is_refused(hostile_files: Files, odd_files: Files) -> None:
    with Image.open(hostile_files["truncated_jpeg"][0]) as image:
        assert code_of(image) == "truncated"
    with Image.open(odd_files["jpeg"][0]) as closed:
        pass
    assert code_of(closed) == "unreadable"
    assert code_of(Image.new("RGB", (0, 5))) == "too_small"


@pytest.mark.parametrize("source", [None, 3, 2.5, [1, 2], {"a": 1}, object(), io.StringIO("text")])
def test_what_is_no_source_is_refused(source: Any) -> None:
    assert code_of(source) == "unsupported"


def test_a_closed_or_failing_file_is_refused() -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    assert code_of(closed) == "unreadable"

    class Failing(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("the disk is on fire")

    assert code_of(Failing()) == "unreadable"


def test_strange_paths(tmp_path: Path) -> None:
    assert code_of("a\0b.png") == "not_found"
    assert code_of(tmp_path / ("x" * 5000)) in ("unreadable", "not_found")
    assert code_of("") == "not_found"
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert code_of(loop) == "unreadable"
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert code_of(pipe) == "not_a_file"  # and nobody waits for a writer


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_forbidden_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.new("RGB", (4, 4)), "PNG"))
    path.chmod(0)
    assert code_of(path) == "unreadable"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_no_file_stays_open(odd_files: Files, hostile_files: Files) -> None:
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [load_image(path) for path, _ in odd_files.values()]
    for path, _ in hostile_files.values():
        with pytest.raises(ImageError):
            load_image(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert kept


# ----------------------------------------------------------------------------------- limits


def test_limits_of_bytes(tmp_path: Path) -> None:
    content = encode(Image.new("RGB", (32, 32)), "BMP")
    path = tmp_path / "image.bmp"
    path.write_bytes(content)
    exact, less = Limits(max_bytes=len(content)), Limits(max_bytes=len(content) - 1)
    for source in (path, content, io.BytesIO(content)):
        assert load_image(source, limits=exact).facts.n_bytes == len(content)
        assert code_of(source, limits=less) == "too_many_bytes"


def test_the_limit_of_bytes_is_kept_while_reading() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            self.given += min(size, 1000)
            return bytes(min(size, 1000))

    endless = Endless()
    assert code_of(endless, limits=Limits(max_bytes=5500)) == "too_many_bytes"
    assert endless.given == 5501


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"])
def test_limits_of_pixels(format_: str) -> None:
    image = Image.new("RGB", (80, 64), "teal")
    if format_ == "HEIF":
        content = encode_heif(image)
    elif format_ == "AVIF" and not HAS_AVIF:
        content = None
    else:
        content = encode(image, format_)
    if content is None:
        pytest.skip(f"no encoder for {format_} here")
    assert load_image(content, limits=Limits(max_pixels=80 * 64)).facts.width == 80
    assert code_of(content, limits=Limits(max_pixels=80 * 64 - 1)) == "too_many_pixels"


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}])
def test_the_canvas_of_webp_is_known_before_its_decoder_starts(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encode(Image.new("RGB", (80, 64)), "WEBP", **options)
    with_alpha = encode(Image.new("RGBA", (80, 64), (1, 2, 3, 4)), "WEBP", **options)
    factory = Image.OPEN["WEBP"]

    def refuse(*_: Any) -> None:
        raise AssertionError("the decoder was started")

    monkeypatch.setitem(Image.OPEN, "WEBP", (refuse, factory[1]))
    for file in (content, with_alpha):
        assert code_of(file, limits=Limits(max_pixels=80 * 64 - 1)) == "too_many_pixels"


def test_limits_of_pixels_hold_for_arrays_and_pillow_images() -> None:
    less = Limits(max_pixels=11)
    assert code_of(np.zeros((3, 4), np.uint8), limits=less) == "too_many_pixels"
    assert code_of(Image.new("RGB", (4, 3)), limits=less) == "too_many_pixels"


def test_pillows_global_limit_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    image = Image.new("RGB", (80, 64), "teal")  # more than Pillow's limit, less than twice
    for format_ in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        assert stored(image, format_).facts.width == 80
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # more than twice
    for format_ in ("PNG", "JPEG", "GIF", "BMP"):
        assert stored(image, format_).facts.width == 80
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("values", [{"max_bytes": 0}, {"max_pixels": -1}])
def test_limits_that_nothing_passes_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Limits(**values)


# ------------------------------------------------------------------------------- treatments


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


# ------------------------------------------------------------------------------- orientation


def turned_file(format_: str, orientation: int) -> bytes | None:
    """An asymmetric image with an orientation in its metadata; None where it cannot be written."""
    image = Image.fromarray(make_natural(64, 96, seed=6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format_ == "HEIF":
        return encode_heif(image, exif=exif.tobytes())
    if format_ == "AVIF" and not HAS_AVIF:
        return None
    if format_ == "TIFF":
        return encode(image, "TIFF", tiffinfo={0x0112: orientation})
    options = {"lossless": True} if format_ == "WEBP" else {"quality": 95}
    return encode(image, format_, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_orientation_is_reported_and_shown_but_not_applied(format_: str, orientation: int) -> None:
    content = turned_file(format_, orientation)
    if content is None:
        pytest.skip(f"no encoder for {format_} here")
    loaded = load_image(content)
    assert loaded.facts.orientation == orientation
    assert (loaded.facts.width, loaded.facts.height) == (96, 64)
    image = Image.fromarray(make_natural(64, 96, seed=6))
    assert np.abs(loaded.pixels - np.asarray(image).astype(int)).mean() < 8

    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)  # Pillow's own turning
    shown = to_display(loaded)
    assert shown.mode == "RGB"
    assert shown.size == ((96, 64) if orientation < 5 else (64, 96))
    assert np.abs(np.asarray(shown) - expected).mean() < 8


def test_display_of_lossless_pixels_is_exact() -> None:
    for orientation in range(1, 9):
        content = turned_file("PNG", orientation)
        assert content is not None
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(np.asarray(to_display(load_image(content))), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_senseless_orientation_is_none(orientation: int) -> None:
    content = turned_file("JPEG", orientation)
    assert content is not None
    assert load_image(content).facts.orientation == 1


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x01", b"rubbish"])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damaged_metadata_do_not_spoil_the_picture(format_: str, exif: bytes) -> None:
    # Pillow warns of these, and warnings are errors here
    loaded = stored(Image.fromarray(make_natural(20, 30)), format_, exif=exif)
    assert loaded.facts.orientation == 1


# ------------------------------------------------------- metadata that stop a decoder


def png_with(chunk: bytes, *, late: bool) -> tuple[bytes, NDArray[np.uint8]]:
    pixels = make_natural(40, 60)
    content = encode(Image.fromarray(pixels), "PNG")
    at = content.index(b"IEND" if late else b"IDAT") - 4
    return content[:at] + chunk + content[at:], pixels


LONG = zlib.compress(b"w" * (1 << 20) + b"x")
CHUNKS = {
    "a long text": png_chunk(b"zTXt", b"workflow\0\0" + LONG),
    "a long international text": png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "a long profile": png_chunk(b"iCCP", b"x\0\0" + LONG),
    "70 MiB of texts": png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20))) * 70,
    "an unknown packing": png_chunk(b"zTXt", b"w\0\7abc"),
    "a wrong checksum": b"\0\0\0\4tEXta\0bc....",
    **{
        f"a short {kind.decode()}": png_chunk(kind, b"\0")
        for kind in (b"gAMA", b"pHYs", b"cHRM", b"tRNS", b"acTL", b"fcTL", b"iCCP", b"sRGB")
    },
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_is_read_whatever_its_metadata(name: str, late: bool) -> None:
    content, pixels = png_with(CHUNKS[name], late=late)
    loaded = load_image(content)
    np.testing.assert_array_equal(loaded.pixels, pixels)
    assert loaded.facts.sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.facts.n_bytes == len(content)


def test_what_was_left_out_is_reported_and_the_rest_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(
        Image.fromarray(make_natural(40, 60)), "PNG", exif=exif, icc_profile=b"\0" * 128
    )
    at = content.index(b"IDAT") - 4
    for name in ("a long text", "a short gAMA"):  # the second leaves EXIF and profile out, too
        loaded = load_image(content[:at] + CHUNKS[name] + content[at:])
        assert loaded.facts.treatments[-1] == "metadata left out that stop the decoder"
        assert "ICC profile ignored" in loaded.facts.treatments
        assert loaded.facts.orientation == 6
        assert loaded.facts.icc_profile


def test_damaged_pixels_stay_damaged() -> None:
    content, _ = png_with(CHUNKS["a long text"], late=False)
    at = content.index(b"IDAT") + 40
    assert code_of(content[:at] + bytes(30) + content[at + 30 :]) == "unreadable"
    assert code_of(content[: len(content) // 2]) == "truncated"


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe2\0\x0fICC_PROFILE\0\1",
        b"\xff\xe2\0\x0eICC_PROFILE\0",
        b"\xff\xee\0\7Adobe",
        b"\xff\xe0\0\6JFIF",
        b"\xff\xe2\0\x0bMPF\0rubbi",
        b"\xff\xed\0\x15Photoshop 3.0\x008BIM\4",
    ],
)
def test_a_jpeg_is_read_whatever_its_metadata(segment: bytes) -> None:
    content = encode(Image.fromarray(make_natural(40, 60)), "JPEG")
    loaded = load_image(content[:2] + segment + content[2:])
    np.testing.assert_array_equal(loaded.pixels, load_image(content).pixels)


def test_a_webp_is_read_whatever_its_metadata() -> None:
    pixels = make_natural(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(
        Image.fromarray(pixels),
        "WEBP",
        lossless=True,
        exif=exif,
        xmp=b"<x/>",
        icc_profile=b"\0" * 99,
    )
    at = content.index(b"XMP ")
    broken = content[:at] + b"ZZZZ\xff\xff\xff\x00" + content[at + 8 :]
    loaded = load_image(broken)
    np.testing.assert_array_equal(loaded.pixels, pixels)
    assert loaded.facts.orientation == 6
    assert loaded.facts.icc_profile
    assert loaded.facts.treatments[-1] == "metadata left out that stop the decoder"


@pytest.mark.skipif(not HAS_AVIF, reason="no encoder for AVIF here")
def test_an_avif_is_read_whatever_its_metadata() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes(6)
    content = encode(Image.fromarray(make_natural(40, 60)), "AVIF", exif=exif)
    at = content.index(b"II*\0")
    loaded = load_image(content[:at] + b"ZZZZZZ" + content[at + 6 :])
    np.testing.assert_array_equal(loaded.pixels, load_image(content).pixels)


# ------------------------------------------------------------------------- words of refusal


def test_a_jpeg_of_12_bits_is_not_called_damaged() -> None:
    content = bytearray(encode(Image.new("RGB", (32, 32)), "JPEG"))
    content[content.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="JPEG of 12 bits is not supported") as caught:
        load_image(bytes(content))
    assert caught.value.code == "unsupported"


def test_a_jpeg_of_a_rare_process_is_not_called_damaged() -> None:
    content = bytearray(encode(Image.new("RGB", (32, 32)), "JPEG"))
    content[content.index(b"\xff\xc0") + 1] = 0xC5
    with pytest.raises(ImageError, match="SOF5 is not supported") as caught:
        load_image(bytes(content))
    assert caught.value.code == "unsupported"


def test_only_a_file_that_is_cut_off_is_called_truncated() -> None:
    image = Image.fromarray(make_natural(40, 60))
    png = encode(image, "PNG")
    at = png.index(b"IDAT")
    # All chunks are there, but the stream inside ends too early.
    short = zlib.compress(zlib.decompress(png[at + 4 : png.index(b"IEND") - 8])[:-500])
    whole = png[: at - 4] + png_chunk(b"IDAT", short) + png_chunk(b"IEND", b"")
    assert code_of(whole) == "unreadable"
    gif = encode(image.quantize(16), "GIF")
    assert code_of(gif[: len(gif) // 2] + b";") == "truncated"
    bmp = bytearray(encode(image, "BMP"))
    bmp[2:6] = bytes(4)  # many writers leave the length of the file out
    assert code_of(bytes(bmp[:-100])) == "truncated"


# ------------------------------------------------------------------------------ AVIF, HEIF


def avif_with(kind: bytes, body: bytes) -> bytes:
    """Give the primary image of an AVIF one more property, by hand."""
    content = bytearray(encode(Image.fromarray(make_natural(64, 96)), "AVIF", quality=90))
    box = struct.pack(">I", 8 + len(body)) + kind + body
    ipma = content.index(b"ipma")
    count = ipma + 4 + 4 + 4 + 2
    number = 1 + len(properties_of(bytes(content)))
    added = len(box) + 1
    content[ipma - 4 : ipma] = struct.pack(
        ">I", int.from_bytes(content[ipma - 4 : ipma], "big") + 1
    )
    content[count] += 1
    content.insert(count + 1, 0x80 | number)
    at = ipma - 4  # ipco ends where ipma begins
    content[at:at] = box
    ipco = content.index(b"ipco")
    for name, more in ((ipco, len(box)), (content.index(b"iprp"), added)):
        size = int.from_bytes(content[name - 4 : name], "big")
        content[name - 4 : name] = struct.pack(">I", size + more)
    meta = content.index(b"meta")
    size = int.from_bytes(content[meta - 4 : meta], "big")
    content[meta - 4 : meta] = struct.pack(">I", size + added)
    iloc = content.index(b"iloc")
    # One item: version 0, sizes 4 and 4, no base: the offset stands here.
    offset = iloc + 4 + 4 + 2 + 2 + 2 + 2 + 2
    where = int.from_bytes(content[offset : offset + 4], "big")
    content[offset : offset + 4] = struct.pack(">I", where + added)
    return bytes(content)


def properties_of(content: bytes) -> list[bytes]:
    at = content.index(b"ipco")
    end = at - 4 + int.from_bytes(content[at - 4 : at], "big")
    at += 4
    found = []
    while at < end:
        found.append(content[at + 4 : at + 8])
        at += int.from_bytes(content[at : at + 4], "big")
    return found


@pytest.mark.skipif(not HAS_AVIF, reason="no encoder for AVIF here")
@pytest.mark.parametrize(("width", "told"), [(48, True), (96, False)])
def test_a_crop_of_avif_is_reported(width: int, told: bool) -> None:
    body = struct.pack(">8i", width, 1, 64, 1, 0, 1, 0, 1)
    loaded = load_image(avif_with(b"clap", body))
    assert loaded.pixels.shape == (64, 96, 3)
    assert loaded.facts.treatments == (("crop of the display not applied",) if told else ())


@pytest.mark.parametrize(
    ("cut", "told"), [((0, 0, 5, 3), False), ((8, 0, 0, 0), True), ((0, 0, 64, 0), True)]
)
def test_a_crop_of_heif_is_reported_but_not_an_encoder_s_filling(
    cut: tuple[int, ...], told: bool
) -> None:
    from types import SimpleNamespace

    from masksim.image import _crops

    inner = SimpleNamespace(transformations=(("irot", 90), ("clap", *cut, 96, 64)))
    image = SimpleNamespace(_heif_file=[SimpleNamespace(_c_image=inner)], tell=lambda: 0)
    expected = ["crop of the display applied by the decoder"] if told else []
    assert _crops(image, b"", "HEIF") == expected


@pytest.mark.skipif(not HAS_AVIF, reason="no encoder for AVIF here")
def test_deep_avif_is_reported() -> None:
    from masksim.containers import iso_facts

    content = bytearray(encode(Image.new("RGB", (64, 64)), "AVIF"))
    assert iso_facts(bytes(content)).bits == 8
    at = content.index(b"av1C") + 6
    for flags, bits in ((0x40, 10), (0x60, 12)):
        content[at] = content[at] & 0x1F | flags
        assert iso_facts(bytes(content)).bits == bits


@pytest.mark.skipif(not HAS_AVIF, reason="no encoder for AVIF here")
def test_an_avif_that_breaks_a_rule_is_not_called_damaged() -> None:
    content = encode(Image.new("RGB", (64, 64)), "AVIF").replace(b"ispe", b"ispX")
    with pytest.raises(ImageError, match="breaks a rule of AVIF") as caught:
        load_image(content)
    assert caught.value.code == "unsupported"


# -------------------------------------------------------------------------------- JPEG facts


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


# ------------------------------------------------------------------------------------ arrays


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


# ----------------------------------------------------------------------- threads and warnings


def test_threads_agree_and_leave_no_trace(odd_files: Files) -> None:
    filters = list(warnings.filters)
    paths = [path for path, _ in odd_files.values()]
    expected = [load_image(path).facts for path in paths]
    results: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        results[number] = [load_image(path).facts for path in paths]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] for number in range(4)] == [expected] * 4
    assert warnings.filters == filters


def test_only_pillows_warnings_are_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    from masksim.image import quiet_pillow

    with quiet_pillow():
        with quiet_pillow(), pytest.warns(UserWarning, match="of ours"):
            warnings.warn("of ours", stacklevel=1)
        warnings.warn_explicit("of Pillow", UserWarning, "x.py", 1, module="PIL.TiffImagePlugin")
    with pytest.warns(UserWarning, match="of Pillow"):
        warnings.warn_explicit("of Pillow", UserWarning, "x.py", 1, module="PIL.TiffImagePlugin")


# ------------------------------------------------------------------------------------- fuzz


def seeds() -> list[bytes]:
    image = Image.fromarray(make_natural(24, 32))
    files = [
        encode(image, "JPEG"),
        encode(image, "JPEG", progressive=True),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image, "MPO", save_all=True, append_images=[image]),
        encode(image, "PNG"),
        encode(image.quantize(16), "PNG", transparency=b"\0\1\2"),
        encode(image, "PNG", save_all=True, append_images=[image.rotate(90)]),
        encode(image.quantize(16), "GIF", save_all=True, append_images=[image.quantize(8)]),
        encode(image, "WEBP"),
        encode(image, "WEBP", lossless=True, save_all=True, append_images=[image.rotate(90)]),
        encode(image, "BMP"),
        encode(image.convert("1"), "BMP"),
        encode(image, "TIFF"),
        encode(image, "TIFF", compression="tiff_lzw"),
        encode(image, "TIFF", compression="jpeg"),
        encode(image.convert("L"), "TIFF", compression="packbits", tiffinfo={0x0112: 6}),
        encode(image.convert("I"), "TIFF"),
        encode(image.convert("F"), "TIFF"),
    ]
    if HAS_AVIF:
        files.append(encode(image, "AVIF"))
    if heic := encode_heif(image):
        files.append(heic)
    return files


SEEDS = seeds()
CAREFUL = Limits(max_bytes=1 << 20, max_pixels=1 << 20)


def either_or(content: bytes) -> None:
    """Load: an image or a typed error, and nothing else."""
    try:
        loaded = load_image(content, limits=CAREFUL)
    except ImageError as error:
        if error.code not in ImageError.codes:
            raise
    else:
        assert loaded.pixels.shape == (loaded.facts.height, loaded.facts.width, 3)
        assert loaded.pixels.size <= 3 * CAREFUL.max_pixels


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    seed=st.sampled_from(SEEDS),
    # Damage most often near the start, where the structure stands.
    changes=st.lists(
        st.tuples(st.one_of(st.integers(0, 255), st.integers(0, 1 << 16)), st.integers(0, 255)),
        max_size=12,
    ),
    end=st.one_of(st.none(), st.integers(0, 1 << 12)),
    tail=st.binary(max_size=8),
)
def test_any_damage_gives_an_image_or_an_image_error(
    seed: bytes, changes: list[tuple[int, int]], end: int | None, tail: bytes
) -> None:
    content = bytearray(seed)
    for at, value in changes:
        content[at % len(content)] = value
    either_or(bytes(content[:end]) + tail)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    start=st.sampled_from(
        [
            *(b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"),
            *(b"II*\0", b"MM\0*", b"II+\0", b"RIFF\x20\0\0\0WEBP"),
            *(b"\0\0\0\x18ftypavif", b"\0\0\0\x18ftypheic"),
        ]
    ),
    rest=st.binary(max_size=200),
)
def test_any_bytes_give_an_image_or_an_image_error(start: bytes, rest: bytes) -> None:
    either_or(start + rest)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    width=st.integers(0, 2**31 - 1), height=st.integers(0, 2**31 - 1), depth=st.sampled_from([1, 8])
)
def test_any_declared_size_is_answered_at_once(width: int, height: int, depth: int) -> None:
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 62, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, 0, 0, 0, 0, 0, 0)
    )
    either_or(bmp)
    either_or(make_png(np.zeros((1, 1, 3), np.uint8), size=(width, height)))


def test_the_fixture_of_natural_images(natural_image: Callable[..., NDArray[np.uint8]]) -> None:
    image = natural_image(64, 96, 3)
    assert image.shape == (64, 96, 3)
    np.testing.assert_array_equal(image, natural_image(64, 96, 3))
    assert not np.array_equal(image, natural_image(64, 96, 4))
    assert image.std() > 10


# --- a part of an image ------------------------------------------------------------------------


def middle(height: int, width: int) -> tuple[int, int, int, int]:
    return height // 4, width // 3, max(1, height // 2), max(1, width // 2)


def test_a_part_is_cut_from_the_whole(odd_files: Files) -> None:
    for path, _ in odd_files.values():
        whole, part = load_image(path), load_image(path, part=middle)
        y, x, height, width = middle(*whole.pixels.shape[:2])
        assert part.corner == (y, x)
        assert part.facts == whole.facts
        assert part.pixels.flags.c_contiguous
        np.testing.assert_array_equal(
            part.pixels, whole.pixels[y : y + height, x : x + width], err_msg=str(path)
        )


@pytest.mark.parametrize("format_", ["JPEG", "TIFF", "HEIF"])
@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_a_part_of_a_turned_image(format_: str, orientation: int) -> None:
    data = turned_file(format_, orientation)
    if data is None:
        pytest.skip("cannot be written here")
    whole, part = load_image(data), load_image(data, part=middle)
    y, x, height, width = middle(*whole.pixels.shape[:2])
    np.testing.assert_array_equal(part.pixels, whole.pixels[y : y + height, x : x + width])
    assert part.facts == whole.facts


def test_images_without_a_file_stay_whole() -> None:
    pixels = np.zeros((8, 9, 3), np.uint8)
    for source in (pixels, Image.fromarray(pixels)):
        loaded = load_image(source, part=middle)
        assert loaded.pixels.shape == (8, 9, 3)
        assert loaded.corner == (0, 0)


def test_regions_of_a_kept_image(odd_files: Files) -> None:
    for path, _ in odd_files.values():
        whole = load_image(path)
        height, width = whole.pixels.shape[:2]
        for loaded in (load_image(path, part=middle, whole=True), whole):
            for y, x, h, w in ((0, 0, height, width), (height // 2, 0, 1, width // 2 or 1)):
                found = loaded.region(y, x, h, w)
                np.testing.assert_array_equal(found, whole.pixels[y : y + h, x : x + w])
                assert found.flags.c_contiguous
        assert load_image(path, part=middle, whole=True).facts == whole.facts


def test_only_what_was_kept_can_be_asked_for() -> None:
    content = encode(Image.fromarray(make_natural(40, 60)), "PNG")
    part = load_image(content, part=middle)
    y, x, height, width = middle(40, 60)
    np.testing.assert_array_equal(part.region(y, x, height, width), part.pixels)
    for outside in ((0, 0, 40, 60), (y, x, height + 1, width), (y, x, 0, 1)):
        with pytest.raises(UsageError, match="not in what was kept"):
            part.region(*outside)

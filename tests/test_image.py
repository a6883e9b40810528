"""`masksim.image`: files, streams, arrays and Pillow's images in; against Pillow's own opener."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from conftest import HAS_AVIF, encode, encode_heif, make_natural, make_png
from masksim.errors import ImageError, UsageError
from masksim.image import Limits, load_image, to_display
from reading import Files, code_of, stored


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

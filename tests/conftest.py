"""Fixtures for all tests: images that look natural, and files that are odd or hostile.

``natural_image``
    A function ``(height, width, seed=0) -> uint8 (H, W, 3)``.
``hostile_files``
    ``name -> (path, code)``: every file must be refused with this `ImageError.code`.
``odd_files``
    ``name -> (path, treatments)``: every file must be read, with exactly these treatments. All but
    ``one_pixel`` are at least 256 pixels on either side.
``planted``, ``trained``
    Photos and images of two generators whose fingerprint is known, and a detector trained on them.
``repositories``, ``banded``
    The same in whole repositories, and a small detector of the recipe ``bands`` trained on them.
``detector``, ``photo``, ``small``, ``report``
    The bundled detector, images and a filed report: in ``filed_reports.py``.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from masksim.checkpoint import DetectorFile
from masksim.data.manifest import REAL, Manifest, Row

pytest_plugins = ["filed_reports"]

HEIGHT, WIDTH = 272, 304  # of the odd files: a multiple of 16 and more than the least window
GREY = "grey repeated in three channels"

# A shell that runs the tests in the background has Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Image.init()
HAS_AVIF = "AVIF" in Image.SAVE  # Pillow 11.3 and later


def make_natural(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Soft clouds with a 1/f spectrum, correlated colours, two hard edges and sensor noise."""
    rng = np.random.default_rng(seed)
    fy = np.fft.fftfreq(height)[:, np.newaxis]
    fx = np.fft.rfftfreq(width)[np.newaxis, :]
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0 / max(height, width)
    clouds = np.stack(
        [
            np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / radius, (height, width))
            for _ in range(3)
        ],
        axis=-1,
    )
    clouds /= max(float(clouds.std()), 1e-12)
    mixed = clouds @ np.array([[0.9, 0.7, 0.6], [0.2, 0.6, 0.3], [0.1, 0.2, 0.6]])
    scene = 118.0 + 34.0 * mixed
    scene[height // 3 :, width // 4 : width // 2] += 30.0
    scene[: height // 2, 2 * width // 3 :] -= 25.0
    scene += rng.normal(scale=2.0, size=scene.shape)
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8)


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Write with Pillow to bytes."""
    buffer = io.BytesIO()
    image.copy().save(buffer, format_, **options)  # a copy: saving leaves its settings behind
    return buffer.getvalue()


def encode_heif(image: Image.Image, **options: Any) -> bytes | None:
    """Write HEIC with pillow-heif, EXIF orientation as a turn; None where it has no encoder."""
    import pillow_heif

    if not pillow_heif.libheif_info()["HEIF"]:
        return None
    buffer = io.BytesIO()
    options = {"quality": 90, **options}
    pillow_heif.encode(image.mode, image.size, image.tobytes(), buffer, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(values: NDArray[Any], *, size: tuple[int, int] | None = None) -> bytes:
    """Write a PNG by hand, because Pillow writes no 16-bit colour.

    `values` is (H, W, C) of uint8 or uint16; `size` (width, height) is a lie for the header.
    """
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(values.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    width, height = size or (width, height)
    header = struct.pack(">IIBBBBB", width, height, 8 * values.dtype.itemsize, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(raw))
        + png_chunk(b"IEND", b"")
    )


def make_tiff(
    tags: dict[int, tuple[int, list[int]]], strip: bytes, *, strips: list[int] | None = None
) -> bytes:
    """Write a little-endian TIFF by hand; `tags` is tag -> (type, values).

    Types are 3 (16 bits) and 4 (32 bits); tags 273 and 279 are added. `strips` are the lengths of
    several strips that stand in `strip` one after the other.
    """
    lengths = strips or [len(strip)]
    starts = [8 + sum(lengths[:i]) for i in range(len(lengths))]
    tags = {**tags, 273: (4, starts), 279: (4, lengths)}
    strip += b"\0" * (len(strip) % 2)
    at = 8 + len(strip)
    extra_at = at + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag in sorted(tags):
        kind, values = tags[tag]
        body = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(body) > 4:
            place = struct.pack("<I", extra_at + len(extra))
            extra += body
        else:
            place = body.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(values)) + place
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", at) + strip + ifd + extra


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep commands that are given no ``--cache`` out of the user's own."""
    monkeypatch.setenv("MASKSIM_CACHE", str(tmp_path / "user-cache"))


@pytest.fixture(scope="session")
def natural_image() -> Callable[..., NDArray[np.uint8]]:
    """``natural_image(height, width, seed=0)``: see `make_natural`."""
    return make_natural


@pytest.fixture(scope="session")
def hostile_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Files that must be refused, with the code: see the top of this file."""
    folder = tmp_path_factory.mktemp("hostile")
    image = Image.fromarray(make_natural(HEIGHT, WIDTH, seed=1))
    jpeg, png, webp = encode(image, "JPEG"), encode(image, "PNG"), encode(image, "WEBP")
    gif, bmp, tiff = encode(image, "GIF"), encode(image, "BMP"), encode(image, "TIFF")
    lzw = encode(image, "TIFF", compression="tiff_lzw")
    tiny = np.zeros((2, 2, 3), np.uint8)

    frame_header = jpeg.index(b"\xff\xc0") + 5  # height and width, 16 bits each
    data = png.index(b"IDAT")
    broken_png = (
        png[: data - 4]
        + png_chunk(b"IDAT", b"\x78\x9c" + bytes(range(7, 200)))
        + png_chunk(b"IEND", b"")
    )
    riff_start = webp.index(b"VP8 ") + 8
    files: dict[str, tuple[str, bytes, str]] = {
        "truncated_jpeg": (".jpg", jpeg[: len(jpeg) // 2], "truncated"),
        "truncated_jpeg_header": (".jpg", jpeg[:100], "truncated"),
        "truncated_jpeg_end": (".jpg", jpeg[:-40], "truncated"),
        "truncated_progressive": (
            ".jpg",
            encode(image, "JPEG", progressive=True)[:5000],
            "truncated",
        ),
        "truncated_png": (".png", png[: len(png) // 2], "truncated"),
        "truncated_png_header": (".png", png[:20], "truncated"),
        "truncated_webp": (".webp", webp[: len(webp) // 2], "truncated"),
        "truncated_gif": (".gif", gif[: len(gif) // 2], "truncated"),
        "truncated_bmp": (".bmp", bmp[: len(bmp) // 2], "truncated"),
        "truncated_tiff": (".tif", tiff[: len(tiff) // 2], "truncated"),
        "truncated_lzw_tiff": (".tif", lzw[: len(lzw) // 2], "truncated"),
        "huge_png": (".png", make_png(tiny, size=(100_000, 100_000)), "too_many_pixels"),
        "huge_jpeg": (
            ".jpg",
            jpeg[:frame_header] + b"\xff\xff\xff\xff" + jpeg[frame_header + 4 :],
            "too_many_pixels",
        ),
        "huge_gif": (".gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], "too_many_pixels"),
        "huge_bmp": (
            ".bmp",
            bmp[:18] + struct.pack("<ii", 100_000, 100_000) + bmp[26:],
            "too_many_pixels",
        ),
        "huge_webp": (
            ".webp",
            b"RIFF"
            + struct.pack("<I", 4 + 18 + len(webp) - 12)
            + b"WEBPVP8X"
            + struct.pack("<I", 10)
            + bytes(4)
            + b"\xff\xff\x00\xff\xff\x00"
            + webp[12:],
            "too_many_pixels",
        ),
        "broken_png": (".png", broken_png, "unreadable"),
        "broken_webp": (
            ".webp",
            webp[:riff_start] + b"\xaa" * 40 + webp[riff_start + 40 :],
            "unreadable",
        ),
        "zero_size_png": (".png", make_png(tiny, size=(0, 0)), "unreadable"),
        "text": (".png", b"This is a text, not a picture.\n", "not_an_image"),
        "text_with_bm": (".bmp", b"BM is how this text begins; a weak signature.", "not_an_image"),
        "random": (".jpg", np.random.default_rng(5).bytes(4096), "not_an_image"),
        "zeros": (".jpg", bytes(4096), "not_an_image"),
        "one_byte": (".png", b"\x89", "not_an_image"),
        "pdf": (".jpg", b"%PDF-1.7\n%", "unsupported"),
        "video": (".heic", b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(64), "unsupported"),
        "jpeg_xl": (".jxl", b"\xff\x0a" + bytes(64), "unsupported"),
        "raw_camera": (
            ".dng",
            make_tiff(
                {
                    **{256: (4, [4]), 257: (4, [4]), 258: (3, [8]), 259: (3, [1])},
                    **{262: (3, [1]), 277: (3, [1]), 50706: (4, [0x0401])},
                },
                bytes(16),
            ),
            "unsupported",
        ),
        "empty": (".jpg", b"", "empty_file"),
    }
    if HAS_AVIF:
        avif = encode(image, "AVIF")
        files["truncated_avif"] = (".avif", avif[: len(avif) // 2], "truncated")
    if heic := encode_heif(image):
        files["truncated_heic"] = (".heic", heic[: len(heic) // 2], "truncated")

    result: dict[str, tuple[Path, str]] = {}
    for name, (suffix, content, code) in files.items():
        path = folder / f"{name}{suffix}"
        path.write_bytes(content)
        result[name] = (path, code)
    result["missing"] = (folder / "missing.png", "not_found")
    result["under_a_file"] = (result["text"][0] / "image.png", "not_found")
    (folder / "folder.png").mkdir()
    result["folder"] = (folder / "folder.png", "not_a_file")
    return result


@pytest.fixture(scope="session")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Files that must be read, with their treatments: see the top of this file."""
    folder = tmp_path_factory.mktemp("odd")
    pixels = make_natural(HEIGHT, WIDTH, seed=2)
    image = Image.fromarray(pixels)
    other = Image.fromarray(make_natural(HEIGHT, WIDTH, seed=3))
    wide = pixels.astype(np.uint16) * 257
    alpha = Image.fromarray(np.indices((HEIGHT, WIDTH)).sum(axis=0).astype(np.uint8))
    with_alpha = image.copy()
    with_alpha.putalpha(alpha)
    palette = image.quantize(64)
    turned = Image.Exif()
    turned[0x0112] = 6
    high = "more than 8 bits reduced to the high 8"
    byte = "16 bits reduced to the high byte"
    undone = "rotation by the decoder undone"

    def animation(second: Image.Image = other) -> dict[str, Any]:
        return {"save_all": True, "append_images": [second.copy()], "duration": 100}

    files: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
        "jpeg": (".jpg", encode(image, "JPEG", quality=90), ()),
        "capital_suffix": (".JPEG", encode(image, "JPEG"), ()),
        "wrong_suffix": (".png", encode(image, "JPEG"), ()),
        "progressive_jpeg": (".jpg", encode(image, "JPEG", progressive=True), ()),
        "grey_jpeg": (".jpg", encode(image.convert("L"), "JPEG"), (GREY,)),
        "cmyk_jpeg": (".jpg", encode(image.convert("CMYK"), "JPEG"), ("CMYK converted",)),
        "turned_jpeg": (".jpg", encode(image, "JPEG", exif=turned), ()),
        "profile_jpeg": (
            ".jpg",
            encode(image, "JPEG", icc_profile=b"\0" * 128),
            ("ICC profile ignored",),
        ),
        "mpo": (".mpo", encode(image, "MPO", **animation()), ("first of 2 frames",)),
        "png": (".png", encode(image, "PNG"), ()),
        "one_pixel": (".png", encode(Image.new("RGB", (1, 1), "red"), "PNG"), ()),
        "grey_png": (".png", encode(image.convert("L"), "PNG"), (GREY,)),
        "one_bit_png": (
            ".png",
            encode(image.convert("1"), "PNG"),
            ("1 bit expanded to 0 and 255", GREY),
        ),
        "grey_alpha_png": (
            ".png",
            encode(with_alpha.convert("LA"), "PNG"),
            ("alpha dropped", GREY),
        ),
        "rgba_png": (".png", encode(with_alpha, "PNG"), ("alpha dropped",)),
        "palette_png": (".png", encode(palette, "PNG"), ("palette expanded",)),
        "palette_transparency_png": (
            ".png",
            encode(palette, "PNG", transparency=bytes(range(0, 128, 2))),
            ("palette expanded", "transparency dropped"),
        ),
        "colour_key_png": (
            ".png",
            encode(image, "PNG", transparency=(1, 2, 3)),
            ("transparency dropped",),
        ),
        "grey_16_png": (".png", make_png(wide[..., :1]), (byte, GREY)),
        "rgb_16_png": (".png", make_png(wide), (high,)),
        "turned_png": (".png", encode(image, "PNG", exif=turned), ()),
        "animated_png": (".png", encode(image, "PNG", **animation()), ("first of 2 frames",)),
        "gif": (".gif", encode(palette, "GIF"), ("palette expanded",)),
        "animated_gif": (
            ".gif",
            encode(palette, "GIF", **animation(other.quantize(64))),
            ("palette expanded", "first of 2 frames"),
        ),
        "webp": (".webp", encode(image, "WEBP"), ()),
        "lossless_webp": (".webp", encode(image, "WEBP", lossless=True), ()),
        "alpha_webp": (
            ".webp",
            encode(with_alpha, "WEBP", lossless=True, exact=True),
            ("alpha dropped",),
        ),
        "animated_webp": (
            ".webp",
            encode(image, "WEBP", lossless=True, **animation()),
            ("first of 2 frames",),
        ),
        "bmp": (".bmp", encode(image, "BMP"), ()),
        "tiff": (".tif", encode(image, "TIFF"), ()),
        "lzw_tiff": (".tiff", encode(image, "TIFF", compression="tiff_lzw"), ()),
        "deflate_tiff": (".tif", encode(image, "TIFF", compression="tiff_adobe_deflate"), ()),
        "jpeg_tiff": (".tif", encode(image, "TIFF", compression="jpeg"), ()),
        "cmyk_tiff": (".tif", encode(image.convert("CMYK"), "TIFF"), ("CMYK converted",)),
        "pages_tiff": (".tif", encode(image, "TIFF", **animation()), ("first of 2 frames",)),
        "grey_16_tiff": (".tif", encode(Image.fromarray(wide[..., 0]), "TIFF"), (byte, GREY)),
        "float_tiff": (
            ".tif",
            encode(Image.fromarray(pixels[..., 0] / np.float32(255)), "TIFF"),
            ("floats times 255, rounded", GREY),
        ),
        "turned_tiff": (".tif", encode(image, "TIFF", tiffinfo={0x0112: 6}), (undone,)),
        "turned_lzw_tiff": (
            ".tif",
            encode(image, "TIFF", tiffinfo={0x0112: 6}, compression="tiff_lzw"),
            (undone,),
        ),
        "rgb_16_tiff": (
            ".tif",
            make_tiff(
                {
                    **{256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [16, 16, 16])},
                    **{259: (3, [1]), 262: (3, [2]), 277: (3, [3])},
                },
                wide.astype("<u2").tobytes(),
            ),
            (high,),
        ),
    }
    if HAS_AVIF:
        files["avif"] = (".avif", encode(image, "AVIF", quality=95), ())
        files["turned_avif"] = (".avif", encode(image, "AVIF", exif=turned.tobytes()), ())
    if heic := encode_heif(image):
        files["heic"] = (".heic", heic, ())
        heic = encode_heif(image, exif=turned.tobytes()) or b""
        files["turned_heic"] = (".heic", heic, (undone,))

    result: dict[str, tuple[Path, tuple[str, ...]]] = {}
    for name, (suffix, content, treatments) in files.items():
        path = folder / f"{name}{suffix}"
        path.write_bytes(content)
        result[name] = (path, treatments)
    return result


# --- a data set whose truth is known, and a detector trained on it ------------------------------

PATTERNS = ("grid", "ring")


def plant(pixels: NDArray[np.uint8], pattern: str, seed: int = 0) -> NDArray[np.uint8]:
    """Add a generator's faint fingerprint: what up-sampling leaves, or coloured noise.

    ``grid`` is a pattern of period 8 / 3 along both axes, ``ring`` noise at 0.17 to 0.23 cycles
    per pixel; both have a deviation of five levels, the same in all three channels.
    """
    height, width = pixels.shape[:2]
    if pattern == "grid":
        y, x = np.mgrid[:height, :width]
        added = np.cos(2 * np.pi * 3 / 8 * y) + np.cos(2 * np.pi * 3 / 8 * x)
    else:
        noise = np.random.default_rng([seed, 1]).normal(size=(height, width))
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        band = (radius > 0.17) & (radius < 0.23)
        added = np.fft.irfft2(np.fft.rfft2(noise) * band, (height, width))
    added *= 5 / added.std()
    return np.clip(np.rint(pixels + added[..., None]), 0, 255).astype(np.uint8)


def make_planted(
    folder: Path, counts: dict[str, int], split: str, *, size: tuple[int, int], seed: int
) -> list[Row]:
    """Write images of each generator, in JPEG and PNG sources of their own; return their rows."""
    # Quality and chroma of each source; None is lossless. All classes have the same, so that
    # nothing but the fingerprint tells them apart; both histories have several sources in each.
    sources = [(96, "4:2:0"), None, (90, "4:2:0"), None, (93, "4:4:4"), (98, "4:2:0")]
    rows = []
    for number, (generator, count) in enumerate(counts.items()):
        for i in range(count):
            at = 10_000 * seed + 1000 * number + i
            pixels = make_natural(*size, seed=at)
            if generator in PATTERNS:
                pixels = plant(pixels, generator, at)
            k = i % len(sources)
            source, options = f"{split}-{generator}-{k}", sources[k]
            path = folder / split / f"{source}-{i:03d}{'.jpg' if options else '.png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            if options:
                image.save(path, quality=options[0], subsampling=options[1])
            else:
                image.save(path, compress_level=1)
            rows.append(
                Row(
                    path.relative_to(folder).as_posix(), generator, source, split,
                    width=size[1], height=size[0], format="JPEG" if options else "PNG",
                )
            )  # fmt: skip
    return rows


_Made = TypeVar("_Made")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], _Made]) -> _Made:
    """Make something that takes long once for all worker processes, in a folder of its own."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    kept = root / f"{name}.pickle"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            shutil.rmtree(root / name, ignore_errors=True)  # of one that failed to make it
            (root / name).mkdir()
            made = pickle.dumps(make(root / name))
            kept.write_bytes(made)
    found: _Made = pickle.loads(kept.read_bytes())
    return found


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Photos and images of two planted generators; ``val`` has scenes and sources of its own."""
    return made_once(tmp_path_factory, "planted", _make_planted_set)


def _make_planted_set(folder: Path) -> Manifest:
    train = {REAL: 60, "grid": 32, "ring": 32}
    rows = make_planted(folder, train, "train", size=(528, 560), seed=1)
    rows += make_planted(folder, {REAL: 24, "grid": 8, "ring": 8}, "val", size=(576, 540), seed=2)
    # A generator with too few images, which has to be left out.
    rows += make_planted(folder, {"few": 2}, "train", size=(528, 528), seed=3)
    return Manifest(tuple(rows), folder)


@dataclass(frozen=True, eq=False)
class Trained:
    """A training run: ``folder`` holds the detector, ``cache`` its features.

    ``sha256`` is the digest of the detector as it was returned.
    """

    manifest: Manifest
    config: Any
    folder: Path
    cache: Path
    sha256: str
    fit: Any
    progress: list[tuple[str, int, int]]

    @cached_property
    def file(self) -> DetectorFile:
        """The detector, as it is read from its folder."""
        return DetectorFile.load(self.folder)


def trained_once(
    factory: pytest.TempPathFactory,
    name: str,
    train: Callable[..., Any],
    manifest: Manifest,
    config: Any,
) -> Trained:
    """Train a detector once for all worker processes."""

    def make(folder: Path) -> Trained:
        detector, cache = folder / "detector", folder / "cache"
        seen: list[tuple[str, int, int]] = []
        file, fit = train(
            manifest, detector, config, cache=cache, progress=lambda *step: seen.append(step)
        )
        return Trained(manifest, config, detector, cache, file.sha256, fit, seen)

    return made_once(factory, name, make)


@pytest.fixture(scope="session")
def trained(planted: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A detector trained on ``planted``; skipped without what training needs."""
    pytest.importorskip("onnx")
    pytest.importorskip("sklearn")
    from masksim.training.shared import SharedConfig, train_shared

    config = SharedConfig.from_dict(
        {
            "name": "planted",
            "folds": 3,
            "views": {
                "views": {"*": 1},
                "region": 576,
                "final_quality": [88, 100],
                "resized": 0.0,
                "uncompressed": 0.35,
            },
            "features": {"segment": 64, "cell": 4},
        }
    )
    return trained_once(tmp_path_factory, "trained", train_shared, planted, config)


def make_repositories(
    folder: Path, counts: dict[str, tuple[int, int]], *, size: tuple[int, int], seed: int
) -> list[Row]:
    """Write repositories of small images, (how many, images in each) of each generator.

    As in `make_planted` all classes have the same qualities, chroma and lossless files.
    """
    kinds = [(96, "4:2:0"), None, (90, "4:2:0"), (93, "4:4:4")]
    rows = []
    for number, (generator, (sources, images)) in enumerate(counts.items()):
        for k in range(sources):
            options = kinds[k % len(kinds)]
            for i in range(images):
                at = 100_000 * seed + 10_000 * number + 100 * k + i
                pixels = make_natural(*size, seed=at)
                if generator in PATTERNS:
                    pixels = plant(pixels, generator, at)
                source = f"{generator}-{seed}-{k}"
                path = folder / source / f"{i:03d}{'.jpg' if options else '.png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if options:
                    Image.fromarray(pixels).save(path, quality=options[0], subsampling=options[1])
                else:
                    Image.fromarray(pixels).save(path, compress_level=1)
                rows.append(
                    Row(
                        path.relative_to(folder).as_posix(), generator, source, "train",
                        width=size[1], height=size[0], format="JPEG" if options else "PNG",
                    )
                )  # fmt: skip
    return rows


BANDED = {
    "name": "banded",
    "folds": 3,
    "smallest_class": 12,
    "smallest_sources": 3,
    "components": 8,
    "photos": 150,
    "images": 12,
    "stratum_photos": 40,
    "stratum_sources": 4,
    "joint_only": ["joint-only"],
    "heads": {"ridge": 0.5},
    "views": {
        "views": {"*": 4},
        "ways": {
            "region": 288,
            "smallest": 128,
            "ways": {"direct": 0.75, "reduced": 0.05, "messenger": 0.2},
            "ends": {"lossless": 0.2, "high": 0.35, "middle": 0.25, "low": 0.05, "webp": 0.15},
        },
    },
    "features": {
        "window": 192, "windows": 2, "smallest": 128, "region": 288, "spacing": 64,
        "segment": 32, "hops": [24, 16], "cell": 2,
        "kinds": ["cross difference", "clipped", "median"],
    },
}  # fmt: skip
"""Values of a `masksim.training.bands.BandsConfig` for small images."""


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Photos and images of two planted generators, in repositories of their own.

    One more generator has too few images for a head, one is for the joint number alone.
    """
    counts = {REAL: (12, 6), "grid": (6, 4), "ring": (6, 4), "few": (1, 2), "joint-only": (4, 3)}

    def make(folder: Path) -> Manifest:
        return Manifest(tuple(make_repositories(folder, counts, size=(304, 320), seed=5)), folder)

    return made_once(tmp_path_factory, "repositories", make)


@pytest.fixture(scope="session")
def banded(repositories: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A detector of the recipe ``bands``, trained on ``repositories``."""
    pytest.importorskip("onnx")
    pytest.importorskip("sklearn")
    from masksim.training.bands import BandsConfig, train_bands

    config = BandsConfig.from_dict(BANDED)
    return trained_once(tmp_path_factory, "banded", train_bands, repositories, config)


# ------------------------------------------------------------------- what was not installed

_ABSENT: list[str] = []


def _absent(report: Any) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "'ray'" in reason:  # a cluster's worth of packages, for one test
            return
        if any(sign in reason for sign in ("could not import", "No module named", "no Chromium")):
            _ABSENT.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _absent(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _absent(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where all that tests need is said to be installed, none is skipped for want of it."""
    if os.environ.get("MASKSIM_TESTS_COMPLETE") and _ABSENT and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if os.environ.get("MASKSIM_TESTS_COMPLETE"):
        for line in _ABSENT:
            terminalreporter.write_line(f"NOT INSTALLED {line}", red=True)

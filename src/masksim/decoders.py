"""Which decoder reads a file, how it is opened, and why it gave up.

Pillow is asked for nine formats only, with its warnings silenced and its global limits unused. What
a decoder does not know is ``unsupported``, not ``unreadable``; a file is ``truncated`` where its
container goes on past its end, or its decoder runs out of bytes.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

# Importing a plugin registers it in `Image.OPEN`; only these are ever asked (see `_decoder`).
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from masksim import containers, tiff
from masksim.errors import ImageError


@dataclass(frozen=True, eq=False)
class Opened:
    """An image opened by Pillow, and which of a TIFF's pages it is, where that is known."""

    image: Any
    format_: str
    picture: tiff.Picture | None = None


def counted(number: int, millions: str, ones: str) -> str:
    """Say a number for people: ``"200 megapixels"``, ``"900 pixels"``."""
    return f"{number / 1e6:.6g} {millions}" if number >= 1_000_000 else f"{number} {ones}"


def check_size(size: tuple[int, int], max_pixels: int, label: str) -> None:
    """Refuse (width, height) without pixels (``too_small``) or with too many."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{label}: the image has no pixels ({width} x {height})", code="too_small")
    if width * height > max_pixels:
        raise ImageError(
            f"{label}: at most {counted(max_pixels, 'megapixels', 'pixels')} are accepted, "
            f"the image has {width} x {height}",
            code="too_many_pixels",
        )


# What looks like an image to a person, but has no decoder here: worth a better message.
_FOREIGN = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"mif1", b"msf1"),
}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # sizes of the known BMP information headers

_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    # In the last two the bytes of the number 42 are in the wrong order, as some writers leave them.
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0"),
}


def sniff_format(head: bytes) -> str:
    """Tell the format of an image by its first bytes.

    Parameters
    ----------
    head
        At least 32 bytes of the file, or all of it.

    Returns
    -------
    str
        As `masksim.image.ImageFacts.format`; ``""`` where it is none that is read here.
    """
    if head[4:8] == b"ftyp":  # AVIF and HEIF are told apart by the brands of the first box
        length = min(int.from_bytes(head[:4], "big"), 256)
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, length - 3, 4))}
        return "AVIF" if brands & _AVIF_BRANDS else "HEIF" if brands & _HEIF_BRANDS else ""
    for format_, signatures in _SIGNATURES.items():
        if head.startswith(signatures):
            return format_
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    # Two letters are a weak signature, with which texts may begin, too.
    is_bmp = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    return "BMP" if is_bmp else ""


def _decoder(format_: str, data: bytes, label: str) -> Callable[[Any, Any], Any]:
    """Find what decodes a format.

    `PIL.Image.open` is not used: it warns of or refuses large images by a global setting, which
    cannot be changed for one thread alone, and asks some forty formats, a few of which start
    other programs.
    """
    if format_ == "HEIF":
        from pillow_heif import HeifImageFile  # here, for few images need it

        return HeifImageFile
    factory, accept = Image.OPEN[format_]
    # A string says why a known format cannot be read (a Pillow built without WebP).
    if accept is not None and isinstance(answer := accept(data[:16]), str):
        raise ImageError(f"{label}: {answer}", code="unsupported")
    return factory


def _no_image(data: bytes, label: str) -> ImageError:
    kind = next((kind for signature, kind in _FOREIGN if data.startswith(signature)), "")
    if data[4:8] == b"ftyp" and len(data) >= 12 and not kind:
        kind = f"a media file of the kind {data[8:12].decode('latin-1')!r}"
    if kind:
        return ImageError(f"{label}: {kind} is not supported", code="unsupported")
    return ImageError(
        f"{label}: no image of a known format (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIF)",
        code="not_an_image",
    )


def open_file(data: bytes, max_pixels: int, label: str) -> Opened:
    """Open an image without decoding its pixels; check its size on the way.

    Parameters
    ----------
    data
        The bytes of the file.
    max_pixels
        Largest width times height.
    label
        What to call it in messages.

    Raises
    ------
    ImageError
        It is no image, or of a kind that is not read here, or too large, or damaged.
    """
    format_ = sniff_format(data)
    if not format_:
        raise _no_image(data, label)
    factory = _decoder(format_, data, label)
    if format_ == "WEBP":  # its decoder takes memory for the whole canvas when it is opened
        check_size(_webp_canvas(data), max_pixels, label)
    picture = _tiff_picture(data, label) if format_ == "TIFF" else None
    try:
        if picture is not None and picture.number != 1:
            image = factory(io.BytesIO(tiff.starting_at(picture.page)), None)
        else:
            image = factory(io.BytesIO(data), None)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise damaged(error, data, format_, label) from error
    try:
        check_size(image.size, max_pixels, label)
    except ImageError:
        image.close()
        raise
    return Opened(image, str(image.format), picture)


def _tiff_picture(data: bytes, label: str) -> tiff.Picture | None:
    """Find the page of a TIFF that holds its picture; refuse those that hold none."""
    picture = tiff.find_picture(data)
    if picture is None:  # the decoder will say what is wrong
        return None
    if picture.camera_raw:  # what else is in it are thumbnails
        raise ImageError(f"{label}: camera raw is not supported", code="unsupported")
    if picture.page.reduced:
        raise ImageError(
            f"{label}: the TIFF holds reduced copies only, not the picture they were made from",
            code="unsupported",
        )
    return picture


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP file; (1, 1) where the header makes no sense."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(body) == 10:
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return max(width, 1), max(height, 1)
    return 1, 1


# What decoders say of files that are whole, but not of a kind they know.
_UNKNOWN = re.compile(
    r"unsupported|not (yet )?(supported|implemented|available|been built)|cannot handle"
    r"|unknown (pixel|raw) mode|unrecognized raw mode|unknown (data organization|compression)"
    r"|string index out of range",  # a TIFF's planes of more colours than the mode has letters
    re.IGNORECASE,
)
# What they say where a file is cut off, and seldom of one that is whole.
_ENDED = re.compile(r"truncated|requires a buffer of at least", re.IGNORECASE)
_DCT = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)  # the processes that Pillow's library decodes


def damaged(error: Exception, data: bytes, format_: str, label: str) -> ImageError:
    """Say why a decoder gave up: the size, an early end, a kind it does not know, or damage."""
    text = str(error)
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return ImageError(
            f"{label}: too large: {text or 'not enough memory'}", code="too_many_pixels"
        )
    picture = tiff.find_picture(data) if format_ == "TIFF" and data else None
    page = None if picture is None else picture.page
    early = tiff.ends_early(page) if format_ == "TIFF" and data else None
    if early is None:
        early = containers.ends_early(data, format_)
    if early or (early is None and _ENDED.search(text)):
        return ImageError(
            f"{label}: the {format_} file ends too early ({len(data)} bytes)", code="truncated"
        )
    if page is not None and (_UNKNOWN.search(text) or tiff.unusual(page)):
        return ImageError(
            f"{label}: TIFF of this kind is not supported: {tiff.describe(page)}",
            code="unsupported",
        )
    frame = containers.jpeg_frame(data) if format_ in ("JPEG", "MPO") else None
    if frame is not None and (frame[0] not in _DCT or frame[1] in (12, 16)):
        kind = f"of the process SOF{frame[0] & 15}" if frame[1] == 8 else f"of {frame[1]} bits"
        return ImageError(f"{label}: JPEG {kind} is not supported", code="unsupported")
    if format_ == "AVIF" and "BMFF parsing failed" in text:
        # Older writers left out what became a rule. Nothing tells that apart from damage here.
        return ImageError(
            f"{label}: the file breaks a rule of AVIF that this decoder insists on ({text}); "
            "other programs may still show it",
            code="unsupported",
        )
    if _UNKNOWN.search(text):
        return ImageError(f"{label}: {format_} of this kind: {text}", code="unsupported")
    return ImageError(f"{label}: damaged {format_} file: {text}", code="unreadable")


# ---------------------------------------------------------------------------- warnings

# Pillow warns of odd metadata. That says nothing of the pixels, and where warnings are errors it
# would refuse a good picture. `warnings.catch_warnings` is not safe with threads, so one filter,
# for these two packages only, is put in while any thread decodes.
_NOISY = r"(?:PIL|pillow_heif)\."
_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore the decoders' warnings; for threads, too."""
    global _quiet_depth
    with _quiet_lock:
        if _quiet_depth == 0:
            warnings.filterwarnings("ignore", module=_NOISY)
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                entry = ("ignore", None, Warning, re.compile(_NOISY), 0)
                with suppress(ValueError):  # gone, if someone has restored the filters meanwhile
                    cast("list[Any]", warnings.filters).remove(entry)

"""A file, bytes, a file object, a Pillow image or an array -> 8-bit RGB pixels and facts.

The detector looks at the finest traces in the pixels, so the rule here is to give the pixels **as
they are stored** and to do to them as little as possible. What had to be done stands in
`ImageFacts.treatments`.

Formats: JPEG, MPO (first picture), PNG, WebP, GIF, TIFF, BMP, AVIF and HEIF/HEIC. Of an animation
the first frame is taken; of a TIFF the first page that is not a reduced copy; of HEIF the primary
image.

==========================  =====================================================================
stored as                   treatment
==========================  =====================================================================
RGB                         none
grey (``L``)                the same value in all three channels
1 bit (``1``)               0 and 255, then as grey
alpha (``LA``, ``RGBA``)    alpha **dropped, not composited**: the colour under transparent pixels
                            is what the file stores, and a background would be our invention
premultiplied alpha         divided by alpha first, then as above
palette (``P``, ``PA``)     each index replaced by its colour; transparency dropped. A TIFF's
                            colour map without values above 255 is of 8 bits, not of 16
CMYK                        R = (255 - C)(255 - K) / 255, and so on. The inks of a JPEG are read as
                            stored inverted, Adobe's convention, as all common readers do
YCbCr                       full-range ITU-R BT.601, as in JFIF
HSV, LAB                    converted (LAB: CIE L*a*b*, D50, to sRGB)
16-bit grey (``I;16...``)   the high byte (``>> 8``), never clipped; 12-bit TIFF: ``>> 4``, as where
                            the file names a largest value below 65535 (``MaxSampleValue``); TIFF
                            with no value above 255: as they are
grey where 0 is white       inverted (TIFF)
16-bit colour               the high byte: the decoders reduce it themselves (PNG, TIFF); HEIF of
                            10 and 12 bits likewise
32-bit integers (``I``)     0..255 as they are, else 0..65535 by the high byte, else refused;
                            of a PNG always by the high byte (older Pillow reads 16-bit grey so)
32-bit floats (``F``)       0..1 times 255, else 0..255, rounded; else refused
==========================  =====================================================================

Of 32-bit values one in a thousand may lie beyond a range, as editing leaves them; they are clipped.
Metadata that stop a decoder are left out. What a decoder does not know is ``unsupported``, not
``unreadable``; a file is ``truncated`` only where its own structure goes on past its end.

**ICC profiles are ignored** (and reported): a conversion of colours recomputes every value and
with it the spectrum. **EXIF orientation is not applied** to the pixels, only reported, for a
rotation turns the spectrum; where a decoder insists on turning (HEIF, TIFF), it is turned back.
`to_display` turns a copy.

Nothing is resampled anywhere, and no damaged picture is completed: it is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

# Importing a plugin registers it in `Image.OPEN`; only these are ever asked (see `_decoders`).
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from masksim import containers, tiff
from masksim.errors import ImageError, UsageError

__all__ = [
    "ImageFacts",
    "ImageSource",
    "Limits",
    "LoadedImage",
    "estimate_jpeg_quality",
    "load_image",
    "open_undecoded",
    "quiet_pillow",
    "to_display",
    "top_rows",
]

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image "
    "| NDArray[Any]"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may cost; checked before it is decoded.

    Pillow has a limit of its own for WebP and TIFF (about 179 million pixels,
    ``2 * PIL.Image.MAX_IMAGE_PIXELS``), which a larger `max_pixels` does not lift.

    Attributes
    ----------
    max_bytes
        Largest file, in bytes; messages give it in MB, a million bytes each. By default 1,200 MB:
        6 bytes for each pixel that is allowed, as 16-bit colour without compression takes. It does
        not apply to arrays and Pillow images, which are no files.
    max_pixels
        Largest width times height; by default 200 megapixels.
    """

    max_bytes: int = 1_200_000_000
    max_pixels: int = 200_000_000

    def __post_init__(self) -> None:
        """Refuse limits that nothing could pass.

        Raises
        ------
        UsageError
            If a limit is less than 1.
        """
        for name in ("max_bytes", "max_pixels"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image besides its pixels.

    Attributes
    ----------
    name
        Path, file name, or a stand-in such as ``"<bytes>"``.
    format
        ``"JPEG"``, ``"MPO"``, ``"PNG"``, ``"WEBP"``, ``"GIF"``, ``"TIFF"``, ``"BMP"``, ``"AVIF"``,
        ``"HEIF"``, or ``"array"`` for pixels that came without a file.
    width, height
        Of the pixels as analysed, in pixels: orientation not applied.
    mode
        As stored: Pillow's mode (``"RGB"``, ``"L"``, ``"P"``, ``"CMYK"``, ``"I;16"``, ...), for
        arrays the type and channels (``"float32 RGB"``).
    frames
        Frames or pages in the file, of which one was taken; at least 1.
    n_bytes
        Of the file; where there is none, of the pixels.
    sha256
        Hexadecimal digest of what `sha256_of` says.
    sha256_of
        ``"file"``: the bytes of the file. ``"pixels"``: the analysed uint8 RGB values, row by row.
    jpeg_quality
        1..100, estimated from the luminance quantisation table; None if not a JPEG, nor a TIFF with
        a JPEG inside.
    jpeg_subsampling
        ``"4:4:4"``, ``"4:2:2"``, ``"4:2:0"``, ``"4:4:0"``, ``"4:1:1"``, ``"4:1:0"`` or, for rare
        layouts, ``"irregular"``; None where `jpeg_quality` is, or grey.
    orientation
        EXIF orientation 1..8, 1 if there is none: what `to_display` applies.
    icc_profile
        Whether the file holds a colour profile (which is ignored).
    treatments
        What was done to the stored values, in order: ``"palette expanded"``, ``"alpha dropped"``.
    """

    name: str
    format: str
    width: int
    height: int
    mode: str
    frames: int
    n_bytes: int
    sha256: str
    sha256_of: Literal["file", "pixels"]
    jpeg_quality: int | None
    jpeg_subsampling: str | None
    orientation: int
    icc_profile: bool
    treatments: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """Pixels and facts.

    Attributes
    ----------
    pixels
        uint8 (H, W, 3), R G B, 0..255, C-contiguous; taken as sRGB.
    facts
        What is known besides.
    corner
        (y, x) of the first of `pixels` in the image: (0, 0) but where a part was asked for.
    encoded
        The bytes of the file, where they were to be kept.
    first_rows
        Where a part was asked for: uint8 (h, W, 3), the first `top_rows` of the whole image.
    whole
        The decoded image, where it was asked for beside a part: see `region`.
    """

    pixels: NDArray[np.uint8]
    facts: ImageFacts
    corner: tuple[int, int] = (0, 0)
    encoded: bytes | None = field(default=None, repr=False)
    first_rows: NDArray[np.uint8] | None = None

    def top(self) -> NDArray[np.uint8] | None:
        """Give the first rows of the image over its whole width, for what counts from its corner.

        Returns
        -------
        ndarray or None
            uint8 (h, W, 3), h as `top_rows` says; None where only another part was kept.
        """
        if self.first_rows is not None:
            return self.first_rows
        if self.corner != (0, 0) or self.pixels.shape[1] != self.facts.width:
            return None
        return self.pixels[: top_rows(*self.pixels.shape[:2])]

    whole: Any = field(default=None, repr=False)

    def region(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """Give a part of the image: without a copy of all of it as an array.

        Returns
        -------
        ndarray
            uint8 (height, width, 3), as of `pixels`; C-contiguous.

        Raises
        ------
        UsageError
            The part lies beyond the image, or beyond what was kept of it.
        """
        top, left = (0, 0) if self.whole is not None else self.corner
        rows, columns = (
            (self.facts.height, self.facts.width)
            if self.whole is not None
            else self.pixels.shape[:2]
        )
        inside = top <= y and left <= x and y + height <= top + rows and x + width <= left + columns
        if not inside or height < 1 or width < 1:
            raise UsageError(
                f"a part of {width} x {height} pixels at ({x}, {y}) is not in what was kept of "
                f"{self.facts.name}"
            )
        if self.whole is not None:
            return _to_rgb(
                self.whole, self.facts.format, [], self.facts.name, (y, x, height, width)
            )
        return np.ascontiguousarray(self.pixels[y - top :, x - left :][:height, :width])


TOP_PIXELS = 1 << 19
"""Of a large image so many of the first pixels are kept besides the part that is asked for."""


def top_rows(height: int, width: int) -> int:
    """Tell how many rows have about `TOP_PIXELS` pixels: a multiple of 8, or all there are.

    Parameters
    ----------
    height, width
        Of the image, in pixels, at least 1.

    Returns
    -------
    int
        1 to `height`.
    """
    return min(height, max(8, TOP_PIXELS // width // 8 * 8))


Part: TypeAlias = Callable[[int, int], "tuple[int, int, int, int]"]
"""Height and width of an image to the (y, x, height, width) of the part that is wanted."""


def load_image(
    source: ImageSource,
    *,
    limits: Limits | None = None,
    name: str | None = None,
    part: Part | None = None,
    keep: bool = False,
    whole: bool = False,
) -> LoadedImage:
    """Decode an image to the 8-bit RGB pixels that are analysed.

    Safe to call from several threads. Pillow's settings are neither changed nor relied upon.

    Parameters
    ----------
    source
        A path; the bytes of a file; a binary file object (read from its start where it can seek,
        and left open); a Pillow image (its current frame; not changed); or an array: (H, W),
        (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 (the high byte is taken), bool, or
        floats in [0, 1] (times 255, rounded). Channels are R, G, B and an alpha that is dropped.
    limits
        Checked before decoding; ``Limits()`` when left out.
    name
        What to call the image; its path or a stand-in when left out.
    part
        Keep this part of an encoded image alone: less time and memory. The facts are those of the
        whole image. Arrays and Pillow images, whose digest is that of their pixels, stay whole.
    keep
        Keep the bytes of the file, too (`LoadedImage.encoded`), for what else they say.
    whole
        Beside a part, keep the decoded image for `LoadedImage.region`: less memory than an array of
        all pixels and the decoder's own copy at once.

    Returns
    -------
    LoadedImage
        The pixels, and the facts about the file.

    Raises
    ------
    ImageError
        Whatever is wrong with the image, with a code; nothing else is raised for any bytes.
    """
    limits = limits or Limits()
    if isinstance(source, np.ndarray):
        return _from_array(source, limits, name or "<array>")
    if isinstance(source, Image.Image):
        label = name or str(getattr(source, "filename", "") or "<image>")
        with quiet_pillow():
            opened = _Opened(source, str(source.format or "array"))
            return _from_pillow(opened, b"", limits, label)
    data, label = _read(source, limits, name)
    if not data:
        raise ImageError(f"{label}: the file is empty", code="empty_file")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(label, limits)
    with quiet_pillow():
        loaded = _from_data(data, limits, label, part, whole)
    return replace(loaded, encoded=data) if keep else loaded


@contextmanager
def open_undecoded(data: bytes) -> Iterator[Any]:
    """Open an image for what stands beside its pixels, which are not decoded.

    Parameters
    ----------
    data
        The bytes of the file.

    Yields
    ------
    PIL.Image.Image
        Not decoded; closed at the end.

    Raises
    ------
    ImageError
        It cannot be opened.
    """
    with quiet_pillow():
        opened = _open(data, Limits(max_pixels=1 << 40), "<bytes>")
        try:
            yield opened.image
        finally:
            opened.image.close()


def to_display(loaded: LoadedImage) -> Image.Image:
    """Turn the image the way a viewer shows it.

    Parameters
    ----------
    loaded
        From `load_image`.

    Returns
    -------
    PIL.Image.Image
        Mode ``RGB``, the EXIF orientation applied; sides are swapped for orientations 5..8.
    """
    turned = _orient(loaded.pixels, loaded.facts.orientation)
    return Image.fromarray(np.ascontiguousarray(turned))


def estimate_jpeg_quality(table: Sequence[int]) -> int:
    """Find the quality whose standard luminance table is nearest to a given one.

    The standard tables are those of the Independent JPEG Group's encoder (annex K of ITU-T T.81,
    scaled), which Pillow and most software use: for their files the answer is exact. For others
    (cameras, Photoshop) it is the least-squares match.

    Parameters
    ----------
    table
        64 quantisation steps in natural order (row by row, not zigzag).

    Returns
    -------
    int
        1..100.

    Raises
    ------
    ImageError
        If the table does not have 64 entries (code ``unreadable``).
    """
    steps = np.asarray(table, dtype=np.float64)
    if steps.shape != (64,):
        raise ImageError(f"a JPEG quantisation table has 64 entries, not {steps.size}")
    return 1 + int(np.argmin(((_IJG_TABLES - steps) ** 2).sum(axis=1)))


# --------------------------------------------------------------------------------- bytes in


def _read(source: Any, limits: Limits, name: str | None) -> tuple[bytes, str]:
    """Read the encoded bytes, at most one more than the limit, and say what to call them."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), name or "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        return _read_path(os.fspath(source), limits, name)
    if callable(getattr(source, "read", None)):
        found = getattr(source, "name", None)
        label = name or (found if isinstance(found, str) else "<file>")
        try:
            return _read_stream(source, limits, label), label
        except (OSError, ValueError) as error:  # ValueError: closed
            raise ImageError(f"{label}: cannot be read: {error}", code="unreadable") from error
    raise ImageError(
        "an image is a path, bytes, a binary file, a Pillow image or an array, "
        f"not {type(source).__name__}",
        code="unsupported",
    )


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters or more: no Windows drive


def _read_path(path: Any, limits: Limits, name: str | None) -> tuple[bytes, str]:
    text = os.fsdecode(path)
    address = _ADDRESS.match(text) is not None
    label = name or (text if address else str(Path(text)))
    try:
        status = os.stat(path)
        # Opening a pipe would wait for its writer, so ask first.
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{label}: is {kind}, an image file was expected", code="not_a_file")
        if status.st_size > limits.max_bytes:
            raise _too_many_bytes(label, limits, status.st_size)
        with open(path, "rb") as file:
            return _read_stream(file, limits, label), label
    except (FileNotFoundError, NotADirectoryError) as error:
        why = (
            "an address, and masksim fetches nothing: download the image, then give its file"
            if address
            else "no such file"
        )
        raise ImageError(f"{label}: {why}", code="not_found") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        code = "not_found" if isinstance(error, ValueError) else "unreadable"
        raise ImageError(f"{label}: cannot be read: {error}", code=code) from error


_CHUNK = 1 << 24  # bytes asked for at once: a reader may set aside all that it is asked for


def _read_stream(stream: Any, limits: Limits, label: str) -> bytes:
    with suppress(AttributeError, OSError):  # a pipe or socket is read from where it stands
        stream.seek(0)
    parts: list[bytes] = []
    left = limits.max_bytes + 1
    while left > 0:  # an unbuffered stream may give less than it was asked for
        part = stream.read(min(left, _CHUNK))
        if not isinstance(part, bytes):
            raise ImageError(
                f"{label}: the file object gives {type(part).__name__}; open it in binary mode",
                code="unsupported",
            )
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _too_many_bytes(label: str, limits: Limits, size: int | None = None) -> ImageError:
    found = "more" if size is None else _many(size, "MB", "bytes")
    return ImageError(
        f"{label}: at most {_many(limits.max_bytes, 'MB', 'bytes')} are accepted, the file has "
        f"{found}",
        code="too_many_bytes",
    )


def _check_size(size: tuple[int, int], limits: Limits, label: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{label}: the image has no pixels ({width} x {height})", code="too_small")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{label}: at most {_many(limits.max_pixels, 'megapixels', 'pixels')} are accepted, "
            f"the image has {width} x {height}",
            code="too_many_pixels",
        )


def _many(number: int, millions: str, ones: str) -> str:
    return f"{number / 1e6:.6g} {millions}" if number >= 1_000_000 else f"{number} {ones}"


# ------------------------------------------------------------------------------- formats

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

_Factory: TypeAlias = Callable[[Any, Any], Any]


def _decoders(data: bytes, label: str) -> list[tuple[str, _Factory]]:
    """Name the decoders whose signature the bytes carry.

    `PIL.Image.open` is not used: it warns of or refuses large images by a global setting, which
    cannot be changed for one thread alone, and asks some forty formats, a few of which start
    other programs.
    """
    prefix = data[:16]
    if prefix[4:8] == b"ftyp":
        return _iso_decoders(data, label)
    found: list[tuple[str, _Factory]] = []
    for format_ in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        factory, accept = Image.OPEN[format_]
        # A string says why a known format cannot be read (a Pillow built without WebP).
        answer = accept(prefix) if accept else True
        if isinstance(answer, str):
            raise ImageError(f"{label}: {answer}", code="unsupported")
        if answer:
            found.append((format_, factory))
    return found


def _iso_decoders(data: bytes, label: str) -> list[tuple[str, _Factory]]:
    """Tell AVIF from HEIF by the brands of the ISO container's first box."""
    length = min(int.from_bytes(data[:4], "big"), 256)
    compatible = {data[at : at + 4] for at in range(16, length - 3, 4)}
    brands = {data[8:12], *compatible}
    found: list[tuple[str, _Factory]] = []
    if brands & _AVIF_BRANDS:
        if not AvifImagePlugin.SUPPORTED:
            raise ImageError(f"{label}: this Pillow cannot read AVIF", code="unsupported")
        found.append(("AVIF", Image.OPEN["AVIF"][0]))
    elif brands & _HEIF_BRANDS:
        from pillow_heif import HeifImageFile  # here, for few images need it

        found.append(("HEIF", HeifImageFile))
    elif len(data) >= 12:
        brand = data[8:12].decode("latin-1")
        raise ImageError(
            f"{label}: a media file of the kind {brand!r}, not AVIF or HEIF", code="unsupported"
        )
    return found


def _open(data: bytes, limits: Limits, label: str) -> _Opened:
    """Open without decoding the pixels; check the size on the way."""
    decoders = _decoders(data, label)
    if not decoders:
        for signature, kind in _FOREIGN:
            if data.startswith(signature):
                raise ImageError(f"{label}: {kind} is not supported", code="unsupported")
        raise ImageError(
            f"{label}: no image of a known format (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIF)",
            code="not_an_image",
        )
    format_, factory = decoders[0]
    if format_ == "BMP" and int.from_bytes(data[14:18], "little") not in _BMP_HEADERS:
        # Two letters are a weak signature: texts may begin with "BM", too.
        raise ImageError(f"{label}: starts with BM, but is no BMP image", code="not_an_image")
    if format_ == "WEBP":  # its decoder takes memory for the whole canvas when it is opened
        _check_size(_webp_canvas(data), limits, label)
    picture = _tiff_picture(data, label) if format_ == "TIFF" else None
    try:
        if picture is not None and picture.number != 1:
            image = factory(io.BytesIO(tiff.starting_at(picture.page)), None)
        else:
            image = factory(io.BytesIO(data), None)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _damaged(error, data, format_, label) from error
    try:
        _check_size(image.size, limits, label)
    except ImageError:
        image.close()
        raise
    return _Opened(image, str(image.format), picture)


@dataclass(frozen=True, eq=False)
class _Opened:
    """An image opened by Pillow, and which of a TIFF's pages it is, where that is known."""

    image: Any
    format_: str
    picture: tiff.Picture | None = None


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
_DCT = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)  # the processes that Pillow's library decodes


def _damaged(error: Exception, data: bytes, format_: str, label: str) -> ImageError:
    """Say why a decoder gave up: the size, an early end, a kind it does not know, or damage."""
    text = str(error)
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return ImageError(
            f"{label}: too large: {text or 'not enough memory'}", code="too_many_pixels"
        )
    picture = tiff.find_picture(data) if format_ == "TIFF" and data else None
    page = None if picture is None else picture.page
    # Of a Pillow image there are no bytes to look into.
    early = "truncated" in text.lower() if not data else containers.ends_early(data, format_)
    if early or (data and format_ == "TIFF" and tiff.ends_early(page)):
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


# ---------------------------------------------------------------------------- pixels out


def _from_data(
    data: bytes, limits: Limits, label: str, part: Part | None, whole: bool
) -> LoadedImage:
    """Decode a file; where its metadata alone stop a decoder, decode it without them."""

    def decode(opened_bytes: bytes) -> LoadedImage:
        opened = _open(opened_bytes, limits, label)
        loaded = None
        try:
            loaded = _from_pillow(opened, data, limits, label, part, whole)
            return loaded
        finally:
            if loaded is None or loaded.whole is not opened.image:
                opened.image.close()

    try:
        return decode(data)
    except ImageError as error:
        if error.code not in ("unreadable", "unsupported"):
            raise
        for bare in containers.without_metadata(data):
            with suppress(ImageError):
                return _with_metadata(decode(bare.data), bare)
        raise


def _with_metadata(loaded: LoadedImage, bare: containers.Bare) -> LoadedImage:
    """Add to the facts what the metadata say that were left out for decoding."""
    facts = loaded.facts
    exif = Image.Exif()
    with suppress(Exception):  # damaged metadata do not spoil the picture
        exif.load(bare.exif)
    dropped = ("ICC profile ignored",) if bare.icc and not facts.icc_profile else ()
    return replace(
        loaded,
        facts=replace(
            facts,
            orientation=_valid_orientation(exif.get(0x0112, 1))
            if facts.orientation == 1
            else facts.orientation,
            icc_profile=facts.icc_profile or bare.icc,
            treatments=(*facts.treatments, *dropped, "metadata left out that stop the decoder"),
        ),
    )


def _from_pillow(
    opened: _Opened,
    data: bytes,
    limits: Limits,
    label: str,
    part: Part | None = None,
    whole: bool = False,
) -> LoadedImage:
    """Decode an opened image; `data` is empty when it was given as a Pillow image."""
    image, format_, mode = opened.image, opened.format_, str(opened.image.mode)
    _check_size(image.size, limits, label)
    try:
        asked = _tiff_orientation(image)
        turned = _heif_orientation(image, label)
        treatments: list[str] = []
        decoded = _load(opened, data, treatments, label)
        _check_size(decoded.size, limits, label)  # HEIF knows its size only now
        # Only where each pixel is converted by itself, and none will be turned, can a part be cut
        # before the conversion.
        width, height = decoded.size
        corner, early = (0, 0), None
        if part is not None and turned in (None, 1) and asked == 1 and decoded.mode in _TREATMENTS:
            early = part(height, width)
        first_rows = None
        if early is not None and early != (0, 0, height, width):
            above = (0, 0, top_rows(height, width), width)
            first_rows = _to_rgb(decoded, format_, [], label, above)
        pixels = _to_rgb(decoded, format_, treatments, label, early)
        kept = decoded if whole and early is not None else None
        orientation = _exif_orientation(image)
        if asked != 1 and orientation == 1:
            turned = asked  # Pillow has turned the TIFF and forgotten why
        if turned is not None:
            orientation = turned
            if turned != 1:
                pixels = _orient(pixels, {6: 8, 8: 6}.get(turned, turned))
                treatments.append("rotation by the decoder undone")
        if early is None:
            height, width = pixels.shape[:2]
            wanted = None if part is None or whole else part(height, width)
            if wanted not in (None, (0, 0, height, width)):
                first_rows = pixels[: top_rows(height, width)].copy()
                pixels, corner = _cut(pixels, wanted)
        else:
            corner = early[:2]
        treatments.extend(_crops(image, data, format_))
        icc = bool(image.info.get("icc_profile"))
        if icc:
            treatments.append("ICC profile ignored")
        frames, which = _frames(opened, bool(data))
        treatments.extend(which)
        quality, subsampling = _jpeg_facts(opened)
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _damaged(error, data, format_, label) from error
    pixels = np.ascontiguousarray(pixels)
    return LoadedImage(
        pixels,
        ImageFacts(
            name=label,
            format=format_,
            width=width,
            height=height,
            mode=mode,
            frames=frames,
            n_bytes=len(data) or pixels.nbytes,
            sha256=hashlib.sha256(data or pixels.data).hexdigest(),
            sha256_of="file" if data else "pixels",
            jpeg_quality=quality,
            jpeg_subsampling=subsampling,
            orientation=orientation,
            icc_profile=icc,
            treatments=tuple(treatments),
        ),
        corner,
        first_rows=first_rows,
        whole=kept,
    )


def _load(opened: _Opened, data: bytes, treatments: list[str], label: str) -> Any:
    """Decode the pixels, and note what the decoder does to them beyond the mode they come in."""
    image = opened.image
    tags = tiff.tags_of(image)
    if tags is not None:
        _check_tiff(tags, label)
        planes = None if opened.picture is None else tiff.read_planes(opened.picture.page)
        if planes is not None:
            image = _merged(planes, image, tags)
        elif tiff.raw_planes(tags) and tiff.bits(tags) != 8:
            raise ImageError(  # Pillow takes the bytes of a value for pixels of their own
                f"{label}: TIFF of this kind is not supported: {tiff.describe(tags)}",
                code="unsupported",
            )
        if planes is None:
            _correct_order(image)
            image.load()
            image = _corrected(image, tags, treatments)
    else:
        image.load()
    treatments.extend(_depth_treatments(image, data, tags))
    if tags is not None:
        treatments.extend(_tiff_treatments(image, tags))
    return image


def _from_array(array: NDArray[Any], limits: Limits, label: str) -> LoadedImage:
    shape = array.shape
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        raise ImageError(
            f"{label}: an array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {shape}",
            code="unsupported",
        )
    _check_size((shape[1], shape[0]), limits, label)
    treatments: list[str] = []
    values = np.asarray(array)[..., np.newaxis] if array.ndim == 2 else np.asarray(array)
    channels = values.shape[2]
    if channels == 4:
        values = values[..., :3]
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
        treatments.append("1 bit expanded to 0 and 255")
    elif values.dtype.kind == "u" and values.dtype.itemsize == 2:
        values = values >> 8
        treatments.append("16 bits reduced to the high byte")
    elif values.dtype.kind == "f":
        # written so that NaN fails, too
        if not (float(values.min()) >= 0.0 and float(values.max()) <= 1.0):
            raise ImageError(
                f"{label}: floats must lie in [0, 1], found "
                f"{float(values.min()):g} to {float(values.max()):g}",
                code="unsupported",
            )
        values = np.rint(values.astype(np.float64) * 255.0)
        treatments.append("floats times 255, rounded")
    elif values.dtype != np.uint8:
        raise ImageError(
            f"{label}: an array is uint8, uint16, bool or float in [0, 1], not {array.dtype}",
            code="unsupported",
        )
    if channels == 4:
        treatments.append("alpha dropped")
    if channels == 1:
        values = np.repeat(values, 3, axis=2)
        treatments.append("grey repeated in three channels")
    # A copy, so that later changes to the caller's array do not reach the image.
    pixels = np.array(values, dtype=np.uint8, order="C")
    return LoadedImage(
        pixels,
        ImageFacts(
            name=label,
            format="array",
            width=pixels.shape[1],
            height=pixels.shape[0],
            mode=f"{array.dtype.name} {({1: 'L', 3: 'RGB', 4: 'RGBA'})[channels]}",
            frames=1,
            n_bytes=pixels.nbytes,
            sha256=hashlib.sha256(pixels.data).hexdigest(),
            sha256_of="pixels",
            jpeg_quality=None,
            jpeg_subsampling=None,
            orientation=1,
            icc_profile=False,
            treatments=tuple(treatments),
        ),
    )


_GREY = "grey repeated in three channels"
_TREATMENTS: dict[str, tuple[str, ...]] = {
    "RGB": (),
    "L": (_GREY,),
    "1": ("1 bit expanded to 0 and 255", _GREY),
    "LA": ("alpha dropped", _GREY),
    "La": ("alpha divided out", "alpha dropped", _GREY),
    "RGBA": ("alpha dropped",),
    "RGBX": ("fourth channel dropped",),
    "RGBa": ("alpha divided out", "alpha dropped"),
    "P": ("palette expanded",),
    "PA": ("palette expanded", "alpha dropped"),
    "CMYK": ("CMYK converted",),
    "YCbCr": ("YCbCr (BT.601, full range) converted",),
    "HSV": ("HSV converted",),
    "LAB": ("LAB converted",),
}


def _cut(
    pixels: NDArray[np.uint8], part: tuple[int, int, int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    y, x, height, width = part
    # A copy: a view would keep the whole image in memory.
    return pixels[y : y + height, x : x + width].copy(), (y, x)


def _to_rgb(
    image: Any,
    format_: str,
    treatments: list[str],
    label: str,
    part: tuple[int, int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Bring a decoded image of any mode to uint8 (H, W, 3), noting what was done.

    Of the modes of `_TREATMENTS` a part alone, (y, x, height, width), is converted on request.
    """
    mode = str(image.mode)
    if mode in ("I", "F") or mode.startswith("I;16"):
        grey = _wide_grey(np.asarray(image), image, format_, treatments, label)
        treatments.append(_GREY)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if mode not in _TREATMENTS:
        raise ImageError(f"{label}: pixels of mode {mode} are not supported", code="unsupported")
    treatments.extend(_TREATMENTS[mode])
    if "transparency" in image.info:
        # A transparent index or colour: without it Pillow converts by the colours alone.
        treatments.append("transparency dropped")
        image = image.copy()
        del image.info["transparency"]
    elif mode == "P" and image.palette is not None and image.palette.mode != "RGB":
        treatments.append("transparency dropped")
    if part is not None and part != (0, 0, image.height, image.width):
        image = _region(image, part)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    if mode != "RGB":
        try:
            image = image.convert("RGB")
        except ImportError as error:  # LAB needs a Pillow built with LittleCMS
            raise ImageError(
                f"{label}: this Pillow cannot convert {mode} to RGB", code="unsupported"
            ) from error
    return _values(image)


def _region(image: Any, part: tuple[int, int, int, int]) -> Any:
    """Copy the part (y, x, height, width) of an image.

    Not by `crop`: in some versions of Pillow that obeys the global limit of pixels.
    """
    y, x, height, width = part
    region = Image.new(image.mode, (width, height))
    if image.palette is not None:
        region.palette = image.palette.copy()
        region.palette.dirty = 1
    region.paste(image, (-x, -y))
    return region


def _values(image: Any) -> NDArray[np.uint8]:
    """Copy an RGB image to an array, some rows at a time.

    Pillow gives its values as bytes of pieces, joined, and NumPy copies those: of a large image at
    once that is three copies.
    """
    width, height = image.size
    out = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _BYTES_AT_ONCE // (3 * width))
    for top in range(0, height, rows):
        out[top : top + rows] = np.asarray(_region(image, (top, 0, min(rows, height - top), width)))
    return out


_BYTES_AT_ONCE = 1 << 18


def _crop(image: Any, box: tuple[int, int, int, int]) -> Any:
    """Cut a box (left, top, right, bottom) out of a decoded image.

    `Image.crop` of Pillow before 13 obeys the global limit on pixels, which is not ours.
    """
    return image._new(image.im.crop(box))


def _wide_grey(
    values: NDArray[Any], image: Any, format_: str, treatments: list[str], label: str
) -> NDArray[np.uint8]:
    """Bring grey of 12, 16 or 32 bits to uint8 (H, W); the rules stand at the top of this file."""
    tags = tiff.tags_of(image) or (lambda _: ())
    if image.mode == "F":
        grey = _from_floats(values, treatments, label)
    else:
        if (
            image.mode == "I"
            and tiff.bits(tags) == 32
            and tiff.one(tags, tiff.SAMPLE_FORMAT, 1) == 1
        ):
            values = values.view(np.uint32)  # Pillow has signed integers only
        grey = _from_integers(values, image.mode, format_, tags, treatments, label)
    return 255 - grey if tiff.one(tags, tiff.PHOTOMETRIC, 1) == 0 else grey


_FEW = 1000  # one value of so many may lie outside the range that all others show


def _from_floats(values: NDArray[Any], treatments: list[str], label: str) -> NDArray[np.uint8]:
    """Find whether floats are 0..1 or 0..255: a few beyond, as editing leaves them, do not decide.

    Where the largest lie between 1 and 16 neither can be: brighter than white, or black.
    """
    low, high = float(values.min()), float(values.max())
    for top in (1.0, 255.0):
        outside = int(np.count_nonzero((values < 0) | (values > top)))
        if not np.isfinite([low, high]).all() or outside * _FEW > values.size:
            continue
        if top > 1 and int(np.count_nonzero(values > 16)) * _FEW <= values.size:
            continue
        treatments.append("floats times 255, rounded" if top == 1 else "floats rounded")
        if outside:
            treatments.append(f"{outside} floats outside 0..{top:g} clipped")
        # In place: these images are large.
        scaled = np.clip(values, 0, top)
        scaled *= 255 / top
        return np.rint(scaled, out=scaled).astype(np.uint8)
    raise ImageError(
        f"{label}: values of mode F must lie in 0..1 or 0..255, found {low:g} to {high:g}",
        code="unsupported",
    )


def _from_integers(
    values: NDArray[Any],
    mode: str,
    format_: str,
    tags: tiff.Tags,
    treatments: list[str],
    label: str,
) -> NDArray[np.uint8]:
    """Bring integers of 12 to 32 bits to 8, by what the file says of them and by what is there."""
    low, high = int(values.min()), int(values.max())
    bits = 12 if tiff.bits(tags) == 12 else 16
    if tiff.bits(tags) == 16 and tiff.one(tags, tiff.SAMPLE_FORMAT, 1) == 2:
        bits = 15  # signed
    if format_ == "TIFF" and mode != "I" and bits == 16:
        said = tiff.one(tags, tiff.MAX_SAMPLE, 65535)
        if 255 <= said < 65535 and high <= said:  # 10 or 12 bits in words of 16
            bits = said.bit_length()
    if format_ != "PNG" and bits in (15, 16):
        over = int(np.count_nonzero(values > 255)) if high > 255 and mode == "I" else 0
        if low >= 0 and (high <= 255 or (over and over * _FEW <= values.size)):
            if mode != "I":
                treatments.append("16 bits holding 0..255 taken as 8")
            if over:
                treatments.append(f"{over} values over 255 clipped")
            return np.minimum(values, 255).astype(np.uint8)
    if not (low >= 0 and high <= 65535):
        raise ImageError(
            f"{label}: values of mode {mode} must lie in 0..65535, found {low} to {high}",
            code="unsupported",
        )
    reduced = "byte" if bits == 16 else "8"
    treatments.append(f"{bits} bits reduced to the high {reduced}")
    return cast("NDArray[np.uint8]", (values >> (bits - 8)).astype(np.uint8))


# ------------------------------------------------------------------------------------ TIFF


def _check_tiff(tags: tiff.Tags, label: str) -> None:
    """Refuse what Pillow would read as pixels without an error, though it is none."""
    signed = tiff.one(tags, tiff.SAMPLE_FORMAT, 1) == 2 and tiff.bits(tags) == 8
    if signed or tiff.subsampled(tags):
        raise ImageError(
            f"{label}: TIFF of this kind is not supported: {tiff.describe(tags)}",
            code="unsupported",
        )
    if tiff.strips_too_short(tags):
        raise ImageError(
            f"{label}: damaged TIFF file: its strips hold fewer bytes than its pixels need",
            code="unreadable",
        )


# Of libtiff's values, which come in this machine's order, Pillow still swaps these.
_SWAPPED = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


def _correct_order(image: Any) -> None:
    """Have the values of compressed big-endian TIFFs of 16 and 32 bits read in the right order."""
    for number, tile in enumerate(image.tile):
        if tile[0] == "libtiff" and tile[3][0] in _SWAPPED:
            args = (_SWAPPED[tile[3][0]], *tile[3][1:])
            image.tile[number] = tile._replace(args=args)


_PLANES = {"L": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "RGBA": 4, "CMYK": 4}


def _merged(planes: NDArray[np.uint8], image: Any, tags: tiff.Tags) -> Any:
    """Make an image of planes that were read here, in the mode that Pillow would give it."""
    mode = image.mode
    if len(planes) < _PLANES.get(mode, 99):
        raise ValueError(f"unsupported: {len(planes)} planes of mode {mode}")
    merged = Image.merge(mode, [Image.fromarray(plane) for plane in planes[: _PLANES[mode]]])
    merged = _lab_from_planes(merged) if mode == "LAB" else merged
    if mode in ("LA", "RGBA") and tiff.one(tags, tiff.EXTRA_SAMPLES, 2) == 1:
        divided = Image.frombytes(mode[:-1] + "a", merged.size, merged.tobytes())
        return divided.convert(mode)
    return merged


def _lab_from_planes(image: Any) -> Any:
    """Shift a* and b*, which TIFF stores signed; of separate planes Pillow does not."""
    shifted = [band.point([i ^ 128 for i in range(256)]) for band in image.split()[1:]]
    return Image.merge("LAB", [image.getchannel(0), *shifted])


def _corrected(image: Any, tags: tiff.Tags, treatments: list[str]) -> Any:
    """Put right what Pillow makes of a palette or of planes, in a copy."""
    if image.mode == "LAB" and tiff.one(tags, tiff.PLANAR, 1) == 2:
        return _lab_from_planes(image)
    colours = tags(tiff.COLOUR_MAP) if image.mode == "P" else ()
    if colours and max(colours) <= 255:  # values of 8 bits, not the 16 that TIFF asks for
        treatments.append("colour map of 8 bits")
        image = image.copy()
        third = len(colours) // 3
        image.putpalette([colours[c * third + i] for i in range(third) for c in range(3)])
    return image


def _tiff_treatments(image: Any, tags: tiff.Tags) -> list[str]:
    """Name what Pillow does to the values of a TIFF without saying so."""
    colour = tiff.one(tags, tiff.PHOTOMETRIC, -1)
    found = []
    if colour == 0 and (image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")):
        found.append("grey inverted, 0 is white")
    if colour == 6 and image.mode == "RGB" and tiff.one(tags, tiff.COMPRESSION, 1) not in (6, 7):
        found.extend(_TREATMENTS["YCbCr"])
    if image.mode in ("LA", "RGBA") and tiff.one(tags, tiff.EXTRA_SAMPLES, 2) == 1:
        found.append("alpha divided out")
    return found


# ----------------------------------------------------------------------------------- facts


def _stored_bits(image: Any, data: bytes, tags: tiff.Tags | None) -> int:
    """Bits a sample that the file stores; 8 where nothing says.

    Pillow cannot tell for a PNG that was not opened here.
    """
    if data[12:16] == b"IHDR":
        return data[24]
    if tags is not None:
        return tiff.bits(tags)
    stored = image.info.get("bit_depth", 0)  # HEIF
    boxes = containers.iso_facts(data).bits if data[4:8] == b"ftyp" else 8
    return max(boxes, stored if isinstance(stored, int) else 0)


def _depth_treatments(image: Any, data: bytes, tags: tiff.Tags | None) -> list[str]:
    """Name what the decoder did to samples of more or fewer than 8 bits."""
    if image.mode in ("1", "P", "PA", "I", "F") or image.mode.startswith("I;16"):
        return []
    bits = _stored_bits(image, data, tags)
    if 1 < bits < 8:
        return [f"{bits} bits expanded to 8"]
    return ["more than 8 bits reduced to the high 8"] if bits > 8 else []


def _crops(image: Any, data: bytes, format_: str) -> list[str]:
    """Name what viewers cut off: of AVIF it is still there, of HEIF the decoder has cut it off."""
    if format_ == "AVIF" and data:
        crop = containers.iso_facts(data).crop
        return ["crop of the display not applied"] if crop not in (None, image.size) else []
    file = getattr(image, "_heif_file", None)
    if file is None:
        return []
    turns = getattr(file[image.tell()]._c_image, "transformations", ())
    # Less than a block at the right and the bottom is what an encoder had to fill up.
    crops = [cut for kind, *cut in turns if kind == "clap"]
    real = any(left or top or right >= 64 or bottom >= 64 for left, top, right, bottom, *_ in crops)
    return ["crop of the display applied by the decoder"] if real else []


def _frames(opened: _Opened, from_file: bool) -> tuple[int, list[str]]:
    """Count the frames or pages, and say which was taken."""
    picture = opened.picture
    if picture is None or picture.number == 1:
        frames = _count_frames(opened.image) if picture is None else picture.pages
        which = "first" if from_file else "one"
        return frames, [f"{which} of {frames} frames"] if frames > 1 else []
    if picture.number == 0:
        return picture.pages, ["picture of a sub-directory: the pages are reduced copies"]
    return picture.pages, [
        f"page {picture.number} of {picture.pages}: those before it are reduced copies"
    ]


def _jpeg_facts(opened: _Opened) -> tuple[int | None, str | None]:
    """Quality and chroma subsampling of a JPEG, or of the JPEG inside a TIFF, from its headers."""
    if isinstance(opened.image, JpegImagePlugin.JpegImageFile):
        return _jpeg_of(opened.image)
    headers = b"" if opened.picture is None else tiff.jpeg_headers(opened.picture.page)
    if headers:
        with suppress(Exception):  # facts, without which the picture is as good
            return _jpeg_of(JpegImagePlugin.JpegImageFile(io.BytesIO(headers)))
    return None, None


def _jpeg_of(image: JpegImagePlugin.JpegImageFile) -> tuple[int | None, str | None]:
    if not image.layer:
        return None, None
    quality = None
    table = image.quantization.get(image.layer[0][3])
    if table is not None and len(table) == 64:
        quality = estimate_jpeg_quality(table)
    if len(image.layer) < 3:
        return quality, None
    (_, h, v, _), *chroma = image.layer[:3]
    if any(c[1] < 1 or c[2] < 1 or h % c[1] or v % c[2] for c in chroma):
        return quality, "irregular"
    ratios = {(h // c[1], v // c[2]) for c in chroma}
    return quality, _SUBSAMPLING.get(ratios.pop(), "irregular") if len(ratios) == 1 else "irregular"


_SUBSAMPLING = {
    (1, 1): "4:4:4",
    (2, 1): "4:2:2",
    (2, 2): "4:2:0",
    (1, 2): "4:4:0",
    (4, 1): "4:1:1",
    (4, 2): "4:1:0",
}

# Annex K.1 of ITU-T T.81: the luminance table that quality 50 uses, in natural order.
# fmt: off
_IJG_LUMINANCE = np.array([
    16, 11, 10, 16,  24,  40,  51,  61,
    12, 12, 14, 19,  26,  58,  60,  55,
    14, 13, 16, 24,  40,  57,  69,  56,
    14, 17, 22, 29,  51,  87,  80,  62,
    18, 22, 37, 56,  68, 109, 103,  77,
    24, 35, 55, 64,  81, 104, 113,  92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103,  99,
])
# fmt: on


def _ijg_tables() -> NDArray[np.float64]:
    """Luminance tables of qualities 1..100, (100, 64), by the encoder's integer arithmetic."""
    quality = np.arange(1, 101)[:, np.newaxis]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    table: NDArray[np.float64] = np.clip((_IJG_LUMINANCE * scale + 50) // 100, 1, 255).astype(
        np.float64
    )
    return table


_IJG_TABLES = _ijg_tables()


# ---------------------------------------------------------------------------- orientation


def _exif_orientation(image: Any) -> int:
    """EXIF orientation 1..8; 1 where it is missing or makes no sense."""
    try:
        return _valid_orientation(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata do not spoil the picture
        return 1


def _valid_orientation(value: Any) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _tiff_orientation(image: Any) -> int:
    """Orientation of a TIFF before Pillow decodes it, for some versions turn it while they do."""
    return _exif_orientation(image) if isinstance(image, TiffImagePlugin.TiffImageFile) else 1


def _heif_orientation(image: Any, label: str) -> int | None:
    """EXIF orientation that equals the turns libheif makes when it decodes; None if not HEIF.

    HEIF keeps turns apart from EXIF (which is to be ignored there), and libheif always makes them.
    """
    file = getattr(image, "_heif_file", None)
    if file is None:
        return None
    turns = getattr(file[image.tell()]._c_image, "transformations", None)
    if turns is None:  # better no answer than one about turned pixels
        raise ImageError(f"{label}: HEIF needs pillow-heif 1.8 or later", code="unsupported")
    before = np.arange(6).reshape(2, 3)
    after: NDArray[Any] = before
    for kind, *numbers in turns:
        if kind == "irot":  # degrees anticlockwise
            after = np.rot90(after, numbers[0] // 90)
        elif kind == "imir":
            after = after[:, ::-1] if numbers[0] == 1 else after[::-1]
    return next(o for o in range(1, 9) if np.array_equal(_orient(before, o), after))


def _orient(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror (H, W, ...) as an EXIF orientation asks a viewer to."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _count_frames(image: Any) -> int:
    """Frames of the file; those before the damage, or 1, where the rest is damaged."""
    try:
        return max(int(getattr(image, "n_frames", 1)), 1)
    except Exception:  # the picture itself is decoded by now
        return 1


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

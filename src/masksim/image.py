"""A file, bytes, a file object, a Pillow image or an array -> 8-bit RGB pixels and facts.

The detector looks at the finest traces in the pixels, so the rule here is to give the pixels **as
they are stored** and to do to them as little as possible. What had to be done stands in
`ImageFacts.treatments`.

Formats: JPEG, MPO (first picture), PNG, WebP, GIF, TIFF, BMP, AVIF and HEIF/HEIC. Of an animation
or a file of several pages the first frame is taken; of HEIF the primary image.

==========================  =====================================================================
stored as                   treatment
==========================  =====================================================================
RGB                         none
grey (``L``)                the same value in all three channels
1 bit (``1``)               0 and 255, then as grey
alpha (``LA``, ``RGBA``)    alpha **dropped, not composited**: the colour under transparent pixels
                            is what the file stores, and a background would be our invention
premultiplied alpha         divided by alpha first (``La``, ``RGBa``), then as above
palette (``P``, ``PA``)     each index replaced by its colour; transparency dropped
CMYK                        R = (255 - C)(255 - K) / 255, and so on. The inks of a JPEG are read as
                            stored inverted, Adobe's convention, as all common readers do
YCbCr                       full-range ITU-R BT.601, as in JFIF
HSV, LAB                    converted (LAB: CIE L*a*b*, D50, to sRGB)
16-bit grey (``I;16...``)   the high byte (``>> 8``), never clipped; 12-bit TIFF: ``>> 4``
16-bit colour               the high byte: the decoders reduce it themselves (PNG, TIFF); HEIF of
                            10 and 12 bits likewise
32-bit integers (``I``)     0..255 as they are, else 0..65535 by the high byte, else refused;
                            of a PNG always by the high byte (older Pillow reads 16-bit grey so)
32-bit floats (``F``)       0..1 times 255, else 0..255, rounded; else refused
==========================  =====================================================================

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
from dataclasses import dataclass
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

from masksim.errors import ImageError, UsageError

__all__ = [
    "ImageFacts",
    "ImageSource",
    "Limits",
    "LoadedImage",
    "estimate_jpeg_quality",
    "load_image",
    "to_display",
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
        Largest encoded image, in bytes. Arrays and Pillow images are not encoded: it does not
        apply to them.
    max_pixels
        Largest width times height.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_pixels: int = 200_000_000

    def __post_init__(self) -> None:
        """Refuse limits that nothing could pass.

        Raises
        ------
        UsageError
            If a limit is less than 1.
        """
        for field in ("max_bytes", "max_pixels"):
            if (value := getattr(self, field)) < 1:
                raise UsageError(f"{field} must be at least 1, not {value}")


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
        1..100, estimated from the luminance quantisation table; None if not a JPEG.
    jpeg_subsampling
        ``"4:4:4"``, ``"4:2:2"``, ``"4:2:0"``, ``"4:4:0"``, ``"4:1:1"``, ``"4:1:0"`` or, for rare
        layouts, ``"irregular"``; None if not a JPEG, or grey.
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
    """

    pixels: NDArray[np.uint8]
    facts: ImageFacts
    corner: tuple[int, int] = (0, 0)


Part: TypeAlias = Callable[[int, int], "tuple[int, int, int, int]"]
"""Height and width of an image to the (y, x, height, width) of the part that is wanted."""


def load_image(
    source: ImageSource,
    *,
    limits: Limits | None = None,
    name: str | None = None,
    part: Part | None = None,
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
        with _quiet_pillow():
            return _from_pillow(source, b"", limits, label)
    data, label = _read(source, limits, name)
    if not data:
        raise ImageError(f"{label}: the file is empty", code="empty_file")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(label, limits)
    with _quiet_pillow():
        image = _open(data, limits, label)
        try:
            return _from_pillow(image, data, limits, label, part)
        finally:
            image.close()


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
    found = "more" if size is None else f"{size}"
    return ImageError(
        f"{label}: at most {limits.max_bytes} bytes are accepted, the file has {found}",
        code="too_many_bytes",
    )


def _check_size(size: tuple[int, int], limits: Limits, label: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{label}: the image has no pixels ({width} x {height})", code="too_small")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{label}: at most {limits.max_pixels} pixels are accepted, "
            f"the image has {width} x {height}",
            code="too_many_pixels",
        )


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
_DNG_VERSION = 50706

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


def _open(data: bytes, limits: Limits, label: str) -> Any:
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
    try:
        image = factory(io.BytesIO(data), None)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _damaged(error, data, format_, label) from error
    try:
        _check_size(image.size, limits, label)
        if _DNG_VERSION in getattr(image, "tag_v2", ()):
            # Its first picture is only a thumbnail.
            raise ImageError(f"{label}: camera raw (DNG) is not supported", code="unsupported")
    except ImageError:
        image.close()
        raise
    return image


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


def _damaged(error: Exception, data: bytes, format_: str, label: str) -> ImageError:
    """Say what kind of damage made a decoder give up."""
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        text = str(error) or "not enough memory"
        return ImageError(f"{label}: too large: {text}", code="too_many_pixels")
    cut = _CUT.get(format_)
    if (data and cut is not None and cut(data)) or "truncated" in str(error).lower():
        return ImageError(
            f"{label}: the {format_} file ends too early ({len(data)} bytes)", code="truncated"
        )
    return ImageError(f"{label}: damaged {format_} file: {error}", code="unreadable")


# Does the file end before its own structure does? Asked only once a decoder has given up.
# Slices past the end are empty, so none of these can fail.


def _jpeg_is_cut(data: bytes) -> bool:
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1 : at + 2]
        if marker == b"\xff":  # padding
            at += 1
        elif marker == b"\xda":  # image data: it ends with an end-of-image marker
            return data.find(b"\xff\xd9", at) < 0
        else:
            at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
    return at >= len(data)


def _png_is_cut(data: bytes) -> bool:
    at = 8
    while at < len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _webp_is_cut(data: bytes) -> bool:
    return len(data) < 8 or len(data) < 8 + int.from_bytes(data[4:8], "little")


def _gif_is_cut(data: bytes) -> bool:
    return not data.endswith(b";")


def _bmp_is_cut(data: bytes) -> bool:
    return len(data) < int.from_bytes(data[2:6], "little")


def _tiff_is_cut(data: bytes) -> bool:
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    if int.from_bytes(data[2:4], order) == 43:  # BigTIFF
        at, n_count, n_entry, n_next = int.from_bytes(data[8:16], order), 8, 20, 8
    else:
        at, n_count, n_entry, n_next = int.from_bytes(data[4:8], order), 2, 12, 4
    entries = int.from_bytes(data[at : at + n_count], order)
    return at + n_count + entries * n_entry + n_next > len(data)


def _iso_is_cut(data: bytes) -> bool:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:  # to the end of the file, whatever that is
            return False
        if size < 8:  # not a box
            return at + 8 > len(data)
        at += size
    return at > len(data)


_CUT: dict[str, Callable[[bytes], bool]] = {
    "JPEG": _jpeg_is_cut,
    "MPO": _jpeg_is_cut,
    "PNG": _png_is_cut,
    "WEBP": _webp_is_cut,
    "GIF": _gif_is_cut,
    "BMP": _bmp_is_cut,
    "TIFF": _tiff_is_cut,
    "AVIF": _iso_is_cut,
    "HEIF": _iso_is_cut,
}


# ---------------------------------------------------------------------------- pixels out


def _from_pillow(
    image: Any, data: bytes, limits: Limits, label: str, part: Part | None = None
) -> LoadedImage:
    """Decode an opened image; `data` is empty when it was given as a Pillow image."""
    format_, mode = str(image.format or "array"), str(image.mode)
    _check_size(image.size, limits, label)
    try:
        asked = _tiff_orientation(image)
        turned = _heif_orientation(image, label)
        image.load()
        _check_size(image.size, limits, label)  # HEIF knows its size only now
        treatments: list[str] = []
        if _reduced_by_decoder(image, data):
            treatments.append("more than 8 bits reduced to the high 8")
        # Only where each pixel is converted by itself, and none will be turned, can a part be cut
        # before the conversion.
        width, height = image.size
        corner, early = (0, 0), None
        if part is not None and turned in (None, 1) and asked == 1 and image.mode in _TREATMENTS:
            early = part(height, width)
        pixels = _to_rgb(image, format_, treatments, label, early)
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
            if part is not None:
                pixels, corner = _cut(pixels, part(height, width))
        else:
            corner = early[:2]
        icc = bool(image.info.get("icc_profile"))
        if icc:
            treatments.append("ICC profile ignored")
        frames = _count_frames(image)
        if frames > 1:
            treatments.append(f"first of {frames} frames" if data else f"one of {frames} frames")
        quality, subsampling = _jpeg_facts(image)
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
    )


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
        y, x, height, width = part
        image = image.crop((x, y, x + width, y + height))
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


def _values(image: Any) -> NDArray[np.uint8]:
    """Copy an RGB image to an array, some rows at a time.

    Pillow gives its values as bytes of pieces, joined, and NumPy copies those: of a large image at
    once that is three copies.
    """
    width, height = image.size
    out = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _BYTES_AT_ONCE // (3 * width))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        out[top : top + rows] = np.asarray(strip)
    return out


_BYTES_AT_ONCE = 1 << 18


def _wide_grey(
    values: NDArray[Any], image: Any, format_: str, treatments: list[str], label: str
) -> NDArray[np.uint8]:
    """Bring grey of 12, 16 or 32 bits to uint8 (H, W); the rules stand at the top of this file."""
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16"):
        bits = 12 if _tiff_bits(image) == 12 else 16
    elif not (low >= 0 and high <= (255 if image.mode == "F" else 65535)):  # NaN fails, too
        expected = "0..1 or 0..255" if image.mode == "F" else "0..65535"
        raise ImageError(
            f"{label}: values of mode {image.mode} must lie in {expected}, found {low} to {high}",
            code="unsupported",
        )
    elif image.mode == "F":
        scale = 255.0 if high <= 1.0 else 1.0
        treatments.append("floats times 255, rounded" if scale > 1 else "floats rounded")
        return cast("NDArray[np.uint8]", np.rint(values * scale).astype(np.uint8))
    elif high <= 255 and format_ != "PNG":
        return cast("NDArray[np.uint8]", values.astype(np.uint8))
    else:
        bits = 16
    treatments.append(f"{bits} bits reduced to the high {'byte' if bits == 16 else '8'}")
    return cast("NDArray[np.uint8]", (values >> (bits - 8)).astype(np.uint8))


def _tiff_bits(image: Any) -> int:
    """Bits a sample that a TIFF stores; 0 for other formats."""
    tags = getattr(image, "tag_v2", None)
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, 0) if tags is not None else 0
    return max(bits, default=0) if isinstance(bits, tuple) else int(bits)


def _reduced_by_decoder(image: Any, data: bytes) -> bool:
    """Whether the file stores more bits than the decoder gave.

    Pillow cannot tell for AVIF, nor for a PNG that was not opened here.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return False
    if data[12:16] == b"IHDR":
        return data[24] > 8
    stored = image.info.get("bit_depth", 0)  # HEIF
    return max(_tiff_bits(image), stored if isinstance(stored, int) else 0) > 8


def _jpeg_facts(image: Any) -> tuple[int | None, str | None]:
    """Quality and chroma subsampling of a JPEG, from its headers."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or not image.layer:
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
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata do not spoil the picture
        return 1
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
def _quiet_pillow() -> Iterator[None]:
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

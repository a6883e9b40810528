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

Up to one in a thousand 32-bit values may lie outside the range, as editing leaves them; these are
clipped. If metadata stop a decoder, the file is decoded without them. What a decoder does not know
is ``unsupported``, not ``unreadable``; a file is ``truncated`` where its own structure goes on past
its end.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from masksim import containers, tiff
from masksim.decoders import (
    Opened,
    check_size,
    counted,
    damaged,
    open_file,
    quiet_pillow,
    sniff_format,
)
from masksim.errors import ImageError, UsageError
from masksim.jpeg import estimate_jpeg_quality, jpeg_facts
from masksim.pixels import (
    TREATMENTS,
    Decoded,
    array_to_rgb,
    decode,
    orient,
    orientation_of,
    to_rgb,
)

__all__ = [
    "ImageFacts",
    "ImageSource",
    "Limits",
    "LoadedImage",
    "estimate_jpeg_quality",
    "load_image",
    "open_undecoded",
    "quiet_pillow",
    "sniff_format",
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
        (y, x) of the upper left of `pixels` in the image: (0, 0) unless a part was asked for.
    encoded
        The bytes of the file, if they were asked for.
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
    whole: Any = field(default=None, repr=False)

    def top(self) -> NDArray[np.uint8] | None:
        """Return the first rows over the whole width: some watermarks count from that corner.

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

    def region(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return a part of the image, without making an array of all of it.

        Returns
        -------
        ndarray
            uint8 (height, width, 3), as of `pixels`; C-contiguous.

        Raises
        ------
        UsageError
            The part lies beyond the image, or beyond what was kept of it.
        """
        (top, left), (rows, columns) = self.corner, self.pixels.shape[:2]
        if self.whole is not None:
            top, left, rows, columns = 0, 0, self.facts.height, self.facts.width
        inside = top <= y and left <= x and y + height <= top + rows and x + width <= left + columns
        if not inside or height < 1 or width < 1:
            raise UsageError(
                f"a part of {width} x {height} pixels at ({x}, {y}) is not in what was kept of "
                f"{self.facts.name}"
            )
        if self.whole is not None:
            box = (y, x, height, width)
            return to_rgb(self.whole, self.facts.format, [], self.facts.name, box)
        return np.ascontiguousarray(self.pixels[y - top :, x - left :][:height, :width])


TOP_PIXELS = 1 << 19
"""How many of a large image's first pixels are kept besides the part that is asked for."""


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
        Keep the bytes of the file, too (`LoadedImage.encoded`), for their metadata.
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
            opened = Opened(source, str(source.format or "array"))
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
    """Open an image without decoding it, for its size and its metadata.

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
        opened = open_file(data, 1 << 40, "<bytes>")
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
    turned = orient(loaded.pixels, loaded.facts.orientation)
    return Image.fromarray(np.ascontiguousarray(turned))


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
    found = "more" if size is None else counted(size, "MB", "bytes")
    return ImageError(
        f"{label}: at most {counted(limits.max_bytes, 'MB', 'bytes')} are accepted, the file has "
        f"{found}",
        code="too_many_bytes",
    )


# ---------------------------------------------------------------------------- pixels out


def _from_data(
    data: bytes, limits: Limits, label: str, part: Part | None, whole: bool
) -> LoadedImage:
    """Decode a file; where its metadata alone stop a decoder, decode it without them."""

    def decode(opened_bytes: bytes) -> LoadedImage:
        opened = open_file(opened_bytes, limits.max_pixels, label)
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
            orientation=facts.orientation if facts.orientation != 1 else orientation_of(exif),
            icc_profile=facts.icc_profile or bare.icc,
            treatments=(*facts.treatments, *dropped, "metadata left out that stop the decoder"),
        ),
    )


def _from_pillow(
    opened: Opened,
    data: bytes,
    limits: Limits,
    label: str,
    part: Part | None = None,
    whole: bool = False,
) -> LoadedImage:
    """Decode an opened image; `data` is empty when it was given as a Pillow image."""
    image, format_, mode = opened.image, opened.format_, str(opened.image.mode)
    check_size(image.size, limits.max_pixels, label)
    try:
        decoded = decode(opened, data, label)
        check_size(decoded.image.size, limits.max_pixels, label)  # HEIF knows its size only now
        kept = _keep(decoded, format_, label, part, whole)
        treatments = [*decoded.treatments, *_crops(image, data, format_)]
        icc = bool(image.info.get("icc_profile"))
        treatments.extend(["ICC profile ignored"] if icc else [])
        frames, which = _frames(opened, bool(data))
        quality, subsampling = _jpeg_facts(opened)
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise damaged(error, data, format_, label) from error
    found = ImageFacts(
        name=label,
        format=format_,
        width=kept.size[1],
        height=kept.size[0],
        mode=mode,
        frames=frames,
        n_bytes=len(data) or kept.pixels.nbytes,
        sha256=hashlib.sha256(data or kept.pixels.data).hexdigest(),
        sha256_of="file" if data else "pixels",
        jpeg_quality=quality,
        jpeg_subsampling=subsampling,
        orientation=decoded.orientation,
        icc_profile=icc,
        treatments=(*treatments, *which),
    )
    return LoadedImage(
        kept.pixels, found, kept.corner, first_rows=kept.first_rows, whole=kept.whole
    )


@dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of an image: see `LoadedImage`; `size` is that of the whole image, (H, W)."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    first_rows: NDArray[np.uint8] | None = None
    whole: Any = None


def _keep(decoded: Decoded, format_: str, label: str, part: Part | None, whole: bool) -> _Kept:
    """Convert a decoded image, or only the part that is wanted."""
    image, treatments = decoded.image, decoded.treatments
    height, width = image.height, image.width
    box = None
    # A part can be cut before the conversion if pixels are converted one by one, and none is moved.
    if part is not None and decoded.turned == 1 and image.mode in TREATMENTS:
        box = part(height, width)
        if box != (0, 0, height, width):
            above = (0, 0, top_rows(height, width), width)
            first_rows = to_rgb(image, format_, [], label, above)
            pixels = to_rgb(image, format_, treatments, label, box)
            return _Kept(pixels, (height, width), box[:2], first_rows, image if whole else None)
    pixels = to_rgb(image, format_, treatments, label)
    if decoded.turned != 1:
        pixels = orient(pixels, {6: 8, 8: 6}.get(decoded.turned, decoded.turned))
        treatments.append("rotation by the decoder undone")
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    if box is None and part is not None and not whole:
        box = part(height, width)
    if box is None or box == (0, 0, height, width):
        return _Kept(pixels, (height, width))
    y, x, rows, columns = box
    # Copies: a view would keep the whole image in memory.
    return _Kept(
        pixels[y : y + rows, x : x + columns].copy(),
        (height, width),
        (y, x),
        pixels[: top_rows(height, width)].copy(),
    )


def _from_array(array: NDArray[Any], limits: Limits, label: str) -> LoadedImage:
    pixels, treatments = array_to_rgb(array, limits.max_pixels, label)
    channels = {1: "L", 3: "RGB", 4: "RGBA"}[array.shape[2] if array.ndim == 3 else 1]
    return LoadedImage(
        pixels,
        ImageFacts(
            name=label,
            format="array",
            width=pixels.shape[1],
            height=pixels.shape[0],
            mode=f"{array.dtype.name} {channels}",
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


# ----------------------------------------------------------------------------------- facts


def _crops(image: Any, data: bytes, format_: str) -> list[str]:
    """Name the crop that viewers apply: it is still to do for AVIF, and done for HEIF."""
    if format_ == "AVIF" and data:
        crop = containers.iso_facts(data).crop
        return ["crop of the display not applied"] if crop not in (None, image.size) else []
    file = getattr(image, "_heif_file", None)
    if file is None:
        return []
    turns = getattr(file[image.tell()]._c_image, "transformations", ())
    # A crop of less than a block at the right and the bottom only hides what fills the block up.
    crops = [cut for kind, *cut in turns if kind == "clap"]
    real = any(left or top or right >= 64 or bottom >= 64 for left, top, right, bottom, *_ in crops)
    return ["crop of the display applied by the decoder"] if real else []


def _frames(opened: Opened, from_file: bool) -> tuple[int, list[str]]:
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


def _count_frames(image: Any) -> int:
    """Count the frames; where some are damaged, those before them, at least 1."""
    try:
        return max(int(getattr(image, "n_frames", 1)), 1)
    except Exception:  # the picture itself is decoded by now
        return 1


def _jpeg_facts(opened: Opened) -> tuple[int | None, str | None]:
    """Quality and chroma subsampling of a JPEG, or of the JPEG inside a TIFF, from its headers."""
    if isinstance(opened.image, JpegImagePlugin.JpegImageFile):
        return jpeg_facts(opened.image)
    headers = b"" if opened.picture is None else tiff.jpeg_headers(opened.picture.page)
    if headers:
        with suppress(Exception):  # the picture is as good without these facts
            return jpeg_facts(JpegImagePlugin.JpegImageFile(io.BytesIO(headers)))
    return None, None

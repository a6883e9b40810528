"""What the containers of image files say, read from their bytes alone.

Three questions: does a file end before its own structure does, what is left of it without its
metadata, and what do the boxes of AVIF and HEIF say of the picture. The decoders answer none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = [
    "Bare",
    "IsoFacts",
    "boxes",
    "ends_early",
    "iso_facts",
    "jpeg_frame",
    "jpeg_segments",
    "png_chunks",
    "webp_chunks",
    "without_metadata",
]

# -------------------------------------------------------------------------------- walking
# Slices past the end are empty, so none of these can fail.


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk of a PNG; an end may lie past that of the file."""
    at = 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk of a WebP; an end may lie past that of the file."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at, at + 8 + size + size % 2
        at += 8 + size + size % 2


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG, up to and with the first start of scan."""
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1] if at + 1 < len(data) else 0
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
        yield marker, at, end
        if marker == _SCAN:
            return
        at = end


_SCAN = 0xDA
_APP0, _APP1, _APP2, _ADOBE, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content and end of each ISO box between two offsets."""
    while at + 8 <= end:
        size, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        stop = end if size == 0 else at + size
        if stop < start:
            return
        yield kind, start, min(stop, end)
        at = stop


# ----------------------------------------------------------------------------- ends early


def _jpeg_is_cut(data: bytes) -> bool:
    last = 2
    for marker, start, end in jpeg_segments(data):
        if marker == _SCAN:  # it ends with an end-of-image marker
            return data.find(b"\xff\xd9", start) < 0
        last = end
    return last >= len(data)


def _png_is_cut(data: bytes) -> bool:
    return all(kind != b"IEND" for kind, _, _ in png_chunks(data))


def _webp_is_cut(data: bytes) -> bool:
    return len(data) < 8 or len(data) < 8 + int.from_bytes(data[4:8], "little")


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
    "AVIF": _iso_is_cut,
    "HEIF": _iso_is_cut,
}


def ends_early(data: bytes, format_: str) -> bool | None:
    """Whether a file ends before its container says that it does.

    Meant for files that a decoder has given up: some call a file truncated that has only a form
    they do not know.

    Parameters
    ----------
    data
        The file.
    format_
        As in `masksim.image.ImageFacts`.

    Returns
    -------
    bool or None
        None for GIF and BMP, whose decoders tell, and TIFF, of which `masksim.tiff` does.
    """
    return _CUT[format_](data) if format_ in _CUT and data else None


# ------------------------------------------------------------------------ without metadata


@dataclass(frozen=True, eq=False)
class Bare:
    """A file without metadata that a decoder may stumble over.

    Attributes
    ----------
    data
        The same picture.
    exif
        What stood in the file as EXIF; empty if nothing.
    icc
        Whether there was a colour profile.
    """

    data: bytes
    exif: bytes
    icc: bool


def without_metadata(data: bytes) -> Iterator[Bare]:
    """Give a file with less and less metadata, down to what the pixels need.

    Parameters
    ----------
    data
        A PNG, JPEG, WebP or AVIF; of others nothing is given.

    Yields
    ------
    Bare
        Only those that differ from the one before.
    """
    last = data
    if data.startswith(b"\x89PNG"):
        levels = _png_levels(data)
    elif data.startswith(b"\xff\xd8"):
        levels = _jpeg_levels(data)
    elif data[8:12] == b"WEBP":
        levels = _webp_levels(data)
    elif data[4:8] == b"ftyp":
        levels = _iso_levels(data)
    else:
        return
    for bare in levels:
        if bare.data != last:
            last = bare.data
            yield bare


_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}


def _png_levels(data: bytes) -> Iterator[Bare]:
    chunks = list(png_chunks(data))
    exif = next((data[start + 8 : end - 4] for kind, start, end in chunks if kind == b"eXIf"), b"")
    icc = any(kind == b"iCCP" for kind, _, _ in chunks)
    kinds = {kind for kind, _, _ in chunks}
    for kept in (kinds - _TEXTS, _CRITICAL | {b"tRNS"}, _CRITICAL):
        parts = [data[start:end] for kind, start, end in chunks if kind in kept]
        yield Bare(b"".join([data[:8], *parts]), exif, icc)


# Shorter ones than these make sense to no decoder.
_LEAST = {_APP0: 16, _ADOBE: 14}


def _jpeg_levels(data: bytes) -> Iterator[Bare]:
    segments = list(jpeg_segments(data))
    bodies = [(marker, data[start + 4 : end]) for marker, start, end in segments]
    exif = next((b for marker, b in bodies if marker == _APP1 and b.startswith(b"Exif")), b"")
    icc = any(marker == _APP2 and b.startswith(b"ICC_PROFILE") for marker, b in bodies)
    for kept in ({_APP0, _APP1, _ADOBE}, {_APP0, _ADOBE}):
        parts = [
            data[start:end]
            for marker, start, end in segments
            if not (_APP0 <= marker <= _APP15 or marker == _COMMENT)
            or (marker in kept and end - start >= _LEAST.get(marker, 0))
        ]
        rest = data[segments[-1][2] :] if segments else b""
        yield Bare(b"".join([data[:2], *parts, rest]), exif, icc)


_WEBP_PIXELS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
_WEBP_FLAGS = 0xFF ^ (0x20 | 0x08 | 0x04)  # all but profile, EXIF, XMP


def _webp_levels(data: bytes) -> Iterator[Bare]:
    parts, exif, icc = [], b"", False
    for kind, at, end in webp_chunks(data):
        if kind == b"VP8X":
            flags = bytes([data[at + 8] & _WEBP_FLAGS]) if at + 8 < len(data) else b""
            parts.append(data[at : at + 8] + flags + data[at + 9 : end])
        elif kind in _WEBP_PIXELS:
            parts.append(data[at:end])
        exif = data[at + 8 : end] if kind == b"EXIF" else exif
        icc = icc or kind == b"ICCP"
    body = b"WEBP" + b"".join(parts)
    yield Bare(b"RIFF" + len(body).to_bytes(4, "little") + body, exif, icc)


def _iso_levels(data: bytes) -> Iterator[Bare]:
    """Rename the items of EXIF and XMP, so that no decoder looks for them; nothing is moved."""
    for kind, start, end in boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, first, last in boxes(data, start + 4, end):
            if inner == b"iinf":
                items = data[first:last].replace(b"Exif", b"skip").replace(b"mime", b"skip")
                yield Bare(data[:first] + items + data[last:], b"", False)


# ------------------------------------------------------------------------------------ JPEG


def jpeg_frame(data: bytes) -> tuple[int, int] | None:
    """Give the frame marker of a JPEG and its bits a sample; None if there is no frame.

    The marker says which process made it: 0xC0 to 0xC2 are Huffman-coded DCT, 0xC3 is lossless.
    """
    for marker, start, _ in jpeg_segments(data):
        if marker in _FRAMES and start + 4 < len(data):
            return marker, data[start + 4]
    return None


# ----------------------------------------------------------------------------- AVIF, HEIF


@dataclass(frozen=True)
class IsoFacts:
    """What the boxes of AVIF or HEIF say of the primary image.

    Attributes
    ----------
    bits
        Of a sample; 8 if they do not say.
    crop
        Width and height of the part that viewers show (``clap``), None without.
    """

    bits: int = 8
    crop: tuple[int, int] | None = None


def iso_facts(data: bytes) -> IsoFacts:
    """Read the properties of the primary image of AVIF or HEIF.

    Parameters
    ----------
    data
        The file; of damaged ones as much as there is.
    """
    meta = next((box for box in boxes(data, 0, len(data)) if box[0] == b"meta"), None)
    if meta is None:
        return IsoFacts()
    inside = {kind: (start, end) for kind, start, end in boxes(data, meta[1] + 4, meta[2])}
    if b"iprp" not in inside:
        return IsoFacts()
    parts = {kind: (start, end) for kind, start, end in boxes(data, *inside[b"iprp"])}
    properties = list(boxes(data, *parts.get(b"ipco", (0, 0))))
    start, end = inside.get(b"pitm", (0, 0))
    length = 4 if data[start : start + 1] > b"\0" else 2
    primary = int.from_bytes(data[start + 4 : end][:length], "big")
    own = _associated(data[slice(*parts.get(b"ipma", (0, 0)))], primary)
    depth, crop = [8], None
    for number, (kind, start, end) in enumerate(properties, start=1):
        body = data[start:end]
        if kind == b"av1C" and len(body) > 2:  # of the tiles too, where the picture has some
            depth.append(8 + 2 * (body[2] >> 6 & 1) + 2 * (body[2] >> 5 & body[2] >> 6 & 1))
        elif kind == b"clap" and number in own and len(body) >= 16:
            wide, by, high, per = (int.from_bytes(body[i : i + 4], "big") for i in range(0, 16, 4))
            crop = (wide // max(by, 1), high // max(per, 1))
    return IsoFacts(max(depth), crop)


def _associated(table: bytes, item: int) -> set[int]:
    """Numbers, from 1, of the properties that an ``ipma`` box gives an item."""
    wide_id, wide_index = table[:1] > b"\0", bool(table[3:4] and table[3] & 1)
    at, found = 8, set()
    for _ in range(min(int.from_bytes(table[4:8], "big"), len(table))):
        length = 4 if wide_id else 2
        this = int.from_bytes(table[at : at + length], "big")
        count = table[at + length : at + length + 1]
        at += length + 1
        size = 2 if wide_index else 1
        for _ in range(count[0] if count else 0):
            index = int.from_bytes(table[at : at + size], "big") & (0x7FFF if wide_index else 0x7F)
            at += size
            if this == item:
                found.add(index)
    return found

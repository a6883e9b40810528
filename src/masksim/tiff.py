"""What the directories of a TIFF say, read from its bytes.

Pillow decodes TIFFs, but gives wrong pixels for some and takes the first page whatever it is. This
module finds the page that holds the picture, checks what the file claims about its pixels, and
reads them itself where Pillow would garble them: planes that are stored apart and not compressed.

A `Tags` function gives the values of a tag, so that the rules work on bytes (`Page`) and on a TIFF
that Pillow has opened (`tags_of`) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Page",
    "Picture",
    "Tags",
    "describe",
    "ends_early",
    "find_picture",
    "jpeg_headers",
    "raw_planes",
    "read_planes",
    "starting_at",
    "strips_too_short",
    "subsampled",
    "tags_of",
    "tiles_as_strips",
    "unusual",
]

Tags: TypeAlias = Callable[[int], "tuple[int, ...]"]
"""Number of a tag to its integer values; empty if the tag is missing or holds something else."""

KIND, OLD_KIND = 254, 255  # NewSubfileType, SubfileType
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 266, 273, 277, 278, 279
MAX_SAMPLE, PLANAR, COLOUR_MAP = 281, 284, 320
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
SUB_PAGES, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 330, 338, 339, 347
OLD_JPEG, SUBSAMPLING, DNG_VERSION = 513, 530, 50706

_CODES = {1: "B", 3: "u2", 4: "u4", 7: "B", 13: "u4", 16: "u8", 18: "u8"}  # the integer types
_MAX_VALUES = 1 << 24  # of one tag: few bytes can claim any number
_MAX_PAGES = 1 << 16
_RAW_SENSOR = (32803, 34892)  # colour filter array, linear raw


@dataclass(frozen=True, eq=False)
class Page:
    """One directory of a TIFF.

    Attributes
    ----------
    data
        The whole file.
    at
        Offset of the directory.
    order
        NumPy's sign of the byte order, ``"<"`` or ``">"``.
    big
        Whether the file is a BigTIFF.
    entries
        Tag to its NumPy type, number of values and offset of the first.
    """

    data: bytes
    at: int
    order: Literal["<", ">"]
    big: bool
    entries: dict[int, tuple[str, int, int]]

    def __call__(self, tag: int) -> tuple[int, ...]:
        """Give the values of a tag; of those past the end of the file none."""
        code, count, at = self.entries.get(tag, ("B", 0, 0))
        dtype = np.dtype(code).newbyteorder(self.order)
        if not 0 < count <= _MAX_VALUES or at + count * dtype.itemsize > len(self.data):
            return ()
        return tuple(np.frombuffer(self.data, dtype, count, at).tolist())

    @property
    def reduced(self) -> bool:
        """Whether it is a smaller version of another picture, or a mask."""
        kind, old = self(KIND), self(OLD_KIND)
        return bool(kind[0] & 5) if kind else old == (2,)

    @property
    def backward(self) -> bool:
        """Whether it is of a BigTIFF in big-endian order, which Pillow does not know."""
        return self.big and self.order == ">"

    @property
    def raw_sensor(self) -> bool:
        """Whether it holds a sensor's values, not a picture."""
        return self(PHOTOMETRIC)[:1] in {(kind,) for kind in _RAW_SENSOR}


def tags_of(image: Any) -> Tags | None:
    """Tags of a TIFF opened by Pillow; None for other images."""
    found = getattr(image, "tag_v2", None)
    if found is None:
        return None

    def values(tag: int) -> tuple[int, ...]:
        value = found.get(tag, ())
        value = value if isinstance(value, (tuple, bytes)) else (value,)
        return tuple(item for item in value if isinstance(item, int))

    return values


# ---------------------------------------------------------------------------------- pages


def _page(data: bytes, at: int, order: Literal["<", ">"], big: bool) -> tuple[Page, int] | None:
    """Read the directory at an offset, and where the next one is; None past the end of the file."""
    n_count, n_entry, n_inline, offset = (8, 20, 8, "u8") if big else (2, 12, 4, "u4")
    number = np.dtype(f"u{n_count}").newbyteorder(order)
    word = np.dtype(offset).newbyteorder(order)
    if not 0 < at <= len(data) - n_count:
        return None
    count = int(np.frombuffer(data, number, 1, at)[0])
    end = at + n_count + count * n_entry
    if end + n_inline > len(data):
        return None
    entries: dict[int, tuple[str, int, int]] = {}
    short = np.dtype("u2").newbyteorder(order)
    for entry in range(at + n_count, end, n_entry):
        tag, kind = np.frombuffer(data, short, 2, entry).tolist()
        values = int(np.frombuffer(data, word, 1, entry + 4)[0])
        if (code := _CODES.get(kind)) is not None:
            inside = entry + 4 + n_inline
            fits = values * np.dtype(code).itemsize <= n_inline
            where = inside if fits else int(np.frombuffer(data, word, 1, inside)[0])
            entries.setdefault(tag, (code, values, where))
    return Page(data, at, order, big, entries), int(np.frombuffer(data, word, 1, end)[0])


def _pages(data: bytes) -> Iterator[Page]:
    order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    at = int.from_bytes(data[8:16] if big else data[4:8], "little" if order == "<" else "big")
    seen: set[int] = set()
    while at not in seen and len(seen) < _MAX_PAGES:
        seen.add(at)
        found = _page(data, at, order, big)
        if found is None:
            return
        page, at = found
        yield page


@dataclass(frozen=True, eq=False)
class Picture:
    """Where the picture of a TIFF is.

    Attributes
    ----------
    page
        Its directory.
    number
        Of the page, from 1; 0 for a sub-directory of a page.
    pages
        In the file.
    camera_raw
        Whether the file says that it is a DNG, or the page holds a sensor's values.
    """

    page: Page
    number: int
    pages: int
    camera_raw: bool


def find_picture(data: bytes) -> Picture | None:
    """Find the page that holds the picture: the first that is neither reduced nor a mask.

    Where all pages are reduced the picture may stand in a sub-directory of one.

    Parameters
    ----------
    data
        A TIFF.

    Returns
    -------
    Picture or None
        If there is no such page, the first one, with `page.reduced` true. None if the file has no
        readable directory.
    """
    pages = list(_pages(data))
    if not pages:
        return None

    def found(page: Page, number: int) -> Picture:
        raw = page.raw_sensor or DNG_VERSION in pages[0].entries
        return Picture(page, number, len(pages), raw)

    for number, page in enumerate(pages, start=1):
        if not page.reduced:
            return found(page, number)
    for page in pages:
        for at in page(SUB_PAGES)[:_MAX_PAGES]:
            below = _page(data, at, page.order, page.big)
            if below is not None and not below[0].reduced:
                return found(below[0], 0)
    return found(pages[0], 1)


def starting_at(page: Page) -> bytes:
    """Give the file with `page` as its first directory; nothing else is changed."""
    order: Literal["little", "big"] = "little" if page.order == "<" else "big"
    at, length = (8, 8) if page.big else (4, 4)
    return page.data[:at] + page.at.to_bytes(length, order) + page.data[at + length :]


# --------------------------------------------------------------------------------- claims


def one(tags: Tags, tag: int, default: int) -> int:
    """Give the first value of a tag."""
    return next(iter(tags(tag)), default)


def bits(tags: Tags) -> int:
    """Give the largest number of bits of a sample."""
    return max(tags(BITS), default=1)


def tiles_as_strips(tags: Tags) -> bool:
    """Whether tiles are listed as strips, as an early writer did it."""
    return bool(tags(TILE_WIDTH) and tags(TILE_HEIGHT)) and not tags(TILE_OFFSETS)


def _pieces(tags: Tags) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    """Offsets and byte counts of strips or tiles, and their width and height in pixels."""
    width, height = one(tags, WIDTH, 0), one(tags, HEIGHT, 0)
    if offsets := tags(TILE_OFFSETS):
        return offsets, tags(TILE_COUNTS), one(tags, TILE_WIDTH, 0), one(tags, TILE_HEIGHT, 0)
    if tiles_as_strips(tags):
        tile = one(tags, TILE_WIDTH, 0), one(tags, TILE_HEIGHT, 0)
        return tags(STRIP_OFFSETS), tags(STRIP_COUNTS), *tile
    rows = min(one(tags, ROWS_PER_STRIP, height), height)
    return tags(STRIP_OFFSETS), tags(STRIP_COUNTS), width, rows


def ends_early(page: Page | None) -> bool:
    """Whether the file ends before the directory does, or before the last strip or tile."""
    if page is None:
        return True
    offsets, counts, _, _ = _pieces(page)
    if not offsets:  # their list itself lies past the end, or there never was one
        return bool({STRIP_OFFSETS, TILE_OFFSETS} & page.entries.keys())
    ends = (
        offset + count
        for offset, count in zip(offsets, counts or (1,) * len(offsets), strict=False)
    )
    return max(ends, default=0) > len(page.data)


def strips_too_short(tags: Tags) -> bool:
    """Whether strips or tiles that are not compressed hold less than their pixels need.

    Reading on would take what lies behind them for pixels. A single strip of at most 8 bits is
    allowed: its count is often wrong, and what it should hold ends with the file.
    """
    _, counts, width, rows = _pieces(tags)
    if one(tags, COMPRESSION, 1) != 1 or not any(counts):
        return False
    if bits(tags) <= 8 and len(counts) == 1:
        return False
    height, samples = one(tags, HEIGHT, 0), one(tags, SAMPLES, 1)
    planes = samples if raw_planes(tags) else 1
    row = -(-width * bits(tags) * (samples // planes) // 8)
    if tags(TILE_WIDTH):
        across, down = -(-one(tags, WIDTH, 0) // max(width, 1)), -(-height // max(rows, 1))
        return sum(counts) < planes * across * down * rows * row
    return sum(counts) < planes * height * row


_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex", 6: "complex"}
_COLOURS = {
    **{0: "grey, 0 is white", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK"},
    **{6: "YCbCr", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*"},
    **dict.fromkeys(_RAW_SENSOR, "camera raw"),
}
_COMPRESSIONS = {
    **{1: "not compressed", 2: "CCITT RLE", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW"},
    **{6: "old JPEG", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate"},
    **{34712: "JPEG 2000", 33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 34925: "LZMA"},
    **{34933: "PNG", 34934: "JPEG XR", 22610: "JPEG XR", 50000: "Zstandard", 50001: "WebP"},
    **{50002: "JPEG XL", 52546: "JPEG XL"},
}


_USUAL = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}  # that Pillow's library mostly has


def subsampled(tags: Tags) -> bool:
    """Whether it is YCbCr whose chroma has fewer samples, not compressed."""
    if one(tags, PHOTOMETRIC, -1) != 6 or one(tags, COMPRESSION, 1) != 1:
        return False
    if tags(SUBSAMPLING):
        return set(tags(SUBSAMPLING)) != {1}
    pixels = one(tags, WIDTH, 0) * one(tags, HEIGHT, 0)  # missing, it is (2, 2); not all know
    return 0 < sum(_pieces(tags)[1]) < 3 * pixels


def unusual(page: Page) -> bool:
    """Whether this kind of TIFF is so rare that a decoder may not know it."""
    return page.backward or subsampled(page) or one(page, COMPRESSION, 1) not in _USUAL


def describe(tags: Tags) -> str:
    """Say how the pixels are stored: ``"RGB of 3 x 32 bits, floats, LZW"``."""
    colour = one(tags, PHOTOMETRIC, -1)
    kind, packed = one(tags, SAMPLE_FORMAT, 1), one(tags, COMPRESSION, 1)
    samples = one(tags, SAMPLES, max(len(tags(BITS)), 1))
    return ", ".join(
        [
            f"{_COLOURS.get(colour, f'photometric {colour}')} of "
            f"{f'{samples} x ' if samples > 1 else ''}{bits(tags)} bits",
            _FORMATS.get(kind, f"sample format {kind}"),
            _COMPRESSIONS.get(packed, f"compression {packed}"),
            *(["chroma subsampled"] if subsampled(tags) else []),
            *(["separate planes"] if one(tags, PLANAR, 1) == 2 and samples > 1 else []),
            *(["BigTIFF, big-endian"] if isinstance(tags, Page) and tags.backward else []),
        ]
    )


# --------------------------------------------------------------------------------- pixels


def raw_planes(tags: Tags) -> bool:
    """Whether the samples are stored as planes apart and not compressed."""
    apart = one(tags, PLANAR, 1) == 2 and one(tags, SAMPLES, 1) > 1
    return apart and one(tags, COMPRESSION, 1) == 1


def read_planes(page: Page) -> NDArray[np.uint8] | None:
    """Read planes stored apart, or tiles in the place of strips, where they are not compressed.

    Parameters
    ----------
    page
        Of any TIFF; its size has been checked.

    Returns
    -------
    array or None
        uint8 (planes, H, W), the high byte of each value, all samples of the file in their order, 0
        black; None if the page is not stored so, or not in unsigned integers of 8 or 16 bits.

    Raises
    ------
    ValueError
        If a strip or tile is missing, or shorter than its pixels.
    """
    samples, depth = one(page, SAMPLES, 1), bits(page)
    apart = raw_planes(page)
    if not apart and not (tiles_as_strips(page) and one(page, COMPRESSION, 1) == 1):
        return None
    if set(page(BITS)) not in ({8}, {16}) or set(page(SAMPLE_FORMAT)) - {1}:
        return None
    offsets, _, width, rows = _pieces(page)
    across, down = (
        -(-one(page, WIDTH, 0) // max(width, 1)),
        -(-one(page, HEIGHT, 0) // max(rows, 1)),
    )
    layers, inside = (samples, 1) if apart else (1, samples)
    if width < 1 or rows < 1 or len(offsets) != layers * across * down:
        raise ValueError(f"{len(offsets)} strips or tiles, not {layers} times {across * down}")
    planes = np.empty((samples, one(page, HEIGHT, 0), one(page, WIDTH, 0)), dtype=np.uint8)
    for number, offset in enumerate(offsets):
        layer, place = divmod(number, across * down)
        y, x = place // across * rows, place % across * width
        target = planes[layer : layer + inside, y : y + rows, x : x + width]
        height = rows if page(TILE_WIDTH) else target.shape[1]  # the last strip ends with the image
        count = width * height * inside * depth // 8
        values = np.frombuffer(page.data, np.uint8, count, offset)
        if depth == 16:  # of the two bytes the high one
            values = values[(page.order == "<") :: 2]
        values = values.reshape(height, width, inside)[: target.shape[1], : target.shape[2]]
        target[:] = np.moveaxis(values, -1, 0)
    if one(page, FILL_ORDER, 1) == 2:
        planes = _REVERSED[planes]
    return 255 - planes if one(page, PHOTOMETRIC, 1) == 0 else planes


_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], 1)[
    :, 0
]
"""Each byte with its bits from the lowest to the highest."""


def jpeg_headers(page: Page) -> bytes:
    """Give the headers of the JPEG inside a TIFF as the start of one JPEG; empty if there is none.

    The quantisation tables stand in a tag, or at the head of each strip.
    """
    packed = one(page, COMPRESSION, 1)
    if packed not in (6, 7):
        return b""
    offsets, counts, _, _ = _pieces(page)
    start = one(page, OLD_JPEG, 0) if packed == 6 else 0
    start = start or next(iter(offsets), len(page.data))
    stream = page.data[start : start + max(next(iter(counts), 0), 1 << 16)]
    tables = bytes(page(JPEG_TABLES)).removesuffix(b"\xff\xd9")
    return tables + stream[2:] if tables and stream[:2] == b"\xff\xd8" else tables or stream

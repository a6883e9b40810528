"""What the chunks of a PNG hold beside pixels: texts, EXIF, XMP, IPTC; without decoding any pixel.

Pillow reads the chunks behind the pixels only after decoding them, which takes a hundred times as
long as all the rest.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from itertools import islice

from masksim.containers import png_chunks
from masksim.provenance.untrusted_text import decoded

__all__ = ["PngChunks", "read_png"]

LONGEST_TEXT = 1 << 20
"""Bytes of one text, unpacked; more is a problem."""

MOST_BYTES = 1 << 23
"""Bytes of all texts."""

_CHUNKS = 100_000


@dataclass(slots=True)
class PngChunks:
    """What was found.

    Attributes
    ----------
    texts
        (key, value) in the order of the file, without what is below.
    exif, xmp, iptc
        Bytes of the profile; None without it.
    """

    texts: list[tuple[str, str]] = field(default_factory=list)
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None


def read_png(data: bytes, problems: list[str]) -> PngChunks:
    """Read the chunks.

    Parameters
    ----------
    data
        The bytes of a PNG.
    problems
        What was too large or damaged is added to it.

    Returns
    -------
    PngChunks
    """
    found = PngChunks()
    left = MOST_BYTES
    for kind, at, end in islice(png_chunks(data), _CHUNKS):
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            found.exif = found.exif or data[at + 8 : end - 4]
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        try:
            key, value = _text(kind, data[at + 8 : min(end - 4, at + LONGEST_TEXT + 108)])
        except (ValueError, zlib.error) as error:
            problems.append(f"text chunks: one cannot be read ({error})")
            continue
        left -= len(value)
        if left < 0:
            problems.append(f"text chunks: over {MOST_BYTES} bytes are not read")
            break
        _sort(found, key, value)
    return found


def _text(kind: bytes, body: bytes) -> tuple[str, bytes]:
    key, mark, value = body.partition(b"\0")
    if not mark:
        raise ValueError("it has no key")
    name = key.decode("latin-1")
    if kind == b"tEXt":
        return name, value
    if kind == b"zTXt":
        return name, _unpacked(value[1:])
    packed, rest = value[:1], value[2:]  # language and translated key are of no use here
    value = rest.partition(b"\0")[2].partition(b"\0")[2]
    return name, _unpacked(value) if packed == b"\1" else value


def _unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    value = unpacker.decompress(packed, LONGEST_TEXT)
    if unpacker.unconsumed_tail:
        raise ValueError("it is too large")
    return value


def _sort(found: PngChunks, key: str, value: bytes) -> None:
    """Put a text where it belongs: some hold a profile, in hexadecimal."""
    if key == "XML:com.adobe.xmp":
        found.xmp = found.xmp or value
        return
    if not key.lower().startswith("raw profile type "):
        found.texts.append((key, decoded(value)))
        return
    profile = _profile(value)
    if profile is None:
        found.texts.append((key, decoded(value)))
    elif profile.startswith(b"Exif\0\0"):
        found.exif = found.exif or profile
    elif b"http://ns.adobe.com/xap/" in profile[:40] or key.lower().endswith("xmp"):
        found.xmp = found.xmp or profile
    elif key.lower().endswith(("exif", "app1")):
        found.exif = found.exif or profile
    elif key.lower().endswith(("iptc", "8bim")):
        found.iptc = found.iptc or profile
    # Colour and other profiles say nothing of the origin.


def _profile(value: bytes) -> bytes | None:
    """Decode the form of ImageMagick and Exiv2: name, length, hexadecimal."""
    match = re.match(rb"\s*[\w ]*\n\s*\d+\s*\n", value)
    if match is None:
        return None
    try:
        return bytes.fromhex(value[match.end() :].decode("ascii"))
    except ValueError:
        return None

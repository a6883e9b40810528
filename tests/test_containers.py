"""`masksim.containers`: metadata that stop a decoder, crops and depths of AVIF and HEIF."""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import HAS_AVIF, encode, make_natural, png_chunk
from masksim.image import load_image
from reading import code_of


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

"""`masksim.decoders`: what is said of a file that cannot be decoded."""

from __future__ import annotations

import zlib

import pytest
from PIL import Image

from conftest import HAS_AVIF, encode, make_natural, png_chunk
from masksim.errors import ImageError
from masksim.image import load_image
from reading import code_of


def test_a_jpeg_of_12_bits_is_not_called_damaged() -> None:
    content = bytearray(encode(Image.new("RGB", (32, 32)), "JPEG"))
    content[content.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="JPEG of 12 bits is not supported") as caught:
        load_image(bytes(content))
    assert caught.value.code == "unsupported"


def test_a_jpeg_of_a_rare_process_is_not_called_damaged() -> None:
    content = bytearray(encode(Image.new("RGB", (32, 32)), "JPEG"))
    content[content.index(b"\xff\xc0") + 1] = 0xC5
    with pytest.raises(ImageError, match="SOF5 is not supported") as caught:
        load_image(bytes(content))
    assert caught.value.code == "unsupported"


def test_only_a_file_that_is_cut_off_is_called_truncated() -> None:
    image = Image.fromarray(make_natural(40, 60))
    png = encode(image, "PNG")
    at = png.index(b"IDAT")
    # All chunks are there, but the stream inside ends too early.
    short = zlib.compress(zlib.decompress(png[at + 4 : png.index(b"IEND") - 8])[:-500])
    whole = png[: at - 4] + png_chunk(b"IDAT", short) + png_chunk(b"IEND", b"")
    assert code_of(whole) == "unreadable"
    gif = encode(image.quantize(16), "GIF")
    assert code_of(gif[: len(gif) // 2] + b";") == "truncated"
    bmp = bytearray(encode(image, "BMP"))
    bmp[2:6] = bytes(4)  # many writers leave the length of the file out
    assert code_of(bytes(bmp[:-100])) == "truncated"


@pytest.mark.skipif(not HAS_AVIF, reason="no encoder for AVIF here")
def test_an_avif_that_breaks_a_rule_is_not_called_damaged() -> None:
    content = encode(Image.new("RGB", (64, 64)), "AVIF").replace(b"ispe", b"ispX")
    with pytest.raises(ImageError, match="breaks a rule of AVIF") as caught:
        load_image(content)
    assert caught.value.code == "unsupported"

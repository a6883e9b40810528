"""Open watermarks: read as their encoder's own package reads them, and never in what has none."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import make_natural
from masksim.errors import UsageError
from masksim.image import load_image, top_rows
from masksim.load import load_detector
from masksim.provenance.watermark import CHANCE, MARKS, Mark, decode_bits, find_watermarks
from masksim.results import Detection
from masksim.show.card import to_html
from masksim.show.text import to_text

BY_NAME = {mark.name: mark for mark in MARKS}


def encode(
    pixels: NDArray[np.uint8], bits: NDArray[np.bool_], *, floats: bool = False
) -> NDArray[np.uint8]:
    """Write a mark as `invisible-watermark` does, its swap of two of the wavelet's bands and all.

    Independent of the decoder: by the formulas of the colours and of the wavelet, block by block.
    """
    half = 0.5 if floats else 128.0
    r, g, b = np.moveaxis(pixels.astype(np.float64), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    u, v = 0.492 * (b - y) + half, 0.877 * (r - y) + half
    if not floats:
        y, u, v = (np.rint(plane).clip(0, 255) for plane in (y, u, v))
    height, width = (n // 4 * 4 for n in u.shape)
    p, q = u[:height:2, :width:2], u[:height:2, 1:width:2]
    s, t = u[1:height:2, :width:2], u[1:height:2, 1:width:2]
    low, across, down, both = (
        (p + q + s + t) / 2, (p + q - s - t) / 2, (p - q + s - t) / 2, (p - q - s + t) / 2,
    )  # fmt: skip
    rows, columns = height // 2 // 4, width // 2 // 4
    for k in range(rows * columns):
        i, j = 4 * (k // columns), 4 * (k % columns)
        block = low[i : i + 4, j : j + 4]
        at = np.unravel_index(1 + np.argmax(np.abs(block.ravel()[1:])), block.shape)
        sign = 1 if block[at] >= 0 else -1
        block[at] = sign * 36 * (abs(block[at]) // 36 + 0.25 + 0.5 * bits[k % len(bits)])
    across, down = down, across  # the encoder's slip
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        a, d, x = (-1) ** dy, (-1) ** dx, (-1) ** (dx + dy)
        u[dy:height:2, dx:width:2] = (low + a * across + d * down + x * both) / 2
    if not floats:
        u = np.trunc(u + 1e-9).clip(0, 255)
    b, r = y + (u - half) / 0.492, y + (v - half) / 0.877
    out = np.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], axis=-1)
    return np.rint(out).clip(0, 255).astype(np.uint8)


def written(mark: Mark, height: int = 512, width: int = 512, seed: int = 0) -> NDArray[np.uint8]:
    pixels = make_natural(height, width, seed)
    floats = mark.readings[0] != "bytes"
    return encode(pixels, mark.bits, floats=floats)


def jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer))


def names(pixels: NDArray[np.uint8]) -> list[str]:
    return [match.mark for match in find_watermarks(pixels)]


def test_the_marks_are_those_that_the_programs_write() -> None:
    assert {mark.name: len(mark.bits) for mark in MARKS} == {
        "StableDiffusionV1": 136,
        "SDV2": 32,
        "SDXL": 48,
        # The number that stands in the code has 48 digits; what is made of it has no leading zeros.
        "FLUX": len(bin(0b001010101111111010000111100111001111010100101110)[2:]),
        "InvokeAI": 64,
    }
    for name in ("StableDiffusionV1", "SDV2", "InvokeAI"):
        assert np.packbits(BY_NAME[name].bits).tobytes() == name.encode()
    sdxl = int("".join(str(int(bit)) for bit in BY_NAME["SDXL"].bits), 2)
    assert sdxl == 0xB3EC907BB19E


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.name)
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (333, 517), (1000, 300)])
def test_a_mark_is_found(mark: Mark, size: tuple[int, int]) -> None:
    found = find_watermarks(written(mark, *size))
    assert [match.mark for match in found] == [mark.name]
    assert found[0].bits == len(mark.bits)
    assert found[0].bits_agree >= 0.9 * found[0].bits
    assert 0 < found[0].chance < 1e-5


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.name)
@pytest.mark.parametrize("quality", [95, 100])
def test_it_survives_jpeg(mark: Mark, quality: int) -> None:
    assert names(jpeg(written(mark, 768, 768), quality)) == [mark.name]


@pytest.mark.parametrize(
    "text", ["test", "abcdefgh", "InvokeAI", "made by nobody", "Some other text, 32 bytes long.."]
)
@pytest.mark.parametrize("seed", range(4))
def test_other_texts_are_not_taken_for_one_that_is_known(text: str, seed: int) -> None:
    bits = np.unpackbits(np.frombuffer(text.encode(), np.uint8)).astype(bool)
    found = names(encode(make_natural(512, 512, seed), bits))
    assert found == ([text] if text in BY_NAME else [])


def test_red_and_blue_may_have_been_exchanged() -> None:
    mark = BY_NAME["SDXL"]
    pixels = make_natural(512, 512, 3)
    turned = encode(pixels[..., ::-1].copy(), mark.bits, floats=True)[..., ::-1]
    assert names(np.ascontiguousarray(turned)) == ["SDXL"]


@pytest.mark.parametrize("seed", range(6))
def test_there_is_none_in_what_has_none(seed: int) -> None:
    assert names(make_natural(512, 640, seed)) == []


def flat_pictures() -> dict[str, NDArray[np.uint8]]:
    y, x = np.mgrid[:512, :768]
    rng = np.random.default_rng(0)
    half = make_natural(512, 768)
    half[:, 200:] = 255
    pictures = {
        "black": np.zeros((512, 768)),
        "white": np.full((512, 768), 255.0),
        "blue": np.stack([0 * x, 0 * x, 0 * x + 255], -1),
        "ramp": x / 3,
        "ramps": np.stack([x / 3, y / 2, 255 - x / 3], -1),
        "saturated": np.where(make_natural(512, 768) > 128, 255, 0),
        "half flat": half,
        "checks": np.stack([255 * (x // 8 % 2), 0 * x, 255 * (y // 8 % 2)], -1),
        "few colours": rng.choice([0, 90, 200], (512, 768, 3)),
    }
    for period in (384, 46 * 8, 136 * 4, 7):  # periods in step with rows of marks
        pictures[f"stripes {period}"] = np.stack([127 + 120 * np.sin(x * 6.283 / period)] * 2, -1)
    return {
        name: np.rint(np.broadcast_to(p[..., None], (512, 768, 3)) if p.ndim == 2 else np.dstack(
            [p, p[..., :1]]) if p.shape[-1] == 2 else p).astype(np.uint8)
        for name, p in pictures.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", list(flat_pictures()))
def test_flat_and_saturated_pictures_have_none(name: str) -> None:
    assert names(flat_pictures()[name]) == []


def test_a_crop_or_a_change_of_size_loses_it() -> None:
    pixels = written(BY_NAME["StableDiffusionV1"])
    assert names(pixels[8:]) == []
    small = Image.fromarray(pixels).resize((400, 400), Image.Resampling.BICUBIC)
    assert names(np.asarray(small)) == []


def test_rows_that_are_missing_below_change_nothing_but_the_evidence() -> None:
    assert names(written(BY_NAME["SDXL"])[:200]) == ["SDXL"]


def test_images_under_the_encoders_least_size_have_none() -> None:
    pixels = written(BY_NAME["SDV2"], 256, 256)
    assert names(pixels) == ["SDV2"]
    assert names(pixels[:255]) == []


def test_flat_pictures_read_as_the_package_reads_them() -> None:
    # By hand: no chroma, so the largest sum is 4 times 128; 256 % 36 is 4, a 0.
    assert not decode_bits(np.full((256, 256, 3), 90, np.uint8), 32).any()


@pytest.mark.parametrize(
    "wrong", [np.zeros((300, 300), np.uint8), np.zeros((300, 300, 3)), [[0]], None]
)
def test_what_is_no_picture_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        find_watermarks(wrong)


def test_bits_need_blocks() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    assert decode_bits(pixels, 4).shape == (4,)
    for length in (0, 5):
        with pytest.raises(UsageError):
            decode_bits(pixels, length)


@pytest.mark.parametrize("floats", [False, True])
def test_the_package_agrees_bit_for_bit(floats: bool) -> None:
    imwatermark = pytest.importorskip("imwatermark.maxDct")
    for seed, size in enumerate([(256, 256), (300, 501), (511, 257)]):
        plain = make_natural(*size, seed)
        # Flat parts in colours whose values lie right between two bits.
        plain[: size[0] // 2, 40:90] = np.array([[130, 122, 122]]) + np.arange(50)[:, None] // 8
        given = plain[..., ::-1].astype(np.float32 if floats else np.uint8)
        for mark in MARKS:
            length = len(mark.bits)
            read = imwatermark.EmbedMaxDct(wmLen=length).decode(np.ascontiguousarray(given))
            np.testing.assert_array_equal(read, decode_bits(plain, length, floats=floats))


@pytest.mark.parametrize("floats", [False, True])
def test_the_encoder_of_these_tests_is_the_packages(floats: bool) -> None:
    imwatermark = pytest.importorskip("imwatermark.maxDct")
    mark = BY_NAME["SDXL"]
    plain = make_natural(300, 501, 2)
    given = np.ascontiguousarray(plain[..., ::-1].astype(np.float32 if floats else np.uint8))
    theirs = imwatermark.EmbedMaxDct(list(map(int, mark.bits)), wmLen=48).encode(given)[..., ::-1]
    ours = encode(plain, mark.bits, floats=floats).astype(int)
    difference = np.abs(np.rint(theirs).clip(0, 255).astype(int) - ours)
    # They round on the way; where two values of a block are alike, another one may be moved.
    assert (difference <= (1 if floats else 2)).mean() > 0.99


def test_the_part_of_a_file_that_is_kept_has_the_first_rows(tmp_path: Path) -> None:
    pixels = np.ascontiguousarray(np.tile(written(BY_NAME["SDXL"], 800, 800), (3, 3, 1)))
    Image.fromarray(pixels).save(tmp_path / "large.png", compress_level=1)
    part = load_image(tmp_path / "large.png", part=lambda height, width: (64, 64, 256, 256))
    top = part.top()
    assert top is not None
    np.testing.assert_array_equal(top, pixels[: top_rows(2400, 2400)])
    assert part.pixels.shape == (256, 256, 3)
    whole = load_image(tmp_path / "large.png")
    np.testing.assert_array_equal(whole.top(), top)
    assert whole.first_rows is None


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_turned_and_other_files_keep_the_first_rows_as_stored(format_: str) -> None:
    pixels = make_natural(900, 700)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, exif=exif)
    whole = load_image(buffer.getvalue())
    part = load_image(buffer.getvalue(), part=lambda height, width: (8, 16, 256, 256))
    np.testing.assert_array_equal(part.top(), whole.pixels[: top_rows(900, 700)])
    np.testing.assert_array_equal(part.pixels, whole.pixels[8:264, 16:272])


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marked") / "marked.png"
    Image.fromarray(written(BY_NAME["StableDiffusionV1"], 1000, 1800)).save(path)
    return path


@pytest.fixture(scope="module")
def detection(marked: Path) -> Detection:
    return load_detector(threads=1, stability=False).detect(marked)


def test_a_detection_tells_it_apart_from_the_verdict(detection: Detection, marked: Path) -> None:
    assert [match.mark for match in detection.watermarks] == ["StableDiffusionV1"]
    told = detection.to_dict()["watermarks"]
    assert told[0]["mark"] == "StableDiffusionV1"
    assert told[0]["text"] == detection.watermarks[0].text
    assert "Watermark: The pixels carry" in to_text(detection)
    assert "Watermark: The pixels carry the open watermark Stable" in to_html(detection)
    assert "StableDiffusion" not in detection.verdict.text
    silent = load_detector(threads=1, stability=False, watermarks=False).detect(marked)
    assert silent.watermarks == ()
    assert silent.verdict == detection.verdict
    assert "Watermark" not in to_text(silent)


def test_files_and_arrays_tell_the_same(detection: Detection, marked: Path) -> None:
    detector = load_detector(threads=1, stability=False)
    array = detector.detect(np.asarray(Image.open(marked)))
    assert array.watermarks == detection.watermarks


def test_each_mark_has_a_sentence() -> None:
    for mark in MARKS:
        (match,) = find_watermarks(written(mark))
        assert f"The pixels carry the open watermark {mark.name}, which " in match.text
        assert match.text.isascii()
        assert ("practically never" in match.text) == (match.chance < 1e-15)
        assert f"among {match.photos} real photos" in match.text


def test_chances_are_said_in_words() -> None:
    one = find_watermarks(written(BY_NAME["SDV2"]))[0]
    for chance, words in (
        (7.9e-6, "in one of 100 thousand images"),
        (9.6e-7, "in one of 1 million images"),
        (2.1e-9, "in one of 500 million images"),
        (3.9e-13, "in one of 3 trillion images"),
        (1e-30, "practically never"),
    ):
        assert f". By chance so many agree {words}; " in replace(one, chance=chance).text


def test_a_match_is_rarer_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for mark in MARKS:
        n = len(mark.bits)
        # From Pascal's triangle, by another road than the module's.
        tail = np.cumsum([float(math.comb(n, k)) for k in range(n + 1)]) / 2.0**n
        least = n - int(np.searchsorted(tail, CHANCE, side="right")) + 1
        for agree in (least - 1, least):
            wrong = np.linspace(0, n - 1, n - agree).astype(int)  # spread over all letters
            read = mark.bits.astype(float)
            read[wrong] = 1 - read[wrong]
            monkeypatch.setattr(
                "masksim.provenance.watermark._best_shares",
                lambda pixels, name=mark.name, read=read: {name: read},
            )
            assert names(np.zeros((512, 512, 3), np.uint8)) == [mark.name] * (agree == least)
        # Real photos stay well below.
        assert mark.most_on_photos < least

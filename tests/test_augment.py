"""`masksim.augment` against Pillow used directly, and draws that depend on their keys alone."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from masksim.augment import (
    FILTERS,
    SUBSAMPLINGS,
    decode,
    encode,
    reencode,
    resize,
    rng_for,
)
from masksim.errors import UsageError

Natural = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def pixels(natural_image: Natural) -> NDArray[np.uint8]:
    return natural_image(97, 130, seed=11)


def by_pillow(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


# --- random choices ------------------------------------------------------------------------------


def test_equal_keys_give_equal_draws() -> None:
    first, second = rng_for(0, "ab" * 32, "train", 3), rng_for(0, "ab" * 32, "train", 3)
    np.testing.assert_array_equal(first.random(5), second.random(5))
    # Written down once: another machine, another version of Python must draw the same.
    digest = hashlib.sha256(b"7\x1fabc").digest()[:16]
    expected = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    np.testing.assert_array_equal(rng_for(7, "abc").random(4), expected.random(4))


def test_draws_do_not_depend_on_the_order_in_which_they_are_made() -> None:
    keys = [(seed, name, k) for seed in range(3) for name in ("a", "b") for k in range(4)]
    forwards = {key: rng_for(*key).random() for key in keys}
    backwards = {key: rng_for(*key).random() for key in reversed(keys)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(keys)


def test_keys_are_told_apart_by_place_as_well_as_by_text() -> None:
    draws = {rng_for(*key).random() for key in [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab")]}
    assert len(draws) == 4


def test_another_process_draws_the_same() -> None:
    code = "from masksim.augment import rng_for; print(rng_for(1, 'key').integers(0, 10**9))"
    run = [sys.executable, "-c", code]  # with a hash seed of its own
    found = {int(subprocess.run(run, capture_output=True, check=True).stdout) for _ in range(2)}
    assert found == {int(rng_for(1, "key").integers(0, 10**9))}


# --- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [1, 65, 100])
def test_jpeg_is_pillows(pixels: NDArray[np.uint8], quality: int, subsampling: str) -> None:
    found = encode(pixels, "JPEG", quality, subsampling)
    assert found == by_pillow(pixels, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(io.BytesIO(found)) as image:
        layers: Any = image
        width, height = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}[subsampling]
        assert layers.layer[0][1:3] == (width, height)
        assert image.size == (130, 97)
        assert not image.getexif()
        np.testing.assert_array_equal(decode(found), np.asarray(image))


def test_webp_is_pillows(pixels: NDArray[np.uint8]) -> None:
    found = encode(pixels, "WEBP", 80)
    assert found == by_pillow(pixels, "WEBP", quality=80, method=2)
    assert encode(pixels, "WEBP", 80, "4:4:4") == found  # WebP has 4:2:0 alone


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_recompression_keeps_the_picture_and_leaves_its_argument(
    pixels: NDArray[np.uint8], kind: str
) -> None:
    before = pixels.copy()
    errors = []
    for quality in (20, 60, 95):
        found = reencode(pixels, kind, quality)
        assert found.shape == pixels.shape
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, decode(encode(pixels, kind, quality)))
        errors.append(float(np.abs(found.astype(float) - pixels).mean()))
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < 6  # much of it chroma, at half the resolution
    np.testing.assert_array_equal(pixels, before)


def test_crops_need_not_lie_together_in_memory(pixels: NDArray[np.uint8]) -> None:
    crop = pixels[3:67, 5:101]
    assert not crop.flags.c_contiguous
    assert encode(crop, "JPEG", 90) == encode(crop.copy(), "JPEG", 90)
    np.testing.assert_array_equal(resize(crop, 0.5), resize(crop.copy(), 0.5))


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_other_qualities_are_refused(pixels: NDArray[np.uint8], quality: int) -> None:
    with pytest.raises(UsageError, match=f"1 to 100, got {quality}"):
        encode(pixels, "JPEG", quality)


def test_other_formats_and_subsamplings_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="JPEG, WEBP, AVIF or HEIF, got PNG"):
        encode(pixels, "PNG", 90)
    with pytest.raises(UsageError, match="got 4:1:1"):
        encode(pixels, "JPEG", 90, "4:1:1")


# --- resizing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(40, 61), (200, 150)])
def test_resizing_is_pillows(pixels: NDArray[np.uint8], name: str, size: tuple[int, int]) -> None:
    height, width = size
    expected = Image.fromarray(pixels).resize(
        (width, height), getattr(Image.Resampling, name.upper())
    )
    np.testing.assert_array_equal(resize(pixels, size, name), np.asarray(expected))


@pytest.mark.parametrize("factor", [0.5, 0.333, 1.0, 1.7])
def test_a_factor_is_for_both_sides(pixels: NDArray[np.uint8], factor: float) -> None:
    found = resize(pixels, factor)
    assert found.shape == (round(97 * factor), round(130 * factor), 3)
    np.testing.assert_array_equal(found, resize(pixels, found.shape[:2], "bicubic"))
    if factor == 1:
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("name", ["box", "bilinear", "bicubic", "lanczos"])
def test_reduction_is_antialiased(name: str) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200  # the highest frequency there is: a smaller image cannot hold it
    inside = resize(stripes, 0.25, name)[2:-2, 2:-2].astype(int)
    assert np.abs(inside - 100).max() <= 2
    assert set(np.unique(resize(stripes, 0.25, "nearest"))) <= {0, 200}


def test_senseless_sizes_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="cannot be resized to 0 x 10"):
        resize(pixels, (0, 10))
    with pytest.raises(UsageError, match="cannot be resized to 0 x 1"):
        resize(pixels, 0.004)
    with pytest.raises(UsageError, match="cannot be resized to -97 x -130"):
        resize(pixels, -1.0)
    with pytest.raises(UsageError, match="got hamming"):
        resize(pixels, 0.5, "hamming")

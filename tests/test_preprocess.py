"""`masksim.preprocess` against the method's formulas, exact fractions and Pillow."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import floor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masksim.errors import ImageError, UsageError
from masksim.preprocess import (
    COLOUR_SPACES,
    central_part,
    centre_window,
    luma_chroma,
    shared_windows,
    spread_windows,
    to_colour,
)


@pytest.mark.parametrize("size", [512, 256, 64])
def test_the_centre_is_the_originals(size: int) -> None:
    for width in range(size, size + 40):
        height = 3 * width
        y, x = centre_window(height, width, size)
        half = size // 2
        assert (y, x) == (max(0, height // 2 - half) // 8 * 8, max(0, width // 2 - half) // 8 * 8)
        assert 0 <= x <= width - size
        assert 0 <= y <= height - size
        assert centre_window(height, width, size, aligned=False) == (
            height // 2 - half,
            width // 2 - half,
        )


def test_known_centres() -> None:
    assert centre_window(512, 512, 512) == (0, 0)
    assert centre_window(3000, 4000, 512) == (1240, 1744)
    assert centre_window(513, 531, 512) == (0, 8)
    assert centre_window(7, 9, 7) == (0, 0)
    assert centre_window(7, 9, 7, aligned=False) == (0, 1)


@pytest.mark.parametrize("size", [(511, 900), (900, 511)])
def test_an_image_under_the_window_is_refused(size: tuple[int, int]) -> None:
    for cut in (lambda: centre_window(*size, 512), lambda: spread_windows(*size, 512, 3)):
        with pytest.raises(ImageError, match="smaller than the window of 512x512") as caught:
            cut()
        assert caught.value.code == "too_small"


def test_windows_are_spread() -> None:
    assert spread_windows(1000, 1600, 200, 1) == [centre_window(1000, 1600, 200)]
    five = spread_windows(1000, 1600, 200, 5)
    assert five[0] == centre_window(1000, 1600, 200)
    assert sorted(five[1:]) == [(0, 0), (0, 1400), (800, 0), (800, 1400)]
    nine = spread_windows(1000, 1600, 200, 9)
    assert nine[:5] == five  # the first are the same, however many follow
    for a, b in combinations(nine, 2):
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 200  # room enough: none overlap


@pytest.mark.parametrize("height", [64, 65, 72, 100, 431])
@pytest.mark.parametrize("width", [64, 71, 80, 1000])
def test_windows_are_aligned_inside_and_distinct(height: int, width: int) -> None:
    windows = spread_windows(height, width, 64, 40)
    assert windows[0] == centre_window(height, width, 64)
    assert len(set(windows)) == len(windows)
    room = ((height - 64) // 8 + 1) * ((width - 64) // 8 + 1)
    assert len(windows) == min(40, room)
    for y, x in windows:
        assert y % 8 == 0
        assert x % 8 == 0
        assert 0 <= y <= height - 64
        assert 0 <= x <= width - 64


def test_many_windows_of_a_large_image() -> None:
    windows = spread_windows(3000, 4000, 512, 60)
    assert len(set(windows)) == 60
    # Every part of the image is near a window: no pixel of the middle rows is left out.
    covered = np.zeros((3000, 4000), dtype=bool)
    for y, x in windows:
        assert y % 8 == 0
        assert x % 8 == 0
        covered[y : y + 512, x : x + 512] = True
    assert covered.shape == (3000, 4000)
    assert covered.mean() > 0.9


def test_min_shift_keeps_windows_apart() -> None:
    windows = spread_windows(300, 300, 128, 50, min_shift=64)
    assert 1 < len(windows) < 50
    for a, b in combinations(windows, 2):
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 64
    assert spread_windows(160, 160, 128, 9, min_shift=64) == [(16, 16)]


def test_senseless_windows_are_refused() -> None:
    for arguments in ((100, 100, 0, 1), (100, 100, 64, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            spread_windows(*arguments)
    with pytest.raises(UsageError, match="at least 1"):
        centre_window(100, 100, 0)


def some_pixels() -> Any:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (2, 31, 40, 3), dtype=np.uint8)
    pixels[0, :8, :32] = np.arange(256, dtype=np.uint8).reshape(8, 32, 1)  # all greys
    return pixels


@pytest.mark.parametrize("space", COLOUR_SPACES)
def test_shape_type_and_range(space: Any) -> None:
    pixels = some_pixels()
    planes = to_colour(pixels, space)
    assert planes.shape == (2, 3, 31, 40)
    assert planes.dtype == np.float32
    assert planes.flags.c_contiguous
    assert planes.min() >= 0
    assert planes.max() <= 1
    np.testing.assert_array_equal(to_colour(pixels[1], space), planes[1])


def test_rgb() -> None:
    pixels = some_pixels()
    expected = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(to_colour(pixels, "RGB"), expected)


@pytest.mark.parametrize(
    ("rgb", "ycbcr"),
    [
        ((0, 0, 0), (16, 128, 128)),
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (81, 90, 240)),  # 81.481, 90.203, 240
        ((0, 255, 0), (144, 53, 34)),  # 144.553, 53.797, 34.214
        ((0, 0, 255), (40, 240, 109)),  # 40.966, 240, 109.786
        ((10, 130, 50), (89, 110, 81)),  # Y is 89 exactly: 88 in floating point
    ],
)
def test_known_studio_levels(rgb: tuple[int, ...], ycbcr: tuple[int, ...]) -> None:
    pixels = np.array(rgb, dtype=np.uint8).reshape(1, 1, 3)
    levels = to_colour(pixels, "YCbCr-BT601-studio-8bit").reshape(3) * 255
    np.testing.assert_allclose(levels, ycbcr, rtol=1e-6)


def test_studio_levels_are_the_exact_floor() -> None:
    pixels = some_pixels()[0]
    levels = np.rint(to_colour(pixels, "YCbCr-BT601-studio-8bit") * 255).astype(int)
    rows = [
        ("65.481", "128.553", "24.966", 16),
        ("-37.797", "-74.203", "112", 128),
        ("112", "-93.786", "-18.214", 128),
    ]
    for at in np.ndindex(31, 40):
        rgb = [Fraction(int(v), 255) for v in pixels[at]]
        for c, (*weights, offset) in enumerate(rows):
            exact = sum(Fraction(w) * v for w, v in zip(weights, rgb, strict=True)) + offset
            assert levels[c][at] == floor(exact)


def test_studio_levels_are_the_floating_point_ones_but_for_rounding() -> None:
    grid = np.arange(0, 256, 5, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(grid, grid, grid), -1).reshape(1, -1, 3)
    matrix = [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
    floats = pixels / 255.0 @ np.array(matrix).T + [16, 128, 128]
    levels = np.rint(to_colour(pixels, "YCbCr-BT601-studio-8bit") * 255).astype(int)
    differs = levels != floats.astype(np.uint8).transpose(2, 0, 1)
    assert differs.mean() < 1e-4
    assert np.abs(floats.transpose(2, 0, 1) - levels)[differs].max(initial=0) < 1e-9


def test_full_range_is_that_of_jpeg() -> None:
    pixels = some_pixels()[0]
    planes = to_colour(pixels, "YCbCr-BT601-full")
    pillow = np.asarray(Image.fromarray(pixels).convert("YCbCr")).transpose(2, 0, 1)
    # Pillow cuts to 8 bits and has grey at 128 of 255; here it is at one half.
    difference = planes * 255 + np.array([0, 0.5, 0.5])[:, None, None] - pillow
    assert np.abs(difference).max() < 1.01
    published = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    exact = np.tensordot(np.array(published), pixels / 255.0, axes=(1, 2))
    np.testing.assert_allclose(planes, exact + np.array([0, 0.5, 0.5])[:, None, None], atol=2e-6)
    grey = to_colour(np.full((1, 1, 3), 77, dtype=np.uint8), "YCbCr-BT601-full").reshape(3)
    np.testing.assert_allclose(grey, [77 / 255, 0.5, 0.5], atol=1e-7)


def test_other_arrays_are_refused() -> None:
    wrongs: list[Any] = [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
    ]
    for wrong in wrongs:
        with pytest.raises(UsageError, match="uint8 of shape"):
            to_colour(wrong, "RGB")
    with pytest.raises(UsageError, match="unknown colour space 'YCbCr'"):
        to_colour(np.zeros((4, 4, 3), np.uint8), "YCbCr")  # type: ignore[arg-type]


# --- the shared recipe ---------------------------------------------------------------------------


def test_luma_and_halved_chroma() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    luma, chroma = luma_chroma(pixels)
    assert luma.shape == (2, 1, 32, 48)
    assert chroma.shape == (2, 2, 16, 24)
    assert luma.dtype == chroma.dtype == np.float32
    assert luma.flags.c_contiguous
    weights = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    exact = np.einsum("dc,bhwc->bdhw", weights, pixels / 255.0)
    np.testing.assert_allclose(luma, exact[:, :1], atol=2e-6)
    for b, c in np.ndindex(2, 2):
        plane = exact[b, 1 + c] + 0.5
        # Pillow's box filter is the mean over 2x2 pixels.
        halved = np.asarray(Image.fromarray(plane.astype(np.float32)).reduce(2))
        np.testing.assert_allclose(chroma[b, c], 2 * halved, atol=5e-6)


def test_chroma_above_half_the_resolution_is_gone() -> None:
    pixels = np.full((1, 16, 16, 3), 128, np.uint8)
    pixels[0, :, ::2, 2] = 200  # blue stripes, one pixel wide
    luma, chroma = luma_chroma(pixels)
    assert luma.std() > 0
    assert chroma.std(axis=(2, 3)).max() < 1e-6


def test_grey_has_no_chroma() -> None:
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=-1)
    luma, chroma = luma_chroma(pixels)
    np.testing.assert_allclose(luma[0, 0] * 255, pixels[0, ..., 0], atol=1e-4)
    np.testing.assert_allclose(chroma, 1, atol=1e-6)  # 2 * 0.5


WINDOWS: dict[str, int] = {"smallest": 256, "region": 1536, "spacing": 256}


def test_large_images_have_spread_windows() -> None:
    for size in ((512, 512), (1536, 1536), (900, 513)):
        expected = spread_windows(*size, 512, 4, min_shift=256)
        assert shared_windows(*size, 512, 4, **WINDOWS) == (expected, 512, 512)


@pytest.mark.parametrize("height", [256, 257, 263, 300, 400, 511, 512, 513, 700, 1023, 1600, 3000])
@pytest.mark.parametrize("width", [256, 264, 399, 511, 512, 520, 769, 2000])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_shared_windows_are_inside_aligned_and_apart(height: int, width: int, count: int) -> None:
    corners, high, wide = shared_windows(height, width, 512, count, **WINDOWS)
    assert 1 <= len(corners) <= count
    assert (high, wide) == (min(512, height // 8 * 8), min(512, width // 8 * 8))
    for y, x in corners:
        assert y % 8 == x % 8 == 0
        assert 0 <= y <= height - high
        assert 0 <= x <= width - wide
        # In the central region, of what cannot be cut in the middle a little left and above.
        for at, side, window in ((y, height, high), (x, width, wide)):
            border = max(0, side - 1536) // 2
            assert border - 8 < at <= border + min(side, 1536) - window
    for a, b in combinations(corners, 2):
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 256
    y, x = corners[0]  # the first in the middle, where there is room
    assert abs(2 * y - (height - high)) <= 24
    assert abs(2 * x - (width - wide)) <= 24
    if min(height, width) < 512:  # one row of windows, the shorter side covered whole
        assert min(height, width) - min(high, wide) < 8
        assert len({y for y, _ in corners}) == 1 or len({x for _, x in corners}) == 1


def test_known_shared_windows() -> None:
    def windows(height: int, width: int, count: int = 4) -> object:
        return shared_windows(height, width, 512, count, **WINDOWS)

    assert windows(300, 400) == ([(0, 0)], 296, 400)
    assert windows(300, 1400) == ([(0, 440), (0, 0), (0, 888)], 296, 512)
    assert windows(1400, 300, 2) == ([(440, 0), (0, 0)], 512, 296)
    assert windows(511, 600) == ([(0, 40)], 504, 512)
    # 2000 wide: the region begins at 232.
    assert windows(300, 2000) == ([(0, 744), (0, 232), (0, 1256)], 296, 512)
    middle = (744, 1744)
    assert windows(2000, 4000, 1) == ([middle], 512, 512)
    corners = {(y, x) for y in (232, 1256) for x in (1232, 2256)}
    found, _, _ = shared_windows(2000, 4000, 512, 5, **WINDOWS)
    assert found[0] == middle
    assert set(found[1:]) == corners


@pytest.mark.parametrize("size", [(255, 900), (900, 255), (1, 1)])
def test_an_image_under_the_smallest_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[1]}x{size[0]} pixels.*at least 256") as caught:
        shared_windows(*size, 512, 4, **WINDOWS)
    assert caught.value.code == "too_small"


@pytest.mark.parametrize("size", [(1536, 1536), (3000, 4000), (1541, 2999), (900, 4000)])
def test_windows_of_the_central_part_are_those_of_the_image(size: tuple[int, int]) -> None:
    y, x, height, width = central_part(*size, 1536)
    inside, *side = shared_windows(height, width, 512, 4, **WINDOWS)
    assert ([(y + top, x + left) for top, left in inside], *side) == shared_windows(
        *size, 512, 4, **WINDOWS
    )
    assert y % 8 == x % 8 == 0
    assert 0 <= y <= size[0] - height
    assert 0 <= x <= size[1] - width


def test_luma_is_rounded_once() -> None:
    pixels = np.random.default_rng(8).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    luma = luma_chroma(pixels)[0][0, 0]
    for (v, u), found in np.ndenumerate(luma[:8]):
        red, green, blue = map(int, pixels[0, v, u])
        exact = Fraction(299 * red + 587 * green + 114 * blue, 255_000)
        error = abs(Fraction(float(found)) - exact)
        for neighbour in (np.nextafter(found, np.float32(2)), np.nextafter(found, np.float32(-1))):
            assert error <= abs(Fraction(float(neighbour)) - exact)

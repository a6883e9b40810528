"""`masksim.traits` against closed forms: noise of known strength, greys, flat parts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from masksim.errors import UsageError
from masksim.traits import (
    BANDS,
    TRAITS,
    bands_of,
    compression_band,
    measure,
    with_all_traits,
)


def of(pixels: np.ndarray, **known: float) -> dict[str, float]:
    height, width = pixels.shape[:2]
    found = measure(pixels, [(0, 0, width, height)], **known)  # type: ignore[arg-type]
    assert found.shape == (len(TRAITS),)
    return dict(zip(TRAITS, found.tolist(), strict=True))


def noise(sigma: float, size: int = 512, seed: int = 0) -> np.ndarray:
    plane = np.random.default_rng(seed).normal(128, sigma, (size, size, 1))
    return np.clip(np.rint(plane), 0, 255).astype(np.uint8).repeat(3, axis=2)


@pytest.mark.parametrize("sigma", [4.0, 10.0])
def test_white_noise_has_the_energy_of_four_pixels(sigma: float) -> None:
    found = of(noise(sigma))
    # A cross difference adds four independent pixels, rounding adds 1 / 12 to each.
    assert found["energy"] == pytest.approx(np.log(4 * (sigma**2 + 1 / 12)), abs=0.02)
    # The mean of four pixels has a quarter of the variance.
    assert found["sharpness"] == pytest.approx(np.log(4), abs=0.03)
    assert found["chroma"] == 0
    assert found["brightness"] == pytest.approx(128, abs=0.2)
    assert found["side"] == 512
    assert np.isnan(found["quality"])
    assert np.isnan(found["distance"])


def test_enlarging_takes_the_sharpness() -> None:
    small = Image.fromarray(noise(10, 256))
    large = np.asarray(small.resize((512, 512), Image.Resampling.BICUBIC))
    assert of(large)["sharpness"] < 0 < of(noise(10))["sharpness"]


def test_what_is_known_is_passed_on() -> None:
    found = of(noise(5), quality=87, distance=-0.25, band=1)
    assert (found["quality"], found["distance"], found["band"]) == (87, -0.25, 1)
    assert np.isnan(of(noise(5))["band"])


@pytest.mark.parametrize(
    ("format", "quality", "band"),
    [
        ("JPEG", 100, "lossless"),
        ("JPEG", 96, "lossless"),
        ("JPEG", 95, "high"),
        ("JPEG", 86, "high"),
        ("JPEG", 85, "middle"),
        ("MPO", 66, "middle"),
        ("JPEG", 65, "low"),
        ("JPEG", 1, "low"),
        ("PNG", None, "lossless"),
        ("array", None, "lossless"),
        ("TIFF", None, "lossless"),
        ("WEBP", None, "other"),
        ("AVIF", None, "other"),
        ("HEIF", None, "other"),
    ],
)
def test_the_band_of_a_file(format: str, quality: int | None, band: str) -> None:
    assert BANDS[compression_band(format, quality)] == band


def test_bands_of_a_table() -> None:
    table = np.full((5, len(TRAITS)), np.nan)
    table[:, TRAITS.index("band")] = [0, 3, np.nan, 4, 9]
    assert bands_of(table, len(BANDS)).tolist() == [0, 3, 0, 4, 4]
    assert bands_of(table, 1).tolist() == [0] * 5  # one set of heads serves all
    assert bands_of(table[1], len(BANDS)) == 3


def test_tables_of_fewer_traits_are_completed() -> None:
    older = np.arange(16.0).reshape(2, 8)  # written before there were bands
    found = with_all_traits(older)
    assert found.shape == (2, len(TRAITS))
    np.testing.assert_array_equal(found[:, :8], older)
    assert np.isnan(found[:, TRAITS.index("band")]).all()
    assert with_all_traits(found) is found
    other = np.zeros((5, 3))  # nothing that was ever written: for others to refuse
    assert with_all_traits(other) is other


def test_colour_light_and_the_shorter_side() -> None:
    pixels = np.zeros((300, 700, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 60, 40, 10
    found = of(pixels)
    assert found["chroma"] == pytest.approx((20 + 30) / 2)
    assert found["brightness"] == pytest.approx(0.299 * 60 + 0.587 * 40 + 0.114 * 10, abs=1e-3)
    assert found["side"] == 300
    assert found["flat"] == 1
    assert found["energy"] == pytest.approx(np.log(0.05), abs=1e-3)


def test_windows_are_averaged_and_the_rest_is_not_seen() -> None:
    pixels = np.concatenate([noise(4, 256), noise(16, 256), np.zeros((256, 256, 3), np.uint8)], 1)
    windows = [(0, 0, 256, 256), (256, 0, 256, 256)]
    both = measure(pixels, windows)
    one, two = (measure(pixels, [window]) for window in windows)
    np.testing.assert_allclose(both[1:6], (one[1:6] + two[1:6]) / 2, rtol=1e-9)


def test_a_window_is_needed() -> None:
    with pytest.raises(UsageError, match="at least one window"):
        measure(noise(4), [])


def flat_share(pixels: NDArray[np.uint8], windows: list[tuple[int, int, int, int]]) -> float:
    return float(measure(pixels, windows)[TRAITS.index("flat")])


def test_flat_share() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    assert flat_share(noisy, [(0, 0, 80, 64)]) == 0
    assert flat_share(np.full((64, 80, 3), 7, np.uint8), [(0, 0, 80, 64)]) == 1
    half = noisy.copy()
    half[:, 40:] = 9
    assert flat_share(half, [(0, 0, 40, 64), (40, 0, 40, 64)]) == pytest.approx(0.5)
    # Equal along rows only, or in one channel only, is not flat.
    rows = np.repeat(noisy[:, :1], 80, axis=1)
    assert flat_share(rows, [(0, 0, 80, 64)]) < 0.01


def test_flat_share_is_that_of_each_pixel() -> None:
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 2, (40, 56, 3), dtype=np.uint8)
    pixels[8:20, 8:40] = 1
    windows = [(0, 0, 56, 40), (8, 8, 16, 24)]
    shares = []
    for x, y, width, height in windows:
        flat = [
            (pixels[v, u] == pixels[v, u + 1]).all() and (pixels[v, u] == pixels[v + 1, u]).all()
            for v in range(y, y + height - 1)
            for u in range(x, x + width - 1)
        ]
        shares.append(sum(flat) / len(flat))
    assert flat_share(pixels, windows) == pytest.approx(np.mean(shares), abs=1e-12)

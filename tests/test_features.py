"""`masksim.features`: one route from pixels to cells, and its parts done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.errors import ImageError, UsageError
from masksim.features import FeatureConfig, pattern_features, shared_features
from masksim.preprocess import luma_chroma, shared_windows
from masksim.residual import BANK, OnnxResidual, ResidualConfig, bank_residual, residual_onnx
from masksim.spectrum import pool_cells, welch_log_power

Natural = Callable[..., NDArray[np.uint8]]

SMALL = FeatureConfig(
    window=128, windows=3, smallest=64, region=400, spacing=64, segment=32, hops=(24, 16)
)


@pytest.fixture(scope="module")
def bank() -> OnnxResidual:
    pytest.importorskip("onnx")
    return OnnxResidual(residual_onnx(ResidualConfig("bank"), {}), threads=1)


def as_it_is(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    return planes


def test_a_configuration_survives_json() -> None:
    for config in (FeatureConfig(), SMALL):
        assert FeatureConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert FeatureConfig.from_dict({}) == FeatureConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop": 3}, "unknown keys.*'hop'"),
        ({"window": 0}, "positive integers"),
        ({"window": 512.0}, "positive integers"),
        ({"windows": True}, "positive integers"),
        ({"hops": [96, 0]}, "positive integers"),
        ({"hops": [96]}, "two hops"),
        ({"hops": 96}, "two hops"),
        ({"segment": "128"}, "positive integers"),
        ({"window": 260}, "multiple of 8"),
        ({"smallest": 255}, "at least two segments"),
        ({"window": 128}, "at least two segments"),
        ({"region": 200}, "at least two segments"),
        ({"spacing": 0}, "positive integers"),
        ({"cell": 3}, "multiple of the cell"),
        ({"segment": 126}, "multiple of the cell"),
        ({"parts": 5}, "4 segments of luma, too few for 5 parts"),
        ({"floor": 0.0}, "floor"),
        ({"floor": float("nan")}, "floor"),
        ({"floor": "x"}, "floor"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FeatureConfig.from_dict({**FeatureConfig().to_dict(), **change})


def test_pattern_features_are_the_cells_of_all_channels() -> None:
    rng = np.random.default_rng(0)
    luma = rng.standard_normal((2, 4, 64, 80)).astype(np.float32)
    chroma = rng.standard_normal((2, 8, 32, 40)).astype(np.float32)
    found = pattern_features([luma, chroma], segment=32, hops=(24, 8), floor=0.05, cell=2)
    assert found.shape == (2, 12, 16, 8)
    assert found.dtype == np.float32
    for b in range(2):
        for c in range(12):
            plane, hop = (luma[b, c], 24) if c < 4 else (chroma[b, c - 4], 8)
            expected = pool_cells(welch_log_power(plane, 32, hop, 0.05), 2)
            np.testing.assert_allclose(found[b, c], expected, rtol=1e-5)


def test_torch_computes_the_same_features() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    groups = [rng.standard_normal((1, 4, 64, 64)), rng.standard_normal((1, 8, 32, 32))]
    options: dict[str, Any] = {"segment": 16, "hops": (8, 8), "floor": 0.05, "cell": 2}
    found = pattern_features([torch.from_numpy(group) for group in groups], **options)
    np.testing.assert_allclose(found, pattern_features(groups, **options), atol=1e-10)


def test_features_are_the_mean_over_the_windows(bank: OnnxResidual, natural_image: Natural) -> None:
    pixels = natural_image(300, 420, seed=3)
    found, windows = shared_features(pixels, SMALL, bank)
    assert found.shape == (3 * len(BANK), 16, 8)
    assert found.dtype == np.float32
    corners, height, width = shared_windows(300, 420, 128, 3, smallest=64, region=400, spacing=64)
    assert windows == [(x, y, width, height) for y, x in corners]  # x first, as people write it
    each = [shared_features(pixels[y : y + h, x : x + w], SMALL, bank)[0] for x, y, w, h in windows]
    assert len(each) == 3
    assert np.abs(each[0] - each[1]).max() > 0.1
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)


def test_one_window_done_by_hand(bank: OnnxResidual, natural_image: Natural) -> None:
    pixels = natural_image(128, 128, seed=4)
    found, windows = shared_features(pixels, SMALL, bank)
    assert windows == [(0, 0, 128, 128)]
    luma, chroma = luma_chroma(pixels[None])
    residuals = [bank(luma)[0], bank(chroma)[0]]
    assert [len(r) for r in residuals] == [len(BANK), 2 * len(BANK)]
    line = np.sin(np.pi * np.arange(32) / 32) ** 2
    window = np.outer(line, line)
    window /= np.sqrt((window**2).mean())
    channel = 0
    for residual, hop in zip(residuals, SMALL.hops, strict=True):
        for plane in residual.astype(np.float64):
            side = len(plane)
            logs = [
                np.log(
                    np.abs(np.fft.fft2(plane[y : y + 32, x : x + 32] * window)) ** 2 / 32**2 + 0.05
                )
                for y in range(0, side - 31, hop)
                for x in range(0, side - 31, hop)
            ]
            whole = np.fft.fftshift(np.mean(logs, axis=0))[:, 16:]
            cells = whole.reshape(16, 2, 8, 2).mean(axis=(1, 3))
            np.testing.assert_allclose(found[channel], cells, atol=2e-4)
            channel += 1
    assert channel == len(found)


def test_windows_keep_the_phase_of_the_jpeg_grid(natural_image: Natural) -> None:
    y, x = np.mgrid[:333, :411]
    grid = ((y % 8 == 0) & (x % 8 == 0)).astype(np.uint8) * 255
    pixels = np.repeat(grid[..., None], 3, axis=-1)
    seen = []

    def keep(planes: NDArray[np.float32]) -> NDArray[np.float32]:
        if planes.shape[1] == 1:
            seen.append(planes[0, 0])
        return planes

    _, windows = shared_features(pixels, SMALL, keep)
    assert len(seen) == len(windows) == 3
    for plane in seen:
        np.testing.assert_allclose(plane, grid[:128, :128] / 255.0, atol=1e-6)


@pytest.mark.parametrize(("fy", "fx"), [(0.28125, 0.15625), (-0.3125, 0.40625), (0.40625, 0.28125)])
def test_a_planted_wave_is_seen_in_luma(
    bank: OnnxResidual, natural_image: Natural, fy: float, fx: float
) -> None:
    pixels = natural_image(256, 256, seed=5)
    y, x = np.mgrid[:256, :256]
    wave = 6 * np.cos(2 * np.pi * (fy * y + fx * x))
    planted = np.clip(np.rint(pixels + wave[..., None]), 0, 255).astype(np.uint8)
    plain, _ = shared_features(pixels, SMALL, bank)
    found, _ = shared_features(planted, SMALL, bank)
    side = SMALL.cell / SMALL.segment
    for channel in range(len(BANK)):
        change = (found - plain)[channel]
        row, column = np.unravel_index(change.argmax(), change.shape)
        low_y, low_x = row * side - 0.5, column * side
        # The window spreads a wave over three bins: at the edge of a cell its neighbour may win.
        assert low_y - 1 / 32 <= fy <= low_y + side, (channel, low_y)
        assert low_x - 1 / 32 <= fx <= low_x + side, (channel, low_x)
        assert change.max() > 1


def test_small_images_have_one_smaller_window(bank: OnnxResidual, natural_image: Natural) -> None:
    found, windows = shared_features(natural_image(70, 100), SMALL, bank)
    assert windows == [(0, 0, 96, 64)]
    assert np.isfinite(found).all()
    with pytest.raises(ImageError) as caught:
        shared_features(natural_image(63, 100), SMALL, bank)
    assert caught.value.code == "too_small"


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_image_has_finite_features(bank: OnnxResidual, level: int) -> None:
    found, _ = shared_features(np.full((128, 128, 3), level, np.uint8), SMALL, bank)
    np.testing.assert_allclose(found, np.log(SMALL.floor), atol=0.01)


def test_every_small_image_that_is_accepted_has_features(natural_image: Natural) -> None:
    pixels = natural_image(140, 140)
    for side in range(64, 140):
        found, windows = shared_features(pixels[:side, : 203 - side], SMALL, as_it_is)
        assert found.shape == (3, 16, 8)
        assert all(w % 8 == h % 8 == 0 for _, _, w, h in windows)


def test_threads_change_nothing(natural_image: Natural) -> None:
    pixels = natural_image(300, 420, seed=6)
    one, windows = shared_features(pixels, SMALL, bank_residual)
    many, same = shared_features(pixels, SMALL, bank_residual, threads=3)
    assert windows == same
    np.testing.assert_array_equal(one, many)

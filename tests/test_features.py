"""`masksim.features`: one route from pixels to cells, and its parts done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.bank import BANK, bank_residual
from masksim.errors import ImageError, UsageError
from masksim.features import FeatureConfig, pattern_features, shared_features
from masksim.preprocess import luma_chroma, shared_windows
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx
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
        ({"window": 0}, "must be positive"),
        ({"window": 512.0}, "window must be a whole number, got 512.0"),
        ({"windows": True}, "windows must be a whole number, got True"),
        ({"hops": [96, 0]}, "must be positive"),
        ({"hops": [96]}, "hops must be a list of 2"),
        ({"hops": 96}, "hops must be a list, got 96"),
        ({"segment": "128"}, "segment must be a whole number, got '128'"),
        ({"window": 260}, "multiple of 8"),
        ({"smallest": 255}, "at least two segments"),
        ({"window": 128}, "at least two segments"),
        ({"region": 200}, "at least two segments"),
        ({"spacing": 0}, "must be positive"),
        ({"cell": 3}, "multiple of the cell"),
        ({"segment": 126}, "multiple of the cell"),
        ({"parts": 5}, "4 segments of luma, too few for 5 parts"),
        ({"floor": 0.0}, "floor"),
        ({"floor": float("nan")}, "floor"),
        ({"floor": "x"}, "floor must be a number, got 'x'"),
        ({"coherence": 1}, "coherence must be true or false, got 1"),
        ({"kinds": []}, "kinds of residuals must be some of"),
        ({"kinds": ["median", "clipped"]}, "in this order"),
        ({"kinds": ["median", "median"]}, "in this order"),
        ({"kinds": ["sharp"]}, "must be one of"),
        ({"kinds": ["median"], "parts": 3}, "kinds must include it"),
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


# --- parts of an image, coherence of its colours -------------------------------------------------

PARTED = FeatureConfig(**{**SMALL.to_dict(), "hops": (24, 16), "parts": 3, "coherence": True})


def hann(n: int) -> NDArray[np.float64]:
    line = np.sin(np.pi * np.arange(n) / n) ** 2
    window = np.outer(line, line)
    return np.asarray(window / np.sqrt((window**2).mean()))


def slow_cells(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cells of side 2 of a whole spectrum of 32 x 32 in FFT order."""
    half = np.fft.fftshift(spectrum)[:, 16:]
    return np.asarray(half.reshape(16, 2, 8, 2).mean(axis=(1, 3)))


def slow_features(
    pixels: NDArray[np.uint8], config: FeatureConfig, bank: OnnxResidual
) -> NDArray[np.float64]:
    """The definition, one segment after another, in double precision."""
    corners, height, width = shared_windows(
        pixels.shape[0], pixels.shape[1], config.window, config.windows, smallest=config.smallest,
        region=config.region, spacing=config.spacing,
    )  # fmt: skip
    segments = []  # (energy, spectra of the luma channels)
    chroma_means, pair_means = [], []
    for y0, x0 in corners:
        part = pixels[y0 : y0 + height, x0 : x0 + width]
        luma, chroma = (bank(plane)[0].astype(np.float64) for plane in luma_chroma(part[None]))
        for y in range(0, height - 31, config.hops[0]):
            for x in range(0, width - 31, config.hops[0]):
                patch = luma[:, y : y + 32, x : x + 32]
                power = np.abs(np.fft.fft2(patch * hann(32), norm="ortho")) ** 2
                segments.append(((patch[0] ** 2).mean(), np.log(power + config.floor)))
        h, w = chroma.shape[1:]
        found = []
        half = part.astype(np.float64).reshape(h, 2, w, 2, 3).sum(axis=(1, 3))
        cross = np.zeros((3, h, w))
        for c in range(3):
            a = half[..., c]
            cross[c, :-1, :-1] = a[:-1, :-1] + a[1:, 1:] - a[1:, :-1] - a[:-1, 1:]
        cosines = []
        for y in range(0, h - 31, config.hops[1]):
            for x in range(0, w - 31, config.hops[1]):
                patch = chroma[:, y : y + 32, x : x + 32]
                power = np.abs(np.fft.fft2(patch * hann(32), norm="ortho")) ** 2
                found.append(np.log(power + config.floor))
                three = np.fft.fft2(cross[:, y : y + 32, x : x + 32] * hann(32))
                angle = np.angle(three)
                cosines.append([np.cos(angle[i] - angle[j]) for i, j in ((0, 1), (1, 2), (0, 2))])
        chroma_means.append(np.mean(found, axis=0))
        pair_means.append(np.mean(cosines, axis=0))
    order = sorted(range(len(segments)), key=lambda k: segments[k][0])
    groups: list[list[Any]] = [[] for _ in range(config.parts)]
    for rank, k in enumerate(order):
        groups[rank * config.parts // len(order)].append(segments[k][1])
    channels = [*np.concatenate([np.mean(group, axis=0) for group in groups])]
    channels += [*np.mean(chroma_means, axis=0), *np.mean(pair_means, axis=0)]
    return np.array([slow_cells(channel) for channel in channels])


@pytest.mark.parametrize("size", [(300, 420), (140, 330), (72, 90)])
def test_parts_and_coherence_are_the_definition(
    bank: OnnxResidual, natural_image: Natural, size: tuple[int, int]
) -> None:
    pixels = natural_image(*size, seed=11)
    pixels[: size[0] // 2] = pixels[: size[0] // 2] // 4 + 100  # quiet above, busy below
    found, windows = shared_features(pixels, PARTED, bank)
    assert found.shape == (PARTED.channels, 16, 8)
    assert PARTED.channels == 5 * len(BANK) + 3
    assert len(windows) == {(300, 420): 3, (140, 330): 3, (72, 90): 1}[size]
    expected = slow_features(pixels, PARTED, bank)
    luma = 3 * len(BANK)
    np.testing.assert_allclose(found[:luma], expected[:luma], atol=3e-4)
    np.testing.assert_allclose(found[luma:], expected[luma:], atol=2e-3)
    # The quiet part is quieter than the busy one, and coherences are cosines.
    assert found[0].mean() < found[2 * len(BANK)].mean() - 0.5
    assert np.abs(found[-3:]).max() <= 1 + 1e-5


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_some_kinds_are_some_channels(
    bank: OnnxResidual, natural_image: Natural, parts: int, own: bool
) -> None:
    pixels = natural_image(300, 420, seed=15)
    residual = bank_residual if own else bank
    config = FeatureConfig(**{**PARTED.to_dict(), "hops": SMALL.hops, "parts": parts})
    whole = shared_features(pixels, config, residual)[0]
    fewer = replace(config, kinds=("cross difference", "median"))
    found = shared_features(pixels, fewer, residual)[0]
    assert found.shape[0] == fewer.channels == 2 * (parts + 2) + 3
    n = len(BANK)
    kept = [n * part + k for part in range(parts) for k in (0, 3)]
    kept += [n * parts + 2 * k + c for k in (0, 3) for c in (0, 1)]
    np.testing.assert_array_equal(found, whole[[*kept, -3, -2, -1]])


def test_one_part_is_all_segments(bank: OnnxResidual, natural_image: Natural) -> None:
    pixels = natural_image(300, 420, seed=12)
    together = shared_features(pixels, SMALL, bank)[0]
    with_coherence = FeatureConfig(**{**PARTED.to_dict(), "hops": SMALL.hops, "parts": 1})
    found = shared_features(pixels, with_coherence, bank)[0]
    np.testing.assert_allclose(found[:-3], together, atol=2e-5)
    parts = shared_features(pixels, PARTED, bank)[0]
    luma = len(BANK)
    counts = np.bincount(np.arange(75) * 3 // 75)
    assert counts.tolist() == [25, 25, 25]  # 5 x 5 segments in each of three windows
    np.testing.assert_allclose(
        parts[: 3 * luma].reshape(3, luma, 16, 8).mean(axis=0), together[:luma], atol=1e-4
    )


def test_a_pattern_of_all_colours_is_coherent(bank: OnnxResidual) -> None:
    rng = np.random.default_rng(13)
    own = rng.normal(128, 6, (160, 160, 3))
    y, x = np.mgrid[:160, :160]
    wave = 12 * np.cos(2 * np.pi * (x + y) / 16)[..., None]  # 1 / 8 at half the resolution
    plain, planted = (np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in (own, own + wave))
    none, found = (shared_features(p, PARTED, bank)[0][-3:] for p in (plain, planted))
    assert np.abs(none).mean() < 0.15
    # Rows: from -0.5 upwards; frequency (1/8, 1/8) lies in cell (10, 2) of 16 x 8.
    assert (found[:, 9:11, 1:3].max(axis=(1, 2)) > 0.6).all()
    grey = np.repeat(plain[..., :1], 3, axis=2)
    np.testing.assert_allclose(shared_features(grey, PARTED, bank)[0][-3:, 1:, 1:], 1, atol=1e-3)


def test_threads_change_nothing_in_parts(bank: OnnxResidual, natural_image: Natural) -> None:
    pixels = natural_image(420, 420, seed=14)
    one, four = (shared_features(pixels, PARTED, bank, threads=n)[0] for n in (1, 4))
    np.testing.assert_array_equal(one, four)


def test_a_flat_image_has_finite_parts(bank: OnnxResidual) -> None:
    found = shared_features(np.full((160, 160, 3), 90, np.uint8), PARTED, bank)[0]
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[-3:], 0)  # of nothing there is no phase

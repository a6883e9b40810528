"""`masksim.spectrum` against the definition of the Fourier transform and planted signals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim import spectrum
from masksim.errors import UsageError

SIZES = [(8, 8), (6, 7), (7, 6), (5, 9), (1, 4), (3, 1), (2, 2)]


def noise(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(5).standard_normal(shape)


def by_definition(residual: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """The transform as a product with the matrices of complex exponentials."""
    height, width = residual.shape[-2:]
    rows = np.exp(-2j * np.pi * np.outer(spectrum.frequencies(height), np.arange(height)))
    columns = np.exp(-2j * np.pi * np.outer(spectrum.frequencies(width), np.arange(width)))
    transform = rows @ residual @ columns.T / np.sqrt(height * width)
    return np.asarray(np.log(np.abs(transform) + epsilon))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_definition(size: tuple[int, int]) -> None:
    residual = noise(2, 3, *size)
    found = spectrum.log_spectrum(residual)
    assert found.shape == residual.shape
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_definition(residual, 1e-10), rtol=0, atol=1e-10)


def test_it_is_the_full_transform_of_numpy() -> None:
    residual = noise(3, 46, 33)
    full = np.fft.fftshift(np.fft.fft2(residual, norm="ortho"), axes=(-2, -1))
    expected = np.log(np.abs(full) + 1e-3)
    np.testing.assert_allclose(spectrum.log_spectrum(residual, 1e-3), expected, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_frequencies(n: int) -> None:
    axis = spectrum.frequencies(n)
    assert axis[n // 2] == 0
    assert axis.min() >= -0.5
    assert axis.max() < 0.5
    np.testing.assert_allclose(np.diff(axis), 1 / n)


@pytest.mark.parametrize(("fy", "fx"), [(0.125, 0.25), (-0.25, 0.375), (0.0, 0.125), (-0.5, 0.0)])
def test_a_planted_wave_is_found_at_its_frequency(fy: float, fx: float) -> None:
    height, width = 64, 48
    y, x = np.mgrid[:height, :width]
    found = spectrum.log_spectrum(np.cos(2 * np.pi * (fy * y + fx * x)))
    row, column = np.unravel_index(found.argmax(), found.shape)
    at = (float(spectrum.frequencies(height)[row]), float(spectrum.frequencies(width)[column]))
    assert at in ((fy, fx), (-fy, -fx))
    # A cosine has half its amplitude on each side; at Nyquist and zero both sides are one.
    amplitude = 1.0 if 2 * fy % 1 == 0 and 2 * fx % 1 == 0 else 0.5
    assert found.max() == pytest.approx(np.log(amplitude * np.sqrt(height * width)))


def test_single_precision_stays_single() -> None:
    residual = noise(3, 478, 478).astype(np.float32)
    found = spectrum.log_spectrum(residual)
    assert found.dtype == np.float32
    exact = spectrum.log_spectrum(residual.astype(np.float64))
    # The error is absolute in the transform, hence relative to the magnitude after the logarithm.
    error = np.abs(np.exp(found.astype(np.float64)) - np.exp(exact))
    assert error.max() < 1e-5


def test_it_is_even() -> None:
    for size in SIZES:
        full = spectrum.log_spectrum(noise(*size))
        mirrored = np.fft.ifftshift(full)
        mirrored = np.roll(np.flip(mirrored), 1, axis=(0, 1))
        np.testing.assert_allclose(np.fft.fftshift(mirrored), full, rtol=0, atol=1e-10)


def test_nothing_is_the_floor() -> None:
    found = spectrum.log_spectrum(np.zeros((1, 3, 4, 4), dtype=np.float32))
    np.testing.assert_allclose(found, np.log(1e-10), rtol=1e-6)


def test_half_of_another_width_is_refused() -> None:
    half = spectrum.log_half_spectrum(noise(6, 8))
    assert half.shape == (6, 5)
    with pytest.raises(UsageError, match="6 columns, got 5"):
        spectrum.full_from_half(half, 10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_runs_the_same_lines(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    for size in SIZES:
        residual = noise(2, 3, *size).astype(dtype)
        tensor = torch.from_numpy(residual).requires_grad_()
        found: Any = spectrum.log_spectrum(tensor)
        assert found.dtype == getattr(torch, dtype)
        tolerance = 2e-5 if dtype == "float32" else 1e-12
        magnitude = np.exp(spectrum.log_spectrum(residual))
        np.testing.assert_allclose(found.detach().exp().numpy(), magnitude, atol=tolerance)
        found.sum().backward()
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad != 0).any()


# --- the shared recipe ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 32, 33])
def test_hann_window_is_scipys(n: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    line = signal.windows.hann(n, sym=False)
    expected = np.outer(line, line)
    expected /= np.sqrt((expected**2).mean())
    found = spectrum.hann_window(n)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float((found.astype(np.float64) ** 2).mean()) == pytest.approx(1, abs=1e-6)


def test_one_segment_is_the_definition() -> None:
    patch = noise(2, 3, 8, 8)
    window = spectrum.hann_window(8).astype(np.float64)
    full = np.fft.ifftshift(by_definition(patch * window, 0.0), axes=(-2, -1))
    expected = np.log(np.exp(2 * full) + 0.05)[..., :5]
    np.testing.assert_allclose(spectrum.welch_log_power(patch, 8, 3, 0.05), expected, atol=1e-9)


@pytest.mark.parametrize("hop", [1, 3, 8, 50])
def test_all_segments_that_fit_are_averaged(hop: int) -> None:
    residual = noise(2, 21, 30)
    parts = [
        spectrum.welch_log_power(residual[:, y : y + 8, x : x + 8], 8, 1, 0.01)
        for y in range(0, 14, hop)
        for x in range(0, 23, hop)
    ]
    found = spectrum.welch_log_power(residual, 8, hop, 0.01)
    assert found.shape == (2, 8, 5)
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-10)


@pytest.mark.parametrize("variance", [0.25, 9.0])
def test_white_noise_has_its_expected_log_power(variance: float) -> None:
    scale = np.sqrt(variance)
    residual = scale * np.random.default_rng(8).standard_normal((40, 192, 192))
    found = spectrum.welch_log_power(residual, 32, 32, 1e-12).mean(axis=0)
    # 1440 independent segments. The power is exponentially distributed: its logarithm has the
    # mean ln s - gamma and the deviation pi / sqrt(6). Where the transform is real it is one
    # squared normal: ln s - gamma - ln 2 and pi / sqrt(2).
    inner = found[2:15, 2:15]
    error = np.pi / np.sqrt(6 * 1440)
    assert inner.mean() == pytest.approx(np.log(variance) - np.euler_gamma, abs=0.02)
    assert np.abs(inner - (np.log(variance) - np.euler_gamma)).max() < 5 * error
    for at in ((0, 0), (0, 16), (16, 0), (16, 16)):
        expected = np.log(variance) - np.euler_gamma - np.log(2)
        assert found[at] == pytest.approx(expected, abs=5 * np.pi / np.sqrt(2 * 1440))


def test_the_floor_hides_what_lies_under_it() -> None:
    nothing = np.zeros((3, 40, 40), np.float32)
    found = spectrum.welch_log_power(nothing, 16, 8, 0.05)
    np.testing.assert_allclose(found, np.log(0.05), rtol=1e-6)
    faint = spectrum.welch_log_power(1e-4 * noise(3, 40, 40), 16, 8, 0.05)
    np.testing.assert_allclose(faint, np.log(0.05), atol=1e-5)


def test_a_strong_patch_counts_as_one() -> None:
    # The mean of logarithms: one patch of a hundred times the amplitude moves it a quarter.
    residual = noise(64, 128)
    residual[:, :32] *= 100
    found = spectrum.welch_log_power(residual, 32, 32, 1e-9)
    plain = spectrum.welch_log_power(noise(64, 128), 32, 32, 1e-9)
    np.testing.assert_allclose(found - plain, np.log(1e4) / 4, atol=1e-4)


@pytest.mark.parametrize(
    ("fy", "fx"), [(0.125, 0.25), (-0.25, 0.375), (0.0, 0.125), (-0.4375, 0.03125), (-0.5, 0.25)]
)
@pytest.mark.parametrize("side", [1, 2, 4])
def test_a_planted_wave_is_in_its_cell(fy: float, fx: float, side: int) -> None:
    n = 64
    y, x = np.mgrid[:200, :170]
    wave = np.cos(2 * np.pi * (fy * y + fx * x) + 0.3) + 1e-3 * noise(200, 170)
    found = spectrum.pool_cells(spectrum.welch_log_power(wave, n, 32, 1e-6), side)
    assert found.shape == (n // side, n // (2 * side))
    row, column = np.unravel_index(found.argmax(), found.shape)
    # The rows of a cell begin at -0.5 + row side / n, its columns at column side / n.
    low_y, low_x = row * side / n - 0.5, column * side / n
    if side == 1:
        assert (low_y, low_x) == (fy, fx)
    else:  # the window spreads a wave over three bins: at an edge the neighbour shares it
        assert low_y - 1 / n <= fy <= low_y + side / n
        assert low_x - 1 / n <= fx <= low_x + side / n
    whole = spectrum.spread_cells(found.astype(np.float32), side)
    assert whole.shape == (n, n)
    axis = spectrum.frequencies(n)
    at = (int(np.flatnonzero(axis == fy)[0]), int(np.flatnonzero(axis == fx)[0]))
    value = found[(at[0] // side, (at[1] - n // 2) // side)]
    assert value >= found.max() - 1.5


def test_cells_are_block_means_of_the_shifted_half() -> None:
    half = spectrum.log_half_spectrum(noise(2, 3, 16, 16))
    full = spectrum.full_from_half(half, 16)[..., 8:]  # rows from -0.5, columns from 0
    expected = np.empty((2, 3, 4, 2))
    for i, j in np.ndindex(4, 2):
        expected[..., i, j] = full[..., 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean(axis=(-2, -1))
    np.testing.assert_allclose(spectrum.pool_cells(half, 4), expected, rtol=1e-12)
    np.testing.assert_array_equal(spectrum.pool_cells(half, 1), full)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_spread_cells_keep_their_sum_evenly_and_are_even(side: int) -> None:
    rows, n = 32 // side, 32
    cells = noise(2, 5, rows, rows // 2).astype(np.float32)
    found = spectrum.spread_cells(cells, side)
    assert found.shape == (2, 5, n, n)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=(-2, -1)), cells.sum(axis=(-2, -1)), atol=1e-5)
    turned = np.fft.ifftshift(found, axes=(-2, -1))
    turned = np.roll(np.flip(turned, axis=(-2, -1)), 1, axis=(-2, -1))
    np.testing.assert_allclose(np.fft.fftshift(turned, axes=(-2, -1)), found, atol=1e-7)
    assert not found[..., 0].any()  # the Nyquist column, which no cell covers

    # Half of a cell lies on the frequencies it covers and half on their opposites, at one density.
    for i, j in np.ndindex(rows, rows // 2):
        one = np.zeros((rows, rows // 2), np.float32)
        one[i, j] = 1
        expected = np.zeros((n, n))
        for r in range(i * side, (i + 1) * side):
            for c in range(n // 2 + j * side, n // 2 + (j + 1) * side):
                # A point of the column of frequency 0 is in a cell and in the mirror of another.
                share = 0.5 if c == n // 2 else 1.0
                expected[r, c] += share
                expected[(n - r) % n, n - c] += share
        expected /= expected.sum()
        np.testing.assert_allclose(spectrum.spread_cells(one, side), expected, atol=1e-7)
    ones = np.ones((rows, rows // 2), np.float32)
    ones[:, 0] = (side - 0.5) / side  # as many frequencies as a cell of the first column has
    flat = spectrum.spread_cells(ones, side)[:, 1:]
    np.testing.assert_allclose(flat, flat[0, 0], rtol=1e-5)


@pytest.mark.parametrize(("segment", "hop"), [(41, 8), (8, 0), (31, 4)])
def test_segments_that_do_not_fit_are_refused(segment: int, hop: int) -> None:
    with pytest.raises(UsageError, match=f"no segment of {segment} with hop {hop} fits 40x30"):
        spectrum.welch_log_power(noise(30, 40), segment, hop, 0.1)


def test_cells_that_do_not_fit_are_refused() -> None:
    for shape, side in (((16, 9), 3), ((16, 9), 0), ((16, 16), 2), ((15, 8), 2)):
        with pytest.raises(UsageError, match="has no cells of side"):
            spectrum.pool_cells(noise(*shape), side)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_computes_the_same_cells(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    residual = noise(2, 3, 50, 60).astype(dtype)
    expected = spectrum.pool_cells(spectrum.welch_log_power(residual, 16, 10, 0.05), 2)
    assert expected.dtype == residual.dtype
    tensor = torch.from_numpy(residual).requires_grad_()
    found = spectrum.pool_cells(spectrum.welch_log_power(tensor, 16, 10, 0.05), 2)
    assert found.dtype == tensor.dtype
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=tolerance)
    found.sum().backward()
    assert torch.isfinite(tensor.grad).all()
    assert (tensor.grad != 0).any()


@pytest.mark.parametrize("shape", [(64, 80), (3, 64, 80), (2, 5, 64, 64), (1, 9, 40, 33)])
def test_transforms_in_place_are_the_plain_ones(shape: tuple[int, ...]) -> None:
    residual = np.random.default_rng(6).normal(0, 2, shape).astype(np.float32)
    found = spectrum.welch_log_power(residual, 32, 24, 0.05)
    assert found.dtype == np.float32
    # Double precision takes the other lines.
    expected = spectrum.welch_log_power(residual.astype(np.float64), 32, 24, 0.05)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_numpy_arrays_need_no_second_namespace() -> None:
    code = (
        "import sys, numpy as np; from masksim.arrays import array_namespace;"
        "assert array_namespace(np.ones(3), np.float32(1)) is np;"
        "assert 'array_api_compat.numpy' not in sys.modules"
    )
    if hasattr(np, "__array_api_version__"):
        subprocess.run([sys.executable, "-c", code], check=True)


# --- parts and coherence -------------------------------------------------------------------------


def test_segment_energies_are_mean_squares() -> None:
    plane = noise(50, 70).astype(np.float32)
    expected = [
        np.mean(plane[y : y + 16, x : x + 16].astype(float) ** 2)
        for y in range(0, 50 - 15, 12)
        for x in range(0, 70 - 15, 12)
    ]
    np.testing.assert_allclose(spectrum.segment_energies(plane, 16, 12), expected, rtol=1e-5)


def test_log_power_by_part_is_the_sum_of_its_segments() -> None:
    planes = (3 * noise(5, 50, 70)).astype(np.float32)
    corners = [(y, x) for y in range(0, 35, 12) for x in range(0, 55, 12)]
    parts = np.random.default_rng(8).integers(0, 4, len(corners))
    parts[parts == 2] = 1  # one part is empty
    found = spectrum.log_power_by_part(planes, 16, 12, 0.05, parts, 4)
    assert found.shape == (4, 5, 16, 9)
    window = np.outer(*2 * [np.sin(np.pi * np.arange(16) / 16) ** 2])
    window /= np.sqrt((window**2).mean())
    expected = np.zeros(found.shape)
    for (y, x), part in zip(corners, parts, strict=True):
        for c in range(5):
            patch = planes[c, y : y + 16, x : x + 16].astype(float) * window
            expected[part, c] += np.log(np.abs(np.fft.rfft2(patch, norm="ortho")) ** 2 + 0.05)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert not found[2].any()
    whole = spectrum.log_power_by_part(planes, 16, 12, 0.05, np.zeros(len(corners), int), 1)[0]
    np.testing.assert_allclose(
        whole / len(corners), spectrum.welch_log_power(planes, 16, 12, 0.05), atol=1e-5
    )


def test_phase_coherence_by_definition() -> None:
    planes = noise(3, 40, 56).astype(np.float32)
    planes[1] += 2 * planes[0]
    found = spectrum.phase_coherence(planes, 16, 8)
    assert found.shape == (3, 16, 9)
    window = np.outer(*2 * [np.sin(np.pi * np.arange(16) / 16) ** 2])
    cosines = []
    for y in range(0, 40 - 15, 8):
        for x in range(0, 56 - 15, 8):
            angle = np.angle(np.fft.rfft2(planes[:, y : y + 16, x : x + 16] * window))
            cosines.append([np.cos(angle[a] - angle[b]) for a, b in ((0, 1), (1, 2), (0, 2))])
    np.testing.assert_allclose(found, np.mean(cosines, axis=0), atol=1e-3)
    assert found[0].mean() > 0.7
    assert abs(found[2].mean()) < 0.2


def test_phase_coherence_does_not_see_strength_and_sees_sign() -> None:
    plane = noise(64, 64).astype(np.float32)
    found = spectrum.phase_coherence(np.stack([plane, 5 * plane, -plane]), 32, 16)
    np.testing.assert_allclose(found[0], 1, atol=1e-3)
    np.testing.assert_allclose(found[1:], -1, atol=1e-3)
    nothing = spectrum.phase_coherence(np.stack([plane, 0 * plane, plane]), 32, 16)
    np.testing.assert_array_equal(nothing[:2], 0)

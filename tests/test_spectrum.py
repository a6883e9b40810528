"""`masksim.spectrum` against the definition of the Fourier transform and planted signals."""

from __future__ import annotations

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

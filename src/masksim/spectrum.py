"""From a noise residual to its log-magnitude spectrum.

Pure functions over the array API: NumPy arrays (detection) and torch tensors (training, with
gradients) run the same lines, and nothing here imports torch. Spectra are laid out as pictures:
zero frequency in the middle (`fftshift`), axes in cycles per pixel, see `frequencies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from masksim.arrays import NUMPY_CONFORMS, Array, array_namespace, device_of
from masksim.errors import UsageError

_PLANES_AT_ONCE = 4  # their patches and transforms stay in a core's own cache

EPSILON = 1e-10
"""Floor added to magnitudes before the logarithm, as in the original."""

COHERENCE_FLOOR = 1e-6
"""Added to magnitudes, of a transform that is not scaled, before phases are taken."""


def frequencies(n: int) -> NDArray[np.float64]:
    """Frequencies of one axis of a shifted spectrum.

    Parameters
    ----------
    n : int
        Number of samples along the axis.

    Returns
    -------
    ndarray of float64, shape (n,)
        Cycles per pixel, ascending, in [-0.5, 0.5); 0 is at index ``n // 2``.
    """
    return np.fft.fftshift(np.fft.fftfreq(n))


def log_half_spectrum(residual: Array, epsilon: float = EPSILON) -> Array:
    """Log-magnitude of the non-redundant half of the spectrum, in FFT order (not shifted).

    Parameters
    ----------
    residual : array, real floating point, shape (..., H, W)
        Noise residual, in units of the pixel range.
    epsilon : float
        Added to the magnitude before the logarithm.

    Returns
    -------
    array, shape (..., H, W // 2 + 1), the dtype of `residual`
        ``ln(|rfft2(residual, norm="ortho")| + epsilon)``.
    """
    xp = array_namespace(residual)
    magnitude = xp.abs(xp.fft.rfftn(residual, axes=(-2, -1), norm="ortho"))
    # NumPy before 2.0 transforms in double precision: return to the caller's.
    return xp.log(xp.astype(magnitude, residual.dtype, copy=False) + epsilon)


def full_from_half(half: Array, width: int) -> Array:
    """Complete and shift the half spectrum of a real signal.

    Parameters
    ----------
    half : array, shape (..., H, width // 2 + 1)
        An even function of frequency (such as a log-magnitude) in FFT order.
    width : int
        Width W of the signal that was transformed.

    Returns
    -------
    array, shape (..., H, W)
        Zero frequency at ``[H // 2, W // 2]``; the value at (-u, -v) is that at (u, v).

    Raises
    ------
    UsageError
        If the last axis does not hold ``width // 2 + 1`` frequencies.
    """
    xp = array_namespace(half)
    if half.shape[-1] != width // 2 + 1:
        raise UsageError(
            f"a half spectrum of width {width} has {width // 2 + 1} columns, got {half.shape[-1]}"
        )
    # Column W - v, row -u (mod H) repeats column v, row u. Zero and Nyquist are their own mirrors.
    mirrored = half[..., 1 : (width + 1) // 2]
    mirrored = xp.roll(xp.flip(mirrored, axis=(-2, -1)), 1, axis=-2)
    return xp.fft.fftshift(xp.concat([half, mirrored], axis=-1), axes=(-2, -1))


def log_spectrum(residual: Array, epsilon: float = EPSILON) -> Array:
    """Log-magnitude spectrum of each channel.

    Parameters
    ----------
    residual : array, real floating point, shape (..., H, W)
        Noise residual, in units of the pixel range, as (..., channels, H, W).
    epsilon : float
        Added to the magnitude before the logarithm: the smallest value is ``ln(epsilon)``.

    Returns
    -------
    array, shape (..., H, W), the dtype of `residual`
        ``ln(|fftshift(fft2(residual, norm="ortho"))| + epsilon)``, natural logarithm, zero
        frequency at ``[H // 2, W // 2]``, axes given by `frequencies`. float32 stays float32.
    """
    return full_from_half(log_half_spectrum(residual, epsilon), residual.shape[-1])


def hann_window(n: int) -> NDArray[np.float32]:
    """Periodic Hann window over a square, of unit mean square.

    Parameters
    ----------
    n : int
        Side, pixels.

    Returns
    -------
    ndarray of float32, shape (n, n)
    """
    line = np.sin(np.pi * np.arange(n) / n) ** 2
    line /= np.sqrt((line**2).mean())
    return np.outer(line, line).astype(np.float32)


def welch_log_power(residual: Array, segment: int, hop: int, floor: float) -> Array:
    """Mean over segments of the log-power spectrum: each patch of the residual counts the same.

    The mean of the logarithms, not the logarithm of the mean as in Welch's method: a few patches
    of strong texture would drown the flat ones, in which a generator's pattern shows best.

    Parameters
    ----------
    residual : array, real floating point, shape (..., H, W)
        H and W at least `segment`. Any unit u.
    segment : int
        Side of the square segments, pixels; each is weighted by `hann_window`.
    hop : int
        Distance of neighbouring segments, pixels.
    floor : float
        Added to the power before the logarithm, u**2: hides what rounding to 8 bits decides.

    Returns
    -------
    array, shape (..., segment, segment // 2 + 1), the dtype of `residual`
        Natural logarithm of the power density, in FFT order. White noise of variance s u**2 has
        an expected power of s at every frequency.

    Raises
    ------
    UsageError
        If a side is smaller than the segment.
    """
    xp = array_namespace(residual)
    height, width = residual.shape[-2:]
    if min(height, width) < segment or hop < 1:
        raise UsageError(f"no segment of {segment} with hop {hop} fits {width}x{height} pixels")
    window = xp.asarray(hann_window(segment), dtype=residual.dtype, device=device_of(residual))
    corners = _corners(residual.shape[-2:], segment, hop)
    if NUMPY_CONFORMS and isinstance(residual, np.ndarray) and residual.dtype == np.float32:
        parts = np.zeros(len(corners), dtype=np.int64)
        return _sum_in_place(residual, window, corners, floor, parts, 1)[0] / len(corners)
    total: Array = None
    for y, x in corners:
        log = log_power(residual[..., y : y + segment, x : x + segment] * window, floor)
        total = log if total is None else total + log
    return total / len(corners)


def log_power(patch: Array, floor: float) -> Array:
    """Logarithm of the power spectrum of a patch.

    Parameters
    ----------
    patch : array, real floating point, shape (..., n, n)
        Already weighted by a window. Any unit u.
    floor : float
        Added to the power, u**2.

    Returns
    -------
    array, shape (..., n, n // 2 + 1), the dtype of `patch`
        Natural logarithm, in FFT order.
    """
    xp = array_namespace(patch)
    transform = xp.fft.rfftn(patch, axes=(-2, -1), norm="ortho")
    power = xp.real(transform) ** 2 + xp.imag(transform) ** 2
    # NumPy before 2.0 transforms in double precision: return to the caller's.
    return xp.log(xp.astype(power, patch.dtype, copy=False) + floor)


def _corners(size: Sequence[int], segment: int, hop: int) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of the segments of a plane (height, width), row by row."""
    height, width = size
    return [
        (y, x)
        for y in range(0, height - segment + 1, hop)
        for x in range(0, width - segment + 1, hop)
    ]


def segment_energies(plane: NDArray[np.float32], segment: int, hop: int) -> NDArray[np.float32]:
    """Mean square of a residual in each segment of `welch_log_power`, row by row.

    Parameters
    ----------
    plane
        float32 (H, W), any unit u.
    segment, hop
        See `welch_log_power`.

    Returns
    -------
    ndarray
        float32 (n,), u**2.
    """
    squared = plane * plane
    return np.array(
        [
            squared[y : y + segment, x : x + segment].mean()
            for y, x in _corners(plane.shape, segment, hop)
        ],
        dtype=np.float32,
    )


def log_power_by_part(
    residual: NDArray[np.float32],
    segment: int,
    hop: int,
    floor: float,
    parts: NDArray[np.integer[Any]],
    count: int,
) -> NDArray[np.float32]:
    """Sum of the log-power spectra of the segments of each part of an image.

    Parameters
    ----------
    residual
        float32 (C, H, W).
    segment, hop, floor
        See `welch_log_power`.
    parts
        int (n,): the part of each segment, row by row, from 0.
    count
        Number of parts.

    Returns
    -------
    ndarray
        float32 (count, C, segment, segment // 2 + 1): the sum, not the mean, in FFT order.
    """
    corners = _corners(residual.shape[-2:], segment, hop)
    return _sum_in_place(residual, hann_window(segment), corners, floor, parts, count)


def phase_coherence(planes: NDArray[np.float32], segment: int, hop: int) -> NDArray[np.float32]:
    """Mean cosine of the phase difference of each pair of three planes, at each frequency.

    1 where two planes carry the same pattern, 0 where they know nothing of each other. Every
    segment counts the same, however strong its texture.

    Parameters
    ----------
    planes
        float32 (3, H, W).
    segment, hop
        See `welch_log_power`.

    Returns
    -------
    ndarray
        float32 (3, segment, segment // 2 + 1) in [-1, 1], in FFT order: planes 0 and 1, 1 and 2,
        0 and 2. 0 where a plane has no power.
    """
    window = hann_window(segment)
    corners = _corners(planes.shape[-2:], segment, hop)
    total = np.zeros((3, segment, segment // 2 + 1), dtype=np.float32)
    patch = np.empty((3, segment, segment), dtype=np.float32)
    transform = np.empty(total.shape, dtype=np.complex64)
    for y, x in corners:
        np.multiply(planes[:, y : y + segment, x : x + segment], window, out=patch)
        _transform(patch, transform, norm=None)
        total += phase_cosines(transform)
    return total / np.float32(len(corners))


def phase_cosines(transform: Array, axis: int = 0) -> Array:
    """Cosine of the phase difference of each pair of three planes, at each frequency.

    Parameters
    ----------
    transform : array, complex
        Fourier transforms, not scaled, of three planes along `axis`. Changed in place where arrays
        can be.
    axis : int

    Returns
    -------
    array, real
        Of planes 0 and 1, 1 and 2, 0 and 2 along `axis`.
    """
    xp = array_namespace(transform)
    transform /= xp.abs(transform) + np.float32(COHERENCE_FLOOR)
    first, other = (xp.take(transform, np.array(at), axis=axis) for at in ((0, 1, 0), (1, 2, 2)))
    return xp.real(first) * xp.real(other) + xp.imag(first) * xp.imag(other)


def _sum_in_place(
    residual: NDArray[np.float32],
    window: NDArray[np.float32],
    corners: Sequence[tuple[int, int]],
    floor: float,
    parts: NDArray[np.integer[Any]],
    count: int,
) -> NDArray[np.float32]:
    """Sum of the log-powers of `welch_log_power` by part, the same operations without new arrays.

    Memory from the system for each of some hundred transforms takes a fifth of the time.
    """
    segment = len(window)
    planes = residual.reshape(-1, *residual.shape[-2:])
    total = np.zeros((count, len(planes), segment, segment // 2 + 1), dtype=np.float32)
    for first in range(0, len(planes), _PLANES_AT_ONCE):
        some = planes[first : first + _PLANES_AT_ONCE]
        logs = total[:, first : first + _PLANES_AT_ONCE]
        patch = np.empty((len(some), segment, segment), dtype=np.float32)
        transform = np.empty(logs.shape[1:], dtype=np.complex64)
        power, imaginary = (np.empty(transform.shape, dtype=np.float32) for _ in range(2))
        for (y, x), part in zip(corners, parts.tolist(), strict=True):
            np.multiply(some[:, y : y + segment, x : x + segment], window, out=patch)
            _transform(patch, transform, norm="ortho")
            np.square(transform.real, out=power)
            np.square(transform.imag, out=imaginary)
            power += imaginary
            power += np.float32(floor)
            np.log(power, out=power)
            logs[part] += power
    return total.reshape(count, *residual.shape[:-2], *total.shape[2:])


def _transform(
    patch: NDArray[np.float32], out: NDArray[np.complex64], norm: Literal["ortho"] | None
) -> None:
    """Transform real planes (..., n, n) into an array that is there, (..., n, n // 2 + 1)."""
    fft: Any = np.fft  # `out` is not in the types of every NumPy
    if NUMPY_CONFORMS:
        fft.rfft(patch, axis=-1, norm=norm, out=out)
        fft.fft(out, axis=-2, norm=norm, out=out)
    else:  # knows no `out`, and transforms in double precision
        out[...] = fft.rfftn(patch, axes=(-2, -1), norm=norm)


def pool_cells(half: Array, side: int) -> Array:
    """Mean over square cells of a half spectrum.

    Parameters
    ----------
    half : array, shape (..., N, N // 2 + 1)
        In FFT order.
    side : int
        Side of a cell in frequency bins; N // 2 is a multiple of it.

    Returns
    -------
    array, shape (..., N // side, N // (2 side))
        Rows from -0.5 cycles/pixel upwards (shifted), columns from 0; the column of the Nyquist
        frequency is left out.
    """
    rows, columns = half.shape[-2:]
    if columns != rows // 2 + 1:
        raise UsageError(f"a half spectrum of {rows}x{columns} has no cells of side {side}")
    return cells_of(half[..., : rows // 2], side)


def cells_of(half: Array, side: int) -> Array:
    """`pool_cells` of a half spectrum without the Nyquist frequency, (..., N, N // 2)."""
    xp = array_namespace(half)
    *batch, rows, columns = half.shape
    if columns != rows // 2 or side < 1 or columns % side:
        raise UsageError(f"a half spectrum of {rows}x{columns} has no cells of side {side}")
    shifted = xp.roll(half, rows // 2, axis=-2)
    split = xp.reshape(shifted, (*batch, rows // side, side, rows // (2 * side), side))
    # A few sums of all cells, not a mean of a few numbers for each: several times as fast.
    total: Array = None
    for i in range(side):
        for j in range(side):
            part = split[..., i, :, j]
            total = part if total is None else total + part
    return total / side**2


def spread_cells(cells: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Spread the values of cells evenly over the frequencies they cover: the sum stays.

    Parameters
    ----------
    cells : ndarray, shape (..., R, R // 2)
        From `pool_cells`.
    side : int
        Side of a cell in bins.

    Returns
    -------
    ndarray, shape (..., N, N) with N = R side
        Zero frequency at ``[N // 2, N // 2]``, the same at (-u, -v) as at (u, v).
    """
    fine: NDArray[Any] = np.repeat(np.repeat(cells, side, axis=-2), side, axis=-1)
    # A point of the column of frequency 0 is covered by two cells, one from each half.
    share = np.ones(fine.shape[-1], dtype=fine.dtype)
    share[0] = 0.5
    total = share.reshape(-1, side).sum(axis=1) * side
    fine = fine * (share / np.repeat(total, side))
    full = np.concatenate([np.zeros_like(fine), fine], axis=-1)
    # The point (-u, -v) of a shifted spectrum of even side: flip, then one step on.
    mirrored = np.roll(np.flip(full, axis=(-2, -1)), 1, axis=(-2, -1))
    spread: NDArray[np.float32] = (full + mirrored) / 2
    return spread

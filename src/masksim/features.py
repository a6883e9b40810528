"""From pixels to the features of the shared recipe: windows, planes, residuals, spectra, cells.

Training and detection both call `shared_features`: there is no second route.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import preprocess
from masksim.arrays import Array, array_namespace
from masksim.bank import BANK, BankKind, bank_residual
from masksim.config import from_plain
from masksim.errors import UsageError
from masksim.preprocess import GRID
from masksim.spectrum import (
    log_power_by_part,
    phase_coherence,
    pool_cells,
    segment_energies,
    welch_log_power,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class WindowConfig:
    """Windows of an image, see `masksim.preprocess.shared_windows`; pixels, but for the count."""

    window: int = 256
    windows: int = 4
    smallest: int = 256
    region: int = 1536
    spacing: int = 128

    @property
    def least(self) -> int:
        """Side of the smallest window there can be, pixels."""
        return min(self.window, self.smallest // GRID * GRID, self.region // GRID * GRID)

    def corners(self, pixels: NDArray[np.uint8]) -> tuple[list[tuple[int, int]], int, int]:
        """Place the windows of an image, uint8 (H, W, 3): corners (y, x), height and width.

        Raises
        ------
        ImageError
            Code ``too_small``.
        """
        return preprocess.shared_windows(
            pixels.shape[0], pixels.shape[1], self.window, self.windows,
            smallest=self.smallest, region=self.region, spacing=self.spacing,
        )  # fmt: skip

    def cut(
        self, pixels: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]:
        """Cut the windows of an image, uint8 (H, W, 3).

        Returns
        -------
        windows
            uint8 (k, height, width, 3).
        placed
            (x, y, width, height) of each, pixels.

        Raises
        ------
        ImageError
            Code ``too_small``.
        """
        corners, height, width = self.corners(pixels)
        cut = np.stack([pixels[y : y + height, x : x + width] for y, x in corners])
        return cut, [(x, y, width, height) for y, x in corners]

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def in_two(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give what places the windows, and the rest, as plain values for JSON."""
        placed = [one.name for one in fields(WindowConfig)]
        rest = self.to_dict()
        return {name: rest.pop(name) for name in placed}, rest


@dataclass(frozen=True)
class FeatureConfig(WindowConfig):
    """How pixels become the features that masks and references are compared with.

    Attributes
    ----------
    window
        Side of a window, pixels.
    windows
        At most so many windows an image; their mean log-power spectra are averaged.
    smallest
        Least side of an image that is analysed, pixels.
    region, spacing
        The windows lie in the central region of this side, at least so far apart, pixels.
    segment, hops, floor, cell
        Of `masksim.spectrum.welch_log_power` (one hop for luma, one for chroma) and of
        `masksim.spectrum.pool_cells`.
    kinds
        The residuals of the bank that are used, in its order.
    parts
        Luma's segments are ranked by the energy of their cross difference and averaged in so many
        groups of as many segments each, the quietest first: a pattern shows best where the image
        is quiet, and a texture is no pattern. 1: all together.
    coherence
        Whether `masksim.spectrum.phase_coherence` of R, G and B at half the resolution is a
        feature as well.
    """

    window: int = 512
    segment: int = 128
    hops: tuple[int, int] = (96, 64)
    floor: float = 0.05
    cell: int = 2
    kinds: tuple[BankKind, ...] = BANK
    parts: int = 1
    coherence: bool = False

    @property
    def channels(self) -> int:
        """Number C of channels of the features, with the bank as the residual."""
        return len(self.kinds) * (self.parts + 2) + 3 * self.coherence

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureConfig:
        """Invert `WindowConfig.to_dict`; unknown keys fail.

        Raises
        ------
        UsageError
            On an unknown key or a value that cannot be.
        """
        config = from_plain(cls, values, "the features")
        if any(type(n) is int and n < 1 for n in (*vars(config).values(), *config.hops)):
            raise UsageError(f"sizes and counts must be positive: {config}")
        least = config.least
        if config.window % 8 or least < 2 * config.segment or config.segment % (2 * config.cell):
            raise UsageError(
                "the window must be a multiple of 8, it, the smallest side and the region at least "
                f"two segments (chroma is halved), half a segment a multiple of the cell: {config}"
            )
        across = (least - config.segment) // config.hops[0] + 1
        if across**2 < config.parts:
            raise UsageError(
                f"the smallest window has {across**2} segments of luma, too few for "
                f"{config.parts} parts: {config}"
            )
        if not 0 < config.floor < math.inf:
            raise UsageError(f"the floor must be a positive number: {config}")
        if config.kinds != tuple(k for k in BANK if k in config.kinds) or not config.kinds:
            raise UsageError(f"the kinds of residuals must be some of {list(BANK)}, in this order")
        if config.parts > 1 and "cross difference" not in config.kinds:
            raise UsageError("parts are ranked by the cross difference: kinds must include it")
        return config


@dataclass(frozen=True)
class LumaConfig(WindowConfig):
    """How luma becomes the features of a learned residual.

    Attributes
    ----------
    window, windows, smallest, region, spacing
        See `masksim.preprocess.shared_windows`.
    segment, hop, floor
        Of `masksim.spectrum.welch_log_power`; the floor in 8-bit levels squared.
    cell
        Of `masksim.spectrum.pool_cells`.
    """

    segment: int = 64
    hop: int = 28
    floor: float = 0.05
    cell: int = 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LumaConfig:
        """Make a configuration of plain values.

        Raises
        ------
        UsageError
            On an unknown key or a value that cannot be.
        """
        config = from_plain(cls, values, "the features of luma")
        if any(type(n) is int and n < 1 for n in vars(config).values()):
            raise UsageError(f"sizes and counts must be positive: {config}")
        fits = config.least >= config.segment and config.segment % (2 * config.cell) == 0
        if config.window % GRID or not fits:
            raise UsageError(
                f"the window must be a multiple of {GRID}, and hold a segment; half a segment must "
                f"be a multiple of the cell: {config}"
            )
        if not 0 < config.floor < math.inf:
            raise UsageError(f"the floor must be a positive number: {config}")
        return config


def pattern_features(
    residuals: Sequence[Array], *, segment: int, hops: Sequence[int], floor: float, cell: int
) -> Array:
    """Features of the shared recipe: cells of mean log-power spectra of all residual channels.

    Parameters
    ----------
    residuals : sequence of arrays, shapes (..., C_i, H_i, W_i)
        One a group of planes (luma, chroma).
    segment, floor, cell
        Of `masksim.spectrum.welch_log_power` and `masksim.spectrum.pool_cells`.
    hops : sequence of int
        One a group.

    Returns
    -------
    array, shape (..., sum of C_i, R, R // 2) with R = segment // cell
    """
    xp = array_namespace(*residuals)
    return xp.concat(
        [
            pool_cells(welch_log_power(residual, segment, hop, floor), cell)
            for residual, hop in zip(residuals, hops, strict=True)
        ],
        axis=-3,
    )


def shared_features(
    pixels: NDArray[np.uint8],
    config: FeatureConfig,
    residual: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    threads: int = 1,
) -> tuple[NDArray[np.float32], list[tuple[int, int, int, int]]]:
    """Average the cells of the spectra of an image's windows.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), sRGB.
    config
        Of windows and spectra.
    residual
        Runs the residual's graph; from several threads where there are several.
    threads
        So many windows are analysed at a time. The result does not depend on it.

    Returns
    -------
    features
        float32 (C, R, R // 2), natural logarithm of power.
    windows
        (x, y, width, height) of each, pixels.

    Raises
    ------
    ImageError
        Code ``too_small``.
    """
    corners, height, width = config.corners(pixels)
    if not corners:
        raise UsageError("a detector needs at least one window")
    placed = [(x, y, width, height) for y, x in corners]
    if config.parts > 1 or config.coherence:
        return _in_parts(pixels, corners, (height, width), config, residual, threads), placed

    def cells(corner: tuple[int, int]) -> NDArray[np.float32]:
        y, x = corner
        planes = preprocess.luma_chroma(pixels[None, y : y + height, x : x + width])
        found: NDArray[np.float32] = pattern_features(
            [_of_kinds(plane, config.kinds, residual) for plane in planes],
            segment=config.segment,
            hops=config.hops,
            floor=config.floor,
            cell=config.cell,
        )[0]
        return found

    return _mean_of_each(cells, corners, threads), placed


def _of_kinds(
    planes: NDArray[np.float32],
    kinds: Sequence[BankKind],
    residual: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Compute some residuals of the bank of planes (B, P, H, W): (B, K P, H, W)."""
    if residual is bank_residual:
        return bank_residual(planes, kinds)
    found = residual(planes)
    if len(kinds) == len(BANK):
        return found
    split = found.reshape(len(planes), len(BANK), -1, *planes.shape[2:])
    chosen = split[:, [BANK.index(kind) for kind in kinds]]
    return chosen.reshape(len(planes), -1, *planes.shape[2:])


def luma_features(
    pixels: NDArray[np.uint8],
    config: LumaConfig,
    residual: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    threads: int = 1,
) -> tuple[NDArray[np.float32], list[tuple[int, int, int, int]]]:
    """Average the cells of the spectra of a residual of luma, as `shared_features` does.

    Parameters
    ----------
    pixels, residual, threads
        See `shared_features`.
    config
        Of windows and spectra.

    Returns
    -------
    features
        float32 (C, R, R // 2), natural logarithm of power.
    windows
        (x, y, width, height) of each, pixels.

    Raises
    ------
    ImageError
        Code ``too_small``.
    """
    windows, placed = config.cut(pixels)
    return luma_spectra(windows, config, residual, threads=threads), placed


def luma_spectra(
    windows: NDArray[np.uint8],
    config: LumaConfig,
    residual: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Compute `luma_features` of windows that are cut already, uint8 (k, height, width, 3)."""

    def cells(window: NDArray[np.uint8]) -> NDArray[np.float32]:
        luma = preprocess.luma_chroma(window[None])[0]
        found: NDArray[np.float32] = pattern_features(
            [residual(luma)], segment=config.segment, hops=[config.hop], floor=config.floor,
            cell=config.cell,
        )[0]  # fmt: skip
        return found

    return _mean_of_each(cells, windows, threads)


def part_of_each(energies: Array, parts: int) -> Array:
    """Rank the segments of an image by their energy, and part them into equally many.

    Parameters
    ----------
    energies : array, shape (..., n)
        Equal ones keep their order.
    parts : int

    Returns
    -------
    array of int64, shape (..., n)
        From 0, the quietest, to ``parts - 1``.
    """
    xp = array_namespace(energies)
    count = energies.shape[-1]
    order = xp.arange(count)
    one, other = energies[..., :, None], energies[..., None, :]
    before = (other < one) | ((other == one) & (order[None, :] < order[:, None]))
    return xp.count_nonzero(before, axis=-1) * parts // count


def _mean_of_each(
    function: Callable[[Any], NDArray[np.float32]],
    items: Sequence[Any] | NDArray[Any],
    threads: int,
) -> NDArray[np.float32]:
    """Average what a function gives for each item, see `_of_each`."""
    each = _of_each(function, items, threads)
    total = each[0]
    for found in each[1:]:  # in order: a sum depends on it
        total = total + found
    mean: NDArray[np.float32] = total / np.float32(len(each))
    return mean


def _of_each(
    function: Callable[[Any], Any], items: Sequence[Any] | NDArray[Any], threads: int
) -> list[Any]:
    """Apply a function, in threads where there are several; in the order of the items."""
    if threads > 1 and len(items) > 1:
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(function, items))
    return [function(item) for item in items]


def _in_parts(
    pixels: NDArray[np.uint8],
    corners: Sequence[tuple[int, int]],
    size: tuple[int, int],
    config: FeatureConfig,
    residual: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    threads: int,
) -> NDArray[np.float32]:
    """Features of windows whose segments are ranked together by their energy: (C, R, R // 2).

    Channels: those of luma for the quietest part, then for the next, ...; those of chroma; the
    coherence of R with G, G with B and R with B.
    """
    height, width = size
    segment, (hop, chroma_hop) = config.segment, config.hops

    def residuals(corner: tuple[int, int]) -> list[NDArray[np.float32]]:
        y, x = corner
        window = pixels[None, y : y + height, x : x + width]
        planes = [
            _of_kinds(plane, config.kinds, residual)[0] for plane in preprocess.luma_chroma(window)
        ]
        if config.coherence:
            planes.append(preprocess.half_cross_difference(window)[0])
        return planes

    windows = _of_each(residuals, corners, threads)
    # The first kind is the cross difference: configurations with parts must include it.
    energies = np.stack([segment_energies(planes[0][0], segment, hop) for planes in windows])
    parts = part_of_each(energies.reshape(-1), config.parts).reshape(energies.shape)

    def spectra(k: int) -> tuple[NDArray[np.float32], ...]:
        luma, chroma, *rest = windows[k]
        sums = log_power_by_part(luma, segment, hop, config.floor, parts[k], config.parts)
        return (
            sums,
            welch_log_power(chroma, segment, chroma_hop, config.floor),
            *(phase_coherence(planes, segment, chroma_hop) for planes in rest),
        )

    each = _of_each(spectra, range(len(windows)), threads)
    counts = np.bincount(parts.ravel(), minlength=config.parts).astype(np.float32)
    luma = sum(found[0] for found in each) / counts[:, None, None, None]
    means = [sum(rest) / np.float32(len(each)) for rest in zip(*(e[1:] for e in each), strict=True)]
    luma = luma.reshape(-1, *luma.shape[2:])
    out: NDArray[np.float32] = pool_cells(np.concatenate([luma, *means]), config.cell)
    return out

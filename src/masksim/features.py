"""From pixels to the features of the shared recipe: windows, planes, residuals, spectra, cells.

Training and detection both call `shared_features`: there is no second route.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from masksim import preprocess
from masksim.errors import UsageError
from masksim.spectrum import array_namespace, pool_cells, welch_log_power

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Any array of the array API (numpy.ndarray, torch.Tensor): there is no common static type yet.
Array: TypeAlias = Any


@dataclass(frozen=True)
class FeatureConfig:
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
    """

    window: int = 512
    windows: int = 4
    smallest: int = 256
    region: int = 1536
    spacing: int = 128
    segment: int = 128
    hops: tuple[int, int] = (96, 64)
    floor: float = 0.05
    cell: int = 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureConfig:
        """Invert `to_dict`; unknown keys fail.

        Raises
        ------
        UsageError
            On an unknown key or a value that cannot be.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(f"unknown keys in the configuration of features: {unknown}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        config = cls(**plain)
        if type(config.hops) is not tuple or len(config.hops) != 2:
            raise UsageError(f"there are two hops, of luma and of chroma: {config}")
        numbers = (
            config.window,
            config.windows,
            config.smallest,
            config.region,
            config.spacing,
            config.segment,
            config.cell,
        )
        if any(type(n) is not int or n < 1 for n in (*numbers, *config.hops)):
            raise UsageError(f"sizes and counts must be positive integers: {config}")
        # Side of the smallest window there can be.
        least = min(config.window, config.smallest // 8 * 8, config.region // 8 * 8)
        if config.window % 8 or least < 2 * config.segment or config.segment % (2 * config.cell):
            raise UsageError(
                "the window must be a multiple of 8, it, the smallest side and the region at least "
                f"two segments (chroma is halved), half a segment a multiple of the cell: {config}"
            )
        floor = config.floor
        if not isinstance(floor, (int, float)) or not math.isfinite(floor) or floor <= 0:
            raise UsageError(f"the floor must be a positive number: {config}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


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
    corners, height, width = preprocess.shared_windows(
        pixels.shape[0],
        pixels.shape[1],
        config.window,
        config.windows,
        smallest=config.smallest,
        region=config.region,
        spacing=config.spacing,
    )

    def cells(corner: tuple[int, int]) -> NDArray[np.float32]:
        y, x = corner
        planes = preprocess.luma_chroma(pixels[None, y : y + height, x : x + width])
        found: NDArray[np.float32] = pattern_features(
            [residual(plane) for plane in planes],
            segment=config.segment,
            hops=config.hops,
            floor=config.floor,
            cell=config.cell,
        )[0]
        return found

    if not corners:
        raise UsageError("a detector needs at least one window")
    if threads > 1 and len(corners) > 1:
        with ThreadPoolExecutor(min(threads, len(corners))) as pool:
            each = list(pool.map(cells, corners))
    else:
        each = [cells(corner) for corner in corners]
    total = each[0]
    for found in each[1:]:  # in order: a sum depends on it
        total = total + found
    return total / np.float32(len(corners)), [(x, y, width, height) for y, x in corners]

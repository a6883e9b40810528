"""Windows of images, drawn and compressed as the original's training does.

The draws of every batch depend on seed, step and image alone. The original resizes real photos
only, which gives the label away: here both classes take the same draws unless
`masksim.original.config.OriginalConfig.resize_reals` asks for the original's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from masksim.augment import bilinear, reencode, rng_for
from masksim.data.manifest import Row
from masksim.image import load_image
from masksim.original.config import OriginalConfig
from masksim.preprocess import ColourSpace, centre_window, to_colour
from masksim.training.loop import sifted, usable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_COMPRESSED = 0.95  # share of windows that get a JPEG of drawn quality, as in the original


def training_window(
    pixels: Pixels, real: bool, config: OriginalConfig, rng: np.random.Generator
) -> Pixels:
    """Draw one window of an image, processed for training.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), both sides at least a window.
    real
        Whether it is a photo; it matters only with `OriginalConfig.resize_reals`.
    config
        The run.
    rng
        From `masksim.augment.rng_for`.

    Returns
    -------
    ndarray
        uint8 (window, window, 3).

    Raises
    ------
    ImageError
        ``too_small``.
    """
    n = config.window
    centre_window(pixels.shape[0], pixels.shape[1], n)  # refuses what is too small
    # All draws are taken whatever comes of them, so that both classes take the same.
    resized = rng.random() < config.resize_share
    side = n * rng.uniform(*config.resize_range)
    place = rng.random(2)
    if resized and (real or not config.resize_reals):
        factor = side / min(pixels.shape[:2])
        size = (max(n, int(factor * pixels.shape[0])), max(n, int(factor * pixels.shape[1])))
        pixels = bilinear(pixels, size)
    y, x = (int(p * (have - n + 1)) for p, have in zip(place, pixels.shape[:2], strict=True))
    return compress(pixels[y : y + n, x : x + n], config, rng)


def centre_of(pixels: Pixels, config: OriginalConfig, rng: np.random.Generator) -> Pixels:
    """Cut the central window, as detection does, and compress it: for validation.

    Returns
    -------
    ndarray
        uint8 (window, window, 3).

    Raises
    ------
    ImageError
        ``too_small``.
    """
    n = config.window
    y, x = centre_window(pixels.shape[0], pixels.shape[1], n)
    return compress(pixels[y : y + n, x : x + n], config, rng)


def compress(window: Pixels, config: OriginalConfig, rng: np.random.Generator) -> Pixels:
    """Compress a window as the configuration says."""
    if config.compression == "none":
        return np.ascontiguousarray(window)
    low, high = config.qualities
    chance, quality = rng.random(), int(rng.integers(low, high + 1))
    if config.compression == "jpeg" and low < high and chance >= _COMPRESSED:
        return np.ascontiguousarray(window)
    return reencode(np.ascontiguousarray(window), config.compression.upper(), quality)


@dataclass(frozen=True)
class Item:
    """One place in a batch.

    Attributes
    ----------
    index
        Of the image.
    draw
        Step and place, which seed the draw; None: the central window, for validation.
    """

    index: int
    draw: tuple[int, int] | None


class Windows(Dataset[Any]):
    """Windows of the images of a run: the same item is always the same window.

    Parameters
    ----------
    files, rows
        Of all images.
    config
        The run.
    name
        Of the detector that is trained.
    classes
        Images for training, real and synthetic: those that take an unusable one's place.
    """

    def __init__(
        self,
        files: Sequence[str],
        rows: Sequence[Row],
        config: OriginalConfig,
        name: str,
        classes: tuple[Sequence[int], Sequence[int]],
    ) -> None:
        self.files, self.rows, self.config, self.name = files, rows, config, name
        self.classes = classes

    def __getitem__(self, item: Item) -> tuple[tuple[Pixels, bool] | None, dict[str, str]]:
        config, draw = self.config, item.draw
        real = self.rows[item.index].is_real
        failures: dict[str, str] = {}

        def make(index: int) -> tuple[Pixels, bool]:
            pixels = load_image(self.files[index]).pixels
            key = (config.seed, self.name, self.rows[index].key)
            if draw is None:
                return centre_of(pixels, config, rng_for(*key, "validation")), real
            return training_window(pixels, real, config, rng_for(*key, "train", *draw)), real

        def another(attempt: int) -> int:
            """Give the place to another image of the class, which the log will name."""
            others = self.classes[0 if real else 1]
            rng = rng_for(config.seed, self.name, "instead", *(draw or ()), attempt)
            return others[int(rng.integers(len(others)))]

        def failed(index: int, code: str) -> None:
            failures[self.rows[index].path] = code

        return usable(item.index, make, None if draw is None else another, failed), failures


class Collate:
    """Make a batch of windows, in a form that travels to other processes."""

    def __init__(self, space: ColourSpace) -> None:
        self.space = space

    def __call__(self, items: list[Any]) -> Any:
        """Give (planes, synthetic), the places that are filled, and failures."""
        made, there, failures = sifted(items)
        windows = [window for window, _ in made]
        planes = packed(np.stack(windows), self.space) if made else torch.zeros((0, 3, 1, 1))
        synthetic = torch.tensor([not real for _, real in made], dtype=torch.bool)
        return (planes, synthetic), there, failures


def packed(windows: Pixels, space: ColourSpace) -> torch.Tensor:
    """Planes of `masksim.preprocess.to_colour`, in 8 bits where those hold them exactly."""
    planes = to_colour(windows, space)
    if space == "YCbCr-BT601-full":
        return torch.from_numpy(planes)
    return torch.from_numpy(np.rint(planes * np.float32(255)).astype(np.uint8))


def unpacked(planes: torch.Tensor) -> torch.Tensor:
    """Undo `packed`: the values of `masksim.preprocess.to_colour` again, bit by bit."""
    return planes.float() / 255 if planes.dtype == torch.uint8 else planes


def batch_items(
    step: int, reals: Sequence[int], synthetics: Sequence[int], config: OriginalConfig, name: str
) -> list[Item]:
    """Draw a batch: each place real or synthetic with equal chances, then an image of that class.

    A pure function of the seed and the step; process r of w takes the places r, r + w, ...
    """
    rng = rng_for(config.seed, name, "batch", step)
    items = []
    for place in range(config.batch):
        group = (reals, synthetics)[int(rng.integers(2))]
        items.append(Item(group[int(rng.integers(len(group)))], (step, place)))
    return items

"""Configuration of a learned residual, without torch: `masksim.training.learned_residual`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from masksim.errors import UsageError
from masksim.features import LumaConfig, WindowConfig
from masksim.residual import LEARNED_FIXED, ResidualConfig


@dataclass(frozen=True)
class LearnedConfig:
    """A run: all that the kernels depend on besides the views.

    Attributes
    ----------
    depth, features, outputs
        Layers of 3x3 convolutions, channels between them, and channels of the residual.
    windows
        Windows of a view: what is learned from, and what detection looks at.
    segment, hop, floor
        Of `masksim.spectrum.welch_log_power`; the floor in 8-bit levels squared.
    inference_hop
        The hop where views are scored, and in detection: a window has more segments than a crop,
        and with half of them its similarities are nearly the same.
    cell
        Of `masksim.spectrum.pool_cells`, in training: fewer cells, fewer free numbers.
    crop
        Side of the crops of windows that a step sees, pixels.
    batch
        Crops of each generator a step; as many photos as of all generators together.
    steps, epoch_steps
        Steps in all, and between two validations.
    lr, head_lr, head_decay
        Learning rates of Adam for kernels and heads, and the decay of the heads' weights. Both
        rates fall to 0 along half a cosine.
    folds
        One of so many parts of the repositories is kept for validation.
    seed
        Of all draws.
    """

    depth: int = 3
    features: int = 16
    outputs: int = 6
    windows: WindowConfig = field(default_factory=WindowConfig)
    segment: int = 64
    hop: int = 28
    inference_hop: int = 46
    floor: float = 0.05
    cell: int = 2
    crop: int = 128
    batch: int = 2
    steps: int = 5000
    epoch_steps: int = 250
    lr: float = 2e-3
    head_lr: float = 3e-4
    head_decay: float = 1.0
    folds: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError on a value out of range."""
        counts = (
            self.features, self.outputs, self.hop, self.inference_hop, self.batch, self.steps,
            self.epoch_steps,
        )  # fmt: skip
        if min(counts) < 1 or self.depth < 2 or self.folds < 2:
            raise UsageError(f"counts must be at least 1, depth and folds at least 2: {self}")
        if self.crop - 2 * self.margin < self.segment:
            raise UsageError(f"crops of {self.crop} pixels hold no segment: {self}")
        windows = self.windows
        if not self.crop <= windows.window <= min(windows.smallest, windows.region):
            raise UsageError(
                "a crop must fit into a window, and a window into the smallest image and the "
                f"region: {self}"
            )
        if self.cell < 1 or self.segment % (2 * self.cell):
            raise UsageError(f"half a segment must be a multiple of the cell: {self}")
        LumaConfig.from_dict(vars(self.luma))
        rates = (self.lr, self.head_lr, self.floor)
        if not (all(0 < x < math.inf for x in rates) and 0 <= self.head_decay < math.inf):
            raise UsageError(f"rates and floor must be positive, the decay not negative: {self}")

    @property
    def epochs(self) -> int:
        """Number of epochs; the last one may be shorter."""
        return math.ceil(self.steps / self.epoch_steps)

    @property
    def margin(self) -> int:
        """Pixels by which a residual is smaller than its crop, on each side."""
        return self.depth + 1

    @property
    def luma(self) -> LumaConfig:
        """How detection comes to the features that the heads look at."""
        return LumaConfig(
            **vars(self.windows), segment=self.segment, hop=self.inference_hop, floor=self.floor,
            cell=self.cell,
        )  # fmt: skip

    @property
    def of_training(self) -> dict[str, Any]:
        """What kernels depend on besides the views, as plain values."""
        values = asdict(self)
        del values["inference_hop"]
        return values

    @property
    def residual(self) -> ResidualConfig:
        """Architecture of the residual."""
        return ResidualConfig("learned", self.depth, self.features, outputs=self.outputs)

    @property
    def channels(self) -> int:
        """Number of channels of the spectra, those of the bank included."""
        return self.outputs + len(LEARNED_FIXED)

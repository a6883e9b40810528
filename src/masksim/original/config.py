"""Configuration of the original's recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from masksim.config import from_plain
from masksim.errors import UsageError
from masksim.preprocess import ColourSpace
from masksim.residual import ResidualConfig

Preprocess: TypeAlias = Literal["DnCNN", "light", "linear3x3", "cross_diff", "none"]
Compression: TypeAlias = Literal["jpeg", "webp", "none"]
Quality: TypeAlias = int | tuple[int, int] | Literal["random"]

RANDOM_QUALITY = (65, 100)
"""What ``quality = "random"`` draws from, both ends included."""


@dataclass(frozen=True)
class OriginalConfig:
    """A training run of the original recipe: all that the detector depends on besides the images.

    Attributes
    ----------
    name
        Of the detector; empty: made of compression, quality, window and tag.
    tag
        Added to that name.
    window
        Side of the window, pixels.
    batch
        Images a step, over all processes together.
    epochs
        Each as long as the images of both classes together, or `epoch_steps`.
    epoch_steps, limit_steps
        Steps an epoch, and steps in all; 0: by the number of images, and no limit.
    preprocess
        Kind of the residual.
    depth, features, padding, batch_norm
        Its sizes, for ``DnCNN`` and ``light`` (`from_dict` gives each its own). Given weights bring
        theirs.
    freeze
        Do not train the residual.
    compression
        Of every window, in training and validation.
    quality
        Of the compression: a number, a pair of which it is drawn evenly, both ends included, or
        ``"random"``: `RANDOM_QUALITY`. JPEG of drawn quality leaves 5 % as they are.
    colour
        Colour space; empty: studio YCbCr with a compression, RGB without, as in the original.
    num_masks
        Masks; the highest similarity counts.
    lr, residual_lr
        Learning rates of Adam: of all, and of a ``DnCNN`` or ``light`` residual.
    decay
        Factor of the learning rates after each epoch.
    resize_reals
        Resize real photos only, which is a label leak of the original; otherwise both classes
        take the same draws.
    resize_share
        Share of training images that are resized before the window is cut.
    resize_range
        Range of the new shorter side, in windows.
    multi_class
        One detector of all generators together.
    generators
        Which; empty: all in the manifest.
    smallest_class
        Generators with fewer training images are left out; asked for by name, an error.
    validation
        Share of the synthetic images, and failing a ``val`` split of reals of these, that is kept
        out of training for choosing the epoch and for calibration.
    seed
        Of all draws.
    """

    name: str = ""
    tag: str = ""
    window: int = 512
    batch: int = 8
    epochs: int = 50
    epoch_steps: int = 0
    limit_steps: int = 0
    preprocess: Preprocess = "DnCNN"
    depth: int = 17
    features: int = 64
    padding: int = 0
    batch_norm: bool = True
    freeze: bool = False
    compression: Compression = "jpeg"
    quality: Quality = "random"
    colour: Literal[ColourSpace, ""] = ""
    num_masks: int = 1
    lr: float = 1e-3
    residual_lr: float = 1e-4
    decay: float = 0.99
    resize_reals: bool = False
    resize_share: float = 0.5
    resize_range: tuple[float, float] = (1.0, 1.5)
    multi_class: bool = False
    generators: tuple[str, ...] = ()
    smallest_class: int = 30
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no run.

        Raises
        ------
        UsageError
            A value out of range.
        """
        least = {"window": 8, "batch": 1, "epochs": 1, "epoch_steps": 0, "limit_steps": 0,
                 "num_masks": 1, "smallest_class": 2}  # fmt: skip
        for key, lowest in least.items():
            if getattr(self, key) < lowest:
                raise UsageError(f"{key} must be at least {lowest}, got {getattr(self, key)}")
        low, high = self.qualities
        if not (1 <= low <= high <= 100):
            raise UsageError(f"quality must lie in 1..100, got {self.quality!r}")
        rates = (self.lr, self.residual_lr)
        if not (all(0 < rate < math.inf for rate in rates) and 0 < self.decay <= 1):
            raise UsageError("learning rates must be positive and decay in (0, 1]")
        if not (0 <= self.resize_share <= 1 and 0 < self.validation < 1):
            raise UsageError("resize_share must be in [0, 1] and validation in (0, 1)")
        if not 1 <= self.resize_range[0] <= self.resize_range[1] < math.inf:
            raise UsageError(
                "resize_range must be two numbers from 1 on, ascending: the shorter side must not "
                f"become less than a window; got {self.resize_range!r}"
            )
        if not all(self.generators):
            raise UsageError(f"generators must be a list of names, got {self.generators!r}")
        if self.window <= 2 * self.residual.margin:
            raise UsageError(
                f"a window of {self.window} pixels is too small for {self.depth} layers without "
                "padding"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OriginalConfig:
        """Make a configuration of plain values, as a TOML file holds them.

        Raises
        ------
        UsageError
            On an unknown key, or a value of the wrong type or out of range.
        """
        plain = dict(values)
        if plain.get("preprocess") == "light":
            small = ResidualConfig.light().to_dict()
            plain = {key: small[key] for key in small if key != "kind"} | plain
        if isinstance(plain.get("quality"), str) and plain["quality"].isdigit():
            plain["quality"] = int(plain["quality"])
        return from_plain(cls, plain, "the original recipe")

    @property
    def qualities(self) -> tuple[int, int]:
        """Range of the compression's quality, both ends included."""
        if self.quality == "random":
            return RANDOM_QUALITY
        return (self.quality, self.quality) if isinstance(self.quality, int) else self.quality

    @property
    def space(self) -> ColourSpace:
        """The colour space, resolved."""
        if self.colour:
            return self.colour
        return "RGB" if self.compression == "none" else "YCbCr-BT601-studio-8bit"

    @property
    def residual(self) -> ResidualConfig:
        """The architecture of the residual."""
        if self.preprocess in ("DnCNN", "light"):
            return ResidualConfig(
                self.preprocess, self.depth, self.features, self.padding, self.batch_norm
            )
        return ResidualConfig(self.preprocess)

    @property
    def full_name(self) -> str:
        """Name of the detector."""
        if self.name:
            return self.name
        if self.compression == "none":
            stem = "uncompressed"
        else:
            low, high = self.qualities
            quality = self.quality if isinstance(self.quality, (int, str)) else f"{low}-{high}"
            stem = f"{self.compression.upper()}_Q{quality}"
        return f"{stem}_w{self.window}" + (f"_{self.tag}" if self.tag else "")

"""Making a detector as the original does: masks and references by gradient, a network a generator.

Each generator gets a detector of its own, residual network included (`TrainConfig` of
`masksim.training.shared` is the other recipe). The draws of every batch depend on seed, step and
image alone. The original resizes real photos only, which gives the label away: here both classes
take the same draws unless `OriginalConfig.resize_reals` asks for the original's way.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from masksim import __version__, metrics
from masksim.augment import bilinear, reencode, rng_for
from masksim.checkpoint import Branch, DetectorFile, check_target
from masksim.data.manifest import REAL, Manifest, Row, group_of, manifest_hash
from masksim.errors import DataError, ImageError, UsageError, counted
from masksim.image import load_image
from masksim.original.network import OriginalNetwork, read_residual
from masksim.preprocess import COLOUR_SPACES, ColourSpace, centre_window, to_colour
from masksim.residual import ResidualConfig, residual_onnx
from masksim.spectrum import EPSILON
from masksim.training import loop as runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

Preprocess: TypeAlias = Literal["DnCNN", "light", "linear3x3", "cross_diff", "none"]
Compression: TypeAlias = Literal["jpeg", "webp", "none"]
Quality: TypeAlias = "int | tuple[int, int] | Literal['random']"

RANDOM_QUALITY = (65, 100)
"""What ``quality = "random"`` draws from, both ends included."""

ANY = "any"
"""Name of the one generator of a multi-class detector."""

_COMPRESSED = 0.95  # share of windows that get a JPEG of drawn quality, as in the original
_ATTEMPTS = 20  # at an image that can be read, for one place in a batch
_VALIDATION_BYTES = 2 * 2**30  # validation windows up to this much are kept decoded


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
    colour: ColourSpace | Literal[""] = ""
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
            A value of the wrong type or out of range.
        """
        whole = ("window", "batch", "epochs", "epoch_steps", "limit_steps", "depth", "features",
                 "padding", "num_masks", "smallest_class", "seed")  # fmt: skip
        for key in whole:
            if type(getattr(self, key)) is not int:
                raise UsageError(f"{key} must be an integer, got {getattr(self, key)!r}")
        for key in ("lr", "residual_lr", "decay", "resize_share", "validation"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{key} must be a number, got {value!r}")
        for key in ("batch_norm", "freeze", "resize_reals", "multi_class"):
            if type(getattr(self, key)) is not bool:
                raise UsageError(f"{key} must be true or false, got {getattr(self, key)!r}")
        for key in ("name", "tag"):
            if not isinstance(getattr(self, key), str):
                raise UsageError(f"{key} must be a string, got {getattr(self, key)!r}")
        choices: dict[str, tuple[str, ...]] = {
            "preprocess": get_args(Preprocess),
            "compression": get_args(Compression),
            "colour": ("", *COLOUR_SPACES),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise UsageError(
                    f"{key} must be one of {', '.join(filter(None, known))}; "
                    f"got {getattr(self, key)!r}"
                )
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
        ends = self.resize_range
        if (
            not isinstance(ends, tuple)
            or len(ends) != 2
            or not all(isinstance(end, (int, float)) for end in ends)
            or not 1 <= ends[0] <= ends[1] < math.inf
        ):
            raise UsageError(
                "resize_range must be two numbers from 1 on, ascending: the shorter side must not "
                f"become less than a window; got {ends!r}"
            )
        names = self.generators
        if not isinstance(names, tuple) or not all(isinstance(n, str) and n for n in names):
            raise UsageError(f"generators must be a list of names, got {names!r}")
        if self.window <= 2 * self.residual.margin:
            raise UsageError(
                f"a window of {self.window} pixels is too small for {self.depth} layers without "
                "padding"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OriginalConfig:
        """Make a configuration of plain values, as a TOML file holds them; unknown keys fail.

        Raises
        ------
        UsageError
            On an unknown key, or a value out of range.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(f"unknown keys in the configuration of the original recipe: {unknown}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if plain.get("preprocess") == "light":
            small = ResidualConfig.light().to_dict()
            plain = {key: small[key] for key in small if key != "kind"} | plain
        if isinstance(plain.get("quality"), str) and plain["quality"].isdigit():
            plain["quality"] = int(plain["quality"])
        return cls(**plain)

    @property
    def qualities(self) -> tuple[int, int]:
        """Range of the compression's quality, both ends included."""
        if self.quality == "random":
            return RANDOM_QUALITY
        if type(self.quality) is int:
            return self.quality, self.quality
        ends = self.quality
        if isinstance(ends, tuple) and len(ends) == 2 and all(type(q) is int for q in ends):
            return ends
        raise UsageError(
            f"quality must be an integer, a pair of integers or 'random', got {self.quality!r}"
        )

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


# --- windows -----------------------------------------------------------------------------------


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
class _Item:
    """One place in a batch: which image, and what seeds its draw."""

    index: int
    draw: tuple[int, int] | None  # step and place; None: the central window


class _Windows(Dataset[Any]):
    """Windows of the images of a run. An item is a pure function of what it is named by."""

    def __init__(
        self, files: Sequence[str], rows: Sequence[Row], config: OriginalConfig, name: str
    ) -> None:
        self.files, self.rows, self.config, self.name = files, rows, config, name
        self.classes = {
            kind: [i for i, row in enumerate(rows) if row.is_real is kind] for kind in (True, False)
        }

    def __getitem__(self, item: _Item) -> tuple[Pixels | None, bool, dict[str, str]]:
        config = self.config
        index = item.index
        real = self.rows[index].is_real
        failures: dict[str, str] = {}
        for attempt in range(_ATTEMPTS):
            row = self.rows[index]
            try:
                pixels = load_image(self.files[index]).pixels
                key = (config.seed, self.name, row.key)
                if item.draw is None:
                    return centre_of(pixels, config, rng_for(*key, "validation")), real, failures
                rng = rng_for(*key, "train", *item.draw)
                return training_window(pixels, real, config, rng), real, failures
            except ImageError as error:
                failures[row.path] = error.code
                if item.draw is None:
                    break
                # The place goes to another image of the class, which the log will name.
                others = self.classes[real]
                rng = rng_for(config.seed, self.name, "instead", *item.draw, attempt)
                index = others[int(rng.integers(len(others)))]
        return None, real, failures


def _collate(
    items: list[tuple[Pixels | None, bool, dict[str, str]]], space: ColourSpace
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, str]]:
    """Windows that could be had, as planes; which items they are; failures."""
    failures: dict[str, str] = {}
    for _, _, failed in items:
        failures.update(failed)
    there = [i for i, item in enumerate(items) if item[0] is not None]
    windows = [item[0] for item in items if item[0] is not None]
    planes = _packed(np.stack(windows), space) if windows else torch.zeros((0, 3, 1, 1))
    synthetic = torch.tensor([not items[i][1] for i in there], dtype=torch.bool)
    return planes, synthetic, torch.tensor(there), failures


class _Collate:
    """`_collate` in a form that travels to other processes."""

    def __init__(self, space: ColourSpace) -> None:
        self.space = space

    def __call__(self, items: list[Any]) -> Any:
        return _collate(items, self.space)


def _packed(windows: Pixels, space: ColourSpace) -> torch.Tensor:
    """Planes of `to_colour`, in 8 bits where those hold them exactly: a quarter to carry."""
    planes = to_colour(windows, space)
    if space == "YCbCr-BT601-full":
        return torch.from_numpy(planes)
    return torch.from_numpy(np.rint(planes * np.float32(255)).astype(np.uint8))


def unpacked(planes: torch.Tensor) -> torch.Tensor:
    """Undo `_packed`: the values of `to_colour` again, bit by bit."""
    return planes.float() / 255 if planes.dtype == torch.uint8 else planes


# --- one detector ------------------------------------------------------------------------------


class LossOfBatch(nn.Module):
    """The mean loss of a batch, as a module: what several processes compute together."""

    def __init__(self, network: OriginalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
        """Mean of `OriginalNetwork.losses` over planes (B, 3, N, N), floats or packed."""
        return self.network.losses(self.network(unpacked(planes)), synthetic).mean()


def optimizer_of(
    network: OriginalNetwork, config: OriginalConfig
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.ExponentialLR]:
    """Adam, with a learning rate of its own for a residual network, decaying an epoch."""
    own = {id(p) for p in network.preproc.parameters()} if network.residual.is_stack else set()
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if id(p) not in own]}]
    if residual := [p for p in trained if id(p) in own]:
        groups.append({"params": residual, "lr": config.residual_lr})  # type: ignore[dict-item]
    optimizer = torch.optim.Adam(groups, lr=config.lr)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, config.decay)


def batch_items(
    step: int, reals: Sequence[int], synthetics: Sequence[int], config: OriginalConfig, name: str
) -> list[_Item]:
    """Draw a batch: each place real or synthetic with equal chances, then an image of that class.

    A pure function of the seed and the step; process r of w takes the places r, r + w, ...
    """
    rng = rng_for(config.seed, name, "batch", step)
    items = []
    for place in range(config.batch):
        group = (reals, synthetics)[int(rng.integers(2))]
        items.append(_Item(group[int(rng.integers(len(group)))], (step, place)))
    return items


class _Validation:
    """Similarities and losses of the validation images, decoded once where memory allows."""

    def __init__(
        self, windows: _Windows, indices: Sequence[int], options: runs.RunOptions, ranks: runs.Ranks
    ) -> None:
        self.windows, self.options, self.ranks = windows, options, ranks
        self.indices = list(indices)[ranks.rank :: ranks.world]
        config = windows.config
        self.keep = len(self.indices) * 3 * config.window**2 <= _VALIDATION_BYTES
        self.kept: list[Any] = []
        self.failures: dict[str, str] = {}

    def batches(self) -> Iterator[Any]:
        if self.kept:
            yield from self.kept
            return
        config = self.windows.config
        size = max(1, config.batch // self.ranks.world)
        chunks = [self.indices[i : i + size] for i in range(0, len(self.indices), size)]
        source = runs.loader(
            self.windows,
            lambda i: [_Item(index, None) for index in chunks[i]],
            range(len(chunks)),
            collate=_Collate(config.space),
            workers=min(self.options.workers, len(chunks) // 4),  # a process takes seconds to start
            device=torch.device("cpu"),
        )
        for i, (planes, synthetic, there, failures) in enumerate(source):
            self.failures.update(failures)
            part = (planes, synthetic, [chunks[i][int(k)] for k in there])
            if self.keep:
                self.kept.append(part)
            yield part

    def similarities(self, network: OriginalNetwork, *, exact: bool = False) -> dict[int, Any]:
        """Similarity and loss by index of the image, of all processes' images, in evaluation mode.

        `exact`: in single precision, whatever the run computes in.
        """
        out: dict[int, tuple[float, float]] = {}
        with torch.no_grad():
            for planes, synthetic, indices in self.batches():
                if not indices:
                    continue
                inputs = unpacked(planes.to(self.ranks.device))
                flags = synthetic.to(self.ranks.device)
                if exact:
                    found = network(inputs)
                else:
                    with self.ranks.autocast():
                        found = network(inputs)
                losses = network.losses(found, flags)
                for index, s, loss in zip(indices, found.tolist(), losses.tolist(), strict=True):
                    out[index] = (s, loss)
        merged: dict[int, tuple[float, float]] = {}
        for part in self.ranks.gather(out):
            merged.update(part)
        return dict(sorted(merged.items()))

    def measure(self, network: OriginalNetwork) -> dict[str, float]:
        """Losses of both classes, their mean, and the AUROC."""
        found = self.similarities(network)
        rows = self.windows.rows
        real = np.array([rows[i].is_real for i in found], dtype=bool)
        if not real.any() or real.all():
            raise DataError(
                "none of the validation images of a class can be read: " + json.dumps(self.failures)
            )
        scores = np.array([s for s, _ in found.values()])
        losses = np.array([loss for _, loss in found.values()])
        parts = {
            "valid_loss_real": losses[real].mean(),
            "valid_loss_synthetic": losses[~real].mean(),
        }
        measured = {name: float(value) for name, value in parts.items()}
        measured["valid_loss"] = sum(measured.values()) / 2
        if np.isfinite(scores).all():
            measured["valid_auroc"] = metrics.auroc(scores, ~real)
        return measured


@dataclass(frozen=True, eq=False)
class _Part:
    """The images of one detector, by class and use: indices into the run's rows."""

    name: str
    train_real: tuple[int, ...]
    train_synthetic: tuple[int, ...]
    valid_real: tuple[int, ...]
    valid_synthetic: tuple[int, ...]


def _held_out(indices: Sequence[int], rows: Sequence[Row], share: float, seed: int) -> set[int]:
    """Choose a share of images, at least one, by their content."""
    count = max(1, round(share * len(indices)))

    def order(i: int) -> str:
        return hashlib.sha256(f"{seed} validation {rows[i].key}".encode()).hexdigest()

    return set(sorted(indices, key=order)[:count])


def _held_out_reals(
    indices: Sequence[int], rows: Sequence[Row], share: float, seed: int
) -> tuple[set[int], str]:
    """Choose whole sources with about a share of the photos; of one source, single photos."""
    sizes = Counter(group_of(rows[i]) for i in indices)
    if len(sizes) < 2:
        return _held_out(indices, rows, share, seed), "photos of the only source"
    order = sorted(
        sizes, key=lambda g: hashlib.sha256(f"{seed} validation {g}".encode()).hexdigest()
    )
    chosen: set[str] = set()
    count = 0
    for group in order:  # never all: training needs one, too
        if len(chosen) < len(sizes) - 1 and (
            not chosen or count + sizes[group] <= share * len(indices)
        ):
            chosen.add(group)
            count += sizes[group]
    return {i for i in indices if group_of(rows[i]) in chosen}, "sources of the train split"


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a run besides the detector.

    Attributes
    ----------
    file
        The detector, as saved.
    best
        By generator: epoch, losses, AUROC on validation images.
    history
        By generator: the same of all epochs.
    losses
        By generator: training losses of the steps of this call.
    skipped
        Images that could not be used, by reason.
    """

    file: DetectorFile
    best: Mapping[str, Mapping[str, Any]]
    history: Mapping[str, Sequence[Mapping[str, Any]]]
    losses: Mapping[str, Sequence[float]]
    skipped: Mapping[str, int]


def _usable(manifest: Manifest, window: int) -> tuple[list[Row], Counter[str]]:
    """Rows of training and validation whose image is known or seen to be large enough."""
    from PIL import Image

    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for row in sorted(manifest.rows, key=lambda row: row.path):
        if row.split == "test":
            continue
        width, height = row.width, row.height
        if not (width and height):
            try:
                with Image.open(manifest.file(row)) as image:
                    width, height = image.size
            except Exception:  # whatever is wrong with it, `load_image` will say when it is drawn
                width = height = window
        if min(width, height) < window:
            skipped["too_small"] += 1
            continue
        rows.append(row)
    return rows, skipped


def _parts(rows: Sequence[Row], config: OriginalConfig) -> tuple[list[_Part], str]:
    """Divide the images among detectors, training and validation."""
    real = [i for i, row in enumerate(rows) if row.is_real and row.split == "train"]
    other = [i for i, row in enumerate(rows) if row.is_real and row.split == "val"]
    counts = Counter(row.generator for row in rows if row.split == "train" and not row.is_real)
    if len(real) < 2:
        raise DataError(
            f"training needs real photos of at least {config.window} pixels in split train; "
            f"there are {len(real)}",
            code="manifest_invalid",
        )
    names = [name for name in sorted(counts) if counts[name] >= config.smallest_class]
    if config.generators:
        for name in config.generators:
            if counts[name] < config.smallest_class:
                raise DataError(
                    f"generator {name!r} has {counts[name]} training images of at least "
                    f"{config.window} pixels; smallest_class asks for {config.smallest_class}",
                    code="manifest_invalid",
                )
        names = list(dict.fromkeys(config.generators))
    if not names:
        raise DataError(
            f"no generator has {config.smallest_class} training images of at least "
            f"{config.window} pixels; found {counted(dict(sorted(counts.items())))}",
            code="manifest_invalid",
        )
    if other:
        kept, how = set(other), "photos of the val split"
    else:
        kept, how = _held_out_reals(real, rows, config.validation, config.seed)
    train_real = tuple(i for i in real if i not in kept)
    parts = []
    for label, members in [(ANY, names)] if config.multi_class else [(n, [n]) for n in names]:
        fake = [
            i for i, row in enumerate(rows) if row.split == "train" and row.generator in members
        ]
        held = _held_out(fake, rows, config.validation, config.seed)
        parts.append(
            _Part(
                label,
                train_real,
                tuple(i for i in fake if i not in held),
                tuple(sorted(kept)),
                tuple(sorted(held)),
            )
        )
    return parts, how


def _folder_name(generator: str) -> str:
    plain = re.sub(r"[^\w.-]", "_", generator)
    if plain == generator and not plain.startswith("."):
        return plain
    plain = plain.lstrip(".")
    return f"{plain}-{hashlib.sha256(generator.encode()).hexdigest()[:8]}"


def train_original(
    manifest: Manifest,
    out: str | os.PathLike[str],
    config: OriginalConfig,
    *,
    residual_weights: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
    options: runs.RunOptions | None = None,
    overwrite: bool = False,
    progress: runs.Progress | None = None,
) -> Trained:
    """Train the detectors of a manifest's generators and write them as one detector.

    The splits ``train`` and ``val`` are used: of ``val`` the photos alone, for validation and
    calibration. Under ``torchrun`` all processes call this together.

    Parameters
    ----------
    manifest
        Real photos and synthetic images.
    out
        Folder of the detector, made.
    config
        The run.
    residual_weights
        What a ``DnCNN`` or ``light`` residual starts from, see
        `masksim.original.network.read_residual`; without them, from random numbers.
    run
        Folder of the runs' states and logs, one a generator; by default `out` with ``.run``
        added. A run that was killed goes on by the same call.
    options
        Device, precision, workers.
    overwrite
        Replace a detector that is there.
    progress
        Called with (stage, steps done, steps in all).

    Returns
    -------
    Trained

    Raises
    ------
    DataError
        Too few images of a class; ``diverged``.
    UsageError
        A contradictory configuration, or a folder that cannot be written.
    ModelError
        Unfit residual weights, or a damaged state.
    """
    options = options or runs.RunOptions()
    out = Path(out)
    check_target(out, overwrite)  # before hours of work, not after
    run = Path(run) if run is not None else out.with_name(out.name + ".run")
    if out.absolute() in (run.absolute(), *run.absolute().parents):
        raise UsageError(f"the run's folder {run} must not lie in the detector's, {out}")
    weights: Mapping[str, NDArray[Any]] | None = None
    initial: dict[str, Any] = {"from": "random numbers"}
    if residual_weights is not None:
        if not config.residual.is_stack:
            raise UsageError(f"a {config.preprocess!r} residual takes no --residual-weights")
        found, weights, initial = read_residual(residual_weights)
        if found.kind != config.preprocess:
            raise UsageError(
                f"the residual weights are of a {found.kind!r} network, the recipe asks for "
                f"{config.preprocess!r}: give -p {found.kind}"
            )
        if initial.get("colour", config.space) != config.space:
            raise UsageError(
                f"the residual network was trained in {initial['colour']}, the detector's colour "
                f"space is {config.space}"
            )
        config = replace(
            config, depth=found.depth, features=found.features,
            padding=found.padding, batch_norm=found.batch_norm,
        )  # fmt: skip
    rows, skipped = _usable(manifest, config.window)
    parts, how = _parts(rows, config)
    used = [rows[i] for i in sorted({i for part in parts for i in _all_of(part)})]
    files = [str(manifest.file(row)) for row in rows]
    with runs.processes(options) as ranks:
        if config.batch % ranks.world:
            raise UsageError(
                f"a batch of {config.batch} cannot be divided among {ranks.world} processes"
            )
        described = {
            "config": asdict(config), "manifest": manifest_hash(used), "residual": initial,
            "world": ranks.world, "bfloat16": ranks.bfloat16, "device": ranks.device.type,
        }  # fmt: skip
        runs.make_folder(run)
        text = json.dumps(described, indent=1) + "\n"
        runs.claim(run, text, ranks)
        outcomes: dict[str, runs.Outcome] = {}
        networks: dict[str, OriginalNetwork] = {}
        failures: dict[str, str] = {}
        real_scores: dict[str, dict[int, float]] = {}
        for part in parts:
            text = json.dumps([described, part.name], sort_keys=True)
            network, outcome, failed, scores = _train_part(
                part, rows, files, config, weights,
                folder=run / _folder_name(part.name),
                fingerprint=hashlib.sha256(text.encode()).hexdigest(),
                options=options, ranks=ranks, progress=progress,
            )  # fmt: skip
            networks[part.name], outcomes[part.name] = network, outcome
            real_scores[part.name] = scores
            for other in ranks.gather(failed):
                failures.update(other)
        common = sorted(set.intersection(*(set(scores) for scores in real_scores.values())))
        calibration = np.array(
            [[real_scores[part.name][i] for part in parts] for i in common], dtype=np.float32
        )
        file = DetectorFile(
            config={"name": config.full_name, "recipe": "original"},
            branches=tuple(_branch(networks[part.name], part.name, config) for part in parts),
            calibration={"real_similarities": calibration},
            provenance={
                "training": asdict(config),
                "manifest_sha256": described["manifest"],
                "images": _counts(parts, rows, failures, lambda row: row.path),
                "sources": _counts(parts, rows, failures, lambda row: row.source),
                "best": {name: dict(outcome.best) for name, outcome in outcomes.items()},
                "residual": {**initial, **config.residual.to_dict()},
                "calibration": {
                    "photos": len(common),
                    "sources": len({rows[i].source for i in common}),
                    "how": f"{how}, not trained on but used to choose the epoch; the central "
                    "window, compressed as in training",
                },
                "processes": ranks.world,
                "device": ranks.device.type,
                "bfloat16": ranks.bfloat16,
                "skipped": dict(skipped + Counter(failures.values())),
                "masksim": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        )
        if ranks.main:
            file = file.save(out, overwrite=overwrite)
        ranks.barrier()
    return Trained(
        file,
        {name: outcome.best for name, outcome in outcomes.items()},
        {name: outcome.history for name, outcome in outcomes.items()},
        {name: outcome.losses for name, outcome in outcomes.items()},
        file.provenance["skipped"],
    )


def _all_of(part: _Part) -> tuple[int, ...]:
    return part.train_real + part.train_synthetic + part.valid_real + part.valid_synthetic


def _counts(
    parts: Sequence[_Part],
    rows: Sequence[Row],
    failures: Mapping[str, str],
    what: Callable[[Row], str],
) -> dict[str, int]:
    """Count what was used in training: images that could not be read were not."""

    def count(chosen: Sequence[int]) -> int:
        return len({what(rows[i]) for i in chosen if rows[i].path not in failures})

    return {REAL: count(parts[0].train_real)} | {
        part.name: count(part.train_synthetic) for part in parts
    }


def _train_part(
    part: _Part,
    rows: Sequence[Row],
    files: Sequence[str],
    config: OriginalConfig,
    weights: Mapping[str, NDArray[Any]] | None,
    *,
    folder: Path,
    fingerprint: str,
    options: runs.RunOptions,
    ranks: runs.Ranks,
    progress: runs.Progress | None,
) -> tuple[OriginalNetwork, runs.Outcome, dict[str, str], dict[int, float]]:
    """Train one detector; its failed images, and scores of the validation photos."""
    windows = _Windows(files, rows, config, part.name)
    windows.classes = {True: list(part.train_real), False: list(part.train_synthetic)}
    seed = int(rng_for(config.seed, part.name, "initial values").integers(2**62))
    torch.manual_seed(seed)
    network = OriginalNetwork(
        config.residual, config.window, masks=config.num_masks, freeze=config.freeze,
        residual_weights=weights, seed=seed,
    ).to(ranks.device)  # fmt: skip
    optimizer, scheduler = optimizer_of(network, config)
    validation = _Validation(windows, part.valid_real + part.valid_synthetic, options, ranks)
    images = len(part.train_real) + len(part.train_synthetic)
    failures: dict[str, str] = {}

    def draw(step: int) -> list[_Item]:
        items = batch_items(step, part.train_real, part.train_synthetic, config, part.name)
        return items[ranks.rank :: ranks.world]

    def batches(steps: range) -> Iterator[Sequence[torch.Tensor]]:
        source = runs.loader(
            windows, draw, steps, collate=_Collate(config.space), workers=options.workers,
            device=ranks.device,
        )  # fmt: skip
        for planes, synthetic, there, failed in source:
            failures.update(failed)
            if len(there) < config.batch // ranks.world:
                raise DataError(
                    f"{_ATTEMPTS} images in a row could not be used: "
                    f"{json.dumps(dict(list(failed.items())[:5]))}",
                    code="manifest_invalid",
                )
            yield planes, synthetic

    outcome = runs.fit(
        LossOfBatch(network),
        network,
        optimizer,
        scheduler,
        plan=runs.Plan(
            config.epochs,
            config.epoch_steps or math.ceil(images / config.batch),
            config.limit_steps,
        ),
        batches=batches,
        validate=lambda: validation.measure(network),
        folder=folder,
        fingerprint=fingerprint,
        options=options,
        ranks=ranks,
        memory=failures,
        stage=part.name,
        progress=progress,
    )
    network.load_state_dict(outcome.weights)
    network.eval()
    scores = {
        i: s
        for i, (s, _) in validation.similarities(network, exact=True).items()
        if rows[i].is_real
    }
    failures.update(validation.failures)
    return network, outcome, failures, scores


def _branch(network: OriginalNetwork, generator: str, config: OriginalConfig) -> Branch:
    weights = network.residual_weights()
    return Branch(
        residual=network.residual,
        residual_weights=weights,
        onnx=residual_onnx(network.residual, weights),
        preprocess={"window": config.window, "colour": config.space, "windows": 1, "aligned": True},
        spectrum={"kind": "log", "epsilon": EPSILON},
        head="original",
        generators=(generator,),
        tensors=network.tensors(),
    )

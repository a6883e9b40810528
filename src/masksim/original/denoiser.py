"""Making a residual network: a denoiser of real photos, whose output is the noise.

The original starts from a denoiser that others trained and licensed for non-profit use. This one
is trained here, on the photos of the manifest: clean patches plus Gaussian noise go in, the noise
is to come out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import safetensors.numpy
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from masksim import __version__
from masksim.augment import rng_for
from masksim.data.manifest import Manifest, Row, group_of, manifest_hash
from masksim.errors import DataError, ImageError, UsageError
from masksim.image import load_image
from masksim.original.network import RESIDUAL_DESCRIPTION, RESIDUAL_FORMAT, RESIDUAL_WEIGHTS
from masksim.preprocess import COLOUR_SPACES, ColourSpace, to_colour
from masksim.residual import ResidualConfig, build_residual, weights_of
from masksim.training import loop as runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEVELS = 255.0
_ATTEMPTS = 20  # at a photo that can be read, for one place in a batch


@dataclass(frozen=True)
class DenoiserConfig:
    """A run: all that the network depends on besides the photos.

    Attributes
    ----------
    sigma
        Deviation of the noise, 8-bit levels.
    kind, depth, features, padding, batch_norm
        The network, see `masksim.residual.ResidualConfig`.
    colour
        Colour space of the patches: that of the detectors that will use the network.
    patch
        Side of a patch, pixels; what is left of it by the network is what counts.
    batch
        Patches a step, over all processes together.
    patches
        Patches of one photo in a batch: photos take long to decode.
    steps, epoch_steps
        Steps in all, and between two validations.
    lr, decay
        Learning rate of Adam, and its factor after each `epoch_steps`.
    validation
        Share of the photos, by whole sources, that the network is measured on.
    validation_patches
        At most so many patches for measuring.
    seed
        Of all draws.
    """

    sigma: float = 1.0
    kind: Literal["DnCNN", "light"] = "DnCNN"
    depth: int = 17
    features: int = 64
    padding: int = 0
    batch_norm: bool = True
    colour: ColourSpace = "YCbCr-BT601-studio-8bit"
    patch: int = 64
    batch: int = 64
    patches: int = 8
    steps: int = 20_000
    epoch_steps: int = 1000
    lr: float = 1e-3
    decay: float = 0.8
    validation: float = 0.1
    validation_patches: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no run.

        Raises
        ------
        UsageError
            A value of the wrong type or out of range.
        """
        for key in ("patch", "batch", "patches", "steps", "epoch_steps", "validation_patches"):
            value = getattr(self, key)
            if type(value) is not int or value < 1:
                raise UsageError(f"{key} must be a positive integer, got {value!r}")
        if type(self.seed) is not int:
            raise UsageError(f"seed must be an integer, got {self.seed!r}")
        for key in ("sigma", "lr", "decay", "validation"):
            value = getattr(self, key)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise UsageError(f"{key} must be a positive number, got {value!r}")
        if self.decay > 1 or self.validation >= 1:
            raise UsageError("decay must be at most 1 and validation under 1")
        if self.kind not in ("DnCNN", "light"):
            raise UsageError(f"kind must be DnCNN or light, got {self.kind!r}")
        if self.colour not in get_args(ColourSpace):
            raise UsageError(f"colour must be one of {', '.join(COLOUR_SPACES)}")
        if self.batch % self.patches:
            raise UsageError(f"batch {self.batch} must be a multiple of patches {self.patches}")
        if self.patch <= 2 * self.residual.margin:
            raise UsageError(
                f"{self.depth} layers without padding leave nothing of patches of {self.patch} "
                f"pixels: --patch must be over {2 * self.residual.margin}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DenoiserConfig:
        """Make a configuration of plain values; unknown keys fail.

        Raises
        ------
        UsageError
            On an unknown key, or a value out of range.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(f"unknown keys in the configuration of the residual: {unknown}")
        small = cls.light_values() if values.get("kind") == "light" else {}
        return cls(**{**small, **values})

    @staticmethod
    def light_values() -> dict[str, Any]:
        """Give the keys of the small network."""
        return ResidualConfig.light().to_dict()

    @property
    def residual(self) -> ResidualConfig:
        """The architecture."""
        return ResidualConfig(self.kind, self.depth, self.features, self.padding, self.batch_norm)


@dataclass(frozen=True)
class _Item:
    """A photo and what seeds its patches and noise; `count` patches."""

    index: int
    draw: tuple[int, int]
    count: int
    validation: bool


class _Patches(Dataset[Any]):
    """Noisy patches and their noise, of one photo an item."""

    def __init__(self, files: Sequence[str], rows: Sequence[Row], config: DenoiserConfig) -> None:
        self.files, self.rows, self.config = files, rows, config
        self.pool: Sequence[int] = ()  # that replaces a photo that cannot be read

    def __getitem__(self, item: _Item) -> tuple[Any, Any, dict[str, str]]:
        config, index = self.config, item.index
        failures: dict[str, str] = {}
        for attempt in range(_ATTEMPTS):
            row = self.rows[index]
            key = row.key
            rng = rng_for(config.seed, "denoiser", key, item.validation, *item.draw)
            try:
                pixels = load_image(self.files[index]).pixels
                if min(pixels.shape[:2]) < config.patch:
                    raise ImageError("smaller than a patch", code="too_small")
                noisy, noise = noisy_patches(pixels, item.count, config, rng)
                return noisy, noise, failures
            except ImageError as error:
                failures[row.path] = error.code
                if item.validation:
                    break
                rng = rng_for(config.seed, "denoiser instead", *item.draw, attempt)
                index = self.pool[int(rng.integers(len(self.pool)))]
        return None, None, failures


def noisy_patches(
    pixels: NDArray[np.uint8], count: int, config: DenoiserConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut patches out of a photo and add noise.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), both sides at least a patch.
    count
        Patches.
    config
        The run.
    rng
        From `masksim.augment.rng_for`.

    Returns
    -------
    noisy, noise
        float32 (count, 3, patch, patch): full scale is 1, the noise has a deviation of
        ``sigma / 255``.
    """
    n = config.patch
    corners = rng.integers(0, np.array(pixels.shape[:2]) - n + 1, size=(count, 2))
    cut = np.stack([pixels[y : y + n, x : x + n] for y, x in corners])
    noise = rng.standard_normal((count, 3, n, n), dtype=np.float32)
    noise *= np.float32(config.sigma / _LEVELS)
    return to_colour(cut, config.colour) + noise, noise


def _collate(items: list[tuple[Any, Any, dict[str, str]]]) -> Any:
    failures: dict[str, str] = {}
    for _, _, failed in items:
        failures.update(failed)
    there = [item for item in items if item[0] is not None]
    if not there:
        return None, None, failures
    return (
        torch.from_numpy(np.concatenate([item[0] for item in there])),
        torch.from_numpy(np.concatenate([item[1] for item in there])),
        failures,
    )


class SquaredError(nn.Module):
    """The mean squared error of a denoiser, as a module; of noise in 8-bit levels."""

    def __init__(self, network: nn.Module, margin: int) -> None:
        super().__init__()
        self.network, self.margin = network, margin

    def forward(self, noisy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Mean over (B, 3, N, N), where the network has an output."""
        m = self.margin
        target = noise[..., m : noise.shape[-2] - m, m : noise.shape[-1] - m]
        return functional.mse_loss(self.network(noisy).float() * _LEVELS, target * _LEVELS)


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in 8-bit levels."""
    return 10 * math.log10(_LEVELS**2 / max(squared_error, 1e-12))


def _divide(rows: Sequence[Row], config: DenoiserConfig) -> tuple[list[int], list[int]]:
    """Photos for training and, of other sources, for validation; of one source, by photo."""
    sizes = Counter(group_of(row) for row in rows)
    by_source = len(sizes) > 1
    keys = [group_of(row) if by_source else row.path for row in rows]
    counts = Counter(keys)
    order = sorted(
        counts, key=lambda k: hashlib.sha256(f"{config.seed} validation {k}".encode()).hexdigest()
    )
    held: set[str] = set()
    done = 0
    for key in order:
        if len(held) < len(order) - 1 and (
            not held or done + counts[key] <= config.validation * len(rows)
        ):
            held.add(key)
            done += counts[key]
    kept = [i for i, key in enumerate(keys) if key in held]
    return [i for i, key in enumerate(keys) if key not in held], kept


def train_denoiser(
    manifest: Manifest,
    out: str | os.PathLike[str],
    config: DenoiserConfig,
    *,
    run: str | os.PathLike[str] | None = None,
    options: runs.RunOptions | None = None,
    overwrite: bool = False,
    progress: runs.Progress | None = None,
) -> dict[str, Any]:
    """Train a denoiser on the real photos of the ``train`` split and write it.

    Parameters
    ----------
    manifest
        Its synthetic images are not used.
    out
        Folder, made: ``residual.safetensors`` and ``residual.json``.
    config
        The run.
    run
        Folder of the run's state and log; by default `out` with ``.run`` added. A run that was
        killed goes on by the same call.
    options
        Device, precision, workers.
    overwrite
        Replace a network that is there.
    progress
        Called with (stage, steps done, steps in all).

    Returns
    -------
    dict
        ``sha256`` of the weights, ``psnr_noisy``, ``psnr`` and ``psnr_gain`` in dB on photos that
        training had not, ``validated_on`` (``sources`` not seen, or of a single source
        ``photos``), ``step`` of the weights, ``skipped``.

    Raises
    ------
    DataError
        Fewer than two photos; ``diverged``.
    UsageError
        A folder that is there or cannot be written.
    """
    options = options or runs.RunOptions()
    out = Path(out)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not overwrite:
            raise UsageError(f"{out} is there; --overwrite replaces it")
        if not (out / RESIDUAL_DESCRIPTION).is_file():
            raise UsageError(f"{out} is no residual network: it is not overwritten")
    photos = sorted(
        (row for row in manifest.rows if row.is_real and row.split == "train"),
        key=lambda row: row.path,
    )
    rows = [
        r for r in photos if not (r.width and r.height) or min(r.width, r.height) >= config.patch
    ]
    if len(rows) < 2:
        raise DataError(
            f"a residual network needs real photos of at least {config.patch} pixels in split "
            f"train; there are {len(rows)}",
            code="manifest_invalid",
        )
    used, held = _divide(rows, config)
    patches = _Patches([str(manifest.file(row)) for row in rows], rows, config)
    patches.pool = used
    run = Path(run) if run is not None else out.with_name(out.name + ".run")
    failures: dict[str, str] = {}
    with runs.processes(options) as ranks:
        images = config.batch // config.patches
        if images % ranks.world:
            raise UsageError(f"{images} photos a batch cannot be divided among {ranks.world}")
        described = json.dumps(
            {
                "config": asdict(config), "manifest": manifest_hash(rows), "world": ranks.world,
                "bfloat16": ranks.bfloat16, "device": ranks.device.type,
            },
            indent=1,
        )  # fmt: skip
        runs.claim(run, described + "\n", ranks)
        torch.manual_seed(int(rng_for(config.seed, "denoiser").integers(2**62)))
        network = build_residual(config.residual)
        network.to(ranks.device)
        error_of = SquaredError(network, config.residual.margin)
        optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)

        def draw(step: int) -> list[_Item]:
            rng = rng_for(config.seed, "denoiser batch", step)
            items = [
                _Item(used[int(rng.integers(len(used)))], (step, k), config.patches, False)
                for k in range(images)
            ]
            return items[ranks.rank :: ranks.world]

        def batches(steps: range) -> Iterator[Sequence[torch.Tensor]]:
            source = runs.loader(
                patches, draw, steps, collate=_collate, workers=options.workers,
                device=ranks.device,
            )  # fmt: skip
            for noisy, noise, failed in source:
                failures.update(failed)
                if noisy is None or len(noisy) < config.batch // ranks.world:
                    raise DataError(
                        f"{_ATTEMPTS} photos in a row could not be used: "
                        f"{json.dumps(dict(list(failed.items())[:5]))}",
                        code="manifest_invalid",
                    )
                yield noisy, noise

        count = max(1, config.validation_patches // config.patches)
        measured_on = held[:: max(1, len(held) // count)][:count]
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []

        def validate() -> dict[str, float]:
            own = measured_on[ranks.rank :: ranks.world]
            if not kept:
                source = runs.loader(
                    patches,
                    lambda i: [_Item(own[i], (0, 0), config.patches, True)],
                    range(len(own)),
                    collate=_collate,
                    workers=0,
                    device=torch.device("cpu"),
                )
                for noisy, noise, failed in source:
                    failures.update(failed)
                    if noisy is not None:
                        kept.append((noisy, noise))
            before = after = 0.0
            m = config.residual.margin
            for noisy, noise in kept:
                inner = noise[..., m : noise.shape[-2] - m, m : noise.shape[-1] - m]
                before += float((inner.double() * _LEVELS).square().mean())
                after += float(error_of(noisy.to(ranks.device), noise.to(ranks.device)))
            sums = ranks.gather((before, after, len(kept)))
            total = sum(n for _, _, n in sums)
            if not total:
                raise DataError("no photo for validation can be read", code="manifest_invalid")
            error = sum(b for _, b, _ in sums) / total
            noisy_psnr = psnr(sum(a for a, _, _ in sums) / total)
            return {
                "valid_loss": error,
                "psnr_noisy": noisy_psnr,
                "psnr": psnr(error),
                "psnr_gain": psnr(error) - noisy_psnr,
            }

        epoch_steps = min(config.epoch_steps, config.steps)
        outcome = runs.fit(
            error_of,
            network,
            optimizer,
            torch.optim.lr_scheduler.ExponentialLR(optimizer, config.decay),
            plan=runs.Plan(math.ceil(config.steps / epoch_steps), epoch_steps, config.steps),
            batches=batches,
            validate=validate,
            folder=run,
            fingerprint=hashlib.sha256(described.encode()).hexdigest(),
            options=options,
            ranks=ranks,
            memory=failures,
            stage="residual network",
            progress=progress,
        )
        network.load_state_dict(outcome.weights)
        arrays = weights_of(config.residual, network)
        data = bytes(safetensors.numpy.save(arrays))
        skipped: dict[str, str] = {}
        for other in ranks.gather(failures):
            skipped.update(other)
        result = {
            "sha256": hashlib.sha256(data).hexdigest(),
            **{key: outcome.best[key] for key in ("psnr_noisy", "psnr", "psnr_gain")},
            # Of one source the photos are parted, see `_divide`.
            "validated_on": "sources" if len({group_of(row) for row in rows}) > 1 else "photos",
            "step": min(outcome.best["epoch"] * epoch_steps, config.steps),
            "skipped": dict(Counter(skipped.values())),
        }
        text = json.dumps(
            {
                "format": RESIDUAL_FORMAT,
                "residual": config.residual.to_dict(),
                "training": asdict(config),
                **result,
                "manifest_sha256": manifest_hash(rows),
                "photos": {"training": len(used), "validation": len(held)},
                "sources": {
                    "training": len({group_of(rows[i]) for i in used}),
                    "validation": len({group_of(rows[i]) for i in held}),
                },
                "processes": ranks.world,
                "device": ranks.device.type,
                "bfloat16": ranks.bfloat16,
                "masksim": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            indent=1,
        )
        if ranks.main:
            runs.make_folder(out)
            runs.write_atomically(out / RESIDUAL_WEIGHTS, data)
            # Last: it holds the hash of the other.
            runs.write_atomically(out / RESIDUAL_DESCRIPTION, (text + "\n").encode())
        ranks.barrier()
    return result

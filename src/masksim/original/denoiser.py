"""Making a residual network: a denoiser of real photos, whose output is the noise.

The original starts from a denoiser that others trained and licensed for non-profit use. This one
is trained here, on the photos of the manifest: clean patches plus Gaussian noise go in, the noise
is to come out.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from masksim.augment import rng_for
from masksim.config import Progress, from_plain
from masksim.data.manifest import Manifest, Row, group_of, manifest_hash
from masksim.errors import DataError, ImageError, UsageError
from masksim.image import load_image
from masksim.original.residual_file import check_residual_target, packed_weights, write_residual
from masksim.original.residual_network import build_residual, weights_of
from masksim.original.split import held_out_groups
from masksim.preprocess import ColourSpace, to_colour
from masksim.residual import ResidualConfig
from masksim.training import loop as runs
from masksim.training.processes import RunOptions, processes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEVELS = 255.0


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
            A value out of range.
        """
        for key in ("patch", "batch", "patches", "steps", "epoch_steps", "validation_patches",
                    "sigma", "lr", "decay", "validation"):  # fmt: skip
            if not 0 < getattr(self, key) < math.inf:
                raise UsageError(f"{key} must be positive, got {getattr(self, key)!r}")
        if self.decay > 1 or self.validation >= 1:
            raise UsageError("decay must be at most 1 and validation under 1")
        if self.batch % self.patches:
            raise UsageError(f"batch {self.batch} must be a multiple of patches {self.patches}")
        if self.patch <= 2 * self.residual.margin:
            raise UsageError(
                f"{self.depth} layers without padding leave nothing of patches of {self.patch} "
                f"pixels: --patch must be over {2 * self.residual.margin}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DenoiserConfig:
        """Make a configuration of plain values.

        Raises
        ------
        UsageError
            On an unknown key, or a value of the wrong type or out of range.
        """
        small = cls.light_values() if values.get("kind") == "light" else {}
        return from_plain(cls, {**small, **values}, "the residual")

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
    """A photo and what seeds its patches and noise."""

    index: int
    draw: tuple[int, int]
    validation: bool


class _Patches(Dataset[Any]):
    """Noisy patches and their noise, of one photo an item.

    `pool` are the photos for training: those that take the place of one that cannot be read.
    """

    def __init__(
        self, files: Sequence[str], rows: Sequence[Row], config: DenoiserConfig, pool: Sequence[int]
    ) -> None:
        self.files, self.rows, self.config, self.pool = files, rows, config, pool

    def __getitem__(self, item: _Item) -> tuple[Any, dict[str, str]]:
        config = self.config
        failures: dict[str, str] = {}

        def make(index: int) -> Any:
            key = self.rows[index].key
            rng = rng_for(config.seed, "denoiser", key, item.validation, *item.draw)
            pixels = load_image(self.files[index]).pixels
            if min(pixels.shape[:2]) < config.patch:
                raise ImageError("smaller than a patch", code="too_small")
            return noisy_patches(pixels, config.patches, config, rng)

        def another(attempt: int) -> int:
            rng = rng_for(config.seed, "denoiser instead", *item.draw, attempt)
            return self.pool[int(rng.integers(len(self.pool)))]

        def failed(index: int, code: str) -> None:
            failures[self.rows[index].path] = code

        made = runs.usable(item.index, make, None if item.validation else another, failed)
        return made, failures


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


def _collate(items: list[Any]) -> Any:
    """Give (noisy, noise), the places that are filled, and failures."""
    made, there, failures = runs.sifted(items)
    parts = zip(*made, strict=True)
    return tuple(torch.from_numpy(np.concatenate(part)) for part in parts), there, failures


class SquaredError(nn.Module):
    """The mean squared error of a denoiser, as a module; of noise in 8-bit levels."""

    def __init__(self, network: nn.Module, margin: int) -> None:
        super().__init__()
        self.network, self.margin = network, margin

    def forward(self, noisy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Mean over (B, 3, N, N), where the network has an output."""
        found = self.network(noisy).float() * _LEVELS
        return functional.mse_loss(found, self.inner(noise) * _LEVELS)

    def inner(self, noise: torch.Tensor) -> torch.Tensor:
        """Cut out where the network has an output."""
        m = self.margin
        return noise[..., m : noise.shape[-2] - m, m : noise.shape[-1] - m]


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in 8-bit levels."""
    return 10 * math.log10(_LEVELS**2 / max(squared_error, 1e-12))


def _photos(manifest: Manifest, config: DenoiserConfig) -> list[Row]:
    """Real photos for training that are large enough, as far as is known."""
    rows = [
        row
        for row in sorted(manifest.rows, key=lambda row: row.path)
        if row.is_real
        and row.split == "train"
        and (not (row.width and row.height) or min(row.width, row.height) >= config.patch)
    ]
    if len(rows) < 2:
        raise DataError(
            f"a residual network needs real photos of at least {config.patch} pixels in split "
            f"train; there are {len(rows)}",
            code="manifest_invalid",
        )
    return rows


def _divide(rows: Sequence[Row], config: DenoiserConfig) -> tuple[list[int], list[int], str]:
    """Photos for training, photos for validation, and what parts them.

    ``"sources"``: none has photos in both; of a single source ``"photos"``.
    """
    groups, what = [group_of(row) for row in rows], "sources"
    if len(set(groups)) < 2:
        groups, what = [row.path for row in rows], "photos"
    held = held_out_groups(groups, config.validation, config.seed)
    kept = [i for i, group in enumerate(groups) if group in held]
    return [i for i, group in enumerate(groups) if group not in held], kept, what


class _Validation:
    """The error on photos that are held out, decoded once."""

    def __init__(
        self, patches: _Patches, held: Sequence[int], error_of: SquaredError, run: runs.Run
    ) -> None:
        count = max(1, patches.config.validation_patches // patches.config.patches)
        measured_on = held[:: max(1, len(held) // count)][:count]
        self.own = measured_on[run.ranks.rank :: run.ranks.world]
        self.patches, self.error_of, self.run = patches, error_of, run
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _load(self) -> None:
        source = runs.loader(
            self.patches, lambda i: [_Item(self.own[i], (0, 0), True)], range(len(self.own)),
            collate=_collate, workers=0, device=torch.device("cpu"),
        )  # fmt: skip
        for parts, there, failed in source:
            self.run.memory.update(failed)
            if there:
                self.kept.append(parts)

    def measure(self) -> dict[str, float]:
        """Mean squared error, and PSNR before and after."""
        if not self.kept:
            self._load()
        ranks = self.run.ranks
        before = after = 0.0
        for noisy, noise in self.kept:
            inner = self.error_of.inner(noise)
            before += float((inner.double() * _LEVELS).square().mean())
            after += float(self.error_of(noisy.to(ranks.device), noise.to(ranks.device)))
        sums = ranks.gather((before, after, len(self.kept)))
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


def train_denoiser(
    manifest: Manifest,
    out: str | os.PathLike[str],
    config: DenoiserConfig,
    *,
    run: str | os.PathLike[str] | None = None,
    options: RunOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
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
        See `masksim.config.Progress`.

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
    options = options or RunOptions()
    out = Path(out)
    check_residual_target(out, overwrite)
    rows = _photos(manifest, config)
    used, held, parted_by = _divide(rows, config)
    patches = _Patches([str(manifest.file(row)) for row in rows], rows, config, used)
    folder = runs.run_folder(run, out)
    with processes(options) as ranks:
        photos = config.batch // config.patches
        ranks.divided(photos, f"{photos} photos a batch")
        described = {
            "config": asdict(config), "manifest": manifest_hash(rows), **ranks.described()
        }  # fmt: skip
        text = json.dumps(described, indent=1)
        runs.claim(folder, text + "\n", ranks)
        one = runs.Run(
            folder, runs.fingerprint_of(text), options, ranks, "residual network", progress
        )
        network, outcome = _train(patches, held, one)
        data, digest = packed_weights(weights_of(config.residual, network))
        result = {
            "sha256": digest,
            **{key: outcome.best[key] for key in ("psnr_noisy", "psnr", "psnr_gain")},
            "validated_on": parted_by,
            "step": min(
                outcome.best["epoch"] * min(config.epoch_steps, config.steps), config.steps
            ),
            "skipped": dict(Counter(ranks.merged(one.memory).values())),
        }
        description = {
            "residual": config.residual.to_dict(),
            "training": asdict(config),
            **result,
            "manifest_sha256": described["manifest"],
            "photos": {"training": len(used), "validation": len(held)},
            "sources": {
                "training": len({group_of(rows[i]) for i in used}),
                "validation": len({group_of(rows[i]) for i in held}),
            },
            **ranks.provenance(),
        }
        if ranks.main:
            write_residual(out, data, description)
        ranks.barrier()
    return result


def _train(patches: _Patches, held: Sequence[int], run: runs.Run) -> tuple[nn.Module, runs.Outcome]:
    """Train the network; it is given back with the best weights."""
    config, used = patches.config, patches.pool
    torch.manual_seed(int(rng_for(config.seed, "denoiser").integers(2**62)))
    network = build_residual(config.residual)
    network.to(run.ranks.device)
    error_of = SquaredError(network, config.residual.margin)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, config.decay)

    def draw(step: int) -> list[_Item]:
        rng = rng_for(config.seed, "denoiser batch", step)
        photos = config.batch // config.patches
        return [_Item(used[int(rng.integers(len(used)))], (step, k), False) for k in range(photos)]

    epoch_steps = min(config.epoch_steps, config.steps)
    outcome = runs.fit(
        runs.Trainee(error_of, network, optimizer, scheduler),
        run,
        plan=runs.Plan(math.ceil(config.steps / epoch_steps), epoch_steps, config.steps),
        batches=run.batches(patches, draw, _collate, "photos"),
        validate=_Validation(patches, held, error_of, run).measure,
    )
    network.load_state_dict(outcome.weights)
    return network, outcome

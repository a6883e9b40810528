"""A residual that is learned end to end, one for all generators.

The bank (`masksim.bank.BANK`) is fixed. Here a few small convolutions take its place: they are
trained together with one linear head a generator, so that the log-spectra of what they leave tell
generated images from photos. The heads are there to train the kernels; `learned_features` gives
the spectra, on which heads can be solved in closed form as on those of the bank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, default_collate

from masksim.augment import rng_for
from masksim.bank import BANK_CLIP
from masksim.config import Progress
from masksim.data.manifest import REAL
from masksim.data.weights import repository_folds
from masksim.errors import DataError
from masksim.residual import LEARNED_SCALE
from masksim.spectrum import hann_window, pool_cells
from masksim.training import loop
from masksim.training.learned_config import LearnedConfig
from masksim.training.processes import RunOptions, processes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, full range
_HELD_BATCHES = 24
_AT_ONCE = 8  # windows, where no gradient is needed


class Windows(Protocol):
    """Windows of views: by the number of a view, uint8 (k, N, N, 3), sRGB."""

    def __getitem__(self, view: int, /) -> NDArray[np.uint8]:
        """Give the windows of a view."""


@dataclass(frozen=True, eq=False)
class Views:
    """What is learned from.

    Attributes
    ----------
    windows
        Of each view; they may be left in files.
    generators, sources
        str (n,): whose image a view is of, ``"real"`` for photos, and from which repository.
    chances
        float64 (n,): how often a view is drawn, within its class.
    """

    windows: Windows
    generators: NDArray[np.str_]
    sources: NDArray[np.str_]
    chances: NDArray[np.float64]


class _MeanLogPower(torch.autograd.Function):
    """Mean log-power of all segments, as `masksim.spectrum.welch_log_power`, with its gradient.

    By hand: the gradient that torch derives writes a whole plane for each segment.
    """

    @staticmethod
    def forward(
        ctx: Any, planes: torch.Tensor, window: torch.Tensor, hop: int, floor: float
    ) -> torch.Tensor:
        n = len(window)
        cut = planes.unfold(-2, n, hop).unfold(-2, n, hop)
        transform = torch.fft.rfft2(cut * window, norm="ortho")
        power = transform.real.square().add_(transform.imag.square()).add_(floor)
        ctx.save_for_backward(transform, power, window)
        ctx.hop, ctx.size = hop, planes.shape
        return power.log().mean(dim=(-4, -3))

    @staticmethod
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # type: ignore[override]
        transform, power, window = ctx.saved_tensors
        n, hop = len(window), ctx.hop
        down, across = power.shape[-4:-2]
        scale = given[..., None, None, :, :] / (down * across) / power
        # Of a frequency between, the half spectrum that is left out has the other half.
        scale[..., 0] *= 2
        scale[..., -1] *= 2
        parts = torch.fft.irfft2(transform * scale, s=(n, n), norm="ortho").mul_(window)
        out = torch.zeros(ctx.size, dtype=parts.dtype, device=parts.device)
        for i in range(down):
            for j in range(across):
                y, x = i * hop, j * hop
                out[..., y : y + n, x : x + n] += parts[..., i, j, :, :]
        return out, None, None, None


def mean_log_power(planes: torch.Tensor, segment: int, hop: int, floor: float) -> torch.Tensor:
    """`masksim.spectrum.welch_log_power` of planes (..., H, W), quick to train through."""
    window = torch.as_tensor(hann_window(segment), dtype=planes.dtype, device=planes.device)
    apply: Any = _MeanLogPower.apply
    found: torch.Tensor = apply(planes, window, hop, floor)
    return found


def _local_mean(luma: torch.Tensor) -> torch.Tensor:
    """Mean of 3x3 pixels, without the border."""
    height, width = luma.shape[-2:]
    rows = luma[..., : height - 2, :] + luma[..., 1 : height - 1, :] + luma[..., 2:, :]
    found = rows[..., : width - 2] + rows[..., 1 : width - 1] + rows[..., 2:]
    return found / 9


class LearnedResidual(nn.Module):
    """Small convolutions of luma without its local mean: no brightness goes in."""

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        sizes = [1, *[config.features] * (config.depth - 1), config.outputs]
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in pairwise(sizes))
        # Convolutions of a few channels are quicker with the channels last.
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, luma: torch.Tensor) -> torch.Tensor:
        """Luma (B, 1, N, N) to (B, outputs, N - 2 margin, N - 2 margin), both in 8-bit levels."""
        x = (luma[..., 1:-1, 1:-1] - _local_mean(luma)) / LEARNED_SCALE
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else functional.relu(x))
        return x.float() * LEARNED_SCALE


class Heads(nn.Module):
    """The residual with one linear head a generator and one for all, on standardised spectra.

    The heads also see the bank's cross difference and its clipped form, so that the kernels need
    not learn what is there already. `count` is the number of generators G.
    """

    def __init__(self, config: LearnedConfig, count: int) -> None:
        super().__init__()
        self.config = config
        self.residual = LearnedResidual(config)
        rows = config.segment // config.cell
        size = (config.outputs + 2) * rows * rows // 2
        self.standard = nn.BatchNorm1d(size, affine=False, momentum=0.05)
        self.heads = nn.Linear(size, count + 1)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def spectra(self, pixels: torch.Tensor, cell: int) -> torch.Tensor:
        """Give cells (B, outputs + 2, R, R // 2) of the log-spectra of crops, without their level.

        Of crops uint8 (B, N, N, 3), with R = segment // cell; the bank's two channels come last.
        """
        config, m = self.config, self.config.margin
        luma = (pixels.float() @ torch.tensor(_LUMA, device=pixels.device))[:, None]
        learned = self.residual(luma)
        side = learned.shape[-1]
        x = luma[..., m : m + side + 1, m : m + side + 1]
        cross = x[..., 1:, 1:] + x[..., :-1, :-1] - x[..., 1:, :-1] - x[..., :-1, 1:]
        planes = torch.cat([learned, cross, cross.clamp(-BANK_CLIP, BANK_CLIP)], dim=1)
        with torch.autocast(pixels.device.type, enabled=False):
            log = mean_log_power(planes, config.segment, config.hop, config.floor)
            cells: torch.Tensor = pool_cells(log, cell)
        return cells - cells.mean(dim=(-2, -1), keepdim=True)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, G + 1) of crops, uint8 (B, N, N, 3); the last is of "some generator"."""
        cells = self.spectra(pixels, self.config.cell).flatten(1)
        logits: torch.Tensor = self.heads(self.standard(cells))
        return logits


class HeadLoss(nn.Module):
    """Logistic losses of all heads; in each, photos weigh as much as generated images.

    The mean over the generators, plus that of "some generator".
    """

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Give the loss of crops, uint8 (B, N, N, 3), of classes (B,): 0 for photos, else g."""
        logits = self.heads(pixels)
        real = functional.softplus(logits[classes == 0]).mean(dim=0)
        missed = functional.softplus(-logits)
        there = [g for g in range(1, logits.shape[1]) if (classes == g).any()]
        own = [missed[classes == g, g - 1].mean() + real[g - 1] for g in there]
        some = missed[classes > 0, -1].mean() + real[-1]
        total: torch.Tensor = (torch.stack(own).mean() + some) / 2
        return total


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of a run: the module as it was at the end, for use.

    Not that of the lowest validation loss: the heads here grow too sure of themselves early, while
    what the kernels leave goes on to rank unseen repositories better, and other heads are solved on
    it. `generators` are in the order of the heads; `last` holds the last epoch and its losses.
    """

    module: Heads
    generators: tuple[str, ...]
    last: Mapping[str, Any]


class _Rows(Dataset[Any]):
    """Random crops of views."""

    def __init__(self, windows: Windows, classes: NDArray[np.int64], side: int) -> None:
        self.windows, self.classes, self.side = windows, classes, side

    def __getitem__(self, drawn: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], int]:
        view, *numbers = drawn
        windows, side = self.windows[view], self.side
        room = (len(windows), windows.shape[1] - side + 1, windows.shape[2] - side + 1)
        k, y, x = (number % n for number, n in zip(numbers, room, strict=True))
        return np.array(windows[k, y : y + side, x : x + side]), int(self.classes[view])


class _Draw:
    """Views of balanced batches, and numbers that say which crop of them."""

    def __init__(
        self, views: Views, classes: NDArray[np.int64], used: NDArray[np.bool_], batch: int
    ) -> None:
        self.parts: list[tuple[NDArray[np.int64], NDArray[np.float64], int]] = []
        count = int(classes.max())
        for c in range(count + 1):
            rows = np.flatnonzero(used & (classes == c) & (views.chances > 0))
            if len(rows):
                p = views.chances[rows] / views.chances[rows].sum()
                self.parts.append((rows, p, batch if c else batch * count))

    def __call__(self, *keys: object) -> list[tuple[int, int, int, int]]:
        rng = rng_for(*keys)
        drawn = [int(k) for rows, p, n in self.parts for k in rng.choice(rows, size=n, p=p)]
        numbers = rng.integers(2**31, size=(len(drawn), 3)).tolist()
        return [(view, *three) for view, three in zip(drawn, numbers, strict=True)]


def train_learned(
    views: Views,
    config: LearnedConfig,
    run: str | os.PathLike[str],
    *,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train kernels and heads together; a run that was killed goes on by the same call.

    Parameters
    ----------
    views
        Of photos and of each generator that is to have a head.
    config
        The run.
    run
        Folder of its state and log.
    options
        Device, precision, workers.
    progress
        Called with (stage, steps done, steps in all).

    Raises
    ------
    DataError
        A class has views of one repository alone, or ``diverged``.
    UsageError
        The folder holds another run.
    """
    options, run = options or RunOptions(), Path(run)
    names = tuple(sorted(set(views.generators.tolist()) - {REAL}))
    numbers = {name: k for k, name in enumerate((REAL, *names))}
    classes = np.array([numbers[name] for name in views.generators.tolist()], np.int64)
    held = repository_folds(views.sources, views.generators, config.folds) == 0
    for used, least in ((~held, len(names) + 1), (held, 2)):  # held: photos and some generator
        if not {0} < set(classes[used].tolist()) or len(set(classes[used].tolist())) < least:
            raise DataError("a class has views of too few repositories")
    draw, draw_held = (_Draw(views, classes, part, config.batch) for part in (~held, held))
    rows = _Rows(views.windows, classes, config.crop)
    table = zip(views.generators, views.sources, views.chances.tolist(), strict=True)
    digest = loop.fingerprint_of("\n".join(f"{g} {s} {p:.6g}" for g, s, p in table))
    described = json.dumps({"config": config.of_training, "views": digest}, indent=1)
    with processes(options) as ranks:
        loop.claim(run, described + "\n", ranks)
        torch.manual_seed(int(rng_for(config.seed, "learned residual").integers(2**62)))
        heads = Heads(config, len(names)).to(ranks.device)
        error_of = HeadLoss(heads)
        optimizer = torch.optim.AdamW(
            [
                {"params": heads.residual.parameters(), "lr": config.lr, "weight_decay": 0.0},
                {"params": heads.heads.parameters(), "lr": config.head_lr,
                 "weight_decay": config.head_decay},
            ]
        )  # fmt: skip

        def batches(steps: range) -> Iterator[Sequence[torch.Tensor]]:
            yield from loop.loader(
                rows, lambda step: draw(config.seed, "learned batch", step), steps,
                collate=default_collate, workers=options.workers, device=ranks.device,
            )  # fmt: skip

        def validate() -> dict[str, float]:
            drawn = (draw_held(config.seed, "learned held", k) for k in range(_HELD_BATCHES))
            parts = (default_collate([rows[i] for i in batch]) for batch in drawn)
            losses = [float(error_of(*(x.to(ranks.device) for x in batch))) for batch in parts]
            return {"valid_loss": float(np.mean(losses))}

        epochs, epoch_steps = config.epochs, min(config.epoch_steps, config.steps)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        outcome = loop.fit(
            loop.Trainee(error_of, heads, optimizer, falling),
            loop.Run(
                run, loop.fingerprint_of(described), options, ranks, "learned residual", progress
            ),
            plan=loop.Plan(epochs, epoch_steps, config.steps), batches=batches, validate=validate,
        )  # fmt: skip
    return Learned(heads.cpu().eval(), names, outcome.history[-1])


def learned_features(
    learned: Learned, windows: NDArray[np.uint8], cell: int = 1
) -> NDArray[np.float32]:
    """Mean log-spectra of an image's windows, uint8 (k, N, N, 3), in all channels of the residual.

    float32 (C, R, R // 2) with R = segment // cell, natural logarithm of power, without its level.
    """
    module = learned.module
    return _mean_of(lambda some: module.spectra(some, cell), windows)


def learned_scores(learned: Learned, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean logits (G + 1,) that the trained heads give an image's windows, uint8 (k, N, N, 3)."""
    return _mean_of(learned.module, windows)


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Let torch compute in one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _mean_of(
    function: Callable[[torch.Tensor], torch.Tensor], windows: NDArray[np.uint8]
) -> NDArray[np.float32]:
    with torch.no_grad():
        parts = [
            function(torch.from_numpy(np.array(windows[i : i + _AT_ONCE])))
            for i in range(0, len(windows), _AT_ONCE)
        ]
    return np.asarray(torch.cat(parts).mean(dim=0).numpy(), np.float32)


def weights_of(learned: Learned) -> dict[str, NDArray[np.float32]]:
    """Weights of the residual, as `masksim.residual.weight_shapes` names them."""
    state = learned.module.residual.state_dict()
    return {name: np.asarray(values.numpy(), np.float32) for name, values in state.items()}


def directions_of(learned: Learned) -> NDArray[np.float32]:
    """Directions of the heads in cells of log-spectra without their level: (G, C, R, R // 2).

    The heads are linear on spectra standardised by what training met; this is their gradient.
    """
    module, config = learned.module, learned.module.config
    variance: Any = module.standard.running_var
    scale = (variance + module.standard.eps).sqrt()
    rows = config.segment // config.cell
    found = (module.heads.weight[:-1] / scale).detach().numpy()
    return np.asarray(found.reshape(-1, config.channels, rows, rows // 2), np.float32)

"""Making a detector as the original does: masks and references by gradient, a network a generator.

Each generator gets a detector of its own, residual network included (the recipes of
`masksim.training` have one residual for all).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from masksim import metrics
from masksim.augment import rng_for
from masksim.checkpoint import Branch, DetectorFile, check_target
from masksim.config import Progress
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.errors import DataError, UsageError
from masksim.original.config import OriginalConfig
from masksim.original.network import OriginalNetwork
from masksim.original.residual_file import read_residual
from masksim.original.split import Part, parts_of, usable_rows
from masksim.original.windows import Collate, Item, Windows, batch_items, unpacked
from masksim.residual import residual_onnx
from masksim.spectrum import EPSILON
from masksim.training import loop as runs
from masksim.training.processes import Ranks, RunOptions, processes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VALIDATION_BYTES = 2 * 2**30  # validation windows up to this much are kept decoded


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


class _Validation:
    """Similarities and losses of the validation images, decoded once where memory allows."""

    def __init__(
        self, windows: Windows, indices: Sequence[int], options: RunOptions, ranks: Ranks
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
            lambda i: [Item(index, None) for index in chunks[i]],
            range(len(chunks)),
            collate=Collate(config.space),
            workers=min(self.options.workers, len(chunks) // 4),  # a process takes seconds to start
            device=torch.device("cpu"),
        )
        for i, ((planes, synthetic), there, failures) in enumerate(source):
            self.failures.update(failures)
            part = (planes, synthetic, [chunks[i][k] for k in there])
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
                with nullcontext() if exact else self.ranks.autocast():
                    found = network(inputs)
                losses = network.losses(found, synthetic.to(self.ranks.device))
                for index, s, loss in zip(indices, found.tolist(), losses.tolist(), strict=True):
                    out[index] = (s, loss)
        return dict(sorted(self.ranks.merged(out).items()))

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


def _start(
    path: str | os.PathLike[str] | None, config: OriginalConfig
) -> tuple[OriginalConfig, Mapping[str, NDArray[Any]] | None, dict[str, Any]]:
    """Read what the residual starts from: the configuration with its sizes, weights, and facts."""
    if path is None:
        return config, None, {"from": "random numbers"}
    if not config.residual.is_stack:
        raise UsageError(f"a {config.preprocess!r} residual takes no --residual-weights")
    found, weights, facts = read_residual(path)
    if found.kind != config.preprocess:
        raise UsageError(
            f"the residual weights are of a {found.kind!r} network, the recipe asks for "
            f"{config.preprocess!r}: give -p {found.kind}"
        )
    if facts.get("colour", config.space) != config.space:
        raise UsageError(
            f"the residual network was trained in {facts['colour']}, the detector's colour "
            f"space is {config.space}"
        )
    config = replace(
        config, depth=found.depth, features=found.features,
        padding=found.padding, batch_norm=found.batch_norm,
    )  # fmt: skip
    return config, weights, facts


def _folder_name(generator: str) -> str:
    plain = re.sub(r"[^\w.-]", "_", generator)
    if plain == generator and not plain.startswith("."):
        return plain
    return f"{plain.lstrip('.')}-{runs.fingerprint_of(generator)[:8]}"


def train_original(
    manifest: Manifest,
    out: str | os.PathLike[str],
    config: OriginalConfig,
    *,
    residual_weights: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
    options: RunOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
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
        `masksim.original.residual_file.read_residual`; without them, from random numbers.
    run
        Folder of the runs' states and logs, one a generator; by default `out` with ``.run``
        added. A run that was killed goes on by the same call.
    options
        Device, precision, workers.
    overwrite
        Replace a detector that is there.
    progress
        See `masksim.config.Progress`; a stage is a generator.

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
    options = options or RunOptions()
    out = Path(out)
    check_target(out, overwrite)  # before hours of work, not after
    run = runs.run_folder(run, out)
    config, weights, initial = _start(residual_weights, config)
    rows, skipped = usable_rows(manifest, config.window)
    parts, how = parts_of(rows, config)
    used = [rows[i] for i in sorted({i for part in parts for i in part.images})]
    images = _Images(rows, [str(manifest.file(row)) for row in rows], config, weights)
    with processes(options) as ranks:
        ranks.divided(config.batch, f"a batch of {config.batch}")
        described = {
            "config": asdict(config), "manifest": manifest_hash(used), "residual": initial,
            **ranks.described(),
        }  # fmt: skip
        runs.claim(run, json.dumps(described, indent=1) + "\n", ranks)
        made = []
        for part in parts:
            text = json.dumps([described, part.name], sort_keys=True)
            one = runs.Run(
                run / _folder_name(part.name), runs.fingerprint_of(text), options, ranks,
                part.name, progress,
            )  # fmt: skip
            made.append(_train_part(part, images, one))
        file = _file(made, parts, images, how)
        facts = {
            "manifest_sha256": described["manifest"],
            "residual": {**initial, **config.residual.to_dict()},
            "skipped": dict(skipped + Counter(_failures(made).values())),
            **ranks.provenance(),
        }
        file = replace(file, provenance={**file.provenance, **facts})
        if ranks.main:
            file = file.save(out, overwrite=overwrite)
        ranks.barrier()
    outcomes = {one.branch.generators[0]: one.outcome for one in made}
    return Trained(
        file,
        {name: outcome.best for name, outcome in outcomes.items()},
        {name: outcome.history for name, outcome in outcomes.items()},
        {name: outcome.losses for name, outcome in outcomes.items()},
        file.provenance["skipped"],
    )


def _failures(made: Sequence[_Made]) -> dict[str, str]:
    return {path: code for one in made for path, code in one.failures.items()}


def _file(made: Sequence[_Made], parts: Sequence[Part], images: _Images, how: str) -> DetectorFile:
    """Put the detectors of all generators together, calibrated on the validation photos.

    `how` says how those were chosen. The provenance of the run as a whole is added by the caller.
    """
    rows, config, failures = images.rows, images.config, _failures(made)
    common = sorted(set.intersection(*(set(one.photos) for one in made)))
    scores = np.array([[one.photos[i] for one in made] for i in common], dtype=np.float32)
    return DetectorFile(
        config={"name": config.full_name, "recipe": "original"},
        branches=tuple(one.branch for one in made),
        calibration={"real_similarities": scores},
        provenance={
            "training": asdict(config),
            "images": _counts(parts, rows, failures, lambda row: row.path),
            "sources": _counts(parts, rows, failures, lambda row: row.source),
            "best": {one.branch.generators[0]: dict(one.outcome.best) for one in made},
            "calibration": {
                "photos": len(common),
                "sources": len({rows[i].source for i in common}),
                "how": f"{how}, not trained on but used to choose the epoch; the central window, "
                "compressed as in training",
            },
        },
    )


def _counts(
    parts: Sequence[Part],
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


@dataclass(frozen=True, eq=False)
class _Images:
    """What all detectors of a run have in common."""

    rows: Sequence[Row]
    files: Sequence[str]
    config: OriginalConfig
    weights: Mapping[str, NDArray[Any]] | None  # that the residual starts from


@dataclass(frozen=True, eq=False)
class _Made:
    """What came of one detector."""

    branch: Branch
    outcome: runs.Outcome
    failures: Mapping[str, str]  # of all processes
    photos: Mapping[int, float]  # similarities of the validation photos


def _train_part(part: Part, images: _Images, run: runs.Run) -> _Made:
    """Train one detector, and score the validation photos."""
    config, rows, ranks = images.config, images.rows, run.ranks
    classes = (part.train_real, part.train_synthetic)
    windows = Windows(images.files, rows, config, part.name, classes)
    seed = int(rng_for(config.seed, part.name, "initial values").integers(2**62))
    torch.manual_seed(seed)
    network = OriginalNetwork(
        config.residual, config.window, masks=config.num_masks, freeze=config.freeze,
        residual_weights=images.weights, seed=seed,
    ).to(ranks.device)  # fmt: skip
    validation = _Validation(windows, part.valid_real + part.valid_synthetic, run.options, ranks)
    steps = math.ceil((len(part.train_real) + len(part.train_synthetic)) / config.batch)
    outcome = runs.fit(
        runs.Trainee(LossOfBatch(network), network, *optimizer_of(network, config)),
        run,
        plan=runs.Plan(config.epochs, config.epoch_steps or steps, config.limit_steps),
        batches=run.batches(
            windows,
            lambda step: batch_items(step, *classes, config, part.name),
            Collate(config.space),
            "images",
        ),
        validate=lambda: validation.measure(network),
    )
    network.load_state_dict(outcome.weights)
    network.eval()
    found = validation.similarities(network, exact=True)
    return _Made(
        _branch(network, part.name, config),
        outcome,
        ranks.merged({**run.memory, **validation.failures}),
        {i: s for i, (s, _) in found.items() if rows[i].is_real},
    )


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

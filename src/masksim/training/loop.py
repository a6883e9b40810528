"""What every run of training by gradient needs, whatever is trained.

Batches that depend on the step alone (`loader`), and the loop itself (`fit`): its state is written
whole, and a run that was killed goes on as if nothing had happened; on the processor bit by bit so.

The folder of a run::

    last.pt       weights, optimizer, scheduler, random state and position; read without pickle code
    best.pt       weights of the epoch with the lowest validation loss
    log.jsonl     one line a step and one an epoch
    tensorboard/  where asked for
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from masksim.config import Progress
from masksim.errors import DataError, ImageError, ModelError, UsageError, extra_missing
from masksim.files import cannot_write, make_folder, write_whole
from masksim.training.processes import Ranks, RunOptions

T = TypeVar("T")

LAST, BEST, LOG = "last.pt", "best.pt", "log.jsonl"
_FORMAT = 1

ATTEMPTS = 20
"""At an image that can be read, for one place in a batch."""


# --- files ---------------------------------------------------------------------------------------


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values with torch, whole or not at all.

    Raises
    ------
    UsageError
        See `masksim.files.write_whole`.
    """
    buffer = io.BytesIO()  # torch's own writing to a full disk raises what says nothing
    torch.save(dict(state), buffer)
    write_whole(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote. Nothing in the file is executed.

    Raises
    ------
    ModelError
        ``model_not_found``; ``model_invalid`` if it is damaged or holds anything but tensors and
        plain values.
    """
    if not path.is_file():
        raise ModelError(f"there is no {path}", code="model_not_found")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise many kinds
        raise ModelError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} is no state of a run")
    return state


def run_folder(run: str | os.PathLike[str] | None, out: Path) -> Path:
    """Give the folder of a run's state; by default `out` with ``.run`` added.

    Raises
    ------
    UsageError
        `out` would lie in it, or it in `out`.
    """
    folder = Path(run) if run is not None else out.with_name(out.name + ".run")
    if out.absolute() in (folder.absolute(), *folder.absolute().parents):
        raise UsageError(f"the run's folder {folder} must not lie in that of the result, {out}")
    return folder


def claim(folder: Path, description: str, ranks: Ranks) -> None:
    """Make the folder of a run, and see that it holds no other run.

    Parameters
    ----------
    folder
        Of the run. ``config.json`` in it holds the description.
    description
        All that the result depends on, as JSON text.
    ranks
        Process 0 writes.

    Raises
    ------
    UsageError
        It holds another run, or cannot be written.
    """
    make_folder(folder)
    path = folder / "config.json"
    if path.exists() and path.read_text(encoding="utf-8") != description:
        raise UsageError(
            f"{folder} holds another run (of another configuration, manifest, device or number of "
            f"processes, see {path.name} there): delete it, or give another folder with --run"
        )
    ranks.barrier()  # nobody writes before all have read
    if ranks.main:
        write_whole(path, description.encode())


# --- batches -----------------------------------------------------------------------------------


class _Steps:
    """The draws of the steps still to do, in order."""

    def __init__(self, draw: Callable[[int], Sequence[Any]], steps: range) -> None:
        self.draw, self.steps = draw, steps

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return (self.draw(step) for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def loader(
    dataset: Dataset[Any],
    draw: Callable[[int], Sequence[Any]],
    steps: range,
    *,
    collate: Callable[[list[Any]], Any],
    workers: int,
    device: torch.device,
) -> DataLoader[Any]:
    """Load the batches of some steps, the same whatever the number of workers.

    Parameters
    ----------
    dataset
        Its items are pure functions of what `draw` names.
    draw
        Called with a step; the names of the items of its batch. A pure function, too.
    steps
        Which.
    collate
        Makes a batch of items.
    workers
        Processes; 0: this one.
    device
        Where the batches will go.
    """
    sampler: Any = _Steps(draw, steps)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        # Not forked: a fork of a process with threads can deadlock.
        multiprocessing_context="spawn" if workers else None,
        # Of its own, so that the random state of the run does not depend on how it loads.
        generator=torch.Generator(),
    )


def usable(
    index: int,
    make: Callable[[int], T],
    instead: Callable[[int], int] | None,
    failed: Callable[[int, str], None],
) -> T | None:
    """Make something of an image, or of others in its place while it cannot be used.

    Parameters
    ----------
    index, make
        Of the image; called with an index, raises `ImageError` if the image cannot be used.
    instead
        Called with the number of the attempt; gives the next index. None: there is no other.
    failed
        Called with the index and the error's code.

    Returns
    -------
    object or None
        None after `ATTEMPTS`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return make(index)
        except ImageError as error:
            failed(index, error.code)
        if instead is None:
            break
        index = instead(attempt)
    return None


def sifted(items: Sequence[tuple[T | None, dict[str, str]]]) -> tuple[list[T], list[int], Any]:
    """Give what `usable` made, its places among the items, and all error codes by path."""
    failures: dict[str, str] = {}
    for _, failed in items:
        failures.update(failed)
    there = [i for i, (made, _) in enumerate(items) if made is not None]
    return [made for made, _ in items if made is not None], there, failures


# --- the loop ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How long a run is.

    Attributes
    ----------
    epochs, epoch_steps : int
        Both at least 1.
    limit_steps : int
        At most this many steps in all; 0: no limit.
    """

    epochs: int
    epoch_steps: int
    limit_steps: int = 0

    @property
    def steps(self) -> int:
        """Steps in all."""
        total = self.epochs * self.epoch_steps
        return min(total, self.limit_steps) if self.limit_steps else total


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a run.

    Attributes
    ----------
    weights
        ``state_dict`` of the epoch with the lowest validation loss, on the processor.
    best
        What was measured after that epoch: ``epoch`` (from 1), ``train_loss``, ``valid_loss``, ...
    history
        The same of all epochs.
    losses
        Training losses of the steps done by this process, means over the processes.
    """

    weights: Mapping[str, torch.Tensor]
    best: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    losses: Sequence[float] = field(default_factory=tuple)


@dataclass(frozen=True, eq=False)
class Trainee:
    """What is trained.

    Attributes
    ----------
    loss
        Called with the parts of a batch; returns the loss, a scalar. Holds `module`.
    module
        What is stored.
    optimizer, scheduler
        Of its parameters; the scheduler takes a step an epoch.
    """

    loss: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True, eq=False)
class Run:
    """Where a run is kept, and how it is computed.

    Attributes
    ----------
    folder
        Made.
    fingerprint
        Of all that the result depends on. A state of another run is not gone on with.
    options, ranks
        See their classes.
    stage
        Name of the run for `progress`.
    progress
        Called with (stage, steps done, steps in all).
    memory
        Plain values to be kept with the state; filled from it when a run goes on.
    """

    folder: Path
    fingerprint: str
    options: RunOptions
    ranks: Ranks
    stage: str = "training"
    progress: Progress | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def batches(
        self,
        dataset: Dataset[Any],
        draw: Callable[[int], Sequence[Any]],
        collate: Callable[[list[Any]], Any],
        what: str,
    ) -> Callable[[range], Iterator[Sequence[torch.Tensor]]]:
        """Load this process's part of each batch, for `fit`; failures go into the memory.

        Parameters
        ----------
        dataset, draw
            See `loader`; the draw is of all processes together.
        collate
            Gives tensors, the places that could be filled, and failures, see `sifted`.
        what
            The items are, for the message: ``"images"``.
        """
        ranks = self.ranks

        def own(step: int) -> Sequence[Any]:
            return draw(step)[ranks.rank :: ranks.world]

        def batches(steps: range) -> Iterator[Sequence[torch.Tensor]]:
            source = loader(
                dataset, own, steps, collate=collate, workers=self.options.workers,
                device=ranks.device,
            )  # fmt: skip
            for step, (tensors, there, failed) in zip(steps, source, strict=True):
                self.memory.update(failed)
                if len(there) < len(own(step)):
                    raise DataError(
                        f"{ATTEMPTS} {what} in a row could not be used: "
                        f"{json.dumps(dict(list(failed.items())[:5]))}",
                        code="manifest_invalid",
                    )
                yield tensors

        return batches


def fingerprint_of(text: str) -> str:
    """SHA-256 of what describes a run."""
    return hashlib.sha256(text.encode()).hexdigest()


def fit(
    trainee: Trainee,
    run: Run,
    *,
    plan: Plan,
    batches: Callable[[range], Iterator[Sequence[Any]]],
    validate: Callable[[], Mapping[str, float]],
) -> Outcome:
    """Train, or go on training, until the plan is done.

    Parameters
    ----------
    trainee, run
        See their classes.
    plan
        How long.
    batches
        Called with the steps still to do; yields this process's batch of each.
    validate
        Called after each epoch, with the module in evaluation mode and without gradients; gives
        at least ``valid_loss``, the same in all processes.

    Returns
    -------
    Outcome

    Raises
    ------
    DataError
        ``diverged``: a loss or a weight is not finite. What was saved before stays.
    UsageError
        The folder cannot be written, or holds another run; TensorBoard is missing.
    ModelError
        The state in the folder is damaged.
    """
    loop = _Loop(trainee, run, plan)
    try:
        loop.go(batches, validate)
    finally:
        if loop.curves is not None:
            loop.curves.close()
    run.ranks.barrier()  # the best is on disk for all
    if loop.best is None:
        raise UsageError("a run needs at least one step")
    stored = load_state(run.folder / BEST)
    return Outcome(stored["module"], loop.best, loop.history, loop.losses)


class _Loop:
    """A run under way: where it is, and how it is saved."""

    def __init__(self, trainee: Trainee, run: Run, plan: Plan) -> None:
        make_folder(run.folder)
        self.trainee, self.run, self.plan = trainee, run, plan
        writes_curves = run.options.tensorboard and run.ranks.main
        self.curves = _curves(run.folder) if writes_curves else None
        self.wrapped = trainee.loss
        trainee.module.train()
        if run.ranks.world > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(trainee.loss)
        self.step, self.spent = 0, 0.0
        self.sums = [0.0, 0]  # of the epoch's losses, and how many there are
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.losses: list[float] = []
        if (run.folder / LAST).exists():
            self._restore()
        run.ranks.barrier()  # nobody writes before all have read
        if run.ranks.main:
            _cut_log(run.folder / LOG, self.step)
        self.start = time.perf_counter() - self.spent

    def _restore(self) -> None:
        path, trainee = self.run.folder / LAST, self.trainee
        state = load_state(path)
        if state.get("format") != _FORMAT or state.get("fingerprint") != self.run.fingerprint:
            raise UsageError(
                f"{self.run.folder} holds another run (another configuration, manifest or number "
                "of processes): delete it, or give another folder"
            )
        try:
            trainee.module.load_state_dict(state["module"])
            trainee.optimizer.load_state_dict(state["optimizer"])
            trainee.scheduler.load_state_dict(state["scheduler"])
            self.step, self.spent = int(state["step"]), float(state["seconds"])
            self.history, self.best = list(state["history"]), state["best"]
            self.sums = list(state["sums"])
            self.run.memory.update(state["memory"])
            _set_random(state["random"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"{path} is damaged: {error}") from error

    def go(
        self,
        batches: Callable[[range], Iterator[Sequence[Any]]],
        validate: Callable[[], Mapping[str, float]],
    ) -> None:
        """Do all steps that are left."""
        total = self.plan.steps
        self._tell(total)
        source = iter(batches(range(self.step, total))) if self.step < total else iter(())
        for batch in source:
            self._learn(batch)
            ends = self.step % self.plan.epoch_steps == 0 or self.step == total
            if ends:
                self._end_epoch(validate)
            if ends or self.step % self.run.options.save_every == 0:
                self._save_last()
            self._tell(total)

    def _tell(self, total: int) -> None:
        if self.run.progress:
            self.run.progress(self.run.stage, self.step, total)

    @property
    def epoch(self) -> int:
        """Of the last step, from 1."""
        return (self.step - 1) // self.plan.epoch_steps + 1

    def _learn(self, batch: Sequence[Any]) -> None:
        ranks, optimizer = self.run.ranks, self.trainee.optimizer
        parts = [part.to(ranks.device, non_blocking=True) for part in batch]
        optimizer.zero_grad(set_to_none=True)
        with ranks.autocast():
            loss = self.wrapped(*parts)
        value = ranks.mean(float(loss.detach()))
        if not math.isfinite(value):
            raise _diverged(f"the loss of step {self.step + 1} is {value}")
        loss.backward()
        optimizer.step()
        self.step += 1
        self.losses.append(value)
        self.sums = [self.sums[0] + value, self.sums[1] + 1]
        rates = [group["lr"] for group in optimizer.param_groups]
        self._log({"step": self.step, "epoch": self.epoch, "loss": value, "lr": rates})
        if self.curves is not None:
            self.curves.add_scalar("loss/step", value, self.step)

    def _end_epoch(self, validate: Callable[[], Mapping[str, float]]) -> None:
        module = self.trainee.module
        self.trainee.scheduler.step()
        self.run.ranks.share_buffers(module)
        module.eval()
        with torch.no_grad():
            measured = dict(validate())
        module.train()
        if not math.isfinite(measured["valid_loss"]):
            raise _diverged(f"the validation loss of epoch {self.epoch} is not finite")
        line = {"epoch": self.epoch, "train_loss": self.sums[0] / self.sums[1], **measured}
        self.history.append(line)
        self.sums = [0.0, 0]
        if self.best is None or line["valid_loss"] < self.best["valid_loss"]:
            self.best = line
            best = {"format": _FORMAT, "best": line, "module": module.state_dict()}
            self._save(BEST, best)
        self._log({"step": self.step, **line})
        if self.curves is not None:
            for name, number in line.items():
                self.curves.add_scalar(f"epoch/{name}", number, self.epoch)

    def _save_last(self) -> None:
        trainee = self.trainee
        self._save(
            LAST,
            {
                "format": _FORMAT, "fingerprint": self.run.fingerprint, "step": self.step,
                "module": trainee.module.state_dict(), "random": _random(),
                "optimizer": trainee.optimizer.state_dict(),
                "scheduler": trainee.scheduler.state_dict(),
                "history": self.history, "best": self.best, "sums": self.sums,
                "memory": self.run.memory, "seconds": time.perf_counter() - self.start,
            },
        )  # fmt: skip

    def _save(self, name: str, content: Mapping[str, Any]) -> None:
        _check_finite(self.trainee.module)
        if self.run.ranks.main:
            save_state(self.run.folder / name, content)

    def _log(self, line: Mapping[str, Any]) -> None:
        if not self.run.ranks.main:
            return
        timed = {**line, "seconds": round(time.perf_counter() - self.start, 3)}
        path = self.run.folder / LOG
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(timed) + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error


def _diverged(what: str) -> DataError:
    return DataError(
        f"training does not converge: {what}. The last saved state is untouched; try a lower "
        "learning rate, float32, or look for images that are not photos",
        code="diverged",
    )


def _check_finite(module: nn.Module) -> None:
    for name, values in module.state_dict().items():
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise _diverged(f"{name} has values that are not finite")


def _random() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _cut_log(path: Path, step: int) -> None:
    """Take out of the log what comes after the state: it will be done, and written, again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            continue
    write_whole(path, "".join(line + "\n" for line in kept).encode())


def _curves(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise extra_missing("--tensorboard", "tensorboard", "tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"))

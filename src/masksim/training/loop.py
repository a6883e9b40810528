"""What every run of training by gradient needs, whatever is trained.

Devices and processes (`processes`), batches that depend on the step alone (`loader`), and the loop
itself (`fit`): its state is written whole, and a run that was killed goes on as if nothing had
happened; on the processor bit by bit so.

The folder of a run::

    last.pt       weights, optimizer, scheduler, random state and position; read without pickle code
    best.pt       weights of the epoch with the lowest validation loss
    log.jsonl     one line a step and one an epoch
    tensorboard/  where asked for
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset

from masksim.errors import DataError, ModelError, UsageError, extra_missing

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
Progress: TypeAlias = Callable[[str, int, int], None]

LAST, BEST, LOG = "last.pt", "best.pt", "log.jsonl"
_FORMAT = 1
_PATIENCE = timedelta(hours=2)  # of one process for another: validation may decode many images


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is computed; nothing of what it computes.

    Attributes
    ----------
    device : {"auto", "cpu", "cuda"}
        ``auto``: the accelerator where there is one.
    precision : {"auto", "float32", "bfloat16"}
        Of the residual network. ``auto``: float32. bfloat16 is faster on an accelerator, but its
        rounding of the pixels (up to half a level of 255) is not small against their noise.
    workers : int
        Processes that decode images, for each process that trains; 0: it decodes itself.
    save_every : int
        Steps between two writings of ``last.pt``; it is written after each epoch anyway.
    tensorboard : bool
        Write curves for TensorBoard.
    """

    device: Device = "auto"
    precision: Precision = "auto"
    workers: int = 0
    save_every: int = 500
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise UsageError(
                f"device must be one of {', '.join(get_args(Device))}, got {self.device!r}"
            )
        if self.precision not in get_args(Precision):
            raise UsageError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )
        if self.workers < 0 or self.save_every < 1:
            raise UsageError("workers must be at least 0 and save_every at least 1")


@dataclass(frozen=True)
class Ranks:
    """Place of this process among those that train together.

    Attributes
    ----------
    rank : int
        0 writes.
    world : int
    device : torch.device
    bfloat16 : bool
        Whether the residual network runs in bfloat16.
    """

    rank: int
    world: int
    device: torch.device
    bfloat16: bool

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """Mean over the processes, the same in all."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total) / self.world

    def gather(self, value: Any) -> list[Any]:
        """Collect plain values of all processes, by rank, in all of them."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        distributed.all_gather_object(out, value)
        return out

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            distributed.barrier()

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the running statistics of process 0, which are those it writes."""
        if self.world > 1:
            for values in module.buffers():
                distributed.broadcast(values, 0)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute convolutions in bfloat16 where the run does so."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            yield


@contextmanager
def processes(options: RunOptions) -> Iterator[Ranks]:
    """Find this process's place and device; join the others where ``torchrun`` started several.

    Raises
    ------
    UsageError
        No accelerator where one is asked for, or bfloat16 on one that lacks it.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise UsageError("--device cuda: torch finds no CUDA device; --device cpu needs none")
    if options.device == "cpu" or not there:
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    able = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if options.precision == "bfloat16" and not able:
        raise UsageError("--precision bfloat16: the device has no bfloat16")
    bfloat16 = options.precision == "bfloat16"
    own = world > 1 and not distributed.is_initialized()
    if own:
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(rank, world, device, bfloat16)
    finally:
        if own:
            distributed.destroy_process_group()


# --- files -------------------------------------------------------------------------------------


def cannot_write(path: Path, error: OSError) -> UsageError:
    """Say that a file cannot be written, and what is lost: nothing."""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "; what was written before is whole: free some space and run the same command again"
    return UsageError(f"cannot write {path}: {error.strerror or error}{hint}")


def make_folder(path: Path) -> None:
    """Make a folder, with its parents.

    Raises
    ------
    UsageError
        It cannot be made, or not be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"cannot write into {path}: permission denied")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: what was there stays until all of the new is on disk.

    Raises
    ------
    UsageError
        It cannot be written: no permission, no space.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values with torch, whole or not at all.

    Raises
    ------
    UsageError
        See `write_atomically`.
    """
    buffer = io.BytesIO()  # torch's own writing to a full disk raises what says nothing
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


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
        write_atomically(path, description.encode())


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


def fit(
    step_module: nn.Module,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    plan: Plan,
    batches: Callable[[range], Iterator[Sequence[Any]]],
    validate: Callable[[], Mapping[str, float]],
    folder: Path,
    fingerprint: str,
    options: RunOptions,
    ranks: Ranks,
    memory: dict[str, Any] | None = None,
    stage: str = "training",
    progress: Progress | None = None,
) -> Outcome:
    """Train, or go on training, until the plan is done.

    Parameters
    ----------
    step_module
        Called with the parts of a batch; returns the loss, a scalar. Holds `module`.
    module
        What is trained and stored.
    optimizer, scheduler
        Of its parameters; the scheduler takes a step an epoch.
    plan
        How long.
    batches
        Called with the steps still to do; yields this process's batch of each.
    validate
        Called after each epoch, with the module in evaluation mode and without gradients; gives
        at least ``valid_loss``, the same in all processes.
    folder
        Of the run, made.
    fingerprint
        Of all that the result depends on. A state of another run is not gone on with.
    options, ranks
        See their classes.
    memory
        Plain values to be kept with the state; filled from it when a run goes on.
    stage
        Name of the run for `progress`.
    progress
        Called with (stage, steps done, steps in all).

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
    make_folder(folder)
    memory = {} if memory is None else memory
    curves = _curves(folder) if options.tensorboard and ranks.main else None
    wrapped = step_module
    module.train()
    if ranks.world > 1:
        wrapped = nn.parallel.DistributedDataParallel(step_module)
    step, spent, history, best = 0, 0.0, [], None  # type: ignore[var-annotated]
    sums = [0.0, 0]
    if (folder / LAST).exists():
        state = load_state(folder / LAST)
        if state.get("format") != _FORMAT or state.get("fingerprint") != fingerprint:
            raise UsageError(
                f"{folder} holds another run (another configuration, manifest or number of "
                "processes): delete it, or give another folder"
            )
        try:
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            step, spent = int(state["step"]), float(state["seconds"])
            history, best, sums = list(state["history"]), state["best"], list(state["sums"])
            memory.update(state["memory"])
            _set_random(state["random"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"{folder / LAST} is damaged: {error}") from error
    ranks.barrier()  # nobody writes before all have read
    if ranks.main:
        _cut_log(folder / LOG, step)

    def save(name: str, content: Mapping[str, Any]) -> None:
        _check_finite(module)
        if ranks.main:
            save_state(folder / name, content)

    def log(line: Mapping[str, Any]) -> None:
        if ranks.main:
            try:
                with open(folder / LOG, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise cannot_write(folder / LOG, error) from error

    losses: list[float] = []
    total = plan.steps
    start = time.perf_counter() - spent
    if progress:
        progress(stage, step, total)
    source = iter(batches(range(step, total))) if step < total else iter(())
    try:
        for batch in source:
            parts = [part.to(ranks.device, non_blocking=True) for part in batch]
            optimizer.zero_grad(set_to_none=True)
            with ranks.autocast():
                loss = wrapped(*parts)
            value = ranks.mean(float(loss.detach()))
            if not math.isfinite(value):
                raise _diverged(f"the loss of step {step + 1} is {value}")
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(value)
            sums = [sums[0] + value, sums[1] + 1]
            epoch = (step - 1) // plan.epoch_steps + 1
            rates = [group["lr"] for group in optimizer.param_groups]
            seconds = round(time.perf_counter() - start, 3)
            log({"step": step, "epoch": epoch, "loss": value, "lr": rates, "seconds": seconds})
            if curves is not None:
                curves.add_scalar("loss/step", value, step)
            ends = step % plan.epoch_steps == 0 or step == total
            if ends:
                scheduler.step()
                ranks.share_buffers(module)
                module.eval()
                with torch.no_grad():
                    measured = dict(validate())
                module.train()
                if not math.isfinite(measured["valid_loss"]):
                    raise _diverged(f"the validation loss of epoch {epoch} is not finite")
                line = {"epoch": epoch, "train_loss": sums[0] / sums[1], **measured}
                history.append(line)
                sums = [0.0, 0]
                if best is None or line["valid_loss"] < best["valid_loss"]:
                    best = line
                    save(BEST, {"format": _FORMAT, "best": best, "module": module.state_dict()})
                log({"step": step, **line, "seconds": round(time.perf_counter() - start, 3)})
                if curves is not None:
                    for name, number in line.items():
                        curves.add_scalar(f"epoch/{name}", number, epoch)
            if ends or step % options.save_every == 0:
                save(
                    LAST,
                    {
                        "format": _FORMAT, "fingerprint": fingerprint, "step": step,
                        "module": module.state_dict(), "optimizer": optimizer.state_dict(),
                        "scheduler": scheduler.state_dict(), "random": _random(),
                        "history": history, "best": best, "sums": sums, "memory": memory,
                        "seconds": time.perf_counter() - start,
                    },
                )  # fmt: skip
            if progress:
                progress(stage, step, total)
    finally:
        if curves is not None:
            curves.close()
    ranks.barrier()  # the best is on disk for all
    if best is None:
        raise UsageError("a run needs at least one step")
    stored = load_state(folder / BEST)
    return Outcome(stored["module"], best, history, losses)


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
    write_atomically(path, "".join(line + "\n" for line in kept).encode())


def _curves(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise extra_missing("--tensorboard", "tensorboard", "tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"))

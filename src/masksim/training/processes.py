"""Where training by gradient is computed: devices, and processes that train together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import distributed, nn

from masksim.errors import UsageError
from masksim.training.recipe import software

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
T = TypeVar("T")

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
        for key, known in (("device", get_args(Device)), ("precision", get_args(Precision))):
            if getattr(self, key) not in known:
                raise UsageError(
                    f"{key} must be one of {', '.join(known)}, got {getattr(self, key)!r}"
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

    def merged(self, values: Mapping[Any, T]) -> dict[Any, T]:
        """Join mappings of all processes, the same in all of them."""
        out: dict[Any, T] = {}
        for part in self.gather(dict(values)):
            out.update(part)
        return out

    def described(self) -> dict[str, Any]:
        """Say what a result depends on besides the configuration, plain values for JSON."""
        return {"world": self.world, "bfloat16": self.bfloat16, "device": self.device.type}

    def provenance(self) -> dict[str, Any]:
        """Say how a result was computed, and by what software."""
        return {
            "processes": self.world,
            "device": self.device.type,
            "bfloat16": self.bfloat16,
            **software(),
            "torch": torch.__version__,
        }

    def divided(self, count: int, what: str) -> int:
        """Divide a batch among the processes.

        Raises
        ------
        UsageError
            It cannot be.
        """
        if count % self.world:
            raise UsageError(f"{what} cannot be divided among {self.world} processes")
        return count // self.world

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

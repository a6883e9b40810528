"""`masksim.training.loop`: the loop against one written out; kills, full disks, several
processes."""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from masksim.errors import (  # noqa: E402
    DataError,
    ImageError,
    MasksimError,
    ModelError,
    UsageError,
)
from masksim.training.loop import (  # noqa: E402
    ATTEMPTS,
    Outcome,
    Plan,
    Run,
    Trainee,
    claim,
    fit,
    load_state,
    loader,
    save_state,
    sifted,
    usable,
)
from masksim.training.processes import Ranks, RunOptions, processes  # noqa: E402

CPU = Ranks(0, 1, torch.device("cpu"), False)
PLAN = Plan(epochs=3, epoch_steps=5)


class Line(nn.Module):
    """A line through points, with a batch norm so that there are running statistics, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.line = nn.Linear(2, 1)

    def forward(self, x: Any, y: Any) -> Any:
        return (self.line(self.norm(x))[:, 0] - y).square().mean()


def points(step: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn((8, 2), generator=generator)
    return x, 3 * x[:, 0] - x[:, 1]


class Setup:
    """A run that can be started again and again in the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[int] = []
        self.validated = 0

    def run(
        self,
        *,
        plan: Plan = PLAN,
        stop: int | None = None,
        spoil: int | None = None,
        losses: Sequence[float] | None = None,
        fingerprint: str = "one",
        options: RunOptions | None = None,
        memory: dict[str, Any] | None = None,
    ) -> Outcome:
        torch.manual_seed(0)
        module = Line()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)

        def batches(steps: range) -> Iterator[Any]:
            for step in steps:
                if step == stop:
                    raise KeyboardInterrupt
                self.seen.append(step)
                x, y = points(step)
                yield x, y * math.nan if step == spoil else y

        def validate() -> dict[str, float]:
            assert not module.training
            self.validated += 1
            if losses is not None:
                return {"valid_loss": losses[self.validated - 1]}
            return {"valid_loss": float(module(*points(1000)))}

        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return fit(
            Trainee(module, module, optimizer, scheduler),
            Run(
                self.folder, fingerprint, options or RunOptions(save_every=2), CPU,
                memory={} if memory is None else memory,
            ),
            plan=plan, batches=batches, validate=validate,
        )  # fmt: skip


def test_the_loop_is_what_one_would_write(tmp_path: Path) -> None:
    outcome = Setup(tmp_path / "run").run()
    torch.manual_seed(0)
    module = Line()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    losses = []
    for step in range(15):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 ** (step // 5)
        optimizer.zero_grad()
        loss = module(*points(step))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert list(outcome.losses) == losses
    assert [line["train_loss"] for line in outcome.history] == pytest.approx(
        [sum(losses[i : i + 5]) / 5 for i in (0, 5, 10)]
    )
    last = load_state(tmp_path / "run" / "last.pt")
    assert all(torch.equal(last["module"][k], v) for k, v in module.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 16))
    assert [line["loss"] for line in lines if "loss" in line] == losses
    assert [line["valid_loss"] for line in lines if "valid_loss" in line] == [
        line["valid_loss"] for line in outcome.history
    ]


def test_the_lowest_validation_loss_is_kept(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    outcome = setup.run(losses=[0.5, 0.2, 0.4])
    assert outcome.best["epoch"] == 2
    second = Setup(tmp_path / "b").run(plan=Plan(2, 5), losses=[0.5, 0.2])
    assert all(torch.equal(outcome.weights[k], v) for k, v in second.weights.items())
    last = load_state(tmp_path / "last.pt")["module"]
    assert not torch.equal(last["line.weight"], outcome.weights["line.weight"])


@pytest.mark.parametrize("stop", [1, 4, 5, 8, 14])
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path, stop: int) -> None:
    whole = Setup(tmp_path / "whole").run(memory={"a": "b"})
    broken = Setup(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        broken.run(stop=stop, memory={"a": "b"})
    first = len(broken.seen)
    memory: dict[str, Any] = {}
    outcome = broken.run(memory=memory)
    saved = 0 if stop == 1 else max(s for s in (0, 2, 4, 5, 6, 8, 10, 12, 14) if s <= stop)
    assert broken.seen[first:] == list(range(saved, 15))
    assert memory == ({"a": "b"} if saved else {})
    for name in ("last.pt", "best.pt"):
        one, two = (load_state(tmp_path / run / name) for run in ("whole", "broken"))
        assert all(torch.equal(one["module"][k], v) for k, v in two["module"].items())
    states = [load_state(tmp_path / run / "last.pt") for run in ("whole", "broken")]
    for k, v in states[0]["optimizer"]["state"].items():
        assert all(torch.equal(v[p], states[1]["optimizer"]["state"][k][p]) for p in v)
    assert outcome.history == whole.history
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / run / "log.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "broken")
    ]
    assert logs[0] == logs[1]
    # A run that is done is only read.
    seen = len(broken.seen)
    again = broken.run()
    assert len(broken.seen) == seen
    assert all(torch.equal(again.weights[k], v) for k, v in whole.weights.items())


def test_limits_end_a_run_with_a_validation(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    outcome = setup.run(plan=Plan(3, 5, limit_steps=7))
    assert setup.seen == list(range(7))
    assert [line["epoch"] for line in outcome.history] == [1, 2]
    assert Plan(3, 5).steps == 15


def test_what_is_not_finite_stops_and_spoils_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    with pytest.raises(DataError, match="step 8") as caught:
        setup.run(spoil=7)
    assert caught.value.code == "diverged"
    kept = load_state(tmp_path / "last.pt")
    assert kept["step"] == 6
    assert all(bool(v.isfinite().all()) for v in kept["module"].values())
    with pytest.raises(DataError, match="validation loss"):
        Setup(tmp_path / "b").run(losses=[math.nan])
    # Gradients can spoil weights under a finite loss: they are not saved either.
    with pytest.raises(DataError, match="not finite"):
        _spoiled_weights(tmp_path / "c")
    assert not (tmp_path / "c" / "last.pt").exists()


def _spoiled_weights(folder: Path) -> None:
    module = Line()
    optimizer = torch.optim.SGD(module.parameters(), lr=math.inf)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.0)
    fit(
        Trainee(module, module, optimizer, scheduler),
        Run(folder, "x", RunOptions(), CPU),
        plan=Plan(1, 1),
        batches=lambda steps: iter([points(0)]),
        validate=lambda: {"valid_loss": 1.0},
    )


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        setup.run(stop=7)
    before = (tmp_path / "last.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # of every file: a real failed write
    try:
        with pytest.raises(UsageError, match="cannot write") as caught:
            setup.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "same command again" in caught.value.message
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))
    whole = Setup(tmp_path / "whole").run()
    outcome = setup.run()
    assert all(torch.equal(outcome.weights[k], v) for k, v in whole.weights.items())


def test_foreign_and_damaged_states_are_refused(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.run(plan=Plan(1, 2))
    with pytest.raises(UsageError, match="another run"):
        setup.run(fingerprint="two")
    data = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged"):
        setup.run()
    state = {"format": 1, "fingerprint": "one", "step": 1}
    save_state(tmp_path / "last.pt", state)
    with pytest.raises(ModelError, match="damaged"):
        setup.run()
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"x": os.getcwd}))
    with pytest.raises(ModelError):
        load_state(tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="no"):
        load_state(tmp_path / "missing.pt")
    save_state(tmp_path / "dict.pt", {"a": torch.ones(2), "b": [1, {"c": "d"}]})
    assert load_state(tmp_path / "dict.pt")["b"] == [1, {"c": "d"}]


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    claim(tmp_path / "run", "{}\n", CPU)
    claim(tmp_path / "run", "{}\n", CPU)
    with pytest.raises(UsageError, match="another run"):
        claim(tmp_path / "run", '{"seed": 1}\n', CPU)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        claim(tmp_path / "file" / "below", "{}\n", CPU)


# --- batches -----------------------------------------------------------------------------------


class Squares(Dataset[Any]):
    def __getitem__(self, item: tuple[int, int]) -> int:
        return item[0] ** 2 + item[1]


def draw(step: int) -> list[tuple[int, int]]:
    return [(step, k) for k in range(3)]


def collate(items: list[int]) -> Any:
    return torch.tensor(items)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_any_number_of_workers(workers: int) -> None:
    state = torch.get_rng_state()
    found = loader(
        Squares(), draw, range(4, 9), collate=collate, workers=workers, device=CPU.device
    )
    assert [batch.tolist() for batch in found] == [
        [step**2 + k for k in range(3)] for step in range(4, 9)
    ]
    assert torch.equal(torch.get_rng_state(), state)  # loading draws nothing of the run's


def test_an_image_that_cannot_be_used_is_replaced() -> None:
    failed: list[tuple[int, str]] = []

    def make(index: int) -> str:
        if index < 3:
            raise ImageError("no", code="truncated")
        return f"image {index}"

    def note(index: int, code: str) -> None:
        failed.append((index, code))

    assert usable(1, make, lambda attempt: attempt + 2, note) == "image 3"
    assert failed == [(1, "truncated"), (2, "truncated")]
    assert usable(0, make, None, note) is None
    assert failed[2:] == [(0, "truncated")]
    failed.clear()
    assert usable(0, make, lambda attempt: 0, note) is None
    assert len(failed) == ATTEMPTS


def test_what_could_be_made_keeps_its_place() -> None:
    items: list[tuple[str | None, dict[str, str]]] = [
        ("a", {}), (None, {"p": "too_small"}), ("c", {"q": "truncated"})
    ]  # fmt: skip
    failures = {"p": "too_small", "q": "truncated"}
    assert sifted(items) == (["a", "c"], [0, 2], failures)


# --- devices and processes -----------------------------------------------------------------------


def test_devices() -> None:
    with processes(RunOptions(device="cpu")) as ranks:
        assert (ranks.rank, ranks.world, ranks.device.type) == (0, 1, "cpu")
        assert ranks.main
        assert not ranks.bfloat16
        assert ranks.mean(2.5) == 2.5
        assert ranks.gather("x") == ["x"]
        assert ranks.merged({"a": 1}) == {"a": 1}
    with processes(RunOptions(device="cpu", precision="bfloat16")) as ranks, ranks.autocast():
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"), processes(RunOptions("cuda")):
            pass
    for wrong in ({"device": "tpu"}, {"precision": "int8"}, {"workers": -1}, {"save_every": 0}):
        with pytest.raises(UsageError):
            RunOptions(**wrong)  # type: ignore[arg-type]


WORKER = """
import json, sys
from pathlib import Path
import torch
from masksim.training.loop import Plan, Run, Trainee, fit
from masksim.training.processes import RunOptions, processes
from torch import nn
torch.manual_seed(0)
module = nn.Linear(2, 1)
class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = module
    def forward(self, x, y):
        return (self.inner(x)[:, 0] - y).square().mean()
with processes(RunOptions(device="cpu")) as ranks:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    def batches(steps):
        for step in steps:
            x = torch.randn((8, 2), generator=torch.Generator().manual_seed(step))
            y = 3 * x[:, 0]
            yield x[ranks.rank :: ranks.world], y[ranks.rank :: ranks.world]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    out = fit(
        Trainee(Loss(), module, optimizer, scheduler),
        Run(Path(sys.argv[1]) / "run", "x", RunOptions(), ranks),
        plan=Plan(2, 5), batches=batches, validate=lambda: {"valid_loss": float(module.bias ** 2)},
    )
    both = ranks.gather(ranks.rank)
    with open(f"{sys.argv[1]}/{ranks.rank}of{ranks.world}.json", "w") as file:
        json.dump([list(out.losses), module.weight.tolist(), both], file)
"""


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts them; this process is one of the two."""
    (tmp_path / "work.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(sys, "argv", ["work.py", str(tmp_path)])
    with monkeypatch.context() as patch:
        for name, value in {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            patch.setenv(name, str(value))
        with subprocess.Popen(
            [sys.executable, str(tmp_path / "work.py"), str(tmp_path)],
            env={**os.environ, "RANK": "1"},
        ) as other:
            patch.setenv("RANK", "0")
            try:
                exec(compile(WORKER, "work.py", "exec"), {"__name__": "__main__"})
                assert other.wait(120) == 0
            finally:
                other.kill()
    (tmp_path / "run").rename(tmp_path / "two")
    exec(compile(WORKER, "work.py", "exec"), {"__name__": "__main__"})  # the same, alone
    first, second, single = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0of2", "1of2", "0of1")
    )
    assert first == second
    assert first[2] == [0, 1]
    # Without batch norms the mean of the halves' gradients is the gradient of the whole.
    assert first[0] == pytest.approx(single[0], rel=1e-5)
    assert first[1][0] == pytest.approx(single[1][0], rel=1e-5)
    assert load_state(tmp_path / "two" / "last.pt")["step"] == 10


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MasksimError, match=r'pip install "\.\[tensorboard\]"'):
        Setup(tmp_path / "a").run(options=RunOptions(tensorboard=True))


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    Setup(tmp_path).run(options=RunOptions(tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("loss/step")) == 15
    assert len(events.Scalars("epoch/valid_loss")) == 3

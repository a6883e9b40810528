"""`masksim.original.network`: the trainable form against an implementation of its own, and its
files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from safetensors.numpy import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import make_original_fixture as fixture  # type: ignore[import-not-found]  # noqa: E402
from masksim.errors import ModelError, UsageError  # noqa: E402
from masksim.load import load_detector  # noqa: E402
from masksim.model import OriginalHead, tensor_shapes  # noqa: E402
from masksim.original.config import OriginalConfig  # noqa: E402
from masksim.original.importer import import_original  # noqa: E402
from masksim.original.network import OriginalNetwork  # noqa: E402
from masksim.original.residual_file import read_residual  # noqa: E402
from masksim.original.train import LossOfBatch, optimizer_of  # noqa: E402
from masksim.preprocess import to_colour  # noqa: E402
from masksim.residual import (  # noqa: E402
    OnnxResidual,
    ResidualConfig,
    residual_onnx,
    weight_shapes,
)
from masksim.spectrum import log_spectrum  # noqa: E402
from masksim.training.processes import Ranks  # noqa: E402

WINDOW = 32
RESIDUALS = {
    "DnCNN": ResidualConfig.dncnn(4, 6),
    "light": ResidualConfig.light(3, 4),
    "linear3x3": ResidualConfig("linear3x3"),
    "cross_diff": ResidualConfig("cross_diff"),
    "none": ResidualConfig("none"),
}


def some_planes(count: int, seed: int, window: int = WINDOW) -> Any:
    values = np.random.default_rng(seed).integers(0, 256, (count, window, window, 3), np.uint8)
    return torch.from_numpy(to_colour(values, "RGB"))


# --- from the paper alone: no line of the package -----------------------------------------------


class Paper:
    """The original's training in double precision, written from the description of the method.

    Parameters are plain tensors; batch norms, the loss and Adam are written out.
    """

    def __init__(self, start: dict[str, Any], *, depth: int, rates: tuple[float, float]) -> None:
        self.values = {name: tensor.detach().clone().double() for name, tensor in start.items()}
        self.depth = depth
        self.rates = rates
        fixed = ("mask_conv.weight", "running_mean", "running_var", "num_batches_tracked")
        self.free = [name for name in self.values if not name.endswith(fixed)]
        self.first = {name: torch.zeros_like(self.values[name]) for name in self.free}
        self.second = {name: torch.zeros_like(self.values[name]) for name in self.free}
        self.count = 0

    def norm(self, x: Any, name: str, axes: tuple[int, ...]) -> Any:
        """Normalise with the batch's statistics, and let the running ones follow by a tenth."""
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean = x.mean(dim=axes)
        variance = ((x - mean.reshape(shape)) ** 2).mean(dim=axes)
        n = x.numel() // x.shape[1]
        for part, new in (("mean", mean), ("var", variance * n / (n - 1))):
            running = self.values[f"{name}.running_{part}"]
            self.values[f"{name}.running_{part}"] = 0.9 * running + 0.1 * new.detach()
        gain, shift = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        x = (x - mean.reshape(shape)) / torch.sqrt(variance.reshape(shape) + 1e-5)
        return x * gain.reshape(shape) + shift.reshape(shape)

    def residual(self, x: Any) -> Any:
        position = 0
        for layer in range(self.depth):
            weight = self.values[f"preproc.model.{position}.weight"]
            inner = 0 < layer < self.depth - 1
            bias = None if inner else self.values[f"preproc.model.{position}.bias"]
            x = functional.conv2d(x, weight, bias)
            position += 1
            if inner:
                x = self.norm(x, f"preproc.model.{position}", (0, 2, 3))
                position += 1
            if layer < self.depth - 1:
                x = torch.relu(x)
                position += 1
        return x

    def similarity(self, planes: Any) -> Any:
        spectrum = torch.fft.fftshift(
            torch.fft.fft2(self.residual(planes), norm="ortho"), dim=(-2, -1)
        )
        spectrum = torch.log(torch.abs(spectrum) + 1e-10)
        mixing = self.values["in_conv_fft.0.weight"][:, :, 0, 0]
        spectrum = torch.einsum("dc,bchw->bdhw", mixing, spectrum)
        box = torch.full((3, 1, 3, 3), 1 / 9, dtype=torch.float64)
        mask = torch.sigmoid(
            functional.conv2d(self.values["mask_pre_activ_list.0"][None], box, padding=1, groups=3)
        )
        vectors = self.norm((spectrum * mask).flatten(2), "norm_vector", (0, 2))
        reference = self.values["ref_pattern_list.0"].flatten(1)
        reference = reference - reference.mean(dim=1, keepdim=True)
        product = (vectors * reference).sum(dim=-1)
        norms = torch.sqrt((vectors**2).sum(dim=-1)) * torch.sqrt((reference**2).sum(dim=-1))
        return (product / norms).mean(dim=1)

    def step(self, planes: Any, synthetic: Any) -> float:
        for name in self.free:
            self.values[name].requires_grad_(True)
        s = self.similarity(planes)
        p = torch.sigmoid(
            torch.exp(self.values["clf_a"]) * torch.where(synthetic, s, s.abs())
            + self.values["clf_b"]
        )
        loss = -torch.where(synthetic, torch.log(p), torch.log(1 - p)).mean()
        gradients = torch.autograd.grad(loss, [self.values[name] for name in self.free])
        self.count += 1
        with torch.no_grad():
            for name, g in zip(self.free, gradients, strict=True):
                self.first[name] = 0.9 * self.first[name] + 0.1 * g
                self.second[name] = 0.999 * self.second[name] + 0.001 * g * g
                mean = self.first[name] / (1 - 0.9**self.count)
                power = self.second[name] / (1 - 0.999**self.count)
                rate = self.rates[1] if name.startswith("preproc.") else self.rates[0]
                self.values[name] = self.values[name].detach() - rate * mean / (power.sqrt() + 1e-8)
        return float(loss.detach())


def test_twenty_steps_agree_with_the_paper() -> None:
    config = OriginalConfig(
        window=WINDOW, preprocess="DnCNN", depth=4, features=6, lr=1e-3, residual_lr=1e-4,
        decay=0.9,
    )  # fmt: skip
    network = OriginalNetwork(config.residual, WINDOW, seed=5).double()
    paper = Paper(network.state_dict(), depth=4, rates=(1e-3, 1e-4))
    optimizer, scheduler = optimizer_of(network, config)
    loss_of = LossOfBatch(network)
    synthetic = torch.tensor([True, False, True, True, False, False])
    for step in range(20):
        planes = some_planes(6, step).double()
        planes[synthetic, :, ::4] *= 0.7  # something to learn
        if step == 10:  # an epoch has ended
            scheduler.step()
            paper.rates = (1e-3 * 0.9, 1e-4 * 0.9)
        optimizer.zero_grad()
        loss = loss_of(planes, synthetic)
        loss.backward()
        optimizer.step()
        assert float(loss.detach()) == pytest.approx(paper.step(planes, synthetic), rel=1e-9)
    assert float(loss.detach()) < 0.69  # it learns: the agreement is not of standing still
    # Adam divides by the gradient's size, so that where it is near 0 a rounding decides a step.
    for name, values in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(values, paper.values[name], rtol=1e-6, atol=1e-7, msg=name)


# --- the same numbers as detection ---------------------------------------------------------------


def take_over(network: OriginalNetwork, tensors: Any, weights: Any) -> None:
    """Load arrays of a detector file, which lack what is fixed and what only counts steps."""
    named = {**tensors, **{f"preproc.{k}": v for k, v in weights.items()}}
    state = {k: torch.from_numpy(np.array(v)) for k, v in named.items()}
    _, unknown = network.load_state_dict(state, strict=False)
    assert not unknown


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("kind", RESIDUALS)
def test_what_is_exported_scores_the_same(kind: str, masks: int) -> None:
    residual = RESIDUALS[kind]
    network = OriginalNetwork(residual, WINDOW, masks=masks, seed=1)
    for k in range(3):  # running statistics of their own
        network(some_planes(4, k))
    network.eval()
    planes = some_planes(5, 9)
    with torch.no_grad():
        expected = network(planes).numpy()
    weights = network.residual_weights()
    assert {k: v.shape for k, v in weights.items()} == weight_shapes(residual)
    found = OnnxResidual(residual_onnx(residual, weights), threads=1)(planes.numpy())
    tensors = network.tensors()
    side = WINDOW - 2 * residual.margin
    assert {k: v.shape for k, v in tensors.items()} == tensor_shapes(masks, side, side)
    score = OriginalHead.from_tensors(tensors).similarity(log_spectrum(found)).score
    np.testing.assert_allclose(score, expected, atol=2e-5)
    other = OriginalNetwork(residual, WINDOW, masks=masks, seed=2)
    take_over(other, tensors, weights)
    other.eval()
    with torch.no_grad():
        assert torch.equal(other(planes), torch.from_numpy(expected))


def test_a_checkpoint_as_the_original_writes_it_is_imported_with_the_same_scores(
    tmp_path: Path,
) -> None:
    network = OriginalNetwork(RESIDUALS["DnCNN"], WINDOW, seed=3)
    for k in range(3):
        network(some_planes(4, k))
    network.eval()
    hyper = {"img_size": WINDOW, "channels": 3, "preprocess": "DnCNN", "num_masks": 1}
    file = tmp_path / "sd1-epoch=07-valid_auroc=1.00-valid_loss=0.123-low_loss.ckpt"
    torch.save({"state_dict": network.state_dict(), "hyper_parameters": hyper}, file)
    made = import_original(file, tmp_path / "detector", colour="RGB")
    assert made.generators == ("sd1",)
    pixels = np.random.default_rng(4).integers(0, 256, (WINDOW, WINDOW, 3), np.uint8)
    with torch.no_grad():
        expected = float(network(torch.from_numpy(to_colour(pixels[None], "RGB"))))
    found = load_detector(tmp_path / "detector", threads=1).similarities(pixels)
    assert found[0] == pytest.approx(expected, abs=2e-5)


def test_the_originals_numbers_come_out() -> None:
    """Weights of the independent fixture, taken over; its similarity is the committed one."""
    expected = json.loads(fixture.EXPECTED.read_text())["RGB"]
    state = fixture.state("linear3x3", fixture.WINDOW, fixture.MASKS)
    of_residual = {k: k.removeprefix("preproc.") for k in state if k.startswith("preproc.")}
    weights = {short: state[k] for k, short in of_residual.items()}
    network = OriginalNetwork(ResidualConfig("linear3x3"), fixture.WINDOW, masks=fixture.MASKS)
    take_over(network, {k: v for k, v in state.items() if k not in of_residual}, weights)
    network.eval()
    pixels = fixture.image(*fixture.IMAGE_SIZE)
    height, width = fixture.IMAGE_SIZE
    y, x = ((side // 2 - fixture.WINDOW // 2) // 8 * 8 for side in (height, width))
    window = pixels[y : y + fixture.WINDOW, x : x + fixture.WINDOW]
    with torch.no_grad():
        found = network(torch.from_numpy(to_colour(window[None], "RGB")))
    assert float(found) == pytest.approx(expected["similarity"], rel=1e-4)


# --- training mode -------------------------------------------------------------------------------


def test_a_frozen_residual_stays_as_it_is() -> None:
    network = OriginalNetwork(RESIDUALS["DnCNN"], WINDOW, freeze=True, seed=1)
    before = {k: v.clone() for k, v in network.preproc.state_dict().items()}
    config = OriginalConfig(window=WINDOW, preprocess="DnCNN", depth=4, features=6, freeze=True)
    optimizer, _ = optimizer_of(network, config)
    head = network.clf_b.detach().clone()
    for k in range(3):
        network.train()
        LossOfBatch(network)(some_planes(4, k), torch.tensor([True, False, True, True])).backward()
        optimizer.step()
    assert not torch.equal(network.clf_b, head)
    # Batch norms included: their running statistics are what the original lets move.
    assert any(name.endswith("running_mean") for name in before)
    for name, values in network.preproc.state_dict().items():
        assert torch.equal(values, before[name]), name
    loose = OriginalNetwork(RESIDUALS["DnCNN"], WINDOW, seed=1)
    loose(some_planes(4, 0))
    assert not torch.equal(
        loose.preproc.state_dict()["model.3.running_mean"], before["model.3.running_mean"]
    )


def test_reals_count_by_magnitude() -> None:
    network = OriginalNetwork(RESIDUALS["none"], WINDOW)
    with torch.no_grad():
        network.clf_a.fill_(1.0)
        network.clf_b.fill_(-0.5)
    s = torch.tensor([0.3, -0.3, 0.3, -0.3])
    losses = network.losses(s, torch.tensor([True, True, False, False])).detach().numpy()
    z = np.exp(1.0) * np.array([0.3, -0.3, 0.3, 0.3]) - 0.5
    expected = np.where([True, True, False, False], np.log1p(np.exp(-z)), np.log1p(np.exp(z)))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_initial_values_depend_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = OriginalNetwork(RESIDUALS["DnCNN"], WINDOW, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = OriginalNetwork(RESIDUALS["DnCNN"], WINDOW, seed=7).state_dict()
    other = OriginalNetwork(RESIDUALS["DnCNN"], WINDOW, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["ref_pattern_list.0"], other["ref_pattern_list.0"])


def test_half_precision_is_for_the_residual_alone() -> None:
    network = OriginalNetwork(RESIDUALS["DnCNN"], WINDOW, seed=1).eval()
    planes = some_planes(4, 1)
    with torch.no_grad():
        exact = network(planes)
        with Ranks(0, 1, torch.device("cpu"), True).autocast():
            rough = network(planes)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0)


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="margin"):
        OriginalNetwork(RESIDUALS["DnCNN"], 8)
    with pytest.raises(UsageError, match="masks"):
        OriginalNetwork(RESIDUALS["none"], WINDOW, masks=0)
    with pytest.raises(ModelError, match="unknown"):
        OriginalNetwork(RESIDUALS["none"], WINDOW, residual_weights={"x": np.zeros(1)})


# --- files of residual networks ------------------------------------------------------------------


def dncnn_state(config: ResidualConfig) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(2)
    return {
        name: rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in weight_shapes(config).items()
    }


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "preproc.model."])
@pytest.mark.parametrize("wrap", [None, "network", "state_dict"])
def test_weights_are_read_under_any_prefix(tmp_path: Path, prefix: str, wrap: str | None) -> None:
    config = ResidualConfig.dncnn(5, 7)
    weights = dncnn_state(config)
    state: Any = {
        prefix + name.removeprefix("model."): torch.from_numpy(values)
        for name, values in weights.items()
    }
    state[f"{prefix}3.num_batches_tracked"] = torch.tensor(3)
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "model_best.th")
    found, read, facts = read_residual(tmp_path / "model_best.th")
    assert found == config
    assert set(read) == set(weights)
    assert all(np.array_equal(read[name], weights[name]) for name in weights)
    assert facts["file"] == "model_best.th"
    assert len(facts["sha256"]) == 64


def test_old_files_and_safetensors_are_read(tmp_path: Path) -> None:
    config = ResidualConfig.dncnn(3, 4, batch_norm=False)
    weights = dncnn_state(config)
    save_file(weights, tmp_path / "w.safetensors")
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    torch.save(state, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "old.th"):
        found, read, _ = read_residual(tmp_path / name)
        assert found == config
        assert all(np.array_equal(read[name], weights[name]) for name in weights)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


def test_unsafe_and_foreign_files_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"network": Evil()}, tmp_path / "evil.th")
    (tmp_path / "noise.th").write_bytes(b"not a file of torch" * 10)
    (tmp_path / "noise.safetensors").write_bytes(b"nothing" * 10)
    torch.save({"0.weight": torch.zeros(3, 3)}, tmp_path / "linear.th")
    weights = dncnn_state(ResidualConfig.dncnn(3, 4))
    state = {
        name: torch.from_numpy(values * np.float32(np.nan)) for name, values in weights.items()
    }
    torch.save(state, tmp_path / "nan.th")
    torch.save({"epoch": 3}, tmp_path / "plain.th")
    torch.save([1, 2], tmp_path / "list.th")
    (tmp_path / "folder").mkdir()
    for name, code in [
        ("evil.th", "model_unsafe"), ("noise.th", "model_unsafe"), ("list.th", "model_invalid"),
        ("noise.safetensors", "model_invalid"), ("linear.th", "model_invalid"),
        ("plain.th", "model_invalid"), ("nan.th", "model_invalid"),
        ("missing.th", "model_not_found"), ("folder", "model_not_found"),
    ]:  # fmt: skip
        with pytest.raises(ModelError) as caught:
            read_residual(tmp_path / name)
        assert caught.value.code == code, name
    assert "must not run" not in capfd.readouterr().out


def test_the_state_has_the_originals_names() -> None:
    network = OriginalNetwork(ResidualConfig.dncnn(), 40, masks=2)
    names = {n for n in network.state_dict() if not n.endswith("num_batches_tracked")}
    expected = set(tensor_shapes(2, 6, 6)) | {
        f"preproc.{name}" for name in weight_shapes(ResidualConfig.dncnn())
    }
    assert names == expected
    assert isinstance(network.norm_vector, nn.BatchNorm1d)

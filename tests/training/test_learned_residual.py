"""`masksim.training.learned_residual`: gradients, a planted pattern, and a run that was cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from masksim.bank import bank_residual  # noqa: E402
from masksim.errors import DataError, UsageError  # noqa: E402
from masksim.preprocess import luma_chroma  # noqa: E402
from masksim.spectrum import pool_cells, welch_log_power  # noqa: E402
from masksim.training.learned_config import LearnedConfig  # noqa: E402
from masksim.training.learned_residual import (  # noqa: E402
    HeadLoss,
    Heads,
    Learned,
    Views,
    learned_features,
    learned_scores,
    mean_log_power,
    train_learned,
)
from masksim.training.processes import RunOptions  # noqa: E402

CPU = RunOptions(device="cpu", save_every=3)
SMALL = LearnedConfig(
    depth=2, features=4, outputs=2, segment=32, hop=12, cell=2, crop=64, batch=4, steps=80,
    epoch_steps=20,
    lr=5e-3, head_lr=3e-3, folds=3,
)  # fmt: skip
SIDE = 72


def views(seed: int = 0, each: int = 24, strength: float = 1.5) -> Views:
    """Noise on slopes; "a" with a checkerboard, "b" with stripes, each in six repositories."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    planted = {"real": 0 * x, "a": (-1) ** (x + y), "b": np.cos(np.pi / 2 * x)}
    pixels, generators, sources = [], [], []
    for name, pattern in planted.items():
        for i in range(each):
            slope = rng.uniform(-0.5, 0.5, 2)
            grey = 128 + slope[0] * x + slope[1] * y + rng.normal(0, 3, x.shape)
            grey = np.clip(np.rint(grey + strength * pattern), 0, 255).astype(np.uint8)
            pixels.append(np.repeat(grey[..., None], 3, axis=-1))
            generators.append(name)
            sources.append(f"{name}{i % 6}/r")
    windows = np.stack(pixels)[:, None]
    return Views(windows, np.array(generators), np.array(sources), np.ones(len(windows)))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return train_learned(views(), SMALL, tmp_path_factory.mktemp("run"), options=CPU)


def test_the_gradient_reaches_every_kernel() -> None:
    torch.manual_seed(0)
    heads = Heads(SMALL, 2)
    torch.nn.init.normal_(heads.heads.weight, std=0.1)
    some = views(each=4)
    classes = torch.tensor([["real", "a", "b"].index(name) for name in some.generators])
    HeadLoss(heads)(torch.from_numpy(np.asarray(some.windows)[:, 0]), classes).backward()
    for name, values in heads.residual.named_parameters():
        assert values.grad is not None, name
        assert float(values.grad.abs().max()) > 0, name


def test_brightness_does_not_go_in() -> None:
    torch.manual_seed(0)
    heads = Heads(SMALL, 2).eval()
    pixels = torch.from_numpy(np.asarray(views(each=2).windows)[:, 0])
    darker, brighter = (heads.residual((pixels[..., :1] + shift).permute(0, 3, 1, 2).float())
                        for shift in (-20.0, 20.0))  # fmt: skip
    torch.testing.assert_close(darker, brighter, rtol=1e-4, atol=1e-3)


def test_the_fixed_channels_are_those_of_the_bank() -> None:
    heads = Heads(SMALL, 2).eval()
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    with torch.no_grad():
        found = heads.spectra(torch.from_numpy(pixels), 1)[:, SMALL.outputs :]
    m = SMALL.margin
    luma, _ = luma_chroma(pixels)
    bank = bank_residual(luma)[:, :2, m : SIDE - m, m : SIDE - m]
    wanted = pool_cells(welch_log_power(bank, SMALL.segment, SMALL.hop, SMALL.floor), 1)
    wanted = wanted - wanted.mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(found.numpy(), wanted, atol=5e-3)


def test_the_quick_spectrum_is_that_of_detection_and_so_is_its_gradient() -> None:
    torch.manual_seed(2)
    planes = torch.randn(2, 3, 44, 40, dtype=torch.float64, requires_grad=True)
    quick = mean_log_power(planes, 16, 12, 0.05)
    torch.testing.assert_close(quick, welch_log_power(planes, 16, 12, 0.05))
    weight = torch.randn_like(quick)
    (found,) = torch.autograd.grad((quick * weight).sum(), planes)
    (expected,) = torch.autograd.grad(
        (welch_log_power(planes, 16, 12, 0.05) * weight).sum(), planes
    )
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(
        lambda x: mean_log_power(x, 8, 6, 0.05), planes[:1, :1, :14, :14]
    )


def test_a_planted_pattern_is_learned(learned: Learned) -> None:
    fresh = views(seed=9, each=12)
    assert learned.generators == ("a", "b")
    scores = np.array([learned_scores(learned, windows) for windows in np.asarray(fresh.windows)])
    assert scores.shape == (36, 3)
    real = fresh.generators == "real"
    for head, name in enumerate(learned.generators):
        own = fresh.generators == name
        assert (scores[own, head][:, None] > scores[real, head]).mean() > 0.95
    assert (scores[~real, -1][:, None] > scores[real, -1]).mean() > 0.95
    assert learned.last["valid_loss"] < 0.75 * 2 * np.log(2)  # of heads that know nothing


def test_features_are_a_mean_over_crops_without_level(learned: Learned) -> None:
    some = np.asarray(views(seed=3, each=1).windows)[:, 0]
    found = learned_features(learned, some)
    assert found.shape == (SMALL.channels, 32, 16)
    assert found.dtype == np.float32
    each = [learned_features(learned, window[None]) for window in some]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), 0, atol=1e-5)


def test_a_run_that_was_cut_off_gives_the_same_bits(tmp_path: Path) -> None:
    config = replace(SMALL, steps=12, epoch_steps=4)
    whole = train_learned(views(), config, tmp_path / "whole", options=CPU)

    class CutError(Exception):
        pass

    def cut(_: str, done: int, __: int) -> None:
        if done == 8:
            raise CutError

    with pytest.raises(CutError):
        train_learned(views(), config, tmp_path / "cut", options=CPU, progress=cut)
    seen: list[int] = []
    again = train_learned(
        views(), config, tmp_path / "cut", options=CPU, progress=lambda _, k, __: seen.append(k)
    )
    assert 0 < seen[0] <= 8
    assert whole.last == again.last
    assert whole.last["epoch"] == 3
    wanted, found = whole.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_it_refuses_what_cannot_be_learned_from(tmp_path: Path) -> None:
    some = views(each=2)
    alone = replace(some, sources=np.array(["one/r"] * 6))
    with pytest.raises(DataError, match="too few repositories"):
        train_learned(alone, SMALL, tmp_path / "alone", options=CPU)
    with pytest.raises(UsageError, match="hold no segment"):
        replace(SMALL, segment=64)
    for wrong in ({"depth": 1}, {"lr": 0.0}, {"segment": 30}, {"batch": 0}):
        with pytest.raises(UsageError):
            replace(SMALL, **wrong)

"""`masksim.bank`: NumPy and ONNX Runtime against plain arithmetic, and against each other."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from masksim.bank import BANK, BANK_GRAPH_SHA256, BankKind, bank_residual
from masksim.errors import ModelError, UsageError
from masksim.residual import (
    OnnxResidual,
    ResidualConfig,
    residual_onnx,
    residual_runner,
    weight_shapes,
)


def graph_of_the_bank() -> OnnxResidual:
    return OnnxResidual(residual_onnx(ResidualConfig("bank"), {}), threads=1)


def test_bank_against_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels = np.random.default_rng(12).random((1, 2, 40, 57), dtype=np.float32)
    levels = pixels[0].astype(np.float64) * 255
    found = graph_of_the_bank()(pixels)[0].reshape(4, 2, 40, 57)
    for p in range(2):
        x = levels[p]
        cross = np.zeros_like(x)
        cross[:-1, :-1] = x[1:, 1:] + x[:-1, :-1] - x[1:, :-1] - x[:-1, 1:]
        power = ndimage.uniform_filter(cross**2, 9, mode="constant")
        expected = [
            cross,
            cross.clip(-3, 3),
            cross / np.sqrt(power + 4),
            x - ndimage.median_filter(x, 3, mode="mirror"),
        ]
        for k in range(4):
            np.testing.assert_allclose(found[k, p], expected[k], atol=2e-3)


@pytest.mark.parametrize(
    "shape", [(1, 1, 2, 2), (2, 3, 7, 9), (1, 2, 100, 33), (1, 1, 3, 700), (1, 1, 130, 512)]
)
def test_bank_without_its_graph(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(3).random(shape, dtype=np.float32)
    pixels[..., : shape[-1] // 3] = 0.5  # flat: nothing but zeros may come of it
    found = bank_residual(pixels)
    expected = graph_of_the_bank()(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    if shape[-1] > 20:
        assert not found[..., 6 : shape[-1] // 3 - 6].any()


@pytest.mark.parametrize(
    "kinds", [("median",), ("normalised",), ("cross difference", "median"), ("clipped",)]
)
def test_some_kinds_of_the_bank(kinds: tuple[BankKind, ...]) -> None:
    pixels = np.random.default_rng(5).random((2, 2, 70, 40), dtype=np.float32)
    whole = bank_residual(pixels).reshape(2, len(BANK), 2, 70, 40)
    found = bank_residual(pixels, kinds).reshape(2, len(kinds), 2, 70, 40)
    for k, kind in enumerate(kinds):
        np.testing.assert_array_equal(found[:, k], whole[:, BANK.index(kind)])


@pytest.mark.parametrize("kinds", [(), ("sharp",), ("median", "median")])
def test_kinds_that_the_bank_has_not(kinds: Any) -> None:
    with pytest.raises(UsageError, match="each once"):
        bank_residual(np.zeros((1, 1, 8, 8), np.float32), kinds)


def test_bank_without_its_graph_against_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels = np.random.default_rng(4).integers(0, 256, (60, 71)).astype(np.float64)
    found = bank_residual((pixels / 255).astype(np.float32)[None, None])[0]
    cross = np.zeros_like(pixels)
    cross[:-1, :-1] = pixels[:-1, :-1] + pixels[1:, 1:] - pixels[1:, :-1] - pixels[:-1, 1:]
    power = ndimage.uniform_filter(cross**2, 9, mode="constant")
    expected = [
        cross,
        cross.clip(-3, 3),
        cross / np.sqrt(power + 4),
        pixels - ndimage.median_filter(pixels, 3, mode="mirror"),
    ]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_bank_is_computed_without_its_graph() -> None:
    graph = residual_onnx(ResidualConfig("bank"), {})
    assert hashlib.sha256(graph).hexdigest() == BANK_GRAPH_SHA256
    assert residual_runner("bank", graph) is bank_residual
    assert residual_runner("bank", graph, providers=["CPUExecutionProvider"]) is bank_residual
    other = residual_onnx(ResidualConfig("none"), {})
    assert isinstance(residual_runner("none", other, threads=1), OnnxResidual)
    with pytest.raises(UsageError, match="threads"):
        residual_runner("bank", graph, threads=0)
    with pytest.raises(UsageError, match="NoSuchProvider"):
        residual_runner("bank", graph, providers=["NoSuchProvider"])


def test_a_graph_that_is_not_the_banks_is_refused() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(residual_onnx(ResidualConfig("bank"), {}))
    model.producer_version = "another"  # other bytes, the same numbers
    assert residual_runner("bank", model.SerializeToString()) is bank_residual
    (floor,) = [entry for entry in model.graph.initializer if entry.name == "floor"]
    floor.raw_data = np.float32(4.5).tobytes()
    for graph in (model.SerializeToString(), residual_onnx(ResidualConfig("none"), {}), b"none"):
        with pytest.raises(ModelError) as caught:
            residual_runner("bank", graph)
        assert caught.value.code == "model_invalid"


def test_what_the_bank_does_not_take() -> None:
    for pixels in (np.zeros((1, 1, 1, 9), np.float32), np.zeros((1, 9, 9), np.float32)):
        with pytest.raises(UsageError, match="at least 2 x 2"):
            bank_residual(pixels)
    with pytest.raises(UsageError, match="float32"):
        bank_residual(np.zeros((1, 1, 9, 9)))  # type: ignore[arg-type]


def test_bank_takes_any_number_of_channels() -> None:
    luma = np.random.default_rng(12).random((2, 1, 32, 40), dtype=np.float32)
    assert graph_of_the_bank()(luma).shape == (2, 4, 32, 40)
    assert weight_shapes(ResidualConfig("bank")) == {}

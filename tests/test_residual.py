"""`masksim.residual`: the graphs against plain arithmetic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.errors import ModelError, UsageError
from masksim.residual import (
    OnnxResidual,
    ResidualConfig,
    check_weights,
    residual_onnx,
    weight_shapes,
)
from residual_examples import CONFIGS, some_weights


def some_pixels(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(12).random(shape, dtype=np.float32)


def runner(config: ResidualConfig) -> OnnxResidual:
    return OnnxResidual(residual_onnx(config, some_weights(config)), threads=1)


def test_the_full_network_is_the_one_described() -> None:
    config = CONFIGS["DnCNN"]
    assert (config.depth, config.features, config.margin) == (17, 64, 17)  # 512 -> 478
    shapes = weight_shapes(config)
    convolutions = [0, *range(2, 48, 3)]
    assert [n for n in shapes if len(shapes[n]) == 4] == [f"model.{i}.weight" for i in convolutions]
    for i in range(48):
        norm = i % 3 == 0 and 0 < i < 47
        assert (f"model.{i}.running_var" in shapes) == norm
        assert (f"model.{i}.bias" in shapes) == (norm or i in (0, 47))
    assert sum(np.prod(shape) for shape in shapes.values()) == 558_403 + 15 * 2 * 64
    light = weight_shapes(CONFIGS["light"])
    assert list(light) == [f"model.{i}.{part}" for i in (0, 2, 4, 6, 8) for part in
                           ("weight", "bias")]  # fmt: skip


def test_linear_is_a_correlation_with_zeros_outside() -> None:
    config = CONFIGS["linear3x3"]
    pixels = some_pixels(2, 3, 9, 14)
    kernel = some_weights(config)["0.weight"].astype(np.float64)
    padded = np.pad(pixels.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros(pixels.shape)
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + 9, j : j + 14]
            expected += np.einsum("oc,bchw->bohw", kernel[:, :, i, j], shifted)
    np.testing.assert_allclose(runner(config)(pixels), expected, atol=1e-6)


def test_cross_difference() -> None:
    pixels = some_pixels(2, 3, 7, 10)
    expected = np.zeros_like(pixels)
    expected[..., :-1, :-1] = np.diff(np.diff(pixels, axis=-1), axis=-2)
    found = runner(CONFIGS["cross_diff"])(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[..., -1, :].any()
    assert not found[..., :, -1].any()
    one = np.zeros((1, 3, 2, 2), dtype=np.float32)
    one[..., 0, 0] = 1
    assert runner(CONFIGS["cross_diff"])(one)[0, :, 0, 0].tolist() == [1, 1, 1]


def test_none_is_the_pixels() -> None:
    pixels = some_pixels(2, 3, 5, 6)
    np.testing.assert_array_equal(runner(CONFIGS["none"])(pixels), pixels)


def test_the_batch_does_not_matter_and_runs_repeat() -> None:
    config = CONFIGS["DnCNN small"]
    pixels = some_pixels(3, 3, 40, 33)
    run = runner(config)
    together = run(pixels)
    np.testing.assert_array_equal(run(pixels), together)
    for i in range(3):
        np.testing.assert_allclose(run(pixels[i : i + 1])[0], together[i], rtol=0, atol=1e-6)
    two = OnnxResidual(residual_onnx(config, some_weights(config)), threads=2)
    np.testing.assert_allclose(two(pixels), together, rtol=0, atol=1e-6)
    cut = pixels[:, :, ::2, 3:]  # not contiguous
    np.testing.assert_array_equal(run(cut), run(np.ascontiguousarray(cut)))


def test_the_graph_is_a_file_of_repeatable_bytes(tmp_path: Path) -> None:
    config = CONFIGS["light"]
    weights = some_weights(config)
    (tmp_path / "net.onnx").write_bytes(residual_onnx(config, weights))
    assert (tmp_path / "net.onnx").read_bytes() == residual_onnx(config, weights)
    pixels = some_pixels(1, 3, 20, 20)
    found = OnnxResidual(tmp_path / "net.onnx")(pixels)
    np.testing.assert_allclose(found, runner(config)(pixels), rtol=0, atol=1e-6)


def broken_graphs() -> dict[str, bytes]:
    graph = residual_onnx(CONFIGS["light"], some_weights(CONFIGS["light"]))
    return {
        "empty": b"",
        "text": b"not a graph",
        "truncated": graph[: len(graph) // 2],
        "other names": graph.replace(b"pixels", b"picels"),
        "unknown operator": graph.replace(b"Relu", b"Rely"),
    }


@pytest.mark.parametrize("name", broken_graphs())
def test_a_broken_graph_is_an_error_and_silent(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="the residual graph is invalid") as caught:
        OnnxResidual(broken_graphs()[name])
    assert caught.value.code == "model_invalid"
    assert capfd.readouterr() == ("", "")


def test_running_is_silent_and_refuses_other_arrays(capfd: pytest.CaptureFixture[str]) -> None:
    run = runner(CONFIGS["DnCNN"])
    with pytest.raises(ModelError, match="the residual graph failed"):
        run(some_pixels(1, 3, 20, 20))  # smaller than the field of 17 layers
    wrong: list[Any] = [
        some_pixels(3, 40, 40),
        some_pixels(1, 4, 40, 40),
        some_pixels(1, 3, 40, 40).astype(np.float64),
    ]
    for pixels in wrong:
        with pytest.raises(UsageError, match="pixels must be float32"):
            run(pixels)
    run(some_pixels(1, 3, 40, 40))
    assert capfd.readouterr() == ("", "")


def test_runner_options_are_checked(tmp_path: Path) -> None:
    graph = residual_onnx(CONFIGS["none"], {})
    with pytest.raises(UsageError, match="threads"):
        OnnxResidual(graph, threads=0)
    with pytest.raises(UsageError, match="NoSuchProvider"):
        OnnxResidual(graph, providers=["NoSuchProvider"])
    with pytest.raises(ModelError) as caught:
        OnnxResidual(tmp_path / "absent.onnx")
    assert caught.value.code == "model_not_found"


def test_unfit_weights_are_listed() -> None:
    config = CONFIGS["DnCNN small"]
    weights: dict[str, NDArray[Any]] = dict(some_weights(config))
    del weights["model.0.bias"]
    weights["extra"] = np.zeros(1, dtype=np.float32)
    weights["model.2.weight"] = np.zeros((8, 8, 1, 1), dtype=np.float32)
    weights["model.3.bias"] = np.full(8, np.nan, dtype=np.float32)
    weights["model.3.running_var"] = np.full(8, -1, dtype=np.float32)
    weights["model.5.weight"] = np.zeros((8, 8, 3, 3), dtype=np.int32)
    with pytest.raises(ModelError) as caught:
        check_weights(config, weights)
    for part in (
        "model.0.bias is missing",
        "extra is unknown",
        "model.2.weight has shape (8, 8, 1, 1), expected (8, 8, 3, 3)",
        "model.3.bias has values that are not finite",
        "model.3.running_var has negative variances",
        "model.5.weight has type int32",
    ):
        assert part in str(caught.value)
    with pytest.raises(ModelError):
        residual_onnx(config, weights)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing.*'kind'"),
        ({"kind": "unet"}, "one of .*'DnCNN', 'light'.*got 'unet'"),
        ({"kind": "DnCNN"}, "depth must be in 2..64"),
        ({"kind": "DnCNN", "depth": 1, "features": 8}, "depth must be in 2..64"),
        ({"kind": "DnCNN", "depth": 17, "features": 10**6}, "features in 1..1024"),
        ({"kind": "light", "depth": 5.0, "features": 8}, "depth must be a whole number, got 5.0"),
        ({"kind": "light", "depth": 5, "features": 8, "padding": 2}, "padding must be 0 or 1"),
        ({"kind": "light", "depth": 5, "features": 8, "batch_norm": 1}, "must be true or false"),
        ({"kind": "none", "depth": 3}, "has no depth"),
        ({"kind": "none", "colour": "red"}, "unknown keys.*'colour'"),
    ],
)
def test_invalid_configurations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ResidualConfig.from_dict(values)


def test_configurations_go_to_json_and_back() -> None:
    for config in (*CONFIGS.values(), ResidualConfig("bank")):
        assert ResidualConfig.from_dict(config.to_dict()) == config


def test_importing_needs_no_onnx() -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import masksim.checkpoint, masksim.model, masksim.residual as r\n"
        "try: r.residual_onnx(r.ResidualConfig('none'), {})\n"
        "except r.ModelError as error: print(error.code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnx_missing ")
    assert 'python -m pip install ".[train]"' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("foo",), "unknown residual 'foo'"),
        (("light", 5.0, 24), "must be integers"),
        (("DnCNN", 17, "x"), "must be integers"),
        (("cross_diff", 0, 0, 0, 3), "a boolean"),
    ],
)
def test_a_residual_that_cannot_be_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ResidualConfig(*arguments)

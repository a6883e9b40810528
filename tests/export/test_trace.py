"""`masksim.export.trace`: functions give the same with NumPy, and as graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim import model, preprocess, spectrum, traits
from masksim.arrays import array_namespace
from masksim.features import part_of_each
from masksim.residual import ResidualConfig, residual_onnx

onnx = pytest.importorskip("onnx")

from masksim.export.trace import Segments, Writer  # noqa: E402
from masksim.residual import IR_VERSION, OPSET  # noqa: E402

RNG = np.random.default_rng(0)
PLANES = RNG.normal(size=(2, 3, 11, 8)).astype(np.float32)
LEVELS = RNG.integers(0, 256, (2, 3, 12, 10)).astype(np.float32)


def run(
    function: Callable[..., Any], *arrays: NDArray[Any], free: bool = True
) -> tuple[NDArray[Any], Any]:
    """Write a graph of a function, and run it; `free`: the length of no axis is known before."""
    import onnxruntime

    xp = Writer()
    sizes = [[None] * a.ndim if free else list(a.shape) for a in arrays]
    given = [xp.input(f"in{k}", a.dtype, sizes[k]) for k, a in enumerate(arrays)]
    out = function(*given)
    xp.output(out, "out")
    nodes, constants = xp.used(["out"])
    value, kind = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
    graph = onnx.helper.make_graph(
        nodes,
        "test",
        [value(x.name, kind(x.dtype), [None] * x.ndim) for x in given],
        [value("out", kind(out.dtype), list(out.sizes))],
        constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(made, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    feed = {x.name: a for x, a in zip(given, arrays, strict=True)}
    return session.run(None, feed)[0], out


def check(
    function: Callable[..., Any], *arrays: NDArray[Any], free: bool = True, atol: float = 1e-6
) -> None:
    expected = np.asarray(function(*arrays))
    found, out = run(function, *arrays, free=free)
    assert found.shape == expected.shape
    assert all(size in (None, length) for size, length in zip(out.sizes, found.shape, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)


def xp_of(x: Any) -> Any:
    return array_namespace(x)


INDICES = [
    np.s_[0], np.s_[-1], np.s_[..., -1], np.s_[:, 1:2], np.s_[..., ::2], np.s_[..., 1::3, :],
    np.s_[:, None, ..., 2], np.s_[..., None], np.s_[:, :, -4:, :-3], np.s_[..., ::-1, :],
    np.s_[1, ..., 3:, None, 0], np.s_[...],
]  # fmt: skip


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indices(index: Any, free: bool) -> None:
    check(lambda x: x[index], PLANES, free=free)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2 - x / 3 + x * np.float32(5) - (-x) * 2.5,
        lambda x: 1 / (x**2 + np.float32(1)),
        lambda x: xp_of(x).where((x > 0) & ~(x >= 1) | (x < -1), x, 7.0),
        lambda x: xp_of(x).astype((x == 0) | (x <= 0.25), xp_of(x).float32),
        lambda x: xp_of(x).clip(x, -0.5, None) + xp_of(x).clip(x, None, 0.5),
        lambda x: xp_of(x).maximum(x, -x) - xp_of(x).minimum(x, xp_of(x).zeros_like(x)),
        lambda x: xp_of(x).log(xp_of(x).exp(xp_of(x).sqrt(xp_of(x).abs(x)))),
        lambda x: xp_of(x).mean(x, axis=(-3, -1), keepdims=True),
        lambda x: xp_of(x).sum(x, axis=1) + xp_of(x).mean(x, axis=(0, 1)),
        lambda x: xp_of(x).sum(x, axis=(-2, -1), dtype=xp_of(x).float64),
        lambda x: xp_of(x).count_nonzero(x > 0, axis=-1) / 3,
        lambda x: xp_of(x).reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3])),
        lambda x: xp_of(x).reshape(x, (x.shape[0] * x.shape[1], -1)),
        lambda x: xp_of(x).moveaxis(x, 1, -1),
        lambda x: xp_of(x).matrix_transpose(x) @ x,
        lambda x: xp_of(x).moveaxis(x, 1, -1) @ np.array([1, 2, 3], np.float32),
        lambda x: xp_of(x).stack([x, -x], axis=-2),
        lambda x: xp_of(x).concat([x, x * 2], axis=1),
        lambda x: xp_of(x).take(x, np.array([0, 1, 0]), axis=1),
        lambda x: xp_of(x).full_like(x, 3) + xp_of(x).arange(x.shape[-1]),
        lambda x: x[..., : x.shape[-1] // 2 * 2 : 2],
    ],
)
def test_functions(function: Callable[..., Any]) -> None:
    check(function, PLANES)
    check(function, PLANES, free=False)


def test_whole_numbers() -> None:
    x = np.arange(-7, 8, dtype=np.int32)
    check(lambda x: x // 3 + x % 3 * 100, x)
    check(lambda x: x // -3, x)
    found, out = run(lambda x: x / 2, x)
    assert out.dtype == found.dtype == np.float32
    np.testing.assert_array_equal(found, x / 2)
    check(lambda x: x * np.float32(0.5), x)


@pytest.mark.parametrize("shift", [1, 3, -2])
def test_turned_axes(shift: int) -> None:
    check(lambda x: xp_of(x).roll(x, shift, axis=-2), PLANES, free=False)
    check(lambda x: xp_of(x).flip(x, axis=(-2, -1)), PLANES)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (12, 7), (41, 40)])
def test_transforms(size: tuple[int, int]) -> None:
    x = RNG.normal(size=(2, *size)).astype(np.float32)
    for part in ("real", "imag"):
        check(
            lambda x, part=part: getattr(xp_of(x).fft.rfftn(x, axes=(-2, -1)), part),
            x,
            free=False,
            atol=1e-4,
        )
    check(lambda x: spectrum.log_spectrum(x, 1e-3), x, free=False, atol=1e-4)


@pytest.mark.parametrize("size", [(48, 64), (32, 40), (75, 33)])
def test_segments(size: tuple[int, int]) -> None:
    x = RNG.normal(size=(2, 3, *size)).astype(np.float32)
    n, hop = 32, 12
    window = spectrum.hann_window(n)

    def mean(values: Any) -> Any:
        return values.xp.mean(values, axis=(2, 4))

    found, _ = run(
        lambda x: spectrum.log_power(Segments(x, n, hop) * window, 0.1).map(mean).joined(n), x
    )
    expected = spectrum.welch_log_power(x, n, hop, 0.1)
    np.testing.assert_allclose(found, expected[..., : n // 2], atol=2e-5)
    found, _ = run(
        lambda x: (
            spectrum.phase_cosines(x.xp.fft.rfftn(Segments(x, n, hop) * window), axis=1)
            .map(mean)
            .joined(n)
        ),
        x,
    )
    expected = np.stack([spectrum.phase_coherence(planes, n, hop) for planes in x])
    np.testing.assert_allclose(found, expected[..., : n // 2], atol=2e-4)


def test_the_routes_own_functions() -> None:
    check(lambda x: preprocess.luma_chroma_of(x)[0], LEVELS.swapaxes(0, 1))
    check(lambda x: preprocess.luma_chroma_of(x)[1], LEVELS.swapaxes(0, 1))
    for space in preprocess.COLOUR_SPACES:
        check(lambda x, space=space: preprocess.planes_of(x, space), LEVELS)
    windows = np.concatenate([LEVELS.swapaxes(1, 2).swapaxes(2, 3)] * 6, axis=1)
    windows[0, :30, :5] = 200  # flat
    for k in range(5):
        check(lambda x, k=k: traits.measure_window(x)[k], windows, atol=1e-4)
    energies = RNG.integers(0, 5, (3, 14)).astype(np.float32)
    check(lambda x: part_of_each(x, 3), energies)
    band = np.array([np.nan, -1, 0, 1, 2.5, np.inf], np.float32)
    check(lambda x: traits.index_of_band(x, 3), band)
    check(model.sigmoid, np.array([-200, -1, 0, 3, 90], np.float32))
    check(lambda x: spectrum.pool_cells(x, 2), PLANES[..., :8, :5], free=False)


def test_the_same_is_written_once_and_what_is_not_used_never() -> None:
    xp = Writer()
    x = xp.input("x", np.float32, [None, 4])
    first, second = xp.exp(x * 2), xp.exp(x * 2)
    assert first.name == second.name
    xp.log(x + 5)
    xp.output(first + second, "out")
    nodes, constants = xp.used(["out"])
    assert [node.op_type for node in nodes] == ["Mul", "Exp", "Add", "Identity"]
    assert len(constants) == 1


def test_another_graph_is_put_inside() -> None:
    graph = residual_onnx(ResidualConfig("cross_diff"), {})
    found, _ = run(lambda x: x.xp.inline(graph, x, 3), LEVELS)
    np.testing.assert_array_equal(found[..., :-1, :-1], preprocess.cross_difference(LEVELS))


def test_what_cannot_be_written_is_refused() -> None:
    xp = Writer()
    x = xp.input("x", np.float32, [None, 4])
    with pytest.raises(TypeError, match="not known"):
        max(x.shape[0], 1)
    with pytest.raises(TypeError, match="no elements"):
        list(x)
    with pytest.raises(NotImplementedError):
        _ = x**3
    with pytest.raises(NotImplementedError):
        xp.fft.rfftn(x, axes=(0, 1))
    with pytest.raises(NotImplementedError):
        _ = Segments(x, 2, 1) * np.eye(2)

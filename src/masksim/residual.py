"""From a window of pixels to its noise residual.

A residual network exists twice: as a torch module while it is trained (`build_residual`, the only
part that imports torch, and only when called), and as an ONNX graph while it is used (`write_onnx`,
`OnnxResidual`). Between them travels a plain mapping of names to NumPy arrays, `weight_shapes`.
The bank, which has no weights, exists a third time: `bank_residual` computes it by NumPy in the
processor's cache, several times as fast as its graph. `residual_runner` takes the quickest form.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from masksim.errors import ModelError, UsageError, install

if TYPE_CHECKING:
    import torch

Kind: TypeAlias = Literal["DnCNN", "light", "linear3x3", "cross_diff", "none", "bank"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CHANNELS = 3
BATCH_NORM_EPSILON = 1e-5
CROSS_DIFFERENCE = np.array([[1, -1], [-1, 1]], dtype=np.float32)

# The bank of fixed residuals works in 8-bit levels.
BANK = ("cross difference", "clipped", "normalised", "median")
BANK_LEVELS = 255.0
BANK_CLIP = 3.0
BANK_FLOOR = 2.0
BANK_BOX = 9
# Pairs whose exchange (smaller first) leaves the median of nine values at index 4.
MEDIAN_NETWORK = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip

BANK_GRAPH_SHA256 = "9fc9f9b0b72ff89bed76a9543134e8a164452d2606d5e3b7fdffeffc5ddebce7"
"""Of the graph that `residual_onnx` writes for the bank: detectors that hold it need not run it."""
# Pixels of a strip of rows: some ten buffers of this size stay in a core's own cache.
_BANK_STRIP = 24576

# The oldest pair that holds every operator used: read by any ONNX Runtime since 1.10.
_ONNX_OPSET = 15
_ONNX_IR_VERSION = 8


@dataclass(frozen=True)
class ResidualConfig:
    """Architecture of a residual network: everything about it but its weights.

    Attributes
    ----------
    kind : {"DnCNN", "light", "linear3x3", "cross_diff", "none", "bank"}
        - ``DnCNN`` and ``light``: `depth` 3x3 convolutions with ReLU between them, whose output
          *is* the residual. With `batch_norm`, layers 2 to depth - 1 are normalised and have no
          bias; without, every layer has a bias. `dncnn` and `light` give the usual sizes.
        - ``linear3x3``: one trained 3x3 convolution, 3 -> 3 channels, no bias.
        - ``cross_diff``: the fixed kernel [[1, -1], [-1, 1]] on each channel; the last row and
          column, where it does not fit, are 0.
        - ``none``: the pixels themselves.
        - ``bank``: four fixed residuals of every channel, of any number of channels, in 8-bit
          levels: the cross difference; the same clipped to +-3 levels; the same divided by its
          deviation in 9x9 pixels (plus 2 levels); and the pixel minus the median of its 3x3
          neighbours. A linear filter only adds a constant to a log-spectrum; these do not,
          since each weighs edges, texture and flat areas differently. Output channel
          ``k * P + p`` is residual ``k`` of `BANK` of input channel ``p`` of ``P``.
    depth, features : int
        Layers and hidden channels of a ``DnCNN`` or ``light`` network; 0 for the others.
    padding : int
        0: each layer takes one pixel off each side; 1: zero padding, the size is kept.
    batch_norm : bool
        Of ``DnCNN`` and ``light`` only.
    """

    kind: Kind
    depth: int = 0
    features: int = 0
    padding: int = 0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown residual {self.kind!r}; known: {', '.join(KINDS)}")
        sizes = (self.depth, self.features, self.padding)
        if any(type(size) is not int for size in sizes) or type(self.batch_norm) is not bool:
            raise UsageError(f"residual sizes must be integers and batch_norm a boolean: {self}")
        if self.is_stack:
            if not (2 <= self.depth <= 64 and 1 <= self.features <= 1024):
                raise UsageError(f"depth must be in 2..64 and features in 1..1024: {self}")
            if self.padding not in (0, 1):
                raise UsageError(f"padding must be 0 or 1, got {self.padding}")
        elif sizes != (0, 0, 0) or self.batch_norm:
            raise UsageError(f"a {self.kind!r} residual has no depth, features or batch norm")

    @classmethod
    def dncnn(
        cls, depth: int = 17, features: int = 64, *, padding: int = 0, batch_norm: bool = True
    ) -> ResidualConfig:
        """Describe the network of the original; the defaults are its sizes."""
        return cls("DnCNN", depth, features, padding, batch_norm)

    @classmethod
    def light(
        cls, depth: int = 5, features: int = 24, *, padding: int = 1, batch_norm: bool = False
    ) -> ResidualConfig:
        """Describe a small network of the same family, for processors without an accelerator."""
        return cls("light", depth, features, padding, batch_norm)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResidualConfig:
        """Invert `to_dict`.

        Raises
        ------
        UsageError
            On an unknown or missing key, or a value out of range.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown or "kind" not in values:
            problem = f"unknown keys {unknown}" if unknown else "no kind"
            raise UsageError(f"invalid residual configuration: {problem}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as plain values for JSON."""
        return asdict(self)

    @property
    def is_stack(self) -> bool:
        """Whether this is a stack of convolutions (``DnCNN``, ``light``)."""
        return self.kind in ("DnCNN", "light")

    @property
    def margin(self) -> int:
        """Pixels by which the residual is smaller than the window, on each side."""
        return self.depth if self.is_stack and self.padding == 0 else 0


@dataclass(frozen=True)
class _Layer:
    """One convolution of a stack, and the positions of its parts in the flat sequence."""

    conv: int
    norm: int | None
    channels_in: int
    channels_out: int
    bias: bool
    relu: bool


def _layers(config: ResidualConfig) -> list[_Layer]:
    layers: list[_Layer] = []
    position = 0
    for i in range(config.depth):
        first, last = i == 0, i == config.depth - 1
        norm = config.batch_norm and not first and not last
        layers.append(
            _Layer(
                conv=position,
                norm=position + 1 if norm else None,
                channels_in=CHANNELS if first else config.features,
                channels_out=CHANNELS if last else config.features,
                bias=not norm,
                relu=not last,
            )
        )
        position += 1 + norm + (not last)
    return layers


def weight_shapes(config: ResidualConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that make a network of this architecture.

    The names are those of the module's ``state_dict`` and, behind the prefix ``preproc.``, of the
    original's checkpoints. ``cross_diff`` and ``none`` have none.
    """
    if config.kind == "linear3x3":
        return {"0.weight": (CHANNELS, CHANNELS, 3, 3)}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in _layers(config):
        shapes[f"model.{layer.conv}.weight"] = (layer.channels_out, layer.channels_in, 3, 3)
        if layer.bias:
            shapes[f"model.{layer.conv}.bias"] = (layer.channels_out,)
        if layer.norm is not None:
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"model.{layer.norm}.{part}"] = (layer.channels_out,)
    return shapes


def check_weights(config: ResidualConfig, weights: Mapping[str, NDArray[Any]]) -> None:
    """Compare names, shapes and values with what the architecture needs.

    Raises
    ------
    ModelError
        Code ``model_invalid``, with a list of everything missing, unknown, misshapen, not a
        floating-point array or not finite.
    """
    expected = weight_shapes(config)
    problems = [f"{name} is missing" for name in expected if name not in weights]
    for name, array in weights.items():
        if name not in expected:
            problems.append(f"{name} is unknown")
        elif tuple(array.shape) != expected[name]:
            problems.append(f"{name} has shape {tuple(array.shape)}, expected {expected[name]}")
        elif array.dtype.kind != "f":
            problems.append(f"{name} has type {array.dtype}, expected floating point")
        elif not np.isfinite(array).all():
            problems.append(f"{name} has values that are not finite")
        elif name.endswith("running_var") and (array < 0).any():
            problems.append(f"{name} has negative variances")
    if problems:
        raise ModelError(
            f"invalid weights of the {config.kind!r} residual: " + "; ".join(problems),
            code="model_invalid",
        )


# --- torch: training ---------------------------------------------------------------------------


def build_residual(
    config: ResidualConfig, weights: Mapping[str, NDArray[Any]] | None = None
) -> torch.nn.Module:
    """Build a torch module, (B, 3, H, W) -> (B, 3, H - 2 margin, W - 2 margin).

    The bank is (B, C, H, W) -> (B, 4 C, H, W).

    Parameters
    ----------
    config : ResidualConfig
    weights : mapping of name to array, optional
        See `weight_shapes`. Without them the initial values are torch's own.

    Returns
    -------
    torch.nn.Module
        In training mode: call ``.eval()`` for the running statistics of the batch norms.

    Raises
    ------
    ModelError
        Code ``torch_missing`` without torch; ``model_invalid`` on weights of another architecture.
    """
    try:
        import torch
        from torch import nn
    except ImportError as error:
        raise ModelError(
            f"a residual network needs the package torch: {install('train')}",
            code="torch_missing",
        ) from error

    module: nn.Module
    if config.kind == "none":
        module = nn.Identity()
    elif config.kind == "linear3x3":
        module = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False))
    elif config.kind == "cross_diff":
        difference = nn.Conv2d(CHANNELS, CHANNELS, 2, groups=CHANNELS, bias=False)
        difference.weight.requires_grad_(False)
        difference.weight.copy_(torch.from_numpy(CROSS_DIFFERENCE))
        module = nn.Sequential(difference, nn.ZeroPad2d((0, 1, 0, 1)))
    elif config.kind == "bank":
        module = _bank_module()
    else:
        parts: list[nn.Module] = []
        for layer in _layers(config):
            parts.append(
                nn.Conv2d(
                    layer.channels_in,
                    layer.channels_out,
                    3,
                    padding=config.padding,
                    bias=layer.bias,
                )
            )
            if layer.norm is not None:
                parts.append(nn.BatchNorm2d(layer.channels_out, eps=BATCH_NORM_EPSILON))
            if layer.relu:
                parts.append(nn.ReLU(inplace=True))
        module = nn.Sequential(OrderedDict(model=nn.Sequential(*parts)))
    if weights is not None:
        check_weights(config, weights)
        state = module.state_dict()
        with torch.no_grad():
            for name in weight_shapes(config):
                state[name].copy_(torch.from_numpy(np.array(weights[name], dtype=np.float32)))
    return module


def _bank_module() -> torch.nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional

    class Bank(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels * BANK_LEVELS
            inner = x[..., 1:, 1:] + x[..., :-1, :-1] - x[..., 1:, :-1] - x[..., :-1, 1:]
            cross = functional.pad(inner, (0, 1, 0, 1))
            reach = BANK_BOX // 2
            power = functional.avg_pool2d(cross * cross, (1, BANK_BOX), 1, (0, reach))
            power = functional.avg_pool2d(power, (BANK_BOX, 1), 1, (reach, 0))
            height, width = x.shape[-2:]
            around = functional.pad(x, (1, 1, 1, 1), mode="reflect")
            near = [around[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
            for i, j in MEDIAN_NETWORK:
                near[i], near[j] = (
                    torch.minimum(near[i], near[j]),
                    torch.maximum(near[i], near[j]),
                )
            return torch.cat(
                [
                    cross,
                    cross.clamp(-BANK_CLIP, BANK_CLIP),
                    cross / (power + BANK_FLOOR**2).sqrt(),
                    x - near[4],
                ],
                dim=1,
            )

    return Bank()


def weights_of(config: ResidualConfig, module: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    """Copy the weights of a module made by `build_residual` to float32 arrays."""
    state = module.state_dict()
    return {
        name: np.array(state[name].detach().float().cpu().numpy(), dtype=np.float32)
        for name in weight_shapes(config)
    }


# --- ONNX: detection ---------------------------------------------------------------------------


def residual_onnx(config: ResidualConfig, weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Write the network as an ONNX graph, batch norms folded into the convolutions.

    Needs the package ``onnx``, not torch. The same input gives the same bytes.

    Parameters
    ----------
    config : ResidualConfig
    weights : mapping of name to array
        See `weight_shapes`; empty for ``cross_diff`` and ``none``.

    Returns
    -------
    bytes
        A graph with the input ``pixels``, float32 (batch, 3, height, width), all but the channels
        dynamic, and the output ``residual``, float32 (batch, 3, height', width').

    Raises
    ------
    ModelError
        Code ``onnx_missing`` without the package; ``model_invalid`` on unfit weights.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise ModelError(
            f"a residual graph needs the package onnx: {install('train')}",
            code="onnx_missing",
        ) from error
    check_weights(config, weights)

    nodes: list[Any] = []
    constants: list[Any] = []
    any_number = config.kind == "bank"
    channels: tuple[int | str, int | str] = (
        ("channels", "channels_out") if any_number else (CHANNELS, CHANNELS)
    )

    def constant(name: str, values: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    if config.kind == "none":
        nodes.append(helper.make_node("Identity", ["pixels"], ["residual"]))
    elif config.kind == "linear3x3":
        kernel = constant("kernel", weights["0.weight"].astype(np.float32))
        nodes.append(helper.make_node("Conv", ["pixels", kernel], ["residual"], pads=[1] * 4))
    elif config.kind == "cross_diff":
        kernel = constant("kernel", np.tile(CROSS_DIFFERENCE, (CHANNELS, 1, 1, 1)))
        pads = constant("pads", np.array([0, 0, 0, 0, 0, 0, 1, 1], dtype=np.int64))
        nodes.append(helper.make_node("Conv", ["pixels", kernel], ["inner"], group=CHANNELS))
        nodes.append(helper.make_node("Pad", ["inner", pads], ["residual"]))
    elif config.kind == "bank":
        _bank_nodes(nodes, constant)
    else:
        previous = "pixels"
        for i, layer in enumerate(_layers(config), start=1):
            kernel_values, bias_values = _folded(layer, weights)
            inputs = [
                previous,
                constant(f"kernel{i}", kernel_values),
                constant(f"bias{i}", bias_values),
            ]
            output = f"layer{i}" if layer.relu else "residual"
            nodes.append(helper.make_node("Conv", inputs, [output], pads=[config.padding] * 4))
            if layer.relu:
                previous = f"active{i}"
                nodes.append(helper.make_node("Relu", [output], [previous]))
    graph = helper.make_graph(
        nodes,
        "residual",
        [
            helper.make_tensor_value_info(
                "pixels", TensorProto.FLOAT, ["batch", channels[0], "height", "width"]
            )
        ],
        [
            helper.make_tensor_value_info(
                "residual", TensorProto.FLOAT, ["batch", channels[1], "height_out", "width_out"]
            )
        ],
        constants,
    )
    model = helper.make_model(
        graph,
        producer_name="masksim",
        ir_version=_ONNX_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _ONNX_OPSET)],
    )
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _bank_nodes(nodes: list[Any], constant: Callable[[str, NDArray[Any]], str]) -> None:
    """Add the graph of the bank: the same arithmetic as `_bank_module`."""
    from onnx import helper

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def crop(source: str, y: int, x: int, bottom: int, right: int, output: str) -> str:
        starts = constant(f"{output}_starts", np.array([y, x], dtype=np.int64))
        ends = constant(f"{output}_ends", np.array([bottom, right], dtype=np.int64))
        return node("Slice", [source, starts, ends, axes], output)

    end = np.iinfo(np.int32).max
    axes = constant("axes", np.array([2, 3], dtype=np.int64))
    levels = node(
        "Mul", ["pixels", constant("levels", np.array([BANK_LEVELS], dtype=np.float32))], "x"
    )
    same = node(
        "Add", [crop(levels, 1, 1, end, end, "x11"), crop(levels, 0, 0, -1, -1, "x00")], "same"
    )
    other = node(
        "Add", [crop(levels, 1, 0, end, -1, "x10"), crop(levels, 0, 1, -1, end, "x01")], "other"
    )
    inner = node("Sub", [same, other], "inner")
    pads = constant("pads", np.array([0, 0, 0, 0, 0, 0, 1, 1], dtype=np.int64))
    cross = node("Pad", [inner, pads], "cross")
    low, high = (
        constant(n, np.array(v, dtype=np.float32))
        for n, v in (("low", -BANK_CLIP), ("high", BANK_CLIP))
    )
    clipped = node("Clip", [cross, low, high], "clipped")

    reach = BANK_BOX // 2
    power = node("Mul", [cross, cross], "square")
    for name, shape, sides in (
        ("rows", [1, BANK_BOX], [0, reach]),
        ("power", [BANK_BOX, 1], [reach, 0]),
    ):
        power = node(
            "AveragePool", [power], name, kernel_shape=shape, pads=sides * 2, count_include_pad=1
        )
    floor = constant("floor", np.array([BANK_FLOOR**2], dtype=np.float32))
    deviation = node("Sqrt", [node("Add", [power, floor], "floored")], "deviation")
    normalised = node("Div", [cross, deviation], "normalised")

    around_pads = constant("around_pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64))
    around = node("Pad", [levels, around_pads], "around", mode="reflect")
    near = [
        crop(around, i, j, end if i == 2 else i - 2, end if j == 2 else j - 2, f"near{i}{j}")
        for i in range(3)
        for j in range(3)
    ]
    for step, (i, j) in enumerate(MEDIAN_NETWORK):
        near[i], near[j] = (
            node("Min", [near[i], near[j]], f"min{step}"),
            node("Max", [near[i], near[j]], f"max{step}"),
        )
    median = node("Sub", [levels, near[4]], "median")
    node("Concat", [cross, clipped, normalised, median], "residual", axis=1)


def _folded(
    layer: _Layer, weights: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel and bias of a convolution with its batch norm folded in, in double precision."""
    kernel = weights[f"model.{layer.conv}.weight"].astype(np.float64)
    if layer.norm is None:
        return kernel.astype(np.float32), weights[f"model.{layer.conv}.bias"].astype(np.float32)
    gain, shift, mean, variance = (
        weights[f"model.{layer.norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    gain = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
    return (
        (kernel * gain[:, None, None, None]).astype(np.float32),
        (shift - mean * gain).astype(np.float32),
    )


def write_onnx(
    config: ResidualConfig, weights: Mapping[str, NDArray[Any]], path: str | os.PathLike[str]
) -> None:
    """Write `residual_onnx` to a file."""
    Path(path).write_bytes(residual_onnx(config, weights))


Runner: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Pixels, float32 (B, C, H, W) in [0, 1], to their residual, float32 (B, C', H', W')."""


def residual_runner(
    graph: bytes, *, threads: int | None = None, providers: Sequence[str] | None = None
) -> Runner:
    """Give the quickest way to compute what a residual graph computes.

    Parameters
    ----------
    graph : bytes
        Serialized, as a detector file holds it.
    threads, providers
        See `OnnxResidual`.

    Returns
    -------
    function
        `bank_residual` for the graph of the bank on the processor, else an `OnnxResidual`. They
        differ by rounding alone.

    Raises
    ------
    ModelError, UsageError
        As `OnnxResidual`.
    """
    on_processor = providers is None or list(providers) == ["CPUExecutionProvider"]
    if on_processor and hashlib.sha256(graph).hexdigest() == BANK_GRAPH_SHA256:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        return bank_residual
    return OnnxResidual(graph, threads=threads, providers=providers)


def bank_residual(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the bank (see `ResidualConfig`) in one thread, without its graph.

    Parameters
    ----------
    pixels : ndarray of float32, shape (B, C, H, W)
        In [0, 1]; H and W at least 2.

    Returns
    -------
    ndarray of float32, shape (B, 4 C, H, W)
        In 8-bit levels.

    Raises
    ------
    UsageError
        If `pixels` has another type or shape.
    """
    if pixels.ndim != 4 or pixels.dtype != np.float32 or min(pixels.shape[2:]) < 2:
        raise UsageError(
            f"pixels must be float32 of shape (B, C, H, W), at least 2 x 2, got {pixels.dtype} of "
            f"shape {tuple(pixels.shape)}"
        )
    batch, channels, height, width = pixels.shape
    out = np.empty((batch, len(BANK), channels, height, width), dtype=np.float32)
    rows = min(height, max(8, _BANK_STRIP // width))
    for b in range(batch):
        for c in range(channels):
            for top in range(0, height, rows):
                _bank_strip(pixels[b, c], out[b, :, c, top : top + rows], top)
    return out.reshape(batch, len(BANK) * channels, height, width)


def _bank_strip(plane: NDArray[np.float32], out: NDArray[np.float32], top: int) -> None:
    """Fill some rows of the bank, (4, rows, W), from row `top` of a plane, (H, W).

    The strip lies in one line of memory, with a margin left and right, so that a neighbour of all
    pixels is a slice of that line. What such a slice reads across the end of a row falls into the
    margin, which is cut off or set to what the border asks for.
    """
    height, width = plane.shape
    rows = out.shape[1]
    reach = BANK_BOX // 2
    line = width + 2 * reach
    inner = slice(reach, reach + width)
    first = top - reach  # the image's row that the first row of the strip stands for

    # `reach` rows above, `reach` and the one that the cross difference takes below, and room for
    # the box to run over the end of the last row.
    size = (rows + 2 * reach) * line + 2 * reach
    x = np.zeros(size + line + 1, dtype=np.float32)
    grid = x[: (rows + 2 * reach + 1) * line].reshape(-1, line)
    start, stop = max(first, 0), min(top + rows + reach + 1, height)
    np.multiply(
        plane[start:stop], np.float32(BANK_LEVELS), out=grid[start - first : stop - first, inner]
    )
    # The median's border: reflected. It takes part in no cross difference that is kept.
    grid[:, reach - 1], grid[:, reach + width] = grid[:, reach + 1], grid[:, reach + width - 2]
    if top == 0:
        grid[reach - 1] = grid[reach + 1]
    if top + rows == height:
        grid[reach + rows] = grid[reach + rows - 2]

    cross = x[line + 1 :] + x[:size]
    cross -= x[line : line + size] + x[1 : 1 + size]
    difference = cross[: -2 * reach].reshape(-1, line)
    difference[:, :reach] = difference[:, reach + width - 1 :] = 0
    difference[: start - first] = difference[max(0, height - 1 - first) :] = 0
    kept = difference[reach : reach + rows, inner]
    out[0] = kept
    np.clip(kept, -BANK_CLIP, BANK_CLIP, out=out[1])

    power = _nine(_nine(cross * cross, 1), line)
    power *= np.float32(1 / BANK_BOX**2)
    power += np.float32(BANK_FLOOR**2)
    deviation = np.sqrt(power, out=power).reshape(rows, line)
    np.divide(kept, deviation[:, :width], out=out[2])

    np.subtract(
        grid[reach : reach + rows, inner],
        _median(x, (reach - 1) * line, line, rows)[:, reach - 1 : reach - 1 + width],
        out=out[3],
    )


def _nine(values: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Sum of each value and the eight that follow at a distance, by doubling."""
    total = values[:-step] + values[step:]
    total = total[: -2 * step] + total[2 * step :]
    total = total[: -4 * step] + total[4 * step :]
    total = total[:-step]
    total += values[BANK_BOX * step - step :]
    return total


def _median(x: NDArray[np.float32], at: int, line: int, rows: int) -> NDArray[np.float32]:
    """Median of 3x3 values, (rows, line); the value at [0, 0] is of the square that begins at `at`.

    Each column of three is sorted once for the three squares it is in. The median is that of the
    largest of their smallest, the median of their middle and the smallest of their largest.
    """
    least, most = np.minimum, np.maximum
    size = rows * line
    a, b, c = (x[at + k * line : at + k * line + size] for k in range(3))
    low, high = least(a, b), most(a, b)
    between = most(low, c)
    low = least(low, c, out=low)
    middle = least(high, between)
    high = most(high, between, out=high)

    largest = most(low[:-2], low[1:-1])
    largest = most(largest, low[2:], out=largest)
    smallest = least(high[:-2], high[1:-1])
    smallest = least(smallest, high[2:], out=smallest)
    between = between[:-2]
    out = np.empty(size, dtype=np.float32)
    found = out[:-2]
    _median_of_three(middle[:-2], middle[1:-1], middle[2:], between, found)
    _median_of_three(largest, found.copy(), smallest, between, found)
    return out.reshape(rows, line)


def _median_of_three(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    spare: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the median of each three values to `out`, which is none of them."""
    np.maximum(a, b, out=spare)
    np.minimum(spare, c, out=spare)
    np.minimum(a, b, out=out)
    np.maximum(out, spare, out=out)


class OnnxResidual:
    """Runs a residual graph with ONNX Runtime. Needs neither torch nor the package ``onnx``.

    Parameters
    ----------
    source : bytes or path
        The graph, serialized; or the file that holds it.
    threads : int, optional
        Threads one convolution may use; by default, one for each physical core.
    providers : sequence of str, optional
        Execution providers of ONNX Runtime in order of preference; by default the processor's.

    Raises
    ------
    ModelError
        Code ``model_not_found`` if the file cannot be read; ``model_invalid`` if it is no graph
        from float32 ``pixels`` (B, 3, H, W) to ``residual`` (B, C, H', W').
    UsageError
        If `threads` is under 1 or a provider is not available in this installation.
    """

    def __init__(
        self,
        source: bytes | str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        import onnxruntime

        if isinstance(source, bytes):
            graph, name = source, "the residual graph"
        else:
            name = f"the residual graph {os.fspath(source)}"
            try:
                graph = Path(source).read_bytes()
            except OSError as error:
                raise ModelError(
                    f"cannot read {name}: {error.strerror}", code="model_not_found"
                ) from error
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        providers = list(providers or ["CPUExecutionProvider"])
        available = onnxruntime.get_available_providers()
        if missing := [provider for provider in providers if provider not in available]:
            raise UsageError(
                f"no such ONNX Runtime provider here: {', '.join(missing)}; "
                f"available: {', '.join(available)}"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        # Failures are raised; a library does not also write them to stderr.
        options.log_severity_level = 4
        # The arena keeps the largest activations forever: hundreds of megabytes for a DnCNN.
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=providers)
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise ModelError(f"{name} is invalid: {error}", code="model_invalid") from error
        signature = [(value.name, value.type, len(value.shape)) for value in (*inputs, *outputs)]
        expected = [("pixels", "tensor(float)", 4), ("residual", "tensor(float)", 4)]
        channels = inputs[0].shape[1] if signature == expected else None
        # The number of channels that the graph takes, or None where it takes any.
        self._channels: int | None = channels if isinstance(channels, int) else None
        if signature != expected:
            raise ModelError(
                f"{name} is invalid: its inputs and outputs are {signature}, expected {expected}",
                code="model_invalid",
            )

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the residual of a batch of windows.

        Parameters
        ----------
        pixels : ndarray of float32, shape (B, C, H, W)
            In [0, 1], in the colour space the network was trained for; C is 3, or any number for
            the bank.

        Returns
        -------
        ndarray of float32, shape (B, C', H', W')

        Raises
        ------
        UsageError
            If `pixels` has another type or shape.
        ModelError
            If the graph fails on it, as when the window is smaller than the network's field.
        """
        expected = self._channels or "C"
        fits = pixels.ndim == 4 and expected in ("C", pixels.shape[1])
        if not fits or pixels.dtype != np.float32:
            raise UsageError(
                f"pixels must be float32 of shape (B, {expected}, H, W), got "
                f"{pixels.dtype} of shape {tuple(pixels.shape)}"
            )
        try:
            (residual,) = self._session.run(["residual"], {"pixels": pixels})
        except Exception as error:  # as above
            raise ModelError(f"the residual graph failed: {error}", code="model_invalid") from error
        return np.asarray(residual, dtype=np.float32)

"""From a window of pixels to its noise residual.

A residual network runs as an ONNX graph (`residual_onnx`, `OnnxResidual`). Its weights are a plain
mapping of names to NumPy arrays (`weight_shapes`), which `masksim.original.residual_network` trains
as a torch module of the same layers (`stack_layers`). The bank has no weights and is in
`masksim.bank`; `residual_runner` takes its NumPy form where it can.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from masksim.bank import BANK_CLIP, BANK_GRAPH_SHA256, BANK_LEVELS, bank_nodes, bank_residual
from masksim.config import from_plain
from masksim.errors import ModelError, UsageError, install

Kind: TypeAlias = Literal["DnCNN", "light", "linear3x3", "cross_diff", "none", "bank", "learned"]

CHANNELS = 3
BATCH_NORM_EPSILON = 1e-5
CROSS_DIFFERENCE = np.array([[1, -1], [-1, 1]], dtype=np.float32)
LEARNED_SCALE = 4.0
"""A learned residual of so many 8-bit levels is 1 inside its network."""
LEARNED_FIXED = ("cross difference", "clipped")
"""Channels of the bank that follow the learned ones."""

# The oldest pair that holds every operator used: read by any ONNX Runtime since 1.10.
OPSET = 15
IR_VERSION = 8


@dataclass(frozen=True)
class ResidualConfig:
    """Architecture of a residual network: everything about it but its weights.

    Attributes
    ----------
    kind : {"DnCNN", "light", "linear3x3", "cross_diff", "none", "bank", "learned"}
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
        - ``learned``: of one channel, luma, without its 3x3 mean: `depth` 3x3 convolutions without
          padding with ReLU between them, to `outputs` channels in 8-bit levels; behind them the
          bank's cross difference and its clipped form.
    depth, features : int
        Layers and hidden channels of a ``DnCNN``, ``light`` or ``learned`` network; 0 for the
        others.
    padding : int
        0: each layer takes one pixel off each side; 1: zero padding, the size is kept.
    batch_norm : bool
        Of ``DnCNN`` and ``light`` only.
    outputs : int
        Learned channels of a ``learned`` residual; 0 for the others.
    """

    kind: Kind
    depth: int = 0
    features: int = 0
    padding: int = 0
    batch_norm: bool = False
    outputs: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"unknown residual {self.kind!r}; known: {', '.join(get_args(Kind))}")
        sizes = (self.depth, self.features, self.padding, self.outputs)
        if any(type(size) is not int for size in sizes) or type(self.batch_norm) is not bool:
            raise UsageError(f"residual sizes must be integers and batch_norm a boolean: {self}")
        learned = self.kind == "learned"
        if self.is_stack or learned:
            if not (2 <= self.depth <= 64 and 1 <= self.features <= 1024):
                raise UsageError(f"depth must be in 2..64 and features in 1..1024: {self}")
            if self.padding not in ((0,) if learned else (0, 1)):
                raise UsageError(f"padding must be 0 or 1, of a learned residual 0: {self}")
            if learned != (1 <= self.outputs <= 1024) or (learned and self.batch_norm):
                raise UsageError(f"a learned residual, and no other, has outputs, 1..1024: {self}")
        elif sizes != (0, 0, 0, 0) or self.batch_norm:
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
            On an unknown or missing key, or a value of another type or out of range.
        """
        return from_plain(cls, values, "the residual")

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as plain values for JSON."""
        values = asdict(self)
        if not self.outputs:  # detector files are named by this, and older ones do not know it
            del values["outputs"]
        return values

    @property
    def is_stack(self) -> bool:
        """Whether this is a stack of convolutions (``DnCNN``, ``light``)."""
        return self.kind in ("DnCNN", "light")

    @property
    def margin(self) -> int:
        """Pixels by which the residual is smaller than the window, on each side."""
        if self.kind == "learned":
            return self.depth + 1
        return self.depth if self.is_stack and self.padding == 0 else 0


@dataclass(frozen=True)
class StackLayer:
    """One convolution of a stack (`ResidualConfig.is_stack`).

    Attributes
    ----------
    conv, norm
        Positions of the convolution and of its batch norm, if it has one, in the sequence of all
        parts: ``model.<position>.weight`` is the name of a weight.
    channels_in, channels_out
        Of the convolution.
    bias
        Whether it has one.
    relu
        Whether a ReLU follows.
    """

    conv: int
    norm: int | None
    channels_in: int
    channels_out: int
    bias: bool
    relu: bool


def stack_layers(config: ResidualConfig) -> list[StackLayer]:
    """List the layers of a stack of convolutions; no layer for another kind of residual."""
    layers: list[StackLayer] = []
    position = 0
    for i in range(config.depth):
        first, last = i == 0, i == config.depth - 1
        norm = config.batch_norm and not first and not last
        layers.append(
            StackLayer(
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
    original's checkpoints. ``cross_diff``, ``none`` and ``bank`` have none.
    """
    if config.kind == "linear3x3":
        return {"0.weight": (CHANNELS, CHANNELS, 3, 3)}
    shapes: dict[str, tuple[int, ...]] = {}
    if config.kind == "learned":
        sizes = [1, *[config.features] * (config.depth - 1), config.outputs]
        for i in range(config.depth):
            shapes[f"layers.{i}.weight"] = (sizes[i + 1], sizes[i], 3, 3)
            shapes[f"layers.{i}.bias"] = (sizes[i + 1],)
        return shapes
    for layer in stack_layers(config):
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
        dynamic, and the output ``residual``, float32 (batch, 3, height', width'). A learned one
        takes one channel.

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

    def constant(name: str, values: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    channels: Any = CHANNELS
    out: Any = CHANNELS
    if config.kind == "bank":
        bank_nodes(nodes, constant)
        channels, out = "channels", "channels_out"  # any number
    elif config.kind == "learned":
        _learned_nodes(config, weights, nodes, constant)
        channels, out = 1, config.outputs + len(LEARNED_FIXED)
    else:
        _network_nodes(config, weights, nodes, constant)
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "residual",
        [value("pixels", kind, ["batch", channels, "height", "width"])],
        [value("residual", kind, ["batch", out, "height_out", "width_out"])],
        constants,
    )
    model = helper.make_model(
        graph,
        producer_name="masksim",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _network_nodes(
    config: ResidualConfig,
    weights: Mapping[str, NDArray[Any]],
    nodes: list[Any],
    constant: Callable[[str, NDArray[Any]], str],
) -> None:
    """Add the nodes of a residual other than the bank, from ``pixels`` to ``residual``."""
    from onnx import helper

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
    previous = "pixels"
    for i, layer in enumerate(stack_layers(config), start=1):
        kernel_values, bias_values = _folded(layer, weights)
        kernel, bias = constant(f"kernel{i}", kernel_values), constant(f"bias{i}", bias_values)
        output = f"layer{i}" if layer.relu else "residual"
        nodes.append(
            helper.make_node("Conv", [previous, kernel, bias], [output], pads=[config.padding] * 4)
        )
        if layer.relu:
            previous = f"active{i}"
            nodes.append(helper.make_node("Relu", [output], [previous]))


def _learned_nodes(
    config: ResidualConfig,
    weights: Mapping[str, NDArray[Any]],
    nodes: list[Any],
    constant: Callable[[str, NDArray[Any]], str],
) -> None:
    """Add the nodes of a learned residual, from ``pixels`` to ``residual``."""
    from onnx import helper

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    # Level minus the mean of 3x3 in units of LEARNED_SCALE, as one kernel.
    local = np.full((1, 1, 3, 3), -1 / 9)
    local[0, 0, 1, 1] += 1
    local *= BANK_LEVELS / LEARNED_SCALE
    x = node("Conv", ["pixels", constant("local", local.astype(np.float32))], "x")
    for i in range(config.depth):
        kernel = weights[f"layers.{i}.weight"].astype(np.float64)
        bias = weights[f"layers.{i}.bias"].astype(np.float64)
        last = i == config.depth - 1
        scale = LEARNED_SCALE if last else 1.0
        names = [
            constant(f"kernel{i + 1}", (kernel * scale).astype(np.float32)),
            constant(f"bias{i + 1}", (bias * scale).astype(np.float32)),
        ]
        x = node("Conv", [x, *names], "learned" if last else f"layer{i + 1}")
        if not last:
            x = node("Relu", [x], f"active{i + 1}")
    m = config.margin
    ints = {"starts": [m, m], "ends": [1 - m, 1 - m], "axes": [2, 3]}
    cut = [constant(name, np.array(values, np.int64)) for name, values in ints.items()]
    inner = node("Slice", ["pixels", *cut], "inner")
    kernel = (BANK_LEVELS * CROSS_DIFFERENCE).reshape(1, 1, 2, 2).astype(np.float32)
    cross = node("Conv", [inner, constant("cross_kernel", kernel)], "cross")
    low, high = (
        constant(n, np.array(v, np.float32)) for n, v in (("low", -BANK_CLIP), ("high", BANK_CLIP))
    )
    clipped = node("Clip", [cross, low, high], "clipped")
    node("Concat", [x, cross, clipped], "residual", axis=1)


def learned_residual(
    pixels: NDArray[np.float32], config: ResidualConfig, weights: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Compute a learned residual in double precision, slowly: what its graph must give.

    Parameters
    ----------
    pixels
        (H, W), luma in [0, 1]; larger than twice the margin.
    config, weights
        See `ResidualConfig` and `weight_shapes`.

    Returns
    -------
    ndarray
        float64 (C, H - 2 margin, W - 2 margin), 8-bit levels.
    """
    luma = pixels.astype(np.float64) * BANK_LEVELS

    def neighbours(planes: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.lib.stride_tricks.sliding_window_view(planes, (3, 3), axis=(-2, -1))

    x = ((luma[1:-1, 1:-1] - neighbours(luma).mean(axis=(-2, -1))) / LEARNED_SCALE)[None]
    for i in range(config.depth):
        kernel, bias = (weights[f"layers.{i}.{name}"].astype(float) for name in ("weight", "bias"))
        active = np.maximum(x, 0) if i else x
        x = np.einsum("oikl,ihwkl->ohw", kernel, neighbours(active)) + bias[:, None, None]
    m = config.margin
    inner = luma[m : luma.shape[0] - m + 1, m : luma.shape[1] - m + 1]
    cross = inner[1:, 1:] + inner[:-1, :-1] - inner[1:, :-1] - inner[:-1, 1:]
    fixed = np.stack([cross, np.clip(cross, -BANK_CLIP, BANK_CLIP)])
    found: NDArray[np.float64] = np.concatenate([x * LEARNED_SCALE, fixed])
    return found


def check_learned(
    runner: Runner, config: ResidualConfig, weights: Mapping[str, NDArray[Any]]
) -> None:
    """Compare a graph with the network that a detector file says it is, on a little noise.

    Raises
    ------
    ModelError
        Code ``model_invalid``: it takes or gives something else.
    """
    side = 2 * config.margin + 8
    # Squares of numbers, in radians, turn about like random ones; numpy.random loads slowly.
    noise = (0.05 + 0.05 * np.sin(np.arange(side**2) ** 2)).reshape(side, side).astype(np.float32)
    try:
        found = runner(noise[None, None])[0]
    except UsageError as error:
        raise ModelError(f"the graph of a learned residual takes no luma: {error}") from error
    expected = learned_residual(noise, config, weights)
    scale = 1e-3 * (1 + np.abs(expected).max())
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=scale):
        raise ModelError("a residual graph is not that of its weights", code="model_invalid")


def _folded(
    layer: StackLayer, weights: Mapping[str, NDArray[Any]]
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


Runner: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Pixels, float32 (B, C, H, W) in [0, 1], to their residual, float32 (B, C', H', W')."""


def residual_runner(
    kind: Kind,
    graph: bytes,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
) -> Runner:
    """Give the quickest way to compute a residual.

    Parameters
    ----------
    kind
        What the detector file says the graph is, see `ResidualConfig`.
    graph
        Serialized, as the detector file holds it.
    threads, providers
        See `OnnxResidual`.

    Returns
    -------
    function
        `masksim.bank.bank_residual` for the bank on the processor, else an `OnnxResidual`.

    Raises
    ------
    ModelError
        As `OnnxResidual`; code ``model_invalid`` if `kind` is the bank and the graph is not.
    UsageError
        As `OnnxResidual`.
    """
    if kind != "bank":
        return OnnxResidual(graph, threads=threads, providers=providers)
    known = hashlib.sha256(graph).hexdigest() == BANK_GRAPH_SHA256
    on_processor = providers is None or list(providers) == ["CPUExecutionProvider"]
    if known and on_processor:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        return bank_residual
    runner = OnnxResidual(graph, threads=threads, providers=providers)
    if not known:  # written by another version of onnx, perhaps: what it computes decides
        _check_bank(runner)
    return bank_residual if on_processor else runner


def _check_bank(runner: Runner) -> None:
    """Compare a graph with the bank on noise of a few levels, where each constant counts."""
    pixels = np.random.default_rng(0).random((1, 3, 24, 40), dtype=np.float32) * np.float32(0.03)
    found, expected = runner(pixels), bank_residual(pixels)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=1e-3):
        raise ModelError("the residual graph is not that of the bank", code="model_invalid")


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
        from float32 ``pixels`` (B, C, H, W) to ``residual`` (B, C', H', W').
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
            In [0, 1], in the colour space the network was trained for; C is 3, 1 for a learned
            residual, or any number for the bank.

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

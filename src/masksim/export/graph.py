"""A detector as one ONNX graph, for other people's runtimes.

The graph holds all that follows the choice of windows: colour, residual, spectra, heads, ranks
among real photos. `export_onnx` writes it, `write_openvino` converts it; `masksim.export.runner`
runs it, and compares it with the detector that it was made of.

The operators are those of opset 15, which any ONNX Runtime since 1.10 reads. Fourier transforms are
two matrix products: the operator ``DFT`` is younger, and slower in ONNX Runtime.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import __version__, preprocess, verdict
from masksim.errors import ModelError, UsageError, install
from masksim.features import FeatureConfig
from masksim.model import COSINE_EPSILON, OriginalHead, SharedHeads, heads_by_band
from masksim.residual import BANK, BANK_LEVELS
from masksim.spectrum import COHERENCE_FLOOR, hann_window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.calibration import Calibration, Joint
    from masksim.checkpoint import Branch
    from masksim.detector import Detector
    from masksim.strata import Node

OPSET, IR_VERSION = 15, 8
PREFIX = "masksim."
"""Of the names of the graph's metadata; those of other tools stay apart."""

MEASURED = ("energy", "sharpness", "chroma", "brightness", "flat", "distance")
"""Traits that windows show; what only the whole image or its file shows are inputs."""

_GIVEN = {
    "side": "shorter side of the whole image, pixels",
    "quality": "JPEG quality of the file, 1 to 100, as masksim estimates it; NaN if it is no JPEG",
    "band": "what the file shows of its last compression, 0 to 4, see masksim.traits."
    "compression_band; NaN where nothing is known of it, as 0",
}
_END = np.iinfo(np.int32).max
_LOWEST = float(np.finfo(np.float32).min)
_TIE = 1e-12  # relative
_TRAIT_BLOCK, _TRAIT_LEAST = 32, 0.05  # as in `masksim.traits`


# --- the graph ---------------------------------------------------------------------------------


class _Graph:
    """Nodes and constants, named in the order they come."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._arrays = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        array = np.ascontiguousarray(values, dtype=kind)
        array = array.reshape(np.shape(values))  # of a scalar it would be (1,)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._known:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = self._arrays.from_array(array, name)
            self._known[key] = name
        return self._known[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values), np.int64)

    def many(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        outputs = [f"{kind.lower()}_{len(self.nodes)}_{k}" for k in range(count)]
        self.nodes.append(self._helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.many(kind, inputs, 1, **attributes)[0]

    def name(self, value: str, name: str) -> None:
        """Give a value the name of an output."""
        self.nodes.append(self._helper.make_node("Identity", [value], [name]))

    def cast(self, value: str, kind: str = "FLOAT") -> str:
        from onnx import TensorProto

        return self("Cast", value, to=getattr(TensorProto, kind))

    def slice(self, value: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        ints = (self.ints(k) for k in (start, stop, axis, step))
        return self("Slice", value, *ints)

    def split(self, value: str, axis: int, *sizes: int) -> list[str]:
        return self.many("Split", [value, self.ints(*sizes)], len(sizes), axis=axis)

    def sum(self, value: str, *axes: int, keep: bool = False) -> str:
        return self("ReduceSum", value, self.ints(*axes), keepdims=int(keep))

    def mean(self, value: str, *axes: int, keep: bool = False) -> str:
        return self("ReduceMean", value, axes=list(axes), keepdims=int(keep))

    def reshape(self, value: str, *sizes: int | str) -> str:
        """Reshape to constants and one-element values."""
        whole = [size for size in sizes if isinstance(size, int)]
        if len(whole) == len(sizes):
            return self("Reshape", value, self.ints(*whole))
        parts = [self.ints(size) if isinstance(size, int) else size for size in sizes]
        return self("Reshape", value, self("Concat", *parts, axis=0))

    def side(self, value: str, axis: int) -> str:
        """Length of an axis, as one element."""
        return self.slice(self("Shape", value), 0, axis, axis + 1)

    def inline(self, source: bytes, value: str, prefix: str) -> str:
        """Put another graph of one input and one output here; its constants only once."""
        import onnx

        model = onnx.load_model_from_string(source)
        versions = {
            entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
        }
        if versions != {OPSET}:
            raise ModelError(f"the residual graph is of opset {versions}, expected {OPSET}")
        names = {model.graph.input[0].name: value, "": ""}
        for entry in model.graph.initializer:
            names[entry.name] = f"{prefix}{entry.name}"
            if names[entry.name] not in self.constants:
                kept = onnx.TensorProto()
                kept.CopyFrom(entry)
                kept.name = names[entry.name]
                self.constants[kept.name] = kept
        step = len(self.nodes)
        for node in model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = ""
            copy.ClearField("output")
            for output in node.output:
                names[output] = f"{prefix}{step}_{output}"
                copy.output.append(names[output])
            copy.ClearField("input")
            copy.input.extend(names[name] for name in node.input)
            self.nodes.append(copy)
        return names[model.graph.output[0].name]


def _transform(n: int, count: int, window: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Cosines and sines (count, n) of the frequencies from 0, times a window, orthonormal."""
    # The integer part of the angles is taken out first: exact for any size.
    turns = 2 * np.pi / n * (np.outer(np.arange(count), np.arange(n)) % n)
    return [wave(turns) * window / np.sqrt(n) for wave in (np.cos, np.sin)]


def _shifted(n: int) -> NDArray[np.int64]:
    """Where the rows of a shifted spectrum stand among those of `_powers`, one after the other."""
    u = np.arange(n) - n // 2
    found: NDArray[np.int64] = np.where(u >= 0, u, n // 2 + 1 - u)
    return found


def _waves(
    g: _Graph, parts: Sequence[str], n: int, window: NDArray[np.float64]
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Transform along the rows (..., n, columns), at +u and at -u, u = 0 to n // 2.

    Both as real and imaginary parts.
    """
    cosines, sines = (g.constant(wave) for wave in _transform(n, n // 2 + 1, window))
    real, imaginary = parts
    a, b = g("MatMul", cosines, real), g("MatMul", sines, imaginary)
    c, d = g("MatMul", cosines, imaginary), g("MatMul", sines, real)
    return (
        (g("Add", a, b), g("Sub", c, d)),
        (g("Sub", a, b), g("Add", c, d)),
    )


def _power(g: _Graph, wave: tuple[str, str]) -> str:
    real, imaginary = wave
    return g("Add", g("Mul", real, real), g("Mul", imaginary, imaginary))


def _powers(
    g: _Graph, parts: Sequence[str], n: int, window: NDArray[np.float64]
) -> tuple[str, str]:
    """Powers of `_waves`."""
    above, below = (_power(g, wave) for wave in _waves(g, parts, n, window))
    return above, below


def _segments(g: _Graph, value: str, segment: int, hop: int) -> str:
    """Segments of rows: (N, C, n, m) -> (N, C, k, segment, m)."""
    last = g("Sub", g.side(value, 2), g.ints(segment - 1))
    last = g("Squeeze", last, g.ints(0))
    starts = g("Range", g.constant(0, np.int64), last, g.constant(hop, np.int64))
    at = g(
        "Add",
        g("Unsqueeze", starts, g.ints(1)),
        g.constant(np.arange(segment)[None], np.int64),
    )
    return g("Gather", value, at, axis=2)


def _half_transforms(g: _Graph, planes: str, n: int, hop: int) -> list[str]:
    """Transform the segments of planes (N, C, H, W) along x: two of (N, C, ny, n, nx n // 2)."""
    half = n // 2  # the column of the Nyquist frequency is not used
    line = _line(n)
    # Whole rows are copied to segments: fast. So columns are made rows, and rows again.
    tiles = _segments(g, g("Transpose", planes, perm=[0, 1, 3, 2]), n, hop)  # (N, C, nx, n, H)
    cosines, sines = _transform(n, half, line)
    parts = []
    for wave in (cosines, -sines):
        part = g("MatMul", g.constant(wave), tiles)  # (N, C, nx, half, H)
        part = g("Reshape", part, g("Concat", g.ints(0, 0, -1), g.side(part, 4), axis=0))
        part = g("Transpose", part, perm=[0, 1, 3, 2])
        parts.append(_segments(g, part, n, hop))  # (N, C, ny, n, nx half)
    return parts


def _line(n: int) -> NDArray[np.float64]:
    """One axis of `hann_window`."""
    line: NDArray[np.float64] = np.sqrt(np.diag(hann_window(n)).astype(np.float64))
    return line


def _mean_of_segments(g: _Graph, value: str, n: int) -> str:
    """Mean over segments: (N, C, ny, n // 2 + 1, nx n // 2) -> (N, C, n // 2 + 1, n // 2)."""
    half = n // 2
    return g.mean(g.reshape(value, 0, 0, 0, half + 1, -1, half), 2, 4)


def _cells(g: _Graph, residual: str, windows: str, config: FeatureConfig, hop: int) -> str:
    """Cells of mean log-power spectra: (images * windows, C, H, W) -> (images, C, R, R // 2)."""
    n = config.segment
    means = []
    for power in _powers(g, _half_transforms(g, residual, n, hop), n, _line(n)):
        log = g("Log", g("Add", power, g.constant(config.floor)))
        means.append(_mean_of_segments(g, log, n))
    return _pooled(g, means, windows, config)


def _pooled(g: _Graph, means: Sequence[str], windows: str, config: FeatureConfig) -> str:
    """Cells of the mean over windows of what stands at +u and at -u, see `_waves`."""
    n = config.segment
    rows = g.constant(_shifted(n), np.int64)
    log = g("Gather", g("Concat", *means, axis=2), rows, axis=2)  # (N, C, n, half)
    images = g.mean(_by_image(g, log, windows, g.side(log, 1), n, n // 2), 1)
    return _pool(g, images, config.cell)


def _pool(g: _Graph, images: str, cell: int) -> str:
    return g("AveragePool", images, kernel_shape=[cell, cell], strides=[cell, cell])


# --- segments ranked by their energy, coherence of colours: see `masksim.features` ---------------


def _cross_difference(g: _Graph, planes: str) -> str:
    """Cross difference of planes (N, C, H, W), last row and column 0.

    The sums in the order of `masksim.residual.bank_residual`: ranks should not hang on rounding.
    """
    upper, lower = (g.slice(planes, 2, k, k - 1 or _END) for k in (0, 1))
    (a, b), (c, d) = (
        [g.slice(rows, 3, k, k - 1 or _END) for k in (0, 1)] for rows in (upper, lower)
    )
    inner = g("Sub", g("Add", d, a), g("Add", c, b))
    return g("Pad", inner, g.ints(0, 0, 0, 0, 0, 0, 1, 1))


def _parts(g: _Graph, luma: str, windows: str, config: FeatureConfig) -> str:
    """Shares with which segments count in each part of their image: (images, parts, n).

    The segments of all windows of an image are ranked together; equal ones in their order.
    """
    segment, hop = config.segment, config.hops[0]
    cross = _cross_difference(g, g("Mul", luma, g.constant(BANK_LEVELS)))
    squared = g("Transpose", g("Mul", cross, cross), perm=[0, 1, 3, 2])
    lines = g.mean(_segments(g, squared, segment, hop), 3)  # (N, 1, nx, H)
    lines = g("Transpose", lines, perm=[0, 1, 3, 2])
    energies = g.mean(_segments(g, lines, segment, hop), 3)  # (N, 1, ny, nx)
    energies = g.reshape(energies, g.side(windows, 0), -1)
    size = g("Squeeze", g.side(energies, 1), g.ints(0))
    order = g("Range", g.constant(0, np.int64), size, g.constant(1, np.int64))
    one, other = (g("Unsqueeze", energies, g.ints(axis)) for axis in (2, 1))
    earlier = g("Less", g("Unsqueeze", order, g.ints(0)), g("Unsqueeze", order, g.ints(1)))
    before = g("Or", g("Less", other, one), g("And", g("Equal", other, one), earlier))
    ranks = g.cast(g.sum(g.cast(before), 2), "INT64")
    part = g("Div", g("Mul", ranks, g.constant(config.parts, np.int64)), size)
    numbers = g.constant(np.arange(config.parts)[None, :, None], np.int64)
    chosen = g.cast(g("Equal", g("Unsqueeze", part, g.ints(1)), numbers))
    # At least one: windows smaller than those of any image may have fewer segments than parts.
    return g("Div", chosen, g("Max", g.sum(chosen, 2, keep=True), g.constant(1)))


def _cells_in_parts(
    g: _Graph, luma: str, residual: str, windows: str, config: FeatureConfig
) -> str:
    """Cells of the mean log-power spectra of each part: (images, parts * C, R, R // 2)."""
    n, channels = config.segment, len(BANK)
    half = n // 2
    shares = _parts(g, luma, windows, config)
    means = []
    for power in _powers(g, _half_transforms(g, residual, n, config.hops[0]), n, _line(n)):
        log = g("Log", g("Add", power, g.constant(config.floor)))
        log = g.reshape(log, 0, 0, 0, half + 1, -1, half)  # (N, C, ny, half + 1, nx, half)
        log = g("Transpose", log, perm=[0, 2, 4, 1, 3, 5])
        log = g.reshape(log, g.side(windows, 0), -1, channels * (half + 1) * half)
        mean = g("MatMul", shares, log)
        means.append(g.reshape(mean, 0, config.parts * channels, half + 1, half))
    rows = g.constant(_shifted(n), np.int64)
    return _pool(g, g("Gather", g("Concat", *means, axis=2), rows, axis=2), config.cell)


def _coherence(g: _Graph, small: str, windows: str, config: FeatureConfig) -> str:
    """Cells of `masksim.spectrum.phase_coherence`: (images, 3, R, R // 2).

    `small` are the channels averaged over 2x2 pixels.
    """
    n = config.segment
    # In levels times four, integers, as `masksim.preprocess.half_cross_difference`.
    planes = _cross_difference(g, g("Mul", small, g.constant(4)))
    means = []
    for wave in _waves(g, _half_transforms(g, planes, n, config.hops[1]), n, _line(n)):
        # The transform is orthonormal here, and is not there.
        size = g("Add", g("Sqrt", _power(g, wave)), g.constant(COHERENCE_FLOOR / n))
        products = []
        for part in wave:
            unit = g("Div", part, size)
            pair = (g("Gather", unit, g.ints(*at), axis=1) for at in ((0, 1, 0), (1, 2, 2)))
            products.append(g("Mul", *pair))
        means.append(_mean_of_segments(g, g("Add", *products), n))
    return _pooled(g, means, windows, config)


def _by_image(g: _Graph, value: str, windows: str, *rest: int | str) -> str:
    """Part the first axis, (images * windows), in two."""
    return g.reshape(value, g.side(windows, 0), g.side(windows, 1), *rest)


def _probability(g: _Graph, similarity: str, a: Any, b: Any, band: str = "") -> str:
    """Logistic output of heads; `a` and `b` hold one array a band."""
    scales = [np.exp(np.asarray(values, dtype=np.float32)) for values in a]
    log_odds = g("Mul", similarity, _of_band(g, scales, band))
    return g("Sigmoid", g("Add", log_odds, _of_band(g, b, band)))


def _luma(g: _Graph, pixels: str) -> str:
    """Thousandths of a level: an integer where the levels are, so without rounding."""
    parts = g.split(pixels, 1, 1, 1, 1)
    weighted = [
        g("Mul", part, g.constant(weight))
        for part, weight in zip(parts, (299, 587, 114), strict=True)
    ]
    return g("Add", g("Add", *weighted[:2]), weighted[2])


def _features(
    g: _Graph, branch: Branch, config: FeatureConfig, pixels: str, bright: str, windows: str
) -> str:
    """Features of `masksim.features.shared_features`: (images, C, R, R // 2)."""
    # Chroma is averaged over 2x2 pixels: of the channels, which are integers, without rounding.
    small = g("AveragePool", pixels, kernel_shape=[2, 2], strides=[2, 2])
    luma = _luma(g, small)
    # Cb, then Cr, each in [0, 1] with grey at a half, doubled.
    colours = [
        g(
            "Mul",
            g("Sub", g("Mul", g.slice(small, 1, k, k + 1), g.constant(1000)), luma),
            g.constant(1 / (255_000 * (1 - weight))),
        )
        for k, weight in ((2, 0.114), (0, 0.299))
    ]
    ranked = config.parts > 1
    groups = [
        # Where segments are ranked by it, rounded as the detector rounds it.
        g("Div", bright, g.constant(255_000))
        if ranked
        else g("Mul", bright, g.constant(1 / 255_000)),
        g("Add", g("Concat", *colours, axis=1), g.constant(1)),
    ]
    cells = []
    for k, (group, hop) in enumerate(zip(groups, config.hops, strict=True)):
        residual = g.inline(branch.onnx, group, "residual_0_")
        cells.append(
            _cells_in_parts(g, group, residual, windows, config)
            if ranked and not k
            else _cells(g, residual, windows, config, hop)
        )
    if config.coherence:
        cells.append(_coherence(g, small, windows, config))
    return g("Concat", *cells, axis=1)


def _given(g: _Graph, name: str, traits: dict[str, str]) -> str:
    """Take an input of the graph, (images, 1); `traits` tells which ones are wanted."""
    if name not in traits:
        column = g("Unsqueeze", name, g.ints(1))
        if name == "band":  # not known: as where there is no trace of a compression
            zero = g.constant(0)
            column = g("Where", g("Greater", column, zero), column, zero)
        traits[name] = column
    return traits[name]


def _band(g: _Graph, count: int, traits: dict[str, str]) -> str:
    """Read the band of compression as an index below `count`: int64 (images,)."""
    steps = g.constant(np.arange(1, count)[None])
    above = g.cast(g("GreaterOrEqual", _given(g, "band", traits), steps))
    return g.cast(g.sum(above, 1), "INT64")


def _of_band(g: _Graph, values: Sequence[NDArray[Any]], band: str) -> str:
    """Choose each image's array: (images, ...), or one for all where there is but one."""
    if all(np.array_equal(values[0], value) for value in values[1:]):
        return g.constant(values[0] if len(values) == 1 else values[0][None])
    return g("Gather", g.constant(np.stack(values)), band)


def _products(g: _Graph, flat: str, tables: Sequence[NDArray[Any]], band: str) -> str:
    """Multiply (images, D) by the table (G, D) of each image's band: (images, G)."""
    if len(tables) == 1:
        return g("MatMul", flat, g.constant(tables[0].T))
    # By the tables of all bands: to copy one for every image would take longer.
    count = len(tables[0])
    every = g("MatMul", flat, g.constant(np.concatenate(tables).T))
    every = g.reshape(every, 0, len(tables), count)
    own = g("Equal", g("Unsqueeze", band, g.ints(1)), g.constant(np.arange(len(tables)), np.int64))
    return g.sum(g("Mul", every, g.cast(g("Unsqueeze", own, g.ints(2)))), 1)


def _shared(
    g: _Graph,
    branch: Branch,
    pixels: str,
    bright: str,
    windows: str,
    maps: bool,
    traits: dict[str, str],
) -> dict[str, str]:
    """All heads on one residual bank, of one set or one for each band of compression.

    `pixels` are levels, float (images * windows, 3, H, W), `bright` their `_luma`. The band is
    added to `traits` where the heads depend on it.
    """
    values = dict(branch.preprocess) | dict(branch.spectrum)
    values.pop("colour")
    config = FeatureConfig.from_dict(values)
    limit = float(branch.head_config["limit"])
    heads = (
        heads_by_band(branch.tensors, limit)
        if branch.head == "bands"
        else (SharedHeads.from_tensors(branch.tensors, limit),)
    )
    features = _features(g, branch, config, pixels, bright, windows)
    band = _band(g, len(heads), traits) if len(heads) > 1 else ""
    level = g.mean(features, 2, 3, keep=True)
    mean, deviation = ([getattr(h, name) for h in heads] for name in ("mean", "deviation"))
    z = g("Sub", g("Sub", features, level), _of_band(g, mean, band))
    z = g("Div", z, _of_band(g, deviation, band))
    z = g("Clip", z, g.constant(-limit), g.constant(limit))
    flat = g.reshape(z, 0, -1)
    if heads[0].basis is not None:
        vectors = heads[0].basis.reshape(len(heads[0].basis), -1)
        basis = g.constant(vectors)  # once in the file: it is large
        components = g("Gemm", flat, basis, transB=1)
        components = g("Mul", components, g.constant(heads[0].shrink))
        flat = g("Sub", flat, g("MatMul", components, basis))
    found = {"features": features} | _compared(g, flat, heads, band, maps)
    squared = g("Max", g.mean(g("Mul", z, z), 1, 2, 3), g.constant(1e-12))
    found["distance"] = g("Log", squared)
    return found


def _compared(
    g: _Graph, flat: str, heads: Sequence[SharedHeads], band: str, maps: bool
) -> dict[str, str]:
    """Compare what masks are laid over, (images, D), with the references of each image's band."""
    shape = heads[0].masks.shape[1:]
    count = len(heads[0].masks)
    weighted = [(h.masks * h.references).reshape(count, -1) for h in heads]
    masks = [(h.masks**2).reshape(count, -1) for h in heads]
    norm = _products(g, g("Mul", flat, flat), masks, band)
    norm = g("Max", g("Sqrt", norm), g.constant(COSINE_EPSILON))
    found: dict[str, str] = {}
    if maps:
        shares = g("Mul", g("Unsqueeze", flat, g.ints(1)), _of_band(g, weighted, band))
        shares = g("Div", shares, g("Unsqueeze", norm, g.ints(2)))
        found["maps"] = g.reshape(shares, 0, count, *shape)
    # A matrix product, and not a sum of the maps: they need not be there.
    dot = _products(g, flat, weighted, band)
    found["similarity"] = g("Div", dot, norm)
    found["probability"] = _probability(
        g, found["similarity"], [h.a for h in heads], [h.b for h in heads], band
    )
    return found


def _colour(g: _Graph, pixels: str, space: str) -> str:
    """Planes as `masksim.preprocess.to_colour` gives them."""
    if space == "RGB":
        return g("Div", pixels, g.constant(255))
    if space == "YCbCr-BT601-full":
        luma = np.array([0.299, 0.587, 0.114])
        blue = (np.array([0, 0, 1]) - luma) / (2 * (1 - luma[2]))
        red = (np.array([1, 0, 0]) - luma) / (2 * (1 - luma[0]))
        mix = np.stack([luma, blue, red])[:, :, None, None] / 255
        full = g("Conv", pixels, g.constant(mix), g.constant([0, 0.5, 0.5]))
        return g("Clip", full, g.constant(0), g.constant(1))
    # The floor of the original, in integers; nothing is negative, so a division is a floor.
    whole = g.cast(pixels, "INT32")
    parts = g.split(whole, 1, 1, 1, 1)
    planes = []
    numerators, denominator, offsets = preprocess.STUDIO
    for weights, offset in zip(numerators, offsets, strict=True):
        level = g.constant(offset * denominator, np.int32)
        for part, weight in zip(parts, weights, strict=True):
            level = g("Add", level, g("Mul", part, g.constant(weight, np.int32)))
        planes.append(g("Div", level, g.constant(denominator, np.int32)))
    return g("Div", g.cast(g("Concat", *planes, axis=1)), g.constant(255))


def _original(g: _Graph, branch: Branch, planes: str, number: int, maps: bool) -> dict[str, str]:
    """One generator of the original, on its own residual."""
    head = OriginalHead.from_tensors(branch.tensors)
    residual = g.inline(branch.onnx, planes, f"residual_{number}_")
    height, width = head.masks.shape[-2:]
    count = width // 2 + 1
    cosines, sines = _transform(width, count, np.ones(width))
    parts = [
        g("MatMul", residual, g.constant(np.ascontiguousarray(wave.T)))
        for wave in (cosines, -sines)
    ]
    epsilon = g.constant(float(branch.spectrum["epsilon"]))
    logs = [
        g("Log", g("Add", g("Sqrt", power), epsilon))
        for power in _powers(g, parts, height, np.ones(height))
    ]
    rows = _shifted(height)
    both = g("Concat", *logs, axis=2)
    half = g("Gather", both, g.constant(rows, np.int64), axis=2)
    # The value at (-u, -v) is that at (u, v); the Nyquist column is its own mirror.
    v = np.arange(width) - width // 2
    mirrored = (2 * (height // 2) - np.arange(height)) % height
    turned = g("Gather", half, g.constant(mirrored, np.int64), axis=2)
    left = g("Gather", turned, g.constant(-v[v < 0], np.int64), axis=3)
    if width % 2 == 0:
        left = g("Concat", g.slice(half, 3, count - 1, count), g.slice(left, 3, 1, _END), axis=3)
    right = g.slice(half, 3, 0, width - width // 2)
    log = g("Concat", left, right, axis=3)
    mixed = g("Conv", log, g.constant(head.mixing[:, :, None, None]))
    scores, shown = [], []
    for mask, reference in zip(head.masks, head.references, strict=True):
        vector = g("Add", g("Mul", mixed, g.constant(mask * head.scale)), g.constant(head.shift))
        norm = g("Sqrt", g.sum(g("Mul", vector, vector), 2, 3, keep=True))
        norm = g("Max", norm, g.constant(COSINE_EPSILON))
        product_ = g("Mul", vector, g.constant(reference))
        cosine = g("Div", g.sum(product_, 2, 3, keep=True), norm)
        scores.append(g.mean(cosine, 1, 2, 3))
        shown.append(g("Div", product_, g("Mul", norm, g.constant(3))) if maps else "")
    best = scores[0]
    picture = shown[0]
    for score, other in zip(scores[1:], shown[1:], strict=True):
        if maps:
            better = g.reshape(g("Greater", score, best), -1, 1, 1, 1)
            picture = g("Where", better, other, picture)
        best = g("Max", best, score)
    similarity = g("Unsqueeze", best, g.ints(1))
    found = {
        "similarity": similarity,
        "probability": _probability(g, similarity, [head.a], [head.b]),
    }
    if maps:
        found["maps"] = g("Unsqueeze", picture, g.ints(1))
    return found


def _energy(g: _Graph, plane: str) -> str:
    """Average the logarithm of the mean squared cross difference of blocks: -> (N,)."""
    upper, lower = (g.slice(plane, 2, k, k - 1 or _END) for k in (0, 1))
    rows = g("Sub", upper, lower)
    cross = g("Sub", *(g.slice(rows, 3, k, k - 1 or _END) for k in (0, 1)))
    squared = g("Mul", cross, cross)
    sizes: list[str] = []
    for axis in (2, 3):
        side = g.side(squared, axis)
        blocks = g("Max", g("Div", side, g.ints(_TRAIT_BLOCK)), g.ints(1))
        length = g("Div", side, blocks)
        squared = g("Slice", squared, g.ints(0), g("Mul", blocks, length), g.ints(axis))
        sizes += [blocks, length]
    means = g.mean(g.reshape(squared, -1, *sizes), 2, 4)
    return g.mean(g("Log", g("Add", means, g.constant(_TRAIT_LEAST))), 1, 2)


def _traits(
    g: _Graph, pixels: str, bright: str, windows: str, distance: str | None
) -> dict[str, str]:
    """Measure what windows show of the traits of `masksim.traits`, each (images, 1)."""
    luma = g("Mul", bright, g.constant(0.001))
    half = g("AveragePool", luma, kernel_shape=[2, 2], strides=[2, 2])
    green = g.slice(pixels, 1, 1, 2)
    others = g.slice(pixels, 1, 0, 3, 2)
    upper = g.slice(pixels, 2, 0, -1)
    corner = g.slice(upper, 3, 0, -1)
    right = g.slice(upper, 3, 1, _END)
    below = g.slice(g.slice(pixels, 2, 1, _END), 3, 0, -1)
    change = g("Add", *(g("Abs", g("Sub", corner, other)) for other in (right, below)))
    same = g.cast(g("Equal", g.sum(change, 1), g.constant(0)))
    columns = [
        _energy(g, luma),
        _energy(g, half),
        g.mean(g("Abs", g("Sub", others, green)), 1, 2, 3),
        g.mean(luma, 1, 2, 3),
        g.mean(same, 1, 2),
    ]
    table = g("Concat", *(g("Unsqueeze", column, g.ints(1)) for column in columns), axis=1)
    means = g.mean(_by_image(g, table, windows, len(columns)), 1)
    energy, coarse, chroma, brightness, flat = g.split(means, 1, *[1] * len(columns))
    found = {
        "energy": energy,
        "sharpness": g("Sub", energy, coarse),
        "chroma": chroma,
        "brightness": brightness,
        "flat": flat,
    }
    if distance is not None:
        found["distance"] = g("Unsqueeze", distance, g.ints(1))
    return found


# --- ranks -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ranks:
    """Photos of every stratum, S, in tables padded to one number of rows, n.

    Attributes
    ----------
    real
        float32 (S, n, G): scores; the lowest number where there is none.
    complete
        float32 (S, n, 1): 1 for photos scored for all generators.
    among
        float32 (S, n, G): rank of each complete photo among the complete ones, itself included;
        beyond any rank for other rows.
    counts, complete_counts
        float32 (S, G) and (S, 1): scored photos.
    """

    real: NDArray[np.float32]
    complete: NDArray[np.float32]
    among: NDArray[np.float32]
    counts: NDArray[np.float32]
    complete_counts: NDArray[np.float32]


def _ranks(strata: Sequence[NDArray[np.float64]]) -> _Ranks:
    """Make tables of the scores (n_s, G) of the photos of each stratum."""
    rows, columns = max(len(real) for real in strata), strata[0].shape[1]
    shape = (len(strata), rows, columns)
    real_scores = np.full(shape, _LOWEST, dtype=np.float32)
    among = np.full(shape, 4.0 * rows + 4, dtype=np.float32)
    complete = np.zeros((*shape[:2], 1), dtype=np.float32)
    for s, real in enumerate(strata):
        real_scores[s, : len(real)] = np.where(np.isnan(real), _LOWEST, real)
        at = np.flatnonzero(~np.isnan(real).any(axis=1))
        complete[s, at] = 1
        for column, scores in enumerate(real[at].T):
            below = np.searchsorted(np.sort(scores), scores, side="left")
            among[s, at, column] = len(at) - below
    return _Ranks(
        real_scores,
        complete,
        among,
        np.array([(~np.isnan(real)).sum(axis=0) for real in strata], dtype=np.float32),
        complete.sum(axis=1),
    )


def _at_least(cut: float) -> np.float32:
    """Give the smallest number in single precision that is not below a cut."""
    nearest = np.float32(cut)
    return nearest if float(nearest) >= cut else np.nextafter(nearest, np.float32(np.inf))


def _stratum(g: _Graph, calibration: Calibration, traits: dict[str, str]) -> str:
    """Walk down the tree: which of its leaves, int64 (images, 1).

    A trait that is an input of the graph, and was not wanted before, is added to `traits`.
    """
    number = {leaf: k for k, leaf in enumerate(calibration.tree.leaves())}

    def walk(node: Node) -> str:
        if not node.parts:
            return g.constant([[number[node]]], np.int64)
        if node.trait in _GIVEN:
            _given(g, node.trait, traits)
        if node.trait not in traits:  # heads that cannot know it
            return walk(node.parts[-1])
        found, *others = map(walk, node.parts)
        for cut, part in zip(node.cuts, others, strict=True):
            # "If not below", so that NaN comes to the last.
            below = g("Less", traits[node.trait], g.constant(_at_least(cut)))
            found = g("Where", below, found, part)
        return found

    # Where nothing is cut it is one number for all.
    return g("Expand", walk(calibration.tree), g("Concat", g.side("windows", 0), g.ints(1), axis=0))


def _rates(
    g: _Graph, calibration: Calibration, similarity: str, stratum: str, traits: dict[str, str]
) -> tuple[str, str]:
    """Own rates (images, G) and joint rate (images, 1) in one population."""
    real_scores = calibration.real_scores
    leaves = calibration.tree.leaves()
    tables = _ranks([real_scores[leaf.members] for leaf in leaves])
    at = g("Squeeze", stratum, g.ints(1))
    real = g("Gather", g.constant(tables.real), at)  # (images, n, G)
    score = g("Unsqueeze", similarity, g.ints(1))
    at_least = g.cast(g("GreaterOrEqual", real, score))
    one = g.constant(1)
    count = g.sum(at_least, 1)
    own = g("Div", g("Add", count, one), g("Add", g("Gather", g.constant(tables.counts), at), one))
    if calibration.learned is not None:
        mine = _learned(g, calibration.learned, similarity, traits)
        reached = g("GreaterOrEqual", g("Gather", _statistics(g, calibration), at), mine)
        total = g("Gather", g.constant(tables.complete_counts), at)
        return own, g(
            "Div", g("Add", g.sum(g.cast(reached), 1, keep=True), one), g("Add", total, one)
        )
    if np.isnan(real_scores).any():
        kept = g("Gather", g.constant(tables.complete), at)
        count = g.sum(g("Mul", at_least, kept), 1)
    mine = g("Unsqueeze", g("Add", count, one), g.ints(1))  # (images, 1, G)
    among = g("Gather", g.constant(tables.among), at)
    others = g("Add", among, g.cast(g("GreaterOrEqual", score, real)))
    extreme = _as_extreme(g, others, mine, real_scores.shape[1])
    total = g("Gather", g.constant(tables.complete_counts), at)
    return own, g("Div", g("Add", g.sum(extreme, 1), one), g("Add", total, one))


def _learned(g: _Graph, learned: Joint, similarity: str, traits: dict[str, str]) -> str:
    """Compute the number of `masksim.calibration.Joint`, in double precision: (images, 1)."""
    weights, offsets = learned.weights, learned.offsets
    band = _band(g, len(offsets), traits) if len(offsets) > 1 else g.ints(0)
    terms = g(
        "Mul",
        g.cast(similarity, "DOUBLE"),
        g("Gather", g.constant(weights, np.float64), band),
    )
    total = g.sum(terms, 1, keep=True)
    return g("Add", total, g("Gather", g.constant(offsets[:, None], np.float64), band))


def _statistics(g: _Graph, calibration: Calibration) -> str:
    """Learned numbers of the photos of every stratum scored for all generators: (S, n)."""
    leaves = calibration.tree.leaves()
    table = np.full((len(leaves), max(len(leaf.members) for leaf in leaves)), _LOWEST)
    for row, leaf in zip(table, leaves, strict=True):
        scores = calibration.real_scores[leaf.members]
        found = calibration.statistics(scores, calibration.traits[leaf.members])[:, 0]
        complete = ~np.isnan(found)
        # An image's own number is summed up in another order: equal ones must stay equal.
        row[: complete.sum()] = found[complete] + _TIE * (1 + np.abs(found[complete]))
    return g.constant(table, np.float64)


def _as_extreme(g: _Graph, others: str, mine: str, count: int) -> str:
    """Tell by best, then second best rank who is at least as extreme: float (images, n, 1)."""
    if count == 1:
        return g.cast(g("LessOrEqual", others, mine))
    (other, other_second), (own, own_second) = (
        g.split(g.many("TopK", [ranks, g.ints(2)], 2, axis=-1, largest=0, sorted=1)[0], -1, 1, 1)
        for ranks in (others, mine)
    )
    tied = g("And", g("Equal", other, own), g("LessOrEqual", other_second, own_second))
    return g.cast(g("Or", g("Less", other, own), tied))


# --- export ------------------------------------------------------------------------------------


def windows_of(detector: Detector) -> dict[str, Any]:
    """Say how the windows of an image are chosen: settings of `masksim.preprocess`.

    Returns
    -------
    dict
        ``recipe``, and for ``"shared"`` (heads by band, too) the arguments of `shared_windows`, for
        ``"original"`` those of `centre_window`.

    Raises
    ------
    ModelError
        Code ``model_invalid``: the branches of the detector look at different windows.
    """
    kinds = {branch.head for branch in detector.file.branches}
    if kinds <= {"shared", "bands"} and len(detector.file.branches) == 1:
        values = detector.file.branches[0].preprocess
        names = {"size": "window", "count": "windows"} | {
            name: name for name in ("smallest", "region", "spacing")
        }
        return {"recipe": "shared"} | {name: int(values[key]) for name, key in names.items()}
    found = {
        (int(branch.preprocess["window"]), bool(branch.preprocess["aligned"]))
        for branch in detector.file.branches
        if branch.head == "original"
    }
    if kinds != {"original"} or len(found) != 1:
        raise ModelError(
            "one graph holds one shared branch, or original ones with one window; this detector "
            f"has {len(detector.file.branches)} branches of {sorted(kinds)} heads"
        )
    ((size, aligned),) = found
    return {"recipe": "original", "size": size, "aligned": aligned}


def cut_windows(pixels: NDArray[np.uint8], chosen: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Cut the windows that a graph takes out of an image.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), sRGB.
    chosen
        From `windows_of`.

    Returns
    -------
    ndarray of uint8, shape (windows, height, width, 3)

    Raises
    ------
    ImageError
        Code ``too_small``.
    """
    how = dict(chosen)
    if how.pop("recipe") == "shared":
        corners, height, width = preprocess.shared_windows(*pixels.shape[:2], **how)
    else:
        height = width = how["size"]
        corners = [preprocess.centre_window(*pixels.shape[:2], **how)]
    return np.stack([pixels[y : y + height, x : x + width] for y, x in corners])


def export_onnx(detector: Detector, *, maps: bool = False) -> bytes:
    """Write a detector as one ONNX graph, from windows to false-positive rates.

    Needs the package ``onnx``. The same detector gives the same bytes.

    Parameters
    ----------
    detector
        Its `calibrations` are those that rates are measured on.
    maps
        Give the similarity maps, too.

    Returns
    -------
    bytes
        Inputs and outputs carry descriptions; docs/export.md lists them. A detector without
        calibration has no rates.

    Raises
    ------
    ModelError
        Code ``onnx_missing`` without the package; ``model_invalid`` for a detector that is no
        single graph, see `windows_of`, or whose maps have different sizes.
    """
    try:
        import onnx
        from onnx import TensorProto, checker, helper
    except ImportError as error:
        raise ModelError(
            f"a graph needs the package onnx: {install('export')}",
            code="onnx_missing",
        ) from error
    chosen = windows_of(detector)
    branches = detector.file.branches
    shared = chosen["recipe"] == "shared"
    g = _Graph()
    levels = g("Transpose", g.cast("windows"), perm=[0, 1, 4, 2, 3])
    height, width = (g.side("windows", axis) for axis in (2, 3))
    pixels = g.reshape(levels, -1, 3, height, width)
    bright = _luma(g, pixels)
    found: dict[str, str] = {}
    traits: dict[str, str] = {}
    if shared:
        found = _shared(g, branches[0], pixels, bright, "windows", maps, traits)
    else:
        spaces = sorted({str(branch.preprocess["colour"]) for branch in branches})
        planes = {space: _colour(g, pixels, space) for space in spaces}
        parts = [
            _original(g, branch, planes[str(branch.preprocess["colour"])], k, maps)
            for k, branch in enumerate(branches)
        ]
        sizes = {branch.tensors["ref_pattern_list.0"].shape for branch in branches}
        if maps and len(sizes) > 1:
            raise ModelError(f"the maps of this detector have different sizes: {sorted(sizes)}")
        for name in parts[0]:
            found[name] = g("Concat", *(part[name] for part in parts), axis=1)
    traits |= _traits(g, pixels, bright, "windows", found.pop("distance", None))
    names = [name for name in MEASURED if name in traits]
    found["traits"] = g("Concat", *(traits[name] for name in names), axis=1)
    strata: list[dict[str, Any]] = []
    best: list[str] = []
    for population, calibration in detector.calibrations.items():
        leaf = _stratum(g, calibration, traits)
        own, joint = _rates(g, calibration, found["similarity"], leaf, traits)
        rates = [own, joint, g("Add", leaf, g.ints(len(strata)))]
        strata += [
            {
                "population": population,
                "photos_are": words,
                "photos": photos,
                "sources": sources,
                "levels": _levels(calibration, node, photos),
            }
            for (words, photos, sources), node in zip(
                calibration.table(), calibration.tree.leaves(), strict=True
            )
        ]
        if best:  # the population with the largest joint rate counts, of equal ones the first
            worse = g("Greater", joint, best[1])
            rates = [g("Where", worse, *both) for both in zip(rates, best, strict=True)]
        best = rates
    if best:
        found["false_positive_rate"] = best[0]
        found["joint_rate"], found["stratum"] = (
            g("Squeeze", column, g.ints(1)) for column in best[1:]
        )

    size = chosen["size"]
    sides: tuple[Any, Any] = ("height", "width") if shared else (size, size)
    count = len(detector.generators)
    inputs = [
        helper.make_tensor_value_info(
            "windows",
            TensorProto.UINT8,
            ["images", "windows" if shared else 1, *sides, 3],
            doc_string="Windows of each image: 8-bit sRGB pixels, not resampled, channels last. "
            "All images of a batch have equally many windows of one size.",
        ),
        *(
            helper.make_tensor_value_info(trait, TensorProto.FLOAT, ["images"], doc_string=text)
            for trait, text in _GIVEN.items()
            if trait in traits
        ),
    ]
    described = _output_texts(shared)
    if shared:
        described["features"] += _more_channels(branches[0].spectrum)
    shapes: dict[str, list[Any]] = {
        "similarity": [count],
        "probability": [count],
        "false_positive_rate": [count],
        "joint_rate": [],
        "stratum": [],
        "traits": [len(names)],
    }
    if shared:
        shapes["features"] = list(branches[0].tensors["mean"].shape[-3:])
    if maps:
        tensor = "mean" if shared else "ref_pattern_list.0"
        shapes["maps"] = [count, *branches[0].tensors[tensor].shape[-3:]]
    outputs = []
    for name, shape in shapes.items():
        if name not in found:
            continue
        g.name(found[name], name)
        kind = TensorProto.INT64 if name == "stratum" else TensorProto.FLOAT
        outputs.append(
            helper.make_tensor_value_info(
                name, kind, ["images", *shape], doc_string=described[name]
            )
        )
    graph = helper.make_graph(
        g.nodes,
        "masksim",
        inputs,
        outputs,
        list(g.constants.values()),
        doc_string="Similarity of images with the spectral patterns of generators, and how rare it "
        "is among real photos. Not the probability that an image is synthetic.",
    )
    model = helper.make_model(
        graph,
        producer_name="masksim",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    about = {
        "detector": detector.name,
        "sha256": detector.sha256,
        "version": __version__,
        "generators": json.dumps(list(detector.generators)),
        "windows": json.dumps(chosen),
        "traits": json.dumps(names),
        "strata": json.dumps(strata),
        "inputs": json.dumps({entry.name: entry.doc_string for entry in inputs}),
        "outputs": json.dumps({entry.name: entry.doc_string for entry in outputs}),
        "levels": json.dumps({level: limit for limit, level in verdict.LEVELS}),
    }
    helper.set_model_props(model, {f"{PREFIX}{name}": text for name, text in about.items()})
    checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return bytes(model.SerializeToString(deterministic=True))


def _levels(calibration: Calibration, leaf: Node, photos: int) -> dict[str, float]:
    """Largest joint rate at which each level is reached among the photos of a stratum.

    The interval of a rate depends on which photos it counts: here the best among themselves.
    """
    found: dict[str, float] = {}
    for limit, level in verdict.LEVELS:

        def missed(count: int, limit: float = limit) -> bool:
            rate, interval = calibration.rate_of(leaf, count)
            return rate > limit or interval.high > verdict.MARGIN * limit

        counts = range(round(limit * photos) + 1)
        reached = bisect.bisect_left(counts, True, key=missed)
        if reached:
            found[level] = calibration.rate_of(leaf, reached - 1)[0]
    return found


def _output_texts(shared: bool) -> dict[str, str]:
    what = "channel, row and column of cells" if shared else "channel, row and column"
    return {
        "similarity": "Cosine with each generator's reference, in [-1, 1].",
        "probability": "Logistic output of each head, for equally many real and synthetic "
        "images; not the probability that this image is synthetic.",
        "false_positive_rate": "Share of real photos that score at least as high for this "
        "generator alone, in (0, 1].",
        "joint_rate": "Share of real photos that score at least as high for some generator, "
        "in (0, 1]: the rate of the verdict, corrected for having asked all generators.",
        "stratum": "Which photos the rates were measured on: an index into the metadata "
        f"{PREFIX}strata.",
        "traits": f"What the windows show; the names are in the metadata {PREFIX}traits.",
        "features": "Cells of mean log-power spectra, natural logarithm of levels squared; rows "
        "from the lowest frequency -1/2 upwards, columns from 0.",
        "maps": f"Contribution of each {what} to each generator's similarity, which is their sum.",
    }


def _more_channels(spectrum: Mapping[str, Any]) -> str:
    found = ""
    if (parts := spectrum.get("parts", 1)) > 1:
        found += (
            f" Luma's channels come {parts} times: for the segments of least energy, those of "
            "more, and so on."
        )
    if spectrum.get("coherence"):
        found += (
            " The last three channels are the coherence of R with G, G with B and R with B: mean "
            "cosines of phase differences."
        )
    return found


def write_onnx(
    detector: Detector, path: str | os.PathLike[str], *, maps: bool = False
) -> dict[str, Any]:
    """Write `export_onnx` to a file.

    Returns
    -------
    dict
        ``files`` and ``bytes``.

    Raises
    ------
    ModelError
        As `export_onnx`.
    UsageError
        The file cannot be written.
    """
    graph = export_onnx(detector, maps=maps)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(graph)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    return {"files": [str(target)], "bytes": len(graph)}


def write_openvino(
    detector: Detector, path: str | os.PathLike[str], *, maps: bool = False
) -> dict[str, Any]:
    """Write a detector as OpenVINO's intermediate representation, in single precision.

    Needs the packages ``onnx`` and ``openvino``.

    Parameters
    ----------
    detector, maps
        See `export_onnx`.
    path
        A name ending in ``.xml``; the weights lie beside it, ``.bin``. Any other is a folder, in
        which they are named for the detector.

    Returns
    -------
    dict
        ``files`` and ``bytes``.

    Raises
    ------
    ModelError
        As `export_onnx`; code ``openvino_missing`` without that package.
    UsageError
        The files cannot be written.
    """
    openvino = import_openvino()
    graph = export_onnx(detector, maps=maps)
    model = openvino.Core().read_model(graph)
    for name, text in metadata(graph).items():
        model.set_rt_info(text, ["masksim", name])
    target = Path(path)
    if target.suffix.lower() != ".xml":
        target = target / f"{detector.name}.xml"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Half precision would move similarities by more than the calibration tells apart.
        openvino.save_model(model, target, compress_to_fp16=False)
        files = [target, target.with_suffix(".bin")]
        size = sum(file.stat().st_size for file in files)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"cannot write {target}: {error}") from error
    return {"files": [str(file) for file in files], "bytes": size}


def import_openvino() -> Any:
    """Return the module ``openvino``.

    Raises
    ------
    ModelError
        Code ``openvino_missing``.
    """
    try:
        import openvino
    except ImportError as error:
        raise ModelError(
            f"this needs the package openvino: {install('export')}",
            code="openvino_missing",
        ) from error
    return openvino


def metadata(graph: bytes) -> dict[str, str]:
    """Read what an ONNX graph says of itself: text by name."""
    import onnx

    found = onnx.load_model_from_string(graph).metadata_props
    return {entry.key.removeprefix(PREFIX): entry.value for entry in found}

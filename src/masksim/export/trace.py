"""Arrays that write ONNX nodes: a function over the array API becomes a graph by being called.

`Writer` is the namespace of these arrays, as far as the route of an image needs one. So a
graph is made of the functions that detection runs, not of a second text of their formulas. The same
node is written only once, and `Writer.used` leaves out those that no output depends on.

The operators are those of opset 15, which any ONNX Runtime since 1.10 reads. Fourier transforms are
matrix products: the operator ``DFT`` is younger, and slower in ONNX Runtime.
"""

# ruff: noqa: D102 - the standard of the array API says what its functions do

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksim.errors import ModelError
from masksim.residual import OPSET

Size: TypeAlias = "int | Array"
"""Length of an axis: a number, or a value of the graph where it is free."""

_END = np.iinfo(np.int32).max
_BEFORE_FIRST = np.iinfo(np.int32).min


def _operators(kind: str, dtype: Any = None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make an operator of two values, and the same with its sides exchanged."""

    def operator(self: _Operators, other: Any) -> Any:
        return self.xp.both(kind, self, other, dtype)

    def exchanged(self: _Operators, other: Any) -> Any:
        return self.xp.both(kind, other, self, dtype)

    return operator, exchanged


def _function(kind: str) -> Callable[[Writer, Any], Any]:
    """Make a function of each element."""
    return lambda xp, x: xp.each(kind, x)


class _Operators:
    """The operators of values of a graph."""

    xp: Writer

    __array_ufunc__ = None  # NumPy's numbers leave the operators to this class
    __hash__ = None  # type: ignore[assignment]

    def __array_namespace__(self, api_version: str | None = None) -> Writer:
        return self.xp

    def __neg__(self) -> Any:
        return self.xp.each("Neg", self)

    def __invert__(self) -> Any:
        return self.xp.each("Not", self)

    def __pow__(self, power: int) -> Any:
        if power != 2:
            raise NotImplementedError(f"a power of {power}")
        return self * self

    def __truediv__(self, other: Any) -> Any:
        whole = isinstance(self, Array) and self.dtype.kind in "iu"
        return self.xp.both("Div", self.xp.astype(self, np.float32) if whole else self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.xp.both("Div", other, self)

    def __floordiv__(self, other: Any) -> Any:
        # The operator cuts towards zero.
        return self.xp.both("Div", self - self % other, other)

    __add__, __radd__ = _operators("Add")
    __sub__, __rsub__ = _operators("Sub")
    __mul__, __rmul__ = _operators("Mul")
    __mod__, __rmod__ = _operators("Mod")
    __and__, __rand__ = _operators("And")
    __or__, __ror__ = _operators("Or")
    __lt__, __gt__ = _operators("Less", np.bool_)
    __le__, __ge__ = _operators("LessOrEqual", np.bool_)
    __eq__ = _operators("Equal", np.bool_)[0]


class Array(_Operators):
    """A value of a graph; its operators add nodes.

    Attributes
    ----------
    xp
        What it is written by: its namespace.
    name
        In the graph.
    dtype
        NumPy's.
    sizes
        Lengths of the axes, None where they are free. `shape` gives these as values of the graph.
    """

    def __init__(
        self, xp: Writer, name: str, dtype: np.dtype[Any], sizes: Sequence[int | None]
    ) -> None:
        self.xp, self.name, self.dtype, self.sizes = xp, name, dtype, tuple(sizes)

    @property
    def ndim(self) -> int:
        return len(self.sizes)

    @property
    def shape(self) -> tuple[Size, ...]:
        return tuple(
            self.xp.size(self, axis) if size is None else size
            for axis, size in enumerate(self.sizes)
        )

    def __bool__(self) -> NoReturn:
        raise TypeError("a value of a graph is not known while the graph is written")

    def __iter__(self) -> NoReturn:
        raise TypeError("a value of a graph has no elements while the graph is written")

    def __getitem__(self, key: Any) -> Array:
        """Take slices, single positions and new axes, as in NumPy."""
        keys = list(key) if isinstance(key, tuple) else [key]
        count = sum(k is not None and k is not Ellipsis for k in keys)
        rest: list[Any] = [slice(None)] * (self.ndim - count)
        at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
        keys[at : at + 1] = rest
        axis, cuts, dropped, added = 0, [], [], []
        sizes: list[int | None] = []
        for k in keys:
            if k is None:
                added.append(len(sizes))
                sizes.append(1)
                continue
            if isinstance(k, slice):
                sizes.append(_sliced(self.sizes[axis], k))
            else:
                dropped.append(axis)
                k = slice(k, k + 1 if k != -1 else None)
            if not _is_whole(k):
                step = k.step or 1
                start, stop = (0, _END) if step > 0 else (_END, _BEFORE_FIRST)
                start = start if k.start is None else k.start
                cuts.append((start, stop if k.stop is None else k.stop, axis, step))
            axis += 1
        out = self.name
        if cuts:
            out = self.xp.node("Slice", out, *map(self.xp.ints, zip(*cuts, strict=True)))
        if dropped:
            out = self.xp.node("Squeeze", out, self.xp.ints(dropped))
        if added:
            out = self.xp.node("Unsqueeze", out, self.xp.ints(added))
        return Array(self.xp, out, self.dtype, sizes)

    def __matmul__(self, other: Any) -> Array:
        return self.xp.matmul(self, self.xp.asarray(other))


def _is_whole(k: slice) -> bool:
    return k.start is None and k.stop is None and k.step is None


def _sliced(size: int | None, k: slice) -> int | None:
    if _is_whole(k):
        return size
    if size is None or any(isinstance(end, Array) for end in (k.start, k.stop)):
        return None
    return len(range(*k.indices(size)))


class Halves(_Operators):
    """Values at the frequencies u and -u of the rows of a transform, u from 0 to n // 2.

    Both come of the same products, and are not put together before they are averaged.
    """

    def __init__(self, above: Array, below: Array) -> None:
        self.xp, self.above, self.below = above.xp, above, below

    def map(self, function: Callable[..., Array], *more: Any) -> Halves:
        """Apply a function to both, each with the same further arguments."""
        return Halves(function(self.above, *more), function(self.below, *more))

    def joined(self, n: int) -> Array:
        """Put them together, in FFT order: (..., n // 2 + 1, m) twice to (..., n, m)."""
        u = np.fft.fftfreq(n, 1 / n).round().astype(np.int64)
        rows = np.where(u >= 0, u, n // 2 + 1 - u)
        return self.xp.take(self.xp.concat([self.above, self.below], -2), rows, -2)


@dataclass(frozen=True, eq=False)
class Complex:
    """A complex value, as a transform gives it: real and imaginary part."""

    real: Any
    imag: Any

    def __array_namespace__(self, api_version: str | None = None) -> Writer:
        xp: Writer = self.real.xp
        return xp

    def __truediv__(self, other: Any) -> Complex:
        return Complex(self.real / other, self.imag / other)


@dataclass(frozen=True, eq=False)
class Segments:
    """Square segments of planes, to be weighted and transformed: they are never copied as a whole.

    Attributes
    ----------
    planes
        (B, C, H, W).
    side, hop
        Side of a segment, and the distance of neighbours, pixels.
    line
        What each axis of a segment is weighted by, if it is.
    """

    planes: Array
    side: int
    hop: int
    line: NDArray[np.float64] | None = None

    __array_ufunc__ = None

    def __array_namespace__(self, api_version: str | None = None) -> Writer:
        return self.planes.xp

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.planes.dtype

    def __mul__(self, window: NDArray[np.floating[Any]]) -> Segments:
        """Weight them by a window (side, side), the product of the same line along both axes."""
        line = np.sqrt(np.diag(window).astype(np.float64))
        if self.line is not None or not np.allclose(np.outer(line, line), window, atol=1e-6):
            raise NotImplementedError("a window that is no product, or a second one")
        return replace(self, line=line)


class _Fourier:
    """The extension ``fft`` of the namespace."""

    def __init__(self, xp: Writer) -> None:
        self._xp = xp

    def rfftn(
        self, x: Array | Segments, axes: tuple[int, int] = (-2, -1), norm: str | None = None
    ) -> Complex:
        """Transform the last two axes (n, m) to (n, m // 2 + 1).

        Segments are transformed to `Halves` of (B, C, down, side // 2 + 1, across, side // 2): a
        mean over all segments is one over the axes 2 and 4. The column of the Nyquist frequency is
        left out, as no feature uses it.
        """
        if axes != (-2, -1):
            raise NotImplementedError(f"a transform along {axes}")
        if isinstance(x, Segments):
            return self._segments(x, norm)
        n, m = x.sizes[-2] or 0, x.sizes[-1] or 0
        cosines, sines = (w.T.astype(np.float32) for w in _waves(m, m // 2 + 1, norm))
        real, imag = self._columns(x @ cosines, x @ -sines, _waves(n, n // 2 + 1, norm))
        return Complex(real.joined(n), imag.joined(n))

    def _segments(self, x: Segments, norm: str | None) -> Complex:
        xp, n = self._xp, x.side
        # Whole rows are copied to segments: fast. So columns are made rows, and rows again.
        tiles = xp.segments(xp.matrix_transpose(x.planes), n, x.hop)  # (B, C, across, n, H)
        cosines, sines = _waves(n, n // 2, norm, x.line)
        parts = []
        for wave in (cosines, -sines):
            part = xp.matmul(xp.asarray(wave.astype(np.float32)), tiles)
            part = xp.reshape(part, (*part.shape[:2], -1, part.shape[-1]))
            parts.append(xp.segments(xp.matrix_transpose(part), n, x.hop))

        def apart(part: Array) -> Array:
            return xp.reshape(part, (*part.shape[:4], -1, n // 2))

        real, imag = parts
        found = self._columns(real, imag, _waves(n, n // 2 + 1, norm, x.line))
        return Complex(*(part.map(apart) for part in found))

    def _columns(
        self, real: Array, imag: Array, waves: Sequence[NDArray[np.float64]]
    ) -> tuple[Halves, Halves]:
        """Transform along the columns: real and imaginary part."""
        cosines, sines = (self._xp.asarray(wave.astype(np.float32)) for wave in waves)
        a, b, c, d = cosines @ real, sines @ imag, cosines @ imag, sines @ real
        return Halves(a + b, a - b), Halves(c - d, c + d)

    def fftshift(self, x: Array, axes: Sequence[int]) -> Array:
        for axis in axes:
            x = self._xp.roll(x, x.sizes[axis] // 2, axis)  # type: ignore[operator]
        return x


def _waves(
    n: int, count: int, norm: str | None, line: NDArray[np.float64] | None = None
) -> list[NDArray[np.float64]]:
    """Cosines and sines (count, n) of the frequencies from 0, times a window along one axis."""
    # The integer part of the angles is taken out first: exact for any size.
    turns = 2 * np.pi / n * (np.outer(np.arange(count), np.arange(n)) % n)
    scale = {"ortho": 1 / np.sqrt(n), None: 1.0}[norm]
    return [wave(turns) * scale * (1 if line is None else line) for wave in (np.cos, np.sin)]


class Writer:
    """The namespace of `Array`: nodes and constants, named in the order they come.

    Functions are those of the array API standard, with their arguments; those of its arguments that
    are not taken are not needed here.
    """

    __name__ = "masksim.export.trace"  # as of a module, which other namespaces are

    bool, int32, int64 = np.dtype(np.bool_), np.dtype(np.int32), np.dtype(np.int64)
    uint8, float32, float64 = np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64)

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._arrays = helper, numpy_helper
        self.fft = _Fourier(self)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: dict[str, Array] = {}
        self._known: dict[tuple[Any, ...], Any] = {}

    # --- nodes ---

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; the same node only once."""
        return self.many(kind, inputs, 1, **attributes)[0]

    def many(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        key = (kind, tuple(inputs), count, repr(sorted(attributes.items())))
        if key not in self._known:
            outputs = [f"{kind.lower()}_{len(self.nodes)}_{k}" for k in range(count)]
            self.nodes.append(self._helper.make_node(kind, list(inputs), outputs, **attributes))
            self._known[key] = outputs
        found: list[str] = self._known[key]
        return found

    def constant(self, values: Any, dtype: Any) -> Array:
        array = np.ascontiguousarray(values, dtype=dtype)
        array = array.reshape(np.shape(values))  # of a scalar it would be (1,)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._known:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = self._arrays.from_array(array, name)
            self._known[key] = name
        return Array(self, self._known[key], array.dtype, array.shape)

    def ints(self, values: Iterable[Size]) -> str:
        """Give sizes or positions as one value."""
        found = list(values)
        if not any(isinstance(value, Array) for value in found):
            return self.constant(np.array(found), np.int64).name
        one = self.ints([1])
        parts = [
            self.node("Reshape", value.name, one)
            if isinstance(value, Array)
            else self.ints([value])
            for value in found
        ]
        return self.node("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def input(self, name: str, dtype: Any, sizes: Sequence[int | None]) -> Array:
        """Give an input of the graph."""
        return self.inputs.setdefault(name, Array(self, name, np.dtype(dtype), sizes))

    def size(self, x: Array, axis: int) -> Array:
        """Give the length of an axis as a value of the graph."""
        at = self.constant(axis, np.int64).name
        return Array(self, self.node("Gather", self.node("Shape", x.name), at), self.int64, ())

    def inline(self, source: bytes, x: Array, channels: int) -> Array:
        """Put another graph of one input and one output here: planes to planes, any H and W."""
        import onnx

        model = onnx.load_model_from_string(source)
        found = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
        if found != {OPSET}:
            raise ModelError(f"the residual graph is of opset {found}, expected {OPSET}")
        names = {model.graph.input[0].name: x.name, "": ""}
        for entry in model.graph.initializer:
            names[entry.name] = self.asarray(self._arrays.to_array(entry)).name
        for node in model.graph.node:
            attributes = {
                entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute
            }
            inputs = [names[name] for name in node.input]
            outputs = self.many(node.op_type, inputs, len(node.output), **attributes)
            names.update(zip(node.output, outputs, strict=True))
        out = names[model.graph.output[0].name]
        return Array(self, out, x.dtype, (x.sizes[0], channels, None, None))

    def output(self, x: Array, name: str) -> None:
        """Give a value the name of an output."""
        self.nodes.append(self._helper.make_node("Identity", [x.name], [name]))

    def used(self, outputs: Iterable[str]) -> tuple[list[Any], list[Any]]:
        """Give the nodes that outputs depend on, and the constants."""
        wanted, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                nodes.append(node)
        constants = [entry for name, entry in self.constants.items() if name in wanted]
        return nodes[::-1], constants

    # --- values of one element after the other ---

    def each(self, kind: str, x: Any, dtype: Any = None) -> Any:
        """Apply an operator to each element."""
        if isinstance(x, Halves):
            return x.map(lambda half: self.each(kind, half, dtype))
        return Array(self, self.node(kind, x.name), np.dtype(dtype or x.dtype), x.sizes)

    def both(self, kind: str, a: Any, b: Any, dtype: Any = None) -> Any:
        """Apply an operator to the elements of two values, of one type and broadcast."""
        if isinstance(a, Halves) and isinstance(b, Halves):
            pairs = ((a.above, b.above), (a.below, b.below))
            return Halves(*(self.both(kind, *pair, dtype) for pair in pairs))
        if isinstance(a, Halves):
            return a.map(lambda half: self.both(kind, half, b, dtype))
        a, b = self._of_one_type(a, b)
        sizes = _broadcast(a.sizes, b.sizes)
        return Array(self, self.node(kind, a.name, b.name), np.dtype(dtype or a.dtype), sizes)

    def _of_one_type(self, *values: Any) -> list[Array]:
        types = [v.dtype for v in values if isinstance(v, Array) or np.ndim(v)]
        floats = [dtype for dtype in types if dtype.kind == "f"]
        if not floats and any(isinstance(v, (float, np.floating)) for v in values):
            floats = [self.float32]
        dtype = np.result_type(*(floats or types))  # single precision stays, with integers, too
        return [
            self.astype(v, dtype) if isinstance(v, Array) else self.constant(v, dtype)
            for v in values
        ]

    def astype(self, x: Any, dtype: Any, copy: Any = True) -> Any:
        if isinstance(x, Halves):
            return x.map(lambda half: self.astype(half, dtype))
        dtype = np.dtype(dtype)
        if dtype == x.dtype:
            return x
        to = self._helper.np_dtype_to_tensor_dtype(dtype)
        return Array(self, self.node("Cast", x.name, to=to), dtype, x.sizes)

    def asarray(self, values: Any, dtype: Any = None, device: None = None) -> Array:
        if isinstance(values, Array):
            return values if dtype is None else self.astype(values, dtype)
        return self.constant(values, dtype or np.asarray(values).dtype)

    def full_like(self, x: Array, value: float, dtype: Any = None) -> Array:
        one = self.constant(value, dtype or x.dtype)
        return Array(
            self, self.node("Expand", one.name, self.node("Shape", x.name)), one.dtype, x.sizes
        )

    def zeros_like(self, x: Array, dtype: Any = None) -> Array:
        return self.full_like(x, 0, dtype)

    def arange(self, stop: Size) -> Array:
        if not isinstance(stop, Array):
            return self.constant(np.arange(stop), np.int64)
        return self._range(stop, 1)

    def _range(self, stop: Array, step: int) -> Array:
        ends = (self.constant(k, np.int64).name for k in (0, step))
        start, by = ends
        return Array(self, self.node("Range", start, stop.name, by), self.int64, (None,))

    def abs(self, x: Any) -> Any:
        if isinstance(x, Complex):
            return self.sqrt(x.real**2 + x.imag**2)
        return self.each("Abs", x)

    exp, log, sqrt = _function("Exp"), _function("Log"), _function("Sqrt")

    def real(self, x: Complex) -> Any:
        return x.real

    def imag(self, x: Complex) -> Any:
        return x.imag

    def maximum(self, a: Any, b: Any) -> Any:
        return self.both("Max", a, b) if isinstance(a, Array) or isinstance(b, Array) else max(a, b)

    def minimum(self, a: Array, b: Array) -> Array:
        return self.both("Min", a, b)

    def clip(self, x: Array, min: Any = None, max: Any = None) -> Array:
        ends = ("" if end is None else self.constant(end, x.dtype).name for end in (min, max))
        return Array(self, self.node("Clip", x.name, *ends), x.dtype, x.sizes)

    def where(self, condition: Array, a: Any, b: Any) -> Array:
        a, b = self._of_one_type(a, b)
        sizes = _broadcast(_broadcast(a.sizes, b.sizes), condition.sizes)
        return Array(self, self.node("Where", condition.name, a.name, b.name), a.dtype, sizes)

    # --- sums ---

    def sum(self, x: Array, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Array:
        x = x if dtype is None else self.astype(x, dtype)
        axes, sizes = _reduced(x, axis, keepdims)
        out = self.node("ReduceSum", x.name, self.ints(axes), keepdims=int(keepdims))
        return Array(self, out, x.dtype, sizes)

    def mean(self, x: Array, axis: Any = None, keepdims: Any = False) -> Array:
        axes, sizes = _reduced(x, axis, keepdims)
        out = self.node("ReduceMean", x.name, axes=axes, keepdims=int(keepdims))
        return Array(self, out, x.dtype, sizes)

    def max(self, x: Array, axis: Any = None, keepdims: Any = False) -> Array:
        axes, sizes = _reduced(x, axis, keepdims)
        out = self.node("ReduceMax", x.name, axes=axes, keepdims=int(keepdims))
        return Array(self, out, x.dtype, sizes)

    def count_nonzero(self, x: Array, axis: Any = None) -> Array:
        return self.sum(self.astype(x, np.int64), axis)

    def matmul(self, a: Array, b: Array) -> Array:
        if b.ndim == 1:  # of a few elements: no case for the operator
            each = [a[..., k] * b[k] for k in range(b.sizes[0] or 0)]
            return sum(each[1:], each[0])
        sizes = (*_broadcast(a.sizes[:-2], b.sizes[:-2]), a.sizes[-2], b.sizes[-1])
        a, b = self._of_one_type(a, b)
        return Array(self, self.node("MatMul", a.name, b.name), a.dtype, sizes)

    def smallest(self, x: Array, count: int) -> Array:
        """Give the smallest values along the last axis, in order. Not of the standard."""
        out = self.many("TopK", [x.name, self.ints([count])], 2, axis=-1, largest=0, sorted=1)
        return Array(self, out[0], x.dtype, (*x.sizes[:-1], count))

    # --- places ---

    def reshape(self, x: Array, shape: Sequence[Size]) -> Array:
        free = [size for size in shape if isinstance(size, Array)]
        if len(free) == 1 and -1 not in [size for size in shape if isinstance(size, int)]:
            shape = [-1 if isinstance(size, Array) else size for size in shape]
        sizes = [size if isinstance(size, int) and size >= 0 else None for size in shape]
        return Array(self, self.node("Reshape", x.name, self.ints(shape)), x.dtype, sizes)

    def permute_dims(self, x: Array, axes: Sequence[int]) -> Array:
        out = self.node("Transpose", x.name, perm=list(axes))
        return Array(self, out, x.dtype, [x.sizes[axis] for axis in axes])

    def matrix_transpose(self, x: Array) -> Array:
        axes = list(range(x.ndim))
        return self.permute_dims(x, [*axes[:-2], axes[-1], axes[-2]])

    def moveaxis(self, x: Array, source: int, destination: int) -> Array:
        axes = list(range(x.ndim))
        axes.insert(destination % x.ndim, axes.pop(source))
        return self.permute_dims(x, axes)

    def concat(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        axis %= arrays[0].ndim
        lengths = [x.sizes[axis] for x in arrays]
        sizes = list(arrays[0].sizes)
        sizes[axis] = None if None in lengths else sum(lengths)  # type: ignore[arg-type]
        out = self.node("Concat", *(x.name for x in arrays), axis=axis)
        return Array(self, out, arrays[0].dtype, sizes)

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        place = axis % (arrays[0].ndim + 1)
        key = (*(slice(None),) * place, None)
        return self.concat([x[(*key, ...)] for x in arrays], place)

    def roll(self, x: Array, shift: int, axis: int) -> Array:
        axis %= x.ndim
        at = -shift % (x.sizes[axis] or 1)
        key = (slice(None),) * axis
        return self.concat([x[(*key, slice(at, None))], x[(*key, slice(None, at))]], axis)

    def flip(self, x: Array, axis: Sequence[int]) -> Array:
        back = [slice(None)] * x.ndim
        for k in axis:
            back[k] = slice(None, None, -1)
        return x[tuple(back)]

    def take(self, x: Any, indices: Any, axis: int) -> Any:
        if isinstance(x, Complex):
            return Complex(self.take(x.real, indices, axis), self.take(x.imag, indices, axis))
        if isinstance(x, Halves):
            return x.map(lambda half: self.take(half, indices, axis))
        axis %= x.ndim
        at = self.asarray(indices)
        out = self.node("Gather", x.name, at.name, axis=axis)
        return Array(self, out, x.dtype, (*x.sizes[:axis], *at.sizes, *x.sizes[axis + 1 :]))

    def segments(self, x: Array, side: int, hop: int) -> Array:
        """Take segments of rows: (B, C, n, m) -> (B, C, k, side, m). Not of the standard."""
        starts = self._range(x.shape[2] - (side - 1), hop)  # type: ignore[arg-type]
        return self.take(x, starts[:, None] + self.arange(side)[None, :], 2)

    def with_border(self, x: Array) -> Array:
        """Add a last row and column of 0 to planes (B, C, H, W). Not of the standard."""
        out = self.node("Pad", x.name, self.ints([0] * 6 + [1, 1]))
        return Array(self, out, x.dtype, (*x.sizes[:2], None, None))


def _broadcast(a: Sequence[int | None], b: Sequence[int | None]) -> tuple[int | None, ...]:
    count = max(len(a), len(b))
    a, b = ((*(1,) * (count - len(sizes)), *sizes) for sizes in (a, b))
    return tuple(
        two if one == 1 else one if two in (1, None) else two for one, two in zip(a, b, strict=True)
    )


def _reduced(x: Array, axis: Any, keep: Any) -> tuple[list[int], list[int | None]]:
    given = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = sorted(k % x.ndim for k in given)
    sizes = [1 if k in axes else size for k, size in enumerate(x.sizes) if keep or k not in axes]
    return axes, sizes

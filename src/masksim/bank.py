"""The bank of fixed residuals: what the shared recipe takes of a window before its spectra.

It has no weights. `bank_residual` computes it by NumPy in the processor's own cache, several times
as fast as its ONNX graph, which `bank_nodes` writes: detector files hold the graph, other runtimes
and accelerators run it. Both take their constants from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksim.errors import UsageError

BankKind: TypeAlias = Literal["cross difference", "clipped", "normalised", "median"]

BANK: tuple[BankKind, ...] = ("cross difference", "clipped", "normalised", "median")
"""The residuals, in the order of the output's channels; see `masksim.residual.ResidualConfig`."""

BANK_LEVELS = 255.0  # the bank works in 8-bit levels
BANK_CLIP = 3.0  # levels
BANK_FLOOR = 2.0  # levels
BANK_BOX = 9  # side of the square whose deviation normalises, pixels
# Pairs whose exchange (smaller first) leaves the median of nine values at index 4.
MEDIAN_NETWORK = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip

BANK_GRAPH_SHA256 = "9fc9f9b0b72ff89bed76a9543134e8a164452d2606d5e3b7fdffeffc5ddebce7"
"""Of the graph that `bank_nodes` makes: a detector file that holds it is known to hold the bank."""

# Pixels of a strip of rows: some ten buffers of this size stay in a core's own cache.
_BANK_STRIP = 24576


def bank_residual(
    pixels: NDArray[np.float32], kinds: Sequence[BankKind] = BANK
) -> NDArray[np.float32]:
    """Compute the bank (see `masksim.residual.ResidualConfig`) in one thread, without its graph.

    Parameters
    ----------
    pixels : ndarray of float32, shape (B, C, H, W)
        In [0, 1]; H and W at least 2.
    kinds
        Those of `BANK` that are wanted, K of them.

    Returns
    -------
    ndarray of float32, shape (B, K C, H, W)
        In 8-bit levels.

    Raises
    ------
    UsageError
        If `pixels` has another type or shape, or `kinds` are not some of `BANK`, each once.
    """
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(BANK):
        raise UsageError(f"kinds must be some of {list(BANK)}, each once, got {list(kinds)}")
    if pixels.ndim != 4 or pixels.dtype != np.float32 or min(pixels.shape[2:]) < 2:
        raise UsageError(
            f"pixels must be float32 of shape (B, C, H, W), at least 2 x 2, got {pixels.dtype} of "
            f"shape {tuple(pixels.shape)}"
        )
    batch, channels, height, width = pixels.shape
    out = np.empty((batch, len(kinds), channels, height, width), dtype=np.float32)
    rows = min(height, max(8, _BANK_STRIP // width))
    for b in range(batch):
        for c in range(channels):
            for top in range(0, height, rows):
                strip = out[b, :, c, top : top + rows]
                _bank_strip(pixels[b, c], dict(zip(kinds, strip, strict=True)), top)
    return out.reshape(batch, len(kinds) * channels, height, width)


def _bank_strip(
    plane: NDArray[np.float32], out: Mapping[str, NDArray[np.float32]], top: int
) -> None:
    """Fill some rows of kinds of the bank, each (rows, W), from row `top` of a plane, (H, W).

    The strip lies in one line of memory, with a margin left and right, so that a neighbour of all
    pixels is a slice of that line. What such a slice reads across the end of a row falls into the
    margin, which is cut off or set to what the border asks for.
    """
    height, width = plane.shape
    rows = next(iter(out.values())).shape[0]
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

    if "median" in out:
        np.subtract(
            grid[reach : reach + rows, inner],
            _median(x, (reach - 1) * line, line, rows)[:, reach - 1 : reach - 1 + width],
            out=out["median"],
        )
    if out.keys() == {"median"}:
        return

    cross = x[line + 1 :] + x[:size]
    cross -= x[line : line + size] + x[1 : 1 + size]
    difference = cross[: -2 * reach].reshape(-1, line)
    difference[:, :reach] = difference[:, reach + width - 1 :] = 0
    difference[: start - first] = difference[max(0, height - 1 - first) :] = 0
    kept = difference[reach : reach + rows, inner]
    if "cross difference" in out:
        out["cross difference"][...] = kept
    if "clipped" in out:
        np.clip(kept, -BANK_CLIP, BANK_CLIP, out=out["clipped"])
    if "normalised" in out:
        power = _nine(_nine(cross * cross, 1), line)
        power *= np.float32(1 / BANK_BOX**2)
        power += np.float32(BANK_FLOOR**2)
        deviation = np.sqrt(power, out=power).reshape(rows, line)
        np.divide(kept, deviation[:, :width], out=out["normalised"])


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


def bank_nodes(nodes: list[Any], constant: Callable[[str, NDArray[Any]], str]) -> None:
    """Add the nodes of the bank, from ``pixels`` to ``residual``.

    Parameters
    ----------
    nodes
        They are added here.
    constant
        Adds a constant by name, and returns the name.
    """
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

"""`masksim.show.maps`: pictures show the values, under titles that fit."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fake_detector as fake  # type: ignore[import-not-found]
from masksim.errors import UsageError
from masksim.results import PatternPlane
from masksim.show import maps as pictures
from masksim.show.colours import diverging_colours
from masksim.show.maps import maps_png, patterns_png


def opened(data: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((96, 96), abs=0.1)
        return np.asarray(image.convert("RGB")).astype(np.int64)


def one_cell(n: int, row: int, column: int) -> NDArray[np.float64]:
    values = np.zeros((n, n))
    values[row, column] = 0.5
    return values


@pytest.mark.parametrize(("n", "scale"), [(40, 6), (64, 4), (256, 1), (15, 16)])
def test_a_cell_is_drawn_where_it_is_and_nowhere_else(n: int, scale: int) -> None:
    here, there = (2, 5), (n - 3, n - 1)
    first, second = (
        opened(maps_png(fake.similarity_map("sd1", one_cell(n, *at)))) for at in (here, there)
    )
    changed = (first != second).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert changed.sum() == 2 * scale**2
    assert np.ptp(rows) + 1 == (there[0] - here[0] + 1) * scale
    assert np.ptp(columns) + 1 == (there[1] - here[1] + 1) * scale
    top, left = int(rows.min()), int(columns.min())
    red, _, blue = first[top, left]
    assert red > blue
    np.testing.assert_array_equal(second[top, left], diverging_colours(np.zeros(1), 1.0)[0])


@pytest.mark.parametrize("n", [15, 64, 239, 240, 289, 478, 512, 1024, 1100])
def test_panels_have_a_sensible_side_and_keep_the_mean(n: int) -> None:
    side = pictures._side(n)
    assert 160 <= side <= 320
    values = np.random.default_rng(n).normal(size=(n, n))
    shown = pictures._cells(values, side)
    assert shown.shape == (min(n, side),) * 2
    whole = n <= side or n % side == 0
    assert math.isclose(shown.mean(), values.mean(), abs_tol=1e-6 if whole else 0.01)


@pytest.mark.parametrize("n", [15, 64])
@pytest.mark.parametrize(
    ("spacing", "labels"),
    [
        (1.0, ["-0.5", "-0.25", "0", "0.25", "0.5"]),
        (2.0, ["-0.25", "-0.125", "0", "0.125", "0.25"]),
    ],
)
def test_ticks_stand_at_the_middle_of_their_cells(
    n: int, spacing: float, labels: list[str]
) -> None:
    scale = 4
    axis = np.fft.fftshift(np.fft.fftfreq(n, spacing))
    places, found = zip(*pictures._ticks(axis, n * scale), strict=True)
    assert list(found) == labels
    assert list(places) == sorted(places)
    assert places[2] == (n // 2 + 0.5) * scale - 0.5  # frequency 0
    assert 0 <= places[0] <= scale
    assert n * scale - 1 - scale <= places[-1] <= n * scale - 1
    if n == 64:
        assert places[3] == (48 + 0.5) * scale - 0.5


def test_many_planes_stand_in_two_columns() -> None:
    values = [np.ones((16, 16))] * 5
    four, five = (opened(maps_png(fake.similarity_map("sd1", *values[:k]))) for k in (4, 5))
    assert five.shape[1] > 1.9 * four.shape[1]
    assert five.shape[0] < four.shape[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "+1.00"),
        (-0.0123456, "-0.0123"),
        (3.14e-6, "+3.1e-6"),
        (-123.0, "-123"),
        (2.5e12, "+2.5e12"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert pictures._number(value) == text


def test_one_several_or_all_generators() -> None:
    values = np.random.default_rng(3).normal(size=(32, 32))
    first, second = (
        fake.similarity_map("sd1", values),
        fake.similarity_map("dalle3", values, values),
    )
    alone = maps_png(first)
    assert alone == maps_png([first]) == maps_png({"sd1": first})
    single, double = opened(alone), opened(maps_png(second))
    both = opened(maps_png(iter([first, second])))
    assert single.shape[1] == double.shape[1] == both.shape[1]
    assert double.shape[0] > single.shape[0]
    assert max(double.shape[0], single.shape[0]) < both.shape[0]
    np.testing.assert_array_equal(both[:300], single[:300])


def test_titles_with_rates_and_any_names(tmp_path: Path) -> None:
    item = fake.similarity_map("Générateur 中 " * 30, np.ones((32, 32)))
    detection = fake.detection({item.generator: 0.01, "x": 0.5}, image=fake.facts("n\x1bame" * 100))
    plain, titled = opened(maps_png(item)), opened(maps_png(item, detection=detection))
    assert plain.shape[1] == titled.shape[1]
    assert maps_png(item, tmp_path / "a.png") == (tmp_path / "a.png").read_bytes()


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    good = fake.plane("p", np.ones((8, 8)))
    broken = np.ones((8, 8))
    broken[3, 3] = np.nan
    bad = [
        [],
        fake.SimilarityMap("sd1", 0.0, ()),
        fake.similarity_map("sd1", broken),
        fake.SimilarityMap("sd1", 0.0, (dataclasses.replace(good, fx=good.fx[1:]),)),
    ]
    for maps in bad:
        with pytest.raises(UsageError):
            maps_png(maps)
    with pytest.raises(UsageError, match="cannot write"):
        maps_png(fake.SimilarityMap("sd1", 0.0, (good,)), tmp_path / "missing" / "a.png")


def pattern(mask: NDArray[Any], reference: NDArray[Any]) -> Any:
    axis = np.fft.fftshift(np.fft.fftfreq(len(mask)))
    return PatternPlane("luma", mask, reference, axis, axis)


def test_masks_and_references_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask, reference = np.zeros((32, 32)), rng.normal(size=(32, 32))
    mask[:, 16:] = 1.0
    path = tmp_path / "grid.png"
    picture = opened(patterns_png("grid", [pattern(mask, reference)], path))
    assert path.read_bytes() == patterns_png("grid", [pattern(mask, reference)])
    colours = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    # Mask 0 and 1 have the colours of both ends, and half of the products is exactly white.
    ends = diverging_colours(np.array([-1.0, 1.0, 0.0]), 1.0).tolist()
    assert {tuple(c) for c in ends} <= colours
    # The planes' weights are shares of one sum.
    two = [pattern(mask, reference), pattern(mask, 2 * reference)]
    assert patterns_png("grid", two) != patterns_png("grid", [two[0], two[0]])


def test_patterns_that_cannot_be_drawn(tmp_path: Path) -> None:
    ones = np.ones((8, 8))
    broken = ones.copy()
    broken[0, 0] = np.inf
    for planes in ([], [pattern(ones, broken)], [pattern(ones, np.ones((8, 7)))]):
        with pytest.raises(UsageError):
            patterns_png("grid", planes)
    with pytest.raises(UsageError, match="cannot write"):
        patterns_png("grid", [pattern(ones, ones)], tmp_path / "missing" / "a.png")

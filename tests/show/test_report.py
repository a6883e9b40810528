"""`masksim.show.text`: nothing is lost, odd names break nothing, and pictures show the values."""

from __future__ import annotations

import dataclasses
import io
import json
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
from masksim.show import text as report
from masksim.show.text import diverging_colours, maps_png, patterns_png, printable, to_json, to_text

# ------------------------------------------------------------------------------ JSON and text


def test_json_is_the_detections_own() -> None:
    found = json.loads(json.dumps(to_json(fake.detection()), allow_nan=False))
    assert found["verdict"]["generator"] == "dalle3"
    assert found["scores"][0]["false_positive_rate"] == 0.004


def test_the_verdict_comes_first_and_every_generator_follows() -> None:
    detection = fake.detection(cautions=("The image is small.",))
    text = to_text(detection)
    lines = text.splitlines()
    assert lines[0] == "photo.jpg"
    flat = " ".join(text.split())
    assert flat.startswith(f"photo.jpg {detection.verdict.text} Caution: The image is small.")
    assert "Neither is the probability that the image is fake" in flat
    assert detection.image.sha256 in text
    rows = [line for line in lines if line.split()[:1] in (["dalle3"], ["gpt-image"], ["sd1"])]
    assert [row.split()[0] for row in rows] == ["dalle3", "gpt-image", "sd1"]
    assert "0.9960" in rows[0]
    assert "0.4 %" in rows[0]
    assert "30 %" in rows[1]
    bars = [sum(c in "█▏▎▍▌▋▊▉" for c in row) for row in rows]
    assert bars[0] > bars[1] >= bars[2]


@pytest.mark.parametrize("width", [10, 48, 57, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_lines_keep_to_the_width(width: int, ascii_only: bool) -> None:
    rates = {"a-generator-with-a-very-long-name" * 2: 0.0005, "x": 1.0}
    text = to_text(fake.detection(rates, cautions=("word " * 60,)), width, ascii_only=ascii_only)
    for line in text.splitlines():
        assert len(line) <= max(width, 48) or "sha256" in line
        assert line == line.rstrip()
    assert text.isascii() or not ascii_only


def test_the_bar_is_logarithmic_and_ends_where_the_sample_does() -> None:
    size = fake.SAMPLE_SIZE
    rates = {"all": 1.0, "some": (size + 1) ** -0.5, "none": 1 / (size + 1)}
    text = to_text(fake.detection(rates), 100, ascii_only=True)
    lengths = {line.split()[0]: line.count("#") for line in text.splitlines() if line.split()}
    assert lengths["all"] == 0
    assert lengths["none"] == 2 * lengths["some"] > 0
    assert "at most 0.1 %" in text


def test_without_calibration_there_is_no_rate_and_no_bar() -> None:
    text = to_text(fake.detection(calibrated=False))
    assert "Each rate is" not in text
    assert "is not known" in " ".join(text.split())
    assert "most like those of dalle3" in " ".join(text.split())
    assert "█" not in text
    assert "rarer" not in text
    row = next(line for line in text.splitlines() if line.startswith("  sd1"))
    assert row.split() == ["sd1", "0.1000", "-"]


def test_odd_names_steer_no_terminal() -> None:
    name = "a\x1b[31m\r\nb\udc80\u202e\u00e9.jpg"
    text = to_text(fake.detection(image=fake.facts(name)))
    assert text.splitlines()[0] == "a\\x1b[31m\\r\\nb\\udc80\\u202e\u00e9.jpg"
    assert all(c.isprintable() or c == "\n" for c in text)
    text.encode()  # no lone surrogates
    assert printable("plain é 中 name.jpg") == "plain é 中 name.jpg"


def test_file_facts() -> None:
    image = fake.facts(
        format="JPEG",
        mode="CMYK",
        n_bytes=3_141_592,
        sha256_of="file",
        jpeg_quality=87,
        jpeg_subsampling="4:2:0",
        treatments=("CMYK converted", "ICC profile ignored"),
    )
    flat = " ".join(to_text(fake.detection(image=image)).split())
    assert (
        "File: JPEG, 400 x 300 pixels, 3.1 MB, JPEG quality about 87, chroma 4:2:0, "
        "stored as CMYK, CMYK converted, ICC profile ignored"
    ) in flat
    assert "Analysed: 1 window of 256 x 256 pixels, 0.12 s, detector fake (0123456789ab)" in flat


# ------------------------------------------------------------------------------------ colours

# Viénot, Brettel and Mollon 1999: linear sRGB as a dichromat sees it.
PROTANOPE = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
DEUTERANOPE = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1]])


def linear(colours: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(colours, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def test_zero_is_neutral_and_the_signs_are_blue_and_red() -> None:
    low, zero, high = diverging_colours(np.array([-2.0, 0.0, 2.0]), 1.0).astype(int)
    assert len(set(zero)) == 1
    assert zero[0] > 240
    assert low[2] > low[0]
    assert high[0] > high[2]
    np.testing.assert_array_equal(diverging_colours(np.array([9.0]), 1.0)[0], high)  # no wrapping


def test_lightness_falls_to_both_sides() -> None:
    colours = linear(diverging_colours(np.linspace(-1, 1, 201), 1.0))
    luminance = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance[:101]) > 0).all()
    assert (np.diff(luminance[100:]) < 0).all()


@pytest.mark.parametrize("seen", [np.eye(3), PROTANOPE, DEUTERANOPE])
def test_the_signs_are_told_apart_without_red_or_green_cones(seen: NDArray[Any]) -> None:
    sizes = np.linspace(0.25, 1.0, 20)
    positive = linear(diverging_colours(sizes, 1.0)) @ seen.T
    negative = linear(diverging_colours(-sizes, 1.0)) @ seen.T
    # Blue against yellow is what a dichromat keeps.
    tint = [(c[:, 2] - c[:, 0]) / c.sum(axis=1) for c in (negative, positive)]
    assert (tint[0] - tint[1] > 0.15).all()


# ----------------------------------------------------------------------------------- pictures


def opened(data: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image).astype(np.int64)


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
    side = report._side(n)
    assert 160 <= side <= 320
    values = np.random.default_rng(n).normal(size=(n, n))
    shown = report._to_screen(values, side)
    assert shown.shape == (side, side)
    whole = side % n == 0 or n % side == 0
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
    places, found = zip(*report._ticks(axis, n * scale), strict=True)
    assert list(found) == labels
    assert list(places) == sorted(places)
    assert places[2] == (n // 2 + 0.5) * scale - 0.5  # frequency 0
    assert 0 <= places[0] <= scale
    assert n * scale - 1 - scale <= places[-1] <= n * scale - 1
    if n == 64:
        assert places[3] == (48 + 0.5) * scale - 0.5


def test_the_scale_is_symmetric_and_masked_cells_do_not_count() -> None:
    values = np.zeros((100, 100))
    values[0] = np.linspace(-2.0, 1.01, 100)
    assert report.colour_limit(values) == np.percentile(np.abs(values[0]), 99.5)
    assert report.colour_limit(np.zeros((3, 3))) == 1.0
    assert report.colour_scale(values)[0] == 0.0
    far: NDArray[Any] = np.linspace(-8.0, -5.0, 401).reshape(1, -1)
    assert report.colour_scale(far) == pytest.approx((-6.5, 1.5), rel=0.01)


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
    assert report._number(value) == text


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


def test_a_picture_is_the_png_of_its_pixels() -> None:
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (520, 37, 3), dtype=np.uint8))
    with Image.open(io.BytesIO(report._encoded(drawn))) as read:
        read.load()
        assert read.format == "PNG"
        assert read.info["dpi"] == pytest.approx((96, 96), abs=0.1)
        np.testing.assert_array_equal(read, drawn)

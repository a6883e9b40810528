"""`masksim.data.views`: views whose history is known, and that are had again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from masksim.augment import reencode, rng_for
from masksim.config import from_plain
from masksim.data.manifest import REAL, Manifest, Row
from masksim.data.processing import View, Work, history_as_found
from masksim.data.views import (
    HISTORIES,
    ViewConfig,
    at_most,
    evaluation_view,
    histories,
    measure_first_qualities,
    training_view,
    views,
)
from masksim.errors import DataError, UsageError

Natural = Callable[..., NDArray[np.uint8]]

SMALL = ViewConfig(window=64, region=96, first_qualities=(71, 83), final_quality=(90, 95))
PNG = Row("a.png", "x", "s", "train", sha256="ab" * 32, width=150, height=140, format="PNG")
JPEG = replace(PNG, path="a.jpg", format="JPEG")


@pytest.fixture(scope="module")
def pixels(natural_image: Natural) -> NDArray[np.uint8]:
    return natural_image(140, 150, seed=21)


def only(**shares: float) -> ViewConfig:
    """Without any of the random steps but those named."""
    none: dict[str, Any] = dict.fromkeys(
        ("extra_jpeg", "extra_webp", "resized", "final_webp", "uncompressed"), 0.0
    )
    return replace(SMALL, **{"aligned": 1.0, **none, **shares})


def draw(pixels: NDArray[np.uint8], row: Row, history: Any, config: Any, seed: int) -> View:
    return training_view(pixels, row, history, rng_for(seed), config)


# --- configuration and histories -----------------------------------------------------------------


def plain(values: dict[str, Any]) -> ViewConfig:
    return from_plain(ViewConfig, values, "views")


def test_a_configuration_of_plain_values() -> None:
    config = plain({"window": 64, "final_quality": [70, 90], "views": {"real": 2}})
    assert config == ViewConfig(window=64, final_quality=(70, 90), views={"real": 2})
    assert plain({}) == ViewConfig()
    with pytest.raises(UsageError, match=r"unknown keys in the configuration of views: \['vew'\]"):
        plain({"vew": 1})


@pytest.mark.parametrize(
    "shares",
    [
        {"jpeg": 1.0},
        {"jpeg": 0.5, "reduced": 0.5, "lossless": 0.0, "webp": 0.1},
        {"jpeg": 0.0, "reduced": 0.5, "lossless": 0.5},
        {"jpeg": 1.5, "reduced": -0.5, "lossless": 0.0},
        {},
    ],
)
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="shares must give"):
        ViewConfig(shares=shares)


def test_the_history_of_a_format() -> None:
    assert {history_as_found(f) for f in ("JPEG", "MPO", "WEBP", "HEIF", "AVIF")} == {"jpeg"}
    assert {history_as_found(f) for f in ("PNG", "BMP", "TIFF", "GIF")} == {"lossless"}


@pytest.mark.parametrize(
    ("format_", "size", "expected"),
    [
        ("PNG", (128, 128), ["jpeg", "reduced", "lossless"]),
        ("PNG", (127, 500), ["jpeg", "lossless"]),
        ("JPEG", (128, 300), ["jpeg", "reduced"]),
        ("JPEG", (64, 64), ["jpeg"]),
        ("HEIF", (64, 64), ["jpeg"]),
        ("WEBP", (200, 200), ["jpeg", "reduced"]),
    ],
)
def test_histories_that_an_image_allows(format_: str, size: Any, expected: list[str]) -> None:
    row = replace(PNG, format=format_, width=size[0], height=size[1])
    assert histories(row, SMALL) == expected


def test_first_qualities_are_those_of_the_real_photos(tmp_path: Path, natural_image: Any) -> None:
    image = Image.fromarray(natural_image(64, 64))
    rows = []
    for i, (quality, subsampling) in enumerate(
        [(70, "4:2:0"), (80, "4:2:0"), (80, "4:4:4"), (95, "4:2:2")]
    ):
        image.save(tmp_path / f"{i}.jpg", quality=quality, subsampling=subsampling)
        rows.append(Row(f"{i}.jpg", REAL, "s", "train", format="JPEG"))
    image.save(tmp_path / "other.jpg", quality=30)
    image.save(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    rows += [
        Row("other.jpg", "x", "s", "train", format="JPEG"),  # not a photo
        Row("photo.png", REAL, "s", "train", format="PNG"),
        Row("broken.jpg", REAL, "s", "train", format="JPEG"),
        Row("missing.jpg", REAL, "s", "train", format="JPEG"),
    ]
    qualities, subsampled = measure_first_qualities(Manifest(tuple(rows), tmp_path))
    assert len(qualities) == 101
    assert list(qualities) == sorted(qualities)
    assert set(qualities) == {70, 80, 95}
    assert qualities[50] == 80
    assert subsampled == 0.5
    with pytest.raises(DataError, match="there is no JPEG"):
        measure_first_qualities(Manifest(tuple(rows[4:]), tmp_path))


# --- views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["train", "evaluate", "calibrate"])
def test_views_are_determined_by_content_and_seed(pixels: NDArray[np.uint8], purpose: Any) -> None:
    def made(row: Row = PNG, seed: int = 0) -> list[tuple[Any, ...]]:
        return [
            (view.history, view.processing, view.pixels.tobytes())
            for view in views(pixels, row, purpose, SMALL, seed)
        ]

    before = pixels.copy()
    first = made()
    assert first == made()
    assert made(replace(PNG, path="elsewhere.png", source="t", split="val")) == first
    # (A third of the views for calibration are all alike: several draws are needed.)
    assert any(made(seed=seed) != first for seed in range(1, 12))
    assert any(made(replace(PNG, sha256=f"{i:064x}")) != first for i in range(12))
    # Without a digest the path stands for the content; a blob goes before both.
    for name in ("b", "c", "d"):
        digest = replace(PNG, sha256=name)
        assert made(replace(PNG, sha256="", path=name)) == made(digest)
        assert made(replace(PNG, extra={"blob": name}, path="other")) == made(digest)
    np.testing.assert_array_equal(pixels, before)


def test_more_views_leave_the_first_as_they_are(pixels: NDArray[np.uint8]) -> None:
    def made(count: int) -> list[bytes]:
        config = replace(SMALL, views={"*": 1, "x": count})
        return [view.pixels.tobytes() for view in views(pixels, PNG, "train", config, 0)]

    assert made(5)[:2] == made(2)
    assert len(made(5)) == 5
    other = replace(PNG, generator="y")
    config = replace(SMALL, views={"*": 1, "x": 3})
    assert len(list(views(pixels, other, "train", config, 0))) == 1
    assert len(list(views(pixels, other, "train", replace(SMALL, views={"x": 3}), 0))) == 1


def test_evaluation_makes_each_history_once(pixels: NDArray[np.uint8]) -> None:
    for row, expected in ((PNG, list(HISTORIES)), (JPEG, ["jpeg", "reduced"])):
        found = [view.history for view in views(pixels, row, "evaluate", SMALL, 0)]
        assert found == expected


FIRST = re.compile(r"jpeg (71|83) 4:(2:0|4:4)")
FINAL = re.compile(r"jpeg 9[0-5] 4:(2:0|4:4)")


def test_only_lossless_images_get_a_first_jpeg(pixels: NDArray[np.uint8]) -> None:
    for seed in range(12):
        for make in (
            lambda row, history, s=seed: draw(pixels, row, history, only(), s),
            lambda row, history, s=seed: evaluation_view(pixels, row, history, rng_for(s), SMALL),
        ):
            first, *rest = make(PNG, "jpeg").processing
            assert FIRST.fullmatch(first)
            assert len(rest) == 1
            assert FINAL.fullmatch(rest[0])
            for row, history in (
                (JPEG, "jpeg"),
                (replace(JPEG, format="WEBP"), "jpeg"),
                (replace(JPEG, format="HEIF"), "jpeg"),
                (PNG, "lossless"),
            ):
                (step,) = make(row, history).processing
                assert FINAL.fullmatch(step)
            for row in (PNG, JPEG):
                resize, final = make(row, "reduced").processing
                assert resize.startswith("resize 0.")
                assert FINAL.fullmatch(final)


def test_what_is_written_is_what_was_done(pixels: NDArray[np.uint8]) -> None:
    """The pixels of a view are had again from its log."""
    for history in ("jpeg", "lossless"):
        view = evaluation_view(pixels, PNG, history, rng_for(3), SMALL)  # type: ignore[arg-type]
        found = pixels
        *first, last = view.processing
        for step in first:
            _, quality, subsampling = step.split()
            found = reencode(found, "JPEG", int(quality), subsampling)
        found = found[16:112, 24:120]  # the central 96 of 140 x 150, on the grid of 8
        _, quality, subsampling = last.split()
        found = reencode(found, "JPEG", int(quality), subsampling)
        np.testing.assert_array_equal(view.pixels, found)


def test_the_first_jpeg_is_of_the_whole_image_and_the_crop_on_its_grid(
    pixels: NDArray[np.uint8],
) -> None:
    config = only(uncompressed=1.0)
    for seed in range(10):
        view = draw(pixels, PNG, "jpeg", config, seed)
        _, quality, subsampling = view.processing[0].split()
        whole = reencode(pixels, "JPEG", int(quality), subsampling)
        assert at(view.pixels, whole, 8) is not None


def at(crop: NDArray[np.uint8], whole: NDArray[np.uint8], step: int) -> tuple[int, int] | None:
    """Where on a grid of `step` pixels a crop lies in an image."""
    height, width = crop.shape[:2]
    for y in range(0, whole.shape[0] - height + 1, step):
        for x in range(0, whole.shape[1] - width + 1, step):
            if np.array_equal(whole[y : y + height, x : x + width], crop):
                return y, x
    return None


def test_crops_keep_the_grid_as_often_as_asked(pixels: NDArray[np.uint8]) -> None:
    aligned, free = set(), set()
    for seed in range(40):
        view = draw(pixels, JPEG, "jpeg", only(uncompressed=1.0), seed)
        assert view.processing == ()
        assert view.pixels.shape == (64, 64, 3)
        place = at(view.pixels, pixels, 8)
        assert place is not None
        aligned.add(place)
        loose = draw(pixels, JPEG, "jpeg", only(uncompressed=1.0, aligned=0.0), seed)
        found = at(loose.pixels, pixels, 1)
        assert found is not None
        free.add(found)
    assert len(aligned) > 10
    assert len(free) > 30
    assert len({(y % 8, x % 8) for y, x in free}) > 15


def test_shares_of_steps_are_as_configured(pixels: NDArray[np.uint8]) -> None:
    stats = pytest.importorskip("scipy.stats")
    config = replace(
        SMALL, extra_jpeg=0.3, extra_webp=0.2, resized=0.4, final_webp=0.25, uncompressed=0.2
    )
    n = 400
    small = pixels[:72, :80]  # cheap; a factor under 64 / 72 is not allowed
    row = replace(JPEG, height=72, width=80)
    logs = [draw(small, row, "jpeg", config, seed).processing for seed in range(n)]
    count: Counter[str] = Counter()
    for log in logs:
        kinds = [step.split()[0] for step in log]
        compressions = [kind for kind in kinds if kind != "resize"]
        count["resized"] += "resize" in kinds
        count["compressions"] += len(compressions)
        if len(compressions) == 2:  # with one alone it cannot be told which it is
            count["extra " + compressions[0]] += 1
            count["last " + compressions[1]] += 1
    # Both compressions: an extra one (0.5) and a last one (0.8).
    for name, share in (
        ("extra jpeg", 0.3 * 0.8), ("extra webp", 0.2 * 0.8),
        ("last webp", 0.5 * 0.8 * 0.25), ("last jpeg", 0.5 * 0.8 * 0.75),
    ):  # fmt: skip
        low, high = stats.binom.ppf([1e-5, 1 - 1e-5], n, share)
        assert low <= count[name] <= high, (name, count)
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], 2 * n, (0.5 + 0.8) / 2)
    assert low <= count["compressions"] <= high
    allowed = (1.5 - 64 / 72) / (1.5 - 0.7)
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], n, 0.4 * allowed)
    assert low <= count["resized"] <= high


def test_resizing_leaves_a_window(pixels: NDArray[np.uint8]) -> None:
    config = only(resized=1.0)
    factors = []
    for seed in range(40):
        view = draw(pixels, JPEG, "jpeg", config, seed)
        assert view.pixels.shape == (64, 64, 3)
        factors += [float(step.split()[1]) for step in view.processing if "resize" in step]
    assert len(factors) > 30
    assert 0.7 <= min(factors) < 0.9 < 1.2 < max(factors) <= 1.5


@pytest.mark.parametrize("size", [(128, 128), (129, 300), (300, 260), (512, 700)])
def test_reduced_views_have_a_window_and_the_factor(natural_image: Any, size: Any) -> None:
    pixels = natural_image(*size, seed=3)
    row = replace(JPEG, height=size[0], width=size[1])
    factors = []
    for seed in range(8):
        trained = draw(pixels, row, "reduced", only(), seed)
        assert trained.pixels.shape == (64, 64, 3)
        evaluated = evaluation_view(pixels, row, "reduced", rng_for(seed), SMALL)
        assert all(64 <= side <= 97 for side in evaluated.pixels.shape[:2])
        for view in (trained, evaluated):
            factors.append(1 / float(view.processing[0].split()[1]))
    assert min(factors) > 1.99
    assert max(factors) < min(4, min(size) / 64) + 0.01


def test_small_images_are_left_whole(natural_image: Any) -> None:
    small = natural_image(40, 50)
    row = replace(JPEG, height=40, width=50)
    config = only(uncompressed=1.0)
    np.testing.assert_array_equal(draw(small, row, "jpeg", config, 0).pixels, small)
    assert evaluation_view(small, row, "jpeg", rng_for(0), SMALL).pixels.shape == (40, 50, 3)


def test_calibration_takes_a_third_as_it_is(pixels: NDArray[np.uint8]) -> None:
    stats = pytest.importorskip("scipy.stats")
    n, untouched, seen = 300, 0, Counter[str]()
    cut = pixels[16:112, 24:120]
    for seed in range(n):
        (view,) = views(pixels, PNG, "calibrate", SMALL, seed)
        if not view.processing:
            untouched += 1
            np.testing.assert_array_equal(view.pixels, cut)
            assert view.history == "lossless"
        else:
            seen[view.history] += 1
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], n, 1 / 3)
    assert low <= untouched <= high
    for history, share in SMALL.shares.items():
        low, high = stats.binom.ppf([1e-5, 1 - 1e-5], n - untouched, share)
        assert low <= seen[history] <= high


@pytest.mark.parametrize(
    ("steps", "format", "quality"),
    [
        ("", "HEIF", 77),
        ("jpeg 92", "JPEG", 92),
        ("webp 80, jpeg 71", "JPEG", 71),
        ("jpeg 92, webp 80", "WEBP", None),
        ("jpeg 92, heif 50", "HEIF", None),
        ("jpeg 92, resize", "PNG", None),
    ],
)
def test_the_file_that_a_view_would_be(
    pixels: NDArray[np.uint8], steps: str, format: str, quality: int | None
) -> None:
    work = Work(pixels, rng_for(0), "HEIF", 77)
    for kind, *number in (step.split() for step in steps.split(", ") if step):
        if kind == "jpeg":
            work.jpeg(int(number[0]), "4:2:0")
        elif kind == "resize":
            work.resize(0.5, "box")
        else:
            work.other(kind.upper(), int(number[0]))
    view = work.view("jpeg")
    assert (view.format, view.quality) == (format, quality)
    assert len(view.processing) == len([step for step in steps.split(", ") if step])


def test_at_most_so_many_images_of_a_repository() -> None:
    rows = [
        Row(f"{generator}/{source}/{i}.png", generator, source, "train", sha256=f"{i:064d}")
        for generator, sources in ((REAL, "abc"), ("x", "ad"), ("y", "e"))
        for source in sources
        for i in range(10)
    ]

    def paths(some: Any) -> set[str]:
        return {row.path for row in some}

    chosen = at_most(rows, {"*": 4, REAL: 2, "y": 99})
    counts = Counter((row.generator, row.source) for row in chosen)
    assert counts == {
        (REAL, "a"): 2, (REAL, "b"): 2, (REAL, "c"): 2,
        ("x", "a"): 4, ("x", "d"): 4, ("y", "e"): 10,
    }  # fmt: skip
    assert [rows.index(row) for row in chosen] == sorted(rows.index(row) for row in chosen)
    # Which ones depends on their content: neither on the order nor on what else there is.
    again = at_most(rows[::-1], {"*": 4, REAL: 2, "y": 99})
    assert paths(again) == paths(chosen)
    alone = at_most([row for row in rows if row.source == "d"], {"*": 4})
    assert paths(alone) == {row.path for row in chosen if row.source == "d"}
    more = at_most(rows, {"*": 5, REAL: 2, "y": 99})
    assert paths(chosen) < paths(more)
    assert at_most(rows, {}) == tuple(rows)
    assert at_most(rows, {"*": 0}) == ()

"""`masksim.training.dataset`: views whose history is known, a cache that survives, weights that
balance."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from masksim.augment import reencode, rng_for
from masksim.data.manifest import REAL, Manifest, Row
from masksim.errors import DataError, UsageError
from masksim.features import FeatureConfig, shared_features
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx
from masksim.training.dataset import (
    HISTORIES,
    FeatureTable,
    View,
    ViewConfig,
    _failures,
    at_most,
    compute_features,
    evaluation_view,
    histories,
    history_of,
    history_weights,
    last_format,
    last_quality,
    measure_first_qualities,
    source_folds,
    training_view,
    training_weights,
    views,
)
from masksim.traits import TRAITS

Natural = Callable[..., NDArray[np.uint8]]

SMALL = ViewConfig(window=64, region=96, first_qualities=(71, 83), final_quality=(90, 95))
FEATURES = FeatureConfig(
    window=64, windows=2, smallest=32, region=96, spacing=32, segment=16, hops=(16, 8)
)
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


def test_a_configuration_of_plain_values() -> None:
    config = ViewConfig.from_dict({"window": 64, "final_quality": [70, 90], "views": {"real": 2}})
    assert config == ViewConfig(window=64, final_quality=(70, 90), views={"real": 2})
    assert ViewConfig.from_dict({}) == ViewConfig()
    with pytest.raises(UsageError, match=r"unknown keys in the configuration of views: \['vew'\]"):
        ViewConfig.from_dict({"vew": 1})


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
    assert [history_of(f) for f in ("JPEG", "MPO", "WEBP")] == ["jpeg", "jpeg", "webp"]
    for lossless in ("PNG", "BMP", "TIFF", "GIF"):
        assert history_of(lossless) == "lossless"
    for lossy in ("HEIF", "AVIF"):
        assert history_of(lossy) not in ("lossless", "jpeg")


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


# --- the cache -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any, natural_image: Any, hostile_files: Any) -> Manifest:
    """37 images, three chunks; five of them cannot be used."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(32):
        lossless = i % 3 == 0
        path = folder / f"{i:02d}{'.png' if lossless else '.jpg'}"
        Image.fromarray(natural_image(130, 90 + 8 * (i % 6), seed=i)).save(path)
        rows.append(
            Row(path.name, REAL if i % 2 else "x", f"s{i % 5}", "train", sha256=f"{i:064x}",
                format="PNG" if lossless else "JPEG")
        )  # fmt: skip
    for name in ("truncated_jpeg", "text", "huge_png"):
        path, code = hostile_files[name]
        (folder / f"{name}.png").write_bytes(path.read_bytes())
        rows.append(Row(f"{name}.png", "x", "bad", "train", extra={"code": code}))
    Image.fromarray(natural_image(31, 90)).save(folder / "tiny.png")
    rows.append(Row("tiny.png", "x", "bad", "train", extra={"code": "too_small"}))
    rows.append(Row("gone.png", "x", "bad", "train", extra={"code": "not_found"}))
    return Manifest(tuple(rows), folder)


def compute(data: Manifest, cache: Path, purpose: Any = "train", **changes: Any) -> FeatureTable:
    options: dict[str, Any] = {
        "views_config": replace(SMALL, views={"*": 2}),
        "feature_config": FEATURES,
    }
    return compute_features(data, purpose, cache, **{**options, **changes})


def same(a: FeatureTable, b: FeatureTable) -> bool:
    names = ("features", "generators", "sources", "histories", "processing", "images")
    return a.rows == b.rows and a.failures == b.failures and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in names
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(data: Manifest, tmp_path_factory: Any) -> FeatureTable:
    return compute(data, tmp_path_factory.mktemp("cache"))


def test_the_table(data: Manifest, table: FeatureTable) -> None:
    assert table.features.shape == (64, 12, 8, 4)
    assert table.features.dtype == np.float16
    assert np.isfinite(table.features).all()
    assert list(table.rows) == sorted(data.rows, key=lambda row: row.path)
    for i in range(64):
        row = table.rows[table.images[i]]
        assert table.generators[i] == row.generator
        assert table.sources[i] == row.source
        assert table.histories[i] in HISTORIES
    assert Counter(table.images.tolist()).most_common(1)[0][1] == 2
    assert set(table.histories) == set(HISTORIES)


def test_bad_files_are_failures_with_their_codes(data: Manifest, table: FeatureTable) -> None:
    bad = {row.path: row.extra["code"] for row in data.rows if row.source == "bad"}
    assert len(bad) == 5
    assert table.failures == bad
    assert "bad" not in table.sources


def test_features_are_those_of_the_views(data: Manifest, table: FeatureTable) -> None:
    residual = OnnxResidual(residual_onnx(ResidualConfig("bank"), {}), threads=1)
    for number in (0, 7):
        row = table.rows[number]
        with Image.open(data.file(row)) as image:
            stored = np.asarray(image.convert("RGB"))
        sized = replace(row, width=stored.shape[1], height=stored.shape[0])
        config = replace(SMALL, views={"*": 2})
        made = list(views(stored, sized, "train", config, 0))
        chosen = table.images == number
        assert table.processing[chosen].tolist() == [", ".join(v.processing) for v in made]
        for found, view in zip(table.features[chosen], made, strict=True):
            expected, _ = shared_features(view.pixels, FEATURES, residual)
            np.testing.assert_array_equal(found, expected.astype(np.float16))


def pieces_of(data: Manifest) -> int:
    """Runs of one source in the order of the paths: each shorter than a chunk."""
    rows = sorted(data.rows, key=lambda row: row.path)
    return len(list(groupby(rows, key=lambda row: (row.generator, row.source))))


def test_the_number_of_workers_and_the_order_do_not_matter(
    data: Manifest, table: FeatureTable, tmp_path: Path
) -> None:
    shuffled = Manifest(data.rows[::-1], data.root)
    steps: list[tuple[int, int]] = []
    found = compute(shuffled, tmp_path, workers=2, progress=lambda done, n: steps.append((done, n)))
    assert same(found, table)
    pieces = pieces_of(data)
    assert steps == [(done, pieces) for done in range(pieces + 1)]


def test_a_killed_run_goes_on_where_it_was(
    data: Manifest, table: FeatureTable, tmp_path: Path
) -> None:
    assert same(compute(data, tmp_path), table)
    (folder,) = tmp_path.iterdir()
    chunks = sorted(folder.glob("*.npz"))
    assert len(chunks) == pieces_of(data)
    # Where files have failed it is tried again, whatever was there.
    whole = [chunk for chunk in chunks if not _failures(chunk)]
    assert 1 < len(whole) < len(chunks)
    kept = {chunk: chunk.stat().st_mtime_ns for chunk in whole}
    gone = whole[1]
    gone.unlink()
    (folder / "killed.part").write_bytes(b"half a file")
    steps: list[tuple[int, int]] = []
    assert same(compute(data, tmp_path, progress=lambda *step: steps.append(step)), table)
    assert steps[0] == (len(whole) - 1, len(chunks))
    assert steps[-1] == (len(chunks), len(chunks))
    assert all(chunk.stat().st_mtime_ns == kept[chunk] for chunk in whole if chunk != gone)
    assert gone.exists()


def test_a_file_that_was_missing_is_tried_again(natural_image: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    Image.fromarray(natural_image(70, 70)).save(tmp_path / "a.png")
    rows = tuple(Row(f"{name}.png", REAL, "s", "train", format="PNG") for name in "ab")
    data = Manifest(rows, tmp_path)
    assert compute(data, tmp_path / "cache").failures == {"b.png": "not_found"}
    Image.fromarray(natural_image(70, 70, seed=1)).save(tmp_path / "b.png")
    found = compute(data, tmp_path / "cache")
    assert found.failures == {}
    assert len(found.images) == 4


def test_whatever_the_features_depend_on_names_the_cache(data: Manifest, tmp_path: Path) -> None:
    one = Manifest(data.rows[:1], data.root)
    changes: list[dict[str, Any]] = [
        {}, {"seed": 1}, {"purpose": "evaluate"},
        {"views_config": replace(SMALL, views={"*": 1})},
        {"feature_config": replace(FEATURES, floor=0.1)},
    ]  # fmt: skip
    for number, change in enumerate(changes, start=1):
        for _ in range(2):
            compute(one, tmp_path, **change)
            assert len(list(tmp_path.iterdir())) == number
    other = Manifest((replace(data.rows[0], source="t"),), data.root)
    compute(other, tmp_path)
    folders = list(tmp_path.iterdir())
    assert len(folders) == len(changes)  # which images they are of names the piece
    assert len(list(tmp_path.rglob("*.npz"))) == len(changes) + 1
    for folder in folders:
        assert json.loads((folder / "key.json").read_text())[0] in ("train", "evaluate")


def test_an_unknown_format_is_told_by_the_file(natural_image: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    Image.fromarray(natural_image(70, 70)).save(tmp_path / "a", "JPEG")
    data = Manifest((Row("a", REAL, "s", "train"),), tmp_path)
    found = compute(data, tmp_path / "cache", "evaluate")
    assert found.histories.tolist() == ["jpeg"]
    assert len(found.processing[0].split(", ")) == 1  # no first JPEG


def test_nothing_that_can_be_used_is_an_error(data: Manifest, tmp_path: Path) -> None:
    bad = Manifest(tuple(row for row in data.rows if row.source == "bad"), data.root)
    for rows in (bad, Manifest((), data.root)):
        with pytest.raises(DataError, match="none of the images"):
            compute(rows, tmp_path)
    with pytest.raises(UsageError, match="no first qualities"):
        compute(data, tmp_path, views_config=replace(SMALL, first_qualities=()))


# --- weights and folds ---------------------------------------------------------------------------


def made_table(n: int, seed: int, images_a_source: int = 7) -> FeatureTable:
    """Rows of three classes in many sources of unlike sizes, three views each."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        generator = str(rng.choice([REAL, "many", "few"], p=[0.6, 0.25, 0.15]))
        sources = {REAL: n // images_a_source, "many": 12, "few": 2}[generator]
        source = f"{generator}-{int(sources * rng.random() ** 2)}"
        rows.append(Row(f"{i}.png", generator, source, "train", sha256=f"{i:064x}"))
    images = np.repeat(np.arange(n), 3)
    return FeatureTable(
        np.zeros((3 * n, 1, 2, 1), np.float16),
        np.zeros((3 * n, len(TRAITS)), np.float32),
        np.array([rows[i].generator for i in images]),
        np.array([rows[i].source for i in images]),
        np.array(["jpeg", "reduced", "lossless"])[rng.choice(3, 3 * n, p=[0.5, 0.3, 0.2])],
        np.array([""] * (3 * n)),
        images,
        tuple(rows),
        {},
    )


SHARES = {"jpeg": 0.75, "reduced": 0.2, "lossless": 0.05}


def test_history_weights_give_all_classes_the_same_shares() -> None:
    table = made_table(200, 0)
    classes = [table.generators == name for name in (REAL, "many")]
    weights = history_weights(table.histories, classes, SHARES)
    assert not weights[table.generators == "few"].any()
    for own in classes:
        assert weights[own].sum() == pytest.approx(1)
        for history, share in SHARES.items():
            chosen = own & (table.histories == history)
            assert weights[chosen].sum() == pytest.approx(share)
            assert len(set(weights[chosen].tolist())) == 1


def test_a_history_that_one_class_lacks_is_left_out_for_all() -> None:
    histories = np.array(["jpeg", "jpeg", "lossless", "jpeg", "reduced", "reduced", "lossless"])
    real = np.arange(7) < 3
    weights = history_weights(histories, [real, ~real], SHARES)
    # Reals have no `reduced`: 0.75 and 0.05 are left, of 0.8.
    expected = [0.46875, 0.46875, 0.0625, 0.9375, 0, 0, 0.0625]
    np.testing.assert_allclose(weights, expected)
    with pytest.raises(DataError, match="no history in common"):
        history_weights(histories, [histories == "jpeg", histories == "reduced"], SHARES)
    none = {"jpeg": 1.0, "reduced": 0.0, "lossless": 0.0}
    lossless = histories == "lossless"
    with pytest.raises(DataError, match="no history in common"):
        history_weights(histories, [lossless & real, lossless & ~real], none)


def test_training_weights() -> None:
    table = made_table(300, 1)
    weights = training_weights(table, SHARES)
    size = Counter(table.sources.tolist())
    for name in (REAL, "many", "few"):
        own = table.generators == name
        assert weights[own].sum() == pytest.approx(1)
        for history, share in SHARES.items():
            chosen = np.flatnonzero(own & (table.histories == history))
            assert weights[chosen].sum() == pytest.approx(share)
            # A source of four times the size counts twice as much, each of its views half.
            scaled = weights[chosen] * np.sqrt([size[table.sources[i]] for i in chosen])
            np.testing.assert_allclose(scaled, scaled[0])


def test_training_weights_of_a_class_that_lacks_a_history() -> None:
    table = made_table(100, 2)
    kept = ~((table.generators == "few") & (table.histories == "jpeg"))
    table = replace(
        table,
        **{
            name: getattr(table, name)[kept]
            for name in ("features", "generators", "sources", "histories", "processing", "images")
        },
    )
    weights = training_weights(table, SHARES)
    few = table.generators == "few"
    assert weights[few].sum() == pytest.approx(1)
    assert weights[few & (table.histories == "reduced")].sum() == pytest.approx(0.8)
    none = training_weights(table, {"jpeg": 1.0, "reduced": 0.0, "lossless": 0.0})
    assert not none[table.histories != "jpeg"].any()
    assert none[table.generators == REAL].sum() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 5, 9])
def test_folds_never_part_a_source_of_photos(seed: int, count: int) -> None:
    table = made_table(250, seed)
    folds = source_folds(table, count)
    assert folds.min() >= 0
    assert folds.max() < count
    for name in (REAL, "many") if count <= 9 else (REAL,):
        own = table.generators == name
        sources = set(table.sources[own].tolist())
        if name != REAL and len(sources) < count:
            continue
        for source in sources:
            assert len(set(folds[own & (table.sources == source)].tolist())) == 1
        # Even: the largest fold exceeds the smallest by no more than the largest source.
        load = np.bincount(folds[own], minlength=count)
        largest = Counter(table.sources[own].tolist()).most_common(1)[0][1]
        assert load.max() - load.min() <= largest
        assert load.min() > 0


def test_few_sources_are_parted_by_image_never_by_view() -> None:
    table = made_table(400, 3)
    folds = source_folds(table, 4)
    few = table.generators == "few"  # two sources, four folds
    for image in np.unique(table.images[few]):
        assert len(set(folds[table.images == image].tolist())) == 1
    assert set(folds[few].tolist()) == {0, 1, 2, 3}
    shuffled = replace(
        table,
        **{
            name: getattr(table, name)[::-1]
            for name in ("features", "generators", "sources", "histories", "processing", "images")
        },
    )
    np.testing.assert_array_equal(source_folds(shuffled, 4)[::-1], folds)


def test_photos_of_one_source_are_in_one_fold() -> None:
    table = made_table(50, 4, images_a_source=50)
    folds = source_folds(table, 3)
    assert len(set(folds[table.generators == REAL].tolist())) == 1


# --- as images are met ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processing", "format", "quality"),
    [
        ((), "HEIF", 77),
        (("jpeg 92 4:2:0",), "JPEG", 92),
        (("webp 80", "jpeg 71 4:4:4"), "JPEG", 71),
        (("jpeg 92 4:2:0", "webp 80"), "WEBP", None),
        (("jpeg 92 4:2:0", "avif 50"), "AVIF", None),
        (("jpeg 92 4:2:0", "heif 50"), "HEIF", None),
        (("jpeg 92 4:2:0", "resize 0.5000 box"), "PNG", None),
    ],
)
def test_the_file_that_a_view_would_be(
    processing: tuple[str, ...], format: str, quality: int | None
) -> None:
    assert last_format(processing, "HEIF") == format
    assert last_quality(processing, 77) == quality


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


def test_a_repository_that_is_added_leaves_the_pieces_of_the_others(
    natural_image: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    rows = []
    for source in "abc":
        for i in range(2):
            path = tmp_path / f"{source}{i}.png"
            Image.fromarray(natural_image(70, 80, seed=ord(source) + i)).save(path)
            rows.append(Row(path.name, REAL, source, "train"))
    config = replace(
        SMALL, views={"*": 2}, ways=replace(SMALL.ways, smallest=64, region=64, ends={"high": 1.0})
    )
    told: list[tuple[int, int]] = []

    def compute(chosen: list[Row]) -> FeatureTable:
        return compute_features(
            Manifest(tuple(chosen), tmp_path), "met", tmp_path / "cache", views_config=config,
            feature_config=FEATURES, progress=lambda *step: told.append(step),
        )  # fmt: skip

    first = compute([row for row in rows if row.source != "b"])
    assert told[0] == (0, 2)
    told.clear()
    second = compute(rows)
    assert told[0] == (2, 3)
    kept = second.sources != "b"
    np.testing.assert_array_equal(second.features[kept], first.features)
    assert len(second.images) == 12
    assert set(second.histories.tolist()) <= {"jpeg", "lossless", "reduced", "shared", "enlarged"}
    band = second.traits[:, TRAITS.index("band")]
    assert set(band[::2].tolist()) == {0}  # as found: PNG
    assert set(band[1::2].tolist()) == {1}

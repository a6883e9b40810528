"""`masksim.training.feature_table`: a cache that survives."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masksim.data.manifest import REAL, Manifest, Row
from masksim.data.views import HISTORIES, ViewConfig, views
from masksim.errors import DataError, UsageError
from masksim.features import FeatureConfig, shared_features
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx
from masksim.training.feature_table import FeatureTable, compute_features, failures_of
from masksim.traits import TRAITS

SMALL = ViewConfig(window=64, region=96, first_qualities=(71, 83), final_quality=(90, 95))
FEATURES = FeatureConfig(
    window=64, windows=2, smallest=32, region=96, spacing=32, segment=16, hops=(16, 8)
)


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
    # Where files have failed it is tried again, unless they are too small.
    whole = [chunk for chunk in chunks if not {*failures_of(chunk).values()} - {"too_small"}]
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


def test_what_is_too_small_is_not_tried_again(natural_image: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    for name, side in (("a", 70), ("b", 20)):
        Image.fromarray(natural_image(side, side)).save(tmp_path / f"{name}.png")
    rows = tuple(Row(f"{name}.png", REAL, "s", "train", format="PNG") for name in "ab")
    data = Manifest(rows, tmp_path)
    assert compute(data, tmp_path / "cache").failures == {"b.png": "too_small"}
    steps: list[tuple[int, int]] = []
    compute(data, tmp_path / "cache", progress=lambda *step: steps.append(step))
    assert steps == [(1, 1)]


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

"""Manifests: reading, writing, hashing, and splits that never cut a source."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from masksim.data.manifest import (
    CORE,
    Manifest,
    Row,
    group_of,
    manifest_hash,
    read_manifest,
    with_extra,
    write_manifest,
)
from masksim.data.scan import (
    assign_splits,
    camera_of,
    find_images,
    folder_rows,
    hash_percent,
    image_problem,
    read_layout,
    scan_folders,
)
from masksim.data.sources import load_sources
from masksim.errors import DataError, UsageError
from masksim.image import sniff_format


def save(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12)
rows_strategy = st.lists(
    st.builds(
        Row,
        path=names,
        generator=names,
        source=names,
        split=st.sampled_from(["train", "val", "test"]),
        sha256=st.sampled_from(["", "ab" * 32]),
        width=st.integers(0, 9999),
        height=st.integers(0, 9999),
        format=st.sampled_from(["", "JPEG", "PNG"]),
        processing=names,
        extra=st.dictionaries(st.sampled_from(["group", "variant", "note"]), names, max_size=3),
    ),
    max_size=6,
    unique_by=lambda row: row.path,
)


@given(rows_strategy, st.randoms())
@settings(max_examples=60, deadline=None)
def test_written_rows_come_back(tmp_path_factory: Any, rows: list[Row], random: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "m.csv"
    assert write_manifest(path, rows) == manifest_hash(rows)
    back = read_manifest(path)
    assert sorted(back.rows, key=lambda r: r.path) == sorted(rows, key=lambda r: r.path)
    shuffled = list(rows)
    random.shuffle(shuffled)
    first = path.read_bytes()
    assert write_manifest(path, shuffled) == manifest_hash(rows)
    assert path.read_bytes() == first
    for row in rows:
        assert Row(**json.loads(json.dumps(asdict(row)))) == row


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    row = Row("a\udcff.png", "real", "s", "train")
    write_manifest(tmp_path / "m.csv", [row])
    assert read_manifest(tmp_path / "m.csv").rows == (row,)
    assert len(manifest_hash([row])) == 64


@pytest.mark.parametrize("column", [*CORE, "extra"])
def test_the_hash_sees_every_column(column: str) -> None:
    row = Row("p", "g", "s", "train", "ab" * 32, 1, 2, "PNG", "none", {"k": "v"})
    other: dict[str, Any] = {
        "width": 9, "height": 9, "split": "val", "extra": {"k": "w"}, "sha256": "cd" * 32,
    }  # fmt: skip
    changed = replace(row, **{column: other.get(column, "other")})
    assert manifest_hash([row]) != manifest_hash([changed])
    assert manifest_hash([row]) == manifest_hash([with_extra(row, empty="")])
    assert manifest_hash([row, changed]) == manifest_hash([changed, row])


def test_parquet_says_what_it_needs_or_works(tmp_path: Path) -> None:
    rows = [
        Row("a", "real", "s", "train", extra={"group": "1"}),
        Row("b", "x", "s", "val", width=3),
    ]
    if find_spec("pyarrow") is None:
        with pytest.raises(UsageError, match="pyarrow"):
            write_manifest(tmp_path / "m.parquet", rows)
    else:
        write_manifest(tmp_path / "m.parquet", rows)
        assert read_manifest(tmp_path / "m.parquet").rows == tuple(rows)


def test_select_and_counts() -> None:
    rows = [
        Row("a", "real", "s", "train"),
        Row("b", "sd1", "s", "train"),
        Row("c", "sd1", "s", "val"),
    ]
    manifest = Manifest(tuple(rows), Path("r"))
    assert manifest.counts() == {"train": {"real": 1, "sd1": 1}, "val": {"sd1": 1}}
    assert manifest.generators == ["sd1"]
    assert [row.path for row in manifest.select("train", "sd1").rows] == ["b"]
    assert manifest.file(rows[0]) == Path("r/a")
    assert [row.is_real for row in rows] == [True, False, False]


COLLECTED = """\
file,split,generator,variant,repo,path,blob,width,height,format,evidence
val/dalle3/a+b/00.jpg,val,dalle3,dalle3,a/b,x/y.jpeg,{blob},1024,1792,JPEG,"C2PA, says so"
train/real/c+d/11.png,train,real,,c/d,z.PNG,{blob},640,480,png,
"""


def test_table_of_collected_images(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(COLLECTED.format(blob="0" * 40))
    first, second = read_manifest(tmp_path / "m.csv").rows
    assert first == Row(
        "val/dalle3/a+b/00.jpg", "dalle3", "a/b", "val", "", 1024, 1792, "JPEG", "none",
        {"variant": "dalle3", "source_path": "x/y.jpeg", "blob": "0" * 40,
         "evidence": "C2PA, says so"},
    )  # fmt: skip
    assert (second.generator, second.source, second.format) == ("real", "c/d", "PNG")
    assert group_of(first) == "a/b"


def test_table_of_the_collector_as_it_writes_it(tmp_path: Path) -> None:
    """Run the collector itself, where it is at hand, on a git snapshot made for it."""
    shared = Path(__file__).parents[3] / "shared" / "data" / "collect.py"
    if not shared.is_file():
        pytest.skip("the collector is not at hand")
    image = save(tmp_path / "work/x/img.png").read_bytes()
    git = tmp_path / "mirror/a+b/repo"

    def run(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(tmp_path / "work"), *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    run("init", "-q")
    blob = run("hash-object", "-w", "x/img.png")
    git.parent.mkdir(parents=True)
    (tmp_path / "work/.git").rename(git)
    (tmp_path / "collect.py").write_bytes(shared.read_bytes())
    head = "split,generator,variant,repo,path,blob,width,height,format,evidence"
    (tmp_path / "inventory.csv").write_text(
        f"{head}\ntrain,dalle2,dalle2,a/b,x/img.png,{blob},16,24,PNG,made here\n"
    )
    subprocess.run(
        [sys.executable, str(tmp_path / "collect.py"), str(tmp_path / "mirror"), "out"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    manifest = read_manifest(tmp_path / "out/manifest.csv")
    (row,) = manifest.rows
    assert (row.generator, row.source, row.split, row.width) == ("dalle2", "a/b", "train", 16)
    assert manifest.file(row).read_bytes() == image


def test_filename_and_typ(tmp_path: Path) -> None:
    text = "filename,typ,score\nreal_RAISE_1k/r1.png,real_RAISE_1k,1\ndalle2\\r1.png,dalle2,2\n"
    (tmp_path / "t.csv").write_text(text)
    first, second = read_manifest(tmp_path / "t.csv").rows
    assert (first.generator, first.source, first.split) == ("real", "real_RAISE_1k", "test")
    assert (second.path, second.generator) == ("dalle2/r1.png", "dalle2")
    assert group_of(first) == group_of(second) == "r1"
    assert second.extra["score"] == "2"
    assert read_manifest(tmp_path / "t.csv", split="validation").rows[0].split == "val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns"),
        ("a,b\n1,2\n", "columns"),
        ("path,generator,source,split\np,g,s,learn\n", "row 2: split must be"),
        ("path,generator,source,split\np,g,s,train\np,g,s,val\n", "row 3: p is listed twice"),
        ("path,generator,source,split\n,g,s,train\n", "path is empty"),
        ("path,generator,source,split\np,g,s\n", "row 2: 4 columns"),
        ("path,generator,source,split\np,g,s,train,more\n", "row 2: 4 columns"),
        ("path,generator,source,split,width\np,g,s,train,1e3\n", "width must be"),
        ("path,generator,source,split,sha256\np,g,s,train,xyz\n", "sha256 must be"),
        ("filename,typ\na,\n", "must not be empty"),
    ],
)
def test_wrong_manifests_say_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path / "m.csv")
    assert caught.value.code == "manifest_invalid"


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path / "m.csv")
    assert caught.value.code == "not_found"


# ---------------------------------------------------------------- finding images


def test_images_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.jpeg", "c.tif", "d.TIFF", "e.PNG", "f.webp", "deep/er/g.Bmp"):
        save(tmp_path / name)
    save(tmp_path / "h.png").rename(tmp_path / "h.img")  # found by its bytes
    save(tmp_path / "i.png").rename(tmp_path / "noext")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".trash/x.png")
    save(tmp_path / "j.png").rename(tmp_path / "j.png.part")
    (tmp_path / "readme.txt").write_text("no")
    (tmp_path / "broken.png").write_bytes(b"no image, but called one: to be reported")
    found = [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)]
    assert found == [
        "a.JPG", "b.jpeg", "broken.png", "c.tif", "d.TIFF", "deep/er/g.Bmp", "e.PNG", "f.webp",
        "h.img", "noext",
    ]  # fmt: skip


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "data/coco/a.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/coco").symlink_to(tmp_path / "data/coco")
    (tmp_path / "data/coco/loop").symlink_to(tmp_path / "data")
    assert len(find_images(tmp_path / "train")) == 1


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_formats_are_known_by_their_bytes(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "x", format=name)
    assert sniff_format(path.read_bytes()[:32]) == name
    assert image_problem(path.read_bytes()[:32]) == ""


def test_what_is_no_image() -> None:
    assert "web page" in image_problem(b"\n<!DOCTYPE HTML><p>moved")
    assert "empty" in image_problem(b"")
    assert image_problem(b"BM is a text about bitmaps, not one")


# ---------------------------------------------------------------- splits


@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.integers(1, 500), min_size=1, max_size=30),
    st.randoms(),
)
@settings(max_examples=200, deadline=None)
def test_splits_by_source(counts: dict[str, int], random: Any) -> None:
    splits = assign_splits(counts)
    assert set(splits) == set(counts)
    assert len(set(splits.values())) == min(3, len(counts))  # no split is empty without need
    items = list(counts.items())
    random.shuffle(items)
    assert assign_splits(dict(items)) == splits
    if len(counts) > 20 and max(counts.values()) < 0.05 * sum(counts.values()):
        share = Counter[str]()
        for name, split in splits.items():
            share[split] += counts[name]
        assert abs(share["train"] / sum(counts.values()) - 0.8) < 0.06


def test_shares_must_add_up() -> None:
    assert set(assign_splits({"a": 1, "b": 1}, {"train": 0.5, "test": 0.5}).values()) == {
        "train",
        "test",
    }
    for shares in ({"train": 0.5}, {"train": 1.5, "val": -0.5}):
        with pytest.raises(UsageError):
            assign_splits({"a": 1}, shares)


def test_the_hash_spreads_evenly() -> None:
    values = np.array([hash_percent(f"newsynth/{n:03d}") for n in range(1000)])
    counts, _ = np.histogram(values, bins=10, range=(0, 100))
    assert counts.sum() == 1000
    assert ((counts - 100.0) ** 2 / 100).sum() < 27.9  # chi-squared, 9 degrees, p = 0.001


def splits_of(rows: tuple[Row, ...], key: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[key(row)].add(row.split)
    return found


def test_own_folders_are_split_by_sub_folder(tmp_path: Path) -> None:
    for source in range(10):
        for n in range(5):
            save(tmp_path / f"photos/site{source}/{n}.jpg", source * 5 + n)
            save(tmp_path / f"flux/run{source}/{n}.png", 100 + source * 5 + n)
    manifest, warnings = scan_folders([tmp_path / "photos"], [("flux1", tmp_path / "flux")])
    assert warnings == []
    assert len(manifest.rows) == 100
    assert {row.source for row in manifest.rows if row.is_real} == {
        f"real:photos/site{n}" for n in range(10)
    }
    assert all(len(s) == 1 for s in splits_of(manifest.rows, lambda r: r.source).values())
    assert manifest.counts() == {
        "test": {"flux1": 5, "real": 5},
        "train": {"flux1": 40, "real": 40},
        "val": {"flux1": 5, "real": 5},
    }
    assert all(manifest.file(row).is_file() for row in manifest.rows)


def test_own_photographs_are_split_by_camera(tmp_path: Path) -> None:
    for n in range(12):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = ("Nikon", "D90") if n % 3 else ("Canon", f"Ixus {n % 2}")
        save(tmp_path / f"real/{n}.jpg", n, exif=exif)
    assert camera_of(tmp_path / "real/1.jpg") == "Nikon D90"
    (tmp_path / "real/bad.jpg").write_bytes(b"\xff\xd8\xff damaged")
    manifest, warnings = scan_folders([tmp_path / "real"], [])
    assert {row.source for row in manifest.rows} == {
        "real:real/Nikon D90", "real:real/Canon Ixus 0", "real:real/Canon Ixus 1",
        "real:real/unknown camera",
    }  # fmt: skip
    assert all(len(s) == 1 for s in splits_of(manifest.rows, lambda r: r.source).values())
    assert warnings == []


def test_a_single_source_is_cut_in_blocks_with_a_warning(tmp_path: Path) -> None:
    for n in range(100):
        save(tmp_path / f"mine/img{n}.png", n, size=(4, 4))
    manifest, warnings = scan_folders([], [("mine", tmp_path / "mine")])
    assert len(warnings) == 1
    assert "single source" in warnings[0]
    splits = splits_of(manifest.rows, group_of)
    assert len(splits) == 20
    assert all(len(found) == 1 for found in splits.values())
    order = sorted(manifest.rows, key=lambda row: int(Path(row.path).stem[3:]))
    changes = sum(a.split != b.split for a, b in pairwise(order))
    assert changes <= 8  # blocks of neighbours: 10 by 10 at most four of them apart from train
    assert manifest.counts() == {"train": {"mine": 80}, "val": {"mine": 10}, "test": {"mine": 10}}
    with pytest.raises(DataError) as caught:
        scan_folders([], [("mine", tmp_path / "mine")], single_source="error")
    assert caught.value.code == "single_source"
    alone, _ = scan_folders([], [("mine", tmp_path / "mine")], shares={"test": 1.0})
    assert {row.split for row in alone.rows} == {"test"}


def test_own_folders_that_make_no_sense(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        scan_folders([], [])
    with pytest.raises(UsageError):
        scan_folders([], [("Real", tmp_path / "a")])
    with pytest.raises(DataError, match="no image"):
        scan_folders([tmp_path / "empty"], [])
    with pytest.raises(DataError, match="no folder"):
        scan_folders([tmp_path / "none"], [])
    with pytest.raises(DataError, match="two of the folders"):
        scan_folders([tmp_path / "a"], [("x", tmp_path / "a")])


# ---------------------------------------------------------------- the original's folders


def test_prompts_are_never_torn_apart(tmp_path: Path) -> None:
    for folder in ("sd1", "stable-diffusion-2", "dalle2"):
        for n in range(200):
            path = tmp_path / f"newsynth/{folder}/{n:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x89PNG\r\n\x1a\n")
    rows: list[Row] = []
    for known in load_sources()["polardiffshield"].folders:
        for place in (known.path, *known.aliases):
            rows += folder_rows(known, tmp_path, place)
    assert Counter(row.generator for row in rows) == {"sd1": 200, "sd2": 200, "dalle2": 200}
    splits = splits_of(tuple(rows), group_of)
    assert len(splits) == 200
    assert all(len(found) == 1 for found in splits.values())
    val = sum(found == {"val"} for found in splits.values())
    assert 10 <= val <= 32  # 10 % of 200 prompts


def test_prepared_folders_of_the_original(tmp_path: Path) -> None:
    places = {
        "train/mit5k/a0001-x.png": ("real", "train"),
        "train/coco_train/1.jpg": ("real", "train"),
        "train/coco_val/2.jpg": ("real", "val"),
        "train/dresden/Canon_Ixus55_0_1.png": ("real", "train"),
        "train/hdrburst/h.png": ("real", "val"),
        "train/newsynth/sdxl/001.png": ("sdxl", "train"),
        "JPEG_Qrandom/raise/r000da54ft.jpg": ("real", "test"),
        "JPEG_Qrandom/synthbuster/stable-diffusion-1-3/r000da54ft.jpg": ("sd1", "test"),
        "JPEG_Qrandom/synthbuster/dalle3/r000da54ft.jpg": ("dalle3", "test"),
        "JPEG_Q90/raise/other.jpg": None,
        "train/unknown/x.png": None,
    }
    for n, name in enumerate(places):
        save(tmp_path / name, n)
    folders = [f for source in load_sources().values() for f in source.folders]
    manifest = read_layout(tmp_path, folders)
    found = {row.path: (row.generator, row.split) for row in manifest.rows}
    assert found == {name: value for name, value in places.items() if value}
    by_path = {row.path: row for row in manifest.rows}
    assert group_of(by_path["train/dresden/Canon_Ixus55_0_1.png"]) == "dresden/Canon_Ixus55"
    assert by_path["train/coco_train/1.jpg"].format == "JPEG"
    assert [
        r.path for r in read_layout(tmp_path, folders, "JPEG_Q90").rows if r.split == "test"
    ] == ["JPEG_Q90/raise/other.jpg"]
    with pytest.raises(DataError) as caught:
        read_layout(tmp_path / "train", folders)
    assert caught.value.code == "no_images"


def test_csv_is_plain(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", [Row("a,b.png", "real", "s", "train", extra={"z": "1"})])
    with open(tmp_path / "m.csv", newline="") as f:
        lines = list(csv.reader(f))
    assert lines == [[*CORE, "z"], ["a,b.png", "real", "s", "train", "", "0", "0", "", "", "1"]]
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]

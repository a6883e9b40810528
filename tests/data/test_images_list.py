"""The list of images behind the published figures, and the script that collects them."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import make_natural
from masksim.data.manifest import Row, read_manifest
from masksim.data.views import views_of_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def clone(tmp_path: Path) -> tuple[Path, bytes, str]:
    """Make a clone with one file: folder of clones, its bytes, its blob."""
    folder = tmp_path / "clones" / "someone+pictures"
    folder.mkdir(parents=True)
    data = bytes(range(256)) * 3
    (folder / "a b.png").write_bytes(data)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    return folder.parent, data, hashlib.sha1(b"blob 768\0" + data).hexdigest()


def test_images_come_out_of_clones_by_their_hashes(
    tmp_path: Path, clone: tuple[Path, bytes, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    clones, data, blob = clone
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import images  # type: ignore[import-not-found]

    listed = tmp_path / "images.csv"
    head = "repository,path,blob,generator,width,height,format,kind,seen_by,evidence\n"
    listed.write_text(
        head + f'someone/pictures,a b.png,{blob},flux1,512,768,PNG,photo,masksim-2,"a, b"\n'
        f"someone/pictures,gone.jpg,{'0' * 40},real,512,768,JPEG,web,,\n"
        f"other/one,there.jpg,{'1' * 40},real,512,768,JPEG,web,,\n"
    )
    monkeypatch.setattr(images, "LIST", listed)
    monkeypatch.setattr(
        sys, "argv", ["images.py", "--clones", str(clones), "--out", str(tmp_path / "out")]
    )
    images.main()
    assert capsys.readouterr().err == "1 images, 2 missing\n"
    manifest = read_manifest(tmp_path / "out" / "manifest.csv")
    (row,) = manifest.rows
    assert manifest.file(row).read_bytes() == data
    assert (row.generator, row.source, row.width, row.height) == (
        "flux1", "someone/pictures", 512, 768,
    )  # fmt: skip
    assert row.key == blob
    assert row.extra == {"blob": blob, "kind": "photo", "seen_by": "masksim-2"}


def test_the_list_names_each_image_once() -> None:
    with (BENCHMARKS / "images.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) > 3000
    assert len({row["blob"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["blob"]) == 40
        assert set(row["blob"]) <= set("0123456789abcdef")
        assert row["repository"].count("/") == 1
        assert row["generator"]
        assert row["seen_by"] in (
            "",
            "masksim-2",
            "masksim-3",
            "masksim-4",
            "masksim-5",
            "masksim-6",
            "masksim-7",
        )
        assert min(int(row["width"]), int(row["height"])) >= 256
        assert row["kind"] or row["generator"] != "real"
    # A repository is seen whole or not at all.
    seen = {row["repository"] for row in rows if row["seen_by"]}
    assert not seen & {row["repository"] for row in rows if not row["seen_by"]}


def line(blob: str, repository: str, generator: str, **answer: Any) -> dict[str, Any]:
    return {
        "blob": blob, "repository": repository, "path": blob, "generator": generator,
        "width": "600", "height": "800", "format": "MPO", "kind": "web", "seen_by": "",
        **(answer or {"failed": "missing"}),
    }  # fmt: skip


def test_owners_that_the_detector_has_seen_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fresh  # type: ignore[import-not-found]

    seen = {**line("a", "old/one", "flux1"), "seen_by": "masksim-2"}
    listed = [seen, line("b", "old/two", "flux1"), line("c", "new/one", "flux1")]
    monkeypatch.setattr(fresh, "read_list", lambda: listed)
    rows = fresh.judge(tmp_path / "none", tmp_path / "work", workers=1)
    assert [row["repository"] for row in rows] == ["new/one"]
    assert rows[0]["failed"] == "missing"


def test_answers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, natural_image: Any
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fresh

    listed = [line("a", "new/one", "flux1"), line("b", "new/two", "real")]
    monkeypatch.setattr(fresh, "read_list", lambda: listed)
    for one in listed:
        file = tmp_path / fresh.path_of(one)
        file.parent.mkdir(parents=True)
        if one["generator"] == "real":
            file.write_bytes(b"no image")
        else:
            Image.fromarray(natural_image(272, 264, seed=1)).save(file, "PNG")
    first = fresh.judge(tmp_path, tmp_path / "work", workers=1)
    assert 0 < first[0]["rate"] <= 1
    assert first[1]["failed"] == "not_an_image"

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(fresh, "answer_of", never)
    assert fresh.judge(tmp_path, tmp_path / "work", workers=1) == first


def test_shares_count_what_is_fragile_by_its_rate_as_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fresh

    low = {"rate": 0.004, "level": "strong evidence"}
    lost = {"rate": 0.03, "level": "fragile"}
    rows = [
        *(line(f"a{k}", f"new/{k % 3}", "flux1", **low) for k in range(6)),
        *(line(f"b{k}", "new/1", "flux1", **lost) for k in range(2)),
        line("e", "new/4", "real", rate=0.6, level="no evidence"),
        line("f", "new/4", "real", rate=0.04, level="evidence"),
        line("g", "new/5", "real"),
        line("h", "new/5", "real", failed="truncated"),
    ]
    found = fresh.shares_of(rows)
    assert (found["missing"], found["failed"]) == (1, 1)
    own = found["generators"]["flux1"]
    assert (own["images"], own["repositories"]) == (8, 3)
    assert own["0.05"]["value"] == 1.0
    assert own["0.01"]["value"] == own["evidence"]["value"] == 0.75
    assert own["fragile"]["value"] == 0.25
    photos = found["photos"]["all"]
    assert (photos["images"], photos["0.05"]["value"], photos["0.01"]["value"]) == (2, 0.5, 0.0)
    assert set(found["photos"]) == {"all"}  # no group of two
    assert "| flux1 | 8 | 3 | 75.0 [" in fresh.markdown(found)
    assert "flux1" not in fresh.summary(found)  # too few images for the short table


def test_views_are_drawn_again_without_the_image(tmp_path: Path) -> None:
    """What benchmarks/left_out.py says of views is what training made of the file."""
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from left_out import views_of  # type: ignore[import-not-found,unused-ignore]
    finally:
        sys.path.remove(str(BENCHMARKS))
    from masksim.training.bands import BandsConfig

    config = BandsConfig.from_dict({"views": {"views": {"*": 8}, "ways": {"sharpened": 0.5}}})
    ways = set()
    for number, (size, suffix) in enumerate([((700, 520), "jpg"), ((900, 1400), "png")]):
        file = tmp_path / f"{number}.{suffix}"
        Image.fromarray(make_natural(*size, seed=number)).save(file, quality=88)
        blob = hashlib.sha1(file.read_bytes()).hexdigest()
        row = Row(file.name, "real", "a/b", "train", "", size[1], size[0], extra={"blob": blob})
        made = [view for _, view in views_of_file(file, row, "met", config.views, config.seed)]
        row = replace(row, format={"jpg": "JPEG", "png": "PNG"}[suffix])
        drawn = views_of(row, made[0].quality, config)
        assert len(drawn) == len(made) == 8
        for mine, view in zip(drawn, made, strict=True):
            assert mine.pixels.shape == view.pixels.shape
            for name in ("history", "processing", "quality", "format", "way", "band"):
                assert getattr(mine, name) == getattr(view, name), name
            ways.add(view.way)
    assert len(ways) > 3

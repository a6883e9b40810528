"""The list of images behind the published figures, and the script that collects them."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from masksim.data.manifest import read_manifest

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
    head = "repository,path,blob,generator,width,height,format,kind,evidence\n"
    listed.write_text(
        head + f'someone/pictures,a b.png,{blob},flux1,512,768,PNG,photo,"a, b"\n'
        f"someone/pictures,gone.jpg,{'0' * 40},real,512,768,JPEG,web,\n"
        f"other/one,there.jpg,{'1' * 40},real,512,768,JPEG,web,\n"
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
        assert min(int(row["width"]), int(row["height"])) >= 256
        assert row["kind"] or row["generator"] != "real"

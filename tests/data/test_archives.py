"""Archives: unpacked by their mapping, gone on with, and those that mean harm."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksim.data.archives import ArchiveLimits, extract_archive, safe_member
from masksim.errors import DataError

BODY = np.random.default_rng(7).bytes(1_000_003)


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as z:
        for name, body in members.items():
            z.writestr(name, body)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as t:  # type: ignore[call-overload]
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            t.addfile(info, io.BytesIO(body))
    return path


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_archive_is_unpacked_by_its_mapping(tmp_path: Path, make: Any) -> None:
    members = {
        "train/mit5k/a.png": b"A" * 999,
        "train/coco/b.jpg": b"B",
        "readme.txt": b"no",
        "__MACOSX/train/._a.png": b"no",
        "train/coco/.DS_Store": b"no",
    }
    archive = make(tmp_path / "a.bin", members)
    out = tmp_path / "out"
    assert sorted(extract_archive(archive, out, {"train": ""})) == ["coco/b.jpg", "mit5k/a.png"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "coco/b.jpg",
        "mit5k/a.png",
    ]
    assert (out / "mit5k/a.png").read_bytes() == b"A" * 999
    with pytest.raises(DataError, match="none of the folders") as caught:
        extract_archive(archive, out, {"elsewhere": ""})
    assert caught.value.code == "archive_layout"


def test_unpacking_goes_on_and_repairs(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x/1.png": b"one", "x/2.png": b"two"})
    extract_archive(archive, tmp_path / "out")
    first = (tmp_path / "out/x/1.png").stat().st_mtime_ns
    (tmp_path / "out/x/2.png").write_bytes(b"???")
    extract_archive(archive, tmp_path / "out")
    assert (tmp_path / "out/x/1.png").stat().st_mtime_ns == first
    assert (tmp_path / "out/x/2.png").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, make: Any, name: str) -> None:
    archive = make(tmp_path / "a.bin", {"fine.png": b"1", name: b"evil"})
    with pytest.raises(DataError) as caught:
        extract_archive(archive, tmp_path / "deep" / "out")
    assert caught.value.code == "archive_unsafe"
    assert not [p for p in tmp_path.rglob("*evil*")]
    with pytest.raises(DataError):
        safe_member(name)


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as z:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="link"):
        extract_archive(archive, tmp_path / "out")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as t:
            member = tarfile.TarInfo("thing")
            member.type, member.linkname = kind, "/etc/passwd"
            t.addfile(member)
        with pytest.raises(DataError) as caught:
            extract_archive(tmp_path / "a.tar", tmp_path / "out")
        assert caught.value.code == "archive_unsafe"
    assert not (tmp_path / "out" / "thing").exists()


@pytest.mark.parametrize(
    "limits",
    [
        ArchiveLimits(max_ratio=20, ratio_from=1 << 16),
        ArchiveLimits(max_bytes=1 << 18),
        ArchiveLimits(max_member_bytes=1 << 18),
        ArchiveLimits(max_members=1),
    ],
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs_are_refused(tmp_path: Path, make: Any, limits: ArchiveLimits) -> None:
    members = {"a.png": bytes(1 << 20), "b.png": bytes(1 << 20)}
    more = {"method": zipfile.ZIP_DEFLATED} if make is make_zip else {}
    archive = make(tmp_path / "a.bin", members, **more)
    with pytest.raises(DataError) as caught:
        extract_archive(archive, tmp_path / "out", limits=limits)
    assert caught.value.code == "archive_bomb"
    assert not (tmp_path / "out" / "b.png").exists()


def test_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.png": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    data = bytearray(archive.read_bytes())
    true = (1 << 20).to_bytes(4, "little")
    while true in data:
        at = data.index(true)
        data[at : at + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(bytes(data))
    with pytest.raises(DataError) as caught:
        extract_archive(archive, tmp_path / "out", limits=ArchiveLimits(max_bytes=1 << 16))
    assert caught.value.code in ("archive_bomb", "archive_invalid")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_damaged_archives(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.png": BODY})
    data = bytearray(archive.read_bytes())
    data[5000] ^= 255
    archive.write_bytes(bytes(data))
    for body in (
        None,
        b"no archive at all",
        make_tar(tmp_path / "b", {"a": BODY}).read_bytes()[:9000],
    ):
        if body is not None:
            archive.write_bytes(body)
        with pytest.raises(DataError) as caught:
            extract_archive(archive, tmp_path / "out")
        assert caught.value.code == "archive_invalid"
        assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]

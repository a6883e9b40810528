"""`masksim.files`: whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path

import pytest

from masksim.errors import UsageError
from masksim.files import cannot_write, file_digest, make_folder, write_whole, written_whole


def test_a_file_takes_the_place_of_the_former(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]


def test_after_an_error_the_former_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"one")

    def write() -> None:
        with written_whole(path, "w") as file:
            file.write("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "a", b"one")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        write_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


def test_others_may_read_it_as_any_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_text_is_utf8(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a", "w") as file:
        file.write("é")
    assert (tmp_path / "a").read_bytes() == "é".encode()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"one")
    (tmp_path / "link").symlink_to("there")
    write_whole(tmp_path / "link", b"two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"two"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no such device")
def test_a_device_is_written_into() -> None:
    write_whole("/dev/null", b"gone")
    assert not Path("/dev/null").is_file()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*missing"):
        write_whole(tmp_path / "missing" / "a", b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write"):
        make_folder(tmp_path / "file" / "folder")
    full = cannot_write("a", OSError(errno.ENOSPC, "No space left on device"))
    assert "free some space" in full.message
    assert "free" not in cannot_write("a", OSError(errno.EACCES, "Permission denied")).message


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_digests_are_those_of_hashlib(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    (tmp_path / "a").write_bytes(data)
    assert file_digest(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert file_digest(tmp_path / "a", "md5") == hashlib.md5(data).hexdigest()


def test_only_errors_of_writing_are_told_as_such(tmp_path: Path) -> None:
    """A block that reads a file which is damaged, or not there, raises that error."""

    def write(error: OSError) -> None:
        with written_whole(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    for other in (OSError("no magic bytes"), FileNotFoundError(errno.ENOENT, "none", "b")):
        with pytest.raises(type(other)) as found:
            write(other)
        assert found.value is other
    with pytest.raises(UsageError, match="free some space"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_device_without_space(size: int) -> None:
    with pytest.raises(UsageError, match="No space left"):
        write_whole("/dev/full", bytes(size))

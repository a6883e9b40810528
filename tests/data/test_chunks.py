"""`masksim.data.chunks`: what names the folder of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from masksim import __version__
from masksim.data.chunks import chunk_folder
from masksim.errors import UsageError


def test_another_version_has_chunks_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chunk_folder(tmp_path, ["a"], prefix="p-")
    assert chunk_folder(tmp_path, ["a"], prefix="p-") == one
    assert json.loads((one / "key.json").read_text()) == ["a", __version__]
    monkeypatch.setattr("masksim.data.chunks.__version__", "0.0.1")
    assert chunk_folder(tmp_path, ["a"], prefix="p-") != one
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write"):
        chunk_folder(tmp_path / "file", ["a"])

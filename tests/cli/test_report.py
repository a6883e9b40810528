"""The commands `masksim report` and `masksim report verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from masksim.cli import main as cli
from masksim.detector import Detector
from masksim.dossier import page as pages


@pytest.fixture
def run(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def load(path: Any = None, **_: Any) -> Detector:
        assert path is None
        return detector

    monkeypatch.setattr("masksim.load.load_detector", load)
    return lambda *arguments, **options: CliRunner().invoke(
        cli.app, ["report", *map(str, arguments)], **options
    )


def test_the_commands(run: Callable[..., Any], small: bytes, tmp_path: Path) -> None:
    image, out = tmp_path / "photo.jpg", tmp_path / "report.html"
    image.write_bytes(small)
    made = run(image, "-o", out, "--maps", "1")
    assert made.exit_code == 0, made.output
    assert pages.seal_of(out.read_bytes()) in made.stdout

    again = run("--out", out, image)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    replaced = run("--json", "--overwrite", "--maps", "all", "-o", out, "-", input=small)
    assert replaced.exit_code == 0, replaced.output
    result = json.loads(replaced.stdout)
    assert result["seal"] == pages.seal_of(out.read_bytes())
    assert result["n_bytes"] == len(out.read_bytes())
    assert result["image"]["name"] == "<stdin>"
    assert result["verdict"]["level"]

    checked = run("verify", out, image)
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.splitlines()[-1] == "verified"
    page = bytearray(out.read_bytes())
    page[page.index(b"Verdict")] ^= 1
    out.write_bytes(page)
    failed = run("verify", out, image, "--json")
    assert failed.exit_code == 1
    result = json.loads(failed.stdout)
    assert result["passed"] is False
    assert {c["name"] for c in result["checks"] if c["passed"] is False} == {"seal", "content"}
    assert "does not verify: seal, content" in failed.stderr


def test_wrong_usage(run: Callable[..., Any], photo: bytes, tmp_path: Path) -> None:
    image = tmp_path / "photo.jpg"
    image.write_bytes(photo)
    assert run(image).exit_code == 2  # without a place to write to
    assert run(image, "-o", tmp_path / "a.html", "--maps", "few").exit_code == 2
    assert run(image, "-o", tmp_path / "no folder" / "a.html").exit_code == 2
    assert run(tmp_path / "none.jpg", "-o", tmp_path / "a.html").exit_code == 3
    assert run(image, "-o", tmp_path / ("a" * 300 + ".html")).exit_code == 2
    assert run("verify", tmp_path / "none.html", image).exit_code == 2
    assert run("--help").exit_code == 0
    assert not (tmp_path / "a.html").exists()

"""`masksim data label`: a manifest of files by their own claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from masksim.cli import main as cli
from masksim.data.label import label_folder
from masksim.data.manifest import read_manifest
from masksim.errors import DataError

CANON = {"Make": "Canon", "Model": "Canon EOS 5D", "DateTimeOriginal": "2020:01:02 03:04:05"}
COMFY = '{"1": {"inputs": {"%s": "%s"}, "class_type": "%s"}}'


def exif(**values: str) -> Image.Exif:
    tags = Image.Exif()
    for name, value in values.items():
        inner = name in ("DateTimeOriginal", "UserComment")
        (tags.get_ifd(ExifTags.IFD.Exif) if inner else tags)[ExifTags.Base[name]] = value
    return tags


def comfy(key: str, model: str, kind: str = "CheckpointLoaderSimple") -> dict[str, Any]:
    chunks = PngInfo()
    chunks.add_text("prompt", COMFY % (key, model, kind))
    return {"pnginfo": chunks}


def words(text: str) -> dict[str, Any]:
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    return {"pnginfo": chunks}


FILES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a/flux.png": (comfy("unet_name", "flux1-dev.safetensors"), "flux1", "flux1-dev.safetensors"),
    "a/xl.png": (comfy("ckpt_name", "juggernautXL_9.safetensors"), "sdxl",
                 "juggernautXL_9.safetensors"),
    "a/own.png": (comfy("ckpt_name", "mine.safetensors"), "comfyui", "mine.safetensors"),
    "a/edit.png": (comfy("ckpt_name", "flux1-dev.sft", "LoadImage"), "flux1-edit", "flux1-dev.sft"),
    "b/webui.png": (words("a cat\nSteps: 20, Sampler: Euler, Model: v1-5-pruned"), "sd1",
                    "v1-5-pruned"),
    "b/labs.jpg": ({"exif": exif(UserComment="Made with OpenAI Labs")}, "dalle2", "OpenAI Labs"),
    "b/mj.jpg": ({"exif": exif(Software="Midjourney 6")}, "midjourney", "Midjourney"),
    "photo.jpg": ({"exif": exif(**CANON)}, "real", "Canon EOS 5D"),
    "edited.jpg": ({"exif": exif(**CANON, Software="GIMP 2.10")}, "real", "Canon EOS 5D"),
    "undated.jpg": ({"exif": exif(Make="Canon", Model="Canon EOS 5D")}, "", ""),
    "both.jpg": ({"exif": exif(**CANON, Software="ChatGPT")}, "", ""),
    "scan.jpg": ({"exif": exif(**{**CANON, "Model": "CanoScan 9000F"})}, "", ""),
    "ai.jpg": ({"exif": exif(Artist="AI generated")}, "", ""),
    "silent.jpg": ({}, "", ""),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "files"
    values = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    for name, (options, _, _) in FILES.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path, **options)
    (top / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return top


def test_rows_are_what_the_files_say(folder: Path) -> None:
    found = label_folder(folder)
    rows = {row.path: row for row in found.rows}
    wanted = {name: (g, v) for name, (_, g, v) in FILES.items() if g}
    assert {p: (r.generator, r.extra["variant"]) for p, r in rows.items()} == wanted
    assert all(row.extra["evidence"] for row in rows.values())
    assert (rows["photo.jpg"].width, rows["photo.jpg"].height) == (24, 16)
    assert rows["a/flux.png"].source == "files/a"
    assert rows["photo.jpg"].source == "files/Canon EOS 5D"
    assert "GIMP" in rows["edited.jpg"].extra["evidence"]
    assert sum(found.without.values()) == len(FILES) + 1 - len(wanted)
    assert found.without["it names a generator and a device"] == 1
    assert found.without["a scanner made it"] == 1
    assert any("cannot be read" in why for why in found.without)


def test_a_source_is_in_one_split(folder: Path) -> None:
    splits: dict[tuple[str, str], set[str]] = {}
    for row in label_folder(folder).rows:
        splits.setdefault((row.generator, row.source), set()).add(row.split)
    assert all(len(of) == 1 for of in splits.values())


def test_the_command(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.csv"
    done = CliRunner().invoke(cli.app, ["data", "label", str(folder), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    listed = read_manifest(out)
    assert said["images"] == len(listed.rows) == sum(said["generators"].values())
    assert all(listed.file(row).is_file() for row in listed.rows)
    again = CliRunner().invoke(cli.app, ["data", "label", str(folder), "-o", str(out)])
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    text = CliRunner().invoke(
        cli.app, ["data", "label", str(folder), "-o", str(out), "--overwrite"]
    )
    assert text.exit_code == 0
    assert "real: 2" in text.stdout
    assert read_manifest(out).rows == listed.rows


def test_folders_that_are_no_use(tmp_path: Path) -> None:
    for name, code in (("gone", "not_found"), (".", "no_images")):
        with pytest.raises(DataError) as caught:
            label_folder(tmp_path / name)
        assert caught.value.code == code

"""Preparation: from nothing by the documented commands, and the same however it is run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from local_server import Site, serve  # type: ignore[import-not-found]
from masksim.cli.data import app
from masksim.data import sources as sources_module
from masksim.data.manifest import Manifest, Row, manifest_hash, read_manifest
from masksim.data.prepare import (
    Item,
    PrepareConfig,
    Variant,
    cut_window,
    parse_variant,
    plan_manifest,
    plan_sets,
    prepare,
)
from masksim.data.sources import load_sources
from masksim.errors import DataError, UsageError

SIZE = 96  # of the make-believe images; the window is 64


def picture(seed: int, size: tuple[int, int] = (SIZE, SIZE + 8)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = [np.sin(rng.uniform(0.02, 0.4) * x + rng.uniform(0.02, 0.4) * y) for _ in range(3)]
    scene = 128 + 60 * np.stack(waves, axis=-1) + rng.normal(scale=8, size=(*size, 3))
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8)


def coded(seed: int, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(seed)).save(out, format, **options)
    return out.getvalue()


def run_cli(*words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, json.loads(result.stdout)


# ---------------------------------------------------------------- every set, made up


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, body in members.items():
            z.writestr(name, body)
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            t.addfile(info, io.BytesIO(body))
    return out.getvalue()


SYNTHBUSTER = (
    "stable-diffusion-1-3", "stable-diffusion-1-4", "stable-diffusion-2", "stable-diffusion-xl",
    "dalle2", "dalle3", "midjourney-v5", "firefly", "glide",
)  # fmt: skip
RAISE = ("r000da54ft", "r001d260dt", "r002fc3e2t")
PROMPTS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Path]]:
    """Serve a small copy of every set; yield the site and a table of sources that points there."""
    folder = tmp_path_factory.mktemp("world")
    with serve() as site:
        bundle = {
            f"train/{name}/{stem}{n}{suffix}": coded(seed + n, format)
            for seed, (name, stem, suffix, format) in enumerate(
                [
                    ("mit5k", "a000", "-x.png", "PNG"),
                    ("coco_train", "00000", ".jpg", "JPEG"),
                    ("coco_val", "10000", ".JPEG", "JPEG"),
                    ("dresden", "Canon_Ixus55_0_", ".tif", "TIFF"),
                    ("hdrburst", "hdr", ".png", "PNG"),
                ]
            )
            for n, seed in enumerate(range(seed * 50, seed * 50 + 4))
        }
        bodies = {
            "train.zip": zipped(bundle),
            "fivek_dataset.tar": tarred(
                {
                    **{f"fivek_dataset/raw/a{n:04d}-y.png": coded(900 + n) for n in (11, 12)},
                    "fivek_dataset/raw/a0013-y.dng": b"II*\0 raw, not developed",
                }
            ),
            "train2017.zip": zipped(
                {f"train2017/{n:012d}.jpg": coded(300 + n, "JPEG") for n in range(4)}
            ),
            "val2017.zip": zipped(
                {f"val2017/{n:012d}.jpg": coded(320 + n, "JPEG") for n in range(2)}
            ),
            "synthbuster.zip": zipped(
                {
                    f"synthbuster/{name}/{scene}.png": coded(400 + 10 * k + n)
                    for k, name in enumerate(SYNTHBUSTER)
                    for n, scene in enumerate(RAISE)
                }
            ),
        }
        columns = {
            "URL Stable Diffusion 1.*": "stable-diffusion-1",
            "URL Stable Diffusion 2.1": "stable-diffusion-2",
            "URL Stable Diffusion XL": "stable-diffusion-xl",
            "URL Dall.e 2": "dalle2",
            "URL Dall.e 3": "dalle3",
            "URL midjourney": "midjourney",
            "URL firefly": "firefly",
        }
        lines = ["ID,prompt," + ",".join(columns)]
        host = site.base.removeprefix("http://")
        for n in range(PROMPTS):
            lines.append(f'{n:04d},"A prompt, {n}",')
            urls = []
            for k, name in enumerate(columns.values()):
                path = f"/static/newsynth/{name}/{n:03d}.png"
                if (n, name) != (5, "dalle2"):  # one image is gone
                    site.put(path, coded(500 + 20 * k + n), drops=[200] if n == 3 else [])
                urls.append(host + path)
            lines[-1] += ",".join(urls)
        site.put("/static/newsynth/firefly/007.png", b"<!DOCTYPE html><p>Not found, with 200")
        bodies["database.csv"] = "\n".join(lines).encode()
        for name, body in bodies.items():
            site.put("/" + name, body, drops=[len(body) // 2])
        digest = hashlib.sha1(bodies["fivek_dataset.tar"]).hexdigest()
        site.put("/fivek_dataset.tar.sha1", digest.encode())
        bursts = []
        for n in range(3):
            name = f"20171106_subset/results_20171023/burst{n}/final.jpg"
            body = coded(700 + n, "JPEG")
            site.put("/hdr/" + name, body)
            md5 = hashlib.md5(body, usedforsecurity=False).digest()
            bursts.append(
                {"name": name, "size": str(len(body)), "md5Hash": base64.b64encode(md5).decode()}
            )
        site.put("/hdr-list", json.dumps({"items": bursts}).encode())
        rows = ["File,Device,NEF,TIFF"]
        for n, scene in enumerate(RAISE):
            site.put(f"/RAISE/TIFF/{scene}.TIF", coded(800 + n, "TIFF"))
            rows.append(f"{scene},Nikon D90,x,http://193.205.194.113/RAISE/TIFF/{scene}.TIF")
        (folder / "RAISE_1k.csv").write_text("\n".join(rows))
        (folder / "dresden.csv").write_text(
            f"url\n{site.put('/gallery/Nikon_D70_1_9.JPG', coded(850, 'JPEG'))}\n"
        )

        # The built-in table, its addresses, sizes and checksums changed to those of the copies.
        text = Path(sources_module.TABLE).read_text(encoding="utf-8")
        for name, body in bodies.items():
            text = re.sub(
                rf'"https?://[^"]*{re.escape(name)}(\?[^"/]*)?"', f'"{site.base}/{name}"', text
            )
            text = re.sub(
                rf'"https?://[^"]*{re.escape(name)}/content"', f'"{site.base}/{name}"', text
            )
            text = re.sub(
                rf'(name = "{re.escape(name)}"\nurls = \[[^\]]*\]\n)size = \d+\nchecksum = "[^"]*"',
                rf'\g<1>size = {len(body)}\nchecksum = "sha256:{hashlib.sha256(body).hexdigest()}"',
                text,
            )
        text = text.replace(
            "https://data.csail.mit.edu/graphics/fivek/fivek_dataset.tar.sha1",
            site.base + "/fivek_dataset.tar.sha1",
        )
        text = re.sub(r'url = "https://storage[^"]*"', f'url = "{site.base}/hdr-list"', text)
        text = re.sub(r'"https://storage[^"]*\{name\}"', f'"{site.base}/hdr/{{name}}"', text)
        text = text.replace('"https://loki.disi.unitn.it/" }', f'"{site.base}/" }}')
        table = folder / "sources.toml"
        table.write_text(text, encoding="utf-8")
        yield site, table


def test_every_set_from_nothing_by_the_documented_commands(
    world: tuple[Site, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, table = world
    monkeypatch.chdir(tmp_path)
    use = ("--sources", str(table))

    code, listed = run_cli("list", *use)
    assert code == 0
    assert {entry["name"] for entry in listed["sets"]} == set(load_sources())

    # What the original's README asks for.
    code, got = run_cli("download", "bundle", "synthbuster", *use)
    assert (code, got["ok"]) == (0, True)
    assert [(s["set"], s["unpacked"]) for s in got["sets"]] == [("bundle", 20), ("synthbuster", 27)]
    code, got = run_cli("download", "polardiffshield", "--attempts", "2", *use)
    assert code == 5
    (report,) = got["sets"]
    assert report["downloaded"] == 7 * PROMPTS - 2
    assert {(p["file"], p["code"]) for p in report["problems"]} == {
        ("005.png", "http_404"),
        ("007.png", "wrong_content"),
    }
    code, got = run_cli("download", "raise1k", *use)
    assert code == 5
    assert "form" in got["sets"][0]["problems"][0]["message"]
    lists = table.parent
    code, got = run_cli("download", "raise1k", "--table", str(lists / "RAISE_1k.csv"), *use)
    assert (code, got["sets"][0]["downloaded"]) == (0, 3)
    # And each set for itself.
    code, got = run_cli("download", "mit5k", "coco", "hdrburst", *use)
    assert code == 0, got
    assert [s["unpacked"] for s in got["sets"]] == [3, 6, 0]
    code, got = run_cli("download", "dresden", "--table", str(lists / "dresden.csv"), *use)
    assert code == 0

    # Again: everything is there.
    code, got = run_cli("download", "bundle", "synthbuster", "coco", "mit5k", "hdrburst", *use)
    assert code == 0
    assert sum(s["downloaded"] for s in got["sets"]) == 0

    code, made = run_cli("prepare", "--window", "64", *use)
    assert code == 0
    assert made["failed"] == 1
    assert made["failures"][0]["path"] == "mit5k/raw/a0013-y.dng"
    assert made["failures"][0]["code"] in ("unsupported", "unreadable", "truncated")
    manifest = read_manifest("processed_data/manifest.csv")
    assert manifest_hash(manifest.rows) == made["manifest_hash"]
    table_of_splits = {
        (row.path.split("/")[0], row.source, row.split) for row in manifest.rows if row.is_real
    }
    assert table_of_splits == {
        ("train", "mit5k", "train"), ("train", "dresden", "train"), ("train", "hdrburst", "val"),
        ("train", "coco_train", "train"), ("train", "coco_val", "val"),
        ("JPEG_Qrandom", "raise", "test"),
    }  # fmt: skip
    synthetic = [row for row in manifest.rows if not row.is_real]
    assert {row.split for row in synthetic if row.source == "newsynth"} <= {"train", "val"}
    assert sum(row.source == "newsynth" for row in synthetic) == 7 * PROMPTS - 2
    buster = [row for row in synthetic if row.source == "synthbuster"]
    assert len(buster) == 27
    assert {row.path.rsplit("/", 1)[0] for row in buster} == {
        f"JPEG_Qrandom/synthbuster/{name}" for name in SYNTHBUSTER
    }
    assert {row.split for row in buster} == {"test"}
    assert {row.extra["group"] for row in buster} == {f"synthbuster/{scene}" for scene in RAISE}
    for row in manifest.rows:
        file = manifest.file(row)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row.sha256
        with Image.open(file) as image:
            assert image.size == (row.width, row.height)
            if row.path.startswith("JPEG"):
                assert (image.format, image.size) == ("JPEG", (64, 64))
    qualities = {re.findall(r"quality (\d+)", row.processing)[0] for row in buster}
    assert all(65 <= int(q) <= 100 for q in qualities)
    assert len(qualities) > 5

    code, checked = run_cli("verify", "processed_data", "--window", "64", "--no-probe")
    assert code == 0
    assert checked["errors"] == 0
    assert checked["readable"] == len(manifest.rows)

    # The original's own folders are read as they are.
    code, again = run_cli("prepare", "--original", "processed_data", *use)
    assert code == 0
    assert {row["path"] for row in again["failures"]} == set()
    labels = {row.path: (row.generator, row.split, row.sha256) for row in manifest.rows}
    read = read_manifest("processed_data/manifest.csv").rows
    assert {row.path: (row.generator, row.split, row.sha256) for row in read} == labels


def test_the_documented_commands_are_understood() -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    commands = re.findall(r"^masksim data (\w+)([^#\n]*)", text, flags=re.MULTILINE)
    assert len(commands) > 20
    group = get_command(app)
    known = group.commands  # type: ignore[attr-defined]
    assert {name for name, _ in commands} == set(known)
    for name, words in commands:
        arguments = shlex.split(words) or (["set"] if name in ("download", "verify") else [])
        known[name].make_context(name, arguments)


def test_moved_file_by_url(world: tuple[Site, Path], tmp_path: Path) -> None:
    site, _ = world
    site.put("/new/home.zip", zipped({"train/mit5k/a.png": coded(1)}))
    places = ("--data", str(tmp_path / "data"), "--cache", str(tmp_path / "cache"))
    code, got = run_cli("download", "bundle", "--url", site.base + "/new/home.zip", *places)
    assert (code, got["sets"][0]["unpacked"]) == (0, 1)
    assert (tmp_path / "data/mit5k/a.png").read_bytes() == coded(1)
    code, got = run_cli("download", "imagenet", *places)
    assert (code, got["error"]["code"]) == (5, "source_unknown")
    code, got = run_cli("download", "coco", "--url", "http://127.0.0.1:1/x", *places)
    assert (code, got["error"]["code"]) == (2, "usage")


# ---------------------------------------------------------------- the same however it is run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 320 files: PNG, JPEG, and some that are damaged or too small."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for n in range(320):
        name = f"{n // 40}/img{n:03d}.{'png' if n % 2 else 'jpg'}"
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        size = (40, 300) if n % 64 == 9 else (288, 300)
        options: dict[str, Any] = {} if n % 2 else {"quality": 90}
        Image.fromarray(picture(n % 310, size)).save(path, **options)  # ten files come twice
        if n % 80 == 5:
            path.write_bytes(path.read_bytes()[:500])
        generator = "real" if n < 160 else "sd1"
        rows.append(f"{name},{generator},source{n // 40},{'train' if n % 3 else 'test'}")
    text = "path,generator,source,split\n" + "\n".join(rows) + "\n"
    (folder / "manifest.csv").write_text(text)
    return folder / "manifest.csv"


CONFIG = PrepareConfig(window=256)


def plan(photos: Path) -> list[Item]:
    return plan_manifest(read_manifest(photos), ["JPEG_Qrandom", "files"])


@pytest.fixture(scope="module")
def truth(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """The hash and every file that one worker makes in one go."""
    out = tmp_path_factory.mktemp("truth")
    report = prepare(plan(photos), out, CONFIG, workers=1)
    return report.hash, contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".masksim" not in path.parts
    }


@pytest.mark.slow
def test_bad_files_are_reported_and_the_run_goes_on(
    photos: Path, truth: tuple[str, dict[str, bytes]]
) -> None:
    report = json.loads(truth[1]["report.json"])
    codes = sorted((f["path"], f["code"]) for f in report["failures"])
    small = {path for path, code in codes if code == "too_small"}
    damaged = {path for path, code in codes if code == "truncated"}
    assert small == {f"{n // 40}/img{n:03d}.png" for n in range(9, 320, 64)}
    assert damaged == {f"{n // 40}/img{n:03d}.png" for n in range(5, 320, 80)}
    # Images that keep their bytes are never too small; damaged ones fail in both variants.
    assert report["failed"] == len(small) + 2 * len(damaged) == 13
    assert report["images"] == 2 * 320 - 13


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 8])
def test_any_number_of_workers_and_any_order(
    photos: Path, truth: tuple[str, dict[str, bytes]], tmp_path: Path, workers: int
) -> None:
    items = plan(photos)
    np.random.default_rng(workers).shuffle(items)  # type: ignore[arg-type]
    seen: list[tuple[str, int, int]] = []
    report = prepare(
        items, tmp_path, CONFIG, workers=workers, progress=lambda *event: seen.append(event)
    )
    assert report.hash == truth[0]
    assert contents(tmp_path) == truth[1]
    assert seen[-1] == ("preparing", 640, 640)
    assert [done for _, done, _ in seen] == list(range(1, 641))
    assert not (tmp_path / ".masksim/tmp").exists()
    again = prepare(items, tmp_path, CONFIG, workers=workers)
    assert (again.made, again.kept, again.hash) == (0, 627, truth[0])


CHILD = """
import sys
from masksim.data.manifest import read_manifest
from masksim.data.prepare import PrepareConfig, plan_manifest, prepare
items = plan_manifest(read_manifest(sys.argv[1]), ["JPEG_Qrandom", "files"])
prepare(items, sys.argv[2], PrepareConfig(window=256), workers=2)
"""


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_to_the_same_hash(
    photos: Path, truth: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(2024)
    out = tmp_path / "out"
    journal = out / ".masksim/journal.jsonl"
    kills = 0
    while kills < 20:
        before = journal.stat().st_size if journal.exists() else 0
        # About 400 bytes a line: from before the first image to some fifteen more.
        grow = int(rng.integers(0, 6000))
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(photos), str(out)])
        try:
            limit = time.monotonic() + 60
            while child.poll() is None:
                size = journal.stat().st_size if journal.exists() else 0
                if (out / ".masksim/tmp").exists() and size >= before + grow:
                    break
                assert time.monotonic() < limit
                time.sleep(0.0005)
            time.sleep(float(rng.uniform(0, 0.004)))
            if child.poll() is not None:
                break  # it came to its end before it could be killed
            os.kill(child.pid, signal.SIGKILL)
        finally:
            child.kill()
            child.wait()
        kills += 1
        assert not (out / "manifest.csv").exists()
        if kills % 5 == 0 and journal.exists():  # as a power cut may leave it
            with open(journal, "ab") as f:
                f.write(b'{"goal": "cut in the mid')
    assert kills == 20
    report = prepare(plan(photos), out, CONFIG, workers=8)
    assert report.kept > 100
    assert report.hash == truth[0]
    assert contents(out) == truth[1]


def test_what_changed_is_made_anew(photos: Path, tmp_path: Path) -> None:
    items = plan(photos)[:20]
    first = prepare(items, tmp_path, CONFIG, workers=2)
    made = tmp_path / first.manifest.rows[0].path
    made.write_bytes(b"")
    (tmp_path / first.manifest.rows[1].path).unlink()
    second = prepare(items, tmp_path, CONFIG, workers=2)
    assert (second.made, second.hash) == (2, first.hash)
    other = prepare(items, tmp_path, PrepareConfig(window=128), workers=2)
    assert other.made == len(other.manifest.rows)
    assert other.hash != first.hash


def test_the_quality_depends_on_the_content_alone(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(coded(3))
    items = plan_manifest(
        Manifest(tuple(Row(n, "real", "s", "train") for n in ("a.png", "sub/b.PNG")), tmp_path),
        ["WEBP_Qrandom"],
    )
    rows = prepare(items, tmp_path / "out", PrepareConfig(window=64)).manifest.rows
    assert rows[0].sha256 == rows[1].sha256
    assert rows[0].path != rows[1].path
    other = prepare(items, tmp_path / "out2", PrepareConfig(window=64, seed=1)).manifest.rows
    assert other[0].processing != rows[0].processing


# ---------------------------------------------------------------- windows, variants, places


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("train", Variant("train")),
        ("uncompressed", Variant("uncompressed", "PNG")),
        ("JPEG_Qrandom", Variant("JPEG_Qrandom", "JPEG", (65, 100))),
        ("JPEG_Q90", Variant("JPEG_Q90", "JPEG", (90, 90))),
        ("WEBP_Q70-80", Variant("WEBP_Q70-80", "WEBP", (70, 80))),
    ],
)
def test_names_of_variants(name: str, variant: Variant) -> None:
    assert parse_variant(name) == variant


@pytest.mark.parametrize(
    "name", ["", "jpeg", "JPEG_Q", "JPEG_Q0", "JPEG_Q101", "JPEG_Q80-70", "GIF_Q80", "../train"]
)
def test_no_such_variant(name: str) -> None:
    with pytest.raises(UsageError):
        parse_variant(name)


@pytest.mark.parametrize(
    "wrong", [{"window": 4}, {"cut": "x"}, {"place": "x"}, {"subsampling": "x"}]
)
def test_no_such_setting(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PrepareConfig(**wrong)


@pytest.mark.parametrize(("height", "width"), [(97, 131), (64, 64), (200, 65), (111, 64)])
def test_windows(height: int, width: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(height)[:, None], np.arange(width)
    exact = cut_window(pixels, 64, "original")
    aligned = cut_window(pixels, 64, "aligned")
    assert exact.shape == aligned.shape == (64, 64, 3)
    # The original's script: from the middle pixel minus half a window, whatever the grid.
    assert tuple(exact[0, 0, :2]) == (height // 2 - 32, width // 2 - 32)
    assert tuple(aligned[0, 0, :2]) == tuple(int(v) // 8 * 8 for v in exact[0, 0, :2])


def one_item(folder: Path, variant: str) -> list[Item]:
    (folder / "in").mkdir()
    (folder / "in/a.png").write_bytes(coded(5))
    rows = (Row("in/a.png", "real", "s", "test", extra={"note": "kept"}),)
    return plan_manifest(Manifest(rows, folder), [variant])


@pytest.mark.parametrize("cut", ["aligned", "original"])
def test_uncompressed_keeps_every_pixel(tmp_path: Path, cut: str) -> None:
    report = prepare(one_item(tmp_path, "uncompressed"), tmp_path, PrepareConfig(64, cut))
    (row,) = report.manifest.rows
    with Image.open(tmp_path / row.path) as image:
        assert np.array_equal(np.asarray(image), cut_window(picture(5), 64, cut))
    assert row.extra["note"] == "kept"
    assert row.extra["source_sha256"] == hashlib.sha256(coded(5)).hexdigest()
    assert row.format == "PNG"
    assert f"window 64 {cut}" in row.processing


def test_fixed_quality_is_what_pillow_makes(tmp_path: Path) -> None:
    report = prepare(one_item(tmp_path, "JPEG_Q90"), tmp_path, PrepareConfig(64))
    (row,) = report.manifest.rows
    expected = io.BytesIO()
    window = Image.fromarray(cut_window(picture(5), 64, "aligned"))
    window.save(expected, "JPEG", quality=90)
    assert (tmp_path / row.path).read_bytes() == expected.getvalue()
    assert row.processing.endswith("JPEG quality 90 4:2:0")


@pytest.mark.parametrize("place", ["link", "copy", "in-place"])
def test_places(tmp_path: Path, place: str) -> None:
    items = one_item(tmp_path, "files")
    out = tmp_path / "out"
    for _ in range(2):
        report = prepare(items, out, PrepareConfig(64, place=place))
        (row,) = report.manifest.rows
        assert (out / row.path).read_bytes() == coded(5)
        assert (out / row.path).samefile(tmp_path / "in/a.png") == (place != "copy")
        assert (row.path == "../in/a.png") == (place == "in-place")
        (out / ".masksim/journal.jsonl").unlink()
    assert row.processing == "none"


def test_own_folders_by_command(tmp_path: Path) -> None:
    for n in range(12):
        for kind in ("real", "mine"):
            path = tmp_path / kind / f"s{n % 4}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(coded(n + (50 if kind == "real" else 0)))
    words = ["prepare", "--real", str(tmp_path / "real"), "--synthetic", f"gen={tmp_path / 'mine'}"]
    code, made = run_cli(*words, "--out", str(tmp_path / "out"), "--window", "64")
    assert (code, made["images"]) == (0, 24)
    manifest = read_manifest(tmp_path / "out/manifest.csv")
    for generator in ("real", "gen"):
        splits: dict[str, set[str]] = {}
        for row in manifest.rows:
            if row.generator == generator:
                splits.setdefault(row.source, set()).add(row.split)
        assert sorted(len(found) for found in splits.values()) == [1, 1, 1, 1]
        assert {next(iter(found)) for found in splits.values()} == {"train", "val", "test"}
    assert run_cli(*words, "coco")[0] == 2
    assert run_cli(*words, "--shares", "80/20")[0] == 2
    assert run_cli("prepare", "--synthetic", "nothing")[0] == 2
    assert run_cli("prepare", "--data", str(tmp_path / "none"))[1]["error"]["code"] == "no_images"


def test_the_field_s_table_by_command(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/1.png").write_bytes(coded(1))
    (tmp_path / "t.csv").write_text("filename,typ\nx/1.png,dalle3\nx/2.png,real_x\n")
    words = ("prepare", "--manifest", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"))
    code, made = run_cli(*words, "--variant", "WEBP_Q80", "--window", "64", "--strict")
    assert code == 5
    assert [(f["path"], f["code"]) for f in made["failures"]] == [("x/2.png", "not_found")]
    (row,) = read_manifest(tmp_path / "out/manifest.csv").rows
    assert (row.path, row.generator) == ("WEBP_Q80/test/dalle3/dalle3/1.webp", "dalle3")
    with Image.open(tmp_path / "out" / row.path) as image:
        assert (image.format, image.size) == ("WEBP", (64, 64))


def test_the_list_given_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(coded(1))
    listed = tmp_path / "manifest.csv"
    listed.write_text("path,generator,source,split\na.png,real,s,test\n")
    words = ("prepare", "--manifest", str(listed), "--out", str(tmp_path), "--window", "64")
    before = listed.read_bytes()
    assert run_cli(*words)[0] == 2
    assert listed.read_bytes() == before
    assert run_cli(*words, "--place", "in-place")[0] == 0  # asked for: hashes are filled in
    (row,) = read_manifest(listed).rows
    assert (row.path, row.width) == ("a.png", SIZE + 8)
    assert row.sha256 == hashlib.sha256(coded(1)).hexdigest()


def test_names_that_would_clash(tmp_path: Path) -> None:
    folder = tmp_path / "data/raise"
    folder.mkdir(parents=True)
    for n, name in enumerate(("r1.png", "r1.TIF", "R1.jpg", "r2.png")):
        body = coded(n, {"png": "PNG", "TIF": "TIFF", "jpg": "JPEG"}[name[3:]])
        (folder / name).write_bytes(body)
    sources = [load_sources()["raise1k"]]
    items, warnings = plan_sets(sources, tmp_path / "data", ["JPEG_Q90"])
    assert warnings == []
    goals = [item.goal for item in items]
    assert len({goal.lower() for goal in goals}) == 4
    assert "JPEG_Q90/raise/r2.jpg" in goals
    (folder / "r2.png").unlink()
    fewer, _ = plan_sets(sources, tmp_path / "data", ["JPEG_Q90"])
    assert [item.goal for item in fewer] == [goal for goal in goals if "r2" not in goal]


def test_nothing_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        plan_manifest(Manifest((), tmp_path))
    (tmp_path / "a.png").write_bytes(b"no image")
    items = plan_manifest(Manifest((Row("a.png", "real", "s", "test"),), tmp_path), ["JPEG_Q90"])
    with pytest.raises(DataError, match="none of 1 images") as caught:
        prepare(items, tmp_path / "out")
    assert caught.value.code == "no_images"
    assert not (tmp_path / "out/manifest.csv").exists()
    assert json.loads((tmp_path / "out/report.json").read_text())["failed"] == 1


def test_an_interrupt_is_passed_on_and_loses_nothing(photos: Path, tmp_path: Path) -> None:
    items = plan(photos)[:60]

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(items, tmp_path, CONFIG, workers=2, progress=interrupt)
    report = prepare(items, tmp_path, CONFIG, workers=2)
    assert report.kept >= 20
    expected: Callable[..., Any] = prepare
    assert report.hash == expected(items, tmp_path / "whole", CONFIG, workers=1).hash

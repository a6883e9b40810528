"""Results go to stdout alone and whole, whichever stream is a terminal: for every command."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import masksim
from conftest import make_natural
from local_server import serve  # type: ignore[import-not-found]
from masksim.cli import main as cli
from masksim.data.manifest import REAL, Row, write_manifest
from terminal import FAKE, command, on_terminal, process  # type: ignore[import-not-found]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")

PACKAGE = Path(masksim.__file__).parent

# Few photos and images are enough here.
FEW = (
    "import functools, masksim.evaluation.calibrate as a, masksim.training.enroll as e\n"
    "a.FEWEST = 20\n"
    "e.EnrollConfig = functools.partial(\n"
    "    e.EnrollConfig, smallest=12, smallest_photos=40, samples=30)\n"
)
CONFIG = """
name = "planted"
folds = 3
[views]
views = {"*" = 1}
region = 576
final_quality = [88, 100]
resized = 0.0
uncompressed = 0.35
[features]
segment = 64
cell = 4
"""
ORIGINAL = """
recipe = "original"
epoch_steps = 1
smallest_class = 10
"""
SETS = """
[mine]
title = "Images of mine"
home = "{base}"
licence = "CC0"
roles = ["test"]
access = "open"
size = 0
notes = "none"
[[mine.files]]
name = "mine.zip"
urls = ["{base}/mine.zip"]
checksum = ""
extract = {{ "mine" = "mine" }}
[[mine.folders]]
path = "mine"
generator = "real"
split = "test"
"""


@dataclass(frozen=True)
class World:
    """What the commands work on; `folder` is theirs to write in."""

    folder: Path
    image: Path
    images: list[Path]
    photos: Path
    detector: Path
    pieces: Path
    manifest: Path
    few: Path
    small: Path
    stripes: Path
    sets: Path


@pytest.fixture(scope="module")
def world(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("terminal")
    images = []
    for k in range(5):
        path = folder / f"{k}.jpg"
        Image.fromarray(make_natural(300, 400, seed=k)).save(path, quality=90)
        images.append(path)
    photos = folder / "photos"
    val = trained.manifest.select("val").rows
    for row in (row for row in val if row.is_real):
        (photos / row.source).mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.manifest.file(row), photos / row.source)
    manifest = trained.manifest.root / "manifest.csv"
    write_manifest(manifest, trained.manifest.rows)
    few = trained.manifest.root / "few.csv"
    write_manifest(few, few_of(val))
    (folder / "train.toml").write_text(CONFIG)
    (folder / "original.toml").write_text(ORIGINAL)
    with serve() as site:
        (folder / "sets.toml").write_text(SETS.format(base=site.base))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(images[0], "mine/0.jpg")
        site.put("/mine.zip", packed.getvalue())
        yield World(
            folder, images[0], images, photos, trained.folder, trained.cache, manifest, few,
            small_set(folder / "small"), stripes(folder / "stripes"), folder / "sets.toml",
        )  # fmt: skip


def few_of(rows: Sequence[Row]) -> list[Row]:
    """Give three images of each source: enough to be evaluated."""
    kept: Counter[tuple[str, str]] = Counter()
    few = []
    for row in rows:
        kept[row.generator, row.source] += 1
        if kept[row.generator, row.source] <= 3:
            few.append(row)
    return few


def small_set(folder: Path) -> Path:
    """Photos and images of a generator, 80 x 96, with a manifest."""
    folder.mkdir()
    rows: list[Row] = []
    for split, count in (("train", 32), ("val", 16)):
        for k in range(2 * count):
            typ = REAL if k < count else "outer"
            name = f"{split}-{k:02d}.png"
            Image.fromarray(make_natural(80, 96, seed=len(rows))).save(folder / name)
            source = f"{split}-{typ}-{k % 4}"
            rows.append(Row(name, typ, source, split, width=96, height=80, format="PNG"))
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def stripes(folder: Path) -> Path:
    wave = 7 * np.cos(2 * np.pi * 5 / 16 * np.arange(544))[None, :, None]
    for k in range(16):
        path = folder / f"source{k % 4}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = make_natural(528, 544, seed=900_000 + k) + wave
        Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path)
    return folder


# By name: the arguments, what goes before, and whether a bar shows. Each must give the same when it
# is run again.
Case = tuple[Callable[[World], list[Any]], str, bool]
CASES: dict[str, Case] = {
    "detect": (lambda w: ["detect", *w.images], FAKE, True),
    "detect --json": (lambda w: ["detect", "--json", *w.images], FAKE, True),
    "info": (lambda w: ["info"], FAKE, False),
    "info --json": (lambda w: ["info", "--json"], FAKE, False),
    "cache": (lambda w: ["cache"], "", False),
    "import-original": (
        lambda w: ["import-original", w.folder / "ckpt", w.folder / "imported", "--overwrite"],
        "", False,
    ),
    "batch": (
        lambda w: ["batch", *w.images, "--out", w.folder / "r.jsonl", "--overwrite", "--json"],
        "", True,
    ),
    "report": (
        lambda w: ["report", w.image, "-o", w.folder / "r.html", "--overwrite"], "", False,
    ),
    "report --json": (
        lambda w: ["report", w.image, "-o", w.folder / "r.html", "--overwrite", "--json"],
        "", False,
    ),
    "report verify": (
        lambda w: ["report", "verify", w.folder / "r.html", w.image], "", False,
    ),
    "audit": (lambda w: ["audit", w.detector, "--real", w.photos], "", True),
    "audit --json": (lambda w: ["audit", w.detector, "--real", w.photos, "--json"], "", True),
    "calibrate": (
        lambda w: [
            "calibrate", w.detector, "--real", w.photos, "--out", w.folder / "c", "--overwrite",
        ],
        FEW, True,
    ),
    "enroll": (
        lambda w: [
            "enroll", "stripes", w.stripes, "--model", w.detector, "--out", w.folder / "e",
            "--views", 1, "--overwrite",
        ],
        FEW, True,
    ),
    "evaluate": (
        lambda w: [
            "evaluate", "--manifest", w.few, "--model", w.detector, "--samples", 10,
            "--out", w.folder / "v", "--overwrite",
        ],
        "", True,
    ),
    "evaluate --json": (
        lambda w: [
            "evaluate", "--manifest", w.few, "--model", w.detector, "--samples", 10, "--json",
        ],
        "", True,
    ),
    "train": (
        lambda w: [
            "train", w.folder / "train.toml", "--manifest", w.manifest, "--cache", w.pieces,
            "--out", w.folder / "t", "--overwrite",
        ],
        "", True,
    ),
    "train --recipe original": (
        lambda w: [
            "train", w.folder / "original.toml", "--manifest", w.small, "--out", w.folder / "o",
            "-w", 64, "-b", 4, "-e", 1, "-p", "none", "-Q", 90, "--device", "cpu",
            "--workers", 0, "--overwrite",
        ],
        "", True,
    ),
    "train-residual": (
        lambda w: [
            "train-residual", "--manifest", w.small, "--out", w.folder / "n", "--light",
            "--device", "cpu", "--workers", 0, "--patch", 16, "--steps", 3, "-b", 8,
            "--features", 4, "--overwrite",
        ],
        "", True,
    ),
    "export onnx": (
        lambda w: ["export", "onnx", w.detector, "--out", w.folder / "g.onnx", "--overwrite"],
        "", False,
    ),
    "export openvino": (
        lambda w: ["export", "openvino", w.detector, "--out", w.folder / "g.xml", "--overwrite"],
        "", False,
    ),
    "export verify": (
        lambda w: [
            "export", "verify", w.folder / "g.onnx", w.detector, *sorted(w.photos.rglob("*.*"))[:4],
        ],
        "", True,
    ),
    "data label": (
        lambda w: [
            "data", "label", w.photos, "-o", w.folder / "labels.csv", "--overwrite",
        ],
        "", True,
    ),
    "data list": (lambda w: ["data", "list"], "", False),
    "data download": (
        lambda w: ["data", "download", "mine", "--sources", w.sets, "--data", w.folder / "data"],
        "", True,
    ),
    "data prepare": (
        lambda w: [
            "data", "prepare", "--real", w.photos, "--single-source", "blocks",
            "--out", w.folder / "prepared",
        ],
        "", True,
    ),
    "data verify": (lambda w: ["data", "verify", w.small, "--window", 64], "", True),
}  # fmt: skip
NEEDS = {
    "import-original": ("torch", "onnx"),
    "train --recipe original": ("torch", "onnx"),
    "train-residual": ("torch",),
    "export openvino": ("openvino",),
    "data download": ("httpx",),
    "data verify": ("imagehash",),
}

SLOW = (
    "import-original", "train --recipe original", "train-residual", "train", "evaluate",
    "evaluate --json", "audit", "audit --json", "calibrate", "data verify", "data prepare",
    "enroll", "export openvino", "export verify",
)  # fmt: skip
"""They take seconds: run once, with a terminal as stderr alone, as when results go to a pipe. They
ask nothing about terminals that the others do not ask: see the tests below."""

QUICK = ("detect", "info --json", "data list")
"""Enough to see that the oldest versions of rich and Typer do the same."""


def commands(app: typer.Typer, prefix: str = "") -> Iterator[str]:
    """The names of all commands of an application."""
    for one in app.registered_commands:
        assert one.callback is not None
        name = one.name or one.callback.__name__.replace("_", "-")
        yield f"{prefix}{name}".replace("report make", "report")
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{group.typer_instance.info.name} ")


def test_every_command_has_a_case() -> None:
    """A new command must be tried here, too."""
    covered = {name.partition(" --")[0] for name in CASES}
    assert set(commands(cli.app)) == covered | {"serve"}


def without_times(text: bytes) -> bytes:
    """Leave out what differs from run to run: seconds, and digests of what names a time."""
    text = re.sub(rb"[0-9a-f]{64}", b"<digest>", text)
    text = re.sub(rb'("\w*seconds": |"images_per_second": )[0-9.e-]+', rb"\1<n>", text)
    return re.sub(rb"\b[0-9.]+(?= (s\b|images/s))", b"<n>", text)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES],
)
def test_results_are_the_same_on_any_terminal(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, before, has_bar = CASES[name]
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    if name == "import-original":
        write_checkpoint(world.folder / "ckpt")
    if name == "export verify":
        process("export", "onnx", world.detector, "--out", world.folder / "g.onnx", before="")
    arguments = make(world)

    # First, while there is work to do: the bar draws on stderr, the results come on stdout.
    bar = on_terminal(*arguments, before=before)
    assert bar.code == 0, bar.shown
    assert bar.stdout
    assert b"\x1b" not in bar.stdout
    assert (b"\x1b[" in bar.shown) is has_bar, bar.shown
    if name == "train":
        assert b"few (2)" in bar.shown  # a generator with too few images is not dropped in silence
    if name.endswith("--json"):
        for text in bar.stdout.splitlines() if name == "detect --json" else [bar.stdout]:
            json.loads(text)
    if name in SLOW:
        return
    forget(world, tmp_path)
    plain = process(*arguments, before=before)
    assert plain.returncode == 0, plain.stderr
    assert b"\x1b" not in plain.stderr
    assert without_times(bar.stdout) == without_times(plain.stdout)

    # And the other way round: no bar in a file, nothing but results on the terminal.
    forget(world, tmp_path)
    seen = on_terminal(*arguments, before=before, stdout=True, stderr=False)
    assert seen.code == 0, seen.stderr
    assert b"\x1b" not in seen.stderr
    assert without_times(seen.shown) == without_times(bar.stdout)


def forget(world: World, tmp_path: Path) -> None:
    """Undo what would leave the next run nothing to do, and so make it tell something else."""
    for folder in (world.folder / "data", world.folder / "prepared", tmp_path / "user-cache"):
        shutil.rmtree(folder, ignore_errors=True)


def write_checkpoint(folder: Path) -> None:
    """One of the original's, that imports."""
    import torch

    import make_original_fixture as original  # type: ignore[import-not-found]

    folder.mkdir(exist_ok=True)
    arrays = original.state("linear3x3", 64, 1)
    content = {
        "state_dict": {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()},
        "hyper_parameters": {"preprocess": "linear3x3", "num_masks": 1, "img_size": 64},
    }
    torch.save(content, folder / "sd1-epoch=3-valid_auroc=1.00-valid_loss=0.1-low_loss.ckpt")


def test_serving_writes_nothing_to_stdout() -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with subprocess.Popen(
        command("serve", "--port", 0), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stderr is not None
        while b'"ready"' not in (line := child.stderr.readline()):
            assert line, "the service has not started"
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=60)
    assert (child.returncode, output) == (0, b"")


def test_few_places_ask_whether_a_stream_is_a_terminal() -> None:
    asking = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "isatty" in path.read_text(encoding="utf-8")
    }
    assert asking == {"cli/console.py", "cli/main.py", "cli/serve.py"}


def test_all_bars_are_made_in_one_place() -> None:
    """By themselves rich's bars take stdout over; `console.stages` makes them leave it alone."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).split(".")[-1]
                assert called not in ("Progress", "Live", "Status"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Console"):
                assert any(k.arg == "stderr" for k in node.keywords), f"{path}:{node.lineno}"

"""Verification: what is wrong is found, what is right is not, and a planted leak fires."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from masksim.cli.data import app
from masksim.data.leak import (
    COMPRESSION,
    METADATA,
    compression_features,
    leak_probe,
    metadata_features,
)
from masksim.data.manifest import Manifest, Row, write_manifest
from masksim.data.verify import near_pairs, perceptual_hash, verify
from masksim.errors import UsageError
from masksim.image import load_image

Natural = Callable[..., np.ndarray]
SIZE = 96


def add(folder: Path, name: str, pixels: np.ndarray, **options: Any) -> Row:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    data = path.read_bytes()
    split, generator, source = name.split("/")[:3]
    return Row(
        name, generator, f"{generator}-{source}", split, hashlib.sha256(data).hexdigest(),
        pixels.shape[1], pixels.shape[0], extra={"group": name},
    )  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, natural_image: Natural) -> Manifest:
    """120 real and 120 synthetic images of ten sources each, all processed alike."""
    folder = tmp_path_factory.mktemp("clean")
    rng = np.random.default_rng(0)
    rows = []
    for n in range(240):
        generator = "real" if n % 2 else "sd1"
        split = "train" if n % 20 < 14 else "test"
        pixels = natural_image(SIZE, SIZE, seed=n)
        quality = int(rng.integers(65, 101))
        name = f"{split}/{generator}/s{n // 2 % 10}/{n:03d}.jpg"
        rows.append(add(folder, name, pixels, quality=quality))
    return Manifest(tuple(rows), folder)


def by_code(report: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.code, []).append(finding.path)
    return found


@pytest.mark.slow
def test_a_clean_set_is_silent(clean: Manifest) -> None:
    report = verify(clean, window=64)
    assert by_code(report) == {}
    assert report.ok
    assert (report.images, report.readable) == (240, 240)
    assert [probe.name for probe in report.probes] == ["metadata", "compression history"]
    for probe in report.probes:
        assert probe.auroc is not None
        assert probe.auroc <= 0.6
        assert probe.low is not None
        assert probe.high is not None
        assert probe.low < probe.auroc < probe.high
        assert probe.low < 0.5 < probe.high
        assert (probe.images, probe.folds, probe.groups) == (240, 5, "source")
    json.dumps(report.as_dict())


@pytest.mark.slow
def test_processes_change_nothing(clean: Manifest) -> None:
    few = Manifest(clean.rows[:48], clean.root)
    report = verify(few, window=64)
    assert all(probe.auroc is not None for probe in report.probes)
    assert verify(few, window=64, workers=2) == report


@pytest.mark.slow
def test_a_planted_leak_in_the_files_fires(tmp_path: Path, natural_image: Natural) -> None:
    """Synthetic images stored as PNG now and then, photographs always as JPEG."""
    rows = []
    for n in range(160):
        generator = "real" if n % 2 else "sd1"
        suffix = "png" if generator == "sd1" and n % 3 else "jpg"
        name = f"train/{generator}/s{n // 2 % 8}/{n}.{suffix}"
        rows.append(add(tmp_path, name, natural_image(SIZE, SIZE, seed=n)))
    report = verify(Manifest(tuple(rows), tmp_path), window=64, near_distance=None)
    metadata = report.probes[0]
    assert metadata.auroc is not None
    assert metadata.auroc > 0.75
    assert metadata.low is not None
    assert metadata.low > 0.6
    assert [f.code for f in report.findings] == ["leak", "leak"] or [
        f.code for f in report.findings
    ] == ["leak"]
    assert report.findings[0].level == "warning"
    assert "metadata" in report.findings[0].message
    assert not report.ok


@pytest.mark.slow
@pytest.mark.parametrize("history", ["quality 70 before", "off the grid"])
def test_a_planted_compression_history_fires(
    tmp_path: Path, natural_image: Natural, history: str
) -> None:
    """Every file is a PNG of one size; only the photographs were JPEG files once."""
    rows = []
    for n in range(160):
        generator = "real" if n % 2 else "sd1"
        pixels = natural_image(SIZE + 16, SIZE + 16, seed=n)
        if generator == "real" or history == "off the grid":
            # Of the second history both classes were JPEG, but at different phases of the grid.
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "JPEG", quality=75)
            pixels = np.asarray(Image.open(out))
        shift = 3 if history == "off the grid" and generator == "sd1" else 0
        pixels = pixels[shift : shift + SIZE, shift : shift + SIZE]
        rows.append(add(tmp_path, f"train/{generator}/s{n // 2 % 8}/{n}.png", pixels))
    report = verify(Manifest(tuple(rows), tmp_path), window=64, near_distance=None)
    probes = {probe.name: probe.auroc or 0.0 for probe in report.probes}
    assert probes["compression history"] > 0.85
    leaks = [f.message for f in report.findings if f.code == "leak"]
    assert any(text.startswith("compression history") for text in leaks)


@pytest.mark.slow
def test_the_probe_is_silent_on_chance_and_loud_on_signal() -> None:
    rng = np.random.default_rng(3)
    rows = [
        Row(str(n), "real" if n % 2 else "x", f"s{n % 2}{n // 2 % 12}", "train") for n in range(400)
    ]
    noise = rng.normal(size=(400, 4))
    names = ["a", "b", "c", "d"]
    chance = leak_probe("chance", noise, rows, names)
    assert chance.auroc is not None
    assert 0.4 < chance.auroc < 0.6
    noise[:, 2] += np.arange(400) % 2
    signal = leak_probe("signal", noise, rows, names)
    assert signal.auroc is not None
    # One unit of shift between unit normals: the true AUROC is 0.76.
    assert 0.68 < signal.auroc < 0.82
    assert signal.clues[0] == "c"
    assert leak_probe("signal", noise, rows, names) == signal


@pytest.mark.slow
def test_the_probe_does_not_reward_knowing_the_source() -> None:
    """Features that tell the source but not the class: folds by source see through it."""
    rng = np.random.default_rng(5)
    rows, features = [], []
    for source in range(20):
        mark = rng.normal(size=3) * 10
        for n in range(20):
            generator = "real" if source % 2 else "x"
            rows.append(Row(f"{source}-{n}", generator, f"s{source}", "train"))
            features.append(mark + rng.normal(size=3))
    probe = leak_probe("source", np.array(features), rows, ["a", "b", "c"])
    assert probe.groups == "source"
    assert probe.low is not None
    assert probe.low < 0.5 < (probe.high or 0)
    alike = [replace(row, source=row.generator, extra={"group": row.path}) for row in rows]
    assert leak_probe("source", np.array(features), alike, ["a", "b", "c"]).groups == "group"


def test_too_few_images_are_not_measured() -> None:
    rows = [Row(str(n), "real" if n < 19 else "x", "s", "train") for n in range(60)]
    probe = leak_probe("p", np.zeros((60, 1)), rows, ["a"])
    assert probe.auroc is None
    assert "19 images" in probe.reason


# ---------------------------------------------------------------- files


def test_every_kind_of_damage_is_found(tmp_path: Path, natural_image: Natural) -> None:
    def make(name: str, seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Row:
        return add(tmp_path, name, natural_image(*size, seed=seed))

    rows = {
        name: make(f"train/{'real' if n % 2 else 'sd1'}/s{n}/{name}.png", n)
        for n, name in enumerate(
            ["fine", "missing", "changed", "cut", "text", "wrong_size", "git", "git_changed"]
        )
    }
    rows["small"] = make("train/real/s9/small.png", 50, (40, SIZE))
    (tmp_path / rows["missing"].path).unlink()
    changed = tmp_path / rows["changed"].path
    Image.fromarray(natural_image(SIZE, SIZE, seed=99)).save(changed)
    cut = tmp_path / rows["cut"].path
    cut.write_bytes(cut.read_bytes()[:-300])
    (tmp_path / rows["text"].path).write_text("no image")
    rows["text"] = replace(rows["text"], sha256=hashlib.sha256(b"no image").hexdigest())
    rows["wrong_size"] = replace(rows["wrong_size"], width=SIZE + 1)
    for name in ("git", "git_changed"):
        data = (tmp_path / rows[name].path).read_bytes()
        if name == "git_changed":
            data += b"."
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        rows[name] = replace(rows[name], sha256="", extra={"blob": blob})
    report = verify(
        Manifest(tuple(rows.values()), tmp_path), window=64, near_distance=None, probe=False
    )
    found = {(f.code, Path(f.path).stem, f.level) for f in report.findings}
    assert found == {
        ("missing", "missing", "error"),
        ("changed", "changed", "error"),
        ("changed", "cut", "error"),
        ("undecodable", "cut", "error"),
        ("undecodable", "text", "error"),
        ("size_differs", "wrong_size", "error"),
        ("changed", "git_changed", "error"),
        ("too_small", "small", "warning"),
    }
    assert report.readable == 6
    assert report.probes == ()


def test_duplicates_across_splits(clean: Manifest, tmp_path: Path) -> None:
    rows = [row for row in clean.rows if row.path.startswith("train/real")][:4]
    copies = {
        "test/real/x/copy.jpg": rows[0],
        "train/real/x/copy.jpg": rows[1],
        "train/sd1/x/copy.jpg": rows[2],
    }
    for name, row in copies.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(clean.file(row).read_bytes())
    everything = [replace(row, path=str(clean.file(row))) for row in clean.rows]
    everything += [
        replace(row, path=name, split=name.split("/")[0], generator=name.split("/")[1],
                extra={"group": name})
        for name, row in copies.items()
    ]  # fmt: skip
    report = verify(Manifest(tuple(everything), tmp_path), window=64, probe=False)
    found = {(f.code, f.level) for f in report.findings}
    assert found == {
        ("duplicate_across_splits", "error"),
        ("duplicate", "note"),
        ("label_conflict", "error"),
    }


def test_near_duplicates_are_found_and_others_are_not(clean: Manifest, tmp_path: Path) -> None:
    """Copies made smaller, lighter, sharper compressed, of training images into the test split."""
    rows = [row for row in clean.rows if row.split == "train"][:12]
    everything = [replace(row, path=str(clean.file(row))) for row in clean.rows]
    for n, row in enumerate(rows):
        with Image.open(clean.file(row)) as image:
            changed = [
                image.resize((SIZE - 16, SIZE - 16), Image.Resampling.BICUBIC),
                image.point(lambda v: min(255, int(v * 1.1) + 4)),
                image.copy(),
            ][n % 3]
            name = f"test/{row.generator}/near/{n}.jpg"
            everything.append(add(tmp_path, name, np.asarray(changed), quality=40))
    report = verify(Manifest(tuple(everything), tmp_path), window=64, probe=False)
    found = by_code(report)
    assert set(found) == {"near_duplicate_across_splits"}
    near = sorted(f"test/{row.generator}/near/{n}.jpg" for n, row in enumerate(rows))
    assert sorted(found["near_duplicate_across_splits"]) == near
    texts = {f.path: f.message for f in report.findings}
    for n, row in enumerate(rows):
        assert row.path in texts[f"test/{row.generator}/near/{n}.jpg"]


def test_many_images_that_look_the_same(tmp_path: Path, natural_image: Natural) -> None:
    one = natural_image(SIZE, SIZE, seed=1)
    rows = []
    for n in range(30):
        pixels = one.copy()
        pixels[0, 0, 0] = n
        rows.append(add(tmp_path, f"{'train' if n % 2 else 'test'}/real/s{n}/{n}.png", pixels))
    report = verify(Manifest(tuple(rows), tmp_path), window=64, probe=False)
    found = by_code(report)
    # A row an image, not one a pair: each test image, and each training image but the first.
    assert len(found["near_duplicate_across_splits"]) == 15
    assert len(found["near_duplicate"]) == 14
    assert set(found) == {"near_duplicate_across_splits", "near_duplicate", "one_class"}


def test_imbalance_and_torn_groups() -> None:
    rows = [Row(f"r{n}", "real", "s", "train", extra={"group": f"g{n}"}) for n in range(10)]
    rows += [Row(f"a{n}", "a", "s", "train", extra={"group": f"ga{n}"}) for n in range(40)]
    rows += [Row("b", "b", "s", "train", extra={"group": "gb"})]
    rows += [Row("t", "real", "s", "test", extra={"group": "g0"})]
    report = verify(Manifest(tuple(rows), Path("nowhere")), near_distance=None, probe=False)
    texts = [(f.level, f.code, f.message) for f in report.findings if f.code != "missing"]
    assert texts == [
        ("warning", "group_across_splits", "g0 is in test, train"),
        ("note", "one_class", "test: 1 real and 0 synthetic images"),
        ("warning", "imbalance", "train: 10 real and 41 synthetic images"),
        ("warning", "imbalance", "train: 40 images of a, 1 of b"),
    ]


# ---------------------------------------------------------------- hashes


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 10, 15])
def test_near_pairs_are_those_of_brute_force(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = [int(v) for v in rng.integers(0, 2**63, 150, dtype=np.uint64)]
    for n in range(150):  # neighbours of known and unknown distance, and equal ones
        flips = rng.choice(64, size=int(rng.integers(0, 14)), replace=False)
        hashes.append(hashes[n] ^ sum(1 << int(k) for k in flips))
    expected = {
        (i, j, bin(hashes[i] ^ hashes[j]).count("1"))
        for i in range(300)
        for j in range(i + 1, 300)
        if bin(hashes[i] ^ hashes[j]).count("1") <= distance
    }
    assert {pair for pair in near_pairs(hashes, distance) if pair[2]} <= expected
    # Equal hashes are paired with their first only; the others are reached through it.
    first = {value: index for index, value in reversed(list(enumerate(hashes)))}
    firsts = {(i, j, d) for i, j, d in expected if first[hashes[i]] == i and (
        first[hashes[j]] == j or d == 0
    )}  # fmt: skip
    assert set(near_pairs(hashes, distance)) == firsts


@pytest.mark.slow
def test_near_pairs_of_a_hundred_thousand_are_found() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**63, 100_000, dtype=np.uint64)
    words[50_000:50_100] = words[:100] ^ np.uint64(0b1011 << 20)
    found = near_pairs(words.tolist(), 6)
    assert {(i, i + 50_000, 3) for i in range(100)} <= set(found)
    assert len(found) < 110


def test_near_pairs_bounds() -> None:
    assert near_pairs([]) == []
    assert near_pairs([5]) == []
    assert near_pairs([5, 5, 5]) == [(0, 1, 0), (0, 2, 0)]
    with pytest.raises(UsageError):
        near_pairs([1], 16)


def test_the_hash_is_that_of_imagehash(natural_image: Natural) -> None:
    pixels = natural_image(200, 240, seed=4)  # below 256 pixels nothing is reduced first
    assert perceptual_hash(pixels) == int(str(imagehash.phash(Image.fromarray(pixels))), 16)
    large = natural_image(900, 1100, seed=4)
    direct = int(str(imagehash.phash(Image.fromarray(large))), 16)
    assert bin(perceptual_hash(large) ^ direct).count("1") <= 4


# ---------------------------------------------------------------- features


def test_features_have_their_names(natural_image: Natural) -> None:
    out = io.BytesIO()
    Image.fromarray(natural_image(64, 96)).save(out, "JPEG", quality=80)
    facts = load_image(out.getvalue()).facts
    values = dict(zip(METADATA, metadata_features(facts, len(out.getvalue())), strict=True))
    assert (values["JPEG"], values["PNG"], values["JPEG quality"]) == (1, 0, 80)
    assert values["log bytes a pixel"] == pytest.approx(
        np.log(len(out.getvalue()) / (64 * 96)), abs=1e-9
    )
    features = compression_features(natural_image(64, 96))
    assert len(features) == len(COMPRESSION)
    assert np.all(np.isfinite(features))
    assert np.all(np.isfinite(compression_features(np.zeros((32, 32, 3), np.uint8))))


@pytest.mark.parametrize("phase", [0, 1, 5, 7])
def test_the_grid_of_a_jpeg_is_where_it_was_cut(natural_image: Natural, phase: int) -> None:
    out = io.BytesIO()
    Image.fromarray(natural_image(280, 280, seed=2)).save(out, "JPEG", quality=50)
    with Image.open(out) as image:
        pixels = np.asarray(image)
    # After cutting `phase` pixels off, block borders lie at 8 - phase.
    cut = np.ascontiguousarray(pixels[phase : phase + 256, phase : phase + 256])
    features = compression_features(cut)
    assert int(np.argmax(features[:8])) == (8 - phase) % 8
    assert int(np.argmax(features[8:16])) == (8 - phase) % 8


def test_the_ghost_of_an_earlier_quality(natural_image: Natural) -> None:
    out = io.BytesIO()
    Image.fromarray(natural_image(256, 256, seed=3)).save(out, "JPEG", quality=80)
    with Image.open(out) as image:
        before = dict(zip(COMPRESSION, compression_features(np.asarray(image)), strict=True))
    never = dict(
        zip(COMPRESSION, compression_features(natural_image(256, 256, seed=3)), strict=True)
    )
    name = "change by JPEG 80"
    assert before[name] < never[name] - 1.0


# ---------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command(clean: Manifest, tmp_path: Path) -> None:
    manifest = clean.root / "manifest.csv"
    write_manifest(manifest, clean.rows)
    runner = CliRunner()
    result = runner.invoke(app, ["verify", str(clean.root), "--window", "64", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["images"] == 240
    # Warnings do not fail the command unless asked for.
    words = ["verify", str(manifest), "--no-probe", "--near", "-1"]
    assert runner.invoke(app, words).exit_code == 0
    assert runner.invoke(app, [*words, "--strict"]).exit_code == 5
    broken = [replace(clean.rows[0], sha256="0" * 64, path=str(clean.file(clean.rows[0])))]
    write_manifest(tmp_path / "m.csv", broken)
    result = runner.invoke(app, ["verify", str(tmp_path / "m.csv"), "--no-probe"])
    assert result.exit_code == 5
    assert "[changed]" in result.stdout
    result = runner.invoke(app, ["verify", str(tmp_path / "none"), "--json"])
    assert result.exit_code == 5
    assert json.loads(result.stdout)["error"]["code"] == "not_found"

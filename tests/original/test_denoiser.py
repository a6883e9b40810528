"""`masksim.original.denoiser`: a denoiser that denoises, the same run twice, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("sklearn")

from safetensors.numpy import load_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from conftest import make_natural  # noqa: E402
from masksim.augment import rng_for  # noqa: E402
from masksim.cli.main import app  # noqa: E402
from masksim.data.manifest import REAL, Manifest, Row, write_manifest  # noqa: E402
from masksim.errors import DataError, ModelError, UsageError  # noqa: E402
from masksim.original.config import OriginalConfig  # noqa: E402
from masksim.original.denoiser import DenoiserConfig, noisy_patches, psnr, train_denoiser  # noqa: E402
from masksim.original.residual_file import read_residual  # noqa: E402
from masksim.original.train import train_original  # noqa: E402
from masksim.preprocess import to_colour  # noqa: E402
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx  # noqa: E402
from masksim.training import loop as runs  # noqa: E402
from masksim.training.processes import RunOptions  # noqa: E402

CPU = RunOptions(device="cpu", save_every=7)
SMALL = DenoiserConfig(
    sigma=25.0, kind="light", depth=3, features=8, padding=1, batch_norm=False, patch=24,
    batch=16, patches=4, steps=200, epoch_steps=50, lr=0.003, decay=0.5, validation=0.25,
)  # fmt: skip


def smooth(seed: int) -> Any:
    """A photo without noise of its own: slopes and soft edges."""
    image = Image.fromarray(make_natural(40, 48, seed=seed))
    return np.asarray(image.resize((96, 80), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for i in range(16):
        path = folder / f"{i:02d}.png"
        Image.fromarray(smooth(i)).save(path)
        rows.append(Row(path.name, REAL, f"s{i % 4}", "train", width=96, height=80, format="PNG"))
    for i in range(2):  # of no use here
        rows.append(replace(rows[0], path=f"fake{i}.png", generator="g", source="g"))
    write_manifest(folder / "manifest.csv", rows)
    return Manifest(tuple(rows), folder)


@pytest.fixture(scope="module")
def trained(photos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("trained") / "r"
    return folder, train_denoiser(photos, folder, SMALL, options=CPU)


def test_it_denoises_photos_it_has_not_seen(trained: tuple[Path, Any]) -> None:
    folder, made = trained
    assert made["psnr_noisy"] == pytest.approx(20 * np.log10(255 / 25), abs=0.1)
    assert made["psnr_gain"] > 3
    # The network's output is the noise: through the file, ONNX and arithmetic of our own.
    config, weights, _ = read_residual(folder)
    network = OnnxResidual(residual_onnx(config, weights), threads=1)
    planes = to_colour(smooth(99)[None], "YCbCr-BT601-studio-8bit")
    noise = np.random.default_rng(5).normal(scale=25 / 255, size=planes.shape).astype(np.float32)
    left = planes + noise - network(planes + noise) - planes
    assert 10 * np.log10((noise**2).mean() / (left**2).mean()) > 3


def test_the_files_say_how_they_came_about(photos: Manifest, trained: tuple[Path, Any]) -> None:
    folder, made = trained
    described = json.loads((folder / "residual.json").read_text())
    assert described["training"]["sigma"] == 25.0
    assert described["photos"] == {"training": 12, "validation": 4}
    assert described["sources"] == {"training": 3, "validation": 1}
    assert described["sha256"] == made["sha256"]
    config, weights, facts = read_residual(folder)
    assert config == SMALL.residual
    assert facts["sha256"] == made["sha256"]
    assert set(weights) == set(load_file(folder / "residual.safetensors"))
    data = bytearray((folder / "residual.safetensors").read_bytes())
    other = folder.parent / "changed"
    other.mkdir(exist_ok=True)
    data[-1] ^= 1
    (other / "residual.safetensors").write_bytes(data)
    (other / "residual.json").write_text(json.dumps(described))
    with pytest.raises(ModelError) as caught:
        read_residual(other)
    assert caught.value.code == "model_hash"
    (other / "residual.json").write_text("{}")
    with pytest.raises(ModelError, match="not valid"):
        read_residual(other)


def test_a_stopped_run_goes_on_bit_by_bit(
    photos: Manifest, trained: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = runs.loader
    calls = []
    stopped: list[int] = []

    def interrupted(dataset: Any, draw: Any, steps: range, **options: Any) -> Iterator[Any]:
        calls.append(steps)
        for step, batch in zip(steps, load(dataset, draw, steps, **options), strict=True):
            if step == 145 and not stopped:
                stopped.append(step)
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(runs, "loader", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(photos, tmp_path / "r", SMALL, options=CPU)
    assert not (tmp_path / "r").exists()
    made = train_denoiser(photos, tmp_path / "r", SMALL, options=CPU)
    assert any(steps == range(140, 200) for steps in calls)  # not from the start
    assert made == trained[1]
    with pytest.raises(UsageError, match="is there; --overwrite"):
        train_denoiser(photos, tmp_path / "r", SMALL, options=CPU)
    with pytest.raises(UsageError, match="another run"):
        train_denoiser(photos, tmp_path / "r", replace(SMALL, seed=1), options=CPU, overwrite=True)


def test_a_dncnn_without_padding_is_measured_where_it_answers(
    photos: Manifest, tmp_path: Path
) -> None:
    config = replace(
        SMALL, kind="DnCNN", padding=0, batch_norm=True, steps=4, epoch_steps=2, depth=4
    )
    made = train_denoiser(photos, tmp_path / "r", config, options=CPU)
    assert made["psnr_noisy"] == pytest.approx(20.17, abs=0.2)
    assert read_residual(tmp_path / "r")[0] == ResidualConfig.dncnn(4, 8)


def test_patches_are_the_photo_plus_noise() -> None:
    pixels = smooth(3)
    noisy, noise = noisy_patches(pixels, 50, SMALL, rng_for("patch"))
    assert noisy.shape == noise.shape == (50, 3, 24, 24)
    assert noise.std() * 255 == pytest.approx(25, rel=0.02)
    planes = to_colour(pixels[None], SMALL.colour)[0]
    clean = noisy[0] - noise[0]
    places = [
        (y, x)
        for y in range(80 - 23)
        for x in range(96 - 23)
        if np.allclose(planes[:, y : y + 24, x : x + 24], clean, atol=1e-5)
    ]
    assert len(places) == 1
    assert psnr(255.0**2) == 0
    assert psnr(1.0) == pytest.approx(48.13, abs=0.01)


def test_a_detector_starts_from_it(
    photos: Manifest, trained: tuple[Path, Any], tmp_path: Path
) -> None:
    rows = [row for row in photos.rows if row.is_real]
    rows += [
        replace(row, path=f"g-{row.path}", generator="g", source=f"g{row.source}") for row in rows
    ]
    for row in rows:
        (tmp_path / row.path).write_bytes((photos.root / row.path.removeprefix("g-")).read_bytes())
    config = OriginalConfig(
        window=64, batch=4, epochs=1, limit_steps=2, smallest_class=2, freeze=True,
        preprocess="light",
    )  # fmt: skip
    images = Manifest(tuple(rows), tmp_path)
    for wrong, message in (
        (replace(config, preprocess="DnCNN"), "give -p light"),
        (replace(config, colour="RGB"), "was trained in YCbCr"),
    ):
        with pytest.raises(UsageError, match=message):
            train_original(images, tmp_path / "d", wrong, residual_weights=trained[0], options=CPU)
    # The file of the folder is read as the folder: its weights alone do not tell the padding.
    file = trained[0] / "residual.safetensors"
    assert read_residual(file)[0] == read_residual(trained[0])[0] == SMALL.residual
    made = train_original(
        images, tmp_path / "d", config, residual_weights=trained[0], options=CPU,
    )  # fmt: skip
    (branch,) = made.file.branches
    assert branch.residual == SMALL.residual
    weights = read_residual(trained[0])[1]
    assert all(np.array_equal(branch.residual_weights[name], weights[name]) for name in weights)
    assert made.file.provenance["residual"]["sha256"] == trained[1]["sha256"]


def test_the_command_line(photos: Manifest, tmp_path: Path) -> None:
    base = [
        "train-residual", "--manifest", str(photos.root / "manifest.csv"), "--light",
        "--out", str(tmp_path / "r"), "--device", "cpu", "--workers", "0", "--patch", "16",
    ]  # fmt: skip
    done = CliRunner().invoke(
        app, [*base, "--sigma", "5", "--steps", "3", "-b", "8", "--features", "4", "--json"]
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["psnr_noisy"] == pytest.approx(34.15, abs=0.3)
    assert read_residual(tmp_path / "r")[0] == ResidualConfig.light(5, 4)
    done = CliRunner().invoke(app, base)
    assert done.exit_code == 2
    assert "is there; --overwrite replaces it" in done.stderr


def test_what_goes_wrong(photos: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="real photos"):
        train_denoiser(photos.select("val"), tmp_path / "r", SMALL, options=CPU)
    with pytest.raises(DataError, match="at least 100 pixels"):
        train_denoiser(photos, tmp_path / "r", replace(SMALL, patch=100), options=CPU)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(UsageError, match="not overwritten"):
        train_denoiser(photos, tmp_path / "other", SMALL, options=CPU, overwrite=True)
    broken = Manifest(tuple(r for r in photos.rows if r.is_real), tmp_path)  # no such files
    with pytest.raises(DataError, match="photos in a row"):
        train_denoiser(broken, tmp_path / "r", SMALL, options=CPU)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sigm": 1}, "unknown keys"), ({"sigma": 0}, "positive"), ({"patch": 34}, "over 34"),
        ({"steps": 0}, "positive"), ({"decay": 2}, "decay"), ({"kind": "bank"}, "kind"),
        ({"colour": "HSV"}, "colour"), ({"batch": 63}, "multiple"), ({"seed": "x"}, "seed"),
    ]  # fmt: skip
    for values, message in wrong:
        with pytest.raises(UsageError, match=message):
            DenoiserConfig.from_dict(values)

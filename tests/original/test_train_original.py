"""`masksim.original.train`: a planted fingerprint is found; the same run, whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("sklearn")

from typer.testing import CliRunner  # noqa: E402

from conftest import make_natural  # noqa: E402
from masksim.augment import bilinear, rng_for  # noqa: E402
from masksim.checkpoint import DetectorFile  # noqa: E402
from masksim.cli.main import app  # noqa: E402
from masksim.config import read_toml  # noqa: E402
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash, write_manifest  # noqa: E402
from masksim.data.views import ViewConfig  # noqa: E402
from masksim.errors import DataError, ImageError, ModelError, UsageError  # noqa: E402
from masksim.evaluation.scoring import views_of  # noqa: E402
from masksim.image import load_image  # noqa: E402
from masksim.load import load_detector  # noqa: E402
from masksim.metrics import auroc  # noqa: E402
from masksim.original.config import OriginalConfig  # noqa: E402
from masksim.original.network import OriginalNetwork  # noqa: E402
from masksim.original.split import ANY, held_out_groups  # noqa: E402
from masksim.original.train import Trained, train_original  # noqa: E402
from masksim.original.windows import (  # noqa: E402
    batch_items,
    centre_of,
    packed,
    training_window,
    unpacked,
)
from masksim.preprocess import COLOUR_SPACES, to_colour  # noqa: E402
from masksim.residual import weight_shapes  # noqa: E402
from masksim.training.loop import load_state  # noqa: E402
from masksim.training.processes import RunOptions  # noqa: E402

ROOT = Path(__file__).parents[2]
CPU = RunOptions(device="cpu")
SIZE = (72, 80)
BANDS = {"outer": (0.30, 0.42), "inner": (0.17, 0.30)}


def plant(pixels: NDArray[np.uint8], generator: str, seed: int) -> NDArray[np.uint8]:
    """Add noise in a band of frequencies, eight levels strong."""
    height, width = pixels.shape[:2]
    noise = np.random.default_rng([seed, 7]).normal(size=(height, width))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    low, high = BANDS[generator]
    added = np.fft.irfft2(np.fft.rfft2(noise) * ((radius > low) & (radius < high)), (height, width))
    added *= 8 / added.std()
    return np.clip(np.rint(pixels + added[..., None]), 0, 255).astype(np.uint8)


def make_images(folder: Path, counts: dict[str, int], split: str, seed: int) -> list[Row]:
    rows = []
    for number, (generator, count) in enumerate(counts.items()):
        for i in range(count):
            at = 10_000 * seed + 1000 * number + i
            pixels = make_natural(*SIZE, seed=at)
            if generator in BANDS:
                pixels = plant(pixels, generator, at)
            path = folder / f"{split}-{generator}-{i:03d}.png"
            Image.fromarray(pixels).save(path, compress_level=1)
            rows.append(
                Row(
                    path.name, generator, f"{split}-{generator}-{i % 4}", split,
                    width=SIZE[1], height=SIZE[0], format="PNG",
                )
            )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("small")
    rows = make_images(folder, {REAL: 48, "outer": 30, "inner": 30}, "train", 1)
    rows += make_images(folder, {REAL: 24, "outer": 12, "inner": 12}, "val", 2)
    write_manifest(folder / "manifest.csv", rows)
    return Manifest(tuple(rows), folder)


def config(**values: Any) -> OriginalConfig:
    """Something that learns in a second: high rates, weak compression."""
    return OriginalConfig.from_dict(
        {
            "window": 64, "batch": 12, "epochs": 3, "epoch_steps": 20, "smallest_class": 10,
            "preprocess": "cross_diff", "quality": [90, 100], "lr": 0.03, "resize_share": 0.0,
            "generators": ["outer"], **values,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def quick(small: Manifest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A detector of few steps, uninterrupted, and its folder."""
    folder = tmp_path_factory.mktemp("quick")
    return folder, train_original(small, folder / "d", QUICK, options=CPU)


QUICK = config(
    epochs=2, epoch_steps=6, preprocess="DnCNN", depth=3, features=4, batch=6, resize_share=0.5
)


def scores_of(folder: Path, manifest: Manifest) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    detector = load_detector(folder, threads=1)
    rows = manifest.select("val").rows
    found = [detector.similarities(load_image(manifest.file(row)).pixels) for row in rows]
    return np.array(found), np.array([row.generator for row in rows])


# --- it learns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",  # networks need more steps: a residual has to be learned, too
    [
        {
            "preprocess": "DnCNN",
            "depth": 3,
            "features": 8,
            "residual_lr": 1e-3,
            "lr": 0.01,
            "epoch_steps": 30,
        },
        {"preprocess": "light", "depth": 2, "features": 6, "residual_lr": 1e-3, "epoch_steps": 30},
        {"preprocess": "linear3x3"},
        {"preprocess": "cross_diff", "num_masks": 2},
        {"preprocess": "none", "compression": "webp"},
        {"preprocess": "cross_diff", "compression": "none", "freeze": True},
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_a_planted_fingerprint_is_found(
    small: Manifest, tmp_path: Path, values: dict[str, Any]
) -> None:
    made = train_original(small, tmp_path / "d", config(**values), options=CPU)
    scores, generators = scores_of(tmp_path / "d", small)
    pair = (generators == "outer") | (generators == REAL)
    assert auroc(scores[pair, 0], generators[pair] == "outer") > 0.99
    colour = "RGB" if values.get("compression") == "none" else "YCbCr-BT601-studio-8bit"
    assert made.file.branches[0].preprocess["colour"] == colour


def test_each_generator_gets_a_detector_of_its_own(small: Manifest, tmp_path: Path) -> None:
    chosen = config(generators=[], preprocess="linear3x3")
    made = train_original(small, tmp_path / "d", chosen, options=CPU)
    assert made.file.generators == ("inner", "outer")
    assert len(made.file.branches) == 2
    weights = [branch.residual_weights["0.weight"] for branch in made.file.branches]
    assert not np.array_equal(weights[0], weights[1])
    assert (tmp_path / "d.run" / "inner" / "log.jsonl").is_file()
    scores, generators = scores_of(tmp_path / "d", small)
    for k, name in enumerate(made.file.generators):
        pair = (generators == name) | (generators == REAL)
        assert auroc(scores[pair, k], generators[pair] == name) > 0.9


def test_one_detector_of_all(small: Manifest, tmp_path: Path) -> None:
    chosen = config(generators=[], multi_class=True, preprocess="none")
    made = train_original(small, tmp_path / "d", chosen, options=CPU)
    assert made.file.generators == (ANY,)
    assert made.file.provenance["images"] == {REAL: 48, ANY: 54}


# --- what is written -----------------------------------------------------------------------------


def test_the_file_says_how_it_came_about(small: Manifest, quick: tuple[Path, Trained]) -> None:
    folder, made = quick
    loaded = DetectorFile.load(folder / "d")
    assert loaded.sha256 == made.file.sha256
    assert loaded.config == {"name": "JPEG_Q90-100_w64", "recipe": "original"}
    facts = loaded.provenance
    assert facts["training"]["epochs"] == 2
    assert facts["training"]["residual_lr"] == 1e-4
    assert facts["images"] == {REAL: 48, "outer": 27}  # a tenth is kept out
    assert facts["sources"] == {REAL: 4, "outer": 4}
    assert facts["best"]["outer"]["epoch"] in (1, 2)
    used = [
        r
        for r in small.rows
        if r.generator == REAL or (r.generator == "outer" and r.split == "train")
    ]
    assert facts["manifest_sha256"] == manifest_hash(used)
    assert facts["residual"]["from"] == "random numbers"
    assert "val split" in facts["calibration"]["how"]
    assert facts["torch"] == torch.__version__
    (branch,) = loaded.branches
    assert set(branch.residual_weights) == set(weight_shapes(QUICK.residual))


def test_calibration_scores_are_those_of_detection(
    small: Manifest, quick: tuple[Path, Trained]
) -> None:
    """The validation photos, through decoding, window, compression and ONNX, once more."""
    detector = load_detector(quick[0] / "d", threads=1)
    found = []
    rows = sorted((r for r in small.rows if r.split == "val" and r.is_real), key=lambda r: r.path)
    for row in rows:
        rng = rng_for(QUICK.seed, "outer", row.path, "validation")
        window = centre_of(load_image(small.file(row)).pixels, QUICK, rng)
        found.append(detector.similarities(window))
    stored = quick[1].file.calibration
    assert stored is not None
    np.testing.assert_allclose(stored["real_similarities"], found, atol=2e-5)
    assert detector.sample_size == 24
    assert views_of(detector) == ViewConfig()  # evaluation takes its own
    assert detector.detect(small.file(rows[0])).verdict.false_positive_rate is not None


def test_without_a_val_split_photos_of_other_sources_are_kept_out(
    small: Manifest, tmp_path: Path
) -> None:
    chosen = replace(QUICK, epochs=1, epoch_steps=1, preprocess="none")
    made = train_original(small.select("train"), tmp_path / "d", chosen, options=CPU)
    assert made.file.provenance["images"][REAL] == 36  # one of four sources is kept out
    assert made.file.provenance["sources"][REAL] == 3
    assert "sources of the train split" in made.file.provenance["calibration"]["how"]
    rows = tuple(replace(row, source="one") for row in small.select("train").rows)
    made = train_original(Manifest(rows, small.root), tmp_path / "e", chosen, options=CPU)
    assert made.file.provenance["images"][REAL] == 43  # a tenth, by image


def test_a_frozen_network_is_what_it_was(small: Manifest, tmp_path: Path) -> None:
    start = OriginalNetwork(QUICK.residual, 64, seed=3).residual_weights()
    torch.save(
        {"network": {k.removeprefix("model."): torch.from_numpy(v) for k, v in start.items()}},
        tmp_path / "model_best.th",
    )
    for freeze in (True, False):
        made = train_original(
            small, tmp_path / f"{freeze}", replace(QUICK, freeze=freeze, depth=17),
            residual_weights=tmp_path / "model_best.th", options=CPU,
        )  # fmt: skip
        found = made.file.branches[0].residual_weights
        same = [name for name in start if np.array_equal(found[name], start[name])]
        assert same == (sorted(start, key=list(start).index) if freeze else [])
        assert made.file.provenance["residual"]["file"] == "model_best.th"
        assert made.file.provenance["training"]["depth"] == 3  # that of the weights
    with pytest.raises(UsageError, match="no --residual-weights"):
        train_original(small, tmp_path / "x", config(), residual_weights=tmp_path / "model_best.th")
    with pytest.raises(ModelError):
        train_original(small, tmp_path / "x", QUICK, residual_weights=tmp_path / "nothing.th")


# --- the same whatever happens -------------------------------------------------------------------


def command(manifest: Manifest, out: Path, *more: str) -> list[str]:
    """QUICK on the command line."""
    (out.parent / "quick.toml").write_text(
        'recipe = "original"\ndepth = 3\nfeatures = 4\nepoch_steps = 6\nsmallest_class = 10\n'
        "lr = 0.03\nresize_share = 0.5\n"
    )
    return [
        "train", str(out.parent / "quick.toml"), "--manifest", str(manifest.root / "manifest.csv"),
        "--out", str(out), "-w", "64", "-b", "6", "-e", "2", "-p", "DnCNN", "-Q", "90-100",
        "--compression", "jpeg", "--generator", "outer", "--device", "cpu", *more,
    ]  # fmt: skip


def assert_same_detector(one: DetectorFile, other: DetectorFile) -> None:
    for a, b in zip(one.branches, other.branches, strict=True):
        assert a.onnx == b.onnx
        assert all(np.array_equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert one.calibration is not None
    assert other.calibration is not None
    assert np.array_equal(
        one.calibration["real_similarities"], other.calibration["real_similarities"]
    )


def test_a_killed_run_goes_on_to_the_same_detector(
    small: Manifest, quick: tuple[Path, Trained], tmp_path: Path
) -> None:
    arguments = command(small, tmp_path / "d", "--workers", "0", "--save-every", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    log = tmp_path / "d.run" / "outer" / "log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "masksim", *arguments], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if log.exists() and log.read_text().count("\n") >= 3:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL  # and not done before
    assert not (tmp_path / "d").exists()
    assert load_state(log.parent / "last.pt")["step"] < 12
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert_same_detector(DetectorFile.load(tmp_path / "d"), quick[1].file)
    one, other = (
        load_state(folder / "outer" / "last.pt")["module"]
        for folder in (tmp_path / "d.run", quick[0] / "d.run")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_worker_changes_nothing(
    small: Manifest, quick: tuple[Path, Trained], tmp_path: Path
) -> None:
    options = RunOptions(device="cpu", workers=1)
    made = train_original(small, tmp_path / "d", QUICK, options=options)
    assert_same_detector(made.file, quick[1].file)


def test_two_processes_make_one_detector(small: Manifest, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "import json, os, sys\n"
        "from masksim.data.manifest import read_manifest\n"
        "from masksim.training.processes import RunOptions\n"
        "from masksim.original.config import OriginalConfig\n"
        "from masksim.original.train import train_original\n"
        "config = OriginalConfig.from_dict(json.loads(sys.argv[2]))\n"
        "made = train_original(read_manifest(sys.argv[1]), sys.argv[3], config,\n"
        "    options=RunOptions(device='cpu'))\n"
        "with open(sys.argv[3] + os.environ['RANK'], 'w') as file:\n"
        "    json.dump([made.losses, dict(made.best), len(\n"
        "        made.file.calibration['real_similarities']), [b.tensors[n].tolist()\n"
        "        for b in made.file.branches for n in ('clf_b', 'norm_vector.running_mean')]],\n"
        "        file)\n"
    )
    values = {"window": 64, "batch": 6, "epochs": 1, "epoch_steps": 5, "preprocess": "linear3x3",
              "smallest_class": 10, "quality": 95, "generators": ["outer"]}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), str(small.root / "manifest.csv"), json.dumps(values), str(tmp_path / "d")],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"d{rank}").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first[0]["outer"]) == 5
    assert first[2] == 24
    loaded = DetectorFile.load(tmp_path / "d")
    assert loaded.provenance["processes"] == 2
    # Both shares of the validation photos were scored with the statistics that were written.
    detector = load_detector(tmp_path / "d", threads=1)
    chosen = OriginalConfig.from_dict(values)
    rows = sorted((r for r in small.rows if r.split == "val" and r.is_real), key=lambda r: r.path)
    found = [
        detector.similarities(
            centre_of(
                load_image(small.file(r)).pixels, chosen, rng_for(0, "outer", r.path, "validation")
            )
        )
        for r in rows
    ]
    assert loaded.calibration is not None
    np.testing.assert_allclose(loaded.calibration["real_similarities"], found, atol=2e-5)
    with pytest.raises(UsageError, match="another run"):
        train_original(small, tmp_path / "d2", OriginalConfig.from_dict(values),
                       run=tmp_path / "d.run", options=CPU)  # fmt: skip


# --- draws ---------------------------------------------------------------------------------------


def test_batches_are_balanced_and_depend_on_the_step_alone() -> None:
    reals, fakes = list(range(100)), list(range(100, 104))
    items = [batch_items(step, reals, fakes, QUICK, "x") for step in range(400)]
    assert items[7] == batch_items(7, reals, fakes, QUICK, "x")
    assert items[7] != items[8]
    indices = np.array([item.index for batch in items for item in batch])
    share = (indices >= 100).mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(indices))
    counts = np.bincount(indices, minlength=104)
    assert (counts[100:] > 200).all()  # with replacement: 1200 draws of four images


def test_only_the_leak_tells_the_classes_apart() -> None:
    # Rows of a slope: how steep it is in the window tells the factor of the resize.
    pixels = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[:, None], 200, 1)
    pixels = np.stack([pixels] * 3, axis=-1)
    plain = config(resize_share=0.5, resize_range=[1.0, 1.5], compression="none")
    steps: dict[tuple[bool, bool], NDArray[np.float64]] = {}
    for leak in (False, True):
        chosen = replace(plain, resize_reals=leak)
        for real in (False, True):
            slopes = []
            for k in range(200):
                window = training_window(pixels, real, chosen, rng_for("draw", k))
                assert window.shape == (64, 64, 3)
                slopes.append((float(window[-1, 0, 0]) - float(window[0, 0, 0])) / 63)
            steps[leak, real] = np.array(slopes)
    as_found = 255 / 255
    resized = {key: np.abs(s - as_found) > 0.2 for key, s in steps.items()}
    assert np.array_equal(steps[False, False], steps[False, True])  # the same draws for both
    assert 0.35 < resized[False, True].mean() < 0.65
    assert not resized[True, False].any()
    assert np.array_equal(steps[True, True], steps[False, True])
    # The shorter side of 200 pixels becomes 64 to 96: factors of 0.32 to 0.48.
    factors = as_found / steps[False, True][resized[False, True]]
    assert factors.min() == pytest.approx(0.32, abs=0.04)
    assert factors.max() == pytest.approx(0.48, abs=0.04)


def test_bilinear_is_what_scipy_computes() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels = np.random.default_rng(0).integers(0, 256, (57, 91, 3), dtype=np.uint8)
    for height, width in ((80, 100), (30, 40), (57, 91), (71, 33)):
        y = (np.arange(height) + 0.5) * 57 / height - 0.5
        x = (np.arange(width) + 0.5) * 91 / width - 0.5
        grid = np.meshgrid(y, x, indexing="ij")
        exact = np.stack(
            [
                ndimage.map_coordinates(pixels[..., c].astype(float), grid, order=1, mode="nearest")
                for c in range(3)
            ],
            axis=-1,
        )
        off = exact - bilinear(pixels, (height, width))
        assert off.min() > -1e-6
        assert off.max() < 1 + 1e-6
    with pytest.raises(UsageError):
        bilinear(pixels, (0, 10))


@pytest.mark.parametrize("space", COLOUR_SPACES)
def test_packing_loses_nothing(space: Any) -> None:
    windows = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert np.array_equal(unpacked(packed(windows, space)).numpy(), to_colour(windows, space))


def test_validation_and_compression() -> None:
    pixels = make_natural(100, 120, seed=3)
    plain = config(compression="none")
    assert np.array_equal(centre_of(pixels, plain, rng_for(1)), pixels[16:80, 24:88])
    for compression in ("jpeg", "webp"):
        found = [
            centre_of(pixels, config(compression=compression, quality="random"), rng_for(k))
            for k in range(200)
        ]
        untouched = sum(np.array_equal(window, pixels[16:80, 24:88]) for window in found)
        assert (1 <= untouched <= 25) if compression == "jpeg" else untouched == 0
    with pytest.raises(ImageError):
        centre_of(pixels[:50], plain, rng_for(1))


# --- what goes wrong -----------------------------------------------------------------------------


def test_too_few_images_are_an_error(small: Manifest, tmp_path: Path) -> None:
    def train(rows: Any, **values: Any) -> None:
        train_original(Manifest(tuple(rows), small.root), tmp_path / "d", config(**values))

    train_rows = small.select("train").rows
    with pytest.raises(DataError, match="'outer' has 0"):
        train([r for r in train_rows if r.generator != "outer"])
    with pytest.raises(DataError, match="'outer' has 30"):
        train(train_rows, smallest_class=31)
    with pytest.raises(DataError, match="no generator has 40"):
        train(train_rows, smallest_class=40, generators=[])
    with pytest.raises(DataError, match="real photos"):
        train([r for r in train_rows if not r.is_real])
    with pytest.raises(DataError, match="real photos"):
        train(train_rows, window=128, quality=90)  # all are smaller
    assert not (tmp_path / "d").exists()


def test_images_that_cannot_be_read_are_named_and_counted(small: Manifest, tmp_path: Path) -> None:
    rows = [*small.select("train").rows, *small.select("val", REAL).rows]
    broken = [r for r in rows if r.split == "train" and r.is_real][:5]
    for row in rows:
        target = tmp_path / row.path
        target.write_bytes(small.file(row).read_bytes()[: 900 if row in broken else None])
    tiny = Row("tiny.png", REAL, "tiny", "train", format="PNG")  # of unknown size
    Image.fromarray(make_natural(40, 40)).save(tmp_path / tiny.path)
    manifest = Manifest((*rows, tiny), tmp_path)
    chosen = replace(QUICK, preprocess="none", epoch_steps=30, epochs=1)
    made = train_original(manifest, tmp_path / "d", chosen, options=CPU)
    assert made.skipped["too_small"] == 1
    assert 1 <= made.skipped["truncated"] <= 5
    state = load_state(tmp_path / "d.run" / "outer" / "last.pt")
    assert set(state["memory"]) <= {row.path for row in broken}
    for row in rows:
        (tmp_path / row.path).write_bytes(b"nothing")
    with pytest.raises(DataError, match="images in a row"):
        train_original(manifest, tmp_path / "e", chosen, options=CPU)


def test_a_folder_that_is_there_or_cannot_be_written(small: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        train_original(small, tmp_path / "file" / "d", QUICK, options=CPU)
    with pytest.raises(UsageError, match="is there; --overwrite replaces it"):
        train_original(small, tmp_path, QUICK, options=CPU)


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_is_an_error(small: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        train_original(small, tmp_path / "d", config(lr=1e30), options=CPU)
    assert caught.value.code == "diverged"
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windw": 3}, "unknown keys"),
        ({"window": 64.0}, "window must be a whole number"),
        ({"window": 30, "preprocess": "DnCNN"}, "too small"),
        ({"batch": 0}, "at least 1"),
        ({"lr": "high"}, "lr must be a number"),
        ({"lr": -1.0}, "positive"),
        ({"decay": 1.5}, "decay"),
        ({"freeze": 1}, "true or false"),
        ({"tag": 3}, "tag must be a text"),
        ({"preprocess": "bank"}, "preprocess must be"),
        ({"compression": "gif"}, "compression must be"),
        ({"colour": "HSV"}, "colour must be"),
        ({"quality": "best"}, "quality must be"),
        ({"quality": [90, 80]}, "1..100"),
        ({"quality": 101}, "1..100"),
        ({"resize_range": [0.5, 1.0]}, "resize_range"),
        ({"validation": 1.0}, "validation"),
        ({"generators": [""]}, "names"),
        ({"smallest_class": 1}, "at least 2"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OriginalConfig.from_dict(values)


def test_configurations() -> None:
    default = OriginalConfig()
    assert default.full_name == "JPEG_Qrandom_w512"
    assert default.qualities == (65, 100)
    assert replace(default, quality=90, tag="v2").full_name == "JPEG_Q90_w512_v2"
    assert replace(default, compression="none").full_name == "uncompressed_w512"
    assert replace(default, name="mine", tag="x").full_name == "mine"
    assert OriginalConfig.from_dict({"quality": "75"}).qualities == (75, 75)
    assert OriginalConfig.from_dict({"preprocess": "light"}).residual.features == 24
    for name, leak in (("original", True), ("original-fair", False)):
        values = read_toml(ROOT / "configs" / f"{name}.toml")
        assert values.pop("recipe") == "original"
        assert OriginalConfig.from_dict(values) == replace(default, resize_reals=leak)


# --- the command line ----------------------------------------------------------------------------


def test_the_command_line_makes_the_same_detector(
    small: Manifest, quick: tuple[Path, Trained], tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, command(small, tmp_path / "d", "--workers", "0", "--json"))
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["best"]["outer"]["epoch"] == quick[1].best["outer"]["epoch"]
    assert "random numbers" in done.stderr
    assert_same_detector(DetectorFile.load(tmp_path / "d"), quick[1].file)
    done = CliRunner().invoke(app, command(small, tmp_path / "d"))
    assert done.exit_code == 2
    assert "is there; --overwrite replaces it" in done.stderr


def test_recipes_on_the_command_line(small: Manifest, tmp_path: Path) -> None:
    base = ["train", "--manifest", str(small.root / "manifest.csv"), "--out", str(tmp_path / "d")]
    original = tmp_path / "original.toml"
    original.write_text('recipe = "original"\n')
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('recipe = "best"\n')
    for arguments, code, message in [
        (["-w", "64"], 2, "window: of the recipe original"),
        (["--recipe", "shared", "--tensorboard"], 2, "tensorboard: of the recipe"),
        ([str(wrong)], 2, "unknown recipe"),
        ([str(original), "--recipe", "shared", "-b", "4"], 2, "of the recipe original"),
        ([str(original), "-Q", "9x"], 2, "--quality must be"),
        ([str(original), "-Q", "65-70-90"], 2, "--quality must be"),
        ([str(original), "-w", "64", "-p", "none", "--generator", "none"], 5, "'none' has 0"),
        (["--recipe", "original", "-w", "128", "-p", "none"], 5, "real photos of at least 128"),
    ]:
        done = CliRunner().invoke(app, [*base, *arguments])
        assert (done.exit_code, message in done.stderr) == (code, True), done.stderr


def test_what_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    empty = Manifest((), tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("")
    with pytest.raises(UsageError, match="is not a detector"):
        train_original(empty, tmp_path / "full", OriginalConfig(), overwrite=True)
    with pytest.raises(UsageError, match="must not lie in"):
        train_original(empty, tmp_path / "d", OriginalConfig(), run=tmp_path / "d" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    "values",
    [
        {"resize_range": 5},
        {"resize_range": ["a", "b"]},
        {"resize_range": [1, float("inf")]},
        {"generators": "sd1"},
        {"generators": 5},
        {"lr": float("inf")},
    ],
)
def test_values_of_the_wrong_kind_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        OriginalConfig.from_dict(values)


@pytest.mark.parametrize("seed", range(5))
def test_whole_groups_are_held_out(seed: int) -> None:
    keys = ["large"] * 60 + [f"small {k // 2}" for k in range(40)]
    held = held_out_groups(keys, 0.2, seed)
    first = min(set(keys), key=lambda k: hashlib.sha256(f"{seed} validation {k}".encode()).digest())
    count = sum(key in held for key in keys)
    assert first in held
    assert count <= 20 or held == {"large"}
    assert held_out_groups(keys[::-1], 0.2, seed) == held
    assert len(held_out_groups(["a", "b", "b"], 0.99, seed)) == 1  # training needs one, too

"""`masksim.training.learned_heads`: a run of the recipe ``bands`` with a learned residual."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("onnx")

from conftest import make_repositories  # noqa: E402
from masksim import metrics  # noqa: E402
from masksim.checkpoint import DetectorFile  # noqa: E402
from masksim.data.manifest import REAL  # noqa: E402
from masksim.detector import Detector  # noqa: E402
from masksim.errors import ModelError, UsageError  # noqa: E402
from masksim.features import LumaConfig, WindowConfig, luma_features  # noqa: E402
from masksim.image import load_image  # noqa: E402
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx  # noqa: E402
from masksim.training.bands import learn, train_bands, views_of  # noqa: E402
from masksim.training.learned_config import LearnedConfig  # noqa: E402
from masksim.training.learned_heads import combined, spectra_of  # noqa: E402
from masksim.training.learned_residual import LearnedResidual  # noqa: E402
from masksim.training.stored_windows import compute_windows, windows_of  # noqa: E402
from masksim.traits import BANDS  # noqa: E402

LEARNED = LearnedConfig(
    windows=WindowConfig(window=128, windows=2, smallest=128, region=288, spacing=64),
    depth=2, features=4, outputs=2, segment=16, hop=12, crop=72, batch=4, steps=24, epoch_steps=12,
    lr=5e-3, head_lr=3e-3, folds=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(banded: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("learned")
    config = replace(banded.config, learned=LEARNED)
    cache = folder / "cache"
    shutil.copytree(banded.cache, cache)
    file, fit = train_bands(banded.manifest, folder / "detector", config, cache=cache)
    return SimpleNamespace(
        folder=folder / "detector", config=config, cache=cache, file=file, fit=fit
    )


@pytest.fixture(scope="module")
def detector(run: Any) -> Detector:
    return Detector(DetectorFile.load(run.folder), threads=1, stability=False)


def test_both_residuals_have_heads_of_all_generators(run: Any) -> None:
    bank, learned = DetectorFile.load(run.folder).branches
    assert (bank.residual.kind, learned.residual.kind) == ("bank", "learned")
    assert bank.generators == learned.generators == ("grid", "ring")
    assert learned.tensors["masks"].shape == (len(BANDS), 2, 4, 8, 4)
    shares = bank.tensors["share"] + learned.tensors["share"]
    np.testing.assert_allclose(shares, np.ones((len(BANDS), 2)), atol=1e-6)
    assert (learned.tensors["share"] > 0.02).all()


def test_left_out_scores_find_the_planted_fingerprints(run: Any, banded: Any) -> None:
    assert min(run.fit.auroc.values()) > 0.95, run.fit.auroc
    assert not np.array_equal(run.fit.similarities, banded.fit.similarities)


def test_planted_fingerprints_are_found_in_repositories_never_seen(
    detector: Detector, tmp_path: Path
) -> None:
    counts = {REAL: (4, 3), "grid": (3, 3), "ring": (3, 3)}
    rows = make_repositories(tmp_path, counts, size=(304, 336), seed=8)
    kinds = np.array([row.generator for row in rows])
    scores = [detector.detect(tmp_path / row.path) for row in rows]
    rates = np.array([d.verdict.false_positive_rate for d in scores], float)
    assert metrics.auroc(-rates, kinds != REAL) > 0.95


def test_the_similarity_is_the_sum_of_the_maps_of_both(detector: Detector, banded: Any) -> None:
    file = banded.manifest.file(banded.manifest.rows[0])
    found, shown = detector.detect(file), detector.similarity_maps(file)
    for score in found.scores:
        planes = shown[score.generator].planes
        assert {p.values.shape for p in planes} == {(32, 32)}
        assert [p.name for p in planes][-4:] == [
            "luma, learned 1", "luma, learned 2", "luma, cross difference", "luma, clipped"
        ]  # fmt: skip
        total = sum(float(plane.values.sum()) for plane in planes)
        assert total == pytest.approx(score.similarity, abs=1e-5)
    patterns = detector.patterns()
    assert {len(planes) for planes in patterns.values()} == {len(shown["grid"].planes)}


def test_training_and_detection_see_the_same_features(run: Any, banded: Any) -> None:
    branch = run.file.branches[1]
    config = LEARNED.luma
    residual = OnnxResidual(branch.onnx, threads=1)
    pixels = load_image(banded.manifest.file(banded.manifest.rows[1])).pixels
    found, placed = luma_features(pixels, config, residual)
    cut = windows_of(pixels, config)
    assert len(cut) == len(placed)
    np.testing.assert_allclose(spectra_of(cut, config, residual), found, atol=2e-5)
    assert branch.preprocess["colour"] == "luma"
    written = {k: v for k, v in {**branch.preprocess, **branch.spectrum}.items() if k != "colour"}
    assert LumaConfig.from_dict(written) == config


def test_left_out_scores_are_those_of_a_detector_that_never_saw_the_repository(
    run: Any, banded: Any
) -> None:
    """The scores of a fold come of the run that its views had no part in."""
    table = views_of(banded.manifest, run.config, run.cache)
    learned = learn(banded.manifest, table, run.config, run.cache)
    assert learned is not None
    assert np.isfinite(learned.scores).all()
    total, shares = combined(
        np.zeros_like(learned.scores) + np.arange(len(learned.scores))[:, None] % 7, learned.scores,
        np.zeros(len(table.images), np.int64), table.generators == REAL,
    )  # fmt: skip
    assert total.shape == learned.scores.shape
    assert ((shares > 0) & (shares <= 1)).all()


def test_windows_are_of_the_views_of_the_features(run: Any, banded: Any) -> None:
    table = views_of(banded.manifest, run.config, run.cache)
    windows = compute_windows(
        banded.manifest, run.cache, views_config=run.config.views,
        window_config=LEARNED.windows, seed=run.config.seed,
    )  # fmt: skip
    np.testing.assert_array_equal(windows.images, table.images)
    first = windows[0]
    assert first.dtype == np.uint8
    assert first.shape[1:] == (128, 128, 3)
    # The first view of an image is the file as found.
    rows = sorted(banded.manifest.rows, key=lambda row: row.path)
    pixels = load_image(banded.manifest.file(rows[0])).pixels
    np.testing.assert_array_equal(first, windows_of(pixels, LEARNED.windows))


def test_the_graph_is_the_network(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = LearnedConfig(depth=3, features=5, outputs=4)
    network = LearnedResidual(config)
    weights = {name: np.asarray(v.detach().numpy()) for name, v in network.state_dict().items()}
    found = OnnxResidual(residual_onnx(config.residual, weights), threads=1)
    levels = np.random.default_rng(0).uniform(0, 255, (2, 1, 40, 56)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(levels)).numpy()
    given = found((levels / 255).astype(np.float32))
    assert given.shape == (2, 6, 32, 48)
    np.testing.assert_allclose(given[:, :4], expected, atol=2e-3)
    m = config.margin
    x = levels[..., m : 41 - m, m : 57 - m]
    cross = x[..., 1:, 1:] + x[..., :-1, :-1] - x[..., 1:, :-1] - x[..., :-1, 1:]
    np.testing.assert_allclose(given[:, 4:5], cross, atol=2e-3)
    np.testing.assert_allclose(given[:, 5:], np.clip(cross, -3, 3), atol=2e-3)


def test_a_learned_residual_has_outputs_and_no_other_kind_has() -> None:
    good = ResidualConfig("learned", 3, 16, outputs=6)
    assert ResidualConfig.from_dict(good.to_dict()) == good
    assert "outputs" not in ResidualConfig("bank").to_dict()


def test_a_branch_with_the_wrong_planes_is_refused(run: Any) -> None:
    bank, learned = run.file.branches
    wrong = replace(learned, preprocess={**learned.preprocess, "colour": "luma-chroma"})
    with pytest.raises(ModelError, match="luma alone"):
        Detector(replace(run.file, branches=(bank, wrong)))
    short = {key: value for key, value in learned.spectrum.items() if key != "hop"}
    with pytest.raises(ModelError, match="lacks"):
        Detector(replace(run.file, branches=(bank, replace(learned, spectrum=short))))


def test_the_exported_graph_gives_the_same_answers(
    detector: Detector, banded: Any, tmp_path: Path
) -> None:
    from masksim.export.graph import cut_windows
    from masksim.export.graph import windows_of as placed
    from masksim.export.onnx import write_onnx
    from masksim.export.runner import GraphRunner, verify

    path = tmp_path / "graph.onnx"
    write_onnx(detector, path, maps=True)
    graph = GraphRunner(path, threads=1)
    assert graph.inputs[:2] == ("windows", "luma_windows")
    files = [banded.manifest.file(row) for row in banded.manifest.rows[::9]]
    found = verify(graph, detector, files)
    assert found.same, found
    pixels = load_image(files[0]).pixels
    chosen = placed(detector)
    out = graph(
        cut_windows(pixels, chosen)[None],
        luma_windows=cut_windows(pixels, chosen["luma"])[None],
        side=[304.0], quality=[None], band=[0],
    )  # fmt: skip
    np.testing.assert_allclose(out["maps"].sum(axis=(2, 3, 4)), out["similarity"], atol=1e-5)
    with pytest.raises(UsageError, match="learned residual"):
        graph(cut_windows(pixels, chosen)[None], side=[304.0], quality=[None], band=[0])


def test_a_generator_is_enrolled_beside_a_learned_residual_and_forgotten_again(
    run: Any, detector: Detector, tmp_path: Path
) -> None:
    from PIL import Image

    from conftest import make_natural
    from masksim.training.enroll import EnrollConfig, enroll
    from masksim.training.grow import forget

    stripes = 7 * np.cos(2 * np.pi * 5 / 16 * np.arange(320))[None, :, None]
    for i in range(12):
        path = tmp_path / "stripes" / f"source{i % 4}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = make_natural(304, 320, seed=700 + i) + stripes
        Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path)
    before = DetectorFile.load(run.folder)
    made, _ = enroll(
        before, "stripes", [tmp_path / "stripes"], cache=tmp_path / "cache",
        config=EnrollConfig(smallest=12, smallest_photos=40, samples=20),
    )  # fmt: skip
    file = made.save(tmp_path / "detector")
    assert file.generators == ("grid", "ring", "stripes")
    assert file.branches[1].generators == ("grid", "ring")
    after = Detector(DetectorFile.load(tmp_path / "detector"), threads=1, stability=False)
    image = tmp_path / "stripes" / "source0" / "0.png"
    old, new = (d.similarities(load_image(image).pixels) for d in (detector, after))
    np.testing.assert_array_equal(new[:2], old)
    assert new[2] > new[:2].max()
    # What the calibration holds of the new images is what detection finds in the file.
    calibration = file.calibration
    assert calibration is not None
    own = calibration["own_similarities"][calibration["own_generators"] == 2]
    assert np.isfinite(own).all()
    assert np.abs(own[:, :2] - old[None]).sum(axis=1).min() < 1e-3
    shown = after.similarity_maps(image)
    assert len(shown["stripes"].planes) == len(shown["grid"].planes) - 4
    without = forget(DetectorFile.load(tmp_path / "detector"), "stripes")
    for one, other in zip(without.branches, before.branches, strict=True):
        for key, values in other.tensors.items():
            np.testing.assert_array_equal(one.tensors[key], values)
    left = forget(DetectorFile.load(run.folder), "grid")
    assert [branch.generators for branch in left.branches] == [("ring",), ("ring",)]
    assert Detector(left, threads=1).similarities(load_image(image).pixels) == old[1:]

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
from masksim.data.weights import repository_folds  # noqa: E402
from masksim.detector import Detector  # noqa: E402
from masksim.errors import ModelError, UsageError  # noqa: E402
from masksim.features import (  # noqa: E402
    LumaConfig,
    WindowConfig,
    luma_features,
    luma_spectra,
)
from masksim.image import load_image  # noqa: E402
from masksim.residual import (  # noqa: E402
    OnnxResidual,
    ResidualConfig,
    residual_onnx,
    weight_shapes,
)
from masksim.training import learned_heads as heads_module  # noqa: E402
from masksim.training import learned_residual as residual_module  # noqa: E402
from masksim.training import loop  # noqa: E402
from masksim.training import stored_windows as windows_module  # noqa: E402
from masksim.training.bands import train_bands, views_of  # noqa: E402
from masksim.training.learned_config import LearnedConfig  # noqa: E402
from masksim.training.learned_heads import (  # noqa: E402
    LearningViews,
    combined,
    train_one,
)
from masksim.training.learned_residual import LearnedResidual  # noqa: E402
from masksim.training.recipe import classes_of  # noqa: E402
from masksim.training.stored_windows import compute_windows  # noqa: E402
from masksim.traits import BANDS, bands_of  # noqa: E402

LEARNED = LearnedConfig(
    windows=WindowConfig(window=128, windows=2, smallest=128, region=288, spacing=64),
    depth=2, features=4, outputs=2, segment=16, hop=12, inference_hop=18, crop=72, batch=4,
    steps=24, epoch_steps=12, lr=5e-3, head_lr=3e-3, folds=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(banded: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("learned")
    config = replace(banded.config, learned=LEARNED)
    cache = folder / "cache"
    shutil.copytree(banded.cache, cache)
    seen: list[tuple[str, int, int]] = []
    file, fit = train_bands(
        banded.manifest, folder / "detector", config, cache=cache,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    return SimpleNamespace(
        folder=folder / "detector", config=config, cache=cache, file=file, fit=fit, progress=seen
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


def test_a_run_tells_the_epochs_that_are_done(run: Any) -> None:
    epochs = [(done, total) for stage, done, total in run.progress if stage == "learned residual"]
    total = 2 * (run.config.folds + 1)
    assert epochs[0] == (0, total)
    assert epochs[-1] == (total, total)
    assert epochs == sorted(epochs)


def test_epochs_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    assert heads_module._epochs_done(tmp_path, LEARNED) == 0
    assert heads_module._LOG == loop.LOG
    (tmp_path / loop.LOG).write_text(
        '{"step": 12, "epoch": 1, "loss": 1.0}\n{"step": 12, "epoch": 1, "valid_loss": 1.0}\n'
        '{"step": 13, "epoch": 2, "loss": 1.0}\n'
    )
    assert heads_module._epochs_done(tmp_path, LEARNED) == 1
    (tmp_path / "learned.npz").touch()
    assert heads_module._epochs_done(tmp_path, LEARNED) == LEARNED.epochs == 2


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
    cut, where = config.cut(pixels)
    assert len(cut) == len(placed)
    assert where == placed
    np.testing.assert_allclose(luma_spectra(cut, config, residual), found, atol=2e-5)
    assert branch.preprocess["colour"] == "luma"
    written = {k: v for k, v in {**branch.preprocess, **branch.spectrum}.items() if k != "colour"}
    assert LumaConfig.from_dict(written) == config
    assert branch.spectrum["hop"] == LEARNED.inference_hop != LEARNED.hop
    assert "inference_hop" not in LEARNED.of_training


def views_of_run(run: Any, banded: Any) -> LearningViews:
    table = views_of(banded.manifest, run.config, run.cache)
    windows = compute_windows(
        banded.manifest, run.cache, views_config=run.config.views,
        window_config=LEARNED.windows, seed=run.config.seed,
    )  # fmt: skip
    names = run.fit.generators
    return LearningViews(
        windows, classes_of(table, names), names, table.sources, table.histories,
        bands_of(table.traits, len(BANDS)),
        repository_folds(table.sources, table.generators, run.config.folds),
    )  # fmt: skip


def test_no_network_sees_the_repositories_that_it_scores(
    run: Any, banded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = views_of_run(run, banded)
    given: list[Any] = []
    monkeypatch.setattr(residual_module, "train_learned", lambda v, *a, **k: given.append(v))
    monkeypatch.setattr(heads_module, "_write", lambda *_: None)
    for k in (*range(run.config.folds), None):
        train_one(views, k, LEARNED, run.config.lossless, tmp_path)
    learned = next(run.cache.glob("learned-*"))
    for k, seen in enumerate(given[:-1]):
        held = set(views.sources[views.folds == k].tolist())
        assert held
        assert not held & set(seen.sources.tolist())
        # The pixels are those of the views that are named.
        at = int(seen.windows.at[5])
        assert views.sources[at] == seen.sources[5]
        np.testing.assert_array_equal(seen.windows[5], views.windows[at])
        _, scores = heads_module._heads(
            views, learned / f"fold-{k}", k, LEARNED, run.config.heads, run.config.seed
        )
        np.testing.assert_array_equal(np.isfinite(scores).all(axis=1), views.folds == k)
    assert set(given[-1].sources.tolist()) == set(views.sources[views.classes >= 0].tolist())
    # All classes are alike in what their files show of the last compression.
    for seen in given:
        at = seen.windows.at
        shares = [
            [seen.chances[(seen.generators == name) & (views.band[at] == b)].sum()
             for b in range(len(BANDS))]
            for name in (REAL, *views.names)
        ]  # fmt: skip
        table = np.array(shares)
        there = table.min(axis=0) > 0
        np.testing.assert_allclose(table[1:, there], table[:1, there].repeat(2, axis=0))


def test_a_generator_without_a_head_on_the_network_keeps_its_similarity() -> None:
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(40, 3)).astype(np.float32)
    learned = rng.normal(size=(40, 3)).astype(np.float32)
    learned[:, 1] = np.nan  # no head at all
    learned[::4, 2] = np.nan  # none in one fold
    photos = np.arange(40) < 30
    total, shares = combined(bank, learned, np.zeros(40, np.int64), photos)
    np.testing.assert_array_equal(total[:, 1], bank[:, 1])
    np.testing.assert_array_equal(shares[0, 1], 1)
    assert np.isfinite(total).all()
    for g in (0, 2):
        parts = bank[photos, g].std() * shares[0, g], (1 - shares[0, g])
        assert parts[0] == pytest.approx(parts[1] * np.nanstd(learned[photos, g]), rel=1e-5)


def test_owners_are_counted_not_repositories(run: Any, banded: Any, tmp_path: Path) -> None:
    views = views_of_run(run, banded)
    sources = views.sources.copy()
    one = np.flatnonzero(views.classes == 1)
    sources[one] = [f"owner/{source}" for source in sources[one]]
    used = heads_module._learned_from(replace(views, sources=sources), None)
    assert not used[one].any()
    assert used[views.classes == 2].all()


def test_stored_windows_and_their_facts_are_replaced_together(
    banded: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(banded.manifest, rows=banded.manifest.rows[:3])

    def compute() -> Any:
        return compute_windows(
            few, tmp_path, views_config=run.config.views, window_config=LEARNED.windows
        )

    whole = [np.array(compute()[i]) for i in range(12)]
    target = next(tmp_path.rglob("*.npy"))
    target.with_suffix(".json").write_text('{"views": [], "failures": {"a": "truncated"}}')

    class KilledError(Exception):
        pass

    def killed(*_: Any, **__: Any) -> Any:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(windows_module, "written_whole", killed)
        with pytest.raises(KilledError):
            compute()
    again = compute()
    for i, expected in enumerate(whole):
        np.testing.assert_array_equal(again[i], expected)
    target.with_suffix(".json").unlink()
    assert len(compute()) == 12


def test_other_weights_make_other_spectra(run: Any, banded: Any, tmp_path: Path) -> None:
    folder = next(run.cache.glob("learned-*")) / "all"
    shutil.copytree(folder, tmp_path / "all")
    views = views_of_run(run, banded)
    residual = OnnxResidual(run.file.branches[1].onnx, threads=1)
    at = np.arange(2)
    first = heads_module._spectra(views, at, LEARNED.luma, residual, tmp_path / "all")
    zeros = lambda pixels: residual(pixels * 0)  # noqa: E731
    kept = heads_module._spectra(views, at, LEARNED.luma, zeros, tmp_path / "all")
    np.testing.assert_array_equal(kept, first)
    sparse = replace(LEARNED.luma, hop=LEARNED.luma.hop * 2)
    others = heads_module._spectra(views, at, sparse, residual, tmp_path / "all")
    assert not np.array_equal(others, first)
    (tmp_path / "all" / "learned.npz").write_bytes(b"of other weights")
    assert not np.array_equal(
        heads_module._spectra(views, at, LEARNED.luma, zeros, tmp_path / "all"), first
    )


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
    np.testing.assert_array_equal(first, LEARNED.windows.cut(pixels)[0])


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
    for wrong in (
        {"kind": "learned", "depth": 3, "features": 16},
        {"kind": "learned", "depth": 3, "features": 16, "outputs": 6, "padding": 1},
        {"kind": "light", "depth": 3, "features": 16, "outputs": 6},
        {"kind": "bank", "outputs": 6},
    ):
        with pytest.raises(UsageError):
            ResidualConfig.from_dict(wrong)


def test_a_branch_with_the_wrong_planes_is_refused(run: Any) -> None:
    bank, learned = run.file.branches
    wrong = replace(learned, preprocess={**learned.preprocess, "colour": "luma-chroma"})
    with pytest.raises(ModelError, match="luma alone"):
        Detector(replace(run.file, branches=(bank, wrong)))
    short = {key: value for key, value in learned.spectrum.items() if key != "hop"}
    with pytest.raises(ModelError, match="lacks"):
        Detector(replace(run.file, branches=(bank, replace(learned, spectrum=short))))
    small = {**learned.preprocess, "window": 16, "smallest": 16}
    with pytest.raises(ModelError, match="no segment"):
        Detector(replace(run.file, branches=(bank, replace(learned, preprocess=small))))


def test_branches_that_do_not_go_together_are_refused(run: Any) -> None:
    bank, learned = run.file.branches

    def changed(branch: Any, **tensors: Any) -> Any:
        return replace(branch, tensors={**branch.tensors, **tensors})

    def without(branch: Any, name: str) -> Any:
        return replace(branch, tensors={k: v for k, v in branch.tensors.items() if k != name})

    share = learned.tensors["share"]
    for branches in (
        (learned, bank),
        (bank, bank),
        (learned,),
        (bank, learned, learned),
        (without(bank, "share"), learned),
        (bank, without(learned, "share")),
        (bank, changed(learned, share=-share)),
        (bank, changed(learned, share=share * 0.5)),
        (bank, changed(learned, share=share[:3])),
        (bank, changed(learned, share=share[:, :1])),
        (bank, changed(learned, a=learned.tensors["a"] + 1)),
        (bank, replace(learned, generators=("grid", "other"))),
    ):
        with pytest.raises(ModelError):
            replace(run.file, branches=branches)


def test_a_graph_that_is_not_the_residual_is_refused(run: Any) -> None:
    bank, learned = run.file.branches
    weights = {name: values * 1.1 for name, values in learned.residual_weights.items()}
    more = replace(learned.residual, outputs=3)
    rng = np.random.default_rng(0)
    shapes = weight_shapes(more)
    for graph in (
        bank.onnx,
        residual_onnx(learned.residual, weights),
        residual_onnx(more, {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}),
        residual_onnx(ResidualConfig("cross_diff"), {}),
    ):
        with pytest.raises(ModelError):
            Detector(replace(run.file, branches=(bank, replace(learned, onnx=graph))))


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

"""`masksim.training.shared`: planted fingerprints found on unseen sources; the algebra against
solvers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.checkpoint import DetectorFile
from masksim.config import read_toml
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.data.views import ViewConfig
from masksim.detector import Detector
from masksim.errors import DataError, UsageError
from masksim.image import load_image
from masksim.load import load_detector
from masksim.metrics import auroc, tpr_at_fpr
from masksim.model import SharedHeads
from masksim.training.feature_table import FeatureTable
from masksim.training.heads import (
    HeadConfig,
    fisher_coefficients,
    fit_probability,
    level_free,
    masks_and_references,
    statistics,
    stored,
)
from masksim.training.recipe import classes_of, generators_with_heads
from masksim.training.shared import SharedConfig, fit_heads, train_shared
from masksim.traits import TRAITS

pytest.importorskip("sklearn")
pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]


# --- the whole run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector(trained: Any) -> Detector:
    return load_detector(trained.folder, threads=1)


@pytest.fixture(scope="module")
def unseen(trained: Any, detector: Detector) -> tuple[list[Row], NDArray[np.float64]]:
    """Rows of ``val`` and their similarities, through the file and the files' own decoding."""
    rows = list(trained.manifest.select("val").rows)
    scores = [detector.similarities(load_image(trained.manifest.file(row)).pixels) for row in rows]
    return rows, np.array(scores)


def test_planted_fingerprints_are_found_on_unseen_sources(
    trained: Any, detector: Detector, unseen: Any
) -> None:
    rows, scores = unseen
    assert detector.generators == ("grid", "ring")
    assert not {row.source for row in rows} & {
        row.source for row in trained.manifest.select("train").rows
    }
    names = np.array([row.generator for row in rows])
    for g, name in enumerate(detector.generators):
        pair = (names == name) | (names == REAL)
        assert auroc(scores[pair, g], names[pair] == name) > 0.99
        assert tpr_at_fpr(scores[pair, g], names[pair] == name, fpr=0.05) > 0.9
        # The one generator is told from the other, too.
        assert (scores[names == name, g] > scores[names == name, 1 - g]).all()
        assert trained.fit.auroc[name] > 0.98


def test_rates_hold_on_unseen_photos_and_are_low_on_planted_images(
    trained: Any, detector: Detector, unseen: Any
) -> None:
    stats = pytest.importorskip("scipy.stats")
    from masksim.calibration import false_positive_rate, joint_false_positive_rate

    rows, scores = unseen
    real = np.array([row.is_real for row in rows])
    joint = joint_false_positive_rate(scores, trained.file.calibration["real_similarities"])
    alarms = int((joint[real] <= 0.1).sum())
    assert alarms <= stats.binom.ppf(1 - 1e-4, real.sum(), 0.1)
    assert (joint[~real] <= 0.05).mean() > 0.9
    each = false_positive_rate(scores, trained.file.calibration["real_similarities"])
    assert each.min() >= 1 / (detector.sample_size + 1)


def test_the_fingerprint_lies_where_it_was_planted(trained: Any, detector: Detector) -> None:
    rows = trained.manifest.select("val").rows
    for name in detector.generators:
        row = next(r for r in rows if r.generator == name)
        shown = detector.similarity_maps(trained.manifest.file(row))[name]
        luma = [plane for plane in shown.planes if plane.name.startswith("luma")]
        total = np.sum([plane.values for plane in luma], axis=0)
        fy, fx = luma[0].fy[:, None], luma[0].fx[None]
        if name == "grid":
            lines = np.minimum(np.hypot(np.abs(fy) - 0.375, fx), np.hypot(fy, np.abs(fx) - 0.375))
            where = lines < 0.08
        else:
            radius = np.hypot(fy, fx)
            where = (radius > 0.14) & (radius < 0.26)
        # More to the similarity there than the area's share of a flat map: by far.
        share = total[where].sum() / sum(plane.values.sum() for plane in shown.planes)
        assert share > 3 * where.mean()


def test_the_file_says_what_it_was_made_of(trained: Any) -> None:
    file = DetectorFile.load(trained.folder)
    assert file.sha256 == trained.sha256
    strata = file.config["strata"]
    assert file.config == {"name": "planted", "recipe": "shared", "strata": strata}
    assert [trait for trait, _ in strata["bands"]][:2] == ["energy", "distance"]
    assert (strata["photos"], strata["sources"]) == (300, 20)
    provenance = file.provenance
    train = trained.manifest.select("train")
    assert provenance["manifest_sha256"] == manifest_hash(train.rows)
    assert provenance["images"] == {REAL: 60, "grid": 32, "ring": 32}  # `few` was left out
    assert provenance["views"] == 124
    assert provenance["calibration"]["photos"] == 60
    assert provenance["calibration"]["sources"] == 6
    assert set(provenance["cross_validated_auroc"]) == {"grid", "ring"}
    # The resolved configuration can be trained with again: nothing is left to be measured.
    again = SharedConfig.from_dict(json.loads(json.dumps(provenance["training"])))
    views = replace(
        trained.config.views,
        first_qualities=again.views.first_qualities,
        first_subsampled=again.views.first_subsampled,
    )
    assert again == replace(trained.config, views=views)
    assert set(again.views.first_qualities) == {90, 93, 96, 98}
    assert again.views.first_subsampled == 0.75
    branch = file.branches[0]
    assert branch.tensors["masks"].dtype == branch.tensors["references"].dtype == np.float16
    assert branch.tensors["a"].dtype == np.float32
    assert file.calibration is not None
    assert file.calibration["real_similarities"].shape == (60, 2)
    assert len({tuple(row) for row in file.calibration["real_similarities"].tolist()}) == 60


def test_progress_counts_to_the_end(trained: Any) -> None:
    stages = list(dict.fromkeys(stage for stage, _, _ in trained.progress))
    assert len(stages) == 3
    for stage in stages:
        steps = [(done, count) for name, done, count in trained.progress if name == stage]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


def test_the_same_inputs_give_the_same_file(trained: Any, tmp_path: Path) -> None:
    shuffled = Manifest(trained.manifest.rows[::-1], trained.manifest.root)
    file, fit = train_shared(shuffled, tmp_path / "again", trained.config, cache=trained.cache)
    assert file.sha256 == trained.file.sha256
    np.testing.assert_array_equal(fit.similarities, trained.fit.similarities)
    for name in ("heads.safetensors", "calibration.safetensors", "residual-0.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (trained.folder / name).read_bytes()
    with pytest.raises(UsageError, match="overwrite"):
        train_shared(shuffled, tmp_path / "again", trained.config, cache=trained.cache)
    other = replace(trained.config, heads=HeadConfig(ridge=3.0))
    changed, _ = train_shared(
        shuffled, tmp_path / "again", other, cache=trained.cache, overwrite=True
    )
    assert changed.sha256 != file.sha256


def test_probabilities_part_the_classes(detector: Detector, trained: Any, unseen: Any) -> None:
    rows, scores = unseen
    heads = SharedHeads.from_tensors(trained.fit.tensors, trained.config.heads.limit)
    found = heads.probability(scores.astype(np.float32))
    for g, name in enumerate(detector.generators):
        own = np.array([row.generator == name for row in rows])
        real = np.array([row.is_real for row in rows])
        assert np.median(found[own, g]) > 0.5 > np.median(found[real, g])


def test_a_manifest_without_photos_or_with_few_images_is_refused(
    trained: Any, tmp_path: Path
) -> None:
    manifest = trained.manifest
    synthetic = Manifest(tuple(r for r in manifest.rows if not r.is_real), manifest.root)
    for chosen in (synthetic, manifest.select("test")):
        with pytest.raises(DataError):
            train_shared(chosen, tmp_path / "d", trained.config, cache=tmp_path / "c")
    demanding = replace(trained.config, smallest_class=33)
    with pytest.raises(DataError, match="no generator has 33 images") as caught:
        train_shared(manifest, tmp_path / "d", demanding, cache=trained.cache)
    assert caught.value.code == "manifest_invalid"
    assert not (tmp_path / "d").exists()


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sede": 1}, "configuration of the training: .'sede'"),
        ({"views": {"shares_": 1}}, "configuration of the training: views: .'shares_'"),
        ({"features": {"hop": 1}}, "configuration of the features: .'hop'"),
        ({"heads": {"ridges": 1}}, "configuration of the training: heads: .'ridges'"),
        ({"views": 4}, "views must be a table, got 4"),
        ({"heads": "none"}, "heads must be a table"),
        ({"heads": {"ridge": "much"}}, "ridge must be a number"),
        ({"heads": {"ridge": 0}}, "out of range"),
        ({"heads": {"pooled": 1.0}}, "out of range"),
        ({"views": {"shares": {"jpeg": 1.0}}}, "shares must give jpeg, reduced, lossless"),
    ],
)
def test_unknown_keys_fail(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        SharedConfig.from_dict(values)


def test_a_configuration_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'name = "x"\nseed = 4\n[views]\nwindow = 256\nfinal_quality = [70, 90]\n'
        "[views.views]\nreal = 2\n'*' = 3\n[features]\nwindow = 256\n[heads]\nridge = 2.5\n"
    )
    config = SharedConfig.from_dict(read_toml(path))
    assert (config.name, config.seed, config.smallest_class) == ("x", 4, 30)
    assert config.views == ViewConfig(
        window=256, final_quality=(70, 90), views={"real": 2, "*": 3}, first_qualities=()
    )
    assert config.features.window == 256
    assert config.heads == HeadConfig(ridge=2.5)
    path.write_text("")
    assert SharedConfig.from_dict(read_toml(path)) == SharedConfig()


def test_configurations_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the configuration"):
        read_toml(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    for content in (b"name = ", b"\xff\xfe", b'nom = "x"'):
        path.write_bytes(content)
        with pytest.raises(UsageError):
            SharedConfig.from_dict(read_toml(path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_the_committed_configurations_are_valid(path: Path) -> None:
    if "features" not in path.read_text() and "heads" not in path.read_text():
        pytest.skip("not of a training run")
    values = read_toml(path)
    if values.pop("recipe", "shared") != "shared":
        pytest.skip("of another recipe")
    assert SharedConfig.from_dict(values).name


# --- the algebra ---------------------------------------------------------------------------------


def problem(n: int, dimensions: int, generators: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, generators + 1, n)
    classes[: generators + 1] = np.arange(generators + 1)
    centres = rng.standard_normal((generators + 1, dimensions))
    spread = rng.uniform(0.3, 2, dimensions)
    x = centres[classes] + spread * rng.standard_normal((n, dimensions))
    return x, classes, rng.uniform(0.1, 3, n)


def covariance(
    x: NDArray[np.float64], classes: Any, weights: Any, ridge: float, pooled: float
) -> NDArray[np.float64]:
    """The regularised within-class covariance of the docstring, in the D dimensions."""
    count = int(classes.max())
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for c in range(count + 1):
        own = classes == c
        part = np.cov(x[own].T, aweights=weights[own], bias=True)
        scatter += ((1 - pooled) if c == 0 else pooled / count) * part
    return scatter + ridge * np.trace(scatter) / x.shape[1] * np.eye(x.shape[1])


def direct(
    x: NDArray[np.float64], classes: Any, weights: Any, ridge: float, pooled: float
) -> NDArray[np.float64]:
    """Directions (D, G) by the equations of the docstring, in double precision."""
    means = [
        np.average(x[classes == c], axis=0, weights=weights[classes == c])
        for c in range(int(classes.max()) + 1)
    ]
    contrasts = np.array(means[1:]) - means[0]
    return np.linalg.solve(covariance(x, classes, weights, ridge, pooled), contrasts.T)


@pytest.mark.parametrize(("n", "dimensions"), [(40, 12), (40, 90), (25, 25)])
@pytest.mark.parametrize("generators", [1, 3])
@pytest.mark.parametrize(("ridge", "pooled"), [(1.0, 0.3), (10.0, 0.0), (0.1, 0.7)])
def test_fisher_is_the_direct_solution(
    n: int, dimensions: int, generators: int, ridge: float, pooled: float
) -> None:
    x, classes, weights = problem(n, dimensions, generators, seed=n + dimensions)
    x = x.astype(np.float32)
    found = fisher_coefficients(x @ x.T, classes, weights, dimensions, ridge=ridge, pooled=pooled)
    assert found.shape == (n, generators)
    assert found.dtype == np.float32
    expected = direct(x.astype(np.float64), classes, weights, ridge, pooled)
    directions = x.T.astype(np.float64) @ found
    error = np.abs(directions - expected).max() / np.abs(expected).max()
    assert error < (2e-3 if ridge < 1 else 2e-4)


def test_rows_left_out_or_without_weight_do_not_count() -> None:
    x, classes, weights = problem(60, 30, 2)
    x = x.astype(np.float32)
    gram = x @ x.T
    options: dict[str, Any] = {"ridge": 2.0, "pooled": 0.3}
    out = np.zeros(60, bool)
    out[5::4] = True
    left = np.where(out, -1, classes)
    found = fisher_coefficients(gram, left, weights, 30, **options)
    assert not found[out].any()
    small = fisher_coefficients(
        gram[np.ix_(~out, ~out)], classes[~out], weights[~out], 30, **options
    )
    np.testing.assert_allclose(found[~out], small, rtol=1e-4, atol=1e-6)
    weightless = fisher_coefficients(gram, classes, np.where(out, 0, weights), 30, **options)
    expected = direct(x[~out].astype(float), classes[~out], weights[~out], 2.0, 0.3)
    np.testing.assert_allclose(x.T @ weightless, expected, atol=2e-4 * np.abs(expected).max())


def test_weights_are_shares_and_repetitions() -> None:
    x, classes, weights = problem(30, 20, 2)
    x = x.astype(np.float32)
    options: dict[str, Any] = {"ridge": 2.0, "pooled": 0.3}
    found = x.T @ fisher_coefficients(x @ x.T, classes, weights, 20, **options)
    # Only the shares within a class count ...
    scaled = weights * np.array([1.0, 7.0, 0.2])[classes]
    again = x.T @ fisher_coefficients(x @ x.T, classes, scaled, 20, **options)
    np.testing.assert_allclose(again, found, atol=1e-4 * np.abs(found).max())
    # ... and a row of weight 2 is two rows.
    whole = np.random.default_rng(0).integers(1, 4, 30)
    rows = np.repeat(np.arange(30), whole)
    one = x.T @ fisher_coefficients(x @ x.T, classes, whole.astype(float), 20, **options)
    many_x = x[rows]
    many = many_x.T @ fisher_coefficients(
        many_x @ many_x.T, classes[rows], np.ones(len(rows)), 20, **options
    )
    np.testing.assert_allclose(many, one, atol=2e-4 * np.abs(one).max())


def test_each_generator_can_have_photos_of_its_own() -> None:
    x, classes, weights = problem(60, 30, 2)
    x = x.astype(np.float32)
    own = np.random.default_rng(9).uniform(0, 2, (60, 2)) * (classes == 0)[:, None]
    options: dict[str, Any] = {"ridge": 2.0, "pooled": 0.3}
    found = x.T @ fisher_coefficients(x @ x.T, classes, weights, 30, real_weights=own, **options)
    for g in range(2):
        # Only the mean that it is set against changes, not the covariance.
        plain = direct(x.astype(float), classes, weights, 2.0, 0.3)[:, g]
        mean = np.average(x[classes == 0], axis=0, weights=weights[classes == 0])
        matched = np.average(x, axis=0, weights=own[:, g])
        scatter = np.linalg.inv(covariance(x.astype(float), classes, weights, 2.0, 0.3))
        expected = plain + scatter @ (mean - matched)
        np.testing.assert_allclose(found[:, g], expected, atol=2e-4 * np.abs(expected).max())
    same = np.repeat(np.where(classes == 0, weights, 0)[:, None], 2, axis=1)
    np.testing.assert_allclose(
        fisher_coefficients(x @ x.T, classes, weights, 30, real_weights=same, **options),
        fisher_coefficients(x @ x.T, classes, weights, 30, **options),
        rtol=1e-3, atol=1e-6,
    )  # fmt: skip
    with pytest.raises(DataError, match="to be set against"):
        fisher_coefficients(x @ x.T, classes, weights, 30, real_weights=0 * own, **options)


def test_an_empty_class_is_refused() -> None:
    x, classes, weights = problem(30, 10, 2)
    gram = (x @ x.T).astype(np.float32)
    for absent in (0, 1):
        with pytest.raises(DataError, match=f"class {absent} has no training images"):
            fisher_coefficients(
                gram, np.where(classes == absent, -1, classes), weights, 10, ridge=1, pooled=0.3
            )
    with pytest.raises(DataError, match="class 1"):
        fisher_coefficients(
            gram, classes, np.where(classes == 1, 0, weights), 10, ridge=1, pooled=0.3
        )


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_mask_times_reference_is_along_the_direction(exponent: float) -> None:
    directions = np.random.default_rng(3).standard_normal((4, 3 * 8 * 4)).astype(np.float32)
    masks, references = masks_and_references(directions, (3, 8, 4), exponent)
    assert masks.shape == references.shape == (4, 3, 8, 4)
    assert masks.dtype == references.dtype == np.float32
    assert masks.min() > 0
    np.testing.assert_allclose(masks.max(axis=(1, 2, 3)), 1)
    np.testing.assert_allclose((references**2).sum(axis=(1, 2, 3)), 1, rtol=1e-5)
    product = (masks * references).reshape(4, -1).astype(np.float64)
    cosine = (product * directions).sum(1)
    cosine /= np.linalg.norm(product, axis=1) * np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)
    if exponent == 0:
        np.testing.assert_array_equal(masks, 1)


def test_the_mask_is_the_envelope_of_the_direction() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    directions = np.random.default_rng(4).standard_normal((2, 3 * 8 * 4)).astype(np.float32)
    masks, _ = masks_and_references(directions, (3, 8, 4), 1.0)
    planes = np.abs(directions.reshape(2, 3, 8, 4))
    expected = ndimage.uniform_filter(planes, size=(1, 1, 3, 3), mode="nearest")
    expected /= expected.max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(masks, np.maximum(expected, 1e-3), rtol=1e-4)


def test_the_head_scores_along_the_direction() -> None:
    """What is fitted in D dimensions is what `SharedHeads` computes, but for the image's norm."""
    rng = np.random.default_rng(5)
    features = rng.standard_normal((10, 3, 8, 4)).astype(np.float32)
    direction = rng.standard_normal((1, 96)).astype(np.float32)
    masks, references = masks_and_references(direction, (3, 8, 4), 0.0)
    shape = (3, 8, 4)
    tensors = {
        "mean": np.zeros(shape, np.float32), "deviation": np.ones(shape, np.float32),
        "masks": masks, "references": references, "a": np.zeros(1), "b": np.zeros(1),
    }  # fmt: skip
    found = SharedHeads.from_tensors(tensors, 1e9).similarities(features)[:, 0]
    flat = level_free(features).reshape(10, -1)
    expected = flat @ direction[0] / np.linalg.norm(flat, axis=1) / np.linalg.norm(direction)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_statistics_of_reals() -> None:
    rng = np.random.default_rng(6)
    features = rng.normal(3, 2, (50, 2, 4, 2)).astype(np.float16)
    free = level_free(features)
    assert free.dtype == np.float32
    np.testing.assert_allclose(free.mean(axis=(2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(
        free - free[:, :, :1, :1],
        (features - features[:, :, :1, :1]).astype(np.float32),
        atol=1e-2,
    )
    real, weights = rng.random(50) < 0.6, rng.uniform(0, 2, 50)
    mean, deviation = statistics(free[real], weights[real])
    expected = np.average(free[real], axis=0, weights=weights[real])
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    variance = np.average((free[real] - expected) ** 2, axis=0, weights=weights[real])
    np.testing.assert_allclose(deviation, np.sqrt(variance) + 1e-3, rtol=1e-4)


def test_the_probability_is_logistic_and_balanced() -> None:
    rng = np.random.default_rng(7)
    # Two normal classes of equal deviation d and distance m: the logit's slope is m / d**2, and
    # it is 0 half way between them.
    n = 20_000
    synthetic = np.arange(n) < n // 10
    s = rng.normal(np.where(synthetic, 0.05, -0.01), 0.03)
    a, b = fit_probability(s, synthetic, np.full(n, 1 / n))
    assert np.exp(a) == pytest.approx(0.06 / 0.03**2, rel=0.1)
    assert -b / np.exp(a) == pytest.approx(0.02, abs=0.003)
    # A score that is worse than nothing is not turned round.
    a, b = fit_probability(-s, synthetic, np.full(n, 1 / n))
    assert np.exp(a) < 1e-5


def test_heads_are_stored_in_half_precision() -> None:
    found = stored({"masks": np.ones(3), "a": np.ones(3), "b": np.ones(3), "mean": np.ones(3)})
    assert {name: v.dtype.name for name, v in found.items()} == {
        "masks": "float16", "a": "float32", "b": "float32", "mean": "float16",
    }  # fmt: skip


# --- heads from a table --------------------------------------------------------------------------


def table(counts: dict[tuple[str, str], int], seed: int = 0, views: int = 2) -> FeatureTable:
    """Random features, a bump of its own for each generator; by (generator, source)."""
    rng = np.random.default_rng(seed)
    rows, features, images = [], [], []
    for (generator, source), count in counts.items():
        for i in range(count):
            rows.append(Row(f"{generator}/{source}/{i}", generator, source, "train", format="PNG"))
            for _ in range(views):
                cells = rng.normal(0, 1, (2, 8, 4))
                if generator != REAL:
                    cells[0, len(generator), :] += 2
                features.append(cells)
                images.append(len(rows) - 1)
    n = len(images)
    return FeatureTable(
        np.array(features).astype(np.float16),
        np.zeros((n, len(TRAITS)), np.float32),
        np.array([rows[i].generator for i in images]),
        np.array([rows[i].source for i in images]),
        np.array(["jpeg", "lossless"] * n)[:n],
        np.array([""] * n),
        np.array(images),
        tuple(rows),
        {},
    )


COUNTS = {
    (REAL, "a"): 20, (REAL, "b"): 15, (REAL, "c"): 15, (REAL, "d"): 10,
    ("x", "p"): 25, ("x", "q"): 10, ("yy", "p"): 30, ("zzz", "p"): 29,
}  # fmt: skip


def test_fit_leaves_small_classes_out() -> None:
    data = table(COUNTS)
    photos = table({pair: n for pair, n in COUNTS.items() if pair[0] == REAL}, seed=1, views=1)
    fit = fit_heads(data, photos, SharedConfig(folds=3))
    assert fit.generators == ("x", "yy")  # zzz has 29 images
    assert fit.similarities.shape == (60, 2)
    assert fit.tensors["masks"].shape == (2, 2, 8, 4)
    assert min(fit.auroc.values()) > 0.95
    assert (np.abs(fit.similarities) <= 1).all()


def test_generators_can_be_kept_without_a_head() -> None:
    data = table(COUNTS)
    config = SharedConfig(smallest_sources=2)
    assert generators_with_heads(data, config) == ("x",)  # yy has one source
    assert generators_with_heads(data, SharedConfig(joint_only=("x",))) == ("yy",)
    np.testing.assert_array_equal(
        classes_of(data, ("yy",)), [{REAL: 0, "yy": 1}.get(g, -1) for g in data.generators.tolist()]
    )


def test_calibration_scores_come_from_heads_that_did_not_see_the_source() -> None:
    # One source of reals carries the bump of a generator. A head that has seen it would learn that
    # photos have it; the scores it gives must be those of a head that has not.
    data = table(COUNTS, seed=2)
    own = data.sources == "d"
    data.features[own, 0, len("x"), :] += 3
    photos = table({(REAL, s): 10 for s in "abcd"}, seed=3, views=1)
    odd = photos.sources == "d"
    photos.features[odd, 0, len("x"), :] += 3
    fit = fit_heads(data, photos, SharedConfig(folds=4, heads=HeadConfig(ridge=0.1)))
    naive = SharedHeads.from_tensors(fit.tensors, 6.0).similarities(
        photos.features.astype(np.float32)
    )
    assert fit.similarities[odd, 0].mean() > naive[odd, 0].mean() + 0.05
    assert abs(fit.similarities[~odd, 0].mean() - naive[~odd, 0].mean()) < 0.05


def test_more_folds_than_sources_of_photos() -> None:
    counts = {(REAL, "a"): 30, (REAL, "b"): 30, ("x", "p"): 40}
    photos = table({(REAL, "a"): 10, (REAL, "b"): 10}, seed=1, views=1)
    fit = fit_heads(table(counts), photos, SharedConfig(folds=5))
    assert np.abs(fit.similarities).min(axis=1).all()  # every photo has been scored
    with pytest.raises(DataError, match="at least two sources"):
        fit_heads(
            table({(REAL, "a"): 30, ("x", "p"): 40}),
            table({(REAL, "a"): 10}, views=1),
            SharedConfig(folds=3),
        )


@pytest.mark.parametrize("folds", [0, 1])
def test_cross_validation_needs_folds(folds: int) -> None:
    with pytest.raises(UsageError, match="at least two folds"):
        fit_heads(table(COUNTS), table(COUNTS), SharedConfig(folds=folds))


def test_a_table_without_photos_or_generators_is_refused() -> None:
    photos = table({(REAL, "a"): 5}, views=1)
    with pytest.raises(DataError, match="needs real photos"):
        fit_heads(table({("x", "p"): 40}), photos, SharedConfig())
    with pytest.raises(DataError, match="no generator has 30 images"):
        fit_heads(table({(REAL, "a"): 20, (REAL, "b"): 20, ("x", "p"): 29}), photos, SharedConfig())

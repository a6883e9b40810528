"""`masksim.training.bands`: planted fingerprints in whole repositories, and its parts by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import BANDED, make_repositories
from masksim import metrics
from masksim.bank import BANK
from masksim.calibration import Calibration, Joint
from masksim.checkpoint import AS_FOUND, COPY, OWN_RANKED_ARRAY, RANKED_ARRAY, DetectorFile
from masksim.config import read_toml
from masksim.data.manifest import REAL, Manifest, Row
from masksim.detector import Detector
from masksim.errors import DataError, MasksimError, ModelError, UsageError
from masksim.load import bundled_path, describe
from masksim.model import heads_by_band, whiten
from masksim.populations import BUILT_IN, OwnImages, likelihood_ratios, read_calibrations
from masksim.training.bands import (
    BandsConfig,
    Space,
    file_of,
    find_basis,
    fit_bands,
    fit_joint,
    train_bands,
    views_of,
)
from masksim.training.feature_table import FeatureTable
from masksim.training.heads import HeadConfig, cosines
from masksim.training.recipe import generators_with_heads, ranked_among
from masksim.training.stored_features import unpack
from masksim.traits import BANDS, TRAITS, bands_of

pytest.importorskip("sklearn")
pytest.importorskip("onnx")

BAND = TRAITS.index("band")


# --- a whole run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector(banded: Any) -> Detector:
    return Detector(DetectorFile.load(banded.folder), threads=1)


@pytest.fixture(scope="module")
def table(banded: Any, tmp_path_factory: pytest.TempPathFactory) -> FeatureTable:
    cache = tmp_path_factory.mktemp("banded") / "cache"
    shutil.copytree(banded.cache, cache)  # another process may be reading it
    return views_of(banded.manifest, banded.config, cache)


@pytest.mark.slow
def test_left_out_scores_find_the_planted_fingerprints(banded: Any, table: FeatureTable) -> None:
    found = banded.fit.auroc
    assert set(found) == {"grid", "ring"}
    assert min(found.values()) > 0.95, found
    real = table.generators == REAL
    planted = np.isin(table.generators, ["grid", "ring"])
    joint = banded.fit.joint(banded.fit.similarities.astype(float), table.traits.astype(float))
    assert metrics.auroc(joint[real | planted], planted[real | planted]) > 0.95


def test_planted_fingerprints_are_found_in_repositories_never_seen(
    detector: Detector, tmp_path: Path
) -> None:
    counts = {REAL: (6, 4), "grid": (4, 3), "ring": (4, 3)}
    rows = make_repositories(tmp_path, counts, size=(304, 336), seed=6)
    kinds = np.array([row.generator for row in rows])
    found = [detector.detect(tmp_path / row.path) for row in rows]
    for name in ("grid", "ring"):
        scores = np.array([next(s for s in d.scores if s.generator == name).similarity
                           for d in found])  # fmt: skip
        pair = np.isin(kinds, (REAL, name))
        assert metrics.auroc(scores[pair], kinds[pair] == name) > 0.95, name
    rates = np.array([d.verdict.false_positive_rate for d in found], float)
    assert np.median(rates[kinds != REAL]) < 0.05
    assert (rates[kinds == REAL] <= 0.05).mean() < 0.25  # 1.2 of 24 are expected


def test_each_band_has_statistics_and_heads_of_its_own(banded: Any) -> None:
    tensors = banded.file.branches[0].tensors
    assert tensors["masks"].shape[:2] == (len(BANDS), 2)
    assert tensors["basis"].shape == (8, *tensors["masks"].shape[2:])
    basis = tensors["basis"].reshape(8, -1).astype(np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=5e-3)  # half precision
    for name in ("mean", "deviation", "masks", "references"):
        different = {tensors[name][b].tobytes() for b in range(len(BANDS))}
        assert len(different) == len(BANDS), name


def test_the_file_says_what_it_was_made_of(banded: Any, table: FeatureTable) -> None:
    file = DetectorFile.load(banded.folder)
    assert file.config["recipe"] == "bands"
    assert file.generators == ("grid", "ring")
    facts = file.provenance
    assert facts["images"] == {REAL: 72, "grid": 24, "ring": 24, "few": 2, "joint-only": 12}
    assert facts["sources"] == {REAL: 12, "grid": 6, "ring": 6, "few": 1, "joint-only": 4}
    assert facts["views"] == len(table.images) == 4 * (72 + 24 + 24 + 2 + 12)
    arrays = file.calibration
    assert arrays is not None
    assert arrays["real_similarities"].shape == (4 * 72, 2)
    assert np.bincount(arrays["own_generators"]).tolist() == [96, 96]
    # Kinds of images: grid, ring, and the others together, too few in each band.
    assert arrays["joint_weights"].shape == (len(BANDS), 3, 2)
    assert np.isfinite(arrays["own_traits"][:, [BAND, TRAITS.index("distance")]]).all()
    assert file.photos is not None
    photos, images = unpack(file.photos())
    assert images is not None
    assert 100 < len(photos.rows) <= 150
    assert len(np.unique(photos.sources)) == 12
    # What is kept are the very views that the calibration's rows are of.
    heads = heads_by_band(file.branches[0].tensors, 6.0)
    real = np.flatnonzero(table.generators == REAL)
    band = bands_of(table.traits, len(BANDS))
    for k in (0, 50, len(photos.rows) - 1):
        at = real[photos.rows[k]]
        expected = heads[band[at]].compared(table.features[at].astype(np.float32))
        np.testing.assert_allclose(photos.features[k], expected, atol=0.51 * photos.step)
    assert np.bincount(arrays["own_generators"][images.rows]).tolist() == [12, 12]


def test_images_are_ranked_among_files_as_found(
    banded: Any, table: FeatureTable, tmp_path: Path
) -> None:
    config = replace(banded.config, ranked="first", ranked_least=0)
    file = file_of(table, banded.fit, config).save(tmp_path / "first")
    found = DetectorFile.load(tmp_path / "first")
    calibration = read_calibrations(found)[BUILT_IN]
    real = table.generators == REAL
    first = real & np.r_[True, np.diff(table.images) > 0]
    assert first.sum() == 72
    np.testing.assert_array_equal(calibration.real_scores, banded.fit.similarities[first])
    np.testing.assert_array_equal(calibration.traits, banded.fit.traits[first])
    assert len(np.unique(calibration.sources)) == 12
    assert not calibration.copies.any()
    # A copy that is smaller than all files as found is no size unheard of.
    every = read_calibrations(banded.file)[BUILT_IN]
    for trait in ("side", "sharpness"):
        assert calibration.limits(trait) == every.limits(trait)
    assert calibration.limits("side")[0] < calibration.traits[:, TRAITS.index("side")].min()
    # What generators are enrolled with is as it was, and has both kinds.
    arrays = found.calibration
    assert arrays is not None
    np.testing.assert_array_equal(arrays["real_similarities"], banded.fit.similarities[real])
    photos, _ = unpack(found.photos())  # type: ignore[misc]
    share = arrays[RANKED_ARRAY][photos.rows].mean()
    assert 0.2 < share <= 0.5  # a band may have few
    assert len(np.unique(photos.rows)) == len(photos.rows) > 100
    facts = describe(Detector(file, threads=1))
    assert facts["calibration"]["photos"] == facts["calibration"]["sample_size"] == 72
    assert found.provenance["calibration"]["views"] == 72
    whole = Detector(banded.file, threads=1)
    assert (whole.photos, whole.sample_size) == (72, 4 * 72)


def test_kinds_that_are_not_asked_about_and_bands_with_few_files(
    banded: Any, table: FeatureTable
) -> None:
    """Which of the views count: `first` alone, all of a band with few of these, no drones."""
    config = replace(banded.config, ranked="first", ranked_least=0, unranked=("drone",))
    kinds = ["drone" if k % 3 == 0 else "web" for k in range(len(table.rows))]
    rows = tuple(
        replace(row, extra={**row.extra, "kind": kind})
        for row, kind in zip(table.rows, kinds, strict=True)
    )
    flown = np.array(kinds)[table.images] == "drone"
    real, first = table.generators == REAL, table.first
    told = replace(table, rows=rows)
    np.testing.assert_array_equal(ranked_among(told, config), real & first & ~flown)
    band = bands_of(table.traits, len(BANDS))
    as_found = np.bincount(band[real & first & ~flown], minlength=len(BANDS))
    least = int(as_found.max())  # only the band with the most has so many
    few = np.isin(band, np.flatnonzero(as_found < least))
    config = replace(config, ranked_least=least)
    among = real & ~flown & (first | few)
    assert (real & first & ~flown).sum() < among.sum() < (real & ~flown).sum()
    np.testing.assert_array_equal(ranked_among(told, config), among)
    file = file_of(told, banded.fit, config)
    arrays = file.calibration
    assert arrays is not None
    np.testing.assert_array_equal(
        arrays[RANKED_ARRAY], np.select([first & ~flown, among], [AS_FOUND, COPY], 0)[real]
    )
    mine = np.isin(table.generators, file.generators)  # drones among generated images count
    np.testing.assert_array_equal(
        arrays[OWN_RANKED_ARRAY], np.select([first, few], [AS_FOUND, COPY], 0)[mine]
    )
    facts = file.provenance["calibration"]
    assert (facts["photos"], facts["views"]) == (48, int(among.sum()))
    # Likelihood ratios compare files as found of both classes.
    calibration = read_calibrations(file)[BUILT_IN]
    own = OwnImages.read(file)
    assert own is not None
    made = calibration.all_rates(own.similarities[first[mine]], own.traits[first[mine]])[1]  # type: ignore[index]
    photos = calibration.left_out()[~calibration.copies]
    found = likelihood_ratios(own, calibration)
    assert set(found.rates.tolist()) == {*made.tolist(), *photos.tolist()}
    arrays = {**arrays, OWN_RANKED_ARRAY: np.full(mine.sum(), 3, np.uint8)}
    with pytest.raises(ModelError, match="own_ranked has values"):
        OwnImages.read(replace(file, calibration=arrays))


@pytest.mark.parametrize("ranked", [np.ones(5), np.zeros(4 * 72)])
def test_which_photos_count_must_be_said_of_each(banded: Any, ranked: NDArray[Any]) -> None:
    arrays = {**banded.file.calibration, RANKED_ARRAY: ranked.astype(np.uint8)}
    with pytest.raises(ModelError, match=r"real_ranked of shape|ranks among no photo"):
        read_calibrations(replace(banded.file, calibration=arrays))


def test_progress_counts_to_the_end(banded: Any) -> None:
    stages = [stage for stage, _, _ in banded.progress]
    assert list(dict.fromkeys(stages)) == ["features of views", "basis", "band"]
    for stage in ("features of views", "band"):
        steps = [(done, count) for name, done, count in banded.progress if name == stage]
        assert steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_neither_the_order_of_rows_nor_a_kill_changes_the_file(banded: Any, tmp_path: Path) -> None:
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(banded.cache, cache)
    pieces = sorted(cache.rglob("*.npz"))
    # Killed between two pieces, with one half written.
    pieces[3].rename(pieces[3].with_name("tmp123.part"))
    pieces[7].unlink()
    steps: list[tuple[str, int, int]] = []
    turned = Manifest(banded.manifest.rows[::-1], banded.manifest.root)
    file, _ = train_bands(
        turned, tmp_path / "again", banded.config, cache=cache,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert steps[0] == ("features of views", len(pieces) - 2, len(pieces))
    assert file.sha256 == banded.sha256 == banded.file.sha256
    with pytest.raises(UsageError, match="--overwrite"):
        train_bands(turned, tmp_path / "again", banded.config, cache=cache)


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "x"}, "unknown keys in the configuration of the training.*nam"),
        ({"views": {"window": 1, "odd": 2}}, "unknown keys.*views.*odd"),
        ({"views": {"ways": {"odd": 2}}}, "unknown keys.*ways.*odd"),
        ({"views": {"ways": {"ends": {"gif": 1.0}}}}, "shares must be of"),
        ({"features": {"odd": 2}}, "unknown keys.*features.*odd"),
        ({"heads": {"odd": 2}}, "unknown keys.*heads.*odd"),
        ({"views": 3}, "views must be a table"),
        ({"per_source": 3}, "per_source must be a table"),
        ({"folds": 1}, "two folds"),
        ({"photos": -1}, "negative"),
        ({"ranked": "odd"}, r"one of \['all', 'first'\]"),
        ({"photo_step": 3.0}, "photo_step"),
        ({"borrowed": 1.5}, "out of range"),
        ({"lossless": 0.0}, "out of range"),
        ({"joint_strength": 0.0}, "out of range"),
        ({"strata": [["band"]]}, "strata must be a list of 2"),
        ({"strata": [["odd", 3]]}, "unknown trait"),
        ({"heads": {"ridge": "x"}}, "ridge must be a number"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BandsConfig.from_dict(values)


def test_defaults_are_those_of_the_class() -> None:
    assert BandsConfig.from_dict({}) == BandsConfig()
    assert BandsConfig().features.parts == 3
    assert BandsConfig.from_dict({"views": {"region": 700}}).views.views == {"*": 5}
    assert BandsConfig.from_dict({"heads": {"pooled": 0.4}}).heads.ridge == 5.0


def test_the_committed_configuration_is_that_of_the_detector_in_the_package() -> None:
    path = Path(__file__).parents[2] / "configs" / "bundled.toml"
    if not path.exists():
        pytest.skip("not a checkout")
    values = read_toml(path)
    assert values.pop("recipe") == "bands"
    config = BandsConfig.from_dict(values)
    assert config.per_source[REAL] < config.per_source["*"]
    assert config.views.ways.first_qualities == config.views.first_qualities
    assert not config.features.coherence
    file = DetectorFile.load(bundled_path())
    bank, learned = file.branches
    assert file.config["name"] == config.name
    assert bank.spectrum.get("kinds", list(BANK)) == list(config.features.kinds)
    for key in ("parts", "coherence", "segment", "floor", "cell"):
        assert bank.spectrum[key] == getattr(config.features, key)
    assert config.learned is not None
    assert learned.spectrum["hop"] == config.learned.inference_hop
    assert file.provenance["calibration"]["for_enrolling"] == config.photos


# --- the fit, on made-up features ----------------------------------------------------------------

SHAPE = (2, 4, 3)


def made_up(
    rng: np.random.Generator,
    repositories: dict[str, int],
    *,
    views: int = 6,
    signal: float = 1.2,
    bands: int = len(BANDS),
) -> FeatureTable:
    """Views of normal features whose repositories differ, with a direction for each generator."""
    directions = np.random.default_rng(99).normal(size=(len(repositories), *SHAPE))
    directions -= directions.mean(axis=(-2, -1), keepdims=True)
    features, traits, kinds, sources, images = [], [], [], [], []
    rows: list[Row] = []
    for g, (name, count) in enumerate(repositories.items()):
        for k in range(count):
            offset = 0.3 * rng.normal(size=SHAPE)
            for _ in range(views):
                band = int(rng.integers(bands))
                # What a band does to the spectrum: a level, a scale and a tilt of its own.
                found = rng.normal(size=SHAPE) + offset
                if name != REAL:
                    found = found + signal * directions[g]
                features.append(found * (1 + 0.3 * band) + band + band * np.linspace(0, 1, 3))
                row = np.full(len(TRAITS), np.nan)
                row[BAND], row[TRAITS.index("side")] = band, 500
                traits.append(row)
                kinds.append(name)
                sources.append(f"{name} {k}")
                images.append(len(rows))
                rows.append(Row(f"{len(rows):05d}", name, sources[-1], "train"))
    n = len(features)
    return FeatureTable(
        np.array(features, np.float16), np.array(traits, np.float32), np.array(kinds),
        np.array(sources), np.full(n, "jpeg"), np.full(n, ""), np.array(images), tuple(rows), {},
    )  # fmt: skip


SMALL = replace(
    BandsConfig(), folds=3, smallest_class=10, smallest_sources=3, components=3,
    heads=HeadConfig(ridge=0.5, limit=20.0),
)  # fmt: skip


def scored(fit: Any, table: FeatureTable) -> NDArray[np.float64]:
    heads = heads_by_band(fit.tensors, SMALL.heads.limit)
    band = bands_of(table.traits, len(BANDS))
    return np.array(
        [
            heads[b].similarities(f.astype(np.float32))
            for b, f in zip(band, table.features, strict=True)
        ],
        np.float64,
    )


def test_rates_of_new_photos_are_valid() -> None:
    """Photos of repositories never seen, ranked among left-out scores: P(rate <= q) is about q."""
    rates, names = [], {REAL: 50, "a": 6, "b": 6}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        table = made_up(rng, names)
        fit = fit_bands(table, SMALL)
        assert fit.generators == ("a", "b")
        real = table.generators == REAL
        calibration = Calibration(
            fit.similarities[real], fit.traits[real], table.sources[real], learned=fit.joint
        )
        new = made_up(rng, {REAL: 60})
        rates.append(calibration.all_rates(scored(fit, new), new.traits.astype(float))[1])
        planted = made_up(rng, {REAL: 1, "a": 5, "b": 5})
        found = calibration.all_rates(scored(fit, planted), planted.traits.astype(float))[1]
        assert np.median(found[planted.generators != REAL]) < 0.1  # a faint pattern
    every = np.concatenate(rates)
    for level in (0.05, 0.1, 0.25, 0.5):
        share = float((every <= level).mean())
        assert level - 0.06 < share < level + 0.04, (level, share)


def test_left_out_scores_never_saw_the_repository() -> None:
    """Without any signal heads fit what they see; left-out scores show nothing of it."""
    rng = np.random.default_rng(3)
    table = made_up(rng, {REAL: 20, "a": 6}, signal=0.0)
    fit = fit_bands(table, SMALL)
    own = table.generators == "a"
    seen = metrics.auroc(scored(fit, table)[:, 0], own)
    held = metrics.auroc(fit.similarities[:, 0], own)
    assert seen > 0.8
    assert held < 0.7


def test_the_order_of_the_views_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    table = made_up(rng, {REAL: 20, "a": 6, "b": 6})
    order = rng.permutation(len(table.images))
    turned = table.take(order)
    one, two = fit_bands(table, SMALL), fit_bands(turned, SMALL)
    np.testing.assert_allclose(two.similarities, one.similarities[order], atol=5e-3)
    np.testing.assert_allclose(two.joint.weights, one.joint.weights, rtol=0.05, atol=0.05)


def test_a_band_without_images_of_a_class_borrows_them() -> None:
    rng = np.random.default_rng(5)
    table = made_up(rng, {REAL: 20, "a": 8})
    band = bands_of(table.traits, len(BANDS))
    kept = (table.generators == REAL) | (band != 3)
    kept &= (table.generators == "a") | (band != 4)  # one band without photos, too
    few = table.take(kept)
    fit = fit_bands(few, SMALL)
    heads = heads_by_band(fit.tensors, SMALL.heads.limit)
    assert all(np.isfinite(np.asarray(head.masks)).all() for head in heads)
    lacking = bands_of(table.traits, len(BANDS)) == 3
    found = scored(fit, table)[lacking, 0]
    assert metrics.auroc(found, table.generators[lacking] == "a") > 0.9
    assert np.isfinite(fit.joint.weights).all()


def test_the_basis_is_that_of_the_covariance_within_the_classes() -> None:
    rng = np.random.default_rng(6)
    table = made_up(rng, {REAL: 30, "a": 8, "b": 8})
    classes = np.array([{REAL: 0, "a": 1, "b": 2}[g] for g in table.generators.tolist()])
    space = Space(table, ("a", "b"), SMALL)
    np.testing.assert_array_equal(space.classes, classes)
    at = np.arange(len(classes))
    basis = find_basis(space, np.ones(len(at), bool))
    z = space.standardised(at).astype(np.float64)
    covariance = np.zeros((z.shape[1], z.shape[1]))
    for c, share in ((0, 0.7), (1, 0.15), (2, 0.15)):
        own = z[classes == c]
        w = space.weights[classes == c] / space.weights[classes == c].sum()
        centred = own - w @ own
        covariance += share * (centred * w[:, None]).T @ centred
    values, vectors = np.linalg.eigh(covariance)
    floor = 0.5 * np.trace(covariance) / len(values)
    for k in range(3):
        found = basis.vectors[k].astype(np.float64)
        assert abs(found @ vectors[:, -1 - k]) == pytest.approx(1, abs=1e-3)
        shrunk = (1 - float(basis.shrink[k])) ** 2 * (values[-1 - k] + floor)
        assert shrunk == pytest.approx(floor, rel=1e-3)
    # Inner products of whitened views without whitening them.
    flat = space.standardised(at)
    white = basis.whitened(flat)
    np.testing.assert_allclose(
        basis.whitened_gram(flat @ flat.T, basis.parts(flat)), white @ white.T, atol=2e-3
    )
    np.testing.assert_allclose(
        white, whiten(flat.reshape(-1, *SHAPE), basis.vectors.reshape(-1, *SHAPE), basis.shrink)
        .reshape(len(flat), -1), atol=1e-4,
    )  # fmt: skip


def test_no_repository_has_a_part_in_how_its_fold_is_scored() -> None:
    """Neither in the heads nor in the basis: it may change as it will."""
    table = made_up(np.random.default_rng(9), {REAL: 20, "a": 9, "b": 9})
    before = fit_bands(table, SMALL)
    mine = table.sources == "a 3"
    fold = before.folds[mine][0]
    features = table.features.copy()
    features[mine] = 30 * np.random.default_rng(10).normal(size=features[mine].shape)
    after = fit_bands(replace(table, features=features), SMALL)
    others = (before.folds == fold) & ~mine
    assert others.sum() > 50
    np.testing.assert_allclose(after.similarities[others], before.similarities[others], atol=1e-4)
    elsewhere = before.folds != fold
    assert np.abs(after.similarities - before.similarities)[elsewhere].max() > 0.01


def test_cosines_are_the_similarities_of_the_heads() -> None:
    rng = np.random.default_rng(7)
    table = made_up(rng, {REAL: 20, "a": 8})
    fit = fit_bands(table, SMALL)
    heads = heads_by_band(fit.tensors, SMALL.heads.limit)
    band = bands_of(table.traits, len(BANDS))
    for b in (0, 4):
        own = band == b
        z = np.asarray(heads[b].compared(table.features[own].astype(np.float32)))
        found = cosines(
            z.reshape(len(z), -1), fit.tensors["masks"][b, 0], fit.tensors["references"][b, 0]
        )
        expected = np.asarray(heads[b].similarities(table.features[own].astype(np.float32)))
        np.testing.assert_allclose(found, expected[:, 0], atol=1e-5)


def test_generators_need_images_and_repositories() -> None:
    rng = np.random.default_rng(8)
    table = made_up(rng, {REAL: 4, "a": 4, "b": 2, "c": 4})
    config = replace(SMALL, joint_only=("c",))
    assert generators_with_heads(table, config) == ("a",)
    assert generators_with_heads(table, replace(config, smallest_sources=2)) == ("a", "b")
    for wanted, message in (
        (replace(SMALL, smallest_class=1000), "no generator has 1000 images"),
        (replace(SMALL, joint_only=("a", "c")), "no generator"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            generators_with_heads(table, wanted)
        assert caught.value.code == "manifest_invalid"
    with pytest.raises(DataError, match="two sources"):
        fit_bands(made_up(rng, {REAL: 1, "a": 4}), SMALL)


# --- one number for some generator ---------------------------------------------------------------


def joint_data(rng: np.random.Generator, n: int = 200) -> tuple[Any, Any, Any]:
    kinds = np.array([REAL] * n + ["a"] * n + ["b"] * n)
    scores = rng.normal(size=(3 * n, 2)) * [0.01, 0.05]
    scores[n : 2 * n, 0] += 0.04
    scores[2 * n :, 1] += 0.2
    return scores, kinds, rng.integers(2, size=3 * n)


def test_the_joint_number_counts_deviations_of_photos() -> None:
    scores, kinds, band = joint_data(np.random.default_rng(0))
    joint = fit_joint(scores, kinds, band, 2, 0.1)
    assert joint.weights.shape == (2, 2, 2)  # bands, generators, their similarities
    for weights in joint.weights:
        assert weights[0, 0] * 0.01 > abs(weights[0, 1]) * 0.05
        assert weights[1, 1] * 0.05 > abs(weights[1, 0]) * 0.01
    traits = np.full((len(scores), len(TRAITS)), np.nan)
    traits[:, BAND] = band
    assert metrics.auroc(joint(scores, traits), kinds != REAL) > 0.97
    # In another unit of a head's scores the number is the same.
    other = fit_joint(scores * [10, 1], kinds, band, 2, 0.1)
    np.testing.assert_allclose(
        other(scores * [10, 1], traits), joint(scores, traits), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("generators", [1, 2, 3])
def test_the_joint_number_is_the_log_odds_of_all_generators(generators: int) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(generators)
    of = np.repeat(np.arange(1 + generators), 100)
    kinds = np.array([REAL, "a", "b", "c"])[of]
    scores = rng.normal(size=(len(of), 3)) + 1.5 * (np.arange(1, 4) == of[:, None])
    joint = fit_joint(scores, kinds, np.zeros(len(of), int), 1, 0.3)
    assert joint.weights.shape == (1, generators, 3)
    scaled = scores / scores[of == 0].std(axis=0)
    weights = np.where(of == 0, 1.0, 1 / generators) * len(of) / 200
    fit = LogisticRegression(C=0.3).fit(scaled, of > 0 if generators == 1 else of, weights)
    photo = fit.predict_proba(scaled)[:, 0]
    unknown = np.full((len(of), len(TRAITS)), np.nan)
    np.testing.assert_allclose(
        joint(scores, unknown), np.log((1 - photo) / photo), rtol=2e-3, atol=2e-3
    )


def test_kinds_of_images_that_a_band_lacks_count_for_nothing_there() -> None:
    scores, kinds, _ = joint_data(np.random.default_rng(3))
    kinds[-5:] = "c"  # too few for a kind of its own: with all such
    band = np.where(kinds == "a", 0, np.arange(len(kinds)) % 2)
    joint = fit_joint(scores, kinds, band, 2, 0.1)
    assert joint.offsets.shape == (2, 3)  # a, b, c with all that are few
    lacking = joint.offsets[1] < -500
    assert lacking.tolist() == [True, False, False]
    alone = fit_joint(scores[band == 1], kinds[band == 1], np.zeros((band == 1).sum(), int), 1, 0.1)
    shown = np.full((len(scores), len(TRAITS)), np.nan)
    shown[:, BAND] = 1
    np.testing.assert_allclose(joint(scores, shown), alone(scores, shown), rtol=1e-6)


def test_each_generator_counts_the_same_however_many_images_it_has() -> None:
    scores, kinds, _ = joint_data(np.random.default_rng(1))
    more = np.concatenate([np.arange(len(kinds)), *[np.flatnonzero(kinds == "a")] * 4])
    one = fit_joint(scores, kinds, np.zeros(len(kinds), int), 1, 1e4)
    two = fit_joint(scores[more], kinds[more], np.zeros(len(more), int), 1, 1e4)
    np.testing.assert_allclose(two.weights, one.weights, rtol=2e-3)


def test_a_band_of_one_class_takes_all_images() -> None:
    scores, kinds, band = joint_data(np.random.default_rng(2))
    band = np.where(kinds == REAL, 0, 1)
    joint = fit_joint(scores, kinds, band, 3, 0.1)
    whole = fit_joint(scores, kinds, np.zeros(len(band), int), 1, 0.1)
    for b in range(3):
        np.testing.assert_allclose(joint.weights[b], whole.weights[0])
    assert isinstance(joint, Joint)


def test_values_of_the_fixture_are_a_configuration() -> None:
    assert BandsConfig.from_dict(BANDED).division.photos == 40
    with pytest.raises(MasksimError):
        BandsConfig.from_dict({**BANDED, "folds": 0})

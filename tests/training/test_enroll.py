"""`masksim.training.enroll`: a planted generator that training never saw, and what must not
change."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import make_natural, make_repositories, plant
from masksim.checkpoint import OWN_RANKED_ARRAY, RANKED_ARRAY, DetectorFile
from masksim.cli.main import app
from masksim.data.manifest import REAL
from masksim.detector import Detector
from masksim.errors import DataError, ModelError, UsageError
from masksim.image import load_image
from masksim.metrics import auroc
from masksim.model import heads_by_band
from masksim.populations import BUILT_IN, read_calibrations
from masksim.training.enroll import EnrollConfig, Enrollment, enroll
from masksim.training.grow import forget
from masksim.training.stored_features import ReferencePhotos, pack, unpack
from masksim.traits import BANDS, TRAITS
from masksim.usual import USUAL_ARRAYS

pytest.importorskip("sklearn")
pytest.importorskip("onnx")

CONFIG = EnrollConfig(views=1, smallest=12, smallest_photos=40, samples=30)


def stripes(seed: int, size: tuple[int, int] = (528, 544)) -> Any:
    """A third fingerprint, unlike the two of the training: columns of period 16 / 5."""
    pixels = make_natural(*size, seed=seed)
    x = np.arange(size[1])
    added = 7 * np.cos(2 * np.pi * 5 / 16 * x)[None, :, None]
    return np.clip(np.rint(pixels + added), 0, 255).astype(np.uint8)


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Half JPEG, half PNG, each half from two sources."""
    for i in range(count):
        path = folder / f"source{i % 4}" / f"{i:03d}{'.jpg' if i % 2 else '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"quality": 95} if i % 2 else {"compress_level": 1}
        Image.fromarray(stripes(seed + i)).save(path, **options)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("stripes"), 16, 900_000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("enrolled")


@pytest.fixture(scope="module")
def before(trained: Any) -> DetectorFile:
    return DetectorFile.load(trained.folder)


@pytest.fixture(scope="module")
def enrolled(before: DetectorFile, folder: Path, cache: Path) -> tuple[DetectorFile, Enrollment]:
    made, outcome = enroll(before, "stripes", [folder], cache=cache, config=CONFIG)
    return made.save(cache / "detector"), outcome


@pytest.fixture(scope="module")
def detector(enrolled: Any, cache: Path) -> Detector:
    return Detector(DetectorFile.load(cache / "detector"), threads=1)


@pytest.fixture(scope="module")
def unseen(trained: Any) -> list[tuple[str, Any]]:
    """Images of the validation split, and stripes that enrolling has not seen."""
    rows = trained.manifest.select("val").rows
    known = [(row.generator, load_image(trained.manifest.file(row)).pixels) for row in rows]
    return known + [("stripes", stripes(950_000 + i)) for i in range(8)]


@pytest.mark.slow
def test_the_new_generator_is_found_on_unseen_images(detector: Detector, unseen: Any) -> None:
    assert detector.generators == ("grid", "ring", "stripes")
    names = np.array([name for name, _ in unseen])
    scores = np.array([detector.similarities(pixels) for _, pixels in unseen])
    pair = (names == "stripes") | (names == REAL)
    assert auroc(scores[pair, 2], names[pair] == "stripes") > 0.99
    # It is told from the generators that were there, and they from it.
    for g, name in enumerate(detector.generators):
        assert (scores[names == name].argmax(axis=1) == g).all(), name


def test_earlier_scores_are_bit_equal(
    before: DetectorFile, detector: Detector, unseen: Any
) -> None:
    old = Detector(before, threads=1)
    for _, pixels in unseen[::5]:
        np.testing.assert_array_equal(detector.similarities(pixels)[:2], old.similarities(pixels))
        ours = {s.generator: s for s in detector.detect(pixels).scores}
        for score in old.detect(pixels).scores:
            # All but which of the generators it is, of which there is one more.
            mine = ours[score.generator]
            assert (mine.similarity, mine.probability, mine.false_positive_rate) == (
                score.similarity,
                score.probability,
                score.false_positive_rate,
            )
            assert mine.sample_size == score.sample_size
    shown, known = (d.similarity_maps(unseen[0][1]) for d in (detector, old))
    for name in known:
        for ours_, theirs in zip(shown[name].planes, known[name].planes, strict=True):
            np.testing.assert_array_equal(ours_.values, theirs.values)


def test_forgetting_undoes_enrolling(
    before: DetectorFile, enrolled: Any, folder: Path, cache: Path, tmp_path: Path
) -> None:
    made, _ = enrolled
    without = forget(made, "stripes")
    assert without.generators == before.generators
    for key, values in before.branches[0].tensors.items():
        np.testing.assert_array_equal(without.branches[0].tensors[key], values)
    for key, values in before.calibration.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(without.calibration[key], values)  # type: ignore[index]
    other = Detector(forget(made, "grid").save(tmp_path / "two"), threads=1, stability=False)
    assert other.generators == ("ring", "stripes")
    found = other.detect(stripes(970_000))
    assert found.verdict.generator == "stripes"
    assert found.scores[0].posterior is not None
    # And it can be enrolled again: the rows of what is kept fit.
    again, _ = enroll(forget(before, "ring"), "stripes", [folder], cache=cache, config=CONFIG)
    own, of = (again.calibration[f"own_{k}"] for k in ("similarities", "generators"))  # type: ignore[index]
    assert np.isfinite(own).all()
    assert auroc(own[:, 1], of == 1) > 0.85
    with pytest.raises(UsageError, match="cannot take 'none'"):
        forget(made, "none")


def test_a_second_generator_is_told_from_the_first(
    enrolled: Any, folder: Path, cache: Path, trained: Any
) -> None:
    made, _ = enrolled
    kept = unpack(made.photos())[1]
    assert kept is not None
    # All of the first one's images are kept, under their rows of the calibration.
    assert (made.calibration["own_generators"][kept.rows] == 2).sum() == 16
    twice, outcome = enroll(made, "twin", [folder], cache=cache, config=CONFIG)
    assert twice.generators == ("grid", "ring", "stripes", "twin")
    assert np.isfinite(twice.calibration["own_similarities"]).all()  # type: ignore[index]
    attribution = Detector(twice, threads=1).attribution
    assert attribution is not None
    assert np.isfinite(attribution.means).all()
    # It is made of the same images, and that is said.
    assert outcome.known["stripes"] == 1
    assert any("stripes 100 %" in warning for warning in outcome.warnings)
    undone = forget(twice, "stripes")
    assert undone.photos is not None
    kept = unpack(undone.photos())[1]
    assert kept is not None
    of = undone.calibration["own_generators"]  # type: ignore[index]
    assert np.bincount(of[kept.rows], minlength=3)[2] == 16
    assert kept.rows.max() < len(of)


def test_the_outcome_says_what_it_rests_on(enrolled: Any, before: DetectorFile) -> None:
    made, outcome = enrolled
    assert (outcome.images, outcome.sources, outcome.photos) == (16, 4, 60)
    assert outcome.auroc.low <= outcome.auroc.value <= outcome.auroc.high
    assert outcome.auroc.value > 0.97
    assert set(outcome.known) == {"grid", "ring"}
    # Four sources, each left out in turn: the pattern is found in the others.
    assert outcome.auroc_new_sources is not None
    assert outcome.auroc_new_sources.value > 0.9
    assert any("Only 16 images" in warning for warning in outcome.warnings)
    assert any("4 sources only" in warning for warning in outcome.warnings)
    facts = made.provenance["enrolled"][0]
    assert facts["detector"] == before.sha256
    assert facts["generator"] == "stripes"
    json.dumps(outcome.to_dict(), allow_nan=False)
    assert made.provenance["sources"]["stripes"] == 4
    assert "enrolled" not in before.provenance


def test_calibration_scores_come_from_folds(enrolled: Any, before: DetectorFile) -> None:
    made, _ = enrolled
    real = made.calibration["real_similarities"]
    assert real.shape == (60, 3)
    np.testing.assert_array_equal(real[:, :2], before.calibration["real_similarities"])  # type: ignore[index]
    assert np.isfinite(real[:, 2]).all()
    assert np.unique(real[:, 2]).size == 60
    of = made.calibration["own_generators"]
    assert np.bincount(of).tolist() == [*np.bincount(before.calibration["own_generators"]), 16]  # type: ignore[index]
    own = made.calibration["own_similarities"]
    assert own.shape == (len(of), 3)
    assert np.isfinite(own).all()  # the known generators' images are scored by the new head, too
    assert own[of == 2, 2].mean() > real[:, 2].mean() + 3 * real[:, 2].std()
    assert auroc(own[:, 2], of == 2) > 0.95
    np.testing.assert_array_equal(own[of != 2, :2], before.calibration["own_similarities"])  # type: ignore[index]


def test_rates_of_a_column_with_gaps(
    before: DetectorFile, folder: Path, cache: Path, trained: Any
) -> None:
    """Fewer photos with the detector: the old rates rest on all, the new on those."""
    arrays = before.photos()  # type: ignore[misc]
    kit, images = unpack(arrays)
    keep = np.arange(0, 60, 2)
    fewer = ReferencePhotos(
        kit.features[keep], kit.step, kit.rows[keep], kit.sources[keep], kit.histories[keep]
    )
    made, outcome = enroll(
        replace(before, photos=lambda: pack(fewer, images)),
        "stripes",
        [folder],
        cache=cache,
        config=replace(CONFIG, smallest_photos=20),
    )
    assert outcome.photos == 30
    detector = Detector(made, threads=1)
    assert detector.sample_size == 30
    found = detector.detect(stripes(960_000))
    assert {s.generator: s.sample_size for s in found.scores} == {
        "grid": 60, "ring": 60, "stripes": 30,
    }  # fmt: skip
    assert found.verdict.sample_size == 30
    assert found.scores[0].generator == "stripes"
    assert found.scores[0].false_positive_rate == pytest.approx(1 / 31)


def test_own_photos_join_the_fit_and_the_new_rates(
    before: DetectorFile, folder: Path, cache: Path, trained: Any
) -> None:
    own = cache / "own"
    for row in trained.manifest.select("val").rows:
        if row.generator == REAL:
            target = own / row.source / Path(row.path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(trained.manifest.file(row), target)
    made, outcome = enroll(before, "stripes", [folder], real=[own], cache=cache, config=CONFIG)
    assert outcome.photos == 84
    table = made.calibration["real_similarities"]  # type: ignore[index]
    assert table.shape == (84, 3)
    assert np.isnan(table[60:, :2]).all()
    assert np.isfinite(table[:, 2]).all()
    # Without photos of its own the detector needs ours, and then all generators are scored on them.
    alone, _ = enroll(
        replace(before, photos=None, calibration=None), "stripes", [folder], real=[own],
        cache=cache, config=replace(CONFIG, smallest_photos=20),
    )  # fmt: skip
    table = alone.calibration["real_similarities"]  # type: ignore[index]
    assert table.shape == (24, 3)
    assert np.isfinite(table).all()
    assert Detector(alone, threads=1).detect(stripes(960_001)).verdict.level != "uncalibrated"


def test_an_image_between_two_generators_is_not_named(trained: Any) -> None:
    detector = Detector(DetectorFile.load(trained.folder), threads=1, stability=False)
    assert detector.attribution is not None
    natural = make_natural(560, 560, seed=77)
    for name in ("grid", "ring"):
        found = detector.detect(plant(natural, name, 77))
        assert found.verdict.generator == name
        assert not found.verdict.unknown_generator
        assert found.verdict.clarity > 0.2  # type: ignore[operator]
        assert found.scores[0].posterior > 0.9  # type: ignore[operator]
    # Generators whose images are all told without doubt: then a doubtful one is of neither.
    sure = replace(detector.attribution, own_clearest=np.ones(40), own_weights=np.full(40, 1 / 40))
    level = detector.detect(plant(natural, "grid", 77)).verdict.level
    detector.attribution = replace(sure, precisions=sure.precisions * 1e-3)
    found = detector.detect(plant(natural, "grid", 77))
    assert found.verdict.unknown_generator
    assert found.verdict.generator is None
    assert found.verdict.level == level
    assert "not clearly of one" in found.verdict.text
    assert "grid" in " ".join(found.verdict.cautions)
    assert found.verdict.clarity == pytest.approx(1 / 41)


def test_what_cannot_be_enrolled(
    before: DetectorFile, folder: Path, cache: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "source0", copy)
    with pytest.raises(UsageError, match="'grid' already"):
        enroll(before, "grid", [folder], cache=cache, config=CONFIG)
    for name in ("real", "source", "No evidence"):
        with pytest.raises(ModelError, match="cannot be named"):
            enroll(before, name, [folder], cache=tmp_path, config=CONFIG)
    with pytest.raises(ModelError, match="invalid name"):
        enroll(before, "a/b", [folder], cache=tmp_path, config=CONFIG)
    with pytest.raises(DataError, match="the same image") as same:
        enroll(before, "new", [folder], real=[copy], cache=tmp_path / "none", config=CONFIG)
    assert same.value.code == "manifest_invalid"
    with pytest.raises(UsageError, match="does not carry"):
        enroll(replace(before, photos=None), "new", [folder], cache=tmp_path, config=CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]  # all this before any work
    with pytest.raises(DataError, match="no folder") as caught:
        enroll(before, "new", [tmp_path / "missing"], cache=cache, config=CONFIG)
    assert caught.value.code == "not_found"
    with pytest.raises(DataError, match="16 different images") as caught:
        enroll(before, "new", [folder], cache=cache, config=replace(CONFIG, smallest=17))
    assert caught.value.code == "too_few_images"
    with pytest.raises(DataError, match="at least 100") as caught:
        enroll(before, "new", [folder], cache=cache, config=replace(CONFIG, smallest_photos=100))
    bare = replace(before, photos=None, calibration=None)
    with pytest.raises(DataError, match="0 real photos"):
        enroll(bare, "new", [folder], cache=cache, config=CONFIG)
    with pytest.raises(UsageError, match="folds"):
        EnrollConfig(folds=1)


def test_duplicates_and_broken_files_are_left_out(
    before: DetectorFile, folder: Path, cache: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "images"
    shutil.copytree(folder, copy)
    first = sorted(copy.rglob("*.png"))[0]
    shutil.copy(first, first.with_name("again.png"))
    data = sorted(copy.rglob("*.jpg"))[0].read_bytes()
    (copy / "source0" / "cut.jpg").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (100, 100)).save(copy / "source0" / "small.png")
    _, outcome = enroll(before, "stripes", [copy], cache=cache, config=CONFIG)
    assert outcome.images == 16
    assert outcome.skipped == {"duplicate": 1, "truncated": 1, "too_small": 1}


def test_the_command(trained: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "detector"
    command = ["enroll", "stripes", str(folder), "--model", str(trained.folder), "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--cache", str(tmp_path / "cache"), "--json"])
    assert result.exit_code == 5, result.output  # 60 photos and 16 images are too few
    assert "too_few_images" in result.stderr
    assert not out.exists()
    out.mkdir()
    (out / "kept.txt").write_text("")
    result = CliRunner().invoke(app, [*command, "--overwrite"])
    assert result.exit_code == 2
    assert "is not a detector" in result.stderr
    assert [path.name for path in out.iterdir()] == ["kept.txt"]


# --- heads for each band of compression ----------------------------------------------------------

BANDS_CONFIG = EnrollConfig(views=4, smallest=12, smallest_photos=40, samples=30)


def write_small(folder: Path, count: int, seed: int) -> Path:
    for i in range(count):
        path = folder / f"source{i % 5}" / f"{i:03d}{'.jpg' if i % 5 % 2 else '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = (
            {"quality": 93} if path.suffix == ".jpg" else {"compress_level": 1}
        )
        Image.fromarray(stripes(seed + i, (304, 320))).save(path, **options)
    return folder


@pytest.fixture(scope="module")
def plain(banded: Any) -> DetectorFile:
    return DetectorFile.load(banded.folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"), 20, 910_000)


@pytest.fixture(scope="module")
def in_bands(plain: DetectorFile, small: Path, cache: Path) -> tuple[DetectorFile, Enrollment]:
    made, outcome = enroll(plain, "stripes", [small], cache=cache, config=BANDS_CONFIG)
    return made.save(cache / "bands"), outcome


@pytest.fixture(scope="module")
def met_again(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Images and photos of repositories that neither training nor enrolling has seen."""
    folder = tmp_path_factory.mktemp("again")
    counts = {REAL: (5, 3), "grid": (3, 2), "ring": (3, 2)}
    rows = make_repositories(folder, counts, size=(304, 336), seed=8)
    found = [(row.generator, folder / row.path) for row in rows]
    for i in range(8):
        path = folder / f"stripes{i}.{'jpg' if i % 2 else 'png'}"
        Image.fromarray(stripes(960_000 + i, (304, 336))).save(path)
        found.append(("stripes", path))
    return found


def test_a_generator_is_enrolled_on_heads_for_each_band(
    plain: DetectorFile, in_bands: Any, cache: Path, met_again: Any
) -> None:
    _, outcome = in_bands
    assert outcome.auroc.value > 0.95
    assert outcome.auroc_new_sources is not None
    assert outcome.auroc_new_sources.value > 0.95
    assert (outcome.images, outcome.sources) == (20, 5)
    detector = Detector(DetectorFile.load(cache / "bands"), threads=1, stability=False)
    old = Detector(plain, threads=1, stability=False)
    assert detector.generators == ("grid", "ring", "stripes")
    names = np.array([name for name, _ in met_again])
    found = [detector.detect(path) for _, path in met_again]
    scores = np.array(
        [[next(s for s in d.scores if s.generator == g).similarity for g in detector.generators]
         for d in found]
    )  # fmt: skip
    pair = np.isin(names, ["stripes", REAL])
    assert auroc(scores[pair, 2], names[pair] == "stripes") > 0.97
    planted = names != REAL
    rates = np.array([d.verdict.false_positive_rate for d in found], float)
    for name in ("stripes", "grid", "ring"):
        assert np.median(rates[names == name]) < 0.07, name
    assert (rates[~planted] <= 0.05).mean() < 0.3  # of 15
    # All that is said of the earlier heads is equal to the last bit.
    for (_, path), new in zip(met_again[::6], found[::6], strict=True):
        ours = {s.generator: s for s in new.scores}
        for score in old.detect(path).scores:
            mine = ours[score.generator]
            assert (mine.similarity, mine.probability, mine.false_positive_rate) == (
                score.similarity, score.probability, score.false_positive_rate,
            )  # fmt: skip


def test_the_new_head_stands_in_every_band(plain: DetectorFile, in_bands: Any) -> None:
    made, _ = in_bands
    tensors, before = made.branches[0].tensors, plain.branches[0].tensors
    assert tensors["masks"].shape[:2] == (len(BANDS), 3)
    for key in ("masks", "references", "a", "b"):
        np.testing.assert_array_equal(tensors[key][:, :2], before[key])
        for b in range(1, len(BANDS)):
            np.testing.assert_array_equal(tensors[key][b, 2], tensors[key][0, 2])
    for key in ("mean", "deviation", "basis", "shrink"):
        np.testing.assert_array_equal(tensors[key], before[key])


def test_the_calibration_in_bands(plain: DetectorFile, in_bands: Any, small: Path) -> None:
    made, outcome = in_bands
    now, before = made.calibration, plain.calibration
    assert now is not None
    assert before is not None
    kit = unpack(plain.photos())[0]  # type: ignore[misc]
    assert outcome.photos == len(kit.rows)
    new = now["real_similarities"]
    np.testing.assert_array_equal(new[:, :2], before["real_similarities"])
    scored = np.flatnonzero(np.isfinite(new[:, 2]))
    np.testing.assert_array_equal(scored, np.sort(kit.rows))
    of = now["own_generators"]
    assert (of == 2).sum() == 4 * 20  # every view: they lie in several bands
    band = now["own_traits"][of == 2, TRAITS.index("band")]
    assert len(np.unique(band)) > 2
    assert np.isfinite(now["own_traits"][:, TRAITS.index("distance")]).all()
    complete = np.isfinite(now["own_similarities"]).all(axis=1)
    assert np.bincount(of[complete]).tolist() == [12, 12, 80]
    # The kept views are those that the rows are of, as the heads of their band compare them.
    kept = unpack(made.photos())[1]
    assert kept is not None
    mine = np.flatnonzero(of[kept.rows] == 2)
    assert 40 <= len(mine) <= 50
    heads = heads_by_band(made.branches[0].tensors, 6.0)
    for k in mine[:6]:
        row = kept.rows[k]
        head = heads[int(now["own_traits"][row, TRAITS.index("band")])]
        z = kept.features[k].ravel()
        mask = np.asarray(head.masks[0]).ravel()
        reference = np.asarray(head.references[0]).ravel()
        power = (z * mask) @ (z * mask) - kept.noise * (mask @ mask)
        similarity = z @ (mask * reference) / np.sqrt(power)
        assert similarity == pytest.approx(now["own_similarities"][row, 0], abs=0.04)


def test_the_joint_number_gets_a_kind_for_the_new_generator(
    plain: DetectorFile, in_bands: Any
) -> None:
    made, _ = in_bands
    now, before = made.calibration, plain.calibration
    assert now is not None
    assert before is not None
    kinds = before["joint_offsets"].shape[1]
    assert now["joint_weights"].shape == (len(BANDS), kinds + 1, 3)
    # The kinds that were there know nothing of the new head.
    np.testing.assert_array_equal(now["joint_weights"][:, :kinds, :2], before["joint_weights"])
    np.testing.assert_array_equal(now["joint_offsets"][:, :kinds], before["joint_offsets"])
    assert (now["joint_weights"][:, :kinds, 2] == 0).all()
    spread = np.nanstd(now["real_similarities"].astype(float), axis=0)
    for weights in now["joint_weights"][:, kinds]:
        assert weights[2] * spread[2] > np.abs(weights[:2] * spread[:2]).max()
    complete = np.isfinite(now["real_similarities"]).all(axis=1)
    band = now["real_traits"][:, TRAITS.index("band")]
    whole = np.isfinite(now["own_similarities"]).all(axis=1) & (now["own_generators"] == 2)
    of_images = now["own_traits"][whole, TRAITS.index("band")]
    few = [
        b
        for b in range(len(BANDS))
        if min((complete & (band == b)).sum(), (of_images == b).sum()) < 20
    ]
    assert 1 < len(few) < len(BANDS)
    # Where there are too few it is the same for all of them, that of all bands together.
    for b in range(len(BANDS)):
        same = np.array_equal(now["joint_weights"][b, kinds], now["joint_weights"][few[0], kinds])
        assert same == (b in few)
    learned = Detector(made, threads=1).calibrations["built-in"].learned
    earlier = Detector(plain, threads=1).calibrations["built-in"].learned
    assert learned is not None
    assert earlier is not None
    own, of = now["own_similarities"].astype(float), now["own_generators"]
    real = now["real_similarities"][complete].astype(float)
    for generator in range(3):
        mine = (of == generator) & np.isfinite(own).all(axis=1)
        scores = np.concatenate([real, own[mine]])
        shown = np.concatenate([now["real_traits"][complete], now["own_traits"][mine]]).astype(
            float
        )
        made_by = np.arange(len(scores)) >= len(real)
        found = auroc(learned(scores, shown), made_by)
        if generator == 2:
            assert found > 0.95
        else:  # those that were there are found as well as before
            assert found > auroc(earlier(scores[:, :2], shown), made_by) - 0.02


def test_a_detector_with_one_kind_of_images_enrolls_and_forgets(
    plain: DetectorFile, small: Path, cache: Path
) -> None:
    """As detectors up to masksim-7 are."""
    weights = np.array([[3, 2]] * len(BANDS), np.float32)
    arrays = {**(plain.calibration or {}), "joint_weights": weights}
    arrays["joint_offsets"] = np.zeros(len(BANDS), np.float32)
    old = replace(plain, calibration=arrays)
    made, _ = enroll(old, "stripes", [small], cache=cache, config=BANDS_CONFIG)
    assert made.calibration is not None
    assert made.calibration["joint_weights"].shape == (len(BANDS), 2, 3)
    np.testing.assert_array_equal(made.calibration["joint_weights"][:, 0, :2], weights)
    without = forget(made, "ring")
    assert without.calibration is not None
    assert without.calibration["joint_weights"].shape == (len(BANDS), 2, 2)
    assert Detector(without, threads=1).calibrations["built-in"].learned is not None


def test_forgetting_in_bands(
    plain: DetectorFile, in_bands: Any, tmp_path: Path, met_again: Any
) -> None:
    made, _ = in_bands
    without = forget(made, "stripes")
    assert without.generators == plain.generators
    for key, values in plain.branches[0].tensors.items():
        np.testing.assert_array_equal(without.branches[0].tensors[key], values)
    for key, values in plain.calibration.items():  # type: ignore[union-attr]
        if not key.startswith("joint"):  # the images without a head are gone from it
            kept = slice(len(plain.generators)) if key in USUAL_ARRAYS[:2] else slice(None)
            np.testing.assert_array_equal(without.calibration[key][kept], values[kept])  # type: ignore[index]
    joint = without.calibration["joint_weights"]  # type: ignore[index]
    assert joint.shape == (len(BANDS), 4, 2)  # the kind that was added stays, without its head
    assert (joint.max(axis=1) > 0).all()
    # What is usual for the joint number is told anew, of the photos scored by all heads.
    for file in (made, without):
        photos = read_calibrations(file)[BUILT_IN]
        assert photos.usual is not None
        assert photos.learned is not None
        assert photos.learned.usual is not None
        complete = ~np.isnan(photos.real_scores).any(axis=1)
        numbers = replace(photos.learned, usual=None)(
            photos.real_scores[complete], photos.traits[complete]
        )
        expected = np.quantile(numbers, (0.5, 0.95))
        usual = photos.learned.usual
        np.testing.assert_allclose([usual.median[0, 0], usual.high[0, 0]], expected, rtol=1e-5)
        assert usual.flat
    other = Detector(forget(made, "grid").save(tmp_path / "two"), threads=1, stability=False)
    assert other.generators == ("ring", "stripes")
    path = next(path for name, path in met_again if name == "stripes")
    found = other.detect(path)
    assert found.verdict.generator == "stripes"
    assert found.verdict.false_positive_rate < 0.1  # type: ignore[operator]


def test_few_photos_leave_the_learned_number_defined(
    plain: DetectorFile, small: Path, cache: Path
) -> None:
    kit, images = unpack(plain.photos())  # type: ignore[misc]
    keep = np.arange(0, len(kit.rows), 8)
    fewer = ReferencePhotos(
        kit.features[keep], kit.step, kit.rows[keep], kit.sources[keep], kit.histories[keep]
    )
    made, _ = enroll(
        replace(plain, photos=lambda: pack(fewer, images)), "stripes", [small], cache=cache,
        config=replace(BANDS_CONFIG, smallest_photos=10),
    )  # fmt: skip
    weights = made.calibration["joint_weights"]  # type: ignore[index]
    np.testing.assert_array_equal(weights[..., :2], plain.calibration["joint_weights"])  # type: ignore[index]
    assert (weights[..., 2] > 0).all()
    assert Detector(made, threads=1).sample_size == len(keep)
    # Nor is a generator unlearned of which no image is kept.
    made, _ = enroll(
        replace(plain, photos=lambda: pack(kit, None)), "stripes", [small], cache=cache,
        config=BANDS_CONFIG,
    )  # fmt: skip
    weights = made.calibration["joint_weights"]  # type: ignore[index]
    np.testing.assert_array_equal(weights[:, :-1, :2], plain.calibration["joint_weights"])  # type: ignore[index]


def test_own_photos_in_bands(plain: DetectorFile, small: Path, cache: Path, tmp_path: Path) -> None:
    make_repositories(tmp_path / "own", {REAL: (3, 5)}, size=(304, 320), seed=9)
    made, outcome = enroll(
        plain, "stripes", [small], real=[tmp_path / "own"], cache=cache, config=BANDS_CONFIG
    )
    kit = unpack(plain.photos())[0]  # type: ignore[misc]
    assert outcome.photos == len(kit.rows) + 4 * 15
    table = made.calibration["real_similarities"]  # type: ignore[index]
    before = len(plain.calibration["real_similarities"])  # type: ignore[index]
    assert table.shape == (before + 60, 3)
    assert np.isnan(table[before:, :2]).all()
    assert np.isfinite(table[before:, 2]).all()
    assert len(np.unique(made.calibration["real_traits"][before:, TRAITS.index("band")])) > 2  # type: ignore[index]
    Detector(made, threads=1)
    # Where images are ranked among files as found, so they are among those given now.
    ranked = np.arange(before) % 4 == 0
    count = len(plain.calibration["own_generators"])  # type: ignore[index]
    arrays = {
        **plain.calibration,  # type: ignore[dict-item]
        RANKED_ARRAY: ranked.astype(np.uint8),
        OWN_RANKED_ARRAY: np.ones(count, np.uint8),
    }
    grown, _ = enroll(
        replace(plain, calibration=arrays), "stripes", [small], real=[tmp_path / "own"],
        cache=cache, config=BANDS_CONFIG,
    )  # fmt: skip
    after = grown.calibration[RANKED_ARRAY]  # type: ignore[index]
    np.testing.assert_array_equal(after, np.r_[ranked, np.arange(60) % 4 == 0])
    of = grown.calibration["own_generators"]  # type: ignore[index]
    own = grown.calibration[OWN_RANKED_ARRAY]  # type: ignore[index]
    assert own[:count].all()
    new = of[count:] == grown.generators.index("stripes")
    np.testing.assert_array_equal(own[count:][new], np.arange(new.sum()) % 4 == 0)
    back = forget(grown, "stripes").calibration[OWN_RANKED_ARRAY]  # type: ignore[index]
    np.testing.assert_array_equal(back, np.ones(count))
    scores = read_calibrations(grown)[BUILT_IN].real_scores
    np.testing.assert_array_equal(scores, table[after != 0])
    # Views are no photos: 15 of one's own are too few however often each is drawn.
    bare = replace(plain, photos=None, calibration=None)
    with pytest.raises(DataError, match="15 real photos") as caught:
        enroll(bare, "stripes", [small], real=[tmp_path / "own"], cache=cache, config=BANDS_CONFIG)
    assert caught.value.code == "too_few_images"

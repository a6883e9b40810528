"""`masksim.enroll`: a planted generator that training never saw, and what must not change."""

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

from conftest import make_natural, plant
from masksim.checkpoint import DetectorFile
from masksim.cli import app
from masksim.detector import Detector
from masksim.enroll import EnrollConfig, Enrollment, enroll, forget
from masksim.errors import DataError, ModelError, UsageError
from masksim.image import load_image
from masksim.manifest import REAL
from masksim.metrics import auroc
from masksim.photos import ReferencePhotos, pack, unpack

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

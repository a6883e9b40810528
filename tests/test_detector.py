"""`masksim.detector`: answers of a trained detector, of imported checkpoints, and refusals."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import make_original_fixture as fixture  # type: ignore[import-not-found]
import masksim
from conftest import make_natural, plant  # type: ignore[import-not-found]
from masksim.augment import encode, reencode
from masksim.bank import BANK
from masksim.calibration import Rates, most_telling
from masksim.checkpoint import Branch, DetectorFile
from masksim.detector import Detector
from masksim.errors import ImageError, ModelError, UsageError
from masksim.features import shared_features
from masksim.image import load_image
from masksim.intervals import Interval
from masksim.load import load_detector
from masksim.model import SharedHeads, heads_by_band
from masksim.original.importer import import_original
from masksim.populations import BUILT_IN
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx
from masksim.results import Detection
from masksim.spectrum import frequencies
from masksim.stability import REENCODINGS, middle
from masksim.traits import TRAITS
from masksim.verdict import EVIDENCE, level_of

Natural = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def detector(trained: Any) -> Detector:
    # Few photos and made patterns: what small re-encodings do to them has tests of its own.
    return load_detector(trained.folder, threads=1, stability=False)


@pytest.fixture(scope="module")
def photo(natural_image: Natural) -> NDArray[np.uint8]:
    return natural_image(600, 800, seed=31)


def png(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()


def answers(detection: Detection) -> Any:
    return detection.scores, detection.verdict, detection.windows


# --- what a detection says -----------------------------------------------------------------------


def test_a_detection(detector: Detector, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(photo))
    found = detector.detect(path)
    assert found.image == load_image(path).facts
    assert found.detector == "planted" == detector.name
    assert found.detector_sha256 == detector.sha256 == detector.file.sha256
    assert found.seconds > 0
    assert {score.generator for score in found.scores} == {"grid", "ring"}
    for score in found.scores:
        assert score.false_positive_rate is not None
        assert -1 <= score.similarity <= 1
        assert 0 < score.probability < 1
        assert 1 / 61 <= score.false_positive_rate <= 1
    assert found.verdict.sample_size == detector.sample_size == 60
    assert found.verdict.cautions == ()
    assert detector.detect(path, name="holiday").image.name == "holiday"


def test_seconds_hold_the_search_for_watermarks(
    detector: Detector, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100, 1000, 100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    seen: list[float] = []

    def find(pixels: NDArray[np.uint8]) -> tuple[Any, ...]:
        seen.append(time.perf_counter())
        return ()

    monkeypatch.setattr(masksim.detector, "find_watermarks", find)
    found = detector.detect(photo)
    assert len(seen) == 1
    assert found.seconds > seen[0] - 100.0


def test_scores_are_those_of_the_parts(
    detector: Detector, trained: Any, natural_image: Natural
) -> None:
    """The same numbers from features, heads and counts."""
    photo = natural_image(540, 1080, seed=32)
    found = detector.detect(photo)
    residual = OnnxResidual(residual_onnx(ResidualConfig("bank"), {}), threads=1)
    features, windows = shared_features(photo, trained.config.features, residual)
    heads = SharedHeads.from_tensors(trained.fit.tensors, trained.config.heads.limit)
    similarity = heads.similarities(features)
    assert found.windows == tuple(windows)
    assert len(windows) == 4
    np.testing.assert_allclose(detector.similarities(photo), similarity, atol=1e-6)
    real = trained.file.calibration["real_similarities"]
    for score in found.scores:
        g = detector.generators.index(score.generator)
        assert score.similarity == pytest.approx(float(similarity[g]), abs=1e-6)
        rate = (1 + int((real[:, g] >= np.float64(score.similarity)).sum())) / 61
        assert score.false_positive_rate == pytest.approx(rate)
        assert score.probability == pytest.approx(float(heads.probability(similarity)[g]), abs=1e-5)


def test_scores_are_sorted_the_most_telling_first(trained: Any, detector: Detector) -> None:
    val = trained.manifest.select("val")
    for row in val.rows[::4]:
        found = detector.detect(val.file(row))
        keys = [(score.false_positive_rate, -score.similarity) for score in found.scores]
        assert keys == sorted(keys)  # type: ignore[type-var]
        if not row.is_real:
            assert found.scores[0].generator == row.generator
        if found.verdict.generator is not None:
            assert found.verdict.generator == found.scores[0].generator


def test_planted_images_and_photos_get_their_verdicts(trained: Any, detector: Detector) -> None:
    val = trained.manifest.select("val")
    named = {"grid": 0, "ring": 0, "real": 0}
    for row in val.rows:
        named[row.generator] += detector.detect(val.file(row)).verdict.generator == row.generator
    assert named["grid"] >= 7
    assert named["ring"] >= 7


def test_a_detection_is_plain_values(detector: Detector, photo: NDArray[np.uint8]) -> None:
    found = detector.detect(photo)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    parts = {"image", "verdict", "scores", "windows", "detector", "seconds", "origin", "watermarks"}
    assert set(plain) == parts
    assert plain["detector"] == {"name": "planted", "sha256": detector.sha256}
    assert [s["generator"] for s in plain["scores"]] == [s.generator for s in found.scores]
    assert plain["windows"] == [list(window) for window in found.windows]


def test_all_sources_of_an_image_agree(
    detector: Detector, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    data = png(photo)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    expected = answers(detector.detect(path))
    sources: list[Any] = [
        str(path), data, io.BytesIO(data), photo, Image.fromarray(photo), load_image(path),
    ]  # fmt: skip
    for source in sources:
        assert answers(detector.detect(source)) == expected
    again = load_detector(detector_folder(detector, tmp_path), threads=2)
    np.testing.assert_allclose(again.similarities(photo), detector.similarities(photo), atol=1e-6)


def detector_folder(detector: Detector, tmp_path: Path) -> Path:
    detector.file.save(tmp_path / "copy")
    return tmp_path / "copy"


def test_a_turned_photo_is_analysed_as_stored(detector: Detector, photo: NDArray[np.uint8]) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    found = detector.detect(png(photo, exif=turned))
    assert found.image.orientation == 6
    assert (found.image.width, found.image.height) == (800, 600)
    assert answers(found) == answers(detector.detect(photo))
    # Turned for good it is another image: the windows lie elsewhere.
    assert answers(detector.detect(np.rot90(photo))) != answers(found)


# --- maps ----------------------------------------------------------------------------------------


def test_the_similarity_is_the_sum_of_its_map(detector: Detector, photo: NDArray[np.uint8]) -> None:
    found = {score.generator: score for score in detector.detect(photo).scores}
    maps = detector.similarity_maps(photo)
    assert tuple(maps) == detector.generators
    for generator, shown in maps.items():
        assert shown.generator == generator
        assert shown.similarity == pytest.approx(found[generator].similarity, abs=1e-5)
        total = sum(float(plane.values.sum(dtype=np.float64)) for plane in shown.planes)
        assert total == pytest.approx(found[generator].similarity, abs=1e-5)


def test_explaining_is_detecting_and_mapping(
    detector: Detector, photo: NDArray[np.uint8], hostile_files: Any
) -> None:
    found, maps = detector.explain(photo, name="it")
    assert found.image.name == "it"
    assert answers(found) == answers(detector.detect(photo))
    expected = detector.similarity_maps(photo)
    assert list(maps) == list(expected)
    for generator, shown in maps.items():
        assert shown.similarity == expected[generator].similarity
        for plane, other in zip(shown.planes, expected[generator].planes, strict=True):
            np.testing.assert_array_equal(plane.values, other.values)
    with pytest.raises(ImageError) as caught:
        detector.explain(hostile_files["text"][0])
    assert caught.value.code == "not_an_image"


def test_planes_of_a_map(detector: Detector, photo: NDArray[np.uint8]) -> None:
    shown = detector.similarity_maps(photo)["grid"]
    names = [plane.name for plane in shown.planes]
    assert len(set(names)) == len(names) == 3 * len(BANK)
    assert sum(name.startswith("luma, ") for name in names) == len(BANK)
    assert sum(name.startswith("chroma Cb, ") for name in names) == len(BANK)
    for plane in shown.planes:
        scale = 1.0 if plane.name.startswith("luma") else 0.5  # chroma is at half the resolution
        for axis in (plane.fy, plane.fx):
            np.testing.assert_allclose(axis, scale * frequencies(64))
        for picture in (plane.values, plane.reference, plane.spectrum):
            assert picture.shape == (64, 64)
            assert picture.dtype == np.float32
            assert np.isfinite(picture).all()
            # Even: as at (u, v), so at (-u, -v); nothing in the column of the Nyquist frequency.
            mirrored = np.roll(np.flip(picture), 1, axis=(0, 1))
            np.testing.assert_allclose(mirrored, picture, atol=1e-6)
            assert not picture[:, 0].any()


def test_the_shown_spectrum_is_in_deviations(detector: Detector, trained: Any) -> None:
    """Of a photo of training's kind: deviations of about one, inside the limit."""
    val = trained.manifest.select("val")
    row = next(r for r in val.rows if r.is_real and r.format == "JPEG")
    planes = detector.similarity_maps(val.file(row))["grid"].planes
    values = np.stack([plane.spectrum[:, 1:] for plane in planes])
    assert 0.3 < values.std() < 3
    assert np.abs(values).max() <= trained.config.heads.limit + 1e-5


def test_planes_are_named_for_what_they_show(detector: Detector, photo: NDArray[np.uint8]) -> None:
    """A wave in blue-yellow alone moves the planes of Cb more than those of Cr and luma."""
    y, x = np.mgrid[:600, :800]
    wave = 12 * np.cos(2 * np.pi * (0.125 * x + 0.0625 * y))
    # In the direction of Cb: luma and Cr stay (ITU-R BT.601).
    added = photo + wave[..., None] * np.array([0.0, -0.344136, 1.772])
    planted = np.clip(np.rint(added), 0, 255).astype(np.uint8)
    plain, shown = (detector.similarity_maps(p)["grid"].planes for p in (photo, planted))
    change = {
        after.name: float(np.abs(after.spectrum - before.spectrum).max())
        for before, after in zip(plain, shown, strict=True)
    }
    for kind in BANK:
        assert change[f"chroma Cb, {kind}"] > 2 * change[f"chroma Cr, {kind}"], change
        assert change[f"chroma Cb, {kind}"] > 2 * change[f"luma, {kind}"], change
    after = next(plane for plane in shown if plane.name == f"chroma Cb, {BANK[0]}")
    before = next(plane for plane in plain if plane.name == after.name)
    at = np.unravel_index(np.abs(after.spectrum - before.spectrum).argmax(), (64, 64))
    place = (after.fy[at[0]], after.fx[at[1]])
    cell = 0.5 * 4 / 64
    near = [
        abs(place[0] - sign * 0.0625) <= 1.5 * cell and abs(place[1] - sign * 0.125) <= 1.5 * cell
        for sign in (1, -1)
    ]
    assert any(near), place


def test_patterns_are_what_the_maps_weigh_with(
    detector: Detector, photo: NDArray[np.uint8]
) -> None:
    patterns = detector.patterns()
    assert tuple(patterns) == detector.generators
    for generator, shown in detector.similarity_maps(photo).items():
        for plane, pattern in zip(shown.planes, patterns[generator], strict=True):
            assert pattern.name == plane.name
            np.testing.assert_array_equal(pattern.fy, plane.fy)
            assert pattern.mask.min() >= 0
            assert pattern.mask.max() <= 1
            # A map holds parts of sums over cells (16 frequencies, twice), a pattern their values.
            # In the middle cells it is not so simple: column 0 lies in two of them.
            weight = (pattern.mask * pattern.reference)[:, 36:]
            np.testing.assert_allclose(plane.reference[:, 36:], weight / 32, atol=1e-7)


def test_a_planted_wave_stands_in_the_pattern(detector: Detector) -> None:
    """``grid`` was planted at 3/8 cycles/pixel along both axes."""
    luma = next(p for p in detector.patterns()["grid"] if p.name == "luma, median")
    weight = luma.mask * luma.reference
    at = np.unravel_index(weight.argmax(), weight.shape)
    place = sorted(abs(axis[k]) for axis, k in zip((luma.fy, luma.fx), at, strict=True))
    assert place[0] <= 4 / 64
    assert abs(place[1] - 3 / 8) <= 4 / 64


# --- refusals and cautions -----------------------------------------------------------------------


def test_every_hostile_file_gives_its_code(detector: Detector, hostile_files: Any) -> None:
    for name, (path, code) in hostile_files.items():
        for ask in (detector.detect, detector.similarity_maps):
            with pytest.raises(ImageError) as caught:
                ask(path)
            assert caught.value.code == code, name


def test_every_odd_file_gets_an_answer(detector: Detector, odd_files: Any) -> None:
    for name, (path, treatments) in odd_files.items():
        if name == "one_pixel":
            continue
        found = detector.detect(path)
        assert found.image.treatments == treatments, name
        assert len(found.scores) == 2


def test_many_images_keep_their_order_with_errors_inside(
    detector: Detector, photo: NDArray[np.uint8], hostile_files: Any
) -> None:
    truncated, missing = hostile_files["truncated_png"][0], hostile_files["missing"][0]
    sources: list[Any] = [truncated, photo, missing, photo[:300, :300], photo[:9, :9], png(photo)]
    results = detector.detect_many(iter(sources))
    found = list(results)
    codes = [getattr(result, "code", None) for result in found]
    assert codes == ["truncated", None, "not_found", None, "too_small", None]
    assert isinstance(found[1], Detection)
    assert answers(found[1]) == answers(detector.detect(photo))
    assert isinstance(found[3], Detection)
    assert (found[3].image.width, found[3].image.height) == (300, 300)
    assert list(detector.detect_many([])) == []


def test_images_are_analysed_as_they_are_asked_for(
    detector: Detector, photo: NDArray[np.uint8]
) -> None:
    taken = []

    def source() -> Any:
        for k in range(3):
            taken.append(k)
            yield photo[:300, :300]

    results = detector.detect_many(source())
    assert taken == []
    next(results)
    assert taken == [0]


SMALL = "under 512 pixels"


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 700), (511, 511), (600, 511)])
def test_small_images_get_a_caution(
    detector: Detector, photo: NDArray[np.uint8], height: int, width: int
) -> None:
    found = detector.detect(photo[:height, :width])
    assert len(found.verdict.cautions) == 1
    assert SMALL in found.verdict.cautions[0]
    for x, y, wide, high in found.windows:
        assert (min(512, width) - 8, min(512, height) - 8) < (wide, high)
        assert x + wide <= width
        assert y + high <= height


# --- why nothing can be concluded ----------------------------------------------------------------


def reasons(detector: Detector, image: Any) -> list[str]:
    return [reason.code for reason in detector.detect(image).verdict.reasons]


@pytest.fixture
def convinced(trained: Any) -> Detector:
    """A detector for which every image is rare: all its photos score low."""
    file = DetectorFile.load(trained.folder)
    arrays = dict(file.calibration or {})
    arrays["real_similarities"] = np.full_like(arrays["real_similarities"], -1.0)
    # Of as many sources as there are photos: the interval is as narrow as so few allow.
    arrays["real_sources"] = np.arange(len(arrays["real_similarities"]))
    return Detector(replace(file, calibration=arrays))


def jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_each_reason_has_its_image(
    convinced: Detector, trained: Any, photo: NDArray[np.uint8]
) -> None:
    size = (528, 560)
    own = make_natural(*size, seed=10_001)  # as the detector's photos are
    found = convinced.detect(own).verdict
    assert found.reasons == ()
    assert found.level in ("strong evidence", "evidence")
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    drawing = own // 128 * 128
    drawing[:, :400] = 90
    enlarged = np.asarray(
        Image.fromarray(own[::4, ::4]).resize(size[::-1], Image.Resampling.BICUBIC)
    )
    screen = make_natural(1080, 1920, seed=3)
    screen[:, :300] = 240
    for image, code in (
        (own[:300, :300], "too_small"),
        (own // 64, "too_dark"),
        (drawing, "flat"),
        (jpeg(own, 30), "heavily_compressed"),
        (enlarged, "resized"),
        (noise, "out_of_range"),
        (screen, "screenshot_like"),
    ):
        verdict = convinced.detect(image).verdict
        assert code in [reason.code for reason in verdict.reasons], (code, verdict.reasons)
        assert verdict.level == "inconclusive"
        assert verdict.generator is None
        assert verdict.text.startswith("Inconclusive: ")


def test_a_photo_that_was_a_jpeg_is_no_screenshot(convinced: Detector) -> None:
    screen = make_natural(1080, 1920, seed=3)
    screen[:, :300] = 240
    assert "screenshot_like" not in reasons(convinced, jpeg(screen, 95))
    assert "screenshot_like" not in reasons(convinced, encode(screen, "WEBP", 95))
    assert "screenshot_like" in reasons(convinced, png(screen))


def test_only_what_hides_a_pattern_makes_its_absence_inconclusive(trained: Any) -> None:
    file = DetectorFile.load(trained.folder)
    arrays = dict(file.calibration or {})
    arrays["real_similarities"] = np.full_like(arrays["real_similarities"], 1.0)
    never = Detector(replace(file, calibration=arrays))
    own = make_natural(528, 560, seed=10_001)
    noise = np.random.default_rng(0).integers(0, 256, (528, 560, 3), dtype=np.uint8)
    assert never.detect(noise).verdict.level == "no evidence"
    assert never.detect(jpeg(own, 30)).verdict.level == "inconclusive"
    assert never.detect(own).verdict.level == "no evidence"


def test_a_verdict_is_checked_by_small_reencodings(
    trained: Any, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DetectorFile.load(trained.folder)
    arrays = dict(file.calibration or {})
    arrays["real_similarities"] = np.full_like(arrays["real_similarities"], -1.0)
    own = make_natural(528, 560, seed=10_001)
    detector = Detector(replace(file, calibration=arrays))
    found = detector.detect(own).verdict
    assert found.stability is not None
    assert list(found.stability) == [small.name for small in REENCODINGS]
    assert set(found.stability.values()) == {found.false_positive_rate}
    quick = Detector(replace(file, calibration=arrays), stability=False)
    assert quick.detect(own).verdict.stability is None
    # What is no evidence needs no second look.
    for rate in (EVIDENCE, np.nextafter(EVIDENCE, 1)):
        always = Rates(np.full(2, rate), rate, Interval(0.0, 0.09), 60, 6, np.full(2, 60), "all")
        monkeypatch.setattr(detector, "rates", lambda *args, always=always: always)
        assert (detector.detect(own).verdict.stability is None) == (rate > EVIDENCE)
    # Evidence that a re-encoding takes away has the rate that is left.
    answers = iter(
        Rates(np.full(2, rate), rate, Interval(0.0, 0.09), 60, 6, np.full(2, 60), "all")
        for rate in (0.02, 0.02, 0.5, 0.03, 0.02)
    )
    monkeypatch.setattr(detector, "rates", lambda *args: next(answers))
    turned = detector.detect(own).verdict
    assert (turned.level, turned.false_positive_rate, turned.as_found) == ("fragile", 0.5, 0.02)
    assert turned.stability == dict(
        zip([small.name for small in REENCODINGS], (0.02, 0.5, 0.03, 0.02), strict=True)
    )
    assert "does not survive a small re-encoding. After WebP of quality 80, 50 %" in turned.text


def test_a_large_file_is_checked_as_its_array_is(trained: Any, tmp_path: Path) -> None:
    file = DetectorFile.load(trained.folder)
    arrays = dict(file.calibration or {})
    # Every image is near evidence, so that it is checked.
    arrays["real_similarities"] = np.linspace(-1, 1, arrays["real_similarities"].size).reshape(
        arrays["real_similarities"].shape
    )
    detector = Detector(replace(file, calibration=arrays))
    pixels = make_natural(1600, 1750, seed=5)
    path = tmp_path / "large.png"
    path.write_bytes(png(pixels))
    held = load_image(path, part=detector.analysed_part)
    assert held.pixels.shape[:2] == (1536, 1536)
    mine, whole = detector._reencoded(held.pixels), detector._reencoded(pixels)
    assert {k: r.joint for k, r in mine.items()} == {k: r.joint for k, r in whole.items()} != {}


def test_far_from_evidence_nothing_is_tried(
    trained: Any, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DetectorFile.load(trained.folder)
    arrays = dict(file.calibration or {})
    arrays["real_similarities"] = np.full_like(arrays["real_similarities"], 1.0)
    detector = Detector(replace(file, calibration=arrays))
    monkeypatch.setattr(detector, "_reencoded", lambda pixels: pytest.fail("was tried"))
    assert detector.detect(photo).verdict.stability is None


def test_likelihood_ratios_are_off_by_default(
    trained: Any, detector: Detector, photo: NDArray[np.uint8]
) -> None:
    assert detector.detect(photo).verdict.likelihood_ratio is None
    asked = load_detector(trained.folder, likelihood_ratio=True, stability=False)
    grid = plant(make_natural(528, 560, seed=77), "grid", 77)
    found = asked.detect(grid).verdict
    assert found.level == "weak evidence"  # 60 photos of six sources allow no more
    assert found.likelihood_ratio is not None
    assert found.likelihood_ratio.low <= found.likelihood_ratio.value
    assert found.likelihood_ratio.value <= found.likelihood_ratio.high
    assert asked.detect(np.zeros((520, 520, 3), np.uint8)).verdict.likelihood_ratio is None
    bare = changed(trained, calibration=None)
    with pytest.raises(UsageError, match="own images"):
        Detector(bare, likelihood_ratio=True)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (513, 800)])
def test_other_images_get_none(
    detector: Detector, photo: NDArray[np.uint8], height: int, width: int
) -> None:
    assert detector.detect(photo[:height, :width]).verdict.cautions == ()


@pytest.mark.parametrize(("height", "width"), [(255, 255), (255, 800), (600, 255), (1, 1)])
def test_smaller_images_are_refused(
    detector: Detector, photo: NDArray[np.uint8], height: int, width: int
) -> None:
    small = photo[:height, :width]
    for ask in (detector.detect, detector.similarity_maps, detector.similarities):
        with pytest.raises(ImageError, match=f"{width}x{height}") as caught:
            ask(small)  # type: ignore[operator]
        assert caught.value.code == "too_small"


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_image_gets_an_answer_with_the_reason(detector: Detector, level: int) -> None:
    found = detector.detect(np.full((520, 520, 3), level, np.uint8))
    assert "flat" in [reason.code for reason in found.verdict.reasons]
    assert all(np.isfinite(score.similarity) for score in found.scores)


def test_strong_compression_gets_a_caution(detector: Detector, photo: NDArray[np.uint8]) -> None:
    for quality, expected in ((50, True), (59, True), (60, False), (90, False)):
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=quality)
        cautions = detector.detect(buffer.getvalue()).verdict.cautions
        assert any(f"JPEG quality {quality}" in caution for caution in cautions) is expected


# --- the file of a detector ----------------------------------------------------------------------


def changed(trained: Any, calibration: Any = "same", **changes: Any) -> DetectorFile:
    """The trained file with another branch; what is a dict is merged, None takes a key away."""
    file = DetectorFile.load(trained.folder)
    branch = file.branches[0]
    values: dict[str, Any] = {}
    for name, change in changes.items():
        old = getattr(branch, name)
        if isinstance(change, dict):
            merged = {**old, **change}
            change = {key: value for key, value in merged.items() if value is not None}
        values[name] = change
    return replace(
        file,
        branches=(replace(branch, **values),),
        calibration=file.calibration if calibration == "same" else calibration,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess": {"windwo": 4}}, "unknown keys.*windwo"),
        ({"preprocess": {"window": None}}, "lacks .'window'"),
        ({"spectrum": {"floor": None}}, "lacks .'floor'"),
        ({"preprocess": {"window": 516}}, "multiple of 8"),
        ({"preprocess": {"window": "512"}}, "window must be a whole number"),
        ({"preprocess": {"smallest": 100}}, "at least two segments"),
        ({"preprocess": {"windows": 0}}, "must be positive"),
        ({"preprocess": {"colour": "RGB"}}, "luma and chroma"),
        ({"preprocess": {"colour": None}}, "luma and chroma"),
        ({"spectrum": {"hops": 5}}, "hops must be a list, got 5"),
        ({"spectrum": {"segment": 128}}, r"masks have shape .*expected \(2, 12, 32, 16\)"),
        ({"spectrum": {"cell": 2}}, r"expected \(2, 12, 32, 16\)"),
        ({"spectrum": {"floor": -1.0}}, "floor"),
        ({"head_config": {"limit": None}}, "limit"),
        ({"head_config": {"limit": "many"}}, "invalid"),
        ({"head_config": {"limit": 0.0}}, "limit"),
        ({"head_config": {"limit": float("nan")}}, "limit"),
        ({"head_config": {"more": 1}}, "more"),
        ({"tensors": {"mean": None}}, "expected"),
        ({"tensors": {"a": np.zeros(3, np.float32)}}, "misshapen"),
        ({"generators": ("one",)}, "misshapen|shape"),
        ({"calibration": {"scores": np.zeros((5, 2))}}, "unknown calibration"),
        ({"calibration": {"real_similarities": np.zeros((5, 3))}}, r"shape \(5, 3\) for 2 heads"),
        ({"calibration": {"real_similarities": np.zeros((0, 2))}}, "no photo"),
        ({"calibration": {"real_similarities": np.zeros(10)}}, r"shape \(10,\)"),
        ({"calibration": {"real_similarities": np.full((5, 2), np.inf)}}, "not finite"),
        ({"calibration": {"real_similarities": np.full((5, 2), np.nan)}}, "no photo"),
    ],
)
def test_tampered_detectors_are_refused_when_loaded(
    trained: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Detector(changed(trained, **changes))
    assert caught.value.code == "model_invalid"


def test_a_shared_branch_needs_the_bank(trained: Any) -> None:
    residual = ResidualConfig("cross_diff")
    with pytest.raises(ModelError, match="residual bank"):
        Detector(changed(trained, residual=residual, onnx=residual_onnx(residual, {})))
    with pytest.raises(ModelError):
        Detector(changed(trained, onnx=b"no graph"))


def test_a_generator_stands_in_one_branch(trained: Any) -> None:
    file = DetectorFile.load(trained.folder)
    with pytest.raises(ModelError, match="two branches"):
        Detector(replace(file, branches=file.branches * 2))


def test_a_changed_part_is_found_out(trained: Any, tmp_path: Path) -> None:
    DetectorFile.load(trained.folder).save(tmp_path / "d")
    path = tmp_path / "d" / "calibration.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError) as caught:
        load_detector(tmp_path / "d")
    assert caught.value.code == "model_hash"
    with pytest.raises(ModelError) as caught:
        load_detector(tmp_path / "none")
    assert caught.value.code == "model_not_found"


def test_without_calibration_there_are_no_rates(
    trained: Any, detector: Detector, photo: NDArray[np.uint8]
) -> None:
    bare = Detector(changed(trained, calibration=None))
    assert bare.sample_size == 0
    found = bare.detect(photo)
    assert found.verdict.level == "uncalibrated"
    assert [score.false_positive_rate for score in found.scores] == [None, None]
    similarities = [score.similarity for score in found.scores]
    assert similarities == sorted(similarities, reverse=True)
    assert found.verdict.generator == found.scores[0].generator
    np.testing.assert_array_equal(bare.similarities(photo), detector.similarities(photo))


@pytest.mark.parametrize("options", [{"threads": 0}, {"providers": ["NoSuchProvider"]}])
def test_senseless_options_are_refused(trained: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        load_detector(trained.folder, **options)


# --- checkpoints of the original -----------------------------------------------------------------


def crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Step 2, as in the description of the original: the centre, on the grid of 8."""
    y, x = (max(0, side // 2 - size // 2) // 8 * 8 for side in pixels.shape[:2])
    return pixels[y : y + size, x : x + size]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, dict[str, Any]]:
    """Three imported checkpoints of unlike windows and residuals; name -> (kind, window, masks)."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("originals")
    made = {"dalle3": ("linear3x3", 64, 2), "sd1": ("cross_diff", 48, 1), "none": ("none", 40, 3)}
    for name, (kind, window, masks) in made.items():
        path = folder / "ckpt" / f"{name}-epoch=03-valid_loss=0.1234.ckpt"
        path.parent.mkdir(exist_ok=True)
        fixture.save_checkpoint(path, kind, window, masks)
    import_original(folder / "ckpt", folder / "detector")
    return load_detector(folder / "detector", threads=1), made


def test_imported_checkpoints_give_the_originals_numbers(originals: Any) -> None:
    detector, made = originals
    assert set(detector.generators) == set(made)
    image = fixture.image(107, 150)
    found = detector.detect(image)
    assert found.verdict.level == "uncalibrated"
    assert found.verdict.cautions == ()  # the image is larger than every window
    maps = detector.similarity_maps(image)
    for score in found.scores:
        kind, window, masks = made[score.generator]
        planes = fixture.colour(crop(image, window), True)
        expected = fixture.original(planes, fixture.state(kind, window, masks), kind)
        assert score.similarity == pytest.approx(float(expected["similarity"][0]), rel=1e-4)
        assert score.probability == pytest.approx(float(expected["prob"][0]), rel=1e-4)
        shown = maps[score.generator]
        assert [plane.name for plane in shown.planes] == ["Y", "Cb", "Cr"]
        for c, plane in enumerate(shown.planes):
            np.testing.assert_allclose(3 * plane.values, expected["map"][0, c], atol=1e-5)
            np.testing.assert_allclose(plane.fy, frequencies(window))
        total = sum(float(plane.values.sum(dtype=np.float64)) for plane in shown.planes)
        assert total == pytest.approx(score.similarity, abs=1e-5)
    # The windows of all, each once: (x, y, width, height).
    assert set(found.windows) == {(40, 16, 64, 64), (48, 24, 48, 48), (48, 32, 40, 40)}


def test_an_image_under_a_window_of_the_original_is_refused(originals: Any) -> None:
    detector, _ = originals
    with pytest.raises(ImageError, match="smaller than the window of 64x64") as caught:
        detector.detect(fixture.image(63, 150))
    assert caught.value.code == "too_small"
    assert detector.detect(fixture.image(64, 64)).verdict.cautions == ()


def test_originals_and_shared_heads_together(
    originals: Any, trained: Any, photo: NDArray[np.uint8]
) -> None:
    imported, _ = originals
    shared = DetectorFile.load(trained.folder)
    both = Detector(
        DetectorFile({"name": "both"}, (*imported.file.branches, *shared.branches), None, {})
    )
    assert both.generators == (*imported.generators, "grid", "ring")
    found = both.similarities(photo)
    np.testing.assert_allclose(found[:3], imported.similarities(photo), rtol=1e-6)
    np.testing.assert_allclose(found[3:], Detector(shared).similarities(photo), rtol=1e-6)
    assert tuple(both.similarity_maps(photo)) == both.generators
    # Small windows of one branch are no reason for a caution.
    assert both.detect(photo).verdict.cautions == ()


@pytest.mark.parametrize(
    "change",
    [
        {"windows": 2}, {"more": 1}, {"colour": "HSV"}, {"colour": None}, {"aligned": None},
        {"windows": None},
    ],
)  # fmt: skip
def test_tampered_originals_are_refused(originals: Any, change: dict[str, Any]) -> None:
    branch: Branch = originals[0].file.branches[0]
    merged = {**branch.preprocess, **change}
    preprocess = {key: value for key, value in merged.items() if value is not None}
    with pytest.raises(ModelError, match="configuration of an original branch"):
        Detector(DetectorFile({}, (replace(branch, preprocess=preprocess),)))
    for spectrum in ({}, {"epsilon": "small"}):
        with pytest.raises(ModelError, match="configuration of an original branch"):
            Detector(DetectorFile({}, (replace(branch, spectrum=spectrum),)))


# --- the one inside the package ------------------------------------------------------------------

BUNDLED = Path(masksim.__file__).parent / "weights" / "default" / "detector.json"


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the package has no trained detector yet")
def test_the_word_for_the_bundled_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_detector("default").sha256 == load_detector().sha256
    (tmp_path / "default").mkdir()  # one's own folder of that name goes before it
    with pytest.raises(ModelError):
        load_detector("default")


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the package has no trained detector yet")
def test_the_packages_own_detector(photo: NDArray[np.uint8]) -> None:
    detector = masksim.load_detector()
    found = detector.detect(photo)
    assert detector.sample_size >= 100
    assert len(found.scores) == len(detector.generators) >= 1
    maps = detector.similarity_maps(photo)
    for score in found.scores:
        total = sum(float(p.values.sum(dtype=np.float64)) for p in maps[score.generator].planes)
        assert total == pytest.approx(score.similarity, abs=1e-4)


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the package holds no trained detector")
def test_graphics_are_never_evidence() -> None:
    from PIL import Image, ImageDraw

    detector = load_detector()
    levels = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        picture = Image.new("RGB", (900, 700), tuple(int(v) for v in rng.integers(0, 256, 3)))
        draw = ImageDraw.Draw(picture)
        for _ in range(12):
            corners = [tuple(int(v) for v in rng.integers(0, 900, 2)) for _ in range(3)]
            draw.polygon(corners, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
        verdict = detector.detect(picture).verdict
        levels.add(verdict.level)
        assert verdict.level in ("inconclusive", "no evidence"), verdict
        assert (
            "flat" in [reason.code for reason in verdict.reasons] or verdict.level != "inconclusive"
        )
        assert verdict.generator is None
    assert "inconclusive" in levels


def test_copies_of_photos_are_not_called_photos(banded: Any, trained: Any) -> None:
    detector = Detector(banded.file)
    assert (detector.photos, detector.sample_size) == (72, 4 * 72)
    verdict = detector.detect(make_natural(304, 320, seed=4)).verdict
    assert "copies of photos" in verdict.kind
    assert f" of {verdict.sample_size} copies of real photos" in verdict.text
    alone = Detector(trained.file)
    assert alone.photos == alone.sample_size
    assert "copies" not in alone.detect(make_natural(560, 576, seed=4)).verdict.text
    # The detector in the package ranks among files as found, but for JPEGs of low quality.
    detector = load_detector()
    assert (detector.photos, detector.sample_size) == (3383, 4955)
    pixels = make_natural(600, 640, seed=4)
    assert "copies" not in detector.detect(pixels).verdict.text
    low = reencode(pixels, "JPEG", 55)
    rates = detector.rates(*detector.measure_pixels(low, 55, "JPEG"))
    assert rates is not None
    assert rates.kind == (
        "copies of photos saved as JPEG of low quality (size and noise allowed for)"
    )


def test_every_word_is_within_reach_in_the_package() -> None:
    for calibration in load_detector().calibrations.values():
        for leaf in calibration.tree.leaves():
            assert level_of(*calibration.rate_of(leaf, 0)) == "strong evidence", leaf.words


def test_equal_rates_are_parted_by_similarity_everywhere() -> None:
    own, similarities = np.array([0.1, 0.001, 0.001]), np.array([0.9, 0.2, 0.3])
    assert most_telling(own, similarities).tolist() == [2, 1, 0]


def test_what_is_reencoded_is_no_less_than_what_is_analysed() -> None:
    large = np.zeros((2600, 1700, 3), np.uint8)
    assert middle(large).shape == (1600, 1600, 3)
    assert middle(large, 2048).shape == (2048, 1700, 3)
    assert middle(large[:500, :600], 2048).shape == (500, 600, 3)


def test_a_head_learned_from_few_sources_says_so(trained: Any) -> None:
    provenance = {**trained.file.provenance, "sources": {"grid": 1, "ring": 9}}
    detector = Detector(replace(trained.file, provenance=provenance), stability=False)
    val = trained.manifest.select("val")
    for name in ("grid", "ring"):
        row = val.select(generator=name).rows[0]
        verdict = detector.detect(val.file(row)).verdict
        assert verdict.generator == name
        assert any("too few collections" in c for c in verdict.cautions) == (name == "grid")


def test_formats_of_which_hardly_any_photos_are_carry_a_caution(
    trained: Any, photo: NDArray[np.uint8]
) -> None:
    def said(format: str, formats: Any, **more: Any) -> list[str]:
        calibration = {**trained.file.provenance["calibration"], "formats": formats}
        provenance = {**trained.file.provenance, "calibration": calibration, **more}
        detector = Detector(replace(trained.file, provenance=provenance), stability=False)
        file = io.BytesIO()
        Image.fromarray(photo).save(file, format)
        cautions = detector.detect(file.getvalue()).verdict.cautions
        return [caution for caution in cautions if caution.startswith("Hardly any")]

    counted = {"JPEG": 20, "MPO": 10, "PNG": 3000, "WEBP": 29}
    (words,) = said("WEBP", counted)
    assert "are WEBP files" in words
    assert said("JPEG", counted) == []  # those in an MPO are JPEGs
    assert said("PNG", {**counted, "PNG": 0}) == []  # it leaves nothing of its own in the pixels
    assert said("WEBP", {"JPEG": 100, "WEBP": 29}) == []  # few, but no small share
    assert said("WEBP", counted, enrolled=[{}]) == []  # among others since
    for unknown in ("none", None, {"WEBP": "many", "JPEG": None}):
        assert said("WEBP", unknown) == []


@pytest.mark.parametrize("size", [(1700, 1900), (1536, 2100), (540, 1800)])
def test_a_large_file_is_analysed_as_its_whole_array(
    detector: Detector, natural_image: Natural, size: tuple[int, int]
) -> None:
    pixels = natural_image(*size, seed=61)
    by_file, by_array = detector.detect(png(pixels)), detector.detect(pixels)
    assert by_file.windows == by_array.windows
    assert by_file.scores == by_array.scores
    assert by_file.verdict == by_array.verdict
    assert (by_file.image.height, by_file.image.width) == size
    y, x, height, width = detector.analysed_part(*size)
    assert (height, width) == (size if min(size) < 1536 else (1536, 1536))
    cut = masksim.load_image(png(pixels), part=detector.analysed_part)
    assert cut.pixels.shape == (height, width, 3)
    assert cut.corner == (y, x)


def test_threads_change_no_answer(trained: Any, photo: NDArray[np.uint8]) -> None:
    one, three = (load_detector(trained.folder, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one.similarities(photo), three.similarities(photo))


# --- heads for each band of compression, and detectors from before there were any ----------------


def test_a_detector_of_the_first_edition_gives_the_same_answers(
    trained: Any, detector: Detector, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Without parts and coherence in its configuration, and with one trait fewer."""
    file = DetectorFile.load(trained.folder)
    (branch,) = file.branches
    spectrum = {k: v for k, v in branch.spectrum.items() if k not in ("parts", "coherence")}
    assert len(spectrum) == len(branch.spectrum) - 2
    assert file.calibration is not None
    arrays = {
        name: values[:, :8] if name.endswith("_traits") else values
        for name, values in file.calibration.items()
    }
    older = replace(file, branches=(replace(branch, spectrum=spectrum),), calibration=arrays)
    older.save(tmp_path / "older")
    found = load_detector(tmp_path / "older", threads=1, stability=False)
    for image in (photo, plant(make_natural(560, 600, seed=8), "ring", 8)):
        for data in (png(image), encode(image, "JPEG", 80), encode(image, "WEBP", 80)):
            mine, known = found.detect(data), detector.detect(data)
            assert mine.scores == known.scores
            assert mine.verdict == known.verdict
        # One set of heads: what the file shows of its compression does not change a score.
        one, two = (found.measure_pixels(image, q, f)[0] for q, f in ((None, "PNG"), (70, "JPEG")))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, found.similarities(image))


def test_each_band_has_the_heads_of_its_own(banded: Any) -> None:
    file = DetectorFile.load(banded.folder)
    detector = Detector(file, threads=1, stability=False)
    heads = heads_by_band(file.branches[0].tensors, 6.0)
    config = banded.config.features
    residual = OnnxResidual(file.branches[0].onnx, threads=1)
    pixels = plant(make_natural(304, 336, seed=41), "grid", 41)
    features, _ = shared_features(pixels, config, residual)
    asked = {
        0: (None, "PNG"), 1: (90, "JPEG"), 2: (70, "JPEG"), 3: (55, "JPEG"), 4: (None, "WEBP")
    }  # fmt: skip
    different = set()
    for band, (quality, format) in asked.items():
        scores, traits = detector.measure_pixels(pixels, quality, format)
        np.testing.assert_allclose(scores, heads[band].similarities(features), atol=1e-6)
        assert traits[TRAITS.index("band")] == band
        assert traits[TRAITS.index("distance")] == pytest.approx(heads[band].distance(features))
        different.add(scores.tobytes())
    assert len(different) == 5
    # Of the file itself: its band decides, and maps are of the same heads.
    data = encode(pixels, "JPEG", 70)
    loaded = load_image(data)
    found, maps = detector.explain(loaded)
    scores = detector.measure_pixels(loaded.pixels, 70, "JPEG")[0]
    for score in found.scores:
        g = detector.generators.index(score.generator)
        assert score.similarity == pytest.approx(scores[g], abs=1e-6)
        planes = maps[score.generator].planes
        assert len(planes) == config.channels
        assert sum(float(p.values.sum()) for p in planes) == pytest.approx(scores[g], abs=1e-4)
        names = [plane.name for plane in planes]
        assert len(set(names)) == len(names)
        assert "coherence, R and G" in names
        assert names[0].startswith("luma quiet, ")


def test_bands_and_the_learned_number_must_fit(banded: Any) -> None:
    file = DetectorFile.load(banded.folder)
    assert file.calibration is not None
    arrays = dict(file.calibration)
    for change, message in (
        ({"joint_offsets": None}, "only one"),
        ({"joint_offsets": np.zeros(3, np.float32)}, "joint weights of shape"),
        ({"joint_weights": np.zeros((5, 3, 3), np.float32)}, "joint weights of 3 generators for 2"),
        ({"joint_weights": np.full((5, 3, 2), np.nan, np.float32)}, "not finite"),
    ):
        changed = {k: v for k, v in {**arrays, **change}.items() if v is not None}
        with pytest.raises(ModelError, match=message):
            Detector(replace(file, calibration=changed), threads=1)


def test_joint_numbers_of_one_kind_of_images_load(banded: Any) -> None:
    """As detectors up to masksim-7 have them: a weight for each band and generator."""
    file = DetectorFile.load(banded.folder)
    weights, offsets = np.array([[2, 1]] * 5, np.float32), np.zeros(5, np.float32)
    arrays = {**(file.calibration or {}), "joint_weights": weights, "joint_offsets": offsets}
    learned = Detector(replace(file, calibration=arrays), threads=1).calibrations[BUILT_IN].learned
    assert learned is not None
    traits = np.full((1, len(TRAITS)), np.nan)
    assert replace(learned, usual=None)(np.array([[0.5, 3.0]]), traits).tolist() == [4.0]

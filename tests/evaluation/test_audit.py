"""`masksim.evaluation.audit` and its commands: counting by hand, photos of one's own, killed
runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from conftest import make_natural, make_repositories
from masksim.checkpoint import DetectorFile, population_arrays
from masksim.cli.main import app
from masksim.data.manifest import REAL, Manifest
from masksim.detector import Detector
from masksim.errors import DataError, ModelError, UsageError
from masksim.evaluation import audit, calibrate
from masksim.evaluation.scale import Scale
from masksim.load import load_detector
from masksim.populations import BUILT_IN
from masksim.traits import TRAITS

runner = CliRunner()


def line(source: str, rate: float, level: str = "no evidence", *reasons: str) -> list[Any]:
    return [source, rate, level, "all", list(reasons)]


def summary(lines: list[list[Any]]) -> audit.Audit:
    return audit.summarise(lines, {}, detector="d", sha256="0", population=BUILT_IN)


# --- counting ------------------------------------------------------------------------------------


def test_alarms_are_counted_by_source_with_scipys_intervals() -> None:
    lines = [line("a", 0.01, "strong evidence")] * 3 + [line("a", 0.5)] * 57
    lines += [line("b", 0.05, "inconclusive", "unstable")] * 10 + [line("b", 0.0500001)] * 90
    lines += [line("c", 0.2)] * 5
    found = summary(lines)
    assert [(g.name, g.photos) for g in found.by_source] == [("b", 100), ("a", 60), ("c", 5)]
    assert [c.alarms for c in found.whole.claims] == [3, 13, 103]
    one = found.by_source[1].claims[0]
    assert (one.claimed, one.alarms, one.photos, one.rate) == (0.01, 3, 60, 0.05)
    assert one.interval.low == pytest.approx(stats.beta.ppf(0.025, 3, 58), abs=1e-9)
    assert one.interval.high == pytest.approx(stats.beta.ppf(0.975, 4, 57), abs=1e-9)
    assert one.held == "above"  # 1 % is under the interval
    five = found.by_source[0].claims[1]
    assert (five.alarms, five.held) == (10, "inside")
    assert found.by_source[0].claims[0].held == "inside"  # 0 of 100: up to 3.6 %
    assert found.by_source[0].claims[2].held == "above"
    assert found.reasons == {"unstable": 10}
    assert found.whole.verdicts == {"strong evidence": 3, "inconclusive": 10, "no evidence": 152}
    # Of two sources of at least 50 photos.
    assert found.held(0.01) == (1, 1, 2)
    assert found.held(0.05) == (2, 2, 2)


def test_a_rate_that_is_never_reached_is_below() -> None:
    found = summary([line("a", 1.0)] * 400)
    assert [claim.held for claim in found.whole.claims] == ["below"] * 3
    assert found.whole.grouped == ()  # one source
    assert found.exceeded == ()
    assert found.held(0.05) == (0, 1, 1)


def test_a_claim_counts_as_exceeded_only_with_photos_grouped_by_source() -> None:
    # One odd source of 40: as if independent 20 % is far above 10 %, by source it is not.
    lines = [line("odd", 0.001)] * 40 + [line(f"s{k % 4}", 0.9) for k in range(160)]
    found = summary(lines)
    assert found.whole.claims[2].held == "above"
    assert found.exceeded == ()
    # Alarms everywhere are.
    everywhere = [line(f"s{k % 20}", 0.001 if k % 3 else 0.9) for k in range(400)]
    assert summary(everywhere).exceeded == (0.01, 0.05, 0.1)


def test_tables() -> None:
    lines = [line("large", 0.9)] * 60 + [line(f"s{k % 5}", 0.04, "evidence") for k in range(20)]
    found = summary(lines)
    table = audit.table(found)
    assert [row[:2] for row in table.rows] == [
        ("all", 80),
        ("large", 60),
        ("5 of fewer than 50 photos", 20),
    ]
    assert table.rows[2][-2:] == (1.0, 0.0)
    assert "inside the interval of 1, not exceeded in 1 of 1 sources" in table.note
    for format in ("text", "markdown", "latex", "csv"):
        assert "large" in table.render(format)
    by = audit.table(found, by="stratum", smallest=1)
    assert [row[:2] for row in by.rows] == [("all", 80), ("all", 80)]
    json.dumps(found.to_dict(), allow_nan=False)


# --- real verdicts -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted set's photos of ``val`` in a folder a source, one of them twice, one broken."""
    root = tmp_path_factory.mktemp("photos")
    rows = [row for row in trained.manifest.select("val").rows if row.is_real]
    for row in rows:
        (root / row.source).mkdir(exist_ok=True)
        shutil.copy(trained.manifest.file(row), root / row.source / Path(row.path).name)
    first = trained.manifest.file(rows[0])
    shutil.copy(first, root / rows[1].source / ("copy" + first.suffix))
    (root / rows[0].source / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    small = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(small).save(root / rows[0].source / "small.png")
    return root


@pytest.mark.slow
def test_an_audit_gives_each_photo_its_verdict(trained: Any, photos: Path, tmp_path: Path) -> None:
    images, left_out = calibrate.photos_in([photos])
    assert left_out == {"duplicate": 1}
    found = audit.audit(trained.folder, images, cache=tmp_path)
    assert found.whole.photos == 24
    assert sorted(found.failures.values()) == ["too_small", "truncated"]
    detector = load_detector(trained.folder)
    rates: list[float] = []
    levels: list[str] = []
    for row in images.rows:
        if row.path not in found.failures:
            verdict = detector.detect(images.file(row)).verdict
            rate = verdict.false_positive_rate if verdict.as_found is None else verdict.as_found
            rates.append(rate or 0.0)
            levels.append(verdict.level)
    for claim in found.whole.claims:
        assert claim.alarms == sum(rate <= claim.claimed for rate in rates)
    assert found.whole.verdicts == {level: levels.count(level) for level in set(levels)}


def test_a_fragile_verdict_counts_by_its_rate_as_found(
    trained: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = calibrate.photos_in([photos])
    detect = Detector.detect

    def fragile(self: Detector, *args: Any, **options: Any) -> Any:
        found = detect(self, *args, **options)
        verdict = replace(found.verdict, false_positive_rate=0.9, as_found=0.04)
        return replace(found, verdict=verdict)

    monkeypatch.setattr(Detector, "detect", fragile)
    found = audit.audit(trained.folder, images, cache=tmp_path)
    assert [claim.alarms for claim in found.whole.claims] == [0, 24, 24]


@pytest.mark.slow
def test_a_photo_that_was_not_there_is_judged_when_it_is(
    trained: Any, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(photos, folder)
    images, _ = calibrate.photos_in([folder])
    missing = next(path for path in sorted(folder.rglob("*.png")) if path.name != "small.png")
    kept = missing.read_bytes()
    missing.unlink()
    first = audit.audit(trained.folder, images, cache=tmp_path / "c")
    assert "not_found" in first.failures.values()
    missing.write_bytes(kept)
    again = audit.audit(trained.folder, images, cache=tmp_path / "c")
    assert again.whole.photos == first.whole.photos + 1


@pytest.mark.slow
def test_an_audit_goes_on_where_it_was(
    trained: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masksim.data.chunks.SIZE", 5)
    images, _ = calibrate.photos_in([photos])
    images = Manifest(tuple(r for r in images.rows if "broken" not in r.path), images.root)
    whole = audit.audit(trained.folder, images, cache=tmp_path / "a")
    asked = 0
    detect = Detector.detect

    def dies(self: Detector, *args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 13:
            raise KeyboardInterrupt
        return detect(self, *args, **options)

    monkeypatch.setattr(Detector, "detect", dies)
    with pytest.raises(KeyboardInterrupt):
        audit.audit(trained.folder, images, cache=tmp_path / "b")
    again = audit.audit(trained.folder, images, cache=tmp_path / "b")
    assert again == whole
    assert asked < 13 + 20  # finished chunks are not judged again


def test_what_cannot_be_audited(trained: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no real photos"):
        audit.audit(trained.folder, Manifest((), tmp_path), cache=tmp_path)
    bare = replace(DetectorFile.load(trained.folder), calibration=None)
    bare.save(tmp_path / "bare")
    images, _ = calibrate.photos_in([photos])
    with pytest.raises(UsageError, match="calibrated"):
        audit.audit(tmp_path / "bare", images, cache=tmp_path)
    with pytest.raises(UsageError, match="no calibration 'own'"):
        audit.audit(trained.folder, images, cache=tmp_path, population="own")


# --- photos of one's own -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(trained: Any, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained detector, calibrated on these photos as well."""
    root = tmp_path_factory.mktemp("own")
    patch = pytest.MonkeyPatch()
    patch.setattr(calibrate, "FEWEST", 20)
    try:
        made, added = calibrate.calibrate(
            trained.folder, [photos], cache=root / "cache", name="desk"
        )
    finally:
        patch.undo()
    made.save(root / "detector")
    assert (added.photos, added.sources) == (24, 6)
    assert sum(added.skipped.values()) == 3
    assert any("strong evidence may be out of reach" in warning for warning in added.warnings)
    return root / "detector"


def test_the_file_tells_what_it_was_calibrated_on(trained: Any, own: Path) -> None:
    file = DetectorFile.load(own)
    (described,) = file.config["populations"]
    assert (described["name"], described["photos"], described["sources"]) == ("desk", 24, 6)
    assert len(described["added"]) == 10
    assert file.scores_sha256 == DetectorFile.load(trained.folder).scores_sha256
    assert file.sha256 != DetectorFile.load(trained.folder).sha256


def test_the_larger_rate_counts(trained: Any, own: Path, photos: Path) -> None:
    auto, desk, before = (
        load_detector(own),
        load_detector(own, population="desk"),
        load_detector(own, population=BUILT_IN),
    )
    assert list(auto.calibrations) == [BUILT_IN, "desk"]
    assert list(desk.calibrations) == ["desk"]
    asked = [path for path in sorted(photos.rglob("*.jpg")) if path.name != "broken.jpg"]
    assert len(asked) > 6
    for path in asked[:8]:
        rates = [d.detect(path).verdict.false_positive_rate for d in (auto, desk, before)]
        assert rates[0] == max(rates[1:])  # type: ignore[type-var]
        assert rates[2] == load_detector(trained.folder).detect(path).verdict.false_positive_rate
    assert desk.sample_size == 24
    with pytest.raises(UsageError, match="no calibration 'nowhere'"):
        load_detector(own, population="nowhere")


def test_what_is_measured_is_what_verdicts_claim(own: Path, photos: Path) -> None:
    from masksim.image import load_image

    detector = load_detector(own, stability=False)
    scale = Scale.of_detector(detector)
    assert scale.calibration is not None
    asked = [path for path in sorted(photos.rglob("*.jpg")) if path.name != "broken.jpg"]
    assert len(asked) > 6
    for path in asked[:6]:
        loaded = load_image(path, part=detector.analysed_part)
        scores, traits = detector.measure_pixels(
            loaded.pixels, loaded.facts.jpeg_quality, loaded.facts.format
        )
        measured = scale.calibration.all_rates(scores[None], traits[None])[1][0]
        assert measured == detector.detect(path).verdict.false_positive_rate


def test_a_population_is_replaced_by_name(
    own: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "FEWEST", 5)
    folder = next(path for path in sorted(photos.iterdir()) if path.is_dir())
    made, _ = calibrate.calibrate(own, [photos], cache=tmp_path, name="desk")
    assert [p["name"] for p in made.config["populations"]] == ["desk"]
    monkeypatch.setattr(calibrate, "FEWEST", 2)
    more, added = calibrate.calibrate(own, [folder], cache=tmp_path, name="other")
    assert [p["name"] for p in more.config["populations"]] == ["desk", "other"]
    assert added.sources == 1
    assert any("one source" in w or "1 source" in w for w in added.warnings)
    saved = more.save(tmp_path / "d")
    assert list(Detector(saved).calibrations) == [BUILT_IN, "desk", "other"]


def test_photos_of_one_source_do_not_widen_what_is_usual(
    trained: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "FEWEST", 2)
    folder = next(path for path in sorted(photos.iterdir()) if path.is_dir())
    made, _ = calibrate.calibrate(trained.folder, [folder], cache=tmp_path)
    assert Detector(made)._seen.photos == load_detector(trained.folder)._seen.photos
    small = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    reasons = Detector(made).detect(small).verdict.reasons
    assert "too_small" in [reason.code for reason in reasons]


def test_too_few_photos_and_bad_names(trained: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 100") as caught:
        calibrate.calibrate(trained.folder, [photos], cache=tmp_path)
    assert caught.value.code == "too_few_images"
    for name in ("", " ", BUILT_IN, "auto", "a\nb"):
        with pytest.raises(UsageError, match="cannot be named"):
            calibrate.calibrate(trained.folder, [photos], cache=tmp_path, name=name)


@pytest.mark.parametrize(
    ("populations", "arrays"),
    [
        ([{"name": "a"}], {}),
        ([{"name": 3}], {}),
        (None, {}),
        (5, {}),
        ([], {"own_traits": np.full((64, 8), np.inf)}),
        (["a"], {}),
        ([{"name": BUILT_IN}], {"photos_1_similarities": np.zeros((5, 2))}),
        ([], {"photos_1_similarities": np.zeros((5, 2))}),
        ([{"name": "a"}], {"photos_1_similarities": np.zeros((5, 3))}),
        ([{"name": "a"}], {"photos_1_similarities": np.full((5, 2), np.nan)}),
        (
            [{"name": "a"}],
            {"photos_1_similarities": np.zeros((5, 2)), "photos_1_traits": np.zeros((5, 3))},
        ),
    ],
)
def test_tampered_populations_are_refused(
    trained: Any, populations: Any, arrays: dict[str, Any]
) -> None:
    file = DetectorFile.load(trained.folder)
    changed = replace(
        file,
        config={**file.config, "populations": populations},
        calibration={**(file.calibration or {}), **arrays},
    )
    with pytest.raises(ModelError) as caught:
        Detector(changed)
    assert caught.value.code == "model_invalid"


# --- the commands --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_audit(trained: Any, photos: Path, tmp_path: Path) -> None:
    base = ["audit", str(trained.folder), "--cache", str(tmp_path)]
    done = runner.invoke(app, [*base, "--real", str(photos)])
    assert done.exit_code == 0, done.output
    assert "by source" in done.stdout
    assert "photos left out" in done.stderr
    done = runner.invoke(app, [*base, "--real", str(photos), "--json", "--quick"])
    found = json.loads(done.stdout)
    assert found["whole"]["photos"] == 24
    assert found["left_out"] == {"duplicate": 1}
    done = runner.invoke(app, [*base, "--real", str(photos), "--format", "csv", "--by", "stratum"])
    assert done.stdout.startswith("photos_of,photos,alarms_1")
    for wrong in ([], ["--real", str(photos), "--manifest", "x.csv"]):
        assert runner.invoke(app, [*base, *wrong]).exit_code == 2
    assert runner.invoke(app, [*base, "--real", str(tmp_path / "no")]).exit_code == 5


def test_strict_tells_by_the_exit_code(
    trained: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(f"s{k % 20}", 0.001) for k in range(400)]
    monkeypatch.setattr(audit, "audit", lambda *args, **options: summary(lines))
    base = ["audit", str(trained.folder), "--real", str(photos), "--cache", str(tmp_path)]
    done = runner.invoke(app, base)
    assert done.exit_code == 0
    assert "claimed rate of 1 % is exceeded" in done.stderr
    assert runner.invoke(app, [*base, "--strict"]).exit_code == 1


def test_the_command_calibrate(
    trained: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["calibrate", str(trained.folder), "--real", str(photos), "--cache", str(tmp_path / "c")]
    out = ["--out", str(tmp_path / "d")]
    done = runner.invoke(app, [*base, *out])
    assert done.exit_code == 5
    assert "24 different photos could be analysed (left out: " in done.stderr
    assert not set("{}") & set(done.stderr)  # no form of the language's own
    monkeypatch.setattr(calibrate, "FEWEST", 20)
    done = runner.invoke(app, [*base, *out, "--name", "desk", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["photos"] == 24
    assert runner.invoke(app, [*base, *out]).exit_code == 2  # is there
    image = next(photos.rglob("*.jpg"))
    for path in photos.rglob("*.jpg"):
        if path.name != "broken.jpg":
            image = path
    ask = ["detect", str(image), "--model", str(tmp_path / "d"), "--json"]
    asked = runner.invoke(app, [*ask, "--population", "desk"])
    assert json.loads(asked.stdout)["verdict"]["sample_size"] == 24
    assert runner.invoke(app, [*ask, "--population", "none"]).exit_code == 2
    shown = runner.invoke(app, ["info", "--model", str(tmp_path / "d"), "--json"])
    assert json.loads(shown.stdout)["calibration"]["populations"]["desk"] == [
        {"stratum": "all", "photos": 24, "sources": 6}
    ]


# --- heads for each band of compression ----------------------------------------------------------


@pytest.fixture(scope="module")
def band_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bands")
    make_repositories(folder, {REAL: (6, 4)}, size=(304, 336), seed=11)
    pixels = make_natural(304, 336, seed=5)
    for quality in (75, 55):
        Image.fromarray(pixels).save(folder / f"{REAL}-11-0" / f"q{quality}.jpg", quality=quality)
    Image.fromarray(pixels).save(folder / f"{REAL}-11-1" / "w.webp", quality=80)
    return folder


def test_photos_of_ones_own_with_a_learned_number(
    banded: Any, band_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "FEWEST", 20)
    made, added = calibrate.calibrate(banded.folder, [band_photos], cache=tmp_path, name="desk")
    made.save(tmp_path / "detector")
    assert (added.photos, added.sources) == (27, 6)
    # One learned number is one test, however many generators there are.
    assert any("which needs 183 photos" in warning for warning in added.warnings)
    arrays = made.calibration
    assert arrays is not None
    for key, values in banded.file.calibration.items():
        np.testing.assert_array_equal(arrays[key], values)
    scores, traits, _ = (arrays[name] for name in population_arrays(1))
    band = traits[:, TRAITS.index("band")]
    assert {int(b): int((band == b).sum()) for b in range(5)} == {0: 16, 1: 8, 2: 1, 3: 1, 4: 1}
    quality = traits[:, TRAITS.index("quality")]
    assert {75.0, 55.0} <= set(quality.tolist())
    auto = load_detector(tmp_path / "detector", threads=1)
    assert all(c.learned is not None for c in auto.calibrations.values())
    desk = load_detector(tmp_path / "detector", threads=1, population="desk", stability=False)
    learned = auto.calibrations["desk"].learned
    assert learned is not None
    among = learned(scores.astype(float), traits.astype(float))
    for path in [*sorted(band_photos.rglob("*.webp")), *sorted(band_photos.rglob("q*.jpg"))]:
        # A photo's own row: its scores are those of the whole route of a file.
        found = desk.detect(path)
        mine = np.array([next(s.similarity for s in found.scores if s.generator == g)
                         for g in desk.generators])  # fmt: skip
        at = int(np.abs(scores - mine).sum(axis=1).argmin())
        np.testing.assert_allclose(scores[at], mine, atol=1e-6)
        number = learned(mine[None], traits[at].astype(float)[None])[0]
        expected = (1 + (among >= number - 1e-9).sum()) / 28
        assert found.verdict.false_positive_rate == pytest.approx(expected, abs=1 / 28 + 1e-9)
        both = auto.detect(path).verdict
        known = load_detector(banded.folder, threads=1).detect(path).verdict
        assert both.rate_as_found >= known.rate_as_found  # type: ignore[operator]


def test_an_audit_with_a_learned_number(banded: Any, band_photos: Path, tmp_path: Path) -> None:
    images, _ = calibrate.photos_in([band_photos])
    found = audit.audit(banded.folder, images, cache=tmp_path)
    assert found.whole.photos == 27
    assert found.whole.claims[-1].rate <= found.whole.claims[-1].claimed + 0.35
    assert not found.failures
    detector = load_detector(banded.folder, threads=1)
    rates = [detector.detect(images.file(row)).verdict.rate_as_found for row in images.rows]
    for claim in found.whole.claims:
        assert claim.alarms == sum(rate <= claim.claimed for rate in rates)  # type: ignore[operator]

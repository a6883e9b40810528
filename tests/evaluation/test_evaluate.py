"""`masksim.evaluation.scoring`: scores are saved once, and every figure comes from them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from masksim import metrics
from masksim.augment import rng_for
from masksim.cli.main import app
from masksim.data.manifest import REAL, Manifest, write_manifest
from masksim.detector import load_detector
from masksim.errors import DataError, UsageError
from masksim.evaluation import degrade, protocols
from masksim.evaluation import scoring as evaluate
from masksim.image import load_image
from masksim.traits import TRAITS


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def table(trained: Any, cache: Path) -> evaluate.ScoreTable:
    return evaluate.score_manifest(trained.folder, trained.manifest.select("val"), cache=cache)


@pytest.fixture(scope="module")
def measured(trained: Any, table: evaluate.ScoreTable) -> dict[str, Any]:
    return evaluate.measure(
        table,
        load_detector(trained.folder),
        shares=trained.config.views.shares,
        seen=evaluate.seen_in_training(trained.manifest),
        samples=30,
    )


def test_scores_are_the_detectors(trained: Any, table: evaluate.ScoreTable) -> None:
    detector = load_detector(trained.folder)
    found = evaluate.score_manifest(
        trained.folder,
        Manifest(trained.manifest.select("val").rows[:3], trained.manifest.root),
        cache=trained.cache,
        purpose="as found",
    )
    assert len(found.filenames) == 3
    assert set(found.processing.tolist()) == {""}
    for name, scores in zip(found.filenames, found.similarities, strict=True):
        # As found, and smaller than the region: the file itself.
        seen = {
            s.generator: s.similarity for s in detector.detect(found_file(trained, name)).scores
        }
        np.testing.assert_allclose(scores, [seen[g] for g in found.generators], rtol=1e-6)
    assert not table.failures
    assert all("jpeg" in done for done in table.processing)


def found_file(trained: Any, name: str) -> Path:
    return Path(trained.manifest.root) / name


def test_a_killed_run_goes_on_to_the_same_table(
    trained: Any, table: evaluate.ScoreTable, cache: Path
) -> None:
    folder = next(cache.glob("scores-*"))
    chunks = sorted(folder.glob("*.json"))
    kept = chunks[0].stat().st_mtime_ns
    chunks[-1].unlink()
    again = evaluate.score_manifest(
        trained.folder, trained.manifest.select("val"), cache=cache, workers=2
    )
    assert again.to_csv() == table.to_csv()
    assert chunks[0].stat().st_mtime_ns == kept


def test_the_table_is_the_fields_csv(table: evaluate.ScoreTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert list(rows[0])[:2] == ["filename", "typ"]
    assert len(rows) == len(table.filenames)
    assert [float(r["grid"]) for r in rows] == pytest.approx(
        table.similarities[:, table.generators.index("grid")].tolist(), rel=1e-6
    )


def test_figures_from_the_saved_scores(
    table: evaluate.ScoreTable, measured: dict[str, Any], trained: Any
) -> None:
    assert set(measured["specific"]) == {"grid", "ring"}
    for g, name in enumerate(table.generators):
        row = measured["specific"][name]
        assert row["auroc"]["low"] <= row["auroc"]["value"] <= row["auroc"]["high"]
        assert row["auroc"]["value"] > 0.95
        # One history only among the reals and the generator: no weights, plain AUROC.
        if len(set(table.histories[np.isin(table.typ, (name, REAL))])) == 1:
            rows = np.isin(table.typ, (name, REAL))
            assert row["auroc"]["value"] == pytest.approx(
                metrics.auroc(table.similarities[rows, g], table.typ[rows] == name)
            )
    alarms = measured["false_alarms"]
    assert alarms["all"]["views"] == int((table.typ == REAL).sum())
    assert sum(row["views"] for row in alarms["by_source"].values()) == alarms["all"]["views"]
    for name in ("grid", "ring"):
        assert sum(measured["attribution"][name].values()) == int((table.typ == name).sum())
    json.dumps(measured, allow_nan=False)


def test_seen_sources_are_left_out_of_the_unseen_figures(
    table: evaluate.ScoreTable, trained: Any
) -> None:
    source = str(table.sources[table.typ == "grid"][0])
    part = evaluate.measure(
        table,
        load_detector(trained.folder),
        shares=trained.config.views.shares,
        seen=frozenset({("grid", source), *(("ring", s) for s in set(table.sources.tolist()))}),
        samples=10,
    )
    everything = part["specific"]["grid"]["synthetic_images"]
    own = len(set(table.filenames[(table.typ == "grid") & (table.sources == source)].tolist()))
    if own < everything:
        assert part["unseen"]["grid"]["synthetic_images"] == everything - own
    assert "ring" not in part["unseen"]
    assert "| none |" in evaluate.to_markdown(part)


def test_pages(measured: dict[str, Any], table: evaluate.ScoreTable, trained: Any) -> None:
    pages = evaluate.pages(measured)
    for page in pages.values():
        for block in page.split("\n\n"):
            widths = {line.count("|") for line in block.splitlines()}
            assert len(widths) == 1, block
    found = evaluate.measure_as_found(table, load_detector(trained.folder))
    summary = evaluate.summary_markdown(measured, found)
    assert summary.count("\n") == 2 + 2 + 1
    assert f"| {found[REAL]['images']} |" in summary
    assert len({line.count("|") for line in evaluate.as_found_markdown(found).splitlines()}) == 1


def test_a_split_without_the_detectors_generators(table: evaluate.ScoreTable, trained: Any) -> None:
    other = replace(table, typ=np.where(table.typ == REAL, REAL, "mygen"))
    with pytest.raises(DataError, match=r"mygen.*grid"):
        evaluate.measure(
            other, load_detector(trained.folder), shares=trained.config.views.shares, samples=10
        )


def test_train_and_evaluate_on_the_command_line(trained: Any, tmp_path: Path) -> None:
    manifest = Path(trained.manifest.root) / "manifest-cli.csv"
    write_manifest(manifest, trained.manifest.rows)
    runner = CliRunner()
    arguments = ["evaluate", "--manifest", str(manifest), "--model", str(trained.folder)]
    arguments += ["--cache", str(tmp_path / "cache"), "--samples", "10", "--json"]
    out = tmp_path / "out"
    result = runner.invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document["specific"]["rows"]) == {"grid", "ring"}
    assert document["images"] == {"grid": 8, "ring": 8, REAL: 24}
    # All sources of `val` are its own.
    assert set(document["unseen"]["rows"]) == {"grid", "ring"}
    assert document == json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {p.name for p in out.iterdir()} == {
        "scores.csv", "results.json", "results.md", "tables",
    }  # fmt: skip
    for name in ("specific", "generic", "leave-one-out", "confusion", "by-source", "by-history"):
        assert {p.suffix for p in (out / "tables").glob(f"{name}.*")} == {".csv", ".tex", ".txt"}
    # The saved scores give the same figures, without the images.
    saved = ["evaluate", "--scores", str(out / "scores.csv"), "--manifest", str(manifest)]
    saved += ["--model", str(trained.folder), "--samples", "10", "--json"]
    again = json.loads(runner.invoke(app, saved).stdout)
    assert again["generic"]["rows"].keys() == document["generic"]["rows"].keys()
    for name, row in document["specific"]["rows"].items():
        for key in ("auroc", "mcc", "tpr_5", "fpr_5", "cllr"):
            assert again["specific"]["rows"][name][key]["value"] == pytest.approx(
                row[key]["value"], abs=1e-5
            )
    config = tmp_path / "config.toml"
    config.write_text('name = "x"\nsurprise = 1\n', encoding="utf-8")
    result = runner.invoke(
        app, ["train", str(config), "--manifest", str(manifest), "--out", str(tmp_path / "d")]
    )
    assert result.exit_code == 2
    assert "surprise" in result.stderr
    copy = shutil.copytree(trained.folder, tmp_path / "there")
    config.write_text('name = "x"\n', encoding="utf-8")
    result = runner.invoke(
        app, ["train", str(config), "--manifest", str(manifest), "--out", str(copy)]
    )
    assert result.exit_code == 2
    assert "is there; --overwrite replaces it" in result.stderr


# --- tables from scores --------------------------------------------------------------------------


def few(trained: Any, per_class: int = 2) -> Manifest:
    return evaluate.bounded(trained.manifest.select("val"), per_class)


def test_the_scale_is_the_detectors(trained: Any) -> None:
    detector = load_detector(trained.folder)
    scale = evaluate.scale_of(detector)
    found = detector.detect(found_file(trained, trained.manifest.rows[0].path))
    scores = {s.generator: s for s in found.scores}
    similarity = np.array([[scores[g].similarity for g in scale.generators]])
    odds = scale.log_odds(similarity)
    assert odds is not None
    p = [scores[g].probability for g in scale.generators]
    np.testing.assert_allclose(1 / (1 + np.exp(-odds[0])), p, rtol=1e-4)
    empty = np.array([""])
    one = evaluate.ScoreTable(*(empty,) * 6, scale.generators, similarity)
    rate = protocols.joint_evidence(one, scale).rate
    assert rate is not None
    assert found.verdict.false_positive_rate == pytest.approx(rate[0])


def test_protocols_agree_with_the_model_card(
    trained: Any, table: evaluate.ScoreTable, measured: dict[str, Any]
) -> None:
    found = evaluate.measure_table(
        table, evaluate.scale_of(load_detector(trained.folder)),
        shares=trained.config.views.shares, samples=10,
        seen=evaluate.seen_in_training(trained.manifest),
    ).data  # fmt: skip
    for ours, theirs in (("specific", "specific"), ("unseen", "unseen"), ("generic", "generic")):
        for name, row in measured[theirs].items():
            assert found[ours]["rows"][name]["auroc"].value == pytest.approx(row["auroc"]["value"])
            assert found[ours]["rows"][name]["synthetic_images"] == row["synthetic_images"]
    # The planted patterns have nothing in common: another's head knows nothing of them.
    own = found["specific"]["mean"]["auroc"].value
    assert found["leave-one-out"]["mean"]["auroc"].value < own
    assert found["confusion"]["grid"]["named"]["grid"] > 0.5
    assert "histories" in found


def test_bounded_takes_turns_among_sources(trained: Any) -> None:
    chosen = few(trained, 6)
    counts = chosen.counts()["val"]
    assert counts == {"grid": 6, "ring": 6, REAL: 6}
    assert len({row.source for row in chosen.rows if row.generator == REAL}) == 6
    assert few(trained, 6).rows == chosen.rows
    assert {row.path for row in few(trained, 3).rows} < {row.path for row in chosen.rows}
    more = evaluate.bounded(trained.manifest.select("val"), 2, reals=9)
    assert more.counts()["val"] == {"grid": 2, "ring": 2, REAL: 9}
    with pytest.raises(UsageError, match="at least one"):
        few(trained, 0)


def test_degraded_files(trained: Any, tmp_path: Path) -> None:
    detector = load_detector(trained.folder)
    manifest = few(trained)
    steps = degrade.select(["none", "jpeg-70", "resize-0.25"])
    seen: list[tuple[str, int, int]] = []
    found = evaluate.score_degraded(
        trained.folder, manifest, steps, cache=tmp_path, progress=lambda *step: seen.append(step)
    )
    assert list(found) == ["none", "jpeg-70", "resize-0.25"]
    # 576 x 540 pixels, a quarter of it: too small, which is no reason to stop.
    assert set(found["resize-0.25"].failures.values()) == {"too_small"}
    assert len(found["resize-0.25"].typ) == 0
    row = next(r for r in manifest.rows if r.path == found["jpeg-70"].filenames[0])
    pixels = load_image(manifest.file(row)).pixels
    for name in ("none", "jpeg-70"):
        rng = rng_for(0, row.sha256 or row.path, "degrade", name)
        expected = detector.similarities(degrade.GRID[name].apply(pixels, rng))
        at = int(np.flatnonzero(found[name].filenames == row.path)[0])
        np.testing.assert_allclose(found[name].similarities[at], expected, rtol=1e-6)
    # Done is done, also what will always be too small; the same whatever was interrupted.
    again: list[tuple[str, int, int]] = []
    second = evaluate.score_degraded(
        trained.folder, manifest, steps, cache=tmp_path, progress=lambda *step: again.append(step)
    )
    assert {done for _, done, count in again} == {1}
    assert second["jpeg-70"].to_csv() == found["jpeg-70"].to_csv()
    rows = evaluate.measure_degradations(found, evaluate.scale_of(detector), samples=10)
    data = rows.data["degradations"]
    assert data["none"]["real_images"] == 2
    assert data["resize-0.25"]["generic_auroc"] is None
    assert len(data["resize-0.25"]["failures"]) == 6
    assert rows.tables[0].rows[0][0] == "none"


PEER = """
def mean(images):
    if any(image.std() < LEAST for image in images):
        raise ValueError("too flat")
    return [float(image.mean()) for image in images]
"""


def test_a_peer_scores_the_same_views(
    trained: Any, table: evaluate.ScoreTable, tmp_path: Path
) -> None:
    manifest = trained.manifest.select("val")
    views = evaluate.views_of(load_detector(trained.folder))
    program = tmp_path / "peer.py"
    program.write_text("LEAST = 0\n" + PEER, encoding="utf-8")
    found = evaluate.score_peer(f"mean={program}:mean", manifest, cache=tmp_path, config=views)
    both = table.joined(found)
    assert both.generators == (*table.generators, "mean")
    assert not np.isnan(both.similarities).any()
    assert found.processing.tolist() == table.processing.tolist()
    results = evaluate.measure_table(
        both, evaluate.scale_of(load_detector(trained.folder)), chosen=(), peers=["mean"],
        samples=10,
    )  # fmt: skip
    opinions = results.data["second opinions"]
    assert opinions["masksim"]["auroc"].value > opinions["mean"]["auroc"].value
    program.write_text("LEAST = 999\n" + PEER, encoding="utf-8")
    with pytest.raises(DataError, match="none of the images"):
        evaluate.score_peer(
            f"mean={program}:mean", few(trained), cache=tmp_path / "other", config=views
        )  # fmt: skip


# --- the original's scores -----------------------------------------------------------------------


def write_original(folder: Path, *, text_only: bool = False) -> dict[tuple[str, str], list[float]]:
    """Write what the original's evaluate.py leaves: probabilities by numpy and by json."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    trained = ("dalle2", "sd1", "sdxl")
    scores = {}
    for test in (REAL, *trained):
        n = 30 if test == REAL else 20
        for name in trained:
            p = np.round(rng.beta(5 if test == name else 1, 2, size=n), 6)
            scores[test, name] = p.tolist()
            np.savetxt(folder / f"{test}_to_{name}.txt", p)
            where = "raise" if test == REAL else f"synthbuster/{test}"
            pairs = [(f"processed_data/JPEG_Qrandom/{where}/{i}.png", v) for i, v in enumerate(p)]
            if not text_only:
                (folder / f"{test}_to_{name}.json").write_text(json.dumps(pairs, indent=2))
    return scores


@pytest.mark.parametrize("text_only", [False, True])
def test_score_folders_of_the_original(tmp_path: Path, text_only: bool) -> None:
    folder = tmp_path / "output/score/JPEG_Qrandom_w512/JPEG_Qrandom/newsynth"
    scores = write_original(folder, text_only=text_only)
    for top in (folder, tmp_path / "output"):
        table = evaluate.read_original_scores(top)
        assert table.generators == ("dalle2", "sd1", "sdxl")
        for (test, name), values in scores.items():
            column = table.generators.index(name)
            np.testing.assert_allclose(table.similarities[table.typ == test, column], values)
    assert len(set(table.filenames.tolist())) == 90
    if not text_only:
        assert set(table.sources[table.typ == REAL].tolist()) == {"raise"}
    found = protocols.run_protocol(
        table, protocols.Scale.of_table(table), "specific", samples=10
    )["rows"]["sd1"]  # fmt: skip
    real, fake = np.array(scores[REAL, "sd1"]), np.array(scores["sd1", "sd1"])
    right = (fake > 0.5).sum() + (real <= 0.5).sum()
    assert found["accuracy"].value == pytest.approx(right / 50)


def test_score_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        evaluate.read_original_scores(tmp_path)
    write_original(tmp_path / "a/newsynth")
    (tmp_path / "a/newsynth/sd1_to_sdxl.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"sd1_to_sdxl\.json is not a list"):
        evaluate.read_original_scores(tmp_path)
    (tmp_path / "a/newsynth/sd1_to_sdxl.json").unlink()
    (tmp_path / "a/newsynth/sd1_to_sdxl.txt").unlink()
    with pytest.raises(DataError, match="no scores sd1_to_sdxl"):
        evaluate.read_original_scores(tmp_path)
    write_original(tmp_path / "b/newsynth")
    with pytest.raises(DataError, match="one folder"):
        evaluate.read_original_scores(tmp_path)


def test_real_scores_for_a_calibration(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "real.csv.gz"
    path.write_bytes(gzip.compress(b"image,population,sd1,sd2\na,coco,0.1,0.2\nb,ffhq,0.3,0.4\n"))
    assert evaluate.read_real_scores(path, ("sd2", "sd1")).tolist() == [[0.2, 0.1], [0.4, 0.3]]
    plain = tmp_path / "scores.csv"
    plain.write_text("filename,typ,sd1\na,real,0.5\nb,sd1,0.9\n", encoding="utf-8")
    assert evaluate.read_real_scores(plain, ("sd1",)).tolist() == [[0.5]]
    for text, message in (
        ("filename,sd2\na,1\n", "no column sd1"),
        ("filename,sd1\na,x\n", "not a number"),
        ("filename,sd1\na,nan\n", "no finite"),
        ("filename,sd1\n", "no finite"),
    ):
        plain.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            evaluate.read_real_scores(plain, ("sd1",))
    with pytest.raises(DataError, match="cannot read"):
        evaluate.read_scores(tmp_path / "nothing.csv")


# --- the command line ----------------------------------------------------------------------------


def test_saved_scores_on_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_original(tmp_path / "scores")
    runner = CliRunner()
    arguments = ["evaluate", "--original-scores", str(tmp_path / "scores"), "--samples", "10"]
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--pictures"])
    assert result.exit_code == 0, result.output
    assert "Leave-one-out" in result.stdout
    assert "TPR" not in result.stdout
    pictures = {p.name for p in (tmp_path / "out/pictures").iterdir()}
    assert pictures == {
        f"{kind}-{protocol}.png"
        for kind in ("roc", "scores", "reliability")
        for protocol in protocols.PROTOCOLS
    }
    for path in (tmp_path / "out/pictures").iterdir():
        assert load_image(path).pixels.std() > 5
    # Its own table is read again, with a column as a peer and reals as a calibration.
    saved = ["evaluate", "--scores", str(tmp_path / "out/scores.csv"), "--samples", "10"]
    saved += ["--peer", "sdxl", "--calibration", str(tmp_path / "out/scores.csv")]
    result = runner.invoke(app, [*saved, "--protocol", "generic", "--format", "csv"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# generic\ngenerator,")
    assert "tpr_5" in result.stdout
    assert "# second-opinions" in result.stdout
    for format, sign in (("markdown", "| generator |"), ("latex", r"\begin{tabular}")):
        result = runner.invoke(app, [*saved, "--format", format])
        assert sign in result.stdout


def test_degradations_on_the_command_line(trained: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    manifest = Path(trained.manifest.root) / "manifest-degrade.csv"
    write_manifest(manifest, few(trained).rows)
    program = tmp_path / "peer.py"
    program.write_text("LEAST = 0\n" + PEER, encoding="utf-8")
    result = CliRunner().invoke(
        app,
        ["evaluate", "--manifest", str(manifest), "--model", str(trained.folder), "--cache",
         str(tmp_path / "cache"), "--samples", "10", "--protocol", "none", "--degrade",
         "blur", "--per-class", "1", "--peer", f"mean={program}:mean", "--out",
         str(tmp_path / "out"), "--pictures"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "blur-0.5" in result.stdout
    assert "none" in result.stdout
    assert "Second opinions" in result.stdout
    assert "Specific:" not in result.stdout
    pictures = {p.name for p in (tmp_path / "out/pictures").iterdir()}
    assert pictures == {
        "degradations.png", "degradation-curves.png", "pattern-grid.png", "pattern-ring.png",
    }  # fmt: skip
    assert "mean" in (tmp_path / "out/scores.csv").read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what is to be measured"),
        (["--original-scores", "x", "--scores", "y"], "no --manifest"),
        (["--scores", "y", "--degrade", "all"], "--degrade needs images"),
        (["--manifest", "m", "--per-class", "3"], "--per-class"),
        (["--manifest", "m", "--degrade", "jpg"], "no degradation 'jpg'"),
        (["--scores", "y", "--peer", "a=b:c"], "a peer scores images"),
        (["--manifest", "m", "--peer", "a"], "NAME=SPEC"),
        (["--manifest", "m", "--pictures"], "give --out"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


# --- heads for each band of compression ----------------------------------------------------------


def band_column(table: Any) -> list[int]:
    return [int(band) for band in table.traits[:, TRAITS.index("band")]]


def test_scores_are_those_of_each_files_band(banded: Any, tmp_path: Path) -> None:
    detector = load_detector(banded.folder, threads=1)
    chosen = evaluate.bounded(banded.manifest, 4)
    table = evaluate.score_manifest(banded.folder, chosen, cache=tmp_path, purpose="as found")
    assert set(band_column(table)) == {0, 1}
    assert table.traits is not None
    for name, scores, traits in zip(table.filenames, table.similarities, table.traits, strict=True):
        found = detector.detect(chosen.root / str(name))
        mine = {s.generator: s for s in found.scores}
        for g, generator in enumerate(table.generators):
            assert mine[generator].similarity == pytest.approx(scores[g], abs=1e-6)
        # The joint rate is the verdict's, probabilities are the heads' of the band.
        rates = detector.rates(scores, traits)
        assert rates is not None
        assert rates.joint == pytest.approx(found.verdict.as_found or rates.joint)
        odds = evaluate.scale_of(detector).log_odds(scores[None], traits[None])
        assert odds is not None
        p = [mine[generator].probability for generator in table.generators]
        np.testing.assert_allclose(1 / (1 + np.exp(-odds[0])), p, rtol=1e-3)
    results = evaluate.measure_table(table, evaluate.scale_of(detector), samples=10)
    assert results.tables


def test_degraded_files_have_the_band_of_their_last_compression(
    banded: Any, tmp_path: Path
) -> None:
    chosen = evaluate.bounded(banded.manifest, 2)
    steps = degrade.select(["none", "jpeg-90", "jpeg-70", "jpeg-50", "webp-80", "blur-1"])
    found = evaluate.score_degraded(banded.folder, chosen, steps, cache=tmp_path)
    bands = {name: set(band_column(table)) for name, table in found.items()}
    assert bands.pop("none") <= {0, 1}
    assert bands == {"jpeg-90": {1}, "jpeg-70": {2}, "jpeg-50": {3}, "webp-80": {4}, "blur-1": {0}}
    quality = found["jpeg-70"].traits[:, TRAITS.index("quality")]  # type: ignore[index]
    assert set(quality.tolist()) == {70.0}
    assert np.isnan(found["webp-80"].traits[:, TRAITS.index("quality")]).all()  # type: ignore[index]

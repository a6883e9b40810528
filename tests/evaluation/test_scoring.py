"""`masksim.evaluation.scoring` and `masksim evaluate`: scored once, everything from the table."""

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
from masksim.data.weights import history_weights
from masksim.errors import DataError, UsageError
from masksim.evaluation import degrade, protocols, scoring
from masksim.evaluation.breakdowns import break_down, confusion
from masksim.evaluation.evaluate import Results, measure_degradations, measure_table, plain
from masksim.evaluation.measures import Evaluation
from masksim.evaluation.scale import Scale, combine_all
from masksim.evaluation.score_table import ScoreTable
from masksim.image import load_image
from masksim.load import load_detector
from masksim.traits import BANDS, TRAITS
from masksim.verdict import decide
from planted_scores import write_original


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def table(trained: Any, cache: Path) -> ScoreTable:
    return scoring.score_manifest(trained.folder, trained.manifest.select("val"), cache=cache)


@pytest.fixture(scope="module")
def measured(trained: Any, table: ScoreTable) -> Results:
    scale = Scale.of_detector(load_detector(trained.folder))
    given = Evaluation.of(table, scale, trained.config.views.shares, samples=30)
    return measure_table(given, seen=scoring.seen_in_training(trained.manifest))


def test_scores_are_the_detectors(trained: Any, table: ScoreTable) -> None:
    detector = load_detector(trained.folder)
    found = scoring.score_manifest(
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
    trained: Any, table: ScoreTable, cache: Path
) -> None:
    folder = next(cache.glob("scores-*"))
    chunks = sorted(folder.glob("0*.json"))
    kept = chunks[0].stat().st_mtime_ns
    chunks[-1].unlink()
    again = scoring.score_manifest(
        trained.folder, trained.manifest.select("val"), cache=cache, workers=2
    )
    assert again.to_csv() == table.to_csv()
    assert chunks[0].stat().st_mtime_ns == kept


def test_the_table_is_the_fields_csv(table: ScoreTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert list(rows[0])[:2] == ["filename", "typ"]
    assert len(rows) == len(table.filenames)
    assert [float(r["grid"]) for r in rows] == pytest.approx(
        table.similarities[:, table.generators.index("grid")].tolist(), rel=1e-6
    )


def test_figures_from_the_saved_scores(table: ScoreTable, measured: Results) -> None:
    rows = measured.data["specific"]["rows"]
    assert set(rows) == {"grid", "ring"}
    for g, name in enumerate(table.generators):
        area = rows[name]["auroc"]
        assert area.low <= area.value <= area.high
        assert area.value > 0.95
        # One history only among the reals and the generator: no weights, plain AUROC.
        if len(set(table.histories[np.isin(table.typ, (name, REAL))])) == 1:
            chosen = np.isin(table.typ, (name, REAL))
            assert area.value == pytest.approx(
                metrics.auroc(table.similarities[chosen, g], table.typ[chosen] == name)
            )
    # All sources of `val` are its own.
    assert measured.data["unseen"]["rows"].keys() == rows.keys()
    # The planted patterns have nothing in common: another's head knows nothing of them.
    own = measured.data["specific"]["mean"]["auroc"].value
    assert measured.data["leave-one-out"]["mean"]["auroc"].value < own
    assert measured.data["histories"]["pairs"]
    json.dumps(plain(measured.data), allow_nan=False)


def test_who_is_named_for_whose_views(trained: Any, table: ScoreTable, measured: Results) -> None:
    detector = load_detector(trained.folder)
    named = measured.data["confusion"]["grid"]["named"]
    # As in verdicts: where the interval of a rate reaches too far it is no evidence.
    assert table.traits is not None
    own = np.flatnonzero(table.typ == "grid")
    levels = []
    for k in own:
        rates = detector.rates(table.similarities[k], table.traits[k])
        levels.append(decide(table.generators, table.similarities[k].tolist(), rates).level)
    silent = ~np.isin(levels, ("evidence", "strong evidence"))
    weights = history_weights(table.histories, [table.typ == "grid"], trained.config.views.shares)[
        own
    ]
    assert named["no evidence"] == pytest.approx(weights[silent].sum())
    assert sum(named.values()) == pytest.approx(1)
    # Without photos to rank among, the most probable head.
    bare = replace(Scale.of_detector(detector), calibration=None, attribution=None)
    assert confusion(Evaluation.of(table, bare))["grid"]["named"]["grid"] > 0.5


def test_seen_sources_are_left_out_of_the_unseen_figures(table: ScoreTable, trained: Any) -> None:
    source = str(table.sources[table.typ == "grid"][0])
    scale = Scale.of_detector(load_detector(trained.folder))
    seen = frozenset({("grid", source), *(("ring", s) for s in set(table.sources.tolist()))})
    given = Evaluation.of(table, scale, samples=10)
    part = measure_table(given, chosen=("specific",), seen=seen).data
    everything = part["specific"]["rows"]["grid"]["synthetic_images"]
    own = table.count((table.typ == "grid") & (table.sources == source))
    assert 0 < own < everything
    assert part["unseen"]["rows"]["grid"]["synthetic_images"] == everything - own
    assert "ring" not in part["unseen"]["rows"]


def test_a_split_without_the_detectors_generators(table: ScoreTable, trained: Any) -> None:
    """Other generators have no head: only all heads together can be asked about them."""
    other = replace(table, typ=np.where(table.typ == REAL, REAL, "mygen"))
    scale = Scale.of_detector(load_detector(trained.folder))
    found = measure_table(Evaluation.of(other, scale, samples=10)).data
    assert set(found["generic"]["rows"]) == {"mygen"}
    assert found["specific"]["left_out"] == {"mygen": "no head of its own"}
    with pytest.raises(DataError, match="needed are 'real'"):
        measure_table(Evaluation.of(table.select(table.typ == REAL), scale))


@pytest.mark.slow
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
    return scoring.bounded(trained.manifest.select("val"), per_class)


def test_the_scale_is_the_detectors(trained: Any) -> None:
    detector = load_detector(trained.folder)
    scale = Scale.of_detector(detector)
    found = detector.detect(found_file(trained, trained.manifest.rows[0].path))
    scores = {s.generator: s for s in found.scores}
    similarity = np.array([[scores[g].similarity for g in scale.generators]])
    odds = scale.log_odds(similarity)
    assert odds is not None
    p = [scores[g].probability for g in scale.generators]
    np.testing.assert_allclose(1 / (1 + np.exp(-odds[0])), p, rtol=1e-4)
    empty = np.array([""])
    one = ScoreTable(*(empty,) * 6, scale.generators, similarity)
    rate = combine_all(one, scale).rate
    assert rate is not None
    assert found.verdict.false_positive_rate == pytest.approx(rate[0])


def test_bounded_takes_turns_among_sources(trained: Any) -> None:
    chosen = few(trained, 6)
    counts = chosen.counts()["val"]
    assert counts == {"grid": 6, "ring": 6, REAL: 6}
    assert len({row.source for row in chosen.rows if row.generator == REAL}) == 6
    assert few(trained, 6).rows == chosen.rows
    assert {row.path for row in few(trained, 3).rows} < {row.path for row in chosen.rows}
    more = scoring.bounded(trained.manifest.select("val"), 2, reals=9)
    assert more.counts()["val"] == {"grid": 2, "ring": 2, REAL: 9}
    with pytest.raises(UsageError, match="at least one"):
        few(trained, 0)


def test_degraded_files(trained: Any, tmp_path: Path) -> None:
    detector = load_detector(trained.folder)
    manifest = few(trained)
    steps = degrade.select(["none", "jpeg-70", "resize-0.25"])
    seen: list[tuple[str, int, int]] = []
    found = scoring.score_degraded(
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
    second = scoring.score_degraded(
        trained.folder, manifest, steps, cache=tmp_path, progress=lambda *step: again.append(step)
    )
    assert {done for _, done, count in again} == {1}
    assert second["jpeg-70"].to_csv() == found["jpeg-70"].to_csv()
    rows = measure_degradations(found, Scale.of_detector(detector), samples=10)
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


def test_a_peer_scores_the_same_views(trained: Any, table: ScoreTable, tmp_path: Path) -> None:
    manifest = trained.manifest.select("val")
    views = scoring.views_of(load_detector(trained.folder))
    program = tmp_path / "peer.py"
    program.write_text("LEAST = 0\n" + PEER, encoding="utf-8")
    found = scoring.score_peer(f"mean={program}:mean", manifest, cache=tmp_path, config=views)
    both = table.joined(found)
    assert both.generators == (*table.generators, "mean")
    assert not np.isnan(both.similarities).any()
    assert found.processing.tolist() == table.processing.tolist()
    scale = Scale.of_detector(load_detector(trained.folder))
    given = Evaluation.of(both, scale, samples=10)
    results = measure_table(given, chosen=(), peers=both.only(["mean"]))
    opinions = results.data["second opinions"]
    assert opinions["masksim"]["auroc"].value > opinions["mean"]["auroc"].value
    program.write_text("LEAST = 999\n" + PEER, encoding="utf-8")
    with pytest.raises(DataError, match="none of the images"):
        scoring.score_peer(
            f"mean={program}:mean", few(trained), cache=tmp_path / "other", config=views
        )  # fmt: skip


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
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
    chosen = scoring.bounded(banded.manifest, 4)
    table = scoring.score_manifest(banded.folder, chosen, cache=tmp_path, purpose="as found")
    assert set(band_column(table)) == {0, 1}
    assert table.traits is not None
    scale = Scale.of_detector(detector)
    assert scale.banded
    strata = []
    for name, scores, traits in zip(table.filenames, table.similarities, table.traits, strict=True):
        found = detector.detect(chosen.root / str(name))
        mine = {s.generator: s for s in found.scores}
        for g, generator in enumerate(table.generators):
            assert mine[generator].similarity == pytest.approx(scores[g], abs=1e-6)
        # The joint rate is the verdict's, probabilities are the heads' of the band.
        rates = detector.rates(scores, traits)
        assert rates is not None
        strata.append(rates.stratum)
        assert rates.joint == pytest.approx(found.verdict.as_found or rates.joint)
        odds = scale.log_odds(scores[None], traits[None])
        assert odds is not None
        p = [mine[generator].probability for generator in table.generators]
        np.testing.assert_allclose(1 / (1 + np.exp(-odds[0])), p, rtol=1e-3)
    # Parts are those that verdicts rank among.
    bands = [BANDS[band] for band in band_column(table)]
    for by, labels in (("band", bands), ("stratum", strata)):
        given = Evaluation(table, scale, samples=10)
        rows = {row["group"]: row for row in break_down(given, by)}  # type: ignore[arg-type]
        assert set(rows) == set(labels)
        for group, row in rows.items():
            of_group = np.array(labels) == group
            assert row["real_images"] == table.count(of_group & (table.typ == REAL))
    assert measure_table(Evaluation.of(table, scale, samples=10)).tables


def test_heads_of_two_bands_are_compared_by_their_rates(banded: Any, tmp_path: Path) -> None:
    table = scoring.score_manifest(
        banded.folder, scoring.bounded(banded.manifest, 4), cache=tmp_path, purpose="as found"
    )
    scale = Scale.of_detector(load_detector(banded.folder, threads=1))
    assert scale.calibration is not None
    own, _ = scale.calibration.all_rates(table.similarities, table.traits)
    for g, generator in enumerate(table.generators):
        found = protocols.protocol_scores(table, scale, "specific", generator)
        assert found is not None
        order = np.argsort(found.score)
        ranked = list(zip(-own[order, g], table.similarities[order, g], strict=True))
        assert ranked == sorted(ranked)
    # Without photos to rank among, by their probabilities.
    bare = replace(scale, calibration=None)
    found = protocols.protocol_scores(table, bare, "specific", table.generators[0])
    odds = bare.log_odds(table.similarities, table.traits)
    assert found is not None
    assert odds is not None
    np.testing.assert_array_equal(found.score, odds[:, 0])


def test_scores_without_traits_are_measured_with_a_note(banded: Any, tmp_path: Path) -> None:
    """A table that was saved before it told what the views show."""
    chosen = scoring.bounded(banded.manifest, 4)
    table = scoring.score_manifest(banded.folder, chosen, cache=tmp_path, purpose="as found")
    ask = ["evaluate", "--model", str(banded.folder), "--samples", "10", "--scores"]
    notes = {}
    for name, one in (("new", table), ("old", replace(table, traits=None))):
        (tmp_path / name).write_text(one.to_csv(), encoding="utf-8")
        done = CliRunner().invoke(app, [*ask, str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        notes[name] = "do not tell what the images show" in done.stderr
    assert notes == {"new": False, "old": True}


def test_degraded_files_have_the_band_of_their_last_compression(
    banded: Any, tmp_path: Path
) -> None:
    chosen = scoring.bounded(banded.manifest, 2)
    steps = degrade.select(["none", "jpeg-90", "jpeg-70", "jpeg-50", "webp-80", "blur-1"])
    found = scoring.score_degraded(banded.folder, chosen, steps, cache=tmp_path)
    bands = {name: set(band_column(table)) for name, table in found.items()}
    assert bands.pop("none") <= {0, 1}
    assert bands == {"jpeg-90": {1}, "jpeg-70": {2}, "jpeg-50": {3}, "webp-80": {4}, "blur-1": {0}}
    quality = found["jpeg-70"].traits[:, TRAITS.index("quality")]  # type: ignore[index]
    assert set(quality.tolist()) == {70.0}
    assert np.isnan(found["webp-80"].traits[:, TRAITS.index("quality")]).all()  # type: ignore[index]

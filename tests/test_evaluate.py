"""`masksim.evaluate`: scores are saved once, and every figure comes from them."""

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

from masksim import evaluate, metrics
from masksim.cli import app
from masksim.detector import load_detector
from masksim.errors import DataError
from masksim.manifest import REAL, Manifest, write_manifest


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
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["specific"]) == {"grid", "ring"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "scores.csv", "results.json", "results.md",
    }  # fmt: skip
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
    assert "there already" in result.stderr

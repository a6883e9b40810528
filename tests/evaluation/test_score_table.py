"""`masksim.evaluation.score_table`: tables that are saved, read back, or of other tools."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from masksim.data.manifest import REAL
from masksim.errors import DataError
from masksim.evaluation import score_table
from masksim.evaluation.measures import Evaluation
from masksim.evaluation.protocols import run_protocol
from masksim.evaluation.scale import Scale
from masksim.evaluation.score_table import ScoreTable
from masksim.traits import TRAITS
from planted_scores import HEADS, make, write_original


@pytest.fixture(scope="module")
def table() -> ScoreTable:
    return make({REAL: 60, "a": 25, "b": 20, "c": 30, "z": 15})


def test_csv_comes_back(table: ScoreTable) -> None:
    back = ScoreTable.from_csv(table.to_csv())
    assert back.generators == HEADS
    np.testing.assert_allclose(back.similarities, table.similarities, rtol=1e-6)
    for name in ("filenames", "typ", "sources", "histories", "formats", "processing"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    assert back.to_csv() == ScoreTable.from_csv(back.to_csv()).to_csv()


def test_any_table_of_the_field_is_read() -> None:
    text = '\ufefffilename,typ,mygen\n"a, b.png",mygen,0.9\nr.jpg,real,0.1\n\n'
    back = ScoreTable.from_csv(text)
    assert back.filenames.tolist() == ["a, b.png", "r.jpg"]
    assert back.sources.tolist() == ["", ""]
    assert next(csv.reader(io.StringIO(back.to_csv())))[:3] == ["filename", "typ", "source"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found nothing"),
        ("filename,typ\na,real\n", "one or more detectors"),
        ("filename,score\na,1\n", "filename, typ"),
        ("filename,typ,x,x\na,real,1,2\n", "once"),
        ("filename,typ,x\n", "no rows"),
        ("filename,typ,x\na,real\n", "row 2"),
        ("filename,typ,x\na,real,high\n", "'high'"),
        ("filename,typ,x\na,real,nan\n", "'nan'"),
        ("filename,typ,x\na,real,inf\n", "finite"),
    ],
)
def test_what_is_no_table_of_scores_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ScoreTable.from_csv(text)


def test_what_the_views_show_comes_back_with_the_scores(table: ScoreTable) -> None:
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(len(table.typ), len(TRAITS)))
    shown[3, 6] = np.nan
    text = replace(table, traits=shown).to_csv()
    back = ScoreTable.from_csv(text)
    assert back.generators == HEADS
    assert back.traits is not None
    np.testing.assert_allclose(back.traits, shown, rtol=1e-6)
    # A file written before the last compression was kept: it is not known, the others are.
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0][-1] == "trait band"
    older = ScoreTable.from_csv("\n".join(",".join(row[:-1]) for row in rows))
    assert older.generators == HEADS
    assert older.traits is not None
    np.testing.assert_allclose(older.traits[:, :-1], shown[:, :-1], rtol=1e-6)
    assert np.isnan(older.traits[:, -1]).all()
    # One of before there were any, or of other tools, has none.
    first = "\n".join(",".join(row[: -len(TRAITS)]) for row in rows)
    assert ScoreTable.from_csv(first).traits is None


# --- the original's scores -----------------------------------------------------------------------


@pytest.mark.parametrize("text_only", [False, True])
def test_score_folders_of_the_original(tmp_path: Path, text_only: bool) -> None:
    folder = tmp_path / "output/score/JPEG_Qrandom_w512/JPEG_Qrandom/newsynth"
    scores = write_original(folder, text_only=text_only)
    for top in (folder, tmp_path / "output"):
        table = score_table.read_original_scores(top)
        assert table.generators == ("dalle2", "sd1", "sdxl")
        for (test, name), values in scores.items():
            column = table.generators.index(name)
            np.testing.assert_allclose(table.similarities[table.typ == test, column], values)
    assert len(set(table.filenames.tolist())) == 90
    if not text_only:
        assert set(table.sources[table.typ == REAL].tolist()) == {"raise"}
    given = Evaluation(table, Scale.of_table(table), samples=10)
    found = run_protocol(given, "specific")["rows"]["sd1"]
    real, fake = np.array(scores[REAL, "sd1"]), np.array(scores["sd1", "sd1"])
    right = (fake > 0.5).sum() + (real <= 0.5).sum()
    assert found["accuracy"].value == pytest.approx(right / 50)


def test_score_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        score_table.read_original_scores(tmp_path)
    write_original(tmp_path / "a/newsynth")
    (tmp_path / "a/newsynth/sd1_to_sdxl.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"sd1_to_sdxl\.json is not a list"):
        score_table.read_original_scores(tmp_path)
    (tmp_path / "a/newsynth/sd1_to_sdxl.json").unlink()
    (tmp_path / "a/newsynth/sd1_to_sdxl.txt").unlink()
    with pytest.raises(DataError, match="no scores sd1_to_sdxl"):
        score_table.read_original_scores(tmp_path)
    write_original(tmp_path / "b/newsynth")
    with pytest.raises(DataError, match="one folder"):
        score_table.read_original_scores(tmp_path)


def test_real_scores_for_a_calibration(tmp_path: Path) -> None:
    path = tmp_path / "real.csv.gz"
    path.write_bytes(gzip.compress(b"image,population,sd1,sd2\na,coco,0.1,0.2\nb,ffhq,0.3,0.4\n"))
    assert score_table.read_real_scores(path, ("sd2", "sd1")).tolist() == [[0.2, 0.1], [0.4, 0.3]]
    plain = tmp_path / "scores.csv"
    plain.write_text("filename,typ,sd1\na,real,0.5\nb,sd1,0.9\n", encoding="utf-8")
    assert score_table.read_real_scores(plain, ("sd1",)).tolist() == [[0.5]]
    for text, message in (
        ("filename,sd2\na,1\n", "no column sd1"),
        ("filename,sd1\na,x\n", "not a number"),
        ("filename,sd1\na,nan\n", "no finite"),
        ("filename,sd1\n", "no finite"),
    ):
        plain.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            score_table.read_real_scores(plain, ("sd1",))
    with pytest.raises(DataError, match="cannot read"):
        score_table.read_scores(tmp_path / "nothing.csv")


def test_original_scores_must_belong_together(tmp_path: Path) -> None:
    good = {
        "real_to_a": [("raise/1.png", 0.1)], "real_to_b": [("raise/1.png", 0.2)],
        "a_to_a": [("x/sb/2.png", 0.9)], "a_to_b": [("x/sb/2.png", 0.3)],
    }  # fmt: skip

    def written(**changed: list[tuple[str, float]] | None) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for stem, pairs in {**good, **changed}.items():
            if pairs is not None:
                (folder / f"{stem}.json").write_text(json.dumps(pairs), encoding="utf-8")
        return folder

    table = score_table.read_original_scores(written())
    assert table.generators == ("a", "b")
    assert sorted(zip(table.typ.tolist(), table.sources.tolist(), strict=True)) == [
        ("a", "sb"), (REAL, "raise"),
    ]  # fmt: skip
    assert table.similarities[table.typ == "a"].tolist() == [[0.9, 0.3]]
    for changed, message in (
        ({"a_to_b": None}, "no scores a_to_b"),
        ({"a_to_b": [("y", 1.0)]}, "not of the same images"),
        ({"a_to_a": None, "a_to_b": None}, "real images alone"),
        ({"a_to_b": [("x/sb/2.png", float("nan"))]}, "finite"),
    ):
        with pytest.raises(DataError, match=message):
            score_table.read_original_scores(written(**changed))  # type: ignore[arg-type]

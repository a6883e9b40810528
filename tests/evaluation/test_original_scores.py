"""`benchmarks/original_scores.py` on small tables whose figures are known."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksim.calibration import false_positive_rate
from masksim.errors import DataError

stats = pytest.importorskip("scipy.stats")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark as a module; benchmarks import each other by their folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(
            "original_scores", BENCHMARKS / "original_scores.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("original_scores", None)


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


TABLE = "image,population,a,b\n7_crop0.png,x,0.5,1e-6\n7_crop1.png,x,0.25,1\n7_crop0.png,y,0,1\n"


def test_table_is_read_and_crops_find_their_photo(bench: Any, tmp_path: Path) -> None:
    table = bench.read_scores(write(tmp_path / "t.csv.gz", TABLE))
    assert table.generators == ("a", "b")
    np.testing.assert_array_equal(table.values, [[0.5, 1e-6], [0.25, 1], [0, 1]])
    # Two crops of one photo; the same name elsewhere is another photo.
    np.testing.assert_array_equal(table.photos, [0, 0, 1])
    plain = tmp_path / "t.csv"
    plain.write_text(TABLE)
    np.testing.assert_array_equal(bench.read_scores(plain).values, table.values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "image,population,a\n",
        "name,population,a\n1,x,0\n",
        "image,population\n1,x\n",
        "image,population,a\n1,x\n",
        "image,population,a\n1,x,high\n",
        "image,population,a\n1,x,nan\n",
    ],
)
def test_a_broken_table_is_refused(bench: Any, tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError):
        bench.read_scores(write(tmp_path / "t.csv.gz", text))


def test_a_broken_or_missing_file_is_refused(bench: Any, tmp_path: Path) -> None:
    cut = write(tmp_path / "t.csv.gz", TABLE)
    cut.write_bytes(cut.read_bytes()[:-12])
    for path in (cut, tmp_path / "none.csv"):
        with pytest.raises(DataError):
            bench.read_scores(path)


def test_the_originals_rule_by_hand(bench: Any) -> None:
    reals = np.array([[1.0, 40.0], [2.0, 30.0], [3.0, 20.0], [4.0, 10.0]])
    scores = np.array([[4.0, 0.0], [3.5, 20.0], [0.0, 45.0]])
    # The share above; 0 for the largest, which is the fault of it.
    np.testing.assert_array_equal(
        bench.original_rates(scores, reals), [[0, 1], [0.25, 0.5], [1, 0]]
    )
    # Smallest rate of each real: 0, 1/4, 1/4, 0. Above 0: none; above 1/4: the two with 0.
    np.testing.assert_array_equal(bench.original_maximum_rates(scores, reals), [0, 0.5, 0])


def test_halves_part_photos_not_crops(bench: Any) -> None:
    photos = np.repeat(np.arange(30), 3)
    populations = np.where(photos < 10, "x", "y")
    half = bench.first_half(photos, populations, 5)
    assert all(len(set(half[photos == p])) == 1 for p in range(30))
    assert half[populations == "x"].sum() == 15
    assert half[populations == "y"].sum() == 30
    np.testing.assert_array_equal(half, bench.first_half(photos, populations, 5))
    assert (half != bench.first_half(photos, populations, 6)).any()


def test_one_crop_of_each_photo(bench: Any) -> None:
    photos = np.array([2, 0, 0, 2, 1, 0])
    chosen = {tuple(bench.one_crop(photos, seed)) for seed in range(60)}
    assert all(sorted(photos[list(rows)]) == [0, 1, 2] for rows in chosen)
    assert len(chosen) == 6  # 3 crops of one photo times 2 of another


@pytest.mark.parametrize(("count", "size"), [(0, 7), (3, 40), (7, 7)])
def test_interval_against_scipy(bench: Any, count: int, size: int) -> None:
    expected = stats.binomtest(count, size).proportion_ci(0.95, method="exact")
    assert bench.clopper_pearson(count, size) == pytest.approx((expected.low, expected.high))


def test_effective_size(bench: Any) -> None:
    rng = np.random.default_rng(0)
    single = rng.random(400) < 0.3
    assert bench.effective_size(single, np.arange(400)) == 400
    # Four equal crops of each photo: one image. Left over are the degrees of freedom.
    copied = np.repeat(single, 4)
    photos = np.repeat(np.arange(400), 4)
    freedom = stats.t.ppf(0.975, 1599) / stats.t.ppf(0.975, 399)
    assert bench.effective_size(copied, photos) == pytest.approx(399 * freedom**2)
    # Opposed crops would tell more than independent ones; they count as no more than they are.
    opposed = bench.effective_size(np.tile([True, False], 50), np.repeat(np.arange(50), 2))
    assert opposed == pytest.approx(100 * (stats.t.ppf(0.975, 99) / stats.t.ppf(0.975, 49)) ** 2)
    # Nothing flagged: no variance to tell, so photos count.
    assert bench.effective_size(np.zeros(1600, bool), photos) == 400
    found = bench.share(np.zeros(1600, bool), photos)
    assert (found["share"], found["low"]) == (0, 0)
    assert found["high"] == pytest.approx(1 - 0.025 ** (1 / 400))


def test_interval_by_photo_covers_where_the_naive_one_does_not(bench: Any) -> None:
    rng = np.random.default_rng(1)
    photos = np.repeat(np.arange(120), 4)
    by_photo = by_crop = 0
    for _ in range(300):
        # A photo's crops are flagged with its own chance, of mean 0.2.
        flagged = rng.random(480) < np.repeat(rng.beta(0.5, 2.0, 120), 4)
        found = bench.share(flagged, photos)
        low, high = bench.clopper_pearson(found["flagged"], 480)
        by_photo += found["low"] <= 0.2 <= found["high"]
        by_crop += low <= 0.2 <= high
    assert by_photo >= stats.binom.ppf(1e-4, 300, 0.95)
    assert by_crop < stats.binom.ppf(1e-4, 300, 0.95)


def test_uniformity_is_the_test_of_two_samples(bench: Any) -> None:
    rng = np.random.default_rng(2)
    real, alike = rng.normal(size=(900, 1)), rng.normal(size=(700, 1))
    for tested, told_apart in ((alike, False), (alike + 0.2, True)):
        found = bench.uniformity(false_positive_rate(tested, real)[:, 0], len(real))
        expected = stats.ks_2samp(tested[:, 0], real[:, 0], method="asymp")
        assert found["distance"] == pytest.approx(expected.statistic, abs=2 / 900)
        assert found["p"] == pytest.approx(expected.pvalue, rel=0.3)
        assert (found["p"] < 0.01) == told_apart


def test_expected_range_holds_in_simulation(bench: Any) -> None:
    rng = np.random.default_rng(3)
    found = bench.expected(0.05, 199, 300)
    assert found["share"] == 0.05
    rates = (
        (false_positive_rate(rng.random((300, 1)), rng.random((199, 1))) <= 0.05).mean()
        for _ in range(600)
    )
    covered = sum(found["low"] <= rate <= found["high"] for rate in rates)
    assert stats.binom.ppf(1e-4, 600, 0.95) <= covered  # discrete: at least
    assert covered <= stats.binom.ppf(1 - 1e-4, 600, 0.97)


def two_populations(crops: int = 1) -> str:
    """Population y scores higher by detector a alone; b sees no difference."""
    rng = np.random.default_rng(4)
    lines = ["image,population,a,b"]
    for population, shift in (("x", 0.0), ("y", 3.0)):
        for photo in range(200):
            a, b = rng.normal(size=2)
            lines += [
                f"{photo}_crop{k}.png,{population},{a + shift:.6f},{b:.6f}" for k in range(crops)
            ]
    return "\n".join(lines) + "\n"


def test_measure_finds_planted_pooling(bench: Any, tmp_path: Path) -> None:
    table = bench.read_scores(write(tmp_path / "t.csv.gz", two_populations(crops=2)))
    found = bench.measure(table, 0)
    assert found["populations"]["x"] == {
        "images": 400, "photos": 200, "calibrated": 200, "tested": 200
    }  # fmt: skip
    rules = found["side_by_side"]
    for p, own in (("x", False), ("y", True)):
        # By a, the pooled 10 % are the upper fifth of y and none of x.
        pooled = found["by_generator"]["original"][p]["a"]["0.1"]
        assert abs(pooled["share"] - (0.2 if own else 0.0)) < 0.09
        # With a calibration of its own each population's interval holds the claim.
        alone = rules[bench.OWN][p]["0.1"]
        expected = bench.expected(0.1, 100, 100)
        assert expected["low"] <= alone["share"] <= expected["high"]
        # Two crops that are the same count once.
        assert alone["effective_images"] < 101.5
    # One crop or two of the same score: of the images that calibrate, the same are flagged.
    single = bench.read_scores(write(tmp_path / "s.csv.gz", two_populations()))
    again = bench.measure(single, 0)["side_by_side"][bench.IN_SET]
    for p in ("x", "y"):
        assert again[p]["0.1"]["share"] == rules[bench.IN_SET][p]["0.1"]["share"]
    across = {(r["calibrated_on"], r["tested_on"]): r["joint"]["0.1"] for r in found["across"]}
    assert across["x", "y"]["share"] > 0.8
    assert across["y", "x"]["share"] < 0.1
    assert across["x", "x"] == rules[bench.OWN]["x"]["0.1"]


def test_command_writes_one_file(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    scores = write(tmp_path / "t.csv.gz", two_populations())
    out, page, picture = tmp_path / "o.json", tmp_path / "page.md", tmp_path / "sub" / "p.png"
    command = ["original_scores.py", "--scores", str(scores), "--splits", "2"]
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "PICTURE", picture)
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out)])
    bench.main()
    document = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert document["splits"]["count"] == 2
    assert all(title in shown for title in ("Real images flagged", "Crops and photos"))
    assert not picture.exists()
    # Without --out the page's markers are filled and the picture drawn, with the same figures.
    page.write_text("before\n<!-- original across:begin -->\nold\n<!-- original across:end -->\n")
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "r.json")
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    assert json.loads((tmp_path / "r.json").read_text()) == document
    text = page.read_text()
    assert text.startswith("before\n")
    assert "old" not in text
    row = next(r for r in document["across"] if (r["calibrated_on"], r["tested_on"]) == ("y", "x"))
    assert f"{100 * row['joint']['0.1']['share']:.1f} % [" in text
    assert picture.read_bytes().startswith(b"\x89PNG")

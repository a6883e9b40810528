"""Protocols, break-downs, their tables: scores made up here, measured again by plain formulas."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim import calibration, verdict
from masksim.data.manifest import REAL
from masksim.errors import DataError, UsageError
from masksim.evaluation import breakdowns, protocol_tables, protocols
from masksim.evaluation.evaluate import plain
from masksim.evaluation.measures import Evaluation
from masksim.evaluation.protocols import run_protocol
from masksim.evaluation.scale import Scale
from masksim.evaluation.score_table import ScoreTable
from masksim.metrics import Estimate
from planted_scores import HEADS, make

sklearn_metrics = pytest.importorskip("sklearn.metrics")

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def table() -> ScoreTable:
    return make({REAL: 60, "a": 25, "b": 20, "c": 30, "z": 15})


def original_metrics(real: Floats, fake: Floats) -> dict[str, float]:
    """The original's four figures, by their definitions."""
    best, at_half, accuracy = -1.0, 0.0, 0.0
    for threshold in (-np.inf, 0.5, *real, *fake):
        tp, fp = float((fake > threshold).sum()), float((real > threshold).sum())
        fn, tn = len(fake) - tp, len(real) - fp
        mcc = (tp * tn - fp * fn) / (np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) + 1e-10)
        best = max(best, mcc)
        if threshold == 0.5:
            at_half, accuracy = mcc, (tp + tn) / (len(real) + len(fake))
    pairs = np.sign(fake[:, None] - real[None])
    return {
        "auroc": float((pairs.mean() + 1) / 2), "accuracy": accuracy, "mcc": at_half,
        "best_mcc": best,
    }  # fmt: skip


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_probabilities_give_the_originals_figures(
    table: ScoreTable, protocol: protocols.Protocol
) -> None:
    scale = Scale.of_table(table)
    assert scale.probabilities
    found = run_protocol(Evaluation(table, scale, samples=10), protocol)
    known = [*HEADS, "z"] if protocol == "generic" else list(HEADS)
    assert list(found["rows"]) == known
    assert list(found["left_out"]) == ([] if protocol == "generic" else ["z"])
    every = []
    for name in known:
        asked = {
            "specific": [h == name for h in HEADS],
            "generic": [True] * 3,
            "leave-one-out": [h != name for h in HEADS],
        }[protocol]
        merged = table.similarities[:, asked].max(axis=1)
        expected = original_metrics(merged[table.typ == REAL], merged[table.typ == name])
        for key, value in expected.items():
            assert found["rows"][name][key].value == pytest.approx(value, abs=1e-9), key
        every.append(expected["auroc"])
        row = found["rows"][name]
        assert (row["synthetic_images"], row["real_images"]) == (int((table.typ == name).sum()), 60)
        assert "tpr_5" not in row  # not calibrated
    assert found["mean"]["auroc"].value == pytest.approx(np.mean(every))
    mean = found["mean"]["auroc"]
    assert mean.low < mean.value < mean.high


def test_rates_of_a_calibrated_detector(table: ScoreTable) -> None:
    raw = make({REAL: 60, "a": 25, "z": 15}, probabilities=False, seed=3)
    real = np.random.default_rng(4).normal(-1.0, 1.0, (199, 3))
    scale = Scale(
        HEADS,
        slope=np.array([1.5, 1, 1]),
        offset=np.zeros(3),
        calibration=calibration.Calibration(real),
    )
    found: dict[str, Any] = {
        p: run_protocol(Evaluation(raw, scale, samples=20), p)["rows"] for p in protocols.PROTOCOLS
    }
    is_a, is_real = raw.typ == "a", raw.typ == REAL
    s = raw.similarities
    own = calibration.false_positive_rate(s[:, :1], real[:, :1])[:, 0]
    for protocol, rate, score in (
        ("specific", own, s[:, 0]),
        ("generic", calibration.joint_false_positive_rate(s, real), None),
        ("leave-one-out", calibration.joint_false_positive_rate(s[:, 1:], real[:, 1:]), None),
    ):
        row = found[protocol]["a"]
        for level in (1, 5):
            flagged = rate <= level / 100
            assert row[f"tpr_{level}"].value == pytest.approx(flagged[is_a].mean())
            assert row[f"fpr_{level}"].value == pytest.approx(flagged[is_real].mean())
            assert row[f"tpr_{level}"].low <= row[f"tpr_{level}"].value <= row[f"tpr_{level}"].high
        ranked = -rate if score is None else score
        y = np.repeat([True, False], [is_a.sum(), is_real.sum()])
        both = np.concatenate([ranked[is_a], ranked[is_real]])
        expected = sklearn_metrics.roc_auc_score(y, both)
        assert row["auroc"].value == pytest.approx(expected)
    # The probability is that of the heads asked, the log-odds of slope and offset.
    p = 1 / (1 + np.exp(-1.5 * s[:, 0]))
    half = np.concatenate([p[is_a] > 0.5, p[is_real] <= 0.5])
    assert found["specific"]["a"]["accuracy"].value == pytest.approx(half.mean())
    # Real photos of the same law: the claimed rate holds within chance.
    assert found["generic"]["a"]["fpr_5"].value <= 0.15


def test_scores_of_unknown_scale_have_no_probabilities() -> None:
    raw = make({REAL: 30, "a": 20}, probabilities=False)
    scale = Scale.of_table(raw)
    assert not scale.probabilities
    row = run_protocol(Evaluation(raw, scale, samples=10), "generic")["rows"]["a"]
    assert not {"mcc", "ece", "cllr", "tpr_5"} & set(row)
    best = raw.similarities.max(axis=1)
    expected = sklearn_metrics.roc_auc_score(raw.typ == "a", best)
    assert row["auroc"].value == pytest.approx(expected)
    columns = [c.key for c in protocol_tables.protocol_table("generic", {
        "rows": {"a": row}, "left_out": {}
    }).columns]  # fmt: skip
    assert columns == [
        "generator", "synthetic_images", "real_images", "auroc", "best_mcc", "eer", "min_cllr",
    ]  # fmt: skip


def test_weights_match_the_classes() -> None:
    """The reals' views of another history count nothing; two views of an image count as one."""
    base = make({REAL: 40, "a": 20}, seed=5)
    n = len(base.typ)
    double = ScoreTable(
        np.tile(base.filenames, 2), np.tile(base.typ, 2), np.tile(base.sources, 2),
        np.repeat(["jpeg", "lossless"], n), np.tile(base.formats, 2), np.tile(base.processing, 2),
        HEADS, np.vstack([base.similarities, base.similarities[::-1] * 0]),
    )  # fmt: skip

    def only_jpeg(histories: Any, classes: Any) -> Floats:
        w = np.zeros(len(histories))
        for mask in classes:
            chosen = mask & (histories == "jpeg")
            w[chosen] = 1 / chosen.sum()
        return w

    alone = run_protocol(Evaluation(base, Scale.of_table(base), samples=10), "specific")
    both = run_protocol(
        Evaluation(double, Scale.of_table(double), only_jpeg, samples=10), "specific"
    )
    for key, value in alone["rows"]["a"].items():
        if isinstance(value, Estimate):
            assert both["rows"]["a"][key].value == pytest.approx(value.value)
    assert both["rows"]["a"]["synthetic_images"] == 20


def test_intervals_draw_sources_where_there_are_enough() -> None:
    few = make({REAL: 30, "a": 20}, sources=2)
    many = make({REAL: 30, "a": 20}, sources=5)
    for one, kind in ((few, "over images"), (many, "over sources")):
        row = run_protocol(Evaluation(one, Scale.of_table(one), samples=10), "specific")["rows"][
            "a"
        ]
        assert row["interval"] == row["interval_of_reals"] == kind
    assert (
        "not sources: a"
        in protocol_tables.protocol_table(
            "specific", run_protocol(Evaluation(few, Scale.of_table(few), samples=10), "specific")
        ).note
    )


def test_one_head_alone_leaves_none_out() -> None:
    one = make({REAL: 30, "a": 20}).only(["a"])
    found = run_protocol(Evaluation(one, Scale.of_table(one), samples=10), "leave-one-out")
    assert found["rows"] == {}
    assert found["left_out"] == {"a": "no other head"}
    assert "mean" not in found


def test_confusion_counts_the_silent(table: ScoreTable) -> None:
    found = breakdowns.confusion(Evaluation(table, Scale.of_table(table)))
    assert list(found) == [REAL, "a", "b", "c", "z"]
    for name, row in found.items():
        own = table.similarities[table.typ == name]
        silent = (own <= 0.5).all(axis=1)
        assert row["named"]["no evidence"] == pytest.approx(silent.mean())
        for g, head in enumerate(HEADS):
            named = ~silent & (own.argmax(axis=1) == g)
            assert row["named"][head] == pytest.approx(named.mean())
    assert found["a"]["named"]["a"] > 0.5
    shown = protocol_tables.confusion_table(found)
    assert [c.title for c in shown.columns] == ["made by", "images", *HEADS, "no evidence"]


def called(scores: Floats, real: Floats) -> Any:
    """Which of these a verdict calls evidence or stronger, each decided for itself."""
    photos = calibration.Calibration(real)
    rates = [photos.rates(row) for row in scores]
    levels = [verdict.decide(HEADS, row, r).level for row, r in zip(scores, rates, strict=True)]
    return np.isin(levels, ("evidence", "strong evidence"))


def test_confusion_names_as_a_verdict_does() -> None:
    raw = make({REAL: 60, "a": 25, "b": 20}, probabilities=False, seed=8)
    real = np.random.default_rng(9).normal(-1.0, [1.0, 2.0, 0.5], (39, 3))
    found = breakdowns.confusion(
        Evaluation(raw, Scale(HEADS, calibration=calibration.Calibration(real)))
    )
    own = raw.similarities[raw.typ == "b"]
    evident = called(own, real)
    # The interval has a say: not every rate of 5 % is evidence.
    assert 0 < evident.sum() < (calibration.joint_false_positive_rate(own, real) <= 0.05).sum()
    rates = calibration.false_positive_rate(own, real)
    named = [
        min((rate, -score, g) for g, (rate, score) in enumerate(zip(r, s, strict=True)))[2]
        for r, s in zip(rates, own, strict=True)
    ]
    for g, head in enumerate(HEADS):
        share = np.mean([n == g and e for n, e in zip(named, evident, strict=True)])
        assert found["b"]["named"][head] == pytest.approx(share)
    assert found["b"]["named"]["no evidence"] == pytest.approx((~evident).mean())


def test_break_downs(table: ScoreTable) -> None:
    scale = Scale.of_table(table)
    by_format = breakdowns.break_down(Evaluation(table, scale, samples=10), "format")
    assert [row["group"] for row in by_format] == ["JPEG", "PNG"]
    merged = table.similarities.max(axis=1)
    for row in by_format:
        rows = table.formats == row["group"]
        expected = sklearn_metrics.roc_auc_score(table.typ[rows] != REAL, merged[rows])
        assert row["generic_auroc"].value == pytest.approx(expected)
        assert row["tpr_5"] is None
    by_source = breakdowns.break_down(Evaluation(table, scale, samples=10), "source")
    first = next(row for row in by_source if row["typ"] == "b")
    # Five images a source: too few for rows of their own.
    assert first["group"] == "4 sources of fewer than 10 images"
    rows = np.isin(table.typ, ("b", REAL))
    expected = sklearn_metrics.roc_auc_score(table.typ[rows] == "b", table.similarities[rows, 1])
    assert first["own_auroc"].value == pytest.approx(expected)
    assert sum(row["images"] for row in by_source if row["typ"] == REAL) == 60
    assert next(r for r in by_source if r["typ"] == "z")["own_auroc"] is None
    shown = protocol_tables.breakdown_table("source", by_source)
    assert "flagged_5" not in [c.key for c in shown.columns]


@pytest.mark.parametrize(
    ("processing", "expected"),
    [
        ("", "none"),
        ("jpeg 92 4:2:0", "jpeg 90 to 99"),
        ("resize 0.5000 box, jpeg 100 4:4:4", "jpeg 100"),
        ("jpeg 80 4:2:0, webp 65", "webp 60 to 69"),
        ("resize 0.5000 box", "resize"),
    ],
)
def test_last_steps(processing: str, expected: str) -> None:
    assert breakdowns.last_step(processing) == expected


def test_steps_are_sorted_by_their_numbers() -> None:
    one = make({REAL: 6, "a": 6})
    steps = np.array(["jpeg 100 4:2:0", "jpeg 61 4:2:0", "jpeg 75 4:2:0"] * 4)
    one = ScoreTable(one.filenames, one.typ, one.sources, one.histories, one.formats, steps,
                     HEADS, one.similarities)  # fmt: skip
    rows = breakdowns.break_down(Evaluation(one, Scale.of_table(one), samples=10), "last step")
    assert [row["group"] for row in rows] == ["jpeg 60 to 69", "jpeg 70 to 79", "jpeg 100"]


def test_histories_are_set_against_each_other() -> None:
    """Each image in two histories; the scores of lossless views are higher, of whatever class."""
    base = make({REAL: 40, "a": 20}, seed=6)
    n = len(base.typ)
    rng = np.random.default_rng(7)
    twice = ScoreTable(
        np.tile(base.filenames, 2), np.tile(base.typ, 2), np.tile(base.sources, 2),
        np.repeat(["jpeg", "lossless"], n), np.tile(base.formats, 2), np.tile(base.processing, 2),
        HEADS, rng.normal(np.repeat([0.0, 1.0], n)[:, None], 1.0, (2 * n, 3)),
    )  # fmt: skip
    given = Evaluation(twice, Scale.of_table(twice), samples=10)
    score = given.joint.score
    pairs = breakdowns.history_pairs(given)
    assert len(pairs) == 4
    for pair in pairs:
        ours = (twice.typ == "a") & (twice.histories == pair.synthetic_history)
        theirs = (twice.typ == REAL) & (twice.histories == pair.real_history)
        assert (pair.synthetic, pair.real) == (ours.sum(), theirs.sum()) == (20, 40)
        scores = np.concatenate([score[ours], score[theirs]])
        expected = sklearn_metrics.roc_auc_score(np.repeat([True, False], [20, 40]), scores)
        assert pair.auroc == pytest.approx(expected)
    reals = breakdowns.real_histories(given)
    assert [one.histories for one in reals] == [
        "lossless against jpeg reals",
        "lossless against a first JPEG, the same photos",
    ]
    real = twice.typ == REAL
    expected = sklearn_metrics.roc_auc_score(twice.histories[real] == "lossless", score[real])
    for one in reals:
        assert (one.images, one.sources) == (40, 4)
        assert one.auroc.value == pytest.approx(expected)
        assert one.auroc.low <= one.auroc.value <= one.auroc.high
    first, second = protocol_tables.history_tables(pairs, reals)
    assert first.rows[1] == ("jpeg", "lossless", 20, 40, pairs[1].auroc)
    assert second.rows[0][-1] == reals[0].auroc
    assert len(list(protocol_tables.history_tables(pairs, []))) == 1
    # Of files as found there is one view each: nothing to tell apart.
    once = twice.select(twice.histories == "jpeg")
    assert breakdowns.real_histories(Evaluation(once, Scale.of_table(once))) == []


def test_second_opinions_stand_on_the_same_reals(table: ScoreTable) -> None:
    rng = np.random.default_rng(1)
    scores = np.where(table.typ == REAL, 0.0, 5.0) + rng.normal(size=len(table.typ))
    scores[3] = np.nan  # one image that the peer refused
    peer = ScoreTable(
        table.filenames, table.typ, table.sources, table.histories, table.formats,
        table.processing, ("peer",), scores[:, None],
    )  # fmt: skip
    found = breakdowns.second_opinions(
        Evaluation(table, Scale.of_table(table), samples=10),
        table.joined(peer).only(["peer"]),
        name="ours",
    )
    assert list(found) == ["ours", "peer"]
    assert found["peer"]["images"] == found["ours"]["images"] - 1
    has = ~np.isnan(scores)
    y = table.typ != REAL
    expected = sklearn_metrics.roc_auc_score(y[has], scores[has])
    assert found["peer"]["auroc"].value == pytest.approx(expected)
    expected = sklearn_metrics.roc_auc_score(y, table.similarities.max(axis=1))
    assert found["ours"]["auroc"].value == pytest.approx(expected)
    z = has & np.isin(table.typ, ("z", REAL))
    expected = sklearn_metrics.roc_auc_score(y[z], scores[z])
    assert found["peer"]["by_generator"]["z"].value == pytest.approx(expected)
    # Three of 59 reals, 5.08 %, would be too many.
    limit = np.sort(scores[has & ~y])[-3]
    assert found["peer"]["tpr_5"].value == pytest.approx((scores[has & y] > limit).mean())
    shown = protocol_tables.second_opinions_table(found)
    assert len(shown.rows) == 2
    with pytest.raises(UsageError, match="name peer"):
        table.joined(peer).joined(peer)
    with pytest.raises(DataError, match="no column nobody"):
        table.only(["nobody"])


def test_degradation_rows() -> None:
    raw = make({REAL: 40, "a": 20, "z": 10}, probabilities=False, seed=2)
    real = np.random.default_rng(3).normal(-1, 1, (99, 3))
    scale = Scale(HEADS, calibration=calibration.Calibration(real))
    found = breakdowns.degradation(Evaluation(raw, scale, samples=10))
    joint = calibration.joint_false_positive_rate(raw.similarities, real)
    evident = called(raw.similarities, real)
    assert found["evidence"].value == pytest.approx(evident[raw.typ != REAL].mean())
    assert found["flagged"].value == pytest.approx(evident[raw.typ == REAL].mean())
    rows = np.isin(raw.typ, ("a", REAL))
    expected = sklearn_metrics.roc_auc_score(raw.typ[rows] == "a", raw.similarities[rows, 0])
    assert found["specific_auroc"].value == pytest.approx(expected)
    expected = sklearn_metrics.roc_auc_score(raw.typ != REAL, -joint)
    assert found["generic_auroc"].value == pytest.approx(expected)
    # What is left where all images became too small, or all reals did.
    nothing = raw.select(np.zeros(len(raw.typ), bool))
    none = breakdowns.degradation(Evaluation(nothing, scale, samples=10))
    assert none["real_images"] == 0
    assert none["generic_auroc"] is None
    synthetic = breakdowns.degradation(Evaluation(raw.select(raw.typ != REAL), scale, samples=10))
    assert synthetic["specific_auroc"] is synthetic["flagged"] is None
    assert synthetic["evidence"] is not None
    shown = protocol_tables.degradations_table({"x": found, "y": none})
    assert shown.rows[1][1:] == (0, 0, None, None, None, None)


def test_tables_that_cannot_be_measured() -> None:
    one = make({REAL: 5, "a": 5})
    for part in (one.select(one.typ == REAL), one.select(one.typ == "a")):
        with pytest.raises(DataError, match="needed are 'real'"):
            run_protocol(Evaluation(part, Scale.of_table(one), samples=10), "generic")
    hole = ScoreTable.from_csv("filename,typ,x\na,real,\nb,y,0.5\n")
    with pytest.raises(DataError, match="lack a score"):
        run_protocol(Evaluation(hole, Scale.of_table(hole), samples=10), "generic")
    with pytest.raises(UsageError, match="unknown protocol"):
        protocols.protocol_scores(one, Scale.of_table(one), "other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="scale of"):
        protocols.protocol_scores(one, Scale(("x",)), "generic")


def test_results_are_plain_values(table: ScoreTable) -> None:
    found = run_protocol(Evaluation(table, Scale.of_table(table), samples=10), "specific")
    found["hole"] = [Estimate(1.0, float("nan"), float("nan")), np.float64(2), None]
    text = json.dumps(plain(found), allow_nan=False)
    back = json.loads(text)
    assert back["hole"] == [{"value": 1.0, "low": None, "high": None}, 2.0, None]
    assert back["rows"]["a"]["auroc"]["value"] == found["rows"]["a"]["auroc"].value

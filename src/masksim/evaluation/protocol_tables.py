"""The results of an evaluation as tables to be read; see docs/evaluate.md for every column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from masksim.evaluation.breakdowns import Breakdown, HistoryPair, RealHistories
from masksim.evaluation.measures import CLAIMED, percent
from masksim.show.tables import Column, Table

_MEASURES = (
    Column("auroc", "AUROC"),
    Column("accuracy", "accuracy"),
    Column("balanced_accuracy", "balanced acc."),
    Column("mcc", "MCC"),
    Column("best_mcc", "best MCC"),
    *(
        Column(f"{kind}_{percent(limit)}", f"{kind.upper()} at {percent(limit)} %", digits, True)
        for limit in CLAIMED
        for kind, digits in (("tpr", 0), ("fpr", 1))
    ),
    Column("eer", "EER", 1, percent=True),
    Column("ece", "ECE"),
    Column("cllr", "Cllr"),
    Column("min_cllr", "min Cllr"),
)
_IMAGES = (Column("synthetic_images", "synthetic"), Column("real_images", "real"))
_TITLES = {
    "specific": "Specific: each generator by its own head",
    "unseen": "Specific, on sources that training had no image of the generator from",
    "generic": "Generic: all heads together",
    "leave-one-out": "Leave-one-out (generalized): the heads of the other generators",
}
_CLAIMS = "≤ 5 %: share of the views whose joint rate is at most that."
_EVIDENCE = "Evidence: share of the images whose joint rate a verdict calls evidence or stronger."


def protocol_table(name: str, result: Mapping[str, Any]) -> Table:
    """Write the result of `run_protocol`: a row a generator, and their mean."""
    rows = [{"generator": generator, **row} for generator, row in result["rows"].items()]
    if "mean" in result:
        rows.append({"generator": "mean", **result["mean"]})
    over_images = [g for g, r in result["rows"].items() if r["interval"] == "over images"]
    note = "Intervals (95 %) over sources."
    if over_images:
        note = f"Intervals (95 %) over images, not sources: {', '.join(over_images)}."
    left_out = ", ".join(f"{g} ({why})" for g, why in result["left_out"].items())
    columns = (Column("generator", "generator"), *_IMAGES, *_MEASURES)
    return Table.of(name, _TITLES.get(name, name), columns, rows).noted(
        note, f"Without a row: {left_out}." if left_out else ""
    )


def confusion_table(result: Mapping[str, Mapping[str, Any]]) -> Table:
    """Write the result of `confusion`, in per cent of each row."""
    heads = next(iter(result.values()))["named"]
    columns = (
        Column("made_by", "made by"),
        Column("images", "images"),
        *(Column(head, head, 0, percent=True) for head in heads),
    )
    rows = tuple((name, row["images"], *row["named"].values()) for name, row in result.items())
    return Table("confusion", "Which generator is named for whose images", columns, rows)


def breakdown_table(by: Breakdown, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Write the result of `break_down`."""
    generic = Column("generic_auroc", "AUROC, all heads")
    if by == "source":
        title = "By source: its images against all real ones"
        columns = (
            Column("group", "source"),
            Column("typ", "made by"),
            Column("images", "images"),
            Column("own_auroc", "AUROC, own head"),
            generic,
            Column("flagged_1", "≤ 1 %", 0, percent=True),
            Column("flagged_5", "≤ 5 %", 0, percent=True),
        )
    else:
        title = f"By {by}: synthetic and real images with the same one"
        columns = (
            Column("group", by),
            *_IMAGES,
            generic,
            Column("tpr_5", "synthetic ≤ 5 %", 0, percent=True),
            Column("fpr_1", "real ≤ 1 %", 1, percent=True),
            Column("fpr_5", "real ≤ 5 %", 1, percent=True),
        )
    table = Table.of(f"by-{by.replace(' ', '-')}", title, columns, rows)
    return table.noted(_CLAIMS if any("≤" in column.title for column in table.columns) else "")


def history_tables(pairs: Sequence[HistoryPair], reals: Sequence[RealHistories]) -> Iterable[Table]:
    """Write what compression alone explains; without reals to compare only the pairs."""
    yield Table.of(
        "history-pairs",
        "Every history of the synthetic against every history of the real views, all heads",
        (
            Column("synthetic_history", "synthetic views"),
            Column("real_history", "real views"),
            Column("synthetic", "synthetic"), Column("real", "real"), Column("auroc", "AUROC"),
        ),
        (asdict(pair) for pair in pairs),
    )  # fmt: skip
    if reals:
        yield Table(
            "real-histories",
            "Histories of real photos told apart: 0.5 is right",
            (
                Column("histories", "real photos alone"), Column("images", "images"),
                Column("sources", "sources"), Column("auroc", "AUROC"),
            ),
            tuple((one.histories, one.images, one.sources, one.auroc) for one in reals),
        )  # fmt: skip


def second_opinions_table(result: Mapping[str, Mapping[str, Any]]) -> Table:
    """Write the result of `second_opinions`."""
    generators = sorted({g for row in result.values() for g in row["by_generator"]})
    columns = (
        Column("detector", "detector"),
        Column("images", "images"),
        Column("auroc", "AUROC"),
        Column("tpr_5", "TPR at 5 % of these reals", 0, percent=True),
        *(Column(g, g) for g in generators),
    )
    rows = tuple(
        (name, row["images"], row["auroc"], row["tpr_5"],
         *(row["by_generator"].get(g) for g in generators))
        for name, row in result.items()
    )  # fmt: skip
    return Table("second-opinions", "Second opinions on the same views", columns, rows)


def degradations_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Write the results of `degradation`, by the name of the degradation."""
    columns = (
        Column("degradation", "degradation"),
        *_IMAGES,
        Column("specific_auroc", "AUROC, own heads, mean"),
        Column("generic_auroc", "AUROC, all heads"),
        Column("evidence", "synthetic, evidence", 0, percent=True),
        Column("flagged", "real, evidence", 1, percent=True),
    )
    rows = [{"degradation": name, **row} for name, row in results.items()]
    rated = any(row["evidence"] is not None for row in rows)
    return Table.of("degradations", "Files as found, after one degradation", columns, rows).noted(
        _EVIDENCE if rated else "", "Images that became too small to be analysed are left out."
    )

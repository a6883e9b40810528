"""Everything that is measured of a table of scores, as numbers and as tables to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import numpy as np

from masksim.config import Progress
from masksim.evaluation import breakdowns
from masksim.evaluation import protocol_tables as tables_of
from masksim.evaluation.degrade import GRID
from masksim.evaluation.measures import Evaluation
from masksim.evaluation.protocols import PROTOCOLS, Protocol, run_protocol, unseen
from masksim.evaluation.scale import Scale
from masksim.evaluation.score_table import ScoreTable
from masksim.show.tables import Table


@dataclass(frozen=True, eq=False)
class Results:
    """What was measured.

    Attributes
    ----------
    data
        By name of the table; numbers as `masksim.metrics.Estimate`. `plain` makes JSON of it.
    tables
        The same to be read.
    """

    data: Mapping[str, Any]
    tables: tuple[Table, ...]

    def __add__(self, other: Results) -> Results:
        """Put the results of both together."""
        return Results({**self.data, **other.data}, self.tables + other.tables)


def measure_table(
    given: Evaluation,
    *,
    chosen: Sequence[Protocol] = PROTOCOLS,
    seen: frozenset[tuple[str, str]] = frozenset(),
    peers: ScoreTable | None = None,
    name: str = "masksim",
    progress: Progress | None = None,
) -> Results:
    """Measure a table of scores: protocols, confusion, break-downs, second opinions.

    Parameters
    ----------
    given
        The scores, and what they mean; see `Evaluation.of`.
    chosen
        Protocols.
    seen
        (generator, source) pairs that training had: a table of its own leaves their images out.
    peers
        Scores of the same views by other detectors.
    name
        Of the detector, beside the peers.
    progress
        Called with (part, done, all).

    Returns
    -------
    Results

    Raises
    ------
    DataError
        The table cannot be measured, see `ScoreTable.check`.
    """
    tell: Progress = progress or (lambda stage, done, count: None)
    given.table.check()
    data: dict[str, Any] = {}
    tables: list[Table] = []

    def run(key: str, protocol: Protocol, given: Evaluation) -> None:
        data[key] = run_protocol(
            given, protocol, progress=lambda _, done, count: tell(key, done, count)
        )
        if data[key]["rows"]:
            tables.append(tables_of.protocol_table(key, data[key]))

    for protocol in chosen:
        run(protocol, protocol, given)
        if protocol == "specific" and seen and (rest := unseen(given.table, seen)).tested:
            run("unseen", protocol, replace(given, table=rest))
    tell("break-downs", 0, 1)
    data["confusion"] = breakdowns.confusion(given)
    tables.append(tables_of.confusion_table(data["confusion"]))
    for by in breakdowns.BREAKDOWNS:
        rows = breakdowns.break_down(given, by)
        if len(rows) > 1:
            data[f"by {by}"] = rows
            tables.append(tables_of.breakdown_table(by, rows))
    if len(set(given.table.histories.tolist())) > 1 and given.scale.calibration is not None:
        pairs, reals = breakdowns.history_pairs(given), breakdowns.real_histories(given)
        data["histories"] = {"pairs": pairs, "reals": reals}
        tables += tables_of.history_tables(pairs, reals)
    if peers is not None:
        data["second opinions"] = breakdowns.second_opinions(given, peers, name=name)
        tables.append(tables_of.second_opinions_table(data["second opinions"]))
    tell("break-downs", 1, 1)
    return Results(data, tuple(tables))


def measure_degradations(
    tables: Mapping[str, ScoreTable],
    scale: Scale,
    *,
    samples: int = 500,
    progress: Progress | None = None,
) -> Results:
    """Measure the scores of `masksim.evaluation.scoring.score_degraded`.

    Parameters
    ----------
    tables
        By name of the degradation.
    scale, samples
        See `Evaluation`.
    progress
        Called with (``"degradations"``, done, all).

    Returns
    -------
    Results
        ``degradations``: by name, see `masksim.evaluation.breakdowns.degradation`, with the images
        that could not be scored.
    """
    tell: Progress = progress or (lambda stage, done, count: None)
    rows: dict[str, Any] = {}
    tell("degradations", 0, len(tables))
    for k, (name, table) in enumerate(tables.items(), 1):
        rows[name] = {
            **breakdowns.degradation(Evaluation(table, scale, samples=samples)),
            "failures": dict(table.failures),
            "family": GRID[name].family,
            "does": GRID[name].does,
        }
        tell("degradations", k, len(tables))
    return Results({"degradations": rows}, (tables_of.degradations_table(rows),))


def plain(value: Any) -> Any:
    """Turn results into plain values for JSON: estimates into objects, NaN into null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return value

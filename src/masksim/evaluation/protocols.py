"""Protocols: which heads are asked about whose images.

A detector has one head a generator. Three protocols ask three questions of the same scores:

``specific``       does a generator's own head tell its images from real photos?
``generic``        do all heads together, with no word which generator it may be?
``leave-one-out``  do the heads of the *other* generators, as for a generator never seen?

(the last is called *generalized* by the original). ``unseen`` is the first without images of
sources that training had images of the same generator from.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from masksim.config import Progress
from masksim.data.manifest import REAL
from masksim.errors import DataError, UsageError
from masksim.evaluation.measures import Evaluation, mean
from masksim.evaluation.scale import CombinedScores, Scale, combine, combine_all
from masksim.evaluation.score_table import ScoreTable

Protocol: TypeAlias = Literal["specific", "generic", "leave-one-out"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


def protocol_scores(
    table: ScoreTable, scale: Scale, protocol: Protocol, generator: str = ""
) -> CombinedScores | None:
    """Ask the heads that a protocol has for a generator.

    Parameters
    ----------
    table
        Its columns are the scale's generators.
    scale
        What the scores mean.
    protocol
        ``"specific"``: the generator's own head. ``"generic"``: all. ``"leave-one-out"``: all
        others. What they give together: `masksim.evaluation.scale.combine`.
    generator
        Whose images are tested; not needed for ``"generic"``.

    Returns
    -------
    CombinedScores or None
        None where the question makes no sense: the detector has no head for the generator, or
        that head alone.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}, expected {', '.join(PROTOCOLS)}")
    own = np.array([name == generator for name in scale.generators])
    if protocol == "generic":
        return combine_all(table, scale)
    asked = own if protocol == "specific" else ~own & own.any()
    return combine(table, scale, asked) if asked.any() else None


def unseen(table: ScoreTable, seen: frozenset[tuple[str, str]]) -> ScoreTable:
    """Leave out images of sources that training had images of the same generator from.

    `seen` are pairs (generator, source), see `masksim.evaluation.scoring.seen_in_training`.
    """
    pairs = zip(table.typ.tolist(), table.sources.tolist(), strict=True)
    return table.select(np.array([t == REAL or (t, s) not in seen for t, s in pairs], dtype=bool))


def run_protocol(
    given: Evaluation, protocol: Protocol, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure every generator's images against the real ones by one protocol.

    Parameters
    ----------
    given
        The scores, and what they mean.
    protocol
        See `evidence`.
    progress
        Called with (protocol, generators done, all).

    Returns
    -------
    dict
        ``rows``: by generator numbers of images and `Estimate` of each measure; ``mean``: their
        mean, absent without rows; ``left_out``: generators without a row, and why. The measures
        are explained in docs/evaluate.md. Those that need a probability or a calibration are
        absent where there is none.

    Raises
    ------
    DataError
        See `ScoreTable.check`.
    """
    given.table.check()
    out: dict[str, Any] = {"rows": {}, "left_out": {}}
    parts = []
    names = given.table.tested
    for k, generator in enumerate(names):
        if progress:
            progress(protocol, k, len(names))
        chosen = (given.table.typ == generator) | given.real
        found: CombinedScores | None = None
        if protocol == "generic":
            found = given.joint.select(chosen)
        else:
            found = protocol_scores(given.table.select(chosen), given.scale, protocol, generator)
        if found is None:
            known = generator in given.scale.generators
            out["left_out"][generator] = "no other head" if known else "no head of its own"
            continue
        try:
            parts.append(given.measured(found, chosen))
        except DataError as error:  # no history in common with the reals
            out["left_out"][generator] = error.message
            continue
        out["rows"][generator] = parts[-1].row
    if progress:
        progress(protocol, len(names), len(names))
    if parts:
        out["mean"] = mean(parts)
    return out

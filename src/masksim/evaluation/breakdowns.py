"""Parts of the images, and other detectors: who is named, where it is wrong, what explains it.

Beside the protocols (`masksim.evaluation.protocols`): which generator is named for whose images;
the same measures by source, format, history, last processing, band of compression and stratum;
what compression alone explains; other detectors on the same views; images after a degradation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from masksim import metrics
from masksim.data.manifest import REAL
from masksim.errors import DataError
from masksim.evaluation.measures import CLAIMED, Evaluation, estimates, mean, percent
from masksim.evaluation.protocols import protocol_scores
from masksim.evaluation.scale import CombinedScores, Scale
from masksim.evaluation.score_table import ScoreTable
from masksim.metrics import Estimate
from masksim.populations import Populations
from masksim.traits import BANDS, TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.evaluation.measures import Bools, Floats

Breakdown: TypeAlias = Literal["source", "format", "history", "last step", "band", "stratum"]
BREAKDOWNS: tuple[Breakdown, ...] = get_args(Breakdown)

UNKNOWN = "unknown"  # evidence, but of no generator that the detector knows
SMALLEST = 10  # images of a source with a row of its own


# --- which generator -----------------------------------------------------------------------------


def confusion(given: Evaluation) -> dict[str, dict[str, Any]]:
    """Which generator is named for whose images.

    Calibrated: where a verdict would call the rate evidence, the generator of the lowest rate, or
    "unknown" where it is not clear; where the scale has no attribution, always that head. Without a
    calibration: the most probable head, if its probability is above one half; without
    probabilities: always the head of the highest score.

    Returns
    -------
    dict
        By class, ``"real"`` first: ``images``, and ``named``: shares by head and for
        ``"unknown"`` (where there is an attribution) and ``"no evidence"``, 1 in sum.
    """
    table, scale = given.table, given.scale
    scores = table.similarities
    odds = scale.log_odds(scores, table.traits)
    found = given.called_evidence
    if scale.calibration is not None and found is not None:
        rates, _ = scale.calibration.all_rates(scores, table.traits)
        # The lowest rate, of equals the highest similarity.
        best = np.lexsort((-scores, rates), axis=1)[:, 0]
        if scale.attribution is not None:
            best = scale.attribution.name(scores, rates)
    elif odds is not None:
        best, found = odds.argmax(axis=1), odds.max(axis=1) > 0
    else:
        best, found = scores.argmax(axis=1), np.ones(len(scores), bool)
    out: dict[str, dict[str, Any]] = {}
    for name in (REAL, *table.tested):
        own = table.typ == name
        if not own.any():
            continue
        weights = given.weigh(table.histories, [own])
        named = {
            head: float(weights[own & found & (best == g)].sum())
            for g, head in enumerate(scale.generators)
        }
        if scale.attribution is not None:
            named[UNKNOWN] = float(weights[own & found & (best < 0)].sum())
        named["no evidence"] = float(weights[own & ~found].sum())
        out[name] = {"images": table.count(own), "named": named}
    return out


# --- parts of the images -------------------------------------------------------------------------


def last_step(processing: str) -> str:
    """Name the last thing done to a view, its strength in tens: ``"jpeg 80 to 89"``."""
    words = processing.rsplit(", ", 1)[-1].split()
    if not words:
        return "none"
    if len(words) > 1 and words[1].isdigit():
        low = int(words[1]) // 10 * 10
        return f"{words[0]} {low} to {low + 9}" if low < 100 else f"{words[0]} {low}"
    return words[0]


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort numbers in names by their value."""
    return [(int(w), "") if w.isdigit() else (-1, w) for w in text.split()]


def _bands(table: ScoreTable) -> NDArray[np.str_]:
    """Name the band of compression of each view, ``""`` where it is not known."""
    if table.traits is None:
        return np.full(len(table.typ), "")
    known = ~np.isnan(table.traits[:, TRAITS.index("band")])
    return np.where(known, np.array(BANDS)[bands_of(table.traits, len(BANDS))], "")


def _strata(table: ScoreTable, scale: Scale) -> NDArray[np.str_]:
    """Say among which photos each view is ranked, as its verdict does; ``""`` without strata."""
    found = scale.calibration
    if found is None or table.traits is None:
        return np.full(len(table.typ), "")
    several = found.calibrations if isinstance(found, Populations) else {"": found}
    words = np.array([[c.tree.find(x).words for x in table.traits] for c in several.values()])
    if len(several) == 1:
        return words[0]
    joint = np.stack([c.all_rates(table.similarities, table.traits)[1] for c in several.values()])
    named = np.array([[f"{name}: {text}" for text in of]
                      for name, of in zip(several, words.tolist(), strict=True)])  # fmt: skip
    return named[joint.argmax(axis=0), np.arange(len(table.typ))]


def break_down(given: Evaluation, by: Breakdown) -> list[dict[str, Any]]:
    """Measure parts of the images by a fact.

    Parameters
    ----------
    given
        The scores, and what they mean.
    by
        ``"source"``: each source of a class, against all reals. ``"format"`` of the file as found,
        ``"history"``, ``"last step"`` of the processing, ``"band"`` of compression, ``"stratum"``
        of the calibration photos: synthetic and real images with the same value against each
        other, all generators together.

    Returns
    -------
    list of dict
        By source: ``group``, ``typ``, ``images``, ``own_auroc``, ``generic_auroc``, ``flagged_1``,
        ``flagged_5``. Otherwise ``group``, ``synthetic_images``, ``real_images``,
        ``generic_auroc``, ``tpr_5``, ``fpr_1``, ``fpr_5``. A value that cannot be had is None.
    """
    given.table.check()
    if by == "source":
        return _by_source(given)
    table, found = given.table, given.joint
    if by == "last step":
        keys = np.array([last_step(p) for p in table.processing])
    elif by == "stratum":
        keys = _strata(table, given.scale)
    else:
        keys = {"format": table.formats, "history": table.histories, "band": _bands(table)}[by]
    names = sorted(np.unique(keys).tolist(), key=_natural)
    if by == "band":
        names.sort(key=(*BANDS, "").index)
    rows = []
    for key in names:
        synthetic, real = (keys == key) & ~given.real, (keys == key) & given.real
        rows.append(
            {
                "group": key or "not known",
                "synthetic_images": table.count(synthetic),
                "real_images": table.count(real),
                "generic_auroc": given.auroc(found, synthetic, real),
                "tpr_5": given.share(found.claims(CLAIMED[-1]), synthetic),
                "fpr_1": given.share(found.claims(CLAIMED[0]), real),
                "fpr_5": given.share(found.claims(CLAIMED[-1]), real),
            }
        )
    return rows


def _by_source(given: Evaluation) -> list[dict[str, Any]]:
    table = given.table
    rows = []
    for typ in (*table.tested, REAL):
        of_typ = table.typ == typ
        own = protocol_scores(table, given.scale, "specific", typ)
        for name, sources in _groups_of_sources(table, of_typ):
            mask = of_typ & np.isin(table.sources, sources)
            row: dict[str, Any] = {"group": name, "typ": typ, "images": table.count(mask)}
            for key, asked in (("own_auroc", own), ("generic_auroc", given.joint)):
                row[key] = None
                if typ != REAL and asked is not None:
                    row[key] = given.auroc(asked, mask, given.real)
            for limit in CLAIMED:
                flags = given.joint.claims(limit)
                row[f"flagged_{percent(limit)}"] = given.share(flags, mask)
            rows.append(row)
    return rows


def _groups_of_sources(table: ScoreTable, of_typ: Bools) -> list[tuple[str, list[str]]]:
    """List the sources of a class, the largest first; those of few images are one group."""
    sizes = {
        source: table.count(of_typ & (table.sources == source))
        for source in np.unique(table.sources[of_typ]).tolist()
    }
    large = sorted((s for s in sizes if sizes[s] >= SMALLEST), key=lambda s: (-sizes[s], s))
    small = [s for s in sizes if sizes[s] < SMALLEST]
    groups = [(s or "not known", [s]) for s in large]
    if len(small) == 1:
        groups.append((small[0] or "not known", small))
    elif small:
        groups.append((f"{len(small)} sources of fewer than {SMALLEST} images", small))
    return groups


# --- what compression alone explains -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HistoryPair:
    """Synthetic views of one history against real ones of another, all heads together."""

    synthetic_history: str
    real_history: str
    synthetic: int
    real: int
    auroc: float


@dataclass(frozen=True, slots=True)
class RealHistories:
    """Real photos alone, told apart by their history: an AUROC of 0.5 is right."""

    histories: str
    images: int
    sources: int
    auroc: Estimate


def history_pairs(given: Evaluation) -> list[HistoryPair]:
    """Measure every history of the detector's generators against every one of the real views."""
    table, real = given.table, given.real
    known = np.isin(table.typ, table.generators)
    pairs = []
    for ours in np.unique(table.histories[known]).tolist():
        for theirs in np.unique(table.histories[real]).tolist():
            rows = (known & (table.histories == ours)) | (real & (table.histories == theirs))
            area = metrics.auroc(given.joint.score[rows], known[rows])
            counts = int((rows & known).sum()), int((rows & real).sum())
            pairs.append(HistoryPair(ours, theirs, *counts, area))
    return pairs


def real_histories(given: Evaluation) -> list[RealHistories]:
    """Measure whether real views of different histories are told apart."""
    table, real, score = given.table, given.real, given.joint.score

    def against(history: str, rows: Bools, name: str, counted: Bools) -> list[RealHistories]:
        y = table.histories[rows] == history
        if y.all() or not y.any():  # of files as found there is one view each
            return []
        # Lossless files come from few sources, so that whole sources are drawn.
        area = metrics.bootstrap(
            metrics.auroc, score[rows], y, groups=table.sources[rows], samples=given.samples
        )
        sources = len(np.unique(table.sources[counted]))
        return [RealHistories(name, table.count(counted), sources, area)]

    out = []
    for history in ("lossless", "reduced"):
        rows = real & np.isin(table.histories, ("jpeg", history))
        name = f"{history} against jpeg reals"
        out += against(history, rows, name, rows & (table.histories == history))
    # The same lossless photos with and without a first JPEG: no difference of sources.
    both = np.isin(table.filenames, table.filenames[real & (table.histories == "lossless")])
    rows = real & both & np.isin(table.histories, ("jpeg", "lossless"))
    return out + against("lossless", rows, "lossless against a first JPEG, the same photos", rows)


# --- other detectors -----------------------------------------------------------------------------


def second_opinions(
    given: Evaluation, columns: ScoreTable, *, name: str = "masksim"
) -> dict[str, dict[str, Any]]:
    """Measure other detectors on the same views as ours.

    Parameters
    ----------
    given
        Our scores.
    columns
        The same views, a column a peer; larger is more synthetic, NaN where it has no score.
    name
        Of our own row: the generic protocol.

    Returns
    -------
    dict
        By detector: ``images`` scored by it, ``auroc`` and ``tpr_5`` over all generators,
        ``by_generator``: AUROC. TPR is at the threshold that 5 % of these very reals reach, for
        all detectors alike: a peer has no calibration of its own.
    """
    given.table.check()
    peers = zip(columns.generators, columns.similarities.T, strict=True)
    out: dict[str, dict[str, Any]] = {}
    for column, scores in ((name, given.joint.score), *peers):
        has = ~np.isnan(scores)
        asked = replace(given, table=given.table.select(has))
        part, s, y = asked.table, scores[has], ~asked.real
        if y.all() or not y.any():
            raise DataError(f"{column} has scored no real image, or no other")

        def both(w: Floats, s: Floats = s, y: Bools = y) -> dict[str, float]:
            keep = w > 0
            return {
                "auroc": metrics.ranking(s[keep], y[keep], w[keep])["auroc"],
                "tpr_5": metrics.tpr_at_fpr(s[keep], y[keep], w[keep], fpr=CLAIMED[-1]),
            }

        groups, _ = metrics.draw_together(y, part.filenames, part.sources)
        weights = given.weigh(part.histories, [y, ~y])
        found = CombinedScores(s, None, None)
        out[column] = {
            "images": len(np.unique(part.filenames)),
            **estimates(both, y, weights, groups, given.samples)[0],
            "by_generator": {g: asked.auroc(found, part.typ == g, ~y) for g in part.tested},
        }
    return out


# --- degradations --------------------------------------------------------------------------------


def degradation(given: Evaluation) -> dict[str, Any]:
    """Measure the scores of images after one degradation.

    Returns
    -------
    dict
        ``synthetic_images``, ``real_images`` scored; ``specific_auroc``: mean over the generators
        that the detector knows; ``generic_auroc``: all synthetic images together; ``evidence`` and
        ``flagged``: share of synthetic and of real images whose rate a verdict calls evidence. None
        where it cannot be had: none of a class could be scored, no calibration.
    """
    table, real = given.table, given.real
    some = len(real) > 0
    parts = []
    for generator in table.tested if real.any() else ():
        chosen = real | (table.typ == generator)
        own = protocol_scores(table.select(chosen), given.scale, "specific", generator)
        if own is not None:
            parts.append(given.measured(own, chosen, ranks_only=True))
    return {
        "synthetic_images": table.count(~real),
        "real_images": table.count(real),
        "specific_auroc": mean(parts)["auroc"] if parts else None,
        "generic_auroc": given.auroc(given.joint, ~real, real) if some else None,
        "evidence": given.share(given.called_evidence, ~real) if some else None,
        "flagged": given.share(given.called_evidence, real) if some else None,
    }

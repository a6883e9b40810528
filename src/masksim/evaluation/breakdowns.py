"""Parts of the images, and other detectors: who is named, where it is wrong, what explains it.

Beside the protocols (`masksim.evaluation.protocols`): which generator is named for whose images;
the same measures by source, format, history, last processing, band of compression and stratum;
what compression alone explains; other detectors on the same views; images after a degradation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from masksim import metrics
from masksim.calibration import Populations
from masksim.data.manifest import REAL
from masksim.errors import DataError
from masksim.evaluation.protocols import (
    CLAIMED,
    Evidence,
    Scale,
    auroc,
    called_evidence,
    claims,
    equal_views,
    estimates,
    evidence,
    joint_evidence,
    mean,
    measured,
    percent,
    share,
)
from masksim.evaluation.score_table import ScoreTable
from masksim.metrics import Estimate
from masksim.traits import BANDS, TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.evaluation.protocols import Bools, Floats, Weigh

Breakdown: TypeAlias = Literal["source", "format", "history", "last step", "band", "stratum"]
BREAKDOWNS: tuple[Breakdown, ...] = get_args(Breakdown)

UNKNOWN = "unknown"  # evidence, but of no generator that the detector knows
SMALLEST = 10  # images of a source with a row of its own


# --- which generator -----------------------------------------------------------------------------


def confusion(
    table: ScoreTable, scale: Scale, *, weigh: Weigh = equal_views
) -> dict[str, dict[str, Any]]:
    """Which generator is named for whose images.

    Parameters
    ----------
    table, scale, weigh
        As in `masksim.evaluation.protocols.run_protocol`. Calibrated: where a verdict would call
        the rate evidence a generator is named, the one of the lowest rate, or "unknown" where it is
        not clear; where the scale has no attribution, always that head. Without a calibration: the
        most probable head, if its probability is above one half; without probabilities: always the
        head of the highest score.

    Returns
    -------
    dict
        By class, ``"real"`` first: ``images``, and ``named``: shares by head and for
        ``"unknown"`` (where there is an attribution) and ``"no evidence"``, 1 in sum.
    """
    scores = table.similarities
    odds = scale.log_odds(scores, table.traits)
    found = called_evidence(table, scale)
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
        weights = weigh(table.histories, [own])
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


def break_down(
    table: ScoreTable,
    scale: Scale,
    by: Breakdown,
    *,
    weigh: Weigh = equal_views,
    samples: int = 500,
) -> list[dict[str, Any]]:
    """Measure parts of the images by a fact.

    Parameters
    ----------
    table, scale, weigh, samples
        As in `masksim.evaluation.protocols.run_protocol`.
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
    table.check()
    found = joint_evidence(table, scale)
    if by == "source":
        return _by_source(table, scale, found, weigh, samples)
    if by == "last step":
        keys = np.array([last_step(p) for p in table.processing])
    elif by == "stratum":
        keys = _strata(table, scale)
    else:
        keys = {"format": table.formats, "history": table.histories, "band": _bands(table)}[by]
    names = sorted(np.unique(keys).tolist(), key=_natural)
    if by == "band":
        names.sort(key=(*BANDS, "").index)
    real = table.typ == REAL
    rows = []
    for key in names:
        synthetic, reals = (keys == key) & ~real, (keys == key) & real

        def claimed(limit: float, mask: Bools) -> Estimate | None:
            return share(table, claims(found, limit), mask, weigh, samples)

        rows.append(
            {
                "group": key or "not known",
                "synthetic_images": table.count(synthetic),
                "real_images": table.count(reals),
                "generic_auroc": auroc(table, found, synthetic, reals, weigh, samples),
                "tpr_5": claimed(CLAIMED[-1], synthetic),
                "fpr_1": claimed(CLAIMED[0], reals),
                "fpr_5": claimed(CLAIMED[-1], reals),
            }
        )
    return rows


def _by_source(
    table: ScoreTable, scale: Scale, found: Evidence, weigh: Weigh, samples: int
) -> list[dict[str, Any]]:
    real = table.typ == REAL
    rows = []
    for typ in (*table.tested, REAL):
        of_typ = table.typ == typ
        own = evidence(table, scale, "specific", typ)
        for name, sources in _groups_of_sources(table, of_typ):
            mask = of_typ & np.isin(table.sources, sources)
            row: dict[str, Any] = {"group": name, "typ": typ, "images": table.count(mask)}
            for key, asked in (("own_auroc", own), ("generic_auroc", found)):
                row[key] = None
                if typ != REAL and asked is not None:
                    row[key] = auroc(table, asked, mask, real, weigh, samples)
            for limit in CLAIMED:
                flagged = share(table, claims(found, limit), mask, weigh, samples)
                row[f"flagged_{percent(limit)}"] = flagged
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


def history_pairs(table: ScoreTable, found: Evidence) -> list[HistoryPair]:
    """Measure every history of the detector's generators against every one of the real views.

    `found` is from `masksim.evaluation.protocols.joint_evidence`.
    """
    real = table.typ == REAL
    known = np.isin(table.typ, table.generators)
    pairs = []
    for ours in np.unique(table.histories[known]).tolist():
        for theirs in np.unique(table.histories[real]).tolist():
            rows = (known & (table.histories == ours)) | (real & (table.histories == theirs))
            area = metrics.auroc(found.score[rows], known[rows])
            counts = int((rows & known).sum()), int((rows & real).sum())
            pairs.append(HistoryPair(ours, theirs, *counts, area))
    return pairs


def real_histories(table: ScoreTable, found: Evidence, samples: int = 500) -> list[RealHistories]:
    """Measure whether real views of different histories are told apart."""
    real = table.typ == REAL

    def against(history: str, rows: Bools, name: str, counted: Bools) -> list[RealHistories]:
        y = table.histories[rows] == history
        if y.all() or not y.any():  # of files as found there is one view each
            return []
        # Lossless files come from few sources, so that whole sources are drawn.
        area = metrics.bootstrap(
            metrics.auroc, found.score[rows], y, groups=table.sources[rows], samples=samples
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
    table: ScoreTable,
    scale: Scale,
    peers: Sequence[str],
    *,
    name: str = "masksim",
    weigh: Weigh = equal_views,
    samples: int = 500,
) -> dict[str, dict[str, Any]]:
    """Measure other detectors on the same views as ours.

    Parameters
    ----------
    table
        Columns of the scale's generators, and of the peers.
    scale, weigh, samples
        As in `masksim.evaluation.protocols.run_protocol`.
    peers
        Columns; larger is more synthetic.
    name
        Of our own row: the generic protocol.

    Returns
    -------
    dict
        By detector: ``images`` scored by it, ``auroc`` and ``tpr_5`` over all generators,
        ``by_generator``: AUROC. TPR is at the threshold that 5 % of these very reals reach, for
        all detectors alike: a peer has no calibration of its own.
    """
    own = table.only(scale.generators)
    own.check()
    columns = {name: joint_evidence(own, scale).score}
    columns |= {p: table.only([p]).similarities[:, 0] for p in peers}
    out: dict[str, dict[str, Any]] = {}
    for column, scores in columns.items():
        has = ~np.isnan(scores)
        part = table.select(has)
        if REAL not in part.typ or not part.tested:
            raise DataError(f"{column} has scored no real image, or no other")
        found = Evidence(scores[has], None, None)
        real = part.typ == REAL
        groups, _ = metrics.draw_together(~real, part.filenames, part.sources)

        def both(w: Floats, s: Floats = found.score, y: Bools = ~real) -> dict[str, float]:
            keep = w > 0
            return {
                "auroc": metrics.ranking(s[keep], y[keep], w[keep])["auroc"],
                "tpr_5": metrics.tpr_at_fpr(s[keep], y[keep], w[keep], fpr=CLAIMED[-1]),
            }

        weights = weigh(part.histories, [~real, real])
        out[column] = {
            "images": len(np.unique(part.filenames)),
            **estimates(both, ~real, weights, groups, samples)[0],
            "by_generator": {
                g: auroc(part, found, part.typ == g, real, weigh, samples) for g in part.tested
            },
        }
    return out


# --- degradations --------------------------------------------------------------------------------


def degradation(table: ScoreTable, scale: Scale, *, samples: int = 500) -> dict[str, Any]:
    """Measure the scores of images after one degradation.

    Parameters
    ----------
    table, scale, samples
        As in `masksim.evaluation.protocols.run_protocol`.

    Returns
    -------
    dict
        ``synthetic_images``, ``real_images`` scored; ``specific_auroc``: mean over the generators
        that the detector knows; ``generic_auroc``: all synthetic images together; ``evidence`` and
        ``flagged``: share of synthetic and of real images whose rate a verdict calls evidence. None
        where it cannot be had: none of a class could be scored, no calibration.
    """
    real = table.typ == REAL
    out: dict[str, Any] = {
        "synthetic_images": table.count(~real),
        "real_images": table.count(real),
        "specific_auroc": None,
        "generic_auroc": None,
        "evidence": None,
        "flagged": None,
    }
    if not len(real):
        return out
    found, flags = joint_evidence(table, scale), called_evidence(table, scale)
    out["evidence"] = share(table, flags, ~real, equal_views, samples)
    out["flagged"] = share(table, flags, real, equal_views, samples)
    out["generic_auroc"] = auroc(table, found, ~real, real, equal_views, samples)
    parts = []
    for generator in table.tested if real.any() else ():
        part = table.select(real | (table.typ == generator))
        own = evidence(part, scale, "specific", generator)
        if own is not None:
            y = part.typ == generator
            parts.append(measured(part, own, y, equal_views, samples, ranks_only=True))
    if parts:
        out["specific_auroc"] = mean(parts)["auroc"]
    return out

"""From a table of scores to the tables of a paper: no images, no files, no detector.

A detector has one head a generator. Three protocols ask three questions of the same scores:

``specific``       does a generator's own head tell its images from real photos?
``generic``        do all heads together, with no word which generator it may be?
``leave-one-out``  do the heads of the *other* generators, as for a generator never seen?

(the last is called *generalized* by the original). `Scale` says what the scores mean: whether they
can be turned into probabilities, and which rates of real photos they stand for.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from masksim import metrics
from masksim.calibration import Calibration
from masksim.data.manifest import REAL
from masksim.errors import DataError, UsageError
from masksim.evidence import Attribution
from masksim.populations import Populations
from masksim.show.tables import Cell, Column, Interval, Table
from masksim.traits import TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

    Weigh = Callable[[NDArray[np.str_], Sequence[Bools]], Floats]
    """Weights (n,) of views by their histories, for disjoint classes: 1 in sum for each."""

Protocol: TypeAlias = Literal["specific", "generic", "leave-one-out"]
PROTOCOLS: tuple[Protocol, ...] = ("specific", "generic", "leave-one-out")

Breakdown: TypeAlias = Literal["source", "format", "history", "last step"]
BREAKDOWNS: tuple[Breakdown, ...] = ("source", "format", "history", "last step")

FACTS = ("filename", "typ", "source", "history", "format", "processing")
LEVELS = (0.01, 0.05)  # of the false-positive rates that are claimed
UNKNOWN = "unknown"  # evidence, but of no generator that the detector knows
EVIDENCE = 0.05  # the joint rate up to which a generator is named
FEW_SOURCES = 3  # with fewer, intervals draw images
SMALLEST = 10  # images of a source with a row of its own
_LEAST = 1e-7  # of a probability: what single precision can tell from 0 and 1

_TRAIT_COLUMNS = tuple(f"trait {name}" for name in TRAITS)
_ARRAYS = ("filenames", "typ", "sources", "histories", "formats", "processing", "similarities")


# --- the table of scores -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of the views of a split.

    Attributes
    ----------
    filenames, typ, sources, histories, formats, processing
        str (n,): path in the manifest, generator or ``"real"``, source, history of the view,
        format of the file as found, what was done. All but the first two may be ``""``.
    generators
        Columns of `similarities`: heads of a detector, or other detectors.
    similarities
        float64 (n, G); NaN where a column has no score.
    failures
        Path to error code.
    traits
        float64 (n, T): what each view shows, see `masksim.traits`; None where it is not known.
    """

    filenames: NDArray[np.str_]
    typ: NDArray[np.str_]
    sources: NDArray[np.str_]
    histories: NDArray[np.str_]
    formats: NDArray[np.str_]
    processing: NDArray[np.str_]
    generators: tuple[str, ...]
    similarities: Floats
    failures: Mapping[str, str] = field(default_factory=dict)
    traits: Floats | None = None

    def select(self, mask: Bools) -> ScoreTable:
        """Return the rows where `mask` (n,) is true."""
        traits = None if self.traits is None else self.traits[mask]
        chosen = {name: getattr(self, name)[mask] for name in _ARRAYS}
        return replace(self, traits=traits, **chosen)

    def only(self, columns: Sequence[str]) -> ScoreTable:
        """Return the table with these columns, in this order.

        Raises
        ------
        DataError
            One is not there.
        """
        if missing := [c for c in columns if c not in self.generators]:
            raise DataError(
                f"the scores have no column {', '.join(missing)}; there are "
                f"{', '.join(self.generators)}"
            )
        places = [self.generators.index(c) for c in columns]
        return replace(self, generators=tuple(columns), similarities=self.similarities[:, places])

    def joined(self, other: ScoreTable) -> ScoreTable:
        """Return the table with the columns of another one of the same views.

        Views are matched by file name and history; those that the other one lacks are NaN.
        """
        if twice := sorted(set(self.generators) & set(other.generators)):
            raise UsageError(f"two columns of the scores have the name {', '.join(twice)}")
        keys = zip(other.filenames.tolist(), other.histories.tolist(), strict=True)
        found = {key: row for key, row in zip(keys, other.similarities, strict=True)}
        nothing = np.full(len(other.generators), np.nan)
        keys = zip(self.filenames.tolist(), self.histories.tolist(), strict=True)
        added = np.array([found.get(key, nothing) for key in keys])
        return replace(
            self,
            generators=(*self.generators, *other.generators),
            similarities=np.hstack([self.similarities, added]),
        )

    def to_csv(self) -> str:
        """Write the field's convention: ``filename,typ``, facts, then one column a generator.

        What the views show comes last, as ``trait side`` and so on.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        shown = () if self.traits is None else _TRAIT_COLUMNS
        writer.writerow([*FACTS, *self.generators, *shown])
        for i in range(len(self.filenames)):
            facts = [getattr(self, name)[i] for name in _ARRAYS[:-1]]
            numbers = [*self.similarities[i], *(() if self.traits is None else self.traits[i])]
            writer.writerow([*facts, *("" if np.isnan(x) else f"{x:.7g}" for x in numbers)])
        return out.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> ScoreTable:
        """Read what `to_csv` writes, or any table with ``filename,typ`` and columns of scores.

        Parameters
        ----------
        text
            CSV with a heading. ``source``, ``history``, ``format`` and ``processing`` may be
            missing; every other column holds the scores of a detector, an empty cell none.

        Raises
        ------
        DataError
            A column is missing or there twice, a score is no finite number, or there are no rows.
        """
        rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
        head = [name.strip() for name in rows[0]] if rows else []
        missing = [name for name in FACTS[:2] if name not in head]
        shown = [name in head for name in _TRAIT_COLUMNS]
        columns = tuple(name for name in head if name not in (*FACTS, *_TRAIT_COLUMNS))
        if missing or not columns or len(set(head)) != len(head):
            raise DataError(
                "a table of scores has the columns filename, typ and one or more detectors, each "
                f"once; found {', '.join(head) or 'nothing'}",
                code="manifest_invalid",
            )
        lines = [row for row in rows[1:] if any(row)]
        if not lines:
            raise DataError("the table of scores has no rows", code="manifest_invalid")
        if wrong := next((k for k, row in enumerate(lines, 2) if len(row) != len(head)), None):
            raise DataError(
                f"row {wrong} of the scores has {len(lines[wrong - 2])} cells, expected "
                f"{len(head)}",
                code="manifest_invalid",
            )
        cells = dict(zip(head, zip(*lines, strict=True), strict=True))
        scores = np.array([[_score(x, name) for x in cells[name]] for name in columns]).T
        traits = None
        if all(shown):
            traits = np.array([[_score(x, n) for x in cells[n]] for n in _TRAIT_COLUMNS]).T
        empty = ("",) * len(lines)
        a, b, c, d, e, f = (np.array(cells.get(name, empty), dtype=np.str_) for name in FACTS)
        return cls(a, b, c, d, e, f, columns, scores, traits=traits)


def _score(text: str, column: str) -> float:
    if not text.strip():
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("inf")
    if not np.isfinite(value):
        raise DataError(
            f"{text!r} in the column {column!r} of the scores is not a finite number",
            code="manifest_invalid",
        )
    return value


def read_original(folders: Mapping[str, Mapping[str, Sequence[tuple[str, float]]]]) -> ScoreTable:
    """Make a table of what the original's evaluation saved.

    Parameters
    ----------
    folders
        For each test class (``"real"`` among them) and each trained class the file names and
        probabilities, as its ``<test>_to_<trained>.json`` hold them.

    Returns
    -------
    ScoreTable
        The source is the folder in which an image lies.

    Raises
    ------
    DataError
        A pair is missing, or the pairs of a test class are not of the same images.
    """
    trained = sorted({name for pairs in folders.values() for name in pairs})
    if REAL not in folders or len(folders) < 2 or not trained:
        raise DataError(
            "scores of real images and of at least one generator are needed, found those of "
            f"{', '.join(sorted(folders)) or 'nothing'}"
        )
    names: list[str] = []
    typ: list[str] = []
    blocks: list[Floats] = []
    for test, pairs in sorted(folders.items()):
        if lacking := [name for name in trained if name not in pairs]:
            raise DataError(f"there are no scores {test}_to_{lacking[0]}")
        images = [name for name, _ in pairs[trained[0]]]
        for name in trained:
            if [image for image, _ in pairs[name]] != images:
                raise DataError(
                    f"{test}_to_{name} and {test}_to_{trained[0]} are not of the same images"
                )
        names += images
        typ += [test] * len(images)
        columns = [[float(score) for _, score in pairs[name]] for name in trained]
        blocks.append(np.array(columns).reshape(len(trained), -1).T)
    scores = np.concatenate(blocks)
    if not np.isfinite(scores).all():
        raise DataError("a score is not a finite number")
    sources = [name.rsplit("/", 2)[-2] if "/" in name else "" for name in names]
    empty = np.array([""] * len(names))
    return ScoreTable(
        np.array(names), np.array(typ), np.array(sources), empty, empty, empty,
        tuple(trained), scores,
    )  # fmt: skip


# --- what scores mean ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scale:
    """What the scores of a detector's heads mean.

    Attributes
    ----------
    generators
        One a head.
    slope, offset
        (G,), or (B, G) for each band of compression: the log-odds of the probability are
        ``slope * score + offset``; None where scores are of an unknown scale, or probabilities
        themselves.
    probabilities
        Whether the scores are probabilities in [0, 1].
    calibration
        Scores of calibration photos; None: not calibrated.
    attribution
        Tells how clear it is which generator an image is of, as in verdicts; None: not known.
    """

    generators: tuple[str, ...]
    slope: Floats | None = None
    offset: Floats | None = None
    probabilities: bool = False
    calibration: Calibration | Populations | None = None
    attribution: Attribution | None = None

    @classmethod
    def of_table(
        cls, table: ScoreTable, calibration: Calibration | Populations | None = None
    ) -> Scale:
        """Scale of a table without its detector: numbers all in [0, 1] are probabilities."""
        s = table.similarities
        within = bool(((s >= 0) & (s <= 1)).all())
        return cls(table.generators, probabilities=within, calibration=calibration)

    def log_odds(self, scores: Floats, traits: Floats | None = None) -> Floats | None:
        """Log-odds (n, G) of the heads' probabilities, or None where there are none.

        The traits (n, T) tell the band of each image; without them it is the first.
        """
        if self.probabilities:
            p = np.clip(scores, _LEAST, 1 - _LEAST)
            return np.log(p) - np.log1p(-p)
        if self.slope is None or self.offset is None:
            return None
        if self.slope.ndim == 1:
            return scores * self.slope + self.offset
        if traits is None:
            traits = np.full((len(scores), len(TRAITS)), np.nan)
        band = bands_of(traits, len(self.slope))
        return scores * self.slope[band] + self.offset[band]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a protocol makes of each row's scores.

    Attributes
    ----------
    score
        (n,) larger is more synthetic.
    rate
        (n,) false-positive rate that is claimed, by the calibration; None without one.
    log_odds
        (n,) of the highest probability among the heads asked; None where there are none.
    """

    score: Floats
    rate: Floats | None
    log_odds: Floats | None

    def select(self, mask: Bools) -> Evidence:
        """Return the rows where `mask` (n,) is true."""
        return Evidence(
            self.score[mask],
            None if self.rate is None else self.rate[mask],
            None if self.log_odds is None else self.log_odds[mask],
        )


def evidence(
    table: ScoreTable, scale: Scale, protocol: Protocol, generator: str = ""
) -> Evidence | None:
    """Ask the heads that a protocol has for a generator.

    Parameters
    ----------
    table
        Its columns are the scale's generators.
    scale
        What the scores mean.
    protocol
        ``"specific"``: the generator's own head. ``"generic"``: all. ``"leave-one-out"``: all
        others. With a calibration several heads give their joint rate, and the score is minus its
        logarithm; without, the highest log-odds or score.
    generator
        Whose images are tested; not needed for ``"generic"``.

    Returns
    -------
    Evidence or None
        None where the question makes no sense: the detector has no head for the generator, or
        that head alone.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}, expected {', '.join(PROTOCOLS)}")
    own = np.array([name == generator for name in scale.generators])
    if protocol == "generic":
        return joint_evidence(table, scale)
    asked = own if protocol == "specific" else ~own & own.any()
    return _ask(table, scale, asked) if asked.any() else None


def joint_evidence(table: ScoreTable, scale: Scale) -> Evidence:
    """Ask all heads together: `evidence` by the generic protocol."""
    return _ask(table, scale, np.ones(len(scale.generators), bool))


def _ask(table: ScoreTable, scale: Scale, asked: Bools) -> Evidence:
    if tuple(table.generators) != tuple(scale.generators):
        raise UsageError(f"scores of {table.generators} with the scale of {scale.generators}")
    scores = table.similarities[:, asked]
    odds = scale.log_odds(table.similarities, table.traits)
    highest = None if odds is None else odds[:, asked].max(axis=1)
    if scale.calibration is None:
        best = scores.max(axis=1) if highest is None or scores.shape[1] == 1 else highest
        return Evidence(best, None, highest)
    own, joint = scale.calibration.only(asked).all_rates(scores, table.traits)
    if scores.shape[1] == 1:
        return Evidence(scores[:, 0], own[:, 0], highest)
    return Evidence(-np.log(joint), joint, highest)


# --- measuring -----------------------------------------------------------------------------------


def equal_views(histories: NDArray[np.str_], classes: Sequence[Bools]) -> Floats:
    """Weigh all views of a class the same."""
    weights = np.zeros(len(histories))
    for mask in classes:
        weights[mask] = 1.0 / max(1, int(mask.sum()))
    return weights


def _groups(table: ScoreTable, synthetic: Bools) -> tuple[NDArray[np.str_], list[str]]:
    """Label what a bootstrap draws together: sources, or images where there are few sources."""
    labels = np.char.add("image ", table.filenames.astype(np.str_))
    kinds = []
    for mask in (synthetic, ~synthetic):
        sources = np.unique(table.sources[mask])
        many = len(sources) >= FEW_SOURCES and "" not in sources
        if many:
            labels = np.where(mask, np.char.add("source ", table.sources), labels)
        kinds.append("over sources" if many else "over images")
    return labels, kinds


def _statistics(
    found: Evidence, synthetic: Bools, weights: Floats, *, ranks_only: bool
) -> dict[str, float]:
    """All measures of one (re)weighting of the rows."""
    keep = weights > 0
    y, w, s = synthetic[keep], weights[keep], found.score[keep]
    out = metrics.ranking(s, y, w)
    if found.rate is not None:
        for level in LEVELS:
            flagged = (found.rate[keep] <= level).astype(np.float64)
            name = f"{100 * level:.0f}"
            out[f"tpr_{name}"] = metrics.true_positive_rate(flagged, y, w, threshold=0.5)
            out[f"fpr_{name}"] = metrics.false_positive_rate(flagged, y, w, threshold=0.5)
    if ranks_only:
        return out
    out["min_cllr"] = metrics.min_cllr(s, y, w)
    if found.log_odds is not None:
        odds = found.log_odds[keep]
        balanced = metrics.balanced_weights(y, w)
        out["accuracy"] = metrics.accuracy(odds, y, w, threshold=0.0)
        out["balanced_accuracy"] = metrics.balanced_accuracy(odds, y, w, threshold=0.0)
        out["mcc"] = metrics.mcc(odds, y, w, threshold=0.0)
        out["ece"] = metrics.ece(_sigmoid(odds), y, balanced)
        out["cllr"] = metrics.cllr(odds, y, w)
    return out


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))


@dataclass(frozen=True, eq=False)
class _Measured:
    row: dict[str, Any]
    draws: dict[str, Floats]  # (samples,) of each measure


def _measured(
    table: ScoreTable,
    found: Evidence,
    synthetic: Bools,
    weigh: Weigh,
    samples: int,
    *,
    ranks_only: bool = False,
) -> _Measured:
    """Measures of all rows of a table, with intervals."""
    weights = weigh(table.histories, [synthetic, ~synthetic])
    used = weights > 0
    sizes = [len(np.unique(table.filenames[used & mask])) for mask in (synthetic, ~synthetic)]
    # The classes count as the images they have: accuracy and MCC depend on how many there are.
    weights = weights * np.where(synthetic, *sizes)
    labels, kinds = _groups(table, synthetic)
    values = _statistics(found, synthetic, weights, ranks_only=ranks_only)
    draws: dict[str, Floats] = {name: np.full(samples, np.nan) for name in values}
    # Draws of the reals are the same for all generators, those of the generators' images are not.
    name_of = zlib.crc32("".join(np.unique(table.typ[synthetic])).encode())
    streams = (np.random.default_rng([0, 0, name_of]), np.random.default_rng([0, 1]))
    drawn = metrics.resampled_weights(
        synthetic, weights, groups=labels, samples=samples, streams=streams
    )
    for b, sample in enumerate(drawn):
        if sample[synthetic].sum() > 0 and sample[~synthetic].sum() > 0:
            for name, value in _statistics(found, synthetic, sample, ranks_only=ranks_only).items():
                draws[name][b] = value
    row: dict[str, Any] = {
        "synthetic_images": sizes[0],
        "synthetic_sources": len(np.unique(table.sources[used & synthetic])),
        "real_images": sizes[1],
        "interval": kinds[0],
        "interval_of_reals": kinds[1],
    }
    units = [len(np.unique(labels[used & mask])) for mask in (synthetic, ~synthetic)]
    for name, value in values.items():
        kind = name.split("_")[0]
        n = {"tpr": units[0], "fpr": units[1]}.get(kind)
        row[name] = _interval(value, draws[name], units=n)
    return _Measured(row, draws)


def _interval(value: float, draws: Floats, *, units: int | None = None) -> Interval:
    """Make an interval of draws; of a share of `units` that is 0 or 1, the exact one.

    If none of n units has a trait, no bootstrap draws one: then the interval is that of Clopper
    and Pearson, as if the units were independent.
    """
    found = metrics.estimate(value, draws)
    low, high = found.low, found.high
    if units and value in (0.0, 1.0) and low == high == value:
        far = 1.0 - 0.025 ** (1.0 / units)
        low, high = (0.0, far) if value == 0.0 else (1.0 - far, 1.0)
    return Interval(found.value, low, high)


def _mean(parts: Sequence[_Measured]) -> dict[str, Any]:
    """Mean over generators, draw by draw: all were measured against the same draws of reals."""
    names = [name for name in parts[0].draws if all(name in part.draws for part in parts)]
    return {
        name: _interval(
            float(np.mean([part.row[name].value for part in parts])),
            np.mean([part.draws[name] for part in parts], axis=0),
        )
        for name in names
    }


def tested(table: ScoreTable) -> list[str]:
    """Return the generators that a table has images of, sorted."""
    return sorted(set(table.typ.tolist()) - {REAL})


def check(table: ScoreTable) -> None:
    """Refuse a table that cannot be measured.

    Raises
    ------
    DataError
        There are no real images, or no others, or a row without a score.
    """
    if REAL not in table.typ or not tested(table):
        raise DataError(
            f"the images are of {', '.join(sorted(set(table.typ.tolist())))}; needed are {REAL!r} "
            "and at least one generator",
            code="manifest_invalid",
        )
    if np.isnan(table.similarities).any():
        raise DataError("some rows of the scores lack a score", code="manifest_invalid")


def run_protocol(
    table: ScoreTable,
    scale: Scale,
    protocol: Protocol,
    *,
    weigh: Weigh = equal_views,
    samples: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure every generator's images against the real ones by one protocol.

    Parameters
    ----------
    table, scale
        The scores, and what they mean.
    protocol
        See `evidence`.
    weigh
        Weights of views by their histories.
    samples
        Bootstrap samples.
    progress
        Called with (generators done, all).

    Returns
    -------
    dict
        ``rows``: by generator numbers of images and `Interval` of each measure; ``mean``: their
        mean, absent without rows; ``left_out``: generators without a row, and why. The measures
        are explained in docs/evaluate.md. Those that need a probability or a calibration are
        absent where there is none.

    Raises
    ------
    DataError
        See `check`.
    """
    check(table)
    out: dict[str, Any] = {"rows": {}, "left_out": {}}
    parts = []
    shared = joint_evidence(table, scale) if protocol == "generic" else None
    names = tested(table)
    for k, generator in enumerate(names):
        if progress:
            progress(k, len(names))
        chosen = (table.typ == generator) | (table.typ == REAL)
        part = table.select(chosen)
        found = (
            evidence(part, scale, protocol, generator) if shared is None else shared.select(chosen)
        )
        if found is None:
            known = generator in scale.generators
            out["left_out"][generator] = "no other head" if known else "no head of its own"
            continue
        try:
            parts.append(_measured(part, found, part.typ == generator, weigh, samples))
        except DataError as error:  # no history in common with the reals
            out["left_out"][generator] = error.message
            continue
        out["rows"][generator] = parts[-1].row
    if progress:
        progress(len(names), len(names))
    if parts:
        out["mean"] = _mean(parts)
    return out


def confusion(
    table: ScoreTable, scale: Scale, *, weigh: Weigh = equal_views, limit: float = EVIDENCE
) -> dict[str, dict[str, Any]]:
    """Which generator is named for whose images.

    Parameters
    ----------
    table, scale, weigh
        As in `run_protocol`.
    limit
        Up to this joint rate a generator is named, as in a verdict: the one of the lowest rate,
        or "unknown" where it is not clear; where the scale has no attribution, always that head.
        Without a calibration: the most probable head, if its probability is above one half;
        without probabilities: always the head of the highest score.

    Returns
    -------
    dict
        By class, ``"real"`` first: ``images``, and ``named``: shares by head and for
        ``"unknown"`` (where there is an attribution) and ``"no evidence"``, 1 in sum.
    """
    scores = table.similarities
    odds = scale.log_odds(scores, table.traits)
    if scale.calibration is not None:
        rates, joint = scale.calibration.all_rates(scores, table.traits)
        # The lowest rate, of equals the highest similarity.
        best = np.lexsort((-scores, rates), axis=1)[:, 0]
        if scale.attribution is not None:
            best = scale.attribution.name(scores, rates)
        silent = joint > limit
    elif odds is not None:
        best, silent = odds.argmax(axis=1), odds.max(axis=1) <= 0
    else:
        best, silent = scores.argmax(axis=1), np.zeros(len(scores), bool)
    out: dict[str, dict[str, Any]] = {}
    for name in (REAL, *tested(table)):
        own = table.typ == name
        if not own.any():
            continue
        weights = weigh(table.histories, [own])
        named = {
            head: float(weights[own & ~silent & (best == g)].sum())
            for g, head in enumerate(scale.generators)
        }
        if scale.attribution is not None:
            named[UNKNOWN] = float(weights[own & ~silent & (best < 0)].sum())
        named["no evidence"] = float(weights[own & silent].sum())
        out[name] = {"images": len(np.unique(table.filenames[own])), "named": named}
    return out


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
        As in `run_protocol`.
    by
        ``"source"``: each source of a class, against all reals. ``"format"`` of the file as found,
        ``"history"``, ``"last step"`` of the processing: synthetic and real images with the same
        value against each other, all generators together.

    Returns
    -------
    list of dict
        By source: ``group``, ``typ``, ``images``, ``own_auroc``, ``generic_auroc``, ``flagged_1``,
        ``flagged_5``. Otherwise ``group``, ``synthetic_images``, ``real_images``,
        ``generic_auroc``, ``tpr_5``, ``fpr_1``, ``fpr_5``. A value that cannot be had is None.
    """
    check(table)
    found = joint_evidence(table, scale)
    if by == "source":
        return _by_source(table, scale, found, weigh, samples)
    keys = {
        "format": table.formats,
        "history": table.histories,
        "last step": np.array([last_step(p) for p in table.processing]),
    }[by]
    real = table.typ == REAL
    rows = []
    for key in sorted(np.unique(keys).tolist(), key=_natural):
        of_key = keys == key
        row: dict[str, Any] = {"group": key or "not known"}
        for name, mask in (("synthetic", of_key & ~real), ("real", of_key & real)):
            row[f"{name}_images"] = len(np.unique(table.filenames[mask]))
        row["generic_auroc"] = _auroc(table, found, of_key & ~real, of_key & real, weigh, samples)
        row["tpr_5"] = _flagged(table, found, of_key & ~real, 0.05, weigh, samples)
        row["fpr_1"] = _flagged(table, found, of_key & real, 0.01, weigh, samples)
        row["fpr_5"] = _flagged(table, found, of_key & real, 0.05, weigh, samples)
        rows.append(row)
    return rows


def _by_source(
    table: ScoreTable, scale: Scale, found: Evidence, weigh: Weigh, samples: int
) -> list[dict[str, Any]]:
    real = table.typ == REAL
    rows = []
    for typ in (*tested(table), REAL):
        of_typ = table.typ == typ
        own = evidence(table, scale, "specific", typ)
        sizes = {
            source: len(np.unique(table.filenames[of_typ & (table.sources == source)]))
            for source in np.unique(table.sources[of_typ]).tolist()
        }
        large = sorted((s for s in sizes if sizes[s] >= SMALLEST), key=lambda s: (-sizes[s], s))
        small = [s for s in sizes if sizes[s] < SMALLEST]
        groups = [([s], s or "not known") for s in large]
        if len(small) > 1:
            groups.append((small, f"{len(small)} sources of fewer than {SMALLEST} images"))
        elif small:
            groups.append((small, small[0] or "not known"))
        for sources, name in groups:
            mask = of_typ & np.isin(table.sources, sources)
            row: dict[str, Any] = {
                "group": name,
                "typ": typ,
                "images": len(np.unique(table.filenames[mask])),
                "own_auroc": None,
                "generic_auroc": None,
            }
            if typ != REAL:
                row["generic_auroc"] = _auroc(table, found, mask, real, weigh, samples)
                if own is not None:
                    row["own_auroc"] = _auroc(table, own, mask, real, weigh, samples)
            for level in LEVELS:
                row[f"flagged_{100 * level:.0f}"] = _flagged(
                    table, found, mask, level, weigh, samples
                )
            rows.append(row)
    return rows


def _auroc(
    table: ScoreTable, found: Evidence, synthetic: Bools, real: Bools, weigh: Weigh, samples: int
) -> Interval | None:
    """AUROC of some images against some reals; None if they cannot be compared."""
    chosen = synthetic | real
    if not synthetic.any() or not real.any():
        return None
    part = table.select(chosen)
    y = synthetic[chosen]
    try:
        weights = weigh(part.histories, [y, ~y])
    except DataError:
        return None
    labels, _ = _groups(part, y)
    score = found.score[chosen]
    draws = np.full(samples, np.nan)
    for b, w in enumerate(metrics.resampled_weights(y, weights, groups=labels, samples=samples)):
        keep = w > 0
        if keep[y].any() and keep[~y].any():
            draws[b] = metrics.ranking(score[keep], y[keep], w[keep])["auroc"]
    keep = weights > 0
    return _interval(metrics.ranking(score[keep], y[keep], weights[keep])["auroc"], draws)


def _flagged(
    table: ScoreTable, found: Evidence, mask: Bools, level: float, weigh: Weigh, samples: int
) -> Interval | None:
    """Share of some images whose claimed rate is at most `level`."""
    if found.rate is None or not mask.any():
        return None
    part = table.select(mask)
    every = np.ones(len(part.typ), bool)
    labels, _ = _groups(part, every)
    flags = found.rate[mask] <= level
    try:
        weights = weigh(part.histories, [every])
    except DataError:  # no view has a history that counts
        return None
    draws = np.array(
        [
            w @ flags / w.sum() if w.sum() > 0 else np.nan
            for w in metrics.resampled_weights(every, weights, groups=labels, samples=samples)
        ]
    )
    value = float(weights @ flags / weights.sum())
    return _interval(value, draws, units=len(np.unique(labels[weights > 0])))


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
        As in `run_protocol`.
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
    check(table.only(scale.generators))
    ours = joint_evidence(table.only(scale.generators), scale)
    columns = {name: ours.score} | {p: table.only([p]).similarities[:, 0] for p in peers}
    out: dict[str, dict[str, Any]] = {}
    for column, scores in columns.items():
        has = ~np.isnan(scores)
        part = table.select(has)
        if REAL not in part.typ or not tested(part):
            raise DataError(f"{column} has scored no real image, or no other")
        found = Evidence(scores[has], None, None)
        real = part.typ == REAL
        y = ~real
        weights = weigh(part.histories, [y, real])
        labels, _ = _groups(part, y)
        draws = np.full((samples, 2), np.nan)

        def both(w: Floats, s: Floats = found.score, y: Bools = y) -> tuple[float, float]:
            keep = w > 0
            return (
                metrics.ranking(s[keep], y[keep], w[keep])["auroc"],
                metrics.tpr_at_fpr(s[keep], y[keep], w[keep], fpr=0.05),
            )

        for b, w in enumerate(
            metrics.resampled_weights(y, weights, groups=labels, samples=samples)
        ):
            if w[y].sum() > 0 and w[~y].sum() > 0:
                draws[b] = both(w)
        auroc, tpr = both(weights)
        out[column] = {
            "images": len(np.unique(part.filenames)),
            "auroc": _interval(auroc, draws[:, 0]),
            "tpr_5": _interval(tpr, draws[:, 1]),
            "by_generator": {
                g: _auroc(part, found, part.typ == g, real, weigh, samples) for g in tested(part)
            },
        }
    return out


def degradation(table: ScoreTable, scale: Scale, *, samples: int = 500) -> dict[str, Any]:
    """Measure the scores of images after one degradation.

    Parameters
    ----------
    table, scale, samples
        As in `run_protocol`.

    Returns
    -------
    dict
        ``synthetic_images``, ``real_images`` scored; ``specific_auroc``: mean over the generators
        that the detector knows; ``generic_auroc``: all synthetic images together; ``evidence`` and
        ``flagged``: share of synthetic and of real images with a joint rate of at most 5 %. None
        where it cannot be had: none of a class could be scored, no calibration.
    """
    real = table.typ == REAL
    out: dict[str, Any] = {
        "synthetic_images": len(np.unique(table.filenames[~real])),
        "real_images": len(np.unique(table.filenames[real])),
        "specific_auroc": None,
        "generic_auroc": None,
        "evidence": None,
        "flagged": None,
    }
    if not len(real):
        return out
    found = joint_evidence(table, scale)
    out["evidence"] = _flagged(table, found, ~real, EVIDENCE, equal_views, samples)
    out["flagged"] = _flagged(table, found, real, EVIDENCE, equal_views, samples)
    out["generic_auroc"] = _auroc(table, found, ~real, real, equal_views, samples)
    parts = []
    for generator in tested(table):
        part = table.select(real | (table.typ == generator))
        own = evidence(part, scale, "specific", generator)
        if own is not None and real.any():
            parts.append(
                _measured(part, own, part.typ == generator, equal_views, samples, ranks_only=True)
            )
    if parts:
        out["specific_auroc"] = _mean(parts)["auroc"]
    return out


def plain(value: Any) -> Any:
    """Turn results into plain values for JSON: intervals into objects, NaN into null."""
    if isinstance(value, Interval):
        return {name: plain(getattr(value, name)) for name in Interval._fields}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return value


# --- tables --------------------------------------------------------------------------------------

_MEASURES = (
    Column("auroc", "AUROC"),
    Column("accuracy", "accuracy"),
    Column("balanced_accuracy", "balanced acc."),
    Column("mcc", "MCC"),
    Column("best_mcc", "best MCC"),
    Column("tpr_1", "TPR at 1 %", 0, percent=True),
    Column("fpr_1", "FPR at 1 %", 1, percent=True),
    Column("tpr_5", "TPR at 5 %", 0, percent=True),
    Column("fpr_5", "FPR at 5 %", 1, percent=True),
    Column("eer", "EER", 1, percent=True),
    Column("ece", "ECE"),
    Column("cllr", "Cllr"),
    Column("min_cllr", "min Cllr"),
)
_TITLES = {
    "specific": "Specific: each generator by its own head",
    "unseen": "Specific, on sources that training had no image of the generator from",
    "generic": "Generic: all heads together",
    "leave-one-out": "Leave-one-out (generalized): the heads of the other generators",
}


_FLAGS = "≤ 5 %: share of the views whose joint rate is at most that, which is called evidence."


def protocol_table(name: str, result: Mapping[str, Any]) -> Table:
    """Write the result of `run_protocol`: a row a generator, and their mean."""
    columns = (
        Column("generator", "generator"),
        Column("synthetic_images", "synthetic"),
        Column("real_images", "real"),
        *_MEASURES,
    )
    rows: list[tuple[Cell, ...]] = [
        (generator, *(row.get(c.key) for c in columns[1:]))
        for generator, row in result["rows"].items()
    ]
    if "mean" in result:
        rows.append(("mean", None, None, *(result["mean"].get(c.key) for c in _MEASURES)))
    notes = []
    if over_images := [g for g, r in result["rows"].items() if r["interval"] == "over images"]:
        notes.append(f"Intervals (95 %) over images, not sources: {', '.join(over_images)}.")
    else:
        notes.append("Intervals (95 %) over sources.")
    if result["left_out"]:
        reasons = (f"{g} ({why})" for g, why in result["left_out"].items())
        notes.append(f"Without a row: {', '.join(reasons)}.")
    return Table(
        name, _TITLES.get(name, name), columns, tuple(rows), " ".join(notes)
    ).without_empty_columns()


def confusion_table(result: Mapping[str, Mapping[str, Any]]) -> Table:
    """Write the result of `confusion`, in per cent of each row."""
    heads = list(next(iter(result.values()))["named"])
    columns = (
        Column("made_by", "made by"),
        Column("images", "images"),
        *(Column(head, head, 0, percent=True) for head in heads),
    )
    rows: Iterable[tuple[Cell, ...]] = (
        (name, row["images"], *(row["named"][head] for head in heads))
        for name, row in result.items()
    )
    return Table("confusion", "Which generator is named for whose images", columns, tuple(rows))


def breakdown_table(by: Breakdown, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Write the result of `break_down`."""
    if by == "source":
        title = "By source: its images against all real ones"
        columns = (
            Column("group", "source"),
            Column("typ", "made by"),
            Column("images", "images"),
            Column("own_auroc", "AUROC, own head"),
            Column("generic_auroc", "AUROC, all heads"),
            Column("flagged_1", "≤ 1 %", 0, percent=True),
            Column("flagged_5", "≤ 5 %", 0, percent=True),
        )
    else:
        title = f"By {by}: synthetic and real images with the same one"
        columns = (
            Column("group", by),
            Column("synthetic_images", "synthetic"),
            Column("real_images", "real"),
            Column("generic_auroc", "AUROC, all heads"),
            Column("tpr_5", "synthetic ≤ 5 %", 0, percent=True),
            Column("fpr_1", "real ≤ 1 %", 1, percent=True),
            Column("fpr_5", "real ≤ 5 %", 1, percent=True),
        )
    table = Table(
        f"by-{by.replace(' ', '-')}",
        title,
        columns,
        tuple(tuple(row[c.key] for c in columns) for row in rows),
    ).without_empty_columns()
    flags = any("≤" in column.title for column in table.columns)
    return replace(table, note=_FLAGS) if flags else table


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
    rows: Iterable[tuple[Cell, ...]] = (
        (
            name, row["images"], row["auroc"], row["tpr_5"],
            *(row["by_generator"].get(g) for g in generators),
        )
        for name, row in result.items()
    )  # fmt: skip
    return Table("second-opinions", "Second opinions on the same views", columns, tuple(rows))


def degradations_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Write the results of `degradation`, by the name of the degradation."""
    columns = (
        Column("degradation", "degradation"),
        Column("synthetic_images", "synthetic"),
        Column("real_images", "real"),
        Column("specific_auroc", "AUROC, own heads, mean"),
        Column("generic_auroc", "AUROC, all heads"),
        Column("evidence", "synthetic ≤ 5 %", 0, percent=True),
        Column("flagged", "real ≤ 5 %", 1, percent=True),
    )
    rows: Iterable[tuple[Cell, ...]] = (
        (name, *(row[c.key] for c in columns[1:])) for name, row in results.items()
    )
    rated = any(row["evidence"] is not None for row in results.values())
    note = "Images that became too small to be analysed are left out."
    return Table(
        "degradations",
        "Files as found, after one degradation",
        columns,
        tuple(rows),
        f"{_FLAGS} {note}" if rated else note,
    ).without_empty_columns()

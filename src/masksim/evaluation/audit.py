"""What the claimed rates are worth on one's own photos: count false alarms among real ones.

An audit asks what matters to anyone who flags photos: of photos that are known to be real, how many
get an alarm at the rate that is claimed? It answers by source, with intervals, from whole verdicts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.config import Progress, staged
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.detector import Detector
from masksim.errors import DataError, MasksimError, UsageError, counted
from masksim.evaluation.measures import EVIDENT
from masksim.evaluation.scoring import in_pieces, write_piece
from masksim.intervals import Interval, clopper_pearson, grouped_interval
from masksim.load import bundled_path, load_detector
from masksim.metrics import Estimate
from masksim.show.tables import Cell, Column, Table
from masksim.verdict import LEVELS, SURVIVING

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLAIMS = tuple(limit for limit, _ in LEVELS)
"""Claimed joint rates that an audit measures."""

SMALLEST = 50
"""Sources of fewer photos share a row: their intervals would hold nearly everything."""


# --- what was found ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed rate, and what came of it.

    Attributes
    ----------
    claimed
        False-positive rate.
    alarms, photos
        So many of so many photos got at most that rate.
    """

    claimed: float
    alarms: int
    photos: int

    @property
    def interval(self) -> Interval:
        """Clopper and Pearson's of the share, as if photos were independent."""
        return clopper_pearson(self.alarms, self.photos)

    @property
    def rate(self) -> float:
        """Share of the photos with an alarm."""
        return self.alarms / self.photos

    @property
    def held(self) -> str:
        """``"above"`` or ``"below"``: the measured rate is so, beyond chance; else ``"inside"``."""
        if self.interval.low > self.claimed:
            return "above"
        return "below" if self.interval.high < self.claimed else "inside"


@dataclass(frozen=True)
class Group:
    """Photos of one source, or stratum, or all.

    Attributes
    ----------
    name
        What they are.
    photos, sources
        How many were analysed.
    claims
        By claimed rate, in the order of `CLAIMS`: alarms by the joint rate of the file as found
        alone, not that after a re-encoding.
    grouped
        Intervals of the same shares with photos grouped by source, for more than one source.
    verdicts
        How many got which verdict, after everything that makes one inconclusive.
    """

    name: str
    photos: int
    sources: int
    claims: tuple[Claim, ...]
    grouped: tuple[Interval, ...]
    verdicts: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "name": self.name,
            "photos": self.photos,
            "sources": self.sources,
            "claims": [
                {
                    "claimed": claim.claimed,
                    "alarms": claim.alarms,
                    "rate": claim.rate,
                    "interval": [claim.interval.low, claim.interval.high],
                    "claim_is": claim.held,
                    "interval_by_source": (
                        [self.grouped[k].low, self.grouped[k].high] if self.grouped else None
                    ),
                }
                for k, claim in enumerate(self.claims)
            ],
            "verdicts": dict(self.verdicts),
        }


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    detector, detector_sha256
        Which one.
    population
        Which photos it ranks images among.
    whole
        All photos.
    by_source, by_stratum
        The largest first.
    reasons
        How often each reason made a verdict inconclusive.
    failures
        Path to error code of photos that could not be analysed.
    """

    detector: str
    detector_sha256: str
    population: str
    whole: Group
    by_source: tuple[Group, ...]
    by_stratum: tuple[Group, ...]
    reasons: Mapping[str, int]
    failures: Mapping[str, str]

    @property
    def exceeded(self) -> tuple[float, ...]:
        """Claims that the whole set breaks, even with photos grouped by source."""
        intervals = self.whole.grouped or tuple(c.interval for c in self.whole.claims)
        return tuple(
            claim.claimed
            for claim, interval in zip(self.whole.claims, intervals, strict=True)
            if interval.low > claim.claimed
        )

    def held(self, claimed: float, smallest: int = SMALLEST) -> tuple[int, int, int]:
        """Count sources of at least `smallest` photos: the claim inside, not exceeded, all."""
        k = CLAIMS.index(claimed)
        found = [group.claims[k].held for group in self.by_source if group.photos >= smallest]
        return found.count("inside"), len(found) - found.count("above"), len(found)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "detector": {"name": self.detector, "sha256": self.detector_sha256},
            "population": self.population,
            "whole": self.whole.to_dict(),
            "by_source": [group.to_dict() for group in self.by_source],
            "by_stratum": [group.to_dict() for group in self.by_stratum],
            "exceeded": list(self.exceeded),
            "sources_with_enough_photos": {
                f"{claimed:g}": dict(
                    zip(("inside", "not_exceeded", "all"), self.held(claimed), strict=True)
                )
                for claimed in CLAIMS
            },
            "reasons": dict(self.reasons),
            "failures": dict(self.failures),
        }


# --- judging photos ------------------------------------------------------------------------------

_worker: dict[str, Detector] = {}


def _start_worker(model: str, population: str, stability: bool) -> None:
    _worker["detector"] = load_detector(
        model, threads=1, population=population, stability=stability
    )


def _work(target: str, files: Sequence[str], rows: Sequence[Row]) -> None:
    """Judge one chunk and write it whole or not at all."""
    lines: list[list[Any]] = []
    failures: dict[str, str] = {}
    for file, row in zip(files, rows, strict=True):
        try:
            verdict = _worker["detector"].detect(file).verdict
        except MasksimError as error:
            failures[row.path] = error.code
            continue
        reasons = [reason.code for reason in verdict.reasons]
        # A fragile verdict has the rate after a re-encoding; what is claimed is that as found.
        lines.append([row.source, verdict.rate_as_found, verdict.level, verdict.stratum, reasons])
    write_piece(target, lines, failures)


def audit(
    model: str | os.PathLike[str] | None,
    manifest: Manifest,
    *,
    cache: str | os.PathLike[str],
    population: str = "auto",
    stability: bool = True,
    workers: int = 1,
    progress: Progress | None = None,
) -> Audit:
    """Judge photos that are known to be real, and compare the alarms with what was claimed.

    Parameters
    ----------
    model
        Folder of the detector; None for the one inside the package.
    manifest
        Its real photos are taken. They must not have been used in training or calibration.
    cache
        Folder of finished pieces: a run that is killed goes on where it was.
    population, stability
        See `masksim.detector.Detector`.
    workers
        Processes.
    progress
        Called with (stage, done, all).

    Returns
    -------
    Audit

    Raises
    ------
    DataError
        There are no real photos, or none that can be analysed.
    UsageError
        The detector is not calibrated.
    """
    path = bundled_path() if model is None else Path(model)
    detector = load_detector(path, threads=1, population=population, stability=stability)
    if not detector.calibrations:
        raise UsageError("only a calibrated detector can be audited: see masksim calibrate")
    rows = sorted((row for row in manifest.rows if row.generator == REAL), key=lambda r: r.path)
    if not rows:
        raise DataError("there are no real photos to audit with", code="manifest_invalid")
    lines, failures = in_pieces(
        _work, (), manifest, rows,
        cache=cache,
        key=("audit-", [detector.sha256, manifest_hash(rows), population, stability, SURVIVING]),
        workers=workers, start=(_start_worker, (os.fspath(path), population, stability)),
        progress=staged(progress, "photos"),
    )  # fmt: skip
    if not lines:
        raise DataError(
            f"none of {len(rows)} photos could be analysed ({counted(Counter(failures.values()))})",
            code="manifest_invalid",
        )
    return summarise(
        lines, failures, detector=detector.name, sha256=detector.sha256,
        population=", ".join(detector.calibrations),
    )  # fmt: skip


def summarise(
    lines: Sequence[Sequence[Any]],
    failures: Mapping[str, str],
    *,
    detector: str,
    sha256: str,
    population: str,
) -> Audit:
    """Count alarms.

    Parameters
    ----------
    lines
        One a photo: source, joint rate as found, level of the verdict, stratum, codes of its
        reasons.
    failures
        Path to error code.
    detector, sha256, population
        See `Audit`.
    """
    sources = np.array([line[0] for line in lines])
    rates = np.array([line[1] for line in lines], dtype=np.float64)
    levels = np.array([line[2] for line in lines])
    strata = np.array([line[3] for line in lines])

    def group(name: str, mask: NDArray[np.bool_]) -> Group:
        n, count = int(mask.sum()), len(np.unique(sources[mask]))
        hits = [rates[mask] <= claimed for claimed in CLAIMS]
        grouped = tuple(grouped_interval(hit, sources[mask]) for hit in hits if count > 1)
        claims = tuple(Claim(q, int(hit.sum()), n) for q, hit in zip(CLAIMS, hits, strict=True))
        return Group(name, n, count, claims, grouped, dict(Counter(levels[mask].tolist())))

    def groups(labels: NDArray[np.str_]) -> tuple[Group, ...]:
        found = [group(str(name), labels == name) for name in np.unique(labels)]
        return tuple(sorted(found, key=lambda g: (-g.photos, g.name)))

    return Audit(
        detector,
        sha256,
        population,
        group("all", np.ones(len(lines), np.bool_)),
        groups(sources),
        groups(strata),
        dict(Counter(code for line in lines for code in line[4])),
        dict(failures),
    )


# --- its table -----------------------------------------------------------------------------------


def table(found: Audit, *, by: str = "source", smallest: int = SMALLEST) -> Table:
    """Write an audit as a table: a row a source, or a stratum.

    Parameters
    ----------
    found
        From `audit`.
    by
        ``"source"`` or ``"stratum"``.
    smallest
        Sources of fewer photos share a row.
    """
    listed = found.by_source if by == "source" else found.by_stratum
    shown = [found.whole, *(group for group in listed if group.photos >= smallest)]
    rest = [group for group in listed if group.photos < smallest]
    if rest and (len(shown) > 1 or len(rest) > 1):
        shown.append(_together(f"{len(rest)} of fewer than {smallest} photos", rest))
    columns = (
        Column("photos_of", f"real photos, by {by}"),
        Column("photos", "photos"),
        *(Column(f"alarms_{100 * q:g}", f"at {100 * q:g} %", 1, percent=True) for q in CLAIMS),
        Column("held", "claims not held"),
        Column("evidence", "evidence", 1, percent=True),
        Column("inconclusive", "inconclusive", 1, percent=True),
    )
    counts = "".join(
        f"{100 * claimed:g} %: inside the interval of {inside}, not exceeded in {not_above} of "
        f"{all_} sources with at least {smallest} photos. "
        for claimed in CLAIMS
        for inside, not_above, all_ in (found.held(claimed, smallest),)
        if all_
    )
    return Table(
        f"audit-by-{by}",
        f"Real photos with an alarm at each claimed false-positive rate, by {by}",
        columns,
        tuple(_row(group) for group in shown),
        "Shares of photos whose joint rate, as found, is at most the claimed one, with 95 % "
        f"Clopper-Pearson intervals. {counts}Evidence: verdicts of evidence or stronger, "
        "after all that makes one inconclusive.",
    )


def _row(group: Group) -> tuple[Cell, ...]:
    cells = [Estimate(c.rate, c.interval.low, c.interval.high) for c in group.claims]
    wrong = [f"{100 * c.claimed:g} % ({c.held})" for c in group.claims if c.held != "inside"]
    evidence = sum(group.verdicts.get(level, 0) for level in EVIDENT) / group.photos
    inconclusive = group.verdicts.get("inconclusive", 0) / group.photos
    held = ", ".join(wrong) or "none"
    return (group.name, group.photos, *cells, held, evidence, inconclusive)


def _together(name: str, groups: Sequence[Group]) -> Group:
    """Put groups of photos together; intervals by source are not known."""
    photos = sum(group.photos for group in groups)
    claims = tuple(
        Claim(claimed, sum(group.claims[k].alarms for group in groups), photos)
        for k, claimed in enumerate(CLAIMS)
    )
    verdicts: Counter[str] = Counter()
    for group in groups:
        verdicts.update(group.verdicts)
    return Group(name, photos, sum(group.sources for group in groups), claims, (), verdicts)

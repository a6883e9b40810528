"""What the rates are worth on one's own photos: audit a detector with them, calibrate it on them.

An audit asks the one question that matters to who flags photos: of photos that are known to be
real, how many get an alarm at the rate that is claimed? It is answered by source, with intervals,
from whole verdicts. Calibrating adds photos to the detector file as a population of their own.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import __version__
from masksim.checkpoint import DetectorFile, population_arrays
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.data.scan import scan_folders
from masksim.detector import Detector, bundled_path, load_detector
from masksim.errors import DataError, MasksimError, UsageError, counted
from masksim.evaluation.scoring import in_pieces, score_manifest, write_piece
from masksim.files import file_digest
from masksim.intervals import Interval, clopper_pearson, grouped_interval
from masksim.populations import BUILT_IN, JOINT_ARRAYS
from masksim.show.tables import Column, Table
from masksim.show.tables import Interval as Cell
from masksim.verdict import LEVELS, MARGIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Progress = Callable[[str, int, int], None]

CLAIMS = tuple(limit for limit, _ in LEVELS)
"""Claimed joint rates that an audit measures."""

FEWEST = 100
"""Photos that a population needs at least: with fewer, no rate of one in a hundred is possible."""

SMALLEST = 50
"""Sources of fewer photos share a row: their intervals would hold nearly everything."""


def photos_in(
    folders: Sequence[str | os.PathLike[str]],
) -> tuple[Manifest, dict[str, int]]:
    """List the photos in folders, each content once.

    Parameters
    ----------
    folders
        A sub-folder is a source; see `masksim.data.scan.scan_folders`.

    Returns
    -------
    Manifest
        With hashes.
    dict
        How many files were left out, by reason.

    Raises
    ------
    DataError
        A folder is missing or empty.
    """
    manifest, _ = scan_folders(folders, [], shares={"train": 1.0})
    found: dict[str, Row] = {}
    skipped: Counter[str] = Counter()
    for row in manifest.rows:
        try:
            digest = file_digest(manifest.file(row))
        except OSError:
            skipped["unreadable"] += 1
            continue
        if digest in found:
            skipped["duplicate"] += 1
        else:
            found[digest] = replace(row, sha256=digest)
    return Manifest(tuple(found.values()), manifest.root), dict(skipped)


# --- calibrate -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """Photos that were added to a calibration.

    Attributes
    ----------
    name
        As it is asked for.
    photos, sources
        How many there are.
    skipped
        Files left out, by reason.
    warnings
        What these photos are too few for.
    """

    name: str
    photos: int
    sources: int
    skipped: Mapping[str, int]
    warnings: tuple[str, ...]


def calibrate(
    model: str | os.PathLike[str] | None,
    folders: Sequence[str | os.PathLike[str]],
    *,
    name: str = "own",
    cache: str | os.PathLike[str],
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[DetectorFile, Population]:
    """Add photos to a detector as a calibration population of their own.

    Parameters
    ----------
    model
        Folder of the detector; None for the one inside the package.
    folders
        Of photos that are known to be real, as they will be asked about; a sub-folder is a source.
    name
        Of the population; one of that name is replaced.
    cache
        Folder of finished pieces: a run that is killed goes on where it was.
    workers
        Processes.
    progress
        Called with (stage, done, all).

    Returns
    -------
    DetectorFile
        To be saved; scores are as before.
    Population

    Raises
    ------
    DataError
        There are fewer than `FEWEST` different photos that can be analysed.
    UsageError
        The name is empty or taken by the photos of the training.
    """
    if not name.strip() or name in (BUILT_IN, "auto") or not name.isprintable():
        raise UsageError(f"photos of your own cannot be named {name!r}")
    path = bundled_path() if model is None else Path(model)
    file = DetectorFile.load(path)
    manifest, left_out = photos_in(folders)
    table = score_manifest(
        path, manifest, cache=cache, purpose="as found", workers=workers,
        progress=(lambda done, count: progress("photos", done, count)) if progress else None,
    )  # fmt: skip
    skipped = Counter(left_out)
    skipped.update(table.failures.values())
    n = len(table.typ)
    if n < FEWEST:
        raise DataError(
            f"{n} different photos could be analysed (left out: {counted(skipped)}); a calibration "
            f"needs at least {FEWEST}",
            code="too_few_images",
        )
    names, sources = np.unique(table.sources, return_inverse=True)
    generators = len(file.generators)
    warnings = []
    # One number for some generator is one test, the best of their ranks as many as there are.
    tests = 1 if set(JOINT_ARRAYS) <= set(file.calibration or {}) else generators
    # Where no photo scores as high, the rate, and the upper end of its interval, are low enough.
    strong = LEVELS[0][0]
    needed = max(
        math.ceil(tests / strong) - 1, math.ceil(math.log(0.025) / math.log1p(-MARGIN * strong))
    )
    if n < needed:
        warnings.append(
            f"{n} photos for {generators} generator{'s' * (generators > 1)}: strong evidence may "
            f"be out of reach, which needs {needed} photos, and more where they are of few sources."
        )
    if len(names) < 5:
        warnings.append(
            f"All photos come from {len(names)} source{'s' * (len(names) > 1)}: the rates hold "
            "for photos like these. Sub-folders are counted as sources."
        )
    before = list(file.config.get("populations", []))
    place = next((k for k, other in enumerate(before, 1) if other.get("name") == name), None)
    described = {
        "name": name,
        "photos": n,
        "sources": len(names),
        "added": datetime.now(timezone.utc).date().isoformat(),
        "skipped": dict(skipped),
        "manifest_sha256": manifest_hash(manifest.rows),
        "masksim": __version__,
    }
    if place is None:
        before.append(described)
        place = len(before)
    else:
        before[place - 1] = described
    if table.traits is None:
        raise DataError("the photos were scored without their traits")
    arrays: dict[str, NDArray[Any]] = dict(file.calibration or {})
    for array, values in zip(
        population_arrays(place),
        (
            table.similarities.astype(np.float32),
            table.traits.astype(np.float32),
            sources.astype(np.int32),
        ),
        strict=True,
    ):
        arrays[array] = values
    made = replace(
        file,
        config={**file.config, "populations": before},
        calibration=arrays,
        sha256="",
    )
    return made, Population(name, n, len(names), dict(skipped), tuple(warnings))


# --- audit ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed rate, and what came of it.

    Attributes
    ----------
    claimed
        False-positive rate.
    alarms, photos
        So many of so many photos got at most that rate.
    interval
        Clopper and Pearson's of the share, as if photos were independent.
    """

    claimed: float
    alarms: int
    photos: int
    interval: Interval

    @property
    def rate(self) -> float:
        """Share of the photos with an alarm."""
        return self.alarms / self.photos

    @property
    def held(self) -> str:
        """``"inside"``, ``"below"`` or ``"above"``: where the measured rate is from the claim."""
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
        By claimed rate, in the order of `CLAIMS`: alarms by the joint rate alone.
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
        lines.append(
            [
                row.source,
                verdict.false_positive_rate,
                verdict.level,
                verdict.stratum,
                [reason.code for reason in verdict.reasons],
            ]
        )
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
        cache=cache, prefix="audit-",
        key=[detector.sha256, __version__, manifest_hash(rows), population, stability],
        workers=workers, initializer=_start_worker,
        initargs=(os.fspath(path), population, stability),
        progress=(lambda done, count: progress("photos", done, count)) if progress else None,
    )  # fmt: skip
    if not lines:
        raise DataError(
            f"none of {len(rows)} photos could be analysed ({counted(Counter(failures.values()))})",
            code="manifest_invalid",
        )
    return summarise(
        lines,
        failures,
        detector=detector.name,
        sha256=detector.sha256,
        population=", ".join(detector.calibrations),
    )


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
        One a photo: source, joint rate, level of the verdict, stratum, codes of its reasons.
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
        n = int(mask.sum())
        hits = [rates[mask] <= claimed for claimed in CLAIMS]
        return Group(
            name,
            n,
            len(np.unique(sources[mask])),
            tuple(
                Claim(claimed, int(hit.sum()), n, clopper_pearson(int(hit.sum()), n))
                for claimed, hit in zip(CLAIMS, hits, strict=True)
            ),
            tuple(grouped_interval(hit, sources[mask]) for hit in hits)
            if len(np.unique(sources[mask])) > 1
            else (),
            dict(Counter(levels[mask].tolist())),
        )

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
    large = [group for group in listed if group.photos >= smallest]
    rest = [group for group in listed if group.photos < smallest]
    rows = [_row(found.whole, "all")]
    rows += [_row(group, group.name) for group in large]
    if rest and (large or len(rest) > 1):
        rows.append(_rest(rest, smallest))
    columns = [Column("photos_of", f"real photos, by {by}"), Column("photos", "photos")]
    for claimed in CLAIMS:
        columns.append(
            Column(f"alarms_{100 * claimed:g}", f"at {100 * claimed:g} %", 1, percent=True)
        )
    columns += [
        Column("held", "claims not held"),
        Column("evidence", "evidence", 1, percent=True),
        Column("inconclusive", "inconclusive", 1, percent=True),
    ]
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
        tuple(columns),
        tuple(rows),
        f"Shares of photos whose joint rate is at most the claimed one, with 95 % Clopper-Pearson "
        f"intervals. {counts}Evidence: verdicts of evidence or stronger, after all that makes "
        "one inconclusive.",
    )


def _row(group: Group, name: str) -> tuple[Any, ...]:
    cells = [Cell(claim.rate, claim.interval.low, claim.interval.high) for claim in group.claims]
    wrong = [
        f"{100 * claim.claimed:g} % ({claim.held})"
        for claim in group.claims
        if claim.held != "inside"
    ]
    return (name, group.photos, *cells, ", ".join(wrong) or "none", *_verdicts([group]))


def _verdicts(groups: Sequence[Group]) -> tuple[float, float]:
    total = sum(group.photos for group in groups)
    counts: Counter[str] = Counter()
    for group in groups:
        counts.update(group.verdicts)
    evidence = counts["evidence"] + counts["strong evidence"]
    return evidence / total, counts["inconclusive"] / total


def _rest(groups: Sequence[Group], smallest: int) -> tuple[Any, ...]:
    photos = sum(group.photos for group in groups)
    cells = []
    wrong = []
    for k, claimed in enumerate(CLAIMS):
        alarms = sum(group.claims[k].alarms for group in groups)
        claim = Claim(claimed, alarms, photos, clopper_pearson(alarms, photos))
        cells.append(Cell(claim.rate, claim.interval.low, claim.interval.high))
        if claim.held != "inside":
            wrong.append(f"{100 * claimed:g} % ({claim.held})")
    name = f"{len(groups)} of fewer than {smallest} photos"
    return (name, photos, *cells, ", ".join(wrong) or "none", *_verdicts(groups))

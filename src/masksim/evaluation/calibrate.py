"""Photos of one's own as a calibration population: rates measured on them, kept in the detector.

A detector file may hold several populations of real photos; a verdict takes the largest rate over
them (`masksim.populations.Populations`).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import __version__
from masksim.checkpoint import DetectorFile, population_arrays
from masksim.config import Progress
from masksim.data.manifest import Manifest, Row, manifest_hash
from masksim.data.scan import scan_folders
from masksim.errors import DataError, UsageError, counted
from masksim.evaluation.score_table import ScoreTable
from masksim.evaluation.scoring import score_manifest
from masksim.files import file_digest
from masksim.load import bundled_path
from masksim.populations import BUILT_IN, JOINT_ARRAYS
from masksim.verdict import LEVELS, MARGIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 100
"""Photos that a population needs at least: with fewer, no rate of one in a hundred is possible."""


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


@dataclass(frozen=True)
class AddedPhotos:
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
) -> tuple[DetectorFile, AddedPhotos]:
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
    AddedPhotos

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
        path, manifest, cache=cache, purpose="as found", workers=workers, stage="photos",
        progress=progress,
    )  # fmt: skip
    skipped = dict(Counter(left_out) + Counter(table.failures.values()))
    n = len(table.typ)
    if n < FEWEST:
        raise DataError(
            f"{n} different photos could be analysed (left out: {counted(skipped)}); a calibration "
            f"needs at least {FEWEST}",
            code="too_few_images",
        )
    sources = len(np.unique(table.sources))
    described = {
        "name": name,
        "photos": n,
        "sources": sources,
        "added": datetime.now(timezone.utc).date().isoformat(),
        "skipped": skipped,
        "manifest_sha256": manifest_hash(manifest.rows),
        "masksim": __version__,
    }
    made = with_population(file, described, table)
    return made, AddedPhotos(name, n, sources, skipped, _warnings(file, n, sources))


def _warnings(file: DetectorFile, photos: int, sources: int) -> tuple[str, ...]:
    """Say what the photos are too few for."""
    generators = len(file.generators)
    warnings = []
    # One number for some generator is one test, the best of their ranks as many as there are.
    tests = 1 if set(JOINT_ARRAYS) <= set(file.calibration or {}) else generators
    # Where no photo scores as high, the rate, and the upper end of its interval, are low enough.
    strong = LEVELS[0][0]
    needed = max(
        math.ceil(tests / strong) - 1, math.ceil(math.log(0.025) / math.log1p(-MARGIN * strong))
    )
    if photos < needed:
        warnings.append(
            f"{photos} photos for {generators} generator{'s' * (generators > 1)}: strong evidence "
            f"may be out of reach, which needs {needed} photos, and more where they are of few "
            "sources."
        )
    if sources < 5:
        warnings.append(
            f"All photos come from {sources} source{'s' * (sources > 1)}: the rates hold for "
            "photos like these. Sub-folders are counted as sources."
        )
    return tuple(warnings)


def with_population(
    file: DetectorFile, described: Mapping[str, Any], table: ScoreTable
) -> DetectorFile:
    """Put the scores of photos into a detector file, in the place of those of the same name.

    Parameters
    ----------
    file
        The detector.
    described
        What its configuration says of the population; ``name`` is its name.
    table
        Scores and traits of the photos by this detector.
    """
    if table.traits is None:
        raise DataError("the photos were scored without their traits")
    others = list(file.config.get("populations", []))
    names = [other.get("name") for other in others]
    if described["name"] not in names:
        names.append(described["name"])
        others.append({})
    place = names.index(described["name"])
    others[place] = dict(described)
    arrays: dict[str, NDArray[Any]] = dict(file.calibration or {})
    values = (
        table.similarities.astype(np.float32),
        table.traits.astype(np.float32),
        np.unique(table.sources, return_inverse=True)[1].astype(np.int32),
    )
    arrays.update(zip(population_arrays(place + 1), values, strict=True))
    config = {**file.config, "populations": others}
    return replace(file, config=config, calibration=arrays, sha256="")

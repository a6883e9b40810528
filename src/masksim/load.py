"""Find and load a detector, and say what it is made of.

>>> import masksim
>>> detector = masksim.load_detector()  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from masksim import __version__
from masksim.checkpoint import DetectorFile
from masksim.detector import Detector

BUNDLED = "default"
"""The word for the detector of the package, wherever one is asked for."""


def bundled_path() -> Path:
    """Return the folder of the detector inside the package."""
    return Path(str(resources.files("masksim"))) / "weights" / BUNDLED


def detector_folder(name: str | os.PathLike[str] | None) -> Path:
    """Find a detector's folder: `BUNDLED` and None are the one inside the package.

    A folder of the user's that is called like that word goes before it.
    """
    if name is None or (name == BUNDLED and not Path(name).exists()):
        return bundled_path()
    return Path(name)


def load_detector(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    stability: bool = True,
    population: str = "auto",
    likelihood_ratio: bool = False,
    metadata: bool = True,
    watermarks: bool = True,
) -> Detector:
    """Load a detector file, verified part by part.

    Parameters
    ----------
    path
        Folder of a detector; ``"default"``, and nothing, is the one inside the package.
    threads, providers, stability, population, likelihood_ratio, metadata,
    watermarks
        See `Detector`.

    Returns
    -------
    Detector

    Raises
    ------
    ModelError
        It is missing, damaged or unsafe.
    """
    return Detector(
        DetectorFile.load(detector_folder(path)),
        threads=threads,
        providers=providers,
        stability=stability,
        population=population,
        likelihood_ratio=likelihood_ratio,
        metadata=metadata,
        watermarks=watermarks,
    )


def describe(detector: Detector) -> dict[str, Any]:
    """Say what a detector is made of, as plain values for JSON.

    Returns
    -------
    dict
        ``name``, ``sha256``, ``format_version``, ``masksim`` (the version), ``generators``,
        ``calibration`` (numbers of scores and photos, the strata of each population), ``config``,
        ``branches``, ``provenance``.
    """
    file = detector.file
    return {
        "name": detector.name,
        "sha256": detector.sha256,
        "format_version": file.format_version,
        "masksim": __version__,
        "generators": list(detector.generators),
        "calibration": {
            "sample_size": detector.sample_size,
            "photos": detector.photos,
            "populations": {
                name: [
                    {"stratum": words, "photos": photos, "sources": sources}
                    for words, photos, sources in calibration.table()
                ]
                for name, calibration in detector.calibrations.items()
            },
        },
        "config": dict(file.config),
        "branches": [
            {
                "generators": list(branch.generators),
                "residual": branch.residual.to_dict(),
                "preprocess": dict(branch.preprocess),
                "spectrum": dict(branch.spectrum),
                "head": branch.head,
                "head_config": dict(branch.head_config),
            }
            for branch in file.branches
        ],
        "provenance": dict(file.provenance),
    }

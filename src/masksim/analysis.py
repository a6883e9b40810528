"""All branches of a detector at once: pixels to similarities, traits and maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from masksim import preprocess
from masksim.branches import BranchAnalysis, BranchRunner, OriginalBranch, SharedBranch
from masksim.checkpoint import DetectorFile
from masksim.config import cores
from masksim.errors import ImageError, ModelError
from masksim.residual import residual_runner
from masksim.results import PatternPlane, SimilarityMap
from masksim.traits import compression_band, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Analysis:
    """What all branches found in an image.

    Attributes
    ----------
    similarity, probability
        float64 (G,), in the order of the detector's generators.
    windows
        (x, y, width, height) of the analysed windows, pixels.
    branches
        What each branch found.
    """

    similarity: NDArray[np.float64]
    probability: NDArray[np.float64]
    windows: tuple[tuple[int, int, int, int], ...]
    branches: tuple[BranchAnalysis, ...]


class Analyser:
    """The branches of a detector file, ready to run.

    Parameters
    ----------
    file
        From `masksim.checkpoint.DetectorFile.load`.
    threads, providers
        See `masksim.detector.Detector`.

    Attributes
    ----------
    window
        Side of the largest window that is analysed, pixels.
    region
        Side of the largest central part that a branch looks at; 0 if all look at the whole image.
    by_band
        Some heads are made for one band of compression each.

    Raises
    ------
    ModelError
        The file's parts do not fit each other.
    UsageError
        A provider is not available.
    """

    def __init__(
        self,
        file: DetectorFile,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        if len(file.generators) != sum(len(branch.generators) for branch in file.branches):
            raise ModelError("a generator stands in two branches")
        self._branches: list[BranchRunner] = [
            (OriginalBranch if branch.head == "original" else SharedBranch)(
                branch,
                residual_runner(
                    branch.residual.kind, branch.onnx, threads=threads, providers=providers
                ),
                threads or cores(),
            )
            for branch in file.branches
        ]
        self.window = max(branch.window for branch in self._branches)
        self.region = max(branch.region for branch in self._branches)
        self.by_band = any(branch.head == "bands" for branch in file.branches)

    def analysed_part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """See `masksim.detector.Detector.analysed_part`."""
        regions = {branch.region for branch in self._branches}
        if len(regions) == 1 and (region := regions.pop()) and min(height, width) >= region:
            return preprocess.central_part(height, width, region)
        return 0, 0, height, width

    def analyse(self, pixels: Pixels, format: str, quality: int | None) -> Analysis:
        """Score pixels; see `masksim.detector.Detector.measure_pixels`."""
        band = compression_band(format, quality)
        found = tuple(branch.analyse(pixels, band) for branch in self._branches)
        similarity = np.concatenate([part.similarity for part in found]).astype(np.float64)
        probability = np.concatenate([part.probability for part in found]).astype(np.float64)
        if not np.isfinite(similarity).all():
            raise ImageError("the image has no finite similarity", code="unsupported")
        windows = tuple(dict.fromkeys(window for part in found for window in part.windows))
        return Analysis(similarity, probability, windows, found)

    def traits(self, pixels: Pixels, found: Analysis, quality: int | None) -> NDArray[np.float64]:
        """Measure what the pixels show, float64 (T,): see `masksim.traits.measure`."""
        distances = [part.distance for part in found.branches if part.distance is not None]
        return measure(
            pixels,
            list(found.windows),
            quality=quality,
            distance=max(distances) if distances else None,
            band=found.branches[0].band,
        )

    def maps(self, found: Analysis) -> dict[str, SimilarityMap]:
        """Show where the similarities come from, by generator."""
        return {
            shown.generator: shown
            for branch, part in zip(self._branches, found.branches, strict=True)
            for shown in branch.maps(part)
        }

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        """Show what each generator's head looks for."""
        return {
            generator: planes
            for branch in self._branches
            for generator, planes in branch.patterns().items()
        }

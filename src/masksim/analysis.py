"""All branches of a detector at once: pixels to similarities, traits and maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from masksim import preprocess
from masksim.branches import (
    BranchAnalysis,
    BranchRunner,
    LearnedBranch,
    OriginalBranch,
    SharedBranch,
)
from masksim.checkpoint import Branch, DetectorFile
from masksim.config import cores
from masksim.errors import ImageError, ModelError
from masksim.residual import Runner, residual_runner
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
        self._branches: list[BranchRunner] = [
            _kind_of(branch)(
                branch,
                residual_runner(
                    branch.residual.kind, branch.onnx, threads=threads, providers=providers
                ),
                threads or cores(),
            )
            for branch in file.branches
        ]
        # Segments of luma may be shorter than those of the bank; all maps lie on one grid.
        first = self._branches[0]
        for branch in self._branches:
            if isinstance(branch, LearnedBranch) and isinstance(first, SharedBranch):
                branch.finer = first.config.segment // branch.config.segment
                cell = branch.config.cell * branch.finer
                if first.config.segment % branch.config.segment or cell % first.config.cell:
                    raise ModelError("the maps of two branches lie on no common grid")
        self.generators = file.generators
        # Where each branch's generators stand among all, and which of them it has first.
        number = {name: g for g, name in enumerate(self.generators)}
        self._places = [[number[name] for name in b.generators] for b in self._branches]
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
        summed = np.zeros(len(self.generators), np.float32)
        for places, part in zip(self._places, found, strict=True):
            summed[places] += part.similarity * part.share
        similarity = summed.astype(np.float64)
        probability = np.zeros(len(summed))
        parts = list(zip(self._branches, self._places, strict=True))
        for branch, places in reversed(parts):  # of several branches the first one counts
            probability[places] = branch.probability(summed[places], band)
        if not np.isfinite(similarity).all():
            raise ImageError("the image has no finite similarity", code="unsupported")
        # A learned residual looks at smaller windows of the same region: these are not shown.
        shown = [
            part
            for branch, part in zip(self._branches, found, strict=True)
            if not isinstance(branch, LearnedBranch)
        ]
        windows = tuple(dict.fromkeys(window for part in shown for window in part.windows))
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
        shown: dict[str, SimilarityMap] = {}
        for branch, part in zip(self._branches, found.branches, strict=True):
            for made, share in zip(branch.maps(part), part.share.tolist(), strict=True):
                shown[made.generator] = _added(shown.get(made.generator), made, share)
        return {name: shown[name] for name in self.generators}

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        """Show what each generator's head looks for."""
        shown: dict[str, tuple[PatternPlane, ...]] = {}
        for branch in self._branches:
            for generator, planes in branch.patterns().items():
                shown[generator] = (*shown.get(generator, ()), *planes)
        return {name: shown[name] for name in self.generators}


def _kind_of(branch: Branch) -> Callable[[Branch, Runner, int], BranchRunner]:
    """Say what runs a branch."""
    if branch.head == "original":
        return OriginalBranch
    return LearnedBranch if branch.residual.kind == "learned" else SharedBranch


def _added(before: SimilarityMap | None, more: SimilarityMap, share: float) -> SimilarityMap:
    """Add a branch's map, which counts by its share, to that of the branches before it."""
    if before is None and share == 1:
        return more
    size = np.float32(share)
    planes = tuple(
        replace(plane, values=plane.values * size, reference=plane.reference * size)
        for plane in more.planes
    )
    similarity = more.similarity * share
    if before is None:
        return replace(more, similarity=similarity, planes=planes)
    return replace(
        before,
        similarity=before.similarity + similarity,
        planes=(*before.planes, *planes),
    )

"""The branches of a detector, ready to run: pixels to similarities and their maps.

A branch is a residual with the heads that look at its spectrum: all generators on one bank, or one
generator of the original with a residual of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from masksim import preprocess, spectrum
from masksim.checkpoint import Branch
from masksim.errors import ModelError, UsageError
from masksim.features import FeatureConfig, LumaConfig, luma_features, shared_features
from masksim.model import OriginalHead, SharedHeads, read_heads
from masksim.residual import LEARNED_FIXED, Runner, check_learned
from masksim.results import PatternPlane, PlaneMap, SimilarityMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Windows = list[tuple[int, int, int, int]]

PARTS: Mapping[int, tuple[str, ...]] = {1: ("",), 3: (" quiet", " middle", " busy")}
"""Names of the parts of an image that its segments are ranked into."""


@dataclass(frozen=True, eq=False)
class BranchAnalysis:
    """What a branch found in an image: computed once, for the scores and the maps alike."""

    similarity: NDArray[np.float32]  # (G,)
    share: NDArray[np.float32]  # (G,), with which the similarity counts in the detector's
    windows: Windows
    spectrum: NDArray[np.float32]  # as the branch's heads take it
    band: int  # see `masksim.traits.compression_band`
    distance: float | None = None  # see `masksim.traits.measure`; of the bank alone


class BranchRunner(Protocol):
    """One branch of a detector, ready to run."""

    generators: tuple[str, ...]
    window: int
    region: int  # side of the central part that is looked at, 0 for all of the image

    def analyse(self, pixels: Pixels, band: int) -> BranchAnalysis:
        """Score pixels, uint8 (H, W, 3), of an image whose last compression was of this band.

        Raises
        ------
        ImageError
            Code ``too_small``.
        """

    def probability(self, similarity: NDArray[np.float32], band: int) -> NDArray[np.float32]:
        """Give the probability of each generator, (G,), for similarities of the detector."""

    def maps(self, found: BranchAnalysis) -> list[SimilarityMap]:
        """Show where the similarities come from, one map a generator."""

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        """Show what each generator's head looks for."""


class _SharedBranch:
    """All generators on one residual: what does not depend on which it is."""

    config: FeatureConfig | LumaConfig
    heads: tuple[SharedHeads, ...]
    of_bank = True
    finer = 1  # maps are drawn on a grid so many times as fine as the spectrum's

    def __init__(self, branch: Branch, residual: Runner, threads: int) -> None:
        self.generators = branch.generators
        self.threads = threads
        self.residual = residual
        try:
            limit = float(dict(branch.head_config)["limit"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"invalid configuration of shared heads: {error}") from error
        if set(branch.head_config) != {"limit"} or not 0 < limit < np.inf:
            raise ModelError(f"invalid configuration of shared heads: {dict(branch.head_config)}")
        self.heads = read_heads(branch.head, branch.tensors, limit)

    def _configured(self, config: FeatureConfig | LumaConfig, channels: int) -> None:
        """Take the configuration, and see that the heads are made for it."""
        self.config = config
        rows = config.segment // config.cell
        expected = (len(self.generators), channels, rows, rows // 2)
        if tuple(self.heads[0].masks.shape) != expected:
            raise ModelError(
                f"the masks have shape {tuple(self.heads[0].masks.shape)}, expected {expected}"
            )
        self.window = config.window
        # A part under the smallest side would be taken for an image that is too small.
        self.region = config.region if config.region >= config.smallest else 0

    def _features(self, pixels: Pixels) -> tuple[NDArray[np.float32], Windows]:
        raise NotImplementedError

    def _channels(self) -> list[tuple[str, float]]:
        """Name each channel, and say by how much its axes are shorter than the image's."""
        raise NotImplementedError

    def _heads(self, band: int) -> SharedHeads:
        return self.heads[min(band, len(self.heads) - 1)]

    def analyse(self, pixels: Pixels, band: int) -> BranchAnalysis:
        """See `BranchRunner`."""
        features, windows = self._features(pixels)
        heads = self._heads(band)
        distance = heads.distance(features) if self.of_bank else None
        return BranchAnalysis(
            heads.similarities(features), heads.share, windows, features, band, distance
        )

    def probability(self, similarity: NDArray[np.float32], band: int) -> NDArray[np.float32]:
        """See `BranchRunner`."""
        found: NDArray[np.float32] = self._heads(band).probability(similarity)
        return found

    def maps(self, found: BranchAnalysis) -> list[SimilarityMap]:
        """See `BranchRunner`."""
        features = found.spectrum
        cell, n = self.config.cell * self.finer, self.config.segment * self.finer
        heads = self._heads(found.band)
        maps = spectrum.spread_cells(heads.maps(features), cell)
        weighted = spectrum.spread_cells(heads.masks * heads.references, cell)
        shown = self._spread(heads.standardise(features))
        axis = spectrum.frequencies(n)
        names = self._channels()
        return [
            SimilarityMap(
                generator,
                float(maps[g].sum()),
                tuple(
                    PlaneMap(name, maps[g, c], weighted[g, c], shown[c], axis * scale, axis * scale)
                    for c, (name, scale) in enumerate(names)
                ),
            )
            for g, generator in enumerate(self.generators)
        ]

    def _spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give each frequency the value of its cell; Nyquist has none, and gets 0."""
        # Spreading keeps the sum of a cell; here its value is wanted. Nothing covers Nyquist.
        cover = spectrum.spread_cells(
            np.ones(values.shape[-2:], dtype=values.dtype), self.config.cell * self.finer
        )
        cover[..., 0] = np.inf
        shown: NDArray[np.float32] = (
            spectrum.spread_cells(values, self.config.cell * self.finer) / cover
        )
        return shown

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        """See `BranchRunner`."""
        axis = spectrum.frequencies(self.config.segment * self.finer)
        heads = self._heads(0)
        masks, references = self._spread(heads.masks), self._spread(heads.references)
        return {
            generator: tuple(
                PatternPlane(name, masks[g, c], references[g, c], axis * scale, axis * scale)
                for c, (name, scale) in enumerate(self._channels())
            )
            for g, generator in enumerate(self.generators)
        }


class SharedBranch(_SharedBranch):
    """All generators on the residual bank."""

    config: FeatureConfig

    def __init__(self, branch: Branch, residual: Runner, threads: int) -> None:
        super().__init__(branch, residual, threads)
        config = branch.settings
        if branch.preprocess.get("colour") != "luma-chroma" or branch.residual.kind != "bank":
            raise ModelError("a shared branch takes luma and chroma to the residual bank")
        # Detectors of the first editions know no kinds, parts and coherence.
        needed = set(FeatureConfig.__dataclass_fields__) - {"kinds", "parts", "coherence"}
        if missing := sorted(needed - set(config)):
            raise ModelError(f"the configuration of a shared branch lacks {missing}")
        try:
            features = FeatureConfig.from_dict(config)
        except UsageError as error:
            raise ModelError(f"invalid configuration of a shared branch: {error}") from error
        self._configured(features, features.channels)

    def _features(self, pixels: Pixels) -> tuple[NDArray[np.float32], Windows]:
        return shared_features(pixels, self.config, self.residual, threads=self.threads)

    def _channels(self) -> list[tuple[str, float]]:
        parts = PARTS.get(self.config.parts) or tuple(
            f" part {k + 1}" for k in range(self.config.parts)
        )
        kinds = self.config.kinds
        found = [(f"luma{part}, {kind}", 1.0) for part in parts for kind in kinds]
        found += [(f"chroma {c}, {kind}", 0.5) for kind in kinds for c in ("Cb", "Cr")]
        if self.config.coherence:
            found += [(f"coherence, {pair}", 0.5) for pair in ("R and G", "G and B", "R and B")]
        return found


class LearnedBranch(_SharedBranch):
    """All generators on a learned residual of luma."""

    config: LumaConfig
    of_bank = False

    def __init__(self, branch: Branch, residual: Runner, threads: int) -> None:
        super().__init__(branch, residual, threads)
        config = branch.settings
        if branch.preprocess.get("colour") != "luma" or branch.residual.kind != "learned":
            raise ModelError("a learned residual takes luma alone")
        if missing := sorted(set(LumaConfig.__dataclass_fields__) - set(config)):
            raise ModelError(f"the configuration of a learned residual lacks {missing}")
        try:
            features = LumaConfig.from_dict(config)
        except UsageError as error:
            raise ModelError(f"invalid configuration of a learned residual: {error}") from error
        self.outputs = branch.residual.outputs
        self._configured(features, self.outputs + len(LEARNED_FIXED))
        if features.least < features.segment + 2 * branch.residual.margin:
            raise ModelError(f"the residual of the smallest window holds no segment: {features}")
        check_learned(residual, branch.residual, branch.residual_weights)

    def _features(self, pixels: Pixels) -> tuple[NDArray[np.float32], Windows]:
        return luma_features(pixels, self.config, self.residual, threads=self.threads)

    def _channels(self) -> list[tuple[str, float]]:
        learned = [f"learned {k + 1}" for k in range(self.outputs)]
        return [(f"luma, {name}", 1.0) for name in (*learned, *LEARNED_FIXED)]


class OriginalBranch:
    """One generator of the original, with a residual of its own."""

    def __init__(self, branch: Branch, residual: Runner, threads: int) -> None:
        self.generators = branch.generators
        config = dict(branch.preprocess)
        try:
            self.window = int(config.pop("window"))
            self.colour = config.pop("colour")
            self.aligned = bool(config.pop("aligned"))
            windows = config.pop("windows")
            self.epsilon = float(dict(branch.spectrum)["epsilon"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"invalid configuration of an original branch: {error}") from error
        if config or windows != 1 or self.colour not in preprocess.COLOUR_SPACES:
            raise ModelError(f"unknown configuration of an original branch: {branch.preprocess}")
        self.region = 0
        self.head = OriginalHead.from_tensors(branch.tensors)
        self.residual = residual

    def analyse(self, pixels: Pixels, band: int) -> BranchAnalysis:
        """See `BranchRunner`."""
        n = self.window
        y, x = preprocess.centre_window(pixels.shape[0], pixels.shape[1], n, aligned=self.aligned)
        planes = preprocess.to_colour(pixels[None, y : y + n, x : x + n], self.colour)
        found: NDArray[np.float32] = spectrum.log_spectrum(self.residual(planes), self.epsilon)
        score = self.head.similarity(found).score
        return BranchAnalysis(score, np.ones(1, np.float32), [(x, y, n, n)], found, band)

    def probability(self, similarity: NDArray[np.float32], band: int) -> NDArray[np.float32]:
        """See `BranchRunner`."""
        found: NDArray[np.float32] = self.head.probability(similarity)
        return found

    def maps(self, found: BranchAnalysis) -> list[SimilarityMap]:
        """See `BranchRunner`."""
        shown = found.spectrum
        similarity = self.head.similarity(shown)
        mask = int(similarity.mask[0])
        channels = self._channels()
        fy, fx = (spectrum.frequencies(n) for n in shown.shape[-2:])
        weighted = self.head.masks[mask] * self.head.references[mask]
        return [
            SimilarityMap(
                self.generators[0],
                float(similarity.score[0]),
                tuple(
                    PlaneMap(
                        name,
                        # The similarity is the mean over the channels.
                        similarity.map[0, c] / np.float32(len(channels)),
                        weighted[c],
                        shown[0, c],
                        fy,
                        fx,
                    )
                    for c, name in enumerate(channels)
                ),
            )
        ]

    def _channels(self) -> tuple[str, str, str]:
        return ("R", "G", "B") if self.colour == "RGB" else ("Y", "Cb", "Cr")

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        """See `BranchRunner`."""
        masks, references = self.head.masks, self.head.references
        fy, fx = (spectrum.frequencies(n) for n in masks.shape[-2:])
        planes = tuple(
            PatternPlane(
                name if len(masks) == 1 else f"{name}, mask {m + 1}",
                masks[m, c], references[m, c], fy, fx,
            )
            for m in range(len(masks))
            for c, name in enumerate(self._channels())
        )  # fmt: skip
        return {self.generators[0]: planes}

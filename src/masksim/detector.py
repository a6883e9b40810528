"""Load a detector once, ask it about any number of images.

>>> import masksim
>>> detection = masksim.load_detector().detect("photo.jpg")  # doctest: +SKIP
>>> print(detection.verdict.text)  # doctest: +SKIP
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from masksim import __version__, augment, preprocess, spectrum, verdict
from masksim.calibration import (
    Attribution,
    Calibration,
    Joint,
    LikelihoodRatios,
    Populations,
    Rates,
    Strata,
    design_effect,
    scored_for_all,
)
from masksim.checkpoint import Branch, DetectorFile, population_arrays
from masksim.errors import ImageError, MasksimError, ModelError, UsageError
from masksim.features import FeatureConfig, shared_features
from masksim.image import ImageFacts, ImageSource, LoadedImage, load_image
from masksim.model import OriginalHead, SharedHeads, heads_by_band
from masksim.provenance import origin as origins
from masksim.provenance.watermark import WatermarkMatch, find_watermarks
from masksim.residual import BANK, Runner, residual_runner
from masksim.show import text as report
from masksim.traits import TRAITS, compression_band, measure, with_all_traits
from masksim.verdict import NONE, Reason, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Windows = list[tuple[int, int, int, int]]

BUNDLED = "default"

FLAT = 0.5
"""Above this share of flat pixels an image is taken for a graphic (`traits.flat_share`)."""

FLAT_SCREENSHOT = 0.05
"""A lossless image of a screen's size with more flat pixels than this is like a screenshot."""

DARK = 8.0
"""Mean luma, 0 to 255, under which there is too little light to leave a residual."""

COMPRESSED = 50
"""A JPEG quality under this leaves too little of a pattern to conclude from."""

SLACK = 0.1
"""By this share of its width the range that calibration photos have shown is widened."""

FEW_OWN = 10
"""With fewer images of a generator it is not known what they usually show."""

PROBED = 0.25
"""Verdicts are checked by small re-encodings up to this joint rate."""

PARTS: Mapping[int, tuple[str, ...]] = {1: ("",), 3: (" quiet", " middle", " busy")}
"""Names of the parts of an image that its segments are ranked into."""

BUILT_IN = "built-in"
"""Name of the photos that a detector was calibrated on when it was trained."""

# Sizes of screens, shorter side first, in pixels.
_SCREENS = frozenset(
    {(720, 1280), (768, 1366), (800, 1280), (864, 1536), (900, 1440), (900, 1600), (1050, 1680)}
    | {(1080, 1920), (1200, 1920), (1080, 2340), (1080, 2400), (1440, 2560), (1600, 2560)}
    | {(1440, 3200), (1440, 3440), (2160, 3840), (750, 1334), (828, 1792), (1125, 2436)}
    | {(1170, 2532), (1179, 2556), (1206, 2622), (1242, 2208), (1242, 2688), (1284, 2778)}
    | {(1290, 2796), (1320, 2868), (1640, 2360), (1668, 2388), (2048, 2732), (1664, 2560)}
    | {(1964, 3024), (2234, 3456), (1800, 2880), (1864, 2880)}
)


PROBES: Mapping[str, Callable[[Pixels], Pixels]] = {
    "JPEG of quality 75": lambda pixels: augment.reencode(pixels, "JPEG", 75),
    "WebP of quality 80": lambda pixels: augment.reencode(pixels, "WEBP", 80),
    "a reduction by 2 %": lambda pixels: augment.resize(pixels, 0.98, "bicubic"),
    "an enlargement by 2 %": lambda pixels: augment.resize(pixels, 1.02, "bicubic"),
}
"""Small re-encodings, after which a verdict should still hold."""

PROBED_AS: Mapping[str, tuple[str, int | None]] = {
    "JPEG of quality 75": ("JPEG", 75),
    "WebP of quality 80": ("WEBP", None),
}
"""Format and JPEG quality of the file that such an image would be; of the others, lossless."""

JOINT_ARRAYS = ("joint_weights", "joint_offsets")

_PROBED_REGION = 1600  # pixels, a multiple of 16: what lies outside is not analysed

FEW_SOURCES = 3
"""A head learned from fewer sources than this carries a caution."""


@dataclass(frozen=True, slots=True)
class GeneratorScore:
    """What one generator's mask and reference say of an image.

    Attributes
    ----------
    generator
        Name.
    similarity
        Cosine with the reference, in [-1, 1].
    probability
        The head's own logistic output in (0, 1), for equally many real and synthetic images; for
        comparison with other tools, not part of the verdict.
    false_positive_rate
        Share of real photos that score at least as high for this generator, in (0, 1]; None if
        the detector is not calibrated.
    sample_size
        On how many real photos that was measured; 0 if uncalibrated.
    posterior
        Probability of this generator if it is one of those the detector knows, all equally likely
        before; None where the detector has no scores of their own images.
    """

    generator: str
    similarity: float
    probability: float
    false_positive_rate: float | None
    sample_size: int = 0
    posterior: float | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """The answer about one image.

    Attributes
    ----------
    image
        Facts of the file.
    verdict
        What the evidence amounts to.
    scores
        One a generator, the most telling first.
    windows
        (x, y, width, height) of the analysed windows, pixels of the image as stored.
    detector, detector_sha256
        Name and digest of the detector file.
    seconds
        Time taken, with decoding where the image was not decoded before.
    origin
        What the file says of its own origin, which is no part of the verdict; None where it was
        not asked, or there is no file.
    watermarks
        Known open watermarks found in the pixels; no part of the verdict.
    """

    image: ImageFacts
    verdict: Verdict
    scores: tuple[GeneratorScore, ...]
    windows: tuple[tuple[int, int, int, int], ...]
    detector: str
    detector_sha256: str
    seconds: float
    origin: origins.Origin | None = None

    @property
    def beside(self) -> str | None:
        """Verdict and file next to each other, where they disagree; see `origin.beside`."""
        return origins.beside(self.verdict.level, self.verdict.generator, self.origin)

    watermarks: tuple[WatermarkMatch, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give the answer as plain values for JSON."""
        return {
            "image": asdict(self.image),
            "verdict": asdict(self.verdict),
            "scores": [asdict(score) for score in self.scores],
            "windows": [list(window) for window in self.windows],
            "detector": {"name": self.detector, "sha256": self.detector_sha256},
            "seconds": round(self.seconds, 4),
            "origin": None
            if self.origin is None
            else {**self.origin.to_dict(), "beside": self.beside},
            "watermarks": [{**asdict(mark), "text": mark.text} for mark in self.watermarks],
        }

    def _repr_html_(self) -> str:
        """Show a card in notebooks."""
        return report.to_html(self)

    def plot(self) -> Any:
        """Draw the rates of all generators.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        UsageError
            matplotlib is not installed (the extra ``plot``).
        """
        return report.rates_figure(self)


@dataclass(frozen=True, eq=False)
class PlaneMap:
    """Where in the spectrum of one residual channel the similarity comes from.

    Attributes
    ----------
    name
        Which channel: ``"luma, median"``.
    values
        float32 (N, N), zero frequency in the middle: contribution of each frequency.
    reference
        float32 (N, N): the reference pattern, weighted by the mask.
    spectrum
        float32 (N, N): the image's own spectrum, for shared heads in deviations from real photos.
    fy, fx
        float64 (N,): axes in cycles per pixel of the image.
    """

    name: str
    values: NDArray[np.float32]
    reference: NDArray[np.float32]
    spectrum: NDArray[np.float32]
    fy: NDArray[np.float64]
    fx: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """The explanation of one generator's similarity: it is the sum of all `planes`' values."""

    generator: str
    similarity: float
    planes: tuple[PlaneMap, ...]

    def _repr_png_(self) -> bytes:
        """Show the picture of `masksim.show.text.maps_png` in notebooks."""
        return report.maps_png(self)


@dataclass(frozen=True, eq=False)
class PatternPlane:
    """What a generator's head looks for in one residual channel; no image is needed.

    Attributes
    ----------
    name
        As in `PlaneMap`; with several masks of an original head, which one.
    mask
        float32 (N, N), zero frequency in the middle: in [0, 1], how much each frequency counts.
    reference
        float32 (N, N): the pattern.
    fy, fx
        float64 (N,): axes in cycles per pixel of the image.
    """

    name: str
    mask: NDArray[np.float32]
    reference: NDArray[np.float32]
    fy: NDArray[np.float64]
    fx: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What a branch found: computed once, for the scores and the maps alike."""

    similarity: NDArray[np.float32]  # (G,)
    probability: NDArray[np.float32]  # (G,)
    windows: Windows
    spectrum: NDArray[np.float32]  # as the branch's heads take it
    band: int  # see `masksim.traits.compression_band`
    distance: float | None = None  # see `masksim.traits.measure`


class _Runner(Protocol):
    """One branch of a detector, ready to run."""

    generators: tuple[str, ...]
    window: int
    region: int  # side of the central part that is looked at, 0 for all of the image

    def analyse(self, pixels: Pixels, band: int) -> _Evidence: ...

    def maps(self, evidence: _Evidence) -> list[SimilarityMap]: ...

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]: ...


class _SharedBranch:
    """All generators on one residual bank."""

    def __init__(self, branch: Branch, residual: Runner, threads: int) -> None:
        self.generators = branch.generators
        self.threads = threads
        config = dict(branch.preprocess) | dict(branch.spectrum)
        if config.pop("colour", None) != "luma-chroma" or branch.residual.kind != "bank":
            raise ModelError("a shared branch takes luma and chroma to the residual bank")
        # Detectors of the first edition know no parts and no coherence.
        needed = set(FeatureConfig.__dataclass_fields__) - {"parts", "coherence"}
        if missing := sorted(needed - set(config)):
            raise ModelError(f"the configuration of a shared branch lacks {missing}")
        try:
            self.config = FeatureConfig.from_dict(config)
            limit = float(dict(branch.head_config)["limit"])
        except (UsageError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"invalid configuration of a shared branch: {error}") from error
        if set(branch.head_config) != {"limit"} or not 0 < limit < np.inf:
            raise ModelError(f"invalid configuration of shared heads: {dict(branch.head_config)}")
        self.heads: tuple[SharedHeads, ...] = (
            heads_by_band(branch.tensors, limit)
            if branch.head == "bands"
            else (SharedHeads.from_tensors(branch.tensors, limit),)
        )
        rows = self.config.segment // self.config.cell
        expected = (len(self.generators), self.config.channels, rows, rows // 2)
        if tuple(self.heads[0].masks.shape) != expected:
            raise ModelError(
                f"the masks have shape {tuple(self.heads[0].masks.shape)}, expected {expected}"
            )
        self.window = self.config.window
        # What decides whether an image is large enough must be seen to be so.
        self.region = self.config.region if self.config.region >= self.config.smallest else 0
        self.residual = residual

    def _heads(self, band: int) -> SharedHeads:
        return self.heads[min(band, len(self.heads) - 1)]

    def analyse(self, pixels: Pixels, band: int) -> _Evidence:
        features, windows = shared_features(
            pixels, self.config, self.residual, threads=self.threads
        )
        heads = self._heads(band)
        similarity = heads.similarities(features)
        return _Evidence(
            similarity,
            heads.probability(similarity),
            windows,
            features,
            band,
            heads.distance(features),
        )

    def maps(self, evidence: _Evidence) -> list[SimilarityMap]:
        features = evidence.spectrum
        cell, n = self.config.cell, self.config.segment
        heads = self._heads(evidence.band)
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
            np.ones(values.shape[-2:], dtype=values.dtype), self.config.cell
        )
        cover[..., 0] = np.inf
        shown: NDArray[np.float32] = spectrum.spread_cells(values, self.config.cell) / cover
        return shown

    def _channels(self) -> list[tuple[str, float]]:
        """Name each channel, and say by how much its axes are shorter than the image's."""
        parts = PARTS.get(self.config.parts) or tuple(
            f" part {k + 1}" for k in range(self.config.parts)
        )
        found = [(f"luma{part}, {kind}", 1.0) for part in parts for kind in BANK]
        found += [(f"chroma {c}, {kind}", 0.5) for kind in BANK for c in ("Cb", "Cr")]
        if self.config.coherence:
            found += [(f"coherence, {pair}", 0.5) for pair in ("R and G", "G and B", "R and B")]
        return found

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        axis = spectrum.frequencies(self.config.segment)
        heads = self._heads(0)
        masks, references = self._spread(heads.masks), self._spread(heads.references)
        return {
            generator: tuple(
                PatternPlane(name, masks[g, c], references[g, c], axis * scale, axis * scale)
                for c, (name, scale) in enumerate(self._channels())
            )
            for g, generator in enumerate(self.generators)
        }


class _OriginalBranch:
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

    def analyse(self, pixels: Pixels, band: int) -> _Evidence:
        n = self.window
        y, x = preprocess.centre_window(pixels.shape[0], pixels.shape[1], n, aligned=self.aligned)
        planes = preprocess.to_colour(pixels[None, y : y + n, x : x + n], self.colour)
        found: NDArray[np.float32] = spectrum.log_spectrum(self.residual(planes), self.epsilon)
        score = self.head.similarity(found).score
        return _Evidence(score, self.head.probability(score), [(x, y, n, n)], found, band)

    def maps(self, evidence: _Evidence) -> list[SimilarityMap]:
        found = evidence.spectrum
        similarity = self.head.similarity(found)
        mask = int(similarity.mask[0])
        channels = self._channels()
        fy, fx = (spectrum.frequencies(n) for n in found.shape[-2:])
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
                        found[0, c],
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


class Detector:
    """All generators of a detector file, ready for images.

    Parameters
    ----------
    file
        From `masksim.checkpoint.DetectorFile.load`.
    threads
        Of the processor, for one image; by default one a core. The answer does not depend on it.
    providers
        Execution providers of ONNX Runtime; by default the processor's.
    stability
        Check verdicts near evidence by small re-encodings (`PROBES`): it costs as many further
        analyses, for images with a joint rate up to `PROBED`.
    population
        Which photos rates are measured on: ``"auto"`` for all that the file has, of which the
        largest rate counts; `BUILT_IN` for those of the training; or the name of those that
        `masksim calibrate` added.
    likelihood_ratio
        Give verdicts a likelihood ratio.
    metadata
        Also tell what a file says of its own origin (`Detection.origin`).
    watermarks
        Look for known open watermarks, which takes some milliseconds.

    Attributes
    ----------
    generators
        Names, in the order of `similarities`.
    calibrations
        By the name of their photos; empty if the file has none.
    attribution
        Tells how clear it is which generator an image is of; None where the file has no scores of
        the generators' own images.
    likelihood_ratios
        Of joint rates; None unless asked for.

    Raises
    ------
    ModelError
        The file's parts do not fit each other.
    UsageError
        A provider is not available, or the file has no photos of that name, or no scores of the
        generators' own images for likelihood ratios.
    """

    def __init__(
        self,
        file: DetectorFile,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        stability: bool = True,
        population: str = "auto",
        likelihood_ratio: bool = False,
        metadata: bool = True,
        watermarks: bool = True,
    ) -> None:
        self.file = file
        self.name = str(file.config.get("name", file.config.get("recipe", "detector")))
        self.sha256 = file.sha256
        self.generators = tuple(file.generators)
        self.stability = stability
        self.metadata = metadata
        self.watermarks = watermarks
        if len(self.generators) != sum(len(branch.generators) for branch in file.branches):
            raise ModelError("a generator stands in two branches")
        self._by_band = any(branch.head == "bands" for branch in file.branches)
        self._branches: list[_Runner] = [
            (_OriginalBranch if branch.head == "original" else _SharedBranch)(
                branch,
                residual_runner(branch.onnx, threads=threads, providers=providers),
                threads or _cores(),
            )
            for branch in file.branches
        ]
        sources = file.provenance.get("sources", {})
        self._narrow = {
            name
            for name in self.generators
            if isinstance(sources, Mapping) and sources.get(name, FEW_SOURCES) < FEW_SOURCES
        }
        self.calibrations = read_calibrations(file)
        self.attribution = self._attribution()
        self.likelihood_ratios = self._likelihood_ratios() if likelihood_ratio else None
        if population != "auto":
            if population not in self.calibrations:
                raise UsageError(
                    f"the detector has no calibration {population!r}; it has "
                    f"{', '.join(self.calibrations) or 'none'}"
                )
            self.calibrations = {population: self.calibrations[population]}
        self._limits = {
            trait: _widest([c.limits(trait) for c in self.calibrations.values()])
            for trait in ("side", "energy", "sharpness", "distance")
        }
        # A new source may well show a little more than those that are there.
        for trait in ("energy", "sharpness", "distance"):
            low, high = self._limits[trait]
            if np.isfinite([low, high]).all():
                self._limits[trait] = low - SLACK * (high - low), high + SLACK * (high - low)
        self._own_limits = self._usual()

    def _own(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None] | None:
        """Scores, generators and traits of the generators' own images, if the file has them."""
        arrays = self.file.calibration or {}
        names = {"own_similarities", "own_generators"}
        if not names & set(arrays):
            return None
        if not names <= set(arrays):
            raise ModelError(f"of {sorted(names)} the calibration has only one")
        scores, of, traits = (
            arrays.get(name) for name in ("own_similarities", "own_generators", "own_traits")
        )
        if scores is None or of is None or scores.shape[1:] != (len(self.generators),):
            raise ModelError("own images are scored for another number of heads")
        traits = None if traits is None else with_all_traits(traits)
        if traits is not None and traits.shape != (len(scores), len(TRAITS)):
            raise ModelError(f"traits of own images have the shape {traits.shape}")
        return scores, of, traits

    def _attribution(self) -> Attribution | None:
        own = self._own()
        if own is None or BUILT_IN not in self.calibrations:
            return None
        return Attribution.fit(own[0], own[1], self.calibrations[BUILT_IN].real_scores)

    def _usual(self) -> NDArray[np.float64]:
        """Range of each trait in which 90 % of each generator's own images lie: (2, G, T)."""
        out = np.empty((2, len(self.generators), len(TRAITS)))
        out[0], out[1] = np.inf, -np.inf
        own = self._own()
        if own is not None and own[2] is not None:
            for g in range(len(self.generators)):
                mine = own[2][own[1] == g]
                if len(mine) >= FEW_OWN:
                    out[:, g] = np.quantile(mine, (0.05, 0.95), axis=0)
        return out

    def _likelihood_ratios(self) -> LikelihoodRatios:
        own = self._own()
        if own is None or BUILT_IN not in self.calibrations:
            raise UsageError("this detector has no scores of its generators' own images")
        found = self.calibrations[BUILT_IN]
        scores, of, traits = own
        complete = ~np.isnan(scores).any(axis=1)
        scores, of = scores[complete].astype(np.float64), of[complete]
        made = found.all_rates(scores, None if traits is None else traits[complete])[1]
        # As a photo of a new source would be ranked; among themselves none would be rare enough.
        real = found.left_out()
        kept = ~np.isnan(real)
        if not len(made) or not kept.any():
            raise UsageError("too few images were scored by all heads for likelihood ratios")
        counts = np.bincount(of)
        effect = design_effect(real[kept] <= NONE, found.sources[kept])
        return LikelihoodRatios(made, 1.0 / counts[of], real[kept], kept.sum() / effect)

    @property
    def sample_size(self) -> int:
        """Number of calibration photos that were scored by all heads; 0 if it is not calibrated."""
        return sum(len(scored_for_all(c.real_scores)) for c in self.calibrations.values())

    def rates(self, similarity: NDArray[Any], traits: NDArray[Any]) -> Rates | None:
        """Rank scores (G,) of an image with traits (T,) among the photos of its kind.

        Of several populations of photos the one with the largest joint rate counts: what is rare
        among some photos only is not evidence.
        """
        if not self.calibrations:
            return None
        return Populations(self.calibrations).rates(similarity, traits)

    def measure_pixels(
        self, pixels: Pixels, quality: int | None = None, format: str = "array"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score pixels and measure what they show, for programs that calibrate and measure.

        Parameters
        ----------
        pixels
            uint8 (H, W, 3), sRGB.
        quality
            Estimated JPEG quality of the file; None if it is no JPEG.
        format
            Of the file, Pillow's name; it may tell of its last compression.

        Returns
        -------
        similarities
            float64 (G,), in the order of `generators`.
        traits
            float64 (T,), see `masksim.traits.measure`.

        Raises
        ------
        ImageError
            Code ``too_small`` or ``unsupported``.
        """
        found = self._analyse(pixels, compression_band(format, quality))
        return _together(found)[0], _traits(pixels, found, quality)

    def similarities(
        self, pixels: Pixels, quality: int | None = None, format: str = "array"
    ) -> NDArray[np.float64]:
        """Score pixels, for programs.

        Parameters
        ----------
        pixels
            uint8 (H, W, 3), sRGB.
        quality, format
            Of their file, see `measure_pixels`.

        Returns
        -------
        ndarray
            float64 (G,), in the order of `generators`.

        Raises
        ------
        ImageError
            Code ``too_small``.
        """
        return _together(self._analyse(pixels, compression_band(format, quality)))[0]

    def _load(self, image: ImageSource | LoadedImage, name: str | None) -> LoadedImage:
        if isinstance(image, LoadedImage):
            return image
        return load_image(image, name=name, part=self.part, keep=self.metadata)

    def part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Tell which part of an image is looked at, for `load_image`: the rest need not be kept.

        Returns
        -------
        (y, x, height, width)
            The analysis of this part is that of the whole image.
        """
        regions = {branch.region for branch in self._branches}
        if len(regions) == 1 and (region := regions.pop()) and min(height, width) >= region:
            return preprocess.central_part(height, width, region)
        return 0, 0, height, width

    def _analyse(self, pixels: Pixels, band: int) -> list[_Evidence]:
        return [branch.analyse(pixels, band) for branch in self._branches]

    def _analyse_file(self, loaded: LoadedImage) -> list[_Evidence]:
        facts = loaded.facts
        return self._analyse(loaded.pixels, compression_band(facts.format, facts.jpeg_quality))

    def detect(self, image: ImageSource | LoadedImage, *, name: str | None = None) -> Detection:
        """Analyse one image.

        Parameters
        ----------
        image
            All that `masksim.load_image` takes, or what it returned.
        name
            Stands for the image in the answer; by default its path.

        Returns
        -------
        Detection

        Raises
        ------
        ImageError
            The image cannot be read or analysed; its ``code`` says why.
        """
        start = time.perf_counter()
        loaded, said = _asked(self._load(image, name))
        return replace(self._decide(loaded, self._analyse_file(loaded), start), origin=said)

    def explain(
        self, image: ImageSource | LoadedImage, *, name: str | None = None
    ) -> tuple[Detection, dict[str, SimilarityMap]]:
        """Analyse one image and show where its similarities come from, for the cost of one.

        Returns
        -------
        Detection
            As `detect`.
        dict
            As `similarity_maps`.

        Raises
        ------
        ImageError
            As `detect`.
        """
        start = time.perf_counter()
        loaded, said = _asked(self._load(image, name))
        found = self._analyse_file(loaded)
        return replace(self._decide(loaded, found, start), origin=said), self._maps(found)

    def _maps(self, found: list[_Evidence]) -> dict[str, SimilarityMap]:
        return {
            shown.generator: shown
            for branch, evidence in zip(self._branches, found, strict=True)
            for shown in branch.maps(evidence)
        }

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        """Show what each generator's head looks for: mask and reference of every channel.

        Returns
        -------
        dict
            By generator, in the order of `generators`.
        """
        return {
            generator: planes
            for branch in self._branches
            for generator, planes in branch.patterns().items()
        }

    def _decide(self, loaded: LoadedImage, found: list[_Evidence], start: float) -> Detection:
        similarity, probability, windows = _together(found)
        traits = _traits(loaded.pixels, found, loaded.facts.jpeg_quality)
        rates = self.rates(similarity, traits)
        after: dict[str, float] = {}
        shown, lost = rates, None
        posterior: list[float] | None = None
        clarity: float | None = None
        if self.attribution is not None and len(self.attribution.own_clearest):
            # The last digits depend on the threads of the linear algebra.
            posterior = self.attribution.posterior(similarity).round(9).tolist()
            clarity = float(self.attribution.clarity(similarity))
        scores = [
            GeneratorScore(
                generator,
                float(similarity[g]),
                float(probability[g]),
                None if rates is None else float(rates.own[g]),
                0 if rates is None else int(rates.own_photos[g]),
                None if posterior is None else posterior[g],
            )
            for g, generator in enumerate(self.generators)
        ]
        scores.sort(
            key=lambda s: (
                1.0 if s.false_positive_rate is None else s.false_positive_rate,
                -s.similarity,
            )
        )
        reasons = self._reasons(loaded, traits, rates)
        if rates is not None and self.stability and not reasons and rates.joint <= PROBED:
            probed = self._probe(loaded.pixels)
            after = {name: found.joint for name, found in probed.items()}
            lost = verdict.lost_after(rates.joint, after)
            if lost is not None:
                shown = probed[lost]
        first_rows = loaded.top() if self.watermarks else None
        marks = () if first_rows is None else find_watermarks(first_rows)
        top, left = loaded.corner
        decided = verdict.decide(
            self.generators,
            None if rates is None else rates.own.tolist(),
            None if shown is None else shown.joint,
            0 if shown is None else shown.photos,
            similarities=similarity.tolist(),
            cautions=self._cautions(loaded, traits),
            reasons=reasons,
            clarity=clarity,
            interval=None if shown is None else shown.interval,
            stratum="all" if shown is None else shown.stratum,
            sources=0 if shown is None else shown.sources,
            population="" if shown is None or len(self.calibrations) < 2 else shown.population,
            as_found=None if rates is None or lost is None else rates.joint,
            lost=lost or "",
        )
        ratio = None
        if (
            rates is not None
            and self.likelihood_ratios is not None
            and decided.level != "inconclusive"
        ):
            ratio = self.likelihood_ratios.at(rates.joint)
        decided = replace(decided, stability=after or None, likelihood_ratio=ratio)
        if decided.generator in self._narrow:
            note = (
                f"{decided.generator}'s pattern was learned from too few collections of images: it "
                "may be theirs as much as the generator's."
            )
            decided = replace(decided, cautions=(*decided.cautions, note))
        return Detection(
            loaded.facts,
            decided,
            tuple(scores),
            tuple((left + x, top + y, w, h) for x, y, w, h in windows),
            self.name,
            self.sha256,
            time.perf_counter() - start,
            watermarks=marks,
        )

    def _probe(self, pixels: Pixels) -> dict[str, Rates]:
        """Rates after each small re-encoding of the part that is analysed."""
        # The same part whether the image came as a file, of which no more is held, or as an array.
        top, left, height, width = self.part(*pixels.shape[:2])
        part = _middle(pixels[top : top + height, left : left + width], _PROBED_REGION)
        after = {}
        for name, change in PROBES.items():
            changed = change(part)
            format, quality = PROBED_AS.get(name, ("PNG", None))
            try:
                found = self._analyse(changed, compression_band(format, quality))
            except ImageError:  # a side of just the smallest size there may be
                continue
            rates = self.rates(_together(found)[0], _traits(changed, found, quality))
            if rates is not None:
                after[name] = rates
        return after

    def _reasons(
        self, loaded: LoadedImage, traits: NDArray[np.float64], rates: Rates | None
    ) -> list[Reason]:
        """Tell why nothing can be concluded from this image, whatever its rate."""
        shown = dict(zip(TRAITS, traits.tolist(), strict=True))
        sides = tuple(sorted((loaded.facts.width, loaded.facts.height)))
        low = {trait: limits[0] for trait, limits in self._limits.items()}
        high = {trait: limits[1] for trait, limits in self._limits.items()}
        quality = loaded.facts.jpeg_quality
        found = []
        if shown["side"] < low["side"]:
            found.append(
                Reason(
                    "too_small",
                    f"the image is smaller ({shown['side']:.0f} pixels) than nearly all photos "
                    f"that the rates were measured on ({low['side']:.0f} and more)",
                    hides=True,
                )
            )
        if shown["brightness"] < DARK:
            found.append(Reason("too_dark", "the image is nearly black", hides=True))
        if shown["flat"] > FLAT:
            found.append(
                Reason(
                    "flat",
                    "this is no photo: large parts of the image are perfectly flat, as in "
                    "drawings, charts, screenshots and text, and such images can match a pattern "
                    "by accident",
                    hides=True,
                )
            )
        elif (
            sides in _SCREENS
            and shown["flat"] > FLAT_SCREENSHOT
            and loaded.facts.format not in ("JPEG", "MPO", "HEIF", "AVIF")
        ):
            found.append(
                Reason("screenshot_like", "the image has the size and flat parts of a screenshot")
            )
        if quality is not None and quality < COMPRESSED:
            found.append(
                Reason(
                    "heavily_compressed",
                    f"the JPEG quality is about {quality}, which leaves little of a pattern",
                    hides=True,
                )
            )
        if shown["sharpness"] < low["sharpness"]:
            found.append(
                Reason(
                    "resized",
                    "the image has less fine detail than nearly all photos that the rates were "
                    "measured on, as after strong enlarging or smoothing",
                    hides=True,
                )
            )
        # Beyond what photos show, and beyond what images of the generator in question do.
        best = None if rates is None else int(np.argmin(rates.own))
        beyond = []
        for trait in ("energy", "sharpness", "distance"):
            usual = (np.inf, -np.inf)
            if best is not None:
                usual = self._own_limits[:, best, TRAITS.index(trait)].tolist()
            if shown[trait] > max(high[trait], usual[1]) or (
                trait == "energy" and shown[trait] < min(low[trait], usual[0])
            ):
                beyond.append(trait)
        if beyond:
            found.append(
                Reason(
                    "out_of_range",
                    "the image is unlike the photos that the rates were measured on, and unlike "
                    f"the generator's own images ({', '.join(beyond)})",
                )
            )
        return found

    def _cautions(self, loaded: LoadedImage, traits: NDArray[np.float64]) -> list[str]:
        cautions = []
        wanted = max(branch.window for branch in self._branches)
        smallest = self._limits["side"][0]
        if min(loaded.facts.height, loaded.facts.width) < wanted <= smallest:
            cautions.append(
                f"A side of the image is under {wanted} pixels: there is less to measure than in "
                "the photos the rates were measured on."
            )
        flat = float(traits[TRAITS.index("flat")])
        if flat > FLAT:
            cautions.append(
                f"{100 * flat:.0f} % of the analysed pixels equal their neighbours: there is "
                "little residual to measure."
            )
        if loaded.facts.format == "array" and self._by_band:
            cautions.append(
                "Pixels without a file do not tell how it was compressed: the rate is that of "
                "images without visible compression. Give the file where there is one."
            )
        quality = loaded.facts.jpeg_quality
        if quality is not None and COMPRESSED <= quality < 60:
            cautions.append(
                f"JPEG quality {quality} is at the edge of what the detector was trained on: "
                "most of a generator's pattern may be gone."
            )
        return cautions

    def detect_many(
        self, images: Iterable[ImageSource | LoadedImage]
    ) -> Iterator[Detection | MasksimError]:
        """Analyse images one after another.

        Yields
        ------
        Detection or MasksimError
            In the order of `images`; the error of an image that could not be analysed.
        """
        for image in images:
            try:
                yield self.detect(image)
            except MasksimError as error:
                yield error

    def similarity_maps(self, image: ImageSource | LoadedImage) -> dict[str, SimilarityMap]:
        """Explain the similarities of an image.

        Returns
        -------
        dict
            By generator, in the order of `generators`. The sum of a map's values is the similarity
            that `detect` gives.

        Raises
        ------
        ImageError
            As `detect`.
        """
        loaded = self._load(image, None)
        return self._maps(self._analyse_file(loaded))


def _asked(loaded: LoadedImage) -> tuple[LoadedImage, origins.Origin | None]:
    """Ask the file for its origin, where its bytes were kept; they are let go of after that."""
    if loaded.encoded is None:
        return loaded, None
    said = origins.read_origin(loaded.encoded)
    return replace(loaded, encoded=None), said


def _together(
    found: Sequence[_Evidence],
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[tuple[int, int, int, int], ...]]:
    """Similarities and probabilities of all generators, and the windows of all branches."""
    similarity = np.concatenate([part.similarity for part in found]).astype(np.float64)
    probability = np.concatenate([part.probability for part in found]).astype(np.float64)
    if not np.isfinite(similarity).all():
        raise ImageError("the image has no finite similarity", code="unsupported")
    windows = tuple(dict.fromkeys(window for part in found for window in part.windows))
    return similarity, probability, windows


def _traits(pixels: Pixels, found: Sequence[_Evidence], quality: int | None) -> NDArray[np.float64]:
    distances = [part.distance for part in found if part.distance is not None]
    windows = [window for part in found for window in part.windows]
    return measure(
        pixels,
        list(dict.fromkeys(windows)),
        quality=quality,
        distance=max(distances) if distances else None,
        band=found[0].band if found else None,
    )


def _middle(pixels: Pixels, side: int) -> Pixels:
    """Cut the middle out, keeping the grid of JPEG's blocks and of chroma."""
    top, left = ((n - min(n, side)) // 2 // 16 * 16 for n in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _widest(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Join ranges; photos of too few sources to tell one do not count."""
    return (
        min((low for low, _ in ranges if np.isfinite(low)), default=-np.inf),
        max((high for _, high in ranges if np.isfinite(high)), default=np.inf),
    )


def _joint_of(arrays: Mapping[str, NDArray[Any]]) -> Joint | None:
    """Read the learned joint number, if the file has one."""
    found = [arrays[name] for name in JOINT_ARRAYS if name in arrays]
    if not found:
        return None
    if len(found) != len(JOINT_ARRAYS):
        raise ModelError(f"of {list(JOINT_ARRAYS)} the calibration has only one")
    return Joint(found[0].astype(np.float64), found[1].astype(np.float64))


def read_calibrations(file: DetectorFile) -> dict[str, Calibration]:
    """Read the scores of real photos that a detector file holds, by the name of their population.

    Returns
    -------
    dict
        `BUILT_IN` first, then those that were added, in the order they were; empty for a detector
        without any.

    Raises
    ------
    ModelError
        The arrays do not fit each other or the heads.
    """
    arrays = file.calibration
    if arrays is None:
        return {}
    populations = file.config.get("populations", [])
    if not isinstance(populations, list):
        raise ModelError(f"the populations of a calibration are a list, got {populations!r:.100}")
    own = {"own_similarities", "own_generators", "own_traits", *JOINT_ARRAYS}
    joint = _joint_of(arrays)
    known = own | set(population_arrays(0))
    names = [BUILT_IN]
    for k, population in enumerate(populations, 1):
        if not isinstance(population, Mapping) or not isinstance(population.get("name"), str):
            raise ModelError(f"invalid description of a calibration: {population}")
        names.append(population["name"])
        known |= set(population_arrays(k))
    if len(set(names)) != len(names):
        raise ModelError(f"two calibrations have one name: {names}")
    if unknown := sorted(set(arrays) - known):
        raise ModelError(f"unknown calibration: {unknown}")
    for array in arrays:
        if array.endswith("_traits") and np.isinf(arrays[array]).any():
            raise ModelError(f"{array} of the calibration are not finite")
    strata = Strata.from_dict(file.config["strata"]) if "strata" in file.config else None
    found = {}
    for k, name in enumerate(names):
        similarities, traits, sources = (arrays.get(array) for array in population_arrays(k))
        if similarities is None:
            # A detector that came without photos may be calibrated on one's own alone.
            if k == 0 and len(names) > 1 and not set(arrays) & set(population_arrays(0)):
                continue
            raise ModelError(f"unknown calibration: {sorted(arrays)}")
        if similarities.ndim != 2 or similarities.shape[1] != len(file.generators):
            raise ModelError(
                f"a calibration of shape {similarities.shape} for {len(file.generators)} heads"
            )
        if np.isinf(similarities).any():
            raise ModelError("the calibration has scores that are not finite")
        if not len(scored_for_all(similarities)):
            raise ModelError("the calibration has no photo with a score for every head")
        found[name] = Calibration(
            similarities,
            None if traits is None else with_all_traits(traits),
            sources,
            strata,
            joint,
        )
    return found


def _cores() -> int:
    """Count the cores this process may use."""
    with suppress(AttributeError, OSError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bundled_path() -> Path:
    """Return the folder of the detector inside the package."""
    return Path(str(resources.files("masksim"))) / "weights" / BUNDLED


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
        Folder of a detector; by default the one inside the package.
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
    if path is None:
        path = bundled_path()
    return Detector(
        DetectorFile.load(path),
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
        ``calibration`` (number of photos, and the strata of each population), ``config``,
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

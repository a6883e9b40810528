"""Load a detector once, ask it about any number of images.

>>> import masksim
>>> detection = masksim.load_detector().detect("photo.jpg")  # doctest: +SKIP
>>> print(detection.verdict.text)  # doctest: +SKIP
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import __version__, limits, preprocess, verdict
from masksim.branches import Analysis, BranchRunner, OriginalBranch, SharedBranch
from masksim.calibration import Rates, scored_for_all
from masksim.checkpoint import DetectorFile
from masksim.config import cores
from masksim.errors import ImageError, MasksimError, ModelError, UsageError
from masksim.evidence import Attribution
from masksim.image import ImageSource, LoadedImage, load_image
from masksim.populations import (
    BUILT_IN,
    OwnImages,
    Populations,
    photos_in_copies,
    read_calibrations,
)
from masksim.populations import (
    likelihood_ratios as fit_likelihood_ratios,
)
from masksim.provenance import origin as origins
from masksim.provenance.watermark import find_watermarks
from masksim.residual import residual_runner
from masksim.results import Detection, GeneratorScore, PatternPlane, SimilarityMap
from masksim.stability import REENCODINGS, TRIED_UP_TO, middle
from masksim.traits import compression_band, measure
from masksim.verdict import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

BUNDLED = "default"
"""The word for the detector of the package, wherever one is asked for."""

FEW_SOURCES = 3
"""A head learned from fewer sources than this carries a caution."""


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
        Check verdicts near evidence by small re-encodings (`masksim.stability`): it costs as many
        further analyses, for images with a joint rate up to `TRIED_UP_TO`.
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
        sources = file.provenance.get("sources", {})
        self._narrow = {
            name
            for name in self.generators
            if isinstance(sources, Mapping) and sources.get(name, FEW_SOURCES) < FEW_SOURCES
        }
        self.calibrations = read_calibrations(file)
        own, photos = OwnImages.read(file), self.calibrations.get(BUILT_IN)
        self.attribution = None
        if own is not None and photos is not None:
            fitted = Attribution.fit(own.similarities, own.generators, photos.real_scores)
            self.attribution = fitted if len(fitted.own_clearest) else None
        self.likelihood_ratios = None
        if likelihood_ratio:
            if own is None or photos is None:
                raise UsageError("this detector has no scores of its generators' own images")
            self.likelihood_ratios = fit_likelihood_ratios(own, photos)
        if population != "auto":
            if population not in self.calibrations:
                raise UsageError(
                    f"the detector has no calibration {population!r}; it has "
                    f"{', '.join(self.calibrations) or 'none'}"
                )
            self.calibrations = {population: self.calibrations[population]}
        self._seen = limits.Seen.by(list(self.calibrations.values()), own)

    @property
    def sample_size(self) -> int:
        """Number of scores of real photos that rates rest on; 0 if it is not calibrated.

        A photo may count several times, each copy processed in another way: see `photos`.
        """
        return sum(len(scored_for_all(c.real_scores)) for c in self.calibrations.values())

    @property
    def photos(self) -> int:
        """Number of different photos among them, as the file tells."""
        built_in, photos = self.calibrations.get(BUILT_IN), photos_in_copies(self.file)
        if built_in is None or photos is None:
            return self.sample_size
        return self.sample_size - len(scored_for_all(built_in.real_scores)) + photos

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

    def _analyse(self, pixels: Pixels, band: int) -> list[Analysis]:
        return [branch.analyse(pixels, band) for branch in self._branches]

    def _analyse_file(self, loaded: LoadedImage) -> list[Analysis]:
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

    def _maps(self, found: list[Analysis]) -> dict[str, SimilarityMap]:
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

    def _decide(self, loaded: LoadedImage, found: list[Analysis], start: float) -> Detection:
        similarity, probability, windows = _together(found)
        traits = _traits(loaded.pixels, found, loaded.facts.jpeg_quality)
        rates = self.rates(similarity, traits)
        first_rows = loaded.top() if self.watermarks else None
        marks = () if first_rows is None else find_watermarks(first_rows)
        top, left = loaded.corner
        return Detection(
            loaded.facts,
            self._verdict(loaded, similarity, traits, rates),
            self._scores(similarity, probability, rates),
            tuple((left + x, top + y, w, h) for x, y, w, h in windows),
            self.name,
            self.sha256,
            time.perf_counter() - start,
            watermarks=marks,
        )

    def _scores(
        self,
        similarity: NDArray[np.float64],
        probability: NDArray[np.float64],
        rates: Rates | None,
    ) -> tuple[GeneratorScore, ...]:
        """Give what each head says, the most telling first."""
        posterior: list[float | None] = [None] * len(self.generators)
        if self.attribution is not None:
            # The last digits depend on the threads of the linear algebra.
            posterior = self.attribution.posterior(similarity).round(9).tolist()
        scores = [
            GeneratorScore(
                generator,
                float(similarity[g]),
                float(probability[g]),
                None if rates is None else float(rates.own[g]),
                0 if rates is None else int(rates.own_photos[g]),
                posterior[g],
            )
            for g, generator in enumerate(self.generators)
        ]
        return tuple(
            sorted(
                scores,
                key=lambda s: (
                    1.0 if s.false_positive_rate is None else s.false_positive_rate,
                    -s.similarity,
                ),
            )
        )

    def _verdict(
        self,
        loaded: LoadedImage,
        similarity: NDArray[np.float64],
        traits: NDArray[np.float64],
        rates: Rates | None,
    ) -> Verdict:
        clarity = None
        if self.attribution is not None:
            clarity = float(self.attribution.clarity(similarity))
        against = limits.reasons(loaded.facts, traits, rates, similarity, self._seen)
        near = rates is not None and rates.joint <= TRIED_UP_TO
        tried = near and self.stability and not against
        decided = verdict.decide(
            self.generators,
            similarity.tolist(),
            rates,
            after=self._after_reencoding(loaded.pixels) if tried else {},
            reasons=against,
            cautions=limits.cautions(
                loaded.facts,
                traits,
                self._seen,
                window=max(branch.window for branch in self._branches),
                by_band=self._by_band,
            ),
            clarity=clarity,
            ratios=self.likelihood_ratios,
        )
        if decided.generator in self._narrow:
            note = (
                f"{decided.generator}'s pattern was learned from too few collections of images: it "
                "may be theirs as much as the generator's."
            )
            decided = replace(decided, cautions=(*decided.cautions, note))
        return decided

    def _after_reencoding(self, pixels: Pixels) -> dict[str, Rates]:
        """Rates after each small re-encoding of the part that is analysed, by its name."""
        # The same part whether the image came as a file, of which no more is held, or as an array.
        top, left, height, width = self.part(*pixels.shape[:2])
        side = max(branch.region for branch in self._branches)
        part = middle(pixels[top : top + height, left : left + width], side)
        after = {}
        for small in REENCODINGS:
            changed = small.change(part)
            try:
                found = self._analyse(changed, compression_band(small.format, small.quality))
            except ImageError:  # a side of just the smallest size there may be
                continue
            rates = self.rates(_together(found)[0], _traits(changed, found, small.quality))
            if rates is not None:
                after[small.name] = rates
        return after

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
    found: Sequence[Analysis],
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[tuple[int, int, int, int], ...]]:
    """Similarities and probabilities of all generators, and the windows of all branches."""
    similarity = np.concatenate([part.similarity for part in found]).astype(np.float64)
    probability = np.concatenate([part.probability for part in found]).astype(np.float64)
    if not np.isfinite(similarity).all():
        raise ImageError("the image has no finite similarity", code="unsupported")
    windows = tuple(dict.fromkeys(window for part in found for window in part.windows))
    return similarity, probability, windows


def _traits(pixels: Pixels, found: Sequence[Analysis], quality: int | None) -> NDArray[np.float64]:
    distances = [part.distance for part in found if part.distance is not None]
    windows = [window for part in found for window in part.windows]
    return measure(
        pixels,
        list(dict.fromkeys(windows)),
        quality=quality,
        distance=max(distances) if distances else None,
        band=found[0].band if found else None,
    )


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

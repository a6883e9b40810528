"""The detector: loaded once, it is asked about any number of images.

>>> import masksim
>>> detection = masksim.load_detector().detect("photo.jpg")  # doctest: +SKIP
>>> print(detection.verdict.text)  # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from masksim import limits, verdict
from masksim.analysis import Analyser, Analysis
from masksim.attribution import Attribution
from masksim.calibration import Rates, scored_for_all
from masksim.checkpoint import DetectorFile
from masksim.errors import MasksimError, UsageError
from masksim.image import ImageSource, LoadedImage, load_image
from masksim.populations import (
    BUILT_IN,
    OwnImages,
    Populations,
    likelihood_ratios,
    photos_in_copies,
    read_calibrations,
)
from masksim.provenance import origin as origins
from masksim.provenance.watermark import find_watermarks
from masksim.results import Detection, PatternPlane, SimilarityMap, ranked_scores
from masksim.stability import TRIED_UP_TO, after_reencodings
from masksim.verdict import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


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
        Check evidence by small re-encodings (`masksim.stability`): it costs as many
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
        self._analyser = Analyser(file, threads=threads, providers=providers)
        self._from_few = limits.from_few_sources(file)
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
            self.likelihood_ratios = likelihood_ratios(own, photos)
        if population != "auto":
            if population not in self.calibrations:
                raise UsageError(
                    f"the detector has no calibration {population!r}; it has "
                    f"{', '.join(self.calibrations) or 'none'}"
                )
            self.calibrations = {population: self.calibrations[population]}
        # Of added photos it is not known.
        self._formats = limits.formats_of(file) if list(self.calibrations) == [BUILT_IN] else None
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
        found = self._analyser.analyse(pixels, format, quality)
        return found.similarity, self._analyser.traits(pixels, found, quality)

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
        return self._analyser.analyse(pixels, format, quality).similarity

    def _load(self, image: ImageSource | LoadedImage, name: str | None) -> LoadedImage:
        if isinstance(image, LoadedImage):
            return image
        return load_image(image, name=name, part=self.analysed_part, keep=self.metadata)

    def analysed_part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Tell which part of an image is looked at, for `load_image`: the rest need not be kept.

        Returns
        -------
        (y, x, height, width)
            The analysis of this part is that of the whole image.
        """
        return self._analyser.analysed_part(height, width)

    def _analyse(self, loaded: LoadedImage) -> Analysis:
        facts = loaded.facts
        return self._analyser.analyse(loaded.pixels, facts.format, facts.jpeg_quality)

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
        return replace(self._decide(loaded, self._analyse(loaded), start), origin=said)

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
        found = self._analyse(loaded)
        return replace(self._decide(loaded, found, start), origin=said), self._analyser.maps(found)

    def patterns(self) -> dict[str, tuple[PatternPlane, ...]]:
        """Show what each generator's head looks for: mask and reference of every channel.

        Returns
        -------
        dict
            By generator, in the order of `generators`.
        """
        return self._analyser.patterns()

    def _decide(self, loaded: LoadedImage, found: Analysis, start: float) -> Detection:
        traits = self._analyser.traits(loaded.pixels, found, loaded.facts.jpeg_quality)
        rates = self.rates(found.similarity, traits)
        posterior = None
        if self.attribution is not None:
            # The last digits depend on the threads of the linear algebra.
            posterior = self.attribution.posterior(found.similarity).round(9)
        first_rows = loaded.top() if self.watermarks else None
        marks = () if first_rows is None else find_watermarks(first_rows)
        top, left = loaded.corner
        return Detection(
            loaded.facts,
            self._verdict(loaded, found.similarity, traits, rates),
            ranked_scores(self.generators, found.similarity, found.probability, rates, posterior),
            tuple((left + x, top + y, w, h) for x, y, w, h in found.windows),
            self.name,
            self.sha256,
            time.perf_counter() - start,
            watermarks=marks,
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
            after=self._reencoded(loaded.pixels) if tried else {},
            reasons=against,
            cautions=limits.cautions(
                loaded.facts,
                traits,
                self._seen,
                window=self._analyser.window,
                by_band=self._analyser.by_band,
                formats=self._formats,
            ),
            clarity=clarity,
            ratios=self.likelihood_ratios,
        )
        if decided.generator in self._from_few:
            note = limits.from_few_sources_caution(decided.generator)
            decided = replace(decided, cautions=(*decided.cautions, note))
        return decided

    def _reencoded(self, pixels: Pixels) -> dict[str, Rates]:
        """Rates after each small re-encoding of the part that is analysed, by its name."""

        def rates_of(changed: Pixels, format: str, quality: int | None) -> Rates | None:
            return self.rates(*self.measure_pixels(changed, quality, format))

        # The same part whether the image came as a file, of which no more is held, or as an array.
        top, left, height, width = self.analysed_part(*pixels.shape[:2])
        part = pixels[top : top + height, left : left + width]
        return after_reencodings(part, self._analyser.region, rates_of)

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
        return self._analyser.maps(self._analyse(loaded))


def _asked(loaded: LoadedImage) -> tuple[LoadedImage, origins.Origin | None]:
    """Ask the file for its origin, where its bytes were kept; they are let go of after that."""
    if loaded.encoded is None:
        return loaded, None
    said = origins.read_origin(loaded.encoded)
    return replace(loaded, encoded=None), said

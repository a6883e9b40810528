"""What a detector answers: scores, verdict, maps; as plain values for JSON, and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from masksim.calibration import Rates
from masksim.image import ImageFacts
from masksim.provenance import origin as origins
from masksim.provenance.watermark import WatermarkMatch
from masksim.verdict import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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


def ranked_scores(
    generators: Sequence[str],
    similarity: NDArray[np.float64],
    probability: NDArray[np.float64],
    rates: Rates | None,
    posterior: NDArray[np.float64] | None,
) -> tuple[GeneratorScore, ...]:
    """Give what each head says, the most telling first.

    Parameters
    ----------
    generators
        G names.
    similarity, probability, posterior
        (G,), see `GeneratorScore`.
    rates
        None if the detector is not calibrated.
    """
    scores = [
        GeneratorScore(
            generator,
            float(similarity[g]),
            float(probability[g]),
            None if rates is None else float(rates.own[g]),
            0 if rates is None else int(rates.own_photos[g]),
            None if posterior is None else float(posterior[g]),
        )
        for g, generator in enumerate(generators)
    ]

    def order(score: GeneratorScore) -> tuple[float, float]:
        rate = score.false_positive_rate
        return 1.0 if rate is None else rate, -score.similarity

    return tuple(sorted(scores, key=order))


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
        found = self.verdict
        return origins.beside(found.level, found.headline, found.generator, self.origin)

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
        from masksim.show.card import to_html

        return to_html(self)

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
        from masksim.show.figures import rates_figure

        return rates_figure(self)


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
        """Show the picture of `masksim.show.maps.maps_png` in notebooks."""
        from masksim.show.maps import maps_png

        return maps_png(self)


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

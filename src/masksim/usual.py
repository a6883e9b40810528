"""What photos usually score, given what an image shows: its size, noise and compression.

How often photos resemble generators depends on their size and noise. So what is ranked is how far a
score is from the usual one of photos like the image, in units of how far such photos usually exceed
it; then every photo of a stratum can be compared with every image in it. That is locally weighted
conformal prediction (Lei et al., JASA 113, 2018), with linear quantile regressions (Koenker and
Bassett, Econometrica 46, 1978). The lines are fitted to the photos that are ranked: of thousands it
changes next to nothing, of hundreds rates would be too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.arrays import Array, array_namespace
from masksim.errors import ModelError
from masksim.traits import BANDS, TRAITS, Trait, index_of_band

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDES = (512.0, 1024.0)
"""Shorter sides, pixels, from which a photo counts as middle-sized and as large."""

TERMS = 1 + (len(BANDS) - 1) + len(SIDES) + 1
"""Number of terms of the regressions, see `terms`."""

USUAL_ARRAYS = ("usual_median", "usual_high", "usual_energy")
"""Names of the fields in `masksim.checkpoint.DetectorFile.calibration`."""

_SHOWN: tuple[Trait, ...] = ("band", "side", "energy")
_LEAST = 0.1  # of the median spread: what lines that come close or cross are kept apart by


def terms(band: Array, side: Array, energy: Array, energies: NDArray[Any]) -> Array:
    """Write what images show as the terms of a linear regression.

    Parameters
    ----------
    band, side, energy
        (n,) of floating point, see `masksim.traits`. A side that is not known (NaN) counts as
        small, a band as that of files without visible compression, noise as middling.
    energies
        Lowest and highest energy; others count as these.

    Returns
    -------
    array
        (n, 8): 1; 1 for each band but the first; 1 from each of `SIDES` on; energy.
    """
    xp = array_namespace(energy)
    low, high = (float(limit) for limit in energies)
    number = index_of_band(band, len(BANDS))
    # NaN equals nothing, itself included.
    known = xp.where(energy == energy, energy, (low + high) / 2)
    is_true = [
        *(number == b for b in range(1, len(BANDS))),
        *(side >= cut for cut in SIDES),
    ]
    return xp.stack(
        [
            xp.full_like(energy, 1.0),
            *(xp.astype(each, xp.float64) for each in is_true),
            xp.clip(known, low, high),
        ],
        axis=-1,
    )


def terms_of(traits: NDArray[Any], energies: NDArray[Any]) -> NDArray[np.float64]:
    """Give the `terms` (n, 8) of a table of traits (n, T)."""
    values = np.asarray(traits, np.float64)
    band, side, energy = (values[:, TRAITS.index(name)] for name in _SHOWN)
    found: NDArray[np.float64] = terms(band, side, energy, energies)
    return found


@dataclass(frozen=True, eq=False)
class UsualScores:
    """Usual scores of photos, of K kinds of scores.

    Attributes
    ----------
    median, high
        float64 (K, 8): coefficients of the median and of the 95th percentile, see `terms`.
    energy
        float64 (2,): lowest and highest energy that they are told from.

    Raises
    ------
    ModelError
        The arrays do not fit each other, or the 95th percentile does not lie above the median.
    """

    median: NDArray[np.float64]
    high: NDArray[np.float64]
    energy: NDArray[np.float64]

    def __post_init__(self) -> None:
        shapes = self.median.shape, self.high.shape, self.energy.shape
        if shapes != ((len(self.median), TERMS), (len(self.median), TERMS), (2,)):
            raise ModelError(f"usual scores of shapes {shapes}", code="model_invalid")
        if not all(np.isfinite(each).all() for each in (self.median, self.high, self.energy)):
            raise ModelError("usual scores are not finite", code="model_invalid")
        if self.energy[0] > self.energy[1] or not (self.least > 0).all():
            raise ModelError("usual scores do not spread", code="model_invalid")

    @property
    def flat(self) -> bool:
        """Whether they are the same for all photos, whatever these show."""
        return not (self.median[:, 1:].any() or self.high[:, 1:].any())

    @cached_property  # asked with every image
    def least(self) -> NDArray[np.float64]:
        """Smallest spread that is divided by, (K,): a tenth of its median over kinds of photos."""
        corners = np.array(list(product(range(len(BANDS)), (0.0, *SIDES), self.energy)))
        band, side, energy = corners.T
        spread = terms(band, side, energy, self.energy) @ (self.high - self.median).T
        found: NDArray[np.float64] = _LEAST * np.median(spread, axis=0)
        return found

    def relative(self, scores: NDArray[Any], traits: NDArray[Any]) -> NDArray[np.float64]:
        """Put scores in relation to what photos like the image usually have.

        Parameters
        ----------
        scores
            ``(n, K)``; NaN stays.
        traits
            ``(n, T)``.

        Returns
        -------
        ndarray
            float64 (n, K): 0 at the median of such photos, 1 at their 95th percentile.
        """
        return self.relative_to(terms_of(traits, self.energy), scores)

    def relative_to(self, shown: Array, scores: Array) -> Array:
        """As `relative`, from the `terms` (n, 8)."""
        xp = array_namespace(shown)
        median = shown @ self.median.T
        spread = xp.maximum(shown @ self.high.T - median, self.least)
        return (scores - median) / spread

    def only(self, kinds: NDArray[np.bool_] | slice) -> UsualScores:
        """Leave the other kinds of scores out, a mask (K,) or a slice."""
        return UsualScores(self.median[kinds], self.high[kinds], self.energy)

    def and_also(self, more: UsualScores) -> UsualScores:
        """Add further kinds of scores behind these, told from the same energies."""
        if not np.array_equal(self.energy, more.energy):
            raise ModelError("usual scores of different photos", code="model_invalid")
        return UsualScores(
            np.concatenate([self.median, more.median]),
            np.concatenate([self.high, more.high]),
            self.energy,
        )

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]], kinds: int) -> UsualScores | None:
        """Read them from a calibration; None where it has none.

        Raises
        ------
        ModelError
            They are incomplete, or not of so many kinds.
        """
        found = [np.asarray(arrays[name], np.float64) for name in USUAL_ARRAYS if name in arrays]
        if not found:
            return None
        if len(found) != len(USUAL_ARRAYS) or found[0].shape[:1] != (kinds,):
            raise ModelError(
                f"the calibration needs {', '.join(USUAL_ARRAYS)} of {kinds} scores",
                code="model_invalid",
            )
        return cls(*found)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Give the arrays that `read` reads."""
        values = (self.median, self.high, self.energy)
        return {
            name: array.astype(np.float32) for name, array in zip(USUAL_ARRAYS, values, strict=True)
        }

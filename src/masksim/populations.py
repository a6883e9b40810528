"""Whose images a detector's rates rest on, read from its file: real photos, generators' own images.

A detector is calibrated on the photos of its training (`BUILT_IN`); `masksim calibrate` adds
populations of one's own. What is rare among some photos only is not evidence: the largest rate
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.calibration import Calibration, Joint, Rates, scored_for_all
from masksim.checkpoint import (
    AS_FOUND,
    COPY,
    OWN_RANKED_ARRAY,
    RANKED_ARRAY,
    DetectorFile,
    population_arrays,
)
from masksim.errors import ModelError, UsageError
from masksim.intervals import design_effect
from masksim.likelihood import LikelihoodRatios
from masksim.strata import Strata
from masksim.traits import TRAITS, with_all_traits
from masksim.usual import USUAL_ARRAYS, UsualScores
from masksim.verdict import NONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUILT_IN = "built-in"
"""Name of the photos that a detector was calibrated on when it was trained."""

JOINT_ARRAYS = ("joint_weights", "joint_offsets")
OWN_ARRAYS = ("own_similarities", "own_generators", "own_traits")

FEW_OWN = 10
"""With fewer images of a generator it is not known what they usually show."""


class Populations:
    """Several calibrations, each of its own photos: the largest joint rate counts.

    Verdicts and measurements both rank here.

    Parameters
    ----------
    calibrations
        At least one, by the name of its population.

    Raises
    ------
    UsageError
        None was given.
    """

    def __init__(self, calibrations: Mapping[str, Calibration]) -> None:
        if not calibrations:
            raise UsageError("no photos to rank among: the detector is not calibrated")
        self.calibrations = dict(calibrations)

    def only(self, generators: NDArray[np.bool_]) -> Populations:
        """Return the calibrations of some of the generators, a mask (G,)."""
        return Populations({name: c.only(generators) for name, c in self.calibrations.items()})

    def rates(self, scores: NDArray[Any], traits: NDArray[Any] | None = None) -> Rates:
        """Rank one image, see `Calibration.rates`; of several populations the rates name theirs."""
        several = len(self.calibrations) > 1
        found = [
            replace(c.rates(scores, traits), population=name if several else "")
            for name, c in self.calibrations.items()
        ]
        return max(found, key=lambda rates: rates.joint)

    def all_rates(
        self, scores: NDArray[Any], traits: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rank many images, see `Calibration.all_rates`."""
        found = [c.all_rates(scores, traits) for c in self.calibrations.values()]
        own, joint = (np.stack(arrays) for arrays in zip(*found, strict=True))
        largest = joint.argmax(axis=0)
        at = np.arange(joint.shape[1])
        return own[largest, at], joint[largest, at]


# --- from a detector file ----------------------------------------------------------------------


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
    names = [BUILT_IN, *_added_populations(file)]
    if len(set(names)) != len(names):
        raise ModelError(f"two calibrations have one name: {names}")
    known = {RANKED_ARRAY, OWN_RANKED_ARRAY, *OWN_ARRAYS, *JOINT_ARRAYS, *USUAL_ARRAYS}
    known.update(*(population_arrays(k) for k in range(len(names))))
    if unknown := sorted(set(arrays) - known):
        raise ModelError(f"unknown calibration: {unknown}")
    for array in arrays:
        if array.endswith("_traits") and np.isinf(arrays[array]).any():
            raise ModelError(f"{array} of the calibration are not finite")
    joint = joint_in(arrays)
    heads = len(file.generators)
    usual = UsualScores.read(arrays, heads if joint is None else heads + 1)
    if usual is not None and joint is not None:
        joint = replace(joint, usual=usual.only(slice(heads, None)))
    strata = Strata.from_dict(file.config["strata"]) if "strata" in file.config else None
    found = {}
    for k, name in enumerate(names):
        similarities, traits, sources = (arrays.get(array) for array in population_arrays(k))
        if similarities is None:
            # A detector that came without photos may be calibrated on one's own alone.
            if k == 0 and len(names) > 1 and not set(arrays) & set(population_arrays(0)):
                continue
            raise ModelError(f"unknown calibration: {sorted(arrays)}")
        _check_similarities(similarities, heads)
        traits = None if traits is None else with_all_traits(traits)
        seen = None
        copies = np.full(len(similarities), k == 0 and photos_in_copies(file) is not None)
        if k == 0 and RANKED_ARRAY in arrays:
            views = _ranked(arrays[RANKED_ARRAY], similarities)
            ranked = views > 0
            if traits is not None:
                of = np.arange(len(traits)) if sources is None else sources
                seen = np.asarray(traits, np.float64), of
            similarities, copies = similarities[ranked], views[ranked] == COPY
            traits, sources = (
                None if array is None else array[ranked] for array in (traits, sources)
            )
        found[name] = Calibration(
            similarities,
            traits,
            sources,
            strata,
            joint,
            copies=copies,
            seen=seen,
            usual=None if usual is None else usual.only(slice(heads)),
        )
    return found


def photos_in_copies(file: DetectorFile) -> int | None:
    """Count the different photos of the training; None where each was scored in one view."""
    made = file.provenance.get("calibration")
    if not isinstance(made, Mapping):
        return None
    photos, views = made.get("photos"), made.get("views")
    several = isinstance(photos, int) and isinstance(views, int) and photos < views
    return photos if several else None


def _added_populations(file: DetectorFile) -> list[str]:
    populations = file.config.get("populations", [])
    if not isinstance(populations, list):
        raise ModelError(f"the populations of a calibration are a list, got {populations!r:.100}")
    for population in populations:
        if not isinstance(population, Mapping) or not isinstance(population.get("name"), str):
            raise ModelError(f"invalid description of a calibration: {population}")
    return [population["name"] for population in populations]


def _ranked(ranked: NDArray[Any], similarities: NDArray[Any]) -> NDArray[np.uint8]:
    """Tell which photos images are ranked among, and as what: (n,)."""
    found = _checked(ranked, len(similarities), RANKED_ARRAY)
    if not len(scored_for_all(similarities[found > 0])):
        raise ModelError("the calibration ranks among no photo with a score for every head")
    return found


def _checked(ranked: NDArray[Any], count: int, name: str) -> NDArray[np.uint8]:
    if ranked.shape != (count,):
        raise ModelError(f"{name} of shape {ranked.shape} for {count} images of the calibration")
    if not np.isin(ranked, (0, AS_FOUND, COPY)).all():
        raise ModelError(f"{name} has values other than 0, {AS_FOUND} and {COPY}")
    return ranked.astype(np.uint8)


def _check_similarities(similarities: NDArray[Any], heads: int) -> None:
    if similarities.ndim != 2 or similarities.shape[1] != heads:
        raise ModelError(f"a calibration of shape {similarities.shape} for {heads} heads")
    if np.isinf(similarities).any():
        raise ModelError("the calibration has scores that are not finite")
    if not len(scored_for_all(similarities)):
        raise ModelError("the calibration has no photo with a score for every head")


def joint_in(arrays: Mapping[str, NDArray[Any]]) -> Joint | None:
    """Read the learned joint number of a calibration, as it is; None where it has none."""
    found = [arrays[name] for name in JOINT_ARRAYS if name in arrays]
    if not found:
        return None
    if len(found) != len(JOINT_ARRAYS):
        raise ModelError(f"of {list(JOINT_ARRAYS)} the calibration has only one")
    weights, offsets = (array.astype(np.float64) for array in found)
    if weights.ndim == 2:  # up to masksim-7: one kind of generated images
        weights, offsets = weights[:, None], offsets[..., None]
    return Joint(weights, offsets)


@dataclass(frozen=True, eq=False)
class OwnImages:
    """The generators' own images, scored by heads that had not seen them.

    Attributes
    ----------
    similarities
        (k, G); NaN where a head has no score of an image.
    generators
        int (k,): whose image each is.
    traits
        float64 (k, T), or None if the file has none.
    as_found
        bool (k,): those that are no copies; None where the file does not tell.
    """

    similarities: NDArray[Any]
    generators: NDArray[Any]
    traits: NDArray[Any] | None
    as_found: NDArray[np.bool_] | None = None

    @classmethod
    def read(cls, file: DetectorFile) -> OwnImages | None:
        """Read them from a detector file; None where it has none.

        Raises
        ------
        ModelError
            The arrays do not fit each other or the heads.
        """
        arrays = file.calibration or {}
        needed = set(OWN_ARRAYS[:2])
        if not needed & set(arrays):
            return None
        if not needed <= set(arrays):
            raise ModelError(f"of {sorted(needed)} the calibration has only one")
        scores, of, traits = (arrays.get(name) for name in OWN_ARRAYS)
        if scores is None or of is None or scores.shape[1:] != (len(file.generators),):
            raise ModelError("own images are scored for another number of heads")
        traits = None if traits is None else with_all_traits(traits)
        if traits is not None and traits.shape != (len(scores), len(TRAITS)):
            raise ModelError(f"traits of own images have the shape {traits.shape}")
        ranked = arrays.get(OWN_RANKED_ARRAY)
        if ranked is not None:
            ranked = _checked(ranked, len(scores), OWN_RANKED_ARRAY) == AS_FOUND
        return cls(scores, of, traits, ranked)

    def usual(self) -> NDArray[np.float64]:
        """Range of each trait in which 90 % of each generator's images lie: (2, G, T).

        An empty range, from inf to -inf, where there are too few (`FEW_OWN`).
        """
        count = self.similarities.shape[1]
        out = np.empty((2, count, len(TRAITS)))
        out[0], out[1] = np.inf, -np.inf
        if self.traits is not None:
            for g in range(count):
                mine = self.traits[self.generators == g]
                if len(mine) >= FEW_OWN:
                    out[:, g] = np.quantile(mine, (0.05, 0.95), axis=0)
        return out


def likelihood_ratios(own: OwnImages, photos: Calibration) -> LikelihoodRatios:
    """Fit likelihood ratios of joint rates to the generators' own images and to photos.

    Of both only files as found count, where the file tells which these are.

    Raises
    ------
    UsageError
        Too few images have a score of every head.
    """
    complete = ~np.isnan(own.similarities).any(axis=1)
    if own.as_found is not None:
        complete &= own.as_found
    scores, of = own.similarities[complete].astype(np.float64), own.generators[complete]
    made = photos.all_rates(scores, None if own.traits is None else own.traits[complete])[1]
    # As a photo of a new source would be ranked; among themselves none would be rare enough.
    real = photos.left_out()
    kept = ~np.isnan(real)
    if own.as_found is not None:  # like is compared with like
        kept &= ~photos.copies
    if not len(made) or not kept.any():
        raise UsageError("too few images were scored by all heads for likelihood ratios")
    counts = np.bincount(of)
    effect = design_effect(real[kept] <= NONE, photos.sources[kept])
    return LikelihoodRatios(
        made, 1.0 / counts[of], real[kept], kept.sum() / effect, population=BUILT_IN
    )

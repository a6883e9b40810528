"""A detector file with one generator more, or fewer: its heads, its calibration, its joint number.

All other heads and scores are copied, not computed, so that they do not change by a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.calibration import Joint
from masksim.checkpoint import (
    AS_FOUND,
    OWN_RANKED_ARRAY,
    RANKED_ARRAY,
    Branch,
    DetectorFile,
    population_arrays,
)
from masksim.data.manifest import REAL
from masksim.errors import UsageError
from masksim.populations import joint_in
from masksim.training.bands import calibration_arrays, fit_joint
from masksim.training.stored_features import ReferencePhotos, pack, unpack
from masksim.training.usual_scores import fit_usual_scores
from masksim.traits import TRAITS, bands_of
from masksim.usual import UsualScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_JOINT = 20
"""With fewer photos or images in a band a new kind of images is learned from all bands."""

ENROLLED_STRENGTH = 1.0
"""Inverse regularisation of a new kind of images: of so few, a training's would leave nothing."""

_OF_GENERATORS = ("masks", "references", "a", "b", "share")


def shared_branch(file: DetectorFile) -> tuple[int, Branch]:
    """Find the branch whose heads share the residual bank, and its place.

    Raises
    ------
    UsageError
        There is none, or more than one.
    """
    shared = [
        (i, branch)
        for i, branch in enumerate(file.branches)
        if branch.head != "original" and branch.residual.kind == "bank"
    ]
    if len(shared) != 1:
        raise UsageError(
            "a generator can be enrolled in a detector with one shared residual; this one has "
            f"{len(shared)} (an imported detector has none: train one with masksim train)"
        )
    return shared[0]


def _generator_axis(branch: Branch) -> int:
    """Tell which axis of masks, references, a and b is that of the generators."""
    return 1 if branch.head == "bands" else 0


def with_branch(file: DetectorFile, at: int, branch: Branch) -> tuple[Branch, ...]:
    """Give the branches of a file, one of them replaced."""
    return (*file.branches[:at], branch, *file.branches[at + 1 :])


def with_head(branch: Branch, name: str, tensors: Mapping[str, NDArray[Any]]) -> Branch:
    """Append a head to a branch, the same in all bands; what was there is copied, not computed."""
    axis = _generator_axis(branch)

    def appended(key: str) -> NDArray[Any]:
        there = branch.tensors[key]
        # It has no heads in another branch: its similarity here is the whole.
        new = tensors[key].astype(there.dtype) if key in tensors else np.ones(1, there.dtype)
        if axis:
            new = np.broadcast_to(new, (len(there), *new.shape))
        return np.concatenate([there, new], axis=axis)

    return replace(
        branch,
        generators=(*branch.generators, name),
        tensors={
            **branch.tensors,
            **{key: appended(key) for key in _OF_GENERATORS if key in branch.tensors},
        },
    )


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos that a new generator is set against.

    Attributes
    ----------
    all
        First those that came with the detector, if it has any, then those given now.
    scored
        float32 (m, G): what earlier heads gave to those given now; None if they were not scored.
    traits
        float32 (m, T): of those given now.
    first
        bool (m,): the first view of each of those given now.
    """

    all: ReferencePhotos
    scored: NDArray[np.float32] | None
    traits: NDArray[np.float32]
    first: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Column:
    """Scores by a new head, and of its generator's images.

    Attributes
    ----------
    photos
        (n,): by the new head, of `Photos.all`.
    others
        Rows of ``own_similarities`` and their scores by the new head; None if there are none.
    own
        (k, G + 1): of the new generator's images, by all heads of its branch.
    own_traits
        float32 (k, T).
    own_first
        bool (k,): the first view of each of them.
    """

    photos: NDArray[np.float64]
    others: tuple[NDArray[np.int64], NDArray[np.float64]] | None
    own: NDArray[np.float64]
    own_traits: NDArray[np.float32]
    own_first: NDArray[np.bool_]


def with_column(
    file: DetectorFile, at: int, photos: Photos, column: Column
) -> dict[str, NDArray[Any]]:
    """Add a column to the calibration; NaN where an image was not scored by a head.

    `at` is the number of the branch. The joint number is not among the arrays.
    """
    before = file.calibration or {}
    # The new head stands behind the others of its branch, before those of later branches.
    place = sum(len(branch.generators) for branch in file.branches[: at + 1])
    return _photo_arrays(file, before, place, photos, column) | _own_arrays(
        file, before, place, column
    )


def _earlier(before: Mapping[str, NDArray[Any]], key: str, width: int) -> NDArray[Any]:
    """Give an array of the calibration, or one without rows."""
    return before.get(key, np.zeros((0, width), np.float32))


def _photo_arrays(
    file: DetectorFile,
    before: Mapping[str, NDArray[Any]],
    place: int,
    photos: Photos,
    column: Column,
) -> dict[str, NDArray[Any]]:
    count = len(file.generators)
    old = _earlier(before, "real_similarities", count)
    listed = photos.all.rows >= 0
    new = np.full(len(old), np.nan)
    new[photos.all.rows[listed]] = column.photos[listed]
    more = np.full((int((~listed).sum()), count), np.nan)
    if photos.scored is not None:
        more[:, place - photos.scored.shape[1] : place] = photos.scored
    added = np.concatenate([new, column.photos[~listed]])
    table = np.insert(np.concatenate([old, more]), place, added, axis=1)
    found: dict[str, NDArray[Any]] = {"real_similarities": table.astype(np.float32)}
    if not len(old) or "real_traits" in before:
        earlier = _earlier(before, "real_traits", len(TRAITS))
        found["real_traits"] = np.concatenate([earlier, photos.traits]).astype(np.float32)
    if not len(old) or "real_sources" in before:
        numbers = np.asarray(before.get("real_sources", np.zeros(0)), np.int64)
        after = int(numbers.max(initial=-1)) + 1
        names = np.unique(photos.all.sources[~listed], return_inverse=True)[1]
        found["real_sources"] = np.concatenate([numbers, after + names]).astype(np.int32)
    if RANKED_ARRAY in before:
        found[RANKED_ARRAY] = np.concatenate(
            [before[RANKED_ARRAY], photos.first * AS_FOUND]
        ).astype(np.uint8)
    return found


def _own_arrays(
    file: DetectorFile, before: Mapping[str, NDArray[Any]], place: int, column: Column
) -> dict[str, NDArray[Any]]:
    count = len(file.generators)
    scores = _earlier(before, "own_similarities", count)
    of = np.asarray(before.get("own_generators", np.zeros(0, np.int64)), np.int64)
    added = np.full(len(scores), np.nan)
    if column.others is not None:
        added[column.others[0]] = column.others[1]
    own = column.own
    rows = np.full((len(own), count + 1), np.nan)
    rows[:, place + 1 - own.shape[1] : place + 1] = own
    table = np.concatenate([np.insert(scores, place, added, axis=1), rows])
    numbers = np.concatenate([of + (of >= place), np.full(len(own), place)])
    found = {
        "own_similarities": table.astype(np.float32),
        "own_generators": numbers.astype(np.int32),
    }
    if not len(of) or "own_traits" in before:
        shown = _earlier(before, "own_traits", len(TRAITS))
        found["own_traits"] = np.concatenate([shown, column.own_traits]).astype(np.float32)
    if OWN_RANKED_ARRAY in before:
        both = [before[OWN_RANKED_ARRAY], column.own_first * AS_FOUND]
        found[OWN_RANKED_ARRAY] = np.concatenate(both).astype(np.uint8)
    return found


def joint_of(
    file: DetectorFile,
    branches: Sequence[Branch],
    calibration: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Give the number for "some generator" of other heads than a file has, if it has one.

    The kinds of generated images that it had stay as they are; of a generator that is gone only the
    column goes. A new generator becomes one more kind, learned from its images and the photos that
    are scored by all heads, and as likely beforehand as each other. In bands with too few of them
    it is that of all bands. Where these are too few as well, its similarity counts in the other
    kinds as much as those of the other generators do on average, in deviations of photos.

    Parameters
    ----------
    file
        With the heads of before.
    branches, calibration
        Of the heads of now; its ``joint_weights`` and ``joint_offsets`` do not count.
    """
    old = joint_in(file.calibration or {})
    if old is None:
        return {}
    names = list(dict.fromkeys(name for branch in branches for name in branch.generators))
    places = [file.generators.index(name) if name in file.generators else -1 for name in names]
    there = np.array(places) >= 0
    weights = np.zeros((*old.offsets.shape, len(names)))
    weights[..., there] = old.weights[..., [place for place in places if place >= 0]]
    joint = Joint(weights, old.offsets)
    real, own = (calibration[f"{kind}_similarities"].astype(np.float64) for kind in ("real", "own"))
    traits = np.concatenate([calibration["real_traits"], calibration["own_traits"]])
    scores, of = np.concatenate([real, own]), np.full(len(real) + len(own), -1)
    of[len(real) :] = calibration["own_generators"]
    complete = ~np.isnan(scores).any(axis=1)
    for new in np.flatnonzero(~there).tolist():
        at = complete & ((of == -1) | (of == new))
        if min((of[at] == -1).sum(), (of[at] == new).sum()) < FEWEST_JOINT:
            joint = _counted_in(joint, new, real)
            continue
        band = bands_of(traits[at], len(joint.offsets))
        kind = _new_kind(scores[at], of[at] == new, band, len(joint.offsets))
        weights = np.concatenate([joint.weights, kind.weights], axis=1)
        offsets = np.concatenate([joint.offsets, kind.offsets - np.log(len(names))], axis=1)
        joint = Joint(weights, offsets)
    return calibration_arrays(joint, None)


def _new_kind(
    scores: NDArray[np.float64], made: NDArray[np.bool_], band: NDArray[np.int64], bands: int
) -> Joint:
    """Learn one kind of images (n, G) against photos, in each band or in all together."""
    names = np.where(made, "new", REAL)
    whole = fit_joint(scores, names, np.zeros_like(band), 1, ENROLLED_STRENGTH)
    numbers = [whole] * bands
    for b in range(bands):
        own = band == b
        if min((own & made).sum(), (own & ~made).sum()) >= FEWEST_JOINT:
            numbers[b] = fit_joint(
                scores[own], names[own], np.zeros(own.sum(), int), 1, ENROLLED_STRENGTH
            )
    return Joint(
        np.concatenate([number.weights for number in numbers]),
        np.concatenate([number.offsets for number in numbers]),
    )


def _counted_in(joint: Joint, new: int, real: NDArray[np.float64]) -> Joint:
    """Let a generator's similarity count in all kinds, as those of the others do on average."""
    usual, deviations = np.nanmean(real, axis=0), np.nanstd(real, axis=0) + 1e-9
    others = np.arange(real.shape[1]) != new
    # How much a score counts at what photos have on average, where the number stays the same.
    log_odds = joint.weights[..., others] @ usual[others] + joint.offsets
    odds = np.exp(log_odds - log_odds.max(axis=1, keepdims=True))
    slopes = np.einsum("bk,bkg->bg", odds / odds.sum(axis=1, keepdims=True), joint.weights)
    average = np.abs(slopes * deviations)[:, others].mean(axis=1, keepdims=True)
    weights = joint.weights.copy()
    weights[..., new] = average / deviations[new]
    return Joint(weights, joint.offsets - weights[..., new] * usual[new])


def ranked_in(calibration: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Tell which photos of the training images are ranked among, (n,)."""
    everyone = np.ones(len(calibration["real_similarities"]))
    return np.asarray(calibration.get(RANKED_ARRAY, everyone) != 0)


def usual_of(
    file: DetectorFile,
    branches: Sequence[Branch],
    calibration: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Give the usual scores of other heads than a file has, if it has them.

    Those of heads that stay are as they were; those of a new head, and of the joint number, are
    told from the photos that are scored and that images are ranked among.

    Parameters
    ----------
    file
        With the heads of before.
    branches, calibration
        Of the heads of now, the joint number included.
    """
    joint = joint_in(calibration)
    before = UsualScores.read(
        file.calibration or {}, len(file.generators) + (0 if joint is None else 1)
    )
    if before is None:
        return {}
    names = list(dict.fromkeys(name for branch in branches for name in branch.generators))
    among = ranked_in(calibration)
    scores = calibration["real_similarities"][among].astype(np.float64)
    traits = calibration["real_traits"][among]
    if joint is not None:
        scores = np.column_stack([scores, joint(scores, traits)])
    kinds = [*names] if joint is None else [*names, ""]
    new = [k for k, name in enumerate(kinds) if name not in file.generators]
    lines = {name: (before.median[g], before.high[g]) for g, name in enumerate(file.generators)}
    if new:
        fitted = fit_usual_scores(scores[:, new], traits, before.energy)
        lines |= {kinds[k]: (fitted.median[i], fitted.high[i]) for i, k in enumerate(new)}
    median, high = (np.stack([lines[name][i] for name in kinds]) for i in range(2))
    return dict(UsualScores(median, high, before.energy).to_arrays())


def forget(file: DetectorFile, name: str) -> DetectorFile:
    """Take a generator out of a detector, of the recipes of `enroll`: its inverse.

    Parameters
    ----------
    file
        The detector; it is not changed.
    name
        Of the generator.

    Returns
    -------
    DetectorFile
        To be saved; all other heads are bit-equal. Photos that were scored for nothing else stay
        in the calibration, as rows without a score. A learned number for "some generator" is
        learned anew from what is scored for all that are left.

    Raises
    ------
    UsageError
        There is no such generator, no other one, or the detector is of another recipe.
    """
    branch = shared_branch(file)[1]
    if name not in branch.generators or len(branch.generators) < 2:
        raise UsageError(
            f"cannot take {name!r} out of a detector of {', '.join(branch.generators)}"
        )
    branches = tuple(_without_head(other, name) for other in file.branches)
    calibration, photos = None, file.photos
    if file.calibration is not None:
        column = file.generators.index(name)
        of = file.calibration.get("own_generators")
        if of is not None and file.photos is not None:
            kit, others = unpack(file.photos())
            photos = partial(pack, kit, None if others is None else _without(others, of != column))
        calibration = _without_column(file, column)
        calibration |= joint_of(file, branches, calibration)
        calibration |= usual_of(file, branches, calibration)
    return replace(file, branches=branches, calibration=calibration, photos=photos, sha256="")


def _without_head(branch: Branch, name: str) -> Branch:
    """Take a generator out of a branch, if it has a head there."""
    if name not in branch.generators:
        return branch
    keep = [g for g, other in enumerate(branch.generators) if other != name]
    tensors = {
        key: np.take(values, keep, _generator_axis(branch)) if key in _OF_GENERATORS else values
        for key, values in branch.tensors.items()
    }
    names = tuple(branch.generators[g] for g in keep)
    return replace(branch, generators=names, tensors=tensors)


def _without_column(file: DetectorFile, column: int) -> dict[str, NDArray[Any]]:
    """Take a generator's scores, and those of its images, out of the calibration."""
    found = dict(file.calibration or {})
    populations = range(1 + len(file.config.get("populations", [])))
    for scores in (population_arrays(k)[0] for k in populations):
        found[scores] = np.delete(found[scores], column, axis=1)
    if "own_generators" in found:
        of = found["own_generators"]
        found["own_similarities"] = np.delete(found["own_similarities"], column, axis=1)
        found["own_generators"] = of - (of > column)
        for key in ("own_similarities", "own_generators", "own_traits", OWN_RANKED_ARRAY):
            if key in found:
                found[key] = found[key][of != column]
    return found


def _without(images: ReferencePhotos, kept: NDArray[np.bool_]) -> ReferencePhotos:
    """Leave out the images whose row of the own similarities goes, and count the rows anew."""
    stay = kept[images.rows]
    return ReferencePhotos(
        images.features[stay], images.step, (np.cumsum(kept) - 1)[images.rows[stay]],
        images.sources[stay], images.histories[stay],
    )  # fmt: skip

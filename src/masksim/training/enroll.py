"""Enrolling: one more generator on a finished detector, from a folder of its images, in minutes.

The shared residual, its statistics and all other heads stay as they are, so that the scores of the
generators that were there before do not change by a bit. What is new is one mask, one reference and
one column of the calibration. The real photos that it is set against come with the detector as
features (`masksim.training.stored_features`); more can be given.

Where there are heads for each band of compression (`masksim.training.bands`), the features of a
view are those that its own band's heads compare. A new generator has too few images for a direction
in each band: it gets one, learned from all of them, which stands in every band. The number for
"some generator" is learned anew.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from masksim import __version__, metrics
from masksim.calibration import false_positive_rate
from masksim.checkpoint import Branch, DetectorFile, check_generator_name, population_arrays
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash, scan_folders
from masksim.data.sources import file_digest
from masksim.errors import DataError, UsageError
from masksim.errors import counted as in_words
from masksim.features import FeatureConfig
from masksim.metrics import Estimate
from masksim.model import SharedHeads, heads_by_band
from masksim.populations import JOINT_ARRAYS
from masksim.training.bands import fit_joint, view_weights
from masksim.training.dataset import (
    FeatureTable,
    ViewConfig,
    compute_features,
    history_weights,
    source_folds,
    training_weights,
)
from masksim.training.shared import (
    HeadConfig,
    fisher_coefficients,
    fit_probability,
    in_parts,
    masks_and_references,
    matched_real_weights,
    stored,
)
from masksim.training.stored_features import ReferencePhotos, pack, spread_over_sources, unpack
from masksim.traits import TRAITS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

FEW_IMAGES = 50
"""With fewer images of the generator there is a warning."""

WEAK_AUROC = 0.8
"""If the interval of the cross-validated AUROC reaches below this there is a warning."""

KEPT_IMAGES = 50
"""So many of its images are kept, as features, for generators that are enrolled later."""

FEW_SOURCES = 5
"""With fewer sources of the generator there is a warning."""

EXPLAINED = 0.05
"""A head that is already there knows an image if the image's rate for it is at most this."""

FEWEST_JOINT = 20
"""With fewer photos or images in a band the number for "some generator" is not learned anew."""

_NEUTRAL = "enrolled"


@dataclass(frozen=True)
class EnrollConfig:
    """How a generator is enrolled.

    Attributes
    ----------
    views
        Draws of processing for each image.
    smallest
        Fewest images that are accepted.
    smallest_photos
        Fewest real photos: with fewer than 100, no rate of one in a hundred can be claimed.
    folds
        Of the cross-validation that gives the calibration scores and the AUROC.
    seed
        Of all draws.
    samples
        Of the bootstrap of the AUROC.
    """

    views: int = 6
    smallest: int = 20
    smallest_photos: int = 100
    folds: int = 5
    seed: int = 0
    samples: int = 500

    def __post_init__(self) -> None:
        if min(self.views, self.smallest, self.smallest_photos, self.samples) < 1 or self.folds < 2:
            raise UsageError(f"counts must be positive and folds 2 or more: {self}")


@dataclass(frozen=True, eq=False)
class Enrollment:
    """What came out, to judge whether it is good enough.

    Attributes
    ----------
    generator
        Name.
    images, sources
        How many of the generator were used.
    photos
        Real photos it was set against and calibrated on; with heads for each band their views.
    auroc
        Cross-validated against the photos, histories matched; photos by sources left out, the
        generator's images by images (with five sources or more by sources). The interval draws
        sources where the generator has at least three, else images.
    auroc_new_sources
        The same with each source of the generator's images left out in turn: what to expect of
        images from elsewhere. None with one source.
    known
        By generator that was there before: the share of the images that its own head would have
        given a rate of at most 5 %.
    skipped
        Error code or ``duplicate`` to number of images left out.
    warnings
        Sentences: too little evidence, and why.
    """

    generator: str
    images: int
    sources: int
    photos: int
    auroc: Estimate
    auroc_new_sources: Estimate | None
    known: Mapping[str, float]
    skipped: Mapping[str, int]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the outcome as plain values for JSON."""
        return asdict(self)


def enroll(
    file: DetectorFile,
    name: str,
    images: Sequence[str | os.PathLike[str]],
    *,
    cache: str | os.PathLike[str],
    real: Sequence[str | os.PathLike[str]] = (),
    config: EnrollConfig | None = None,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[DetectorFile, Enrollment]:
    """Add a generator to a detector of the recipe ``shared`` or ``bands``.

    Parameters
    ----------
    file
        The detector; it is not changed.
    name
        Of the generator, new to the detector.
    images
        Folders of its images. Sub-folders are taken for different sources.
    cache
        Folder for features: a run that is killed goes on where it was.
    real
        Folders of further real photos. They take part in the fit and in the new generator's own
        rates; the rates of the generators that were there before stay as they are. A detector
        without reference photos needs them, and is then calibrated on them alone for the joint
        rate.
    config
        The run.
    workers
        Processes that compute features.
    progress
        Called with (stage, done, all).

    Returns
    -------
    DetectorFile
        To be saved; all earlier heads are bit-equal.
    Enrollment

    Raises
    ------
    UsageError
        The name is there already, or the detector is of another recipe.
    DataError
        ``too_few_images``, or nothing to set them against.
    """
    config = config or EnrollConfig()
    check_generator_name(name)
    at, branch = _shared_branch(file)
    if name in file.generators:
        raise UsageError(f"the detector knows a generator {name!r} already")
    training = _settings(file, branch, config)
    features = FeatureConfig.from_dict(
        {k: v for k, v in {**branch.preprocess, **branch.spectrum}.items() if k != "colour"}
    )
    heads = _Heads.of(branch)

    def compute(rows: Sequence[Row], stage: str) -> FeatureTable:
        return compute_features(
            Manifest(tuple(rows), Path(".")), training.purpose, cache,
            views_config=training.views, feature_config=features, seed=config.seed, workers=workers,
            graph=branch.onnx,
            progress=(lambda done, count: progress(stage, done, count)) if progress else None,
        )  # fmt: skip

    if file.photos is None and file.calibration is not None:
        raise UsageError(
            "the detector is calibrated on photos that it does not carry, so that a further "
            "generator cannot be ranked among them: train it with photos above 0"
        )
    rows, photo_rows, skipped = _rows(images, real)
    if len(rows) < config.smallest:
        raise DataError(
            f"{len(rows)} different images of {name}; at least {config.smallest} are needed, 50 to "
            "500 are good",
            code="too_few_images",
        )
    # Under a neutral name, so that what is computed serves whatever the generator is called.
    own = compute(rows, f"images of {name}")
    skipped.update(own.failures.values())
    n_images = len(np.unique(own.images))
    if n_images < config.smallest:
        raise DataError(
            f"only {n_images} of {len(rows)} images of {name} could be used (left out: "
            f"{in_words(skipped)}); at least {config.smallest} are needed",
            code="too_few_images",
        )
    kit, others = (None, None) if file.photos is None else unpack(file.photos())
    photos, scored, traits = _photos(kit, heads, photo_rows, compute, config.smallest_photos)
    fit = _fit(name, own, photos, heads, training, config, progress)
    similarity, tensors = fit.similarity, fit.tensors

    n = len(photos.features)
    synthetic = np.arange(len(similarity)) >= n
    pair = training.compared(fit.table, synthetic)
    used = pair > 0
    groups, _ = metrics.draw_together(synthetic, fit.table.images, fit.table.sources)

    def auroc_of(scores: NDArray[np.float64]) -> Estimate:
        return metrics.bootstrap(
            metrics.auroc, scores[used], synthetic[used], pair[used],
            groups=groups[used], samples=config.samples,
        )  # fmt: skip

    tensors["a"], tensors["b"] = (
        np.array([value], np.float32)
        for value in fit_probability(similarity[used], synthetic[used], pair[used])
    )
    counted = training.counted(own)
    own_scores = np.column_stack(
        [heads.similarities(own.features[counted], own.traits[counted]), similarity[n:][counted]]
    )
    known = None
    if others is not None:
        flat = others.features.reshape(len(others.features), -1)
        noise = np.full(len(flat), others.noise)
        known = others.rows, similarities_with_noise(flat, noise, tensors)
    outcome = Enrollment(
        name, n_images, len(np.unique(own.sources)), n, auroc_of(similarity),
        None if fit.by_source is None else auroc_of(fit.by_source),
        _known(file, branch, own_scores[:, :-1]), dict(skipped), (),
    )  # fmt: skip
    warnings = _warnings(outcome, own, photos)
    if lost := [population["name"] for population in file.config.get("populations", [])]:
        warnings.append(
            f"The calibration on photos of your own ({', '.join(lost)}) is gone: the new head has "
            "no scores of them. Calibrate again."
        )
    outcome = replace(outcome, warnings=tuple(warnings))
    branches = (
        *file.branches[:at],
        _with_head(branch, name, tensors),
        *file.branches[at + 1 :],
    )
    calibration = _calibration(
        file, at, photos, scored, similarity[:n], own_scores, known, traits,
        heads.traits(own)[counted],
    )  # fmt: skip
    made = replace(
        file,
        branches=branches,
        # Photos of one's own have no score for the new head, and no features to give them one.
        config={key: value for key, value in file.config.items() if key != "populations"},
        calibration=calibration | _joint(file, branches, calibration, training.joint_strength),
        provenance=_provenance(file, outcome, rows, config),
        photos=None
        if kit is None
        else partial(pack, kit, _kept(file, others, own, counted, heads)),
        sha256="",
    )
    return made, outcome


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
    at, branch = _shared_branch(file)
    if name not in branch.generators or len(branch.generators) < 2:
        raise UsageError(
            f"cannot take {name!r} out of a detector of {', '.join(branch.generators)}"
        )
    keep = [g for g, other in enumerate(branch.generators) if other != name]
    names = tuple(branch.generators[g] for g in keep)
    axis = _generator_axis(branch)
    heads = {
        key: np.take(values, keep, axis) if key in _OF_GENERATORS else values
        for key, values in branch.tensors.items()
    }
    branches = (
        *file.branches[:at],
        replace(branch, generators=names, tensors=heads),
        *file.branches[at + 1 :],
    )
    calibration, photos = None, file.photos
    if file.calibration is not None:
        column = file.generators.index(name)
        calibration = dict(file.calibration)
        calibration["real_similarities"] = np.delete(
            calibration["real_similarities"], column, axis=1
        )
        if "own_generators" in calibration:
            of = calibration["own_generators"]
            if file.photos is not None:
                kit, others = unpack(file.photos())
                photos = partial(
                    pack, kit, None if others is None else _without(others, of != column)
                )
            calibration["own_similarities"] = np.delete(
                calibration["own_similarities"], column, axis=1
            )[of != column]
            calibration["own_generators"] = (of - (of > column))[of != column]
            if "own_traits" in calibration:
                calibration["own_traits"] = calibration["own_traits"][of != column]
        for k in range(1, 1 + len(file.config.get("populations", []))):
            scores = population_arrays(k)[0]
            calibration[scores] = np.delete(calibration[scores], column, axis=1)
        training = file.provenance.get("training")
        known = training if isinstance(training, Mapping) else {}
        strength = float(known.get("joint_strength", _STRENGTH))
        calibration |= _joint(file, branches, calibration, strength)
    return replace(
        file,
        branches=branches,
        calibration=calibration,
        photos=photos,
        sha256="",
    )


def _without(images: ReferencePhotos, kept: NDArray[np.bool_]) -> ReferencePhotos:
    """Leave out the images whose row of the own similarities goes, and count the rows anew."""
    stay = kept[images.rows]
    return ReferencePhotos(
        images.features[stay], images.step, (np.cumsum(kept) - 1)[images.rows[stay]],
        images.sources[stay], images.histories[stay],
    )  # fmt: skip


_OF_GENERATORS = ("masks", "references", "a", "b")
_STRENGTH = 0.1


def _generator_axis(branch: Branch) -> int:
    """Tell which axis of masks, references, a and b is that of the generators."""
    return 1 if branch.head == "bands" else 0


def _shared_branch(file: DetectorFile) -> tuple[int, Branch]:
    shared = [(i, branch) for i, branch in enumerate(file.branches) if branch.head != "original"]
    if len(shared) != 1:
        raise UsageError(
            "a generator can be enrolled in a detector with one shared residual; this one has "
            f"{len(shared)} (an imported detector has none: train one with masksim train)"
        )
    return shared[0]


@dataclass(frozen=True)
class _Heads:
    """The heads that are there: one set, or one for each band of compression."""

    sets: tuple[SharedHeads, ...]

    @classmethod
    def of(cls, branch: Branch) -> _Heads:
        limit = float(branch.head_config["limit"])
        if branch.head == "bands":
            return cls(heads_by_band(branch.tensors, limit))
        return cls((SharedHeads.from_tensors(branch.tensors, limit),))

    def _each(
        self, name: str, features: NDArray[Any], traits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Apply a method to each view, of the heads of its band."""
        band = bands_of(traits, len(self.sets))
        parts = [(band == b, getattr(self.sets[b], name)) for b in np.unique(band).tolist()]
        found = [(at, in_parts(function, features[at])) for at, function in parts]
        out = np.empty((len(features), *found[0][1].shape[1:]), np.float32)
        for at, values in found:
            out[at] = values
        return out

    def compared(self, features: NDArray[Any], traits: NDArray[np.float32]) -> Matrix:
        """Give views as masks are laid over them, (n, C, R, S)."""
        return self._each("compared", features, traits)

    def similarities(self, features: NDArray[Any], traits: NDArray[np.float32]) -> Matrix:
        """Score views, (n, G)."""
        return self._each("similarities", features, traits)

    def traits(self, table: FeatureTable) -> NDArray[np.float32]:
        """Complete the traits of a table by what needs heads, (n, T)."""
        traits = table.traits.copy()
        band, column = bands_of(traits, len(self.sets)), TRAITS.index("distance")
        for i, features in enumerate(table.features):
            traits[i, column] = self.sets[band[i]].distance(features.astype(np.float32))
        return traits


@dataclass(frozen=True)
class _Training:
    """How the detector was trained: photos and images must be treated alike."""

    views: ViewConfig
    heads: HeadConfig
    by_band: bool
    lossless: float
    joint_strength: float

    @property
    def purpose(self) -> Literal["enroll", "met"]:
        return "met" if self.by_band else "enroll"

    def weights(self, table: FeatureTable, classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weights of views in the fit: (n,)."""
        if self.by_band:
            return view_weights(classes, table.sources, table.histories, self.lossless)
        return training_weights(table, self.views.shares)

    def compared(self, table: FeatureTable, synthetic: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Weights with which images and photos are compared, the same histories in both: (n,).

        Raises
        ------
        DataError
            No photo has a history that an image has.
        """
        if not self.by_band:
            return history_weights(table.histories, [synthetic, ~synthetic], self.views.shares)
        weights = self.weights(table, synthetic.astype(np.int64))
        common = np.isin(table.histories, table.histories[~synthetic]) | ~synthetic
        weights = np.where(common, weights, 0.0)
        if not weights[synthetic].sum() > 0:
            raise DataError("the classes have no history in common", code="manifest_invalid")
        against = matched_real_weights(synthetic.astype(np.int64), weights, table.histories)[:, 0]
        return np.where(synthetic, weights / weights[synthetic].sum(), against / against.sum())

    def counted(self, own: FeatureTable) -> NDArray[np.bool_]:
        """Tell which views of the images stand in the calibration, (n,).

        One an image; with heads for each band all, since the first one lies in one band.
        """
        if self.by_band:
            return np.ones(len(own.images), dtype=np.bool_)
        return np.concatenate([[True], own.images[1:] != own.images[:-1]])


def _settings(file: DetectorFile, branch: Branch, config: EnrollConfig) -> _Training:
    training = file.provenance.get("training")
    if not isinstance(training, Mapping):
        raise UsageError("the detector does not say how its training processed images")
    by_band = branch.head == "bands"
    # Of a photo one view, so that photos count alike and can be ranked among; with heads for each
    # band as many as of an image: one would lie in one band.
    counts = {"*": config.views, REAL: config.views if by_band else 1}
    return _Training(
        ViewConfig.from_dict({**training["views"], "views": counts}),
        HeadConfig(**training["heads"]),
        by_band,
        float(training.get("lossless", 1.0)),
        float(training.get("joint_strength", _STRENGTH)),
    )


def _rows(
    images: Sequence[str | os.PathLike[str]], real: Sequence[str | os.PathLike[str]]
) -> tuple[list[Row], list[Row], Counter[str]]:
    """List synthetic images and photos of folders, each content once, and what is left out."""
    manifest, _ = scan_folders(
        real, [(_NEUTRAL, folder) for folder in images], shares={"train": 1.0}
    )
    found: dict[str, Row] = {}
    skipped: Counter[str] = Counter()
    for row in manifest.rows:
        digest = file_digest(manifest.file(row))
        if digest not in found:
            found[digest] = replace(row, sha256=digest)
        elif found[digest].is_real != row.is_real:
            raise DataError(
                f"{row.path} and {found[digest].path} are the same image, given as real and as "
                "synthetic",
                code="manifest_invalid",
            )
        elif not row.is_real:
            skipped["duplicate"] += 1
    rows = list(found.values())
    return (
        [row for row in rows if not row.is_real],
        [row for row in rows if row.is_real],
        skipped,
    )


def _photos(
    kit: ReferencePhotos | None,
    heads: _Heads,
    rows: Sequence[Row],
    compute: Callable[[Sequence[Row], str], FeatureTable],
    smallest: int,
) -> tuple[ReferencePhotos, NDArray[np.float32] | None, NDArray[np.float32]]:
    """Give the photos to compare with, and of those that were given now the rest of what is kept.

    That are their scores for the earlier generators, if the file has no photos, and their traits.
    """
    own = None
    traits: NDArray[np.float32] = np.zeros((0, len(TRAITS)), np.float32)
    count = 0 if kit is None else len(kit.features)
    if rows:
        table = compute(rows, "real photos")
        count += len(np.unique(table.images))
        z = heads.compared(table.features, table.traits)
        names = np.unique(table.sources, return_inverse=True)[1]
        own = ReferencePhotos(z, 0.0, np.full(len(z), -1), names, table.histories)
        traits = heads.traits(table)
    photos = next((part for part in (kit, own) if part is not None), None)
    scored = None
    if kit is None and own is not None:
        scored = heads.similarities(table.features, table.traits)
    elif kit is not None and own is not None:
        photos = kit.joined(own)
    if photos is None or count < smallest:
        raise DataError(
            f"{count} real photos to set the images "
            f"against; at least {smallest} are needed: give folders of photos",
            code="too_few_images",
        )
    if len(np.unique(photos.sources)) < 2:
        raise DataError(
            "all real photos come from one source; at least two are needed: give them in folders "
            "of their own",
            code="manifest_invalid",
        )
    return photos, scored, traits


@dataclass(frozen=True, eq=False)
class _Fitted:
    tensors: dict[str, NDArray[Any]]
    similarity: NDArray[np.float64]  # cross-validated: the photos, then the images' views
    by_source: NDArray[np.float64] | None  # the same, each source of the images left out
    table: FeatureTable  # without features


def _fit(
    name: str,
    own: FeatureTable,
    photos: ReferencePhotos,
    heads: _Heads,
    training: _Training,
    config: EnrollConfig,
    progress: Callable[[str, int, int], None] | None,
) -> _Fitted:
    n = len(photos.features)
    shape = photos.features.shape[1:]
    z = np.concatenate([photos.features, heads.compared(own.features, own.traits)])
    flat = z.reshape(len(z), -1)
    # Photos as rows of the same table, so that the same weights and folds serve.
    rows = [Row(f"photo {i}", REAL, f"photos {s}", "train") for i, s in enumerate(photos.sources)]
    table = FeatureTable(
        np.zeros((0, 0, 0, 0), np.float16),
        np.zeros((0, len(TRAITS)), np.float32),
        np.array([REAL] * n + [name] * len(own.images)),
        np.concatenate([[row.source for row in rows], own.sources]),
        np.concatenate([photos.histories, own.histories]),
        np.array([""] * len(z)),
        np.concatenate([np.arange(n), own.images + n]),
        (*rows, *own.rows),
        {},
    )
    classes = (table.generators == name).astype(np.int64)
    weights = training.weights(table, classes)
    folds = source_folds(table, config.folds)
    # Views of one image, and all of a source of photos, are in one fold: none is seen and scored.
    gram = flat @ flat.T

    def head(used: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        chosen = np.where(used, classes, -1)
        coefficients = fisher_coefficients(
            gram, chosen, weights, flat.shape[1],
            real_weights=matched_real_weights(chosen, weights, table.histories),
            ridge=training.heads.ridge, pooled=training.heads.pooled,
        )  # fmt: skip
        masks, references = masks_and_references(
            (flat.T @ coefficients).T, (shape[0], shape[1], shape[2]), training.heads.mask_exponent
        )
        return stored({"masks": masks, "references": references})

    noise = np.where(np.arange(len(z)) < (photos.rows >= 0).sum(), photos.noise, 0.0)

    def cross_validated(parts: NDArray[np.int64], stage: str) -> NDArray[np.float64]:
        out = np.zeros(len(z))
        count = int(parts.max()) + 1
        for k in range(count):
            if progress:
                progress(stage, k, count)
            held = parts == k
            if held.any():
                out[held] = similarities_with_noise(flat[held], noise[held], head(~held))
        if progress:
            progress(stage, count, count)
        return out

    names, source = np.unique(own.sources, return_inverse=True)
    similarity = cross_validated(folds, "fold")
    by_source = None
    if len(names) >= config.folds:
        by_source = similarity  # the folds are of whole sources already
    elif len(names) > 1:
        left_out = np.concatenate([folds[:n] % len(names), source])
        by_source = cross_validated(left_out, "source left out")
    return _Fitted(head(np.ones(len(z), bool)), similarity, by_source, table)


def similarities_with_noise(
    z: Matrix, noise: NDArray[np.float64], tensors: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Score standardised features that carry a noise of known variance, for one head.

    Parameters
    ----------
    z
        (n, D), see `masksim.model.SharedHeads.compared`.
    noise
        (n,): variance of an independent error of each feature; taken out of the norm.
    tensors
        ``masks`` and ``references``, (1, C, R, S).

    Returns
    -------
    ndarray
        float64 (n,): the similarity, as `masksim.model.SharedHeads` has it where there is no noise.
    """
    mask = tensors["masks"].astype(np.float32).reshape(-1)
    reference = tensors["references"].astype(np.float32).reshape(-1)
    reference = reference / np.linalg.norm(reference)
    power = (z * z) @ (mask * mask) - noise * float(mask @ mask)
    return np.asarray(z @ (mask * reference) / np.sqrt(np.maximum(power, 1e-16)), np.float64)


def _known(file: DetectorFile, branch: Branch, scores: NDArray[np.float64]) -> dict[str, float]:
    """Tell how often each earlier head of the branch would have known the images."""
    if file.calibration is None:
        return {}
    columns = [file.generators.index(name) for name in branch.generators]
    rates = false_positive_rate(scores, file.calibration["real_similarities"][:, columns])
    return {
        name: round(float((rates[:, g] <= EXPLAINED).mean()), 4)
        for g, name in enumerate(branch.generators)
    }


def _kept(
    file: DetectorFile,
    others: ReferencePhotos | None,
    own: FeatureTable,
    counted: NDArray[np.bool_],
    heads: _Heads,
) -> ReferencePhotos:
    """Add images of the new generator to those that later generators will be told from."""
    at = np.flatnonzero(counted)
    keys = [own.rows[i].sha256 for i in own.images[at]]
    if len(set(keys)) < len(keys):  # several views of an image, each chosen for itself
        keys = [f"{key} {number}" for number, key in enumerate(keys)]
    chosen = np.array(spread_over_sources(own.sources[at].tolist(), keys, KEPT_IMAGES))
    before = 0 if file.calibration is None else len(file.calibration.get("own_generators", ()))
    new = ReferencePhotos(
        heads.compared(own.features[at[chosen]], own.traits[at[chosen]]),
        1.0 if others is None else others.step,
        before + chosen,
        np.unique(own.sources[at], return_inverse=True)[1][chosen],
        own.histories[at[chosen]],
    )
    return new if others is None else others.joined(new)


def _with_head(branch: Branch, name: str, tensors: Mapping[str, NDArray[Any]]) -> Branch:
    """Append a head to a branch, the same in all bands; what was there is copied, not computed."""
    axis = _generator_axis(branch)

    def appended(key: str) -> NDArray[Any]:
        there, new = branch.tensors[key], tensors[key].astype(branch.tensors[key].dtype)
        if axis:
            new = np.broadcast_to(new, (len(there), *new.shape))
        return np.concatenate([there, new], axis=axis)

    return replace(
        branch,
        generators=(*branch.generators, name),
        tensors={**branch.tensors, **{key: appended(key) for key in _OF_GENERATORS}},
    )


def _calibration(
    file: DetectorFile,
    at: int,
    photos: ReferencePhotos,
    scored: NDArray[np.float32] | None,
    real: NDArray[np.float64],
    own: NDArray[np.float64],
    known: tuple[NDArray[np.int64], NDArray[np.float64]] | None,
    traits: NDArray[np.float32],
    own_traits: NDArray[np.float32],
) -> dict[str, NDArray[Any]]:
    """Add a column to the calibration; NaN where an image was not scored by a head.

    `real` are the new head's scores of `photos`, `scored` the earlier heads' of those that came
    without, `traits` theirs; `own` the scores of the new generator's images, by the branch's heads
    and the new one, `own_traits` theirs; `known` rows of ``own_similarities`` and their scores by
    the new head.
    """
    before = file.calibration or {}
    count = len(file.generators)
    # The new head stands behind the others of its branch, before those of later branches.
    column = sum(len(branch.generators) for branch in file.branches[: at + 1])
    old = before.get("real_similarities", np.zeros((0, count), np.float32))
    new = np.full(len(old), np.nan)
    listed = photos.rows >= 0
    new[photos.rows[listed]] = real[listed]
    more = np.full((int((~listed).sum()), count), np.nan)
    if scored is not None:
        more[:, column - scored.shape[1] : column] = scored
    table = np.insert(
        np.concatenate([old, more]), column, np.concatenate([new, real[~listed]]), axis=1
    )
    found: dict[str, NDArray[Any]] = {"real_similarities": table.astype(np.float32)}
    if not len(old) or "real_traits" in before:
        earlier = before.get("real_traits", np.zeros((0, len(TRAITS)), np.float32))
        found["real_traits"] = np.concatenate([earlier, traits]).astype(np.float32)
    if not len(old) or "real_sources" in before:
        numbers = np.asarray(before.get("real_sources", np.zeros(0)), np.int64)
        after = int(numbers.max(initial=-1)) + 1
        found["real_sources"] = np.concatenate(
            [numbers, after + np.unique(photos.sources[~listed], return_inverse=True)[1]]
        ).astype(np.int32)
    scores = before.get("own_similarities", np.zeros((0, count), np.float32))
    of = np.asarray(before.get("own_generators", np.zeros(0, np.int64)), np.int64)
    added = np.full(len(scores), np.nan)
    if known is not None:
        added[known[0]] = known[1]
    rows = np.full((len(own), count + 1), np.nan)
    rows[:, column + 1 - own.shape[1] : column + 1] = own
    found["own_similarities"] = np.concatenate(
        [np.insert(scores, column, added, axis=1), rows]
    ).astype(np.float32)
    found["own_generators"] = np.concatenate(
        [of + (of >= column), np.full(len(own), column)]
    ).astype(np.int32)
    if not len(of) or "own_traits" in before:
        shown = before.get("own_traits", np.zeros((0, len(TRAITS)), np.float32))
        found["own_traits"] = np.concatenate([shown, own_traits]).astype(np.float32)
    return found


def _joint(
    file: DetectorFile,
    branches: Sequence[Branch],
    calibration: Mapping[str, NDArray[Any]],
    strength: float,
) -> dict[str, NDArray[Any]]:
    """Give the number for "some generator" of other heads than a file has, if it has one.

    In each band it is learned from the photos and images that are scored by all heads. Where those
    are too few, it is what it was: without the column of a generator that is gone, and with the
    average weight for a new one, in deviations of photos.

    Parameters
    ----------
    file
        With the heads of before.
    branches, calibration
        Of the heads of now; its ``joint_weights`` and ``joint_offsets`` do not count.
    strength
        See `masksim.training.bands.fit_joint`.
    """
    before = file.calibration or {}
    if not set(JOINT_ARRAYS) <= set(before):
        return {}
    names = [name for branch in branches for name in branch.generators]
    old, offsets = (before[key].astype(np.float64) for key in JOINT_ARRAYS)
    bands = len(offsets)
    real, own = (calibration[f"{kind}_similarities"].astype(np.float64) for kind in ("real", "own"))
    deviations = np.nanstd(real, axis=0) + 1e-9
    places = [file.generators.index(name) if name in file.generators else -1 for name in names]
    there = np.array(places) >= 0
    weights = np.zeros((bands, len(names)))
    weights[:, there] = old[:, [place for place in places if place >= 0]]
    average = np.abs(weights[:, there] * deviations[there]).mean(axis=1)
    weights[:, ~there] = average[:, None] / deviations[~there]
    # Photos have the same number as before on average.
    offsets = offsets - weights[:, ~there] @ np.nanmean(real[:, ~there], axis=0)
    scores = np.concatenate([real, own])
    kinds = np.array([REAL] * len(real) + [names[g] for g in calibration["own_generators"]])
    band = bands_of(np.concatenate([calibration["real_traits"], calibration["own_traits"]]), bands)
    complete = ~np.isnan(scores).any(axis=1)
    photo = complete & (kinds == REAL)
    image = complete & ~photo
    # A generator without images there would be unlearned.
    if set(names) <= set(kinds[image].tolist()):
        enough = [
            b
            for b in range(bands)
            if min((photo & (band == b)).sum(), (image & (band == b)).sum()) >= FEWEST_JOINT
        ]
        if enough:
            anew = fit_joint(scores[complete], kinds[complete], band[complete], bands, strength)
            weights[enough], offsets[enough] = anew.weights[enough], anew.offsets[enough]
    return dict(
        zip(JOINT_ARRAYS, (weights.astype(np.float32), offsets.astype(np.float32)), strict=True)
    )


def _warnings(outcome: Enrollment, own: FeatureTable, photos: ReferencePhotos) -> list[str]:
    found = []
    if outcome.images < FEW_IMAGES:
        found.append(
            f"Only {outcome.images} images: with fewer than {FEW_IMAGES} the pattern is uncertain."
        )
    sources = "one folder" if outcome.sources == 1 else f"{outcome.sources} sources only"
    if outcome.sources < FEW_SOURCES:
        found.append(
            f"All images come from {sources}: what they have in common may be how they were saved, "
            "not who made them. Images of several origins, in sub-folders, are better."
        )
    for what, auroc in (
        ("The cross-validated AUROC", outcome.auroc),
        ("With whole sources left out the AUROC", outcome.auroc_new_sources),
    ):
        if auroc is not None and auroc.low < WEAK_AUROC:
            found.append(
                f"{what} is {auroc.value:.2f} [{auroc.low:.2f}, {auroc.high:.2f}]: too little "
                "evidence that the generator has a pattern of its own that is found in images from "
                "elsewhere. Its verdicts may be rare or wrong."
            )
    known = {name: share for name, share in outcome.known.items() if share >= 0.5}
    if known:
        found.append(
            "Heads that are there already know many of these images: "
            + ", ".join(f"{name} {100 * share:.0f} %" for name, share in known.items())
            + ". The new one may be hard to tell from them."
        )
    missing = set(np.unique(own.histories)) - set(np.unique(photos.histories))
    if missing:
        found.append(f"No real photo has the history of some images: {', '.join(sorted(missing))}.")
    return found


def _provenance(
    file: DetectorFile, outcome: Enrollment, rows: Sequence[Row], config: EnrollConfig
) -> dict[str, Any]:
    before = dict(file.provenance)
    name = outcome.generator
    for key, value in (
        ("images", outcome.images),
        ("sources", outcome.sources),
        ("cross_validated_auroc", round(outcome.auroc.value, 4)),
    ):
        before[key] = {**before.get(key, {}), name: value}
    before["enrolled"] = [
        *before.get("enrolled", []),
        {
            **outcome.to_dict(),
            "config": asdict(config),
            "detector": file.sha256,
            "images_sha256": manifest_hash(replace(row, path=row.sha256) for row in rows),
            "masksim": __version__,
            "at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    ]
    return before

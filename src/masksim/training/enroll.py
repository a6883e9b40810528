"""Enrolling: one more generator on a finished detector, from a folder of its images, in minutes.

The residual, its statistics and all other heads stay as they are, so that the scores of the other
generators do not change by a bit. New are one mask, one reference and one column of the calibration
(`masksim.training.grow`). The real photos that the head is fitted against come with the detector,
as features (`masksim.training.stored_features`); more can be given.

A detector with heads for each band of compression (`masksim.training.bands`) compares a view as its
band does. But a new generator has too few images for a direction in each band: it gets one, learned
from all of them, which is the same in every band. The number for "some generator" is learned anew.
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
from masksim.analysis import Analyser
from masksim.calibration import false_positive_rate
from masksim.checkpoint import Branch, DetectorFile, check_generator_name
from masksim.config import Progress, from_plain, staged
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.data.scan import scan_folders
from masksim.data.views import ViewConfig
from masksim.data.weights import (
    history_weights,
    matched_real_weights,
    source_folds,
    training_weights,
    view_weights,
)
from masksim.errors import DataError, UsageError
from masksim.errors import counted as in_words
from masksim.features import FeatureConfig, LumaConfig
from masksim.files import file_digest
from masksim.metrics import Estimate
from masksim.training.feature_table import FeatureTable, compute_features
from masksim.training.grow import (
    Column,
    Photos,
    joint_of,
    ranked_in,
    shared_branch,
    usual_of,
    with_branch,
    with_column,
    with_head,
)
from masksim.training.heads import (
    HeadConfig,
    HeadsByBand,
    coefficients_of,
    cosines,
    fit_probability,
    masks_and_references,
    stored,
)
from masksim.training.learned_heads import with_learned
from masksim.training.recipe import image_keys, view_keys
from masksim.training.stored_features import ReferencePhotos, pack, spread_over_sources, unpack
from masksim.training.stored_windows import compute_windows
from masksim.traits import TRAITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEW_IMAGES = 50
"""With fewer images of the generator there is a warning."""

WEAK_AUROC = 0.8
"""If the interval of the cross-validated AUROC reaches below this there is a warning."""

KEPT_IMAGES = 50
"""So many of its images are kept, as features, for generators that are enrolled later."""

WARN_BELOW_SOURCES = 5
"""With fewer sources of the generator there is a warning."""

EXPLAINED = 0.05
"""A head that is already there knows an image if the image's rate for it is at most this."""

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
        By generator that was there before: the share of the counted views of the images with a
        rate of at most 5 % for its own head. With heads for each band every view counts, else one
        an image. The rate is the rank of the score itself among all photos that verdicts rank
        among, of whatever band; a verdict ranks among photos of the image's own kind, and relative
        to what is usual, so it may differ.
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
    progress: Progress | None = None,
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
        See `masksim.config.Progress`.

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
    at, branch = shared_branch(file)
    if name in file.generators:
        raise UsageError(f"the detector knows a generator {name!r} already")
    if file.photos is None and file.calibration is not None:
        raise UsageError(
            "the detector is calibrated on photos that it does not carry, so that a further "
            "generator cannot be ranked among them: train it with photos above 0"
        )
    Analyser(file, threads=1)  # a file whose parts do not fit is refused before minutes of work
    training = _settings(file, branch, config)
    compute = partial(_features, branch, training, config.seed, cache, workers, progress)
    heads = HeadsByBand.of(branch.head, branch.tensors, float(branch.head_config["limit"]))
    rows, photo_rows, skipped = _rows(images, real)
    own = _images(name, rows, skipped, compute, config)
    kit, others = (None, None) if file.photos is None else unpack(file.photos())

    def scores(table: FeatureTable) -> NDArray[np.float32]:
        """Similarities of all earlier heads, those on a learned residual included."""
        found = heads.similarities(table.features, table.traits)
        for other in file.branches:
            if other.residual.kind != "learned":
                continue
            windows = compute_windows(
                Manifest(table.rows, Path()), cache, views_config=training.views,
                window_config=LumaConfig.from_dict(other.settings), seed=config.seed,
                workers=workers, progress=staged(progress, "windows of images"),
            )  # fmt: skip
            found = with_learned(found, branch, other, table, windows)
        return found

    photos = _photos(kit, heads, photo_rows, compute, scores, config.smallest_photos)
    fit = _fit(name, own, photos.all, heads, training, config, progress)

    n = len(photos.all.features)
    counted = training.counted(own)
    new = own.take(counted)
    earlier = scores(own)[counted]
    column = Column(
        fit.similarity[:n],
        None if others is None else (others.rows, _score(others, fit.tensors)),
        np.column_stack([earlier, fit.similarity[n:][counted]]),
        heads.traits(new),
        own.first[counted],
    )
    outcome = _outcome(name, own, photos.all, fit, skipped, config)
    outcome = replace(outcome, known=_known(file, branch, column.own[:, :-1]))
    outcome = replace(outcome, warnings=_warnings(file, outcome, own, photos.all))
    branches = with_branch(file, at, with_head(branch, name, fit.tensors))
    calibration = with_column(file, at, photos, column)
    calibration |= joint_of(file, branches, calibration)
    calibration |= usual_of(file, branches, calibration)
    made = replace(
        file,
        branches=branches,
        # Photos of one's own have no score for the new head, and no features to give them one.
        config={key: value for key, value in file.config.items() if key != "populations"},
        calibration=calibration,
        provenance=_provenance(file, outcome, rows, config),
        photos=None if kit is None else partial(pack, kit, _kept(file, others, new, heads)),
        sha256="",
    )
    return made, outcome


@dataclass(frozen=True)
class _Training:
    """How the detector was trained: photos and images must be treated alike."""

    views: ViewConfig
    heads: HeadConfig
    by_band: bool
    lossless: float

    @property
    def purpose(self) -> Literal["enroll", "met"]:
        return "met" if self.by_band else "enroll"

    def weights(self, table: FeatureTable, classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weights of views in the fit: (n,)."""
        if self.by_band:
            return view_weights(classes, table.sources, table.histories, self.lossless)
        return training_weights(table.generators, table.sources, table.histories, self.views.shares)

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
        return own.first


def _settings(file: DetectorFile, branch: Branch, config: EnrollConfig) -> _Training:
    training = file.provenance.get("training")
    if not isinstance(training, Mapping):
        raise UsageError("the detector does not say how its training processed images")
    by_band = branch.head == "bands"
    # Of a photo one view, so that photos count alike and can be ranked among; with heads for each
    # band as many as of an image: one would lie in one band.
    counts = {"*": config.views, REAL: config.views if by_band else 1}
    return _Training(
        from_plain(ViewConfig, {**training["views"], "views": counts}, "views"),
        from_plain(HeadConfig, training["heads"], "heads"),
        by_band,
        float(training.get("lossless", 1.0)),
    )


def _features(
    branch: Branch,
    training: _Training,
    seed: int,
    cache: str | os.PathLike[str],
    workers: int,
    progress: Progress | None,
    rows: Sequence[Row],
    stage: str,
) -> FeatureTable:
    """Compute the features of images as the detector does."""
    features = FeatureConfig.from_dict(branch.settings)
    return compute_features(
        Manifest(tuple(rows), Path(".")), training.purpose, cache, views_config=training.views,
        feature_config=features, seed=seed, workers=workers, graph=branch.onnx,
        progress=staged(progress, stage),
    )  # fmt: skip


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


def _images(
    name: str,
    rows: Sequence[Row],
    skipped: Counter[str],
    compute: Callable[[Sequence[Row], str], FeatureTable],
    config: EnrollConfig,
) -> FeatureTable:
    """Compute the views of the generator's images, and count those that cannot be used."""
    if len(rows) < config.smallest:
        raise DataError(
            f"{len(rows)} different images of {name}; at least {config.smallest} are needed, 50 to "
            "500 are good",
            code="too_few_images",
        )
    # Under a neutral name, so that what is computed serves whatever the generator is called.
    own = compute(rows, f"images of {name}")
    skipped.update(own.failures.values())
    usable = len(np.unique(own.images))
    if usable < config.smallest:
        raise DataError(
            f"only {usable} of {len(rows)} images of {name} could be used (left out: "
            f"{in_words(skipped)}); at least {config.smallest} are needed",
            code="too_few_images",
        )
    return own


def _photos(
    kit: ReferencePhotos | None,
    heads: HeadsByBand,
    rows: Sequence[Row],
    compute: Callable[[Sequence[Row], str], FeatureTable],
    scores: Callable[[FeatureTable], NDArray[np.float32]],
    smallest: int,
) -> Photos:
    """Give the photos to compare with: those of the detector, and those that were given now."""
    photos, scored = kit, None
    traits: NDArray[np.float32] = np.zeros((0, len(TRAITS)), np.float32)
    first = np.zeros(0, np.bool_)
    count = 0 if kit is None else len(kit.features)
    if rows:
        table = compute(rows, "real photos")
        count += len(np.unique(table.images))
        z = heads.compared(table.features, table.traits)
        names = np.unique(table.sources, return_inverse=True)[1]
        own = ReferencePhotos(z, 0.0, np.full(len(z), -1), names, table.histories)
        traits, first = heads.traits(table), table.first
        if kit is None:
            photos, scored = own, scores(table)
        else:
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
    return Photos(photos, scored, traits, first)


@dataclass(frozen=True, eq=False)
class _Fitted:
    tensors: dict[str, NDArray[Any]]
    similarity: NDArray[np.float64]  # cross-validated: the photos, then the images' views
    by_source: NDArray[np.float64] | None  # the same, each source of the images left out
    compared: NDArray[np.float64]  # weights with which images and photos are compared
    table: FeatureTable  # without features


def _joined(name: str, own: FeatureTable, photos: ReferencePhotos) -> FeatureTable:
    """Put photos and the generator's views in one table, so that the same weights serve."""
    n = len(photos.features)
    rows = [Row(f"photo {i}", REAL, f"photos {s}", "train") for i, s in enumerate(photos.sources)]
    return FeatureTable(
        np.zeros((0, 0, 0, 0), np.float16),
        np.zeros((0, len(TRAITS)), np.float32),
        np.array([REAL] * n + [name] * len(own.images)),
        np.concatenate([[row.source for row in rows], own.sources]),
        np.concatenate([photos.histories, own.histories]),
        np.array([""] * (n + len(own.images))),
        np.concatenate([np.arange(n), own.images + n]),
        (*rows, *own.rows),
        {},
    )


def _fit(
    name: str,
    own: FeatureTable,
    photos: ReferencePhotos,
    heads: HeadsByBand,
    training: _Training,
    config: EnrollConfig,
    progress: Progress | None,
) -> _Fitted:
    """Fit the head, and score every view with heads that never saw its image or source."""
    n, shape = len(photos.features), photos.features.shape[1:]
    z = np.concatenate([photos.features, heads.compared(own.features, own.traits)])
    flat = z.reshape(len(z), -1)
    table = _joined(name, own, photos)
    synthetic = table.generators == name
    classes = synthetic.astype(np.int64)
    weights = training.weights(table, classes)
    # Views of one image, and all of a source of photos, are in one fold: none is seen and scored.
    folds = source_folds(table.generators, table.sources, image_keys(table), config.folds)
    gram = flat @ flat.T
    noise = np.where(np.arange(len(z)) < (photos.rows >= 0).sum(), photos.noise, 0.0)

    def head(used: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        chosen = np.where(used, classes, -1)
        coefficients = coefficients_of(
            gram, chosen, weights, table.histories, flat.shape[1], training.heads
        )
        masks, references = masks_and_references(
            (flat.T @ coefficients).T, (shape[0], shape[1], shape[2]), training.heads.mask_exponent
        )
        return stored({"masks": masks, "references": references})

    def cross_validated(parts: NDArray[np.int64], stage: str) -> NDArray[np.float64]:
        out = np.zeros(len(z))
        count = int(parts.max()) + 1
        for k in range(count):
            if progress:
                progress(stage, k, count)
            held = parts == k
            if held.any():
                made = head(~held)
                out[held] = cosines(flat[held], made["masks"], made["references"], noise[held])
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
    pair = training.compared(table, synthetic)
    used = pair > 0
    a, b = fit_probability(similarity[used], synthetic[used], pair[used])
    slope, offset = np.array([a], np.float32), np.array([b], np.float32)
    tensors = {**head(np.ones(len(z), bool)), "a": slope, "b": offset}
    return _Fitted(tensors, similarity, by_source, pair, table)


def _score(images: ReferencePhotos, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Score kept features by the new head."""
    flat = images.features.reshape(len(images.features), -1)
    noise = np.full(len(flat), images.noise)
    return cosines(flat, tensors["masks"], tensors["references"], noise)


def _outcome(
    name: str,
    own: FeatureTable,
    photos: ReferencePhotos,
    fit: _Fitted,
    skipped: Mapping[str, int],
    config: EnrollConfig,
) -> Enrollment:
    """Measure the new head; what earlier heads say, and the warnings, are still to come."""
    synthetic, used = fit.table.generators == name, fit.compared > 0
    groups, _ = metrics.draw_together(synthetic, fit.table.images, fit.table.sources)

    def auroc_of(scores: NDArray[np.float64]) -> Estimate:
        return metrics.bootstrap(
            metrics.auroc, scores[used], synthetic[used], fit.compared[used],
            groups=groups[used], samples=config.samples,
        )  # fmt: skip

    return Enrollment(
        name, len(np.unique(own.images)), len(np.unique(own.sources)), len(photos.features),
        auroc_of(fit.similarity), None if fit.by_source is None else auroc_of(fit.by_source),
        {}, dict(skipped), (),
    )  # fmt: skip


def _known(file: DetectorFile, branch: Branch, scores: NDArray[np.float64]) -> dict[str, float]:
    """Tell how often each earlier head knows the images, see `Enrollment.known`.

    `scores` (n, G) are of the counted views, a column a head of the branch.
    """
    if file.calibration is None:
        return {}
    columns = [file.generators.index(name) for name in branch.generators]
    among = ranked_in(file.calibration)
    rates = false_positive_rate(scores, file.calibration["real_similarities"][among][:, columns])
    return {
        name: round(float((rates[:, g] <= EXPLAINED).mean()), 4)
        for g, name in enumerate(branch.generators)
    }


def _kept(
    file: DetectorFile, others: ReferencePhotos | None, new: FeatureTable, heads: HeadsByBand
) -> ReferencePhotos:
    """Add images of the new generator to those that later generators will be told from."""
    spread = spread_over_sources(new.sources.tolist(), view_keys(new), KEPT_IMAGES)
    chosen = np.array(spread)
    before = 0 if file.calibration is None else len(file.calibration.get("own_generators", ()))
    kept = ReferencePhotos(
        heads.compared(new.features[chosen], new.traits[chosen]),
        1.0 if others is None else others.step,
        before + chosen,
        np.unique(new.sources, return_inverse=True)[1][chosen],
        new.histories[chosen],
    )
    return kept if others is None else others.joined(kept)


def _warnings(
    file: DetectorFile, outcome: Enrollment, own: FeatureTable, photos: ReferencePhotos
) -> tuple[str, ...]:
    found = []
    if outcome.images < FEW_IMAGES:
        found.append(
            f"Only {outcome.images} images: with fewer than {FEW_IMAGES} the pattern is uncertain."
        )
    sources = "one folder" if outcome.sources == 1 else f"{outcome.sources} sources only"
    if outcome.sources < WARN_BELOW_SOURCES:
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
    if lost := [population["name"] for population in file.config.get("populations", [])]:
        found.append(
            f"The calibration on photos of your own ({', '.join(lost)}) is gone: the new head has "
            "no scores of them. Calibrate again."
        )
    return tuple(found)


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

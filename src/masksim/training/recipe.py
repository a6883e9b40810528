"""What both recipes on the residual bank share: configuration, who gets a head, the file made.

`masksim.training.shared` has one set of heads, `masksim.training.bands` one for each band of
compression.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from masksim import __version__
from masksim.checkpoint import (
    AS_FOUND,
    COPY,
    OWN_RANKED_ARRAY,
    RANKED_ARRAY,
    Branch,
    DetectorFile,
    HeadKind,
)
from masksim.config import from_plain
from masksim.data.manifest import REAL, manifest_hash
from masksim.data.views import ViewConfig
from masksim.errors import DataError, ModelError, UsageError, counted
from masksim.features import FeatureConfig
from masksim.residual import ResidualConfig, residual_onnx
from masksim.strata import Strata
from masksim.training.feature_table import FeatureTable
from masksim.training.heads import HeadConfig, HeadsByBand
from masksim.training.stored_features import ReferencePhotos, pack, spread_over_sources
from masksim.traits import BANDS, bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Config = TypeVar("Config", bound="RecipeConfig")


@dataclass(frozen=True)
class RecipeConfig:
    """A training run: all that the detector depends on besides the images.

    Attributes
    ----------
    name
        Of the detector.
    seed
        Of all draws.
    smallest_class, smallest_sources
        Generators with fewer images, or images of fewer sources, get no head.
    joint_only
        Generators that get no head either way.
    folds
        Of the cross-validation that gives the calibration scores.
    photos, images, photo_step
        Features of how many real photos, and of how many images of each generator, are kept with
        the detector to enroll generators with, and the step they are rounded to, in deviations;
        see `masksim.training.stored_features`.
    strata
        How the calibration photos are parted, from the coarsest to the finest: (trait, number of
        bands of as many photos each, or the cuts themselves), see `masksim.strata.Strata`.
    stratum_photos, stratum_sources
        Fewest photos, and sources of them, of a stratum.
    ranked
        Which views of photos images are ranked among: ``"all"``, or the ``"first"`` of each photo
        alone, which is the file as found where views are as people meet them. Files as found
        resemble generators more often than copies of them do.
    unranked
        Kinds of photos, ``kind`` in the manifest, that images are not ranked among, since people
        seldom ask about them. They still teach.
    ranked_least
        Where only the first views count, so many photos a band of compression needs; of one with
        fewer all views count, since few files are found that way.
    views, features, heads
        See their classes.
    """

    name: str = "detector"
    seed: int = 0
    smallest_class: int = 30
    smallest_sources: int = 1
    joint_only: tuple[str, ...] = ()
    folds: int = 5
    photos: int = 1000
    images: int = 50
    photo_step: float = 1.0
    strata: tuple[tuple[str, int | tuple[float, ...]], ...] = ()
    stratum_photos: int = 300
    stratum_sources: int = 20
    ranked: Literal["all", "first"] = "all"
    unranked: tuple[str, ...] = ()
    ranked_least: int = 300
    views: ViewConfig = field(default_factory=ViewConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UsageError(f"cross-validation needs at least two folds, got {self.folds}")
        if min(self.photos, self.images) < 0 or not 0.1 <= self.photo_step <= 2:
            raise UsageError(
                "photos and images must not be negative and photo_step in 0.1 .. 2, got "
                f"{self.photos}, {self.images} and {self.photo_step}"
            )
        try:
            _ = self.division
        except ModelError as error:
            raise UsageError(error.message) from error

    @property
    def division(self) -> Strata:
        """How the calibration photos are parted."""
        return Strata(self.strata, self.stratum_photos, self.stratum_sources)

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Make a configuration of plain values, as a TOML file holds them.

        Raises
        ------
        UsageError
            On an unknown key, or a value that cannot be.
        """
        return from_plain(cls, values, "the training")


@dataclass(frozen=True, eq=False)
class Fit:
    """Heads, and the scores that heads gave to calibration views of sources they had not seen.

    Attributes
    ----------
    generators
        Names, in the order of the heads.
    tensors
        Of the heads, as they are stored.
    similarities
        float32 (n, G): cross-validated scores of the calibration views.
    traits
        float32 (n, T): what those views show, complete.
    auroc
        By generator, cross-validated.
    """

    generators: tuple[str, ...]
    tensors: Mapping[str, NDArray[Any]]
    similarities: NDArray[np.float32]
    traits: NDArray[np.float32]
    auroc: Mapping[str, float]


def generators_with_heads(table: FeatureTable, config: RecipeConfig) -> tuple[str, ...]:
    """Names of the generators that have enough images of enough sources.

    Raises
    ------
    DataError
        There is none, or there are no photos of two sources.
    """
    images, sources = {}, {}
    for name in np.unique(table.generators).tolist():
        own = table.generators == name
        images[name] = len(np.unique(table.images[own]))
        sources[name] = len(np.unique(table.sources[own]))
    if sources.get(REAL, 0) < 2:
        raise DataError(
            "training needs real photos of at least two sources, which cross-validation parts: "
            "give them in folders of their own",
            code="manifest_invalid",
        )
    found = tuple(
        name
        for name, count in images.items()
        if count >= config.smallest_class and sources[name] >= config.smallest_sources
        if name != REAL and name not in config.joint_only
    )
    if not found:
        raise DataError(
            f"no generator has {config.smallest_class} images of at least "
            f"{config.smallest_sources} sources; found images: {counted(images)}; sources: "
            f"{counted(sources)}",
            code="manifest_invalid",
        )
    return found


def classes_of(table: FeatureTable, names: Sequence[str]) -> NDArray[np.int64]:
    """Give each view a number: 0 for photos, from 1 on for the generators named, -1 for others."""
    classes = np.full(len(table.generators), -1, dtype=np.int64)
    for number, name in enumerate((REAL, *names)):
        classes[table.generators == name] = number
    return classes


def bank_branch(
    head: HeadKind,
    generators: tuple[str, ...],
    tensors: Mapping[str, NDArray[Any]],
    features: FeatureConfig,
    limit: float,
) -> Branch:
    """Put heads on the residual bank together as a branch of a detector file."""
    residual = ResidualConfig("bank")
    placed, spectrum = features.in_two()
    return Branch(
        residual=residual,
        residual_weights={},
        onnx=residual_onnx(residual, {}),
        preprocess={"colour": "luma-chroma", **placed},
        spectrum=spectrum,
        head=head,
        generators=generators,
        tensors=tensors,
        head_config={"limit": limit},
    )


def software() -> dict[str, str]:
    """Versions that a run depends on."""
    return {
        "masksim": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def ranked_among(table: FeatureTable, config: RecipeConfig) -> NDArray[np.bool_]:
    """Tell which views are those that images are ranked among: (n,), photos only."""
    return (table.generators == REAL) & (ranked_views(table, config) > 0)


def ranked_views(table: FeatureTable, config: RecipeConfig) -> NDArray[np.uint8]:
    """Tell of views (n,) of either class how they count, see `masksim.checkpoint.RANKED_ARRAY`."""
    first, real = table.first, table.generators == REAL
    kinds = np.array([str(row.extra.get("kind", "")) for row in table.rows])[table.images]
    asked = ~(real & np.isin(kinds, config.unranked))
    copies = np.ones(len(first), np.bool_)
    if config.ranked == "first":
        band, photos = bands_of(table.traits, len(BANDS)), real & first & asked
        few = [b for b in range(len(BANDS)) if (photos & (band == b)).sum() < config.ranked_least]
        copies = np.isin(band, few)
    return np.select([asked & first, asked & copies], [AS_FOUND, COPY], 0).astype(np.uint8)


def counts_of(table: FeatureTable, ranked: NDArray[np.bool_]) -> dict[str, Any]:
    """Count the photos, views and sources that images are ranked among, and formats as found."""
    found = table.images[ranked & table.first]
    return {
        "photos": len(np.unique(table.images[ranked])),
        "views": int(ranked.sum()),
        "sources": len(np.unique(table.sources[ranked])),
        "formats": dict(Counter(table.rows[image].format for image in found.tolist())),
    }


def image_keys(table: FeatureTable) -> list[str]:
    """Name the image of each view by its content."""
    return [table.rows[image].key for image in table.images.tolist()]


def view_keys(table: FeatureTable) -> list[str]:
    """Name each view by its image's content; of several views of an image also by its place."""
    keys = image_keys(table)
    if len(set(keys)) == len(keys):
        return keys
    return [f"{key} {number}" for number, key in enumerate(keys)]


def kept_for_enrolling(
    table: FeatureTable, fit: Fit, heads: HeadsByBand, config: RecipeConfig
) -> tuple[ReferencePhotos, ReferencePhotos | None] | None:
    """Choose calibration views, evenly over the sources, whose features are kept for enrolling.

    Returns
    -------
    photos, images or None
        For `masksim.training.stored_features.pack`; None if no photos are wanted.
    """
    if config.photos < 1:
        return None
    sources = np.unique(table.sources, return_inverse=True)[1]
    keys = np.array(view_keys(table))
    real, own = table.generators == REAL, np.isin(table.generators, fit.generators)
    rows = np.full(len(real), -1)  # in the calibration of each class
    rows[real], rows[own] = np.arange(real.sum()), np.arange(own.sum())

    def spread(mask: NDArray[np.bool_], most: int) -> list[int]:
        at = np.flatnonzero(mask)
        return at[spread_over_sources(sources[at].tolist(), keys[at].tolist(), most)].tolist()

    def keep(chosen: list[int]) -> ReferencePhotos:
        at = np.array(chosen)
        return ReferencePhotos(
            heads.compared(table.features[at], table.traits[at]),
            config.photo_step, rows[at], sources[at], table.histories[at],
        )  # fmt: skip

    # As many of each band as it has: what is learned anew when enrolling is learned in each.
    bands = bands_of(table.traits, len(heads.sets))
    masks = sorted((real & (bands == b) for b in range(len(heads.sets))), key=np.count_nonzero)
    chosen: list[int] = []
    ranked = ranked_among(table, config)
    for left, mask in zip(range(len(masks), 0, -1), masks, strict=True):
        most = (config.photos - len(chosen)) // left
        # Half of them are ranked among, so that what is enrolled has a rate, too.
        half = spread(mask & ranked, -(-most // 2)) if config.ranked == "first" else []
        others = mask.copy()
        others[half] = False
        chosen += half + spread(others, most - len(half))
    photos = keep(sorted(chosen))
    if not config.images:
        return photos, None
    of_all = [i for g in fit.generators for i in spread(table.generators == g, config.images)]
    return photos, keep(sorted(of_all))


def detector_file(
    kind: HeadKind,
    config: RecipeConfig,
    fit: Fit,
    table: FeatureTable,
    calibrated: FeatureTable,
    *,
    names: Sequence[str],
    how: str,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    more: Sequence[Branch] = (),
) -> DetectorFile:
    """Put what was fitted together as a detector, to be saved.

    Parameters
    ----------
    kind, config
        Of the heads, which is the recipe's name; the run.
    fit, table, calibrated
        The heads, the views that they were fitted to, and those that `fit` has scores of.
    names, how, arrays, more
        Classes that had a part in it; how the calibration came about, in words; further arrays of
        the calibration; further branches.
    """
    real = calibrated.generators == REAL
    own = np.isin(calibrated.generators, fit.generators)
    number = {name: k for k, name in enumerate(fit.generators)}
    heads = HeadsByBand.of(kind, fit.tensors, config.heads.limit)
    kept = kept_for_enrolling(calibrated, fit, heads, config)
    views = ranked_views(calibrated, config)
    ranked = real & (views > 0)
    which = {RANKED_ARRAY: views[real], OWN_RANKED_ARRAY: views[own]}
    masks = {name: table.generators == name for name in names}
    sources = np.unique(calibrated.sources[real], return_inverse=True)[1]
    return DetectorFile(
        config={"name": config.name, "recipe": kind, "strata": config.division.to_dict()},
        branches=(
            bank_branch(kind, fit.generators, fit.tensors, config.features, config.heads.limit),
            *more,
        ),
        calibration={
            "real_similarities": fit.similarities[real],
            "real_traits": fit.traits[real],
            "real_sources": sources.astype(np.int32),
            **({} if ranked[real].all() else which),
            "own_similarities": fit.similarities[own],
            "own_generators": np.array(
                [number[name] for name in calibrated.generators[own].tolist()], np.int32
            ),
            "own_traits": fit.traits[own],
            **(arrays or {}),
        },
        photos=None if kept is None else lambda: pack(*kept),
        provenance={
            "training": asdict(config),
            "manifest_sha256": manifest_hash(table.rows),
            "images": {name: len(np.unique(table.images[own])) for name, own in masks.items()},
            "sources": {name: len(np.unique(table.sources[own])) for name, own in masks.items()},
            "views": int(np.isin(table.generators, names).sum()),
            "calibration": {
                **counts_of(calibrated, ranked),
                "for_enrolling": 0 if kept is None else len(kept[0].features),
                "how": how,
            },
            "cross_validated_auroc": {name: round(value, 4) for name, value in fit.auroc.items()},
            "skipped": dict(Counter(table.failures.values())),
            **software(),
        },
    )

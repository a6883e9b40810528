"""The left-out scores that a detector file holds, with what is known of their images.

A detector of the recipe `bands` carries the similarities of all views it was trained on, each by
heads that had not seen the image's repository. benchmarks/images.csv says which images they are of,
and draws are seeded by content: so no image is needed to tell what each view went through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from images import read_list, row_of
from numpy.typing import NDArray

from masksim.augment import rng_for
from masksim.checkpoint import DetectorFile
from masksim.data import processing
from masksim.data.manifest import Row
from masksim.data.processing import View, as_found, as_met
from masksim.data.views import at_most
from masksim.data.weights import repository_folds
from masksim.populations import joint_in
from masksim.training.bands import BandsConfig, BandsFit, joint_number
from masksim.training.feature_table import FeatureTable
from masksim.training.recipe import ranked_among
from masksim.traits import TRAITS, with_all_traits


def trained_on(config: BandsConfig) -> tuple[Row, ...]:
    """List the images of a training, in its order: those that the list says were seen."""
    rows = [row_of(line) for line in read_list() if line["seen_by"]]
    return tuple(sorted(at_most(rows, config.per_source), key=lambda row: row.path))


def views_of(row: Row, quality: int | None, config: BandsConfig) -> list[View]:
    """Draw the views of an image as for training; their pixels are blank, of the right number."""

    def resized(pixels: Any, factor: float, _: str) -> Any:
        return _blank(*(max(1, round(n * factor)) for n in pixels.shape[:2]))

    ways, counts = config.views.ways, config.views.views
    blank = _blank(row.height, row.width)
    views = [as_found(blank, row.format, quality, ways.region)]
    # What is left out draws nothing.
    picture = SimpleNamespace(fromarray=lambda p: SimpleNamespace(filter=lambda _: p))
    with (
        patch.object(processing, "resize", resized),
        patch.object(processing, "reencode", lambda pixels, *_: pixels),
        patch.object(processing, "Image", picture),
    ):
        for number in range(1, counts.get(row.generator, counts["*"])):
            rng = rng_for(config.seed, row.key, "met", number)
            views.append(as_met(blank, row.format, quality, rng, ways))
    # Without the memory of what was cut out.
    return [replace(view, pixels=_blank(*view.pixels.shape[:2])) for view in views]


def _blank(height: int, width: int) -> Any:
    return np.broadcast_to(np.uint8(0), (height, width, 3))


def read_left_out(file: DetectorFile, config: BandsConfig) -> tuple[FeatureTable, BandsFit]:
    """Give the views that a detector file has scores of, without features, and the scores.

    Parameters
    ----------
    file
        Of the recipe `bands`, just trained on `trained_on`.
    config
        How it was trained; the joint number of each fold is learned anew by it.

    Raises
    ------
    SystemExit
        The file is of other images.
    """
    rows, arrays = trained_on(config), file.calibration or {}
    generators = np.array([row.generator for row in rows])
    sources = np.array([row.source for row in rows])
    folds = repository_folds(sources, generators, config.folds)
    scored = [k for k, row in enumerate(rows) if row.is_real or row.generator in file.generators]
    # Per view: which image, its similarities, what it shows.
    images, similarities, traits = [], [], []
    for kind in ("real", "own"):
        mine = [k for k in scored if rows[k].is_real == (kind == "real")]
        values = arrays[f"{kind}_similarities"]
        each, rest = divmod(len(values), max(1, len(mine)))
        if rest:
            raise SystemExit(f"{len(values)} scores of {len(mine)} images: not the listed ones")
        images.append(np.repeat(mine, each))
        similarities.append(values)
        traits.append(with_all_traits(arrays[f"{kind}_traits"]))
    image, shown = np.concatenate(images), np.concatenate(traits)
    first = np.r_[True, image[1:] != image[:-1]]
    views: list[View] = []
    for k, quality in zip(image[first], shown[first, TRAITS.index("quality")], strict=True):
        views += views_of(rows[k], None if np.isnan(quality) else int(quality), config)
    _check(views, shown)
    table = FeatureTable(
        np.zeros((0, 0, 0, 0), np.float16), shown.astype(np.float32), generators[image],
        sources[image], np.array([view.history for view in views]),
        np.array([", ".join(view.processing) for view in views]), image, rows, {},
    )  # fmt: skip
    scores, joint = np.concatenate(similarities), joint_in(arrays)
    assert joint is not None
    ranked = ranked_among(table, config)
    fit = BandsFit(
        file.generators, {}, scores, table.traits, {}, joint,
        tuple(
            joint_number(
                scores, table.generators, table.traits, folds[image] != k, ranked, config
            )
            for k in range(config.folds)
        ),
        folds[image],
    )  # fmt: skip
    return table, fit


def _check(views: Sequence[View], shown: NDArray[Any]) -> None:
    """Refuse views that do not show what the scored ones showed."""
    side = np.array([min(view.pixels.shape[:2]) for view in views])
    band = np.array([view.band for view in views])
    there = shown[:, [TRAITS.index("side"), TRAITS.index("band")]]
    if len(views) != len(there):
        raise SystemExit(f"{len(there)} views were scored, and {len(views)} drawn: other images")
    if not np.array_equal(np.column_stack([side, band]), there):
        wrong = int((np.column_stack([side, band]) != there).any(axis=1).sum())
        raise SystemExit(f"{wrong} of {len(views)} views have another size or band: other images")

"""The left-out scores that a detector file holds, with what is known of their images.

usage: python benchmarks/left_out.py CONFIG --out FOLDER [--detector FOLDER]

Makes a detector of the heads and the left-out scores of another one, by default of the one in the
package: the joint number, what photos usually have, and which views are ranked among are told anew,
as CONFIG says. So a change of these needs no training.

A detector of the recipe `bands` carries the similarities of all views it was trained on, each by
heads that had not seen the image's repository. benchmarks/images.csv says which images they are of,
and draws are seeded by content: so no image is needed to tell what each view went through.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from images import read_list, row_of
from numpy.typing import NDArray

from masksim.augment import rng_for
from masksim.checkpoint import OWN_RANKED_ARRAY, RANKED_ARRAY, DetectorFile
from masksim.config import read_toml
from masksim.data import processing
from masksim.data.manifest import REAL, Row
from masksim.data.processing import View, as_found, as_met
from masksim.data.views import at_most
from masksim.data.weights import repository_folds
from masksim.load import bundled_path
from masksim.populations import joint_in
from masksim.training.bands import BandsConfig, BandsFit, calibration_arrays, joint_number
from masksim.training.feature_table import FeatureTable
from masksim.training.recipe import counts_of, ranked_among, ranked_views
from masksim.training.usual_scores import fit_usual_scores
from masksim.traits import TRAITS, with_all_traits

NEVER_TRAINED_ON = ("", "masksim-7")
"""Values of `seen_by`; with the images of masksim-7 it was only decided how to rank."""

RANKING = (
    "name", "ranked", "unranked", "ranked_least", "relative", "joint_strength", "strata",
    "stratum_photos", "stratum_sources",
)  # fmt: skip
"""Keys of a configuration that have no part in the heads."""


def config_of(path: Path) -> BandsConfig:
    """Read a configuration of the recipe `bands`."""
    return BandsConfig.from_dict({k: v for k, v in read_toml(path).items() if k != "recipe"})


def trained_on(config: BandsConfig) -> tuple[Row, ...]:
    """List the images of a training, in its order: those that heads were trained on."""
    rows = [row_of(line) for line in read_list() if line["seen_by"] not in NEVER_TRAINED_ON]
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


def scored_views(
    file: DetectorFile, config: BandsConfig
) -> tuple[FeatureTable, NDArray[np.float32], NDArray[np.int64]]:
    """Give the views that a detector file has scores of, the scores (n, G), and the folds (n,).

    Parameters
    ----------
    file
        Of the recipe `bands`, just trained on `trained_on`.
    config
        How it was trained.

    Returns
    -------
    table, scores, folds
        The table is without features.

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
    return table, np.concatenate(similarities), folds[image]


def read_left_out(file: DetectorFile, config: BandsConfig) -> tuple[FeatureTable, BandsFit]:
    """Give the views of `scored_views` and, as if just fitted, their scores.

    The joint number of each fold is learned anew, as the configuration says.
    """
    joint = joint_in(file.calibration or {})
    if joint is None:
        raise SystemExit("the detector has no joint number")
    table, scores, folds = scored_views(file, config)
    ranked = ranked_among(table, config)
    fold_joints = tuple(
        joint_number(scores, table.generators, table.traits, folds != k, ranked, config)
        for k in range(config.folds)
    )
    fit = BandsFit(file.generators, {}, scores, table.traits, {}, joint, fold_joints, folds)
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


def ranked_anew(file: DetectorFile, config: BandsConfig) -> DetectorFile:
    """Give a detector of the same heads and scores that ranks images as a configuration says."""
    table, scores, _ = scored_views(file, config)
    real, ranked = table.generators == REAL, ranked_among(table, config)
    views = ranked_views(table, config)
    everything = np.ones(len(scores), bool)
    joint = joint_number(scores, table.generators, table.traits, everything, ranked, config)
    usual = fit_usual_scores(scores[ranked], table.traits[ranked]) if config.relative else None
    arrays = {k: v for k, v in (file.calibration or {}).items() if not k.startswith("usual_")}
    arrays |= {RANKED_ARRAY: views[real], OWN_RANKED_ARRAY: views[~real]}
    provenance = dict(file.provenance)
    training = asdict(config)
    heads = json.loads(json.dumps(_without(training, RANKING)))
    if heads != _without(provenance["training"], RANKING):
        raise SystemExit("the configuration is not that of the detector's heads")
    provenance["calibration"] = {**provenance["calibration"], **counts_of(table, ranked)}
    provenance["training"] = training
    named = {"name": config.name, "strata": config.division.to_dict()}
    return replace(
        file, calibration=arrays | calibration_arrays(joint, usual),
        config={**file.config, **named}, provenance=provenance, sha256="",
    )  # fmt: skip


def _without(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def main() -> None:
    """Read a detector, rank anew, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--detector", type=Path, default=bundled_path())
    arguments = parser.parse_args()
    config = config_of(arguments.config)
    made = ranked_anew(DetectorFile.load(arguments.detector), config).save(arguments.out)
    print(made.sha256)


if __name__ == "__main__":
    main()

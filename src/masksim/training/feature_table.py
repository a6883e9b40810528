"""From a manifest to the features that heads are fitted to, computed once and kept in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.data.chunks import chunk_folder, chunked_by_source, run_chunks, to_do
from masksim.data.manifest import Manifest, Row, manifest_hash
from masksim.data.views import Purpose, ViewConfig, views_of_file
from masksim.errors import DataError, MasksimError, UsageError
from masksim.features import FeatureConfig, shared_features
from masksim.files import written_whole
from masksim.residual import ResidualConfig, residual_onnx, residual_runner
from masksim.traits import TRAITS, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureTable:
    """Features of the views of a manifest.

    Attributes
    ----------
    features
        float16 (n, C, R, R // 2).
    traits
        float32 (n, T), see `masksim.traits.measure`; the distance is NaN, since it needs heads.
    generators, sources, histories, processing
        str (n,).
    images
        int (n,): number of the image in `rows`.
    rows
        The manifest's rows.
    failures
        Path to error code of images that could not be used.
    """

    features: NDArray[np.float16]
    traits: NDArray[np.float32]
    generators: NDArray[np.str_]
    sources: NDArray[np.str_]
    histories: NDArray[np.str_]
    processing: NDArray[np.str_]
    images: NDArray[np.int64]
    rows: tuple[Row, ...]
    failures: Mapping[str, str]

    @property
    def first(self) -> NDArray[np.bool_]:
        """Tell which views are the first of their image, (n,): of ``"met"`` the file as found."""
        return np.r_[True, self.images[1:] != self.images[:-1]][: len(self.images)]

    def take(self, views: NDArray[Any]) -> FeatureTable:
        """Give some of the views, by number or by a mask (n,)."""
        columns = ("features", "traits", "generators", "sources", "histories", "processing",
                   "images")  # fmt: skip
        return replace(self, **{name: getattr(self, name)[views] for name in columns})


_worker: dict[str, Any] = {}


def _start_worker(graph: bytes) -> None:
    _worker["residual"] = residual_runner("bank", graph, threads=1)


def _work(
    target: str,
    files: Sequence[str],
    rows: Sequence[Row],
    purpose: Purpose,
    config: ViewConfig,
    features: FeatureConfig,
    seed: int,
) -> None:
    """Compute one chunk and write it whole or not at all."""
    out: list[NDArray[np.float16]] = []
    shown: list[NDArray[np.float64]] = []
    facts: list[list[Any]] = []
    failures: dict[str, str] = {}
    residual = _worker["residual"]
    for number, (file, row) in enumerate(zip(files, rows, strict=True)):
        try:
            for _, view in views_of_file(file, row, purpose, config, seed):
                found, windows = shared_features(view.pixels, features, residual)
                out.append(found.astype(np.float16))
                shown.append(measure(view.pixels, windows, quality=view.quality, band=view.band))
                facts.append([number, view.history, ", ".join(view.processing)])
        except MasksimError as error:
            failures[row.path] = error.code
    array = np.stack(out) if out else np.zeros((0, 0, 0, 0), np.float16)
    with written_whole(target) as part:
        np.savez(
            part,
            features=array,
            traits=np.array(shown, np.float32).reshape(len(shown), len(TRAITS)),
            facts=json.dumps([facts, failures]),
        )


def compute_features(
    manifest: Manifest,
    purpose: Purpose,
    cache: str | os.PathLike[str],
    *,
    views_config: ViewConfig,
    feature_config: FeatureConfig,
    seed: int = 0,
    workers: int = 1,
    graph: bytes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureTable:
    """Compute, or read from the cache, the features of all views of a manifest.

    The cache is a folder of small files, each written whole: a run that is killed goes on where it
    was. It is named by everything the features depend on.

    Parameters
    ----------
    manifest
        Which images.
    purpose
        See `masksim.data.views.views`.
    cache
        Folder, made if need be.
    views_config, feature_config, seed
        What the features depend on.
    workers
        Processes.
    graph
        The residual bank as a detector holds it; by default it is written anew, which needs the
        package ``onnx``.
    progress
        Called with (chunks done, chunks in all).

    Returns
    -------
    FeatureTable
        The same whatever the number of workers.

    Raises
    ------
    DataError
        No image could be used.
    UsageError
        There are no first qualities: see `masksim.data.views.measure_first_qualities`.
    """
    if not views_config.first_qualities:
        raise UsageError("the configuration of views has no first qualities to draw from")
    rows = tuple(sorted(manifest.rows, key=lambda row: row.path))
    folder = chunk_folder(
        cache, [purpose, asdict(views_config), asdict(feature_config), TRAITS, seed]
    )
    chunks = chunked_by_source(rows)
    targets = [folder / f"{manifest_hash(chunk)[:24]}.npz" for chunk in chunks]
    todo = [i for i, target in enumerate(targets) if to_do(target, failures_of)]
    jobs = [
        (
            str(targets[i]),
            [str(manifest.file(row)) for row in chunks[i]],
            chunks[i],
            purpose,
            views_config,
            feature_config,
            seed,
        )
        for i in todo
    ]
    graph = graph or residual_onnx(ResidualConfig("bank"), {})
    run_chunks(
        _work, jobs, len(chunks),
        workers=workers, initializer=_start_worker, initargs=(graph,), progress=progress,
    )  # fmt: skip
    return _read_table(rows, chunks, targets)


def failures_of(target: Path) -> dict[str, str]:
    """Read which images of a chunk could not be used: path to error code."""
    with np.load(target, allow_pickle=False) as data:
        failures: dict[str, str] = json.loads(str(data["facts"]))[1]
    return failures


def _read_table(
    rows: tuple[Row, ...], chunks: Sequence[Sequence[Row]], targets: Sequence[Path]
) -> FeatureTable:
    parts: list[NDArray[np.float16]] = []
    shown: list[NDArray[np.float32]] = []
    images: list[int] = []
    kinds: list[str] = []
    processing: list[str] = []
    failures: dict[str, str] = {}
    before = 0
    for chunk, target in zip(chunks, targets, strict=True):
        with np.load(target, allow_pickle=False) as data:
            facts, failed = json.loads(str(data["facts"]))
            if len(facts):
                parts.append(data["features"])
                shown.append(data["traits"])
        failures.update(failed)
        for number, history, done in facts:
            images.append(before + number)
            kinds.append(history)
            processing.append(done)
        before += len(chunk)
    if not parts:
        raise DataError("none of the images could be used", code="manifest_invalid")
    return FeatureTable(
        np.concatenate(parts),
        np.concatenate(shown),
        np.array([rows[i].generator for i in images]),
        np.array([rows[i].source for i in images]),
        np.array(kinds),
        np.array(processing),
        np.array(images, dtype=np.int64),
        rows,
        failures,
    )

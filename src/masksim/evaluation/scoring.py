"""Score images once, and keep the scores: everything that is measured comes from the saved table.

The images of a split are processed in every history they allow (`masksim.data.views.views`)
and scored by the detector that a user has. `score_manifest`, `score_degraded` and `score_peer` make
tables of scores (`masksim.evaluation.score_table`); a run that is killed goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from masksim.augment import rng_for
from masksim.config import Progress, from_plain, staged
from masksim.data.chunks import chunk_folder, chunked, run_chunks, to_do
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.data.processing import View, history_as_found
from masksim.data.views import Purpose, ViewConfig, views_of_file
from masksim.detector import Detector
from masksim.errors import DataError, MasksimError, UsageError
from masksim.evaluation.degrade import GRID, Degradation
from masksim.evaluation.other_detectors import Peer, open_peer
from masksim.evaluation.score_table import FACTS, ScoreTable
from masksim.files import written_whole
from masksim.image import load_image
from masksim.load import load_detector
from masksim.traits import TRAITS

# --- pieces that are kept ------------------------------------------------------------------------

Start = tuple[Callable[..., None], tuple[Any, ...]]
"""What each process calls before it works, and with which values."""


def write_piece(target: str, lines: list[list[Any]], failures: dict[str, str]) -> None:
    """Write what `in_pieces` puts together, whole or not at all."""
    with written_whole(target, "w") as file:
        json.dump([lines, failures], file)


def in_pieces(
    work: Callable[..., object],
    more: tuple[Any, ...],
    manifest: Manifest,
    rows: Sequence[Row],
    *,
    cache: str | os.PathLike[str],
    key: tuple[str, Sequence[Any]],
    workers: int,
    start: Start,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[list[Any]], dict[str, str]]:
    """Work on images in chunks, each kept in a file, and go on where a former run was.

    Parameters
    ----------
    work
        A function of a module, called with (target, files, rows, *more): it ends in `write_piece`.
    more
        Further values for it.
    manifest, rows
        The images, and in which order.
    cache, key
        The chunks lie in a folder of the cache; its name begins with the first part of the key,
        and the second is all that the results depend on.
    workers
        Processes.
    start
        What each of them calls before it works, and with which values.
    progress
        Called with (chunks done, chunks in all).

    Returns
    -------
    lines
        All that was written, in the order of the rows.
    failures
        Path to error code.
    """
    folder = chunk_folder(cache, key[1], prefix=key[0])
    chunks = chunked(rows)
    targets = [folder / f"{i:06d}.json" for i in range(len(chunks))]
    jobs = [
        (str(target), [str(manifest.file(row)) for row in chunk], chunk, *more)
        for target, chunk in zip(targets, chunks, strict=True)
        if to_do(target, _failures_of)
    ]
    run_chunks(
        work, jobs, len(chunks),
        workers=workers, initializer=start[0], initargs=start[1], progress=progress,
    )  # fmt: skip
    lines: list[list[Any]] = []
    failures: dict[str, str] = {}
    for target in targets:
        part, failed = json.loads(target.read_text(encoding="utf-8"))
        lines += part
        failures.update(failed)
    return lines, failures


def _failures_of(target: Path) -> dict[str, str]:
    """Read which images of a chunk could not be scored: path to error code."""
    failures: dict[str, str] = json.loads(target.read_text(encoding="utf-8"))[1]
    return failures


# --- scoring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Views:
    """Which views of an image are scored: those of a purpose, or the whole file, degraded."""

    purpose: Purpose = "evaluate"
    config: ViewConfig = field(default_factory=ViewConfig)
    seed: int = 0
    degradation: str = ""

    def of(self, file: str, row: Row) -> Iterator[tuple[Row, View]]:
        """Give the views of an image file, and its row with the size that it has."""
        if not self.degradation:
            yield from views_of_file(file, row, self.purpose, self.config, self.seed)
            return
        loaded = load_image(file)
        height, width = loaded.pixels.shape[:2]
        sized = replace(row, width=width, height=height, format=row.format or loaded.facts.format)
        rng = rng_for(self.seed, row.key, "degrade", self.degradation)
        history = history_as_found(sized.format)
        one = GRID[self.degradation]
        format, quality = one.saved_as or (loaded.facts.format, loaded.facts.jpeg_quality)
        yield sized, View(one.apply(loaded.pixels, rng), history, (one.name,), quality, format)


# Scores of a view, and after them its traits where they are known.
_worker: dict[str, Callable[[View], Sequence[float]]] = {}


def _start_worker(model: str) -> None:
    detector = load_detector(model, threads=1)

    def score(view: View) -> Sequence[float]:
        similarities, traits = detector.measure_pixels(view.pixels, view.quality, view.format)
        return [*similarities.tolist(), *traits.tolist()]

    _worker["score"] = score


def _lend(peer: Peer) -> None:
    _worker["score"] = lambda view: peer.score([view.pixels])


def _work(target: str, files: Sequence[str], rows: Sequence[Row], views: _Views) -> None:
    """Score one chunk of images and write it whole or not at all."""
    score = _worker["score"]
    lines: list[list[Any]] = []
    failures: dict[str, str] = {}
    for file, row in zip(files, rows, strict=True):
        try:
            for sized, view in views.of(file, row):
                facts = [
                    row.path, row.generator, row.source, view.history, sized.format,
                    ", ".join(view.processing),
                ]  # fmt: skip
                lines.append([*facts, *score(view)])
        except MasksimError as error:
            if error.code == "peer_failed":  # nor will it score any other
                raise
            failures[row.path] = error.code
    write_piece(target, lines, failures)


def _score(
    manifest: Manifest,
    columns: tuple[str, ...],
    views: _Views,
    key: Sequence[Any],
    *,
    cache: str | os.PathLike[str],
    workers: int,
    start: Start,
    progress: Callable[[int, int], None] | None,
) -> ScoreTable:
    """Score all views in chunks that are kept under a key; the table may be empty."""
    rows = sorted(manifest.rows, key=lambda row: row.path)
    lines, failures = in_pieces(
        _work, (views,), manifest, rows,
        cache=cache, key=("scores-", key), workers=workers, start=start, progress=progress,
    )  # fmt: skip
    facts = [np.array([line[i] for line in lines], dtype=np.str_) for i in range(len(FACTS))]
    width = len(lines[0]) - len(FACTS) if lines else len(columns)
    numbers = np.array([line[len(FACTS) :] for line in lines], dtype=np.float64)
    scores, traits = np.hsplit(numbers.reshape(len(lines), width), [len(columns)])
    return ScoreTable(
        facts[0], facts[1], facts[2], facts[3], facts[4], facts[5],
        columns, scores, failures, traits if traits.shape[1] else None,
    )  # fmt: skip


def score_manifest(
    model: str | os.PathLike[str],
    manifest: Manifest,
    *,
    cache: str | os.PathLike[str],
    purpose: Purpose = "evaluate",
    config: ViewConfig | None = None,
    seed: int = 0,
    workers: int = 1,
    stage: str = "scores",
    progress: Progress | None = None,
) -> ScoreTable:
    """Score every view of a manifest's images.

    Parameters
    ----------
    model
        Folder of a detector.
    manifest
        Which images: usually one split.
    cache
        Folder of finished chunks; a run that is killed goes on where it was.
    purpose
        ``"evaluate"``, or ``"as found"``: one view an image, without processing.
    config
        How views are drawn; by default as the detector was trained, else the defaults.
    seed
        Of the processing.
    workers
        Processes.
    progress
        Called with (chunks done, chunks in all).

    Returns
    -------
    ScoreTable
        The same whatever the number of workers.

    Raises
    ------
    ModelError
        The detector cannot be loaded.
    DataError
        No image could be scored.
    """
    detector = load_detector(model, threads=1)
    views = _Views(purpose, config or views_of(detector), seed)
    key = [detector.file.scores_sha256, _hash(manifest), asdict(views.config), TRAITS, seed]
    if purpose != "evaluate":
        key.append(purpose)
    table = _score(
        manifest, detector.generators, views, key, cache=cache, workers=workers,
        start=(_start_worker, (os.fspath(model),)), progress=staged(progress, stage),
    )  # fmt: skip
    if not len(table.typ):
        raise DataError("none of the images could be scored", code="manifest_invalid")
    return table


def _hash(manifest: Manifest) -> str:
    return manifest_hash(sorted(manifest.rows, key=lambda row: row.path))


def score_degraded(
    model: str | os.PathLike[str],
    manifest: Manifest,
    degradations: Sequence[Degradation],
    *,
    cache: str | os.PathLike[str],
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, ScoreTable]:
    """Score whole images, as they were found, after each of some degradations.

    Parameters
    ----------
    model, cache, workers
        As in `score_manifest`. Each degradation has finished chunks of its own.
    manifest
        Which images, see `bounded`.
    degradations
        From `masksim.evaluation.degrade.select`.
    seed
        Of what is drawn, together with each image's content.
    progress
        Called with (name of the degradation, chunks done, chunks in all).

    Returns
    -------
    dict
        By name of the degradation. Images that became too small are among the failures.
    """
    detector = load_detector(model, threads=1)
    known = [detector.file.scores_sha256, _hash(manifest), "degraded"]
    return {
        one.name: _score(
            manifest, detector.generators,
            _Views("as found", seed=seed, degradation=one.name),
            [*known, one.name, one.does, one.saved_as, TRAITS, seed],
            cache=cache, workers=workers, start=(_start_worker, (os.fspath(model),)),
            progress=staged(progress, one.name),
        )
        for one in degradations
    }  # fmt: skip


def score_peer(
    spec: str,
    manifest: Manifest,
    *,
    cache: str | os.PathLike[str],
    config: ViewConfig,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScoreTable:
    """Let another detector score the views that `score_manifest` has ours score.

    Parameters
    ----------
    spec
        ``NAME=...``, see `masksim.evaluation.other_detectors.open_peer`. Finished chunks are kept
        by this text: take a fresh `cache` after what it names has changed.
    manifest, cache, config, seed
        As in `score_manifest`; all in this process.
    progress
        Called with (``"peer NAME"``, chunks done, chunks in all).

    Returns
    -------
    ScoreTable
        One column, NAME. Images that the peer refused are among the failures.

    Raises
    ------
    PeerError
        The peer cannot be used at all.
    DataError
        It scored no image.
    """
    with open_peer(spec) as peer:
        table = _score(
            manifest, (peer.name,), _Views("evaluate", config, seed),
            ["peer", spec, _hash(manifest), asdict(config), seed],
            cache=cache, workers=1, start=(_lend, (peer,)),
            progress=staged(progress, f"peer {peer.name}"),
        )  # fmt: skip
    _worker.pop("score", None)
    if not len(table.typ):
        reasons = ", ".join(sorted(set(table.failures.values())))
        raise DataError(f"{peer.name} has scored none of the images ({reasons})")
    return table


# --- which images, and how -----------------------------------------------------------------------


def bounded(
    manifest: Manifest, per_class: int, *, reals: int | None = None, seed: int = 0
) -> Manifest:
    """Choose at most so many images of each class, the same ones each time.

    Sources take turns, so that a large one does not crowd out the others.

    Parameters
    ----------
    manifest
        What to choose from.
    per_class
        Images of each generator, and of real photos.
    reals
        Real photos, if their number is to be another one.
    seed
        Of the choice.

    Raises
    ------
    UsageError
        A number is not positive.
    """
    numbers = {REAL: per_class if reals is None else reals}
    if per_class < 1 or numbers[REAL] < 1:
        raise UsageError(f"at least one image a class is needed, got {per_class}")
    kept: list[Row] = []
    for generator in sorted({row.generator for row in manifest.rows}):
        drawn: dict[str, list[tuple[float, Row]]] = {}
        for row in manifest.rows:
            if row.generator == generator:
                place = float(rng_for(seed, "bounded", row.key).random())
                drawn.setdefault(row.source, []).append((place, row))
        turns = [
            (turn, place, row)
            for rows in drawn.values()
            for turn, (place, row) in enumerate(sorted(rows, key=lambda item: item[0]))
        ]
        count = numbers.get(generator, per_class)
        kept += [row for _, _, row in sorted(turns, key=lambda item: item[:2])[:count]]
    return Manifest(tuple(kept), manifest.root)


def views_of(detector: Detector) -> ViewConfig:
    """Return how the detector's training drew views; the defaults where its file does not say."""
    training = detector.file.provenance.get("training")
    if isinstance(training, Mapping) and "views" in training:
        return from_plain(ViewConfig, training["views"], "views")
    return ViewConfig()  # of the recipe `original`, too, which has none


def seen_in_training(manifest: Manifest) -> frozenset[tuple[str, str]]:
    """Return the (generator, source) pairs of the training split."""
    return frozenset((row.generator, row.source) for row in manifest.select("train").rows)

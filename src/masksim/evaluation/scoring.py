"""Measure a detector: score once, save, then compute every figure from the saved table.

The images of a split are processed in every history they allow (`masksim.data.views.views`),
scored by the detector that a user has, and the scores saved with what was done to each. All
measures weigh both classes to the same shares of histories, and bootstrap intervals
draw whole sources where there are enough of them.

`score_manifest`, `score_degraded` and `score_peer` make tables of scores, `read_scores` and
`read_original_scores` read saved ones; `measure_table` and `measure_degradations` make the tables
of docs/evaluate.md of them; `measure` and `measure_as_found` the figures of the model card.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import metrics
from masksim.augment import rng_for
from masksim.config import from_plain
from masksim.data.manifest import REAL, Manifest, Row, manifest_hash
from masksim.data.views import HISTORIES, Purpose, ViewConfig, views_of_file
from masksim.data.ways import View, history_as_found
from masksim.detector import Detector, load_detector
from masksim.errors import DataError, MasksimError, UsageError
from masksim.evaluation import protocols
from masksim.evaluation.degrade import GRID, Degradation
from masksim.evaluation.other_detectors import Peer, open_peer
from masksim.evaluation.protocols import FACTS, Protocol, Scale
from masksim.evaluation.protocols import ScoreTable as ScoreTable
from masksim.image import load_image
from masksim.populations import Populations
from masksim.show.tables import Column, Interval, Table
from masksim.training.chunks import chunked, run_chunks
from masksim.training.weights import history_weights
from masksim.traits import TRAITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Progress = Callable[[int, int], None]

# --- scoring -----------------------------------------------------------------------------------

# Scores of a view, and after them its traits where they are known.
_worker: dict[str, Callable[[View], Sequence[float]]] = {}
_LASTING = {"too_small"}  # failures that the next run would meet again


def _start_worker(model: str) -> None:
    detector = load_detector(model, threads=1)

    def score(view: View) -> Sequence[float]:
        similarities, traits = detector.measure_pixels(view.pixels, view.quality, view.format)
        return [*similarities.tolist(), *traits.tolist()]

    _worker["score"] = score


def _lend(peer: Peer) -> None:
    _worker["score"] = lambda view: peer.score([view.pixels])


def _degraded(file: str, row: Row, name: str, seed: int) -> Iterator[tuple[Row, View]]:
    """Degrade one whole image as it was found."""
    loaded = load_image(file)
    height, width = loaded.pixels.shape[:2]
    sized = replace(row, width=width, height=height, format=row.format or loaded.facts.format)
    rng = rng_for(seed, row.key, "degrade", name)
    history = history_as_found(sized.format)
    one = GRID[name]
    format, quality = one.saved_as or (loaded.facts.format, loaded.facts.jpeg_quality)
    yield sized, View(one.apply(loaded.pixels, rng), history, (name,), quality, format)


def _work(
    target: str,
    files: Sequence[str],
    rows: Sequence[Row],
    purpose: Purpose,
    config: ViewConfig,
    seed: int,
    degradation: str,
) -> str:
    """Score one chunk of images and write it whole or not at all."""
    score = _worker["score"]
    lines: list[list[Any]] = []
    failures: dict[str, str] = {}
    for file, row in zip(files, rows, strict=True):
        try:
            for sized, view in (
                _degraded(file, row, degradation, seed)
                if degradation
                else views_of_file(file, row, purpose, config, seed)
            ):
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
    return target


def write_piece(target: str, lines: list[list[Any]], failures: dict[str, str]) -> None:
    """Write what `in_pieces` puts together, whole or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", dir=Path(target).parent, suffix=".part", delete=False, encoding="utf-8"
    ) as part:
        json.dump([lines, failures], part)
    os.replace(part.name, target)


def in_pieces(
    work: Callable[..., object],
    more: tuple[Any, ...],
    manifest: Manifest,
    rows: Sequence[Row],
    *,
    cache: str | os.PathLike[str],
    prefix: str,
    key: Sequence[Any],
    workers: int,
    initializer: Callable[..., None],
    initargs: tuple[Any, ...],
    progress: Progress | None,
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
    cache, prefix, key
        The chunks lie in a folder of the cache that is named by all that they depend on.
    workers, initializer, initargs, progress
        See `masksim.training.chunks.run_chunks`.

    Returns
    -------
    lines
        All that was written, in the order of the rows.
    failures
        Path to error code.
    """
    text = json.dumps(key, sort_keys=True)
    folder = Path(cache) / (prefix + hashlib.sha256(text.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    chunks = chunked(rows)
    targets = [folder / f"{i:06d}.json" for i in range(len(chunks))]
    jobs = [
        (str(target), [str(manifest.file(row)) for row in chunk], chunk, *more)
        for target, chunk in zip(targets, chunks, strict=True)
        if _to_do(target)
    ]
    run_chunks(
        work, jobs, len(chunks),
        workers=workers, initializer=initializer, initargs=initargs, progress=progress,
    )  # fmt: skip
    lines: list[list[Any]] = []
    failures: dict[str, str] = {}
    for target in targets:
        part, failed = json.loads(target.read_text(encoding="utf-8"))
        lines += part
        failures.update(failed)
    return lines, failures


def _to_do(target: Path) -> bool:
    """Whether a chunk is missing, or has images that may be there, or whole, by now."""
    if not target.exists():
        return True
    failures = json.loads(target.read_text(encoding="utf-8"))[1]
    return any(code not in _LASTING for code in failures.values())


def _score(
    manifest: Manifest,
    columns: tuple[str, ...],
    key: Sequence[Any],
    *,
    cache: str | os.PathLike[str],
    purpose: Purpose,
    config: ViewConfig,
    seed: int,
    degradation: str = "",
    workers: int,
    initializer: Callable[..., None],
    initargs: tuple[Any, ...],
    progress: Progress | None,
) -> ScoreTable:
    """Score all views in chunks that are kept under a key; the table may be empty."""
    lines, failures = in_pieces(
        _work, (purpose, config, seed, degradation),
        manifest, sorted(manifest.rows, key=lambda row: row.path),
        cache=cache, prefix="scores-", key=key,
        workers=workers, initializer=initializer, initargs=initargs, progress=progress,
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
    if config is None:
        config = views_of(detector)
    key = [detector.file.scores_sha256, _hash(manifest), asdict(config), TRAITS, seed]
    if purpose != "evaluate":
        key.append(purpose)
    table = _score(
        manifest, detector.generators, key, cache=cache, purpose=purpose, config=config, seed=seed,
        workers=workers, initializer=_start_worker, initargs=(os.fspath(model),),
        progress=progress,
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
    progress: Callable[[str, int, int], None] | None = None,
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
    out = {}
    for one in degradations:

        def tell(done: int, count: int, name: str = one.name) -> None:
            if progress:
                progress(name, done, count)

        out[one.name] = _score(
            manifest, detector.generators,
            [
                detector.file.scores_sha256, _hash(manifest), "degraded", one.name, one.does,
                one.saved_as, TRAITS, seed,
            ],
            cache=cache, purpose="as found", config=ViewConfig(), seed=seed,
            degradation=one.name, workers=workers, initializer=_start_worker,
            initargs=(os.fspath(model),), progress=tell,
        )  # fmt: skip
    return out


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
    manifest, cache, config, seed, progress
        As in `score_manifest`; all in this process.

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
            manifest, (peer.name,), ["peer", spec, _hash(manifest), asdict(config), seed],
            cache=cache, purpose="evaluate", config=config, seed=seed,
            workers=1, initializer=_lend, initargs=(peer,), progress=progress,
        )  # fmt: skip
    _worker.pop("score", None)
    if not len(table.typ):
        reasons = ", ".join(sorted(set(table.failures.values())))
        raise DataError(f"{spec.partition('=')[0]} has scored none of the images ({reasons})")
    return table


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


def scale_of(detector: Detector) -> Scale:
    """Return what a detector's similarities mean: probabilities, and rates where calibrated."""
    parts = []
    for branch in detector.file.branches:
        names = ("clf_a", "clf_b") if branch.head == "original" else ("a", "b")
        pair = [np.asarray(branch.tensors[name], dtype=np.float64) for name in names]
        if branch.head != "bands":
            pair = [values.reshape(1, -1) for values in pair]
        parts.append(pair)
    bands = max(len(values) for pair in parts for values in pair)
    a, b = (
        np.concatenate(
            [np.broadcast_to(values, (bands, values.shape[1])) for values in column], axis=1
        )
        for column in zip(*parts, strict=True)
    )
    return Scale(
        detector.generators, np.exp(a), b,
        calibration=Populations(detector.calibrations) if detector.calibrations else None,
        attribution=detector.attribution,
    )  # fmt: skip


def _calibration(detector: Detector) -> Populations:
    """Return the calibrations to measure: all that verdicts rank among.

    Raises
    ------
    DataError
        There is none.
    """
    if not detector.calibrations:
        raise DataError("only a calibrated detector can be measured in full")
    return Populations(detector.calibrations)


def weighing(table: ScoreTable, shares: Mapping[str, float]) -> protocols.Weigh:
    """Return how the views of a table are weighed: by histories, or alike where not known."""
    if not set(table.histories.tolist()) <= set(HISTORIES):
        return protocols.equal_views
    return lambda histories, classes: history_weights(histories, classes, shares)


# --- saved scores ------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str]) -> str:
    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_scores(path: str | os.PathLike[str]) -> ScoreTable:
    """Read a saved table, see `ScoreTable.from_csv`; it may be packed by gzip.

    Raises
    ------
    DataError
        It cannot be read, or is no table of scores.
    """
    return ScoreTable.from_csv(_read(path))


def read_real_scores(
    path: str | os.PathLike[str], generators: Sequence[str]
) -> NDArray[np.float64]:
    """Read the scores of calibration photos: of rows with ``typ`` real, or all without that column.

    Parameters
    ----------
    path
        CSV, packed or not: a ``scores.csv`` of other photos, or the original's published scores.
    generators
        Columns wanted.

    Returns
    -------
    ndarray
        float64 (n, G).

    Raises
    ------
    DataError
        A column is missing, a score is no finite number, or there is no real photo.
    """
    reader = csv.DictReader(io.StringIO(_read(path)))
    rows = [row for row in reader if row.get("typ", REAL) == REAL]
    found = reader.fieldnames or []
    if missing := [name for name in generators if name not in found]:
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(found)}")
    try:
        scores = np.array([[float(row[name]) for name in generators] for row in rows])
    except (TypeError, ValueError) as error:
        raise DataError(f"a score in {path} is not a number: {error}") from error
    if not scores.size or not np.isfinite(scores).all():
        raise DataError(f"{path} has no finite scores of real photos")
    return scores


def read_original_scores(folder: str | os.PathLike[str]) -> ScoreTable:
    """Read a score folder of the original's ``evaluate.py``.

    Parameters
    ----------
    folder
        ``output/score/<checkpoints>/<data>/<training set>``, or one above, if only one of that
        kind lies in it. Its files are ``<test>_to_<trained>.json``, a list of (file name,
        probability); where there is only the ``.txt``, images are named by their number.

    Returns
    -------
    ScoreTable
        Of probabilities, histories not known.

    Raises
    ------
    DataError
        There is no such folder or more than one, a file is missing or cannot be read.
    """
    top = Path(folder)
    leaves = sorted(
        {p.parent for ext in ("json", "txt") for p in top.rglob(f"real_to_*.{ext}") if p.is_file()}
    )
    if len(leaves) != 1:
        found = ", ".join(str(leaf.relative_to(top)) for leaf in leaves)
        raise DataError(
            f"{top} must hold one folder of scores with real_to_*.json or .txt; found "
            + (found or "none")
        )
    leaf = leaves[0]
    trained = sorted({p.stem.removeprefix("real_to_") for p in leaf.glob("real_to_*.*")})
    pairs: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for path in sorted(leaf.glob("*_to_*.*")):
        for name in trained:
            test = path.stem.removesuffix(f"_to_{name}")
            if test == path.stem or path.suffix not in (".json", ".txt"):
                continue
            if path.suffix == ".txt" and path.with_suffix(".json").exists():
                continue
            pairs.setdefault(test, {})[name] = _original_file(path, test)
    return protocols.read_original(pairs)


def _original_file(path: Path, test: str) -> list[tuple[str, float]]:
    text = _read(path)
    try:
        if path.suffix == ".json":
            return [(str(name), float(score)) for name, score in json.loads(text)]
        return [(f"{test}/{i:05d}", float(x)) for i, x in enumerate(text.split())]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a list of scores: {error}") from error


# --- the tables of docs/evaluate.md --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Results:
    """What was measured.

    Attributes
    ----------
    data
        By name of the table; numbers as `Interval`. `masksim.evaluation.protocols.plain` makes JSON
        of it.
    tables
        The same to be read.
    """

    data: Mapping[str, Any]
    tables: tuple[Table, ...]

    def __add__(self, other: Results) -> Results:
        """Put the results of both together."""
        return Results({**self.data, **other.data}, self.tables + other.tables)


def measure_table(
    table: ScoreTable,
    scale: Scale,
    *,
    chosen: Sequence[Protocol] = protocols.PROTOCOLS,
    shares: Mapping[str, float] | None = None,
    seen: frozenset[tuple[str, str]] = frozenset(),
    peers: Sequence[str] = (),
    name: str = "masksim",
    samples: int = 500,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Measure a table of scores: protocols, confusion, break-downs, second opinions.

    Parameters
    ----------
    table
        Columns of the scale's generators, and of the peers.
    scale
        From `scale_of`, or `Scale.of_table` where the detector is not at hand.
    chosen
        Protocols.
    shares
        Of histories, by default those of `ViewConfig`; no matter for tables without histories.
    seen
        (generator, source) pairs that training had: a table of its own leaves their images out.
    peers
        Columns that are other detectors' scores.
    name
        Of the detector, beside the peers.
    samples
        Bootstrap samples.
    progress
        Called with (part, done, all).

    Returns
    -------
    Results

    Raises
    ------
    DataError
        The table cannot be measured, see `masksim.evaluation.protocols.check`.
    """
    weigh = weighing(table, ViewConfig().shares if shares is None else shares)
    own = table.only(scale.generators)
    protocols.check(own)
    data: dict[str, Any] = {}
    tables: list[Table] = []

    def run(key: str, protocol: Protocol, part: ScoreTable) -> None:
        def tell(done: int, count: int) -> None:
            if progress:
                progress(key, done, count)

        data[key] = protocols.run_protocol(
            part, scale, protocol, weigh=weigh, samples=samples, progress=tell
        )
        if data[key]["rows"]:
            tables.append(protocols.protocol_table(key, data[key]))

    for protocol in chosen:
        run(protocol, protocol, own)
        if protocol == "specific" and seen:
            pairs = zip(own.typ.tolist(), own.sources.tolist(), strict=True)
            unseen = own.select(np.array([t == REAL or (t, s) not in seen for t, s in pairs]))
            if protocols.tested(unseen):
                run("unseen", protocol, unseen)
    if progress:
        progress("break-downs", 0, 1)
    data["confusion"] = protocols.confusion(own, scale, weigh=weigh)
    tables.append(protocols.confusion_table(data["confusion"]))
    for by in protocols.BREAKDOWNS:
        rows = protocols.break_down(own, scale, by, weigh=weigh, samples=samples)
        if len(rows) > 1:
            data[f"by {by}"] = rows
            tables.append(protocols.breakdown_table(by, rows))
    if len(set(own.histories.tolist())) > 1 and scale.calibration is not None:
        joint = scale.calibration.all_rates(own.similarities, own.traits)[1]
        data["histories"] = _histories(own, joint, samples)
        tables += _histories_tables(data["histories"])
    if peers:
        data["second opinions"] = protocols.second_opinions(
            table, scale, peers, name=name, weigh=weigh, samples=samples
        )
        tables.append(protocols.second_opinions_table(data["second opinions"]))
    if progress:
        progress("break-downs", 1, 1)
    return Results(data, tuple(tables))


def _histories_tables(found: Mapping[str, Any]) -> list[Table]:
    pairs = tuple(
        (*(part.split()[0] for part in name.split(", ")), row["synthetic"], row["real"],
         float(row["auroc"]))
        for name, row in found["pairs"].items()
    )  # fmt: skip
    out = [
        Table(
            "history-pairs",
            "Every history of the synthetic against every history of the real views, all heads",
            (
                Column("synthetic_history", "synthetic views"),
                Column("real_history", "real views"),
                Column("synthetic", "synthetic"), Column("real", "real"), Column("auroc", "AUROC"),
            ),
            pairs,
        )
    ]  # fmt: skip
    if found["reals"]:
        out.append(
            Table(
                "real-histories",
                "Histories of real photos told apart: 0.5 is right",
                (
                    Column("histories", "real photos alone"), Column("images", "images"),
                    Column("sources", "sources"), Column("auroc", "AUROC"),
                ),
                tuple(
                    (name, row["images"], row["sources"],
                     Interval(row["value"], row["low"], row["high"]))
                    for name, row in found["reals"].items()
                ),
            )
        )  # fmt: skip
    return out


def measure_degradations(
    tables: Mapping[str, ScoreTable],
    scale: Scale,
    *,
    samples: int = 500,
    progress: Progress | None = None,
) -> Results:
    """Measure the scores of `score_degraded`.

    Returns
    -------
    Results
        ``degradations``: by name, see `masksim.evaluation.protocols.degradation`, with the images
        that could not be scored.
    """
    rows: dict[str, Any] = {}
    for k, (name, table) in enumerate(tables.items()):
        if progress:
            progress(k, len(tables))
        rows[name] = protocols.degradation(table, scale, samples=samples)
        rows[name]["failures"] = dict(table.failures)
        rows[name]["family"], rows[name]["does"] = GRID[name].family, GRID[name].does
    if progress:
        progress(len(tables), len(tables))
    return Results({"degradations": rows}, (protocols.degradations_table(rows),))


# --- the figures of the model card --------------------------------------------------------------


def _measures(
    scores: NDArray[np.float64],
    synthetic: NDArray[np.bool_],
    histories: NDArray[np.str_],
    images: NDArray[np.str_],
    sources: NDArray[np.str_],
    shares: Mapping[str, float],
    samples: int,
) -> dict[str, Any]:
    """AUROC, and TPR at 1 % and 5 % FPR, histories matched.

    Intervals draw whole sources; of a generator with fewer than three, images.
    """
    weights = history_weights(histories, [synthetic, ~synthetic], shares)
    used = weights > 0
    s, y, w, g = scores[used], synthetic[used], weights[used], images[used]
    collections = sources[used]
    groups, few = metrics.draw_together(y, g, collections)
    measured: dict[str, Any] = {
        "synthetic_images": len(np.unique(g[y])),
        "synthetic_sources": len(np.unique(collections[y])),
        "real_images": len(np.unique(g[~y])),
        "interval": "over images" if few else "over sources",
    }
    for name, statistic in (
        ("auroc", metrics.auroc),
        ("tpr_at_fpr_1", lambda a, b, c: metrics.tpr_at_fpr(a, b, c, fpr=0.01)),
        ("tpr_at_fpr_5", lambda a, b, c: metrics.tpr_at_fpr(a, b, c, fpr=0.05)),
    ):
        measured[name] = asdict(
            metrics.bootstrap(statistic, s, y, w, groups=groups, samples=samples)
        )
    return measured


def measure(
    table: ScoreTable,
    detector: Detector,
    *,
    shares: Mapping[str, float],
    seen: frozenset[tuple[str, str]] = frozenset(),
    samples: int = 500,
) -> dict[str, Any]:
    """All figures of the model card.

    Parameters
    ----------
    table
        From `score_manifest`.
    detector
        Calibrated: gives the joint rate.
    shares
        Of histories, see `masksim.data.views.ViewConfig`.
    seen
        (generator, source) pairs that training had: their images are left out of the ``unseen``
        figures.
    samples
        Bootstrap samples.

    Returns
    -------
    dict
        Plain values for JSON.
    """
    joint = _calibration(detector).all_rates(table.similarities, table.traits)[1]
    real = table.typ == REAL
    if not real.any() or not np.isin(table.typ, table.generators).any():
        raise DataError(
            f"the images are of {', '.join(sorted(set(table.typ.tolist())))}; needed are {REAL!r} "
            f"and at least one of the detector's generators: {', '.join(table.generators)}",
            code="manifest_invalid",
        )
    known = np.array([(t, s) in seen for t, s in zip(table.typ, table.sources, strict=True)])
    out: dict[str, Any] = {
        "images": {
            t: len(np.unique(table.filenames[table.typ == t])) for t in np.unique(table.typ)
        },
        "failures": dict(table.failures),
        "shares": dict(shares),
        "specific": {},
        "unseen": {},
        "generic": {},
    }
    for g, generator in enumerate(table.generators):
        own = table.typ == generator
        for kind, chosen in (("specific", own), ("unseen", own & ~known)):
            if not chosen.any():
                continue
            rows = chosen | real
            out[kind][generator] = _measures(
                table.similarities[rows, g], chosen[rows], table.histories[rows],
                table.filenames[rows], table.sources[rows], shares, samples,
            )  # fmt: skip
        if own.any():
            rows = own | real
            out["generic"][generator] = _measures(
                -np.log(joint[rows]), own[rows], table.histories[rows], table.filenames[rows],
                table.sources[rows], shares, samples,
            )  # fmt: skip
    out["mean"] = {
        kind: {
            name: float(np.mean([row[name]["value"] for row in out[kind].values()]))
            for name in ("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5")
        }
        for kind in ("specific", "unseen", "generic")
        if out[kind]
    }
    validated = detector.file.provenance.get("cross_validated_auroc", {})
    out["cross_validated_auroc"] = dict(validated) if isinstance(validated, Mapping) else {}
    out["histories"] = _histories(table, joint)
    out["false_alarms"] = _false_alarms(table, joint)
    out["attribution"] = _attribution(table, detector, joint)
    return out


def _histories(table: ScoreTable, joint: NDArray[np.float64], samples: int = 500) -> dict[str, Any]:
    """AUROC of the generic score for each pair of histories, and among reals alone."""
    real = table.typ == REAL
    known = np.isin(table.typ, table.generators)
    evidence = -np.log(joint)
    pairs = {}
    for ours in np.unique(table.histories[known]):
        for theirs in np.unique(table.histories[real]):
            rows = (known & (table.histories == ours)) | (real & (table.histories == theirs))
            pairs[f"{ours} synthetic, {theirs} real"] = {
                "auroc": metrics.auroc(evidence[rows], known[rows]),
                "synthetic": int((rows & known).sum()),
                "real": int((rows & real).sum()),
            }
    among = {}
    for history in ("lossless", "reduced"):
        rows = real & np.isin(table.histories, ("jpeg", history))
        if len(np.unique(table.histories[rows])) < 2:
            continue
        # Lossless files come from few sources, so that whole sources are drawn.
        among[f"{history} against jpeg reals"] = {
            **asdict(
                metrics.bootstrap(
                    metrics.auroc, evidence[rows], table.histories[rows] == history,
                    groups=table.sources[rows], samples=samples,
                )
            ),
            "images": int((table.histories[rows] == history).sum()),
            "sources": len(np.unique(table.sources[rows & (table.histories == history)])),
        }  # fmt: skip
    # The same lossless photos with and without a first JPEG: no difference of sources.
    both = np.isin(table.filenames, table.filenames[real & (table.histories == "lossless")])
    rows = real & both & np.isin(table.histories, ("jpeg", "lossless"))
    if len(np.unique(table.histories[rows])) == 2:  # of files as found there is one view each
        among["lossless against a first JPEG, the same photos"] = {
            **asdict(
                metrics.bootstrap(
                    metrics.auroc, evidence[rows], table.histories[rows] == "lossless",
                    groups=table.sources[rows], samples=samples,
                )
            ),
            "images": len(np.unique(table.filenames[rows])),
            "sources": len(np.unique(table.sources[rows])),
        }  # fmt: skip
    return {"pairs": pairs, "reals": among}


def measure_as_found(table: ScoreTable, detector: Detector) -> dict[str, Any]:
    """Share of the images whose joint rate is at most 1 %, 5 % and 10 %, files as they were found.

    Parameters
    ----------
    table
        From `score_manifest` with the purpose ``"as found"``.
    detector
        Calibrated.

    Returns
    -------
    dict
        By generator, and ``"real"``: number of images, and counts by rate.
    """
    joint = _calibration(detector).all_rates(table.similarities, table.traits)[1]
    return {
        typ: {
            "images": int((table.typ == typ).sum()),
            "found": {
                f"{q:g}": int((joint[table.typ == typ] <= q).sum()) for q in (0.01, 0.05, 0.1)
            },
        }
        for typ in np.unique(table.typ).tolist()
    }


def as_found_markdown(measured: Mapping[str, Any]) -> str:
    """Write the counts of `measure_as_found` as a Markdown table."""
    lines = ["| images | n | joint FPR <= 1 % | <= 5 % | <= 10 % |", "|---|---|---|---|---|"]
    for typ, row in measured.items():
        shares = (f"{100 * row['found'][q] / row['images']:.0f} %" for q in ("0.01", "0.05", "0.1"))
        lines.append(f"| {typ} | {row['images']} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _false_alarms(table: ScoreTable, joint: NDArray[np.float64]) -> dict[str, Any]:
    """Share of real views with a joint rate of at most 1 %, 5 % and 10 %, by source."""
    real = table.typ == REAL

    def row(mask: NDArray[np.bool_]) -> dict[str, Any]:
        n = int(mask.sum())
        images = len(np.unique(table.filenames[mask]))
        counts = {f"{q:g}": int((joint[mask] <= q).sum()) for q in (0.01, 0.05, 0.10)}
        return {"views": n, "images": images, "alarms": counts}

    sources = {s: row(real & (table.sources == s)) for s in np.unique(table.sources[real]).tolist()}
    return {
        "all": row(real),
        "by_history": {
            h: row(real & (table.histories == h)) for h in np.unique(table.histories[real]).tolist()
        },
        "by_source": dict(sorted(sources.items(), key=lambda item: -item[1]["views"])),
    }


def _attribution(
    table: ScoreTable, detector: Detector, joint: NDArray[np.float64]
) -> dict[str, dict[str, int]]:
    """For the views of each generator with evidence, how often which generator is named."""
    found = protocols.confusion(
        table.select(joint <= protocols.EVIDENCE),
        scale_of(detector),
        weigh=lambda histories, classes: np.sum(classes, axis=0, dtype=np.float64),
    )
    return {
        generator: {name: round(count) for name, count in row["named"].items()}
        for generator, row in found.items()
        if generator != REAL
    }


# --- its tables ----------------------------------------------------------------------------------


def _interval(estimate: Mapping[str, float], digits: int = 2) -> str:
    return (
        f"{estimate['value']:.{digits}f} "
        f"[{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
    )


def to_markdown(measured: Mapping[str, Any]) -> str:
    """Write the figures of `measure` as Markdown tables."""
    validated = measured["cross_validated_auroc"]
    lines = [
        "| generator | images (sources) | AUROC | AUROC, unseen sources (images) | cross-validated "
        "AUROC | TPR at 1 % FPR | TPR at 5 % FPR | joint AUROC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for generator, row in measured["specific"].items():
        unseen = measured["unseen"].get(generator)
        mark = "" if row["interval"] == "over sources" else "\\*"
        lines.append(
            f"| {generator} | {row['synthetic_images']} ({row['synthetic_sources']}) | "
            f"{_interval(row['auroc'])}{mark} | "
            + (f"{_interval(unseen['auroc'])} ({unseen['synthetic_images']})" if unseen else "none")
            + (f" | {validated[generator]:.2f}" if generator in validated else " | ")
            + f" | {_interval(row['tpr_at_fpr_1'])} | {_interval(row['tpr_at_fpr_5'])} | "
            f"{_interval(measured['generic'][generator]['auroc'])} |"
        )
    mean = measured["mean"]

    def value(kind: str, name: str) -> str:
        return f"{mean[kind][name]:.3f}" if kind in mean else "none"

    own = [validated[g] for g in measured["specific"] if g in validated]
    lines.append(
        f"| **mean** | | **{value('specific', 'auroc')}** | **{value('unseen', 'auroc')}** of "
        f"{len(measured['unseen'])} | {np.mean(own) if own else float('nan'):.3f} | "
        f"{value('specific', 'tpr_at_fpr_1')} | {value('specific', 'tpr_at_fpr_5')} | "
        f"{value('generic', 'auroc')} |"
    )
    return "\n".join(lines)


def summary_markdown(measured: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Write the short table: AUROC, and what the verdicts say of files as found."""
    lines = [
        "| made by | images | AUROC | AUROC, unseen sources (images) | strong evidence | "
        "evidence or stronger |",
        "|---|---|---|---|---|---|",
    ]

    def shares(row: Mapping[str, Any]) -> str:
        return " | ".join(
            f"{100 * row['found'][q] / row['images']:.0f} %" for q in ("0.01", "0.05")
        )

    for generator, row in measured["specific"].items():
        unseen = measured["unseen"].get(generator)
        lines.append(
            f"| {generator} | {row['synthetic_images']} | {row['auroc']['value']:.2f} | "
            + (
                f"{unseen['auroc']['value']:.2f} ({unseen['synthetic_images']})"
                if unseen
                else "none"
            )
            + f" | {shares(found[generator])} |"
        )
    mean = measured["mean"]
    unseen_mean = f"{mean['unseen']['auroc']:.2f}" if "unseen" in mean else "none"
    lines.append(f"| mean | | {mean['specific']['auroc']:.2f} | {unseen_mean} | | |")
    lines.append(f"| **real photos** | {found[REAL]['images']} | | | {shares(found[REAL])} |")
    return "\n".join(lines)


def histories_markdown(measured: Mapping[str, Any]) -> str:
    """Write the pairs of histories, and the reals among themselves."""
    pairs = measured["histories"]["pairs"]
    lines = ["| synthetic views | real views | n | generic AUROC |", "|---|---|---|---|"]
    for name, row in pairs.items():
        ours, theirs = name.split(", ")
        lines.append(
            f"| {ours.split()[0]} | {theirs.split()[0]} | {row['synthetic']} / {row['real']} | "
            f"{row['auroc']:.2f} |"
        )
    lines += ["", "| reals alone | images | sources | AUROC (0.5 is right) |", "|---|---|---|---|"]
    for name, row in measured["histories"]["reals"].items():
        lines.append(f"| {name} | {row['images']} | {row['sources']} | {_interval(row)} |")
    return "\n".join(lines)


def false_alarms_markdown(measured: Mapping[str, Any], smallest: int = 10) -> str:
    """Write the false alarms by source; sources of few images are put together."""
    alarms = measured["false_alarms"]
    lines = [
        "| real photos | images | views | joint FPR <= 1 % | <= 5 % | <= 10 % |",
        "|---|---|---|---|---|---|",
    ]

    def line(name: str, row: Mapping[str, Any]) -> str:
        shares = (f"{100 * row['alarms'][q] / row['views']:.1f} %" for q in ("0.01", "0.05", "0.1"))
        return f"| {name} | {row['images']} | {row['views']} | " + " | ".join(shares) + " |"

    lines.append(line("**all**", alarms["all"]))
    means = (
        np.mean([row["alarms"][q] / row["views"] for row in alarms["by_source"].values()])
        for q in ("0.01", "0.05", "0.1")
    )
    lines.append(
        f"| **mean of {len(alarms['by_source'])} sources** | | | "
        + " | ".join(f"{100 * mean:.1f} %" for mean in means)
        + " |"
    )
    lines += [line(f"history {h}", row) for h, row in alarms["by_history"].items()]
    rest: dict[str, Any] = {
        "images": 0,
        "views": 0,
        "alarms": dict.fromkeys(("0.01", "0.05", "0.1"), 0),
    }
    for source, row in alarms["by_source"].items():
        if row["images"] >= smallest:
            lines.append(line(source, row))
        else:
            rest["images"] += row["images"]
            rest["views"] += row["views"]
            for q in rest["alarms"]:
                rest["alarms"][q] += row["alarms"][q]
    if rest["views"]:
        lines.append(line(f"sources of fewer than {smallest} images", rest))
    return "\n".join(lines)


def attribution_markdown(measured: Mapping[str, Any]) -> str:
    """Write which generator is named for views with evidence, in per cent of them."""
    names = [*measured["specific"], protocols.UNKNOWN]
    lines = [
        "| made by | views with evidence | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for generator, row in measured["attribution"].items():
        total = sum(row.values())
        shares = (f"{100 * row.get(n, 0) / max(1, total):.0f}" for n in names)
        lines.append(f"| {generator} | {total} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def seen_in_training(manifest: Manifest) -> frozenset[tuple[str, str]]:
    """Return the (generator, source) pairs of the training split."""
    return frozenset((row.generator, row.source) for row in manifest.select("train").rows)


def pages(measured: Mapping[str, Any]) -> dict[str, str]:
    """Write all tables of `measure`, by name, as Markdown."""
    return {
        "results": to_markdown(measured),
        "histories": histories_markdown(measured),
        "false alarms": false_alarms_markdown(measured),
        "attribution": attribution_markdown(measured),
    }

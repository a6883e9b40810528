"""The commands that measure detectors: ``masksim evaluate``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksim.cli.console import (
    Cache,
    Format,
    Json,
    Model,
    Overwrite,
    Workers,
    cache_folder,
    check_free,
    errors,
    images_of,
    need,
    need_for_files,
    say,
    stages,
    to_json,
    write,
)
from masksim.config import Progress
from masksim.errors import UsageError

if TYPE_CHECKING:
    from masksim.data.manifest import Manifest
    from masksim.detector import Detector
    from masksim.evaluation.degrade import Degradation
    from masksim.evaluation.protocols import Protocol, Scale
    from masksim.evaluation.results import Results
    from masksim.evaluation.score_table import ScoreTable
    from masksim.show.tables import Table


class ProtocolName(str, Enum):
    """Which protocols are run."""

    specific = "specific"
    generic = "generic"
    leave_one_out = "leave-one-out"
    all = "all"
    none = "none"


def evaluate(
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", metavar="FILE", help="Images to score and measure."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which split is measured.")] = "val",
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="FILE", help="A saved scores.csv: no image is scored."),
    ] = None,
    original_scores: Annotated[
        Path | None,
        typer.Option("--original-scores", metavar="DIR", help="The original's output/score/...."),
    ] = None,
    model: Model = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="Scores of real photos, by head."),
    ] = None,
    protocol: Annotated[
        ProtocolName, typer.Option("--protocol", help="none: only what is asked for beside.")
    ] = ProtocolName.all,
    degrade: Annotated[
        str | None,
        typer.Option(
            "--degrade", metavar="LIST", help="Degradations or families, with commas; or all."
        ),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option("--per-class", metavar="N", min=1, help="Images a class for --degrade."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME=SPEC",
            help="Another detector; NAME alone: a column of --scores.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write scores, results, tables."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Write DIR/pictures too; needs matplotlib.")
    ] = False,
    overwrite: Overwrite = False,
    format: Annotated[Format, typer.Option("--format", help="Of the tables.")] = Format.text,
    cache: Cache = None,
    workers: Workers = 1,
    samples: Annotated[int, typer.Option("--samples", min=10, help="Of the bootstrap.")] = 500,
    as_json: Json = False,
) -> None:
    """Measure a detector: protocols, confusion, break-downs, degradations, second opinions."""
    with errors():
        need("evaluate", "`masksim evaluate`", "sklearn", "scipy")
        need_for_files(manifest)
        if pictures:
            need("plot", "--pictures", "matplotlib")
        from masksim.evaluation.protocols import PROTOCOLS
        from masksim.evaluation.results import Results, measure_table
        from masksim.evaluation.scoring import seen_in_training, views_of

        peers = list(peer or ())
        _check_options(
            manifest, scores, original_scores, model, degrade, per_class, peers, out, pictures
        )
        chosen: Sequence[Protocol] = (
            PROTOCOLS if protocol is ProtocolName.all
            else () if protocol is ProtocolName.none
            else (protocol.value,)
        )  # fmt: skip
        if out is not None:
            check_free(*(out / name for name in _RESULTS), overwrite=overwrite)
        wanted = _degradations(degrade)  # a name that is wrong is told before hours of scoring
        saved = scores is not None or original_scores is not None
        detector = _detector(manifest, scores, original_scores, model)
        images = _images(manifest, None if saved else split)
        # Only images have pieces.
        place = Path() if manifest is None else cache_folder(cache, manifest)
        results = Results({}, ())
        table: ScoreTable | None = None
        scale: Scale | None = None
        with stages() as progress:
            if chosen or peers or scores or original_scores:
                table, scale, asked = _scores(
                    images, split, scores, original_scores, detector, _path(model), peers,
                    calibration, place, workers, progress,
                )  # fmt: skip
                results += measure_table(
                    table, scale, chosen=chosen, peers=asked,
                    shares=None if detector is None else views_of(detector).shares,
                    seen=frozenset() if images is None else seen_in_training(images),
                    name="masksim" if detector is None else detector.name,
                    samples=samples, progress=progress,
                )  # fmt: skip
            if wanted and images is not None:
                if detector is None:
                    raise UsageError("--degrade scores images: with --scores, name the --model")
                results += _degraded(
                    images.select(split), wanted, per_class, detector, _path(model), calibration,
                    place, workers, samples, progress,
                )  # fmt: skip
        document = _document(detector, split if manifest else None, table, results)
        if out is not None:
            _save(out, table, document, results.tables)
            if pictures:
                _draw(out / "pictures", table, scale, chosen, detector, results)
        if as_json:
            write(to_json(document))
        else:
            write(_printed(results.tables, format))
        if table is not None and table.failures:
            say(f"note: {len(table.failures)} images could not be scored")


def _check_options(
    manifest: Path | None,
    scores: Path | None,
    original_scores: Path | None,
    model: Path | None,
    degrade: str | None,
    per_class: int | None,
    peers: Sequence[str],
    out: Path | None,
    pictures: bool,
) -> None:
    """Refuse options that do not go together."""
    if manifest is None and scores is None and original_scores is None:
        raise UsageError("what is to be measured? Give --manifest, --scores or --original-scores")
    if original_scores is not None and (scores or manifest or model):
        raise UsageError(
            "--original-scores holds probabilities of other detectors: it goes with no --manifest, "
            "--scores or --model"
        )
    if degrade is not None and manifest is None:
        raise UsageError("--degrade needs images: give --manifest")
    if per_class is not None and degrade is None:
        raise UsageError("--per-class is the number of images for --degrade")
    if manifest is None and any("=" in one for one in peers):
        raise UsageError("a peer scores images: give --manifest, or the name of a column alone")
    if scores is None and any("=" not in one for one in peers):
        raise UsageError("a peer is NAME=SPEC; NAME alone is a column of --scores")
    if pictures and out is None:
        raise UsageError("--pictures are written to a folder: give --out")


def _path(model: Path | None) -> Path:
    from masksim.detector import bundled_path

    return bundled_path() if model is None else model


def _detector(
    manifest: Path | None, scores: Path | None, original_scores: Path | None, model: Path | None
) -> Detector | None:
    """Load the detector; with saved scores there is one only if it is named."""
    from masksim.detector import load_detector

    saved = scores is not None or original_scores is not None
    return None if saved and model is None else load_detector(_path(model))


def _images(manifest: Path | None, split: str | None) -> Manifest | None:
    """Read all images; where some of a split are to be scored there must be some."""
    from masksim.data.manifest import read_manifest

    if manifest is not None and split is not None:
        images_of(manifest, split)
    return None if manifest is None else read_manifest(manifest)


def _scores(
    images: Manifest | None,
    split: str,
    scores: Path | None,
    original_scores: Path | None,
    detector: Detector | None,
    model: Path,
    peers: Sequence[str],
    calibration: Path | None,
    cache: Path,
    workers: int,
    progress: Progress,
) -> tuple[ScoreTable, Scale, list[str]]:
    """Score images or read scores; say what they mean, and which columns are other detectors'."""
    from masksim.evaluation.protocols import Scale
    from masksim.evaluation.score_table import read_original_scores, read_scores
    from masksim.evaluation.scoring import score_manifest, score_peer, views_of
    from masksim.training.dataset import ViewConfig

    if original_scores is not None:
        table = read_original_scores(original_scores)
    elif scores is not None:
        table = read_scores(scores)
    else:
        assert images is not None
        table = score_manifest(
            model, images.select(split), cache=cache, workers=workers, progress=progress
        )
    asked = [one for one in peers if "=" not in one]
    heads = [name for name in table.generators if name not in asked]
    table.only(asked)  # a column that is not there is an error
    if detector is not None:
        asked = [name for name in table.generators if name not in detector.generators]
        heads = list(detector.generators)
    if not heads:
        raise UsageError("every column of the scores is a peer: no detector is left to measure")
    for one in peers:
        if "=" in one and images is not None:
            config = ViewConfig() if detector is None else views_of(detector)
            other = score_peer(
                one, images.select(split), cache=cache, config=config, progress=progress
            )
            table = table.joined(other)
            asked += other.generators
            if other.failures:
                say(f"note: {other.generators[0]} refused {len(other.failures)} images")
    own = table.only(heads)
    scale = Scale.of_table(own) if detector is None else Scale.of_detector(detector)
    if detector is None and not scale.probabilities:
        say("note: some scores are outside [0, 1], so there are no probabilities to measure")
    scale = _calibrated(scale, calibration)
    if table.traits is None and scale.needs_traits():
        say(
            "note: these scores do not tell what the images show: rates are those among all "
            "photos, where verdicts take photos of the same kind"
        )
    return table, scale, asked


def _calibrated(scale: Scale, calibration: Path | None) -> Scale:
    from dataclasses import replace

    from masksim.calibration import Calibration
    from masksim.evaluation.score_table import read_real_scores

    if calibration is None:
        return scale
    # Scores alone: what the photos show is not known, so that there are no strata.
    return replace(scale, calibration=Calibration(read_real_scores(calibration, scale.generators)))


def _degradations(names: str | None) -> list[Degradation]:
    """Choose degradations; none of them first, to compare with."""
    from masksim.evaluation.degrade import select

    wanted = [] if names is None else [name.strip() for name in names.split(",") if name.strip()]
    return select(["none", *wanted]) if wanted else []


def _degraded(
    images: Manifest,
    wanted: Sequence[Degradation],
    per_class: int | None,
    detector: Detector,
    model: Path,
    calibration: Path | None,
    cache: Path,
    workers: int,
    samples: int,
    progress: Progress,
) -> Results:
    from masksim.evaluation.protocols import Scale
    from masksim.evaluation.results import measure_degradations
    from masksim.evaluation.scoring import bounded, score_degraded

    if per_class is not None:
        images = bounded(images, per_class)
    tables = score_degraded(model, images, wanted, cache=cache, workers=workers, progress=progress)
    scale = _calibrated(Scale.of_detector(detector), calibration)
    return measure_degradations(tables, scale, samples=samples, progress=progress)


def _document(
    detector: Detector | None, split: str | None, table: ScoreTable | None, results: Results
) -> dict[str, Any]:
    """Put everything together for JSON."""
    from masksim.evaluation.results import plain

    document: dict[str, Any] = {}
    if detector is not None:
        document["detector"] = {"name": detector.name, "sha256": detector.sha256}
    if split is not None:
        document["split"] = split
    if table is not None:
        document |= {"images": table.images(), "failures": dict(table.failures)}
    found: Mapping[str, Any] = plain(results.data)
    return document | dict(found)


_RESULTS = ("scores.csv", "results.json", "results.md")


def _save(
    out: Path, table: ScoreTable | None, document: Mapping[str, Any], tables: Sequence[Table]
) -> None:
    """Write scores, results and tables."""
    from masksim.show.tables import SUFFIXES

    try:
        (out / "tables").mkdir(parents=True, exist_ok=True)
        if table is not None:
            (out / "scores.csv").write_text(table.to_csv(), encoding="utf-8")
        (out / "results.json").write_text(to_json(document, indent=1) + "\n", encoding="utf-8")
        page = "\n\n".join(one.to_markdown() for one in tables)
        (out / "results.md").write_text(page + "\n", encoding="utf-8")
        for one in tables:
            for format in ("text", "latex", "csv"):
                path = out / "tables" / f"{one.name}.{SUFFIXES[format]}"
                text = one.render(format, width=120)
                path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror or error}") from error


def _draw(
    folder: Path,
    table: ScoreTable | None,
    scale: Scale | None,
    chosen: Sequence[Protocol],
    detector: Detector | None,
    results: Results,
) -> None:
    from masksim.evaluation.curves import draw_all
    from masksim.evaluation.protocols import weighing
    from masksim.evaluation.scoring import views_of
    from masksim.training.dataset import ViewConfig

    shares = (ViewConfig() if detector is None else views_of(detector)).shares
    draw_all(
        folder,
        None if table is None or scale is None else table.only(scale.generators),
        scale,
        chosen=chosen,
        weigh=None if table is None else weighing(table, shares),
        degradations=results.data.get("degradations"),
        patterns=None if detector is None else detector.patterns(),
    )


def _printed(tables: Sequence[Table], format: Format) -> str:
    """Write all tables for stdout."""
    if format is Format.text:
        width = shutil.get_terminal_size((100, 24)).columns
        return "\n\n\n".join(one.to_text(width) for one in tables)
    if format is Format.csv:
        return "\n".join(f"# {one.name}\n{one.to_csv()}" for one in tables).rstrip("\n")
    return "\n\n".join(one.render(format.value) for one in tables)

"""The commands that measure detectors: ``masksim evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    option,
    say,
    stages,
    terminal_width,
    to_json,
    write,
)
from masksim.errors import UsageError
from masksim.files import make_folder, write_whole

if TYPE_CHECKING:
    from masksim.config import Progress
    from masksim.data.manifest import Manifest
    from masksim.detector import Detector
    from masksim.evaluation.evaluate import Results
    from masksim.evaluation.measures import Evaluation
    from masksim.evaluation.protocols import Protocol
    from masksim.evaluation.scale import Scale
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
    manifest: Annotated[Path | None, option("Images to score and measure.", metavar="FILE")] = None,
    split: Annotated[str, option("Split of the manifest to measure.")] = "val",
    scores: Annotated[
        Path | None, option("A saved scores.csv: no image is scored.", metavar="FILE")
    ] = None,
    original_scores: Annotated[
        Path | None, option("The original's output/score/....", metavar="DIR")
    ] = None,
    model: Model = None,
    calibration: Annotated[
        Path | None, option("Scores of real photos, by head.", metavar="FILE")
    ] = None,
    protocol: Annotated[
        ProtocolName, option("Protocol to measure; none: only what other options ask for.")
    ] = ProtocolName.all,
    degrade: Annotated[
        str | None, option("Degradations or families, separated by commas; or all.", metavar="LIST")
    ] = None,
    per_class: Annotated[
        int | None, option("Most images of each class for --degrade.", metavar="N", min=1)
    ] = None,
    peer: Annotated[
        list[str] | None,
        option("Another detector; NAME alone: a column of --scores.", metavar="NAME=SPEC"),
    ] = None,
    out: Annotated[Path | None, option("Write scores, results, tables.", metavar="DIR")] = None,
    pictures: Annotated[
        bool, option("Write DIR/pictures too; needs matplotlib.", "--pictures")
    ] = False,
    overwrite: Overwrite = False,
    format: Annotated[Format, option("Format of the tables.")] = Format.text,
    cache: Cache = None,
    workers: Workers = 1,
    samples: Annotated[int, option("Number of bootstrap samples.", min=10)] = 500,
    as_json: Json = False,
) -> None:
    """Measure a detector: protocols, confusion, break-downs, degradations, second opinions."""
    with errors():
        need("evaluate", "`masksim evaluate`", "sklearn", "scipy")
        need_for_files(manifest)
        if pictures:
            need("plot", "--pictures", "matplotlib")
        asked = _Asked(
            manifest, split, scores, original_scores, model, calibration, protocol,
            _listed(degrade), per_class, tuple(peer or ()), out, pictures, workers, samples, cache,
        )  # fmt: skip
        asked.check()
        if out is not None:
            check_free(*(out / name for name in _RESULTS), overwrite=overwrite)
        with stages() as progress:
            found = _measured(asked, progress)
        document = found.document()
        if out is not None:
            _save(out, found.table, document, found.results.tables)
            if pictures:
                _draw(out / "pictures", asked.protocols(), found)
        if as_json:
            write(to_json(document))
        else:
            write(_printed(found.results.tables, format))
        if found.table is not None and found.table.failures:
            say(f"note: {len(found.table.failures)} images could not be scored")


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


@dataclass(frozen=True)
class _Asked:
    """What is to be measured, as the options say it."""

    manifest: Path | None
    split: str
    scores: Path | None
    original_scores: Path | None
    model: Path | None
    calibration: Path | None
    protocol: ProtocolName
    degrade: tuple[str, ...]
    per_class: int | None
    peers: tuple[str, ...]
    out: Path | None
    pictures: bool
    workers: int
    samples: int
    cache: Path | None

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises
        ------
        UsageError
        """
        saved = self.scores or self.original_scores
        if self.manifest is None and not saved:
            raise UsageError(
                "what is to be measured? Give --manifest, --scores or --original-scores"
            )
        if self.original_scores is not None and (self.scores or self.manifest or self.model):
            raise UsageError(
                "--original-scores holds probabilities of other detectors: it goes with no "
                "--manifest, --scores or --model"
            )
        if self.degrade and self.manifest is None:
            raise UsageError("--degrade needs images: give --manifest")
        if self.degrade and saved and self.model is None:
            raise UsageError("--degrade scores images: with --scores, name the --model")
        if self.per_class is not None and not self.degrade:
            raise UsageError("--per-class is the number of images for --degrade")
        if self.manifest is None and any("=" in one for one in self.peers):
            raise UsageError("a peer scores images: give --manifest, or the name of a column alone")
        if self.scores is None and any("=" not in one for one in self.peers):
            raise UsageError("a peer is NAME=SPEC; NAME alone is a column of --scores")
        if self.pictures and self.out is None:
            raise UsageError("--pictures are written to a folder: give --out")

    def protocols(self) -> Sequence[Protocol]:
        """Name the protocols to run."""
        from masksim.evaluation.protocols import PROTOCOLS

        if self.protocol is ProtocolName.all:
            return PROTOCOLS
        return () if self.protocol is ProtocolName.none else (self.protocol.value,)

    def detector_path(self) -> Path:
        """Name the folder of the detector."""
        from masksim.load import bundled_path

        return bundled_path() if self.model is None else self.model

    def detector(self) -> Detector | None:
        """Load the detector; with saved scores there is one only if it is named."""
        from masksim.load import load_detector

        saved = self.scores is not None or self.original_scores is not None
        return None if saved and self.model is None else load_detector(self.detector_path())

    def images(self) -> Manifest | None:
        """Read all images; where some of a split are to be scored there must be some."""
        from masksim.data.manifest import read_manifest

        if self.manifest is None:
            return None
        if self.scores is None:
            images_of(self.manifest, self.split)
        return read_manifest(self.manifest)

    def calibrated(self, scale: Scale) -> Scale:
        """Put scores of real photos in, if there are any."""
        from masksim.calibration import Calibration
        from masksim.evaluation.score_table import read_real_scores

        if self.calibration is None:
            return scale
        # Scores alone: what the photos show is not known, so that there are no strata.
        real = read_real_scores(self.calibration, scale.generators)
        return replace(scale, calibration=Calibration(real))


@dataclass(frozen=True)
class _Found:
    """What was measured, and on what."""

    detector: Detector | None
    split: str | None
    table: ScoreTable | None  # with the columns of other detectors
    given: Evaluation | None
    results: Results

    def document(self) -> dict[str, Any]:
        """Put everything together for JSON."""
        from masksim.evaluation.evaluate import plain

        document: dict[str, Any] = {}
        if self.detector is not None:
            document["detector"] = {"name": self.detector.name, "sha256": self.detector.sha256}
        if self.split is not None:
            document["split"] = self.split
        if self.table is not None:
            document |= {"images": self.table.images(), "failures": dict(self.table.failures)}
        found: Mapping[str, Any] = plain(self.results.data)
        return document | dict(found)


def _measured(asked: _Asked, progress: Progress) -> _Found:
    """Score what is to be scored, and measure it."""
    from masksim.evaluation import degrade, scoring
    from masksim.evaluation.evaluate import Results, measure_degradations, measure_table
    from masksim.evaluation.measures import Evaluation
    from masksim.evaluation.scale import Scale

    # A name that is wrong is told before hours of scoring; none is what others are compared with.
    wanted = degrade.select(["none", *asked.degrade]) if asked.degrade else []
    chosen = asked.protocols()
    detector, images = asked.detector(), asked.images()
    # Only images have pieces.
    place = Path() if asked.manifest is None else cache_folder(asked.cache, asked.manifest)
    results = Results({}, ())
    table: ScoreTable | None = None
    given: Evaluation | None = None
    if chosen or asked.peers or asked.scores or asked.original_scores:
        table, scale, peers = _scores(asked, images, detector, place, progress)
        shares = None if detector is None else scoring.views_of(detector).shares
        given = Evaluation.of(table, scale, shares, asked.samples)
        results += measure_table(
            given, chosen=chosen, peers=table.only(peers) if peers else None,
            seen=frozenset() if images is None else scoring.seen_in_training(images),
            name="masksim" if detector is None else detector.name, progress=progress,
        )  # fmt: skip
    if wanted and images is not None and detector is not None:
        some = images.select(asked.split)
        if asked.per_class is not None:
            some = scoring.bounded(some, asked.per_class)
        tables = scoring.score_degraded(
            asked.detector_path(), some, wanted, cache=place, workers=asked.workers,
            progress=progress,
        )  # fmt: skip
        scale = asked.calibrated(Scale.of_detector(detector))
        results += measure_degradations(tables, scale, samples=asked.samples, progress=progress)
    split = None if asked.manifest is None else asked.split
    return _Found(detector, split, table, given, results)


def _scores(
    asked: _Asked,
    images: Manifest | None,
    detector: Detector | None,
    cache: Path,
    progress: Progress,
) -> tuple[ScoreTable, Scale, list[str]]:
    """Score images or read scores; say what they mean, and which columns are other detectors'."""
    from masksim.data.views import ViewConfig
    from masksim.evaluation.scale import Scale
    from masksim.evaluation.score_table import read_original_scores, read_scores
    from masksim.evaluation.scoring import score_manifest, score_peer, views_of

    if asked.original_scores is not None:
        table = read_original_scores(asked.original_scores)
    elif asked.scores is not None:
        table = read_scores(asked.scores)
    else:
        assert images is not None
        table = score_manifest(
            asked.detector_path(), images.select(asked.split), cache=cache, workers=asked.workers,
            progress=progress,
        )  # fmt: skip
    peers = [one for one in asked.peers if "=" not in one]
    heads = [name for name in table.generators if name not in peers]
    table.only(peers)  # a column that is not there is an error
    if detector is not None:
        peers = [name for name in table.generators if name not in detector.generators]
        heads = list(detector.generators)
    if not heads:
        raise UsageError("every column of the scores is a peer: no detector is left to measure")
    for one in asked.peers:
        if "=" in one and images is not None:
            config = ViewConfig() if detector is None else views_of(detector)
            other = score_peer(
                one, images.select(asked.split), cache=cache, config=config, progress=progress
            )
            table = table.joined(other)
            peers += other.generators
            if other.failures:
                say(f"note: {other.generators[0]} refused {len(other.failures)} images")
    own = table.only(heads)
    scale = Scale.of_table(own) if detector is None else Scale.of_detector(detector)
    if detector is None and not scale.probabilities:
        say("note: some scores are outside [0, 1], so there are no probabilities to measure")
    scale = asked.calibrated(scale)
    if table.traits is None and scale.needs_traits():
        say(
            "note: these scores do not tell what the images show: rates are those among all "
            "photos, where verdicts take photos of the same kind"
        )
    return table, scale, peers


_RESULTS = ("scores.csv", "results.json", "results.md")


def _save(
    out: Path, table: ScoreTable | None, document: Mapping[str, Any], tables: Sequence[Table]
) -> None:
    """Write scores, results and tables."""
    from masksim.show.tables import SUFFIXES

    make_folder(out / "tables")
    texts = {
        "results.json": to_json(document, indent=1) + "\n",
        "results.md": "\n\n".join(one.to_markdown() for one in tables) + "\n",
    }
    if table is not None:
        texts["scores.csv"] = table.to_csv()
    for one in tables:
        for format in ("text", "latex", "csv"):
            text = one.render(format, width=120).rstrip("\n") + "\n"
            texts[f"tables/{one.name}.{SUFFIXES[format]}"] = text
    for name, text in texts.items():
        write_whole(out / name, text.encode())


def _draw(folder: Path, chosen: Sequence[Protocol], found: _Found) -> None:
    from masksim.evaluation.curves import draw_all

    draw_all(
        folder,
        found.given,
        chosen=chosen,
        degradations=found.results.data.get("degradations"),
        patterns=None if found.detector is None else found.detector.patterns(),
    )


def _printed(tables: Sequence[Table], format: Format) -> str:
    """Write all tables for stdout."""
    if format is Format.text:
        width = terminal_width()
        return "\n\n\n".join(one.to_text(width) for one in tables)
    if format is Format.csv:
        return "\n".join(f"# {one.name}\n{one.to_csv()}" for one in tables).rstrip("\n")
    return "\n\n".join(one.render(format.value) for one in tables)

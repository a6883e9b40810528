"""The command ``masksim``.

Results go to stdout, messages and progress to stderr. Exit codes: 0 everything was analysed,
2 wrong usage, 3 at least one image could not be analysed, 4 the detector cannot be used, 5 data;
130 after Ctrl-C, 141 where the reader of stdout has gone.

Nothing heavy is imported here, but inside the commands, so that ``masksim --help`` is quick.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from masksim import __version__, cli_data
from masksim.errors import ImageError, MasksimError, UsageError

if TYPE_CHECKING:
    from masksim.detector import Detection, Detector, SimilarityMap
    from masksim.image import LoadedImage
    from masksim.preprocess import ColourSpace

app = typer.Typer(
    name="masksim",
    help="Detect AI-generated images by the masked spectrum of their noise residual.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_data.app)


class Device(str, Enum):
    """Where the residual network runs."""

    cpu = "cpu"
    cuda = "cuda"


_PROVIDERS = {
    Device.cpu: ["CPUExecutionProvider"],
    Device.cuda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
_SHOW_PROGRESS_FROM = 4  # images
_INTERRUPTED, _NO_READER = 130, 141  # as shells count SIGINT and SIGPIPE

Model = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A detector's folder; default: the one of the package."),
]


def main() -> None:
    """Run the command line of this process and exit.

    Raises
    ------
    SystemExit
        Always, with the code that the top of this file explains.
    """
    # A file's name need not be text, and an old terminal need not know its letters.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    code: object = 0
    try:
        with _errors():
            app()
    except (SystemExit, typer.Exit) as leaving:
        code = leaving.code if isinstance(leaving, SystemExit) else leaving.exit_code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        code = code or _NO_READER
    sys.exit(cast("int | None", code))


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what is expected to go wrong into one line on stderr and an exit code."""
    try:
        yield
    except MasksimError as error:
        _say(f"error: {error.message} [{error.code}]")
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as error:
        _forget_stdout()
        raise typer.Exit(_NO_READER) from error
    except KeyboardInterrupt as error:
        _say("interrupted")
        raise typer.Exit(_INTERRUPTED) from error


def _forget_stdout() -> None:
    """Lead stdout to nowhere, so that what waits in its buffer fails no more."""
    with suppress(OSError, ValueError):  # not a file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    from masksim.report import printable

    for line in text.splitlines():
        typer.echo(printable(line), err=True)


def _write(text: str) -> None:
    """Write a result at once, for those who read along."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _json(value: Any, *, indent: int | None = None) -> str:
    # ASCII, so that it can be written to any terminal and read with any encoding.
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)


@app.callback(invoke_without_command=True)
def _masksim(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        _write(f"masksim {__version__}")
        raise typer.Exit


def _load(model: Path | None, threads: int | None, device: Device) -> Detector:
    from masksim.detector import load_detector

    if device is Device.cuda:
        import onnxruntime

        if "CUDAExecutionProvider" not in (there := onnxruntime.get_available_providers()):
            raise UsageError(
                "--device cuda needs an ONNX Runtime with the CUDA provider (the package "
                f"onnxruntime-gpu); this one has {', '.join(there)}"
            )
    return load_detector(model, threads=threads, providers=_PROVIDERS[device])


# ------------------------------------------------------------------------------------- detect


@app.command()
def detect(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files; - is one image on stdin."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines: one object an image, on one line.")
    ] = False,
    maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the pictures of the similarity maps there."),
    ] = None,
    model: Model = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads; default: one a core.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.cpu,
) -> None:
    """Say of each image which generator's spectral pattern it carries, and how rare that is."""
    with _errors():
        if images.count("-") > 1:
            raise UsageError("stdin holds one image: give - once")
        if maps is not None:
            try:
                maps.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"--maps {maps} cannot be made: {error.strerror}") from error
        detector = _load(model, threads, device)
        pictures = None if maps is None else _Pictures(maps)
        failed = 0
        for k, source in enumerate(_with_progress(images)):
            if k and not as_json:
                _write("")
            failed += not _detect_one(detector, source, as_json, pictures)
        if failed:
            _say(f"{failed} of {len(images)} images could not be analysed")
            raise typer.Exit(ImageError.exit_code)


def _detect_one(detector: Detector, source: str, as_json: bool, pictures: _Pictures | None) -> bool:
    """Write the result of one image; tell whether it could be analysed."""
    from masksim import report

    name = "<stdin>" if source == "-" else source
    drawn: dict[str, str] = {}
    try:
        if pictures is None and source != "-":
            detection = detector.detect(source)
        else:
            loaded = _read(source)
            if pictures is None:
                detection = detector.detect(loaded)
            else:
                detection, maps = detector.explain(loaded)
                drawn = pictures.draw(maps, detection)
    except ImageError as error:
        if as_json:
            problem = {"code": error.code, "message": error.message}
            _write(_json({"image": {"name": name}, "error": problem}))
        else:
            _write(
                f"{report.printable(name)}\n"
                f"  Not analysed: {report.printable(error.message)} [{error.code}]"
            )
        return False
    if as_json:
        row = report.to_json(detection)
        _write(_json({**row, "maps": drawn} if pictures is not None else row))
        return True
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    _write(report.to_text(detection, width, ascii_only=not _knows_blocks()))
    for path in drawn.values():
        _write(f"  Picture: {report.printable(path)}")
    return True


def _read(source: str) -> LoadedImage:
    from masksim.image import load_image

    if source != "-":
        return load_image(source)
    if sys.stdin is None:  # a process may be started without
        raise ImageError("<stdin>: there is no stdin", code="not_found")
    return load_image(sys.stdin.buffer, name="<stdin>")


def _knows_blocks() -> bool:
    try:
        "█▏".encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _with_progress(images: list[str]) -> Iterable[str]:
    """Draw a bar on stderr, unless the results themselves show on the same terminal."""
    if len(images) < _SHOW_PROGRESS_FROM or sys.stdout.isatty() or not sys.stderr.isatty():
        return images
    from rich.console import Console
    from rich.progress import track

    return track(images, "detecting", console=Console(stderr=True), transient=True)


class _Pictures:
    """Writes the similarity maps of each image, a file a generator, under names all different."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def draw(self, maps: Mapping[str, SimilarityMap], detection: Detection) -> dict[str, str]:
        """Return the path of each generator's picture, the most telling first."""
        from masksim.report import maps_png

        written = {}
        for score in detection.scores:
            path = self._folder / self._name(detection.image.name, score.generator)
            maps_png(maps[score.generator], path, detection=detection)
            written[score.generator] = str(path)
        return written

    def _name(self, image: str, generator: str) -> str:
        stem = re.sub(r"[^\w.+-]+", "_", f"{Path(image).name}-{generator}").lstrip(".")
        name, k = f"{stem}.png", 2
        while name.lower() in self._taken:  # some file systems tell no capitals apart
            name, k = f"{stem}-{k}.png", k + 1
        self._taken.add(name.lower())
        return name


# --------------------------------------------------------------------------------------- info


@app.command()
def info(
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a detector: its generators, windows, calibration, digest and where it comes from."""
    with _errors():
        facts = _describe(_load(model, None, Device.cpu))
        if as_json:
            _write(_json(facts, indent=2))
            return
        size = facts["calibration"]["sample_size"]
        _write(f"{facts['name']}, sha256 {facts['sha256']}")
        _write(f"  generators: {', '.join(facts['generators'])}")
        _write(f"  calibration: {f'{size} real photos' if size else 'none'}")
        _write_nested("config", facts["config"])
        for k, branch in enumerate(facts["branches"]):
            _write_nested(f"branch {k}", branch)
        _write_nested("provenance", facts["provenance"])


def _describe(detector: Detector) -> dict[str, Any]:
    file = detector.file
    return {
        "name": detector.name,
        "sha256": detector.sha256,
        "format_version": file.format_version,
        "generators": list(detector.generators),
        "calibration": {"sample_size": detector.sample_size},
        "config": dict(file.config),
        "branches": [
            {
                "generators": list(branch.generators),
                "residual": branch.residual.to_dict(),
                "preprocess": dict(branch.preprocess),
                "spectrum": dict(branch.spectrum),
                "head": branch.head,
                "head_config": dict(branch.head_config),
            }
            for branch in file.branches
        ],
        "provenance": dict(file.provenance),
    }


def _write_nested(name: str, values: Mapping[str, Any]) -> None:
    from masksim.report import printable

    _write(f"  {name}:" + ("" if values else " none"))
    for key, value in values.items():
        _write(printable(f"    {key}: {value if isinstance(value, str) else _json(value)}"))


# ------------------------------------------------------------------------------------- import


@app.command("import-original")
def import_original(
    source: Annotated[
        Path, typer.Argument(metavar="CKPT_OR_FOLDER", help="A .ckpt file, or a folder of them.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The detector's folder to write.")],
    colour: Annotated[
        str | None,
        typer.Option(
            metavar="SPACE",
            help="What they were trained on: YCbCr-BT601-studio-8bit (the default), RGB or "
            "YCbCr-BT601-full.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a detector that is there.")
    ] = False,
) -> None:
    """Make a detector of checkpoints of the original MaskSim; needs torch."""
    with _errors():
        from masksim import checkpoint

        made = checkpoint.import_original(
            source,
            out,
            colour=checkpoint.DEFAULT_COLOUR if colour is None else cast("ColourSpace", colour),
            overwrite=overwrite,
        )
        for note in made.provenance.get("notes", []):
            _say(f"note: {note}")
        _write(f"{out}: {', '.join(made.generators)}, sha256 {made.sha256}")


# ------------------------------------------------------------------------------ train, evaluate

ManifestFile = Annotated[
    Path, typer.Option("--manifest", metavar="FILE", help="From `masksim data prepare`, or alike.")
]
Cache = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="Finished pieces: a killed run goes on.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file.")],
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The detector to write.")],
    cache: Cache = Path("runs/cache"),
    workers: Workers = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a detector that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Train a detector of every generator in a manifest's train split."""
    with _errors():
        from masksim.manifest import read_manifest
        from masksim.train import read_config, train_shared

        chosen = read_config(config)
        with _stages() as progress:
            made, fit = train_shared(
                read_manifest(manifest), out, chosen,
                cache=cache, workers=workers, overwrite=overwrite, progress=progress,
            )  # fmt: skip
        auroc = {name: round(value, 4) for name, value in fit.cross_validated_auroc.items()}
        if as_json:
            _write(_json({"detector": str(out), "sha256": made.sha256, "auroc": auroc}))
            return
        _write(f"{out}: sha256 {made.sha256}")
        for name, value in auroc.items():
            _write(f"  {name}: cross-validated AUROC {value:.3f}")
        skipped = made.provenance["skipped"]
        if skipped:
            _say(f"note: images left out, by reason: {_json(skipped)}")


@app.command()
def evaluate(
    manifest: ManifestFile,
    split: Annotated[str, typer.Option("--split", help="Which split is measured.")] = "val",
    model: Model = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write scores.csv, results.json, results.md."),
    ] = None,
    cache: Cache = Path("runs/cache"),
    workers: Workers = 1,
    samples: Annotated[int, typer.Option("--samples", min=10, help="Of the bootstrap.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure a calibrated detector on a manifest: AUROC, TPR, false alarms, histories."""
    with _errors():
        from masksim import evaluate as rooms
        from masksim.detector import bundled_path, load_detector
        from masksim.manifest import read_manifest

        images = read_manifest(manifest)
        path = bundled_path() if model is None else model
        detector = load_detector(path)
        with _stages() as progress:
            table = rooms.score_manifest(
                path, images.select(split), cache=cache, workers=workers,
                progress=lambda done, count: progress("scores", done, count),
            )  # fmt: skip
        measured = rooms.measure(
            table, detector, shares=rooms.views_of(detector).shares,
            seen=rooms.seen_in_training(images), samples=samples,
        )  # fmt: skip
        pages = rooms.pages(measured)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "scores.csv").write_text(table.to_csv(), encoding="utf-8")
            (out / "results.json").write_text(_json(measured, indent=1) + "\n", encoding="utf-8")
            (out / "results.md").write_text("\n\n".join(pages.values()) + "\n", encoding="utf-8")
        _write(_json(measured) if as_json else "\n\n".join(pages.values()))
        if table.failures:
            _say(f"note: {len(table.failures)} images could not be scored")


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of the stages of a run: a bar on a terminal, else a line a stage."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    if not sys.stderr.isatty():
        said: set[str] = set()

        def line(stage: str, done: int, count: int) -> None:
            if stage not in said:
                said.add(stage)
                _say(f"{stage}: {count} parts, {done} done before")

        yield line
        return
    with Progress(console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def draw(stage: str, done: int, count: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=count)
            bar.update(tasks[stage], completed=done)

        yield draw


if __name__ == "__main__":
    main()

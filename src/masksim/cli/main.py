"""The command ``masksim``.

Results go to stdout, messages and progress to stderr. Exit codes: 0 everything was analysed,
1 ``audit --strict`` found a claim exceeded, ``report verify`` a report that does not hold or
``export verify`` a difference, 2 wrong usage, 3 at least one image could not be analysed, 4 the
detector cannot be used, 5 data, 10 a verdict that ``batch --fail-on`` asks for; 130 after Ctrl-C,
141 where the reader of stdout has gone.

Nothing heavy is imported here, but inside the commands, so that ``masksim --help`` is quick.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from masksim import __version__
from masksim.cli import audit as cli_audit
from masksim.cli import batch as cli_batch
from masksim.cli import data as cli_data
from masksim.cli import evaluate as cli_evaluate
from masksim.cli import export as cli_export
from masksim.cli import report as cli_report
from masksim.cli import serve as cli_serve
from masksim.cli import train as cli_train
from masksim.cli.console import (
    NO_READER,
    Json,
    LikelihoodRatio,
    Model,
    Overwrite,
    Population,
    Quick,
    argument,
    check_free,
    errors,
    explained,
    forget_stdout,
    need,
    option,
    say,
    stages,
    to_json,
    user_cache,
    write,
)
from masksim.errors import ImageError, UsageError
from masksim.files import make_folder

if TYPE_CHECKING:
    from masksim.detector import Detector
    from masksim.image import LoadedImage
    from masksim.preprocess import ColourSpace
    from masksim.results import Detection, SimilarityMap

app = typer.Typer(
    name="masksim",
    help="Detect AI-generated images by the masked spectrum of their noise residual.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


class Device(str, Enum):
    """Where the residual network runs."""

    cpu = "cpu"
    cuda = "cuda"


_PROVIDERS = {
    Device.cpu: ["CPUExecutionProvider"],
    Device.cuda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
_SHOW_PROGRESS_FROM = 4  # images


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
    if os.environ.get("NO_COLOR"):
        _without_colours()
    code: object = 0
    try:
        with errors():
            app()
    except (SystemExit, typer.Exit) as leaving:
        code = leaving.code if isinstance(leaving, SystemExit) else leaving.exit_code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()
        code = code or NO_READER
    sys.exit(cast("int | None", code))


def _without_colours() -> None:
    """Write help and wrong usage as plain text; by itself typer keeps bold and dim letters."""
    from typer import rich_utils

    rich_utils.COLOR_SYSTEM = None


@app.callback(invoke_without_command=True)
def _masksim(
    version: Annotated[bool, option("Show the version.", "--version", "-V")] = False,
) -> None:
    if version:
        write(f"masksim {__version__}")
        raise typer.Exit


def _load(model: Path | None, threads: int | None, device: Device, **options: Any) -> Detector:
    from masksim.load import load_detector

    if device is Device.cuda:
        import onnxruntime

        if "CUDAExecutionProvider" not in (there := onnxruntime.get_available_providers()):
            raise UsageError(
                "--device cuda needs an ONNX Runtime with the CUDA provider (the package "
                f"onnxruntime-gpu); this one has {', '.join(there)}"
            )
    return load_detector(model, threads=threads, providers=_PROVIDERS[device], **options)


# ------------------------------------------------------------------------------------- detect


@app.command()
def detect(
    images: Annotated[list[str], argument("Image files; - is one image on stdin.", "IMAGE...")],
    as_json: Annotated[
        bool, option("JSON Lines: one object an image, on one line.", "--json")
    ] = False,
    maps: Annotated[
        Path | None, option("Write the pictures of the similarity maps there.", metavar="DIR")
    ] = None,
    overwrite: Overwrite = False,
    model: Model = None,
    threads: Annotated[int | None, option("Processor threads; default: one a core.", min=1)] = None,
    device: Annotated[Device, option("Where the network runs.")] = Device.cpu,
    quick: Quick = False,
    population: Population = "auto",
    likelihood_ratio: LikelihoodRatio = False,
    metadata: Annotated[bool, option("Also tell what the file says of its own origin.")] = True,
) -> None:
    """Say of each image which generator's spectral pattern it carries, and how rare that is."""
    with errors():
        if images.count("-") > 1:
            raise UsageError("stdin holds one image: give - once")
        if maps is not None:
            make_folder(maps)
        detector = _load(
            model, threads, device,
            stability=not quick, population=population, likelihood_ratio=likelihood_ratio,
            metadata=metadata,
        )  # fmt: skip
        pictures: list[dict[str, Path]] = []
        if maps is not None:
            pictures = picture_paths(maps, images, detector.generators)
            check_free(*(path for one in pictures for path in one.values()), overwrite=overwrite)
        failed = 0
        for k, source in enumerate(_with_progress(images)):
            if k and not as_json:
                write("")
            failed += not _detect_one(detector, source, as_json, pictures[k] if pictures else None)
        if failed:
            say(f"{failed} of {len(images)} images could not be analysed")
            raise typer.Exit(ImageError.exit_code)


def _detect_one(
    detector: Detector, source: str, as_json: bool, pictures: Mapping[str, Path] | None
) -> bool:
    """Write the result of one image; tell whether it could be analysed."""
    from masksim.provenance.untrusted_text import printable
    from masksim.show.text import to_text

    name = "<stdin>" if source == "-" else source
    drawn: dict[str, str] = {}
    try:
        if pictures is None and source != "-":
            detection = detector.detect(source)
        else:
            loaded = _read(source, detector)
            if pictures is None:
                detection = detector.detect(loaded)
            else:
                detection, maps = detector.explain(loaded)
                drawn = _draw(detection, maps, pictures)
    except ImageError as error:
        message = explained(source, error)
        if as_json:
            problem = {"code": error.code, "message": message}
            write(to_json({"image": {"name": name}, "error": problem}))
        else:
            write(f"{printable(name)}\n  Not analysed: {printable(message)} [{error.code}]")
        return False
    if as_json:
        row = detection.to_dict()
        write(to_json({**row, "maps": drawn} if pictures is not None else row))
        return True
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    write(to_text(detection, width, ascii_only=not _knows_blocks()))
    for path in drawn.values():
        write(f"  Picture: {printable(path)}")
    return True


def _read(source: str, detector: Detector) -> LoadedImage:
    from masksim.image import load_image

    if source != "-":
        return load_image(source, part=detector.analysed_part, keep=detector.metadata)
    if sys.stdin is None:  # a process may be started without
        raise ImageError("<stdin>: there is no stdin", code="not_found")
    return load_image(
        sys.stdin.buffer, name="<stdin>", part=detector.analysed_part, keep=detector.metadata
    )


def _knows_blocks() -> bool:
    try:
        "█▏".encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _with_progress(images: list[str]) -> Iterable[str]:
    """Draw a bar on stderr, unless the results themselves show on the same terminal."""
    drawn = sys.stderr.isatty() and not sys.stdout.isatty()
    with stages(drawn and len(images) >= _SHOW_PROGRESS_FROM) as progress:
        for k, image in enumerate(images):
            progress("detecting", k, len(images))
            yield image


def picture_paths(
    folder: Path, images: Iterable[str], generators: Iterable[str]
) -> list[dict[str, Path]]:
    """Name the pictures of all images, in order, one a generator; no two have the same name."""
    taken: set[str] = set()

    def path(image: str, generator: str) -> Path:
        stem = re.sub(r"[^\w.+-]+", "_", f"{Path(image).name}-{generator}").lstrip(".")
        name, k = f"{stem}.png", 2
        while name.lower() in taken:  # some file systems do not tell capitals apart
            name, k = f"{stem}-{k}.png", k + 1
        taken.add(name.lower())
        return folder / name

    names = list(generators)
    return [{name: path(image, name) for name in names} for image in images]


def _draw(
    detection: Detection, maps: Mapping[str, SimilarityMap], planned: Mapping[str, Path]
) -> dict[str, str]:
    """Draw an image's maps; return the path of each generator's, the most telling first."""
    from concurrent.futures import ThreadPoolExecutor

    from masksim.show.maps import maps_png

    paths = {score.generator: planned[score.generator] for score in detection.scores}
    with ThreadPoolExecutor(2) as pool:  # half of the time goes to compressing
        drawn = [
            pool.submit(maps_png, maps[generator], path, detection=detection)
            for generator, path in paths.items()
        ]
        for picture in drawn:
            picture.result()
    return {generator: str(path) for generator, path in paths.items()}


# --------------------------------------------------------------------------------------- info


@app.command()
def info(
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Show a detector: its generators, windows, calibration, digest and where it comes from."""
    with errors():
        from masksim.load import describe

        facts = describe(_load(model, None, Device.cpu))
        if as_json:
            write(to_json(facts, indent=2))
            return
        size = facts["calibration"]["sample_size"]
        write(f"{facts['name']}, sha256 {facts['sha256']}")
        write(f"  generators: {', '.join(facts['generators'])}")
        photos = facts["calibration"]["photos"]
        of = f"{photos} real photos"
        if size > photos:
            of += f" in {size} copies, each processed in another way"
        write(f"  calibration: {of if size else 'none'}")
        for name, strata in facts["calibration"]["populations"].items():
            for row in strata:
                write(f"    {name}, {row['stratum']}: {row['photos']} of {row['sources']} sources")
        _write_nested("config", facts["config"])
        for k, branch in enumerate(facts["branches"]):
            _write_nested(f"branch {k}", branch)
        _write_nested("provenance", facts["provenance"])


def _write_nested(name: str, values: Mapping[str, Any]) -> None:
    from masksim.provenance.untrusted_text import printable

    write(f"  {name}:" + ("" if values else " none"))
    for key, value in values.items():
        write(printable(f"    {key}: {value if isinstance(value, str) else to_json(value)}"))


# ------------------------------------------------------------------------------------- import


@app.command("import-original")
def import_original(
    source: Annotated[Path, argument("A .ckpt file, or a folder of them.", "CKPT_OR_FOLDER")],
    out: Annotated[Path, argument("The detector's folder to write.", "OUT")],
    colour: Annotated[
        str | None,
        option(
            "What they were trained on: YCbCr-BT601-studio-8bit (the default), RGB or "
            "YCbCr-BT601-full.",
            metavar="SPACE",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a detector of checkpoints of the original MaskSim; needs torch."""
    with errors():
        need("train", "reading the original's checkpoints", "torch", "onnx")
        from masksim.original import importer

        made = importer.import_original(
            source,
            out,
            colour=importer.DEFAULT_COLOUR if colour is None else cast("ColourSpace", colour),
            overwrite=overwrite,
        )
        for note in made.provenance.get("notes", []):
            say(f"note: {note}")
        write(f"{out}: {', '.join(made.generators)}, sha256 {made.sha256}")


# -------------------------------------------------------------------------------------- cache


@app.command()
def cache(
    clear: Annotated[bool, option("Delete what is in it.", "--clear")] = False,
    as_json: Json = False,
) -> None:
    """Show, or empty, the folder of what can be made again: pieces of runs, archives of sets."""
    with errors():
        folder = user_cache()
        parts = {name: folder / name for name in ("pieces", "archives")}
        if clear:
            for part in parts.values():
                try:
                    if part.exists():
                        shutil.rmtree(part)
                except OSError as error:
                    raise UsageError(f"cannot delete {part}: {error.strerror or error}") from error
        sizes = {name: _size(part) for name, part in parts.items()}
        if as_json:
            write(to_json({"cache": str(folder), "bytes": sizes}))
            return
        write(str(folder))
        for name, size in sizes.items():
            write(f"  {name}: {size / 1e6:.1f} MB")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# In the order of `masksim --help`.
app.command()(cli_audit.audit)
app.command()(cli_audit.calibrate)
app.command()(cli_batch.batch)
app.command()(cli_train.enroll)
app.command()(cli_evaluate.evaluate)
app.command()(cli_serve.serve)
app.command()(cli_train.train)
app.command()(cli_train.train_residual)
app.add_typer(cli_report.app)
app.add_typer(cli_data.app)
app.add_typer(cli_export.app)


if __name__ == "__main__":
    main()

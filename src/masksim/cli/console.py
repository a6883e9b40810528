"""What all commands share: options, messages, progress, errors into exit codes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksim import __version__
from masksim.errors import DataError, ImageError, MasksimError, UsageError, extra_missing

if TYPE_CHECKING:
    from rich.progress import Progress as Drawing
    from rich.progress import TaskID

    from masksim.config import Progress
    from masksim.data.manifest import Manifest

INTERRUPTED, NO_READER = 130, 141  # as shells count SIGINT and SIGPIPE

CACHE = "MASKSIM_CACHE"
"""Name of the environment variable that may hold the folder of the cache."""


def option(help: str, *names: str, **more: Any) -> Any:
    """Describe an option of a command; without names it is called as its parameter."""
    return typer.Option(*names, help=help, **more)


def argument(help: str, metavar: str | None = None, **more: Any) -> Any:
    """Describe an argument of a command."""
    return typer.Argument(help=help, metavar=metavar, **more)


def detector_path(text: str) -> Path:
    """Find the folder that an argument names, see `masksim.load.detector_folder`.

    Raises
    ------
    typer.BadParameter
        It is an address: nothing is fetched.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise typer.BadParameter(
            f"{text} is an address, and masksim fetches nothing: download the detector, then give "
            "its folder"
        )
    if text == "default":  # all else needs no detector yet
        from masksim.load import detector_folder

        return detector_folder(text)
    return Path(text)


_DETECTOR: Any = {"parser": detector_path, "metavar": "DIR"}

Model = Annotated[
    Path | None,
    typer.Option(
        "--model", help="A detector's folder, or `default`: the package's own.", **_DETECTOR
    ),
]
DetectorArgument = Annotated[
    Path,
    typer.Argument(
        help="A detector's folder, or `default`: the package's own.",
        **{**_DETECTOR, "metavar": "DETECTOR"},
    ),
]
ManifestFile = Annotated[
    Path, option("A manifest, as `masksim data prepare` writes it.", "--manifest", metavar="FILE")
]
Cache = Annotated[
    Path | None,
    option(
        "Folder of finished pieces, so that a killed run goes on; default: see `masksim cache`.",
        "--cache",
        metavar="DIR",
    ),
]
Quick = Annotated[bool, option("Leave out the small re-encodings that check a verdict.", "--quick")]
Population = Annotated[
    str,
    option(
        "Photos that rates are measured on: auto (all, the largest rate counts), built-in, or a "
        "name from `masksim calibrate`.",
        "--population",
    ),
]
LikelihoodRatio = Annotated[
    bool, option("Give verdicts a bounded likelihood ratio.", "--likelihood-ratio")
]
Workers = Annotated[int, option("Number of processes.", "--workers", min=1)]
Json = Annotated[bool, option("Write one JSON object.", "--json")]


class Format(str, Enum):
    """How tables are written to stdout."""

    text = "text"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


Overwrite = Annotated[bool, option("Replace what is there.", "--overwrite")]


def leads() -> bool:
    """Tell whether this process reports: of several that train together (torchrun) one does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def errors(as_json: bool = False) -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit code.

    Parameters
    ----------
    as_json
        Also write the error to stdout, as the one JSON document that the command promises.
    """
    try:
        yield
    except MasksimError as error:
        if as_json:
            problem = {"code": error.code, "message": error.message}
            write(to_json({"ok": False, "error": problem}, indent=2))
        say(f"error: {error.message} [{error.code}]")
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as error:
        forget_stdout()
        raise typer.Exit(NO_READER) from error
    except KeyboardInterrupt as error:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from error


_PACKAGES: Mapping[str, str] = {
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "sklearn": "scikit-learn",
}


def need(extra: str, what: str, *modules: str) -> None:
    """Ask for the packages of an extra before any work is begun.

    Parameters
    ----------
    extra
        What brings them.
    what
        What needs them, at the start of a sentence.
    *modules
        By the names that they are imported by.

    Raises
    ------
    UsageError
        Code ``extra_missing``: one is not installed.
    """
    for module in modules:
        try:
            there = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):  # a finder refuses it; a stand-in without a spec
            there = module in sys.modules
        if not there:
            raise extra_missing(what, _PACKAGES.get(module, module), extra)


def need_for_files(*paths: Path | None) -> None:
    """Ask for what Parquet files need; the others need nothing.

    Raises
    ------
    UsageError
        Code ``extra_missing``.
    """
    if any(path is not None and path.suffix.lower() == ".parquet" for path in paths):
        need("parquet", "Parquet", "pyarrow")


def images_of(manifest: Path, split: str) -> Manifest:
    """Read the images of a split.

    Raises
    ------
    DataError
        The manifest cannot be read, or the split has no image.
    """
    from masksim.data.manifest import read_manifest

    listed = read_manifest(manifest)
    chosen = listed.select(split)
    if not chosen.rows:
        splits = {name: sum(found.values()) for name, found in listed.counts().items()}
        raise DataError(
            f"{manifest}: no image is in the split {split!r}; images by split: "
            + (", ".join(f"{name} {count}" for name, count in splits.items()) or "none"),
            code="manifest_invalid",
        )
    return chosen


def check_free(*paths: Path, overwrite: bool) -> None:
    """Refuse to write where something is, before any work is begun.

    Raises
    ------
    UsageError
        A path is there, and is not to be replaced.
    """
    for path in paths:
        try:
            there = path.exists()
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        if there and not overwrite:
            raise UsageError(f"{path} is there; --overwrite replaces it")


def cache_folder(given: Path | None, *inputs: Path) -> Path:
    """Find where the finished pieces of a run are kept; say so unless ``--cache`` names it.

    Parameters
    ----------
    given
        What ``--cache`` names.
    *inputs
        The manifest or the folders that the run is about. The name of a piece says nothing of the
        images' folder, nor of the versions that computed it. All runs share the user's cache, so
        there each input, with each set of versions, has a folder of its own.
    """
    if given is not None:
        return given
    told = "\n".join([*_versions(), *(os.path.abspath(one) for one in inputs)])
    folder = user_cache() / "pieces" / hashlib.sha256(os.fsencode(told)).hexdigest()[:16]
    _tell_cache(folder)
    return folder


def _versions() -> Iterator[str]:
    """Name the versions that a computed number may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    yield __version__
    for name in ("numpy", "onnxruntime", "onnxruntime-gpu", "pillow", "pillow-heif"):
        with suppress(PackageNotFoundError):  # of the two runtimes one is there
            yield f"{name} {version(name)}"


def archive_folder(given: Path | None) -> Path:
    """Find where the archives of public sets are kept; say so unless ``--cache`` names it."""
    if given is not None:
        return given
    _tell_cache(user_cache() / "archives")
    return user_cache() / "archives"


def _tell_cache(folder: Path) -> None:
    say(f"cache: {folder} (`masksim cache` shows its size and empties it)")


def user_cache() -> Path:
    """Return the cache's folder: the user's for caches, or what ``MASKSIM_CACHE`` names."""
    if named := os.environ.get(CACHE):
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("masksim", appauthor=False)


def explained(source: str, error: ImageError) -> str:
    """Say what is wrong with an image, and which command takes what is no image.

    Parameters
    ----------
    source
        As it was given.
    error
        Of reading it.
    """
    if error.code == "not_a_file" and os.path.isdir(source):
        return (
            f"{source} is a folder; for all images in it: "
            f"masksim batch {shlex.quote(source)} --out results.jsonl"
        )
    if error.code == "not_found" and any(sign in source for sign in "*?["):
        return (
            f"{error.message}; for all images of a pattern: "
            f"masksim batch {shlex.quote(source)} --out results.jsonl"
        )
    return error.message


def forget_stdout() -> None:
    """Point stdout at nothing, so that flushing its buffer no longer fails."""
    with suppress(OSError, ValueError):  # not a file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Write a message to stderr, control characters made harmless."""
    from masksim.provenance.untrusted_text import printable

    for line in text.splitlines():
        typer.echo(printable(line), err=True)


def write(text: str) -> None:
    """Write a result at once, for those who read along."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def terminal_width() -> int:
    """Count the characters that a line of a table may have."""
    return shutil.get_terminal_size((100, 24)).columns


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Write JSON in ASCII: for any terminal, read with any encoding."""
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)


@contextmanager
def stages(
    shown: bool = True, *, every: float | None = None, in_bytes: bool = False
) -> Iterator[Progress]:
    """Show how far a run is: on a terminal a bar for each stage, else lines.

    Parameters
    ----------
    shown
        Whether to show anything at all.
    every
        Without a terminal, the seconds from a line to the next; None: a line where a stage begins.
    in_bytes
        What is counted are bytes, of several files at once: bars alone, no lines.

    Yields
    ------
    Progress
        A number in brackets after the stage, ``"preparing (3 failed)"``, is a remark on it.
    """
    if not shown or not leads() or (in_bytes and not sys.stderr.isatty()):
        yield lambda stage, done, count: None
    elif not sys.stderr.isatty():
        yield _Lines(every)
    else:
        from rich import progress as rich
        from rich.console import Console

        amount: list[Any] = (
            [rich.DownloadColumn(), rich.TransferSpeedColumn()]
            if in_bytes
            else [rich.MofNCompleteColumn(), rich.TextColumn("{task.fields[rate]:.1f}/s")]
        )
        columns = rich.TextColumn("{task.description}"), rich.BarColumn(), *amount
        # By default rich leads stdout through the bars' own terminal while they show: results meant
        # for a file or a pipe would go to stderr.
        with rich.Progress(
            *columns, rich.TimeRemainingColumn(),
            console=Console(stderr=True), transient=True, redirect_stdout=False,
        ) as drawing:  # fmt: skip
            yield _Bars(drawing)


class _Bars:
    """A bar for each stage that is under way; may be called by several threads."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.lock = Lock()
        self.tasks: dict[str, tuple[TaskID, int, float]] = {}

    def __call__(self, remark: str, done: int, count: int) -> None:
        stage = _stage(remark)
        with self.lock:
            if stage not in self.tasks:
                if len(self.tasks) == 8:  # the first is of a file that failed
                    self.drawing.remove_task(self.tasks.pop(next(iter(self.tasks)))[0])
                task = self.drawing.add_task(stage, total=count or None, rate=0.0)
                self.tasks[stage] = task, done, time.monotonic()
            task, before, start = self.tasks[stage]
            rate = (done - before) / max(time.monotonic() - start, 1e-9)
            self.drawing.update(
                task, completed=done, total=count or None, rate=rate, description=remark
            )
            if 0 < count <= done and len(self.tasks) > 1:
                self.drawing.remove_task(self.tasks.pop(stage)[0])


class _Lines:
    """The same as lines on stderr, for logs."""

    def __init__(self, every: float | None) -> None:
        self.every = every
        self.stages: dict[str, tuple[int, float]] = {}
        self.said = time.monotonic()

    def __call__(self, remark: str, done: int, count: int) -> None:
        stage, now = _stage(remark), time.monotonic()
        if stage not in self.stages:
            self.stages[stage] = done, now
            if self.every is None:
                say(f"{stage}: {count} parts, {done} done before")
        before, start = self.stages[stage]
        if self.every is None or now - self.said < self.every or done == before:
            return
        self.said = now
        rate = (done - before) / (now - start)
        left = _duration((count - done) / rate)
        say(f"{done} of {count} {stage}, {rate:.1f} {stage}/s, {left} left")


def _stage(remark: str) -> str:
    return re.sub(r" \(\d.*\)$", "", remark)


def _duration(seconds: float) -> str:
    """Write seconds as ``1 h 05 min``, ``5 min`` or ``40 s``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

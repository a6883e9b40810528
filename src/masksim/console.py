"""What all commands share: options, messages, progress, errors into exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksim.errors import MasksimError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERRUPTED, NO_READER = 130, 141  # as shells count SIGINT and SIGPIPE

Model = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A detector's folder; default: the one of the package."),
]
ManifestFile = Annotated[
    Path, typer.Option("--manifest", metavar="FILE", help="From `masksim data prepare`, or alike.")
]
Cache = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="Finished pieces: a killed run goes on.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


class Format(str, Enum):
    """How tables are written to stdout."""

    text = "text"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a detector that is there.")]


def leads() -> bool:
    """Tell whether this process speaks: of several that train together (``torchrun``) one does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def errors() -> Iterator[None]:
    """Turn what is expected to go wrong into one line on stderr and an exit code."""
    try:
        yield
    except MasksimError as error:
        say(f"error: {error.message} [{error.code}]")
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as error:
        forget_stdout()
        raise typer.Exit(NO_READER) from error
    except KeyboardInterrupt as error:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from error


def forget_stdout() -> None:
    """Lead stdout to nowhere, so that what waits in its buffer fails no more."""
    with suppress(OSError, ValueError):  # not a file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Write a message to stderr, control characters made harmless."""
    from masksim.report import printable

    for line in text.splitlines():
        typer.echo(printable(line), err=True)


def write(text: str) -> None:
    """Write a result at once, for those who read along."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Write JSON in ASCII: for any terminal, read with any encoding."""
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)


def bars(*columns: Any, shown: bool = True, console: Any = None) -> Progress:
    """Make progress bars that draw on stderr and leave stdout alone.

    By default rich leads stdout through the bars' own terminal while they show: results meant for
    a file or a pipe would go to stderr.

    Parameters
    ----------
    *columns
        Of `rich.progress`; none: the usual ones.
    shown
        Whether to draw at all.
    console
        A `rich.console.Console` of stderr; None: a new one.
    """
    from rich.console import Console
    from rich.progress import Progress

    return Progress(
        *columns,
        console=console or Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=not shown,
    )


@contextmanager
def stages(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of the stages of a run: a bar on a terminal, else a line a stage."""
    if not shown or not leads():
        yield lambda stage, done, count: None
        return
    if not sys.stderr.isatty():
        said: set[str] = set()

        def line(stage: str, done: int, count: int) -> None:
            if stage not in said:
                said.add(stage)
                say(f"{stage}: {count} parts, {done} done before")

        yield line
        return
    with bars() as bar:
        tasks: dict[str, TaskID] = {}

        def draw(stage: str, done: int, count: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=count)
            bar.update(tasks[stage], completed=done)

        yield draw

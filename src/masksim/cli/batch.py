"""The command ``masksim batch``: many images into one file of results."""

from __future__ import annotations

import re
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masksim.cli.console import (
    Json,
    Model,
    Overwrite,
    argument,
    errors,
    need,
    need_for_files,
    option,
    say,
    stages,
    to_json,
    write,
)
from masksim.errors import ImageError, UsageError

if TYPE_CHECKING:
    from masksim.batch.run import Summary

FOUND = 10
"""Exit code where ``--fail-on`` asks for a level and a verdict reaches it."""

EVERY = 10.0  # seconds between the lines of progress where there is no terminal


class FailOn(str, Enum):
    """What makes the exit code another than 0."""

    inconclusive = "inconclusive"
    fragile = "fragile"
    weak = "weak-evidence"
    evidence = "evidence"
    strong = "strong-evidence"
    error = "error"


class Engine(str, Enum):
    """What the images are shared out by."""

    local = "local"
    ray = "ray"


def batch(
    images: Annotated[
        list[str],
        argument(
            "Folders, patterns, lists (.txt, .csv, .parquet), images; - is a list on stdin.",
            "DIR|GLOB|LIST|-...",
        ),
    ],
    out: Annotated[Path, option("Results: .jsonl, .csv or .parquet.", metavar="FILE")],
    model: Model = None,
    workers: Annotated[int | None, option("Processes; default: one a core.", min=1)] = None,
    resume: Annotated[bool, option("Go on with the results that are there.", "--resume")] = False,
    overwrite: Overwrite = False,
    shard: Annotated[str | None, option("Only the I-th of N parts.", metavar="I/N")] = None,
    fail_on: Annotated[
        list[FailOn] | None, option("Exit code 10 from this level on; error: 3. Repeatable.")
    ] = None,
    recursive: Annotated[bool, option("Also take the folders below a folder.")] = True,
    column: Annotated[
        str, option("Column of .csv and .parquet lists with the paths.", metavar="NAME")
    ] = "path",
    root: Annotated[
        Path | None, option("Where relative paths of lists start.", metavar="DIR")
    ] = None,
    engine: Annotated[
        Engine, option("What runs the batch; ray is Ray Data (extra ray).")
    ] = Engine.local,
    ray_address: Annotated[
        str | None, option("Address of a Ray cluster.", metavar="ADDRESS")
    ] = None,
    timeout: Annotated[
        float, option("Longest time for one image, in seconds.", metavar="SECONDS")
    ] = 300.0,
    metadata: Annotated[bool, option("Also tell what files say of their own origin.")] = True,
    as_json: Json = False,
) -> None:
    """Analyse many images into one file: a row an image, errors too; can be gone on with."""
    with errors():
        need_for_files(out, *(path for path in map(Path, images) if path.is_file()))
        if engine is Engine.ray:
            need("ray", "the engine ray", "ray")
        from dataclasses import replace

        from masksim.batch.run import run_batch
        from masksim.data import inputs
        from masksim.load import load_detector

        asked = {choice.value.replace("-", " ") for choice in fail_on or ()}
        load = partial(load_detector, model, threads=1, metadata=metadata)
        if asked - {"error"} and not load().sample_size:
            raise UsageError("this detector is not calibrated: no verdict reaches a level")
        found = inputs.list_inputs(images, recursive=recursive, column=column, root=root)
        if shard is not None:
            found = replace(found, paths=inputs.shard(found.paths, *_part(shard)))
        with stages(every=EVERY) as progress:
            summary = run_batch(
                found, out, load=load, workers=workers, resume=resume, overwrite=overwrite,
                engine=engine.value, ray_address=ray_address, timeout=timeout, progress=progress,
            )  # fmt: skip
        _report(summary)
        if as_json:
            write(to_json(summary.to_dict()))
        if any(summary.reaches(level) for level in asked - {"error"}):
            raise typer.Exit(FOUND)
        if "error" in asked and summary.reaches("error"):
            raise typer.Exit(ImageError.exit_code)


def _part(shard: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)):
        raise UsageError(f"--shard {shard}: expected I/N, as in 1/4")
    return int(match[1]), int(match[2])


def _report(summary: Summary) -> None:
    """Say what came out."""
    say(
        f"{summary.out}: {summary.images} images, {summary.resumed} of them before; "
        f"{summary.seconds:.1f} s, {summary.rate:.1f} images/s, {summary.workers} workers"
    )
    for level, count in sorted(summary.levels.items(), key=lambda item: -item[1]):
        say(f"  {level}: {count}")
    for code, count in sorted(summary.errors.items(), key=lambda item: -item[1]):
        say(f"  not analysed, {code}: {count}")

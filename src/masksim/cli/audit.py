"""The commands about a detector's own error rate: ``masksim calibrate`` and ``masksim audit``."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from masksim.cli.console import (
    Cache,
    DetectorArgument,
    Format,
    Json,
    Overwrite,
    Population,
    Quick,
    Workers,
    cache_folder,
    errors,
    images_of,
    need_for_files,
    option,
    say,
    stages,
    terminal_width,
    to_json,
    write,
)
from masksim.errors import UsageError, counted

NOT_HELD = 1
"""Exit code of ``masksim audit --strict`` where a claimed rate is exceeded."""


class By(str, Enum):
    """What the rows of the table are."""

    source = "source"
    stratum = "stratum"


def calibrate(
    detector: DetectorArgument,
    real: Annotated[list[Path], option("Real photos; a sub-folder is a source.", metavar="DIR")],
    out: Annotated[Path, option("The detector to write.", metavar="DIR")],
    name: Annotated[str, option("Name for these photos.")] = "own",
    cache: Cache = None,
    workers: Workers = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure false-positive rates on photos of your own as well, and keep them in the detector."""
    with errors():
        from masksim.checkpoint import check_target
        from masksim.evaluation.calibrate import calibrate as add

        check_target(out, overwrite)
        place = cache_folder(cache, *real)
        with stages() as progress:
            made, added = add(
                detector, real, name=name, cache=place, workers=workers, progress=progress
            )
        saved = made.save(out, overwrite=overwrite)
        if as_json:
            write(
                to_json(
                    {
                        "detector": str(out),
                        "sha256": saved.sha256,
                        "name": added.name,
                        "photos": added.photos,
                        "sources": added.sources,
                        "skipped": dict(added.skipped),
                        "warnings": list(added.warnings),
                    }
                )
            )
        else:
            write(f"{out}: calibrated on {added.photos} photos of {added.sources} sources as well")
            write(f"  sha256 {saved.sha256}")
            if added.skipped:
                say(f"note: files left out: {counted(added.skipped)}")
        for warning in added.warnings:
            say(f"warning: {warning}")


def audit(
    detector: DetectorArgument,
    real: Annotated[
        list[Path] | None, option("Real photos; a sub-folder is a source.", metavar="DIR")
    ] = None,
    manifest: Annotated[
        Path | None, option("Take the real photos of a manifest instead.", metavar="FILE")
    ] = None,
    split: Annotated[str, option("Split of the manifest to take.")] = "val",
    by: Annotated[By, option("What the rows of the table are.")] = By.source,
    format: Annotated[Format, option("Format of the table.")] = Format.text,
    population: Population = "auto",
    quick: Quick = False,
    strict: Annotated[
        bool, option(f"Exit with {NOT_HELD} if a claim is exceeded.", "--strict")
    ] = False,
    cache: Cache = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Count false alarms among photos that are known to be real, by source, with intervals."""
    with errors():
        from masksim.evaluation import audit as audits
        from masksim.evaluation.calibrate import photos_in

        if bool(real) == (manifest is not None):
            raise UsageError("give either folders of photos (--real) or a manifest (--manifest)")
        need_for_files(manifest)
        left_out: dict[str, int] = {}
        if manifest is not None:
            images = images_of(manifest, split)
        else:
            images, left_out = photos_in(real or [])
        place = cache_folder(cache, *([manifest] if manifest else real or []))
        with stages() as progress:
            found = audits.audit(
                detector, images, cache=place, population=population, stability=not quick,
                workers=workers, progress=progress,
            )  # fmt: skip
        if as_json:
            write(to_json({**found.to_dict(), "left_out": left_out}))
        else:
            width = terminal_width()
            made = audits.table(found, by=by.value)
            write(made.render(format.value, width=width if format is Format.text else None))
        reasons = Counter(left_out)
        reasons.update(found.failures.values())
        if reasons:
            say(f"note: photos left out: {counted(reasons)}")
        for claimed in found.exceeded:
            say(
                f"warning: the claimed rate of {100 * claimed:g} % is exceeded on these photos, "
                "with photos grouped by source"
            )
        if strict and found.exceeded:
            raise typer.Exit(NOT_HELD)

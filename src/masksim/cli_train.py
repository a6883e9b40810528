"""The commands that make detectors: ``masksim train``, ``masksim enroll``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from masksim.console import (
    Cache,
    Json,
    ManifestFile,
    Model,
    Overwrite,
    Workers,
    errors,
    say,
    stages,
    to_json,
    write,
)
from masksim.errors import UsageError


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file.")],
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The detector to write.")],
    cache: Cache = Path("runs/cache"),
    workers: Workers = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a detector of every generator in a manifest's train split."""
    with errors():
        from masksim.manifest import read_manifest
        from masksim.train import read_config, train_shared

        chosen = read_config(config)
        with stages() as progress:
            made, fit = train_shared(
                read_manifest(manifest), out, chosen,
                cache=cache, workers=workers, overwrite=overwrite, progress=progress,
            )  # fmt: skip
        auroc = {name: round(value, 4) for name, value in fit.cross_validated_auroc.items()}
        if as_json:
            write(to_json({"detector": str(out), "sha256": made.sha256, "auroc": auroc}))
            return
        write(f"{out}: sha256 {made.sha256}")
        for name, value in auroc.items():
            write(f"  {name}: cross-validated AUROC {value:.3f}")
        skipped = made.provenance["skipped"]
        if skipped:
            say(f"note: images left out, by reason: {to_json(skipped)}")


def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new generator's name.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders of its images; a sub-folder is a source."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The detector to write.")],
    real: Annotated[
        list[Path] | None,
        typer.Option("--real", metavar="DIR", help="A folder of further real photos; repeatable."),
    ] = None,
    model: Model = None,
    views: Annotated[int, typer.Option(min=1, help="Draws of processing for each image.")] = 6,
    cache: Cache = Path("runs/cache"),
    workers: Workers = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add a generator to a detector, from a folder of 50 to 500 of its images."""
    with errors():
        from masksim.checkpoint import DetectorFile
        from masksim.detector import bundled_path
        from masksim.enroll import EnrollConfig
        from masksim.enroll import enroll as add

        if out.exists() and not overwrite:
            raise UsageError(f"{out} is there already; --overwrite replaces a detector")
        before = DetectorFile.load(bundled_path() if model is None else model)
        with stages() as progress:
            made, outcome = add(
                before, name, images, real=real or (), cache=cache, workers=workers,
                config=EnrollConfig(views=views), progress=progress,
            )  # fmt: skip
        saved = made.save(out, overwrite=overwrite)
        if as_json:
            write(to_json({"detector": str(out), "sha256": saved.sha256, **outcome.to_dict()}))
            return
        auroc = outcome.auroc
        write(f"{out}: {len(saved.generators)} generators, sha256 {saved.sha256}")
        write(
            f"  {name}: {outcome.images} images of {outcome.sources} sources against "
            f"{outcome.photos} real photos"
        )
        write(
            f"  cross-validated AUROC {auroc.value:.3f}, 95 % interval {auroc.low:.3f} to "
            f"{auroc.high:.3f}"
        )
        if outcome.skipped:
            say(f"note: images left out, by reason: {to_json(dict(outcome.skipped))}")
        for warning in outcome.warnings:
            say(f"warning: {warning}")

"""The commands that make detectors: ``masksim train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from masksim.console import (
    Cache,
    Json,
    ManifestFile,
    Overwrite,
    Workers,
    errors,
    say,
    stages,
    to_json,
    write,
)


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

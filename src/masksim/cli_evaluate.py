"""The commands that measure detectors: ``masksim evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from masksim.console import (
    Cache,
    Json,
    ManifestFile,
    Model,
    Workers,
    errors,
    say,
    stages,
    to_json,
    write,
)


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
    as_json: Json = False,
) -> None:
    """Measure a calibrated detector on a manifest: AUROC, TPR, false alarms, histories."""
    with errors():
        from masksim import evaluate as rooms
        from masksim.detector import bundled_path, load_detector
        from masksim.manifest import read_manifest

        images = read_manifest(manifest)
        path = bundled_path() if model is None else model
        detector = load_detector(path)
        with stages() as progress:
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
            (out / "results.json").write_text(to_json(measured, indent=1) + "\n", encoding="utf-8")
            (out / "results.md").write_text("\n\n".join(pages.values()) + "\n", encoding="utf-8")
        write(to_json(measured) if as_json else "\n\n".join(pages.values()))
        if table.failures:
            say(f"note: {len(table.failures)} images could not be scored")

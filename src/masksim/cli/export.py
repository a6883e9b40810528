"""The commands ``masksim export``: a detector for other runtimes, and whether it is the same."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksim.cli.console import (
    DetectorArgument,
    Json,
    Overwrite,
    Population,
    argument,
    check_free,
    errors,
    images_of,
    need,
    need_for_files,
    option,
    say,
    stages,
    to_json,
    write,
)
from masksim.errors import UsageError, counted

if TYPE_CHECKING:
    from masksim.detector import Detector

NOT_THE_SAME = 1
"""Exit code of ``masksim export verify`` where graph and detector differ."""

app = typer.Typer(
    name="export",
    help="Write a detector as one graph for other runtimes, and compare the two.",
    no_args_is_help=True,
)

_Maps = Annotated[bool, option("Also give the similarity maps as an output.", "--maps")]


class Backend(str, Enum):
    """What runs a graph."""

    ort_cpu = "ort-cpu"
    ort_cuda = "ort-cuda"
    ort_openvino = "ort-openvino"
    openvino = "openvino"


def _load(which: Path, population: str, threads: int | None = None) -> Detector:
    from masksim.load import load_detector

    return load_detector(which, population=population, threads=threads)


def _written(made: dict[str, Any], detector: Detector, as_json: bool) -> None:
    if as_json:
        write(to_json({**made, "detector": detector.name, "sha256": detector.sha256}))
        return
    write(f"{', '.join(made['files'])}: {made['bytes'] / 1e6:.1f} MB")
    write(f"  of {detector.name}, sha256 {detector.sha256}")
    if not detector.calibrations:
        say("note: the detector is not calibrated: the graph gives similarities, but no rates")


@app.command("onnx")
def export_onnx(
    detector: DetectorArgument,
    out: Annotated[Path, option("The .onnx file to write.", metavar="FILE")],
    maps: _Maps = False,
    population: Population = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one ONNX graph: windows of an image in, similarities and rates out."""
    with errors():
        need("export", "`masksim export onnx`", "onnx")
        check_free(out, overwrite=overwrite)
        from masksim.export.onnx import write_onnx

        loaded = _load(detector, population)
        _written(write_onnx(loaded, out, maps=maps), loaded, as_json)


@app.command("openvino")
def export_openvino(
    detector: DetectorArgument,
    out: Annotated[Path, option("The .xml file, or its folder.", metavar="FILE_OR_DIR")],
    maps: _Maps = False,
    population: Population = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the same as OpenVINO's intermediate representation (.xml and .bin)."""
    with errors():
        need("export", "`masksim export openvino`", "onnx", "openvino")
        if out.suffix.lower() == ".xml":
            check_free(out, out.with_suffix(".bin"), overwrite=overwrite)
        from masksim.export.openvino import write_openvino

        loaded = _load(detector, population)
        if out.suffix.lower() != ".xml":
            check_free(out / f"{loaded.name}.xml", overwrite=overwrite)
        _written(write_openvino(loaded, out, maps=maps), loaded, as_json)


@app.command()
def verify(
    file: Annotated[Path, argument("The .onnx or .xml file.", "FILE")],
    detector: DetectorArgument,
    images: Annotated[list[Path] | None, argument("Images to compare on.", "IMAGE...")] = None,
    manifest: Annotated[
        Path | None, option("Take the images from a manifest instead.", metavar="FILE")
    ] = None,
    split: Annotated[str, option("Split of the manifest to take.")] = "val",
    count: Annotated[
        int, option("Most images to take from the manifest, evenly spread.", min=1)
    ] = 100,
    backend: Annotated[
        Backend | None, option("What runs it; default: openvino for .xml, else ort-cpu.")
    ] = None,
    tolerance: Annotated[
        float, option("Largest allowed difference of similarities.", min=0.0)
    ] = 1e-5,
    population: Population = "auto",
    threads: Annotated[int | None, option("Threads for both; default: one a core.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Compare a graph with its detector on images; exit with 1 if they are not the same."""
    with errors():
        from masksim.export.runner import GraphRunner
        from masksim.export.runner import verify as compare

        if bool(images) == (manifest is not None):
            raise UsageError("give either images or a manifest (--manifest)")
        need_for_files(manifest)
        if file.suffix.lower() == ".xml" or backend is Backend.openvino:
            need("export", "running this file", "openvino")
        paths = list(images or [])
        if manifest is not None:
            chosen = images_of(manifest, split)
            step = max(1.0, len(chosen.rows) / count)
            paths = [
                chosen.file(chosen.rows[int(k * step)]) for k in range(min(count, len(chosen.rows)))
            ]
        loaded = _load(detector, population, threads)
        runner = GraphRunner(file, None if backend is None else backend.value, threads=threads)
        with stages(not as_json) as progress:
            found = compare(runner, loaded, paths, tolerance=tolerance, progress=progress)
        if as_json:
            write(to_json({**found.to_dict(), "file": str(file), "sha256": loaded.sha256}))
        else:
            rated = bool(loaded.calibrations)
            write(f"{file}, run by {found.backend}: {'the same' if found.same else 'NOT the same'}")
            write(f"  images: {found.images}, left out: {counted(found.left_out)}")
            write("  largest difference")
            write(f"    similarity: {found.similarity:.1e} (at most {found.tolerance:g})")
            write(f"    probability: {found.probability:.1e}")
            if rated:
                write(f"    rate of a generator: {found.own_rate:.1e}")
                write(f"    joint rate: {found.joint_rate:.1e}")
                write("  images that differ")
                write(f"    in the rate of some generator: {found.own_rates_differ}")
                write(f"    in the joint rate: {found.joint_rates_differ}")
                write(f"    in the level of the verdict: {found.levels_differ} (none may)")
                write(f"    in ranking the graph's own numbers: {found.wrong_ranks} (none may)")
            write(
                f"  time an image: detector {found.detector_seconds:.3f} s, graph "
                f"{found.graph_seconds:.3f} s"
            )
        if not found.same:
            raise typer.Exit(NOT_THE_SAME)

"""A detector as OpenVINO's intermediate representation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksim.errors import ModelError, UsageError, install
from masksim.export.onnx import export_onnx, metadata

if TYPE_CHECKING:
    from masksim.detector import Detector


def write_openvino(
    detector: Detector, path: str | os.PathLike[str], *, maps: bool = False
) -> dict[str, Any]:
    """Write a detector as OpenVINO's intermediate representation, in single precision.

    Needs the packages ``onnx`` and ``openvino``.

    Parameters
    ----------
    detector, maps
        See `export_onnx`.
    path
        A name ending in ``.xml``; the weights lie beside it, ``.bin``. Any other is a folder, in
        which they are named for the detector.

    Returns
    -------
    dict
        ``files`` and ``bytes``.

    Raises
    ------
    ModelError
        As `export_onnx`; code ``openvino_missing`` without that package.
    UsageError
        The files cannot be written.
    """
    openvino = import_openvino()
    graph = export_onnx(detector, maps=maps)
    model = openvino.Core().read_model(graph)
    for name, text in metadata(graph).items():
        model.set_rt_info(text, ["masksim", name])
    target = Path(path)
    if target.suffix.lower() != ".xml":
        target = target / f"{detector.name}.xml"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Half precision would move similarities by more than the calibration tells apart.
        openvino.save_model(model, target, compress_to_fp16=False)
        files = [target, target.with_suffix(".bin")]
        size = sum(file.stat().st_size for file in files)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"cannot write {target}: {error}") from error
    return {"files": [str(file) for file in files], "bytes": size}


def import_openvino() -> Any:
    """Return the module ``openvino``.

    Raises
    ------
    ModelError
        Code ``openvino_missing``.
    """
    try:
        import openvino
    except ImportError as error:
        raise ModelError(
            f"this needs the package openvino: {install('export')}",
            code="openvino_missing",
        ) from error
    return openvino

"""A detector as one ONNX graph, for other people's runtimes.

`export_onnx` writes what `masksim.export.graph` computes, with names and descriptions of what goes
in and comes out; `masksim.export.runner` runs it, and compares it with the detector that it was
made of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import __version__, verdict
from masksim.errors import ModelError, install
from masksim.export import ranks
from masksim.export.graph import GIVEN, MEASURED, Traits, measured, windows_of
from masksim.files import make_folder, write_whole

if TYPE_CHECKING:
    from masksim.detector import Detector
    from masksim.export.trace import Array, Writer

PREFIX = "masksim."
"""Of the names of the graph's metadata; those of other tools stay apart."""


def export_onnx(detector: Detector, *, maps: bool = False) -> bytes:
    """Write a detector as one ONNX graph, from windows to false-positive rates.

    Needs the package ``onnx``. The same detector gives the same bytes.

    Parameters
    ----------
    detector
        Its `calibrations` are those that rates are measured on.
    maps
        Give the similarity maps, too.

    Returns
    -------
    bytes
        Inputs and outputs carry descriptions; docs/export.md lists them. A detector without
        calibration has no rates.

    Raises
    ------
    ModelError
        Code ``onnx_missing`` without the package; ``model_invalid`` for a detector that is no
        single graph, see `windows_of`, or whose maps have different sizes.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelError(
            f"a graph needs the package onnx: {install('export')}",
            code="onnx_missing",
        ) from error
    from masksim.export.trace import Writer
    from masksim.residual import IR_VERSION, OPSET

    chosen = windows_of(detector)
    xp = Writer()
    free = chosen["recipe"] == "shared"
    sides = [None, None] if free else [chosen["size"]] * 2
    windows = xp.input("windows", np.uint8, [None, None if free else 1, *sides, 3])
    luma = xp.input("luma_windows", np.uint8, [None] * 4 + [3]) if "luma" in chosen else None
    found, traits = measured(detector, windows, maps, luma)
    strata = _rates(detector, found, traits)
    inputs, outputs = _inputs(xp, free), _outputs(xp, detector, found)
    nodes, constants = xp.used(entry.name for entry in outputs)
    graph = onnx.helper.make_graph(
        nodes,
        "masksim",
        inputs,
        outputs,
        constants,
        doc_string="Similarity of images with the spectral patterns of generators, and how rare it "
        "is among real photos. Not the probability that an image is synthetic.",
    )
    model = onnx.helper.make_model(
        graph,
        producer_name="masksim",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    about = {
        "detector": detector.name,
        "sha256": detector.sha256,
        "version": __version__,
        "generators": json.dumps(list(detector.generators)),
        "windows": json.dumps(chosen),
        "traits": json.dumps([name for name in MEASURED if name in traits.known]),
        "strata": json.dumps(strata),
        "inputs": json.dumps({entry.name: entry.doc_string for entry in inputs}),
        "outputs": json.dumps({entry.name: entry.doc_string for entry in outputs}),
        "levels": json.dumps({level: limit for limit, level in verdict.LEVELS}),
    }
    onnx.helper.set_model_props(model, {f"{PREFIX}{name}": text for name, text in about.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return bytes(model.SerializeToString(deterministic=True))


def _rates(detector: Detector, found: dict[str, Array], traits: Traits) -> list[dict[str, Any]]:
    """Add the rates to the outputs; give what is said of each stratum."""
    strata: list[dict[str, Any]] = []
    best: list[Array] = []
    similarity, xp = found["similarity"], traits.xp
    for population, calibration in detector.calibrations.items():
        leaf = ranks.stratum(calibration, traits, similarity[:, 0])
        own, joint = ranks.rates(calibration, similarity, leaf, traits)
        mine = [own, joint, leaf + len(strata)]
        strata += [{"population": population} | row for row in ranks.described(calibration)]
        if best:  # the population with the largest joint rate counts, of equal ones the first
            worse = joint > best[1]
            mine = [
                xp.where(worse[:, None] if one.ndim == 2 else worse, one, other)
                for one, other in zip(mine, best, strict=True)
            ]
        best = mine
    if best:
        names = ("false_positive_rate", "joint_rate", "stratum")
        found |= zip(names, best, strict=True)
    return strata


def _inputs(xp: Writer, free: bool) -> list[Any]:
    """Describe the inputs that were asked for; `free`: windows of any number and size."""
    from onnx import TensorProto, helper

    sizes: list[Any] = list(xp.inputs["windows"].sizes)
    sizes = ["images", "windows", "height", "width", 3] if free else ["images", *sizes[1:]]
    windows = helper.make_tensor_value_info(
        "windows",
        TensorProto.UINT8,
        sizes,
        doc_string="Windows of each image: 8-bit sRGB pixels, not resampled, channels last. "
        "All images of a batch have equally many windows of one size.",
    )
    more = []
    if "luma_windows" in xp.inputs:
        more = [
            helper.make_tensor_value_info(
                "luma_windows",
                TensorProto.UINT8,
                ["images", "windows_of_luma", "height_of_luma", "width_of_luma", 3],
                doc_string="As windows, but those of the learned residual: other places, another "
                f"size, see the metadata {PREFIX}windows.",
            )
        ]
    return [windows, *more] + [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["images"], doc_string=text)
        for name, text in GIVEN.items()
        if name in xp.inputs
    ]


def _outputs(xp: Writer, detector: Detector, found: Mapping[str, Array]) -> list[Any]:
    """Name the outputs in the graph, and describe them."""
    from onnx import TensorProto, helper

    branch, *more = detector.file.branches
    shared = branch.head != "original"
    texts = _output_texts(shared)
    if shared and more:
        texts["maps"] += " Behind the channels of the features come those of the learned residual."
    if shared:
        texts["features"] += _more_channels(branch.spectrum)
    count = len(detector.generators)
    sizes: dict[str, Sequence[Any]] = {
        "similarity": [count],
        "probability": [count],
        "false_positive_rate": [count],
        "joint_rate": [],
        "stratum": [],
        "traits": found["traits"].sizes[1:],
    }
    cells = branch.tensors["mean" if shared else "ref_pattern_list.0"].shape[-3:]
    behind = more[0].tensors["mean"].shape[-3] if shared and more else 0
    sizes |= {"features": cells, "maps": [count, cells[0] + behind, *cells[1:]]}
    outputs = []
    for name, rest in sizes.items():
        if name in found:
            xp.output(found[name], name)
            kind = TensorProto.INT64 if name == "stratum" else TensorProto.FLOAT
            outputs.append(
                helper.make_tensor_value_info(name, kind, ["images", *rest], doc_string=texts[name])
            )
    return outputs


def _output_texts(shared: bool) -> dict[str, str]:
    what = "channel, row and column of cells" if shared else "channel, row and column"
    return {
        "similarity": "Cosine with each generator's reference, in [-1, 1].",
        "probability": "Logistic output of each head, for equally many real and synthetic "
        "images; not the probability that this image is synthetic.",
        "false_positive_rate": "Share of real photos that score at least as high for this "
        "generator alone, in (0, 1].",
        "joint_rate": "Share of real photos that score at least as high for some generator, "
        "in (0, 1]: the rate of the verdict, corrected for having asked all generators.",
        "stratum": "Which photos the rates were measured on: an index into the metadata "
        f"{PREFIX}strata.",
        "traits": f"What the windows show; the names are in the metadata {PREFIX}traits.",
        "features": "Cells of mean log-power spectra, natural logarithm of levels squared; rows "
        "from the lowest frequency -1/2 upwards, columns from 0.",
        "maps": f"Contribution of each {what} to each generator's similarity, which is their sum.",
    }


def _more_channels(spectrum: Mapping[str, Any]) -> str:
    found = ""
    if (parts := spectrum.get("parts", 1)) > 1:
        found += (
            f" Luma's channels come {parts} times: for the segments of least energy, those of "
            "more, and so on."
        )
    if spectrum.get("coherence"):
        found += (
            " The last three channels are the coherence of R with G, G with B and R with B: mean "
            "cosines of phase differences."
        )
    return found


def write_onnx(
    detector: Detector, path: str | os.PathLike[str], *, maps: bool = False
) -> dict[str, Any]:
    """Write `export_onnx` to a file.

    Returns
    -------
    dict
        ``files`` and ``bytes``.

    Raises
    ------
    ModelError
        As `export_onnx`.
    UsageError
        The file cannot be written.
    """
    graph = export_onnx(detector, maps=maps)
    target = Path(path)
    if not target.parent.is_dir():  # that of a device need not be one to write into
        make_folder(target.parent)
    write_whole(target, graph)
    return {"files": [str(target)], "bytes": len(graph)}


def metadata(graph: bytes) -> dict[str, str]:
    """Read what an ONNX graph says of itself: text by name."""
    import onnx

    found = onnx.load_model_from_string(graph).metadata_props
    return {entry.key.removeprefix(PREFIX): entry.value for entry in found}

"""Making a detector of the original's checkpoints, which are read and never executed.

A ``.ckpt`` file is a pickle, and a pickle may call anything. Everything that it names is looked at
before torch, which this alone needs, is let near it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle  # for the exception alone: nothing is unpickled with it
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksim import model
from masksim.checkpoint import Branch, DetectorFile, check_target
from masksim.errors import ModelError, UsageError, install
from masksim.preprocess import COLOUR_SPACES, ColourSpace
from masksim.residual import ResidualConfig, check_weights, residual_onnx
from masksim.spectrum import EPSILON

_MAX_BYTES = 2**30

DEFAULT_COLOUR: ColourSpace = "YCbCr-BT601-studio-8bit"
"""Of all checkpoints the original publishes: they are trained on compressed images."""


@dataclass(frozen=True, eq=False)
class OriginalCheckpoint:
    """What a ``.ckpt`` file of the original holds, verified.

    Attributes
    ----------
    generator : str
        From the file name, ``<generator>-epoch=...`` or ``latest-<generator>-epoch=...``; else the
        name without its suffix. The original saves its detector of all classes under ``firefly``.
    window : int
        Side of the window, pixels.
    residual : ResidualConfig
    residual_weights : mapping of name to float32 array
    tensors : mapping of name to float32 array
        Of `masksim.model.OriginalHead`.
    valid_loss : float or None
        From the file name.
    facts : mapping
        File name, SHA-256, epoch and hyper-parameters, plain values for JSON.
    """

    generator: str
    window: int
    residual: ResidualConfig
    residual_weights: Mapping[str, NDArray[np.float32]] = field(repr=False)
    tensors: Mapping[str, NDArray[np.float32]] = field(repr=False)
    valid_loss: float | None
    facts: Mapping[str, Any]


# What may stand in a checkpoint besides tensors, and what is made of it. All are plain data.
_HARMLESS: dict[str, type[Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "pathlib.PosixPath": PurePosixPath,
    "pathlib.WindowsPath": PureWindowsPath,
    "pathlib._local.PosixPath": PurePosixPath,
    "pathlib._local.WindowsPath": PureWindowsPath,
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
    "lightning.pytorch.utilities.parsing.AttributeDict": OrderedDict,
    "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
    "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
}


class _Skipped:
    """Takes the place of NumPy's arrays and numbers: none of them is needed, so none is made."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def __str__(self) -> str:
        return "(an array of NumPy)"


# The original keeps a reference pattern that it was given among its hyper-parameters.
_HARMLESS |= dict.fromkeys(
    ["numpy.dtype", "numpy.ndarray"]
    + [
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ],
    _Skipped,
)
_TENSOR_PARTS = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.([A-Z][A-Za-z0-9]*Storage|Size|device|b?float(16|32|64)|u?int\d{1,2}|bool)"
    r"|torch\.storage\.UntypedStorage"
)


def _named_by_pickle(data: bytes) -> Iterator[str]:
    """Everything a pickle would import, read without running it."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            yield ".".join(str(argument).split(" ", 1))
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            yield f"({opcode.name}: only known when it runs)"


def _check_pickle(data: bytes, name: str) -> None:
    """Refuse a checkpoint whose pickle names anything but tensors and plain data.

    torch's own ``weights_only`` comes after; this is stricter, independent of torch's version, and
    says what was found.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].filename.rpartition("/")[2] != "data.pkl":
                found = sorted(entry.filename for entry in entries)[:5]
                raise ModelError(f"{name} is not a checkpoint of torch: it is a zip of {found}")
            # torch stores without compressing: what is not so could unpack to any size.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ModelError(f"{name} is not a checkpoint of torch: it is a compressed zip")
            named = sorted(set(_named_by_pickle(archive.read(pickles[0]))))
    except ModelError:
        raise
    except Exception as error:  # zipfile and pickletools raise many kinds on damaged data
        raise ModelError(
            f"{name} is damaged or is not a checkpoint of torch (a zip archive): {error}"
        ) from error
    unsafe = [item for item in named if item not in _HARMLESS and not _TENSOR_PARTS.fullmatch(item)]
    if unsafe:
        raise ModelError(
            f"{name} is refused: besides tensors it asks to import {', '.join(unsafe[:10])}",
            code="model_unsafe",
        )


def _load_checkpoint(data: bytes, name: str) -> dict[str, Any]:
    """Read the dictionary in a checkpoint, tensors and plain data, without running its pickle."""
    _check_pickle(data, name)  # a dangerous file is refused whether or not torch is here
    try:
        import torch
    except ImportError as error:
        raise ModelError(
            f"reading the original's checkpoints needs the package torch: {install('train')}",
            code="torch_missing",
        ) from error
    with torch.serialization.safe_globals([(made, named) for named, made in _HARMLESS.items()]):
        content = load_tensors(data, name)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ModelError(f"{name} is not a Lightning checkpoint: it has no state_dict")
    return content


def load_tensors(data: bytes, name: str) -> Any:
    """Read what torch has saved, tensors and plain data, without running its pickle.

    Parameters
    ----------
    data
        The file.
    name
        Of the file, for messages.

    Raises
    ------
    ModelError
        ``model_unsafe`` if it holds anything else; ``model_invalid`` if it is damaged.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is an old or new pickle: it loads or fails
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text goes on to explain how to switch the protection off: keep the reason alone.
        reason = re.search(r"WeightsUnpickler error: ([^\n]+)", str(error))
        detail = reason[1].strip() if reason else "it holds more than tensors and plain data"
        raise ModelError(f"{name} is refused: {detail}", code="model_unsafe") from error
    except Exception as error:  # damaged archives raise many kinds
        raise ModelError(f"{name} is damaged, or is no file of torch: {error}") from error


def _arrays(state: Mapping[Any, Any], name: str) -> dict[str, NDArray[np.float32]]:
    import torch

    arrays: dict[str, NDArray[np.float32]] = {}
    problems: list[str] = []
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            problems.append(f"{key!r} is not a tensor")
        elif key.endswith(".num_batches_tracked"):
            continue  # counts training steps; inference does not use it
        elif value.layout != torch.strided or not value.is_floating_point():
            problems.append(f"{key} is not a dense floating-point tensor")
        elif value.numel() > _MAX_BYTES // 4:  # few bytes can pose as a huge tensor
            problems.append(f"{key} has {value.numel()} values")
        elif not bool(torch.isfinite(value).all()):
            problems.append(f"{key} has values that are not finite")
        else:
            arrays[key] = np.array(value.detach().float().numpy(), dtype=np.float32)
    if problems:
        raise ModelError(f"{name}: invalid state_dict: " + "; ".join(problems))
    return arrays


def _residual_of(
    preprocess: Any, weights: dict[str, NDArray[np.float32]], name: str
) -> tuple[ResidualConfig, dict[str, NDArray[np.float32]]]:
    """Find the architecture that the hyper-parameters name and the weights have."""
    if preprocess is None and weights:  # the hyper-parameters do not say: the weights do
        preprocess = "DnCNN" if "model.0.weight" in weights else "linear3x3"
    if preprocess == "DnCNN":
        convolutions = [
            int(match[1]) for key in weights if (match := re.fullmatch(r"model\.(\d+)\.bias", key))
        ]
        last = max(convolutions, default=0)  # convolution, [batch norm], ReLU: three a layer
        first = weights.get("model.0.weight")
        features = first.shape[0] if first is not None and first.ndim == 4 else 64
        depth = (last - 2) // 3 + 2 if last >= 2 else 17
        try:
            return ResidualConfig.dncnn(depth, features), weights
        except UsageError as error:
            raise ModelError(f"{name}: {error}") from error
    if preprocess == "linear3x3":
        return ResidualConfig("linear3x3"), weights
    if preprocess == "cross_diff":
        # The kernel is fixed; where a checkpoint has it all the same it must be that one.
        return ResidualConfig("cross_diff"), {
            key: values for key, values in weights.items() if not _is_cross_difference(values)
        }
    if preprocess in (None, "none", "None") or not weights:
        # The original does nothing where it does not know the word.
        return ResidualConfig("none"), weights
    raise ModelError(f"{name}: unknown preprocess {preprocess!r}")


_FIXED = "conv_filter.weight"  # beside the residual's own, for it is not trained


def _is_cross_difference(kernel: NDArray[np.float32]) -> bool:
    """Whether a tensor holds [[1, -1], [-1, 1]] for each channel and nothing else."""
    fixed = np.array([1, -1, -1, 1], dtype=np.float32)
    return kernel.size % 4 == 0 and bool((kernel.reshape(-1, 4) == fixed).all())


def _plain(value: Any) -> Any:
    """Make a value fit for JSON: itself if it is plain, else a short text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and np.isfinite(value):
        return value
    if isinstance(value, argparse.Namespace):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value[:100]]
    return str(value)[:200]


def read_original_checkpoint(path: str | os.PathLike[str]) -> OriginalCheckpoint:
    """Read a ``.ckpt`` file of the original. Nothing in it is executed.

    Parameters
    ----------
    path : path
        A Lightning checkpoint, as the original's training writes it.

    Raises
    ------
    ModelError
        ``model_not_found`` if it cannot be read; ``torch_missing``; ``model_unsafe`` if its pickle
        holds more than tensors and plain data; ``model_invalid`` if it is damaged or is not a
        checkpoint of the original, listing the keys that are missing, unknown or misshapen.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path} has more than {_MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the checkpoint {path}: {error.strerror}", code="model_not_found"
        ) from error
    name = path.name
    content = _load_checkpoint(data, name)
    hyper = content.get("hyper_parameters") or {}
    if isinstance(hyper, argparse.Namespace):
        hyper = vars(hyper)
    if not isinstance(hyper, Mapping):
        found = type(hyper).__name__
        raise ModelError(f"{name}: hyper_parameters must be a mapping, found {found}")

    arrays = _arrays(content["state_dict"], name)
    weights = {
        key.removeprefix("preproc."): arrays.pop(key)
        for key in list(arrays)
        if key.startswith("preproc.")
    }
    preprocess = hyper.get("preprocess")
    if _FIXED in arrays:
        if preprocess not in (None, "cross_diff") or arrays[_FIXED].shape != (3, 1, 2, 2):
            raise ModelError(
                f"{name}: {_FIXED} of shape {arrays[_FIXED].shape} does not belong to "
                f"preprocess {preprocess!r}"
            )
        if not _is_cross_difference(arrays.pop(_FIXED)):
            raise ModelError(f"{name}: {_FIXED} is not the cross difference [[1, -1], [-1, 1]]")
        preprocess = "cross_diff"
    residual, weights = _residual_of(preprocess, weights, name)
    check_weights(residual, weights)

    reference = arrays.get("ref_pattern_list.0")
    window = hyper.get("img_size")
    if window is None and reference is not None:
        window = reference.shape[-1] + 2 * residual.margin
    if type(window) is not int or not 2 * residual.margin < window <= 2**16:
        raise ModelError(f"{name}: img_size must be a number of pixels, found {window!r}")
    masks = hyper.get("num_masks")
    if masks is not None and (type(masks) is not int or not 1 <= masks <= 1000):
        raise ModelError(f"{name}: num_masks must be a number of masks, found {masks!r}")
    try:
        model.check_tensors(arrays, masks=masks, size=window - 2 * residual.margin)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error

    loss = re.search(r"valid_loss=(\d+(?:\.\d+)?)", name)
    return OriginalCheckpoint(
        generator=_generator_of(path),
        window=window,
        residual=residual,
        residual_weights=weights,
        tensors=arrays,
        valid_loss=float(loss[1]) if loss else None,
        facts={
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "epoch": _plain(content.get("epoch")),
            "global_step": _plain(content.get("global_step")),
            "lightning": _plain(content.get("pytorch-lightning_version")),
            "hyper_parameters": _plain(hyper),
        },
    )


def _generator_of(path: Path) -> str:
    """Name the generator by the file: ``sd1-epoch=...``, or ``latest-sd1-epoch=...``."""
    name, epoch, _ = path.stem.partition("-epoch=")
    return name.removeprefix("latest-") if epoch else name


def _selected(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """One file a generator, and a sentence on each that was passed over."""

    def merit(path: Path) -> tuple[float, int, int, str]:
        loss = re.search(r"valid_loss=(\d+(?:\.\d+)?)", path.name)
        epoch = re.search(r"-epoch=(\d+)", path.name)
        again = re.search(r"-v(\d+)$", path.stem)  # Lightning's, where the name was taken
        return (
            float(loss[1]) if loss else float("inf"),
            -int(epoch[1]) if epoch else 0,
            -int(again[1]) if again else 0,
            path.name,
        )

    classes: dict[str, list[Path]] = {}
    for path in paths:
        classes.setdefault(_generator_of(path), []).append(path)
    chosen: list[Path] = []
    notes: list[str] = []
    for generator, candidates in sorted(classes.items()):
        best, *others = sorted(candidates, key=merit)
        chosen.append(best)
        notes += [
            f"{generator}: {other.name} passed over for {best.name} "
            "(lowest validation loss, then latest epoch and version)"
            for other in others
        ]
    return chosen, notes


def import_original(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    colour: ColourSpace = DEFAULT_COLOUR,
    overwrite: bool = False,
) -> DetectorFile:
    """Make a detector of one or several checkpoints of the original.

    Parameters
    ----------
    source : path
        A ``.ckpt`` file, or a folder of them. Of several of one generator the one with the lowest
        validation loss in its name is taken, of equal ones that of the latest epoch;
        ``provenance["notes"]`` says which were passed over.
    folder : path
        The detector to write, see `DetectorFile.save`.
    colour : {"YCbCr-BT601-studio-8bit", "RGB", "YCbCr-BT601-full"}
        Colour space the checkpoints were trained in, which they do not say: the original takes
        YCbCr when it trains on compressed images (as for all it publishes), else RGB.
    overwrite : bool
        Replace a detector that is there.

    Returns
    -------
    DetectorFile
        As saved: one branch a checkpoint, in alphabetical order of the generators.

    Raises
    ------
    ModelError
        See `read_original_checkpoint`; ``model_not_found`` if a folder has no checkpoints;
        ``onnx_missing`` without the package ``onnx``, with which the residual network is written.
    UsageError
        On an unknown colour space, or if the folder cannot be written.
    """
    if colour not in COLOUR_SPACES:
        raise UsageError(f"unknown colour space {colour!r}; known: {', '.join(COLOUR_SPACES)}")
    check_target(Path(folder), overwrite)  # before minutes of work, not after
    source = Path(source)
    if source.is_dir():
        paths, notes = _selected(sorted(p for p in source.glob("*.ckpt") if p.is_file()))
        if not paths:
            raise ModelError(f"{source} holds no .ckpt files", code="model_not_found")
    else:
        paths, notes = [source], []
    checkpoints = [read_original_checkpoint(path) for path in paths]
    detector = DetectorFile(
        config={"recipe": "original"},
        branches=tuple(
            Branch(
                residual=checkpoint.residual,
                residual_weights=checkpoint.residual_weights,
                onnx=residual_onnx(checkpoint.residual, checkpoint.residual_weights),
                preprocess={
                    "window": checkpoint.window,
                    "colour": colour,
                    "windows": 1,
                    "aligned": True,
                },
                spectrum={"kind": "log", "epsilon": EPSILON},
                head="original",
                generators=(checkpoint.generator,),
                tensors=checkpoint.tensors,
            )
            for checkpoint in checkpoints
        ),
        provenance={
            "imported_from": [
                {"generator": checkpoint.generator, **checkpoint.facts}
                for checkpoint in checkpoints
            ],
            "notes": notes,
        },
    )
    return detector.save(folder, overwrite=overwrite)

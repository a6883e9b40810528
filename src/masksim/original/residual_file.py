"""Files of residual networks: a folder that `masksim train-residual` writes, or weights alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray

from masksim.errors import ModelError, UsageError
from masksim.files import make_folder, write_whole
from masksim.original.importer import arrays_of, load_tensors
from masksim.residual import ResidualConfig, check_weights

_WEIGHTS = "residual.safetensors"
_DESCRIPTION = "residual.json"
_FORMAT = "masksim-residual"


def check_residual_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that a residual network cannot be written to, before hours of work.

    Raises
    ------
    UsageError
        It is there and must not be replaced, or holds anything else.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        if not overwrite:
            raise UsageError(f"{folder} is there; --overwrite replaces it")
        if not (folder / _DESCRIPTION).is_file():
            raise UsageError(f"{folder} is no residual network: it is not overwritten")


def packed_weights(weights: Mapping[str, NDArray[Any]]) -> tuple[bytes, str]:
    """Give the file of weights, and its SHA-256."""
    data = bytes(safetensors.numpy.save(dict(weights)))
    return data, hashlib.sha256(data).hexdigest()


def write_residual(folder: Path, data: bytes, described: Mapping[str, Any]) -> None:
    """Write a residual network.

    Parameters
    ----------
    folder
        Made.
    data
        Of `packed_weights`.
    described
        Plain values for JSON, with ``residual``, ``training`` and the ``sha256`` of the weights.
    """
    make_folder(folder)
    write_whole(folder / _WEIGHTS, data)
    # Last: it holds the hash of the other.
    text = json.dumps({"format": _FORMAT, **described}, indent=1) + "\n"
    write_whole(folder / _DESCRIPTION, text.encode())


def describe_stack(weights: Mapping[str, NDArray[Any]]) -> ResidualConfig:
    """Find the architecture of a stack of convolutions by its weights, without padding.

    Raises
    ------
    ModelError
        They are of no such stack.
    """
    convolutions = [name for name, values in weights.items() if values.ndim == 4]
    first = weights.get("model.0.weight")
    if first is None or first.ndim != 4 or len(convolutions) < 2:
        raise ModelError(
            f"not the weights of a stack of convolutions: {sorted(weights)[:5]}",
            code="model_invalid",
        )
    normed = any(name.endswith("running_mean") for name in weights)
    return ResidualConfig.dncnn(len(convolutions), int(first.shape[0]), batch_norm=normed)


def read_residual(
    path: str | os.PathLike[str],
) -> tuple[ResidualConfig, dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Read a residual network to start from. Nothing in the file is executed.

    Parameters
    ----------
    path : path
        A folder that ``masksim train-residual`` wrote, a ``.safetensors`` file, or a state dict
        of torch (``model_best.th``), bare or under the key ``network``, ``state_dict`` or
        ``model``; with or without the prefixes ``model.`` and ``module.``.

    Returns
    -------
    ResidualConfig
    weights : dict of name to float32 array
        See `masksim.residual.weight_shapes`.
    facts : dict
        ``file`` and ``sha256``, for the provenance, and ``colour`` where it is known.

    Raises
    ------
    ModelError
        ``model_not_found``, ``model_unsafe`` if a pickle holds more than tensors and plain data,
        ``model_hash`` if the folder's file was changed, ``model_invalid``.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    # The file of such a folder is read as the folder is: weights alone do not tell the padding.
    described = path.is_dir() or (path.name == _WEIGHTS and (folder / _DESCRIPTION).is_file())
    config, facts = _described(folder) if described else (None, {})
    file = folder / _WEIGHTS if described else path
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the residual network {file}: {error.strerror}", code="model_not_found"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if facts.setdefault("sha256", digest) != digest:
        raise ModelError(f"{file} has been changed since it was written", code="model_hash")
    weights = _weights_in(data, file)
    config = config or describe_stack(weights)
    check_weights(config, weights)
    return config, weights, {"file": path.name, **facts}


def _described(folder: Path) -> tuple[ResidualConfig, dict[str, Any]]:
    """Read the architecture, and the hash and the colour space that were written with it."""
    try:
        described = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        if described["format"] != _FORMAT:
            raise ValueError("another format")
        facts = {"sha256": str(described["sha256"]), "colour": str(described["training"]["colour"])}
        return ResidualConfig.from_dict(described["residual"]), facts
    except OSError as error:
        raise ModelError(
            f"{folder} holds no residual network: no {_DESCRIPTION}", code="model_not_found"
        ) from error
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise ModelError(f"{folder} is not valid: {error}") from error


def _weights_in(data: bytes, file: Path) -> dict[str, NDArray[np.float32]]:
    """Read weights under the names of `masksim.residual.weight_shapes`, whatever their prefix."""
    if file.suffix == ".safetensors":
        try:
            state: Any = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ModelError(f"{file} is no safetensors file: {error}") from error
    else:
        state = load_tensors(data, str(file))
    for key in ("network", "state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ModelError(f"{file} holds no state dict")
    prefix = re.compile(r"^(?:(?:module|model|network|preproc|residual)\.)+")
    arrays = arrays_of(state, file.name)
    return {f"model.{prefix.sub('', key)}": values for key, values in arrays.items()}

"""The trainable form of an original detector, and the files of residual networks.

`OriginalNetwork` holds the parameters under the original's names and runs the formulas of
`masksim.spectrum` and `masksim.model` on torch tensors: what is trained is what detects.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from masksim import model
from masksim.errors import ModelError, UsageError
from masksim.original.importer import load_tensors
from masksim.residual import (
    BATCH_NORM_EPSILON,
    CHANNELS,
    ResidualConfig,
    build_residual,
    check_weights,
    weights_of,
)
from masksim.spectrum import EPSILON, log_spectrum

INITIAL_DEVIATION = 0.01
"""Of the normal distribution that masks and references start from, as in the original."""

RESIDUAL_WEIGHTS = "residual.safetensors"
RESIDUAL_DESCRIPTION = "residual.json"
RESIDUAL_FORMAT = "masksim-residual"

_BOX = 3


class OriginalNetwork(nn.Module):
    """One original detector with gradients: planes to similarity.

    The names of its ``state_dict`` are those of the original's checkpoints: of
    `masksim.model.tensor_shapes`, and behind ``preproc.`` of `masksim.residual.weight_shapes`.

    Parameters
    ----------
    residual : ResidualConfig
    window : int
        Side of the window, pixels.
    masks : int
        Number of masks; the highest similarity counts.
    freeze : bool
        The residual is not trained: no gradients, and its batch norms keep their running
        statistics, in training mode too.
    residual_weights : mapping of name to array, optional
        What the residual starts from; without them torch's own initial values.
    epsilon : float
        See `masksim.spectrum.log_spectrum`.
    seed : int
        Of all initial values. The global generator of torch is left as it was.

    Raises
    ------
    UsageError
        A window that the residual leaves nothing of, or no mask.
    ModelError
        Weights of another architecture.
    """

    def __init__(
        self,
        residual: ResidualConfig,
        window: int,
        *,
        masks: int = 1,
        freeze: bool = False,
        residual_weights: Mapping[str, NDArray[Any]] | None = None,
        epsilon: float = EPSILON,
        seed: int = 0,
    ) -> None:
        super().__init__()
        side = window - 2 * residual.margin
        if side < 2 or masks < 1:
            raise UsageError(
                f"a window of {window} pixels leaves {side} of a residual with a margin of "
                f"{residual.margin} on each side, and {masks} masks were asked for"
            )
        self.residual = residual
        self.window = window
        self.freeze = freeze
        self.epsilon = epsilon
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.preproc = build_residual(residual, residual_weights)
            shape = (CHANNELS, side, side)
            self.ref_pattern_list = nn.ParameterList(
                torch.randn(shape) * INITIAL_DEVIATION for _ in range(masks)
            )
            self.mask_pre_activ_list = nn.ParameterList(
                torch.randn(shape) * INITIAL_DEVIATION for _ in range(masks)
            )
            # Never called: it holds the kernel under the original's name.
            self.mask_conv = nn.Conv2d(
                CHANNELS, CHANNELS, _BOX, groups=CHANNELS, padding=_BOX // 2, bias=False
            )
            self.in_conv_fft = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False))
        nn.init.constant_(self.mask_conv.weight, 1 / _BOX**2)
        self.mask_conv.requires_grad_(False)
        self.norm_vector = nn.BatchNorm1d(CHANNELS, eps=BATCH_NORM_EPSILON)
        self.clf_a = nn.Parameter(torch.tensor(0.0))
        self.clf_b = nn.Parameter(torch.tensor(0.0))
        if freeze:
            self.preproc.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> OriginalNetwork:
        """Set the mode, but leave a frozen residual with its running statistics."""
        super().train(mode)
        if self.freeze:
            self.preproc.eval()
        return self

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Compute similarities.

        Parameters
        ----------
        planes : tensor, shape (B, 3, window, window)
            From `masksim.preprocess.to_colour`, in [0, 1]. Under autocast the residual alone is
            computed in half precision: the spectrum spans more than that can hold.

        Returns
        -------
        tensor, shape (B,)
            In [-1, 1].
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            residual = self.preproc(planes)
        with torch.autocast(planes.device.type, enabled=False):
            if residual.dtype in (torch.bfloat16, torch.float16):
                residual = residual.float()
            mixing: torch.Tensor = self.in_conv_fft.get_parameter("0.weight")[:, :, 0, 0]
            mixed = model.mix_channels(log_spectrum(residual, self.epsilon), mixing)
            kernel = self.mask_conv.weight[:, 0]
            similarities = []
            for logits, reference in zip(
                self.mask_pre_activ_list, self.ref_pattern_list, strict=True
            ):
                masked = mixed * model.mask_of(logits, kernel)
                features = self.norm_vector(masked.flatten(2)).reshape(masked.shape)
                shown = model.similarity_map(features, model.unit_reference(reference))
                similarities.append(model.similarity_of(shown))
            return torch.stack(similarities).max(dim=0).values

    def losses(self, similarity: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of each image; for real photos the similarity's magnitude counts.

        Parameters
        ----------
        similarity : tensor, shape (B,)
        synthetic : tensor of bool, shape (B,)

        Returns
        -------
        tensor, shape (B,)
            Nats. The loss of a batch is the mean.
        """
        signed = torch.where(synthetic, similarity, similarity.abs())
        return functional.binary_cross_entropy_with_logits(
            model.logit(signed, self.clf_a, self.clf_b),
            synthetic.to(signed.dtype),
            reduction="none",
        )

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Copy the head to arrays, as `masksim.checkpoint.Branch` takes them."""
        state = self.state_dict()
        side = self.window - 2 * self.residual.margin
        names = model.tensor_shapes(len(self.ref_pattern_list), side, side, _BOX)
        return {
            name: np.array(state[name].detach().float().cpu().numpy(), dtype=np.float32)
            for name in names
        }

    def residual_weights(self) -> dict[str, NDArray[np.float32]]:
        """Copy the residual's weights to arrays; empty if it has none."""
        return weights_of(self.residual, self.preproc)

    def load_arrays(
        self, tensors: Mapping[str, NDArray[Any]], residual_weights: Mapping[str, NDArray[Any]]
    ) -> None:
        """Take over the arrays of a `masksim.checkpoint.Branch`: the inverse of the two above.

        Raises
        ------
        ModelError
            They do not fit.
        """
        side = self.window - 2 * self.residual.margin
        model.check_tensors(tensors, masks=len(self.ref_pattern_list), size=side)
        check_weights(self.residual, residual_weights)
        state = self.state_dict()
        named = {**tensors, **{f"preproc.{k}": v for k, v in residual_weights.items()}}
        with torch.no_grad():
            for name, values in named.items():
                if state[name].shape != values.shape:
                    raise ModelError(
                        f"{name} has shape {tuple(values.shape)}, expected "
                        f"{tuple(state[name].shape)}"
                    )
                state[name].copy_(torch.from_numpy(np.array(values)))


# --- files of residual networks ----------------------------------------------------------------


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


def _plain_names(state: Mapping[Any, Any], name: str) -> dict[str, NDArray[np.float32]]:
    """Tensors under the names of `weight_shapes`, whatever prefixes they carry."""
    out: dict[str, NDArray[np.float32]] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
            raise ModelError(f"{name}: {key!r} is not a tensor", code="model_invalid")
        if key.endswith("num_batches_tracked"):
            continue  # counts training steps; nothing uses it
        plain = re.sub(r"^(?:(?:module|model|network|preproc|residual)\.)+", "", key)
        tensor = torch.as_tensor(value)
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise ModelError(f"{name}: {key} is not a dense float tensor", code="model_invalid")
        out[f"model.{plain}"] = np.array(tensor.detach().float().cpu().numpy(), dtype=np.float32)
    return out


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
    config: ResidualConfig | None = None
    expected: str | None = None
    colour: dict[str, str] = {}
    file = path
    folder = path if path.is_dir() else path.parent
    # The file of such a folder is read as the folder is: weights alone do not tell the padding.
    if path.is_dir() or (
        path.name == RESIDUAL_WEIGHTS and (folder / RESIDUAL_DESCRIPTION).is_file()
    ):
        file = folder / RESIDUAL_WEIGHTS
        try:
            described = json.loads((folder / RESIDUAL_DESCRIPTION).read_text(encoding="utf-8"))
            if described["format"] != RESIDUAL_FORMAT:
                raise ValueError("another format")
            config = ResidualConfig.from_dict(described["residual"])
            expected = str(described["sha256"])
            colour = {"colour": str(described["training"]["colour"])}
        except OSError as error:
            raise ModelError(
                f"{path} holds no residual network: no {RESIDUAL_DESCRIPTION}",
                code="model_not_found",
            ) from error
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise ModelError(f"{path} is not valid: {error}", code="model_invalid") from error
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the residual network {file}: {error.strerror}", code="model_not_found"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if expected is not None and digest != expected:
        raise ModelError(f"{file} has been changed since it was written", code="model_hash")
    if file.suffix == ".safetensors":
        try:
            state: Any = safetensors.numpy.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ModelError(f"{file} is no safetensors file: {error}") from error
    else:
        state = load_tensors(data, str(file))
    for key in ("network", "state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ModelError(f"{file} holds no state dict", code="model_invalid")
    weights = _plain_names(state, file.name)
    if config is None:
        config = describe_stack(weights)
    check_weights(config, weights)
    return config, weights, {"file": path.name, "sha256": digest, **colour}

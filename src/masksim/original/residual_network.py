"""A residual network as a torch module, while it is trained.

It is used as an ONNX graph: see `masksim.residual`, which has the architecture and the names of the
weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from masksim.errors import UsageError
from masksim.residual import (
    BATCH_NORM_EPSILON,
    CHANNELS,
    CROSS_DIFFERENCE,
    ResidualConfig,
    check_weights,
    stack_layers,
    weight_shapes,
)


def build_residual(
    config: ResidualConfig, weights: Mapping[str, NDArray[Any]] | None = None
) -> nn.Module:
    """Build a torch module, (B, 3, H, W) -> (B, 3, H - 2 margin, W - 2 margin).

    Parameters
    ----------
    config : ResidualConfig
    weights : mapping of name to array, optional
        See `weight_shapes`. Without them the initial values are torch's own.

    Returns
    -------
    nn.Module
        In training mode: call ``.eval()`` for the running statistics of the batch norms.

    Raises
    ------
    ModelError
        Code ``model_invalid`` on weights of another architecture.
    UsageError
        For the bank, which has nothing to train.
    """
    if config.kind == "bank":
        raise UsageError("the residual bank has no weights, so there is no network to build")
    module: nn.Module
    if config.kind == "none":
        module = nn.Identity()
    elif config.kind == "linear3x3":
        module = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False))
    elif config.kind == "cross_diff":
        difference = nn.Conv2d(CHANNELS, CHANNELS, 2, groups=CHANNELS, bias=False)
        difference.weight.requires_grad_(False)
        difference.weight.copy_(torch.from_numpy(CROSS_DIFFERENCE))
        module = nn.Sequential(difference, nn.ZeroPad2d((0, 1, 0, 1)))
    else:
        parts: list[nn.Module] = []
        for layer in stack_layers(config):
            parts.append(
                nn.Conv2d(
                    layer.channels_in,
                    layer.channels_out,
                    3,
                    padding=config.padding,
                    bias=layer.bias,
                )
            )
            if layer.norm is not None:
                parts.append(nn.BatchNorm2d(layer.channels_out, eps=BATCH_NORM_EPSILON))
            if layer.relu:
                parts.append(nn.ReLU(inplace=True))
        module = nn.Sequential(OrderedDict(model=nn.Sequential(*parts)))
    if weights is not None:
        check_weights(config, weights)
        state = module.state_dict()
        with torch.no_grad():
            for name in weight_shapes(config):
                state[name].copy_(torch.from_numpy(np.array(weights[name], dtype=np.float32)))
    return module


def weights_of(config: ResidualConfig, module: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Copy the weights of a module made by `build_residual` to float32 arrays."""
    state = module.state_dict()
    return {
        name: np.array(state[name].detach().float().cpu().numpy(), dtype=np.float32)
        for name in weight_shapes(config)
    }

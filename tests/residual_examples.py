"""Residual networks of every kind, and weights for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from masksim.residual import ResidualConfig, weight_shapes

CONFIGS = {
    "DnCNN": ResidualConfig.dncnn(),
    "DnCNN small": ResidualConfig.dncnn(4, 8),
    "DnCNN padded": ResidualConfig.dncnn(5, 8, padding=1),
    "DnCNN two layers": ResidualConfig.dncnn(2, 5),
    "light": ResidualConfig.light(),
    "light unpadded": ResidualConfig.light(3, 6, padding=0),
    "light normed": ResidualConfig.light(4, 6, batch_norm=True),
    "linear3x3": ResidualConfig("linear3x3"),
    "cross_diff": ResidualConfig("cross_diff"),
    "none": ResidualConfig("none"),
}


def some_weights(config: ResidualConfig) -> dict[str, NDArray[np.float32]]:
    """Weights that keep the scale of the signal, with batch norms far from the identity."""
    rng = np.random.default_rng(11)
    weights = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith("running_var"):
            values = rng.uniform(0.3, 2, shape)
        elif len(shape) == 4:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(".weight"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.uniform(-0.3, 0.3, shape)
        weights[name] = values.astype(np.float32)
    return weights

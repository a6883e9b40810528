"""The trainable form of an original detector.

`OriginalNetwork` holds the parameters under the original's names and runs the formulas of
`masksim.spectrum` and `masksim.model` on torch tensors: what is trained is what detects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from masksim import model
from masksim.errors import UsageError
from masksim.original.residual_network import build_residual, weights_of
from masksim.residual import BATCH_NORM_EPSILON, CHANNELS, ResidualConfig
from masksim.spectrum import EPSILON, log_spectrum

INITIAL_DEVIATION = 0.01
"""Of the normal distribution that masks and references start from, as in the original."""


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

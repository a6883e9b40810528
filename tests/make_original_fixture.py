"""Small checkpoints in the original's format, and what the original computes for them.

Written from the description of the method alone, in double precision with torch's own layers, and
sharing no line with the package: the truth against which the package is tested. All numbers come
from integer arithmetic, so they are the same for every version of every library.

Run it to write the expected numbers that are committed::

    python tests/make_original_fixture.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
EXPECTED = HERE / "data" / "original_linear64.json"

# The committed case: an image larger than the window, so that the cut is tested too.
WINDOW, MASKS, IMAGE_SIZE = 64, 2, (107, 150)
SAMPLES = [(0, 0, 0), (1, 10, 20), (2, 33, 7), (0, 32, 32), (1, 31, 33)]


def hashed(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that look random, by integer arithmetic."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed * 1_000_003 + 1)
    for _ in range(3):
        x = (x * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
        x ^= x >> np.uint64(15)
    return (x.astype(np.float64) / 2**32).reshape(shape)


def image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """An 8-bit RGB image: slopes, a chequer of period 8 and noise."""
    y, x = np.mgrid[:height, :width]
    base = (3 * x + 2 * y) % 160 + 40 * ((x // 8 + y // 8) % 2)
    noise = (hashed((height, width, 3), 900 + seed) * 48).astype(np.int64)
    return np.asarray(base[..., None] + noise, dtype=np.uint8)


def state(
    preprocess: str, window: int, masks: int, *, kernel: int = 3
) -> dict[str, NDArray[np.float32]]:
    """A state_dict as plain arrays (without the counters of the batch norms)."""
    out: dict[str, NDArray[np.float32]] = {}

    def put(name: str, shape: tuple[int, ...], low: float, high: float) -> None:
        values = low + (high - low) * hashed(shape, 17 * len(out) + 5)
        out[name] = np.asarray(values, dtype=np.float32)

    put("clf_a", (), 0.5, 1.5)
    put("clf_b", (), -0.5, 0.5)
    side = window
    if preprocess == "linear3x3":
        put("preproc.0.weight", (3, 3, 3, 3), -0.4, 0.4)
    elif preprocess == "DnCNN":
        side = window - 34
        put("preproc.model.0.weight", (64, 3, 3, 3), -0.5, 0.5)
        put("preproc.model.0.bias", (64,), -0.1, 0.1)
        for position in range(2, 47, 3):
            put(f"preproc.model.{position}.weight", (64, 64, 3, 3), -0.1, 0.1)
            put(f"preproc.model.{position + 1}.weight", (64,), 0.5, 1.5)
            put(f"preproc.model.{position + 1}.bias", (64,), -0.2, 0.2)
            put(f"preproc.model.{position + 1}.running_mean", (64,), -0.2, 0.2)
            put(f"preproc.model.{position + 1}.running_var", (64,), 0.5, 1.5)
        put("preproc.model.47.weight", (3, 64, 3, 3), -0.1, 0.1)
        put("preproc.model.47.bias", (3,), -0.1, 0.1)
    for i in range(masks):
        put(f"ref_pattern_list.{i}", (3, side, side), -1, 2)
        y, x = np.mgrid[:side, :side] - side // 2  # a hill in the middle, as spectra have
        out[f"ref_pattern_list.{i}"] += (8 / (1 + (x**2 + y**2) / (4.0 + i))).astype(np.float32)
        put(f"mask_pre_activ_list.{i}", (3, side, side), -3, 3)
    out["mask_conv.weight"] = np.full((3, 1, kernel, kernel), 1 / kernel**2, dtype=np.float32)
    put("in_conv_fft.0.weight", (3, 3, 1, 1), -1, 1)
    put("norm_vector.weight", (3,), 0.5, 1.5)
    put("norm_vector.bias", (3,), -0.5, 0.5)
    put("norm_vector.running_mean", (3,), -2, 0)
    put("norm_vector.running_var", (3,), 0.5, 2)
    return out


def save_checkpoint(
    path: Path,
    preprocess: str,
    window: int,
    masks: int,
    *,
    arrays: dict[str, NDArray[np.float32]] | None = None,
    **extra: Any,
) -> Path:
    """Write a checkpoint as Lightning does; `extra` replaces or adds top-level entries."""
    import torch

    arrays = state(preprocess, window, masks) if arrays is None else arrays
    tensors = {name: torch.from_numpy(values.copy()) for name, values in arrays.items()}
    for name in [name for name in tensors if name.endswith("running_var")]:
        counter = name.replace("running_var", "num_batches_tracked")
        tensors[counter] = torch.tensor(7)
    content: dict[str, Any] = {
        "epoch": 3,
        "global_step": 41,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": tensors,
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "img_size": window,
            "channels": 3,
            "lr": 0.001,
            "kernel_sz": arrays["mask_conv.weight"].shape[-1],
            "preprocess": preprocess,
            "num_masks": masks,
            "reference_pattern": None,
            "preproc_freeze": False,
        },
    }
    torch.save({**content, **extra}, path)
    return path


def colour(pixels: NDArray[np.uint8], ycbcr: bool) -> NDArray[np.float64]:
    """Step 3: (H, W, 3) to (1, 3, H, W) in [0, 1]."""
    if ycbcr:
        matrix = np.array(
            [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
        )
        levels = pixels / 255.0 @ matrix.T + np.array([16, 128, 128])
        pixels = levels.astype(np.uint8)
    return (pixels / 255.0).transpose(2, 0, 1)[None]


def residual(planes: Any, weights: dict[str, Any], preprocess: str) -> Any:
    """Step 4, with torch's layers."""
    import torch
    from torch.nn import functional

    if preprocess == "linear3x3":
        return functional.conv2d(planes, weights["preproc.0.weight"], padding=1)
    if preprocess == "cross_diff":
        out = torch.zeros_like(planes)
        diagonal = planes[..., :-1, :-1] + planes[..., 1:, 1:]
        out[..., :-1, :-1] = diagonal - planes[..., :-1, 1:] - planes[..., 1:, :-1]
        return out
    if preprocess == "none":
        return planes
    model = "preproc.model."
    x = functional.relu(
        functional.conv2d(planes, weights[model + "0.weight"], weights[model + "0.bias"])
    )
    for i in range(2, 47, 3):
        x = functional.conv2d(x, weights[f"{model}{i}.weight"])
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, gain, shift = (weights[f"{model}{i + 1}.{part}"] for part in parts)
        x = functional.relu(functional.batch_norm(x, mean, variance, gain, shift, eps=1e-5))
    return functional.conv2d(x, weights[model + "47.weight"], weights[model + "47.bias"])


def original(
    planes: NDArray[np.float64], arrays: dict[str, NDArray[np.float32]], preprocess: str
) -> dict[str, Any]:
    """Steps 4 to 11 for (B, 3, H, W) in [0, 1], in double precision.

    Returns a dictionary of arrays: similarity (B,), every_similarity (B, M), prob (B,),
    channels (B, 3), map (B, 3, H', W'), mask (B,); the map is that of the winning mask.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    weights = {name: torch.from_numpy(values).double() for name, values in arrays.items()}
    count = sum(name.startswith("ref_pattern_list") for name in arrays)
    with torch.no_grad():
        noise = residual(torch.from_numpy(planes), weights, preprocess)
        transform = torch.fft.fftshift(torch.fft.fft2(noise, norm="ortho"), dim=(-2, -1))
        spectrum = functional.conv2d(
            torch.log(transform.abs() + 1e-10), weights["in_conv_fft.0.weight"]
        )
        norm = nn.BatchNorm1d(3).double().eval()
        parts = ("weight", "bias", "running_mean", "running_var")
        norm.load_state_dict(
            {p: weights[f"norm_vector.{p}"] for p in parts}
            | {"num_batches_tracked": torch.tensor(0)}
        )
        kernel = weights["mask_conv.weight"]
        cosines, maps = [], []
        for i in range(count):
            logits = weights[f"mask_pre_activ_list.{i}"][None]
            mask = torch.sigmoid(
                functional.conv2d(logits, kernel, padding=kernel.shape[-1] // 2, groups=3)
            )
            vector = norm((spectrum * mask).flatten(2))
            reference = weights[f"ref_pattern_list.{i}"].flatten(1)
            reference = (reference - reference.mean(1, keepdim=True)).expand_as(vector)
            cosines.append(functional.cosine_similarity(vector, reference, dim=2, eps=1e-8))
            units = functional.normalize(vector, dim=2, eps=1e-8) * functional.normalize(
                reference, dim=2, eps=1e-8
            )
            maps.append(units.reshape(spectrum.shape))
        every = torch.stack(cosines, 1)  # (B, M, 3)
        similarity, winner = every.mean(2).max(1)
        batch = torch.arange(len(winner))
        prob = torch.sigmoid(torch.exp(weights["clf_a"]) * similarity + weights["clf_b"])
    return {
        "similarity": similarity.numpy(),
        "every_similarity": every.mean(2).numpy(),
        "prob": prob.numpy(),
        "channels": every[batch, winner].numpy(),
        "map": torch.stack(maps, 1)[batch, winner].numpy(),
        "mask": winner.numpy(),
    }


def expected() -> dict[str, Any]:
    """The numbers of the committed case."""
    height, width = IMAGE_SIZE
    y = max(0, height // 2 - WINDOW // 2) // 8 * 8
    x = max(0, width // 2 - WINDOW // 2) // 8 * 8
    window = image(height, width)[y : y + WINDOW, x : x + WINDOW]
    out: dict[str, Any] = {"window": WINDOW, "num_masks": MASKS, "image_size": IMAGE_SIZE}
    for space in ("RGB", "YCbCr"):
        planes = colour(window, space == "YCbCr")
        found = original(planes, state("linear3x3", WINDOW, MASKS), "linear3x3")
        out[space] = {
            "input_mean": float(planes.mean()),
            "similarity": float(found["similarity"][0]),
            "every_similarity": found["every_similarity"][0].tolist(),
            "prob": float(found["prob"][0]),
            "map_sum_over_freq_per_channel": found["channels"][0].tolist(),
            "map_mean": float(found["map"].mean()),
            "map_std": float(found["map"].std()),
            "map_samples": {",".join(map(str, at)): float(found["map"][0][at]) for at in SAMPLES},
        }
    return out


if __name__ == "__main__":
    EXPECTED.parent.mkdir(exist_ok=True)
    EXPECTED.write_text(json.dumps(expected(), indent=1) + "\n")

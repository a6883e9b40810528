"""FerretNet-S as a second opinion, from your own clone and its published weights.

    git clone https://github.com/xigua7105/FerretNet
    masksim evaluate ... --peer "ferretnet=python examples/peers/ferretnet.py FerretNet"

Needs torch, NumPy and Pillow. The clone's code and weights are its authors' (Apache-2.0); nothing
of them is here. Done as its own test configuration does: the central 256 x 256 pixels (black around
smaller images), values / 255, normalised by the means and deviations in that file. The 3 x 3 median
and everything behind it are the clone's. The score is the one logit: above 0 it calls the image
synthetic. Not done as there: float32 instead of mixed precision.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import numpy as np
import torch
from answering import answer, module_of
from PIL import Image

SIDE = 256
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
STRUCTURE = {  # of its configs/cfgs/FerretNet-S-Median-3.yaml
    "in_channels": 3,
    "num_classes": 1,
    "dim": 32,
    "depths": [2, 2],
    "lpd_func": "median",
    "window_size": 3,
}


def central(image: Image.Image) -> Image.Image:
    """Cut or pad to the central square, with the rounding of torchvision's CenterCrop."""
    if min(image.size) < SIDE:
        width, height = (max(SIDE, side) for side in image.size)
        padded = Image.new("RGB", (width, height))
        padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = padded
    left, top = (round((side - SIDE) / 2) for side in image.size)
    return image.crop((left, top, left + SIDE, top + SIDE))


def main() -> None:
    """Load once, then answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "clone", nargs="?", type=Path, default=os.environ.get("FERRETNET_CLONE"),
        help="the clone; or FERRETNET_CLONE",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, default=os.environ.get("FERRETNET_WEIGHTS"),
        help="or FERRETNET_WEIGHTS; default: the clone's checkpoints/4cls_ckpt/"
        "ferretnet-s-median-3.pth",
    )  # fmt: skip
    parser.add_argument(
        "--probability", action="store_true",
        help="answer the sigmoid, in [0, 1], instead of the logit: many images then have the same",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.clone is None:
        parser.error("give the clone, or set FERRETNET_CLONE")
    torch.set_num_threads(args.threads)

    network = module_of(args.clone / "src" / "model" / "ferretnet.py")
    local = module_of(args.clone / "src" / "model" / "lpd.py")
    model = network.Ferret(**STRUCTURE, lpd_dict=local.get_lpd_dict())
    weights = args.weights or args.clone / "checkpoints/4cls_ckpt/ferretnet-s-median-3.pth"
    state = torch.load(weights, map_location="cpu", weights_only=True)["model"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    model.eval()
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))

    def score(image: Image.Image) -> float:
        values = torch.from_numpy(np.array(central(image))).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            logit = float(model(((values - mean) / deviation)[None]))
        return 0.5 + 0.5 * math.tanh(logit / 2) if args.probability else logit

    answer(score)


if __name__ == "__main__":
    main()

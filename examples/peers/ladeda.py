"""Tiny-LaDeDa as a second opinion, from your own clone and its published weights.

    git clone https://github.com/barcavia/RealTime-DeepfakeDetection-in-the-RealWorld LaDeDa
    masksim evaluate ... --peer "ladeda=python examples/peers/ladeda.py LaDeDa"

Needs torch, NumPy and Pillow. The clone's code and weights are under a software research licence
of their authors' university: research use alone; nothing of them is here. Done as its own test
does: the whole image resized to 256 x 256 pixels (bilinear, whatever its shape), values / 255,
normalised by the means and deviations of ImageNet, the gradient along the right diagonal, sigmoid
of the one logit. Two sets of weights are in the clone: trained on images from social media (WildRF,
the default) and on ProGAN's (ForenSynth).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from answering import answer, module_of
from PIL import Image

SIDE = 256
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
FEATURES = 8  # into the last layer, which its trainer puts in place of the class's own


def main() -> None:
    """Load once, then answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "clone", nargs="?", type=Path, default=os.environ.get("LADEDA_CLONE"),
        help="the clone; or LADEDA_CLONE",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, default=os.environ.get("LADEDA_WEIGHTS"),
        help="or LADEDA_WEIGHTS; default: the clone's weights/Tiny_LaDeDa/WildRF_Tiny_LaDeDa.pth",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.clone is None:
        parser.error("give the clone, or set LADEDA_CLONE")
    torch.set_num_threads(args.threads)

    network = module_of(args.clone / "networks" / "Tiny_LaDeDa.py")
    model = network.tiny_ladeda(preprocess_type="right_diag", num_classes=1)
    model.fc = torch.nn.Linear(FEATURES, 1)
    weights = args.weights or args.clone / "weights/Tiny_LaDeDa/WildRF_Tiny_LaDeDa.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))

    def score(image: Image.Image) -> float:
        small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            logit = model(((values - mean) / deviation)[None]).double()  # else many are 1.0
        return float(torch.sigmoid(logit))

    answer(score)


if __name__ == "__main__":
    main()

"""Tiny-LaDeDa as a second opinion, from your own clone and its published weights.

    git clone https://github.com/barcavia/RealTime-DeepfakeDetection-in-the-RealWorld LaDeDa
    masksim evaluate ... --peer "ladeda=python examples/peers/ladeda.py LaDeDa"

Needs torch, NumPy and Pillow. The clone's code and weights are under a software research licence
of their authors' university: research use alone; nothing of them is here. Done as its own test
does: the whole image resized to 256 x 256 pixels (bilinear, whatever its shape), values / 255,
normalised by the means and deviations of ImageNet, the gradient along a diagonal (``right_diag``,
the default of its options). The score is its one logit: above 0 it calls the image synthetic. Two
sets of weights are in the clone: trained on images from social media (WildRF, the default) and on
ProGAN's (ForenSynth). Which gradient they were trained with is not stored in them;
``--preprocess`` takes any of its names.
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
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
PREPROCESS = ("right_diag", "left_diag", "x_grad", "y_grad", "NPR", "raw")
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
    parser.add_argument("--preprocess", default="right_diag", choices=PREPROCESS)
    parser.add_argument(
        "--probability", action="store_true",
        help="answer the sigmoid, in [0, 1], instead of the logit: many images then have the same",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.clone is None:
        parser.error("give the clone, or set LADEDA_CLONE")
    torch.set_num_threads(args.threads)

    network = module_of(args.clone / "networks" / "Tiny_LaDeDa.py")
    model = network.tiny_ladeda(preprocess_type=args.preprocess, num_classes=1)
    model.fc = torch.nn.Linear(FEATURES, 1)
    weights = args.weights or args.clone / "weights/Tiny_LaDeDa/WildRF_Tiny_LaDeDa.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))

    def score(image: Image.Image) -> float:
        small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            logit = float(model(((values - mean) / deviation)[None]))
        return 0.5 + 0.5 * math.tanh(logit / 2) if args.probability else logit

    answer(score)


if __name__ == "__main__":
    main()

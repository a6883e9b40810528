"""Can compression history alone tell the classes apart, as found and as they are measured?

usage: python benchmarks/leak_probe.py --manifest MANIFEST [--split val]

A random forest sees only traces of compression (`masksim.data.leak.compression_features`) of one
512-pixel window an image, cross-validated over sources: of the files as found, and of the views
that the detector is measured on (history `jpeg`, which every image can have, then the final JPEG).
Format, size and metadata are the same for all views: there is nothing else to see but content.
Writes benchmarks/results/leak_probe.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from pages import ROOT

from masksim.augment import rng_for
from masksim.data import leak
from masksim.data.manifest import read_manifest
from masksim.data.views import evaluation_view
from masksim.errors import MasksimError
from masksim.evaluation import scoring as evaluate
from masksim.image import load_image
from masksim.load import load_detector
from masksim.preprocess import centre_window


def main() -> None:
    """Probe and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    manifest = read_manifest(args.manifest).select(args.split)
    config = evaluate.views_of(load_detector())
    kept, found, viewed = [], [], []
    for row in manifest.rows:
        try:
            pixels = load_image(manifest.file(row)).pixels
        except MasksimError:
            continue
        height, width = pixels.shape[:2]
        if min(height, width) < config.window:
            continue
        sized = replace(row, height=height, width=width)
        rng = rng_for(0, row.key, "leak probe")
        view = evaluation_view(pixels, sized, "jpeg", rng, config).pixels
        for image, features in ((pixels, found), (view, viewed)):
            y, x = centre_window(image.shape[0], image.shape[1], config.window)
            window = image[y : y + config.window, x : x + config.window]
            features.append(leak.compression_features(window))
        kept.append(sized)
    result = {}
    for name, features in (("as found", found), ("as measured", viewed)):
        probe = leak.leak_probe(name, np.array(features), kept, leak.COMPRESSION)
        result[name] = {
            "auroc": probe.auroc,
            "low": probe.low,
            "high": probe.high,
            "images": len(kept),
        }
    path = ROOT / "benchmarks" / "results" / "leak_probe.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = ["| images | n | AUROC of compression traces alone |", "|---|---|---|"]
    lines += [
        f"| {name} | {r['images']} | {r['auroc']:.2f} [{r['low']:.2f}, {r['high']:.2f}] |"
        for name, r in result.items()
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()

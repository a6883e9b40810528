"""Detect one image with the installed package: noise, of which no generator is to be found."""

import sys

import numpy as np

import masksim

noise = np.random.default_rng(0).normal(128, 20, (768, 768, 3)).clip(0, 255).astype(np.uint8)
detector = masksim.load_detector()
detection = detector.detect(noise)
print(sys.version.split()[0], detection.verdict.text)
assert len(detection.scores) == len(detector.generators)
assert detection.verdict.level != "strong evidence"
assert detection.watermarks == ()

"""Detectors from images: features, heads, calibration, one more generator."""

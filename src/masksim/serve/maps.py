"""Similarity maps in an answer: small enough to send, and easy to read for a browser."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.show.composed import compose, marks
from masksim.show.text import channel_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.results import SimilarityMap


def pack_maps(maps: Sequence[SimilarityMap]) -> dict[str, Any]:
    """Write similarity maps compactly, as a browser can read them.

    Contributions and spectra are rounded to 127 steps of their largest absolute value: enough to
    draw and to point at. `masksim.Detector.similarity_maps` gives the numbers themselves.

    Parameters
    ----------
    maps
        In the order to give them.

    Returns
    -------
    dict
        See `masksim.serve.schemas.Maps`. A spectrum that several maps share is there once.
    """
    spectra: list[dict[str, Any]] = []
    known: dict[tuple[Any, ...], int] = {}
    packed = []
    for item in maps:
        planes = []
        for plane in item.planes:
            shared = plane.spectrum.__array_interface__
            key = (shared["data"][0], plane.spectrum.shape, plane.spectrum.strides)
            if key not in known:
                known[key] = len(spectra)
                spectra.append(_pack(plane.spectrum, float(np.median(plane.spectrum))))
            planes.append(
                {
                    "name": channel_words(plane.name),
                    "fy": [float(plane.fy[0]), float(plane.fy[-1])],
                    "fx": [float(plane.fx[0]), float(plane.fx[-1])],
                    "sum": float(plane.values.sum(dtype=np.float64)),
                    "values": _pack(plane.values, 0.0),
                    "spectrum": known[key],
                }
            )
        composed = compose(item.planes)
        packed.append(
            {
                "generator": item.generator,
                "similarity": float(item.similarity),
                "composed": _pack(composed.values, 0.0),
                "marks": [asdict(mark) for mark in marks(composed)],
                "planes": planes,
            }
        )
    return {"generators": packed, "spectra": spectra}


def _pack(values: NDArray[Any], zero: float) -> dict[str, Any]:
    shifted = values - np.float32(zero)
    scale = float(np.abs(shifted).max()) / 127 or 1.0
    steps = np.rint(shifted / np.float32(scale)).clip(-127, 127).astype(np.int8)
    return {
        "height": values.shape[0],
        "width": values.shape[1],
        "scale": scale,
        "zero": zero,
        "data": base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode("ascii"),
    }

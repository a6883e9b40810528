"""Detect AI-generated images by the masked spectrum of their noise residual.

>>> import masksim
>>> detector = masksim.load_detector()  # doctest: +SKIP
>>> detection = detector.detect("photo.jpg")  # doctest: +SKIP

The names below are loaded on first use, so that importing the package costs nothing: neither
Pillow nor ONNX Runtime is imported before it is needed, and torch never for detecting.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masksim.detector import Detector
    from masksim.errors import DataError, ImageError, MasksimError, ModelError, UsageError
    from masksim.image import ImageFacts, Limits, LoadedImage, load_image, to_display
    from masksim.load import load_detector
    from masksim.results import Detection

__version__ = "0.2.0"

__all__ = [
    "DataError",
    "Detection",
    "Detector",
    "ImageError",
    "ImageFacts",
    "Limits",
    "LoadedImage",
    "MasksimError",
    "ModelError",
    "UsageError",
    "__version__",
    "load_detector",
    "load_image",
    "to_display",
]

_HOME = {
    "Detection": "masksim.results",
    "Detector": "masksim.detector",
    "load_detector": "masksim.load",
    **dict.fromkeys(
        ("DataError", "ImageError", "MasksimError", "ModelError", "UsageError"), "masksim.errors"
    ),
    **dict.fromkeys(
        ("ImageFacts", "Limits", "LoadedImage", "load_image", "to_display"), "masksim.image"
    ),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})

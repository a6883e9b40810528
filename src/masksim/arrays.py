"""What functions over the array API need: the namespace of their arrays.

Functions over the array API run with NumPy (detection), torch (training, with gradients) and while
a graph is written (`masksim.export.trace`); nothing here imports torch.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace as any_namespace
from array_api_compat import device as any_device

# Any array of the array API (numpy.ndarray, torch.Tensor): there is no common static type yet.
Array: TypeAlias = Any

NUMPY_CONFORMS = hasattr(np, "__array_api_version__")
"""Whether NumPy itself is a namespace of the array API: from 2.1 on."""


def array_namespace(*arrays: Array) -> Any:
    """Give the module whose functions take these arrays, by the array API standard.

    NumPy itself where that suffices: `array_api_compat` would load all of it, its tests and its
    Fortran compiler too, which takes longer than an image.
    """
    if NUMPY_CONFORMS and all(isinstance(array, (np.ndarray, np.generic)) for array in arrays):
        return np
    return any_namespace(*arrays)


def device_of(x: Array) -> Any:
    """Give the device of an array."""
    return any_device(x)


def contiguous(x: Array) -> Array:
    """Give an array of NumPy in one piece, as its functions are quickest; any other as it is."""
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x

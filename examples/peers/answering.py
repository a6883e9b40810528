"""The command protocol of other detectors, from their side; needs NumPy and Pillow alone.

See `masksim.evaluation.other_detectors`. A peer reads one path a line and answers each with one
line of JSON. Copy this file beside your own adapter: it may run in an environment without masksim.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from PIL import Image


def answer(score: Callable[[Image.Image], float]) -> None:
    """Answer until standard input ends; an image that fails costs only its own answer."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # whatever the peer's own code prints must not stand among the answers
        for line in sys.stdin:
            path = line.rstrip("\n")
            reply: dict[str, object] = {"path": path}
            try:
                with Image.open(path) as image:
                    reply["score"] = score(image.convert("RGB"))
            except Exception as error:
                reply["error"] = f"{type(error).__name__}: {error}"
            out.write(json.dumps(reply) + "\n")
            out.flush()


def module_of(path: Path) -> ModuleType:
    """Import one Python file of a clone, without its packages, which may need more."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        sys.exit(f"{path} is missing: is this the clone?")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Detectors for the tests of batches, made in other processes: that is why they stand in a module.

Images are told apart by their names: ``deadly`` ends the process that looks at it, ``once-<file>``
only as long as there is no such file beside it, ``buggy`` raises what no detector should,
``slow`` takes minutes.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import fake_detector
from masksim.errors import ModelError
from masksim.results import Detection


class Trapped(fake_detector.Detector):
    def detect(self, image: Any, *, name: str | None = None) -> Detection:
        path = Path(str(image))
        if path.stem == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if path.stem.startswith("once"):
            mark = path.with_suffix(".mark")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if path.stem.startswith("slow"):
            time.sleep(600)
        if path.stem == "buggy":
            raise ZeroDivisionError("in the middle of it")
        return super().detect(image, name=name)


class Talkative(fake_detector.Detector):
    """Fails at each image, at length."""

    def detect(self, image: Any, *, name: str | None = None) -> Detection:
        raise ValueError(f"{'x' * 300_000} and so on.")


class Other(Trapped):
    sha256 = "f" * 64


def trapped() -> Trapped:
    return Trapped()


def talkative() -> Talkative:
    return Talkative()


def other() -> Other:
    return Other()


def dies_at_start() -> Trapped:
    """Load in the process that leads, die in the others."""
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        os._exit(7)
    return Trapped()


def fails_at_start() -> Trapped:
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        raise ModelError("its files have gone", code="model_not_found")
    return Trapped()

"""Many images, a row each: in parallel, in bounded memory; after a kill it can be gone on with.

`run_batch` writes the rows in the order of the images, whatever the number of processes, so that an
interrupted file is the beginning of the whole one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksim import __version__
from masksim.batch.output import Output
from masksim.batch.pool import in_processes
from masksim.batch.ray import in_ray
from masksim.batch.rows import Encoder, Job, flat_columns
from masksim.config import Progress, cores
from masksim.data.inputs import Inputs, same_file
from masksim.errors import UsageError
from masksim.load import load_detector

if TYPE_CHECKING:
    from masksim.batch.rows import Load

FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
"""How results are written, by the end of the file's name."""

STRENGTH = ("inconclusive", "fragile", "weak evidence", "evidence", "strong evidence")
"""Levels of a verdict that something can be made to depend on, the weakest first."""

TIMEOUT = 300.0
"""Seconds that one image may take."""


@dataclass(frozen=True)
class Summary:
    """What a batch came to.

    Attributes
    ----------
    out
        The file of results.
    images
        Rows in it.
    resumed
        How many of them were there before.
    levels, errors
        Rows by level of the verdict, and by code of the error.
    seconds
        Of this run.
    workers
        Processes.
    detector, detector_sha256
        Name and digest.
    """

    out: str
    images: int
    resumed: int
    levels: Mapping[str, int]
    errors: Mapping[str, int]
    seconds: float
    workers: int
    detector: str
    detector_sha256: str

    @property
    def rate(self) -> float:
        """Images a second in this run."""
        return (self.images - self.resumed) / self.seconds if self.seconds > 0 else 0.0

    def reaches(self, level: str) -> bool:
        """Tell whether a row is at this level or a stronger one.

        Parameters
        ----------
        level
            One of `STRENGTH`, or ``"error"``: whether an image could not be analysed.

        Raises
        ------
        UsageError
            It is neither.
        """
        if level == "error":
            return bool(self.errors)
        if level not in STRENGTH:
            raise UsageError(f"{level!r} is not one of {', '.join(STRENGTH)}, error")
        return any(name in self.levels for name in STRENGTH[STRENGTH.index(level) :])

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "out": self.out,
            "images": self.images,
            "resumed": self.resumed,
            "levels": dict(self.levels),
            "errors": dict(self.errors),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.rate, 3),
            "workers": self.workers,
            "detector": {"name": self.detector, "sha256": self.detector_sha256},
            "masksim": __version__,
        }


def run_batch(
    inputs: Inputs | Iterable[str],
    out: str | os.PathLike[str],
    *,
    load: Load | None = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "local",
    ray_address: str | None = None,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> Summary:
    """Analyse images and write a row for each, in their order.

    The processes are started afresh: a script that calls this needs
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    inputs
        From `masksim.data.inputs.list_inputs`, or paths, each once. They are taken as they are
        needed: by the local engine never more than `masksim.batch.pool.WINDOW` a process ahead of
        the last row written; how far ahead Ray reads is its own affair.
    out
        A file named as in `FORMATS`.
    load
        Makes the detector, in each process; it must be picklable. By default the detector in the
        package, on one thread.
    workers
        Processes; by default one a core.
    resume
        Go on with the results that are there: images that have a row are left out, a row that was
        not written to its end is cut off.
    overwrite
        Replace the results that are there.
    engine
        ``"local"``: processes of this machine. ``"ray"``: actors of Ray Data, here or in a cluster.
    ray_address
        Of a cluster; by default a Ray of its own is started on this machine.
    timeout
        Seconds, more than 0, that one image may take; then its process is ended and the image is a
        row with the error ``timed_out``. Of the local engine only.
    progress
        Called with ``"images"``, the number of rows and that of images (0 where it is not known):
        at the beginning, after each row, and with the local engine about once a second in between.

    Returns
    -------
    Summary

    Raises
    ------
    UsageError
        Results are there and neither `resume` nor `overwrite` is given, or they come from another
        detector or version; a library is missing; `out` cannot be written.
    DataError
        What is there to go on with is damaged; the results cannot be written, as the disk is full
        (``not_written``).
    MasksimError
        Processes cannot be started (code ``error``).
    ModelError
        From `load`.
    """
    started = time.monotonic()
    out = Path(out)
    form = FORMATS.get(out.suffix.lower())
    if form is None:
        raise UsageError(f"{out}: results are written to {', '.join(FORMATS)}")
    if resume and overwrite:
        raise UsageError("results are either gone on with or replaced, not both")
    if engine not in ("local", "ray") or (ray_address and engine != "ray"):
        raise UsageError("the engine is local or ray, and only ray has an address")
    workers = cores() if workers is None else workers
    if workers < 1:
        raise UsageError(f"at least one process is needed, not {workers}")
    if not timeout > 0:
        raise UsageError(f"the time limit must be above 0 seconds, got {timeout}")
    paths: Iterable[str] = inputs.paths if isinstance(inputs, Inputs) else inputs
    lists = inputs.files if isinstance(inputs, Inputs) else ()
    if taken := [name for name in lists if same_file(name, out)]:
        raise UsageError(f"{taken[0]} is a list of images: the results need another file")
    job = _job(load or partial(load_detector, threads=1), form, inputs, timeout)
    with Output(out, job.encode, job.sha256, resume=resume, overwrite=overwrite) as output:
        total = len(paths) if isinstance(paths, Sequence) else 0
        done = _rows_there(paths, output) if total else 0
        left = (path for path in paths if job.encode.key(path) not in output.known)
        rows = (
            in_processes(left, job, workers) if engine == "local"
            else in_ray(left, job, workers, ray_address)
        )  # fmt: skip
        if progress is not None:
            progress("images", done, total)
        with closing(rows):
            for row in rows:
                if row is not None:
                    output.write(row)
                    done += 1
                output.keep()
                if progress is not None:
                    progress("images", done, total)
        output.finish()
    return Summary(
        str(out), sum(output.levels.values()) + sum(output.errors.values()), len(output.known),
        dict(output.levels), dict(output.errors), time.monotonic() - started, workers,
        job.name, job.sha256,
    )  # fmt: skip


def _job(load: Load, form: str, inputs: Inputs | Iterable[str], timeout: float) -> Job:
    """Load the detector once, to know its name and columns; the processes have their own."""
    detector = load()
    encode = Encoder(form, flat_columns(detector.generators))
    unreadable = inputs.unreadable if isinstance(inputs, Inputs) else {}
    return Job(load, encode, detector.name, detector.sha256, unreadable, timeout)


def _rows_there(paths: Iterable[str], output: Output) -> int:
    """Count the images that have a row; the file may have rows of others, too."""
    return sum(output.encode.key(path) in output.known for path in paths) if output.known else 0

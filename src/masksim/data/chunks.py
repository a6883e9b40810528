"""Work on many images in chunks, each kept in a file: a run that is killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from masksim import __version__
from masksim.data.manifest import Row
from masksim.files import make_folder, write_whole

SIZE = 16
"""Images of a chunk."""

LASTING = frozenset({"too_small"})
"""Error codes of images that the next run would meet again."""


def chunk_folder(cache: str | os.PathLike[str], key: Sequence[Any], prefix: str = "") -> Path:
    """Make the folder of a run's chunks, and write what names it into it.

    Parameters
    ----------
    cache
        Where it lies.
    key
        All that the chunks depend on besides the images, plain values for JSON. The version of
        masksim is added: another one may compute other values.
    prefix
        Of its name.

    Returns
    -------
    Path
        With ``key.json`` in it.

    Raises
    ------
    UsageError
        It cannot be made, or not be written into.
    """
    text = json.dumps([*key, __version__], sort_keys=True)
    folder = Path(cache) / (prefix + hashlib.sha256(text.encode()).hexdigest()[:16])
    make_folder(folder)
    write_whole(folder / "key.json", text.encode())
    return folder


def to_do(target: Path, failures_of: Callable[[Path], Mapping[str, str]]) -> bool:
    """Tell whether a chunk is missing, or has images that may be there, or whole, by now.

    Parameters
    ----------
    target
        The chunk's file.
    failures_of
        Reads from it which images failed: path to error code.
    """
    if not target.exists():
        return True
    return any(code not in LASTING for code in failures_of(target).values())


def chunked(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Cut rows into the chunks that are computed, and cached, together."""
    return [rows[i : i + SIZE] for i in range(0, len(rows), SIZE)]


def chunked_by_source(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Cut rows into chunks of one source each: sources that are added leave the others alone."""
    parts = groupby(rows, key=lambda row: (row.generator, row.source))
    return [chunk for _, part in parts for chunk in chunked(tuple(part))]


def run_chunks(
    work: Callable[..., object],
    jobs: Sequence[tuple[Any, ...]],
    total: int,
    *,
    workers: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
    progress: Callable[[int, int], None] | None,
) -> list[Any]:
    """Run the chunks that are not done yet, in this process or in several.

    Parameters
    ----------
    work
        A function of a module, called with each job's values; large results it writes itself.
    jobs
        One a chunk to do.
    total
        Number of chunks, those done before included.
    workers
        Processes.
    initializer, initargs
        Called once in each process that works, if given.
    progress
        Called with (chunks done, total), first before any work.

    Returns
    -------
    list
        What `work` returned, in the order of the jobs.
    """
    done = total - len(jobs)
    if progress:
        progress(done, total)
    results: list[Any] = []
    if not jobs:
        return results

    def finished(result: Any) -> None:
        results.append(result)
        if progress:
            progress(done + len(results), total)

    if workers > 1:
        # Not forked: ONNX Runtime may already have threads here, which a fork can leave deadlocked.
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=initializer,
            initargs=initargs,
        ) as pool:
            for result in pool.map(_call, [work] * len(jobs), jobs):
                finished(result)
    else:
        if initializer:
            initializer(*initargs)
        for job in jobs:
            finished(work(*job))
    return results


def _call(work: Callable[..., object], job: tuple[Any, ...]) -> object:
    return work(*job)

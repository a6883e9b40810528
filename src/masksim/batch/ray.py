"""The same rows by Ray Data: as an engine of `run_batch`, or as a step of one's own job."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from masksim.batch.rows import (
    EncodedRow,
    Job,
    analyse,
    flat_columns,
    flatten,
    parquet_row,
    pyarrow,
    schema,
)
from masksim.errors import MasksimError, extra_missing
from masksim.load import load_detector

if TYPE_CHECKING:
    from masksim.batch.rows import Load
    from masksim.detector import Detector

    _Make = Callable[[Detector, Any], Any]

_BLOCK = 64  # images at most whose rows come from Ray together
_BATCH = 16  # images that an actor is asked for at once


def score_dataset(
    dataset: Any, *, column: str = "path", load: Load | None = None, workers: int = 1
) -> Any:
    """Analyse a Ray Data dataset of paths: nothing passes through this process.

    Parameters
    ----------
    dataset
        ``ray.data.Dataset``, with paths that each machine of the cluster can read: of a shared
        folder, or URLs for fsspec.
    column
        Where they are.
    load
        As `run_batch`; the detector's folder must be readable on each machine.
    workers
        Actors; each takes one core.

    Returns
    -------
    ray.data.Dataset
        Flat rows (`flat_columns`), to be written with ``write_parquet`` or gone on with.

    Raises
    ------
    UsageError
        Ray is not installed.
    """
    _import_ray()
    load = load or partial(load_detector, threads=1)
    # From one actor on, so that the tasks that read the paths get a core, too.
    pool = {"min_size": 1, "max_size": workers}
    return _map(dataset, load, partial(_flat, column=column), pool)


def in_ray(
    paths: Iterator[str], job: Job, workers: int, address: str | None
) -> Generator[EncodedRow | None, None, None]:
    """Give the rows of images in the order of their paths, made by actors of Ray.

    Raises
    ------
    MasksimError
        Ray cannot go on, or is not installed.
    """
    ray, data = _import_ray()
    started = not ray.is_initialized()
    if started:
        own = {} if address else {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="warning", **own)
    context = data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield from _rows(data, paths, job, workers)
    except ray.exceptions.RayError as error:
        raise MasksimError(f"Ray: {error}") from error
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if started:
            ray.shutdown()


def _import_ray() -> tuple[Any, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        return import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise extra_missing("the engine ray", "ray", "ray") from error


def _map(dataset: Any, load: Load, make: _Make, pool: Mapping[str, int]) -> Any:
    return dataset.map_batches(
        _Actor,
        fn_constructor_args=(load, make),
        batch_format="pyarrow",
        batch_size=_BATCH,
        num_cpus=1,
        compute=_import_ray()[1].ActorPoolStrategy(**pool),
    )


class _Actor:
    """Holds a detector; a table of paths in, a table of rows out."""

    def __init__(self, load: Load, make: _Make) -> None:
        self.detector = load()
        self.make = make

    def __call__(self, table: Any) -> Any:
        return self.make(self.detector, table)


def _flat(detector: Detector, table: Any, column: str) -> Any:
    """Make flat rows."""
    columns = flat_columns(detector.generators)
    rows = [flatten(analyse(detector, path)) for path in table[column].to_pylist()]
    cells = [parquet_row(row, columns) for row in rows]
    return pyarrow()[0].Table.from_pylist(cells, schema=schema(columns))


def _encoded(detector: Detector, table: Any, job: Job) -> Any:
    """Make numbered rows, ready to be written."""
    paths = (raw.decode("utf-8", "surrogateescape") for raw in table["path"].to_pylist())
    done = [asdict(job.analysed(detector, path)) for path in paths]
    pa, _ = pyarrow()
    kinds = {"line": pa.binary(), "level": pa.string(), "error": pa.string()}
    made = {name: pa.array([one[name] for one in done], kind) for name, kind in kinds.items()}
    return pa.table({"number": table["number"], **made})


def _rows(data: Any, paths: Iterator[str], job: Job, workers: int) -> Iterator[EncodedRow]:
    pa, _ = pyarrow()
    held: dict[int, EncodedRow] = {}  # rows that wait for those before them
    tasks: list[tuple[int, bytes]] = []
    for number, path in enumerate(paths):
        if (row := job.without_analysis(path)) is not None:
            held[number] = row
        else:
            tasks.append((number, path.encode("utf-8", "surrogateescape")))
    count, following = len(held) + len(tasks), 0
    size = max(1, min(_BLOCK, len(tasks) // (4 * workers)))
    blocks = [
        pa.table({"number": [n for n, _ in part], "path": [raw for _, raw in part]})
        for part in (tasks[k : k + size] for k in range(0, len(tasks), size))
    ]
    del tasks
    if blocks:
        pool = {"size": min(workers, len(blocks))}
        dataset = _map(data.from_arrow(blocks), job.detector, partial(_encoded, job=job), pool)
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                number = row.pop("number")
                held[number] = EncodedRow(**row)
            while following in held:
                yield held.pop(following)
                following += 1
    for number in range(following, count):
        yield held.pop(number)

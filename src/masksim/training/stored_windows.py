"""The pixels that a learned residual is trained on: windows of all views, kept in a folder.

They are the windows that detection takes for it, of the same views as
`masksim.training.feature_table` makes features of, in the same order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.data.chunks import chunk_folder, chunked_by_source, run_chunks, to_do
from masksim.data.manifest import Manifest, Row, manifest_hash
from masksim.data.views import ViewConfig, views_of_file
from masksim.errors import DataError, MasksimError
from masksim.features import WindowConfig
from masksim.files import write_whole, written_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class StoredWindows:
    """Windows of n views, left in their files until they are asked for.

    Attributes
    ----------
    files
        Each holds an array uint8 (views, windows, N, N, 3).
    places
        int64 (n, 3): file, view in it, and how many windows are there.
    images
        int64 (n,): number of the image among the rows sorted by path.
    """

    files: tuple[Path, ...]
    places: NDArray[np.int64]
    images: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, view: int) -> NDArray[np.uint8]:
        """Give the windows of a view, uint8 (k, N, N, 3)."""
        file, at, count = self.places[view].tolist()
        # Opened for each: of thousands of files a process may not have as many open at once.
        stored: NDArray[np.uint8] = np.load(self.files[file], mmap_mode="r")
        return stored[at, :count]


def compute_windows(
    manifest: Manifest,
    cache: str | os.PathLike[str],
    *,
    views_config: ViewConfig,
    window_config: WindowConfig,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> StoredWindows:
    """Cut, or read from the cache, the windows of all views of the purpose ``"met"``.

    Parameters
    ----------
    manifest, cache, views_config, seed, workers, progress
        As of `masksim.training.feature_table.compute_features`.
    window_config
        Which windows.

    Raises
    ------
    DataError
        No image could be used.
    """
    rows = tuple(sorted(manifest.rows, key=lambda row: row.path))
    folder = chunk_folder(
        cache, [asdict(views_config), window_config.in_two()[0], seed], "windows-"
    )
    chunks = chunked_by_source(rows)
    targets = [folder / f"{manifest_hash(chunk)[:24]}.npy" for chunk in chunks]
    jobs = [
        (str(target), [str(manifest.file(row)) for row in chunk], chunk, views_config,
         window_config, seed)
        for chunk, target in zip(chunks, targets, strict=True)
        if not target.with_suffix(".json").exists() or to_do(target, failures_of)
    ]  # fmt: skip
    run_chunks(_work, jobs, len(chunks), workers=workers, progress=progress)
    places, images, before = [], [], 0
    for k, (chunk, target) in enumerate(zip(chunks, targets, strict=True)):
        for view, (number, count) in enumerate(_facts(target)["views"]):
            places.append((k, view, count))
            images.append(before + number)
        before += len(chunk)
    if not places:
        raise DataError("none of the images could be used", code="manifest_invalid")
    return StoredWindows(tuple(targets), np.array(places, np.int64), np.array(images, np.int64))


def failures_of(target: Path) -> Mapping[str, str]:
    """Read which images of a chunk could not be used: path to error code."""
    failures: Mapping[str, str] = _facts(target)["failures"]
    return failures


def _facts(target: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def _work(
    target: str,
    files: Sequence[str],
    rows: Sequence[Row],
    views: ViewConfig,
    config: WindowConfig,
    seed: int,
) -> None:
    """Cut the windows of one chunk and write them whole or not at all."""
    shape = (config.windows, config.window, config.window, 3)
    out: list[NDArray[np.uint8]] = []
    facts: list[tuple[int, int]] = []
    failures: dict[str, str] = {}
    for number, (file, row) in enumerate(zip(files, rows, strict=True)):
        try:
            for _, view in views_of_file(file, row, "met", views, seed):
                found, _ = config.cut(view.pixels)
                padded = np.zeros(shape, np.uint8)
                padded[: len(found)] = found
                out.append(padded)
                facts.append((number, len(found)))
        except MasksimError as error:
            failures[row.path] = error.code
    path = Path(target)
    path.unlink(missing_ok=True)  # never beside facts that are not its own
    described = json.dumps({"views": facts, "failures": failures})
    write_whole(path.with_suffix(".json"), described.encode())
    with written_whole(target) as part:  # last: it stands for the whole chunk
        np.save(part, np.stack(out) if out else np.zeros((0, *shape), np.uint8))

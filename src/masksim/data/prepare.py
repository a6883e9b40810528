"""Raw folders to prepared images and a manifest, the same whatever the number of workers.

A plan (`plan_sets`, `plan_manifest`) lists what is to be made of which file; `prepare` makes it,
resumes where a killed run stopped, and writes ``manifest.csv`` and ``report.json``. Everything
random about an image is seeded by the SHA-256 of its source file, and nothing depends on the order
in which files are done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from masksim.augment import encode, rng_for
from masksim.data.manifest import (
    Manifest,
    Row,
    folder_rows,
    manifest_hash,
    read_layout,
    row_dict,
    row_from_dict,
    with_extra,
    write_manifest,
)
from masksim.data.sources import Source
from masksim.errors import DataError, MasksimError, UsageError
from masksim.image import LoadedImage, load_image
from masksim.preprocess import centre_window

STATE = ".masksim"  # folder for journal and temporary files, inside the output folder
MANIFEST = "manifest.csv"
REPORT = "report.json"
_SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}

Tick = Callable[[int, int, int], None]  # (done, in all, failed)


@dataclass(frozen=True)
class Variant:
    """How images are prepared: their bytes as they are, or a window in a chosen format.

    `name` is the folder of the prepared images. `format` is None for ``"train"`` and ``"files"``,
    whose images keep their bytes. `quality` is (lowest, highest), drawn evenly for each image.
    """

    name: str
    format: str | None = None
    quality: tuple[int, int] | None = None


def parse_variant(name: str) -> Variant:
    """Return the variant of a name.

    ``train`` and ``files`` keep the bytes; ``uncompressed`` is PNG; ``JPEG_Q90`` has one quality,
    ``JPEG_Qrandom`` qualities 65 to 100, ``JPEG_Q70-90`` a range of your own; ``WEBP_…`` likewise.

    Raises
    ------
    UsageError
        No such variant.
    """
    if name in ("train", "files"):
        return Variant(name)
    if name == "uncompressed":
        return Variant(name, "PNG")
    match = re.fullmatch(r"(JPEG|WEBP)_Q(?:(random)|(\d{1,3})(?:-(\d{1,3}))?)", name)
    if match:
        kind, any_quality, low, high = match.groups()
        quality = (65, 100) if any_quality else (int(low), int(high or low))
        if 1 <= quality[0] <= quality[1] <= 100:
            return Variant(name, kind, quality)
    raise UsageError(
        "a variant is train, files, uncompressed, JPEG_Qrandom, JPEG_Q90, JPEG_Q70-90 "
        f"or WEBP_…, got {name!r}"
    )


@dataclass(frozen=True)
class PrepareConfig:
    """What shapes the result. The number of workers is not part of it: it changes nothing.

    Attributes
    ----------
    window
        Side of the window that is cut, pixels.
    cut
        ``"aligned"``: centred, moved to a multiple of 8 so that an 8x8 JPEG grid keeps its phase;
        ``"original"``: exactly centred, as the original's script cuts.
    subsampling
        Chroma of JPEG: ``"4:2:0"``, ``"4:2:2"`` or ``"4:4:4"``.
    place
        How images that keep their bytes are put: ``"link"`` (a hard link, a copy where that is not
        possible), ``"copy"``, or ``"in-place"`` (left where they are, the manifest points there).
    seed
        Another number gives another draw of the random qualities.
    """

    window: int = 512
    cut: str = "aligned"
    subsampling: str = "4:2:0"
    place: str = "link"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window < 8:
            raise UsageError(f"window must be at least 8 pixels, got {self.window}")
        if self.cut not in ("aligned", "original"):
            raise UsageError(f'cut must be "aligned" or "original", got {self.cut!r}')
        if self.place not in ("link", "copy", "in-place"):
            raise UsageError(f'place must be "link", "copy" or "in-place", got {self.place!r}')
        if self.subsampling not in ("4:2:0", "4:2:2", "4:4:4"):
            raise UsageError(f"subsampling must be 4:2:0, 4:2:2 or 4:4:4, got {self.subsampling}")


@dataclass(frozen=True)
class Item:
    """One image to prepare: the file, where it goes below the output, and its row so far."""

    file: Path
    goal: str
    row: Row
    variant: Variant


@dataclass(frozen=True)
class Failure:
    """An image that could not be prepared, with the code of the error."""

    path: str
    code: str
    message: str


@dataclass(frozen=True)
class PrepareReport:
    """What a run did: the manifest, the failures, and how long it took."""

    manifest: Manifest
    hash: str
    made: int
    kept: int
    failures: tuple[Failure, ...]
    warnings: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the report as ``report.json`` holds it (time and counts of this run aside)."""
        return {
            "images": len(self.manifest.rows),
            "manifest_hash": self.hash,
            "counts": self.manifest.counts(),
            "failed": len(self.failures),
            "failures": [asdict(failure) for failure in self.failures],
            "warnings": list(self.warnings),
        }


# ---------------------------------------------------------------- plans


def _unique(items: Iterable[Item]) -> list[Item]:
    """Tell apart images that would get one name: a.png and a.JPG of one folder, on any disk."""
    items = sorted(items, key=lambda item: (item.goal, item.file.as_posix()))
    count = Counter(item.goal.lower() for item in items)
    result = []
    for item in items:
        if count[item.goal.lower()] > 1:
            goal = PurePosixPath(item.goal)
            mark = hashlib.sha256(item.row.path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            item = replace(item, goal=str(goal.with_name(f"{goal.stem}-{mark}{goal.suffix}")))
        result.append(item)
    return sorted(result, key=lambda item: item.goal)


def _goal(variant: Variant, place: PurePosixPath, file: Path) -> str:
    suffix = file.suffix if variant.format is None else _SUFFIX[variant.format]
    return (PurePosixPath(variant.name) / place.with_suffix(suffix)).as_posix()


def plan_sets(
    sources: Iterable[Source],
    data: str | os.PathLike[str],
    variants: Sequence[str] = ("train", "JPEG_Qrandom"),
    *,
    all_folders: bool = False,
) -> tuple[list[Item], list[str]]:
    """Plan the public sets that lie in `data`, in the original's layout.

    Parameters
    ----------
    sources
        From ``sources.load_sources``.
    data
        The folder with ``mit5k``, ``newsynth/…``, ``synthbuster/…`` and so on.
    variants
        ``train`` takes the folders of training and validation as they are; every other variant
        takes the test folders.
    all_folders
        Every variant takes every folder.

    Returns
    -------
    list of Item
    list of str
        Warnings: folders that are not there.

    Raises
    ------
    DataError
        ``no_images``: none of the folders is there.
    """
    data = Path(data)
    kinds = [parse_variant(name) for name in variants]
    items: list[Item] = []
    warnings: list[str] = []
    done: set[str] = set()
    for source in sources:
        for folder in source.folders:
            if folder.path in done:
                continue
            done.add(folder.path)
            wanted = [
                kind
                for kind in kinds
                if all_folders or (kind.name in ("train", "files")) == (folder.split != "test")
            ]
            places = [p for p in (folder.path, *folder.aliases) if (data / p).is_dir()]
            pairs = [
                (pair, PurePosixPath(pair[0].path).relative_to(place))
                for place in places
                for pair in folder_rows(folder, data, place)
            ]
            if wanted and not pairs:
                warnings.append(f"{folder.path}: no image in the data folder")
            for (row, file), inner in pairs:
                for kind in wanted:
                    goal = _goal(kind, PurePosixPath(folder.path) / inner, file)
                    items.append(Item(file, goal, row, kind))
    if not items:
        raise DataError(f"no image of the sets asked for in {data}", code="no_images")
    return _unique(items), warnings


def _folder_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip(".") or "_"


def plan_manifest(manifest: Manifest, variants: Sequence[str] = ("files",)) -> list[Item]:
    """Plan every image of a manifest, ``VARIANT/SPLIT/GENERATOR/…``, for each variant.

    Raises
    ------
    DataError
        ``no_images``: the manifest is empty.
    """
    if not manifest.rows:
        raise DataError("the manifest lists no image", code="no_images")
    items = []
    for name in variants:
        variant = parse_variant(name)
        for row in manifest.rows:
            file = manifest.file(row)
            source = _folder_name(row.source.split(":", 1)[-1])
            name = PurePosixPath(row.path).name
            place = PurePosixPath(row.split, _folder_name(row.generator), source, name)
            items.append(Item(file, _goal(variant, place, file), row, variant))
    return _unique(items)


# ---------------------------------------------------------------- one image


def cut_window(
    pixels: np.ndarray[Any, np.dtype[np.uint8]], window: int, cut: str
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the centre window ``(window, window, 3)`` of pixels ``(H, W, 3)``.

    Raises
    ------
    ImageError
        ``too_small``.
    """
    height, width = pixels.shape[:2]
    y, x = centre_window(height, width, window, aligned=cut == "aligned")
    return np.ascontiguousarray(pixels[y : y + window, x : x + window])


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def render(loaded: LoadedImage, variant: Variant, config: PrepareConfig) -> tuple[bytes, str]:
    """Return the prepared file of a variant with a format, and what was done, in words.

    The quality is drawn from the SHA-256 of the source file and the variant's name alone.
    """
    pixels = cut_window(loaded.pixels, config.window, config.cut)
    steps = [*loaded.facts.treatments, f"window {config.window} {config.cut}"]
    if variant.format == "PNG" or variant.format is None:
        return _png(pixels), "; ".join([*steps, "PNG"])
    low, high = variant.quality or (65, 100)
    rng = rng_for(loaded.facts.sha256, "prepare", variant.name, config.seed)
    quality = int(rng.integers(low, high + 1))
    data = encode(pixels, variant.format, quality, config.subsampling)
    chroma = f" {config.subsampling}" if variant.format == "JPEG" else ""
    return data, "; ".join([*steps, f"{variant.format} quality {quality}{chroma}"])


class _Workshop:
    """Makes items in worker threads; every file appears under its name whole or not at all."""

    def __init__(self, out: Path, config: PrepareConfig) -> None:
        self.out, self.config = out, config
        self.temporary = out / STATE / "tmp"
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        self._number = 0
        self._lock = threading.Lock()

    def _fresh(self) -> Path:
        with self._lock:
            self._number += 1
            return self.temporary / str(self._number)

    def _settle(self, temporary: Path, goal: Path) -> None:
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, goal)
        temporary.unlink(missing_ok=True)  # renaming one link over another of a file leaves both

    def _keep_bytes(self, item: Item) -> str:
        """Link, copy or leave the file; return its path for the manifest."""
        if self.config.place == "in-place":
            try:
                path = os.path.relpath(item.file, self.out)
            except ValueError:  # another drive
                path = str(item.file.absolute())
            return Path(path).as_posix()
        temporary = self._fresh()
        linked = False
        if self.config.place == "link":
            try:
                os.link(os.path.realpath(item.file), temporary)
                linked = True
            except OSError:
                pass
        if not linked:
            shutil.copyfile(item.file, temporary)
        self._settle(temporary, self.out / item.goal)
        return item.goal

    def make(self, item: Item) -> Row:
        """Prepare one image and return its row; raise what is wrong with it."""
        loaded = load_image(item.file)
        facts = loaded.facts
        row = replace(item.row, format=facts.format)
        if item.variant.format is None:
            path = self._keep_bytes(item)
            return replace(
                row,
                path=path,
                sha256=facts.sha256,
                width=facts.width,
                height=facts.height,
                processing="none",
            )
        data, processing = render(loaded, item.variant, self.config)
        temporary = self._fresh()
        temporary.write_bytes(data)
        self._settle(temporary, self.out / item.goal)
        row = replace(
            row,
            path=item.goal,
            sha256=hashlib.sha256(data).hexdigest(),
            width=self.config.window,
            height=self.config.window,
            processing=processing,
        )
        return with_extra(
            row,
            prepared=item.variant.name,
            source_sha256=facts.sha256,
            source_width=str(facts.width),
            source_height=str(facts.height),
        )


# ---------------------------------------------------------------- journal


class _Journal:
    """One line an image done, appended; what a killed run leaves is read and gone on with."""

    def __init__(self, path: Path) -> None:
        self.done: dict[str, tuple[str, int, Row]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        good = 0
        if path.exists():
            with open(path, "rb") as f:
                for line in f:
                    try:
                        entry = json.loads(line)
                        row = row_from_dict(entry["row"])
                        self.done[entry["goal"]] = (entry["sign"], entry["bytes"], row)
                    except (ValueError, KeyError, TypeError):
                        break
                    if not line.endswith(b"\n"):
                        break
                    good += len(line)
        self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115 (closed by close)
        # A line cut by a kill must not be joined to the next one.
        self._file.truncate(good)

    def add(self, goal: str, sign: str, n_bytes: int, row: Row) -> None:
        entry = {"goal": goal, "sign": sign, "bytes": n_bytes, "row": row_dict(row)}
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _sign(item: Item, config: PrepareConfig) -> str:
    """Return what an image's result depends on; raise OSError when the file is gone."""
    status = item.file.stat()
    values: list[Any] = [
        asdict(config),
        asdict(item.variant),
        row_dict(item.row),
        item.file.as_posix(),
    ]
    values += [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


# ---------------------------------------------------------------- the run


def prepare(
    items: Sequence[Item],
    out: str | os.PathLike[str],
    config: PrepareConfig | None = None,
    *,
    workers: int | None = None,
    progress: Tick | None = None,
    warnings: Iterable[str] = (),
    manifest_name: str = MANIFEST,
) -> PrepareReport:
    """Prepare the images of a plan and write the manifest and the report.

    A file that cannot be read or is too small becomes a failure with a code; the run goes on.
    Images that an earlier run made, from the same file with the same settings, are kept. The
    manifest and its hash are the same for any number of workers, any order, and any number of
    interruptions.

    Parameters
    ----------
    items
        From `plan_sets` or `plan_manifest`.
    out
        The folder of prepared images.
    config
        Window, cut, chroma, seed.
    workers
        Threads (the codecs release the interpreter); default: one a core.
    progress
        Called with (done, in all, failed).
    warnings
        Of the plan, passed on to the report.
    manifest_name
        ``.csv`` or ``.parquet``, in `out`.

    Returns
    -------
    PrepareReport

    Raises
    ------
    DataError
        ``no_images``: not one image could be prepared.
    """
    config = config or PrepareConfig()
    out = Path(out)
    workers = workers or os.cpu_count() or 1
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    shop = _Workshop(out, config)
    journal = _Journal(out / STATE / "journal.jsonl")
    rows: list[Row] = []
    failures: list[Failure] = []
    made = kept = 0
    signs: dict[str, str] = {}

    def tick() -> None:
        if progress is not None:
            progress(made + kept + len(failures), len(items), len(failures))

    def settle(future: Future[Row], item: Item) -> None:
        nonlocal made
        try:
            row = future.result()
            size = (out / row.path).stat().st_size
        except MasksimError as error:
            failures.append(Failure(item.row.path, error.code, str(error)))
        except OSError as error:
            text = error.strerror or str(error)
            failures.append(Failure(item.row.path, "unreadable", text))
        except MemoryError:
            failures.append(Failure(item.row.path, "too_many_pixels", "out of memory"))
        else:
            journal.add(item.goal, signs.pop(item.goal), size, row)
            rows.append(row)
            made += 1
        tick()

    try:
        with ThreadPoolExecutor(max_workers=workers) as pool:
            running: dict[Future[Row], Item] = {}
            try:
                for item in items:
                    try:
                        sign = _sign(item, config)
                    except OSError as error:
                        text = error.strerror or str(error)
                        failures.append(Failure(item.row.path, "not_found", text))
                        tick()
                        continue
                    earlier = journal.done.get(item.goal)
                    if earlier and earlier[0] == sign and _there(out, earlier[2], earlier[1]):
                        rows.append(earlier[2])
                        kept += 1
                        tick()
                        continue
                    while len(running) >= 2 * workers:
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            settle(future, running.pop(future))
                    signs[item.goal] = sign
                    running[pool.submit(shop.make, item)] = item
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        settle(future, running.pop(future))
            except BaseException:
                for future in running:
                    future.cancel()
                raise
    finally:
        journal.close()
        shutil.rmtree(shop.temporary, ignore_errors=True)
    rows.sort(key=lambda row: row.path)
    failures.sort(key=lambda failure: (failure.path, failure.code))
    manifest = Manifest(tuple(rows), out)
    report = PrepareReport(
        manifest=manifest,
        hash=manifest_hash(rows),
        made=made,
        kept=kept,
        failures=tuple(failures),
        warnings=tuple(warnings),
        seconds=time.monotonic() - start,
    )
    _write_report(out, report)
    if not rows:
        raise DataError(
            f"none of {len(items)} images could be prepared; first: "
            f"{failures[0].path}: {failures[0].message}",
            code="no_images",
        )
    write_manifest(out / manifest_name, rows)
    return report


def _there(out: Path, row: Row, size: int) -> bool:
    try:
        return (out / row.path).stat().st_size == size
    except OSError:
        return False


def _write_report(out: Path, report: PrepareReport) -> None:
    temporary = out / (REPORT + ".tmp")
    text = json.dumps(report.as_dict(), indent=2, ensure_ascii=True)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, out / REPORT)


def plan_original(
    root: str | os.PathLike[str],
    sources: Mapping[str, Source],
    variant: str = "JPEG_Qrandom",
) -> list[Item]:
    """Plan the folders that the original prepared, to be listed where they are.

    Raises
    ------
    DataError
        ``no_images``: none of its folders is there.
    """
    folders = [folder for source in sources.values() for folder in source.folders]
    manifest = read_layout(root, folders, variant)
    keep = Variant("files")
    return [Item(manifest.file(row), row.path, row, keep) for row in manifest.rows]

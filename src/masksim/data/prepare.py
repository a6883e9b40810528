"""Raw folders to prepared images and a manifest, the same whatever the number of workers.

A plan (`plan_sets`, `plan_manifest`) lists what is to be made of which file; `prepare` makes it,
resumes where a killed run stopped, and writes ``manifest.csv`` and ``report.json``. Everything
random about an image is seeded by the SHA-256 of its source file, and nothing depends on the order
in which files are done.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from masksim.augment import encode, rng_for
from masksim.config import Progress, cores
from masksim.data.manifest import Manifest, Row, manifest_hash, with_extra, write_manifest
from masksim.data.scan import folder_rows, read_layout
from masksim.data.sources import Source
from masksim.data.threads import in_threads
from masksim.errors import DataError, MasksimError, UsageError
from masksim.files import write_whole
from masksim.image import LoadedImage, load_image
from masksim.preprocess import centre_window

STATE = ".masksim"  # folder for journal and temporary files, inside the output folder
MANIFEST = "manifest.csv"
REPORT = "report.json"
_SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


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
            found = [
                (row, PurePosixPath(row.path).relative_to(place))
                for place in places
                for row in folder_rows(folder, data, place)
            ]
            if wanted and not found:
                warnings.append(f"{folder.path}: no image in the data folder")
            for row, inner in found:
                for kind in wanted:
                    file = data / row.path
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


def render(loaded: LoadedImage, variant: Variant, config: PrepareConfig) -> tuple[bytes, str]:
    """Return the prepared file of a variant with a format, and what was done, in words.

    The quality is drawn from the SHA-256 of the source file and the variant's name alone.
    """
    pixels = cut_window(loaded.pixels, config.window, config.cut)
    steps = [*loaded.facts.treatments, f"window {config.window} {config.cut}"]
    if variant.format == "PNG" or variant.format is None:
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        return png.getvalue(), "; ".join([*steps, "PNG"])
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
        self._numbers = itertools.count()

    def _fresh(self) -> Path:
        return self.temporary / str(next(self._numbers))

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
        try:
            if self.config.place != "link":
                raise OSError("a copy is wanted")
            os.link(os.path.realpath(item.file), temporary)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(item.file, temporary)
        self._settle(temporary, self.out / item.goal)
        return item.goal

    def make(self, item: Item) -> Row:
        """Prepare one image and return its row; raise what is wrong with it."""
        loaded = load_image(item.file)
        facts = loaded.facts
        row = replace(item.row, format=facts.format)
        if item.variant.format is None:
            row = replace(row, path=self._keep_bytes(item), processing="none")
            return replace(row, sha256=facts.sha256, width=facts.width, height=facts.height)
        data, processing = render(loaded, item.variant, self.config)
        temporary = self._fresh()
        temporary.write_bytes(data)
        self._settle(temporary, self.out / item.goal)
        return with_extra(
            replace(
                row,
                path=item.goal,
                sha256=hashlib.sha256(data).hexdigest(),
                width=self.config.window,
                height=self.config.window,
                processing=processing,
            ),
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
                        row = Row(**entry["row"])
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
        entry = {"goal": goal, "sign": sign, "bytes": n_bytes, "row": asdict(row)}
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _sign(item: Item, config: PrepareConfig) -> str:
    """Return what an image's result depends on; raise OSError when the file is gone."""
    status = item.file.stat()
    values: list[Any] = [asdict(config), asdict(item.variant), asdict(item.row)]
    values += [item.file.as_posix(), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


# ---------------------------------------------------------------- the run


class _Run:
    """What has become of the items so far."""

    def __init__(self, out: Path, config: PrepareConfig, n: int, progress: Progress | None) -> None:
        self.out, self.config, self.n, self.progress = out, config, n, progress
        self.journal = _Journal(out / STATE / "journal.jsonl")
        self.signs: dict[str, str] = {}
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.made = self.kept = 0

    def _tick(self) -> None:
        if self.progress is not None:
            failed = len(self.failures)
            self.progress("preparing", self.made + self.kept + failed, self.n)

    def _fail(self, item: Item, code: str, message: str) -> None:
        self.failures.append(Failure(item.row.path, code, message))

    def to_do(self, items: Iterable[Item]) -> Iterator[Item]:
        """Give the items that no earlier run has made of the same file with the same settings."""
        for item in items:
            try:
                sign = _sign(item, self.config)
            except OSError as error:
                self._fail(item, "not_found", error.strerror or str(error))
                self._tick()
                continue
            earlier = self.journal.done.get(item.goal)
            if earlier and earlier[0] == sign and _there(self.out, earlier[2], earlier[1]):
                self.rows.append(earlier[2])
                self.kept += 1
                self._tick()
            else:
                self.signs[item.goal] = sign
                yield item

    def settle(self, item: Item, future: Future[Row]) -> None:
        """Note what has become of an item."""
        try:
            row = future.result()
            size = (self.out / row.path).stat().st_size
        except MasksimError as error:
            self._fail(item, error.code, str(error))
        except OSError as error:
            self._fail(item, "unreadable", error.strerror or str(error))
        except MemoryError:
            self._fail(item, "too_many_pixels", "out of memory")
        else:
            self.journal.add(item.goal, self.signs.pop(item.goal), size, row)
            self.rows.append(row)
            self.made += 1
        self._tick()


def prepare(
    items: Sequence[Item],
    out: str | os.PathLike[str],
    config: PrepareConfig | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
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
        Called with (``"preparing"``, done, in all).
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
    workers = workers or cores()
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    shop, run = _Workshop(out, config), _Run(out, config, len(items), progress)
    try:
        with closing(in_threads(shop.make, run.to_do(items), workers)) as done:
            for item, future in done:
                run.settle(item, future)
    finally:
        run.journal.close()
        shutil.rmtree(shop.temporary, ignore_errors=True)
    rows = sorted(run.rows, key=lambda row: row.path)
    failures = sorted(run.failures, key=lambda failure: (failure.path, failure.code))
    report = PrepareReport(
        manifest=Manifest(tuple(rows), out),
        hash=manifest_hash(rows),
        made=run.made,
        kept=run.kept,
        failures=tuple(failures),
        warnings=tuple(warnings),
        seconds=time.monotonic() - start,
    )
    write_whole(out / REPORT, json.dumps(report.as_dict(), indent=2).encode() + b"\n")
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

"""Folders of images -> rows of a manifest, with splits by source.

Splits go by source, never by image: two crops of one scene, two frames of one burst or two images
of one camera in both training and test would make every figure too good.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from masksim.data.manifest import REAL, Manifest, Row, split_of
from masksim.data.sources import Folder
from masksim.errors import DataError, UsageError
from masksim.image import sniff_format

EXTENSIONS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".gif": "GIF",
    ".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF", ".dng": "DNG",
}  # fmt: skip
"""Ends of names that images have, in lower case, and their formats."""

BLOCKS = 20
"""Parts that a single source is cut into."""


# ---------------------------------------------------------------- finding images


def image_problem(head: bytes) -> str:
    """Return ``""`` when a file begins like an image, else what it looks like (for downloads)."""
    if sniff_format(head):
        return ""
    start = head[:64].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page came instead of an image"
    return "no image format begins with these bytes" if head else "the file is empty"


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the images below a folder, sorted by path; see `walk`.

    Extensions count in any case; a file of another name counts when its bytes begin like an image.
    Partial downloads do not.
    """
    found = [
        path
        for parent, names in walk(folder)
        for path in (Path(parent, name) for name in names)
        if not path.name.endswith((".part", ".tmp", ".part.json"))
        and (path.suffix.lower() in EXTENSIONS or sniff_format(_head(path)))
    ]
    return sorted(found, key=lambda path: path.as_posix())


def some_images(folder: Path) -> list[Path]:
    """Return the images below a folder, at least one; see `find_images`.

    Raises
    ------
    DataError
        ``not_found``: no such folder; ``no_images``: none in it.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", code="not_found")
    files = find_images(folder)
    if not files:
        raise DataError(f"no image in {folder}", code="no_images")
    return files


def walk(
    folder: str | os.PathLike[str],
    *,
    recursive: bool = True,
    onerror: Callable[[OSError], object] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Go through a folder and those below it, without hidden ones.

    Linked folders are followed (the original links its training folders), each real folder once.

    Parameters
    ----------
    folder
        Where to begin.
    recursive
        Whether to enter the folders below.
    onerror
        Called with what went wrong where a folder cannot be read.

    Yields
    ------
    (str, list of str)
        A folder, and the names of its files in order, hidden ones left out.
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(n for n in folders if not n.startswith(".")) if recursive else []
        yield parent, sorted(name for name in names if not name.startswith("."))


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read(32)
    except OSError:
        return b""


def _format_of(path: Path) -> str:
    return sniff_format(_head(path)) or EXTENSIONS.get(path.suffix.lower(), "")


def camera_of(path: str | os.PathLike[str]) -> str:
    """Return the camera of a photograph by its EXIF make and model, ``""`` where not said."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            exif = image.getexif()
    except Exception:  # any damaged file: the caller will hear of it when it decodes the image
        return ""
    words = [str(exif.get(tag, "")).replace("\0", "").strip() for tag in (0x010F, 0x0110)]
    return " ".join(word for word in words if word)


# ---------------------------------------------------------------- splits


def hash_percent(key: str) -> float:
    """Return a number in [0, 100) that depends on the key alone, evenly spread over keys."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


def assign_splits(
    counts: Mapping[str, int], shares: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Give each source, whole, to one split, near the wanted shares of the images.

    Large sources come first and each goes where most is lacking, but every split gets a source
    before any is left without: with as many sources as splits, one each. Ties go by the hash of
    the name, so the answer does not depend on order.

    Parameters
    ----------
    counts
        Images a source.
    shares
        Split to share, adding up to 1; default 80 % train, 10 % val, 10 % test.

    Returns
    -------
    dict
        Source to split.
    """
    shares = dict(shares or {"train": 0.8, "val": 0.1, "test": 0.1})
    for split in shares:
        split_of(split)
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UsageError(f"shares of the splits must add up to 1, got {dict(shares)}")
    wanted = [split for split, share in shares.items() if share > 0]
    total = sum(counts.values())
    have = dict.fromkeys(wanted, 0)
    order = sorted(counts, key=lambda name: (-counts[name], hash_percent(name), name))
    result: dict[str, str] = {}
    for index, name in enumerate(order):
        empty = [split for split in wanted if have[split] == 0]
        candidates = empty if len(order) - index <= len(empty) else wanted
        best = max(
            candidates, key=lambda split: (shares[split] * total - have[split], shares[split])
        )
        result[name] = best
        have[best] += counts[name]
    return result


# ---------------------------------------------------------------- folders


def folder_rows(folder: Folder, root: Path, place: str | None = None) -> list[Row]:
    """Return a row for each image of a public set's folder.

    Parameters
    ----------
    folder
        Its generator, split and groups.
    root
        The folder it is in.
    place
        Its path below `root` when that is not ``folder.path``.

    Returns
    -------
    list of Row
        With paths relative to `root`, without hashes and sizes.
    """
    top = root / (folder.path if place is None else place)
    rows = []
    set_name = folder.path.split("/")[0]
    for path in find_images(top):
        match = re.search(folder.group, path.name) if folder.group else None
        group = f"{set_name}/{match.group(1) if match and match.groups() else path.stem}"
        to_val = folder.val_percent and hash_percent(group) < folder.val_percent
        rows.append(
            Row(
                path=path.relative_to(root).as_posix(),
                generator=folder.generator,
                source=set_name,
                split="val" if to_val else folder.split,
                format=_format_of(path),
                extra={
                    "group": group,
                    "set": set_name,
                    **({"variant": folder.variant} if folder.variant else {}),
                },
            )
        )
    return rows


def read_layout(
    root: str | os.PathLike[str], folders: Sequence[Folder], variant: str = "JPEG_Qrandom"
) -> Manifest:
    """Read the folders that the original prepared, as they are.

    Parameters
    ----------
    root
        The folder ``processed_data``, with ``train/…`` and ``JPEG_Qrandom/…`` in it.
    folders
        Of the public sets (``sources.Source.folders``).
    variant
        Which of the prepared test folders; the training images are in ``train`` always.

    Returns
    -------
    Manifest
        Rooted at `root`, hashes and sizes not filled in.

    Raises
    ------
    DataError
        ``no_images``: none of the folders is there.
    """
    root = Path(root)
    rows: list[Row] = []
    for folder in folders:
        top = variant if folder.split == "test" else "train"
        for name in (folder.path, *folder.aliases):
            place = f"{top}/{name}"
            if (root / place).is_dir():
                rows += folder_rows(folder, root, place)
    if not rows:
        raise DataError(
            f"no prepared folder of a known set in {root} (train/… and {variant}/…)",
            code="no_images",
        )
    return Manifest(tuple(rows), root)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def _sources_of(generator: str, folder: Path, files: Sequence[Path], label: str) -> list[str]:
    """Name the source of each file: sub-folder, else camera, else the folder alone."""
    subs = [next(iter(file.relative_to(folder).parts[:-1]), "") for file in files]
    top = f"{generator}:{label}"
    if len(set(subs)) > 1:
        return [f"{top}/{sub}" if sub else top for sub in subs]
    if generator == REAL:
        cameras = [camera_of(file) for file in files]
        if len({camera for camera in cameras if camera}) > 1:
            return [f"{top}/{camera or 'unknown camera'}" for camera in cameras]
    return [top] * len(files)


def scan_folders(
    real: Sequence[str | os.PathLike[str]],
    synthetic: Sequence[tuple[str, str | os.PathLike[str]]],
    *,
    shares: Mapping[str, float] | None = None,
    single_source: str = "blocks",
) -> tuple[Manifest, list[str]]:
    """Make a manifest of your own folders, with splits by source.

    A source is a sub-folder of the folder given; where there are none, a camera (by EXIF, for
    photographs); where there is only one of those, the folder as a whole. Each class is split for
    itself by `assign_splits`.

    A class with a single source cannot be split by source. With ``single_source="blocks"`` its
    files, in natural order of their names, are cut into 20 blocks of neighbours, and whole blocks
    go to the splits: series and bursts stay together, but training and test share their origin,
    and a warning says so. ``"error"`` refuses instead.

    Parameters
    ----------
    real
        Folders of photographs.
    synthetic
        (generator, folder) pairs; a generator may have several folders.
    shares
        Split to share, default 80 / 10 / 10.
    single_source
        ``"blocks"`` or ``"error"``.

    Returns
    -------
    Manifest
        Absolute paths; hashes and sizes not filled in.
    list of str
        Warnings.

    Raises
    ------
    DataError
        ``not_found`` for a missing folder, ``no_images`` for one without, ``single_source``.
    UsageError
        A generator named ``real`` or empty, or an unknown `single_source`.
    """
    if single_source not in ("blocks", "error"):
        raise UsageError(f'single_source must be "blocks" or "error", got {single_source!r}')
    by_class: dict[str, list[Path]] = defaultdict(list)
    for folder in real:
        by_class[REAL].append(Path(folder))
    for generator, folder in synthetic:
        if not generator or generator.lower() == REAL:
            raise UsageError(f"a generator cannot be named {generator!r}")
        by_class[generator].append(Path(folder))
    rows: list[Row] = []
    warnings: list[str] = []
    for generator, folders in sorted(by_class.items()):
        units: list[tuple[Path, str]] = []
        folders = [folder.absolute() for folder in folders]
        names = Counter(folder.name for folder in folders)
        for folder in folders:
            # Two folders "images" of different people are two sources.
            label = folder.name if names[folder.name] == 1 else folder.as_posix()
            files = some_images(folder)
            units += zip(files, _sources_of(generator, folder, files, label), strict=True)
        rows += _split_class(generator, units, shares, single_source, warnings)
    if not rows:
        raise UsageError("no folder was given")
    twice = [path for path, n in Counter(row.path for row in rows).items() if n > 1]
    if twice:
        raise DataError(f"{twice[0]} is in two of the folders", code="manifest_invalid")
    return Manifest(tuple(rows), Path(".")), warnings


def _split_class(
    generator: str,
    units: list[tuple[Path, str]],
    shares: Mapping[str, float] | None,
    single_source: str,
    warnings: list[str],
) -> Iterator[Row]:
    groups = [name for _, name in units]
    counts = Counter(groups)
    wanted = 3 if shares is None else sum(share > 0 for share in shares.values())
    if len(counts) == 1 and wanted > 1:
        text = f"{generator}: a single source ({groups[0]}): it cannot be split by source"
        if single_source == "error":
            raise DataError(text, code="single_source")
        warnings.append(f"{text}; blocks of neighbouring files are used instead")
        units.sort(key=lambda unit: _natural(unit[0].as_posix()))
        blocks = min(BLOCKS, len(units))
        groups = [f"{name}#{i * blocks // len(units):02d}" for i, (_, name) in enumerate(units)]
        counts = Counter(groups)
    splits = assign_splits(counts, shares)
    lacking = wanted - len(set(splits.values()))
    if lacking:
        warnings.append(f"{generator}: too few sources, {lacking} of the splits stay empty")
    for (path, name), group in zip(units, groups, strict=True):
        yield Row(
            path=path.as_posix(),
            generator=generator,
            source=name,
            split=splits[group],
            format=_format_of(path),
            extra={"group": group},
        )

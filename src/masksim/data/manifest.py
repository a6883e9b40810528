"""A manifest: which images there are, who made them, where they come from, in which split.

One row an image (`Row`), one CSV or Parquet file a set (`read_manifest`, `write_manifest`). The
readers here also take the tables other tools write, the folders the original prepared, and folders
of your own. Splits go by source, never by image: two crops of one scene, two frames of one burst
or two images of one camera in both training and test would make every figure too good.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from masksim.errors import DataError, UsageError, extra_missing

REAL = "real"  # the generator's name of photographs
SPLITS = ("train", "val", "test")
CORE = (
    "path",
    "generator",
    "source",
    "split",
    "sha256",
    "width",
    "height",
    "format",
    "processing",
)
EXTENSIONS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".gif": "GIF",
    ".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF", ".dng": "DNG",
}  # fmt: skip
_SPLIT_WORDS = {"training": "train", "validation": "val", "valid": "val", "dev": "val"}


@dataclass(frozen=True, slots=True)
class Row:
    """One image.

    Attributes
    ----------
    path
        Relative to the manifest's folder, with ``/``; absolute for images left where they are.
    generator
        What made it; ``"real"`` for photographs.
    source
        The set, folder, repository or camera it comes from: the unit of splits.
    split
        ``"train"``, ``"val"`` or ``"test"``.
    sha256
        Of the file at `path`; ``""`` where not yet computed.
    width, height
        Of the file at `path`, in pixels; 0 where not yet known.
    format
        Of the source file, before our processing: ``"JPEG"``, ``"PNG"``, …
    processing
        What was done to the source file, ``"none"`` if nothing; ``""`` where not known.
    extra
        Further columns, kept as they are. ``group`` names what must stay in one split.
    """

    path: str
    generator: str
    source: str
    split: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    processing: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        """Whether this is a photograph."""
        return self.generator == REAL

    @property
    def key(self) -> str:
        """What seeds the draws of this image: a hash of its content, else its path."""
        return self.extra.get("blob") or self.sha256 or self.path


@dataclass(frozen=True)
class Manifest:
    """Rows, and the folder their paths are relative to."""

    rows: tuple[Row, ...]
    root: Path

    def file(self, row: Row) -> Path:
        """Return where a row's image lies."""
        return self.root / row.path

    def select(self, split: str | None = None, generator: str | None = None) -> Manifest:
        """Return the rows of one split, of one generator, or both."""
        rows = tuple(
            row
            for row in self.rows
            if (split is None or row.split == split)
            and (generator is None or row.generator == generator)
        )
        return Manifest(rows, self.root)

    @property
    def generators(self) -> list[str]:
        """The names of the generators, sorted, without ``"real"``."""
        return sorted({row.generator for row in self.rows} - {REAL})

    def counts(self) -> dict[str, dict[str, int]]:
        """Images a split and generator."""
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            table[row.split][row.generator] += 1
        return {split: dict(sorted(count.items())) for split, count in sorted(table.items())}


def group_of(row: Row) -> str:
    """Return what the row must not be parted from: its ``group``, else its source."""
    return row.extra.get("group") or row.source


def group_rows(rows: Iterable[Row], key: Callable[[Row], str] = group_of) -> dict[str, list[Row]]:
    """Return the rows by `key`, groups and rows in the order of their names."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.path):
        groups[key(row)].append(row)
    return dict(sorted(groups.items()))


# ---------------------------------------------------------------- reading and writing


def _encode(text: str) -> bytes:
    # File names that are no UTF-8 arrive as surrogates and must survive the way back.
    return text.encode("utf-8", "surrogateescape")


def manifest_hash(rows: Iterable[Row]) -> str:
    """Return the SHA-256 of the content: independent of order, format and folder.

    Two manifests have the same hash exactly when they list the same images, by content and name,
    with the same labels, splits, processing and extra columns (empty ones do not count).
    """
    lines = []
    for row in rows:
        values: list[Any] = [getattr(row, name) for name in CORE]
        values.append({k: v for k, v in sorted(row.extra.items()) if v != ""})
        lines.append(_encode(json.dumps(values, ensure_ascii=False, separators=(",", ":"))))
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line + b"\n")
    return digest.hexdigest()


def _table(rows: Iterable[Row]) -> tuple[list[str], list[dict[str, Any]]]:
    ordered = sorted(rows, key=lambda row: _encode(row.path))
    extras = sorted({name for row in ordered for name in row.extra})
    clash = set(extras) & set(CORE)
    if clash:
        raise DataError(
            f"extra columns {', '.join(sorted(clash))} are core ones", code="manifest_invalid"
        )
    table = [
        {**{name: getattr(row, name) for name in CORE},
         **{name: row.extra.get(name, "") for name in extras}}
        for row in ordered
    ]  # fmt: skip
    return [*CORE, *extras], table


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> str:
    """Write rows sorted by path, all at once: never a partial file under the final name.

    Parameters
    ----------
    path
        ``.csv``, or ``.parquet`` where pyarrow is installed.
    rows
        In any order.

    Returns
    -------
    str
        The `manifest_hash`.

    Raises
    ------
    UsageError
        For ``.parquet`` without pyarrow.
    """
    path = Path(path)
    rows = list(rows)
    columns, table = _table(rows)
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".parquet":
        pa, pq = _pyarrow()
        arrays = {name: [line[name] for line in table] for name in columns}
        types = {
            name: pa.int64() if name in ("width", "height") else pa.string() for name in columns
        }
        schema = pa.schema([(name, types[name]) for name in columns])
        pq.write_table(pa.table(arrays, schema=schema), temporary)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        with open(temporary, "wb") as f:
            f.write(_encode(out.getvalue()))
            f.flush()
            os.fsync(f.fileno())
    os.replace(temporary, path)
    return manifest_hash(rows)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise extra_missing("a Parquet manifest", "pyarrow", "parquet") from error


def read_manifest(path: str | os.PathLike[str], *, split: str = "test") -> Manifest:
    """Read a manifest, whoever wrote it.

    Three kinds of table are told apart by their columns: ours (`Row`), the one of ``collect.py``
    (``file, split, generator, variant, repo, path, blob, width, height, format, evidence``; the
    source is the repository), and the field's ``filename,typ`` (``typ`` names the generator;
    those that begin with ``real`` are photographs).

    Parameters
    ----------
    path
        A ``.csv`` or ``.parquet`` file.
    split
        Of the rows of a ``filename,typ`` table, which does not say.

    Returns
    -------
    Manifest
        Rooted at the file's folder.

    Raises
    ------
    DataError
        ``not_found``, or ``manifest_invalid`` with the line and what is wrong there.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no manifest at {path}", code="not_found")
    if path.suffix.lower() == ".parquet":
        pq = _pyarrow()[1]
        table = pq.read_table(path)
        columns = list(table.column_names)
        lines = [
            {k: "" if v is None else str(v) for k, v in line.items()} for line in table.to_pylist()
        ]
    else:
        text = path.read_bytes().decode("utf-8", "surrogateescape").lstrip("\ufeff")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = list(reader.fieldnames or [])
        lines = []
        for number, line in enumerate(reader, start=2):
            if None in line or None in line.values():
                raise DataError(
                    f"{path.name} row {number}: {len(columns)} columns expected",
                    code="manifest_invalid",
                )
            lines.append({str(k): str(v) for k, v in line.items()})
    has = set(columns)
    make: Callable[[dict[str, str]], Row]
    if {"file", "generator", "repo", "split"} <= has:
        make = _row_collected
    elif {"path", "generator", "source", "split"} <= has:
        make = _row_own
    elif {"filename", "typ"} <= has:

        def make(line: dict[str, str]) -> Row:
            return _row_typ(line, split)
    else:
        raise DataError(
            f"{path.name}: columns path, generator, source, split are needed "
            f"(or filename, typ), got {columns}",
            code="manifest_invalid",
        )
    rows, seen = [], set()
    for number, line in enumerate(lines, start=2):
        try:
            row = make(line)
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path.name} row {number}: {error}", code="manifest_invalid"
            ) from error
        if row.path in seen:
            raise DataError(
                f"{path.name} row {number}: {row.path} is listed twice", code="manifest_invalid"
            )
        seen.add(row.path)
        rows.append(row)
    return Manifest(tuple(rows), path.parent)


def _split_of(word: str) -> str:
    split = _SPLIT_WORDS.get(word.strip().lower(), word.strip().lower())
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {word!r}")
    return split


def _number(word: str | None, name: str) -> int:
    if not word:
        return 0
    if not word.isdigit():
        raise ValueError(f"{name} must be a number of pixels, got {word!r}")
    return int(word)


def _row_own(line: dict[str, str]) -> Row:
    for name in ("path", "generator", "source"):
        if not line[name]:
            raise ValueError(f"{name} is empty")
    sha256 = line.get("sha256", "").lower()
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    return Row(
        path=line["path"],
        generator=line["generator"],
        source=line["source"],
        split=_split_of(line["split"]),
        sha256=sha256,
        width=_number(line.get("width"), "width"),
        height=_number(line.get("height"), "height"),
        format=line.get("format", "").upper(),
        processing=line.get("processing", ""),
        extra={k: v for k, v in line.items() if k not in CORE and v != ""},
    )


def _row_collected(line: dict[str, str]) -> Row:
    taken = {"file", "generator", "repo", "split", "width", "height", "format", "path"}
    extra = {k: v for k, v in line.items() if k not in taken and v != ""}
    if line.get("path"):
        extra["source_path"] = line["path"]
    if not line["file"] or not line["repo"]:
        raise ValueError("file and repo must not be empty")
    return Row(
        path=line["file"],
        generator=line["generator"],
        source=line["repo"],
        split=_split_of(line["split"]),
        width=_number(line.get("width"), "width"),
        height=_number(line.get("height"), "height"),
        format=line.get("format", "").upper(),
        processing="none",
        extra=extra,
    )


def _row_typ(line: dict[str, str], split: str) -> Row:
    name, typ = line["filename"].replace("\\", "/"), line["typ"]
    if not name or not typ:
        raise ValueError("filename and typ must not be empty")
    extra = {k: v for k, v in line.items() if k not in ("filename", "typ", *CORE) and v != ""}
    real = typ.lower().startswith("real")
    return Row(
        path=name,
        generator=REAL if real else typ,
        source=typ,
        split=_split_of(line.get("split") or split),
        extra={"group": PurePosixPath(name).stem, **extra},
    )


# ---------------------------------------------------------------- finding images


def sniff_format(head: bytes) -> str:
    """Return the image format that a file's first 16 or more bytes tell, ``""`` if none."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:2] == b"BM" and len(head) >= 14 and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "AVIF"
        if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
            return "HEIF"
    return ""


def image_problem(head: bytes) -> str:
    """Return ``""`` when a file begins like an image, else what it looks like (for downloads)."""
    if sniff_format(head):
        return ""
    start = head[:64].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page came instead of an image"
    return "no image format begins with these bytes" if head else "the file is empty"


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the images below a folder, sorted by path.

    Extensions count in any case; a file of another name counts when its bytes begin like an image.
    Hidden files and partial downloads do not. Linked folders are followed (the original links
    its training folders), each real folder once.
    """
    folder = Path(folder)
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith(".") or name.endswith((".part", ".tmp", ".part.json")):
                continue
            path = Path(parent, name)
            if path.suffix.lower() in EXTENSIONS or sniff_format(_head(path)):
                found.append(path)
    return sorted(found, key=lambda path: path.as_posix())


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
    return int.from_bytes(hashlib.sha256(_encode(key)).digest()[:8], "big") / 2**64 * 100


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
        _split_of(split)
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


class LayoutFolder(Protocol):
    """What is known of a folder of a public set (``sources.Folder`` is one)."""

    @property
    def path(self) -> str:
        """Where it is below the data folder."""

    @property
    def generator(self) -> str:
        """Who made the images."""

    @property
    def split(self) -> str:
        """The split they belong to."""

    @property
    def variant(self) -> str:
        """A closer name of the generator, or nothing."""

    @property
    def val_percent(self) -> int:
        """The share of groups that goes to validation."""

    @property
    def group(self) -> str:
        """A pattern whose first group, in the file's name, must stay together."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names of the folder."""


def folder_rows(
    folder: LayoutFolder, root: Path, place: str | None = None
) -> list[tuple[Row, Path]]:
    """Return a row and a file for each image of a public set's folder.

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
    list of (Row, Path)
        Paths of the rows are relative to `root`; hashes and sizes are not yet filled in.
    """
    top = root / (folder.path if place is None else place)
    pairs = []
    set_name = folder.path.split("/")[0]
    for path in find_images(top):
        match = re.search(folder.group, path.name) if folder.group else None
        unit = match.group(1) if match and match.groups() else path.stem
        group = f"{set_name}/{unit}"
        split = folder.split
        if folder.val_percent and hash_percent(group) < folder.val_percent:
            split = "val"
        extra = {"group": group, "set": set_name}
        if folder.variant:
            extra["variant"] = folder.variant
        row = Row(
            path=path.relative_to(root).as_posix(),
            generator=folder.generator,
            source=set_name,
            split=split,
            format=_format_of(path),
            extra=extra,
        )
        pairs.append((row, path))
    return pairs


def read_layout(
    root: str | os.PathLike[str], folders: Sequence[LayoutFolder], variant: str = "JPEG_Qrandom"
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
                rows += [row for row, _ in folder_rows(folder, root, place)]
    if not rows:
        raise DataError(
            f"no prepared folder of a known set in {root} (train/… and {variant}/…)",
            code="no_images",
        )
    return Manifest(tuple(rows), root)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


BLOCKS = 20  # parts a single source is cut into


def _sources_of(
    generator: str, folder: Path, files: Sequence[Path], label: str
) -> tuple[list[str], str]:
    """Name the source of each file: sub-folder, else camera, else the folder alone."""
    subs = [
        file.relative_to(folder).parts[0] if len(file.relative_to(folder).parts) > 1 else ""
        for file in files
    ]
    top = f"{generator}:{label}"
    if len(set(subs)) > 1:
        return [f"{top}/{sub}" if sub else top for sub in subs], "folders"
    if generator == REAL:
        cameras = [camera_of(file) for file in files]
        if len({camera for camera in cameras if camera}) > 1:
            return [f"{top}/{camera or 'unknown camera'}" for camera in cameras], "cameras"
    return [top] * len(files), "single"


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
            if not folder.is_dir():
                raise DataError(f"no folder {folder}", code="not_found")
            files = find_images(folder)
            if not files:
                raise DataError(f"no image in {folder}", code="no_images")
            sources, _ = _sources_of(generator, folder, files, label)
            units += list(zip(files, sources, strict=True))
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


def with_extra(row: Row, **columns: str) -> Row:
    """Return the row with further columns; empty values are left out."""
    extra = {**row.extra, **columns}
    return replace(row, extra={k: v for k, v in extra.items() if v != ""})


def row_dict(row: Row) -> dict[str, Any]:
    """Return the row as plain values, ready for JSON."""
    return {f.name: getattr(row, f.name) for f in fields(row)} | {"extra": dict(row.extra)}


def row_from_dict(values: Mapping[str, Any]) -> Row:
    """Return the row that `row_dict` wrote."""
    return Row(**values)

"""The public image sets: where they are, under which terms, how they are laid out.

`load_sources` reads the table ``sources.toml`` beside this file, and one of your own. What is
listed there `masksim.data.download` gets and `masksim.data.archives` unpacks.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from masksim.config import from_plain, read_toml
from masksim.errors import DataError, UsageError

TABLE = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True)
class RemoteFile:
    """One file to download.

    Attributes
    ----------
    name
        Its path below the cache.
    urls
        Addresses to try in turn.
    size
        Bytes, where that is published.
    checksum
        ``"md5:…"``, ``"sha1:…"`` or ``"sha256:…"``; ``""`` where none is published.
    checksum_url
        A small text that holds the digest.
    checked
        Where size and checksum are documented.
    extract
        Folder in the archive to folder under ``data/``; empty for files that are no archive.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: str = ""
    checksum_url: str = ""
    checked: str = ""
    extract: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.checksum and not re.fullmatch("(md5|sha1|sha256):[0-9a-fA-F]+", self.checksum):
            raise DataError(
                f"checksum must be md5:…, sha1:… or sha256:…, got {self.checksum!r}",
                code="sources_invalid",
            )


@dataclass(frozen=True)
class UrlTable:
    """A CSV with columns of URLs.

    Attributes
    ----------
    columns
        Column to the folder under ``data/`` where its images go.
    file
        The CSV itself; None where it comes by a form.
    scheme
        What URLs begin with that are written without.
    rewrite
        Beginnings of URLs that have moved, and where to; the old ones are tried second.
    """

    columns: Mapping[str, str]
    file: RemoteFile | None = None
    scheme: str = "http://"
    rewrite: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UrlTable:
        """Make it of a table of TOML, in which the file's fields stand among the others."""
        of_file = {k: v for k, v in values.items() if k in RemoteFile.__dataclass_fields__}
        rest = {k: v for k, v in values.items() if k not in of_file}
        if of_file:
            rest["file"] = from_plain(RemoteFile, of_file, "a table's file")
        return from_plain(cls, rest, "a table")


@dataclass(frozen=True)
class Bucket:
    """A public object store that lists its objects in JSON pages (name, size, md5Hash).

    `match` finds the wanted objects by name, and its first group names the file; `{name}` in
    `download` stands for the object's name.
    """

    url: str
    download: str
    match: str
    folder: str


@dataclass(frozen=True)
class Folder:
    """One folder of images under ``data/``.

    Attributes
    ----------
    path
        Where it is; its first part names the set.
    generator
        Who made the images, ``"real"`` for photographs.
    split
        ``"train"``, ``"val"`` or ``"test"``.
    variant
        A closer name of the generator.
    val_percent
        Share of the groups that goes to validation instead.
    group
        A pattern whose first group, in a file's name, must stay in one split.
    aliases
        Other names of the folder.
    """

    path: str
    generator: str
    split: str
    variant: str = ""
    val_percent: int = 0
    group: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "test"):
            raise DataError(
                f"{self.path}: split must be train, val or test, got {self.split!r}",
                code="sources_invalid",
            )


@dataclass(frozen=True)
class Source:
    """One public set of images, as ``sources.toml`` describes it (sizes in bytes, 0: unknown)."""

    name: str
    title: str
    home: str
    licence: str
    roles: tuple[str, ...]
    access: str
    size: int = 0
    licence_url: str = ""
    notes: str = ""
    manual: str = ""
    files: tuple[RemoteFile, ...] = ()
    table: UrlTable | None = None
    bucket: Bucket | None = None
    folders: tuple[Folder, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what `masksim data list --json` shows."""
        names = (
            "name",
            "title",
            "home",
            "licence",
            "licence_url",
            "access",
            "size",
            "notes",
            "manual",
        )
        listed = [*self.files, *([self.table.file] if self.table and self.table.file else [])]
        urls = [url for file in listed for url in file.urls]
        return {
            **{name: getattr(self, name) for name in (*names, "notes", "manual")},
            "roles": list(self.roles),
            "files": [file.name for file in self.files],
            "urls": urls + ([self.bucket.url] if self.bucket else []),
            "folders": [
                {"path": f.path, "generator": f.generator, "split": f.split} for f in self.folders
            ],
        }


def load_sources(path: str | os.PathLike[str] | None = None) -> dict[str, Source]:
    """Read the table of sources.

    Parameters
    ----------
    path
        A TOML table of your own; its sets are added to the built-in ones and replace those of the
        same name. None: the built-in table alone.

    Returns
    -------
    dict of str to Source
        In the order of the table.

    Raises
    ------
    DataError
        ``not_found``; ``sources_invalid``: not TOML, an unknown key, a missing one.
    """
    sources: dict[str, Source] = {}
    for table in [TABLE] if path is None else [TABLE, Path(path)]:
        if not table.is_file():
            raise DataError(f"no table of sets at {table}", code="not_found")
        try:
            for name, entry in read_toml(table).items():
                if not isinstance(entry, dict):
                    raise UsageError(f"{name} is no table")
                sources[name] = from_plain(Source, {"name": name, **entry}, f"[{name}]")
        except UsageError as error:
            raise DataError(f"{table.name}: {error}", code="sources_invalid") from error
    return sources


def pick_sources(sources: Mapping[str, Source], names: Iterable[str]) -> list[Source]:
    """Return the named sets, ``"all"`` for every one.

    Raises
    ------
    DataError
        ``source_unknown``, with the names there are.
    """
    picked: dict[str, Source] = {}
    for name in names:
        if name != "all" and name not in sources:
            raise DataError(
                f"no set named {name!r}; there are: {', '.join(sources)}", code="source_unknown"
            )
        picked.update(sources if name == "all" else {name: sources[name]})
    return list(picked.values())


def apply_overrides(source: Source, overrides: Sequence[str]) -> Source:
    """Point a set at other addresses: each override is ``URL`` or ``FILE=URL``.

    A plain URL is for sets with one file, table or bucket; ``FILE=URL`` names one file of several
    (``val2017.zip=https://…``). The address given is the only one tried.

    Raises
    ------
    UsageError
        The set has no such file, or a plain URL where it has several.
    """
    for override in overrides:
        head, separator, tail = override.partition("=")
        named = bool(separator) and "://" not in head
        url = tail if named else override
        if "://" not in url:
            raise UsageError(f"--url must be URL or FILE=URL, got {override!r}")
        table, bucket = source.table, source.bucket
        names = [f.name for f in source.files]
        names += [table.file.name] if table and table.file else []
        names += ["bucket"] if bucket else []
        if not named and len(names) == 1:
            head = names[0]
        if head not in names:
            raise UsageError(
                f"{source.name} has {len(names)} files ({', '.join(names) or 'none'}): "
                f"write --url FILE=URL, got {override!r}"
            )
        files = tuple(replace(f, urls=(url,)) if f.name == head else f for f in source.files)
        if table and table.file and table.file.name == head:
            table = replace(table, file=replace(table.file, urls=(url,)))
        if bucket and head == "bucket":
            bucket = replace(bucket, url=url)
        source = replace(source, files=files, table=table, bucket=bucket)
    return source


def table_files(table: UrlTable, text: str) -> list[tuple[RemoteFile, str]]:
    """Return the files of a CSV of URLs with their folders under ``data/``.

    Raises
    ------
    DataError
        ``table_invalid``: none of the columns is there.
    """
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
    columns = [c for c in table.columns if c in (reader.fieldnames or [])]
    if not columns:
        raise DataError(
            f"the table has none of the columns {', '.join(table.columns)}", code="table_invalid"
        )
    files: list[tuple[RemoteFile, str]] = []
    taken: set[tuple[str, str]] = set()
    for number, row in enumerate(reader):
        for column in columns:
            url = (row.get(column) or "").strip()
            if not url:
                continue
            if "://" not in url:
                url = table.scheme + url
            moved = [new + url[len(old) :] for old, new in table.rewrite.items()
                     if url.startswith(old)]  # fmt: skip
            folder = table.columns[column]
            name = PurePosixPath(unquote(urlsplit(url).path)).name or f"{number:04d}"
            if (folder, name.lower()) in taken:
                name = f"{number:04d}-{name}"
            taken.add((folder, name.lower()))
            files.append((RemoteFile(name, (*reversed(moved), url)), folder))
    return files

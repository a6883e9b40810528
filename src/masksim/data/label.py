"""A manifest of one's own files by what each file says of its origin, with the evidence.

A label is what a file claims: the generator that it names, or ``"real"`` where it names a camera
and no generator. Claims can be forged. Most files claim nothing: they get no row, and are counted
by the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from masksim.config import Progress
from masksim.data.manifest import REAL, Row
from masksim.data.scan import assign_splits, some_images
from masksim.errors import ImageError
from masksim.image import Limits, open_undecoded
from masksim.provenance.metadata import Metadata, read_metadata
from masksim.provenance.origin import Origin, origin_of

__all__ = ["Label", "Labelled", "label_folder", "label_of"]

# Beginnings and parts of checkpoints' names, the first that matches.
_FAMILIES: tuple[tuple[str, str], ...] = (
    ("flux2", r"flux[-_. ]?2|klein"),
    ("flux1-edit", r"kontext|flux.*(?:fill|redux)"),
    ("flux1", r"flux|schnell|\bf1d\b"),
    ("qwen-edit", r"qwen.*edit"),
    ("qwen-image", r"qwen"),
    ("z-image", r"z[-_ ]?image"),
    ("hidream", r"hidream"),
    ("hunyuan", r"hunyuan"),
    ("sd3", r"sd_?3|stable.?diffusion.?3"),
    ("stable-cascade", r"cascade"),
    ("playground", r"playground"),
    ("pixart", r"pixart"),
    ("kolors", r"kolors"),
    ("sd1", r"dreamshaper_?[5678](?!.*xl)"),
    ("sdxl", r"xl|pony|illustrious|noob|animagine|juggernaut|realvis"),
    ("sd2", r"v2[-_.]1|768-?v|512-base|sd_?2"),
    (
        "sd1",
        r"v1[-_.][45]|sd[-_ ]?1[._]?[45]|sd15|pruned.?emaonly|dreamshaper|realistic.?vision|"
        r"deliberate|revanimated|absolutereality|epicrealism|chillout|cyberrealistic|ghostmix",
    ),
)
# What products make, where that is one thing.
_PRODUCTS: Mapping[str, str] = {
    "GPT Image": "gpt-image",
    "DALL\u00b7E": "dalle3",  # the images of DALL·E 2 name OpenAI Labs instead
    "Stable Diffusion XL": "sdxl",
    "Adobe Firefly": "firefly",
    "Leonardo.Ai": "leonardo",
    "Google Imagen": "imagen",
    "Google Gemini": "gemini-image",
    "Nano Banana": "gemini-image",
}


@dataclass(frozen=True, slots=True)
class Label:
    """What a file says that it is.

    Attributes
    ----------
    generator
        ``"real"`` for a camera's picture; empty where the file does not say enough.
    variant
        The model or product as the file names it, or the camera.
    evidence
        What the label rests on; without a label, the reason.
    """

    generator: str
    variant: str = ""
    evidence: str = ""


@dataclass(frozen=True)
class Labelled:
    """What became of a folder.

    Attributes
    ----------
    rows
        One a file that says enough.
    without
        How many files got no row, by the reason.
    """

    rows: tuple[Row, ...]
    without: Mapping[str, int]


def label_of(found: Metadata, said: Origin | None = None) -> Label:
    """Label a file by what it says of itself.

    Parameters
    ----------
    found
        From `masksim.provenance.metadata.read_metadata`.
    said
        `masksim.provenance.origin.origin_of` of it, if that is there already.

    Returns
    -------
    Label
    """
    said = said or origin_of(found)
    if said.says == "generator":
        return _generated(found, said)
    if said.says == "device":
        return _photographed(found, said)
    return Label("", evidence={
        "part": "a generator made a part of it only",
        "both": "it names a generator and a device",
    }.get(said.says, "it says nothing of who or what made it"))  # fmt: skip


def _generated(found: Metadata, said: Origin) -> Label:
    telling = [s.text for s in found.statements if s.points_to == "generator"]
    evidence = f"{said.checked}: {telling[0]}"
    models = [record.model for record in found.records if record.model]
    # A picture that was loaded may have been a photo, and for the most part still be one.
    edit = "-edit" if any(record.begun for record in found.records) else ""
    for model in models:
        if family := _family(model):
            return Label(family if family.endswith("-edit") else family + edit, model, evidence)
    # A part or parent that names a model says more than the program that wrote the file.
    names = [said.generator, *(i.maker for i in found.c2pa.ingredients)]
    for name in filter(None, names):
        if name in _PRODUCTS:
            return Label(_PRODUCTS[name], name, evidence)
    if any("Labs" in record.words for record in found.records if record.name == "OpenAI"):
        return Label("dalle2", "OpenAI Labs", evidence)
    if said.generator is None:
        return Label("", evidence="a generator made it, but it does not say which one")
    return Label(_slug(said.generator) + edit, models[0] if models else said.generator, evidence)


def _photographed(found: Metadata, said: Origin) -> Label:
    if any(statement.points_to == "scanner" for statement in found.statements):
        return Label("", evidence="a scanner made it")
    if said.device is None or found.taken is None:
        return Label("", evidence="it names a camera, but not its model and when it was taken")
    program = f", program {said.software}" if said.software else ""
    return Label(REAL, said.device, f"EXIF: {said.device}, taken {found.taken}{program}")


def _family(model: str) -> str | None:
    return next((name for name, p in _FAMILIES if re.search(p, model, re.IGNORECASE)), None)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def label_folder(
    folder: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    shares: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Labelled:
    """Label the images below a folder by their own claims.

    Parameters
    ----------
    folder
        Looked through with all folders below it.
    root
        The manifest's folder: paths are relative to it where they lie below it, else absolute.
    shares
        Split to share of the images, as `scan.assign_splits`; whole sources go to a split. A
        source is a folder directly below `folder`; for photographs without one, the camera.
    progress
        Called with (``"labelling"``, done, in all).

    Returns
    -------
    Labelled

    Raises
    ------
    DataError
        ``not_found``, or ``no_images``.
    UsageError
        The shares do not add up to 1.
    """
    folder = Path(folder).absolute()
    files = some_images(folder)
    base = Path(root).absolute() if root is not None else folder
    rows: list[Row] = []
    without: Counter[str] = Counter()
    for done, path in enumerate(files, start=1):
        row = _row(path, folder, base, without)
        if row is not None:
            rows.append(row)
        if progress is not None:
            progress("labelling", done, len(files))
    return Labelled(tuple(_split(rows, shares)), dict(without.most_common()))


def _row(path: Path, folder: Path, base: Path, without: Counter[str]) -> Row | None:
    try:
        if path.stat().st_size > Limits().max_bytes:
            raise ImageError("it is too large", code="too_many_bytes")
        data = path.read_bytes()
        with open_undecoded(data) as image:
            (width, height), format_ = image.size, str(image.format)
    except (ImageError, OSError) as error:
        code = error.code if isinstance(error, ImageError) else "unreadable"
        without[f"it cannot be read: {code}"] += 1
        return None
    found = read_metadata(data)
    label = label_of(found)
    if not label.generator:
        without[label.evidence] += 1
        return None
    inside = path.relative_to(folder).parts
    source = folder.name if len(inside) == 1 else f"{folder.name}/{inside[0]}"
    if label.generator == REAL and len(inside) == 1:
        source = f"{folder.name}/{label.variant}"
    try:
        name = path.relative_to(base)
    except ValueError:
        name = path
    return Row(
        path=name.as_posix(),
        generator=label.generator,
        source=source,
        split="train",
        sha256=hashlib.sha256(data).hexdigest(),
        width=width,
        height=height,
        format=format_,
        processing="none",
        extra={"variant": label.variant, "evidence": label.evidence},
    )


def _split(rows: Iterable[Row], shares: Mapping[str, float] | None) -> Iterable[Row]:
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_class[row.generator].append(row)
    for of_class in by_class.values():
        splits = assign_splits(Counter(row.source for row in of_class), shares)
        for row in of_class:
            yield replace(row, split=splits[row.source])

"""What a file says of its own origin: camera, software, generator, signed provenance.

This is evidence of its own, never mixed into a score: anyone can remove or forge it. Only a C2PA
manifest that was checked, by a trusted signer, cannot be changed unseen; it can be removed.

Nothing here raises for any bytes. Values are texts for people, cut to `LONGEST` letters and with
every control character escaped; they may hold markup, so whoever shows them must quote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias, cast

from PIL import Image, IptcImagePlugin

from masksim.config import from_plain
from masksim.containers import webp_chunks
from masksim.errors import UsageError
from masksim.image import open_undecoded, quiet_pillow
from masksim.provenance import generators
from masksim.provenance.credentials import UNBROKEN, C2pa, Ingredient, read_c2pa
from masksim.provenance.exif import Exif, read_exif
from masksim.provenance.generators import SOURCE_TYPES, Named
from masksim.provenance.pngtext import read_png
from masksim.provenance.untrusted_text import (
    LONGEST,
    LOOKED_AT,
    MOST,
    clean,
    decoded,
    excerpt,
    noted,
)
from masksim.provenance.xmp import read_xmp

__all__ = [
    "LONGEST",
    "MOST",
    "SOURCE_TYPES",
    "C2pa",
    "Ingredient",
    "Metadata",
    "Record",
    "Statement",
    "device_of",
    "maker_of",
    "read_metadata",
    "statements_of",
]

_BUDGET = 1 << 20  # letters of all texts together that are searched for a generator's records

Points: TypeAlias = Literal["generator", "camera", "scanner", "other"]


@dataclass(frozen=True, slots=True)
class Record:
    """A place of the file where a generator is named, or has left its record.

    Attributes
    ----------
    where
        ``"EXIF Software"``, ``"PNG text 'parameters'"``.
    name
        Of the generator; None where the form is a generator's, but not whose.
    words
        What matched.
    text
        What stands there, around these words.
    model
        The model that the record names.
    begun
        Whether it loads a picture, which the generator may only have changed.
    """

    where: str
    name: str | None
    words: str
    text: str
    model: str | None = None
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that the file says of its origin.

    Attributes
    ----------
    text
        A sentence for people.
    points_to
        ``"generator"``, ``"camera"``, ``"scanner"`` or ``"other"``.
    """

    text: str
    points_to: Points


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the file says of its own origin.

    Attributes
    ----------
    make, model, lens, software
        EXIF: of the camera or scanner, and the program.
    taken, changed
        EXIF: when the picture was taken (or digitised) as the camera's clock had it, and when a
        program last saved the file.
    captured_by
        EXIF: ``"camera"`` or ``"scanner"``, where its fields tell.
    user_comment, description, artist
        EXIF: free text; generators write prompts there.
    position
        Whether there are coordinates; they are not shown.
    creator_tool, credit
        XMP, or IPTC: the program, and who is to be credited.
    ai_system, ai_system_version, ai_prompt, ai_prompt_writer
        XMP: the fields of IPTC 2025.1 for generated images.
    ai_label
        China's label for generated content (TC260), in words.
    source_types
        IPTC's terms for how the image came to be, from XMP; see `SOURCE_TYPES`.
    text
        (key, value) of the text chunks of a PNG, and the comments of other formats; the telling
        ones first.
    records
        Where generators are named.
    c2pa
        The signed manifest.
    problems
        What was too large or too damaged to be read.
    statements
        What all this says in sentences, the weightiest first.
    """

    make: str | None = None
    model: str | None = None
    lens: str | None = None
    software: str | None = None
    taken: str | None = None
    changed: str | None = None
    captured_by: str | None = None
    user_comment: str | None = None
    description: str | None = None
    artist: str | None = None
    position: bool = False
    creator_tool: str | None = None
    credit: str | None = None
    ai_system: str | None = None
    ai_system_version: str | None = None
    ai_prompt: str | None = None
    ai_prompt_writer: str | None = None
    ai_label: str | None = None
    source_types: tuple[str, ...] = ()
    text: tuple[tuple[str, str], ...] = ()
    records: tuple[Record, ...] = ()
    c2pa: C2pa = field(default_factory=C2pa)
    problems: tuple[str, ...] = ()
    statements: tuple[Statement, ...] = ()


def read_metadata(data: bytes) -> Metadata:
    """Read what an image file says of its origin.

    Parameters
    ----------
    data
        The bytes of the file; of a format that `masksim.load_image` reads.

    Returns
    -------
    Metadata
        With `problems` where parts could not be read; never an error, for any bytes.
    """
    raw = _Raw()
    with noted(raw.problems, "file"), quiet_pillow():  # it warns of damaged tags
        _read_file(data, raw)
    xmp = read_xmp(raw.xmp, raw.problems) if raw.xmp else {}
    first = {name: values[0] for name, values in xmp.items()}
    exif = raw.exif.texts
    records, texts, label = _search(raw, xmp)
    values = {
        "make": exif.get("Make"),
        "model": exif.get("Model"),
        "lens": exif.get("LensModel"),
        "software": exif.get("Software") or exif.get("ProcessingSoftware"),
        "taken": exif.get("DateTimeOriginal") or exif.get("DateTimeDigitized"),
        "changed": exif.get("DateTime"),
        "user_comment": exif.get("UserComment"),
        "description": exif.get("ImageDescription"),
        "artist": exif.get("Artist"),
        "creator_tool": first.get("CreatorTool") or raw.iptc.get("program"),
        "credit": first.get("Credit") or raw.iptc.get("credit"),
        "ai_system": first.get("AISystemUsed"),
        "ai_system_version": first.get("AISystemVersionUsed"),
        "ai_prompt": first.get("AIPromptInformation"),
        "ai_prompt_writer": first.get("AIPromptWriterName"),
        "ai_label": label,
    }
    shown: dict[str, Any] = {k: clean(v) or None if v else None for k, v in values.items()}
    terms = map(generators.term_of, xmp.get("DigitalSourceType", ()))
    if len(texts) > MOST:
        raw.problems.append(f"{len(texts) - MOST} of {len(texts)} texts are left out")
    return _with_statements(
        Metadata(
            **shown,
            captured_by=raw.exif.captured_by,
            position=raw.exif.position,
            source_types=tuple(dict.fromkeys(map(clean, terms))),
            text=tuple((clean(key, 80), clean(value)) for key, value in texts[:MOST]),
            records=tuple(records[:MOST]),
            c2pa=read_c2pa(data, xmp.get("provenance", ())),
            problems=tuple(dict.fromkeys(raw.problems))[:MOST],
        )
    )


# ------------------------------------------------------------------------------- the file's parts


class _Raw:
    """What the file holds, as it stands there."""

    def __init__(self) -> None:
        self.exif = Exif()
        self.iptc: dict[str, str] = {}
        self.xmp: bytes | str | None = None
        self.texts: list[tuple[str, str]] = []
        self.problems: list[str] = []


def _read_file(data: bytes, raw: _Raw) -> None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        chunks = read_png(data, raw.problems)
        raw.texts, raw.xmp = chunks.texts, chunks.xmp
        _read_exif_bytes(chunks.exif, raw)
        if chunks.iptc:
            raw.iptc = _iim(chunks.iptc)
        return
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Its decoder takes memory for all pixels as soon as it is opened.
        names = {b"EXIF": "exif", b"XMP ": "xmp"}
        found = reversed([chunk for chunk in webp_chunks(data) if chunk[0] in names])
        info = {names[kind]: data[at + 8 : end] for kind, at, end in found}
        _read_exif_bytes(info.get("exif"), raw)
    else:
        with open_undecoded(data) as image:
            info = dict(image.info)
            if image.format == "HEIF":
                _read_exif_bytes(info.get("exif"), raw)
            else:
                with noted(raw.problems, "EXIF"):
                    raw.exif = read_exif(image.getexif())
            with noted(raw.problems, "IPTC"):
                _read_iptc(IptcImagePlugin.getiptcinfo(image) or {}, raw)
        comment = info.get("comment")
        if isinstance(comment, (bytes, str)) and comment:
            raw.texts.append(("comment", _whole(comment)))
    packet = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if isinstance(packet, (bytes, str)):
        raw.xmp = packet


def _read_exif_bytes(data: Any, raw: _Raw) -> None:
    with noted(raw.problems, "EXIF"):
        if data:
            tags = Image.Exif()
            tags.load(bytes(data))
            raw.exif = read_exif(tags)


_IPTC = {(2, 65): "program", (2, 110): "credit"}


def _read_iptc(found: Mapping[Any, Any], raw: _Raw) -> None:
    for key, name in _IPTC.items():
        value = found.get(key)
        value = value[0] if isinstance(value, list) else value
        if value and (text := _whole(value)):
            raw.iptc[name] = text


def _whole(value: Any) -> str:
    return decoded(value[:LOOKED_AT]) if isinstance(value, bytes) else str(value)


def _iim(profile: bytes) -> dict[str, str]:
    """Read the records of IPTC's older form out of a profile."""
    found: dict[str, str] = {}
    at = profile.find(b"\x1c\x02")
    while 0 <= at < len(profile) - 5 and profile[at] == 0x1C:
        size = int.from_bytes(profile[at + 3 : at + 5], "big")
        if name := _IPTC.get((profile[at + 1], profile[at + 2])):
            found.setdefault(name, _whole(profile[at + 5 : at + 5 + size]))
        at += 5 + size
    return found


# ---------------------------------------------------------------------------- where it is named

_PROGRAMS = ("Software", "ProcessingSoftware")
_CREDITS = ("Artist", "Copyright")
_FREE = (
    "Make", "Model", "ImageDescription", "UserComment", "MakerNote", "DocumentName", "HostComputer",
    "XPTitle", "XPComment", "XPSubject", "XPKeywords",
)  # fmt: skip


def _search(
    raw: _Raw, xmp: Mapping[str, Sequence[str]]
) -> tuple[list[Record], list[tuple[str, str]], str | None]:
    """Look for generators in all fields; put the telling texts first; read China's label."""
    records: list[Record] = []
    label: str | None = None

    def add(where: str, named: Named | None, text: str) -> None:
        if named is not None:
            shown = excerpt(text, named.start, named.end)
            model = generators.model_of(text)
            records.append(
                Record(
                    where,
                    named.name,
                    clean(named.words, 60),
                    shown,
                    clean(model, 120) if model else None,
                    generators.begins_from_image(text),
                )
            )

    exif, iptc = raw.exif.texts, raw.iptc
    places: list[tuple[str, str | None, Callable[[str], Named | None]]] = [
        *((f"EXIF {name}", exif.get(name), generators.by_program) for name in _PROGRAMS),
        *((f"EXIF {name}", exif.get(name), generators.by_credit) for name in _CREDITS),
        *((f"EXIF {name}", exif.get(name), partial(_in_free, name)) for name in _FREE),
        *(("XMP CreatorTool", t, generators.by_program) for t in xmp.get("CreatorTool", ())),
        *(("XMP Credit", t, generators.by_credit) for t in xmp.get("Credit", ())),
        *(("XMP description", t, generators.by_record) for t in xmp.get("description", ())),
        *(("XMP AI-generation-source", t, _in_own) for t in xmp.get("AI-generation-source", ())),
        ("IPTC program", iptc.get("program"), generators.by_program),
        ("IPTC credit", iptc.get("credit"), generators.by_credit),
    ]
    for where, value, look in places:
        if value:
            add(where, look(value), value)
    for value in (*map(exif.get, _FREE), *xmp.get("AIGC", ())):
        label = label or (generators.of_label(value) if value else None)
    telling: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    left = _BUDGET
    for key, text in raw.texts:
        left -= min(len(text), LOOKED_AT)  # of each no more is looked at
        named = generators.by_text_key(key, text) if left > 0 else None
        labelled = generators.of_label(text) if key.upper() == "AIGC" and left > 0 else None
        label = label or labelled
        add("Comment" if key == "comment" else f"PNG text {clean(key, 80)!r}", named, text)
        (telling if named or labelled else rest).append((key, text))
    if left <= 0:
        raw.problems.append("texts: not all of them were searched, they are too long")
    return records, telling + rest, label


_RECORD = re.compile(r"\s*(?:[{]|\[\s*[{\"]|(?:prompt|workflow)\s*:)", re.IGNORECASE)


def _in_own(text: str) -> Named | None:
    """Read a field that generators' programs alone have."""
    return generators.by_program(text) or Named(None, text[:60], 0, len(text))


def _in_free(name: str, text: str) -> Named | None:
    if found := generators.by_record(text):
        return found
    # No camera has such a name: programs without a field of their own put their records there.
    if name in ("Make", "Model") and not _is_name(text[:1000]) and _RECORD.match(text):
        return Named(None, text.lstrip()[:20], 0, 20)
    return None


# --------------------------------------------------------------------------------- statements


def statements_of(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Make the statements of plain values anew; see `plain_metadata`.

    Returns
    -------
    list of dict
        ``"text"`` and ``"points_to"`` of each, as in `Metadata.statements`.
    """
    return [asdict(statement) for statement in plain_metadata(values).statements]


def plain_metadata(values: Mapping[str, Any]) -> Metadata:
    """Make a `Metadata` of plain values, with its statements anew.

    Parameters
    ----------
    values
        A `Metadata` by `dataclasses.asdict`, perhaps through JSON; its own ``"statements"`` are
        not looked at.

    Raises
    ------
    ValueError
        The values do not have that form.
    """
    try:
        found = from_plain(Metadata, {**values, "statements": ()}, "the metadata")
    except UsageError as error:
        raise ValueError(str(error)) from error
    return _with_statements(found)


def _with_statements(found: Metadata) -> Metadata:
    return replace(found, statements=tuple(_statements(found)))


def device_of(found: Metadata) -> str | None:
    """Name the camera or scanner; None without a make and a model."""
    make, model = found.make, found.model
    if not (make and model) or not all(map(_is_name, (make, model))):
        return None
    if any(record.where in ("EXIF Make", "EXIF Model") for record in found.records):
        return None
    # "Canon" and "Canon EOS 5D", "NIKON CORPORATION" and "NIKON D90"
    if model.split()[0].lower() == make.split()[0].lower():
        return model
    return f"{make} {model}"


def _is_name(value: str) -> bool:
    return len(value) <= 64 and not re.search(
        r"[{}\[\]<>]|^\s*(?:prompt|workflow)\s*:", value, re.I
    )


def maker_of(found: Metadata) -> str | None:
    """Name the generator that the file names, the best proof first; None without one."""
    manifest = found.c2pa
    if manifest.maker:
        return manifest.maker
    if found.ai_system:
        named = generators.by_program(found.ai_system)
        return named.name if named and named.name else found.ai_system
    if name := next((record.name for record in found.records if record.name), None):
        return name
    return next(
        (i.maker for i in manifest.ingredients if i.relationship == "parentOf" and i.maker), None
    )


def _statements(found: Metadata) -> Iterator[Statement]:
    """Say in sentences what bears on the origin, signed things first."""
    if found.c2pa.state != "absent":
        yield from _on_c2pa(found.c2pa)
    for term in found.source_types:
        words = SOURCE_TYPES.get(term, "of an unknown kind")
        yield Statement(f"XMP says: {words} (DigitalSourceType {term}).", _points(term))
    if found.ai_label:
        yield Statement(
            f"China's label for generated content (AIGC) says that it {found.ai_label}.",
            "generator",
        )
    yield from _on_ai_fields(found)
    for record in found.records:
        yield Statement(_on_record(record), "generator")
    yield from _on_device(found)
    yield from _on_rest(found)


def _on_ai_fields(found: Metadata) -> Iterator[Statement]:
    if system := found.ai_system:
        version = f" {found.ai_system_version}" if found.ai_system_version else ""
        yield Statement(f"XMP names the AI system that was used: {system}{version}.", "generator")
    elif found.ai_system_version:
        text = f"XMP names a version of an AI system: {found.ai_system_version}."
        yield Statement(text, "generator")
    if prompt := found.ai_prompt:
        yield Statement(f"XMP holds an AI prompt: {excerpt(prompt)}", "generator")
    if writer := found.ai_prompt_writer:
        yield Statement(f"XMP names who wrote the AI prompt: {writer}.", "generator")


def _on_record(record: Record) -> str:
    shown = record.text
    if record.where in _NAMING and record.name:
        return f"{record.where} names a generator, {record.name}: {shown}"
    of = f"a record of {record.name}" if record.name else "a generator's record"
    of += " that loads a picture" if record.begun else ""
    of += f", model {record.model}" if record.model and record.model not in shown else ""
    # The words that it rests on are shown, whether they stand in the text or in its key.
    words = "" if record.words in shown or record.words in record.where else f" ({record.words})"
    return f"{record.where} holds {of}{words}: {shown}"


_NAMING = {
    "EXIF Software", "EXIF ProcessingSoftware", "EXIF Artist", "EXIF Copyright", "XMP CreatorTool",
    "XMP Credit", "IPTC program", "IPTC credit", "XMP AI-generation-source", "PNG text 'Software'",
    "PNG text 'Source'",
}  # fmt: skip


def _on_device(found: Metadata) -> Iterator[Statement]:
    device = device_of(found)
    if device is None:
        make = found.make
        if (
            make
            and not found.model
            and _is_name(make)
            and not any(record.where == "EXIF Make" for record in found.records)
        ):
            yield Statement(f"EXIF names a maker without a model: {make}", "other")
        return
    if found.captured_by == "scanner" or generators.is_scanner(device, found.software):
        yield Statement(f"EXIF names a scanner: {device}", "scanner")
    else:
        kind = "camera" if found.captured_by == "camera" else "device"
        yield Statement(f"EXIF names a {kind}: {device}", "camera")


def _on_rest(found: Metadata) -> Iterator[Statement]:
    """Programs and times: they say where the file has been, and not how the picture was made."""
    named = {record.where for record in found.records}
    programs = [
        ("EXIF Software", found.software),
        ("XMP CreatorTool", found.creator_tool),
        *((f"PNG text {key!r}", value) for key, value in found.text if key.lower() == "software"),
    ]
    for where, program in programs:
        if (
            program
            and where not in named
            and where.replace("XMP CreatorTool", "IPTC program") not in named
        ):
            yield Statement(f"{where} names a program: {excerpt(program)}", "other")
    if taken := found.taken:
        yield Statement(f"EXIF says when it was taken or digitised: {taken}", "other")
    if (changed := found.changed) and changed != found.taken:
        yield Statement(f"EXIF says when the file was last changed: {changed}", "other")


_RELATIONS = {
    "parentOf": "The image that it was made from",
    "componentOf": "A part of it",
    "inputTo": "An image that was shown to the generator",
}


def _on_c2pa(c2pa: C2pa) -> Iterator[Statement]:
    by = f" by {c2pa.claim_generator}" if c2pa.claim_generator else ""
    signer = f" ({c2pa.signer})" if c2pa.signer else ""
    broken = [p for p in c2pa.problems if not p.startswith(("signingCredential.", "timeStamp."))]
    why = f" ({', '.join(broken[:3])})" if broken else ""
    signed = f", signed in the name of {c2pa.signer}," if c2pa.signer else ""
    if c2pa.state == "elsewhere":
        yield Statement(
            "XMP names a C2PA manifest that stands elsewhere, which was not asked: "
            f"{c2pa.location}",
            "other",
        )
        return
    state = {
        "not verified": f"A C2PA manifest{by}{signed} is there. It was not verified, for the "
        "package c2pa-python is not installed.",
        "trusted": f"A C2PA manifest{by} is unbroken, and its signer{signer} is trusted.",
        "valid": f"A C2PA manifest{by} is unbroken.",
        "untrusted": f"A C2PA manifest{by} is unbroken, but its signer{signer} is on no list of "
        "trust that was asked, so the name may be anybody's.",
        "tampered": f"A C2PA manifest{by} does not fit: the image or the manifest was changed "
        f"after signing{why}.",
        "invalid": f"A C2PA manifest{by} is there, but is not valid{why}.",
        "unreadable": f"A C2PA manifest{by} is there, but could not be checked.",
    }[c2pa.state]
    points = _aim(c2pa.source_types)
    said = [SOURCE_TYPES.get(term, term) for term in c2pa.source_types]
    if c2pa.maker and points == "generator":
        said.append(f"by {c2pa.maker}")
    elif c2pa.maker:
        said.append(f"it was made with a generator, {c2pa.maker}")
        points = "generator" if points == "other" else points
    claim = "; ".join(said)
    if c2pa.state in UNBROKEN:
        yield Statement(f"{state} It says: {claim}." if claim else state, points)
    elif c2pa.state == "not verified":
        yield Statement(f"{state} It claims, unchecked: {claim}." if claim else state, points)
    else:
        # What is broken proves nothing, and is a claim as good as any other entry.
        yield Statement(state, "other")
        if claim:
            yield Statement(f"That manifest claims: {claim}.", points)
    for ingredient in c2pa.ingredients:
        words = [SOURCE_TYPES.get(term, term) for term in ingredient.source_types]
        if ingredient.maker:
            words.append(f"by {ingredient.maker}")
        if not words:
            continue
        what = _RELATIONS.get(ingredient.relationship, "An image that went into it")
        # What a part or an input was says nothing of the whole.
        parent = ingredient.relationship == "parentOf" and c2pa.state in (*UNBROKEN, "not verified")
        aims = _aim(ingredient.source_types) if parent else "other"
        yield Statement(f"{what} has a manifest of its own: {'; '.join(words)}.", aims)
    if c2pa.others:
        yield Statement(
            f"Parts of the manifest that could not be checked by themselves, as an identity or an "
            f"ingredient: {', '.join(c2pa.others)}.",
            "other",
        )


def _aim(terms: Sequence[str]) -> Points:
    return next((p for p in map(_points, terms) if p != "other"), "other")


def _points(term: str) -> Points:
    return cast("Points", generators.points_of(term))

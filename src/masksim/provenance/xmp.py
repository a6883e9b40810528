"""XMP: the packet in which editors, agencies and generators describe an image.

The packet is cut out of whatever stands around it, and read in one pass, without a tree: the time
grows with the bytes, however they nest. What was read before a defect is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.parsers import expat

from masksim.provenance.plain import LOOKED_AT, MOST

__all__ = ["NAMES", "read_xmp"]

NAMES = frozenset(
    {
        *("DigitalSourceType", "CreatorTool", "Credit", "description", "provenance"),
        # IPTC 2025.1
        *("AISystemUsed", "AISystemVersionUsed", "AIPromptInformation", "AIPromptWriterName"),
        # China's label for generated content (TC260), and Canva's own
        *("AIGC", "AI-generation-source"),
    }
)
"""Properties that are read, whatever their prefix."""

LIMIT = 1 << 20
"""Bytes: more is no description of an image."""

_ELEMENTS, _DEPTH = 50_000, 100  # editors' histories have thousands, a dozen deep
_START = re.compile(r"<(?:[\w.-]+:)?xmpmeta\b|<(?:[\w.-]+:)?RDF\b")
_END = re.compile(r"</(?:[\w.-]+:)?xmpmeta\s*>")
_DECLARED = re.compile(rb"<\?xml[^>]{0,100}encoding\s*=\s*[\"']([\w-]{1,20})")


class _RefusedError(Exception):
    """What is well-formed, but no description of an image."""


def read_xmp(raw: bytes | str, problems: list[str]) -> dict[str, list[str]]:
    """Read the values of `NAMES`, as elements, attributes or resources.

    Parameters
    ----------
    raw
        What a file holds as XMP, with anything before and after the packet.
    problems
        What went wrong is added to it.

    Returns
    -------
    dict
        Up to `plain.MOST` different values of each name that is there, as they were found.
    """
    if len(raw) > LIMIT:
        problems.append(f"XMP: {len(raw)} bytes are too many to be read")
        return {}
    found: dict[str, list[str]] = {}
    try:
        _parse(_packet(raw if isinstance(raw, str) else _text(raw)), found)
    except _RefusedError as error:
        problems.append(f"XMP: {error}")
    except Exception as error:  # a hostile file makes any parser fail in any way
        problems.append(
            f"XMP: {'cannot be read to its end' if found else 'cannot be read'} "
            f"({type(error).__name__})"
        )
    return found


def _text(data: bytes) -> str:
    """Decode a packet: XMP is UTF-8, UTF-16 or UTF-32, and older programs write Latin-1."""
    plain = b"xmpmeta" in data or b"RDF" in data
    for mark, code in ((b"<\0", "utf-16-le"), (b"\0<", "utf-16-be")):
        if data.startswith(mark) and not plain:
            return data.decode(code, "replace")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) and not plain:
        return data.decode("utf-16", "replace")
    if (declared := _DECLARED.match(data.lstrip())) and declared[1].lower() != b"utf-8":
        try:
            return data.decode(declared[1].decode("ascii"), "replace")
        except LookupError:
            pass
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Damaged, or what stands before the packet is no text: its letters are told one by one.
        return data.decode("utf-8" if plain else "latin-1", "replace")


def _packet(text: str) -> str:
    """Cut out what stands from ``<x:xmpmeta`` to its end, as other readers do."""
    start = _START.search(text)
    if start is None:
        text = text.strip("\ufeff\0 \t\r\n")
        # Whoever declares a code has been decoded by it.
        return re.sub(r"^<\?xml[^>]*\?>", "", text)
    last = max((end.end() for end in _END.finditer(text, start.end())), default=None)
    return text[start.start() : last].rstrip("\0 \t\r\n")


def _local(tag: str) -> str:
    return tag.rpartition(":")[2]


def _parse(text: str, found: dict[str, list[str]]) -> None:
    # An open element: its name, those of `NAMES` that it is or stands in, and its text up to its
    # first child (None after that, and where nobody wants it).
    stack: list[tuple[str, tuple[str, ...]]] = []
    texts: list[list[str] | None] = []
    seen = 0

    def add(names: Iterable[str], value: str) -> None:
        if value := value.strip("\0 \t\r\n")[:LOOKED_AT]:
            for name in names:
                values = found.setdefault(name, [])
                if value not in values and len(values) < MOST:
                    values.append(value)

    def take_text() -> None:
        if texts and (text := texts[-1]) is not None:
            add(stack[-1][1], "".join(text))
            texts[-1] = None

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal seen
        seen += 1
        if seen > _ELEMENTS:
            raise _RefusedError(f"over {_ELEMENTS} elements are too many to be read")
        if len(stack) >= _DEPTH:
            raise _RefusedError(f"elements over {_DEPTH} deep are not read")
        take_text()
        name = _local(tag)
        around = stack[-1][1] if stack else ()
        if name in NAMES and name not in around:
            around = (*around, name)
        stack.append((name, around))
        texts.append([] if around else None)  # of rdf:Alt, rdf:Bag, rdf:Seq as well
        for key, value in attributes.items():
            if key.startswith("xmlns"):
                continue
            key = _local(key)
            if key in NAMES:
                add((key,), value)
            elif key == "resource" and name in NAMES:
                add((name,), value)

    def end(_: str) -> None:
        take_text()
        stack.pop()
        texts.pop()

    def letters(text: str) -> None:
        if texts and (kept := texts[-1]) is not None:
            kept.append(text)

    def doctype(*_: Any) -> None:
        # Of no use in XMP, but to make a small file large.
        raise _RefusedError("it has a doctype, which may define entities, and is not read")

    # Without namespaces: a prefix that nobody has declared would end the reading.
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = doctype
    parser.EntityDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = letters
    # Of a text the parser takes UTF-8, whatever its declaration says.
    parser.Parse(text, True)

"""XMP: the packet in which editors, agencies and generators describe an image.

The packet is cut out of whatever stands around it, and read in one pass, without a tree: the time
grows with the bytes, however they nest. What was read before a defect is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.parsers import expat

from masksim.provenance.untrusted_text import LOOKED_AT, MOST

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
    """The packet may be well-formed, but is no description of an image."""


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
        # Damaged, or something binary stands before the packet: only the wrong bytes are replaced.
        return data.decode("utf-8" if plain else "latin-1", "replace")


def _packet(text: str) -> str:
    """Cut out what stands from ``<x:xmpmeta`` to its end, as other readers do."""
    start = _START.search(text)
    if start is None:
        text = text.strip("\ufeff\0 \t\r\n")
        # It has been decoded by the encoding that it declares.
        return re.sub(r"^<\?xml[^>]*\?>", "", text)
    last = max((end.end() for end in _END.finditer(text, start.end())), default=None)
    return text[start.start() : last].rstrip("\0 \t\r\n")


def _local(tag: str) -> str:
    return tag.rpartition(":")[2]


class _Reader:
    """Follows the elements of a packet, and collects the values of `NAMES`."""

    def __init__(self, found: dict[str, list[str]]) -> None:
        self.found = found
        # Of each open element those of `NAMES` that it is or stands in, and its text up to its
        # first child (None after that, and where nobody wants it).
        self.names: list[tuple[str, ...]] = []
        self.texts: list[list[str] | None] = []
        self.seen = 0

    def _add(self, names: Iterable[str], value: str) -> None:
        if value := value.strip("\0 \t\r\n")[:LOOKED_AT]:
            for name in names:
                values = self.found.setdefault(name, [])
                if value not in values and len(values) < MOST:
                    values.append(value)

    def _take_text(self) -> None:
        if self.texts and (text := self.texts[-1]) is not None:
            self._add(self.names[-1], "".join(text))
            self.texts[-1] = None

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.seen += 1
        if self.seen > _ELEMENTS:
            raise _RefusedError(f"over {_ELEMENTS} elements are too many to be read")
        if len(self.names) >= _DEPTH:
            raise _RefusedError(f"elements over {_DEPTH} deep are not read")
        self._take_text()
        name = _local(tag)
        around = self.names[-1] if self.names else ()
        if name in NAMES and name not in around:
            around = (*around, name)
        self.names.append(around)
        self.texts.append([] if around else None)  # also inside rdf:Alt, rdf:Bag, rdf:Seq
        for key, value in attributes.items():
            local = _local(key)
            if local in NAMES and not key.startswith("xmlns"):
                self._add((local,), value)
            elif local == "resource" and name in NAMES:
                self._add((name,), value)

    def end(self, _: str) -> None:
        self._take_text()
        self.names.pop()
        self.texts.pop()

    def letters(self, text: str) -> None:
        if self.texts and (kept := self.texts[-1]) is not None:
            kept.append(text)

    def doctype(self, *_: Any) -> None:
        # XMP has no use for it; a hostile file makes itself large by it.
        raise _RefusedError("it has a doctype, which may define entities, and is not read")


def _parse(text: str, found: dict[str, list[str]]) -> None:
    reader = _Reader(found)
    # Without namespaces: a prefix that is not declared would end the reading.
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = reader.doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.letters
    # A str is read as UTF-8 whatever it declares.
    parser.Parse(text, True)

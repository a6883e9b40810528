"""C2PA manifests read by their structure: JUMBF boxes (ISO 19566-5) and CBOR (RFC 8949).

What a manifest claims, without the library that checks it. Nothing here verifies anything: hashes
and signatures are not looked at, but for the name in the signer's certificate.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from masksim.containers import jpeg_segments

__all__ = ["DamagedError", "find_store", "read_cbor", "read_store"]

LIMIT = 1 << 23
"""Bytes of a store that are looked at; thumbnails may make it large."""

_BOX_LIMIT = 1 << 20  # bytes of one box of CBOR or JSON
_ITEMS, _DEPTH = 50_000, 32  # of one box of CBOR
_BOXES = 5_000  # of one store

# A JUMBF description box of C2PA's type: how the bytes of each manifest store begin.
_C2PA_BOX = b"jumd" + b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"

Store: TypeAlias = dict[str, Any]


class DamagedError(Exception):
    """The bytes are not what they should be."""


# ------------------------------------------------------------------------------------- CBOR


class _Cbor:
    """Reads one item; tags are left out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.left = _ITEMS

    def _take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise DamagedError("CBOR ends too early")
        self.at += n
        return self.data[self.at - n : self.at]

    def _head(self) -> tuple[int, int, int]:
        first = self._take(1)[0]
        major, info = first >> 5, first & 31
        if info < 24 or info == 31:
            return major, info, info
        if info > 27:
            raise DamagedError("CBOR has a reserved length")
        return major, info, int.from_bytes(self._take(1 << (info - 24)), "big")

    def item(self, depth: int = 0) -> Any:
        self.left -= 1
        if depth > _DEPTH or self.left < 0:
            raise DamagedError("CBOR is too deep or has too many items")
        major, info, value = self._head()
        open_end = info == 31
        if open_end and major in (0, 1, 6):
            raise DamagedError("CBOR has a number without a length")
        if major == 0:
            return value
        if major == 1:
            return -1 - value
        if major in (2, 3):
            data = b"".join(self._chunks(major)) if open_end else self._take(value)
            return data if major == 2 else data.decode("utf-8", "replace")
        if major == 4:
            return list(self._items(None if open_end else value, depth))
        if major == 5:
            return dict(self._pairs(None if open_end else value, depth))
        if major == 6:
            return self.item(depth + 1)
        return self._simple(info, value)

    def _chunks(self, major: int) -> Iterator[bytes]:
        while not self._ends():
            self.left -= 1
            kind, info, length = self._head()
            if kind != major or info == 31 or self.left < 0:
                raise DamagedError("CBOR has a string of unlike parts")
            yield self._take(length)

    def _ends(self) -> bool:
        if self.data[self.at : self.at + 1] != b"\xff":
            return False
        self.at += 1
        return True

    def _items(self, count: int | None, depth: int) -> Iterator[Any]:
        while not self._ends() if count is None else count > 0:
            yield self.item(depth + 1)
            count = None if count is None else count - 1

    def _pairs(self, count: int | None, depth: int) -> Iterator[tuple[Any, Any]]:
        while not self._ends() if count is None else count > 0:
            key = self.item(depth + 1)
            # Keys of other types name nothing that is looked for, and may not be hashable.
            key = key if isinstance(key, (str, bytes, int, float)) else repr(key)
            yield key, self.item(depth + 1)
            count = None if count is None else count - 1

    @staticmethod
    def _simple(info: int, value: int) -> Any:
        if info in (25, 26, 27):
            width = 1 << (info - 24)
            return struct.unpack(f">{'_ e f   d'[width]}", value.to_bytes(width, "big"))[0]
        if info == 31:
            raise DamagedError("CBOR has an end without a beginning")
        return {20: False, 21: True}.get(value)


def read_cbor(data: bytes) -> Any:
    """Read one item of CBOR.

    Parameters
    ----------
    data
        Bytes; what stands behind the item is not looked at.

    Returns
    -------
    object
        Numbers, bytes, texts, lists, dicts, bool, None; of a tagged item what is tagged.

    Raises
    ------
    DamagedError
        The bytes are no CBOR, or nest too deep, or hold too many items.
    """
    return _Cbor(data).item()


# ------------------------------------------------------------------------------------- boxes


class _Boxes:
    """Walks through boxes, and counts them."""

    def __init__(self) -> None:
        self.left = _BOXES

    def of(self, data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
        """Type and content of each box; a cut one gives what is there."""
        at = 0
        while at + 8 <= len(data):
            self.left -= 1
            if self.left < 0:
                raise DamagedError("there are too many boxes")
            size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
            head = 8
            if size == 1:
                size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
            elif size == 0:
                size = len(data) - at
            if size < head:
                raise DamagedError("a box is smaller than its head")
            yield kind, data[at + head : at + size]
            at += size

    def labelled(self, data: memoryview) -> tuple[str, list[tuple[bytes, memoryview]]]:
        """Label and content boxes of a superbox."""
        boxes = self.of(data)
        kind, described = next(boxes, (b"", memoryview(b"")))
        if kind != b"jumd" or len(described) < 17:
            raise DamagedError("a superbox does not describe itself")
        label = b""
        if described[16] & 2:
            label = bytes(described[17:1041]).partition(b"\0")[0]
        return label.decode("utf-8", "replace"), list(boxes)


def _content(boxes: list[tuple[bytes, memoryview]]) -> Any:
    """Read the first box of CBOR or JSON; None without one."""
    for kind, data in boxes:
        if kind not in (b"cbor", b"json"):
            continue
        if len(data) > _BOX_LIMIT:
            raise DamagedError("a box is too large")
        if kind == b"cbor":
            return read_cbor(bytes(data))
        try:
            return json.loads(bytes(data))
        except (ValueError, RecursionError) as error:
            raise DamagedError("a box of JSON cannot be read") from error
    return None


def read_store(data: bytes) -> Store:
    """Read a manifest store.

    Parameters
    ----------
    data
        The bytes of its superbox.

    Returns
    -------
    dict
        In the form of the JSON of ``c2pa-python``'s reader, as far as it tells what is claimed:
        ``active_manifest`` and ``manifests``, each with ``claim_generator``,
        ``claim_generator_info``, ``assertions``, ``ingredients`` and ``signature_info``.

    Raises
    ------
    DamagedError
        It cannot be read.
    """
    walk = _Boxes()
    kind, content = next(walk.of(memoryview(data)), (b"", memoryview(b"")))
    if kind != b"jumb":
        raise DamagedError("the store is no superbox")
    _, boxes = walk.labelled(content)
    manifests: dict[str, Any] = {}
    active = None
    for kind, inner in boxes:
        if kind != b"jumb":
            continue
        label, parts = walk.labelled(inner)
        manifest = _manifest(walk, parts)
        if manifest is not None:
            manifests[label] = manifest
            active = label  # the last one is
    if active is None:
        raise DamagedError("the store holds no manifest that can be read")
    return {"active_manifest": active, "manifests": manifests}


def _manifest(walk: _Boxes, parts: list[tuple[bytes, memoryview]]) -> Store | None:
    claim: Any = None
    signature: Any = None
    held: dict[str, Any] = {}
    for kind, inner in parts:
        if kind != b"jumb":
            continue
        label, content = walk.labelled(inner)
        if label.startswith("c2pa.claim"):
            claim = _content(content)
        elif label == "c2pa.signature":
            signature = _content(content)
        elif label == "c2pa.assertions":
            held = _assertions(walk, content)
    if not isinstance(claim, Mapping):
        return None
    named = [_last(ref) for ref in _references(claim)]
    # Only those that the claim names are part of it.
    assertions = [(label, held[label]) for label in named if label in held]
    info = claim.get("claim_generator_info")
    return {
        "claim_generator": claim.get("claim_generator"),
        "claim_generator_info": [info] if isinstance(info, Mapping) else info or [],
        "assertions": [
            {"label": label, "data": data}
            for label, data in assertions
            if not label.startswith(("c2pa.ingredient", "c2pa.hash.", "c2pa.thumbnail"))
        ],
        "ingredients": [
            _ingredient(data)
            for label, data in assertions
            if label.startswith("c2pa.ingredient") and isinstance(data, Mapping)
        ],
        "signature_info": _signer(signature),
    }


def _assertions(walk: _Boxes, boxes: list[tuple[bytes, memoryview]]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for kind, inner in boxes:
        if kind != b"jumb":
            continue
        label, content = walk.labelled(inner)
        if label.startswith(("c2pa.hash.", "c2pa.thumbnail")):
            continue
        try:
            held[label] = _content(content)
        except DamagedError:
            held[label] = None  # the others may be whole
    return held


def _references(claim: Mapping[Any, Any]) -> Iterator[str]:
    for key in ("assertions", "created_assertions", "gathered_assertions"):
        for reference in claim.get(key) or ():
            if isinstance(reference, Mapping):
                yield str(reference.get("url", ""))


def _last(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def _ingredient(data: Mapping[Any, Any]) -> Store:
    of = data.get("activeManifest") or data.get("c2pa_manifest")
    url = str(of.get("url", "")) if isinstance(of, Mapping) else ""
    return {
        "title": data.get("dc:title"),
        "relationship": data.get("relationship"),
        "active_manifest": _manifest_of(url) or None,
    }


def _manifest_of(url: str) -> str:
    """Take the manifest's label out of ``self#jumbf=/c2pa/LABEL/...``."""
    parts = [part for part in url.partition("jumbf=")[2].split("/") if part]
    return next((part for part in parts if part != "c2pa"), "")


# ----------------------------------------------------------------------- who is said to have signed


def _der(data: bytes, at: int = 0) -> tuple[int, int, int]:
    """Tag, first and last-but-one byte of a DER element's content."""
    if at + 2 > len(data):
        raise DamagedError("a certificate ends too early")
    tag, length = data[at], data[at + 1]
    at += 2
    if length & 0x80:
        n = length & 0x7F
        if not 0 < n <= 4:
            raise DamagedError("a certificate has an odd length")
        length = int.from_bytes(data[at : at + n], "big")
        at += n
    if at + length > len(data):
        raise DamagedError("a certificate ends too early")
    return tag, at, at + length


def _elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    while start < end:
        tag, first, start = _der(data, start)
        yield tag, first, start


def _subject(certificate: bytes) -> dict[str, str]:
    """Organisation and common name of a certificate's subject."""
    _, start, end = _der(certificate)
    _, start, end = next(_elements(certificate, start, end))
    parts = list(_elements(certificate, start, end))
    if parts and parts[0][0] == 0xA0:  # the version, which may be left out
        parts = parts[1:]
    names: dict[str, str] = {}
    _, start, end = parts[4]  # serial number, algorithm, issuer, validity, subject
    for _, first, last in _elements(certificate, start, end):
        for _, f, t in _elements(certificate, first, last):
            (_, a, b), (tag, c, d) = list(_elements(certificate, f, t))[:2]
            name = {b"\x55\x04\x0a": "issuer", b"\x55\x04\x03": "common_name"}.get(certificate[a:b])
            if name:
                code = "utf-16-be" if tag == 0x1E else "utf-8"
                names.setdefault(name, certificate[c:d].decode(code, "replace"))
    return names


def _signer(signature: Any) -> dict[str, str]:
    """Read the signer's name out of COSE_Sign1, whose headers hold the certificates (33)."""
    try:
        protected, header = signature[0], signature[1]
        headers = [read_cbor(protected) if isinstance(protected, bytes) else {}, header]
        for found in headers:
            for key in (33, "x5chain"):
                chain = found.get(key) if isinstance(found, Mapping) else None
                if isinstance(chain, list) and chain:
                    chain = chain[0]
                if isinstance(chain, bytes):
                    return _subject(chain)
    except Exception:  # nobody has checked the name anyway
        return {}
    return {}


# ------------------------------------------------------------------------------------- where it is


def find_store(data: bytes) -> bytes | None:
    """Cut the manifest store out of a file.

    Parameters
    ----------
    data
        The bytes of a file: JPEG, PNG, WebP, TIFF, GIF, HEIF, AVIF.

    Returns
    -------
    bytes or None
        From its superbox on, `LIMIT` bytes at most; None without one.
    """
    at = data.find(_C2PA_BOX)
    if at < 0:
        return None
    if data.startswith(b"\xff\xd8"):
        return _in_jpeg(data) or data[at - 12 : at - 12 + LIMIT]
    start = at - 12
    if start < 0 or data[start + 4 : start + 8] != b"jumb":
        start = at - 20  # its size in eight more bytes
    if start < 0:
        return None
    if data.startswith(b"GIF8"):
        return _in_gif(data, start)
    size = int.from_bytes(data[start : start + 4], "big")
    if size == 1:
        size = int.from_bytes(data[start + 8 : start + 16], "big")
    return data[start : start + min(size or LIMIT, LIMIT)]


def _in_jpeg(data: bytes) -> bytes | None:
    """Join the segments APP11 of the box that holds a store; each repeats the box's head."""
    parts: dict[bytes, dict[int, bytes]] = {}
    for marker, at, end in jpeg_segments(data):
        body = data[at + 4 : end]
        if marker == 0xEB and body[:2] == b"JP" and len(body) > 16:
            number = int.from_bytes(body[4:8], "big")
            parts.setdefault(body[2:4] + body[8:16], {}).setdefault(number, body)
    for pieces in parts.values():
        ordered = [pieces[number] for number in sorted(pieces)]
        whole = ordered[0][8:] + b"".join(
            body[24 if body[8:12] == b"\0\0\0\1" else 16 :] for body in ordered[1:]
        )
        if _C2PA_BOX in whole[:64]:
            return whole[:LIMIT]
    return None


def _in_gif(data: bytes, start: int) -> bytes | None:
    """Join the sub-blocks of the application extension in which a store stands."""
    head = data.rfind(b"\x21\xff\x0bC2PA_GIF", 0, start)
    if head < 0:
        return None
    at, whole = head + 14, bytearray()
    while at < len(data) and (size := data[at]) and len(whole) < LIMIT:
        whole += data[at + 1 : at + 1 + size]
        at += 1 + size
    return bytes(whole)

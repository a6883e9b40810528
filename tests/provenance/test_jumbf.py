"""`masksim.provenance.jumbf` against RFC 8949's own examples, and against `c2pa-python` where it is
there."""

from __future__ import annotations

import io
import math
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masksim.provenance import credentials
from masksim.provenance.jumbf import DamagedError, find_store, read_cbor, read_store

# Appendix A of RFC 8949.
EXAMPLES: list[tuple[str, Any]] = [
    ("00", 0), ("17", 23), ("1818", 24), ("1903e8", 1000), ("1bffffffffffffffff", 2**64 - 1),
    ("20", -1), ("3863", -100), ("3903e7", -1000), ("f90000", 0.0), ("f93c00", 1.0),
    ("fb3ff199999999999a", 1.1), ("f97bff", 65504.0), ("fa47c35000", 100000.0),
    ("f97c00", math.inf), ("f4", False), ("f5", True), ("f6", None), ("f7", None),
    ("c074323031332d30332d32315432303a30343a30305a", "2013-03-21T20:04:00Z"),
    ("c11a514b67b0", 1363896240), ("d74401020304", bytes.fromhex("01020304")),
    ("40", b""), ("4401020304", bytes.fromhex("01020304")), ("60", ""), ("6161", "a"),
    ("62225c", '"\\'), ("62c3bc", "\u00fc"), ("63e6b0b4", "\u6c34"), ("64f0908591", "\U00010151"),
    ("80", []), ("83010203", [1, 2, 3]), ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
    ("a0", {}), ("a201020304", {1: 2, 3: 4}), ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("826161a161626163", ["a", {"b": "c"}]),
    ("5f42010243030405ff", bytes.fromhex("0102030405")),
    ("7f657374726561646d696e67ff", "streaming"),
    ("9fff", []), ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
    ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
    ("826161bf61626163ff", ["a", {"b": "c"}]),
    ("bf6346756ef563416d7421ff", {"Fun": True, "Amt": -2}),
]  # fmt: skip


@pytest.mark.parametrize(("data", "value"), EXAMPLES)
def test_examples_of_the_standard(data: str, value: Any) -> None:
    assert read_cbor(bytes.fromhex(data)) == value


def test_not_a_number() -> None:
    assert math.isnan(read_cbor(bytes.fromhex("f97e00")))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x18", b"\x5a\xff\xff\xff\xff", b"\x9a\xff\xff\xff\xff", b"\xba\xff\xff\xff\xff",
        b"\x81" * 100_000, b"\xc0" * 100_000, b"\xff", b"\x1c", b"\x1f", b"\x7f\x41a\xff",
        b"\x9f" + b"\x00" * 100_000, b"\x5f" + b"\x40" * 100_000, b"\x61",
    ],
)  # fmt: skip
def test_hostile_cbor_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError):
        read_cbor(data)


def test_any_bytes_are_refused_or_read() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        data = rng.integers(0, 256, int(rng.integers(1, 40)), np.uint8).tobytes()
        with suppress(DamagedError):
            read_cbor(data)


# --------------------------------------------------------------------------------- a store


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def superbox(kind: bytes, label: str, *content: bytes) -> bytes:
    uuid = kind + bytes.fromhex("00110010800000AA00389B71")
    described = box(b"jumd", uuid + b"\x03" + label.encode() + b"\0")
    return box(b"jumb", described + b"".join(content))


def cbor(value: Any) -> bytes:
    """Write what is needed here."""

    def head(major: int, n: int) -> bytes:
        return bytes([major << 5 | 25]) + n.to_bytes(2, "big")

    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    pairs = value.items()
    return head(5, len(pairs)) + b"".join(cbor(k) + cbor(v) for k, v in pairs)


TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def manifest(
    label: str, program: str, actions: list[dict[str, Any]], *ingredients: tuple[str, str]
) -> bytes:
    held: dict[str, Any] = {"c2pa.actions.v2": {"actions": actions}}
    for k, (relationship, of) in enumerate(ingredients):
        held[f"c2pa.ingredient.v3__{k}"] = {
            "relationship": relationship, "activeManifest": {"url": f"self#jumbf=/c2pa/{of}"},
        }  # fmt: skip
    claim = {
        "claim_generator_info": {"name": program},
        "created_assertions": [{"url": f"self#jumbf=c2pa.assertions/{name}"} for name in held],
    }
    # One that the claim does not name is not said by it.
    held["c2pa.actions.v2__9"] = {"actions": [created("digitalCapture", "Nobody")]}
    return superbox(
        b"c2ma", label,
        superbox(b"c2as", "c2pa.assertions",
                 *(superbox(b"cbor", n, box(b"cbor", cbor(v))) for n, v in held.items())),
        superbox(b"c2cl", "c2pa.claim.v2", box(b"cbor", cbor(claim))),
    )  # fmt: skip


def store(*manifests: bytes) -> bytes:
    return superbox(b"c2pa", "c2pa", *manifests)


def picture(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format_)
    return buffer.getvalue()


def carried(format_: str, data: bytes) -> bytes:
    """Put a store into a file, as the specification says."""
    whole = picture(format_)
    if format_ == "JPEG":
        segments, size = b"", 60  # small, so that there are several
        for number, at in enumerate(range(8, len(data), size), start=1):
            body = b"JP\0\1" + struct.pack(">I", number) + data[:8] + data[at : at + size]
            segments += b"\xff\xeb" + struct.pack(">H", len(body) + 2) + body
        return whole[:2] + segments + whole[2:]
    if format_ == "PNG":
        import zlib

        chunk = b"caBX" + data
        chunk = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return whole[:33] + chunk + whole[33:]
    if format_ == "WEBP":
        chunk = b"C2PA" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        return whole[:4] + struct.pack("<I", len(whole) - 8 + len(chunk)) + whole[8:] + chunk
    if format_ == "AVIF":
        extended = bytes.fromhex("D8FEC3D61B0E483C92975828877EC481")
        return whole + box(b"uuid", extended + b"\0" * 4 + b"manifest\0" + b"\0" * 8 + data)
    if format_ == "TIFF":
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16)).save(buffer, "TIFF", tiffinfo={52545: data})
        return buffer.getvalue()
    blocks = b"".join(
        bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255)
    )
    return whole[:-1] + b"\x21\xff\x0bC2PA_GIF\1\0\0" + blocks + b"\0" + whole[-1:]


def created(term: str, agent: str, **more: Any) -> dict[str, Any]:
    return {"action": "c2pa.created", "digitalSourceType": TERM + term,
            "softwareAgent": {"name": agent}, **more}  # fmt: skip


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF"])
def test_claims_are_read_without_the_package(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    data = carried(format_, store(manifest("urn:a", "ChatGPT", [created(
        "trainedAlgorithmicMedia", "GPT-4o")])))  # fmt: skip
    found = credentials.read_c2pa(data, ())
    assert found.state == "not verified"
    assert found.claim_generator == "ChatGPT"
    assert found.actions == ("created by GPT-4o",)
    assert found.source_types == ("trainedAlgorithmicMedia",)
    assert found.maker == "GPT Image"


def read(*manifests: bytes) -> credentials.C2pa:
    return credentials._from_store(read_store(store(*manifests)), "not verified")


def test_a_part_s_claims_are_not_the_picture_s() -> None:
    part = manifest("urn:b", "ChatGPT", [created("trainedAlgorithmicMedia", "GPT-4o")])
    opened = {"action": "c2pa.opened"}, {"action": "c2pa.placed"}
    for relationship in ("componentOf", "inputTo", "parentOf"):
        found = read(part, manifest("urn:a", "Editor 1", list(opened), (relationship, "urn:b")))
        assert found.source_types == ()
        assert found.maker is None
        assert found.actions == ("opened", "placed")
        (one,) = found.ingredients
        assert one.relationship == relationship
        assert (one.source_types, one.maker) == (("trainedAlgorithmicMedia",), "GPT Image")


def test_the_parent_s_parent_is_asked() -> None:
    first = manifest("urn:a", "OpenAI-API", [created("trainedAlgorithmicMedia", "DALL\u00b7E")])
    second = manifest("urn:b", "Editor", [], ("parentOf", "urn:a"))
    third = manifest("urn:c", "Editor", [], ("parentOf", "urn:b"))
    (parent,) = read(first, second, third).ingredients
    assert parent.source_types == ("trainedAlgorithmicMedia",)
    round_about = manifest("urn:d", "Editor", [], ("parentOf", "urn:d"))
    assert read(round_about).ingredients[0].source_types == ()


@pytest.mark.parametrize(
    "action",
    [
        {"action": "c2pa.opened",
         "parameters": {"com.adobe.digitalSourceType": TERM + "trainedAlgorithmicMedia"}},
        {"action": "c2pa.edited",
         "metadata": {"digitalSourceType": TERM + "trainedAlgorithmicMedia"}},
        {"action": "c2pa.edited",
         "parameters": {"a": {"org.x:digitalSourceType": TERM + "trainedAlgorithmicMedia"}}},
    ],
)  # fmt: skip
def test_source_types_within_an_action(action: dict[str, Any]) -> None:
    assert read(manifest("urn:a", "editor 1", [action])).source_types == (
        "trainedAlgorithmicMedia",
    )


def test_damaged_stores_never_raise_anything_else() -> None:
    whole = store(manifest("urn:a", "ChatGPT", [created("trainedAlgorithmicMedia", "GPT-4o")]))
    rng = np.random.default_rng(2)
    for _ in range(400):
        broken = bytearray(whole)
        for at in rng.integers(0, len(broken), 3):
            broken[at] = rng.integers(256)
        found = credentials.read_c2pa(carried("PNG", bytes(broken)), ())
        assert isinstance(found, credentials.C2pa)
    for cut in range(0, len(whole), 7):
        assert isinstance(credentials.read_c2pa(carried("JPEG", whole)[:cut], ()), credentials.C2pa)


def test_too_many_boxes() -> None:
    many = box(b"jumb", superbox(b"c2pa", "x")[8:] + box(b"free", b"") * 10_000)
    with pytest.raises(DamagedError):
        read_store(many)


def test_files_without_a_store() -> None:
    for format_ in ("JPEG", "PNG", "WEBP", "GIF"):
        assert find_store(picture(format_)) is None
    assert find_store(b"") is None

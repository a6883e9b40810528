"""`masksim.provenance.metadata`: what a file says of its origin, from files written by other
libraries."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from masksim.provenance import credentials, jumbf, metadata
from masksim.provenance.metadata import LONGEST, MOST, C2pa, Metadata, read_metadata
from masksim.provenance.xmp import read_xmp

TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (16, 24, 3))
    return Image.fromarray(values.astype(np.uint8))


def saved(format_: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, format_, **options)
    return buffer.getvalue()


def exif(**values: Any) -> Image.Exif:
    tags = Image.Exif()
    for name, value in values.items():
        tag = ExifTags.Base[name]
        if name in ("DateTimeOriginal", "UserComment", "LensModel"):
            tags.get_ifd(ExifTags.IFD.Exif)[tag] = value
        else:
            tags[tag] = value
    return tags


def xmp(inside: str, attributes: str = "") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" {attributes}>{inside}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def texts(**values: str) -> PngInfo:
    chunks = PngInfo()
    for key, value in values.items():
        chunks.add_text(key, value)
    return chunks


def test_a_file_that_says_nothing() -> None:
    for format_ in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        assert read_metadata(saved(format_)) == Metadata(), format_


def test_a_camera() -> None:
    tags = exif(
        Make="Canon", Model="EOS 5D", Software="Firmware 1.0", LensModel="EF50mm",
        DateTimeOriginal="2020:01:02 03:04:05", DateTime="2021:01:01 00:00:00",
    )  # fmt: skip
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (1.0, 2.0, 3.0)
    # Pillow's TIFFs lack what is in the second directory.
    assert read_metadata(saved("TIFF", exif=tags)).model == "EOS 5D"
    for format_ in ("JPEG", "PNG", "WEBP"):
        found = read_metadata(saved(format_, exif=tags))
        assert (found.make, found.model, found.lens) == ("Canon", "EOS 5D", "EF50mm"), format_
        assert found.software == "Firmware 1.0"
        assert found.taken == "2020:01:02 03:04:05"
        assert found.position
        assert found.changed == "2021:01:01 00:00:00"
        assert [(s.points_to, s.text) for s in found.statements] == [
            ("camera", "EXIF names a camera: Canon EOS 5D"),
            ("other", "EXIF Software names a program: Firmware 1.0"),
            ("other", "EXIF says when it was taken or digitised: 2020:01:02 03:04:05"),
            ("other", "EXIF says when the file was last changed: 2021:01:01 00:00:00"),
        ]


def test_heif() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    if not pillow_heif.libheif_info()["HEIF"]:
        pytest.skip("no encoder")
    buffer = io.BytesIO()
    image = picture().resize((64, 64))
    tags = exif(Make="Apple", Model="iPhone").tobytes()
    pillow_heif.encode(image.mode, image.size, image.tobytes(), buffer, exif=tags)
    assert read_metadata(buffer.getvalue()).model == "iPhone"


@pytest.mark.parametrize(
    "block",
    [
        xmp(f"<Iptc4xmpExt:DigitalSourceType>{TERM}</Iptc4xmpExt:DigitalSourceType>"),
        xmp(f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{TERM}"/>'),
        xmp("", f'Iptc4xmpExt:DigitalSourceType="{TERM}"'),
        xmp(
            "<Iptc4xmpExt:DigitalSourceType><rdf:Bag><rdf:li>"
            f"{TERM}</rdf:li></rdf:Bag></Iptc4xmpExt:DigitalSourceType>"
        ),
    ],
)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_digital_source_type(block: bytes, format_: str) -> None:
    if format_ == "PNG":
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", block.decode())
        found = read_metadata(saved("PNG", pnginfo=chunks))
    else:
        found = read_metadata(saved(format_, xmp=block))
    assert found.source_types == ("trainedAlgorithmicMedia",)
    assert [s.points_to for s in found.statements] == ["generator"]
    assert not found.text


def test_credit_and_creator_tool() -> None:
    block = xmp("<photoshop:Credit>Made with Google AI</photoshop:Credit>", 'xmp:CreatorTool="x 1"')
    found = read_metadata(saved(xmp=block))
    assert (found.credit, found.creator_tool) == ("Made with Google AI", "x 1")
    assert [s.points_to for s in found.statements] == ["generator", "other"]


def test_a_camera_s_source_type_points_to_a_camera() -> None:
    found = read_metadata(
        saved(xmp=xmp("", f'Iptc4xmpExt:DigitalSourceType="{TERM[:-23]}digitalCapture"'))
    )
    assert [s.points_to for s in found.statements] == ["camera"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7"),
        ("prompt", '{"3": {"class_type": "KSampler"}}'),
        ("workflow", "{}"),
        ("Software", "NovelAI"),
        ("Description", "a fox --v 6.1 Job ID: 0a1b"),
    ],
)
def test_text_of_generators(key: str, value: str) -> None:
    found = read_metadata(saved("PNG", pnginfo=texts(**{key: value})))
    assert found.text == ((key, " ".join(value.split("\n"))),)
    assert [s.points_to for s in found.statements] == ["generator"]


def test_text_behind_the_pixels() -> None:
    data = saved("PNG")
    from conftest import png_chunk

    at = data.index(b"IEND") - 4
    late = data[:at] + png_chunk(b"tEXt", b"parameters\0late") + data[at:]
    assert read_metadata(late).text == (("parameters", "late"),)


def test_ordinary_text_points_nowhere() -> None:
    found = read_metadata(saved("PNG", pnginfo=texts(Title="At the sea", Software="GIMP 2.10")))
    assert len(found.text) == 2
    assert [(s.points_to, s.text) for s in found.statements] == [
        ("other", "PNG text 'Software' names a program: GIMP 2.10")
    ]
    assert read_metadata(saved("JPEG", comment=b"by hand")).text == (("comment", "by hand"),)


@pytest.mark.parametrize(
    "comment",
    [
        b"ASCII\0\0\0Steps: 20, Sampler: Euler",
        b"UNICODE\0" + "Steps: 20, Sampler: Euler".encode("utf-16-le"),
        b"UNICODE\0" + "Steps: 20, Sampler: Euler".encode("utf-16-be"),
        b"UNICODE\0" + "Steps: 20, Sampler: Euler".encode("utf-16"),
        b"\0" * 8 + b"Steps: 20, Sampler: Euler",
    ],
)
def test_user_comment_in_its_codes(comment: bytes) -> None:
    found = read_metadata(saved(exif=exif(UserComment=comment)))
    assert found.user_comment == "Steps: 20, Sampler: Euler"
    assert [s.points_to for s in found.statements] == ["generator"]


# ------------------------------------------------------------------------------------ hostile


def all_texts(found: Any) -> list[str]:
    if isinstance(found, str):
        return [found]
    if isinstance(found, (tuple, list)):
        return [text for part in found for text in all_texts(part)]
    fields = getattr(found, "__dataclass_fields__", {})
    return [text for name in fields for text in all_texts(getattr(found, name))]


def test_values_are_cut_and_printable() -> None:
    long = "x" * 100_000
    tags = exif(Make=long, Model="a\x00b\x1b[31m\u202egnp", ImageDescription=EVIL)
    chunks = texts(**{f"key{k}": long for k in range(3 * MOST)})
    for found in (
        read_metadata(saved("PNG", exif=tags, pnginfo=chunks)),
        read_metadata(saved("TIFF", exif=tags)),
        read_metadata(saved("WEBP", xmp=xmp(f"<xmp:CreatorTool>{long}</xmp:CreatorTool>"))),
    ):
        assert all(len(text) <= LONGEST + 200 for text in all_texts(found))
        assert all(text.isprintable() for text in all_texts(found))
        assert len(found.text) <= MOST
    assert read_metadata(saved("TIFF", exif=tags)).description == EVIL  # quoting is the page's


@pytest.mark.parametrize(
    "block",
    [
        b"<x",
        b"\xff\xfe\x00<",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>",
        b"<a>" * 50_000,
        b"<a>" * 20_000 + b"</a>" * 20_000,
        b"<x>" + b"<Credit>" * 101 + b"OpenAI" + b"</Credit>" * 101 + b"</x>",
        bytes(range(256)) * 10,
    ],
)
def test_hostile_xmp(block: bytes) -> None:
    found = read_metadata(saved("WEBP", xmp=block))
    assert not found.source_types
    assert found.problems


def test_what_was_read_before_a_defect_is_kept() -> None:
    endless = b"<x>" + b"<Credit>OpenAI</Credit>" * 40_000
    found = read_metadata(saved("WEBP", xmp=endless))
    assert found.credit == "OpenAI"
    assert [s.points_to for s in found.statements] == ["generator"]
    assert found.problems == ("XMP: cannot be read to its end (ExpatError)",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize(
    "doctype",
    ["<!DOCTYPE x [<!ENTITY a 'OpenAI'>]>", "<!DOCTYPE x>", "<!DOCTYPE x SYSTEM 'file:///x'>"],
)
def test_a_doctype_is_refused_in_any_encoding(encoding: str, doctype: str) -> None:
    name = "utf-16" if encoding.startswith("utf-16") else encoding
    mark = "\ufeff" if encoding.endswith("e") else ""
    head = f"{mark}<?xml version='1.0' encoding='{name}'?>"
    problems: list[str] = []
    body = "<x><Credit>OpenAI</Credit></x>"
    plain = read_xmp((head + body).encode(encoding), problems)
    assert (plain, problems) == ({"Credit": ["OpenAI"]}, [])  # it is the doctype that is refused
    assert not read_xmp((head + doctype + body).encode(encoding), problems)
    assert "doctype" in problems[0]


def test_many_and_nested_elements_take_one_pass() -> None:
    # As many values as elements would be found, if each were looked for anew in those around it.
    depth, count = 90, 300
    nested = "<Credit>" * depth + "a" + "</Credit>" * depth
    assert read_xmp(f"<x>{nested * count}</x>", []) == {"Credit": ["a"]}
    deep: list[str] = []
    assert not read_xmp("<Credit>" * 17_000 + "a" + "</Credit>" * 17_000, deep)
    assert "deep" in deep[0]
    many: list[str] = []
    assert not read_xmp(f"<x>{'<Credit/>' * 60_000}</x>", many)
    assert "elements are too many" in many[0]


def test_elements_in_elements() -> None:
    block = xmp(
        "<photoshop:Credit>one<a>two<xmp:CreatorTool>three</xmp:CreatorTool>tail</a></photoshop:Credit>"
    )
    found = read_xmp(block, [])
    assert found == {"Credit": ["one", "two", "three"], "CreatorTool": ["three"]}


def test_statements_again_from_plain_values() -> None:
    block = xmp("", f'Iptc4xmpExt:DigitalSourceType="{TERM}"')
    for data in (
        saved(exif=exif(Make="Canon", Model="EOS"), xmp=block),
        saved("PNG", pnginfo=texts(parameters="Steps: 3")),
        with_box(saved()),
        saved(),
    ):
        plain = json.loads(json.dumps(dataclasses.asdict(read_metadata(data))))
        assert metadata.statements_of(plain) == plain["statements"]
    plain["c2pa"]["state"] = "splendid"
    with pytest.raises(ValueError, match="state must be one of"):
        metadata.statements_of(plain)


def test_too_much_xmp_is_named_as_a_problem() -> None:
    huge = read_metadata(saved("WEBP", xmp=b" <a/>" + b"y" * (1 << 21)))
    assert "too many" in huge.problems[0]


def test_a_bomb_in_a_text_chunk() -> None:
    import zlib

    from conftest import png_chunk

    data = saved("PNG")
    bomb = png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"0" * (1 << 23)))
    found = read_metadata(data[:33] + bomb + data[33:])
    assert found.problems
    assert not found.text


def test_no_bytes_raise(hostile_files: dict[str, tuple[Path, str]]) -> None:
    for path, _ in hostile_files.values():
        if path.is_file():
            assert isinstance(read_metadata(path.read_bytes()), Metadata)
    tags = exif(Make="Canon", Model="X", UserComment=b"ASCII\0\0\0hello")
    block = xmp(f"<Iptc4xmpExt:DigitalSourceType>{TERM}</Iptc4xmpExt:DigitalSourceType>")
    rng = np.random.default_rng(3)
    for data in (saved(exif=tags, xmp=block), saved("PNG", exif=tags), saved("TIFF", exif=tags)):
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(data), 700), 4):
                broken[at] = rng.integers(256)
            found = read_metadata(bytes(broken))
            assert all(text.isprintable() for text in all_texts(found))


def test_odd_files_are_read(odd_files: dict[str, tuple[Path, tuple[str, ...]]]) -> None:
    for name, (path, _) in odd_files.items():
        assert not read_metadata(path.read_bytes()).problems, name


# --------------------------------------------------------------------------------------- C2PA

BOX = b"\0\0\0\x26jumd" + bytes.fromhex("63327061001100108000 00AA00389B71".replace(" ", ""))


def with_box(data: bytes) -> bytes:
    """A JPEG with the first bytes of a C2PA manifest in an APP11 segment."""
    body = b"JP\0\x01\0\0\0\x01\0\0\0\x50jumb" + BOX + b"\x03c2pa\0"
    return data[:2] + b"\xff\xeb" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def test_a_manifest_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = read_metadata(with_box(saved()))
    assert found.c2pa == C2pa("not verified")
    assert "was not verified" in found.statements[0].text
    assert read_metadata(saved()).c2pa == C2pa("absent")


def store(state: str, *codes: str) -> dict[str, Any]:
    return {
        "active_manifest": "m",
        "manifests": {
            "m": {
                "claim_generator": "Old/1",
                "claim_generator_info": [{"name": "Maker", "version": "2"}],
                "assertions": [
                    {
                        "label": "c2pa.actions.v2",
                        "data": {
                            "actions": [
                                {"action": "c2pa.created", "digitalSourceType": TERM,
                                 "softwareAgent": {"name": EVIL}},
                            ]
                        },
                    }
                ],
                "signature_info": {"issuer": "Someone", "time": "2024-01-01T00:00:00Z"},
            }
        },
        "validation_state": state,
        "validation_status": [{"code": code} for code in codes],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "state", "points_to"),
    [
        (store("Trusted"), "trusted", "generator"),
        (store("Valid"), "valid", "generator"),
        (store("Valid", "signingCredential.untrusted"), "untrusted", "generator"),
        (store("Invalid", "signingCredential.untrusted", "signingCredential.invalid"),
         "untrusted", "generator"),
        (store("Invalid", "assertion.dataHash.mismatch"), "tampered", "other"),
        (store("Invalid", "signingCredential.untrusted", "claimSignature.mismatch"),
         "tampered", "other"),
        (store("Invalid", "claim.malformed"), "invalid", "other"),
        (store("Valid", "signingCredential.untrusted", "cawg.x509.credential.untrusted"),
         "untrusted", "generator"),
        (store("Valid", "timeStamp.untrusted"), "valid", "generator"),
        (store("Invalid", "ingredient.manifest.mismatch"), "valid", "generator"),
        (store("Trusted", "assertion.inaccessible"), "trusted", "generator"),
        ({"nonsense": 1}, "unreadable", "other"),
    ],
)  # fmt: skip
def test_what_the_package_says(
    answer: Mapping[str, Any], state: str, points_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Part:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            asked.append(arguments)

        @classmethod
        def from_dict(cls, values: Any) -> Part:
            return cls(values)

        def __enter__(self) -> Part:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def json(self) -> str:
            return json.dumps(answer)

    module = types.ModuleType("c2pa")
    module.Settings = module.Context = module.Reader = Part  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "c2pa", module)
    found = read_metadata(with_box(saved()))
    assert found.c2pa.state == state
    assert found.statements[0].points_to == points_to
    # Nothing may be fetched.
    assert asked[0][0]["verify"] == {"remote_manifest_fetch": False, "ocsp_fetch": False}
    if state != "unreadable":
        assert found.c2pa.claim_generator == "Maker 2"
        assert found.c2pa.signer == "Someone"
        assert found.c2pa.source_types == ("trainedAlgorithmicMedia",)
        assert found.c2pa.actions == (f"created by {EVIL}",)


@pytest.fixture(scope="module")
def signed(natural_image: Callable[..., NDArray[np.uint8]]) -> bytes:
    """A JPEG with a real manifest, signed by a certificate of our own making."""
    c2pa = pytest.importorskip("c2pa")
    pytest.importorskip("cryptography")
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def make(
        name: str, key: Any, issuer: Any, issuer_key: Any, authority: bool
    ) -> x509.Certificate:
        subject = x509.Name(
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name),
                x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
            ]
        )
        now = datetime.datetime.now(datetime.timezone.utc)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, **usage),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
        )
        if not authority:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION]),
                critical=False,
            )
        return builder.sign(issuer_key, hashes.SHA256())

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = make("Test root", root_key, None, root_key, True)
    leaf = make("Test signer", key, root.subject, root_key, False)
    pem = serialization.Encoding.PEM
    chain = leaf.public_bytes(pem) + root.public_bytes(pem)
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    manifest = {
        "claim_generator_info": [{"name": "masksim test", "version": "1"}],
        "format": "image/jpeg",
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": TERM}]},
            }
        ],
    }
    buffer, out = io.BytesIO(), io.BytesIO()
    Image.fromarray(natural_image(280, 300)).save(buffer, "JPEG")
    buffer.seek(0)
    info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=private, ta_url=None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        builder.sign(signer, "image/jpeg", buffer, out)
    return out.getvalue()


def test_a_signed_image(signed: bytes) -> None:
    found = read_metadata(signed).c2pa
    assert found.state == "untrusted"  # for who signed it is on no list
    assert found.source_types == ("trainedAlgorithmicMedia",)
    assert found.signer == "Test signer"
    assert found.claim_generator is not None
    assert found.claim_generator.startswith("masksim test")


def test_a_changed_image_is_told(signed: bytes) -> None:
    changed = bytearray(signed)
    changed[-500] ^= 1  # among the pixels
    found = read_metadata(bytes(changed))
    assert found.c2pa.state == "tampered"
    assert found.statements[0].points_to == "other"


def test_a_cut_manifest_does_not_raise(signed: bytes) -> None:
    at = signed.index(jumbf._C2PA_BOX)
    for cut in (at + 30, at + 300, at + 2000):
        assert read_metadata(signed[:cut]).c2pa.state in ("unreadable", "tampered", "invalid")


def test_the_same_claims_as_the_package(signed: bytes) -> None:
    c2pa = pytest.importorskip("c2pa")
    with c2pa.Reader("image/jpeg", io.BytesIO(signed)) as reader:
        theirs = credentials._from_store(json.loads(reader.json()), "not verified")
    found = jumbf.find_store(signed)
    assert found is not None
    ours = credentials._from_store(jumbf.read_store(found), "not verified")
    for name in ("claim_generator", "actions", "source_types", "maker", "signer", "ingredients"):
        assert getattr(ours, name) == getattr(theirs, name), name

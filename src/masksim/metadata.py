"""What a file says of its own origin: camera, software, generator, signed provenance.

A line of evidence of its own, never mixed into a score: whoever has the file can remove or forge
all of it, but for a C2PA manifest, which can be removed but not changed unseen.

Nothing here raises for any bytes. Values are texts for people, cut to `LONGEST` letters and with
every control character escaped; they may hold markup, so whoever shows them must quote them.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from xml.parsers import expat

from PIL import ExifTags, Image, IptcImagePlugin

__all__ = ["C2pa", "Metadata", "Statement", "read_metadata", "statements_of"]

LONGEST = 400
"""Letters of a value that are kept."""

MOST = 24
"""Values of a kind that are kept."""

_XMP_LIMIT = 1 << 20  # bytes: more is no description of an image
_XMP_ELEMENTS, _XMP_DEPTH = 50_000, 100  # editors' histories have thousands, a dozen deep
_ITEMS_LIMIT = 1 << 16  # letters of a value that are looked at before it is cut

SOURCE_TYPES: Mapping[str, str] = {
    "trainedAlgorithmicMedia": "made by a generator (trained algorithmic media)",
    "compositeWithTrainedAlgorithmicMedia": "partly made by a generator",
    "compositeSynthetic": "a composite with synthetic parts",
    "algorithmicallyEnhanced": "enhanced by an algorithm",
    "algorithmicMedia": "made by an algorithm without training data",
    "dataDrivenMedia": "made from data by a program",
    "digitalArt": "made by hand on a computer",
    "digitalCreation": "made on a computer",
    "virtualRecording": "recorded in a virtual world",
    "screenCapture": "a capture of a screen",
    "composite": "a composite of several images",
    "compositeCapture": "a composite of captures",
    "humanEdits": "edited by a person",
    "minorHumanEdits": "slightly edited by a person",
    "digitalCapture": "captured by a digital camera",
    "computationalCapture": "captured and computed by a camera",
    "negativeFilm": "a scan of a negative",
    "positiveFilm": "a scan of a slide",
    "print": "a scan of a print",
}
"""IPTC's terms for `DigitalSourceType`, in words."""

_SYNTHETIC = frozenset(
    {
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
        "compositeSynthetic",
        "algorithmicMedia",
    }
)
_CAPTURED = frozenset({"digitalCapture", "computationalCapture", "negativeFilm", "positiveFilm"})

# Names that generators and their programs write; compared in lower case, as parts.
_GENERATOR_WORDS = (
    *("dall-e", "dall·e", "dalle", "openai", "chatgpt", "gpt-image", "midjourney", "firefly"),
    *("stable diffusion", "stable-diffusion", "stablediffusion", "stability ai", "dreamstudio"),
    *("comfyui", "invokeai", "automatic1111", "novelai", "ideogram", "leonardo.ai", "imagen"),
    *("made with google ai", "google ai", "gemini", "bing image creator", "image creator from"),
    *("designer", "black forest labs", "flux.1", "recraft", "grok", "pollinations"),
    *("ai generated", "ai-generated", "job id:", "negative prompt:", "cfg scale:", "steps:"),
)
# Keys of PNG text that generators' programs use for what made the image.
_GENERATOR_KEYS = frozenset(
    {"parameters", "prompt", "workflow", "sd-metadata", "dream", "invokeai_metadata"}
    | {"invokeai_graph", "generation_data", "negative_prompt", "sui_image_params", "aigc"}
)

Points: TypeAlias = Literal["generator", "camera", "other"]
State: TypeAlias = Literal[
    "absent", "not verified", "trusted", "valid", "untrusted", "tampered", "invalid", "unreadable"
]


@dataclass(frozen=True, slots=True)
class C2pa:
    """A manifest of the Coalition for Content Provenance and Authenticity.

    Attributes
    ----------
    state
        ``"absent"``: the file has none. ``"not verified"``: it has one, which was not read, for
        the package ``c2pa-python`` is missing. ``"trusted"``: unbroken, signed by someone on a
        list of trust. ``"valid"``: unbroken, no list of trust was asked. ``"untrusted"``: unbroken,
        but the signer is on no list of trust, or the certificate not fit. ``"tampered"``: image or
        manifest were changed after signing. ``"invalid"``: broken otherwise. ``"unreadable"``: the
        package could not read it.
    claim_generator
        The program that wrote it.
    actions
        What it says was done, one text an action.
    source_types
        IPTC's terms among these (see `SOURCE_TYPES`).
    signer, signed
        Who signed it, and when; as the manifest has it.
    problems
        Codes of what did not hold, as the specification names them.
    """

    state: State = "absent"
    claim_generator: str | None = None
    actions: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    signer: str | None = None
    signed: str | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that the file says of its origin.

    Attributes
    ----------
    text
        A sentence for people.
    points_to
        ``"generator"``, ``"camera"`` or ``"other"``.
    """

    text: str
    points_to: Points


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the file says of its own origin.

    Attributes
    ----------
    make, model, lens, software, taken
        EXIF: of the camera and the program, and the time as the camera's clock had it.
    user_comment, description
        EXIF: free text; generators write prompts there.
    position
        Whether there are coordinates; they are not shown.
    creator_tool, credit
        XMP, or IPTC: the program, and who is to be credited.
    source_types
        IPTC's terms for how the image came to be, from XMP; see `SOURCE_TYPES`.
    text
        (key, value) of the text chunks of a PNG, and the comments of other formats.
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
    user_comment: str | None = None
    description: str | None = None
    position: bool = False
    creator_tool: str | None = None
    credit: str | None = None
    source_types: tuple[str, ...] = ()
    text: tuple[tuple[str, str], ...] = ()
    c2pa: C2pa = C2pa()
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
    problems: list[str] = []
    info: dict[Any, Any] = {}
    exif: dict[str, str] = {}
    text: list[tuple[str, str]] = []
    with _noted(problems, "file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged tags
        info, exif, text = _by_pillow(data, problems)
    xmp = _read_xmp(info, problems)
    c2pa = _read_c2pa(data)
    found = {
        **{name: exif.get(name) for name in _EXIF.values()},
        "creator_tool": xmp.get("CreatorTool", [None])[0] or exif.get("iptc_program"),
        "credit": xmp.get("Credit", [None])[0] or exif.get("iptc_credit"),
    }
    source_types = tuple(_term(value) for value in xmp.get("DigitalSourceType", ()))
    kept = tuple(text[:MOST])
    if len(text) > MOST:
        problems.append(f"{len(text) - MOST} of {len(text)} texts are left out")
    return Metadata(
        **found,
        position="position" in exif,
        source_types=source_types,
        text=kept,
        c2pa=c2pa,
        problems=tuple(dict.fromkeys(problems))[:MOST],
        statements=tuple(_statements(found, source_types, kept, c2pa)),
    )


# ------------------------------------------------------------------------------------- values


def _clean(value: Any) -> str:
    """Make a short printable text of anything: control characters escaped, cut at `LONGEST`."""
    if isinstance(value, bytes):
        value = _decoded(value[:_ITEMS_LIMIT])
    text = str(value)[:_ITEMS_LIMIT].strip("\0 \t\r\n")
    cut = text[: LONGEST + 1]
    plain = "".join(
        c if c.isprintable() else (" " if c in "\t\r\n" else _escape(c)) for c in cut[:LONGEST]
    )
    return plain + ("..." if len(text) > LONGEST else "")


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


@contextmanager
def _noted(problems: list[str], part: str) -> Iterator[None]:
    """Note whatever goes wrong with one part: hostile files make any parser fail in any way."""
    try:
        yield
    except Exception as error:
        problems.append(f"{part}: cannot be read ({type(error).__name__})")


# ----------------------------------------------------------------------------- EXIF, PNG, IPTC

_EXIF: Mapping[int, str] = {
    ExifTags.Base.Make: "make",
    ExifTags.Base.Model: "model",
    ExifTags.Base.LensModel: "lens",
    ExifTags.Base.Software: "software",
    ExifTags.Base.DateTimeOriginal: "taken",
    ExifTags.Base.UserComment: "user_comment",
    ExifTags.Base.ImageDescription: "description",
}
_COMMENT_CODES = {b"ASCII\0\0\0": "latin-1", b"UNICODE\0": "utf-16", b"JIS\0\0\0\0\0": "shift_jis"}
_NOT_TEXT = {"XML:com.adobe.xmp", "xmp"}  # read as XMP


def _by_pillow(
    data: bytes, problems: list[str]
) -> tuple[dict[Any, Any], dict[str, str], list[tuple[str, str]]]:
    """Return the format's own items, EXIF and IPTC by our names, and texts."""
    exif: dict[str, str] = {}
    text: list[tuple[str, str]] = []
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        import pillow_heif

        info = dict(pillow_heif.open_heif(io.BytesIO(data)).info)
        tags = Image.Exif()
        with _noted(problems, "EXIF"):
            if raw := info.get("exif"):
                tags.load(bytes(raw))
            _read_exif(tags, exif)
        return info, exif, text
    with Image.open(io.BytesIO(data)) as image:
        with _noted(problems, "EXIF"):
            _read_exif(image.getexif(), exif)
        with _noted(problems, "IPTC"):
            iptc = IptcImagePlugin.getiptcinfo(image) or {}
            for key, name in (((2, 65), "iptc_program"), ((2, 110), "iptc_credit")):
                value = iptc.get(key)
                if value and (clean := _clean(value[0] if isinstance(value, list) else value)):
                    exif[name] = clean
        with _noted(problems, "text chunks"):
            # Some stand behind the pixels, which have to be read for them.
            if image.format == "PNG":
                texts: Mapping[Any, Any] = image.text  # type: ignore[attr-defined]
                text.extend(
                    (_clean(key)[:80], _clean(value))
                    for key, value in texts.items()
                    if key not in _NOT_TEXT
                )
        info = dict(image.info)
        if (comment := info.get("comment")) and (clean := _clean(comment)):
            text.append(("comment", clean))
        return info, exif, text


def _read_exif(tags: Image.Exif, found: dict[str, str]) -> None:
    sub = tags.get_ifd(ExifTags.IFD.Exif)
    for tag, name in _EXIF.items():
        value = sub.get(tag, tags.get(tag))
        if tag == ExifTags.Base.UserComment and isinstance(value, bytes):
            value = _comment(value[:_ITEMS_LIMIT])
        if value is not None and (clean := _clean(value)):
            found[name] = clean
    if "taken" not in found and (clean := _clean(tags.get(ExifTags.Base.DateTime) or "")):
        found["taken"] = clean
    if tags.get_ifd(ExifTags.IFD.GPSInfo).get(ExifTags.GPS.GPSLatitude) is not None:
        found["position"] = "there"


def _comment(value: bytes) -> str:
    """Decode EXIF's UserComment, which names its letters' code in eight bytes."""
    code = _COMMENT_CODES.get(value[:8])
    if code is None:
        return _decoded(value.removeprefix(bytes(8)))
    body = value[8:]
    if code == "utf-16" and not body.startswith((b"\xff\xfe", b"\xfe\xff")):
        # Without a mark; of plain letters the high byte is 0.
        code = "utf-16-be" if body[:1] == b"\0" else "utf-16-le"
    return body.decode(code, errors="replace")


# ---------------------------------------------------------------------------------------- XMP

_XMP_NAMES = ("DigitalSourceType", "CreatorTool", "Credit")


def _read_xmp(info: Mapping[Any, Any], problems: list[str]) -> dict[str, list[str]]:
    """Values of `_XMP_NAMES`, as elements, attributes or resources, whatever their prefix."""
    raw = next((v for k in ("xmp", "XML:com.adobe.xmp") if (v := info.get(k))), None)
    if not isinstance(raw, (bytes, str)):
        return {}
    data = raw.encode("utf-8", "replace") if isinstance(raw, str) else raw
    if data[:2] not in (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<"):  # of UTF-16 each half counts
        data = data.strip(b"\0 \t\r\n")
    if len(data) > _XMP_LIMIT:
        problems.append(f"XMP: {len(data)} bytes are too many to be read")
        return {}
    try:
        return _xmp_values(data)
    except _RefusedError as error:
        problems.append(f"XMP: {error}")
    except Exception as error:  # as `_noted`
        problems.append(f"XMP: cannot be read ({type(error).__name__})")
    return {}


class _RefusedError(Exception):
    """What is well-formed, but no description of an image."""


def _xmp_values(data: bytes) -> dict[str, list[str]]:
    """Parse XMP in one pass, without a tree: the time grows with the bytes, however they nest."""
    found: dict[str, list[str]] = {}
    # An open element: its name, those of `_XMP_NAMES` that it is or stands in, and its text up to
    # its first child (None after that, and where nobody wants it).
    stack: list[tuple[str, tuple[str, ...]]] = []
    texts: list[list[str] | None] = []
    seen = 0

    def add(names: Iterable[str], value: str) -> None:
        if clean := _clean(value):
            for name in names:
                values = found.setdefault(name, [])
                if clean not in values and len(values) < MOST:
                    values.append(clean)

    def take_text() -> None:
        if texts and (text := texts[-1]) is not None:
            add(stack[-1][1], "".join(text))
            texts[-1] = None

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal seen
        seen += 1
        if seen > _XMP_ELEMENTS:
            raise _RefusedError(f"over {_XMP_ELEMENTS} elements are too many to be read")
        if len(stack) >= _XMP_DEPTH:
            raise _RefusedError(f"elements over {_XMP_DEPTH} deep are not read")
        take_text()
        name = _local(tag)
        around = stack[-1][1] if stack else ()
        if name in _XMP_NAMES and name not in around:
            around = (*around, name)
        stack.append((name, around))
        texts.append([] if around else None)  # of rdf:Alt, rdf:Bag, rdf:Seq as well
        for key, value in attributes.items():
            key = _local(key)
            if key in _XMP_NAMES:
                add((key,), value)
            elif key == "resource" and name in _XMP_NAMES:
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

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = doctype
    parser.EntityDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = letters
    parser.Parse(data, True)
    return found


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _term(value: str) -> str:
    """Cut the vocabulary off a term: what stands after the last slash."""
    return value.rstrip("/").rpartition("/")[2]


# --------------------------------------------------------------------------------------- C2PA

# A JUMBF description box of C2PA's type: how the bytes of each manifest store begin.
_C2PA_BOX = b"jumd" + b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"


def _read_c2pa(data: bytes) -> C2pa:
    if _C2PA_BOX not in data:
        return C2pa()
    try:
        import c2pa
    except ImportError:
        return C2pa("not verified")
    try:
        # Nothing may be fetched: neither manifests that stand elsewhere nor revoked certificates.
        settings = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
        with (
            c2pa.Settings.from_dict(settings) as chosen,
            c2pa.Context(chosen) as context,
            c2pa.Reader(None, io.BytesIO(data), context=context) as reader,
        ):
            return _from_store(json.loads(reader.json()))
    except Exception as error:  # as `_noted`
        return C2pa("unreadable", problems=(_clean(f"{type(error).__name__}: {error}"),))


def _from_store(store: Mapping[str, Any]) -> C2pa:
    """Interpret the JSON of the reader of ``c2pa-python``."""
    manifest = store["manifests"][store["active_manifest"]]
    # An edited image's manifest holds those of what it was made from.
    others = [m for name, m in store["manifests"].items() if name != store["active_manifest"]]
    assertions = [a for m in (manifest, *others) for a in m.get("assertions") or ()]
    codes = [str(status.get("code", "")) for status in store.get("validation_status") or ()]
    actions, types = [], []
    for assertion in assertions:
        if not str(assertion.get("label", "")).startswith("c2pa.actions"):
            continue
        for action in assertion.get("data", {}).get("actions") or ():
            agent = action.get("softwareAgent")
            agent = agent.get("name") if isinstance(agent, Mapping) else agent
            parts = [str(action.get("action", "")).removeprefix("c2pa.")]
            if agent:
                parts.append(f"by {agent}")
            if when := action.get("when"):
                parts.append(f"at {when}")
            if source := action.get("digitalSourceType"):
                types.append(_clean(_term(str(source))))
            if description := action.get("description"):
                parts.append(f"({description})")
            actions.append(_clean(" ".join(parts)))
    infos = manifest.get("claim_generator_info") or ()
    names = [f"{i.get('name', '')} {i.get('version', '')}".strip() for i in infos]
    program = ", ".join(filter(None, names)) or manifest.get("claim_generator")
    signature = manifest.get("signature_info") or {}
    return C2pa(
        _state(str(store.get("validation_state", "")), codes),
        _clean(program) if program else None,
        tuple(actions[:MOST]),
        tuple(dict.fromkeys(types))[:MOST],
        _clean(signature["issuer"]) if signature.get("issuer") else None,
        _clean(signature["time"]) if signature.get("time") else None,
        tuple(dict.fromkeys(map(_clean, codes)))[:MOST],
    )


def _state(state: str, codes: Sequence[str]) -> State:
    """Tell a changed image from a signer that is merely unknown."""
    broken = [code for code in codes if not code.startswith(("signingCredential.", "timeStamp."))]
    if any(code.endswith((".mismatch", ".missing")) for code in broken):
        return "tampered"
    if state == "Trusted" and not broken:
        return "trusted"
    if broken or state not in ("Trusted", "Valid", "Invalid"):
        return "invalid"
    return "untrusted" if codes or state == "Invalid" else "valid"


# --------------------------------------------------------------------------------- statements


def statements_of(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Make the statements anew from plain values.

    Parameters
    ----------
    values
        A `Metadata` by `dataclasses.asdict`, perhaps through JSON; its own ``"statements"`` are
        not looked at.

    Returns
    -------
    list of dict
        ``"text"`` and ``"points_to"`` of each, as in `Metadata.statements`.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        The values do not have that form.
    """
    c2pa = C2pa(**values["c2pa"])
    said = _statements(values, values["source_types"], values["text"], c2pa)
    return [{"text": statement.text, "points_to": statement.points_to} for statement in said]


def _statements(
    found: Mapping[str, Any],
    source_types: Sequence[str],
    text: Sequence[tuple[str, str]],
    c2pa: C2pa,
) -> Iterator[Statement]:
    """Say in sentences what bears on the origin, signed things first."""
    if c2pa.state != "absent":
        yield _on_c2pa(c2pa)
    for term in source_types:
        words = SOURCE_TYPES.get(term, "of an unknown kind")
        yield Statement(f"XMP says: {words} (DigitalSourceType {term}).", _points(term))
    for name, label in (
        ("software", "EXIF Software"),
        ("make", "EXIF Make"),
        ("user_comment", "EXIF UserComment"),
        ("description", "EXIF ImageDescription"),
        ("creator_tool", "XMP CreatorTool"),
        ("credit", "Credit"),
    ):
        if not (value := found[name]):
            continue
        if _names_generator(value):
            yield Statement(f"{label} names a generator: {_short(value)}", "generator")
        elif name == "user_comment" and '"prompt"' in value:
            yield Statement(f"{label} holds a prompt: {_short(value)}", "generator")
    for key, value in text:
        if key.lower() in _GENERATOR_KEYS:
            yield Statement(f"The text {key!r} is one that generators write.", "generator")
        elif _names_generator(value):
            yield Statement(f"The text {key!r} names a generator: {_short(value)}", "generator")
    make, model = found["make"], found["model"]
    if make and model and not _names_generator(f"{make} {model}"):
        yield Statement(f"EXIF names a camera: {_short(f'{make} {model}')}", "camera")
    elif make and not model and not _names_generator(make):
        yield Statement(f"EXIF names a maker without a model: {_short(make)}", "other")


def _on_c2pa(c2pa: C2pa) -> Statement:
    by = f" by {c2pa.claim_generator}" if c2pa.claim_generator else ""
    signer = f" ({c2pa.signer})" if c2pa.signer else ""
    state = {
        "not verified": "A C2PA manifest is there, but was not verified (the package c2pa-python "
        "is not installed).",
        "trusted": f"A C2PA manifest{by} is unbroken, and its signer{signer} is trusted.",
        "valid": f"A C2PA manifest{by} is unbroken.",
        "untrusted": f"A C2PA manifest{by} is unbroken, but its signer{signer} is on no list of "
        "trust that was asked, so the name may be anybody's.",
        "tampered": f"A C2PA manifest{by} does not fit: the image or the manifest was changed "
        "after signing.",
        "invalid": f"A C2PA manifest{by} is there, but is not valid.",
        "unreadable": "A C2PA manifest is there, but could not be read.",
    }[c2pa.state]
    said = [SOURCE_TYPES.get(t, t) for t in c2pa.source_types]
    if said:
        state += f" It says: {'; '.join(said)}."
    points: Points = "other"
    if c2pa.state in ("trusted", "valid", "untrusted"):
        points = next((p for p in map(_points, c2pa.source_types) if p != "other"), "other")
    return Statement(state, points)


def _points(term: str) -> Points:
    if term in _SYNTHETIC:
        return "generator"
    return "camera" if term in _CAPTURED else "other"


def _names_generator(value: str) -> bool:
    lower = value.lower()
    return any(word in lower for word in _GENERATOR_WORDS)


def _short(value: str) -> str:
    return value if len(value) <= 100 else f"{value[:97]}..."

"""EXIF: of the camera, the program, and what generators' programs hide in its fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import ExifTags, Image

from masksim.provenance.untrusted_text import LOOKED_AT, decoded

__all__ = ["Exif", "read_exif"]

_TEXTS = {
    ExifTags.Base.Make: "Make",
    ExifTags.Base.Model: "Model",
    ExifTags.Base.LensModel: "LensModel",
    ExifTags.Base.Software: "Software",
    ExifTags.Base.ProcessingSoftware: "ProcessingSoftware",
    ExifTags.Base.DateTime: "DateTime",
    ExifTags.Base.DateTimeOriginal: "DateTimeOriginal",
    ExifTags.Base.DateTimeDigitized: "DateTimeDigitized",
    ExifTags.Base.UserComment: "UserComment",
    ExifTags.Base.ImageDescription: "ImageDescription",
    ExifTags.Base.Artist: "Artist",
    ExifTags.Base.Copyright: "Copyright",
    ExifTags.Base.DocumentName: "DocumentName",
    ExifTags.Base.HostComputer: "HostComputer",
    ExifTags.Base.MakerNote: "MakerNote",
    ExifTags.Base.XPTitle: "XPTitle",
    ExifTags.Base.XPComment: "XPComment",
    ExifTags.Base.XPSubject: "XPSubject",
    ExifTags.Base.XPKeywords: "XPKeywords",
}
_COMMENT_CODES = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16", b"JIS\0\0\0\0\0": "shift_jis"}
_EXPOSED = (
    ExifTags.Base.ExposureTime,
    ExifTags.Base.FNumber,
    ExifTags.Base.ISOSpeedRatings,
    ExifTags.Base.FocalLength,
    ExifTags.Base.ShutterSpeedValue,
    ExifTags.Base.LensModel,
)


@dataclass(slots=True)
class Exif:
    """What EXIF holds.

    Attributes
    ----------
    texts
        By the tag's name; whole, and with whatever letters they have.
    position
        Whether there are coordinates.
    captured_by
        What FileSource says, or that there is an exposure: ``"camera"``, ``"scanner"`` or None.
    """

    texts: dict[str, str] = field(default_factory=dict)
    position: bool = False
    captured_by: Literal["camera", "scanner"] | None = None


def read_exif(tags: Image.Exif) -> Exif:
    """Read what is of use here.

    Parameters
    ----------
    tags
        By Pillow.

    Returns
    -------
    Exif
    """
    found = Exif()
    sub = tags.get_ifd(ExifTags.IFD.Exif)
    for tag, name in _TEXTS.items():
        value = sub.get(tag, tags.get(tag))
        if value is not None and (text := _text(tag, value)):
            found.texts[name] = text
    found.position = tags.get_ifd(ExifTags.IFD.GPSInfo).get(ExifTags.GPS.GPSLatitude) is not None
    source = sub.get(ExifTags.Base.FileSource)
    number = source[0] if isinstance(source, bytes) and source else source
    if number in (1, 2):
        found.captured_by = "scanner"
    elif number == 3 or any(tag in sub for tag in _EXPOSED):
        found.captured_by = "camera"
    return found


def _text(tag: int, value: Any) -> str:
    if tag == ExifTags.Base.UserComment and isinstance(value, bytes):
        text = _comment(value[:LOOKED_AT])
    elif tag == ExifTags.Base.MakerNote:
        text = decoded(value[:200]) if isinstance(value, bytes) else str(value)[:200]
    elif tag in _XP and isinstance(value, (bytes, tuple)):
        text = bytes(value)[: 2 * LOOKED_AT].decode("utf-16-le", "replace")
    elif isinstance(value, bytes):
        text = decoded(value[:LOOKED_AT])
    elif isinstance(value, tuple):
        text = " ".join(map(str, value[:100]))
    else:
        # Pillow reads the bytes of a text as Latin-1, and programs write UTF-8.
        text = str(value)[:LOOKED_AT]
        text = decoded(text.encode("latin-1")) if _is_latin(text) else text
    if tag == ExifTags.Base.Copyright:  # the photographer's and the editor's
        return "; ".join(filter(None, (part.strip() for part in text.split("\0")[:2])))
    # A text ends at its first null; behind it stands whatever was there before.
    text = text.split("\0", 1)[0].strip()
    if tag in _TIMES and not any(letter in "123456789" for letter in text):
        return ""  # of a clock that was never set
    return text


_XP = {
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPSubject,
    ExifTags.Base.XPKeywords,
}
_TIMES = {
    ExifTags.Base.DateTime,
    ExifTags.Base.DateTimeOriginal,
    ExifTags.Base.DateTimeDigitized,
}


def _is_latin(text: str) -> bool:
    return all(ord(letter) < 256 for letter in text)


def _comment(value: bytes) -> str:
    """Decode UserComment, which names its letters' code in eight bytes."""
    code = _COMMENT_CODES.get(value[:8])
    if code is None:
        return decoded(value.removeprefix(bytes(8)))
    body = value[8:]
    if code == "ascii":
        return decoded(body)
    if code == "utf-16" and not body.startswith((b"\xff\xfe", b"\xfe\xff")):
        # Without a mark; of plain letters the high byte is 0.
        code = "utf-16-be" if body[:1] == b"\0" else "utf-16-le"
    return body.decode(code, errors="replace")

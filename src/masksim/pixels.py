"""A decoded image of any mode and depth -> 8-bit RGB pixels, with as little done as possible.

The table of what is done to which mode stands in `masksim.image`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from masksim import containers, tiff
from masksim.decoders import Opened, check_size
from masksim.errors import ImageError

_GREY = "grey repeated in three channels"
TREATMENTS: dict[str, tuple[str, ...]] = {
    "RGB": (),
    "L": (_GREY,),
    "1": ("1 bit expanded to 0 and 255", _GREY),
    "LA": ("alpha dropped", _GREY),
    "La": ("alpha divided out", "alpha dropped", _GREY),
    "RGBA": ("alpha dropped",),
    "RGBX": ("fourth channel dropped",),
    "RGBa": ("alpha divided out", "alpha dropped"),
    "P": ("palette expanded",),
    "PA": ("palette expanded", "alpha dropped"),
    "CMYK": ("CMYK converted",),
    "YCbCr": ("YCbCr (BT.601, full range) converted",),
    "HSV": ("HSV converted",),
    "LAB": ("LAB converted",),
}


def to_rgb(
    image: Any,
    format_: str,
    treatments: list[str],
    label: str,
    part: tuple[int, int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Bring a decoded image of any mode to uint8 (H, W, 3), noting what was done.

    Of the modes of `TREATMENTS` a part alone, (y, x, height, width), is converted on request.
    """
    mode = str(image.mode)
    if mode in ("I", "F") or mode.startswith("I;16"):
        grey = _wide_grey(np.asarray(image), image, format_, treatments, label)
        treatments.append(_GREY)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if mode not in TREATMENTS:
        raise ImageError(f"{label}: pixels of mode {mode} are not supported", code="unsupported")
    treatments.extend(TREATMENTS[mode])
    if "transparency" in image.info:
        # A transparent index or colour: without it Pillow converts by the colours alone.
        treatments.append("transparency dropped")
        image = image.copy()
        del image.info["transparency"]
    elif mode == "P" and image.palette is not None and image.palette.mode != "RGB":
        treatments.append("transparency dropped")
    if part is not None and part != (0, 0, image.height, image.width):
        image = _region(image, part)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    if mode != "RGB":
        try:
            image = image.convert("RGB")
        except ImportError as error:  # LAB needs a Pillow built with LittleCMS
            raise ImageError(
                f"{label}: this Pillow cannot convert {mode} to RGB", code="unsupported"
            ) from error
    return _values(image)


def _region(image: Any, part: tuple[int, int, int, int]) -> Any:
    """Copy the part (y, x, height, width) of an image.

    Not by `crop`: in some versions of Pillow that obeys the global limit of pixels.
    """
    y, x, height, width = part
    region = Image.new(image.mode, (width, height))
    if image.palette is not None:
        region.palette = image.palette.copy()
        region.palette.dirty = 1
    region.paste(image, (-x, -y))
    return region


def _values(image: Any) -> NDArray[np.uint8]:
    """Copy an RGB image to an array, some rows at a time.

    All rows at once would take three times the memory: Pillow makes bytes in pieces and joins them,
    and NumPy copies the result.
    """
    width, height = image.size
    out = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _BYTES_AT_ONCE // (3 * width))
    for top in range(0, height, rows):
        out[top : top + rows] = np.asarray(_region(image, (top, 0, min(rows, height - top), width)))
    return out


_BYTES_AT_ONCE = 1 << 18


def _wide_grey(
    values: NDArray[Any], image: Any, format_: str, treatments: list[str], label: str
) -> NDArray[np.uint8]:
    """Bring grey of 12, 16 or 32 bits to uint8 (H, W), by the table in `masksim.image`."""
    tags = tiff.tags_of(image) or (lambda _: ())
    if image.mode == "F":
        grey = _from_floats(values, treatments, label)
    else:
        if (
            image.mode == "I"
            and tiff.bits(tags) == 32
            and tiff.one(tags, tiff.SAMPLE_FORMAT, 1) == 1
        ):
            values = values.view(np.uint32)  # Pillow has signed integers only
        grey = _from_integers(values, image.mode, format_, tags, treatments, label)
    return 255 - grey if tiff.one(tags, tiff.PHOTOMETRIC, 1) == 0 else grey


_FEW = 1000  # one value in so many may lie outside the range of the others


def _from_floats(values: NDArray[Any], treatments: list[str], label: str) -> NDArray[np.uint8]:
    """Tell floats of 0..1 from those of 0..255, and bring them to 8 bits.

    A few values outside of a range, as editing leaves them, do not count. If the largest values lie
    between 1 and 16, neither range fits: the picture would be brighter than white, or nearly black.
    """
    low, high = float(values.min()), float(values.max())
    for top in (1.0, 255.0):
        outside = int(np.count_nonzero((values < 0) | (values > top)))
        if not np.isfinite([low, high]).all() or outside * _FEW > values.size:
            continue
        if top > 1 and int(np.count_nonzero(values > 16)) * _FEW <= values.size:
            continue
        treatments.append("floats times 255, rounded" if top == 1 else "floats rounded")
        if outside:
            treatments.append(f"{outside} floats outside 0..{top:g} clipped")
        # In place: these images are large.
        scaled = np.clip(values, 0, top)
        scaled *= 255 / top
        return np.rint(scaled, out=scaled).astype(np.uint8)
    raise ImageError(
        f"{label}: values of mode F must lie in 0..1 or 0..255, found {low:g} to {high:g}",
        code="unsupported",
    )


def _from_integers(
    values: NDArray[Any],
    mode: str,
    format_: str,
    tags: tiff.Tags,
    treatments: list[str],
    label: str,
) -> NDArray[np.uint8]:
    """Bring integers of 12 to 32 bits to 8, by what the file says of them and by their values."""
    low, high = int(values.min()), int(values.max())
    bits = 12 if tiff.bits(tags) == 12 else 16
    if tiff.bits(tags) == 16 and tiff.one(tags, tiff.SAMPLE_FORMAT, 1) == 2:
        bits = 15  # signed
    if format_ == "TIFF" and mode != "I" and bits == 16:
        said = tiff.one(tags, tiff.MAX_SAMPLE, 65535)
        if 255 <= said < 65535 and high <= said:  # 10 or 12 bits in words of 16
            bits = said.bit_length()
    if format_ != "PNG" and bits in (15, 16):
        over = int(np.count_nonzero(values > 255)) if high > 255 and mode == "I" else 0
        if low >= 0 and (high <= 255 or (over and over * _FEW <= values.size)):
            if mode != "I":
                treatments.append("16 bits holding 0..255 taken as 8")
            if over:
                treatments.append(f"{over} values over 255 clipped")
            return np.minimum(values, 255).astype(np.uint8)
    if not (low >= 0 and high <= 65535):
        raise ImageError(
            f"{label}: values of mode {mode} must lie in 0..65535, found {low} to {high}",
            code="unsupported",
        )
    reduced = "byte" if bits == 16 else "8"
    treatments.append(f"{bits} bits reduced to the high {reduced}")
    return cast("NDArray[np.uint8]", (values >> (bits - 8)).astype(np.uint8))


def array_to_rgb(
    array: NDArray[Any], max_pixels: int, label: str
) -> tuple[NDArray[np.uint8], list[str]]:
    """Bring an array, see `masksim.image.load_image`, to uint8 (H, W, 3); name what was done."""
    shape = array.shape
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        raise ImageError(
            f"{label}: an array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {shape}",
            code="unsupported",
        )
    check_size((shape[1], shape[0]), max_pixels, label)
    treatments: list[str] = []
    values = np.asarray(array)[..., np.newaxis] if array.ndim == 2 else np.asarray(array)
    channels = values.shape[2]
    if channels == 4:
        values = values[..., :3]
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
        treatments.append("1 bit expanded to 0 and 255")
    elif values.dtype.kind == "u" and values.dtype.itemsize == 2:
        values = values >> 8
        treatments.append("16 bits reduced to the high byte")
    elif values.dtype.kind == "f":
        # written so that NaN fails, too
        if not (float(values.min()) >= 0.0 and float(values.max()) <= 1.0):
            raise ImageError(
                f"{label}: floats must lie in [0, 1], found "
                f"{float(values.min()):g} to {float(values.max()):g}",
                code="unsupported",
            )
        values = np.rint(values.astype(np.float64) * 255.0)
        treatments.append("floats times 255, rounded")
    elif values.dtype != np.uint8:
        raise ImageError(
            f"{label}: an array is uint8, uint16, bool or float in [0, 1], not {array.dtype}",
            code="unsupported",
        )
    if channels == 4:
        treatments.append("alpha dropped")
    if channels == 1:
        values = np.repeat(values, 3, axis=2)
        treatments.append(_GREY)
    # A copy, so that later changes to the caller's array do not reach the image.
    return np.array(values, dtype=np.uint8, order="C"), treatments


# ------------------------------------------------------------------- what decoders get wrong


@dataclass(eq=False)
class Decoded:
    """An image whose pixels are there.

    Attributes
    ----------
    image
        By Pillow, corrected where it is wrong.
    treatments
        What was done to the stored values so far.
    orientation
        EXIF orientation 1..8 that applies to the pixels as they are stored.
    turned
        The orientation that the decoder has applied itself, 1 if none.
    """

    image: Any
    treatments: list[str]
    orientation: int
    turned: int


def decode(opened: Opened, data: bytes, label: str) -> Decoded:
    """Decode the pixels, and note what the decoder does to them beyond the mode they come in.

    Parameters
    ----------
    opened
        By `masksim.decoders.open_file`.
    data
        The bytes of the file; empty where it was given as a Pillow image.
    label
        What to call it in messages.

    Raises
    ------
    ImageError
        Of a kind that is not supported, or damaged; decoders raise others as well.
    """
    image, treatments = opened.image, list[str]()
    asked = orientation_of(image) if isinstance(image, TiffImagePlugin.TiffImageFile) else 1
    turned = _heif_turns(image, label)
    tags = tiff.tags_of(image)
    if tags is None:
        image.load()
    else:
        image = _decode_tiff(opened, tags, treatments, label)
    treatments.extend(_depth_treatments(image, data, tags))
    if tags is not None:
        treatments.extend(_tiff_treatments(image, tags))
    orientation = orientation_of(opened.image)
    if asked != 1 and orientation == 1:
        turned = asked  # some versions of Pillow turn a TIFF and forget why
    return Decoded(image, treatments, orientation if turned is None else turned, turned or 1)


def _decode_tiff(opened: Opened, tags: tiff.Tags, treatments: list[str], label: str) -> Any:
    """Decode a TIFF; what Pillow would get wrong is read here, corrected, or refused."""
    image = opened.image
    _check_tiff(tags, label)
    planes = None if opened.picture is None else tiff.read_planes(opened.picture.page)
    if planes is not None:
        return _merged(planes, image, tags)
    if tiff.raw_planes(tags) and tiff.bits(tags) != 8:
        raise ImageError(  # Pillow takes the bytes of a value for pixels of their own
            f"{label}: TIFF of this kind is not supported: {tiff.describe(tags)}",
            code="unsupported",
        )
    _correct_order(image)
    image.load()
    return _corrected(image, tags, treatments)


def _stored_bits(image: Any, data: bytes, tags: tiff.Tags | None) -> int:
    """Tell how many bits a sample has in the file; 8 where it does not say.

    Pillow does not keep the depth of a PNG, so it is 8 where only Pillow's image is given.
    """
    if data[12:16] == b"IHDR":
        return data[24]
    if tags is not None:
        return tiff.bits(tags)
    stored = image.info.get("bit_depth", 0)  # HEIF
    boxes = containers.iso_facts(data).bits if data[4:8] == b"ftyp" else 8
    return max(boxes, stored if isinstance(stored, int) else 0)


def _depth_treatments(image: Any, data: bytes, tags: tiff.Tags | None) -> list[str]:
    """Name what the decoder did to samples of more or fewer than 8 bits."""
    if image.mode in ("1", "P", "PA", "I", "F") or image.mode.startswith("I;16"):
        return []
    bits = _stored_bits(image, data, tags)
    if 1 < bits < 8:
        return [f"{bits} bits expanded to 8"]
    return ["more than 8 bits reduced to the high 8"] if bits > 8 else []


def _check_tiff(tags: tiff.Tags, label: str) -> None:
    """Refuse what Pillow would read into wrong pixels without an error."""
    signed = tiff.one(tags, tiff.SAMPLE_FORMAT, 1) == 2 and tiff.bits(tags) == 8
    if signed or tiff.subsampled(tags):
        raise ImageError(
            f"{label}: TIFF of this kind is not supported: {tiff.describe(tags)}",
            code="unsupported",
        )
    if tiff.strips_too_short(tags):
        raise ImageError(
            f"{label}: damaged TIFF file: its strips hold fewer bytes than its pixels need",
            code="unreadable",
        )


# libtiff gives values in this machine's byte order, but of these modes Pillow swaps them again.
_SWAPPED = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


def _correct_order(image: Any) -> None:
    """Have the values of compressed big-endian TIFFs of 16 and 32 bits read in the right order."""
    for number, tile in enumerate(image.tile):
        if tile[0] == "libtiff" and tile[3][0] in _SWAPPED:
            args = (_SWAPPED[tile[3][0]], *tile[3][1:])
            image.tile[number] = tile._replace(args=args)


_PLANES = {"L": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "RGBA": 4, "CMYK": 4}


def _merged(planes: NDArray[np.uint8], image: Any, tags: tiff.Tags) -> Any:
    """Make an image of planes that were read here, in the mode that Pillow would give it."""
    mode = image.mode
    if len(planes) < _PLANES.get(mode, 99):
        raise ValueError(f"unsupported: {len(planes)} planes of mode {mode}")
    merged = Image.merge(mode, [Image.fromarray(plane) for plane in planes[: _PLANES[mode]]])
    merged = _lab_from_planes(merged) if mode == "LAB" else merged
    if mode in ("LA", "RGBA") and tiff.one(tags, tiff.EXTRA_SAMPLES, 2) == 1:
        divided = Image.frombytes(mode[:-1] + "a", merged.size, merged.tobytes())
        return divided.convert(mode)
    return merged


def _lab_from_planes(image: Any) -> Any:
    """Shift a* and b*, which TIFF stores signed; Pillow forgets it for separate planes."""
    shifted = [band.point([i ^ 128 for i in range(256)]) for band in image.split()[1:]]
    return Image.merge("LAB", [image.getchannel(0), *shifted])


def _corrected(image: Any, tags: tiff.Tags, treatments: list[str]) -> Any:
    """Correct what Pillow gets wrong in palettes and in planes of Lab, in a copy."""
    if image.mode == "LAB" and tiff.one(tags, tiff.PLANAR, 1) == 2:
        return _lab_from_planes(image)
    colours = tags(tiff.COLOUR_MAP) if image.mode == "P" else ()
    if colours and max(colours) <= 255:  # values of 8 bits, not the 16 that TIFF asks for
        treatments.append("colour map of 8 bits")
        image = image.copy()
        third = len(colours) // 3
        image.putpalette([colours[c * third + i] for i in range(third) for c in range(3)])
    return image


def _tiff_treatments(image: Any, tags: tiff.Tags) -> list[str]:
    """Name what Pillow does to the values of a TIFF without saying so."""
    colour = tiff.one(tags, tiff.PHOTOMETRIC, -1)
    found = []
    if colour == 0 and (image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")):
        found.append("grey inverted, 0 is white")
    if colour == 6 and image.mode == "RGB" and tiff.one(tags, tiff.COMPRESSION, 1) not in (6, 7):
        found.extend(TREATMENTS["YCbCr"])
    if image.mode in ("LA", "RGBA") and tiff.one(tags, tiff.EXTRA_SAMPLES, 2) == 1:
        found.append("alpha divided out")
    return found


# ---------------------------------------------------------------------------- orientation


def orient(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror (H, W, ...) as an EXIF orientation asks a viewer to."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def orientation_of(image: Any) -> int:
    """EXIF orientation 1..8 of an image, or of its EXIF; 1 where it is missing or senseless."""
    try:
        value = (image if isinstance(image, Image.Exif) else image.getexif()).get(0x0112, 1)
    except Exception:  # damaged metadata do not spoil the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _heif_turns(image: Any, label: str) -> int | None:
    """EXIF orientation that equals the turns libheif makes when it decodes; None if not HEIF.

    HEIF keeps turns apart from EXIF (which is to be ignored there), and libheif always makes them.
    """
    file = getattr(image, "_heif_file", None)
    if file is None:
        return None
    turns = getattr(file[image.tell()]._c_image, "transformations", None)
    if turns is None:  # better no answer than one about turned pixels
        raise ImageError(f"{label}: HEIF needs pillow-heif 1.8 or later", code="unsupported")
    before = np.arange(6).reshape(2, 3)
    after: NDArray[Any] = before
    for kind, *numbers in turns:
        if kind == "irot":  # degrees anticlockwise
            after = np.rot90(after, numbers[0] // 90)
        elif kind == "imir":
            after = after[:, ::-1] if numbers[0] == 1 else after[::-1]
    return next(o for o in range(1, 9) if np.array_equal(orient(before, o), after))

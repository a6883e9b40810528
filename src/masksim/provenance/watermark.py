"""The open watermarks that some generators' own programs write into the pixels.

The package ``invisible-watermark`` (method ``dwtDct``) writes a fixed row of bits again and again:
of the chroma plane U it takes the sums of 2 x 2 pixels (the low band of a Haar wavelet), of those
the largest in each block of 4 x 4, its first apart, and moves it to a quarter (bit 0) or three
quarters (bit 1) of a step of 36. Blocks count from the top left corner, row by row, so a crop or a
change of size loses the mark, and saving as JPEG weakens it.

Reading needs no key: here are the few lines that do it, in NumPy. Whoever knows this can write such
a mark into any picture, and its absence says nothing. It is never part of a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksim.errors import UsageError
from masksim.image import top_rows

__all__ = [
    "MARKS",
    "PHOTOS",
    "Mark",
    "WatermarkMatch",
    "agreements",
    "decode_bits",
    "find_watermarks",
]

SMALLEST = 256 * 256
"""Pixels: the encoder leaves smaller images alone."""

CHANCE = 1e-6
"""A reading is a match if fair coins would agree as well with at most this probability."""

OTHER_TEXT = 1e-3
"""And if letters other than the mark's would agree as well with at most this one."""

PHOTOS = 690
"""Real photos, of 132 repositories, that `Mark.most_on_photos` was measured on."""

_STEP = 36  # the encoder's
_HAAR = math.sqrt(0.5)

Reading: TypeAlias = Literal["bytes", "floats", "floats, red and blue exchanged"]
"""What the encoder was given. Bytes have U around 128, floats around 0.5, where the sign counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A row of bits that a program writes.

    Attributes
    ----------
    name
        The text that the bits spell, or what they are called.
    program
        What writes it.
    bits
        bool (L,).
    readings
        In what forms that program has handed images to the encoder.
    most_on_photos
        The largest number of bits that agreed on any of `PHOTOS` real photos.
    """

    name: str
    program: str
    bits: NDArray[np.bool_]
    readings: tuple[Reading, ...]
    most_on_photos: int


@dataclass(frozen=True, slots=True)
class WatermarkMatch:
    """A mark that was found.

    Attributes
    ----------
    mark
        Its name in `MARKS`.
    program
        What writes it.
    bits_agree, bits
        How many of its bits were read right, of how many.
    chance
        How often fair coins would agree as well with any of the `MARKS`, in (0, 1].
    photos_agree
        The most that agreed on any of `photos` real photos.
    photos
        Number of real photos.
    """

    mark: str
    program: str
    bits_agree: int
    bits: int
    chance: float
    photos_agree: int
    photos: int

    @property
    def text(self) -> str:
        """One sentence for people."""
        return (
            f"The pixels carry the open watermark {self.mark}, which {self.program} write: "
            f"{self.bits_agree} of its {self.bits} bits agree. By chance so many agree "
            f"{_seldom(self.chance)}; among {self.photos} real photos at most {self.photos_agree} "
            "did. Anyone can write or remove such a mark."
        )


def _seldom(chance: float) -> str:
    if chance < 1e-15:
        return "practically never"
    units = ("", " thousand", " million", " billion", " trillion")
    digit, exponent = map(int, f"{1 / chance:.0e}".split("e"))
    return f"in one of {digit * 10 ** (exponent % 3)}{units[exponent // 3]} images"


def _text(text: str) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(text.encode("ascii"), np.uint8)).astype(bool)


def _number(digits: str) -> NDArray[np.bool_]:
    # The programs write Python's bin(), which drops leading zeros: FLUX's mark has 46 bits, not 48.
    return np.array([digit == "1" for digit in digits.lstrip("0")])


MARKS: tuple[Mark, ...] = (
    Mark(
        "StableDiffusionV1",
        "the scripts of Stable Diffusion 1 (CompVis)",
        _text("StableDiffusionV1"),
        ("bytes",),
        85,
    ),
    Mark(
        "SDV2",
        "the scripts of Stable Diffusion 2 (Stability AI)",
        _text("SDV2"),
        ("bytes",),
        24,
    ),
    Mark(
        "SDXL",
        "the reference code and services of Stable Diffusion XL (Stability AI) and diffusers",
        _number("101100111110110010010000011110111011000110011110"),
        # diffusers has handed over R, G, B where the encoder expects B, G, R.
        ("floats", "bytes", "floats, red and blue exchanged"),
        34,
    ),
    Mark(
        "FLUX",
        "the reference code of FLUX.1 (Black Forest Labs)",
        _number("001010101111111010000111100111001111010100101110"),
        ("floats", "bytes"),
        35,
    ),
    Mark("InvokeAI", "the watermark nodes of InvokeAI", _text("InvokeAI"), ("bytes",), 45),
)
"""All that are looked for."""


def find_watermarks(pixels: NDArray[np.uint8]) -> tuple[WatermarkMatch, ...]:
    """Look for the known open watermarks.

    A bit is read as 1 where more of its blocks say so than those of all bits do. (The encoder's own
    package compares with one half, as `decode_bits` does: after JPEG, or on flat pictures, nearly
    all bits are then 0, though the mark is still there.)

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), R G B, as stored: from the top left corner, over the whole width. Rows
        beyond `masksim.image.top_rows` are not looked at.

    Returns
    -------
    tuple of WatermarkMatch
        Those that fair coins would match at most with the probability `CHANCE`; mostly none.

    Raises
    ------
    UsageError
        The array has another type or shape.
    """
    readings = sum(len(mark.readings) for mark in MARKS)
    shares = _best_shares(pixels)
    found = []
    for mark in MARKS:
        if mark.name not in shares:
            continue
        agree, n = _agree(shares[mark.name], mark.bits), len(mark.bits)
        chance = _tail(agree, n)
        if chance <= CHANCE and _letters_agree(shares[mark.name], mark.bits):
            found.append(
                WatermarkMatch(
                    mark.name,
                    mark.program,
                    agree,
                    n,
                    min(1.0, readings * chance),
                    mark.most_on_photos,
                    PHOTOS,
                )
            )
    return tuple(found)


def agreements(pixels: NDArray[np.uint8]) -> dict[str, int]:
    """Count the bits that agree with each of the `MARKS`; the best of its readings counts.

    Parameters
    ----------
    pixels
        As for `find_watermarks`.

    Returns
    -------
    dict
        Name to 0..L; empty for images under `SMALLEST`.

    Raises
    ------
    UsageError
        The array has another type or shape.
    """
    shares = _best_shares(pixels)
    return {m.name: _agree(shares[m.name], m.bits) for m in MARKS if m.name in shares}


def _best_shares(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Of each mark the reading that agrees best: which share of a bit's blocks says 1."""
    _check(pixels)
    if pixels.shape[0] * pixels.shape[1] < SMALLEST:
        return {}
    top = pixels[: top_rows(*pixels.shape[:2])]
    votes: dict[Reading, NDArray[np.bool_]] = {
        "bytes": _votes(top, _ones_of_bytes),
        "floats": _votes(top, _ones_of_floats),
        "floats, red and blue exchanged": _votes(top, partial(_ones_of_floats, exchanged=True)),
    }
    return {
        mark.name: max(
            (_shares(votes[reading], len(mark.bits)) for reading in mark.readings),
            key=lambda share, bits=mark.bits: _agree(share, bits),  # type: ignore[misc]
        )
        for mark in MARKS
    }


def _agree(shares: NDArray[np.float64], bits: NDArray[np.bool_]) -> int:
    return int(((shares > shares.mean()) == bits).sum())


def _tail(agree: int, n: int) -> float:
    """How often at least so many of n fair coins agree."""
    return sum(math.comb(n, k) for k in range(agree, n + 1)) / 2**n


def _letters_agree(shares: NDArray[np.float64], bits: NDArray[np.bool_]) -> bool:
    """Whether a mark of whole bytes is there, and not just some other text.

    All letters begin with like bits: another text, of another length even, agrees with those.
    So each bit is compared with the mean of its place in all bytes, where not all are the same.
    """
    if len(bits) % 8:
        return True
    read, wanted = shares.reshape(-1, 8), bits.reshape(-1, 8)
    told = wanted.any(axis=0) & ~wanted.all(axis=0)
    agree = ((read > read.mean(axis=0)) == wanted)[:, told]
    return _tail(int(agree.sum()), agree.size) <= OTHER_TEXT


def decode_bits(
    pixels: NDArray[np.uint8], length: int, *, floats: bool = False
) -> NDArray[np.bool_]:
    """Read a row of bits as ``invisible-watermark`` does, by the majority of its blocks.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), R G B: the whole image.
    length
        Number of bits, at least 1.
    floats
        Read the pixels as an array of float32, for marks that were written into one.

    Returns
    -------
    ndarray
        bool (length,): of bytes bit for bit what ``WatermarkDecoder("bits", length)`` gives.

    Raises
    ------
    UsageError
        The array has another type or shape, there are fewer blocks than bits, or `length` is below
        1.
    """
    _check(pixels)
    votes = _votes(pixels, _ones_of_floats if floats else partial(_ones_of_bytes, exact=True))
    if not 1 <= length <= len(votes):
        raise UsageError(f"{length} bits cannot be read from {len(votes)} blocks of 8 x 8 pixels")
    found: NDArray[np.bool_] = _shares(votes, length) * 255 > 127
    return found


def _check(pixels: Any) -> None:
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 3
        and pixels.shape[2] == 3
    ):
        shape = getattr(pixels, "shape", "")
        raise UsageError(f"pixels are uint8 (H, W, 3), not {getattr(pixels, 'dtype', '')} {shape}")


def _shares(votes: NDArray[np.bool_], length: int) -> NDArray[np.float64]:
    """Share of the blocks of each bit that say 1, (length,)."""
    bit = np.arange(len(votes)) % length
    ones = np.bincount(bit[votes], minlength=length)
    shares: NDArray[np.float64] = ones / np.maximum(np.bincount(bit, minlength=length), 1)
    return shares


def _votes(
    pixels: NDArray[np.uint8], ones: Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Read a bit from each block of 8 x 8 pixels, row by row."""
    height, width = (n // 8 * 8 for n in pixels.shape[:2])
    if not (height and width):
        return np.zeros(0, bool)
    rows = max(8, (1 << 15) // width // 8 * 8)  # at a time: they stay in the processor's cache
    strips = [ones(pixels[top : min(top + rows, height), :width]) for top in range(0, height, rows)]
    return np.concatenate([strip.ravel() for strip in strips])


def _ones_of_bytes(pixels: NDArray[np.uint8], *, exact: bool = False) -> NDArray[np.bool_]:
    """Bits of the blocks of a strip, U in 8 bits by OpenCV's integers."""
    values = pixels.astype(np.int32)
    r, g, b = values[..., 0], values[..., 1], values[..., 2]
    y = (4899 * r + 9617 * g + 1868 * b + (1 << 13)) >> 14
    u = (8061 * (b - y) + (128 << 14) + (1 << 13)) >> 14
    np.clip(u, 0, 255, out=u)
    phase = _largest(_sums(u)) % (2 * _STEP)  # the wavelet's values are half the sums
    found: NDArray[np.bool_] = phase > _STEP
    if exact:
        # At a tie the encoder's package goes by the rounding of the wavelet's two steps.
        half = _HAAR * u[::2] + _HAAR * u[1::2]
        wavelet = _largest(_HAAR * half[:, ::2] + _HAAR * half[:, 1::2])
        found = np.where(phase % _STEP == 0, wavelet % _STEP > _STEP / 2, found)
    return found


def _ones_of_floats(pixels: NDArray[np.uint8], *, exchanged: bool = False) -> NDArray[np.bool_]:
    """Bits of the blocks of a strip, U in float32 around 0.5; red and blue may be exchanged."""
    sums = _sums(pixels.astype(np.uint16)).astype(np.float32)  # all that follows is linear
    blue_less_y = np.array([-0.299, -0.587, 0.886], np.float32)
    low = sums @ (blue_less_y[::-1] if exchanged else blue_less_y)
    low *= np.float32(0.492 / 2)
    low += np.float32(1)
    found: NDArray[np.bool_] = _largest(np.abs(low)) % np.float32(_STEP) > _STEP / 2
    return found


def _sums(values: NDArray[Any]) -> NDArray[Any]:
    """Add up 2 x 2 pixels."""
    rows = values[::2] + values[1::2]
    sums: NDArray[Any] = rows[:, ::2] + rows[:, 1::2]
    return sums


def _largest(low: NDArray[Any]) -> NDArray[Any]:
    """Of a low band (4 h, 4 w) the largest value of each block but its first: (h, w)."""
    first, second, third, fourth = low[::4], low[1::4], low[2::4], low[3::4]
    lower = np.maximum(np.maximum(second, third), fourth)
    columns = np.maximum(first, lower)
    largest: NDArray[Any] = np.maximum(lower[:, ::4], columns[:, 1::4])
    for column in (2, 3):
        largest = np.maximum(largest, columns[:, column::4])
    return largest

"""Kinds of photos: a tree that parts them by what they show.

An image is ranked among the photos of its own kind, told by traits that the image itself shows
(`masksim.traits`): noisy photos resemble generators more often than smooth ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from masksim.errors import ModelError
from masksim.traits import TRAITS

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Strata:
    """How photos are parted by what they show, from the coarsest to the finest.

    The photos are parted by one trait after another, each part for itself. A cut is made only if
    every part stays large enough, in photos and in sources; otherwise the photos stay together. So
    every photo and every image lies in exactly one stratum.

    Attributes
    ----------
    bands
        (trait, bands): into how many bands of as many photos each a part is cut, or the cuts
        themselves. A photo lies in band k if k of the cuts are at most its value; a trait that is
        not known (NaN) lies in the last.
    photos, sources
        Fewest photos, and sources of them, of a stratum.
    """

    bands: tuple[tuple[str, int | tuple[float, ...]], ...] = ()
    photos: int = 300
    sources: int = 20

    def __post_init__(self) -> None:
        for trait, cuts in self.bands:
            if trait not in TRAITS:
                raise ModelError(
                    f"strata of an unknown trait {trait!r}; known: {', '.join(TRAITS)}",
                    code="model_invalid",
                )
            if isinstance(cuts, int):
                if not 2 <= cuts <= 100:
                    raise ModelError(f"{trait} in {cuts} bands", code="model_invalid")
            elif not cuts or list(cuts) != sorted(set(cuts)) or not np.isfinite(cuts).all():
                raise ModelError(
                    f"the cuts of {trait} must ascend, got {cuts}", code="model_invalid"
                )
        if self.photos < 1 or self.sources < 1:
            raise ModelError("a stratum needs at least one photo", code="model_invalid")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Strata:
        """Make it of plain values, as a detector file or a configuration holds them.

        Raises
        ------
        ModelError
            They are not what `to_dict` gives.
        """
        try:
            bands = tuple(
                (
                    str(trait),
                    cuts if isinstance(cuts, int) else tuple(float(cut) for cut in cuts),
                )
                for trait, cuts in values["bands"]
            )
            photos, sources = values["photos"], values["sources"]
            if set(values) != {"bands", "photos", "sources"} or {type(photos), type(sources)} != {
                int
            }:
                raise ValueError("its keys are bands, photos and sources")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"invalid strata: {error}", code="model_invalid") from error
        return cls(bands, photos, sources)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "bands": [
                [trait, cuts if isinstance(cuts, int) else list(cuts)] for trait, cuts in self.bands
            ],
            "photos": self.photos,
            "sources": self.sources,
        }


@dataclass(frozen=True, eq=False)
class Node:
    """A part of the photos: a stratum, or cut into further parts by a trait.

    Attributes
    ----------
    words
        Which photos those are, with the numbers between the parts.
    kind
        The same as a person would say it: ``"large photos with little noise"``.
    members
        int (m,): their rows.
    trait, cuts, parts
        Of a part that is cut: by which trait, where, and the parts in the order of the trait. Part
        k is of values that k of the cuts are at most; the last one is also of those not known.
        Empty for a stratum.
    """

    words: str
    kind: str
    members: NDArray[np.int64]
    trait: str = ""
    cuts: tuple[float, ...] = ()
    parts: tuple[Node, ...] = ()

    def find(self, traits: NDArray[np.float64]) -> Node:
        """Return the stratum of an image (T,)."""
        node = self
        while node.parts:
            node = node.parts[_places(traits, node.trait, node.cuts)]
        return node

    def leaves(self) -> list[Node]:
        """List the strata."""
        return [leaf for part in self.parts for leaf in part.leaves()] or [self]


def _places(traits: NDArray[np.float64], trait: str, cuts: tuple[float, ...]) -> Any:
    # NaN is sorted to the end.
    return np.searchsorted(cuts, traits[..., TRAITS.index(trait)], side="right")


_Step: TypeAlias = "tuple[str, tuple[float, ...], int, bool]"
"""A trait, its cuts, which part between them, and whether the parts have as many photos each."""


def grow(
    strata: Strata,
    traits: NDArray[np.float64],
    sources: NDArray[Any],
    complete: NDArray[np.bool_],
    members: NDArray[np.int64],
    path: tuple[_Step, ...] = (),
    first: int = 0,
) -> Node:
    """Part some of the photos by the traits from the `first` on; `path`: how they were parted."""
    words = ", ".join(_band(*step) for step in path) or "all"
    kind = _kind(path)
    for k in range(first, len(strata.bands)):
        trait, cuts = strata.bands[k]
        if ranked := isinstance(cuts, int):
            values = traits[members, TRAITS.index(trait)]
            values = values[~np.isnan(values)]
            if not len(values):
                continue
            shares = np.arange(1, cuts) / cuts
            cuts = tuple(np.unique(np.quantile(values, shares)).tolist())
        place = _places(traits[members], trait, cuts)
        parts = [members[place == band] for band in range(len(cuts) + 1)]
        usable = [part[complete[part]] for part in parts]
        if all(
            len(part) >= strata.photos and len(np.unique(sources[part])) >= strata.sources
            for part in usable
        ):
            further = tuple(
                grow(strata, traits, sources, complete, part, (*path, step), k + 1)
                for part, step in zip(
                    parts, ((trait, cuts, band, ranked) for band in range(len(parts))), strict=True
                )
            )
            return Node(words, kind, members, trait, cuts, further)
    return Node(words, kind, members)


_COMPRESSED = (
    "without visible compression",
    "saved as JPEG of high quality",
    "saved as JPEG of middle quality",
    "saved as JPEG of low quality",
    "saved as WebP, AVIF or HEIC",
)
_USUAL_BANDS = (0.5, 1.5, 2.5, 3.5)
_NOISE = {2: ("with less noise", "with more noise"),
          3: ("with little noise", "with middling noise", "with much noise")}  # fmt: skip

# What photos with the lowest values of a trait are called, those between, and those with the
# highest; a photo of which the trait is not known is among the last.
_ADJECTIVES = {
    "side": ("small", "middle-sized", "large"),
    "chroma": ("pale", "moderately colourful", "colourful"),
    "brightness": ("dark", "moderately bright", "bright"),
}
_PHRASES = {
    "energy": ("with little noise", "with middling noise", "with much noise"),
    "sharpness": ("with little fine detail", "with some fine detail", "with much fine detail"),
    "flat": ("with few flat parts", "with some flat parts", "with many flat parts"),
    "quality": ("of low JPEG quality", "of middle JPEG quality", "of high or no JPEG quality"),
    "distance": ("of usual texture", "of less usual texture", "of unusual texture"),
    "band": ("hardly compressed", "compressed", "compressed most, or in a modern format"),
}


def _band(trait: str, cuts: tuple[float, ...], k: int, ranked: bool) -> str:
    """Say which photos lie in band k, with numbers where the cuts have any to tell."""
    if trait == "band" and cuts == _USUAL_BANDS:
        return _COMPRESSED[k]
    if trait == "energy" and ranked and len(cuts) + 1 in _NOISE:
        return _NOISE[len(cuts) + 1][k]
    name, unit = ("shorter side", " pixels") if trait == "side" else (trait, "")
    ends = [f"{cut:.4g}" if trait == "side" else f"{cut:.3g}" for cut in cuts]
    if k == 0:
        return f"{name} below {ends[0]}{unit}"
    if k == len(cuts):
        return f"{name} {ends[-1]}{unit} or more"
    return f"{name} {ends[k - 1]} to {ends[k]}{unit}"


def _kind(path: tuple[_Step, ...]) -> str:
    """Name photos as a person would, without numbers."""
    before, after = [], []
    for trait, cuts, k, _ in path:
        place = 0 if k == 0 else 2 if k == len(cuts) else 1
        if trait in _ADJECTIVES:
            before.append(_ADJECTIVES[trait][place])
        elif trait == "band" and cuts == _USUAL_BANDS:
            after.append(_COMPRESSED[k])
        else:
            after.append(_PHRASES[trait][place])
    return " ".join(filter(None, (", ".join(before), "photos", " and ".join(after))))

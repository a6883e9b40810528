"""Features of images that travel with a detector, so that generators can be enrolled offline.

To enroll a generator one needs real photos, to fit its head against and to measure its rates, and
images of the other generators, which the new head must score, too. The images themselves cannot be
shipped; their standardised features can. They are rounded to whole steps of one deviation and
deflated, to about a quarter of a byte a feature. Rounding adds noise of variance step² / 12 to each
feature: it widens the distribution of scores by a few per cent, which errs on the safe side, and
`masksim.training.heads.cosines` takes it out of the norm.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim.augment import rng_for
from masksim.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = ("codes", "histories", "history_names", "rows", "shape", "sources", "step")
_MAX_VALUES = 2**31


@dataclass(frozen=True, eq=False)
class ReferencePhotos:
    """Standardised features of real photos, or of the known generators' images.

    Attributes
    ----------
    features
        float32 (m, C, R, S), in deviations of real photos, see `masksim.model.standardise`.
    step
        They were rounded to multiples of this, in deviations; 0 if they were not.
    rows
        int64 (m,): the row of each in the detector's ``real_similarities`` (of synthetic images:
        ``own_similarities``); -1 for none.
    sources
        int64 (m,): photos with the same number come from the same source.
    histories
        str (m,): see `masksim.data.processing.View`.
    """

    features: NDArray[np.float32] = field(repr=False)
    step: float
    rows: NDArray[np.int64]
    sources: NDArray[np.int64]
    histories: NDArray[np.str_]

    @property
    def noise(self) -> float:
        """Variance that rounding adds to a feature, in deviations²."""
        return self.step**2 / 12

    def joined(self, other: ReferencePhotos) -> ReferencePhotos:
        """Put others behind these, as images of other sources; the step stays that of these."""
        offset = int(self.sources.max()) + 1
        return ReferencePhotos(
            np.concatenate([self.features, other.features]),
            self.step,
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.sources, other.sources + offset]),
            np.concatenate([self.histories, other.histories]),
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for the detector file; `from_arrays` inverts it up to rounding."""
        codes = np.rint(self.features / self.step).astype(np.int8)
        names, history = np.unique(self.histories, return_inverse=True)
        # Noise has no repeats to look for: Huffman's code alone is smaller, and faster.
        deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        packed = deflate.compress(codes.tobytes()) + deflate.flush()
        return {
            "codes": np.frombuffer(packed, dtype=np.uint8),
            "shape": np.array(codes.shape, dtype=np.int64),
            "step": np.array(self.step, dtype=np.float32),
            "rows": self.rows.astype(np.int64),
            "sources": self.sources.astype(np.int64),
            "histories": history.astype(np.uint8),
            "history_names": np.frombuffer("\n".join(names).encode(), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ReferencePhotos:
        """Read what `to_arrays` wrote.

        Raises
        ------
        ModelError
            Code ``model_invalid``: something is missing, unknown or of the wrong size.
        """
        if sorted(arrays) != list(_NAMES):
            raise ModelError(
                f"reference photos have the arrays {sorted(arrays)}, expected {list(_NAMES)}",
                code="model_invalid",
            )
        try:
            shape = tuple(int(n) for n in arrays["shape"])
            step = float(arrays["step"])
            names = bytes(arrays["history_names"]).decode().split("\n")
            count = int(np.prod(shape, dtype=object))
            if len(shape) != 4 or min(shape) < 1 or count > _MAX_VALUES or not 0 < step < 100:
                raise ValueError(f"shape {shape}, step {step}")
            # A few bytes can unpack to any size: never more than was announced.
            codes = zlib.decompressobj().decompress(bytes(arrays["codes"]), count + 1)
            if len(codes) != count:
                raise ValueError(f"{len(codes)} values for the shape {shape}")
            features = np.frombuffer(codes, np.int8).astype(np.float32).reshape(shape)
            features *= np.float32(step)
            found = cls(
                features, step, arrays["rows"].astype(np.int64),
                arrays["sources"].astype(np.int64), np.array(names)[arrays["histories"]],
            )  # fmt: skip
            if any(len(part) != shape[0] for part in (found.rows, found.sources, found.histories)):
                raise ValueError("the photos' rows, sources and histories differ in number")
        except (ValueError, IndexError, TypeError, zlib.error) as error:
            raise ModelError(f"invalid reference photos: {error}", code="model_invalid") from error
        return found


def pack(photos: ReferencePhotos, images: ReferencePhotos | None) -> dict[str, NDArray[Any]]:
    """Arrays for the detector file of real photos and of the known generators' images."""
    parts = {"photos": photos} if images is None else {"photos": photos, "images": images}
    return {
        f"{kind}.{name}": values
        for kind, part in parts.items()
        for name, values in part.to_arrays().items()
    }


def unpack(
    arrays: Mapping[str, NDArray[Any]],
) -> tuple[ReferencePhotos, ReferencePhotos | None]:
    """Read what `pack` wrote.

    Raises
    ------
    ModelError
        See `ReferencePhotos.from_arrays`.
    """
    parts: dict[str, dict[str, NDArray[Any]]] = {"photos": {}}
    for name, values in arrays.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = values
    if unknown := sorted(set(parts) - {"photos", "images"}):
        raise ModelError(f"unknown reference images: {unknown}", code="model_invalid")
    images = parts.get("images")
    return (
        ReferencePhotos.from_arrays(parts["photos"]),
        None if images is None else ReferencePhotos.from_arrays(images),
    )


def spread_over_sources(sources: Sequence[Any], keys: Sequence[str], count: int) -> list[int]:
    """Choose up to `count` items, as evenly over their sources as these allow.

    Parameters
    ----------
    sources
        (n,) hashable: where each item comes from.
    keys
        (n,) content hashes: which items of a large source are taken depends on them alone.
    count
        At most so many: of more sources, one item of so many of them.

    Returns
    -------
    list of int
        Positions, ascending.
    """
    order = sorted(range(len(sources)), key=lambda i: (rng_for("photo", keys[i]).random(), keys[i]))
    taken: Counter[Any] = Counter()
    turns = []  # the first of each source, then the second of each
    for i in order:
        turns.append(taken[sources[i]])
        taken[sources[i]] += 1
    in_turn = sorted(range(len(order)), key=turns.__getitem__)
    return sorted(order[k] for k in in_turn[:count])

"""Which images are for training, and which of other sources for validation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from masksim.data.manifest import Manifest, Row, group_of
from masksim.errors import DataError, counted
from masksim.original.config import OriginalConfig

ANY = "any"
"""Name of the one generator of a multi-class detector."""


def _order(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} validation {key}".encode()).hexdigest()


def held_out_groups(keys: Sequence[str], share: float, seed: int) -> set[str]:
    """Choose whole groups with about a share of the images, at least one and never all.

    Parameters
    ----------
    keys
        Group of each image.
    share
        In (0, 1).
    seed
        Of the choice.
    """
    sizes = Counter(keys)
    chosen: set[str] = set()
    count = 0
    for group in sorted(sizes, key=lambda group: _order(seed, group)):
        if len(chosen) < len(sizes) - 1 and (
            not chosen or count + sizes[group] <= share * len(keys)
        ):
            chosen.add(group)
            count += sizes[group]
    return chosen


def _held_out(indices: Sequence[int], rows: Sequence[Row], share: float, seed: int) -> set[int]:
    """Choose a share of images, at least one, by their content."""
    count = max(1, round(share * len(indices)))
    return set(sorted(indices, key=lambda i: _order(seed, rows[i].key))[:count])


def _held_out_reals(
    indices: Sequence[int], rows: Sequence[Row], share: float, seed: int
) -> tuple[set[int], str]:
    """Choose whole sources with about a share of the photos; of one source, single photos."""
    groups = [group_of(rows[i]) for i in indices]
    if len(set(groups)) < 2:
        return _held_out(indices, rows, share, seed), "photos of the only source"
    chosen = held_out_groups(groups, share, seed)
    held = {i for i, group in zip(indices, groups, strict=True) if group in chosen}
    return held, "sources of the train split"


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one detector, by class and use: indices into the run's rows."""

    name: str
    train_real: tuple[int, ...]
    train_synthetic: tuple[int, ...]
    valid_real: tuple[int, ...]
    valid_synthetic: tuple[int, ...]

    @property
    def images(self) -> tuple[int, ...]:
        """All of them."""
        return self.train_real + self.train_synthetic + self.valid_real + self.valid_synthetic


def usable_rows(manifest: Manifest, window: int) -> tuple[list[Row], Counter[str]]:
    """Rows of training and validation whose image is known or seen to be large enough."""
    from PIL import Image

    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for row in sorted(manifest.rows, key=lambda row: row.path):
        if row.split == "test":
            continue
        width, height = row.width, row.height
        if not (width and height):
            try:
                with Image.open(manifest.file(row)) as image:
                    width, height = image.size
            except Exception:  # whatever is wrong with it, `load_image` will say when it is drawn
                width = height = window
        if min(width, height) < window:
            skipped["too_small"] += 1
            continue
        rows.append(row)
    return rows, skipped


def _generators(rows: Sequence[Row], config: OriginalConfig) -> list[str]:
    """Names of the generators that have enough training images."""
    counts = Counter(row.generator for row in rows if row.split == "train" and not row.is_real)
    for name in config.generators:
        if counts[name] < config.smallest_class:
            raise DataError(
                f"generator {name!r} has {counts[name]} training images of at least "
                f"{config.window} pixels; smallest_class asks for {config.smallest_class}",
                code="manifest_invalid",
            )
    if config.generators:
        return list(dict.fromkeys(config.generators))
    names = [name for name in sorted(counts) if counts[name] >= config.smallest_class]
    if not names:
        raise DataError(
            f"no generator has {config.smallest_class} training images of at least "
            f"{config.window} pixels; found {counted(dict(sorted(counts.items())))}",
            code="manifest_invalid",
        )
    return names


def parts_of(rows: Sequence[Row], config: OriginalConfig) -> tuple[list[Part], str]:
    """Divide the images among detectors, training and validation.

    Returns
    -------
    parts
        One a detector, with the same photos.
    how
        The photos for validation were chosen, in words.

    Raises
    ------
    DataError
        Too few images of a class.
    """
    real = [i for i, row in enumerate(rows) if row.is_real and row.split == "train"]
    if len(real) < 2:
        raise DataError(
            f"training needs real photos of at least {config.window} pixels in split train; "
            f"there are {len(real)}",
            code="manifest_invalid",
        )
    names = _generators(rows, config)
    kept = {i for i, row in enumerate(rows) if row.is_real and row.split == "val"}
    how = "photos of the val split"
    if not kept:
        kept, how = _held_out_reals(real, rows, config.validation, config.seed)
    parts = []
    for label, members in [(ANY, names)] if config.multi_class else [(n, [n]) for n in names]:
        fake = [
            i for i, row in enumerate(rows) if row.split == "train" and row.generator in members
        ]
        held = _held_out(fake, rows, config.validation, config.seed)
        parts.append(
            Part(
                label,
                tuple(i for i in real if i not in kept),
                tuple(i for i in fake if i not in held),
                tuple(sorted(kept)),
                tuple(sorted(held)),
            )
        )
    return parts, how

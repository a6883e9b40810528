"""The leak probe: how well a file alone tells real from synthetic, without its content.

What such a probe finds (a format, a size, traces of an earlier compression), a detector would learn
instead of the generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from masksim.augment import reencode
from masksim.data.manifest import Row, group_of
from masksim.errors import extra_missing
from masksim.image import ImageFacts
from masksim.metrics import auroc, bootstrap
from masksim.preprocess import LUMA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Pixels: TypeAlias = NDArray[np.uint8]

PROBE_WINDOW = 256
"""Side of the centre window that `compression_features` is asked for, in pixels."""

LEAK = 0.6
"""AUROC of a probe above which a warning is due."""


@dataclass(frozen=True)
class Probe:
    """How well one kind of evidence tells real from synthetic, by cross-validation.

    `auroc` with its 95 % bootstrap interval over groups; `groups` is what was kept together
    (``"source"``, or ``"group"`` where a class has too few sources). `auroc` is None with a
    `reason` where it cannot be measured. `clues` are the features that tell most.
    """

    name: str
    auroc: float | None
    low: float | None = None
    high: float | None = None
    images: int = 0
    folds: int = 0
    groups: str = ""
    clues: tuple[str, ...] = ()
    reason: str = ""


# ---------------------------------------------------------------- features


METADATA = (
    "JPEG", "PNG", "WEBP", "other format", "log width", "log height", "log aspect", "sides / 8",
    "JPEG quality", "4:2:0", "4:4:4", "log bytes a pixel", "ICC profile", "rotated", "mode RGB",
)  # fmt: skip
_GHOSTS = (50, 60, 70, 80, 85, 90, 95)
_ZIGZAG = ((0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3))
COMPRESSION = (
    *(f"row edges at phase {k}" for k in range(8)),
    *(f"column edges at phase {k}" for k in range(8)),
    *(f"change by JPEG {q}" for q in _GHOSTS),
    *(f"comb of DCT {v},{u}" for v, u in _ZIGZAG),
    *(f"empty bins of DCT {v},{u}" for v, u in _ZIGZAG),
)


def metadata_features(facts: ImageFacts, n_bytes: int) -> list[float]:
    """Return what is known of a file without looking at a pixel, in the order of `METADATA`.

    Parameters
    ----------
    facts
        ``ImageFacts`` of the file.
    n_bytes
        Its length.
    """
    width, height = facts.width, facts.height
    known = ("JPEG", "PNG", "WEBP")
    quality = -1.0 if facts.jpeg_quality is None else float(facts.jpeg_quality)
    return [
        *(float(facts.format == name) for name in known),
        float(facts.format not in known),
        math.log(width),
        math.log(height),
        math.log(width / height),
        float(width % 8 == 0) + float(height % 8 == 0),
        quality,
        float(facts.jpeg_subsampling == "4:2:0"),
        float(facts.jpeg_subsampling == "4:4:4"),
        math.log(max(1, n_bytes) / (width * height)),
        float(facts.icc_profile),
        float(facts.orientation != 1),
        float(facts.mode == "RGB"),
    ]


def compression_features(pixels: Pixels) -> list[float]:
    """Return traces of earlier compression, in the order of `COMPRESSION`.

    Parameters
    ----------
    pixels
        8-bit sRGB ``(H, W, 3)`` of at least 16 x 16, cut at a multiple of 8 from the corner of
        the image so that its block grid is kept.

    Returns
    -------
    list of float
        Strength of edges at each phase of the 8-pixel grid, against their mean; how little each
        JPEG quality changes the image, against the other qualities (its ghost); how comb-like
        the histograms of low DCT coefficients are. Content is divided out where it can be.
    """
    from scipy.fft import dctn  # comes with scikit-learn

    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    pixels = pixels[:height, :width]
    y = pixels.astype(np.float64) @ LUMA
    features: list[float] = []
    for axis in (0, 1):
        lines = y if axis == 0 else y.T
        # A step across a block border stands out against the slopes on either side of it.
        step = np.abs(lines[3:] - 3 * lines[2:-1] + 3 * lines[1:-2] - lines[:-3])
        strength = np.log(np.minimum(step, 60.0) + 1.0).mean(axis=1)
        # Row i of `step` straddles the border between lines i + 1 and i + 2.
        phase = (np.arange(strength.size) + 2) % 8
        means = np.array([strength[phase == k].mean() for k in range(8)])
        features += list(means - means.mean())
    changes = []
    for quality in _GHOSTS:
        again = reencode(np.ascontiguousarray(pixels), "JPEG", quality, "4:2:0")
        changes.append(math.log(float(np.mean((again.astype(float) - pixels) ** 2)) + 1e-3))
    slope = np.linspace(changes[0], changes[-1], len(changes))
    features += list(np.array(changes) - slope)
    blocks = (y - 128).reshape(height // 8, 8, width // 8, 8)
    coefficients = dctn(blocks, axes=(1, 3), norm="ortho")
    combs, holes = [], []
    for v, u in _ZIGZAG:
        values = np.clip(np.rint(coefficients[:, v, :, u]).astype(int), -64, 63) + 64
        histogram = np.bincount(values.ravel(), minlength=128)[1:127].astype(float)
        power = np.abs(np.fft.rfft(histogram - histogram.mean())) ** 2
        # A comb puts energy at high frequencies; a smooth histogram has almost none there.
        combs.append(math.log((power[6:].max() + 1.0) / (power[1:].sum() + 63.0)))
        middle = histogram[48:79]
        holes.append(float(np.mean(middle == 0)) if histogram.sum() else 0.0)
    return [*features, *combs, *holes]


# ---------------------------------------------------------------- the leak probe


def need_sklearn() -> None:
    """Raise UsageError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise extra_missing("the leak probe", "scikit-learn", "data") from error


def _fold_groups(rows: Sequence[Row], folds: int) -> tuple[list[str], str]:
    """Return what an image must stay with in the folds: its source, where there are enough."""
    kinds = {"source": [row.source for row in rows], "group": [group_of(row) for row in rows]}
    for kind, units in kinds.items():
        per_class = [
            {unit for row, unit in zip(rows, units, strict=True) if row.is_real is real}
            for real in (True, False)
        ]
        if min(map(len, per_class)) >= folds:
            return units, kind
    return [row.path for row in rows], "image"


def leak_probe(
    name: str,
    features: Floats,
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    folds: int = 5,
    rounds: int = 500,
    seed: int = 0,
) -> Probe:
    """Measure how well `features` tell real from synthetic images of unseen groups.

    Parameters
    ----------
    name
        Of the probe.
    features
        ``(n, k)``.
    rows
        n rows.
    names
        k names of the features.
    folds
        Of the cross-validation, grouped by source (by group, then by image, where a class has
        fewer sources than folds).
    rounds
        Of the bootstrap over groups.
    seed
        Of the classifier, the folds and the bootstrap.

    Returns
    -------
    Probe
    """
    need_sklearn()
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([not row.is_real for row in rows], dtype=int)
    least = int(min(labels.sum(), len(labels) - labels.sum())) if len(labels) else 0
    if least < 20:
        return Probe(name, None, images=len(rows), reason=f"only {least} images of one class")
    folds = min(folds, least)
    groups, kind = _fold_groups(rows, folds)
    unit_of = np.unique(groups, return_inverse=True)[1]
    scores = np.full(len(rows), np.nan)
    importance = np.zeros(features.shape[1])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(features, labels, unit_of):
        if len(set(labels[train])) < 2 or not len(test):
            continue
        forest = RandomForestClassifier(
            100, min_samples_leaf=3, class_weight="balanced", random_state=seed
        )
        forest.fit(features[train], labels[train])
        scores[test] = forest.predict_proba(features[test])[:, 1]
        importance += forest.feature_importances_
    scored = ~np.isnan(scores)
    if len(set(labels[scored])) < 2:
        return Probe(name, None, images=len(rows), reason="the folds hold one class only")
    found = bootstrap(
        auroc, scores[scored], labels[scored], groups=unit_of[scored], samples=rounds, seed=seed
    )
    best = np.argsort(-importance, kind="stable")[:3]
    return Probe(
        name=name,
        auroc=round(found.value, 4),
        low=round(found.low, 4),
        high=round(found.high, 4),
        images=int(scored.sum()),
        folds=folds,
        groups=kind,
        clues=tuple(names[k] for k in best),
    )

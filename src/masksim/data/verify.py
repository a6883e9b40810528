"""Checks of a prepared set: is it what its manifest says, does it give the answer away.

`verify` reads every image once and reports what is missing, changed, undecodable or too small,
duplicates and near duplicates across splits, class imbalance, and the leak probe: how well real and
synthetic images can be told apart by the file alone (format, size, quality) or by the traces of
earlier compression. What such a probe finds, a detector would learn instead of the generator.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from masksim.augment import reencode
from masksim.data.manifest import SPLITS, Manifest, Row, group_of
from masksim.errors import ImageError, MasksimError, UsageError, extra_missing
from masksim.image import load_image
from masksim.preprocess import centre_window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Pixels: TypeAlias = NDArray[np.uint8]
    Hashes: TypeAlias = NDArray[np.uint64]

Tick = Callable[[int, int, int], None]  # (done, in all, with a finding)

PROBE_WINDOW = 256  # pixels: side of the centre window the compression probe looks at
LEAK = 0.6  # AUROC of a probe above which a warning is due


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    `level` is ``"error"`` (the set is not what the manifest says), ``"warning"`` (figures made
    with it may mislead) or ``"note"``. `path` is empty for findings about the set.
    """

    level: str
    code: str
    path: str
    message: str


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


@dataclass(frozen=True)
class VerifyReport:
    """Everything `verify` found. `ok` is False when there is an error or a warning."""

    images: int
    readable: int
    counts: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    probes: tuple[Probe, ...]

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return sum(finding.level == "warning" for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether there is neither."""
        return not self.errors and not self.warnings

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return {
            "ok": self.ok,
            "images": self.images,
            "readable": self.readable,
            "counts": self.counts,
            "errors": self.errors,
            "warnings": self.warnings,
            "by_code": dict(sorted(Counter(f.code for f in self.findings).items())),
            "findings": [asdict(finding) for finding in self.findings],
            "probes": [asdict(probe) for probe in self.probes],
        }


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


def metadata_features(facts: Any, n_bytes: int) -> list[float]:
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


def _dct_matrix() -> Floats:
    k, n = np.mgrid[0:8, 0:8]
    matrix = np.cos(np.pi * (2 * n + 1) * k / 16) * 0.5
    matrix[0] *= math.sqrt(0.5)
    return np.asarray(matrix, dtype=np.float64)


_DCT = _dct_matrix()


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
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    pixels = pixels[:height, :width]
    y = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
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
    blocks = (y - 128).reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3)
    coefficients = _DCT @ blocks @ _DCT.T
    combs, holes = [], []
    for v, u in _ZIGZAG:
        values = np.clip(np.rint(coefficients[..., v, u]).astype(int), -64, 63) + 64
        histogram = np.bincount(values.ravel(), minlength=128)[1:127].astype(float)
        power = np.abs(np.fft.rfft(histogram - histogram.mean())) ** 2
        # A comb puts energy at high frequencies; a smooth histogram has almost none there.
        combs.append(math.log((power[6:].max() + 1.0) / (power[1:].sum() + 63.0)))
        middle = histogram[48:79]
        holes.append(float(np.mean(middle == 0)) if histogram.sum() else 0.0)
    return [*features, *combs, *holes]


def perceptual_hash(pixels: Pixels) -> int:
    """Return the 64-bit perceptual hash (DCT) of 8-bit sRGB pixels ``(H, W, 3)``.

    Raises
    ------
    UsageError
        ImageHash is not installed.
    """
    from PIL import Image

    imagehash = _imagehash()
    image = Image.fromarray(pixels)
    # A cheap first reduction: the hash looks at 32 x 32 pixels only.
    factor = min(image.width, image.height) // 128
    if factor > 1:
        image = image.reduce(factor)
    bits = np.asarray(imagehash.phash(image).hash, dtype=np.uint8).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _imagehash() -> Any:
    try:
        import imagehash
    except ImportError as error:
        raise extra_missing("the search for near duplicates", "imagehash", "data") from error
    return imagehash


# ---------------------------------------------------------------- near duplicates


def _popcount(x: Hashes) -> NDArray[np.int64]:
    """Return the number of ones of 64-bit words."""
    one, two, four = (np.uint64(v) for v in (0x5555555555555555, 0x3333333333333333,
                                             0x0F0F0F0F0F0F0F0F))  # fmt: skip
    x = x - ((x >> np.uint64(1)) & one)
    x = (x & two) + ((x >> np.uint64(2)) & two)
    x = (x + (x >> np.uint64(4))) & four
    with np.errstate(over="ignore"):
        return ((x * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


def near_pairs(hashes: Sequence[int], distance: int = 6) -> list[tuple[int, int, int]]:
    """Return all pairs of 64-bit hashes at most `distance` bits apart, exactly.

    Two words that differ in at most d bits agree in one of d + 1 parts, so only words that share
    a part are compared: far from every pair with every other.

    Parameters
    ----------
    hashes
        64-bit numbers.
    distance
        0 to 15.

    Returns
    -------
    list of (i, j, distance)
        With i < j, sorted. Equal hashes are paired with their first only.

    Raises
    ------
    UsageError
        `distance` out of range.
    """
    if not 0 <= distance <= 15:
        raise UsageError(f"distance must be 0 to 15 bits, got {distance}")
    words = np.array(list(hashes), dtype=np.uint64)
    unique, first, inverse = np.unique(words, return_index=True, return_inverse=True)
    pairs = {
        (int(first[group]), i): 0
        for i, group in enumerate(inverse.ravel())
        if int(first[group]) != i
    }
    parts = distance + 1
    edges = [64 * k // parts for k in range(parts + 1)]
    for low, high in pairwise(edges):
        key = (unique >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(key, kind="stable")
        bounds = np.flatnonzero(np.diff(key[order])) + 1
        for members in np.split(order, bounds):
            for start in range(0, len(members) - 1, 512):
                block = members[start : start + 512]
                rest = members[start:]
                apart = _popcount(unique[block][:, None] ^ unique[rest][None, :])
                # Within the block each pair once; every later member against the whole block.
                later = np.arange(len(rest))[None, :] > np.arange(len(block))[:, None]
                for a, b in zip(*np.nonzero((apart <= distance) & later), strict=True):
                    i, j = sorted((int(first[block[a]]), int(first[rest[b]])))
                    pairs[i, j] = int(apart[a, b])
    return sorted((i, j, d) for (i, j), d in pairs.items())


# ---------------------------------------------------------------- the leak probe


def _sklearn() -> Any:
    try:
        import sklearn
    except ImportError as error:
        raise extra_missing("the leak probe", "scikit-learn", "data") from error
    return sklearn


def _fold_groups(rows: Sequence[Row], folds: int) -> tuple[list[str], str]:
    """Return what an image must stay with in the folds: its source, where there are enough."""
    sources: dict[bool, set[str]] = defaultdict(set)
    for row in rows:
        sources[row.is_real].add(row.source)
    if min(len(sources[True]), len(sources[False])) >= folds:
        return [row.source for row in rows], "source"
    units = [group_of(row) for row in rows]
    per_class: dict[bool, set[str]] = defaultdict(set)
    for row, unit in zip(rows, units, strict=True):
        per_class[row.is_real].add(unit)
    if min(len(per_class[True]), len(per_class[False])) >= folds:
        return units, "group"
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
    _sklearn()
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([not row.is_real for row in rows], dtype=int)
    least = int(min(labels.sum(), len(labels) - labels.sum())) if len(labels) else 0
    if least < 20:
        return Probe(name, None, images=len(rows), reason=f"only {least} images of one class")
    folds = min(folds, least)
    groups, kind = _fold_groups(rows, folds)
    units, unit_of = np.unique(groups, return_inverse=True)
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
    auroc = float(roc_auc_score(labels[scored], scores[scored]))
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero((unit_of == k) & scored) for k in range(len(units))]
    members = [m for m in members if len(m)]
    draws = []
    for _ in range(rounds):
        chosen = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        if len(set(labels[chosen])) == 2:
            draws.append(_auroc(labels[chosen], scores[chosen]))
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (0.0, 1.0)
    best = np.argsort(-importance, kind="stable")[:3]
    return Probe(
        name=name,
        auroc=round(auroc, 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        images=int(scored.sum()),
        folds=folds,
        groups=kind,
        clues=tuple(names[k] for k in best),
    )


def _auroc(labels: NDArray[Any], scores: Floats) -> float:
    """Area under the ROC curve by ranks, ties at half: the bootstrap calls it often."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(labels.sum())
    negative = len(labels) - positive
    total = float(ranks[labels == 1].sum())
    return (total - positive * (positive + 1) / 2) / (positive * negative)


# ---------------------------------------------------------------- one image


@dataclass(frozen=True)
class _Seen:
    """What reading one image gave: its hashes and features, or what is wrong."""

    findings: tuple[Finding, ...]
    sha256: str = ""
    phash: int | None = None
    metadata: tuple[float, ...] = ()
    compression: tuple[float, ...] = ()


def _git_blob(data: bytes) -> str:
    head = b"blob %d\0" % len(data)
    return hashlib.sha1(head + data, usedforsecurity=False).hexdigest()


def _look(row: Row, file: Path, window: int, near: bool, probe: bool) -> _Seen:
    def wrong(level: str, code: str, message: str) -> Finding:
        return Finding(level, code, row.path, message)

    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return _Seen((wrong("error", "missing", "the file is not there"),))
    except OSError as error:
        return _Seen((wrong("error", "unreadable", error.strerror or str(error)),))
    findings = []
    sha256 = hashlib.sha256(data).hexdigest()
    if row.sha256 and row.sha256 != sha256:
        text = f"sha256 is {sha256[:12]}…, the manifest says {row.sha256[:12]}…"
        findings.append(wrong("error", "changed", text))
    blob = row.extra.get("blob", "")
    if not row.sha256 and len(blob) == 40 and _git_blob(data) != blob:
        findings.append(wrong("error", "changed", "the bytes are not those of the listed blob"))
    try:
        loaded = load_image(data, name=row.path)
    except ImageError as error:
        findings.append(wrong("error", "undecodable", f"{error.code}: {error}"))
        return _Seen(tuple(findings), sha256)
    except MasksimError as error:
        findings.append(wrong("error", error.code, str(error)))
        return _Seen(tuple(findings), sha256)
    facts, pixels = loaded.facts, loaded.pixels
    if row.width and (row.width, row.height) != (facts.width, facts.height):
        text = f"{facts.width}x{facts.height}, the manifest says {row.width}x{row.height}"
        findings.append(wrong("error", "size_differs", text))
    if min(facts.width, facts.height) < window:
        text = f"{facts.width}x{facts.height}, the window is {window}"
        findings.append(wrong("warning", "too_small", text))
    compression: tuple[float, ...] = ()
    side = min(PROBE_WINDOW, min(facts.width, facts.height) // 8 * 8)
    if probe and side >= 32:
        y, x = centre_window(facts.height, facts.width, side)
        cut = np.ascontiguousarray(pixels[y : y + side, x : x + side])
        compression = tuple(compression_features(cut))
    return _Seen(
        tuple(findings),
        sha256,
        perceptual_hash(pixels) if near else None,
        tuple(metadata_features(facts, len(data))) if probe else (),
        compression,
    )


# ---------------------------------------------------------------- the whole set


def verify(
    manifest: Manifest,
    *,
    window: int = 512,
    near_distance: int | None = 6,
    probe: bool = True,
    imbalance: float = 3.0,
    workers: int | None = None,
    progress: Tick | None = None,
) -> VerifyReport:
    """Check every image of a manifest, and the set as a whole.

    Parameters
    ----------
    manifest
        From ``manifest.read_manifest``.
    window
        Images with a side below this many pixels are reported.
    near_distance
        Bits by which perceptual hashes of near duplicates may differ; None: do not look for them.
    probe
        Whether to run the leak probe (needs scikit-learn).
    imbalance
        A warning is due when real and synthetic images of a split, or two generators of it,
        differ in number by more than this factor.
    workers
        Threads that read images; default: one a core.
    progress
        Called with (done, in all, with a finding).

    Returns
    -------
    VerifyReport
        Findings: ``missing``, ``changed``, ``undecodable``, ``size_differs``, ``too_small``,
        ``duplicate_across_splits``, ``duplicate``, ``near_duplicate_across_splits``,
        ``near_duplicate``, ``label_conflict``, ``group_across_splits``, ``imbalance``,
        ``one_class``, ``leak``.

    Raises
    ------
    UsageError
        ImageHash or scikit-learn is needed and not installed.
    """
    rows = manifest.rows
    if near_distance is not None:
        _imagehash()
    if probe:
        _sklearn()
    workers = workers or os.cpu_count() or 1
    seen: dict[int, _Seen] = {}
    running: dict[Future[_Seen], int] = {}
    bad = 0

    def settle(limit: int) -> None:
        nonlocal bad
        while len(running) > limit:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                seen[index] = future.result()
                bad += bool(seen[index].findings)
                if progress is not None:
                    progress(len(seen), len(rows), bad)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for index, row in enumerate(rows):
            settle(2 * workers)
            future = pool.submit(
                _look, row, manifest.file(row), window, near_distance is not None, probe
            )
            running[future] = index
        settle(0)
    ordered = [seen[index] for index in range(len(rows))]
    findings = [finding for look in ordered for finding in look.findings]
    findings += _duplicates(rows, ordered)
    if near_distance is not None:
        findings += _near_duplicates(rows, ordered, near_distance)
    findings += _groups_apart(rows)
    findings += _imbalances(manifest, imbalance)
    probes: list[Probe] = []
    if probe:
        probes = _probes(rows, ordered)
        findings += [_leak(result) for result in probes if (result.auroc or 0.0) > LEAK]
    return VerifyReport(
        images=len(rows),
        readable=sum(bool(look.sha256) and not _undecoded(look) for look in ordered),
        counts=manifest.counts(),
        findings=tuple(findings),
        probes=tuple(probes),
    )


def _undecoded(look: _Seen) -> bool:
    return any(f.code in ("undecodable", "missing", "unreadable") for f in look.findings)


def _leak(probe: Probe) -> Finding:
    text = (
        f"{probe.name} alone tells real from synthetic with AUROC {probe.auroc:.2f} "
        f"[{probe.low:.2f}, {probe.high:.2f}] (by {', '.join(probe.clues)})"
    )
    if probe.low is not None and probe.low <= 0.5:
        text += "; the interval reaches 0.5: too few images to be sure"
    return Finding("warning", "leak", "", text)


def _duplicates(rows: Sequence[Row], looks: Sequence[_Seen]) -> list[Finding]:
    by_hash: dict[str, list[Row]] = defaultdict(list)
    for row, look in zip(rows, looks, strict=True):
        if look.sha256:
            by_hash[look.sha256].append(row)
    findings = []
    for same in by_hash.values():
        if len(same) < 2:
            continue
        first, *others = sorted(same, key=lambda row: row.path)
        for other in others:
            if other.is_real != first.is_real:
                text = f"the same file as {first.path}, which is {first.generator}"
                findings.append(Finding("error", "label_conflict", other.path, text))
            elif other.split != first.split:
                text = f"the same file as {first.path} ({first.split} and {other.split})"
                findings.append(Finding("error", "duplicate_across_splits", other.path, text))
            else:
                text = f"the same file as {first.path}"
                findings.append(Finding("note", "duplicate", other.path, text))
    return sorted(findings, key=lambda finding: finding.path)


def _near_duplicates(rows: Sequence[Row], looks: Sequence[_Seen], distance: int) -> list[Finding]:
    """Report each image that looks like an earlier one, training images being the earliest."""

    def rank(i: int) -> tuple[int, str]:
        return SPLITS.index(rows[i].split), rows[i].path

    members: dict[int, list[int]] = defaultdict(list)
    for i, look in enumerate(looks):
        if look.phash is not None:
            members[look.phash].append(i)
    for same in members.values():
        same.sort(key=rank)
    hashes = list(members)
    near: dict[int, list[tuple[int, int]]] = {value: [(0, value)] for value in hashes}
    for a, b, apart in near_pairs(hashes, distance):
        near[hashes[a]].append((apart, hashes[b]))
        near[hashes[b]].append((apart, hashes[a]))
    findings = []
    for value, same in members.items():
        for j in same:
            partners = []
            for apart, other in near[value]:
                # Identical files are reported as such; of the others the earliest will do.
                earlier = (i for i in members[other] if looks[i].sha256 != looks[j].sha256)
                i = next(earlier, j)
                if rank(i) < rank(j):
                    partners.append((rows[i].split == rows[j].split, apart, rank(i), i))
            if not partners:
                continue
            inside, apart, _, i = min(partners)
            text = f"looks like {rows[i].path} ({apart} bits apart)"
            if not inside:
                text += f": {rows[i].split} and {rows[j].split}"
            level = "note" if inside else "warning"
            code = "near_duplicate" if inside else "near_duplicate_across_splits"
            findings.append(Finding(level, code, rows[j].path, text))
    return sorted(findings, key=lambda finding: (finding.level == "note", finding.path))


def _groups_apart(rows: Sequence[Row]) -> list[Finding]:
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[group_of(row)].add(row.split)
    return [
        Finding("warning", "group_across_splits", "", f"{group} is in {', '.join(sorted(found))}")
        for group, found in sorted(splits.items())
        if len(found) > 1
    ]


def _imbalances(manifest: Manifest, factor: float) -> list[Finding]:
    findings = []
    for split, counts in manifest.counts().items():
        synthetic = {name: n for name, n in counts.items() if name != "real"}
        real, made = counts.get("real", 0), sum(synthetic.values())
        if not real or not made:
            text = f"{split}: {real} real and {made} synthetic images"
            findings.append(Finding("note", "one_class", "", text))
        elif max(real, made) > factor * min(real, made):
            text = f"{split}: {real} real and {made} synthetic images"
            findings.append(Finding("warning", "imbalance", "", text))
        if synthetic and max(synthetic.values()) > factor * min(synthetic.values()):
            most = max(synthetic, key=lambda name: synthetic[name])
            least = min(synthetic, key=lambda name: synthetic[name])
            text = f"{split}: {synthetic[most]} images of {most}, {synthetic[least]} of {least}"
            findings.append(Finding("warning", "imbalance", "", text))
    return findings


def _probes(rows: Sequence[Row], looks: Sequence[_Seen]) -> list[Probe]:
    results = []
    for name, names in (("metadata", METADATA), ("compression history", COMPRESSION)):
        short = "metadata" if name == "metadata" else "compression"
        pairs = [
            (row, getattr(look, short))
            for row, look in zip(rows, looks, strict=True)
            if getattr(look, short)
        ]
        if not pairs:
            results.append(Probe(name, None, reason="no image could be read"))
            continue
        features = np.array([values for _, values in pairs], dtype=np.float64)
        results.append(leak_probe(name, features, [row for row, _ in pairs], names))
    return results

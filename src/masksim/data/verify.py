"""Checks of a prepared set: is it what its manifest says, does it give the answer away.

`verify` reads every image once and reports what is missing, changed, undecodable or too small,
duplicates and near duplicates across splits, class imbalance, and the leak probe: how well real and
synthetic images can be told apart by the file alone (format, size, quality) or by the traces of
earlier compression. What such a probe finds, a detector would learn instead of the generator.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from masksim.config import Progress, cores
from masksim.data.leak import (
    COMPRESSION,
    LEAK,
    METADATA,
    PROBE_WINDOW,
    Probe,
    compression_features,
    leak_probe,
    metadata_features,
    need_sklearn,
)
from masksim.data.manifest import SPLITS, Manifest, Row, group_of
from masksim.data.threads import in_threads
from masksim.errors import ImageError, MasksimError, UsageError, extra_missing
from masksim.image import load_image
from masksim.preprocess import centre_window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]


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


# ---------------------------------------------------------------- near duplicates


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


_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
"""Number of ones of each byte."""


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
                unlike = unique[block][:, None] ^ unique[rest][None, :]
                apart = _ONES[unlike[..., None].view(np.uint8)].sum(axis=-1, dtype=np.uint8)
                # Within the block each pair once; every later member against the whole block.
                later = np.arange(len(rest))[None, :] > np.arange(len(block))[:, None]
                for a, b in zip(*np.nonzero((apart <= distance) & later), strict=True):
                    i, j = sorted((int(first[block[a]]), int(first[rest[b]])))
                    pairs[i, j] = int(apart[a, b])
    return sorted((i, j, d) for (i, j), d in pairs.items())


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
    progress: Progress | None = None,
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
        Called with (``"verifying"``, done, in all).

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
        need_sklearn()
    seen: dict[int, _Seen] = {}

    def look(index: int) -> _Seen:
        row = rows[index]
        return _look(row, manifest.file(row), window, near_distance is not None, probe)

    with closing(in_threads(look, range(len(rows)), workers or cores())) as done:
        for index, future in done:
            seen[index] = future.result()
            if progress is not None:
                progress("verifying", len(seen), len(rows))
    ordered = [seen[index] for index in range(len(rows))]
    findings = [finding for look in ordered for finding in look.findings]
    findings += _duplicates(rows, ordered)
    if near_distance is not None:
        findings += _near_duplicates(rows, ordered, near_distance)
    findings += _groups_apart(rows)
    findings += _imbalances(manifest, imbalance)
    probes: list[Probe] = []
    if probe:
        probes = [
            _probe("metadata", METADATA, rows, [look.metadata for look in ordered]),
            _probe(
                "compression history", COMPRESSION, rows, [look.compression for look in ordered]
            ),
        ]
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


def _probe(
    name: str, names: Sequence[str], rows: Sequence[Row], features: Sequence[tuple[float, ...]]
) -> Probe:
    """Run the leak probe on the images that could be read."""
    there = [k for k, values in enumerate(features) if values]
    if not there:
        return Probe(name, None, reason="no image could be read")
    table = np.array([features[k] for k in there], dtype=np.float64)
    return leak_probe(name, table, [rows[k] for k in there], names)

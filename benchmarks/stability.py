"""Do verdicts flip under small re-encodings, and how many images get evidence?

usage: python benchmarks/stability.py --images FOLDER [--per-class N] [--real N] [--cache DIR]

FOLDER is where benchmarks/images.py put the images. Of those that the detector has not seen, as in
benchmarks/fresh.py, N of each generator and N real photos are taken, sources in turn, as they were
found, each under 12 mild re-encodings (`masksim.evaluation.degrade.MILD`). A flip is a verdict of
evidence (or stronger) that becomes none, or the other way; passing to weak evidence, fragile or
inconclusive is not one. An image counts once, however many re-encodings flip it.

Whole verdicts are asked, with the re-encodings that the detector tries by itself: of every image as
found, and of those re-encoded ones that contradict it as long as nothing is tried (no other can
flip). For comparison the same is counted from the rates alone, as a tool without abstention would
answer, and with other limits of the rate after a re-encoding (`masksim.verdict.SURVIVING`).
Writes benchmarks/results/stability.json and fills docs/tables/stability.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from images import drawn, unseen_rows
from pages import ROOT, fill
from unseen import share

from masksim.augment import rng_for
from masksim.data.manifest import REAL, manifest_hash
from masksim.detector import Detector
from masksim.errors import MasksimError
from masksim.evaluation.degrade import MILD
from masksim.image import load_image
from masksim.load import load_detector
from masksim.stability import REENCODINGS
from masksim.verdict import EVIDENCE, NONE, SURVIVING, Verdict, level_of

TRIED = ("jpeg-75", "webp-80", "resize-0.98", "resize-1.02")  # by the detector itself
UNTRIED = tuple(one.name for one in MILD if one.name not in TRIED)

FEWEST = 8  # images of a generator in a row of its own

LIMITS = (0.05, 0.07, 0.10, 0.15, 0.20, 0.25, 0.30, 0.50, 1.0)

_worker: dict[str, Detector] = {}


def side(rate: float) -> str:
    """Tell what a rate alone says."""
    return "evidence" if rate <= EVIDENCE else "none" if rate > NONE else "weak"


def kept(verdict: Verdict) -> dict[str, Any]:
    """Keep what says how a verdict would be with another limit of what must be left."""
    rate = 1.0 if verdict.rate_as_found is None else verdict.rate_as_found
    return {
        "rate": rate,
        # Of the image as found the interval is known where its own rate is the verdict's.
        "level": level_of(rate, verdict.interval if verdict.as_found is None else None),
        "worst": max((verdict.stability or {}).values(), default=0.0),
        "reasons": [reason.code for reason in verdict.reasons],
    }


def judged(found: dict[str, Any], limit: float) -> str:
    """Tell what a verdict says if a rate above a limit after a re-encoding makes it fragile."""
    if found["reasons"]:
        return "inconclusive"
    if found["rate"] <= EVIDENCE and found["worst"] > limit:
        return "fragile"
    return plain(found["level"])


def plain(level: str) -> str:
    """Tell what a level says."""
    return {"strong evidence": "evidence", "no evidence": "none"}.get(level, level)


def opposite(a: str, b: str) -> bool:
    """Tell whether two answers contradict each other."""
    return {a, b} == {"evidence", "none"}


def judge(job: tuple[str, str, str]) -> dict[str, Any] | None:
    """Judge one image under all re-encodings; the result is kept under the target's name."""
    file, key, target = job
    there = Path(target)
    if there.exists():
        found: dict[str, Any] | None = json.loads(there.read_text(encoding="utf-8"))
        return found
    if "d" not in _worker:
        _worker["d"] = load_detector(threads=1)
    detector = _worker["d"]
    try:
        # Of a large file the part that is analysed: re-encoding the rest would change nothing.
        loaded = load_image(file, part=detector.analysed_part)
        before = kept(detector.detect(loaded).verdict)
        part = loaded.pixels
        rows: dict[str, Any] = {}
        for one in MILD:
            pixels = one.apply(part, rng_for(0, key, one.name))
            changed = load_image(pixels)
            format, quality = one.saved_as or (loaded.facts.format, loaded.facts.jpeg_quality)
            # As the file that it would be: what it shows of its last compression is asked for.
            facts = replace(changed.facts, format=format, jpeg_quality=quality)
            changed = replace(changed, facts=facts)
            scores, traits = detector.measure_pixels(changed.pixels, quality, format)
            rates = detector.rates(scores, traits)
            rate = 1.0 if rates is None else rates.joint
            rows[one.name] = {"rate": rate}
            level = level_of(rate, None if rates is None else rates.interval)
            words = (plain(before["level"]), plain(level))
            if opposite(side(before["rate"]), side(rate)) or opposite(*words):
                rows[one.name]["verdict"] = kept(detector.detect(changed).verdict)
    except MasksimError:
        return None
    result = {**before, "after": rows}
    fresh = there.with_suffix(".part")
    fresh.write_text(json.dumps(result), encoding="utf-8")
    os.replace(fresh, there)
    return result


def flipped(found: dict[str, Any], limit: float) -> set[str]:
    """Name the re-encodings that flip an image's verdict."""
    verdict = judged(found, limit)
    return {
        name
        for name, after in found["after"].items()
        if "verdict" in after and opposite(verdict, judged(after["verdict"], limit))
    }


def count(rows: list[dict[str, Any]], sources: list[str]) -> dict[str, Any]:
    """Count flips and verdicts of some images, with the interval over their repositories."""
    n = len(rows)
    alone = [
        {name for name, a in r["after"].items() if opposite(side(r["rate"]), side(a["rate"]))}
        for r in rows
    ]
    flips = [flipped(r, SURVIVING) for r in rows]
    interval = share(np.array([bool(names) for names in flips]), np.array(sources))
    return {
        "images": n,
        "flips_by_rate_alone": sum(map(bool, alone)),
        "flips": sum(map(bool, flips)),
        "sources": len(set(sources)),
        "flips_interval": [interval["low"], interval["high"]],
        "flips_by_what_the_detector_does_not_try": sum(
            not names.isdisjoint(UNTRIED) for names in flips
        ),
        "verdicts": dict(Counter(judged(r, SURVIVING) for r in rows)),
        "reasons": dict(Counter(code for r in rows for code in r["reasons"])),
        "flips_by_reencoding": {one.name: sum(one.name in f for f in flips) for one in MILD},
        "flips_by_reencoding_by_rate_alone": {
            one.name: sum(one.name in f for f in alone) for one in MILD
        },
        "limits": [with_limit(rows, limit) for limit in LIMITS],
    }


def with_limit(rows: list[dict[str, Any]], limit: float) -> dict[str, float]:
    """Count evidence and flips with another limit of what must be left."""
    evidence = [r for r in rows if judged(r, limit) == "evidence"]
    return {
        "limit": limit,
        "evidence": len(evidence),
        "flips": sum(bool(flipped(r, limit)) for r in rows),
        # Of all re-encodings of images with evidence so many take it away altogether.
        "evidence_reencoded": len(evidence) * len(MILD),
        "evidence_turned_to_none": sum(len(flipped(r, limit)) for r in evidence),
    }


def percent(part: float, n: int) -> str:
    """Write a share."""
    return f"{100 * part / n:.1f} %"


def markdown(measured: dict[str, Any]) -> str:
    """Write the table."""
    lines = [
        "| images | n | repositories | flips by the rate alone | flips of verdicts [95 %] | "
        "by the 8 that are not tried | evidence | weak evidence | fragile | none | inconclusive |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in measured["groups"].items():
        n, verdicts = row["images"], row["verdicts"]
        low, high = row["flips_interval"]
        shares = " | ".join(
            percent(verdicts.get(key, 0), n)
            for key in ("evidence", "weak evidence", "fragile", "none", "inconclusive")
        )
        lines.append(
            f"| {name} | {n} | {row['sources']} | {percent(row['flips_by_rate_alone'], n)} | "
            f"{percent(row['flips'], n)} [{100 * low:.1f}, {100 * high:.1f}] | "
            f"{percent(row['flips_by_what_the_detector_does_not_try'], n)} | {shares} |"
        )
    lines += [
        "",
        "| limit of the rate after a re-encoding | "
        + " | ".join(f"{100 * limit:g} %" for limit in LIMITS)
        + " |",
        "|---|" + "---|" * len(LIMITS),
    ]
    for name, label in (("generated", "generated images"), ("real photos", "photos")):
        row = measured["groups"].get(name)
        if row is None:
            continue
        for what, of in (("evidence", "images"), ("flips", "images")):
            cells = [percent(found[what], row[of]) for found in row["limits"]]
            lines.append(f"| {label}: {what} | {' | '.join(cells)} |")
    cells = [
        percent(found["evidence_turned_to_none"], max(1, found["evidence_reencoded"]))
        for found in measured["groups"].get("generated", {"limits": []})["limits"]
    ]
    lines.append(f"| a single re-encoding turns evidence to none | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Judge, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=20, help="images of each generator")
    parser.add_argument("--real", type=int, default=100, help="real photos")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    there, missing = unseen_rows(args.images)
    chosen = drawn(there, {"*": args.per_class, REAL: args.real})
    detector = load_detector(threads=1)
    key = json.dumps(
        [
            detector.sha256,
            SURVIVING,
            [small.name for small in REENCODINGS],
            [one.does for one in MILD],
        ]
    )
    folder = args.cache / ("stability-" + hashlib.sha256(key.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (
            str(args.images / row.path),
            row.key,
            str(folder / f"{hashlib.sha256(row.path.encode()).hexdigest()[:24]}.json"),
        )
        for row in chosen
    ]
    with ProcessPoolExecutor(args.workers) as pool:
        results = list(pool.map(judge, jobs))
    groups: dict[str, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for row, result in zip(chosen, results, strict=True):
        if result is None:
            continue
        kinds = ("real photos",) if row.is_real else ("generated", row.generator)
        for name in kinds:
            groups[name].append((result, row.source))
    measured = {
        "detector": detector.name,
        "detector_sha256": detector.sha256,
        "manifest_sha256": manifest_hash(tuple(chosen)),
        "reencodings": {one.name: one.does for one in MILD},
        "groups": {
            name: count([result for result, _ in own], [source for _, source in own])
            for name, own in groups.items()
            if name in ("real photos", "generated") or len(own) >= FEWEST
        },
        "missing": missing,
        "not_analysed": results.count(None),
    }
    path = ROOT / "benchmarks" / "results" / "stability.json"
    path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    text = markdown(measured)
    fill(ROOT / "docs" / "tables" / "stability.md", "stability", text)
    print(text)


if __name__ == "__main__":
    main()

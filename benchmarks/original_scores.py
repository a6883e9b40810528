"""The original's rule and ours on the original's own scores of 18,814 real images.

usage: python benchmarks/original_scores.py --scores FILE.csv.gz [--out JSON] [--seed N]

FILE has the columns `image`, `population`, and one a detector: the table that the original ships,
by which it turns scores into rates. All images are real, so each one that is flagged is a false
alarm. Photos, not crops, are split at random into a half that calibrates and a half that tests; how
much is the luck of one split is shown by --splits of them. Writes
benchmarks/results/original_scores.json, docs/tables/original-rates.md and its picture; with
--out nothing but that file. About a minute on one core; needs scipy and matplotlib.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pages import ROOT, fill
from scipy import stats

from masksim.calibration import false_positive_rate, joint_false_positive_rate
from masksim.errors import DataError
from masksim.metrics import Estimate
from masksim.show.tables import Column, Table

LEVELS = (0.01, 0.05, 0.10)
NAMES = {"coco": "COCO", "flickrface": "faces"}
RESULTS = ROOT / "benchmarks" / "results" / "original_scores.json"
PAGE = ROOT / "docs" / "tables" / "original-rates.md"
PICTURE = ROOT / "docs" / "images" / "original-rates.png"
GRID = np.geomspace(0.001, 0.2, 70)  # claimed rates of the picture

# "Any": at least one detector's rate is below the level. "Own": each population calibrates itself.
IN_SET = "original, any detector, on its calibration images"
IN_SET_MAXIMUM = "original, maximum, on its calibration images"
ANY = "original, any detector"
MAXIMUM = "original, maximum"
ANY_OWN = "original, any detector, own calibration"
POOLED = "ours, joint"
OWN = "ours, joint, own calibration"


@dataclass(frozen=True)
class Scores:
    """The table: names (n,), scores (n, G), and what each row is a crop of."""

    images: np.ndarray
    populations: np.ndarray
    generators: tuple[str, ...]
    values: np.ndarray

    @property
    def photos(self) -> np.ndarray:
        """Number of the photo that each image is cut from (n,)."""
        names = [
            f"{population} {re.sub(r'_crop[0-9]+(?=[.]|$)', '', image)}"
            for population, image in zip(self.populations, self.images, strict=True)
        ]
        return np.unique(names, return_inverse=True)[1]


def read_scores(path: Path) -> Scores:
    """Read a table, gzipped or not; every score must be a finite number."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    head, *rows = csv.reader(text.splitlines()) if text else [[]]
    if head[:2] != ["image", "population"] or len(head) < 3 or not rows:
        raise DataError(f"{path}: expected image, population, scores and rows, got {head}")
    if any(len(row) != len(head) for row in rows):
        raise DataError(f"{path}: a row has not {len(head)} cells")
    try:
        values = np.array([row[2:] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not np.isfinite(values).all():
        raise DataError(f"{path}: a score is not finite")
    images, populations = (np.array([row[k] for row in rows]) for k in (0, 1))
    return Scores(images, populations, tuple(head[2:]), values)


def original_rates(scores: np.ndarray, reals: np.ndarray) -> np.ndarray:
    """1 - rank: the share of the calibration scores above each score, (m, G); may be 0."""
    above = [
        len(reals) - np.searchsorted(np.sort(reals[:, g]), scores[:, g], side="right")
        for g in range(reals.shape[1])
    ]
    return np.stack(above, axis=1) / len(reals)


def original_maximum_rates(scores: np.ndarray, reals: np.ndarray) -> np.ndarray:
    """Rate of the largest of the G ranks among those of the calibration images, (m,)."""
    best, best_of_reals = (
        -original_rates(s, reals).min(axis=1, keepdims=True) for s in (scores, reals)
    )
    return original_rates(best, best_of_reals)[:, 0]


def first_half(photos: np.ndarray, populations: np.ndarray, seed: int) -> np.ndarray:
    """Whether an image calibrates (n,): half of each population's photos, all their crops."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(photos), bool)
    for population in np.unique(populations):
        own = rng.permutation(np.unique(photos[populations == population]))
        chosen |= np.isin(photos, own[: len(own) // 2])
    return chosen


def one_crop(photos: np.ndarray, seed: int) -> np.ndarray:
    """Rows (photos,) with one crop of each photo, drawn."""
    order = np.random.default_rng(seed).permutation(len(photos))
    return np.sort(order[np.unique(photos[order], return_index=True)[1]])


def clopper_pearson(count: float, size: float, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial share; `count` and `size` need not be whole."""
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, count, size - count + 1) if count > 0 else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, size - count) if count < size else 1.0
    return float(low), float(high)


def effective_size(flagged: np.ndarray, photos: np.ndarray) -> float:
    """How many independent images would tell the share as well: at most as many as there are.

    Korn and Graubard (1998): size / design effect, corrected for the degrees of freedom of the
    variance, which are those of the photos. Where all or none are flagged there is no variance to
    tell, and crops of one photo count as one image.
    """
    n, photo = len(flagged), np.unique(photos, return_inverse=True)[1]
    d = int(photo.max()) + 1
    share = flagged.mean()
    if d == n:
        return float(n)
    if share in (0.0, 1.0) or d < 2:
        return float(d)
    departures = np.bincount(photo, weights=flagged - share)
    variance = d / (d - 1) * (departures**2).sum() / n**2
    if variance * n <= share * (1 - share):  # crops of a photo differ more than others: not counted
        variance = share * (1 - share) / n
    freedom = stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, d - 1)
    return float(min(n, share * (1 - share) / variance * freedom**2))


def share(flagged: np.ndarray, photos: np.ndarray) -> dict[str, float]:
    """Share of images flagged, its 95 % interval by photo, and the counts behind it."""
    value, size = float(flagged.mean()), effective_size(flagged, photos)
    low, high = clopper_pearson(value * size, size)
    return {
        "share": value, "low": low, "high": high,
        "flagged": int(flagged.sum()), "images": len(flagged), "effective_images": round(size, 1),
    }  # fmt: skip


def uniformity(rates: np.ndarray, calibrated: int) -> dict[str, float]:
    """Kolmogorov-Smirnov distance of rates from uniform, and its probability by chance.

    All rates lean on the same calibration images, so that they wander together: the distance is
    that of two samples, of the calibration's and of the rates' size.
    """
    distance = float(stats.kstest(rates, "uniform").statistic)
    size = calibrated * len(rates) / (calibrated + len(rates))
    return {"distance": distance, "p": float(stats.kstwobign.sf(distance * np.sqrt(size)))}


def expected(level: float, calibrated: int, tested: int) -> dict[str, float]:
    """Where the share of images with a rate of at most `level` lies in 95 % of splits.

    If the images are exchangeable: luck of both halves, as the beta-binomial distribution has it.
    """
    k = int(np.floor(level * (calibrated + 1) + 1e-9))
    chance = stats.betabinom(tested, k, calibrated + 1 - k)
    low, high = chance.ppf([0.025, 0.975]) / tested
    return {"share": k / (calibrated + 1), "low": float(low), "high": float(high)}


def flagged(rule: str, rates: np.ndarray, level: float) -> np.ndarray:
    """Whether a rule says something: the original below a level, ours at most at it."""
    return rates < level if rule.startswith("original") else rates <= level


def shares(rule: str, rates: np.ndarray, photos: np.ndarray) -> dict[str, dict]:
    """`share` at each of `LEVELS`."""
    return {f"{level:g}": share(flagged(rule, rates, level), photos) for level in LEVELS}


def by_generator(
    rule: str, rates: np.ndarray, photos: np.ndarray, table: Scores
) -> dict[str, dict]:
    """`shares` for each column of rates (m, G)."""
    return {g: shares(rule, rates[:, k], photos) for k, g in enumerate(table.generators)}


def measure(table: Scores, seed: int) -> dict:
    """All figures of one split."""
    x, photos, of = table.values, table.photos, table.populations
    names = list(dict.fromkeys(of.tolist()))
    calibrate = first_half(photos, of, seed)
    inside = {p: (of == p) & calibrate for p in names}
    outside = {p: (of == p) & ~calibrate for p in names}
    rules: dict[str, dict] = {
        rule: {} for rule in (IN_SET, IN_SET_MAXIMUM, ANY, MAXIMUM, ANY_OWN, POOLED, OWN)
    }
    single: dict[str, dict] = {"original": {}, "ours": {}}
    uniform: dict[str, dict] = {}
    for p in names:
        all_of, test = of == p, outside[p]
        original = original_rates(x[test], x[calibrate])
        own = false_positive_rate(x[test], x[inside[p]])
        for rule, tested, rates in (
            (IN_SET, all_of, original_rates(x[all_of], x).min(axis=1)),
            (IN_SET_MAXIMUM, all_of, original_maximum_rates(x[all_of], x)),
            (ANY, test, original.min(axis=1)),
            (MAXIMUM, test, original_maximum_rates(x[test], x[calibrate])),
            (ANY_OWN, test, original_rates(x[test], x[inside[p]]).min(axis=1)),
            (POOLED, test, joint_false_positive_rate(x[test], x[calibrate])),
            (OWN, test, joint_false_positive_rate(x[test], x[inside[p]])),
        ):
            rules[rule][p] = shares(rule, rates, photos[tested])
        for rule, rates in (("original", original), ("ours", own)):
            single[rule][p] = by_generator(rule, rates, photos[test], table)
        one = one_crop(photos, seed)
        fit, ask = (one[half[p][one]] for half in (inside, outside))
        joint = joint_false_positive_rate(x[ask], x[fit])
        each = false_positive_rate(x[ask], x[fit])
        uniform[p] = {
            "calibrated": len(fit),
            "tested": len(ask),
            "joint": uniformity(joint, len(fit)),
            "by_generator": {
                g: uniformity(each[:, k], len(fit)) for k, g in enumerate(table.generators)
            },
            "realised": shares("ours", joint, photos[ask]),
            "expected": {f"{level:g}": expected(level, len(fit), len(ask)) for level in LEVELS},
        }
    across = []
    for fitted in names:
        for tested in names:
            # Whole populations where they differ; within one, the halves.
            same = fitted == tested
            fit, ask = (inside[fitted], outside[tested]) if same else (of == fitted, of == tested)
            joint = joint_false_positive_rate(x[ask], x[fit])
            each = false_positive_rate(x[ask], x[fit])
            across.append(
                {
                    "calibrated_on": fitted,
                    "calibrated": int(fit.sum()),
                    "tested_on": tested,
                    "tested": int(ask.sum()),
                    "joint": shares("ours", joint, photos[ask]),
                    "by_generator": by_generator("ours", each, photos[ask], table),
                }
            )
    return {
        "seed": seed,
        "generators": list(table.generators),
        "populations": {
            p: {
                "images": int((of == p).sum()),
                "photos": len(np.unique(photos[of == p])),
                "calibrated": int(inside[p].sum()),
                "tested": int(outside[p].sum()),
            }
            for p in names
        },
        "side_by_side": rules,
        "by_generator": single,
        "across": across,
        "uniformity": uniform,
    }


def repeat(table: Scores, seeds: range) -> dict[str, dict[str, np.ndarray]]:
    """Shares flagged at `LEVELS`, then at `GRID`, in each of several splits.

    By rule and population, (splits, levels). Without `POOLED`, which takes as long as all others.
    """
    x, photos, of = table.values, table.photos, table.populations
    names = list(dict.fromkeys(of.tolist()))
    found: dict[str, dict[str, list]] = {
        rule: {p: [] for p in names} for rule in (ANY, MAXIMUM, ANY_OWN, OWN)
    }
    for number, seed in enumerate(seeds):
        print(f"\rsplit {number + 1} of {len(seeds)}", end="", file=sys.stderr, flush=True)
        calibrate = first_half(photos, of, seed)
        for p in names:
            test, own = x[(of == p) & ~calibrate], x[(of == p) & calibrate]
            for rule, rates in (
                (ANY, original_rates(test, x[calibrate]).min(axis=1)),
                (MAXIMUM, original_maximum_rates(test, x[calibrate])),
                (ANY_OWN, original_rates(test, own).min(axis=1)),
                (OWN, joint_false_positive_rate(test, own)),
            ):
                found[rule][p].append(
                    [flagged(rule, rates, level).mean() for level in (*LEVELS, *GRID)]
                )
    print(file=sys.stderr)
    return {
        rule: {p: np.array(rows) for p, rows in by_population.items()}
        for rule, by_population in found.items()
    }


def spread(rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean and extremes over the splits (splits, levels), for each of `LEVELS`."""
    return {
        f"{level:g}": {
            "share": float(column.mean()),
            "low": float(column.min()),
            "high": float(column.max()),
        }
        for level, column in zip(LEVELS, rows.T, strict=False)
    }


def _interval(found: dict[str, float]) -> Estimate:
    return Estimate(found["share"], found["low"], found["high"])


def _most(found: dict[str, dict], level: str) -> str:
    name = max(found, key=lambda g: found[g][level]["share"])
    return f"{name}, {100 * found[name][level]['share']:.1f} %"


def _columns(names: list[str], first: str) -> tuple[Column, ...]:
    """One column for each population and level."""
    return Column("rule", first), *(
        Column(f"{p}_{level:g}", f"{NAMES.get(p, p)}, claimed {100 * level:g} %", 1, True)
        for p in names
        for level in LEVELS
    )


def tables(document: dict) -> list[Table]:
    """What is shown, in the order of the page."""
    names = list(document["populations"])

    def cells(of: dict[str, dict]) -> list[Estimate]:
        return [_interval(of[p][f"{level:g}"]) for p in names for level in LEVELS]

    made = [
        Table(
            "side-by-side",
            "Real images flagged",
            _columns(names, "rule"),
            tuple((rule, *cells(found)) for rule, found in document["side_by_side"].items()),
        )
    ]
    splits = document["splits"]
    made.append(
        Table(
            "splits",
            f"The same, mean [lowest, highest] of {splits['count']} splits",
            _columns(names, "rule"),
            tuple((rule, *cells(found)) for rule, found in splits["rules"].items()),
        )
    )
    for rule, title in (
        ("original", "Real images flagged by one detector: the original's rule"),
        ("ours", "Real images flagged by one detector: ours, own calibration"),
    ):
        found = document["by_generator"][rule]
        made.append(
            Table(
                f"by-generator-{rule}",
                title,
                _columns(names, "generator"),
                tuple(
                    (generator, *cells({p: found[p][generator] for p in names}))
                    for generator in document["generators"]
                ),
            )
        )
    claims = tuple(
        Column(f"claimed_{level:g}", f"claimed {100 * level:g} %", 1, True) for level in LEVELS
    )
    made.append(
        Table(
            "across",
            "Ours, joint: calibrated on one population, tested on another",
            (
                Column("calibrated_on", "calibrated on"),
                Column("calibrated", "images"),
                Column("tested_on", "tested on"),
                Column("tested", "images tested"),
                *claims,
                Column("worst", "most flagged by one detector, claimed 5 %"),
            ),
            tuple(
                (
                    NAMES.get(row["calibrated_on"], row["calibrated_on"]),
                    row["calibrated"],
                    NAMES.get(row["tested_on"], row["tested_on"]),
                    row["tested"],
                    *(_interval(row["joint"][f"{level:g}"]) for level in LEVELS),
                    _most(row["by_generator"], "0.05"),
                )
                for row in document["across"]
            ),
        )
    )
    rows: list[tuple] = []
    for p, found in document["uniformity"].items():
        worst = min(one["p"] for one in found["by_generator"].values())
        rows.append(
            (
                NAMES.get(p, p), found["calibrated"], found["tested"],
                *(_interval(found["realised"][f"{level:g}"]) for level in LEVELS),
                found["joint"]["distance"], found["joint"]["p"],
                min(1.0, worst * len(found["by_generator"])),
            )
        )  # fmt: skip
        expectation = (_interval(found["expected"][f"{level:g}"]) for level in LEVELS)
        rows.append(
            (f"{NAMES.get(p, p)}, 95 % of splits if exchangeable", None, None,
             *expectation, None, None, None)
        )  # fmt: skip
    made.append(
        Table(
            "uniformity",
            "Ours, joint, one crop a photo: is the rate uniform within a population?",
            (
                Column("population", ""),
                Column("calibrated", "photos that calibrate"),
                Column("tested", "photos tested"),
                *claims,
                Column("distance", "KS distance", 3),
                Column("p", "its p"),
                Column("p_generators", "p of single detectors, smallest × number"),
            ),
            tuple(rows),
        )
    )
    rows = []
    for rule in (ANY, OWN):
        for p, counts in document["populations"].items():
            found = document["side_by_side"][rule][p]["0.05"]
            by_crop = clopper_pearson(found["flagged"], found["images"])
            rows.append(
                (
                    f"{NAMES.get(p, p)}: {rule}", counts["images"], counts["photos"],
                    found["images"], round(found["effective_images"]),
                    Estimate(found["share"], *by_crop), _interval(found),
                )
            )  # fmt: skip
    made.append(
        Table(
            "photos",
            "Crops and photos, at a claimed 5 %",
            (
                Column("rule", ""),
                Column("crops", "crops"),
                Column("photos", "photos"),
                Column("tested", "crops tested"),
                Column("effective", "worth as many single images"),
                Column("by_crop", "interval as if crops were independent", 1, True),
                Column("by_photo", "interval by photo", 1, True),
            ),
            tuple(rows),
        )
    )
    return made


def draw(repeated: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Claimed against realised rates: means of the splits, and the extremes of ours."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    styles = {
        ANY: {"color": "#d55e00", "linestyle": "-", "linewidth": 2.2},
        MAXIMUM: {"color": "#000000", "linestyle": "--", "linewidth": 1.6},
        OWN: {"color": "#0072b2", "linestyle": "-", "linewidth": 1.3, "marker": "o"},
    }
    names = list(repeated[ANY])
    figure = Figure(figsize=(4.6 * len(names), 4.9), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, p in zip(panels, names, strict=True):
        axes.plot(
            GRID, GRID, color="0.4", linewidth=0.8, linestyle=":", label="as claimed", zorder=3
        )
        for rule, style in styles.items():
            # No image flagged has no place on a logarithmic axis: the lines end at its edge.
            curves = np.maximum(repeated[rule][p][:, len(LEVELS) :], 1e-6)
            if rule == OWN:
                axes.fill_between(
                    GRID, curves.min(axis=0), curves.max(axis=0),
                    color="0.85", linewidth=0, label="ours, lowest to highest split",
                )  # fmt: skip
            axes.plot(
                GRID, curves.mean(axis=0), label=rule, markersize=4, markevery=(4, 10), **style
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(GRID[0], GRID[-1])
        axes.set_ylim(2e-4, 1)
        for axis, ticks in (
            (axes.xaxis, (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)),
            (axes.yaxis, (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)),
        ):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %"))
            axis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_title(NAMES.get(p, p), fontsize=11, loc="left")
        axes.set_xlabel("claimed false-positive rate")
    panels[0].set_ylabel("real images flagged")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Read, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="write this JSON and leave the page alone")
    parser.add_argument("--seed", type=int, default=0, help="of the split; the first of --splits")
    parser.add_argument("--splits", type=int, default=20)
    args = parser.parse_args()
    table = read_scores(args.scores)
    repeated = repeat(table, range(args.seed, args.seed + args.splits))
    document = {
        "scores_sha256": hashlib.sha256(args.scores.read_bytes()).hexdigest(),
        **measure(table, args.seed),
        "splits": {
            "count": args.splits,
            "rules": {
                rule: {p: spread(rows) for p, rows in found.items()}
                for rule, found in repeated.items()
            },
        },
    }
    (args.out or RESULTS).write_text(
        json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    made = tables(document)
    for one in made:
        print(one.to_text(), end="\n\n")
    if args.out is None:
        for one in made:
            fill(PAGE, f"original {one.name}", one.to_markdown())
        draw(repeated, PICTURE)


if __name__ == "__main__":
    main()

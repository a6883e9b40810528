"""Enroll each generator of the bundled detector anew, and measure on images it has not seen.

usage: python benchmarks/enroll.py --manifest MANIFEST [--cache DIR] [--workers N] [--most N]

The generator's head is taken out of the bundled detector, then the generator is enrolled from at
most ``--most`` of its training images, with the photos that the detector carries. Nothing of the
old head is left: residual, statistics and photos are of real photos alone. Measured are the ``val``
images, with the same processing for all heads; and, before enrolling, what the verdicts say of
images of a generator that the detector does not know. Writes ``benchmarks/results/enroll.json``
and the tables of docs/tables/enroll.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill

from masksim import metrics
from masksim.attribution import Attribution
from masksim.augment import rng_for
from masksim.calibration import false_positive_rate, joint_false_positive_rate
from masksim.checkpoint import DetectorFile
from masksim.config import from_plain
from masksim.data.manifest import REAL, Manifest, read_manifest
from masksim.data.views import ViewConfig
from masksim.data.weights import history_weights
from masksim.evaluation.scoring import seen_in_training
from masksim.features import FeatureConfig
from masksim.load import bundled_path
from masksim.model import SharedHeads
from masksim.training.enroll import EnrollConfig, enroll
from masksim.training.feature_table import FeatureTable, compute_features
from masksim.training.grow import forget
from masksim.training.heads import in_parts
from masksim.verdict import LEVELS

ROOT = Path(__file__).resolve().parent.parent


def scores_of(file: DetectorFile, table: FeatureTable) -> np.ndarray[Any, Any]:
    """Similarities of all heads, (n, G)."""
    branch = file.branches[0]
    heads = SharedHeads.from_tensors(branch.tensors, float(branch.head_config["limit"]))
    return in_parts(heads.similarities, table.features).astype(np.float64)


def auroc_of(
    scores: np.ndarray[Any, Any],
    table: FeatureTable,
    own: np.ndarray[Any, Any],
    shares: Any,
    samples: int,
) -> dict[str, float] | None:
    """AUROC against all real photos, histories matched; intervals over sources."""
    real = table.generators == REAL
    if not own.any():
        return None
    weights = history_weights(table.histories, [own, real], shares)
    used = weights > 0
    groups, _ = metrics.draw_together(own, table.images, table.sources)
    return asdict(
        metrics.bootstrap(
            metrics.auroc, scores[used], own[used], weights[used],
            groups=groups[used], samples=samples,
        )
    )  # fmt: skip


def verdicts(file: DetectorFile, scores: np.ndarray[Any, Any]) -> dict[str, Any]:
    """How many get evidence (joint rate at most 5 %), and of those: explained by which, or none."""
    arrays = file.calibration
    assert arrays is not None
    joint = joint_false_positive_rate(scores, arrays["real_similarities"])
    rates = false_positive_rate(scores, arrays["real_similarities"])
    model = Attribution.fit(
        arrays["own_similarities"], arrays["own_generators"], arrays["real_similarities"]
    )
    evidence = joint <= LEVELS[1][0]
    named_as = model.name(scores, rates)
    unknown = evidence & (named_as < 0)
    named = {
        name: int((evidence & (named_as == g)).sum()) for g, name in enumerate(file.generators)
    }
    return {
        "images": len(scores),
        "evidence": int(evidence.sum()),
        "unknown": int(unknown.sum()),
        "named": {name: n for name, n in named.items() if n},
    }


def take(manifest: Manifest, generator: str, most: int, folder: Path) -> None:
    """Link the training images of a generator into a folder a source."""
    rows = sorted(
        manifest.select("train", generator).rows,
        key=lambda row: rng_for("enroll benchmark", row.path).random(),
    )
    for row in rows[:most]:
        target = folder / row.source.replace("/", "+") / Path(row.path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(manifest.file(row).resolve(), target)


def main() -> None:
    """Enroll, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--views", type=int, default=EnrollConfig.views)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--generator", action="append", help="only these")
    args = parser.parse_args()
    manifest = read_manifest(args.manifest)
    file = DetectorFile.load(bundled_path())
    training = file.provenance["training"]
    views = from_plain(ViewConfig, training["views"], "views")
    features = FeatureConfig.from_dict(training["features"])
    tables = {
        purpose: compute_features(
            manifest.select("val"), purpose, args.cache,
            views_config=views, feature_config=features, workers=args.workers,
        )
        for purpose in ("evaluate", "as found")
    }  # fmt: skip
    table, found = tables["evaluate"], tables["as found"]
    seen = seen_in_training(manifest)
    known = np.array([(g, s) in seen for g, s in zip(table.generators, table.sources, strict=True)])
    bundled, as_found = scores_of(file, table), scores_of(file, found)
    results: dict[str, Any] = {}
    for name in args.generator or file.generators:
        column = file.generators.index(name)
        without = forget(file, name)
        with tempfile.TemporaryDirectory() as folder:
            take(manifest, name, args.most, Path(folder))
            start = time.perf_counter()
            made, outcome = enroll(
                without, name, [folder], cache=Path(folder) / "cache", workers=args.workers,
                config=EnrollConfig(views=args.views),
            )  # fmt: skip
            seconds = time.perf_counter() - start
        scores = scores_of(made, table)
        # Adding a head does not change the others, here among all the views measured.
        others = [g for g in range(len(file.generators)) if g != column]
        assert np.array_equal(scores[:, :-1], bundled[:, others])
        own = table.generators == name
        results[name] = {
            "images": outcome.images,
            "sources": outcome.sources,
            "photos": outcome.photos,
            "seconds": round(seconds, 1),
            "cross_validated": asdict(outcome.auroc),
            "cross_validated_new_sources": outcome.auroc_new_sources
            and asdict(outcome.auroc_new_sources),
            "val_images": len(np.unique(table.images[own])),
            "enrolled": auroc_of(scores[:, -1], table, own, views.shares, args.samples),
            "unseen": auroc_of(scores[:, -1], table, own & ~known, views.shares, args.samples),
            "trained": auroc_of(bundled[:, column], table, own, views.shares, args.samples),
            "before": verdicts(
                without, np.delete(as_found, column, axis=1)[found.generators == name]
            ),
            "after": verdicts(made, scores_of(made, found)[found.generators == name]),
            "reals_after": verdicts(made, scores_of(made, found)[found.generators == REAL]),
        }
        print(name, json.dumps(results[name]), flush=True)
    report = {
        "detector": file.sha256,
        "most": args.most,
        "views": args.views,
        "generators": results,
        "bundled": {
            name: verdicts(file, as_found[found.generators == name])
            for name in (*file.generators, REAL)
        },
    }
    (ROOT / "benchmarks" / "results" / "enroll.json").write_text(
        json.dumps(report, indent=1) + "\n"
    )
    fill(ROOT / "docs" / "tables" / "enroll.md", "enroll", markdown(report))


def markdown(report: dict[str, Any]) -> str:
    """Write both tables."""

    def value(estimate: dict[str, float] | None) -> str:
        if estimate is None:
            return "none"
        return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"

    rows = report["generators"]
    lines = [
        "| enrolled | images (sources) | cross-validated AUROC | with sources left out | `val` "
        "AUROC, enrolled | of them unseen sources | `val` AUROC, trained with all | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['images']} ({row['sources']}) | {value(row['cross_validated'])} | "
            f"{value(row['cross_validated_new_sources'])} | "
            f"{value(row['enrolled'])} | {value(row['unseen'])} | {value(row['trained'])} | "
            f"{row['seconds']:.0f} |"
        )
    mean = [np.mean([row[k]["value"] for row in rows.values()]) for k in ("enrolled", "trained")]
    lines.append(f"| **mean** | | | | **{mean[0]:.3f}** | | **{mean[1]:.3f}** | |")
    lines += [
        "",
        "| `val` images of, as found | n | not known: evidence | of which unknown | enrolled: "
        "evidence | of which unknown | of which named so | trained with all: of which unknown | "
        "of which named so |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        before, after, trained = row["before"], row["after"], report["bundled"][name]
        lines.append(
            f"| {name} | {before['images']} | {before['evidence']} | {before['unknown']} | "
            f"{after['evidence']} | {after['unknown']} | {after['named'].get(name, 0)} | "
            f"{trained['unknown']} | {trained['named'].get(name, 0)} |"
        )
    total = {
        kind: [sum(part[key] for part in parts) for key in ("evidence", "unknown")]
        for kind, parts in (
            ("before", [row["before"] for row in rows.values()]),
            ("after", [row["after"] for row in rows.values()]),
            ("trained", [report["bundled"][name] for name in rows]),
        )
    }
    lines.append(
        f"| **all** | | {total['before'][0]} | {total['before'][1]} | {total['after'][0]} | "
        f"{total['after'][1]} | | {total['trained'][1]} of {total['trained'][0]} | |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

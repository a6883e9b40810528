"""Measure a detector: score once, save, then compute every figure from the saved table.

The images of a split are processed in every history they allow (`masksim.dataset.views`), scored
by the detector that a user has, and the scores saved with what was done to each. All measures
weigh both classes to the same shares of histories, and bootstrap intervals
draw whole sources where there are enough of them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import metrics
from masksim.calibration import joint_false_positive_rate
from masksim.dataset import (
    Purpose,
    ViewConfig,
    chunked,
    history_weights,
    run_chunks,
    views_of_file,
)
from masksim.detector import Detector, load_detector
from masksim.errors import DataError, MasksimError
from masksim.manifest import REAL, Manifest, Row, manifest_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FACTS = ("filename", "typ", "source", "history", "format", "processing")


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of the views of a split.

    Attributes
    ----------
    filenames, typ, sources, histories, formats, processing
        str (n,): path in the manifest, generator or ``"real"``, source, history of the view,
        format of the file as found, what was done.
    generators
        Columns of `similarities`.
    similarities
        float64 (n, G).
    failures
        Path to error code.
    """

    filenames: NDArray[np.str_]
    typ: NDArray[np.str_]
    sources: NDArray[np.str_]
    histories: NDArray[np.str_]
    formats: NDArray[np.str_]
    processing: NDArray[np.str_]
    generators: tuple[str, ...]
    similarities: NDArray[np.float64]
    failures: Mapping[str, str]

    def select(self, mask: NDArray[np.bool_]) -> ScoreTable:
        """Return the rows where `mask` (n,) is true."""
        return replace(
            self,
            **{
                name: getattr(self, name)[mask]
                for name in (
                    "filenames", "typ", "sources", "histories", "formats", "processing",
                    "similarities",
                )
            },
        )  # fmt: skip

    def to_csv(self) -> str:
        """Write the field's convention: ``filename,typ``, facts, then one column a generator."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*_FACTS, *self.generators])
        for i in range(len(self.filenames)):
            facts = (
                self.filenames[i], self.typ[i], self.sources[i], self.histories[i],
                self.formats[i], self.processing[i],
            )  # fmt: skip
            writer.writerow([*facts, *(f"{s:.7g}" for s in self.similarities[i])])
        return out.getvalue()


# --- scoring -----------------------------------------------------------------------------------

_worker: dict[str, Detector] = {}


def _start_worker(model: str) -> None:
    _worker["detector"] = load_detector(model, threads=1)


def _work(
    target: str,
    files: Sequence[str],
    rows: Sequence[Row],
    purpose: Purpose,
    config: ViewConfig,
    seed: int,
) -> str:
    """Score one chunk of images and write it whole or not at all."""
    detector = _worker["detector"]
    lines: list[list[Any]] = []
    failures: dict[str, str] = {}
    for file, row in zip(files, rows, strict=True):
        try:
            for sized, view in views_of_file(file, row, purpose, config, seed):
                scores = detector.similarities(view.pixels)
                facts = [
                    row.path, row.generator, row.source, view.history, sized.format,
                    ", ".join(view.processing),
                ]  # fmt: skip
                lines.append([*facts, *scores.tolist()])
        except MasksimError as error:
            failures[row.path] = error.code
    with tempfile.NamedTemporaryFile(
        "w", dir=Path(target).parent, suffix=".part", delete=False, encoding="utf-8"
    ) as part:
        json.dump([lines, failures], part)
    os.replace(part.name, target)
    return target


def score_manifest(
    model: str | os.PathLike[str],
    manifest: Manifest,
    *,
    cache: str | os.PathLike[str],
    purpose: Purpose = "evaluate",
    config: ViewConfig | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreTable:
    """Score every view of a manifest's images.

    Parameters
    ----------
    model
        Folder of a detector.
    manifest
        Which images: usually one split.
    cache
        Folder of finished chunks; a run that is killed goes on where it was.
    purpose
        ``"evaluate"``, or ``"as found"``: one view an image, without processing.
    config
        How views are drawn; by default as the detector was trained, else the defaults.
    seed
        Of the processing.
    workers
        Processes.
    progress
        Called with (chunks done, chunks in all).

    Returns
    -------
    ScoreTable
        The same whatever the number of workers.

    Raises
    ------
    ModelError
        The detector cannot be loaded.
    DataError
        No image could be scored.
    """
    detector = load_detector(model, threads=1)
    if config is None:
        config = views_of(detector)
    rows = sorted(manifest.rows, key=lambda row: row.path)
    facts = [detector.sha256, manifest_hash(rows), asdict(config), seed]
    if purpose != "evaluate":
        facts.append(purpose)
    key = json.dumps(facts, sort_keys=True)
    folder = Path(cache) / ("scores-" + hashlib.sha256(key.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    chunks = chunked(rows)
    targets = [folder / f"{i:06d}.json" for i in range(len(chunks))]
    todo = [i for i, t in enumerate(targets) if not t.exists() or json.loads(t.read_text())[1]]
    jobs = [
        (
            str(targets[i]),
            [str(manifest.file(row)) for row in chunks[i]],
            chunks[i],
            purpose,
            config,
            seed,
        )
        for i in todo
    ]
    run_chunks(
        _work, jobs, len(chunks),
        workers=workers, initializer=_start_worker, initargs=(os.fspath(model),),
        progress=progress,
    )  # fmt: skip
    lines: list[list[Any]] = []
    failures: dict[str, str] = {}
    for target in targets:
        part, failed = json.loads(target.read_text(encoding="utf-8"))
        lines += part
        failures.update(failed)
    if not lines:
        raise DataError("none of the images could be scored", code="manifest_invalid")
    columns = [np.array([line[i] for line in lines]) for i in range(len(_FACTS))]
    scores = np.array([line[len(_FACTS) :] for line in lines], dtype=np.float64)
    return ScoreTable(
        columns[0], columns[1], columns[2], columns[3], columns[4], columns[5],
        detector.generators, scores, failures,
    )  # fmt: skip


def views_of(detector: Detector) -> ViewConfig:
    """Return how the detector's training drew views; the defaults where its file does not say."""
    training = detector.file.provenance.get("training")
    if isinstance(training, Mapping) and "views" in training:
        return ViewConfig.from_dict(training["views"])
    return ViewConfig()  # of the recipe `original`, too, which has none


# --- measuring ---------------------------------------------------------------------------------


def _measures(
    scores: NDArray[np.float64],
    synthetic: NDArray[np.bool_],
    histories: NDArray[np.str_],
    images: NDArray[np.str_],
    sources: NDArray[np.str_],
    shares: Mapping[str, float],
    samples: int,
) -> dict[str, Any]:
    """AUROC, and TPR at 1 % and 5 % FPR, histories matched.

    Intervals draw whole sources; of a generator with fewer than three, images.
    """
    weights = history_weights(histories, [synthetic, ~synthetic], shares)
    used = weights > 0
    s, y, w, g = scores[used], synthetic[used], weights[used], images[used]
    collections = sources[used]
    few = len(np.unique(collections[y])) < 3
    groups = np.where(y & few, np.char.add("image ", g), np.char.add("source ", collections))
    measured: dict[str, Any] = {
        "synthetic_images": len(np.unique(g[y])),
        "synthetic_sources": len(np.unique(collections[y])),
        "real_images": len(np.unique(g[~y])),
        "interval": "over images" if few else "over sources",
    }
    for name, statistic in (
        ("auroc", metrics.auroc),
        ("tpr_at_fpr_1", lambda a, b, c: metrics.tpr_at_fpr(a, b, c, fpr=0.01)),
        ("tpr_at_fpr_5", lambda a, b, c: metrics.tpr_at_fpr(a, b, c, fpr=0.05)),
    ):
        measured[name] = asdict(
            metrics.bootstrap(statistic, s, y, w, groups=groups, samples=samples)
        )
    return measured


def measure(
    table: ScoreTable,
    detector: Detector,
    *,
    shares: Mapping[str, float],
    seen: frozenset[tuple[str, str]] = frozenset(),
    samples: int = 500,
) -> dict[str, Any]:
    """All figures of the model card.

    Parameters
    ----------
    table
        From `score_manifest`.
    detector
        Calibrated: gives the joint rate.
    shares
        Of histories, see `masksim.dataset.ViewConfig`.
    seen
        (generator, source) pairs that training had: their images are left out of the ``unseen``
        figures.
    samples
        Bootstrap samples.

    Returns
    -------
    dict
        Plain values for JSON.
    """
    if detector.file.calibration is None:
        raise DataError("only a calibrated detector can be measured in full")
    real_scores = np.asarray(detector.file.calibration["real_similarities"], dtype=np.float64)
    joint = joint_false_positive_rate(table.similarities, real_scores)
    real = table.typ == REAL
    if not real.any() or not np.isin(table.typ, table.generators).any():
        raise DataError(
            f"the images are of {sorted(set(table.typ.tolist()))}; needed are {REAL!r} and at "
            f"least one of the detector's generators: {', '.join(table.generators)}",
            code="manifest_invalid",
        )
    known = np.array([(t, s) in seen for t, s in zip(table.typ, table.sources, strict=True)])
    out: dict[str, Any] = {
        "images": {
            t: len(np.unique(table.filenames[table.typ == t])) for t in np.unique(table.typ)
        },
        "failures": dict(table.failures),
        "shares": dict(shares),
        "specific": {},
        "unseen": {},
        "generic": {},
    }
    for g, generator in enumerate(table.generators):
        own = table.typ == generator
        for kind, chosen in (("specific", own), ("unseen", own & ~known)):
            if not chosen.any():
                continue
            rows = chosen | real
            out[kind][generator] = _measures(
                table.similarities[rows, g], chosen[rows], table.histories[rows],
                table.filenames[rows], table.sources[rows], shares, samples,
            )  # fmt: skip
        if own.any():
            rows = own | real
            out["generic"][generator] = _measures(
                -np.log(joint[rows]), own[rows], table.histories[rows], table.filenames[rows],
                table.sources[rows], shares, samples,
            )  # fmt: skip
    out["mean"] = {
        kind: {
            name: float(np.mean([row[name]["value"] for row in out[kind].values()]))
            for name in ("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5")
        }
        for kind in ("specific", "unseen", "generic")
        if out[kind]
    }
    validated = detector.file.provenance.get("cross_validated_auroc", {})
    out["cross_validated_auroc"] = dict(validated) if isinstance(validated, Mapping) else {}
    out["histories"] = _histories(table, joint)
    out["false_alarms"] = _false_alarms(table, joint)
    out["attribution"] = _attribution(table, real_scores)
    return out


def _histories(table: ScoreTable, joint: NDArray[np.float64]) -> dict[str, Any]:
    """AUROC of the generic score for each pair of histories, and among reals alone."""
    real = table.typ == REAL
    known = np.isin(table.typ, table.generators)
    evidence = -np.log(joint)
    pairs = {}
    for ours in np.unique(table.histories[known]):
        for theirs in np.unique(table.histories[real]):
            rows = (known & (table.histories == ours)) | (real & (table.histories == theirs))
            pairs[f"{ours} synthetic, {theirs} real"] = {
                "auroc": metrics.auroc(evidence[rows], known[rows]),
                "synthetic": int((rows & known).sum()),
                "real": int((rows & real).sum()),
            }
    among = {}
    for history in ("lossless", "reduced"):
        rows = real & np.isin(table.histories, ("jpeg", history))
        if not (rows & (table.histories == history)).any():
            continue
        # Lossless files come from few sources, so that whole sources are drawn.
        among[f"{history} against jpeg reals"] = {
            **asdict(
                metrics.bootstrap(
                    metrics.auroc, evidence[rows], table.histories[rows] == history,
                    groups=table.sources[rows], samples=500,
                )
            ),
            "images": int((table.histories[rows] == history).sum()),
            "sources": len(np.unique(table.sources[rows & (table.histories == history)])),
        }  # fmt: skip
    # The same lossless photos with and without a first JPEG: no difference of sources.
    both = np.isin(table.filenames, table.filenames[real & (table.histories == "lossless")])
    rows = real & both & np.isin(table.histories, ("jpeg", "lossless"))
    if rows.any():
        among["lossless against a first JPEG, the same photos"] = {
            **asdict(
                metrics.bootstrap(
                    metrics.auroc, evidence[rows], table.histories[rows] == "lossless",
                    groups=table.sources[rows], samples=500,
                )
            ),
            "images": len(np.unique(table.filenames[rows])),
            "sources": len(np.unique(table.sources[rows])),
        }  # fmt: skip
    return {"pairs": pairs, "reals": among}


def measure_as_found(table: ScoreTable, detector: Detector) -> dict[str, Any]:
    """Share of the images whose joint rate is at most 1 %, 5 % and 10 %, files as they were found.

    Parameters
    ----------
    table
        From `score_manifest` with the purpose ``"as found"``.
    detector
        Calibrated.

    Returns
    -------
    dict
        By generator, and ``"real"``: number of images, and counts by rate.
    """
    if detector.file.calibration is None:
        raise DataError("only a calibrated detector can be measured in full")
    real_scores = np.asarray(detector.file.calibration["real_similarities"], dtype=np.float64)
    joint = joint_false_positive_rate(table.similarities, real_scores)
    return {
        typ: {
            "images": int((table.typ == typ).sum()),
            "found": {
                f"{q:g}": int((joint[table.typ == typ] <= q).sum()) for q in (0.01, 0.05, 0.1)
            },
        }
        for typ in np.unique(table.typ).tolist()
    }


def as_found_markdown(measured: Mapping[str, Any]) -> str:
    """Write the counts of `measure_as_found` as a Markdown table."""
    lines = ["| images | n | joint FPR <= 1 % | <= 5 % | <= 10 % |", "|---|---|---|---|---|"]
    for typ, row in measured.items():
        shares = (f"{100 * row['found'][q] / row['images']:.0f} %" for q in ("0.01", "0.05", "0.1"))
        lines.append(f"| {typ} | {row['images']} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _false_alarms(table: ScoreTable, joint: NDArray[np.float64]) -> dict[str, Any]:
    """Share of real views with a joint rate of at most 1 %, 5 % and 10 %, by source."""
    real = table.typ == REAL

    def row(mask: NDArray[np.bool_]) -> dict[str, Any]:
        n = int(mask.sum())
        images = len(np.unique(table.filenames[mask]))
        counts = {f"{q:g}": int((joint[mask] <= q).sum()) for q in (0.01, 0.05, 0.10)}
        return {"views": n, "images": images, "alarms": counts}

    sources = {s: row(real & (table.sources == s)) for s in np.unique(table.sources[real]).tolist()}
    return {
        "all": row(real),
        "by_history": {
            h: row(real & (table.histories == h)) for h in np.unique(table.histories[real]).tolist()
        },
        "by_source": dict(sorted(sources.items(), key=lambda item: -item[1]["views"])),
    }


def _attribution(table: ScoreTable, real_scores: NDArray[np.float64]) -> dict[str, dict[str, int]]:
    """For each true generator, how often each head has the lowest false-positive rate."""
    from masksim.calibration import false_positive_rate

    rates = false_positive_rate(table.similarities, real_scores)
    best = rates.argmin(axis=1)
    return {
        generator: {
            other: int((best[table.typ == generator] == g).sum())
            for g, other in enumerate(table.generators)
        }
        for generator in np.unique(table.typ).tolist()
        if generator != REAL
    }


# --- tables ------------------------------------------------------------------------------------


def _interval(estimate: Mapping[str, float], digits: int = 2) -> str:
    return (
        f"{estimate['value']:.{digits}f} "
        f"[{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
    )


def to_markdown(measured: Mapping[str, Any]) -> str:
    """Write the figures of `measure` as Markdown tables."""
    validated = measured["cross_validated_auroc"]
    lines = [
        "| generator | images (sources) | AUROC | AUROC, unseen sources (images) | cross-validated "
        "AUROC | TPR at 1 % FPR | TPR at 5 % FPR | joint AUROC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for generator, row in measured["specific"].items():
        unseen = measured["unseen"].get(generator)
        mark = "" if row["interval"] == "over sources" else "\\*"
        lines.append(
            f"| {generator} | {row['synthetic_images']} ({row['synthetic_sources']}) | "
            f"{_interval(row['auroc'])}{mark} | "
            + (f"{_interval(unseen['auroc'])} ({unseen['synthetic_images']})" if unseen else "none")
            + (f" | {validated[generator]:.2f}" if generator in validated else " | ")
            + f" | {_interval(row['tpr_at_fpr_1'])} | {_interval(row['tpr_at_fpr_5'])} | "
            f"{_interval(measured['generic'][generator]['auroc'])} |"
        )
    mean = measured["mean"]

    def value(kind: str, name: str) -> str:
        return f"{mean[kind][name]:.3f}" if kind in mean else "none"

    own = [validated[g] for g in measured["specific"] if g in validated]
    lines.append(
        f"| **mean** | | **{value('specific', 'auroc')}** | **{value('unseen', 'auroc')}** of "
        f"{len(measured['unseen'])} | {np.mean(own) if own else float('nan'):.3f} | "
        f"{value('specific', 'tpr_at_fpr_1')} | {value('specific', 'tpr_at_fpr_5')} | "
        f"{value('generic', 'auroc')} |"
    )
    return "\n".join(lines)


def summary_markdown(measured: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Write the short table: AUROC, and what the verdicts say of files as found."""
    lines = [
        "| made by | images | AUROC | AUROC, unseen sources (images) | strong evidence | "
        "evidence or stronger |",
        "|---|---|---|---|---|---|",
    ]

    def shares(row: Mapping[str, Any]) -> str:
        return " | ".join(
            f"{100 * row['found'][q] / row['images']:.0f} %" for q in ("0.01", "0.05")
        )

    for generator, row in measured["specific"].items():
        unseen = measured["unseen"].get(generator)
        lines.append(
            f"| {generator} | {row['synthetic_images']} | {row['auroc']['value']:.2f} | "
            + (
                f"{unseen['auroc']['value']:.2f} ({unseen['synthetic_images']})"
                if unseen
                else "none"
            )
            + f" | {shares(found[generator])} |"
        )
    mean = measured["mean"]
    unseen_mean = f"{mean['unseen']['auroc']:.2f}" if "unseen" in mean else "none"
    lines.append(f"| mean | | {mean['specific']['auroc']:.2f} | {unseen_mean} | | |")
    lines.append(f"| **real photos** | {found[REAL]['images']} | | | {shares(found[REAL])} |")
    return "\n".join(lines)


def histories_markdown(measured: Mapping[str, Any]) -> str:
    """Write the pairs of histories, and the reals among themselves."""
    pairs = measured["histories"]["pairs"]
    lines = ["| synthetic views | real views | n | generic AUROC |", "|---|---|---|---|"]
    for name, row in pairs.items():
        ours, theirs = name.split(", ")
        lines.append(
            f"| {ours.split()[0]} | {theirs.split()[0]} | {row['synthetic']} / {row['real']} | "
            f"{row['auroc']:.2f} |"
        )
    lines += ["", "| reals alone | images | sources | AUROC (0.5 is right) |", "|---|---|---|---|"]
    for name, row in measured["histories"]["reals"].items():
        lines.append(f"| {name} | {row['images']} | {row['sources']} | {_interval(row)} |")
    return "\n".join(lines)


def false_alarms_markdown(measured: Mapping[str, Any], smallest: int = 10) -> str:
    """Write the false alarms by source; sources of few images are put together."""
    alarms = measured["false_alarms"]
    lines = [
        "| real photos | images | views | joint FPR <= 1 % | <= 5 % | <= 10 % |",
        "|---|---|---|---|---|---|",
    ]

    def line(name: str, row: Mapping[str, Any]) -> str:
        shares = (f"{100 * row['alarms'][q] / row['views']:.1f} %" for q in ("0.01", "0.05", "0.1"))
        return f"| {name} | {row['images']} | {row['views']} | " + " | ".join(shares) + " |"

    lines.append(line("**all**", alarms["all"]))
    means = (
        np.mean([row["alarms"][q] / row["views"] for row in alarms["by_source"].values()])
        for q in ("0.01", "0.05", "0.1")
    )
    lines.append(
        f"| **mean of {len(alarms['by_source'])} sources** | | | "
        + " | ".join(f"{100 * mean:.1f} %" for mean in means)
        + " |"
    )
    lines += [line(f"history {h}", row) for h, row in alarms["by_history"].items()]
    rest: dict[str, Any] = {
        "images": 0,
        "views": 0,
        "alarms": dict.fromkeys(("0.01", "0.05", "0.1"), 0),
    }
    for source, row in alarms["by_source"].items():
        if row["images"] >= smallest:
            lines.append(line(source, row))
        else:
            rest["images"] += row["images"]
            rest["views"] += row["views"]
            for q in rest["alarms"]:
                rest["alarms"][q] += row["alarms"][q]
    if rest["views"]:
        lines.append(line(f"sources of fewer than {smallest} images", rest))
    return "\n".join(lines)


def attribution_markdown(measured: Mapping[str, Any]) -> str:
    """Write how often each head is the most telling, in per cent of each generator's views."""
    names = list(measured["specific"])
    lines = ["| made by | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for generator, row in measured["attribution"].items():
        total = max(1, sum(row.values()))
        lines.append(
            f"| {generator} | "
            + " | ".join(f"{100 * row.get(n, 0) / total:.0f}" for n in names)
            + " |"
        )
    return "\n".join(lines)


def seen_in_training(manifest: Manifest) -> frozenset[tuple[str, str]]:
    """Return the (generator, source) pairs of the training split."""
    return frozenset((row.generator, row.source) for row in manifest.select("train").rows)


def pages(measured: Mapping[str, Any]) -> dict[str, str]:
    """Write all tables of `measure`, by name, as Markdown."""
    return {
        "results": to_markdown(measured),
        "histories": histories_markdown(measured),
        "false alarms": false_alarms_markdown(measured),
        "attribution": attribution_markdown(measured),
    }

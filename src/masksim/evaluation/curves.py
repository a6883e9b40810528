"""Pictures of an evaluation: curves, histograms, and what each head looks for. Needs matplotlib.

Everything that is drawn is computed by `masksim.evaluation.measures` and `masksim.metrics`; masks
and references are drawn by `masksim.show.maps`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import metrics
from masksim.errors import DataError, UsageError
from masksim.evaluation.protocols import PROTOCOLS, protocol_scores
from masksim.show.figures import new_figure
from masksim.show.maps import patterns_png
from masksim.verdict import EVIDENCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.evaluation.measures import Evaluation
    from masksim.evaluation.protocols import Protocol
    from masksim.evaluation.scale import CombinedScores, Scale
    from masksim.results import PatternPlane

_DPI = 120
_REAL_COLOUR = "0.55"
# Told apart with any colour vision (Okabe and Ito), then the same with another line.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
_DASHES = ("-", "--", ":", "-.")
_NAMES = {
    "specific": "own head",
    "generic": "all heads together",
    "leave-one-out": "the other generators' heads",
}
_BINS = 15  # as `metrics.ece`


def draw_all(
    folder: Path,
    given: Evaluation | None = None,
    *,
    chosen: Sequence[Protocol] = PROTOCOLS,
    degradations: Mapping[str, Mapping[str, Any]] | None = None,
    patterns: Mapping[str, Sequence[PatternPlane]] | None = None,
) -> list[Path]:
    """Draw every picture that there are numbers for.

    Parameters
    ----------
    folder
        Made if need be; pictures of the same names are replaced.
    given
        The scores, and what they mean; without them there are no curves.
    chosen
        A picture of ROC curves, one of scores and one of calibration for each of these protocols.
    degradations
        By name, from `masksim.evaluation.evaluate.measure_degradations`.
    patterns
        By generator, from `masksim.detector.Detector.patterns`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UsageError
        matplotlib is not installed, or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def save(figure: Any, name: str) -> None:
        path = folder / f"{name}.png"
        try:
            figure.savefig(path, dpi=_DPI)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        written.append(path)

    for protocol in chosen:
        if given is None:
            break
        found = _curves(given, protocol)
        if not found:
            continue
        save(_roc(found, protocol), f"roc-{protocol}")
        save(_scores(found, protocol, _axis(given.scale, protocol)), f"scores-{protocol}")
        if all(one.log_odds is not None for _, one, _, _ in found):
            save(_reliability(found, protocol), f"reliability-{protocol}")
    if degradations:
        save(_degradations(degradations), "degradations")
        if families := _families(degradations):
            save(_strengths(families, degradations), "degradation-curves")
    for generator, planes in (patterns or {}).items():
        path = folder / f"pattern-{re.sub(r'[^A-Za-z0-9._-]', '_', generator)}.png"
        patterns_png(generator, planes, path)
        written.append(path)
    return written


_Curve = tuple[str, "CombinedScores", "NDArray[np.bool_]", "NDArray[np.float64]"]


def _curves(given: Evaluation, protocol: Protocol) -> list[_Curve]:
    """Scores, labels and weights of each generator that the protocol has an answer for."""
    out: list[_Curve] = []
    for generator in given.table.tested:
        part = given.table.select((given.table.typ == generator) | given.real)
        found = protocol_scores(part, given.scale, protocol, generator)
        if found is None:
            continue
        y = part.typ == generator
        try:
            weights = given.weigh(part.histories, [y, ~y])
        except DataError:  # no history in common
            continue
        used = weights > 0
        out.append((generator, found.select(used), y[used], weights[used]))
    return out


def _axis(scale: Scale, protocol: Protocol) -> str:
    """Say what a protocol's score is, see `evidence`."""
    if protocol != "specific":
        return "highest log-odds" if scale.calibration is None else "−ln of the joint rate"
    if scale.probabilities:
        return "probability"
    if scale.banded:
        return "log-odds" if scale.calibration is None else "−ln of the head's own rate"
    return "score, of masksim's heads a similarity"


def _style(k: int) -> dict[str, str]:
    return {
        "color": _COLOURS[k % len(_COLOURS)],
        "linestyle": _DASHES[k // len(_COLOURS) % len(_DASHES)],
    }


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _roc(found: Sequence[_Curve], protocol: Protocol) -> Any:
    from sklearn.metrics import roc_curve

    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2)
    for k, (generator, one, y, w) in enumerate(found):
        fpr, tpr, _ = roc_curve(y, one.score, sample_weight=w, drop_intermediate=False)
        label = f"{generator}  {metrics.auroc(one.score, y, w):.2f}"
        left.plot(fpr, tpr, label=label, linewidth=1.6, **_style(k))
        right.plot(np.maximum(fpr, 1e-4), tpr, linewidth=1.6, drawstyle="steps-post", **_style(k))
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    grid = np.geomspace(1e-3, 1, 200)
    right.plot(grid, grid, color="0.7", linewidth=1)
    right.set_xscale("log")
    right.set_xlim(1e-3, 1)
    left.set_xlim(0, 1)
    for axes in (left, right):
        _clean(axes)
        axes.set_ylim(0, 1.01)
        axes.set_xlabel("false-positive rate on the real images")
    left.set_ylabel("true-positive rate")
    left.legend(title="AUROC", fontsize=8, title_fontsize=8, loc="lower right", frameon=False)
    left.set_title("whole curve", fontsize=10, loc="left")
    right.set_title("the same, rates on a logarithmic axis", fontsize=10, loc="left")
    figure.suptitle(f"{protocol.capitalize()}: {_NAMES[protocol]}", fontsize=12)
    return figure


def _grid(count: int, height: float) -> tuple[Any, list[Any]]:
    """Panels in rows of three, and wide enough for a title where there are fewer."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = new_figure(max(3.4 * columns + 0.4, 6.0), height * rows + 0.8)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _scores(found: Sequence[_Curve], protocol: Protocol, axis: str) -> Any:
    figure, grid = _grid(len(found), 2.3)
    for k, (axes, (generator, one, y, w)) in enumerate(zip(grid, found, strict=True)):
        bins = np.histogram_bin_edges(one.score, 30)
        for mask, colour, label in (
            (~y, _REAL_COLOUR, "real"),
            (y, _COLOURS[k % len(_COLOURS)], generator),
        ):
            axes.hist(
                one.score[mask], bins, weights=w[mask] / w[mask].sum(), color=colour, alpha=0.6,
                label=label,
            )  # fmt: skip
        _clean(axes)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8, frameon=False)
    figure.supxlabel(axis, fontsize=9)
    figure.supylabel("share of the views", fontsize=9)
    figure.suptitle(f"Scores, {protocol}: {_NAMES[protocol]}", fontsize=11)
    return figure


def _reliability(found: Sequence[_Curve], protocol: Protocol) -> Any:
    figure, grid = _grid(len(found), 2.6)
    for k, (axes, (generator, one, y, w)) in enumerate(zip(grid, found, strict=True)):
        if one.log_odds is None:
            continue
        p = np.exp(-np.logaddexp(0.0, -one.log_odds))
        w = metrics.balanced_weights(y, w) / 2
        number = np.minimum((p * _BINS).astype(int), _BINS - 1)
        weight = np.bincount(number, weights=w, minlength=_BINS)
        full = weight > 0
        mean = np.bincount(number, weights=w * p, minlength=_BINS)[full] / weight[full]
        share = np.bincount(number, weights=w * y, minlength=_BINS)[full] / weight[full]
        colour = _COLOURS[k % len(_COLOURS)]
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot(mean, share, color=colour, linewidth=0.8, alpha=0.6)
        axes.scatter(mean, share, s=6 + 240 * weight[full], color=colour, alpha=0.75)
        _clean(axes)
        axes.tick_params(labelsize=8)
        axes.set_xlim(-0.05, 1.05)
        axes.set_ylim(-0.08, 1.08)
        axes.set_title(
            f"{generator}   ECE {metrics.ece(p, y, w, bins=_BINS):.2f}", fontsize=9, loc="left"
        )
    figure.supxlabel("mean probability of a bin", fontsize=9)
    figure.supylabel("share of synthetic views in it", fontsize=9)
    figure.suptitle(
        f"Reliability, {protocol}: {_NAMES[protocol]} "
        f"({_BINS} bins, areas: their weight, classes weigh the same)",
        fontsize=11,
    )
    return figure


def _degradations(results: Mapping[str, Mapping[str, Any]]) -> Any:
    names = list(results)
    height = 0.26 * len(names)  # inches
    parts = [
        ((("specific_auroc", "own heads, mean"), ("generic_auroc", "all heads")), "AUROC", 0.5),
        (
            (("evidence", "synthetic images"), ("flagged", "real images")),
            "share whose joint rate is called evidence",
            EVIDENCE,
        ),
    ]
    # Without a calibration there are no rates to show.
    parts = [
        part
        for part in parts
        if any(results[n][key] is not None for n in names for key, _ in part[0])
    ] or parts[:1]
    figure = new_figure(0.5 + 5.0 * len(parts), 1.9 + height)
    panels = list(figure.subplots(1, len(parts), sharey=True, squeeze=False).flat)
    for axes, (series, title, line) in zip(panels, parts, strict=True):
        for k, (key, label) in enumerate(series):
            rows = [
                (i, results[n][key]) for i, n in enumerate(names) if results[n][key] is not None
            ]
            if not rows:
                continue
            at = np.array([i for i, _ in rows]) + (k - 0.5) * 0.24
            value = np.array([v.value for _, v in rows])
            low = np.array([v.low for _, v in rows])
            high = np.array([v.high for _, v in rows])
            ends = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
            axes.errorbar(
                value, at, xerr=np.nan_to_num(ends), fmt="o", markersize=4, linewidth=1,
                color=_COLOURS[k], label=label,
            )  # fmt: skip
        _clean(axes)
        axes.set_xlim(-0.02, 1.02)
        axes.set_title(title, fontsize=10, loc="left")
        axes.axvline(line, color="0.7", linewidth=1)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                fontsize=8,
                frameon=False,
                ncols=2,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.3 / height),
            )
    left = panels[0]
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylim(len(names) - 0.4, -0.6)
    # A line between families.
    families = [results[n].get("family", "") for n in names]
    for i in range(1, len(names)):
        if families[i] != families[i - 1]:
            for axes in panels:
                axes.axhline(i - 0.5, color="0.8", linewidth=0.8)
    figure.suptitle("Files as found, after one degradation (bars: 95 % intervals)", fontsize=11)
    return figure


_SERIES = (
    ("specific_auroc", "AUROC, own heads, mean"),
    ("generic_auroc", "AUROC, all heads"),
    ("evidence", "synthetic, evidence"),
    ("flagged", "real, evidence"),
)


def _families(results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[float, str]]]:
    """Strengths and names of the kinds of degradation that have at least three strengths."""
    out: dict[str, list[tuple[float, str]]] = {}
    for name, row in results.items():
        family = row.get("family", "")
        if found := re.fullmatch(rf"{re.escape(family)}-(\d+(?:\.\d+)?)", name):
            out.setdefault(family, []).append((float(found[1]), name))
    return {family: sorted(points) for family, points in out.items() if len(points) >= 3}


def _strengths(
    families: Mapping[str, Sequence[tuple[float, str]]], results: Mapping[str, Mapping[str, Any]]
) -> Any:
    figure, grid = _grid(len(families), 2.7)
    untouched = results.get("none")
    for axes, (family, points) in zip(grid, families.items(), strict=True):
        for k, (key, label) in enumerate(_SERIES):
            known = [
                (x, results[name][key]) for x, name in points if results[name][key] is not None
            ]
            if not known:
                continue
            x = [at for at, _ in known]
            axes.plot(
                x, [v.value for _, v in known], marker="o", markersize=3.5, linewidth=1.4,
                color=_COLOURS[k], label=label,
            )  # fmt: skip
            axes.fill_between(
                x, [v.low for _, v in known], [v.high for _, v in known],
                color=_COLOURS[k], alpha=0.12, linewidth=0,
            )  # fmt: skip
            if untouched is not None and untouched[key] is not None:
                axes.axhline(untouched[key].value, color=_COLOURS[k], linewidth=0.8, linestyle=":")
        _clean(axes)
        axes.tick_params(labelsize=8)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(family, fontsize=10, loc="left")
    figure.legend(*grid[0].get_legend_handles_labels(), fontsize=8, frameon=False, ncols=2,
                  loc="outside lower center")  # fmt: skip
    figure.suptitle("Files as found, by strength of the degradation (dotted: none)", fontsize=11)
    return figure

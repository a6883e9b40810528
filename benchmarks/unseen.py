"""What the detector finds, and how often it is wrong, on images of repositories it has not seen.

usage: python benchmarks/unseen.py CONFIG [--detector FOLDER]
       python benchmarks/unseen.py CONFIG --manifest MANIFEST --cache CACHE [--workers N] [--bank]
       python benchmarks/unseen.py --pages

Every view of the training images is measured with heads, a joint number and calibration photos
that know nothing of its repository (whole repositories left out, both classes). The first form
needs no image: it takes the left-out scores that a detector carries, by default the one in the
package, which are of the images of benchmarks/images.csv and were made by CONFIG; of generators
without a head there are none. The second trains as ``masksim train CONFIG`` does. Both write
benchmarks/results/unseen.json, docs/tables/unseen.md and the tables of README.md and MODEL_CARD.md;
with --pages only the pages anew, from that file; with --bank the same without the learned residual,
for comparison.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from left_out import config_of, read_left_out
from numpy.typing import NDArray
from pages import fill

from masksim import metrics
from masksim.calibration import Calibration
from masksim.checkpoint import DetectorFile
from masksim.data.manifest import REAL, read_manifest
from masksim.intervals import grouped_interval
from masksim.load import bundled_path
from masksim.training.bands import (
    BandsConfig,
    BandsFit,
    file_of,
    fit_bands,
    joint_number,
    learn,
    views_of,
)
from masksim.training.feature_table import FeatureTable
from masksim.training.recipe import ranked_among
from masksim.training.usual_scores import fit_usual_scores
from masksim.traits import BANDS, TRAITS, bands_of
from masksim.usual import UsualScores

ROOT = Path(__file__).resolve().parents[1]
CLAIMED = (0.01, 0.05, 0.10)
SIDES = ((0, 512, "256 to 511"), (512, 1024, "512 to 1,023"), (1024, 1e9, "1,024 and more"))
PARTED = (("side", (512.0, 1024.0)), ("energy", 3))
SMALLEST = 20  # views of a source that is counted among those that keep a claim


def left_out_rates(
    table: FeatureTable,
    fit: BandsFit,
    config: BandsConfig,
    without: str | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Own rates (n, G) and joint rate (n,) of every view among photos of other repositories.

    With `without` the joint number knows neither that generator's head nor its images.
    """
    kept = np.array([name != without for name in fit.generators])
    scores = fit.similarities[:, kept].astype(np.float64)
    own, joint = np.zeros(scores.shape), np.zeros(len(scores))
    ranked = ranked_among(table, config)
    for k in range(config.folds):
        held, rest = fit.folds == k, fit.folds != k
        photos = rest & ranked
        learned = fit.fold_joints[k]
        if not config.relative:
            learned = replace(learned, usual=None)
        if without is not None:
            kin = {without, f"{without}-edit"}
            if without in ("imagen", "gemini-image"):  # of which images it is not known
                kin.add("google-unsure")
            used = rest & ~np.isin(table.generators, list(kin))
            learned = joint_number(scores, table.generators, fit.traits, used, ranked, config)
        usual = None
        if config.relative and without is None:  # without one, only the joint rate is asked for
            usual = usual_scores(k, table, fit, config)
        calibration = Calibration(
            scores[photos], fit.traits[photos], table.sources[photos], config.division, learned,
            usual=usual,
        )  # fmt: skip
        own[held], joint[held] = calibration.all_rates(scores[held], fit.traits[held])
    return own, joint


_USUAL: dict[Any, UsualScores] = {}


def usual_scores(fold: int, table: FeatureTable, fit: BandsFit, config: BandsConfig) -> UsualScores:
    """Learn what photos of the other folds usually score; once a fold."""
    photos = (fit.folds != fold) & ranked_among(table, config)
    key = photos.tobytes()
    if key not in _USUAL:
        _USUAL[key] = fit_usual_scores(fit.similarities[photos], fit.traits[photos])
    return _USUAL[key]


def share(hits: NDArray[np.bool_], sources: NDArray[np.str_]) -> dict[str, float]:
    """Share of hits with its interval, views grouped by repository."""
    interval = grouped_interval(hits, sources)
    return {"value": float(hits.mean()), "low": interval.low, "high": interval.high}


def auroc(scores: NDArray[Any], synthetic: NDArray[np.bool_], sources: Any) -> dict[str, float]:
    """AUROC with its interval, repositories resampled."""
    found = metrics.bootstrap(metrics.auroc, scores, synthetic, groups=sources, samples=200)
    return {"value": found.value, "low": found.low, "high": found.high}


def of_generators(
    table: FeatureTable, fit: BandsFit, config: BandsConfig
) -> dict[str, dict[str, Any]]:
    """One row a generator, those without a head too."""
    own, joint = left_out_rates(table, fit, config)
    band = bands_of(fit.traits, len(BANDS))
    real = table.generators == REAL
    first = table.first
    statistic = -np.log(joint)
    rows = {}
    for name in np.unique(table.generators[~real]).tolist():
        mine = table.generators == name
        row: dict[str, Any] = {
            "images": len(np.unique(table.images[mine])),
            "repositories": len(np.unique(table.sources[mine])),
            "views": int(mine.sum()),
        }
        pair = mine | real
        row["joint_auroc"] = auroc(statistic[pair], mine[pair], table.sources[pair])
        for label, chosen in (("as_found", mine & first), ("views", mine & ~first)):
            for claimed in CLAIMED[:2]:
                row[f"{label}_{claimed:g}"] = share(joint[chosen] <= claimed, table.sources[chosen])
        if name in fit.generators:
            g = fit.generators.index(name)
            # In each band for itself: heads of two bands have no common scale.
            ranked = own[:, g] + 1e-6 * (1 - fit.similarities[:, g])
            row["own_auroc"] = auroc(-ranked[pair], mine[pair], table.sources[pair])
            row["own_auroc_by_band"] = {
                BANDS[b]: metrics.auroc(fit.similarities[pair & (band == b), g],
                                        mine[pair & (band == b)])
                for b in range(len(BANDS))
                if (mine & (band == b)).sum() >= 10
            }  # fmt: skip
            apart = left_out_rates(table, fit, config, without=name)[1]
            row["left_out_auroc"] = auroc(-np.log(apart[pair]), mine[pair], table.sources[pair])
            row["left_out_0.05"] = share(apart[mine & first] <= 0.05, table.sources[mine & first])
        rows[name] = row
    return rows


def of_photos(table: FeatureTable, fit: BandsFit, config: BandsConfig) -> dict[str, Any]:
    """Realised alarms of real photos by what they are and went through."""
    joint = left_out_rates(table, fit, config)[1]
    real = table.generators == REAL
    side = fit.traits[:, TRAITS.index("side")]
    band = bands_of(fit.traits, len(BANDS))
    first = table.first
    kinds = np.array([kind_of(table.rows[i].extra) for i in table.images])
    formats = np.array(
        [
            last_of(p, table.rows[i].format)
            for p, i in zip(table.processing.tolist(), table.images.tolist(), strict=True)
        ]
    )
    # A first compression may be the last step of what was then saved without loss.
    formats[(band == 0) & np.isnan(fit.traits[:, TRAITS.index("quality")])] = "PNG"
    groups: dict[str, NDArray[np.bool_]] = {"all": real, "all kinds, as found": real & first}
    asked = asked_about(table, config)
    found_so = asked & first
    groups["as found"] = found_so
    for low, high, name in SIDES:
        groups[f"side {name}"] = asked & (side >= low) & (side < high)
        groups[f"side {name}, as found"] = found_so & (side >= low) & (side < high)
    energy = fit.traits[:, TRAITS.index("energy")]
    third = np.searchsorted(np.quantile(energy[real & first], (1 / 3, 2 / 3)), energy, "right")
    for k, name in enumerate(("smooth", "middle", "noisy")):
        groups[f"{name} third"] = asked & (third == k)
        groups[f"{name} third, as found"] = found_so & (third == k)
    groups["band low, copies"] = asked & ~first & (band == BANDS.index("low"))
    groups["JPEG pixels saved as PNG"] = (
        asked & ~first & (formats == "PNG") & np.isin(table.histories, ["jpeg", "shared"])
    )
    groups |= {f"band {name}": asked & (band == b) for b, name in enumerate(BANDS)}
    groups |= {f"band {name}, as found": found_so & (band == b) for b, name in enumerate(BANDS)}
    groups |= {f"format {name}": asked & (formats == name) for name in np.unique(formats[real])}
    groups |= {f"kind {name}": real & (kinds == name) for name in np.unique(kinds[real])}
    groups |= {
        f"kind {name}, as found": real & first & (kinds == name) for name in np.unique(kinds[real])
    }
    groups |= {
        f"format {name}, as found": found_so & (formats == name)
        for name in np.unique(formats[real])
    }
    groups |= {
        f"history {name}": asked & (table.histories == name)
        for name in np.unique(table.histories[real])
    }
    found: dict[str, Any] = {"groups": {}}
    for name, mask in groups.items():
        if mask.sum() < SMALLEST:
            continue
        found["groups"][name] = {
            "photos": len(np.unique(table.images[mask])),
            "repositories": len(np.unique(table.sources[mask])),
            "views": int(mask.sum()),
            **{f"{c:g}": share(joint[mask] <= c, table.sources[mask]) for c in CLAIMED},
        }
    found["sources"] = {}
    for c in CLAIMED:
        kept = [
            grouped_interval(joint[own] <= c, table.images[own]).low <= c
            for own in (real & (table.sources == s) for s in np.unique(table.sources[real]))
            if own.sum() >= SMALLEST
        ]
        found["sources"][f"{c:g}"] = {"kept": int(np.sum(kept)), "of": len(kept)}
    return found


def by_ranking(table: FeatureTable, fit: BandsFit, config: BandsConfig) -> dict[str, Any]:
    """What is found, and alarms of files as found and of copies, by who is ranked among, and how.

    Before scores were relative, all kinds counted and photos were parted by side and noise, too.
    """
    real, first = table.generators == REAL, table.first
    before = replace(
        config, relative=False, strata=(*config.strata, *PARTED), stratum_photos=150,
        unranked=(), ranked_least=0,
    )  # fmt: skip
    ways = {
        "of all kinds, parted by side and noise": before,
        "of kinds that people ask about, parted by side and noise": replace(
            before, unranked=config.unranked
        ),
        "of all kinds, but relative to what is usual": replace(config, unranked=()),
        "as shipped: of kinds that people ask about, relative to what is usual": config,
    }
    asked = first & ranked_among(table, config)
    found = {}
    for words, as_ranked in ways.items():
        joint = left_out_rates(table, fit, as_ranked)[1]
        found[words] = {
            label: {f"{c:g}": share(joint[at] <= c, table.sources[at]) for c in CLAIMED}
            for label, at in (("as found", asked), ("copies", real & ~first))
        }
        for label, views in (("found", first), ("found as met", ~first)):
            made = [joint[views & (table.generators == name)] for name in fit.generators]
            found[words][label] = {
                f"{c:g}": {"value": float(np.mean([(j <= c).mean() for j in made]))}
                for c in CLAIMED
            }
    return found


def asked_about(table: FeatureTable, config: BandsConfig) -> NDArray[np.bool_]:
    """Tell which views are of photos of the kinds that images are ranked among: (n,)."""
    kinds = np.array([kind_of(table.rows[i].extra) for i in table.images])
    return (table.generators == REAL) & ~np.isin(kinds, config.unranked)


def kind_of(extra: Any) -> str:
    """Kind of photo by what the manifest says."""
    if extra.get("kind"):
        return str(extra["kind"])
    variant = str(extra.get("variant", ""))
    return variant.split(":", 1)[0] or "unknown"


def last_of(processing: str, found: str) -> str:
    """Format of the file that a view would be: lossless after resampling."""
    last = processing.rsplit(", ", 1)[-1].split()[0].upper() if processing else found
    return {"MPO": "JPEG", "RESIZE": "PNG"}.get(last, last)


def percent(value: dict[str, float]) -> str:
    """Write a share with its interval."""
    return f"{100 * value['value']:.0f} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def decimal(value: dict[str, float]) -> str:
    """Write an AUROC with its interval."""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def mean_row(rows: dict[str, dict[str, Any]], pick: Callable[[dict[str, Any]], float]) -> float:
    """Mean over the generators with heads."""
    return float(np.mean([pick(row) for row in rows.values() if "own_auroc" in row]))


def markdown(found: dict[str, Any]) -> str:
    """Write docs/tables/unseen.md."""
    rows = found["generators"]
    lines = [
        [
            name, str(row["images"]), str(row["repositories"]),
            decimal(row["own_auroc"]) if "own_auroc" in row else "no head",
            decimal(row["joint_auroc"]),
            percent(row["as_found_0.05"]), percent(row["as_found_0.01"]),
            percent(row["views_0.05"]), percent(row["views_0.01"]),
            decimal(row["left_out_auroc"]) if "left_out_auroc" in row else "",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    means = ["**mean of those with heads**", "", ""]
    for key, scale, digits in (
        ("own_auroc", 1, 2), ("joint_auroc", 1, 2), ("as_found_0.05", 100, 0),
        ("as_found_0.01", 100, 0), ("views_0.05", 100, 0), ("views_0.01", 100, 0),
        ("left_out_auroc", 1, 2),
    ):  # fmt: skip
        means.append(f"**{scale * mean_row(rows, lambda r, k=key: r[k]['value']):.{digits}f}**")
    photos = found["photos"]
    alarms = [
        [name, str(row["photos"]), str(row["repositories"]),
         *(percent_fine(row[f"{c:g}"]) for c in CLAIMED)]
        for name, row in photos["groups"].items()
    ]  # fmt: skip
    kept = ", ".join(
        f"{v['kept']} of {v['of']} at {100 * float(c):g} %" for c, v in photos["sources"].items()
    )
    return f"""# {found["name"]} on repositories that it had not seen

The heads that scored an image had seen no image of its repository, and it is ranked among photos
of other repositories. There are {found["folds"]} folds of whole repositories and all of one owner,
photos and generated images alike; [method.md](../method.md#the-bands-recipe) says what is not
nested. Brackets are 95 % intervals over repositories.

Made by `python benchmarks/unseen.py configs/bundled.toml`, which needs no image, from the scores of
{found["images"]:,} images of {found["repositories"]} repositories that the detector carries,
{found["views"]:,} views: each file as found, and four times as people meet it. In short:
[results.md](../results.md). The joint number of each fold is learned anew from them, without the
few images of generators without a head, which have no scores there and had a part in the training.

## What is found

Share of images, in per cent, whose joint rate is at most the claimed one: files as found, and as
people meet them (recompressed, resized, shared). The last column is the joint AUROC where the
generator's own head was not asked, and the joint number was learned without its images and the
pictures edited by it. That is nearly an unknown generator; but the whitening and the other heads'
covariance knew images of it, from other repositories.

{
        table_of(
            [
                "made by",
                "images",
                "repositories",
                "own-head AUROC",
                "joint AUROC",
                "found at 5 %, as found",
                "at 1 %",
                "at 5 %, as met",
                "at 1 %",
                "unknown generator AUROC",
            ],
            [*lines, means],
        )
    }

## False alarms

Share of real photos, in per cent, whose joint rate is at most the claimed one. Images are not
ranked among photos of drones, for photogrammetry, of albums, courses and test sets; these count in
the first two rows and in those by kind, and in no other.

{table_of(["photos", "images", "repositories", "at 1 %", "at 5 %", "at 10 %"], alarms)}

Sources of {SMALLEST} views or more whose interval does not exceed the claim: {kept}.

## How images are ranked

The same scores ranked in other ways: shares of photos (as found of kinds that people ask about,
copies of all kinds) and, mean of the generators with heads, of generated images, in per cent.

{rankings(found["by_ranking"])}
"""


def rankings(found: dict[str, Any]) -> str:
    """Write the table of `by_ranking`."""
    rows = [
        [words, *(percent_fine(values[label][f"{c:g}"])
                  for label in ("as found", "copies") for c in CLAIMED),
         *(f"{100 * values[label][f'{c:g}']['value']:.1f}"
           for label in ("found", "found as met") for c in CLAIMED[:2])]
        for words, values in found.items()
    ]  # fmt: skip
    levels = [f"at {100 * c:g} %" for c in CLAIMED]
    head = ["ranked among", *(f"photos as found {level}" for level in levels),
            *(f"copies of photos {level}" for level in levels),
            *(f"generated {level}" for level in levels[:2]),
            *(f"generated, as met {level}" for level in levels[:2])]  # fmt: skip
    return table_of(head, rows)


def percent_fine(value: dict[str, float]) -> str:
    """Write a small share with its interval."""
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def summary(found: dict[str, Any]) -> str:
    """Write the short table of README.md and MODEL_CARD.md."""
    rows = {name: row for name, row in found["generators"].items() if "own_auroc" in row}
    lines = [
        [name, f"{row['images']} ({row['repositories']})", percent(row["as_found_0.05"]),
         percent(row["as_found_0.01"]), percent(row["views_0.05"])]
        for name, row in rows.items()
    ]  # fmt: skip
    means = [
        f"**{100 * mean_row(rows, lambda r, k=key: r[k]['value']):.0f}**"
        for key in ("as_found_0.05", "as_found_0.01", "views_0.05")
    ]
    lines.append(["**mean**", "", *means])
    photos = found["photos"]["groups"]
    for name in (
        "as found",
        "side 256 to 511, as found",
        "side 512 to 1,023, as found",
        "side 1,024 and more, as found",
    ):
        row = photos[name]
        lines.append(
            [f"*real photos, {name}*", f"{row['photos']} ({row['repositories']})",
             f"*{percent_fine(row['0.05'])}*", f"*{percent_fine(row['0.01'])}*", ""]
        )  # fmt: skip
    head = ["made by", "images (repositories)", "at 5 %, as found", "at 1 %, as found",
            "at 5 %, as people meet them"]  # fmt: skip
    return table_of(head, lines)


def write_pages(found: dict[str, Any]) -> None:
    """Write docs/tables/unseen.md and the tables of README.md and MODEL_CARD.md."""
    (ROOT / "docs/tables/unseen.md").write_text(markdown(found), encoding="utf-8")
    for name in ("README.md", "MODEL_CARD.md"):
        fill(ROOT / name, "unseen", summary(found))


def trained(given: argparse.Namespace, config: BandsConfig) -> tuple[FeatureTable, BandsFit]:
    """Train heads, each fold without a part of the repositories."""
    manifest = read_manifest(given.manifest)
    table = views_of(manifest, config, given.cache, workers=given.workers)
    learned = None
    if not given.bank:
        learned = learn(manifest, table, config, given.cache, workers=given.workers)
    return table, fit_bands(table, config, learned)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--detector", type=Path, default=bundled_path())
    parser.add_argument("--pages", action="store_true", help="Only write the pages again.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Also write the detector, as `masksim train`.")
    parser.add_argument("--scores", type=Path, help="Write the left-out scores here (.npz).")
    parser.add_argument(
        "--bank", action="store_true",
        help="Without the learned residual; writes benchmarks/results/unseen_bank.json, no pages.",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/unseen.json")
    given = parser.parse_args()
    if given.pages:
        write_pages(json.loads(given.json.read_text(encoding="utf-8")))
        return
    if not given.config or (given.manifest is None) != (given.cache is None):
        parser.error("CONFIG is needed, and --manifest and --cache together")
    if given.manifest is None and (given.out or given.bank):
        parser.error("--out and --bank need --manifest")
    config = config_of(given.config)
    if given.manifest is None:
        table, fit = read_left_out(DetectorFile.load(given.detector), config)
    else:
        table, fit = trained(given, config)
    if given.out:
        file_of(table, fit, config).save(given.out, overwrite=True)
    if given.scores:
        np.savez(
            given.scores, similarities=fit.similarities, folds=fit.folds, traits=fit.traits,
            generators=table.generators, sources=table.sources, images=table.images,
            histories=table.histories, names=np.array(fit.generators),
        )  # fmt: skip
    found = {
        "name": config.name,
        "config": given.config.name,
        "folds": config.folds,
        "images": len(np.unique(table.images)),
        "views": len(table.images),
        "repositories": len(np.unique(table.sources)),
        "generators": of_generators(table, fit, config),
        "photos": of_photos(table, fit, config),
        "by_ranking": by_ranking(table, fit, config),
    }
    if given.bank:
        path = given.json.with_name("unseen_bank.json")
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_pages(found)


if __name__ == "__main__":
    main()

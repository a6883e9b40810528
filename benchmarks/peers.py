"""Second opinions on the same images: AUROC by generator of masksim and two published detectors.

usage: python benchmarks/peers.py --images FOLDER --ferretnet CLONE --ladeda CLONE [--per-class 20]

FOLDER is where benchmarks/images.py put the images; those that the detector has not seen are taken,
as in benchmarks/fresh.py, drawn so that every source has its turn. The clones are yours, with the
weights in them; examples/peers has the adapters. Each image is scored as found (the whole file),
and as the central window, of one size for all, of the views that `masksim evaluate` measures on:
every history that it allows, then one more JPEG of quality 65 to 100. All see the same pixels. The
size of the image alone is scored beside them: what is seen through it is no trace of a generator.
Needs torch, which the peers need. Writes benchmarks/results/peers.json and the tables of
docs/tables/peers.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np
from images import drawn, unseen_rows
from pages import ROOT, fill

from masksim import metrics
from masksim.data.manifest import REAL
from masksim.data.views import views
from masksim.data.weights import history_weights
from masksim.errors import MasksimError
from masksim.evaluation import scoring as evaluate
from masksim.evaluation.other_detectors import open_peer
from masksim.image import load_image
from masksim.load import load_detector
from masksim.preprocess import centre_window

MARKERS = {"as found": "peers as found", "window": "peers in windows"}
FEWEST = 8  # images of a generator in the tables
EXAMPLES = ROOT / "examples" / "peers"


def measured(facts: list[dict], name: str, purpose: str, shares: dict, samples: int) -> dict:
    """AUROC of one detector by generator, and over all images."""
    facts = [fact for fact in facts if fact["purpose"] == purpose]
    typ, source, path, history = (
        np.array([fact[key] for fact in facts]) for key in ("typ", "source", "path", "history")
    )
    scores = np.array([fact["scores"][name] for fact in facts])
    real, out = typ == REAL, {}
    groups = {name: typ == name for name in np.unique(typ[~real]).tolist()}
    groups["all"] = ~real
    for label, synthetic in groups.items():
        used = real | synthetic
        y = synthetic[used]
        weights = np.ones(len(y))
        if purpose != "as found":
            weights = history_weights(history[used], [y, ~y], shares)
        keep = weights > 0
        if len(np.unique(path[used][keep & y])) < FEWEST:
            continue
        alike, _ = metrics.draw_together(y, path[used], source[used])
        found = metrics.bootstrap(
            metrics.auroc, scores[used][keep], y[keep], weights[keep],
            groups=alike[keep], samples=samples,
        )  # fmt: skip
        out[label] = {
            "images": len(np.unique(path[used][keep & y])),
            "auroc": found.value,
            "low": found.low,
            "high": found.high,
        }
    return out


def table(result: dict, names: list[str]) -> str:
    """One row a generator, one column a detector."""
    lines = [f"| made by | images | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for label, first in result[names[0]].items():
        cells = [
            f"{r['auroc']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
            for r in (result[name][label] for name in names)
        ]
        lines.append(f"| {label} | {first['images']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Score, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--ferretnet", type=Path, required=True, metavar="CLONE")
    parser.add_argument("--ladeda", type=Path, required=True, metavar="CLONE")
    parser.add_argument("--per-class", type=int, default=20, help="images of each generator")
    parser.add_argument("--real", type=int, default=100, help="real photos")
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    there, missing = unseen_rows(args.images)
    detector = load_detector(threads=1)
    config = evaluate.views_of(detector)
    assert detector.calibrations
    rows = drawn(there, {"*": args.per_class, REAL: args.real})
    python = quote(sys.executable)
    ladeda = f"{python} {quote(str(EXAMPLES / 'ladeda.py'))} {quote(str(args.ladeda))}"
    commands = {
        "FerretNet-S": f"{python} {quote(str(EXAMPLES / 'ferretnet.py'))} "
        f"{quote(str(args.ferretnet))}",
        "Tiny-LaDeDa": ladeda,
        "Tiny-LaDeDa.left_diag": f"{ladeda} --preprocess left_diag",
    }
    names = ["masksim", *commands, "size alone"]
    facts, failures = [], []
    seconds, asked = dict.fromkeys(names, 0.0), 0
    with ExitStack() as stack:
        peers = {
            name: stack.enter_context(open_peer(f"{name}={command}"))
            for name, command in commands.items()
        }
        blank = np.zeros((512, 512, 3), np.uint8)
        for peer in peers.values():  # the start is not part of the seconds an image
            peer.score([blank])
        for number, row in enumerate(rows):
            try:
                loaded = load_image(args.images / row.path)
                pixels, file = loaded.pixels, (loaded.facts.jpeg_quality, loaded.facts.format)
                sized = replace(row, height=pixels.shape[0], width=pixels.shape[1])
                seen_to = [("as found", "as found", pixels, file)]
                for view in views(pixels, sized, "evaluate", config, 0):
                    last = (view.quality, view.format)
                    height, width = view.pixels.shape[:2]
                    if min(height, width) >= config.window:
                        y, x = centre_window(height, width, config.window)
                        window = view.pixels[y : y + config.window, x : x + config.window]
                        seen_to.append(("window", view.history, window, last))
                for purpose, history, shown, last in seen_to:
                    scores = {}
                    for name in names:
                        start = time.perf_counter()
                        if name in peers:
                            scores[name] = peers[name].score([shown])[0]
                        elif name == "size alone":  # generated images are the smaller ones
                            scores[name] = -float(shown.shape[0] * shown.shape[1])
                        else:
                            rates = detector.rates(*detector.measure_pixels(shown, *last))
                            assert rates is not None
                            # One number for all generators, as the peers give.
                            scores[name] = float(-np.log(rates.joint))
                        seconds[name] += time.perf_counter() - start
                    asked += 1
                    facts.append(
                        {
                            "path": row.path,
                            "typ": row.generator,
                            "source": row.source,
                            "purpose": purpose,
                            "history": history,
                            "scores": scores,
                        }
                    )
            except MasksimError as error:
                if error.code == "peer_failed":
                    raise
                failures.append(error.code)
            print(f"\r{number + 1}/{len(rows)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    result = {
        "detector": detector.name,
        "detector_sha256": detector.sha256,
        "real_images": len({f["path"] for f in facts if f["typ"] == REAL}),
        "missing": missing,
        "failures": failures,
        "seconds_a_view": {name: seconds[name] / asked for name in names[:-1]},
        **{
            purpose: {
                name: measured(facts, name, purpose, config.shares, args.samples) for name in names
            }
            for purpose in MARKERS
        },
    }
    path = ROOT / "benchmarks" / "results" / "peers.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for purpose, marker in MARKERS.items():
        text = table(result[purpose], names)
        fill(ROOT / "docs" / "tables" / "peers.md", marker, text)
        print(f"{purpose}\n\n{text}\n")
    print(json.dumps(result["seconds_a_view"]))


if __name__ == "__main__":
    main()

"""Tables of scores made up here, for the tests of the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from masksim.data.manifest import REAL
from masksim.evaluation.score_table import ScoreTable

HEADS = ("a", "b", "c")


def make(
    counts: dict[str, int], *, seed: int = 0, probabilities: bool = True, sources: int = 4
) -> ScoreTable:
    """Scores of which each generator's own head is high; ``z`` is known to no head."""
    rng = np.random.default_rng(seed)
    typ = np.array([name for name, n in counts.items() for _ in range(n)])
    scores = rng.normal(-1.0, 1.0, (len(typ), len(HEADS)))
    for g, head in enumerate(HEADS):
        scores[typ == head, g] += 2.0
        scores[typ == head, (g + 1) % len(HEADS)] += 1.0
    scores[typ == "z"] += 0.7
    if probabilities:
        scores = 1 / (1 + np.exp(-scores))
    names = np.array([f"{name}/{i}.png" for i, name in enumerate(typ)])
    source = np.array([f"{name}-{i % sources}" for i, name in enumerate(typ)])
    formats = np.where(np.arange(len(typ)) % 2 == 0, "PNG", "JPEG")
    empty = np.array([""] * len(typ))
    return ScoreTable(names, typ, source, empty, formats, empty, HEADS, scores)


def write_original(folder: Path, *, text_only: bool = False) -> dict[tuple[str, str], list[float]]:
    """Write what the original's score_table.py leaves: probabilities by numpy and by json."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    trained = ("dalle2", "sd1", "sdxl")
    scores = {}
    for test in (REAL, *trained):
        n = 30 if test == REAL else 20
        for name in trained:
            p = np.round(rng.beta(5 if test == name else 1, 2, size=n), 6)
            scores[test, name] = p.tolist()
            np.savetxt(folder / f"{test}_to_{name}.txt", p)
            where = "raise" if test == REAL else f"synthbuster/{test}"
            pairs = [(f"processed_data/JPEG_Qrandom/{where}/{i}.png", v) for i, v in enumerate(p)]
            if not text_only:
                (folder / f"{test}_to_{name}.json").write_text(json.dumps(pairs, indent=2))
    return scores

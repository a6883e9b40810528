"""Images of public repositories, out of clones of these, by their hashes.

usage: python benchmarks/images.py --clones FOLDER --out FOLDER

benchmarks/images.csv lists each image by repository, path and git blob, with its generator, the
evidence for that, and what it shows; `seen_by` names the first detector that was trained on images
of that repository, or for which something was chosen on them. FOLDER/OWNER+NAME is a git clone,
bare or not. Images go to OUT/GENERATOR/OWNER+NAME/BLOB.EXT, unchanged, and OUT/manifest.csv lists
them for the other benchmarks. What was not found is counted; call it again when there are more
clones.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pages import ROOT

from masksim.augment import rng_for
from masksim.data.manifest import Row, write_manifest
from masksim.files import make_folder, write_whole

LIST = ROOT / "benchmarks" / "images.csv"
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "HEIF": ".heic"}


def blobs(clone: Path, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Read blobs of a clone by one git process; those that it lacks are left out."""
    command = ["git", "-C", str(clone), "cat-file", "--batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as git:
        assert git.stdin is not None
        assert git.stdout is not None
        for blob in ids:
            git.stdin.write(f"{blob}\n".encode())
            git.stdin.flush()
            head = git.stdout.readline().split()
            if len(head) < 3:
                continue
            data = git.stdout.read(int(head[2]))
            git.stdout.read(1)
            if hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != blob:
                raise SystemExit(f"{clone} holds other bytes as {blob}")
            yield blob, data
        git.stdin.close()
    if git.returncode:
        raise SystemExit(f"git cannot read {clone}")


def read_list() -> list[dict[str, str]]:
    """Read benchmarks/images.csv."""
    with LIST.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def owner_of(line: Mapping[str, Any]) -> str:
    """Name whose repository an image is from."""
    return str(line["repository"]).split("/")[0]


def unseen(listed: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Give the images of owners of whom no detector has seen any."""
    seen = {owner_of(line) for line in listed if line["seen_by"]}
    return [line for line in listed if owner_of(line) not in seen]


def unseen_rows(images: Path) -> tuple[list[Row], int]:
    """Give the rows of the unseen images that are in a folder, and how many are missing there."""
    return collect(unseen(read_list()), images, images)


def answered(
    path: Path, files: Mapping[str, Any], ask: Callable[[Any], Mapping[str, Any]], workers: int
) -> dict[str, dict[str, Any]]:
    """Ask about what is named by blob, in several processes; answers are kept in a file of lines.

    What was asked in an earlier call is not asked again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    answers = {answer["blob"]: answer for answer in map(json.loads, texts)}
    todo = [blob for blob in files if blob not in answers]
    spawn = multiprocessing.get_context("spawn")  # a fork of ONNX Runtime's threads may hang
    with path.open("a", encoding="utf-8") as out, ProcessPoolExecutor(workers, spawn) as pool:
        found = pool.map(ask, [files[blob] for blob in todo])
        for blob, answer in zip(todo, found, strict=True):
            answers[blob] = {"blob": blob, **answer}
            out.write(json.dumps(answers[blob]) + "\n")
            out.flush()
    return answers


def drawn(rows: Sequence[Row], most: Mapping[str, int]) -> list[Row]:
    """Draw so many images of a generator (``"*"``: of others), each source in turn."""
    chosen: list[Row] = []
    for generator in sorted({row.generator for row in rows}):
        own = [row for row in rows if row.generator == generator]
        by_source = defaultdict(list)
        for row in sorted(own, key=lambda row: rng_for("drawn", row.path).random()):
            by_source[row.source].append(row)
        turns = sorted(
            (turn, source, row) for source, of in by_source.items() for turn, row in enumerate(of)
        )
        count = most.get(generator, most["*"])
        chosen += [row for *_, row in turns[:count]]
    return chosen


def path_of(line: Mapping[str, str]) -> str:
    """Say where a listed image goes, relative to the folder of all."""
    suffix = SUFFIXES.get(line["format"], f".{line['format'].lower()}")
    return f"{line['generator']}/{line['repository'].replace('/', '+')}/{line['blob']}{suffix}"


def row_of(line: Mapping[str, str]) -> Row:
    """Give a listed image's row of a manifest."""
    return Row(
        path_of(line), line["generator"], line["repository"], "train", "",
        int(line["width"]), int(line["height"]), line["format"],
        extra={key: line[key] for key in ("blob", "kind", "seen_by")},
    )  # fmt: skip


def collect(listed: Sequence[Mapping[str, str]], clones: Path, out: Path) -> tuple[list[Row], int]:
    """Write the listed images that the clones hold; give their rows and how many are missing."""
    by_repository: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for line in listed:
        by_repository[line["repository"]].append(line)
    rows: list[Row] = []
    for repository, lines in sorted(by_repository.items()):
        paths = {line["blob"]: path_of(line) for line in lines}
        clone = clones / repository.replace("/", "+")
        lacking = [blob for blob, path in paths.items() if not (out / path).exists()]
        if lacking and clone.is_dir():
            for blob, data in blobs(clone, lacking):
                make_folder((out / paths[blob]).parent)
                write_whole(out / paths[blob], data)
        rows += [row_of(line) for line in lines if (out / paths[line["blob"]]).exists()]
    return rows, len(listed) - len(rows)


def main() -> None:
    """Collect, write the manifest, say on stderr what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clones", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows, missing = collect(read_list(), given.clones, given.out)
    write_manifest(given.out / "manifest.csv", rows)
    print(f"{len(rows)} images, {missing} missing", file=sys.stderr)


if __name__ == "__main__":
    main()

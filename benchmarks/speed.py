"""Time and memory of one image: the original's algorithm, ours, and what the processor allows.

usage: python benchmarks/speed.py [--quick] [--repetitions N]

The original's algorithm (seven detectors, a DnCNN each, one pass for the scores and one for the
maps, float32 PyTorch without folding) is written here from its description and has random weights:
they do not change the time. It is timed in turns with the bundled detector (all generators, scores
and maps) and with a detector made of the same seven networks, on generated pixels and all cores.
Peak memory and cold starts are of new processes, one each. The floor is the counted arithmetic
over the measured rate of a float32 matrix product, both in processor time: seconds of all cores
together, which other programs on the machine change less than seconds on the clock.

With --quick the original runs one of its seven detectors, and its time is multiplied. Writes
benchmarks/results/speed.json and a table. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(CORES)

import numpy as np  # noqa: E402
from first_use import ROOT, photo, run  # noqa: E402

import masksim  # noqa: E402
from masksim.show.tables import Column, Table  # noqa: E402

GENERATORS = ("sd1", "sd2", "sdxl", "dalle2", "dalle3", "midjourney", "firefly")
WINDOW = 512


# --- the original's algorithm ----------------------------------------------------------------


def original_detectors(count: int) -> list[Any]:
    """Make detectors of the original's sizes with random weights."""
    from masksim.original.network import OriginalNetwork
    from masksim.residual import ResidualConfig

    return [
        OriginalNetwork(ResidualConfig.dncnn(), WINDOW, seed=seed).eval() for seed in range(count)
    ]


def original_pass(network: Any, planes: Any) -> tuple[float, Any]:
    """Score and map of one detector, step by step as the original computes them."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        residual = network.preproc(planes)
        transform = torch.fft.fft2(residual, norm="ortho")
        found = torch.log(torch.abs(torch.fft.fftshift(transform, dim=(-2, -1))) + 1e-10)
        mask = torch.sigmoid(network.mask_conv(network.mask_pre_activ_list[0]))
        masked = (network.in_conv_fft(found) * mask).flatten(2)
        features = network.norm_vector(masked)
        reference = network.ref_pattern_list[0].flatten(1)
        reference = reference - reference.mean(dim=-1, keepdim=True)
        score = functional.cosine_similarity(features, reference[None], dim=-1).mean()
        unit = functional.normalize(features, dim=-1) * functional.normalize(reference, dim=-1)
        probability = torch.sigmoid(torch.exp(network.clf_a) * score + network.clf_b)
        return float(probability), unit.reshape(masked.shape[:2] + mask.shape[-2:]).mean(dim=1)


def original(networks: list[Any], planes: Any) -> None:
    """All scores, then all maps: two passes a detector."""
    for network in networks:
        original_pass(network, planes)
    for network in networks:
        original_pass(network, planes)


def imported(folder: Path, networks: list[Any]) -> None:
    """Save the same detectors as `masksim import-original` would."""
    from masksim.checkpoint import Branch, DetectorFile
    from masksim.original.importer import DEFAULT_COLOUR
    from masksim.residual import residual_onnx
    from masksim.spectrum import EPSILON

    branches = []
    for name, network in zip(GENERATORS, networks, strict=True):
        weights = network.residual_weights()
        branches.append(
            Branch(
                residual=network.residual, residual_weights=weights,
                onnx=residual_onnx(network.residual, weights),
                preprocess={
                    "window": WINDOW, "colour": DEFAULT_COLOUR, "windows": 1, "aligned": True
                },
                spectrum={"kind": "log", "epsilon": EPSILON}, head="original",
                generators=(name,), tensors=network.tensors(),
            )
        )  # fmt: skip
    DetectorFile(config={"recipe": "original"}, branches=tuple(branches)).save(folder)


def planes_of(pixels: Any) -> Any:
    """The central window as the original's tensor."""
    import torch

    from masksim.preprocess import centre_window, to_colour

    y, x = centre_window(*pixels.shape[:2], WINDOW)
    cut = pixels[None, y : y + WINDOW, x : x + WINDOW]
    return torch.from_numpy(to_colour(cut, "YCbCr-BT601-studio-8bit"))


# --- in processes of their own ------------------------------------------------------------------


def child_original() -> None:
    """Seven detectors in memory, one image."""
    import torch

    torch.set_num_threads(CORES)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (WINDOW, WINDOW, 3), dtype=np.uint8)
    networks = original_detectors(len(GENERATORS))
    original_pass(networks[0], planes_of(pixels))  # the others would need no more


def child_imported(folder: str) -> None:
    """Save the imported detectors."""
    imported(Path(folder), original_detectors(len(GENERATORS)))


def child_one_core(path: str, repetitions: str) -> None:
    """Processor time of decoding and of analysing a JPEG, by one thread."""
    detector = masksim.load_detector(threads=1)
    loaded = masksim.load_image(path, part=detector.analysed_part)
    steps: dict[str, Callable[[], Any]] = {
        "decode": lambda: masksim.load_image(path, part=detector.analysed_part),
        "similarities": lambda: detector.similarities(loaded.pixels),
        "detect": lambda: detector.detect(path),
        "explain": lambda: detector.explain(path),
    }
    found = interleaved(steps, int(repetitions))
    print(json.dumps(found))


CHILDREN = {
    "original": child_original, "imported": child_imported, "one-core": child_one_core
}  # fmt: skip


def child(name: str, *arguments: str) -> list[str]:
    """Command that runs one of the functions above."""
    return [sys.executable, __file__, "--child", name, *arguments]


# --- measuring ----------------------------------------------------------------------------------


def interleaved(
    steps: dict[str, Callable[[], Any]], repetitions: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each step, all steps in turns, after one turn that does not count."""
    clocks = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(repetitions + 1):
        for name, step in steps.items():
            start = {clock: now() for clock, now in clocks.items()}
            step()
            taken[name].append({clock: now() - start[clock] for clock, now in clocks.items()})
    return {
        name: {clock: statistics.median(turn[clock] for turn in turns[1:]) for clock in clocks}
        for name, turns in taken.items()
    }


def cold(command: list[str], repetitions: int) -> dict[str, float]:
    """Median seconds and largest memory of new processes."""
    runs = [run(command) for _ in range(repetitions)]
    return {
        "seconds": statistics.median(r["seconds"] for r in runs),
        "peak_mb": max(r["peak_mb"] for r in runs),
    }


def rates(size: int, repetitions: int) -> dict[str, float]:
    """Float32 operations of a matrix product, and bytes of a stream triad, a processor second."""
    a = np.random.default_rng(0).random((size, size), dtype=np.float32)
    b, c = (np.ones(16_000_000, dtype=np.float32) for _ in range(2))
    out = np.empty_like(b)

    def triad() -> None:
        np.multiply(c, np.float32(3), out=out)
        np.add(b, out, out=out)

    best = {"matmul": math.inf, "triad": math.inf}
    for _ in range(max(5, repetitions)):
        for name, step in (("matmul", lambda: a @ a), ("triad", triad)):
            start = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - start)
    return {
        "float32_gflops_a_core": 2 * size**3 / best["matmul"] / 1e9,
        "stream_gb_s_of_one_thread": 5 * out.nbytes / best["triad"] / 1e9,
    }


def bundled_operations(windows: int) -> dict[str, float]:
    """Arithmetic of the bundled detector, as written; a logarithm or root counts as one."""
    from masksim.bank import BANK
    from masksim.features import FeatureConfig

    config = FeatureConfig()
    n = config.segment
    groups = ((config.window, 1, config.hops[0]), (config.window // 2, 2, config.hops[1]))
    transforms = sum(
        ((side - n) // hop + 1) ** 2 * planes * len(BANK) for side, planes, hop in groups
    )
    pixels = sum(side**2 * planes for side, planes, _ in groups)
    cells = 3 * len(BANK) * (n // config.cell) * (n // config.cell // 2)
    heads = len(masksim.load_detector().generators)
    return {
        # A real transform of N values: 2.5 N log2 N.
        "transforms": windows * transforms * 2.5 * n**2 * math.log2(n**2),
        # Window; two squares, two sums, logarithm, sum.
        "logarithms": windows * transforms * (n**2 + 6 * n * (n // 2 + 1)),
        # Cross difference 3, clip 2, box and division 13, median 19; colour 9 a pixel.
        "bank": windows * (37 * pixels + 9 * config.window**2),
        "heads": 6 * cells * heads,
    }


def original_operations() -> float:
    """Of the convolutions alone: seven detectors, two passes."""
    side, total = WINDOW, 0
    widths = [3, *[64] * 16, 3]
    for before, after in itertools.pairwise(widths):
        side -= 2
        total += 2 * 9 * before * after * side**2
    return float(2 * len(GENERATORS) * total)


def measure(folder: Path, repetitions: int, quick: bool) -> dict[str, Any]:
    """Everything."""
    photos = {"512": (512, 512), "1024": (1024, 1024), "12 MP": (3000, 4000), "50 MP": (6200, 8100)}
    paths = {name: folder / f"{name.replace(' ', '')}.jpg" for name in photos}
    model = folder / "imported"
    context = multiprocessing.get_context("spawn")
    # In processes of their own: a child's peak memory counts what its parent held at the fork.
    for name, size in photos.items():
        making = context.Process(target=photo, args=(paths[name], *size))
        making.start()
        making.join()
    subprocess.run(child("imported", str(model)), check=True)

    base = [sys.executable, "-m", "masksim", "detect"]
    starts = {
        f"{name}{' and pictures' if pictures else ''}": cold(
            [*base, str(path), *(["--maps", str(folder / "maps")] if pictures else [])], repetitions
        )
        for name, path in paths.items()
        for pictures in (False, True)
        if name != "50 MP" or not pictures
    }
    memory = {
        "original, seven detectors": run(child("original"))["peak_mb"],
        "imported, seven detectors": run([*base, "--model", str(model), str(paths["512"])])[
            "peak_mb"
        ],
        **{f"bundled, {name}": starts[name]["peak_mb"] for name in paths},
    }
    done = subprocess.run(
        child("one-core", str(paths["1024"]), str(4 * repetitions)),
        check=True, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    one_core = json.loads(done.stdout)

    import torch  # not before: new processes would count it as theirs

    torch.set_num_threads(CORES)
    detector, other = masksim.load_detector(), masksim.load_detector(model)
    small, large = (masksim.load_image(paths[name]).pixels for name in ("512", "1024"))
    planes = planes_of(small)
    networks = original_detectors(1 if quick else len(GENERATORS))
    seconds = interleaved(
        {
            "original, scores and maps": lambda: original(networks, planes),
            "imported, scores and maps": lambda: other.explain(small),
            "bundled, 1 window, scores and maps": lambda: detector.explain(small),
            "bundled, 4 windows, scores and maps": lambda: detector.explain(large),
            "bundled, 4 windows, scores": lambda: detector.detect(large),
        },
        repetitions,
    )
    first = seconds["original, scores and maps"]
    for clock in first:
        first[clock] *= len(GENERATORS) / len(networks)
    found = rates(4096, repetitions)
    peak = 1e9 * found["float32_gflops_a_core"]
    counted = {windows: bundled_operations(windows) for windows in (1, 4)}
    floors = {
        "original, scores and maps": original_operations() / peak,
        "imported, scores and maps": original_operations() / 2 / peak,
        **{
            f"bundled, {windows} window{'s' if windows > 1 else ''}, scores and maps": sum(
                counted[windows].values()
            )
            / peak
            for windows in (1, 4)
        },
    }
    return {
        "cores": CORES, "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__,
        "detector": detector.sha256, "repetitions": repetitions, "quick": quick,
        "seconds": seconds,
        "times_as_fast_as_the_original": {
            name: {clock: first[clock] / value[clock] for clock in value}
            for name, value in seconds.items()
        },
        "one_core_seconds": one_core,
        "images_a_second_a_core": 1 / one_core["detect"]["processor_seconds"],
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "cold_starts": starts, "peak_mb": memory,
        "rates": found, "operations_of_4_windows": counted[4], "floor_processor_seconds": floors,
        "times_the_floor": {
            name: seconds[name]["processor_seconds"] / floor for name, floor in floors.items()
        },
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    faster, floor = result["times_as_fast_as_the_original"], result["floor_processor_seconds"]
    rows = [
        [name, *value.values(), *faster[name].values(), floor.get(name),
         result["times_the_floor"].get(name)]
        for name, value in result["seconds"].items()
    ]  # fmt: skip
    one_core = [
        [name, 1000 * value["processor_seconds"]]
        for name, value in result["one_core_seconds"].items()
    ]
    cold_starts = [[name, c["seconds"], c["peak_mb"]] for name, c in result["cold_starts"].items()]
    cores = f"One image on {result['cores']} cores, decoded before"
    heads = ["what", "s", "CPU s", "s ratio", "CPU ratio", "floor, CPU s", "CPU / floor"]
    print_table(cores, heads, rows)
    print_table("1024 x 1024 JPEG in one thread, processor time", ["step", "ms"], one_core)
    print_table("masksim detect in a new process", ["image", "seconds", "peak MB"], cold_starts)
    print_table("Peak memory", ["what", "MB"], [list(item) for item in result["peak_mb"].items()])
    print(
        f"{result['images_a_second_a_core']:.1f} images a second a core; peak of a core "
        f"{result['rates']['float32_gflops_a_core']:.0f} Gflop/s, stream of one thread "
        f"{result['rates']['stream_gb_s_of_one_thread']:.0f} GB/s; load average "
        f"{result['load_average'] and result['load_average'][0]}"
    )


def print_table(title: str, heads: list[str], rows: list[list[Any]]) -> None:
    """Print one table, three digits after the point."""
    columns = tuple(Column(head, head, 3) for head in heads)
    table = Table("speed", title, columns, tuple(map(tuple, rows)))
    print(table.to_text(100), end="\n\n")


def main() -> None:
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--child", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, *arguments = args.child
        CHILDREN[name](*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.repetitions or (1 if args.quick else 5), args.quick)
    out = ROOT / "benchmarks" / "results" / "speed.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()

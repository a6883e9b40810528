"""What a batch costs: images a second, memory by size, share of the cores' time in the analysis.

usage: python benchmarks/batch.py [IMAGE ...] [--sizes 500 2000] [--workers N]
       python benchmarks/batch.py [IMAGE ...] --kill 20 --sizes 2000

Of the given images (or of generated ones, 512 x 512) as many copies as each size asks for are made
in a temporary folder, each with noise of its own of +-2 levels, as JPEG of quality 92. `masksim
batch` runs over them; memory is that of all its processes together, sampled five times a second
(proportional set size: shared pages count once). `share_in_analysis` is the CPU time inside
`Detector.detect`, summed over the processes, divided by cores x time from the first row to the
last: it needs a machine with nothing else to do. `share_of_own_cpu` divides it by the CPU time of
all processes of the batch in that time.

With --kill, the process group of a batch is killed by SIGKILL at N moments drawn at random, gone on
with after each, and the sorted rows compared with those of an uninterrupted run.

Linux only. Writes benchmarks/results/batch.json (--kill: batch_kill.json) and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import masksim
from masksim.batch import run_batch
from masksim.config import cores
from masksim.detector import Detector
from masksim.load import load_detector
from masksim.results import Detection

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Timed(Detector):
    """Writes the CPU time before and after each analysis to a file of its process."""

    def detect(self, image: Any, *, name: str | None = None) -> Detection:
        start = time.process_time()
        try:
            return super().detect(image, name=name)
        finally:
            path = Path(os.environ["MASKSIM_BENCHMARK_TIMES"]) / str(os.getpid())
            with open(path, "a", encoding="ascii") as file:
                file.write(f"{start} {time.process_time()}\n")


def load_timed() -> Detector:
    return Timed(load_detector(threads=1).file, threads=1)


def generated(size: int = 512, count: int = 8) -> list[np.ndarray]:
    """Pictures of natural statistics: soft shapes and noise."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)
        made.append((smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8))
    return made


def copies(sources: list[np.ndarray], folder: Path, count: int) -> None:
    """Write `count` images, no two the same."""
    folder.mkdir()
    for k in range(count):
        source = sources[k % len(sources)]
        noise = np.random.default_rng(k).integers(-2, 3, source.shape)
        pixels = (source.astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:06d}.jpg", quality=92)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue
        found.extend(int(child) for child in children.split())
    return found


def memory(pid: int) -> float:
    """Proportional set size of a process and all below it, MB."""
    total = 0
    for member in family(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def one_size(folder: Path, workers: int) -> dict[str, float]:
    """Rate, memory of all processes, and share of the cores' time in the analysis."""
    with tempfile.TemporaryDirectory() as scratch:
        out, times = Path(scratch) / "results.jsonl", Path(scratch) / "times"
        command = ["batch", str(folder), "--out", str(out), "--workers", str(workers), "--json"]
        child = subprocess.Popen(
            [sys.executable, "-m", "masksim", *command],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # The first half as well as the whole: what grows shows itself.
        samples: list[float] = []
        while child.poll() is None:
            samples.append(memory(child.pid))
            time.sleep(0.2)
        assert child.stdout is not None
        summary = json.loads(child.stdout.read())
        times.mkdir()
        os.environ["MASKSIM_BENCHMARK_TIMES"] = str(times)
        rows: list[tuple[float, int, float]] = []
        run_batch(
            sorted(str(path) for path in folder.iterdir()), out, load=load_timed, workers=workers,
            overwrite=True,
            progress=lambda _, done, __: rows.append(
                (time.perf_counter(), done, time.process_time())
            ),
        )  # fmt: skip
        begin = next(k for k, (_, done, _) in enumerate(rows) if done)
        (first, early, led), (last, done, leads) = rows[begin], rows[-1]
        spent, own = 0.0, leads - led
        for path in times.iterdir():
            pairs = [tuple(map(float, line.split())) for line in path.read_text().splitlines()]
            spent += sum(after - before for before, after in pairs)
            own += pairs[-1][1] - pairs[0][0]
        share = spent * (done - early) / done / (min(workers, cores()) * (last - first))
        return {
            "images": summary["images"],
            "images_per_second": summary["images_per_second"],
            "images_per_second_without_start": round((done - early) / (last - first), 2),
            "peak_mb": round(max(samples)),
            "peak_mb_of_first_half": round(max(samples[: max(1, len(samples) // 2)])),
            "cpu_ms_an_image": round(1000 * spent / done, 1),
            "share_in_analysis": round(share, 3),
            "share_of_own_cpu": round(spent / own, 3),
        }


def rows_of(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    for row in rows:
        del row["seconds"]
    return sorted(json.dumps(row) for row in rows)


def kill(folder: Path, workers: int, times: int, seed: int) -> dict[str, Any]:
    """Kill a batch at random moments; tell whether the rows are those of an uninterrupted one."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, out = Path(scratch) / "whole.jsonl", Path(scratch) / "killed.jsonl"

        def start(path: Path) -> subprocess.Popen[bytes]:
            command = ["batch", str(folder), "--out", str(path), "--workers", str(workers)]
            return subprocess.Popen(
                [sys.executable, "-m", "masksim", *command, "--resume"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

        begun = time.perf_counter()
        child = start(whole)
        while child.poll() is None and not (whole.exists() and whole.stat().st_size):
            time.sleep(0.01)
        starting = time.perf_counter() - begun
        if child.wait():
            raise SystemExit("the uninterrupted batch failed")
        working = time.perf_counter() - begun - starting
        at, torn = [], 0
        for _ in range(times):
            child = start(out)
            # Any moment: while it starts, works or, for the last ones, ends.
            time.sleep(draw.uniform(0, 2 * (starting + working / times)))
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            content = out.read_bytes() if out.exists() else b""
            at.append(content.count(b"\n"))
            torn += not content.endswith(b"\n") and bool(content)
        if start(out).wait():
            raise SystemExit("going on failed")
        return {
            "images": len(rows_of(whole)),
            "kills": times,
            "rows_at_each_kill": at,
            "torn_lines": torn,
            "same_sorted_rows": rows_of(out) == rows_of(whole),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 2000])
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--kill", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sources = [masksim.load_image(path).pixels for path in options.images] or generated()
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in options.sizes:
            folder = Path(scratch) / str(size)
            copies(sources, folder, size)
            measured.append(
                kill(folder, options.workers, options.kill, options.seed)
                if options.kill
                else one_size(folder, options.workers)
            )
            print("  ".join(f"{name} {value}" for name, value in measured[-1].items()), flush=True)
    RESULTS.mkdir(exist_ok=True)
    result = {
        "machine": {"cores": cores(), "processor": platform.processor() or platform.machine()},
        "workers": options.workers,
        "measured": measured,
    }
    path = RESULTS / ("batch_kill.json" if options.kill else "batch.json")
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.kill and not all(one["same_sorted_rows"] for one in measured):
        raise SystemExit("rows were lost, doubled or changed")


if __name__ == "__main__":
    main()

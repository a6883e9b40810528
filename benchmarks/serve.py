"""Load on the service, on this machine alone: throughput, waits, memory, and lost or mixed answers.

usage: python benchmarks/serve.py [--seconds S] [--images N]

A process of its own (`masksim serve`) is asked by another over loopback. First the detector alone,
in a process like the server's: decoding and analysis of the same bytes by as many threads as the
service has workers, and for comparison one image at a time with a thread a core. Then the service:

1x    one client more than workers, each of which asks again as soon as it is answered
4x    a queue of one place a worker, and four times as many clients as fit inside: those who are
      refused (429) come again a little later, as a busy public service would see it

The clients' own work is on the same cores: their share of processor time is told as well, and the
processor time an image takes, which other work on the machine disturbs less than the throughput.
Detector and service are timed in turns. Every answer's sha256 and name are compared with what was
sent. All loops end by the clock. Writes benchmarks/results/serve.json and a table. Needs the extras
`serve` and `data` (for httpx), and Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import httpx
import numpy as np
from first_use import ROOT
from PIL import Image

import masksim

WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ROUNDS = 3
"""Detector and service in turns."""


def pictures(count: int) -> list[bytes]:
    """Made-up photos of 1024 x 1024 pixels as JPEG of quality 92, all different."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((1024, 1024), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 3, smooth.shape)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
        found.append(buffer.getvalue())
    return found


# --- the detector alone ------------------------------------------------------------------------


def alone(images: list[bytes], seconds: float, workers: int) -> tuple[float, float]:
    """Images a second of the detector, and processor seconds an image.

    Of so many threads of one processor thread each.
    """
    detector = masksim.load_detector(threads=1 if workers > 1 else None)
    detector.detect(images[0])
    end = time.perf_counter() + seconds

    def run(first: int) -> int:
        k = first
        while time.perf_counter() < end:
            json.dumps(detector.detect(images[k % len(images)]).to_dict())
            k += workers
        return (k - first) // workers

    start, own = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        done = sum(pool.map(run, range(workers)))
    return done / (time.perf_counter() - start), (time.process_time() - own) / done


def in_process(images: Path, seconds: float, workers: int) -> tuple[float, float]:
    """As `alone`, in a new process."""
    code = (
        "import pickle, sys; sys.path.insert(0, sys.argv[1]); from serve import alone; "
        "print(*alone(pickle.load(open(sys.argv[2], 'rb')), float(sys.argv[3]), int(sys.argv[4])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (Path(__file__).parent, images, seconds, workers))],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rate, processor = map(float, done.stdout.split())
    return rate, processor


# --- the service -------------------------------------------------------------------------------


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, int]]:
    """Start `masksim serve`; give its address and process id."""
    with subprocess.Popen(
        [sys.executable, "-m", "masksim", "serve", "--port", "0", *options],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            event = json.loads(line)
            url = event.get("url", url)
            if event["event"] == "ready":
                break
        # Its log must be read, or it would wait for the reader.
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(lambda: sum(1 for _ in process.stderr or ()))
            try:
                yield url, process.pid
            finally:
                process.terminate()
                process.wait(60)
                rest.result()


def peak(pid: int) -> int:
    """Largest resident size of a process so far, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(url: str, images: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Let so many clients ask until the time is over; count what they get."""
    digests = [hashlib.sha256(data).hexdigest() for data in images]
    took: list[float] = []
    statuses: Counter[int] = Counter()
    mixed = lost = 0
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, verify=False) as client:
        start = time.perf_counter()
        own = time.process_time()

        async def one(first: int) -> None:
            nonlocal mixed, lost
            k = first
            while time.perf_counter() < start + seconds:
                at = k % len(images)
                name = f"{first}-{k}.jpg"
                asked = time.perf_counter()
                try:
                    answer = await client.post("/v1/detect", files={"file": (name, images[at])})
                except httpx.HTTPError:
                    lost += 1
                    continue
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    took.append(time.perf_counter() - asked)
                    image = answer.json()["image"]
                    mixed += image["sha256"] != digests[at] or image["name"] != name
                else:
                    await asyncio.sleep(0.25)
                k += clients

        await asyncio.gather(*(one(k) for k in range(clients)))
        wall = time.perf_counter() - start
        own = time.process_time() - own
    return {
        "clients": clients,
        "clients_share_of_cores": own / wall / WORKERS,
        "images_per_second": len(took) / wall,
        "p50_ms": 1e3 * float(np.quantile(took, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(took, 0.99)),
        "answered": len(took),
        "refused_429": statuses[429],
        "other_statuses": sum(n for code, n in statuses.items() if code not in (200, 429)),
        "lost": lost,
        "mixed": mixed,
    }


def together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Put rounds together: what was counted as a sum, memory as the largest, else the median."""
    found = {}
    for key in rounds[0]:
        values = [level[key] for level in rounds]
        if key in ("answered", "refused_429", "other_statuses", "lost", "mixed"):
            found[key] = sum(values)
        else:
            found[key] = max(values) if key == "peak_bytes" else statistics.median(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each level (at most 60)")
    parser.add_argument("--images", type=int, default=24)
    arguments = parser.parse_args()
    seconds = min(arguments.seconds, 60.0)

    images = pictures(arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "images"
        packed.write_bytes(pickle.dumps(images))
        one_by_one, _ = in_process(packed, seconds, 1)
        detector, normal, overload, costs = [], [], [], []
        for _ in range(ROUNDS):
            detector.append(in_process(packed, seconds, WORKERS))
            with serving("--workers", str(WORKERS)) as (url, pid):
                asyncio.run(ask(url, images, WORKERS, 1.0))  # warm
                # One more than workers, so that none of them waits for a client.
                before = processor_seconds(pid)
                normal.append(asyncio.run(ask(url, images, WORKERS + 1, seconds)))
                costs.append((processor_seconds(pid) - before) / normal[-1]["answered"])
                normal[-1]["peak_bytes"] = peak(pid)
            with serving("--workers", str(WORKERS), "--queue", str(WORKERS)) as (url, pid):
                overload.append(asyncio.run(ask(url, images, 4 * 2 * WORKERS, seconds)))
                overload[-1]["peak_bytes"] = peak(pid)

    rates, own_costs = zip(*detector, strict=True)
    best = max(statistics.median(rates), one_by_one)
    costs_alone, costs_served = statistics.median(own_costs), statistics.median(costs)
    usual, heavy = together(normal), together(overload)
    found = {
        "workers": WORKERS,
        "image": "1024 x 1024 JPEG, quality 92, made up",
        "seconds": seconds,
        "rounds": ROUNDS,
        "detector_images_per_second": statistics.median(rates),
        "detector_rounds": rates,
        "detector_one_at_a_time": one_by_one,
        "service_rounds": [level["images_per_second"] for level in normal],
        "overload_rounds": [level["images_per_second"] for level in overload],
        "share_of_detector": usual["images_per_second"] / best,
        "processor_seconds_an_image": {"detector": costs_alone, "service": costs_served},
        "share_by_processor_time": costs_alone / costs_served,
        "1x": usual,
        "4x": heavy,
        "load_average_at_end": os.getloadavg()[0],
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": WORKERS,
    }
    target = ROOT / "benchmarks" / "results" / "serve.json"
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    rows = []
    for name, level in (("1x", usual), ("4x", heavy)):
        rows.append(
            [
                name, str(int(level["clients"])), f"{level['images_per_second']:.2f}",
                f"{level['p50_ms']:.0f}", f"{level['p99_ms']:.0f}",
                f"{level['peak_bytes'] / 1e6:.0f}", str(level["refused_429"]),
                str(level["lost"]), str(level["mixed"]),
            ]
        )  # fmt: skip
    for row in [
        ["load", "clients", "images/s", "p50 ms", "p99 ms", "peak MB", "429", "lost", "mixed"],
        *rows,
    ]:
        print("".join(f"{cell:>10}" for cell in row))
    print(
        f"processor time an image: detector {1e3 * costs_alone:.0f} ms, service "
        f"{1e3 * costs_served:.0f} ms: {100 * found['share_by_processor_time']:.0f} %"
    )
    print(
        f"detector alone: {found['detector_images_per_second']:.2f} images/s "
        f"({one_by_one:.2f} one at a time); service: {100 * found['share_of_detector']:.0f} %, "
        f"clients on the same cores: {100 * usual['clients_share_of_cores']:.0f} % of them"
    )


if __name__ == "__main__":
    main()

"""Rate and peak memory of preparing many images.

    python benchmarks/data_prepare.py [COUNT] [--workers N] [--side PIXELS] [--out FILE]

Makes COUNT images (three of four JPEG, the others PNG), prepares them as ``JPEG_Qrandom`` in a
process of its own, prepares them once more (everything is kept), and verifies them without the leak
probe. Prints a table and writes JSON: images/s, seconds and peak memory of each step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Runs a command of masksim and tells its own peak memory. On Linux ru_maxrss would begin with the
# memory of the parent at the fork; VmHWM does not.
CHILD = """
import json, pathlib, re, resource, sys, time
from masksim.cli.data import app
start = time.monotonic()
try:
    app(sys.argv[1:], standalone_mode=False)
except SystemExit as stop:
    assert not stop.code, stop.code
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text()).group(1)) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
print(json.dumps({"seconds": time.monotonic() - start, "peak_bytes": peak}), file=sys.stderr)
"""


def make_images(folder: Path, count: int, side: int) -> int:
    """Write `count` images of `side` x (side + 64) pixels, each another cut of a large scene."""
    rng = np.random.default_rng(0)
    fy, fx = np.fft.fftfreq(2048)[:, None], np.fft.rfftfreq(2048)[None, :]
    radius = np.maximum(np.hypot(fy, fx), 1 / 2048)
    scene = np.stack(
        [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(2048, 2048))) / radius) for _ in range(3)], -1
    )
    scene = scene / scene.std() * 40 + 120 + rng.normal(scale=2, size=scene.shape)
    pixels = np.clip(np.rint(scene), 0, 255).astype(np.uint8)
    corners = rng.integers(0, 2048 - side - 64, (count, 2))
    qualities = rng.integers(65, 101, count)

    def make(n: int) -> int:
        y, x = corners[n]
        cut = pixels[y : y + side, x : x + side + 64].copy()
        cut[0, :4, 0] = np.frombuffer(np.uint32(n).tobytes(), np.uint8)  # no two alike
        generator = "real" if n % 2 else "sd1"
        path = (
            folder / generator / f"s{n // 2 % 20:02d}" / f"{n:06d}.{'png' if n % 8 < 2 else 'jpg'}"
        )
        if path.suffix == ".png":
            Image.fromarray(cut).save(path, compress_level=1)
        else:
            Image.fromarray(cut).save(path, quality=int(qualities[n]))
        return path.stat().st_size

    for generator in ("real", "sd1"):
        for source in range(20):
            (folder / generator / f"s{source:02d}").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(make, range(count)))


def run(words: list[str], count: int) -> dict[str, Any]:
    """Run one command in a fresh process; return its rate and peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result = json.loads(done.stderr.strip().splitlines()[-1])
    return {
        "images_per_second": round(count / result["seconds"], 1),
        "seconds": round(result["seconds"], 2),
        "peak_mib": round(result["peak_bytes"] / 2**20, 1),
        "report": json.loads(done.stdout),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", type=int, default=528)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "data_prepare.json"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        start = time.monotonic()
        n_bytes = make_images(root / "raw", args.count, args.side)
        print(f"{args.count} images made in {time.monotonic() - start:.0f} s", file=sys.stderr)
        workers = ["--workers", str(args.workers), "--json", "--quiet"]
        prepare = [
            "prepare", "--real", str(root / "raw/real"), "--synthetic", f"sd1={root / 'raw/sd1'}",
            "--variant", "JPEG_Qrandom", "--out", str(root / "out"), *workers,
        ]  # fmt: skip
        steps = {
            "prepare": run(prepare, args.count),
            "prepare again (all kept)": run(prepare, args.count),
            "verify (no probe)": run(
                ["verify", str(root / "out"), "--no-probe", *workers], args.count
            ),
        }
    made = steps["prepare"].pop("report")
    again = steps["prepare again (all kept)"].pop("report")
    verified = steps["verify (no probe)"].pop("report")
    assert made["images"] == args.count, made["failures"][:3]
    assert (again["kept"], again["manifest_hash"]) == (args.count, made["manifest_hash"])
    assert verified["errors"] == 0, verified["findings"][:3]
    result = {
        "images": args.count,
        "size": f"{args.side + 64}x{args.side}",
        "source_bytes": n_bytes,
        "workers": args.workers,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "manifest_hash": made["manifest_hash"],
        "steps": steps,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'step':28}{'images/s':>10}{'seconds':>10}{'peak MiB':>10}")
    for step, values in steps.items():
        print(
            f"{step:28}{values['images_per_second']:>10}{values['seconds']:>10}"
            f"{values['peak_mib']:>10}"
        )


if __name__ == "__main__":
    main()

"""What a first use costs: install size, cold start, time and memory of one 12-megapixel photo.

usage: python benchmarks/first_use.py [--install] [--runs N]

Every run is a new process, `python -m masksim detect photo.jpg`; the photo is generated (smooth
shapes and noise) and saved as JPEG of quality 92. With --install, a fresh virtual environment is
made, the package installed without extras, and its size taken with and without compiled files.
Writes benchmarks/results/first_use.json and a table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PREINSTALLED = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils")


def photo(path: Path, height: int = 3000, width: int = 4000) -> None:
    """Save a generated picture of natural statistics."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 100, width // 100, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 4, smooth.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def run(command: list[str]) -> dict[str, float]:
    """Seconds and peak resident memory of a command."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{command} failed")
    return {"seconds": round(seconds, 3), "peak_mb": round(usage.ru_maxrss / 1024, 1)}


def install() -> dict[str, float]:
    """Size in MB of the core install in a fresh environment, without what a new one holds."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        site = next((Path(folder) / "lib").glob("python*/site-packages"))

        def size(compiled: bool) -> float:
            files = (p for p in site.rglob("*") if p.is_file() and not p.is_symlink())
            return sum(
                p.stat().st_size
                for p in files
                if compiled or p.suffix != ".pyc"
                if p.relative_to(site).parts[0].split("-")[0] not in PREINSTALLED
            ) / 1e6  # fmt: skip

        start = time.perf_counter()
        subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT)], check=True)
        return {
            "seconds": round(time.perf_counter() - start, 1),
            "mb": round(size(False), 1),
            "mb_with_compiled_files": round(size(True), 1),
        }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    result: dict[str, object] = {"python": platform.python_version(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        # In a process of its own: a child's peak memory counts what its parent held at the fork.
        making = multiprocessing.get_context("spawn").Process(target=photo, args=(path,))
        making.start()
        making.join()
        base = [sys.executable, "-m", "masksim"]
        for name, command in (
            ("help", [*base, "--help"]),
            ("detect 12 megapixels", [*base, "detect", str(path)]),
            (
                "detect 12 megapixels, maps",
                [*base, "detect", str(path), "--maps", str(Path(folder) / "maps")],
            ),
        ):
            runs = sorted((run(command) for _ in range(args.runs)), key=lambda r: r["seconds"])
            result[name] = {
                "median_seconds": runs[len(runs) // 2]["seconds"],
                "peak_mb": max(r["peak_mb"] for r in runs),
            }
    if args.install:
        result["install"] = install()
    out = ROOT / "benchmarks" / "results" / "first_use.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

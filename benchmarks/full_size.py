"""The full-size network, end to end: `python -m benchmarks.full_size [--target T ...]` (about 4 GB of disk for each).

Each step is a process of its own; its time and peak memory are the operating system's. Weights are random: neither
depends on them. Takes minutes and up to 16 GB of memory, so it is no part of the tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT, write_rows
from runtime.manifest import Manifest

_LIMIT_GB = 16.0


def main() -> int:
    """Build, then (where the target runs here) verify and predict; print and save. Status 1 when a step fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="random/lotus-d")
    parser.add_argument("--resolution", default="512x512")
    parser.add_argument("--target", nargs="+", default=["onnxruntime", "tensorrt-rtx"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--calibration-images", default="1", metavar="N", help="of a precision below fp32")
    parser.add_argument("--image", default="tiny/samples/room.png")
    parser.add_argument("--output", type=Path, default=Path("engines"))
    parser.add_argument("--name", default="full-size", help="of the bundles and rows, before target and precision")
    arguments = parser.parse_args()
    rows = []
    for target in arguments.target:
        bundle = arguments.output / f"{arguments.name}-{target}-{arguments.precision}"
        what = [arguments.checkpoint, "--resolution", arguments.resolution, "--target", target]
        what += ["--precision", arguments.precision, "--calibration-images", arguments.calibration_images]
        setting = {"target": target, "resolution": arguments.resolution, "precision": arguments.precision}
        steps = {"build": ["export/build_engine.py", *what, "--output", str(bundle), "--overwrite"]}
        if target in ("onnxruntime", "openvino"):
            steps["verify"] = ["-m", "runtime", "verify", str(bundle)]
            steps["predict"] = ["-m", "runtime", "predict", str(bundle), arguments.image, "--output", "out/full-size"]
        for step, command in steps.items():
            rows.append(setting | {"step": step} | _run(command))
            print("{target:<14} {step:<8} status {status}  {seconds:7.1f} s  peak {peak_gb:5.2f} GB".format(**rows[-1]))
        if (bundle / "manifest.json").exists():
            manifest = Manifest.load(bundle)
            size = sum(file.bytes for file in manifest.files) / 1e9
            golden = [dataclasses.asdict(run) for run in manifest.golden.measured]
            engines = {bucket.engine for bucket in manifest.buckets}
            engine = sum(file.bytes for file in manifest.files if file.path in engines) / 1e9
            rows.append(setting | {"bundle_gb": round(size, 2), "engine_gb": round(engine, 2), "golden": golden})
            print(f"{target:<14} bundle   {size:.2f} GB, engine {engine:.2f} GB  golden {golden}")
    for target in arguments.target:
        title = f"{arguments.name}-{target}" + (f"-{arguments.precision}" if arguments.precision != "fp32" else "")
        name = write_rows(title, [row for row in rows if row["target"] == target]).name
        print(f"rows: {name}")
    failed = [row for row in rows if row.get("status", 0) != 0 or row.get("peak_gb", 0) > _LIMIT_GB]
    return 1 if failed else 0


def _run(command: list[str]) -> dict[str, Any]:
    """Run as a child; wall seconds and peak resident memory (with mapped files) as the kernel counts them."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "status": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


if __name__ == "__main__":
    sys.exit(main())

"""The full-size network, end to end: `python -m benchmarks.full_size [--target T ...]`.

Each step is a process of its own; the operating system counts its time and peak memory. Weights are
random: neither depends on them. It takes minutes, up to 16 GB of memory and about 4 GB of disk for
each target, so it is no part of the tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT, parse_arguments, write_rows
from runtime.extras import require
from runtime.manifest import Manifest

_LIMIT_GB = 16.0


def main() -> int:
    """Build, then (where the target runs here) verify and predict; print and save. Status 1 when a
    step fails.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="random/lotus-d")
    parser.add_argument("--resolution", default="512x512")
    parser.add_argument("--target", nargs="+", default=["onnxruntime", "tensorrt-rtx"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument(
        "--calibration-images", default="1", metavar="N", help="of a precision below fp32"
    )
    parser.add_argument("--image", default="tiny/samples/room.png")
    parser.add_argument("--output", type=Path, default=Path("engines"))
    parser.add_argument(
        "--name", default="full-size", help="of the bundles and rows, before target and precision"
    )
    arguments = parse_arguments(parser)
    require("torch")
    rows = []
    for target in arguments.target:
        own = list(_measure(target, arguments))
        suffix = "" if arguments.precision == "fp32" else f"-{arguments.precision}"
        saved = write_rows(f"{arguments.name}-{target}{suffix}", own, dirty=arguments.dirty)
        print(f"rows: {saved.name}")
        rows += own
    failed = [row for row in rows if row.get("status", 0) != 0 or row.get("peak_gb", 0) > _LIMIT_GB]
    return 1 if failed else 0


def _measure(target: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each step of a target, then one for its bundle if there is one."""
    bundle = arguments.output / f"{arguments.name}-{target}-{arguments.precision}"
    setting = {
        "target": target,
        "resolution": arguments.resolution,
        "precision": arguments.precision,
    }
    for step, command in _steps(target, bundle, arguments).items():
        row = _run(command)
        print(
            f"{target:<14} {step:<8} status {row['status']}  {row['seconds']:7.1f} s  "
            f"peak {row['peak_gb']:5.2f} GB"
        )
        yield setting | {"step": step} | row
    if (bundle / "manifest.json").exists():
        manifest = Manifest.load(bundle)
        size = sum(file.bytes for file in manifest.files) / 1e9
        golden = [dataclasses.asdict(run) for run in manifest.golden.measured]
        engines = {bucket.engine for bucket in manifest.buckets}
        engine = sum(file.bytes for file in manifest.files if file.path in engines) / 1e9
        print(f"{target:<14} bundle   {size:.2f} GB, engine {engine:.2f} GB  golden {golden}")
        sizes = {"bundle_gb": round(size, 2), "engine_gb": round(engine, 2)}
        yield setting | sizes | {"golden": golden}


def _steps(target: str, bundle: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The words behind `python` of each step, by its name."""
    build = ["export/build_engine.py", arguments.checkpoint, "--resolution", arguments.resolution]
    build += ["--target", target, "--precision", arguments.precision]
    build += ["--calibration-images", arguments.calibration_images]
    steps = {"build": [*build, "--output", str(bundle), "--overwrite"]}
    if target in ("onnxruntime", "openvino"):  # the others need a GPU
        steps["verify"] = ["-m", "runtime", "verify", str(bundle)]
        predict = ["-m", "runtime", "predict", str(bundle), arguments.image]
        steps["predict"] = [*predict, "--output", "out/full-size"]
    return steps


def _run(command: list[str]) -> dict[str, Any]:
    """Run as a child; wall seconds and peak resident memory (with mapped files) as the kernel
    counts them.
    """
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

"""From the start of a process to an opened bundle, and the memory that it takes: `python -m
benchmarks.opening BUNDLE [BUNDLE ...]`.

Three processes for each bundle: without compiled networks that are kept (`keep=False`), with them
for the first time (it compiles, keeps, and proves itself), and with them for the second time. Each
runs the network once after that. The bundle's files were read once before, so that the disk counts
in none, and are known to be whole, as they are after the first time. The peak counts mapped files,
as Linux does; beside it stands what `runtime.memory` estimates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT, parse_arguments, write_rows
from runtime.manifest import Manifest
from runtime.memory import estimate

_CODE = """
import json, re, sys, time
start = time.perf_counter()
from pathlib import Path
import numpy as np
from runtime.manifest import Manifest
from runtime.opening import Opening
folder, backend, keep, runs = sys.argv[1:]
manifest = Manifest.load(Path(folder))
opening = Opening(folder=Path(folder), manifest=manifest, backend=backend, keep=keep == "True")
with opening(manifest.buckets[0]) as session:
    opened = time.perf_counter()
    if runs == "1":
        session({name: np.zeros(shape, np.float32) for name, shape in session.input_shapes.items()})
    ran = time.perf_counter()
peak = int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"opening_s": opened - start, "run_s": ran - opened, "peak_gb": peak / 1e9}))
"""
_AGAIN = "kept, second time"
_WAYS = {"not kept": False, "kept, first time": True, _AGAIN: True}


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--backend", help="default: each bundle's target")
    parser.add_argument("--rounds", type=int, default=1, help="of all ways; the least times count")
    parser.add_argument("--name", default="opening")
    arguments = parse_arguments(parser)
    rows: list[dict[str, Any]] = []
    for bundle in arguments.bundles:
        manifest = Manifest.load(bundle)
        backend = arguments.backend or manifest.target
        for file in manifest.files:
            (bundle / file.path).read_bytes()
        best = _measure(bundle, backend, arguments.rounds)
        for way, found in best.items():
            told = estimate(manifest, manifest.buckets[0], backend, kept=way == _AGAIN)
            row = {
                "bundle": manifest.name,
                "backend": backend,
                "way": way,
                **{key: round(value, 2) for key, value in found.items()},
                "bundle_gb": round(sum(file.bytes for file in manifest.files) / 1e9, 2),
                **({} if told is None else {"estimate_gb": round(told / 1e9, 2)}),
            }
            print(row, flush=True)
            rows.append(row)
    print(f"rows: {write_rows(arguments.name, rows, dirty=arguments.dirty).name}")
    return 0


def _measure(bundle: Path, backend: str, rounds: int) -> dict[str, dict[str, float]]:
    """For each way its times and its peak, and the bytes that are kept."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            here = os.environ | {"LOTUS_EDGE_CACHE": cache}
            unproved = here | {"LOTUS_EDGE_PROVE": "0"}
            _run(bundle, backend, False, 0, unproved)  # the files are known then
            for way, keep in _WAYS.items():
                found = _run(bundle, backend, keep, 1, here if keep else unproved)
                kept = Path(cache, "compiled").rglob("*")
                found["kept_gb"] = sum(path.stat().st_size for path in kept if path.is_file()) / 1e9
                if keep and not found["kept_gb"]:  # not worth it, or no room
                    break
                known = best.setdefault(way, found)
                best[way] = {key: min(value, known[key]) for key, value in found.items()}
    return best


def _run(
    bundle: Path, backend: str, keep: bool, runs: int, environment: dict[str, str]
) -> dict[str, float]:
    command = [sys.executable, "-c", _CODE, str(bundle), backend, str(keep), str(runs)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())

"""A run of full length, killed and resumed: `python -m benchmarks.evaluate_long BUNDLE...`.

Rendered rooms in the layout of NYUv2, 654 of 480x640 as there. Each bundle is measured by
`benchmarks.evaluate` in a process of its own that is killed on the way and started again; with
`--twice` also once without a stop. The row has the time of each stage, and whether both gave the
same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.rows import ROOT, parse_arguments, write_rows
from runtime import LotusError
from tiny.render import render

_HEIGHT, _WIDTH, _SMALLER = 480, 640, 4
_KILLED_AT = 0.4  # of the pictures


def main() -> int:
    """Measure each bundle and write the rows. Status 1 where a run fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--images", type=int, default=654)
    parser.add_argument("--data", type=Path, default=ROOT / "out" / "evaluate-long")
    parser.add_argument("--twice", action="store_true", help="also without a stop, to compare")
    parser.add_argument("--name", default="evaluate-long")
    arguments = parse_arguments(parser)
    try:
        _render_set(arguments.data, arguments.images)
        rows = [
            _measure(bundle, arguments.data, arguments.images, twice=arguments.twice)
            for bundle in arguments.bundles
        ]
        print(f"rows: {write_rows(arguments.name, rows, dirty=arguments.dirty).name}")
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _render_set(root: Path, count: int) -> None:
    """`count` pictures with a camera's noise, their depth with holes, where they are not yet."""
    place = root / "nyuv2" / "nyu_labeled_extracted" / "test" / "rooms"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        if (place / f"depth_{number:04d}.png").exists():
            continue
        scene = render(20_000 + number, _HEIGHT // _SMALLER, _WIDTH // _SMALLER)
        random = np.random.default_rng(number)
        image = np.array(
            Image.fromarray(scene.image).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
        )
        noisy = image + random.normal(0, 4, image.shape)
        depth = np.kron(scene.depth, np.ones((_SMALLER, _SMALLER)))
        holes = np.kron(scene.sky, np.ones((_SMALLER, _SMALLER))) > 0
        holes |= random.integers(0, 20, depth.shape) == 0
        levels = np.where(holes, 0, np.rint(depth * 1000)).clip(0, 65535).astype(np.uint16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"rgb_{number:04d}.png")
        Image.fromarray(levels).save(place / f"depth_{number:04d}.png")


def _measure(bundle: Path, root: Path, count: int, *, twice: bool) -> dict[str, Any]:
    output = root / "results"
    shutil.rmtree(output, ignore_errors=True)
    killed_s, _ = _run(bundle, root, output / "stopped", kill_at=int(count * _KILLED_AT))
    (journal,) = output.glob("stopped/*/*/images.jsonl")
    kept = journal.read_bytes().count(b"\n")
    resumed_s, memory = _run(bundle, root, output / "stopped")
    (stopped,) = _rows(output / "stopped")
    row = {
        "bundle": stopped["bundle"],
        "backend": stopped["backend"],
        "images": count,
        "seconds": stopped["seconds"],
        "kept_at_the_kill": kept,
        "killed_after_s": killed_s,
        "resumed_s": resumed_s,
        "peak_gb": memory,
        "metrics": stopped["metrics"],
    }
    if twice:
        row["whole_s"], _ = _run(bundle, root, output / "whole")
        row["same_numbers"] = [each["metrics"] for each in _rows(output / "whole")] == [
            stopped["metrics"]
        ]
    return row


def _rows(output: Path) -> list[dict[str, Any]]:
    (path,) = output.glob("*/rows.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def _run(bundle: Path, root: Path, output: Path, kill_at: int | None = None) -> tuple[float, float]:
    """Seconds and peak memory in GB of one process. Raises: LotusError."""
    command = [sys.executable, "-m", "benchmarks.evaluate", str(bundle), "--data", str(root)]
    start = time.perf_counter()
    child = subprocess.Popen(
        [*command, "--output", str(output), "--sets", "nyuv2"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT  # look, and leave the usage for wait4
    while kill_at is not None and os.waitid(os.P_PID, child.pid, ended) is None:
        lines = [path.read_bytes().count(b"\n") for path in output.glob("*/*/images.jsonl")]
        if lines and min(lines) >= kill_at:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in ((0,) if kill_at is None else (0, -signal.SIGKILL)):
        raise LotusError(f"benchmarks.evaluate ended with status {child.returncode}")
    return round(time.perf_counter() - start, 1), round(usage.ru_maxrss / 1e6, 2)


if __name__ == "__main__":
    sys.exit(main())

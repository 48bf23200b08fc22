"""Time to the first prediction, from the command line: `python -m benchmarks.cold_start`.

Whole processes are timed. The first is not counted: it fills the disk cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import ROOT, parse_arguments, write_rows
from runtime.extras import require

_BACKENDS = ("onnxruntime", "openvino")


def main() -> int:
    """Time `import runtime` beyond NumPy and Pillow, and one cold `python -m runtime predict`;
    print and save.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("engines/demo"))
    parser.add_argument("--image", type=Path, default=Path("tiny/samples/room.png"))
    parser.add_argument("--runs", type=int, default=7)
    arguments = parse_arguments(parser)
    require(*_BACKENDS)
    probe = (
        "import time, numpy, numpy.random, PIL.Image, PIL.ImageOps; s = time.perf_counter(); "
        "from runtime import LotusEngine; print(time.perf_counter() - s)"
    )
    rows = [
        _row(
            "import runtime, beyond NumPy and Pillow",
            [_printed_seconds(probe) for _ in range(arguments.runs + 1)],
        )
    ]
    for backend in _BACKENDS:
        seconds = [
            _predict(arguments.bundle, arguments.image, backend) for _ in range(arguments.runs + 1)
        ]
        rows.append(_row(f"python -m runtime predict, one image, {backend}", seconds))
    for row in rows:
        print(
            f"{row['what']:<52} min {row['min_s']:.3f} s  median {row['median_s']:.3f} s  max "
            f"{row['max_s']:.3f} s"
        )
    print(f"rows: {write_rows('cold-start', rows, dirty=arguments.dirty).name}")
    return 0


def _row(measured: str, seconds: list[float]) -> dict[str, object]:
    counted = seconds[1:]
    return {
        "what": measured,
        "runs": len(counted),
        "min_s": min(counted),
        "median_s": statistics.median(counted),
        "max_s": max(counted),
    }


def _printed_seconds(code: str) -> float:
    return float(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True
        ).stdout
    )


def _predict(bundle: Path, image: Path, backend: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "runtime",
            "predict",
            str(bundle),
            str(image),
            "--output",
            folder,
        ]
        start = time.perf_counter()
        subprocess.run([*command, "--backend", backend], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())

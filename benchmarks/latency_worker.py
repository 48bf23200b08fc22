"""The process of one baseline, which `benchmarks.latency` starts and talks to over its pipes.

It first says how long it took to load and to predict once, or why it cannot. Then it answers each
line "go" with the seconds of one prediction, and "end" with its peak memory. Every message is one
line of JSON. The last prediction is saved to `--output`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines import BASELINES, Work, bundle_paths, opened
from runtime.errors import LotusError


def command_line(name: str, work: Work, *, bundles: Path, image: Path, output: Path) -> list[str]:
    """What `subprocess` starts a worker with."""
    options = {
        "what": name,
        "work": json.dumps(dataclasses.asdict(work)),
        "bundles": bundles,
        "image": image,
        "output": output,
    }
    words = [f"--{option}={value}" for option, value in options.items()]
    return [sys.executable, "-m", "benchmarks.latency_worker", *words]


def main() -> int:
    """Load, then answer until "end". Status 1 when the baseline cannot run here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", required=True, choices=BASELINES)
    parser.add_argument("--work", type=_work, required=True, metavar="JSON")
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    stages: dict[str, float] = {}
    try:
        _serve(arguments, stages)
    # A missing package or device, a compiler that is not there: each library raises types of its
    # own.
    except (LotusError, OSError, RuntimeError, ImportError, ValueError) as error:
        words = str(error).splitlines()[0] if str(error) else ""
        _tell({"error": f"{type(error).__name__}: {words}"})
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    last = {"peak_gb": round(peak, 3), "device_peak_gb": _device_peak()}
    _tell(last | ({"stages_s": stages} if stages else {}))
    return 0


def _serve(arguments: argparse.Namespace, stages: dict[str, float]) -> None:
    from runtime.image import fit_to_bucket, load
    from runtime.manifest import Bucket

    name, work = arguments.what, arguments.work
    height, width = map(int, work.resolution.split("x"))
    bundles = list(bundle_paths(name, work, arguments.bundles))
    image = fit_to_bucket(load(arguments.image), Bucket(height=height, width=width, graph=""))[0]
    images = np.repeat(image[None], work.batch, axis=0)
    start = time.perf_counter()
    with opened(name, work, bundles, stages) as predict:
        loaded = time.perf_counter()
        values = predict(images)  # a bundle opens its graph here: the first prediction holds that
        first = time.perf_counter()
        predict(images)  # warm
        _tell({"load_s": loaded - start, "first_s": first - start})
        for line in sys.stdin:
            if line.strip() == "end":
                break
            before = time.perf_counter()
            values = predict(images)
            _tell({"seconds": time.perf_counter() - before})
        np.save(arguments.output, values)


def _work(text: str) -> Work:
    return Work(**json.loads(text))


def _device_peak() -> float | None:
    """GB that torch took of the GPU at most; None without torch or a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return round(float(torch.cuda.max_memory_allocated()) / 1e9, 3)


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""What the device can do at best: measured rates, and the bound that they give for a graph.
Functions of the worker.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_device.repeats import repeat
from runtime.errors import LotusError
from runtime.manifest import Manifest

_EDGES = (512, 1024, 2048, 4096)  # of a square product; the next where one took a moment only
_BYTES = 1 << 28


def rates(*, seconds: float) -> dict[str, Any]:
    """TFLOP/s of one large product by type, and GB/s of a copy (bytes read and written), as
    measured here: on the GPU with CUDA events where torch has one, else on the CPU; without torch
    by NumPy, in fp32 alone. About `seconds` in all.
    """
    try:
        import torch
    except ImportError:
        return _numpy_rates(seconds)
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if on.type == "cuda":
        types["fp16"] = torch.float16
        torch.backends.cuda.matmul.allow_tf32 = False

    def wait() -> None:
        if on.type == "cuda":
            torch.cuda.synchronize()

    def product(kind: torch.dtype, edge: int) -> float:
        left, right = (torch.randn(edge, edge, device=on).to(kind) for _ in range(2))

        def once() -> None:
            left @ right
            wait()

        once()
        return min(repeat(once, seconds=seconds / 10, most=20))

    tflops = {
        name: _rate(functools.partial(product, kind), seconds / 100) for name, kind in types.items()
    }
    source, into = (torch.ones(_BYTES // 4, device=on) for _ in range(2))

    def copy() -> None:
        into.copy_(source)
        wait()

    copy()
    bandwidth = 2 * _BYTES / min(repeat(copy, seconds=seconds / 10)) / 1e9
    return {"tflops": tflops, "bandwidth_gb_s": bandwidth, "by": f"torch on {on.type}"}


def bound(
    *,
    bundle: str,
    precision: str,
    device: str,
    on_gpu: bool,
    measured: dict[str, Any] | None,
) -> dict[str, Any]:
    """The least milliseconds for the bundle's graph: by the peak rates of `device`, where
    devices.yaml has it, and by the rates `measured` here. Bounds, no measurements.

    `measured` are of the GPU where there is one: a contender that is not `on_gpu` has none then.
    Raises: LotusError where neither is known.
    """
    from benchmarks.roofline import bound_as_stored, known_devices

    manifest = Manifest.load(Path(bundle))
    graph = Path(bundle) / manifest.buckets[0].graph
    base = {"int8": "fp16" if on_gpu else "fp32"}.get(precision, precision)
    found: dict[str, Any] = {"multiply_adds": _multiply_adds(graph)}
    entries = [each for each in known_devices() if on_gpu and re.search(each["match"], device)]
    if entries:
        entry = entries[0]
        found["peak"] = {"device": entry["name"]} | bound_as_stored(graph, entry, base)
    of_here = measured is not None and ("cuda" in measured["by"]) == on_gpu
    if measured is not None and of_here and base in measured["tflops"] and precision != "int8":
        entry = measured | {"memory_gb": float("inf")}
        found["measured"] = bound_as_stored(graph, entry, base)
    if len(found) == 1:
        raise LotusError(
            f"devices.yaml has no {device!r}, and no rate of {precision} was measured here"
        )
    return found


def _multiply_adds(graph: Path) -> int:
    from export.bundle.costs import read_costs

    return read_costs(graph)["all"].multiply_adds


def _rate(seconds_of: Callable[[int], float], long: float) -> float:
    """TFLOP/s of the largest product whose smaller neighbour does not take `long` seconds."""
    rate = 0.0
    for edge in _EDGES:
        seconds = seconds_of(edge)
        rate = max(rate, 2 * edge**3 / seconds / 1e12)
        if seconds > long:
            break
    return rate


def _numpy_rates(seconds: float) -> dict[str, Any]:
    def product(edge: int) -> float:
        left, right = (np.ones((edge, edge), np.float32) for _ in range(2))
        left @ right
        return min(repeat(lambda: left @ right, seconds=seconds / 10, most=20))

    source, into = (np.ones(_BYTES // 4, np.float32) for _ in range(2))
    copied = min(repeat(lambda: np.copyto(into, source), seconds=seconds / 10))
    return {
        "tflops": {"fp32": _rate(product, seconds / 100)},
        "bandwidth_gb_s": 2 * _BYTES / copied / 1e9,
        "by": "NumPy on cpu",
    }

"""What the device can do at best: measured rates, and the bound that they give for a graph.
Functions of the worker.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ceilings import int8_product
from benchmarks.on_device.repeats import repeat
from runtime.errors import BackendMissingError, LotusError
from runtime.manifest import Manifest

_EDGES = (512, 1024, 2048, 4096)  # of a square product; the next where one took a moment only
_BYTES = 1 << 28


def rates(*, seconds: float) -> dict[str, Any]:
    """TFLOP/s of one large product by type, and GB/s of a copy (bytes read and written), as
    measured here: on the GPU with CUDA events where torch has one, else on the CPU; without torch
    by NumPy, in fp32 alone. int8 is ONNX Runtime's on the CPU, and left out without it. About
    `seconds` in all.
    """
    try:
        import torch
    except ImportError:
        found = _numpy_rates(seconds)
    else:
        found = _torch_rates(torch, seconds)
    if "cuda" not in found["by"]:
        with contextlib.suppress(ImportError, BackendMissingError):
            found["tflops"]["int8"] = _rate(
                lambda edge: _least(int8_product(edge), seconds), seconds / 100
            )
    return found


def _torch_rates(torch: Any, seconds: float) -> dict[str, Any]:
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if on.type == "cuda":
        types["fp16"] = torch.float16
        torch.backends.cuda.matmul.allow_tf32 = False

    def wait() -> None:
        if on.type == "cuda":
            torch.cuda.synchronize()

    def product(kind: Any, edge: int) -> float:
        left, right = (torch.randn(edge, edge, device=on).to(kind) for _ in range(2))

        def once() -> None:
            left @ right
            wait()

        return _least(once, seconds)

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
    What an int8 graph has in other types is bounded by fp16 on a GPU, and by the faster one of fp32
    and bf16 on a CPU.
    Raises: LotusError where neither is known.
    """
    from benchmarks.roofline import bound_as_stored, known_devices

    manifest = Manifest.load(Path(bundle))
    graph = Path(bundle) / manifest.buckets[0].graph
    of_here = measured is not None and ("cuda" in measured["by"]) == on_gpu
    tflops = measured["tflops"] if measured is not None and of_here else {}
    base = precision
    if precision == "int8":
        base = "fp16" if on_gpu else max(("fp32", "bf16"), key=lambda kind: tflops.get(kind, 0.0))
    found: dict[str, Any] = {"multiply_adds": _multiply_adds(graph)}
    entries = [each for each in known_devices() if on_gpu and re.search(each["match"], device)]
    if entries:
        entry = entries[0]
        found["peak"] = {"device": entry["name"]} | bound_as_stored(graph, entry, base)
    if measured is not None and {base, precision} <= tflops.keys():
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


def _least(product: Callable[[], Any], seconds: float) -> float:
    """The least seconds of some products in a tenth of `seconds`; the first one is not counted."""
    product()
    return min(repeat(product, seconds=seconds / 10, most=20))


def _numpy_rates(seconds: float) -> dict[str, Any]:
    def product(edge: int) -> float:
        left, right = (np.ones((edge, edge), np.float32) for _ in range(2))
        return _least(lambda: left @ right, seconds)

    source, into = (np.ones(_BYTES // 4, np.float32) for _ in range(2))
    copied = min(repeat(lambda: np.copyto(into, source), seconds=seconds / 10))
    return {
        "tflops": {"fp32": _rate(product, seconds / 100)},
        "bandwidth_gb_s": 2 * _BYTES / copied / 1e9,
        "by": "NumPy on cpu",
    }

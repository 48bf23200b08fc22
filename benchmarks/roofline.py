"""The least time a graph can take on named devices: `python -m benchmarks.roofline BUNDLE`.

A bound from the vendors' peak rates (devices.yaml), never a measurement: nothing reaches both peaks
at once. There are two bounds. A device is between them at best.

    fused      max(operations / peak rate, bytes of weights / bandwidth):
               no activation ever leaves the chip
    kernels    sum over operators of max(operations / peak rate, bytes / bandwidth):
               every operator is a kernel of its own

Memory is the weights and the largest sum of live activations, without the library.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.rows import parse_arguments, write_rows
from export.bundle.costs import NodeCost, load_model, node_cost, peaks
from runtime.errors import LotusError
from runtime.manifest import Manifest

DEVICES = Path(__file__).with_name("devices.yaml")
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_SMALL_GB = 8.0


def main() -> int:
    """Print and save the bounds of each bucket on each device. Status 1 when the bundle cannot be
    read.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", nargs="+", default=list(BYTES), choices=BYTES)
    arguments = parse_arguments(parser)
    try:
        manifest = Manifest.load(arguments.bundle)
        rows = [
            {"bundle": manifest.name, "bucket": str(bucket), "bound": True} | row
            for bucket in manifest.buckets
            for row in bounds(arguments.bundle / bucket.graph, arguments.precision)
        ]
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        "Bounds from peak rates, not measurements: ms if all is fused, ms if every operator is a "
        "kernel, GB of memory"
    )
    for row in rows:
        print(
            f"{row['bucket']:<10}{row['device']:<32}{row['precision']:<6}"
            f"{row['fused_ms']:9.2f}{row['kernels_ms']:9.2f}{row['memory_gb']:7.2f}  "
            f"{'fits' if row['fits'] else 'does not fit'}"
            f"{', fits in 8 GB' if row['fits_8gb'] else ''}"
        )
    path = write_rows(f"roofline-{manifest.name}", rows, dirty=arguments.dirty)
    print(f"rows: {path.name}")
    return 0


def bounds(graph: Path, precisions: list[str]) -> list[dict[str, Any]]:
    """For each device and precision of a graph that is stored in fp32: milliseconds and GB."""
    nodes, peak = _costs(graph)
    return [
        {"device": device["name"], "precision": precision}
        | _bound(nodes, peak, device, precision, BYTES[precision] / BYTES["fp32"])
        for device in known_devices()
        for precision in precisions
    ]


def bound_as_stored(graph: Path, device: dict[str, Any], precision: str) -> dict[str, Any]:
    """The bound of a graph with the types that are stored in it, on an entry like those of
    devices.yaml: int8 layers at the device's rate of int8, all else at that of `precision`.
    """
    return _bound(*_costs(graph), device, precision, 1.0)


def known_devices() -> list[dict[str, Any]]:
    """The entries of devices.yaml."""
    devices: list[dict[str, Any]] = yaml.safe_load(DEVICES.read_text(encoding="utf-8"))
    return devices


def _costs(graph: Path) -> tuple[list[NodeCost], int]:
    """Of each operator, and the largest sum of live activations in bytes."""
    model = load_model(graph)
    seen: set[str] = set()
    return [node_cost(node, seen) for node in model.graph], peaks(model.graph)["all"]


def _bound(
    nodes: list[NodeCost], peak: int, device: dict[str, Any], precision: str, share: float
) -> dict[str, Any]:
    """`share`: bytes in this precision for each byte in the graph."""
    rate, bandwidth = device["tflops"][precision] * 1e12, device["bandwidth_gb_s"] * 1e9
    int8_rate = device["tflops"].get("int8", rate / 1e12) * 1e12
    operations = [
        2 * ((node.multiply_adds - node.int8) / rate + node.int8 / int8_rate) for node in nodes
    ]
    moved = [share * (node.weights + node.traffic) / bandwidth for node in nodes]
    weights = share * sum(node.weights for node in nodes)
    memory = (weights + share * peak) / 1e9
    return {
        "fused_ms": 1e3 * max(sum(operations), weights / bandwidth),
        "kernels_ms": 1e3 * sum(map(max, operations, moved)),
        "memory_gb": memory,
        "fits": memory < device["memory_gb"],
        "fits_8gb": memory < _SMALL_GB,
    }


if __name__ == "__main__":
    sys.exit(main())

"""Group normalisation on ONNX Runtime's CPU provider: `python -m benchmarks.group_norm`.

The operator is compared with the nodes that `export/graph/group_norm.py` writes in its place: time,
and largest error against float64, for maps of the full-size network.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.rows import parse_arguments, write_rows
from export.graph.group_norm import spell_out_group_norm
from runtime.backends import BACKENDS
from runtime.backends.session import import_vendor

_GROUPS, _EPSILON = 32, 1e-6
# (channels, edge, mean over spread): encoder and decoder at 512x512 inputs, the UNet, and a nearly
# flat map.
_CASES = ((128, 512, 3), (256, 256, 3), (512, 64, 3), (320, 64, 3), (320, 64, 300))


def main() -> int:
    """Measure, print and save the rows."""
    arguments = parse_arguments(argparse.ArgumentParser(description=__doc__))
    rows = []
    for channels, edge, mean in _CASES:
        random = np.random.default_rng(0)
        x = random.normal(mean, 1, (1, channels, edge, edge)).astype(np.float32)
        exact = torch.nn.functional.group_norm(
            torch.from_numpy(x).double(), _GROUPS, eps=_EPSILON
        ).numpy()
        model = _model(x.shape)
        sessions = {"GroupNormalization": _session(model)}
        spell_out_group_norm(model.graph, "rows")
        sessions["two-pass"] = _session(model)
        for form, session in sessions.items():
            y, milliseconds = _measure(session, x)
            error = float(np.abs(y - exact).max())
            rows.append(
                {
                    "shape": list(x.shape),
                    "mean_over_spread": mean,
                    "form": form,
                    "ms": milliseconds,
                    "max_abs": error,
                }
            )
            print(
                f"{x.shape!s:<20} mean/spread {mean:<4} {form:<20} {milliseconds:7.2f} ms  error "
                f"{error:.1e}"
            )
    print(f"rows: {write_rows('group-norm', rows, dirty=arguments.dirty).name}")
    return 0


def _model(shape: tuple[int, ...]) -> ir.Model:
    node = helper.make_node(
        "GroupNormalization", ["x", "s", "b"], ["y"], num_groups=_GROUPS, epsilon=_EPSILON
    )
    ones, zeros = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(ones, "s"), onnx.numpy_helper.from_array(zeros, "b")],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    )


def _session(model: ir.Model) -> Any:
    ort = import_vendor(BACKENDS["onnxruntime"])
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _measure(session: Any, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """The output, and the median of 9 runs in milliseconds after one that is not counted."""
    y = session.run(None, {"x": x})[0]
    times = []
    for _ in range(9):
        start = time.perf_counter()
        session.run(None, {"x": x})
        times.append((time.perf_counter() - start) * 1e3)
    return y, statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())

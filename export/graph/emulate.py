"""A half graph as a float32 graph that rounds every answer to the half type: what a GPU stores, on
any CPU.

ONNX Runtime has no bfloat16 kernels on the CPU and, for want of float16 ones, casts a float16
graph's weights up and leaves the rounding between operators out: its answer is better than any
GPU's. Here the casts are written out, which it keeps. Sums inside an operator are float32, as in
tensor cores.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from export.graph.group_norm import spell_out_group_norm
from export.graph.half import HALVES
from export.graph.node_writer import cast_node

_HALVES = tuple(HALVES.values())
_EXACT = (
    "Reshape",
    "Transpose",
    "Split",
    "Concat",
    "Slice",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Identity",
)
"""Operators that only move values, which are rounded already."""


def write_emulated(graph: Path, output: Path) -> None:
    """Write `output`, which must lie beside `graph` and shares its weights. Raises: OSError."""
    model = ir.load(graph)
    emulate(model.graph)
    spell_out_group_norm(model.graph, "rows")  # ONNX Runtime's own expansion is inexact
    ir.save(model, output)


def emulate(graph: ir.Graph) -> int:
    """Rewrite a half graph in place. Returns how many answers are rounded."""
    wide: dict[ir.Value, ir.Value] = {}
    nodes = list(graph)
    for value in list(graph.initializers.values()):
        if value.dtype in _HALVES:
            cast = _cast(value, ir.DataType.FLOAT)
            graph.insert_before(nodes[0], cast)
            wide[value] = cast.outputs[0]
    rounded = 0
    for node in nodes:
        for index, operand in enumerate(node.inputs):
            if operand in wide:
                node.replace_input_with(index, wide[operand])
        for value in node.outputs:
            half = value.dtype
            if half not in _HALVES:
                continue
            if node.op_type == "Cast":
                back = _cast(value, ir.DataType.FLOAT)
                graph.insert_after(node, back)
                wide[value] = back.outputs[0]
                continue
            value.dtype = ir.DataType.FLOAT
            if node.op_type in _EXACT:
                continue
            down = _cast(value, half)
            back = _cast(down.outputs[0], ir.DataType.FLOAT)
            graph.insert_after(node, [down, back])
            wide[value] = back.outputs[0]
            rounded += 1
    return rounded


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    kind = dtype.name.lower()
    return cast_node(value, dtype, f"{value.name}/Cast_{kind}", f"{value.name}/{kind}")

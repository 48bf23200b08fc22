"""What a graph costs, counted from its shapes: multiply-adds, bytes of weights and of
activations.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from export.graph.shapes import static_shape
from export.graph.stages import STAGES, stage_of

VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "DequantizeLinear")
"""Operators that only rename memory: no traffic, no memory of their own. An int8 kernel reads what
goes into `DequantizeLinear`, not what comes out of it.
"""
_WIDENING = ("DequantizeLinear", "Cast")
"""What stands between a weight as it is stored and its reader."""


@dataclass(kw_only=True)
class Costs:
    """Of one stage or of all. `traffic` are bytes of activations read and written if every operator
    is a kernel of its own; `peak` are bytes of activations alive at once in the graph's order;
    `kernels` counts operators by type. `int8` are those of the multiply-adds whose inputs are both
    int8.
    """

    multiply_adds: int = 0
    int8: int = 0
    weights: int = 0
    traffic: int = 0
    peak: int = 0
    kernels: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """One operator: multiply-adds, bytes of weights, and bytes of activations read and written."""

    stage: str
    multiply_adds: int
    int8: int
    weights: int
    traffic: int


def load_model(graph: Path) -> ir.Model:
    """An ONNX file without its weights, with the shapes that can be inferred."""
    return ir.from_proto(
        onnx.shape_inference.infer_shapes(
            onnx.load(graph, load_external_data=False), data_prop=True
        )
    )


def read_costs(graph: Path, tasks: Sequence[str] = ()) -> dict[str, Costs]:
    """Costs by stage, and of "all", of an ONNX file with static shapes; of several `tasks` also
    those of each one's UNet, as "unet normal". Raises: BuildError when a shape is missing.
    """
    model = load_model(graph)
    costs = {row: Costs() for row in _rows(tasks)}
    seen: set[str] = set()
    for node in model.graph:
        cost = node_cost(node, seen)
        for key in _rows_of(node, tasks):
            costs[key].multiply_adds += cost.multiply_adds
            costs[key].int8 += cost.int8
            costs[key].weights += cost.weights
            costs[key].traffic += cost.traffic
            costs[key].kernels[node.op_type] += 1
    for row, peak in peaks(model.graph, tasks).items():
        costs[row].peak = peak
    return costs


def _rows(tasks: Sequence[str]) -> list[str]:
    """Which costs are told apart."""
    unets = [f"unet {task}" for task in tasks] if len(tasks) > 1 else []
    return [row for stage in STAGES for row in (stage, *unets * (stage == "unet"))] + ["all"]


def _rows_of(node: ir.Node, tasks: Sequence[str]) -> list[str]:
    """The rows of `_rows` that an operator counts in. Of a joint network each layer of a UNet is
    named after its task, as in `unet/normal.conv_in/Conv`.
    """
    stage, layer = stage_of(node), str(node.name).partition("/")[2]
    unets = [f"unet {task}" for task in tasks if re.match(rf"{task}[./]", layer)]
    return [stage, *unets * (stage == "unet" and len(tasks) > 1), "all"]


def node_cost(node: ir.Node, seen: set[str] | None = None) -> NodeCost:
    """The cost of one operator; weights whose names are in `seen` were counted before, and new ones
    are added to it.
    """
    seen = set() if seen is None else seen
    weights = [_stored(value) for value in node.inputs if value is not None]
    weights = [value for value in weights if _is_constant(value)]
    new = [value for value in weights if value.name not in seen]
    seen.update(str(value.name) for value in new)
    used = [_stored(value) for value in node.inputs if value is not None]
    moved = [value for value in (*used, *node.outputs) if not _is_constant(value)]
    work = _MULTIPLY_ADDS.get(node.op_type, _no_work)(node)
    return NodeCost(
        stage=stage_of(node),
        multiply_adds=work,
        int8=work
        if all(value.dtype in (ir.DataType.INT8, ir.DataType.UINT8) for value in used[:2])
        else 0,
        weights=sum(_bytes(value) for value in new),
        traffic=0 if node.op_type in VIEWS else sum(_bytes(value) for value in moved),
    )


def peaks(graph: ir.Graph, tasks: Sequence[str] = ()) -> dict[str, int]:
    """Largest sum of live activations, by the stage of the operator that runs then, and over all;
    of several `tasks` by UNet too.
    """
    order = {node: index for index, node in enumerate(graph)}
    last: dict[ir.Value, int] = {}
    owner: dict[ir.Value, ir.Value] = {}
    for node, index in order.items():
        for value in node.outputs:
            source = node.inputs[0] if node.op_type in VIEWS else None
            view = source is not None and not _is_constant(source)
            owner[value] = owner.get(source, source) if source is not None and view else value
        for operand in node.inputs:
            if operand is not None and not _is_constant(operand):
                last[owner.setdefault(operand, operand)] = index
    for value in graph.outputs:
        last[owner[value]] = len(order)
    peaks = dict.fromkeys(_rows(tasks), 0)
    live = {owner[value]: _bytes(value) for value in graph.inputs if value in owner}
    for node, index in order.items():
        made = [value for value in node.outputs if not _is_constant(value)]
        live |= {owner[value]: _bytes(value) for value in made if owner[value] is value}
        total = sum(live.values())
        for key in _rows_of(node, tasks):
            peaks[key] = max(peaks[key], total)
        live = {value: size for value, size in live.items() if last.get(value, -1) > index}
    return peaks


def _bytes(value: ir.Value) -> int:
    size = value.dtype.itemsize if value.dtype is not None else 4
    return math.prod(static_shape(value)) * int(size)


def _stored(value: ir.Value) -> ir.Value:
    """What lies in memory where an operator reads `value`: the int8 tensor, if that is where it
    comes from, and a weight as it is stored.
    """
    source = value.producer()
    while source is not None and source.inputs and source.inputs[0] is not None:
        if not (source.op_type == "DequantizeLinear" or _is_constant(value)):
            break
        value, source = source.inputs[0], source.inputs[0].producer()
    return value


def _is_constant(value: ir.Value) -> bool:
    """A weight, or what becomes of one before it is read."""
    if value.const_value is not None or value.is_initializer():
        return True
    source = value.producer()
    if source is None or source.op_type not in _WIDENING:
        return False
    stored = source.inputs[0]
    return stored is not None and _is_constant(stored)


def _no_work(node: ir.Node) -> int:
    return 0


def _conv(node: ir.Node) -> int:
    return math.prod(static_shape(node.outputs[0])) * math.prod(static_shape(node.inputs[1])[1:])


def _conv_transpose(node: ir.Node) -> int:
    return math.prod(static_shape(node.inputs[0])) * math.prod(static_shape(node.inputs[1])[1:])


def _matmul(node: ir.Node) -> int:
    return math.prod(static_shape(node.outputs[0])) * static_shape(node.inputs[0])[-1]


def _gemm(node: ir.Node) -> int:
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
    return (
        math.prod(static_shape(node.outputs[0]))
        * static_shape(node.inputs[0])[0 if transposed else 1]
    )


def _attention(node: ir.Node) -> int:
    """Both products; heads together or apart, [B, S, C] or [B, heads, S, d]."""
    queries, keys = static_shape(node.inputs[0]), static_shape(node.inputs[1])
    return 2 * math.prod(queries) * keys[-2]


_MULTIPLY_ADDS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
}

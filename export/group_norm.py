"""Group normalisation for a target that has no kernel for it.

ONNX Runtime's CPU provider expands `GroupNormalization` into the operator's function body, which takes the variance as
E[x^2] - E[x]^2 over the whole group in one fp32 sum. That is slow, loses half the digits, and gives NaN where a map is
nearly flat (`python -m benchmarks.group_norm` shows both). What is written here instead is two-pass, as PyTorch is:

    mu  = mean over rows of the mean of row r      a row is at most 1024 elements, so that fp32 sums stay short
    c   = x - mu
    var = mean over rows of the mean of c^2 in r
    y   = BatchNormalization(c; scale, bias, 0, var)          one pass over the map for scale and shift
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_LONGEST_ROW = 1024


def spell_out_group_norm(graph: ir.Graph) -> int:
    """Replace every `GroupNormalization` of static shape [1,C,...] in `graph`. Returns how many were replaced."""
    nodes = [node for node in graph if node.op_type == "GroupNormalization"]
    for node in nodes:
        _replace(graph, node)
    return len(nodes)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, scale, bias = node.inputs
    assert x is not None
    assert x.shape is not None
    batch, channels, *space = [int(edge) for edge in x.shape]
    groups = node.attributes["num_groups"].as_int()
    per_group = channels // groups
    row = _longest_divisor(math.prod(space), _LONGEST_ROW)
    if batch != 1:
        raise ValueError(f"{node.name}: batch {batch}; BatchNormalization has one mean for the whole batch")

    new: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value | None, **attributes: int | float) -> ir.Value:
        made = ir.node(op, inputs, attributes=attributes, name=f"{node.name}/{op}_{len(new)}")
        new.append(made)
        return made.outputs[0]

    def constant(array: NDArray[np.generic]) -> ir.Value:
        label = f"group_norm/{array.dtype}_{'x'.join(map(str, array.shape))}_{hashlib.sha256(array).hexdigest()[:8]}"
        if label not in graph.initializers:
            graph.register_initializer(ir.Value(name=label, const_value=ir.tensor(array, name=label)))
        return graph.initializers[label]

    within, over_rows = constant(np.array([3])), constant(np.array([2]))
    rows = add("Reshape", x, constant(np.array([1, groups, per_group * math.prod(space) // row, row])))
    mean = add("ReduceMean", add("ReduceMean", rows, within, keepdims=1), over_rows, keepdims=1)
    centred = add("Sub", rows, mean)
    square_sum = add("ReduceSumSquare", centred, within, keepdims=1)
    spread = constant(np.full((1, 1, per_group, 1), 1 / row, np.float32))  # one variance for each channel of the group
    variance = add("Mul", add("ReduceMean", square_sum, over_rows, keepdims=1), spread)
    y = add(
        "BatchNormalization",
        add("Reshape", centred, constant(np.array([1, channels, *space]))),
        scale,
        bias,
        constant(np.zeros(channels, np.float32)),
        add("Reshape", variance, constant(np.array([channels]))),
        epsilon=node.attributes["epsilon"].as_float(),
    )
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [node.outputs[0]], [y])


def _longest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in _divisors(number) if divisor <= limit)


def _divisors(number: int) -> Iterator[int]:
    for small in range(1, math.isqrt(number) + 1):
        if number % small == 0:
            yield from (small, number // small)

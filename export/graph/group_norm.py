"""Group normalisation for a target that has no kernel for it, or one that costs more than its
arithmetic.

"rows": ONNX Runtime's CPU provider expands `GroupNormalization` into the operator's function body,
which takes the variance as E[x^2] - E[x]^2 over the whole group in one fp32 sum. That is slow,
loses half the digits, and gives NaN where a map is nearly flat (`python -m benchmarks.group_norm`
shows both). What is written here instead is two-pass, as PyTorch is:

    mu  = mean over rows of the mean of row r
    c   = x - mu
    var = mean over rows of the mean of c^2 in r
    y   = BatchNormalization(c; scale, bias, 0, var)

A row is at most 1024 elements, so that fp32 sums stay short. Scale and shift take one pass.

"channels": OpenVINO's kernel takes a map in the plain layout, convolutions in low precision one
with channels last, so that each map is turned twice. Here statistics are taken of each channel,
which any layout has, and brought together over groups by products with constant matrices, which as
1x1 convolutions keep the layout:

    mu  = S A mean(x)
    c   = x - mu
    y   = c * S (A |c|^2 / HW + epsilon)^-1/2 * scale + bias

mean(x) is that of each channel [C], |c| the root of the sum of squares; A [G, C] averages over a
group, S [C, G] spreads.

Statistics have that low precision between operators, as maps have. Small maps are turned in no
time, and keep the operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from export.graph.node_writer import NodeWriter
from export.graph.shapes import static_shape

FORMS = ("kernel", "rows", "channels")
_LONGEST_ROW = 1024
_FEWEST_PIXELS = 128 * 128


def spell_out_group_norm(graph: ir.Graph, form: str) -> int:
    """Replace every `GroupNormalization` of static shape [N,C,...] ("rows"), or those of wide maps
    ("channels").

    "kernel" leaves all. Returns how many were replaced. Raises: ValueError for another form.
    """
    if form not in FORMS:
        raise ValueError(f"group normalisation has the forms {FORMS}, not {form!r}")
    nodes = [node for node in graph if node.op_type == "GroupNormalization" and _wanted(node, form)]
    for node in nodes:
        writer = NodeWriter(graph, node.name or "")
        y = {"rows": _by_rows, "channels": _by_channels}[form](writer, node)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], writer.nodes, [node.outputs[0]], [y]
        )
    return len(nodes)


def _wanted(node: ir.Node, form: str) -> bool:
    return form == "rows" or (
        form == "channels" and math.prod(static_shape(node.inputs[0])[2:]) >= _FEWEST_PIXELS
    )


def _by_rows(writer: NodeWriter, node: ir.Node) -> ir.Value:
    add, constant, (x, scale, bias) = writer.add, writer.constant, node.inputs
    batch, channels, *space = static_shape(node.inputs[0])
    groups = node.attributes["num_groups"].as_int()
    per_group = channels // groups
    if batch > 1:  # maps of a batch are as groups of one map: each has statistics of its own
        scale, bias = (add("Concat", *[values] * batch, axis=0) for values in (scale, bias))
        channels, groups = batch * channels, batch * groups
    row = _longest_divisor(math.prod(space), _LONGEST_ROW)
    within, over_rows = constant(np.array([3])), constant(np.array([2]))
    rows = add(
        "Reshape", x, constant(np.array([1, groups, per_group * math.prod(space) // row, row]))
    )
    mean = add("ReduceMean", add("ReduceMean", rows, within, keepdims=1), over_rows, keepdims=1)
    centred = add("Sub", rows, mean)
    square_sum = add("ReduceSumSquare", centred, within, keepdims=1)
    spread = constant(
        np.full((1, 1, per_group, 1), 1 / row, np.float32)
    )  # one variance for each channel of the group
    variance = add("Mul", add("ReduceMean", square_sum, over_rows, keepdims=1), spread)
    normalised = add(
        "BatchNormalization",
        add("Reshape", centred, constant(np.array([1, channels, *space]))),
        scale,
        bias,
        constant(np.zeros(channels, np.float32)),
        add("Reshape", variance, constant(np.array([channels]))),
        epsilon=node.attributes["epsilon"].as_float(),
    )
    if batch == 1:
        return normalised
    return add("Reshape", normalised, constant(np.array(static_shape(node.inputs[0]))))


def _by_channels(writer: NodeWriter, node: ir.Node) -> ir.Value:
    add, constant, (x, scale, bias) = writer.add, writer.constant, node.inputs
    _, channels, *space = static_shape(node.inputs[0])
    groups, pixels = node.attributes["num_groups"].as_int(), math.prod(space)
    ones = np.ones(len(space), np.int64)
    member = np.kron(np.eye(groups), np.ones((1, channels // groups))).reshape(
        groups, channels, *ones
    )
    average = member.astype(np.float32) / (channels // groups)
    spread = constant(np.swapaxes(member, 0, 1).astype(np.float32))
    over_map, each_channel = (
        constant(np.arange(2, 2 + len(space))),
        constant(np.array([1, channels, *ones])),
    )
    mean = add("Conv", add("ReduceMean", x, over_map, keepdims=1), constant(average))
    centred = add("Sub", x, add("Conv", mean, spread))
    root = add("ReduceL2", centred, over_map, keepdims=1)
    variance = add("Conv", add("Mul", root, root), constant(average / np.float32(pixels)))
    epsilon = constant(np.array(node.attributes["epsilon"].as_float(), np.float32))
    inverse = add("Conv", add("Reciprocal", add("Sqrt", add("Add", variance, epsilon))), spread)
    scaled = add("Mul", add("Mul", centred, inverse), add("Reshape", scale, each_channel))
    return add("Add", scaled, add("Reshape", bias, each_channel))


def _longest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in _divisors(number) if divisor <= limit)


def _divisors(number: int) -> Iterator[int]:
    for small in range(1, math.isqrt(number) + 1):
        if number % small == 0:
            yield from (small, number // small)

"""Int8 in the graph: `QuantizeLinear` and `DequantizeLinear` around the inputs and weights of the chosen layers.

Symmetric, one scale for an input and one for each output channel of a weight; weights are stored as int8, biases and
everything else stay as they are. Where a target wants outputs or residuals in int8 too, they are rounded in the same
way. Engines run product and both conversions as one int8 kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.errors import BuildError
from export.precision.layers import OUTPUT, RESIDUAL
from export.precision.weights import channel_scales, output_axis, to_int8


def layer_of(node: ir.Node) -> str:
    """The layer that a node computes: its name without the operator; see export/precision/layers.py."""
    return str(node.name).rsplit("/", 1)[0]


def quantise(graph: ir.Graph, scales: Mapping[str, float], *, unsigned: bool = False) -> int:
    """Rewrite every layer of `scales`, which are those of its input; round the outputs and residuals that are there
    too. Activations are int8 around 0 or, `unsigned`, uint8 around 128: the same steps. Returns how many nodes have
    int8 weights.

    Raises: BuildError when a layer has no node.
    """
    weights = {value.name: value for value in graph.initializers.values()}
    layers = [node for node in graph if output_axis(node) is not None and node.inputs[1].name in weights]
    zero: NDArray[np.generic] = np.array(128, np.uint8) if unsigned else np.array(0, np.int8)
    inputs = [(node, 0, layer_of(node)) for node in layers]
    residuals = [
        (user, place, f"{layer_of(node)}/{RESIDUAL}") for node in layers for user, place in _residual(node, layers)
    ]
    outputs = [(node, f"{layer_of(node)}/{OUTPUT}") for node in layers]
    names = {name for *_, name in (*inputs, *residuals, *outputs)}
    if missing := sorted(set(scales) - names):
        raise BuildError(f"the graph has no int8 node for {missing[:5]}: it was traced from another network")

    order = {node: number for number, node in enumerate(graph)}
    made: dict[tuple[str, float], ir.Value] = {}  # before the first node that reads it
    for node, place, name in sorted((*inputs, *residuals), key=lambda site: order[site[0]]):
        if name in scales:
            values = node.inputs[place]
            assert values is not None
            key = (str(values.name), scales[name])
            if key not in made:
                made[key] = _rounded(graph, node, values, scales[name], zero)
            node.replace_input_with(place, made[key])
    for node, name in outputs:
        if name in scales:
            uses = list(node.outputs[0].uses())
            answer = _rounded(graph, node, node.outputs[0], scales[name], zero, behind=True)
            for user, place in uses:
                user.replace_input_with(place, answer)
    rewritten = [node for node in layers if layer_of(node) in scales]
    for node in rewritten:
        node.replace_input_with(1, _stored(graph, node))
    return len(rewritten)


def _residual(node: ir.Node, layers: Collection[ir.Node]) -> list[tuple[ir.Node, int]]:
    """The sums that a layer's output goes into, and the place of the other operand of each: the residual.

    Of two layers' outputs the first operand is the residual of the second, as in export/precision/layers.py.
    """
    found = []
    for user, place in node.outputs[0].uses():
        other = user.inputs[1 - place] if user.op_type == "Add" else None
        if other is None or other.shape != node.outputs[0].shape:
            continue
        if place == 1 or other.producer() not in layers:
            found.append((user, 1 - place))
    return found


def _rounded(
    graph: ir.Graph,
    node: ir.Node,
    values: ir.Value,
    scale: float,
    zero: NDArray[np.generic],
    *,
    behind: bool = False,
) -> ir.Value:
    """`values` through int8 and back, before the node or behind it."""
    label = f"{node.name}/output" if behind else f"{node.name}/input"
    constants = [
        _constant(graph, f"{label}_scale", np.array(scale, np.float32)),
        _constant(graph, f"{label}_zero", zero),
    ]
    end = "_output" if behind else ""
    down = ir.node("QuantizeLinear", [values, *constants], name=f"{node.name}/QuantizeLinear{end}")
    up = ir.node("DequantizeLinear", [down.outputs[0], *constants], name=f"{node.name}/DequantizeLinear{end}")
    for one, dtype in ((down, ir.DataType.from_numpy(zero.dtype)), (up, values.dtype)):
        one.outputs[0].name = f"{one.name}_output"
        one.outputs[0].shape, one.outputs[0].dtype = values.shape, dtype
    if behind:
        graph.insert_after(node, [down, up])
    else:
        graph.insert_before(node, [down, up])
    return up.outputs[0]


def _stored(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """The node's weight as int8 with a scale for each output channel, and back."""
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    weight = value.const_value.numpy()
    axis = output_axis(node)
    assert axis is not None
    scale = channel_scales(weight, axis)
    constants = [
        _constant(graph, f"{node.name}/weight_int8", to_int8(weight, scale, axis)),
        _constant(graph, f"{node.name}/weight_scale", scale),
        _constant(graph, f"{node.name}/weight_zero", np.zeros(len(scale), np.int8)),
    ]
    up = ir.node("DequantizeLinear", constants, {"axis": axis}, name=f"{node.name}/DequantizeLinear_weight")
    up.outputs[0].name = f"{up.name}_output"
    up.outputs[0].shape, up.outputs[0].dtype = value.shape, value.dtype
    graph.insert_before(node, up)
    return up.outputs[0]


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

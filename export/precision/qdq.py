"""Int8 in the graph: `QuantizeLinear` and `DequantizeLinear` around the inputs and weights of the chosen layers.

Symmetric, one scale for an input and one for each output channel of a weight; weights are stored as int8, biases and
everything else stay as they are. Engines run product and both conversions as one int8 kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.errors import BuildError
from export.precision.weights import channel_scales, output_axis, to_int8


def layer_of(node: ir.Node) -> str:
    """The layer that a node computes: its name without the operator; see export/precision/layers.py."""
    return str(node.name).rsplit("/", 1)[0]


def quantise(graph: ir.Graph, scales: Mapping[str, float]) -> int:
    """Rewrite every layer of `scales`, which are those of its input. Returns how many nodes were rewritten.

    Raises: BuildError when a layer has no node.
    """
    weights = {value.name: value for value in graph.initializers.values()}
    nodes = [
        node
        for node in graph
        if output_axis(node) is not None and node.inputs[1].name in weights and layer_of(node) in scales
    ]
    missing = sorted(set(scales) - {layer_of(node) for node in nodes})
    if missing:
        raise BuildError(f"the graph has no int8 node for {missing[:5]}: it was traced from another network")
    inputs: dict[tuple[str, float], ir.Value] = {}
    for node in nodes:
        values, scale = node.inputs[0], scales[layer_of(node)]
        assert values is not None
        key = (str(values.name), scale)
        if key not in inputs:
            inputs[key] = _rounded(graph, node, values, scale)
        node.replace_input_with(0, inputs[key])
        node.replace_input_with(1, _stored(graph, node))
    return len(nodes)


def _rounded(graph: ir.Graph, node: ir.Node, values: ir.Value, scale: float) -> ir.Value:
    """`values` through int8 and back."""
    constants = [
        _constant(graph, f"{node.name}/input_scale", np.array(scale, np.float32)),
        _constant(graph, f"{node.name}/input_zero", np.array(0, np.int8)),
    ]
    down = ir.node("QuantizeLinear", [values, *constants], name=f"{node.name}/QuantizeLinear")
    up = ir.node("DequantizeLinear", [down.outputs[0], *constants], name=f"{node.name}/DequantizeLinear")
    for one, dtype in ((down, ir.DataType.INT8), (up, values.dtype)):
        one.outputs[0].name = f"{one.name}_output"
        one.outputs[0].shape, one.outputs[0].dtype = values.shape, dtype
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

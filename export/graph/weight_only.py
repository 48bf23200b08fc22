"""Weights as int8, one scale for each output channel, in a graph whose activations are half.

`DequantizeLinear` in front of each operator multiplies back, with the scale in the half type, so
that activations and arithmetic stay half. It is the one int8 that TensorRT-RTX documents: it halves
the engine and the bytes of weights that an inference reads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graph.half import HALVES
from export.graph.int8_weights import FEWEST_CHANNELS, channel_scales, output_axis, to_int8


def weights_to_int8(graph: ir.Graph) -> int:
    """Rewrite the weights of every operator of 16 channels or more, in and out. Returns how many
    operators were.
    """
    nodes = [
        (node, axis) for node in graph if (axis := output_axis(node)) is not None and _fits(node)
    ]
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    for node, axis in nodes:
        weight = node.inputs[1]
        assert weight is not None
        key = (weight, axis)
        if key not in made:
            made[key] = _dequantised(graph, node, *key)
        node.replace_input_with(1, made[key])
    for weight, _ in made:
        if not weight.uses():
            del graph.initializers[str(weight.name)]
    return len(nodes)


def _fits(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if (
        weight is None
        or not weight.is_initializer()
        or weight.dtype not in HALVES.values()
        or weight.shape is None
    ):
        return False
    return len(weight.shape) >= 2 and min(weight.shape.numpy()[:2]) >= FEWEST_CHANNELS


def _dequantised(graph: ir.Graph, node: ir.Node, weight: ir.Value, axis: int) -> ir.Value:
    """A `DequantizeLinear` in front of `node`. The scales are computed now, the int8 weights when
    they are written.
    """
    whole, half = weight.const_value, weight.dtype
    assert whole is not None
    assert half is not None
    scale = channel_scales(whole.numpy().astype(np.float32), axis).astype(half.numpy())
    lazy = ir.LazyTensor(
        lambda: ir.tensor(
            to_int8(whole.numpy().astype(np.float32), scale.astype(np.float32), axis)
        ),
        dtype=ir.DataType.INT8,
        shape=weight.shape or ir.Shape([]),
        name=f"{weight.name}_int8",
    )
    values = [
        ir.Value(
            name=str(tensor.name),
            const_value=tensor,
            type=ir.TensorType(tensor.dtype),
            shape=tensor.shape,
        )
        for tensor in (lazy, ir.Tensor(scale, dtype=half, name=f"{weight.name}_scale"))
    ]
    for value in values:
        graph.register_initializer(value)
    back = ir.node("DequantizeLinear", values, {"axis": axis}, name=f"{node.name}/DequantizeLinear")
    back.outputs[0].name, back.outputs[0].dtype = f"{weight.name}_dequantised", half
    back.outputs[0].shape = weight.shape
    graph.insert_before(node, back)
    return back.outputs[0]

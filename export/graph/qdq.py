"""Int8 in the graph: `QuantizeLinear` and `DequantizeLinear` around the inputs and weights of the
chosen layers.

One scale for an input and one for each output channel of a weight. Weights are symmetric and stored
as int8; inputs are symmetric too, but for targets that run a zero point as fast; everything else
stays as it is. Where a target wants residuals in int8, they are rounded as inputs are. Engines run
product and both conversions as one int8 kernel.

Outputs, where a target wants them in int8, have a scale for each channel, s[c], which no engine's
kernel takes as such. But it multiplies each channel with its weight's scale: w[c] / s[c] there and
b[c] / s[c] for the bias give y[c] / s[c], which is rounded with the scale 1, and multiplied by s[c]
when it is turned back: by `DequantizeLinear`, or by a `Mul` of its own where an operator follows
that answers to `QuantizeLinear`. ONNX Runtime 1.31 makes one int8 operator of `DequantizeLinear`,
operator and `QuantizeLinear`, and then refuses scales by channel (`Scale and Zero-point must be a
scalar`). It looks through reshapes, slices and pooling too; no network has such a place, and
opening it would fail.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.errors import BuildError
from export.graph.int8_weights import output_axis, safe_scales, to_int8
from export.graph.node_writer import name_output
from export.graph.shapes import static_shape
from export.graph.stages import layer_of
from export.quantize.layers import OUTPUT, RESIDUAL, Ranges


def quantize(graph: ir.Graph, ranges: Ranges, *, unsigned: bool = False) -> int:
    """Rewrite every layer of `ranges`, which are those of its input; round the outputs and
    residuals that are there too. Activations are int8 or, `unsigned`, uint8 with zeros that are 128
    higher: the same steps. Returns how many nodes have int8 weights.

    Raises: BuildError when a layer has no node.
    """
    weights = {value.name: value for value in graph.initializers.values()}
    layers = [
        node
        for node in graph
        if output_axis(node) is not None and getattr(node.inputs[1], "name", None) in weights
    ]
    dtype, middle = (np.uint8, 128) if unsigned else (np.int8, 0)
    inputs = [(node, 0, layer_of(node)) for node in layers]
    residuals = [
        (user, index, f"{layer_of(node)}/{RESIDUAL}")
        for node in layers
        for user, index in _residual(node, layers)
    ]
    outputs = [(node, f"{layer_of(node)}/{OUTPUT}") for node in layers]
    names = {name for *_, name in (*inputs, *residuals, *outputs)}
    if missing := sorted(set(ranges) - names):
        raise BuildError(
            f"the graph has no int8 node for {missing[:5]}: it was traced from another network"
        )

    order = {node: number for number, node in enumerate(graph)}
    made: dict[tuple[object, ...], ir.Value] = {}  # before the first node that reads it
    for node, index, name in sorted((*inputs, *residuals), key=lambda site: order[site[0]]):
        if name in ranges:
            values, span = node.inputs[index], ranges[name]
            assert values is not None
            key = (str(values.name), span.scale, span.zero)
            if key not in made:
                zero = np.array(middle + span.zero, dtype)
                made[key] = _rounded(graph, node, values, float(span.scale), zero)
            node.replace_input_with(index, made[key])
    channels = {
        node: np.asarray(ranges[name].scale, np.float32) for node, name in outputs if name in ranges
    }
    rewritten = [node for node in layers if layer_of(node) in ranges]
    for node in rewritten:
        _store_weight(graph, node, channels.get(node, np.ones((), np.float32)))
    for node, steps in channels.items():
        _round_output(graph, node, steps, np.array(middle, dtype))
    return len(rewritten)


def _residual(node: ir.Node, layers: Collection[ir.Node]) -> list[tuple[ir.Node, int]]:
    """The sums that a layer's output goes into, and the place of the other operand of each: the
    residual.

    Of two layers' outputs the first operand is the residual of the second, as in
    export/quantize/layers.py.
    """
    sums = []
    for user, index in node.outputs[0].uses():
        other = user.inputs[1 - index] if user.op_type == "Add" else None
        if other is None or other.shape != node.outputs[0].shape:
            continue
        if index == 1 or other.producer() not in layers:
            sums.append((user, 1 - index))
    return sums


def _rounded(
    graph: ir.Graph, node: ir.Node, values: ir.Value, scale: float, zero: NDArray[np.generic]
) -> ir.Value:
    """`values` through int8 and back, before the node."""
    constants = [
        _constant(graph, f"{node.name}/input_scale", np.array(scale, np.float32)),
        _constant(graph, f"{node.name}/input_zero", zero),
    ]
    down, up = _there_and_back(node, values, "", constants, constants)
    graph.insert_before(node, [down, up])
    return up.outputs[0]


def _round_output(
    graph: ir.Graph, node: ir.Node, channels: NDArray[np.float32], zero: NDArray[np.generic]
) -> None:
    """What comes out of `node`, already divided by the scale of each of its `channels`, through
    int8 and back.
    """
    output, name = node.outputs[0], f"{node.name}/output"
    uses = list(output.uses())
    there = [
        _constant(graph, f"{name}_scale", np.ones((), np.float32)),
        _constant(graph, f"{name}_zero", zero),
    ]
    if any(_is_rounded(user) for user, _ in uses):
        down, up = _there_and_back(node, output, "_output", there, there)
        shape = (len(channels), *(1 for _ in static_shape(output)[2:]))
        factors = _constant(graph, f"{name}_scales", channels.reshape(shape))
        nodes = [down, up, ir.node("Mul", [up.outputs[0], factors], name=f"{node.name}/Mul_output")]
        product = nodes[2].outputs[0]
        product.shape, product.type = output.shape, output.type
    else:
        zeros = np.full(channels.shape, zero)
        back = [
            _constant(graph, f"{name}_scales", channels),
            _constant(graph, f"{name}_zeros", zeros),
        ]
        nodes = list(_there_and_back(node, output, "_output", there, back, axis=1))
    graph.insert_after(node, nodes)
    for user, index in uses:
        user.replace_input_with(index, nodes[-1].outputs[0])


def _is_rounded(node: ir.Node) -> bool:
    """Whether the node makes int8 of what it reads or answers."""
    readers = [node, *(usage.node for value in node.outputs for usage in value.uses())]
    return any(reader.op_type == "QuantizeLinear" for reader in readers)


def _there_and_back(
    node: ir.Node,
    values: ir.Value,
    end: str,
    there: list[ir.Value],
    back: list[ir.Value],
    **attributes: int,
) -> tuple[ir.Node, ir.Node]:
    """`QuantizeLinear` and `DequantizeLinear` with these scales and zeros, named after the node."""
    down = ir.node("QuantizeLinear", [values, *there], name=f"{node.name}/QuantizeLinear{end}")
    up = ir.node(
        "DequantizeLinear",
        [down.outputs[0], *back],
        attributes,
        name=f"{node.name}/DequantizeLinear{end}",
    )
    for converted, dtype in ((down, there[1].dtype), (up, values.dtype)):
        name_output(converted, f"{converted.name}_output", values, dtype)
    return down, up


def _store_weight(graph: ir.Graph, node: ir.Node, divisor: NDArray[np.float32]) -> None:
    """The node's weight as int8 with a scale for each output channel, and back; it and the bias
    over `divisor`, one or one for each output channel.
    """
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    weight = value.const_value.numpy()
    axis = output_axis(node)
    assert axis is not None
    scale = safe_scales(weight, axis)
    constants = [
        _constant(graph, f"{node.name}/weight_int8", to_int8(weight, scale, axis)),
        _constant(graph, f"{node.name}/weight_scale", scale / divisor),
        _constant(graph, f"{node.name}/weight_zero", np.zeros(len(scale), np.int8)),
    ]
    up = ir.node(
        "DequantizeLinear", constants, {"axis": axis}, name=f"{node.name}/DequantizeLinear_weight"
    )
    name_output(up, f"{up.name}_output", value, value.dtype)
    graph.insert_before(node, up)
    node.replace_input_with(1, up.outputs[0])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and divisor.ndim:
        assert bias.const_value is not None
        node.replace_input_with(
            2, _constant(graph, f"{node.name}/bias", bias.const_value.numpy() / divisor)
        )


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value

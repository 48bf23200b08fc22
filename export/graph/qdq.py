"""Int8 in the graph: `QuantizeLinear` and `DequantizeLinear` around the inputs and weights of the
chosen layers.

One scale for an input and one for each output channel of a weight. Weights are symmetric and stored
as int8; inputs are symmetric too, but for targets that run a zero point as fast; everything else
stays as it is. Where a target wants residuals in int8, they are rounded as inputs are. Engines run
product and both conversions as one int8 kernel.

Outputs, where a target wants them in int8, have a scale for each channel, s[c], which no engine's
kernel takes as such. But it multiplies each channel with its weight's scale: w[c] / s[c] there and
b[c] / s[c] for the bias give y[c] / s[c], which is rounded with the scale 1. `DequantizeLinear`
turns it back with the scale 1, and a `Mul` by s[c] follows: the same bits as from one
`DequantizeLinear` with scales by channel, for which ONNX Runtime 1.31 takes three times as long.
It also makes one int8 operator of `DequantizeLinear`, operator and
`QuantizeLinear`, and then refuses scales by channel (`Scale and Zero-point must be a scalar`).

What an upsampling's convolution gives is put in place (`DepthToSpace`) and cut (`Slice`) while it
is int8, which is a quarter of the bytes: the four channels of one have one scale for it.
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

_MOVES = ("DepthToSpace", "Slice")  # move values and change none


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
    there = [
        _constant(graph, f"{name}_scale", np.ones((), np.float32)),
        _constant(graph, f"{name}_zero", zero),
    ]
    places = _places(node, len(channels))
    last = places[-1] if places else node
    uses = list(last.outputs[0].uses())
    down, up = _there_and_back(node, output, "_output", there, there)
    if places:
        first = places[0]
        up.replace_input_with(0, last.outputs[0])
        up.outputs[0].shape = last.outputs[0].shape
        first.replace_input_with(0, down.outputs[0])
        for place in places:
            place.outputs[0].type = down.outputs[0].type
    shape = (len(channels), *(1 for _ in static_shape(output)[2:]))
    factors = _constant(graph, f"{name}_scales", channels.reshape(shape))
    product = ir.node("Mul", [up.outputs[0], factors], name=f"{node.name}/Mul_output")
    name_output(product, f"{product.name}_output", up.outputs[0], output.dtype)
    graph.insert_after(node, down)
    graph.insert_after(last if places else down, [up, product])
    for user, index in uses:
        user.replace_input_with(index, product.outputs[0])


def _places(node: ir.Node, channels: int) -> list[ir.Node]:
    """What puts the output of an upsampling's convolution in place, where it has several channels
    for each of the `channels` that have a scale: `DepthToSpace`, and what cuts its answer.
    """
    places: list[ir.Node] = []
    value = node.outputs[0]
    if static_shape(value)[1] == channels:
        return places
    while len(users := list(value.uses())) == 1 and users[0].node.op_type in _MOVES:
        places.append(users[0].node)
        value = users[0].node.outputs[0]
    assert places, "only an upsampling's channels share scales"
    return places


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
    over `divisor`: one, or one for each output channel or for some of them in a row.
    """
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    weight = value.const_value.numpy()
    axis = output_axis(node)
    assert axis is not None
    scale = safe_scales(weight, axis)
    divisor = np.repeat(divisor, len(scale) // divisor.size) if divisor.ndim else divisor
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

"""Weights stored in the half precision in which a backend computes with them anyway."""

from __future__ import annotations

import onnx_ir as ir

from export.graph.node_writer import cast_node
from export.graph.stages import stage_of

_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FEWEST = 256  # elements: smaller ones are not worth a node


def store_weights(graph: ir.Graph, half: ir.DataType) -> int:
    """Store the float32 weights of products and convolutions as `half`, in place; a Cast behind
    each gives its readers float32 again. Returns how many there were.

    A backend that rounds weights to `half` itself answers the same, out of a file half as large.
    Weights are converted when they are written, one at a time.
    """
    weights = [value for value in graph.initializers.values() if _is_weight(value)]
    for value in weights:
        name, uses = str(value.name), list(value.uses())
        narrow = ir.Value(
            name=f"{name}/stored",
            const_value=_rounded(value, half),
            type=ir.TensorType(half),
            shape=value.shape,
        )
        graph.register_initializer(narrow)
        stage = stage_of(uses[0].node)
        cast = cast_node(narrow, ir.DataType.FLOAT, f"{stage}/{name}/Cast", f"{name}/float")
        graph.insert_before(graph[0], cast)
        for node, index in uses:
            node.replace_input_with(index, cast.outputs[0])
        del graph.initializers[name]
        narrow.name = name
    return len(weights)


def _is_weight(value: ir.Value) -> bool:
    uses = list(value.uses())
    return (
        value.dtype == ir.DataType.FLOAT
        and value.const_value is not None
        and value.const_value.size >= _FEWEST
        and bool(uses)
        and all(use.node.op_type in _READERS and use.idx == 1 for use in uses)
    )


def _rounded(value: ir.Value, half: ir.DataType) -> ir.LazyTensor:
    whole = value.const_value
    assert whole is not None
    return ir.LazyTensor(
        lambda: ir.Tensor(whole.numpy().astype(half.numpy()), dtype=half, name=value.name),
        dtype=half,
        shape=value.shape or ir.Shape([]),
        name=value.name,
    )

"""A float32 graph with weights and activations in float16 or bfloat16; inputs and outputs stay
float32.

The graph is strongly typed: every tensor's type is in the file, and a builder obeys it. What needs
float32 keeps it

    inside     GroupNormalization and LayerNormalization (stash_type 1, the default), and Attention,
               whose kernels keep scores and softmax in registers (TensorRT-RTX 1.7.1 refuses the
               attribute softmax_precision)
    by Cast    Softmax and InstanceNormalization, which older opsets spell attention and norms with;
               the clamp and the mean at the end, which would round the map again; and what
               export/quantize/overflow.py measured too large

A Cast stands once behind the value it converts. Weights are converted when they are written, one at
a time.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from export.graph.node_writer import cast_node

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""The half precisions by their names on the command line."""

_ALWAYS_WIDE = ("Softmax", "InstanceNormalization")
_TAIL = (  # behind the last convolution
    *("Clip", "ReduceMean", "Div", "Mul", "Add", "Sub"),
    *("ReduceMin", "ReduceMax", "Max"),
)


def to_half(graph: ir.Graph, half: ir.DataType, wide: Collection[ir.Node] = ()) -> int:
    """Convert `graph` in place; `wide` nodes stay float32 beside those that always do. Returns the
    number of casts.
    """
    kept = {node for node in graph if node.op_type in _ALWAYS_WIDE} | set(wide) | _tail(graph)
    types = _Types(graph, half, kept)
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is not None and value in types.floats:
                node.replace_input_with(
                    index, types.get(value, ir.DataType.FLOAT if node in kept else half)
                )
    types.close()
    return types.casts


def _tail(graph: ir.Graph) -> set[ir.Node]:
    """The elementwise operators between the last convolution and the outputs."""
    tail: set[ir.Node] = set()
    pending = [value.producer() for value in graph.outputs]
    while pending:
        node = pending.pop()
        if node is not None and node.op_type in _TAIL and node not in tail:
            tail.add(node)
            pending += [value.producer() for value in node.inputs if value is not None]
    return tail


class _Types:
    """Every float32 value of a graph, in the type that a reader of it asks for."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, kept: set[ir.Node]) -> None:
        self._graph, self._half = graph, half
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.casts = 0
        values = [
            *graph.inputs,
            *graph.initializers.values(),
            *(value for node in graph for value in node.outputs),
        ]
        self.floats = {value for value in values if value.dtype == ir.DataType.FLOAT}
        for node in graph:
            for value in node.outputs:
                if value in self.floats and node not in kept:
                    value.dtype = half

    def get(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`: itself, another copy of a weight, or the value of a Cast behind
        it.
        """
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self._made:
            self._made[key] = (
                self._weight(value) if value.is_initializer() else self._cast(value, dtype)
            )
        return self._made[key]

    def close(self) -> None:
        """Cast outputs back, under their own names; drop weights that nobody reads in float32 any
        more.
        """
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == self._half:
                name, value.name = value.name, f"{value.name}_half"
                self._graph.outputs[index] = self._cast(value, ir.DataType.FLOAT)
                self._graph.outputs[index].name = name
        for value in [
            value for value, _ in self._made if value.is_initializer() and not value.uses()
        ]:
            name = str(value.name)
            del self._graph.initializers[name]
            narrow = self._made[value, self._half]
            narrow.name = name

    def _weight(self, value: ir.Value) -> ir.Value:
        whole = value.const_value
        assert whole is not None
        half = self._half
        lazy = ir.LazyTensor(
            lambda: ir.Tensor(whole.numpy().astype(half.numpy()), dtype=half, name=value.name),
            dtype=half,
            shape=value.shape or ir.Shape([]),
            name=value.name,
        )
        made = ir.Value(
            name=f"{value.name}_half", const_value=lazy, type=ir.TensorType(half), shape=value.shape
        )
        self._graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        producer = value.producer()
        behind = f"{producer.name}/Cast" if producer is not None else f"encoder/{value.name}/Cast"
        cast = cast_node(value, dtype, behind, f"{value.name}_{dtype.name.lower()}")
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        self.casts += 1
        return cast.outputs[0]

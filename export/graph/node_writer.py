"""Writes the nodes that replace one node of a graph."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class NodeWriter:
    """Collects the nodes that replace one, named after it, in order; constants go into the graph at
    once, each content once.
    """

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._graph, self._name = graph, name
        self.nodes: list[ir.Node] = []

    def add(
        self, op: str, *inputs: ir.Value | None, **attributes: int | float | Sequence[int]
    ) -> ir.Value:
        """A node with one output, which is returned."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(
        self,
        op: str,
        outputs: int,
        *inputs: ir.Value | None,
        **attributes: int | float | Sequence[int],
    ) -> Sequence[ir.Value]:
        """A node with that many outputs, which are returned."""
        name = f"{self._name}/{op}_{len(self.nodes)}"
        self.nodes.append(
            ir.node(op, inputs, attributes=attributes, num_outputs=outputs, name=name)
        )
        return self.nodes[-1].outputs

    def constant(self, array: NDArray[np.generic]) -> ir.Value:
        """The initialiser with this content."""
        array = np.asarray(array, order="C")  # ascontiguousarray makes scalars vectors
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:8]
        label = f"constant/{array.dtype}_{'x'.join(map(str, array.shape))}_{digest}"
        if label not in self._graph.initializers:
            self._graph.register_initializer(
                ir.Value(name=label, const_value=ir.tensor(array, name=label))
            )
        return self._graph.initializers[label]


def name_output(node: ir.Node, name: str, like: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """The node's only output, called `name`, of the shape of `like` and of this type."""
    output = node.outputs[0]
    output.name, output.shape = name, like.shape
    if dtype is not None:
        output.dtype = dtype
    return output


def cast_node(value: ir.Value, dtype: ir.DataType, name: str, output: str) -> ir.Node:
    """A `Cast` of `value`, called `name`, whose output is called `output`."""
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    name_output(cast, output, value, dtype)
    return cast

"""Damaged ONNX graphs, signed again: what the inference engine answers, our checks must hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from benchmarks.fuzzing.bundles import (
    GRAPH,
    WEIGHTS,
    compare,
    copy_bundle,
    predict,
    sign_files,
    write_bundle,
)
from benchmarks.fuzzing.damage import boundary, damage_bytes
from benchmarks.fuzzing.kind import OUTSIDE, Damage, Kind

_DEADLINE = 3.0  # seconds
_OPERATORS = (
    *("Relu", "Sigmoid", "Tanh", "Identity", "Exp", "Neg", "Sqrt", "Softmax", "MatMul", "Gemm"),
    *(
        "Conv",
        "ConvTranspose",
        "Reshape",
        "Transpose",
        "Concat",
        "Split",
        "Gather",
        "Expand",
        "Tile",
    ),
    *(
        "Resize",
        "TopK",
        "NonZero",
        "Loop",
        "If",
        "Scan",
        "ConstantOfShape",
        "RandomNormal",
        "Range",
    ),
    *("Cast", "StringNormalizer", "SequenceAt", "Optional", "Attention", "GridSample", "Unknown"),
)
_NAMES = ("", "image", "disparity", "a", "nothing", "x" * 5000, "\u0130", "a/b", "../x")


class Graphs(Kind):
    """One to three changes of the graph as a structure, or of its bytes."""

    name = "graphs"
    seconds = 20.0
    megabytes = 1024
    crashes = True
    target = "onnxruntime"

    def prepare(self, folder: Path) -> None:
        self._bundle = write_bundle(folder / "bundle", target=self.target)
        self._right = predict(self._bundle, folder / "cache")[0]
        self._model = onnx.load(self._bundle / GRAPH, load_external_data=False)
        outside = folder / OUTSIDE  # watched; weights for whoever reads them
        outside.mkdir()
        (outside / WEIGHTS).write_bytes((self._bundle / WEIGHTS).read_bytes())

    def damage(self, random: Random, folder: Path) -> Damage:
        bundle = copy_bundle(self._bundle, folder / "bundle")
        model = ModelProto()
        model.CopyFrom(self._model)
        names = []
        for _ in range(random.choice((1, 1, 2, 3))):
            name = random.choice(sorted(_CHANGES)) if random.random() > 0.005 else "for ever"
            detail = for_ever(model) if name == "for ever" else _CHANGES[name](random, model)
            names.append(f"{name}: {detail}")
        content = model.SerializeToString()
        if random.random() < 0.1:
            name, content = damage_bytes(random, content)
            names.append(f"{name} in the bytes")
        (bundle / GRAPH).write_bytes(content)
        sign_files(bundle, [GRAPH])
        return Damage(label="; ".join(names))

    def run(self, folder: Path) -> str:
        values, golden = predict(folder / "bundle", folder / "cache", deadline=_DEADLINE)
        return compare(values, golden, [self._right])


class OpenVinoGraphs(Graphs):
    """The same for OpenVINO."""

    name = "graphs-openvino"
    target = "openvino"
    address_space = 12


def for_ever(model: ModelProto) -> str:
    """A loop that does not end before the output."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Neg", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(2**62), "turns"),
            numpy_helper.from_array(np.array(True), "yes"),
        ]
    )
    last = model.graph.node[-1] if model.graph.node else None
    if last is None or not last.output:
        return "no node"
    output = last.output[0]
    last.output[0] = "once"
    model.graph.node.append(helper.make_node("Loop", ["turns", "yes", "once"], [output], body=body))
    return "2^62 turns"


def _attribute(random: Random, model: ModelProto) -> str:
    owners = [node for node in model.graph.node if node.attribute]
    if not owners:
        return "none"
    node = random.choice(owners)
    attribute = random.choice(node.attribute)
    value = boundary(random, random.choice((8, 32, 63)))
    value = random.choice((value, -value, -1))
    if attribute.type == AttributeProto.INTS:
        places = range(len(attribute.ints))
        if places and random.random() < 0.8:
            attribute.ints[random.choice(places)] = value
        else:
            attribute.ints.extend([value] * random.choice((1, 3, 5000)))
    elif attribute.type == AttributeProto.INT:
        attribute.i = value
    elif attribute.type == AttributeProto.STRING:
        attribute.s = random.choice((b"", b"linear", b"cubic", b"\xff\xfe", b"x" * 9999))
    else:
        attribute.type = random.choice((1, 2, 3, 4, 5, 6, 7, 8))
    return f"{node.op_type}.{attribute.name} {value}"


def _operator(random: Random, model: ModelProto) -> str:
    if not model.graph.node:
        return "none"
    node = random.choice(model.graph.node)
    before, node.op_type = node.op_type, random.choice(_OPERATORS)
    if random.random() < 0.1:
        node.domain = random.choice(("com.microsoft", "ai.onnx.ml", "evil"))
    return f"{before}->{node.op_type}"


def _wires(random: Random, model: ModelProto) -> str:
    nodes = model.graph.node
    if not nodes:
        return "none"
    node = random.choice(nodes)
    ends = random.choice((node.input, node.output))
    known = [name for other in nodes for name in (*other.input, *other.output)]
    name = random.choice((*_NAMES, *known))
    if ends and random.random() < 0.8:
        ends[random.randrange(len(ends))] = name
    else:
        ends.extend([name] * random.choice((1, 1, 100)))
    return f"{node.op_type} takes {name[:20]!r}"


def _nodes(random: Random, model: ModelProto) -> str:
    nodes = list(model.graph.node)
    if not nodes:
        return "none"
    how = random.choice(("drop", "repeat", "swap", "many"))
    at = random.randrange(len(nodes))
    if how == "drop":
        del nodes[at]
    elif how == "swap":
        nodes[at], nodes[0] = nodes[0], nodes[at]
    else:
        nodes[at:at] = [nodes[at]] * (1 if how == "repeat" else 300)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return how


def _tensor(random: Random, model: ModelProto) -> str:
    if not model.graph.initializer:
        return "none"
    tensor = random.choice(model.graph.initializer)
    how = random.choice(("dims", "dims", "type", "raw", "rank", "name", "twice"))
    if how == "dims" and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = boundary(
            random, random.choice((8, 31, 63))
        )
    elif how == "rank":
        tensor.dims.extend([random.choice((0, 1, 2, 2**31))] * random.choice((1, 70)))
    elif how == "type":
        tensor.data_type = random.randrange(30)
    elif how == "name":
        tensor.name = random.choice(_NAMES)
    elif how == "twice":
        model.graph.initializer.append(tensor)
    else:
        tensor.raw_data = random.randbytes(random.choice((0, 1, 8, 100)))
    return f"{tensor.name[:20]} {how} {list(tensor.dims)[:5]} type {tensor.data_type}"


def _external(random: Random, model: ModelProto) -> str:
    """Where weights lie: outside, beyond the end, nowhere."""
    outside = [one for one in model.graph.initializer if one.external_data]
    if not outside:
        return "none"
    tensor = random.choice(outside)
    entry = random.choice(tensor.external_data)
    if entry.key == "location" or random.random() < 0.4:
        entry.key = "location"
        entry.value = random.choice(
            (
                *(f"../../{OUTSIDE}/{WEIGHTS}", f"../../bundle/{WEIGHTS}", "/etc/passwd"),
                *("/dev/zero", "/proc/self/mem", ".", "", GRAPH, f"./{WEIGHTS}", f"x/../{WEIGHTS}"),
                *(
                    "golden.npz",
                    "manifest.json",
                    "file:///etc/passwd",
                    "a\0b",
                    "*/_ORT_MEM_ADDR_/*",
                ),
            )
        )
    else:
        value = boundary(random, random.choice((16, 32, 63)))
        entry.value = random.choice((str(value), str(-value), "x", "", "1e9", str(10**30)))
    return f"{tensor.name}: {entry.key} {entry.value[:40]!r}"


def _ends(random: Random, model: ModelProto) -> str:
    """Type, shape and name of the graph's inputs and outputs."""
    ends = [*model.graph.input, *model.graph.output]
    if not ends:
        return "none"
    end = random.choice(ends)
    kind = end.type.tensor_type
    how = random.choice(("type", "edge", "edge", "symbol", "rank", "name", "drop"))
    if how == "type":
        kind.elem_type = random.randrange(24)
    elif how in ("edge", "symbol") and kind.shape.dim:
        edge = random.choice(kind.shape.dim)
        edge.Clear()
        if how == "edge":
            edge.dim_value = boundary(random, random.choice((8, 31, 63)))
        else:
            edge.dim_param = random.choice(("N", "", "x" * 999))
    elif how == "rank":
        kind.shape.dim.add().dim_value = 1
    elif how == "name":
        end.name = random.choice(_NAMES)
    else:
        del model.graph.output[:]
    return f"{end.name[:20]} {how}"


def _header(random: Random, model: ModelProto) -> str:
    how = random.choice(("opset", "ir", "domain", "function", "metadata", "domains"))
    if how == "opset" and model.opset_import:
        model.opset_import[0].version = random.choice((0, 1, 7, 11, 23, 26, 99, -1, 2**62))
    elif how == "ir":
        model.ir_version = random.choice((0, 1, 3, 13, 99, -1))
    elif how == "domain":
        model.opset_import.append(helper.make_opsetid(random.choice(("evil", "com.microsoft")), 1))
    elif how == "function":
        _recursive(model)
    elif how == "metadata":
        model.metadata_props.add(key="x" * 10_000, value="\0")
    else:
        del model.opset_import[:]
    return how


def _recursive(model: ModelProto) -> None:
    """A function that calls itself, put in the place of the last node."""
    node = helper.make_node("Self", ["x"], ["y"], domain="evil")
    opsets = [helper.make_opsetid("evil", 1), helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("evil", "Self", ["x"], ["y"], [node], opsets))
    model.opset_import.append(opsets[0])
    if model.graph.node:
        model.graph.node[-1].op_type, model.graph.node[-1].domain = "Self", "evil"


def _large(random: Random, model: ModelProto) -> str:
    """Nodes that ask for memory on the way to the output."""
    if not model.graph.node:
        return "none"
    edge = random.choice((1 << 10, 1 << 14, 1 << 20, 1 << 33))
    shape = numpy_helper.from_array(np.array([edge, edge]), "large_shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["large_shape"], ["large"]))
    model.graph.node.insert(1, helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0))
    last = model.graph.node[-1]
    if last.output:
        output, last.output[0] = last.output[0], "small"
        model.graph.node.append(helper.make_node("Add", ["small", "sum"], [output]))
    return f"{edge}x{edge}"


def _branches(random: Random, model: ModelProto) -> str:
    """Graphs within graphs."""
    graph = helper.make_graph([helper.make_node("Identity", ["small"], ["deep"])], "inner", [], [])
    graph.output.append(helper.make_tensor_value_info("deep", TensorProto.FLOAT, None))
    depth = random.choice((1, 5, 25))  # protobuf ends at 100 messages in one another
    for _ in range(depth):
        node = helper.make_node("If", ["yes"], ["deep"], then_branch=graph, else_branch=graph)
        if depth > 5:
            del node.attribute[1]
        graph = helper.make_graph([node], "outer", [], [])
        graph.output.append(helper.make_tensor_value_info("deep", TensorProto.FLOAT, None))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    if model.graph.node and model.graph.node[-1].output:
        output, model.graph.node[-1].output[0] = model.graph.node[-1].output[0], "small"
        model.graph.node.extend(graph.node)
        model.graph.node[-1].output[0] = output
    return f"depth {depth}"


_CHANGES: dict[str, Callable[[Random, ModelProto], str]] = {
    "attribute": _attribute,
    "operator": _operator,
    "wires": _wires,
    "nodes": _nodes,
    "tensor": _tensor,
    "external": _external,
    "ends": _ends,
    "header": _header,
    "large": _large,
    "branches": _branches,
}

"""An ONNX graph of a dozen nodes with weights beside it: operators of the real network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_graph(path: Path, height: int, width: int) -> None:
    """image [1,3,H,W] -> disparity [1,1,H,W] in [0,1]; the weights in `path` with `.data`."""
    random, small = np.random.default_rng(0), (height // 4) * (width // 4)
    floats = {
        "down": random.normal(0, 0.3, (16, 3, 4, 4)),
        "scale": random.normal(1, 0.1, 16),
        "shift": random.normal(0, 0.1, 16),
        "query": random.normal(0, 0.3, (16, 16)),
        "key": random.normal(0, 0.3, (16, 16)),
        "value": random.normal(0, 0.5, (16, 16)),
        "inside": random.normal(0, 0.2, (16, 16, 3, 3)),
        "out": random.normal(0, 0.3, (1, 16, 3, 3)),
    }
    whole = {"to_rows": [1, 16, small], "to_map": [1, 16, height // 4, width // 4]}
    weights = [
        *(
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in floats.items()
        ),
        *(numpy_helper.from_array(np.array(shape), name) for name, shape in whole.items()),
        numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "sizes"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "down"], ["a"], strides=[4, 4]),
        helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["b"]),
        helper.make_node("Reshape", ["b", "to_rows"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["d", "query"], ["q"]),
        helper.make_node("MatMul", ["d", "key"], ["k"]),
        helper.make_node("MatMul", ["d", "value"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["f"]),
        helper.make_node("Transpose", ["f"], ["g"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["g", "to_map"], ["h"]),
        helper.make_node("Conv", ["h", "inside"], ["i"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("Resize", ["j", "", "sizes"], ["l"], mode="nearest"),
        helper.make_node("Conv", ["l", "out"], ["m"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["m"], ["disparity"]),
    ]
    shapes = {"image": [1, 3, height, width], "disparity": [1, 1, height, width]}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=256,
    )

"""A small graph with the operators of the network, for tests that build engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="makes the graphs; `pip install 'lotus-edge[export]'`")


def make_graph(
    folder: Path, *, dtype: int = onnx.TensorProto.FLOAT, operator: str = "Tanh"
) -> Path:
    """Conv, GroupNormalization and Attention of opset 23: image [1,3,16,16] -> disparity
    [1,1,16,16].

    Weights are seeded and lie in an external file, as in a bundle.
    """
    helper, rng = onnx.helper, np.random.default_rng(0)
    tensors = {
        "first": rng.normal(0, 0.2, (32, 3, 3, 3)),
        "scale": rng.normal(1, 0.1, 32),
        "shift": rng.normal(0, 0.1, 32),
        "query": rng.normal(0, 0.3, (16, 16)),
        "key": rng.normal(0, 0.3, (16, 16)),
        "value": rng.normal(0, 0.3, (16, 16)),
        "last": rng.normal(0, 0.1, (1, 32, 1, 1)),
    }
    weights = [
        onnx.numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in tensors.items()
    ]
    shapes = {"to_heads": [1, 2, 16, 256], "to_map": [1, 32, 16, 16]}
    weights += [
        onnx.numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["image_f", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("GroupNormalization", ["a", "scale", "shift"], ["b"], num_groups=8),
        helper.make_node("Reshape", ["b", "to_heads"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 1, 3, 2]),
        # Three projections, as in every real network: TensorRT-RTX 1.7.1 dies of Attention(x, x,
        # x).
        helper.make_node("MatMul", ["d", "query"], ["q"]),
        helper.make_node("MatMul", ["d", "key"], ["k"]),
        helper.make_node("MatMul", ["d", "value"], ["v"]),
        helper.make_node("Attention", ["q", "k", "v"], ["e"], name="attention"),
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 1, 3, 2]),
        helper.make_node("Reshape", ["f", "to_map"], ["g"]),
        helper.make_node("Conv", ["g", "last"], ["h"]),
        helper.make_node(operator, ["h"], ["disparity"]),
    ]
    nodes.insert(0, helper.make_node("Cast", ["image"], ["image_f"], to=onnx.TensorProto.FLOAT))
    image = helper.make_tensor_value_info("image", dtype, [1, 3, 16, 16])
    disparity = helper.make_tensor_value_info("disparity", onnx.TensorProto.FLOAT, [1, 1, 16, 16])
    graph = helper.make_graph(nodes, "tiny", [image], [disparity], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    path = folder / "model.onnx"
    onnx.save(
        model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=128
    )
    return path

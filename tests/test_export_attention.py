"""Attention over long sequences, a block of queries at a time: the same function, and no matrix of all scores."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from export.attention import split_queries, write_attention
from runtime.backends.openvino import hints

_HEADS, _DEPTH = 2, 8


def model(queries: int, keys: int, scale: float | None = None) -> ir.Model:
    attributes = {} if scale is None else {"scale": scale}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention", **attributes)
    shapes = {"q": queries, "k": keys, "v": keys, "y": queries}
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _HEADS, length, _DEPTH])
        for name, length in shapes.items()
    ]
    graph = helper.make_graph([node], "graph", values[:3], values[3:])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("length", "scale"), [(8192, None), (8200, 0.7)])
def test_blocks_are_exact(backend: str, length: int, scale: float | None) -> None:
    """With large scores, which overflow unless the largest is taken off; 8200 is no multiple of a block."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, _HEADS, length, _DEPTH), dtype=np.float32) for _ in range(3))
    q *= 20
    rewritten = model(length, length, scale)
    assert split_queries(rewritten.graph) == 1
    proto = ir.to_proto(rewritten)
    onnx.checker.check_model(proto)
    operands = [torch.from_numpy(one) for one in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*operands, scale=scale).numpy()
    feeds = {"q": q, "k": k, "v": v}
    np.testing.assert_allclose(_run(backend, proto, feeds), expected, atol=1e-4)  # scores are up to 100


def test_no_matrix_of_all_scores() -> None:
    rewritten = model(8192, 8192)
    split_queries(rewritten.graph)
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(rewritten), data_prop=True)
    sizes = [
        math.prod(edge.dim_value for edge in value.type.tensor_type.shape.dim) for value in inferred.graph.value_info
    ]
    assert len(sizes) > 100
    assert max(sizes) == _HEADS * 512 * 8192


def test_short_ones_and_few_keys_stay() -> None:
    assert split_queries(model(8191, 8191).graph) == 0
    assert split_queries(model(16384, 77).graph) == 0
    for form in ("split", "contrib", "joined"):
        graph = model(8192, 8192).graph
        write_attention(graph, form)
        assert [node.op_type for node in graph] == ["Attention"], form
    graph = model(8192, 8192).graph
    write_attention(graph, "blocks")
    assert Counter(node.op_type for node in graph)["MatMul"] == 2 * 8192 // 512


def _run(backend: str, proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    if backend == "onnxruntime":
        ort = pytest.importorskip("onnxruntime")
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, feeds)[0])
    core = pytest.importorskip("openvino").Core()
    read = core.read_model(proto.SerializeToString())
    assert hints(read, "fp32")["SNIPPETS_MODE"] == "ENABLE"
    return np.asarray(core.compile_model(read, "CPU", hints(read, "fp32"))(feeds)[0])

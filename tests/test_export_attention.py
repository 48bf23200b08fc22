"""Attention over long sequences, a block of queries at a time: the same function, and no matrix of
all scores.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import BUCKET, build_bundle
from onnx import TensorProto, helper

from export.graph import attention
from export.graph.attention import split_queries, write_attention
from runtime.backends.openvino import hints

_HEADS, _DEPTH = 2, 8


def model(queries: int, keys: int, depth: int = _DEPTH, scale: float | None = None) -> ir.Model:
    """Attention, and a product with the identity: what stands at a graph's end OpenVINO computes in
    float32.
    """
    attributes = {} if scale is None else {"scale": scale}
    nodes = [
        helper.make_node("Attention", ["q", "k", "v"], ["answer"], name="attention", **attributes),
        helper.make_node("MatMul", ["answer", "identity"], ["y"], name="end"),
    ]
    shapes = {"q": queries, "k": keys, "v": keys, "y": queries, "answer": queries}
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _HEADS, length, depth])
        for name, length in shapes.items()
    ]
    identity = onnx.numpy_helper.from_array(np.eye(depth, dtype=np.float32), "identity")
    graph = helper.make_graph(
        nodes, "graph", values[:3], values[3:4], [identity], value_info=values[4:]
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    )


def operands(
    queries: int, keys: int, depth: int = _DEPTH, factor: float = 20.0
) -> dict[str, np.ndarray]:
    """Queries are `factor` times as large as keys and values: with 20 and more exp of a score
    overflows.
    """
    random = np.random.default_rng(0)
    lengths = {"q": queries, "k": keys, "v": keys}
    drawn = {
        name: random.standard_normal((1, _HEADS, length, depth), dtype=np.float32)
        for name, length in lengths.items()
    }
    return drawn | {"q": drawn["q"] * np.float32(factor)}


def exact(feeds: dict[str, np.ndarray], scale: float | None = None) -> np.ndarray:
    q, k, v = (torch.from_numpy(feeds[name]).double() for name in "qkv")
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).numpy()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("length", "scale"), [(8192, None), (8200, 0.7)])
def test_blocks_are_exact(backend: str, length: int, scale: float | None) -> None:
    """8200 is no multiple of a block."""
    rewritten = model(length, length, scale=scale)
    assert split_queries(rewritten.graph, 8192) == 1
    proto = ir.to_proto(rewritten)
    onnx.checker.check_model(proto)
    feeds = operands(length, length)
    np.testing.assert_allclose(_run(backend, proto, feeds), exact(feeds, scale), atol=1e-4)


@pytest.mark.parametrize("factor", [4, 20, 100])
def test_blocks_are_as_accurate_as_the_kernel_in_bf16(factor: float) -> None:
    """The largest scores are 21, 100 and 500. Rounded to bf16, those are up to 1 off, and shares as
    much.
    """
    core = pytest.importorskip("openvino").Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    feeds = operands(512, 8192, 64, factor)
    errors = []
    for fewest in (10**6, 8192):
        written = model(512, 8192, 64)
        assert split_queries(written.graph, fewest) == (fewest == 8192)
        answer = _run("openvino", ir.to_proto(written), feeds, "bf16")
        errors.append(np.sqrt(np.square(answer - exact(feeds)).mean()))
    kernel, blocks = errors
    assert kernel > 1e-6
    assert blocks < 1.3 * kernel


def test_no_matrix_of_all_scores() -> None:
    rewritten = model(8192, 8192)
    split_queries(rewritten.graph, 8192)
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(rewritten), data_prop=True)
    sizes = [
        math.prod(edge.dim_value for edge in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    ]
    assert len(sizes) > 100
    assert max(sizes) == _HEADS * 512 * 8192


def test_short_ones_and_few_keys_stay() -> None:
    assert split_queries(model(8191, 8191).graph, 8192) == 0
    assert split_queries(model(16384, 77).graph, 8192) == 0
    assert split_queries(model(8192, 8192, 64).graph, 8192, 65) == 0
    for form in ("split", "contrib", "joined"):
        graph = model(8192, 8192).graph
        write_attention(graph, form)
        assert [node.op_type for node in graph] == ["Attention", "MatMul"], form
    for depth, blocks in ((64, 0), (512, 8192 // 512)):  # the UNet's heads, and the autoencoder's
        graph = model(8192, 8192, depth).graph
        write_attention(graph, "blocks")
        assert Counter(node.op_type for node in graph)["Exp"] == blocks
    with pytest.raises(ValueError, match="block"):
        write_attention(graph, "block")


@pytest.mark.slow
def test_a_bundle_whose_maps_are_large(
    checkpoint_d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large by a lowered bound: the autoencoder's two and the five of the UNet's widest level, all
    else as it is.
    """
    pytest.importorskip("openvino")
    monkeypatch.setattr(attention, "_LONG", (BUCKET // 8) ** 2)
    monkeypatch.setattr(attention, "_WIDE", 0)
    settings = {
        "task": "depth",
        "target": "openvino",
        "precision": "bf16",
        "resolutions": ((BUCKET, BUCKET),),
    }
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", **settings)  # runs the golden
    graph = onnx.load(bundle / "model-64x64.onnx", load_external_data=False).graph
    found = Counter(node.op_type for node in graph.node)
    assert found["Exp"] == 2 + 5
    assert found["Attention"] == 16 + 2 - found["Exp"]


def _run(
    backend: str, proto: onnx.ModelProto, feeds: dict[str, np.ndarray], precision: str = "fp32"
) -> np.ndarray:
    if backend == "onnxruntime":
        ort = pytest.importorskip("onnxruntime")
        session = ort.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return np.asarray(session.run(None, feeds)[0])
    core = pytest.importorskip("openvino").Core()
    read = core.read_model(proto.SerializeToString())
    assert hints(read, precision)["SNIPPETS_MODE"] == "ENABLE"
    return np.asarray(core.compile_model(read, "CPU", hints(read, precision))(feeds)[0])

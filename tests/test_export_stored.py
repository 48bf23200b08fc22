"""Weights stored in half precision: the function of the graph, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper

from export.bundle.costs import read_costs
from export.graph.stored import store_weights

GRAPH = """
<ir_version: 11, opset_import: ["" : 23]>
g (float[1,4,8,8] x) => (float[1,8,64] y) {
    c = Conv <pads = [1,1,1,1]> (x, kernel, bias)
    flat = Reshape (c, shape)
    shared = MatMul (flat, twice)
    rows = Gather <axis = 0> (twice, first)
    shifted = Add (shared, rows)
    y = MatMul (shifted, square)
}
"""


def example(*rounded: str) -> onnx.ModelProto:
    """A graph in which `twice` is a weight and more; the `rounded` weights are rounded."""
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(GRAPH)
    arrays = {
        "kernel": random.normal(size=(8, 4, 3, 3)).astype(np.float32),
        "bias": random.normal(size=8).astype(np.float32),
        "shape": np.array([1, 8, 64]),
        "square": random.normal(size=(64, 64)).astype(np.float32),
        "twice": random.normal(size=(64, 64)).astype(np.float32),
        "first": np.array(0),
    }
    for name in rounded:
        arrays[name] = arrays[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    for node in model.graph.node:
        node.name = f"unet/{node.output[0]}/{node.op_type}"
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    return model


def answer(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def test_a_graph_with_stored_weights_costs_what_it_cost(tmp_path: Path) -> None:
    """But for the bytes of its weights: a widened weight is no activation."""
    costs = {}
    for half in (None, ir.DataType.BFLOAT16):
        model = ir.from_proto(example())
        if half is not None:
            store_weights(model.graph, half)
        ir.save(model, tmp_path / "g.onnx")
        costs[half] = read_costs(tmp_path / "g.onnx")["all"]
    before, after = costs.values()
    for what in ("multiply_adds", "traffic", "peak"):
        assert getattr(after, what) == getattr(before, what)
    assert before.weights - after.weights == 2 * (8 * 4 * 9 + 64 * 64)


def test_weights_are_stored_as_they_are_rounded() -> None:
    model = ir.from_proto(example())
    assert store_weights(model.graph, ir.DataType.BFLOAT16) == 2
    types = {name: str(value.dtype) for name, value in model.graph.initializers.items()}
    assert (types["kernel"], types["square"]) == ("BFLOAT16", "BFLOAT16")
    assert (types["bias"], types["twice"]) == ("FLOAT", "FLOAT")  # small; read by others too
    stored = ir.to_proto(model)
    onnx.checker.check_model(stored, full_check=True)
    exact = answer(example("kernel", "square"))
    np.testing.assert_allclose(answer(stored), exact, rtol=1e-6, atol=1e-5)
    assert np.abs(answer(example()) - exact).max() > 0.01  # rounding is seen

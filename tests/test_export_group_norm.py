"""Group normalisation for ONNX Runtime: the rewrite's structure and its numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from export.graph import group_norm
from export.graph.group_norm import spell_out_group_norm

ort = pytest.importorskip("onnxruntime")


def model(shape: tuple[int, ...], groups: int) -> ir.Model:
    channels = shape[1]
    node = helper.make_node(
        "GroupNormalization", ["x", "s", "b"], ["y"], name="g", num_groups=groups, epsilon=1e-6
    )
    scale, bias = parameters(channels)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(bias, "b")],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    )


def parameters(channels: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.standard_normal(channels, dtype=np.float32), random.standard_normal(
        channels, dtype=np.float32
    )


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def exact(x: np.ndarray, groups: int) -> np.ndarray:
    scale, bias = (torch.from_numpy(part).double() for part in parameters(x.shape[1]))
    return torch.nn.functional.group_norm(
        torch.from_numpy(x).double(), groups, scale, bias, 1e-6
    ).numpy()


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1, 64, 32, 32), 32),
        ((1, 32, 25, 17), 32),
        ((1, 64, 100), 8),
        ((1, 8, 37, 41), 2),
        ((1, 4, 2, 2), 1),
        ((3, 16, 12, 20), 4),
    ],
)
@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (3, 0.3), (30, 1)])
@pytest.mark.parametrize("form", ["rows", "channels"])
def test_equals_float64_for_any_shape(
    form: str,
    shape: tuple[int, ...],
    groups: int,
    mean: float,
    spread: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_norm, "_FEWEST_PIXELS", 1)
    x = np.random.default_rng(0).normal(mean, spread, shape).astype(np.float32)
    x -= np.arange(shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    rewritten = model(shape, groups)
    assert spell_out_group_norm(rewritten.graph, form) == 1
    assert {node.op_type for node in rewritten.graph}.isdisjoint({"GroupNormalization"})
    onnx.checker.check_model(ir.to_proto(rewritten))
    assert np.abs(run(rewritten, x) - exact(x, groups)).max() < 1e-6 * max(10, 4 * mean / spread)


def test_flat_maps_stay_finite_where_the_operator_gives_nan() -> None:
    x = np.full((1, 32, 64, 64), 1, np.float32) + np.random.default_rng(0).normal(
        0, 1e-3, (1, 32, 64, 64)
    ).astype("f4")
    rewritten = model(x.shape, 32)
    assert not np.abs(run(rewritten, x) - exact(x, 32)).max() < 0.1, (
        "ONNX Runtime mended its expansion: drop the rewrite"
    )
    spell_out_group_norm(rewritten.graph, "rows")
    assert np.abs(run(rewritten, x) - exact(x, 32)).max() < 2e-3
    assert np.isfinite(run(rewritten, np.full_like(x, 7.3))).all()


def test_channels_are_for_wide_maps_and_the_kernel_stays_where_it_is_wanted() -> None:
    assert spell_out_group_norm(model((1, 8, 127, 128), 2).graph, "channels") == 0
    assert spell_out_group_norm(model((1, 8, 128, 128), 2).graph, "channels") == 1
    assert spell_out_group_norm(model((1, 8, 128, 128), 2).graph, "kernel") == 0


@pytest.mark.parametrize(("precision", "bound"), [("f32", 1e-6), ("bf16", 0.005)])
def test_channels_on_openvino(precision: str, bound: float) -> None:
    """In bf16 its statistics are bf16 too, which costs about as much as rounding the map does."""
    openvino = pytest.importorskip("openvino")
    x = np.random.default_rng(0).normal(2, 1, (1, 64, 128, 128)).astype(np.float32)
    written = model(x.shape, 32)
    spell_out_group_norm(written.graph, "channels")
    graph = openvino.Core().read_model(ir.to_proto(written).SerializeToString())
    answer = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})(
        x
    )[0]
    assert np.abs(answer - exact(x, 32)).mean() < bound

"""Half precision and int8 weights: types in the graph, operators that stay in float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.graph.emulate import emulate
from export.graph.half import HALVES, to_half
from export.graph.to_onnx import _operator, quiet_exporter
from export.graph.weight_only import weights_to_int8
from export.quantize.overflow import fp32_nodes, measure


class Network(nn.Module):
    """A convolution of `gain`, a norm that forgets it, a linear layer over the channels, and the
    end that Lotus has.
    """

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.GroupNorm(8, 32)
        self.mix = nn.Linear(32, 32)
        self.last = nn.Conv2d(32, 3, 1)
        self.first.weight.data *= gain

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.first(image)).permute(0, 2, 3, 1)
        low, high = torch.nn.functional.silu(self.mix(x)).chunk(2, dim=-1)
        x = torch.cat([high, low], dim=-1).permute(0, 3, 1, 2)
        return self.last(x).clamp(-1, 1).mean(dim=1, keepdim=True) / 2 + 0.5


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trace(module: nn.Module, image: Tensor, opset: int = 23) -> torch.onnx.ONNXProgram:
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), (image,), dynamo=True, opset_version=opset, verbose=False
        )
    assert program is not None
    return program


def halved(
    module: nn.Module, image: Tensor, precision: str, opset: int = 23
) -> tuple[ir.Model, list[ir.Node]]:
    program = trace(module, image, opset)
    half = HALVES[precision]
    magnitudes = measure(program.exported_program, half, [(image,)])
    operators = {node: _operator(node) for node in program.model.graph}
    kept = fp32_nodes(program.model.graph, operators, magnitudes, half)
    to_half(program.model.graph, half, kept)
    return program.model, kept


def run(model: ir.Model, image: Tensor) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]


def answer_types(model: ir.Model, *operators: str) -> set[ir.DataType | None]:
    return {
        value.dtype for node in model.graph if node.op_type in operators for value in node.outputs
    }


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_types_are_in_the_graph(precision: str, opset: int, image: Tensor) -> None:
    model, kept = halved(Network(), image, precision, opset)
    half, float32 = HALVES[precision], ir.DataType.FLOAT
    assert kept == []
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {float32}
    assert answer_types(
        model, "Conv", "MatMul", "Gemm", "Sigmoid", "Split", "GroupNormalization"
    ) == {half}
    # At opset 20 the group norm is an InstanceNormalization, whose sums must be float32 by type.
    assert answer_types(model, "InstanceNormalization") == ({float32} if opset == 20 else set())
    assert answer_types(model, "Clip", "ReduceMean") == {float32}, (
        "the end of the map is not rounded again"
    )
    large = [value for value in model.graph.initializers.values() if value.const_value.size > 32]
    assert {value.dtype for value in large if value.dtype != ir.DataType.INT64} == {half}
    if (precision, opset) != (
        "bf16",
        20,
    ):  # ONNX has bfloat16 convolutions from opset 22; the vendors' parsers before
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "epsilon"), [("fp16", 2**-11), ("bf16", 2**-8)])
@pytest.mark.parametrize("opset", [20, 23])
def test_the_emulated_graph_rounds_as_pytorch_in_half_does(
    precision: str, epsilon: float, opset: int, image: Tensor
) -> None:
    """PyTorch's own half kernels round at the same places (its sums differ in order)."""
    module = Network()
    exact = module(image)[0].detach().numpy()
    model, _ = halved(module, image, precision, opset)
    rounded = emulate(model.graph)
    assert rounded > 5
    found = run(model, image)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    expected = module.to(half)(image.to(half)).detach().float().numpy()
    assert epsilon / 8 < np.abs(found - exact).max() < 16 * epsilon, (
        "rounded, and not more than that"
    )
    assert np.abs(found - expected).max() < 8 * epsilon


@pytest.mark.slow
def test_onnxruntime_alone_does_not_round(image: Tensor) -> None:
    """If this fails, ONNX Runtime computes in float16 on the CPU, and `emulate` can go for it."""

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.softplus(torch.sigmoid(x)).sigmoid()

    image = image.half().float()
    exact = Chain()(image).numpy()
    model, _ = halved(Chain(), image, "fp16")
    assert np.abs(run(model, image) - exact).max() < 1e-6
    emulate(model.graph)
    assert np.abs(run(model, image) - exact).max() > 1e-4


@pytest.mark.slow
def test_what_overflows_is_measured_and_stays_float32(image: Tensor) -> None:
    """A convolution of answers around 1e5, read by the norm alone: both stay, and the answer is
    right.
    """
    module = Network(gain=1e5)
    exact = module(image)[0].detach().numpy()
    model, kept = halved(module, image, "fp16")
    assert [node.op_type for node in kept] == ["Conv", "GroupNormalization"]
    assert np.abs(run(model, image) - exact).max() < 5e-3
    unguarded = trace(module, image).model
    to_half(unguarded.graph, HALVES["fp16"])
    emulate(unguarded.graph)
    assert not np.abs(run(unguarded, image) - exact).max() < 0.1, (
        "without the island the map is lost"
    )
    assert halved(module, image, "bf16")[1] == [], "bfloat16 reaches as far as float32"


@pytest.mark.slow
def test_what_underflows_is_measured_too(image: Tensor) -> None:
    _, kept = halved(Network(gain=1e-7), image, "fp16")
    assert "Conv" not in {node.op_type for node in kept}, "the bias carries the answer"
    silent = Network(gain=1e-7)
    nn.init.zeros_(silent.first.bias)
    _, kept = halved(silent, image, "fp16")
    assert [node.op_type for node in kept] == ["Conv", "GroupNormalization"]


@pytest.mark.slow
def test_scores_of_attention_count(image: Tensor) -> None:
    """Scores of 1e5 inside an attention whose operands and answer are small."""

    class Attending(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = 200 * x.reshape(1, 1, -1, 64)
            y = nn.functional.scaled_dot_product_attention(tokens, tokens + 1, tokens - 1)
            return y.clamp(-1, 1)

    for opset, operator in ((23, "Attention"), (20, "Softmax")):
        _, kept = halved(Attending(), image, "fp16", opset)
        assert operator in {node.op_type for node in kept}


@pytest.mark.slow
def test_a_weight_that_float16_cannot_hold(image: Tensor) -> None:
    module = Network()
    module.mix.weight.data[0, 0] = 1e6
    module.norm.weight.data[:] = 0
    module.norm.bias.data[:] = 0
    _, kept = halved(module, image, "fp16")
    assert {node.op_type for node in kept} <= {"MatMul", "Gemm", "Transpose"}
    assert kept


@pytest.mark.slow
def test_int8_weights(image: Tensor) -> None:
    module = Network()
    module.mix.weight.data[5] = 0  # a channel of zeros
    exact = module(image)[0].detach().numpy()
    model, _ = halved(module, image, "fp16")
    assert weights_to_int8(model.graph) == 1, "convolutions of 3 channels stay half"
    node = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    quantised, scale = (value.const_value.numpy() for value in node.inputs)
    assert (quantised.dtype, scale.dtype, scale.shape) == (np.int8, np.float16, (32,))
    user = node.outputs[0].uses()[0].node
    transposed = user.op_type == "Gemm" and user.attributes["transB"].as_int()
    assert node.attributes["axis"].as_int() == (0 if transposed else 1)
    weight = (
        module.mix.weight.detach().numpy() if transposed else module.mix.weight.detach().numpy().T
    )
    step = scale.astype(np.float32)[:, None] if transposed else scale.astype(np.float32)[None]
    # Half a step of int8, and the rounding of weight and scale to float16.
    assert np.all(np.abs(quantised * step - weight) <= 0.5 * step + 2**-10 * np.abs(weight))
    assert np.abs(quantised).max() == 127
    assert np.abs(run(model, image) - exact).max() < 1e-2


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "axis"),
    [
        ("Conv", (24, 16, 1, 1), {}, 0),
        ("ConvTranspose", (16, 24, 1, 1), {}, 1),
        ("Gemm", (24, 16), {"transB": 1}, 0),
        ("Gemm", (16, 24), {"transB": 0}, 1),
        ("MatMul", (16, 24), {}, 1),
    ],
)
def test_scales_are_one_for_each_output_channel(
    operator: str, shape: tuple[int, ...], attributes, axis: int
) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"), shape=ir.Shape(shape))
    value.dtype = ir.DataType.FLOAT16
    data = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape((1, 16, *shape[2:]))
    )
    node = ir.node(operator, [data, value], attributes, name="unet/node")
    graph = ir.Graph(
        [data], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 23}
    )
    assert weights_to_int8(graph) == 1
    back = node.inputs[1].producer()
    assert back.attributes["axis"].as_int() == axis
    assert back.inputs[1].shape == (24,)
    others = tuple(place for place in range(len(shape)) if place != axis)
    expected = np.abs(weight.astype(np.float32)).max(others) / 127
    np.testing.assert_allclose(back.inputs[1].const_value.numpy(), expected, rtol=2**-10)
    assert set(graph.initializers) == {"w_int8", "w_scale"}

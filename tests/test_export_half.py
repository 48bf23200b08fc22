"""Half precision and int8 weights: types in the file, islands that were measured, what the vendor's parser reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from conftest import build_bundle
from torch import Tensor, nn

from export import inspect
from export.bundle import finish_on_device
from export.errors import BuildError
from export.inspect import count_layers
from export.precision.emulate import emulate
from export.precision.half import HALVES, to_half
from export.precision.overflow import measure, wide_nodes
from export.precision.weight_only import weights_to_int8
from export.targets.tensorrt import build_engine
from export.to_onnx import quiet_exporter
from runtime.manifest import Manifest

NO_RTX = "needs the package tensorrt-rtx (`pip install 'lotus-edge[rtx]'`)"
TYPES = {"fp16": "HALF", "bf16": "BF16", "int8": "HALF"}
# A UNet level of one pixel fails in the compiler of TensorRT-RTX 1.7.1.
SETTINGS = {"task": "depth", "resolutions": ((128, 128),), "calibration_images": 1}


class Network(nn.Module):
    """A convolution of `gain`, a norm that forgets it, a linear layer over the channels, and the end that Lotus has."""

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
        program = torch.onnx.export(module.eval(), (image,), dynamo=True, opset_version=opset, verbose=False)
    assert program is not None
    return program


def lowered(module: nn.Module, image: Tensor, precision: str, opset: int = 23) -> tuple[ir.Model, list[ir.Node]]:
    program = trace(module, image, opset)
    half = HALVES[precision]
    ranges = measure(program.exported_program, half, [(image,)], lambda line: None)
    wide = wide_nodes(program.model.graph, ranges, half)
    to_half(program.model.graph, half, wide)
    return program.model, wide


def run(model: ir.Model, image: Tensor) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]


def answer_types(model: ir.Model, *operators: str) -> set[ir.DataType | None]:
    return {value.dtype for node in model.graph if node.op_type in operators for value in node.outputs}


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_types_are_in_the_graph(precision: str, opset: int, image: Tensor) -> None:
    model, wide = lowered(Network(), image, precision, opset)
    half, float32 = HALVES[precision], ir.DataType.FLOAT
    assert wide == []
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {float32}
    assert answer_types(model, "Conv", "MatMul", "Gemm", "Sigmoid", "Split", "GroupNormalization") == {half}
    # At opset 20 the group norm is an InstanceNormalization, whose sums must be float32 by type.
    assert answer_types(model, "InstanceNormalization") == ({float32} if opset == 20 else set())
    assert answer_types(model, "Clip", "ReduceMean") == {float32}, "the end of the map is not rounded again"
    large = [value for value in model.graph.initializers.values() if value.const_value.size > 32]
    assert {value.dtype for value in large if value.dtype != ir.DataType.INT64} == {half}
    if (precision, opset) != ("bf16", 20):  # ONNX has bfloat16 convolutions from opset 22; the vendors' parsers before
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize(("precision", "epsilon"), [("fp16", 2**-11), ("bf16", 2**-8)])
@pytest.mark.parametrize("opset", [20, 23])
def test_the_emulated_graph_rounds_as_pytorch_in_half_does(
    precision: str, epsilon: float, opset: int, image: Tensor
) -> None:
    """PyTorch's own half kernels round at the same places (its sums differ in order)."""
    module = Network()
    exact = module(image).detach().numpy()
    model, _ = lowered(module, image, precision, opset)
    rounded = emulate(model.graph)
    assert rounded > 5
    found = run(model, image)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    expected = module.to(half)(image.to(half)).detach().float().numpy()
    assert epsilon / 8 < np.abs(found - exact).max() < 16 * epsilon, "rounded, and not more than that"
    assert np.abs(found - expected).max() < 8 * epsilon


def test_onnxruntime_alone_does_not_round(image: Tensor) -> None:
    """If this fails, ONNX Runtime computes in float16 on the CPU, and `emulate` can go for it."""

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.softplus(torch.sigmoid(x)).sigmoid()

    image = image.half().float()
    exact = Chain()(image).numpy()
    model, _ = lowered(Chain(), image, "fp16")
    assert np.abs(run(model, image) - exact).max() < 1e-6
    emulate(model.graph)
    assert np.abs(run(model, image) - exact).max() > 1e-4


def test_what_overflows_is_measured_and_stays_float32(image: Tensor) -> None:
    """A convolution of answers around 1e5, read by the norm alone: both stay, and the answer is right."""
    module = Network(gain=1e5)
    exact = module(image).detach().numpy()
    model, wide = lowered(module, image, "fp16")
    assert [node.op_type for node in wide] == ["Conv", "GroupNormalization"]
    assert np.abs(run(model, image) - exact).max() < 5e-3
    unguarded = trace(module, image).model
    to_half(unguarded.graph, HALVES["fp16"])
    emulate(unguarded.graph)
    assert not np.abs(run(unguarded, image) - exact).max() < 0.1, "without the island the map is lost"
    assert lowered(module, image, "bf16")[1] == [], "bfloat16 reaches as far as float32"


def test_what_underflows_is_measured_too(image: Tensor) -> None:
    _, wide = lowered(Network(gain=1e-7), image, "fp16")
    assert "Conv" not in {node.op_type for node in wide}, "the bias carries the answer"
    silent = Network(gain=1e-7)
    nn.init.zeros_(silent.first.bias)
    _, wide = lowered(silent, image, "fp16")
    assert [node.op_type for node in wide] == ["Conv", "GroupNormalization"]


def test_scores_of_attention_count(image: Tensor) -> None:
    """Scores of 1e5 inside an attention whose operands and answer are small."""

    class Attending(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = 200 * x.reshape(1, 1, -1, 64)
            y = nn.functional.scaled_dot_product_attention(tokens, tokens + 1, tokens - 1)
            return y.clamp(-1, 1)

    for opset, operator in ((23, "Attention"), (20, "Softmax")):
        _, wide = lowered(Attending(), image, "fp16", opset)
        assert operator in {node.op_type for node in wide}


def test_a_weight_that_float16_cannot_hold(image: Tensor) -> None:
    module = Network()
    module.mix.weight.data[0, 0] = 1e6
    module.norm.weight.data[:] = 0
    module.norm.bias.data[:] = 0
    _, wide = lowered(module, image, "fp16")
    assert {node.op_type for node in wide} <= {"MatMul", "Gemm", "Transpose"}
    assert wide


def test_int8_weights(image: Tensor) -> None:
    module = Network()
    module.mix.weight.data[5] = 0  # a channel of zeros
    exact = module(image).detach().numpy()
    model, _ = lowered(module, image, "fp16")
    assert weights_to_int8(model.graph) == 1, "convolutions of 3 channels stay half"
    node = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    quantised, scale = (value.const_value.numpy() for value in node.inputs)
    assert (quantised.dtype, scale.dtype, scale.shape) == (np.int8, np.float16, (32,))
    user = node.outputs[0].uses()[0].node
    transposed = user.op_type == "Gemm" and user.attributes["transB"].as_int()
    assert node.attributes["axis"].as_int() == (0 if transposed else 1)
    weight = module.mix.weight.detach().numpy() if transposed else module.mix.weight.detach().numpy().T
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
def test_scales_are_one_for_each_output_channel(operator: str, shape: tuple[int, ...], attributes, axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"), shape=ir.Shape(shape))
    value.dtype = ir.DataType.FLOAT16
    data = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape((1, 16, *shape[2:])))
    node = ir.node(operator, [data, value], attributes, name="unet/node")
    graph = ir.Graph([data], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 23})
    assert weights_to_int8(graph) == 1
    back = node.inputs[1].producer()
    assert back.attributes["axis"].as_int() == axis
    assert back.inputs[1].shape == (24,)
    others = tuple(place for place in range(len(shape)) if place != axis)
    expected = np.abs(weight.astype(np.float32)).max(others) / 127
    np.testing.assert_allclose(back.inputs[1].const_value.numpy(), expected, rtol=2**-10)
    assert set(graph.initializers) == {"w_int8", "w_scale"}


@pytest.fixture(scope="module")
def rtx_bundle(checkpoint_d: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a precision for TensorRT-RTX, with its engine where the vendor's package is."""
    built: dict[str, Path] = {}

    def bundle(precision: str) -> Path:
        if precision not in built:
            output = tmp_path_factory.mktemp("half") / precision
            built[precision] = build_bundle(
                checkpoint_d, output, target="tensorrt-rtx", precision=precision, **SETTINGS
            )
        return built[precision]

    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_parser_reads_the_intended_types(precision: str, rtx_bundle: Callable[[str], Path]) -> None:
    pytest.importorskip("tensorrt_rtx", reason=NO_RTX)
    bundle = rtx_bundle(precision)
    layers = count_layers(bundle / "model-128x128.onnx", "tensorrt-rtx")
    half = TYPES[precision]
    everything = sum(layers.values(), start=type(layers["unet"])())
    transposed = 0 if precision == "bf16" else 6  # its compiler has none in bf16
    for kind, count in {
        "CONVOLUTION": 103 + 6 - transposed,
        "DECONVOLUTION": transposed,
        "MATRIX_MULTIPLY": 136,
        "NORMALIZATION": 97 + 48,
        "ATTENTION_INPUT": 18,
    }.items():
        found = {name: number for name, number in everything.items() if name.startswith(f"{kind} ")}
        assert found == ({f"{kind} {half}": count} if count else {})
    float32 = {name.removesuffix(" FLOAT") for name in everything if name.endswith(" FLOAT")}
    # The 16 softmaxes over the constant prompt, their casts and views, and the end of the decoder.
    assert float32 <= {"SOFTMAX", "CAST", "SHUFFLE", "CONSTANT", "ACTIVATION", "REDUCE", "ELEMENTWISE"}
    assert layers["encoder"]["CONVOLUTION FLOAT"] == 0
    assert sum(number for name, number in layers["decoder"].items() if name.endswith(" FLOAT")) < 10
    assert (everything["DEQUANTIZE HALF"] > 200) == (precision == "int8")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_opset_20_sums_norms_and_softmax_in_float32(precision: str, checkpoint_d: Path, tmp_path: Path) -> None:
    """What a Jetson's TensorRT 10.3 reads, by the parser that is here; int8 has its layers in it."""
    pytest.importorskip("tensorrt_rtx", reason=NO_RTX)
    bundle = build_bundle(
        checkpoint_d, tmp_path / "bundle", target="tensorrt", precision=precision, budget=0.9, **SETTINGS
    )
    manifest = Manifest.load(bundle)
    assert manifest.opset == 20
    assert manifest.golden.measured[0].backend in ("onnxruntime, emulated", "tensorrt")
    layers = count_layers(bundle / "model-128x128.onnx", "tensorrt-rtx")
    everything = sum(layers.values(), start=type(layers["unet"])())
    half = TYPES[precision]
    # Group norms and softmax of attention; layer norms have stash_type.
    assert (everything["NORMALIZATION FLOAT"], everything[f"NORMALIZATION {half}"]) == (97, 48)
    assert (everything["SOFTMAX FLOAT"], everything[f"SOFTMAX {half}"]) == (18, 0)
    # In bf16 the six upsamplings are convolutions, not transposed ones.
    assert everything[f"CONVOLUTION {half}"] == 103 + (6 if precision == "bf16" else 0)
    assert everything["MATRIX_MULTIPLY FLOAT"] == everything["CONVOLUTION FLOAT"] == 0
    # Int8 by Q and DQ: an input and a weight for each layer; what comes out of DQ, by scales in half, is half.
    int8 = precision == "int8"
    assert (everything["QUANTIZE INT8"] > 100) == int8
    assert (everything[f"DEQUANTIZE {half}"] > 200) == int8
    assert everything["DEQUANTIZE FLOAT"] == 0
    graph = ir.load(bundle / "model-128x128.onnx").graph
    sums = [use.node for node in graph if node.op_type == "Conv" for use in node.outputs[0].uses()]
    skips = [value.producer().op_type for node in sums if node.op_type == "Add" for value in node.inputs]
    # Of each sum behind a convolution one operand comes from it, and one through int8 or from the other convolution.
    assert (skips.count("DequantizeLinear") > 20) == int8
    if int8:  # the compiler that is here makes an engine of it
        engine = tmp_path / "model.rtx"
        build_engine(bundle / "model-128x128.onnx", engine, "tensorrt-rtx", lambda line: None)
        assert engine.stat().st_size > 0.9 * (bundle / "model.onnx.data").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.55), ("bf16", 0.55), ("int8", 0.35)])
def test_the_bundle_is_small_verified_and_says_so(
    precision: str, share: float, rtx_bundle: Callable[[str], Path], bundle_d: Path
) -> None:
    bundle = rtx_bundle(precision)
    manifest = Manifest.load(bundle)
    assert manifest.precision == precision
    assert manifest.name.endswith(f"-{precision}-tensorrt-rtx")
    measured = manifest.golden.measured[0]
    assert measured.backend in ("onnxruntime, emulated", "tensorrt-rtx")
    assert 0 < measured.max_abs_error < manifest.golden.tolerance
    whole = (bundle_d / "model.onnx.data").stat().st_size
    assert (bundle / "model.onnx.data").stat().st_size < share * whole
    assert not list(bundle.glob("emulated*"))


@pytest.mark.slow
def test_inspect_shows_the_layers_of_the_network(
    rtx_bundle: Callable[[str], Path], bundle_d: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason=NO_RTX)
    bundle = str(rtx_bundle("int8"))
    assert inspect.main([bundle, "--network", "tensorrt-rtx"]) == 0
    assert "decoder as parsed: " in capsys.readouterr().out
    assert inspect.main([bundle, "--network", "tensorrt-rtx", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["layers"]["decoder"]["DECONVOLUTION HALF"] == 3
    assert inspect.main([str(bundle_d), "--network", "tensorrt-rtx"]) == 0
    # ONNX Runtime's own operator; this parser knows it.
    assert "16 ATTENTION_INPUT FLOAT" in capsys.readouterr().out


@pytest.mark.slow
def test_onnxruntime_gets_float32_and_openvino_refuses(checkpoint_d: Path, tmp_path: Path) -> None:
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", task="depth", resolutions=((64, 64),), precision="fp16")
    manifest = Manifest.load(bundle)
    assert manifest.precision == "fp32"
    assert "-fp32-onnxruntime" in manifest.name
    with pytest.raises(BuildError, match="'openvino' has no precision 'fp16'"):
        build_bundle(checkpoint_d, tmp_path / "no", target="openvino", precision="fp16", **SETTINGS)


@pytest.mark.slow
def test_a_bf16_bundle_for_openvino_is_no_bf16_graph(checkpoint_d: Path, tmp_path: Path) -> None:
    """OpenVINO's bf16 is a float32 graph with a hint; TensorRT would build a float32 engine and call it bf16."""
    pytest.importorskip("openvino")
    bundle = build_bundle(
        checkpoint_d, tmp_path / "bundle", task="depth", resolutions=((64, 64),), precision="bf16", target="openvino"
    )
    with pytest.raises(BuildError, match="bf16 is another graph for tensorrt-rtx than for openvino"):
        finish_on_device(
            bundle, target="tensorrt-rtx", output=None, overwrite=False, command="none", progress=lambda line: None
        )

"""Int8: the layers, and the graph that comes out."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from conftest import BUCKET, INT8, build_bundle, image_inputs
from diffusers.models.resnet import ResnetBlock2D

from export.bundle.costs import read_costs
from export.folds.flatten_tokens import LeanBlock
from export.graph.stages import layer_of
from export.graph.write_graphs import _declare_opset
from export.network.single_pass import SinglePass
from export.plan import make_plan
from export.quantize.layers import (
    LARGEST,
    OUTPUT,
    RESIDUAL,
    FakeQuant,
    Range,
    find_layers,
)
from export.quantize.policy import LayerChoice, Policy
from export.quantize.ranges import choose_ranges
from export.settings import BuildSettings
from export.targets import TARGETS
from runtime import LotusEngine
from runtime.backends.openvino import hints
from runtime.backends.versions import numbers
from runtime.manifest import Manifest

NO_QUANTIZE_23 = "ONNX Runtime before 1.24 has no kernel for QuantizeLinear of opset 23"


@pytest.mark.slow
def test_layers_are_the_nodes_of_the_graph(folded: SinglePass, bundle_int8: Path) -> None:
    layers = find_layers(folded, image_inputs(1)[0])
    graph = onnx.load(bundle_int8 / "model-64x64.onnx", load_external_data=False).graph
    named = {
        node.name.rsplit("/", 1)[0]
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm")
    }
    assert {layer.name for layer in layers} <= named
    costs = read_costs(bundle_int8 / "model-64x64.onnx")["all"]
    assert sum(layer.multiply_adds for layer in layers) == costs.int8
    assert 0.7 < costs.int8 / costs.multiply_adds < 1
    assert not any(layer.name.endswith(("conv_in", "decoder/network.conv_out")) for layer in layers)


def test_each_size_has_the_same_layers(folded: SinglePass) -> None:
    """Where the edge of a latent is no multiple of the UNet's levels, the plain form of an
    upsampling runs; ranges and policy are of one size, and for all.
    """
    square, narrow = (
        [layer.name for layer in find_layers(folded, (torch.zeros(1, 3, BUCKET, width),))]
        for width in (BUCKET, 104)
    )
    assert square == narrow


def test_sizes_share_the_ranges_of_an_upsampling(folded: SinglePass) -> None:
    """The plain form has one channel where the folded one has four; a graph of either takes the
    ranges.
    """
    layers = find_layers(folded, image_inputs(1)[0], (OUTPUT,))
    names = [layer.name for layer in layers if "upsamplers" in layer.name]
    outputs = [name for name in names if name.endswith(OUTPUT)]
    assert len(outputs) == 6
    for width in (BUCKET, 104):
        image = torch.linspace(-1, 1, 3 * BUCKET * width).view(1, 3, BUCKET, width)
        ranges = choose_ranges(folded, names, lambda image=image: [(image,)])
        plain = dict(folded.named_modules())
        for name in outputs:
            own = plain[name.removesuffix(f"/{OUTPUT}").replace("/", ".", 1)].channels
            assert ranges[name].scale.shape == (own,)
        with torch.inference_mode(), FakeQuant(folded, ranges):
            assert folded(image)[0].isfinite().all()


@pytest.mark.slow
def test_int8_of_sizes_with_and_without_the_fold(checkpoint_d: Path, tmp_path: Path) -> None:
    """Both graphs from the ranges of the first; each bucket's golden is run at the end."""
    settings = {**INT8, "resolutions": ((BUCKET, BUCKET), (BUCKET, 104))}
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", **settings)
    with LotusEngine(bundle) as engine:
        engine.verify()


@pytest.mark.slow
def test_the_older_opset_of_the_file_means_the_same(bundle_int8: Path, tmp_path: Path) -> None:
    """The graph was traced at 23: under its own name and under that one, the same bits."""
    if numbers(onnxruntime.__version__) < (1, 24):
        pytest.skip(NO_QUANTIZE_23)
    bundle = shutil.copytree(bundle_int8, tmp_path / "bundle")
    path = bundle / "model-64x64.onnx"
    feed = {"image": np.random.default_rng(0).uniform(-1, 1, (1, 3, BUCKET, BUCKET))}
    feed["image"] = feed["image"].astype(np.float32)
    answers = []
    for opset in (21, 23):
        model = onnx.load(path, load_external_data=False)
        (own,) = (entry for entry in model.opset_import if not entry.domain)
        assert own.version == 21
        own.version = opset
        onnx.save(model, bundle / "again.onnx")
        onnx.checker.check_model(str(bundle / "again.onnx"))
        session = onnxruntime.InferenceSession(str(bundle / "again.onnx"))
        answers.append(session.run(None, feed)[0])
    np.testing.assert_array_equal(*answers)
    assert Manifest.load(bundle_int8).opset == 21


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        (ir.node("Relu", [ir.val("x")]), 21),
        (ir.node("Attention", [ir.val("q"), ir.val("k"), ir.val("v")]), 23),
        (ir.node("QuantizeLinear", [ir.val("x"), ir.val("s")], {"precision": 1}), 23),
        (ir.node("MultiHeadAttention", [ir.val("q")], domain="com.microsoft"), 21),
    ],
)
def test_a_file_is_of_the_older_opset_where_that_has_all_operators(
    node: ir.Node, opset: int
) -> None:
    plan = make_plan(BuildSettings(checkpoint="tiny/disparity-d", precision="int8"))
    graph = ir.Graph([], [], nodes=[node], opset_imports={"": 23})
    assert _declare_opset(graph, plan) == graph.opset_imports[""] == opset


@pytest.mark.slow
def test_upsamplings_are_put_in_place_as_int8(bundle_int8: Path) -> None:
    """A quarter of the bytes, and no scales by channel, which take longer to turn back."""
    graph = ir.load(bundle_int8 / "model-64x64.onnx").graph
    moves = [node for node in graph if node.op_type in ("DepthToSpace", "Slice")]
    moved = [node for node in moves if "upsamplers" in str(node.name)]
    assert len([node for node in moved if node.op_type == "DepthToSpace"]) == 6
    assert {node.outputs[0].dtype for node in moved} == {ir.DataType.UINT8}
    back = [node for node in graph if str(node.name).endswith("/DequantizeLinear_output")]
    assert len(back) > 100
    assert {tuple(node.inputs[1].shape) for node in back} == {()}


@pytest.mark.slow
def test_graphs_of_each_size_have_the_same_layers(bundle_d: Path) -> None:
    square, narrow = (
        sorted(
            {
                layer_of(node)
                for node in ir.load(bundle_d / f"model-{size}.onnx").graph
                if "upsamplers" in str(node.name) and node.op_type in ("Conv", "ConvTranspose")
            }
        )
        for size in ("64x64", "64x104")
    )
    assert square == narrow
    assert len(square) == 6


def test_residuals_are_those_of_blocks_and_transformers(folded: SinglePass) -> None:
    layers = {layer.name: layer for layer in find_layers(folded, image_inputs(1)[0], (RESIDUAL,))}
    residuals = {name: layer for name, layer in layers.items() if name.endswith(f"/{RESIDUAL}")}
    assert not set(residuals) & {layer.name for layer in find_layers(folded, image_inputs(1)[0])}
    assert {layer.multiply_adds for layer in residuals.values()} == {0}
    assert all(layer.group == name for name, layer in residuals.items())
    blocks = [path for path, part in folded.named_modules() if isinstance(part, ResnetBlock2D)]
    transformers = [path for path, part in folded.named_modules() if isinstance(part, LeanBlock)]
    expected = {f"{path}.conv2" for path in blocks}
    expected |= {f"{path}.{layer}" for path in transformers for layer in ("attn1.out", "ff.net.2")}
    assert {name.removesuffix(f"/{RESIDUAL}") for name in residuals} == {
        name.replace(".", "/", 1) for name in expected
    }


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), (RESIDUAL,), (OUTPUT,)])
def test_module_and_graph_round_alike(
    extra: tuple[str, ...],
    folded: SinglePass,
    checkpoint_d: Path,
    tmp_path: Path,
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One block in int8: with all of them, one step more or less at the start is another rounding
    everywhere after.
    """
    target = TARGETS["onnxruntime"]
    recipe = target.recipe("int8")
    assert recipe.int8 is not None
    recipe = dataclasses.replace(recipe, int8=dataclasses.replace(recipe.int8, extra_tensors=extra))
    target = dataclasses.replace(target, recipes={**target.recipes, "int8": recipe})
    monkeypatch.setitem(TARGETS, "onnxruntime", target)
    groups = {layer.group for layer in find_layers(folded, image_inputs(1)[0], extra)}
    block = {
        group for group in groups if group.startswith("decoder/network.up_blocks.3.resnets.0.")
    }
    assert len(block) == 2 + (RESIDUAL in extra)
    elsewhere = "unet/network.down_blocks.0.resnets.0.conv2/residual"  # some targets round it
    decided = {"multiply_adds": 0, "int8": False, "method": "given", "low": 0.0, "high": 0.0}
    Policy(
        high_precision=sorted({*groups, elsewhere} - block),
        layers=[LayerChoice(name=group, group=group, **decided) for group in sorted(groups)],
    ).write(tmp_path / "policy.json")
    settings = {
        "task": "depth",
        "resolutions": ((BUCKET, BUCKET),),
        "precision": "int8",
        "calibration_images": 2,
    }
    bundle = build_bundle(
        checkpoint_d, tmp_path / "bundle", policy=tmp_path / "policy.json", **settings
    )
    chosen = [layer for layer in Policy.read(bundle / "policy.json").layers if layer.int8]
    assert {layer.group for layer in chosen} == block
    assert {layer.name.rpartition("/")[2] for layer in chosen} & {OUTPUT, RESIDUAL} == set(extra)
    ranges = {layer.name: Range(low=layer.low, high=layer.high) for layer in chosen}
    assert any(span.zero < -80 for span in ranges.values()), "inputs have zero points"
    for name in (name for name in ranges if name.endswith(OUTPUT)):
        bound = LARGEST * _channel_scales(bundle / f"model-{BUCKET}x{BUCKET}.onnx", name)
        ranges[name] = Range(low=-bound, high=bound)
        assert len(bound.unique()) > 10
    image = photo[:BUCKET, :BUCKET]
    feeds = torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
    with torch.inference_mode():
        exact = folded(feeds)[0][0, 0].numpy()
        with FakeQuant(folded, ranges):
            rounded = folded(feeds)[0][0, 0].numpy()
    with LotusEngine(bundle) as engine:
        answer = engine(image).values
    # A sum that lies between two steps of an output falls on the other one now and then.
    assert (
        np.abs(answer - rounded).mean()
        < (0.25 if OUTPUT in extra else 0.1) * np.abs(rounded - exact).mean()
    )


def _channel_scales(graph: Path, output: str) -> torch.Tensor:
    """Of the node behind a layer whose output is int8; what it was divided by before is not written
    anywhere.
    """
    model = ir.load(graph)
    scales = model.graph.initializers[
        f"{output.removesuffix(OUTPUT)}Conv/output_scales"
    ].const_value
    return torch.from_numpy(scales.numpy().flatten())


@pytest.mark.slow
def test_openvino_answers_as_onnxruntime(
    checkpoint_d: Path, tmp_path: Path, photo: np.ndarray
) -> None:
    """OpenVINO once answered int8 networks wrongly. Of its own graph ONNX Runtime has no int8
    kernels: it computes what is written there, in fp32.
    """
    if numbers(onnxruntime.__version__) < (1, 24):
        pytest.skip(NO_QUANTIZE_23)
    settings = {
        "task": "depth",
        "resolutions": ((BUCKET, BUCKET),),
        "precision": "int8",
        "budget": (10.0,),
    }
    bundle = build_bundle(
        checkpoint_d, tmp_path / "bundle", target="openvino", calibration_images=2, **settings
    )
    image = photo[:BUCKET, :BUCKET]
    with LotusEngine(bundle, backend="onnxruntime") as one, LotusEngine(bundle) as other:
        first, second = one(image).values, other(image).values
        other.verify()
    assert np.abs(first - second).mean() < 0.02
    graph = ir.load(bundle / f"model-{BUCKET}x{BUCKET}.onnx").graph
    zeros = [
        node.inputs[2].const_value.numpy() for node in graph if node.op_type == "QuantizeLinear"
    ]
    assert len(zeros) > 50
    assert {(zero.dtype.name, int(zero)) for zero in zeros} == {("int8", 0)}, (
        "its convolutions are slower with others"
    )
    core = pytest.importorskip("openvino").Core()
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found = _upsamplings(core, bundle / f"model-{BUCKET}x{BUCKET}.onnx")
        assert {kernel.rpartition("_")[2] for kernel, _ in found} == {"i8"}, found
        assert {answer for _, answer in found} == {"bf16"}, (
            "in float32 it costs another pass; see the form 'clipped'"
        )
        assert len(found) == 6


def _upsamplings(core: Any, graph: Path) -> list[tuple[str, str]]:
    """Kernel and type of the answer of each transposed convolution of the compiled graph."""
    model = core.read_model(str(graph))
    ops = core.compile_model(model, "CPU", hints(model, "int8")).get_runtime_model().get_ops()
    infos = [{key: value.astype(str) for key, value in op.get_rt_info().items()} for op in ops]
    return [
        (info["primitiveType"], info["outputPrecisions"])
        for info in infos
        if info["layerType"] == "Deconvolution"
    ]


@pytest.mark.slow
def test_onnxruntime_has_an_int8_kernel_for_every_layer(bundle_int8: Path, tmp_path: Path) -> None:
    """Without int8 outputs it computes all of them in fp32, and says nothing."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(bundle_int8 / "model-64x64.onnx"), options, providers=["CPUExecutionProvider"]
    )
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    kernels = [node for node in optimised.node if node.op_type in ("QLinearConv", "QGemm")]
    policy = Policy.read(bundle_int8 / "policy.json")
    layers = [layer for layer in policy.layers if layer.multiply_adds]
    assert len(kernels) == len(layers) > 100


@pytest.mark.slow
def test_manifest_says_how(bundle_int8: Path) -> None:
    manifest = Manifest.load(bundle_int8)
    assert manifest.precision == "int8"
    assert [run.backend for run in manifest.golden.measured] == ["onnxruntime"], (
        "the graph itself, not an emulation"
    )
    assert manifest.quantisation is not None
    assert manifest.quantisation.images == 2
    assert 0 < manifest.quantisation.error <= manifest.quantisation.max_error
    assert manifest.quantisation.unit == "AbsRel"
    assert "policy.json" in {file.path for file in manifest.files}
    costs = read_costs(bundle_int8 / "model-64x64.onnx")["all"]
    assert manifest.quantisation.multiply_adds == costs.int8
    weights = sum(file.bytes for file in manifest.files if file.path.endswith(".data"))
    assert weights < 1.5 * costs.weights
    model = onnx.load(bundle_int8 / "model-64x64.onnx", load_external_data=False)
    zeros: dict[bool, list[int]] = {}
    for node in ir.from_proto(model).graph:
        if node.op_type == "QuantizeLinear":
            zero = node.inputs[2].const_value
            assert zero.dtype == ir.DataType.UINT8
            zeros.setdefault(node.name.endswith("_output"), []).append(int(zero.numpy()))
    assert set(zeros[True]) == {128}, "channels are symmetric"
    assert len([zero for zero in zeros[False] if zero < 40]) > 30, (
        "what comes from SiLU is at least -0.28"
    )

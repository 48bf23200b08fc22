"""Bundles in half precision: what the vendor's parser reads, sizes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from conftest import build_bundle

from export import inspect_bundle
from export.bundle.finalize import finish_on_device
from export.errors import BuildError
from export.inspect_bundle import count_layers
from export.plan import make_plan
from export.settings import BuildSettings
from export.targets.tensorrt_builder import build_engine
from runtime.manifest import Manifest

NO_RTX = "needs the package tensorrt-rtx (`pip install 'lotus-edge[rtx]'`)"
TYPES = {"fp16": "HALF", "bf16": "BF16", "int8": "HALF"}
# A UNet level of one pixel fails in the compiler of TensorRT-RTX 1.7.1.
SETTINGS = {"task": "depth", "resolutions": ((128, 128),), "calibration_images": 1}


@pytest.fixture(scope="module")
def rtx_bundle(
    checkpoint_d: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
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
def test_the_parser_reads_the_intended_types(
    precision: str, rtx_bundle: Callable[[str], Path]
) -> None:
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
    assert float32 <= {
        "SOFTMAX",
        "CAST",
        "SHUFFLE",
        "CONSTANT",
        "ACTIVATION",
        "REDUCE",
        "ELEMENTWISE",
    }
    assert layers["encoder"]["CONVOLUTION FLOAT"] == 0
    assert sum(number for name, number in layers["decoder"].items() if name.endswith(" FLOAT")) < 10
    assert (everything["DEQUANTIZE HALF"] > 200) == (precision == "int8")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_opset_20_sums_norms_and_softmax_in_float32(
    precision: str, checkpoint_d: Path, tmp_path: Path
) -> None:
    """What a Jetson's TensorRT 10.3 reads, by the parser that is here; int8 has its layers in
    it.
    """
    pytest.importorskip("tensorrt_rtx", reason=NO_RTX)
    bundle = build_bundle(
        checkpoint_d,
        tmp_path / "bundle",
        target="tensorrt",
        precision=precision,
        budget=(0.9,) if precision == "int8" else None,
        **SETTINGS,
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
    # Int8 by Q and DQ: an input and a weight for each layer; what comes out of DQ, by scales in
    # half, is half.
    int8 = precision == "int8"
    assert (everything["QUANTIZE INT8"] > 100) == int8
    assert (everything[f"DEQUANTIZE {half}"] > 200) == int8
    assert everything["DEQUANTIZE FLOAT"] == 0
    graph = ir.load(bundle / "model-128x128.onnx").graph
    sums = [use.node for node in graph if node.op_type == "Conv" for use in node.outputs[0].uses()]
    skips = [
        value.producer().op_type for node in sums if node.op_type == "Add" for value in node.inputs
    ]
    # Of each sum behind a convolution one operand comes from it, and one through int8 or from the
    # other convolution.
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
    assert inspect_bundle.main([bundle, "--network", "tensorrt-rtx"]) == 0
    assert "decoder as parsed: " in capsys.readouterr().out
    assert inspect_bundle.main([bundle, "--network", "tensorrt-rtx", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["layers"]["decoder"]["DECONVOLUTION HALF"] == 3
    assert inspect_bundle.main([str(bundle_d), "--network", "tensorrt-rtx"]) == 0
    # ONNX Runtime's own operator; this parser knows it.
    assert "16 ATTENTION_INPUT FLOAT" in capsys.readouterr().out


@pytest.mark.slow
def test_onnxruntime_gets_float32_and_openvino_refuses(checkpoint_d: Path, tmp_path: Path) -> None:
    plan = make_plan(BuildSettings(checkpoint=str(checkpoint_d), precision="fp16", **SETTINGS))
    assert (plan.precision, plan.target.name, plan.recipe.half) == ("fp32", "onnxruntime", None)
    assert "-fp32-onnxruntime" in plan.name
    with pytest.raises(BuildError, match="'openvino' has no precision 'fp16'"):
        build_bundle(checkpoint_d, tmp_path / "no", target="openvino", precision="fp16", **SETTINGS)


@pytest.mark.slow
def test_a_bf16_bundle_for_openvino_is_no_bf16_graph(request: pytest.FixtureRequest) -> None:
    """OpenVINO's bf16 is a float32 graph with a hint; TensorRT would build a float32 engine and
    call it bf16.
    """
    pytest.importorskip("openvino")
    bundle = request.getfixturevalue("bundle_bf16")
    with pytest.raises(
        BuildError, match="bf16 is another graph for tensorrt-rtx than for openvino"
    ):
        finish_on_device(
            bundle,
            target_name="tensorrt-rtx",
            output=None,
            overwrite=False,
            command="none",
        )

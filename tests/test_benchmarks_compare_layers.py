"""Two runners, layer by layer: the layer that differs is named, whatever its type and wherever its
weights lie.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import write_null_bundle
from onnx import TensorProto, helper, numpy_helper

from benchmarks import compare_layers as compare
from runtime.errors import BackendMissingError, LotusError
from runtime.manifest import Manifest, describe_file

FEEDS = {"image": np.random.default_rng(0).standard_normal((1, 3, 64, 96), np.float32)}


def write_graph(path: Path, *, factor: float = 1.0, external: bool = False) -> Path:
    """Three convolutions, a stage each, with a shape (int64) and a half-precision detour between
    them. `factor` multiplies one weight of the second.
    """
    random = np.random.default_rng(1)
    weights = {
        name: 0.1 * random.standard_normal(shape, np.float32)
        for name, shape in (("e", (8, 3, 3, 3)), ("u", (8, 8, 3, 3)), ("d", (1, 8, 3, 3)))
    }
    weights["u"][0, 0, 0, 0] *= factor
    around = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "e"], ["t0"], name="encoder/conv", **around),
        helper.make_node("Shape", ["t0"], ["shape"], name="encoder/shape"),
        helper.make_node("Relu", ["t0"], ["t1"], name="unet/relu"),
        helper.make_node("Conv", ["t1", "u"], ["t2"], name="unet/conv", **around),
        helper.make_node("Reshape", ["t2", "shape"], ["t3"], name="unet/reshape"),
        helper.make_node("Cast", ["t3"], ["t4"], name="decoder/half", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["t4"], ["t5"], name="decoder/float", to=TensorProto.FLOAT),
        helper.make_node(
            "Split", ["t5"], ["t6", "t7"], name="decoder/split", axis=1, num_outputs=2
        ),
        helper.make_node("Concat", ["t7", "t6"], ["t8"], name="decoder/concat", axis=1),
        helper.make_node("Conv", ["t8", "d"], ["disparity"], name="decoder/conv", **around),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 64, 96))],
        [helper.make_tensor_value_info("disparity", TensorProto.FLOAT, (1, 1, 64, 96))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=f"{path.name}.data",
        size_threshold=0,
    )
    return path


@pytest.mark.parametrize("external", [False, True])
def test_a_changed_weight_is_found_in_its_layer(tmp_path: Path, external: bool) -> None:
    graph = write_graph(tmp_path / "a" / "model.onnx", external=external)
    changed = write_graph(tmp_path / "b" / "model.onnx", factor=3.0, external=external)
    assert (tmp_path / "b" / "model.onnx.data").exists() == external
    layers = compare.compare_layers(graph, FEEDS, "onnxruntime-plain", other=changed)
    assert [layer.name for layer in layers] == [
        "encoder/conv",
        "unet/relu",
        "unet/conv",
        "unet/reshape",
        "decoder/half",
        "decoder/float",
        "decoder/split [0]",
        "decoder/split [1]",
        "decoder/concat",
        "decoder/conv",
    ], "graph order; the shape, which is int64, left out"
    firsts = compare.first_beyond(layers, 1e-3)
    assert [(layer.stage, layer.name) for layer in firsts] == [
        ("unet", "unet/conv"),
        ("decoder", "decoder/half"),
    ]
    weight = abs(numpy_helper.to_array(onnx.load(graph).graph.initializer[1])[0, 0, 0, 0])
    relu = np.maximum(run(graph, "t0"), 0)[0, 0, :-1, :-1]  # what the weight meets
    assert firsts[0].max_abs == pytest.approx(2 * weight * relu.max(), rel=1e-4)
    assert firsts[0].mean_abs == pytest.approx(2 * weight * relu.sum() / (8 * 64 * 96), rel=1e-3)


def run(graph: Path, output: str) -> np.ndarray:
    """A tensor inside the graph, by ONNX's own slow implementation."""
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(graph)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return np.asarray(ReferenceEvaluator(model).run(None, FEEDS)[0])


def test_the_same_graph_differs_by_rounding_at_most(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx")
    layers = compare.compare_layers(graph, FEEDS, "onnxruntime-plain")
    assert len(layers) == 10
    assert compare.first_beyond(layers, 1e-3) == []


def test_what_is_no_number_exceeds_every_tolerance() -> None:
    node = helper.make_node("Log", ["x"], ["y"], name="unet/log")
    infinite, bad = np.array([np.inf, 1.0]), np.array([np.nan, 1.0])
    assert compare._compare(node, "y", infinite, infinite).max_abs == 0
    assert compare._compare(node, "y", infinite, bad).exceeds(1e9)
    assert compare._compare(node, "y", bad, np.array([1.0, 1.0])).exceeds(1e9)


def test_a_tolerance_is_a_share_of_large_values() -> None:
    node = helper.make_node("Mul", ["x", "x"], ["y"], name="unet/square")
    layer = compare._compare(node, "y", np.array([1000.0, 0.0]), np.array([1000.5, 0.0]))
    assert not layer.exceeds(1e-3)
    assert layer.exceeds(1e-4)
    assert compare._compare(node, "y", np.array([0.5]), np.array([0.502])).exceeds(1e-3)


def test_the_command_reads_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_null_bundle(tmp_path / "bundle")
    manifest = Manifest.load(bundle)
    write_graph(bundle / "model-64x96.onnx", external=True)
    names = ("golden.npz", "model-64x96.onnx", "model-64x96.onnx.data")
    files = [describe_file(bundle, name) for name in names]
    dataclasses.replace(manifest, files=files).save(bundle)
    assert compare.main([str(bundle)]) == 0
    assert "all 10 layers are within 0.001" in capsys.readouterr().out
    changed = write_graph(tmp_path / "changed" / "model.onnx", factor=3.0)
    assert compare.main([str(bundle), "--bucket", "64x96", "--graph", str(changed)]) == 1
    printed = capsys.readouterr().out
    assert "* unet/conv" in printed
    assert "unet: the first beyond 0.001 is unet/conv (Conv)" in printed
    assert "  unet/relu" in printed
    assert compare.main([str(bundle), "--bucket", "7x7"]) == 1
    assert "no bucket 7x7; it has 64x96, 96x64" in capsys.readouterr().err


def test_a_missing_vendor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendMissingError, match="'tensorrt'"):
        compare.compare_layers(tmp_path / "model.onnx", {}, "tensorrt")
    assert issubclass(BackendMissingError, LotusError)

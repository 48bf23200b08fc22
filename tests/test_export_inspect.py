"""What a graph costs: counted against formulas by hand, and the command that shows it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ROOT, write_null_bundle
from onnx import TensorProto, helper, numpy_helper

from benchmarks import profile, roofline, rows
from export import inspect_bundle
from export.bundle.costs import read_costs
from export.errors import BuildError
from runtime.manifest import Bucket, Manifest, describe_file


def value(name: str, *shape: int | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """encoder: 3x3 convolution 3 -> 8 on 16x12; unet: a view, a product and an attention; decoder:
    a transposed one.
    """
    weights = {
        "w": np.zeros((8, 3, 3, 3), np.float32),
        "m": np.zeros((192, 6), np.float32),
        "t": np.zeros((8, 5, 4, 4), np.float32),
        "shape": np.array([8, 192]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="encoder/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["a", "shape"], ["b"], name="unet/Reshape"),
        helper.make_node("Gemm", ["b", "m"], ["c"], name="unet/Gemm"),
        helper.make_node("Relu", ["a"], ["d"], name="decoder/Relu"),
        helper.make_node(
            "ConvTranspose",
            ["d", "t"],
            ["y"],
            name="decoder/ConvTranspose",
            strides=[2, 2],
            pads=[1, 1, 1, 1],
        ),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [value("x", 1, 3, 16, 12)],
        [value("y", 1, 5, 32, 24), value("c", 8, 6)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)]), tmp_path / "g.onnx"
    )
    return tmp_path / "g.onnx"


def test_costs_by_hand(graph: Path) -> None:
    costs = read_costs(graph)
    area = 16 * 12
    assert costs["encoder"].multiply_adds == 8 * area * 27
    assert costs["unet"].multiply_adds == 8 * 192 * 6
    assert costs["decoder"].multiply_adds == 8 * area * 5 * 16
    assert costs["all"].multiply_adds == sum(
        costs[stage].multiply_adds for stage in ("encoder", "unet", "decoder")
    )
    assert costs["encoder"].weights == 4 * 8 * 27
    assert costs["encoder"].traffic == 4 * (3 + 8) * area
    assert costs["unet"].traffic == 4 * (8 * area + 8 * 6), "a view moves nothing"
    assert costs["decoder"].traffic == 4 * (8 + 8 + 8 + 4 * 5) * area
    assert costs["encoder"].peak == 4 * (3 + 8) * area
    assert costs["unet"].peak == 4 * (8 * area + 8 * 6), "a view has no memory of its own"
    assert costs["all"].peak == costs["decoder"].peak == 4 * ((8 + 20) * area + 8 * 6), (
        "c is an output and stays"
    )
    assert costs["decoder"].kernels == {"Relu": 1, "ConvTranspose": 1}


def test_each_unet_of_a_joint_graph_is_counted(graph: Path) -> None:
    model = onnx.load(graph)
    by_name = {node.name: node for node in model.graph.node}
    by_name["unet/Gemm"].name = "unet/normal.conv_in/Gemm"
    onnx.save(model, graph)
    costs = read_costs(graph, ["disparity", "normal"])
    assert list(costs) == ["encoder", "unet", "unet disparity", "unet normal", "decoder", "all"]
    assert costs["unet normal"].multiply_adds == costs["unet"].multiply_adds == 8 * 192 * 6
    assert costs["unet normal"].peak == costs["unet"].peak
    assert costs["unet disparity"].multiply_adds == costs["unet disparity"].peak == 0
    assert list(read_costs(graph, ["normal"])) == ["encoder", "unet", "decoder", "all"]


def test_the_command_tells_tasks_and_batches(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ("disparity", "normal")
    two = Bucket(height=64, width=96, graph="model.onnx", batch=2)
    bundle = write_null_bundle(tmp_path / "joint", task=tasks, buckets=[two])
    (bundle / "model.onnx").write_bytes(graph.read_bytes())
    manifest = Manifest.read(bundle)
    files = [describe_file(bundle, file.path) for file in manifest.files]
    dataclasses.replace(manifest, files=files).save(bundle)
    assert inspect_bundle.main([str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("null  2x64x96  opset 23  disparity, normal\n")
    assert re.search(r"^unet normal +0\.0", shown, re.MULTILINE)
    assert "for each of 2 images: " in shown
    assert inspect_bundle.main([str(bundle), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["batch"], row["tasks"]) == (2, [*tasks])


def test_a_missing_shape_and_a_foreign_node_are_errors(graph: Path) -> None:
    model = onnx.load(graph)
    model.graph.node[0].name = "somewhere/Conv"
    onnx.save(model, graph)
    with pytest.raises(BuildError, match="named after no stage"):
        read_costs(graph)
    model.graph.node[0].name = "encoder/Conv"
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, graph)
    with pytest.raises(BuildError, match="no static shape"):
        read_costs(graph)


@pytest.mark.slow
def test_the_command_compares_bundles(bundle_d: Path, bundle_g: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "export/inspect_bundle.py", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    text = run(str(bundle_d), str(bundle_g))
    assert text.returncode == 0, text.stderr
    assert "folds: fold-time-embedding" in text.stdout
    assert "of the first: operations" in text.stdout
    found = json.loads(run(str(bundle_d), "--json").stdout)
    assert [row["bucket"] for row in found] == ["64x64", "64x104"]
    assert found[0]["unet"]["kernels"]["MultiHeadAttention"] == 16
    assert found[0]["all"]["weights"] > 4e6
    missing = run("nowhere")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")


@pytest.mark.slow
def test_the_roofline_is_a_bound(
    bundle_d: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    words = ["roofline", str(bundle_d), "--precision", "fp32", "int8", "--dirty"]
    monkeypatch.setattr(sys, "argv", words)
    assert roofline.main() == 0
    assert "not measurements" in capsys.readouterr().out
    name = Manifest.load(bundle_d).name
    saved = json.loads((tmp_path / f"roofline-{name}.json").read_text())["rows"]
    assert {row["precision"] for row in saved} == {"fp32", "int8"}
    assert all(row["bound"] is True and 0 < row["fused_ms"] < row["kernels_ms"] for row in saved)
    by_key = {(row["device"], row["precision"], row["bucket"]): row for row in saved}
    nano = by_key["Jetson Orin Nano 8GB (25 W)", "fp32", "64x64"]
    costs = read_costs(bundle_d / "model-64x64.onnx")["all"]
    # By hand: 2.09 TFLOP/s and 102 GB/s.
    assert nano["fused_ms"] == pytest.approx(
        1e3 * max(2 * costs.multiply_adds / 2.09e12, costs.weights / 102e9)
    )
    assert nano["memory_gb"] == pytest.approx((costs.weights + costs.peak) / 1e9)
    assert nano["fits_8gb"]


@pytest.mark.slow
def test_the_profile_splits_time_by_stage_and_operator(
    bundle_d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["profile", "--bundle", str(bundle_d), "--runs", "1", "--dirty"]
    )
    assert profile.main() == 0
    (saved,) = tmp_path.iterdir()
    assert saved.name == f"profile-{Manifest.load(bundle_d).name}.json"
    found = json.loads(saved.read_text())["rows"]
    assert {row["stage"] for row in found} == {"encoder", "unet", "decoder"}
    assert all(row["seconds"] > 0 for row in found if row["operator"] == "Conv")
    assert {"Conv", "Gemm", "MultiHeadAttention"} <= {
        row["operator"] for row in found if row["stage"] == "unet"
    }
    assert len({(row["stage"], row["operator"]) for row in found}) == len(found)

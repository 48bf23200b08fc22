"""What a vendor's library says about a graph that it refuses is in our error, and nowhere else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="makes the graphs")

import onnx

from benchmarks.fuzzing.bundles import (
    GOLDEN,
    GRAPH,
    WEIGHTS,
    edit_manifest,
    predict,
    sign_files,
    write_bundle,
)
from runtime.errors import BackendError, DamagedBundleError, UnsafePathError


@pytest.fixture(params=["onnxruntime", "openvino"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    return write_bundle(tmp_path / "bundle", target=request.param)


def refused(bundle: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The error's words; there may be none besides."""
    capfd.readouterr()
    with pytest.raises(BackendError) as caught:
        predict(bundle, bundle.parent / "cache")
    out, err = capfd.readouterr()
    assert [line for line in (out + err).splitlines() if not line.startswith("lotus-edge: ")] == []
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no graph\0\1\2", b"<net name='x' version='11'/>"])
def test_a_graph_that_is_none(
    bundle: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (bundle / GRAPH).write_bytes(content)
    sign_files(bundle, [GRAPH])
    assert "verify" in refused(bundle, capfd)


def test_weights_that_are_too_few(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (bundle / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes()[:100])
    sign_files(bundle, [WEIGHTS])
    assert str(bundle) in refused(bundle, capfd)


def test_weights_from_the_memory_of_the_process(bundle: Path) -> None:
    """OpenVINO takes them from any address; here from a copy of the right ones."""
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    weights = next(one for one in model.graph.initializer if one.name == "value")
    place = {entry.key: entry for entry in weights.external_data}
    start, length = int(place["offset"].value), int(place["length"].value)
    content = (bundle / WEIGHTS).read_bytes()[start : start + length]
    held = np.frombuffer(content, np.uint8).copy()
    place["location"].value, place["offset"].value = "*/_ORT_MEM_ADDR_/*", str(held.ctypes.data)
    onnx.save(model, bundle / GRAPH)
    sign_files(bundle, [GRAPH])
    with pytest.raises(UnsafePathError, match="none of the bundle's files"):
        predict(bundle, bundle.parent / "cache", check=False)


def test_a_node_that_fails_when_it_runs(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    far = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "far")
    model.graph.initializer.append(far)
    last = model.graph.node[-1]
    output, last.output[0] = last.output[0], "small"
    model.graph.node.extend(
        [
            onnx.helper.make_node("ConstantOfShape", ["far"], ["large"]),
            onnx.helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
            onnx.helper.make_node("Add", ["small", "sum"], [output]),
        ]
    )
    onnx.save(model, bundle / GRAPH)
    sign_files(bundle, [GRAPH])
    refused(bundle, capfd)


def test_a_golden_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", target="null")
    with (bundle / GOLDEN).open("ab") as stream:
        stream.truncate(3 << 30)  # a hole, which takes no room on the disk

    def grow(body: dict[str, Any]) -> None:
        body["files"] = [
            {**entry, "bytes": 3 << 30} if entry["path"] == GOLDEN else entry
            for entry in body["files"]
        ]

    edit_manifest(bundle, grow)
    with pytest.raises(DamagedBundleError, match="at most"):
        predict(bundle, tmp_path / "cache", check=False)

"""ONNX Runtime on a GPU: what is said where it does not start, without a GPU."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorrt_fakes import SHAPES, make_manifest

from runtime.backends import BACKENDS
from runtime.backends.onnxruntime import BackendSession
from runtime.errors import BackendError

CUDA, AZURE = "CUDAExecutionProvider", "AzureExecutionProvider"


def refused(folder: Path, *, opset: int = 23, provider: str = CUDA) -> str:
    """The words of the error that opening on this provider ends in."""
    manifest = dataclasses.replace(make_manifest("onnxruntime", ""), opset=opset)
    entry = dataclasses.replace(BACKENDS["onnxruntime-cuda"], option=provider)
    with pytest.raises(BackendError) as caught:
        BackendSession(folder, manifest, manifest.buckets[0], entry)
    return str(caught.value)


# Versions of operators for which ONNX Runtime (about 1.25) has CUDA kernels in float32, of those
# that our graphs may have. A kernel serves no newer version. Source: docs/OperatorKernels.md
# and VerifyVersion in core/framework/kernel_registry.cc of its repository.
CUDA_KERNELS = {
    "": {
        **dict.fromkeys(("Add", "Div", "Mul", "Sub", "Relu"), 14),
        **dict.fromkeys(("Clip", "Concat", "DepthToSpace", "Gemm", "MatMul", "Sigmoid"), 13),
        **dict.fromkeys(("Slice", "Softmax", "Sqrt", "Tanh"), 13),
        **dict.fromkeys(("ReduceMean", "ReduceSumSquare", "Split"), 18),
        **dict.fromkeys(("Reshape", "Squeeze", "Transpose", "Unsqueeze"), 23),
        "BatchNormalization": 15,
        "Conv": 22,
        "Gelu": 20,
        "LayerNormalization": 17,
        "Resize": 19,
    },
    "com.microsoft": {"MultiHeadAttention": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bundle_d", "bundle_g"])
def test_cuda_has_a_kernel_for_each_operator_in_fp32(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Without one the bundle is refused on a GPU, as it is for int8."""
    onnx = pytest.importorskip("onnx", reason="reads a graph")
    (path, *_) = Path(request.getfixturevalue(name)).glob("*.onnx")
    graph = onnx.load(path, load_external_data=False)
    opset = next(entry.version for entry in graph.opset_import if not entry.domain)
    found: dict[str, dict[str, int]] = {"": {}, "com.microsoft": {}}
    for node in graph.graph.node:
        known = not node.domain
        version = onnx.defs.get_schema(node.op_type, opset, "").since_version if known else 1
        found[node.domain][node.op_type] = version
    assert opset == 23
    assert len(found[""]) > 15
    for domain, operators in found.items():
        assert operators.items() <= CUDA_KERNELS[domain].items()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package whose sessions fail with `words`. Its 1.23.2 is the last for Python 3.10."""

    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError(fake.words)

    fake = types.SimpleNamespace(
        __version__="1.23.2",
        words="",
        get_available_providers=lambda: [CUDA, "CPUExecutionProvider"],
        SessionOptions=lambda: types.SimpleNamespace(add_session_config_entry=lambda *words: None),
        InferenceSession=fails,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake


def test_cuda_of_1_23_with_opset_23_says_what_to_do(fake: Any, tmp_path: Path) -> None:
    said = refused(tmp_path)
    assert "(onnxruntime-gpu) 1.23.2" in said
    assert "needs 1.24 or newer, or a bundle of opset 20: `--opset 20`" in said
    fake.words = "opened"
    assert "opened" in refused(tmp_path, opset=20)


def test_an_old_package_without_cuda_is_told_to_have_none(fake: Any, tmp_path: Path) -> None:
    """A newer one would not have it either."""
    fake.get_available_providers = lambda: ["CPUExecutionProvider"]
    assert f"this onnxruntime has no {CUDA}" in refused(tmp_path)


def test_what_else_fails_keeps_its_words(fake: Any, tmp_path: Path) -> None:
    fake.words = "no such file"
    said = refused(tmp_path, opset=20)
    assert "no such file" in said
    assert "could not start" not in said


def test_a_provider_that_takes_no_node_is_named(tmp_path: Path) -> None:
    """The real words: the provider for Azure, which each package has, computes nothing. So it is
    with CUDA where its libraries are missing.
    """
    ort = pytest.importorskip("onnxruntime", reason="opens a graph")
    onnx = pytest.importorskip("onnx", reason="writes a graph")
    if AZURE not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no provider that computes nothing")
    image, disparity = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in SHAPES.items()
    )
    node = onnx.helper.make_node("ReduceMean", ["image", "axes"], ["disparity"])
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])
    graph = onnx.helper.make_graph([node], "mean", [image], [disparity], [axes])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx"
    )
    said = refused(tmp_path, opset=20, provider=AZURE)
    assert f"could not start {AZURE} (driver or libraries missing" in said
    assert "print_debug_info()" in said
    assert "backend='onnxruntime'" in said
    assert hasattr(ort, "print_debug_info")

"""The TensorRT backend against the real vendor package, without a GPU."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tensorrt_fakes import (
    NO_RTX,
    FakeConfig,
    FakeContext,
    FakeCudart,
    FakeKernels,
    FakeVendor,
    gpu_missing,
    make_manifest,
    open_session,
)

from runtime.backends import cuda
from runtime.backends import tensorrt as backend
from runtime.errors import BackendError, BackendMissingError, DeviceMissingError, ForeignEngineError

OPEN_IN_A_CHILD = """
import sys
from pathlib import Path
from tensorrt_fakes import make_manifest, open_session
from runtime.errors import LotusError
import tensorrt_rtx
try:
    open_session(Path(sys.argv[1]), make_manifest("tensorrt-rtx", tensorrt_rtx.__version__))
except LotusError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason=NO_RTX)


@pytest.fixture(scope="module")
def rtx_bundle(rtx: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real TensorRT-RTX engine and the ONNX file it was built from."""
    pytest.importorskip("onnx", reason="makes the graph; `pip install 'lotus-edge[export]'`")
    from tensorrt_graph import make_graph

    from export.targets.tensorrt_builder import build_engine

    folder = tmp_path_factory.mktemp("bundle")
    build_engine(make_graph(folder), folder / "model.engine", "tensorrt-rtx", lambda message: None)
    return folder


@pytest.mark.skipif(gpu_missing() is None, reason="this machine has a GPU")
def test_without_a_driver_opening_is_our_error_with_the_drivers_words(rtx, rtx_bundle):
    with pytest.raises(
        DeviceMissingError,
        match=r"tensorrt-rtx needs an NVIDIA GPU.*cudaGetDeviceCount failed with",
    ):
        open_session(rtx_bundle, make_manifest("tensorrt-rtx", rtx.__version__))


@pytest.mark.skipif(gpu_missing() is None, reason="this machine has a GPU")
def test_without_a_driver_nothing_crashes(rtx, rtx_bundle):
    """In a child process, where a segmentation fault would be seen."""
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    child = subprocess.run(
        [sys.executable, "-c", OPEN_IN_A_CHILD, rtx_bundle],
        env=path,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("DeviceMissingError tensorrt-rtx needs an NVIDIA GPU")


@pytest.mark.skipif(gpu_missing() is None, reason="this machine has a GPU")
def test_the_vendors_own_words_reach_the_message(rtx, rtx_bundle, monkeypatch):
    """Past our device check, against a fake CUDA: the real vendor refuses to load, and its log says
    why.
    """
    cudart = FakeCudart()
    monkeypatch.setattr(cuda, "_load_cudart", lambda flavour: cudart)
    with pytest.raises(BackendError, match=r"cannot load .*model\.engine.*\n?.*cudaError"):
        open_session(rtx_bundle, make_manifest("tensorrt-rtx", rtx.__version__))
    assert cudart.alive == {}


def test_another_version_is_refused_before_the_driver_is_asked(rtx, tmp_path):
    with pytest.raises(ForeignEngineError) as caught:
        open_session(tmp_path, make_manifest("tensorrt-rtx", "1.0.0.1"))
    assert "1.0.0.1" in str(caught.value)
    assert rtx.__version__ in str(caught.value)
    assert f"python export/build_engine.py --from-bundle {tmp_path} --target tensorrt-rtx" in str(
        caught.value
    )


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # import then raises ModuleNotFoundError
    with pytest.raises(BackendMissingError, match=r"'tensorrt'.*\.\[gpu\].*JetPack"):
        backend.load_vendor("tensorrt")


def test_missing_cuda_bindings_are_named_with_the_extra(monkeypatch):
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissingError, match=r"'cuda-bindings'.*\.\[rtx\].*JetPack 6"):
        cuda.Cuda("tensorrt-rtx")


# The variables that hold a vendor's object, by file, and the classes that they may be of.
VENDOR_OBJECTS = {
    "runtime/backends/tensorrt.py": {
        "config": "IRuntimeConfig",
        "kernels": "IRuntimeCache",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
    },
    "export/targets/tensorrt_builder.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "layer": "ILayer IAttentionInputLayer",
        "tensor": "ITensor",
    },
}


@pytest.mark.parametrize("source", VENDOR_OBJECTS)
def test_every_vendor_name_in_our_source_exists_in_the_vendors_package(rtx, source):
    """What only a GPU executes could hold a misspelt name; this finds it."""
    attributes = [
        node
        for node in ast.walk(ast.parse((ROOT / source).read_text()))
        if isinstance(node, ast.Attribute)
    ]
    checked = {text for node in attributes if (text := _vendor_path(node))}
    for text in checked:
        assert _has(rtx, text), text
    objects = VENDOR_OBJECTS[source]
    for node in attributes:
        owner = _owner(node)
        if owner in objects and node.attr != "__class__":
            assert any(_has(rtx, f"{kind}.{node.attr}") for kind in objects[owner].split()), (
                ast.unparse(node)
            )
            checked.add(ast.unparse(node))
    assert {_owner(node) for node in attributes} >= set(objects), "a variable has another name now"
    assert len(checked) > 15, checked


@pytest.mark.parametrize("source", [*VENDOR_OBJECTS, "runtime/backends/cuda.py"])
def test_every_cuda_name_in_our_source_exists_in_the_bindings(source):
    cudart = pytest.importorskip("cuda.bindings.runtime", reason=NO_RTX)
    enums = [getattr(cudart, name) for name in dir(cudart) if name.startswith("cuda")]
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        if isinstance(node, ast.Attribute) and re.match("cuda[A-Z]", node.attr):
            assert any(hasattr(home, node.attr) for home in (cudart, *enums)), node.attr


def test_the_fakes_have_no_name_that_the_vendor_has_not(rtx):
    """So every name that our code uses of them, whatever variable it stands behind, is real."""
    cudart = pytest.importorskip("cuda.bindings.runtime", reason=NO_RTX)
    vendor = FakeVendor(FakeCudart())
    engine = vendor.Runtime(None).deserialize_cuda_engine(b"engine")
    for fake, real in (
        (FakeCudart, cudart),
        (FakeVendor, rtx),
        (FakeVendor.ILogger, rtx.ILogger),
        (FakeContext, rtx.IExecutionContext),
        (vendor.Runtime(None), rtx.Runtime),
        (engine, rtx.ICudaEngine),
        (engine.create_runtime_config(), rtx.IRuntimeConfig),
        (FakeConfig, rtx.IRuntimeConfig),
        (FakeKernels, rtx.IRuntimeCache),
    ):
        names = [name for name in vars(fake) if not name.startswith("_") and name not in OWN]
        assert names
        assert [name for name in names if not hasattr(real, name)] == []


# Of the fakes alone; a logger's `log` is what we define.
OWN = {"do", "log", "logger", "capturing", "writes"}


def _vendor_path(node: ast.Attribute) -> str | None:
    """`DataType.FLOAT` for `vendor.DataType.FLOAT` and for the same behind `self._vendor`."""
    text = ast.unparse(node).removeprefix("self._")
    return text.removeprefix("vendor.") if text.startswith("vendor.") else None


def _owner(node: ast.Attribute) -> str | None:
    if isinstance(node.value, ast.Name):
        return node.value.id
    return node.value.attr if isinstance(node.value, ast.Attribute) else None


def _has(package: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(package, name):
            return False
        package = getattr(package, name)
    return True


@pytest.mark.skipif(gpu_missing() is None, reason="on a GPU these addresses would be used")
def test_the_real_cuda_bindings_take_the_arguments_we_pass():
    """Types and number of arguments: a wrong one is a TypeError, a right one gets as far as the
    missing driver.
    """
    cudart = pytest.importorskip("cuda.bindings.runtime", reason=NO_RTX)
    stream, address = cudart.cudaStream_t(0), 4096
    assert int(stream) == 0
    calls: dict[str, tuple[Any, ...]] = {
        "cudaStreamCreateWithFlags": (cudart.cudaStreamNonBlocking,),
        "cudaMallocHost": (64,),
        "cudaMalloc": (64,),
        "cudaMemcpyAsync": (
            address,
            address,
            64,
            cudart.cudaMemcpyKind.cudaMemcpyHostToDevice,
            stream,
        ),
        "cudaStreamSynchronize": (stream,),
        "cudaStreamBeginCapture": (
            stream,
            cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        ),
        "cudaStreamEndCapture": (stream,),
        "cudaGraphInstantiate": (cudart.cudaGraph_t(0), 0),
        "cudaGraphLaunch": (cudart.cudaGraphExec_t(0), stream),
        "cudaGraphDestroy": (cudart.cudaGraph_t(0),),
        "cudaGraphExecDestroy": (cudart.cudaGraphExec_t(0),),
        "cudaFreeHost": (address,),
        "cudaFree": (address,),
        "cudaStreamDestroy": (stream,),
    }
    named = {
        node.value
        for module in (backend, cuda)
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if _is_cuda_name(node)
    }
    assert named == {*calls, "cudaGetDeviceCount"}
    for name, arguments in calls.items():
        status = getattr(cudart, name)(*arguments)[0]
        assert status != cudart.cudaError_t.cudaSuccess, name


def _is_cuda_name(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and str(node.value).startswith("cuda")
        and str(node.value).isalpha()
    )


def test_compute_capability_is_the_drivers_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for libcuda with the attribute numbers of cuda.h; then this machine's own."""

    def attribute(value: Any, number: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[number]
        return 0

    driver = types.SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda device, index: 0)
    driver.cuDeviceGetAttribute = attribute
    with monkeypatch.context() as patch:
        patch.setattr(cuda.ctypes, "CDLL", lambda name: driver)
        assert cuda.compute_capability() == "8.7"
        driver.cuInit = lambda flags: 100
        with pytest.raises(DeviceMissingError, match="CUDA error 100"):
            cuda.compute_capability()
    if gpu_missing() is not None:
        with pytest.raises(DeviceMissingError, match="NVIDIA driver"):
            cuda.compute_capability()

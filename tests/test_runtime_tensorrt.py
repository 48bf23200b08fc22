"""The TensorRT backend.

Three kinds of test: against the real vendor package without a GPU; against a fake vendor and a fake CUDA runtime, which
prove our control flow and nothing about TensorRT; and on a GPU (marked, skipped elsewhere).
"""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import tensorrt as backend
from runtime.errors import (
    BackendError,
    BackendMissingError,
    DamagedBundleError,
    DeviceMissingError,
    ForeignEngineError,
    UnfinishedBundleError,
)
from runtime.manifest import Bucket, Checkpoint, EngineInfo, Golden, Latent, Manifest

ROOT = Path(__file__).parent.parent
NO_RTX = "needs the package tensorrt-rtx (`pip install 'lotus-edge[rtx]'`)"
BUCKET = Bucket(height=16, width=16, graph="model.onnx", engine="model.engine")


def make_manifest(flavour: str, version: str, *, capability: str | None = None, mode: str = "d") -> Manifest:
    """A bundle of one 16x16 bucket with an engine."""
    return Manifest(
        name="test",
        checkpoint=Checkpoint(id="test", sha256="0" * 64),
        mode=mode,
        tasks=["disparity"],
        outputs={"disparity": "near is 1"},
        precision="fp32",
        target=flavour,
        opset=23,
        buckets=[BUCKET],
        latent=Latent(channels=4, downscale=8, scaling_factor=0.18215),
        noise_seed=0,
        fixed_noise=False,
        folds=[],
        golden=Golden(file="golden.npz", tolerance=1e-3, mean_tolerance=1e-3, measured=[]),
        files=[],
        tools={},
        command="",
        created="",
        engine=EngineInfo(flavour=flavour, version=version, compute_capability=capability, settings={}),
    )


def open_session(folder: Path, manifest: Manifest, option: str | None = None) -> backend.BackendSession:
    return backend.BackendSession(folder, manifest, manifest.buckets[0], option or manifest.target)


def gpu_missing() -> str | None:
    """Why no engine can run here; None where one can."""
    try:
        backend.Cuda("tensorrt")
    except BackendError as error:
        return str(error)
    return None


# --- the real vendor package, no GPU ---------------------------------------------------------------------------------

OPEN_IN_A_CHILD = """
import sys
from pathlib import Path
from test_runtime_tensorrt import make_manifest, open_session
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
    from test_export_tensorrt import make_graph

    from export.targets.tensorrt import build_engine

    folder = tmp_path_factory.mktemp("bundle")
    build_engine(make_graph(folder), folder / "model.engine", "tensorrt-rtx", lambda message: None)
    return folder


@pytest.mark.skipif(gpu_missing() is None, reason="this machine has a GPU")
def test_without_a_driver_opening_is_our_error_with_the_drivers_words(rtx, rtx_bundle):
    with pytest.raises(DeviceMissingError, match=r"tensorrt-rtx needs an NVIDIA GPU.*cudaGetDeviceCount failed with"):
        open_session(rtx_bundle, make_manifest("tensorrt-rtx", rtx.__version__))


@pytest.mark.skipif(gpu_missing() is None, reason="this machine has a GPU")
def test_without_a_driver_nothing_crashes(rtx, rtx_bundle):
    """In a child process, where a segmentation fault would be seen."""
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    child = subprocess.run(
        [sys.executable, "-c", OPEN_IN_A_CHILD, rtx_bundle], env=path, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("DeviceMissingError tensorrt-rtx needs an NVIDIA GPU")


@pytest.mark.skipif(gpu_missing() is None, reason="this machine has a GPU")
def test_the_vendors_own_words_reach_the_message(rtx, rtx_bundle, monkeypatch):
    """Past our device check, against a fake CUDA: the real vendor refuses to load, and its log says why."""
    cudart = FakeCudart()
    monkeypatch.setattr(backend, "_load_cudart", lambda flavour: cudart)
    with pytest.raises(BackendError, match=r"cannot load .*model\.engine.*\n?.*cudaError"):
        open_session(rtx_bundle, make_manifest("tensorrt-rtx", rtx.__version__))
    assert cudart.alive == {}


def test_another_version_is_refused_before_the_driver_is_asked(rtx, tmp_path):
    with pytest.raises(ForeignEngineError) as caught:
        open_session(tmp_path, make_manifest("tensorrt-rtx", "1.0.0.1"))
    assert "1.0.0.1" in str(caught.value)
    assert rtx.__version__ in str(caught.value)
    assert f"python export/build_engine.py --from-bundle {tmp_path} --target tensorrt-rtx" in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # import then raises ModuleNotFoundError
    with pytest.raises(BackendMissingError, match=r"'tensorrt'.*lotus-edge\[gpu\].*JetPack"):
        backend.load_vendor("tensorrt")


def test_missing_cuda_bindings_are_named_with_the_extra(monkeypatch):
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissingError, match=r"'cuda-bindings'.*lotus-edge\[rtx\].*JetPack 6"):
        backend.Cuda("tensorrt-rtx")


VENDOR_OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig IRuntimeConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "layer": "ILayer IAttentionInputLayer",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_context": "IExecutionContext",
}
NOT_VENDOR = {("engine", "open"), ("engine", "unlink"), ("layer", "__class__")}


@pytest.mark.parametrize("source", ["runtime/backends/tensorrt.py", "export/targets/tensorrt.py"])
def test_every_vendor_name_in_our_source_exists_in_the_vendors_package(rtx, source):
    """What only a GPU executes could hold a misspelt name; this finds it."""
    cudart = pytest.importorskip("cuda.bindings.runtime", reason=NO_RTX)
    checked = set()
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        text = ast.unparse(node)
        if isinstance(node, ast.Attribute) and text.startswith(("vendor.", "self._vendor.")):
            found = rtx
            for name in text.removeprefix("self._").removeprefix("vendor.").split("."):
                assert hasattr(found, name), text
                found = getattr(found, name)
            checked.add(text)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if owner in VENDOR_OBJECTS and (owner, node.attr) not in NOT_VENDOR:
                classes = [getattr(rtx, name) for name in VENDOR_OBJECTS[owner].split()]
                assert any(hasattr(kind, node.attr) for kind in classes), text
                checked.add(text)
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda") and node.attr != "cuda_graph_strategy":
            homes = [cudart, *(getattr(cudart, name) for name in dir(cudart) if name.startswith("cuda"))]
            assert any(hasattr(home, node.attr) for home in homes), text
    assert len(checked) > 15, checked


@pytest.mark.skipif(gpu_missing() is None, reason="on a GPU these addresses would be used")
def test_the_real_cuda_bindings_take_the_arguments_we_pass():
    """Types and number of arguments: a wrong one is a TypeError, a right one gets as far as the missing driver."""
    cudart = pytest.importorskip("cuda.bindings.runtime", reason=NO_RTX)
    stream, address = cudart.cudaStream_t(0), 4096
    assert int(stream) == 0
    calls: dict[str, tuple[Any, ...]] = {
        "cudaStreamCreate": (),
        "cudaMallocHost": (64,),
        "cudaMalloc": (64,),
        "cudaMemcpyAsync": (address, address, 64, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, stream),
        "cudaStreamSynchronize": (stream,),
        "cudaStreamBeginCapture": (stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal),
        "cudaStreamEndCapture": (stream,),
        "cudaGraphInstantiate": (cudart.cudaGraph_t(0), 0),
        "cudaGraphLaunch": (cudart.cudaGraphExec_t(0), stream),
        "cudaGraphDestroy": (cudart.cudaGraph_t(0),),
        "cudaGraphExecDestroy": (cudart.cudaGraphExec_t(0),),
        "cudaFreeHost": (address,),
        "cudaFree": (address,),
        "cudaStreamDestroy": (stream,),
    }
    named = {node.value for node in ast.walk(ast.parse(Path(backend.__file__).read_text())) if _is_cuda_name(node)}
    assert named == {*calls, "cudaGetDeviceCount"}
    for name, arguments in calls.items():
        status = getattr(cudart, name)(*arguments)[0]
        assert status != cudart.cudaError_t.cudaSuccess, name


def _is_cuda_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and str(node.value).startswith("cuda") and str(node.value).isalpha()


def test_compute_capability_is_the_drivers_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for libcuda with the attribute numbers of cuda.h; then this machine's own."""

    def attribute(value: Any, number: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[number]
        return 0

    driver = types.SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda device, index: 0)
    driver.cuDeviceGetAttribute = attribute
    with monkeypatch.context() as patch:
        patch.setattr(backend.ctypes, "CDLL", lambda name: driver)
        assert backend.compute_capability() == "8.7"
        driver.cuInit = lambda flags: 100
        with pytest.raises(DeviceMissingError, match="CUDA error 100"):
            backend.compute_capability()
    if gpu_missing() is not None:
        with pytest.raises(DeviceMissingError, match="NVIDIA driver"):
            backend.compute_capability()


# --- a fake vendor and a fake CUDA: they prove our control flow, not TensorRT -----------------------------------------


class FakeError(Exception):
    """A use that the real CUDA would answer with a crash."""


class FakeCudart:
    """CUDA in host memory: keeps what is allocated, records calls, and fails on request.

    `alive` maps every live handle to the function that must free it. During a capture work is recorded, not done.
    """

    cudaError_t = types.SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")

    def __init__(self, capability: tuple[int, int] = (8, 7)) -> None:
        self.capability = capability
        self.calls: list[str] = []
        self.alive: dict[Any, str] = {}
        self.fail: dict[str, int] = {}  # function -> how many calls still succeed
        self.capturing: list[Any] | None = None
        self._memory: dict[int, Any] = {}
        self._next = 1000

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or name.startswith("cudaGetError"):
            return found

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.fail:
                self.fail[name] -= 1
                if self.fail[name] < 0:
                    return (2, *([None] if name.startswith(("cudaMalloc", "cudaStreamCreate")) else []))
            return found(*arguments)

        return call

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:
        return 0, b"cudaErrorFake"

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"the fake was told to fail"

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, self._new("cudaStreamDestroy")

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return self._free(stream, "cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if self.capturing is not None:
            raise FakeError("synchronised while capturing")
        return (0,)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return 0, self._new("cudaFreeHost", size)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return 0, self._new("cudaFree", size)

    def cudaFreeHost(self, address: int) -> tuple[int]:
        return self._free(address, "cudaFreeHost")

    def cudaFree(self, address: int) -> tuple[int]:
        return self._free(address, "cudaFree")

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        expected = ("cudaFree", "cudaFreeHost") if kind == "in" else ("cudaFreeHost", "cudaFree")
        if (self.alive[to], self.alive[source]) != expected or size != len(self._memory[to]):
            raise FakeError(f"copied the wrong way, or {size} bytes")
        self.do(lambda: ctypes.memmove(to, source, size))
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[int]:
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        work, self.capturing = self.capturing, None
        graph = tuple(work or ())
        self.alive[graph] = "cudaGraphDestroy"
        return 0, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        launchable = ("launchable", *graph)
        self.alive[launchable] = "cudaGraphExecDestroy"
        return 0, launchable

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return self._free(graph, "cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:
        return self._free(graph, "cudaGraphExecDestroy")

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:
        if graph not in self.alive:
            raise FakeError("launched a destroyed graph")
        for work in graph[1:]:
            work()
        return (0,)

    def do(self, work: Any) -> None:
        if self.capturing is not None:
            self.capturing.append(work)
        else:
            work()

    def _new(self, free: str, size: int = 0) -> int:
        if size:
            memory = (ctypes.c_char * size)()
            handle = ctypes.addressof(memory)
            self._memory[handle] = memory
        else:
            self._next += 1
            handle = self._next
        self.alive[handle] = free
        return handle

    def _free(self, handle: Any, how: str) -> tuple[int]:
        if self.alive.pop(handle, None) != how:
            raise FakeError(f"{how} of something freed or of another kind")
        return (0,)


SHAPES = {"image": (1, 3, 16, 16), "disparity": (1, 1, 16, 16)}


class FakeVendor:
    """A vendor whose engine answers the mean of the image's channels. Attributes below are set by tests."""

    __version__ = "10.3.0"
    DataType = types.SimpleNamespace(FLOAT="float", HALF="half")

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING, INFO = "error", "internal", "warning", "info"

        def log(self, severity: str, message: str) -> None: ...

    def __init__(self, cudart: FakeCudart) -> None:
        self.cudart = cudart
        self.shapes = dict(SHAPES)
        self.dtypes = dict.fromkeys(SHAPES, "float")
        self.executes = True
        self.context_possible = True
        self.config: Any = None
        self.events: list[str] = []

    def Runtime(self, logger: Any) -> Any:
        return types.SimpleNamespace(deserialize_cuda_engine=lambda content: self._deserialize(content, logger))

    def _deserialize(self, content: Any, logger: Any) -> Any:
        if bytes(content) != b"engine":
            logger.log("warning", "a warning")
            logger.log("error", "bad magic tag")
            return None
        names = list(self.shapes)
        return types.SimpleNamespace(
            logger=logger,
            num_io_tensors=len(names),
            get_tensor_name=lambda index: names[index],
            get_tensor_dtype=lambda name: self.dtypes[name],
            get_tensor_shape=lambda name: list(self.shapes[name]),
            create_runtime_config=lambda: types.SimpleNamespace(cuda_graph_strategy="disabled"),
            create_execution_context=lambda config=None: self._context(config, logger),
        )

    def _context(self, config: Any, logger: Any) -> Any:
        self.config = config
        if not self.context_possible:
            logger.log("internal", "out of device memory")
            return None
        return FakeContext(self, logger)


class FakeContext:
    def __init__(self, vendor: FakeVendor, logger: Any) -> None:
        self.vendor, self.logger = vendor, logger
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.vendor.cudart.alive[address] == "cudaFree"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.vendor.cudart.alive[stream] == "cudaStreamDestroy"
        self.vendor.cudart.calls.append("execute")
        if not self.vendor.executes:
            self.logger.log("error", "enqueue failed")
            return False
        self.vendor.cudart.do(self._compute)
        return True

    def _compute(self) -> None:
        def see(name: str) -> Any:
            return np.ctypeslib.as_array((ctypes.c_float * 768).from_address(self.addresses[name]))

        image = see("image").reshape(SHAPES["image"])
        out = np.ctypeslib.as_array((ctypes.c_float * 256).from_address(self.addresses["disparity"]))
        out[:] = image.mean(axis=1).ravel()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[FakeVendor, FakeCudart]]:
    """A fake vendor of both flavours, a fake CUDA, and an engine file; nothing may be left allocated at the end."""
    cudart = FakeCudart()
    vendor = FakeVendor(cudart)
    monkeypatch.setattr(backend, "load_vendor", lambda flavour: vendor)
    monkeypatch.setattr(backend, "_load_cudart", lambda flavour: cudart)
    monkeypatch.setattr(backend, "compute_capability", lambda: "{}.{}".format(*cudart.capability))
    (tmp_path / "model.engine").write_bytes(b"engine")
    yield vendor, cudart
    assert cudart.alive == {}, "not freed"


def image(seed: int) -> dict[str, Any]:
    return {"image": np.random.default_rng(seed).uniform(-1, 1, SHAPES["image"]).astype(np.float32)}


def assert_mean(session: backend.BackendSession, seed: int) -> None:
    given = image(seed)
    answer = session(given)
    assert list(answer) == ["disparity"]
    np.testing.assert_allclose(answer["disparity"], given["image"].mean(axis=1, keepdims=True), rtol=1e-6)


def test_fake_tensorrt_runs_plain_once_then_launches_one_captured_graph(fakes, tmp_path):
    _, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        runs = []
        for seed in range(4):
            cudart.calls.clear()
            assert_mean(session, seed)
            runs.append(list(cudart.calls))
    plain = ["cudaMemcpyAsync", "execute", "cudaMemcpyAsync"]
    launch = ["cudaGraphLaunch", "cudaStreamSynchronize"]
    capture = ["cudaStreamBeginCapture", *plain, "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]
    assert runs == [[*plain, "cudaStreamSynchronize"], capture + launch, launch, launch]


def test_fake_rtx_leaves_the_capture_to_the_vendor(fakes, tmp_path):
    vendor, cudart = fakes
    vendor.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    with open_session(tmp_path, make_manifest("tensorrt-rtx", "10.3.0")) as session:
        for seed in range(3):
            assert_mean(session, seed)
    assert vendor.config.cuda_graph_strategy == "whole"
    assert "cudaStreamBeginCapture" not in cudart.calls


def test_fake_rtx_without_graph_strategies_runs_plain(fakes, tmp_path):
    vendor, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt-rtx", "10.3.0")) as session:
        assert_mean(session, 0)
        assert_mean(session, 1)
    assert vendor.config is None
    assert "cudaStreamBeginCapture" not in cudart.calls


def test_fake_answers_are_copies_and_inputs_may_have_any_layout(fakes, tmp_path):
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        first = session(image(1))["disparity"]
        kept = first.copy()
        session(image(2))
        np.testing.assert_array_equal(first, kept)
        given = np.asfortranarray(image(3)["image"])
        expected = given.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(session({"image": given})["disparity"], expected, rtol=1e-5, atol=1e-6)


def test_fake_close_is_safe_twice_and_a_closed_session_refuses(fakes, tmp_path):
    _, cudart = fakes
    session = open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))
    session(image(0))
    session(image(0))
    session.close()
    session.close()
    assert cudart.alive == {}
    order = [name for name in cudart.calls if name.endswith("Destroy") or name.startswith("cudaFree")]
    assert order[-1] == "cudaStreamDestroy"
    assert order[:2] == ["cudaGraphDestroy", "cudaGraphExecDestroy"]
    with pytest.raises(BackendError, match="closed"):
        session(image(0))


@pytest.mark.parametrize(
    ("call", "successes"),
    [("cudaStreamCreate", 0), ("cudaMallocHost", 0), ("cudaMallocHost", 1), ("cudaMalloc", 0), ("cudaMalloc", 1)],
)
def test_fake_half_opened_session_frees_what_it_had(fakes, tmp_path, call, successes):
    _, cudart = fakes
    cudart.fail[call] = successes
    with pytest.raises(BackendError, match=f"{call} failed with cudaErrorFake: the fake was told to fail"):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))


@pytest.mark.parametrize(
    ("call", "run"),
    [
        ("cudaMemcpyAsync", 1),
        ("cudaStreamSynchronize", 1),
        ("cudaStreamBeginCapture", 2),
        ("cudaGraphInstantiate", 2),
        ("cudaGraphLaunch", 2),
    ],
)
def test_fake_failing_call_while_running_is_our_error(fakes, tmp_path, call, run):
    _, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        if run == 2:
            session(image(0))
        cudart.fail[call] = 0
        with pytest.raises(BackendError, match=f"{call} failed with cudaErrorFake"):
            session(image(1))


def test_fake_failure_inside_a_capture_ends_the_capture_and_keeps_the_vendors_words(fakes, tmp_path):
    vendor, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        session(image(0))
        vendor.executes = False
        with pytest.raises(BackendError, match=r"tensorrt 10\.3\.0 failed on bucket 16x16: enqueue failed"):
            session(image(1))
        assert cudart.capturing is None
        vendor.executes = True
        assert_mean(session, 2)


def test_fake_engine_that_does_not_load_gives_the_vendors_errors_only(fakes, tmp_path):
    (tmp_path / "model.engine").write_bytes(b"rubbish")
    with pytest.raises(BackendError, match="bad magic tag") as caught:
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))
    assert "a warning" not in str(caught.value)


def test_fake_context_that_cannot_be_made(fakes, tmp_path):
    fakes[0].context_possible = False
    with pytest.raises(BackendError, match=r"cannot create an execution context.*out of device memory"):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_fake_unreadable_engine_file(fakes, tmp_path, damage):
    damage(tmp_path / "model.engine")
    with pytest.raises(DamagedBundleError, match=r"cannot read .*model\.engine"):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))


def test_fake_engine_with_other_tensors_is_refused(fakes, tmp_path):
    manifest = make_manifest("tensorrt", "10.3.0", capability="8.7")
    fakes[0].shapes["image"] = (1, 3, -1, -1)
    with pytest.raises(DamagedBundleError, match="-1"):
        open_session(tmp_path, manifest)
    fakes[0].shapes = dict(SHAPES)
    fakes[0].dtypes["disparity"] = "half"
    with pytest.raises(DamagedBundleError, match=r"'disparity'.*half.*float32"):
        open_session(tmp_path, manifest)


def test_fake_device_of_another_compute_capability_is_refused_for_tensorrt_only(fakes, tmp_path):
    _, cudart = fakes
    cudart.capability = (11, 0)
    with pytest.raises(ForeignEngineError, match=r"10\.3\.0 for compute capability 8\.7.*compute capability 11\.0"):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))
    assert "cudaStreamCreate" not in cudart.calls
    open_session(tmp_path, make_manifest("tensorrt-rtx", "10.3.0")).close()


def test_another_flavour_is_refused(fakes, tmp_path):
    with pytest.raises(ForeignEngineError, match=r"tensorrt 10\.3\.0.*is tensorrt-rtx.*--target tensorrt-rtx"):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0"), "tensorrt-rtx")


def test_a_bundle_without_an_engine_says_how_to_build_it(fakes, tmp_path):
    bucket = dataclasses.replace(BUCKET, engine=None)
    manifest = dataclasses.replace(make_manifest("tensorrt", "10.3.0"), buckets=[bucket], engine=None)
    command = f"python export/build_engine.py --from-bundle {tmp_path} --target tensorrt"
    with pytest.raises(UnfinishedBundleError, match=command):
        open_session(tmp_path, manifest)


# --- on a GPU: the contract for real ---------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(gpu_missing() is not None, reason=f"never run here: {gpu_missing()}")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def gpu_bundle(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Manifest]:
    from test_export_tensorrt import make_graph

    from export.targets.tensorrt import build_engine

    pytest.importorskip(backend.FLAVOURS[request.param].module, reason="the flavour is not installed")
    info = build_engine(make_graph(tmp_path), tmp_path / "model.engine", request.param, lambda message: None)
    return tmp_path, dataclasses.replace(make_manifest(request.param, info.version), engine=info)


@pytest.mark.gpu
@needs_gpu
def test_gpu_answers_equal_onnx_runtime_plain_and_captured(gpu_bundle):
    ort = pytest.importorskip("onnxruntime", reason="the reference")
    folder, manifest = gpu_bundle
    reference = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    with open_session(folder, manifest) as session:
        for seed in (0, 1, 2, 0):  # plain, captured, launched, and the first again
            given = image(seed)
            expected = reference.run(["disparity"], given)[0]
            np.testing.assert_allclose(session(given)["disparity"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_gpu_memory_returns_after_close(gpu_bundle):
    folder, manifest = gpu_bundle
    cuda = backend.Cuda(manifest.target)
    free = []
    for _ in range(4):
        with open_session(folder, manifest) as session:
            session(image(0))
            session(image(1))
        free.append(cuda.module.cudaMemGetInfo()[1])
    assert free[-1] >= free[1] - (1 << 20)  # the first rounds load libraries
    with pytest.raises(BackendError, match="closed"):
        session(image(0))

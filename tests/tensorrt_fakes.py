"""Stand-ins for TensorRT and CUDA in host memory, and the manifest of a bundle with an engine."""

from __future__ import annotations

import ctypes
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BACKENDS, cuda
from runtime.backends import tensorrt as backend
from runtime.errors import BackendError
from runtime.manifest import Bucket, Checkpoint, EngineInfo, Golden, Latent, Manifest

NO_RTX = "needs the package tensorrt-rtx (`pip install 'lotus-edge[rtx]'`)"
BUCKET = Bucket(height=16, width=16, graph="model.onnx", engine="model.engine")


def make_manifest(
    flavour: str, version: str, *, capability: str | None = None, mode: str = "d"
) -> Manifest:
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
        engine=EngineInfo(
            flavour=flavour, version=version, compute_capability=capability, settings={}
        ),
    )


def open_session(
    folder: Path, manifest: Manifest, name: str | None = None, **settings: Any
) -> backend.BackendSession:
    entry = BACKENDS[name or manifest.target]
    return backend.BackendSession(folder, manifest, manifest.buckets[0], entry, **settings)


def gpu_missing() -> str | None:
    """Why no engine can run here; None where one can."""
    try:
        cuda.Cuda("tensorrt")
    except BackendError as error:
        return str(error)
    return None


class FakeError(Exception):
    """A use that the real CUDA would answer with a crash."""


class FakeCudart:
    """CUDA in host memory: keeps what is allocated, records calls, and fails on request.

    `alive` maps every live handle to the function that must free it. During a capture work is
    recorded, not done; and while a blocking stream is captured, the legacy stream is forbidden to
    all threads.
    """

    cudaError_t = types.SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = types.SimpleNamespace(
        cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out"
    )
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaStreamNonBlocking = 1

    def __init__(self, capability: tuple[int, int] = (8, 7)) -> None:
        self.capability = capability
        self.calls: list[str] = []
        self.alive: dict[Any, str] = {}
        self.fail: dict[str, int] = {}  # function -> how many calls still succeed
        self._capture = threading.local()  # captures are those of a thread
        self._blocking: set[int] = set()  # streams
        self._captured: set[int] = set()  # streams
        self._lock = threading.RLock()
        self._memory: dict[int, Any] = {}
        self._next = 1000

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or name.startswith("cudaGetError"):
            return found

        def call(*arguments: Any) -> Any:
            with self._lock:
                return self._call(name, found, arguments)

        return call

    def _call(self, name: str, function: Any, arguments: tuple[Any, ...]) -> Any:
        self.calls.append(name)
        if name in self.fail:
            self.fail[name] -= 1
            if self.fail[name] < 0:
                makes = name.startswith(("cudaMalloc", "cudaStreamCreate"))
                return (2, *([None] if makes else []))
        return function(*arguments)

    @property
    def capturing(self) -> list[Any] | None:
        """What this thread's capture has recorded; None outside one."""
        return getattr(self._capture, "work", None)

    @capturing.setter
    def capturing(self, work: list[Any] | None) -> None:
        self._capture.work = work

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:
        return 0, b"cudaErrorFake"

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"the fake was told to fail"

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        stream = self._new("cudaStreamDestroy")
        if flags != self.cudaStreamNonBlocking:
            self._blocking.add(stream)
        return 0, stream

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

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: str, stream: int
    ) -> tuple[int]:
        expected = ("cudaFree", "cudaFreeHost") if kind == "in" else ("cudaFreeHost", "cudaFree")
        if (self.alive[to], self.alive[source]) != expected or size != len(self._memory[to]):
            raise FakeError(f"copied the wrong way, or {size} bytes")
        self.do(lambda: ctypes.memmove(to, source, size))
        return (0,)

    def cudaMemset(self, address: int, value: int, size: int) -> tuple[int]:
        """On the legacy stream; 906 is cudaErrorStreamCaptureImplicit."""
        if self._captured & self._blocking:
            return (906,)
        ctypes.memset(address, value, size)
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[int]:
        self.capturing = []
        self._captured.add(stream)
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        work, self.capturing = self.capturing, None
        self._captured.discard(stream)
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
    """A vendor whose engine answers the mean of the image's channels. Attributes below are set by
    tests.
    """

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
        self.strategies: list[str | None] = []  # of CUDA graphs, one for each context
        self.compilations = 0
        self.contexts: list[FakeContext] = []
        self.events: list[str] = []

    def Runtime(self, logger: Any) -> Any:
        return types.SimpleNamespace(
            deserialize_cuda_engine=lambda content: self._deserialize(content, logger)
        )

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
            create_runtime_config=FakeConfig,
            create_execution_context=lambda config=None: self._context(config, logger),
        )

    def _context(self, config: Any, logger: Any) -> Any:
        self.strategies.append(None if config is None else config.cuda_graph_strategy)
        if not self.context_possible:
            logger.log("internal", "out of device memory")
            return None
        return FakeContext(self, logger, config)


class FakeKernels:
    """The runtime cache. What is in it: nothing, what a context compiles, or also what a run does.
    The vendor takes back what it wrote itself.
    """

    writes: bytes | None = b"all"

    def __init__(self) -> None:
        self.held = b""

    def serialize(self) -> bytes | None:
        return self.writes and self.held

    def deserialize(self, content: bytes) -> bool:
        self.held = content if content == b"all" else self.held
        return content == b"all"


class FakeConfig:
    """How a context is made. It must live as long as the context."""

    def __init__(self) -> None:
        self.cuda_graph_strategy = "disabled"
        self._kernels: FakeKernels | None = None

    def create_runtime_cache(self) -> FakeKernels:
        return FakeKernels()

    def set_runtime_cache(self, cache: FakeKernels) -> bool:
        self._kernels = cache
        return True


class FakeContext:
    def __init__(self, vendor: FakeVendor, logger: Any, config: FakeConfig | None = None) -> None:
        self.vendor, self.logger = vendor, logger
        self.config = None if config is None else weakref.ref(config)
        kernels = None if config is None else config._kernels
        if kernels is None or not kernels.held:
            vendor.compilations += 1
        if kernels is not None:
            kernels.held = kernels.held or b"some"
        self.addresses: dict[str, int] = {}
        vendor.contexts.append(self)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.vendor.cudart.alive[address] == "cudaFree"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.vendor.cudart.alive[stream] == "cudaStreamDestroy"
        self.vendor.cudart.calls.append("execute")
        if self.config is not None:
            if (config := self.config()) is None:
                raise FakeError("ran without the configuration that its context was made with")
            if config._kernels is not None:
                config._kernels.held = b"all"
        if not self.vendor.executes:
            self.logger.log("error", "enqueue failed")
            return False
        self.vendor.cudart.do(self._compute)
        return True

    def _compute(self) -> None:
        def see(name: str) -> Any:
            return np.ctypeslib.as_array((ctypes.c_float * 768).from_address(self.addresses[name]))

        image = see("image").reshape(SHAPES["image"])
        out = np.ctypeslib.as_array(
            (ctypes.c_float * 256).from_address(self.addresses["disparity"])
        )
        out[:] = image.mean(axis=1).ravel()


def image(seed: int) -> dict[str, Any]:
    return {"image": np.random.default_rng(seed).uniform(-1, 1, SHAPES["image"]).astype(np.float32)}


@pytest.fixture
def fakes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[FakeVendor, FakeCudart]]:
    """A fake vendor of both flavours, a fake CUDA, and an engine file; nothing may be left
    allocated at the end.
    """
    cudart = FakeCudart()
    vendor = FakeVendor(cudart)
    monkeypatch.setattr(backend, "load_vendor", lambda flavour: vendor)
    monkeypatch.setattr(cuda, "_load_cudart", lambda flavour: cudart)
    monkeypatch.setattr(backend, "compute_capability", lambda: "{}.{}".format(*cudart.capability))
    (tmp_path / "model.engine").write_bytes(b"engine")
    yield vendor, cudart
    assert cudart.alive == {}, "not freed"


def assert_mean(session: backend.BackendSession, seed: int) -> None:
    given = image(seed)
    answer = session(given)
    assert list(answer) == ["disparity"]
    np.testing.assert_allclose(
        answer["disparity"], given["image"].mean(axis=1, keepdims=True), rtol=1e-6
    )

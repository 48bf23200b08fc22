"""TensorRT and TensorRT-RTX: one module for both.

The only file that imports `tensorrt`, `tensorrt_rtx` and `cuda`. Runs `bucket.engine` with the CUDA
runtime and no torch: pinned and device buffers are allocated once, one plain run, then a CUDA
graph.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import BACKENDS
from runtime.backends.session import Arrays, Session, Shapes, import_vendor
from runtime.errors import (
    BackendError,
    BackendMissingError,
    DamagedBundleError,
    DeviceMissingError,
    ForeignEngineError,
    UnfinishedBundleError,
)
from runtime.extras import how_to_install
from runtime.manifest import EngineInfo


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """How the two differ in behaviour.

    `portable`: an engine runs on other GPUs than the one it was built on. `captures_itself`: the
    vendor captures the CUDA graph.
    """

    portable: bool
    captures_itself: bool


# By the name of the backend.
FLAVOURS = {
    "tensorrt": Flavour(portable=False, captures_itself=False),
    "tensorrt-rtx": Flavour(portable=True, captures_itself=True),
}


def load_vendor(name: str) -> Any:
    """The vendor's module of the backend of this name ("tensorrt" or "tensorrt-rtx").

    Raises: BackendMissingError when it is not installed or its libraries do not load.
    """
    return import_vendor(BACKENDS[name])


class Log:
    """Collects the vendor's warnings and errors; `logger` is the ILogger to hand to the vendor."""

    def __init__(self, vendor: Any) -> None:
        self._errors: list[str] = []
        self._warnings: list[str] = []
        # Not `self`: the vendor may keep the logger for long.
        errors, warnings = self._errors, self._warnings

        class Logger(vendor.ILogger):  # type: ignore[misc]  # the base is known only at run time
            def __init__(self) -> None:
                vendor.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (vendor.ILogger.ERROR, vendor.ILogger.INTERNAL_ERROR):
                    errors.append(message)
                elif severity == vendor.ILogger.WARNING:
                    warnings.append(message)

        self.logger = Logger()

    def text(self) -> str:
        """The errors so far, or the warnings where there are no errors; the last twenty."""
        return "\n".join((self._errors or self._warnings)[-20:]) or "(the vendor logged nothing)"


class Cuda:
    """The CUDA runtime with every status checked, for the backend of this name.

    `cuda("cudaMalloc", size)` returns what the call returns.

    Raises: BackendMissingError without the package, DeviceMissingError without a GPU, BackendError
    with CUDA's words.
    """

    def __init__(self, name: str) -> None:
        self.module = _load_cudart(name)
        try:
            self("cudaGetDeviceCount")  # answers an error where it finds none
        except BackendError as error:
            raise DeviceMissingError(
                f"{name} needs an NVIDIA GPU and its driver: {error}"
            ) from error

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call one function of the CUDA runtime. Raises: BackendError."""
        try:
            status, *values = getattr(self.module, name)(*arguments)
        except (RuntimeError, AttributeError) as error:  # a library too old for this function
            raise BackendError(f"{name} is not in this CUDA runtime: {error}") from error
        if status != self.module.cudaError_t.cudaSuccess:
            _, label = self.module.cudaGetErrorName(status)
            _, words = self.module.cudaGetErrorString(status)
            raise BackendError(f"{name} failed with {label.decode()}: {words.decode()}")
        return values[0] if values else None

    def release(self, name: str, *arguments: Any) -> Any:
        """Call a destructor and leave its status be: after a lost device each fails with the error
        raised before.
        """
        return getattr(self.module, name)(*arguments)


def compute_capability() -> str:
    """Of device 0, such as "8.7".

    Asked of the driver's own library: a Jetson that only builds an engine has no Python package for
    CUDA. Raises: DeviceMissingError.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError as error:
        raise DeviceMissingError(f"this machine has no NVIDIA driver: {error}") from error
    device, value, parts = ctypes.c_int(), ctypes.c_int(), []
    status = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        status = status or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    if status:
        raise DeviceMissingError(f"the NVIDIA driver finds no GPU to use (CUDA error {status})")
    return ".".join(parts)


@dataclass(frozen=True, kw_only=True)
class _Buffer:
    """One tensor: addresses of its pinned memory and of its twin on the device, bytes; `array` is
    the pinned memory.
    """

    host: int
    device: int
    size: int
    array: NDArray[np.float32]


class BackendSession(Session):
    """Runs `bucket.engine`. Host and device buffers, stream and CUDA graph live as long as the
    session.

    Inputs are copied also on integrated GPUs: there pinned memory is not cached by the GPU, and the
    first convolution reads its input many times (CUDA for Tegra, "Memory types").
    """

    _runtime: Any = None
    _engine: Any = None
    _context: Any = None
    _graph: Any = None
    _has_run = False

    @cached_property
    def _resources(self) -> ExitStack:
        return ExitStack()  # releases in reverse order of allocation; closing it twice is safe

    def _open(self) -> Shapes:
        path = self._check_bundle()
        self._stream = self._cuda("cudaStreamCreate")
        self._resources.callback(self._cuda.release, "cudaStreamDestroy", self._stream)
        self._load_engine(path)
        shapes = self._describe_tensors()
        if shapes == self.input_shapes | self.output_shapes:  # otherwise Session refuses the engine
            self._buffers = {name: self._allocate(name, shape) for name, shape in shapes.items()}
        return shapes

    def _run(self, inputs: Arrays) -> Arrays:
        if self._context is None:
            raise BackendError(
                f"the session of bucket {self.bucket} is closed; open the bundle again"
            )
        for name, array in inputs.items():
            np.copyto(self._buffers[name].array, array)
        # The first run is plain: the vendor initialises lazily, which a capture would refuse.
        if (
            self._has_run
            and self._graph is None
            and not FLAVOURS[self.backend.name].captures_itself
        ):
            self._graph = self._capture()
        if self._graph is not None:
            self._cuda("cudaGraphLaunch", self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda("cudaStreamSynchronize", self._stream)
        self._has_run = True
        return {name: self._buffers[name].array.copy() for name in self.output_shapes}

    def _close(self) -> None:
        self._resources.close()

    def _check_bundle(self) -> Path:
        """Refuse what cannot run here, before the vendor sees it. Returns the engine's path."""
        info = self.manifest.engine
        if self.bucket.engine is None or info is None:
            raise UnfinishedBundleError(
                f"{self.folder} holds no {self.backend.name} engine for bucket {self.bucket} yet. "
                f"{self._how_to_build()}"
            )
        if info.flavour != self.backend.name:
            raise self._foreign(info, self.backend.name)
        self._vendor = load_vendor(self.backend.name)
        here = f"{self.backend.name} {self._vendor.__version__}"
        if info.version != self._vendor.__version__:
            raise self._foreign(info, here)
        self._cuda = Cuda(self.backend.name)
        if (
            not FLAVOURS[self.backend.name].portable
            and info.compute_capability != compute_capability()
        ):
            raise self._foreign(info, f"{here} with compute capability {compute_capability()}")
        return self.model_folder / self.bucket.engine

    def _foreign(self, info: EngineInfo, here: str) -> ForeignEngineError:
        capability = info.compute_capability or "(any)"
        built = f"{info.flavour} {info.version} for compute capability {capability}"
        return ForeignEngineError(
            f"the engine in {self.folder} was built by {built}; asked to run it is {here}. "
            f"{self._how_to_build()}"
        )

    def _how_to_build(self) -> str:
        return (
            f"`python export/build_engine.py --from-bundle {self.folder} "
            f"--target {self.backend.name}` builds it here."
        )

    def _load_engine(self, path: Path) -> None:
        """Deserialise and make the context. The file is mapped, not read: on a Jetson the GPU
        shares this memory.
        """
        vendor = self._vendor
        self._log = Log(vendor)
        self._resources.callback(self._forget_engine)
        try:
            self._runtime = runtime = vendor.Runtime(self._log.logger)
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                self._engine = engine = runtime.deserialize_cuda_engine(content)
            if (
                engine
                and FLAVOURS[self.backend.name].captures_itself
                and hasattr(vendor, "CudaGraphStrategy")
            ):
                config = engine.create_runtime_config()
                config.cuda_graph_strategy = vendor.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                self._context = engine.create_execution_context(config)
            elif engine:
                self._context = engine.create_execution_context()
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise DamagedBundleError(
                f"cannot read {path}: {error}. Copy or build the bundle again."
            ) from error
        # pybind11 raises these for a C++ exception and for a null object.
        except (RuntimeError, TypeError) as error:
            raise self._failed(f"cannot load {path} ({error})") from error
        if self._context is None:
            step = "load" if self._engine is None else "create an execution context for"
            raise self._failed(f"cannot {step} {path}")

    def _forget_engine(self) -> None:
        # The vendor frees on the last reference; a context must go before its engine, an engine
        # before its runtime.
        self._context = None
        self._engine = None
        self._runtime = None

    def _describe_tensors(self) -> Shapes:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in names:
            if (dtype := engine.get_tensor_dtype(name)) != self._vendor.DataType.FLOAT:
                raise DamagedBundleError(
                    f"tensor {name!r} of bucket {self.bucket} in {self.folder} is {dtype}, not "
                    "float32. Build it again."
                )
        return {name: tuple(engine.get_tensor_shape(name)) for name in names}

    def _allocate(self, name: str, shape: tuple[int, ...]) -> _Buffer:
        count = int(np.prod(shape))
        size = count * np.dtype(np.float32).itemsize
        host = int(self._cuda("cudaMallocHost", size))
        self._resources.callback(self._cuda.release, "cudaFreeHost", host)
        device = int(self._cuda("cudaMalloc", size))
        self._resources.callback(self._cuda.release, "cudaFree", device)
        if not self._context.set_tensor_address(name, device):
            raise self._failed(f"refused the address of tensor {name!r}")
        array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(host)).reshape(shape)
        return _Buffer(host=host, device=device, size=size, array=array)

    def _enqueue(self) -> None:
        """Queue copy in, execution and copy out on the stream."""
        kinds = self._cuda.module.cudaMemcpyKind
        for b in (self._buffers[name] for name in self.input_shapes):
            self._cuda(
                "cudaMemcpyAsync",
                b.device,
                b.host,
                b.size,
                kinds.cudaMemcpyHostToDevice,
                self._stream,
            )
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failed(f"failed on bucket {self.bucket}")
        for b in (self._buffers[name] for name in self.output_shapes):
            self._cuda(
                "cudaMemcpyAsync",
                b.host,
                b.device,
                b.size,
                kinds.cudaMemcpyDeviceToHost,
                self._stream,
            )

    def _capture(self) -> Any:
        """Record `_enqueue` as a CUDA graph; shapes and addresses never change. Other threads may
        still allocate.
        """
        mode = self._cuda.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda("cudaStreamBeginCapture", self._stream, mode)
        try:
            self._enqueue()
        except BaseException:
            _, recorded = self._cuda.release("cudaStreamEndCapture", self._stream)
            if recorded is not None:
                self._cuda.release("cudaGraphDestroy", recorded)
            raise
        recorded = self._cuda("cudaStreamEndCapture", self._stream)
        try:
            graph = self._cuda("cudaGraphInstantiate", recorded, 0)
        finally:
            self._cuda.release("cudaGraphDestroy", recorded)
        self._resources.callback(self._cuda.release, "cudaGraphExecDestroy", graph)
        return graph

    def _failed(self, step: str) -> BackendError:
        version = self._vendor.__version__
        return BackendError(f"{self.backend.name} {version} {step}: {self._log.text()}")


def _load_cudart(name: str) -> Any:
    # The second is the name in JetPack 6's cuda-python.
    for module in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise BackendMissingError(
        f"{name} needs the Python package 'cuda-bindings', which is not installed: "
        f"{how_to_install(BACKENDS[name].extra)}; on JetPack 6 `pip install 'cuda-python<13'`"
    )

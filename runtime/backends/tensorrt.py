"""TensorRT and TensorRT-RTX: one module for both.

The only file that imports `tensorrt` and `tensorrt_rtx`. Runs `bucket.engine` with the CUDA runtime
and no torch. Pinned and device buffers are allocated once, one plain run, then a CUDA graph.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import BACKENDS
from runtime.backends.cuda import Cuda, compute_capability
from runtime.backends.session import Arrays, Session, Tensor, Tensors, import_vendor
from runtime.backends.versions import version_of
from runtime.errors import (
    BackendError,
    DamagedBundleError,
    ForeignEngineError,
    UnfinishedBundleError,
)
from runtime.manifest import EngineInfo


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """How the two differ in behaviour.

    `portable`: an engine runs on other GPUs than the one it was built on. `captures_itself`: the
    vendor captures the CUDA graph.
    """

    portable: bool
    captures_itself: bool


_KERNELS = "kernels"  # the file in an entry of runtime/compiled.py

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


@dataclass(frozen=True, kw_only=True)
class _Buffer:
    """One tensor: addresses of its pinned memory and of its twin on the device, bytes; `array` is
    the pinned memory.
    """

    host: int
    device: int
    size: int
    array: NDArray[np.float32]


class _Runner:
    """What one run has for itself: context, stream, buffers and, from the second run on, the CUDA
    graph. `resources` releases them in reverse order of allocation. `config`, with which the
    context was made, must live as long as it does.
    """

    def __init__(self) -> None:
        self.resources = ExitStack()
        self.stream: Any = None
        self.config: Any = None
        self.context: Any = None
        self.buffers: dict[str, _Buffer] = {}
        self.graph: Any = None
        self.has_run = False

    def forget_context(self) -> None:
        """The vendor frees on the last reference."""
        self.context = None
        self.config = None


class BackendSession(Session):
    """Runs `bucket.engine`. A runner's buffers, stream and CUDA graph live as long as the session.

    Inputs are copied also on integrated GPUs: there pinned memory is not cached by the GPU, and the
    first convolution reads its input many times (CUDA for Tegra, "Memory types").

    TensorRT-RTX compiles an engine's kernels for the GPU as it opens and first runs it; these are
    what is kept for the next opening (its "runtime cache").
    """

    _runtime: Any = None
    _engine: Any = None
    _kernels: Any = None

    @cached_property
    def _resources(self) -> ExitStack:
        return ExitStack()  # releases in reverse order of allocation; closing it twice is safe

    def _open(self) -> Tensors:
        self._load_engine(self._check_bundle())
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        types = {self._vendor.DataType.FLOAT: "float32"}
        return {
            name: Tensor(
                types.get(dtype := engine.get_tensor_dtype(name), str(dtype)),
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
        }

    def _new_runner(self) -> _Runner:
        runner = _Runner()
        with ExitStack() as undo:
            undo.enter_context(runner.resources)
            # While a blocking stream is captured, whatever another thread does on the legacy stream
            # fails (cudaErrorStreamCaptureImplicit).
            flags = self._cuda.module.cudaStreamNonBlocking
            runner.stream = self._cuda("cudaStreamCreateWithFlags", flags)
            runner.resources.callback(self._cuda.release, "cudaStreamDestroy", runner.stream)
            runner.resources.callback(runner.forget_context)
            runner.context = self._new_context(runner)
            for name, shape in (self.input_shapes | self.output_shapes).items():
                runner.buffers[name] = self._allocate(runner, name, shape)
            if self.keep_in is not None:
                self._keep_kernels(runner, self.keep_in)
            undo.pop_all()
        self._resources.push(runner.resources)  # runners go before the engine
        return runner

    def _run(self, runner: _Runner, inputs: Arrays) -> Arrays:
        for name, array in inputs.items():
            np.copyto(runner.buffers[name].array, array)
        # The first run is plain: the vendor initialises lazily, which a capture would refuse.
        if (
            runner.has_run
            and runner.graph is None
            and not FLAVOURS[self.backend.name].captures_itself
        ):
            runner.graph = self._capture(runner)
        if runner.graph is not None:
            self._cuda("cudaGraphLaunch", runner.graph, runner.stream)
        else:
            self._enqueue(runner)
        self._cuda("cudaStreamSynchronize", runner.stream)
        runner.has_run = True
        return {name: runner.buffers[name].array.copy() for name in self.output_shapes}

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
        self.version = version_of(self._vendor)
        here = f"{self.backend.name} {self.version}"
        if info.version != self.version:
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
            f"--target {self.backend.name}` builds it here and prints the path of the bundle that "
            "holds it."
        )

    def _load_engine(self, path: Path) -> None:
        """Deserialise. The file is mapped, not read: on a Jetson the GPU shares this memory."""
        vendor = self._vendor
        self._log = Log(vendor)
        self._resources.callback(self._forget_engine)
        try:
            self._runtime = runtime = vendor.Runtime(self._log.logger)
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                self._engine = runtime.deserialize_cuda_engine(content)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise DamagedBundleError(
                f"cannot read {path}: {error}. Copy or build the bundle again."
            ) from error
        # pybind11 raises these for a C++ exception and for a null object.
        except (RuntimeError, TypeError) as error:
            raise self._failed(f"cannot load {path} ({error})") from error
        if self._engine is None:
            raise self._failed(f"cannot load {path}")

    def _forget_engine(self) -> None:
        # The vendor frees on the last reference; an engine must go before its runtime.
        self._kernels = None
        self._engine = None
        self._runtime = None

    def _new_context(self, runner: _Runner) -> Any:
        engine = self._engine
        path = self.folder / str(self.bucket.engine)
        try:
            runner.config = self._new_config()
            if runner.config is None:
                context = engine.create_execution_context()
            else:
                context = engine.create_execution_context(runner.config)
        except (RuntimeError, TypeError) as error:  # as above
            raise self._failed(
                f"cannot create an execution context for {path} ({error})"
            ) from error
        if context is None:
            raise self._failed(f"cannot create an execution context for {path}")
        return context

    def _new_config(self) -> Any:
        """How a context is made; None where the vendor needs no telling."""
        vendor, engine = self._vendor, self._engine
        captures = FLAVOURS[self.backend.name].captures_itself
        captures = captures and hasattr(vendor, "CudaGraphStrategy")
        keeps = self.compiled is not None or self.keep_in is not None
        if not (captures or keeps):
            return None
        config = engine.create_runtime_config()
        if captures:
            config.cuda_graph_strategy = vendor.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if keeps:
            if self._kernels is None:  # the first runner's, and the others'
                self._kernels = self._load_kernels(config)
            if not config.set_runtime_cache(self._kernels):
                raise self._failed("takes no compiled kernels")
        return config

    def _load_kernels(self, config: Any) -> Any:
        """Those that were kept, or room for new ones. The vendor compares the GPU, the driver and
        its own version with those they were compiled for.
        """
        kernels = config.create_runtime_cache()
        if self.compiled is not None:
            content = (self.compiled.folder / _KERNELS).read_bytes()
            if not kernels.deserialize(content):
                raise self._failed("does not take the compiled kernels that were kept")
        return kernels

    def _keep_kernels(self, runner: _Runner, folder: Path) -> None:
        """Leave the compiled kernels in the folder, after a run: some are compiled only then."""
        kernels = self._kernels
        for name in self.input_shapes:
            runner.buffers[name].array.fill(0)
        self._enqueue(runner)
        self._cuda("cudaStreamSynchronize", runner.stream)
        content = kernels.serialize()
        if content is None or not (written := memoryview(content).cast("B")).nbytes:
            raise self._failed("does not write down its compiled kernels")
        (folder / _KERNELS).write_bytes(written)

    def _allocate(self, runner: _Runner, name: str, shape: tuple[int, ...]) -> _Buffer:
        count = int(np.prod(shape))
        size = count * np.dtype(np.float32).itemsize
        host = int(self._cuda("cudaMallocHost", size))
        runner.resources.callback(self._cuda.release, "cudaFreeHost", host)
        device = int(self._cuda("cudaMalloc", size))
        runner.resources.callback(self._cuda.release, "cudaFree", device)
        if not runner.context.set_tensor_address(name, device):
            raise self._failed(f"refused the address of tensor {name!r}")
        array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(host)).reshape(shape)
        return _Buffer(host=host, device=device, size=size, array=array)

    def _enqueue(self, runner: _Runner) -> None:
        """Queue copy in, execution and copy out on the stream."""
        kinds = self._cuda.module.cudaMemcpyKind
        for b in (runner.buffers[name] for name in self.input_shapes):
            self._cuda(
                "cudaMemcpyAsync",
                b.device,
                b.host,
                b.size,
                kinds.cudaMemcpyHostToDevice,
                runner.stream,
            )
        if not runner.context.execute_async_v3(int(runner.stream)):
            raise self._failed(f"failed on bucket {self.bucket}")
        for b in (runner.buffers[name] for name in self.output_shapes):
            self._cuda(
                "cudaMemcpyAsync",
                b.host,
                b.device,
                b.size,
                kinds.cudaMemcpyDeviceToHost,
                runner.stream,
            )

    def _capture(self, runner: _Runner) -> Any:
        """Record `_enqueue` as a CUDA graph; shapes and addresses never change. Other threads may
        still allocate.
        """
        mode = self._cuda.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda("cudaStreamBeginCapture", runner.stream, mode)
        try:
            self._enqueue(runner)
        except BaseException:
            _, recorded = self._cuda.release("cudaStreamEndCapture", runner.stream)
            if recorded is not None:
                self._cuda.release("cudaGraphDestroy", recorded)
            raise
        recorded = self._cuda("cudaStreamEndCapture", runner.stream)
        try:
            graph = self._cuda("cudaGraphInstantiate", recorded, 0)
        finally:
            self._cuda.release("cudaGraphDestroy", recorded)
        runner.resources.callback(self._cuda.release, "cudaGraphExecDestroy", graph)
        return graph

    def _failed(self, step: str) -> BackendError:
        version = self._vendor.__version__
        return BackendError(f"{self.backend.name} {version} {step}: {self._log.text()}")

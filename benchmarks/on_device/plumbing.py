"""Proves the CUDA plumbing of the TensorRT backend with a stand-in engine: buffers, streams,
capture and replay of the graph, threads, errors. Functions of the worker.

Never run on a GPU so far: tests run every check against a fake CUDA in host memory.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_device.events import device_times
from benchmarks.on_device.kernel import ASTRAY, Kernels
from benchmarks.on_device.repeats import repeat
from benchmarks.on_device.stand_in import NAME, StandIn, exact, open_stand_in, picture
from runtime.backends.cuda import Cuda, compute_capability
from runtime.backends.session import Session
from runtime.errors import BackendError

_OPENINGS = 23  # of a session; groups of three at both ends are compared
_SLACK = 40e6  # bytes that other programs may take of the GPU meanwhile
_TOO_MUCH = 1 << 50  # bytes
_FAST, _MANY = 16, 4  # runs of a thread; threads


class Wrong(BackendError):
    """Something was not as it must be."""


class Recorder:
    """Stands before a `Cuda` and notes the names of its calls."""

    def __init__(self, cuda: Any) -> None:
        self.module, self._cuda = cuda.module, cuda
        self.calls: list[str] = []

    def __call__(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        return self._cuda(name, *arguments)

    def release(self, name: str, *arguments: Any) -> Any:
        """As `Cuda.release`."""
        self.calls.append(name)
        return self._cuda.release(name, *arguments)


def plumbing(*, edge: int) -> dict[str, Any]:
    """Run every check on this GPU, on images of this edge. Raises: BackendError without a GPU, the
    bindings or NVRTC.
    """
    cuda = Cuda(NAME)
    cuda("cudaFree", 0)  # the runtime's context, into which the kernels are loaded
    kernels = Kernels(compute_capability())
    with tempfile.TemporaryDirectory() as folder:
        return run_checks(cuda, StandIn(kernels.launch, edge), Path(folder))


def astray(*, edge: int) -> dict[str, Any]:
    """A kernel that writes outside of its memory is an error with CUDA's words, and the session
    closes. The GPU's context is lost with it, so this is a process of its own.
    """
    cuda = Cuda(NAME)
    cuda("cudaFree", 0)
    kernels = Kernels(compute_capability())
    with tempfile.TemporaryDirectory() as folder:
        return run_astray(cuda, StandIn(kernels.launch, edge), Path(folder))


def run_checks(cuda: Any, vendor: StandIn, folder: Path) -> dict[str, Any]:
    """Each check by its words: what it found, or `failed` with the reason."""
    found: list[dict[str, Any]] = []
    for check in CHECKS:
        vendor.before = lambda stream: True
        words = (check.__doc__ or "").split(".")[0]
        try:
            found.append({"check": words, "found": check(cuda, vendor, folder)})
        except Exception as error:  # the bindings raise types of their own; the others go on
            found.append({"check": words, "failed": f"{type(error).__name__}: {error}"})
    return {"checks": found, "failed": sum("failed" in each for each in found)}


def run_astray(cuda: Any, vendor: StandIn, folder: Path) -> dict[str, Any]:
    """The one check of `astray`."""
    words = "a kernel that writes outside of its memory is an error, and the session closes"
    session = open_stand_in(folder, vendor, cuda)
    _check(session, vendor, 0)
    vendor.kernel = ASTRAY
    try:
        message = _error_of(session, vendor, "cudaStreamSynchronize failed")
    except Wrong as error:
        return {"checks": [{"check": words, "failed": str(error)}], "failed": 1}
    finally:
        session.close()
    return {"checks": [{"check": words, "found": message}], "failed": 0}


def _runs(cuda: Any, vendor: StandIn, folder: Path) -> str:
    """the first run is plain, the second captures, later ones launch one graph, all exact."""
    recorder = Recorder(cuda)
    lines = []
    with open_stand_in(folder, vendor, recorder) as session:
        for seed in range(6):
            recorder.calls.clear()
            _check(session, vendor, seed)
            lines.append([call.removeprefix("cuda") for call in recorder.calls])
    launch = ["GraphLaunch", "StreamSynchronize"]
    plain = ["MemcpyAsync", "MemcpyAsync", "StreamSynchronize"]
    if lines[0] != plain:
        raise Wrong(f"the first run called {lines[0]}")
    if lines[1][0] != "StreamBeginCapture" or lines[1][-2:] != launch:
        raise Wrong(f"the second run called {lines[1]}")
    if any(line != launch for line in lines[2:]):
        raise Wrong(f"the later runs called {lines[2:]}")
    return "6 runs on 6 images, equal to NumPy's to the last bit"


def _copies(cuda: Any, vendor: StandIn, folder: Path) -> str:
    """an answer stays as it is when the session runs again."""
    edge = vendor.shapes["image"][2]
    with open_stand_in(folder, vendor, cuda) as session:
        for seed in range(3):
            inputs = picture(edge, seed)
            answer = session(inputs)["disparity"]
            session(picture(edge, seed + 10))
            _same(answer, exact(inputs))
    return "3 answers, each after another run"


def _threads(cuda: Any, vendor: StandIn, folder: Path) -> str:
    """threads run at once, each with a stream, buffers and a graph of its own."""
    errors: list[BaseException] = []
    recorder = Recorder(cuda)

    def run(first: int, session: Session) -> None:
        try:
            for seed in range(first, first + _FAST):
                _check(session, vendor, seed)
        except BaseException as error:
            errors.append(error)

    with open_stand_in(folder, vendor, recorder, parallel=_MANY) as session:
        threads = [
            threading.Thread(target=run, args=(number * _FAST, session)) for number in range(_MANY)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise Wrong(str(errors[0]))
    streams = recorder.calls.count("cudaStreamCreateWithFlags")
    return f"{_MANY} threads of {_FAST} runs on {streams} streams"


def _refusal(cuda: Any, vendor: StandIn, folder: Path) -> str:
    """an engine that refuses to be queued while it is captured is an error, and the next run is
    right.
    """
    return _fails_in_capture(cuda, vendor, folder, lambda stream: False, "failed on bucket")


def _forbidden(cuda: Any, vendor: StandIn, folder: Path) -> str:
    """a call that CUDA forbids in a capture ends it with an error, and the next run is right."""

    def synchronise(stream: int) -> bool:
        cuda("cudaStreamSynchronize", stream)  # raises in a capture
        return True

    return _fails_in_capture(cuda, vendor, folder, synchronise, "cudaStreamSynchronize failed")


def _too_much(cuda: Any, vendor: StandIn, folder: Path) -> str:
    """more memory than there is is an error with CUDA's words, and the session goes on."""
    with open_stand_in(folder, vendor, cuda) as session:
        _check(session, vendor, 0)
        try:
            address = cuda("cudaMalloc", _TOO_MUCH)
        except BackendError as error:
            message = str(error)
        else:
            cuda.release("cudaFree", address)
            raise Wrong(f"{_TOO_MUCH} bytes were allocated")
        _check(session, vendor, 1)
        _check(session, vendor, 2)
    return message


def _memory(cuda: Any, vendor: StandIn, folder: Path) -> str:
    """the memory of a closed session is free again."""
    free = []
    for seed in range(_OPENINGS):
        with open_stand_in(folder, vendor, cuda) as session:
            for turn in range(3):
                _check(session, vendor, seed + turn)
        free.append(cuda.module.cudaMemGetInfo()[1])
    lost = max(free[1:4]) - max(free[-3:])  # the first opening loads libraries; others use it too
    if lost > _SLACK:
        raise Wrong(f"{lost / 1e6:.1f} MB are gone after {_OPENINGS} openings")
    return f"{_OPENINGS} openings took {max(lost, 0) / 1e6:.1f} MB"


def _times(cuda: Any, vendor: StandIn, folder: Path) -> dict[str, float]:
    """CUDA events time the copies, the kernel and the replayed graph."""
    inputs = picture(vendor.shapes["image"][2], 0)
    with open_stand_in(folder, vendor, cuda) as session:
        times = device_times(session, inputs, 1.0)
        walls = repeat(lambda: session(inputs), seconds=1.0)
    times["graph"] = times.pop("replayed")
    times["a whole run as the caller sees it"] = statistics.median(walls)
    return {f"{name}, ms": 1e3 * seconds for name, seconds in times.items()}


CHECKS: tuple[Callable[[Any, StandIn, Path], Any], ...] = (
    _runs,
    _copies,
    _threads,
    _refusal,
    _forbidden,
    _too_much,
    _memory,
    _times,
)


def _fails_in_capture(
    cuda: Any, vendor: StandIn, folder: Path, failure: Callable[[int], bool], words: str
) -> str:
    with open_stand_in(folder, vendor, cuda) as session:
        _check(session, vendor, 0)
        vendor.before = failure
        message = _error_of(session, vendor, words)
        vendor.before = lambda stream: True
        for seed in (1, 2, 3):  # captures now
            _check(session, vendor, seed)
    return message


def _error_of(session: Session, vendor: StandIn, words: str) -> str:
    """The message of the error that the next run must end in, which must hold these words. Raises:
    Wrong where it does not.
    """
    try:
        session(picture(vendor.shapes["image"][2], 0))
    except BackendError as error:
        if words not in str(error):
            raise Wrong(f"the error is another one: {error}") from error
        return str(error)
    raise Wrong("there was no error")


def _check(session: Session, vendor: StandIn, seed: int) -> None:
    """One run on an image of its own is exact. Raises: Wrong."""
    inputs = picture(vendor.shapes["image"][2], seed)
    _same(session(inputs)["disparity"], exact(inputs))


def _same(answer: Any, expected: Any) -> None:
    apart = float(np.abs(answer - expected).max())
    if apart != 0:
        raise Wrong(f"the answer is {apart:g} off")

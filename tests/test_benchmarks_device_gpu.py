"""The proof of the CUDA plumbing against a fake CUDA, its kernels with the real NVRTC and bindings
where they are installed, and the folds in PyTorch on the CPU. Nothing here runs on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from tensorrt_fakes import FakeCudart, FakeVendor, make_manifest, open_session
from tensorrt_fakes import image as fake_image

from benchmarks.on_device import events, kernel, plumbing
from benchmarks.on_device.plumbing import CHECKS, run_astray, run_checks
from benchmarks.on_device.stand_in import StandIn, exact, picture
from runtime.backends import cuda
from runtime.backends import tensorrt as backend
from runtime.errors import BackendError, BackendMissingError, LotusError

EDGE = 16


class DeviceCudart(FakeCudart):
    """With events, whose clock ticks 1 ms with each record, and the errors of a real device."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0
        self.stamps: dict[int, int] = {}
        self.broken = False  # the capture
        self.free_bytes = 1 << 33

    def cudaFree(self, address: int) -> tuple[int]:
        return (0,) if address == 0 else super().cudaFree(address)

    def cudaMalloc(self, size: int) -> tuple[int, Any]:
        return (2, None) if size > 1 << 40 else super().cudaMalloc(size)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return 0, self.free_bytes, 1 << 34

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if self.capturing is not None:
            self.broken = True
            return (900,)
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[int]:
        if self.capturing is not None:
            return (401,)
        return super().cudaStreamBeginCapture(stream, mode)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        if self.broken:
            self.capturing, self.broken = None, False
            return 901, None
        return super().cudaStreamEndCapture(stream)

    def cudaEventCreate(self) -> tuple[int, int]:
        return 0, self._new("cudaEventDestroy")

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        assert self.capturing is None, "an event in a capture tells no time"
        assert self.alive[stream] == "cudaStreamDestroy"
        self.ticks += 1
        self.stamps[event] = self.ticks
        return (0,)

    def cudaEventElapsedTime(self, before: int, after: int) -> tuple[int, float]:
        return 0, float(self.stamps[after] - self.stamps[before])

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        return self._free(event, "cudaEventDestroy")

    def launch(self, name: str, stream: int, image: int, result: int, count: int) -> None:
        """The kernels, in host memory."""
        if name == kernel.ASTRAY:
            self.fail["cudaStreamSynchronize"] = 0
            return

        def compute() -> None:
            shape = (1, 3, EDGE, EDGE)
            planes = np.ctypeslib.as_array((ctypes.c_float * 3 * count).from_address(image))
            out = np.ctypeslib.as_array((ctypes.c_float * count).from_address(result))
            out[:] = exact({"image": planes.reshape(shape)}).ravel()

        self.do(compute)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> DeviceCudart:
    cudart = DeviceCudart()
    monkeypatch.setattr(cuda, "_load_cudart", lambda flavour: cudart)
    return cudart


def checked(cudart: DeviceCudart, folder: Path) -> list[dict[str, Any]]:
    found = run_checks(cuda.Cuda("tensorrt"), StandIn(cudart.launch, EDGE), folder)["checks"]
    assert len(found) == len(CHECKS)
    return list(found)


def test_every_check_passes_on_a_sound_device_and_nothing_is_left(
    device: DeviceCudart, tmp_path: Path
) -> None:
    found = checked(device, tmp_path)
    assert [check for check in found if "failed" in check] == []
    assert device.alive == {}
    by_words = {check["check"]: check["found"] for check in found}
    assert all(words and words[-1] != "." for words in by_words)
    assert by_words["CUDA events time the copies, the kernel and the replayed graph"] == {
        "copy in, ms": 1,
        "execute, ms": 1,
        "copy out, ms": 1,
        "graph, ms": 1,
        "a whole run as the caller sees it, ms": pytest.approx(0, abs=50),
    }
    forbidden = "a call that CUDA forbids in a capture ends it with an error"
    assert any(
        words.startswith(forbidden) and "failed with" in by_words[words] for words in by_words
    )


def _replays_nothing(cudart: DeviceCudart) -> None:
    cudart.cudaGraphLaunch = lambda graph, stream: (0,)  # type: ignore[method-assign]


def _copies_nothing_back(cudart: DeviceCudart) -> None:
    copy = cudart.cudaMemcpyAsync
    cudart.cudaMemcpyAsync = (  # type: ignore[method-assign]
        lambda to, source, size, kind, stream: (
            (0,) if kind == "out" else copy(to, source, size, kind, stream)
        )
    )


def _keeps_memory(cudart: DeviceCudart) -> None:
    allocate = cudart.cudaMalloc

    def leak(size: int) -> Any:
        cudart.free_bytes -= 4_000_000
        return allocate(size)

    cudart.cudaMalloc = leak  # type: ignore[method-assign]


def _has_endless_memory(cudart: DeviceCudart) -> None:
    allocate = cudart.cudaMalloc
    cudart.cudaMalloc = lambda size: allocate(min(size, 1 << 20))  # type: ignore[method-assign]


def _refuses_the_first_capture(cudart: DeviceCudart) -> None:
    """Of each stream: an error, but not the one that a check is about."""
    begin, seen = cudart.cudaStreamBeginCapture, set[int]()

    def refuse(stream: int, mode: str) -> tuple[int]:
        if stream in seen:
            return begin(stream, mode)
        seen.add(stream)
        return (999,)

    cudart.cudaStreamBeginCapture = refuse  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (_refuses_the_first_capture, {"_runs", "_refusal", "_forbidden"}),
        (_replays_nothing, {"_runs", "_copies", "_threads", "_refusal", "_forbidden"}),
        (_copies_nothing_back, {"_runs", "_copies", "_threads"}),
        (_keeps_memory, {"_memory"}),
        (_has_endless_memory, {"_too_much"}),
    ],
)
def test_a_fault_fails_its_checks(
    device: DeviceCudart, tmp_path: Path, fault: Any, failing: set[str]
) -> None:
    fault(device)
    found = checked(device, tmp_path)
    failed = {check.__name__ for check, row in zip(CHECKS, found, strict=True) if "failed" in row}
    assert failed >= failing
    if len(failing) == 1:
        assert failed == failing


def test_a_capture_that_is_not_cleared_fails_its_check(
    device: DeviceCudart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend's own clean-up, taken away: it would go on capturing."""
    release = cuda.Cuda.release

    def forget(self: cuda.Cuda, name: str, *arguments: Any) -> Any:
        if name == "cudaStreamEndCapture":
            return 0, None
        return release(self, name, *arguments)

    monkeypatch.setattr(cuda.Cuda, "release", forget)
    failed = {
        check.__name__
        for check, row in zip(CHECKS, checked(device, tmp_path), strict=True)
        if "failed" in row
    }
    assert {"_refusal", "_forbidden"} <= failed


def test_a_kernel_astray_is_an_error_and_the_session_closes(
    device: DeviceCudart, tmp_path: Path
) -> None:
    vendor = StandIn(device.launch, EDGE)
    found = run_astray(cuda.Cuda("tensorrt"), vendor, tmp_path)
    assert found["failed"] == 0
    assert "cudaStreamSynchronize failed with cudaErrorFake" in found["checks"][0]["found"]
    assert device.alive == {}
    vendor.launch = lambda *_: None
    device.fail.clear()
    answered = picture(EDGE, 0)
    with pytest.raises(plumbing.Wrong):  # the first, sound run must be exact
        run_astray(cuda.Cuda("tensorrt"), vendor, tmp_path)
    assert answered["image"].shape == (1, 3, EDGE, EDGE)


def test_device_and_layer_times_of_an_engine(
    device: DeviceCudart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor: Any = FakeVendor(device)

    class IProfiler:
        pass

    vendor.IProfiler = IProfiler
    monkeypatch.setattr(backend, "load_vendor", lambda flavour: vendor)
    monkeypatch.setattr(backend, "compute_capability", lambda: "8.7")
    (tmp_path / "model.engine").write_bytes(b"engine")
    manifest = make_manifest("tensorrt", "10.3.0", capability="8.7")
    with open_session(tmp_path, manifest) as session:
        found = events.device_times(session, fake_image(0), seconds=0.01)
        assert found == pytest.approx(
            {"copy in": 1e-3, "execute": 1e-3, "copy out": 1e-3, "replayed": 1e-3}
        )
        assert isinstance(session._cuda, cuda.Cuda)
    with open_session(tmp_path, manifest) as session:
        context = vendor.contexts[-1]
        run = context.execute_async_v3

        def profiled(stream: int) -> bool:
            if hasattr(context, "profiler"):
                context.profiler.report_layer_time("unet/mid/conv + unet/mid/add", 2.0)
                context.profiler.report_layer_time("Reformat of decoder/conv_in", 1.0)
                context.profiler.report_layer_time("{ForeignNode[encoder/a...decoder/b]}", 4.0)
                context.profiler.report_layer_time("copy", 0.5)
            return bool(run(stream))

        context.execute_async_v3 = profiled
        layers = events.layer_times(session, fake_image(0), runs=2)
    assert layers == pytest.approx(
        {"unet": 2e-3, "decoder": 1e-3, "other": 0.5e-3, "several stages": 4e-3}
    )
    with (
        open_session(tmp_path, manifest) as session,
        pytest.raises(LotusError, match="told nothing of any layer"),
    ):
        events.layer_times(session, fake_image(0), runs=2)
    assert device.alive == {}


def test_the_vendors_profiler_has_the_names_that_we_use() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    assert hasattr(rtx.IProfiler, "report_layer_time")
    assert hasattr(rtx.IExecutionContext, "profiler")
    cudart = pytest.importorskip("cuda.bindings.runtime")
    for name in vars(DeviceCudart):
        if name.startswith("cuda"):
            assert hasattr(cudart, name), name


def test_without_nvrtc_the_reason_says_what_to_install() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the extra rtx is not installed")
    if _nvrtc_works():
        pytest.skip("NVRTC is here")
    with pytest.raises(BackendMissingError, match="pip install nvidia-cuda-nvrtc"):
        kernel.compile_kernels("8.7")


def test_nvrtc_compiles_the_kernels_for_each_architecture() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the extra rtx is not installed")
    if not _nvrtc_works():
        pytest.skip("NVRTC is not installed: `pip install nvidia-cuda-nvrtc`")
    for capability in ("8.6", "8.7", "9.0", "12.0"):
        assert kernel.compile_kernels(capability)[:4] == b"\x7fELF"
    with pytest.raises(BackendError, match="gpu-architecture"):
        kernel.compile_kernels("1.0")


def _nvrtc_works() -> bool:
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError):
        return False
    return True


# A driver that notes what it is called with, so that the bindings' own conversions are tested.
DRIVER = r"""
#include <stdio.h>
#include <string.h>
static int load(void **module, const void *code) { *module = (void *)0x77; return 0; }
static int function(void **found, void *module, const char *name) {
    *found = (void *)(strcmp(name, "mean_of_planes") ? 0x99 : 0x88); return 0; }
static int unload(void *module) { printf("unload %p\n", module); fflush(stdout); return 0; }
static int version(int *v) { *v = 13000; return 0; }
static int launch(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
        unsigned bz, unsigned shared, void *stream, void **p, void **extra) {
    printf("%p %u %u %u %u %u %u %u %p %p %p %d\n", f, gx, gy, gz, bx, by, bz, shared, stream,
        *(void **)p[0], *(void **)p[1], *(int *)p[2]); fflush(stdout); return 0; }
int cuGetProcAddress_v2(const char *name, void **found, int v, unsigned long long f, void *s) {
    struct { const char *name; void *function; } all[] = {{"cuModuleLoadData", load},
        {"cuModuleGetFunction", function}, {"cuModuleUnload", unload},
        {"cuDriverGetVersion", version}, {"cuLaunchKernel", launch}};
    *found = 0;
    for (int i = 0; i < 5; i++) if (!strcmp(name, all[i].name)) *found = all[i].function;
    return *found ? 0 : 500; }
int cuGetProcAddress(const char *name, void **found, int v, unsigned long long f) {
    return cuGetProcAddress_v2(name, found, v, f, 0); }
int cuDriverGetVersion(int *v) { return version(v); }
"""
LAUNCH = """
from benchmarks.on_device import kernel
kernel.compile_kernels = lambda capability: b"code"
kernels = kernel.Kernels("8.7")
kernels.launch(kernel.MEAN, 0x1234, 0x7f0000001000, 0x7f0000002000, 1000)
kernels.launch(kernel.ASTRAY, 0x1234, 0x7f0000001000, 0x7f0000002000, 256)
kernels.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for the driver is for Linux")
def test_the_real_bindings_launch_with_the_arguments_we_pass(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="the extra rtx is not installed")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    words = ["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "driver.c"]
    subprocess.run(words, check=True)
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    addresses = "0x1234 0x7f0000001000 0x7f0000002000"
    assert done.stdout.splitlines() == [
        f"0x88 4 1 1 256 1 1 0 {addresses} 1000",
        f"0x99 1 1 1 256 1 1 0 {addresses} 256",
        "unload 0x77",
    ], done.stderr

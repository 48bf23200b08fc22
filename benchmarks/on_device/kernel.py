"""Two kernels of our own, compiled on the device by NVRTC, and their launch by the CUDA driver.

NVRTC compiles them without a GPU, which a test does; they were never launched so far.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from runtime.errors import BackendError, BackendMissingError

SOURCE = r"""
// The mean of the three planes of an image, count pixels each.
extern "C" __global__ void mean_of_planes(const float* image, float* map, int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) map[at] = (image[at] + image[at + count] + image[at + 2 * count]) / 3.0f;
}

// A bug: it writes far outside of anything that was allocated.
extern "C" __global__ void write_astray(const float* image, float* map, int count) {
    map[(1LL << 44) + blockIdx.x] = image[0] + count;
}
"""
MEAN, ASTRAY = "mean_of_planes", "write_astray"
_THREADS = 256
_TYPES = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
# By the present names, and by those in JetPack 6's cuda-python.
_MODULES = {
    "nvrtc": ("cuda.bindings.nvrtc", "cuda.nvrtc"),
    "driver": ("cuda.bindings.driver", "cuda.cuda"),
}


class Kernels:
    """Both kernels, loaded into the context of the CUDA runtime, which must have one already.

    Raises: BackendMissingError without NVRTC, BackendError with CUDA's words.
    """

    def __init__(self, capability: str) -> None:
        self._driver = _load("driver")
        self._module = _call(self._driver, "cuModuleLoadData", compile_kernels(capability))
        self._functions = {
            name: _call(self._driver, "cuModuleGetFunction", self._module, name.encode())
            for name in (MEAN, ASTRAY)
        }

    def launch(self, name: str, stream: int, image: int, result: int, count: int) -> None:
        """Queue a kernel on a stream: addresses on the device, pixels of one plane.

        Raises: BackendError.
        """
        blocks = (count + _THREADS - 1) // _THREADS
        grid = (blocks, 1, 1, _THREADS, 1, 1)
        parameters = ((image, result, count), _TYPES)
        function = self._functions[name]
        _call(self._driver, "cuLaunchKernel", function, *grid, 0, stream, parameters, 0)

    def close(self) -> None:
        """Unload them; after an error of the device that fails, and changes nothing."""
        self._driver.cuModuleUnload(self._module)


def compile_kernels(capability: str) -> bytes:
    """The kernels as machine code for a compute capability such as "8.7": a driver older than NVRTC
    takes that too. Raises: BackendMissingError, BackendError.
    """
    nvrtc = _load("nvrtc")
    option = f"--gpu-architecture=sm_{capability.replace('.', '')}".encode()
    try:
        program = _call(nvrtc, "nvrtcCreateProgram", SOURCE.encode(), b"kernels.cu", 0, [], [])
        try:
            _call(nvrtc, "nvrtcCompileProgram", program, 1, [option])
        except BackendError as error:
            # NVRTC writes into these bytes; Python shares those of length 1.
            log = bytes(_call(nvrtc, "nvrtcGetProgramLogSize", program) + 1)
            _call(nvrtc, "nvrtcGetProgramLog", program, log)
            raise BackendError(f"{error}: {log.decode(errors='replace').strip(chr(0))}") from error
        code = bytes(_call(nvrtc, "nvrtcGetCUBINSize", program))
        _call(nvrtc, "nvrtcGetCUBIN", program, code)
        nvrtc.nvrtcDestroyProgram(program)
    except RuntimeError as error:  # the bindings' own, where the library is not there
        raise BackendMissingError(
            f"NVRTC is not here ({error}): `pip install nvidia-cuda-nvrtc`, of CUDA 12 "
            "`nvidia-cuda-nvrtc-cu12`, on a Jetson `sudo apt install cuda-nvrtc-12-6`"
        ) from error
    return code


def _load(name: str) -> Any:
    for module in _MODULES[name]:
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise BackendMissingError(
        f"the Python package 'cuda-bindings' is not installed, or has no {name}; on JetPack 6 "
        "`pip install 'cuda-python<13'`"
    )


def _call(module: Any, name: str, *arguments: Any) -> Any:
    """What a function of the driver or of NVRTC answers behind its status. Raises: BackendError."""
    status, *values = getattr(module, name)(*arguments)
    if int(status) != 0:
        raise BackendError(f"{name} failed with {getattr(status, 'name', status)}")
    return values[0] if values else None

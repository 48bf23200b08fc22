"""The CUDA runtime, through NVIDIA's bindings. The only file that imports `cuda`."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from runtime.backends import BACKENDS
from runtime.errors import BackendError, BackendMissingError, DeviceMissingError
from runtime.extras import how_to_install
from runtime.machine import nvidia_driver


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
        driver = nvidia_driver()
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
